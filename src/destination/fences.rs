//! Requests for a fence in the bookkeeping, and the destination's half of one.
//!
//! `verify` asks and the leader answers. A notification wakes the leader; both poll as well, because neither may hold a session in a
//! waiting statement, and a notification does not outlive a reconnect.
//!
//! ```text
//! asks:    ask ─▶ beat … beat ─▶ (made) import both snapshots ─▶ withdraw
//! leads:   next ─▶ make the fence ─▶ made ─▶ is_wanted … until withdrawn or its heartbeat stops ─▶ let go
//! ```
//!
//! A crash on either side leaves a row whose heartbeat grows old: the leader drops it.

use std::time::Duration;

use super::bookkeeping::{OutdatedFunction, TableRecord, outdated_functions, table_records};
use super::error::DestinationError;
use crate::comparison::Key;
use crate::pg::{ErrorReport, Lsn, QualifiedName};
use crate::session::{SessionError, Sql, SqlClient};

const SCHEMA: &str = concat!(include_str!("../../sql/fences.sql"), include_str!("../../sql/withhold_grants.sql"));
const READING: &str = include_str!("../../sql/reading.sql");

/// A request whose heartbeat is older belongs to nobody.
const HEARTBEAT_MAX: Duration = Duration::from_secs(10);

/// What a fence is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceKind {
    /// Both snapshots are handed over.
    Verify,
    /// The leader reconciles some keys at the fence.
    Repair,
}

impl FenceKind {
    const fn as_str(self) -> &'static str {
        match self {
            FenceKind::Verify => "verify",
            FenceKind::Repair => "repair",
        }
    }
}

/// What a repair wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairOutcome {
    /// Rows that the source does not have.
    pub deleted: u64,
    /// Rows that differed.
    pub updated: u64,
    /// Rows that were missing.
    pub inserted: u64,
}

/// The leader's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceAnswer {
    /// Nothing yet; why the last attempt failed, if one did.
    Waiting(Option<ErrorReport>),
    /// Both snapshots may be imported.
    Made(MadeFence),
    /// The keys are reconciled.
    Repaired(RepairOutcome),
    /// It cannot be done.
    Refused(ErrorReport),
    /// The row is gone: our heartbeat was late.
    Dropped,
}

/// A fence, as its makers name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeFence {
    /// At the source, for SET TRANSACTION SNAPSHOT.
    pub source_snapshot: String,
    /// At the destination.
    pub destination_snapshot: String,
    /// Both show exactly the transactions with commit_lsn before this.
    pub consistent_point: Lsn,
}

const DOING: &str = "asking for a fence";

/// Creates the tables of requests where they are missing.
///
/// # Errors
/// [`DestinationError`].
pub async fn ensure_fence_requests(client: &SqlClient) -> Result<(), DestinationError> {
    let sql = "SELECT pg_catalog.to_regclass('headwater.fence_keys_request') IS NOT NULL
                      AND EXISTS (SELECT FROM pg_catalog.pg_class WHERE relreplident = 'f'
                                  AND oid = pg_catalog.to_regclass('headwater.fence_keys'))";
    if client.query_one(DOING, sql, &[]).await?.get(0)? {
        return Ok(());
    }
    let created = client.batch(DOING, SCHEMA).await;
    // Somebody else may have created them in the same moment.
    match created {
        Err(error) if !client.query_one(DOING, sql, &[]).await?.get::<bool>(0)? => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Creates the functions by which applications read their own writes, and replaces those of an earlier version; grants on them stay.
/// Returns what to say of those that belong to another role and stay as they are.
///
/// # Errors
/// [`DestinationError`].
pub async fn ensure_reading(client: &SqlClient) -> Result<Option<ErrorReport>, DestinationError> {
    let doing = "creating headwater.wait_for";
    let outdated = outdated_functions(client, doing, READING).await?;
    if let Some(function) = outdated.iter().find(|function| !function.is_replaceable) {
        let OutdatedFunction { name, owner, .. } = function;
        let alter = |function: &OutdatedFunction| {
            format!("ALTER FUNCTION {} SET search_path = pg_catalog, pg_temp;", function.name)
        };
        let hint = outdated.iter().map(alter).collect::<Vec<_>>().join("\n");
        return Ok(Some(
            ErrorReport::new(format!(
                "cannot replace function {name} of an earlier version: it belongs to role {owner}"
            ))
            .detail("Roles that may call it can have code of theirs run with the rights of its owner.")
            .hint(format!("Run as role {owner}:\n{hint}")),
        ));
    }
    let sql = "SELECT pg_catalog.to_regprocedure('headwater.wait_for(pg_lsn, interval)') IS NOT NULL";
    if !outdated.is_empty() || !client.query_one(doing, sql, &[]).await?.get::<bool>(0)? {
        client.batch(doing, READING).await?;
    }
    Ok(None)
}

/// Asks for a fence; for a repair, of these keys.
///
/// # Errors
/// [`DestinationError`].
pub async fn ask_for_fence(
    client: &SqlClient,
    id: &str,
    kind: FenceKind,
    keys: &[(QualifiedName, Vec<Key>)],
) -> Result<(), DestinationError> {
    client.batch(DOING, "BEGIN").await?;
    let asked = async {
        let sql = "INSERT INTO headwater.fence_requests (id, kind) VALUES ($1, $2)";
        client.execute(DOING, sql, &[&id, &kind.as_str()]).await?;
        let sql = "INSERT INTO headwater.fence_keys (request, schema_name, table_name, key)
                   SELECT $1, $2, $3, ARRAY(SELECT pg_catalog.jsonb_array_elements_text(k))
                   FROM pg_catalog.jsonb_array_elements($4::text::jsonb) AS k";
        for (table, keys) in keys {
            for keys in keys.chunks(1000) {
                let json = serde_json::to_string(keys).expect("texts can be written as JSON");
                client.execute(DOING, sql, &[&id, &table.schema.as_str(), &table.name.as_str(), &json]).await?;
            }
        }
        client.notify().await?;
        client.batch(DOING, "COMMIT").await
    };
    let asked = asked.await;
    if asked.is_err() {
        let _ = client.batch(DOING, "ROLLBACK").await;
    }
    Ok(asked?)
}

/// Shows that somebody still waits, and reads the answer.
///
/// # Errors
/// [`DestinationError`].
pub async fn beat(client: &SqlClient, id: &str) -> Result<FenceAnswer, DestinationError> {
    let sql = "UPDATE headwater.fence_requests SET heartbeat_at = pg_catalog.clock_timestamp() WHERE id = $1
               RETURNING state, source_snapshot, destination_snapshot, consistent_point::text, message, detail, hint,
                         rows_deleted, rows_updated, rows_inserted";
    let Some(row) = client.query_opt(DOING, sql, &[&id]).await? else { return Ok(FenceAnswer::Dropped) };
    let text = |at: usize| row.get::<Option<String>>(at);
    let (message, detail, hint) = (text(4)?, text(5)?, text(6)?);
    let report = message.map(|message| ErrorReport { message, detail, hint });
    Ok(match (row.get::<&str>(0)?, text(1)?, text(2)?, text(3)?.and_then(|point| point.parse().ok())) {
        ("made", Some(source_snapshot), Some(destination_snapshot), Some(consistent_point)) => {
            FenceAnswer::Made(MadeFence { source_snapshot, destination_snapshot, consistent_point })
        }
        ("done", ..) => {
            let count =
                |at: usize| Ok::<_, SessionError>(u64::try_from(row.get::<Option<i64>>(at)?.unwrap_or(0)).unwrap_or(0));
            FenceAnswer::Repaired(RepairOutcome { deleted: count(7)?, updated: count(8)?, inserted: count(9)? })
        }
        ("refused", ..) => FenceAnswer::Refused(report.unwrap_or_else(|| ErrorReport::new("the fence was refused"))),
        _ => FenceAnswer::Waiting(report),
    })
}

/// The request is not needed any more.
///
/// # Errors
/// [`DestinationError`].
pub async fn withdraw_fence(client: &SqlClient, id: &str) -> Result<(), DestinationError> {
    client.execute(DOING, "DELETE FROM headwater.fence_requests WHERE id = $1", &[&id]).await?;
    Ok(())
}

/// The oldest request that somebody waits for; those that nobody waits for are dropped.
///
/// # Errors
/// [`DestinationError`].
pub async fn next_fence_request(client: &SqlClient) -> Result<Option<(String, FenceKind)>, DestinationError> {
    let sql = format!(
        "SELECT id, kind, heartbeat_at < pg_catalog.clock_timestamp() - interval '{} s'
         FROM headwater.fence_requests WHERE state = 'asked' OR heartbeat_at < pg_catalog.clock_timestamp() - interval '{} s'
         ORDER BY asked_at",
        HEARTBEAT_MAX.as_secs(),
        HEARTBEAT_MAX.as_secs()
    );
    let mut next = None;
    for row in client.query("looking for requests of a fence", &sql, &[]).await? {
        let id: String = row.get(0)?;
        if row.get(2)? {
            withdraw_fence(client, &id).await?;
        } else if next.is_none() {
            let kind = if row.get::<&str>(1)? == "repair" { FenceKind::Repair } else { FenceKind::Verify };
            next = Some((id, kind));
        }
    }
    Ok(next)
}

/// Whether somebody still waits for a request.
///
/// # Errors
/// [`DestinationError`].
pub async fn is_fence_wanted(client: &SqlClient, id: &str) -> Result<bool, DestinationError> {
    let sql = format!(
        "SELECT FROM headwater.fence_requests
         WHERE id = $1 AND heartbeat_at >= pg_catalog.clock_timestamp() - interval '{} s'",
        HEARTBEAT_MAX.as_secs()
    );
    Ok(client.query_opt("looking at a request of a fence", &sql, &[&id]).await?.is_some())
}

/// The keys that a repair is to reconcile, by table.
///
/// # Errors
/// [`DestinationError`].
pub async fn keys_of_repair(client: &SqlClient, id: &str) -> Result<Vec<(QualifiedName, Vec<Key>)>, DestinationError> {
    let sql = "SELECT schema_name, table_name, key FROM headwater.fence_keys
               -- As they are asked for: no other array can be read.
               WHERE request = $1 AND pg_catalog.array_ndims(key) = 1 AND pg_catalog.array_position(key, NULL) IS NULL
               ORDER BY schema_name, table_name, key";
    let mut tables: Vec<(QualifiedName, Vec<Key>)> = Vec::new();
    for row in client.query("reading the keys of a repair", sql, &[&id]).await? {
        let name = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
        let key: Key = row.get(2)?;
        match tables.last_mut() {
            Some((last, keys)) if *last == name => keys.push(key),
            Some(_) | None => tables.push((name, vec![key])),
        }
    }
    Ok(tables)
}

/// Hands a fence over.
///
/// # Errors
/// [`DestinationError`].
pub async fn answer_made(client: &SqlClient, id: &str, fence: &MadeFence) -> Result<(), DestinationError> {
    let sql = "UPDATE headwater.fence_requests SET state = 'made', source_snapshot = $2, destination_snapshot = $3,
                   consistent_point = $4::text::pg_lsn WHERE id = $1";
    let point = fence.consistent_point.to_string();
    client.execute(DOING, sql, &[&id, &fence.source_snapshot, &fence.destination_snapshot, &point]).await?;
    Ok(())
}

/// Says what a repair wrote.
///
/// # Errors
/// [`DestinationError`].
pub async fn answer_repaired(client: &SqlClient, id: &str, outcome: RepairOutcome) -> Result<(), DestinationError> {
    let sql =
        "UPDATE headwater.fence_requests SET state = 'done', rows_deleted = $2, rows_updated = $3, rows_inserted = $4
               WHERE id = $1";
    let count = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
    let RepairOutcome { deleted, updated, inserted } = outcome;
    client.execute(DOING, sql, &[&id, &count(deleted), &count(updated), &count(inserted)]).await?;
    Ok(())
}

/// Says why an attempt failed; `refused`: no other attempt is worth making.
///
/// # Errors
/// [`DestinationError`].
pub async fn answer_failed(
    client: &SqlClient,
    id: &str,
    report: &ErrorReport,
    refused: bool,
) -> Result<(), DestinationError> {
    let sql = "UPDATE headwater.fence_requests SET state = $2, message = $3, detail = $4, hint = $5 WHERE id = $1";
    let state = if refused { "refused" } else { "asked" };
    client.execute(DOING, sql, &[&id, &state, &report.message, &report.detail, &report.hint]).await?;
    Ok(())
}

/// Reports to the requester that the service is at work on this request, and to the others that theirs is in line.
///
/// # Errors
/// [`DestinationError`].
pub async fn take_up_fence_request(client: &SqlClient, id: &str) -> Result<(), DestinationError> {
    let sql = "UPDATE headwater.fence_requests
               SET message = CASE WHEN id = $1 THEN 'the service makes a fence' ELSE 'the service makes a fence for another request' END
               WHERE state = 'asked' AND message IS NULL";
    client.execute(DOING, sql, &[&id]).await?;
    Ok(())
}

/// Refuses every request that waits: no fence can be made for now, as `report` says.
///
/// # Errors
/// [`DestinationError`].
pub async fn refuse_fence_requests(client: &SqlClient, report: &ErrorReport) -> Result<(), DestinationError> {
    let sql = "SELECT pg_catalog.to_regclass('headwater.fence_requests') IS NOT NULL";
    if !client.query_one(DOING, sql, &[]).await?.get::<bool>(0)? {
        return Ok(());
    }
    let sql = "UPDATE headwater.fence_requests SET state = 'refused', message = $1, detail = $2, hint = $3
               WHERE state = 'asked'";
    client.execute(DOING, sql, &[&report.message, &report.detail, &report.hint]).await?;
    Ok(())
}

/// The session that keeps the destination's half of a fence.
pub struct HeldDestination {
    client: SqlClient,
    /// What SET TRANSACTION SNAPSHOT names.
    pub snapshot_name: String,
    /// The position that the snapshot shows; `None` before the first one.
    pub position: Option<Lsn>,
    /// What is followed in the state that the snapshot shows.
    pub tables: Vec<TableRecord>,
}

/// Takes a snapshot of the destination as it stands, or imports one, and exports it.
///
/// # Errors
/// [`DestinationError`].
pub async fn hold_destination(sql: &Sql, imported: Option<&str>) -> Result<HeldDestination, DestinationError> {
    let doing = "exporting a snapshot of the destination";
    let client = sql.connect().await?;
    match imported {
        Some(name) => client.import_snapshot(name).await?,
        None => client.batch(doing, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?,
    }
    let row = client.query_one(doing, "SELECT pg_catalog.pg_export_snapshot()", &[]).await?;
    let snapshot_name = row.get(0)?;
    let row = client.query_opt(doing, "SELECT position::text FROM headwater.position", &[]).await?;
    let position = row.map(|row| row.parse(0)).transpose()?;
    let tables = table_records(&client).await?;
    Ok(HeldDestination { client, snapshot_name, position, tables })
}

impl HeldDestination {
    /// Whether the snapshot is still held.
    pub fn is_held(&self) -> bool {
        !self.client.is_closed()
    }
}
