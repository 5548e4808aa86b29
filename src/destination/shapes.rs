//! What is remembered of the source's tables, with the position.
//!
//! Written when a snapshot is published and whenever a table's change has been followed, in the same transaction, and where a look at the
//! catalog has found other partitions (`fingerprints`); read when a stream begins, and before a change is followed. One JSON document a
//! table: a [`Shape`].

use std::collections::HashMap;

use super::error::DestinationError;
use crate::catalog::shape::Shape;
use crate::pg::{ErrorReport, RelationId, quote_literal};
use crate::session::SqlClient;

/// Reads what is remembered of all tables.
///
/// # Errors
/// [`DestinationError`].
pub async fn shapes(client: &SqlClient) -> Result<HashMap<RelationId, Shape>, DestinationError> {
    let sql = "SELECT source_id, shape::text FROM headwater.shapes";
    let rows = client.query("reading headwater.shapes", sql, &[]).await?;
    rows.iter().map(|row| Ok((RelationId(row.get(0)?), parse(row.get(1)?)?))).collect()
}

/// Reads what is remembered of those of these tables that are remembered.
///
/// # Errors
/// [`DestinationError`].
pub(super) async fn shapes_of(client: &SqlClient, ids: &[u32]) -> Result<HashMap<RelationId, Shape>, DestinationError> {
    let sql = "SELECT source_id, shape::text FROM headwater.shapes WHERE source_id = ANY ($1)";
    let rows = client.query("reading headwater.shapes", sql, &[&ids]).await?;
    rows.iter().map(|row| Ok((RelationId(row.get(0)?), parse(row.get(1)?)?))).collect()
}

/// Asks for one table's.
pub(crate) fn ask(id: RelationId) -> String {
    format!("SELECT shape::text FROM headwater.shapes WHERE source_id = {id}")
}

/// The same; nobody else writes it before the end of the transaction.
pub(crate) fn ask_locked(id: RelationId) -> String {
    format!("{} FOR UPDATE", ask(id))
}

/// Reads one.
pub(crate) fn parse(text: &str) -> Result<Shape, DestinationError> {
    serde_json::from_str(text).map_err(|_| {
        DestinationError::Refused(
            ErrorReport::new("headwater.shapes at the destination holds a value that headwater did not write")
                .hint("Restore it, or start once with --resnapshot."),
        )
    })
}

/// Remembers some, in one statement; for a transaction of the caller's.
///
/// # Errors
/// [`DestinationError`].
pub(super) async fn remember_all(
    client: &SqlClient,
    doing: &'static str,
    shapes: &[(RelationId, Shape)],
) -> Result<(), DestinationError> {
    let ids: Vec<u32> = shapes.iter().map(|(id, _)| id.0).collect();
    let texts: Vec<String> = shapes.iter().map(|(_, shape)| to_text(shape)).collect();
    let sql = "INSERT INTO headwater.shapes (source_id, shape)
               SELECT n.id, n.shape::json
               FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::text[])) AS n (id, shape)
               ON CONFLICT (source_id) DO UPDATE SET shape = EXCLUDED.shape";
    client.execute(doing, sql, &[&ids, &texts]).await?;
    Ok(())
}

fn to_text(shape: &Shape) -> String {
    serde_json::to_string(shape).expect("a shape has no keys but texts and numbers")
}

/// Remembers one.
pub(crate) fn remember(id: RelationId, shape: &Shape) -> String {
    let shape = to_text(shape);
    format!(
        "INSERT INTO headwater.shapes (source_id, shape) VALUES ({id}, {}) \
         ON CONFLICT (source_id) DO UPDATE SET shape = EXCLUDED.shape",
        quote_literal(&shape)
    )
}
