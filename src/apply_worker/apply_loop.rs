//! Task 2 of the replication loop: steps in, batches to the destination, positions back.
//!
//! It only receives, calls and forwards: what forms a batch is `apply_plan`'s to say, how it is written `destination`'s,
//! what may be confirmed `progress`'s.
//!
//! ```text
//! StepReceiver ─▶ Batcher ─▶ Applier ═ requests ═▶ destination
//!                               │ answers
//!                    Ledger ◀───┘──▶ watch: stored, flushed ─▶ task 1
//! ```
//!
//! Its [`ApplyPause`] says whether to run, to hold, or to run to a fence: a transaction that has begun is finished first, and
//! while it stands still the session is kept alive and steps are still received, as many as the batcher has room for.
//!
//! A transaction that was applied in parallel ([`ParallelApply`]) only waits here for its turn: when everything before it is stored, the
//! other session commits it, and until that is answered nothing else is handed out.
//!
//! It ends when the steps end (the stream broke off: what is whole is still applied), when it is asked to stop (what is
//! under way is still answered), or with the destination's error.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::counts::count;
use super::scheduling::Scheduling;
use crate::apply_plan::{ApplyTask, BatchLimits, Batcher, LargeStep, TransactionEnd, Work};
use crate::apply_worker::heartbeat::Instance;
use crate::apply_worker::parallel_apply::ParallelApply;
use crate::apply_worker::pause::{ApplyPause, Command};
use crate::destination::{Applied, Applier, DestinationError, StoredPosition};
use crate::pg::{Lsn, length_u64};
use crate::progress::{IdleAdvance, Ledger};
use crate::source::{Confirmed, StepReceiver};
use crate::telemetry::{State, Telemetry};
use crate::transaction::Heartbeat;

/// Bounds of the loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) batch_rows_max: usize,
    pub(crate) batch_bytes_max: usize,
    /// An idle session that is lost is noticed within a third of it.
    pub(crate) leader_timeout: Duration,
    /// COMMIT's answer means that it is durable.
    pub(crate) commits_are_durable: bool,
    /// Where the source's WAL ended when the stream began: from there on it is no longer catching up.
    pub(crate) catch_up_to: Lsn,
    /// Earlier attempts were given work up to this commit_lsn when they failed: up to there nothing is resolved.
    pub(crate) held_up_at: Lsn,
}

/// The destination's WAL positions are asked for at most so often; confirming less often costs the source a little WAL.
const READ_WAL_EVERY: Duration = Duration::from_millis(50);
/// A pipelined request leaves behind one that is not answered yet only with so many changes. Large ones cost the destination less for a
/// change (statements over more rows, more changes of one row folded), and what is queued leaves at the latest with the answer.
const SECOND_REQUEST_ROWS: usize = 1_000;
/// How long to wait for answers that are under way once stopping.
const ANSWERS_MAX: Duration = Duration::from_secs(3);
/// How long to wait for the destination's flush once stopping: its walwriter runs every 200 ms.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// What reaches into the loop from outside.
pub(crate) struct LoopContext {
    /// Who may make the loop stand still.
    pub(crate) apply_pause: ApplyPause,
    /// This process, as heartbeats name it.
    pub(crate) instance: Instance,
    /// Who applies a stream before it commits; `None`: nobody.
    pub(crate) parallel_apply: Option<ParallelApply>,
}

/// The loop's state.
pub(crate) struct ApplyLoop<'a> {
    applier: Applier,
    steps: StepReceiver,
    batcher: Batcher,
    ledger: Ledger,
    idle: IdleAdvance,
    confirmed: watch::Sender<Confirmed>,
    telemetry: &'a Telemetry,
    limits: Limits,
    apply_pause: ApplyPause,
    instance: Instance,
    parallel_apply: Option<ParallelApply>,
    scheduling: Scheduling,
    began: Instant,
    read_wal_at: Instant,
    sent_at: Instant,
    steps_ended: bool,
    submitted_up_to: Lsn,
    made_progress: bool,
}

impl<'a> ApplyLoop<'a> {
    pub(crate) fn new(
        applier: Applier,
        steps: StepReceiver,
        ledger: Ledger,
        confirmed: watch::Sender<Confirmed>,
        telemetry: &'a Telemetry,
        limits: Limits,
        context: LoopContext,
    ) -> ApplyLoop<'a> {
        let began = Instant::now();
        let LoopContext { apply_pause, instance, parallel_apply } = context;
        ApplyLoop {
            applier,
            steps,
            batcher: Batcher::new(BatchLimits { rows_max: limits.batch_rows_max, bytes_max: limits.batch_bytes_max }),
            ledger,
            idle: IdleAdvance::new(Duration::ZERO),
            confirmed,
            telemetry,
            limits,
            apply_pause,
            instance,
            parallel_apply,
            scheduling: Scheduling::new(),
            began,
            read_wal_at: began,
            sent_at: began,
            steps_ended: false,
            submitted_up_to: Lsn::INVALID,
            made_progress: false,
        }
    }

    /// The commit_lsn of the last transaction that was handed to the destination, whole or in part.
    pub(crate) fn submitted_up_to(&self) -> Lsn {
        self.submitted_up_to
    }

    /// Whether anything was stored.
    pub(crate) fn made_progress(&self) -> bool {
        self.made_progress
    }

    /// Runs until the steps end, or `stop` resolves, or something fails.
    pub(crate) async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<(), DestinationError> {
        let mut stop = pin!(stop);
        loop {
            self.feed().await?;
            let idle = !self.applier.is_busy();
            let committing = self.is_committing_in_parallel();
            if self.steps_ended && idle && !committing && self.batcher.is_empty() {
                return self.applier.abandon_large().await;
            }
            let pause = self.pause();
            tokio::select! {
                answered = self.applier.answered(), if !idle => {
                    if let Some(applied) = self.applier.conclude(answered?).await? {
                        self.applied(applied);
                    } else {
                        self.telemetry.batch_retried();
                    }
                }
                step = self.steps.next(), if !self.steps_ended && self.batcher.has_room() => match step {
                    Some(step) => {
                        self.batcher.push(step);
                        while self.batcher.has_room() && let Some(step) = self.steps.ready() {
                            self.batcher.push(step);
                        }
                    }
                    None => self.steps_ended = true,
                },
                () = &mut stop => return self.finish().await,
                () = self.apply_pause.changed() => {}
                () = ParallelApply::changed(self.parallel_apply.as_mut()), if committing => {}
                () = tokio::time::sleep(pause) => self.tick().await?,
            }
        }
    }

    /// Hands the destination as much work as it takes.
    async fn feed(&mut self) -> Result<(), DestinationError> {
        let command = self.apply_pause.command();
        self.batcher.set_fence(match command {
            Command::RunTo { point, .. } => Some(point),
            Command::Run | Command::Hold { .. } => None,
        });
        self.poll_parallel_apply(command == Command::Run).await?;
        let holds = matches!(command, Command::Hold { .. });
        while self.applier.has_room()
            && !self.is_committing_in_parallel()
            && (!holds || self.applier.in_large_transaction())
        {
            // What comes in small is gathered while an answer is awaited.
            if self.applier.is_busy() && !self.batcher.holds(SECOND_REQUEST_ROWS) {
                break;
            }
            match self.batcher.next_work() {
                Some(Work::Apply(task)) => self.submit(task).await?,
                Some(Work::CommitParallel(end)) => {
                    self.commit_parallel(end).await?;
                    break;
                }
                Some(Work::Reached(position)) => self.reached(position),
                None => break,
            }
        }
        let stands =
            !self.applier.is_busy() && !self.applier.in_large_transaction() && !self.is_committing_in_parallel();
        match command {
            Command::Hold { .. } if stands => self.apply_pause.stands(command, self.applier.stored()),
            Command::RunTo { point, .. } if stands && self.has_reached(point) => {
                self.apply_pause.stands(command, self.applier.stored());
            }
            Command::Run | Command::Hold { .. } | Command::RunTo { .. } => {}
        }
        let nothing_to_do = stands && self.batcher.is_empty() && command == Command::Run;
        if nothing_to_do {
            self.scheduling.idle();
        }
        if nothing_to_do && let Some(position) = self.idle.due(self.applier.stored(), self.began.elapsed()) {
            self.sent_at = Instant::now();
            self.applier.store_position(position).await?;
        }
        Ok(())
    }

    async fn submit(&mut self, task: ApplyTask) -> Result<(), DestinationError> {
        if let (ApplyTask::Large(LargeStep::ChangeSchema(_)), Some(parallel_apply)) = (&task, &mut self.parallel_apply)
        {
            parallel_apply.release_locks().await;
        }
        match &task {
            ApplyTask::Batch(_) | ApplyTask::Large(LargeStep::Chunk(_)) => self.scheduling.sends(task.changes().len()),
            ApplyTask::Large(LargeStep::Begin(_) | LargeStep::ChangeSchema(_) | LargeStep::Commit(_)) => {}
        }
        self.submitted_up_to = self.submitted_up_to.max(task.last_commit_lsn().unwrap_or(Lsn::INVALID));
        let read_wal = self.ledger_wants_reading();
        self.sent_at = Instant::now();
        self.applier.submit(task, read_wal).await
    }

    /// It is the turn of a transaction that was applied in parallel.
    async fn commit_parallel(&mut self, end: TransactionEnd) -> Result<(), DestinationError> {
        self.submitted_up_to = self.submitted_up_to.max(end.commit.commit_lsn);
        let parallel_apply =
            self.parallel_apply.as_mut().expect("a transaction was applied in parallel, so somebody did");
        if !self.applier.may_commit_directly(&end.commit) {
            parallel_apply.give_up("it is to be left out, or is in a snapshot in part");
        }
        parallel_apply.commit_next(end);
        self.poll_parallel_apply(true).await
    }

    /// The stream has nothing to apply up to here.
    fn reached(&mut self, position: Lsn) {
        self.idle.reached(position);
        let idle = !self.applier.is_busy();
        self.telemetry.reached(position, idle);
        if idle {
            self.caught_up_at(position);
        }
    }

    fn is_committing_in_parallel(&self) -> bool {
        self.parallel_apply.as_ref().is_some_and(ParallelApply::is_committing)
    }

    /// What the session that applies in parallel needs from this loop, and what has become of its commit.
    async fn poll_parallel_apply(&mut self, goes_on: bool) -> Result<(), DestinationError> {
        let Some(parallel_apply) = &mut self.parallel_apply else { return Ok(()) };
        let free = !self.applier.is_busy() && !self.applier.in_large_transaction();
        parallel_apply.poll(&self.applier, goes_on, free);
        let Some(outcome) = parallel_apply.take_outcome() else { return Ok(()) };
        let is_applied = outcome.is_applied;
        if is_applied {
            let position = outcome.end.commit.end_lsn;
            self.applier.set_position(position).await?;
            self.applied(Applied {
                task: Some(ApplyTask::Large(LargeStep::Commit(outcome.end))),
                stored: Some(StoredPosition { position, is_durable: self.limits.commits_are_durable }),
                missing_deletes: 0,
                repairs: Vec::new(),
                is_skipped: false,
                wal: None,
                elapsed: outcome.elapsed,
            });
        }
        if let Some(parallel_apply) = &mut self.parallel_apply {
            parallel_apply.settle(is_applied);
        }
        Ok(())
    }

    /// Whether every transaction with commit_lsn before `point` has been handed out: one behind it has come, or the
    /// stream has nothing for us up to there.
    fn has_reached(&self, point: Lsn) -> bool {
        self.batcher.at_fence() || self.idle.position() >= point || self.applier.stored() >= point
    }

    /// Whether the next pipelined request should bring the destination's WAL positions; counts as asked.
    fn ledger_wants_reading(&mut self) -> bool {
        // A commit that is about to be sent will want one, too.
        let due = self.read_wal_at.elapsed() >= READ_WAL_EVERY;
        if due {
            self.read_wal_at = Instant::now();
        }
        due
    }

    fn ping_every(&self) -> Duration {
        self.limits.leader_timeout / 3
    }

    /// How long nothing needs to be done.
    fn pause(&self) -> Duration {
        let ping = self.ping_every().saturating_sub(self.sent_at.elapsed());
        let read =
            if self.ledger.wants_reading() { READ_WAL_EVERY.saturating_sub(self.read_wal_at.elapsed()) } else { ping };
        // An idle position becomes due without anybody's call.
        ping.min(read).clamp(Duration::from_millis(1), Duration::from_millis(500))
    }

    async fn tick(&mut self) -> Result<(), DestinationError> {
        let idle = !self.applier.is_busy();
        let read_wal = self.ledger.wants_reading() && self.read_wal_at.elapsed() >= READ_WAL_EVERY;
        if idle && (read_wal || self.sent_at.elapsed() >= self.ping_every()) {
            self.read_wal_at = Instant::now();
            self.sent_at = Instant::now();
            self.applier.ping(read_wal).await?;
        }
        Ok(())
    }

    /// Draws the conclusions from an answer.
    fn applied(&mut self, applied: Applied) {
        let Applied { task, stored, missing_deletes, repairs, is_skipped, wal, elapsed } = applied;
        if let Some(StoredPosition { position, is_durable }) = stored {
            if is_durable {
                self.ledger.store_durably(position);
            } else {
                self.ledger.store(position);
            }
            self.made_progress = true;
            self.idle.stored(self.began.elapsed());
            self.telemetry.stored(position);
            if let Some(parallel_apply) = &self.parallel_apply {
                parallel_apply.stored(position);
            }
            self.caught_up_at(position);
        }
        if let Some(reading) = wal {
            self.ledger.read(reading);
        }
        self.confirm();
        for notice in self.applier.take_notices() {
            self.telemetry.event("schema", notice);
        }
        for repair in repairs {
            self.telemetry.conflict(&repair.table.unquoted(), repair.kind.as_str(), repair.rows);
        }
        if is_skipped {
            self.skipped(task.as_ref());
            return;
        }
        match task {
            Some(ApplyTask::Batch(batch)) => {
                let transactions = length_u64(batch.members.len());
                self.telemetry.batch_applied(transactions, &count(&batch.changes), missing_deletes, elapsed);
                for heartbeat in batch.members.iter().filter_map(|member| member.heartbeat.as_ref()) {
                    self.heartbeat(heartbeat);
                }
            }
            Some(ApplyTask::Large(LargeStep::Chunk(chunk))) => {
                self.telemetry.batch_applied(0, &count(&chunk.changes), missing_deletes, elapsed);
            }
            Some(ApplyTask::Large(LargeStep::Commit(end))) => {
                self.telemetry.batch_applied(1, &[], 0, elapsed);
                if let Some(heartbeat) = &end.heartbeat {
                    self.heartbeat(heartbeat);
                }
            }
            Some(ApplyTask::Large(LargeStep::Begin(_) | LargeStep::ChangeSchema(_))) | None => {}
        }
    }

    /// What is in headwater.dead_letter is applied nowhere.
    fn skipped(&self, task: Option<&ApplyTask>) {
        let commit = match task {
            Some(ApplyTask::Batch(batch)) => batch.members.first().map(|member| member.commit),
            Some(ApplyTask::Large(LargeStep::Commit(end))) => Some(end.commit),
            Some(ApplyTask::Large(LargeStep::Begin(_) | LargeStep::Chunk(_) | LargeStep::ChangeSchema(_))) | None => {
                None
            }
        };
        if let Some(commit) = commit {
            self.telemetry.event(
                "conflict",
                format!(
                    "the source transaction with end_lsn {} was left out, as asked: it is in headwater.dead_letter; see \
                     headwater dead-letter show --end-lsn {}",
                    commit.end_lsn, commit.end_lsn
                ),
            );
        }
    }

    fn heartbeat(&self, heartbeat: &Heartbeat) {
        if let Some(took) = self.instance.since(heartbeat) {
            self.telemetry.heartbeat_returned(took);
        }
    }

    fn caught_up_at(&self, position: Lsn) {
        if position > self.limits.held_up_at {
            self.telemetry.resumed();
        }
        if position >= self.limits.catch_up_to && self.telemetry.state() == State::CatchingUp {
            self.telemetry.set_state(State::Streaming, None);
        }
    }

    fn confirm(&self) {
        let now = Confirmed { stored: self.ledger.stored(), flushed: self.ledger.flushed() };
        self.confirmed.send_if_modified(|last| {
            let moved = *last != now;
            *last = now;
            moved
        });
        self.telemetry.confirmed(now.flushed);
    }

    /// Stopping: what is under way is still answered, and what is stored is still confirmed.
    async fn finish(&mut self) -> Result<(), DestinationError> {
        let answering = async {
            while self.applier.is_busy() {
                let answered = self.applier.answered().await?;
                if let Some(applied) = self.applier.conclude(answered).await? {
                    self.applied(applied);
                }
            }
            self.applier.abandon_large().await
        };
        match tokio::time::timeout(ANSWERS_MAX, answering).await {
            Ok(answered) => answered?,
            // The server rolls back what is under way when our session ends.
            Err(_) => return Ok(()),
        }
        let flushing = async {
            while self.ledger.wants_reading() {
                self.applier.ping(true).await?;
                let answered = self.applier.answered().await?;
                if let Some(applied) = self.applier.conclude(answered).await? {
                    self.applied(applied);
                }
                tokio::time::sleep(READ_WAL_EVERY).await;
            }
            Ok(())
        };
        tokio::time::timeout(FLUSH_MAX, flushing).await.unwrap_or(Ok(()))
    }

    /// Ends the writing session, and with it the way back.
    pub(crate) async fn close(self) {
        if let Some(parallel_apply) = self.parallel_apply {
            parallel_apply.end().await;
        }
        self.applier.into_writer().close().await;
    }
}
