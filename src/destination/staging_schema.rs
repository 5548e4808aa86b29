//! The schemas of staging: made so that nobody else can use them or what is in them, marked, and dropped a few tables at a time.
//!
//! Called by `staging`, `compare` and `publish`, which create tables and functions in them, and by `preflight::leadership`, which sweeps
//! what an earlier attempt has left.
//! A schema of staging has a name that begins with [`SCHEMA_PREFIX`] and carries a comment that says so, both from the transaction
//! that creates it; a schema that has only the name is somebody else's, and stays.
//!
//! DROP SCHEMA … CASCADE takes about a dozen locks for each table, all in one transaction: for thousands of tables more than a server
//! has room for, and then every session that asks for a lock fails. So only what is left goes with the schema.
//!
//! Bound: [`TABLES_AT_ONCE`] tables in a transaction. When one is interrupted, the next sweep finds the rest.

use std::future::Future;

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

/// What takes every privilege of others on tables of staging, and on their sequences, away.
const REVOKE_TABLE: &str = "
    SELECT pg_catalog.format('REVOKE ALL ON %s %I.%I FROM %s CASCADE', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                             n.nspname, c.relname,
                             CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END)
    FROM (SELECT pg_catalog.to_regclass(t.name)::oid FROM pg_catalog.unnest($1::text[]) AS t (name)
          UNION ALL
          SELECT d.objid FROM pg_catalog.unnest($1::text[]) AS t (name) JOIN pg_catalog.pg_depend d
          ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = pg_catalog.to_regclass(t.name)
            AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i')) AS made(id)
    JOIN pg_catalog.pg_class c ON c.oid = made.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
    WHERE a.grantee <> c.relowner GROUP BY c.relkind, n.nspname, c.relname, a.grantee";

/// The same of the functions in a schema of staging; PUBLIC has EXECUTE without a grant.
const REVOKE_FUNCTIONS: &str = "
    SELECT pg_catalog.format('REVOKE ALL ON FUNCTION %I.%I(%s) FROM %s CASCADE', n.nspname, p.proname,
                             pg_catalog.pg_get_function_identity_arguments(p.oid),
                             CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END)
    FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_proc p ON p.pronamespace = n.oid
    CROSS JOIN LATERAL pg_catalog.aclexplode(COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
    WHERE n.nspname = $1 AND a.grantee <> p.proowner";

/// Creates a table in a schema of staging, with all that belongs to it, so that nobody else ever has a privilege on it.
///
/// A schema without USAGE for others does not suffice: a member of pg_read_all_data has USAGE of every schema, and what ALTER DEFAULT
/// PRIVILEGES of our role grants could be TRIGGER.
pub(super) async fn create_table<S: AsRef<str>>(
    client: &SqlClient,
    doing: &'static str,
    table: &QualifiedName,
    statements: &[S],
) -> Result<(), DestinationError> {
    in_transaction(client, doing, statements, withhold(client, doing, &[table])).await
}

/// A table of staging that is to be created.
pub(super) struct NewTable {
    pub(super) name: QualifiedName,
    /// Somebody else's table that is read for it.
    pub(super) reads: Option<QualifiedName>,
    /// What creates it, and all that belongs to it.
    pub(super) statements: Vec<String>,
}

/// The same for any number of tables, some in each transaction. None waits for a table that is read while it holds another one: those
/// that cannot be locked at once are created one by one.
pub(super) async fn create_tables(
    client: &SqlClient,
    doing: &'static str,
    tables: &[NewTable],
) -> Result<(), DestinationError> {
    for tables in tables.chunks(TABLES_AT_ONCE) {
        let read: Vec<String> =
            tables.iter().filter_map(|table| Some(format!("ONLY {}", table.reads.as_ref()?.sql()))).collect();
        let lock = (!read.is_empty()).then(|| format!("LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT", read.join(", ")));
        let statements: Vec<&String> = lock.iter().chain(tables.iter().flat_map(|table| &table.statements)).collect();
        let names: Vec<&QualifiedName> = tables.iter().map(|table| &table.name).collect();
        match in_transaction(client, doing, &statements, withhold(client, doing, &names)).await {
            Err(DestinationError::Session(error)) if lock.is_some() && error.server().is_some() => {
                for table in tables {
                    create_table(client, doing, &table.name, &table.statements).await?;
                }
            }
            created => created?,
        }
    }
    Ok(())
}

/// Creates a function in a schema of staging that nobody else may make a trigger of a table of his.
pub(super) async fn create_function(
    client: &SqlClient,
    doing: &'static str,
    schema: &Ident,
    statement: &str,
) -> Result<(), DestinationError> {
    let withhold = async {
        for row in client.query(doing, REVOKE_FUNCTIONS, &[&schema.as_str()]).await? {
            client.statement(doing, row.get(0)?).await?;
        }
        Ok(())
    };
    in_transaction(client, doing, &[statement], withhold).await
}

/// Takes every privilege of others on tables of staging away that the current transaction has created.
pub(super) async fn withhold(
    client: &SqlClient,
    doing: &'static str,
    tables: &[&QualifiedName],
) -> Result<(), DestinationError> {
    let names: Vec<String> = tables.iter().map(|table| table.sql()).collect();
    let rows = client.query(doing, REVOKE_TABLE, &[&names]).await?;
    let revokes = rows.iter().map(|row| row.get::<&str>(0)).collect::<Result<Vec<_>, _>>()?;
    client.execute_each(doing, &revokes).await?;
    Ok(())
}

async fn in_transaction<S: AsRef<str>>(
    client: &SqlClient,
    doing: &'static str,
    statements: &[S],
    then: impl Future<Output = Result<(), DestinationError>>,
) -> Result<(), DestinationError> {
    let create = async {
        // Nothing is sent behind it before it is answered: without it each statement would be a transaction.
        client.batch(doing, "BEGIN").await?;
        client.execute_each(doing, statements).await?;
        then.await?;
        Ok(client.batch(doing, "COMMIT").await?)
    };
    let created = create.await;
    if created.is_err() {
        client.batch(doing, "ROLLBACK").await?;
    }
    created
}

/// Creates a schema that nobody else may use, whatever ALTER DEFAULT PRIVILEGES of our role says.
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
            let grantee = row.get::<Option<&str>>(0)?.map_or("PUBLIC".to_owned(), |role| Ident::new(role).sql());
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
        let schema = StagingSchema { name: Ident::new(row.get::<&str>(0)?), owner: Ident::new(row.get::<&str>(1)?) };
        if row.get(2)? {
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
    let names = tables
        .iter()
        .map(|row| row.get::<&str>(0).map(|name| QualifiedName::new(schema.as_str(), name).sql()))
        .collect::<Result<Vec<_>, _>>()?;
    for names in names.chunks(TABLES_AT_ONCE) {
        client.statement(DOING, &format!("DROP TABLE IF EXISTS {} CASCADE", names.join(", "))).await?;
    }
    client.statement(DOING, &format!("DROP SCHEMA IF EXISTS {} CASCADE", schema.sql())).await?;
    Ok(())
}
