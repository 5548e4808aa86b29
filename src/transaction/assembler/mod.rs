//! The assembler: one message in, at most a few steps or orders out.
//!
//! Stands between `wire::Decoder` and the channel to `apply_plan`. Events go in by [`Assembler::message`] and
//! [`Assembler::keepalive`], work comes out of [`Assembler::poll`]. Which relations are wanted is decided once, at
//! their Relation message; changes to others are dropped there and then. Changes of transactions that are still in
//! progress leave as records for `spool`; at Stream Commit a [`Replay`] asks for them back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::catalog::truncation::Truncation;
use crate::pg::{Lsn, Relation, RelationId};
use crate::transaction::change::{Change, Heartbeat, RowChange, Step, Transaction};
use crate::transaction::chunks::Cutter;
use crate::transaction::error::TransactionError;
use crate::transaction::output::Output;
use crate::transaction::relations::{RelationCache, TableSet};
use crate::transaction::replay::{Replay, SpooledRecords};
use crate::transaction::schema_mark::{Objects, SCHEMA_MARK_PREFIX, SchemaMark};
use crate::transaction::spool_order::{Records, SpoolOrder};
use crate::transaction::streams::InProgress;
use crate::wire::{Abort, Begin, Commit, LogicalMessage, Message};

/// Records of one stream are handed to the spool in chunks of about this size: large enough for a file, small in memory.
const CHUNK_BYTES: usize = 256 << 10;
/// A chunk of this size holds one large row, in a buffer that was made for it.
const LARGE_BYTES: usize = 4 * CHUNK_BYTES;

/// Transactions in progress at most, each of some 500 bytes here and up to a chunk more. A server streams only those that have outgrown
/// logical_decoding_work_mem, of at most as many sessions as it has; none has so many.
const STREAMS_MAX: usize = 0xFFFF;

/// What the relations of all transactions in progress may take together. Each transaction has those of its tables again, and once more
/// after each schema change in it: some kilobytes.
const STREAM_RELATIONS_BYTES_MAX: usize = 256 << 20;

/// Assembles one replication session's messages into steps and orders.
#[derive(Debug)]
pub struct Assembler {
    tables: TableSet,
    chunk_bytes_max: usize,
    heartbeat_prefix: &'static str,
    /// Transactions that were replicated to the source from elsewhere are left out.
    origin_none: bool,
    relations: RelationCache,
    open: Option<Open>,
    /// Transactions in progress, by their top-level xid; `None`: streaming was not asked for.
    streams: Option<HashMap<u32, InProgress>>,
    /// What their relations take together.
    stream_relation_bytes: usize,
    /// The stream between its Stream Start and its Stream Stop.
    current: Option<u32>,
    /// Records of the current stream that are not given to the spool yet.
    records: BytesMut,
    outputs: VecDeque<Output>,
    received: Lsn,
    /// The end of the last transaction, or what was resumed from: what committed before it is here already.
    committed: Lsn,
    /// How many messages have come.
    heard: u64,
    /// The TRUNCATEs of transactions that have committed.
    truncated: Vec<(RelationId, Truncation)>,
    /// A schema change that the last message has reported, or those of the stream that it has committed.
    marked: Option<SchemaMark>,
    /// What the last messages have described: see [`Described`].
    described: Described,
}

/// Relations that were described one right after the other.
///
/// The source describes a partition's root, then the partition, and then sends its row under the root's OID (`maybe_send_schema` in
/// pgoutput.c; tried on 14 to 18, also with streaming and with levels between the two). It describes several tables in a row for one
/// TRUNCATE, too. So the message behind them tells whether the second of each pair is a partition of the first.
#[derive(Debug, Default)]
struct Described {
    /// The last one, if it is wanted.
    last: Option<RelationId>,
    /// Each with the one right before it.
    pairs: Vec<(RelationId, RelationId)>,
}

/// The transaction between its Begin and its Commit.
#[derive(Debug)]
struct Open {
    steps: Cutter,
    heartbeat: Option<Heartbeat>,
    /// It was replicated to the source from elsewhere, and such are not wanted.
    foreign: bool,
    /// The source has sent it before.
    again: bool,
    /// The tables that it has truncated, or of which partitions were named.
    truncated: HashMap<RelationId, Truncation>,
}

impl Assembler {
    /// An assembler for a session that was just started at `resumed_from`.
    ///
    /// Transactions of more than `chunk_bytes_max` leave in chunks of about that size. Logical messages with
    /// `heartbeat_prefix` are ours; all others are ignored.
    pub fn new(
        tables: TableSet,
        chunk_bytes_max: usize,
        heartbeat_prefix: &'static str,
        resumed_from: Lsn,
    ) -> Assembler {
        Assembler {
            tables,
            chunk_bytes_max,
            heartbeat_prefix,
            origin_none: false,
            relations: RelationCache::default(),
            open: None,
            streams: None,
            stream_relation_bytes: 0,
            current: None,
            records: BytesMut::new(),
            outputs: VecDeque::new(),
            received: resumed_from,
            committed: resumed_from,
            heard: 0,
            truncated: Vec::new(),
            marked: None,
            described: Described::default(),
        }
    }

    /// Streaming was asked for: transactions may arrive before they commit.
    #[must_use]
    pub fn with_streams(mut self) -> Assembler {
        self.streams = Some(HashMap::new());
        self
    }

    /// Leaves out transactions that were replicated to the source from elsewhere, where the source does not (before 16).
    #[must_use]
    pub fn without_foreign_origins(mut self) -> Assembler {
        self.origin_none = true;
        self
    }

    /// How far the stream has been received: the end of the last transaction or the last keepalive.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Takes in the stream's next message.
    ///
    /// # Errors
    /// [`TransactionError`]; the session cannot be continued then.
    pub fn message(&mut self, message: Message) -> Result<(), TransactionError> {
        self.heard += 1;
        if self.described.last.is_some() || !self.described.pairs.is_empty() {
            self.described_before(&message);
        }
        match message {
            Message::Insert { xid, relation, new } => {
                if let Some(relation) = self.wanted(xid, relation)? {
                    self.check_columns(&relation, new.len())?;
                    self.change(xid, Change::Row(RowChange::Insert { relation, new }))?;
                }
            }
            Message::Update { xid, relation, old, new } => {
                if let Some(relation) = self.wanted(xid, relation)? {
                    self.check_columns(&relation, new.len())?;
                    if let Some(old) = &old {
                        self.check_columns(&relation, old.tuple().len())?;
                    }
                    self.change(xid, Change::Row(RowChange::Update { relation, old, new }))?;
                }
            }
            Message::Delete { xid, relation, old } => {
                if let Some(relation) = self.wanted(xid, relation)? {
                    self.check_columns(&relation, old.tuple().len())?;
                    self.change(xid, Change::Row(RowChange::Delete { relation, old }))?;
                }
            }
            Message::Truncate { xid, truncate } => {
                let mut relations = Vec::new();
                for id in truncate.relations {
                    relations.extend(self.wanted(xid, id)?);
                }
                let transaction = xid.or(self.open.as_ref().map(|open| open.steps.begin().xid));
                if let (Some(transaction), Some(truncated)) = (transaction, self.truncated_by()) {
                    let tables = relations.iter().map(|relation| relation.id);
                    tables.for_each(|table| truncated.entry(table).or_default().add(transaction));
                }
                if !relations.is_empty() {
                    // CASCADE is resolved at the source: the message names every published table that it reached.
                    self.change(xid, Change::Truncate { relations, restart_identity: truncate.restart_identity })?;
                }
            }
            Message::Begin(begin) => {
                if self.open.is_some() {
                    return Err(TransactionError::Misplaced { message: "Begin", place: "inside a transaction" });
                }
                let again = self.came_before(begin.final_lsn)?;
                let steps = Cutter::new(begin, self.chunk_bytes_max);
                self.open = Some(Open { steps, heartbeat: None, foreign: false, again, truncated: HashMap::new() });
            }
            Message::Commit(commit) => self.commit(commit)?,
            Message::Relation { xid, relation } => self.relation(xid, relation)?,
            Message::Logical { xid, message } => self.logical(xid, &message),
            // Types are matched by the catalogs of both ends.
            Message::Type { .. } => {}
            Message::Origin { .. } => self.origin(),
            Message::StreamStart { xid, first } => self.stream_start(xid, first)?,
            Message::StreamStop => self.stream_stop()?,
            Message::StreamCommit { xid, commit } => self.stream_commit(xid, commit)?,
            Message::StreamAbort(abort) => self.stream_abort(abort)?,
        }
        Ok(())
    }

    /// Takes in a keepalive: outside of a transaction everything that committed up to its `wal_end` has been seen.
    ///
    /// Transactions in progress do not matter: they commit behind it, and the source sends them again from their first change
    /// to a session that resumes there.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        // After a restart keepalives may begin below what was confirmed; inside a transaction they say nothing of it.
        if self.open.is_none() && self.current.is_none() && wal_end > self.received {
            self.received = wal_end;
            self.reached(wal_end);
        }
    }

    /// Where the records of a transaction in progress end, and the relations that they name by number.
    pub fn in_progress(&self, xid: u32) -> Option<(u64, &[Arc<Relation>])> {
        let stream = self.streams.as_ref()?.get(&xid)?;
        Some((stream.end, &stream.numbered))
    }

    /// The subtransactions of a transaction in progress whose changes are kept so far; none where it has come before.
    pub fn subtransactions(&self, xid: u32, commit: &Commit) -> Vec<u32> {
        let stream = self.streams.as_ref().and_then(|streams| streams.get(&xid));
        let wanted = stream.filter(|_| commit.commit_lsn >= self.committed);
        wanted.map(InProgress::subtransactions).unwrap_or_default()
    }

    /// These subtransactions of a transaction were rolled back, and no Stream Abort has come for them. Only right before its
    /// Stream Commit.
    pub fn leave_out(&mut self, xid: u32, rolled_back: &HashSet<u32>) {
        if let Some(stream) = self.streams.as_mut().and_then(|streams| streams.get_mut(&xid)) {
            stream.leave_out(rolled_back);
        }
    }

    /// The tables that were truncated by transactions that have committed since this was asked last: a subtransaction's xid is known in
    /// streams only.
    pub fn take_truncated(&mut self) -> Vec<(RelationId, Truncation)> {
        std::mem::take(&mut self.truncated)
    }

    /// The TRUNCATEs of the transaction whose changes come now.
    fn truncated_by(&mut self) -> Option<&mut HashMap<RelationId, Truncation>> {
        match self.current {
            Some(top) => self.streams.as_mut()?.get_mut(&top).map(|stream| &mut stream.truncated),
            None => self.open.as_mut().map(|open| &mut open.truncated),
        }
    }

    /// The next step or order, if one is ready.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn step(&mut self, step: Step) {
        self.outputs.push_back(Output::Step(step));
    }

    fn commit(&mut self, commit: Commit) -> Result<(), TransactionError> {
        let Some(open) = self.open.take() else {
            return Err(TransactionError::Misplaced { message: "Commit", place: "outside a transaction" });
        };
        let Open { mut steps, heartbeat, foreign: _, again, truncated } = open;
        self.truncated.extend(truncated.into_iter().filter(|(_, truncation)| truncation.is_any()));
        let final_lsn = steps.begin().final_lsn;
        if final_lsn != commit.commit_lsn {
            return Err(TransactionError::CommitMismatch { final_lsn, commit_lsn: commit.commit_lsn });
        }
        if again {
            return Ok(());
        }
        self.passed(commit);
        if steps.is_empty() && heartbeat.is_none() {
            self.reached(commit.end_lsn);
        } else {
            self.outputs.extend(steps.commit(commit, heartbeat).map(Output::Step));
        }
        Ok(())
    }

    /// Whether a transaction with this commit_lsn is one that came before: a source may send again what we have confirmed
    /// as applied, and a transaction is applied only if its end_lsn is behind the position.
    ///
    /// All these positions stand between records, so that a commit which begins before one also ends there or before.
    fn came_before(&self, commit_lsn: Lsn) -> Result<bool, TransactionError> {
        // Behind the last transaction, but before a keepalive: it was never here, and the position may have passed it.
        if commit_lsn >= self.committed && commit_lsn < self.received {
            return Err(TransactionError::OutOfOrder { commit_lsn, received: self.received });
        }
        Ok(commit_lsn < self.committed)
    }

    fn passed(&mut self, commit: Commit) {
        self.committed = self.committed.max(commit.end_lsn);
        self.received = self.received.max(commit.end_lsn);
    }

    /// Only the newest of several in a row is kept.
    fn reached(&mut self, position: Lsn) {
        match self.outputs.back_mut() {
            Some(Output::Step(Step::Reached(last))) => *last = (*last).max(position),
            Some(_) | None => self.step(Step::Reached(position)),
        }
    }

    /// Decides whether what was described before this message were partitions.
    fn described_before(&mut self, message: &Message) {
        match message {
            // The types of a relation's columns come before it.
            Message::Relation { .. } | Message::Type { .. } => return,
            Message::Truncate { .. } => {}
            Message::Begin(_)
            | Message::Commit(_)
            | Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Origin { .. }
            | Message::Logical { .. }
            | Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort(_) => {
                for (root, leaf) in std::mem::take(&mut self.described.pairs) {
                    if let Some(truncated) = self.truncated_by() {
                        truncated.entry(root).or_default().name(leaf.0);
                    }
                    match self.current.and_then(|top| self.streams.as_mut()?.get_mut(&top)) {
                        Some(stream) => {
                            let before = stream.relation_bytes;
                            stream.add_leaf(root, leaf);
                            self.stream_relation_bytes += stream.relation_bytes - before;
                        }
                        None => drop(self.relations.add_leaf(root, leaf)),
                    }
                }
            }
        }
        self.described = Described::default();
    }

    fn relation(&mut self, xid: Option<u32>, relation: Relation) -> Result<(), TransactionError> {
        let id = relation.id;
        if let Some(root) = self.described.last.take().filter(|root| *root != id) {
            self.described.pairs.push((root, id));
        }
        self.described.last = self.tables.name(id).map(|_| id);
        match self.stream(xid)? {
            Some(top) => {
                let stream = self.streams.as_mut().and_then(|streams| streams.get_mut(&top)).ok_or(NO_STREAM)?;
                let before = stream.relation_bytes;
                stream.learn(relation, self.heard, &self.tables)?;
                self.stream_relation_bytes += stream.relation_bytes - before;
                if self.stream_relation_bytes > STREAM_RELATIONS_BYTES_MAX {
                    let place = "for one more table than transactions in progress may tell of";
                    return Err(TransactionError::Misplaced { message: "Relation", place });
                }
            }
            None => {
                let learned = self.relations.learn(relation, self.heard, &self.tables)?;
                // The changes keep the description, however often the source repeats it.
                if let (Some(open), Some(relation)) = (&mut self.open, learned) {
                    open.steps.add_weight(relation.size_bytes());
                }
            }
        }
        Ok(())
    }

    fn wanted(&mut self, xid: Option<u32>, id: RelationId) -> Result<Option<Arc<Relation>>, TransactionError> {
        match self.stream(xid)? {
            Some(top) => {
                let stream = self.streams.as_mut().and_then(|streams| streams.get_mut(&top)).ok_or(NO_STREAM)?;
                stream.relations.wanted(id, !stream.foreign)
            }
            None => {
                let is_applied = self.open.as_ref().is_some_and(|open| !open.foreign && !open.again);
                self.relations.wanted(id, is_applied)
            }
        }
    }

    /// The schema changes that the last message has reported. Its transaction has committed: a read of the source once that is
    /// visible shows them.
    pub fn take_schema_mark(&mut self) -> Option<SchemaMark> {
        self.marked.take()
    }

    fn schema_mark(&mut self, xid: Option<u32>, message: &LogicalMessage) {
        let objects = Objects::parse(&message.content);
        if let (Some(_), Some(top)) = (xid, self.current) {
            if let Some(stream) = self.streams.as_mut().and_then(|streams| streams.get_mut(&top)) {
                stream.mark(objects);
            }
            return;
        }
        // One that is not transactional has no place in the order of commits.
        if let Some(open) = self.open.as_ref().filter(|open| !open.again) {
            self.marked = Some(SchemaMark { transaction: open.steps.begin().xid, objects });
        }
    }

    fn logical(&mut self, xid: Option<u32>, message: &LogicalMessage) {
        if message.prefix == SCHEMA_MARK_PREFIX && message.transactional {
            return self.schema_mark(xid, message);
        }
        if message.prefix != self.heartbeat_prefix {
            return;
        }
        let heartbeat = Heartbeat { content: message.content.to_vec() };
        match (xid, self.current) {
            (Some(subxid), Some(top)) => {
                if let Some(stream) = self.streams.as_mut().and_then(|streams| streams.get_mut(&top)) {
                    stream.heartbeat(top, subxid, heartbeat);
                }
            }
            (_, _) => {
                if let Some(open) = &mut self.open {
                    open.heartbeat = Some(heartbeat);
                }
            }
        }
    }

    /// The transaction was replicated to the source from elsewhere; the message precedes its changes.
    fn origin(&mut self) {
        if !self.origin_none {
            return;
        }
        if let Some(open) = &mut self.open {
            open.foreign = true;
        }
        if let Some(stream) = self.current.and_then(|top| self.streams.as_mut()?.get_mut(&top)) {
            stream.foreign = true;
        }
    }

    fn check_columns(&self, relation: &Relation, found: usize) -> Result<(), TransactionError> {
        if relation.columns.len() == found {
            return Ok(());
        }
        Err(TransactionError::ColumnCount {
            table: relation.name.clone(),
            expected: relation.columns.len(),
            found,
            final_lsn: self.open.as_ref().map_or(Lsn::INVALID, |open| open.steps.begin().final_lsn),
        })
    }

    fn change(&mut self, xid: Option<u32>, change: Change) -> Result<(), TransactionError> {
        if let (Some(subxid), Some(top)) = (xid, self.stream(xid)?) {
            return self.stream_change(top, subxid, &change);
        }
        let Some(open) = &mut self.open else {
            return Err(TransactionError::Misplaced { message: "change", place: "outside a transaction" });
        };
        if open.foreign || open.again {
            return Ok(());
        }
        self.outputs.extend(open.steps.push(change).map(Output::Step));
        Ok(())
    }

    /// The stream that a message with this xid belongs to; `None`: it stands outside of streams.
    fn stream(&self, xid: Option<u32>) -> Result<Option<u32>, TransactionError> {
        match (xid, self.current) {
            (Some(_), Some(top)) => Ok(Some(top)),
            (None, None) => Ok(None),
            (Some(_), None) => {
                Err(TransactionError::Misplaced { message: "change with an xid", place: "outside a stream" })
            }
            (None, Some(_)) => {
                Err(TransactionError::Misplaced { message: "change without an xid", place: "inside a stream" })
            }
        }
    }

    fn stream_start(&mut self, xid: u32, first: bool) -> Result<(), TransactionError> {
        let misplaced = |place| TransactionError::Misplaced { message: "Stream Start", place };
        let Some(streams) = &mut self.streams else { return Err(misplaced(UNASKED)) };
        if self.open.is_some() || self.current.is_some() {
            return Err(misplaced("inside a transaction"));
        }
        match (first, streams.contains_key(&xid)) {
            (true, false) if streams.len() >= STREAMS_MAX => {
                return Err(misplaced("for one more transaction in progress than a server can have"));
            }
            (true, false) => {
                streams.insert(xid, InProgress::default());
            }
            (false, true) => {}
            (true, true) => return Err(misplaced("for a stream that has begun already")),
            (false, false) => return Err(misplaced("for a stream that has not begun")),
        }
        self.current = Some(xid);
        Ok(())
    }

    fn stream_stop(&mut self) -> Result<(), TransactionError> {
        let Some(xid) = self.current.take() else {
            return Err(TransactionError::Misplaced { message: "Stream Stop", place: "outside a stream" });
        };
        self.spool_records(xid);
        Ok(())
    }

    fn stream_change(&mut self, xid: u32, subxid: u32, change: &Change) -> Result<(), TransactionError> {
        let stream = self.streams.as_mut().and_then(|streams| streams.get_mut(&xid)).ok_or(NO_STREAM)?;
        if stream.foreign {
            return Ok(());
        }
        let large = stream.write(xid, subxid, change, &mut self.records, LARGE_BYTES);
        if large.is_some() || self.records.len() >= CHUNK_BYTES {
            self.spool_with(xid, large.unwrap_or_default());
        }
        Ok(())
    }

    fn spool_records(&mut self, xid: u32) {
        if !self.records.is_empty() {
            self.spool_with(xid, Bytes::new());
        }
    }

    fn spool_with(&mut self, xid: u32, large: Bytes) {
        // An allocation of just this size: what is kept for long must not weigh more than it says. That of a large old row is one
        // already, and there must not be two of it.
        let head = if self.records.len() >= LARGE_BYTES {
            std::mem::take(&mut self.records).freeze()
        } else {
            let head = Bytes::copy_from_slice(&self.records);
            self.records.clear();
            head
        };
        let records = Records { head, large };
        if let Some(stream) = self.streams.as_mut().and_then(|streams| streams.get_mut(&xid)) {
            stream.spooled = true;
        }
        self.outputs.push_back(Output::Spool(SpoolOrder::Append { xid, records }));
    }

    /// The streams, for a message that ends one or a part of one.
    fn streams_between(&mut self, message: &'static str) -> Result<&mut HashMap<u32, InProgress>, TransactionError> {
        let misplaced = |place| TransactionError::Misplaced { message, place };
        if self.open.is_some() || self.current.is_some() {
            return Err(misplaced("inside a transaction"));
        }
        self.streams.as_mut().ok_or(misplaced(UNASKED))
    }

    fn stream_commit(&mut self, xid: u32, commit: Commit) -> Result<(), TransactionError> {
        let message = "Stream Commit";
        let unknown = TransactionError::Misplaced { message, place: "for a stream that has not begun" };
        let mut stream = self.streams_between(message)?.remove(&xid).ok_or(unknown)?;
        self.stream_relation_bytes -= stream.relation_bytes;
        let truncated = std::mem::take(&mut stream.truncated);
        self.truncated.extend(truncated.into_iter().filter(|(_, truncation)| truncation.is_any()));
        let again = self.came_before(commit.commit_lsn)?;
        if again {
            stream.relations.set_unused();
        }
        // pgoutput counts the relations that the stream has described as known to the session.
        self.relations.merge(std::mem::take(&mut stream.relations))?;
        if again {
            self.outputs.extend(stream.spooled.then_some(Output::Spool(SpoolOrder::Discard { xid })));
            return Ok(());
        }
        self.passed(commit);
        self.marked = stream.take_marks().map(|objects| SchemaMark { transaction: xid, objects });
        let heartbeat = stream.take_heartbeat();
        let begin = Begin { final_lsn: commit.commit_lsn, committed_at: commit.committed_at, xid };
        if stream.has_records() {
            let steps = Cutter::new(begin, self.chunk_bytes_max);
            let records = SpooledRecords { end: stream.end, gaps: stream.gaps };
            let replay = Replay::new(steps, commit, heartbeat, stream.numbered, records);
            self.outputs.push_back(Output::Spool(SpoolOrder::Replay(Box::new(replay))));
            return Ok(());
        }
        if stream.spooled {
            self.outputs.push_back(Output::Spool(SpoolOrder::Discard { xid }));
        }
        if heartbeat.is_some() {
            let changes = Vec::new();
            self.step(Step::Transaction(Transaction { begin, commit, changes, size_bytes: 0, heartbeat }));
        } else {
            self.reached(commit.end_lsn);
        }
        Ok(())
    }

    fn stream_abort(&mut self, abort: Abort) -> Result<(), TransactionError> {
        let Abort { xid, subxid } = abort;
        let streams = self.streams_between("Stream Abort")?;
        // From 18 on the source does not begin to stream a transaction that it finds rolled back already, but still sends
        // the rollback (*tried* on 18.4): it has sent no change, so there is nothing to undo.
        let order = if subxid == xid {
            let ended = streams.remove(&xid);
            self.stream_relation_bytes -= ended.as_ref().map_or(0, |stream| stream.relation_bytes);
            ended.filter(|stream| stream.spooled).map(|_| SpoolOrder::Discard { xid })
        } else {
            streams.get_mut(&xid).and_then(|stream| stream.cut(subxid)).map(|at| SpoolOrder::Cut { xid, at })
        };
        self.outputs.extend(order.map(Output::Spool));
        Ok(())
    }
}

const UNASKED: &str = "although streaming was not asked for";
/// Between Stream Start and Stream Stop its stream is known.
const NO_STREAM: TransactionError = TransactionError::Misplaced { message: "change", place: "outside a stream" };

#[cfg(test)]
mod tests;
