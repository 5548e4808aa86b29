//! Decides what happens at a conflict: apply halts, the source's rows win, or the source transaction is skipped.
//!
//! Asked by `apply` in two moments: when work is about to be written ([`Conflicts::mode`]), and when a batch of one
//! transaction has failed row by row ([`Conflicts::may_win`]).
//!
//! ```text
//!             a batch fails on a row ──▶ again, one transaction at a time ──▶ this one fails
//!                                                                               │
//!      on_conflict = "source-wins", not tried yet ──▶ again, its rows winning ◀─┤
//!      otherwise ─────────▶ conflict: halt; the next attempt asks headwater.skip ┘
//! ```
//!
//! A transaction that comes in pieces cannot be applied again from here, so its conflict ends the attempt. The next attempt
//! gets it from the source again and knows ([`Conflicts::winning`]) that its rows win. A transaction whose rows may displace
//! others ([`Conflicts::needs_newer_catalog`]) ends the attempt in the same way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::catalog::Catalog;
use super::dead_letter::Wanted;
use super::error::{Conflict, ConflictKind, DestinationError};
use super::formats::formats_of;
use super::writer::ReplicationRole;
use crate::apply_plan::source_wins::{Effect, Statement, may_remove_rows, shared_uniques, winning};
use crate::apply_plan::target::Target;
use crate::apply_plan::unique_keys::{Unique, UniquePart};
use crate::catalog::schema::TableDefinition;
use crate::config::OnConflict;
use crate::pg::{Ident, Lsn, QualifiedName, Relation, RelationId};
use crate::session::{PipelinedRequest, Verb};
use crate::transaction::Change;

/// How a source transaction is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApplyMode {
    /// As it is.
    Normal,
    /// So that its rows win.
    Winning,
    /// Not at all: as a dead letter.
    LeftOut,
}

/// What is to be done about conflicts, and which transactions have met one.
#[derive(Clone, Debug)]
pub struct Conflicts {
    /// The operator's choice.
    pub on_conflict: OnConflict,
    /// Transactions that the operator wants left out.
    pub skips: BTreeSet<Wanted>,
    /// The commit_lsn of the transaction whose rows are to win.
    pub winning: Option<Lsn>,
    /// The commit_lsn of a transaction in pieces that is to be applied change by change, because its sets were refused.
    pub in_order: Option<Lsn>,
    /// The tables as they are at the source, whose unique keys tell which rows cannot be there.
    source_tables: Vec<TableDefinition>,
    /// The unique indexes that were there when the stream began, by OID: only of what was there before the stream's changes, and is
    /// now, no two rows were ever alike. `None` where all of them are known to be such.
    old_indexes: Option<HashMap<RelationId, BTreeSet<u32>>>,
}

impl Conflicts {
    /// Nothing has happened yet.
    pub fn of_source(on_conflict: OnConflict, source_tables: Vec<TableDefinition>) -> Conflicts {
        Conflicts {
            on_conflict,
            skips: BTreeSet::new(),
            winning: None,
            in_order: None,
            source_tables,
            old_indexes: None,
        }
    }

    /// Nothing has happened yet, and these unique indexes of the tables were there before the stream's next change.
    pub fn of_stream(
        on_conflict: OnConflict,
        source_tables: Vec<TableDefinition>,
        old_indexes: HashMap<RelationId, BTreeSet<u32>>,
    ) -> Conflicts {
        let mut conflicts =
            Conflicts { old_indexes: Some(old_indexes), ..Conflicts::of_source(on_conflict, Vec::new()) };
        source_tables.into_iter().for_each(|table| conflicts.described(table));
        conflicts
    }

    /// The tables as they are known to have been all the time.
    pub(super) fn source_tables(&self) -> &[TableDefinition] {
        &self.source_tables
    }

    /// A table as the source has it.
    pub(super) fn source_table(&self, id: RelationId) -> Option<&TableDefinition> {
        self.source_tables.iter().find(|table| table.relation_id() == id)
    }

    /// Whether rows may have to go because the source's unique keys say so, others than those that identify the rows of these
    /// changes. The source may have dropped such a key since its catalog was read, and the stream need not tell: what may go is
    /// decided by a catalog that was read after the conflict. So it is where a partition may have identified its rows otherwise for a
    /// while: a row that is not found by the table's key need not be missing.
    pub(super) fn needs_newer_catalog(&self, changes: &[Change], catalog: &Catalog) -> bool {
        let mut asked: Vec<&Arc<Relation>> = Vec::new();
        for change in changes {
            let relation = match change {
                Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
                    relation
                }
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
        let Some(there) = self.source_table(relation.id) else { return false };
        if there.is_tree() {
            return true;
        }
        let Some(here) = catalog.table(&relation.name).or_else(|| catalog.table(&there.name())) else { return false };
        let identity: Vec<&Ident> =
            relation.columns.iter().filter(|column| column.in_identity).map(|column| &column.name).collect();
        let identifies = |unique: &Unique| {
            let named = |part: &UniquePart| match part {
                UniquePart::Column { name, .. } => identity.contains(&name),
                UniquePart::Expression { .. } => false,
            };
            unique.predicate.is_none() && unique.parts.len() == identity.len() && unique.parts.iter().all(named)
        };
        shared_uniques(there, here).iter().any(|unique| !identifies(unique))
    }

    /// Takes in a table as the stream has described it since.
    pub(super) fn described(&mut self, mut table: TableDefinition) {
        if let Some(old) = &self.old_indexes {
            let old = old.get(&table.relation_id());
            let is_old = |id: &u32| old.is_some_and(|old| old.contains(id));
            table.indexes.retain(|index| !index.unique || is_old(&index.id));
        }
        self.source_tables.retain(|known| known.relation_id() != table.relation_id());
        self.source_tables.push(table);
    }

    /// How to write a transaction. `end_lsn` is unknown while one comes in pieces.
    pub(super) fn mode(&self, commit_lsn: Lsn, end_lsn: Option<Lsn>) -> ApplyMode {
        if self.wants_out(commit_lsn, end_lsn) {
            ApplyMode::LeftOut
        } else if self.winning == Some(commit_lsn) {
            ApplyMode::Winning
        } else {
            ApplyMode::Normal
        }
    }

    /// Whether the operator wants it left out.
    pub(super) fn wants_out(&self, commit_lsn: Lsn, end_lsn: Option<Lsn>) -> bool {
        !self.skips.is_empty()
            && (self.skips.contains(&Wanted::CommitLsn(commit_lsn))
                || end_lsn.is_some_and(|end_lsn| self.skips.contains(&Wanted::EndLsn(end_lsn))))
    }

    /// Whether a transaction that failed as it is may be tried again with its rows winning.
    pub(super) fn may_win(&self, conflict: &Conflict) -> bool {
        let of_rows = match conflict.kind {
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
        of_rows && self.on_conflict == OnConflict::SourceWins && self.winning != Some(conflict.commit_lsn)
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
pub(super) struct Winning {
    counted: Vec<(QualifiedName, Effect)>,
}

impl Winning {
    /// Writes the statements of a row's change.
    pub(super) fn write(
        &mut self,
        request: &mut PipelinedRequest,
        target: &Target,
        (here, conflicts): (&TableDefinition, &Conflicts),
        role: ReplicationRole,
        change: &Change,
    ) -> Result<(), DestinationError> {
        let uniques = match conflicts.source_table(target.relation.id) {
            Some(there) if may_remove_rows(here, role == ReplicationRole::Origin) => shared_uniques(there, here),
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
        request.execute_counted(("", Verb::Any), &formats, statement.values.len(), |values| {
            statement.values.iter().for_each(|value| values.put(value.bytes()));
        });
        self.counted.push((target.table.clone(), statement.effect));
    }

    /// What the row counts say: repairs, and deletes that found no row.
    pub(super) fn conclude(self, counts: impl Iterator<Item = u64>) -> (Vec<Repair>, u64) {
        let mut repaired: BTreeMap<(QualifiedName, ConflictKind), u64> = BTreeMap::new();
        let mut missing_deletes = 0;
        for ((table, effect), count) in self.counted.into_iter().zip(counts) {
            let (kind, rows) = match effect {
                Effect::Nothing => continue,
                Effect::Deletes => {
                    missing_deletes += u64::from(count == 0);
                    continue;
                }
                Effect::RemovesRivals => (ConflictKind::UniqueViolation, count),
                Effect::Overwrites => (ConflictKind::UniqueViolation, u64::from(count == 0)),
                Effect::Restores => (ConflictKind::MissingRow, count),
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
    use crate::schema_change::constraint_difference::Violated;
    use crate::session::SqlState;

    fn conflicts(on_conflict: OnConflict) -> Conflicts {
        Conflicts::of_source(on_conflict, Vec::new())
    }

    fn conflict(kind: ConflictKind) -> Conflict {
        Conflict {
            kind,
            table: None,
            operation: None,
            key: Vec::new(),
            constraint: None,
            message: String::new(),
            code: SqlState::UNKNOWN,
            commit_lsn: Lsn::new(7),
            end_lsn: None,
            will_win: false,
            on_conflict: OnConflict::Stop,
            violated: Violated::default(),
            difference: None,
            user: None,
            change: None,
        }
    }

    #[test]
    fn rows_win_once_and_only_where_the_operator_said_so() {
        let mut chosen = conflicts(OnConflict::SourceWins);
        assert!(chosen.may_win(&conflict(ConflictKind::UniqueViolation)));
        assert!(!chosen.may_win(&conflict(ConflictKind::CheckViolation)), "the row violates it again");
        assert!(!conflicts(OnConflict::Stop).may_win(&conflict(ConflictKind::UniqueViolation)));
        chosen.winning = Some(Lsn::new(7));
        assert!(!chosen.may_win(&conflict(ConflictKind::UniqueViolation)), "it failed although it won");
        assert_eq!(chosen.mode(Lsn::new(7), None), ApplyMode::Winning);
        assert_eq!(chosen.mode(Lsn::new(8), None), ApplyMode::Normal);
    }

    #[test]
    fn the_two_names_of_a_transaction_are_not_mixed_up() {
        let mut stop = conflicts(OnConflict::Stop);
        stop.skips.insert(Wanted::EndLsn(Lsn::new(7)));
        assert_eq!(stop.mode(Lsn::new(6), Some(Lsn::new(7))), ApplyMode::LeftOut);
        assert_eq!(stop.mode(Lsn::new(7), Some(Lsn::new(8))), ApplyMode::Normal, "this one's commit_lsn is 7");
        stop.skips.insert(Wanted::CommitLsn(Lsn::new(7)));
        assert_eq!(stop.mode(Lsn::new(7), None), ApplyMode::LeftOut);
    }

    #[test]
    fn row_counts_tell_what_was_repaired() {
        let table = QualifiedName::new("public", "t");
        let effects = [
            Effect::RemovesRivals,
            Effect::Overwrites,
            Effect::Overwrites,
            Effect::Restores,
            Effect::Deletes,
            Effect::Nothing,
        ];
        let winning = Winning { counted: effects.map(|effect| (table.clone(), effect)).to_vec() };
        let (repairs, missing_deletes) = winning.conclude([2, 0, 1, 1, 0, 1].into_iter());
        let of = |kind, rows| Repair { table: table.clone(), kind, rows };
        assert_eq!(repairs, [of(ConflictKind::UniqueViolation, 3), of(ConflictKind::MissingRow, 1)]);
        assert_eq!(missing_deletes, 1);
    }
}
