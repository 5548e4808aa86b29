//! What is remembered of a source table between two descriptions of it.
//!
//! Stored at the destination with the position, so that a change of the table that happened while nobody looked is still
//! recognised: columns are the same as before when their numbers are, whatever they are called now. Compared by `source`
//! with what the catalog says when the stream describes the table, and by [`crate::schema_change`] to decide what to do.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::leaves::KnownLeaves;
use super::schema::{IndexDefinition, RowFile, TableDefinition, Types};
use crate::pg::{Ident, Lsn, QualifiedName, Relation, TypeId};

/// A published column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeColumn {
    /// `attnum`: what stays the same when a column is renamed.
    pub number: i16,
    /// The name.
    pub name: Ident,
    /// The type, by the source's OID.
    pub type_id: TypeId,
    /// `atttypmod`
    pub type_modifier: i32,
    /// NOT NULL
    pub not_null: bool,
    /// It draws from a sequence of its own. What was remembered before this was asked counts as followed.
    #[serde(default = "followed")]
    pub sequence: bool,
}

const fn followed() -> bool {
    true
}

/// A source table as far as its destination follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The name.
    pub name: QualifiedName,
    /// Columns up to this number have been seen, dropped ones too (`relnatts`).
    pub attributes: i16,
    /// Which files hold the rows: others after a rewrite.
    pub storage: String,
    /// These files; an earlier version remembered `storage` alone.
    #[serde(default)]
    pub files: Option<Vec<RowFile>>,
    /// The partitions that may have brought rows, by their OIDs: see [`super::leaves`].
    #[serde(default)]
    pub partitions: BTreeSet<u32>,
    /// Those that had no rows, and how far the source was when that was seen.
    #[serde(default)]
    pub empty_partitions: BTreeMap<u32, Lsn>,
    /// The published columns, in the order of the relation's tuples.
    pub columns: Vec<ShapeColumn>,
    /// Names of the unique indexes.
    pub unique: BTreeSet<Ident>,
    /// Their OIDs: one that was dropped and created again has another one, and rows may have been alike in between.
    #[serde(default)]
    pub keys: BTreeSet<u32>,
    /// The labels of each enum that the columns use.
    pub labels: BTreeMap<String, Vec<String>>,
}

fn unique(table: &TableDefinition) -> impl Iterator<Item = &IndexDefinition> {
    table.indexes.iter().filter(|index| index.unique && index.valid)
}

impl Shape {
    /// The shape of a table of which these columns are published.
    pub fn of(table: &TableDefinition, types: &Types, published: impl Fn(&Ident) -> bool) -> Shape {
        let columns = table.columns.iter().filter(|column| published(&column.name));
        Shape {
            name: table.name(),
            attributes: table.attributes,
            storage: table.storage.clone().unwrap_or_default(),
            files: Some(table.files.clone()),
            partitions: table.partitions.iter().flatten().map(|partition| partition.id).collect(),
            empty_partitions: BTreeMap::new(),
            columns: columns
                .map(|column| ShapeColumn {
                    number: column.number,
                    name: column.name.clone(),
                    type_id: column.type_id,
                    type_modifier: column.type_modifier,
                    not_null: column.is_never_null(),
                    sequence: column.own_sequence().is_some(),
                })
                .collect(),
            unique: unique(table).map(|index| index.name.clone()).collect(),
            keys: unique(table).map(|index| index.id).collect(),
            labels: types
                .values()
                .filter_map(|found| Some((found.qualified_name().to_string(), found.labels.clone()?)))
                .collect(),
        }
    }

    /// What is remembered of its partitions.
    pub fn leaves(&self) -> KnownLeaves {
        KnownLeaves { known: self.partitions.clone(), empty: self.empty_partitions.clone() }
    }

    /// This shape with other partitions.
    #[must_use]
    pub fn with_leaves(self, leaves: KnownLeaves) -> Shape {
        Shape { partitions: leaves.known, empty_partitions: leaves.empty, ..self }
    }

    /// Whether its rows may have been given other values by a rewrite since.
    pub fn was_rewritten(&self, now: &TableDefinition) -> bool {
        self.has_other_files(now, RowFile::was_rewritten)
    }

    /// Whether its rows moved to another file since, with other values or without. Then the rows hold the values of added columns that
    /// were in the catalog.
    pub fn was_moved(&self, now: &TableDefinition) -> bool {
        self.has_other_files(now, |before, now| before.file != now.file)
    }

    fn has_other_files(&self, now: &TableDefinition, is_other: fn(RowFile, RowFile) -> bool) -> bool {
        let Some(files) = &self.files else { return self.storage != now.storage.as_deref().unwrap_or_default() };
        let now = |before: &RowFile| now.files.iter().find(|now| now.table == before.table);
        files.iter().any(|before| now(before).is_some_and(|now| is_other(*before, *now)))
    }

    /// Whether a relation has just these columns.
    pub fn describes(&self, relation: &Relation) -> bool {
        self.name == relation.name
            && self.columns.len() == relation.columns.len()
            && self.columns.iter().zip(&relation.columns).all(|(known, column)| {
                known.name == column.name
                    && known.type_id == column.type_id
                    && known.type_modifier == column.type_modifier
            })
    }

    /// This shape without the promises that it makes beyond `before`: NOT NULL and unique indexes, which the rows of the
    /// stream may not keep yet, and sequences that are not here yet.
    #[must_use]
    pub fn without_new_promises(mut self, before: Option<&Shape>) -> Shape {
        let Some(before) = before else { return self };
        for column in &mut self.columns {
            let known = before.column(column.number);
            column.not_null &= known.is_none_or(|known| known.not_null);
            column.sequence &= known.is_none_or(|known| known.sequence);
        }
        self.unique.retain(|name| before.unique.contains(name));
        self.keys.retain(|id| before.keys.contains(id));
        if self.keys.is_empty() && !before.keys.is_empty() {
            // All of them are others, whatever their names.
            self.unique.clear();
        }
        self
    }

    /// Whether a unique index is one that was there before: another one may have its name by now. An earlier version remembered names
    /// alone.
    pub fn knows(&self, index: &IndexDefinition) -> bool {
        self.unique.contains(&index.name) && (self.keys.is_empty() || self.keys.contains(&index.id))
    }

    /// The column with a number.
    pub fn column(&self, number: i16) -> Option<&ShapeColumn> {
        self.columns.iter().find(|column| column.number == number)
    }
}
