//! Sessions that write and may outlive their leader: recorded when they are opened, ended by the next leader.
//!
//! Called by staging, publishing and parallel apply, which record themselves, and by `pipeline::leading` after the lock is
//! taken. A crashed headwater leaves server processes in the middle of long statements (COPY, CREATE INDEX), whose locks
//! would hold up the next leader.
//!
//! A session is known by its process and the time of its record: a server process that started later has only the same
//! number. application_name would not do: the server cuts it at 63 bytes, and every client may choose it.

use std::time::Duration;

use super::error::DestinationError;
use crate::pg::quote_literal;
use crate::session::{Flight, Sql, SqlClient, WritingSession};

const RECORDING: &str = "recording a session";
const ENDING: &str = "ending an earlier leader's sessions";

fn record(purpose: &str) -> String {
    format!(
        "INSERT INTO headwater.sessions (process_id, purpose) VALUES (pg_catalog.pg_backend_pid(), {})
         ON CONFLICT (process_id) DO UPDATE SET purpose = EXCLUDED.purpose, recorded_at = pg_catalog.clock_timestamp()",
        quote_literal(purpose)
    )
}

/// Opens a session that the next leader ends, should it outlive this one.
///
/// # Errors
/// [`DestinationError`].
pub async fn connect_recorded(sql: &Sql) -> Result<SqlClient, DestinationError> {
    let client = sql.connect().await?;
    // A crash of the server that loses the record has ended the session, too.
    client.batch(RECORDING, "BEGIN; SET LOCAL synchronous_commit = off").await?;
    client.statement(RECORDING, &record(sql.purpose)).await?;
    client.batch(RECORDING, "COMMIT").await?;
    Ok(client)
}

/// Records a writing session, outside of a transaction.
pub(super) async fn record_writing(
    session: &mut WritingSession,
    purpose: &str,
    timeout: Duration,
) -> Result<(), DestinationError> {
    let mut flight = Flight::new();
    flight.run(&record(purpose));
    session.round_trip(RECORDING, flight, timeout).await?;
    Ok(())
}

/// Ends what an earlier leader may have left running. Call it while leading.
///
/// # Errors
/// [`DestinationError`].
pub async fn terminate_leftovers(client: &SqlClient) -> Result<usize, DestinationError> {
    let sql =
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                              WHERE n.nspname = 'headwater' AND c.relname = 'sessions')";
    if !client.query_one(ENDING, sql, &[]).await?.get::<_, bool>(0) {
        return Ok(0);
    }
    let rows = client.query(ENDING, "SELECT process_id, recorded_at::text FROM headwater.sessions", &[]).await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let processes: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    let recorded: Vec<String> = rows.iter().map(|row| row.get(1)).collect();
    let sql = "SELECT pg_catalog.pg_terminate_backend(a.pid)
               FROM ROWS FROM (pg_catalog.unnest($1::int[]), pg_catalog.unnest($2::text[])) AS recorded(process_id, recorded_at)
               JOIN pg_catalog.pg_stat_activity a ON a.pid = recorded.process_id
                   AND a.backend_start <= recorded.recorded_at::timestamptz
               WHERE a.datname = pg_catalog.current_database() AND a.usename = session_user
                 AND a.pid <> pg_catalog.pg_backend_pid()";
    let ended = client.query_as_login_role(ENDING, sql, &[&processes, &recorded]).await?;
    // Those that have been recorded since are not of an earlier leader.
    let sql = "DELETE FROM headwater.sessions s
               USING ROWS FROM (pg_catalog.unnest($1::int[]), pg_catalog.unnest($2::text[])) AS recorded(process_id, recorded_at)
               WHERE s.process_id = recorded.process_id AND s.recorded_at = recorded.recorded_at::timestamptz";
    client.execute(ENDING, sql, &[&processes, &recorded]).await?;
    Ok(ended.len())
}
