//! A condition that holds of tables, and keeps a statement from being run on anything else.
//!
//! A view reads and writes by code of its owner, and so does a foreign table. Whether a name stands for a table can be asked of the
//! catalog, but its owner may put a view under that name before the next statement. So the statements themselves say it: TABLESAMPLE
//! is refused on views and foreign tables (feature_not_supported, parse_clause.c) when the statement is parsed, before anything of them
//! is evaluated, and under the lock that the statement's own reference to the name has taken. Tried on 14 to 18.
//!
//! Used by every statement in [`super`] that reads or writes a table of the set at the destination; pure.

use crate::pg::QualifiedName;

/// A condition for WHERE, true if the name stands for a table; otherwise the server refuses the statement. It costs nothing when the
/// statement runs: the planner folds a CASE whose condition is constant.
pub fn is_table(table: &QualifiedName) -> String {
    format!("CASE WHEN false THEN EXISTS (SELECT FROM {} TABLESAMPLE pg_catalog.system (0)) ELSE true END", table.sql())
}

/// A condition for WHERE, true if a column has this type; otherwise the server refuses the statement, before an operator could call a
/// cast that the owner of another type has created. The two arrays must be of one type (anyarray); this costs nothing either.
pub fn has_type(column: &str, type_sql: &str) -> String {
    format!("CASE WHEN false THEN pg_catalog.array_eq(ARRAY[{column}], NULL::{type_sql}[]) ELSE true END")
}

/// A statement without rows, that fails if a name does not stand for a table: for what has no WHERE. Until the transaction ends the
/// names keep their tables.
pub fn refuse_others<'a>(tables: impl Iterator<Item = &'a QualifiedName>) -> String {
    let conditions: Vec<String> = tables.map(is_table).collect();
    format!("SELECT WHERE NOT ({})", conditions.join(" AND "))
}
