//! The ring and everything around it: from two addresses to a copy that stays equal.
//!
//! Room 13, I/O. In come settings and a wish to stop; nothing goes out but what the destination and telemetry show.
//! It wires `source` and `destination`, which do not know each other, and turns faults into new attempts.
//!
//! ```text
//! run ─▶ attempt ─┬─ lead: the writing session, its lock (or stand by)
//!   ▲             ├─ prepare: both ends checked, nothing changed yet
//!   │ fault       ├─ snapshot: where there is no position yet, or one is asked for
//!   └─ decide ◀───┴─ stream: task 1 source::stream ══ steps ═▶ task 2 apply_loop, positions back
//!                    monitor beside it, and fences: apply stands still for a moment
//! ```
//!
//! An attempt takes its steps in this order because each needs the one before: who writes is decided before anything
//! is written; both ends are checked before the first change; the bookkeeping's row is committed before the slot
//! exists; the position is read after the lock is held and before the slot is asked to stream (lock, position, slot).
//!
//! Invariants: a restart is always safe, at any point (I5); what an attempt learned dies with it, except what the
//! bookkeeping holds.

mod ahead;
mod apply_loop;
mod asked;
mod attempt;
mod attributes;
mod cascades;
mod check;
mod conflict_rows;
mod control;
mod copy_failures;
mod counts;
mod cutover;
mod fence;
mod fingerprints;
mod ground;
mod history;
mod hosts;
mod identity;
mod labels;
mod lacking;
mod leading;
mod looks;
mod monitor;
mod not_carried;
mod prepare;
mod propose;
mod replication_session;
pub mod sequences;
mod scheduling;
mod set_aside;
mod snapshot;
mod streaming;
mod teardown;
mod unconfigured;
mod verify;
mod violated;
mod waits;
mod whereabouts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::Config;
pub use crate::destination::Scope;
use crate::fault::{Backoff, Decision, Fault, Phase, decide, report};
pub use crate::plan::not_carried::{NotCarried, script, summary};
use crate::telemetry::{State, Telemetry, failpoint};
use attempt::{Attempt, Lived};
pub use check::{About, Finding, Standing, run as check};
pub use conflict_rows::{ConflictRows, FoundRows, conflict_rows, no_conflict_report};
use copy_failures::CopyFailures;
pub use cutover::{Cutover, run as cutover};
use monitor::Monitor;
pub use propose::{Proposal, ProposedTable, propose};
pub use teardown::{Removal, run as teardown};
pub use verify::{LeftOut, RepairStop, Repaired, TableVerdict, Verdict, VerifyOptions, VerifyProgress, run as verify};

/// What the operator asked for at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Copy tables anew, and reconcile what differs.
    pub resnapshot: Option<Scope>,
    /// The source may be another cluster, which pg_upgrade has made of the one that is known.
    pub accept_source_identity: bool,
}

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
    let monitor = Monitor::start(Arc::clone(&config), Arc::clone(&telemetry));
    let mut attempt = Attempt::new(config, telemetry, stop, options, monitor);
    let mut backoff = Backoff::default();
    let mut copy_failures = CopyFailures::default();
    loop {
        let began = Instant::now();
        let fault = match attempt.run().await {
            Ok(Lived::UntilStopped) => {
                attempt.stopped_in_order().await;
                return Ok(());
            }
            Ok(Lived::ToBeSetUpAnew) => continue,
            Err(fault) => attempt.explained(fault).await,
        };
        if attempt.is_stopping() {
            // What broke while stopping was going to end anyway.
            return Ok(());
        }
        attempt.note(&fault).await;
        let phase = if attempt.has_streamed() { Phase::Running } else { Phase::Starting };
        if attempt.made_progress() || began.elapsed() > SETTLED_AFTER {
            backoff.reset();
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
        // The first copy is read again by itself only while that may help.
        let waits_for_operator = match state == State::Waiting && attempt.failed_in_first_copy() {
            true => copy_failures.count(&report(&fault)),
            false => {
                copy_failures.reset();
                None
            }
        };
        let told = waits_for_operator.clone().unwrap_or_else(|| report(&fault));
        attempt.telemetry().set_state(state, Some(told));
        if waits_for_operator.is_some() {
            failpoint::pause("copy.waiting").await;
            tokio::select! {
                () = attempt.copy_requested() => copy_failures.reset(),
                () = attempt.stopped() => return Ok(()),
            }
            continue;
        }
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
