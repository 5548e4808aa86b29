//! What leaves this module: changes, transactions, steps.
//!
//! A change holds its rows as they arrived ([`Tuple`]s share the read buffer) and its relation as it was then.

use std::sync::Arc;

use crate::catalog::leaves::Measured;
use crate::pg::{Description, Lsn, Relation, Tuple};
use crate::wire::{Begin, Commit, OldTuple};

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Of a row.
    Row(RowChange),
    /// Tables that were emptied together.
    Truncate {
        /// The tables, those of our set only.
        relations: Vec<Arc<Relation>>,
        /// Sequences owned by their columns restart.
        restart_identity: bool,
    },
}

/// One change of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// A new row.
    Insert {
        /// The table.
        relation: Arc<Relation>,
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// The table.
        relation: Arc<Relation>,
        /// The old row's identity; `None` when it did not change.
        old: Option<OldTuple>,
        /// The new row; unchanged TOAST values are not in it.
        new: Tuple,
    },
    /// A row that is gone.
    Delete {
        /// The table.
        relation: Arc<Relation>,
        /// Its identity.
        old: OldTuple,
    },
}

impl RowChange {
    /// The table.
    pub fn relation(&self) -> &Arc<Relation> {
        match self {
            RowChange::Insert { relation, .. }
            | RowChange::Update { relation, .. }
            | RowChange::Delete { relation, .. } => relation,
        }
    }

    /// The tuple that identifies the row before the change.
    pub fn identity(&self) -> &Tuple {
        match self {
            RowChange::Insert { new, .. } | RowChange::Update { old: None, new, .. } => new,
            RowChange::Update { old: Some(old), .. } | RowChange::Delete { old, .. } => old.tuple(),
        }
    }

    /// The row after the change; for a delete, its identity.
    pub fn image(&self) -> &Tuple {
        match self {
            RowChange::Insert { new, .. } | RowChange::Update { new, .. } => new,
            RowChange::Delete { old, .. } => old.tuple(),
        }
    }

    /// What its rows weigh, in bytes.
    fn size_bytes(&self) -> usize {
        match self {
            RowChange::Insert { new, .. } => new.size_bytes(),
            RowChange::Update { old, new, .. } => {
                new.size_bytes() + old.as_ref().map_or(0, |old| old.tuple().size_bytes())
            }
            RowChange::Delete { old, .. } => old.tuple().size_bytes(),
        }
    }
}

/// What a change costs in addition to its rows' bytes: its place in a list, its share of an allocation.
const CHANGE_OVERHEAD_BYTES: usize = 128;

impl Change {
    /// What the change weighs in a bounded buffer, in bytes.
    pub fn size_bytes(&self) -> usize {
        CHANGE_OVERHEAD_BYTES
            + match self {
                Change::Row(row) => row.size_bytes(),
                Change::Truncate { relations, .. } => relations.len() * size_of::<Arc<Relation>>(),
            }
    }

    /// The tables that it changes.
    pub fn relations(&self) -> &[Arc<Relation>] {
        match self {
            Change::Row(row) => std::slice::from_ref(row.relation()),
            Change::Truncate { relations, .. } => relations,
        }
    }

    /// The tables that it changes, to be replaced by others.
    pub fn relations_mut(&mut self) -> &mut [Arc<Relation>] {
        match self {
            Change::Row(
                RowChange::Insert { relation, .. }
                | RowChange::Update { relation, .. }
                | RowChange::Delete { relation, .. },
            ) => std::slice::from_mut(relation),
            Change::Truncate { relations, .. } => relations,
        }
    }
}

/// A heartbeat of ours that came back inside a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// What was written into it.
    pub content: Vec<u8>,
}

/// A committed source transaction, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its first message.
    pub begin: Begin,
    /// Its last message.
    pub commit: Commit,
    /// Its changes to tables of our set, in order.
    pub changes: Vec<Change>,
    /// What they weigh, in bytes.
    pub size_bytes: usize,
    /// A heartbeat in it.
    pub heartbeat: Option<Heartbeat>,
}

/// A part of a transaction that is larger than a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its changes, in order.
    pub changes: Vec<Change>,
    /// What they weigh, in bytes.
    pub size_bytes: usize,
}

/// A table that the stream describes in another way than before, between the changes of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaChange {
    /// The table as the changes behind this have it.
    pub relation: Arc<Relation>,
    /// What the source's catalog says of it: at that time, or a little later.
    pub description: Description,
    /// What was asked of its partitions of which nothing was known.
    pub measured: Box<Measured>,
}

/// What goes forward through the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A whole transaction.
    Transaction(Transaction),
    /// A transaction larger than a chunk begins.
    Begin(Begin),
    /// The next part of it.
    Chunk(Chunk),
    /// In it a table changes; only between its begin and its commit.
    Schema(SchemaChange),
    /// It ends.
    Commit {
        /// Its commit.
        commit: Commit,
        /// A heartbeat in it.
        heartbeat: Option<Heartbeat>,
    },
    /// A transaction has committed whose changes are applied already, as far as somebody reads them ahead of their commit
    /// from the spool; only its own commit is left to do here.
    AppliedInParallel {
        /// As if it began only now.
        begin: Begin,
        /// Its commit.
        commit: Commit,
        /// A heartbeat in it.
        heartbeat: Option<Heartbeat>,
    },
    /// Everything up to here has been seen, and nothing of it is for us.
    Reached(Lsn),
}

impl Step {
    /// What the step weighs in a bounded channel, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Step::Transaction(transaction) => size_of::<Transaction>() + transaction.size_bytes,
            Step::Chunk(chunk) => size_of::<Chunk>() + chunk.size_bytes,
            Step::Schema(change) => {
                size_of::<SchemaChange>() + change.description.table.len() + change.description.types.len()
            }
            Step::Begin(_) | Step::Commit { .. } | Step::AppliedInParallel { .. } | Step::Reached(_) => {
                size_of::<Step>()
            }
        }
    }
}
