//! The ring, simulated: the real pure parts between a fake source and a fake destination, on thousands of seeded schedules.
//!
//! Every step of a schedule is drawn by chance: a message arrives, a pipelined request is executed, an answer comes or is lost, WAL is
//! flushed, the source checkpoints, somebody crashes. After each step the invariants are checked:
//!
//! - I1, I2: whatever the destination shows is a state that the source was in, and it only goes forward (but for a crash of a
//!   destination that had not flushed);
//! - I3: the position names exactly that state;
//! - I4: what the source was told is durable at the destination;
//! - I5: once the crashes end, both sides become equal;
//! - I6: the slot passes WAL that is not for us.
//!
//! The source sends again what it has sent, whole transactions that are applied already, keepalives, inside transactions too,
//! and commits without what they commit; the last breaks the session off.
//!
//! A leader that is frozen, or cut off, leaves pipelined requests behind which arrive late, while the next one leads.
//!
//! Some transactions arrive before they commit, in blocks between others, with subtransactions and whole transactions that
//! are rolled back; the spool is a map that is lost with its process.
//!
//! `HEADWATER_SEED=n` replays one schedule; `HEADWATER_SCHEDULES=n` runs so many.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use headwater::apply_plan::{ApplyTask, BatchLimits, Batcher, LargeStep, Work};
use headwater::pg::{
    Column, Datum, Ident, Lsn, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity, Tuple, TypeId,
};
use headwater::progress::{Feedback, IdleAdvance, Ledger, WalReading};
use headwater::transaction::{Assembler, Change, Output, Replay, RowChange, SpoolOrder, TableSet};
use headwater::wire::{Abort, Begin, Commit, Message, OldTuple};

type Rows = BTreeMap<u8, u8>;

const TABLE: RelationId = RelationId(1);
const BLOCK: u64 = 8192;

fn relation() -> Relation {
    let column = |name: &str, in_identity| Column {
        name: Ident::new(name),
        in_identity,
        type_id: TypeId(21),
        type_modifier: -1,
    };
    Relation {
        leaves: Default::default(),
        id: TABLE,
        name: QualifiedName::new("public", "t"),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column("key", true), column("value", false)],
    }
}

fn tuple(key: u8, value: Option<u8>) -> Tuple {
    let mut data = vec![b'b', 0, 0, 0, 1, key];
    match value {
        Some(value) => data.extend([b'b', 0, 0, 0, 1, value]),
        None => data.push(b'n'),
    }
    Tuple::new(2, Bytes::from(data)).expect("a tuple of two columns")
}

fn values(tuple: &Tuple) -> (u8, u8) {
    let byte = |datum: Option<Datum<'_>>| datum.and_then(Datum::bytes).and_then(|b| b.first().copied()).unwrap_or(0);
    let mut columns = tuple.columns();
    (byte(columns.next()), byte(columns.next()))
}

/// What a transaction does to a row.
#[derive(Clone, Copy, Debug)]
enum Action {
    Insert(u8, u8),
    Update(u8, u8),
    Delete(u8),
}

#[derive(Clone, Debug)]
struct Committed {
    commit_lsn: u64,
    end_lsn: u64,
    actions: Vec<Action>,
    /// The table after it.
    state: Rows,
}

/// The source: its committed transactions, its WAL, its slot.
struct Source {
    wal_end: u64,
    log: Vec<Committed>,
    confirmed: u64,
    /// What of `confirmed` survives a crash.
    saved: u64,
}

impl Source {
    fn state_at(&self, position: u64) -> Rows {
        self.log.iter().rev().find(|t| t.end_lsn <= position).map(|t| t.state.clone()).unwrap_or_default()
    }

    fn commit(&mut self, rng: &mut Rng) {
        let mut state = self.log.last().map(|t| t.state.clone()).unwrap_or_default();
        let mut actions = Vec::new();
        let most = if rng.u8(..10) == 0 { 40 } else { 5 };
        for _ in 0..rng.usize(1..most) {
            let (key, value) = (rng.u8(..20), rng.u8(..));
            let exists = state.contains_key(&key);
            let action = match (exists, rng.bool()) {
                (false, _) => Action::Insert(key, value),
                (true, true) => Action::Update(key, value),
                (true, false) => Action::Delete(key),
            };
            match action {
                Action::Insert(key, value) | Action::Update(key, value) => state.insert(key, value),
                Action::Delete(key) => state.remove(&key),
            };
            actions.push(action);
        }
        let commit_lsn = self.wal_end + rng.u64(50..500);
        let end_lsn = commit_lsn + rng.u64(20..60);
        self.wal_end = end_lsn;
        self.log.push(Committed { commit_lsn, end_lsn, actions, state });
    }

    /// What a walsender sends from a position on: messages, and how far it is after each of them.
    fn stream(&self, from: u64, rng: &mut Rng) -> VecDeque<Sent> {
        // Too low a position is silently raised.
        let from = from.max(self.confirmed);
        let mut sent = VecDeque::new();
        sent.push_back(Sent::Keepalive(from.saturating_sub(100)));
        sent.extend(self.sent_from(self.log.partition_point(|t| t.commit_lsn < from), rng));
        sent
    }

    /// All transactions from this one on; now and then some that came before it are sent again.
    fn sent_from(&self, first: usize, rng: &mut Rng) -> Vec<Sent> {
        let again = if rng.u8(..8) == 0 { rng.usize(1..5) } else { 0 };
        interleaved(self.log.get(first.saturating_sub(again)..).unwrap_or_default())
    }
}

#[derive(Clone, Debug)]
enum Sent {
    Message(Message),
    Keepalive(u64),
}

/// What a walsender sends of these transactions: some at their commits, some before, in blocks between others.
///
/// How a transaction comes is drawn from its position, so that it comes differently in another session.
fn interleaved(log: &[Committed]) -> Vec<Sent> {
    // Each transaction's messages stand in its slot; blocks of streams also in slots before their own.
    let mut slots: Vec<Vec<Message>> = vec![Vec::new(); log.len()];
    for (at, transaction) in log.iter().enumerate() {
        let mut rng = Rng::with_seed(transaction.end_lsn ^ (log.len() as u64) << 40);
        if rng.u8(..3) > 0 {
            slots[at].extend(at_commit(transaction));
            continue;
        }
        let xid = u32::try_from(transaction.end_lsn).expect("a small position");
        if rng.u8(..4) == 0 {
            // A stream of somebody who rolls back in the end.
            let doomed = xid + 1_000_000;
            let mut noise = vec![Message::Relation { xid: Some(doomed), relation: relation() }];
            noise.extend((0..20).map(|key| inserted(doomed, key)));
            slots[at].extend(block(doomed, true, noise));
            slots[at].push(Message::StreamAbort(Abort { xid: doomed, subxid: doomed }));
        }
        let mut place = rng.usize(at.saturating_sub(5)..=at);
        let mut first = true;
        let mut rest = transaction.actions.as_slice();
        let mut subxid = xid + 2_000_000;
        while first || !rest.is_empty() {
            let (now, later) = rest.split_at(rng.usize(0..=rest.len()));
            let mut messages = vec![Message::Relation { xid: Some(xid), relation: relation() }];
            let kept = if rng.bool() { xid } else { subxid };
            messages.extend(now.iter().map(|action| change(Some(kept), *action)));
            let rolled_back = (subxid + 1, rng.u8(..6));
            messages.extend((0..rolled_back.1).map(|key| inserted(rolled_back.0, key)));
            slots[place].extend(block(xid, first, messages));
            if rolled_back.1 > 0 {
                slots[place].push(Message::StreamAbort(Abort { xid, subxid: rolled_back.0 }));
            }
            (rest, first, subxid) = (later, false, subxid + 2);
            place = rng.usize(place..=at);
        }
        let (commit_lsn, end_lsn) = (Lsn::new(transaction.commit_lsn), Lsn::new(transaction.end_lsn));
        let commit = Commit { commit_lsn, end_lsn, committed_at: PgTimestamp::from_micros(0) };
        slots[at].push(Message::StreamCommit { xid, commit });
    }
    slots.into_iter().flatten().map(Sent::Message).collect()
}

fn block(xid: u32, first: bool, messages: Vec<Message>) -> impl Iterator<Item = Message> {
    std::iter::once(Message::StreamStart { xid, first }).chain(messages).chain([Message::StreamStop])
}

fn inserted(xid: u32, key: u8) -> Message {
    change(Some(xid), Action::Insert(key, 0))
}

fn change(xid: Option<u32>, action: Action) -> Message {
    match action {
        Action::Insert(key, value) => Message::Insert { xid, relation: TABLE, new: tuple(key, Some(value)) },
        Action::Update(key, value) => Message::Update { xid, relation: TABLE, old: None, new: tuple(key, Some(value)) },
        Action::Delete(key) => Message::Delete { xid, relation: TABLE, old: OldTuple::Key(tuple(key, None)) },
    }
}

fn at_commit(transaction: &Committed) -> Vec<Message> {
    let at = PgTimestamp::from_micros(0);
    let (commit_lsn, end_lsn) = (Lsn::new(transaction.commit_lsn), Lsn::new(transaction.end_lsn));
    let mut messages = vec![
        Message::Begin(Begin { final_lsn: commit_lsn, committed_at: at, xid: 1 }),
        Message::Relation { xid: None, relation: relation() },
    ];
    messages.extend(transaction.actions.iter().map(|action| change(None, *action)));
    messages.push(Message::Commit(Commit { commit_lsn, end_lsn, committed_at: at }));
    messages
}

/// A pipelined request on its way to the destination.
#[derive(Clone, Debug)]
struct PipelinedRequest {
    work: Work,
    previous: u64,
    /// The position that its commit stores.
    next: Option<u64>,
    read_wal: bool,
}

#[derive(Clone, Debug)]
struct Answer {
    committed: Option<u64>,
    failed: bool,
    durable: bool,
    wal: Option<WalReading>,
}

/// The destination: what is committed, what of it is flushed, and the transaction that is open.
struct Destination {
    rows: Rows,
    position: u64,
    insert_lsn: u64,
    flush_lsn: u64,
    /// Each commit with its WAL position: a crash goes back to the last flushed one.
    history: Vec<(u64, u64, Rows)>,
    open: Option<Rows>,
}

impl Destination {
    fn execute(&mut self, request: &PipelinedRequest, rng: &mut Rng) -> Answer {
        let mut answer = Answer { committed: None, failed: false, durable: false, wal: None };
        let large = matches!(request.work, Work::Apply(ApplyTask::Large(LargeStep::Chunk(_) | LargeStep::Commit(_))));
        // The conditional update comes first, and a failed transaction stays failed.
        if (large && self.open.is_none()) || (!large && self.position != request.previous) {
            answer.failed = true;
            return answer;
        }
        let mut rows = self.open.take().unwrap_or_else(|| self.rows.clone());
        match &request.work {
            Work::Apply(task) => apply(&mut rows, task.changes()),
            Work::CommitParallel(_) | Work::Reached(_) => {}
        }
        match request.next {
            None => self.open = Some(rows),
            Some(next) => {
                assert!(next >= self.position, "a position never goes back");
                (self.rows, self.position) = (rows, next);
                // Now and then a commit ends just behind a page's header.
                self.insert_lsn = match rng.u8(..4) {
                    0 => (self.insert_lsn / BLOCK + 1) * BLOCK + 24,
                    _ => self.insert_lsn + rng.u64(30..300),
                };
                self.history.push((self.insert_lsn, self.position, self.rows.clone()));
                answer.committed = Some(next);
                if matches!(request.work, Work::Reached(_)) {
                    self.flush(u64::MAX);
                    answer.durable = true;
                }
            }
        }
        if request.read_wal {
            answer.wal =
                Some(WalReading { insert_lsn: Lsn::new(self.insert_lsn), flush_lsn: Lsn::new(self.flush_lsn) });
        }
        answer
    }

    /// An idle server flushes up to what is written: never into the header of a page that nothing is on.
    fn flush(&mut self, up_to: u64) {
        let written =
            if self.insert_lsn % BLOCK <= 40 { self.insert_lsn - self.insert_lsn % BLOCK } else { self.insert_lsn };
        self.flush_lsn = self.flush_lsn.max(written.min(up_to));
    }

    fn is_durable(&self, insert_lsn: u64) -> bool {
        let needed = if insert_lsn % BLOCK <= 40 { insert_lsn - insert_lsn % BLOCK } else { insert_lsn };
        needed <= self.flush_lsn
    }

    fn durable_position(&self) -> u64 {
        self.history.iter().rev().find(|(lsn, _, _)| self.is_durable(*lsn)).map_or(0, |(_, position, _)| *position)
    }

    fn crash(&mut self) {
        self.open = None;
        let keep = self.history.iter().rposition(|(lsn, _, _)| self.is_durable(*lsn)).map_or(0, |at| at + 1);
        self.history.truncate(keep);
        (self.position, self.rows) = self.history.last().map(|(_, p, rows)| (*p, rows.clone())).unwrap_or_default();
        // Crash recovery ends with a checkpoint.
        self.insert_lsn += 500;
        self.flush(u64::MAX);
    }
}

fn apply(rows: &mut Rows, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Row(RowChange::Insert { new, .. }) => {
                let (key, value) = values(new);
                assert!(rows.insert(key, value).is_none(), "a row was inserted twice");
            }
            Change::Row(RowChange::Update { new, .. }) => {
                let (key, value) = values(new);
                assert!(rows.insert(key, value).is_some(), "a row to update was not there");
            }
            Change::Row(RowChange::Delete { old, .. }) => {
                let (key, _) = values(old.tuple());
                assert!(rows.remove(&key).is_some(), "a row to delete was not there");
            }
            Change::Truncate { .. } => rows.clear(),
        }
    }
}

/// One life of headwater: it dies with its sessions.
struct Life {
    incoming: VecDeque<Sent>,
    /// How far into the source's log the walsender has got.
    sent_transactions: usize,
    assembler: Assembler,
    spool: BTreeMap<u32, Vec<u8>>,
    replay: Option<Box<Replay>>,
    batcher: Batcher,
    ledger: Ledger,
    feedback: Feedback,
    idle: IdleAdvance,
    requests: VecDeque<PipelinedRequest>,
    answers: VecDeque<Answer>,
    under_way: usize,
    position: u64,
    large: Option<bool>,
    now: Duration,
    /// The last message stands inside a transaction, or in a block of a stream.
    inside: bool,
    failed: bool,
}

const PIECE_BYTES: usize = 1500;

impl Life {
    fn start(source: &Source, destination: &mut Destination, rng: &mut Rng) -> Life {
        // The writing session is new: whatever the old one had open is rolled back.
        destination.open = None;
        let position = destination.position;
        assert!(source.confirmed <= position, "confirmed {} is ahead of the position {position}", source.confirmed);
        let tables = TableSet::new([(TABLE, QualifiedName::new("public", "t"))]);
        let at = Lsn::new(position);
        Life {
            incoming: source.stream(position, rng),
            sent_transactions: source.log.len(),
            assembler: Assembler::new(tables, PIECE_BYTES, "hw", at).with_streams(),
            spool: BTreeMap::new(),
            replay: None,
            batcher: Batcher::new(BatchLimits { rows_max: 30, bytes_max: 20_000 }),
            ledger: Ledger::resume(at, Lsn::new(source.confirmed), BLOCK),
            feedback: Feedback::new(Duration::from_secs(60), Lsn::new(source.confirmed), at, Duration::ZERO),
            idle: IdleAdvance::new(Duration::ZERO),
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            under_way: 0,
            position,
            large: None,
            now: Duration::ZERO,
            inside: false,
            failed: false,
        }
    }

    fn receive(&mut self, source: &Source, rng: &mut Rng) {
        // New commits, and keepalives between them when the walsender has nothing else to say.
        if self.sent_transactions < source.log.len() {
            self.incoming.extend(source.sent_from(self.sent_transactions, rng));
            self.sent_transactions = source.log.len();
        }
        // While one is read back nothing more is read.
        if self.replay.is_none() {
            match self.incoming.pop_front() {
                Some(Sent::Message(message)) => {
                    let commits = matches!(message, Message::Commit(_) | Message::StreamCommit { .. });
                    let opens = matches!(message, Message::Begin(_) | Message::StreamStart { .. });
                    self.inside = opens || self.inside && !matches!(message, Message::Commit(_) | Message::StreamStop);
                    let twice = (commits && rng.u8(..100) == 0).then(|| message.clone());
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
                Some(Sent::Keepalive(wal_end)) => self.assembler.keepalive(Lsn::new(wal_end)),
                None => {
                    for _ in 0..rng.usize(1..3) {
                        self.assembler.keepalive(Lsn::new(source.wal_end));
                    }
                    // One that was under way for long tells of the past.
                    self.assembler.keepalive(Lsn::new(source.wal_end - rng.u64(..500)));
                }
            }
        }
        while self.batcher.has_room() {
            if let Some(replay) = &mut self.replay {
                match replay.poll() {
                    Some(step) => self.batcher.push(step),
                    None => self.replay = None,
                }
                continue;
            }
            match self.assembler.poll() {
                Some(Output::Step(step)) => self.batcher.push(step),
                Some(Output::Spool(order)) => self.spool(order),
                None => break,
            }
        }
    }

    fn spool(&mut self, order: SpoolOrder) {
        match order {
            SpoolOrder::Append { xid, records } => {
                self.spool.entry(xid).or_default().extend_from_slice(&records.joined())
            }
            SpoolOrder::Cut { xid, at } => {
                let stream = self.spool.get_mut(&xid).expect("a stream that was begun");
                stream.truncate(usize::try_from(at).expect("a place in memory"));
            }
            SpoolOrder::Discard { xid } => drop(self.spool.remove(&xid).expect("a stream that was begun")),
            SpoolOrder::Replay(mut replay) => {
                let records = self.spool.remove(&replay.xid()).expect("a stream that was begun");
                replay.chunk(&Bytes::from(records)).and_then(|()| replay.end()).expect("what was spooled");
                self.replay = Some(replay);
            }
        }
    }

    fn submit(&mut self, rng: &mut Rng) {
        if self.under_way >= 2 || self.large == Some(false) {
            return;
        }
        let work = match self.batcher.next_work() {
            Some(Work::Reached(position)) => {
                self.idle.reached(position);
                None
            }
            other => other,
        };
        let idle = || self.idle.due(self.ledger.stored(), self.now).map(Work::Reached);
        let work = match work {
            Some(work) => work,
            None if self.under_way == 0 && self.batcher.is_empty() && self.large.is_none() => match idle() {
                Some(work) => work,
                None => return,
            },
            None => return,
        };
        let next = match &work {
            Work::Apply(ApplyTask::Batch(batch)) => Some(batch.end_lsn().as_u64()),
            Work::Apply(ApplyTask::Large(LargeStep::Commit(end))) | Work::CommitParallel(end) => {
                Some(end.commit.end_lsn.as_u64())
            }
            Work::Reached(position) => Some(position.as_u64()),
            Work::Apply(ApplyTask::Large(LargeStep::Begin(_) | LargeStep::Chunk(_) | LargeStep::ChangeSchema(_))) => {
                None
            }
        };
        match &work {
            Work::Apply(ApplyTask::Large(LargeStep::Begin(_))) => self.large = Some(false),
            Work::Apply(ApplyTask::Large(LargeStep::Commit(_))) => self.large = None,
            Work::Apply(ApplyTask::Batch(_) | ApplyTask::Large(LargeStep::Chunk(_) | LargeStep::ChangeSchema(_)))
            | Work::CommitParallel(_)
            | Work::Reached(_) => {}
        }
        self.requests.push_back(PipelinedRequest {
            work,
            previous: self.position,
            next,
            read_wal: next.is_some() && rng.bool(),
        });
        self.position = next.unwrap_or(self.position);
        self.under_way += 1;
    }

    fn answered(&mut self) {
        let Some(answer) = self.answers.pop_front() else { return };
        self.under_way -= 1;
        if answer.failed {
            self.failed = true;
            return;
        }
        if self.large == Some(false) {
            self.large = Some(true);
        }
        if let Some(position) = answer.committed {
            if answer.durable {
                self.ledger.store_durably(Lsn::new(position));
            } else {
                self.ledger.store(Lsn::new(position));
            }
            self.idle.stored(self.now);
        }
        if let Some(reading) = answer.wal {
            self.ledger.read(reading);
        }
        self.feedback.progressed(self.ledger.stored(), self.ledger.flushed());
    }
}

struct World {
    rng: Rng,
    source: Source,
    destination: Destination,
    life: Option<Life>,
    /// Pipelined requests of leaders that were frozen, each with its session: what is in one comes in order, whenever it comes.
    late: Vec<VecDeque<PipelinedRequest>>,
    /// How far readers of the destination have seen it.
    seen: u64,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            rng: Rng::with_seed(seed),
            source: Source { wal_end: 1000, log: Vec::new(), confirmed: 1000, saved: 1000 },
            destination: Destination {
                rows: Rows::new(),
                position: 1000,
                insert_lsn: 5000,
                flush_lsn: 5000,
                history: vec![(4900, 1000, Rows::new())],
                open: None,
            },
            life: None,
            late: Vec::new(),
            seen: 1000,
        }
    }

    /// One step of the schedule; `calm`: nobody crashes any more, and the source is idle.
    fn step(&mut self, calm: bool) {
        let chance = self.rng.u8(..100);
        if !calm {
            match chance {
                0 => {
                    // SIGKILL: answers on their way are lost, pipelined requests on their way may still be executed.
                    self.lose_sessions();
                    return;
                }
                1 => {
                    self.destination.crash();
                    self.seen = self.destination.position;
                    self.life = None;
                    self.late.clear();
                    return;
                }
                2 => {
                    self.source.confirmed = self.source.saved;
                    self.lose_sessions();
                    return;
                }
                18 => {
                    // SIGSTOP, or a link that is cut: the next one leads while pipelined requests are still on their way.
                    if let Some(life) = self.life.take() {
                        self.late.push(life.requests);
                        self.destination.open = None;
                    }
                    return;
                }
                19..25 => self.arrive_late(),
                3..13 => self.source.commit(&mut self.rng),
                13..16 => self.source.wal_end += self.rng.u64(100..10_000_000),
                16..18 => self.source.saved = self.source.confirmed,
                _ => {}
            }
        }
        if self.rng.u8(..4) == 0 {
            let up_to = self.rng.u64(self.destination.flush_lsn..=self.destination.insert_lsn);
            self.destination.flush(if calm { u64::MAX } else { up_to });
        }
        let life = match &mut self.life {
            Some(life) if !life.failed => life,
            _ => self.life.insert(Life::start(&self.source, &mut self.destination, &mut self.rng)),
        };
        life.now += Duration::from_millis(self.rng.u64(1..500));
        match self.rng.u8(..5) {
            0 => {
                for _ in 0..self.rng.usize(1..20) {
                    if !life.failed {
                        life.receive(&self.source, &mut self.rng);
                    }
                }
            }
            1 => life.submit(&mut self.rng),
            2 => {
                if let Some(request) = life.requests.pop_front() {
                    let answer = self.destination.execute(&request, &mut self.rng);
                    life.answers.push_back(answer);
                }
            }
            3 => life.answered(),
            _ => {
                // What is stored becomes known to be durable by asking, too.
                if life.under_way == 0 && life.ledger.wants_reading() {
                    let (insert, flush) = (self.destination.insert_lsn, self.destination.flush_lsn);
                    life.ledger.read(WalReading { insert_lsn: Lsn::new(insert), flush_lsn: Lsn::new(flush) });
                    life.feedback.progressed(life.ledger.stored(), life.ledger.flushed());
                }
                if life.feedback.due_in(life.now).is_zero() {
                    let (_, flushed, _) = life.feedback.take(life.now);
                    assert!(flushed.as_u64() >= self.source.confirmed || self.source.confirmed <= self.source.saved);
                    self.source.confirmed = self.source.confirmed.max(flushed.as_u64());
                }
            }
        }
    }

    /// A pipelined request of a frozen leader arrives, in its own session. While another has a transaction open there, which has written
    /// the position, it waits.
    fn arrive_late(&mut self) {
        if self.destination.open.is_some() || self.late.is_empty() {
            return;
        }
        let session = self.rng.usize(..self.late.len());
        let Some(request) = self.late[session].pop_front() else {
            self.late.remove(session);
            return;
        };
        // A transaction in several pipelined requests is never whole here: what its session has left open is rolled back.
        let whole = matches!(request.work, Work::Apply(ApplyTask::Batch(_)) | Work::Reached(_));
        if !whole || self.destination.execute(&request, &mut self.rng).failed {
            self.late.remove(session);
        }
    }

    fn lose_sessions(&mut self) {
        if let Some(mut life) = self.life.take() {
            while let Some(request) = life.requests.pop_front() {
                if self.rng.bool() {
                    break;
                }
                let _ = self.destination.execute(&request, &mut self.rng);
            }
            self.destination.open = None;
        }
    }

    fn check(&mut self) {
        let Destination { rows, position, .. } = &self.destination;
        assert_eq!(*rows, self.source.state_at(*position), "what is shown is not the state at the position {position}");
        assert!(*position >= self.seen, "readers saw {} before {position}", self.seen);
        self.seen = *position;
        let durable = self.destination.durable_position();
        assert!(self.source.confirmed <= durable, "confirmed {} but only {durable} is durable", self.source.confirmed);
    }
}

fn run(seed: u64) -> usize {
    let mut world = World::new(seed);
    let steps = 400;
    for _ in 0..steps {
        world.step(false);
        world.check();
    }
    // Everything heals: both sides become equal, and the slot passes whatever WAL there is.
    let end = world.source.wal_end;
    for extra in 0.. {
        world.step(true);
        world.check();
        let arrived = world.destination.rows == world.source.state_at(end) && world.destination.position >= end;
        if arrived && world.source.confirmed >= end {
            return steps + extra;
        }
        assert!(
            extra < 100_000,
            "position {} and slot {} do not reach {end}",
            world.destination.position,
            world.source.confirmed
        );
    }
    unreachable!("the loop returns")
}

#[test]
fn the_invariants_hold_on_every_schedule() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = variable("HEADWATER_SEED") {
        run(seed);
        return;
    }
    let schedules = variable("HEADWATER_SCHEDULES").unwrap_or(1500);
    let first = fastrand::u64(..1 << 48);
    let began = Instant::now();
    let (next, steps) = (AtomicU64::new(first), AtomicUsize::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + schedules {
                return;
            }
            match std::panic::catch_unwind(|| run(seed)) {
                Ok(taken) => steps.fetch_add(taken, Ordering::Relaxed),
                Err(error) => {
                    // The others need not go on.
                    next.store(first + schedules, Ordering::Relaxed);
                    let text = error.downcast_ref::<String>().cloned().unwrap_or_default();
                    panic!("HEADWATER_SEED={seed} replays it: {text}");
                }
            };
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in all {
            thread.join().unwrap_or_else(|error| std::panic::resume_unwind(error));
        }
    });
    let steps = steps.into_inner();
    assert!(steps > 0);
    eprintln_summary(first, schedules, steps, began.elapsed().as_secs_f64());
}

#[allow(clippy::print_stderr, reason = "shown by --nocapture")]
fn eprintln_summary(first: u64, schedules: u64, steps: usize, seconds: f64) {
    let speed = schedules as f64 / seconds;
    eprintln!("{schedules} schedules from seed {first} on, {steps} steps, {speed:.0} schedules per second");
}
