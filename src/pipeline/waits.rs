//! What headwater's sessions at the destination wait for, said while they wait.
//!
//! Runs beside the ring for as long as the process, on a session of its own. A batch, a publish or a schema change that meets
//! somebody's lock waits up to `destination.lock_timeout`, then it is rolled back and tried again: without a word nobody would know
//! why the copy stands still. What waits for longer than [`TOLD_AFTER`] is a line in the log, once for each holder's transaction,
//! and stands in /status for as long as it waits. Waits at the source have words of their own: for a slot, and for a table.
//!
//! Bounds: one question every [`LOOK_EVERY`]; [`WAITS_MAX`] waits are told at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::pg::{printable, shown_literal, without_values};
use crate::session::{SessionError, Sql, SqlClient};
use crate::source::{RunningOwner, lock_holder};
use crate::telemetry::Telemetry;

/// A wait that is over sooner is told nobody.
const TOLD_AFTER: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(2);
const WAITS_MAX: i64 = 10;
/// So much of the holder's statement is shown.
const STATEMENT_SHOWN: usize = 300;
const QUERY_MAX: Duration = Duration::from_secs(10);

/// A session of ours that waits.
struct Wait {
    /// The wait, without what changes while it lasts: told once.
    what: String,
    /// Who holds the lock, and what ends it.
    holder: String,
}

/// Watches until it is dropped.
pub(super) async fn tell_waits(config: Arc<Config>, telemetry: Arc<Telemetry>) {
    loop {
        // A destination that cannot be asked is the ring's to report; here it only means: later.
        let _ = session(&config, &telemetry).await;
        telemetry.waits(Vec::new());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn session(config: &Config, telemetry: &Telemetry) -> Result<(), SessionError> {
    let sql = Sql { connection: config.destination.url.clone(), purpose: "monitor", timeout: QUERY_MAX };
    let client = sql.connect().await?;
    let mut told = BTreeMap::new();
    loop {
        let waits = ours(&client, &config.destination.url.application_name).await?;
        for wait in waits.iter().filter(|wait| told.get(&wait.what) != Some(&wait.holder)) {
            telemetry.warning("wait", format!("{}, {}", wait.what, wait.holder));
        }
        // What is over and comes again is told again only when somebody else, or another transaction, is in the way.
        told.extend(waits.iter().map(|wait| (wait.what.clone(), wait.holder.clone())));
        telemetry.waits(waits.into_iter().map(|Wait { what, holder }| format!("{what}, {holder}")).collect());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A lock's relation is ours to know; another session's statement needs pg_read_all_stats. A prepared transaction has no process.
const WAITS: &str = "
    SELECT w.application_name::text, blocking.pid, blocking.virtualtransaction,
           l.mode || ' on ' || CASE WHEN c.oid IS NULL THEN 'a ' || l.locktype
                                    ELSE pg_catalog.format('%I.%I', n.nspname, c.relname) END,
           COALESCE(b.usename::text, '?'), COALESCE(b.application_name, ''), COALESCE(pg_catalog.host(b.client_addr), 'this machine'),
           COALESCE(b.state, '?'), pg_catalog.to_char(b.xact_start, 'YYYY-MM-DD HH24:MI:SS'), COALESCE(b.query, '')
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

/// The sessions of ours that wait for a lock of somebody else's.
async fn ours(client: &SqlClient, application_name: &str) -> Result<Vec<Wait>, SessionError> {
    // The server cuts names at 63 bytes, and replaces what is not ASCII.
    let beginning: String = application_name.chars().take_while(char::is_ascii).take(40).collect();
    let seconds = TOLD_AFTER.as_secs_f64();
    let rows = client.query_as_login_role("looking at locks", WAITS, &[&beginning, &seconds, &WAITS_MAX]).await?;
    let mut waits = Vec::new();
    for row in rows {
        let (name, process_id, lock): (&str, i32, &str) = (row.get(0), row.get(1), row.get(3));
        let holder = if process_id == 0 {
            let Some(prepared) = lock_holder(client, None, row.get(2)).await? else { continue };
            let end = match &prepared.owner {
                RunningOwner::Prepared { gid } => format!("ROLLBACK PREPARED {};", shown_literal(gid)),
                RunningOwner::Session { process_id } => format!("SELECT pg_terminate_backend({process_id});"),
            };
            format!("held by {}. To end it: {end}", prepared.words())
        } else {
            let (role, program, from): (&str, &str, &str) = (row.get(4), row.get(5), row.get(6));
            let since = row.get::<_, Option<&str>>(8).map_or(String::new(), |at| format!(" since {at} UTC"));
            let (state, statement) = (row.get::<_, &str>(7), shown(row.get(9)));
            format!(
                "held by process {process_id} ({program}, role {role}, from {from}; {state}, in a transaction{since}). Its last \
                 statement: {statement}. To end it: SELECT pg_terminate_backend({process_id});"
            )
        };
        let what = format!("destination: {} waits for {lock}", printable(name));
        waits.push(Wait { what, holder: printable(&holder).into_owned() });
    }
    Ok(waits)
}

fn shown(statement: &str) -> String {
    let text = without_values(statement);
    match text.char_indices().nth(STATEMENT_SHOWN) {
        Some((end, _)) => format!("{} …", text.get(..end).unwrap_or_default()),
        None if text.is_empty() => "not shown to this role".to_owned(),
        None => text,
    }
}
