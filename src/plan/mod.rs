//! Transactions into batches, and batches into what the destination is to execute.
//!
//! Room 5, pure. In come [`crate::transaction::Step`]s from the channel; out goes work for `destination::apply`:
//! batches with the position that they stand for, and for each change the statement that carries it out.
//!
//! ```text
//! Step ─▶ batch::Batcher ─▶ Work ─▶ net ─┬─▶ sets ───────┬─▶ (SQL, parameters, COPY data) ─▶ destination::apply
//!                                    ▲   └─▶ statement ──┘
//!                 schema, target, reaction: the destination's catalog as data
//! ```
//!
//! Here also: whether a table fits its source (`fit`, and `carry` for its values), what of its constraints an older
//! destination lacks (`features`), whether one that refused a row is the source's (`difference`), what it needs when the
//! source's has changed (`shape`, `evolution`), whether its rows may be others than the stream has told (`fingerprint`),
//! the order in which foreign keys let tables be filled (`order`), whether a server has room for a copy's locks (`locks`),
//! and all SQL that is generated (`sql`), for every room that needs some; names get into it as `Ident`s only.
//!
//! Invariants: a batch holds whole source transactions (I2), in their order (I1); *applying the plan to a database
//! equals applying the changes one by one*.

pub mod attributes;
mod batch;
mod carry;
pub mod conflict;
pub mod difference;
pub mod evolution;
pub mod expression;
pub mod features;
pub mod fingerprint;
pub mod fit;
pub mod identity;
pub mod locks;
mod merge;
pub mod net;
pub mod not_carried;
pub mod order;
mod reaction;
pub mod schema;
pub mod sequences;
pub mod shape;
pub mod sets;
pub mod sql;
pub mod statement;
pub mod target;
pub mod verify;
#[cfg(test)]
pub(crate) mod testing;

pub use batch::{Batch, BatchLimits, Batcher, Member, Work};
