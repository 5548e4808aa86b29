//! A proposal for a first configuration: which tables, and which privileges, after looking at both databases.
//!
//! Asked by `headwater init`; nothing is changed. Proposed is every permanent table of the source that has something to
//! identify its rows by and belongs to no extension, or those that were named, with the tables that their foreign keys
//! need.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::catalog::not_carried::NotCarried;
use crate::catalog::schema::{Identity, TableDefinition, Types};
use crate::config::ConnectionSettings;
use crate::destination::{DestinationError, Writes, named_collations, named_types, types_of as types_of_columns};
use crate::error_policy::{Fault, report};
use crate::pg::{ErrorReport, Ident, Provider, QualifiedName, TypeId};
use crate::preflight::not_carried::not_carried;
use crate::session::{Sql, SqlClient, ask_provider, describe_tables, describe_types, table_sizes};
use crate::source::SourceError;

/// A table of the proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProposedTable {
    /// Its name.
    pub name: QualifiedName,
    /// Its size, in bytes.
    pub bytes: u64,
    /// It was not named, but a table's foreign key needs it.
    pub needed_by: Option<QualifiedName>,
    /// It exists at the destination.
    pub exists: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// The tables to keep equal.
    pub tables: Vec<ProposedTable>,
    /// Tables that cannot be, and why.
    pub left_out: Vec<(QualifiedName, &'static str)>,
    /// Roles that could have code run with headwater's rights, since they own what it writes.
    pub owners: Vec<Ident>,
    /// The destination's database.
    pub destination_database: Ident,
    /// The role that will read: the URL's, unless that is a superuser.
    pub reader: Ident,
    /// Who runs the source, where it is not the operator.
    pub provider: Option<Provider>,
    /// The role that will write.
    pub writer: Ident,
    /// The reader's role exists.
    pub reader_exists: bool,
    /// The writer's role exists.
    pub writer_exists: bool,
    /// The destination lets session_replication_role be granted (15 and later).
    pub replica_grantable: bool,
    /// What belongs to the tables and will not be carried, or why it could not be listed.
    pub not_carried: Result<Vec<NotCarried>, ErrorReport>,
}

const QUERY_MAX: Duration = Duration::from_secs(60);

/// Looks at both databases; `only`: these tables, all when empty.
///
/// # Errors
/// [`Fault`]: a side does not answer, a named table does not exist, or there is none to propose.
pub(crate) async fn propose(
    source: &ConnectionSettings,
    destination: &ConnectionSettings,
    only: &[QualifiedName],
) -> Result<Proposal, Fault> {
    let sql =
        |connection: &ConnectionSettings| Sql { connection: connection.clone(), purpose: "init", timeout: QUERY_MAX };
    let there = sql(source).connect().await.map_err(SourceError::Session)?;
    let here = sql(destination).connect().await.map_err(DestinationError::Session)?;
    let names = user_tables(&there).await?;
    let definitions = describe_tables(&there, &names).await.map_err(SourceError::Session)?;
    let by_name: BTreeMap<QualifiedName, &TableDefinition> =
        definitions.iter().map(|table| (table.name(), table)).collect();
    if let Some(unknown) = only.iter().find(|name| !by_name.contains_key(name)) {
        return Err(Fault::Refused(
            ErrorReport::new(format!("table {unknown} not found at the source"))
                .detail("It does not exist, is a partition or no table, or the role lacks USAGE on its schema."),
        ));
    }
    let ChosenTables { chosen, left_out } = choose(&by_name, only);
    if chosen.is_empty() {
        return Err(Fault::Refused(ErrorReport::new("the source has no table that could be replicated")));
    }
    let wanted: Vec<QualifiedName> = chosen.keys().cloned().collect();
    let existing: BTreeSet<QualifiedName> = describe_tables(&here, &wanted)
        .await
        .map_err(DestinationError::Session)?
        .iter()
        .map(TableDefinition::name)
        .collect();
    let reader = role(&there, "headwater_reader").await.map_err(SourceError::Session)?;
    let writer = role(&here, "headwater_writer").await.map_err(DestinationError::Session)?;
    let sql =
        "SELECT pg_catalog.current_database()::text, pg_catalog.current_setting('server_version_num')::int >= 150000";
    let row = here.query_one("looking at the destination", sql, &[]).await.map_err(DestinationError::Session)?;
    let proposed = || wanted.iter().filter_map(|name| by_name.get(name).copied());
    let source_types = types_of(&there, proposed()).await?;
    let lacking = || proposed().filter(|table| !existing.contains(&table.name()));
    let columns = || lacking().flat_map(|table| &table.columns);
    let types_to_come = types_of_columns(&source_types, columns()).map_err(Fault::from)?;
    let types = named_types(&types_to_come);
    let collations = named_collations(columns(), lacking().flat_map(|table| &table.indexes), &types_to_come);
    let written = Writes { tables: wanted.clone(), types, collations, names_owners: true, ..Writes::default() };
    let mut owners = written.untrusted_owners(&here).await?;
    owners.retain(|owner| *owner != writer.0);
    let not_carried = not_carried(&there, &here, &wanted, None).await.map_err(|fault| report(&fault));
    let ids: Vec<u32> = proposed().map(|table| table.id).collect();
    let sizes = table_sizes(&there, &ids).await.map_err(SourceError::Session)?;
    Ok(Proposal {
        tables: chosen
            .into_iter()
            .map(|(name, needed_by)| ProposedTable {
                bytes: by_name.get(&name).and_then(|table| sizes.get(&table.id)).copied().unwrap_or(0),
                exists: existing.contains(&name),
                needed_by,
                name,
            })
            .collect(),
        left_out,
        owners,
        destination_database: Ident::new(row.get::<&str>(0).map_err(DestinationError::Session)?),
        reader: reader.0,
        provider: ask_provider(&there).await.map_err(SourceError::Session)?,
        writer: writer.0,
        reader_exists: reader.1,
        writer_exists: writer.1,
        replica_grantable: row.get(1).map_err(DestinationError::Session)?,
        not_carried,
    })
}

/// The tables to replicate.
struct ChosenTables {
    /// With the table whose foreign key needs it, where it was not asked for.
    chosen: BTreeMap<QualifiedName, Option<QualifiedName>>,
    /// Tables that cannot be replicated, and why.
    left_out: Vec<(QualifiedName, &'static str)>,
}

/// The tables that were asked for, or all, and those to which their foreign keys lead.
fn choose(tables: &BTreeMap<QualifiedName, &TableDefinition>, only: &[QualifiedName]) -> ChosenTables {
    let mut choice = ChosenTables { chosen: BTreeMap::new(), left_out: Vec::new() };
    for (name, table) in tables.iter().filter(|(name, _)| only.is_empty() || only.contains(name)) {
        match unfit(table) {
            Some(why) => choice.left_out.push((name.clone(), why)),
            None => {
                choice.chosen.insert(name.clone(), None);
            }
        }
    }
    let mut open: Vec<QualifiedName> = choice.chosen.keys().cloned().collect();
    while let Some(name) = open.pop() {
        for (_, target) in tables.get(&name).into_iter().flat_map(|table| table.foreign_keys()) {
            let parent = target.table();
            let fits = tables.get(&parent).is_some_and(|table| unfit(table).is_none());
            if fits && !choice.chosen.contains_key(&parent) {
                choice.chosen.insert(parent.clone(), Some(name.clone()));
                open.push(parent);
            }
        }
    }
    choice
}

/// The types of these tables' columns at the source, and what they are made of. A table that the destination lacks will be made of
/// those that it has under the same names.
async fn types_of(source: &SqlClient, tables: impl Iterator<Item = &TableDefinition>) -> Result<Types, Fault> {
    let ids: BTreeSet<TypeId> = tables.flat_map(|table| table.columns.iter().map(|column| column.type_id)).collect();
    let ids: Vec<TypeId> = ids.into_iter().collect();
    Ok(describe_types(source, &ids).await.map_err(SourceError::Session)?)
}

/// Permanent tables of users' schemas that are neither partitions nor an extension's.
async fn user_tables(client: &SqlClient) -> Result<Vec<QualifiedName>, Fault> {
    let sql = "SELECT n.nspname::text, c.relname::text
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
                 AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND n.nspname !~ '^headwater(_|$)'
                 AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'
                                 AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass)
               ORDER BY 1, 2";
    let rows = client.query("listing tables", sql, &[]).await.map_err(SourceError::Session)?;
    let names = rows.iter().map(|row| Ok(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?)));
    Ok(names.collect::<Result<_, _>>().map_err(SourceError::Session)?)
}

fn unfit(table: &TableDefinition) -> Option<&'static str> {
    match table.identity_columns() {
        Identity::Key(_) | Identity::WholeRow => None,
        Identity::None => Some("it has no primary key; REPLICA IDENTITY FULL would do, too"),
    }
}

/// The URL's role unless it is a superuser, and whether the proposed role exists.
async fn role(client: &SqlClient, otherwise: &str) -> Result<(Ident, bool), crate::session::SessionError> {
    let sql = "SELECT current_user::text, rolsuper, EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)
               FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let row = client.query_one("asking who we are", sql, &[&otherwise]).await?;
    let superuser: bool = row.get(1)?;
    Ok(if superuser { (Ident::new(otherwise), row.get(2)?) } else { (Ident::new(row.get::<&str>(0)?), true) })
}
