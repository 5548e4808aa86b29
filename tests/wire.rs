//! Decoding, held to itself: what real servers sent reads whole and writes back the same; what is written reads back; nothing
//! that arrives can panic.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a panic is how a test fails")]

use std::path::Path;

use bytes::Bytes;
use headwater::pg::{
    Column, Ident, Lsn, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity, Tuple, TypeId,
};
use headwater::wire::{
    Abort, Begin, Commit, Decoder, LogicalMessage, Message, OldTuple, ReplicationMessage, StandbyStatusUpdate,
    Truncate, TypeDescription, write_message,
};
use proptest::prelude::*;

fn golden() -> Vec<(String, Vec<Bytes>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(Path::new("tests/golden")).expect("tests/golden") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "bin") {
            continue;
        }
        let mut rest = Bytes::from(std::fs::read(&path).expect("a recording"));
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest.split_to(4)[..].try_into().expect("four bytes"));
            messages.push(rest.split_to(usize::try_from(length).expect("a length")));
        }
        files.push((path.file_name().expect("a name").to_string_lossy().into_owned(), messages));
    }
    assert!(files.len() >= 10, "recordings of five majors, text and binary: {} found", files.len());
    files
}

#[test]
fn recorded_bytes_of_every_major_read_whole_and_write_back_the_same() {
    for (file, messages) in golden() {
        let mut decoder = Decoder::new(false);
        for (number, bytes) in messages.iter().enumerate() {
            let message = decoder.read(bytes).unwrap_or_else(|error| panic!("{file}, message {number}: {error}"));
            let mut written = Vec::new();
            write_message(&message, false, &mut written);
            assert_eq!(&Bytes::from(written), bytes, "{file}, message {number}: {message:?}");
        }
    }
}

#[test]
fn a_recorded_message_that_is_cut_or_followed_by_more_is_refused() {
    for (file, messages) in golden() {
        let mut decoder = Decoder::new(false);
        for bytes in &messages {
            for length in 0..bytes.len().min(300) {
                let cut = decoder.clone().read(&bytes.slice(..length));
                assert!(cut.is_err(), "{file}: {length} of {} bytes were read as {cut:?}", bytes.len());
            }
            let longer = Bytes::from([bytes, &b"x"[..]].concat());
            // A message's content is a claimed length, so nothing may follow it either.
            assert!(decoder.clone().read(&longer).is_err(), "{file}: a byte too many was not noticed");
            decoder.read(bytes).expect("the message itself");
        }
    }
}

#[test]
fn a_message_that_is_cut_is_named() {
    let mut decoder = Decoder::new(false);
    let names = [
        (b'B', "Begin"),
        (b'C', "Commit"),
        (b'O', "Origin"),
        (b'R', "Relation"),
        (b'Y', "Type"),
        (b'M', "Message"),
        (b'S', "Stream Start"),
        (b'c', "Stream Commit"),
        (b'A', "Stream Abort"),
    ];
    for (kind, name) in names {
        let error = decoder.read(&Bytes::from(vec![kind])).expect_err("nothing follows the kind").to_string();
        assert!(error.starts_with(&format!("{name} message ends inside its ")), "{error}");
    }
}

#[test]
fn a_relation_with_more_columns_or_longer_names_than_a_servers_is_refused() {
    let column = |length: usize| Column {
        name: Ident::new("é".repeat(length / 2)),
        in_identity: false,
        type_id: TypeId(23),
        type_modifier: -1,
    };
    let read = |table: usize, columns: usize, length: usize| {
        let relation = Relation {
            leaves: Default::default(),
            id: RelationId(7),
            name: QualifiedName::new("s", "t".repeat(table)),
            replica_identity: ReplicaIdentity::Full,
            columns: vec![column(length); columns],
        };
        Decoder::new(false)
            .read(&written(&Message::Relation { xid: None, relation }, false))
            .map_err(|error| error.to_string())
    };
    assert!(read(1024, 1664, 1024).is_ok());
    assert_eq!(read(1025, 1, 4), Err("Relation message has a name of more than 1024".to_owned()));
    assert_eq!(read(1, 1, 1026), Err("Relation message has a column name of more than 1024".to_owned()));
    assert_eq!(read(1, 1665, 4), Err("Relation message has a column count of more than 1664".to_owned()));
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn::new)
}

fn timestamp() -> impl Strategy<Value = PgTimestamp> {
    any::<i64>().prop_map(PgTimestamp::from_micros)
}

fn name() -> impl Strategy<Value = String> {
    // pgoutput writes an empty schema for pg_catalog, so that name is its own inverse only when spelled so.
    "[^\0]{1,20}"
}

fn qualified() -> impl Strategy<Value = QualifiedName> {
    (name(), name()).prop_map(|(schema, name)| QualifiedName::new(schema, name))
}

fn tuple() -> impl Strategy<Value = Tuple> {
    let datum = prop_oneof![
        Just(vec![b'n']),
        Just(vec![b'u']),
        (prop_oneof![Just(b't'), Just(b'b')], proptest::collection::vec(any::<u8>(), 0..40)).prop_map(
            |(kind, value)| {
                let length = i32::try_from(value.len()).expect("a short value").to_be_bytes();
                [&[kind][..], &length[..], &value[..]].concat()
            }
        ),
    ];
    proptest::collection::vec(datum, 0..8).prop_map(|columns| {
        let count = u16::try_from(columns.len()).expect("few columns");
        Tuple::new(count, Bytes::from(columns.concat())).expect("a well-formed tuple")
    })
}

fn old_tuple() -> impl Strategy<Value = OldTuple> {
    prop_oneof![tuple().prop_map(OldTuple::Key), tuple().prop_map(OldTuple::Row)]
}

fn relation() -> impl Strategy<Value = Relation> {
    let column = (name(), any::<bool>(), any::<u32>(), any::<i32>()).prop_map(|(name, in_identity, id, modifier)| {
        Column { name: Ident::new(name), in_identity, type_id: TypeId(id), type_modifier: modifier }
    });
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index)
    ];
    (any::<u32>(), qualified(), identity, proptest::collection::vec(column, 0..6)).prop_map(
        |(id, name, replica_identity, columns)| Relation {
            id: RelationId(id),
            name,
            replica_identity,
            columns,
            leaves: Default::default(),
        },
    )
}

fn commit() -> impl Strategy<Value = Commit> {
    (lsn(), lsn(), timestamp()).prop_map(|(commit_lsn, end_lsn, committed_at)| Commit {
        commit_lsn,
        end_lsn,
        committed_at,
    })
}

/// A message as it stands outside (`None`) or inside a stream (`Some(xid)`).
fn message(xid: Option<u32>) -> impl Strategy<Value = Message> {
    let id = any::<u32>().prop_map(RelationId);
    let changes = prop_oneof![
        (id.clone(), tuple()).prop_map(move |(relation, new)| Message::Insert { xid, relation, new }),
        (id.clone(), proptest::option::of(old_tuple()), tuple())
            .prop_map(move |(relation, old, new)| Message::Update { xid, relation, old, new }),
        (id.clone(), old_tuple()).prop_map(move |(relation, old)| Message::Delete { xid, relation, old }),
        relation().prop_map(move |relation| Message::Relation { xid, relation }),
        (any::<u32>(), qualified())
            .prop_map(move |(id, name)| Message::Type { xid, description: TypeDescription { id: TypeId(id), name } }),
        (proptest::collection::vec(id, 0..5), any::<bool>(), any::<bool>()).prop_map(
            move |(relations, cascade, restart_identity)| Message::Truncate {
                xid,
                truncate: Truncate { relations, cascade, restart_identity }
            }
        ),
        (any::<bool>(), lsn(), name(), proptest::collection::vec(any::<u8>(), 0..50)).prop_map(
            move |(transactional, message_lsn, prefix, content)| Message::Logical {
                xid,
                message: LogicalMessage { transactional, message_lsn, prefix, content: Bytes::from(content) }
            }
        ),
        (lsn(), name()).prop_map(|(commit_lsn, name)| Message::Origin { commit_lsn, name }),
    ];
    let frames = prop_oneof![
        (lsn(), timestamp(), any::<u32>()).prop_map(|(final_lsn, committed_at, xid)| Message::Begin(Begin {
            final_lsn,
            committed_at,
            xid
        })),
        commit().prop_map(Message::Commit),
        (any::<u32>(), commit()).prop_map(|(xid, commit)| Message::StreamCommit { xid, commit }),
        (any::<u32>(), any::<u32>()).prop_map(|(xid, subxid)| Message::StreamAbort(Abort { xid, subxid })),
    ];
    if xid.is_some() { changes.boxed() } else { prop_oneof![4 => changes, 1 => frames].boxed() }
}

fn written(message: &Message, aborts_carry_time: bool) -> Bytes {
    let mut bytes = Vec::new();
    write_message(message, aborts_carry_time, &mut bytes);
    Bytes::from(bytes)
}

/// pgoutput spells pg_catalog as an empty schema.
fn mentions_pg_catalog(message: &Message) -> bool {
    match message {
        Message::Relation { relation, .. } => relation.name.schema.as_str().is_empty(),
        Message::Type { description, .. } => description.name.schema.as_str().is_empty(),
        _ => false,
    }
}

proptest! {
    #[test]
    fn what_is_written_outside_a_stream_reads_back(message in message(None), carried in any::<bool>()) {
        prop_assume!(!mentions_pg_catalog(&message));
        let mut decoder = Decoder::new(carried);
        prop_assert_eq!(decoder.read(&written(&message, carried)), Ok(message));
    }

    #[test]
    fn what_is_written_inside_a_stream_reads_back(xid in any::<u32>(), first in any::<bool>(), messages in proptest::collection::vec(message(Some(7)), 0..5)) {
        let mut decoder = Decoder::new(false);
        let start = Message::StreamStart { xid, first };
        prop_assert_eq!(decoder.read(&written(&start, false)), Ok(start));
        for message in messages {
            prop_assert_eq!(decoder.read(&written(&message, false)), Ok(message));
        }
        prop_assert_eq!(decoder.read(&written(&Message::StreamStop, false)), Ok(Message::StreamStop));
    }

    #[test]
    fn rubbish_is_refused_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), in_stream in any::<bool>()) {
        let bytes = Bytes::from(bytes);
        let mut decoder = Decoder::new(in_stream);
        if in_stream {
            let _ = decoder.read(&written(&Message::StreamStart { xid: 1, first: true }, false));
        }
        if let Ok(message) = decoder.clone().read(&bytes) {
            // Whatever is accepted is exactly what its own writing gives.
            prop_assert_eq!(written(&message, in_stream).len(), bytes.len());
        }
        let _ = ReplicationMessage::read(&bytes);
        let _ = StandbyStatusUpdate::read(&bytes);
    }

    #[test]
    fn a_flipped_byte_is_refused_or_gives_another_message(message in message(None), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut bytes = written(&message, false).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let read = Decoder::new(false).read(&Bytes::from(bytes));
        prop_assert!(read.is_err() || read != Ok(message));
    }
}
