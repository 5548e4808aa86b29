//! `verify`, as a command: at the leader's fences where a service runs, with one started here, or with both sides as they stand.
//!
//! In come the settings and what the operator asked for; out goes a [`Verdict`]. The comparison is [`crate::verification`]'s. What is
//! waited for at either end is said meanwhile, and every wait is bounded by `fence_timeout`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::config::{Config, ConnectionSettings};
use crate::destination::{
    Bookkeeping, DestinationError, LockHolders, StreamState, ensure_fence_requests, open_conflict,
};
use crate::error_policy::Fault;
use crate::pg::ErrorReport;
use crate::preflight::addresses::Addresses;
use crate::preflight::hosts::settle;
use crate::preflight::waits::{End, LOOK_EVERY, ToldWaits, waits};
use crate::session::{Sql, SqlClient};
use crate::supervisor::{RunOptions, run as run_service};
use crate::telemetry::Telemetry;
use crate::verification::fence_request::{BEAT_EVERY, Ends, Maker, Tell};
use crate::verification::verdict::{Verdict, VerifyOptions, VerifyProgress};
use crate::verification::{compare, repair_loop};

/// How long a service takes to restart its stream when nothing is wrong, with margin for a busy machine. Where `leader_timeout`
/// is longer, that counts: on a machine of 2 cores with a load of 16 a restart took more than this.
const LEADS_SOON_MIN: Duration = Duration::from_secs(2);

/// Words that nobody has read yet: they are printed at once.
const WORDS_MAX: usize = 64;

/// Compares both sides; `tell` hears what is being waited for, at either end too.
///
/// # Errors
/// [`Fault`]: a side is not reachable, nothing is followed yet, or no fence could be made.
pub async fn run(
    config: &Arc<Config>,
    options: &VerifyOptions,
    progress: &Arc<VerifyProgress>,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Verdict, Fault> {
    let (words, mut said) = mpsc::channel::<String>(WORDS_MAX);
    let own = words.clone();
    // Full means that nobody reads: a word less.
    let mut own = move |text: &str| drop(own.try_send(text.to_owned()));
    let mut verifying = std::pin::pin!(verify(config, options, progress, &mut own));
    let mut watching = std::pin::pin!(tell_waits(config, &words));
    let verified = loop {
        tokio::select! {
            biased;
            Some(text) = said.recv() => tell(&text),
            verified = &mut verifying => break verified,
            never = &mut watching => match never {},
        }
    };
    while let Ok(text) = said.try_recv() {
        tell(&text);
    }
    verified
}

/// Says what sessions of headwater's wait for at either end: those of this verify, and those of the service on which a fence depends.
async fn tell_waits(config: &Config, words: &mpsc::Sender<String>) -> std::convert::Infallible {
    let watch = async |end: End, connection: &ConnectionSettings| {
        let sql = Sql { connection: connection.clone(), purpose: "monitor", timeout: WAITS_MAX };
        let mut told = ToldWaits::default();
        loop {
            // A server that does not answer is the comparison's to report.
            if let Ok(client) = sql.connect().await {
                while let Ok(found) = waits(&client, end, &connection.application_name).await {
                    for wait in told.new_ones(&found) {
                        let _ = words.try_send(wait.text());
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let (never, _): (std::convert::Infallible, std::convert::Infallible) =
        tokio::join!(watch(End::Source, &config.source.url), watch(End::Destination, &config.destination.url));
    never
}

/// What a look at the waits may take.
const WAITS_MAX: Duration = Duration::from_secs(10);

async fn verify(
    config: &Arc<Config>,
    options: &VerifyOptions,
    progress: &Arc<VerifyProgress>,
    tell: &mut Tell<'_>,
) -> Result<Verdict, Fault> {
    let bookkeeping =
        Bookkeeping::connect_checked(&Addresses::new(config).destination, &config.destination.trusted_roles).await?;
    let bound = format!("SET lock_timeout = {}", config.fence_timeout.as_millis());
    let setting = bookkeeping.client().statement("setting up a session", &bound).await;
    setting.map_err(DestinationError::Session)?;
    // The same host that a running service has chosen: its snapshots are that server's.
    let settled = settle(config, &bookkeeping).await?;
    let config = &settled.config;
    let addresses = Addresses::new(config);
    let ends = Ends { config, addresses: &addresses, options, progress };
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
async fn catch_up(ends: Ends<'_>, bookkeeping: &Bookkeeping, tell: &mut Tell<'_>) -> Result<Verdict, Fault> {
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
async fn at_fences(ends: Ends<'_>, client: &SqlClient, tell: &mut Tell<'_>) -> Result<Verdict, Fault> {
    ensure_fence_requests(client).await?;
    let began = Instant::now();
    let (mut verdict, _) = compare::compare(ends, Maker::Leader { client, tell }, None).await?;
    verdict.took = began.elapsed();
    if ends.options.repair && !verdict.is_equal() {
        verdict.repaired = Some(repair_loop::until_equal(ends, client, &verdict, tell).await?);
    }
    Ok(verdict)
}
