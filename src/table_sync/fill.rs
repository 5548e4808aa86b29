//! Filling: all tables exist and are empty, so the rows go straight into them, in the transaction that publishes them.
//!
//! Called by `super` where no stream runs meanwhile. Staging would be a detour then: what a COPY writes many rows at a
//! time, INSERT … SELECT would write one by one. Nobody sees a row before COMMIT, and a failure leaves nothing but space
//! that VACUUM gives back. One writer, since one transaction has one session; parents before children.
//!
//! Each range is behind a savepoint: a connection to the source that is lost costs a range, as it does in `copy`. Where
//! foreign keys act a table is one range, because a row may point at a later one of its own table.
//!
//! Bounds: what the pipe holds; `snapshot.max_rate`.

use std::time::Instant;

use super::copy::to_read;
use super::readers::{Copied, CopyRate, RETRIES_MAX, Reader, in_the_way, is_lost_source, pause_before_retry};
use crate::comparison::reconcile_sql as sql;
use crate::destination::{Catalog, DestinationError, Mode, Publication, StagedTable, Staging};
use crate::error_policy::Fault;
use crate::pg::{QualifiedName, RelationId};
use crate::session::{CopyError, CopyOut, SessionError, SqlClient, fingerprint_facts};
use crate::source::{CtidRange, SourceError, ctid_ranges};
use crate::sql::table_guard::{is_table, refuse_others};
use crate::table_sync::ends::{Ends, TakenSnapshot};
use crate::table_sync::snapshot_guard::keep_holder;
use crate::telemetry::{SnapshotPhase, failpoint};

/// Whether this is the way to publish. COPY does not take rows where row level security is in force.
pub(super) fn is_possible(staging: &Staging, destination: &Catalog) -> bool {
    staging
        .tables
        .iter()
        .all(|table| table.mode == Mode::Fill && destination.table(&table.live).is_some_and(|live| !live.row_security))
}

/// Publishes `publication` by filling its tables; returns how many rows there were.
pub(super) async fn publish(
    ends: Ends<'_>,
    publication: &Publication<'_>,
    taken: TakenSnapshot,
    slot: &str,
    client: &SqlClient,
) -> Result<u64, Fault> {
    let TakenSnapshot { locks, readers, slot_session, held, .. } = taken;
    slot_session.close().await;
    let mut readers = readers.into_iter();
    let mut filling = Filling {
        ends,
        client,
        tables: publication.staging.tables.iter().map(|table| table.live.clone()).collect(),
        snapshot_name: held.snapshot_name.clone(),
        reader: readers.next(),
        rate: CopyRate::new(ends.config.snapshot.max_rate, Instant::now()),
        through_root: Vec::new(),
    };
    drop(readers);
    let mut rows = 0;
    ends.telemetry.snapshot_phase(SnapshotPhase::Copying, []);
    let filled = async {
        tokio::select! {
            filled = filling.all(locks.client(), publication.staging) => rows = filled?,
            lost = keep_holder(ends, &held, slot) => return Err(lost),
        }
        failpoint::reached("snapshot.staged");
        // The snapshot must have been held to the end; otherwise rows of two moments may be mixed.
        held.release().await?;
        ends.telemetry.snapshot_phase(SnapshotPhase::Publishing, []);
        Ok(locks.release().await?)
    };
    publication.run_filling(client, filled).await?;
    Ok(rows)
}

struct Filling<'a> {
    ends: Ends<'a>,
    client: &'a SqlClient,
    tables: Vec<QualifiedName>,
    snapshot_name: String,
    reader: Option<Reader>,
    rate: CopyRate,
    /// Partitioned tables that were read through their roots.
    through_root: Vec<RelationId>,
}

impl Filling<'_> {
    async fn all(&mut self, locks: &SqlClient, staging: &Staging) -> Result<u64, Fault> {
        let sql = "SELECT pg_catalog.current_setting('session_replication_role') <> 'replica'";
        let row = self.client.query_one("filling a table", sql, &[]).await;
        let foreign_keys_act: bool = row.and_then(|row| row.get(0)).map_err(DestinationError::Session)?;
        let mut rows = 0;
        if foreign_keys_act {
            for table in &staging.tables {
                if table.is_tree() {
                    self.through_root.push(table.source.relation_id());
                }
                let whole = CtidRange::whole(&table.source);
                rows += self.table(table, &[whole]).await?;
            }
        } else {
            let ranges = ctid_ranges(locks, &to_read(staging)?).await?;
            for (table, ranges) in staging.tables.iter().zip(ranges) {
                if ranges.iter().any(|range| range.whole_tree) {
                    self.through_root.push(table.source.relation_id());
                }
                rows += self.table(table, &ranges).await?;
            }
        }
        self.refuse_attached(locks, staging).await?;
        Ok(rows)
    }

    /// Read through the root were also partitions that were attached since the snapshot. None of them is gone while the table is locked.
    async fn refuse_attached(&self, locks: &SqlClient, staging: &Staging) -> Result<(), Fault> {
        let publication = &self.ends.config.source.publication;
        let now = fingerprint_facts(locks, &self.through_root, publication).await.map_err(SourceError::Session)?;
        for table in &staging.tables {
            let (id, known) = (table.source.relation_id(), staging.leaves_of(table)?);
            let Some(now) = now.get(&id) else { continue };
            if now.leaves(id).map_err(SourceError::Session)?.known.iter().any(|leaf| known.is_unknown(*leaf)) {
                let what =
                    format!("a partition was attached to table {} while it was read through its root", table.live);
                return Err(DestinationError::StagingLost(what).into());
            }
        }
        Ok(())
    }

    async fn table(&mut self, table: &StagedTable, ranges: &[CtidRange]) -> Result<u64, Fault> {
        let filter = table.row_filter.as_deref();
        let mut rows = 0;
        for range in ranges {
            let copy_out = sql::copy_out(&range.relation, &table.route, range.whole_tree, filter, range.pages);
            rows += self.range(table, &copy_out).await?;
        }
        self.ends.telemetry.snapshot_table_done(&table.live);
        Ok(rows)
    }

    async fn range(&mut self, table: &StagedTable, copy_out: &str) -> Result<u64, Fault> {
        const DOING: &str = "keeping a piece apart";
        let mut retries = 0;
        loop {
            let begun = self.client.batch(DOING, "SAVEPOINT headwater_piece").await;
            begun.map_err(DestinationError::Session)?;
            let mut copied = Copied::default();
            let fault = match self.transfer(table, copy_out, &mut copied).await {
                Ok(rows) => {
                    let ended = self.client.batch(DOING, "RELEASE SAVEPOINT headwater_piece").await;
                    ended.map_err(DestinationError::Session)?;
                    return Ok(rows);
                }
                Err(fault) => fault,
            };
            self.ends.telemetry.snapshot_taken_back(&table.live, copied.rows, copied.bytes);
            self.reader = None;
            retries += 1;
            if retries > RETRIES_MAX || !is_lost_source(&fault) {
                return Err(fault);
            }
            tracing::warn!("a reader's connection to the source was lost, its piece is read again: {fault}");
            let back = "ROLLBACK TO SAVEPOINT headwater_piece; RELEASE SAVEPOINT headwater_piece";
            self.client.batch(DOING, back).await.map_err(DestinationError::Session)?;
            tokio::time::sleep(pause_before_retry(retries)).await;
        }
    }

    async fn transfer(&mut self, table: &StagedTable, copy_out: &str, copied: &mut Copied) -> Result<u64, Fault> {
        let Ends { config, telemetry, .. } = self.ends;
        let timeout = config.destination.timeout;
        let source = |error: SessionError| Fault::Source(SourceError::Session(error));
        let destination = |error: SessionError| Fault::Destination(DestinationError::Session(error));
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => none.insert(Reader::open(config, &self.tables).await?),
        };
        reader.take_snapshot(&self.snapshot_name, timeout).await?;
        let outgoing = CopyOut::start(&mut reader.connection, copy_out, timeout).await;
        let mut outgoing = outgoing.map_err(|error| in_the_way(error, &table.live))?;
        // Nothing waits for a lock from here on: this transaction holds a stronger one.
        let guard = refuse_others(std::iter::once(is_table(&table.live)));
        self.client.statement("filling a table", &guard).await.map_err(destination)?;
        let copy_in = sql::copy_in(&table.live, &table.route);
        let at_table = |error: SessionError| destination(error.at(&format!("Table {} was being filled.", table.live)));
        let mut incoming = self.client.copy_in("filling a table", &copy_in).await.map_err(at_table)?;
        loop {
            let moved = outgoing.transfer_into(&mut incoming).await.map_err(|error| match error {
                CopyError::Source(error) => source(error),
                CopyError::Destination(error) => at_table(error),
            })?;
            telemetry.snapshot_copied(&table.live, moved.messages, moved.bytes);
            copied.rows += moved.messages;
            copied.bytes += moved.bytes;
            failpoint::reached("snapshot.copying");
            let wait = self.rate.spend(moved.bytes, Instant::now());
            if moved.done {
                break;
            }
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
        // The source must confirm its end of the data before the destination receives the end.
        outgoing.finish().await.map_err(source)?;
        // Triggers that fire behind a statement have fired by then.
        let rows = incoming.finish().await.map_err(at_table)?;
        self.client.statement("filling a table", &guard).await.map_err(destination)?;
        Ok(rows)
    }
}
