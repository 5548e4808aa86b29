//! A snapshot: locks, slot, settled snapshot, parallel copy into staging, one publish.
//!
//! Second part of an attempt, where there is no position yet or a new copy is asked for. The steps, and what a crash
//! after each leaves for the next start:
//!
//! | step | a crash here leaves |
//! |---|---|
//! | row `creating` committed (only without a live stream) | the row: whatever slot has our name is ours, dropped |
//! | ACCESS SHARE on all tables | nothing: it goes with the session |
//! | slot created, snapshot settled and exported again | the row and the slot (a temporary slot goes with its session) |
//! | staging created and filled | staging of an old generation, swept |
//! | indexes built, source let go | the same |
//! | published | a live position: stream on |
//!
//! With a live stream the copy is made under a temporary slot, and publishing moves the position forward to its
//! consistent point; the permanent slot then streams on from there. Until then the old data serves.
//!
//! Bounds: `snapshot.workers` copies at a time, each holding what its pipe holds; `snapshot.max_rate` for all of them
//! together.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::prepare::{Addresses, Prepared, connect_replication};
use crate::config::Config;
use crate::destination::{
    Bookkeeping, DestinationError, Mode, Publication, STATEMENT_MAX, Staging, Stream, StreamState, TableToCopy, sweep,
};
use crate::fault::Fault;
use crate::pg::{Lsn, QualifiedName, SlotName};
use crate::plan::sql::staging as sql;
use crate::session::{Connection, CopyIn, CopyOut, SessionError, SlotSnapshot, SqlClient};
use crate::source::{HeldSnapshot, SourceError, TableLocks, hold_snapshot, release_slot};
use crate::telemetry::{State, Telemetry, failpoint};

/// What a snapshot needs of its surroundings.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) config: &'a Arc<Config>,
    pub(super) addresses: &'a Addresses,
    pub(super) telemetry: &'a Arc<Telemetry>,
}

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
/// How long cleaning up may take when stopping.
const CLEAN_UP_MAX: Duration = Duration::from_secs(5);

/// Makes a snapshot of all tables and publishes it. `live`: a stream is there, and its slot stays.
pub(super) async fn snapshot(
    ends: Ends<'_>,
    bookkeeping: &Bookkeeping,
    prepared: Prepared,
    live: bool,
    stop: impl Future<Output = ()>,
) -> Result<Ending, Fault> {
    // What held up an earlier attempt is over once the slot is there, not before.
    if !ends.telemetry.is_held_up() {
        ends.telemetry.set_state(State::Snapshot, None);
    }
    let sizes = prepared.source_catalog.tables.iter().map(|table| (table.definition.name(), table.definition.bytes));
    ends.telemetry.snapshot_begins(sizes);
    let ended = {
        let mut work = pin!(work(ends, bookkeeping, prepared, live));
        tokio::select! {
            worked = &mut work => worked.map(|()| Ending::Published),
            () = stop => Ok(Ending::Stopped),
        }
    };
    ends.telemetry.snapshot_ends();
    if !matches!(ended, Ok(Ending::Published)) {
        let cleaned = tokio::time::timeout(CLEAN_UP_MAX, clean_up(ends, bookkeeping, live)).await;
        if !matches!(cleaned, Ok(Ok(()))) {
            tracing::warn!("the snapshot's staging or slot could not be removed; the next start does it");
        }
    }
    ended
}

/// Removes what an unfinished snapshot leaves: staging, and the slot unless it is the live one.
async fn clean_up(ends: Ends<'_>, bookkeeping: &Bookkeeping, live: bool) -> Result<(), Fault> {
    sweep(bookkeeping.client()).await?;
    if !live {
        let source = ends.addresses.source.connect().await.map_err(SourceError::Session)?;
        drop_slot(ends.config, &source, &ends.config.source.slot).await?;
    }
    Ok(())
}

async fn drop_slot(config: &Config, source: &SqlClient, slot: &SlotName) -> Result<(), Fault> {
    if crate::source::find_slot(source, slot).await?.is_none() {
        return Ok(());
    }
    release_slot(source, slot).await?;
    let mut session = connect_replication(config, "cleaning").await?;
    session.drop_slot(slot).await.map_err(SourceError::Session)?;
    session.close().await;
    Ok(())
}

async fn work(ends: Ends<'_>, bookkeeping: &Bookkeeping, prepared: Prepared, live: bool) -> Result<(), Fault> {
    let Ends { config, addresses, telemetry } = ends;
    let generation = match (&prepared.stream, live) {
        (Some(stream), true) => stream.generation.clone(),
        (_, _) => format!("{:016x}", fastrand::u64(..)),
    };
    if !live {
        bookkeeping.ensure().await?;
        bookkeeping
            .begin_stream(&Stream {
                state: StreamState::Creating,
                generation: generation.clone(),
                slot: config.source.slot.clone(),
                publication: config.source.publication.clone(),
                system_identifier: prepared.identification.system_identifier.clone(),
                timeline: prepared.identification.timeline,
                source_database: prepared.identification.database.clone(),
                gap: None,
            })
            .await?;
        failpoint::reached("snapshot.row_committed");
        // The row is there: a slot of our name is ours, from an attempt that did not get further.
        drop_slot(config, &prepared.source, &config.source.slot).await?;
    }
    for cycle in &prepared.source_catalog.cycles {
        let names: Vec<String> = cycle.iter().map(QualifiedName::to_string).collect();
        telemetry.event(
            "snapshot",
            format!("foreign keys of {} form a circle: they are checked at the end", names.join(", ")),
        );
    }

    let taken = take_snapshot(ends, &prepared, live).await?;
    let TakenSnapshot { locks, slot_session, held, consistent_point } = taken;
    telemetry.set_state(State::Snapshot, None);
    failpoint::reached("snapshot.slot_created");
    let staged = copy(ends, &prepared, bookkeeping.client(), &held, &generation).await;
    // The snapshot must have been held to the end; otherwise rows of two moments may be mixed.
    held.release().await?;
    let (staging, sent) = staged?;
    failpoint::reached("snapshot.staged");
    locks.release().await?;
    slot_session.close().await;

    let building = sql_for(addresses, config, "staging");
    let client = building.connect().await.map_err(DestinationError::Session)?.with_timeout(STATEMENT_MAX);
    staging.finish(&client).await?;
    failpoint::reached("snapshot.finished");
    for left_out in &staging.left_out {
        telemetry.event("snapshot", left_out.clone());
    }
    let live_position = if live { bookkeeping.position().await? } else { None };
    publish(ends, &staging, &sent, (&generation, live_position), consistent_point).await?;
    for table in &staging.tables {
        let analyzed = client.batch("analyzing a table", &sql::analyze(&table.live)).await;
        if let Err(error) = analyzed {
            // Statistics are a convenience: autovacuum gathers them too.
            tracing::warn!("table {} could not be analyzed: {error}", table.live);
        }
    }
    staging.drop(&client).await?;
    Ok(())
}

fn sql_for(addresses: &Addresses, config: &Config, purpose: &'static str) -> crate::session::Sql {
    let connection = config.destination.url.with_application_suffix(config.source.slot.as_str());
    crate::session::Sql { connection, purpose, ..addresses.destination.clone() }
}

struct TakenSnapshot {
    locks: TableLocks,
    slot_session: crate::session::ReplicationSession,
    held: HeldSnapshot,
    consistent_point: Lsn,
}

/// Locks, then the slot, then the settled snapshot.
async fn take_snapshot(ends: Ends<'_>, prepared: &Prepared, live: bool) -> Result<TakenSnapshot, Fault> {
    let Ends { config, addresses, telemetry } = ends;
    let tables: Vec<_> = prepared.source_catalog.tables.iter().map(|table| &table.definition).collect();
    let locks = TableLocks::take(&addresses.source, &tables, config.destination.lock_timeout).await?;
    telemetry.event(
        "snapshot",
        format!(
            "{} tables are locked in ACCESS SHARE mode at the source: ALTER TABLE and the like wait for the copy",
            tables.len()
        ),
    );
    let mut slot_session = connect_replication(config, "snapshot").await?;
    let (name, kind) = if live {
        let temporary = format!("headwater_{:016x}", fastrand::u64(..));
        (temporary.parse().unwrap_or_else(|_| config.source.slot.clone()), SlotSnapshot::ExportTemporary)
    } else {
        (config.source.slot.clone(), SlotSnapshot::ExportPermanent)
    };
    let created = {
        let creating = slot_session.create_slot(&name, kind, SLOT_MAX);
        let mut creating = pin!(creating);
        loop {
            tokio::select! {
                created = &mut creating => break created.map_err(SourceError::Session)?,
                () = tokio::time::sleep(Duration::from_secs(10)) => tell_what_blocks(prepared, telemetry).await,
            }
        }
    };
    let held = hold_snapshot(&addresses.source, &created.snapshot_name).await?;
    Ok(TakenSnapshot { locks, slot_session, held, consistent_point: created.consistent_point })
}

/// A slot waits for every transaction that was running when it was asked for.
async fn tell_what_blocks(prepared: &Prepared, telemetry: &Telemetry) {
    let sql = "SELECT pid, pg_catalog.date_trunc('second', pg_catalog.now() - xact_start)::text FROM pg_catalog.pg_stat_activity
               WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() ORDER BY xact_start LIMIT 3";
    if let Ok(rows) = prepared.source.query("looking for long transactions", sql, &[]).await {
        let running: Vec<String> = rows
            .iter()
            .map(|row| {
                format!("process {} (for {})", row.get::<_, i32>(0), row.get::<_, Option<&str>>(1).unwrap_or("?"))
            })
            .collect();
        if !running.is_empty() {
            telemetry.event(
                "snapshot",
                format!("the slot waits for running transactions at the source: {}", running.join(", ")),
            );
        }
    }
}

/// A part of a table that one worker copies at a time.
#[derive(Clone, Debug)]
struct Piece {
    table: usize,
    copy_out: String,
    copy_in: String,
}

/// What the workers share.
struct Shared {
    pieces: Mutex<VecDeque<Piece>>,
    tables: Vec<QualifiedName>,
    /// Pieces of each table that are not copied yet.
    left: Mutex<Vec<usize>>,
    sent: Mutex<BTreeMap<QualifiedName, u64>>,
    snapshot_name: String,
    config: Arc<Config>,
    telemetry: Arc<Telemetry>,
    rate: Mutex<Rate>,
}

/// Copies all tables into staging and returns how many rows were sent for each.
async fn copy(
    ends: Ends<'_>,
    prepared: &Prepared,
    client: &SqlClient,
    held: &HeldSnapshot,
    generation: &str,
) -> Result<(Staging, BTreeMap<QualifiedName, u64>), Fault> {
    let Ends { config, telemetry, .. } = ends;
    sweep(client).await?;
    let tables = prepared.source_catalog.tables.iter().map(|table| TableToCopy {
        source: table.definition.clone(),
        columns: table.columns.clone(),
        transfer: prepared.transfer,
        row_filter: table.row_filter.clone(),
    });
    let staging = Staging::prepare(
        client,
        generation,
        tables.collect(),
        &prepared.source_catalog.types,
        &prepared.destination_catalog,
    )
    .await?;
    for table in &staging.tables {
        let how = match table.mode {
            Mode::Move => "will be created",
            Mode::Fill => "is empty and will be filled",
            Mode::Reconcile => "has rows and will be reconciled",
        };
        telemetry.event("snapshot", format!("table {} {how}", table.live));
    }
    let pieces: VecDeque<Piece> = staging
        .tables
        .iter()
        .enumerate()
        .map(|(number, table)| Piece {
            table: number,
            copy_out: sql::copy_out(&table.live, &table.route, table.is_tree(), table.row_filter.as_deref()),
            copy_in: sql::copy_in(&table.staging, &table.route),
        })
        .collect();
    let mut left = vec![0; staging.tables.len()];
    for piece in &pieces {
        if let Some(left) = left.get_mut(piece.table) {
            *left += 1;
        }
    }
    let workers = workers(config, pieces.len());
    let shared = Arc::new(Shared {
        pieces: Mutex::new(pieces),
        tables: staging.tables.iter().map(|table| table.live.clone()).collect(),
        left: Mutex::new(left),
        sent: Mutex::new(staging.tables.iter().map(|table| (table.live.clone(), 0)).collect()),
        snapshot_name: held.snapshot_name.clone(),
        config: Arc::clone(config),
        telemetry: Arc::clone(telemetry),
        rate: Mutex::new(Rate::new(config.snapshot.max_rate, Instant::now())),
    });
    let mut running = JoinSet::new();
    for _ in 0..workers {
        running.spawn(work_off(Arc::clone(&shared)));
    }
    while let Some(done) = running.join_next().await {
        match done {
            Ok(done) => done?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }
    let sent = shared.sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok((staging, sent))
}

/// As many workers as this machine has cores, at most 8: each keeps one server process busy on either side.
fn workers(config: &Config, pieces: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    config.snapshot.workers.unwrap_or(cores.min(8)).min(pieces).max(1)
}

/// One worker: takes pieces from the queue until it is empty.
async fn work_off(shared: Arc<Shared>) -> Result<(), Fault> {
    let config = Arc::clone(&shared.config);
    let purpose = |what: &str| format!("{} {what}", config.source.slot);
    let unlimited =
        ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"];
    let unlimited = unlimited.map(|name| (name, "0".to_owned()));
    let mut settings = vec![
        ("datestyle", "ISO".to_owned()),
        ("intervalstyle", "postgres".to_owned()),
        ("extra_float_digits", "3".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("lc_monetary", "C".to_owned()),
        ("search_path", String::new()),
        ("row_security", "off".to_owned()),
        ("client_connection_check_interval", "1000".to_owned()),
    ];
    settings.extend(unlimited);
    let reader = Connection::open(&config.source.url, &purpose("snapshot"), &settings).await;
    let mut reader = reader.map_err(SourceError::Session)?;
    settings.push(("synchronous_commit", "on".to_owned()));
    let writer = Connection::open(&config.destination.url, &purpose("staging"), &settings).await;
    let mut writer = writer.map_err(DestinationError::Session)?;
    loop {
        let next = shared.pieces.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(piece) = next else { break };
        copy_piece(&shared, &mut reader, &mut writer, &piece).await?;
    }
    reader.close().await;
    writer.close().await;
    Ok(())
}

async fn copy_piece(
    shared: &Shared,
    reader: &mut Connection,
    writer: &mut Connection,
    piece: &Piece,
) -> Result<(), Fault> {
    let timeout = shared.config.destination.timeout;
    let Some(table) = shared.tables.get(piece.table) else { return Ok(()) };
    let source = |error: SessionError| Fault::Source(SourceError::Session(error));
    let destination = |error: SessionError| Fault::Destination(DestinationError::Session(error));
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
        shared.snapshot_name.replace('\'', "''")
    );
    reader.simple_query(&begin, "importing the snapshot", timeout).await.map_err(SourceError::SnapshotLost)?;
    let mut incoming = CopyIn::start(writer, &piece.copy_in, timeout).await.map_err(destination)?;
    let mut outgoing = CopyOut::start(reader, &piece.copy_out, timeout).await.map_err(source)?;
    loop {
        let moved = outgoing.transfer(&mut incoming).await?;
        shared.telemetry.snapshot_copied(table, moved.messages, moved.bytes);
        failpoint::reached("snapshot.copying");
        let wait = shared.rate.lock().unwrap_or_else(PoisonError::into_inner).spend(moved.bytes, Instant::now());
        if moved.done {
            break;
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
    outgoing.finish().await.map_err(source)?;
    let rows = incoming.finish().await.map_err(destination)?;
    reader.simple_query("COMMIT", "ending a read", timeout).await.map_err(source)?;
    if let Some(sent) = shared.sent.lock().unwrap_or_else(PoisonError::into_inner).get_mut(table) {
        *sent += rows;
    }
    let mut left = shared.left.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(left) = left.get_mut(piece.table) {
        *left -= 1;
        if *left == 0 {
            shared.telemetry.snapshot_table_done(table);
        }
    }
    Ok(())
}

/// Spends at most so many bytes a second, over all workers.
#[derive(Debug)]
struct Rate {
    bytes_per_second: Option<u64>,
    /// When everything spent so far will have been earned.
    earned_at: Instant,
}

impl Rate {
    fn new(bytes_per_second: Option<u64>, now: Instant) -> Rate {
        Rate { bytes_per_second, earned_at: now }
    }

    /// How long to wait after having spent `bytes`.
    fn spend(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.earned_at = self.earned_at.max(now) + cost;
        self.earned_at.duration_since(now)
    }
}

async fn publish(
    ends: Ends<'_>,
    staging: &Staging,
    sent: &BTreeMap<QualifiedName, u64>,
    (generation, live_position): (&str, Option<Lsn>),
    consistent_point: Lsn,
) -> Result<(), Fault> {
    let sql = sql_for(ends.addresses, ends.config, "publishing");
    let client = sql.connect().await.map_err(DestinationError::Session)?.with_timeout(STATEMENT_MAX);
    let publication = Publication {
        staging,
        sent,
        generation,
        live_position,
        consistent_point,
        lock_timeout_millis: ends.config.destination.lock_timeout.as_millis(),
    };
    let outcome = publication.run(&client).await?;
    failpoint::reached("snapshot.published");
    for (table, (deleted, updated, inserted)) in &outcome.reconciled {
        let text = format!("table {table} reconciled: {deleted} rows deleted, {updated} updated, {inserted} inserted");
        ends.telemetry.event("snapshot", text);
    }
    let rows: u64 = sent.values().sum();
    ends.telemetry
        .event("snapshot", format!("published {rows} rows of {} tables at {consistent_point}", staging.tables.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_all_that_is_spent() {
        let now = Instant::now();
        let mut rate = Rate::new(Some(1000), now);
        assert_eq!(rate.spend(500, now), Duration::from_millis(500));
        assert_eq!(rate.spend(500, now), Duration::from_secs(1));
        assert_eq!(rate.spend(0, now + Duration::from_secs(5)), Duration::ZERO, "nothing is owed later on");
        assert_eq!(Rate::new(None, now).spend(u64::MAX, now), Duration::ZERO);
    }
}
