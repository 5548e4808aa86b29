//! What comes out of the assembler, message by message.

use bytes::Bytes;

use super::*;
use crate::catalog::truncation::Said;
use crate::pg::{Column, Ident, PgTimestamp, QualifiedName, ReplicaIdentity, Tuple, TypeId};
use crate::wire::{LogicalMessage, OldTuple, Truncate};

fn relation(id: u32, name: &str) -> Relation {
    let column = Column { name: Ident::new("id"), in_identity: true, type_id: TypeId(23), type_modifier: -1 };
    Relation {
        leaves: Default::default(),
        id: RelationId(id),
        name: QualifiedName::new("public", name),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column],
    }
}

fn row(value: u8) -> Tuple {
    Tuple::new(1, Bytes::from(vec![b't', 0, 0, 0, 1, value])).unwrap()
}

fn begin(lsn: u64) -> Message {
    Message::Begin(Begin { final_lsn: Lsn::new(lsn), committed_at: PgTimestamp::from_micros(0), xid: 1 })
}

fn commit(lsn: u64) -> Message {
    let (commit_lsn, end_lsn) = (Lsn::new(lsn), Lsn::new(lsn + 8));
    Message::Commit(Commit { commit_lsn, end_lsn, committed_at: PgTimestamp::from_micros(0) })
}

fn insert(id: u32, value: u8) -> Message {
    Message::Insert { xid: None, relation: RelationId(id), new: row(value) }
}

fn described(id: u32, name: &str) -> Message {
    Message::Relation { xid: None, relation: relation(id, name) }
}

fn assembler(piece: usize) -> Assembler {
    let tables = TableSet::new([(RelationId(1), QualifiedName::new("public", "t"))]);
    Assembler::new(tables, piece, "hw", Lsn::new(10))
}

fn run(assembler: &mut Assembler, messages: Vec<Message>) -> Vec<Step> {
    for message in messages {
        assembler.message(message).unwrap();
    }
    std::iter::from_fn(|| assembler.poll())
        .map(|output| if let Output::Step(step) = output { step } else { panic!("{output:?}") })
        .collect()
}

#[test]
fn a_small_transaction_comes_out_whole_at_its_commit() {
    let mut assembler = assembler(1 << 20);
    let steps = run(&mut assembler, vec![begin(100), described(1, "t"), insert(1, b'1'), insert(1, b'2')]);
    assert!(steps.is_empty(), "nothing before the commit");
    let steps = run(&mut assembler, vec![commit(100)]);
    let [Step::Transaction(transaction)] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(transaction.changes.len(), 2);
    assert_eq!(transaction.commit.end_lsn, Lsn::new(108));
    assert_eq!(assembler.received(), Lsn::new(108));
}

#[test]
fn a_large_transaction_comes_out_in_pieces_that_hold_all_of_it() {
    let mut assembler = assembler(300);
    let mut messages = vec![begin(100), described(1, "t")];
    messages.extend((0..10).map(|i| insert(1, b'0' + i)));
    messages.push(commit(100));
    let steps = run(&mut assembler, messages);
    assert!(matches!(steps.first(), Some(Step::Begin(_))));
    assert!(matches!(steps.last(), Some(Step::Commit { .. })));
    let changes: usize =
        steps.iter().map(|step| if let Step::Chunk(piece) = step { piece.changes.len() } else { 0 }).sum();
    assert_eq!((changes, steps.len()), (10, 2 + 4), "four pieces of at most three changes");
}

#[test]
fn other_tables_are_left_out_and_their_transactions_only_move_the_position() {
    let mut assembler = assembler(1 << 20);
    let steps = run(&mut assembler, vec![begin(100), described(2, "other"), insert(2, b'1'), commit(100)]);
    assert_eq!(steps, [Step::Reached(Lsn::new(108))]);
}

#[test]
fn a_keepalive_counts_only_between_transactions_and_never_backwards() {
    let mut assembler = assembler(1 << 20);
    assembler.keepalive(Lsn::new(5));
    assert_eq!(assembler.poll(), None, "below what was resumed from");
    assembler.keepalive(Lsn::new(50));
    assembler.keepalive(Lsn::new(60));
    assert_eq!(run(&mut assembler, vec![begin(100)]), [Step::Reached(Lsn::new(60))], "only the newest");
    assembler.keepalive(Lsn::new(99));
    assert_eq!(assembler.poll(), None, "inside a transaction");
}

#[test]
fn what_the_source_sends_again_is_applied_no_second_time() {
    let mut assembler = assembler(1 << 20);
    let whole = |lsn| vec![begin(lsn), described(1, "t"), insert(1, b'1'), commit(lsn)];
    assert_eq!(run(&mut assembler, whole(2)), [], "it was applied before the session began");
    assert_eq!(run(&mut assembler, whole(100)).len(), 1);
    assert_eq!(run(&mut assembler, whole(100)), []);
    assert_eq!(assembler.received(), Lsn::new(108));
    assert_eq!(run(&mut assembler, whole(108)).len(), 1, "the next one begins where that one ends");
    // What has never come, and comes too late, may already be passed by the stored position.
    assembler.keepalive(Lsn::new(200));
    let late = TransactionError::OutOfOrder { commit_lsn: Lsn::new(150), received: Lsn::new(200) };
    assert_eq!(assembler.message(begin(150)), Err(late));
}

#[test]
fn a_changed_relation_holds_from_its_message_on() {
    let mut assembler = assembler(1 << 20);
    let mut renamed = relation(1, "t");
    renamed.columns[0].name = Ident::new("key");
    let steps = run(
        &mut assembler,
        vec![
            begin(100),
            described(1, "t"),
            insert(1, b'1'),
            described(1, "t"),
            insert(1, b'2'),
            Message::Relation { xid: None, relation: renamed },
            insert(1, b'3'),
            commit(100),
        ],
    );
    let [Step::Transaction(transaction)] = steps.as_slice() else { panic!("{steps:?}") };
    let relations: Vec<_> = transaction
        .changes
        .iter()
        .map(|change| if let Change::Row(RowChange::Insert { relation, .. }) = change { relation } else { panic!() })
        .collect();
    assert_eq!(relations[0], relations[1], "the same description again");
    assert!(!Arc::ptr_eq(relations[0], relations[1]), "but it was described again, and the catalog may tell more");
    assert_eq!(relations[2].columns[0].name, Ident::new("key"));
    assert_eq!(relations[0].columns[0].name, Ident::new("id"));
}

#[test]
fn heartbeats_of_ours_travel_with_their_transaction() {
    let mut assembler = assembler(1 << 20);
    let message = |prefix: &str| Message::Logical {
        xid: None,
        message: LogicalMessage {
            transactional: true,
            message_lsn: Lsn::new(99),
            prefix: prefix.into(),
            content: Bytes::from_static(b"7"),
        },
    };
    let steps = run(&mut assembler, vec![begin(100), message("hw"), commit(100)]);
    let [Step::Transaction(transaction)] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(transaction.heartbeat, Some(Heartbeat { content: b"7".to_vec() }));
    let steps = run(&mut assembler, vec![begin(200), message("foreign"), commit(200)]);
    assert_eq!(steps, [Step::Reached(Lsn::new(208))]);
}

#[test]
fn what_has_no_place_ends_the_run() {
    let wrong_width = Message::Delete {
        xid: None,
        relation: RelationId(1),
        old: OldTuple::Key(Tuple::new(2, Bytes::from_static(b"nn")).unwrap()),
    };
    let truncate = Truncate { relations: vec![RelationId(9)], cascade: false, restart_identity: false };
    for messages in [
        vec![commit(100)],
        vec![begin(100), begin(200)],
        vec![begin(100), commit(200)],
        vec![begin(100), insert(1, b'1')],
        vec![described(1, "t"), insert(1, b'1')],
        vec![begin(100), described(1, "t"), wrong_width],
        vec![begin(100), described(3, "t")],
        vec![begin(100), Message::Truncate { xid: None, truncate }],
        vec![Message::StreamStop],
    ] {
        let mut assembler = assembler(1 << 20);
        let shown = format!("{messages:?}");
        let failed = messages.into_iter().any(|message| assembler.message(message).is_err());
        assert!(failed, "{shown}");
    }
}

#[test]
fn another_table_of_a_known_name_is_an_obstacle_only_where_the_name_is_followed() {
    let others = |assembler: &mut Assembler| {
        let messages = [begin(100), described(7, "t"), insert(7, b'1'), commit(100)];
        messages.into_iter().try_for_each(|message| assembler.message(message))
    };
    let mut following = assembler(1 << 20);
    let replaced = others(&mut following);
    assert!(matches!(replaced, Err(TransactionError::Replaced { old: RelationId(1), new: RelationId(7), .. })));
    let name = QualifiedName::new("public", "t");
    let tables = TableSet::new([(RelationId(1), name.clone())]).passing_over([name]);
    let mut passing = Assembler::new(tables, 1 << 20, "hw", Lsn::new(10));
    assert_eq!(others(&mut passing), Ok(()));
}

#[test]
fn relations_that_are_described_again_and_again_count_as_part_of_the_transaction() {
    let mut assembler = assembler(1 << 20);
    let mut wide = relation(1, "t");
    wide.columns[0].name = Ident::new("x".repeat(1000));
    run(&mut assembler, vec![begin(100)]);
    let mut pieces = 0;
    for _ in 0..5_000 {
        let described = Message::Relation { xid: None, relation: wide.clone() };
        let steps = run(&mut assembler, vec![described, insert(1, b'1')]);
        pieces += steps.iter().filter(|step| matches!(step, Step::Chunk(_))).count();
    }
    assert!(pieces >= 4, "{pieces} pieces of a megabyte where five megabytes of names came");
}

#[test]
fn a_session_tells_of_no_more_tables_than_a_database_has() {
    let mut assembler = assembler(1 << 20);
    let mut last = Ok(());
    for id in 2..=(1 << 20) + 2 {
        assert!(last.is_ok(), "{id}");
        last = assembler.message(described(id, "u"));
    }
    assert!(last.unwrap_err().to_string().contains("one more table than a session may tell of"));
}

/// The partitions that the description of each step's changes names.
fn leaves(steps: &[Step]) -> Vec<Vec<u32>> {
    let changes = steps.iter().flat_map(|step| match step {
        Step::Transaction(transaction) => transaction.changes.as_slice(),
        Step::Chunk(chunk) => chunk.changes.as_slice(),
        Step::Begin(_) | Step::Schema(_) | Step::Commit { .. } | Step::AppliedInParallel { .. } | Step::Reached(_) => {
            &[]
        }
    });
    let leaves = |change: &Change| {
        change.relations().iter().flat_map(|relation| relation.leaves.iter()).map(|leaf| leaf.0).collect()
    };
    changes.map(leaves).collect()
}

#[test]
fn a_partition_is_named_behind_its_root_and_before_its_first_row() {
    let mut assembler = assembler(1 << 20);
    let named = |leaf: u32| [described(1, "t"), described(leaf, "leaf")];
    let mut messages = vec![begin(100)];
    messages.extend(named(11).into_iter().chain([insert(1, b'1'), insert(1, b'2')]));
    messages.extend(named(12).into_iter().chain([insert(1, b'3'), commit(100)]));
    assert_eq!(leaves(&run(&mut assembler, messages)), [[11], [11], [12]]);
    let truncate = |relations: &[u32]| Message::Truncate {
        xid: None,
        truncate: Truncate {
            relations: relations.iter().map(|id| RelationId(*id)).collect(),
            cascade: false,
            restart_identity: false,
        },
    };
    let messages =
        vec![begin(200), described(1, "t"), described(13, "other"), truncate(&[1, 13]), insert(1, b'4'), commit(200)];
    let found = leaves(&run(&mut assembler, messages));
    assert_eq!(found, [[0; 0], [0; 0]], "a table that is truncated with another is no partition of it");
}

#[test]
fn partitions_are_counted_with_the_truncate_that_they_are_named_behind() {
    let truncate = |xid| Message::Truncate {
        xid,
        truncate: Truncate { relations: vec![RelationId(1)], cascade: false, restart_identity: false },
    };
    let named = |xid, leaf: u32| {
        let relation = |id, name| Message::Relation { xid, relation: relation(id, name) };
        let row = Message::Insert { xid, relation: RelationId(1), new: row(b'1') };
        [relation(1, "t"), relation(leaf, "leaf"), row]
    };
    let said = |assembler: &mut Assembler, transaction| {
        let told = assembler.take_truncated();
        let [(RelationId(1), truncation)] = told.as_slice() else { panic!("{told:?}") };
        [11, 12, 13].map(|leaf| truncation.says(leaf, transaction))
    };
    let mut plain = assembler(1 << 20);
    let mut messages = vec![begin(100)];
    messages.extend(named(None, 13).into_iter().chain([truncate(None)]));
    messages.extend(named(None, 11).into_iter().chain(named(None, 12)).chain(named(None, 12)));
    run(&mut plain, messages);
    assert_eq!(plain.take_truncated(), [], "it has not committed");
    run(&mut plain, vec![commit(100)]);
    assert_eq!(said(&mut plain, 1), [Some(Said::Once), Some(Said::Again), Some(Said::EmptyIfIndexed)]);
    run(&mut plain, vec![begin(200), truncate(None), commit(200)]);
    assert_eq!(said(&mut plain, 1), [Some(Said::Empty); 3], "another transaction");

    let mut streamed = assembler(1 << 20).with_streams();
    let take = |assembler: &mut Assembler, messages: Vec<Message>| {
        messages.into_iter().for_each(|message| assembler.message(message).unwrap());
    };
    take(
        &mut streamed,
        vec![Message::StreamStart { xid: 7, first: true }, named(Some(7), 13)[0].clone(), truncate(Some(8))],
    );
    take(&mut streamed, named(Some(7), 11).into_iter().chain([Message::StreamStop]).collect());
    take(&mut streamed, vec![Message::StreamStart { xid: 7, first: false }]);
    take(&mut streamed, named(Some(9), 11).into_iter().chain([truncate(Some(9)), Message::StreamStop]).collect());
    assert_eq!(streamed.take_truncated(), []);
    let (commit_lsn, end_lsn) = (Lsn::new(400), Lsn::new(408));
    let commit = Commit { commit_lsn, end_lsn, committed_at: PgTimestamp::from_micros(0) };
    take(&mut streamed, vec![Message::StreamCommit { xid: 7, commit }]);
    let told = streamed.take_truncated();
    let says = |leaf, transaction| told[0].1.says(leaf, transaction);
    assert_eq!(
        (says(11, 8), says(11, 9), says(12, 8), says(11, 7)),
        (Some(Said::Again), Some(Said::Again), Some(Said::Empty), None)
    );
}

#[test]
fn a_partition_that_a_skipped_transaction_has_named_is_named_again() {
    let mut assembler = assembler(1 << 20).without_foreign_origins();
    let origin = Message::Origin { commit_lsn: Lsn::new(1), name: "elsewhere".to_owned() };
    let messages = vec![begin(100), origin, described(1, "t"), described(11, "leaf"), insert(1, b'1'), commit(100)];
    assert_eq!(leaves(&run(&mut assembler, messages)), [[0; 0]; 0]);
    let messages = vec![begin(200), described(1, "t"), described(12, "leaf"), insert(1, b'2'), commit(200)];
    assert_eq!(leaves(&run(&mut assembler, messages)), [[11, 12]]);
    // The row was not sent, as one of a DELETE without an identity is not.
    let messages = vec![
        begin(300),
        described(1, "t"),
        described(13, "leaf"),
        commit(300),
        begin(400),
        insert(1, b'3'),
        commit(400),
    ];
    assert_eq!(leaves(&run(&mut assembler, messages)), [[13]]);
}
