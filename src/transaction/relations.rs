//! The relation cache: which relations the stream has described, and which of them are wanted.
//!
//! Filled by the assembler from Relation messages; asked for every change. There is one cache for the session, and an
//! overlay for each in-progress stream: pgoutput describes a relation again in each stream, and counts it as known to the
//! session once that stream has committed (18.4 `cleanup_rel_sync_cache`; the same since 14).
//!
//! Invariant: an entry holds from its message on. So when an overlay is merged, the entry that was heard last wins: a
//! table that was altered and described outside while the stream was open keeps its newer description.
//!
//! A partition is named once, before its first row. So its name stays with the root's descriptions until a change takes one of them
//! along: the transaction in which it came may be one that is not applied.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::pg::{Leaves, QualifiedName, Relation, RelationId};
use crate::transaction::error::TransactionError;

/// The tables that are kept equal, by their OIDs at the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSet {
    by_id: BTreeMap<RelationId, QualifiedName>,
    passed_over: BTreeSet<QualifiedName>,
}

impl TableSet {
    /// A set of tables with the names under which they are configured.
    pub fn new(tables: impl IntoIterator<Item = (RelationId, QualifiedName)>) -> TableSet {
        TableSet { by_id: tables.into_iter().collect(), passed_over: BTreeSet::new() }
    }

    /// The same set, in which these tables are not followed yet: the stream may still bring others that bore their names
    /// before, and these are no obstacle.
    #[must_use]
    pub fn passing_over(self, names: impl IntoIterator<Item = QualifiedName>) -> TableSet {
        TableSet { passed_over: names.into_iter().collect(), ..self }
    }

    /// The name under which a table is configured, if it is in the set.
    pub fn name(&self, id: RelationId) -> Option<&QualifiedName> {
        self.by_id.get(&id)
    }

    /// The tables, by OID.
    pub fn iter(&self) -> impl Iterator<Item = (RelationId, &QualifiedName)> {
        self.by_id.iter().map(|(id, name)| (*id, name))
    }

    fn id(&self, name: &QualifiedName) -> Option<RelationId> {
        self.by_id.iter().find(|(_, known)| *known == name).map(|(id, _)| *id)
    }
}

#[derive(Clone, Debug)]
enum KnownRelation {
    Wanted(Arc<Relation>),
    /// Published, but not in the set.
    Unwanted,
}

#[derive(Clone, Debug)]
struct Entry {
    known: KnownRelation,
    /// The number of the message that said so.
    heard: u64,
    /// A change that is applied has it.
    used: bool,
}

impl Entry {
    /// The partitions that no change has told of.
    fn leaves(&self) -> impl Iterator<Item = RelationId> + '_ {
        let unused = match &self.known {
            KnownRelation::Wanted(relation) if !self.used => Some(&relation.leaves),
            KnownRelation::Wanted(_) | KnownRelation::Unwanted => None,
        };
        unused.into_iter().flat_map(Leaves::iter)
    }

    fn add_leaf(&mut self, leaf: RelationId) {
        if let KnownRelation::Wanted(relation) = &mut self.known {
            Arc::make_mut(relation).leaves.add(leaf);
            self.used = false;
        }
    }
}

/// Maximum number of relations that a session may describe. A database has fewer tables. One that exceeds it by creating tables again
/// and again would only begin another session.
const RELATIONS_MAX: usize = 1 << 20;
const TOO_MANY: TransactionError =
    TransactionError::Misplaced { message: "Relation", place: "for one more table than a session may tell of" };

/// Relations as they were described last.
#[derive(Clone, Debug, Default)]
pub(super) struct RelationCache {
    entries: HashMap<RelationId, Entry>,
}

impl RelationCache {
    /// Takes in a description, the message with the number `heard`. Returns the relation when it is wanted.
    ///
    /// Every message makes a relation of its own, also when it says the same as the one before: the source repeats itself when
    /// something has changed that a Relation message does not carry, and the catalog is asked once for each (`source::relation_tracker`
    /// compares pointers).
    pub(super) fn learn(
        &mut self,
        relation: Relation,
        heard: u64,
        tables: &TableSet,
    ) -> Result<Option<Arc<Relation>>, TransactionError> {
        let id = relation.id;
        if tables.name(id).is_none() {
            if let Some(old) = tables.id(&relation.name)
                && !tables.passed_over.contains(&relation.name)
            {
                return Err(TransactionError::Replaced { table: relation.name, old, new: id });
            }
            self.insert(id, Entry { known: KnownRelation::Unwanted, heard, used: false })?;
            return Ok(None);
        }
        let mut relation = relation;
        self.entries.get(&id).into_iter().flat_map(Entry::leaves).for_each(|leaf| relation.leaves.add(leaf));
        let relation = Arc::new(relation);
        self.insert(id, Entry { known: KnownRelation::Wanted(Arc::clone(&relation)), heard, used: false })?;
        Ok(Some(relation))
    }

    /// Behind the description of `root` the source has named `leaf`. Returns the description as it is now.
    pub(super) fn add_leaf(&mut self, root: RelationId, leaf: RelationId) -> Option<Arc<Relation>> {
        let entry = self.entries.get_mut(&root)?;
        entry.add_leaf(leaf);
        match &entry.known {
            KnownRelation::Wanted(relation) => Some(Arc::clone(relation)),
            KnownRelation::Unwanted => None,
        }
    }

    /// Its changes are not applied.
    pub(super) fn set_unused(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.used = false);
    }

    fn insert(&mut self, id: RelationId, entry: Entry) -> Result<(), TransactionError> {
        self.entries.insert(id, entry);
        if self.entries.len() > RELATIONS_MAX { Err(TOO_MANY) } else { Ok(()) }
    }

    /// The relation of a change, if it is wanted; `is_applied` says whether the change is.
    pub(super) fn wanted(
        &mut self,
        id: RelationId,
        is_applied: bool,
    ) -> Result<Option<Arc<Relation>>, TransactionError> {
        match self.entries.get_mut(&id) {
            Some(Entry { known: KnownRelation::Wanted(relation), used, .. }) => {
                *used |= is_applied;
                Ok(Some(Arc::clone(relation)))
            }
            Some(Entry { known: KnownRelation::Unwanted, .. }) => Ok(None),
            None => Err(TransactionError::UnknownRelation(id)),
        }
    }

    /// What a committed stream has learned holds for the session, unless the session has heard of it since.
    pub(super) fn merge(&mut self, overlay: RelationCache) -> Result<(), TransactionError> {
        for (id, mut entry) in overlay.entries {
            match self.entries.get_mut(&id) {
                Some(known) if known.heard >= entry.heard => entry.leaves().for_each(|leaf| known.add_leaf(leaf)),
                known => {
                    known.iter().flat_map(|known| known.leaves()).for_each(|leaf| entry.add_leaf(leaf));
                    self.insert(id, entry)?;
                }
            }
        }
        Ok(())
    }
}
