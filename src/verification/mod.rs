//! Verify: whether the destination equals the source, exactly, while both are being written.
//!
//! Both sides are read under the two snapshots of a `verification::fence`, so they are the same state or they differ; there
//! is no quiet period, no re-check loop and no false alarm. The comparison is [`crate::comparison`]'s: sums of
//! hashes, computed by the servers over ranges of pages, drilled down to keys where they differ.
//!
//! ```text
//! look at both tables' files ─▶ fence ─▶ compare ─▶ look at the files again ─▶ verdict
//!      ▲                                                      │ another file: TRUNCATE or a rewrite in between, which
//!      └──────────────── that table once more ◀───────────────┘ no snapshot protects from (they are not MVCC-safe)
//! ```
//!
//! A table whose changes do not arrive at the fence has nothing to be compared with. Verify skips it, and the verdict says so
//! (`LeftOut`). The destination's own snapshot shows whether they arrive, so a table that is suspended in the moment
//! of the fence is no false alarm either.
//!
//! No lock is held on any table for longer than one range of pages is read; so neither the source's own DDL nor the
//! apply of a TRUNCATE waits for a verify.
//!
//! Who makes the fence: the leader, asked through the bookkeeping (`run`) or by itself (`verify_every`, `service`). When no
//! instance leads, verify compares the source at C with the destination as it stands, and counts what was not applied yet as a
//! difference. Where it finds some, it makes sure once more that no instance leads, since a service that restarts its stream
//! leads nothing for a moment.
//!
//! Bounds: `fence_timeout` for a fence, and for a lock of another session; `preflight::waits` reports what verify waits for;
//! `workers` sessions a side; one range of pages a statement; `Bounds` of what is looked at row by row.

pub(crate) mod compare;
pub(crate) mod fence;
pub(crate) mod fence_request;
mod images;
pub mod left_out;
mod parts;
pub(crate) mod repair;
pub(crate) mod repair_loop;
pub(crate) mod service;
mod tables;
pub mod verdict;
mod workers;
