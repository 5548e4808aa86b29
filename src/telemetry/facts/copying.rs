//! The facts of a snapshot: how far each table is copied, and what the copy holds back at the source.
//!
//! Told by `table_sync` and its readers; shown as metrics, and as each table's progress in the status.

use std::time::Instant;

use super::Telemetry;
use crate::pg::QualifiedName;

impl Telemetry {
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
}
