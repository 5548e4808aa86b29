//! Why a transaction that the stream has brought is not visible at the source yet, in words.
//!
//! The walsender sends a commit before its session has waited for a synchronous standby, and until then nobody sees it. Asked by those
//! that wait for that transaction: the tracker of relations, and the look that a mark of a schema change asks for.
//!
//! A role that may not read statistics learns that there are such sessions, and not which: then only the cause is named.

use crate::pg::{Ident, printable, shown_literal, without_values};
use crate::session::{SessionError, SqlClient};

/// So much of the statement is shown.
const STATEMENT_SHOWN: usize = 200;

/// Who holds it back, since when, and what ends that: `its COMMIT waits … since …. To end it: …`.
///
/// # Errors
/// [`SessionError`].
pub async fn held_back_words(client: &SqlClient, transaction: u32) -> Result<String, SessionError> {
    // A session keeps its xid while its COMMIT waits; that of a COMMIT PREPARED has none.
    let sql = "SELECT a.pid, a.usename::text, COALESCE(a.application_name, ''), COALESCE(a.query, ''),
                      pg_catalog.to_char(a.query_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
               FROM pg_catalog.pg_stat_activity a
               WHERE a.wait_event = 'SyncRep' AND (a.backend_xid::text = $1 OR a.backend_xid IS NULL)
               ORDER BY a.backend_xid IS NULL, a.query_start LIMIT 1";
    let doing = "looking for the session of a transaction";
    let row = client.query_opt(doing, sql, &[&transaction.to_string()]).await?;
    let names = "SELECT pg_catalog.current_setting('synchronous_standby_names')";
    let names: String = client.query_one(doing, names, &[]).await?.get(0)?;
    let end = format!(
        "To end it: bring a standby of synchronous_standby_names back ({}), or set that otherwise at the source",
        shown_literal(&names)
    );
    let Some(row) = row else { return Ok(format!("its COMMIT waits, as for a synchronous standby. {end}")) };
    let (process_id, role, program): (i32, &str, &str) =
        (row.get(0)?, row.get::<Option<&str>>(1)?.unwrap_or("?"), row.get(2)?);
    let since = row.get::<Option<&str>>(4)?.unwrap_or("?");
    let statement: String = printable(&without_values(row.get(3)?)).chars().take(STATEMENT_SHOWN).collect();
    Ok(format!(
        "its COMMIT waits for a synchronous standby, in process {process_id} of role {}, since {since} UTC. {end}. \
         application_name: {}; statement: {statement}",
        Ident::new(role),
        shown_literal(program)
    ))
}
