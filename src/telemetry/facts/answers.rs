//! What is answered from the facts, as of the moment of the question: ready or why not, in service or why not, the status, the metrics.
//!
//! Asked by the HTTP server, the service manager's notices and the chart's sampler. Lag is computed here, so it keeps
//! rising while everything else stands still.

use std::time::{Duration, Instant};

use prometheus::core::{Atomic, GenericGaugeVec};

use super::{Inner, Telemetry, local_clock};
use crate::pg::QualifiedName;
use crate::telemetry::state::State;
use crate::telemetry::view::StatusView;

impl Telemetry {
    /// Whether everything is as it should be; otherwise why not.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn ready(&self) -> Result<(), String> {
        self.status().not_ready_because.map_or(Ok(()), Err)
    }

    /// Whether this instance does its part: it copies, streams or stands by. Otherwise why not.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn in_service(&self) -> Result<(), String> {
        let inner = self.inner();
        let state = inner.state.as_str();
        match (inner.state, &inner.reason) {
            (State::Snapshot | State::CatchingUp | State::Streaming | State::Standby, _) => Ok(()),
            (State::Connecting | State::Waiting | State::Stopped, Some(reason)) => Err(format!("{state}: {reason}")),
            (State::Connecting | State::Waiting | State::Stopped, None) => Err(state.to_owned()),
        }
    }

    /// Everything, as of now.
    pub fn status(&self) -> StatusView {
        let now = self.now();
        let inner = self.inner();
        let source_now = inner.offset.source_time(local_clock());
        let lag = inner.lag.age(inner.streaming, source_now, now);
        let waiting_heartbeat = inner.heartbeats_on_their_way.front().map(Instant::elapsed);
        let heartbeat = inner.heartbeat_lag.max(waiting_heartbeat);
        let leads = inner.state != State::Standby;
        let not_ready_because = self.not_ready_because(&inner, lag);
        let reason = inner.reason.as_ref();
        StatusView {
            state: inner.state,
            reason: reason.map(|reason| reason.message.clone()),
            detail: reason.and_then(|reason| reason.detail.clone()),
            hint: reason.and_then(|reason| reason.hint.clone()),
            state_seconds: inner.state_since.elapsed().as_secs_f64(),
            ready: not_ready_because.is_none(),
            not_ready_because,
            ready_lag_max_seconds: self.ready_lag_max.as_secs_f64(),
            route: inner.route.clone(),
            position: inner.position,
            confirmed: inner.confirmed,
            source_flush_lsn: inner.source_flush_lsn,
            lag_bytes: leads.then(|| inner.lag.bytes()),
            lag_seconds: leads.then_some(lag.as_secs_f64()),
            heartbeat_lag_seconds: heartbeat.map(|lag| lag.as_secs_f64()),
            heartbeat_off: inner.heartbeat_off.clone(),
            last_progress_age_seconds: leads.then(|| inner.progressed_at.elapsed().as_secs_f64()),
            transactions_applied: inner.transactions,
            rows_applied: inner.rows,
            slot: inner.slot.clone(),
            tables: inner.tables.clone(),
            suspended: inner.suspended.iter().map(QualifiedName::unquoted).collect(),
            in_doubt: in_doubt(&inner).map(QualifiedName::unquoted).collect(),
            waits: inner.waits.values().flatten().cloned().collect(),
            snapshot_seconds: inner.snapshot.as_ref().map(|snapshot| snapshot.began.elapsed().as_secs_f64()),
            snapshot: inner.snapshot.as_ref().map(|snapshot| snapshot.progress(&inner.tables)),
            spool_bytes: inner.spool_bytes,
            verified: inner.verified.clone(),
            events: inner.events.iter().cloned().collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.as_secs_f64(),
        }
    }

    fn not_ready_because(&self, inner: &Inner, lag: Duration) -> Option<String> {
        let state = inner.state.as_str();
        match (inner.state, &inner.reason) {
            (State::Streaming, _) if lag <= self.ready_lag_max => {
                let suspended = inner.suspended.first();
                let suspended =
                    suspended.map(|table| format!("{state}: table {table} is suspended until it is copied again"));
                suspended.or_else(|| {
                    let table = in_doubt(inner).next()?;
                    let said = format!("table {table} is in doubt until it is compared with the source");
                    Some(format!("{state}: {said}"))
                })
            }
            (State::Streaming | State::CatchingUp, _) => Some(format!(
                "{state}: {:.1} s behind the source (at most {:.1} s)",
                lag.as_secs_f64(),
                self.ready_lag_max.as_secs_f64()
            )),
            (State::Standby, _) => Some(format!("{state}: another instance leads")),
            (_, Some(reason)) => Some(format!("{state}: {reason}")),
            (_, None) => Some(state.to_owned()),
        }
    }

    /// All metrics in Prometheus's text format, as of now.
    pub fn render_metrics(&self) -> Vec<u8> {
        let status = self.status();
        let bytes = status.lag_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        show(&self.metrics.lag_bytes, bytes);
        show(&self.metrics.lag_seconds, status.lag_seconds);
        show(&self.metrics.heartbeat_lag_seconds, status.heartbeat_lag_seconds);
        show(&self.metrics.last_progress_age_seconds, status.last_progress_age_seconds);
        if let Some(seconds) = status.snapshot_seconds {
            self.metrics.snapshot_duration.set(seconds);
        }
        self.metrics.render()
    }
}

/// Tables that are followed, and whose rows may be others than the source's.
fn in_doubt(inner: &Inner) -> impl Iterator<Item = &QualifiedName> {
    inner.in_doubt.union(&inner.uncompared).filter(|table| !inner.suspended.contains(table))
}

/// Sets a gauge, or takes it away where there is nothing to say: an absent number is no lie, a 0 would be one.
fn show<P: Atomic>(gauge: &GenericGaugeVec<P>, value: Option<P::T>) {
    match value {
        Some(value) => gauge.with_label_values::<&str>(&[]).set(value),
        None => gauge.reset(),
    }
}
