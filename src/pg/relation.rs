//! A relation as the source describes it in its Relation messages.
//!
//! Comes from `wire`; is held by `transaction`'s relation cache and shared (`Arc`) by every change that belongs to
//! it. It carries no attribute numbers, because the message does not: columns are matched by name, never by place.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::pg::ident::{Ident, QualifiedName};

/// The OID of a table at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelationId(pub u32);

/// The OID of a data type. OIDs below 16384 are built in and mean the same on every server; others are local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TypeId(pub u32);

impl TypeId {
    /// FirstNormalObjectId (`access/transam.h`, 14 to 18): from here on OIDs differ between servers.
    const FIRST_NORMAL: u32 = 16384;

    /// True for a type that PostgreSQL itself ships, with the same OID everywhere.
    pub const fn is_built_in(self) -> bool {
        self.0 < TypeId::FIRST_NORMAL
    }
}

impl fmt::Display for RelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for TypeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What an UPDATE or DELETE at the source says about the old row (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReplicaIdentity {
    /// The primary key, when there is one.
    Default,
    /// Nothing: only inserts and truncates can be followed.
    Nothing,
    /// The whole old row.
    Full,
    /// The columns of a chosen unique index.
    Index,
}

impl ReplicaIdentity {
    /// From `pg_class.relreplident`; `None` for a letter that PostgreSQL 14 to 18 does not use.
    pub const fn from_letter(letter: u8) -> Option<ReplicaIdentity> {
        match letter {
            b'd' => Some(ReplicaIdentity::Default),
            b'n' => Some(ReplicaIdentity::Nothing),
            b'f' => Some(ReplicaIdentity::Full),
            b'i' => Some(ReplicaIdentity::Index),
            _ => None,
        }
    }

    /// The letter in `pg_class.relreplident` and in the Relation message.
    pub const fn letter(self) -> u8 {
        match self {
            ReplicaIdentity::Default => b'd',
            ReplicaIdentity::Nothing => b'n',
            ReplicaIdentity::Full => b'f',
            ReplicaIdentity::Index => b'i',
        }
    }
}

/// A column of a published relation, in the order of the relation's tuples.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    /// The column's name.
    pub name: Ident,
    /// Whether the column belongs to the replica identity.
    pub in_identity: bool,
    /// The column's type, by the source's OID.
    pub type_id: TypeId,
    /// `pg_attribute.atttypmod`: the type's modifier, -1 when there is none.
    pub type_modifier: i32,
}

/// A published relation: which columns its tuples have, and which of them identify a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Relation {
    /// The table's OID at the source.
    pub id: RelationId,
    /// The table's name at the source.
    pub name: QualifiedName,
    /// How old rows are identified.
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in tuple order.
    pub columns: Vec<Column>,
    /// The partitions whose rows may come from here on.
    #[serde(skip)]
    pub leaves: Leaves,
}

/// The partitions that the source has named right behind the description of their root, as it does before it sends the first row of each.
/// No part of the description: all are equal.
#[derive(Clone, Debug, Default)]
pub struct Leaves(Vec<RelationId>);

impl PartialEq for Leaves {
    fn eq(&self, _: &Leaves) -> bool {
        true
    }
}

impl Eq for Leaves {}

impl Hash for Leaves {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Leaves {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one.
    pub fn add(&mut self, leaf: RelationId) {
        if !self.0.contains(&leaf) {
            self.0.push(leaf);
        }
    }

    /// Each once.
    pub fn iter(&self) -> impl Iterator<Item = RelationId> + '_ {
        self.0.iter().copied()
    }
}

impl Relation {
    /// What it takes in memory, about.
    pub fn size_bytes(&self) -> usize {
        let names = self.columns.iter().map(|column| size_of::<Column>() + column.name.as_str().len());
        let own = self.name.schema.as_str().len() + self.name.name.as_str().len();
        size_of::<Relation>() + own + names.sum::<usize>() + size_of_val(self.leaves.0.as_slice())
    }
}

/// What the source's catalog says of a table, in the words of sql/describe_tables.sql and sql/describe_types.sql: the
/// relation carries no numbers, defaults or indexes. Read where it is needed, by `session`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Description {
    /// The table: one JSON object.
    pub table: String,
    /// The types of its columns: a JSON array of objects.
    pub types: String,
}
