//! `verify`, as a command: at the leader's fences where a service runs, with one started here, or with both sides as they stand.
//!
//! In come the settings and what the operator asked for; out goes a [`Verdict`]. The comparison is [`crate::verification`]'s.
//!
//! Bounds: a question and a wait for a lock, `fence_timeout` and a margin; reading, as long as it takes; the way of apply to a fence, as
//! long as the position moves. A request is committed without waiting for a standby of the destination: it need not outlive one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::{Config, LOCK_MARGIN};
use crate::destination::{
    Bookkeeping, DestinationError, LockHolders, StreamState, ensure_fence_requests, open_conflict,
};
use crate::error_policy::Fault;
use crate::pg::ErrorReport;
use crate::preflight::addresses::Addresses;
use crate::preflight::hosts::settle;
use crate::session::SqlClient;
use crate::supervisor::{RunOptions, run as run_service};
use crate::telemetry::Telemetry;
use crate::verification::fence_request::{BEAT_EVERY, Maker, Tell, VerifyContext};
use crate::verification::verdict::{Verdict, VerifyOptions, VerifyProgress};
use crate::verification::{compare, repair_loop};

/// How long a service takes to restart its stream when nothing is wrong, with margin for a busy machine. Where `leader_timeout`
/// is longer, that counts: on a machine of 2 cores with a load of 16 a restart took more than this.
const LEADS_SOON_MIN: Duration = Duration::from_secs(2);

/// Compares both sides; `tell` hears what is being waited for.
///
/// # Errors
/// [`Fault`]: a side is not reachable, nothing is followed yet, or no fence could be made.
pub async fn run(
    config: &Arc<Config>,
    options: &VerifyOptions,
    progress: &Arc<VerifyProgress>,
    tell: &mut Tell<'_>,
) -> Result<Verdict, Fault> {
    let within = config.fence_timeout + LOCK_MARGIN;
    let destination = Addresses::new(config).within(within).destination;
    let bookkeeping = Bookkeeping::connect_checked(&destination, &config.destination.trusted_roles).await?;
    let doing = "setting up a session";
    let bound = format!("SET lock_timeout = {}", config.fence_timeout.as_millis());
    let client = bookkeeping.client();
    client.statement(doing, &bound).await.map_err(DestinationError::Session)?;
    client.batch(doing, "SET synchronous_commit = local").await.map_err(DestinationError::Session)?;
    // The same host that a running service has chosen: its snapshots are that server's.
    let settled = settle(config, &bookkeeping).await?;
    let config = &settled.config;
    let addresses = Addresses::new(config).within(within);
    let ends = VerifyContext { config, addresses: &addresses, options, progress };
    match bookkeeping.stream().await? {
        Some(stream) if matches!(stream.state, StreamState::Live { .. }) => {}
        Some(_) | None => {
            return Err(Fault::Refused(
                ErrorReport::new("nothing is followed yet: there is no snapshot to verify")
                    .hint("Start headwater run, and wait until it streams."),
            ));
        }
    }
    let client = bookkeeping.client();
    if options.no_fence {
        tell("comparing both sides as they stand");
        let began = Instant::now();
        let (verdict, _) = compare::compare(ends, Maker::WithoutLeader, None).await?;
        return Ok(Verdict { took: began.elapsed(), ..verdict });
    }
    let leads = LockHolders::look(client, &config.source.slot).await?.leader.is_some();
    if !leads && options.catch_up {
        tell("no service runs: catching up");
        return catch_up(ends, &bookkeeping, tell).await;
    }
    if leads {
        return at_fences(ends, client, tell).await;
    }
    if options.repair {
        if leads_soon(config, client).await? {
            return at_fences(ends, client, tell).await;
        }
        return Err(Fault::Refused(
            ErrorReport::new("a repair needs a fence, and no service runs that could make one")
                .hint("Start headwater run, or add --catch-up."),
        ));
    }
    match open_conflict(client).await? {
        Some(_) => {
            tell("a conflict halts the service (headwater conflict show): comparing with the destination as it stands")
        }
        None => tell("no service runs: comparing with the destination as it stands"),
    }
    let began = Instant::now();
    let (verdict, _) = compare::compare(ends, Maker::WithoutLeader, None).await?;
    if !verdict.is_equal() && leads_soon(config, client).await? {
        tell("a service runs after all: comparing at a fence");
        return at_fences(ends, client, tell).await;
    }
    Ok(Verdict { took: began.elapsed(), ..verdict })
}

/// Whether an instance leads, now or in a moment: one that restarts its stream comes back.
async fn leads_soon(config: &Config, client: &SqlClient) -> Result<bool, Fault> {
    let began = Instant::now();
    let most = LEADS_SOON_MIN.max(config.leader_timeout);
    loop {
        if LockHolders::look(client, &config.source.slot).await?.leader.is_some() {
            return Ok(true);
        }
        if began.elapsed() >= most {
            return Ok(false);
        }
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// Runs the service inside this process for as long as the verify takes.
async fn catch_up(ends: VerifyContext<'_>, bookkeeping: &Bookkeeping, tell: &mut Tell<'_>) -> Result<Verdict, Fault> {
    let telemetry = Arc::new(Telemetry::new(ends.config.http.ready_lag_max));
    let (stop, stopping) = watch::channel(false);
    let service = run_service(Arc::new(ends.config.clone()), RunOptions::default(), telemetry, stopping);
    let mut service = std::pin::pin!(service);
    let verified = tokio::select! {
        verified = at_fences(ends, bookkeeping.client(), tell) => verified,
        ended = &mut service => {
            return match ended {
                Err(fault) => Err(fault),
                Ok(()) => Err(Fault::Refused(ErrorReport::new("the service ended before the fence was made"))),
            };
        }
    };
    stop.send_replace(true);
    service.await?;
    verified
}

/// Compares at a fence that the leader makes, as often as tables were rewritten meanwhile; then repairs, if asked to.
async fn at_fences(ends: VerifyContext<'_>, client: &SqlClient, tell: &mut Tell<'_>) -> Result<Verdict, Fault> {
    ensure_fence_requests(client).await?;
    let began = Instant::now();
    let (mut verdict, _) = compare::compare(ends, Maker::Leader { client, tell }, None).await?;
    verdict.took = began.elapsed();
    if ends.options.repair && !verdict.is_equal() {
        verdict.repaired = Some(repair_loop::until_equal(ends, client, &verdict, tell).await?);
    }
    Ok(verdict)
}
