//! The partitions of tables that are being copied, while the source attaches, creates and drops others.
//!
//! Kept by `handover` from the snapshot to the publish, and asked by `catch_up` whenever the copy's stream names a partition. A copy has
//! the partitions of its snapshot and reads no others ([`crate::source::ctid_ranges`]). What comes later is judged as it is for a table
//! that is followed: by [`crate::catalog::leaves`], from what is known of each partition. So a copy survives a partition that is created,
//! and one that is attached without rows, if a look finds it so before its first row. Otherwise a table to which partitions are attached
//! more often than its copy takes would never be copied.
//!
//! ```text
//! source    C ──── attached ────── row ──────────────────────────▶
//! looks     │  snapshot's    ▲ no block at X
//! copy      └──── read ──── indexed ──── stream: named behind X ── published, with what the last look has seen
//! ```
//!
//! A look is [`crate::preflight::fingerprints::look`], against what was seen last, and what it finds of other kinds changes nothing: it is
//! found again once the copy is published. TRUNCATEs that explain another file are not known here.
//!
//! Bounds: one look every [`LOOK_EVERY`], of partitioned tables only. It ends with this.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::catalog::leaves;
use crate::destination::{RememberedTable, Staging};
use crate::pg::{Ident, Lsn, RelationId};
use crate::preflight::fingerprints::{Truncations, look};
use crate::session::{FingerprintFacts, SessionError, Sql, SqlClient, read_description};
use crate::table_sync::ends::Ends;
use crate::transaction::SchemaChange;

/// A partition whose first row comes sooner after it was attached makes the copy begin again. A look is one question over the catalog
/// rows of the copied tables.
const LOOK_EVERY: Duration = Duration::from_secs(2);

type Seen = Arc<Mutex<HashMap<RelationId, RememberedTable>>>;

/// What is known of the partitions of the tables that are being copied.
pub(super) struct CopiedPartitions {
    seen: Seen,
    /// What the catalog said at the snapshot.
    snapshot: HashMap<RelationId, FingerprintFacts>,
    looking: JoinHandle<()>,
}

impl Drop for CopiedPartitions {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

impl CopiedPartitions {
    /// Begins to look, with what the snapshot shows.
    pub(super) fn begin(ends: Ends<'_>, staging: &Staging) -> CopiedPartitions {
        let mut seen = HashMap::new();
        for table in staging.tables.iter().filter(|table| table.is_tree()) {
            let id = table.source.relation_id();
            let (facts, leaves) = (staging.fingerprints.get(&id).cloned(), staging.leaves.get(&id).cloned());
            seen.insert(id, RememberedTable { name: table.live.clone(), facts, leaves: leaves.unwrap_or_default() });
        }
        let seen = Arc::new(Mutex::new(seen));
        let sql = Sql { purpose: "partitions", ..ends.addresses.source.clone() };
        let publication = ends.config.source.publication.clone();
        let looking = tokio::spawn(looks(sql, publication, Arc::clone(&seen)));
        CopiedPartitions { seen, snapshot: staging.fingerprints.clone(), looking }
    }

    /// These tables were read through their roots, and with them what was attached meanwhile: nothing that came is taken for empty.
    pub(super) fn read_through_root(&self, tables: &BTreeSet<RelationId>, staging: &Staging) {
        let mut seen = lock(&self.seen);
        for id in tables {
            if let (Some(table), Some(leaves)) = (seen.get_mut(id), staging.leaves.get(id)) {
                table.facts = None;
                table.leaves = leaves.clone();
            }
        }
    }

    /// The copy's stream has named partitions in a transaction with this commit_lsn.
    ///
    /// # Errors
    /// Why rows may be lost: the table must be copied again.
    pub(super) fn named(&self, change: &SchemaChange, commit_lsn: Lsn) -> Result<Result<(), String>, SessionError> {
        let (table, _) = read_description(&change.description)?;
        let mut seen = lock(&self.seen);
        let (Some(now), Some(seen)) = (&table.partitions, seen.get_mut(&change.relation.id)) else { return Ok(Ok(())) };
        let named = leaves::named(&seen.leaves, &change.relation.leaves, now, &change.measured, commit_lsn);
        Ok(named.map(|after| seen.leaves = after))
    }

    /// Hands what is known now to the publish.
    pub(super) fn settle(&self, staging: &mut Staging) {
        for (id, seen) in lock(&self.seen).iter() {
            staging.leaves.insert(*id, seen.leaves.clone());
            if let (Some(facts), Some(snapshot)) = (&seen.facts, self.snapshot.get(id)) {
                staging.fingerprints.insert(*id, facts.clone().ahead_of(snapshot));
            }
        }
    }
}

fn lock(seen: &Seen) -> MutexGuard<'_, HashMap<RelationId, RememberedTable>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until it is aborted.
async fn looks(sql: Sql, publication: Ident, seen: Seen) {
    let mut session: Option<SqlClient> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let known: HashMap<RelationId, RememberedTable> = lock(&seen)
            .iter()
            .filter(|(_, table)| table.facts.is_some())
            .map(|(id, table)| (*id, table.clone()))
            .collect();
        if known.is_empty() {
            continue;
        }
        let looked = async {
            let client = match session.take() {
                Some(client) => client,
                None => sql.connect().await?,
            };
            Ok::<_, SessionError>((look(&client, &publication, &known, &Truncations::new()).await?, client))
        };
        match looked.await {
            Ok((found, client)) => {
                session = Some(client);
                let mut seen = lock(&seen);
                for new in found.harmless {
                    // The stream may have named some meanwhile: then the next look decides.
                    let is_as_it_was = |seen: &&mut RememberedTable| {
                        seen.leaves == new.before.leaves && seen.facts == new.before.facts
                    };
                    if let Some(seen) = seen.get_mut(&new.table).filter(is_as_it_was) {
                        tracing::debug!("the partitions of {} were looked at while it is copied", seen.name);
                        (seen.facts, seen.leaves) = (Some(new.facts), new.leaves);
                    }
                }
            }
            Err(error) => tracing::debug!("the partitions of copied tables cannot be looked at: {error}"),
        }
    }
}
