//! What headwater's sessions wait for at either end, reported while they wait.
//!
//! [`tell_waits`] runs next to the replication loop for as long as the process, on a session of its own at the destination. At the
//! source the monitor's session asks; commands ask for themselves. A statement that meets another session's lock waits up to a bound
//! (`destination.lock_timeout`, `fence_timeout`, or that of its session). Then the service gives it up and tries again, and a command
//! ends with an error: without a message nobody would know why nothing moves. A wait longer than
//! [`TOLD_AFTER`] is a line in the log, once for each holder's transaction, and appears in /status for as long as it lasts.
//!
//! A COMMIT may wait for a synchronous standby of its server: `synchronous_commit` decides, and publishes and the bookkeeping set it.
//!
//! The same holds for the creation of a slot, whose session waits for the end of transactions. For the slot of a copy
//! `snapshot` has messages of its own, which name every transaction that it waits for; this wait is shown here and not logged again.
//!
//! Neither end can be asked while nobody answers there, and a server does not say of a process that it stands still:
//! [`tell_connections`] tells which host is waited for, and what has no answer.
//!
//! Bounds: one question every [`LOOK_EVERY`]; [`WAITS_MAX`] waits reported at a time, [`TOLD_MAX`] remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::destination::DestinationError;
use crate::error_policy::Fault;
use crate::pg::{Ident, printable, shown_literal, without_values};
use crate::preflight::watch_failures::WatchFailure;
use crate::session::{
    Row, SessionError, SlowConnection, Sql, SqlClient, explain_no_answers, slow_answers, slow_connections,
};
use crate::source::{SourceError, lock_holder};
use crate::telemetry::Telemetry;

/// A wait that is over sooner is not reported.
const TOLD_AFTER: Duration = Duration::from_secs(5);
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);
const WAITS_MAX: i64 = 10;
/// There are as many waits as purposes of sessions times tables; a wait that is forgotten is reported once more.
const TOLD_MAX: usize = 1000;
/// So much of the holder's statement is shown.
const STATEMENT_SHOWN: usize = 300;
const QUERY_MAX: Duration = Duration::from_secs(10);
/// An answer that comes sooner is not reported. Longer than [`TOLD_AFTER`] and a look: where the server says what its process waits for,
/// that is reported instead. A stream that is silent has been asked twice for a sign of life by then.
const ANSWERS_TOLD_AFTER: Duration = Duration::from_millis(7500);
/// The same question to the same server that stays without an answer again and again is a line in the log so often.
const ANSWERS_TOLD_EVERY: Duration = Duration::from_secs(600);
/// Nothing but this process is asked.
const CONNECTIONS_EVERY: Duration = Duration::from_millis(500);

/// Where a session waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerEnd {
    Source,
    Destination,
}

impl ServerEnd {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            ServerEnd::Source => "source",
            ServerEnd::Destination => "destination",
        }
    }
}

/// A session of ours that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Where it waits.
    end: ServerEnd,
    /// The process that serves it there.
    process_id: u32,
    /// Who waits for what, and for which transaction of whom, without what changes while it lasts: told once.
    key: String,
    what: String,
    /// Who holds the lock, and what ends it.
    holder: String,
    /// The statement that ends it, with where it is run; `None` where it takes more than a statement.
    ending: Option<String>,
    /// The slot of a copy: the copy itself reports this wait.
    told_elsewhere: bool,
    /// The server does not say since when, so that it may be one of many short ones.
    may_be_a_moment: bool,
}

impl Wait {
    /// The wait in words.
    pub(crate) fn text(&self) -> String {
        format!("{}, {}", self.what, self.holder)
    }

    /// The process that serves the session that waits.
    pub(crate) fn process_id(&self) -> u32 {
        self.process_id
    }

    /// The statement that ends it, if one does.
    pub(crate) fn ending(&self) -> Option<&str> {
        self.ending.as_deref()
    }
}

/// The waits at one end, and which of them were told.
#[derive(Debug, Default)]
pub(crate) struct ToldWaits {
    told: BTreeSet<String>,
    /// Since when each wait is seen whose server does not say how long it has lasted.
    seen: BTreeMap<String, Instant>,
}

impl ToldWaits {
    /// The waits that were not told yet.
    pub(crate) fn new_ones(&mut self, waits: &[Wait]) -> Vec<Wait> {
        let new: Vec<Wait> = waits.iter().filter(|wait| !self.told.contains(&wait.key)).cloned().collect();
        if self.told.len() > TOLD_MAX {
            self.told.clear();
        }
        // A wait that ends and comes again is reported again only when another session, or another transaction, is in the way.
        self.told.extend(waits.iter().map(|wait| wait.key.clone()));
        new
    }

    /// Leaves out those that have not lasted yet, of the ones whose server does not say for how long.
    fn leave_out_moments(&mut self, waits: &mut Vec<Wait>) {
        let moments: BTreeSet<String> =
            waits.iter().filter(|wait| wait.may_be_a_moment).map(|wait| wait.key.clone()).collect();
        self.seen.retain(|key, _| moments.contains(key));
        for key in moments {
            self.seen.entry(key).or_insert_with(Instant::now);
        }
        let lasts = |wait: &Wait| self.seen.get(&wait.key).is_none_or(|since| since.elapsed() >= TOLD_AFTER);
        waits.retain(lasts);
    }

    /// Looks at one end, logs what is new, and shows all.
    pub(crate) async fn look(
        &mut self,
        client: &SqlClient,
        end: ServerEnd,
        application_name: &str,
        telemetry: &Telemetry,
    ) -> Result<(), SessionError> {
        let mut waits = waits(client, end, application_name).await?;
        client.explain_answers(end.as_str(), waits.iter().map(Wait::process_id).collect());
        self.leave_out_moments(&mut waits);
        for wait in self.new_ones(&waits).iter().filter(|wait| !wait.told_elsewhere) {
            telemetry.warning("wait", wait.text());
        }
        telemetry.waits(end.as_str(), waits.iter().map(Wait::text).collect());
        Ok(())
    }
}

/// Nobody looks at this end until the next session there: nothing is known of what waits.
pub(crate) fn forget_waits(end: ServerEnd, telemetry: &Telemetry) {
    explain_no_answers(end.as_str());
    telemetry.waits(end.as_str(), Vec::new());
}

/// Watches the destination until it is dropped.
pub(crate) async fn tell_waits(config: Arc<Config>, telemetry: Arc<Telemetry>) {
    let mut told = ToldWaits::default();
    let mut failure = WatchFailure::new(Arc::clone(&telemetry), "what its sessions wait for at the destination");
    loop {
        if let Err(error) = session(&config, &telemetry, &mut told, &mut failure).await {
            failure.failed(error);
        }
        forget_waits(ServerEnd::Destination, &telemetry);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Says which attempts to connect and which answers take long, until it is dropped.
pub(crate) async fn tell_connections(telemetry: Arc<Telemetry>) {
    let mut connections = ToldConnections::default();
    let mut told_answers: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let answers = slow_answers(ANSWERS_TOLD_AFTER);
        told_answers.retain(|_, at| at.elapsed() < ANSWERS_TOLD_EVERY);
        for answer in &answers {
            // It is renewed for as long as that lasts.
            if told_answers.len() < TOLD_MAX && told_answers.insert(answer.key.clone(), Instant::now()).is_none() {
                telemetry.warning("wait", answer.text.clone());
            }
        }
        telemetry.waits("answers", answers.into_iter().map(|answer| answer.text).collect());
        let slow = slow_connections(TOLD_AFTER);
        for text in connections.new_ones(&slow) {
            telemetry.warning("wait", text.to_owned());
        }
        telemetry.waits("connecting", slow.into_iter().map(|connection| connection.text).collect());
        tokio::time::sleep(CONNECTIONS_EVERY).await;
    }
}

/// Prints the attempts of a command to connect that take long, until it is dropped.
pub(crate) async fn print_slow_connections(print: impl Fn(&str)) -> Infallible {
    let mut told = ToldConnections::default();
    loop {
        told.new_ones(&slow_connections(TOLD_AFTER)).into_iter().for_each(&print);
        tokio::time::sleep(CONNECTIONS_EVERY).await;
    }
}

/// The attempts to connect that were told.
#[derive(Debug, Default)]
struct ToldConnections(BTreeSet<String>);

impl ToldConnections {
    /// Those of these that were not told yet. Each attempt of each session meets the same host; what comes of it is the attempt's to
    /// report.
    fn new_ones<'a>(&mut self, slow: &'a [SlowConnection]) -> Vec<&'a str> {
        let is_new = |connection: &&SlowConnection| self.0.len() < TOLD_MAX && self.0.insert(connection.key.clone());
        slow.iter().filter(is_new).map(|connection| connection.text.as_str()).collect()
    }
}

async fn session(
    config: &Config,
    telemetry: &Telemetry,
    told: &mut ToldWaits,
    failure: &mut WatchFailure,
) -> Result<(), SessionError> {
    let sql = Sql { connection: config.destination.url.clone(), purpose: "monitor", timeout: QUERY_MAX };
    let client = sql.connect().await?;
    loop {
        told.look(&client, ServerEnd::Destination, &config.destination.url.application_name, telemetry).await?;
        failure.works();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A lock's relation is ours to know; another session's statement needs pg_read_all_stats. A prepared transaction has no process.
const WAITS: &str = "
    SELECT w.application_name::text, blocking.pid, blocking.virtualtransaction,
           l.mode, CASE WHEN c.oid IS NULL THEN 'a ' || l.locktype ELSE pg_catalog.format('%I.%I', n.nspname, c.relname) END,
           COALESCE(b.usename::text, '?'), COALESCE(b.application_name, ''), COALESCE(pg_catalog.host(b.client_addr), 'this machine'),
           COALESCE(b.state, '?'), pg_catalog.to_char(b.xact_start, 'YYYY-MM-DD HH24:MI:SS'), COALESCE(b.query, ''),
           w.backend_type = 'walsender' AND w.application_name LIKE '% snapshot', w.pid::bigint
    FROM pg_catalog.pg_stat_activity w
    JOIN pg_catalog.pg_locks l ON l.pid = w.pid AND NOT l.granted
    CROSS JOIN LATERAL (
        SELECT found.pid, NULL::text AS virtualtransaction
        FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) AS found(pid) WHERE found.pid <> 0
        UNION
        SELECT 0, h.virtualtransaction FROM pg_catalog.pg_locks h
        WHERE h.pid IS NULL AND h.granted AND h.locktype = l.locktype
          AND h.database IS NOT DISTINCT FROM l.database AND h.relation IS NOT DISTINCT FROM l.relation
          AND h.transactionid IS NOT DISTINCT FROM l.transactionid AND h.virtualxid IS NOT DISTINCT FROM l.virtualxid
          AND h.page IS NOT DISTINCT FROM l.page AND h.tuple IS NOT DISTINCT FROM l.tuple
          AND h.objid IS NOT DISTINCT FROM l.objid
    ) AS blocking
    LEFT JOIN pg_catalog.pg_stat_activity b ON b.pid = blocking.pid
    LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE w.wait_event_type = 'Lock' AND w.datname = pg_catalog.current_database() AND w.usename = session_user
      AND pg_catalog.starts_with(w.application_name, $1)
      AND l.waitstart < pg_catalog.clock_timestamp() - $2 * interval '1 second'
    ORDER BY b.xact_start NULLS LAST LIMIT $3";

/// The sessions of ours that have waited for a lock of somebody else's for long.
pub(crate) async fn waits(
    client: &SqlClient,
    end: ServerEnd,
    application_name: &str,
) -> Result<Vec<Wait>, SessionError> {
    // The server cuts names at 63 bytes, and replaces what is not ASCII.
    let beginning: String = application_name.chars().take_while(char::is_ascii).take(40).collect();
    let seconds = TOLD_AFTER.as_secs_f64();
    let rows = client.query_as_login_role("looking at locks", WAITS, &[&beginning, &seconds, &WAITS_MAX]).await?;
    let mut waits = Vec::new();
    for row in rows {
        let (name, holder_id, mode, object): (&str, i32, &str, &str) =
            (row.get(0)?, row.get(1)?, row.get(3)?, row.get(4)?);
        // What ends it comes before what the holder has chosen, whose names are quoted: nobody can forge the statement.
        let (blocker, holder, ending) = if holder_id == 0 {
            let transaction: &str = row.get(2)?;
            let Some(prepared) = lock_holder(client, None, transaction).await? else { continue };
            let words = format!("held by {}. To end it: {}", prepared.words(), prepared.end());
            let place = prepared.database.as_ref().map_or_else(String::new, |name| format!(", in database {name}"));
            let ending = format!("{} -- at the {}{place}", prepared.end(), end.as_str());
            (transaction.to_owned(), words, ending)
        } else {
            let (role, program, from): (&str, &str, &str) = (row.get(5)?, row.get(6)?, row.get(7)?);
            let since = row.get::<Option<&str>>(9)?.map_or(String::new(), |at| format!(" since {at} UTC"));
            let (state, statement) = (row.get::<&str>(8)?, shown(row.get(10)?));
            let statement_end = format!("SELECT pg_terminate_backend({holder_id});");
            let words = format!(
                "held by process {holder_id}. To end it: {statement_end} It is of role {}, from {from}, \
                 {state}, in a transaction{since}; application_name: {}; last statement: {statement}",
                Ident::new(role),
                shown_literal(program),
            );
            (format!("{holder_id}{since}"), words, format!("{statement_end} -- at the {}", end.as_str()))
        };
        let what = format!("{}: {} waits for {mode} on {object}", end.as_str(), printable(name));
        // What is tried again may begin with a weaker lock, and the blocker's state and statement change in its transaction.
        let key = format!("{name} {object} {blocker}");
        waits.push(Wait {
            key,
            what,
            holder: printable(&holder).into_owned(),
            ending: Some(printable(&ending).into_owned()),
            told_elsewhere: row.get(11)?,
            may_be_a_moment: false,
            end,
            process_id: process_id(&row, 12)?,
        });
    }
    waits.extend(standby_waits(client, end, &beginning, seconds).await?);
    waits.extend(confirmation_waits(client, end, &beginning).await?);
    Ok(waits)
}

/// The sessions of ours whose COMMIT waits for a synchronous standby of that server.
async fn standby_waits(
    client: &SqlClient,
    end: ServerEnd,
    beginning: &str,
    seconds: f64,
) -> Result<Vec<Wait>, SessionError> {
    let sql = "SELECT w.application_name::text, pg_catalog.current_setting('synchronous_standby_names'),
                      pg_catalog.to_char(w.query_start, 'YYYY-MM-DD HH24:MI:SS'), w.pid::bigint
               FROM pg_catalog.pg_stat_activity w
               WHERE w.wait_event = 'SyncRep' AND w.datname = pg_catalog.current_database() AND w.usename = session_user
                 AND pg_catalog.starts_with(w.application_name, $1)
                 AND w.query_start < pg_catalog.clock_timestamp() - $2 * interval '1 second'
               ORDER BY w.query_start LIMIT $3";
    let doing = "looking at commits that wait for a standby";
    let rows = client.query_as_login_role(doing, sql, &[&beginning, &seconds, &WAITS_MAX]).await?;
    let wait = |row: &Row| {
        let (name, names, since): (&str, &str, Option<&str>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let since = since.unwrap_or("?");
        Ok(Wait {
            end,
            process_id: process_id(row, 3)?,
            key: format!("{name} standby {since}"),
            what: format!(
                "{end}: {} waits for a synchronous standby of the {end} to confirm a COMMIT",
                printable(name),
                end = end.as_str()
            ),
            holder: printable(&format!(
                "since {since} UTC. To end it: bring a standby of synchronous_standby_names back ({}), or set that otherwise",
                shown_literal(names)
            ))
            .into_owned(),
            ending: None,
            told_elsewhere: false,
            may_be_a_moment: false,
        })
    };
    rows.iter().map(wait).collect()
}

/// The walsenders of ours that send nothing before standbys have it: those of failover slots, from 17 on (synchronized_standby_slots).
async fn confirmation_waits(client: &SqlClient, end: ServerEnd, beginning: &str) -> Result<Vec<Wait>, SessionError> {
    let sql = "SELECT w.application_name::text, COALESCE(pg_catalog.current_setting('synchronized_standby_slots', true), ''), w.pid::bigint
               FROM pg_catalog.pg_stat_activity w
               WHERE w.wait_event = 'WaitForStandbyConfirmation' AND w.datname = pg_catalog.current_database()
                 AND w.usename = session_user AND pg_catalog.starts_with(w.application_name, $1)
               LIMIT $2";
    let rows = client
        .query_as_login_role("looking at walsenders that wait for a standby", sql, &[&beginning, &WAITS_MAX])
        .await?;
    let wait = |row: &Row| {
        let (name, slots): (&str, &str) = (row.get(0)?, row.get(1)?);
        Ok(Wait {
            end,
            process_id: process_id(row, 2)?,
            key: format!("{name} confirmation {slots}"),
            what: format!("{}: {} waits until standbys have what it is to send", end.as_str(), printable(name)),
            holder: printable(&format!(
                "as synchronized_standby_slots says. To end it: bring the standbys of these slots back ({}), or set that otherwise",
                shown_literal(slots)
            ))
            .into_owned(),
            ending: None,
            told_elsewhere: false,
            may_be_a_moment: true,
        })
    };
    rows.iter().map(wait).collect()
}

fn process_id(row: &Row, column: usize) -> Result<u32, SessionError> {
    Ok(u32::try_from(row.get::<i64>(column)?).unwrap_or(0))
}

/// Those of these processes that work again, or are idle: what they have waited for is over.
pub(crate) async fn working(client: &SqlClient, processes: &[u32]) -> Result<BTreeSet<u32>, SessionError> {
    let sql = "SELECT pid::bigint FROM pg_catalog.pg_stat_activity
               WHERE pid = ANY ($1::bigint[]) AND wait_event_type IS DISTINCT FROM 'Lock'
                 AND COALESCE(wait_event, '') NOT IN ('SyncRep', 'WaitForStandbyConfirmation')";
    let processes: Vec<i64> = processes.iter().map(|id| i64::from(*id)).collect();
    let rows = client.query_as_login_role("looking at sessions that have waited", sql, &[&processes]).await?;
    rows.iter().map(|row| process_id(row, 0)).collect()
}

/// A session of this process whose question was given up, as nobody answered in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LateSession {
    end: ServerEnd,
    process_id: u32,
}

impl LateSession {
    /// The session that met this fault, if that says that something took too long.
    pub(crate) fn of(fault: &Fault) -> Option<LateSession> {
        let (end, error) = match fault {
            Fault::Source(SourceError::Session(error)) => (ServerEnd::Source, error),
            Fault::Destination(DestinationError::Session(error)) => (ServerEnd::Destination, error),
            Fault::Source(_) | Fault::Destination(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => {
                return None;
            }
        };
        let process_id = match error {
            SessionError::Timeout { process_id, .. } => *process_id,
            // lock_not_available, query_canceled: by lock_timeout and statement_timeout.
            SessionError::Server { error, .. } if ["55P03", "57014"].contains(&error.code.as_str()) => error.process_id,
            SessionError::Server { .. }
            | SessionError::Unreachable { .. }
            | SessionError::Unwanted { .. }
            | SessionError::Tls { .. }
            | SessionError::Authentication { .. }
            | SessionError::TooOld { .. }
            | SessionError::File { .. }
            | SessionError::Lost { .. }
            | SessionError::Protocol { .. }
            | SessionError::Replaced { .. }
            | SessionError::Answer { .. } => None,
        };
        process_id.map(|process_id| LateSession { end, process_id })
    }

    /// Whether it is this session that waits.
    pub(crate) fn has_met(self, wait: &Wait) -> bool {
        (self.end, self.process_id) == (wait.end, wait.process_id)
    }
}

fn shown(statement: &str) -> String {
    let text = without_values(statement);
    match text.char_indices().nth(STATEMENT_SHOWN) {
        Some((end, _)) => format!("{} …", text.get(..end).unwrap_or_default()),
        None if text.is_empty() => "not shown to this role".to_owned(),
        None => text,
    }
}

#[cfg(test)]
impl Wait {
    /// Of this process there, ended by this statement: for tests.
    pub(crate) fn example(end: ServerEnd, process_id: u32, ending: &str) -> Wait {
        let ending = Some(ending.to_owned());
        let (key, what) = (format!("{process_id}"), format!("{}: a session waits", end.as_str()));
        Wait {
            end,
            process_id,
            key,
            what,
            holder: "held".into(),
            ending,
            told_elsewhere: false,
            may_be_a_moment: false,
        }
    }
}

#[cfg(test)]
impl LateSession {
    /// A session of this process there: for tests.
    pub(crate) fn example(end: ServerEnd, process_id: u32) -> LateSession {
        LateSession { end, process_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_once_for_each_transaction_that_is_in_the_way() {
        let wait = |what: &str, holder: &str| Wait {
            key: format!("{what} {holder}"),
            what: what.into(),
            holder: holder.into(),
            ..Wait::example(ServerEnd::Source, 1, "")
        };
        let (first, second) = (wait("writing", "process 7 since 1"), wait("writing", "process 7 since 2"));
        let mut told = ToldWaits::default();
        assert_eq!(told.new_ones(std::slice::from_ref(&first)), std::slice::from_ref(&first));
        assert_eq!(told.new_ones(std::slice::from_ref(&first)), []);
        assert_eq!(told.new_ones(&[]), []);
        // Two sessions are in the way, and one of them runs statement after statement.
        let busy = |statement: &str| Wait { holder: statement.to_owned(), ..wait("reading", "process 8 since 1") };
        let other = wait("reading", "process 9 since 1");
        assert_eq!(told.new_ones(&[busy("one"), other.clone()]), [busy("one"), other.clone()]);
        assert_eq!(told.new_ones(&[busy("two"), other]), []);
        assert_eq!(told.new_ones(std::slice::from_ref(&first)), [], "it is back");
        assert_eq!(told.new_ones(&[second.clone(), wait("staging", "x")]), [second, wait("staging", "x")]);
    }
}
