//! One life of headwater: the shipped cores, with the tasks around them played by the schedule.
//!
//! `LoopCore` and `Coordinator` decide what is applied next and what in parallel; here their actions become requests, and what comes
//! of them goes back. The step router's part is played by [`Life::receive`], the spool is a map that is lost with its process.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use headwater::apply_core::{
    Appended, ApplyCommand, AtCommit, CommitBy, Coordinator, Knowledge, LiveSession, LoopAction, LoopCore, LoopLimits,
    Moment, Obstacle, ParallelLimits, Ping, SecondSession, SessionAction, Settlement, TurnOutcome,
};
use headwater::apply_plan::{ApplyTask, BatchLimits, LargeStep};
use headwater::pg::{Description, Lsn, QualifiedName};
use headwater::progress::{Feedback, Ledger, StoredPosition};
use headwater::transaction::{
    Assembler, Change, Chunk, Output, Replay, SchemaChange, SpoolOrder, Step, TableSet, Transaction, read_changes,
};
use headwater::wire::Message;

use crate::destination::{Answer, BLOCK, Content, Delta, Destination, PipelinedRequest, SecondRequest};
use crate::source::{Sent, Source, TABLE, relation, was_rolled_back};

const CHUNK_BYTES: usize = 1500;
/// So much of a transaction makes it worth a second session.
const WORTH_BYTES: u64 = 40;
/// The apply loop waits for the second session's locks for so many of its steps.
const RELEASE_STEPS_MAX: usize = 10;

/// What the schedules have come to, so that one that never does shows.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) committed_in_parallel: usize,
    pub(crate) cancelled: BTreeMap<String, usize>,
    pub(crate) pauses: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Tally) {
        self.committed_in_parallel += other.committed_in_parallel;
        self.pauses += other.pauses;
        for (why, count) in other.cancelled {
            *self.cancelled.entry(why).or_default() += count;
        }
    }
}

/// The second session of a life.
pub(crate) struct Second {
    pub(crate) xid: u32,
    gathered: Vec<Change>,
    pub(crate) requests: VecDeque<SecondRequest>,
    /// Whether each request that was executed went well.
    answers: VecDeque<bool>,
    under_way: usize,
    is_open: bool,
    /// Its commit was sent: nothing but its answer is waited for.
    is_committing: bool,
    /// What its transaction has done at the destination.
    pub(crate) delta: Option<Delta>,
}

/// A request of the leader that is not answered.
struct UnderWay {
    sent_at: Duration,
}

pub(crate) struct Life {
    incoming: VecDeque<Sent>,
    /// How far into the source's log the walsender has got.
    sent_transactions: usize,
    assembler: Assembler,
    spool: BTreeMap<u32, Vec<u8>>,
    replay: Option<Box<Replay>>,
    /// A stream whose commit is left to the second session.
    settling: Option<Box<Replay>>,
    /// The end_lsn of the last transaction that was handed out.
    handed_out: Lsn,
    core: LoopCore,
    coordinator: Coordinator,
    pub(crate) feedback: Feedback,
    pub(crate) requests: VecDeque<PipelinedRequest>,
    pub(crate) answers: VecDeque<Answer>,
    under_way: VecDeque<UnderWay>,
    pub(crate) second: Option<Second>,
    /// The position once everything that was sent has committed.
    position: u64,
    stored: u64,
    /// The transaction that is applied in chunks; whether the destination has said that it is inside it.
    large: Option<bool>,
    pub(crate) command: ApplyCommand,
    pub(crate) now: Duration,
    /// The last message stands inside a transaction, or in a block of a stream.
    inside: bool,
    pub(crate) failed: bool,
    pub(crate) tally: Tally,
}

impl Life {
    pub(crate) fn start(source: &Source, destination: &mut Destination, rng: &mut Rng) -> Life {
        // The writing session is new: whatever the old one had open is rolled back.
        destination.open = None;
        let position = destination.position;
        assert!(source.confirmed <= position, "confirmed {} is ahead of the position {position}", source.confirmed);
        let tables = TableSet::new([(TABLE, QualifiedName::new("public", "t"))]);
        let at = Lsn::new(position);
        let limits =
            LoopLimits { batch: BatchLimits { rows_max: 30, bytes_max: 20_000 }, ping_every: Duration::from_secs(5) };
        let parallel =
            ParallelLimits { worth_bytes: WORTH_BYTES, chunk_bytes_max: 400, ping_every: Duration::from_secs(5) };
        let ledger = Ledger::resume(at, Lsn::new(source.confirmed), BLOCK);
        Life {
            incoming: source.stream(position, rng),
            sent_transactions: source.log.len(),
            assembler: Assembler::new(tables, CHUNK_BYTES, "hw", at).with_streams(),
            spool: BTreeMap::new(),
            replay: None,
            settling: None,
            handed_out: at,
            core: LoopCore::new(ledger, limits, Duration::ZERO),
            coordinator: Coordinator::new(at, parallel),
            feedback: Feedback::new(Duration::from_secs(60), Lsn::new(source.confirmed), at, Duration::ZERO),
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            under_way: VecDeque::new(),
            second: None,
            position,
            stored: position,
            large: None,
            command: ApplyCommand::Run,
            now: Duration::ZERO,
            inside: false,
            failed: false,
            tally: Tally::default(),
        }
    }

    // Task 1: the stream, and the step router.

    pub(crate) fn receive(&mut self, source: &Source, rng: &mut Rng) {
        // New commits, and keepalives between them when the walsender has nothing else to say.
        if self.sent_transactions < source.log.len() {
            self.incoming.extend(source.sent_from(self.sent_transactions, rng));
            self.sent_transactions = source.log.len();
        }
        // While something waits for room, or for the destination, nothing more is read.
        if !self.route(rng) {
            return;
        }
        match self.incoming.pop_front() {
            Some(Sent::Message(message)) => self.message(message, source, rng),
            Some(Sent::Keepalive(wal_end)) => self.assembler.keepalive(Lsn::new(wal_end)),
            None => {
                for _ in 0..rng.usize(1..3) {
                    self.assembler.keepalive(Lsn::new(source.wal_end));
                }
                // One that was under way for long tells of the past.
                self.assembler.keepalive(Lsn::new(source.wal_end - rng.u64(..500)));
            }
        }
        if !self.failed {
            self.route(rng);
        }
    }

    fn message(&mut self, message: Message, source: &Source, rng: &mut Rng) {
        let commits = matches!(message, Message::Commit(_) | Message::StreamCommit { .. });
        let opens = matches!(message, Message::Begin(_) | Message::StreamStart { .. });
        self.inside = opens || self.inside && !matches!(message, Message::Commit(_) | Message::StreamStop);
        let twice = (commits && rng.u8(..100) == 0).then(|| message.clone());
        if let Message::StreamCommit { xid, commit } = &message {
            let mut subtransactions = self.assembler.subtransactions(*xid, commit);
            subtransactions.retain(|subxid| was_rolled_back(*xid, *subxid));
            self.assembler.leave_out(*xid, &subtransactions.into_iter().collect());
        }
        self.assembler.message(message).expect("a message in its place");
        if let Some(commit) = twice {
            self.assembler.message(commit).expect_err("a commit of nothing");
            self.failed = true;
            return;
        }
        if self.inside && rng.u8(..4) == 0 {
            // A walsender keeps the link alive in the middle of a transaction, too. What it says there says nothing
            // of what has committed, however far it goes.
            self.assembler.keepalive(Lsn::new(source.wal_end));
        }
    }

    /// Passes on what is ready; whether nothing is left that waits.
    fn route(&mut self, rng: &mut Rng) -> bool {
        if self.settling.is_some()
            && let Some(settlement) = self.coordinator.take_settled()
            && let Some(replay) = self.settling.take()
        {
            match settlement {
                Settlement::Applied => drop(self.spool.remove(&replay.xid()).expect("a stream that was begun")),
                Settlement::ReadBack => self.read_back(replay),
            }
        }
        while self.settling.is_none() && self.core.has_room() {
            if let Some(replay) = &mut self.replay {
                match replay.poll() {
                    Some(step) => self.hand_out(step, rng),
                    None => self.replay = None,
                }
                continue;
            }
            match self.assembler.poll() {
                Some(Output::Step(step)) => self.hand_out(step, rng),
                Some(Output::Spool(order)) => self.spool(order, rng),
                None => return true,
            }
        }
        false
    }

    fn hand_out(&mut self, step: Step, rng: &mut Rng) {
        match &step {
            Step::Transaction(Transaction { commit, .. })
            | Step::Commit { commit, .. }
            | Step::AppliedInParallel { commit, .. } => self.handed_out = commit.end_lsn,
            Step::Begin(_) | Step::Chunk(_) | Step::Schema(_) | Step::Reached(_) => {}
        }
        let Step::Transaction(transaction) = step else { return self.core.push(step) };
        if rng.u8(..30) > 0 {
            return self.core.push(Step::Transaction(transaction));
        }
        // A table has changed in it: the relation tracker cuts it there.
        let Transaction { begin, commit, changes, size_bytes, heartbeat } = transaction;
        self.core.push(Step::Begin(begin));
        let description = Description { table: String::new(), types: String::new() };
        let change = SchemaChange { relation: relation().into(), description, measured: Default::default() };
        self.core.push(Step::Schema(change));
        self.core.push(Step::Chunk(Chunk { changes, size_bytes }));
        self.core.push(Step::Commit { commit, heartbeat });
    }

    fn spool(&mut self, order: SpoolOrder, rng: &mut Rng) {
        match order {
            SpoolOrder::Append { xid, records } => {
                let (end, relations) = self.assembler.in_progress(xid).expect("a stream in progress");
                let bytes = records.len() as u64;
                let knowledge = if rng.u8(..50) == 0 { Knowledge::News } else { Knowledge::Known };
                let appended = Appended { xid, bytes, end, after: self.handed_out, relations };
                self.coordinator.appended(appended, |_| knowledge);
                self.spool.entry(xid).or_default().extend_from_slice(&records.joined());
            }
            SpoolOrder::Cut { xid, at } => {
                self.coordinator.truncated(xid, at);
                let stream = self.spool.get_mut(&xid).expect("a stream that was begun");
                stream.truncate(usize::try_from(at).expect("an offset in memory"));
            }
            SpoolOrder::Discard { xid } => {
                self.coordinator.aborted(xid);
                self.spool.remove(&xid).expect("a stream that was begun");
            }
            SpoolOrder::Replay(replay) => {
                if replay.has_gaps() {
                    self.coordinator.truncated(replay.xid(), 0);
                }
                if self.coordinator.may_commit(replay.xid()) && rng.u8(..20) == 0 {
                    self.coordinator.table_changed(replay.xid());
                }
                match self.coordinator.committed(replay.xid()) {
                    CommitBy::SecondSession => {
                        self.hand_out(replay.applied_in_parallel(), rng);
                        self.settling = Some(replay);
                    }
                    CommitBy::Leader => self.read_back(replay),
                }
            }
        }
    }

    fn read_back(&mut self, mut replay: Box<Replay>) {
        let records = self.spool.remove(&replay.xid()).expect("a stream that was begun");
        replay.chunk(&Bytes::from(records)).and_then(|()| replay.end()).expect("what was spooled");
        self.replay = Some(replay);
    }

    // Task 2: the apply loop, and the leader's session.

    fn moment(&self) -> Moment {
        let is_open = self.large.is_none_or(|is_open| is_open);
        let live = LiveSession {
            stored: Lsn::new(self.stored),
            is_busy: !self.under_way.is_empty(),
            has_room: self.under_way.len() < 2 && is_open,
            in_large_transaction: self.large.is_some(),
            waits_for: self.under_way.front().map(|oldest| self.now - oldest.sent_at).unwrap_or_default(),
        };
        Moment { now: self.now, command: self.command, live }
    }

    /// One turn of the apply loop.
    pub(crate) fn feed(&mut self, source: &Source, destination: &Destination, rng: &mut Rng) {
        loop {
            let moment = self.moment();
            match self.core.next(&moment, Some(&mut self.coordinator)) {
                LoopAction::Submit { task, read_wal } => self.submit(task, read_wal, rng),
                LoopAction::SubmitReleased { task, read_wal } => {
                    for _ in 0..RELEASE_STEPS_MAX {
                        self.act_second(rng);
                    }
                    self.submit(task, read_wal, rng);
                }
                LoopAction::CommitParallel(end) => {
                    let at_commit = if rng.u8(..20) == 0 { AtCommit::InSnapshot } else { AtCommit::Wanted };
                    self.coordinator.turn(end, at_commit, self.now);
                }
                LoopAction::ContinueBehind(outcome) => {
                    self.continue_behind(&outcome, destination);
                    if self.failed {
                        return;
                    }
                }
                LoopAction::ShareTables => self.coordinator.tables_current(),
                LoopAction::Reached(_) => {}
                LoopAction::StorePosition(position) => {
                    self.send(Content::Position, Some(position.as_u64()), false, rng);
                }
                LoopAction::Idle | LoopAction::Wait => break,
            }
        }
        let (moment, is_committing) = (self.moment(), self.coordinator.is_committing());
        if self.core.stands_still(&moment, is_committing) {
            self.stands_still(source, destination);
        }
        if let Some(Ping { read_wal }) = self.core.ping(&moment.live, self.now) {
            self.send(Content::Ping, None, read_wal, rng);
        }
        self.note_cancelled();
    }

    /// What the task that has asked for it relies on.
    fn stands_still(&mut self, source: &Source, destination: &Destination) {
        self.tally.pauses += 1;
        assert!(self.requests.is_empty() && self.answers.is_empty(), "something is under way while apply stands still");
        assert!(destination.position != self.stored || destination.open.is_none(), "a transaction is open");
        if let ApplyCommand::RunTo { point, .. } = self.command
            && destination.position == self.stored
        {
            let expected = source.state_before(point.as_u64());
            assert_eq!(destination.rows, expected, "at {} instead of the fence {point}", self.stored);
        }
    }

    fn submit(&mut self, task: ApplyTask, read_wal: bool, rng: &mut Rng) {
        let next = match &task {
            ApplyTask::Batch(batch) => Some(batch.end_lsn().as_u64()),
            ApplyTask::Large(LargeStep::Commit(end)) => Some(end.commit.end_lsn.as_u64()),
            ApplyTask::Large(LargeStep::Begin(_) | LargeStep::Chunk(_) | LargeStep::ChangeSchema(_)) => None,
        };
        match &task {
            ApplyTask::Large(LargeStep::Begin(_)) => self.large = Some(false),
            ApplyTask::Large(LargeStep::Commit(_)) => self.large = None,
            ApplyTask::Batch(_) | ApplyTask::Large(LargeStep::Chunk(_) | LargeStep::ChangeSchema(_)) => {}
        }
        self.send(Content::Task(task), next, read_wal && next.is_some(), rng);
    }

    fn send(&mut self, content: Content, next: Option<u64>, read_wal: bool, rng: &mut Rng) {
        let waits_for_second = matches!(content, Content::Task(_)) && rng.u8(..100) == 0;
        self.requests.push_back(PipelinedRequest {
            content,
            previous: self.position,
            next,
            read_wal,
            waits_for_second,
        });
        self.position = next.unwrap_or(self.position);
        self.under_way.push_back(UnderWay { sent_at: self.now });
    }

    fn continue_behind(&mut self, outcome: &TurnOutcome, destination: &Destination) {
        let position = outcome.end.commit.end_lsn;
        if destination.position != position.as_u64() {
            // Another instance has moved it.
            self.failed = true;
            return;
        }
        assert!(self.requests.is_empty() && self.answers.is_empty(), "a commit in parallel has its place in the order");
        self.position = position.as_u64();
        self.tally.committed_in_parallel += 1;
        self.stored(StoredPosition { position, is_durable: false });
        self.coordinator.settle(outcome.settlement);
    }

    fn stored(&mut self, stored: StoredPosition) {
        self.stored = stored.position.as_u64();
        self.core.stored(stored, self.now);
        self.coordinator.stored(stored.position);
        self.confirm();
    }

    fn confirm(&mut self) {
        let ledger = self.core.ledger();
        self.feedback.progressed(ledger.stored(), ledger.flushed());
    }

    pub(crate) fn answered(&mut self) {
        let Some(answer) = self.answers.pop_front() else { return };
        self.under_way.pop_front();
        if answer.failed {
            self.failed = true;
            return;
        }
        if self.large == Some(false) {
            self.large = Some(true);
        }
        if let Some(position) = answer.committed {
            self.stored(StoredPosition { position: Lsn::new(position), is_durable: answer.durable });
        }
        if let Some(reading) = answer.wal {
            self.core.read(reading);
            self.confirm();
        }
    }

    // The second session.

    pub(crate) fn act_second(&mut self, rng: &mut Rng) {
        let Some(second) = &self.second else { return self.start_second(rng) };
        if second.is_committing {
            return;
        }
        let xid = second.xid;
        let session = SecondSession {
            gathered: second.gathered.len(),
            gathered_bytes: second.gathered.iter().map(Change::size_bytes).sum(),
            is_busy: second.under_way > 0,
            has_room: second.is_open && second.under_way < 2,
        };
        let action = self.coordinator.next(xid, session, self.now);
        let second = self.second.as_mut().expect("it was there a moment ago");
        match action {
            SessionAction::Read { from, until, relations } => {
                let stream = self.spool.get(&xid).map(Vec::as_slice).unwrap_or_default();
                let place = |at: u64| usize::try_from(at).expect("an offset in memory");
                if rng.u8(..4) == 0 {
                    // It is still on its way to the spool.
                    self.coordinator.found(xid, from);
                    return;
                }
                let records = stream.get(place(from)..place(until)).expect("records that were announced");
                let changes = read_changes(&Bytes::copy_from_slice(records), &relations).expect("whole records");
                second.gathered.extend(changes);
            }
            SessionAction::Send => {
                let changes = std::mem::take(&mut second.gathered);
                second.send(SecondRequest::Changes(changes));
            }
            SessionAction::Commit { from, commit } => {
                assert!(second.gathered.is_empty() && second.under_way == 0, "a commit behind everything");
                second.is_committing = true;
                second.send(SecondRequest::Commit { from, commit });
            }
            SessionAction::Ping => second.send(SecondRequest::Ping),
            SessionAction::Wait(_) => {}
            SessionAction::Cancel(_) => self.end_second(),
        }
        self.note_cancelled();
    }

    fn start_second(&mut self, rng: &mut Rng) {
        let Some(xid) = self.coordinator.start() else { return };
        if rng.u8(..30) == 0 {
            self.coordinator.cancel(xid, Obstacle::NoSession);
            self.end_second_of(xid);
            return;
        }
        self.coordinator.session_opened(self.now);
        let mut second = Second {
            xid,
            gathered: Vec::new(),
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            under_way: 0,
            is_open: false,
            is_committing: false,
            delta: None,
        };
        second.send(SecondRequest::Begin);
        self.second = Some(second);
    }

    /// Closes the session: the destination rolls back what it has open.
    fn end_second(&mut self) {
        if let Some(second) = self.second.take() {
            self.end_second_of(second.xid);
        }
    }

    fn end_second_of(&mut self, xid: u32) {
        self.coordinator.session_closed(xid);
        self.note_cancelled();
    }

    fn note_cancelled(&mut self) {
        if let Some((_, why)) = self.coordinator.take_cancelled() {
            *self.tally.cancelled.entry(format!("{why:?}")).or_default() += 1;
        }
    }

    /// Whether the leader's next request waits for locks of the second session.
    pub(crate) fn is_blocked(&self) -> bool {
        let waits = self.requests.front().is_some_and(|request| request.waits_for_second);
        waits && self.second.as_ref().is_some_and(|second| second.delta.is_some())
    }

    pub(crate) fn execute_second(&mut self, destination: &mut Destination, rng: &mut Rng) {
        let Some(second) = &mut self.second else { return };
        let Some(request) = second.requests.pop_front() else { return };
        let answer = second.execute(&request, destination, rng) && rng.u8(..100) > 0;
        second.answers.push_back(answer);
    }

    pub(crate) fn answered_second(&mut self) {
        let Some(second) = &mut self.second else { return };
        let Some(went_well) = second.answers.pop_front() else { return };
        second.under_way -= 1;
        second.is_open = true;
        self.coordinator.answered(self.now);
        if !went_well {
            return self.end_second();
        }
        if second.is_committing {
            let xid = second.xid;
            self.coordinator.applied(xid);
            self.end_second();
        }
    }
}

impl Second {
    fn send(&mut self, request: SecondRequest) {
        self.requests.push_back(request);
        self.under_way += 1;
    }

    pub(crate) fn execute(&mut self, request: &SecondRequest, destination: &mut Destination, rng: &mut Rng) -> bool {
        // A transaction's xid is its end_lsn.
        let sent_again = u64::from(self.xid) <= destination.position;
        destination.execute_second(request, &mut self.delta, sent_again, rng)
    }
}
