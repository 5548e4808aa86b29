//! A source relation bound to its destination table: which column goes where, and how a row is found again.
//!
//! Made whenever `destination::apply` meets a relation that it has not seen; used by `statement` for SQL and
//! parameters. Columns are matched by name, because the Relation message carries no numbers and orders differ.

use std::sync::Arc;

use crate::apply_plan::side_effects::SideEffects;
use crate::catalog::schema::{
    ColumnDefinition, IdentityColumn, TableDefinition, TableKind, TypeDefinition, TypeKind, Types,
};
use crate::pg::{Ident, QualifiedName, Relation, ReplicaIdentity, TypeId};

/// A published column at its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetColumn {
    /// The name, on both sides.
    pub name: Ident,
    /// The type at the destination.
    pub type_id: TypeId,
    /// The array of that type, if it has one that `unnest` takes apart into single values.
    pub array: Option<TypeId>,
    /// What separates values in a text array of the type.
    pub delimiter: char,
    /// The operator that finds equal values; `None` for types without equality.
    pub equality: Option<QualifiedName>,
    /// Values that the operator finds equal have the same bytes. Not so of 1.0 and 1.00.
    pub equal_when_identical: bool,
    /// GENERATED ALWAYS AS IDENTITY: no UPDATE can set it.
    pub identity_always: bool,
}

/// How an old row is found at the destination. Numbers are indexes of the relation's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetIdentity {
    /// By a key that no two rows share.
    Key(Vec<usize>),
    /// By all its values; rows may repeat, and exactly one of them is meant.
    WholeRow,
    /// Not at all: only inserts and truncates can come.
    None,
}

/// A relation and its table.
#[derive(Clone, Debug)]
pub struct Target {
    /// The relation, as the source described it.
    pub relation: Arc<Relation>,
    /// The table at the destination.
    pub table: QualifiedName,
    /// Its OID there.
    pub table_id: u32,
    /// A partitioned table: rows live in its partitions.
    pub partitioned: bool,
    /// Each of the relation's columns at the destination; `None` where the destination generates the value itself.
    pub columns: Vec<Option<TargetColumn>>,
    /// The columns of the relation as the destination has them, generated ones too: rows are found by them.
    pub finders: Vec<TargetColumn>,
    /// How old rows are found.
    pub identity: TargetIdentity,
    /// The table has GENERATED ALWAYS identity columns, so INSERT must override them.
    pub overrides_identity: bool,
    /// What the destination does by itself when the table's rows change.
    pub side_effects: SideEffects,
}

/// A relation that cannot be bound to its table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The source has a column that the destination lacks.
    #[error("table {table} has no column {column} at the destination")]
    MissingColumn {
        /// The table.
        table: QualifiedName,
        /// The column.
        column: Ident,
    },
    /// The source renamed the table.
    #[error("table {table} is now called {renamed} at the source")]
    Renamed {
        /// The table at the destination.
        table: QualifiedName,
        /// Its name at the source.
        renamed: QualifiedName,
    },
}

impl Target {
    /// Binds `relation` to `table`. `source` is the table as the source has it, where that is known: a unique key that only
    /// the destination has tells no two of the source's rows apart.
    ///
    /// # Errors
    /// [`BindError`] when the table cannot take the relation's rows. Types are not compared here: see `fit`.
    pub fn bind(
        relation: &Arc<Relation>,
        table: &TableDefinition,
        types: &Types,
        source: Option<&TableDefinition>,
    ) -> Result<Target, BindError> {
        let name = table.name();
        if relation.name != name {
            return Err(BindError::Renamed { table: name, renamed: relation.name.clone() });
        }
        let mut columns = Vec::with_capacity(relation.columns.len());
        let mut finders = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            let Some(definition) = table.column(&column.name) else {
                return Err(BindError::MissingColumn { table: name, column: column.name.clone() });
            };
            let found = target_column(definition, table, types);
            columns.push(definition.generated.is_none().then(|| found.clone()));
            finders.push(found);
        }
        Ok(Target {
            identity: identity(relation, table, source, &columns),
            relation: Arc::clone(relation),
            table: name,
            table_id: table.id,
            partitioned: table.kind == TableKind::Partitioned,
            overrides_identity: table.columns.iter().any(|c| c.identity == Some(IdentityColumn::Always)),
            columns,
            finders,
            side_effects: SideEffects::of(table),
        })
    }

    /// The indexes of the columns that the destination stores.
    pub fn stored_columns(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().enumerate().filter(|(_, column)| column.is_some()).map(|(index, _)| index)
    }

    /// The column with an index, by which a row can be found: also one that the destination generates.
    pub fn key_column(&self, index: usize) -> Option<&TargetColumn> {
        self.finders.get(index)
    }

    /// The column with an index, unless the destination generates it.
    pub fn column(&self, index: usize) -> Option<&TargetColumn> {
        self.columns.get(index).and_then(Option::as_ref)
    }
}

fn target_column(definition: &ColumnDefinition, table: &TableDefinition, types: &Types) -> TargetColumn {
    let found = types.get(&definition.type_id);
    // A key's own index knows best which operator finds equal values in it; then the type.
    let of_index = table
        .indexes
        .iter()
        .filter(|index| index.unique)
        .flat_map(|index| &index.parts)
        .find(|part| part.column.as_ref() == Some(&definition.name))
        .and_then(|part| part.equality.clone());
    // unnest takes an array of arrays apart down to its elements, and an array of composites into a column for each of their
    // attributes: only other columns can go that way.
    let is_taken_apart = is_taken_apart(definition.type_id, types);
    TargetColumn {
        name: definition.name.clone(),
        type_id: definition.type_id,
        array: found.and_then(|found| found.array).filter(|_| !is_taken_apart),
        delimiter: found.map_or(',', |found| found.delimiter),
        equality: match is_polymorphic_domain(definition.type_id, types) {
            true => None,
            false => of_index.or_else(|| equality(definition.type_id, types)),
        },
        equal_when_identical: equal_when_identical(definition, table, types),
        identity_always: definition.identity == Some(IdentityColumn::Always),
    }
}

fn is_taken_apart(id: TypeId, types: &Types) -> bool {
    let Some(found) = types.get(&id) else { return false };
    let has_parts = found.element.is_some() || found.kind == TypeKind::Composite;
    has_parts || found.base.is_some_and(|base| is_taken_apart(base, types))
}

/// varchar and cidr: no operator class of their own, they are compared as text and inet.
const COMPARED_AS_ANOTHER: [u32; 2] = [1043, 650];

/// The operator that finds equal values of a type: of its default B-tree class, or the polymorphic one of pg_catalog that
/// serves enums, ranges, and arrays and composites of what has one. Types without (json, xml, jsonpath, point, box, tid, …)
/// are compared by their image.
fn equality(id: TypeId, types: &Types) -> Option<QualifiedName> {
    let polymorphic = || Some(QualifiedName::new("pg_catalog", "="));
    let found = types.get(&id)?;
    if found.equality.is_some() {
        return found.equality.clone();
    }
    if let Some(element) = found.element {
        return equality(element, types).and_then(|_| polymorphic());
    }
    match found.kind {
        TypeKind::Domain => equality(found.base?, types),
        TypeKind::Enum | TypeKind::Range | TypeKind::Multirange => polymorphic(),
        TypeKind::Composite => {
            let mut attributes = found.attributes.iter().flatten();
            attributes.all(|attribute| equality(attribute.type_id, types).is_some()).then(polymorphic)?
        }
        TypeKind::Base if COMPARED_AS_ANOTHER.contains(&found.id.0) => polymorphic(),
        TypeKind::Base | TypeKind::Pseudo => None,
    }
}

/// Polymorphic operators do not take a domain for what it is over.
fn is_polymorphic_domain(id: TypeId, types: &Types) -> bool {
    let is_polymorphic = |found: &TypeDefinition| {
        found.element.is_some()
            || matches!(found.kind, TypeKind::Enum | TypeKind::Range | TypeKind::Multirange | TypeKind::Composite)
    };
    match types.get(&id).and_then(|found| types.get(&found.base?)) {
        Some(base) => is_polymorphic(base) || is_polymorphic_domain(base.id, types),
        None => false,
    }
}

/// Built-in types of which equal values always have the same bytes, in text and in binary: bool, bytea, "char", name,
/// int8, int2, int4, text, oid, cidr, macaddr8, macaddr, inet, varchar, date, time, timestamp, timestamptz, timetz, bit,
/// varbit, uuid, pg_lsn.
const SAME_BYTES: [u32; 23] = [
    16, 17, 18, 19, 20, 21, 23, 25, 26, 650, 774, 829, 869, 1043, 1082, 1083, 1114, 1184, 1266, 1560, 1562, 2950, 3220,
];
const BPCHAR: u32 = 1042;
const NUMERIC: u32 = 1700;
/// Types with a collation, under which different texts may be equal.
const TEXTS: [u32; 4] = [19, 25, 1043, BPCHAR];

/// Whether values of a column that are equal for its operator have the same bytes.
fn equal_when_identical(definition: &ColumnDefinition, table: &TableDefinition, types: &Types) -> bool {
    let Some(found) = types.get(&definition.type_id) else { return false };
    let (base, modifier) = match (found.kind, found.base) {
        (TypeKind::Enum, _) => return true,
        (TypeKind::Domain, Some(base)) => (base, found.base_modifier),
        (TypeKind::Domain, None) => return false,
        (TypeKind::Base, _) => (definition.type_id, definition.type_modifier),
        (TypeKind::Composite | TypeKind::Multirange | TypeKind::Pseudo | TypeKind::Range, _) => return false,
    };
    if TEXTS.contains(&base.0) {
        // Collations of pg_catalog are deterministic, and so is every database's own; a domain may bring another one.
        let of_index = table.indexes.iter().flat_map(|index| &index.parts);
        let of_index = of_index.filter(|part| part.column.as_ref() == Some(&definition.name));
        let mut collations = of_index.filter_map(|part| part.collation.as_ref()).chain(&definition.collation);
        let deterministic = collations.all(|collation| collation.schema.as_str() == "pg_catalog");
        if !deterministic || found.kind == TypeKind::Domain {
            return false;
        }
    }
    match base.0 {
        // With a length or a scale all values are padded to it; without one trailing blanks and zeros vary.
        BPCHAR | NUMERIC => modifier != -1,
        id => SAME_BYTES.contains(&id),
    }
}

fn identity(
    relation: &Relation,
    table: &TableDefinition,
    source: Option<&TableDefinition>,
    columns: &[Option<TargetColumn>],
) -> TargetIdentity {
    let flagged: Vec<usize> =
        relation.columns.iter().enumerate().filter(|(_, column)| column.in_identity).map(|(index, _)| index).collect();
    match relation.replica_identity {
        ReplicaIdentity::Nothing => TargetIdentity::None,
        ReplicaIdentity::Default | ReplicaIdentity::Index if flagged.is_empty() => TargetIdentity::None,
        ReplicaIdentity::Default | ReplicaIdentity::Index => TargetIdentity::Key(flagged),
        ReplicaIdentity::Full => {
            let key = source.and_then(|source| unique_key(relation, table, source, columns));
            key.unwrap_or(TargetIdentity::WholeRow)
        }
    }
}

/// A key over published NOT NULL columns that both ends have: with the whole old row at hand it finds the row by index.
fn unique_key(
    relation: &Relation,
    table: &TableDefinition,
    source: &TableDefinition,
    columns: &[Option<TargetColumn>],
) -> Option<TargetIdentity> {
    let keys = |table: &TableDefinition| {
        let immediate = table.indexes.iter().filter(|index| index.immediate);
        let keys = immediate.filter_map(|index| index.unique_columns());
        keys.map(|key| key.into_iter().cloned().collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let at_source: Vec<Vec<Ident>> = keys(source);
    let both = |key: &Vec<Ident>| {
        at_source.iter().any(|other| other.len() == key.len() && other.iter().all(|column| key.contains(column)))
    };
    let index = |name: &Ident| {
        let index = relation.columns.iter().position(|column| column.name == *name)?;
        let not_null = table.column(name)?.is_never_null();
        (not_null && columns.get(index)?.is_some()).then_some(index)
    };
    let mut shared = keys(table).into_iter().filter(both);
    shared.find_map(|key| key.iter().map(index).collect()).map(TargetIdentity::Key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Column, RelationId};
    use crate::testing;

    fn described(table: &TableDefinition, name: &str, columns: &[&str]) -> Arc<Relation> {
        let column = |name: &&str| {
            let name = Ident::new(*name);
            Column { in_identity: name == table.columns[0].name, name, type_id: TypeId(25), type_modifier: -1 }
        };
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(1),
            name: QualifiedName::new("public", name),
            replica_identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        })
    }

    #[test]
    fn a_relation_is_bound_to_the_table_of_its_name_that_has_its_columns() {
        let table =
            testing::table("t", &[testing::TestColumn::new("id", 25).not_null(), testing::TestColumn::new("a", 25)]);
        let bind = |relation: &Arc<Relation>| Target::bind(relation, &table, &testing::types(), Some(&table));
        let target = bind(&described(&table, "t", &["a", "id"])).unwrap();
        assert_eq!(target.identity, TargetIdentity::Key(vec![1]), "the place in the relation, not in the table");
        let renamed = BindError::Renamed { table: table.name(), renamed: QualifiedName::new("public", "other") };
        assert_eq!(bind(&described(&table, "other", &["id", "a"])).err(), Some(renamed));
        let missing = BindError::MissingColumn { table: table.name(), column: Ident::new("z") };
        assert_eq!(bind(&described(&table, "t", &["id", "z"])).err(), Some(missing));
    }

    #[test]
    fn values_go_in_arrays_unless_unnest_takes_them_apart() {
        let mut types = testing::types();
        let mut add = |id: u32, change: &dyn Fn(&mut TypeDefinition)| {
            let text = &types[&TypeId(25)];
            let mut definition = TypeDefinition { id: TypeId(id), array: Some(TypeId(id + 1)), ..text.clone() };
            change(&mut definition);
            types.insert(TypeId(id), definition);
        };
        add(100, &|_| {});
        add(200, &|array| array.element = Some(TypeId(25)));
        add(300, &|composite| composite.kind = TypeKind::Composite);
        add(400, &|domain| (domain.kind, domain.base) = (TypeKind::Domain, Some(TypeId(100))));
        add(500, &|domain| (domain.kind, domain.base) = (TypeKind::Domain, Some(TypeId(300))));
        let table = testing::table("t", &[testing::TestColumn::new("id", 25).not_null()]);
        let array = |id: u32| {
            let definition = ColumnDefinition { type_id: TypeId(id), ..table.columns[0].clone() };
            target_column(&definition, &table, &types).array
        };
        assert_eq!([100, 200, 300, 400, 500].map(array), [Some(TypeId(101)), None, None, Some(TypeId(401)), None]);
    }

    #[test]
    fn the_whole_row_is_narrowed_to_a_key_that_both_ends_have_and_to_no_other() {
        let columns = ["id", "a", "b"];
        let with = |key: &[&str]| {
            let mut table = testing::table("t", &columns.map(|name| testing::TestColumn::new(name, 25).not_null()));
            let key: Vec<Ident> = key.iter().map(|name| Ident::new(*name)).collect();
            table.indexes = vec![testing::unique_index("t_key", &key, false)];
            table
        };
        let identity = |source: &[&str], destination: &[&str]| {
            let table = with(destination);
            let relation = described(&table, "t", &columns);
            let relation = Relation { replica_identity: ReplicaIdentity::Full, ..(*relation).clone() };
            Target::bind(&Arc::new(relation), &table, &testing::types(), Some(&with(source))).unwrap().identity
        };
        assert_eq!(
            identity(&["a", "b"], &["b", "a"]),
            TargetIdentity::Key(vec![2, 1]),
            "in the order of the destination's"
        );
        assert_eq!(identity(&["a"], &["b"]), TargetIdentity::WholeRow, "as many columns, but others");
        assert_eq!(identity(&["a"], &["a", "b"]), TargetIdentity::WholeRow, "fewer at the source");
        assert_eq!(identity(&["a", "b"], &["a"]), TargetIdentity::WholeRow, "fewer at the destination");
    }
}
