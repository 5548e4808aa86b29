//! The facts: what happens, told by the rooms that make it happen, kept for whoever asks.
//!
//! One [`Telemetry`] per process, shared. Every method takes a fact and returns at once; the lock inside is held for
//! a few assignments, never across an await. Bounds: events are kept for the last [`EVENTS_MAX`] only.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use prometheus::core::{Atomic, GenericGaugeVec};

use super::history::{History, Sample};
use super::log::is_json;
use super::metrics::{Metrics, Operation};
use super::view::{Event, Route, SlotHealth, StatusView, TableProgress, Verified};
use crate::pg::{ErrorReport, Lsn, PgTimestamp, QualifiedName};
use crate::progress::{ClockOffset, Lag};

/// What headwater is doing; exactly one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Reaching both servers and checking them.
    Connecting,
    /// Copying tables.
    Snapshot,
    /// Streaming, and not yet where the source was when streaming began.
    CatchingUp,
    /// Streaming.
    Streaming,
    /// Another instance leads.
    Standby,
    /// Held up by something that may need an operator; retried.
    Waiting,
    /// Ended.
    Stopped,
}

impl State {
    const ALL: [State; 7] = [
        State::Connecting,
        State::Snapshot,
        State::CatchingUp,
        State::Streaming,
        State::Standby,
        State::Waiting,
        State::Stopped,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Connecting => "connecting",
            State::Snapshot => "snapshot",
            State::CatchingUp => "catching_up",
            State::Streaming => "streaming",
            State::Standby => "standby",
            State::Waiting => "waiting",
            State::Stopped => "stopped",
        }
    }
}

const EVENTS_MAX: usize = 100;
/// At one in five seconds, more than an hour; those behind the first ones only make the queue shorter later.
const HEARTBEATS_MAX: usize = 1024;

struct Inner {
    state: State,
    reason: Option<ErrorReport>,
    state_since: Instant,
    streaming: bool,
    lag: Lag,
    offset: ClockOffset,
    position: Lsn,
    confirmed: Lsn,
    source_flush_lsn: Lsn,
    progressed_at: Instant,
    /// Heartbeats that were written, or due, and have not come back; oldest first.
    heartbeats_on_their_way: VecDeque<Instant>,
    heartbeat_lag: Option<Duration>,
    heartbeat_off: Option<String>,
    transactions: u64,
    rows: u64,
    rows_copied: u64,
    spool_bytes: u64,
    verified: Option<Verified>,
    route: Route,
    history: History,
    tables: BTreeMap<String, TableProgress>,
    slot: Option<SlotHealth>,
    snapshot_began: Option<Instant>,
    /// Tables that are set aside until a copy is published.
    standing_still: Vec<QualifiedName>,
    events: VecDeque<Event>,
}

/// The facts of this process.
pub struct Telemetry {
    began: Instant,
    ready_lag_max: Duration,
    metrics: Metrics,
    inner: Mutex<Inner>,
}

impl Telemetry {
    /// Nothing has happened yet; more lag than `ready_lag_max` means not ready.
    pub fn new(ready_lag_max: Duration) -> Telemetry {
        let began = Instant::now();
        let telemetry = Telemetry {
            began,
            ready_lag_max,
            metrics: Metrics::new(),
            inner: Mutex::new(Inner {
                state: State::Connecting,
                reason: None,
                state_since: began,
                streaming: false,
                lag: Lag::new(Lsn::INVALID, Duration::ZERO),
                offset: ClockOffset::default(),
                position: Lsn::INVALID,
                confirmed: Lsn::INVALID,
                source_flush_lsn: Lsn::INVALID,
                progressed_at: began,
                heartbeats_on_their_way: VecDeque::new(),
                heartbeat_lag: None,
                heartbeat_off: None,
                transactions: 0,
                rows: 0,
                rows_copied: 0,
                spool_bytes: 0,
                verified: None,
                route: Route::default(),
                history: History::default(),
                tables: BTreeMap::new(),
                slot: None,
                snapshot_began: None,
                standing_still: Vec::new(),
                events: VecDeque::new(),
            }),
        };
        telemetry.show_state(State::Connecting);
        telemetry
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves numbers, which are still worth showing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn show_state(&self, state: State) {
        for other in State::ALL {
            self.metrics.state.with_label_values(&[other.as_str()]).set(i64::from(other == state));
        }
    }

    /// Enters a state; one log line per change of state or reason, not per attempt.
    pub fn set_state(&self, state: State, reason: Option<ErrorReport>) {
        let mut inner = self.inner();
        if inner.state == state && inner.reason == reason {
            return;
        }
        if inner.state != state {
            inner.state_since = Instant::now();
        }
        inner.state = state;
        inner.reason.clone_from(&reason);
        if state == State::Standby {
            // The leader's heartbeats are the leader's to measure.
            inner.heartbeats_on_their_way.clear();
            inner.heartbeat_lag = None;
        }
        let text = match &reason {
            Some(reason) => format!("{}: {}", state.as_str(), reason.message),
            None => state.as_str().to_owned(),
        };
        remember(&mut inner, "state", text);
        drop(inner);
        self.show_state(state);
        tell(state, reason.as_ref());
    }

    /// Something was achieved after a fault: what held us up is over.
    pub fn resumed(&self) {
        let held_up = matches!(self.inner().state, State::Waiting | State::Connecting);
        if held_up {
            self.set_state(State::CatchingUp, None);
        }
    }

    /// Whether a fault holds us up that is not known to be over. Attempts that may fail in the same way are not told.
    pub fn is_held_up(&self) -> bool {
        let inner = self.inner();
        matches!(inner.state, State::Waiting | State::Connecting) && inner.reason.is_some()
    }

    /// The state.
    pub fn state(&self) -> State {
        self.inner().state
    }

    /// Remembers something for /status, and logs it.
    pub fn event(&self, kind: &'static str, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(event = kind, "{text}");
        remember(&mut self.inner(), kind, text);
    }

    /// The same for what an operator should look at.
    pub fn warning(&self, kind: &'static str, text: impl Into<String>) {
        let text = text.into();
        tracing::warn!(event = kind, "{text}");
        remember(&mut self.inner(), kind, text);
    }

    /// These tables are set aside, and no others: the stream that begins passes over their changes.
    pub fn stands_still(&self, tables: &[QualifiedName]) {
        self.inner().standing_still = tables.to_vec();
    }

    /// The stream begins at a stored position.
    pub fn stream_begins(&self, position: Lsn, tables: impl IntoIterator<Item = QualifiedName>) {
        let now = self.now();
        let mut inner = self.inner();
        inner.streaming = true;
        if inner.position == Lsn::INVALID || position < inner.position {
            // The first one, or that of another source: positions of the old one mean nothing here.
            inner.lag = Lag::new(position, now);
            inner.position = position;
            inner.source_flush_lsn = Lsn::INVALID;
            inner.confirmed = Lsn::INVALID;
        }
        inner.position = position;
        inner.lag.stored(position, now);
        for table in tables {
            let name = table.unquoted();
            for operation in [Operation::Insert, Operation::Update, Operation::Delete, Operation::Truncate] {
                // So that a series exists, at 0, before its first change.
                self.metrics.rows_applied.with_label_values(&[name.as_str(), operation.as_str()]);
            }
            inner.tables.entry(name).or_default();
        }
    }

    /// The stream was broken off.
    pub fn stream_ends(&self) {
        let mut inner = self.inner();
        inner.streaming = false;
    }

    /// A message came, with the source's clock at sending and ours at receipt.
    pub fn heard(&self, source: PgTimestamp, local: PgTimestamp) {
        let now = self.now();
        self.inner().offset.observe(source, local, now);
    }

    /// The source's clock now, as far as its messages tell; rather behind than ahead.
    pub fn source_now(&self) -> PgTimestamp {
        self.inner().offset.source_time(local_clock())
    }

    /// A transaction's Begin was received, with its commit's position and time.
    pub fn received(&self, final_lsn: Lsn, committed_at: PgTimestamp) {
        let now = self.now();
        self.inner().lag.received(final_lsn, committed_at, now);
    }

    /// The stream has passed this position; `nothing_under_way`: and all that came before it for us is stored.
    pub fn reached(&self, position: Lsn, nothing_under_way: bool) {
        let now = self.now();
        let mut inner = self.inner();
        inner.lag.reached(position, nothing_under_way, now);
        inner.progressed_at = Instant::now();
    }

    /// The source's WAL is flushed up to here.
    pub fn source_at(&self, flush_lsn: Lsn) {
        let now = self.now();
        let mut inner = self.inner();
        if inner.source_flush_lsn == Lsn::INVALID && inner.position == Lsn::INVALID {
            // Before there is a position, what is written from now on is what will be missing.
            inner.lag = Lag::new(flush_lsn, now);
        }
        inner.source_flush_lsn = inner.source_flush_lsn.max(flush_lsn);
        inner.lag.source_at(flush_lsn, now);
    }

    /// A position was stored.
    pub fn stored(&self, position: Lsn) {
        let now = self.now();
        let mut inner = self.inner();
        inner.position = inner.position.max(position);
        inner.lag.stored(position, now);
        inner.progressed_at = Instant::now();
    }

    /// Bytes of lag.
    pub fn lag_bytes(&self) -> u64 {
        self.inner().lag.bytes()
    }

    /// A position was found durable.
    pub fn confirmed(&self, position: Lsn) {
        let mut inner = self.inner();
        inner.confirmed = inner.confirmed.max(position);
    }

    /// A batch was committed.
    pub fn batch_applied(
        &self,
        transactions: u64,
        rows: &[(String, Operation, u64)],
        missing_deletes: u64,
        took: Duration,
    ) {
        let mut total = 0;
        let mut inner = self.inner();
        inner.transactions += transactions;
        inner.progressed_at = Instant::now();
        for (table, operation, count) in rows {
            total += count;
            self.metrics.rows_applied.with_label_values(&[table.as_str(), operation.as_str()]).inc_by(*count);
            if !inner.tables.contains_key(table) {
                inner.tables.insert(table.clone(), TableProgress::default());
            }
            let Some(progress) = inner.tables.get_mut(table) else { continue };
            match operation {
                Operation::Insert => progress.inserts += count,
                Operation::Update => progress.updates += count,
                Operation::Delete => progress.deletes += count,
                Operation::Truncate => progress.truncates += count,
            }
        }
        inner.rows += total;
        drop(inner);
        self.metrics.transactions_applied.inc_by(transactions);
        self.metrics.missing_deletes.inc_by(missing_deletes);
        self.metrics.batch_rows.observe(total as f64);
        self.metrics.apply_duration.observe(took.as_secs_f64());
        tracing::debug!(
            transactions_applied = transactions,
            batch_rows = total,
            apply_duration_seconds = took.as_secs_f64(),
            "applied a batch"
        );
    }

    /// A batch met a constraint and is done again in smaller steps.
    pub fn batch_retried(&self) {
        self.metrics.batch_retries.inc();
    }

    /// A heartbeat was written at the source, or was due and could not be.
    pub fn heartbeat_sent(&self) {
        let mut inner = self.inner();
        if inner.heartbeats_on_their_way.len() < HEARTBEATS_MAX {
            inner.heartbeats_on_their_way.push_back(Instant::now());
        }
    }

    /// A heartbeat was committed at the destination, `took` after it was written.
    pub fn heartbeat_returned(&self, took: Duration) {
        let mut inner = self.inner();
        inner.heartbeat_lag = Some(took);
        // It was counted before it was written, and whatever was counted before it is over with it.
        let Some(written) = Instant::now().checked_sub(took) else { return };
        while inner.heartbeats_on_their_way.front().is_some_and(|sent| *sent <= written) {
            inner.heartbeats_on_their_way.pop_front();
        }
    }

    /// There are no heartbeats, and why; or there are again.
    pub fn heartbeats_off(&self, reason: Option<&str>) {
        let mut inner = self.inner();
        if inner.heartbeat_off.as_deref() == reason {
            return;
        }
        inner.heartbeat_off = reason.map(str::to_owned);
        inner.heartbeats_on_their_way.clear();
        inner.heartbeat_lag = None;
        drop(inner);
        match reason {
            Some(reason) => {
                self.event("heartbeat", format!("no heartbeats: {reason}; lag is told by keepalives alone"))
            }
            None => self.event("heartbeat", "heartbeats are written again"),
        }
    }

    /// Whether a heartbeat that is written now should come back to this process some time.
    pub fn expects_heartbeats(&self) -> bool {
        let inner = self.inner();
        let followed = match inner.state {
            State::Connecting | State::CatchingUp | State::Streaming | State::Waiting => true,
            State::Snapshot | State::Standby | State::Stopped => false,
        };
        followed && inner.position != Lsn::INVALID
    }

    /// Conflicts were met, of so many rows.
    pub fn conflict(&self, table: &str, kind: &str, rows: u64) {
        self.metrics.conflicts.with_label_values(&[table, kind]).inc_by(rows);
        remember(&mut self.inner(), "conflict", format!("{kind} on {table}: {rows} rows"));
    }

    /// The stream is set up anew.
    pub fn restart(&self, reason: &'static str) {
        self.metrics.restarts.with_label_values(&[reason]).inc();
        remember(&mut self.inner(), "restart", reason.to_owned());
    }

    /// The slot's health was read.
    pub fn slot(&self, health: SlotHealth) {
        let retained = i64::try_from(health.retained_wal_bytes).unwrap_or(i64::MAX);
        self.metrics.slot_retained_wal_bytes.with_label_values::<&str>(&[]).set(retained);
        let until_lost = health.seconds_until_lost.unwrap_or(f64::INFINITY);
        self.metrics.slot_seconds_until_lost.with_label_values::<&str>(&[]).set(until_lost);
        self.inner().slot = Some(health);
    }

    /// There is no slot.
    pub fn no_slot(&self) {
        self.metrics.slot_retained_wal_bytes.reset();
        self.metrics.slot_seconds_until_lost.reset();
        self.inner().slot = None;
    }

    /// In-progress transactions take so much memory and disk now.
    pub fn spooled(&self, bytes: u64) {
        self.metrics.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.inner().spool_bytes = bytes;
    }

    /// A verification has ended, and found so many rows that differ.
    pub fn verified(&self, consistent_point: Lsn, mismatched_rows: u64) {
        let point = i64::try_from(consistent_point.as_u64()).unwrap_or(i64::MAX);
        self.metrics.last_verified_position.set(point);
        let mismatched = i64::try_from(mismatched_rows).unwrap_or(i64::MAX);
        self.metrics.verify_mismatched_rows.with_label_values::<&str>(&[]).set(mismatched);
        self.inner().verified = Some(Verified { at: wall_clock(), mismatched_rows });
    }

    /// Which two databases this is about.
    pub fn set_route(&self, route: Route) {
        self.inner().route = route;
    }

    /// Keeps this second's numbers for the chart.
    pub fn sample(&self) {
        let status = self.status();
        let mut inner = self.inner();
        let rows_copied = inner.rows_copied;
        inner.history.push(Sample {
            at: status.uptime_seconds,
            lag_seconds: status.lag_seconds,
            lag_bytes: status.lag_bytes,
            heartbeat_lag_seconds: status.heartbeat_lag_seconds,
            rows_applied: status.rows_applied,
            rows_copied,
        });
    }

    /// The last quarter of an hour.
    pub(super) fn history(&self) -> History {
        self.inner().history.clone()
    }

    /// The last sample.
    pub(super) fn last_sample(&self) -> Option<Sample> {
        self.inner().history.last()
    }

    /// A snapshot begins, of tables with these sizes in bytes.
    pub fn snapshot_begins(&self, tables: impl IntoIterator<Item = (QualifiedName, u64)>) {
        let mut inner = self.inner();
        inner.snapshot_began = Some(Instant::now());
        // What is behind the snapshot's position will not be streamed.
        inner.heartbeats_on_their_way.clear();
        for (table, bytes) in tables {
            let name = table.unquoted();
            self.metrics.snapshot_progress.with_label_values(&[name.as_str()]).set(0.0);
            let progress = inner.tables.entry(name).or_default();
            progress.snapshot_rows = 0;
            progress.snapshot_bytes = 0;
            progress.snapshot_bytes_expected = bytes;
            progress.snapshot_done = false;
        }
    }

    /// Rows of a table were copied.
    pub fn snapshot_copied(&self, table: &QualifiedName, rows: u64, bytes: u64) {
        let name = table.unquoted();
        self.metrics.snapshot_rows.with_label_values(&[name.as_str()]).inc_by(rows);
        let mut inner = self.inner();
        inner.rows_copied += rows;
        inner.progressed_at = Instant::now();
        let progress = inner.tables.entry(name.clone()).or_default();
        progress.snapshot_rows += rows;
        progress.snapshot_bytes += bytes;
        let ratio = progress.snapshot_ratio();
        drop(inner);
        self.metrics.snapshot_progress.with_label_values(&[name.as_str()]).set(ratio);
    }

    /// Rows that were copied are copied again: their connection was lost.
    pub fn snapshot_taken_back(&self, table: &QualifiedName, rows: u64, bytes: u64) {
        let name = table.unquoted();
        let mut inner = self.inner();
        let progress = inner.tables.entry(name.clone()).or_default();
        progress.snapshot_rows = progress.snapshot_rows.saturating_sub(rows);
        progress.snapshot_bytes = progress.snapshot_bytes.saturating_sub(bytes);
        let ratio = progress.snapshot_ratio();
        drop(inner);
        self.metrics.snapshot_progress.with_label_values(&[name.as_str()]).set(ratio);
    }

    /// What a snapshot that is being copied holds back at the source.
    pub fn snapshot_holds(&self, transactions: u64, wal_bytes: u64) {
        self.metrics.snapshot_held_transactions.set(i64::try_from(transactions).unwrap_or(i64::MAX));
        self.metrics.snapshot_held_wal_bytes.set(i64::try_from(wal_bytes).unwrap_or(i64::MAX));
    }

    /// A table is copied completely.
    pub fn snapshot_table_done(&self, table: &QualifiedName) {
        let name = table.unquoted();
        self.metrics.snapshot_progress.with_label_values(&[name.as_str()]).set(1.0);
        self.inner().tables.entry(name).or_default().snapshot_done = true;
    }

    /// The snapshot is published, or given up.
    pub fn snapshot_ends(&self) {
        let mut inner = self.inner();
        if let Some(began) = inner.snapshot_began.take() {
            self.metrics.snapshot_duration.set(began.elapsed().as_secs_f64());
        }
        drop(inner);
        self.snapshot_holds(0, 0);
    }

    /// Whether everything is as it should be; otherwise why not.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn ready(&self) -> Result<(), String> {
        self.status().not_ready_because.map_or(Ok(()), Err)
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
            snapshot_seconds: inner.snapshot_began.map(|began| began.elapsed().as_secs_f64()),
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
                let table = inner.standing_still.first()?;
                Some(format!("{state}: table {table} stands still until it is copied anew"))
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

/// Sets a gauge, or takes it away where there is nothing to say: an absent number is no lie, a 0 would be one.
fn show<P: Atomic>(gauge: &GenericGaugeVec<P>, value: Option<P::T>) {
    match value {
        Some(value) => gauge.with_label_values::<&str>(&[]).set(value),
        None => gauge.reset(),
    }
}

/// One log line per change of state.
fn tell(state: State, reason: Option<&ErrorReport>) {
    let name = state.as_str();
    match reason {
        Some(reason) if is_json() => {
            let (detail, hint) = (reason.detail.as_deref(), reason.hint.as_deref());
            if state == State::Waiting {
                tracing::error!(state = name, detail, hint, "{reason}");
            } else {
                tracing::warn!(state = name, detail, hint, "{reason}");
            }
        }
        Some(reason) if state == State::Waiting => tracing::error!(state = name, "{}", reason.lines()),
        Some(reason) => tracing::warn!(state = name, "{}", reason.lines()),
        None => tracing::info!(state = name, "{}", sentence(state)),
    }
}

fn sentence(state: State) -> &'static str {
    match state {
        State::Connecting => "connecting",
        State::Snapshot => "copying the tables",
        State::CatchingUp => "catching up with the source",
        State::Streaming => "streaming",
        State::Standby => "standing by: another instance leads",
        State::Waiting => "waiting",
        State::Stopped => "stopped",
    }
}

/// Keeps an event. What happens again and again while nothing is achieved is one event: an hour's outage must not push
/// out what came before it.
fn remember(inner: &mut Inner, kind: &'static str, text: String) {
    let streamed = |event: &Event| event.kind == "state" && event.text == State::Streaming.as_str();
    let again = inner
        .events
        .iter()
        .take_while(|event| !streamed(event))
        .position(|event| event.kind == kind && event.text == text && kind != "takeover");
    let times = again.and_then(|place| inner.events.remove(place)).map_or(1, |event| event.times.saturating_add(1));
    inner.events.push_front(Event { at: wall_clock(), kind: kind.to_owned(), text, times });
    inner.events.truncate(EVENTS_MAX);
}

fn wall_clock() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn local_clock() -> PgTimestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    PgTimestamp::from_unix_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_state_is_1_and_every_metric_has_its_name() {
        let telemetry = Telemetry::new(Duration::from_secs(60));
        telemetry.set_state(State::Streaming, None);
        telemetry.stream_begins(Lsn::new(1), [QualifiedName::new("public", "t")]);
        telemetry.snapshot_begins([(QualifiedName::new("public", "t"), 5)]);
        telemetry.snapshot_copied(&QualifiedName::new("public", "t"), 1, 1);
        telemetry.conflict("public.t", "missing_row", 1);
        telemetry.restart("source_lost");
        let absent = String::from_utf8(telemetry.render_metrics()).unwrap();
        for name in
            ["heartbeat_lag_seconds", "slot_retained_wal_bytes", "slot_seconds_until_lost", "verify_mismatched_rows"]
        {
            assert!(!absent.contains(&format!("headwater_{name} ")), "{name} before anything is known of it");
        }
        telemetry.heartbeat_returned(Duration::from_millis(3));
        telemetry.slot(SlotHealth::default());
        telemetry.spooled(1);
        telemetry.verified(Lsn::new(1), 0);
        let text = String::from_utf8(telemetry.render_metrics()).unwrap();
        let ones = text.lines().filter(|line| line.starts_with("headwater_state{") && line.ends_with(" 1")).count();
        assert_eq!(ones, 1, "{text}");
        for name in [
            "headwater_replication_lag_bytes",
            "headwater_replication_lag_seconds",
            "headwater_heartbeat_lag_seconds",
            "headwater_last_progress_age_seconds",
            "headwater_transactions_applied_total",
            "headwater_rows_applied_total{operation=\"insert\",table=\"public.t\"}",
            "headwater_batch_rows_bucket",
            "headwater_apply_duration_seconds_bucket",
            "headwater_snapshot_rows_total{table=\"public.t\"}",
            "headwater_snapshot_progress_ratio{table=\"public.t\"}",
            "headwater_state{state=\"streaming\"}",
            "headwater_slot_retained_wal_bytes",
            "headwater_slot_seconds_until_lost",
            "headwater_conflicts_total{kind=\"missing_row\",table=\"public.t\"}",
            "headwater_restarts_total{reason=\"source_lost\"}",
            "headwater_build_info",
            "headwater_spool_bytes 1",
            "headwater_verify_mismatched_rows 0",
            "headwater_slot_seconds_until_lost inf",
        ] {
            assert!(text.contains(name), "no {name} in\n{text}");
        }
    }

    #[test]
    fn a_standby_shows_no_lag_of_its_own() {
        let telemetry = Telemetry::new(Duration::from_secs(60));
        telemetry.source_at(Lsn::new(100));
        telemetry.heartbeat_sent();
        telemetry.set_state(State::Standby, None);
        telemetry.source_at(Lsn::new(900));
        let text = String::from_utf8(telemetry.render_metrics()).unwrap();
        for name in
            ["replication_lag_bytes", "replication_lag_seconds", "heartbeat_lag_seconds", "last_progress_age_seconds"]
        {
            assert!(!text.contains(&format!("\nheadwater_{name} ")), "{name} is the leader's:\n{text}");
        }
        assert!(!telemetry.expects_heartbeats());
        assert_eq!(telemetry.ready(), Err("standby: another instance leads".to_owned()));
    }

    #[test]
    fn an_outage_of_an_hour_is_a_few_events_and_two_outages_are_two() {
        let telemetry = Telemetry::new(Duration::from_secs(60));
        telemetry.event("snapshot", "published");
        for _ in 0..2 {
            telemetry.set_state(State::Streaming, None);
            for attempt in 0..500 {
                telemetry.restart("destination_lost");
                let message = if attempt % 2 == 0 { "refused" } else { "no such host" };
                telemetry.set_state(State::Connecting, Some(ErrorReport::new(message)));
            }
        }
        let events = telemetry.status().events;
        let told: Vec<_> = events.iter().map(|event| (event.text.as_str(), event.times)).collect();
        let outage = [
            ("connecting: no such host", 250),
            ("destination_lost", 500),
            ("connecting: refused", 250),
            ("streaming", 1),
        ];
        assert_eq!(told, [&outage[..], &outage[..], &[("published", 1)]].concat());
    }

    #[test]
    fn a_heartbeat_counts_until_it_or_a_later_one_is_back() {
        let telemetry = Telemetry::new(Duration::from_secs(60));
        let lag = || telemetry.status().heartbeat_lag_seconds;
        assert_eq!(lag(), None);
        telemetry.heartbeat_sent();
        telemetry.heartbeat_sent();
        let waited = lag().unwrap();
        assert!(lag().unwrap() > waited, "it grows while one is on its way");
        telemetry.heartbeat_returned(Duration::ZERO);
        assert_eq!(lag(), Some(0.0), "both were written before the one that came back");
        telemetry.heartbeat_sent();
        telemetry.heartbeat_returned(Duration::from_secs(5));
        assert!(telemetry.inner().heartbeats_on_their_way.len() == 1, "an older one says nothing of a later one");
    }

    #[test]
    fn ready_means_streaming_within_the_lag_threshold() {
        let telemetry = Telemetry::new(Duration::from_secs(60));
        assert_eq!(telemetry.ready(), Err("connecting".to_owned()));
        telemetry.set_state(State::Waiting, Some(ErrorReport::new("disk full")));
        assert_eq!(telemetry.ready(), Err("waiting: disk full".to_owned()));
        telemetry.set_state(State::Streaming, None);
        assert_eq!(telemetry.ready(), Ok(()));
        telemetry.stream_begins(Lsn::new(1), []);
        telemetry.received(Lsn::new(9), local_clock().shifted_by(-90_000_000));
        let reason = telemetry.ready().unwrap_err();
        assert!(reason.contains("behind the source (at most 60.0 s)"), "{reason}");
    }
}
