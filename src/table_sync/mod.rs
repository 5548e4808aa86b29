//! A snapshot: locks, slot, settled snapshot, parallel copy into staging, one publish.
//!
//! Second part of an attempt, where there is no position yet or a new copy of all tables is asked for. The steps, and
//! what a crash after each leaves for the next start:
//!
//! | step | a crash here leaves |
//! |---|---|
//! | row `creating` committed (only without a live stream) | the row: whatever slot has our name is ours, dropped |
//! | ACCESS SHARE on all tables, by every reader | nothing: it goes with the sessions |
//! | slot created, snapshot settled and exported again | the row and the slot (a temporary slot goes with its session) |
//! | staging created and filled (`copy`) | staging of an old generation, swept |
//! | or, all tables being there and empty: they are filled by the publish itself (`fill`) | nothing |
//! | source let go, indexes built, differences listed | the same |
//! | published | a live position: stream on |
//!
//! With a live stream that does not run yet the copy is made under a temporary slot, and publishing moves the position
//! forward to its consistent point; the permanent slot then streams on from there. Until then the old data serves.
//! While a stream runs, `handover` takes the same steps up to the publish.
//!
//! Bounds: `snapshot.workers` copies at a time, each holding what its pipe holds; `snapshot.max_rate` for all of them
//! together.

mod catch_up;
mod copied_partitions;
mod copy;
pub(crate) mod ends;
mod fill;
pub(super) mod handover;
pub(super) mod lock_budget;
mod readers;
mod resync_queue;
mod snapshot_guard;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use self::copy::CopiedTables;
use self::readers::stand_in_the_way;
use crate::catalog::fingerprint::Member;
use crate::catalog::fit::as_created;
use crate::catalog::leaves::KnownLeaves;
use crate::comparison::reconcile_sql as sql;
use crate::config::SchemaChanges;
use crate::destination::{
    Bookkeeping, Catalog, Comparison, DestinationError, DifferingRows, ListedDifferences, Lists, Mode, Publication,
    PublishPosition, RequestOrigin, RequestState, STATEMENT_MAX, Scope, StagedTable, Staging, Stream, StreamState,
    TableToCopy, TableToCount, Writes, connect_recorded,
};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, QualifiedName, RelationId, SlotName, counted};
use crate::preflight::enum_labels::labels_for_copy;
use crate::preflight::fingerprints::end_of_wal;
use crate::preflight::leadership::sweep_staging;
use crate::preflight::prepare::{Prepared, table_format};
use crate::preflight::replication_session::connect_replication;
use crate::preflight::resync_requests::name_of;
use crate::session::{
    Clients, CreatedSlot, FingerprintFacts, ReplicationSession, SessionError, SlotSnapshot, SqlClient,
    fingerprint_facts, vacancy,
};
use crate::source::{
    SourceCatalog, SourceError, TableLocks, explain_slot_wait, hold_snapshot, release_slot, running_transactions,
};
use crate::table_sync::lock_budget::LockRoom;
use crate::telemetry::{SnapshotPhase, State, Telemetry, failpoint};

pub(crate) use crate::table_sync::ends::{Ends, Kind, Staged, Tables, TakenSnapshot};

/// How a snapshot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is published.
    Published,
    /// It was given up because the process is to stop; nothing is left behind.
    Stopped,
}

/// How long to wait for locks on the tables and for running transactions before saying what is being waited for.
const SLOT_MAX: Duration = Duration::from_secs(600);
/// How long to wait for a slot before saying what it waits for.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// How often to say what a slot waits for, and for how long the stream is held.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long cleaning up may take when stopping.
const CLEAN_UP_MAX: Duration = Duration::from_secs(5);

/// Makes a snapshot of all tables and publishes it. `reads` becomes true when the source's rows are read from here on.
pub(super) async fn snapshot(
    ends: Ends<'_>,
    bookkeeping: &Bookkeeping,
    prepared: Prepared,
    kind: &Kind,
    reads: &mut bool,
    stop: impl Future<Output = ()>,
) -> Result<Ending, Fault> {
    // What held up an earlier attempt is over once the slot is there, not before.
    if !ends.telemetry.is_held_up() {
        ends.telemetry.set_state(State::Snapshot, None);
    }
    begin_showing(ends, &prepared.source_catalog);
    let ended = {
        let mut work = pin!(work(ends, bookkeeping, prepared, kind, reads));
        tokio::select! {
            worked = &mut work => worked.map(|()| Ending::Published),
            () = stop => Ok(Ending::Stopped),
        }
    };
    ends.telemetry.snapshot_ends();
    if !matches!(ended, Ok(Ending::Published)) {
        let cleaned = tokio::time::timeout(CLEAN_UP_MAX, clean_up(ends, bookkeeping, kind.live)).await;
        if !matches!(cleaned, Ok(Ok(()))) {
            tracing::warn!("the snapshot's staging or slot could not be removed; the next start does it");
        }
        if kind.live {
            tracing::warn!(
                "the resnapshot was not finished: the old data is still there, and the next start takes it up again"
            );
        }
    }
    ended
}

fn begin_showing(ends: Ends<'_>, catalog: &SourceCatalog) {
    let sizes = catalog.tables.iter().map(|table| (table.definition.name(), table.definition.bytes));
    ends.telemetry.snapshot_begins(sizes);
}

/// Removes what an unfinished snapshot leaves: staging, and the slot unless it is the live one.
async fn clean_up(ends: Ends<'_>, bookkeeping: &Bookkeeping, live: bool) -> Result<(), Fault> {
    sweep_staging(bookkeeping.client(), ends.telemetry).await?;
    if !live {
        let source = ends.addresses.source.connect().await.map_err(SourceError::Session)?;
        drop_slot(ends, &source, &ends.config.source.slot).await?;
    }
    Ok(())
}

async fn drop_slot(ends: Ends<'_>, source: &SqlClient, slot: &SlotName) -> Result<(), Fault> {
    if crate::source::find_slot(source, slot).await?.is_none() {
        return Ok(());
    }
    for text in release_slot(source, slot).await? {
        ends.telemetry.warning("slot", text);
    }
    let mut session = connect_replication(ends.config, "cleaning").await?;
    session.drop_slot(slot).await.map_err(SourceError::Session)?;
    session.close().await;
    Ok(())
}

async fn work(
    ends: Ends<'_>,
    bookkeeping: &Bookkeeping,
    prepared: Prepared,
    kind: &Kind,
    reads: &mut bool,
) -> Result<(), Fault> {
    let Ends { config, telemetry, addresses } = ends;
    let generation = match (&prepared.stream, kind.live) {
        (Some(stream), true) => stream.generation.clone(),
        (_, _) => new_generation(),
    };
    begin_stream(ends, bookkeeping, &prepared, kind, &generation).await?;
    // Whatever part of the set was asked for: all of it is in this snapshot.
    let requests: Vec<i64> = bookkeeping.requests().await?.iter().map(|request| request.id).collect();

    let slot = if kind.live { temporary_slot()? } else { config.source.slot.clone() };
    let tables = Tables {
        source: &prepared.source_catalog,
        destination: &prepared.destination_catalog,
        transfer: prepared.transfer,
        alone: true,
    };
    let (taken, staging) =
        begin_staging(ends, &prepared.source, bookkeeping.client(), &tables, &slot, kind.live, &generation).await?;
    let consistent_point = taken.consistent_point;
    let live_position = if kind.live { bookkeeping.position().await? } else { None };
    let publication = |staging, sent, differences| Publication {
        staging,
        sent,
        differences,
        generation: &generation,
        place: PublishPosition::Beginning { live_position, consistent_point },
        requests: &requests,
        deletes: kind.deletes,
        lock_timeout_millis: config.destination.lock_timeout.as_millis(),
        types: &tables.source.types,
        trusted_roles: &config.destination.trusted_roles,
        names_owners: config.destination.names_owners(),
    };
    let client = publishing_session(ends).await?;
    *reads = true;
    let (rows, staging, differences) = if fill::is_possible(&staging, tables.destination) {
        let none = ListedDifferences::default();
        let filled = fill::publish(ends, &publication(&staging, None, &none), taken, slot.as_str(), &client).await?;
        failpoint::reached("snapshot.published");
        (filled, staging, none)
    } else {
        let Staged { staging, sent, slot_session, .. } = load(ends, taken, staging, slot.as_str()).await?;
        slot_session.close().await;
        finish(ends, bookkeeping.client(), &staging).await?;
        let lists = Lists::keep(bookkeeping.client(), &staging).await?;
        let differences =
            Comparison::begin(&addresses.destination_for("staging"), lists).await?.run(&staging, telemetry).await?;
        tell_large_differences(ends, &client, &staging, &differences).await?;
        publish(ends, &client, &publication(&staging, Some(&sent), &differences)).await?;
        (sent.values().sum(), staging, differences)
    };
    let count = staging.tables.len();
    telemetry.event(
        "snapshot",
        format!("published {} of {} at {consistent_point}", counted(rows, "row"), counted(count, "table")),
    );
    after(ends, staging, &differences).await
}

/// Records what is being done, before anything is made at the source.
async fn begin_stream(
    ends: Ends<'_>,
    bookkeeping: &Bookkeeping,
    prepared: &Prepared,
    kind: &Kind,
    generation: &str,
) -> Result<(), Fault> {
    let config = ends.config;
    bookkeeping.ensure().await?;
    // First of all: from here on the operator's word is used, and for this source.
    if let Some((invocation, scope)) = &kind.invocation
        && matches!(bookkeeping.request_of(invocation).await?, None | Some(RequestState::Failed(_)))
    {
        bookkeeping.request(scope, RequestOrigin::Start, Some(invocation)).await?;
    }
    bookkeeping.bind_requests(&name_of(&prepared.identification)).await?;
    if !kind.live {
        let earlier = prepared.stream.as_ref();
        let ours = earlier.is_some_and(|stream| stream.agreed || matches!(stream.state, StreamState::Live { .. }));
        let said = kind.invocation.as_ref().is_some_and(|(_, scope)| *scope == Scope::All);
        bookkeeping
            .begin_stream(&Stream {
                state: StreamState::Creating,
                generation: generation.to_owned(),
                slot: config.source.slot.clone(),
                publication: config.source.publication.clone(),
                system_identifier: prepared.identification.system_identifier.clone(),
                timeline: prepared.identification.timeline.clone(),
                source_database: prepared.identification.database.clone(),
                source_database_id: Some(prepared.database.id),
                source_lsn: Some(prepared.identification.flushed_lsn),
                source_version: Some(prepared.database.server_version),
                source_xid: None,
                gap: None,
                agreed: ours || said,
                refused: None,
            })
            .await?;
        failpoint::reached("snapshot.row_committed");
        // The row is there: a slot of our name is ours, from an attempt that did not get further.
        drop_slot(ends, &prepared.source, &config.source.slot).await?;
    }
    Ok(())
}

fn new_generation() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// A name for a slot that goes with its session.
fn temporary_slot() -> Result<SlotName, Fault> {
    let name = format!("headwater_{:016x}", fastrand::u64(..));
    name.parse().map_err(|_| Fault::Refused(crate::pg::ErrorReport::new("a temporary slot's name is not one")))
}

/// Locks, slot, snapshot, and staging tables that are empty yet. `temporary`: the slot goes with its session.
async fn begin_staging(
    ends: Ends<'_>,
    source: &SqlClient,
    destination: &SqlClient,
    tables: &Tables<'_>,
    slot: &SlotName,
    temporary: bool,
    generation: &str,
) -> Result<(TakenSnapshot, Staging), Fault> {
    for cycle in &tables.source.cycles {
        let names: Vec<String> = cycle.iter().map(QualifiedName::to_string).collect();
        let text = format!("foreign keys of {} form a circle: they are checked at the end", names.join(", "));
        ends.telemetry.event("snapshot", text);
    }
    let kind = if temporary { SlotSnapshot::ExportTemporary } else { SlotSnapshot::ExportPermanent };
    let clients = Clients { source, destination };
    let taken = take_snapshot(ends, clients, tables, slot, kind).await?;
    if tables.alone {
        ends.telemetry.set_state(State::Snapshot, None);
    }
    failpoint::reached("snapshot.slot_created");
    failpoint::pause("snapshot.slot_created").await;
    let mut staging = create_staging(ends, clients, tables, generation).await?;
    staging.fingerprints.clone_from(&taken.fingerprints);
    staging.leaves.clone_from(&taken.leaves);
    Ok((taken, staging))
}

/// Copies into staging, and lets the source go.
async fn load(ends: Ends<'_>, taken: TakenSnapshot, mut staging: Staging, slot: &str) -> Result<Staged, Fault> {
    let TakenSnapshot { locks, readers, slot_session, held, consistent_point, fingerprints: _, leaves: _ } = taken;
    ends.telemetry.snapshot_phase(SnapshotPhase::Copying, []);
    let copied = copy::copy(ends, &staging, &held, &locks, slot, readers).await;
    // The snapshot must have been held to the end; otherwise rows of two moments may be mixed.
    held.release().await?;
    let CopiedTables { sent, through_root } = copied?;
    failpoint::reached("snapshot.staged");
    // Read through the root were also partitions that were attached since the snapshot, and none of them is gone while the table is locked.
    let ids: Vec<RelationId> = through_root.iter().copied().collect();
    let now = fingerprint_facts(locks.client(), &ids, &ends.config.source.publication).await;
    for (table, now) in now.map_err(SourceError::Session)? {
        let known = now.leaves(table).map_err(SourceError::Session)?.known;
        let leaves = staging.leaves.entry(table).or_default();
        leaves.known.extend(known.into_iter().filter(|leaf| !leaves.empty.contains_key(leaf)));
    }
    locks.release().await?;
    Ok(Staged { staging, sent, through_root, slot_session, consistent_point })
}

/// Locks, then the slot, then the settled snapshot.
async fn take_snapshot(
    ends: Ends<'_>,
    clients: Clients<'_>,
    copied: &Tables<'_>,
    slot: &SlotName,
    kind: SlotSnapshot,
) -> Result<TakenSnapshot, Fault> {
    let Ends { config, addresses, telemetry } = ends;
    let room = LockRoom::look(clients, copied.source, copied.destination).await?.require()?;
    let tables: Vec<_> = copied.source.tables.iter().map(|table| &table.definition).collect();
    let locks = TableLocks::take(&addresses.source, &tables, config.destination.lock_timeout).await?;
    locks.check(&tables).await?;
    let unsent = copied.source.unsent();
    if let Some(report) = unsent.into_iter().next() {
        return Err(SourceError::Refused(report).into());
    }
    let ids: Vec<RelationId> = tables.iter().map(|table| table.relation_id()).collect();
    let locked = fingerprint_facts(locks.client(), &ids, &config.source.publication).await;
    let locked = locked.map_err(SourceError::Session)?;
    telemetry.event(
        "snapshot",
        format!(
            "{} locked in ACCESS SHARE mode at the source: ALTER TABLE and the like wait for the copy",
            counted(tables.len(), "table")
        ),
    );
    let readers = copy::open_readers(config, clients, &tables, &room).await?;
    let mut slot_session = connect_replication(config, "snapshot").await?;
    let created = create_slot(ends, clients.source, &locks, &mut slot_session, slot, kind, copied.alone).await?;
    let held = hold_snapshot(&addresses.source, &created.snapshot_name).await?;
    let consistent_point = created.consistent_point;
    let shown = fingerprint_facts(held.client(), &ids, &config.source.publication).await;
    let shown = shown.map_err(SourceError::Session)?;
    let (fingerprints, leaves) = partitions(clients.source, &locked, shown).await.map_err(SourceError::Session)?;
    Ok(TakenSnapshot { locks, readers, slot_session, held, consistent_point, fingerprints, leaves })
}

/// What the catalog says of each table at the snapshot, and which of its partitions had rows. The tables have been locked since before the
/// slot, so that only partitions can come and go meanwhile. Where something else is another one all the same, what it was under the locks
/// is kept: the next look finds the difference.
async fn partitions(
    source: &SqlClient,
    locked: &HashMap<RelationId, FingerprintFacts>,
    shown: HashMap<RelationId, FingerprintFacts>,
) -> Result<(HashMap<RelationId, FingerprintFacts>, HashMap<RelationId, KnownLeaves>), SessionError> {
    let mut fingerprints = HashMap::new();
    let mut leaves: HashMap<RelationId, KnownLeaves> = HashMap::new();
    for (table, shown) in shown {
        let known = leaves.entry(table).or_insert(shown.leaves(table)?);
        match locked.get(&table) {
            Some(locked) if !locked.read()?.differs_in_partitions_only(&shown.read()?) => {
                known.known.extend(locked.leaves(table)?.known);
                fingerprints.insert(table, locked.clone());
            }
            Some(_) | None => drop(fingerprints.insert(table, shown)),
        }
    }
    // Rows that come before the end of WAL behind this question make such a partition be copied once more, should they be gone again.
    let all: Vec<u32> = leaves.values().flat_map(|leaves| leaves.known.iter().copied()).collect();
    let vacant = vacancy(source, &all).await?.vacant;
    if !vacant.is_empty() {
        let read_at = end_of_wal(source).await?;
        for (table, leaves) in &mut leaves {
            let members = fingerprints.get(table).map(FingerprintFacts::read).transpose()?;
            let members = members.map(|facts| facts.members).unwrap_or_default();
            // A table has no block where it is partitioned itself.
            let is_empty =
                |leaf: &&Member| leaf.kind != 'p' && vacant.contains(&leaf.id) && leaves.known.contains(&leaf.id);
            let empty: BTreeSet<u32> = members.iter().filter(is_empty).map(|leaf| leaf.id).collect();
            leaves.known.retain(|leaf| !empty.contains(leaf));
            leaves.empty.extend(empty.into_iter().map(|leaf| (leaf, read_at)));
        }
    }
    Ok((fingerprints, leaves))
}

/// Creates the slot; says what it waits for, and gives way to a session that waits for the tables meanwhile.
async fn create_slot(
    ends: Ends<'_>,
    source: &SqlClient,
    locks: &TableLocks,
    slot_session: &mut ReplicationSession,
    slot: &SlotName,
    kind: SlotSnapshot,
    alone: bool,
) -> Result<CreatedSlot, Fault> {
    let slot_process = slot_session.process_id();
    let mut creating = pin!(slot_session.create_slot(slot, kind, SLOT_MAX));
    let mut in_the_way = pin!(stand_in_the_way(locks));
    let mut look_after = TELL_AFTER;
    let mut told = None;
    loop {
        tokio::select! {
            created = &mut creating => return Ok(created.map_err(SourceError::Session)?),
            error = &mut in_the_way => {
                end_waiting(source, slot_process).await;
                return Err(error.into());
            }
            () = tokio::time::sleep(look_after) => {
                look_after = TELL_EVERY;
                let wait = slot_wait(source).await;
                if told.as_ref() != Some(&wait) {
                    tell_slot_wait(ends.telemetry, alone, &wait);
                    told = Some(wait);
                }
            }
        }
    }
}

/// A session that waits for a slot does not notice that it was left: it would create the slot all the same.
async fn end_waiting(source: &SqlClient, process_id: u32) {
    if let Err(error) = source.terminate("giving up a slot", process_id).await {
        tracing::warn!("the session that waits for a slot could not be ended: {error}");
    }
}

/// What a new slot waits for: every transaction that was running when it was asked for.
async fn slot_wait(source: &SqlClient) -> ErrorReport {
    let report = ErrorReport::new("the copy waits for its replication slot at the source");
    let standby = source.query_one("asking for the role", "SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
    if standby.is_ok_and(|row| matches!(row.get(0), Ok(true))) {
        // logicaldecoding-explanation: a standby learns of running transactions from its primary only.
        return report
            .detail(
                "The source is a standby. The slot waits until the primary logs which transactions run there, as it does from time to \
                 time, and until those have ended.",
            )
            .hint("To have it logged now, run at the primary:\nSELECT pg_log_standby_snapshot();");
    }
    match running_transactions(source).await {
        Ok(running) => explain_slot_wait(report, &running),
        Err(error) => report.detail(format!("What it waits for cannot be seen: {error}.")),
    }
}

/// Says it once: as the reason of the state, where nothing else is done meanwhile.
fn tell_slot_wait(telemetry: &Telemetry, alone: bool, wait: &ErrorReport) {
    if alone && !telemetry.is_held_up() {
        telemetry.set_state(State::Snapshot, Some(wait.clone()));
    } else {
        telemetry.warning("snapshot", wait.lines());
    }
}

/// Staging for all tables, after that of earlier attempts is swept.
async fn create_staging(
    ends: Ends<'_>,
    Clients { source, destination: client }: Clients<'_>,
    tables: &Tables<'_>,
    generation: &str,
) -> Result<Staging, Fault> {
    sweep_staging(client, ends.telemetry).await?;
    let follow = ends.config.schema_changes == SchemaChanges::Follow;
    let (source_types, told) = labels_for_copy(source, client, &tables.source.types, follow).await?;
    told.into_iter().for_each(|told| ends.telemetry.event("schema", told));
    let created = as_created(&tables.source.types, &tables.destination.types);
    let copied = tables.source.tables.iter().map(|table| TableToCopy {
        source: table.definition.clone(),
        columns: table.columns.clone(),
        transfer: table_format(table, tables.source, tables.destination, &created),
        row_filter: table.row_filter.clone(),
    });
    let trust = Writes {
        trusted_roles: ends.config.destination.trusted_roles.clone(),
        names_owners: ends.config.destination.names_owners(),
        ..Writes::default()
    };
    let copied = copied.collect();
    let staging = Staging::prepare(client, generation, copied, &source_types, tables.destination, &trust).await?;
    for table in &staging.tables {
        let how = match table.mode {
            Mode::Move => "will be created",
            Mode::Fill => "is empty and will be filled",
            Mode::Reconcile => "has rows and will be reconciled",
        };
        ends.telemetry.event("snapshot", format!("table {} {how}", table.live));
    }
    Ok(staging)
}

/// Indexes, keys and statistics of what is staged.
async fn finish(ends: Ends<'_>, client: &SqlClient, staging: &Staging) -> Result<(), Fault> {
    let sessions = match ends.config.snapshot.workers {
        Some(workers) => workers,
        None => {
            let cores = std::thread::available_parallelism().map_or(2, usize::from).min(8);
            cores.min(client.free_sessions().await.map_err(DestinationError::Session)? / 2).max(1)
        }
    };
    let told = staging.finish(&ends.addresses.destination_for("staging"), sessions, ends.telemetry).await?;
    failpoint::reached("snapshot.finished");
    for left_out in &staging.left_out {
        ends.telemetry.event("snapshot", left_out.clone());
    }
    told.into_iter().for_each(|told| ends.telemetry.warning("snapshot", told));
    Ok(())
}

async fn publishing_session(ends: Ends<'_>) -> Result<SqlClient, Fault> {
    let sql = ends.addresses.destination_for("publishing");
    Ok(connect_recorded(&sql).await?.with_timeout(STATEMENT_MAX))
}

/// Publishes, and says what it has written.
async fn publish(ends: Ends<'_>, client: &SqlClient, publication: &Publication<'_>) -> Result<(), Fault> {
    let outcome = publication.run(client, ends.telemetry).await?;
    failpoint::reached("snapshot.published");
    if !outcome.lost_most.is_empty() {
        let tables = outcome.lost_most.join(", ");
        ends.telemetry.event("snapshot", format!("more than half of the rows were deleted: {tables}"));
    }
    for told in outcome.orphaned.iter().chain(&outcome.withheld) {
        ends.telemetry.warning("snapshot", told.clone());
    }
    for (table, (deleted, updated, inserted)) in &outcome.reconciled {
        let deleted = counted(*deleted, "row");
        let text = format!("table {table} reconciled: {deleted} deleted, {updated} updated, {inserted} inserted");
        ends.telemetry.event("snapshot", text);
    }
    for (table, (rows, triggers)) in &outcome.altered {
        let rows = counted(*rows, "row");
        let text = format!(
            "{rows} of table {table} differ from the source after they were written: triggers of the destination act on them \
             ({triggers})"
        );
        ends.telemetry.warning("snapshot", text);
    }
    Ok(())
}

/// An operator who has mistaken the source reads of it before the rows are gone.
async fn tell_large_differences(
    ends: Ends<'_>,
    client: &SqlClient,
    staging: &Staging,
    differences: &ListedDifferences,
) -> Result<(), Fault> {
    let equal = differences.equal(client).await?;
    let differs = |table: &&StagedTable| table.mode == Mode::Reconcile && !equal.contains(&&table.live);
    let tables: Vec<&QualifiedName> = staging.tables.iter().filter(differs).map(|table| &table.live).collect();
    let differing = differences.counts(client, &tables).await?;
    let counted: Vec<TableToCount<'_>> =
        differing.iter().map(|differing| TableToCount { name: differing.table, most: ROWS_COUNTED }).collect();
    let counts = Catalog::count_rows_of_each(client, &counted).await?;
    for (DifferingRows { table, rows: differing }, has) in differing.into_iter().zip(counts) {
        // So many, or more, where the table was never analyzed.
        if has != ROWS_COUNTED && differing > 0 && differing.saturating_mul(2) > has {
            let text = format!(
                "about {differing} rows of table {table} differ from the source, which is more than half of its {has} or so"
            );
            ends.telemetry.event("snapshot", text);
        }
    }
    Ok(())
}

/// Rows that are counted of a table; larger ones are estimated.
const ROWS_COUNTED: i64 = 1000;

/// Statistics of what was filled and reconciled, and the staging's end.
async fn after(ends: Ends<'_>, staging: Staging, differences: &ListedDifferences) -> Result<(), Fault> {
    let sql = ends.addresses.destination_for("staging");
    let client = connect_recorded(&sql).await?.with_timeout(STATEMENT_MAX);
    // A moved table brings its statistics along; one that was equal already has its own.
    let equal = differences.equal(&client).await?;
    let is_stale = |table: &&StagedTable| table.mode != Mode::Move && !equal.contains(&&table.live);
    let stale: Vec<QualifiedName> = staging.tables.iter().filter(is_stale).map(|table| table.live.clone()).collect();
    staging.drop(&client).await?;
    // Nobody waits for it: statistics are a convenience, autovacuum gathers them too.
    tokio::spawn(async move {
        for table in stale {
            if let Err(error) = client.statement("analyzing a table", &sql::analyze(&table)).await {
                tracing::warn!("table {table} could not be analyzed: {error}");
            }
        }
    });
    Ok(())
}
