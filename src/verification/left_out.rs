//! Tables that cannot be compared, because their changes do not arrive.
//!
//! In come the tables that are wanted and what the bookkeeping says of them, in the state that is compared; out go those
//! that are followed, and the others with the reason. Pure: `tables` reads the bookkeeping before the fence, `compare` at it.

use std::fmt;

use crate::destination::{TableRecord, TableState};
use crate::pg::{QualifiedName, RelationId};

/// A table that was not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The table.
    pub table: QualifiedName,
    /// Why, as the end of a sentence that begins with its name.
    pub reason: &'static str,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} {}", self.table, self.reason)
    }
}

/// Suspended by the stream, or by an operator's request: its rows stay as they were until the copy is published.
const SUSPENDED: &str = "is suspended until it is copied again";
/// Configured, and not in the bookkeeping yet.
const NOT_YET: &str = "is not followed yet: it is copied first";
/// The stream describes another table than the one that bears the name now.
const REPLACED: &str = "was dropped and created again at the source, and is copied first";

/// Why a table cannot be compared; `None` when it can. `source_id`: the table of this name at the source, if known.
pub(super) fn why(name: &QualifiedName, source_id: Option<RelationId>, records: &[TableRecord]) -> Option<LeftOut> {
    let reason = match records.iter().find(|record| record.name == *name) {
        None => NOT_YET,
        Some(TableRecord { state: TableState::Staging, .. }) => SUSPENDED,
        Some(record) if source_id.is_some_and(|id| id != record.source_id) => REPLACED,
        Some(_) => return None,
    };
    Some(LeftOut { table: name.clone(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Lsn;

    #[test]
    fn only_a_table_that_is_followed_as_the_one_it_was_is_compared() {
        let live = TableState::Live { snapshot_position: Lsn::new(1) };
        let record = |name: &str, state| TableRecord {
            name: QualifiedName::new("public", name),
            source_id: RelationId(7),
            destination_id: 8,
            state,
        };
        let records = [record("live", live), record("suspended", TableState::Staging)];
        let why =
            |name: &str, id| why(&QualifiedName::new("public", name), id, &records).map(|left_out| left_out.reason);
        assert_eq!(why("live", Some(RelationId(7))), None);
        assert_eq!(why("live", None), None);
        assert_eq!(why("live", Some(RelationId(8))), Some(REPLACED));
        assert_eq!(why("suspended", Some(RelationId(7))), Some(SUSPENDED));
        assert_eq!(why("added", Some(RelationId(9))), Some(NOT_YET));
    }
}
