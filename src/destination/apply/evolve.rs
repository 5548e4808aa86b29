//! A table that the stream describes in another way than before: the destination's is brought to the same state.
//!
//! Done between two pieces of a large transaction, once everything before is answered: in the stream's order and inside
//! the source transaction's own transaction. What to do is [`crate::schema_change`]'s to say; here the writing session is
//! asked for the table as it is now, and the statements are run, one at a time.
//!
//! What the rows may not allow yet (NOT NULL, a unique index) is tried behind a savepoint: the catalog may be ahead of the
//! stream. So is a new sequence, which our role may not be allowed to create. What failed is not remembered, so it is tried
//! again when the table is described next.

use std::time::Duration;

use super::super::collations::LooserCollations;
use super::super::error::DestinationError;
use super::super::foreign_code::{Writes, named_collations, named_types, types_of};
use super::super::review::{self, Created};
use super::super::schema::{
    ResolvedTypes, extension_of, missing_type, missing_type_report, needed_types, type_creation, type_name,
};
use super::super::{dependants, expressions, extensions, shapes};
use super::Applier;
use crate::catalog::determinism;
use crate::catalog::fit::{self, End, modifier_at};
use crate::catalog::schema::{ColumnDefinition, TableDefinition, TypeDefinition, Types};
use crate::catalog::shape::{Shape, ShapeColumn};
use crate::destination::first_row::one_row;
use crate::destination::misfits::misfit_report;
use crate::destination::name_taken::is_taken;
use crate::pg::{ErrorReport, Ident, QualifiedName, quote_literal, shell_word, shown_sql};
use crate::schema_change::ddl::Creation;
use crate::schema_change::expression::Expressions;
use crate::schema_change::{Change, Evolution, NewSequence, Obstacle, Undo};
use crate::session::{PipelinedRequest, SessionError, ask_table, ask_types, read_description, read_table, read_types};
use crate::transaction::SchemaChange;

const DOING: &str = "following a schema change";

/// A table that is rewritten, or gets an index, takes honest hours.
const STATEMENT_MAX: Duration = Duration::from_secs(24 * 3600);

impl Applier {
    /// What schema changes were followed since this was asked last, for the log.
    pub fn take_told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    /// Follows the schema change that waits, once nothing is under way.
    pub(super) async fn follow_waiting(&mut self) -> Result<(), DestinationError> {
        if self.under_way.is_empty()
            && let Some(change) = self.schema_change.take()
        {
            self.follow(change).await?;
        }
        Ok(())
    }

    async fn follow(&mut self, change: SchemaChange) -> Result<(), DestinationError> {
        let SchemaChange { relation, description, vacant } = change;
        let commit_lsn = self.large_commit_lsn();
        if !self.is_live(relation.id, commit_lsn) {
            return Ok(());
        }
        let Some(followed) = self.followed.get(&relation.id) else { return Ok(()) };
        let followed_table = followed.clone();
        let name = followed_table.name.clone();
        let (source, source_types) = read_description(&description)?;
        self.conflicts.described(source.clone());
        let Some((table, types)) = self.read_table(&name).await? else {
            // For `bind` to report, with its hint.
            return Ok(());
        };
        followed_table.refuse_other(table.id)?;
        let published = |column: &Ident| relation.columns.iter().any(|c| c.name == *column);
        let known = match self.ask(&shapes::ask_locked(relation.id)).await?.into_iter().next().flatten() {
            Some(text) => shapes::parse(&text)?,
            // A bookkeeping of before shapes: what is there now counts as known, and `bind` compares.
            None => Shape::of(&source, &source_types, published),
        };
        let kept = |column: &&ShapeColumn| relation.columns.iter().any(|now| now.name == column.name);
        if let Some(lost) = known.columns.iter().filter(kept).find(|column| table.column(&column.name).is_none()) {
            let wanted = source.column(&lost.name);
            let is_known = |column: &Ident| {
                source.column(column).is_some() || known.columns.iter().any(|known| known.name == *column)
            };
            let renamed = wanted.and_then(|wanted| {
                let wanted = (wanted.type_id, wanted.type_modifier, &source_types);
                fit::renamed_column(wanted, End { table: &table, types: &types }, is_known).cloned()
            });
            return Err(DestinationError::ColumnLost { table: name, column: lost.name.clone(), renamed });
        }
        self.source_types.extend(source_types.iter().map(|(id, definition)| (*id, definition.clone())));

        let expressions = self.expressions().await?;
        let columns: Vec<&ColumnDefinition> = source.columns.iter().filter(|column| published(&column.name)).collect();
        let mut created = Created::default();
        let resolved = self.resolve(&source_types, &columns, &expressions, &mut created).await?;
        let names: Vec<_> = columns.iter().map(|column| column.name.clone()).collect();
        let followed = {
            let creation = Creation {
                table: &source,
                schema: &name.schema,
                type_sql: &|column| resolved.sql(column),
                types: &source_types,
                expressions: &expressions,
                columns: &names,
            };
            Change {
                known: &known,
                relation: &relation,
                source: End { table: &source, types: &source_types },
                destination: End { table: &table, types: &types },
                creation: &creation,
                vacant: (&vacant, commit_lsn),
            }
            .follow()
        };
        let (evolution, shape) = followed.map_err(|obstacle| obstacle_report(&name, obstacle))?;
        if !evolution.statements.is_empty() {
            self.refuse_foreign_types(&source_types, (&source, &resolved), &evolution).await?;
        }
        self.told.extend(resolved.left_out);
        let added = evolution.added.clone();
        self.run(&name, evolution, (shape, relation.id), created).await?;
        if self.changed {
            self.changed = false;
            self.read_again(&name).await?;
            // The statements went by the name.
            if let Some(table) = self.catalog.table(&name) {
                followed_table.refuse_other(table.id)?;
                let now = End { table, types: &self.catalog.types };
                refuse_looser(End { table: &source, types: &source_types }, now, &added)?;
            }
        }
        if relation.name != name {
            self.former_names.insert((relation.id, relation.name.clone()));
        }
        self.bound.remove(&relation.id);
        Ok(())
    }

    /// A type that the source has now may have been waiting under its name: its checks, its default and its casts would run in the
    /// statements themselves, before the monitor looks. So may a collation. Only what the statements name: the source's other columns are
    /// there, of types and collations that the table itself tells.
    async fn refuse_foreign_types(
        &mut self,
        source_types: &Types,
        (source, resolved): (&TableDefinition, &ResolvedTypes),
        evolution: &Evolution,
    ) -> Result<(), DestinationError> {
        let attempted = evolution.attempts.iter().map(|attempt| &attempt.statement);
        let statements: Vec<&String> = evolution.statements.iter().chain(attempted).collect();
        let is_named = |name: &str| statements.iter().any(|statement| statement.contains(name));
        let columns = || source.columns.iter().filter(|column| is_named(&resolved.sql(column)));
        let used = types_of(source_types, columns())?;
        let types = named_types(&used);
        let mut collations = named_collations(source.columns.iter(), source.indexes.iter(), &Types::new());
        collations.retain(|collation| is_named(&collation.sql()));
        collations.extend(named_collations(std::iter::empty(), std::iter::empty(), &used));
        if types.is_empty() && collations.is_empty() {
            return Ok(());
        }
        let trusted_roles = self.settings.trusted_roles.clone();
        let names_owners = self.settings.names_owners;
        let writes = Writes { types, collations, trusted_roles, names_owners, ..Writes::default() };
        let answer = self.ask(&writes.ask()).await?;
        writes.refuse(answer.first().and_then(Option::as_deref))
    }

    async fn run(
        &mut self,
        name: &QualifiedName,
        evolution: Evolution,
        (mut shape, id): (Shape, crate::pg::RelationId),
        mut created: Created,
    ) -> Result<(), DestinationError> {
        let Evolution { mut statements, remedies: _, added, fills, mut attempts, mut sequences, told } = evolution;
        let indexes = attempts.iter().filter_map(|attempt| match &attempt.undo {
            Undo::Unique(name) => Some(name.clone()),
            Undo::NotNull(_) => None,
        });
        created.add_parts(name, added, indexes.collect());
        if !self.settings.follow_schema_changes {
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
                let hint = self.dependants_hint(name, &error).await?;
                return Err(unfollowed(name, (statement, hint), error));
            }
        }
        self.changed |= !statements.is_empty() || !attempts.is_empty() || !sequences.is_empty();
        self.told.extend(told.into_iter().map(|told| format!("table {name}: {told}")));
        for attempt in &attempts {
            match self.attempt(std::slice::from_ref(&attempt.statement)).await? {
                None => self.told.push(format!("table {name}: {}", attempt.told)),
                Some(error) => {
                    attempt.undo.apply(&mut shape);
                    self.told.push(format!("table {name}: not yet possible: {}: {error}", attempt.told));
                }
            }
        }
        for sequence in &sequences {
            let mut refused = None;
            for statements in sequence.tries() {
                refused = self.attempt(statements).await?;
                if refused.as_ref().is_none_or(|error| !is_taken(error)) {
                    break;
                }
            }
            match refused {
                None => self.told.push(format!("table {name}: {}", sequence.told())),
                Some(error) => {
                    sequence.undo(&mut shape);
                    self.told.push(format!("table {name}: {}", sequence.refused(&error)));
                }
            }
        }
        self.review(&created).await?;
        Ok(self.statement(&shapes::remember(id, &shape)).await?)
    }

    /// What to do where a statement was refused because other tables have columns of this table's row type; the transaction is over then.
    async fn dependants_hint(
        &mut self,
        name: &QualifiedName,
        error: &SessionError,
    ) -> Result<Option<String>, DestinationError> {
        if !dependants::may_be_in_the_way(error) {
            return Ok(None);
        }
        self.statement("ROLLBACK").await?;
        let answer = self.ask(&dependants::ask(name)).await?;
        Ok(dependants::hint(name, answer.first().and_then(Option::as_deref))?)
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
        Ok(one_row(self.writer.session.round_trip(DOING, request, self.settings.timeout).await?))
    }

    /// The table as this session sees it now, with its types.
    async fn read_table(&mut self, name: &QualifiedName) -> Result<Option<(TableDefinition, Types)>, DestinationError> {
        let Some(text) = self.ask(&ask_table(name)).await?.into_iter().next().flatten() else { return Ok(None) };
        let table = read_table(&text)?;
        let ids: Vec<_> = table.columns.iter().map(|column| column.type_id).collect();
        let types = match self.ask(&ask_types(&ids)).await?.into_iter().next().flatten() {
            Some(text) => read_types(&text)?,
            None => Types::new(),
        };
        Ok(Some((table, types)))
    }

    async fn read_again(&mut self, name: &QualifiedName) -> Result<(), DestinationError> {
        if let Some((table, types)) = self.read_table(name).await? {
            self.catalog.replace(table, types);
        }
        Ok(())
    }

    async fn expressions(&mut self) -> Result<Expressions, DestinationError> {
        if let Some(known) = &self.expressions {
            return Ok(known.clone());
        }
        let answer = self.ask(&expressions::ask()).await?.into_iter().next().flatten().unwrap_or_default();
        let expressions = expressions::parse(&answer)?;
        self.expressions = Some(expressions.clone());
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
            if !self.settings.follow_schema_changes && !statements.sql.is_empty() {
                return Err(missing_type(types, id));
            }
            for statement in &statements.sql {
                self.statement(statement).await?;
                self.changed = true;
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
fn refuse_looser(source: End<'_>, here: End<'_>, added: &[Ident]) -> Result<(), DestinationError> {
    let found = determinism::looser(source, here, |column| added.contains(column));
    let mut looser = LooserCollations::default();
    looser.add_table(&here.table.name(), (here.table, here.types), &found);
    looser.report().map_or(Ok(()), |report| Err(DestinationError::Refused(report)))
}

fn obstacle_report(table: &QualifiedName, obstacle: Obstacle) -> DestinationError {
    DestinationError::Refused(match obstacle {
        Obstacle::Misfits(misfits) => {
            let report = misfit_report(table, &misfits);
            ErrorReport {
                message: format!("table {table} has changed at the source in a way that cannot be followed"),
                ..report
            }
        }
        Obstacle::Renamed(renamed) => return DestinationError::Renamed { table: table.clone(), renamed },
        Obstacle::Copy(reason) => return DestinationError::NeedsCopy { table: table.clone(), reason },
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
fn unfollowed(
    table: &QualifiedName,
    (statement, hint): (&str, Option<String>),
    error: SessionError,
) -> DestinationError {
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
