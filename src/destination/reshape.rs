//! Gives a table that is about to be copied again the columns that the source's has now.
//!
//! Called by `table_sync::handover` for suspended tables, before anything is staged. [`crate::schema_change`] says what to
//! do; this module does it, in one transaction together with what is remembered of the source's table. It does only what
//! loses nothing: the old rows serve until the copy is published. A crash leaves the table as it was or as it should be; in
//! the second case the next run finds nothing to do.

use std::time::Duration;

use super::catalog::Catalog;
use super::error::DestinationError;
use super::review::Created;
use super::schema::resolve_types;
use super::{dependants, expressions, shapes};
use crate::catalog::fit::{self, End};
use crate::catalog::leaves::Measured;
use crate::catalog::schema::{ColumnDefinition, TableDefinition, Types};
use crate::catalog::shape::Shape;
use crate::destination::misfits::misfit_report;
use crate::destination::name_taken::is_taken;
use crate::pg::{Column, ErrorReport, Ident, Lsn, QualifiedName, Relation, shown_sql};
use crate::schema_change::ddl::Creation;
use crate::schema_change::{Evolution, FollowObstacle, NewSequence, TableChange};
use crate::session::{SessionError, SqlClient, SqlState};

const DOING: &str = "bringing a table to the source's shape";

/// The source's table as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// The table.
    pub table: &'a TableDefinition,
    /// Its published columns.
    pub columns: &'a [Ident],
    /// What its columns are made of.
    pub types: &'a Types,
}

impl<'a> Original<'a> {
    /// The columns that the destination has, too: those that come, and those that are computed.
    fn taken_over(self) -> impl Iterator<Item = &'a ColumnDefinition> {
        self.table.columns.iter().filter(|column| column.generated.is_some() || self.columns.contains(&column.name))
    }
}

/// Brings the destination's table to the source's shape; returns what was done, in sentences. A table that does not exist
/// is created by the copy.
///
/// # Errors
/// [`DestinationError`]: what would lose values is the operator's, with the statement; or the session is lost.
pub async fn reshape(
    client: &SqlClient,
    original: Original<'_>,
    here: &Catalog,
    lock_timeout: Duration,
) -> Result<Vec<String>, DestinationError> {
    let name = original.table.name();
    let Some(table) = here.table(&name) else { return Ok(Vec::new()) };
    let bound = format!("SET LOCAL lock_timeout = {}", lock_timeout.as_millis());
    // By itself: what an operator may have to run needs the types.
    client.statement_behind("BEGIN", DOING, &bound).await?;
    let mut told = ended(client, create_types(client, original).await).await?;
    client.statement_behind("BEGIN", DOING, &bound).await?;
    told.extend(ended(client, inside(client, original, End { table, types: &here.types }).await).await?);
    Ok(told.into_iter().map(|told| format!("table {name}: {told}")).collect())
}

/// Ends a transaction as what was done in it demands.
async fn ended<T>(client: &SqlClient, done: Result<T, DestinationError>) -> Result<T, DestinationError> {
    let ended = client.batch(DOING, if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    let done = done?;
    ended?;
    Ok(done)
}

/// Creates the types that the destination lacks; returns what of them was left out.
async fn create_types(client: &SqlClient, original: Original<'_>) -> Result<Vec<String>, DestinationError> {
    let allowed = expressions::read(client).await?;
    let mut created = Created::default();
    let taken_over: Vec<&ColumnDefinition> = original.taken_over().collect();
    let resolved = resolve_types(client, original.types, &taken_over, &allowed, &mut created).await?;
    created.review(client, &allowed).await?;
    Ok(resolved.left_out)
}

async fn inside(client: &SqlClient, original: Original<'_>, here: End<'_>) -> Result<Vec<String>, DestinationError> {
    let Original { table, columns, types } = original;
    let name = table.name();
    let id = table.relation_id();
    not_followed_otherwise(client, table).await?;
    // Tables that have changed names among each other are remembered by those of before, and so of the other's columns here.
    let remembered = client.query_opt(DOING, &shapes::ask(id), &[]).await?;
    let remembered = remembered.map(|row| shapes::parse(row.get(0)?)).transpose()?;
    let mut known = remembered.filter(|known| known.name == name).unwrap_or_else(|| by_name(original, here));
    let allowed = expressions::read(client).await?;
    let mut created = Created::default();
    let taken_over: Vec<&ColumnDefinition> = original.taken_over().collect();
    let resolved = resolve_types(client, types, &taken_over, &allowed, &mut created).await?;
    let published = table.columns.iter().filter(|column| columns.contains(&column.name));
    let relation = Relation {
        leaves: Default::default(),
        id,
        name: name.clone(),
        replica_identity: table.replica_identity,
        columns: published.map(described).collect(),
    };
    // What somebody has dropped here comes again; the copy brings its values.
    let is_sent = |name: &Ident| relation.columns.iter().any(|column| column.name == *name);
    known.columns.retain(|column| here.table.column(&column.name).is_some() || !is_sent(&column.name));
    let evolution = {
        let creation = Creation {
            table,
            schema: &name.schema,
            type_sql: &|column| resolved.sql(column),
            types,
            expressions: &allowed,
            columns,
        };
        let (source, destination) = (End { table, types }, here);
        let (known, relation, creation) = (&known, &relation, &creation);
        // No partition is named.
        let (measured, commit_lsn) = (&Measured::default(), Lsn::INVALID);
        TableChange { known, relation, source, destination, creation, measured, commit_lsn }.reshape()
    };
    let (Evolution { statements, remedies, added, sequences, mut told, .. }, mut shape) = match evolution {
        Ok(evolution) => evolution,
        Err(FollowObstacle::Misfits(misfits)) => return Err(DestinationError::Refused(misfit_report(&name, &misfits))),
        Err(FollowObstacle::Copy(reason)) => return Err(DestinationError::NeedsCopy { table: name, reason }),
        Err(FollowObstacle::Renamed(renamed)) => {
            return Err(DestinationError::StagingLost(format!("table {name} is now called {renamed}")));
        }
    };
    for statement in &statements {
        if let Err(error) = client.statement(DOING, statement).await {
            return Err(unchanged(client, &name, statement, remedies.get(statement), error).await?);
        }
    }
    created.add_parts(&name, added, Vec::new());
    created.review(client, &allowed).await?;
    for sequence in &sequences {
        match give(client, sequence).await? {
            None => told.push(sequence.told()),
            Some(error) => {
                sequence.undo(&mut shape);
                told.push(sequence.refused(&error));
            }
        }
    }
    client.statement(DOING, &shapes::remember(id, &shape)).await?;
    Ok(told)
}

/// A statement that the destination refused, with what helps.
///
/// # Errors
/// As [`reshape`], where even that cannot be asked for.
async fn unchanged(
    client: &SqlClient,
    name: &QualifiedName,
    statement: &str,
    remedy: Option<&String>,
    error: SessionError,
) -> Result<DestinationError, DestinationError> {
    // What passes by itself is for `error_policy` to know.
    if error.code().is_none_or(passes) {
        return Ok(error.into());
    }
    let mut hint = None;
    if dependants::may_be_in_the_way(&error) {
        client.batch(DOING, "ROLLBACK").await?;
        let row = client.query_opt(DOING, &dependants::ask(name), &[]).await?;
        let answer: Option<String> = row.map(|row| row.get(0)).transpose()?;
        hint = dependants::hint(name, answer.as_deref())?;
        // For the end of the transaction that the caller has begun.
        client.batch(DOING, "BEGIN").await?;
    }
    let hint = hint.or_else(|| remedy.map(|remedy| shown_sql(remedy).to_string())).unwrap_or_else(|| {
        format!("Make this possible at the destination, or run it there:\n{};", shown_sql(statement))
    });
    let message = format!("table {name} could not be brought to the source's shape: {error}");
    Ok(DestinationError::Refused(ErrorReport::new(message).hint(hint)))
}

/// What is remembered of a source table belongs to one table here: until it is known that the one that follows it has to be copied,
/// too, another one does not take its place.
async fn not_followed_otherwise(client: &SqlClient, table: &TableDefinition) -> Result<(), DestinationError> {
    let name = table.name();
    let sql = "SELECT t.schema_name, t.table_name FROM headwater.tables t
               WHERE t.source_id = $1 AND t.state = 'live' AND (t.schema_name, t.table_name) <> ($2::text, $3::text)";
    let (schema, table_name) = (name.schema.as_str(), name.name.as_str());
    match client.query_opt(DOING, sql, &[&table.id, &schema, &table_name]).await? {
        Some(row) => {
            let other = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
            Err(DestinationError::StagingLost(format!("{other} is now called {name} at the source")))
        }
        None => Ok(()),
    }
}

/// Makes a sequence under the first of its names that is free; returns what the server refuses.
async fn give(client: &SqlClient, sequence: &NewSequence) -> Result<Option<SessionError>, SessionError> {
    let mut refused = None;
    for statements in sequence.tries() {
        client.batch(DOING, "SAVEPOINT headwater_attempt").await?;
        refused = match client.statements(DOING, statements).await {
            Ok(()) => None,
            Err(error) if error.server().is_some_and(|server| !server.fatal) => Some(error),
            Err(error) => return Err(error),
        };
        let end = match refused {
            Some(_) => "ROLLBACK TO SAVEPOINT headwater_attempt",
            None => "RELEASE SAVEPOINT headwater_attempt",
        };
        client.batch(DOING, end).await?;
        if refused.as_ref().is_none_or(|error| !is_taken(error)) {
            break;
        }
    }
    Ok(refused)
}

/// Connections, serialization, resources, locks, operators at work, the system.
fn passes(code: SqlState) -> bool {
    matches!(code.class(), "08" | "40" | "53" | "55" | "57" | "58")
}

fn described(column: &ColumnDefinition) -> Column {
    let ColumnDefinition { name, type_id, type_modifier, .. } = column;
    Column { name: name.clone(), in_identity: false, type_id: *type_id, type_modifier: *type_modifier }
}

/// What is known of a table that was never seen: its columns are those of the same names here, with the types that they have here
/// where these do not take the source's.
fn by_name(original: Original<'_>, end: End<'_>) -> Shape {
    let Original { table, columns, types } = original;
    let here = end.table;
    let mut shape = Shape::of(table, types, |name| columns.contains(name) && here.column(name).is_some());
    for column in &mut shape.columns {
        let (Some(here), Some(there)) = (here.column(&column.name), table.column(&column.name)) else { continue };
        column.not_null &= here.not_null;
        if !fit::column_takes(&described(there), types, here, end.types) {
            (column.type_id, column.type_modifier) = (here.type_id, here.type_modifier);
        }
    }
    shape.unique.retain(|name| here.indexes.iter().any(|index| index.unique && index.name == *name));
    shape
}
