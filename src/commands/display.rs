//! What a person sees on a terminal: messages, and the progress of a snapshot.
//!
//! Messages go to standard error; standard output is for results. The snapshot's progress is drawn as bars on a
//! terminal and told in log lines elsewhere; it is read from telemetry, so that showing it can never hold up copying. A bar
//! is one line, however narrow the terminal, and whatever else is written, log lines too, goes above the bars through
//! [`AboveBars`]: otherwise each would overwrite the other.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::commands::format::{count, counts, duration, size};
use crate::pg::printable_lines;
use crate::telemetry::{SnapshotPhase, SnapshotProgress, StatusView, Telemetry};

/// Prints an error, as psql would.
pub(super) fn error(text: &str) {
    line(&format!("headwater: error: {text}"));
}

/// Prints a warning.
pub(super) fn warning(text: &str) {
    line(&format!("headwater: warning: {text}"));
}

/// Prints a line that belongs to the message before it.
pub(super) fn line(text: &str) {
    // Where nobody reads any more there is nobody to be told.
    let _ = AboveBars.write_all(format!("{}\n", printable_lines(text)).as_bytes());
}

/// Prints a line of a result. Nobody reading it any more is no error.
pub(super) fn result(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", printable_lines(text));
}

/// A colour that says how something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    /// As it should be.
    Green,
    /// To be known.
    Yellow,
    /// To be acted on.
    Red,
}

/// Prints a line of a result as [`result`] does; `word`, which begins at this byte, has the colour where the terminal shows any
/// (`NO_COLOR`, `CLICOLOR` and `TERM=dumb` are honoured).
pub(super) fn coloured(text: &str, at: usize, word: &str, colour: Colour) {
    let text = printable_lines(text);
    let style = console::Style::new().for_stdout();
    let style = match colour {
        Colour::Green => style.green(),
        Colour::Yellow => style.yellow(),
        Colour::Red => style.red().bold(),
    };
    // A narrow terminal may have broken the line before the word.
    let parts = text.split_at_checked(at).and_then(|(before, rest)| Some((before, rest.strip_prefix(word)?)));
    let mut out = std::io::stdout().lock();
    let _ = match parts {
        Some((before, after)) => writeln!(out, "{before}{}{after}", style.apply_to(word)),
        None => writeln!(out, "{text}"),
    };
}

/// Lines and columns of the terminal that results go to; `None` where they go elsewhere, or where it does not say.
pub(super) fn terminal() -> Option<(usize, usize)> {
    let terminal = console::Term::stdout();
    let size = terminal.is_term().then(|| terminal.size_checked()).flatten();
    size.map(|(lines, columns)| (lines.into(), columns.into()))
}

/// `text` for this terminal: breaks a line that is too wide between words, and indents its continuation by `hang` spaces.
pub(super) fn fitted(text: &str, hang: usize) -> String {
    match terminal() {
        Some((_, columns)) => text.lines().map(|line| folded(line, hang, columns)).collect::<Vec<_>>().join("\n"),
        None => text.to_owned(),
    }
}

/// A word that is too long for a line of its own is left to the terminal.
fn folded(line: &str, hang: usize, columns: usize) -> String {
    let colourless = console::strip_ansi_codes(line);
    if colourless.chars().count() <= columns || columns < hang + FOLDED_MIN {
        return line.to_owned();
    }
    let mut text = String::new();
    let mut at = 0;
    for word in line.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if at + length > columns && at > hang {
            text.truncate(text.trim_end().len());
            text.push('\n');
            text.push_str(&" ".repeat(hang));
            at = hang;
        }
        text.push_str(word);
        at += word.chars().count();
    }
    text
}

/// Fewer columns than these after the hanging indent hold no words.
const FOLDED_MIN: usize = 20;

/// The bars that are on the terminal now.
static BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Bars for this terminal, below whatever is written meanwhile.
pub(super) fn bars() -> MultiProgress {
    BARS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(MultiProgress::new).clone()
}

/// There are no bars any more.
fn no_bars() {
    *BARS.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Ends what shows progress, before the result is printed where its bars were.
pub(super) async fn end(showing: tokio::task::JoinHandle<()>) {
    showing.abort();
    // Cancelled, as it was asked to.
    let _ = showing.await;
    no_bars();
}

/// Standard error, above the bars if there are any.
pub(super) struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let bars = BARS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bars {
            Some(bars) => bars.suspend(|| io::stderr().write_all(bytes)),
            None => io::stderr().write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

const BARS_EVERY: Duration = Duration::from_millis(200);
const LINES_EVERY: Duration = Duration::from_secs(10);

/// Shows the progress of snapshots for as long as it is polled.
pub(super) async fn show_snapshots(telemetry: Arc<Telemetry>) {
    let on_terminal = std::io::stderr().is_terminal();
    let mut bars = Bars::default();
    let mut last_line = tokio::time::Instant::now();
    let mut last_phase = SnapshotPhase::Preparing;
    loop {
        tokio::time::sleep(BARS_EVERY).await;
        let status = telemetry.status();
        let seconds = status.snapshot_seconds.unwrap_or(0.0);
        match (&status.snapshot, on_terminal) {
            (Some(snapshot), true) => bars.draw(&status, snapshot),
            // Of a copy that ends at once, only the end is reported.
            (Some(snapshot), false)
                if seconds >= 1.0 && (last_line.elapsed() >= LINES_EVERY || last_phase != snapshot.phase) =>
            {
                last_line = tokio::time::Instant::now();
                last_phase = snapshot.phase;
                log_progress(&status, snapshot, seconds);
            }
            (Some(_), false) => {}
            (None, _) => {
                bars.clear();
                last_line = tokio::time::Instant::now();
                last_phase = SnapshotPhase::Preparing;
            }
        }
    }
}

fn log_progress(status: &StatusView, snapshot: &SnapshotProgress, seconds: f64) {
    tracing::info!(
        phase = snapshot.phase.as_str(),
        done = snapshot.done,
        total = snapshot.total,
        progress_ratio = snapshot.ratio,
        "{}",
        progress(snapshot, seconds)
    );
    let copied = status.tables.iter().filter(|(name, table)| snapshot.tables.contains(name) && !table.snapshot_done);
    for (table, progress) in copied {
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

/// How far a snapshot is, in one line.
pub(super) fn progress(snapshot: &SnapshotProgress, seconds: f64) -> String {
    let missing = snapshot.wal_bytes_left.filter(|bytes| *bytes > 0);
    let missing = missing.map_or(String::new(), |bytes| format!(", {} of WAL to go", size(bytes)));
    let left = snapshot.seconds_left.map_or(String::new(), |left| {
        format!(", about {} of {} left", duration(left.max(1.0)), snapshot.phase.words())
    });
    format!("{}{missing}, {} so far{left}", snapshot.text, duration(seconds))
}

/// A bar for each table that is being copied, so many at most, and one for all.
#[derive(Default)]
struct Bars {
    by_table: BTreeMap<String, ProgressBar>,
    total: Option<ProgressBar>,
}

/// A terminal of 24 lines shows them, and the log lines before them.
const TABLES_SHOWN_MAX: usize = 8;
/// What a name may take of a terminal of 80 columns, which then holds rows, estimate and rate; a wider one bytes, too.
const NAME_CHARS_MAX: usize = 22;

impl Bars {
    fn draw(&mut self, status: &StatusView, snapshot: &SnapshotProgress) {
        let all = bars();
        let seconds = status.snapshot_seconds.unwrap_or(0.0).max(0.1);
        let copied = || status.tables.iter().filter(|(name, _)| snapshot.tables.contains(name));
        let rows: u64 = copied().map(|(_, table)| table.snapshot_rows).sum();
        let total = self.total.get_or_insert_with(|| all.add(bar("")));
        let (name, words) = match (snapshot.phase, snapshot.total) {
            (SnapshotPhase::Copying, of) => {
                let words = format!("{} of {}, {}", count(snapshot.done), counts(of, "table"), counts(rows, "row"));
                ("all tables", words)
            }
            (phase, 0) => (phase.words(), String::new()),
            (phase, of) => (phase.words(), format!("{} of {} done", count(snapshot.done), count(of))),
        };
        total.set_prefix(prefix(name));
        show(total, snapshot.ratio.unwrap_or(0.0), &words);
        for (table, progress) in copied() {
            let ratio = progress.snapshot_ratio();
            if progress.snapshot_done || progress.snapshot_bytes == 0 {
                if let Some(bar) = self.by_table.remove(table) {
                    bar.finish_and_clear();
                    all.remove(&bar);
                }
                continue;
            }
            if !self.by_table.contains_key(table) && self.by_table.len() >= TABLES_SHOWN_MAX {
                continue;
            }
            let bar = self.by_table.entry(table.clone()).or_insert_with(|| all.insert_before(total, bar(table)));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
            let rate = size((progress.snapshot_bytes as f64 / seconds) as u64);
            let left = if ratio > 0.02 && !progress.is_past_estimate() {
                format!("{} left, ", duration(seconds * (1.0 - ratio) / ratio))
            } else {
                String::new()
            };
            let (rows, bytes) = (counts(progress.snapshot_rows, "row"), size(progress.snapshot_bytes));
            show(bar, ratio, &format!("{rows}, {left}{rate}/s, {bytes}"));
        }
    }

    fn clear(&mut self) {
        let bars = std::mem::take(&mut self.by_table).into_values().chain(self.total.take());
        for bar in bars {
            bar.finish_and_clear();
        }
        no_bars();
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One line: a name, how far it is, and a few words, of which a narrow terminal shows as many as it holds.
fn bar(name: &str) -> ProgressBar {
    // Hidden until it stands among the others: a prefix that is set is drawn at once.
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::hidden());
    let style = ProgressStyle::with_template("{prefix} [{bar:10}] {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_prefix(prefix(name));
    bar
}

fn prefix(name: &str) -> String {
    let length = name.chars().count();
    match length > NAME_CHARS_MAX {
        // The end of a name tells tables apart.
        true => format!("…{}", name.chars().skip(length + 1 - NAME_CHARS_MAX).collect::<String>()),
        false => format!("{name:NAME_CHARS_MAX$}"),
    }
}

fn show(bar: &ProgressBar, ratio: f64, words: &str) {
    // A ratio is between 0 and 1, so its thousandth parts are too few to be cut.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
    bar.set_position((ratio * 1000.0) as u64);
    bar.set_message(format!("{:>3.0} %  {words}", ratio * 100.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_broken_between_words_and_none_is_lost() {
        let line =
            "seen          the walsender (process 18842) is streaming, has sent up to 0/D078E48, 0 B behind the source";
        for columns in [34, 40, 57, 80, 200] {
            let text = folded(line, 14, columns);
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}:\n{text}");
            assert!(
                text.lines().skip(1).all(|line| line.starts_with(&" ".repeat(14)) && !line.ends_with(' ')),
                "{text}"
            );
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&text), words(line));
        }
        assert_eq!(folded(line, 14, 30), line, "too narrow for words");
        assert_eq!(folded("short", 4, 80), "short");
        let name = "x".repeat(90);
        assert_eq!(folded(&name, 4, 80), name);
    }
}
