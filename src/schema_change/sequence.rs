//! A sequence for a column that draws from one of its own at the source, and from none here.
//!
//! Written by [`TableChange::follow`] and [`TableChange::reshape`] for a column that is added, and for one that has got its sequence at
//! the source since; tried by `destination`, behind a savepoint: the role may not be allowed to create it, and the rows fit
//! without it. From then on it follows as all others do ([`crate::catalog::sequences`]). A column that the operator has prepared
//! here is his; `cutover` tells what it lacks.

use super::TableChange;
use crate::catalog::schema::ColumnDefinition;
use crate::schema_change::new_sequence::NewSequence;

impl TableChange<'_> {
    /// The sequence that a column of the source wants here.
    pub(super) fn sequence_of(&self, definition: &ColumnDefinition) -> Option<NewSequence> {
        let name = definition.own_sequence()?;
        Some(NewSequence::new(self.destination.table, definition, &name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Ident;
    use crate::schema_change::new_sequence::numbered;

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
        let mut table = crate::testing::table("t", &[crate::testing::TestColumn::new("n", 20)]);
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
