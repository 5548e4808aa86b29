//! `headwater conflict show`: the conflict that halts the service, with the values that no log may hold.
//!
//! Prints what `maintenance::conflict_rows` has read. Exit code 0: no conflict; 1: one is open.

use std::path::PathBuf;

use super::cli::ConflictShowArguments;
use super::lock_waits::telling;
use super::{display, settings};
use crate::commands::exit::ExitStatus;
use crate::commands::format::duration;
use crate::destination::{ShownChange, ShownRow, ShownValue, row_text};
use crate::maintenance::conflict_rows::{self, ConflictRows, FoundRows, no_conflict_report};

/// Characters of a value that are printed without --full: a terminal's two lines.
const VALUE_CHARACTERS: usize = 200;

/// Shows the open conflict.
pub(super) async fn show(path: &Option<PathBuf>, options: &ConflictShowArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let writing = settings::writing(&config);
    let (found, waits) = telling(&config, conflict_rows::conflict_rows(&config, &writing)).await;
    match found {
        Ok(None) => {
            display::result(&no_conflict_report().lines());
            ExitStatus::Done
        }
        Ok(Some(found)) => {
            let cut = |row: &ShownRow| if options.full { row.clone() } else { shortened(row) };
            lines(&found, &cut).iter().for_each(|line| display::result(line));
            ExitStatus::OperatorMustAct
        }
        Err(fault) => {
            display::error(&waits.report(&fault).lines());
            ExitStatus::OperatorMustAct
        }
    }
}

fn lines(found: &ConflictRows, cut: &dyn Fn(&ShownRow) -> ShownRow) -> Vec<String> {
    let conflict = &found.conflict;
    let table = conflict.table.as_ref().map_or_else(|| "unknown table".to_owned(), ToString::to_string);
    let (option, lsn) = match conflict.end_lsn {
        Some(end_lsn) => ("end-lsn", end_lsn),
        None => ("commit-lsn", conflict.commit_lsn),
    };
    let mut lines = vec![
        format!("{} on {table}: {}", conflict.kind, conflict.message),
        format!(
            "source transaction: {} {lsn}, first met {} ago",
            option.replace('-', "_"),
            duration(conflict.open_for.as_secs_f64())
        ),
    ];
    lines.extend(conflict.constraint.as_ref().map(|named| format!("constraint or column: {named}")));
    lines.push(String::new());
    lines.push("the source's change:".to_owned());
    match &found.change {
        Some(ShownChange::Insert(new)) => lines.push(format!("  insert {}", row_text(&cut(new)))),
        Some(ShownChange::Update { old: Some(old), new }) => {
            lines.push(format!("  update {}", row_text(&cut(old))));
            lines.push(format!("      to {}", row_text(&cut(new))));
        }
        Some(ShownChange::Update { old: None, new }) => lines.push(format!("  update {}", row_text(&cut(new)))),
        Some(ShownChange::Delete(old)) => lines.push(format!("  delete {}", row_text(&cut(old)))),
        Some(ShownChange::Truncate) => lines.push("  truncate".to_owned()),
        None => lines.push("  not known: the destination refused the transaction at its commit".to_owned()),
    }
    for (end, rows) in [("destination", &found.destination), ("source", &found.source)] {
        for found in rows {
            lines.push(String::new());
            lines.push(format!("at the {end} now, by {}:", found.by));
            lines.extend(found_lines(found, cut));
        }
    }
    lines.push(String::new());
    lines.push("what to do: headwater explain".to_owned());
    lines.push(format!("or skip the whole transaction: headwater skip --{option} {lsn}"));
    lines
}

fn found_lines(found: &FoundRows, cut: &dyn Fn(&ShownRow) -> ShownRow) -> Vec<String> {
    match &found.rows {
        Ok(rows) if rows.is_empty() => vec!["  no row".to_owned()],
        Ok(rows) => rows.iter().map(|row| format!("  {}", row_text(&cut(row)))).collect(),
        Err(reason) => vec![format!("  could not be read: {reason}")],
    }
}

/// The row with long values cut.
fn shortened(row: &ShownRow) -> ShownRow {
    let short = |value: &ShownValue| match value {
        ShownValue::Text(text) => match text.char_indices().nth(VALUE_CHARACTERS) {
            Some((end, _)) => ShownValue::Text(format!("{}… ({} bytes)", &text[..end], text.len())),
            None => value.clone(),
        },
        ShownValue::Unreadable(digits) => match digits.get(..VALUE_CHARACTERS) {
            Some(start) => ShownValue::Unreadable(format!("{start}… ({} bytes)", digits.len() / 2)),
            None => value.clone(),
        },
        ShownValue::Unchanged | ShownValue::Null => value.clone(),
    };
    row.iter().map(|(name, value)| (name.clone(), short(value))).collect()
}
