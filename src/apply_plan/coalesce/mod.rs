//! The changes of a batch into their net effect: what each row is in the end, grouped by table and operation.
//!
//! Stands between `batch` and `sets`. In go row changes with the tables that they belong to; out come [`NetPart`]s in the
//! order in which they are carried out. Deletes come first, children before parents, then updates, then inserts,
//! parents before children; a table whose changes do not fold exactly keeps them in their original order.
//!
//! A row is followed by its key, from its first change in the batch to its last:
//!
//! ```text
//!             insert k              update k    delete k     update k → k'
//! (unknown)   Inserted              Changed     Deleted      Changed, k is KeyFreed
//! Inserted    –                     Inserted    KeyFreed     Inserted, k is KeyFreed
//! Changed     –                     Changed     Deleted      Changed, k is KeyFreed
//! Deleted     Inserted (& Deleted)  –           –            –
//! KeyFreed    Inserted              –           –            –
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

use self::fold::{Folded, Folder, Gathered, key_changes};
use crate::apply_plan::net_effect::{MERGED, NetRow, SetEffect};
use crate::apply_plan::table_activity::{self, TableActivity};
use crate::apply_plan::target::{Target, TargetIdentity};
use crate::pg::{Datum, Relation, ReplicaIdentity, Tuple};
use crate::transaction::RowChange;

/// A part of the net effect.
#[derive(Clone, Debug)]
pub enum NetPart {
    /// These changes, one by one, as they came: [`NetEffect::change`].
    InOrder(Vec<u32>),
    /// Rows of one table to which the same is done.
    Set {
        /// The table, as [`Coalescer::add_table`] numbered it.
        table: usize,
        /// What is done.
        effect: SetEffect,
        /// To which rows; each at most once.
        rows: Vec<NetRow>,
    },
}

/// The net effect of what a [`Coalescer`] has gathered.
#[derive(Debug)]
pub struct NetEffect<'a> {
    /// Its parts, in the order in which they are carried out.
    pub parts: Vec<NetPart>,
    changes: &'a [Gathered<'a>],
    merged: Vec<Tuple>,
}

impl NetEffect<'_> {
    /// A change of a part that keeps its order.
    pub fn change(&self, number: u32) -> &RowChange {
        self.changes[number as usize].change
    }

    /// The tuple that holds the row's key from before the batch.
    pub fn key(&self, row: NetRow) -> &Tuple {
        self.change(row.first).identity()
    }

    /// The row as it is after the batch.
    pub fn image(&self, row: NetRow) -> &Tuple {
        match row.image.checked_sub(MERGED) {
            Some(merged) => &self.merged[merged as usize],
            None => self.change(row.image).image(),
        }
    }
}

/// A table with changes.
#[derive(Debug)]
struct TableChanges {
    relation: Arc<Relation>,
    target: Arc<Target>,
    inserts: usize,
    updates: usize,
    deletes: usize,
    rekeys: bool,
}

impl TableChanges {
    fn len(&self) -> usize {
        self.inserts + self.updates + self.deletes
    }
}

/// Whether a relation is among the tables of a [`Coalescer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownTable {
    /// As this one.
    Number(usize),
    /// Not yet.
    New,
    /// As another description: what is gathered must be carried out first.
    Redefined,
}

/// Gathers changes of rows, numbered as they come, table by table.
#[derive(Debug, Default)]
pub struct Coalescer<'a> {
    tables: Vec<TableChanges>,
    /// The table of the last change: mostly also that of the next.
    last: usize,
    changes: Vec<Gathered<'a>>,
    hasher: RandomState,
}

impl<'a> Coalescer<'a> {
    /// Whether changes of `relation` are gathered here.
    pub fn known(&mut self, relation: &Arc<Relation>) -> KnownTable {
        if self.tables.get(self.last).is_some_and(|table| Arc::ptr_eq(&table.relation, relation)) {
            return KnownTable::Number(self.last);
        }
        match self.tables.iter().position(|table| table.relation.id == relation.id) {
            Some(found) if self.tables[found].relation == *relation => {
                self.last = found;
                KnownTable::Number(found)
            }
            Some(_) => KnownTable::Redefined,
            None => KnownTable::New,
        }
    }

    /// Takes in a table; returns its number.
    pub fn add_table(&mut self, relation: Arc<Relation>, target: Arc<Target>) -> usize {
        self.tables.push(TableChanges { relation, target, inserts: 0, updates: 0, deletes: 0, rekeys: false });
        self.last = self.tables.len() - 1;
        self.last
    }

    /// The table of a number.
    ///
    /// # Panics
    /// For a number that [`Coalescer::add_table`] did not give.
    pub fn target(&self, table: usize) -> &Arc<Target> {
        &self.tables[table].target
    }

    /// Takes in a change of a row of this table.
    pub fn push(&mut self, number: usize, change: &'a RowChange) {
        let table = &mut self.tables[number];
        match change {
            RowChange::Insert { .. } => table.inserts += 1,
            RowChange::Update { old, .. } => {
                table.updates += 1;
                table.rekeys = table.rekeys || old.is_some() && key_changes(&table.target, change);
            }
            RowChange::Delete { .. } => table.deletes += 1,
        }
        self.changes.push(Gathered { table: number, change });
    }

    /// How many changes were taken in.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// All changes as they came.
    pub fn changes(&self) -> impl Iterator<Item = &'a RowChange> {
        self.changes.iter().map(|gathered| gathered.change)
    }

    /// Forgets all changes and tables.
    pub fn clear(&mut self) {
        self.tables.clear();
        self.changes.clear();
        self.last = 0;
    }

    /// The net effect of what was taken in; `foreign_keys_act`: the session's role lets foreign keys and ordinary triggers of the
    /// destination act.
    pub fn effect(&self, foreign_keys_act: bool) -> NetEffect<'_> {
        let mut merged = Vec::new();
        let parts = self.parts(foreign_keys_act, &mut merged);
        NetEffect { parts, changes: &self.changes, merged }
    }

    fn parts(&self, foreign_keys_act: bool, merged: &mut Vec<Tuple>) -> Vec<NetPart> {
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
        if table_activity::needs_order(&touched, foreign_keys_act) {
            return vec![self.all_in_order()];
        }
        let orders = self.orders();
        let folded = self.tables.iter().zip(&orders).map(|(table, order)| self.fold(table, order, merged));
        let folded: Vec<Option<Folded>> = folded.collect();
        if foreign_keys_act && self.tables.len() > 1 && folded.iter().any(Option::is_none) {
            return vec![self.all_in_order()];
        }
        let mut parts = Vec::new();
        let mut inserts = Vec::new();
        let mut updates = Vec::new();
        for (table, (folded, order)) in folded.into_iter().zip(orders).enumerate() {
            match folded {
                Some(Folded { deletes, updates: of_table, inserts: new }) => {
                    if !deletes.is_empty() {
                        parts.push(NetPart::Set { table, effect: SetEffect::Delete, rows: deletes });
                    }
                    updates.extend(of_table.into_iter().map(|(set, rows)| NetPart::Set {
                        table,
                        effect: SetEffect::Update(set),
                        rows,
                    }));
                    if !new.is_empty() {
                        inserts.push(NetPart::Set { table, effect: SetEffect::Insert, rows: new });
                    }
                }
                None => parts.push(NetPart::InOrder(order)),
            }
        }
        let order = table_activity::parents_first(&touched);
        let rank = |part: &NetPart| match part {
            NetPart::InOrder(_) => 0,
            NetPart::Set { table, .. } => {
                order.iter().position(|number| number == table).expect("the order is one of all tables")
            }
        };
        parts.sort_by_key(|part| std::cmp::Reverse(rank(part)));
        inserts.sort_by_key(rank);
        parts.extend(updates);
        parts.extend(inserts);
        parts
    }

    fn all_in_order(&self) -> NetPart {
        NetPart::InOrder((0..).take(self.changes.len()).collect())
    }

    /// The numbers of each table's changes.
    fn orders(&self) -> Vec<Vec<u32>> {
        let mut orders: Vec<_> = self.tables.iter().map(|table| Vec::with_capacity(table.len())).collect();
        for (number, gathered) in (0..).zip(&self.changes) {
            orders[gathered.table].push(number);
        }
        orders
    }

    /// A table's rows, each once; `None` when the original order must be kept.
    fn fold(&self, table: &TableChanges, order: &[u32], merged: &mut Vec<Tuple>) -> Option<Folded> {
        let target = &table.target;
        if table.updates == 0 && table.deletes == 0 {
            // Nothing to fold; the server reports a key that is inserted twice.
            let rows = order.iter().map(|number| NetRow { sort_key: 0, first: *number, image: *number }).collect();
            return self.is_uniform(order).then_some(Folded { inserts: rows, ..Folded::default() });
        }
        let TargetIdentity::Key(key) = &target.identity else { return None };
        let exact = key.iter().all(|index| target.key_column(*index).is_some_and(|column| column.equal_when_identical));
        // The first old row and the last new one would have to tell whether a GENERATED ALWAYS identity has changed.
        let fixed = |index: &usize| target.column(*index).is_some_and(|column| column.identity_always);
        let blind = target.relation.replica_identity == ReplicaIdentity::Full
            && target.stored_columns().any(|index| fixed(&index) && !key.contains(&index));
        if !exact || blind || !self.is_uniform(order) {
            return None;
        }
        Folder::new(key, &self.changes, &self.hasher, order.len()).fold(target, order, merged)
    }

    /// Whether all values came in the same format, so that one set can hold them.
    fn is_uniform(&self, order: &[u32]) -> bool {
        let (mut text, mut binary) = (false, false);
        for number in order {
            for value in self.changes[*number as usize].change.image().columns() {
                match value {
                    Datum::Text(_) => text = true,
                    Datum::Binary(_) => binary = true,
                    Datum::Null | Datum::UnchangedToast => {}
                }
            }
        }
        !(text && binary)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
