//! What a person sees on a terminal: messages, and the progress of a snapshot.
//!
//! Messages go to standard error; standard output is for results. The snapshot's progress is drawn as bars on a
//! terminal and told in log lines elsewhere; it is read from telemetry, so that showing it can never hold up copying.

#![allow(clippy::print_stderr, reason = "this is the file that prints")]

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::telemetry::{StatusView, Telemetry};

/// Prints an error, as psql would.
pub(super) fn error(text: &str) {
    eprintln!("headwater: error: {text}");
}

/// Prints a warning.
pub(super) fn warning(text: &str) {
    eprintln!("headwater: warning: {text}");
}

/// Prints a line that belongs to the message before it.
pub(super) fn line(text: &str) {
    eprintln!("{text}");
}

/// Prints a line of a result. Nobody reading it any more is no error.
pub(super) fn result(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

const BARS_EVERY: Duration = Duration::from_millis(200);
const LINES_EVERY: Duration = Duration::from_secs(10);

/// Shows the progress of snapshots for as long as it is polled.
pub(super) async fn show_snapshots(telemetry: Arc<Telemetry>) {
    let on_terminal = std::io::stderr().is_terminal();
    let mut bars = Bars::default();
    let mut last_line = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(BARS_EVERY).await;
        let status = telemetry.status();
        match (status.snapshot_seconds, on_terminal) {
            (Some(_), true) => bars.draw(&status),
            (Some(seconds), false) if last_line.elapsed() >= LINES_EVERY && seconds >= 1.0 => {
                last_line = tokio::time::Instant::now();
                log_progress(&status, seconds);
            }
            (Some(_), false) => {}
            (None, _) => {
                bars.clear();
                last_line = tokio::time::Instant::now();
            }
        }
    }
}

fn log_progress(status: &StatusView, seconds: f64) {
    for (table, progress) in status.tables.iter().filter(|(_, progress)| !progress.snapshot_done) {
        if progress.snapshot_bytes > 0 {
            let rate = progress.snapshot_bytes as f64 / seconds.max(0.1);
            tracing::info!(
                table,
                rows = progress.snapshot_rows,
                progress_ratio = progress.snapshot_ratio(),
                "copying {table}: {} rows, {:.0} % ({:.1} MB/s)",
                progress.snapshot_rows,
                progress.snapshot_ratio() * 100.0,
                rate / 1e6
            );
        }
    }
}

/// One bar per table.
#[derive(Default)]
struct Bars {
    all: Option<MultiProgress>,
    by_table: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn draw(&mut self, status: &StatusView) {
        let all = self.all.get_or_insert_with(MultiProgress::new);
        let width = status.tables.keys().map(String::len).max().unwrap_or(0);
        let seconds = status.snapshot_seconds.unwrap_or(0.0).max(0.1);
        for (table, progress) in &status.tables {
            let bar = self.by_table.entry(table.clone()).or_insert_with(|| {
                let bar = all.add(ProgressBar::new(1000));
                let style = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
                bar.set_prefix(format!("{table:width$}"));
                bar
            });
            let ratio = progress.snapshot_ratio();
            // A ratio is between 0 and 1, so its thousandth parts are too few to be cut.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
            bar.set_position((ratio * 1000.0) as u64);
            let rate = progress.snapshot_bytes as f64 / seconds;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
            let shown = HumanBytes(rate as u64);
            let rest = match ratio {
                ratio if ratio > 0.02 && !progress.snapshot_done => {
                    let left = Duration::try_from_secs_f64(seconds * (1.0 - ratio) / ratio).unwrap_or_default();
                    format!(", {} left", HumanDuration(left))
                }
                _ => String::new(),
            };
            bar.set_message(format!("{:>3.0} %  {} rows, {shown}/s{rest}", ratio * 100.0, progress.snapshot_rows));
        }
    }

    fn clear(&mut self) {
        for bar in std::mem::take(&mut self.by_table).into_values() {
            bar.finish();
        }
        self.all = None;
    }
}
