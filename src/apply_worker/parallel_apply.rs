//! Large transactions applied in parallel, before they commit, by a task of their own on a writing session of its own.
//!
//! Started by `attempt` where it is sound (design: replica role; `destination::apply::parallel_apply` says what else), fed through
//! [`ParallelApplyQueue`] and from the spool, and told by the apply loop, through [`ParallelApply`], when it is its transaction's turn:
//!
//! ```text
//! spool ── records ──▶ Worker ═ requests ═▶ destination        BEGIN · rows … rows … advance(p, end_lsn) · COMMIT
//!                        │  ▲
//!              applied   ▼  │ due, given up
//!                      apply loop ── everything before it is stored
//! ```
//!
//! A source that is not in a hurry commits minutes after its first rows came; and one that is replayed from a backlog still
//! decodes while we apply. Either way little is left to do at the commit. Whatever goes wrong here only gives that up.
//!
//! Bounds: one transaction at a time; a chunk being gathered and two pipelined requests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::counts::{add_counts, count};
use crate::apply_plan::TransactionEnd;
use crate::destination::{
    Applier, ApplyContext, DestinationError, ParallelApplied, ParallelApplier, Unfit, Writer, WritingSettings,
};
use crate::pg::{Lsn, length_u64};
use crate::source::{Changes, Next, ParallelApplyQueue};
use crate::spool::{Peeker, SpoolError};
use crate::telemetry::{Operation, Telemetry, failpoint};
use crate::transaction::{Change, RecordError, read_changes};

/// A stream is worth a session from this share of `spool.memory_bytes_max` on.
const WORTH_SHARE: u64 = 16;
/// The live stream's own work may wait so long before it is taken to wait for this session's locks.
const LIVE_WAITS_MAX: Duration = Duration::from_secs(2);
/// A transaction of which nothing more comes for so long is not worth what it holds back here: locks, and what VACUUM may remove.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// While more of it is coming, a chunk is filled before it is sent: sets are the cheaper the larger they are.
const GATHER_MAX: Duration = Duration::from_millis(100);
/// What is in the spool by count may still be on its way to the spool's thread.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long the session may take to end.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// How long the apply loop waits for this session's locks to be gone.
const STAND_BACK_MAX: Duration = Duration::from_secs(5);

/// From which size on streams are applied in parallel, in bytes of records.
pub(crate) fn worth_bytes(spool_memory_bytes_max: u64) -> u64 {
    (spool_memory_bytes_max / WORTH_SHARE).min(4 << 20)
}

/// What the task needs.
pub(crate) struct Worker {
    pub(crate) queue: ParallelApplyQueue,
    pub(crate) peeker: Peeker,
    pub(crate) settings: WritingSettings,
    /// What the leader writes is marked with an origin, so this must be, too.
    pub(crate) marked: bool,
    pub(crate) piece_bytes_max: usize,
    pub(crate) telemetry: Arc<Telemetry>,
}

/// The tables as they are known now; `None` while one is being changed.
type SharedGround = Arc<Mutex<Option<ApplyContext>>>;

/// The apply loop's end of it.
pub(crate) struct ParallelApply {
    queue: ParallelApplyQueue,
    changes: Changes,
    context: SharedGround,
    worker: JoinHandle<()>,
    /// The transaction whose turn has come.
    committing: Option<Committing>,
}

/// A transaction whose turn it is to commit.
struct Committing {
    end: TransactionEnd,
    since: Instant,
    /// The task that applies it knows.
    is_announced: bool,
}

/// What became of a transaction whose turn it was.
pub(crate) struct ParallelOutcome {
    pub(crate) end: TransactionEnd,
    /// It has committed; otherwise it comes again from the spool.
    pub(crate) is_applied: bool,
    pub(crate) elapsed: Duration,
}

impl Drop for ParallelApply {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl ParallelApply {
    /// Starts the task.
    pub(crate) fn start(worker: Worker) -> ParallelApply {
        let queue = worker.queue.clone();
        let context = SharedGround::default();
        let worker = tokio::spawn(worker.run(Arc::clone(&context)));
        ParallelApply { changes: queue.watch(), queue, context, worker, committing: None }
    }

    /// For the step router, which announces what of a stream is in the spool.
    pub(crate) fn handle(&self) -> ParallelApplyQueue {
        self.queue.clone()
    }

    pub(crate) fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Resolves when there may be news. Cancel-safe.
    pub(crate) async fn changed(parallel_apply: Option<&mut ParallelApply>) {
        match parallel_apply {
            Some(parallel_apply) => parallel_apply.changes.changed().await,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn stored(&self, position: Lsn) {
        self.queue.stored(position);
    }

    pub(crate) fn give_up(&self, why: &'static str) {
        self.queue.give_up(why);
    }

    /// A table is about to change: parallel apply releases its locks on it, and begins again only with the changed table.
    pub(crate) async fn release_locks(&mut self) {
        *self.context.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.queue.give_up("a table changes");
        let gone = async {
            while self.queue.is_working() {
                self.changes.changed().await;
            }
        };
        // After that, apply waits for a lock that is still held as for any other session's.
        let _ = tokio::time::timeout(STAND_BACK_MAX, gone).await;
    }

    /// The transaction has committed at the source, and everything before it is handed out.
    pub(crate) fn commit_next(&mut self, end: TransactionEnd) {
        self.committing = Some(Committing { end, since: Instant::now(), is_announced: false });
    }

    /// Gives way to work that cannot run at the same time; announces its turn to it.
    pub(crate) fn poll(&mut self, applier: &Applier, goes_on: bool, free: bool) {
        if let Some(committing) = &mut self.committing {
            if free && !committing.is_announced {
                committing.is_announced = true;
                self.queue.due(applier.stored(), committing.end.commit);
            }
            return;
        }
        if !goes_on {
            self.queue.give_up("apply is to stand still");
        } else if applier.waits_for() > LIVE_WAITS_MAX && self.queue.is_working() {
            self.queue.give_up("the live stream may be waiting for it");
        }
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        if context.is_none() && free {
            *context = Some(applier.context());
        }
    }

    /// What became of the transaction whose turn it is, once that is known.
    pub(crate) fn take_outcome(&mut self) -> Option<ParallelOutcome> {
        let is_applied = self.committing.as_ref().and_then(|_| self.queue.outcome())?;
        let Committing { end, since, .. } = self.committing.take()?;
        Some(ParallelOutcome { end, is_applied, elapsed: since.elapsed() })
    }

    /// The outcome has been taken note of.
    pub(crate) fn settle(&self, applied: bool) {
        self.queue.settle(applied);
    }

    /// Ends the task and its session; what is not committed is rolled back.
    pub(crate) async fn end(mut self) {
        self.queue.close();
        let _ = tokio::time::timeout(CLOSE_MAX, &mut self.worker).await;
    }
}

/// Why a stream is not applied in parallel any more.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("the others do without")]
    GivenUp,
    #[error("nothing more of it has come for a minute")]
    Idle,
    #[error("no second session can be like the leader's")]
    NoSession,
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Worker {
    async fn run(self, context: SharedGround) {
        let mut changes = self.queue.watch();
        while !self.queue.is_closed() {
            let ready = self.queue.candidate();
            let known = ready.and_then(|_| context.lock().unwrap_or_else(PoisonError::into_inner).clone());
            match (ready, known) {
                (Some(xid), Some(context)) => {
                    let stopped = self.follow(xid, context, &mut changes).await;
                    if let Err(stopped) = stopped {
                        tracing::debug!(xid, "a stream is left to its commit: {stopped}");
                    }
                    self.queue.give_up_stream(xid, "its session has ended");
                    self.queue.working(false);
                }
                (_, _) => changes.changed().await,
            }
        }
    }

    async fn follow(&self, xid: u32, context: ApplyContext, changes: &mut Changes) -> Result<(), Stopped> {
        let Some(writer) = Writer::ahead(&self.settings, self.marked).await? else { return Err(Stopped::NoSession) };
        self.queue.working(true);
        let mut transaction = Following {
            xid,
            applier: ParallelApplier::begin(writer, context).await?,
            rows: Vec::new(),
            bytes: 0,
            counts: Vec::new(),
        };
        let followed = self.apply(&mut transaction, changes).await;
        let close = transaction.applier.into_writer().close();
        let _ = tokio::time::timeout(CLOSE_MAX, close).await;
        followed
    }

    async fn apply(&self, transaction: &mut Following, changes: &mut Changes) -> Result<(), Stopped> {
        let xid = transaction.xid;
        let mut missing_deletes = 0;
        let mut pinged_at = Instant::now();
        let mut read_at = Instant::now();
        loop {
            changes.seen();
            let full = transaction.bytes >= self.piece_bytes_max;
            let next = if full { self.queue.still(xid) } else { self.queue.next(xid) };
            match next {
                Next::GiveUp => return Err(Stopped::GivenUp),
                Next::Read { from, until, relations } => {
                    read_at = Instant::now();
                    let records = self.peeker.peek(xid, from, until).await?;
                    let found = from + length_u64(records.len());
                    if found < until {
                        self.queue.read(xid, found);
                    }
                    if records.is_empty() {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                    transaction.take(read_changes(&records, &relations)?)?;
                    continue;
                }
                Next::Commit(from, commit) if transaction.rows.is_empty() && !transaction.applier.is_busy() => {
                    failpoint::reached("ahead.commit");
                    transaction.applier.commit(from, &commit).await?;
                    let applied = transaction.answer().await?;
                    failpoint::reached("ahead.committed");
                    let counts = std::mem::take(&mut transaction.counts);
                    self.telemetry.batch_applied(0, &counts, missing_deletes, applied.elapsed);
                    self.queue.applied(xid);
                    tracing::debug!(xid, end_lsn = %commit.end_lsn, "applied ahead of its commit");
                    return Ok(());
                }
                Next::Commit(..) | Next::Wait => {}
            }
            let gathers = !full && self.queue.is_arriving(xid) && read_at.elapsed() < GATHER_MAX;
            if transaction.applier.has_room() && !transaction.rows.is_empty() && !gathers {
                transaction.send().await?;
                continue;
            }
            let busy = transaction.applier.is_busy();
            let mut ping_in = (self.settings.silence_max / 3).saturating_sub(pinged_at.elapsed());
            if gathers && !transaction.rows.is_empty() {
                ping_in = ping_in.min(GATHER_MAX);
            }
            tokio::select! {
                answered = transaction.applier.answered(), if busy => {
                    pinged_at = Instant::now();
                    missing_deletes += transaction.applier.conclude(answered?)?.missing_deletes;
                }
                () = changes.changed() => {}
                () = tokio::time::sleep(ping_in) => {
                    if read_at.elapsed() > IDLE_MAX {
                        return Err(Stopped::Idle);
                    }
                    if !busy && pinged_at.elapsed() >= self.settings.silence_max / 3 {
                        pinged_at = Instant::now();
                        transaction.applier.ping().await?;
                    }
                }
            }
        }
    }
}

/// A transaction that is being applied.
struct Following {
    xid: u32,
    applier: ParallelApplier,
    /// The chunk that is being gathered, and what it weighs.
    rows: Vec<Change>,
    bytes: usize,
    /// What was applied of it.
    counts: Vec<(String, Operation, u64)>,
}

impl Following {
    fn take(&mut self, changes: Vec<Change>) -> Result<(), Stopped> {
        self.applier.fits(&changes)?;
        self.bytes += changes.iter().map(Change::size_bytes).sum::<usize>();
        self.rows.extend(changes);
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Stopped> {
        let changes = std::mem::take(&mut self.rows);
        self.bytes = 0;
        add_counts(&mut self.counts, count(&changes));
        Ok(self.applier.apply(&changes).await?)
    }

    /// The answer to the only pipelined request under way.
    async fn answer(&mut self) -> Result<ParallelApplied, Stopped> {
        let answered = self.applier.answered().await?;
        Ok(self.applier.conclude(answered)?)
    }
}
