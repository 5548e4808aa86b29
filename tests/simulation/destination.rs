//! The destination of the simulation: what is committed, what of it is flushed, and the transactions that two sessions have open.

use std::collections::BTreeMap;

use fastrand::Rng;
use headwater::apply_plan::{ApplyTask, LargeStep};
use headwater::pg::Lsn;
use headwater::progress::WalReading;
use headwater::transaction::{Change, RowChange};
use headwater::wire::Commit;

use crate::source::{Rows, values};

pub(crate) const BLOCK: u64 = 8192;

/// What a pipelined request of the leader's session carries out.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Task(ApplyTask),
    Position,
    Ping,
}

/// A pipelined request of the leader's session, on its way to the destination.
#[derive(Clone, Debug)]
pub(crate) struct PipelinedRequest {
    pub(crate) content: Content,
    pub(crate) previous: u64,
    /// The position that its commit stores.
    pub(crate) next: Option<u64>,
    pub(crate) read_wal: bool,
    /// A constraint that only the destination has makes it wait while the second session is inside a transaction.
    pub(crate) waits_for_second: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) committed: Option<u64>,
    pub(crate) failed: bool,
    pub(crate) durable: bool,
    pub(crate) wal: Option<WalReading>,
}

/// A request of the second session.
#[derive(Clone, Debug)]
pub(crate) enum SecondRequest {
    Begin,
    Changes(Vec<Change>),
    Commit { from: Lsn, commit: Commit },
    Ping,
}

/// What a session's open transaction has done: rows by key, `None` for those that are gone.
pub(crate) type Delta = BTreeMap<u8, Option<u8>>;

pub(crate) struct Destination {
    pub(crate) rows: Rows,
    pub(crate) position: u64,
    pub(crate) insert_lsn: u64,
    pub(crate) flush_lsn: u64,
    /// Each commit with its WAL position: a crash goes back to the last flushed one.
    history: Vec<(u64, u64, Rows)>,
    /// The table as the leader's open transaction sees it.
    pub(crate) open: Option<Rows>,
}

impl Destination {
    pub(crate) fn new() -> Destination {
        Destination {
            rows: Rows::new(),
            position: 1000,
            insert_lsn: 5000,
            flush_lsn: 5000,
            history: vec![(4900, 1000, Rows::new())],
            open: None,
        }
    }

    pub(crate) fn execute(&mut self, request: &PipelinedRequest, rng: &mut Rng) -> Answer {
        let mut answer = Answer::default();
        let changes = match &request.content {
            Content::Task(task) => task.changes(),
            Content::Position => &[],
            Content::Ping => {
                answer.wal = request.read_wal.then(|| self.reading());
                return answer;
            }
        };
        let continues = match &request.content {
            Content::Task(ApplyTask::Large(step)) => !matches!(step, LargeStep::Begin(_)),
            Content::Task(ApplyTask::Batch(_)) | Content::Position | Content::Ping => false,
        };
        // The conditional update comes first, and a failed transaction stays failed.
        if (continues && self.open.is_none()) || (!continues && self.position != request.previous) {
            answer.failed = true;
            return answer;
        }
        let mut rows = self.open.take().unwrap_or_else(|| self.rows.clone());
        for change in changes {
            apply(change, |key| rows.get(&key).copied()).expect("a change of the leader's fits").write(&mut rows);
        }
        match request.next {
            None => self.open = Some(rows),
            Some(next) => {
                self.commit(rows, next, rng);
                answer.committed = Some(next);
                if matches!(request.content, Content::Position) {
                    self.flush(u64::MAX);
                    answer.durable = true;
                }
            }
        }
        answer.wal = request.read_wal.then(|| self.reading());
        answer
    }

    /// A request of a second session with this open transaction; whether it went well. `sent_again`: the transaction is at the
    /// destination already, so its changes need not fit.
    pub(crate) fn execute_second(
        &mut self,
        request: &SecondRequest,
        delta: &mut Option<Delta>,
        sent_again: bool,
        rng: &mut Rng,
    ) -> bool {
        match (request, delta) {
            (SecondRequest::Begin, delta) => *delta = Some(Delta::new()),
            (SecondRequest::Ping, _) => {}
            (SecondRequest::Changes(_) | SecondRequest::Commit { .. }, None) => return false,
            (SecondRequest::Changes(changes), Some(delta)) => {
                for change in changes {
                    let sees = |key| delta.get(&key).copied().unwrap_or_else(|| self.rows.get(&key).copied());
                    match apply(change, sees) {
                        Ok(row) => drop(delta.insert(row.key, row.value)),
                        Err(_) if sent_again => return false,
                        Err(problem) => panic!("applied in parallel: {problem}"),
                    }
                }
            }
            (SecondRequest::Commit { from, commit }, delta) => {
                // The conditional update of the position.
                if self.open.is_some() || self.position != from.as_u64() {
                    return false;
                }
                let mut rows = self.rows.clone();
                for (key, value) in delta.take().unwrap_or_default() {
                    Row { key, value }.write(&mut rows);
                }
                self.commit(rows, commit.end_lsn.as_u64(), rng);
            }
        }
        true
    }

    fn commit(&mut self, rows: Rows, next: u64, rng: &mut Rng) {
        assert!(next >= self.position, "a position never goes back");
        (self.rows, self.position) = (rows, next);
        // Now and then a commit ends just behind a page's header.
        self.insert_lsn = match rng.u8(..4) {
            0 => (self.insert_lsn / BLOCK + 1) * BLOCK + 24,
            _ => self.insert_lsn + rng.u64(30..300),
        };
        self.history.push((self.insert_lsn, self.position, self.rows.clone()));
    }

    fn reading(&self) -> WalReading {
        WalReading { insert_lsn: Lsn::new(self.insert_lsn), flush_lsn: Lsn::new(self.flush_lsn) }
    }

    /// An idle server flushes up to what is written: never into the header of a page that nothing is on.
    pub(crate) fn flush(&mut self, up_to: u64) {
        let written =
            if self.insert_lsn % BLOCK <= 40 { self.insert_lsn - self.insert_lsn % BLOCK } else { self.insert_lsn };
        self.flush_lsn = self.flush_lsn.max(written.min(up_to));
    }

    fn is_durable(&self, insert_lsn: u64) -> bool {
        let needed = if insert_lsn % BLOCK <= 40 { insert_lsn - insert_lsn % BLOCK } else { insert_lsn };
        needed <= self.flush_lsn
    }

    pub(crate) fn durable_position(&self) -> u64 {
        self.history.iter().rev().find(|(lsn, _, _)| self.is_durable(*lsn)).map_or(0, |(_, position, _)| *position)
    }

    pub(crate) fn crash(&mut self) {
        self.open = None;
        let keep = self.history.iter().rposition(|(lsn, _, _)| self.is_durable(*lsn)).map_or(0, |at| at + 1);
        self.history.truncate(keep);
        (self.position, self.rows) = self.history.last().map(|(_, p, rows)| (*p, rows.clone())).unwrap_or_default();
        // Crash recovery ends with a checkpoint.
        self.insert_lsn += 500;
        self.flush(u64::MAX);
    }
}

/// A row as a change leaves it; without a value it is gone.
struct Row {
    key: u8,
    value: Option<u8>,
}

impl Row {
    fn write(self, rows: &mut Rows) {
        match self.value {
            Some(value) => rows.insert(self.key, value),
            None => rows.remove(&self.key),
        };
    }
}

/// What a change leaves, where a session sees these rows.
fn apply(change: &Change, sees: impl Fn(u8) -> Option<u8>) -> Result<Row, &'static str> {
    match change {
        Change::Row(RowChange::Insert { new, .. }) => {
            let (key, value) = values(new);
            if sees(key).is_none() { Ok(Row { key, value: Some(value) }) } else { Err("a row was inserted twice") }
        }
        Change::Row(RowChange::Update { new, .. }) => {
            let (key, value) = values(new);
            let is_there = sees(key).is_some();
            if is_there { Ok(Row { key, value: Some(value) }) } else { Err("a row to update was not there") }
        }
        Change::Row(RowChange::Delete { old, .. }) => {
            let (key, _) = values(old.tuple());
            if sees(key).is_some() { Ok(Row { key, value: None }) } else { Err("a row to delete was not there") }
        }
        Change::Truncate { .. } => Err("nobody truncates"),
    }
}
