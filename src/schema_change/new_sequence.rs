//! A sequence that a column gets at the destination, because it has one at the source.
//!
//! Made by `sequence`, carried out by `destination`. Plain data, and the statements.

use crate::catalog::schema::{ColumnDefinition, SequenceOptions, TableDefinition};
use crate::catalog::shape::Shape;
use crate::pg::{ErrorReport, Ident, shown_sql};
use crate::schema_change::sql;

/// A sequence that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSequence {
    /// Its statements, by the names that it may have: the source's, and others for when that one is taken.
    pub(crate) names: Vec<Vec<String>>,
    /// The column, by its number at the source.
    pub(crate) number: i16,
    pub(crate) column: Ident,
}

impl NewSequence {
    /// How many names it may have.
    const NAMES: u8 = 10;

    pub(crate) fn new(table: &TableDefinition, column: &ColumnDefinition, name: &Ident) -> NewSequence {
        let options: Option<&SequenceOptions> = column.sequence_options.as_ref();
        let statements = |taken| sql::give_sequence(table, &column.name, &numbered(name, taken), options);
        NewSequence {
            names: (0..NewSequence::NAMES).map(statements).collect(),
            number: column.number,
            column: column.name.clone(),
        }
    }

    /// Its statements, name by name: the next one where the one before is taken (42P07).
    pub fn tries(&self) -> impl Iterator<Item = &[String]> {
        self.names.iter().map(Vec::as_slice)
    }

    /// Its statements under the source's name.
    pub fn statements(&self) -> &[String] {
        self.names.first().map(Vec::as_slice).unwrap_or_default()
    }

    /// What was done, for the operator.
    pub fn told(&self) -> String {
        format!("column {} was given a sequence, which follows the source's", self.column)
    }

    /// Why it was not, for the operator.
    pub fn refused(&self, error: &dyn std::fmt::Display) -> String {
        let statements: Vec<String> =
            self.statements().iter().map(|statement| format!("{};", shown_sql(statement))).collect();
        ErrorReport::new(format!(
            "column {} draws from a sequence at the source, and from none here: {error}",
            self.column
        ))
        .hint(format!(
            "Run at the destination, where the column is to give out values once it has taken over:\n{}",
            statements.join("\n")
        ))
        .lines()
    }

    /// Takes it out of what is remembered, so that it is tried again at the table's next description.
    pub fn undo(&self, shape: &mut Shape) {
        let column = shape.columns.iter_mut().find(|column| column.number == self.number);
        column.into_iter().for_each(|column| column.sequence = false);
    }
}

/// The name with a number behind it, as PostgreSQL chooses where the name itself is taken.
pub(crate) fn numbered(name: &Ident, taken: u8) -> Ident {
    if taken == 0 {
        return name.clone();
    }
    name.with_suffix(&taken.to_string())
}
