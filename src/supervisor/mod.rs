//! The replication loop and everything around it: from two addresses to a copy that stays equal.
//!
//! I/O. In come settings and a wish to stop; nothing goes out but what the destination and telemetry show.
//! It wires `source` and `destination`, which do not know each other, and turns faults into new attempts.
//!
//! ```text
//! run ─▶ attempt ─┬─ lead: the writing session, its lock (or stand by)
//!   ▲             ├─ prepare: both ends checked, nothing changed yet
//!   │ fault,      ├─ snapshot: where there is no position yet, or one is asked for
//!   │ carried over├─ open: lock, position, slot
//!   └─ decide ◀───┼─ run: task 1 source::stream ══ steps ═▶ task 2 apply_loop, positions back
//!                 │       next to it the monitor, and fences: apply is paused for a moment
//!                 └─ close: positions confirmed, the lock last
//! ```
//!
//! An attempt takes its steps in this order because each needs the one before: who writes is decided before anything
//! is written; both ends are checked before the first change; the bookkeeping's row is committed before the slot
//! exists; the position is read after the lock is held and before the slot is asked to stream (lock, position, slot).
//!
//! Invariants: a restart is always safe, at any point (I5); what an attempt learned dies with it, except what the
//! bookkeeping and `CarriedOver` hold.

mod attempt;
mod between_attempts;
mod carried_over;
mod copy_failures;
mod failure_kind;
mod held_up;
mod looks;
mod lost_health;
mod monitor;
mod opened_stream;
pub mod options;
mod service;
mod slot_watch;
mod stream_health;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::Config;
use crate::destination::{ConflictKind, DestinationError};
use crate::error_policy::decision::REASONS;
use crate::error_policy::{Backoff, Decision, Fault, Phase, decide, report};
use crate::pg::QualifiedName;
use crate::telemetry::{State, Telemetry, failpoint};
use attempt::{Attempt, Attempted};
use between_attempts::BetweenAttempts;
use carried_over::{CarriedOver, Noted};
use copy_failures::{CopyFailures, FailedCopy};
use service::{Exit, Service};

pub use crate::supervisor::options::RunOptions;

/// An attempt that lasted so long was not a failure to start.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// A supervisor kills what has not stopped after ten seconds or more; this leaves room for the goodbyes.
const STOP_MAX: Duration = Duration::from_secs(8);

/// Keeps the destination equal to the source until `stop` becomes true.
///
/// Whatever waits then is given up after 8 s: breaking off is safe at any point (I5).
///
/// # Errors
/// [`Fault`] when an operator must act; what can be waited for is waited for.
pub async fn run(
    config: Arc<Config>,
    options: RunOptions,
    telemetry: Arc<Telemetry>,
    stop: watch::Receiver<bool>,
) -> Result<(), Fault> {
    let mut stopping = stop.clone();
    let overdue = async {
        if stopping.wait_for(|stop| *stop).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(STOP_MAX).await;
    };
    tokio::select! {
        ended = attempts(config, options, telemetry, stop) => ended,
        () = overdue => {
            tracing::warn!("stopped without waiting any longer: something was not over within {STOP_MAX:?}");
            Ok(())
        }
    }
}

/// Attempts, one after another, until one is asked to stop or an operator must act.
async fn attempts(
    config: Arc<Config>,
    options: RunOptions,
    telemetry: Arc<Telemetry>,
    stop: watch::Receiver<bool>,
) -> Result<(), Fault> {
    let conflicts = ConflictKind::ALL.into_iter().map(ConflictKind::as_str);
    telemetry.service_begins(&config.tables, conflicts, REASONS.iter().copied());
    let carried = CarriedOver::new(&config, options);
    let mut supervisor = Supervisor {
        service: Service::new(config, telemetry, stop),
        carried,
        backoff: Backoff::default(),
        copy_failures: CopyFailures::default(),
        started: Instant::now(),
    };
    loop {
        let began = Instant::now();
        supervisor.service.keep_monitor();
        let Attempted { ended, made_progress, failed_copy } =
            Attempt::new(&supervisor.service, &mut supervisor.carried).run().await;
        let fault = match ended {
            Ok(Exit::Stopped) => {
                supervisor.between().stopped_in_order().await;
                return Ok(());
            }
            Ok(Exit::Restart) => continue,
            Err(fault) => supervisor.between().explained(fault).await,
        };
        if supervisor.service.is_stopping() {
            // What broke while stopping was going to end anyway.
            return Ok(());
        }
        supervisor.note(&fault).await;
        // A copy takes its time to fail, too.
        if made_progress || (failed_copy.is_none() && began.elapsed() > SETTLED_AFTER) {
            supervisor.backoff.reset();
        }
        if made_progress {
            supervisor.copy_failures.reset();
        }
        let Some(state) = supervisor.state_until_next(&fault) else {
            supervisor.between().ends_with(&fault).await;
            return Err(fault);
        };
        if supervisor.wait(&fault, failed_copy, state).await == Waited::Stopped {
            return Ok(());
        }
    }
}

/// What is between two attempts.
struct Supervisor {
    service: Service,
    carried: CarriedOver,
    backoff: Backoff,
    copy_failures: CopyFailures,
    started: Instant,
}

/// Why the wait between two attempts is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// The next attempt may begin.
    Enough,
    /// The process is to stop.
    Stopped,
}

impl Supervisor {
    fn between(&self) -> BetweenAttempts<'_> {
        BetweenAttempts { service: &self.service, carried: &self.carried }
    }

    /// Counts a conflict, once however often it is tried again, and remembers what the next attempt is to do about it.
    async fn note(&mut self, fault: &Fault) {
        let noted = self.carried.failed_stream.note(fault);
        if noted == Noted::BatchRetried {
            self.service.telemetry.batch_retried();
        }
        let Fault::Destination(DestinationError::Conflict(conflict)) = fault else { return };
        if noted == Noted::NewConflict {
            let table = conflict.table.as_ref().map(QualifiedName::unquoted).unwrap_or_default();
            self.service.telemetry.conflict(&table, conflict.kind.as_str(), 1);
        }
        if !conflict.will_win {
            self.between().keep_conflict(conflict).await;
        }
    }

    /// What is shown until the next attempt; `None`: an operator must act, and there is none.
    fn state_until_next(&mut self, fault: &Fault) -> Option<State> {
        let phase = if self.carried.done.has_streamed { Phase::Running } else { Phase::Starting };
        let telemetry = &self.service.telemetry;
        let (state, reason) = match decide(fault, phase, self.carried.host.config.on_slot_lost) {
            Decision::End => return None,
            Decision::Resnapshot => {
                let why = report(fault);
                telemetry.event("snapshot", format!("{why}: reconciling all tables with a new snapshot"));
                self.carried.copies.slot_lost = true;
                (State::Connecting, "slot_lost")
            }
            Decision::Retry(reason) => (State::Connecting, reason),
            Decision::Halt(reason) => (State::Waiting, reason),
        };
        telemetry.restart(reason);
        Some(state)
    }

    /// Shows the fault, and waits for as long as its kind asks for, or for an operator.
    async fn wait(&mut self, fault: &Fault, failed_copy: Option<FailedCopy>, state: State) -> Waited {
        // All tables are copied again by itself only while that may help. What passes is waited for, unless each time a part of the
        // source is read for nothing.
        let waits_for_operator = match (failed_copy, state) {
            (Some(FailedCopy::Reading), _) | (Some(FailedCopy::Preparing), State::Waiting) => {
                self.copy_failures.count(fault, state != State::Waiting, self.started.elapsed())
            }
            (_, _) => None,
        };
        let telemetry = &self.service.telemetry;
        if let Some(told) = waits_for_operator {
            telemetry.set_state(State::Waiting, Some(told));
            self.between().refuse_fences(&report(fault)).await;
            failpoint::pause("copy.waiting").await;
            let between = self.between();
            tokio::select! {
                () = between.copy_requested() => {}
                () = self.service.stopped() => return Waited::Stopped,
            }
            self.copy_failures.reset();
            return Waited::Enough;
        }
        telemetry.set_state(state, Some(report(fault)));
        if state == State::Waiting {
            self.between().refuse_fences(&report(fault)).await;
        }
        let wait = self.backoff.wait(fastrand::f64());
        let between = self.between();
        tokio::select! {
            () = tokio::time::sleep(wait) => Waited::Enough,
            () = between.skip_requested(fault) => Waited::Enough,
            () = self.service.stopped() => Waited::Stopped,
        }
    }
}
