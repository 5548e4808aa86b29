//! A stream that has committed, from its records back into steps.
//!
//! Made by the assembler at Stream Commit, fed with the stream's chunks by `source`, which has them from `spool`. Out go
//! the same steps as for a transaction that arrived at its commit: whole, or begin, pieces, commit. At most a piece and a
//! chunk are held here, however large the transaction is (I8).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::change::{Change, Chunk, Heartbeat, Step, Transaction};
use super::record::read_changes;
use crate::pg::{Relation, length_u64};
use crate::transaction::error::{RecordError, TransactionError};
use crate::wire::{Begin, Commit};

/// Turns a committed stream's chunks into steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    begin: Begin,
    commit: Commit,
    heartbeat: Option<Heartbeat>,
    relations: Vec<Arc<Relation>>,
    piece_bytes_max: usize,
    /// Bytes of records that were spooled and not rolled back.
    expected: u64,
    /// Bytes that have come back.
    found: u64,
    changes: Vec<Change>,
    size_bytes: usize,
    /// Its begin has already left as a step.
    large: bool,
    steps: VecDeque<Step>,
}

impl Replay {
    pub(super) fn new(
        begin: Begin,
        commit: Commit,
        heartbeat: Option<Heartbeat>,
        relations: Vec<Arc<Relation>>,
        piece_bytes_max: usize,
        expected: u64,
    ) -> Replay {
        Replay {
            begin,
            commit,
            heartbeat,
            relations,
            piece_bytes_max,
            expected,
            found: 0,
            changes: Vec::new(),
            size_bytes: 0,
            large: false,
            steps: VecDeque::new(),
        }
    }

    /// The stream's top-level transaction.
    pub fn xid(&self) -> u32 {
        self.begin.xid
    }

    /// The relations that its records name, each as it was described.
    pub fn relations(&self) -> &[Arc<Relation>] {
        &self.relations
    }

    /// The same transaction as one step, for when its changes are applied already.
    pub fn applied_in_parallel(&self) -> Step {
        Step::AppliedInParallel { begin: self.begin, commit: self.commit, heartbeat: self.heartbeat.clone() }
    }

    /// Takes in the stream's next chunk.
    ///
    /// # Errors
    /// [`TransactionError::Record`] when it does not hold the stream's records.
    pub fn chunk(&mut self, chunk: &Bytes) -> Result<(), TransactionError> {
        self.found += length_u64(chunk.len());
        self.read(chunk).map_err(|source| self.error(source))
    }

    fn error(&self, source: RecordError) -> TransactionError {
        TransactionError::Record { xid: self.begin.xid, commit_lsn: self.commit.commit_lsn, source }
    }

    fn read(&mut self, chunk: &Bytes) -> Result<(), RecordError> {
        for change in read_changes(chunk, &self.relations)? {
            let bytes = change.size_bytes();
            self.changes.push(change);
            self.size_bytes += bytes;
            if self.size_bytes >= self.piece_bytes_max {
                if !self.large {
                    self.large = true;
                    self.steps.push_back(Step::Begin(self.begin));
                }
                let changes = std::mem::take(&mut self.changes);
                let size_bytes = std::mem::take(&mut self.size_bytes);
                self.steps.push_back(Step::Chunk(Chunk { changes, size_bytes }));
            }
        }
        Ok(())
    }

    /// The stream has no more chunks.
    ///
    /// # Errors
    /// [`TransactionError::Record`] when they were not all that was written.
    pub fn end(&mut self) -> Result<(), TransactionError> {
        if self.found != self.expected {
            return Err(self.error(RecordError::Incomplete { expected: self.expected, found: self.found }));
        }
        let changes = std::mem::take(&mut self.changes);
        let size_bytes = std::mem::take(&mut self.size_bytes);
        let heartbeat = self.heartbeat.take();
        let (begin, commit) = (self.begin, self.commit);
        if !self.large {
            self.steps.push_back(Step::Transaction(Transaction { begin, commit, changes, size_bytes, heartbeat }));
            return Ok(());
        }
        if !changes.is_empty() {
            self.steps.push_back(Step::Chunk(Chunk { changes, size_bytes }));
        }
        self.steps.push_back(Step::Commit { commit, heartbeat });
        Ok(())
    }

    /// The next step, if one is ready.
    pub fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }
}
