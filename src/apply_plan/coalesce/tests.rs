//! The cases of cases.txt: tables and changes as a DBA would write them, and what is carried out for them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use super::{Coalescer, KnownTable, NetPart};
use crate::apply_plan::merge::tuple_of;
use crate::apply_plan::net_effect::SetEffect;
use crate::apply_plan::sets::key_of;
use crate::apply_plan::target::Target;
use crate::catalog::schema::{
    ConstraintDefinition, ConstraintKind, ForeignKeyAction, ForeignKeyTarget, IncomingForeignKey, TableDefinition,
    TriggerDefinition,
};
use crate::pg::{Column, Datum, Ident, Relation, RelationId, ReplicaIdentity, Tuple};
use crate::testing::{self, unique_index};
use crate::transaction::RowChange;
use crate::wire::OldTuple;

/// A relation as the source describes a table.
pub(super) fn relation_of(table: &TableDefinition, key: &[usize], identity: ReplicaIdentity) -> Arc<Relation> {
    let columns = table.columns.iter().enumerate().map(|(index, column)| Column {
        name: column.name.clone(),
        in_identity: identity == ReplicaIdentity::Full || key.contains(&index),
        type_id: column.type_id,
        type_modifier: -1,
    });
    Arc::new(Relation {
        leaves: Default::default(),
        id: RelationId(table.id),
        name: table.name(),
        replica_identity: identity,
        columns: columns.collect(),
    })
}

/// A table with these columns, the starred ones its key.
pub(super) fn table_of(id: u32, name: &str, columns: &[&str], type_id: u32) -> (TableDefinition, Vec<usize>) {
    let plain: Vec<testing::TestColumn> =
        columns.iter().map(|name| testing::TestColumn::new(name.trim_end_matches('*'), type_id)).collect();
    let mut table = testing::table(name, &plain);
    table.id = id;
    let key: Vec<usize> = (0..columns.len()).filter(|index| columns[*index].ends_with('*')).collect();
    let names: Vec<Ident> = key.iter().map(|index| table.columns[*index].name.clone()).collect();
    table.indexes = if key.is_empty() { Vec::new() } else { vec![unique_index(&format!("{name}_pkey"), &names, true)] };
    for index in &key {
        table.columns[*index].not_null = true;
    }
    (table, key)
}

/// A foreign key from `column` of `child` to the key of `parent`.
pub(super) fn refer(
    child: &mut TableDefinition,
    column: usize,
    parent: &mut TableDefinition,
    action: ForeignKeyAction,
    deferred: bool,
) {
    let columns = parent.indexes[0].key_columns().cloned().collect();
    let constraint = foreign_key(child, column, Referenced { table: parent, columns }, action, deferred);
    child.constraints.push(constraint);
    parent.referenced_by.push(incoming(child, action));
}

pub(super) fn incoming(child: &TableDefinition, action: ForeignKeyAction) -> IncomingForeignKey {
    IncomingForeignKey {
        index: None,
        name: Ident::new("fk"),
        schema: child.schema.clone(),
        table: child.table.clone(),
        on_delete: action,
        on_update: action,
    }
}

/// What a foreign key points at.
pub(super) struct Referenced<'a> {
    pub(super) table: &'a TableDefinition,
    pub(super) columns: Vec<Ident>,
}

pub(super) fn foreign_key(
    child: &TableDefinition,
    column: usize,
    referenced: Referenced<'_>,
    action: ForeignKeyAction,
    deferred: bool,
) -> ConstraintDefinition {
    ConstraintDefinition {
        name: Ident::new("fk"),
        kind: ConstraintKind::ForeignKey,
        index: None,
        deferrable: deferred,
        deferred,
        validated: true,
        enforced: true,
        no_inherit: true,
        period: false,
        expression: None,
        columns: Some(vec![child.columns[column].name.clone()]),
        references: Some(ForeignKeyTarget {
            table_id: referenced.table.id,
            schema: referenced.table.schema.clone(),
            name: referenced.table.table.clone(),
            on_delete: action,
            on_update: action,
            matching: 's',
            columns: referenced.columns,
        }),
    }
}

/// Gathers all changes.
pub(super) fn gathered<'a>(changes: &'a [RowChange], targets: &BTreeMap<u32, Arc<Target>>) -> Coalescer<'a> {
    let mut coalescer = Coalescer::default();
    for change in changes {
        let relation = change.relation();
        let table = match coalescer.known(relation) {
            KnownTable::Number(table) => table,
            KnownTable::New => coalescer.add_table(Arc::clone(relation), Arc::clone(&targets[&relation.id.0])),
            KnownTable::Redefined => panic!("one description per table"),
        };
        coalescer.push(table, change);
    }
    coalescer
}

#[derive(Default)]
struct Case {
    tables: BTreeMap<String, (TableDefinition, Vec<usize>)>,
    targets: BTreeMap<u32, Arc<Target>>,
    acting: bool,
    changes: Vec<RowChange>,
}

fn row(values: &[&str]) -> Tuple {
    let datum = |value: &&str| match *value {
        "~" => Datum::Null,
        "^" => Datum::UnchangedToast,
        _ => panic!("{value}"),
    };
    let values = values.iter().map(|value| match *value {
        "~" | "^" => datum(value),
        text => Datum::Text(text.as_bytes()),
    });
    tuple_of(values).unwrap()
}

fn show(tuple: &Tuple) -> String {
    let shown = tuple.columns().map(|value| match value {
        Datum::Null => "~".to_owned(),
        Datum::UnchangedToast => "^".to_owned(),
        Datum::Text(value) | Datum::Binary(value) => String::from_utf8_lossy(value).into_owned(),
    });
    shown.collect::<Vec<_>>().join(" ")
}

impl Case {
    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["acting"] => self.acting = true,
            ["table", name, rest @ ..] => self.table(name, rest),
            ["refer", child, parent] => {
                let mut child_table = self.tables.remove(*child).unwrap();
                let parent = &mut self.tables.get_mut(*parent).unwrap().0;
                refer(&mut child_table.0, 1, parent, ForeignKeyAction::NoAction, false);
                self.tables.insert((*child).to_owned(), child_table);
            }
            [operation, name, values @ ..] => self.change(operation, name, values),
            _ => panic!("{line}"),
        }
    }

    fn table(&mut self, name: &str, words: &[&str]) {
        let end = words.iter().position(|word| matches!(*word, "references" | "trigger" | "numeric"));
        let (columns, rest) = words.split_at(end.unwrap_or(words.len()));
        let id = u32::try_from(self.tables.len() + 1).unwrap();
        let type_id = if rest.contains(&"numeric") { 1700 } else { 25 };
        let (mut table, key) = table_of(id, name, columns, type_id);
        match rest {
            ["references", parent, rest @ ..] => {
                let cascade = rest == ["cascade"];
                let action = if cascade { ForeignKeyAction::Cascade } else { ForeignKeyAction::NoAction };
                refer(&mut table, 1, &mut self.tables.get_mut(*parent).unwrap().0, action, false);
            }
            ["trigger", letter] => {
                let enabled = letter.chars().next().unwrap();
                table.triggers.push(TriggerDefinition { name: Ident::new("t"), enabled });
            }
            _ => {}
        }
        self.tables.insert(name.to_owned(), (table, key));
    }

    fn change(&mut self, operation: &str, name: &str, values: &[&str]) {
        let (table, key) = &self.tables[name];
        let identity = if key.is_empty() { ReplicaIdentity::Nothing } else { ReplicaIdentity::Default };
        let mut relations = self.changes.iter().map(RowChange::relation);
        let known = relations.find(|relation| relation.id.0 == table.id).map(Arc::clone);
        let relation = known.unwrap_or_else(|| relation_of(table, key, identity));
        let by_key = |values: &[&str]| {
            let mut all = vec!["~"; table.columns.len()];
            key.iter().zip(values).for_each(|(index, value)| all[*index] = value);
            OldTuple::Key(row(&all))
        };
        self.changes.push(match operation {
            "insert" => RowChange::Insert { relation, new: row(values) },
            "delete" => RowChange::Delete { relation, old: by_key(values) },
            "update" if values[0].starts_with('[') => {
                let end = values.iter().position(|value| value.ends_with(']')).unwrap();
                let old: Vec<&str> = values[..=end].iter().map(|value| value.trim_matches(['[', ']'])).collect();
                RowChange::Update { relation, old: Some(by_key(&old)), new: row(&values[end + 1..]) }
            }
            "update" => RowChange::Update { relation, old: None, new: row(values) },
            _ => panic!("{operation}"),
        });
    }

    fn result(&mut self) -> String {
        for (table, key) in self.tables.values() {
            let identity = if key.is_empty() { ReplicaIdentity::Nothing } else { ReplicaIdentity::Default };
            let relation = relation_of(table, key, identity);
            self.targets
                .insert(table.id, Arc::new(Target::bind(&relation, table, &testing::types(), Some(table)).unwrap()));
        }
        let coalescer = gathered(&self.changes, &self.targets);
        let effect = coalescer.effect(self.acting);
        let mut text = String::new();
        for part in &effect.parts {
            let (table, what, rows) = match part {
                NetPart::InOrder(places) => {
                    let places: Vec<String> = places.iter().map(u32::to_string).collect();
                    let _ = writeln!(text, "in order {}", places.join(" "));
                    continue;
                }
                NetPart::Set { table, effect, rows } => (coalescer.target(*table), effect, rows),
            };
            let name = table.table.name.as_str();
            let key = |row: crate::apply_plan::net_effect::NetRow| {
                let tuple = effect.key(row);
                let values = key_of(table).iter().map(|index| tuple.columns().nth(*index).unwrap());
                show(&tuple_of(values).unwrap())
            };
            let image = |row: crate::apply_plan::net_effect::NetRow| show(effect.image(row));
            let lines: Vec<String> = rows
                .iter()
                .map(|row| match what {
                    SetEffect::Delete => key(*row),
                    SetEffect::Update(_) => format!("{} → {}", key(*row), image(*row)),
                    SetEffect::Insert => image(*row),
                })
                .collect();
            let operation = match what {
                SetEffect::Delete => format!("delete {name}"),
                SetEffect::Insert => format!("insert {name}"),
                SetEffect::Update(set) => {
                    let set: Vec<&str> = set.iter().map(|index| table.column(*index).unwrap().name.as_str()).collect();
                    format!("update {name} ({})", set.join(" "))
                }
            };
            let _ = writeln!(text, "{operation} {}", lines.join("; "));
        }
        text
    }
}

#[test]
fn the_net_effect_of_each_case_is_what_is_written_there() {
    let text = include_str!("cases.txt");
    let mut wrong = String::new();
    let mut count = 0;
    for case in text.split("\n== ").skip(1) {
        let (title, body) = case.split_once('\n').unwrap();
        let (given, expected) = body.split_once("----\n").unwrap();
        let mut case = Case::default();
        given.lines().filter(|line| !line.trim().is_empty()).for_each(|line| case.line(line));
        let found = case.result();
        count += 1;
        if found.trim() != expected.trim() {
            let _ = writeln!(wrong, "== {title}\nexpected\n{}\nfound\n{found}", expected.trim());
        }
    }
    assert!(count > 25, "only {count} cases were found");
    assert!(wrong.is_empty(), "{wrong}");
}
