//! How many rows of which table: changes counted for metrics and the status page.
//!
//! Used by the apply loop for each batch, and by `parallel_apply` for a whole transaction.

use crate::pg::Relation;
use crate::telemetry::Operation;
use crate::transaction::{Change, RowChange};

/// Changes by table and operation.
pub(super) fn count(changes: &[Change]) -> Vec<(String, Operation, u64)> {
    let mut counts: Vec<(&Relation, Operation, u64)> = Vec::new();
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
    counts.into_iter().map(|(relation, operation, count)| (relation.name.unquoted(), operation, count)).collect()
}

/// Few tables and four operations: looking from the last one on finds it at once.
fn add<'a>(counts: &mut Vec<(&'a Relation, Operation, u64)>, relation: &'a Relation, operation: Operation) {
    let known = counts.iter_mut().rev().find(|(known, of, _)| std::ptr::eq(*known, relation) && *of == operation);
    match known {
        Some((_, _, count)) => *count += 1,
        None => counts.push((relation, operation, 1)),
    }
}

/// Adds counts to counts.
pub(super) fn add_counts(all: &mut Vec<(String, Operation, u64)>, more: Vec<(String, Operation, u64)>) {
    for (table, operation, count) in more {
        match all.iter_mut().find(|(known, of, _)| *known == table && *of == operation) {
            Some((_, _, known)) => *known += count,
            None => all.push((table, operation, count)),
        }
    }
}
