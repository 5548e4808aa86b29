//! `headwater status`: the same as the status page, in the terminal; also when the service is down.
//!
//! Asks the running service first. Where none answers, the destination's bookkeeping and the source's slot tell where
//! the copy stands. Exit code 0: the service streams within the lag threshold, or stands by; 1: it does not.

#![allow(clippy::print_stdout, reason = "the status is the command's result")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::cli::StatusArguments;
use super::observe::{self, AtDestination, AtSource, PacedCopy, ReportedCopyFailure};
use super::{display, settings};
use crate::commands::exit::ExitStatus;
use crate::commands::format::{count, counts, duration, size};
use crate::config::Config;
use crate::destination::Pace;
use crate::pg::{Lsn, printable_json};
use crate::telemetry::{SnapshotPhase, State, StatusView};

const WATCH_EVERY: Duration = Duration::from_secs(1);
const EVENTS_SHOWN: usize = 8;

/// What is known, from each of the service, the destination and the source that answers.
#[derive(Serialize)]
struct SeenStatus {
    /// The service answers.
    running: bool,
    /// What it says.
    status: Option<StatusView>,
    /// Why it could not be asked.
    not_asked_because: Option<String>,
    /// What the destination holds, where the service does not answer.
    #[serde(serialize_with = "plainly")]
    destination: Option<Result<AtDestination, String>>,
    /// The same of the source.
    #[serde(serialize_with = "plainly")]
    source: Option<Result<AtSource, String>>,
}

/// What was seen, or `{"error": …}`, or null.
fn plainly<T: Serialize, S: Serializer>(seen: &Option<Result<T, String>>, serializer: S) -> Result<S::Ok, S::Error> {
    match seen {
        Some(Ok(seen)) => seen.serialize(serializer),
        Some(Err(error)) => BTreeMap::from([("error", error)]).serialize(serializer),
        None => serializer.serialize_none(),
    }
}

/// Shows the status.
pub(super) async fn status(path: Option<&Path>, arguments: &StatusArguments) -> ExitStatus {
    let config = match settings::load(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let on_terminal = std::io::stdout().is_terminal();
    loop {
        let seen = look(&config).await;
        let text = if arguments.json {
            printable_json(&serde_json::to_string_pretty(&seen).unwrap_or_default()).into_owned() + "\n"
        } else {
            render(&config, &seen, on_terminal)
        };
        let mut out = std::io::stdout().lock();
        // Over what was there, then clear what is left: the picture does not flicker. What does not fit would roll it away.
        let text = if arguments.watch && on_terminal {
            let lines = display::terminal().map_or(usize::MAX, |(lines, _)| lines);
            let text = text.lines().take(lines).collect::<Vec<_>>().join("\x1b[K\n");
            format!("\x1b[H{text}\x1b[J")
        } else {
            text
        };
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more.
            return ExitStatus::Done;
        }
        if !arguments.watch {
            return if is_well(&seen) { ExitStatus::Done } else { ExitStatus::OperatorMustAct };
        }
        drop(out);
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

async fn look(config: &Config) -> SeenStatus {
    match observe::service(config).await {
        Ok(status) => {
            SeenStatus { running: true, status: Some(status), not_asked_because: None, destination: None, source: None }
        }
        Err(reason) => {
            let (destination, source) = tokio::join!(observe::destination(config), observe::source(config));
            SeenStatus {
                running: false,
                status: None,
                not_asked_because: Some(reason),
                destination: Some(destination),
                source: Some(source),
            }
        }
    }
}

fn is_well(seen: &SeenStatus) -> bool {
    seen.status.as_ref().is_some_and(|status| status.ready || status.state == State::Standby)
}

/// What an operator must know first, in one sentence, and whether it is good.
pub(super) fn verdict(status: &StatusView) -> (bool, String) {
    let behind = duration(status.lag_seconds.unwrap_or(0.0));
    let late = status.lag_seconds.unwrap_or(0.0) > status.ready_lag_max_seconds;
    match (status.state, status.suspended.as_slice()) {
        (State::Streaming, [table]) if !late => {
            (false, format!("Table {table} is suspended until it is copied again; the others follow."))
        }
        (State::Streaming, [_, _, ..]) if !late => {
            (false, format!("Tables {} are suspended until they are copied again.", status.suspended.join(", ")))
        }
        (State::Streaming, []) if !late && !status.in_doubt.is_empty() => {
            let tables = status.in_doubt.join(", ");
            (false, format!("In doubt until compared with the source, and followed meanwhile: {tables}."))
        }
        (state, _) => state_verdict(status, state, &behind),
    }
}

fn state_verdict(status: &StatusView, state: State, behind: &str) -> (bool, String) {
    match state {
        State::Streaming if !status.ready => (
            false,
            format!("The copy is {behind} behind, more than the {} allowed.", duration(status.ready_lag_max_seconds)),
        ),
        State::Streaming if status.lag_seconds.unwrap_or(0.0) < 1.0 => (true, "The copy is fresh.".to_owned()),
        State::Streaming => (true, format!("The copy is {behind} behind.")),
        State::CatchingUp => (
            false,
            format!(
                "Catching up: {} to go, the oldest missing commit is {behind} old.",
                size(status.lag_bytes.unwrap_or(0))
            ),
        ),
        State::Snapshot => (false, copying(status)),
        State::Standby => (true, "Standing by: another instance leads.".to_owned()),
        State::Connecting if status.reason.is_none() => (false, "Connecting.".to_owned()),
        State::Connecting => (false, "Not connected: trying again.".to_owned()),
        State::Waiting => (false, "Held up: nothing is applied.".to_owned()),
        State::Stopped => (false, "headwater has stopped.".to_owned()),
    }
}

fn copying(status: &StatusView) -> String {
    match status.snapshot.as_ref().map(|snapshot| snapshot.phase) {
        None | Some(SnapshotPhase::Preparing | SnapshotPhase::Copying) => "Copying the tables.".to_owned(),
        Some(phase) => format!("Copying the tables: {}.", phase.words()),
    }
}

fn render(config: &Config, seen: &SeenStatus, colours: bool) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = match &seen.status {
        Some(status) => running(&mut text, status, colours),
        None => from_servers(&mut text, config, seen, colours),
    };
    display::fitted(&text, 14) + "\n"
}

fn headline(text: &mut String, good: bool, sentence: &str, colours: bool) -> std::fmt::Result {
    match (colours, good) {
        (true, true) => writeln!(text, "\x1b[1;32m{sentence}\x1b[0m"),
        (true, false) => writeln!(text, "\x1b[1;31m{sentence}\x1b[0m"),
        (false, _) => writeln!(text, "{sentence}"),
    }
}

/// A text of several lines behind a name.
pub(super) fn named(text: &mut String, name: &str, lines: &str) -> std::fmt::Result {
    for (number, line) in lines.lines().enumerate() {
        writeln!(text, "{:<13} {line}", if number == 0 { name } else { "" })?;
    }
    Ok(())
}

fn running(text: &mut String, status: &StatusView, colours: bool) -> std::fmt::Result {
    let (good, sentence) = verdict(status);
    headline(text, good, &sentence, colours)?;
    for (name, what) in [("reason", &status.reason), ("detail", &status.detail), ("what to do", &status.hint)] {
        if let Some(what) = what {
            named(text, name, what)?;
        }
    }
    let state = format!("{} for {}", status.state.as_str(), duration(status.state_seconds));
    named(text, "state", &state)?;
    if let (Some(snapshot), Some(seconds)) = (&status.snapshot, status.snapshot_seconds) {
        named(text, "snapshot", &display::progress(snapshot, seconds))?;
    }
    named(text, "from", &status.route.source)?;
    named(text, "to", &status.route.destination)?;
    if let (Some(seconds), Some(bytes)) = (status.lag_seconds, status.lag_bytes) {
        let heartbeat = match (status.heartbeat_lag_seconds, &status.heartbeat_off) {
            (Some(seconds), _) => format!("heartbeat {}", duration(seconds)),
            (None, Some(reason)) => format!("no heartbeats: {reason}"),
            (None, None) => "no heartbeat yet".to_owned(),
        };
        named(text, "lag", &format!("{}, {}, {heartbeat}", duration(seconds), size(bytes)))?;
    }
    let position = format!(
        "{} stored, {} durable and confirmed, source at {}",
        status.position, status.confirmed, status.source_flush_lsn
    );
    named(text, "position", &position)?;
    named(text, "slot", &slot(status))?;
    let applied =
        format!("{} in {}", counts(status.rows_applied, "row"), counts(status.transactions_applied, "transaction"));
    named(text, "applied", &format!("{applied}, since the process began {} ago", duration(status.uptime_seconds)))?;
    if status.spool_bytes > 0 {
        named(
            text,
            "in progress",
            &format!("{} of transactions that are not committed yet", size(status.spool_bytes)),
        )?;
    }
    if let Some(verified) = &status.verified {
        named(text, "verified", &format!("{}: {} differing", verified.at, counts(verified.mismatched_rows, "row")))?;
    }
    for wait in &status.waits {
        named(text, "waits", wait)?;
    }
    tables(text, status, display::terminal().map(|(_, columns)| columns))?;
    if !status.events.is_empty() {
        writeln!(text, "\nevents")?;
        for event in status.events.iter().take(EVENTS_SHOWN) {
            let times = if event.times > 1 { format!(" ({} times)", event.times) } else { String::new() };
            let lines = event.text.replace('\n', " ");
            writeln!(text, "  {}  {:<10} {lines}{times}", event.at, event.kind)?;
        }
    }
    Ok(())
}

fn slot(status: &StatusView) -> String {
    match &status.slot {
        None if matches!(status.state, State::CatchingUp | State::Streaming) => {
            format!("{}: in use; its health was not read yet", status.route.slot)
        }
        None => format!("{}: none at the source", status.route.slot),
        Some(slot) => {
            let safe = slot
                .safe_wal_bytes
                .map_or("no limit".to_owned(), |safe| format!("{} until it is in danger", size(safe)));
            let lost = slot
                .seconds_until_lost
                .map_or(String::new(), |left| format!(", lost in {} at this rate", duration(left)));
            let kept = size(slot.retained_wal_bytes);
            format!("{}: {}, keeps {kept} of WAL, {safe}{lost}", status.route.slot, slot.wal_status)
        }
    }
}

fn tables(text: &mut String, status: &StatusView, columns: Option<usize>) -> std::fmt::Result {
    if status.tables.is_empty() {
        return Ok(());
    }
    let mut rows = vec![["tables", "copied", "inserted", "updated", "deleted", "truncated"].map(str::to_owned)];
    for (name, table) in &status.tables {
        let is_copied = status.snapshot.as_ref().is_some_and(|snapshot| snapshot.tables.contains(name));
        let copied = match (table.snapshot_done, is_copied) {
            (false, true) => format!("{} ({:.0} %)", count(table.snapshot_rows), 100.0 * table.snapshot_ratio()),
            _ if status.suspended.contains(name) => "suspended".to_owned(),
            _ if status.in_doubt.contains(name) => "in doubt".to_owned(),
            (true, _) => count(table.snapshot_rows),
            (false, false) => "earlier".to_owned(),
        };
        let [inserts, updates, deletes, truncates] =
            [table.inserts, table.updates, table.deletes, table.truncates].map(count);
        rows.push([name.clone(), copied, inserts, updates, deletes, truncates]);
    }
    let width =
        |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths = [width(1), width(2), width(3), width(4), width(5)];
    // Numbers do not give way; names do, and keep their ends, which tell tables apart.
    let numbers: usize = widths.iter().map(|width| width + 2).sum();
    let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(numbers).max(12));
    let names = width(0).min(room);
    writeln!(text)?;
    for [name, numbers @ ..] in &rows {
        let length = name.chars().count();
        let name = match length > names {
            true => format!("…{}", name.chars().skip(length + 1 - names).collect::<String>()),
            false => name.clone(),
        };
        write!(text, "{name:<names$}")?;
        for (number, width) in numbers.iter().zip(widths) {
            write!(text, "  {number:>width$}")?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// Where the copy stands, without the service's help.
fn from_servers(text: &mut String, config: &Config, seen: &SeenStatus, colours: bool) -> std::fmt::Result {
    let leader = seen.destination.as_ref().and_then(|seen| seen.as_ref().ok()).and_then(|seen| seen.leader_process);
    let sentence = match (leader, &seen.destination) {
        (Some(_), _) => "headwater does not answer here; an instance elsewhere leads.",
        (None, Some(Ok(_))) => "headwater is not running: nobody applies anything.",
        (None, _) => "headwater does not answer.",
    };
    headline(text, leader.is_some(), sentence, colours)?;
    if let Some(reason) = &seen.not_asked_because {
        named(text, "service", reason)?;
    }
    let mut position = None;
    named(text, "destination", &config.destination.url.to_string())?;
    match &seen.destination {
        Some(Ok(there)) => {
            position = there.position;
            for line in destination_lines(there) {
                named(text, "", &line)?;
            }
        }
        Some(Err(error)) => named(text, "", error)?,
        None => {}
    }
    named(text, "source", &config.source.url.to_string())?;
    match &seen.source {
        Some(Ok(there)) => {
            for line in source_lines(config, there, position) {
                named(text, "", &line)?;
            }
        }
        Some(Err(error)) => named(text, "", error)?,
        None => {}
    }
    Ok(())
}

fn destination_lines(there: &AtDestination) -> Vec<String> {
    let mut lines = Vec::new();
    match (there.state, there.position) {
        (None, _) => lines.push("was never fed: there is no bookkeeping".to_owned()),
        (Some("live"), Some(position)) => lines.push(format!("stands at {position}")),
        (Some(_), _) => {
            lines.push("a snapshot was begun and is not published; the next start begins it again".to_owned())
        }
    }
    for ReportedCopyFailure { of, reason } in &there.failed_copies {
        lines.push(format!("the copy of {of} has failed and is tried again: {reason}"));
    }
    for PacedCopy { of, copies, given_up, seconds } in &there.paced_copies {
        let done = Pace::words(*copies, *given_up);
        lines.push(format!("the next copy of {of} waits for {seconds} s: it was {done}"));
    }
    if let Some(gap) = &there.gap {
        lines.push(format!("the copy has gaps: its publication {gap}; start once with --resnapshot"));
    }
    if !there.tables.is_empty() {
        lines.push(format!("follows {}", there.tables.join(", ")));
    }
    lines.push(match there.leader_process {
        Some(process) => {
            format!(
                "process {process}, connected from {}, leads",
                there.leader_from.as_deref().unwrap_or("an unknown address")
            )
        }
        None => "no instance holds the lock".to_owned(),
    });
    for holder in &there.foreign {
        lines.push(holder.foreign_report().message);
    }
    lines
}

fn source_lines(config: &Config, there: &AtSource, position: Option<Lsn>) -> Vec<String> {
    let mut lines = Vec::new();
    match (there.flush_lsn, position) {
        (Some(flush_lsn), Some(position)) => {
            let missing = size(flush_lsn.bytes_since(position));
            lines.push(format!("is at {flush_lsn}: at most {missing} of WAL are not at the destination"));
        }
        (Some(flush_lsn), None) => lines.push(format!("is at {flush_lsn}")),
        (None, _) => {}
    }
    let name = &config.source.slot;
    lines.push(match &there.slot {
        None => format!("slot {name} does not exist"),
        Some(slot) => {
            let user =
                slot.active_process.map_or("nobody uses it".to_owned(), |process| format!("process {process} uses it"));
            let lost =
                slot.invalidation_reason.as_ref().map_or(String::new(), |reason| format!(", invalidated ({reason})"));
            let confirmed = slot.confirmed_flush_lsn.map_or("nothing".to_owned(), |lsn| lsn.to_string());
            let kept = size(slot.retained_wal_bytes);
            format!("slot {name}: {}{lost}, {user}, confirmed {confirmed}, keeps {kept} of WAL", slot.wal_status)
        }
    });
    lines
}
