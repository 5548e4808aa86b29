//! The settings as they are meant: typed, with their units.
//!
//! Made by `values` from what the file and the environment say; taken by every later module. Plain data.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::connection_parts::ConnectionSettings;
use crate::pg::{Ident, QualifiedName, SlotName};

/// What to do when a row at the destination is not what the source's change expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// Roll back, wait, and say which row.
    Stop,
    /// Make the row as the source has it, and count.
    SourceWins,
}

/// What to do when a table changes its columns at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaChanges {
    /// Follow what is additive and loses nothing.
    Follow,
    /// Halt with the SQL to run.
    Stop,
}

/// How a TRUNCATE is carried out at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TruncateMode {
    /// By TRUNCATE: quick, but readers wait for the commit.
    Truncate,
    /// By DELETE: slower, and readers never wait.
    Delete,
}

/// What to do when the slot or its history is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSlotLost {
    /// End, and leave the decision to the operator.
    Stop,
    /// Make a new slot and reconcile all tables with a new snapshot.
    Resnapshot,
}

/// What to do where a role that is not trusted owns what is written: a table, its schema, a type of its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UntrustedOwners {
    /// Do not write: such a role can attach code at a moment that it chooses.
    Refuse,
    /// Write, and refuse code of theirs where it is found.
    Watch,
}

/// Which of the source's transactions are wanted, by their replication origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// All.
    Any,
    /// Only those that were not replicated to the source from elsewhere.
    None,
}

/// Whether a destination commit waits for its WAL to be flushed: `synchronous_commit` of the writing session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynchronousCommit {
    /// Do not wait; the ledger holds the feedback back until the WAL is flushed.
    Off,
    /// Wait for the local flush.
    Local,
    /// Wait for the local flush and that of synchronous standbys.
    On,
    /// Wait until synchronous standbys have written it.
    RemoteWrite,
    /// Wait until synchronous standbys have applied it.
    RemoteApply,
}

impl SynchronousCommit {
    /// The setting's value, as PostgreSQL spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            SynchronousCommit::Off => "off",
            SynchronousCommit::Local => "local",
            SynchronousCommit::On => "on",
            SynchronousCommit::RemoteWrite => "remote_write",
            SynchronousCommit::RemoteApply => "remote_apply",
        }
    }
}

/// `[source]`
#[derive(Clone, Debug)]
pub struct SourceSettings {
    /// Where the source is.
    pub url: ConnectionSettings,
    /// Our replication slot there.
    pub slot: SlotName,
    /// The publication that holds the tables.
    pub publication: Ident,
    /// A source that says nothing for so long is reconnected.
    pub timeout: Duration,
    /// How often a heartbeat is written, if at all.
    pub heartbeat_every: Option<Duration>,
}

/// By so much an answer may come later than the end of a wait for a lock, which the server reports.
pub const LOCK_MARGIN: Duration = Duration::from_secs(10);

impl DestinationSettings {
    /// How long an answer of a writing session may take: it waits for locks up to `lock_timeout`, and that message is to come first.
    pub fn answer_max(&self) -> Duration {
        self.timeout.max(self.lock_timeout + LOCK_MARGIN)
    }
}

/// `[destination]`
#[derive(Clone, Debug)]
pub struct DestinationSettings {
    /// Where the destination is.
    pub url: ConnectionSettings,
    /// Whether commits wait for their flush.
    pub synchronous_commit: SynchronousCommit,
    /// How long a statement waits for a lock.
    pub lock_timeout: Duration,
    /// How long an answer may take before the destination counts as unreachable.
    pub timeout: Duration,
    /// Roles whose code may run with our rights, besides superusers and roles that may act as our role.
    pub trusted_roles: Vec<Ident>,
    /// What becomes of tables that belong to other roles.
    pub untrusted_owners: UntrustedOwners,
}

impl DestinationSettings {
    /// Whether owners that are not trusted are in the way.
    pub fn names_owners(&self) -> bool {
        self.untrusted_owners == UntrustedOwners::Refuse
    }
}

/// `[apply]`
#[derive(Clone, Copy, Debug)]
pub struct ApplySettings {
    /// Most changes of one destination transaction that is not a single source transaction.
    pub batch_rows_max: usize,
    /// Most bytes of one, as received.
    pub batch_bytes_max: usize,
}

/// `[spool]`
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// Where in-progress transactions go that memory does not hold.
    pub dir: PathBuf,
    /// How many bytes of such transactions are kept in memory.
    pub memory_bytes_max: u64,
    /// How much of them the directory holds, in bytes.
    pub bytes_max: u64,
}

/// `[snapshot]`
#[derive(Clone, Copy, Debug)]
pub struct SnapshotSettings {
    /// Parallel readers; `None`: what both servers and this machine bear.
    pub workers: Option<usize>,
    /// Most bytes read from the source per second.
    pub max_rate: Option<u64>,
    /// After this long the snapshot is reported as holding back the source's vacuum and WAL.
    pub max_duration: Option<Duration>,
}

/// `[http]`
#[derive(Clone, Copy, Debug)]
pub struct HttpSettings {
    /// Where metrics, health and the status page are served, if at all.
    pub listen: Option<SocketAddr>,
    /// More lag than this makes /readyz red.
    pub ready_lag_max: Duration,
}

/// All settings, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// The tables to keep equal, each once.
    pub tables: Vec<QualifiedName>,
    /// On a row that is not what a change expects.
    pub on_conflict: OnConflict,
    /// On changed columns.
    pub schema_changes: SchemaChanges,
    /// On TRUNCATE.
    pub truncate: TruncateMode,
    /// On a lost slot or history.
    pub on_slot_lost: OnSlotLost,
    /// Which transactions are wanted.
    pub origin: Origin,
    /// A leader that is silent for so long is replaced.
    pub leader_timeout: Duration,
    /// How long the stream may be held for a fence.
    pub fence_timeout: Duration,
    /// How often the running service verifies, if at all.
    pub verify_every: Option<Duration>,
    /// `[source]`
    pub source: SourceSettings,
    /// `[destination]`
    pub destination: DestinationSettings,
    /// `[apply]`
    pub apply: ApplySettings,
    /// `[spool]`
    pub spool: SpoolSettings,
    /// `[snapshot]`
    pub snapshot: SnapshotSettings,
    /// `[http]`
    pub http: HttpSettings,
}
