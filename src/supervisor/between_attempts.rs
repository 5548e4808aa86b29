//! What is done between two attempts, on sessions of its own: what an operator is to find is written down, and what he asks for is
//! waited for.
//!
//! Called by `supervisor::run` once an attempt has ended. The fault may be that somebody else has a hand in the bookkeeping, so
//! each connection checks it. Bounds: what is written gets [`END_MAX`]; what is waited for, the caller bounds.

use std::sync::Arc;
use std::time::Duration;

use super::carried_over::CarriedOver;
use super::service::Service;
use crate::destination::{
    Bookkeeping, Conflict, DestinationError, WantedLetters, refuse_fence_requests, remember_conflict, skips,
};
use crate::error_policy::Fault;
use crate::pg::ErrorReport;
use crate::preflight::violated_constraints::explained;
use crate::preflight::watch_failures::WatchFailure;
use crate::source::SourceError;
use crate::verification::fence_request::NO_FENCE_HINT;

/// How long the destination may take to hear of the end.
const END_MAX: Duration = Duration::from_secs(2);

/// How often a halted service looks for an operator's wish to skip the transaction: a person waits for it.
const SKIP_POLL_EVERY: Duration = Duration::from_millis(500);

/// How often a first copy that waits for an operator looks for a request, on a new session each time: it may wait for days.
const COPY_REQUEST_POLL_EVERY: Duration = Duration::from_secs(2);

/// Both ends, between two attempts.
pub(super) struct BetweenAttempts<'a> {
    pub(super) service: &'a Service,
    pub(super) carried: &'a CarriedOver,
}

impl BetweenAttempts<'_> {
    async fn bookkeeping(&self) -> Result<Bookkeeping, DestinationError> {
        let host = &self.carried.host;
        Bookkeeping::connect_checked(&host.addresses.destination, &host.config.destination.trusted_roles).await
    }

    /// A start without --resnapshot has ended with words that ask for it: the next command line that has it is carried out, whatever
    /// an earlier one asked for.
    pub(super) async fn ends_with(&self, fault: &Fault) {
        // Only the leader meets these, so nobody else is at work on a request.
        let is_answered_by_a_copy = matches!(
            fault,
            Fault::Source(SourceError::LostHistory(_) | SourceError::Gap { .. })
                | Fault::Destination(DestinationError::LacksMost { .. })
        );
        if self.carried.copies.asked_by_command_line || !is_answered_by_a_copy {
            return;
        }
        let forgetting = async { self.bookkeeping().await?.forget_invocations().await };
        if let Ok(Err(error)) = tokio::time::timeout(END_MAX, forgetting).await {
            tracing::debug!("an earlier --resnapshot could not be forgotten: {error}");
        }
    }

    /// The service ends because it was asked to: what its command line asked for is done with, and the next one's wish is
    /// another.
    pub(super) async fn stopped_in_order(&self) {
        if !self.carried.copies.recorded {
            return;
        }
        let ending = async { self.bookkeeping().await?.end_invocation().await };
        if !matches!(tokio::time::timeout(END_MAX, ending).await, Ok(Ok(()))) {
            tracing::warn!(
                "the destination could not be told that --resnapshot is done with: the next start with it asks for nothing"
            );
        }
    }

    /// A fault about a constraint, with how the source has it.
    pub(super) async fn explained(&self, fault: Fault) -> Fault {
        match self.service.is_stopping() {
            true => fault,
            false => explained(&self.carried.host.config, &self.carried.host.addresses, fault).await,
        }
    }

    /// Keeps a conflict for `headwater conflict show`.
    pub(super) async fn keep_conflict(&self, conflict: &Conflict) {
        let keeping = async {
            let bookkeeping = self.bookkeeping().await?;
            remember_conflict(bookkeeping.client(), conflict).await
        };
        match tokio::time::timeout(END_MAX, keeping).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("headwater conflict show will not show this conflict: {error}"),
            Err(_) => {
                tracing::warn!("headwater conflict show will not show this conflict: the destination did not answer")
            }
        }
    }

    /// Refuses the fences that are asked for while this fault halts the service: none can be made, and somebody waits.
    pub(super) async fn refuse_fences(&self, halted: &ErrorReport) {
        let report = ErrorReport::new("no fence can be made: the service is halted")
            .detail(format!("{halted}."))
            .hint(format!("See what to do: headwater explain\n{NO_FENCE_HINT}"));
        let refusing = async {
            let bookkeeping = self.bookkeeping().await?;
            refuse_fence_requests(bookkeeping.client(), &report).await
        };
        // The requester gives up after fence_timeout.
        if !matches!(tokio::time::timeout(END_MAX, refusing).await, Ok(Ok(()))) {
            tracing::debug!("requests for fences could not be refused");
        }
    }

    /// Resolves once an operator has asked for a copy after the last attempt began (`headwater resnapshot`), or another instance has
    /// published one: then this one stands by for it.
    pub(super) async fn copy_requested(&self) {
        let known = &self.carried.copies.requests_known;
        let mut failure = WatchFailure::new(Arc::clone(&self.service.telemetry), "requests for copies").always();
        let mut position_before = None;
        loop {
            let asked = async {
                let bookkeeping = self.bookkeeping().await?;
                Ok::<_, DestinationError>((bookkeeping.requests().await?, bookkeeping.position().await?))
            };
            match asked.await {
                Ok((requests, _)) if requests.iter().any(|request| !known.contains(&request.id)) => return,
                Ok((_, position)) if *position_before.get_or_insert(position) != position => return,
                Ok(_) => failure.works(),
                // While the destination does not answer nobody can ask there either.
                Err(error) => failure.failed(error),
            }
            tokio::time::sleep(COPY_REQUEST_POLL_EVERY).await;
        }
    }

    /// Resolves once an operator has asked for the transaction of this fault to be skipped; pending for other faults. Then
    /// nobody waits for the end of a back-off.
    pub(super) async fn skip_requested(&self, fault: &Fault) {
        let Fault::Destination(DestinationError::Conflict(conflict)) = fault else {
            return std::future::pending().await;
        };
        let names = [Some(WantedLetters::CommitLsn(conflict.commit_lsn)), conflict.end_lsn.map(WantedLetters::EndLsn)];
        // Without an answer the back-off ends by itself, and the next attempt says what is wrong.
        let Ok(bookkeeping) = self.bookkeeping().await else {
            return std::future::pending().await;
        };
        loop {
            match skips(bookkeeping.client(), None).await {
                Ok(skips) if names.iter().flatten().any(|name| skips.contains(name)) => return,
                Ok(_) => tokio::time::sleep(SKIP_POLL_EVERY).await,
                Err(_) => return std::future::pending().await,
            }
        }
    }
}
