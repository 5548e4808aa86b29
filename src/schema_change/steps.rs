//! The steps of an evolution, each for one kind of difference.
//!
//! Called by [`TableChange::follow`] and [`TableChange::reshape`] once every column of the relation has its number. What fits nowhere
//! becomes a [`Misfit`] with the statement that fixes it.

use std::collections::{BTreeMap, BTreeSet};

use super::{AttemptedStatement, Evolution, FollowObstacle, Resolved, Rows, TableChange, Undo};
use crate::catalog::fit::{self, Misfit};
use crate::catalog::schema::{ColumnDefinition, GeneratedColumn, IndexDefinition};
use crate::catalog::shape::ShapeColumn;
use crate::pg::{Column, Ident};
use crate::schema_change::constraint_difference::index_drops;
use crate::schema_change::sql;

impl TableChange<'_> {
    /// Renames in two steps where names change hands. A dropped column whose name another one takes is renamed, too; returns the new
    /// names of such columns, by number.
    pub(super) fn rename_columns(
        &self,
        resolved: &[Resolved<'_>],
        evolution: &mut Evolution,
        misfits: &mut Vec<Misfit>,
    ) -> BTreeMap<i16, Ident> {
        let table = self.destination.table;
        let mut renames = Vec::new();
        for column in resolved {
            let Some(known) = self.known.column(column.number) else { continue };
            let (old, new) = (&known.name, &column.column.name);
            // The operator may have been first.
            if old != new && table.column(old).is_some() {
                renames.push((old, new));
            }
        }
        let leaving: BTreeSet<&Ident> = renames.iter().map(|(old, _)| *old).collect();
        let mut moved = BTreeMap::new();
        let mut second = Vec::new();
        for (old, new) in renames {
            let dropped = self.dropped(resolved).find(|dropped| dropped.name == *new);
            if let Some(dropped) = dropped.filter(|_| table.column(new).is_some()) {
                let name = self.free_name(new, resolved);
                evolution.statements.push(sql::rename_column(&self.known.name, new, &name));
                moved.insert(dropped.number, name);
                second.push(sql::rename_column(&self.known.name, old, new));
            } else if table.column(new).is_some() && !leaving.contains(new) {
                let name = table.name();
                misfits.push(Misfit {
                    problem: format!(
                        "column {old} is now called {new} at the source, but here another column is called so"
                    ),
                    remedy: Some(format!(
                        "ALTER TABLE {name} RENAME COLUMN {new} TO {};",
                        self.another_name(misfits.len())
                    )),
                });
                continue;
            } else if table.column(new).is_some() {
                let between = Ident::new(format!("headwater renames {}", second.len()));
                evolution.statements.push(sql::rename_column(&self.known.name, old, &between));
                second.push(sql::rename_column(&self.known.name, &between, new));
            } else {
                second.push(sql::rename_column(&self.known.name, old, new));
            }
            evolution.told.push(format!("column {old} is now called {new}"));
        }
        evolution.statements.extend(second);
        for (dropped, name) in self.in_the_way(resolved, &moved) {
            evolution.statements.push(sql::rename_column(&self.known.name, &dropped.name, &name));
            moved.insert(dropped.number, name);
        }
        moved
    }

    /// Dropped columns of the primary key here whose name a new column takes, with a type that theirs does not hold; and their new names.
    /// Only the operator may give up the key; a report says so once it is about a column of its own.
    fn in_the_way(&self, resolved: &[Resolved<'_>], moved: &BTreeMap<i16, Ident>) -> Vec<(&ShapeColumn, Ident)> {
        let dropped = self.known.columns.iter().filter(|known| {
            self.dropped(resolved).any(|dropped| dropped.number == known.number) && !moved.contains_key(&known.number)
        });
        let is_in_the_way = |dropped: &&ShapeColumn| {
            let mut new = resolved.iter().filter(|column| self.known.column(column.number).is_none());
            let here =
                self.destination.table.column(&dropped.name).filter(|here| self.primary_key_with(&here.name).is_some());
            new.find(|column| column.column.name == dropped.name).zip(here).is_some_and(|(new, here)| {
                !fit::column_takes(new.column, self.source.types, here, self.destination.types)
            })
        };
        dropped.filter(is_in_the_way).map(|dropped| (dropped, self.free_name(&dropped.name, resolved))).collect()
    }

    /// The columns that were known and are gone. One that does not come and is still there is not published.
    fn dropped<'s>(&'s self, resolved: &'s [Resolved<'_>]) -> impl Iterator<Item = &'s ShapeColumn> {
        let comes = |known: &ShapeColumn| resolved.iter().any(|column| column.number == known.number);
        let is_there = |known: &ShapeColumn| self.source.table.columns.iter().any(|live| live.number == known.number);
        self.known.columns.iter().filter(move |known| !comes(known) && !is_there(known))
    }

    /// A name for a column that was dropped at the source and stays at the destination.
    fn free_name(&self, name: &Ident, resolved: &[Resolved<'_>]) -> Ident {
        let is_taken = |name: &Ident| {
            self.destination.table.column(name).is_some()
                || self.known.columns.iter().any(|known| known.name == *name)
                || resolved.iter().any(|column| column.column.name == *name)
        };
        let suffixes = std::iter::once("_dropped".to_owned()).chain((2..).map(|number| format!("_dropped{number}")));
        suffixes
            .map(|suffix| name.with_suffix(&suffix))
            .find(|name| !is_taken(name))
            .expect("a table has not all names")
    }

    /// Columns that do not come any more stay, and must not ask for values. `moved`: those that have got another name.
    pub(super) fn let_go_of_dropped(
        &self,
        resolved: &[Resolved<'_>],
        moved: &BTreeMap<i16, Ident>,
        evolution: &mut Evolution,
        misfits: &mut Vec<Misfit>,
    ) {
        let table = self.destination.table;
        for known in self.dropped(resolved) {
            let Some(here) = table.column(&known.name) else { continue };
            let moved = moved.get(&known.number);
            let taken = moved.is_none() && resolved.iter().any(|column| column.column.name == known.name);
            // Its sequence follows nobody any more: what it gave out might be there already.
            let draws = here.own_sequence().is_some() && !taken;
            let filled = !draws && (here.default.is_some() || here.identity.is_some() || here.generated.is_some());
            let name = moved.unwrap_or(&known.name);
            if let Some(misfit) = self.key_misfit(&known.name, "was dropped at the source").filter(|_| !taken) {
                misfits.push(misfit);
                continue;
            }
            if draws {
                evolution.statements.push(sql::draw_no_more(&self.known.name, name, here.identity.is_some()));
            }
            if here.not_null && !filled && !taken {
                evolution.statements.push(sql::drop_not_null(&self.known.name, name));
            }
            let stays = moved.map_or_else(String::new, |name| format!(" as {name}"));
            evolution.told.push(format!("column {} was dropped at the source; it stays here{stays}", known.name));
        }
    }

    /// The primary key of the destination's table, where a column is part of it.
    fn primary_key_with(&self, column: &Ident) -> Option<&IndexDefinition> {
        let mut indexes = self.destination.table.indexes.iter();
        indexes.find(|key| key.primary && key.key_columns().any(|key| key == column))
    }

    /// A column of the destination that the source leaves empty from now on, where the primary key here does not let it be.
    fn key_misfit(&self, column: &Ident, what: &str) -> Option<Misfit> {
        let table = self.destination.table;
        let mut statements = index_drops(table, self.primary_key_with(column)?);
        statements.push(format!("ALTER TABLE {} ALTER COLUMN {column} DROP NOT NULL", table.name()));
        Some(Misfit {
            problem: format!("column {column} {what}, and is part of the primary key here"),
            remedy: Some(format!("{};", statements.join(";\n"))),
        })
    }

    /// The destination's column of one that was known: under its new name once it is renamed.
    fn here(&self, known: &ShapeColumn, column: &Column) -> Option<&ColumnDefinition> {
        let table = self.destination.table;
        table.column(&known.name).or_else(|| table.column(&column.name))
    }

    pub(super) fn keep(
        &self,
        known: &ShapeColumn,
        resolved: &Resolved<'_>,
        rows: Rows,
        evolution: &mut Evolution,
        misfits: &mut Vec<Misfit>,
    ) -> Result<(), FollowObstacle> {
        let Resolved { column, number, definition } = resolved;
        // A column that the operator has dropped here is for `fit` to report.
        let Some(here) = self.here(known, column) else { return Ok(()) };
        let name = &column.name;
        if (known.type_id, known.type_modifier) != (column.type_id, column.type_modifier) {
            self.change_type(known, resolved, here, rows, evolution)?;
        }
        let Some(definition) = definition else {
            // The stream has not come to the end of a column that is gone by now, and that may be empty before it.
            let is_gone = !self.source.table.columns.iter().any(|live| live.number == *number);
            if is_gone && here.not_null {
                self.let_be_null(here, name, "was dropped at the source", evolution, misfits);
            }
            return Ok(());
        };
        let filled = here.default.is_some() || here.identity.is_some() || here.generated.is_some();
        if !known.sequence && !filled {
            evolution.sequences.extend(self.sequence_of(definition));
        }
        // What is remembered may be ahead of the destination: its own column counts.
        let relaxed = known.not_null && !definition.is_never_null();
        if here.is_never_null() == definition.is_never_null() || !(definition.is_never_null() || relaxed) {
            return Ok(());
        }
        if definition.is_never_null() {
            evolution.attempts.push(AttemptedStatement {
                statement: sql::set_not_null(&self.known.name, name),
                told: format!("column {name} is now NOT NULL"),
                undo: Undo::NotNull(*number),
            });
            return Ok(());
        }
        // The first NULL leads to a report of a key under its current name, with what the source has in its place
        // (`schema_change::constraint_difference`).
        if here.name == *name && self.primary_key_with(name).is_some() {
            return Ok(());
        }
        if self.let_be_null(here, name, "is no longer NOT NULL at the source", evolution, misfits) {
            evolution.told.push(format!("column {name} is no longer NOT NULL"));
        }
        Ok(())
    }

    /// Drops NOT NULL of a column that is called `name` by then; whether it did. Of one in the primary key that is the operator's.
    fn let_be_null(
        &self,
        here: &ColumnDefinition,
        name: &Ident,
        what: &str,
        evolution: &mut Evolution,
        misfits: &mut Vec<Misfit>,
    ) -> bool {
        if let Some(misfit) = self.key_misfit(&here.name, what) {
            misfits.push(misfit);
            return false;
        }
        let may_be_null = here.identity.is_none();
        if may_be_null {
            evolution.statements.push(sql::drop_not_null(&self.known.name, name));
        }
        may_be_null
    }

    /// A column has another type. Without a rewrite of the source's table its values are what they were, and follow; otherwise
    /// nobody knows which expression has made them, and only a copy has them. For that the destination's column must be able to
    /// hold them: what the cast makes of the old rows until then is near enough.
    fn change_type(
        &self,
        known: &ShapeColumn,
        resolved: &Resolved<'_>,
        here: &ColumnDefinition,
        rows: Rows,
        evolution: &mut Evolution,
    ) -> Result<(), FollowObstacle> {
        let Resolved { column, definition, .. } = resolved;
        let name = &column.name;
        let types = [self.source.types, self.destination.types];
        let type_sql = |id, modifier| types.iter().find_map(|types| fit::type_sql(id, modifier, types));
        let shown = |id, modifier| type_sql(id, modifier).unwrap_or_else(|| "another type".to_owned());
        let (before, after) = (shown(known.type_id, known.type_modifier), shown(column.type_id, column.type_modifier));
        let takes = fit::column_takes(column, self.source.types, here, self.destination.types);
        let widened = self.widened(known, column);
        let rewritten = self.known.was_rewritten(self.source.table);
        if rows == Rows::Stream && (rewritten || !(takes || widened)) {
            return Err(FollowObstacle::Copy(format!("column {name} was {before} and is now {after}")));
        }
        if takes {
            return Ok(());
        }
        let table = &self.known.name;
        let wanted = match definition {
            Some(definition) => Some((self.creation.type_sql)(definition)),
            // The catalog is ahead of the stream and has another type by now, or no such column.
            None => type_sql(column.type_id, column.type_modifier),
        };
        match (wanted, definition) {
            (Some(wanted), _) if widened => evolution.statements.push(sql::alter_type(table, name, &wanted)),
            (Some(wanted), Some(definition)) => self.cast(definition, here, &wanted, evolution),
            (_, _) => return Err(FollowObstacle::Copy(format!("column {name} has had several types meanwhile"))),
        }
        evolution.told.push(format!("column {name} was {before} and is now {after}"));
        Ok(())
    }

    /// Gives a column another type before a copy; what cannot be cast is emptied by the operator.
    fn cast(&self, definition: &ColumnDefinition, here: &ColumnDefinition, wanted: &str, evolution: &mut Evolution) {
        let table = &self.known.name;
        let statements = sql::cast_type(table, definition, here, wanted, self.creation);
        let remedy = sql::empty_type(table, here, &definition.name, wanted);
        let remedy = format!("The copy brings the values of the column. Run at the destination:\n{remedy}");
        evolution.remedies.extend(statements.iter().map(|sql| (sql.clone(), remedy.clone())));
        evolution.statements.extend(statements);
    }

    /// Columns that are computed at the destination are added where they are missing, and get the source's expression of now, whether the
    /// source sends their values or not. A server before 17 cannot change one: then the operator makes the column again.
    pub(super) fn set_generated(&self, evolution: &mut Evolution) {
        let table = &self.known.name;
        let is_sent = |column: &ColumnDefinition| self.relation.columns.iter().any(|sent| sent.name == column.name);
        let is_computed = |column: &ColumnDefinition| {
            let here = self.destination.table.column(&column.name);
            !is_sent(column) || here.is_some_and(|here| here.generated.is_some())
        };
        let generated = self.source.table.columns.iter().filter(|column| column.generated.is_some());
        for column in generated.filter(|column| is_computed(column)) {
            // A column of this name that is renamed makes room for it.
            let leaves =
                |name: &Ident| self.known.columns.iter().any(|known| known.name == *name && self.is_renamed(known));
            let Some(here) = self.destination.table.column(&column.name).filter(|here| !leaves(&here.name)) else {
                self.add_generated(column, evolution);
                continue;
            };
            let present = here.generated.is_some().then(|| self.creation.generated(here));
            let Some(Ok(present)) = present else { continue };
            let Some(wanted) = self.creation.generated(column).ok().filter(|wanted| *wanted != present) else {
                continue;
            };
            let statement = sql::set_expression(table, &column.name, &wanted);
            let type_sql = fit::type_sql(column.type_id, column.type_modifier, self.source.types);
            if let Some(type_sql) = type_sql {
                let again = sql::add_column(table, column, &type_sql, self.creation).sql.join(";\n");
                let again = format!("Run at the destination:\n{};\n{again};", sql::drop_column(table, &column.name));
                evolution.remedies.insert(statement.clone(), again);
            }
            evolution.statements.push(statement);
            evolution.told.push(format!("generated column {} has another expression", column.name));
        }
    }

    /// Without its expression it would be a column whose values never come.
    fn add_generated(&self, column: &ColumnDefinition, evolution: &mut Evolution) {
        let name = &column.name;
        if let Err(refusal) = self.creation.generated(column) {
            evolution.told.push(format!("generated column {name} ({refusal}) was not taken over"));
            return;
        }
        let added = sql::add_column(&self.known.name, column, &(self.creation.type_sql)(column), self.creation);
        evolution.statements.extend(added.sql);
        evolution.added.push(name.clone());
        evolution.told.push(format!("generated column {name} was added"));
    }

    /// Whether every value of before is one of the new type, with the same meaning.
    fn widened(&self, known: &ShapeColumn, column: &Column) -> bool {
        match self.source.types.get(&column.type_id) {
            Some(definition) if known.type_id == column.type_id => {
                fit::modifier_fits(definition, known.type_modifier, column.type_modifier)
            }
            Some(_) | None => fit::widens(known.type_id, column.type_id) && column.type_modifier == -1,
        }
    }

    pub(super) fn add(
        &self,
        resolved: &Resolved<'_>,
        rows: Rows,
        moved: &BTreeMap<i16, Ident>,
        evolution: &mut Evolution,
        misfits: &mut Vec<Misfit>,
    ) -> Result<(), FollowObstacle> {
        let Some(definition) = resolved.definition else { return Ok(()) };
        let name = &definition.name;
        if rows == Rows::Stream && definition.number <= self.known.attributes {
            return Err(FollowObstacle::Copy(format!("column {name} was not published before, or was generated")));
        }
        let rewritten = self.known.was_moved(self.source.table);
        if rows == Rows::Stream && definition.generated.is_none() && definition.missing_value.is_none() && rewritten {
            return Err(FollowObstacle::Copy(format!(
                "column {name} was added and the table rewritten, so its old rows hold values that did not come through the stream"
            )));
        }
        let table = &self.known.name;
        let wanted = (self.creation.type_sql)(definition);
        // A column of this name that gets another one makes room for it.
        let mut leaving = self.known.columns.iter().filter(|known| known.name == *name);
        let leaves = leaving.any(|known| self.is_renamed(known) || moved.contains_key(&known.number));
        let Some(here) = self.destination.table.column(name).filter(|_| !leaves) else {
            let added = sql::add_column(table, definition, &wanted, self.creation);
            evolution.statements.extend(added.sql);
            evolution.added.push(name.clone());
            evolution.told.push(format!("column {name} was added"));
            evolution.told.extend(added.left_out.iter().map(|what| format!("{what} was not taken over")));
            evolution.sequences.extend(self.sequence_of(definition));
            return Ok(());
        };
        // It was generated at the source, too.
        if here.generated == Some(GeneratedColumn::Stored) && definition.generated.is_none() && rows == Rows::Copy {
            evolution.statements.push(sql::drop_expression(table, name));
            evolution.told.push(format!("column {name} is not generated any more"));
            // A new column of the source's may have the name of one that was generated.
            if !fit::column_takes(resolved.column, self.source.types, here, self.destination.types) {
                self.cast(definition, here, &wanted, evolution);
            }
            return Ok(());
        }
        // Prepared by the operator; or it stayed when a column of this name was dropped.
        if !fit::column_takes(resolved.column, self.source.types, here, self.destination.types) {
            misfits.push(Misfit {
                problem: format!(
                    "column {name} was added at the source, and here is another one of that name and another type"
                ),
                remedy: Some(format!(
                    "ALTER TABLE {table} RENAME COLUMN {name} TO {};",
                    self.another_name(misfits.len())
                )),
            });
            return Ok(());
        }
        self.take_over(definition, here, rows, evolution);
        Ok(())
    }

    /// Gives a column of the destination the values of one that was added at the source.
    fn take_over(&self, definition: &ColumnDefinition, here: &ColumnDefinition, rows: Rows, evolution: &mut Evolution) {
        let (table, name) = (&self.known.name, &definition.name);
        if here.generated.is_none() {
            let wanted = (self.creation.type_sql)(definition);
            let value = sql::missing_value(definition, &wanted);
            let brings_null = match rows {
                Rows::Stream => value.is_none(),
                Rows::Copy => !definition.is_never_null(),
            };
            if brings_null && here.not_null {
                evolution.statements.push(sql::drop_not_null(table, name));
            }
            if rows == Rows::Stream {
                let whole_tree = self.destination.table.is_tree();
                evolution.fills.push(sql::reset(table, whole_tree, name, value.as_deref(), &wanted));
            }
        }
        evolution.told.push(format!("column {name} was added; the one that is here takes its values"));
    }

    /// What an operator may call a column of the destination that is in the way, after so many others.
    fn another_name(&self, others: usize) -> Ident {
        let numbered = (2..).map(|number| Ident::new(format!("another_name_{number}")));
        let free = |name: &Ident| self.destination.table.column(name).is_none();
        let mut names = std::iter::once(Ident::new("another_name")).chain(numbered).filter(free);
        names.nth(others).expect("a table has not all names")
    }

    /// Whether a known column still comes, under another name.
    fn is_renamed(&self, known: &ShapeColumn) -> bool {
        let mut live = self.source.table.columns.iter().filter(|column| column.number == known.number);
        live.any(|live| live.name != known.name && self.relation.columns.iter().any(|column| column.name == live.name))
    }

    /// New unique indexes, unless the destination has one over the same columns.
    pub(super) fn add_unique_indexes(&self, evolution: &mut Evolution) {
        let here: Vec<BTreeSet<Ident>> = self.destination.table.indexes.iter().filter_map(unique_set).collect();
        let before_renames = |name: &Ident| -> Ident {
            let number = self.source.table.column(name).map(|column| column.number);
            let known = number.and_then(|number| self.known.column(number));
            known.map_or_else(|| name.clone(), |known| known.name.clone())
        };
        for index in &self.source.table.indexes {
            if !index.unique || !index.valid || self.known.knows(index) {
                continue;
            }
            let known_here = unique_set(index)
                .is_some_and(|columns| here.contains(&columns.iter().map(before_renames).collect::<BTreeSet<_>>()));
            let all_come = index.parts.iter().all(|part| {
                part.column.as_ref().is_none_or(|name| self.relation.columns.iter().any(|column| column.name == *name))
            });
            if known_here || !all_come {
                continue;
            }
            if let Some(statement) = self.creation.index_of(index) {
                evolution.attempts.push(AttemptedStatement {
                    statement,
                    told: format!("unique index {} was created", index.name),
                    undo: Undo::Unique(index.name.clone()),
                });
            }
        }
    }
}

fn unique_set(index: &IndexDefinition) -> Option<BTreeSet<Ident>> {
    index.unique_columns().map(|columns| columns.into_iter().cloned().collect())
}
