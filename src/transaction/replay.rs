//! A stream that has committed, from its records back into steps.
//!
//! Made by the assembler at Stream Commit, fed with the stream's chunks by `source`, which has them from `spool`. Out go
//! the same steps as for a transaction that arrived at its commit: whole, or begin, chunks, commit. At most a chunk of
//! changes and one of records are held here, however large the transaction is (I8).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::change::{Heartbeat, Step};
use super::chunks::Cutter;
use super::record::read_changes_where;
use crate::pg::{Relation, length_u64};
use crate::transaction::error::{RecordError, TransactionError};
use crate::wire::Commit;

/// The records that were spooled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SpooledRecords {
    /// Where they end.
    pub(super) end: u64,
    /// Where those stand that were rolled back nevertheless, in order.
    pub(super) gaps: Vec<Range<u64>>,
}

/// Turns a committed stream's chunks into steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    cutter: Cutter,
    commit: Commit,
    heartbeat: Option<Heartbeat>,
    relations: Vec<Arc<Relation>>,
    expected: SpooledRecords,
    /// Bytes that have come back.
    found: u64,
    steps: VecDeque<Step>,
}

impl Replay {
    pub(super) fn new(
        cutter: Cutter,
        commit: Commit,
        heartbeat: Option<Heartbeat>,
        relations: Vec<Arc<Relation>>,
        expected: SpooledRecords,
    ) -> Replay {
        Replay { cutter, commit, heartbeat, relations, expected, found: 0, steps: VecDeque::new() }
    }

    /// The stream's top-level transaction.
    pub fn xid(&self) -> u32 {
        self.cutter.begin().xid
    }

    /// The relations that its records name, each as it was described.
    pub fn relations(&self) -> &[Arc<Relation>] {
        &self.relations
    }

    /// Whether some of its records were rolled back, so that they must not be applied as they are.
    pub fn has_gaps(&self) -> bool {
        !self.expected.gaps.is_empty()
    }

    /// The same transaction as one step, for when its changes are applied already.
    pub fn applied_in_parallel(&self) -> Step {
        let (begin, commit) = (*self.cutter.begin(), self.commit);
        Step::AppliedInParallel { begin, commit, heartbeat: self.heartbeat.clone() }
    }

    /// Takes in the stream's next chunk.
    ///
    /// # Errors
    /// [`TransactionError::Record`] when it does not hold the stream's records.
    pub fn chunk(&mut self, chunk: &Bytes) -> Result<(), TransactionError> {
        let begin = self.found;
        self.found += length_u64(chunk.len());
        self.read(chunk, begin).map_err(|source| self.error(source))
    }

    fn error(&self, source: RecordError) -> TransactionError {
        TransactionError::Record { xid: self.xid(), commit_lsn: self.commit.commit_lsn, source }
    }

    fn read(&mut self, chunk: &Bytes, begin: u64) -> Result<(), RecordError> {
        let mut gaps = self.expected.gaps.iter().skip_while(|gap| gap.end <= begin).peekable();
        let is_kept = |index: usize| {
            let at = begin + length_u64(index);
            while gaps.next_if(|gap| gap.end <= at).is_some() {}
            gaps.peek().is_none_or(|gap| at < gap.start)
        };
        for change in read_changes_where(chunk, &self.relations, is_kept)? {
            self.steps.extend(self.cutter.push(change));
        }
        Ok(())
    }

    /// The stream has no more chunks.
    ///
    /// # Errors
    /// [`TransactionError::Record`] when they were not all that was written.
    pub fn end(&mut self) -> Result<(), TransactionError> {
        let expected = self.expected.end;
        if self.found != expected {
            return Err(self.error(RecordError::Incomplete { expected, found: self.found }));
        }
        self.steps.extend(self.cutter.commit(self.commit, self.heartbeat.take()));
        Ok(())
    }

    /// The next step, if one is ready.
    pub fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }
}
