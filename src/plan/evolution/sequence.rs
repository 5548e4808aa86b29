//! A sequence for a column that draws from one of its own at the source, and from none here.
//!
//! Written by [`Change::follow`] and [`Change::reshape`] for a column that is added, and for one that has got its sequence at
//! the source since; tried by `destination`, behind a savepoint: the role may not be allowed to create it, and the rows fit
//! without it. From then on it follows as all others do ([`crate::plan::sequences`]). A column that the operator has prepared
//! here is his; `cutover` tells what it lacks.

use super::Change;
use crate::pg::{ErrorReport, Ident, shown_sql};
use crate::plan::schema::{ColumnDefinition, SequenceOptions, TableDefinition};
use crate::plan::shape::Shape;
use crate::plan::sql::evolve as sql;

/// A sequence that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSequence {
    /// Its statements, by the names that it may have: the source's, and others for when that one is taken.
    names: Vec<Vec<String>>,
    /// The column, by its number at the source.
    number: i16,
    column: Ident,
}

impl NewSequence {
    /// How many names it may have.
    const NAMES: u8 = 10;

    fn new(table: &TableDefinition, column: &ColumnDefinition, name: &Ident) -> NewSequence {
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
fn numbered(name: &Ident, taken: u8) -> Ident {
    if taken == 0 {
        return name.clone();
    }
    name.with_suffix(&taken.to_string())
}

impl Change<'_> {
    /// The sequence that a column of the source wants here.
    pub(super) fn sequence_of(&self, definition: &ColumnDefinition) -> Option<NewSequence> {
        let name = definition.own_sequence()?;
        Some(NewSequence::new(self.destination.table, definition, &name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_gets_a_number_and_stays_one_that_postgresql_keeps() {
        assert_eq!(numbered(&Ident::new("t_n_seq"), 2), Ident::new("t_n_seq2"));
        let long = numbered(&Ident::new("ä".repeat(31)), 9);
        assert_eq!(long, Ident::new(format!("{}9", "ä".repeat(31))));
        let longest = numbered(&Ident::new(format!("{}s", "ä".repeat(31))), 9);
        assert_eq!(longest, Ident::new(format!("{}9", "ä".repeat(31))));
        assert!(longest.as_str().len() <= 63);
    }

    #[test]
    fn whoever_may_insert_may_draw() {
        let mut table = crate::plan::testing::table("t", &[crate::plan::testing::Column::new("n", 20)]);
        table.inserters = vec![None, Some(Ident::new("app"))];
        let mut column = table.columns[0].clone();
        column.default = Some("nextval('t_n_seq'::regclass)".to_owned());
        let given = NewSequence::new(&table, &column, &Ident::new("t_n_seq"));
        let last = given.statements().last().map(String::as_str);
        assert_eq!(last, Some("GRANT USAGE ON SEQUENCE \"public\".\"t_n_seq\" TO PUBLIC, \"app\""));
        let told = given.refused(&"permission denied");
        assert!(told.contains("HINT") && told.contains("OWNED BY \"public\".\"t\".\"n\";"), "{told}");
    }
}
