//! Which statement carries out a change, and with which parameters.
//!
//! Stands between a batch's changes and `destination::apply`, which prepares each distinct [`Shape`] once and then only
//! sends parameters. Values are taken straight from the change's tuples, in one pass for the columns to set and one for
//! the key; nothing is collected on the way.

use crate::pg::{Datum, Tuple, TypeId};
use crate::plan::sql::apply;
use crate::plan::target::{Target, TargetIdentity};
use crate::transaction::Change;
use crate::wire::OldTuple;

/// What a statement does to a row; changes of one shape (and one target) share one prepared statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
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

/// The shape of a row's change; `None` when no statement of its own carries it out: a truncate, or an update in which
/// nothing changed that can be set.
///
/// # Errors
/// [`NoIdentity`] for an update or delete of a table without replica identity.
pub fn shape(target: &Target, change: &Change) -> Result<Option<Shape>, NoIdentity> {
    let shape = match change {
        Change::Insert { .. } => Shape::Insert,
        Change::Update { old, new, .. } => Shape::Update { set: columns_to_set(target, old.as_ref(), new)? },
        Change::Delete { .. } => Shape::Delete,
        Change::Truncate { .. } => return Ok(None),
    };
    match (&shape, &target.identity) {
        (Shape::Update { set }, TargetIdentity::Key(_) | TargetIdentity::WholeRow) if set.is_empty() => Ok(None),
        (Shape::Insert, _) | (_, TargetIdentity::Key(_) | TargetIdentity::WholeRow) => Ok(Some(shape)),
        (Shape::Update { .. } | Shape::Delete, TargetIdentity::None) => Err(NoIdentity { table: target.table.clone() }),
    }
}

/// The columns that the update changes, as far as the message tells.
fn columns_to_set(target: &Target, old: Option<&OldTuple>, new: &Tuple) -> Result<Vec<usize>, NoIdentity> {
    let key: &[usize] = match &target.identity {
        TargetIdentity::Key(key) => key,
        TargetIdentity::WholeRow | TargetIdentity::None => &[],
    };
    // Without an old key in the message the key did not change.
    let key_may_change = old.is_some();
    let mut set = Vec::new();
    for (place, value) in new.columns().enumerate() {
        let Some(column) = target.column(place) else { continue };
        let in_key = key.contains(&place);
        let unchanged = value == Datum::UnchangedToast || (in_key && !key_may_change);
        // Nobody can update a GENERATED ALWAYS identity, at the source neither: it differs only where the key says so.
        let fixed = column.identity_always && !(in_key && key_changed(old, new, place));
        if !unchanged && !fixed {
            set.push(place);
        }
    }
    if set.is_empty() {
        // The row must still be there: its key is set to itself.
        set.extend(key.iter().copied().filter(|place| target.column(*place).is_some_and(|c| !c.identity_always)));
        set.sort_unstable();
    }
    Ok(set)
}

fn key_changed(old: Option<&OldTuple>, new: &Tuple, place: usize) -> bool {
    old.is_some_and(|old| old.tuple().columns().nth(place) != new.columns().nth(place))
}

/// The statement of a shape.
pub fn sql(target: &Target, shape: &Shape) -> String {
    match (shape, &target.identity) {
        (Shape::Insert, _) => apply::insert_row(target),
        (Shape::Update { set }, TargetIdentity::Key(key)) => apply::update_row(target, set, key),
        (Shape::Update { set }, TargetIdentity::WholeRow | TargetIdentity::None) => {
            apply::update_whole_row(target, set)
        }
        (Shape::Delete, TargetIdentity::Key(key)) => apply::delete_row(target, key),
        (Shape::Delete, TargetIdentity::WholeRow | TargetIdentity::None) => apply::delete_whole_row(target),
    }
}

/// The types of a shape's parameters, in order.
pub fn parameter_types(target: &Target, shape: &Shape) -> Vec<TypeId> {
    let set: Vec<usize> = match shape {
        Shape::Insert => target.stored_columns().collect(),
        Shape::Update { set } => set.clone(),
        Shape::Delete => Vec::new(),
    };
    let key: Vec<usize> = match (shape, &target.identity) {
        (Shape::Insert, _) => Vec::new(),
        (_, TargetIdentity::Key(key)) => key.clone(),
        (_, TargetIdentity::WholeRow | TargetIdentity::None) => target.stored_columns().collect(),
    };
    set.iter().chain(&key).filter_map(|place| target.column(*place)).map(|column| column.type_id).collect()
}

/// Gives the values of a change of that shape to `put`, in the order of its parameters.
pub fn parameters<'a>(target: &Target, shape: &Shape, change: &'a Change, mut put: impl FnMut(Datum<'a>)) {
    match (shape, change) {
        (Shape::Insert, Change::Insert { new, .. }) => stored_values(target, new, &mut put),
        (Shape::Update { set }, Change::Update { old, new, .. }) => {
            // `set` ascends, so one pass over the row finds all of it.
            let mut wanted = set.iter().peekable();
            for (place, value) in new.columns().enumerate() {
                if wanted.next_if_eq(&&place).is_some() {
                    put(value);
                }
            }
            row_values(target, old.as_ref().map_or(new, OldTuple::tuple), &mut put);
        }
        (Shape::Delete, Change::Delete { old, .. }) => row_values(target, old.tuple(), &mut put),
        (Shape::Insert | Shape::Update { .. } | Shape::Delete, _) => {
            unreachable!("a shape is used with the change that it was made for")
        }
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
            for place in key {
                if let Some(value) = tuple.columns().nth(*place) {
                    put(value);
                }
            }
        }
        TargetIdentity::WholeRow | TargetIdentity::None => stored_values(target, tuple, put),
    }
}
