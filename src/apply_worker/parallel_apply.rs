//! Parallel apply's tasks: the second writing session, and the apply loop's end of it.
//!
//! What is done with which transaction, and why not, is decided by [`Coordinator`] (pure); this is the shell around it. Started by
//! `attempt` where it is sound, shared with the step router as [`SharedCoordinator`]:
//!
//! ```text
//! spool ── records ──▶ SecondWriter ═ requests ═▶ destination        BEGIN · rows … rows … advance(p, end_lsn) · COMMIT
//!                        │       ▲
//!      opened, answered, │       │ read, send, commit, ping, cancel
//!      applied, closed   ▼       │
//!                       Coordinator ◀── stored, turn, poll ── apply loop
//! ```
//!
//! A source that is not in a hurry commits minutes after its first rows came; and one that is replayed from a backlog still
//! decodes while we apply. Either way little is left to do at the commit. Whatever goes wrong here only cancels that.
//!
//! Bounds: one transaction at a time; a chunk being gathered and two pipelined requests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::counts::{add_counts, count};
use crate::apply_core::{
    Coordinator, Observed, Obstacle, ParallelLimits, SecondSession, SessionAction, SessionRole, obstacle,
};
use crate::destination::{
    Applier, ApplyContext, DestinationError, ParallelApplied, ParallelApplier, ReplicationRole, Writer, WritingSettings,
};
use crate::pg::{Lsn, Relation, length_u64};
use crate::source::{Changes, SharedCoordinator};
use crate::spool::{Peeker, SpoolError};
use crate::telemetry::{RowCount, Telemetry, failpoint};
use crate::transaction::{Change, RecordError, read_changes};
use crate::wire::Commit;

/// A stream is worth a session from this share of `spool.memory_bytes_max` on, and from [`WORTH_BYTES_MAX`] on in any case.
const WORTH_SHARE: u64 = 16;
/// 4 MiB of records are a second or so of work.
const WORTH_BYTES_MAX: u64 = 4 << 20;
/// What is in the spool by count may still be on its way to the spool's thread.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long the session may take to end.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// How long the apply loop waits for this session's locks to be gone.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// What parallel apply needs.
pub(crate) struct ParallelSettings {
    /// The session that writes next to the leader's is like it.
    pub(crate) writing: WritingSettings,
    /// The leader's.
    pub(crate) role: ReplicationRole,
    /// What the leader writes is marked with an origin, so this must be, too.
    pub(crate) marked: bool,
    pub(crate) chunk_bytes_max: usize,
    /// `spool.memory_bytes_max`.
    pub(crate) spool_memory_bytes_max: u64,
}

/// The apply loop's end of it.
pub(crate) struct ParallelApply {
    coordinator: SharedCoordinator,
    changes: Changes,
    tables: SharedTables,
    writer: JoinHandle<()>,
}

/// The tables as they are known now, for the second session to start from; the coordinator says whether it may.
type SharedTables = Arc<Mutex<Option<ApplyContext>>>;

impl Drop for ParallelApply {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl ParallelApply {
    /// Starts the second session's task for a stream from `position` on; `None` where something stands against parallel apply of any
    /// transaction.
    pub(crate) fn start(
        settings: ParallelSettings,
        peeker: Peeker,
        position: Lsn,
        telemetry: Arc<Telemetry>,
    ) -> Option<ParallelApply> {
        let role = match settings.role {
            ReplicationRole::Replica => SessionRole::Replica,
            ReplicationRole::Origin => SessionRole::Origin,
        };
        if obstacle(&Observed::Role(role)).is_some() {
            return None;
        }
        let limits = ParallelLimits {
            worth_bytes: (settings.spool_memory_bytes_max / WORTH_SHARE).min(WORTH_BYTES_MAX),
            chunk_bytes_max: settings.chunk_bytes_max,
            ping_every: settings.writing.silence_max / 3,
        };
        let coordinator = SharedCoordinator::new(Coordinator::new(position, limits));
        let tables = SharedTables::default();
        let writer = SecondWriter {
            coordinator: coordinator.clone(),
            tables: Arc::clone(&tables),
            peeker,
            settings,
            telemetry,
            began: Instant::now(),
        };
        let changes = coordinator.watch();
        Some(ParallelApply { coordinator, changes, tables, writer: tokio::spawn(writer.run()) })
    }

    /// For the step router, which reports what of a stream is in the spool.
    pub(crate) fn coordinator(&self) -> SharedCoordinator {
        self.coordinator.clone()
    }

    /// Tells the coordinator something, or asks it.
    pub(crate) fn with<T>(&self, call: impl FnOnce(&mut Coordinator) -> T) -> T {
        self.coordinator.with(call)
    }

    /// Resolves when there may be news. Cancel-safe.
    pub(crate) async fn changed(parallel_apply: Option<&mut ParallelApply>) {
        match parallel_apply {
            Some(parallel_apply) => parallel_apply.changes.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Gives the second session the tables as they are now.
    pub(crate) fn share_tables(&self, applier: &Applier) {
        *self.tables.lock().unwrap_or_else(PoisonError::into_inner) = Some(applier.context());
        self.with(Coordinator::tables_current);
    }

    /// Waits until the second session has released its locks: a table is about to change.
    pub(crate) async fn released(&mut self) {
        let released = async {
            while self.coordinator.with(|coordinator| coordinator.holds_locks()) {
                self.changes.changed().await;
            }
        };
        // After that, apply waits for a lock that is still held as for any other session's.
        let _ = tokio::time::timeout(RELEASE_MAX, released).await;
    }

    /// Ends the task and its session; what is not committed is rolled back.
    pub(crate) async fn end(mut self) {
        self.with(Coordinator::close);
        let _ = tokio::time::timeout(CLOSE_MAX, &mut self.writer).await;
    }
}

/// Why a stream is not applied in parallel any more.
#[derive(Debug, thiserror::Error)]
enum Cancelled {
    #[error("{0}")]
    Obstacle(Obstacle),
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Cancelled {
    fn obstacle(&self) -> Obstacle {
        match self {
            Cancelled::Obstacle(obstacle) => *obstacle,
            Cancelled::Destination(_) | Cancelled::Spool(_) | Cancelled::Record(_) => Obstacle::SessionFailed,
        }
    }
}

/// The second session's task.
struct SecondWriter {
    coordinator: SharedCoordinator,
    tables: SharedTables,
    peeker: Peeker,
    settings: ParallelSettings,
    telemetry: Arc<Telemetry>,
    /// The coordinator's times are since this.
    began: Instant,
}

impl SecondWriter {
    async fn run(self) {
        let mut changes = self.coordinator.watch();
        while !self.coordinator.with(|coordinator| coordinator.is_closed()) {
            changes.seen();
            let Some(xid) = self.coordinator.with(Coordinator::start) else {
                changes.changed().await;
                continue;
            };
            if let Err(cancelled) = self.apply(xid, &mut changes).await {
                let obstacle = cancelled.obstacle();
                if obstacle == Obstacle::SessionFailed {
                    tracing::debug!(xid, "the second session has failed: {cancelled}");
                }
                self.coordinator.with(|coordinator| coordinator.cancel(xid, obstacle));
            }
            self.coordinator.with(|coordinator| coordinator.session_closed(xid));
        }
    }

    /// Applies a stream on a session of its own, until it is committed or cancelled.
    async fn apply(&self, xid: u32, changes: &mut Changes) -> Result<(), Cancelled> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // The coordinator starts nothing while they are not there.
        let Some(tables) = tables else { return Err(Cancelled::Obstacle(Obstacle::TableChanging)) };
        let Some(writer) = Writer::for_parallel_apply(&self.settings.writing, self.settings.marked).await? else {
            return Err(Cancelled::Obstacle(Obstacle::NoSession));
        };
        self.coordinator.with(|coordinator| coordinator.session_opened(self.began.elapsed()));
        let mut transaction = TransactionInApply {
            applier: ParallelApplier::begin(writer, tables).await?,
            gathered: Vec::new(),
            gathered_bytes: 0,
            counts: Vec::new(),
            missing_deletes: 0,
        };
        let followed = self.follow(xid, &mut transaction, changes).await;
        let close = transaction.applier.into_writer().close();
        let _ = tokio::time::timeout(CLOSE_MAX, close).await;
        followed
    }

    /// Carries out what the coordinator says.
    async fn follow(
        &self,
        xid: u32,
        transaction: &mut TransactionInApply,
        changes: &mut Changes,
    ) -> Result<(), Cancelled> {
        loop {
            changes.seen();
            let (session, now) = (transaction.session(), self.began.elapsed());
            match self.coordinator.with(|coordinator| coordinator.next(xid, session, now)) {
                SessionAction::Read { from, until, relations } => {
                    self.read(xid, RecordRange { from, until, relations }, transaction).await?;
                }
                SessionAction::Send => transaction.send().await?,
                SessionAction::Ping => transaction.applier.ping().await?,
                SessionAction::Commit { from, commit } => return self.commit(xid, transaction, from, commit).await,
                SessionAction::Cancel(obstacle) => return Err(Cancelled::Obstacle(obstacle)),
                SessionAction::Wait(wait) => {
                    tokio::select! {
                        answered = transaction.applier.answered(), if session.is_busy => {
                            self.coordinator.with(|coordinator| coordinator.answered(self.began.elapsed()));
                            transaction.missing_deletes += transaction.applier.conclude(answered?)?.missing_deletes;
                        }
                        () = changes.changed() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    async fn read(
        &self,
        xid: u32,
        records: RecordRange,
        transaction: &mut TransactionInApply,
    ) -> Result<(), Cancelled> {
        let RecordRange { from, until, relations } = records;
        let found = self.peeker.peek(xid, from, until).await?;
        let end = from + length_u64(found.len());
        if end < until {
            self.coordinator.with(|coordinator| coordinator.found(xid, end));
        }
        if found.is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        transaction.gather(read_changes(&found, &relations)?)
    }

    async fn commit(
        &self,
        xid: u32,
        transaction: &mut TransactionInApply,
        from: Lsn,
        commit: Commit,
    ) -> Result<(), Cancelled> {
        failpoint::reached("ahead.commit");
        transaction.applier.commit(from, &commit).await?;
        let applied = transaction.answer().await?;
        failpoint::reached("ahead.committed");
        self.telemetry.batch_applied(0, &transaction.counts, transaction.missing_deletes, applied.elapsed);
        self.coordinator.with(|coordinator| coordinator.applied(xid));
        tracing::debug!(xid, end_lsn = %commit.end_lsn, "applied ahead of its commit");
        Ok(())
    }
}

/// Records to read from the spool.
struct RecordRange {
    from: u64,
    until: u64,
    relations: Vec<Arc<Relation>>,
}

/// A transaction that is being applied.
struct TransactionInApply {
    applier: ParallelApplier,
    /// The chunk that is being gathered, and what it weighs.
    gathered: Vec<Change>,
    gathered_bytes: usize,
    /// What was applied of it.
    counts: Vec<RowCount>,
    missing_deletes: u64,
}

impl TransactionInApply {
    fn session(&self) -> SecondSession {
        SecondSession {
            gathered: self.gathered.len(),
            gathered_bytes: self.gathered_bytes,
            is_busy: self.applier.is_busy(),
            has_room: self.applier.has_room(),
        }
    }

    fn gather(&mut self, changes: Vec<Change>) -> Result<(), Cancelled> {
        if let Some(obstacle) = self.applier.obstacle(&changes)? {
            return Err(Cancelled::Obstacle(obstacle));
        }
        self.gathered_bytes += changes.iter().map(Change::size_bytes).sum::<usize>();
        self.gathered.extend(changes);
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Cancelled> {
        let changes = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        add_counts(&mut self.counts, count(&changes));
        Ok(self.applier.apply(&changes).await?)
    }

    /// The answer to the only pipelined request under way.
    async fn answer(&mut self) -> Result<ParallelApplied, Cancelled> {
        let answered = self.applier.answered().await?;
        Ok(self.applier.conclude(answered)?)
    }
}
