//! The rows of a conflict, at both ends, for the operator who asks to see them.
//!
//! In comes the conflict that the service keeps in headwater.open_conflict; out go the change with its values, the rows
//! at the destination that its key and the violated constraint find, and the row at the source as it is now. Called by
//! the command `conflict show` alone: its output is the only place where a conflict's values appear.
//!
//! Reads only, each end by itself: what one end cannot show is said, and the rest is shown. Bounds: [`ROWS_MAX`] rows a
//! question, each value cut by whoever prints it.

use crate::config::Config;
use crate::destination::{
    Bookkeeping, Catalog, OpenConflict, ShownChange, ShownRow, ShownValue, WritingSettings, open_conflict,
    shown_changes,
};
use crate::pg::{ErrorReport, Ident, QualifiedName, Relation};
use crate::plan::schema::TableDefinition;
use crate::plan::sql::value::ValueType;
use crate::session::{SessionError, SqlClient};
use crate::transaction::Change;

use super::hosts::connect_chosen;
use super::prepare::Addresses;
use crate::fault::{Fault, report};

/// Rows that a question shows at most: a conflict is with one row, and a few more tell that something else is wrong.
const ROWS_MAX: usize = 5;

/// Rows that were looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRows {
    /// By what, as `primary key items_pkey (id)`.
    pub by: String,
    /// The rows, or why they could not be read.
    pub rows: Result<Vec<ShownRow>, String>,
}

/// A conflict with the rows that it is about.
#[derive(Clone)]
pub struct ConflictRows {
    /// The conflict.
    pub conflict: OpenConflict,
    /// The change with its values, where the failing change is known.
    pub change: Option<ShownChange>,
    /// What the destination has.
    pub destination: Vec<FoundRows>,
    /// What the source has now.
    pub source: Vec<FoundRows>,
}

/// Reads the conflict that halts the service, and its rows; `None` when there is none.
///
/// # Errors
/// [`Fault`] when the destination cannot be asked.
pub async fn conflict_rows(config: &Config, settings: &WritingSettings) -> Result<Option<ConflictRows>, Fault> {
    let addresses = Addresses::new(config);
    let trusted_roles = &config.destination.trusted_roles;
    let bookkeeping = Bookkeeping::connect_checked(&addresses.destination, trusted_roles).await?;
    let client = bookkeeping.client();
    let Some(conflict) = open_conflict(client).await? else { return Ok(None) };
    let mut found = ConflictRows { conflict, change: None, destination: Vec::new(), source: Vec::new() };
    let Some(change) = &found.conflict.change else { return Ok(Some(found)) };
    let shown = shown_changes(client, settings, std::slice::from_ref(change)).await?;
    let Some((relation, shown)) = relation_of(change).zip(shown.into_iter().next()) else { return Ok(Some(found)) };
    let key = key_of(relation, &shown);

    let catalog = Catalog::read(client, std::slice::from_ref(&relation.name)).await?;
    let definition = catalog.table(&relation.name);
    found.destination.push(FoundRows {
        by: by("key", key.iter().map(|(name, _)| name)),
        rows: rows_with(client, &relation.name, &key).await.map_err(|error| error.to_string()),
    });
    if let (Some(definition), Some(new)) = (definition, new_row(&shown)) {
        for rival in rivals(definition, found.conflict.constraint.as_deref(), new, &key) {
            let rows = rows_with(client, &rival.table, &rival.values).await.map_err(|error| error.to_string());
            found.destination.push(FoundRows { by: rival.by, rows });
        }
    }
    let rows = match connect_chosen(config).await {
        Ok((_, source)) => rows_with(&source, &relation.name, &key).await.map_err(|error| error.to_string()),
        Err(error) => Err(report(&Fault::Source(error)).to_string()),
    };
    found.source.push(FoundRows { by: by("key", key.iter().map(|(name, _)| name)), rows });
    found.change = Some(shown);
    Ok(Some(found))
}

fn relation_of(change: &Change) -> Option<&Relation> {
    match change {
        Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
            Some(relation)
        }
        Change::Truncate { .. } => None,
    }
}

fn new_row(change: &ShownChange) -> Option<&ShownRow> {
    match change {
        ShownChange::Insert(new) | ShownChange::Update { new, .. } => Some(new),
        ShownChange::Delete(_) | ShownChange::Truncate => None,
    }
}

/// The values by which the change finds its row: the old key where it changed.
fn key_of(relation: &Relation, change: &ShownChange) -> ShownRow {
    let row = match change {
        ShownChange::Insert(row)
        | ShownChange::Update { old: Some(row), .. }
        | ShownChange::Update { old: None, new: row }
        | ShownChange::Delete(row) => row,
        ShownChange::Truncate => return ShownRow::new(),
    };
    let in_key = |name: &Ident| relation.columns.iter().any(|column| column.name == *name && column.in_identity);
    row.iter().filter(|(name, value)| in_key(name) && *value != ShownValue::Unchanged).cloned().collect()
}

fn by<'a>(what: &str, columns: impl Iterator<Item = &'a Ident>) -> String {
    format!("{what} ({})", columns.map(Ident::to_string).collect::<Vec<_>>().join(", "))
}

/// Rows that the violated constraint is about.
struct Rival {
    by: String,
    table: QualifiedName,
    values: ShownRow,
}

/// What to look for because of the constraint: the row that holds the unique values, or the parent that is missing.
fn rivals(table: &TableDefinition, constraint: Option<&str>, new: &ShownRow, key: &ShownRow) -> Vec<Rival> {
    let Some(named) = constraint else { return Vec::new() };
    // The service keeps it with its columns, for people.
    let is_named =
        |name: &Ident| named == name.as_str() || named == name.to_string() || named.starts_with(&format!("{name} ("));
    let value = |column: &Ident| new.iter().find(|(name, _)| name == column).cloned();
    let mut found = Vec::new();
    if let Some(index) = table.indexes.iter().find(|index| is_named(&index.name))
        && let Some(columns) = index.unique_columns()
        && let Some(values) = columns.iter().map(|column| value(column)).collect::<Option<ShownRow>>()
        && values != *key
    {
        found.push(Rival {
            by: by(&format!("unique index {}", index.name), columns.into_iter()),
            table: table.name(),
            values,
        });
    }
    if let Some((constraint, target)) = table.foreign_keys().find(|(constraint, _)| is_named(&constraint.name)) {
        let columns = constraint.columns.iter().flatten();
        let values: Option<ShownRow> = columns
            .zip(&target.columns)
            .map(|(column, referenced)| value(column).map(|(_, value)| (referenced.clone(), value)))
            .collect();
        if let Some(values) = values {
            let what = format!("foreign key {}: {}", constraint.name, target.table());
            found.push(Rival { by: by(&what, target.columns.iter()), table: target.table(), values });
        }
    }
    found
}

/// A column, as this server has it.
struct ColumnType {
    name: Ident,
    /// Without a length that would cut the value.
    value_type: ValueType,
    /// pg_catalog's `=` compares it, and no cast that somebody has created can come before; otherwise its image is compared, which no
    /// index serves.
    has_equality: bool,
    /// The rows of its table are its partitions'; those of tables that inherit from one that is not partitioned are none of its own.
    of_tree: bool,
}

impl ColumnType {
    /// Its value as text. A cast is for types of pg_catalog only: of others their owners may create one, which would run with our rights.
    fn shown(&self) -> String {
        let name = self.name.sql();
        match self.value_type.built_in {
            true => format!("{name}::text"),
            false => format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.concat({name}) END"),
        }
    }
}

/// The rows with these values, every column as text. A table that this end lacks has none.
async fn rows_with(
    client: &SqlClient,
    table: &QualifiedName,
    values: &ShownRow,
) -> Result<Vec<ShownRow>, SessionError> {
    let columns = column_types(client, table).await?;
    let mut conditions = Vec::new();
    let mut parameters: Vec<&str> = Vec::new();
    for (name, value) in values {
        let Some(column) = columns.iter().find(|column| column.name == *name) else { return Ok(Vec::new()) };
        match value {
            ShownValue::Null => conditions.push(format!("{} IS NULL", name.sql())),
            ShownValue::Text(text) => {
                parameters.push(text);
                let wanted = column.value_type.of_text(&format!("($1::text[])[{}]", parameters.len()));
                conditions.push(match column.has_equality {
                    true => format!("{} = {wanted}", name.sql()),
                    false => format!(
                        "ROW({})::pg_catalog.record OPERATOR(pg_catalog.*=) ROW({wanted})::pg_catalog.record",
                        name.sql()
                    ),
                });
            }
            ShownValue::Unchanged | ShownValue::Unreadable(_) => return Ok(Vec::new()),
        }
    }
    if conditions.is_empty() || columns.is_empty() {
        return Ok(Vec::new());
    }
    let shown: Vec<String> = columns.iter().map(ColumnType::shown).collect();
    let only = if columns.iter().any(|column| column.of_tree) { "" } else { "ONLY " };
    let sql = format!(
        "SELECT ARRAY[{}]::text[] FROM {only}{} WHERE {} LIMIT {ROWS_MAX}",
        shown.join(", "),
        table.sql(),
        conditions.join(" AND ")
    );
    let rows = client.query("looking at a conflict's rows", &sql, &[&parameters]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let texts: Vec<Option<String>> = row.get(0);
            let values = texts.into_iter().map(|text| text.map_or(ShownValue::Null, ShownValue::Text));
            columns.iter().map(|column| column.name.clone()).zip(values).collect()
        })
        .collect())
}

async fn column_types(client: &SqlClient, table: &QualifiedName) -> Result<Vec<ColumnType>, SessionError> {
    let sql = "WITH RECURSIVE base (attnum, id) AS (
                   SELECT a.attnum, a.atttypid FROM pg_catalog.pg_attribute a
                   JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
                   UNION ALL
                   SELECT base.attnum, t.typbasetype FROM base JOIN pg_catalog.pg_type t ON t.oid = base.id WHERE t.typtype = 'd')
               SELECT a.attname::text, pg_catalog.format_type(a.atttypid, -1),
                      COALESCE(t.typtype IN ('r', 'm') OR t.typcategory = 'A' OR o.oprleft IS NOT NULL, false) AND t.oid < 16384,
                      t.oid < 16384, c.relkind = 'p'
               FROM base JOIN pg_catalog.pg_type t ON t.oid = base.id AND t.typtype <> 'd'
               JOIN pg_catalog.pg_class c ON c.relname = $2 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $1
               JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = base.attnum
               LEFT JOIN pg_catalog.pg_operator o ON o.oprname = '=' AND o.oprnamespace = 'pg_catalog'::regnamespace
                   AND o.oprleft = t.oid AND o.oprright = t.oid AND t.typname NOT IN ('box', 'circle', 'lseg', 'path', 'line')
               ORDER BY a.attnum";
    let rows =
        client.query("looking at a table's columns", sql, &[&table.schema.as_str(), &table.name.as_str()]).await?;
    Ok(rows
        .iter()
        .map(|row| ColumnType {
            name: Ident::new(row.get::<_, &str>(0)),
            value_type: ValueType { sql: row.get(1), built_in: row.get(3) },
            has_equality: row.get(2),
            of_tree: row.get(4),
        })
        .collect())
}

/// What to say when nothing halts the service.
pub fn no_conflict_report() -> ErrorReport {
    ErrorReport::new("no conflict halts the service").hint("See what it does: headwater status, headwater explain")
}
