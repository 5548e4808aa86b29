//! The rows of a conflict, at both ends, for the operator who asks to see them.
//!
//! In comes the conflict that the service keeps in headwater.open_conflict; out go the change with its values, the rows
//! at the destination that its key and the violated constraint find, and the row at the source as it is now, by the key that the
//! change has left it with. Called by the command `conflict show` alone: its output is the only place where a conflict's values appear.
//!
//! Reads only, each end by itself: when one end cannot show something, the output says so and shows the rest. Bounds: [`ROWS_MAX`]
//! rows a question; the caller truncates each value that it prints.

use crate::catalog::schema::{IndexDefinition, IndexPart, TableDefinition};
use crate::config::{Config, DestinationSettings};
use crate::destination::{
    Bookkeeping, Catalog, DestinationError, OpenConflict, ShownChange, ShownRow, ShownValue, Writes, WritingSettings,
    open_conflict, refuse_other_kinds, shown_changes,
};
use crate::error_policy::{Fault, report};
use crate::pg::{ErrorReport, Ident, QualifiedName, Relation, ReplicaIdentity};
use crate::preflight::addresses::Addresses;
use crate::preflight::hosts::connect_chosen;
use crate::preflight::partitions::with_own_constraints;
use crate::session::{SessionError, SqlClient, describe_tables};
use crate::sql::table_guard::is_table;
use crate::sql::text_value::ValueType;
use crate::transaction::Change;

/// Rows that a question shows at most: a conflict is with one row, and a few more tell that something else is wrong.
const ROWS_MAX: usize = 5;

/// Rows that were looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundRows {
    /// By what, as `primary key items_pkey (id)`.
    pub by: String,
    /// The rows, or why they could not be read.
    pub rows: Result<Vec<ShownRow>, String>,
}

/// A conflict with the rows that it is about.
#[derive(Clone)]
pub(crate) struct ConflictRows {
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
pub(crate) async fn conflict_rows(config: &Config, settings: &WritingSettings) -> Result<Option<ConflictRows>, Fault> {
    let addresses = Addresses::new(config);
    let trusted_roles = &config.destination.trusted_roles;
    let bookkeeping = Bookkeeping::connect_checked(&addresses.destination, trusted_roles).await?;
    let client = bookkeeping.client();
    let Some(conflict) = open_conflict(client).await? else { return Ok(None) };
    let mut found = ConflictRows { conflict, change: None, destination: Vec::new(), source: Vec::new() };
    let Some(change) = &found.conflict.change else { return Ok(Some(found)) };
    let shown = shown_changes(client, settings, std::slice::from_ref(change)).await?;
    let Some((relation, shown)) = relation_of(change).zip(shown.into_iter().next()) else { return Ok(Some(found)) };
    // Who may write the bookkeeping must not choose what is read with our rights.
    if !config.tables.contains(&relation.name) {
        let report = ErrorReport::new(format!("table {} of the conflict is not configured", relation.name));
        return Err(Fault::Refused(report.hint("Name it in tables, as it was when the conflict was met.")));
    }
    let destination = Destination { client, settings: &config.destination };
    let (rows, after) = destination.look(relation, &shown, found.conflict.constraint.as_deref()).await?;
    found.destination = rows;
    let rows = match connect_chosen(config).await {
        Ok((_, source)) => rows_with(&source, &relation.name, &equal(&after), &[]).await,
        Err(error) => Err(report(&Fault::Source(error)).to_string()),
    };
    found.source.push(FoundRows { by: by("key", &after), rows });
    found.change = Some(shown);
    Ok(Some(found))
}

/// The destination, where tables may be of roles that are not trusted.
struct Destination<'a> {
    client: &'a SqlClient,
    settings: &'a DestinationSettings,
}

impl Destination<'_> {
    /// The rows that the change and the constraint are about, and the key that the change leaves the row with.
    ///
    /// One transaction that may not write. Each table is locked before anything of it is looked at, so that nobody puts something else
    /// behind the look, and each question stands by itself.
    async fn look(
        &self,
        relation: &Relation,
        shown: &ShownChange,
        constraint: Option<&str>,
    ) -> Result<(Vec<FoundRows>, ShownRow), Fault> {
        const DOING: &str = "looking at a conflict's rows";
        let session = |error| Fault::from(DestinationError::Session(error));
        self.client.batch(DOING, "BEGIN READ ONLY").await.map_err(session)?;
        let looked = self.look_locked(relation, shown, constraint).await;
        self.client.batch(DOING, "ROLLBACK").await.map_err(session)?;
        looked
    }

    async fn look_locked(
        &self,
        relation: &Relation,
        shown: &ShownChange,
        constraint: Option<&str>,
    ) -> Result<(Vec<FoundRows>, ShownRow), Fault> {
        let client = self.client;
        let locked = self.lock(&relation.name).await?;
        let catalog = Catalog::read(client, std::slice::from_ref(&relation.name)).await?;
        let definition = catalog.table(&relation.name);
        let (before, after) = keys_of(relation, definition, shown);
        let rows = match locked {
            Err(reason) => Err(reason),
            Ok(()) => self.rows(&relation.name, false, &equal(&before), &[]).await?,
        };
        let mut found = vec![FoundRows { by: by("key", &before), rows }];
        if let (Some(definition), Some(new)) = (definition, new_row(shown)) {
            let mut wanted = rivals(client, definition, constraint, new, &before).await?;
            for partition in self.partitions(definition).await? {
                wanted.extend(rivals(client, &partition, constraint, new, &before).await?);
            }
            for rival in wanted {
                let rows = match self.lock(&rival.table).await? {
                    Err(reason) => Err(reason),
                    Ok(()) => self.rows(&rival.table, rival.evaluates(), &rival.conditions, new).await?,
                };
                found.push(FoundRows { by: rival.by, rows });
            }
        }
        Ok((found, after))
    }

    /// The partitions of a table that have something of their own to violate.
    async fn partitions(&self, table: &TableDefinition) -> Result<Vec<TableDefinition>, Fault> {
        let partitions = with_own_constraints(self.client, &[table.id]).await?;
        let names: Vec<QualifiedName> = partitions.into_iter().map(|own| own.partition).collect();
        Ok(describe_tables(self.client, &names).await.map_err(DestinationError::Session)?)
    }

    /// Locks a table as reading it does; why it cannot be.
    async fn lock(&self, table: &QualifiedName) -> Result<Result<(), String>, DestinationError> {
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", table.sql());
        self.apart(async { self.client.statement("locking a table", &lock).await.map_err(|error| error.to_string()) })
            .await
    }

    /// The rows, or why they are not read. `evaluates`: expressions of the table's index are evaluated.
    async fn rows(
        &self,
        table: &QualifiedName,
        evaluates: bool,
        conditions: &[Condition],
        new: &[(Ident, ShownValue)],
    ) -> Result<Result<Vec<ShownRow>, String>, DestinationError> {
        match unsafe_to_read(self.client, table, evaluates, self.settings).await? {
            Some(reason) => Ok(Err(reason)),
            None => self.apart(rows_with(self.client, table, conditions, new)).await,
        }
    }

    /// A question whose failure ends no other.
    async fn apart<T>(
        &self,
        question: impl Future<Output = Result<T, String>>,
    ) -> Result<Result<T, String>, DestinationError> {
        const DOING: &str = "keeping a question apart";
        self.client.batch(DOING, "SAVEPOINT question").await?;
        let answer = question.await;
        if answer.is_err() {
            self.client.batch(DOING, "ROLLBACK TO SAVEPOINT question").await?;
        }
        Ok(answer)
    }
}

fn relation_of(change: &Change) -> Option<&Relation> {
    match change {
        Change::Row(row) => Some(row.relation()),
        Change::Truncate { .. } => None,
    }
}

fn new_row(change: &ShownChange) -> Option<&ShownRow> {
    match change {
        ShownChange::Insert(new) | ShownChange::Update { new, .. } => Some(new),
        ShownChange::Delete(_) | ShownChange::Truncate => None,
    }
}

/// The values of the row's key before the change and after it. Where the source sends whole rows, the key is the destination's
/// primary key: a row that differs in another column would not be found by all of them.
fn keys_of(relation: &Relation, table: Option<&TableDefinition>, change: &ShownChange) -> (ShownRow, ShownRow) {
    let (old, new) = match change {
        ShownChange::Insert(row) | ShownChange::Delete(row) | ShownChange::Update { old: None, new: row } => (row, row),
        ShownChange::Update { old: Some(old), new } => (old, new),
        ShownChange::Truncate => return (ShownRow::new(), ShownRow::new()),
    };
    let primary = table.and_then(|table| table.indexes.iter().find(|index| index.primary));
    let primary: Vec<&Ident> = primary.map(|index| index.key_columns().collect()).unwrap_or_default();
    let is_sent = |name: &Ident| relation.columns.iter().any(|column| column.name == *name);
    let is_narrowed = relation.replica_identity == ReplicaIdentity::Full
        && !primary.is_empty()
        && primary.iter().all(|name| is_sent(name));
    let in_key = |name: &Ident| match is_narrowed {
        true => primary.contains(&name),
        false => relation.columns.iter().any(|column| column.name == *name && column.in_identity),
    };
    let known = |(name, value): &(Ident, ShownValue)| in_key(name) && *value != ShownValue::Unchanged;
    let before: ShownRow = old.iter().filter(|column| known(column)).cloned().collect();
    let of_before = |name: &Ident| before.iter().find(|(known, _)| known == name).cloned();
    // A large value that stayed is in the old row alone.
    let after = new.iter().filter(|(name, _)| in_key(name));
    let after = after.filter_map(|column| if known(column) { Some(column.clone()) } else { of_before(&column.0) });
    (before.clone(), after.collect())
}

fn by(what: &str, key: &ShownRow) -> String {
    by_columns(what, key.iter().map(|(name, _)| name.to_string()))
}

fn by_columns(what: &str, columns: impl Iterator<Item = String>) -> String {
    format!("{what} ({})", columns.collect::<Vec<_>>().join(", "))
}

/// What is asked of a row that is looked for.
enum Condition {
    /// The column has the value.
    Equal(Ident, ShownValue),
    /// Column or expression, compared with the same of the new row by an operator.
    Compared { sql: String, operator: QualifiedName },
    /// The row and the new one fulfil it.
    Both(String),
}

fn equal(key: &ShownRow) -> Vec<Condition> {
    key.iter().map(|(name, value)| Condition::Equal(name.clone(), value.clone())).collect()
}

/// Rows that the violated constraint is about.
struct Rival {
    by: String,
    table: QualifiedName,
    conditions: Vec<Condition>,
}

/// What to look for because of the constraint: the row that holds the unique values, or the parent that is missing.
async fn rivals(
    client: &SqlClient,
    table: &TableDefinition,
    constraint: Option<&str>,
    new: &ShownRow,
    key: &ShownRow,
) -> Result<Vec<Rival>, DestinationError> {
    let Some(named) = constraint else { return Ok(Vec::new()) };
    // The service keeps it with its columns, for people.
    let is_named =
        |name: &Ident| named == name.as_str() || named == name.to_string() || named.starts_with(&format!("{name} ("));
    let value = |column: &Ident| new.iter().find(|(name, _)| name == column).cloned();
    let mut found = Vec::new();
    if let Some(index) = table.indexes.iter().find(|index| is_named(&index.name)) {
        // Its values may be equal to others than the column's are.
        let is_plain = index.parts.iter().all(|part| part.compared_as.is_none() && part.collation.is_none());
        let columns = index.unique_columns().filter(|_| is_plain);
        let columns: Option<ShownRow> = columns.and_then(|columns| columns.into_iter().map(value).collect());
        match columns {
            Some(values) if values == *key => {}
            Some(values) => found.push(Rival {
                by: by(&format!("unique index {}", index.name), &values),
                table: table.name(),
                conditions: equal(&values),
            }),
            None => found.push(rival_of_index(client, table, index).await?),
        }
    }
    if let Some((constraint, target)) = table.foreign_keys().find(|(constraint, _)| is_named(&constraint.name)) {
        let columns = constraint.columns.iter().flatten();
        let values: Option<ShownRow> = columns
            .zip(&target.columns)
            .map(|(column, referenced)| value(column).map(|(_, value)| (referenced.clone(), value)))
            .collect();
        if let Some(values) = values {
            let what = format!("foreign key {}: {}", constraint.name, target.table());
            found.push(Rival { by: by(&what, &values), table: target.table(), conditions: equal(&values) });
        }
    }
    Ok(found)
}

/// What to look for because of an index over expressions or a part of the rows, or of an exclusion constraint.
async fn rival_of_index(
    client: &SqlClient,
    table: &TableDefinition,
    index: &IndexDefinition,
) -> Result<Rival, DestinationError> {
    let parts = index.parts.iter().filter(|part| !part.included);
    let compared = |part: &IndexPart, sql: String| {
        let sql = match &part.compared_as {
            Some(type_name) => format!("({sql})::{}", type_name.sql()),
            None => sql,
        };
        match &part.collation {
            Some(collation) => format!("({sql}) COLLATE {}", collation.sql()),
            None => sql,
        }
    };
    // As SQL, and as people read it.
    let named = |part: &IndexPart| match (&part.column, &part.expression) {
        (Some(name), _) => Some((compared(part, name.sql()), name.to_string())),
        (None, Some(expression)) => Some((compared(part, expression.clone()), expression.clone())),
        (None, None) => None,
    };
    let operators = match index.exclusion {
        true => exclusion_operators(client, index).await.map_err(DestinationError::Session)?,
        false => {
            let equality = |part: &IndexPart| part.equality.clone();
            parts.clone().map(|part| equality(part).unwrap_or_else(|| QualifiedName::new("pg_catalog", "="))).collect()
        }
    };
    let what = if index.exclusion { "exclusion constraint" } else { "unique index" };
    let (sql, names): (Vec<String>, Vec<String>) = parts.filter_map(named).unzip();
    let compared = sql.into_iter().zip(operators).map(|(sql, operator)| Condition::Compared { sql, operator });
    Ok(Rival {
        by: by_columns(&format!("{what} {}", index.name), names.into_iter()),
        table: table.name(),
        conditions: compared.chain(index.predicate.clone().map(Condition::Both)).collect(),
    })
}

impl Rival {
    /// Whether expressions of the index are evaluated.
    fn evaluates(&self) -> bool {
        self.conditions.iter().any(|condition| match condition {
            Condition::Equal(..) => false,
            Condition::Compared { .. } | Condition::Both(_) => true,
        })
    }
}

/// Why rows are not looked for: code of others would run with our rights. `evaluates`: expressions of the table's index are, too.
async fn unsafe_to_read(
    client: &SqlClient,
    table: &QualifiedName,
    evaluates: bool,
    settings: &DestinationSettings,
) -> Result<Option<String>, DestinationError> {
    let tables = vec![table.clone()];
    let looked = async {
        refuse_other_kinds(client, &tables).await?;
        let writes = Writes {
            tables: tables.clone(),
            trusted_roles: settings.trusted_roles.clone(),
            names_owners: settings.names_owners(),
            ..Writes::default()
        };
        match evaluates {
            true => writes.refuse_foreign_code(client).await,
            false => writes.refuse_code_of_types(client).await,
        }
    };
    match looked.await {
        Ok(()) => Ok(None),
        Err(DestinationError::Refused(report)) => Ok(Some(report.to_string())),
        Err(error) => Err(error),
    }
}

/// The operators of an exclusion constraint, in its columns' order.
async fn exclusion_operators(client: &SqlClient, index: &IndexDefinition) -> Result<Vec<QualifiedName>, SessionError> {
    let sql = "SELECT n.nspname::text, o.oprname::text
               FROM pg_catalog.pg_constraint c
               CROSS JOIN pg_catalog.unnest(c.conexclop) WITH ORDINALITY AS used (id, at)
               JOIN pg_catalog.pg_operator o ON o.oid = used.id
               JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
               WHERE c.conindid = $1 AND c.contype = 'x' ORDER BY used.at";
    let rows = client.query("looking at an exclusion constraint", sql, &[&index.id]).await?;
    rows.iter().map(|row| Ok(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?))).collect()
}

/// A column, as this server has it.
struct ConflictColumn {
    name: Ident,
    /// Without a length that would cut the value; of a domain the base type, so that no check of its owner's is evaluated.
    value_type: ValueType,
    /// pg_catalog's `=` compares it, and no cast that somebody has created can come before; otherwise its image is compared, which no
    /// index serves.
    has_equality: bool,
    /// The rows of its table are its partitions'; those of tables that inherit from one that is not partitioned are none of its own.
    of_tree: bool,
}

impl ConflictColumn {
    /// Its value as text. A cast is for types of pg_catalog only: of others their owners may create one, which would run with our rights.
    fn shown(&self) -> String {
        let name = self.name.sql();
        match self.value_type.built_in {
            true => format!("{name}::text"),
            false => format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.concat({name}) END"),
        }
    }
}

/// The rows that fulfil the conditions, every column as text; `new` is the change's new row. An error says why they could not be read.
async fn rows_with(
    client: &SqlClient,
    table: &QualifiedName,
    conditions: &[Condition],
    new: &[(Ident, ShownValue)],
) -> Result<Vec<ShownRow>, String> {
    let columns = column_types(client, table).await.map_err(|error| error.to_string())?;
    if columns.is_empty() {
        return Err(format!("table {table} does not exist"));
    }
    let mut question = RowQuestion { table, columns: &columns, parameters: Vec::new() };
    let conditions = conditions.iter().map(|condition| question.condition(condition, new));
    let conditions = conditions.collect::<Result<Vec<_>, String>>()?;
    if conditions.is_empty() {
        return Err("the change names no key".to_owned());
    }
    let shown: Vec<String> = columns.iter().map(ConflictColumn::shown).collect();
    let only = if columns.iter().any(|column| column.of_tree) { "" } else { "ONLY " };
    let sql = format!(
        "SELECT ARRAY[{}]::text[] FROM {only}{} WHERE {} AND {} LIMIT {ROWS_MAX}",
        shown.join(", "),
        table.sql(),
        is_table(table),
        conditions.join(" AND ")
    );
    let rows = client.query("looking at a conflict's rows", &sql, &[&question.parameters]).await;
    let texts =
        rows.and_then(|rows| rows.iter().map(|row| row.get(0)).collect::<Result<Vec<Vec<Option<String>>>, _>>());
    let shown = texts.map_err(|error| error.to_string())?.into_iter().map(|texts| {
        let values = texts.into_iter().map(|text| text.map_or(ShownValue::Null, ShownValue::Text));
        columns.iter().map(|column| column.name.clone()).zip(values).collect()
    });
    Ok(shown.collect())
}

/// A question for rows, with the values that it has so far.
struct RowQuestion<'a> {
    table: &'a QualifiedName,
    columns: &'a [ConflictColumn],
    parameters: Vec<&'a str>,
}

impl<'a> RowQuestion<'a> {
    fn condition(&mut self, condition: &'a Condition, new: &'a [(Ident, ShownValue)]) -> Result<String, String> {
        match condition {
            Condition::Equal(name, value) => {
                let column = self.column(name)?;
                let Some(wanted) = self.value(column, value)? else { return Ok(format!("{} IS NULL", name.sql())) };
                Ok(match column.has_equality {
                    true => format!("{} = {wanted}", name.sql()),
                    false => format!(
                        "ROW({}::{})::pg_catalog.record OPERATOR(pg_catalog.*=) ROW({wanted})::pg_catalog.record",
                        name.sql(),
                        column.value_type.sql
                    ),
                })
            }
            Condition::Compared { sql, operator } => {
                let operator = format!("OPERATOR({}.{})", operator.schema.sql(), operator.name.as_str());
                Ok(format!("({sql}) {operator} (SELECT ({sql}) FROM {})", self.new_row(new)?))
            }
            Condition::Both(sql) => Ok(format!("({sql}) AND (SELECT ({sql}) FROM {})", self.new_row(new)?)),
        }
    }

    /// The new row as SQL, with its columns' names.
    fn new_row(&mut self, new: &'a [(Ident, ShownValue)]) -> Result<String, String> {
        let mut values = Vec::with_capacity(new.len());
        for (name, value) in new {
            let column = self.column(name)?;
            let value = self.value(column, value)?.unwrap_or_else(|| format!("NULL::{}", column.value_type.sql));
            values.push(format!("{value} AS {}", name.sql()));
        }
        Ok(format!("(SELECT {}) AS new", values.join(", ")))
    }

    fn column(&self, name: &Ident) -> Result<&'a ConflictColumn, String> {
        let found = self.columns.iter().find(|column| column.name == *name);
        found.ok_or_else(|| format!("table {} has no column {name}", self.table))
    }

    /// The value as SQL; `None` for NULL.
    fn value(&mut self, column: &ConflictColumn, value: &'a ShownValue) -> Result<Option<String>, String> {
        match value {
            ShownValue::Null => Ok(None),
            ShownValue::Text(text) => {
                self.parameters.push(text);
                Ok(Some(column.value_type.of_text(&format!("($1::text[])[{}]", self.parameters.len()))))
            }
            ShownValue::Unchanged => {
                Err(format!("the change does not carry the value of column {}, which it left as it was", column.name))
            }
            ShownValue::Unreadable(_) => Err(format!("the value of column {} cannot be read as text", column.name)),
        }
    }
}

async fn column_types(client: &SqlClient, table: &QualifiedName) -> Result<Vec<ConflictColumn>, SessionError> {
    let sql = "WITH RECURSIVE base (attnum, id) AS (
                   SELECT a.attnum, a.atttypid FROM pg_catalog.pg_attribute a
                   JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
                   UNION ALL
                   SELECT base.attnum, t.typbasetype FROM base JOIN pg_catalog.pg_type t ON t.oid = base.id WHERE t.typtype = 'd')
               SELECT a.attname::text, pg_catalog.format_type(t.oid, -1),
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
    rows.iter()
        .map(|row| {
            Ok(ConflictColumn {
                name: Ident::new(row.get::<&str>(0)?),
                value_type: ValueType { sql: row.get(1)?, built_in: row.get(3)? },
                has_equality: row.get(2)?,
                of_tree: row.get(4)?,
            })
        })
        .collect()
}

/// What to say when nothing halts the service.
pub(crate) fn no_conflict_report() -> ErrorReport {
    ErrorReport::new("no conflict halts the service").hint("See what it does: headwater status, headwater explain")
}
