//! The changes of one table, folded: each row by its key, from its first change to its last.
//!
//! Called by [`Coalescer`](super::Coalescer) for a table with a key whose values can be compared; the table of states stands there. What
//! does not fold exactly is given back as `None`, and the table keeps its original order.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};

use hashbrown::HashTable;

use crate::apply_plan::merge::{has_unchanged, merge};
use crate::apply_plan::net_effect::{MERGED, NetRow};
use crate::apply_plan::target::{Target, TargetIdentity};
use crate::pg::{Datum, Tuple};
use crate::transaction::RowChange;

/// What a table's changes come to.
#[derive(Debug, Default)]
pub(super) struct Folded {
    pub(super) deletes: Vec<NetRow>,
    pub(super) updates: Vec<(Vec<usize>, Vec<NetRow>)>,
    pub(super) inserts: Vec<NetRow>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntityState {
    Inserted,
    Changed,
    Deleted,
    KeyFreed,
}

/// A row that is followed.
#[derive(Clone, Copy, Debug)]
struct Entity {
    state: EntityState,
    first: u32,
    last: u32,
    /// Where the key stands under which it is found now.
    keyed: KeyAt,
    /// Its key changed, at least for a while.
    moved: bool,
}

/// Follows the rows of a table.
pub(super) struct Folder<'a> {
    key: &'a [usize],
    /// What was gathered, of all tables.
    changes: &'a [Gathered<'a>],
    hasher: &'a RandomState,
    entities: Vec<Entity>,
    by_key: HashTable<u32>,
    /// For each change after the first of a row: the one before it. By index in `order`.
    previous: Vec<(u32, u32)>,
}

/// Before or after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Before,
    After,
}

/// A row's key, before or after the change with this number.
#[derive(Clone, Copy, Debug)]
struct KeyAt {
    at: u32,
    when: When,
}

/// A change that was gathered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathered<'a> {
    /// Its table's number.
    pub(super) table: usize,
    pub(super) change: &'a RowChange,
}

/// Why a tuple has every column of the key.
const AS_WIDE: &str = "the assembler refuses tuples that are not as wide as their relation";

/// A key column's value; a key whose TOAST value did not change is in the old tuple.
fn key_value(change: &RowChange, when: When, index: usize) -> Datum<'_> {
    let tuple = match when {
        When::Before => change.identity(),
        When::After => change.image(),
    };
    let value = tuple.columns().nth(index).expect(AS_WIDE);
    match (value, change) {
        (Datum::UnchangedToast, RowChange::Update { old: Some(old), .. }) => {
            old.tuple().columns().nth(index).expect(AS_WIDE)
        }
        (value, _) => value,
    }
}

/// Whether an update changes its row's key; without a key that is anybody's guess.
pub(super) fn key_changes(target: &Target, change: &RowChange) -> bool {
    match &target.identity {
        TargetIdentity::Key(key) => {
            key.iter().any(|index| key_value(change, When::Before, *index) != key_value(change, When::After, *index))
        }
        TargetIdentity::WholeRow | TargetIdentity::None => true,
    }
}

fn key_hash(hasher: &RandomState, key: &[usize], change: &RowChange, when: When) -> u64 {
    let mut hasher = hasher.build_hasher();
    for index in key {
        key_value(change, when, *index).hash(&mut hasher);
    }
    hasher.finish()
}

impl<'a> Folder<'a> {
    pub(super) fn new(
        key: &'a [usize],
        changes: &'a [Gathered<'a>],
        hasher: &'a RandomState,
        rows: usize,
    ) -> Folder<'a> {
        Folder {
            key,
            changes,
            hasher,
            entities: Vec::with_capacity(rows),
            by_key: HashTable::with_capacity(rows),
            previous: Vec::new(),
        }
    }

    fn change(&self, at: u32) -> &'a RowChange {
        self.changes[at as usize].change
    }

    fn hash(&self, at: u32, when: When) -> u64 {
        key_hash(self.hasher, self.key, self.change(at), when)
    }

    fn same_key(&self, one: KeyAt, other: KeyAt) -> bool {
        let value = |key: KeyAt, index: usize| key_value(self.change(key.at), key.when, index);
        self.key.iter().all(|index| value(one, *index) == value(other, *index))
    }

    /// The entity that has, or last had, the key of a change.
    fn find(&self, hash: u64, at: u32, when: When) -> Option<u32> {
        let found = self.by_key.find(hash, |entity| {
            let entity = &self.entities[*entity as usize];
            self.same_key(entity.keyed, KeyAt { at, when })
        });
        found.copied()
    }

    /// Follows a row from now on under the key of a change, in the place of the row that had it.
    fn follow(&mut self, entity: Entity, hash: u64, instead_of: Option<u32>) -> u32 {
        let number = u32::try_from(self.entities.len()).expect("a batch has fewer rows than apply.batch_rows_max");
        self.entities.push(entity);
        self.enter(number, hash, instead_of);
        number
    }

    fn enter(&mut self, number: u32, hash: u64, instead_of: Option<u32>) {
        match instead_of.and_then(|old| self.by_key.find_mut(hash, |entity| *entity == old)) {
            Some(known) => *known = number,
            None => {
                let Folder { changes, key, hasher, entities, by_key, .. } = self;
                by_key.insert_unique(hash, number, |entity| {
                    let KeyAt { at, when } = entities[*entity as usize].keyed;
                    key_hash(hasher, key, changes[at as usize].change, when)
                });
            }
        }
    }

    /// Follows all rows through; `None` when the stream or a hand-over asks for the original order.
    pub(super) fn fold(mut self, target: &Target, order: &[u32], merged: &mut Vec<Tuple>) -> Option<Folded> {
        for at in order {
            self.take_in(*at)?;
        }
        self.gather(target, merged)
    }

    fn take_in(&mut self, at: u32) -> Option<()> {
        match self.change(at) {
            RowChange::Insert { .. } => {
                let hash = self.hash(at, When::After);
                let found = self.find(hash, at, When::After);
                match found.map(|number| self.entities[number as usize].state) {
                    None | Some(EntityState::Deleted | EntityState::KeyFreed) => {
                        let entity = Entity::new(EntityState::Inserted, at, When::After);
                        self.follow(entity, hash, found);
                        Some(())
                    }
                    Some(EntityState::Inserted | EntityState::Changed) => None,
                }
            }
            RowChange::Update { old, .. } => {
                let hash = self.hash(at, When::Before);
                let found = self.find(hash, at, When::Before);
                let number = match found.map(|number| (number, self.entities[number as usize].state)) {
                    Some((number, EntityState::Inserted | EntityState::Changed)) => {
                        let entity = &mut self.entities[number as usize];
                        self.previous.push((at, entity.last));
                        entity.last = at;
                        number
                    }
                    Some((_, EntityState::Deleted | EntityState::KeyFreed)) => return None,
                    None => self.follow(Entity::new(EntityState::Changed, at, When::Before), hash, None),
                };
                if old.is_some() && !self.same_key(KeyAt { at, when: When::Before }, KeyAt { at, when: When::After }) {
                    return self.moved(number, at, hash);
                }
                Some(())
            }
            RowChange::Delete { .. } => {
                let hash = self.hash(at, When::Before);
                match self.find(hash, at, When::Before) {
                    None => {
                        self.follow(Entity::new(EntityState::Deleted, at, When::Before), hash, None);
                        Some(())
                    }
                    Some(number) => {
                        let entity = &mut self.entities[number as usize];
                        entity.state = match entity.state {
                            EntityState::Inserted => EntityState::KeyFreed,
                            EntityState::Changed => EntityState::Deleted,
                            EntityState::Deleted | EntityState::KeyFreed => return None,
                        };
                        Some(())
                    }
                }
            }
        }
    }

    /// A row's key changes: it leaves one place and comes to another.
    fn moved(&mut self, number: u32, at: u32, left_hash: u64) -> Option<()> {
        let hash = self.hash(at, When::After);
        let there = self.find(hash, at, When::After).filter(|found| *found != number);
        match there.map(|found| self.entities[found as usize].state) {
            None | Some(EntityState::Deleted) => {}
            // Occupied, or left by another row of this batch.
            Some(EntityState::Inserted | EntityState::Changed | EntityState::KeyFreed) => return None,
        }
        // A lookup of the old key finds it vacant: the marker takes the row's entry over.
        let marker = Entity::new(EntityState::KeyFreed, at, When::Before);
        let marker_number =
            u32::try_from(self.entities.len()).expect("a batch has fewer rows than apply.batch_rows_max");
        self.entities.push(marker);
        if let Some(known) = self.by_key.find_mut(left_hash, |entity| *entity == number) {
            *known = marker_number;
        }
        let entity = &mut self.entities[number as usize];
        entity.keyed = KeyAt { at, when: When::After };
        entity.moved = true;
        self.enter(number, hash, there);
        Some(())
    }

    fn gather(self, target: &Target, merged: &mut Vec<Tuple>) -> Option<Folded> {
        let mut folded = Folded::default();
        let mut set = Vec::new();
        let plain = crate::apply_plan::row_by_row::columns_to_set_when_complete(target);
        let sorts = crate::apply_plan::sets::KeyOrder::of(target, self.key);
        for entity in &self.entities {
            let sort_key = || sorts.sort_key(self.change(entity.first).identity());
            match entity.state {
                EntityState::KeyFreed => {}
                EntityState::Deleted => {
                    folded.deletes.push(NetRow { sort_key: sort_key(), first: entity.first, image: entity.first });
                }
                EntityState::Inserted => {
                    let image = self.image(entity, merged);
                    if has_unchanged(self.tuple(image, merged)) {
                        return None;
                    }
                    folded.inserts.push(NetRow { sort_key: 0, first: entity.first, image });
                }
                EntityState::Changed => {
                    let image = self.image(entity, merged);
                    let tuple = self.tuple(image, merged);
                    let key_changed = self.key_changed(entity);
                    let row = NetRow { sort_key: sort_key(), first: entity.first, image };
                    if !key_changed && !has_unchanged(tuple) {
                        set.clone_from(&plain);
                    } else {
                        let old = key_changed.then(|| self.change(entity.first).identity());
                        set = crate::apply_plan::row_by_row::columns_to_set(target, old, tuple);
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
        folded.deletes.sort_unstable_by_key(|row| (row.sort_key, row.first));
        for (_, rows) in &mut folded.updates {
            rows.sort_unstable_by_key(|row| (row.sort_key, row.first));
        }
        Some(folded)
    }

    fn key_changed(&self, entity: &Entity) -> bool {
        entity.moved && !self.same_key(KeyAt { at: entity.first, when: When::Before }, entity.keyed)
    }

    fn tuple<'b>(&'b self, image: u32, merged: &'b [Tuple]) -> &'b Tuple {
        match image.checked_sub(MERGED) {
            Some(at) => &merged[at as usize],
            None => self.change(image).image(),
        }
    }

    /// The row's last image; values that its last update did not send come from the changes before.
    fn image(&self, entity: &Entity, merged: &mut Vec<Tuple>) -> u32 {
        let last = self.change(entity.last).image();
        if entity.last == entity.first || !has_unchanged(last) {
            return entity.last;
        }
        let mut chain = vec![last];
        let mut at = entity.last;
        // Later changes come later in the list, so each is found by its own index.
        while let Ok(found) = self.previous.binary_search_by_key(&at, |(change, _)| *change) {
            at = self.previous[found].1;
            chain.push(self.change(at).image());
        }
        let number =
            u32::try_from(merged.len()).expect("no more than the changes that were gathered, which are numbered so");
        merged.push(merge(&chain));
        MERGED + number
    }
}

impl Entity {
    fn new(state: EntityState, at: u32, when: When) -> Entity {
        Entity { state, first: at, last: at, keyed: KeyAt { at, when }, moved: false }
    }
}
