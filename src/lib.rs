//! headwater keeps a set of local PostgreSQL tables equal to the same tables of another PostgreSQL database.
//!
//! It takes one full snapshot in foreign-key order, shows it to readers in one instant, then follows the source's
//! logical replication stream (pgoutput) indefinitely, and applies every insert, update, delete and truncate transactionally.
//!
//! # The data's way
//!
//! ```text
//!         source PostgreSQL                                          destination PostgreSQL
//!              │  ▲                                                        ▲
//!     CopyData │  │ StandbyStatusUpdate                    position + rows │ one pipelined request, one transaction
//!              ▼  │                                                        │
//!   source::stream ── wire ── transaction ──── Step ────▶ apply_plan ── destination::apply
//!   task 1: owns the socket, the relation    bounded       task 2: owns the batch and the
//!   cache and what is confirmed              channel       writing session
//!              ▲                                                        │
//!              └───────── watch: position, stored and flushed ◀─────────┘
//! ```
//!
//! Two tasks, two channels, one replication loop. Whole source transactions go forward (large ones in pieces). One position, which
//! only grows, comes back, and task 1 confirms nothing else. Another task (`apply_worker::parallel_apply`) applies a large transaction
//! in progress, and commits it when it is its turn; `apply_core` decides for both. The monitor and the HTTP server run outside the loop.
//!
//! # The modules
//!
//! The order of the lines below is the reading order and the dependency order: a module imports only modules above it, and its files
//! import each other in one direction. A module is pure (no clock, socket, file, log or async) or does I/O, never both.
//! tests/architecture.rs checks all of this.

pub mod pg;
pub mod sql;
pub mod config;
pub mod wire;
pub mod progress;
pub mod catalog;
pub mod transaction;
pub mod apply_plan;
pub mod apply_core;
pub mod schema_change;
pub mod comparison;
#[cfg(test)]
pub(crate) mod testing;
pub mod telemetry;
pub mod spool;
pub mod session;
pub mod source;
pub mod destination;
pub mod error_policy;
pub mod preflight;
pub mod apply_worker;
pub mod table_sync;
pub mod verification;
pub mod supervisor;
pub mod maintenance;
pub mod commands;
