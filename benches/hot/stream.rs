//! What a source would send, made here: a forum's messages as pgoutput has them, and the way they take through the pure
//! rooms up to the bytes that leave for the destination.
//!
//! Used by the benchmark of the hot path, and by the test of what it allocates.

#![allow(missing_docs, unreachable_pub, dead_code, reason = "a program, not a library; its users use parts of it")]
#![allow(clippy::unwrap_used, reason = "what is made here is what is read here")]

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use headwater::apply_plan::coalesce::{Coalescer, NetPart};
use headwater::apply_plan::net_effect::SetEffect;
use headwater::apply_plan::sets;
use headwater::apply_plan::sets::WriteMethod;
use headwater::apply_plan::target::{Target, TargetColumn, TargetIdentity};
use headwater::apply_plan::{ApplyTask, Batch, BatchLimits, Batcher, Work};
use headwater::pg::{
    Column, Ident, Lsn, PgTimestamp, QualifiedName, Relation, RelationId, ReplicaIdentity, Tuple, TypeId,
};
use headwater::transaction::{Assembler, Change, Output, TableSet};
use headwater::wire::{Begin, Commit, Decoder, Message, write_message};

const MESSAGES: RelationId = RelationId(16_384);
const BODY: &str = "a message of about three hundred bytes, ";

/// What is done to the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Insert,
    Update,
}

fn relation() -> Relation {
    let column = |name: &str, type_id, in_identity| Column {
        name: Ident::new(name),
        in_identity,
        type_id: TypeId(type_id),
        type_modifier: -1,
    };
    Relation {
        leaves: Default::default(),
        id: MESSAGES,
        name: QualifiedName::new("public", "messages"),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![
            column("id", 20, true),
            column("topic_id", 23, false),
            column("body", 25, false),
            column("created_at", 1184, false),
        ],
    }
}

/// A row as the walsender writes it with binary = true.
fn row(id: i64) -> Tuple {
    let body = BODY.repeat(7);
    let mut data = BytesMut::new();
    let mut put = |value: &[u8]| {
        data.put_u8(b'b');
        data.put_u32(u32::try_from(value.len()).unwrap());
        data.extend_from_slice(value);
    };
    put(&id.to_be_bytes());
    put(&i32::try_from(id % 20_000).unwrap().to_be_bytes());
    put(body.as_bytes());
    put(&(id * 1_000_000).to_be_bytes());
    Tuple::new(4, data.freeze()).unwrap()
}

/// The stream's messages of `rows` rows, so many to a transaction, each as it lies in the read buffer.
pub fn messages(kind: Kind, rows: i64, rows_per_transaction: i64) -> Vec<Bytes> {
    let mut messages = vec![Message::Relation { xid: None, relation: relation() }];
    let mut lsn = 1000;
    for first in (0..rows).step_by(usize::try_from(rows_per_transaction).unwrap()) {
        let at = PgTimestamp::from_micros(0);
        let (commit_lsn, end_lsn) = (Lsn::new(lsn), Lsn::new(lsn + 40));
        messages.push(Message::Begin(Begin { final_lsn: commit_lsn, committed_at: at, xid: 1 }));
        for id in first..(first + rows_per_transaction).min(rows) {
            let (xid, relation, new) = (None, MESSAGES, row(id));
            messages.push(match kind {
                Kind::Insert => Message::Insert { xid, relation, new },
                Kind::Update => Message::Update { xid, relation, old: None, new },
            });
        }
        messages.push(Message::Commit(Commit { commit_lsn, end_lsn, committed_at: at }));
        lsn += 100;
    }
    // One buffer, as it was read, and slices of it.
    let mut buffer = BytesMut::new();
    let ends: Vec<usize> = messages
        .iter()
        .map(|message| {
            write_message(message, false, &mut buffer);
            buffer.len()
        })
        .collect();
    let buffer = buffer.freeze();
    let begins = std::iter::once(0).chain(ends.iter().copied());
    begins.zip(&ends).map(|(begin, end)| buffer.slice(begin..*end)).collect()
}

/// Reads every message; returns how many there were.
pub fn decode(messages: &[Bytes]) -> usize {
    let mut decoder = Decoder::new(false);
    messages.iter().map(|message| decoder.read(message).unwrap()).filter(|message| !is_begin(message)).count()
}

fn is_begin(message: &Message) -> bool {
    matches!(message, Message::Begin(_))
}

/// Reads every message and makes one batch of all of them.
pub fn batch(messages: &[Bytes]) -> Batch {
    let mut decoder = Decoder::new(false);
    let tables = TableSet::new([(MESSAGES, QualifiedName::new("public", "messages"))]);
    let mut assembler = Assembler::new(tables, usize::MAX, "headwater", Lsn::new(1));
    let mut batcher = Batcher::new(BatchLimits { rows_max: usize::MAX, bytes_max: usize::MAX });
    for message in messages {
        assembler.message(decoder.read(message).unwrap()).unwrap();
        while let Some(output) = assembler.poll() {
            let Output::Step(step) = output else { panic!("nothing is streamed") };
            batcher.push(step);
        }
    }
    match batcher.next_work() {
        Some(Work::Apply(ApplyTask::Batch(batch))) => batch,
        other => panic!("one batch, not {other:?}"),
    }
}

/// The table at the destination.
pub fn target() -> Arc<Target> {
    let relation = Arc::new(relation());
    let column = |column: &Column| TargetColumn {
        name: column.name.clone(),
        type_id: column.type_id,
        array: Some(TypeId(match column.type_id.0 {
            20 => 1016,
            23 => 1007,
            25 => 1009,
            _ => 1185,
        })),
        delimiter: ',',
        equality: Some(QualifiedName::new("pg_catalog", "=")),
        equal_when_identical: true,
        identity_always: false,
    };
    Arc::new(Target {
        table: relation.name.clone(),
        table_id: 1,
        partitioned: false,
        columns: relation.columns.iter().map(column).map(Some).collect(),
        finders: relation.columns.iter().map(column).collect(),
        identity: TargetIdentity::Key(vec![0]),
        overrides_identity: false,
        side_effects: Default::default(),
        relation,
    })
}

/// Folds a batch to its net effect, and writes it as it leaves; returns the bytes written.
pub fn write(batch: &Batch, target: &Arc<Target>, out: &mut BytesMut) -> usize {
    out.clear();
    let mut coalescer = Coalescer::default();
    let table = coalescer.add_table(Arc::clone(&target.relation), Arc::clone(target));
    for change in &batch.changes {
        let Change::Row(row) = change else { panic!("nothing is truncated here") };
        coalescer.push(table, row);
    }
    let effect = coalescer.effect(false);
    for part in &effect.parts {
        let NetPart::Set { effect: what, rows, .. } = part else { panic!("nothing here needs an order") };
        let sample = effect.image(rows[0]);
        match (sets::write_method(target, what, rows.len(), sample), what) {
            (way @ WriteMethod::CopyBinary, SetEffect::Insert) => {
                sets::copy_begin(out, way);
                for row in rows {
                    sets::copy_row(out, way, target, 4, effect.image(*row));
                }
                sets::copy_end(out, way);
            }
            (WriteMethod::Arrays, SetEffect::Update(set)) => {
                for place in set.iter().chain(sets::key_of(target)) {
                    let column = target.column(*place).unwrap();
                    let value = |row: &headwater::apply_plan::net_effect::NetRow| {
                        effect.image(*row).columns().nth(*place).unwrap()
                    };
                    sets::write_array(out, column, true, rows.len(), rows.iter().map(value));
                }
            }
            (way, what) => panic!("{way:?} for {what:?}"),
        }
    }
    out.len()
}
