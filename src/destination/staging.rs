//! Staging: the rows of a snapshot in a schema of their own, where no reader sees them.
//!
//! `table_sync` prepares it, copies into it, finishes it and hands it to `publish`. Its schema's name has the
//! generation, for readers of the catalog, and a part that nobody can guess.
//!
//! | the target is | mode | staging holds |
//! |---|---|---|
//! | missing | move | the finished table: columns, defaults, checks, and after the load indexes and keys; logged |
//! | empty | fill | plain columns, unlogged |
//! | has rows | reconcile | plain columns, unlogged, and an index on the key |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::catalog::{Catalog, TableToCount};
use super::collations::LooserCollations;
use super::error::{DestinationError, KeyRefusal};
use super::expressions;
use super::foreign_code::{Writes, named_collations, named_types, types_of};
use super::review::Created;
use super::schema::{self, ResolvedTypes};
use super::staging_schema::{self, MARK_OF_LIFE, NewTable, SCHEMA_PREFIX};
use super::taken_names::check_names_free;
use crate::catalog::determinism;
use crate::catalog::fit::{End, Transfer};
use crate::catalog::leaves::KnownLeaves;
use crate::catalog::lock_budget;
use crate::catalog::schema::{
    ColumnDefinition, ConstraintDefinition, ForeignKeyTarget, Identity, IdentityColumn, TableDefinition, TableKind,
    Types,
};
use crate::comparison::reconcile_sql as sql;
use crate::comparison::reconcile_sql::{Matching, TableRoute};
use crate::pg::{Ident, Lsn, QualifiedName, RelationId};
use crate::schema_change::ddl::{Creation, Indexes, foreign_key_obstacle};
use crate::schema_change::expression::Expressions;
use crate::session::{FingerprintFacts, SessionError, SqlClient};

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

impl TableToCopy {
    /// The columns that a new table may get: those that are published, and those that it can compute by itself.
    fn created_columns(&self) -> Vec<&ColumnDefinition> {
        let columns = self.source.columns.iter();
        columns.filter(|column| self.columns.contains(&column.name) || column.generated.is_some()).collect()
    }
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
    /// The OID of the table that has this name; `None` where there is none yet.
    pub live_id: Option<u32>,
    /// Where its rows wait.
    pub staging: QualifiedName,
    /// What publishing will do.
    pub mode: Mode,
    /// Which columns travel, and how.
    pub route: TableRoute,
    /// The publication's row filter.
    pub row_filter: Option<String>,
    /// How rows are recognised when reconciling.
    pub matching: Matching,
    /// The live table's columns that are not generated, local ones too.
    pub stored: Vec<Ident>,
    /// The live table has GENERATED ALWAYS identity columns.
    pub overrides_identity: bool,
    /// How many locks are taken when rows of the live table are written.
    pub writing_locks: u64,
}

impl StagedTable {
    /// That rows of the source cannot all stand under the key by which rows are recognised: they are equal in it, or NULL.
    pub(super) fn key_refusal(&self, null: Option<&Ident>) -> KeyRefusal {
        KeyRefusal {
            table: self.live.clone(),
            index: self.matching.index.clone(),
            columns: self.matching.key.iter().map(|(column, _)| column.clone()).collect(),
            null: null.cloned(),
        }
    }

    /// The rows of a partitioned table are its partitions'.
    pub fn is_tree(&self) -> bool {
        self.source.kind == TableKind::Partitioned
    }
}

/// All tables' staging.
#[derive(Clone, Debug)]
pub struct Staging {
    /// The schema that holds what is filled or reconciled, and the mark of life.
    pub schema: Ident,
    /// The tables, parents first.
    pub tables: Vec<StagedTable>,
    /// What of the source's tables is not taken over.
    pub left_out: Vec<String>,
    /// When the server was started: a restart empties unlogged tables.
    server_started: String,
    /// Tables that will be moved to one schema wait in one, so that their names and their indexes' cannot meet others'.
    moving: BTreeMap<Ident, Ident>,
    /// Tables of the set that exist already.
    existing: BTreeSet<QualifiedName>,
    indexes: BTreeMap<QualifiedName, Indexes>,
    /// What expressions may use here.
    expressions: Expressions,
    /// What the source's catalog said of the tables at the copy's snapshot, or since without a word on their rows.
    pub fingerprints: HashMap<RelationId, FingerprintFacts>,
    /// What is known of their partitions.
    pub leaves: HashMap<RelationId, KnownLeaves>,
}

impl Staging {
    /// What is known of a table's partitions.
    ///
    /// # Errors
    /// [`DestinationError::StagingLost`]: the source's catalog has said nothing of the table.
    pub fn leaves_of(&self, table: &StagedTable) -> Result<&KnownLeaves, DestinationError> {
        let missing =
            || DestinationError::StagingLost(format!("the source's catalog says nothing of table {}", table.live));
        self.leaves.get(&table.source.relation_id()).ok_or_else(missing)
    }
}

const SERVER_STARTED: &str = "SELECT pg_catalog.pg_postmaster_start_time()::text";

/// A part of the schema's name that nobody can know before: a role that may create schemas would take the name otherwise, and no copy
/// could be made. The server draws it (pg_strong_random); 48 bits, so that names stay below 63 bytes.
const CHANCE: &str = "SELECT pg_catalog.left(pg_catalog.md5(pg_catalog.gen_random_uuid()::text), 12)";

/// A foreign key that a new table gets.
#[derive(Clone, Copy)]
pub struct NewForeignKey<'a> {
    /// Its table.
    pub table: &'a StagedTable,
    /// The source's constraint.
    pub constraint: &'a ConstraintDefinition,
    /// What it refers to.
    pub target: &'a ForeignKeyTarget,
}

impl Staging {
    /// Creates the staging schema and a staging table for each of `tables`, which come parents first.
    ///
    /// # Errors
    /// [`DestinationError`]: a name that a new table needs is taken, a type or a collation is missing or of a role that `trust`
    /// does not name, or the role may not create.
    pub async fn prepare(
        client: &SqlClient,
        generation: &str,
        tables: Vec<TableToCopy>,
        source_types: &Types,
        catalog: &Catalog,
        trust: &Writes,
    ) -> Result<Staging, DestinationError> {
        let expressions = expressions::read(client).await?;
        let server_started = client.query_one("reading the server's start", SERVER_STARTED, &[]).await?.get(0)?;
        let chance: String = client.query_one("naming staging", CHANCE, &[]).await?.get(0)?;
        let schema = Ident::new(format!("{SCHEMA_PREFIX}{generation}_{chance}"));
        let mark = QualifiedName { schema: schema.clone(), name: Ident::new(MARK_OF_LIFE) };
        staging_schema::create(client, &schema).await?;
        let create = format!("CREATE UNLOGGED TABLE {} AS SELECT true AS alive", mark.sql());
        staging_schema::create_table(client, "creating the mark of life", &mark, &[create]).await?;
        let mut staging = Staging {
            schema,
            tables: Vec::new(),
            left_out: Vec::new(),
            server_started,
            moving: BTreeMap::new(),
            existing: catalog.tables.keys().cloned().collect(),
            indexes: BTreeMap::new(),
            expressions,
            fingerprints: HashMap::new(),
            leaves: HashMap::new(),
        };
        let types = staging.create_types(client, &tables, source_types, trust).await?;
        let missing = tables.iter().map(|table| &table.source).filter(|table| catalog.table(&table.name()).is_none());
        let missing: Vec<&TableDefinition> = missing.collect();
        check_names_free(client, &missing).await?;
        for schema in missing.iter().map(|table| &table.schema).collect::<BTreeSet<_>>() {
            staging.make_waiting_room(client, schema).await?;
        }
        let rows = Catalog::count_rows_of_each(client, &to_count(&tables, catalog)).await?;
        let mut rows = rows.into_iter();
        let (mut plain, mut new) = (Vec::new(), Vec::new());
        for table in tables {
            match catalog.table(&table.source.name()) {
                Some(live) => {
                    let has_rows = rows.next().is_some_and(|rows| rows > 0);
                    plain.push(staging.prepare_plain(table, live, has_rows));
                }
                None => new.push(staging.prepare_new(table, source_types, &types)),
            }
        }
        staging_schema::create_tables(client, "creating a staging table", &plain).await?;
        staging_schema::create_tables(client, "creating a table", &new).await?;
        let reviewed = async {
            staging.review_new(client).await?;
            staging.refuse_looser_collations(client, source_types).await?;
            // A collation may have come since: what the new tables have is looked at.
            trust.refuse_foreign_code(client).await
        };
        if let Err(error) = reviewed.await {
            staging.drop(client).await?;
            return Err(error);
        }
        Ok(staging)
    }

    /// Creates the types that new tables need, in one transaction, and resolves all of them.
    async fn create_types(
        &mut self,
        client: &SqlClient,
        tables: &[TableToCopy],
        source_types: &Types,
        trust: &Writes,
    ) -> Result<ResolvedTypes, DestinationError> {
        const DOING: &str = "creating types";
        client.batch(DOING, "BEGIN").await?;
        let resolve = async {
            let mut created = Created::default();
            let new = || tables.iter().filter(|table| !self.existing.contains(&table.source.name()));
            let columns = || new().flat_map(TableToCopy::created_columns);
            let wanted: Vec<&ColumnDefinition> = columns().collect();
            let types = schema::resolve_types(client, source_types, &wanted, &self.expressions, &mut created).await?;
            created.review(client, &self.expressions).await?;
            // A type or a collation that did not exist when the start looked may be somebody's by now.
            let used = types_of(source_types, columns())?;
            let collations = named_collations(columns(), new().flat_map(|table| &table.source.indexes), &used);
            let written = Writes { types: named_types(&used), collations, ..trust.clone() };
            written.refuse_foreign_code(client).await?;
            Ok(types)
        };
        let resolved: Result<ResolvedTypes, DestinationError> = resolve.await;
        let ended = client.batch(DOING, if resolved.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
        let resolved = resolved?;
        ended?;
        self.left_out.extend(resolved.left_out.iter().cloned());
        Ok(resolved)
    }

    /// Looks at what the new tables have become, before any row comes into them. Their indexes come after the rows; those that
    /// compute something are built on the empty tables for a moment, so that they are looked at before they compute anything.
    async fn review_new(&self, client: &SqlClient) -> Result<(), DestinationError> {
        const DOING: &str = "trying an index or a constraint";
        let mut created = Created::default();
        let mut tried = Vec::new();
        for table in self.tables.iter().filter(|table| table.mode == Mode::Move) {
            created.add_table(&table.staging);
            tried.extend(self.indexes(table).into_iter().flat_map(|indexes| &indexes.trials));
        }
        client.execute_each(DOING, &tried.iter().map(|trial| &trial.statement).collect::<Vec<_>>()).await?;
        created.review(client, &self.expressions).await?;
        client.execute_each(DOING, &tried.iter().map(|trial| &trial.undo).collect::<Vec<_>>()).await?;
        Ok(())
    }

    /// Types and collations went by their names: what the new tables have got may take keys for equal that the source tells apart.
    async fn refuse_looser_collations(&self, client: &SqlClient, source_types: &Types) -> Result<(), DestinationError> {
        let new = || self.tables.iter().filter(|table| table.mode == Mode::Move);
        let names: Vec<QualifiedName> = new().map(|table| table.staging.clone()).collect();
        let made = Catalog::read(client, &names).await?;
        let mut looser = LooserCollations::default();
        for (table, here) in new().filter_map(|table| Some((table, made.table(&table.staging)?))) {
            let source = End { table: &table.source, types: source_types };
            let destination = End { table: here, types: &made.types };
            looser.add_table(
                &table.live,
                End { table: here, types: &made.types },
                &determinism::looser(source, destination, |_| true),
            );
        }
        looser.report().map_or(Ok(()), |report| Err(DestinationError::Refused(report)))
    }

    /// Looks at the tables that were moved to where they belong, before that is committed.
    ///
    /// # Errors
    /// [`DestinationError::Refused`].
    pub(super) async fn review_moved(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let mut created = Created::default();
        let moved = self.tables.iter().filter(|table| table.mode == Mode::Move);
        moved.for_each(|table| created.add_table(&table.live));
        created.review(client, &self.expressions).await
    }

    /// Makes the schema in which tables wait that will be moved to `schema`.
    async fn make_waiting_room(&mut self, client: &SqlClient, schema: &Ident) -> Result<(), DestinationError> {
        let room = Ident::new(format!("{}_{}", self.schema.as_str(), self.moving.len()));
        staging_schema::create(client, &room).await?;
        self.moving.insert(schema.clone(), room);
        Ok(())
    }

    fn prepare_plain(&mut self, table: TableToCopy, live: &TableDefinition, has_rows: bool) -> NewTable {
        let name = live.name();
        let published = table.columns.clone();
        let held: Vec<Ident> = table.columns.into_iter().filter(|column| live.column(column).is_some()).collect();
        let stored = |column: &&Ident| live.column(column).is_some_and(|column| column.generated.is_none());
        let columns: Vec<Ident> = held.iter().filter(stored).cloned().collect();
        let staging =
            QualifiedName { schema: self.schema.clone(), name: Ident::new(format!("t{}", self.tables.len())) };
        // The stream also brings what the live table generates by itself.
        let create = sql::create_plain(&staging, &name, &held);
        let reads = name.clone();
        let always = |column: &&ColumnDefinition| column.identity == Some(IdentityColumn::Always);
        let fixed: Vec<Ident> = live.columns.iter().filter(always).map(|column| column.name.clone()).collect();
        self.tables.push(StagedTable {
            matching: matching(&table.source, live, &columns, &fixed),
            stored: live.columns.iter().filter(|c| c.generated.is_none()).map(|c| c.name.clone()).collect(),
            source: table.source,
            published,
            live_id: Some(live.id),
            live: name,
            staging: staging.clone(),
            mode: if has_rows { Mode::Reconcile } else { Mode::Fill },
            route: TableRoute { columns, transfer: table.transfer },
            row_filter: table.row_filter,
            overrides_identity: !fixed.is_empty(),
            writing_locks: lock_budget::of_writing(live),
        });
        NewTable { name: staging, reads: Some(reads), statements: vec![create] }
    }

    fn prepare_new(&mut self, table: TableToCopy, source_types: &Types, types: &ResolvedTypes) -> NewTable {
        let name = table.source.name();
        let room = self.moving.get(&name.schema).expect("a schema waits for the tables of every other").clone();
        let (create, indexes) = {
            let creation = Creation {
                table: &table.source,
                schema: &room,
                type_sql: &|column| types.sql(column),
                types: source_types,
                expressions: &self.expressions,
                columns: &table.columns,
            };
            (creation.create(), creation.indexes())
        };
        let staging = QualifiedName { schema: room, name: name.name.clone() };
        let missing = create.left_out.iter().chain(&indexes.left_out);
        self.left_out.extend(missing.map(|what| format!("table {name}: {what} was not taken over")));
        self.indexes.insert(name.clone(), indexes);
        let stored = |column: &Ident| table.source.column(column).is_some_and(|column| column.generated.is_none());
        let published = table.columns.clone();
        let columns: Vec<Ident> = table.columns.into_iter().filter(stored).collect();
        self.tables.push(StagedTable {
            matching: Matching {
                key: Vec::new(),
                index: None,
                unique: false,
                nullable: Vec::new(),
                lookup: Vec::new(),
                columns: columns.clone(),
                fixed: Vec::new(),
                partitioned: false,
            },
            stored: columns.clone(),
            source: table.source,
            published,
            live_id: None,
            live: name,
            staging: staging.clone(),
            mode: Mode::Move,
            route: TableRoute { columns, transfer: table.transfer },
            row_filter: table.row_filter,
            overrides_identity: false,
            writing_locks: 0,
        });
        NewTable { name: staging, reads: None, statements: create.sql }
    }

    /// Gives staging a position of its own, from which the stream can be applied to it.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn track(&self, client: &SqlClient, from: Lsn) -> Result<(), DestinationError> {
        let bookkeeping = include_str!("../../sql/bookkeeping.sql");
        let begin = bookkeeping.find("CREATE OR REPLACE FUNCTION headwater.advance(");
        let function = begin.and_then(|begin| bookkeeping[begin..].split_inclusive("$$;").next());
        let function = function.expect("the bookkeeping has headwater.advance");
        let schema = self.schema.sql();
        let function = function
            .replace("headwater.advance(", &format!("{schema}.advance("))
            .replace("UPDATE headwater.position ", &format!("UPDATE {schema}.position "));
        let position = QualifiedName { schema: self.schema.clone(), name: Ident::new("position") };
        let table = format!(
            "CREATE UNLOGGED TABLE {schema}.position (position pg_catalog.pg_lsn NOT NULL) WITH (fillfactor = 10)"
        );
        let row = format!("INSERT INTO {schema}.position VALUES ('{from}')");
        const DOING: &str = "giving staging a position";
        staging_schema::create_table(client, DOING, &position, &[table, row]).await?;
        staging_schema::create_function(client, DOING, &self.schema, &function).await
    }

    /// The foreign keys that new tables get: those whose other table is of the set, or was before.
    pub fn new_foreign_keys(&self) -> impl Iterator<Item = NewForeignKey<'_>> {
        self.tables
            .iter()
            .filter(|table| table.mode == Mode::Move)
            .flat_map(|table| {
                let keys = table.source.foreign_keys();
                keys.map(move |(constraint, target)| NewForeignKey { table, constraint, target })
            })
            .filter(|key| foreign_key_obstacle(key.constraint, self.expressions.version()).is_none())
    }

    /// The staged table of a name, when it is one that will be moved.
    pub fn moved(&self, name: &QualifiedName) -> Option<&StagedTable> {
        self.tables.iter().find(|table| table.live == *name && table.mode == Mode::Move)
    }

    /// Whether a table of the set exists already.
    pub fn exists(&self, name: &QualifiedName) -> bool {
        self.existing.contains(name)
    }

    /// The indexes that a new table gets.
    pub(super) fn indexes(&self, table: &StagedTable) -> Option<&Indexes> {
        self.indexes.get(&table.live)
    }

    /// Drops staging and everything in it.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn drop(&self, client: &SqlClient) -> Result<(), DestinationError> {
        for schema in self.moving.values().chain([&self.schema]) {
            staging_schema::drop(client, schema).await?;
        }
        Ok(())
    }

    /// Checks that no crash has touched staging: the server was not restarted, and the mark of life is still there.
    ///
    /// # Errors
    /// [`DestinationError::StagingLost`].
    pub async fn check_alive(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let started: String = client.query_one("reading the server's start", SERVER_STARTED, &[]).await?.get(0)?;
        if started != self.server_started {
            return Err(DestinationError::StagingLost("the destination was restarted meanwhile".to_owned()));
        }
        let mark = QualifiedName { schema: self.schema.clone(), name: Ident::new(MARK_OF_LIFE) };
        let rows: i64 = client.query_one("looking for the mark of life", &sql::count(&mark), &[]).await?.get(0)?;
        if rows != 1 {
            return Err(DestinationError::StagingLost("the destination has crashed meanwhile".to_owned()));
        }
        Ok(())
    }

    /// Checks that staging holds as many rows as were sent.
    ///
    /// # Errors
    /// [`DestinationError::StagingLost`].
    pub async fn check_counts(
        &self,
        client: &SqlClient,
        sent: &BTreeMap<QualifiedName, u64>,
    ) -> Result<(), DestinationError> {
        const DOING: &str = "counting staged rows";
        let questions: Vec<String> = self.tables.iter().map(|table| sql::count(&table.staging)).collect();
        for (table, rows) in self.tables.iter().zip(client.query_each(DOING, &questions).await?) {
            let count: i64 = rows.first().ok_or_else(|| SessionError::answer(DOING, "no row"))?.get(0)?;
            let expected = *sent.get(&table.live).expect("the copy counts the rows of every table");
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

/// The tables that exist, in the order of `tables`: one row of each is counted.
fn to_count<'a>(tables: &[TableToCopy], catalog: &'a Catalog) -> Vec<TableToCount<'a>> {
    let existing = tables.iter().filter_map(|table| catalog.tables.get_key_value(&table.source.name()));
    existing.map(|(name, _)| TableToCount { name, most: 1 }).collect()
}

/// How rows of staging and of the live table are recognised: by a unique key of the live table over NOT NULL columns;
/// the one that the stream finds rows by if it can be, then the primary key.
fn matching(source: &TableDefinition, live: &TableDefinition, columns: &[Ident], fixed: &[Ident]) -> Matching {
    let identity: Vec<&Ident> = match source.identity_columns() {
        Identity::Key(key) => key,
        Identity::WholeRow | Identity::None => Vec::new(),
    };
    let same = |a: &[&Ident], b: &[&Ident]| a.len() == b.len() && a.iter().all(|column| b.contains(column));
    let usable = live.indexes.iter().filter_map(|index| {
        let key = index.unique_columns()?;
        let all_here = key
            .iter()
            .all(|name| columns.contains(name) && live.column(name).is_some_and(ColumnDefinition::is_never_null));
        all_here.then_some((index, key))
    });
    let chosen = usable.min_by_key(|(index, key)| (!same(key, &identity), !index.primary));
    let may_be_null = |name: &&&Ident| !source.column(name).is_some_and(ColumnDefinition::is_never_null);
    let nullable: Vec<Ident> =
        chosen.iter().flat_map(|(_, key)| key.iter().filter(may_be_null)).map(|name| (*name).clone()).collect();
    let unique = nullable.is_empty()
        && chosen.as_ref().is_some_and(|(_, key)| {
            source.indexes.iter().any(|index| index.unique_columns().is_some_and(|columns| same(&columns, key)))
        });
    let index = chosen.as_ref().map(|(index, _)| index.name.clone());
    let key = chosen.map_or_else(Vec::new, |(index, _)| {
        let parts = index.parts.iter().filter(|part| !part.included);
        parts
            .filter_map(|part| {
                let equality = part.equality.clone().unwrap_or_else(|| QualifiedName::new("pg_catalog", "="));
                Some((part.column.clone()?, equality))
            })
            .collect()
    });
    let found_by = identity.into_iter().filter(|column| key.is_empty() && columns.contains(column));
    Matching {
        lookup: found_by.cloned().collect(),
        index,
        unique,
        nullable,
        key,
        columns: columns.to_vec(),
        fixed: fixed.to_vec(),
        partitioned: live.kind == TableKind::Partitioned,
    }
}

/// How long one statement of a snapshot may take: building an index over a large table is honest work.
pub const STATEMENT_MAX: Duration = Duration::from_secs(24 * 3600);
