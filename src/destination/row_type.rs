//! Columns that hold the row type of a table: while there are any, PostgreSQL refuses to rewrite that table.
//!
//! In comes a table that the server has just refused to change, out goes a hint that names the columns and what takes them away. Asked by
//! `apply::evolve` and `reshape`, on the session that was refused, once its transaction is rolled back. Anybody who may use the
//! table's schema can create such a column, and the server's own message names it without its schema.

use serde::Deserialize;

use crate::pg::{Ident, QualifiedName, quote_literal};
use crate::session::{SessionError, SqlState, fill_in};

const COLUMNS: &str = include_str!("../../sql/row_type_columns.sql");

/// Whether a statement may have been refused for such a column (feature_not_supported).
pub(super) fn may_be_in_the_way(error: &SessionError) -> bool {
    error.code() == Some(SqlState::new(b"0A000"))
}

/// The question for the columns, with one text as its answer, for [`hint`].
pub(super) fn ask(table: &QualifiedName) -> String {
    fill_in(COLUMNS, &[quote_literal(table.schema.as_str()), quote_literal(table.name.as_str())])
}

#[derive(Debug, Deserialize)]
struct Holding {
    schema: String,
    table: String,
    column: String,
    is_view: bool,
}

impl Holding {
    fn removal(self) -> String {
        let table = QualifiedName::new(self.schema, self.table);
        match self.is_view {
            true => format!("DROP MATERIALIZED VIEW {table};"),
            false => format!("ALTER TABLE {table} DROP COLUMN {};", Ident::new(self.column)),
        }
    }
}

/// What takes the columns away; `None` when there are none, and the server had another reason.
///
/// # Errors
/// [`SessionError`] when the answer is not one to [`ask`].
pub(super) fn hint(table: &QualifiedName, answer: Option<&str>) -> Result<Option<String>, SessionError> {
    let Some(answer) = answer else { return Ok(None) };
    let holding: Vec<Holding> =
        serde_json::from_str(answer).map_err(|error| SessionError::from_json("looking for row types", &error))?;
    let mut removals: Vec<String> = holding.into_iter().map(Holding::removal).collect();
    removals.dedup();
    Ok(Some(format!(
        "PostgreSQL refuses to change table {table} while a column of another table has its row type. Take such columns away at \
         the destination, or give them another type, as their owner or a superuser:\n{}",
        removals.join("\n")
    )))
}
