//! What becomes of transactions in progress: interleaved, rolled back in part, and committed.

use bytes::Bytes;

use super::*;
use crate::pg::{Column, Ident, Lsn, PgTimestamp, QualifiedName, ReplicaIdentity, Tuple, TypeId};
use crate::transaction::assembler::Assembler;
use crate::transaction::change::{RowChange, Step};
use crate::transaction::error::TransactionError;
use crate::transaction::output::Output;
use crate::transaction::spool_order::SpoolOrder;
use crate::wire::{Abort, Begin, Commit, LogicalMessage, Message};

const TABLE: RelationId = RelationId(1);

fn relation(columns: &[&str]) -> Relation {
    let column = |name: &&str| Column {
        name: Ident::new(*name),
        in_identity: *name == "id",
        type_id: TypeId(25),
        type_modifier: -1,
    };
    Relation {
        leaves: Default::default(),
        id: TABLE,
        name: QualifiedName::new("public", "t"),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().map(column).collect(),
    }
}

fn at() -> PgTimestamp {
    PgTimestamp::from_micros(0)
}

/// The assembler, a spool that is a map, and all steps that came out.
struct Ring {
    assembler: Assembler,
    spool: HashMap<u32, Vec<u8>>,
    steps: Vec<Step>,
}

impl Ring {
    fn new(piece_bytes_max: usize) -> Ring {
        let tables = TableSet::new([(TABLE, QualifiedName::new("public", "t"))]);
        let assembler = Assembler::new(tables, piece_bytes_max, "hw", Lsn::new(10)).with_streams();
        Ring { assembler, spool: HashMap::new(), steps: Vec::new() }
    }

    fn message(&mut self, message: Message) -> Result<(), TransactionError> {
        self.assembler.message(message)?;
        while let Some(output) = self.assembler.poll() {
            match output {
                Output::Step(step) => self.steps.push(step),
                Output::Spool(SpoolOrder::Append { xid, records }) => {
                    assert!(!records.is_empty(), "the spool is given something to write");
                    self.spool.entry(xid).or_default().extend_from_slice(&records.joined());
                }
                Output::Spool(SpoolOrder::Cut { xid, at }) => {
                    self.spool.entry(xid).or_default().truncate(usize::try_from(at).unwrap());
                }
                Output::Spool(SpoolOrder::Discard { xid }) => {
                    self.spool.remove(&xid);
                }
                Output::Spool(SpoolOrder::Replay(mut replay)) => {
                    let bytes = self.spool.remove(&replay.xid()).unwrap_or_default();
                    replay.chunk(&Bytes::from(bytes))?;
                    replay.end()?;
                    self.steps.extend(std::iter::from_fn(|| replay.poll()));
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, xid: u32, first: bool, messages: Vec<Message>) {
        self.message(Message::StreamStart { xid, first }).unwrap();
        for message in messages {
            self.message(message).unwrap();
        }
        self.message(Message::StreamStop).unwrap();
    }

    fn commit(&mut self, xid: u32, lsn: u64) {
        self.message(Message::StreamCommit { xid, commit: commit(lsn) }).unwrap();
    }

    fn abort(&mut self, xid: u32, subxid: u32) {
        self.message(Message::StreamAbort(Abort { xid, subxid })).unwrap();
    }

    /// The first values of the inserted rows, transaction by transaction.
    fn inserted(&self) -> Vec<Vec<String>> {
        let value = |change: &Change| match change {
            Change::Row(RowChange::Insert { new, .. }) => {
                let bytes = new.columns().next().and_then(|datum| datum.bytes()).unwrap_or_default();
                String::from_utf8(bytes.to_vec()).unwrap()
            }
            Change::Row(RowChange::Update { .. }) | Change::Row(RowChange::Delete { .. }) | Change::Truncate { .. } => {
                panic!("{change:?}")
            }
        };
        let mut transactions: Vec<Vec<String>> = Vec::new();
        for step in &self.steps {
            match step {
                Step::Transaction(transaction) => {
                    transactions.push(transaction.changes.iter().map(value).collect());
                }
                Step::Begin(_) => transactions.push(Vec::new()),
                Step::Chunk(piece) => {
                    transactions.last_mut().unwrap().extend(piece.changes.iter().map(value));
                }
                Step::Schema(_) | Step::Commit { .. } | Step::AppliedInParallel { .. } | Step::Reached(_) => {}
            }
        }
        transactions
    }
}

fn commit(lsn: u64) -> Commit {
    Commit { commit_lsn: Lsn::new(lsn), end_lsn: Lsn::new(lsn + 8), committed_at: at() }
}

fn begin(lsn: u64) -> Message {
    Message::Begin(Begin { final_lsn: Lsn::new(lsn), committed_at: at(), xid: 1 })
}

fn described(xid: Option<u32>, columns: &[&str]) -> Message {
    Message::Relation { xid, relation: relation(columns) }
}

fn row(values: &[&str]) -> Tuple {
    let mut data = Vec::new();
    for value in values {
        data.push(b't');
        data.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        data.extend(value.as_bytes());
    }
    Tuple::new(u16::try_from(values.len()).unwrap(), Bytes::from(data)).unwrap()
}

fn insert(xid: impl Into<Option<u32>>, values: &[&str]) -> Message {
    Message::Insert { xid: xid.into(), relation: TABLE, new: row(values) }
}

#[test]
fn a_stream_that_the_source_sends_again_is_dropped_at_its_commit() {
    let mut ring = Ring::new(1 << 20);
    for _ in 0..2 {
        ring.block(7, true, vec![described(Some(7), &["a"]), insert(Some(7), &["1"])]);
        ring.commit(7, 100);
    }
    ring.block(8, true, vec![described(Some(8), &["a"]), insert(Some(8), &["2"])]);
    ring.commit(8, 108);
    assert_eq!(ring.inserted(), [["1"], ["2"]]);
    assert!(ring.spool.is_empty(), "what was dropped is not kept");
}

#[test]
fn interleaved_streams_come_out_whole_in_the_order_of_their_commits() {
    let mut ring = Ring::new(1 << 20);
    ring.block(5, true, vec![described(Some(5), &["id"]), insert(5, &["a"])]);
    ring.block(6, true, vec![described(Some(6), &["id"]), insert(6, &["b"])]);
    for message in [begin(90), described(None, &["id"]), insert(None, &["c"]), Message::Commit(commit(90))] {
        ring.message(message).unwrap();
    }
    ring.block(5, false, vec![insert(5, &["d"])]);
    ring.commit(6, 100);
    ring.commit(5, 200);
    assert_eq!(ring.inserted(), [vec!["c"], vec!["b"], vec!["a", "d"]]);
    let ends: Vec<u64> = ring
        .steps
        .iter()
        .map(|step| if let Step::Transaction(t) = step { t.commit.end_lsn.as_u64() } else { panic!("{step:?}") })
        .collect();
    assert_eq!(ends, [98, 108, 208]);
    assert!(ring.spool.is_empty());
}

#[test]
fn a_large_stream_comes_out_in_the_same_pieces_as_a_large_transaction() {
    let mut ring = Ring::new(400);
    let mut messages = vec![described(Some(5), &["id"])];
    messages.extend((0..10).map(|n| insert(5, &[&n.to_string()])));
    ring.block(5, true, messages);
    ring.commit(5, 100);
    assert!(matches!(ring.steps.first(), Some(Step::Begin(begin)) if begin.final_lsn == Lsn::new(100)));
    assert!(matches!(ring.steps.last(), Some(Step::Commit { .. })));
    let mut plain = Ring::new(400);
    let mut messages = vec![begin(100), described(None, &["id"])];
    messages.extend((0..10).map(|n| insert(None, &[&n.to_string()])));
    messages.push(Message::Commit(commit(100)));
    messages.into_iter().for_each(|message| plain.message(message).unwrap());
    let shape = |steps: &[Step]| -> Vec<usize> {
        steps.iter().map(|step| if let Step::Chunk(piece) = step { piece.changes.len() } else { 0 }).collect()
    };
    assert_eq!((shape(&ring.steps), ring.inserted()), (shape(&plain.steps), plain.inserted()));
}

#[test]
fn a_rolled_back_subtransaction_takes_with_it_just_what_was_done_under_it() {
    let mut ring = Ring::new(1 << 20);
    // 5 is the transaction; 6 holds 7; 8 is empty; 9 follows.
    let messages = vec![described(Some(5), &["id"]), insert(5, &["a"]), insert(6, &["b"]), insert(7, &["c"])];
    ring.block(5, true, messages);
    ring.block(5, false, vec![insert(6, &["d"])]);
    ring.abort(5, 7);
    ring.abort(5, 6);
    ring.abort(5, 8);
    ring.block(5, false, vec![insert(5, &["e"]), insert(9, &["f"]), insert(5, &["g"])]);
    ring.commit(5, 100);
    assert_eq!(ring.inserted(), [vec!["a", "e", "f", "g"]]);
}

#[test]
fn what_was_rolled_back_without_a_stream_abort_is_left_out_where_it_stands() {
    for chunk_bytes_max in [1, 1 << 20] {
        let mut ring = Ring::new(chunk_bytes_max);
        // 6 holds 7 and is rolled back, 8 is kept, 9 is rolled back twice over, 10 with a Stream Abort.
        let messages = vec![described(Some(5), &["id"]), insert(5, &["a"]), insert(6, &["b"]), insert(7, &["c"])];
        ring.block(5, true, messages);
        ring.block(5, false, vec![insert(6, &["d"]), insert(5, &["e"]), insert(8, &["f"]), insert(9, &["g"])]);
        ring.block(5, false, vec![insert(5, &["h"]), insert(10, &["i"])]);
        ring.abort(5, 10);
        ring.block(5, false, vec![insert(11, &["j"]), insert(5, &["k"]), insert(12, &["l"])]);
        assert_eq!(ring.assembler.subtransactions(5, &commit(100)), [6, 7, 8, 9, 11, 12]);
        ring.assembler.leave_out(5, &HashSet::from([6, 7, 9, 12]));
        ring.commit(5, 100);
        assert_eq!(ring.inserted(), [vec!["a", "e", "f", "h", "j", "k"]]);
        ring.block(6, true, vec![described(Some(6), &["id"]), insert(7, &["m"]), insert(8, &["n"])]);
        assert_eq!(ring.assembler.subtransactions(6, &commit(90)), [0; 0], "it came before");
        ring.assembler.leave_out(6, &HashSet::from([7, 8]));
        ring.commit(6, 200);
        assert_eq!(ring.inserted().len(), 1, "nothing is left");
        assert!(ring.spool.is_empty());
    }
}

#[test]
fn a_rolled_back_inner_subtransaction_leaves_the_outer_one() {
    let mut ring = Ring::new(1 << 20);
    let messages = vec![described(Some(6), &["id"]), insert(6, &["a"]), insert(7, &["b"])];
    ring.block(5, true, messages);
    ring.abort(5, 7);
    ring.block(5, false, vec![insert(6, &["c"]), insert(8, &["d"])]);
    ring.commit(5, 100);
    assert_eq!(ring.inserted(), [vec!["a", "c", "d"]]);
}

#[test]
fn a_relation_told_in_a_rolled_back_subtransaction_holds_for_its_stream() {
    // pgoutput counts it as sent to the stream, and sends no other.
    let mut ring = Ring::new(1 << 20);
    ring.block(5, true, vec![described(Some(6), &["id"]), insert(6, &["a"])]);
    ring.abort(5, 6);
    ring.block(5, false, vec![insert(5, &["b"])]);
    ring.commit(5, 100);
    assert_eq!(ring.inserted(), [vec!["b"]]);
}

#[test]
fn relations_of_a_stream_are_forgotten_at_its_rollback_and_kept_at_its_commit() {
    let mut ring = Ring::new(1 << 20);
    ring.message(begin(50)).unwrap();
    ring.message(described(None, &["id"])).unwrap();
    ring.message(Message::Commit(commit(50))).unwrap();
    ring.block(5, true, vec![described(Some(5), &["id", "more"]), insert(5, &["a", "b"])]);
    ring.abort(5, 5);
    assert!(ring.spool.is_empty());
    ring.message(begin(90)).unwrap();
    ring.message(insert(None, &["c"])).unwrap();
    ring.message(Message::Commit(commit(90))).unwrap();
    ring.block(6, true, vec![described(Some(6), &["id", "more"]), insert(6, &["d", "e"])]);
    ring.commit(6, 100);
    // After a streamed transaction's commit pgoutput does not send the Relation again.
    ring.message(begin(110)).unwrap();
    ring.message(insert(None, &["f", "g"])).unwrap();
    ring.message(Message::Commit(commit(110))).unwrap();
    assert_eq!(ring.inserted(), [vec!["c"], vec!["d"], vec!["f"]]);
}

#[test]
fn what_a_stream_learned_before_the_session_learned_better_does_not_come_back() {
    let mut ring = Ring::new(1 << 20);
    ring.block(5, true, vec![described(Some(5), &["id"]), insert(5, &["a"])]);
    ring.message(begin(50)).unwrap();
    ring.message(described(None, &["id", "more"])).unwrap();
    ring.message(insert(None, &["b", "c"])).unwrap();
    ring.message(Message::Commit(commit(50))).unwrap();
    ring.commit(5, 100);
    ring.message(begin(110)).unwrap();
    ring.message(insert(None, &["d", "e"])).unwrap();
    ring.message(Message::Commit(commit(110))).unwrap();
    assert_eq!(ring.inserted(), [vec!["b"], vec!["a"], vec!["d"]]);
}

#[test]
fn a_changed_relation_holds_from_its_message_on_in_a_stream_too() {
    let mut ring = Ring::new(1 << 20);
    let messages = vec![described(Some(5), &["id"]), insert(5, &["a"]), described(Some(5), &["id", "more"])];
    ring.block(5, true, messages);
    ring.block(5, false, vec![insert(5, &["b", "c"])]);
    ring.commit(5, 100);
    let [Step::Transaction(transaction)] = ring.steps.as_slice() else { panic!("{:?}", ring.steps) };
    let columns: Vec<usize> = transaction
        .changes
        .iter()
        .map(
            |change| {
                if let Change::Row(RowChange::Insert { relation, .. }) = change { relation.columns.len() } else { 0 }
            },
        )
        .collect();
    assert_eq!(columns, [1, 2]);
}

#[test]
fn a_description_in_a_stream_is_a_relation_of_its_own_also_when_it_says_the_same() {
    let mut ring = Ring::new(1 << 20);
    ring.message(begin(50)).unwrap();
    ring.message(described(None, &["id"])).unwrap();
    ring.message(insert(None, &["a"])).unwrap();
    ring.message(Message::Commit(commit(50))).unwrap();
    let described = || described(Some(5), &["id"]);
    ring.block(5, true, vec![described(), insert(5, &["b"]), described(), insert(5, &["c"])]);
    ring.commit(5, 100);
    let mut relations: Vec<&Arc<Relation>> = Vec::new();
    for step in &ring.steps {
        let Step::Transaction(transaction) = step else { panic!("{step:?}") };
        for change in &transaction.changes {
            let Change::Row(RowChange::Insert { relation, .. }) = change else { panic!("{change:?}") };
            relations.push(relation);
        }
    }
    let [session, first, second] = relations.as_slice() else { panic!("{relations:?}") };
    assert!(session == first && first == second, "they say the same");
    assert!(!Arc::ptr_eq(session, first) && !Arc::ptr_eq(first, second), "and the catalog is asked for each");
}

#[test]
fn a_stream_of_which_nothing_is_left_only_moves_the_position() {
    let mut ring = Ring::new(1 << 20);
    ring.block(5, true, vec![described(Some(5), &["id"]), insert(6, &["a"])]);
    ring.abort(5, 6);
    ring.commit(5, 100);
    assert_eq!(ring.steps, [Step::Reached(Lsn::new(108))]);
    assert!(ring.spool.is_empty());
}

#[test]
fn a_block_that_only_describes_a_table_leaves_nothing_in_the_spool() {
    let mut ring = Ring::new(1 << 20);
    ring.block(5, true, vec![described(Some(5), &["id"])]);
    assert!(ring.spool.is_empty());
    ring.block(5, false, vec![insert(5, &["a"])]);
    ring.commit(5, 100);
    assert_eq!(ring.inserted(), [vec!["a"]]);
}

#[test]
fn a_rollback_of_a_stream_that_never_began_undoes_nothing() {
    // As 18 sends it of a transaction that was rolled back before its memory ran out.
    let mut ring = Ring::new(1 << 20);
    ring.abort(5, 6);
    ring.abort(5, 5);
    ring.block(7, true, vec![described(Some(7), &["id"]), insert(7, &["a"])]);
    ring.abort(5, 5);
    ring.commit(7, 100);
    assert_eq!(ring.inserted(), [vec!["a"]]);
}

#[test]
fn a_heartbeat_in_a_stream_travels_with_it_unless_it_is_rolled_back() {
    let heartbeat = |xid| Message::Logical {
        xid: Some(xid),
        message: LogicalMessage {
            transactional: true,
            message_lsn: Lsn::new(99),
            prefix: "hw".into(),
            content: Bytes::from_static(b"7"),
        },
    };
    let mut ring = Ring::new(1 << 20);
    ring.block(5, true, vec![heartbeat(6)]);
    ring.abort(5, 6);
    ring.commit(5, 100);
    assert_eq!(ring.steps, [Step::Reached(Lsn::new(108))]);
    let mut ring = Ring::new(1 << 20);
    ring.block(5, true, vec![heartbeat(5)]);
    ring.commit(5, 100);
    let [Step::Transaction(transaction)] = ring.steps.as_slice() else { panic!("{:?}", ring.steps) };
    assert_eq!(transaction.heartbeat, Some(Heartbeat { content: b"7".to_vec() }));
}

#[test]
fn a_keepalive_counts_between_the_blocks_of_a_stream_and_not_inside_one() {
    let mut ring = Ring::new(1 << 20);
    ring.message(Message::StreamStart { xid: 5, first: true }).unwrap();
    ring.assembler.keepalive(Lsn::new(50));
    assert_eq!(ring.assembler.poll(), None);
    ring.message(Message::StreamStop).unwrap();
    ring.assembler.keepalive(Lsn::new(60));
    assert_eq!(ring.assembler.poll(), Some(Output::Step(Step::Reached(Lsn::new(60)))));
}

#[test]
fn transactions_with_an_origin_are_left_out_when_they_are_not_wanted() {
    let origin = || Message::Origin { commit_lsn: Lsn::new(7), name: "elsewhere".into() };
    for (wanted, expected) in [(true, vec![vec!["a"], vec!["b"]]), (false, vec![vec!["b"]])] {
        let mut ring = Ring::new(1 << 20);
        if !wanted {
            ring.assembler = ring.assembler.without_foreign_origins();
        }
        let foreign =
            [begin(50), origin(), described(None, &["id"]), insert(None, &["a"]), Message::Commit(commit(50))];
        let own = [begin(60), insert(None, &["b"]), Message::Commit(commit(60))];
        foreign.into_iter().chain(own).for_each(|message| ring.message(message).unwrap());
        assert_eq!(ring.inserted(), expected);
        assert_eq!(ring.assembler.received(), Lsn::new(68));
    }
}

#[test]
fn what_has_no_place_in_a_stream_ends_the_run() {
    let start = |xid, first| Message::StreamStart { xid, first };
    let stream_commit = |xid| Message::StreamCommit { xid, commit: commit(100) };
    let abort = |xid, subxid| Message::StreamAbort(Abort { xid, subxid });
    for messages in [
        vec![start(5, false)],
        vec![start(5, true), Message::StreamStop, start(5, true)],
        vec![start(5, true), start(6, true)],
        vec![start(5, true), insert(5, &["a"])],
        vec![start(5, true), described(None, &["id"])],
        vec![described(Some(5), &["id"])],
        vec![start(5, true), stream_commit(5)],
        vec![begin(50), start(5, true)],
        vec![stream_commit(5)],
        vec![begin(50), abort(5, 5)],
        vec![Message::StreamStop],
    ] {
        let mut ring = Ring::new(1 << 20);
        let shown = format!("{messages:?}");
        let failed = messages.into_iter().any(|message| ring.message(message).is_err());
        assert!(failed, "{shown}");
    }
}

#[test]
fn a_spool_that_gives_back_too_little_is_noticed() {
    let mut ring = Ring::new(1 << 20);
    ring.block(5, true, vec![described(Some(5), &["id"]), insert(5, &["a"])]);
    ring.spool.clear();
    let lost = ring.message(Message::StreamCommit { xid: 5, commit: commit(100) }).unwrap_err();
    assert!(lost.to_string().contains("0 bytes came back"), "{lost}");
}

#[test]
fn more_streams_than_a_server_has_sessions_end_the_run() {
    let mut ring = Ring::new(1000);
    let begin = |ring: &mut Ring, xid| ring.message(Message::StreamStart { xid, first: true });
    for xid in 1..=0xFFFF {
        begin(&mut ring, xid).unwrap();
        ring.message(Message::StreamStop).unwrap();
    }
    let refused = begin(&mut ring, 0x1_0000).unwrap_err().to_string();
    assert!(refused.contains("one more transaction in progress than a server can have"), "{refused}");
}

#[test]
fn relations_of_transactions_in_progress_are_bounded_and_counted_while_these_last() {
    let mut ring = Ring::new(1000);
    let mut wide = relation(&["id"]);
    wide.columns.resize(1600, wide.columns[0].clone());
    let each = wide.size_bytes();
    let described = |xid: u32| Message::Relation { xid: Some(xid), relation: wide.clone() };
    // As many as fit, and none is left of those that were rolled back or committed.
    let fit = (256 << 20) / (each + 128);
    for (xid, commits) in [(1, true), (2, false), (3, true)] {
        ring.message(Message::StreamStart { xid, first: true }).unwrap();
        for _ in 0..fit {
            ring.message(described(xid)).unwrap();
        }
        ring.message(Message::StreamStop).unwrap();
        let end = match commits {
            true => Message::StreamCommit { xid, commit: commit(u64::from(xid) * 100) },
            false => Message::StreamAbort(Abort { xid, subxid: xid }),
        };
        ring.message(end).unwrap();
    }
    // Of several together.
    let mut refused = None;
    for xid in 4..12 {
        ring.message(Message::StreamStart { xid, first: true }).unwrap();
        refused = (0..=fit / 4).find_map(|_| ring.message(described(xid)).err()).map(|error| (xid, error.to_string()));
        if refused.is_some() {
            break;
        }
        ring.message(Message::StreamStop).unwrap();
    }
    let (xid, said) = refused.expect("refused");
    assert_eq!(xid, 7);
    assert!(said.contains("for one more table than transactions in progress may tell of"), "{said}");
}

/// The partitions that the descriptions of a stream's changes name, each in the order of its rows.
fn leaves(ring: &Ring) -> Vec<Vec<u32>> {
    let changes = ring.steps.iter().flat_map(|step| match step {
        Step::Transaction(transaction) => transaction.changes.as_slice(),
        Step::Chunk(chunk) => chunk.changes.as_slice(),
        Step::Begin(_) | Step::Schema(_) | Step::Commit { .. } | Step::AppliedInParallel { .. } | Step::Reached(_) => {
            &[]
        }
    });
    let leaves = changes.map(|change| match change {
        Change::Row(RowChange::Insert { relation, .. }) => relation.leaves.iter().map(|leaf| leaf.0).collect(),
        Change::Row(RowChange::Update { .. } | RowChange::Delete { .. }) | Change::Truncate { .. } => {
            panic!("{change:?}")
        }
    });
    leaves.collect()
}

#[test]
fn a_partition_that_a_stream_names_comes_with_its_rows() {
    let leaf = |xid: Option<u32>, id: u32| {
        let name = QualifiedName::new("public", format!("leaf{id}"));
        Message::Relation { xid, relation: Relation { id: RelationId(id), name, ..relation(&["id"]) } }
    };
    let mut ring = Ring::new(1 << 20);
    let named = |id: u32| [described(Some(5), &["id"]), leaf(Some(5), id)];
    let mut first: Vec<Message> = named(11).into_iter().chain([insert(5, &["a"])]).collect();
    first.extend(named(12).into_iter().chain([insert(6, &["b"])]));
    ring.block(5, true, first);
    ring.abort(5, 6);
    // What was rolled back is described again before the next row, also where that is of a partition that was named before.
    ring.block(5, false, named(11).into_iter().chain([insert(5, &["c"])]).collect());
    ring.block(5, false, named(13).to_vec());
    ring.commit(5, 100);
    assert_eq!(leaves(&ring), [[11], [11]]);
    // It counts as named in the session, too, and no row of it was sent.
    for message in [begin(200), insert(None, &["d"]), Message::Commit(commit(200))] {
        ring.message(message).unwrap();
    }
    assert_eq!(leaves(&ring), [[11], [11], [13]]);
}
