//! What of a source's constraints a destination of an older version cannot have, and what stands there for it.
//!
//! In come a table of the source and the destination's `server_version_num`; out go sentences' parts. Asked by `sql::ddl` when
//! the table is created, and by `headwater check` before a row moves, so that both say the same. Pure.
//!
//! Invariant: what stands for a constraint never refuses a row that the source allows.

use std::fmt;

use crate::catalog::schema::{ConstraintDefinition, ConstraintKind, TableDefinition};
use crate::pg::Ident;

/// The first `server_version_num` that knows a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// NULLS NOT DISTINCT
    NullsNotDistinct,
    /// WITHOUT OVERLAPS of a key
    WithoutOverlaps,
    /// PERIOD of a foreign key
    Period,
    /// NOT ENFORCED
    NotEnforced,
    /// NOT NULL … NOT VALID
    NotNullNotValid,
}

impl Feature {
    /// The major version that brought it.
    pub const fn since(self) -> u32 {
        match self {
            Feature::NullsNotDistinct => 15,
            Feature::WithoutOverlaps | Feature::Period | Feature::NotEnforced | Feature::NotNullNotValid => 18,
        }
    }

    /// Whether a server of this `server_version_num` knows it.
    pub const fn is_known_to(self, version: u32) -> bool {
        version / 10_000 >= self.since()
    }

    /// As SQL spells it.
    pub const fn as_sql(self) -> &'static str {
        match self {
            Feature::NullsNotDistinct => "NULLS NOT DISTINCT",
            Feature::WithoutOverlaps => "WITHOUT OVERLAPS",
            Feature::Period => "PERIOD",
            Feature::NotEnforced => "NOT ENFORCED",
            Feature::NotNullNotValid => "NOT VALID",
        }
    }

    /// What an older destination has instead, as a sentence without its full stop.
    pub const fn instead(self) -> &'static str {
        match self {
            Feature::NullsNotDistinct => {
                "the destination takes rows with equal values and NULLs, as the source sends them"
            }
            Feature::WithoutOverlaps => "a key over the same columns is made, which does not look at overlaps",
            Feature::Period | Feature::NotEnforced => "the destination gets no such constraint",
            Feature::NotNullNotValid => "the column takes NULL at the destination",
        }
    }
}

/// A constraint that the destination's version cannot have as the source has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooNew {
    /// `primary key`, `not-null constraint`, …
    pub kind: &'static str,
    /// Its name.
    pub name: Ident,
    /// What the destination does not know.
    pub feature: Feature,
}

impl fmt::Display for TooNew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooNew { kind, name, feature } = self;
        write!(
            f,
            "{} of {kind} {name} (it needs PostgreSQL {}: {})",
            feature.as_sql(),
            feature.since(),
            feature.instead()
        )
    }
}

/// The feature that a constraint needs; `None` when every supported version has it.
pub fn feature_of(constraint: &ConstraintDefinition) -> Option<Feature> {
    match constraint.kind {
        ConstraintKind::Check | ConstraintKind::ForeignKey if !constraint.enforced => Some(Feature::NotEnforced),
        ConstraintKind::ForeignKey if constraint.period => Some(Feature::Period),
        ConstraintKind::PrimaryKey | ConstraintKind::Unique if constraint.period => Some(Feature::WithoutOverlaps),
        ConstraintKind::Check
        | ConstraintKind::ForeignKey
        | ConstraintKind::PrimaryKey
        | ConstraintKind::Unique
        | ConstraintKind::Exclusion => None,
    }
}

/// What of a table's constraints a destination of this `server_version_num` does not know.
pub fn too_new(table: &TableDefinition, version: u32) -> Vec<TooNew> {
    let kind_of = |constraint: &ConstraintDefinition| match constraint.kind {
        ConstraintKind::Check => "check constraint",
        ConstraintKind::ForeignKey => "foreign key",
        ConstraintKind::PrimaryKey => "primary key",
        ConstraintKind::Unique => "unique constraint",
        ConstraintKind::Exclusion => "exclusion constraint",
    };
    let of_constraints = table.constraints.iter().filter_map(|constraint| {
        let feature = feature_of(constraint)?;
        Some(TooNew { kind: kind_of(constraint), name: constraint.name.clone(), feature })
    });
    let of_indexes = table.indexes.iter().filter(|index| index.valid && index.nulls_not_distinct).map(|index| {
        let is_constraint = table.constraints.iter().any(|constraint| constraint.index == Some(index.id));
        let kind = if is_constraint { "unique constraint" } else { "index" };
        TooNew { kind, name: index.name.clone(), feature: Feature::NullsNotDistinct }
    });
    let of_columns = table.columns.iter().filter(|column| !column.is_never_null()).filter_map(|column| {
        let name = column.not_null_constraint.as_ref()?.name.clone();
        Some(TooNew { kind: "not-null constraint", name, feature: Feature::NotNullNotValid })
    });
    of_constraints.chain(of_indexes).chain(of_columns).filter(|found| !found.feature.is_known_to(version)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::schema::NotNullConstraint;
    use crate::testing::{TestColumn, table, unique_index};

    #[test]
    fn each_feature_is_told_to_older_versions_only() {
        let mut table = table("t", &[TestColumn::new("id", 23).not_null(), TestColumn::new("n", 23).not_null()]);
        table.indexes.push(unique_index("u", &[Ident::new("n")], false));
        table.indexes.iter_mut().filter(|index| !index.primary).for_each(|index| index.nulls_not_distinct = true);
        let constraint = |name: &str, kind| ConstraintDefinition {
            name: Ident::new(name),
            kind,
            index: None,
            deferrable: false,
            deferred: false,
            validated: true,
            enforced: true,
            no_inherit: false,
            period: false,
            expression: None,
            columns: None,
            references: None,
        };
        let not_enforced = ConstraintDefinition { enforced: false, ..constraint("c", ConstraintKind::Check) };
        let key = ConstraintDefinition { period: true, ..constraint("k", ConstraintKind::PrimaryKey) };
        table.constraints = vec![constraint("plain", ConstraintKind::Check), not_enforced, key];
        for column in table.columns.iter_mut().filter(|column| column.name.as_str() == "n") {
            let name = Ident::new("nn");
            column.not_null_constraint = Some(NotNullConstraint { name, validated: false, no_inherit: false });
        }
        let told =
            |version| too_new(&table, version).into_iter().map(|found| found.name.to_string()).collect::<Vec<_>>();
        assert_eq!(told(140_000), ["c", "k", "u", "nn"]);
        assert_eq!(told(150_020), ["c", "k", "nn"]);
        assert!(told(180_004).is_empty());
    }
}
