//! What a batch does to its tables, and whether its changes may be reordered: foreign keys and triggers act by themselves.
//!
//! Asked by `coalesce`. Each table's [`SideEffects`](crate::apply_plan::side_effects::SideEffects) are part of its `target`.
//! With session_replication_role = replica foreign keys do not act, and the answer is yes unless a trigger fires even so. Where
//! they act, order can matter without any error: applied deletes first, ON DELETE CASCADE removes rows that an update of the
//! same batch had saved. So wherever one change of a batch could make the destination touch, or judge, what another one writes,
//! the original order is kept.

use std::collections::BTreeMap;

use crate::apply_plan::sets::key_of;
use crate::apply_plan::target::Target;
use crate::catalog::table_order::foreign_key_order;
use crate::pg::{Ident, QualifiedName};

/// A table of a batch, and what the batch does to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableActivity<'a> {
    /// The table.
    pub(super) target: &'a Target,
    /// Rows are inserted.
    pub(super) inserts: bool,
    /// Rows are updated.
    pub(super) updates: bool,
    /// Updates change keys.
    pub(super) rekeys: bool,
    /// Rows are deleted.
    pub(super) deletes: bool,
}

impl TableActivity<'_> {
    /// Whether rows may lose the values at these columns.
    fn loses(&self, columns: &[Ident]) -> bool {
        let in_key = |name: &Ident| {
            key_of(self.target)
                .iter()
                .any(|index| self.target.key_column(*index).is_some_and(|column| column.name == *name))
        };
        self.deletes || self.updates && (self.rekeys || !columns.iter().all(in_key))
    }
}

/// Whether the changes must be carried out one by one, as they came.
pub(super) fn needs_order(touched: &[TableActivity<'_>], foreign_keys_act: bool) -> bool {
    touched.iter().any(|table| {
        let side_effects = &table.target.side_effects;
        if !foreign_keys_act {
            return side_effects.triggers_in_replica;
        }
        let follows = table.deletes && side_effects.follows_delete || table.updates && side_effects.follows_update;
        side_effects.triggers_in_origin || follows || touched.iter().any(|parent| interferes(table, parent))
    }) || foreign_keys_act && has_circle(touched)
}

/// Whether a foreign key from `child` to `parent` could judge a reordered batch otherwise than the original one.
fn interferes(child: &TableActivity<'_>, parent: &TableActivity<'_>) -> bool {
    let mut keys = child.target.side_effects.parents.iter().filter(|key| key.table_id == parent.target.table_id);
    // Rows of the parent that go, or change what is pointed at, and rows of the child that come or change; parents that
    // come and children that change to point at them.
    keys.any(|key| parent.loses(&key.columns) && (child.inserts || child.updates) || parent.inserts && child.updates)
}

fn names(touched: &[TableActivity<'_>]) -> BTreeMap<u32, QualifiedName> {
    touched.iter().map(|table| (table.target.table_id, table.target.table.clone())).collect()
}

fn order_of(touched: &[TableActivity<'_>]) -> crate::catalog::table_order::ForeignKeyOrder {
    let names = names(touched);
    let references = touched.iter().flat_map(|table| {
        table
            .target
            .side_effects
            .parents
            .iter()
            .filter_map(|parent| Some((table.target.table.clone(), names.get(&parent.table_id)?.clone())))
    });
    foreign_key_order(names.values().cloned(), references.collect::<Vec<_>>())
}

fn has_circle(touched: &[TableActivity<'_>]) -> bool {
    touched.len() > 1 && !order_of(touched).cycles.is_empty()
}

/// The places in `touched`, parents before children.
pub(super) fn parents_first(touched: &[TableActivity<'_>]) -> Vec<usize> {
    if touched.len() < 2 {
        return (0..touched.len()).collect();
    }
    let order = order_of(touched);
    let mut indexes: Vec<usize> = (0..touched.len()).collect();
    indexes.sort_by_key(|index| order.tables.iter().position(|name| *name == touched[*index].target.table));
    indexes
}
