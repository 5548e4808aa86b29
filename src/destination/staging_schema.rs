//! The schemas of staging: made so that nobody else can use them, marked, and dropped a few tables at a time.
//!
//! Called by `staging`, which keeps its tables in them, and by `pipeline::leading`, which sweeps what an earlier attempt has left.
//! A schema of staging has a name that begins with [`SCHEMA_PREFIX`] and carries a comment that says so, both from the transaction
//! that creates it; a schema that has only the name is somebody else's, and stays.
//!
//! DROP SCHEMA … CASCADE takes about a dozen locks for each table, all in one transaction: for thousands of tables more than a server
//! has room for, and then every session that asks for a lock fails. So only what is left goes with the schema.
//!
//! Bound: [`TABLES_AT_ONCE`] tables in a transaction. When one is interrupted, the next sweep finds the rest.

use super::error::DestinationError;
use crate::pg::{Ident, QualifiedName, quote_literal};
use crate::session::SqlClient;

/// Names of staging schemas begin so.
pub(super) const SCHEMA_PREFIX: &str = "headwater_staging_";

/// The comment of a staging schema.
const MARK: &str = "Staging of the headwater replicator: dropped with everything in it when the copy has ended";

/// An unlogged table with one row. When one server process crashes, all are restarted without a new start time; the row
/// is gone then, as all rows of unlogged tables are. An earlier version marked its staging by this table alone.
pub(super) const MARK_OF_LIFE: &str = "headwater alive";

/// About 200 locks; the smallest lock table that a server can have holds 10 for each session.
const TABLES_AT_ONCE: usize = 16;

/// Partitions go with their root. What marks the schema goes last.
const TABLES: &str = "
    SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.relname = $2, c.oid";

/// Schemas named as staging is that our role may drop, and whether headwater has made them. Of an earlier version's schemas one
/// holds the marking table, and those of tables that are moved have its name with a number behind it.
const LEFT: &str = "
    SELECT n.nspname::text, pg_catalog.pg_get_userbyid(n.nspowner)::text,
           COALESCE(pg_catalog.obj_description(n.oid, 'pg_namespace') = $2, false)
           OR EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace m ON m.oid = c.relnamespace
                      WHERE c.relname = $3 AND c.relowner = n.nspowner
                        AND m.nspname = pg_catalog.regexp_replace(n.nspname::text, '^(headwater_staging_.+)_[0-9]+$', '\\1'))
    FROM pg_catalog.pg_namespace n
    WHERE pg_catalog.starts_with(n.nspname, $1) AND pg_catalog.pg_has_role(n.nspowner, 'USAGE') ORDER BY 1";

/// The bookkeeping's schema, or one that is named as staging is.
pub(super) fn is_own_schema(schema: &Ident) -> bool {
    schema.as_str() == "headwater" || schema.as_str().starts_with(SCHEMA_PREFIX)
}

/// A schema that is named as staging is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagingSchema {
    /// Its name.
    pub name: Ident,
    /// Whose it is.
    pub owner: Ident,
}

/// What a sweep has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Staging of earlier attempts: dropped.
    pub dropped: Vec<StagingSchema>,
    /// Schemas that only have such a name: they stay.
    pub unmarked: Vec<StagingSchema>,
}

/// Creates a schema that nobody else may use, whatever ALTER DEFAULT PRIVILEGES of our role says. Without USAGE nothing in it can be
/// named: so no trigger is attached to a staging table, and none of the functions there becomes a trigger of another table.
pub(super) async fn create(client: &SqlClient, schema: &Ident) -> Result<(), DestinationError> {
    const DOING: &str = "creating the staging schema";
    let create = async {
        client.statement_behind("BEGIN", DOING, &format!("CREATE SCHEMA {}", schema.sql())).await?;
        let comment = format!("COMMENT ON SCHEMA {} IS {}", schema.sql(), quote_literal(MARK));
        client.statement(DOING, &comment).await?;
        let sql = "SELECT DISTINCT CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END
                   FROM pg_catalog.pg_namespace n CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) a
                   WHERE n.nspname = $1 AND a.grantee <> n.nspowner";
        for row in client.query(DOING, sql, &[&schema.as_str()]).await? {
            let grantee = row.get::<_, Option<&str>>(0).map_or("PUBLIC".to_owned(), |role| Ident::new(role).sql());
            client.statement(DOING, &format!("REVOKE ALL ON SCHEMA {} FROM {grantee} CASCADE", schema.sql())).await?;
        }
        client.batch(DOING, "COMMIT").await
    };
    let created = create.await;
    if created.is_err() {
        client.batch(DOING, "ROLLBACK").await?;
    }
    Ok(created?)
}

/// Drops staging of earlier attempts, a few tables at a time.
///
/// # Errors
/// [`DestinationError`].
pub async fn sweep(client: &SqlClient) -> Result<Swept, DestinationError> {
    let rows = client.query("looking for old staging", LEFT, &[&SCHEMA_PREFIX, &MARK, &MARK_OF_LIFE]).await?;
    let mut swept = Swept::default();
    for row in &rows {
        let schema =
            StagingSchema { name: Ident::new(row.get::<_, &str>(0)), owner: Ident::new(row.get::<_, &str>(1)) };
        if row.get(2) {
            drop(client, &schema.name).await?;
            swept.dropped.push(schema);
        } else {
            swept.unmarked.push(schema);
        }
    }
    Ok(swept)
}

/// Drops a schema of staging and everything in it, where it is there.
pub(super) async fn drop(client: &SqlClient, schema: &Ident) -> Result<(), DestinationError> {
    const DOING: &str = "dropping staging";
    let tables = client.query(DOING, TABLES, &[&schema.as_str(), &MARK_OF_LIFE]).await?;
    let names: Vec<String> =
        tables.iter().map(|row| QualifiedName::new(schema.as_str(), row.get::<_, &str>(0)).sql()).collect();
    for names in names.chunks(TABLES_AT_ONCE) {
        client.statement(DOING, &format!("DROP TABLE IF EXISTS {} CASCADE", names.join(", "))).await?;
    }
    client.statement(DOING, &format!("DROP SCHEMA IF EXISTS {} CASCADE", schema.sql())).await?;
    Ok(())
}
