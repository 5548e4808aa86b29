//! The leader's side of verify: answers requests, and keeps `verify_every`.
//!
//! Runs next to the replication loop for as long as one stream, on a session of its own; its failures end no stream. The answer
//! to a request is a fence, held until the requester has taken it over or waits no longer.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{compare, repair};
use crate::apply_worker::pause::Control;
use crate::config::Config;
use crate::destination::{
    Bookkeeping, DestinationError, FenceKind, answer_failed, answer_made, answer_repaired, ensure_fence_requests,
    ensure_reading, is_fence_wanted, keys_of_repair, next_fence_request, take_up_fence_request,
};
use crate::error_policy::{Fault, report};
use crate::pg::{ErrorReport, counted};
use crate::preflight::addresses::Addresses;
use crate::preflight::violated_constraints::explained;
use crate::session::SqlClient;
use crate::telemetry::{Telemetry, failpoint};
use crate::verification::fence::{self, FenceProgress, NoFence, sql_for};
use crate::verification::fence_request::{Maker, TOO_SLOW, VerifyContext};
use crate::verification::verdict::{VerifyOptions, VerifyProgress};

/// How often requests are looked for that no notification has announced: one is lost with its session.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is asked whether a fence that was handed over is still needed.
const HELD_LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long after a failed attempt the next one is made.
const AGAIN_AFTER: Duration = Duration::from_secs(3);

/// How often the requester of a fence learns what it waits for.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Makes a fence while the request's row says what that waits for, and for as long as somebody waits for it.
async fn telling<T>(
    client: &SqlClient,
    id: &str,
    progress: &FenceProgress,
    making: impl Future<Output = Result<T, NoFence>>,
) -> Result<T, NoFence> {
    take_up_fence_request(client, id).await?;
    let mut making = std::pin::pin!(making);
    let mut told = None;
    loop {
        // Somebody may lock the table of requests: the fence, for which apply stands still, is made meanwhile.
        let telling = async {
            tokio::time::sleep(TELL_EVERY).await;
            if !is_fence_wanted(client, id).await? {
                progress.abandon();
            }
            let waits_for = progress.get();
            if let Some(report) = waits_for.as_ref().filter(|_| waits_for != told) {
                answer_failed(client, id, report, false).await?;
            }
            Ok::<_, DestinationError>(waits_for)
        };
        told = tokio::select! {
            made = &mut making => return made,
            telling = telling => telling?,
        };
    }
}

/// What the service needs of its surroundings.
pub(crate) struct FenceService<'a> {
    pub(crate) config: &'a Config,
    pub(crate) addresses: &'a Addresses,
    pub(crate) control: Control,
    pub(crate) telemetry: &'a Telemetry,
}

impl FenceService<'_> {
    /// Answers requests until it is dropped.
    pub(crate) async fn run(&self) {
        tokio::join!(self.answer_requests(), self.verify_regularly());
    }

    async fn answer_requests(&self) {
        loop {
            if let Err(fault) = self.session().await {
                tracing::debug!("requests of fences are not answered: {}", report(&fault));
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn session(&self) -> Result<(), Fault> {
        let bookkeeping = Bookkeeping::connect(&sql_for(&self.addresses.destination, "fences")).await?;
        let client = bookkeeping.client();
        // A request ends with its requester, and need not outlive a failover of the destination.
        client
            .batch("setting up a session", "SET synchronous_commit = local")
            .await
            .map_err(DestinationError::Session)?;
        ensure_fence_requests(client).await?;
        if let Some(report) = ensure_reading(client).await? {
            tracing::warn!(event = "functions_outdated", "{}", report.lines());
        }
        client.listen().await.map_err(DestinationError::Session)?;
        let mut told: Option<ErrorReport> = None;
        loop {
            if let Some((id, kind)) = next_fence_request(client).await? {
                let answered = match kind {
                    FenceKind::Verify => self.hand_over(client, &id).await,
                    FenceKind::Repair => self.repair(client, &id).await,
                };
                match answered {
                    Ok(()) => told = None,
                    Err(NoFence::StreamEnded) => return pending().await,
                    Err(NoFence::Later(report)) => {
                        if told.as_ref() != Some(&report) {
                            tracing::info!(event = "fence", "{}", report.lines());
                        }
                        answer_failed(client, &id, &report, false).await?;
                        told = Some(report);
                        tokio::time::sleep(AGAIN_AFTER).await;
                    }
                }
            }
            client.notified(LOOK_EVERY).await;
        }
    }

    async fn hand_over(&self, client: &SqlClient, id: &str) -> Result<(), NoFence> {
        let progress = FenceProgress::default();
        let making = fence::make(self.config, self.addresses, &self.control, &progress);
        let fence = telling(client, id, &progress, making).await?;
        answer_made(client, id, &fence.made()).await?;
        while fence.is_held() && is_fence_wanted(client, id).await? {
            tokio::time::sleep(HELD_LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn repair(&self, client: &SqlClient, id: &str) -> Result<(), NoFence> {
        let keys = keys_of_repair(client, id).await?;
        let progress = FenceProgress::default();
        let making = fence::make_and_hold(self.config, self.addresses, &self.control, &progress);
        let (fence, held) = telling(client, id, &progress, making).await?;
        failpoint::pause("repair.fenced").await;
        let within = self.config.fence_timeout;
        let repairing = repair::repair(self.config, self.addresses, &fence, &held, &keys);
        let repaired = tokio::time::timeout(within, repairing).await;
        drop(held);
        match repaired {
            Ok(Ok(outcome)) => {
                let text = format!(
                    "repaired rows at {}: {} deleted, {} updated, {} inserted",
                    fence.consistent_point, outcome.deleted, outcome.updated, outcome.inserted
                );
                self.telemetry.event("verify", text);
                answer_repaired(client, id, outcome).await?;
            }
            Ok(Err(fault)) => {
                let fault = explained(self.config, self.addresses, fault).await;
                answer_failed(client, id, &report(&fault), true).await?;
            }
            Err(_) => {
                let text = format!("{TOO_SLOW} {}", humantime::format_duration(within));
                let refused = ErrorReport::new(text)
                    .hint("Raise fence_timeout, or reconcile with a new snapshot: headwater run --resnapshot.");
                answer_failed(client, id, &refused, true).await?;
            }
        }
        Ok(())
    }

    async fn verify_regularly(&self) {
        let Some(every) = self.config.verify_every else { return pending().await };
        loop {
            tokio::time::sleep(every).await;
            match self.verify().await {
                Ok(()) => {}
                Err(NoFence::StreamEnded) => return pending().await,
                Err(NoFence::Later(report)) => {
                    tracing::warn!(event = "verify", "not verified: {}", report.lines());
                }
            }
        }
    }

    async fn verify(&self) -> Result<(), NoFence> {
        let began = Instant::now();
        let options = VerifyOptions { workers: Some(1), ..VerifyOptions::default() };
        let progress = Arc::new(VerifyProgress::default());
        let ends =
            VerifyContext { config: self.config, addresses: self.addresses, options: &options, progress: &progress };
        let (verdict, _) = compare::compare(ends, Maker::Ourselves(&self.control), None).await?;
        let (rows, tables) = (verdict.rows(), verdict.tables.len());
        let took = humantime::format_duration(Duration::from_millis(
            u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        ));
        self.telemetry.verified(verdict.consistent_point, rows);
        let differ = verdict.tables.iter().filter(|table| !table.differences.is_empty());
        let differ: Vec<String> =
            differ.map(|table| format!("{} ({})", table.table, counted(table.differences.rows(), "row"))).collect();
        let left_out: Vec<String> = verdict.left_out.iter().map(|left_out| format!("; left out: {left_out}")).collect();
        let left_out = left_out.concat();
        if differ.is_empty() {
            let tables = counted(tables, "table");
            let text = format!("{tables} equal at {}, found in {took}{left_out}", verdict.consistent_point);
            self.telemetry.event("verify", text);
        } else {
            let text = format!(
                "at {} the destination differs from the source in {}; headwater verify names the keys{left_out}",
                verdict.consistent_point,
                differ.join(", ")
            );
            tracing::error!(event = "verify", "{text}");
            self.telemetry.event("verify", text);
        }
        Ok(())
    }
}
