//! Tasks into pipelined requests: for each kind of task the request that carries it out.
//!
//! Each is a function of the [`RelationMap`] and the task, and returns the bytes together with what must be known when the answer
//! comes: which change each statement carries out, and what the row counts are to say.
//!
//! ```text
//! batch             BEGIN · advance(p, end_lsn) · rows … · COMMIT
//! begin, chunk,     BEGIN · advance(p, p)      rows …      advance(p, end_lsn) · COMMIT
//! commit
//! begin_parallel,   BEGIN                      rows …      position · advance(p, end_lsn) · COMMIT
//! commit_parallel
//! position          BEGIN · SET LOCAL synchronous_commit = local · advance(p, wal_end) · COMMIT
//! ```

use super::encoder::{CountedRows, Encoded, Encoder};
use super::relation_map::RelationMap;
use super::rows::TransactionChanges;
use super::sets::COALESCED_ROWS_MIN;
use crate::apply_plan::Batch;
use crate::destination::conflict::{ApplyMode, OverwriteCounts};
use crate::destination::dead_letter::{self, Letter};
use crate::destination::error::DestinationError;
use crate::pg::Lsn;
use crate::transaction::Change;
use crate::wire::{Begin, Commit};

/// How changes are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    /// By their net effect, in sets.
    Coalesced,
    /// Change by change, as they came.
    RowByRow,
}

/// The position that a request moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advance {
    pub(super) from: Lsn,
    pub(super) to: Lsn,
}

/// Whole source transactions, in one of the destination.
pub(super) fn batch(
    map: &mut RelationMap,
    advance: Advance,
    batch: &Batch,
    mode: ApplyMode,
    strategy: Strategy,
) -> Result<Encoded, DestinationError> {
    let mut encoder = Encoder::new(map);
    encoder.begin();
    encoder.advance(advance.from, advance.to);
    match mode {
        ApplyMode::DeadLetter => {
            for transaction in batch.transactions() {
                let commit = transaction.member.commit;
                let letter = Letter {
                    commit_lsn: commit.commit_lsn,
                    end_lsn: Some(commit.end_lsn),
                    part: 1,
                    committed_at: commit.committed_at,
                    xid: transaction.member.begin.xid,
                    changes: transaction.changes,
                };
                dead_letter::write(&mut encoder.request, &letter);
                dead_letter::finish(&mut encoder.request, commit.commit_lsn, commit.end_lsn);
            }
        }
        ApplyMode::Normal | ApplyMode::Overwrite => {
            let parts = batch.transactions().map(|transaction| TransactionChanges {
                first: transaction.first,
                changes: transaction.changes,
                commit_lsn: transaction.member.commit.commit_lsn,
            });
            changes(&mut encoder, batch.changes.len(), parts, mode, strategy)?;
        }
    }
    encoder.commit();
    Ok(encoder.finish())
}

/// The beginning of a large transaction. The server has its own answer for it: only then may changes follow.
pub(super) fn begin(map: &mut RelationMap, position: Lsn) -> Encoded {
    let mut encoder = Encoder::new(map);
    encoder.begin();
    encoder.advance(position, position);
    encoder.finish()
}

/// The beginning of a transaction in parallel apply. It does not touch the position, which others move meanwhile.
pub(super) fn begin_parallel(map: &mut RelationMap) -> Encoded {
    let mut encoder = Encoder::new(map);
    encoder.begin();
    encoder.finish()
}

/// A chunk of a large transaction.
pub(super) fn chunk(
    map: &mut RelationMap,
    part: TransactionChanges<'_>,
    mode: ApplyMode,
    strategy: Strategy,
) -> Result<Encoded, DestinationError> {
    let mut encoder = Encoder::new(map);
    changes(&mut encoder, part.changes.len(), std::iter::once(part), mode, strategy)?;
    Ok(encoder.finish())
}

/// A chunk of a large transaction that is skipped.
pub(super) fn dead_letter_chunk(map: &mut RelationMap, begin: &Begin, part: u32, changes: &[Change]) -> Encoded {
    let letter = Letter {
        commit_lsn: begin.final_lsn,
        end_lsn: None,
        part,
        committed_at: begin.committed_at,
        xid: begin.xid,
        changes,
    };
    let mut encoder = Encoder::new(map);
    dead_letter::write(&mut encoder.request, &letter);
    encoder.finish()
}

/// The commit of a large transaction.
pub(super) fn commit(map: &mut RelationMap, from: Lsn, commit: &Commit, mode: ApplyMode) -> Encoded {
    let mut encoder = Encoder::new(map);
    encoder.advance(from, commit.end_lsn);
    match mode {
        ApplyMode::DeadLetter => dead_letter::finish(&mut encoder.request, commit.commit_lsn, commit.end_lsn),
        ApplyMode::Normal | ApplyMode::Overwrite => {}
    }
    encoder.commit();
    encoder.finish()
}

/// The commit of a transaction in parallel apply. `read_position` finds the position's row for `advance`: others have moved it.
pub(super) fn commit_parallel(map: &mut RelationMap, read_position: &str, advance: Advance) -> Encoded {
    let mut encoder = Encoder::new(map);
    encoder.request.query(read_position);
    encoder.advance(advance.from, advance.to);
    encoder.commit();
    encoder.finish()
}

/// A position without changes. Its answer must mean that it is durable at the destination. Whether a standby has it, too, is for the
/// operator's setting to say, as of every other commit: one that is out of reach would hold up all rows behind this.
pub(super) fn position(map: &mut RelationMap, advance: Advance) -> Encoded {
    let commits_are_durable = map.settings.commits_are_durable;
    let mut encoder = Encoder::new(map);
    encoder.request.run("BEGIN");
    if !commits_are_durable {
        encoder.request.run("SET LOCAL synchronous_commit = local");
    }
    encoder.advance(advance.from, advance.to);
    encoder.request.commit();
    encoder.finish()
}

/// Nothing: the server must not take us for frozen.
pub(super) fn ping(map: &mut RelationMap) -> Encoded {
    Encoder::new(map).finish()
}

fn changes<'a>(
    encoder: &mut Encoder<'_>,
    count: usize,
    mut parts: impl Iterator<Item = TransactionChanges<'a>>,
    mode: ApplyMode,
    strategy: Strategy,
) -> Result<(), DestinationError> {
    if mode == ApplyMode::Overwrite {
        encoder.counts = CountedRows::Overwrite(OverwriteCounts::default());
    }
    let coalesced = mode == ApplyMode::Normal && strategy == Strategy::Coalesced && count >= COALESCED_ROWS_MIN;
    if coalesced {
        encoder.write_coalesced(parts)?;
    } else {
        parts.try_for_each(|part| encoder.write_in_order(part))?;
    }
    encoder.begin_change(None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::apply_plan::BatchMember;
    use crate::catalog::fit::Transfer;
    use crate::config::TruncateMode;
    use crate::destination::apply::followed::Followed;
    use crate::destination::apply::settings::{ApplierSettings, ApplyContext};
    use crate::destination::catalog::Catalog;
    use crate::destination::source_tables::SourceTables;
    use crate::destination::writer::ReplicationRole;
    use crate::pg::{Column, PgTimestamp, Relation, RelationId, ReplicaIdentity, Tuple};
    use crate::testing;
    use crate::transaction::RowChange;
    use crate::wire::OldTuple;

    /// A map that follows public.t (id, a), and its relation.
    fn map(role: ReplicationRole) -> (RelationMap, Arc<Relation>) {
        let table =
            testing::table("t", &[testing::TestColumn::new("id", 25).not_null(), testing::TestColumn::new("a", 25)]);
        let columns = table.columns.iter().enumerate().map(|(index, column)| Column {
            name: column.name.clone(),
            in_identity: index == 0,
            type_id: column.type_id,
            type_modifier: -1,
        });
        let relation = Relation {
            id: RelationId(1),
            name: table.name(),
            replica_identity: ReplicaIdentity::Default,
            columns: columns.collect(),
            leaves: Default::default(),
        };
        let followed = Followed { name: table.name(), destination_id: None, snapshot_position: Lsn::new(100) };
        let mut catalog = Catalog::default();
        catalog.replace(table.clone(), testing::types());
        let context = ApplyContext {
            settings: ApplierSettings {
                truncate: TruncateMode::Truncate,
                commits_are_durable: true,
                transfer: Transfer::Text,
                follow_schema_changes: true,
                trusted_roles: Vec::new(),
                names_owners: true,
                timeout: Duration::from_secs(1),
            },
            catalog,
            source_types: testing::types(),
            source_tables: SourceTables::unchanged(vec![table]),
            followed: HashMap::from([(RelationId(1), followed)]),
        };
        (RelationMap::new(context, role, "SELECT advance($1, $2)".to_owned()), Arc::new(relation))
    }

    fn row() -> Tuple {
        Tuple::new(2, Bytes::from_static(b"t\0\0\0\x011n")).unwrap()
    }

    fn insert(relation: &Arc<Relation>) -> Change {
        Change::Row(RowChange::Insert { relation: Arc::clone(relation), new: row() })
    }

    fn delete(relation: &Arc<Relation>) -> Change {
        Change::Row(RowChange::Delete { relation: Arc::clone(relation), old: OldTuple::Key(row()) })
    }

    /// A batch of transactions, each with its commit_lsn and changes.
    fn batch_of(transactions: Vec<(u64, Vec<Change>)>) -> Batch {
        let at = PgTimestamp::from_micros(0);
        let mut batch = Batch::default();
        for (commit_lsn, changes) in transactions {
            let commit_lsn = Lsn::new(commit_lsn);
            batch.changes.extend(changes);
            batch.members.push(BatchMember {
                begin: Begin { final_lsn: commit_lsn, committed_at: at, xid: 1 },
                commit: Commit { commit_lsn, end_lsn: Lsn::new(commit_lsn.as_u64() + 1), committed_at: at },
                changes_end: batch.changes.len(),
                heartbeat: None,
            });
        }
        batch
    }

    fn encoded(map: &mut RelationMap, batch: &Batch, strategy: Strategy) -> Result<Encoded, DestinationError> {
        let advance = Advance { from: Lsn::new(1), to: batch.end_lsn() };
        super::batch(map, advance, batch, ApplyMode::Normal, strategy)
    }

    fn changes_of(encoded: &Encoded) -> Vec<Option<usize>> {
        let statements = 0..encoded.request.statements();
        statements.map(|statement| encoded.expected.statement_offsets.change_of(statement)).collect()
    }

    #[test]
    fn each_statement_of_a_batch_is_known_by_its_change() {
        let (mut map, relation) = map(ReplicationRole::Replica);
        // The first transaction is in the table's snapshot.
        let batch = batch_of(vec![(99, vec![insert(&relation)]), (100, vec![insert(&relation), delete(&relation)])]);
        let encoded = encoded(&mut map, &batch, Strategy::RowByRow).unwrap();
        // BEGIN, the position, two rows, COMMIT.
        assert_eq!(changes_of(&encoded), [None, None, Some(1), Some(2), None]);
    }

    #[test]
    fn a_truncate_is_known_by_its_statements_among_sets() {
        let (mut map, relation) = map(ReplicationRole::Replica);
        let truncate = Change::Truncate { relations: vec![Arc::clone(&relation)], restart_identity: false };
        let mut changes = vec![insert(&relation); 5];
        changes.push(truncate);
        changes.push(insert(&relation));
        let encoded = encoded(&mut map, &batch_of(vec![(100, changes)]), Strategy::Coalesced).unwrap();
        let truncates = changes_of(&encoded).into_iter().flatten().collect::<Vec<_>>();
        assert!(!truncates.is_empty() && truncates.iter().all(|change| *change == 5), "{truncates:?}");
    }

    #[test]
    fn an_error_of_encoding_leaves_nothing_for_the_next_request() {
        let (mut map, relation) = map(ReplicationRole::Replica);
        let other = Relation { replica_identity: ReplicaIdentity::Nothing, ..(*relation).clone() };
        let refused = batch_of(vec![(100, vec![insert(&relation), delete(&Arc::new(other))])]);
        assert!(encoded(&mut map, &refused, Strategy::RowByRow).is_err());
        let batch = batch_of(vec![(100, vec![delete(&relation)])]);
        let encoded = encoded(&mut map, &batch, Strategy::RowByRow).unwrap();
        assert_eq!(changes_of(&encoded), [None, None, Some(0), None]);
        let effects = encoded.expected.counts.conclude([0].into_iter());
        assert_eq!(effects.missing_deletes, 1);
    }

    #[test]
    fn where_foreign_keys_act_they_are_deferred_and_prepared_statements_looked_at() {
        let statements = |role| {
            let (mut map, relation) = map(role);
            let batch = batch_of(vec![(100, vec![insert(&relation)])]);
            encoded(&mut map, &batch, Strategy::Coalesced).unwrap().request.statements()
        };
        assert_eq!([ReplicationRole::Replica, ReplicationRole::Origin].map(statements), [4, 6]);
    }
}
