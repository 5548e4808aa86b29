//! Staging follows the source too: the temporary slot's stream, applied to staging instead of the live tables.
//!
//! Used by `handover` once everything is copied. It is a small replication loop: the same stream task, assembler,
//! batcher and applier, with a position of its own in the staging schema. The batcher's fence stops it at any point that the
//! caller names: after [`CatchUp::advance_to`] staging holds every transaction with commit_lsn before that point and
//! none other. So staging can reach exactly the position at which the live tables stand.
//!
//! ```text
//! temporary slot ══▶ source::stream ══ steps ══▶ fence ── renamed ──▶ Applier ──▶ staging
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::apply_plan::{BatchLimits, Batcher, Work};
use crate::apply_worker::heartbeat::HEARTBEAT_PREFIX;
use crate::apply_worker::streaming;
use crate::catalog::shape::Shape;
use crate::config::{OnConflict, SynchronousCommit, TruncateMode};
use crate::destination::{
    Applier, ApplierSettings, ApplyContext, Catalog, ConflictPolicy, DestinationError, Followed, SourceTables,
    StagedTable, Staging, Writer, WritingSettings,
};
use crate::error_policy::Fault;
use crate::pg::{Lsn, QualifiedName, Relation, RelationId, SlotName};
use crate::progress::StoredPosition;
use crate::session::{ReplicationSession, Sql, SqlClient};
use crate::source::{
    Confirmed, Marks, RelationTracker, SourceError, SourceServer, StepReceiver, StreamSettings, StreamTask,
    step_channel, stream,
};
use crate::table_sync::copied_partitions::CopiedPartitions;
use crate::table_sync::ends::{Ends, Tables};
use crate::telemetry::Telemetry;
use crate::transaction::{Assembler, Change, SchemaChange, Step, TableSet};
use crate::wire::Decoder;

/// The staging session is in nobody's way and guards nothing: it may be idle for as long as a comparison takes.
const IDLE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Staging on its way to the live tables' position.
pub(super) struct CatchUp {
    applier: Applier,
    steps: StepReceiver,
    steps_ended: bool,
    batcher: Batcher,
    confirmed: watch::Sender<Confirmed>,
    reading: JoinHandle<Result<(), SourceError>>,
    /// Kept for as long as the stream is to be read.
    stop: watch::Sender<bool>,
    /// Each table's name in staging, and the one that it has elsewhere.
    tables: HashMap<RelationId, QualifiedName>,
    live: HashMap<RelationId, QualifiedName>,
    /// The tables as they were copied.
    marks: Marks,
    /// What is known of their partitions.
    partitions: CopiedPartitions,
    /// Of the transaction whose steps come.
    commit_lsn: Lsn,
    source: Sql,
    renamed: HashMap<RelationId, (Arc<Relation>, Arc<Relation>)>,
    /// The stream has nothing for us up to here.
    reached: Lsn,
    telemetry: Arc<Telemetry>,
}

impl Drop for CatchUp {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// The temporary slot's stream as it begins.
pub(super) struct SlotStream<'a> {
    pub(super) slot: &'a SlotName,
    /// The slot goes with it.
    pub(super) session: ReplicationSession,
    pub(super) staging: &'a Staging,
    pub(super) consistent_point: Lsn,
}

impl CatchUp {
    /// Starts the temporary slot's stream at its consistent point.
    pub(super) async fn begin(
        ends: Ends<'_>,
        client: &SqlClient,
        server: &SourceServer,
        tables: &Tables<'_>,
        temporary: SlotStream<'_>,
        partitions: CopiedPartitions,
    ) -> Result<CatchUp, Fault> {
        let Ends { config, .. } = ends;
        let SlotStream { slot, mut session, staging, consistent_point: from } = temporary;
        staging.track(client, from).await?;
        let applier = applier(ends, client, tables, slot, staging, from).await?;
        let mut options = streaming::options(config, server.version, tables.transfer);
        // There is one spool, and it is the live stream's. A large transaction comes here when it has committed.
        options.streaming = false;
        session.start(slot, from, &options).await.map_err(SourceError::Session)?;
        let set = staging.tables.iter().map(|table| (table.source.relation_id(), table.live.clone()));
        let bytes_max = config.apply.batch_bytes_max;
        let (steps, receiver) = step_channel(2 * bytes_max);
        let (confirmed, confirmed_receiver) = watch::channel(Confirmed { stored: from, flushed: from });
        let (stop_stream, stop) = watch::channel(false);
        let shapes = shapes(tables, staging);
        let assembler = Assembler::new(TableSet::new(set), bytes_max, HEARTBEAT_PREFIX, from);
        let task = StreamTask {
            session,
            decoder: Decoder::new(false),
            assembler: streaming::assembler(assembler, config, &options),
            steps,
            spool: None,
            coordinator: None,
            // The tables are locked against such changes, and the catalog is compared at the end.
            looks: None,
            tracker: RelationTracker::new(Sql { purpose: "describing", ..ends.addresses.source.clone() }, shapes),
            confirmed: confirmed_receiver,
            settings: StreamSettings { timeout: config.source.timeout, sender_timeout: config.source.timeout },
            stop,
        };
        let limits = BatchLimits { rows_max: config.apply.batch_rows_max, bytes_max };
        Ok(CatchUp {
            applier,
            steps: receiver,
            steps_ended: false,
            batcher: Batcher::new(limits),
            confirmed,
            reading: tokio::spawn(stream(task, |_| {})),
            stop: stop_stream,
            tables: names_by_id(staging, |table| &table.staging),
            live: names_by_id(staging, |table| &table.live),
            marks: tables.source.marks.clone(),
            partitions,
            commit_lsn: Lsn::INVALID,
            source: Sql { purpose: "describing", ..ends.addresses.source.clone() },
            renamed: HashMap::new(),
            reached: from,
            telemetry: Arc::clone(ends.telemetry),
        })
    }

    /// Applies every transaction with commit_lsn before `point`, and none other. Not cancel-safe: what is given up here
    /// has lost its staging.
    pub(super) async fn advance_to(&mut self, point: Lsn) -> Result<(), Fault> {
        self.batcher.set_fence(Some(point));
        loop {
            while self.applier.has_room()
                && let Some(work) = self.batcher.next_work()
            {
                match work {
                    Work::Reached(position) => self.reached = self.reached.max(position),
                    Work::Apply(task) => self.applier.submit(task, false).await.map_err(lost)?,
                    // Its steps come from a stream without a spool, of which nothing is applied in parallel.
                    Work::CommitParallel(_) => {
                        return Err(lost(DestinationError::StagingLost(
                            "a transaction was left to parallel apply".to_owned(),
                        )));
                    }
                }
            }
            self.telemetry.snapshot_lacks_wal(point.bytes_since(self.reached.max(self.applier.stored())));
            let idle = !self.applier.is_busy() && !self.applier.in_large_transaction();
            let nothing_before = self.batcher.at_fence() || self.reached.max(self.applier.stored()) >= point;
            if idle && nothing_before && (self.batcher.is_empty() || self.batcher.at_fence()) {
                return Ok(());
            }
            if self.steps_ended && idle {
                return Err(self.broken_off().await);
            }
            tokio::select! {
                answered = self.applier.answered(), if self.applier.is_busy() => {
                    let applied = self.applier.conclude(answered.map_err(lost)?).await.map_err(lost)?;
                    if let Some(StoredPosition { position, .. }) = applied.and_then(|applied| applied.stored) {
                        self.confirmed.send_replace(Confirmed { stored: position, flushed: position });
                    }
                }
                step = self.steps.next(), if !self.steps_ended && self.batcher.has_room() => match step {
                    Some(step) => self.take(step).await?,
                    None => self.steps_ended = true,
                },
            }
        }
    }

    /// Hands what is known of partitions to the publish, once staging is where the live tables stand.
    pub(super) fn settle(&self, staging: &mut Staging) {
        self.partitions.settle(staging);
    }

    /// Ends both sessions, and with them the temporary slot.
    pub(super) async fn close(mut self) {
        self.stop.send_replace(true);
        // The way back is closed too: then the stream ends in good order.
        self.confirmed = watch::channel(Confirmed { stored: Lsn::INVALID, flushed: Lsn::INVALID }).0;
        let _ = tokio::time::timeout(Duration::from_secs(4), &mut self.reading).await;
    }

    async fn broken_off(&mut self) -> Fault {
        match (&mut self.reading).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => SourceError::Ended.into(),
        }
    }

    async fn take(&mut self, mut step: Step) -> Result<(), Fault> {
        match &mut step {
            Step::Transaction(transaction) => transaction.changes.iter_mut().for_each(|change| self.rename(change)),
            Step::Chunk(chunk) => chunk.changes.iter_mut().for_each(|change| self.rename(change)),
            Step::Schema(change) => return self.check_unaltered(change).await,
            Step::Begin(begin) => self.commit_lsn = begin.final_lsn,
            Step::Commit { .. } | Step::AppliedInParallel { .. } | Step::Reached(_) => {}
        }
        self.batcher.push(step);
        Ok(())
    }

    /// A table that was altered since it was copied is copied again. One that was not may be described in another way all the same:
    /// a TRUNCATE has given it another file, one of its enums has got a label, a partition has come.
    async fn check_unaltered(&self, change: &SchemaChange) -> Result<(), Fault> {
        let Some(live) = self.live.get(&change.relation.id) else { return Ok(()) };
        if let Err(reason) = self.partitions.named(change, self.commit_lsn).map_err(SourceError::Session)? {
            let what = format!("table {live} was changed at the source meanwhile: {reason}");
            return Err(DestinationError::StagingLost(what).into());
        }
        let client = self.source.connect().await.map_err(SourceError::Session)?;
        let now = Marks::read(&client, std::slice::from_ref(live)).await?;
        match now.altered(&self.marks, [live]) {
            Some(table) => {
                let what = format!("table {table} was changed at the source meanwhile");
                Err(DestinationError::StagingLost(what).into())
            }
            None => Ok(()),
        }
    }

    /// Makes a change one of staging's.
    fn rename(&mut self, change: &mut Change) {
        for relation in change.relations_mut() {
            *relation = self.staged(relation);
        }
    }

    fn staged(&mut self, relation: &Arc<Relation>) -> Arc<Relation> {
        if let Some((known, renamed)) = self.renamed.get(&relation.id)
            && Arc::ptr_eq(known, relation)
        {
            return Arc::clone(renamed);
        }
        let Some(name) = self.tables.get(&relation.id) else { return Arc::clone(relation) };
        let renamed = Arc::new(Relation { name: name.clone(), ..(**relation).clone() });
        self.renamed.insert(relation.id, (Arc::clone(relation), Arc::clone(&renamed)));
        renamed
    }
}

/// What writes into staging, from its own position on.
async fn applier(
    ends: Ends<'_>,
    client: &SqlClient,
    tables: &Tables<'_>,
    slot: &SlotName,
    staging: &Staging,
    from: Lsn,
) -> Result<Applier, Fault> {
    let config = ends.config;
    let settings = WritingSettings {
        connection: config.destination.url.clone(),
        slot: slot.clone(),
        positions: staging.schema.clone(),
        silence_max: IDLE_MAX,
        lock_timeout: config.destination.lock_timeout,
        timeout: config.destination.answer_max(),
        synchronous_commit: SynchronousCommit::Off,
    };
    let mut writer = Writer::of_staging(&settings).await?;
    let position = writer.read_position().await?;
    let names: Vec<QualifiedName> = staging.tables.iter().map(|table| table.staging.clone()).collect();
    let catalog = Catalog::read(client, &names).await?;
    let source_tables = tables.source.tables.iter().map(|table| table.definition.clone());
    let context = ApplyContext {
        settings: ApplierSettings {
            truncate: TruncateMode::Truncate,
            // Nothing is confirmed on the strength of it that would be missed: staging goes with a crash.
            commits_are_durable: true,
            follow_schema_changes: false,
            trusted_roles: config.destination.trusted_roles.clone(),
            names_owners: config.destination.names_owners(),
            transfer: tables.transfer,
            timeout: config.destination.answer_max(),
        },
        catalog,
        source_types: tables.source.types.clone(),
        source_tables: SourceTables::unchanged(source_tables.collect()),
        followed: followed(staging, from),
    };
    // Staging holds the source's own rows: whatever does not fit them is a loss of staging.
    Ok(Applier::new(writer, position, context, ConflictPolicy::new(OnConflict::Stop)))
}

/// The tables as they were copied.
fn shapes(tables: &Tables<'_>, staging: &Staging) -> HashMap<RelationId, Shape> {
    let shapes = staging.tables.iter().map(|table| {
        let id = table.source.relation_id();
        let shape = Shape::of(&table.source, &tables.source.types, |column| table.published.contains(column));
        let leaves = staging.leaves.get(&id).cloned().unwrap_or_else(|| shape.leaves());
        (id, shape.with_leaves(leaves))
    });
    shapes.collect()
}

fn followed(staging: &Staging, from: Lsn) -> HashMap<RelationId, Followed> {
    // Staging is headwater's own, and its statements compare its tables all the same.
    let followed =
        |name: &QualifiedName| Followed { name: name.clone(), destination_id: None, snapshot_position: from };
    staging.tables.iter().map(|table| (table.source.relation_id(), followed(&table.staging))).collect()
}

fn names_by_id(staging: &Staging, name: impl Fn(&StagedTable) -> &QualifiedName) -> HashMap<RelationId, QualifiedName> {
    staging.tables.iter().map(|table| (table.source.relation_id(), name(table).clone())).collect()
}

/// What goes wrong with staging's rows is no conflict of the live tables'.
fn lost(error: DestinationError) -> Fault {
    match error {
        DestinationError::Conflict(conflict) => {
            DestinationError::StagingLost(format!("the stream does not fit what is staged: {conflict}")).into()
        }
        DestinationError::PositionMoved { .. } => {
            DestinationError::StagingLost("its position is gone: the destination has crashed".to_owned()).into()
        }
        error @ (DestinationError::Session(_)
        | DestinationError::Refused(_)
        | DestinationError::Constraint(_)
        | DestinationError::KeyRefuses(_)
        | DestinationError::Bind(_)
        | DestinationError::NoIdentity(_)
        | DestinationError::LabelMissing
        | DestinationError::AttributesRenamed
        | DestinationError::FormatChanged(_)
        | DestinationError::NeedsCopy { .. }
        | DestinationError::OtherTables(_)
        | DestinationError::ColumnLost { .. }
        | DestinationError::Renamed { .. }
        | DestinationError::SetsRefused { .. }
        | DestinationError::WantedOut { .. }
        | DestinationError::LacksMost { .. }
        | DestinationError::Silent(_)
        | DestinationError::StagingLost(_)) => error.into(),
    }
}
