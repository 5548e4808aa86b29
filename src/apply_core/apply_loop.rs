//! The apply loop's decisions: which work goes to the destination now, and which waits.
//!
//! In come steps, what is known of the leader's session ([`LiveSession`]), the command that apply has, and the time; out comes one
//! [`LoopAction`] at a time, until there is none. `apply_worker::apply_loop` carries it out and reports what was stored.
//!
//! ```text
//! push(step) ─▶ Batcher ─▶ next(moment, coordinator) ─▶ LoopAction
//!                             ▲
//! stored, wal ─▶ Ledger ──────┘──▶ what may be confirmed
//! ```
//!
//! Under [`ApplyCommand::Hold`] and [`ApplyCommand::RunTo`] a transaction that has begun is finished first. A transaction that was applied
//! in parallel only waits for its turn here: until the [`Coordinator`] knows what became of its commit, nothing else is handed out.

use std::time::Duration;

use super::command::ApplyCommand;
use super::parallel_apply::{Coordinator, Settlement, TurnOutcome};
use super::sessions::LiveSession;
use crate::apply_plan::{ApplyTask, BatchLimits, Batcher, LargeStep, TransactionEnd, Work};
use crate::pg::Lsn;
use crate::progress::{IdleAdvance, Ledger, StoredPosition, WalReading};
use crate::transaction::Step;

/// The destination's WAL positions are asked for at most so often: as its walwriter flushes by default (`wal_writer_delay`), so that a
/// transaction of its own is asked for twice, with its COMMIT and once flushed. Confirming less often costs the source a little WAL.
const READ_WAL_EVERY: Duration = Duration::from_millis(200);
/// A pipelined request leaves behind one that is not answered yet only with so many changes. Large ones cost the destination less for a
/// change (statements over more rows, more changes of one row folded), and what is queued leaves at the latest with the answer.
const SECOND_REQUEST_ROWS: usize = 1_000;
/// The loop looks again after this time at the latest: an idle position becomes due without anybody's call.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// No wait is shorter, so that a clock that is a little early makes no loop of it.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// Bounds of the loop.
#[derive(Clone, Copy, Debug)]
pub struct LoopLimits {
    /// How much goes into one batch, and is queued.
    pub batch: BatchLimits,
    /// An idle session is pinged so often.
    pub ping_every: Duration,
}

/// What a decision depends on that the loop does not own.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// A time since any fixed moment.
    pub now: Duration,
    /// What apply is to do.
    pub command: ApplyCommand,
    /// The leader's session.
    pub live: LiveSession,
}

/// What the loop does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoopAction {
    /// Send the request of a task; with `read_wal` its answer brings the destination's WAL positions.
    Submit {
        /// The task.
        task: ApplyTask,
        /// Whether to ask for them.
        read_wal: bool,
    },
    /// The same for a schema change, once the second session has released its locks.
    SubmitReleased {
        /// The task.
        task: ApplyTask,
        /// Whether to ask for them.
        read_wal: bool,
    },
    /// It is the turn of a transaction that was applied in parallel: find out what stands against its commit, and call
    /// [`Coordinator::turn`].
    CommitParallel(TransactionEnd),
    /// The second session has committed it: check the position, and report it with [`LoopCore::stored`]; then call
    /// [`Coordinator::settle`].
    ContinueBehind(TurnOutcome),
    /// Give the second session the tables as they are now, and call [`Coordinator::tables_current`].
    ShareTables,
    /// The stream has nothing to apply up to here.
    Reached(Lsn),
    /// Store a position up to which the stream has nothing to apply.
    StorePosition(Lsn),
    /// Nothing is queued or under way.
    Idle,
    /// Nothing before something changes.
    Wait,
}

/// An empty request that keeps the session alive; with `read_wal` its answer brings the destination's WAL positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Whether to ask for them.
    pub read_wal: bool,
}

/// The apply loop without its session. See the module.
#[derive(Debug)]
pub struct LoopCore {
    batcher: Batcher,
    ledger: Ledger,
    idle: IdleAdvance,
    ping_every: Duration,
    read_wal_at: Duration,
    sent_at: Duration,
    submitted_up_to: Lsn,
}

impl LoopCore {
    /// A loop at the beginning of a stream.
    pub fn new(ledger: Ledger, limits: LoopLimits, now: Duration) -> LoopCore {
        LoopCore {
            batcher: Batcher::new(limits.batch),
            ledger,
            idle: IdleAdvance::new(now),
            ping_every: limits.ping_every,
            read_wal_at: now,
            sent_at: now,
            submitted_up_to: Lsn::INVALID,
        }
    }

    /// Whether another step may be pushed.
    pub fn has_room(&self) -> bool {
        self.batcher.has_room()
    }

    /// Takes in the next step of the stream.
    pub fn push(&mut self, step: Step) {
        self.batcher.push(step);
    }

    /// Stored, and stored durably, as far as that is known: what may be confirmed.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The commit_lsn of the last transaction that was handed to the destination, whole or in part.
    pub fn submitted_up_to(&self) -> Lsn {
        self.submitted_up_to
    }

    /// Whether nothing is queued or under way, in parallel neither: the loop may end once no more steps come.
    pub fn is_finished(&self, live: &LiveSession, is_committing: bool) -> bool {
        !live.is_busy && !is_committing && self.batcher.is_empty()
    }

    /// The next thing to do; to be asked until it says [`LoopAction::Idle`] or [`LoopAction::Wait`].
    pub fn next(&mut self, moment: &Moment, parallel: Option<&mut Coordinator>) -> LoopAction {
        let Moment { now, command, live } = *moment;
        self.batcher.set_fence(command.fence());
        let mut is_committing = false;
        let mut parallel = parallel;
        if let Some(coordinator) = parallel.as_deref_mut() {
            coordinator.poll(command, &live);
            // A ping may be under way: its answer comes before that to the question where the position is.
            if live.is_free()
                && let Some(outcome) = coordinator.take_outcome(now)
            {
                match outcome.settlement {
                    Settlement::Applied => return LoopAction::ContinueBehind(outcome),
                    Settlement::ReadBack => coordinator.settle(Settlement::ReadBack),
                }
            }
            is_committing = coordinator.is_committing();
            if !is_committing && live.is_free() && coordinator.wants_tables() {
                return LoopAction::ShareTables;
            }
        }
        let holds = matches!(command, ApplyCommand::Hold { .. });
        let may_hand_out = live.has_room
            && !is_committing
            && (!holds || live.in_large_transaction)
            // What comes in small is gathered while an answer is awaited.
            && (!live.is_busy || self.batcher.holds(SECOND_REQUEST_ROWS));
        if may_hand_out && let Some(work) = self.batcher.next_work() {
            return self.hand_out(work, now, parallel);
        }
        let has_nothing_to_do =
            live.is_free() && !is_committing && self.batcher.is_empty() && command == ApplyCommand::Run;
        match self.idle.due(live.stored, now) {
            Some(position) if has_nothing_to_do => {
                self.sent_at = now;
                LoopAction::StorePosition(position)
            }
            Some(_) | None if has_nothing_to_do => LoopAction::Idle,
            Some(_) | None => LoopAction::Wait,
        }
    }

    fn hand_out(&mut self, work: Work, now: Duration, parallel: Option<&mut Coordinator>) -> LoopAction {
        match work {
            Work::Apply(task) => {
                self.submitted_up_to = self.submitted_up_to.max(task.last_commit_lsn().unwrap_or(Lsn::INVALID));
                self.sent_at = now;
                let read_wal = self.takes_reading(now);
                match (&task, parallel) {
                    (ApplyTask::Large(LargeStep::ChangeSchema(_)), Some(coordinator)) => {
                        coordinator.schema_changes();
                        LoopAction::SubmitReleased { task, read_wal }
                    }
                    (ApplyTask::Batch(_) | ApplyTask::Large(_), _) => LoopAction::Submit { task, read_wal },
                }
            }
            Work::CommitParallel(end) => {
                self.submitted_up_to = self.submitted_up_to.max(end.commit.commit_lsn);
                LoopAction::CommitParallel(end)
            }
            Work::Reached(position) => {
                self.idle.reached(position);
                LoopAction::Reached(position)
            }
        }
    }

    /// Whether the next request should bring the destination's WAL positions; counts as asked. A commit that is about to be sent will
    /// want them, too.
    fn takes_reading(&mut self, now: Duration) -> bool {
        let is_due = now.saturating_sub(self.read_wal_at) >= READ_WAL_EVERY;
        if is_due {
            self.read_wal_at = now;
        }
        is_due
    }

    /// Whether apply stands still as the command says: to be asked once there is nothing more to do.
    /// `is_committing`: a transaction that was applied in parallel is at its turn.
    pub fn stands_still(&self, moment: &Moment, is_committing: bool) -> bool {
        let has_arrived = match moment.command {
            ApplyCommand::Run => false,
            ApplyCommand::Hold { .. } => true,
            ApplyCommand::RunTo { point, .. } => self.has_reached(point, moment.live.stored),
        };
        has_arrived && moment.live.is_free() && !is_committing
    }

    /// Whether every transaction with commit_lsn before `point` has been handed out: one behind it has come, or the
    /// stream has nothing for us up to there.
    fn has_reached(&self, point: Lsn, stored: Lsn) -> bool {
        self.batcher.at_fence() || self.idle.position() >= point || stored >= point
    }

    /// A request has committed, or the second session's has.
    pub fn stored(&mut self, stored: StoredPosition, now: Duration) {
        self.ledger.stored_position(stored);
        self.idle.stored(now);
    }

    /// An answer has brought the destination's WAL positions.
    pub fn read(&mut self, reading: WalReading) {
        self.ledger.read(reading);
    }

    /// How long nothing needs to be done that nobody calls for.
    pub fn wait_max(&self, now: Duration) -> Duration {
        let ping = self.ping_every.saturating_sub(now.saturating_sub(self.sent_at));
        let read = if self.ledger.wants_reading() {
            READ_WAL_EVERY.saturating_sub(now.saturating_sub(self.read_wal_at))
        } else {
            ping
        };
        ping.min(read).clamp(WAIT_MIN, WAIT_MAX)
    }

    /// What keeps an idle session alive, and asks it what is durable, once that is due.
    pub fn ping(&mut self, live: &LiveSession, now: Duration) -> Option<Ping> {
        let read_wal = self.ledger.wants_reading() && now.saturating_sub(self.read_wal_at) >= READ_WAL_EVERY;
        let is_due = read_wal || now.saturating_sub(self.sent_at) >= self.ping_every;
        if live.is_busy || !is_due {
            return None;
        }
        self.read_wal_at = now;
        self.sent_at = now;
        Some(Ping { read_wal })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::apply_core::{Appended, AtCommit, CommitBy, Knowledge, ParallelLimits, SecondSession, SessionAction};
    use crate::pg::{Description, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity, Tuple};
    use crate::transaction::{Change, RowChange, SchemaChange, Transaction};
    use crate::wire::{Begin, Commit};

    const LIVE: LiveSession = LiveSession {
        stored: Lsn::new(10),
        is_busy: false,
        has_room: true,
        in_large_transaction: false,
        waits_for: Duration::ZERO,
    };
    const BUSY: LiveSession = LiveSession { is_busy: true, ..LIVE };

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn core() -> LoopCore {
        let batch = BatchLimits { rows_max: 5000, bytes_max: 1 << 20 };
        let ledger = Ledger::resume(Lsn::new(10), Lsn::new(10), 8192);
        LoopCore::new(ledger, LoopLimits { batch, ping_every: at(5000) }, at(0))
    }

    fn relation() -> Relation {
        Relation {
            leaves: Default::default(),
            id: RelationId(1),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
        }
    }

    fn begin(end: u64) -> Begin {
        Begin { final_lsn: Lsn::new(end - 1), committed_at: PgTimestamp::from_micros(0), xid: 7 }
    }

    fn commit(end: u64) -> Commit {
        Commit { commit_lsn: Lsn::new(end - 1), end_lsn: Lsn::new(end), committed_at: PgTimestamp::from_micros(0) }
    }

    fn transaction(end: u64) -> Step {
        let insert = RowChange::Insert { relation: relation().into(), new: Tuple::new(0, Bytes::new()).unwrap() };
        let changes = vec![Change::Row(insert)];
        Step::Transaction(Transaction {
            begin: begin(end),
            commit: commit(end),
            changes,
            size_bytes: 1,
            heartbeat: None,
        })
    }

    fn moment(command: ApplyCommand, live: LiveSession) -> Moment {
        Moment { now: at(0), command, live }
    }

    /// The end_lsn of the batch that is to be submitted.
    fn submitted(action: &LoopAction) -> Option<u64> {
        if let LoopAction::Submit { task: ApplyTask::Batch(batch), .. } = action {
            return Some(batch.end_lsn().as_u64());
        }
        None
    }

    #[test]
    fn small_work_is_gathered_while_an_answer_is_awaited() {
        let mut core = core();
        core.push(transaction(20));
        core.push(transaction(30));
        assert_eq!(core.next(&moment(ApplyCommand::Run, BUSY), None), LoopAction::Wait);
        let full = LiveSession { has_room: false, ..LIVE };
        assert_eq!(core.next(&moment(ApplyCommand::Run, full), None), LoopAction::Wait);
        assert_eq!(submitted(&core.next(&moment(ApplyCommand::Run, LIVE), None)), Some(30));
        assert_eq!(core.submitted_up_to(), Lsn::new(29));
        (0..SECOND_REQUEST_ROWS as u64).for_each(|number| core.push(transaction(40 + number)));
        assert!(submitted(&core.next(&moment(ApplyCommand::Run, BUSY), None)).is_some());
        assert_eq!(core.next(&moment(ApplyCommand::Run, BUSY), None), LoopAction::Wait);
        assert!(!core.is_finished(&BUSY, false) && !core.is_finished(&LIVE, true) && core.is_finished(&LIVE, false));
    }

    #[test]
    fn a_pause_lets_finish_what_has_begun_and_a_fence_lets_pass_what_is_before_it() {
        let (hold, mut core) = (ApplyCommand::Hold { turn: 1 }, core());
        core.push(Step::Begin(begin(20)));
        let waits = moment(hold, LIVE);
        assert_eq!(core.next(&waits, None), LoopAction::Wait);
        assert!(core.stands_still(&waits, false) && !core.stands_still(&waits, true));
        assert!(matches!(core.next(&moment(ApplyCommand::Run, LIVE), None), LoopAction::Submit { .. }));
        core.push(Step::Commit { commit: commit(20), heartbeat: None });
        core.push(transaction(30));
        core.push(transaction(40));
        let inside = moment(hold, LiveSession { in_large_transaction: true, ..LIVE });
        assert!(!core.stands_still(&inside, false));
        assert!(matches!(core.next(&inside, None), LoopAction::Submit { .. }), "its commit");
        assert_eq!(core.next(&waits, None), LoopAction::Wait);
        assert!(!core.stands_still(&moment(hold, BUSY), false));
        let to_fence = moment(ApplyCommand::RunTo { turn: 1, point: Lsn::new(39) }, LIVE);
        assert_eq!(submitted(&core.next(&to_fence, None)), Some(30));
        assert_eq!(core.next(&to_fence, None), LoopAction::Wait);
        assert!(core.stands_still(&to_fence, false), "what is next is behind the fence");
        let far = moment(ApplyCommand::RunTo { turn: 1, point: Lsn::new(99) }, LIVE);
        assert_eq!(submitted(&core.next(&far, None)), Some(40));
        assert!(!core.stands_still(&far, false), "more may come before it");
        core.push(Step::Reached(Lsn::new(99)));
        assert_eq!(core.next(&far, None), LoopAction::Reached(Lsn::new(99)));
        assert!(core.stands_still(&far, false));
        let running = moment(ApplyCommand::Run, LIVE);
        assert!(!core.stands_still(&running, false));
        assert_eq!(core.next(&running, None), LoopAction::Idle);
        assert_eq!(
            core.next(&Moment { now: at(10_000), ..running }, None),
            LoopAction::StorePosition(Lsn::new(99)),
            "an idle position is stored after a while"
        );
        assert_eq!(core.next(&Moment { now: at(10_000), ..far }, None), LoopAction::Wait);
    }

    #[test]
    fn an_idle_session_is_pinged_and_asked_what_is_durable() {
        let mut core = core();
        assert_eq!(core.ping(&LIVE, at(4999)), None);
        assert_eq!(core.ping(&BUSY, at(5000)), None);
        assert_eq!(core.wait_max(at(4900)), at(100));
        assert_eq!(core.ping(&LIVE, at(5000)), Some(Ping { read_wal: false }));
        assert_eq!(core.wait_max(at(5000)), WAIT_MAX);
        core.stored(StoredPosition { position: Lsn::new(20), is_durable: false }, at(5010));
        assert_eq!(core.wait_max(at(5010)), at(190));
        assert_eq!(core.ping(&LIVE, at(5199)), None);
        assert_eq!(core.ping(&LIVE, at(5200)), Some(Ping { read_wal: true }));
        core.read(WalReading { insert_lsn: Lsn::new(100), flush_lsn: Lsn::new(100) });
        assert_eq!(core.ledger().flushed(), Lsn::new(20));
        assert_eq!(core.ping(&LIVE, at(5400)), None);
    }

    /// A coordinator with a transaction that has committed at the source, and that was applied in parallel.
    fn applied_in_parallel() -> Coordinator {
        let limits = ParallelLimits { worth_bytes: 1, chunk_bytes_max: 1000, ping_every: at(5000) };
        let mut coordinator = Coordinator::new(Lsn::new(10), limits);
        coordinator.tables_current();
        let appended = Appended { xid: 7, bytes: 9, end: 9, after: Lsn::new(10), relations: &[] };
        coordinator.appended(appended, |_| Knowledge::Known);
        assert_eq!(coordinator.start(), Some(7));
        coordinator.session_opened(at(0));
        assert!(matches!(second(&mut coordinator), SessionAction::Read { .. }));
        coordinator
    }

    fn second(coordinator: &mut Coordinator) -> SessionAction {
        let session = SecondSession { gathered: 0, gathered_bytes: 0, is_busy: false, has_room: true };
        coordinator.next(7, session, at(0))
    }

    #[test]
    fn a_commit_in_parallel_waits_for_what_is_under_way_and_all_else_for_it() {
        let (mut core, mut coordinator) = (core(), applied_in_parallel());
        assert_eq!(coordinator.committed(7), CommitBy::SecondSession);
        core.push(Step::AppliedInParallel { begin: begin(20), commit: commit(20), heartbeat: None });
        core.push(transaction(30));
        let (running, busy) = (moment(ApplyCommand::Run, LIVE), moment(ApplyCommand::Run, BUSY));
        let LoopAction::CommitParallel(end) = core.next(&running, Some(&mut coordinator)) else {
            panic!("it is its turn")
        };
        coordinator.turn(end, AtCommit::Wanted, at(0));
        assert_eq!(core.next(&busy, Some(&mut coordinator)), LoopAction::Wait);
        assert!(matches!(second(&mut coordinator), SessionAction::Wait(_)), "something is under way");
        assert_eq!(core.next(&running, Some(&mut coordinator)), LoopAction::Wait);
        assert!(matches!(second(&mut coordinator), SessionAction::Commit { .. }));
        coordinator.applied(7);
        // A ping is under way: its answer would be taken for the one that says where the position is.
        assert_eq!(core.next(&busy, Some(&mut coordinator)), LoopAction::Wait);
        let action = core.next(&running, Some(&mut coordinator));
        assert!(matches!(action, LoopAction::ContinueBehind(_)), "{action:?}");
        coordinator.settle(Settlement::Applied);
        assert_eq!(submitted(&core.next(&running, Some(&mut coordinator))), Some(30));
    }

    #[test]
    fn a_cancelled_commit_is_settled_at_once_and_a_schema_change_cancels() {
        let (mut core, mut coordinator) = (core(), applied_in_parallel());
        let running = moment(ApplyCommand::Run, LIVE);
        let description = Description { table: String::new(), types: String::new() };
        let change = SchemaChange { relation: relation().into(), description, measured: Default::default() };
        core.push(Step::Schema(change));
        let inside = moment(ApplyCommand::Run, LiveSession { in_large_transaction: true, ..LIVE });
        let action = core.next(&inside, Some(&mut coordinator));
        assert!(matches!(action, LoopAction::SubmitReleased { .. }), "{action:?}");
        assert!(matches!(second(&mut coordinator), SessionAction::Cancel(_)));
        assert_eq!(core.next(&inside, Some(&mut coordinator)), LoopAction::Wait);
        assert_eq!(core.next(&running, Some(&mut coordinator)), LoopAction::ShareTables);
        coordinator.tables_current();
        assert_eq!(core.next(&running, Some(&mut coordinator)), LoopAction::Idle);
        let mut coordinator = applied_in_parallel();
        assert_eq!(coordinator.committed(7), CommitBy::SecondSession);
        core.push(Step::AppliedInParallel { begin: begin(20), commit: commit(20), heartbeat: None });
        let LoopAction::CommitParallel(end) = core.next(&running, Some(&mut coordinator)) else {
            panic!("it is its turn")
        };
        coordinator.turn(end, AtCommit::Skipped, at(0));
        assert_eq!(core.next(&running, Some(&mut coordinator)), LoopAction::Idle);
        assert_eq!(coordinator.take_settled(), Some(Settlement::ReadBack));
    }
}
