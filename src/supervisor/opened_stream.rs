//! A stream from START_REPLICATION to its end: opened, run, closed.
//!
//! Third part of an attempt.
//!
//! - *Open*: lock, position, slot, in this order. What the stream stands on is read from the bookkeeping; nothing is applied yet.
//! - *Run*: task 1 (`source::stream`) sends steps to task 2 (`apply_loop`), which runs here; next to it hand-overs, fences, sequences.
//!   Whatever ends first ends all.
//! - *Close*: the positions that are stored are confirmed, the stream ends in good order, and the lock goes last.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::error::Elapsed;

use super::carried_over::CarriedOver;
use super::held_up::comes_again;
use super::lost_health::health_lost;
use super::service::{Exit, Service, while_leading};
use super::stream_health::Watched;
use crate::apply_worker::apply_loop::{ApplyLimits, ApplyLoop, LoopContext};
use crate::apply_worker::heartbeat::HEARTBEAT_PREFIX;
use crate::apply_worker::parallel_apply::{ParallelApply, ParallelSettings};
use crate::apply_worker::pause::control;
use crate::apply_worker::streaming;
use crate::catalog::fit::Transfer;
use crate::catalog::shape::Shape;
use crate::config::{Config, SchemaChanges, SynchronousCommit};
use crate::destination::{
    Applier, ApplierSettings, ApplyContext, Bookkeeping, ConflictPolicy, DestinationError, Followed, Lead, Marking,
    Request, SourceTables, TableState, Writer, forget_passed_conflict, needed_types, shapes, skips,
};
use crate::error_policy::Fault;
use crate::pg::{Lsn, QualifiedName, RelationId, TypeId};
use crate::preflight::enum_labels::labels_are_missing;
use crate::preflight::fingerprints::passed_indexes;
use crate::preflight::leadership::open_writer;
use crate::preflight::prepare::{Prepared, free_slot};
use crate::preflight::sequences::Sequences;
use crate::progress::Ledger;
use crate::session::{ReplicationSession, Sql, SqlClient, SqlState, StreamOptions};
use crate::source::{
    Confirmed, RelationTracker, SharedCoordinator, SourceCatalog, SourceError, StepReceiver, StreamReport,
    StreamSettings, StreamTask, UnchangedTables, UnseenReport, absent_then, step_channel, stream,
};
use crate::spool::Spool;
use crate::table_sync;
use crate::telemetry::{State, Telemetry};
use crate::transaction::{Assembler, TableSet};
use crate::verification::service::FenceService;
use crate::wire::Decoder;

/// invalid_text_representation: what a value that is no label of its enum raises, in either format.
const INVALID_TEXT: &[u8; 5] = b"22P02";

/// How long the stream may take to end once nobody listens.
const STREAM_END_MAX: Duration = Duration::from_secs(4);

/// How long after a failure a conflict that is over is removed again: its values should not stay, but nobody waits for that.
const FORGET_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A stream that has not come to what an earlier attempt failed at after this time has a long way to go to it, or another timeline,
/// which may not have it.
const CONFLICT_MET_MAX: Duration = Duration::from_secs(60);

/// A stream that the source has begun.
pub(super) struct OpenedStream {
    reading: ToRead,
    applying: ToApply,
    watched: Watched,
    labels: LabelQuestion,
    /// The configured tables.
    tables: Vec<QualifiedName>,
    /// The slot's.
    generation: String,
}

/// What task 1 reads with.
struct ToRead {
    session: ReplicationSession,
    options: StreamOptions,
    spool: Option<Spool>,
    shapes: HashMap<RelationId, Shape>,
    /// Tables of which nothing needs to be asked at first.
    unchanged: Option<UnchangedTables>,
    /// The tables whose changes are wanted.
    tables: TableSet,
    position: Lsn,
}

/// What task 2 writes with.
struct ToApply {
    writer: Writer,
    position: Lsn,
    ledger: Ledger,
    context: ApplyContext,
    policy: ConflictPolicy,
    /// Where the source's WAL ended.
    catch_up_to: Lsn,
}

/// The types that both ends had when the stream began: an enum may have got labels since.
struct LabelQuestion {
    source: SqlClient,
    source_types: Vec<TypeId>,
    destination_types: Vec<TypeId>,
}

/// Task 1, which ends in good order once it is asked to.
struct ReadingTask {
    task: JoinHandle<Result<(), SourceError>>,
    stop: watch::Sender<bool>,
    /// The final_lsn of the transaction that came last.
    begun: Arc<AtomicU64>,
}

/// What became of task 1, if it has ended in time.
type ReadEnd = Result<Result<Result<(), SourceError>, JoinError>, Elapsed>;

/// A stream that something has ended, and that is still to be closed.
pub(super) struct EndedStream<'a> {
    applied: Result<Exit, Fault>,
    pub(super) made_progress: bool,
    applying: ApplyLoop<'a>,
    reading: ReadingTask,
    sequences: Sequences,
    labels: LabelQuestion,
}

impl OpenedStream {
    /// Frees the slot, opens the writing session, reads what the stream stands on, and has the source begin.
    pub(super) async fn open(
        service: &Service,
        carried: &mut CarriedOver,
        bookkeeping: &Bookkeeping,
        lead: &mut Lead,
        mut prepared: Prepared,
        position: Lsn,
    ) -> Result<OpenedStream, Fault> {
        let (config, telemetry) = (Arc::clone(&carried.host.config), &service.telemetry);
        while_leading(lead, free_slot(&prepared, &config, telemetry)).await?;
        // The position is read under the lock, by the session that will advance it.
        let mut writer = open_writer(&config, bookkeeping, lead).await?;
        let held = writer.read_position().await?;
        if held != position {
            return Err(DestinationError::PositionMoved { expected: position, found: held }.into());
        }
        let confirmed_before = prepared.slot.as_ref().and_then(|slot| slot.confirmed_flush_lsn).unwrap_or_default();
        prepared.remember_source(bookkeeping, telemetry).await?;
        let ledger = Ledger::resume(position, confirmed_before, writer.wal_block_bytes());
        let followed = followed(bookkeeping).await?;
        let shapes = shapes(bookkeeping.client()).await?;
        let follow = config.schema_changes == SchemaChanges::Follow;
        for told in prepared.remember(&shapes, bookkeeping.client(), follow).await? {
            telemetry.event("schema", told);
        }
        let unchanged = unchanged(&mut prepared, &shapes)?;
        let source_tables = prepared.source_catalog.tables.iter().map(|table| table.definition.clone()).collect();
        let source_tables = SourceTables::of_stream(source_tables, passed_indexes(bookkeeping).await?);
        let skips = skips(bookkeeping.client(), carried.failed_stream.left_out()).await?;
        let policy = carried.failed_stream.policy(config.on_conflict, skips);

        let watched = Watched::new(&prepared, config.source.publication.clone());
        // Before the state says that it streams.
        telemetry.in_doubt(Request::tables_in_doubt(&bookkeeping.requests().await?));
        let Started { options, spool } = start_replication(service, carried, &mut prepared, position).await?;
        let passed_over = prepared.added.iter().chain(&prepared.suspended).cloned();
        Ok(OpenedStream {
            watched,
            tables: prepared.tables().collect(),
            labels: LabelQuestion {
                source_types: prepared.source_catalog.types.keys().copied().collect(),
                destination_types: prepared.destination_catalog.types.keys().copied().collect(),
                source: prepared.source,
            },
            generation: prepared.stream.map(|stream| stream.generation).unwrap_or_default(),
            reading: ToRead {
                session: prepared.replication,
                options,
                spool,
                shapes,
                unchanged,
                tables: prepared.source_catalog.table_set().passing_over(passed_over),
                position,
            },
            applying: ToApply {
                writer,
                position,
                ledger,
                context: ApplyContext {
                    settings: applier_settings(&config, prepared.transfer),
                    catalog: prepared.destination_catalog,
                    source_types: prepared.source_catalog.types,
                    source_tables,
                    followed,
                },
                policy,
                catch_up_to: prepared.identification.flushed_lsn,
            },
        })
    }

    /// Streams until something ends it.
    pub(super) async fn run<'a>(
        self,
        service: &'a Service,
        carried: &mut CarriedOver,
        lead: &mut Lead,
    ) -> EndedStream<'a> {
        let halted_at = carried.failed_stream.halted_at();
        carried.failed_stream.held_up.source_ends_at(self.applying.catch_up_to);
        let held_up = &carried.failed_stream.held_up;
        let (held_up_at, copies_wait_for) = (held_up.up_to(), held_up.copies_wait_for(halted_at));
        let host = &carried.host;
        let telemetry = &service.telemetry;
        let at_begin = Confirmed { stored: self.applying.position, flushed: self.applying.ledger.flushed() };
        let (confirmed, passed) = watch::channel(at_begin);
        let parallel_apply = self.parallel_apply(service, &host.config);
        let coordinator = parallel_apply.as_ref().map(ParallelApply::coordinator);
        let (reading, steps) = self.reading.begin(service, carried, coordinator, passed.clone());
        let schema_changes = host.config.schema_changes;
        let sequences = Sequences::start(host.addresses.clone(), self.tables, schema_changes, Arc::clone(telemetry));
        let mut health = service.monitor.watch(self.watched);
        // A task that needs apply to pause takes a turn through this.
        let (control, apply_pause) = control();
        let context = LoopContext { apply_pause, instance: service.monitor.instance(), parallel_apply };
        let mut applying = self.applying.begin(&host.config, held_up_at, steps, confirmed, &service.telemetry, context);
        let ends = table_sync::Ends { config: &host.config, addresses: &host.addresses, telemetry };
        let fences =
            FenceService { config: &host.config, addresses: &host.addresses, control: control.clone(), telemetry };
        let copies_may_begin = passed_by(passed.clone(), copies_wait_for);
        let applied = tokio::select! {
            applied = applying.run(service.stopped()) => applied.map_err(Fault::from).map(|()| Exit::Stopped),
            lost = lead.lost() => Err(lost.into()),
            lost = health_lost(&mut health) => Err(lost),
            ended = service.monitor.ended() => Err(ended),
            // It holds until the loop runs no more.
            _held = table_sync::handover::serve(ends, &control, &self.generation, copies_may_begin) => Ok(Exit::Restart),
            () = fences.run() => Ok(Exit::Stopped),
            () = forget_conflict(&host.addresses.destination, passed, halted_at) => Ok(Exit::Stopped),
        };
        let made_progress = applying.made_progress();
        EndedStream { applied, made_progress, applying, reading, sequences, labels: self.labels }
    }

    /// Who applies large transactions in parallel; nobody where foreign keys and triggers act.
    fn parallel_apply(&self, service: &Service, config: &Config) -> Option<ParallelApply> {
        let writer = &self.applying.writer;
        let spool = self.reading.spool.as_ref()?;
        let settings = ParallelSettings {
            writing: writer.settings().clone(),
            role: writer.role(),
            marked: matches!(writer.marking(), Marking::Origin(_)),
            chunk_bytes_max: config.apply.batch_bytes_max,
            spool_memory_bytes_max: config.spool.memory_bytes_max,
        };
        ParallelApply::start(settings, spool.peeker(), self.applying.position, Arc::clone(&service.telemetry))
    }
}

impl ToRead {
    /// Starts task 1.
    fn begin(
        self,
        service: &Service,
        carried: &CarriedOver,
        coordinator: Option<SharedCoordinator>,
        confirmed: watch::Receiver<Confirmed>,
    ) -> (ReadingTask, StepReceiver) {
        let config = &carried.host.config;
        let chunk_bytes_max = config.apply.batch_bytes_max;
        let assembler = Assembler::new(self.tables, chunk_bytes_max, HEARTBEAT_PREFIX, self.position);
        // As much again as the batch being filled: the source is read on while the destination is busy.
        let (steps, receiver) = step_channel(2 * chunk_bytes_max);
        let (stop, stopping) = watch::channel(false);
        let describing = Sql { purpose: "describing", ..carried.host.addresses.source.clone() };
        let mut tracker = RelationTracker::new(describing, self.shapes).with_waits(told_unseen(service, carried));
        if let Some(unchanged) = self.unchanged {
            tracker = tracker.with_unchanged(unchanged);
        }
        let task = StreamTask {
            session: self.session,
            decoder: Decoder::new(false),
            assembler: streaming::assembler(assembler, config, &self.options),
            tracker,
            steps,
            spool: self.spool,
            coordinator,
            looks: Some(service.monitor.looks()),
            confirmed,
            settings: StreamSettings { timeout: config.source.timeout, sender_timeout: config.source.timeout },
            stop: stopping,
        };
        let (telemetry, truncations) = (Arc::clone(&service.telemetry), service.monitor.truncations());
        let begun = Arc::new(AtomicU64::new(0));
        let begins = Arc::clone(&begun);
        let task = tokio::spawn(stream(task, move |report| match report {
            StreamReport::Heard { source, local } => telemetry.heard(source, local),
            StreamReport::Received { final_lsn, committed_at } => {
                begins.store(final_lsn.as_u64(), Ordering::Relaxed);
                telemetry.received(final_lsn, committed_at);
            }
            StreamReport::Truncated { table, truncation } => truncations.note(table, truncation),
        }));
        (ReadingTask { task, stop, begun }, receiver)
    }
}

impl ToApply {
    /// The loop of task 2.
    fn begin<'a>(
        self,
        config: &Config,
        held_up_at: Lsn,
        steps: StepReceiver,
        confirmed: watch::Sender<Confirmed>,
        telemetry: &'a Telemetry,
        context: LoopContext,
    ) -> ApplyLoop<'a> {
        let applier = Applier::new(self.writer, self.position, self.context, self.policy);
        let limits = ApplyLimits {
            batch_rows_max: config.apply.batch_rows_max,
            batch_bytes_max: config.apply.batch_bytes_max,
            leader_timeout: config.leader_timeout,
            commits_are_durable: config.destination.synchronous_commit != SynchronousCommit::Off,
            catch_up_to: self.catch_up_to,
            held_up_at,
        };
        ApplyLoop::new(applier, steps, self.ledger, confirmed, telemetry, limits, context)
    }
}

impl EndedStream<'_> {
    /// Ends both tasks in good order, and says what ended the stream.
    pub(super) async fn close(self, service: &Service, carried: &mut CarriedOver, lead: Lead) -> Result<Exit, Fault> {
        let (submitted_up_to, reached_up_to) = (self.applying.submitted_up_to(), self.applying.reached_up_to());
        // Closes the way back: task 1 then confirms what was stored, and ends the stream in good order.
        self.applying.close().await;
        service.monitor.unwatch();
        // A task that has ended listens no more.
        let _ = self.reading.stop.send(true);
        // The lock comes last: who takes it finds no writing session of ours.
        let (read, ()) = tokio::join!(tokio::time::timeout(STREAM_END_MAX, self.reading.task), lead.close());
        service.telemetry.stream_ends();
        let read_error = read.as_ref().ok().and_then(|read| read.as_ref().ok()?.as_ref().err());
        let failed = [self.applied.as_ref().err().map(fails_to_read), read_error.map(comes_again)];
        let held_up = &mut carried.failed_stream.held_up;
        match failed.into_iter().flatten().max() {
            // The stream stands at the transaction that came last, or the source at one behind it.
            Some(true) => {
                let begun = Lsn::new(self.reading.begun.load(Ordering::Relaxed));
                held_up.failed(submitted_up_to.max(begun).max(reached_up_to));
            }
            Some(false) => held_up.failed(submitted_up_to),
            None => {}
        }
        if service.is_stopping() {
            self.sequences.finish().await;
        }
        let destination = carried.host.addresses.destination.clone();
        if self.labels.explain(&self.applied, &destination).await? {
            return Err(DestinationError::LabelMissing.into());
        }
        let ended = match self.applied {
            Ok(Exit::Stopped) => ended_with(read, service, carried),
            applied => applied,
        };
        if let Err(Fault::Source(SourceError::Gap { remembered, .. })) = &ended {
            Bookkeeping::connect(&destination).await?.set_gap(remembered).await?;
        }
        ended
    }
}

/// What became of a stream that nothing but task 1 may have ended.
fn ended_with(read: ReadEnd, service: &Service, carried: &mut CarriedOver) -> Result<Exit, Fault> {
    match read {
        Ok(Ok(Err(error))) if !service.is_stopping() => {
            carried.failed_stream.spool_failed = matches!(error, SourceError::Spool(_));
            Err(absent_then(&carried.host.config.source.publication, error).into())
        }
        Ok(Ok(Err(_) | Ok(()))) | Err(_) if service.is_stopping() => Ok(Exit::Stopped),
        // The steps ended, but the stream says that nothing is wrong with it: it was asked to stop.
        Ok(Ok(_)) | Err(_) => Err(SourceError::Ended.into()),
        Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

impl LabelQuestion {
    /// Whether the stream ended with a value that is a label at the source by now.
    async fn explain(&self, applied: &Result<Exit, Fault>, destination: &Sql) -> Result<bool, Fault> {
        let Err(Fault::Destination(DestinationError::Conflict(conflict))) = applied else { return Ok(false) };
        if conflict.code != SqlState::new(INVALID_TEXT) {
            return Ok(false);
        }
        let destination = destination.connect().await.map_err(DestinationError::Session)?;
        labels_are_missing(&self.source, &destination, &self.source_types, &self.destination_types).await
    }
}

/// How the source was asked to stream.
struct Started {
    options: StreamOptions,
    spool: Option<Spool>,
}

/// Opens the spool, and has the source begin.
async fn start_replication(
    service: &Service,
    carried: &mut CarriedOver,
    prepared: &mut Prepared,
    position: Lsn,
) -> Result<Started, Fault> {
    let (config, telemetry) = (&carried.host.config, &service.telemetry);
    let mut options = streaming::options(config, prepared.server.version, prepared.transfer);
    options.streaming &= !std::mem::take(&mut carried.failed_stream.spool_failed);
    let spool = streaming::open_spool(config, telemetry, &mut options).await;
    let started = prepared.replication.start(&config.source.slot, position, &options).await;
    started.map_err(SourceError::Session)?;

    telemetry.suspended(&prepared.suspended);
    telemetry.stream_begins(position, prepared.tables());
    if !telemetry.is_held_up() {
        telemetry.set_state(State::CatchingUp, None);
    }
    carried.done.has_streamed = true;
    Ok(Started { options, spool })
}

fn applier_settings(config: &Config, transfer: Transfer) -> ApplierSettings {
    ApplierSettings {
        truncate: config.truncate,
        commits_are_durable: config.destination.synchronous_commit != SynchronousCommit::Off,
        transfer,
        follow_schema_changes: config.schema_changes == SchemaChanges::Follow,
        trusted_roles: config.destination.trusted_roles.clone(),
        names_owners: config.destination.names_owners(),
        timeout: config.destination.answer_max(),
    }
}

/// Tells which transaction a question about a changed table waits for.
fn told_unseen(service: &Service, carried: &CarriedOver) -> UnseenReport {
    let (telemetry, told) = (Arc::clone(&service.telemetry), Arc::clone(&carried.done.unseen_told));
    Arc::new(move |wait: Option<&str>| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = wait.filter(|text| **text != **told) {
            telemetry.warning("wait", text);
            text.clone_into(&mut told);
        }
        telemetry.waits("describing", wait.map(str::to_owned).into_iter().collect());
    })
}

/// Resolves once the stored position has passed what an earlier attempt failed at, and without that at once.
async fn passed_by(mut stored: watch::Receiver<Confirmed>, halted_at: Option<Lsn>) {
    if let Some(halted_at) = halted_at {
        let passing = stored.wait_for(|confirmed| confirmed.stored > halted_at);
        // Without a sender the stream has ended, and nobody waits for this.
        let _ = tokio::time::timeout(CONFLICT_MET_MAX, passing).await;
    }
}

/// Removes the conflict that an earlier attempt met, with its values, once the stored position has passed it; then pending. Somebody may
/// lock the table for longer than a statement may take, so each try has a session of its own, which nobody else waits for.
async fn forget_conflict(destination: &Sql, mut passed: watch::Receiver<Confirmed>, halted_at: Option<Lsn>) {
    let halted_at = halted_at.unwrap_or(Lsn::INVALID);
    if passed.wait_for(|confirmed| confirmed.stored > halted_at).await.is_err() {
        return std::future::pending().await;
    }
    let forgetting = async || forget_passed_conflict(Bookkeeping::connect(destination).await?.client()).await;
    while let Err(error) = forgetting().await {
        tracing::debug!("a passed conflict could not be cleared: {error}");
        tokio::time::sleep(FORGET_AGAIN_AFTER).await;
    }
    std::future::pending().await
}

/// Whether a stream ended because it cannot be read on, though the monitor found that.
fn fails_to_read(fault: &Fault) -> bool {
    matches!(fault, Fault::Source(error) if comes_again(error))
}

/// The tables whose shapes are what the catalog said when they were described, under the fingerprint that they have had since before. Of
/// a partition that nothing is known of, the next description decides whether its rows have come.
fn unchanged(
    prepared: &mut Prepared,
    shapes: &HashMap<RelationId, Shape>,
) -> Result<Option<UnchangedTables>, DestinationError> {
    let Some(mut unchanged) = prepared.unchanged.take() else { return Ok(None) };
    let SourceCatalog { tables, types, .. } = &prepared.source_catalog;
    let mut same = HashSet::new();
    for table in tables {
        let id = table.definition.relation_id();
        let Some(known) = shapes.get(&id) else { continue };
        let leaves = known.leaves();
        if table.definition.partitions.iter().flatten().any(|leaf| leaves.is_unknown(leaf.id)) {
            continue;
        }
        // Only the types that the table itself uses, as in a description of this table alone.
        let ids = needed_types(types, table.definition.columns.iter().map(|column| column.type_id))?;
        let types = ids.iter().filter_map(|id| Some((*id, types.get(id)?.clone()))).collect();
        let now = Shape::of(&table.definition, &types, |column| table.columns.contains(column));
        if *known == now.with_leaves(leaves) {
            same.insert(id);
        }
    }
    unchanged.digests.retain(|table, _| same.contains(table));
    Ok(Some(unchanged))
}

/// The tables that are followed.
async fn followed(bookkeeping: &Bookkeeping) -> Result<HashMap<RelationId, Followed>, DestinationError> {
    let tables = bookkeeping.tables().await?;
    Ok(tables
        .into_iter()
        .filter_map(|table| match table.state {
            TableState::Live { snapshot_position } => {
                let destination_id = Some(table.destination_id);
                Some((table.source_id, Followed { name: table.name, destination_id, snapshot_position }))
            }
            TableState::Staging => None,
        })
        .collect())
}
