//! Changes one by one, in the order in which they came: a prepared statement for each.
//!
//! Writes into the request that an [`Encoder`] holds. Statements are prepared once for each table and kind of change and then only
//! bound. Values are taken straight from the change's tuples: nothing is allocated for a row, and a large value is sent from where it lies.

use std::sync::Arc;

use super::encoder::{CountedRows, Encoder};
use super::prepared::PreparedStatement;
use crate::apply_plan::row_by_row::{self, RowStatement};
use crate::apply_plan::sql;
use crate::apply_plan::target::Target;
use crate::catalog::fit::Transfer;
use crate::config::TruncateMode;
use crate::destination::error::DestinationError;
use crate::destination::formats::format_of;
use crate::pg::{Lsn, Relation, Tuple};
use crate::session::{Format, LARGE_VALUE_BYTES, StatementParameters};
use crate::transaction::{Change, RowChange};

/// Changes of one transaction.
#[derive(Clone, Copy)]
pub(super) struct TransactionChanges<'a> {
    /// The index of the first of them in the task.
    pub(super) first: usize,
    pub(super) changes: &'a [Change],
    pub(super) commit_lsn: Lsn,
}

impl Encoder<'_> {
    /// Writes changes as they came.
    pub(super) fn write_in_order(&mut self, part: TransactionChanges<'_>) -> Result<(), DestinationError> {
        for (index, change) in (part.first..).zip(part.changes) {
            self.begin_change(Some(index));
            self.write_change(change, part.commit_lsn)?;
        }
        Ok(())
    }

    /// Writes a change, unless its table's snapshot holds it already.
    pub(super) fn write_change(&mut self, change: &Change, commit_lsn: Lsn) -> Result<(), DestinationError> {
        match change {
            Change::Row(row) if self.map.is_live(row.relation().id, commit_lsn) => self.write_row(row),
            Change::Row(_) => Ok(()),
            Change::Truncate { relations, restart_identity } => {
                self.write_truncate(relations, *restart_identity, commit_lsn)
            }
        }
    }

    /// Writes a TRUNCATE, of those tables whose snapshot does not hold it already.
    fn write_truncate(
        &mut self,
        relations: &[Arc<Relation>],
        restart_identity: bool,
        commit_lsn: Lsn,
    ) -> Result<(), DestinationError> {
        let mut targets = Vec::new();
        for relation in relations {
            if self.map.is_live(relation.id, commit_lsn) {
                targets.push(self.map.bind(relation)?);
            }
        }
        // TRUNCATE refuses a table without those that refer to it.
        let whole = targets.len() == relations.len();
        let mode = if whole { self.map.settings.truncate } else { TruncateMode::Delete };
        match mode {
            TruncateMode::Truncate if targets.is_empty() => {}
            TruncateMode::Truncate => {
                if self.map.foreign_keys_act() {
                    // TRUNCATE refuses a table whose rows are not checked yet. At the source they were, by now.
                    self.request.run("SET CONSTRAINTS ALL IMMEDIATE");
                }
                let targets: Vec<&Target> = targets.iter().map(Arc::as_ref).collect();
                sql::truncate(&targets, restart_identity).iter().for_each(|statement| self.request.run(statement));
                self.defer_foreign_keys();
            }
            TruncateMode::Delete => targets.iter().for_each(|target| self.request.run(&sql::delete_all(target))),
        }
        Ok(())
    }

    /// Writes a row's change.
    pub(super) fn write_row(&mut self, change: &RowChange) -> Result<(), DestinationError> {
        let target = self.map.bind(change.relation())?;
        self.map.check_identified(change)?;
        if let CountedRows::Overwrite(counts) = &mut self.counts {
            let Some(table) = self.map.catalog.table(&target.table) else { return Ok(()) };
            let source = self.map.source_tables.get(target.relation.id);
            return counts.write(&mut self.request, &target, table, source, self.map.role, change);
        }
        let Some(statement) = row_by_row::statement(&target, change)? else { return Ok(()) };
        let prepared = self.prepare_row(&target, &statement);
        self.write_prepared(&target, &prepared, &statement, RowValues::of(change));
        Ok(())
    }

    /// Writes a row through a prepared statement.
    pub(super) fn write_prepared(
        &mut self,
        target: &Target,
        prepared: &PreparedStatement,
        statement: &RowStatement,
        RowValues { key, image }: RowValues<'_>,
    ) {
        // A stream's values have one format.
        let nulls = match self.map.settings.transfer {
            Transfer::Binary => Format::Binary,
            Transfer::Text => Format::Text,
        };
        self.formats.clear();
        row_by_row::row_parameters(target, statement, key, image, |value| self.formats.push(format_of(value, nulls)));
        let write = |values: &mut StatementParameters<'_>| {
            row_by_row::row_parameters(target, statement, key, image, |value| {
                let large = value.bytes().filter(|value| value.len() >= LARGE_VALUE_BYTES);
                match large.and_then(|large| image.share(large).or_else(|| key.share(large))) {
                    Some(shared) => values.put_shared(shared),
                    None => values.put(value.bytes()),
                }
            });
        };
        let (name, parameters) = (prepared.statement(), prepared.parameters);
        match statement {
            RowStatement::Delete => {
                self.request.execute_counted(name, &self.formats, parameters, write);
                self.expect(1);
            }
            RowStatement::Insert | RowStatement::Update { .. } => {
                self.request.execute(name, &self.formats, parameters, write);
            }
        }
    }
}

/// By what a row is found, and what it is to be.
#[derive(Clone, Copy)]
pub(super) struct RowValues<'a> {
    pub(super) key: &'a Tuple,
    pub(super) image: &'a Tuple,
}

impl RowValues<'_> {
    fn of(change: &RowChange) -> RowValues<'_> {
        RowValues { key: change.identity(), image: change.image() }
    }
}
