//! The source's tables of the set, and what the publication sends of each.
//!
//! Read by `supervisor` at every start. A configured table that does not exist is an operator's matter; so is one that
//! cannot be published, or that policies would show us only in part.

use std::collections::BTreeMap;

use super::error::SourceError;
use super::marks::Marks;
use super::snapshot::explain_lock;
use crate::catalog::schema::{ColumnDefinition, Partition, TableDefinition, TableKind, Types};
use crate::catalog::table_order::{ForeignKeyOrder, foreign_key_order};
use crate::config::nearest;
use crate::pg::{ErrorReport, Ident, QualifiedName, TypeId};
use crate::session::{SqlClient, describe_tables, describe_types, table_sizes};
use crate::transaction::TableSet;

/// A table of the set.
#[derive(Clone, Debug)]
pub struct SourceTable {
    /// What it is.
    pub definition: TableDefinition,
    /// The columns that the publication sends.
    pub columns: Vec<Ident>,
    /// The rows that the publication sends, as SQL; `None` for all.
    pub row_filter: Option<String>,
}

impl SourceTable {
    /// The definitions of the columns that are sent.
    pub fn published(&self) -> Vec<&ColumnDefinition> {
        self.definition.columns.iter().filter(|column| self.columns.contains(&column.name)).collect()
    }
}

/// All tables of the set, parents first.
#[derive(Clone, Debug)]
pub struct SourceCatalog {
    /// The tables.
    pub tables: Vec<SourceTable>,
    /// Their types.
    pub types: Types,
    /// The groups of tables whose foreign keys form a circle.
    pub cycles: Vec<Vec<QualifiedName>>,
    /// What tells that one of them was altered since.
    pub marks: Marks,
}

impl SourceCatalog {
    /// Reads the tables and checks that they can be copied and followed by our role.
    ///
    /// # Errors
    /// [`SourceError::Refused`] with the first thing that keeps a table from being read: see [`SourceCatalog::examine`].
    pub async fn read(client: &SqlClient, names: &[QualifiedName]) -> Result<SourceCatalog, SourceError> {
        let (catalog, problems) = SourceCatalog::examine(client, names).await?;
        match problems.into_iter().next() {
            Some(problem) => Err(SourceError::Refused(problem)),
            None => Ok(catalog),
        }
    }

    /// The same, listing all that an operator must fix: tables that are missing, not tables, not permanent, not readable, or
    /// under row-level security. Those that exist are in the catalog all the same.
    ///
    /// # Errors
    /// [`SourceError`] when the server does not answer, or a table is locked.
    pub async fn examine(
        client: &SqlClient,
        names: &[QualifiedName],
    ) -> Result<(SourceCatalog, Vec<ErrorReport>), SourceError> {
        // Before the tables: what changes in between is then taken for changed, not for known.
        let marks = Marks::read(client, names).await?;
        // Servers from 17 on print no expression of a table that a session holds in ACCESS EXCLUSIVE mode.
        let mut definitions = match describe_tables(client, names).await {
            Ok(definitions) => definitions,
            Err(error) => return Err(explain_lock(client, error, names).await),
        };
        let mut problems = Vec::new();
        let missing: Vec<String> = names
            .iter()
            .filter(|name| !definitions.iter().any(|table| table.name() == **name))
            .map(QualifiedName::to_string)
            .collect();
        if !missing.is_empty() {
            problems.push(not_found(&missing, &names_of_tables(client).await?));
        }
        problems.extend(definitions.iter().filter_map(kind_problem));
        definitions.retain(|table| matches!(table.kind, TableKind::Ordinary | TableKind::Partitioned));
        problems.extend(read_problems(client, &definitions).await?);
        let mut ids: Vec<TypeId> =
            definitions.iter().flat_map(|table| table.columns.iter().map(|column| column.type_id)).collect();
        ids.sort_unstable();
        ids.dedup();
        let types = describe_types(client, &ids).await?;
        let references =
            definitions.iter().flat_map(|table| table.foreign_keys().map(|(_, target)| (table.name(), target.table())));
        let ForeignKeyOrder { tables: order, cycles } =
            foreign_key_order(definitions.iter().map(TableDefinition::name), references);
        let mut by_name: BTreeMap<QualifiedName, TableDefinition> =
            definitions.into_iter().map(|table| (table.name(), table)).collect();
        let tables = order
            .iter()
            .filter_map(|name| by_name.remove(name))
            .map(|definition| SourceTable {
                columns: definition
                    .columns
                    .iter()
                    .filter(|column| column.generated.is_none())
                    .map(|column| column.name.clone())
                    .collect(),
                definition,
                row_filter: None,
            })
            .collect();
        Ok((SourceCatalog { tables, types, cycles, marks }, problems))
    }

    /// Asks for the sizes of the tables as they are now, in place of those that VACUUM and ANALYZE have counted. Waits for locks.
    ///
    /// # Errors
    /// [`SourceError::Refused`] names the session that holds a table for longer than the session's `lock_timeout`.
    pub async fn measure(&mut self, client: &SqlClient) -> Result<(), SourceError> {
        let ids: Vec<u32> = self.tables.iter().map(|table| table.definition.id).collect();
        let sizes = match table_sizes(client, &ids).await {
            Ok(sizes) => sizes,
            Err(error) => {
                let names: Vec<QualifiedName> = self.tables.iter().map(|table| table.definition.name()).collect();
                return Err(explain_lock(client, error, &names).await);
            }
        };
        for table in &mut self.tables {
            table.definition.bytes = sizes.get(&table.definition.id).copied().unwrap_or(table.definition.bytes);
        }
        Ok(())
    }

    /// What all tables take on disk.
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.definition.bytes).sum()
    }

    /// The tables by their OIDs, for the assembler.
    pub fn table_set(&self) -> TableSet {
        TableSet::new(self.tables.iter().map(|table| (table.definition.relation_id(), table.definition.name())))
    }

    /// Partitions whose rows the stream never brings: a copy would have them, and nothing would follow.
    pub fn unsent(&self) -> Vec<ErrorReport> {
        let of = |table: &TableDefinition| -> Vec<ErrorReport> {
            let report = |partition: &Partition| unsent_partition(&table.name(), partition);
            table.partitions.iter().flatten().filter_map(report).collect()
        };
        self.tables.iter().flat_map(|table| of(&table.definition)).collect()
    }

    /// The table of a name.
    pub fn table(&self, name: &QualifiedName) -> Option<&SourceTable> {
        self.tables.iter().find(|table| table.definition.name() == *name)
    }
}

fn tables_named(names: &[String]) -> String {
    match names {
        [name] => format!("table {name}"),
        names => format!("tables {}", names.join(", ")),
    }
}

/// What to say of configured tables that are not there; `known` are the tables that are.
fn not_found(missing: &[String], known: &[String]) -> ErrorReport {
    let mut hint = "Correct tables in the configuration.".to_owned();
    for name in missing {
        let others = known.iter().map(String::as_str).filter(|known| known != name);
        if let Some(known) = nearest(name, others) {
            hint.push_str(&format!(" Nearest to {name} is {known}."));
        }
    }
    ErrorReport::new(format!("{} not found at the source", tables_named(missing)))
        .detail("They do not exist, or the role lacks USAGE on their schema.")
        .hint(hint)
}

/// The users' tables of the database, as the configuration names them.
async fn names_of_tables(client: &SqlClient) -> Result<Vec<String>, SourceError> {
    let sql = "SELECT n.nspname::text, c.relname::text
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'";
    let rows = client.query("looking for tables", sql, &[]).await?;
    rows.iter().map(|row| Ok(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?).to_string())).collect()
}

fn kind_problem(table: &TableDefinition) -> Option<ErrorReport> {
    let name = table.name();
    match table.kind {
        TableKind::Ordinary | TableKind::Partitioned if table.persistence == 'p' => None,
        TableKind::Ordinary | TableKind::Partitioned => Some(
            ErrorReport::new(format!(
                "table {name} is unlogged or temporary at the source, so its changes are not in the WAL"
            ))
            .hint(format!("Run at the source:\nALTER TABLE {name} SET LOGGED;")),
        ),
        TableKind::Foreign | TableKind::View | TableKind::MaterializedView => Some(
            ErrorReport::new(format!("{name} is a {}, which cannot be replicated", table.kind))
                .hint("Name the tables that it reads from."),
        ),
    }
}

fn unsent_partition(table: &QualifiedName, partition: &Partition) -> Option<ErrorReport> {
    let name = &partition.name;
    match partition.kind {
        TableKind::Foreign => Some(
            ErrorReport::new(format!("partition {name} of table {table} is a foreign table: its rows never come"))
                .hint(format!("Run at the source:\nALTER TABLE {table} DETACH PARTITION {name};")),
        ),
        TableKind::Partitioned | TableKind::View | TableKind::MaterializedView => None,
        TableKind::Ordinary => (partition.persistence != 'p').then(|| {
            ErrorReport::new(format!("partition {name} of table {table} is unlogged: its rows never come"))
                .detail("What is written to it is not in the WAL.")
                .hint(format!("Run at the source:\nALTER TABLE {name} SET LOGGED;"))
        }),
    }
}

async fn read_problems(client: &SqlClient, tables: &[TableDefinition]) -> Result<Vec<ErrorReport>, SourceError> {
    let ids: Vec<u32> = tables.iter().map(|table| table.id).collect();
    let sql = "SELECT c.oid, pg_catalog.has_table_privilege(c.oid, 'SELECT') OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT'),
                      c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
                          AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')),
                      current_user::text
               FROM pg_catalog.pg_class c, pg_catalog.pg_roles r
               WHERE c.oid = ANY ($1) AND r.rolname = current_user";
    let mut problems = Vec::new();
    for row in client.query("checking privileges at the source", sql, &[&ids]).await? {
        let id: u32 = row.get(0)?;
        let Some(table) = tables.iter().find(|table| table.id == id) else { continue };
        let (name, role) = (table.name(), Ident::new(row.get::<&str>(3)?));
        if !row.get::<bool>(1)? {
            problems.push(
                ErrorReport::new(format!("role {role} may not read table {name} at the source"))
                    .hint(format!("Run at the source as the table's owner:\nGRANT SELECT ON {name} TO {role};")),
            );
        }
        if row.get::<bool>(2)? {
            problems.push(
                ErrorReport::new(format!("row-level security of table {name} would hide rows from role {role}"))
                    .detail("The copy would be smaller than the table without anybody noticing.")
                    .hint(format!("Run at the source as a superuser:\nALTER ROLE {role} BYPASSRLS;")),
            );
        }
    }
    Ok(problems)
}
