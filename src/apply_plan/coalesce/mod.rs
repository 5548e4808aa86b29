//! The changes of a batch into their net effect: what each row is in the end, grouped by table and operation.
//!
//! Stands between `batch` and `sets`. In go row changes with the tables that they belong to; out come [`Part`]s in the
//! order in which they are carried out. Deletes come first, children before parents, then updates, then inserts,
//! parents before children; a table whose changes do not fold exactly keeps them in their original order.
//!
//! A row is followed by its key, from its first change in the batch to its last:
//!
//! ```text
//!             insert k          update k        delete k            update k → k'
//! (unknown)   Born              Changed         Gone                Changed, k is Vacant
//! Born        –                 Born            Vacant              Born, k is Vacant
//! Changed     –                 Changed         Gone                Changed, k is Vacant
//! Gone        Born (and Gone)   –               –                   –
//! Vacant      Born              –               –                   –
//! ```
//!
//! `–`: the stream does not say so of a table with a key. If it does, the table keeps its original order, in which the
//! destination's own checks find what is wrong. A key change stays an update that finds the row by its first key and
//! sets the last one; never a delete and an insert, because an unchanged TOAST value is not in the message and local
//! columns would fall back to their defaults. A row that moves to a key which another has left in the same batch is a
//! hand-over: one statement could not carry it out under a unique index, so the table keeps its order.
//!
//! Rejected: finding unique values that change hands in advance. Old values are not in the stream; a set that meets a
//! unique index is refused by the server, and the batch is done again in its original order.
//!
//! Invariant: *applying the parts equals applying the changes one by one*, or the destination refuses (a constraint, a
//! row count).

mod fold;

use std::collections::hash_map::RandomState;
use std::sync::Arc;

use self::fold::{Folded, Folder, after, before, key_changes};
use crate::apply_plan::net_effect::{Effect, MERGED, NetRow};
use crate::apply_plan::table_activity::{self, TableActivity};
use crate::apply_plan::target::{Target, TargetIdentity};
use crate::pg::{Datum, Relation, ReplicaIdentity, Tuple};
use crate::transaction::Change;

/// A part of the net effect.
#[derive(Clone, Debug)]
pub enum Part {
    /// These changes, one by one, as they came.
    InOrder(Vec<u32>),
    /// Rows of one table to which the same is done.
    Set {
        /// The table, as [`Net::add_table`] numbered it.
        table: usize,
        /// What is done.
        effect: Effect,
        /// To which rows; each at most once.
        rows: Vec<NetRow>,
    },
}

/// The net effect of some changes.
#[derive(Debug, Default)]
pub struct NetEffect {
    /// Its parts, in the order in which they are carried out.
    pub parts: Vec<Part>,
    merged: Vec<Tuple>,
}

impl NetEffect {
    /// The tuple that holds the row's key from before the batch.
    pub fn key<'a>(&self, row: NetRow, changes: &'a [Change]) -> &'a Tuple {
        before(&changes[row.first as usize])
    }

    /// The row as it is after the batch.
    pub fn image<'a>(&'a self, row: NetRow, changes: &'a [Change]) -> &'a Tuple {
        match row.image.checked_sub(MERGED) {
            Some(merged) => &self.merged[merged as usize],
            None => after(&changes[row.image as usize]),
        }
    }
}

/// The changes of one table.
#[derive(Debug)]
struct TableChanges {
    relation: Arc<Relation>,
    target: Arc<Target>,
    changes: Vec<u32>,
    inserts: usize,
    updates: usize,
    deletes: usize,
    rekeys: bool,
}

/// Whether a relation is among the tables of a [`Net`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// This one.
    Table(usize),
    /// Not yet.
    New,
    /// As another description: what is gathered must be carried out first.
    Redefined,
}

/// Gathers changes, table by table.
#[derive(Debug, Default)]
pub struct Net {
    tables: Vec<TableChanges>,
    /// The table of the last change: mostly also that of the next.
    last: usize,
    rows: usize,
    hasher: RandomState,
}

impl Net {
    /// Whether changes of `relation` are gathered here.
    pub fn known(&mut self, relation: &Arc<Relation>) -> Known {
        if self.tables.get(self.last).is_some_and(|table| Arc::ptr_eq(&table.relation, relation)) {
            return Known::Table(self.last);
        }
        match self.tables.iter().position(|table| table.relation.id == relation.id) {
            Some(found) if self.tables[found].relation == *relation => {
                self.last = found;
                Known::Table(found)
            }
            Some(_) => Known::Redefined,
            None => Known::New,
        }
    }

    /// Takes in a table; returns its number.
    pub fn add_table(&mut self, relation: Arc<Relation>, target: Arc<Target>) -> usize {
        self.tables.push(TableChanges {
            relation,
            target,
            changes: Vec::new(),
            inserts: 0,
            updates: 0,
            deletes: 0,
            rekeys: false,
        });
        self.last = self.tables.len() - 1;
        self.last
    }

    /// The table of a number.
    ///
    /// # Panics
    /// For a number that [`Net::add_table`] did not give.
    pub fn target(&self, table: usize) -> &Arc<Target> {
        &self.tables[table].target
    }

    /// Takes in the change at `at` of the list, a change of a row of this table.
    pub fn push(&mut self, table: usize, at: u32, change: &Change) {
        let table = &mut self.tables[table];
        match change {
            Change::Insert { .. } => table.inserts += 1,
            Change::Update { old, .. } => {
                table.updates += 1;
                table.rekeys = table.rekeys || old.is_some() && key_changes(&table.target, change);
            }
            Change::Delete { .. } => table.deletes += 1,
            Change::Truncate { .. } => return,
        }
        table.changes.push(at);
        self.rows += 1;
    }

    /// How many changes were taken in.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// All changes as they came.
    pub fn in_order(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.tables.iter().flat_map(|table| table.changes.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    /// Forgets all changes.
    pub fn clear(&mut self) {
        self.tables.clear();
        self.last = 0;
        self.rows = 0;
    }

    /// The net effect of what was taken in from `changes`; `foreign_keys_act`: the session's role lets foreign keys
    /// and ordinary triggers of the destination act.
    pub fn effect(&self, changes: &[Change], foreign_keys_act: bool) -> NetEffect {
        let touched: Vec<TableActivity<'_>> = self
            .tables
            .iter()
            .map(|table| TableActivity {
                target: &table.target,
                inserts: table.inserts > 0,
                updates: table.updates > 0,
                rekeys: table.rekeys,
                deletes: table.deletes > 0,
            })
            .collect();
        let mut effect = NetEffect::default();
        if table_activity::needs_order(&touched, foreign_keys_act) {
            effect.parts.push(Part::InOrder(self.in_order()));
            return effect;
        }
        let folded: Vec<Option<Folded>> =
            self.tables.iter().map(|table| self.fold(table, changes, &mut effect.merged)).collect();
        if foreign_keys_act && self.tables.len() > 1 && folded.iter().any(Option::is_none) {
            effect.parts.push(Part::InOrder(self.in_order()));
            return effect;
        }
        let order = table_activity::parents_first(&touched);
        let mut inserts = Vec::new();
        let mut updates = Vec::new();
        for (table, folded) in folded.into_iter().enumerate() {
            match folded {
                Some(Folded { deletes, updates: of_table, inserts: new }) => {
                    if !deletes.is_empty() {
                        effect.parts.push(Part::Set { table, effect: Effect::Delete, rows: deletes });
                    }
                    updates.extend(of_table.into_iter().map(|(set, rows)| Part::Set {
                        table,
                        effect: Effect::Update(set),
                        rows,
                    }));
                    if !new.is_empty() {
                        inserts.push(Part::Set { table, effect: Effect::Insert, rows: new });
                    }
                }
                None => effect.parts.push(Part::InOrder(self.tables[table].changes.clone())),
            }
        }
        let place = |part: &Part| match part {
            Part::InOrder(_) => 0,
            Part::Set { table, .. } => order.iter().position(|at| at == table).expect("the order is one of all tables"),
        };
        effect.parts.sort_by_key(|part| std::cmp::Reverse(place(part)));
        inserts.sort_by_key(place);
        effect.parts.extend(updates);
        effect.parts.extend(inserts);
        effect
    }

    /// A table's rows, each once; `None` when the original order must be kept.
    fn fold(&self, table: &TableChanges, changes: &[Change], merged: &mut Vec<Tuple>) -> Option<Folded> {
        let target = &table.target;
        if table.updates == 0 && table.deletes == 0 {
            // Nothing to fold; the server reports a key that is inserted twice.
            let rows = table.changes.iter().map(|at| NetRow { place: 0, first: *at, image: *at }).collect();
            return uniform(table, changes).then_some(Folded { inserts: rows, ..Folded::default() });
        }
        let TargetIdentity::Key(key) = &target.identity else { return None };
        let exact = key.iter().all(|place| target.key_column(*place).is_some_and(|column| column.equal_when_identical));
        // The first old row and the last new one would have to tell whether a GENERATED ALWAYS identity has changed.
        let fixed = |place: &usize| target.column(*place).is_some_and(|column| column.identity_always);
        let blind = target.relation.replica_identity == ReplicaIdentity::Full
            && target.stored_columns().any(|place| fixed(&place) && !key.contains(&place));
        if !exact || blind || !uniform(table, changes) {
            return None;
        }
        Folder::new(key, changes, &self.hasher, table.changes.len()).fold(target, &table.changes, merged)
    }
}

/// Whether all values came in the same format, so that one set can hold them.
fn uniform(table: &TableChanges, changes: &[Change]) -> bool {
    let (mut text, mut binary) = (false, false);
    for at in &table.changes {
        for value in after(&changes[*at as usize]).columns() {
            match value {
                Datum::Text(_) => text = true,
                Datum::Binary(_) => binary = true,
                Datum::Null | Datum::UnchangedToast => {}
            }
        }
    }
    !(text && binary)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
