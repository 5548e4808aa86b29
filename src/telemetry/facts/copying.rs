//! The facts of a snapshot: which phase it is in, how far each table is copied, and what it holds back at the source.
//!
//! Told by `table_sync`, its readers, and what `destination` builds, compares and publishes; shown as metrics, and as the
//! snapshot's and each table's progress in the status. A phase has steps with weights, so that one large index counts for
//! more than ten small ones. What is not known is not guessed: no phase is done before the next begins, and the remaining time
//! includes no work of later phases.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Telemetry;
use crate::pg::QualifiedName;
use crate::telemetry::view::{SnapshotPhase, SnapshotProgress, TableProgress};

/// A phase is done when the next one begins; until then it is at most this.
const RATIO_MAX: f64 = 0.99;
/// From less than this nothing can be foretold.
const RATIO_TOLD_MIN: f64 = 0.02;
/// Names in one line.
const NAMES_SHOWN_MAX: usize = 2;

/// A snapshot that runs.
pub(super) struct RunningSnapshot {
    pub(super) began: Instant,
    /// What it copies.
    tables: BTreeSet<String>,
    phase: SnapshotPhase,
    phase_began: Instant,
    steps: Steps,
    wal_bytes_left: Option<u64>,
}

/// How far a phase is.
#[derive(Clone, Copy, Debug, Default)]
struct Steps {
    done: u64,
    total: u64,
    weight_done: f64,
    weight_total: f64,
    /// The part of those under way that is done.
    under_way: f64,
}

impl Steps {
    fn ratio(self) -> Option<f64> {
        let done = (self.weight_done + self.under_way) / self.weight_total;
        (self.weight_total > 0.0).then(|| done.clamp(0.0, RATIO_MAX))
    }
}

/// What one step of a phase counts for: as many bytes as its table has, and something if it has none.
fn weight(bytes: u64) -> f64 {
    bytes.max(1) as f64
}

impl RunningSnapshot {
    /// As of now.
    pub(super) fn progress(&self, tables: &BTreeMap<String, TableProgress>) -> SnapshotProgress {
        let elapsed = self.phase_began.elapsed().as_secs_f64();
        let copied: Vec<(&str, &TableProgress)> =
            self.tables.iter().filter_map(|name| Some((name.as_str(), tables.get(name)?))).collect();
        let (steps, foretold) = match self.phase {
            SnapshotPhase::Copying => {
                (copied_so_far(&copied), !copied.iter().any(|(_, table)| table.is_past_estimate()))
            }
            SnapshotPhase::Indexing => (self.steps, true),
            SnapshotPhase::Preparing
            | SnapshotPhase::Validating
            | SnapshotPhase::CatchingUp
            | SnapshotPhase::Comparing
            | SnapshotPhase::Publishing => (self.steps, false),
        };
        let ratio = steps.ratio();
        let told = ratio.filter(|ratio| foretold && (RATIO_TOLD_MIN..RATIO_MAX).contains(ratio));
        SnapshotProgress {
            phase: self.phase,
            phase_seconds: elapsed,
            tables: self.tables.iter().cloned().collect(),
            done: steps.done,
            total: steps.total,
            ratio,
            seconds_left: told.map(|ratio| elapsed * (1.0 - ratio) / ratio),
            wal_bytes_left: self.wal_bytes_left.filter(|_| self.phase == SnapshotPhase::CatchingUp),
            text: self.words(steps, &copied),
        }
    }

    fn words(&self, steps: Steps, copied: &[(&str, &TableProgress)]) -> String {
        let mut text = self.phase.words().to_owned();
        let percent = steps.ratio().map_or(String::new(), |ratio| format!(" {:.0} %", (ratio * 100.0).floor()));
        let Steps { done, total, .. } = steps;
        match self.phase {
            SnapshotPhase::Copying => {
                let under_way: Vec<&str> = copied
                    .iter()
                    .filter(|(_, table)| !table.snapshot_done && (table.snapshot_bytes > 0 || copied.len() == 1))
                    .map(|(name, _)| *name)
                    .collect();
                match under_way.len() {
                    1..=NAMES_SHOWN_MAX => text = format!("{text} {}", under_way.join(", ")),
                    _ => text = format!("{text} {}", tables_of(copied.len())),
                }
                let begun = done + under_way.len() as u64;
                text = format!("{text}{percent} ({begun} of {total})");
            }
            SnapshotPhase::Indexing
            | SnapshotPhase::Validating
            | SnapshotPhase::Comparing
            | SnapshotPhase::Publishing => {
                let of = if total > 0 { format!(" ({done} of {total} done)") } else { String::new() };
                let what = match copied {
                    [(name, _)] => format!(" of {name}"),
                    _ => String::new(),
                };
                let what = if self.phase == SnapshotPhase::Indexing { what } else { String::new() };
                text = format!("{text}{what}{percent}{of}");
            }
            SnapshotPhase::Preparing | SnapshotPhase::CatchingUp => {}
        }
        text
    }
}

fn tables_of(count: usize) -> String {
    crate::pg::counted(count, "table")
}

fn copied_so_far(tables: &[(&str, &TableProgress)]) -> Steps {
    let of = |table: &TableProgress| weight(table.snapshot_bytes_expected);
    Steps {
        done: tables.iter().filter(|(_, table)| table.snapshot_done).count() as u64,
        total: tables.len() as u64,
        weight_done: tables.iter().map(|(_, table)| of(table) * table.snapshot_ratio()).sum(),
        weight_total: tables.iter().map(|(_, table)| of(table)).sum(),
        under_way: 0.0,
    }
}

impl Telemetry {
    /// A snapshot begins, of tables with these sizes in bytes.
    pub fn snapshot_begins(&self, tables: impl IntoIterator<Item = (QualifiedName, u64)>) {
        let mut inner = self.inner();
        // What is behind the snapshot's position will not be streamed.
        inner.heartbeats_on_their_way.clear();
        let mut names = BTreeSet::new();
        for (table, bytes) in tables {
            let name = table.unquoted();
            names.insert(name.clone());
            self.metrics.snapshot_progress.with_label_values(&[name.as_str()]).set(0.0);
            let progress = inner.tables.entry(name).or_default();
            progress.snapshot_rows = 0;
            progress.snapshot_bytes = 0;
            progress.snapshot_bytes_expected = bytes;
            progress.snapshot_done = false;
        }
        inner.snapshot = Some(RunningSnapshot {
            began: Instant::now(),
            tables: names,
            phase: SnapshotPhase::Preparing,
            phase_began: Instant::now(),
            steps: Steps::default(),
            wal_bytes_left: None,
        });
        drop(inner);
        self.show_phase(Some(SnapshotPhase::Preparing));
    }

    /// The snapshot goes over to its next phase, whose steps are over so many bytes each.
    pub fn snapshot_phase(&self, phase: SnapshotPhase, steps: impl IntoIterator<Item = u64>) {
        let mut sum = Steps::default();
        for bytes in steps {
            sum.total += 1;
            sum.weight_total += weight(bytes);
        }
        let mut inner = self.inner();
        let Some(snapshot) = &mut inner.snapshot else { return };
        if snapshot.phase != phase {
            snapshot.phase_began = Instant::now();
        }
        snapshot.phase = phase;
        snapshot.steps = sum;
        drop(inner);
        self.show_phase(Some(phase));
    }

    /// A step of the phase, over so many bytes, is done.
    pub fn snapshot_step_done(&self, bytes: u64) {
        let mut inner = self.inner();
        inner.progressed_at = Instant::now();
        let Some(snapshot) = &mut inner.snapshot else { return };
        snapshot.steps.done += 1;
        snapshot.steps.weight_done += weight(bytes);
        // Until the next report of it: at most the whole step was under way.
        snapshot.steps.under_way = (snapshot.steps.under_way - weight(bytes)).max(0.0);
    }

    /// Of the steps under way so many bytes are done, in all.
    pub fn snapshot_steps_under_way(&self, bytes: f64) {
        if let Some(snapshot) = &mut self.inner().snapshot {
            snapshot.steps.under_way = bytes;
        }
    }

    /// The copy lacks so much of the source's WAL.
    pub fn snapshot_lacks_wal(&self, bytes: u64) {
        if let Some(snapshot) = &mut self.inner().snapshot {
            snapshot.wal_bytes_left = Some(bytes);
        }
    }

    pub(super) fn show_phase(&self, phase: Option<SnapshotPhase>) {
        for other in SnapshotPhase::ALL {
            let gauge = self.metrics.snapshot_phase.with_label_values(&[other.as_str()]);
            gauge.set(i64::from(Some(other) == phase));
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
        let ended = self.inner().snapshot.take();
        if let Some(snapshot) = ended {
            self.metrics.snapshot_duration.set(snapshot.began.elapsed().as_secs_f64());
        }
        self.show_phase(None);
        self.snapshot_holds(0, 0);
    }
}
