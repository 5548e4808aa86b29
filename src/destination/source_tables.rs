//! The tables as they are at the source, whose unique keys tell which rows cannot be at the destination.
//!
//! Made from the catalog at the start; a schema change in the stream describes a table again ([`SourceTables::described`]). Asked
//! when a relation is bound, and when rows in conflict may have to go. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::catalog::Catalog;
use crate::apply_plan::source_wins::shared_uniques;
use crate::apply_plan::unique_keys::{Unique, UniquePart};
use crate::catalog::schema::TableDefinition;
use crate::pg::{Ident, Relation, RelationId};
use crate::transaction::Change;

/// The source's tables.
#[derive(Clone, Debug, Default)]
pub struct SourceTables {
    tables: Vec<TableDefinition>,
    /// The unique indexes that were there when the stream began, by OID: only of what was there before the stream's changes, and is
    /// now, no two rows were ever alike. `None` where all of them are known to be such.
    old_indexes: Option<HashMap<RelationId, BTreeSet<u32>>>,
}

impl SourceTables {
    /// Tables as they are known to have been all the time.
    pub fn unchanged(tables: Vec<TableDefinition>) -> SourceTables {
        SourceTables { tables, old_indexes: None }
    }

    /// Tables of which these unique indexes were there before the stream's next change.
    pub fn of_stream(tables: Vec<TableDefinition>, old_indexes: HashMap<RelationId, BTreeSet<u32>>) -> SourceTables {
        let mut known = SourceTables { tables: Vec::new(), old_indexes: Some(old_indexes) };
        tables.into_iter().for_each(|table| known.described(table));
        known
    }

    /// A table as the source has it.
    pub(super) fn get(&self, id: RelationId) -> Option<&TableDefinition> {
        self.tables.iter().find(|table| table.relation_id() == id)
    }

    /// Takes in a table as the stream has described it since.
    pub(super) fn described(&mut self, mut table: TableDefinition) {
        if let Some(old) = &self.old_indexes {
            let old = old.get(&table.relation_id());
            let is_old = |id: &u32| old.is_some_and(|old| old.contains(id));
            table.indexes.retain(|index| !index.unique || is_old(&index.id));
        }
        self.tables.retain(|known| known.relation_id() != table.relation_id());
        self.tables.push(table);
    }

    /// Whether rows may have to go because the source's unique keys say so, others than those that identify the rows of these
    /// changes. The source may have dropped such a key since its catalog was read, and the stream need not tell: what may go is
    /// decided by a catalog that was read after the conflict. So it is where a partition may have identified its rows otherwise for a
    /// while: a row that is not found by the table's key need not be missing.
    pub(super) fn need_newer_catalog(&self, changes: &[Change], catalog: &Catalog) -> bool {
        let mut asked: Vec<&Arc<Relation>> = Vec::new();
        for change in changes {
            let relation = match change {
                Change::Row(row) => row.relation(),
                Change::Truncate { .. } => continue,
            };
            if !asked.iter().any(|known| Arc::ptr_eq(known, relation)) {
                asked.push(relation);
            }
        }
        asked.into_iter().any(|relation| self.has_other_unique(relation, catalog))
    }

    /// Whether both ends have a unique key that is not the identity of the stream's rows: what identifies them, the source has.
    fn has_other_unique(&self, relation: &Relation, catalog: &Catalog) -> bool {
        let Some(source) = self.get(relation.id) else { return false };
        if source.is_tree() {
            return true;
        }
        let destination = catalog.table(&relation.name).or_else(|| catalog.table(&source.name()));
        let Some(destination) = destination else { return false };
        let identity: Vec<&Ident> =
            relation.columns.iter().filter(|column| column.in_identity).map(|column| &column.name).collect();
        let identifies = |unique: &Unique| {
            let named = |part: &UniquePart| match part {
                UniquePart::Column { name, .. } => identity.contains(&name),
                UniquePart::Expression { .. } => false,
            };
            unique.predicate.is_none() && unique.parts.len() == identity.len() && unique.parts.iter().all(named)
        };
        shared_uniques(source, destination).iter().any(|unique| !identifies(unique))
    }
}
