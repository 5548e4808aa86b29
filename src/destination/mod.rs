//! The destination: its catalog, its tables, the rows, and the position among them.
//!
//! I/O. In come `apply_plan`'s work (from `apply_worker::apply_loop`) and, for a snapshot, table definitions and rows;
//! out go committed transactions and the position that they stand for. It knows nothing of the source but what those
//! carry.
//!
//! ```text
//! bookkeeping ── what this destination is fed from, and how far        (headwater.stream, .position, .tables)
//! catalog ────── the tables as they are here
//! fences ─────── requests for one state of both ends, and this end's half of it
//! owner, foreign_code ── whose the bookkeeping is, and whose code would run when rows are written
//! other_tables ── tables that have a followed one's name and are not the one that was filled
//! leadership ─── who leads: one advisory lock (lock), in a session of its own; sessions: what a leader leaves behind
//! writer ─────── the session that writes, and the one conditional position
//! apply ──────── work into pipelined requests, answers into progress
//! conflict ───── what becomes of a transaction that the rows here do not allow; dead_letter: of one left out;
//!                open_conflict: the change that halts the service
//! schema, staging (staging_schema), build, compare, publish ── a snapshot, from missing tables to one visible instant
//! taken_names ── what has the names that new tables need
//! expressions, review ── what the source's expressions may use, and what became of them
//! orphans ────── foreign keys that the copied rows violate
//! resnapshots ── snapshots that were asked for and are not made yet; unfollow: tables that are configured no longer
//! ```
//!
//! Invariants: the position moves in the transaction that its rows are in (I3), first, and only from where this
//! instance left it; a destination commit holds whole source transactions (I2).

mod apply;
mod bookkeeping;
mod build;
mod catalog;
mod collations;
mod compare;
mod conflict;
mod dead_letter;
mod dead_letter_format;
mod error;
mod expressions;
mod extensions;
mod fences;
mod fingerprints;
pub(crate) mod first_row;
mod foreign_code;
mod formats;
mod leadership;
mod lock;
pub mod misfits;
pub(crate) mod name_taken;
mod open_conflict;
mod origin;
mod orphans;
pub mod other_table;
mod other_tables;
mod owner;
mod preflight;
mod publish;
mod replay;
mod reshape;
mod resnapshots;
mod review;
mod dependants;
mod row_values;
mod schema;
mod sequences;
mod sessions;
mod shapes;
mod source_tables;
mod staging;
mod staging_schema;
mod taken_names;
mod unfollow;
mod unsuited;
mod writer;

pub use crate::destination::dead_letter_format::{describe, describe_with_values, row_text};
pub use crate::destination::misfits::misfit_report;
pub use crate::destination::other_table::{Filled, OtherTable, OtherTables};
pub use apply::{
    Answered, Applied, Applier, ApplierSettings, ApplyContext, FIND_PREPARE, Followed, ParallelAnswered,
    ParallelApplied, ParallelApplier, renamed_report,
};
pub use bookkeeping::{
    Bookkeeping, RefusedCopy, SourceDatabaseRecord, Stream, StreamState, TableRecord, TableState, table_records,
};
pub use catalog::{Catalog, DestinationTable, TableToCount};
pub use collations::{LooserCollations, nondeterministic_collations};
pub use compare::{Comparison, DifferingRows, ListedDifferences, Lists};
pub use conflict::{ConflictPolicy, Repair};
pub use dead_letter::{
    DeadLetter, PendingSkip, WantedLetters, dead_letters, parts, pending_skips, read_part, request_skip, skips,
};
pub use error::{Conflict, ConflictKind, DestinationError, FailedChange, KeyRefusal, Silent};
pub use expressions::read as expressions_here;
pub use extensions::extension_hint;
pub use fences::{
    FenceAnswer, FenceKind, HeldDestination, MadeFence, RepairOutcome, answer_failed, answer_made, answer_repaired,
    ask_for_fence, beat, ensure_fence_requests, ensure_reading, hold_destination, is_fence_wanted, keys_of_repair,
    next_fence_request, refuse_fence_requests, take_up_fence_request, withdraw_fence,
};
pub use fingerprints::{
    NewFacts, RememberedTable, all_fingerprints, remember_fingerprints, remembered_fingerprints, set_passed,
};
pub use foreign_code::{ForeignCode, Writes, missing_roles_report, refuse_foreign_event_triggers};
pub(crate) use foreign_code::{named_collations, named_types, types_of};
pub use leadership::{Candidate, Lead, Led, LockAttempt, LockSettings, terminate};
pub use lock::{Holder, LockHolders};
pub use open_conflict::{OpenConflict, forget_passed_conflict, open_conflict, remember_conflict};
pub use origin::{Marking, OriginEnd, drop_origins};
pub use other_tables::{BoundAnew, other_tables, other_tables_report, refuse_other_tables, refuse_unasked};
pub use owner::{bookkeeping_report, check_bookkeeping, check_bookkeeping_owner, writers_of_all_report};
pub use preflight::DestinationServer;
pub use publish::{Deletes, ExchangeReason, Publication, PublishOutcome, PublishPosition, exchange_obstacle};
pub use replay::{ReplayRequest, Replayed, replay};
pub use reshape::{Original, reshape};
pub use resnapshots::{AskedBy, AutomaticCopy, Pace, Request, RequestOrigin, RequestState, Scope};
pub use row_values::{ShownChange, ShownRow, ShownValue, shown_changes};
pub use schema::{missing_collations, missing_types, needed_types, operator_classes_here};
pub use sequences::{FollowedSequences, follow_sequences};
pub use sessions::{Leftovers, connect_recorded, terminate_leftovers};
pub use shapes::shapes;
pub use source_tables::SourceTables;
pub use staging::{Mode, NewForeignKey, STATEMENT_MAX, StagedTable, Staging, TableToCopy};
pub use staging_schema::{StagingSchema, Swept, sweep};
pub use taken_names::taken_names;
pub use unfollow::LooseForeignKey;
pub use unsuited::refuse_other_kinds;
pub use writer::{ReplicationRole, Writer, WritingSettings, position_missing_report};
