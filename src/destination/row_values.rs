//! The rows of changes as text, for an operator who asked to see values.
//!
//! In come changes as they arrived, values in text or binary; out come their values as PostgreSQL prints them. Used by
//! `letter_text` (dead letters) and by `maintenance::conflict_rows`; no log, error, metric or page calls this.
//!
//! How a binary value reads is asked of the destination, which knows its types: a built-in type by its own OID, a domain
//! by the type below it, an array or a composite of built-in types and enums by its OID here, an enum is its label. A value of
//! another type, whose functions somebody else may have made, is shown in hexadecimal.
//!
//! Bound: [`CHANGES_AT_ONCE`] changes a question.

use std::collections::HashMap;

use super::error::DestinationError;
use super::writer::{Writer, WritingSettings};
use crate::catalog::schema::{TypeKind, Types};
use crate::catalog::value_format::Carried;
use crate::pg::{Datum, Ident, QualifiedName, Relation, Tuple, TypeId};
use crate::session::{
    Format, PipelinedRequest, SessionError, SqlClient, StatementAnswer, WritingSession, describe_types, refuse_endless,
};
use crate::transaction::{Change, RowChange};
use crate::wire::OldTuple;

/// Changes whose values are asked for in one request: enough to make round trips cheap, few enough to hold in memory.
const CHANGES_AT_ONCE: usize = 500;

/// A value for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShownValue {
    /// A large value that the update left as it was; it is not in the stream.
    Unchanged,
    /// NULL
    Null,
    /// As PostgreSQL prints it.
    Text(String),
    /// A binary value of a type that the destination does not know, in hexadecimal.
    Unreadable(String),
}

/// A row, or the key of one: its columns in the table's order.
pub type ShownRow = Vec<(Ident, ShownValue)>;

/// A change with its rows as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShownChange {
    /// An insert.
    Insert(ShownRow),
    /// An update.
    Update {
        /// The old row, or the old key when it changed.
        old: Option<ShownRow>,
        /// The new row.
        new: ShownRow,
    },
    /// A delete, with the old row or its key.
    Delete(ShownRow),
    /// A truncate.
    Truncate,
}

/// How the values of a column are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadAs {
    /// The destination prints it, as this type.
    Type(TypeId),
    /// The bytes are the label.
    Label,
    /// Nobody knows.
    Hexadecimal,
}

/// Reads the values of changes.
///
/// # Errors
/// [`DestinationError`] when the server cannot be asked.
pub async fn shown_changes(
    client: &SqlClient,
    settings: &WritingSettings,
    changes: &[Change],
) -> Result<Vec<ShownChange>, DestinationError> {
    let types = column_types(client, changes).await?;
    let (mut session, _) = Writer::of_command(settings).await?;
    let mut shown = Vec::with_capacity(changes.len());
    for chunk in changes.chunks(CHANGES_AT_ONCE) {
        let tuples: Vec<RowOf<'_>> = chunk.iter().flat_map(rows_of).collect();
        let mut texts = texts(&mut session, settings, &types, &tuples).await?.into_iter();
        for change in chunk {
            let mut next = || texts.next().unwrap_or_default();
            shown.push(match change {
                Change::Row(RowChange::Insert { .. }) => ShownChange::Insert(next()),
                Change::Row(RowChange::Update { old: Some(_), .. }) => {
                    let old = Some(next());
                    ShownChange::Update { old, new: next() }
                }
                Change::Row(RowChange::Update { old: None, .. }) => ShownChange::Update { old: None, new: next() },
                Change::Row(RowChange::Delete { .. }) => ShownChange::Delete(next()),
                Change::Truncate { .. } => ShownChange::Truncate,
            });
        }
    }
    session.close().await;
    Ok(shown)
}

/// A tuple, and which of its columns mean something.
struct RowOf<'a> {
    relation: &'a Relation,
    tuple: &'a Tuple,
    /// Only the identity's columns were sent; the others read as NULL.
    only_identity: bool,
}

impl<'a> RowOf<'a> {
    fn values(&self) -> impl Iterator<Item = (Datum<'a>, &'a crate::pg::Column)> {
        let only_identity = self.only_identity;
        self.tuple.columns().zip(&self.relation.columns).filter(move |(_, column)| !only_identity || column.in_identity)
    }
}

/// The rows of a change, the old one first.
fn rows_of(change: &Change) -> Vec<RowOf<'_>> {
    fn old_row<'a>(relation: &'a Relation, old: &'a OldTuple) -> RowOf<'a> {
        RowOf { relation, tuple: old.tuple(), only_identity: matches!(old, OldTuple::Key(_)) }
    }
    match change {
        Change::Row(RowChange::Insert { relation, new }) => vec![RowOf { relation, tuple: new, only_identity: false }],
        Change::Row(RowChange::Update { relation, old, new }) => {
            let old = old.as_ref().map(|old| old_row(relation, old));
            old.into_iter().chain([RowOf { relation, tuple: new, only_identity: false }]).collect()
        }
        Change::Row(RowChange::Delete { relation, old }) => vec![old_row(relation, old)],
        Change::Truncate { .. } => Vec::new(),
    }
}

/// The destination's types of columns whose source types are not built in.
async fn column_types(
    client: &SqlClient,
    changes: &[Change],
) -> Result<HashMap<(QualifiedName, Ident), ReadAs>, DestinationError> {
    let sql = "SELECT n.nspname::text, c.relname::text, a.attname::text, a.atttypid
               FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS wanted (schema_name, table_name)
               JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name
               JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped";
    let mut names: Vec<&QualifiedName> = changes.iter().flat_map(rows_of).map(|row| &row.relation.name).collect();
    names.sort_unstable();
    names.dedup();
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = client.query("looking at column types", sql, &[&schemas, &tables]).await?;
    let columns: Vec<((QualifiedName, Ident), TypeId)> = rows
        .iter()
        .map(|row| {
            let table = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
            Ok(((table, Ident::new(row.get::<&str>(2)?)), TypeId(row.get(3)?)))
        })
        .collect::<Result<_, SessionError>>()?;
    let ids: Vec<TypeId> = columns.iter().map(|(_, id)| *id).filter(|id| !id.is_built_in()).collect();
    let types = if ids.is_empty() { Types::new() } else { describe_types(client, &ids).await? };
    refuse_endless(&types)?;
    Ok(columns.into_iter().map(|(column, id)| (column, read_as(id, &types))).collect())
}

fn read_as(id: TypeId, types: &Types) -> ReadAs {
    let Some(found) = Carried::of(id, -1, types).filter(|_| !id.is_built_in()) else {
        return if id.is_built_in() { ReadAs::Type(id) } else { ReadAs::Hexadecimal };
    };
    match found.base() {
        Some(base) => read_as(base.definition.id, types),
        None if found.definition.kind == TypeKind::Enum => ReadAs::Label,
        None if is_of_the_servers_own(found) => ReadAs::Type(id),
        None => ReadAs::Hexadecimal,
    }
}

/// A built-in type, an enum, or an array or composite of such: reading a value calls no function and no check that somebody has made.
fn is_of_the_servers_own(found: Carried<'_>) -> bool {
    let definition = found.definition;
    definition.id.is_built_in()
        || definition.kind == TypeKind::Enum
        || found.element().is_some_and(is_of_the_servers_own)
        || (definition.kind == TypeKind::Composite && found.attributes().all(is_of_the_servers_own))
}

/// Asks how the binary values of some rows read, all in one request.
async fn texts(
    session: &mut WritingSession,
    settings: &WritingSettings,
    types: &HashMap<(QualifiedName, Ident), ReadAs>,
    rows: &[RowOf<'_>],
) -> Result<Vec<ShownRow>, DestinationError> {
    let read_as = |relation: &Relation, column: &crate::pg::Column| match column.type_id {
        id if id.is_built_in() => ReadAs::Type(id),
        _ => types.get(&(relation.name.clone(), column.name.clone())).copied().unwrap_or(ReadAs::Hexadecimal),
    };
    let mut request = PipelinedRequest::new();
    for row in rows {
        let asked: Vec<(&[u8], TypeId)> = row
            .values()
            .filter_map(|(value, column)| match (value, read_as(row.relation, column)) {
                (Datum::Binary(value), ReadAs::Type(id)) => Some((value, id)),
                (Datum::Binary(_), ReadAs::Label | ReadAs::Hexadecimal)
                | (Datum::Null | Datum::Text(_) | Datum::UnchangedToast, _) => None,
            })
            .collect();
        let ids: Vec<TypeId> = asked.iter().map(|(_, id)| *id).collect();
        let columns: Vec<String> = (1..=asked.len()).map(|n| format!("${n}::pg_catalog.text")).collect();
        request.parse("", &format!("SELECT {}", columns.join(", ")), &ids);
        request.execute_returning("", &[Format::Binary], asked.len(), |parameters| {
            asked.iter().for_each(|(value, _)| parameters.put(Some(value)));
        });
    }
    session.send(request);
    let doing = "asking how values read";
    let answer = tokio::time::timeout(settings.timeout, session.answer()).await;
    let answer = answer.map_err(|_| SessionError::Timeout { doing, within: settings.timeout, process_id: None })??;
    if let Some((_, error)) = answer.failure {
        return Err(SessionError::Server { doing, error: Box::new(error) }.into());
    }
    let answers = answer.answers.into_iter().map(|answer| match answer {
        StatementAnswer::Row(row) => row.unwrap_or_default(),
        StatementAnswer::Count(_) => Vec::new(),
    });
    Ok(rows
        .iter()
        .zip(answers)
        .map(|(row, read)| {
            let mut read = read.into_iter().flatten();
            let mut shown = |value: Datum<'_>, column: &crate::pg::Column| match value {
                Datum::UnchangedToast => ShownValue::Unchanged,
                Datum::Null => ShownValue::Null,
                Datum::Text(value) => ShownValue::Text(String::from_utf8_lossy(value).into_owned()),
                Datum::Binary(value) => match read_as(row.relation, column) {
                    ReadAs::Type(_) => read.next().map_or_else(|| hexadecimal(value), ShownValue::Text),
                    ReadAs::Label => ShownValue::Text(String::from_utf8_lossy(value).into_owned()),
                    ReadAs::Hexadecimal => hexadecimal(value),
                },
            };
            row.values().map(|(value, column)| (column.name.clone(), shown(value, column))).collect()
        })
        .collect())
}

fn hexadecimal(bytes: &[u8]) -> ShownValue {
    ShownValue::Unreadable(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
