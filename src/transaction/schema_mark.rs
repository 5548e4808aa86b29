//! Marks of schema changes: logical messages that an event trigger at the source writes into the stream, where its owner has
//! installed one (sql/ddl_marks.sql).
//!
//! Read by the assembler; `source::stream` has the tables that a mark names looked at before anything of its transaction, or of what
//! follows, is handed on. A mark has no other effect, since any role may write such a message.
//!
//! Bounds: [`OBJECTS_MAX`] objects a mark, and one mark a transaction in progress.

use std::collections::BTreeSet;

/// The prefix of marks.
pub const SCHEMA_MARK_PREFIX: &str = "headwater.ddl";

/// More than the trigger names before it names none; what names more concerns everything.
const OBJECTS_MAX: usize = 4096;

/// What a schema change was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objects {
    /// The relations and types with these OIDs.
    These(BTreeSet<u32>),
    /// Any of them.
    All,
}

impl Objects {
    /// Reads a mark's content: OIDs between spaces. Everything is concerned by one that is not understood.
    pub fn parse(content: &[u8]) -> Objects {
        let text = std::str::from_utf8(content).unwrap_or("*");
        let mut objects = BTreeSet::new();
        for word in text.split_ascii_whitespace() {
            match word.parse() {
                Ok(id) if objects.len() < OBJECTS_MAX => {
                    objects.insert(id);
                }
                Ok(_) | Err(_) => return Objects::All,
            }
        }
        Objects::These(objects)
    }

    /// Adds those of another mark of the same transaction.
    pub(super) fn merge(&mut self, other: Objects) {
        match (&mut *self, other) {
            (Objects::All, _) => {}
            (Objects::These(objects), Objects::These(more)) if objects.len() + more.len() <= OBJECTS_MAX => {
                objects.extend(more);
            }
            (Objects::These(_), _) => *self = Objects::All,
        }
    }

    /// Whether one of these is among them.
    pub fn concern(&self, followed: &BTreeSet<u32>) -> bool {
        match self {
            Objects::All => true,
            Objects::These(objects) => objects.iter().any(|id| followed.contains(id)),
        }
    }
}

/// A schema change in a committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaMark {
    /// The transaction, by its top-level xid.
    pub transaction: u32,
    /// What it was about.
    pub objects: Objects,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_is_not_understood_concerns_everything() {
        let followed = BTreeSet::from([7, 16_384]);
        for (content, concerned) in [
            ("16384", true),
            ("1 2 16384 3", true),
            ("1 2 3", false),
            ("", false),
            ("*", true),
            ("1 rubbish", true),
            ("-1", true),
            ("99999999999", true),
        ] {
            assert_eq!(Objects::parse(content.as_bytes()).concern(&followed), concerned, "{content:?}");
        }
        assert!(Objects::parse(b"\xff").concern(&followed));
        let many: Vec<String> = (100_000..=104_096).map(|id| id.to_string()).collect();
        assert_eq!(Objects::parse(many.join(" ").as_bytes()), Objects::All);
    }

    #[test]
    fn the_marks_of_one_transaction_are_one_and_bounded() {
        let mut all = Objects::parse(b"1");
        all.merge(Objects::parse(b"2 3"));
        assert_eq!(all, Objects::These(BTreeSet::from([1, 2, 3])));
        for id in 4..10_000 {
            all.merge(Objects::These(BTreeSet::from([id])));
        }
        assert_eq!(all, Objects::All);
    }
}
