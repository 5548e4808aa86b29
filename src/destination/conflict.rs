//! Decides what happens at a conflict: apply halts, the source's rows win, or the source transaction is skipped.
//!
//! Asked by `apply` in two moments: when a task is about to be written ([`ConflictPolicy::mode`]), and when a batch of one
//! transaction has failed row by row ([`ConflictPolicy::may_overwrite`]).
//!
//! ```text
//!             a batch fails on a row ──▶ again, one transaction at a time ──▶ this one fails
//!                                                                               │
//!      on_conflict = "source-wins", not tried yet ──▶ again, its rows winning ◀─┤
//!      otherwise ─────────▶ conflict: halt; the next attempt asks headwater.skip ┘
//! ```
//!
//! A transaction that comes in chunks cannot be applied again from here, so its conflict ends the attempt. The next attempt
//! gets it from the source again and knows ([`ConflictPolicy::overwriting`]) that its rows win. A transaction whose rows may displace
//! others (`SourceTables::need_newer_catalog`) ends the attempt in the same way.

use std::collections::{BTreeMap, BTreeSet};

use super::dead_letter::WantedLetters;
use super::error::{ConflictKind, DestinationError};
use super::formats::formats_of;
use super::writer::ReplicationRole;
use crate::apply_plan::source_wins::{CountMeaning, Statement, may_remove_rows, shared_uniques, winning};
use crate::apply_plan::target::Target;
use crate::catalog::schema::TableDefinition;
use crate::config::OnConflict;
use crate::pg::{Lsn, QualifiedName};
use crate::session::{PipelinedRequest, StatementName};
use crate::transaction::RowChange;

/// How a source transaction is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApplyMode {
    /// As it is.
    Normal,
    /// So that its rows win: they overwrite what is in their way.
    Overwrite,
    /// Not at all: as a dead letter.
    DeadLetter,
}

/// What is to be done about conflicts, and which transactions have met one.
#[derive(Clone, Debug)]
pub struct ConflictPolicy {
    /// The operator's choice.
    pub on_conflict: OnConflict,
    /// Transactions that the operator wants skipped.
    pub skips: BTreeSet<WantedLetters>,
    /// The commit_lsn of the transaction whose rows are to win.
    pub overwriting: Option<Lsn>,
    /// The commit_lsn of a large transaction that is to be applied row by row, because its sets were refused.
    pub row_by_row: Option<Lsn>,
}

impl ConflictPolicy {
    /// Nothing has happened yet.
    pub fn new(on_conflict: OnConflict) -> ConflictPolicy {
        ConflictPolicy { on_conflict, skips: BTreeSet::new(), overwriting: None, row_by_row: None }
    }

    /// How to write a transaction. `end_lsn` is unknown while one comes in chunks.
    pub(super) fn mode(&self, commit_lsn: Lsn, end_lsn: Option<Lsn>) -> ApplyMode {
        if self.is_skipped(commit_lsn, end_lsn) {
            ApplyMode::DeadLetter
        } else if self.overwriting == Some(commit_lsn) {
            ApplyMode::Overwrite
        } else {
            ApplyMode::Normal
        }
    }

    /// Whether a large transaction's changes are coalesced.
    pub(super) fn coalesces(&self, commit_lsn: Lsn) -> bool {
        self.mode(commit_lsn, None) == ApplyMode::Normal && self.row_by_row != Some(commit_lsn)
    }

    /// Whether the operator wants it skipped.
    pub(super) fn is_skipped(&self, commit_lsn: Lsn, end_lsn: Option<Lsn>) -> bool {
        !self.skips.is_empty()
            && (self.skips.contains(&WantedLetters::CommitLsn(commit_lsn))
                || end_lsn.is_some_and(|end_lsn| self.skips.contains(&WantedLetters::EndLsn(end_lsn))))
    }

    /// Whether a transaction that failed as it is may be tried again, overwriting what is in the way of its rows.
    pub(super) fn may_overwrite(&self, kind: ConflictKind, commit_lsn: Lsn) -> bool {
        let of_rows = match kind {
            ConflictKind::UniqueViolation | ConflictKind::MissingRow => true,
            // What the row itself violates, it violates again.
            ConflictKind::ForeignKeyViolation
            | ConflictKind::CheckViolation
            | ConflictKind::NotNullViolation
            | ConflictKind::ExclusionViolation
            | ConflictKind::DataException
            | ConflictKind::PermissionDenied
            | ConflictKind::Other => false,
        };
        of_rows && self.on_conflict == OnConflict::SourceWins && self.overwriting != Some(commit_lsn)
    }
}

/// Rows that were not as the source's transaction expected, and are now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repair {
    /// The table.
    pub table: QualifiedName,
    /// What they were in conflict with.
    pub kind: ConflictKind,
    /// How many.
    pub rows: u64,
}

/// A pipelined request in which the source's rows win: what its row counts will say, in their order.
#[derive(Debug, Default)]
pub(super) struct OverwriteCounts {
    counted: Vec<(QualifiedName, CountMeaning)>,
}

impl OverwriteCounts {
    /// Writes the statements of a row's change. `destination` and `source` are the table's definitions at both ends, where the source's
    /// is known: only a unique key that both have says which rows cannot be there.
    pub(super) fn write(
        &mut self,
        request: &mut PipelinedRequest,
        target: &Target,
        destination: &TableDefinition,
        source: Option<&TableDefinition>,
        role: ReplicationRole,
        change: &RowChange,
    ) -> Result<(), DestinationError> {
        let uniques = match source {
            Some(source) if may_remove_rows(destination, role == ReplicationRole::Origin) => {
                shared_uniques(source, destination)
            }
            Some(_) | None => Vec::new(),
        };
        for statement in winning(target, &uniques, change)? {
            self.execute(request, target, &statement);
        }
        Ok(())
    }

    fn execute(&mut self, request: &mut PipelinedRequest, target: &Target, statement: &Statement<'_>) {
        // Repairs are rare: nothing is kept prepared for them.
        request.parse("", &statement.sql, &statement.types);
        let formats = formats_of(&statement.values);
        request.execute_counted(StatementName::UNNAMED, &formats, statement.values.len(), |values| {
            statement.values.iter().for_each(|value| values.put(value.bytes()));
        });
        self.counted.push((target.table.clone(), statement.meaning));
    }

    /// What the row counts say: repairs, and deletes that found no row.
    pub(super) fn conclude(self, counts: impl Iterator<Item = u64>) -> (Vec<Repair>, u64) {
        let mut repaired: BTreeMap<(QualifiedName, ConflictKind), u64> = BTreeMap::new();
        let mut missing_deletes = 0;
        for ((table, meaning), count) in self.counted.into_iter().zip(counts) {
            let (kind, rows) = match meaning {
                CountMeaning::Nothing => continue,
                CountMeaning::Deletes => {
                    missing_deletes += u64::from(count == 0);
                    continue;
                }
                CountMeaning::RemovesRivals => (ConflictKind::UniqueViolation, count),
                CountMeaning::Overwrites => (ConflictKind::UniqueViolation, u64::from(count == 0)),
                CountMeaning::Restores => (ConflictKind::MissingRow, count),
            };
            if rows > 0 {
                *repaired.entry((table, kind)).or_default() += rows;
            }
        }
        (repaired.into_iter().map(|((table, kind), rows)| Repair { table, kind, rows }).collect(), missing_deletes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_win_once_and_only_where_the_operator_said_so() {
        let (unique, lsn) = (ConflictKind::UniqueViolation, Lsn::new(7));
        let mut chosen = ConflictPolicy::new(OnConflict::SourceWins);
        assert!(chosen.may_overwrite(unique, lsn));
        assert!(!chosen.may_overwrite(ConflictKind::CheckViolation, lsn), "the row violates it again");
        assert!(!ConflictPolicy::new(OnConflict::Stop).may_overwrite(unique, lsn));
        chosen.overwriting = Some(lsn);
        assert!(!chosen.may_overwrite(unique, lsn), "it failed although it won");
        assert_eq!(chosen.mode(lsn, None), ApplyMode::Overwrite);
        assert_eq!(chosen.mode(Lsn::new(8), None), ApplyMode::Normal);
    }

    #[test]
    fn sets_are_for_transactions_that_are_applied_as_they_are_and_were_not_refused() {
        let mut policy = ConflictPolicy::new(OnConflict::SourceWins);
        policy.overwriting = Some(Lsn::new(7));
        policy.row_by_row = Some(Lsn::new(8));
        policy.skips.insert(WantedLetters::CommitLsn(Lsn::new(9)));
        assert_eq!([6, 7, 8, 9].map(|lsn| policy.coalesces(Lsn::new(lsn))), [true, false, false, false]);
    }

    #[test]
    fn the_two_names_of_a_transaction_are_not_mixed_up() {
        let mut stop = ConflictPolicy::new(OnConflict::Stop);
        stop.skips.insert(WantedLetters::EndLsn(Lsn::new(7)));
        assert_eq!(stop.mode(Lsn::new(6), Some(Lsn::new(7))), ApplyMode::DeadLetter);
        assert_eq!(stop.mode(Lsn::new(7), Some(Lsn::new(8))), ApplyMode::Normal, "this one's commit_lsn is 7");
        stop.skips.insert(WantedLetters::CommitLsn(Lsn::new(7)));
        assert_eq!(stop.mode(Lsn::new(7), None), ApplyMode::DeadLetter);
    }

    #[test]
    fn row_counts_tell_what_was_repaired() {
        let table = QualifiedName::new("public", "t");
        let meanings = [
            CountMeaning::RemovesRivals,
            CountMeaning::Overwrites,
            CountMeaning::Overwrites,
            CountMeaning::Restores,
            CountMeaning::Deletes,
            CountMeaning::Nothing,
        ];
        let counts = OverwriteCounts { counted: meanings.map(|meaning| (table.clone(), meaning)).to_vec() };
        let (repairs, missing_deletes) = counts.conclude([2, 0, 1, 1, 0, 1].into_iter());
        let of = |kind, rows| Repair { table: table.clone(), kind, rows };
        assert_eq!(repairs, [of(ConflictKind::UniqueViolation, 3), of(ConflictKind::MissingRow, 1)]);
        assert_eq!(missing_deletes, 1);
    }
}
