//! A dead letter: changes with the relations that describe them, as MessagePack that needs nothing else to be read.
//!
//! `destination::dead_letter` writes it for a skipped transaction and keeps it in headwater.dead_letter. The commands
//! `dead-letter show` and `replay`, of this version or a later one, read it back long after the stream has moved on:
//!
//! ```text
//! [version, [relation, …], bin]      bin: records of `record`, which name relations by their place in the list
//! ```
//!
//! Whatever the bytes are, reading them ends with changes or a [`LetterError`] (I10).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::change::Change;
use super::record::{read_changes, write_change};
use crate::pg::{Relation, length_u32};
use crate::transaction::error::RecordError;

/// Raised when the layout changes; letters outlive the program that wrote them.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct EncodedLetter(u32, Vec<Relation>, Bytes);

/// Bytes that are not a letter.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// Not MessagePack, or of another shape.
    #[error("not a letter: {0}")]
    Malformed(String),
    /// Written by a newer headwater.
    #[error("a letter of version {0}, which this headwater does not know")]
    Version(u32),
    /// Its records do not fit its relations.
    #[error("a letter with a damaged record: {0}")]
    Record(#[from] RecordError),
}

/// The letter of some changes.
pub fn write_letter(changes: &[Change]) -> Vec<u8> {
    let mut relations: Vec<Arc<Relation>> = Vec::new();
    for relation in changes.iter().flat_map(Change::relations) {
        if !relations.contains(relation) {
            relations.push(Arc::clone(relation));
        }
    }
    let number_of = |relation: &Arc<Relation>| {
        let index = relations.iter().position(|known| Arc::ptr_eq(known, relation) || known == relation);
        length_u32(index.expect("the relations of all changes were collected above"))
    };
    let mut records = BytesMut::new();
    for change in changes {
        write_change(change, number_of, &mut records);
    }
    let relations: Vec<Relation> = relations.iter().map(|relation| Relation::clone(relation)).collect();
    rmp_serde::to_vec(&EncodedLetter(VERSION, relations, records.freeze())).expect("memory takes any letter")
}

/// The changes of a letter.
///
/// # Errors
/// [`LetterError`] when the bytes are anything else.
pub fn read_letter(bytes: &[u8]) -> Result<Vec<Change>, LetterError> {
    let EncodedLetter(version, relations, records) =
        rmp_serde::from_slice(bytes).map_err(|error| LetterError::Malformed(error.to_string()))?;
    if version != VERSION {
        return Err(LetterError::Version(version));
    }
    let relations: Vec<Arc<Relation>> = relations.into_iter().map(Arc::new).collect();
    Ok(read_changes(&records, &relations)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pg::{Column, Ident, QualifiedName, RelationId, ReplicaIdentity, Tuple, TypeId};
    use crate::transaction::change::RowChange;
    use crate::wire::OldTuple;

    fn relation(id: u32) -> Arc<Relation> {
        let column = |name: &str| Column {
            name: Ident::new(name),
            in_identity: name == "id",
            type_id: TypeId(25),
            type_modifier: -1,
        };
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(id),
            name: QualifiedName::new("Mixed \"Case\"", "t"),
            replica_identity: ReplicaIdentity::Full,
            columns: vec![column("id"), column("body")],
        })
    }

    fn changes() -> Vec<Change> {
        let tuple = |data: &'static [u8]| Tuple::new(2, Bytes::from_static(data)).unwrap();
        vec![
            Change::Row(RowChange::Insert { relation: relation(1), new: tuple(b"t\0\0\0\x011n") }),
            Change::Row(RowChange::Update {
                relation: relation(2),
                old: Some(OldTuple::Row(tuple(b"t\0\0\0\x011n"))),
                new: tuple(b"t\0\0\0\x012u"),
            }),
            Change::Row(RowChange::Delete { relation: relation(1), old: OldTuple::Key(tuple(b"t\0\0\0\x011n")) }),
            Change::Truncate { relations: vec![relation(2), relation(1)], restart_identity: true },
        ]
    }

    #[test]
    fn a_letter_is_read_back_with_its_relations() {
        assert_eq!(read_letter(&write_letter(&changes())).unwrap(), changes());
        assert_eq!(read_letter(&write_letter(&[])).unwrap(), Vec::new());
    }

    #[test]
    fn a_letter_of_a_later_version_is_not_guessed_at() {
        let mut bytes = write_letter(&changes());
        bytes[1] = 2;
        assert!(matches!(read_letter(&bytes), Err(LetterError::Version(2))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_letter_or_an_error(
            cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8,
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = read_letter(&noise);
            let mut bytes = write_letter(&changes());
            prop_assert!(read_letter(&bytes[..cut.index(bytes.len())]).is_err(), "cut short");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = read_letter(&bytes);
        }
    }
}
