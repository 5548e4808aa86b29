//! headwater.open_conflict: the change that halts the service, kept where an operator can look at it.
//!
//! Written by `supervisor::attempt` when a stream ends with a conflict; read by `maintenance::conflict_rows` for the command
//! `conflict show`; removed once the stored position has passed the transaction. It exists because no log, status or
//! metric may carry a row's value, and because the change itself is otherwise only in the source's WAL, behind a slot
//! that the service is using.
//!
//! ```text
//!   conflict ──remember──▶ one row ──position > commit_lsn──▶ forgotten
//!                            │ another conflict replaces it
//!                            └──▶ headwater conflict show
//! ```
//!
//! Bound: one row, with one change. Its values are as protected as headwater.dead_letter: by the schema's privileges.

use std::time::Duration;

use super::error::{Conflict, DestinationError};
use crate::pg::{ErrorReport, Lsn, QualifiedName};
use crate::session::SqlClient;
use crate::transaction::{Change, read_letter, write_letter};

/// The conflict that halts the service.
#[derive(Clone, PartialEq, Eq)]
pub struct OpenConflict {
    /// The source transaction's commit_lsn.
    pub commit_lsn: Lsn,
    /// Its end_lsn; unknown for a transaction that arrives in parts.
    pub end_lsn: Option<Lsn>,
    /// The kind, as the metric labels it.
    pub kind: String,
    /// The violated constraint, or the column concerned.
    pub constraint: Option<String>,
    /// The table, where it is known.
    pub table: Option<QualifiedName>,
    /// What was said about it, without values.
    pub message: String,
    /// The change that failed, where it is known.
    pub change: Option<Change>,
    /// For how long the service has met it.
    pub open_for: Duration,
}

/// Keeps the change of a conflict. A conflict with the same transaction keeps the time at which it was first met.
///
/// # Errors
/// [`DestinationError`].
pub async fn remember_conflict(client: &SqlClient, conflict: &Conflict) -> Result<(), DestinationError> {
    let sql = "INSERT INTO headwater.open_conflict AS known
                   (commit_lsn, end_lsn, kind, constraint_name, schema_name, table_name, message, change)
               VALUES ($1::text::pg_lsn, $2::text::pg_lsn, $3, $4, $5, $6, $7, $8)
               ON CONFLICT (only_row) DO UPDATE SET
                   noted_at = CASE WHEN known.commit_lsn = EXCLUDED.commit_lsn THEN known.noted_at ELSE EXCLUDED.noted_at END,
                   commit_lsn = EXCLUDED.commit_lsn, end_lsn = EXCLUDED.end_lsn, kind = EXCLUDED.kind,
                   constraint_name = EXCLUDED.constraint_name, schema_name = EXCLUDED.schema_name,
                   table_name = EXCLUDED.table_name, message = EXCLUDED.message, change = EXCLUDED.change";
    let change = conflict.change.as_ref().map(|change| write_letter(std::slice::from_ref(change.get())));
    let table = conflict.table.as_ref();
    let end_lsn = conflict.end_lsn.map(|lsn| lsn.to_string());
    client
        .execute(
            "writing headwater.open_conflict",
            sql,
            &[
                &conflict.commit_lsn.to_string(),
                &end_lsn,
                &conflict.kind.as_str(),
                &conflict.constraint,
                &table.map(|table| table.schema.as_str()),
                &table.map(|table| table.name.as_str()),
                &conflict.message,
                &change,
            ],
        )
        .await?;
    Ok(())
}

/// The conflict that halts the service; `None` when the position has passed the last one.
///
/// # Errors
/// [`DestinationError`]; also when what is stored cannot be read.
pub async fn open_conflict(client: &SqlClient) -> Result<Option<OpenConflict>, DestinationError> {
    let exists = "SELECT pg_catalog.to_regclass('headwater.open_conflict') IS NOT NULL";
    if !client.query_one("looking for headwater.open_conflict", exists, &[]).await?.get::<bool>(0)? {
        return Ok(None);
    }
    let sql =
        "SELECT c.commit_lsn::text, c.end_lsn::text, c.kind, c.constraint_name, c.schema_name, c.table_name, c.message,
                      c.change, EXTRACT(epoch FROM pg_catalog.clock_timestamp() - c.noted_at)::float8
               FROM headwater.open_conflict c
               WHERE NOT EXISTS (SELECT FROM headwater.position p WHERE p.position > c.commit_lsn)";
    let Some(row) = client.query_opt("reading headwater.open_conflict", sql, &[]).await? else { return Ok(None) };
    let damaged =
        |what: String| DestinationError::Refused(ErrorReport::new(format!("headwater.open_conflict: {what}")));
    let lsn = |text: &str| text.parse::<Lsn>().map_err(|error| damaged(error.to_string()));
    let change = match row.get::<Option<&[u8]>>(7)? {
        Some(bytes) => read_letter(bytes).map_err(|error| damaged(error.to_string()))?.into_iter().next(),
        None => None,
    };
    let (schema, name): (Option<&str>, Option<&str>) = (row.get(4)?, row.get(5)?);
    Ok(Some(OpenConflict {
        commit_lsn: lsn(row.get(0)?)?,
        end_lsn: row.get::<Option<&str>>(1)?.map(lsn).transpose()?,
        kind: row.get(2)?,
        constraint: row.get(3)?,
        table: schema.zip(name).map(|(schema, name)| QualifiedName::new(schema, name)),
        message: row.get(6)?,
        change,
        // Clocks may be set back: then it is new.
        open_for: Duration::try_from_secs_f64(row.get(8)?).unwrap_or(Duration::ZERO),
    }))
}

/// Removes a conflict that the position has passed.
///
/// # Errors
/// [`DestinationError`].
pub async fn forget_passed_conflict(client: &SqlClient) -> Result<(), DestinationError> {
    let sql = "DELETE FROM headwater.open_conflict c USING headwater.position p WHERE p.position > c.commit_lsn";
    client.execute("clearing headwater.open_conflict", sql, &[]).await?;
    Ok(())
}
