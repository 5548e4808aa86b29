//! Tasks into pipelined requests, answers into progress.
//!
//! In come [`ApplyTask`](crate::apply_plan::ApplyTask)s, one after the other; out go requests through a writing session, and for each the
//! position that it has stored and what its row counts say ([`Applied`]). Called by `apply_worker::apply_loop` for the live stream, by
//! `apply_worker::parallel_apply` for a transaction before it commits, and by `table_sync::catch_up` for a staging schema.
//!
//! ```text
//!   Applier ─────────────────────────── or ─────────────────────── ParallelApplier
//!   order: sent and stored position, retry queue,                  one transaction, no position until its commit;
//!   open large transaction, waiting schema change                  an error ends it, and the leader's applier does it
//!      │
//!      ├─ requests(map, task) ──▶ Encoded: bytes, statement offsets, counted rows       encoder ◀─ rows, sets
//!      ├─ Pipeline ═ requests ═▶ destination ═ answers ═▶                               owns the session; two in flight
//!      ├─ RelationMap: relation ──▶ table, prepared statements; catalog, followed tables
//!      ├─ SchemaFollower: a table that the stream describes in another way              between two chunks
//!      └─ failure::response(task, error) ──▶ again (how), or the error that ends the attempt
//! ```
//!
//! The requests, one line a transaction:
//!
//! ```text
//! a batch:            BEGIN · advance(p, end_lsn) · rows … · COMMIT · Sync
//! a large one:        BEGIN · advance(p, p) · Sync   rows … · Sync   …   advance(p, end_lsn) · COMMIT · Sync
//!                                             └ sent only once the server says that it is inside a transaction
//! a changed table:    between two chunks of a large one, once those before are answered: `schema_follower`
//! parallel apply:     BEGIN · Sync   rows … · Sync   …   advance(p, end_lsn) · COMMIT · Sync      `parallel_apply`
//! an idle position:   BEGIN · SET LOCAL synchronous_commit = local · advance(p, wal_end) · COMMIT · Sync
//! ```
//!
//! Changes are carried out by their net effect, in sets. After an error: wait for the last outstanding Sync, ROLLBACK, read the
//! position, decide. A batch that met a row's error is done again row by row, in the original order, then one
//! source transaction at a time, so that those before it are applied and the one that fails is known; only then is it a
//! conflict. Originals are kept until COMMIT is answered with COMMIT.
//!
//! Invariants: the position is advanced first, from where this instance left it (I3); what is between BEGIN and
//! COMMIT is whole source transactions (I2).
//!
//! The files import each other in the order of their `mod` lines.

mod followed;
mod settings;
mod prepared;
mod relation_map;
mod encoder;
mod rows;
mod sets;
mod requests;
mod failure;
mod conflict_report;
mod schema_follower;
mod pipeline;
mod applier;
mod parallel_apply;

pub use applier::{Answered, Applied, Applier};
pub use conflict_report::FIND_PREPARE;
pub use followed::Followed;
pub use parallel_apply::{ParallelAnswered, ParallelApplied, ParallelApplier};
pub use schema_follower::renamed_report;
pub use settings::{ApplierSettings, ApplyContext};
