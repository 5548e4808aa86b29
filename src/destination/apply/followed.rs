//! A table that is followed, and which transactions' changes of it are not in its snapshot already.
//!
//! Made by `supervisor` from the bookkeeping and by the hand-over from staging; asked by `rows` and `sets` for each change, and by
//! `bind` and `evolve` before they take a table for it. Pure.

use crate::destination::other_table::{Filled, OtherTable};
use crate::pg::{Lsn, QualifiedName};

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
