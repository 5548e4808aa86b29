//! A table that is followed, and which transactions' changes of it are not in its snapshot already.
//!
//! Made by `supervisor` from the bookkeeping and by the hand-over from staging; asked for each change, and by `relation_map` and
//! `schema_follower` before they take a table for it. Pure.

use std::collections::HashMap;

use crate::destination::other_table::{Filled, OtherTable};
use crate::pg::{Lsn, QualifiedName, RelationId};

/// A table that is followed.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Its name at the destination.
    pub name: QualifiedName,
    /// Its OID there, where the bookkeeping remembers one.
    pub destination_id: Option<u32>,
    /// Changes with commit_lsn below this are in its snapshot.
    pub snapshot_position: Lsn,
}

impl Followed {
    /// Whether a transaction's changes are not in the table's snapshot. One whose commit_lsn equals the snapshot's position is the
    /// first that is not.
    pub(super) fn is_live_at(&self, commit_lsn: Lsn) -> bool {
        commit_lsn >= self.snapshot_position
    }

    /// Refuses what has the table's name and is not the table that was filled. `id`: its OID at the destination.
    pub(super) fn refuse_other(&self, id: u32) -> Result<(), OtherTable> {
        match self.destination_id {
            Some(filled) if filled != id => Err(OtherTable { table: self.name.clone(), filled: Filled::Unknown }),
            Some(_) | None => Ok(()),
        }
    }
}

/// The tables that are followed.
#[derive(Clone, Debug, Default)]
pub(super) struct FollowedTables {
    tables: HashMap<RelationId, Followed>,
    /// Every table's snapshot position is at or before this.
    snapshots_end: Lsn,
}

impl FollowedTables {
    pub(super) fn new(tables: HashMap<RelationId, Followed>) -> FollowedTables {
        let snapshots_end = tables.values().map(|table| table.snapshot_position).max().unwrap_or_default();
        FollowedTables { tables, snapshots_end }
    }

    pub(super) fn tables(&self) -> &HashMap<RelationId, Followed> {
        &self.tables
    }

    pub(super) fn get(&self, relation: RelationId) -> Option<&Followed> {
        self.tables.get(&relation)
    }

    /// Whether a change of a transaction belongs to what is followed, and not to the table's snapshot.
    pub(super) fn is_live(&self, relation: RelationId, commit_lsn: Lsn) -> bool {
        match self.tables.get(&relation) {
            Some(_) if self.are_all_live_at(commit_lsn) => true,
            Some(table) => table.is_live_at(commit_lsn),
            None => false,
        }
    }

    /// Whether a transaction is in no table's snapshot.
    pub(super) fn are_all_live_at(&self, commit_lsn: Lsn) -> bool {
        commit_lsn >= self.snapshots_end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_commits_at_a_snapshots_position_is_not_in_the_snapshot() {
        let name = QualifiedName::new("public", "t");
        let table = Followed { name, destination_id: None, snapshot_position: Lsn::new(100) };
        let is_live = [99, 100, 101].map(|commit_lsn| table.is_live_at(Lsn::new(commit_lsn)));
        assert_eq!(is_live, [false, true, true]);
    }
}
