//! Staging's end: its tables are dropped a few at a time.
//!
//! Called by `staging` when it is done, and by its sweep. DROP SCHEMA … CASCADE takes about a dozen locks for each table, all in one
//! transaction: for thousands of tables more than a server has room for, and then every session that asks for a lock fails,
//! whoever it is. So only what is left goes with the schema.
//!
//! Bound: [`TABLES_AT_ONCE`] tables in a transaction. When one is interrupted, the next sweep finds the rest.

use super::error::DestinationError;
use crate::pg::{Ident, QualifiedName};
use crate::session::SqlClient;

/// About 200 locks; the smallest lock table that a server can have holds 10 for each session.
const TABLES_AT_ONCE: usize = 16;

/// Partitions go with their root.
const TABLES: &str = "
    SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.oid";

/// Drops a schema of staging and everything in it, where it is there.
pub(super) async fn drop_staging_schema(client: &SqlClient, schema: &Ident) -> Result<(), DestinationError> {
    const DOING: &str = "dropping staging";
    let tables = client.query(DOING, TABLES, &[&schema.as_str()]).await?;
    let names: Vec<String> =
        tables.iter().map(|row| QualifiedName::new(schema.as_str(), row.get::<_, &str>(0)).sql()).collect();
    for names in names.chunks(TABLES_AT_ONCE) {
        client.statement(DOING, &format!("DROP TABLE IF EXISTS {} CASCADE", names.join(", "))).await?;
    }
    client.statement(DOING, &format!("DROP SCHEMA IF EXISTS {} CASCADE", schema.sql())).await?;
    Ok(())
}
