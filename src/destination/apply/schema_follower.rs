//! A table that the stream describes in another way than before: the destination's is brought to the same state.
//!
//! Called by `applier` between two chunks of a large transaction, once everything before is answered: in the stream's order and inside
//! the source transaction's own transaction. What to do is [`crate::schema_change`]'s to say; here the writing session is
//! asked for the table as it is now, and the statements are run, one at a time.
//!
//! ```text
//! description ──▶ table and types at the destination ──▶ Evolution (pure) ──▶ statements ──▶ attempts ──▶ review ──▶ shape remembered
//!                 missing types are created                                   must succeed   may fail
//! ```
//!
//! What the rows may not allow yet (NOT NULL, a unique index) is tried behind a savepoint: the catalog may be ahead of the
//! stream. So is a new sequence, which our role may not be allowed to create. What failed is not remembered, so it is tried
//! again when the table is described next.

use std::time::Duration;

use super::followed::Followed;
use super::relation_map::RelationMap;
use crate::catalog::determinism;
use crate::catalog::fit::{self, End, modifier_at};
use crate::catalog::leaves::Measured;
use crate::catalog::schema::{ColumnDefinition, TableDefinition, TypeDefinition, Types};
use crate::catalog::shape::{Shape, ShapeColumn};
use crate::destination::collations::LooserCollations;
use crate::destination::error::DestinationError;
use crate::destination::first_row::one_row;
use crate::destination::foreign_code::{Writes, named_collations, named_types, types_of};
use crate::destination::misfits::misfit_report;
use crate::destination::name_taken::is_taken;
use crate::destination::review::{self, Created};
use crate::destination::schema::{
    ResolvedTypes, extension_of, missing_type, missing_type_report, needed_types, type_creation, type_name,
};
use crate::destination::writer::Writer;
use crate::destination::{dependants, expressions, extensions, shapes};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, Relation, quote_literal, shell_word, shown_sql};
use crate::schema_change::ddl::Creation;
use crate::schema_change::expression::Expressions;
use crate::schema_change::{AttemptedStatement, Evolution, FollowObstacle, NewSequence, TableChange, Undo};
use crate::session::{PipelinedRequest, SessionError, ask_table, ask_types, read_description, read_table, read_types};
use crate::transaction::SchemaChange;

const DOING: &str = "following a schema change";

/// A table that is rewritten, or gets an index, may take hours.
const STATEMENT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Follows schema changes, and keeps what is to be told of them.
#[derive(Debug, Default)]
pub(super) struct SchemaFollower {
    /// What expressions of the source may call at the destination, once it was asked for.
    expressions: Option<Expressions>,
    notices: Vec<String>,
}

impl SchemaFollower {
    /// What was followed since this was asked last, for the log.
    pub(super) fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Brings the destination's table to the state that a transaction of the stream describes.
    pub(super) async fn follow(
        &mut self,
        writer: &mut Writer,
        map: &mut RelationMap,
        change: SchemaChange,
        commit_lsn: Lsn,
    ) -> Result<(), DestinationError> {
        let SchemaChange { relation, description, measured } = change;
        let Some(followed) = map.followed.get(relation.id).cloned() else { return Ok(()) };
        let (table, types) = read_description(&description)?;
        map.source_tables.described(table.clone());
        let source = DescribedTable { relation: &relation, table, types, measured: *measured, commit_lsn };
        let name = &followed.name;
        let mut following = FollowedChange { writer, map, follower: self, name, has_changed: false };
        following.follow(&source, &followed).await
    }
}

/// A table as its catalog has it, with the types of its columns.
struct TableWithTypes {
    table: TableDefinition,
    types: Types,
}

impl TableWithTypes {
    fn end(&self) -> End<'_> {
        End { table: &self.table, types: &self.types }
    }
}

/// A table as the stream describes it.
struct DescribedTable<'a> {
    relation: &'a Relation,
    table: TableDefinition,
    types: Types,
    /// Its partitions without a block of which nothing was known, by their OIDs.
    measured: Measured,
    /// Of the transaction that describes it.
    commit_lsn: Lsn,
}

impl DescribedTable<'_> {
    fn end(&self) -> End<'_> {
        End { table: &self.table, types: &self.types }
    }

    fn publishes(&self, column: &Ident) -> bool {
        self.relation.columns.iter().any(|c| c.name == *column)
    }

    fn published_columns(&self) -> Vec<&ColumnDefinition> {
        self.table.columns.iter().filter(|column| self.publishes(&column.name)).collect()
    }

    /// Refuses a destination that has lost a column which it had: once it is there again, the rows would lack its values.
    fn refuse_lost_column(
        &self,
        known: &Shape,
        name: &QualifiedName,
        destination: &TableWithTypes,
    ) -> Result<(), DestinationError> {
        let kept = |column: &&ShapeColumn| self.publishes(&column.name);
        let is_lost = |column: &&ShapeColumn| destination.table.column(&column.name).is_none();
        let Some(lost) = known.columns.iter().filter(kept).find(is_lost) else { return Ok(()) };
        let is_known = |column: &Ident| {
            self.table.column(column).is_some() || known.columns.iter().any(|known| known.name == *column)
        };
        let renamed = self.table.column(&lost.name).and_then(|wanted| {
            let (id, modifier) = (wanted.type_id, wanted.type_modifier);
            fit::renamed_column(id, modifier, &self.types, destination.end(), is_known).cloned()
        });
        Err(DestinationError::ColumnLost { table: name.clone(), column: lost.name.clone(), renamed })
    }

    /// What is to be done at the destination, and what is known of the table after that.
    fn evolution(
        &self,
        known: &Shape,
        destination: &TableWithTypes,
        schema: &Ident,
        resolved: &ResolvedTypes,
        expressions: &Expressions,
    ) -> Result<(Evolution, Shape), FollowObstacle> {
        let names: Vec<_> = self.published_columns().into_iter().map(|column| column.name.clone()).collect();
        let creation = Creation {
            table: &self.table,
            schema,
            type_sql: &|column| resolved.sql(column),
            types: &self.types,
            expressions,
            columns: &names,
        };
        TableChange {
            known,
            relation: self.relation,
            source: self.end(),
            destination: destination.end(),
            creation: &creation,
            measured: &self.measured,
            commit_lsn: self.commit_lsn,
        }
        .follow()
    }
}

/// A schema change that is being followed.
struct FollowedChange<'a> {
    writer: &'a mut Writer,
    map: &'a mut RelationMap,
    follower: &'a mut SchemaFollower,
    /// The table at the destination.
    name: &'a QualifiedName,
    /// The destination's catalog is another one than the map knows.
    has_changed: bool,
}

impl FollowedChange<'_> {
    async fn follow(&mut self, source: &DescribedTable<'_>, followed: &Followed) -> Result<(), DestinationError> {
        let Some(destination) = self.read_table().await? else {
            // For `bind` to report, with its hint.
            return Ok(());
        };
        followed.refuse_other(destination.table.id)?;
        let known = self.known_shape(source).await?;
        source.refuse_lost_column(&known, self.name, &destination)?;
        self.map.source_types.extend(source.types.iter().map(|(id, definition)| (*id, definition.clone())));
        let expressions = self.expressions().await?;
        let mut created = Created::default();
        let columns = source.published_columns();
        let resolved = self.resolve(&source.types, &columns, &expressions, &mut created).await?;
        let (evolution, shape) = source
            .evolution(&known, &destination, &self.name.schema, &resolved, &expressions)
            .map_err(|obstacle| obstacle_report(self.name, obstacle))?;
        if !evolution.statements.is_empty() {
            self.refuse_foreign_types(source, &resolved, &evolution).await?;
        }
        self.follower.notices.extend(resolved.left_out);
        let added = evolution.added.clone();
        let shape = self.carry_out(evolution, shape, &mut created).await?;
        self.review(&created).await?;
        self.statement(&shapes::remember(source.relation.id, &shape)).await?;
        if self.has_changed {
            self.read_changed_table(source, followed, &added).await?;
        }
        self.map.table_changed(source.relation, followed);
        Ok(())
    }

    /// The table as it was when it was described last.
    async fn known_shape(&mut self, source: &DescribedTable<'_>) -> Result<Shape, DestinationError> {
        match self.ask(&shapes::ask_locked(source.relation.id)).await?.into_iter().next().flatten() {
            Some(text) => Ok(shapes::parse(&text)?),
            // A bookkeeping of before shapes: what is there now counts as known, and `bind` compares.
            None => Ok(Shape::of(&source.table, &source.types, |column| source.publishes(column))),
        }
    }

    /// Takes the table that was changed into the map's catalog.
    async fn read_changed_table(
        &mut self,
        source: &DescribedTable<'_>,
        followed: &Followed,
        added: &[Ident],
    ) -> Result<(), DestinationError> {
        if let Some(TableWithTypes { table, types }) = self.read_table().await? {
            self.map.catalog.replace(table, types);
        }
        // The statements went by the name.
        let catalog = &self.map.catalog;
        if let Some(table) = catalog.table(self.name) {
            followed.refuse_other(table.id)?;
            refuse_looser(source.end(), End { table, types: &catalog.types }, added)?;
        }
        Ok(())
    }

    /// A type that the source has now may have been waiting under its name: its checks, its default and its casts would run in the
    /// statements themselves, before the monitor looks. So may a collation. Only what the statements name: the source's other columns are
    /// there, of types and collations that the table itself shows.
    async fn refuse_foreign_types(
        &mut self,
        source: &DescribedTable<'_>,
        resolved: &ResolvedTypes,
        evolution: &Evolution,
    ) -> Result<(), DestinationError> {
        let attempted = evolution.attempts.iter().map(|attempt| &attempt.statement);
        let statements: Vec<&String> = evolution.statements.iter().chain(attempted).collect();
        let is_named = |name: &str| statements.iter().any(|statement| statement.contains(name));
        let DescribedTable { table, types, .. } = source;
        let columns = || table.columns.iter().filter(|column| is_named(&resolved.sql(column)));
        let used = types_of(types, columns())?;
        let types = named_types(&used);
        let mut collations = named_collations(table.columns.iter(), table.indexes.iter(), &Types::new());
        collations.retain(|collation| is_named(&collation.sql()));
        collations.extend(named_collations(std::iter::empty(), std::iter::empty(), &used));
        if types.is_empty() && collations.is_empty() {
            return Ok(());
        }
        let trusted_roles = self.map.settings.trusted_roles.clone();
        let names_owners = self.map.settings.names_owners;
        let writes = Writes { types, collations, trusted_roles, names_owners, ..Writes::default() };
        let answer = self.ask(&writes.ask()).await?;
        writes.refuse(answer.first().and_then(Option::as_deref))
    }

    /// Runs the statements; returns what is to be remembered of the table.
    async fn carry_out(
        &mut self,
        evolution: Evolution,
        mut shape: Shape,
        created: &mut Created,
    ) -> Result<Shape, DestinationError> {
        let name = self.name;
        let Evolution { mut statements, remedies: _, added, fills, mut attempts, mut sequences, told } = evolution;
        let indexes = attempts.iter().filter_map(|attempt| match &attempt.undo {
            Undo::Unique(name) => Some(name.clone()),
            Undo::NotNull(_) => None,
        });
        created.add_parts(name, added, indexes.collect());
        if !self.map.settings.follow_schema_changes {
            if !statements.is_empty() {
                statements.extend(sequences.iter().flat_map(NewSequence::statements).cloned());
                return Err(DestinationError::Refused(stopped_report(name, &told, &statements)));
            }
            // Rows fit without these.
            attempts.clear();
            sequences.drain(..).for_each(|sequence| sequence.undo(&mut shape));
        }
        for statement in statements.iter().chain(&fills) {
            if let Err(error) = self.statement(statement).await {
                let hint = self.dependants_hint(&error).await?;
                return Err(unfollowed(name, statement, hint, error));
            }
        }
        self.has_changed |= !statements.is_empty() || !attempts.is_empty() || !sequences.is_empty();
        self.follower.notices.extend(told.into_iter().map(|told| format!("table {name}: {told}")));
        for attempt in &attempts {
            self.try_statement(attempt, &mut shape).await?;
        }
        for sequence in &sequences {
            self.try_sequence(sequence, &mut shape).await?;
        }
        Ok(shape)
    }

    /// Runs a statement that may fail: then it is not remembered.
    async fn try_statement(&mut self, attempt: &AttemptedStatement, shape: &mut Shape) -> Result<(), DestinationError> {
        let notice = match self.attempt(std::slice::from_ref(&attempt.statement)).await? {
            None => format!("table {}: {}", self.name, attempt.told),
            Some(error) => {
                attempt.undo.apply(shape);
                format!("table {}: not yet possible: {}: {error}", self.name, attempt.told)
            }
        };
        self.follower.notices.push(notice);
        Ok(())
    }

    /// Creates a sequence under the first name that is free; a role that may not create one goes without.
    async fn try_sequence(&mut self, sequence: &NewSequence, shape: &mut Shape) -> Result<(), DestinationError> {
        let mut refused = None;
        for statements in sequence.tries() {
            refused = self.attempt(statements).await?;
            if refused.as_ref().is_none_or(|error| !is_taken(error)) {
                break;
            }
        }
        let notice = match refused {
            None => sequence.told(),
            Some(error) => {
                sequence.undo(shape);
                sequence.refused(&error)
            }
        };
        self.follower.notices.push(format!("table {}: {notice}", self.name));
        Ok(())
    }

    /// What to do where a statement was refused because other tables have columns of this table's row type; the transaction is over then.
    async fn dependants_hint(&mut self, error: &SessionError) -> Result<Option<String>, DestinationError> {
        if !dependants::may_be_in_the_way(error) {
            return Ok(None);
        }
        self.statement("ROLLBACK").await?;
        let answer = self.ask(&dependants::ask(self.name)).await?;
        Ok(dependants::hint(self.name, answer.first().and_then(Option::as_deref))?)
    }

    /// Looks at what was created, inside the transaction that created it: an error rolls that back.
    async fn review(&mut self, created: &Created) -> Result<(), DestinationError> {
        let expressions = self.expressions().await?;
        match created.ask(&expressions) {
            Some(question) => review::answer(&self.ask(&question).await?),
            None => Ok(()),
        }
    }

    /// Runs statements that may fail, all or none of them; returns what the server refuses.
    async fn attempt(&mut self, statements: &[String]) -> Result<Option<SessionError>, SessionError> {
        let mut request = PipelinedRequest::new();
        request.run("SAVEPOINT headwater_attempt");
        statements.iter().for_each(|statement| request.run(statement));
        request.run("RELEASE SAVEPOINT headwater_attempt");
        match self.writer.session.round_trip(DOING, request, STATEMENT_MAX).await {
            Ok(_) => Ok(None),
            Err(error) if error.server().is_some() => {
                self.statement("ROLLBACK TO SAVEPOINT headwater_attempt").await?;
                Ok(Some(error))
            }
            Err(error) => Err(error),
        }
    }

    async fn statement(&mut self, sql: &str) -> Result<(), SessionError> {
        let mut request = PipelinedRequest::new();
        request.run(sql);
        self.writer.session.round_trip(DOING, request, STATEMENT_MAX).await.map(|_| ())
    }

    async fn ask(&mut self, sql: &str) -> Result<Vec<Option<String>>, DestinationError> {
        let mut request = PipelinedRequest::new();
        request.query(sql);
        Ok(one_row(self.writer.session.round_trip(DOING, request, self.map.settings.timeout).await?))
    }

    /// The table as this session sees it now.
    async fn read_table(&mut self) -> Result<Option<TableWithTypes>, DestinationError> {
        let Some(text) = self.ask(&ask_table(self.name)).await?.into_iter().next().flatten() else { return Ok(None) };
        let table = read_table(&text)?;
        let ids: Vec<_> = table.columns.iter().map(|column| column.type_id).collect();
        let types = match self.ask(&ask_types(&ids)).await?.into_iter().next().flatten() {
            Some(text) => read_types(&text)?,
            None => Types::new(),
        };
        Ok(Some(TableWithTypes { table, types }))
    }

    async fn expressions(&mut self) -> Result<Expressions, DestinationError> {
        if let Some(known) = &self.follower.expressions {
            return Ok(known.clone());
        }
        let answer = self.ask(&expressions::ask()).await?.into_iter().next().flatten().unwrap_or_default();
        let expressions = expressions::parse(&answer)?;
        self.follower.expressions = Some(expressions.clone());
        Ok(expressions)
    }

    /// Creates the types that the destination lacks, and asks how it writes each column's.
    async fn resolve(
        &mut self,
        types: &Types,
        columns: &[&ColumnDefinition],
        expressions: &Expressions,
        created: &mut Created,
    ) -> Result<ResolvedTypes, DestinationError> {
        let mut left_out = Vec::new();
        for id in needed_types(types, columns.iter().map(|column| column.type_id))? {
            let name = quote_literal(&type_name(types, id));
            let sql = format!("SELECT pg_catalog.to_regtype({name}) IS NOT NULL");
            if self.ask(&sql).await?.first().and_then(|found| found.as_deref()) == Some("t") {
                continue;
            }
            if let Some((extension, schema)) = extension_of(types, id) {
                let answer = self.ask(&extensions::ask(&extension, &schema)).await?.into_iter().next().flatten();
                let hint = extensions::hint(&answer.unwrap_or_default(), &extension, &schema)?;
                return Err(DestinationError::Refused(missing_type_report(types, id).hint(hint)));
            }
            let statements = type_creation(types, id, expressions)?;
            if !self.map.settings.follow_schema_changes && !statements.sql.is_empty() {
                return Err(missing_type(types, id));
            }
            for statement in &statements.sql {
                self.statement(statement).await?;
                self.has_changed = true;
            }
            created.add_type(types.get(&id).map(TypeDefinition::qualified_name));
            left_out.extend(statements.left_out);
        }
        let mut resolved = Vec::new();
        for column in columns {
            let name = quote_literal(&type_name(types, column.type_id));
            let known = modifier_at(column.type_id, column.type_modifier, types, expressions.version());
            let sql = format!("SELECT pg_catalog.format_type(pg_catalog.to_regtype({name}), {known})");
            match self.ask(&sql).await?.into_iter().next().flatten() {
                Some(text) => resolved.push(((column.type_id, column.type_modifier), text)),
                None => return Err(missing_type(types, column.type_id)),
            }
        }
        Ok(ResolvedTypes::new(resolved.into_iter(), left_out))
    }
}

/// Types and collations go by their names: what the destination has under one may take keys for equal that the source tells apart.
fn refuse_looser(source: End<'_>, destination: End<'_>, added: &[Ident]) -> Result<(), DestinationError> {
    let found = determinism::looser(source, destination, |column| added.contains(column));
    let mut looser = LooserCollations::default();
    looser.add_table(&destination.table.name(), destination, &found);
    looser.report().map_or(Ok(()), |report| Err(DestinationError::Refused(report)))
}

fn obstacle_report(table: &QualifiedName, obstacle: FollowObstacle) -> DestinationError {
    DestinationError::Refused(match obstacle {
        FollowObstacle::Misfits(misfits) => {
            let report = misfit_report(table, &misfits);
            ErrorReport {
                message: format!("table {table} has changed at the source in a way that cannot be followed"),
                ..report
            }
        }
        FollowObstacle::Renamed(renamed) => return DestinationError::Renamed { table: table.clone(), renamed },
        FollowObstacle::Copy(reason) => return DestinationError::NeedsCopy { table: table.clone(), reason },
    })
}

/// What to say of a table that has another name at the source; `is_followed` says whether the configuration has that name, too.
pub fn renamed_report(table: &QualifiedName, renamed: &QualifiedName, is_followed: bool) -> ErrorReport {
    let report = ErrorReport::new(format!("table {table} is now called {renamed} at the source"));
    if is_followed {
        return report
            .detail(format!("It has taken the name of another table that is followed, and no table is called {table}."))
            .hint(format!(
                "Call a table {table} again at the source. Or take {table} out of tables and start once with --resnapshot, \
                 which brings {renamed} to the rows that it has now."
            ));
    }
    report
        .detail("The configuration and the destination know it by its old name.")
        .hint(format!(
            "Call it {table} again at the source. Or keep the new name: run the following at the destination, put {renamed} \
             into tables in its place, and start once with --resnapshot={}, which writes only what differs:\n{}",
            shell_word(&renamed.to_string()),
            rename(table, renamed)
        ))
}

fn stopped_report(table: &QualifiedName, told: &[String], statements: &[String]) -> ErrorReport {
    let told = if told.is_empty() { "its columns or keys have changed".to_owned() } else { told.join("; ") };
    let statements: Vec<String> = statements.iter().map(|statement| format!("{};", shown_sql(statement))).collect();
    ErrorReport::new(format!("table {table} has changed at the source, and schema_changes = \"stop\""))
        .detail(format!("At the source: {told}."))
        .hint(format!("Run at the destination, or set schema_changes = \"follow\":\n{}", statements.join("\n")))
}

/// A statement that the destination refused: it is the operator's to run, or to make possible.
fn unfollowed(table: &QualifiedName, statement: &str, hint: Option<String>, error: SessionError) -> DestinationError {
    match error.server() {
        // What passes by itself is for `error_policy` to know.
        Some(server) if !matches!(server.code.class(), "08" | "40" | "53" | "55" | "57" | "58") => {
            let report = ErrorReport::new(format!(
                "table {table} could not be changed as it was at the source: {error}"
            ))
            .hint(hint.unwrap_or_else(|| {
                format!("Make this possible at the destination, or run it there:\n{};", shown_sql(statement))
            }));
            let lacks_collation = server.code.as_str() == "42704" && statement.contains(" COLLATE ");
            DestinationError::Refused(match lacks_collation {
                true => report.detail("headwater check prints the statement that creates the collation."),
                false => report,
            })
        }
        Some(_) | None => error.into(),
    }
}

/// The statements that give the destination's table its new name and schema.
fn rename(from: &QualifiedName, to: &QualifiedName) -> String {
    let mut statements = Vec::new();
    if from.schema != to.schema {
        statements.push(format!("CREATE SCHEMA IF NOT EXISTS {};", to.schema));
        statements.push(format!("ALTER TABLE {from} SET SCHEMA {};", to.schema));
    }
    if from.name != to.name {
        let moved = QualifiedName { schema: to.schema.clone(), name: from.name.clone() };
        statements.push(format!("ALTER TABLE {moved} RENAME TO {};", to.name));
    }
    statements.join("\n")
}
