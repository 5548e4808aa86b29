//! What a destination table needs when its source table has changed.
//!
//! Asked by `destination::apply` when the stream describes a table in another way than before. In come the shape that was
//! remembered, the relation as the stream describes it, the source's catalog and the destination's; out go the statements
//! that bring the destination's table to the same state, in the stream's order, or the obstacle.
//!
//! The catalog may be ahead of the stream, and the relation carries no numbers. So a column of the relation is looked up in
//! the catalog by name and type; its number then tells whether it is new, renamed, or the same. What the catalog cannot tell
//! (a column that it does not know any more, one that was dropped and added again in between, rows that a rewrite has filled)
//! makes the table need a new copy. The source is never trusted with SQL: names are quoted, types are resolved by the
//! destination, what old rows hold in a new column travels as a value.
//!
//! | at the source | here |
//! |---|---|
//! | column added | added; old rows get the value that the source has stored for them |
//! | column dropped | stays, without NOT NULL |
//! | column renamed | renamed |
//! | type or modifier widened | the same |
//! | NOT NULL set or dropped, unique index created | the same; set and created only if the rows allow it by now |

use std::collections::BTreeSet;

use super::fit::{self, End, Misfit};
use super::schema::{ColumnDefinition, IndexDefinition, Types};
use super::shape::{Shape, ShapeColumn};
use super::sql::ddl::Creation;
use super::sql::evolve as sql;
use crate::pg::{Column, Ident, QualifiedName, Relation};

/// A change of a source table, and what it meets.
pub struct Change<'a> {
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
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evolution {
    /// Statements without which the rows to come do not fit.
    pub statements: Vec<String>,
    /// Statements that put the source's values into columns that were here before.
    pub fills: Vec<String>,
    /// Statements that the rows may not allow yet, because the catalog is ahead: each is tried.
    pub attempts: Vec<Attempt>,
    /// What was done, for the operator: sentences without their full stop.
    pub told: Vec<String>,
}

/// A statement that may fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
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
pub enum Obstacle {
    /// The destination's table must be changed by hand.
    Misfits(Vec<Misfit>),
    /// Only a new copy has the rows: why.
    Copy(String),
    /// The table has another name: the configuration knows it by the old one.
    Renamed(QualifiedName),
}

/// A column of the relation, with its number, and its definition where the catalog knows it.
struct Resolved<'a> {
    column: &'a Column,
    number: i16,
    definition: Option<&'a ColumnDefinition>,
}

impl Change<'_> {
    /// Decides what to do, and what to remember afterwards.
    ///
    /// # Errors
    /// [`Obstacle`].
    pub fn follow(&self) -> Result<(Evolution, Shape), Obstacle> {
        let resolved = self.resolve().map_err(Obstacle::Copy)?;
        let now = self.source.table.partitions.iter().flatten();
        let brought = now.clone().any(|now| now.attached && !self.known.partitions.contains(&now.id));
        let taken = self.known.partitions.iter().any(|known| !now.clone().any(|now| now.id == *known));
        if brought || taken {
            return Err(Obstacle::Copy("partitions with rows of their own were attached, or detached".to_owned()));
        }
        if self.relation.name != self.known.name {
            return Err(Obstacle::Renamed(self.relation.name.clone()));
        }
        let mut evolution = Evolution::default();
        let mut misfits = Vec::new();
        self.rename_columns(&resolved, &mut evolution, &mut misfits);
        self.let_go_of_dropped(&resolved, &mut evolution, &mut misfits);
        for resolved in &resolved {
            match self.known.column(resolved.number) {
                Some(known) => self.keep(known, resolved, &mut evolution, &mut misfits),
                None => self.add(resolved, &mut evolution, &mut misfits)?,
            }
        }
        self.add_unique_indexes(&mut evolution);
        if misfits.is_empty() { Ok((evolution, self.shape(&resolved))) } else { Err(Obstacle::Misfits(misfits)) }
    }

    /// Whether the catalog shows the table just as the stream describes it: it has no column that is new and does not come.
    fn is_current(&self, resolved: &[Resolved<'_>]) -> bool {
        let comes = |column: &ColumnDefinition| self.relation.columns.iter().any(|c| c.name == column.name);
        let mut columns = self.source.table.columns.iter();
        columns.all(|column| comes(column) || column.number <= self.known.attributes || column.generated.is_some())
            && resolved.iter().all(|column| column.definition.is_some())
    }

    fn shape(&self, resolved: &[Resolved<'_>]) -> Shape {
        let now = Shape::of(self.source.table, self.source.types, |_| false);
        let highest = resolved.iter().map(|column| column.number).max().unwrap_or(0);
        let current = self.is_current(resolved);
        let column = |resolved: &Resolved<'_>| ShapeColumn {
            number: resolved.number,
            name: resolved.column.name.clone(),
            type_id: resolved.column.type_id,
            type_modifier: resolved.column.type_modifier,
            not_null: match (resolved.definition, self.known.column(resolved.number)) {
                (Some(definition), _) => definition.not_null,
                (None, known) => known.is_some_and(|known| known.not_null),
            },
        };
        Shape {
            name: self.relation.name.clone(),
            columns: resolved.iter().map(column).collect(),
            // A rewrite that the stream has not come to yet must still be noticed then.
            attributes: if current { now.attributes } else { self.known.attributes.max(highest) },
            storage: if current { now.storage } else { self.known.storage.clone() },
            partitions: now.partitions,
            unique: now.unique,
            labels: now.labels,
        }
    }

    fn resolve(&self) -> Result<Vec<Resolved<'_>>, String> {
        let live = |column: &Column| self.source.table.column(&column.name).filter(|live| same(live, column));
        // A relation's columns come in the order of their numbers: so names that have changed hands are recognised.
        let current = self.relation.columns.iter().all(|column| live(column).is_some())
            && self.relation.columns.iter().filter_map(live).is_sorted_by(|a, b| a.number < b.number);
        let mut found = Vec::new();
        for column in &self.relation.columns {
            let live = live(column);
            let known = self.known.columns.iter().find(|known| {
                known.name == column.name
                    && known.type_id == column.type_id
                    && known.type_modifier == column.type_modifier
            });
            let number = match (live, known) {
                (Some(live), Some(known)) if live.number != known.number => {
                    if live.number > self.known.attributes {
                        return Err(format!("column {} was dropped and added again", column.name));
                    }
                    if current { live.number } else { known.number }
                }
                (Some(live), _) => live.number,
                (None, Some(known)) => known.number,
                (None, None) => {
                    return Err(format!("column {} has changed again since", column.name));
                }
            };
            found.push(Resolved { column, number, definition: live.filter(|live| live.number == number) });
        }
        if !found.is_sorted_by(|a, b| a.number < b.number) {
            return Err("columns were renamed more than once".to_owned());
        }
        // Between the columns that were known and a new one there must be no other that is gone already: then the new one
        // may be another than the stream means.
        let highest = found.iter().map(|column| column.number).max().unwrap_or(0);
        let live: BTreeSet<i16> = self.source.table.columns.iter().map(|column| column.number).collect();
        if (self.known.attributes + 1..=highest).any(|number| !live.contains(&number)) {
            return Err("columns were added and dropped again".to_owned());
        }
        Ok(found)
    }

    /// Renames in two steps where names change hands.
    fn rename_columns(&self, resolved: &[Resolved<'_>], evolution: &mut Evolution, misfits: &mut Vec<Misfit>) {
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
        let mut second = Vec::new();
        for (old, new) in renames {
            if table.column(new).is_some() && !leaving.contains(new) {
                let name = table.name();
                misfits.push(Misfit {
                    problem: format!(
                        "column {old} is now called {new} at the source, but here another column is called so"
                    ),
                    remedy: Some(format!("ALTER TABLE {name} RENAME COLUMN {new} TO another_name;")),
                });
                continue;
            }
            if table.column(new).is_some() {
                let between = Ident::new(format!("headwater renames {}", second.len()));
                evolution.statements.push(sql::rename_column(&self.relation.name, old, &between));
                second.push(sql::rename_column(&self.relation.name, &between, new));
            } else {
                second.push(sql::rename_column(&self.relation.name, old, new));
            }
            evolution.told.push(format!("column {old} is now called {new}"));
        }
        evolution.statements.extend(second);
    }

    /// Columns that do not come any more stay, and must not ask for values.
    fn let_go_of_dropped(&self, resolved: &[Resolved<'_>], evolution: &mut Evolution, misfits: &mut Vec<Misfit>) {
        let table = self.destination.table;
        for known in &self.known.columns {
            if resolved.iter().any(|column| column.number == known.number) {
                continue;
            }
            let Some(here) = table.column(&known.name) else { continue };
            let taken = resolved.iter().any(|column| column.column.name == known.name);
            let filled = here.default.is_some() || here.identity.is_some() || here.generated.is_some();
            let name = &known.name;
            let key = table.indexes.iter().find(|index| index.primary && index.key_columns().any(|key| key == name));
            match key {
                Some(key) if !taken => {
                    misfits.push(Misfit {
                        problem: format!(
                            "column {name} was dropped at the source, and is part of the primary key here"
                        ),
                        remedy: Some(format!(
                            "ALTER TABLE {0} DROP CONSTRAINT {1};\nALTER TABLE {0} ALTER COLUMN {name} DROP NOT NULL;",
                            table.name(),
                            key.name
                        )),
                    });
                    continue;
                }
                Some(_) | None => {}
            }
            if here.not_null && !filled && !taken {
                evolution.statements.push(sql::drop_not_null(&self.relation.name, name));
            }
            evolution.told.push(format!("column {name} was dropped at the source; it stays here"));
        }
    }

    /// The destination's column of one that was known: under its new name once it is renamed.
    fn here(&self, known: &ShapeColumn, column: &Column) -> Option<&ColumnDefinition> {
        let table = self.destination.table;
        table.column(&known.name).or_else(|| table.column(&column.name))
    }

    fn keep(&self, known: &ShapeColumn, resolved: &Resolved<'_>, evolution: &mut Evolution, misfits: &mut Vec<Misfit>) {
        let Resolved { column, number, definition } = resolved;
        // A column that the operator has dropped here is for `fit` to report.
        let Some(here) = self.here(known, column) else { return };
        let name = &column.name;
        if (known.type_id, known.type_modifier) != (column.type_id, column.type_modifier)
            && !fit::column_takes(column, self.source.types, here, self.destination.types)
        {
            let wanted = definition.map(|definition| (self.creation.type_sql)(definition));
            let types = [self.source.types, self.destination.types];
            let shown = |id, modifier| {
                types
                    .iter()
                    .find_map(|types| fit::type_sql(id, modifier, types))
                    .unwrap_or_else(|| "another type".to_owned())
            };
            let (before, after) =
                (shown(known.type_id, known.type_modifier), shown(column.type_id, column.type_modifier));
            match wanted {
                Some(wanted) if self.widened(known, column) => {
                    evolution.statements.push(sql::alter_type(&self.relation.name, name, &wanted));
                    evolution.told.push(format!("column {name} was {before} and is now {after}"));
                }
                Some(_) | None => misfits.push(Misfit {
                    problem: format!("column {name} was {before} and is now {after} at the source"),
                    remedy: Some(format!(
                        "ALTER TABLE {} ALTER COLUMN {name} TYPE {after} USING {name}::{after};",
                        self.relation.name
                    )),
                }),
            }
        }
        let Some(definition) = definition else { return };
        if definition.not_null == known.not_null || here.not_null == definition.not_null {
            return;
        }
        if definition.not_null {
            evolution.attempts.push(Attempt {
                statement: sql::set_not_null(&self.relation.name, name),
                told: format!("column {name} is now NOT NULL"),
                undo: Undo::NotNull(*number),
            });
            return;
        }
        let in_key = |index: &IndexDefinition| index.primary && index.key_columns().any(|key| key == name);
        if here.identity.is_none() && !self.destination.table.indexes.iter().any(in_key) {
            evolution.statements.push(sql::drop_not_null(&self.relation.name, name));
            evolution.told.push(format!("column {name} is no longer NOT NULL"));
        }
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

    fn add(
        &self,
        resolved: &Resolved<'_>,
        evolution: &mut Evolution,
        misfits: &mut Vec<Misfit>,
    ) -> Result<(), Obstacle> {
        let Some(definition) = resolved.definition else { return Ok(()) };
        let name = &definition.name;
        let rewritten = self.known.storage != self.source.table.storage.as_deref().unwrap_or_default();
        if definition.generated.is_none() && definition.missing_value.is_none() && rewritten {
            return Err(Obstacle::Copy(format!(
                "column {name} was added and the table rewritten, so its old rows hold values that did not come through the stream"
            )));
        }
        let table = &self.relation.name;
        let wanted = (self.creation.type_sql)(definition);
        // A column of this name that is renamed makes room for it.
        let mut leaving = self.known.columns.iter().filter(|known| known.name == *name);
        let leaves = leaving.any(|known| self.is_renamed(known));
        let Some(here) = self.destination.table.column(name).filter(|_| !leaves) else {
            evolution.statements.extend(sql::add_column(table, definition, &wanted, self.creation.expressions));
            evolution.told.push(format!("column {name} was added"));
            return Ok(());
        };
        // Prepared by the operator; or it stayed when a column of this name was dropped.
        if !fit::column_takes(resolved.column, self.source.types, here, self.destination.types) {
            misfits.push(Misfit {
                problem: format!(
                    "column {name} was added at the source, and here is another one of that name and another type"
                ),
                remedy: Some(format!("ALTER TABLE {table} RENAME COLUMN {name} TO another_name;")),
            });
            return Ok(());
        }
        if here.generated.is_none() {
            let value = sql::missing_value(definition, &wanted);
            if value.is_none() && here.not_null {
                evolution.statements.push(sql::drop_not_null(table, name));
            }
            evolution.fills.push(sql::reset(table, name, value.as_deref(), &wanted));
        }
        evolution.told.push(format!("column {name} was added; the one that is here takes its values"));
        Ok(())
    }

    /// Whether a known column still comes, under another name.
    fn is_renamed(&self, known: &ShapeColumn) -> bool {
        let mut live = self.source.table.columns.iter().filter(|column| column.number == known.number);
        live.any(|live| live.name != known.name && self.relation.columns.iter().any(|column| column.name == live.name))
    }

    /// New unique indexes, unless the destination has one over the same columns.
    fn add_unique_indexes(&self, evolution: &mut Evolution) {
        let here: Vec<BTreeSet<Ident>> = self.destination.table.indexes.iter().filter_map(unique_set).collect();
        let before_renames = |name: &Ident| -> Ident {
            let number = self.source.table.column(name).map(|column| column.number);
            let known = number.and_then(|number| self.known.column(number));
            known.map_or_else(|| name.clone(), |known| known.name.clone())
        };
        for index in &self.source.table.indexes {
            if !index.unique || !index.valid || self.known.unique.contains(&index.name) {
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
                evolution.attempts.push(Attempt {
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

fn same(definition: &ColumnDefinition, column: &Column) -> bool {
    definition.type_id == column.type_id && definition.type_modifier == column.type_modifier
}

/// What the destination's enums lack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Statements that add labels in their places.
    pub added: Vec<String>,
    /// Statements that rename labels: rows that are under way still have the old names.
    pub renamed: Vec<String>,
    /// What has changed, for the operator.
    pub told: Vec<String>,
}

/// Compares the enums that both ends have.
pub fn labels(source: &Types, destination: &Types) -> Labels {
    let mut found = Labels::default();
    for from in source.values() {
        let Some(wanted) = &from.labels else { continue };
        let name = from.qualified_name();
        let here = destination.values().find(|to| to.qualified_name() == name).and_then(|to| to.labels.as_ref());
        let Some(here) = here else { continue };
        let extra: Vec<&String> = here.iter().filter(|label| !wanted.contains(label)).collect();
        let lacking: Vec<(usize, &String)> =
            wanted.iter().enumerate().filter(|(_, label)| !here.contains(label)).collect();
        if !extra.is_empty() && !lacking.is_empty() && here.len() == wanted.len() {
            for (label, (place, new)) in extra.iter().zip(&lacking) {
                if here.get(*place) == Some(label) {
                    found.renamed.push(sql::rename_label(&name, label, new));
                    found.told.push(format!("a label of enum {name} has another name at the source"));
                }
            }
            continue;
        }
        for (place, label) in lacking {
            // The ones before it are there by now.
            let after = place.checked_sub(1).and_then(|before| wanted.get(before));
            let before = here.first().filter(|_| after.is_none());
            found.added.push(sql::add_label(&name, label, after, before));
            found.told.push(format!("enum {name} has got a label at the source"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{RelationId, TypeId};
    use crate::plan::expression::Expressions;
    use crate::plan::schema::{TableDefinition, TypeDefinition};
    use crate::plan::testing::{Column as Of, table, types};

    const INT: u32 = 23;
    const BIGINT: u32 = 20;
    const TEXT: u32 = 25;
    const VARCHAR: u32 = 1043;

    fn relation(table: &TableDefinition, columns: &[&str]) -> Relation {
        let find = |name: &&str| table.columns.iter().find(|column| column.name.as_str() == *name).expect("a column");
        let column = |name: &&str| {
            let ColumnDefinition { name, type_id, type_modifier, .. } = find(name);
            Column { name: name.clone(), in_identity: false, type_id: *type_id, type_modifier: *type_modifier }
        };
        Relation {
            id: RelationId(table.id),
            name: table.name(),
            replica_identity: table.replica_identity,
            columns: columns.iter().map(column).collect(),
        }
    }

    /// A table with these columns under these numbers.
    fn numbered(columns: &[(i16, Of)]) -> TableDefinition {
        let definitions: Vec<Of> = columns.iter().map(|(_, column)| column.clone()).collect();
        let mut table = table("t", &definitions);
        for (column, (number, _)) in table.columns.iter_mut().zip(columns) {
            column.number = *number;
        }
        table.attributes = columns.iter().map(|(number, _)| *number).max().unwrap_or(0);
        table
    }

    fn start() -> TableDefinition {
        numbered(&[(1, Of::new("id", INT).not_null()), (2, Of::new("a", TEXT)), (3, Of::new("b", INT).not_null())])
    }

    /// What follows when the table was as at the start, the stream describes these columns of `described`, and the catalog
    /// holds `now`.
    fn follow_described(
        described: &TableDefinition,
        columns: &[&str],
        now: &TableDefinition,
    ) -> Result<(Evolution, Shape), Obstacle> {
        let (types, expressions) = (types(), Expressions::new([]));
        let (before, here) = (start(), start());
        let names: Vec<Ident> = columns.iter().map(|name| Ident::new(*name)).collect();
        let creation = Creation {
            table: now,
            schema: &Ident::new("public"),
            type_sql: &|column| {
                fit::type_sql(column.type_id, column.type_modifier, &crate::plan::testing::types()).unwrap()
            },
            expressions: &expressions,
            columns: &names,
        };
        let known = Shape::of(&before, &types, |_| true);
        Change {
            known: &known,
            relation: &relation(described, columns),
            source: End { table: now, types: &types },
            destination: End { table: &here, types: &types },
            creation: &creation,
        }
        .follow()
    }

    fn follow(columns: &[&str], now: &TableDefinition) -> Result<(Evolution, Shape), Obstacle> {
        follow_described(now, columns, now)
    }

    fn statements(columns: &[&str], now: &TableDefinition) -> Vec<String> {
        follow(columns, now).unwrap().0.statements
    }

    fn id() -> (i16, Of) {
        (1, Of::new("id", INT).not_null())
    }

    fn a() -> (i16, Of) {
        (2, Of::new("a", TEXT))
    }

    fn b() -> (i16, Of) {
        (3, Of::new("b", INT).not_null())
    }

    #[test]
    fn nothing_follows_from_the_same_table() {
        let (evolution, shape) = follow(&["id", "a", "b"], &start()).unwrap();
        assert_eq!(evolution, Evolution::default());
        assert_eq!(shape, Shape::of(&start(), &types(), |_| true));
    }

    #[test]
    fn an_added_column_gets_what_old_rows_hold() {
        let mut now = numbered(&[id(), a(), b(), (4, Of::new("c", TEXT).not_null()), (5, Of::new("d", INT))]);
        now.columns[3].missing_value = Some("{it's}".to_owned());
        assert_eq!(
            statements(&["id", "a", "b", "c", "d"], &now),
            [
                "ALTER TABLE \"public\".\"t\" ADD COLUMN \"c\" text DEFAULT 'it''s'::text NOT NULL",
                "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"c\" DROP DEFAULT",
                "ALTER TABLE \"public\".\"t\" ADD COLUMN \"d\" int4",
            ]
        );
    }

    #[test]
    fn a_rename_is_told_from_a_drop_and_an_addition_by_the_number() {
        assert_eq!(
            statements(&["id", "x", "b"], &numbered(&[id(), (2, Of::new("x", TEXT)), b()])),
            ["ALTER TABLE \"public\".\"t\" RENAME COLUMN \"a\" TO \"x\""]
        );
        assert_eq!(
            statements(&["id", "b", "x"], &numbered(&[id(), b(), (4, Of::new("x", TEXT))])),
            ["ALTER TABLE \"public\".\"t\" ADD COLUMN \"x\" text"]
        );
    }

    #[test]
    fn names_that_change_hands_are_renamed_by_way_of_another() {
        let now = numbered(&[id(), (2, Of::new("b", TEXT)), (3, Of::new("a", INT).not_null())]);
        assert_eq!(
            statements(&["id", "b", "a"], &now),
            [
                "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"a\" TO \"headwater renames 0\"",
                "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"b\" TO \"headwater renames 1\"",
                "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"headwater renames 0\" TO \"b\"",
                "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"headwater renames 1\" TO \"a\"",
            ]
        );
    }

    #[test]
    fn a_dropped_column_stays_and_a_key_that_is_dropped_is_the_operators() {
        assert_eq!(
            statements(&["id", "a"], &numbered(&[id(), a()])),
            ["ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" DROP NOT NULL"]
        );
        let Err(Obstacle::Misfits(misfits)) = follow(&["a", "b"], &numbered(&[a(), b()])) else { panic!() };
        assert!(misfits[0].remedy.as_ref().is_some_and(|sql| sql.contains("DROP CONSTRAINT t_pkey")), "{misfits:?}");
    }

    #[test]
    fn a_wider_type_is_followed_and_another_one_is_not() {
        let wide = numbered(&[id(), a(), (3, Of::new("b", BIGINT).not_null())]);
        assert_eq!(statements(&["id", "a", "b"], &wide), ["ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" TYPE int8"]);
        let other = numbered(&[id(), a(), (3, Of::new("b", TEXT).not_null())]);
        let Err(Obstacle::Misfits(misfits)) = follow(&["id", "a", "b"], &other) else { panic!() };
        assert_eq!(misfits[0].remedy.as_deref(), Some("ALTER TABLE public.t ALTER COLUMN b TYPE text USING b::text;"));
        // What takes every value already needs nothing.
        let narrow = numbered(&[id(), (2, Of::new("a", VARCHAR).modifier(24)), b()]);
        assert_eq!(statements(&["id", "a", "b"], &narrow), Vec::<String>::new());
    }

    #[test]
    fn what_only_a_copy_can_tell_is_not_guessed() {
        let copy = |columns: &[&str], now: &TableDefinition| match follow(columns, now) {
            Err(Obstacle::Copy(reason)) => reason,
            other => panic!("{other:?}"),
        };
        let again = numbered(&[id(), b(), (4, Of::new("a", TEXT))]);
        assert_eq!(copy(&["id", "b", "a"], &again), "column a was dropped and added again");
        let gap = numbered(&[id(), a(), b(), (5, Of::new("c", TEXT))]);
        assert_eq!(copy(&["id", "a", "b", "c"], &gap), "columns were added and dropped again");
        let mut rewritten = numbered(&[id(), a(), b(), (4, Of::new("c", TEXT))]);
        rewritten.storage = Some("2".to_owned());
        assert!(copy(&["id", "a", "b", "c"], &rewritten).contains("the table rewritten"));
        let mut parted = start();
        parted.partitions = Some(vec![crate::plan::schema::Partition { id: 9, attached: true }]);
        assert!(copy(&["id", "a", "b"], &parted).contains("attached"));
    }

    #[test]
    fn a_catalog_that_is_ahead_tells_only_what_the_stream_has_come_to() {
        let described = numbered(&[id(), a(), b(), (4, Of::new("c", TEXT))]);
        let mut ahead = numbered(&[id(), a(), b(), (4, Of::new("c", TEXT)), (5, Of::new("d", INT))]);
        ahead.columns[3].missing_value = Some("{x}".to_owned());
        ahead.storage = Some("2".to_owned());
        let (evolution, shape) = follow_described(&described, &["id", "a", "b", "c"], &ahead).unwrap();
        assert_eq!(evolution.statements.len(), 2, "{evolution:?}");
        assert_eq!((shape.attributes, shape.columns.len()), (4, 4));
        assert_eq!(shape.storage, "1", "the rewrite is noticed with the column that it filled");
    }

    #[test]
    fn labels_are_added_in_their_places_and_new_names_are_the_operators() {
        let mood = |labels: &[&str]| {
            let mut types = types();
            let text = types.get(&TypeId(TEXT)).cloned().unwrap();
            let labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
            types.insert(TypeId(20_000), TypeDefinition { name: Ident::new("mood"), labels, ..text });
            types
        };
        assert_eq!(
            labels(&mood(&["a", "b", "c", "d"]), &mood(&["b", "d"])).added,
            [
                "ALTER TYPE \"pg_catalog\".\"mood\" ADD VALUE IF NOT EXISTS 'a' BEFORE 'b'",
                "ALTER TYPE \"pg_catalog\".\"mood\" ADD VALUE IF NOT EXISTS 'c' AFTER 'b'",
            ]
        );
        let renamed = labels(&mood(&["a", "x"]), &mood(&["a", "b"]));
        assert_eq!(renamed.renamed, ["ALTER TYPE \"pg_catalog\".\"mood\" RENAME VALUE 'b' TO 'x'"]);
        assert!(renamed.added.is_empty());
    }
}
