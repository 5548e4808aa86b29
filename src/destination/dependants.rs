//! What depends on a table: columns that hold its row type, views, rules, policies, triggers and functions that name its columns, and what
//! depends on these. While there are any, PostgreSQL refuses to change these columns.
//!
//! In comes a table that the server has just refused to change, out goes a hint with the statements that take all of it away. Asked by
//! `apply::schema_follower` and `reshape`, on the session that was refused, once its transaction is rolled back. Anybody who may use the
//! table's schema can create such a column or view, and the server's own message names it without its schema, or not at all.

use serde::Deserialize;

use crate::pg::{Ident, QualifiedName, quote_literal, shown_sql};
use crate::session::{SessionError, SqlState, fill_in};

const COLUMNS: &str = include_str!("../../sql/table_dependants.sql");

/// Whether a statement may have been refused for such a dependant (feature_not_supported).
pub(super) fn may_be_in_the_way(error: &SessionError) -> bool {
    error.code() == Some(SqlState::new(b"0A000"))
}

/// The question for what depends on it, with one text as its answer, for [`hint`].
pub(super) fn ask(table: &QualifiedName) -> String {
    fill_in(COLUMNS, &[quote_literal(table.schema.as_str()), quote_literal(table.name.as_str())])
}

/// What is in the way, by the command that takes it away.
#[derive(Debug, Deserialize)]
struct Dependant {
    command: String,
    schema: String,
    name: String,
    /// The column, constraint, rule, policy or trigger of the relation or domain `name`.
    part: Option<String>,
    /// What is no part of a relation, as `DROP` takes it.
    identity: Option<String>,
}

impl Dependant {
    fn removal(self) -> String {
        let Dependant { command, schema, name, part, identity } = self;
        let name = QualifiedName::new(schema, name);
        let part = part.map(Ident::new);
        match (command.as_str(), part, identity) {
            ("DROP COLUMN", Some(column), _) => format!("ALTER TABLE {name} DROP COLUMN {column};"),
            ("DROP DEFAULT", Some(column), _) => format!("ALTER TABLE {name} ALTER COLUMN {column} DROP DEFAULT;"),
            ("DROP EXPRESSION", Some(column), _) => {
                format!("ALTER TABLE {name} ALTER COLUMN {column} DROP EXPRESSION;")
            }
            ("DROP CONSTRAINT", Some(part), _) => format!("ALTER TABLE {name} DROP CONSTRAINT {part};"),
            ("DROP DOMAIN CONSTRAINT", Some(part), _) => format!("ALTER DOMAIN {name} DROP CONSTRAINT {part};"),
            ("DROP ATTRIBUTE", Some(part), _) => format!("ALTER TYPE {name} DROP ATTRIBUTE {part};"),
            (_, _, Some(identity)) => shown_sql(&format!("{command} {identity};")),
            (_, Some(part), None) => format!("{command} {part} ON {name};"),
            (_, None, None) => format!("{command} {name};"),
        }
    }
}

/// What takes it away; `None` when there is nothing, and the server had another reason.
///
/// # Errors
/// [`SessionError`] when the answer is not one to [`ask`].
pub(super) fn hint(table: &QualifiedName, answer: Option<&str>) -> Result<Option<String>, SessionError> {
    let Some(answer) = answer else { return Ok(None) };
    let found: Vec<Dependant> = serde_json::from_str(answer)
        .map_err(|error| SessionError::from_json("looking for what depends on a table", &error))?;
    let mut removals: Vec<String> = found.into_iter().map(Dependant::removal).collect();
    removals.dedup();
    Ok(Some(format!(
        "PostgreSQL refuses to change table {table} while others depend on its columns or have its row type. Take them away at the \
         destination, or change them, as their owner or a superuser:\n{}",
        removals.join("\n")
    )))
}
