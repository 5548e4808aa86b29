//! `headwater verify`: are both sides equal, and if not, in which rows.
//!
//! Prints one line per table and one per key that differs on standard output, progress on standard error; exit 0 when
//! all tables are equal, after a repair if one was asked for; 1 when a row differs, or when a table or some of its values could not
//! be compared. Keys are printed here and nowhere else: this is the answer that was asked for, not a log.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::cli::VerifyArguments;
use super::lock_waits::telling;
use super::{display, settings};
use crate::commands::exit::ExitStatus;
use crate::comparison::{Bounds, Key};
use crate::config::parse_rate;
use crate::maintenance::verify;
use crate::pg::{Ident, QualifiedName, counted, printable};
use crate::verification::verdict::{RepairStop, Repaired, TableVerdict, Verdict, VerifyOptions, VerifyProgress};

/// Compares, prints, and repairs if asked to.
pub(super) async fn run(path: &Option<PathBuf>, arguments: &VerifyArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => Arc::new(config),
        Err(exit) => return exit,
    };
    let options = match options(arguments) {
        Ok(options) => options,
        Err(problem) => {
            display::error(&problem);
            return ExitStatus::Usage;
        }
    };
    let progress = Arc::new(VerifyProgress::default());
    let shown = tokio::spawn(show(Arc::clone(&progress)));
    let mut tell = display::line;
    let verifying = verify::run(&config, &options, &progress, &mut tell);
    let (verified, waits) = telling(&config, verifying).await;
    display::end(shown).await;
    match verified {
        Ok(verdict) => {
            print(&verdict, arguments.limit);
            if verdict.is_proof() { ExitStatus::Done } else { ExitStatus::OperatorMustAct }
        }
        Err(fault) => {
            display::error(&waits.report(&fault).lines());
            ExitStatus::OperatorMustAct
        }
    }
}

fn options(arguments: &VerifyArguments) -> Result<VerifyOptions, String> {
    let VerifyArguments { table, workers, max_rate, show_columns, repair, catch_up, no_fence, limit: _ } = arguments;
    let tables: Result<Vec<QualifiedName>, String> =
        table.iter().map(|name| name.parse().map_err(|error| format!("--table {name}: {error}"))).collect();
    let max_rate = match max_rate {
        Some(text) => Some(parse_rate(text).ok_or_else(|| format!("--max-rate {text}: give a size, as 50MB"))?),
        None => None,
    };
    Ok(VerifyOptions {
        tables: tables?,
        workers: workers.map(usize::from),
        max_rate,
        columns: *show_columns,
        repair: *repair,
        catch_up: *catch_up,
        no_fence: *no_fence,
        bounds: Bounds::default(),
    })
}

pub(super) async fn show(progress: Arc<VerifyProgress>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let bar = display::bars().add(ProgressBar::new(0));
    let style = ProgressStyle::with_template(
        "comparing [{bar:20}] {percent:>3} %  {decimal_bytes} of {decimal_total_bytes}, {eta} left",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    loop {
        let total = progress.bytes_total.load(Ordering::Relaxed);
        // Nothing is compared before there is a fence.
        if total > 0 {
            bar.set_length(total);
            bar.set_position(progress.bytes_done.load(Ordering::Relaxed));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub(super) fn print(verdict: &Verdict, limit: usize) {
    let took = Duration::from_millis(u64::try_from(verdict.took.as_millis()).unwrap_or(u64::MAX));
    let took = humantime::format_duration(took);
    let rows = counted(verdict.tables.iter().map(|table| table.source_rows).sum::<u64>(), "row");
    let mut tables: Vec<&TableVerdict> = verdict.tables.iter().collect();
    tables.sort_by(|a, b| a.table.cmp(&b.table));
    for table in tables {
        print_table(table, limit);
    }
    for left_out in &verdict.left_out {
        tell(&format!("{left_out}: not compared, verify it again when that is done"));
    }
    let result = if verdict.is_equal() {
        let exact = verdict.left_out.is_empty() && verdict.tables.iter().all(|table| table.inexact.is_empty());
        let without = if exact { "" } else { ", as far as they could be compared" };
        format!("equal{without}")
    } else {
        rows_differ(&verdict.tables)
    };
    if verdict.at_fence {
        tell(&format!("{result}: both sides compared at {}, {rows} in {took}", verdict.consistent_point));
    } else {
        tell(&format!(
            "{result}: the source at {} compared with the destination at {}, {rows} in {took}; what was not applied yet \
             counts as a difference (--catch-up applies it first)",
            verdict.consistent_point, verdict.destination_position
        ));
    }
    if let Some(repaired) = &verdict.repaired {
        print_repaired(repaired, limit);
    }
}

/// `3 rows differ`; `at least`, where not all of them are known.
fn rows_differ(tables: &[TableVerdict]) -> String {
    let least = if tables.iter().any(|table| table.differences.more) { "at least " } else { "" };
    match tables.iter().map(|table| table.differences.rows()).sum::<u64>() {
        1 => format!("{least}1 row differs"),
        rows => format!("{least}{rows} rows differ"),
    }
}

fn print_repaired(repaired: &Repaired, limit: usize) {
    let outcome = repaired.outcome;
    tell(&format!(
        "repaired: {} deleted, {} updated, {} inserted",
        counted(outcome.deleted, "row"),
        outcome.updated,
        outcome.inserted
    ));
    for left_out in &repaired.left_out {
        tell(&format!("{left_out}: not compared after the repair, verify it again when that is done"));
    }
    let result = if !repaired.left.is_empty() {
        format!("{} after the repair", rows_differ(&repaired.left))
    } else if repaired.left_out.is_empty() {
        "equal after the repair".to_owned()
    } else {
        "equal after the repair, as far as they could be compared".to_owned()
    };
    for table in &repaired.left {
        print_table(table, limit);
        if !table.generated.is_empty() {
            let names: Vec<String> = table.generated.iter().map(Ident::to_string).collect();
            tell(&format!("  no repair sets what the destination generates: {}", names.join(", ")));
        }
    }
    tell(&format!("{result}: both sides compared at {}", repaired.consistent_point));
    match repaired.stop {
        Some(RepairStop::Unchanged) => {
            tell("the repair was given up: the destination changes or generates what is written")
        }
        Some(RepairStop::Disturbed) => tell(
            "the repair was given up: rows differ that did not differ before, so something else writes to these tables at the destination",
        ),
        Some(RepairStop::TooMany) => {
            tell("the repair was given up: so many rows differ that a new copy is faster: headwater run --resnapshot");
        }
        None => {}
    }
}

fn print_table(table: &TableVerdict, limit: usize) {
    let name = &table.table;
    let found = &table.differences;
    if found.is_empty() {
        tell(&format!("table {name}: equal, {}", counted(table.source_rows, "row")));
    } else {
        let missing = found.missing.len() + usize::try_from(found.unkeyed_missing).unwrap_or(usize::MAX);
        let extra = found.extra.len() + usize::try_from(found.unkeyed_extra).unwrap_or(usize::MAX);
        let least = if found.more { "at least " } else { "" };
        tell(&format!(
            "table {name}: {least}{} missing, {extra} extra, {} differing ({} at the source, {} here)",
            counted(missing, "row"),
            found.differing.len(),
            counted(table.source_rows, "row"),
            table.destination_rows
        ));
    }
    if !table.not_compared.is_empty() {
        let names: Vec<String> = table.not_compared.iter().map(Ident::to_string).collect();
        tell(&format!("  not compared, because only the source has them: {}", names.join(", ")));
    }
    for (column, values) in &table.inexact {
        let values = counted(*values, "value");
        tell(&format!(
            "  not comparable: {values} of column {column} are not exactly what their text says, and have no binary form"
        ));
    }
    let lines = found
        .missing
        .iter()
        .map(|key| (key, "missing", None))
        .chain(found.extra.iter().map(|key| (key, "extra", None)))
        .chain(found.differing.iter().map(|key| {
            let columns = table.columns.iter().find(|(differing, _)| differing == key).map(|(_, columns)| columns);
            (key, "differs", columns)
        }));
    let all = found.missing.len() + found.extra.len() + found.differing.len();
    for (key, what, columns) in lines.take(limit) {
        let mut line = format!("  {what:7}  {}", key_text(&table.key, key));
        if let Some(columns) = columns {
            let names: Vec<String> = columns.iter().map(Ident::to_string).collect();
            line.push_str(&format!(": {}", names.join(", ")));
        }
        display::result(&line);
    }
    if all > limit {
        display::result(&format!("  … and {} more (--limit)", all - limit));
    }
}

/// `(id)=(7)`, as PostgreSQL shows keys.
fn key_text(columns: &[Ident], key: &Key) -> String {
    let names: Vec<String> = columns.iter().map(Ident::to_string).collect();
    format!("({})=({})", names.join(", "), printable(&key.join(", ")))
}

/// What is said in words, fitted to the terminal; keys are printed as they are.
fn tell(text: &str) {
    display::result(&display::fitted(text, 4));
}
