//! Which statement carries out a change, and with which parameters.
//!
//! Stands between a batch's changes and `destination::apply`, which prepares each distinct [`RowStatement`] once and then only
//! sends parameters. Values are taken straight from the change's tuples, in one pass for the columns to set and one for
//! the key; nothing is collected on the way.

use crate::apply_plan::sql;
use crate::apply_plan::target::{Target, TargetIdentity};
use crate::pg::{Datum, ReplicaIdentity, Tuple, TypeId};
use crate::transaction::RowChange;
use crate::wire::OldTuple;

/// What a statement does to a row. Changes with the same one (and the same target) share one prepared statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RowStatement {
    /// Insert all stored columns.
    Insert,
    /// Update.
    Update {
        /// The places of the columns to set.
        set: Vec<usize>,
    },
    /// Delete.
    Delete,
}

/// A change that cannot be carried out, because the source did not say which row it means.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an update or delete of table {table} came without an identity of the old row")]
pub struct NoIdentity {
    /// The table.
    pub table: crate::pg::QualifiedName,
}

/// Whether the row's leaf has identified it otherwise than the relation is described (see `catalog::replica_identity`): the server sends
/// the whole old row where that is the identity, and every column of a key.
pub fn is_misidentified(change: &RowChange) -> bool {
    match change {
        RowChange::Update { relation, old: None, .. } => relation.replica_identity == ReplicaIdentity::Full,
        RowChange::Update { relation, old: Some(OldTuple::Key(old)), .. }
        | RowChange::Delete { relation, old: OldTuple::Key(old) } => match relation.replica_identity {
            ReplicaIdentity::Full => true,
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                let mut values = relation.columns.iter().zip(old.columns());
                values.any(|(column, value)| column.in_identity && value == Datum::Null)
            }
            // `statement` refuses it.
            ReplicaIdentity::Nothing => false,
        },
        RowChange::Update { old: Some(OldTuple::Row(_)), .. }
        | RowChange::Delete { old: OldTuple::Row(_), .. }
        | RowChange::Insert { .. } => false,
    }
}

/// The statement of a row's change; `None` for an update in which nothing changed that can be set.
///
/// # Errors
/// [`NoIdentity`] for an update or delete of a table without replica identity.
pub fn statement(target: &Target, change: &RowChange) -> Result<Option<RowStatement>, NoIdentity> {
    let statement = match change {
        RowChange::Insert { .. } => RowStatement::Insert,
        RowChange::Update { old, new, .. } => {
            RowStatement::Update { set: columns_to_set(target, old.as_ref().map(OldTuple::tuple), new) }
        }
        RowChange::Delete { .. } => RowStatement::Delete,
    };
    match (&statement, &target.identity) {
        (RowStatement::Update { set }, TargetIdentity::Key(_) | TargetIdentity::WholeRow) if set.is_empty() => Ok(None),
        (RowStatement::Insert, _) | (_, TargetIdentity::Key(_) | TargetIdentity::WholeRow) => Ok(Some(statement)),
        (RowStatement::Update { .. } | RowStatement::Delete, TargetIdentity::None) => {
            Err(NoIdentity { table: target.table.clone() })
        }
    }
}

/// The columns that an update changes, as far as its messages tell: `old` has the row's key where that may have changed.
pub fn columns_to_set(target: &Target, old: Option<&Tuple>, new: &Tuple) -> Vec<usize> {
    let key: &[usize] = match &target.identity {
        TargetIdentity::Key(key) => key,
        TargetIdentity::WholeRow | TargetIdentity::None => &[],
    };
    let mut set = Vec::new();
    for (index, value) in new.columns().enumerate() {
        let Some(column) = target.column(index) else { continue };
        let in_key = key.contains(&index);
        // Without an old key in the message the key did not change.
        let unchanged = value == Datum::UnchangedToast || (in_key && old.is_none());
        // No UPDATE can set a GENERATED ALWAYS identity. Where the old value is known the server says so; elsewhere such a
        // table does not fit (`fit`).
        let is_known = in_key || target.relation.replica_identity == ReplicaIdentity::Full;
        let fixed = column.identity_always && !(is_known && key_changed(old, new, index));
        if !unchanged && !fixed {
            set.push(index);
        }
    }
    or_key(target, set)
}

/// The same for a row whose values all came and whose key did not change.
pub fn columns_to_set_when_complete(target: &Target) -> Vec<usize> {
    let key: &[usize] = match &target.identity {
        TargetIdentity::Key(key) => key,
        TargetIdentity::WholeRow | TargetIdentity::None => &[],
    };
    let settable = |index: &usize| target.column(*index).is_some_and(|column| !column.identity_always);
    let set = target.stored_columns().filter(|index| !key.contains(index) && settable(index)).collect();
    or_key(target, set)
}

/// The row must still be there: where nothing is set, its key is set to itself.
fn or_key(target: &Target, mut set: Vec<usize>) -> Vec<usize> {
    if let (true, TargetIdentity::Key(key)) = (set.is_empty(), &target.identity) {
        set.extend(key.iter().copied().filter(|index| target.column(*index).is_some_and(|c| !c.identity_always)));
        set.sort_unstable();
    }
    set
}

fn key_changed(old: Option<&Tuple>, new: &Tuple, index: usize) -> bool {
    let new = new.columns().nth(index);
    old.is_some_and(|old| new != Some(Datum::UnchangedToast) && old.columns().nth(index) != new)
}

/// Its SQL.
pub fn sql(target: &Target, statement: &RowStatement) -> String {
    match (statement, &target.identity) {
        (RowStatement::Insert, _) => sql::insert_row(target),
        (RowStatement::Update { set }, TargetIdentity::Key(key)) => sql::update_row(target, set, key),
        (RowStatement::Update { set }, TargetIdentity::WholeRow | TargetIdentity::None) => {
            sql::update_whole_row(target, set)
        }
        (RowStatement::Delete, TargetIdentity::Key(key)) => sql::delete_row(target, key),
        (RowStatement::Delete, TargetIdentity::WholeRow | TargetIdentity::None) => sql::delete_whole_row(target),
    }
}

/// The types of its parameters, in order.
pub fn parameter_types(target: &Target, statement: &RowStatement) -> Vec<TypeId> {
    let set: Vec<usize> = match statement {
        RowStatement::Insert => target.stored_columns().collect(),
        RowStatement::Update { set } => set.clone(),
        RowStatement::Delete => Vec::new(),
    };
    let key: Vec<usize> = match (statement, &target.identity) {
        (RowStatement::Insert, _) => Vec::new(),
        (_, TargetIdentity::Key(key)) => key.clone(),
        (_, TargetIdentity::WholeRow | TargetIdentity::None) => target.stored_columns().collect(),
    };
    set.iter().chain(&key).filter_map(|index| target.key_column(*index)).map(|column| column.type_id).collect()
}

/// Gives the values of that statement to `put`, in the order of its parameters, for a row that is found by
/// the values in `key` and is to be as `image`.
pub fn row_parameters<'a>(
    target: &Target,
    statement: &RowStatement,
    key: &'a Tuple,
    image: &'a Tuple,
    mut put: impl FnMut(Datum<'a>),
) {
    match statement {
        RowStatement::Insert => stored_values(target, image, &mut put),
        RowStatement::Update { set } => {
            // `set` ascends, so one pass over the row finds all of it.
            let mut wanted = set.iter().peekable();
            for (index, value) in image.columns().enumerate() {
                if wanted.next_if_eq(&&index).is_some() {
                    put(value);
                }
            }
            row_values(target, key, &mut put);
        }
        RowStatement::Delete => row_values(target, key, &mut put),
    }
}

fn stored_values<'a>(target: &Target, tuple: &'a Tuple, put: &mut impl FnMut(Datum<'a>)) {
    for (column, value) in target.columns.iter().zip(tuple.columns()) {
        if column.is_some() {
            put(value);
        }
    }
}

fn row_values<'a>(target: &Target, tuple: &'a Tuple, put: &mut impl FnMut(Datum<'a>)) {
    match &target.identity {
        TargetIdentity::Key(key) => {
            for index in key {
                if let Some(value) = tuple.columns().nth(*index) {
                    put(value);
                }
            }
        }
        TargetIdentity::WholeRow | TargetIdentity::None => stored_values(target, tuple, put),
    }
}
