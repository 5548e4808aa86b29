//! The replication loop and everything around it: from two addresses to a copy that stays equal.
//!
//! I/O. In come settings and a wish to stop; nothing goes out but what the destination and telemetry show.
//! It wires `source` and `destination`, which do not know each other, and turns faults into new attempts.
//!
//! ```text
//! run ─▶ attempt ─┬─ lead: the writing session, its lock (or stand by)
//!   ▲             ├─ prepare: both ends checked, nothing changed yet
//!   │ fault       ├─ snapshot: where there is no position yet, or one is asked for
//!   └─ decide ◀───┴─ stream: task 1 source::stream ══ steps ═▶ task 2 apply_loop, positions back
//!                    next to it the monitor, and fences: apply stands still for a moment
//! ```
//!
//! An attempt takes its steps in this order because each needs the one before: who writes is decided before anything
//! is written; both ends are checked before the first change; the bookkeeping's row is committed before the slot
//! exists; the position is read after the lock is held and before the slot is asked to stream (lock, position, slot).
//!
//! Invariants: a restart is always safe, at any point (I5); what an attempt learned dies with it, except what the
//! bookkeeping holds.

mod attempt;
mod copy_failures;
mod failure_kind;
mod held_up;
mod looks;
mod monitor;
pub mod options;
mod stream_health;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::Config;
use crate::destination::ConflictKind;
use crate::error_policy::decision::REASONS;
use crate::error_policy::{Backoff, Decision, Fault, Phase, decide, report};
use crate::telemetry::{State, Telemetry, failpoint};
use attempt::{Attempt, Exit};
use copy_failures::{CopyFailures, FailedCopy};
use monitor::Monitor;

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
    let monitor = Monitor::start(Arc::clone(&config), Arc::clone(&telemetry));
    let mut attempt = Attempt::new(config, telemetry, stop, options, monitor);
    let mut backoff = Backoff::default();
    let mut copy_failures = CopyFailures::default();
    let started = Instant::now();
    loop {
        let began = Instant::now();
        let fault = match attempt.run().await {
            Ok(Exit::Stopped) => {
                attempt.stopped_in_order().await;
                return Ok(());
            }
            Ok(Exit::Restart) => continue,
            Err(fault) => attempt.explained(fault).await,
        };
        if attempt.is_stopping() {
            // What broke while stopping was going to end anyway.
            return Ok(());
        }
        attempt.note(&fault).await;
        let phase = if attempt.has_streamed() { Phase::Running } else { Phase::Starting };
        let failed_copy = attempt.failed_copy();
        // A copy takes its time to fail, too.
        if attempt.made_progress() || (failed_copy.is_none() && began.elapsed() > SETTLED_AFTER) {
            backoff.reset();
        }
        if attempt.made_progress() {
            copy_failures.reset();
        }
        let (state, reason) = match decide(&fault, phase, attempt.config().on_slot_lost) {
            Decision::End => {
                attempt.ends_with(&fault).await;
                return Err(fault);
            }
            Decision::Resnapshot => {
                attempt
                    .telemetry()
                    .event("snapshot", format!("{}: reconciling all tables with a new snapshot", report(&fault)));
                attempt.start_over();
                (State::Connecting, "slot_lost")
            }
            Decision::Retry(reason) => (State::Connecting, reason),
            Decision::Halt(reason) => (State::Waiting, reason),
        };
        attempt.telemetry().restart(reason);
        // All tables are copied again by itself only while that may help. What passes is waited for, unless each time a part of the
        // source is read for nothing.
        let waits_for_operator = match (failed_copy, state) {
            (Some(FailedCopy::Reading), _) | (Some(FailedCopy::Preparing), State::Waiting) => {
                copy_failures.count(&fault, state != State::Waiting, started.elapsed())
            }
            (_, _) => None,
        };
        if let Some(told) = waits_for_operator {
            attempt.telemetry().set_state(State::Waiting, Some(told));
            attempt.refuse_fences(&report(&fault)).await;
            failpoint::pause("copy.waiting").await;
            tokio::select! {
                () = attempt.copy_requested() => copy_failures.reset(),
                () = attempt.stopped() => return Ok(()),
            }
            continue;
        }
        attempt.telemetry().set_state(state, Some(report(&fault)));
        if state == State::Waiting {
            attempt.refuse_fences(&report(&fault)).await;
        }
        let wait = backoff.wait(fastrand::f64());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = attempt.skip_requested(&fault) => {}
            () = attempt.stopped() => return Ok(()),
        }
    }
}
