//! Messages into committed transactions.
//!
//! Pure. In come pgoutput's messages, in the order of the stream, from `source::stream`; out go [`Step`]s for
//! `apply_plan`: whole transactions, or for those larger than a chunk their begin, chunks and commit.
//!
//! ```text
//!                 Begin                    Commit
//!   outside ──────────────▶ transaction ───────────▶ outside          Step::Transaction
//!                               │ larger than a chunk
//!                               ▼
//!                        large transaction ────────▶ outside          Step::Begin, Chunk…, Commit
//! ```
//!
//! A transaction that is still in progress arrives in parts between others (protocol 2 and later). Its changes leave as
//! records for `spool` and come back at its commit; streams.rs and replay.rs draw that.
//!
//! Invariants: source transactions come out in the order of their commits (I1), because the stream has that order; a
//! change is never in a step before the Relation that describes it; every message has its place or ends the run
//! (I10); at most one chunk is held here (I8).
//!
//! The relation cache lives here and is replaced entry by entry: a Relation holds from its message on. Changes
//! share their relation by `Arc`, so that a later Relation does not change what an earlier change meant. Each stream has
//! an overlay of it, merged at its commit and dropped when it is rolled back.

mod assembler;
mod change;
mod chunks;
mod dead_letter;
pub mod error;
pub mod output;
mod record;
mod relations;
mod replay;
mod schema_mark;
pub mod spool_order;
mod streams;

pub use crate::transaction::dead_letter::{LetterError, read_letter, write_letter};
pub use crate::transaction::error::{RecordError, TransactionError};
pub use crate::transaction::output::Output;
pub use crate::transaction::spool_order::{Records, SpoolOrder};
pub use assembler::Assembler;
pub use change::{Change, Chunk, Heartbeat, RowChange, SchemaChange, Step, Transaction};
pub use chunks::ChunkBuilder;
pub use record::{read_changes, write_change};
pub use relations::TableSet;
pub use replay::Replay;
pub use schema_mark::{Objects, SCHEMA_MARK_PREFIX, SchemaMark};
