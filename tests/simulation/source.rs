//! The source of the simulation: committed transactions, WAL, a slot, and what a walsender sends of them.
//!
//! Sessions hold row locks until they commit. So what a transaction does to a row is never sent before the commit of an earlier
//! transaction that has changed the row, however early its blocks come.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use headwater::pg::{
    Column, Datum, Ident, Lsn, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity, Tuple, TypeId,
};
use headwater::wire::{Abort, Begin, Commit, Message, OldTuple};

pub(crate) type Rows = BTreeMap<u8, u8>;

pub(crate) const TABLE: RelationId = RelationId(1);
/// Keys from here on are inserted by what is rolled back in the end, and by nothing else: the source's unique index would not let
/// two sessions have the same key.
const ROLLED_BACK: u8 = 100;
/// Streams that are rolled back as a whole have xids from here on.
const DOOMED: u32 = 1_000_000;
/// Subtransactions have xids from here on: an even distance from their transaction's for those that are kept, an odd one for others.
const SUBTRANSACTIONS: u32 = 2_000_000;

pub(crate) fn relation() -> Relation {
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

/// Key and value of a row.
pub(crate) fn values(tuple: &Tuple) -> (u8, u8) {
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

impl Action {
    fn key(self) -> u8 {
        match self {
            Action::Insert(key, _) | Action::Update(key, _) | Action::Delete(key) => key,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) commit_lsn: u64,
    pub(crate) end_lsn: u64,
    actions: Vec<Action>,
    /// The table after it.
    state: Rows,
}

/// The source: its committed transactions, its WAL, its slot.
pub(crate) struct Source {
    pub(crate) wal_end: u64,
    pub(crate) log: Vec<Committed>,
    pub(crate) confirmed: u64,
    /// What of `confirmed` survives a crash.
    pub(crate) saved: u64,
}

impl Source {
    pub(crate) fn new() -> Source {
        Source { wal_end: 1000, log: Vec::new(), confirmed: 1000, saved: 1000 }
    }

    pub(crate) fn state_at(&self, position: u64) -> Rows {
        self.log.iter().rev().find(|t| t.end_lsn <= position).map(|t| t.state.clone()).unwrap_or_default()
    }

    /// The table with every transaction that committed before `point`, and with none other.
    pub(crate) fn state_before(&self, point: u64) -> Rows {
        self.log.iter().rev().find(|t| t.commit_lsn < point).map(|t| t.state.clone()).unwrap_or_default()
    }

    pub(crate) fn commit(&mut self, rng: &mut Rng) {
        let mut state = self.log.last().map(|t| t.state.clone()).unwrap_or_default();
        let mut actions = Vec::new();
        let max = if rng.u8(..10) == 0 { 40 } else { 5 };
        for _ in 0..rng.usize(1..max) {
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
    pub(crate) fn stream(&self, from: u64, rng: &mut Rng) -> VecDeque<Sent> {
        // Too low a position is silently raised.
        let from = from.max(self.confirmed);
        let mut sent = VecDeque::new();
        sent.push_back(Sent::Keepalive(from.saturating_sub(100)));
        sent.extend(self.sent_from(self.log.partition_point(|t| t.commit_lsn < from), rng));
        sent
    }

    /// All transactions from this one on; now and then some that came before it are sent again.
    pub(crate) fn sent_from(&self, first: usize, rng: &mut Rng) -> Vec<Sent> {
        let again = if rng.u8(..8) == 0 { rng.usize(1..5) } else { 0 };
        interleaved(self.log.get(first.saturating_sub(again)..).unwrap_or_default())
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Sent {
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
        } else {
            streamed(log, at, &mut slots, &mut rng);
        }
    }
    slots.into_iter().flatten().map(Sent::Message).collect()
}

/// Whether a subtransaction of a transaction was rolled back, as the source's commit log has it.
pub(crate) fn was_rolled_back(xid: u32, subxid: u32) -> bool {
    (subxid - xid) % 2 == 1
}

/// Writes the transaction at `at` as a stream.
fn streamed(log: &[Committed], at: usize, slots: &mut [Vec<Message>], rng: &mut Rng) {
    let transaction = &log[at];
    let xid = u32::try_from(transaction.end_lsn).expect("a small position");
    if rng.u8(..4) == 0 {
        // A stream of somebody who rolls back in the end, now and then much later.
        let doomed = xid + DOOMED;
        let mut noise = vec![Message::Relation { xid: Some(doomed), relation: relation() }];
        noise.extend((0..20).map(|key| inserted(doomed, ROLLED_BACK + 50 + key)));
        slots[rng.usize(at.saturating_sub(5)..=at)].extend(block(doomed, true, noise));
        slots[at].push(Message::StreamAbort(Abort { xid: doomed, subxid: doomed }));
    }
    let mut index = rng.usize(at.saturating_sub(5)..=at);
    let mut first = true;
    let mut rest = transaction.actions.as_slice();
    let mut subxid = xid + SUBTRANSACTIONS;
    // Keys of what is rolled back without a Stream Abort.
    let mut unsaid = (ROLLED_BACK + 10..ROLLED_BACK + 47).step_by(3);
    while first || !rest.is_empty() {
        let (now, later) = rest.split_at(rng.usize(0..=rest.len()));
        index = now.iter().map(|action| last_change_before(log, at, action.key())).fold(index, usize::max);
        let mut messages = Vec::new();
        if first || rng.u8(..25) == 0 {
            messages.push(Message::Relation { xid: Some(xid), relation: relation() });
        }
        let kept = if rng.bool() { xid } else { subxid };
        messages.extend(now.iter().map(|action| change(Some(kept), *action)));
        let rolled_back = (subxid + 1, rng.u8(..6).saturating_sub(3));
        let unsaid_at = if rng.u8(..3) == 0 { unsaid.next() } else { None };
        let first_key = unsaid_at.unwrap_or(ROLLED_BACK);
        messages.extend((0..rolled_back.1).map(|key| inserted(rolled_back.0, first_key + key)));
        slots[index].extend(block(xid, first, messages));
        if rolled_back.1 > 0 && unsaid_at.is_none() {
            slots[index].push(Message::StreamAbort(Abort { xid, subxid: rolled_back.0 }));
        }
        (rest, first, subxid) = (later, false, subxid + 2);
        index = rng.usize(index..=at);
    }
    let (commit_lsn, end_lsn) = (Lsn::new(transaction.commit_lsn), Lsn::new(transaction.end_lsn));
    let commit = Commit { commit_lsn, end_lsn, committed_at: PgTimestamp::from_micros(0) };
    slots[at].push(Message::StreamCommit { xid, commit });
}

/// The slot of the last transaction before the one at `at` that changes this row: its commit stands there, in front of what is added.
fn last_change_before(log: &[Committed], at: usize, key: u8) -> usize {
    let changes = |committed: &Committed| committed.actions.iter().any(|action| action.key() == key);
    log[..at].iter().rposition(changes).unwrap_or(0)
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
