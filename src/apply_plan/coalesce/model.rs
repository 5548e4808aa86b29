//! A model of a database, and the property that holds this module together: applying the net effect equals applying the
//! changes one by one.
//!
//! The model knows keys, secondary unique keys (checked row by row, or at the end), foreign keys with their actions
//! (checked after each statement, or at the end), self-references and circles. A seeded generator makes schemas, rows and
//! transactions; the source carries them out with everything acting and writes down what pgoutput would send. Then a
//! destination applies the net effect, with foreign keys asleep and awake. What it refuses it applies again in the
//! original order, as `destination::apply` does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;

use super::tests::{Referenced, foreign_key, gathered, incoming, relation_of, table_of};
use super::{Coalescer, NetEffect, NetPart};
use crate::apply_plan::merge::tuple_of;
use crate::apply_plan::net_effect::{NetRow, SetEffect};
use crate::apply_plan::row_by_row::columns_to_set;
use crate::apply_plan::sets::key_of;
use crate::apply_plan::target::{Target, TargetIdentity};
use crate::catalog::schema::{ForeignKeyAction, TableDefinition};
use crate::pg::{Datum, Ident, Relation, ReplicaIdentity, Tuple};
use crate::testing;
use crate::transaction::RowChange;
use crate::wire::OldTuple;

type Value = Option<u8>;
type Row = Vec<Value>;

#[derive(Clone, Debug)]
struct ForeignKey {
    column: usize,
    parent: usize,
    action: ForeignKeyAction,
    deferred: bool,
}

#[derive(Clone, Debug)]
struct Unique {
    columns: Vec<usize>,
    deferred: bool,
}

#[derive(Clone, Debug)]
struct Table {
    definition: TableDefinition,
    key: Vec<usize>,
    identity: ReplicaIdentity,
    uniques: Vec<Unique>,
    foreign_keys: Vec<ForeignKey>,
    /// Its values are kept out of line: an update that leaves them alone does not send them.
    toasted: Option<usize>,
}

#[derive(Clone, Debug)]
struct Database {
    tables: Arc<Vec<Table>>,
    rows: Vec<Vec<Row>>,
    /// Foreign keys act.
    acting: bool,
}

/// The destination refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused;

/// A change of a row, before it becomes a message.
#[derive(Clone, Debug)]
enum Done {
    Insert(usize, Row),
    Update(usize, Row, Row),
    Delete(usize, Row),
}

impl Database {
    fn content(&self) -> Vec<BTreeMap<Row, usize>> {
        let count = |rows: &Vec<Row>| {
            let mut counted = BTreeMap::new();
            rows.iter().for_each(|row| *counted.entry(row.clone()).or_insert(0) += 1);
            counted
        };
        self.rows.iter().map(count).collect()
    }

    fn unique_holds(&self, table: usize, unique: &Unique) -> bool {
        let mut seen = BTreeSet::new();
        self.rows[table].iter().all(|row| {
            let values: Vec<Value> = unique.columns.iter().map(|index| row[*index]).collect();
            values.contains(&None) || seen.insert(values)
        })
    }

    fn uniques_hold(&self, table: usize, deferred: bool) -> Result<(), Refused> {
        let mut uniques = self.tables[table].uniques.iter().filter(|unique| unique.deferred == deferred);
        if uniques.all(|unique| self.unique_holds(table, unique)) { Ok(()) } else { Err(Refused) }
    }

    fn foreign_keys_hold(&self, deferred: bool) -> Result<(), Refused> {
        if !self.acting {
            return Ok(());
        }
        for (table, definition) in self.tables.iter().enumerate() {
            for key in definition.foreign_keys.iter().filter(|key| key.deferred == deferred) {
                let parent_key = self.tables[key.parent].key[0];
                let parents: BTreeSet<Value> = self.rows[key.parent].iter().map(|row| row[parent_key]).collect();
                if self.rows[table].iter().any(|row| row[key.column].is_some() && !parents.contains(&row[key.column])) {
                    return Err(Refused);
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, table: usize, row: Row, done: &mut Vec<Done>) -> Result<(), Refused> {
        done.push(Done::Insert(table, row.clone()));
        self.rows[table].push(row);
        self.uniques_hold(table, false)
    }

    fn update(&mut self, table: usize, at: usize, row: Row, done: &mut Vec<Done>) -> Result<(), Refused> {
        let old = std::mem::replace(&mut self.rows[table][at], row.clone());
        done.push(Done::Update(table, old.clone(), row.clone()));
        self.uniques_hold(table, false)?;
        self.follow(table, &old, Some(&row), done)
    }

    fn delete(&mut self, table: usize, at: usize, done: &mut Vec<Done>) -> Result<(), Refused> {
        let old = self.rows[table].remove(at);
        done.push(Done::Delete(table, old.clone()));
        self.follow(table, &old, None, done)
    }

    /// What foreign keys do about a parent that went or changed its key.
    fn follow(&mut self, parent: usize, old: &Row, new: Option<&Row>, done: &mut Vec<Done>) -> Result<(), Refused> {
        if !self.acting {
            return Ok(());
        }
        let index = self.tables[parent].key[0];
        let value = old[index];
        if new.is_some_and(|new| new[index] == value) {
            return Ok(());
        }
        let tables = Arc::clone(&self.tables);
        for (child, definition) in tables.iter().enumerate() {
            for key in definition.foreign_keys.iter().filter(|key| key.parent == parent) {
                while let Some(at) = self.rows[child].iter().position(|row| row[key.column] == value) {
                    let mut row = self.rows[child][at].clone();
                    row[key.column] = new.and_then(|new| new[index]);
                    match (key.action, new) {
                        (ForeignKeyAction::Cascade, None) => self.delete(child, at, done)?,
                        (ForeignKeyAction::Cascade, Some(_)) => self.update(child, at, row, done)?,
                        (ForeignKeyAction::SetNull, _) => {
                            row[key.column] = None;
                            if definition.key.contains(&key.column) {
                                return Err(Refused);
                            }
                            self.update(child, at, row, done)?;
                        }
                        (ForeignKeyAction::NoAction | ForeignKeyAction::Restrict | ForeignKeyAction::SetDefault, _) => {
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn end_of_statement(&self) -> Result<(), Refused> {
        self.foreign_keys_hold(false)
    }

    fn commit(&self) -> Result<(), Refused> {
        (0..self.tables.len()).try_for_each(|table| self.uniques_hold(table, true))?;
        self.foreign_keys_hold(true)
    }

    /// The rows whose key columns are as in `key`.
    fn found(&self, table: usize, target: &Target, key: &Tuple) -> Vec<usize> {
        let key = read(key);
        match &target.identity {
            TargetIdentity::Key(indexes) => {
                let same = |row: &Row| indexes.iter().all(|index| Sent::Value(row[*index]) == key[*index]);
                (0..self.rows[table].len()).filter(|at| same(&self.rows[table][*at])).collect()
            }
            TargetIdentity::WholeRow | TargetIdentity::None => {
                let same = |row: &Row| row.iter().zip(&key).all(|(value, key)| Sent::Value(*value) == *key);
                (0..self.rows[table].len()).find(|at| same(&self.rows[table][*at])).into_iter().collect()
            }
        }
    }

    /// A change as a statement of its own.
    fn one_by_one(&mut self, target: &Target, table: usize, change: &RowChange) -> Result<(), Refused> {
        let mut ignored = Vec::new();
        match change {
            RowChange::Insert { new, .. } => self.insert(table, complete(new), &mut ignored)?,
            RowChange::Update { old, new, .. } => {
                let key = old.as_ref().map_or(new, OldTuple::tuple);
                let set = columns_to_set(target, old.as_ref().map(OldTuple::tuple), new);
                let [at] = self.found(table, target, key)[..] else { return Err(Refused) };
                let row = self.changed(table, at, &set, new);
                self.update(table, at, row, &mut ignored)?;
            }
            RowChange::Delete { old, .. } => {
                if let Some(at) = self.found(table, target, old.tuple()).first() {
                    self.delete(table, *at, &mut ignored)?;
                }
            }
        }
        self.end_of_statement()
    }

    fn changed(&self, table: usize, at: usize, set: &[usize], image: &Tuple) -> Row {
        let mut row = self.rows[table][at].clone();
        let image = read(image);
        for index in set {
            if let Sent::Value(value) = image[*index] {
                row[*index] = value;
            }
        }
        row
    }

    /// A set as one statement: it sees the rows as they were before it, and checks them one after the other.
    fn set(
        &mut self,
        target: &Target,
        table: usize,
        net: &NetEffect<'_>,
        effect: &SetEffect,
        rows: &[NetRow],
    ) -> Result<(), Refused> {
        let mut ignored = Vec::new();
        match effect {
            SetEffect::Insert => {
                for row in rows {
                    self.insert(table, complete(net.image(*row)), &mut ignored)?;
                }
            }
            SetEffect::Delete => {
                for row in rows {
                    if let Some(at) = self.found(table, target, net.key(*row)).first() {
                        self.delete(table, *at, &mut ignored)?;
                    }
                }
            }
            SetEffect::Update(set) => {
                let mut planned = Vec::new();
                for row in rows {
                    for at in self.found(table, target, net.key(*row)) {
                        planned.push((at, self.changed(table, at, set, net.image(*row))));
                    }
                }
                if planned.len() != rows.len() {
                    return Err(Refused);
                }
                for (at, row) in planned {
                    self.update(table, at, row, &mut ignored)?;
                }
            }
        }
        self.end_of_statement()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Value(Value),
    Unchanged,
}

fn read(tuple: &Tuple) -> Vec<Sent> {
    let sent = |value: Datum<'_>| match value {
        Datum::Null => Sent::Value(None),
        Datum::UnchangedToast => Sent::Unchanged,
        Datum::Text(value) | Datum::Binary(value) => {
            Sent::Value(Some(std::str::from_utf8(value).unwrap().parse().unwrap()))
        }
    };
    tuple.columns().map(sent).collect()
}

fn complete(tuple: &Tuple) -> Row {
    let value = |sent| match sent {
        Sent::Value(value) => value,
        Sent::Unchanged => panic!("a new row lacks a value"),
    };
    read(tuple).into_iter().map(value).collect()
}

fn tuple(row: &Row, left_out: impl Fn(usize) -> Option<Sent>) -> Tuple {
    let texts: Vec<Option<String>> = row.iter().map(|value| value.map(|value| value.to_string())).collect();
    let values = texts.iter().enumerate().map(|(index, text)| match left_out(index) {
        Some(Sent::Unchanged) => Datum::UnchangedToast,
        Some(Sent::Value(_)) => Datum::Null,
        None => text.as_ref().map_or(Datum::Null, |text| Datum::Text(text.as_bytes())),
    });
    tuple_of(values).unwrap()
}

/// What pgoutput sends for a change.
fn message(tables: &[Table], relations: &[Arc<Relation>], done: &Done) -> RowChange {
    let (Done::Insert(table, _) | Done::Update(table, _, _) | Done::Delete(table, _)) = done;
    let (definition, relation) = (&tables[*table], Arc::clone(&relations[*table]));
    let only_key = |index: usize| (!definition.key.contains(&index)).then_some(Sent::Value(None));
    let old = |row: &Row| match definition.identity {
        ReplicaIdentity::Full => OldTuple::Row(tuple(row, |_| None)),
        ReplicaIdentity::Default | ReplicaIdentity::Index | ReplicaIdentity::Nothing => {
            OldTuple::Key(tuple(row, only_key))
        }
    };
    match done {
        Done::Insert(_, row) => RowChange::Insert { relation, new: tuple(row, |_| None) },
        Done::Delete(_, row) => RowChange::Delete { relation, old: old(row) },
        Done::Update(_, before, after) => {
            let kept = |index: usize| definition.toasted == Some(index) && before[index] == after[index];
            let sends_old = definition.identity == ReplicaIdentity::Full
                || definition.key.iter().any(|index| before[*index] != after[*index]);
            RowChange::Update {
                relation,
                old: sends_old.then(|| old(before)),
                new: tuple(after, |index| kept(index).then_some(Sent::Unchanged)),
            }
        }
    }
}

fn random_tables(rng: &mut Rng) -> Vec<Table> {
    let count = rng.usize(1..4);
    let mut tables: Vec<Table> = Vec::new();
    for id in 0..count {
        let composite = rng.u8(..5) == 0;
        let width = rng.usize(3..6);
        let columns: Vec<String> = (0..width)
            .map(|index| format!("c{index}{}", if index == 0 || composite && index == 1 { "*" } else { "" }))
            .collect();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let (definition, key) = table_of(u32::try_from(id + 1).unwrap(), &format!("t{id}"), &columns, 25);
        let identity = match rng.u8(..6) {
            0 => ReplicaIdentity::Full,
            1 => ReplicaIdentity::Index,
            _ => ReplicaIdentity::Default,
        };
        let mut uniques = vec![Unique { columns: key.clone(), deferred: false }];
        if rng.u8(..3) == 0 {
            uniques.push(Unique { columns: vec![width - 1], deferred: rng.bool() });
        }
        let toasted = (rng.u8(..3) == 0).then_some(width - 2).filter(|index| !key.contains(index));
        tables.push(Table { definition, key, identity, uniques, foreign_keys: Vec::new(), toasted });
    }
    // A table with rows that may repeat: nothing to find them by but the whole row.
    if rng.u8(..5) == 0 {
        let last = tables.len() - 1;
        let table = &mut tables[last];
        table.identity = ReplicaIdentity::Full;
        table.definition.indexes.clear();
        table.uniques.clear();
    }
    for child in 0..count {
        let parent = rng.usize(..count);
        let usable = tables[parent].key.len() == 1 && !tables[parent].definition.indexes.is_empty();
        let column = tables[child].key.len();
        if usable && rng.u8(..3) > 0 && tables[child].toasted != Some(column) {
            let actions = [ForeignKeyAction::NoAction, ForeignKeyAction::Cascade, ForeignKeyAction::SetNull];
            let action = actions[rng.usize(..3)];
            let deferred = rng.bool() && action == ForeignKeyAction::NoAction;
            let referenced = Referenced { table: &tables[parent].definition, columns: vec![Ident::new("c0")] };
            let constraint = foreign_key(&tables[child].definition, column, referenced, action, deferred);
            let from = incoming(&tables[child].definition, action);
            tables[child].definition.constraints.push(constraint);
            tables[child].foreign_keys.push(ForeignKey { column, parent, action, deferred });
            tables[parent].definition.referenced_by.push(from);
        }
    }
    tables
}

const VALUES: u8 = 7;

fn random_row(rng: &mut Rng, table: &Table) -> Row {
    let value = |index: usize, rng: &mut Rng| (table.key.contains(&index) || rng.u8(..5) > 0).then(|| rng.u8(..VALUES));
    (0..table.definition.columns.len()).map(|index| value(index, rng)).collect()
}

/// One statement of the source's application; refused, it leaves nothing.
fn random_statement(rng: &mut Rng, source: &mut Database, done: &mut Vec<Done>) -> Result<(), Refused> {
    let table = rng.usize(..source.tables.len());
    let tables = Arc::clone(&source.tables);
    let definition = &tables[table];
    let count = source.rows[table].len();
    match rng.u8(..10) {
        0..4 => {
            let row = random_row(rng, definition);
            source.insert(table, row, done)?;
        }
        4..8 if count > 0 => {
            let at = rng.usize(..count);
            let fresh = random_row(rng, definition);
            let mut row = source.rows[table][at].clone();
            let rekeys = rng.u8(..4) == 0;
            for index in 0..row.len() {
                if definition.key.contains(&index) && !definition.definition.indexes.is_empty() {
                    if rekeys {
                        row[index] = fresh[index];
                    }
                } else if rng.bool() {
                    row[index] = fresh[index];
                }
            }
            source.update(table, at, row, done)?;
        }
        _ if count > 0 => source.delete(table, rng.usize(..count), done)?,
        _ => {}
    }
    source.end_of_statement()
}

#[derive(Default)]
struct Outcome {
    sets: usize,
    in_order: usize,
    refused: usize,
}

/// What a source has done, and what its stream says of it.
struct Scenario {
    tables: Arc<Vec<Table>>,
    relations: Vec<Arc<Relation>>,
    targets: BTreeMap<u32, Arc<Target>>,
    /// The rows before the changes.
    before: Vec<Vec<Row>>,
    /// The source after them.
    source: Database,
    changes: Vec<RowChange>,
}

/// One transaction of the source's application; what is refused leaves nothing.
fn random_transaction(rng: &mut Rng, source: &mut Database, statements: usize) -> Vec<Done> {
    let mut done = Vec::new();
    let before = source.clone();
    for _ in 0..statements {
        let savepoint = (source.clone(), done.len());
        if random_statement(rng, source, &mut done).is_err() {
            *source = savepoint.0;
            done.truncate(savepoint.1);
        }
    }
    if source.commit().is_err() {
        *source = before;
        done.clear();
    }
    done
}

impl Scenario {
    fn of_seed(seed: u64) -> Scenario {
        let mut rng = Rng::with_seed(seed);
        let tables = Arc::new(random_tables(&mut rng));
        let relation = |table: &Table| relation_of(&table.definition, &table.key, table.identity);
        let relations: Vec<Arc<Relation>> = tables.iter().map(relation).collect();
        let target = |(relation, table): (&Arc<Relation>, &Table)| {
            let target = Target::bind(relation, &table.definition, &testing::types(), Some(&table.definition));
            (relation.id.0, Arc::new(target.unwrap()))
        };
        let targets = relations.iter().zip(tables.iter()).map(target).collect();
        let mut source = Database { rows: vec![Vec::new(); tables.len()], tables: Arc::clone(&tables), acting: true };
        for _ in 0..3 {
            random_transaction(&mut rng, &mut source, 8);
        }
        let before = source.rows.clone();
        let mut done = Vec::new();
        for statements in [1, 3, 6, 2, 5] {
            done.extend(random_transaction(&mut rng, &mut source, statements));
        }
        let changes = done.iter().map(|done| message(&tables, &relations, done)).collect();
        Scenario { tables, relations, targets, before, source, changes }
    }

    /// The destination before the changes.
    fn destination(&self, acting: bool) -> Database {
        Database { rows: self.before.clone(), tables: Arc::clone(&self.tables), acting }
    }

    fn one_by_one(&self, database: &mut Database, change: &RowChange) -> Result<(), Refused> {
        let table = change.relation().id.0 as usize - 1;
        database.one_by_one(&self.targets[&self.relations[table].id.0], table, change)
    }

    fn by_net_effect(&self, seed: u64, database: &mut Database, outcome: &mut Outcome) -> Result<(), Refused> {
        let coalescer: Coalescer<'_> = gathered(&self.changes, &self.targets);
        let effect = coalescer.effect(database.acting);
        for part in &effect.parts {
            match part {
                NetPart::InOrder(numbers) => {
                    outcome.in_order += 1;
                    numbers.iter().try_for_each(|number| self.one_by_one(database, effect.change(*number)))?;
                }
                NetPart::Set { table, effect: what, rows } => {
                    outcome.sets += 1;
                    let target = coalescer.target(*table);
                    if !matches!(what, SetEffect::Insert) {
                        assert!(!key_of(target).is_empty(), "seed {seed}: a set finds its rows by a key");
                    }
                    database.set(target, target.table_id as usize - 1, &effect, what, rows)?;
                }
            }
        }
        database.commit()
    }
}

fn schedule(seed: u64, outcome: &mut Outcome) {
    let scenario = Scenario::of_seed(seed);
    let Scenario { source, changes, .. } = &scenario;
    for acting in [false, true] {
        let mut one_by_one = scenario.destination(acting);
        let expected = changes.iter().try_for_each(|change| scenario.one_by_one(&mut one_by_one, change));
        let expected = expected.and_then(|()| one_by_one.commit());
        if !acting {
            assert_eq!(expected, Ok(()), "seed {seed}: the changes can be applied one by one");
            assert_eq!(one_by_one.content(), source.content(), "seed {seed}: and that is what the source has");
        }
        let mut by_net = scenario.destination(acting);
        match (scenario.by_net_effect(seed, &mut by_net, outcome), expected) {
            (Ok(()), Ok(())) => {
                assert_eq!(
                    by_net.content(),
                    one_by_one.content(),
                    "seed {seed}, foreign keys act: {acting}\n{changes:#?}"
                );
            }
            // The source allowed it, the original order does not allow it here: then it must at least be what the source has.
            (Ok(()), Err(Refused)) => assert_eq!(by_net.content(), source.content(), "seed {seed}: {acting}"),
            (Err(Refused), _) => outcome.refused += 1,
        }
    }
}

/// So many take a few seconds.
const SCHEDULES: u64 = 6000;

#[test]
fn applying_the_net_effect_equals_applying_the_changes_one_by_one() {
    let mut outcome = Outcome::default();
    for seed in 0..SCHEDULES {
        schedule(seed, &mut outcome);
    }
    let Outcome { sets, in_order, refused } = outcome;
    assert!(sets > in_order && refused * 4 < sets, "{sets} sets, {in_order} in order, {refused} refused");
}
