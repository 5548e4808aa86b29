//! The record format: a change as MessagePack, for the moment at which it leaves the process's memory.
//!
//! Written by the assembler for each change of an in-progress stream, kept by `spool`, read back by
//! [`crate::transaction::replay::Replay`] when
//! the stream commits. One record is one array:
//!
//! ```text
//! insert    [0, relation, tuple]                     tuple  [columns, bin]    as they came over the wire
//! update    [1, relation, old, tuple]                old    nil | [0, tuple] key | [1, tuple] whole row
//! delete    [2, relation, old]                       relation               a number: which of the stream's relations
//! truncate  [3, [relation, …], restart_identity]
//! ```
//!
//! Relations stand outside, by number, because a cut may remove the record that came right after a Relation message
//! while pgoutput counts the message as sent. A value is read back as a slice of the chunk that it was read in, never
//! copied. Whatever the bytes are, reading them ends with a change or a [`RecordError`] (I10).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rmp::{Marker, decode, encode};

use super::change::{Change, RowChange};
use crate::pg::{Relation, Tuple, length_u32, usize_from};
use crate::transaction::error::RecordError;
use crate::wire::OldTuple;

const INSERT: u8 = 0;
const UPDATE: u8 = 1;
const DELETE: u8 = 2;
const TRUNCATE: u8 = 3;
const OLD_KEY: u8 = 0;
const OLD_ROW: u8 = 1;

/// A number that no relation of a stream has: a record with it is an error to read.
pub(super) const UNKNOWN_RELATION: u32 = u32::MAX;

/// Writes one change behind what `out` holds; `number_of` tells which of the stream's relations is meant.
pub fn write_change(change: &Change, number_of: impl Fn(&Arc<Relation>) -> u32, out: &mut BytesMut) {
    let large = write_beginning(change, number_of, out, usize::MAX);
    debug_assert!(large.is_none(), "no row is so large");
}

/// The same, without the values of a new row that take `large_bytes` or more: they end the record, and are returned as they came.
pub(super) fn write_beginning(
    change: &Change,
    number_of: impl Fn(&Arc<Relation>) -> u32,
    out: &mut BytesMut,
    large_bytes: usize,
) -> Option<Bytes> {
    let mut out = RecordWriter(out);
    match change {
        Change::Row(RowChange::Insert { relation, new }) => {
            out.array(3);
            out.number(INSERT.into());
            out.number(number_of(relation));
            return out.last_tuple(new, large_bytes);
        }
        Change::Row(RowChange::Update { relation, old, new }) => {
            out.array(4);
            out.number(UPDATE.into());
            out.number(number_of(relation));
            match old {
                None => out.nil(),
                Some(old) => out.old(old),
            }
            return out.last_tuple(new, large_bytes);
        }
        Change::Row(RowChange::Delete { relation, old }) => {
            out.array(3);
            out.number(DELETE.into());
            out.number(number_of(relation));
            out.old(old);
        }
        Change::Truncate { relations, restart_identity } => {
            out.array(3);
            out.number(TRUNCATE.into());
            out.array(length_u32(relations.len()));
            for relation in relations {
                out.number(number_of(relation));
            }
            out.bool(*restart_identity);
        }
    }
    None
}

/// Reads all changes of a chunk, which holds whole records.
///
/// # Errors
/// [`RecordError`] when the bytes are anything else.
pub fn read_changes(chunk: &Bytes, relations: &[Arc<Relation>]) -> Result<Vec<Change>, RecordError> {
    read_changes_where(chunk, relations, |_| true)
}

/// Reads those changes of a chunk whose records are kept, by where they begin in it.
pub(super) fn read_changes_where(
    chunk: &Bytes,
    relations: &[Arc<Relation>],
    mut is_kept: impl FnMut(usize) -> bool,
) -> Result<Vec<Change>, RecordError> {
    let mut reader = RecordReader { shared: chunk, rest: chunk, relations };
    let mut changes = Vec::new();
    while !reader.rest.is_empty() {
        let begin = chunk.len() - reader.rest.len();
        let change = reader.change()?;
        changes.extend(is_kept(begin).then_some(change));
    }
    Ok(changes)
}

/// Why writing a record does not fail.
const IN_MEMORY: &str = "memory takes everything";

struct RecordWriter<'a>(&'a mut BytesMut);

impl RecordWriter<'_> {
    fn sink(&mut self) -> bytes::buf::Writer<&mut BytesMut> {
        bytes::BufMut::writer(&mut *self.0)
    }

    fn array(&mut self, length: u32) {
        encode::write_array_len(&mut self.sink(), length).expect(IN_MEMORY);
    }

    fn number(&mut self, number: u32) {
        encode::write_uint(&mut self.sink(), number.into()).expect(IN_MEMORY);
    }

    fn nil(&mut self) {
        encode::write_nil(&mut self.sink()).expect(IN_MEMORY);
    }

    fn bool(&mut self, value: bool) {
        encode::write_bool(&mut self.sink(), value).expect(IN_MEMORY);
    }

    fn tuple(&mut self, tuple: &Tuple) {
        self.begin_tuple(tuple);
        self.0.extend_from_slice(tuple.as_bytes());
    }

    fn begin_tuple(&mut self, tuple: &Tuple) {
        self.array(2);
        self.number(length_u32(tuple.len()));
        encode::write_bin_len(&mut self.sink(), length_u32(tuple.size_bytes())).expect(IN_MEMORY);
    }

    fn last_tuple(&mut self, tuple: &Tuple, large_bytes: usize) -> Option<Bytes> {
        if tuple.size_bytes() < large_bytes {
            self.tuple(tuple);
            return None;
        }
        self.begin_tuple(tuple);
        Some(tuple.shared_bytes())
    }

    fn old(&mut self, old: &OldTuple) {
        self.array(2);
        match old {
            OldTuple::Key(tuple) => {
                self.number(OLD_KEY.into());
                self.tuple(tuple);
            }
            OldTuple::Row(tuple) => {
                self.number(OLD_ROW.into());
                self.tuple(tuple);
            }
        }
    }
}

struct RecordReader<'a> {
    shared: &'a Bytes,
    rest: &'a [u8],
    relations: &'a [Arc<Relation>],
}

impl RecordReader<'_> {
    fn change(&mut self) -> Result<Change, RecordError> {
        let fields = self.array("record")?;
        let kind: u8 = self.number("kind")?;
        match (kind, fields) {
            (INSERT, 3) => {
                let relation = self.relation()?;
                let new = self.row(&relation)?;
                Ok(Change::Row(RowChange::Insert { relation, new }))
            }
            (UPDATE, 4) => {
                let relation = self.relation()?;
                let old = self.old(&relation)?;
                let new = self.row(&relation)?;
                Ok(Change::Row(RowChange::Update { relation, old, new }))
            }
            (DELETE, 3) => {
                let relation = self.relation()?;
                let old = self.old(&relation)?.ok_or(RecordError::Malformed("old row"))?;
                Ok(Change::Row(RowChange::Delete { relation, old }))
            }
            (TRUNCATE, 3) => {
                // Not reserved up front: the count is a claim until its relations have been read.
                let mut relations = Vec::new();
                for _ in 0..self.array("list of relations")? {
                    relations.push(self.relation()?);
                }
                let restart_identity =
                    decode::read_bool(&mut self.rest).map_err(|_| RecordError::Malformed("restart flag"))?;
                Ok(Change::Truncate { relations, restart_identity })
            }
            (_, _) => Err(RecordError::Malformed("kind")),
        }
    }

    fn array(&mut self, field: &'static str) -> Result<u32, RecordError> {
        decode::read_array_len(&mut self.rest).map_err(|_| RecordError::Malformed(field))
    }

    fn number<T: TryFrom<u64>>(&mut self, field: &'static str) -> Result<T, RecordError> {
        let number: u64 = decode::read_int(&mut self.rest).map_err(|_| RecordError::Malformed(field))?;
        T::try_from(number).map_err(|_| RecordError::Malformed(field))
    }

    fn relation(&mut self) -> Result<Arc<Relation>, RecordError> {
        let number: u32 = self.number("relation")?;
        let known = self.relations.get(usize_from(number));
        known.map(Arc::clone).ok_or(RecordError::UnknownRelation(number))
    }

    fn row(&mut self, relation: &Relation) -> Result<Tuple, RecordError> {
        if self.array("row")? != 2 {
            return Err(RecordError::Malformed("row"));
        }
        let columns: u16 = self.number("column count")?;
        let length = decode::read_bin_len(&mut self.rest).map_err(|_| RecordError::Malformed("row"))?;
        let length = usize_from(length);
        let (data, rest) = self.rest.split_at_checked(length).ok_or(RecordError::Malformed("row"))?;
        self.rest = rest;
        let tuple =
            Tuple::new(columns, self.shared.slice_ref(data)).map_err(|_| RecordError::Malformed("row's columns"))?;
        if tuple.len() != relation.columns.len() {
            return Err(RecordError::ColumnCount { expected: relation.columns.len(), found: tuple.len() });
        }
        Ok(tuple)
    }

    fn old(&mut self, relation: &Relation) -> Result<Option<OldTuple>, RecordError> {
        if let Some((first, rest)) = self.rest.split_first()
            && Marker::from_u8(*first) == Marker::Null
        {
            self.rest = rest;
            return Ok(None);
        }
        if self.array("old row")? != 2 {
            return Err(RecordError::Malformed("old row"));
        }
        let kind: u8 = self.number("old row's kind")?;
        let tuple = self.row(relation)?;
        match kind {
            OLD_KEY => Ok(Some(OldTuple::Key(tuple))),
            OLD_ROW => Ok(Some(OldTuple::Row(tuple))),
            _ => Err(RecordError::Malformed("old row's kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pg::{Column, Ident, QualifiedName, RelationId, ReplicaIdentity, TypeId};

    fn relation(id: u32, columns: usize) -> Arc<Relation> {
        let column = |n| Column {
            name: Ident::new(format!("c{n}")),
            in_identity: n == 0,
            type_id: TypeId(25),
            type_modifier: -1,
        };
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(id),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: (0..columns).map(column).collect(),
        })
    }

    fn relations() -> Vec<Arc<Relation>> {
        vec![relation(1, 2), relation(2, 0), relation(3, 3)]
    }

    fn number_of(relation: &Arc<Relation>) -> u32 {
        relation.id.0 - 1
    }

    fn tuple(columns: usize) -> impl Strategy<Value = Tuple> {
        let datum = prop_oneof![
            Just(vec![b'n']),
            Just(vec![b'u']),
            (prop_oneof![Just(b't'), Just(b'b')], proptest::collection::vec(any::<u8>(), 0..400)).prop_map(
                |(kind, value)| {
                    let mut bytes = vec![kind];
                    bytes.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                    bytes.extend(value);
                    bytes
                }
            ),
        ];
        proptest::collection::vec(datum, columns)
            .prop_map(move |data| Tuple::new(u16::try_from(columns).unwrap(), Bytes::from(data.concat())).unwrap())
    }

    fn change() -> impl Strategy<Value = Change> {
        (0_usize..3).prop_flat_map(|at| {
            let relation = Arc::clone(&relations()[at]);
            let columns = relation.columns.len();
            let old = prop_oneof![tuple(columns).prop_map(OldTuple::Key), tuple(columns).prop_map(OldTuple::Row)];
            (tuple(columns), proptest::option::of(old), 0..4, any::<bool>()).prop_map(
                move |(new, old, kind, restart_identity)| {
                    let relation = Arc::clone(&relation);
                    match (kind, old) {
                        (0, _) => Change::Row(RowChange::Insert { relation, new }),
                        (1, old) => Change::Row(RowChange::Update { relation, old, new }),
                        (2, Some(old)) => Change::Row(RowChange::Delete { relation, old }),
                        (_, _) => Change::Truncate { relations: relations(), restart_identity },
                    }
                },
            )
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(changes in proptest::collection::vec(change(), 0..20)) {
            let mut bytes = BytesMut::new();
            for change in &changes {
                write_change(change, number_of, &mut bytes);
            }
            prop_assert_eq!(read_changes(&bytes.freeze(), &relations()), Ok(changes));
        }

        #[test]
        fn any_bytes_are_changes_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_changes(&Bytes::from(bytes), &relations());
        }

        #[test]
        fn a_record_that_is_cut_short_is_noticed(change in change(), cut in any::<prop::sample::Index>()) {
            let mut bytes = BytesMut::new();
            write_change(&change, number_of, &mut bytes);
            let at = cut.index(bytes.len());
            bytes.truncate(at);
            prop_assert_eq!(read_changes(&bytes.freeze(), &relations()).is_err(), at > 0);
        }
    }

    #[test]
    fn a_record_is_small_and_its_values_are_slices_of_the_chunk() {
        let new = Tuple::new(2, Bytes::from_static(b"nt\0\0\0\x01x")).unwrap();
        let mut bytes = BytesMut::new();
        write_change(&Change::Row(RowChange::Insert { relation: relation(1, 2), new }), number_of, &mut bytes);
        assert_eq!(bytes.as_ref(), b"\x93\x00\x00\x92\x02\xc4\x07nt\0\0\0\x01x");
        let chunk = bytes.freeze();
        let changes = read_changes(&chunk, &relations()).unwrap();
        let [Change::Row(RowChange::Insert { new, .. })] = changes.as_slice() else { panic!("{changes:?}") };
        assert!(chunk.as_ptr_range().contains(&new.as_bytes().as_ptr()), "not a copy");
    }

    #[test]
    fn a_record_that_does_not_fit_its_streams_relations_is_refused() {
        let new = Tuple::new(2, Bytes::from_static(b"nn")).unwrap();
        let mut bytes = BytesMut::new();
        write_change(&Change::Row(RowChange::Insert { relation: relation(1, 2), new }), |_| 7, &mut bytes);
        assert_eq!(read_changes(&bytes.clone().freeze(), &relations()), Err(RecordError::UnknownRelation(7)));
        bytes[2] = 2;
        let wrong = read_changes(&bytes.freeze(), &relations());
        assert_eq!(wrong, Err(RecordError::ColumnCount { expected: 3, found: 2 }));
    }
}
