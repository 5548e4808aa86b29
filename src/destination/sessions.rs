//! Sessions that write and may outlive their leader: recorded when they are opened, ended by the next leader.
//!
//! Called by staging, publishing and every `writer`, which record themselves, and by `preflight::leadership` after the lock is
//! taken. A crashed headwater leaves server processes in the middle of long statements (COPY, CREATE INDEX), whose locks
//! would hold up the next leader; a frozen one leaves its writing session.
//!
//! A session is known by its process and the time of its record: a server process that started later has only the same
//! number. application_name would not do: the server cuts it at 63 bytes, and every client may choose it.

use std::time::{Duration, Instant};

use super::error::DestinationError;
use crate::pg::quote_literal;
use crate::session::{PipelinedRequest, Sql, SqlClient, WritingSession};

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
    let mut request = PipelinedRequest::new();
    request.run(&record(purpose));
    session.round_trip(RECORDING, request, timeout).await?;
    Ok(())
}

/// What an earlier leader had left running.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// How many sessions were ended.
    pub ended: usize,
    /// Processes of those that were terminated, and have not ended within a few seconds. They only hold up this leader:
    /// the position lets them commit nothing once it has moved, and its next move waits for a commit that is under way.
    pub lingering: Vec<i32>,
}

/// How long a terminated session may take to end. One that does not end by then waits for its disk.
const ENDING_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Ends what an earlier leader may have left running, and waits until it is gone. Call it while leading.
///
/// # Errors
/// [`DestinationError`].
pub async fn terminate_leftovers(client: &SqlClient) -> Result<Leftovers, DestinationError> {
    let sql =
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                              WHERE n.nspname = 'headwater' AND c.relname = 'sessions')";
    if !client.query_one(ENDING, sql, &[]).await?.get::<bool>(0)? {
        return Ok(Leftovers::default());
    }
    let rows = client.query(ENDING, "SELECT process_id, recorded_at::text FROM headwater.sessions", &[]).await?;
    if rows.is_empty() {
        return Ok(Leftovers::default());
    }
    let processes: Vec<i32> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
    let recorded: Vec<String> = rows.iter().map(|row| row.get(1)).collect::<Result<_, _>>()?;
    let sql = "SELECT a.pid, pg_catalog.pg_terminate_backend(a.pid)
               FROM ROWS FROM (pg_catalog.unnest($1::int[]), pg_catalog.unnest($2::text[])) AS recorded(process_id, recorded_at)
               JOIN pg_catalog.pg_stat_activity a ON a.pid = recorded.process_id
                   AND a.backend_start <= recorded.recorded_at::timestamptz
               WHERE a.datname = pg_catalog.current_database() AND a.usename = session_user
                 AND a.pid <> pg_catalog.pg_backend_pid()";
    let ended = client.query_as_login_role(ENDING, sql, &[&processes, &recorded]).await?;
    let ended: Vec<i32> = ended.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
    let lingering = lingering(client, &ended).await?;
    // Those that have been recorded since are not of an earlier leader.
    let sql = "DELETE FROM headwater.sessions s
               USING ROWS FROM (pg_catalog.unnest($1::int[]), pg_catalog.unnest($2::text[])) AS recorded(process_id, recorded_at)
               WHERE s.process_id = recorded.process_id AND s.recorded_at = recorded.recorded_at::timestamptz";
    client.execute(ENDING, sql, &[&processes, &recorded]).await?;
    Ok(Leftovers { ended: ended.len() - lingering.len(), lingering })
}

/// Which of these processes are still there, once they have had time to end.
async fn lingering(client: &SqlClient, processes: &[i32]) -> Result<Vec<i32>, DestinationError> {
    let began = Instant::now();
    loop {
        // Every role sees the processes of all sessions.
        let sql = "SELECT pid FROM pg_catalog.pg_stat_activity WHERE pid = ANY ($1) ORDER BY pid";
        let left = client.query(ENDING, sql, &[&processes]).await?;
        if left.is_empty() || began.elapsed() > ENDING_MAX {
            return left.iter().map(|row| Ok(row.get(0)?)).collect();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
