//! Statements that make the source's row win over what stands at the destination.
//!
//! Used by `apply_plan::source_wins` for a transaction that has met a conflict. Parameters are the same for every statement of
//! a change: the values of all stored columns of the new row, then those by which the old row is found. So each
//! statement may use what it needs of them; NULL stands for a value that the stream did not send and that nobody here
//! refers to.

use crate::apply_plan::sql::{
    assignments_at, equals, join, key_condition, only, overriding, same_image, stored, whole_row,
};
use crate::apply_plan::target::{Target, TargetColumn};
use crate::apply_plan::target_guard::is_target;
use crate::apply_plan::unique_keys::{Unique, UniquePart};

/// Where parameters stand: the new row's columns, then the old row's identity.
#[derive(Clone, Debug)]
pub struct ColumnParameters<'a> {
    /// ColumnParameters of the stored columns, in the order of the parameters.
    pub stored: &'a [usize],
}

impl ColumnParameters<'_> {
    /// The parameter of a column of the new row.
    fn of(&self, index: usize) -> Option<String> {
        self.stored.iter().position(|stored| *stored == index).map(|at| format!("${}", at + 1))
    }

    fn before_old(&self) -> usize {
        self.stored.len()
    }
}

/// Whose row is not a rival: the one that the change is about.
#[derive(Clone, Copy, Debug)]
pub enum Own<'a> {
    /// The row with the new row's values in these columns.
    New(&'a [usize]),
    /// The row with the old key.
    Old(&'a [usize]),
    /// Nobody's.
    Nobody,
}

/// Deletes rows that have the new row's unique values and are another row. `None` when the relation lacks a column of
/// the index.
pub fn remove_rivals(
    target: &Target,
    unique: &Unique,
    parameters: &ColumnParameters<'_>,
    own: Own<'_>,
) -> Option<String> {
    let mut conditions = Vec::new();
    for part in &unique.parts {
        let operator = equals(&part.equality());
        conditions.push(match part {
            UniquePart::Column { name, .. } => {
                let index = target.relation.columns.iter().position(|column| column.name == *name)?;
                let (name, value) = (name.sql(), parameters.of(index)?);
                match unique.nulls_not_distinct {
                    true => format!("({name} {operator} {value} OR ({name} IS NULL AND {value} IS NULL))"),
                    false => format!("{name} {operator} {value}"),
                }
            }
            UniquePart::Expression { sql, .. } => {
                format!("({sql}) {operator} (SELECT ({sql}) FROM {})", new(target, parameters))
            }
        });
    }
    if let Some(predicate) = &unique.predicate {
        conditions.push(format!("({predicate}) AND (SELECT ({predicate}) FROM {})", new(target, parameters)));
    }
    match own {
        Own::New(key) => {
            let same = key.iter().map(|index| {
                let column = target.column(*index)?;
                Some(equal(column, &parameters.of(*index)?))
            });
            conditions.push(format!("NOT ({})", same.collect::<Option<Vec<_>>>()?.join(" AND ")));
        }
        Own::Old(key) => conditions.push(format!("NOT ({})", key_condition(target, key, parameters.before_old()))),
        Own::Nobody => {}
    }
    conditions.push(is_target(target));
    Some(format!("DELETE FROM {} WHERE {}", only(target), conditions.join(" AND ")))
}

/// Inserts the row, or gives the row with its key the same values. Touches no row in its INSERT when there was one.
pub fn insert_or_overwrite(target: &Target, set: &[usize], key: &[usize], parameters: &ColumnParameters<'_>) -> String {
    let found = key.iter().filter_map(|index| {
        let column = target.column(*index)?;
        Some(equal(column, &parameters.of(*index)?))
    });
    let found = found.collect::<Vec<_>>().join(" AND ");
    or_insert(target, set, &found, parameters)
}

/// Updates the row with the old key, or inserts the new one where it is missing.
pub fn update_or_restore(target: &Target, set: &[usize], key: &[usize], parameters: &ColumnParameters<'_>) -> String {
    or_insert(target, set, &key_condition(target, key, parameters.before_old()), parameters)
}

/// Updates one row that equals the old one, or inserts the new one where there is none.
pub fn update_whole_row_or_restore(target: &Target, set: &[usize], parameters: &ColumnParameters<'_>) -> String {
    or_insert(target, set, &whole_row(target, parameters.before_old()), parameters)
}

fn or_insert(target: &Target, set: &[usize], found: &str, parameters: &ColumnParameters<'_>) -> String {
    let columns = stored(target);
    let names = join(columns.iter().map(|column| column.name.sql()));
    let values = join(parameters.stored.iter().filter_map(|index| parameters.of(*index)));
    let only = only(target);
    // A row of nothing but values that no UPDATE can set is as it should be once it is there.
    let changed = match assignments_at(target, set, |index| parameters.of(index)) {
        none if none.is_empty() => format!("SELECT 1 FROM {only} WHERE {found}"),
        assignments => format!("UPDATE {only} SET {assignments} WHERE {found} RETURNING 1"),
    };
    format!(
        "WITH changed AS ({changed}) INSERT INTO {} ({names}){} SELECT {values} WHERE NOT EXISTS (SELECT FROM changed) AND {}",
        target.table.sql(),
        overriding(target),
        is_target(target),
    )
}

fn equal(column: &TargetColumn, value: &str) -> String {
    match &column.equality {
        Some(operator) => format!("{} {} {value}", column.name.sql(), equals(operator)),
        None => same_image(&column.name.sql(), value),
    }
}

/// The new row as a table of one row, for the expressions of an index.
fn new(target: &Target, parameters: &ColumnParameters<'_>) -> String {
    let columns = parameters.stored.iter().filter_map(|index| {
        let column = target.column(*index)?;
        Some(format!("{} AS {}", parameters.of(*index)?, column.name.sql()))
    });
    format!("(SELECT {}) AS new", join(columns))
}
