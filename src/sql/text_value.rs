//! Values made of texts: by the input function of their type, and by nothing else.
//!
//! Comes in: a column's type as SQL, and an expression that gives a text. Goes out: an expression of that type. Used by
//! [`crate::comparison::sql`] and `maintenance::conflict_rows`, which find and write rows by texts that the other server has printed.

/// A type into whose values texts are made by its own input function.
///
/// `text::type` would call a cast that the type's owner has created, where there is one: with headwater's rights. Between types of
/// pg_catalog nobody can create any, and of a domain the base type counts. For all others the members of an object are read
/// (`jsonb_to_record`), which knows input functions only: a string becomes a composite or an array by them as well (jsonfuncs.c).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// As SQL, with its modifier.
    pub sql: String,
    /// It came with the server, or is a domain over such a type.
    pub built_in: bool,
}

impl ValueType {
    /// The value whose text is this expression's.
    pub fn of_text(&self, text: &str) -> String {
        match self.built_in {
            true => format!("({text})::{}", self.sql),
            false => self.of_member(text),
        }
    }

    /// The value whose text, or NULL, is the element at `index` of this JSON array.
    pub fn of_element(&self, array: &str, index: usize) -> String {
        match self.built_in {
            true => format!("({array} ->> {index})::{}", self.sql),
            false => self.of_member(&format!("{array} -> {index}")),
        }
    }

    fn of_member(&self, value: &str) -> String {
        format!(
            "(SELECT r.v FROM pg_catalog.jsonb_to_record(pg_catalog.jsonb_build_object('v', {value})) AS r (v {}))",
            self.sql
        )
    }
}
