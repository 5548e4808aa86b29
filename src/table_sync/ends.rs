//! What the steps of a snapshot share: both ends, the tables, and what was taken and staged.
//!
//! Made by [`super`] once both ends are prepared; borrowed by every step. Plain data.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::catalog::fit::Transfer;
use crate::catalog::leaves::KnownLeaves;
use crate::config::Config;
use crate::destination::{Catalog, Deletes, Scope, Staging};
use crate::pg::{Lsn, QualifiedName, RelationId};
use crate::preflight::addresses::Addresses;
use crate::session::{FingerprintFacts, ReplicationSession};
use crate::source::{HeldSnapshot, SourceCatalog, TableLocks};
use crate::table_sync::readers::Reader;
use crate::telemetry::Telemetry;

/// What a snapshot needs of its surroundings.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) config: &'a Arc<Config>,
    pub(crate) addresses: &'a Addresses,
    pub(crate) telemetry: &'a Arc<Telemetry>,
}

/// Which snapshot is made.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// A stream is there, and its slot stays.
    pub(crate) live: bool,
    /// The command line that asked for it, and what it asked for.
    pub(crate) invocation: Option<(String, Scope)>,
    /// How many rows of a table may go.
    pub(crate) deletes: Deletes,
}

/// What is copied.
pub(crate) struct Tables<'a> {
    pub(crate) source: &'a SourceCatalog,
    pub(crate) destination: &'a Catalog,
    pub(crate) transfer: Transfer,
    /// No stream runs meanwhile.
    pub(crate) alone: bool,
}

/// What was copied, with the source let go again except for the slot's session.
pub(crate) struct Staged {
    pub(crate) staging: Staging,
    /// Rows of each table.
    pub(crate) sent: BTreeMap<QualifiedName, u64>,
    /// Tables whose partitions our role may not read one by one.
    pub(crate) through_root: BTreeSet<RelationId>,
    pub(crate) slot_session: ReplicationSession,
    pub(crate) consistent_point: Lsn,
}

pub(crate) struct TakenSnapshot {
    pub(crate) locks: TableLocks,
    pub(crate) readers: Vec<Reader>,
    pub(crate) slot_session: ReplicationSession,
    pub(crate) held: HeldSnapshot,
    pub(crate) consistent_point: Lsn,
    /// What the catalog says of the tables at the snapshot.
    pub(crate) fingerprints: HashMap<RelationId, FingerprintFacts>,
    /// The partitions that it shows.
    pub(crate) leaves: HashMap<RelationId, KnownLeaves>,
}
