//! A second look at what was created from the source's definitions, before it is used or committed.
//!
//! Statements are made of parsed expressions only ([`crate::schema_change::expression`]); this asks the catalog what they have become.
//! Objects may depend on what came with the server, on each other, and on the types that were resolved by name; stored
//! expressions may call the listed functions only. Anything else means that the destination has read a statement otherwise than
//! headwater meant it: nothing of it is kept. Called by `staging`, `publish`, `reshape`, `schema` and `apply::schema_follower`.
//!
//! One question for all objects, whatever their number.

use serde::Serialize;

use super::error::DestinationError;
use crate::pg::{ErrorReport, Ident, QualifiedName, quote_literal};
use crate::schema_change::expression::Expressions;
use crate::session::{SqlClient, fill_in};

const REVIEW: &str = include_str!("../../sql/review.sql");

const DOING: &str = "reviewing what was created";

/// What was created.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Created {
    tables: Vec<CreatedTable>,
    types: Vec<QualifiedName>,
}

/// A table that was created, or what was added to one.
#[derive(Clone, Debug, Serialize)]
struct CreatedTable {
    schema: Ident,
    name: Ident,
    /// The columns that were added; all where it is none.
    columns: Option<Vec<Ident>>,
    /// The indexes that were added; all where it is none.
    indexes: Option<Vec<Ident>>,
}

impl Created {
    /// A table with all its columns, constraints and indexes.
    pub(super) fn add_table(&mut self, name: &QualifiedName) {
        let QualifiedName { schema, name } = name.clone();
        self.tables.push(CreatedTable { schema, name, columns: None, indexes: None });
    }

    /// Columns and indexes of a table that was there before.
    pub(super) fn add_parts(&mut self, table: &QualifiedName, columns: Vec<Ident>, indexes: Vec<Ident>) {
        if columns.is_empty() && indexes.is_empty() {
            return;
        }
        let QualifiedName { schema, name } = table.clone();
        self.tables.push(CreatedTable { schema, name, columns: Some(columns), indexes: Some(indexes) });
    }

    /// A type, if there is one.
    pub(super) fn add_type(&mut self, name: Option<QualifiedName>) {
        self.types.extend(name);
    }

    fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.types.is_empty()
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("names are JSON")
    }

    /// Looks it through.
    ///
    /// # Errors
    /// [`DestinationError::Refused`] naming the first object that depends on what it may not; the caller gives up what was
    /// created.
    pub(super) async fn review(&self, client: &SqlClient, expressions: &Expressions) -> Result<(), DestinationError> {
        if self.is_empty() {
            return Ok(());
        }
        let functions: Vec<u32> = expressions.functions().into_iter().collect();
        let rows = client.query(DOING, REVIEW, &[&self.json(), &functions]).await?;
        match rows.first() {
            None => Ok(()),
            Some(row) => Err(refused(row.get(0)?, row.get(1)?)),
        }
    }

    /// The question for a session that takes no parameters; the answer is a row of at most one text, for [`answer`].
    pub(super) fn ask(&self, expressions: &Expressions) -> Option<String> {
        let functions: Vec<String> = expressions.functions().iter().map(u32::to_string).collect();
        let sql = fill_in(REVIEW, &[quote_literal(&self.json()), format!("'{{{}}}'", functions.join(","))]);
        let sql = format!("SELECT found.object, found.uses FROM ({sql}) AS found (object, uses) LIMIT 1");
        (!self.is_empty()).then_some(sql)
    }
}

/// Reads the answer to [`Created::ask`].
///
/// # Errors
/// [`DestinationError::Refused`], as [`Created::review`].
pub(super) fn answer(row: &[Option<String>]) -> Result<(), DestinationError> {
    match row {
        [] => Ok(()),
        [object, uses, ..] => {
            Err(refused(object.as_deref().unwrap_or("an object"), uses.as_deref().unwrap_or("another")))
        }
        [object] => Err(refused(object.as_deref().unwrap_or("an object"), "another")),
    }
}

fn refused(object: &str, uses: &str) -> DestinationError {
    DestinationError::Refused(
        ErrorReport::new(format!("cannot take over the source's definitions: {object} would use {uses}"))
            .detail(
                "What comes from the source may use only what is known to be harmless. The destination has read a statement \
                 otherwise than headwater meant it, or an event trigger has added to it. Nothing of it was kept.",
            )
            .hint("Look at the source's definition of it. Create the table at the destination by hand if it is wanted so."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_names_its_objects_as_values() {
        let mut created = Created::default();
        created.add_table(&QualifiedName::new("s'; --", "t\\"));
        created.add_type(Some(QualifiedName::new("s", "$2")));
        let json = created.json();
        assert!(json.contains(r#""schema":"s'; --","name":"t\\","columns":null"#), "{json}");
        assert!(Created::default().ask(&crate::testing::expressions()).is_none());
    }
}
