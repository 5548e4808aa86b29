//! What the destination must be like before anything is written there.
//!
//! Run by `supervisor` at every start and by `headwater check`; changes nothing. Every failed requirement is a report with
//! the statement that fixes it.

use super::error::DestinationError;
use super::unsuited::unsuited;
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::session::SqlClient;

/// The destination server, as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationServer {
    /// `server_version`
    pub version: String,
    /// The role that we are.
    pub role: Ident,
    /// The role may set session_replication_role.
    pub replica_role: bool,
    /// That can be granted (15 and later).
    pub grants_parameters: bool,
}

const DOING: &str = "looking at the destination";

/// The first `server_version_num` with GRANT … ON PARAMETER.
const GRANTS_PARAMETERS: i32 = 150_000;

impl DestinationServer {
    /// Asks the server, and lists all that an operator must fix.
    ///
    /// # Errors
    /// [`DestinationError`] when it does not answer.
    pub async fn examine(
        client: &SqlClient,
        names: &[QualifiedName],
    ) -> Result<(DestinationServer, Vec<ErrorReport>), DestinationError> {
        let sql = "SELECT pg_catalog.current_setting('server_version'), current_user::text,
                          pg_catalog.current_setting('server_version_num')::int, pg_catalog.current_database()::text,
                          pg_catalog.pg_is_in_recovery(),
                          pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
                          pg_catalog.to_regnamespace('headwater') IS NOT NULL";
        let row = client.query_one(DOING, sql, &[]).await?;
        let server = DestinationServer {
            version: row.get(0)?,
            role: Ident::new(row.get::<&str>(1)?),
            replica_role: may_set_replica_role(client).await?,
            grants_parameters: row.get::<i32>(2)? >= GRANTS_PARAMETERS,
        };
        let (role, database) = (&server.role, Ident::new(row.get::<&str>(3)?));
        let mut problems = Vec::new();
        if row.get::<bool>(4)? {
            problems.push(
                ErrorReport::new("the destination is a standby, which cannot be written")
                    .hint("Give the primary's address in destination.url."),
            );
        }
        let (may_create, bookkeeping): (bool, bool) = (row.get(5)?, row.get(6)?);
        if !may_create && !bookkeeping {
            // Staging schemas are made and dropped by every snapshot.
            problems.push(
                ErrorReport::new(format!("role {role} may not create schemas at the destination"))
                    .detail("headwater keeps its bookkeeping, and a snapshot's staging, in schemas of its own.")
                    .hint(format!("Run as the database's owner:\nGRANT CREATE ON DATABASE {database} TO {role};")),
            );
        }
        problems.extend(table_problems(client, role, names).await?);
        problems.extend(unsuited(client, names, server.replica_role).await?);
        Ok((server, problems))
    }

    /// The first thing that an operator must fix, as an error.
    ///
    /// # Errors
    /// [`DestinationError::Refused`].
    pub async fn check(client: &SqlClient, names: &[QualifiedName]) -> Result<DestinationServer, DestinationError> {
        let (server, problems) = DestinationServer::examine(client, names).await?;
        match problems.into_iter().next() {
            Some(problem) => Err(DestinationError::Refused(problem)),
            None => Ok(server),
        }
    }
}

async fn may_set_replica_role(client: &SqlClient) -> Result<bool, DestinationError> {
    let sql = "SELECT rolsuper, pg_catalog.current_setting('server_version_num')::int >= 150000
               FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let row = client.query_one(DOING, sql, &[]).await?;
    let (superuser, grantable): (bool, bool) = (row.get(0)?, row.get(1)?);
    if superuser || !grantable {
        return Ok(superuser);
    }
    let sql = "SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')";
    Ok(client.query_one(DOING, sql, &[]).await?.get(0)?)
}

/// What keeps our role from writing the tables that exist, or from creating those that do not.
async fn table_problems(
    client: &SqlClient,
    role: &Ident,
    names: &[QualifiedName],
) -> Result<Vec<ErrorReport>, DestinationError> {
    let mut problems = Vec::new();
    let sql = "SELECT t.number, c.oid IS NOT NULL,
                      ARRAY(SELECT p FROM pg_catalog.unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) AS p
                            WHERE c.oid IS NOT NULL AND NOT pg_catalog.has_table_privilege(c.oid, p)),
                      COALESCE(c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
                          AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')), false),
                      n.oid IS NOT NULL,
                      COALESCE(pg_catalog.has_schema_privilege(n.oid, 'USAGE'), true),
                      COALESCE(pg_catalog.has_schema_privilege(n.oid, 'CREATE'), true)
               FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) WITH ORDINALITY
                   AS t (schema_name, table_name, number)
               JOIN pg_catalog.pg_roles r ON r.rolname = current_user
               LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
               LEFT JOIN pg_catalog.pg_class c
                   ON c.relnamespace = n.oid AND c.relname = t.table_name AND c.relkind IN ('r', 'p')
               ORDER BY t.number";
    let names_of = |part: fn(&QualifiedName) -> &Ident| names.iter().map(|name| part(name).as_str()).collect();
    let (schemas, tables): (Vec<&str>, Vec<&str>) = (names_of(|name| &name.schema), names_of(|name| &name.name));
    let rows = client.query(DOING, sql, &[&schemas, &tables]).await?;
    let mut schemas = Vec::new();
    for (name, row) in names.iter().zip(&rows) {
        let missing: Vec<String> = row.get(2)?;
        let (exists, hidden, usage, create): (bool, bool, bool, bool) =
            (row.get(1)?, row.get(3)?, row.get(5)?, row.get(6)?);
        if !missing.is_empty() {
            let list = missing.join(", ");
            problems.push(
                ErrorReport::new(format!("role {role} lacks {list} on table {name} at the destination"))
                    .hint(format!("Run at the destination as the table's owner:\nGRANT {list} ON {name} TO {role};")),
            );
        }
        if hidden {
            problems.push(
                ErrorReport::new(format!("row-level security of table {name} at the destination binds role {role}"))
                    .detail("Rows that a policy hides could be neither found nor written.")
                    .hint(format!("Run at the destination as a superuser:\nALTER ROLE {role} BYPASSRLS;")),
            );
        }
        let needed = if exists { "USAGE" } else { "USAGE, CREATE" };
        if (!usage || !exists && !create) && !schemas.contains(&&name.schema) {
            schemas.push(&name.schema);
            problems.push(
                ErrorReport::new(format!("role {role} may not use schema {} at the destination", name.schema))
                    .detail(format!("It needs {needed} for table {name}."))
                    .hint(format!(
                        "Run at the destination as its owner:\nGRANT {needed} ON SCHEMA {} TO {role};",
                        name.schema
                    )),
            );
        }
    }
    Ok(problems)
}
