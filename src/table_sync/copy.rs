//! Parallel copying: ranges of all tables from one queue, N readers under one snapshot, each feeding a staging table.
//!
//! Called by `super` once staging exists; `source::ctid_ranges` says what there is to read, `session::copy` moves the bytes.
//!
//! ```text
//! ranges, the largest table's first ──▶ reader 1: COPY out ══▶ COPY in ──▶ staging
//!                                   └─▶ reader N: COPY out ══▶ COPY in ──▶ staging
//!              meanwhile: asks the snapshot's holder every second whether it lives
//! ```
//!
//! A reader that loses its connection to the source takes its range again under the same snapshot, on new connections:
//! the range's COPY was one transaction at the destination and is rolled back, so no row comes twice. Without its holder
//! the snapshot is gone, and everything starts over. A connection to the destination that is lost may have committed
//! what it does not answer any more; so that starts over too.
//!
//! Bounds: `snapshot.workers` ranges at a time, each holding what its pipe holds; `snapshot.max_rate` for all of them
//! together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::task::JoinSet;

use super::readers::{
    Copied, CopyRate, RETRIES_MAX, Reader, in_the_way, is_lost_source, open_writer, pause_before_retry,
};
use crate::catalog::lock_budget::{LockTable, relations};
use crate::catalog::schema::TableDefinition;
use crate::comparison::reconcile_sql as sql;
use crate::config::Config;
use crate::destination::{DestinationError, Staging};
use crate::error_policy::Fault;
use crate::pg::{QualifiedName, RelationId};
use crate::session::{Clients, Connection, CopyError, CopyIn, CopyOut, SessionError, SqlClient};
use crate::source::{CTID_RANGE_BYTES, HeldSnapshot, SourceError, TableLocks, TableToRead, ctid_ranges};
use crate::table_sync::ends::Ends;
use crate::table_sync::snapshot_guard::keep_holder;
use crate::telemetry::{Telemetry, failpoint};

/// A part of a table that one reader copies at a time.
#[derive(Clone, Debug)]
struct CopyTask {
    /// Its table's place in the staging's list.
    table: usize,
    copy_out: String,
    copy_in: String,
}

/// What the readers share.
struct SharedCopy {
    queue: Mutex<VecDeque<CopyTask>>,
    tables: Vec<QualifiedName>,
    /// Pieces of each table that are not copied yet.
    left: Mutex<Vec<usize>>,
    sent: Mutex<BTreeMap<QualifiedName, u64>>,
    snapshot_name: String,
    config: Arc<Config>,
    telemetry: Arc<Telemetry>,
    rate: Mutex<CopyRate>,
}

/// Opens as many readers as there will be work for, each holding all tables.
pub(super) async fn open_readers(
    config: &Config,
    Clients { source, destination }: Clients<'_>,
    tables: &[&TableDefinition],
    room: &LockTable,
) -> Result<Vec<Reader>, Fault> {
    let names: Vec<QualifiedName> = tables.iter().map(|table| table.name()).collect();
    // A few more than there will be, if the tables are partitioned: every leaf is a range at least.
    let ranges: u64 = tables.iter().map(|table| table.bytes.div_ceil(CTID_RANGE_BYTES).max(1)).sum();
    let wanted = workers(config, source, destination, usize::try_from(ranges).unwrap_or(usize::MAX)).await?;
    let workers = room.readers(wanted, tables.iter().map(|table| relations(table)).sum());
    if workers < wanted {
        tracing::info!("{workers} of {wanted} readers: the source has no room for the locks of more");
    }
    let mut readers = Vec::new();
    for _ in 0..workers {
        readers.push(Reader::open(config, &names).await?);
    }
    Ok(readers)
}

/// What was copied.
pub(super) struct CopiedTables {
    /// How many rows of each table the destination has taken.
    pub(super) sent: BTreeMap<QualifiedName, u64>,
    /// Tables whose partitions our role may not read one by one.
    pub(super) through_root: BTreeSet<RelationId>,
}

/// Copies all tables into staging.
pub(super) async fn copy(
    ends: Ends<'_>,
    staging: &Staging,
    held: &HeldSnapshot,
    locks: &TableLocks,
    slot: &str,
    readers: Vec<Reader>,
) -> Result<CopiedTables, Fault> {
    let Ends { config, telemetry, .. } = ends;
    let mut through_root = BTreeSet::new();
    let mut left = vec![0; staging.tables.len()];
    let mut tasks = Vec::new();
    let ranges = ctid_ranges(locks.client(), &to_read(staging)?).await?;
    for ((number, table), found) in staging.tables.iter().enumerate().zip(ranges) {
        if let Some(left) = left.get_mut(number) {
            *left = found.len();
        }
        if found.iter().any(|range| range.whole_tree) {
            through_root.insert(table.source.relation_id());
        }
        if found.is_empty() {
            telemetry.snapshot_table_done(&table.live);
        }
        let bytes: u64 = found.iter().map(|range| range.bytes).sum();
        tasks.extend(found.into_iter().map(|range| {
            let filter = table.row_filter.as_deref();
            let copy_out = sql::copy_out(&range.relation, &table.route, range.whole_tree, filter, range.pages);
            (bytes, CopyTask { table: number, copy_out, copy_in: sql::copy_in(&table.staging, &table.route) })
        }));
    }
    // The largest table first, so that no reader is left alone with it at the end.
    tasks.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    tracing::debug!("{} ranges, {} readers", tasks.len(), readers.len());
    let shared = Arc::new(SharedCopy {
        queue: Mutex::new(tasks.into_iter().map(|(_, task)| task).collect()),
        tables: staging.tables.iter().map(|table| table.live.clone()).collect(),
        left: Mutex::new(left),
        sent: Mutex::new(staging.tables.iter().map(|table| (table.live.clone(), 0)).collect()),
        snapshot_name: held.snapshot_name.clone(),
        config: Arc::clone(config),
        telemetry: Arc::clone(telemetry),
        rate: Mutex::new(CopyRate::new(config.snapshot.max_rate, Instant::now())),
    });
    // Dropping the set ends the readers, and with them their connections.
    let mut running = JoinSet::new();
    for reader in readers {
        running.spawn(work_off(Arc::clone(&shared), reader));
    }
    let working = async {
        while let Some(done) = running.join_next().await {
            match done {
                Ok(done) => done?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        Ok::<(), Fault>(())
    };
    tokio::select! {
        worked = working => worked?,
        lost = keep_holder(ends, held, slot) => return Err(lost),
    }
    let sent = shared.sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(CopiedTables { sent, through_root })
}

/// The tables, with those of their partitions that the snapshot has.
pub(super) fn to_read(staging: &Staging) -> Result<Vec<TableToRead<'_>>, DestinationError> {
    let tables = staging.tables.iter();
    tables.map(|table| Ok(TableToRead { table: &table.source, leaves: staging.leaves_of(table)? })).collect()
}

/// What is configured; otherwise what both servers and this machine bear: a core each, at most 8, and at most half of the
/// sessions that each server has left.
async fn workers(config: &Config, source: &SqlClient, destination: &SqlClient, ranges: usize) -> Result<usize, Fault> {
    let wanted = match config.snapshot.workers {
        Some(workers) => workers,
        None => {
            let cores = std::thread::available_parallelism().map_or(2, usize::from).min(8);
            let free_source = source.free_sessions().await.map_err(SourceError::Session)?;
            let free_destination = destination.free_sessions().await.map_err(DestinationError::Session)?;
            cores.min(free_source / 2).min(free_destination / 2)
        }
    };
    Ok(wanted.min(ranges).max(1))
}

/// A reader, and the session that takes its rows.
struct Pipe {
    reader: Reader,
    writer: Connection,
}

/// One reader: takes ranges from the queue until it is empty.
async fn work_off(shared: Arc<SharedCopy>, reader: Reader) -> Result<(), Fault> {
    let mut reader = Some(reader);
    let mut pipe: Option<Pipe> = None;
    let mut retries = 0;
    let mut again: Option<CopyTask> = None;
    loop {
        let next = || shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(task) = again.take().or_else(next) else { break };
        let fault = match copy_task(&shared, &mut reader, &mut pipe, &task).await {
            Ok(()) => {
                retries = 0;
                continue;
            }
            Err(fault) => fault,
        };
        pipe = None;
        retries += 1;
        if retries > RETRIES_MAX || !is_lost_source(&fault) {
            return Err(fault);
        }
        tracing::warn!("a reader's connection to the source was lost, its piece is read again: {fault}");
        tokio::time::sleep(pause_before_retry(retries)).await;
        again = Some(task);
    }
    if let Some(Pipe { reader, writer }) = pipe {
        reader.connection.close().await;
        writer.close().await;
    }
    Ok(())
}

/// Copies one range. What a failed attempt has counted is taken back.
async fn copy_task(
    shared: &SharedCopy,
    first: &mut Option<Reader>,
    pipe: &mut Option<Pipe>,
    task: &CopyTask,
) -> Result<(), Fault> {
    let Some(table) = shared.tables.get(task.table) else { return Ok(()) };
    let pipe = match pipe {
        Some(pipe) => pipe,
        none => {
            let reader = match first.take() {
                Some(reader) => reader,
                None => Reader::open(&shared.config, &shared.tables).await?,
            };
            none.insert(Pipe { reader, writer: open_writer(&shared.config).await? })
        }
    };
    let mut copied = Copied::default();
    let transferred = transfer(shared, pipe, table, task, &mut copied).await;
    let rows = match transferred {
        Ok(rows) => rows,
        Err(fault) => {
            shared.telemetry.snapshot_taken_back(table, copied.rows, copied.bytes);
            return Err(fault);
        }
    };
    if let Some(sent) = shared.sent.lock().unwrap_or_else(PoisonError::into_inner).get_mut(table) {
        *sent += rows;
    }
    let mut left = shared.left.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(left) = left.get_mut(task.table) {
        *left -= 1;
        if *left == 0 {
            shared.telemetry.snapshot_table_done(table);
        }
    }
    Ok(())
}

async fn transfer(
    shared: &SharedCopy,
    pipe: &mut Pipe,
    table: &QualifiedName,
    task: &CopyTask,
    copied: &mut Copied,
) -> Result<u64, Fault> {
    let timeout = shared.config.destination.timeout;
    let source = |error: SessionError| Fault::Source(SourceError::Session(error));
    let destination = |error: SessionError| Fault::Destination(DestinationError::Session(error));
    pipe.reader.take_snapshot(&shared.snapshot_name, timeout).await?;
    // The reader first: when it fails, nothing has begun at the destination.
    let outgoing = CopyOut::start(&mut pipe.reader.connection, &task.copy_out, timeout).await;
    let mut outgoing = outgoing.map_err(|error| in_the_way(error, table))?;
    let mut incoming = CopyIn::start(&mut pipe.writer, &task.copy_in, timeout).await.map_err(destination)?;
    loop {
        let moved = outgoing.transfer(&mut incoming).await.map_err(|error| match error {
            CopyError::Source(error) => source(error),
            CopyError::Destination(error) => destination(error),
        })?;
        shared.telemetry.snapshot_copied(table, moved.messages, moved.bytes);
        copied.rows += moved.messages;
        copied.bytes += moved.bytes;
        failpoint::reached("snapshot.copying");
        let wait = shared.rate.lock().unwrap_or_else(PoisonError::into_inner).spend(moved.bytes, Instant::now());
        if moved.done {
            break;
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
    // The source must confirm its end of the data before the destination receives the end.
    outgoing.finish().await.map_err(source)?;
    let rows = incoming.finish().await.map_err(destination)?;
    Ok(rows)
}
