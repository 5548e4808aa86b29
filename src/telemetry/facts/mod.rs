//! The facts: what happens, reported by the modules that make it happen, kept for their readers.
//!
//! One [`Telemetry`] per process, shared. Every method takes a fact and returns at once; the lock inside is held for
//! a few assignments, never across an await. Bounds: events are kept for the last [`EVENTS_MAX`] only.

mod answers;
mod copying;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::history::{History, Sample};
use super::metrics::{Metrics, Operation, RowCount};
use super::view::{Event, SlotHealth, StreamRoute, TableProgress, Verified};
use crate::pg::{ErrorReport, Lsn, PgTimestamp, QualifiedName, counted, printable, printable_lines};
use crate::progress::{ClockOffset, Lag};
use crate::telemetry::process::unix_seconds;
use crate::telemetry::state::tell;

pub(super) use crate::telemetry::state::State;

const EVENTS_MAX: usize = 100;
/// At one in five seconds, more than an hour; those behind the first ones only make the queue shorter later.
const HEARTBEATS_MAX: usize = 1024;

/// Tables whose conflicts are counted from 0 on; of more, a series begins with the first conflict. With nine kinds each, thousands of
/// tables would make an answer of megabytes that says nothing.
const CONFLICT_TABLES_MAX: usize = 250;

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
    route: StreamRoute,
    history: History,
    tables: BTreeMap<String, TableProgress>,
    slot: Option<SlotHealth>,
    snapshot: Option<copying::RunningSnapshot>,
    /// Tables that are suspended until a copy is published.
    suspended: Vec<QualifiedName>,
    /// Tables whose rows may be others than the source's until a copy is published; the suspended ones may be among them.
    in_doubt: BTreeSet<QualifiedName>,
    /// Tables that the last look has found in doubt, and for whose sake no copy is asked for.
    uncompared: BTreeSet<QualifiedName>,
    /// What sessions of ours wait for now, by the end.
    waits: BTreeMap<&'static str, Vec<String>>,
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
                route: StreamRoute::default(),
                history: History::default(),
                tables: BTreeMap::new(),
                slot: None,
                snapshot: None,
                suspended: Vec::new(),
                in_doubt: BTreeSet::new(),
                uncompared: BTreeSet::new(),
                waits: BTreeMap::new(),
                events: VecDeque::new(),
            }),
        };
        telemetry.show_state(State::Connecting);
        telemetry.show_phase(None);
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
        let text = printable_lines(&text.into()).into_owned();
        tracing::info!(event = kind, "{text}");
        remember(&mut self.inner(), kind, text);
    }

    /// The same for what an operator should look at.
    pub fn warning(&self, kind: &'static str, text: impl Into<String>) {
        let text = printable_lines(&text.into()).into_owned();
        tracing::warn!(event = kind, "{text}");
        remember(&mut self.inner(), kind, text);
    }

    /// These tables are suspended, and no others: the stream that begins passes over their changes.
    pub fn suspended(&self, tables: &[QualifiedName]) {
        self.inner().suspended = tables.to_vec();
    }

    /// These tables wait for a copy that says whether their rows are the source's, and no others.
    pub fn in_doubt(&self, tables: BTreeSet<QualifiedName>) {
        self.inner().in_doubt = tables;
    }

    /// The rows of these tables, and of no others, may be others than the source's, and their copies are not asked for because of that: a
    /// lock is waited for that keeps it from being known, or somebody has asked for a copy before.
    pub fn uncompared(&self, tables: BTreeSet<QualifiedName>) {
        self.inner().uncompared = tables;
    }

    /// Sessions of ours wait for these locks at this end now, and for no others.
    pub fn waits(&self, end: &'static str, waits: Vec<String>) {
        self.inner().waits.insert(end, waits);
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
            self.count_from_zero(&name);
            inner.tables.entry(name).or_default();
        }
    }

    /// The service begins, with these tables, and whatever its labels may say: so that a series exists, at 0, before there is something
    /// to count, and the first of it is seen as an increase.
    pub fn service_begins(
        &self,
        tables: &[QualifiedName],
        conflicts: impl IntoIterator<Item = &'static str> + Clone,
        restarts: impl IntoIterator<Item = &'static str>,
    ) {
        for reason in restarts {
            self.metrics.restarts.with_label_values(&[reason]);
        }
        for (number, table) in tables.iter().enumerate() {
            let name = table.unquoted();
            self.count_from_zero(&name);
            for kind in conflicts.clone() {
                if number < CONFLICT_TABLES_MAX {
                    self.metrics.conflicts.with_label_values(&[name.as_str(), kind]);
                }
            }
        }
    }

    fn count_from_zero(&self, table: &str) {
        for operation in Operation::ALL {
            self.metrics.rows_applied.with_label_values(&[table, operation.as_str()]);
        }
        self.metrics.snapshot_rows.with_label_values(&[table]);
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
        // What is stored here was flushed there before it was sent, whenever the source was last asked.
        inner.source_flush_lsn = inner.source_flush_lsn.max(position);
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
    pub fn batch_applied(&self, transactions: u64, rows: &[RowCount], missing_deletes: u64, took: Duration) {
        let mut total = 0;
        let mut inner = self.inner();
        inner.transactions += transactions;
        inner.progressed_at = Instant::now();
        for RowCount { table, operation, rows: count } in rows {
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
        let reason = reason.map(printable);
        if inner.heartbeat_off.as_deref() == reason.as_deref() {
            return;
        }
        inner.heartbeat_off = reason.as_deref().map(str::to_owned);
        inner.heartbeats_on_their_way.clear();
        inner.heartbeat_lag = None;
        drop(inner);
        match reason {
            Some(reason) => {
                self.event("heartbeat", format!("no heartbeats: {reason}; lag is known from keepalives alone"))
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
        remember(&mut self.inner(), "conflict", format!("{kind} on {table}: {}", counted(rows, "row")));
    }

    /// The stream restarts.
    pub fn restart(&self, reason: &'static str) {
        self.metrics.restarts.with_label_values(&[reason]).inc();
        remember(&mut self.inner(), "restart", reason.to_owned());
    }

    /// The slot's health was read.
    pub fn slot(&self, health: SlotHealth) {
        let health = SlotHealth { wal_status: printable(&health.wal_status).into_owned(), ..health };
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
        self.metrics.last_verify_timestamp.with_label_values::<&str>(&[]).set(unix_seconds());
        self.inner().verified = Some(Verified { at: wall_clock(), mismatched_rows });
    }

    /// Which two databases this is about.
    pub fn set_route(&self, route: StreamRoute) {
        let shown = |text: String| printable(&text).into_owned();
        self.inner().route = StreamRoute {
            source: shown(route.source),
            destination: shown(route.destination),
            slot: shown(route.slot),
            publication: shown(route.publication),
        };
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
    let times = again.and_then(|index| inner.events.remove(index)).map_or(1, |event| event.times.saturating_add(1));
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
mod tests;
