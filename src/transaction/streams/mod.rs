//! In-progress streams: what the assembler knows of a transaction that arrives before it commits.
//!
//! ```text
//!   Stream Start ─▶ changes, each with its (sub)transaction ─▶ Stream Stop       … again, between other transactions
//!        │
//!        ├─ Stream Abort of a subtransaction: its first change and all behind it are cut
//!        ├─ Stream Abort of the whole: all is dropped, its relations too
//!        └─ Stream Commit: all is read back in commit order; its relations hold from now on
//! ```
//!
//! PostgreSQL sends no Stream Abort for some subtransactions (`source::subtransactions`). What those have done stands before changes that
//! were kept, so at the commit it is left out where it stands, record by record.
//!
//! The changes themselves leave at once as records, by `SpoolOrder`s for `spool`; what stays here is small: the overlay
//! of the relation cache, and where each subtransaction began. Cutting at the first change is exact because a session does
//! one thing at a time: whatever it did after a savepoint that is rolled back was done under that savepoint, or under one
//! inside it (`apply_handle_stream_abort` in worker.c relies on the same).
//!
//! Bound: some 50 bytes a subtransaction, which the source's own reorder buffer needs several hundred for: a session comes back to a
//! (sub)transaction only when one inside it has ended. Relations are counted, and the assembler bounds those of all streams together.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::catalog::truncation::Truncation;
use crate::pg::{Relation, RelationId, length_u32, length_u64, usize_from};
use crate::transaction::change::{Change, Heartbeat};
use crate::transaction::error::TransactionError;
use crate::transaction::record;
use crate::transaction::relations::{RelationCache, TableSet};
use crate::transaction::schema_mark::Objects;

/// What a relation takes in addition to itself: its entries in two tables and a list.
const RELATION_OVERHEAD_BYTES: usize = 128;

/// A heartbeat, and where it stood.
#[derive(Debug)]
struct PlacedHeartbeat {
    subxid: u32,
    at: u64,
    heartbeat: Heartbeat,
}

/// Changes of one (sub)transaction in a row.
#[derive(Debug)]
struct Run {
    subxid: u32,
    begin: u64,
}

/// A transaction that is still in progress at the source.
#[derive(Debug, Default)]
pub(super) struct InProgress {
    pub(super) relations: RelationCache,
    /// The relations that its records name by number.
    pub(super) numbered: Vec<Arc<Relation>>,
    numbers: HashMap<RelationId, u32>,
    /// What the relations take, those that are not wanted, too.
    pub(super) relation_bytes: usize,
    /// Its subtransactions in the order of their first changes, and where those begin.
    subtransactions: Vec<(u32, u64)>,
    begins: HashMap<u32, u64>,
    /// Which (sub)transaction its records belong to, from the first subtransaction on.
    runs: Vec<Run>,
    /// Where records stand of subtransactions that were rolled back without a Stream Abort.
    pub(super) gaps: Vec<Range<u64>>,
    /// The subtransaction of the last change.
    last: Option<u32>,
    /// Where its records end.
    pub(super) end: u64,
    /// Something of it was given to the spool.
    pub(super) spooled: bool,
    /// A heartbeat in it.
    heartbeat: Option<PlacedHeartbeat>,
    /// What schema changes in it were about; those that were rolled back stay, since nothing comes of a mark but a look.
    marks: Option<Objects>,
    /// It was replicated to the source from elsewhere, and such are not wanted.
    pub(super) foreign: bool,
    /// The tables that it has truncated, or of which partitions were named, also by what was rolled back.
    pub(super) truncated: HashMap<RelationId, Truncation>,
}

impl InProgress {
    /// Takes in a Relation message of the stream.
    ///
    /// It holds for the stream even when the subtransaction in which it came is rolled back: pgoutput counts it as sent to
    /// the stream, and sends another when a rollback brings back an older shape.
    pub(super) fn learn(&mut self, relation: Relation, heard: u64, tables: &TableSet) -> Result<(), TransactionError> {
        self.relation_bytes += RELATION_OVERHEAD_BYTES;
        if let Some(relation) = self.relations.learn(relation, heard, tables)? {
            self.relation_bytes += relation.size_bytes();
            self.numbers.insert(relation.id, length_u32(self.numbered.len()));
            self.numbered.push(relation);
        }
        Ok(())
    }

    /// The source has named a partition behind the description of its root, which no record has yet. When a subtransaction is rolled
    /// back, the source describes every relation again before its next row (tried on 14 to 18).
    pub(super) fn add_leaf(&mut self, root: RelationId, leaf: RelationId) {
        let number = self.numbers.get(&root).map(|number| usize_from(*number));
        if let Some(numbered) = number.and_then(|number| self.numbered.get_mut(number))
            && let Some(described) = self.relations.add_leaf(root, leaf)
        {
            *numbered = described;
            self.relation_bytes += size_of::<RelationId>();
        }
    }

    /// Writes a change of a (sub)transaction as a record; the values of a row of `large_bytes` or more end the record and are returned.
    pub(super) fn write(
        &mut self,
        xid: u32,
        subxid: u32,
        change: &Change,
        out: &mut BytesMut,
        large_bytes: usize,
    ) -> Option<Bytes> {
        self.note(xid, subxid);
        let before = out.len();
        let numbers = &self.numbers;
        let number_of =
            |relation: &Arc<Relation>| numbers.get(&relation.id).copied().unwrap_or(record::UNKNOWN_RELATION);
        let large = record::write_beginning(change, number_of, out, large_bytes);
        self.end += length_u64(out.len() - before + large.as_ref().map_or(0, Bytes::len));
        large
    }

    pub(super) fn heartbeat(&mut self, xid: u32, subxid: u32, heartbeat: Heartbeat) {
        self.note(xid, subxid);
        self.heartbeat = Some(PlacedHeartbeat { subxid, at: self.end, heartbeat });
    }

    pub(super) fn mark(&mut self, objects: Objects) {
        match &mut self.marks {
            Some(marks) => marks.merge(objects),
            None => self.marks = Some(objects),
        }
    }

    pub(super) fn take_marks(&mut self) -> Option<Objects> {
        self.marks.take()
    }

    /// Remembers where a subtransaction begins.
    fn note(&mut self, xid: u32, subxid: u32) {
        if self.last == Some(subxid) {
            return;
        }
        self.last = Some(subxid);
        if subxid != xid || !self.runs.is_empty() {
            self.runs.push(Run { subxid, begin: self.end });
        }
        if subxid != xid && !self.begins.contains_key(&subxid) {
            self.begins.insert(subxid, self.end);
            self.subtransactions.push((subxid, self.end));
        }
    }

    /// A subtransaction was rolled back. Returns where the records end now, when that is not where they ended.
    pub(super) fn cut(&mut self, subxid: u32) -> Option<u64> {
        // A subtransaction without changes, or one that went with an outer one.
        let at = *self.begins.get(&subxid)?;
        while let Some((xid, begin)) = self.subtransactions.pop() {
            self.begins.remove(&xid);
            debug_assert!(begin >= at, "subtransactions stand in the order of their first changes");
            if xid == subxid {
                break;
            }
        }
        self.last = None;
        while self.runs.pop_if(|run| run.begin >= at).is_some() {}
        self.heartbeat.take_if(|heartbeat| heartbeat.at >= at);
        let end = std::mem::replace(&mut self.end, at);
        (at < end).then_some(at)
    }

    /// The subtransactions whose changes are kept so far.
    pub(super) fn subtransactions(&self) -> Vec<u32> {
        self.subtransactions.iter().map(|(subxid, _)| *subxid).collect()
    }

    /// These subtransactions were rolled back, and no Stream Abort has come for them. All changes have come.
    pub(super) fn leave_out(&mut self, rolled_back: &HashSet<u32>) {
        let ends = self.runs.iter().skip(1).map(|run| run.begin).chain([self.end]);
        for (run, end) in self.runs.iter().zip(ends).filter(|(run, _)| rolled_back.contains(&run.subxid)) {
            match self.gaps.last_mut() {
                Some(last) if last.end == run.begin => last.end = end,
                Some(_) | None => self.gaps.push(run.begin..end),
            }
        }
        self.heartbeat.take_if(|heartbeat| rolled_back.contains(&heartbeat.subxid));
    }

    /// Whether a record is left.
    pub(super) fn has_records(&self) -> bool {
        self.end > self.gaps.iter().map(|gap| gap.end - gap.start).sum()
    }

    pub(super) fn take_heartbeat(&mut self) -> Option<Heartbeat> {
        self.heartbeat.take().map(|placed| placed.heartbeat)
    }
}

#[cfg(test)]
mod tests;
