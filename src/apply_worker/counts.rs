//! How many rows of which table: changes counted for metrics and the status page.
//!
//! Used by the apply loop for each batch, and by `parallel_apply` for a whole transaction.

use crate::pg::Relation;
use crate::telemetry::{Operation, RowCount};
use crate::transaction::{Change, RowChange};

/// Rows of a relation whose name is not made a text yet.
struct RelationCount<'a> {
    relation: &'a Relation,
    operation: Operation,
    rows: u64,
}

/// Changes by table and operation.
pub(super) fn count(changes: &[Change]) -> Vec<RowCount> {
    let mut counts: Vec<RelationCount<'_>> = Vec::new();
    for change in changes {
        match change {
            Change::Row(RowChange::Insert { relation, .. }) => add(&mut counts, relation, Operation::Insert),
            Change::Row(RowChange::Update { relation, .. }) => add(&mut counts, relation, Operation::Update),
            Change::Row(RowChange::Delete { relation, .. }) => add(&mut counts, relation, Operation::Delete),
            Change::Truncate { relations, .. } => {
                relations.iter().for_each(|relation| add(&mut counts, relation, Operation::Truncate));
            }
        }
    }
    let named = |count: RelationCount<'_>| RowCount {
        table: count.relation.name.unquoted(),
        operation: count.operation,
        rows: count.rows,
    };
    counts.into_iter().map(named).collect()
}

/// Few tables and four operations: looking from the last one on finds it at once.
fn add<'a>(counts: &mut Vec<RelationCount<'a>>, relation: &'a Relation, operation: Operation) {
    let known =
        counts.iter_mut().rev().find(|known| std::ptr::eq(known.relation, relation) && known.operation == operation);
    match known {
        Some(known) => known.rows += 1,
        None => counts.push(RelationCount { relation, operation, rows: 1 }),
    }
}

/// Adds counts to counts.
pub(super) fn add_counts(all: &mut Vec<RowCount>, more: Vec<RowCount>) {
    for count in more {
        match all.iter_mut().find(|known| known.table == count.table && known.operation == count.operation) {
            Some(known) => known.rows += count.rows,
            None => all.push(count),
        }
    }
}
