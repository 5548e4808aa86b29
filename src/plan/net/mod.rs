//! The changes of a batch into their net effect: what each row is in the end, grouped by table and operation.
//!
//! Stands between `batch` and `sets`. In go row changes with the tables that they belong to; out come [`Part`]s in the
//! order in which they are carried out. Deletes come first, children before parents, then updates, then inserts,
//! parents before children; a table whose changes do not fold exactly keeps them in their original order.
//!
//! A row is followed by its key, from its first change in the batch to its last:
//!
//! ```text
//!             insert k          update k        delete k            update k → k'
//! (unknown)   Born              Changed         Gone                Changed, k is Vacant
//! Born        –                 Born            Vacant              Born, k is Vacant
//! Changed     –                 Changed         Gone                Changed, k is Vacant
//! Gone        Born (and Gone)   –               –                   –
//! Vacant      Born              –               –                   –
//! ```
//!
//! `–`: the stream does not say so of a table with a key. If it does, the table keeps its original order, in which the
//! destination's own checks find what is wrong. A key change stays an update that finds the row by its first key and
//! sets the last one; never a delete and an insert, because an unchanged TOAST value is not in the message and local
//! columns would fall back to their defaults. A row that moves to a key which another has left in the same batch is a
//! hand-over: one statement could not carry it out under a unique index, so the table keeps its order.
//!
//! Rejected: finding unique values that change hands in advance. Old values are not in the stream; a set that meets a
//! unique index is refused by the server, and the batch is done again in its original order.
//!
//! Invariant: *applying the parts equals applying the changes one by one*, or the destination refuses (a constraint, a
//! row count).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;

use super::merge::{has_unchanged, merge};
use super::reaction::{self, Touched};
use crate::pg::{Datum, Relation, Tuple};
use crate::plan::target::{Target, TargetIdentity};
use crate::transaction::Change;

/// A row of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetRow {
    /// Orders rows roughly as the key's index does.
    place: u64,
    /// The row's first change: where the destination finds it.
    first: u32,
    /// The change that holds its last image; behind [`MERGED`], one of the merged tuples.
    image: u32,
}

/// From here on images are merged tuples. A batch has fewer changes: it is bounded by `apply.batch_rows_max` and bytes.
const MERGED: u32 = 1 << 31;

/// What a set does to its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// They go.
    Delete,
    /// Their columns at these places are set.
    Update(Vec<usize>),
    /// They come.
    Insert,
}

/// A part of the net effect.
#[derive(Clone, Debug)]
pub enum Part {
    /// These changes, one by one, as they came.
    InOrder(Vec<u32>),
    /// Rows of one table to which the same is done.
    Set {
        /// The table, as [`Net::add_table`] numbered it.
        table: usize,
        /// What is done.
        effect: Effect,
        /// To which rows; each at most once.
        rows: Vec<NetRow>,
    },
}

/// The net effect of some changes.
#[derive(Debug, Default)]
pub struct NetEffect {
    /// Its parts, in the order in which they are carried out.
    pub parts: Vec<Part>,
    merged: Vec<Tuple>,
}

impl NetEffect {
    /// The tuple that holds the row's key from before the batch.
    pub fn key<'a>(&self, row: NetRow, changes: &'a [Change]) -> &'a Tuple {
        before(&changes[row.first as usize])
    }

    /// The row as it is after the batch.
    pub fn image<'a>(&'a self, row: NetRow, changes: &'a [Change]) -> &'a Tuple {
        match row.image.checked_sub(MERGED) {
            Some(merged) => &self.merged[merged as usize],
            None => after(&changes[row.image as usize]),
        }
    }
}

/// The changes of one table.
#[derive(Debug)]
struct TableChanges {
    relation: Arc<Relation>,
    target: Arc<Target>,
    changes: Vec<u32>,
    inserts: usize,
    updates: usize,
    deletes: usize,
    rekeys: bool,
}

/// Whether a relation is among the tables of a [`Net`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// This one.
    Table(usize),
    /// Not yet.
    New,
    /// As another description: what is gathered must be carried out first.
    Redefined,
}

/// Gathers changes, table by table.
#[derive(Debug, Default)]
pub struct Net {
    tables: Vec<TableChanges>,
    /// The table of the last change: mostly also that of the next.
    last: usize,
    rows: usize,
    hasher: RandomState,
}

impl Net {
    /// Whether changes of `relation` are gathered here.
    pub fn known(&mut self, relation: &Arc<Relation>) -> Known {
        if self.tables.get(self.last).is_some_and(|table| Arc::ptr_eq(&table.relation, relation)) {
            return Known::Table(self.last);
        }
        match self.tables.iter().position(|table| table.relation.id == relation.id) {
            Some(found) if self.tables[found].relation == *relation => {
                self.last = found;
                Known::Table(found)
            }
            Some(_) => Known::Redefined,
            None => Known::New,
        }
    }

    /// Takes in a table; returns its number.
    pub fn add_table(&mut self, relation: Arc<Relation>, target: Arc<Target>) -> usize {
        self.tables.push(TableChanges {
            relation,
            target,
            changes: Vec::new(),
            inserts: 0,
            updates: 0,
            deletes: 0,
            rekeys: false,
        });
        self.last = self.tables.len() - 1;
        self.last
    }

    /// The table of a number.
    ///
    /// # Panics
    /// For a number that [`Net::add_table`] did not give.
    pub fn target(&self, table: usize) -> &Arc<Target> {
        &self.tables[table].target
    }

    /// Takes in the change at `at` of the list, a change of a row of this table.
    pub fn push(&mut self, table: usize, at: u32, change: &Change) {
        let table = &mut self.tables[table];
        match change {
            Change::Insert { .. } => table.inserts += 1,
            Change::Update { old, .. } => {
                table.updates += 1;
                table.rekeys = table.rekeys || old.is_some() && key_changes(&table.target, change);
            }
            Change::Delete { .. } => table.deletes += 1,
            Change::Truncate { .. } => return,
        }
        table.changes.push(at);
        self.rows += 1;
    }

    /// How many changes were taken in.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// All changes as they came.
    pub fn in_order(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.tables.iter().flat_map(|table| table.changes.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.tables.clear();
        self.last = 0;
        self.rows = 0;
    }

    /// The net effect of what was taken in from `changes`; `foreign_keys_act`: the session's role lets foreign keys
    /// and ordinary triggers of the destination act.
    pub fn effect(&self, changes: &[Change], foreign_keys_act: bool) -> NetEffect {
        let touched: Vec<Touched<'_>> = self
            .tables
            .iter()
            .map(|table| Touched {
                target: &table.target,
                inserts: table.inserts > 0,
                updates: table.updates > 0,
                rekeys: table.rekeys,
                deletes: table.deletes > 0,
            })
            .collect();
        let mut effect = NetEffect::default();
        if reaction::needs_order(&touched, foreign_keys_act) {
            effect.parts.push(Part::InOrder(self.in_order()));
            return effect;
        }
        let folded: Vec<Option<Folded>> =
            self.tables.iter().map(|table| self.fold(table, changes, &mut effect.merged)).collect();
        if foreign_keys_act && self.tables.len() > 1 && folded.iter().any(Option::is_none) {
            effect.parts.push(Part::InOrder(self.in_order()));
            return effect;
        }
        let order = reaction::parents_first(&touched);
        let mut inserts = Vec::new();
        let mut updates = Vec::new();
        for (table, folded) in folded.into_iter().enumerate() {
            match folded {
                Some(Folded { deletes, updates: of_table, inserts: new }) => {
                    if !deletes.is_empty() {
                        effect.parts.push(Part::Set { table, effect: Effect::Delete, rows: deletes });
                    }
                    updates.extend(of_table.into_iter().map(|(set, rows)| Part::Set {
                        table,
                        effect: Effect::Update(set),
                        rows,
                    }));
                    if !new.is_empty() {
                        inserts.push(Part::Set { table, effect: Effect::Insert, rows: new });
                    }
                }
                None => effect.parts.push(Part::InOrder(self.tables[table].changes.clone())),
            }
        }
        let place = |part: &Part| match part {
            Part::InOrder(_) => 0,
            Part::Set { table, .. } => order.iter().position(|at| at == table).unwrap_or(0),
        };
        effect.parts.sort_by_key(|part| std::cmp::Reverse(place(part)));
        inserts.sort_by_key(place);
        effect.parts.extend(updates);
        effect.parts.extend(inserts);
        effect
    }

    /// A table's rows, each once; `None` when the original order must be kept.
    fn fold(&self, table: &TableChanges, changes: &[Change], merged: &mut Vec<Tuple>) -> Option<Folded> {
        let target = &table.target;
        if table.updates == 0 && table.deletes == 0 {
            // Nothing to fold; whoever inserts a key twice is told so by the server.
            let rows = table.changes.iter().map(|at| NetRow { place: 0, first: *at, image: *at }).collect();
            return uniform(table, changes).then_some(Folded { inserts: rows, ..Folded::default() });
        }
        let TargetIdentity::Key(key) = &target.identity else { return None };
        let exact = key.iter().all(|place| target.column(*place).is_some_and(|column| column.equal_when_identical));
        if !exact || !uniform(table, changes) {
            return None;
        }
        Folder::new(key, changes, &self.hasher, table.changes.len()).fold(target, &table.changes, merged)
    }
}

/// Whether all values came in the same format, so that one set can hold them.
fn uniform(table: &TableChanges, changes: &[Change]) -> bool {
    let (mut text, mut binary) = (false, false);
    for at in &table.changes {
        for value in after(&changes[*at as usize]).columns() {
            match value {
                Datum::Text(_) => text = true,
                Datum::Binary(_) => binary = true,
                Datum::Null | Datum::UnchangedToast => {}
            }
        }
    }
    !(text && binary)
}

/// What a table's changes come to.
#[derive(Debug, Default)]
struct Folded {
    deletes: Vec<NetRow>,
    updates: Vec<(Vec<usize>, Vec<NetRow>)>,
    inserts: Vec<NetRow>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Born,
    Changed,
    Gone,
    Vacant,
}

/// A row that is followed.
#[derive(Clone, Copy, Debug)]
struct Entity {
    state: State,
    first: u32,
    last: u32,
    /// Where the key stands under which it is found now.
    keyed: (u32, When),
    /// Its key changed, at least for a while.
    moved: bool,
}

/// No earlier change.
const NONE: u32 = u32::MAX;

struct Folder<'a> {
    key: &'a [usize],
    changes: &'a [Change],
    hasher: &'a RandomState,
    entities: Vec<Entity>,
    by_key: HashTable<u32>,
    /// For each change after the first of a row: the one before it. By place in `order`.
    previous: Vec<(u32, u32)>,
}

/// Before or after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Before,
    After,
}

/// The tuple that identifies the row before a change.
fn before(change: &Change) -> &Tuple {
    match change {
        Change::Insert { new, .. } | Change::Update { old: None, new, .. } => new,
        Change::Update { old: Some(old), .. } | Change::Delete { old, .. } => old.tuple(),
        Change::Truncate { .. } => unreachable!("a truncate is no change of a row"),
    }
}

/// The row after a change; for a delete, what it says of the row.
fn after(change: &Change) -> &Tuple {
    match change {
        Change::Insert { new, .. } | Change::Update { new, .. } => new,
        Change::Delete { old, .. } => old.tuple(),
        Change::Truncate { .. } => unreachable!("a truncate is no change of a row"),
    }
}

/// A key column's value; a key whose TOAST value did not change is in the old tuple.
fn key_value(change: &Change, when: When, place: usize) -> Datum<'_> {
    let tuple = match when {
        When::Before => before(change),
        When::After => after(change),
    };
    let value = tuple.columns().nth(place).unwrap_or(Datum::Null);
    match (value, change) {
        (Datum::UnchangedToast, Change::Update { old: Some(old), .. }) => {
            old.tuple().columns().nth(place).unwrap_or(Datum::Null)
        }
        (value, _) => value,
    }
}

/// Whether an update changes its row's key; without a key that is anybody's guess.
fn key_changes(target: &Target, change: &Change) -> bool {
    match &target.identity {
        TargetIdentity::Key(key) => {
            key.iter().any(|place| key_value(change, When::Before, *place) != key_value(change, When::After, *place))
        }
        TargetIdentity::WholeRow | TargetIdentity::None => true,
    }
}

fn key_hash(hasher: &RandomState, key: &[usize], change: &Change, when: When) -> u64 {
    let mut hasher = hasher.build_hasher();
    for place in key {
        key_value(change, when, *place).hash(&mut hasher);
    }
    hasher.finish()
}

impl<'a> Folder<'a> {
    fn new(key: &'a [usize], changes: &'a [Change], hasher: &'a RandomState, rows: usize) -> Folder<'a> {
        Folder {
            key,
            changes,
            hasher,
            entities: Vec::with_capacity(rows),
            by_key: HashTable::with_capacity(rows),
            previous: Vec::new(),
        }
    }

    fn change(&self, at: u32) -> &'a Change {
        &self.changes[at as usize]
    }

    fn hash(&self, at: u32, when: When) -> u64 {
        key_hash(self.hasher, self.key, self.change(at), when)
    }

    fn same_key(&self, (one, when): (u32, When), (other, other_when): (u32, When)) -> bool {
        let (one, other) = (self.change(one), self.change(other));
        self.key.iter().all(|place| key_value(one, when, *place) == key_value(other, other_when, *place))
    }

    /// The entity that has, or last had, the key of a change.
    fn find(&self, hash: u64, at: u32, when: When) -> Option<u32> {
        let found = self.by_key.find(hash, |entity| {
            let entity = &self.entities[*entity as usize];
            self.same_key(entity.keyed, (at, when))
        });
        found.copied()
    }

    /// Follows a row from now on under the key of a change, in the place of whoever had it.
    fn follow(&mut self, entity: Entity, hash: u64, instead_of: Option<u32>) -> u32 {
        let number = u32::try_from(self.entities.len()).unwrap_or(NONE);
        self.entities.push(entity);
        self.enter(number, hash, instead_of);
        number
    }

    fn enter(&mut self, number: u32, hash: u64, instead_of: Option<u32>) {
        match instead_of.and_then(|old| self.by_key.find_mut(hash, |entity| *entity == old)) {
            Some(place) => *place = number,
            None => {
                let Folder { changes, key, hasher, entities, by_key, .. } = self;
                by_key.insert_unique(hash, number, |entity| {
                    let (at, when) = entities[*entity as usize].keyed;
                    key_hash(hasher, key, &changes[at as usize], when)
                });
            }
        }
    }

    /// Follows all rows through; `None` when the stream or a hand-over asks for the original order.
    fn fold(mut self, target: &Target, order: &[u32], merged: &mut Vec<Tuple>) -> Option<Folded> {
        for at in order {
            self.take_in(*at)?;
        }
        self.gather(target, merged)
    }

    fn take_in(&mut self, at: u32) -> Option<()> {
        match self.change(at) {
            Change::Insert { .. } => {
                let hash = self.hash(at, When::After);
                let found = self.find(hash, at, When::After);
                match found.map(|number| self.entities[number as usize].state) {
                    None | Some(State::Gone | State::Vacant) => {
                        let entity = Entity::new(State::Born, at, When::After);
                        self.follow(entity, hash, found);
                        Some(())
                    }
                    Some(State::Born | State::Changed) => None,
                }
            }
            Change::Update { old, .. } => {
                let hash = self.hash(at, When::Before);
                let found = self.find(hash, at, When::Before);
                let number = match found.map(|number| (number, self.entities[number as usize].state)) {
                    Some((number, State::Born | State::Changed)) => {
                        let entity = &mut self.entities[number as usize];
                        self.previous.push((at, entity.last));
                        entity.last = at;
                        number
                    }
                    Some((_, State::Gone | State::Vacant)) => return None,
                    None => self.follow(Entity::new(State::Changed, at, When::Before), hash, None),
                };
                if old.is_some() && !self.same_key((at, When::Before), (at, When::After)) {
                    return self.moved(number, at, hash);
                }
                Some(())
            }
            Change::Delete { .. } => {
                let hash = self.hash(at, When::Before);
                match self.find(hash, at, When::Before) {
                    None => {
                        self.follow(Entity::new(State::Gone, at, When::Before), hash, None);
                        Some(())
                    }
                    Some(number) => {
                        let entity = &mut self.entities[number as usize];
                        entity.state = match entity.state {
                            State::Born => State::Vacant,
                            State::Changed => State::Gone,
                            State::Gone | State::Vacant => return None,
                        };
                        Some(())
                    }
                }
            }
            Change::Truncate { .. } => None,
        }
    }

    /// A row's key changes: it leaves one place and comes to another.
    fn moved(&mut self, number: u32, at: u32, left_hash: u64) -> Option<()> {
        let hash = self.hash(at, When::After);
        let there = self.find(hash, at, When::After).filter(|found| *found != number);
        match there.map(|found| self.entities[found as usize].state) {
            None | Some(State::Gone) => {}
            // Occupied, or left by another row of this batch.
            Some(State::Born | State::Changed | State::Vacant) => return None,
        }
        // Whoever looks for the old key finds it vacant: the marker takes the row's entry over.
        let marker = Entity::new(State::Vacant, at, When::Before);
        let marker_number = u32::try_from(self.entities.len()).unwrap_or(NONE);
        self.entities.push(marker);
        if let Some(place) = self.by_key.find_mut(left_hash, |entity| *entity == number) {
            *place = marker_number;
        }
        let entity = &mut self.entities[number as usize];
        entity.keyed = (at, When::After);
        entity.moved = true;
        self.enter(number, hash, there);
        Some(())
    }

    fn gather(self, target: &Target, merged: &mut Vec<Tuple>) -> Option<Folded> {
        let mut folded = Folded::default();
        let mut set = Vec::new();
        let plain = super::statement::columns_to_set_when_complete(target);
        let sorts = super::sets::KeyOrder::of(target, self.key);
        for entity in &self.entities {
            let place = || sorts.place(before(self.change(entity.first)));
            match entity.state {
                State::Vacant => {}
                State::Gone => {
                    folded.deletes.push(NetRow { place: place(), first: entity.first, image: entity.first });
                }
                State::Born => {
                    let image = self.image(entity, merged);
                    if has_unchanged(self.tuple(image, merged)) {
                        return None;
                    }
                    folded.inserts.push(NetRow { place: 0, first: entity.first, image });
                }
                State::Changed => {
                    let image = self.image(entity, merged);
                    let tuple = self.tuple(image, merged);
                    let key_changed = self.key_changed(entity);
                    let row = NetRow { place: place(), first: entity.first, image };
                    if !key_changed && !has_unchanged(tuple) {
                        set.clone_from(&plain);
                    } else {
                        let old = key_changed.then(|| before(self.change(entity.first)));
                        set = super::statement::columns_to_set(target, old, tuple);
                    }
                    if set.is_empty() {
                        // Nothing can be set: an update of a row of GENERATED ALWAYS columns alone.
                        continue;
                    }
                    match folded.updates.iter_mut().find(|(known, _)| *known == set) {
                        Some((_, rows)) => rows.push(row),
                        None => folded.updates.push((set.clone(), vec![row])),
                    }
                }
            }
        }
        folded.deletes.sort_unstable_by_key(|row| (row.place, row.first));
        for (_, rows) in &mut folded.updates {
            rows.sort_unstable_by_key(|row| (row.place, row.first));
        }
        Some(folded)
    }

    fn key_changed(&self, entity: &Entity) -> bool {
        entity.moved && !self.same_key((entity.first, When::Before), entity.keyed)
    }

    fn tuple<'b>(&'b self, image: u32, merged: &'b [Tuple]) -> &'b Tuple {
        match image.checked_sub(MERGED) {
            Some(at) => &merged[at as usize],
            None => after(self.change(image)),
        }
    }

    /// The row's last image; values that its last update did not send come from the changes before.
    fn image(&self, entity: &Entity, merged: &mut Vec<Tuple>) -> u32 {
        let last = after(self.change(entity.last));
        if entity.last == entity.first || !has_unchanged(last) {
            return entity.last;
        }
        let mut chain = vec![last];
        let mut at = entity.last;
        // Later changes come later in the list, so each is found by its own place.
        while let Ok(found) = self.previous.binary_search_by_key(&at, |(change, _)| *change) {
            at = self.previous[found].1;
            chain.push(after(self.change(at)));
        }
        let number = u32::try_from(merged.len()).unwrap_or(0);
        merged.push(merge(&chain));
        MERGED + number
    }
}

impl Entity {
    fn new(state: State, at: u32, when: When) -> Entity {
        Entity { state, first: at, last: at, keyed: (at, when), moved: false }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
