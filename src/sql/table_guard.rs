//! A condition that holds of tables, and keeps a statement from being run on anything else.
//!
//! A view reads and writes by code of its owner, and so does a foreign table. Whether a name stands for a table can be asked of the
//! catalog, but its owner may put a view under that name before the next statement. So the statements themselves say it: TABLESAMPLE
//! is refused on views and foreign tables (feature_not_supported, parse_clause.c) when the statement is parsed, before anything of them
//! is evaluated, and under the lock that the statement's own reference to the name has taken. Tried on 14 to 18.
//!
//! Another table under the name is refused, too, by whatever writes what the stream brings: a name can be free for a moment, and then
//! anybody's who may create tables in its schema. The OID in the statement is compared with the one that the name has when the
//! statement is parsed, and again whenever the server parses a prepared statement again, which it does when the table has been renamed
//! or dropped. The statement's own reference has locked its table by then, so both mean the same one.
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

/// A statement without rows, that fails where one of these conditions refuses it: for COPY and TRUNCATE, which have no WHERE.
///
/// It stands before them and after them, behind a lock of the mode that they take ([`lock`]). Without the lock they would wait for it
/// themselves, and the session that they wait for may rename the schema meanwhile, which needs no lock on its tables.
pub fn refuse_others(conditions: impl Iterator<Item = String>) -> String {
    let conditions: Vec<String> = conditions.collect();
    format!("SELECT WHERE NOT ({})", conditions.join(" AND "))
}

/// Whether an error of a server is the refusal of a statement here. Translations of the message keep the word.
pub fn is_refusal(code: &str, message: &str) -> bool {
    code == "0A000" && message.contains("TABLESAMPLE")
}

/// The SQLSTATE with which headwater.other_table refuses a statement; the error names the table.
pub const OTHER_TABLE: &str = "HW003";

/// How strongly a statement locks the tables that it writes.
#[derive(Clone, Copy, Debug)]
pub enum LockMode {
    /// COPY.
    RowExclusive,
    /// TRUNCATE.
    AccessExclusive,
}

/// Locks tables, as the statement that follows will. `tables` is a list as FROM has it: names, with ONLY or without.
pub fn lock(tables: &str, mode: LockMode) -> String {
    let mode = match mode {
        LockMode::RowExclusive => "ROW EXCLUSIVE",
        LockMode::AccessExclusive => "ACCESS EXCLUSIVE",
    };
    format!("LOCK TABLE {tables} IN {mode} MODE")
}
