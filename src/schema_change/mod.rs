//! What a destination table needs when its source table has changed.
//!
//! Asked by `destination::apply` when the stream describes a table in another way than before. In come the shape that was
//! remembered, the relation as the stream describes it, the source's catalog and the destination's; out go the statements
//! that bring the destination's table to the same state, in the stream's order, or the obstacle.
//!
//! The catalog may be ahead of the stream, and the relation carries no numbers: `columns` finds them. The number tells whether
//! a column is new, renamed, or the same. What cannot be told (which of two columns the rows have, one that was dropped and
//! added again in between, rows that a rewrite has filled) makes the table need a new copy; then the destination's table is
//! only brought to the shape of the catalog ([`TableChange::reshape`]), since the copy brings every row. The source is never trusted
//! with SQL: names are quoted, types are resolved by the destination, what old rows hold in a new column travels as a value.
//!
//! | at the source | here |
//! |---|---|
//! | column added | added; old rows get the value that the source has stored for them |
//! | column dropped | stays, without NOT NULL, and draws from its sequence no more; under another name if its own is taken |
//! | column renamed | renamed |
//! | type or modifier changed without a rewrite | the same |
//! | type or modifier changed with a rewrite | copied: nobody knows by which expression |
//! | column draws from a sequence of its own (identity, serial) | it gets one as its default |
//! | attributes of a composite type renamed | the same, when the stream starts again (`catalog::attribute_names`) |
//! | generated column added or renamed | copied, with the same expression; under its old name it stays, too |
//! | expression of a generated column replaced | copied, with the same expression |
//! | NOT NULL set or dropped, unique index created | the same; set and created only if the rows allow it by now |

mod columns;
pub mod constraint_difference;
pub mod ddl;
pub mod expression;
mod labels;
pub mod new_sequence;
mod sequence;
pub mod sql;
mod steps;

use std::collections::BTreeMap;

use crate::catalog::fit::{End, Misfit};
use crate::catalog::leaves::{self, Measured};
use crate::catalog::schema::{ColumnDefinition, TableDefinition, Types};
use crate::catalog::shape::{Shape, ShapeColumn};
use crate::pg::{Column, Ident, Lsn, QualifiedName, Relation};
use crate::schema_change::ddl::Creation;

pub use crate::schema_change::new_sequence::NewSequence;
pub use columns::numbers;
pub use labels::{KnownLabels, Labels, labels};

/// A change of a source table, and what it meets.
pub struct TableChange<'a> {
    /// What was remembered of the source's table.
    pub known: &'a Shape,
    /// The table as the stream describes it.
    pub relation: &'a Relation,
    /// The source's catalog, now or a little later.
    pub source: End<'a>,
    /// The destination's table.
    pub destination: End<'a>,
    /// Writes SQL for a table like the source's.
    pub creation: &'a Creation<'a>,
    /// What was asked of the partitions that are named: see [`leaves::named`].
    pub measured: &'a Measured,
    /// The commit_lsn of the transaction that names them.
    pub commit_lsn: Lsn,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evolution {
    /// Statements without which the rows to come do not fit.
    pub statements: Vec<String>,
    /// The columns that these statements add.
    pub added: Vec<Ident>,
    /// The hint for a statement that the destination refuses: what an operator can run in its place.
    pub remedies: BTreeMap<String, String>,
    /// Statements that put the source's values into columns that were here before.
    pub fills: Vec<String>,
    /// Statements that the rows may not allow yet, because the catalog is ahead: each is tried.
    pub attempts: Vec<AttemptedStatement>,
    /// Sequences for columns that draw from one at the source and from none here: each is tried.
    pub sequences: Vec<NewSequence>,
    /// What was done, for the operator: sentences without their full stop.
    pub told: Vec<String>,
}

/// A statement that may fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptedStatement {
    /// The statement.
    pub statement: String,
    /// What it does, for the operator.
    pub told: String,
    /// What is remembered when it fails, so that it is tried again at the table's next description.
    pub undo: Undo,
}

/// What is not remembered after an attempt has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// The column is NOT NULL.
    NotNull(i16),
    /// The unique index is there.
    Unique(Ident),
}

impl Undo {
    /// Takes it out of what is remembered.
    pub fn apply(&self, shape: &mut Shape) {
        match self {
            Undo::NotNull(number) => {
                let column = shape.columns.iter_mut().find(|column| column.number == *number);
                column.into_iter().for_each(|column| column.not_null = false);
            }
            Undo::Unique(name) => {
                shape.unique.remove(name);
            }
        }
    }
}

/// Why a change cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowObstacle {
    /// The destination's table must be changed by hand.
    Misfits(Vec<Misfit>),
    /// Only a new copy has the rows: why.
    Copy(String),
    /// The table has another name: the configuration knows it by the old one.
    Renamed(QualifiedName),
}

/// Where the rows of a changed table come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// The stream carries those that change; the destination has the others.
    Stream,
    /// All of them are copied again.
    Copy,
}

/// A column of the relation, with its number, and its definition where the catalog knows it.
struct Resolved<'a> {
    column: &'a Column,
    number: i16,
    definition: Option<&'a ColumnDefinition>,
}

impl TableChange<'_> {
    /// Decides what to do, and what to remember afterwards.
    ///
    /// # Errors
    /// [`FollowObstacle`].
    pub fn follow(&self) -> Result<(Evolution, Shape), FollowObstacle> {
        let resolved = self.resolve().map_err(FollowObstacle::Copy)?;
        let known_leaves = self.known.leaves();
        let known_leaves = match &self.source.table.partitions {
            Some(now) => leaves::named(&known_leaves, &self.relation.leaves, now, self.measured, self.commit_lsn),
            None => Ok(known_leaves),
        };
        let known_leaves = known_leaves.map_err(FollowObstacle::Copy)?;
        // One that has its old name back by now was called otherwise only for a while.
        if self.relation.name != self.known.name && self.source.table.name() != self.known.name {
            return Err(FollowObstacle::Renamed(self.relation.name.clone()));
        }
        let mut evolution = Evolution::default();
        let mut misfits = Vec::new();
        let moved = self.rename_columns(&resolved, &mut evolution, &mut misfits);
        self.let_go_of_dropped(&resolved, &moved, &mut evolution, &mut misfits);
        for resolved in &resolved {
            match self.known.column(resolved.number) {
                Some(known) => self.keep(known, resolved, Rows::Stream, &mut evolution, &mut misfits)?,
                None => self.add(resolved, Rows::Stream, &moved, &mut evolution, &mut misfits)?,
            }
        }
        self.add_unique_indexes(&mut evolution);
        if !misfits.is_empty() {
            return Err(FollowObstacle::Misfits(misfits));
        }
        let numbers: Vec<i16> = resolved.iter().map(|column| column.number).collect();
        let End { table, types } = self.source;
        Ok((evolution, followed(self.known, self.relation, &numbers, table, types).with_leaves(known_leaves)))
    }

    /// Decides how a table that is copied again takes the source's rows, and what to remember of it. The relation is the
    /// catalog's own. Nothing that the old rows may violate (NOT NULL, unique indexes) is promised yet: it is followed
    /// when the stream describes the table next. Sequences depend on no rows.
    ///
    /// # Errors
    /// [`FollowObstacle::Misfits`].
    pub fn reshape(&self) -> Result<(Evolution, Shape), FollowObstacle> {
        let columns = self.relation.columns.iter();
        let resolved: Vec<Resolved<'_>> = columns
            .filter_map(|column| {
                let definition = self.source.table.column(&column.name)?;
                Some(Resolved { column, number: definition.number, definition: Some(definition) })
            })
            .collect();
        let mut evolution = Evolution::default();
        let mut misfits = Vec::new();
        let moved = self.rename_columns(&resolved, &mut evolution, &mut misfits);
        self.let_go_of_dropped(&resolved, &moved, &mut evolution, &mut misfits);
        for resolved in &resolved {
            match self.known.column(resolved.number) {
                Some(known) => self.keep(known, resolved, Rows::Copy, &mut evolution, &mut misfits)?,
                None => self.add(resolved, Rows::Copy, &moved, &mut evolution, &mut misfits)?,
            }
        }
        self.set_generated(&mut evolution);
        evolution.attempts.clear();
        if !misfits.is_empty() {
            return Err(FollowObstacle::Misfits(misfits));
        }
        let mut shape = Shape::of(self.source.table, self.source.types, |name| {
            resolved.iter().any(|resolved| resolved.column.name == *name)
        });
        shape = shape.without_new_promises(Some(self.known));
        for column in &mut shape.columns {
            column.not_null &= self.known.column(column.number).is_some_and(|known| known.not_null);
            // It is tried now.
            column.sequence = self.source.table.column(&column.name).is_some_and(|now| now.own_sequence().is_some());
        }
        Ok((evolution, shape))
    }

    fn resolve(&self) -> Result<Vec<Resolved<'_>>, String> {
        let numbers = columns::numbers(self.known, self.relation, self.source.table)?;
        Ok(resolved(self.relation, &numbers, self.source.table))
    }
}

fn resolved<'a>(relation: &'a Relation, numbers: &[i16], table: &'a TableDefinition) -> Vec<Resolved<'a>> {
    let resolved = relation.columns.iter().zip(numbers).map(|(column, number)| {
        let mut live = table.columns.iter().filter(|live| live.number == *number);
        let definition = live.find(|live| live.name == column.name && columns::is_of_type(live, column));
        Resolved { column, number: *number, definition }
    });
    resolved.collect()
}

/// What is known of a table once a description with these column numbers has been followed. The catalog may be ahead of it.
pub fn followed(known: &Shape, relation: &Relation, numbers: &[i16], table: &TableDefinition, types: &Types) -> Shape {
    let resolved = resolved(relation, numbers, table);
    let now = Shape::of(table, types, |_| false);
    let highest = numbers.iter().copied().max().unwrap_or(0);
    let current = is_current(known, relation, &resolved, table);
    let column = |resolved: &Resolved<'_>| {
        let before = known.column(resolved.number);
        ShapeColumn {
            number: resolved.number,
            name: resolved.column.name.clone(),
            type_id: resolved.column.type_id,
            type_modifier: resolved.column.type_modifier,
            not_null: match resolved.definition {
                // A column is added without NOT NULL where no value comes with it: that is followed when the table is described next.
                Some(definition) => {
                    definition.is_never_null() && (before.is_some() || definition.missing_value.is_some())
                }
                None => before.is_some_and(|known| known.not_null),
            },
            sequence: match resolved.definition {
                Some(definition) => definition.own_sequence().is_some(),
                None => before.is_some_and(|known| known.sequence),
            },
        }
    };
    Shape {
        name: known.name.clone(),
        columns: resolved.iter().map(column).collect(),
        // A rewrite that the stream has not come to yet must still be noticed then.
        attributes: if current { now.attributes } else { known.attributes.max(highest) },
        storage: if current { now.storage } else { known.storage.clone() },
        files: if current { now.files } else { known.files.clone() },
        partitions: known.partitions.clone(),
        empty_partitions: known.empty_partitions.clone(),
        unique: now.unique,
        keys: now.keys,
        labels: now.labels,
    }
}

/// Whether the catalog shows the table just as the stream describes it: it has no column that is new and does not come.
fn is_current(known: &Shape, relation: &Relation, resolved: &[Resolved<'_>], table: &TableDefinition) -> bool {
    let comes = |column: &ColumnDefinition| relation.columns.iter().any(|c| c.name == column.name);
    let mut columns = table.columns.iter();
    columns.all(|column| comes(column) || column.number <= known.attributes || column.generated.is_some())
        && resolved.iter().all(|column| column.definition.is_some())
}

#[cfg(test)]
mod tests;
