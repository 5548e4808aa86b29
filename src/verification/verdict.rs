//! What a comparison is asked for, how far it is, and what it has found.
//!
//! Made by `compare` and `repair_loop`, shown by `commands`. Plain data.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::comparison::{Bounds, Differences, Key};
use crate::destination::RepairOutcome;
use crate::pg::{Ident, Lsn, QualifiedName};
use crate::verification::left_out::LeftOut;

/// What the operator asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// These tables only; all when empty.
    pub tables: Vec<QualifiedName>,
    /// Sessions a side; `None`: as many as this machine has cores, at most 4.
    pub workers: Option<usize>,
    /// Most bytes read a second, on each side.
    pub max_rate: Option<u64>,
    /// Name the columns that differ.
    pub columns: bool,
    /// Put the differing rows right, at a second fence.
    pub repair: bool,
    /// Without a running service: apply up to the fence first.
    pub catch_up: bool,
    /// Compare both sides as they stand, without a fence.
    pub no_fence: bool,
    /// How much is looked at row by row.
    pub bounds: Bounds,
}

/// The progress of a verify, read by the code that shows it.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of both sides' tables that are to be read, as far as known.
    pub bytes_total: AtomicU64,
    /// Bytes read.
    pub bytes_done: AtomicU64,
}

impl VerifyProgress {
    pub(crate) fn expect(&self, bytes: u64) {
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A table's comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableVerdict {
    /// The table.
    pub table: QualifiedName,
    /// Rows at the source.
    pub source_rows: u64,
    /// Rows at the destination.
    pub destination_rows: u64,
    /// How they differ.
    pub differences: Differences,
    /// The columns of the key; empty for a table without one.
    pub key: Vec<Ident>,
    /// Which columns differ, for keys whose rows do, when asked for.
    pub columns: Vec<(Key, Vec<Ident>)>,
    /// Columns that only one side has, so that they were not compared.
    pub not_compared: Vec<Ident>,
    /// Columns of which so many values are not what their text says, so that they could not be compared exactly.
    pub inexact: Vec<(Ident, u64)>,
    /// Columns that the destination generates.
    pub generated: Vec<Ident>,
}

/// Why a repair is given up while rows differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairStop {
    /// Just the rows that were repaired differ: the destination generates or changes what is written.
    Unchanged,
    /// Rows differ that did not before: something else writes to the destination.
    Disturbed,
    /// Too many rows differ to be repaired one by one.
    TooMany,
}

/// What a repair has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// What it wrote.
    pub outcome: RepairOutcome,
    /// The tables that differ all the same, as they were found afterwards.
    pub left: Vec<TableVerdict>,
    /// Why it was given up; `None` where nothing is left, or where tables could not be compared.
    pub stop: Option<RepairStop>,
    /// Tables that could not be compared afterwards.
    pub left_out: Vec<LeftOut>,
    /// Where both sides were compared afterwards.
    pub consistent_point: Lsn,
}

/// What a verify has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The source's state: every transaction with commit_lsn before this.
    pub consistent_point: Lsn,
    /// The destination's stored position in the state that was compared.
    pub destination_position: Lsn,
    /// Both states are the same one; otherwise what was not applied yet counts as a difference.
    pub at_fence: bool,
    /// The tables.
    pub tables: Vec<TableVerdict>,
    /// Tables that could not be compared, because their changes do not arrive.
    pub left_out: Vec<LeftOut>,
    /// What a repair has done about it.
    pub repaired: Option<Repaired>,
    /// From the fence on.
    pub took: Duration,
}

impl Verdict {
    /// Rows that differ, as far as they are listed.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.differences.rows()).sum()
    }

    /// Whether all that was compared is equal.
    pub fn is_equal(&self) -> bool {
        self.tables.iter().all(|table| table.differences.is_empty())
    }

    /// Whether both sides are shown to be equal, after the repair if there was one: no table differs, none was left out, and all values
    /// could be compared.
    pub fn is_proof(&self) -> bool {
        let equal = match &self.repaired {
            Some(repaired) => repaired.left.is_empty() && repaired.left_out.is_empty(),
            None => self.is_equal(),
        };
        equal && self.left_out.is_empty() && self.tables.iter().all(|table| table.inexact.is_empty())
    }
}
