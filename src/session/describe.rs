//! Reads the description of tables and types from a server.
//!
//! The same questions on both ends, so they stand here, under `source` and `destination`, which never import each
//! other. The SQL is in sql/describe_tables.sql and sql/describe_types.sql and answers with one JSON object a row,
//! which keeps one text for PostgreSQL 14 to 18; what comes out is `plan::schema`'s plain data. A server that answers
//! with something else is refused, whatever it is.

use super::error::SessionError;
use super::sql::SqlClient;
use crate::pg::{QualifiedName, TypeId};
use crate::plan::schema::{TableDefinition, TypeDefinition, Types};

const TABLES: &str = include_str!("../../sql/describe_tables.sql");
const TYPES: &str = include_str!("../../sql/describe_types.sql");

/// The tables among `names` that exist and that the role may look up, in the order of their names.
///
/// # Errors
/// [`SessionError`].
pub async fn describe_tables(
    client: &SqlClient,
    names: &[QualifiedName],
) -> Result<Vec<TableDefinition>, SessionError> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    describe(client, "describing tables", TABLES, &[&schemas, &tables]).await
}

/// The types with these OIDs and all that they are made of.
///
/// # Errors
/// [`SessionError`].
pub async fn describe_types(client: &SqlClient, ids: &[TypeId]) -> Result<Types, SessionError> {
    let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
    let types: Vec<TypeDefinition> = describe(client, "describing types", TYPES, &[&ids]).await?;
    Ok(types.into_iter().map(|definition| (definition.id, definition)).collect())
}

async fn describe<T: serde::de::DeserializeOwned>(
    client: &SqlClient,
    doing: &'static str,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Vec<T>, SessionError> {
    let rows = client.query(doing, sql, parameters).await?;
    rows.iter()
        .map(|row| {
            let text: &str = row.try_get(0).map_err(|_| SessionError::protocol(doing, "not a text"))?;
            serde_json::from_str(text).map_err(|error| SessionError::protocol(doing, error.to_string()))
        })
        .collect()
}
