//! The source: what it must be like, its slot and publication, its snapshot, its stream.
//!
//! I/O. In come settings and the destination's stored position; out go table definitions, rows under a
//! settled snapshot, and [`crate::transaction::Step`]s, for `supervisor` to pass on. It knows nothing of the
//! destination but positions.
//!
//! ```text
//! preflight ─ publication ─ slot ─┬─ snapshot: locks, slot, settled, exported again ─▶ readers
//!                                 └─ stream: messages ─▶ steps,  positions ─▶ status updates
//! ```
//!
//! Invariants: nothing is confirmed that the destination has not stored and flushed (I4); the source is not hurt: never
//! a synchronous standby, locks bounded, a table without replica identity is never added to a publication.

mod parallel_apply;
mod catalog;
mod collations;
mod relation_tracker;
mod error;
mod history;
mod hosts;
mod identity;
mod marks;
mod operator_classes;
mod step_router;
mod output_plugin;
mod ctid_ranges;
mod preflight;
mod publication;
mod published;
mod running;
mod schema_looks;
mod sequences;
mod slot;
mod snapshot;
mod step_channel;
pub mod stored_history;
mod stream;
mod subtransactions;
mod unseen;
mod upgraded;
mod withdrawal;

pub use crate::source::stored_history::{SourceDatabase, StoredHistory};
pub use catalog::{SourceCatalog, SourceTable};
pub use collations::collation_statements;
pub use ctid_ranges::{CTID_RANGE_BYTES, CtidRange, TableToRead, ctid_ranges};
pub use error::{LostCause, LostHistory, SourceError};
pub use history::{check_history, check_line, check_valid};
pub use hosts::{ChosenHost, choose_host};
pub use identity::{Identities, Unidentified};
pub use marks::Marks;
pub use operator_classes::{OperatorClass, operator_classes};
pub use output_plugin::try_plugin;
pub use parallel_apply::{Changes, SharedCoordinator};
pub use preflight::{SourceServer, same_database};
pub use publication::{
    GAP_OF_ALL, Gap, Notice, PUBLICATION_COMMENT, Relied, absent_then, ensure_publication, gap_report, try_publication,
};
pub use published::{PublishedTable, published_tables};
pub use relation_tracker::{RelationTracker, UnchangedTables, UnseenReport};
pub use running::{Running, RunningOwner, ending_hint, explain_slot_wait, lock_holder, running_transactions};
pub use schema_looks::{LookAsked, LooksAsked, SchemaLooks, schema_looks};
pub use sequences::source_sequences;
pub use slot::{Slot, check_slot, find_slot, release_slot, slot_unknown_report};
pub use snapshot::{HeldSnapshot, TableLocks, VisibleTransactions, hold_snapshot, lock_all, settled};
pub use step_channel::{StepReceiver, StepSender, step_channel};
pub use stream::{Confirmed, StreamReport, StreamSettings, StreamTask, stream};
pub use unseen::held_back_words;
pub use upgraded::kept_slot_position;
pub use withdrawal::{Withdrawal, withdraw};
