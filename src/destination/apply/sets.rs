//! Changes by their net effect: few statements over many rows.
//!
//! Writes into the pipelined request that `apply` sends. What is gathered between two truncates, or two descriptions of a table,
//! is folded by `apply_plan::coalesce` and written the way that `apply_plan::sets` chooses. A few rows are not worth it: they go one by
//! one, as they came.

use std::sync::Arc;

use super::super::error::DestinationError;
use super::super::formats::format_of;
use super::Applier;
use super::bind::{Prepared, SetStatement};
use crate::apply_plan::coalesce::{Known, NetEffect, Part};
use crate::apply_plan::net_effect::{Effect, NetRow};
use crate::apply_plan::row_by_row::{self, Shape};
use crate::apply_plan::sets::{self, WriteMethod};
use crate::apply_plan::target::Target;
use crate::apply_plan::target_guard::is_target;
use crate::apply_plan::{Batch, sql};
use crate::catalog::fit::Transfer;
use crate::pg::{Datum, Lsn, Tuple};
use crate::session::{Format, PipelinedRequest, Verb};
use crate::sql::table_guard::{LockMode, lock, refuse_others};
use crate::transaction::Change;

/// Fewer changes than this are not folded: each would be a statement of its own anyway.
const NET_ROWS_MIN: usize = 5;

impl Applier {
    /// Writes a batch by its net effect.
    pub(super) fn write_batch_net(
        &mut self,
        request: &mut PipelinedRequest,
        batch: &Batch,
    ) -> Result<(), DestinationError> {
        let mut begin = 0;
        for member in &batch.members {
            self.gather(request, &batch.changes, begin..member.changes_end, member.commit.commit_lsn)?;
            begin = member.changes_end;
        }
        self.write_gathered(request, &batch.changes)
    }

    /// Writes a piece of a large transaction by its net effect.
    pub(super) fn write_changes_net(
        &mut self,
        request: &mut PipelinedRequest,
        changes: &[Change],
        commit_lsn: Lsn,
    ) -> Result<(), DestinationError> {
        self.gather(request, changes, 0..changes.len(), commit_lsn)?;
        self.write_gathered(request, changes)
    }

    /// Takes in changes of one transaction; what must come before a truncate is written before it.
    fn gather(
        &mut self,
        request: &mut PipelinedRequest,
        changes: &[Change],
        range: std::ops::Range<usize>,
        commit_lsn: Lsn,
    ) -> Result<(), DestinationError> {
        for at in range {
            let Some(change) = changes.get(at) else { break };
            let relation = match change {
                Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
                    relation
                }
                Change::Truncate { .. } => {
                    self.write_gathered(request, changes)?;
                    self.write_changes(request, std::slice::from_ref(change), commit_lsn)?;
                    continue;
                }
            };
            if !self.is_live(relation.id, commit_lsn) {
                continue;
            }
            self.check_identified(relation, change)?;
            let table = match self.net.known(relation) {
                Known::Table(table) => table,
                known @ (Known::New | Known::Redefined) => {
                    if known == Known::Redefined {
                        self.write_gathered(request, changes)?;
                    }
                    self.bind(relation)?;
                    let Some(bound) = self.bound.get(&relation.id) else { continue };
                    self.net.add_table(Arc::clone(relation), Arc::clone(&bound.target))
                }
            };
            self.net.push(table, u32::try_from(at).expect("a batch is bounded in bytes"), change);
        }
        Ok(())
    }

    fn write_gathered(&mut self, request: &mut PipelinedRequest, changes: &[Change]) -> Result<(), DestinationError> {
        if self.net.is_empty() {
            return Ok(());
        }
        let mut net = std::mem::take(&mut self.net);
        let written = if net.len() < NET_ROWS_MIN {
            self.write_in_order(request, changes, &net.in_order())
        } else {
            let effect = net.effect(changes, self.foreign_keys_act);
            effect.parts.iter().try_for_each(|part| match part {
                Part::InOrder(places) => self.write_in_order(request, changes, places),
                Part::Set { table, effect: what, rows } => {
                    let target = Arc::clone(net.target(*table));
                    self.write_set(request, changes, &effect, (&target, what, rows))
                }
            })
        };
        net.clear();
        self.net = net;
        written
    }

    fn write_in_order(
        &mut self,
        request: &mut PipelinedRequest,
        changes: &[Change],
        places: &[u32],
    ) -> Result<(), DestinationError> {
        for change in places.iter().filter_map(|place| changes.get(*place as usize)) {
            match change {
                Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
                    self.write_row(request, relation, change)?;
                }
                Change::Truncate { .. } => {}
            }
        }
        Ok(())
    }

    fn write_set(
        &mut self,
        request: &mut PipelinedRequest,
        changes: &[Change],
        net: &NetEffect,
        (target, effect, rows): (&Arc<Target>, &Effect, &[NetRow]),
    ) -> Result<(), DestinationError> {
        let Some(first) = rows.first() else { return Ok(()) };
        // Values of one set have one format; a row of nothing but NULL does not show it.
        let typed = |row: &&NetRow| net.image(**row, changes).columns().any(|value| value.bytes().is_some());
        let sample = net.image(*rows.iter().find(typed).unwrap_or(first), changes);
        match sets::way(target, effect, rows.len(), sample) {
            WriteMethod::Rows => self.write_rows(request, changes, net, (target, effect, rows)),
            WriteMethod::Arrays => {
                let binary = !sample.columns().any(|value| matches!(value, Datum::Text(_)));
                self.write_arrays(request, changes, net, (target, effect, rows), binary);
                Ok(())
            }
            way @ (WriteMethod::CopyText | WriteMethod::CopyBinary) => {
                // The partitions of a table are found through it, whatever they are called.
                let locking = self.prepare_set(request, target, &SetStatement::Lock, || {
                    (lock(&format!("ONLY {}", target.table.sql()), LockMode::RowExclusive), Vec::new())
                });
                let guard = self.prepare_set(request, target, &SetStatement::RefuseOthers, || {
                    (refuse_others(std::iter::once(is_target(target))), Vec::new())
                });
                request.execute(locking.statement(), &[], locking.parameters, |_| {});
                request.execute(guard.statement(), &[], guard.parameters, |_| {});
                let prepared = self.prepare_set(request, target, &SetStatement::Copy(way), || {
                    (sql::copy_rows(target, way == WriteMethod::CopyBinary), Vec::new())
                });
                let columns = i16::try_from(target.stored_columns().count()).unwrap_or(i16::MAX);
                request.copy(&prepared.name, |data| {
                    data.row(|out| sets::copy_begin(out, way));
                    for row in rows {
                        let image = net.image(*row, changes);
                        data.row(|out| sets::copy_row(out, way, target, columns, image));
                    }
                    data.row(|out| sets::copy_end(out, way));
                });
                request.execute(guard.statement(), &[], guard.parameters, |_| {});
                self.expected_counts.push(rows.len() as u64);
                Ok(())
            }
        }
    }

    /// A statement for each row.
    fn write_rows(
        &mut self,
        request: &mut PipelinedRequest,
        changes: &[Change],
        net: &NetEffect,
        (target, effect, rows): (&Arc<Target>, &Effect, &[NetRow]),
    ) -> Result<(), DestinationError> {
        let shape = match effect {
            Effect::Delete => Shape::Delete,
            Effect::Update(set) => Shape::Update { set: set.clone() },
            Effect::Insert => Shape::Insert,
        };
        let prepared = self.prepare_row(request, target, &shape);
        for row in rows {
            let (key, image) = (net.key(*row, changes), net.image(*row, changes));
            self.write_prepared(request, target, &prepared, &shape, (key, image));
        }
        Ok(())
    }

    /// One statement over arrays.
    fn write_arrays(
        &mut self,
        request: &mut PipelinedRequest,
        changes: &[Change],
        net: &NetEffect,
        (target, effect, rows): (&Arc<Target>, &Effect, &[NetRow]),
        binary: bool,
    ) {
        let (statement, set): (_, &[usize]) = match effect {
            Effect::Update(set) => (SetStatement::Update(set.clone()), set),
            Effect::Delete | Effect::Insert => (SetStatement::Delete, &[]),
        };
        let prepared = self.prepare_set(request, target, &statement, || {
            (sets::arrays_sql(target, effect), sets::arrays_types(target, effect))
        });
        let key = sets::key_of(target);
        let format = if binary { Format::Binary } else { Format::Text };
        self.formats.clear();
        self.formats.resize(set.len() + key.len(), format);
        let counted = matches!(effect, Effect::Update(_));
        if counted {
            self.formats.push(Format::Binary);
        }
        let count = rows.len() as u64;
        let write = |values: &mut crate::session::Parameters<'_>| {
            // Rows lie row by row, arrays are written column by column: a cursor for each row moves along.
            let mut cursors: Vec<_> = match set {
                [] => Vec::new(),
                _ => rows.iter().map(|row| net.image(*row, changes).columns()).collect(),
            };
            let mut wanted = set.iter().peekable();
            for place in 0..set.last().map_or(0, |last| last + 1) {
                let column = wanted.next_if_eq(&&place).and_then(|place| target.column(*place));
                let value = cursors.iter_mut().map(|cursor| cursor.next().unwrap_or(Datum::Null));
                match column {
                    Some(column) => values.put_with(|out| sets::write_array(out, column, binary, rows.len(), value)),
                    None => value.for_each(drop),
                }
            }
            for place in key {
                let Some(column) = target.key_column(*place) else { continue };
                let of_row = |row: &NetRow| net.key(*row, changes).columns().nth(*place).unwrap_or(Datum::Null);
                values.put_with(|out| sets::write_array(out, column, binary, rows.len(), rows.iter().map(of_row)));
            }
            if counted {
                values.put(Some(&count.to_be_bytes()));
            }
        };
        if counted {
            request.execute(prepared.statement(), &self.formats, prepared.parameters, write);
        } else {
            request.execute_counted(prepared.statement(), &self.formats, prepared.parameters, write);
            self.expected_counts.push(count);
        }
    }

    /// The prepared statement of a set; `make` gives its SQL and its parameters' types.
    fn prepare_set(
        &mut self,
        request: &mut PipelinedRequest,
        target: &Target,
        statement: &SetStatement,
        make: impl FnOnce() -> (String, Vec<crate::pg::TypeId>),
    ) -> Prepared {
        let known = self.bound.get(&target.relation.id).and_then(|bound| bound.sets.get(statement));
        if let Some(known) = known {
            return known.clone();
        }
        let (sql, types) = make();
        let verb = match statement {
            SetStatement::Delete => Verb::Delete,
            // Behind the count that it checks.
            SetStatement::Update(_) | SetStatement::RefuseOthers => Verb::Select,
            SetStatement::Lock => Verb::Lock,
            SetStatement::Copy(_) => Verb::Copy,
        };
        let prepared = self.new_prepared(request, types.len(), verb);
        request.parse(&prepared.name, &sql, &types);
        if let Some(bound) = self.bound.get_mut(&target.relation.id) {
            bound.sets.insert(statement.clone(), prepared.clone());
        }
        prepared
    }

    /// Writes a row through a prepared statement.
    pub(super) fn write_prepared(
        &mut self,
        request: &mut PipelinedRequest,
        target: &Target,
        prepared: &Prepared,
        shape: &Shape,
        (key, image): (&Tuple, &Tuple),
    ) {
        // A stream's values have one format.
        let nulls = match self.settings.transfer {
            Transfer::Binary => Format::Binary,
            Transfer::Text => Format::Text,
        };
        self.formats.clear();
        row_by_row::row_parameters(target, shape, key, image, |value| self.formats.push(format_of(value, nulls)));
        let write = |values: &mut crate::session::Parameters<'_>| {
            row_by_row::row_parameters(target, shape, key, image, |value| values.put(value.bytes()));
        };
        match shape {
            Shape::Delete => {
                request.execute_counted(prepared.statement(), &self.formats, prepared.parameters, write);
                self.expected_counts.push(1);
            }
            Shape::Insert | Shape::Update { .. } => {
                request.execute(prepared.statement(), &self.formats, prepared.parameters, write);
            }
        }
    }
}
