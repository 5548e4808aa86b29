//! The coordinator of parallel apply: the life of one streamed transaction that is applied while it is still arriving.
//!
//! It owns all that is known of that transaction, and every change of it is a call here; `super` draws the states. Three tasks call:
//!
//! - the step router (`source::step_router`) says what of the stream is in the spool: [`Coordinator::appended`],
//!   [`Coordinator::truncated`], [`Coordinator::aborted`], [`Coordinator::committed`]; after that it waits for
//!   [`Coordinator::take_settled`];
//! - the second session (`apply_worker::parallel_apply`) asks which transaction to begin ([`Coordinator::start`]) and what to do next
//!   ([`Coordinator::next`]), and says [`Coordinator::applied`] or [`Coordinator::cancel`];
//! - the apply loop ([`super::LoopCore`]) says how far the live tables are, calls [`Coordinator::poll`] before each decision, and
//!   announces the transaction's turn.
//!
//! Records may be applied once everything received before them has committed at the destination ([`Mark`]): what they depend on had
//! committed at the source by then, since its sessions held the row locks.
//!
//! Bounds: one stream at a time, the first that comes; [`MARKS_MAX`] marks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::command::ApplyCommand;
use super::obstacle::{AtCommit, Knowledge, Observed, Obstacle, QUIET_MAX, TableKnowledge, obstacle};
use super::sessions::{LiveSession, SecondSession};
use crate::apply_plan::TransactionEnd;
use crate::pg::{Lsn, Relation};
use crate::wire::Commit;

/// Marks kept at most; beyond that the oldest two become one, which waits for the later of their positions.
const MARKS_MAX: usize = 1000;
/// While more of it is coming, a chunk is filled before it is sent: sets are the cheaper the larger they are.
pub const GATHER_MAX: Duration = Duration::from_millis(100);
/// No wait is shorter, so that a clock that is a little early makes no loop of it.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// Bounds of parallel apply.
#[derive(Clone, Copy, Debug)]
pub struct ParallelLimits {
    /// Streams with fewer bytes of records are not worth a session.
    pub worth_bytes: u64,
    /// A chunk of this size is sent without waiting for more.
    pub chunk_bytes_max: usize,
    /// An idle session is pinged so often, so that the server does not take us for frozen.
    pub ping_every: Duration,
}

/// Records of a stream that were given to the spool.
#[derive(Clone, Copy, Debug)]
pub struct Appended<'a> {
    /// The stream, by its top-level transaction.
    pub xid: u32,
    /// How many bytes.
    pub bytes: u64,
    /// Where they end in their stream.
    pub end: u64,
    /// Everything up to here was handed out before.
    pub after: Lsn,
    /// The relations that the stream's records name, by number.
    pub relations: &'a [Arc<Relation>],
}

/// What the second session does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAction {
    /// Read the records that stand here from the spool, and gather their changes.
    Read {
        /// From this byte of the stream.
        from: u64,
        /// Up to this one at most; between the two it may be read only as far as the spool gives it, in whole records.
        until: u64,
        /// The relations that they name, by number.
        relations: Vec<Arc<Relation>>,
    },
    /// Send what was gathered.
    Send,
    /// Everything is applied and answered: commit it.
    Commit {
        /// The position that the commit moves from.
        from: Lsn,
        /// The source's commit.
        commit: Commit,
    },
    /// Send an empty request.
    Ping,
    /// Nothing before an answer comes or something changes, or this time has passed.
    Wait(Duration),
    /// Roll back, and leave the transaction to its commit.
    Cancel(Obstacle),
}

/// Which session commits a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitBy {
    /// The second one: only a step that stands for the commit is handed out, and the stream settles.
    SecondSession,
    /// The leader's: the stream is read back from the spool.
    Leader,
}

/// What became of a stream whose commit was left to the second session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is committed at the destination.
    Applied,
    /// It is to be read back from the spool.
    ReadBack,
}

/// What became of the transaction whose turn it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnOutcome {
    /// The transaction's end.
    pub end: TransactionEnd,
    /// What became of it.
    pub settlement: Settlement,
    /// Since its turn came.
    pub elapsed: Duration,
}

/// Records up to here may be applied after that position is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    until: u64,
    after: Lsn,
}

/// How far the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ApplyStage {
    /// It is in progress at the source.
    Arriving,
    /// It has committed there, and waits for its turn.
    Committed,
    /// It is its turn: to be committed at the destination, from this position on.
    Due(Lsn, Commit),
    /// It is committed at the destination.
    Applied,
    /// It is left to its commit.
    Cancelled(Obstacle),
    /// The apply loop has drawn its conclusion.
    Settled(Settlement),
}

#[derive(Debug)]
struct StreamedTransaction {
    xid: u32,
    relations: Vec<Arc<Relation>>,
    marks: VecDeque<Mark>,
    /// Where its records end.
    end: u64,
    /// Where those end that were read for the second session.
    read: u64,
    stage: ApplyStage,
}

impl StreamedTransaction {
    fn new(xid: u32) -> StreamedTransaction {
        StreamedTransaction {
            xid,
            relations: Vec::new(),
            marks: VecDeque::new(),
            end: 0,
            read: 0,
            stage: ApplyStage::Arriving,
        }
    }

    fn may_commit(&self) -> bool {
        self.stage == ApplyStage::Arriving && self.read > 0
    }

    fn mark(&mut self, after: Lsn) {
        let mark = Mark { until: self.end, after };
        match self.marks.back_mut() {
            Some(last) if last.after >= after => last.until = mark.until,
            Some(_) | None => self.marks.push_back(mark),
        }
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
    }

    fn truncate(&mut self, end: u64) {
        self.end = end;
        while let Some(last) = self.marks.back_mut()
            && last.until > end
        {
            let before = self.marks.len().checked_sub(2).and_then(|index| self.marks.get(index));
            if before.is_some_and(|before| before.until >= end) {
                self.marks.pop_back();
            } else if let Some(last) = self.marks.back_mut() {
                last.until = end;
            }
        }
    }

    /// Where what may be applied ends once `stored` is stored.
    fn free_until(&self, stored: Lsn) -> u64 {
        let free = self.marks.partition_point(|mark| mark.after <= stored);
        free.checked_sub(1).and_then(|index| self.marks.get(index)).map_or(0, |mark| mark.until)
    }
}

/// The second session, by what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionStage {
    None,
    /// It is being opened, and holds nothing.
    Opening,
    /// It is inside a transaction, and holds locks.
    Open {
        read_at: Duration,
        pinged_at: Duration,
    },
}

/// A transaction whose turn it is to commit.
#[derive(Debug)]
struct CommitTurn {
    end: TransactionEnd,
    since: Duration,
    /// The second session was told.
    is_announced: bool,
}

/// All that is known of the stream that is applied in parallel. See the module.
#[derive(Debug)]
pub struct Coordinator {
    limits: ParallelLimits,
    /// The position of the live tables.
    stored: Lsn,
    tables: TableKnowledge,
    stream: Option<StreamedTransaction>,
    session: SessionStage,
    turn: Option<CommitTurn>,
    /// Nothing is applied any more.
    is_closed: bool,
    /// Something that another task may wait for has changed since [`Coordinator::take_changed`].
    is_changed: bool,
    cancelled: Option<(u32, Obstacle)>,
}

impl Coordinator {
    /// No stream is known yet; the live tables stand at `stored`.
    pub fn new(stored: Lsn, limits: ParallelLimits) -> Coordinator {
        Coordinator {
            limits,
            stored,
            tables: TableKnowledge::Changing,
            stream: None,
            session: SessionStage::None,
            turn: None,
            is_closed: false,
            is_changed: false,
            cancelled: None,
        }
    }

    /// Whether something has changed that another task may wait for, since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// The stream that was cancelled since this was asked last, by its xid, and why.
    pub fn take_cancelled(&mut self) -> Option<(u32, Obstacle)> {
        self.cancelled.take()
    }

    fn stream(&self, xid: u32) -> Option<&StreamedTransaction> {
        self.stream.as_ref().filter(|stream| stream.xid == xid)
    }

    fn stream_mut(&mut self, xid: u32) -> Option<&mut StreamedTransaction> {
        self.stream.as_mut().filter(|stream| stream.xid == xid)
    }

    /// Cancels the stream if this stands against it.
    fn judge(&mut self, observed: &Observed<'_>) {
        if let Some(why) = obstacle(observed) {
            self.cancel_stream(why);
        }
    }

    fn cancel_stream(&mut self, why: Obstacle) {
        let Some(stream) = &mut self.stream else { return };
        match stream.stage {
            ApplyStage::Arriving | ApplyStage::Committed | ApplyStage::Due(..) => {
                stream.stage = ApplyStage::Cancelled(why);
                self.cancelled = Some((stream.xid, why));
                self.is_changed = true;
            }
            ApplyStage::Applied | ApplyStage::Cancelled(_) | ApplyStage::Settled(_) => {}
        }
    }

    // Events of the step router.

    /// Records were given to the spool. `knowledge` says whether a relation is what it was when it was described last.
    pub fn appended(&mut self, appended: Appended<'_>, knowledge: impl Fn(&Relation) -> Knowledge) {
        let Appended { xid, bytes, end, after, relations } = appended;
        // A stream of which something came before was another's time, or was cancelled.
        if self.stream.is_none() && !self.is_closed && bytes == end {
            self.stream = Some(StreamedTransaction::new(xid));
        }
        let Some(stream) = self.stream_mut(xid) else { return };
        let known = stream.relations.len();
        let mut found = None;
        for (index, relation) in relations.iter().enumerate().skip(known) {
            let before = &relations[..index];
            found = found.or(obstacle(&Observed::Described { relation, before, knowledge: knowledge(relation) }));
            stream.relations.push(Arc::clone(relation));
        }
        stream.end = end;
        stream.mark(after);
        self.is_changed = true;
        if let Some(why) = found {
            self.cancel_stream(why);
        }
    }

    /// Of a stream only the first `kept` bytes are left: a subtransaction was rolled back.
    pub fn truncated(&mut self, xid: u32, kept: u64) {
        let Some(stream) = self.stream_mut(xid) else { return };
        let read = stream.read;
        stream.truncate(kept);
        self.is_changed = true;
        self.judge(&Observed::RolledBack { read, kept });
    }

    /// A stream was rolled back.
    pub fn aborted(&mut self, xid: u32) {
        if self.stream.take_if(|stream| stream.xid == xid).is_some() {
            self.is_changed = true;
        }
    }

    /// Whether a stream is applied as far as it goes: it only needs to commit at the destination, if its tables are what they were.
    pub fn may_commit(&self, xid: u32) -> bool {
        self.stream(xid).is_some_and(StreamedTransaction::may_commit)
    }

    /// The source's catalog describes a table of a stream that has committed otherwise than it is remembered.
    pub fn table_changed(&mut self, xid: u32) {
        if self.stream(xid).is_some() {
            self.judge(&Observed::TableChanged);
        }
    }

    /// A stream has committed at the source.
    pub fn committed(&mut self, xid: u32) -> CommitBy {
        let Some(stream) = self.stream_mut(xid) else { return CommitBy::Leader };
        let by = if stream.may_commit() {
            stream.stage = ApplyStage::Committed;
            CommitBy::SecondSession
        } else {
            self.stream = None;
            CommitBy::Leader
        };
        self.is_changed = true;
        by
    }

    /// What became of the stream that has committed, once the apply loop says so; the stream is forgotten then.
    pub fn take_settled(&mut self) -> Option<Settlement> {
        let settlement = self.settled()?;
        self.stream = None;
        self.is_changed = true;
        Some(settlement)
    }

    /// The same, and the stream stays.
    pub fn settled(&self) -> Option<Settlement> {
        match self.stream.as_ref()?.stage {
            ApplyStage::Settled(settlement) => Some(settlement),
            ApplyStage::Arriving
            | ApplyStage::Committed
            | ApplyStage::Due(..)
            | ApplyStage::Applied
            | ApplyStage::Cancelled(_) => None,
        }
    }

    // Events of the second session.

    /// The stream to begin now, by its xid: the session is to be opened, and [`Coordinator::session_closed`] called in the end.
    pub fn start(&mut self) -> Option<u32> {
        let stream = self.stream.as_ref().filter(|stream| stream.stage == ApplyStage::Arriving)?;
        let xid = stream.xid;
        let size = Observed::Size { free: stream.free_until(self.stored), worth: self.limits.worth_bytes };
        let is_free = self.session == SessionStage::None && !self.is_closed;
        if !is_free || obstacle(&size).or(obstacle(&Observed::Tables(self.tables))).is_some() {
            return None;
        }
        self.session = SessionStage::Opening;
        Some(xid)
    }

    /// The second session is inside a transaction now, and holds locks from here on.
    pub fn session_opened(&mut self, now: Duration) {
        self.session = SessionStage::Open { read_at: now, pinged_at: now };
        self.is_changed = true;
    }

    /// The second session has ended, and holds nothing. A stream that it has not committed is left to its commit.
    pub fn session_closed(&mut self, xid: u32) {
        self.session = SessionStage::None;
        self.is_changed = true;
        self.cancel(xid, Obstacle::SessionFailed);
    }

    /// The second session does not apply a stream any further.
    pub fn cancel(&mut self, xid: u32, why: Obstacle) {
        if self.stream(xid).is_some() {
            self.cancel_stream(why);
        }
    }

    /// An answer has come to the second session.
    pub fn answered(&mut self, now: Duration) {
        if let SessionStage::Open { pinged_at, .. } = &mut self.session {
            *pinged_at = now;
        }
    }

    /// Of what was to be read, only what stands before `end` is in the spool yet: the rest is to be read again.
    pub fn found(&mut self, xid: u32, end: u64) {
        if let Some(stream) = self.stream_mut(xid) {
            stream.read = end;
        }
    }

    /// The stream is committed at the destination.
    pub fn applied(&mut self, xid: u32) {
        if let Some(stream) = self.stream_mut(xid) {
            stream.stage = ApplyStage::Applied;
            self.is_changed = true;
        }
    }

    /// What the second session does next for a stream; what it is to read counts as read.
    pub fn next(&mut self, xid: u32, session: SecondSession, now: Duration) -> SessionAction {
        let (stored, limits) = (self.stored, self.limits);
        let SessionStage::Open { read_at, pinged_at } = &mut self.session else {
            return SessionAction::Cancel(Obstacle::SessionFailed);
        };
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.xid == xid) else {
            return SessionAction::Cancel(Obstacle::Aborted);
        };
        let is_full = session.gathered_bytes >= limits.chunk_bytes_max;
        let is_arriving = match stream.stage {
            ApplyStage::Cancelled(why) => return SessionAction::Cancel(why),
            // Its session has ended by then.
            ApplyStage::Applied | ApplyStage::Settled(_) => return SessionAction::Cancel(Obstacle::Aborted),
            ApplyStage::Arriving | ApplyStage::Committed | ApplyStage::Due(..)
                if !is_full && stream.read < stream.end =>
            {
                let until = stream.free_until(stored);
                if until > stream.read {
                    let from = std::mem::replace(&mut stream.read, until);
                    *read_at = now;
                    return SessionAction::Read { from, until, relations: stream.relations.clone() };
                }
                stream.stage == ApplyStage::Arriving
            }
            ApplyStage::Due(from, commit) if !is_full && session.gathered == 0 && !session.is_busy => {
                return SessionAction::Commit { from, commit };
            }
            ApplyStage::Arriving => true,
            ApplyStage::Committed | ApplyStage::Due(..) => false,
        };
        let quiet_for = now.saturating_sub(*read_at);
        let gathers = !is_full && is_arriving && quiet_for < GATHER_MAX;
        if session.has_room && session.gathered > 0 && !gathers {
            return SessionAction::Send;
        }
        let ping_in = limits.ping_every.saturating_sub(now.saturating_sub(*pinged_at));
        if let Some(why) = obstacle(&Observed::Quiet(quiet_for)) {
            self.cancel_stream(why);
            return SessionAction::Cancel(why);
        }
        if !session.is_busy && ping_in.is_zero() {
            *pinged_at = now;
            return SessionAction::Ping;
        }
        // An answer ends the wait for one.
        let ping_in = if session.is_busy { limits.ping_every } else { ping_in };
        let wait = ping_in.min((QUIET_MAX + WAIT_MIN).saturating_sub(quiet_for));
        let wait = if gathers && session.gathered > 0 { wait.min(GATHER_MAX.saturating_sub(quiet_for)) } else { wait };
        SessionAction::Wait(wait.max(WAIT_MIN))
    }

    // Events of the apply loop.

    /// The live tables stand here now.
    pub fn stored(&mut self, position: Lsn) {
        self.stored = position;
        self.is_changed |= self.stream.is_some();
    }

    /// The stream brings a schema change: parallel apply releases its locks, and begins again only with the changed table.
    pub fn schema_changes(&mut self) {
        self.tables = TableKnowledge::Changing;
        self.judge(&Observed::SchemaChange);
    }

    /// Whether the second session does not know the tables as they are now.
    pub fn wants_tables(&self) -> bool {
        self.tables == TableKnowledge::Changing
    }

    /// The second session knows the tables as they are now.
    pub fn tables_current(&mut self) {
        self.tables = TableKnowledge::Current;
        self.is_changed |= self.stream.is_some();
    }

    /// Whether the second session holds locks at the destination.
    pub fn holds_locks(&self) -> bool {
        matches!(self.session, SessionStage::Open { .. })
    }

    /// The transaction has committed at the source, and everything before it is handed out: it is its turn, unless that stands
    /// against it which could not be known before.
    pub fn turn(&mut self, end: TransactionEnd, at_commit: AtCommit, now: Duration) {
        self.judge(&Observed::Turn(at_commit));
        self.turn = Some(CommitTurn { end, since: now, is_announced: false });
    }

    /// Whether a transaction's turn has come and is not over: nothing else is handed out meanwhile.
    pub fn is_committing(&self) -> bool {
        self.turn.is_some()
    }

    /// Cancels what the live stream cannot run concurrently with; announces its turn to a transaction once nothing is under way.
    pub fn poll(&mut self, command: ApplyCommand, live: &LiveSession) {
        if let Some(turn) = &mut self.turn {
            if live.is_free() && !turn.is_announced {
                turn.is_announced = true;
                let commit = turn.end.commit;
                if let Some(stream) = &mut self.stream
                    && stream.stage == ApplyStage::Committed
                {
                    stream.stage = ApplyStage::Due(live.stored, commit);
                    self.is_changed = true;
                }
            }
            return;
        }
        self.judge(&Observed::Command(command));
        if self.holds_locks() {
            self.judge(&Observed::LiveRequest(live.waits_for));
        }
    }

    /// What became of the transaction whose turn it was, once that is known. [`Coordinator::settle`] says that it was taken note of.
    pub fn take_outcome(&mut self, now: Duration) -> Option<TurnOutcome> {
        self.turn.as_ref()?;
        let settlement = match self.stream.as_ref().map(|stream| stream.stage) {
            Some(ApplyStage::Applied) => Settlement::Applied,
            Some(ApplyStage::Arriving | ApplyStage::Committed | ApplyStage::Due(..)) => return None,
            Some(ApplyStage::Cancelled(_) | ApplyStage::Settled(_)) | None => Settlement::ReadBack,
        };
        let CommitTurn { end, since, .. } = self.turn.take()?;
        Some(TurnOutcome { end, settlement, elapsed: now.saturating_sub(since) })
    }

    /// The apply loop has taken note of the outcome.
    pub fn settle(&mut self, settlement: Settlement) {
        if let Some(stream) = &mut self.stream {
            stream.stage = ApplyStage::Settled(settlement);
            self.is_changed = true;
        }
    }

    /// Nothing is applied any more.
    pub fn close(&mut self) {
        self.is_closed = true;
        self.is_changed = true;
        self.judge(&Observed::StreamEnds);
    }

    /// Whether nothing is applied any more.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{PgTimestamp, QualifiedName, RelationId, ReplicaIdentity};

    const NONE: SecondSession = SecondSession { gathered: 0, gathered_bytes: 0, is_busy: false, has_room: true };
    const PING_EVERY: Duration = Duration::from_secs(5);

    fn relation(id: u32) -> Arc<Relation> {
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(id),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
        })
    }

    fn commit(lsn: u64) -> Commit {
        Commit { commit_lsn: Lsn::new(lsn), end_lsn: Lsn::new(lsn + 1), committed_at: PgTimestamp::from_micros(0) }
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn live(stored: u64) -> LiveSession {
        let waits_for = Duration::ZERO;
        LiveSession { stored: Lsn::new(stored), is_busy: false, has_room: true, in_large_transaction: false, waits_for }
    }

    fn coordinator(worth_bytes: u64) -> Coordinator {
        let limits = ParallelLimits { worth_bytes, chunk_bytes_max: 1000, ping_every: PING_EVERY };
        let mut coordinator = Coordinator::new(Lsn::new(10), limits);
        coordinator.tables_current();
        coordinator
    }

    fn append(coordinator: &mut Coordinator, end: u64, bytes: u64, after: u64) {
        let relations = [relation(1)];
        coordinator.appended(Appended { xid: 7, bytes, end, after: Lsn::new(after), relations: &relations }, |_| {
            Knowledge::Known
        });
    }

    /// A coordinator whose second session is inside the transaction 7, of which these bytes may be read.
    fn following(bytes: u64) -> Coordinator {
        let mut coordinator = coordinator(1);
        append(&mut coordinator, bytes, bytes, 10);
        assert_eq!(coordinator.start(), Some(7));
        coordinator.session_opened(at(0));
        coordinator
    }

    fn next(coordinator: &mut Coordinator) -> SessionAction {
        coordinator.next(7, NONE, at(0))
    }

    fn read(coordinator: &mut Coordinator) -> Option<(u64, u64)> {
        match next(coordinator) {
            SessionAction::Read { from, until, .. } => Some((from, until)),
            SessionAction::Send
            | SessionAction::Commit { .. }
            | SessionAction::Ping
            | SessionAction::Wait(_)
            | SessionAction::Cancel(_) => None,
        }
    }

    fn end(lsn: u64) -> TransactionEnd {
        TransactionEnd { commit: commit(lsn), heartbeat: None }
    }

    #[test]
    fn records_are_read_once_everything_received_before_them_is_stored() {
        let mut coordinator = following(100);
        append(&mut coordinator, 150, 50, 20);
        append(&mut coordinator, 170, 20, 20);
        append(&mut coordinator, 200, 30, 30);
        assert_eq!(read(&mut coordinator), Some((0, 100)));
        assert_eq!(next(&mut coordinator), SessionAction::Wait(PING_EVERY));
        coordinator.stored(Lsn::new(20));
        assert_eq!(read(&mut coordinator), Some((100, 170)));
        coordinator.found(7, 160);
        assert_eq!(read(&mut coordinator), Some((160, 170)), "the spool had less of it");
        coordinator.stored(Lsn::new(35));
        assert_eq!(read(&mut coordinator), Some((170, 200)));
        assert_eq!(read(&mut coordinator), None, "it has not committed");
        assert!(coordinator.may_commit(7));
        assert_eq!(coordinator.committed(7), CommitBy::SecondSession);
        assert_eq!(read(&mut coordinator), None, "it is not its turn");
        coordinator.turn(end(40), AtCommit::Wanted, at(1));
        assert!(coordinator.is_committing());
        coordinator.poll(ApplyCommand::Run, &LiveSession { is_busy: true, ..live(35) });
        assert_eq!(next(&mut coordinator), SessionAction::Wait(PING_EVERY), "something is under way");
        coordinator.poll(ApplyCommand::Run, &live(35));
        let due = SessionAction::Commit { from: Lsn::new(35), commit: commit(40) };
        let busy = SecondSession { is_busy: true, ..NONE };
        assert_eq!(coordinator.next(7, busy, at(0)), SessionAction::Wait(PING_EVERY), "an answer is awaited");
        assert_eq!(next(&mut coordinator), due);
        assert_eq!(coordinator.take_outcome(at(2)), None);
        coordinator.applied(7);
        let outcome = TurnOutcome { end: end(40), settlement: Settlement::Applied, elapsed: at(2) };
        assert_eq!(coordinator.take_outcome(at(3)), Some(outcome));
        assert_eq!(coordinator.take_settled(), None, "the position was not looked at");
        coordinator.settle(Settlement::Applied);
        coordinator.session_closed(7);
        assert_eq!(coordinator.take_settled(), Some(Settlement::Applied));
        assert_eq!(coordinator.take_cancelled(), None);
    }

    #[test]
    fn a_rolled_back_part_is_not_read_and_once_read_cancels_parallel_apply() {
        let mut coordinator = following(100);
        assert_eq!(read(&mut coordinator), Some((0, 100)));
        append(&mut coordinator, 200, 100, 10);
        append(&mut coordinator, 300, 100, 20);
        coordinator.truncated(7, 150);
        coordinator.stored(Lsn::new(20));
        assert_eq!(read(&mut coordinator), Some((100, 150)));
        append(&mut coordinator, 180, 30, 20);
        assert_eq!(read(&mut coordinator), Some((150, 180)));
        coordinator.truncated(7, 170);
        assert_eq!(next(&mut coordinator), SessionAction::Cancel(Obstacle::RolledBack));
        assert_eq!(coordinator.take_cancelled(), Some((7, Obstacle::RolledBack)));
        assert!(!coordinator.may_commit(7));
        assert_eq!(coordinator.committed(7), CommitBy::Leader);
    }

    #[test]
    fn a_second_description_of_a_table_or_one_that_is_news_cancels() {
        fn appended(relations: &[Arc<Relation>]) -> Appended<'_> {
            Appended { xid: 7, bytes: 100, end: 100, after: Lsn::new(10), relations }
        }
        let mut coordinator = coordinator(1);
        coordinator.appended(appended(&[relation(1), relation(1)]), |_| Knowledge::Known);
        assert_eq!(coordinator.take_cancelled(), Some((7, Obstacle::DescribedTwice)));
        assert_eq!(coordinator.start(), None);
        coordinator.aborted(7);
        append(&mut coordinator, 100, 100, 10);
        let knowledge = |relation: &Relation| if relation.id.0 == 1 { Knowledge::Known } else { Knowledge::News };
        coordinator.appended(Appended { end: 200, ..appended(&[relation(1), relation(2)]) }, knowledge);
        assert_eq!(coordinator.take_cancelled(), Some((7, Obstacle::TableChanged)));
    }

    #[test]
    fn one_stream_is_followed_from_its_beginning_and_small_ones_are_left_alone() {
        let mut coordinator = coordinator(1000);
        let other = |xid, bytes, end| Appended { xid, bytes, end, after: Lsn::new(10), relations: &[] };
        append(&mut coordinator, 100, 100, 10);
        assert_eq!(coordinator.start(), None);
        assert_eq!(coordinator.committed(7), CommitBy::Leader, "nothing of it was applied");
        coordinator.appended(other(8, 500, 900), |_| Knowledge::Known);
        assert_eq!(coordinator.start(), None, "it did not begin here");
        coordinator.appended(other(9, 2000, 2000), |_| Knowledge::Known);
        append(&mut coordinator, 2000, 2000, 10);
        assert_eq!(coordinator.start(), Some(9));
        assert_eq!(coordinator.start(), None, "there is one session");
        coordinator.session_opened(at(0));
        coordinator.aborted(9);
        assert_eq!(coordinator.next(9, NONE, at(0)), SessionAction::Cancel(Obstacle::Aborted));
    }

    #[test]
    fn a_transaction_starts_with_the_tables_as_they_are_and_none_after_the_end() {
        let mut coordinator = following(100);
        coordinator.schema_changes();
        assert_eq!(next(&mut coordinator), SessionAction::Cancel(Obstacle::SchemaChange));
        assert!(coordinator.holds_locks());
        coordinator.session_closed(7);
        assert!(!coordinator.holds_locks());
        coordinator.aborted(7);
        append(&mut coordinator, 100, 100, 10);
        assert_eq!(coordinator.start(), None, "a table is being changed");
        assert!(coordinator.wants_tables());
        coordinator.tables_current();
        assert_eq!(coordinator.start(), Some(7));
        coordinator.session_closed(7);
        assert_eq!(coordinator.take_cancelled(), Some((7, Obstacle::SessionFailed)));
        coordinator.aborted(7);
        coordinator.close();
        append(&mut coordinator, 100, 100, 10);
        assert_eq!(coordinator.start(), None);
        assert!(coordinator.is_closed());
    }

    #[test]
    fn what_stands_against_it_cancels_at_any_moment_before_its_turn_is_over() {
        let waiting = LiveSession { waits_for: at(2001), ..live(10) };
        let mut coordinator = following(100);
        coordinator.poll(ApplyCommand::Run, &live(10));
        assert_eq!(read(&mut coordinator), Some((0, 100)));
        coordinator.poll(ApplyCommand::Run, &waiting);
        assert_eq!(coordinator.take_cancelled(), Some((7, Obstacle::LiveStreamWaits)));
        let mut coordinator = following(100);
        coordinator.poll(ApplyCommand::Hold { turn: 1 }, &live(10));
        assert_eq!(coordinator.take_cancelled(), Some((7, Obstacle::Pause)));
        for (at_commit, why) in [(AtCommit::Skipped, Obstacle::Skipped), (AtCommit::InSnapshot, Obstacle::InSnapshot)] {
            let mut coordinator = following(100);
            assert_eq!(read(&mut coordinator), Some((0, 100)));
            assert_eq!(coordinator.committed(7), CommitBy::SecondSession);
            coordinator.turn(end(40), at_commit, at(0));
            assert_eq!(coordinator.take_cancelled(), Some((7, why)));
            coordinator.poll(ApplyCommand::Hold { turn: 1 }, &waiting);
            assert_eq!(next(&mut coordinator), SessionAction::Cancel(why), "it is not due");
            let outcome = coordinator.take_outcome(at(5)).unwrap();
            assert_eq!((outcome.settlement, outcome.elapsed), (Settlement::ReadBack, at(5)));
            assert!(!coordinator.is_committing());
        }
        // It holds no locks yet.
        let mut coordinator = coordinator_with_a_stream();
        coordinator.poll(ApplyCommand::Run, &waiting);
        assert_eq!(coordinator.take_cancelled(), None);
        coordinator.table_changed(8);
        assert_eq!(coordinator.take_cancelled(), None, "another transaction");
        coordinator.table_changed(7);
        assert_eq!(coordinator.take_cancelled(), Some((7, Obstacle::TableChanged)));
    }

    fn coordinator_with_a_stream() -> Coordinator {
        let mut coordinator = coordinator(1);
        append(&mut coordinator, 100, 100, 10);
        coordinator
    }

    #[test]
    fn changes_are_gathered_while_more_may_come_and_a_quiet_transaction_is_cancelled() {
        let mut coordinator = following(100);
        assert_eq!(read(&mut coordinator), Some((0, 100)));
        let some = SecondSession { gathered: 1, gathered_bytes: 999, ..NONE };
        let full = SecondSession { gathered_bytes: 1000, ..some };
        assert_eq!(coordinator.next(7, some, at(40)), SessionAction::Wait(at(60)));
        assert_eq!(coordinator.next(7, some, at(100)), SessionAction::Send);
        assert_eq!(coordinator.next(7, full, at(40)), SessionAction::Send);
        let no_room = SecondSession { has_room: false, is_busy: true, ..full };
        assert_eq!(coordinator.next(7, no_room, at(100)), SessionAction::Wait(PING_EVERY));
        append(&mut coordinator, 200, 100, 10);
        assert_eq!(coordinator.next(7, no_room, at(100)), SessionAction::Wait(PING_EVERY), "a full chunk goes first");
        assert_eq!(
            coordinator.next(7, NONE, at(4999)),
            SessionAction::Read { from: 100, until: 200, relations: vec![relation(1)] }
        );
        assert_eq!(coordinator.next(7, NONE, at(5000)), SessionAction::Ping);
        assert_eq!(coordinator.next(7, NONE, at(5000)), SessionAction::Wait(PING_EVERY));
        coordinator.answered(at(6000));
        assert_eq!(coordinator.next(7, NONE, at(7000)), SessionAction::Wait(at(4000)));
        assert_eq!(coordinator.next(7, some, at(7000)), SessionAction::Send);
        assert_eq!(coordinator.committed(7), CommitBy::SecondSession);
        assert_eq!(coordinator.next(7, some, at(4999)), SessionAction::Send, "no more of it comes");
        coordinator.answered(at(64_000));
        assert_eq!(coordinator.next(7, NONE, at(64_999)), SessionAction::Wait(WAIT_MIN));
        assert_eq!(coordinator.next(7, NONE, at(65_000)), SessionAction::Cancel(Obstacle::Quiet));
        assert_eq!(coordinator.take_cancelled(), Some((7, Obstacle::Quiet)));
    }

    #[test]
    fn others_are_woken_by_what_they_may_wait_for_and_by_nothing_else() {
        let mut coordinator = following(100);
        assert!(coordinator.take_changed());
        assert!(!coordinator.take_changed());
        coordinator.poll(ApplyCommand::Run, &live(10));
        assert_eq!(read(&mut coordinator), Some((0, 100)));
        coordinator.answered(at(1));
        coordinator.aborted(8);
        coordinator.truncated(8, 0);
        assert!(!coordinator.take_changed());
        coordinator.stored(Lsn::new(20));
        assert!(coordinator.take_changed());
        coordinator.cancel(7, Obstacle::Quiet);
        assert!(coordinator.take_changed());
        coordinator.cancel(7, Obstacle::Pause);
        assert!(!coordinator.take_changed(), "it is cancelled already");
    }

    #[test]
    fn many_marks_become_fewer_and_never_free_anything_early() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut coordinator = coordinator(1);
        for number in 1..=3000_u64 {
            append(&mut coordinator, number * 10, 10, number);
        }
        let stream = coordinator.stream.as_ref().unwrap();
        for _ in 0..100 {
            let stored = rng.u64(0..=3000);
            let free = stream.free_until(Lsn::new(stored));
            assert!(free <= stored * 10, "{free} after {stored}");
        }
        assert_eq!(stream.free_until(Lsn::new(3000)), 30_000);
    }
}
