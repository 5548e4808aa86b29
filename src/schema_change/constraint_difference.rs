//! Whether a constraint of the destination that has refused a row is one of the source's, and what to run when it is not.
//!
//! In come a table (or a type) as both ends have it now, and what the server has named; out goes the difference, with the
//! statements that end it. `preflight::violated_constraints` asks before it reports that a row is in the way: a row that the source
//! has accepted can only violate what the source has not, or has otherwise. Pure.
//!
//! Invariant: no statement touches a row. What the source has is written by [`crate::schema_change::ddl`] only: expressions are parsed and
//! printed, never passed on.

use std::collections::BTreeSet;

use crate::catalog::features::Feature;
use crate::catalog::schema::{
    BothTypes, ConstraintDefinition, ConstraintKind, IndexDefinition, IndexPart, TableDefinition, TypeDefinition,
    TypeKind, Types,
};
use crate::pg::{Ident, QualifiedName, shown_sql};
use crate::schema_change::ddl::{self, Creation};
use crate::schema_change::expression::purpose::Purpose;
use crate::schema_change::expression::{BOOLEAN, ExpressionScope, Expressions};

/// What a server has named when it refused a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violated {
    /// The table, or the schema alone where it is a domain.
    pub table: Option<QualifiedName>,
    /// The constraint.
    pub constraint: Option<Ident>,
    /// The column, of a NULL.
    pub column: Option<Ident>,
}

/// How the ends differ in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// A sentence without its full stop.
    pub why: String,
    /// To be run at the destination, in this order, each without its semicolon.
    pub statements: Vec<String>,
    /// To be run once the copy is made.
    pub later: Vec<String>,
}

impl Difference {
    /// As an operator runs it; what comes later stands in a comment.
    pub fn shown(&self) -> String {
        let now = self.statements.iter().map(|statement| format!("{statement};"));
        let later = self.later.iter().map(|statement| format!("-- once all rows are there: {statement};"));
        now.chain(later).collect::<Vec<_>>().join("\n")
    }
}

/// How an index that must go is replaced.
struct Replacement {
    why: String,
    /// The statements that drop it.
    drops: Vec<String>,
    /// The statement that adds what the source has instead.
    add: Option<String>,
}

/// The ends of a table.
pub struct TableEnds<'a> {
    /// The destination's table.
    pub here: &'a TableDefinition,
    /// The source's; none where it has no such table.
    pub source: &'a TableDefinition,
    /// How the source's would be written here.
    pub creation: &'a Creation<'a>,
}

impl TableEnds<'_> {
    /// The difference in what was violated; `None` where the source has it as the destination has.
    pub fn difference(&self, violated: &Violated) -> Option<Difference> {
        if let Some(name) = &violated.constraint {
            if let Some(index) = self.here.indexes.iter().find(|index| index.name == *name) {
                return self.of_index(index);
            }
            let constraint = self.here.constraints.iter().find(|constraint| constraint.name == *name)?;
            return match constraint.kind {
                ConstraintKind::Check => self.of_check(constraint),
                ConstraintKind::ForeignKey => self.of_foreign_key(constraint),
                ConstraintKind::PrimaryKey | ConstraintKind::Unique | ConstraintKind::Exclusion => None,
            };
        }
        self.of_not_null(violated.column.as_ref()?)
    }

    /// The source's unique indexes that forbid what a unique index of the destination forbids, by their OIDs; none for another name.
    pub fn counterparts(&self, name: &Ident) -> Vec<u32> {
        let Some(index) = self.here.indexes.iter().find(|index| index.name == *name && index.unique) else {
            return Vec::new();
        };
        let forbids =
            |there: &&IndexDefinition| takes_the_same_for_equal(there, index) && there.predicate == index.predicate;
        self.like(index).filter(forbids).map(|there| there.id).collect()
    }

    /// The differences in all that may refuse a row here, before one is refused.
    pub fn all(&self) -> Vec<Difference> {
        let indexes = self.here.indexes.iter().filter(|index| index.valid && (index.unique || index.exclusion));
        let keys: BTreeSet<&Ident> =
            indexes.clone().filter(|key| key.primary).flat_map(IndexDefinition::key_columns).collect();
        let checks = self.here.constraints.iter().filter(|found| found.enforced);
        let nulls = self.here.columns.iter().filter(|column| column.not_null && !keys.contains(&column.name));
        // A column of its own is for the comparison of columns.
        let nulls = nulls.filter(|column| self.source.column(&column.name).is_some());
        let found = indexes.map(|index| self.of_index(index));
        let found = found.chain(checks.map(|constraint| match constraint.kind {
            ConstraintKind::Check => self.of_check(constraint),
            ConstraintKind::ForeignKey => self.of_foreign_key(constraint),
            ConstraintKind::PrimaryKey | ConstraintKind::Unique | ConstraintKind::Exclusion => None,
        }));
        found.chain(nulls.map(|column| self.of_not_null(&column.name))).flatten().collect()
    }

    fn table(&self) -> QualifiedName {
        self.here.name()
    }

    fn drop(&self, constraint: &Ident) -> String {
        format!("ALTER TABLE {} DROP CONSTRAINT {constraint}", self.table())
    }

    fn of_check(&self, constraint: &ConstraintDefinition) -> Option<Difference> {
        let name = &constraint.name;
        let there =
            self.source.constraints.iter().find(|there| there.name == *name && there.kind == ConstraintKind::Check);
        let mut statements = vec![self.drop(name)];
        let mut later = Vec::new();
        let Some(there) = there else {
            let why = format!("The source does not have check constraint {name}");
            return Some(Difference { why, statements, later });
        };
        let why = match (there.enforced, there.validated) {
            (true, true) if there.expression == constraint.expression => return None,
            (true, true) => format!("The source has check constraint {name} with another expression"),
            (false, _) => format!("The source has check constraint {name} NOT ENFORCED"),
            (true, false) => format!("The source has check constraint {name} NOT VALID: older rows violate it"),
        };
        if let Some(add) = self.creation.check_constraint(there, &mut Vec::new()) {
            let add = shown_sql(&format!("ALTER TABLE {} ADD {add}", self.table().sql()));
            match ddl::is_for_new_rows_only(there) {
                true => later.push(format!("{add} NOT VALID")),
                false => statements.push(add),
            }
        }
        Some(Difference { why, statements, later })
    }

    fn of_foreign_key(&self, constraint: &ConstraintDefinition) -> Option<Difference> {
        let (name, target) = (&constraint.name, constraint.references.as_ref()?);
        let is_same = |there: &&ConstraintDefinition| {
            let to = there.references.as_ref().map(|to| (to.table(), &to.columns));
            to == Some((target.table(), &target.columns)) && there.columns == constraint.columns
        };
        let there = self.source.constraints.iter().filter(|there| there.kind == ConstraintKind::ForeignKey);
        let there =
            there.clone().find(|there| is_same(there) && there.name == *name).or_else(|| there.clone().find(is_same));
        let mut statements = vec![self.drop(name)];
        let mut later = Vec::new();
        let why = match there.map(|there| (there, there.enforced, there.validated)) {
            None => format!("The source does not have foreign key {name}"),
            Some((_, true, true)) => return None,
            Some((_, false, _)) => format!("The source has foreign key {name} NOT ENFORCED"),
            Some((_, true, false)) => format!("The source has foreign key {name} NOT VALID: older rows violate it"),
        };
        if let Some((there, to)) = there.and_then(|there| Some((there, there.references.as_ref()?))) {
            let add = shown_sql(&ddl::add_foreign_key(&self.table(), there, to, &to.table()));
            match there.enforced {
                true => later.push(add),
                false if Feature::NotEnforced.is_known_to(self.creation.expressions.version()) => statements.push(add),
                false => {}
            }
        }
        Some(Difference { why, statements, later })
    }

    /// Of an index that must go.
    fn replacement(&self, index: &IndexDefinition) -> Option<Replacement> {
        let name = &index.name;
        let forbids_as_much = |there: &IndexDefinition| {
            takes_the_same_for_equal(there, index)
                && there.predicate == index.predicate
                && (there.immediate || !index.immediate)
                && (there.nulls_not_distinct || !index.nulls_not_distinct)
        };
        if self.like(index).any(forbids_as_much) {
            return None;
        }
        let drops = index_drops(self.here, index);
        let instead = self.source.indexes.iter().filter(|there| there.valid && (there.unique || there.exclusion));
        let instead = instead.filter(|there| there.name == *name || (index.primary && there.primary));
        let is_free = |there: &&IndexDefinition| {
            let others = self.here.indexes.iter().filter(|other| other.name != *name);
            others.clone().all(|other| other.name != there.name)
                && others.clone().all(|other| other.key() != there.key())
        };
        let why = self.why_replaced(index, instead.clone().next());
        let add = instead.filter(is_free).find_map(|there| self.creation.index_of(there));
        Some(Replacement { why, drops, add: add.map(|add| shown_sql(&add)) })
    }

    fn why_replaced(&self, index: &IndexDefinition, instead: Option<&IndexDefinition>) -> String {
        let (kind, name) = (kind(index), &index.name);
        let is_over_the_same =
            |there: &&IndexDefinition| is_over_the_same(there, index) && there.predicate == index.predicate;
        match (self.like(index).find(is_over_the_same), instead) {
            (Some(there), _) if !takes_the_same_for_equal(there, index) => {
                let by = if index.exclusion { "other operators" } else { "another operator class or collation" };
                format!("The source has {} {} by {by}", self::kind(there), there.name)
            }
            (_, Some(instead)) => format!("The source has {kind} {} otherwise", instead.name),
            (_, None) => format!("The source does not have {kind} {name} over these columns"),
        }
    }

    /// The source's indexes that may forbid what this one forbids.
    fn like<'b>(&'b self, index: &'b IndexDefinition) -> impl Iterator<Item = &'b IndexDefinition> {
        let is_like = move |there: &IndexDefinition| {
            there.valid && there.unique == index.unique && (there.exclusion || !index.exclusion)
        };
        self.source.indexes.iter().filter(move |there| is_like(there))
    }

    fn of_index(&self, index: &IndexDefinition) -> Option<Difference> {
        let Replacement { why, drops: mut statements, add } = self.replacement(index)?;
        statements.extend(add);
        Some(Difference { why, statements, later: Vec::new() })
    }

    fn of_not_null(&self, name: &Ident) -> Option<Difference> {
        let here = self.here.column(name)?;
        let why = match self.source.column(name) {
            Some(there) if there.is_never_null() => return None,
            Some(_) => format!("The source allows NULL in column {name}"),
            None => format!("The source does not have column {name}"),
        };
        let (mut statements, mut add) = (Vec::new(), None);
        let in_key = |index: &&IndexDefinition| index.primary && index.key_columns().any(|key| key == name);
        for key in self.here.indexes.iter().filter(in_key) {
            match self.replacement(key) {
                Some(replacement) => {
                    statements.extend(replacement.drops);
                    add = add.or(replacement.add);
                }
                None => statements.extend(index_drops(self.here, key)),
            }
        }
        let table = self.table();
        if here.identity.is_some() {
            statements.push(format!("ALTER TABLE {table} ALTER COLUMN {name} DROP IDENTITY"));
        }
        statements.push(format!("ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL"));
        statements.extend(add);
        Some(Difference { why, statements, later: Vec::new() })
    }
}

/// What people call an index that keeps rows apart.
fn kind(index: &IndexDefinition) -> &'static str {
    match (index.primary, index.unique) {
        (true, _) => "primary key",
        (false, true) => "unique index",
        (false, false) => "exclusion constraint",
    }
}

/// Whether an index is over the same columns and expressions as another, whatever their order.
fn is_over_the_same(index: &IndexDefinition, other: &IndexDefinition) -> bool {
    let columns = |index: &IndexDefinition| -> BTreeSet<(Option<Ident>, Option<String>)> {
        index.key().into_iter().map(|part| (part.column.cloned(), part.expression.map(str::to_owned))).collect()
    };
    columns(index) == columns(other)
}

/// Whether the source's index takes all rows for equal that the destination's does.
fn takes_the_same_for_equal(there: &IndexDefinition, here: &IndexDefinition) -> bool {
    let is_as_loose = |part: &IndexPart| {
        let same = there.parts.iter().filter(|same| same.column == part.column && same.expression == part.expression);
        part.nondeterministic.is_none() || same.clone().any(|same| same.nondeterministic.is_some())
    };
    there.key() == here.key() && here.parts.iter().all(is_as_loose)
}

/// What the source keeps the rows of a partition of the destination by, as a table of its name: what the whole table has, and what its
/// own partition of the same name, where there is one, has by itself.
pub fn source_of_partition(
    table: &TableDefinition,
    partition: Option<&TableDefinition>,
    here: &TableDefinition,
) -> TableDefinition {
    let mut source = TableDefinition { schema: here.schema.clone(), table: here.table.clone(), ..table.clone() };
    if let Some(partition) = partition {
        for column in &mut source.columns {
            if let Some(own) = partition.column(&column.name).filter(|own| own.is_never_null()) {
                column.not_null = true;
                column.not_null_constraint.clone_from(&own.not_null_constraint);
            }
        }
        source.indexes.extend(partition.indexes.iter().cloned());
        source.constraints.extend(partition.constraints.iter().cloned());
    }
    source
}

/// What drops an index of a table, or the constraint that it stands for; first the foreign keys that stand on it and keep it from being
/// dropped. Each without its semicolon.
pub fn index_drops(table: &TableDefinition, index: &IndexDefinition) -> Vec<String> {
    let on_it = table.referenced_by.iter().filter(|found| found.index == Some(index.id));
    let drops = on_it.map(|found| {
        let child = QualifiedName { schema: found.schema.clone(), name: found.table.clone() };
        format!("ALTER TABLE {child} DROP CONSTRAINT {}", found.name)
    });
    let is_its = |constraint: &ConstraintDefinition| {
        constraint.index == Some(index.id) && constraint.kind != ConstraintKind::ForeignKey
    };
    let itself = match index.primary || table.constraints.iter().any(is_its) {
        true => format!("ALTER TABLE {} DROP CONSTRAINT {}", table.name(), index.name),
        false => {
            format!("DROP INDEX {}", QualifiedName { schema: table.schema.clone(), name: index.name.clone() })
        }
    };
    drops.chain([itself]).collect()
}

/// The difference in a domain that a table's columns have here; `None` where no domain differs.
pub fn domain_difference(
    violated: &Violated,
    BothTypes { source, destination: here }: BothTypes<'_>,
    expressions: &Expressions,
) -> Option<Difference> {
    let schema = violated.table.as_ref().map(|table| &table.schema);
    let domains = here.values().filter(|found| found.kind == TypeKind::Domain);
    let domains = domains.filter(|found| schema.is_none_or(|schema| found.schema == *schema));
    let find = |domain: &TypeDefinition| {
        let there = source.values().find(|there| there.qualified_name() == domain.qualified_name());
        match &violated.constraint {
            Some(name) => of_domain_check(domain, name, there, source, expressions),
            None => of_domain_null(domain, there),
        }
    };
    domains.filter_map(find).next()
}

/// The differences in the domains that both ends have, before a value is refused.
pub fn domain_differences(
    BothTypes { source, destination: here }: BothTypes<'_>,
    expressions: &Expressions,
) -> Vec<Difference> {
    let domains = here.values().filter(|found| found.kind == TypeKind::Domain);
    let differences = |domain: &TypeDefinition| {
        let there = source.values().find(|there| there.qualified_name() == domain.qualified_name());
        let names = domain.checks.iter().flatten().map(|check| &check.name);
        let checks = names.map(|name| of_domain_check(domain, name, there, source, expressions));
        let null = of_domain_null(domain, there);
        there.map(|_| checks.chain([null]).flatten().collect::<Vec<_>>()).unwrap_or_default()
    };
    domains.flat_map(differences).collect()
}

fn of_domain_check(
    domain: &TypeDefinition,
    name: &Ident,
    there: Option<&TypeDefinition>,
    types: &Types,
    expressions: &Expressions,
) -> Option<Difference> {
    let check = domain.checks.iter().flatten().find(|check| check.name == *name)?;
    let at_source = there.and_then(|there| there.checks.iter().flatten().find(|check| check.name == *name));
    let domain_name = domain.qualified_name();
    let mut statements = vec![format!("ALTER DOMAIN {domain_name} DROP CONSTRAINT {name}")];
    let why = match at_source {
        None => format!("The source does not have check constraint {name} of domain {domain_name}"),
        // Older values come again with every change of their rows: it cannot be added before they are gone at the source.
        Some(found) if !found.validated => {
            format!("The source has check constraint {name} of domain {domain_name} NOT VALID: older values violate it")
        }
        Some(found) if found.expression == check.expression => return None,
        Some(found) => {
            let base = there.and_then(|there| there.base)?;
            if let Ok(text) = expressions.accept(
                &found.expression,
                Purpose::Immutable,
                &ExpressionScope::domain(base, types).assigned_to(BOOLEAN),
            ) {
                let add = format!("ALTER DOMAIN {} ADD CONSTRAINT {} CHECK ({text})", domain_name.sql(), name.sql());
                statements.push(shown_sql(&add));
            }
            format!("The source has check constraint {name} of domain {domain_name} with another expression")
        }
    };
    Some(Difference { why, statements, later: Vec::new() })
}

fn of_domain_null(domain: &TypeDefinition, there: Option<&TypeDefinition>) -> Option<Difference> {
    if !domain.not_null || there.is_some_and(|there| there.not_null) {
        return None;
    }
    let name = domain.qualified_name();
    Some(Difference {
        why: format!("The source allows NULL in domain {name}"),
        statements: vec![format!("ALTER DOMAIN {name} DROP NOT NULL")],
        later: Vec::new(),
    })
}
