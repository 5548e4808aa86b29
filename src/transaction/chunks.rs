//! Changes on their way into steps: a transaction whole, or in chunks once it is larger than one.
//!
//! [`Cutter`] cuts where a chunk is full: for the assembler, as a transaction arrives, and for a replay, as it comes back from the
//! spool. [`ChunkBuilder`] weighs the changes of one chunk; `source::relation_tracker` cuts by it where a table changes. Changes are
//! moved, never copied.

use super::change::{Change, Chunk, Heartbeat, Step, Transaction};
use crate::wire::{Begin, Commit};

/// A chunk that is being filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkBuilder {
    changes: Vec<Change>,
    size_bytes: usize,
}

impl ChunkBuilder {
    /// Adds a change.
    pub fn push(&mut self, change: Change) {
        self.size_bytes += change.size_bytes();
        self.changes.push(change);
    }

    /// What was added since the last chunk, if anything was.
    pub fn take(&mut self) -> Option<Chunk> {
        let ChunkBuilder { changes, size_bytes } = std::mem::take(self);
        (!changes.is_empty()).then_some(Chunk { changes, size_bytes })
    }
}

impl Extend<Change> for ChunkBuilder {
    fn extend<I: IntoIterator<Item = Change>>(&mut self, changes: I) {
        changes.into_iter().for_each(|change| self.push(change));
    }
}

/// How far a transaction has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing of it: it may still leave whole.
    Nothing,
    /// Its begin, and every full chunk.
    Begin,
}

/// Cuts one transaction into steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cutter {
    begin: Begin,
    chunk: ChunkBuilder,
    chunk_bytes_max: usize,
    left: Left,
}

/// The steps that a change, or the commit, has completed: two at most.
#[derive(Debug, Default)]
pub(super) struct Cut {
    first: Option<Step>,
    second: Option<Step>,
}

impl Iterator for Cut {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        self.first.take().or_else(|| self.second.take())
    }
}

impl Cutter {
    /// A transaction of more than `chunk_bytes_max` leaves in chunks of about that size.
    pub(super) fn new(begin: Begin, chunk_bytes_max: usize) -> Cutter {
        Cutter { begin, chunk: ChunkBuilder::default(), chunk_bytes_max, left: Left::Nothing }
    }

    pub(super) fn begin(&self) -> &Begin {
        &self.begin
    }

    /// Whether nothing of it has left or is held.
    pub(super) fn is_empty(&self) -> bool {
        self.left == Left::Nothing && self.chunk.changes.is_empty()
    }

    /// Its changes keep something else that weighs so much.
    pub(super) fn add_weight(&mut self, bytes: usize) {
        self.chunk.size_bytes += bytes;
    }

    /// Takes in its next change.
    pub(super) fn push(&mut self, change: Change) -> Cut {
        self.chunk.push(change);
        if self.chunk.size_bytes < self.chunk_bytes_max {
            return Cut::default();
        }
        let begin = match std::mem::replace(&mut self.left, Left::Begin) {
            Left::Nothing => Some(Step::Begin(self.begin)),
            Left::Begin => None,
        };
        Cut { first: begin, second: self.chunk.take().map(Step::Chunk) }
    }

    /// It commits: its last steps.
    pub(super) fn commit(&mut self, commit: Commit, heartbeat: Option<Heartbeat>) -> Cut {
        match self.left {
            Left::Nothing => {
                let ChunkBuilder { changes, size_bytes } = std::mem::take(&mut self.chunk);
                let whole = Transaction { begin: self.begin, commit, changes, size_bytes, heartbeat };
                Cut { first: Some(Step::Transaction(whole)), second: None }
            }
            Left::Begin => {
                Cut { first: self.chunk.take().map(Step::Chunk), second: Some(Step::Commit { commit, heartbeat }) }
            }
        }
    }
}
