//! What /status, the page and `headwater status` tell: the facts in the form in which they are shown.
//!
//! Made by [`crate::telemetry::facts::Telemetry`] when it is asked, serialized as JSON by the HTTP server. Field names are those of the
//! metrics where there is one. Everything here is a number, a name or a text of our own: no row value, no password.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::pg::Lsn;
use crate::telemetry::state::State;

/// Something worth remembering.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, RFC 3339.
    pub at: String,
    /// What kind: state, restart, conflict, schema, takeover, snapshot, heartbeat.
    pub kind: String,
    /// What.
    pub text: String,
    /// How often, since headwater last streamed; `at` is the last time.
    pub times: u32,
}

/// A table's numbers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TableProgress {
    /// Rows inserted since the process began.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// Times truncated.
    pub truncates: u64,
    /// Rows copied by the current or last snapshot.
    pub snapshot_rows: u64,
    /// Bytes copied by it.
    pub snapshot_bytes: u64,
    /// Bytes expected, from the table's size on disk.
    pub snapshot_bytes_expected: u64,
    /// It is copied completely.
    pub snapshot_done: bool,
}

impl TableProgress {
    /// More is copied than was expected, and there is no telling how much is left.
    pub fn is_past_estimate(&self) -> bool {
        !self.snapshot_done && self.snapshot_bytes > 0 && self.snapshot_bytes >= self.snapshot_bytes_expected
    }

    /// How much is copied, 0 to 1.
    pub fn snapshot_ratio(&self) -> f64 {
        if self.snapshot_done {
            return 1.0;
        }
        if self.snapshot_bytes_expected == 0 {
            return 0.0;
        }
        // Sizes on disk and on the wire differ, so the estimate may overshoot: it is 1 only when it is done.
        (self.snapshot_bytes as f64 / self.snapshot_bytes_expected as f64).min(0.99)
    }
}

/// What a snapshot does, in this order, as far as there is something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPhase {
    /// Locks, the slot and staging tables.
    Preparing,
    /// Rows, from the source.
    Copying,
    /// Indexes over the copied rows.
    Indexing,
    /// Foreign keys among the copied rows, and statistics.
    Validating,
    /// What the source has committed since; only while a stream runs.
    CatchingUp,
    /// The copied rows with those that the tables have.
    Comparing,
    /// The transaction that shows the rows.
    Publishing,
}

impl SnapshotPhase {
    /// All there are.
    pub(super) const ALL: [SnapshotPhase; 7] = [
        SnapshotPhase::Preparing,
        SnapshotPhase::Copying,
        SnapshotPhase::Indexing,
        SnapshotPhase::Validating,
        SnapshotPhase::CatchingUp,
        SnapshotPhase::Comparing,
        SnapshotPhase::Publishing,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            SnapshotPhase::Preparing => "preparing",
            SnapshotPhase::Copying => "copying",
            SnapshotPhase::Indexing => "indexing",
            SnapshotPhase::Validating => "validating",
            SnapshotPhase::CatchingUp => "catching_up",
            SnapshotPhase::Comparing => "comparing",
            SnapshotPhase::Publishing => "publishing",
        }
    }

    /// What is done in it, in words.
    pub const fn words(self) -> &'static str {
        match self {
            SnapshotPhase::Preparing => "preparing the copy",
            SnapshotPhase::Copying => "copying",
            SnapshotPhase::Indexing => "building indexes",
            SnapshotPhase::Validating => "checking foreign keys and gathering statistics",
            SnapshotPhase::CatchingUp => "catching up with the stream",
            SnapshotPhase::Comparing => "comparing",
            SnapshotPhase::Publishing => "publishing",
        }
    }
}

/// How far the snapshot that runs has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotProgress {
    /// What it does now.
    pub phase: SnapshotPhase,
    /// For how long, in seconds.
    pub phase_seconds: f64,
    /// The tables that it copies, and no others.
    pub tables: Vec<String>,
    /// Steps of the phase that are done: tables, indexes, foreign keys.
    pub done: u64,
    /// Steps of the phase; 0 where they are not known.
    pub total: u64,
    /// How much of the phase is done, 0 to less than 1; `None` where that is not known.
    pub ratio: Option<f64>,
    /// About how long the phase still takes, in seconds; `None` where that cannot be said.
    pub seconds_left: Option<f64>,
    /// While it catches up: source WAL that is not in the copy yet, in bytes.
    pub wal_bytes_left: Option<u64>,
    /// Phase, tables and progress in words: `copying public.views 71 % (1 of 1)`.
    pub text: String,
}

/// The slot's health.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SlotHealth {
    /// `wal_status`
    pub wal_status: String,
    /// WAL that is kept for it, in bytes.
    pub retained_wal_bytes: u64,
    /// Bytes of WAL until it is in danger; `None` without a limit.
    pub safe_wal_bytes: Option<u64>,
    /// Seconds until it is lost at the recent rate; `None` without a limit, or while nothing is written.
    pub seconds_until_lost: Option<f64>,
}

/// Which two databases, through what.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StreamRoute {
    /// The source, `user@host:port/database`.
    pub source: String,
    /// The destination.
    pub destination: String,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
}

/// What a verification found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verified {
    /// When it ended, RFC 3339.
    pub at: String,
    /// Rows that differed.
    pub mismatched_rows: u64,
}

/// What /status tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// The state.
    pub state: State,
    /// Why it is in it, in words.
    pub reason: Option<String>,
    /// More about it.
    pub detail: Option<String>,
    /// What to do, where something is to be done.
    pub hint: Option<String>,
    /// How long it has been in it, in seconds.
    pub state_seconds: f64,
    /// Ready: streaming and within the lag threshold.
    pub ready: bool,
    /// Why it is not ready, in words.
    pub not_ready_because: Option<String>,
    /// More lag than this is not ready, in seconds.
    pub ready_lag_max_seconds: f64,
    /// Which two databases.
    pub route: StreamRoute,
    /// The position that is stored at the destination.
    pub position: Lsn,
    /// The position that is durable there and confirmed to the source.
    pub confirmed: Lsn,
    /// How far the source's WAL is flushed.
    pub source_flush_lsn: Lsn,
    /// Source WAL that is not reflected, in bytes; `None` while another instance leads.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest unapplied source commit, in seconds; `None` while another instance leads.
    pub lag_seconds: Option<f64>,
    /// Round trip of the last heartbeat, or the age of one that is on its way for longer, in seconds.
    pub heartbeat_lag_seconds: Option<f64>,
    /// Why there are no heartbeats, where there are none.
    pub heartbeat_off: Option<String>,
    /// Time since the last progress, in seconds; `None` while another instance leads.
    pub last_progress_age_seconds: Option<f64>,
    /// Source transactions applied since the process began.
    pub transactions_applied: u64,
    /// Row changes applied since the process began.
    pub rows_applied: u64,
    /// The replication slot.
    pub slot: Option<SlotHealth>,
    /// The tables by name.
    pub tables: BTreeMap<String, TableProgress>,
    /// Tables whose changes are passed over until they are copied again, as in `tables`.
    #[serde(default)]
    pub suspended: Vec<String>,
    /// Tables that are followed, and whose rows may be others than the source's until they are compared, as in `tables`.
    #[serde(default)]
    pub in_doubt: Vec<String>,
    /// Locks that sessions of ours have waited for, for more than 5 s, with their holders.
    #[serde(default)]
    pub waits: Vec<String>,
    /// Since when the snapshot runs, in seconds; `None` when none does.
    pub snapshot_seconds: Option<f64>,
    /// How far it has come.
    #[serde(default)]
    pub snapshot: Option<SnapshotProgress>,
    /// In-progress transactions kept in memory and files, in bytes.
    pub spool_bytes: u64,
    /// The last verification.
    pub verified: Option<Verified>,
    /// What happened lately, newest first.
    pub events: Vec<Event>,
    /// headwater's version.
    pub version: String,
    /// Process uptime in seconds.
    pub uptime_seconds: f64,
}
