//! Where the destination takes texts for equal that the source tells apart: collations that are nondeterministic there alone.
//!
//! In come a table at both ends and their types; out goes every column and every index of the destination's table under which different
//! keys become one. Asked by `destination::collations`, which words it. Under a nondeterministic collation (`pg_collation
//! .collisdeterministic`, 12 and later) 'A' and 'a' may be equal: a unique index then refuses rows that the source has, and `key = $1`
//! finds rows that are not meant.
//!
//! | where a column stands | compared? | because |
//! |---|---|---|
//! | in a unique index or an exclusion constraint that both have | yes | it refuses, `source-wins` overwrites, rows are found by it |
//! | in one that the destination alone has | no | it is an operator's: `maintenance::check::constraints` says it |
//! | in the source's replica identity | yes | updates and deletes are found by it, with or without an index |
//! | under REPLICA IDENTITY FULL without a key of both | no | `apply_plan::sql::whole_row` takes the row with the identical image first |
//! | in a foreign key | no | its check compares by the referenced key, which is unique; its actions are `preflight::cascades`' |
//! | in a partition key | no | a row has one partition, and one that equals it goes to the same |
//! | anywhere else | no | nothing of ours depends on it: an operator's own search may ignore case |
//!
//! A column that headwater creates has the collation that it asks for by name, so it is compared wherever it stands. The reverse, a
//! source that is nondeterministic alone, is stricter than the destination, and sends its old keys as they are stored.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::fit::End;
use crate::catalog::schema::{ColumnDefinition, IndexDefinition, TableDefinition, TypeDefinition, TypeKind, Types};
use crate::pg::{Ident, QualifiedName, ReplicaIdentity, TypeId};

/// Parts of one column's type at most: a source could describe a type that is made of itself. What is beyond counts as deterministic.
const PARTS_MAX: usize = 10_000;

/// Where texts are taken for equal that the source tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LooserPart<'a> {
    /// Values of a column.
    Column {
        /// The destination's column.
        column: &'a ColumnDefinition,
        /// The destination's type that brings the collation; `None` where the column has it.
        of_type: Option<&'a TypeDefinition>,
        /// It was not there before.
        is_new: bool,
    },
    /// Keys of an index of the destination.
    Index(&'a IndexDefinition),
}

/// A place, and the collation under which they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looser<'a> {
    /// The place.
    pub place: LooserPart<'a>,
    /// The nondeterministic collation.
    pub collation: &'a QualifiedName,
}

/// A nondeterministic collation, and the type that brings it.
type Loose<'a> = (&'a QualifiedName, Option<&'a TypeDefinition>);

/// The nondeterministic collations of a column or type, each by the numbers of the attributes that lead to it: names may be changed at
/// the source before the stream comes to it. The bounds of a range are its first.
type LooseParts<'a> = BTreeMap<Vec<usize>, Loose<'a>>;

/// All of a table's places. `is_new`: columns that headwater has just created.
pub fn looser<'a>(source: End<'a>, destination: End<'a>, is_new: impl Fn(&Ident) -> bool) -> Vec<Looser<'a>> {
    let mut found = Vec::new();
    let keys = keys(source.table, destination.table);
    let mut loose_columns: BTreeSet<&Ident> = BTreeSet::new();
    for column in &destination.table.columns {
        let Some(there) = source.table.column(&column.name) else { continue };
        let is_new = is_new(&column.name);
        if !is_new && !keys.contains(&column.name) {
            continue;
        }
        let mut allowed = parts_of_column(there, source.types);
        if is_told_apart(source.table, &column.name) {
            allowed.remove(&Vec::new());
        }
        let looser =
            parts_of_column(column, destination.types).into_iter().find(|(path, _)| !allowed.contains_key(path));
        if let Some((_, (collation, of_type))) = looser {
            loose_columns.insert(&column.name);
            found.push(Looser { place: LooserPart::Column { column, of_type, is_new }, collation });
        }
    }
    for index in destination.table.indexes.iter().filter(|index| keeps_apart(index)) {
        let of_column = |column: &Option<Ident>| column.as_ref().is_some_and(|name| loose_columns.contains(name));
        let parts = index.parts.iter().filter(|part| !part.included && !of_column(&part.column));
        let mut loose = parts.filter_map(|part| Some((part, part.nondeterministic.as_ref()?))).peekable();
        let Some((_, collation)) = loose.peek().copied() else { continue };
        if !has_like(source.table, index) {
            continue;
        }
        let mut alike = source.table.indexes.iter().filter(|there| keeps_apart(there) && there.key() == index.key());
        let loose: Vec<_> = loose.map(|(part, _)| (part.column.as_ref(), part.expression.as_ref())).collect();
        let is_as_loose = |there: &IndexDefinition| {
            let parts = there.parts.iter().filter(|part| part.nondeterministic.is_some());
            let there: Vec<_> = parts.map(|part| (part.column.as_ref(), part.expression.as_ref())).collect();
            loose.iter().all(|part| there.contains(part))
        };
        if !alike.any(is_as_loose) {
            found.push(Looser { place: LooserPart::Index(index), collation });
        }
    }
    found
}

/// The collation, and the type that brings it, by which a type of the destination takes values for equal that the source's tells apart.
pub fn looser_type<'a>(
    source_id: TypeId,
    source_types: &Types,
    destination_id: TypeId,
    destination_types: &'a Types,
) -> Option<(&'a QualifiedName, &'a TypeDefinition)> {
    let allowed = parts_of_type(source_id, source_types);
    let mut found =
        parts_of_type(destination_id, destination_types).into_iter().filter(|(path, _)| !allowed.contains_key(path));
    found.find_map(|(_, (collation, of_type))| Some((collation, of_type?)))
}

/// The columns by whose values rows of the destination are found or kept apart.
fn keys<'a>(source: &'a TableDefinition, destination: &'a TableDefinition) -> BTreeSet<&'a Ident> {
    let indexes = destination.indexes.iter().filter(|index| keeps_apart(index) && has_like(source, index));
    indexes.chain(source.identity_index()).flat_map(IndexDefinition::key_columns).collect()
}

/// Whether a table has an index that keeps the same apart.
fn has_like(table: &TableDefinition, index: &IndexDefinition) -> bool {
    table.indexes.iter().any(|there| keeps_apart(there) && there.key() == index.key())
}

/// Whether the index refuses rows: also one that is not valid does.
fn keeps_apart(index: &IndexDefinition) -> bool {
    index.unique || index.exclusion
}

/// Whether the source has a key, by which it tells rows apart, with a deterministic collation of its own over a column that has another.
fn is_told_apart(source: &TableDefinition, column: &Ident) -> bool {
    let is_key = |index: &&IndexDefinition| match source.replica_identity {
        ReplicaIdentity::Full => keeps_apart(index),
        ReplicaIdentity::Default | ReplicaIdentity::Index | ReplicaIdentity::Nothing => {
            source.identity_index().is_some_and(|identity| identity.id == index.id)
        }
    };
    let parts = source.indexes.iter().filter(is_key).flat_map(|index| &index.parts).filter(|part| !part.included);
    parts.clone().any(|part| part.column.as_ref() == Some(column) && part.nondeterministic.is_none())
}

fn parts_of_column<'a>(column: &'a ColumnDefinition, types: &'a Types) -> LooseParts<'a> {
    let mut found = inner_parts(column.type_id, types);
    if let Some(collation) = &column.nondeterministic {
        let of_type = domain(column.type_id, types).filter(|_| column.collation.is_none());
        found.insert(Vec::new(), (collation, of_type));
    }
    found
}

fn parts_of_type(id: TypeId, types: &Types) -> LooseParts<'_> {
    let mut found = inner_parts(id, types);
    if let Some(domain) = domain(id, types)
        && let Some(collation) = &domain.nondeterministic
    {
        found.insert(Vec::new(), (collation, Some(domain)));
    }
    found
}

/// The type, or what an array of it is of, where that is a domain.
fn domain(id: TypeId, types: &Types) -> Option<&TypeDefinition> {
    let definition = types.get(&id)?;
    let innermost = definition.element.map_or(Some(definition), |element| types.get(&element))?;
    (innermost.kind == TypeKind::Domain).then_some(innermost)
}

/// What a type is made of. Its own collation is not among them: a column or an attribute may have another.
fn inner_parts(id: TypeId, types: &Types) -> LooseParts<'_> {
    let mut found = LooseParts::new();
    let mut open: Vec<(TypeId, Vec<usize>)> = vec![(id, Vec::new())];
    for _ in 0..PARTS_MAX {
        let Some((id, path)) = open.pop() else { break };
        let Some(definition) = types.get(&id) else { continue };
        match definition.kind {
            TypeKind::Base | TypeKind::Enum | TypeKind::Pseudo => {
                open.extend(definition.element.map(|element| (element, path)));
            }
            TypeKind::Domain => open.extend(definition.base.map(|base| (base, path))),
            TypeKind::Composite => {
                for (number, attribute) in definition.attributes.iter().flatten().enumerate() {
                    let path = longer(&path, number);
                    if let Some(collation) = &attribute.nondeterministic {
                        found.insert(path.clone(), (collation, Some(definition)));
                    }
                    open.push((attribute.type_id, path));
                }
            }
            TypeKind::Range | TypeKind::Multirange => {
                let path = longer(&path, 0);
                if let Some(collation) = &definition.nondeterministic {
                    found.insert(path.clone(), (collation, Some(definition)));
                }
                open.extend(definition.subtype.map(|subtype| (subtype, path)));
            }
        }
    }
    found
}

fn longer(path: &[usize], number: usize) -> Vec<usize> {
    path.iter().copied().chain([number]).collect()
}
