//! The metrics of the operator's surface, by their names.
//!
//! Held by [`crate::telemetry::facts::Telemetry`], which sets and counts; read by the HTTP server. Names, units and labels are a
//! contract: dashboards and alerts of others use them as they stand here.

use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use super::process::{ProcessUsage, unix_seconds};

/// What a change does; the `operation` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// INSERT
    Insert,
    /// UPDATE
    Update,
    /// DELETE
    Delete,
    /// TRUNCATE
    Truncate,
}

/// How many rows of a table were changed in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCount {
    /// The table's name.
    pub table: String,
    /// How.
    pub operation: Operation,
    /// How many.
    pub rows: u64,
}

impl Operation {
    /// All there are.
    pub(super) const ALL: [Operation; 4] =
        [Operation::Insert, Operation::Update, Operation::Delete, Operation::Truncate];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Truncate => "truncate",
        }
    }
}

/// Every metric.
pub(super) struct Metrics {
    registry: Registry,
    // Vectors without labels have a series only while there is something to say.
    pub(super) lag_bytes: IntGaugeVec,
    pub(super) lag_seconds: GaugeVec,
    pub(super) heartbeat_lag_seconds: GaugeVec,
    pub(super) last_progress_age_seconds: GaugeVec,
    pub(super) transactions_applied: IntCounter,
    pub(super) rows_applied: IntCounterVec,
    pub(super) batch_rows: Histogram,
    pub(super) apply_duration: Histogram,
    pub(super) snapshot_rows: IntCounterVec,
    pub(super) snapshot_progress: GaugeVec,
    pub(super) snapshot_phase: IntGaugeVec,
    pub(super) snapshot_duration: Gauge,
    pub(super) snapshot_held_transactions: IntGauge,
    pub(super) snapshot_held_wal_bytes: IntGauge,
    pub(super) state: IntGaugeVec,
    pub(super) slot_retained_wal_bytes: IntGaugeVec,
    pub(super) slot_seconds_until_lost: GaugeVec,
    pub(super) spool_bytes: IntGauge,
    pub(super) verify_mismatched_rows: IntGaugeVec,
    pub(super) conflicts: IntCounterVec,
    pub(super) missing_deletes: IntCounter,
    pub(super) batch_retries: IntCounter,
    pub(super) restarts: IntCounterVec,
    pub(super) last_verified_position: IntGauge,
    pub(super) last_verify_timestamp: GaugeVec,
    process: ProcessMetrics,
}

/// What the process takes, by the names of Prometheus's own client libraries.
struct ProcessMetrics {
    cpu_seconds: Counter,
    resident_bytes: IntGaugeVec,
    virtual_bytes: IntGaugeVec,
    threads: IntGaugeVec,
    descriptors: IntGaugeVec,
    descriptors_max: GaugeVec,
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        // Long: one table, with an entry for each metric.
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| keep(&registry, Gauge::new(name, help));
        let int_gauge = |name: &str, help: &str| keep(&registry, IntGauge::new(name, help));
        let at_times = |name: &str, help: &str| keep(&registry, GaugeVec::new(Opts::new(name, help), &[]));
        let int_at_times = |name: &str, help: &str| keep(&registry, IntGaugeVec::new(Opts::new(name, help), &[]));
        let counter = |name: &str, help: &str| keep(&registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            keep(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let build_info = keep(
            &registry,
            IntGaugeVec::new(Opts::new("headwater_build_info", "Always 1; the label names the version"), &["version"]),
        );
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        gauge("process_start_time_seconds", "When the process began, in seconds since 1970").set(unix_seconds());
        Metrics {
            lag_bytes: int_at_times(
                "headwater_replication_lag_bytes",
                "Source WAL that the destination does not reflect yet, in bytes; absent on a standby",
            ),
            lag_seconds: at_times(
                "headwater_replication_lag_seconds",
                "Age of the oldest source commit that is not applied yet, in seconds; 0 when there is none, absent on a standby",
            ),
            heartbeat_lag_seconds: at_times(
                "headwater_heartbeat_lag_seconds",
                "Time from writing a heartbeat at the source to its commit at the destination, in seconds; grows while one is on its way",
            ),
            last_progress_age_seconds: at_times(
                "headwater_last_progress_age_seconds",
                "Time since something was applied or copied, or was last known to need neither, in seconds; absent on a standby",
            ),
            transactions_applied: counter(
                "headwater_transactions_applied_total",
                "Source transactions committed at the destination",
            ),
            rows_applied: counters(
                "headwater_rows_applied_total",
                "Row changes committed at the destination (for truncate: tables)",
                &["table", "operation"],
            ),
            batch_rows: keep(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new("headwater_batch_rows", "Row changes per destination transaction")
                        .buckets(vec![1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0]),
                ),
            ),
            apply_duration: keep(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "headwater_apply_duration_seconds",
                        "Time from sending a batch to the destination to the answer to its COMMIT, in seconds",
                    )
                    .buckets(vec![
                        0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
                    ]),
                ),
            ),
            snapshot_rows: counters("headwater_snapshot_rows_total", "Rows copied by snapshots", &["table"]),
            snapshot_progress: keep(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "headwater_snapshot_progress_ratio",
                        "How much of the table the current or last snapshot has copied, 0 to 1",
                    ),
                    &["table"],
                ),
            ),
            snapshot_phase: keep(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "headwater_snapshot_phase",
                        "1 for the phase that the current snapshot is in, 0 for the others and while there is none",
                    ),
                    &["phase"],
                ),
            ),
            snapshot_duration: gauge(
                "headwater_snapshot_duration_seconds",
                "How long the current snapshot has taken, or the last one took, in seconds",
            ),
            snapshot_held_transactions: int_gauge(
                "headwater_snapshot_held_transactions",
                "Source transactions since the snapshot that is being copied: rows that they removed wait for vacuum",
            ),
            snapshot_held_wal_bytes: int_gauge(
                "headwater_snapshot_held_wal_bytes",
                "WAL that the source keeps for the snapshot that is being copied, in bytes",
            ),
            state: keep(
                &registry,
                IntGaugeVec::new(
                    Opts::new("headwater_state", "1 for the state that headwater is in, 0 for the others"),
                    &["state"],
                ),
            ),
            slot_retained_wal_bytes: int_at_times(
                "headwater_slot_retained_wal_bytes",
                "WAL that the source keeps for the replication slot, in bytes",
            ),
            slot_seconds_until_lost: at_times(
                "headwater_slot_seconds_until_lost",
                "Time until the source invalidates the slot if nothing moves, at the recent rate of WAL, in seconds; +Inf without a limit",
            ),
            spool_bytes: int_gauge(
                "headwater_spool_bytes",
                "Transactions still in progress at the source that are kept in memory and files, in bytes",
            ),
            verify_mismatched_rows: int_at_times(
                "headwater_verify_mismatched_rows",
                "Rows that differed in the last verification; absent before the first one",
            ),
            conflicts: counters(
                "headwater_conflicts_total",
                "Changes that the destination's rows did not allow",
                &["table", "kind"],
            ),
            missing_deletes: counter(
                "headwater_missing_deletes_total",
                "Deletes whose row was already gone at the destination (no conflict)",
            ),
            batch_retries: counter(
                "headwater_batch_retries_total",
                "Batches that met a constraint and were done again in smaller steps",
            ),
            last_verified_position: int_gauge(
                "headwater_last_verified_position",
                "Consistent point of the last verify, in bytes of the source's WAL; 0 before the first",
            ),
            last_verify_timestamp: at_times(
                "headwater_last_verify_timestamp_seconds",
                "When the last verification ended, in seconds since 1970; absent before the first one",
            ),
            process: ProcessMetrics {
                cpu_seconds: keep(
                    &registry,
                    Counter::new("process_cpu_seconds_total", "Processor time that the process has used, in seconds"),
                ),
                resident_bytes: int_at_times("process_resident_memory_bytes", "Resident memory, in bytes"),
                virtual_bytes: int_at_times("process_virtual_memory_bytes", "Virtual memory, in bytes"),
                threads: int_at_times("process_threads", "Threads"),
                descriptors: int_at_times("process_open_fds", "Open file descriptors"),
                descriptors_max: at_times("process_max_fds", "File descriptors that may be open; +Inf without a limit"),
            },
            restarts: counters(
                "headwater_restarts_total",
                "Times that the stream was set up again after a failure",
                &["reason"],
            ),
            registry,
        }
    }

    /// All metrics in Prometheus's text format.
    pub(super) fn render(&self) -> Vec<u8> {
        self.process.show(ProcessUsage::read());
        let mut text = Vec::new();
        // Writing into memory cannot fail, and the families were checked when they were registered.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }
}

impl ProcessMetrics {
    fn show(&self, usage: ProcessUsage) {
        let ProcessUsage { cpu_seconds, resident_bytes, virtual_bytes, threads, descriptors, descriptors_max } = usage;
        // Two scrapes at once may read in the other order; a counter never goes back.
        self.cpu_seconds.inc_by((cpu_seconds - self.cpu_seconds.get()).max(0.0));
        for (gauge, value) in [
            (&self.resident_bytes, resident_bytes),
            (&self.virtual_bytes, virtual_bytes),
            (&self.threads, threads),
            (&self.descriptors, descriptors),
        ] {
            if let Some(value) = value {
                gauge.with_label_values::<&str>(&[]).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
        let max = descriptors_max.map_or(f64::INFINITY, |max| max as f64);
        self.descriptors_max.with_label_values::<&str>(&[]).set(max);
    }
}

/// Registers a metric. The names above are fixed and distinct, which the first test run shows.
fn keep<M: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("a metric's name and labels are valid");
    registry.register(Box::new(metric.clone())).expect("a metric's name is registered once");
    metric
}
