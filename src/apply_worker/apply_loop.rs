//! Task 2 of the replication loop: steps in, batches to the destination, positions back.
//!
//! The shell of [`LoopCore`]: it only receives, asks, carries out and reports. What is done next is the core's to say, how it is
//! written `destination`'s.
//!
//! ```text
//! StepReceiver ─▶ LoopCore ─▶ LoopAction ─▶ Applier ═ requests ═▶ destination
//!                    ▲                         │ answers
//!                    └──────── stored ─────────┘──▶ watch: stored, flushed ─▶ task 1
//! ```
//!
//! Its [`ApplyPause`] says whether to run, to hold, or to run to a fence; while it stands still the session is kept alive and steps
//! are still received, as many as the core has room for. A transaction that was applied in parallel ([`ParallelApply`]) only waits for
//! its turn here.
//!
//! It ends when the steps end (the stream broke off: what is whole is still applied), when it is asked to stop (what is
//! under way is still answered), or with the destination's error.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::counts::count;
use super::scheduling::Scheduling;
use crate::apply_core::{LoopAction, LoopCore, LoopLimits, Moment, Ping, TurnOutcome};
use crate::apply_plan::{ApplyTask, BatchLimits, LargeStep, TransactionEnd};
use crate::apply_worker::heartbeat::Instance;
use crate::apply_worker::parallel_apply::ParallelApply;
use crate::apply_worker::pause::ApplyPause;
use crate::destination::{Applied, Applier, DestinationError};
use crate::pg::{Lsn, length_u64};
use crate::progress::{Ledger, StoredPosition};
use crate::source::{Confirmed, StepReceiver};
use crate::telemetry::{State, Telemetry};
use crate::transaction::Heartbeat;

/// Bounds of the loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ApplyLimits {
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

/// While stopping, the destination is asked so often whether all is flushed.
const FLUSH_POLL_EVERY: Duration = Duration::from_millis(50);
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

/// The loop with its session and channels.
pub(crate) struct ApplyLoop<'a> {
    core: LoopCore,
    applier: Applier,
    steps: StepReceiver,
    confirmed: watch::Sender<Confirmed>,
    telemetry: &'a Telemetry,
    limits: ApplyLimits,
    apply_pause: ApplyPause,
    instance: Instance,
    parallel_apply: Option<ParallelApply>,
    scheduling: Scheduling,
    /// The core's times are since this.
    began: Instant,
    steps_ended: bool,
    made_progress: bool,
    /// The last position that was stored, or up to which the stream has nothing to apply.
    reached_up_to: Lsn,
}

impl<'a> ApplyLoop<'a> {
    pub(crate) fn new(
        applier: Applier,
        steps: StepReceiver,
        ledger: Ledger,
        confirmed: watch::Sender<Confirmed>,
        telemetry: &'a Telemetry,
        limits: ApplyLimits,
        context: LoopContext,
    ) -> ApplyLoop<'a> {
        let LoopContext { apply_pause, instance, parallel_apply } = context;
        let bounds = LoopLimits {
            batch: BatchLimits { rows_max: limits.batch_rows_max, bytes_max: limits.batch_bytes_max },
            ping_every: limits.leader_timeout / 3,
        };
        ApplyLoop {
            core: LoopCore::new(ledger, bounds, Duration::ZERO),
            applier,
            steps,
            confirmed,
            telemetry,
            limits,
            apply_pause,
            instance,
            parallel_apply,
            scheduling: Scheduling::new(),
            began: Instant::now(),
            steps_ended: false,
            made_progress: false,
            reached_up_to: Lsn::INVALID,
        }
    }

    /// The commit_lsn of the last transaction that was handed to the destination, whole or in part.
    pub(crate) fn submitted_up_to(&self) -> Lsn {
        self.core.submitted_up_to()
    }

    /// The last position that was stored, or up to which the stream has nothing to apply.
    pub(crate) fn reached_up_to(&self) -> Lsn {
        self.reached_up_to.max(self.core.ledger().stored())
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
            let (live, is_committing) = (self.applier.live_session(), self.is_committing_in_parallel());
            if self.steps_ended && self.core.is_finished(&live, is_committing) {
                return self.applier.abandon_large().await;
            }
            let wait = self.core.wait_max(self.began.elapsed());
            tokio::select! {
                answered = self.applier.answered(), if live.is_busy => {
                    if let Some(applied) = self.applier.conclude(answered?).await? {
                        self.applied(applied);
                    } else {
                        self.telemetry.batch_retried();
                    }
                }
                step = self.steps.next(), if !self.steps_ended && self.core.has_room() => match step {
                    Some(step) => {
                        self.core.push(step);
                        while self.core.has_room() && let Some(step) = self.steps.ready() {
                            self.core.push(step);
                        }
                    }
                    None => self.steps_ended = true,
                },
                () = &mut stop => return self.finish().await,
                () = self.apply_pause.changed() => {}
                () = ParallelApply::changed(self.parallel_apply.as_mut()), if is_committing => {}
                () = tokio::time::sleep(wait) => self.tick().await?,
            }
        }
    }

    fn moment(&self) -> Moment {
        Moment { now: self.began.elapsed(), command: self.apply_pause.command(), live: self.applier.live_session() }
    }

    /// Hands the destination as much work as it takes.
    async fn feed(&mut self) -> Result<(), DestinationError> {
        loop {
            match self.next_action() {
                LoopAction::Submit { task, read_wal } => self.submit(task, read_wal).await?,
                LoopAction::SubmitReleased { task, read_wal } => {
                    if let Some(parallel_apply) = &mut self.parallel_apply {
                        parallel_apply.released().await;
                    }
                    self.submit(task, read_wal).await?;
                }
                LoopAction::CommitParallel(end) => self.commit_parallel(end),
                LoopAction::ContinueBehind(outcome) => self.continue_behind(outcome).await?,
                LoopAction::ShareTables => {
                    if let Some(parallel_apply) = &self.parallel_apply {
                        parallel_apply.share_tables(&self.applier);
                    }
                }
                LoopAction::Reached(position) => self.reached(position),
                LoopAction::StorePosition(position) => {
                    self.scheduling.idle();
                    self.applier.store_position(position).await?;
                }
                LoopAction::Idle => {
                    self.scheduling.idle();
                    break;
                }
                LoopAction::Wait => break,
            }
        }
        let moment = self.moment();
        if self.core.stands_still(&moment, self.is_committing_in_parallel()) {
            self.apply_pause.stands(moment.command, moment.live.stored);
        }
        Ok(())
    }

    fn next_action(&mut self) -> LoopAction {
        let moment = self.moment();
        match &self.parallel_apply {
            Some(parallel_apply) => parallel_apply.with(|coordinator| self.core.next(&moment, Some(coordinator))),
            None => self.core.next(&moment, None),
        }
    }

    async fn submit(&mut self, task: ApplyTask, read_wal: bool) -> Result<(), DestinationError> {
        match &task {
            ApplyTask::Batch(_) | ApplyTask::Large(LargeStep::Chunk(_)) => self.scheduling.sends(task.changes().len()),
            ApplyTask::Large(LargeStep::Begin(_) | LargeStep::ChangeSchema(_) | LargeStep::Commit(_)) => {}
        }
        self.applier.submit(task, read_wal).await
    }

    /// It is the turn of a transaction that was applied in parallel.
    fn commit_parallel(&mut self, end: TransactionEnd) {
        let (at_commit, now) = (self.applier.at_commit(&end.commit), self.began.elapsed());
        let parallel_apply =
            self.parallel_apply.as_ref().expect("a transaction was applied in parallel, so somebody did");
        parallel_apply.with(|coordinator| coordinator.turn(end, at_commit, now));
    }

    /// The second session has committed a transaction: its position is where the leader's session continues.
    async fn continue_behind(&mut self, outcome: TurnOutcome) -> Result<(), DestinationError> {
        let TurnOutcome { end, settlement, elapsed } = outcome;
        let position = end.commit.end_lsn;
        self.applier.set_position(position).await?;
        self.applied(Applied {
            task: Some(ApplyTask::Large(LargeStep::Commit(end))),
            stored: Some(StoredPosition { position, is_durable: self.limits.commits_are_durable }),
            missing_deletes: 0,
            repairs: Vec::new(),
            is_skipped: false,
            wal: None,
            elapsed,
        });
        if let Some(parallel_apply) = &self.parallel_apply {
            parallel_apply.with(|coordinator| coordinator.settle(settlement));
        }
        Ok(())
    }

    /// The stream has nothing to apply up to here.
    fn reached(&mut self, position: Lsn) {
        self.reached_up_to = self.reached_up_to.max(position);
        let is_idle = !self.applier.is_busy();
        self.telemetry.reached(position, is_idle);
        if is_idle {
            self.caught_up_at(position);
        }
    }

    fn is_committing_in_parallel(&self) -> bool {
        self.parallel_apply
            .as_ref()
            .is_some_and(|parallel_apply| parallel_apply.with(|coordinator| coordinator.is_committing()))
    }

    async fn tick(&mut self) -> Result<(), DestinationError> {
        match self.core.ping(&self.applier.live_session(), self.began.elapsed()) {
            Some(Ping { read_wal }) => self.applier.ping(read_wal).await,
            None => Ok(()),
        }
    }

    /// Draws the conclusions from an answer.
    fn applied(&mut self, applied: Applied) {
        let Applied { task, stored, missing_deletes, repairs, is_skipped, wal, elapsed } = applied;
        if let Some(stored) = stored {
            self.made_progress = true;
            self.core.stored(stored, self.began.elapsed());
            self.telemetry.stored(stored.position);
            if let Some(parallel_apply) = &self.parallel_apply {
                parallel_apply.with(|coordinator| coordinator.stored(stored.position));
            }
            self.caught_up_at(stored.position);
        }
        if let Some(reading) = wal {
            self.core.read(reading);
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
        let ledger = self.core.ledger();
        let now = Confirmed { stored: ledger.stored(), flushed: ledger.flushed() };
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
            while self.core.ledger().wants_reading() {
                self.applier.ping(true).await?;
                let answered = self.applier.answered().await?;
                if let Some(applied) = self.applier.conclude(answered).await? {
                    self.applied(applied);
                }
                tokio::time::sleep(FLUSH_POLL_EVERY).await;
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
