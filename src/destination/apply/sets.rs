//! Changes by their net effect: few statements over many rows.
//!
//! Writes into the request that an [`Encoder`] holds. What is gathered between two truncates, or two descriptions of a table,
//! is folded by `apply_plan::coalesce` and written by the method that `apply_plan::sets` chooses. A few rows are not worth it: they
//! are written one by one, as they came.

use std::sync::Arc;

use super::encoder::Encoder;
use super::prepared::SetStatement;
use super::rows::{RowValues, TransactionChanges};
use crate::apply_plan::coalesce::{Coalescer, KnownTable, NetEffect, NetPart};
use crate::apply_plan::net_effect::{NetRow, SetEffect};
use crate::apply_plan::row_by_row::RowStatement;
use crate::apply_plan::sets::{self, WriteMethod};
use crate::apply_plan::target::Target;
use crate::destination::error::DestinationError;
use crate::pg::Datum;
use crate::session::{Format, StatementParameters};
use crate::transaction::Change;

/// Fewer changes than this are not folded: each would be a statement of its own anyway.
pub(super) const COALESCED_ROWS_MIN: usize = 5;
/// A set with a row of this size is written row by row: its other rows are few, as pieces of a transaction are bounded in bytes.
const LARGE_ROW_BYTES: usize = 16 << 20;

/// A set of rows of one table, to which the same is done.
#[derive(Clone, Copy)]
struct RowSet<'a> {
    target: &'a Arc<Target>,
    effect: &'a SetEffect,
    rows: &'a [NetRow],
    net: &'a NetEffect<'a>,
}

impl Encoder<'_> {
    /// Writes changes by their net effect.
    pub(super) fn write_coalesced<'a>(
        &mut self,
        parts: impl Iterator<Item = TransactionChanges<'a>>,
    ) -> Result<(), DestinationError> {
        let mut coalescer = Coalescer::default();
        for part in parts {
            self.gather(&mut coalescer, part)?;
        }
        self.write_gathered(&mut coalescer)
    }

    /// Takes in changes of one transaction; what must come before a truncate is written before it.
    fn gather<'a>(
        &mut self,
        coalescer: &mut Coalescer<'a>,
        part: TransactionChanges<'a>,
    ) -> Result<(), DestinationError> {
        for (index, change) in (part.first..).zip(part.changes) {
            let row = match change {
                Change::Row(row) => row,
                Change::Truncate { .. } => {
                    self.write_gathered(coalescer)?;
                    self.begin_change(Some(index));
                    self.write_change(change, part.commit_lsn)?;
                    self.begin_change(None);
                    continue;
                }
            };
            let relation = row.relation();
            if !self.map.is_live(relation.id, part.commit_lsn) {
                continue;
            }
            self.map.check_identified(row)?;
            let table = match coalescer.known(relation) {
                KnownTable::Number(table) => table,
                known @ (KnownTable::New | KnownTable::Redefined) => {
                    if known == KnownTable::Redefined {
                        self.write_gathered(coalescer)?;
                    }
                    coalescer.add_table(Arc::clone(relation), self.map.bind(relation)?)
                }
            };
            coalescer.push(table, row);
        }
        Ok(())
    }

    /// Writes what was gathered, and forgets it.
    fn write_gathered(&mut self, coalescer: &mut Coalescer<'_>) -> Result<(), DestinationError> {
        if coalescer.len() < COALESCED_ROWS_MIN {
            coalescer.changes().try_for_each(|change| self.write_row(change))?;
        } else {
            let net = coalescer.effect(self.map.foreign_keys_act());
            for part in &net.parts {
                match part {
                    NetPart::InOrder(numbers) => {
                        numbers.iter().try_for_each(|number| self.write_row(net.change(*number)))?;
                    }
                    NetPart::Set { table, effect, rows } => {
                        self.write_set(RowSet { target: coalescer.target(*table), effect, rows, net: &net });
                    }
                }
            }
        }
        coalescer.clear();
        Ok(())
    }

    fn write_set(&mut self, set: RowSet<'_>) {
        let RowSet { target, effect, rows, net } = set;
        let Some(first) = rows.first() else { return };
        // Values of one set have one format; a row of nothing but NULL does not show it.
        let typed = |row: &&NetRow| net.image(**row).columns().any(|value| value.bytes().is_some());
        let sample = net.image(*rows.iter().find(typed).unwrap_or(first));
        // Other statements hold a copy of each value.
        if rows.iter().any(|row| net.image(*row).size_bytes() >= LARGE_ROW_BYTES) {
            return self.write_rows(set);
        }
        match sets::write_method(target, effect, rows.len(), sample) {
            WriteMethod::Rows => self.write_rows(set),
            WriteMethod::Arrays => {
                let is_text = sample.columns().any(|value| matches!(value, Datum::Text(_)));
                self.write_arrays(set, if is_text { Format::Text } else { Format::Binary });
            }
            method @ (WriteMethod::CopyText | WriteMethod::CopyBinary) => self.write_copy(set, method),
        }
    }

    /// A statement for each row.
    fn write_rows(&mut self, RowSet { target, effect, rows, net }: RowSet<'_>) {
        let statement = match effect {
            SetEffect::Delete => RowStatement::Delete,
            SetEffect::Update(set) => RowStatement::Update { set: set.clone() },
            SetEffect::Insert => RowStatement::Insert,
        };
        let prepared = self.prepare_row(target, &statement);
        for row in rows {
            let values = RowValues { key: net.key(*row), image: net.image(*row) };
            self.write_prepared(target, &prepared, &statement, values);
        }
    }

    /// One COPY, of the table that it is meant for.
    fn write_copy(&mut self, RowSet { target, rows, net, .. }: RowSet<'_>, method: WriteMethod) {
        let locking = self.prepare_set(target, &SetStatement::Lock);
        let guard = self.prepare_set(target, &SetStatement::RefuseOthers);
        self.request.execute(locking.statement(), &[], locking.parameters, |_| {});
        self.request.execute(guard.statement(), &[], guard.parameters, |_| {});
        let prepared = self.prepare_set(target, &SetStatement::Copy(method));
        let columns = i16::try_from(target.stored_columns().count());
        let columns = columns.expect("a table has at most 1,600 columns");
        self.request.copy(prepared.statement().name, |data| {
            data.row(|out| sets::copy_begin(out, method));
            for row in rows {
                let image = net.image(*row);
                data.row(|out| sets::copy_row(out, method, target, columns, image));
            }
            data.row(|out| sets::copy_end(out, method));
        });
        self.request.execute(guard.statement(), &[], guard.parameters, |_| {});
        self.expect(rows.len() as u64);
    }

    /// One statement over arrays.
    fn write_arrays(&mut self, RowSet { target, effect, rows, net }: RowSet<'_>, format: Format) {
        let (statement, set): (_, &[usize]) = match effect {
            SetEffect::Update(set) => (SetStatement::Update(set.clone()), set),
            SetEffect::Delete | SetEffect::Insert => (SetStatement::Delete, &[]),
        };
        let prepared = self.prepare_set(target, &statement);
        let key = sets::key_of(target);
        self.formats.clear();
        self.formats.resize(set.len() + key.len(), format);
        let counted = matches!(effect, SetEffect::Update(_));
        if counted {
            self.formats.push(Format::Binary);
        }
        let count = rows.len() as u64;
        let binary = format == Format::Binary;
        let write = |values: &mut StatementParameters<'_>| {
            // Rows lie row by row, arrays are written column by column: a cursor for each row moves along.
            let mut cursors: Vec<_> = match set {
                [] => Vec::new(),
                _ => rows.iter().map(|row| net.image(*row).columns()).collect(),
            };
            let mut wanted = set.iter().peekable();
            for index in 0..set.last().map_or(0, |last| last + 1) {
                let column = wanted.next_if_eq(&&index).and_then(|index| target.column(*index));
                let value = cursors.iter_mut().map(|cursor| cursor.next().unwrap_or(Datum::Null));
                match column {
                    Some(column) => values.put_with(|out| sets::write_array(out, column, binary, rows.len(), value)),
                    None => value.for_each(drop),
                }
            }
            for index in key {
                let Some(column) = target.key_column(*index) else { continue };
                let of_row = |row: &NetRow| net.key(*row).columns().nth(*index).unwrap_or(Datum::Null);
                values.put_with(|out| sets::write_array(out, column, binary, rows.len(), rows.iter().map(of_row)));
            }
            if counted {
                values.put(Some(&count.to_be_bytes()));
            }
        };
        if counted {
            self.request.execute(prepared.statement(), &self.formats, prepared.parameters, write);
        } else {
            self.request.execute_counted(prepared.statement(), &self.formats, prepared.parameters, write);
            self.expect(count);
        }
    }
}
