//! `headwater explain`: what blocks progress right now, in words.
//!
//! Asks the running service for its own reason, then both servers for what only they know: who holds a lock that we
//! wait for, who waits for ours, which transaction delays the slot, what the walsender waits for. Nothing here changes
//! anything. Other sessions' statements are shown without the values in them. Exit code 0: nothing blocks; 1: something
//! does.
//!
//! Its own questions may meet a lock, too (on the bookkeeping, say): who holds it is looked up while they wait, by a question that
//! needs no lock on a table. Bound: [`END_MAX`] for each server, both at once.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use super::lock_waits::telling_connections;
use super::observe::{self, AtSource, PacedCopy, ReportedCopyFailure};
use super::status::{named, verdict};
use super::{display, settings};
use crate::commands::exit::ExitStatus;
use crate::commands::format::{duration, size};
use crate::config::Config;
use crate::destination::{Holder, Pace};
use crate::pg::{Ident, printable, printable_lines, shown_literal, without_values};
use crate::session::{SessionError, SqlClient};
use crate::source::{RunningOwner, ending_hint, lock_holder, running_transactions};
use crate::telemetry::{State, StatusView};

/// Something that blocks, or would be worth knowing.
struct Explanation {
    what: String,
    detail: Vec<String>,
    todo: Option<String>,
    blocks: bool,
}

impl Explanation {
    fn blocking(what: impl Into<String>) -> Explanation {
        Explanation { what: printable(&what.into()).into_owned(), detail: Vec::new(), todo: None, blocks: true }
    }

    fn notable(what: impl Into<String>) -> Explanation {
        Explanation { blocks: false, ..Explanation::blocking(what) }
    }

    fn detail(mut self, detail: impl Into<String>) -> Explanation {
        self.detail.push(printable_lines(&detail.into()).into_owned());
        self
    }

    fn todo(mut self, todo: impl Into<String>) -> Explanation {
        self.todo = Some(printable_lines(&todo.into()).into_owned());
        self
    }
}

/// A transaction at the source that is older than this is worth a word: the slot keeps WAL from its beginning on.
const LONG_TRANSACTION: Duration = Duration::from_secs(60);
/// A server that is well answers within this; one question waits for a lock otherwise.
const PROMPT: Duration = Duration::from_secs(2);
/// Somebody waits for the answer.
const END_MAX: Duration = Duration::from_secs(30);
/// Statements are shown up to here.
const STATEMENT_SHOWN: usize = 300;

/// Explains.
pub(super) async fn explain(path: Option<&Path>) -> ExitStatus {
    let config = match settings::load(path) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let service = observe::service(&config).await;
    let mut findings = vec![of_service(&service)];
    findings.extend(service.iter().flat_map(of_waits));
    let running = service.as_ref().ok().map(|status| status.state);
    let (destination, source) = telling_connections(async {
        tokio::join!(
            within(END_MAX, "destination", at_destination(&config, running)),
            within(END_MAX, "source", at_source(&config))
        )
    })
    .await;
    findings.extend(destination);
    findings.extend(source);
    let mut text = String::new();
    let blocking = findings.iter().filter(|finding| finding.blocks).count();
    for finding in &findings {
        // Writing into a String cannot fail.
        let _ = named(&mut text, if finding.blocks { "BLOCKS" } else { "seen" }, &finding.what);
        for line in &finding.detail {
            let _ = named(&mut text, "", line);
        }
        if let Some(todo) = &finding.todo {
            let _ = named(&mut text, "  what to do", todo);
        }
    }
    if blocking == 0 {
        text.push_str("\nNothing that can be seen from here blocks progress.\n");
    }
    display::result(&display::fitted(&text, 14));
    if blocking == 0 { ExitStatus::Done } else { ExitStatus::OperatorMustAct }
}

fn of_service(service: &Result<StatusView, String>) -> Explanation {
    let status = match service {
        Ok(status) => status,
        Err(reason) => {
            return Explanation::blocking("headwater is not running here, or cannot be asked")
                .detail(reason.clone())
                .todo("headwater run --config FILE, or: systemctl start headwater");
        }
    };
    let (good, sentence) = verdict(status);
    let waits = status.reason.is_some() || (!good && status.state == State::Streaming);
    let mut finding = if waits { Explanation::blocking(sentence) } else { Explanation::notable(sentence) };
    for line in [&status.reason, &status.detail].into_iter().flatten() {
        finding = finding.detail(line.clone());
    }
    match &status.hint {
        Some(hint) => finding.todo(hint.clone()),
        None => finding,
    }
}

/// What only the service knows of its waits; who holds a lock is found at that end.
fn of_waits(status: &StatusView) -> impl Iterator<Item = Explanation> {
    let known = status.waits.iter().filter(|wait| !wait.contains(HELD_BY));
    known.map(|wait| match wait.split_once(TO_END_IT) {
        Some((what, end)) => Explanation::blocking(what).todo(end),
        None => Explanation::blocking(wait),
    })
}

/// What follows the lock, in words of [`crate::preflight::waits`].
const HELD_BY: &str = ", held by ";
const TO_END_IT: &str = " To end it: ";

async fn at_destination(config: &Config, running: Option<State>) -> Vec<Explanation> {
    let client = match observe::connect(&config.destination.url).await {
        Ok(client) => client,
        Err(error) => return vec![unreachable("destination", &error)],
    };
    let mut findings = Vec::new();
    let ours = &config.destination.url.application_name;
    let mut looking = pin!(observe::destination(config));
    let prompt = tokio::time::timeout(PROMPT, &mut looking).await;
    // While a question of ours waits, its own holder is among these.
    let locks = looked_at("destination", "locks", locks(&client, "destination", ours).await);
    let seen = match prompt {
        Ok(seen) => seen,
        Err(_) => looking.await,
    };
    match seen {
        Ok(seen) => {
            // Between two attempts a halted service holds no lock: that is no cause of its own.
            if seen.leader_process.is_none() && running.is_none() {
                findings.push(Explanation::blocking(
                    "no instance holds the lock at the destination: nobody applies anything",
                ));
            }
            if let Some(leader) = seen.leader.as_ref().filter(|_| running == Some(State::Standby)) {
                findings.push(of_leader(leader));
            }
            for holder in &seen.foreign {
                let report = holder.foreign_report();
                let finding = Explanation::notable(report.message).detail(report.detail.unwrap_or_default());
                findings.push(finding.todo(report.hint.unwrap_or_default()));
            }
            for ReportedCopyFailure { of, reason } in seen.failed_copies {
                findings.push(
                    Explanation::blocking(format!("the copy of {of} has failed and is tried again")).detail(reason),
                );
            }
            for PacedCopy { of, copies, given_up, seconds } in seen.paced_copies {
                let detail = format!(
                    "It was {}, since it changes at the source in ways that the stream does not carry: \
                     partitions that come and go, for example. The other tables stream on.",
                    Pace::words(copies, given_up)
                );
                let finding = Explanation::blocking(format!("the next copy of {of} waits for {seconds} s"));
                findings.push(
                    finding.detail(detail).todo("Run headwater resnapshot with the table's name to copy it at once."),
                );
            }
            if let Some(gap) = seen.gap {
                findings.push(
                    Explanation::blocking(format!("the copy has gaps: its publication {gap}"))
                        .todo("Start headwater once with --resnapshot."),
                );
            }
        }
        Err(error) => findings.push(unreachable("destination", &error)),
    }
    findings.extend(locks);
    let prepared = prepared_in_the_way(&client, "destination", ours).await;
    findings.extend(looked_at("destination", "prepared transactions", prepared));
    findings
}

async fn at_source(config: &Config) -> Vec<Explanation> {
    let client = match observe::connect_source(config).await {
        Ok(client) => client,
        Err(error) => return vec![unreachable("source", &error)],
    };
    let mut findings = Vec::new();
    match observe::source(config).await {
        Ok(seen) => findings.extend(of_slot(config, &seen)),
        Err(error) => findings.push(unreachable("source", &error)),
    }
    let ours = &config.source.url.application_name;
    findings.extend(looked_at("source", "locks", locks(&client, "source", ours).await));
    let prepared = prepared_in_the_way(&client, "source", ours).await;
    findings.extend(looked_at("source", "prepared transactions", prepared));
    findings.extend(looked_at("source", "walsender", walsender(&client, config).await));
    findings.extend(looked_at("source", "transactions", transactions(&client).await));
    findings
}

/// What was found at an end, if it answers in time.
async fn within(bound: Duration, end: &str, looking: impl Future<Output = Vec<Explanation>>) -> Vec<Explanation> {
    match tokio::time::timeout(bound, looking).await {
        Ok(findings) => findings,
        Err(_) => vec![unreachable(end, &format!("it has not answered all questions within {} s", bound.as_secs()))],
    }
}

/// Whom a standby waits for: every program with headwater's role may hold the lock.
fn of_leader(leader: &Holder) -> Explanation {
    let end = match leader.process_id {
        Some(process_id) => format!("SELECT pg_terminate_backend({process_id});"),
        None => format!("ROLLBACK PREPARED {};", shown_literal(&leader.name)),
    };
    Explanation::notable(format!("{leader} leads: it holds the lock at the destination"))
        .todo(format!("If that is no headwater of this slot, run at the destination:\n{end}"))
}

fn unreachable(end: &str, error: &str) -> Explanation {
    Explanation::blocking(format!("the {end} cannot be looked at")).detail(error.to_owned())
}

fn of_slot(config: &Config, seen: &AtSource) -> Option<Explanation> {
    let name = &config.source.slot;
    let Some(slot) = &seen.slot else {
        return Some(Explanation::notable(format!(
            "slot {name} does not exist at the source (the first start creates it)"
        )));
    };
    let kept = size(slot.retained_wal_bytes);
    if let Some(reason) = &slot.invalidation_reason {
        let finding = Explanation::blocking(format!("slot {name} was invalidated by the source ({reason})"));
        return Some(finding.todo("Start headwater once with --resnapshot, or set on_slot_lost = \"resnapshot\"."));
    }
    match slot.wal_status.as_str() {
        "lost" => Some(
            Explanation::blocking(format!("slot {name} is lost: the source has removed WAL that it needs"))
                .todo("Start headwater once with --resnapshot, or set on_slot_lost = \"resnapshot\"."),
        ),
        "unreserved" => Some(
            Explanation::blocking(format!("slot {name} is about to be lost: it keeps {kept} of WAL, more than the source allows"))
                .todo("Run at the source as a superuser:\nALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();"),
        ),
        _ => Some(Explanation::notable(format!("slot {name} keeps {kept} of WAL at the source ({})", slot.wal_status))),
    }
}

/// Who holds a lock that a session of ours waits for, and who waits for ours.
async fn locks(client: &SqlClient, end: &str, application_name: &str) -> Result<Vec<Explanation>, SessionError> {
    // A lock's relation is ours to know; another session's statement needs pg_read_all_stats.
    let sql = "SELECT w.pid, COALESCE(w.application_name, ''), COALESCE(w.wait_event_type || '/' || w.wait_event, ''),
                      b.pid, COALESCE(b.usename::text, '?'), COALESCE(b.application_name, ''),
                      COALESCE(pg_catalog.host(b.client_addr), 'this machine'), COALESCE(b.state, '?'),
                      EXTRACT(epoch FROM pg_catalog.clock_timestamp() - b.xact_start)::float8,
                      COALESCE(b.query, ''),
                      (SELECT l.mode || ' on ' || CASE WHEN c.oid IS NULL THEN 'a ' || l.locktype
                                                   ELSE pg_catalog.format('%I.%I', n.nspname, c.relname) END
                       FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
                       LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                       WHERE l.pid = w.pid AND NOT l.granted LIMIT 1),
                      w.usename = session_user AND w.application_name LIKE $1
               FROM pg_catalog.pg_stat_activity w
               CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) AS blocking(pid)
               JOIN pg_catalog.pg_stat_activity b ON b.pid = blocking.pid
               WHERE w.wait_event_type = 'Lock'
                 AND ((w.usename = session_user AND w.application_name LIKE $1)
                      OR (b.usename = session_user AND b.application_name LIKE $1))
               ORDER BY b.xact_start NULLS LAST LIMIT 20";
    // Where a role sets another one, that one may not see what the sessions of the role that has logged in are called.
    let rows = client.query_as_login_role("looking at locks", sql, &[&pattern_of_ours(application_name)]).await?;
    let mut findings = Vec::new();
    for row in rows {
        // Every session names itself: in quotes it cannot pass for words of ours.
        let (waiting, waiting_name) = (row.get::<i32>(0)?, shown_literal(row.get(1)?));
        let (holding, user): (i32, &str) = (row.get(3)?, row.get(4)?);
        let (name, from, state) = (shown_literal(row.get(5)?), row.get::<&str>(6)?, row.get::<&str>(7)?);
        let open =
            row.get::<Option<f64>>(8)?.map_or(String::new(), |s| format!(", in a transaction for {}", duration(s)));
        let lock = row.get::<Option<&str>>(10)?.unwrap_or("a lock");
        let holder = format!(
            "process {holding} (application_name {name}, role {}, from {from}), {state}{open}",
            Ident::new(user)
        );
        let statement = shown(row.get(9)?);
        let we_wait: bool = row.get::<Option<bool>>(11)?.unwrap_or(false);
        findings.push(if we_wait {
            Explanation::blocking(format!("{end}: headwater's process {waiting} ({waiting_name}) waits for {lock}"))
                .detail(format!("held by {holder}"))
                .detail(format!("its last statement: {statement}"))
                .todo(format!("Let it end; or run at the {end}:\nSELECT pg_terminate_backend({holding});"))
        } else {
            Explanation::notable(format!(
                "{end}: process {waiting} ({waiting_name}) waits for {lock}, held by headwater's {holder}"
            ))
            .detail(
                "It continues when headwater's transaction ends: while tables are copied, that is the end of the copy.",
            )
        });
    }
    Ok(findings)
}

/// What was found, or that it could not be looked at.
fn looked_at(end: &str, what: &str, found: Result<Vec<Explanation>, SessionError>) -> Vec<Explanation> {
    found.unwrap_or_else(|error| vec![Explanation::notable(format!("the {end}'s {what} cannot be looked at: {error}"))])
}

fn shown(statement: &str) -> String {
    let text = printable(&without_values(statement)).into_owned();
    match text.char_indices().nth(STATEMENT_SHOWN) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None if text.is_empty() => "not shown to this role (GRANT pg_read_all_stats shows it)".to_owned(),
        None => text,
    }
}

/// What the walsender is doing.
async fn walsender(client: &SqlClient, config: &Config) -> Result<Vec<Explanation>, SessionError> {
    // A role that may not read statistics sees that there is a walsender, and nothing of it.
    let sql = "SELECT a.pid, r.state, COALESCE(a.wait_event, ''), r.sent_lsn::text,
                      pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                          ELSE pg_catalog.pg_current_wal_flush_lsn() END, r.sent_lsn)::bigint,
                      current_user::text
               FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
               LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = a.pid
               WHERE s.slot_name = $1::text";
    let row = client.query_opt("looking at the walsender", sql, &[&config.source.slot.as_str()]).await?;
    let Some(row) = row else { return Ok(vec![Explanation::notable("no walsender uses the slot")]) };
    let (process, event): (i32, &str) = (row.get(0)?, row.get(2)?);
    let Some(state) = row.get::<Option<&str>>(1)? else {
        let what = format!("the walsender is process {process}; what it does is not visible to this role");
        let grant = format!("GRANT pg_read_all_stats TO {};", Ident::new(row.get::<&str>(5)?).sql());
        let hint = format!("To see it, run at the source as a superuser:\n{grant}");
        return Ok(vec![Explanation::notable(what).todo(hint)]);
    };
    let meaning = match event {
        // The names differ between majors (WalSenderWaitForWAL until 17).
        "WalSenderWaitForWAL" | "WalSenderWaitForWal" => "it has sent everything and waits for new WAL",
        "WalSenderMain" => "it has sent everything and waits",
        "WalSenderWriteData" | "ClientWrite" => "it waits for headwater to read: the destination is the slower end",
        "ReorderBufferWrite" | "ReorderBufferRead" | "LogicalChangesWrite" | "LogicalChangesRead" => {
            "it spills a large transaction to the source's disk (logical_decoding_work_mem)"
        }
        "WaitForStandbyConfirmation" => {
            "it waits until the standbys of synchronized_standby_slots have what it is to send"
        }
        "WalRead" | "WALRead" => "it reads old WAL from the source's disk",
        "" => "it is decoding",
        other => other,
    };
    let sent = match (row.get::<Option<&str>>(3)?, row.get::<Option<i64>>(4)?) {
        (Some(sent), Some(behind)) => {
            format!(", has sent up to {sent}, {} behind the source", size(u64::try_from(behind).unwrap_or(0)))
        }
        (_, _) => ", has sent nothing yet".to_owned(),
    };
    Ok(vec![Explanation::notable(format!("the walsender (process {process}) is {state}{sent}: {meaning}"))])
}

/// Transactions at the source that write: nothing of them can be sent before they end, WAL is kept from their beginning on, and a
/// new slot waits for them. Prepared ones stay until somebody ends them.
async fn transactions(client: &SqlClient) -> Result<Vec<Explanation>, SessionError> {
    let sql = "SELECT COALESCE(application_name, ''), COALESCE(state, '?'), COALESCE(query, '')
               FROM pg_catalog.pg_stat_activity WHERE pid = $1";
    let mut findings = Vec::new();
    let mut sessions = 0;
    for transaction in running_transactions(client).await? {
        let old = transaction.seconds.is_none_or(|seconds| seconds >= LONG_TRANSACTION.as_secs_f64());
        let since = match transaction.seconds {
            Some(seconds) => format!("for {}", duration(seconds)),
            None => "(since when is not visible to this role: GRANT pg_read_all_stats shows it)".to_owned(),
        };
        let effect = "Until it ends, the slot keeps WAL from its beginning on, and no new slot or fence can be made.";
        let finding = match &transaction.owner {
            RunningOwner::Prepared { .. } => {
                let what = format!("source: {} has been left open {since}", transaction.name());
                Explanation::notable(what).detail(effect)
            }
            RunningOwner::Session { process_id } if old && sessions == 0 => {
                sessions += 1;
                let row = client.query_opt("looking for long transactions", sql, &[process_id]).await?;
                let Some(row) = row else { continue };
                let (name, state) = (shown_literal(row.get(0)?), row.get::<&str>(1)?);
                let session = format!("{} (application_name {name}, {state})", transaction.name());
                let what = format!("source: {session} has been in a transaction {since}");
                Explanation::notable(what).detail(format!("its last statement: {}", shown(row.get(2)?))).detail(effect)
            }
            RunningOwner::Session { .. } => continue,
        };
        findings.push(match ending_hint(std::slice::from_ref(&transaction)) {
            Some(hint) => finding.todo(hint),
            None => finding,
        });
    }
    Ok(findings)
}

/// Prepared transactions that a session of ours waits for: they have no process that could be shown as the holder.
async fn prepared_in_the_way(
    client: &SqlClient,
    end: &str,
    application_name: &str,
) -> Result<Vec<Explanation>, SessionError> {
    let sql = "SELECT DISTINCT w.pid, w.application_name, h.virtualtransaction
               FROM pg_catalog.pg_stat_activity w
               JOIN pg_catalog.pg_locks n ON n.pid = w.pid AND NOT n.granted
               JOIN pg_catalog.pg_locks h ON h.pid IS NULL AND h.granted AND h.locktype = n.locktype
                   AND h.database IS NOT DISTINCT FROM n.database AND h.relation IS NOT DISTINCT FROM n.relation
                   AND h.transactionid IS NOT DISTINCT FROM n.transactionid AND h.virtualxid IS NOT DISTINCT FROM n.virtualxid
                   AND h.page IS NOT DISTINCT FROM n.page AND h.tuple IS NOT DISTINCT FROM n.tuple
                   AND h.objid IS NOT DISTINCT FROM n.objid
               WHERE 0 = ANY (pg_catalog.pg_blocking_pids(w.pid))
                 AND w.usename = session_user AND w.application_name LIKE $1
               LIMIT 5";
    let mut findings = Vec::new();
    for row in client.query_as_login_role("looking at locks", sql, &[&pattern_of_ours(application_name)]).await? {
        let (waiting, name): (i32, &str) = (row.get(0)?, row.get(1)?);
        let Some(holder) = lock_holder(client, None, row.get(2)?).await? else { continue };
        let finding = Explanation::blocking(format!(
            "{end}: headwater's process {waiting} ({name}) waits for {}",
            holder.words()
        ));
        findings.push(match ending_hint(&[holder]) {
            Some(hint) => finding.todo(hint),
            None => finding,
        });
    }
    Ok(findings)
}

/// Application names of our sessions, for LIKE. The server cuts them at 63 bytes and replaces what is not ASCII, so a long name is
/// matched by its beginning.
fn pattern_of_ours(application_name: &str) -> String {
    let beginning: String = application_name.chars().take_while(char::is_ascii).take(NAME_COMPARED).collect();
    let escaped = beginning.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    let whole = beginning.len() == application_name.len();
    format!("{escaped}{}", if whole { " %" } else { "%" })
}

/// So much of an application name is compared: what follows it is cut where it is long.
const NAME_COMPARED: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_a_long_or_foreign_name_are_recognised_by_its_beginning() {
        assert_eq!(pattern_of_ours("head_water"), "head\\_water %");
        let pod = "a".repeat(64);
        assert_eq!(pattern_of_ours(&pod), format!("{}%", "a".repeat(40)));
        assert_eq!(pattern_of_ours("hw-é"), "hw-%");
    }
}
