//! What the demo shows while it runs: state, rates, lag, and how many rows both sides have.
//!
//! A terminal gets a block that is redrawn every second; any other output gets a line every few seconds. It reads telemetry and
//! counts rows on sessions of its own, so that watching disturbs nobody.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use crate::session::SqlClient;
use crate::telemetry::{State, StatusView};

const TABLES: [&str; 3] = ["sections", "topics", "messages"];

/// The view's memory: what was shown last.
pub(super) struct View {
    on_terminal: bool,
    url: String,
    lines_drawn: usize,
    last: Option<(Instant, u64, u64)>,
}

/// Rows of each table on one side; `None` where the table is not there yet.
pub(super) type Counts = [Option<i64>; 3];

/// Counts the forum's rows.
pub(super) async fn count(client: &SqlClient) -> Counts {
    let mut counts = Counts::default();
    for (count, table) in counts.iter_mut().zip(TABLES) {
        let sql = format!("SELECT count(*) FROM public.{table}");
        *count = client.query_one("counting rows", &sql, &[]).await.and_then(|row| row.get(0)).ok();
    }
    counts
}

/// Rows a second.
struct Rates {
    applied: f64,
    copied: f64,
}

impl View {
    pub(super) fn new(url: String) -> View {
        View { on_terminal: std::io::stdout().is_terminal(), url, lines_drawn: 0, last: None }
    }

    /// Shows how things are; `left`: seconds until the demo ends by itself.
    pub(super) fn show(&mut self, status: &StatusView, source: Counts, destination: Counts, left: Option<u64>) {
        let rows: u64 = status.tables.values().map(|t| t.inserts + t.updates + t.deletes + t.truncates).sum();
        let copied: u64 = status.tables.values().map(|t| t.snapshot_rows).sum();
        let now = Instant::now();
        let rates = match self.last.replace((now, rows, copied)) {
            Some((then, before, copied_before)) => {
                let seconds = now.duration_since(then).as_secs_f64().max(0.001);
                Rates {
                    applied: rows.saturating_sub(before) as f64 / seconds,
                    copied: copied.saturating_sub(copied_before) as f64 / seconds,
                }
            }
            None => Rates { applied: 0.0, copied: 0.0 },
        };
        if self.on_terminal {
            self.draw(status, source, destination, rates, left);
        } else {
            self.line(status, source, destination, rates.applied);
        }
    }

    fn draw(&mut self, status: &StatusView, source: Counts, destination: Counts, rates: Rates, left: Option<u64>) {
        let state = match (status.state, &status.reason) {
            (state, Some(reason)) => format!("{} — {reason}", state.as_str()),
            (state, None) => state.as_str().to_owned(),
        };
        let speed = match status.state {
            State::Snapshot => format!("{:>9.0} rows/s copied", rates.copied),
            State::Connecting
            | State::CatchingUp
            | State::Streaming
            | State::Standby
            | State::Waiting
            | State::Stopped => {
                format!("{:>9.0} rows/s applied, {} transactions so far", rates.applied, status.transactions_applied)
            }
        };
        let number = |count: Option<i64>| count.map_or("–".to_owned(), |count| count.to_string());
        let mut lines = vec![
            String::new(),
            format!("  state        {state}"),
            format!("  speed      {speed}"),
            format!(
                "  lag        {:>9} bytes, {:.3} s{}",
                status.lag_bytes.unwrap_or(0),
                status.lag_seconds.unwrap_or(0.0),
                status.heartbeat_lag_seconds.map(|h| format!(", heartbeat {:.1} ms", h * 1000.0)).unwrap_or_default()
            ),
            String::new(),
            format!("  {:<10} {:>12} {:>12}", "", "source", "destination"),
        ];
        for ((table, there), here) in TABLES.iter().zip(source).zip(destination) {
            lines.push(format!("  {table:<10} {:>12} {:>12}", number(there), number(here)));
        }
        lines.push(String::new());
        lines.push(match left {
            Some(left) => format!("  {}   ends in {left} s", self.url),
            None => format!("  {}   Ctrl-C ends it", self.url),
        });
        let mut out = std::io::stdout().lock();
        let mut text = String::new();
        if self.lines_drawn > 0 {
            // Back to the first line of the block.
            text.push_str(&format!("\x1b[{}F", self.lines_drawn));
        }
        for line in &lines {
            text.push_str(&format!("\x1b[2K{line}\n"));
        }
        self.lines_drawn = lines.len();
        // A terminal that is gone is nothing to stop for.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn line(&mut self, status: &StatusView, source: Counts, destination: Counts, rate: f64) {
        let both = |at: usize| {
            let number = |counts: Counts| counts.get(at).copied().flatten().map_or("-".to_owned(), |n| n.to_string());
            format!("{} {}/{}", TABLES.get(at).copied().unwrap_or_default(), number(destination), number(source))
        };
        crate::commands::demo::output::say(&format!(
            "{:<11} {rate:>6.0} rows/s  lag {:>7} bytes {:.3} s  {}, {}, {} (destination/source)",
            status.state.as_str(),
            status.lag_bytes.unwrap_or(0),
            status.lag_seconds.unwrap_or(0.0),
            both(0),
            both(1),
            both(2)
        ));
    }

    /// How often to show.
    pub(super) fn every(&self) -> std::time::Duration {
        std::time::Duration::from_secs(if self.on_terminal { 1 } else { 2 })
    }
}
