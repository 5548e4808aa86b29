//! Staging: the rows of a snapshot beside the live tables, where no reader sees them.
//!
//! `pipeline::snapshot` prepares it, copies into it, finishes it and hands it to `publish`. Its schema carries the
//! generation, so that staging of an earlier attempt is recognised and swept.
//!
//! | the target is | mode | staging holds |
//! |---|---|---|
//! | missing | move | the finished table: columns, defaults, checks, and after the load indexes and keys; logged |
//! | empty | fill | plain columns, unlogged |
//! | has rows | reconcile | plain columns, unlogged, and an index on the key |

use std::collections::BTreeMap;
use std::time::Duration;

use super::catalog::Catalog;
use super::error::DestinationError;
use super::schema::{self, ResolvedTypes};
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::plan::expression::Expressions;
use crate::plan::fit::Transfer;
use crate::plan::schema::{
    ColumnDefinition, ConstraintDefinition, ForeignKeyTarget, IdentityColumn, TableDefinition, TableKind, Types,
};
use crate::plan::sql::ddl::{self, Creation};
use crate::plan::sql::staging::{self as sql, Matching, Route};
use crate::session::SqlClient;

/// Names of staging schemas begin so; nothing else of a database's does.
const SCHEMA_PREFIX: &str = "headwater_staging_";

/// A source table that is to be copied.
#[derive(Clone, Debug)]
pub struct TableToCopy {
    /// The table as the source has it.
    pub source: TableDefinition,
    /// Its published columns.
    pub columns: Vec<Ident>,
    /// The format in which its values can travel, where the target exists.
    pub transfer: Transfer,
    /// The condition of the publication's row filter, as SQL of the source.
    pub row_filter: Option<String>,
}

/// What publishing will do with a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The target is missing: staging becomes it.
    Move,
    /// The target is empty: it is filled.
    Fill,
    /// The target has rows: it is made equal.
    Reconcile,
}

/// One table's staging.
#[derive(Clone, Debug)]
pub struct StagedTable {
    /// The table as the source has it.
    pub source: TableDefinition,
    /// The columns that the publication sends, generated ones too where it does.
    pub published: Vec<Ident>,
    /// Where it belongs.
    pub live: QualifiedName,
    /// Where its rows wait.
    pub staging: QualifiedName,
    /// What publishing will do.
    pub mode: Mode,
    /// Which columns travel, and how.
    pub route: Route,
    /// The publication's row filter.
    pub row_filter: Option<String>,
    /// How rows are recognised when reconciling.
    pub matching: Matching,
    /// The live table has GENERATED ALWAYS identity columns.
    pub overrides_identity: bool,
}

impl StagedTable {
    /// The rows of a partitioned table are its partitions'.
    pub fn is_tree(&self) -> bool {
        self.source.kind == TableKind::Partitioned
    }
}

/// All tables' staging.
#[derive(Clone, Debug)]
pub struct Staging {
    /// The schema that holds it.
    pub schema: Ident,
    /// The tables, parents first.
    pub tables: Vec<StagedTable>,
    /// When the server was started: a restart empties unlogged tables.
    pub server_started: String,
    /// What of the source's tables is not taken over.
    pub left_out: Vec<String>,
    creations: BTreeMap<QualifiedName, (Vec<String>, Vec<Ident>)>,
}

/// Drops staging of earlier attempts.
///
/// # Errors
/// [`DestinationError`].
pub async fn sweep(client: &SqlClient) -> Result<u64, DestinationError> {
    let sql = "SELECT nspname::text FROM pg_catalog.pg_namespace
               WHERE pg_catalog.starts_with(nspname, $1) AND pg_catalog.pg_has_role(nspowner, 'USAGE')";
    let rows = client.query("looking for old staging", sql, &[&SCHEMA_PREFIX]).await?;
    for row in &rows {
        let schema = Ident::new(row.get::<_, &str>(0));
        client.batch("dropping old staging", &format!("DROP SCHEMA IF EXISTS {} CASCADE", schema.sql())).await?;
    }
    Ok(u64::try_from(rows.len()).unwrap_or(0))
}

const SERVER_STARTED: &str = "SELECT pg_catalog.pg_postmaster_start_time()::text";

impl Staging {
    /// Creates the staging schema and a staging table for each of `tables`, which come parents first.
    ///
    /// # Errors
    /// [`DestinationError`]: a name that a new table needs is taken, a type is missing, or the role may not create.
    pub async fn prepare(
        client: &SqlClient,
        generation: &str,
        tables: Vec<TableToCopy>,
        source_types: &Types,
        catalog: &Catalog,
    ) -> Result<Staging, DestinationError> {
        let expressions = schema::expressions(client).await?;
        let server_started = client.query_one("reading the server's start", SERVER_STARTED, &[]).await?.get(0);
        let schema = Ident::new(format!("{SCHEMA_PREFIX}{generation}"));
        client.batch("creating the staging schema", &format!("CREATE SCHEMA {}", schema.sql())).await?;
        let mut staging =
            Staging { schema, tables: Vec::new(), server_started, left_out: Vec::new(), creations: BTreeMap::new() };
        for table in tables {
            let name = table.source.name();
            match catalog.table(&name) {
                Some(live) => staging.prepare_plain(client, table, live).await?,
                None => staging.prepare_new(client, table, source_types, &expressions).await?,
            }
        }
        Ok(staging)
    }

    /// Staging tables of two schemas may bear one name, so they are numbered; a table that is moved keeps its own.
    fn staging_name(&self, table: &TableDefinition, moved: bool) -> QualifiedName {
        let number = self.tables.len();
        let name = if moved { table.table.clone() } else { Ident::new(format!("t{number}")) };
        QualifiedName { schema: self.schema.clone(), name }
    }

    async fn prepare_plain(
        &mut self,
        client: &SqlClient,
        table: TableToCopy,
        live: &TableDefinition,
    ) -> Result<(), DestinationError> {
        let name = live.name();
        let published = table.columns.clone();
        let columns: Vec<Ident> = table
            .columns
            .into_iter()
            .filter(|column| live.column(column).is_some_and(|column| column.generated.is_none()))
            .collect();
        let staging = self.staging_name(live, false);
        client.batch("creating a staging table", &sql::create_plain(&staging, &name, &columns)).await?;
        let rows = Catalog::count_rows(client, &name, 1).await?;
        let always = |column: &&ColumnDefinition| column.identity == Some(IdentityColumn::Always);
        let fixed: Vec<Ident> = live.columns.iter().filter(always).map(|column| column.name.clone()).collect();
        self.tables.push(StagedTable {
            matching: Matching {
                key: matching_key(live, &columns),
                columns: columns.clone(),
                fixed: fixed.clone(),
                partitioned: live.kind == TableKind::Partitioned,
            },
            source: table.source,
            published,
            live: name,
            staging,
            mode: if rows == 0 { Mode::Fill } else { Mode::Reconcile },
            route: Route { columns, transfer: table.transfer },
            row_filter: table.row_filter,
            overrides_identity: !fixed.is_empty(),
        });
        Ok(())
    }

    async fn prepare_new(
        &mut self,
        client: &SqlClient,
        table: TableToCopy,
        source_types: &Types,
        expressions: &Expressions,
    ) -> Result<(), DestinationError> {
        let name = table.source.name();
        let wanted: Vec<&ColumnDefinition> = table
            .source
            .columns
            .iter()
            .filter(|column| table.columns.contains(&column.name) || column.generated.is_some())
            .collect();
        let types: ResolvedTypes = schema::resolve_types(client, source_types, &wanted, expressions).await?;
        check_names_free(client, &table.source).await?;
        let (create, indexes) = {
            let creation = Creation {
                table: &table.source,
                schema: &self.schema,
                type_sql: &|column| types.sql(column),
                expressions,
                columns: &table.columns,
            };
            (creation.create(), creation.indexes())
        };
        for statement in &create.sql {
            client.batch("creating a table", statement).await?;
        }
        let missing = create.left_out.into_iter().chain(indexes.left_out);
        self.left_out.extend(missing.map(|what| format!("table {name}: {what} was not taken over")));
        self.creations.insert(name.clone(), (indexes.sql, table.columns.clone()));
        let staging = self.staging_name(&table.source, true);
        let stored = |column: &Ident| table.source.column(column).is_some_and(|column| column.generated.is_none());
        let published = table.columns.clone();
        let columns: Vec<Ident> = table.columns.into_iter().filter(stored).collect();
        self.tables.push(StagedTable {
            matching: Matching { key: Vec::new(), columns: columns.clone(), fixed: Vec::new(), partitioned: false },
            source: table.source,
            published,
            live: name,
            staging,
            mode: Mode::Move,
            route: Route { columns, transfer: table.transfer },
            row_filter: table.row_filter,
            overrides_identity: false,
        });
        Ok(())
    }

    /// Builds what the loaded rows need: indexes and keys of new tables, foreign keys among them, an index on the key
    /// of what will be reconciled, and statistics.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn finish(&self, client: &SqlClient) -> Result<(), DestinationError> {
        for table in &self.tables {
            match table.mode {
                Mode::Move => {
                    let statements = self.creations.get(&table.live).map(|(indexes, _)| indexes.as_slice());
                    for statement in statements.unwrap_or_default() {
                        client.batch("building an index", statement).await?;
                    }
                }
                Mode::Reconcile => {
                    if let Some(statement) = table.matching.index(&table.staging) {
                        client.batch("building an index", &statement).await?;
                    }
                }
                Mode::Fill => {}
            }
            client.batch("analyzing a staging table", &sql::analyze(&table.staging)).await?;
        }
        for (table, constraint, target) in self.new_foreign_keys() {
            if let Some(parent) = self.moved(&target.table()) {
                let statement = ddl::add_foreign_key(&table.staging, constraint, target, &parent.staging);
                client.batch("adding a foreign key", &statement).await?;
            }
        }
        Ok(())
    }

    /// The foreign keys that new tables get: those within the set.
    pub fn new_foreign_keys(&self) -> impl Iterator<Item = (&StagedTable, &ConstraintDefinition, &ForeignKeyTarget)> {
        self.tables
            .iter()
            .filter(|table| table.mode == Mode::Move)
            .flat_map(|table| table.source.foreign_keys().map(move |(constraint, target)| (table, constraint, target)))
    }

    /// The staged table of a name, when it is one that will be moved.
    pub fn moved(&self, name: &QualifiedName) -> Option<&StagedTable> {
        self.tables.iter().find(|table| table.live == *name && table.mode == Mode::Move)
    }

    /// Drops staging and everything in it.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn drop(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let statement = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema.sql());
        Ok(client.batch("dropping staging", &statement).await?)
    }

    /// Checks that staging still holds what was sent: the server was not restarted, and no table has another number
    /// of rows.
    ///
    /// # Errors
    /// [`DestinationError::StagingLost`].
    pub async fn check(&self, client: &SqlClient, sent: &BTreeMap<QualifiedName, u64>) -> Result<(), DestinationError> {
        let started: String = client.query_one("reading the server's start", SERVER_STARTED, &[]).await?.get(0);
        if started != self.server_started {
            return Err(DestinationError::StagingLost("the destination was restarted meanwhile".to_owned()));
        }
        for table in &self.tables {
            let count: i64 = client.query_one("counting staged rows", &sql::count(&table.staging), &[]).await?.get(0);
            let expected = sent.get(&table.live).copied().unwrap_or(0);
            if u64::try_from(count).ok() != Some(expected) {
                return Err(DestinationError::StagingLost(format!(
                    "{count} rows of table {} are staged, but {expected} were sent",
                    table.live
                )));
            }
        }
        Ok(())
    }
}

/// The key by which live rows are recognised: the primary key, or another unique key over NOT NULL columns.
fn matching_key(live: &TableDefinition, columns: &[Ident]) -> Vec<(Ident, QualifiedName)> {
    let usable = live.indexes.iter().find(|index| {
        index.unique_columns().is_some_and(|key| {
            key.iter().all(|name| columns.contains(name) && live.column(name).is_some_and(|column| column.not_null))
        })
    });
    let Some(index) = usable else { return Vec::new() };
    let parts = index.parts.iter().filter(|part| !part.included);
    parts
        .filter_map(|part| {
            let equality = part.equality.clone().unwrap_or_else(|| QualifiedName::new("pg_catalog", "="));
            Some((part.column.clone()?, equality))
        })
        .collect()
}

/// A new table's name, and those of its indexes and sequences, must be free in its schema before rows are copied for
/// it.
async fn check_names_free(client: &SqlClient, table: &TableDefinition) -> Result<(), DestinationError> {
    let mut names: Vec<String> = vec![table.table.as_str().to_owned()];
    names.extend(table.indexes.iter().map(|index| index.name.as_str().to_owned()));
    for column in &table.columns {
        let sequence = column.sequence.as_deref().and_then(|name| name.parse::<QualifiedName>().ok());
        names.extend(sequence.map(|sequence| sequence.name.as_str().to_owned()));
    }
    let sql =
        "SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = $1 AND c.relname = ANY ($2::text[]) ORDER BY 1";
    let taken = client.query("looking for taken names", sql, &[&table.schema.as_str(), &names]).await?;
    let taken: Vec<String> = taken.iter().map(|row| Ident::new(row.get::<_, &str>(0)).to_string()).collect();
    if taken.is_empty() {
        return Ok(());
    }
    Err(DestinationError::Refused(
        ErrorReport::new(format!("names that table {} needs are taken at the destination", table.name()))
            .detail(format!("In schema {}: {}.", table.schema, taken.join(", ")))
            .hint("Rename or drop these objects at the destination."),
    ))
}

/// How long one statement of a snapshot may take: building an index over a large table is honest work.
pub const STATEMENT_MAX: Duration = Duration::from_secs(24 * 3600);
