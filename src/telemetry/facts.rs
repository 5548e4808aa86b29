//! The facts: what happens, told by the rooms that make it happen, kept for whoever asks.
//!
//! One [`Telemetry`] per process, shared. Every method takes a fact and returns at once; the lock inside is held for
//! a few assignments, never across an await. Bounds: events are kept for the last [`EVENTS_MAX`] only.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::metrics::{Metrics, Operation};
use crate::pg::{ErrorReport, Lsn, PgTimestamp, QualifiedName};
use crate::progress::{ClockOffset, Lag};

/// What headwater is doing; exactly one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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

/// Something worth remembering.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When, RFC 3339.
    pub at: String,
    /// What kind: state, restart, conflict, schema, takeover, snapshot.
    pub kind: &'static str,
    /// What.
    pub text: String,
}

/// A table's numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TableProgress {
    /// Rows inserted since the process began.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// Times truncated.
    pub truncates: u64,
    /// Rows copied by the current or last snapshot.
    pub snapshot_rows: u64,
    /// Bytes copied by it.
    pub snapshot_bytes: u64,
    /// Bytes expected, from the table's size on disk.
    pub snapshot_bytes_expected: u64,
    /// It is copied completely.
    pub snapshot_done: bool,
}

impl TableProgress {
    /// How much is copied, 0 to 1.
    pub fn snapshot_ratio(&self) -> f64 {
        if self.snapshot_done {
            return 1.0;
        }
        if self.snapshot_bytes_expected == 0 {
            return 0.0;
        }
        // Sizes on disk and on the wire differ, so the estimate may overshoot: it is 1 only when it is done.
        (self.snapshot_bytes as f64 / self.snapshot_bytes_expected as f64).min(0.99)
    }
}

/// The slot's health.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SlotHealth {
    /// `wal_status`
    pub wal_status: String,
    /// WAL that is kept for it, in bytes.
    pub retained_wal_bytes: u64,
    /// Bytes of WAL until it is in danger; `None` without a limit.
    pub safe_wal_bytes: Option<u64>,
    /// Seconds until it is lost at the recent rate; `None` without a limit.
    pub seconds_until_lost: Option<f64>,
}

/// What /status tells.
#[derive(Clone, Debug, Serialize)]
pub struct StatusView {
    /// The state.
    pub state: State,
    /// Why it is in it, in words.
    pub reason: Option<String>,
    /// What to do, where something is to be done.
    pub hint: Option<String>,
    /// How long it has been in it, in seconds.
    pub state_seconds: f64,
    /// Ready: streaming and within the lag threshold.
    pub ready: bool,
    /// The position that is stored at the destination.
    pub position: Lsn,
    /// The position that is durable there and confirmed to the source.
    pub confirmed: Lsn,
    /// How far the source's WAL is flushed.
    pub source_flush_lsn: Lsn,
    /// Source WAL that is not reflected, in bytes.
    pub lag_bytes: u64,
    /// Age of the oldest unapplied source commit, in seconds.
    pub lag_seconds: f64,
    /// Round trip of the last heartbeat, in seconds.
    pub heartbeat_lag_seconds: Option<f64>,
    /// Time since the last progress, in seconds.
    pub last_progress_age_seconds: f64,
    /// Source transactions applied since the process began.
    pub transactions_applied: u64,
    /// The replication slot.
    pub slot: Option<SlotHealth>,
    /// The tables by name.
    pub tables: BTreeMap<String, TableProgress>,
    /// Since when the snapshot runs, in seconds; `None` when none does.
    pub snapshot_seconds: Option<f64>,
    /// What happened lately, newest first.
    pub events: Vec<Event>,
    /// headwater's version.
    pub version: &'static str,
    /// Process uptime in seconds.
    pub uptime_seconds: f64,
}

const EVENTS_MAX: usize = 100;

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
    heartbeat_sent_at: Option<Instant>,
    heartbeat_lag: Option<Duration>,
    transactions: u64,
    tables: BTreeMap<String, TableProgress>,
    slot: Option<SlotHealth>,
    snapshot_began: Option<Instant>,
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
                heartbeat_sent_at: None,
                heartbeat_lag: None,
                transactions: 0,
                tables: BTreeMap::new(),
                slot: None,
                snapshot_began: None,
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
        let text = match &reason {
            Some(reason) => format!("{}: {}", state.as_str(), reason.message),
            None => state.as_str().to_owned(),
        };
        remember(&mut inner, "state", text);
        drop(inner);
        self.show_state(state);
        match reason {
            Some(reason) if state == State::Waiting => {
                tracing::error!(state = state.as_str(), "{}", reason.lines());
            }
            Some(reason) => tracing::warn!(state = state.as_str(), "{}", reason.lines()),
            None => tracing::info!(state = state.as_str(), "{}", sentence(state)),
        }
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

    /// The stream begins at a stored position.
    pub fn stream_begins(&self, position: Lsn, tables: impl IntoIterator<Item = QualifiedName>) {
        let now = self.now();
        let mut inner = self.inner();
        inner.streaming = true;
        if inner.position == Lsn::INVALID {
            inner.lag = Lag::new(position, now);
        }
        inner.position = inner.position.max(position);
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
        inner.lag.restarted();
        inner.heartbeat_sent_at = None;
    }

    /// A message came, with the source's clock at sending and ours at receipt.
    pub fn heard(&self, source: PgTimestamp, local: PgTimestamp) {
        let now = self.now();
        self.inner().offset.observe(source, local, now);
    }

    /// A commit was received.
    pub fn received(&self, end_lsn: Lsn, committed_at: PgTimestamp) {
        let now = self.now();
        self.inner().lag.received(end_lsn, committed_at, now);
    }

    /// The stream has passed this position with nothing for us in it.
    pub fn reached(&self, position: Lsn) {
        let now = self.now();
        let mut inner = self.inner();
        inner.lag.reached(position, now);
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
        for (table, operation, count) in rows {
            total += count;
            self.metrics.rows_applied.with_label_values(&[table.as_str(), operation.as_str()]).inc_by(*count);
            let progress = inner.tables.entry(table.clone()).or_default();
            match operation {
                Operation::Insert => progress.inserts += count,
                Operation::Update => progress.updates += count,
                Operation::Delete => progress.deletes += count,
                Operation::Truncate => progress.truncates += count,
            }
        }
        drop(inner);
        self.metrics.transactions_applied.inc_by(transactions);
        self.metrics.missing_deletes.inc_by(missing_deletes);
        self.metrics.batch_rows.observe(total as f64);
        self.metrics.apply_duration.observe(took.as_secs_f64());
    }

    /// A batch met a constraint and is done again in smaller steps.
    pub fn batch_retried(&self) {
        self.metrics.batch_retries.inc();
    }

    /// A heartbeat was written at the source.
    pub fn heartbeat_sent(&self) {
        self.inner().heartbeat_sent_at.get_or_insert_with(Instant::now);
    }

    /// A heartbeat was committed at the destination, `took` after it was written.
    pub fn heartbeat_returned(&self, took: Duration) {
        let mut inner = self.inner();
        inner.heartbeat_lag = Some(took);
        inner.heartbeat_sent_at = None;
    }

    /// A conflict was met.
    pub fn conflict(&self, table: &str, kind: &str) {
        self.metrics.conflicts.with_label_values(&[table, kind]).inc();
        remember(&mut self.inner(), "conflict", format!("{kind} on {table}"));
    }

    /// The stream is set up anew.
    pub fn restart(&self, reason: &'static str) {
        self.metrics.restarts.with_label_values(&[reason]).inc();
        remember(&mut self.inner(), "restart", reason.to_owned());
    }

    /// The slot's health was read.
    pub fn slot(&self, health: SlotHealth) {
        let retained = i64::try_from(health.retained_wal_bytes).unwrap_or(i64::MAX);
        self.metrics.slot_retained_wal_bytes.set(retained);
        self.metrics.slot_seconds_until_lost.set(health.seconds_until_lost.unwrap_or(f64::INFINITY));
        self.inner().slot = Some(health);
    }

    /// A snapshot begins, of tables with these sizes in bytes.
    pub fn snapshot_begins(&self, tables: impl IntoIterator<Item = (QualifiedName, u64)>) {
        let mut inner = self.inner();
        inner.snapshot_began = Some(Instant::now());
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
        let progress = inner.tables.entry(name.clone()).or_default();
        progress.snapshot_rows += rows;
        progress.snapshot_bytes += bytes;
        let ratio = progress.snapshot_ratio();
        drop(inner);
        self.metrics.snapshot_progress.with_label_values(&[name.as_str()]).set(ratio);
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
    }

    /// Whether everything is as it should be; otherwise why not.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn ready(&self) -> Result<(), String> {
        let status = self.status();
        if status.ready {
            return Ok(());
        }
        Err(match (status.state, status.reason) {
            (State::Streaming | State::CatchingUp, _) => format!(
                "{}: {:.1} s behind the source (at most {:.1} s)",
                status.state.as_str(),
                status.lag_seconds,
                self.ready_lag_max.as_secs_f64()
            ),
            (state, Some(reason)) => format!("{}: {reason}", state.as_str()),
            (state, None) => state.as_str().to_owned(),
        })
    }

    /// Everything, as of now.
    pub fn status(&self) -> StatusView {
        let now = self.now();
        let inner = self.inner();
        let source_now = inner.offset.source_time(local_clock());
        let lag = inner.lag.age(inner.streaming, source_now, now);
        let waiting_heartbeat = inner.heartbeat_sent_at.map(|sent| sent.elapsed());
        let heartbeat = inner.heartbeat_lag.max(waiting_heartbeat);
        StatusView {
            state: inner.state,
            reason: inner.reason.as_ref().map(|reason| reason.message.clone()),
            hint: inner.reason.as_ref().and_then(|reason| reason.hint.clone()),
            state_seconds: inner.state_since.elapsed().as_secs_f64(),
            ready: inner.state == State::Streaming && lag <= self.ready_lag_max,
            position: inner.position,
            confirmed: inner.confirmed,
            source_flush_lsn: inner.source_flush_lsn,
            lag_bytes: inner.lag.bytes(),
            lag_seconds: lag.as_secs_f64(),
            heartbeat_lag_seconds: heartbeat.map(|lag| lag.as_secs_f64()),
            last_progress_age_seconds: inner.progressed_at.elapsed().as_secs_f64(),
            transactions_applied: inner.transactions,
            slot: inner.slot.clone(),
            tables: inner.tables.clone(),
            snapshot_seconds: inner.snapshot_began.map(|began| began.elapsed().as_secs_f64()),
            events: inner.events.iter().cloned().collect(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: now.as_secs_f64(),
        }
    }

    /// All metrics in Prometheus's text format, as of now.
    pub fn render_metrics(&self) -> Vec<u8> {
        let status = self.status();
        self.metrics.lag_bytes.set(i64::try_from(status.lag_bytes).unwrap_or(i64::MAX));
        self.metrics.lag_seconds.set(status.lag_seconds);
        self.metrics.heartbeat_lag_seconds.set(status.heartbeat_lag_seconds.unwrap_or(0.0));
        self.metrics.last_progress_age_seconds.set(status.last_progress_age_seconds);
        if let Some(seconds) = status.snapshot_seconds {
            self.metrics.snapshot_duration.set(seconds);
        }
        self.metrics.render()
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

fn remember(inner: &mut Inner, kind: &'static str, text: String) {
    let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    inner.events.push_front(Event { at, kind, text });
    inner.events.truncate(EVENTS_MAX);
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
        telemetry.conflict("public.t", "missing_row");
        telemetry.restart("source_lost");
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
        ] {
            assert!(text.contains(name), "no {name} in\n{text}");
        }
    }

    #[test]
    fn ready_means_streaming_within_the_lag_threshold() {
        let telemetry = Telemetry::new(Duration::from_secs(60));
        assert_eq!(telemetry.ready(), Err("connecting".to_owned()));
        telemetry.set_state(State::Waiting, Some(ErrorReport::new("disk full")));
        assert_eq!(telemetry.ready(), Err("waiting: disk full".to_owned()));
        telemetry.set_state(State::Streaming, None);
        assert_eq!(telemetry.ready(), Ok(()));
        telemetry.received(Lsn::new(9), local_clock().shifted_by(-90_000_000));
        let reason = telemetry.ready().unwrap_err();
        assert!(reason.contains("behind the source (at most 60.0 s)"), "{reason}");
    }
}
