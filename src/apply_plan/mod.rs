//! Transactions into batches, and batches into what the destination is to execute.
//!
//! Pure. In come [`crate::transaction::Step`]s from the channel; out goes work for `destination::apply`:
//! batches with the position that they stand for, and for each change the statement that carries it out.
//!
//! ```text
//! Step ─▶ batch::Batcher ─▶ Work ─▶ coalesce ─┬─▶ sets ───────┬─▶ (SQL, parameters, COPY data) ─▶ destination::apply
//!                                    ▲        └─▶ row_by_row ─┘
//!                 target, side effects: the destination's table, as far as it matters
//! ```
//!
//! All SQL that carries changes out is made here ([`sql`], [`source_wins_sql`]); names get into it as `Ident`s only.
//!
//! Invariants: a batch holds whole source transactions (I2), in their order (I1); *applying the plan to a database
//! equals applying the changes one by one*.

mod batch;
pub mod coalesce;
mod merge;
pub mod net_effect;
pub mod side_effects;
pub mod row_by_row;
pub mod sets;
mod table_activity;
pub mod source_wins;
pub mod source_wins_sql;
pub mod sql;
pub mod target;
pub mod target_guard;
pub mod unique_keys;

pub use batch::{
    ApplyTask, Batch, BatchLimits, BatchMember, BatchedTransaction, Batcher, LargeStep, TransactionEnd, Work,
};
