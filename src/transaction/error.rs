//! What is wrong with a stream of messages.
//!
//! Returned by the assembler and all that it uses; judged by `error_policy`. Plain data.

use crate::pg::{Lsn, QualifiedName, RelationId};

/// A message that does not fit what came before it, or a table that is not the one it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// A message stands where it cannot stand.
    #[error("{message} message {place} (protocol violation)")]
    Misplaced {
        /// The message.
        message: &'static str,
        /// Where it stood.
        place: &'static str,
    },
    /// A change names a relation that was never described.
    #[error("a change names relation {0}, which no Relation message described")]
    UnknownRelation(RelationId),
    /// A row has another number of columns than its relation.
    #[error("a row of table {table} has {found} columns, but its relation has {expected} (commit {final_lsn})")]
    ColumnCount {
        /// The table.
        table: QualifiedName,
        /// Columns of the relation.
        expected: usize,
        /// Columns of the row.
        found: usize,
        /// The transaction's commit_lsn.
        final_lsn: Lsn,
    },
    /// Begin and Commit describe different commits.
    #[error("transaction began with final_lsn {final_lsn} but committed at {commit_lsn}")]
    CommitMismatch {
        /// From Begin.
        final_lsn: Lsn,
        /// From Commit.
        commit_lsn: Lsn,
    },
    /// A transaction comes although the source had said that none was left before its commit.
    #[error("a transaction with commit {commit_lsn} came after the stream had passed {received} (protocol violation)")]
    OutOfOrder {
        /// Its commit_lsn.
        commit_lsn: Lsn,
        /// What the stream had passed.
        received: Lsn,
    },
    /// A table was dropped and created again under the same name.
    #[error("table {table} was dropped and created again at the source (OID {old}, now {new})")]
    Replaced {
        /// The table.
        table: QualifiedName,
        /// The OID that we knew.
        old: RelationId,
        /// The OID that it has now.
        new: RelationId,
    },
    /// What came back from the spool is not what went into it.
    #[error("transaction {xid} (commit {commit_lsn}): {source}")]
    Record {
        /// The source transaction.
        xid: u32,
        /// Its commit_lsn.
        commit_lsn: Lsn,
        /// What is wrong.
        source: RecordError,
    },
}

/// Bytes that are not records, or records that do not fit their stream's relations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A field is not what it must be.
    #[error("a spooled record has a malformed {0}")]
    Malformed(&'static str),
    /// A record names a relation that its stream does not know.
    #[error("a spooled record names relation number {0}, which its stream does not know")]
    UnknownRelation(u32),
    /// A row has another number of columns than its relation.
    #[error("a spooled row has {found} columns, but its relation has {expected}")]
    ColumnCount {
        /// Columns of the relation.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// Fewer or more bytes came back than were written.
    #[error("{found} bytes came back from the spool where {expected} were written")]
    Incomplete {
        /// Bytes written.
        expected: u64,
        /// Bytes that came back.
        found: u64,
    },
}
