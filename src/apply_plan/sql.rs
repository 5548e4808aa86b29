//! Statements that carry out one change, or a set of them.
//!
//! Parameters are numbered in the order in which `apply_plan::row_by_row` gives their values. Row counts are checked in the
//! server, because COMMIT is already on its way when the answer comes: `headwater.expect` raises when they differ.

use crate::apply_plan::target::{Target, TargetColumn};
use crate::apply_plan::target_guard::is_target;
use crate::pg::QualifiedName;
use crate::sql::table_guard::{LockMode, lock, refuse_others};

/// Inserts a row of all stored columns.
pub fn insert_row(target: &Target) -> String {
    let columns = stored(target);
    let (table, is_target) = (target.table.sql(), is_target(target));
    if columns.is_empty() {
        return format!("INSERT INTO {table} SELECT WHERE {is_target}");
    }
    let names = join(columns.iter().map(|column| column.name.sql()));
    let values = join((1..=columns.len()).map(|n| format!("${n}")));
    // VALUES has no WHERE.
    format!("INSERT INTO {table} ({names}){} SELECT {values} WHERE {is_target}", overriding(target))
}

/// Updates the columns at `set` of the one row whose columns at `key` have the values behind them.
pub fn update_row(target: &Target, set: &[usize], key: &[usize]) -> String {
    let assignments = assignments(target, set);
    let found = key_condition(target, key, set.len());
    expecting_one(&format!("UPDATE {} SET {assignments} WHERE {found} AND {}", only(target), is_target(target)))
}

/// Updates one of the rows that equal the old values at all stored columns, which come behind the values of `set`.
pub fn update_whole_row(target: &Target, set: &[usize]) -> String {
    let assignments = assignments(target, set);
    let found = whole_row(target, set.len());
    expecting_one(&format!("UPDATE {} SET {assignments} WHERE {found} AND {}", only(target), is_target(target)))
}

/// Deletes the row with this key.
pub fn delete_row(target: &Target, key: &[usize]) -> String {
    format!("DELETE FROM {} WHERE {} AND {}", only(target), key_condition(target, key, 0), is_target(target))
}

/// Deletes one of the rows that equal the old values at all stored columns.
pub fn delete_whole_row(target: &Target) -> String {
    format!("DELETE FROM {} WHERE {} AND {}", only(target), whole_row(target, 0), is_target(target))
}

/// COPY of all stored columns. It has no WHERE: [`crate::sql::table_guard`] has what comes before it and after it in its transaction.
pub fn copy_rows(target: &Target, binary: bool) -> String {
    let names = join(stored(target).iter().map(|column| column.name.sql()));
    let format = if binary { " (FORMAT binary)" } else { "" };
    format!("COPY {} ({names}) FROM STDIN{format}", target.table.sql())
}

/// Deletes the rows with these keys: an array for each column of the key.
pub fn delete_set(target: &Target, key: &[usize]) -> String {
    if let [index] = key
        && let Some(column) = target.key_column(*index)
    {
        // Sets are for keys whose columns have an operator (`sets::way`).
        let equals = column.equality.as_ref().map(equals).unwrap_or_default();
        let (name, is_target) = (column.name.sql(), is_target(target));
        return format!("DELETE FROM {} WHERE {name} {equals} ANY ($1) AND {is_target}", only(target));
    }
    let (rows, found) = unnested(target, &[], key);
    format!("DELETE FROM {} AS t USING {rows} WHERE {found} AND {}", only(target), is_target(target))
}

/// Updates the columns at `set` of the rows with these keys: an array for each column to set, one for each of the key,
/// then the number of rows.
pub fn update_set(target: &Target, set: &[usize], key: &[usize]) -> String {
    let columns = set.iter().filter_map(|index| target.column(*index));
    let assignments = join(columns.zip(1..).map(|(column, n)| format!("{} = k.c{n}", column.name.sql())));
    let (rows, found) = unnested(target, set, key);
    let (only, is_target) = (only(target), is_target(target));
    let statement = format!("UPDATE {only} AS t SET {assignments} FROM {rows} WHERE {found} AND {is_target}");
    expecting(&statement, &format!("${}", set.len() + key.len() + 1))
}

/// Arrays as rows `k` with columns c1, c2, …, and the condition that joins them to `t` by the key.
fn unnested(target: &Target, set: &[usize], key: &[usize]) -> (String, String) {
    let count = set.len() + key.len();
    let arrays = join((1..=count).map(|n| format!("${n}")));
    let names = join((1..=count).map(|n| format!("c{n}")));
    let columns = key.iter().filter_map(|index| target.key_column(*index));
    let conditions: Vec<String> = columns
        .zip(set.len() + 1..)
        .map(|(column, n)| match &column.equality {
            Some(operator) => format!("t.{} {} k.c{n}", column.name.sql(), equals(operator)),
            None => same_image(&format!("t.{}", column.name.sql()), &format!("k.c{n}")),
        })
        .collect();
    // Only the bare word takes several arrays side by side (parse_clause.c); it always means pg_catalog's function.
    (format!("unnest({arrays}) AS k ({names})"), conditions.join(" AND "))
}

/// Statements that empty tables together. RESTRICT, as in native replication: what the source's CASCADE reached is named. Views
/// cannot be truncated, but a foreign table would have its rows deleted at its own server.
pub fn truncate(targets: &[&Target], restart_identity: bool) -> [String; 4] {
    let refuse_others = || refuse_others(targets.iter().map(|target| is_target(target)));
    let tables = join(targets.iter().map(|target| only(target)));
    let identity = if restart_identity { " RESTART IDENTITY" } else { "" };
    let truncate = format!("TRUNCATE {tables}{identity}");
    [lock(&tables, LockMode::AccessExclusive), refuse_others(), truncate, refuse_others()]
}

/// Empties a table without making its readers wait.
pub fn delete_all(target: &Target) -> String {
    format!("DELETE FROM {} WHERE {}", only(target), is_target(target))
}

pub(crate) fn stored(target: &Target) -> Vec<&TargetColumn> {
    target.columns.iter().flatten().collect()
}

/// The table itself, without tables that inherit from it: their rows come as their own. Partitions hold the rows of a
/// partitioned table, which cannot be named with ONLY.
pub(crate) fn only(target: &Target) -> String {
    let only = if target.partitioned { "" } else { "ONLY " };
    format!("{only}{}", target.table.sql())
}

pub(crate) fn overriding(target: &Target) -> &'static str {
    if target.overrides_identity { " OVERRIDING SYSTEM VALUE" } else { "" }
}

fn assignments(target: &Target, set: &[usize]) -> String {
    assignments_at(target, set, |index| set.iter().position(|other| *other == index).map(|at| format!("${}", at + 1)))
}

/// Each column at `set` becomes the parameter at its place.
pub(crate) fn assignments_at(target: &Target, set: &[usize], parameter: impl Fn(usize) -> Option<String>) -> String {
    let one = |index: &usize| Some(format!("{} = {}", target.column(*index)?.name.sql(), parameter(*index)?));
    join(set.iter().filter_map(one))
}

pub(crate) fn key_condition(target: &Target, key: &[usize], parameters_before: usize) -> String {
    let columns = key.iter().filter_map(|index| target.key_column(*index));
    let conditions = columns.zip(parameters_before + 1..).map(|(column, n)| match &column.equality {
        Some(operator) => format!("{} {} ${n}", column.name.sql(), equals(operator)),
        None => same_image(&column.name.sql(), &format!("${n}")),
    });
    conditions.collect::<Vec<_>>().join(" AND ")
}

/// `OPERATOR(schema.=)`
pub(crate) fn equals(operator: &QualifiedName) -> String {
    format!("OPERATOR({}.{})", operator.schema.sql(), operator.name.as_str())
}

/// For types without an operator: their bytes are the same.
pub(crate) fn same_image(left: &str, right: &str) -> String {
    format!("{} OPERATOR(pg_catalog.*=) {}", record(left), record(right))
}

/// Finds exactly one row among those that equal the old one: the one with the identical image first, because equality
/// by operator also holds for 1.0 and 1.00.
pub(crate) fn whole_row(target: &Target, parameters_before: usize) -> String {
    let columns = stored(target);
    let parameter = |at: usize| format!("${}", parameters_before + 1 + at);
    let equal = columns.iter().enumerate().map(|(at, column)| {
        let (name, value) = (column.name.sql(), parameter(at));
        match &column.equality {
            Some(operator) => {
                let equals = equals(operator);
                format!("({name} {equals} {value} OR ({name} IS NULL AND {value} IS NULL))")
            }
            None => same_image(&name, &value),
        }
    });
    let equal = equal.collect::<Vec<_>>().join(" AND ");
    let equal = if equal.is_empty() { "true".to_owned() } else { equal };
    let names = join(columns.iter().map(|column| column.name.sql()));
    let values = join((0..columns.len()).map(parameter));
    let order = if columns.is_empty() {
        String::new()
    } else {
        format!(" ORDER BY ({} OPERATOR(pg_catalog.*=) {}) DESC", record(&names), record(&values))
    };
    // In a partitioned table ctids repeat from partition to partition.
    format!("(tableoid, ctid) = (SELECT tableoid, ctid FROM {} WHERE {equal}{order} LIMIT 1)", only(target))
}

/// A record of these expressions. Without the cast two rows would be compared column by column, by an operator that
/// columns do not have.
pub(crate) fn record(expressions: &str) -> String {
    format!("ROW({expressions})::pg_catalog.record")
}

/// Raises unless the statement touches exactly one row.
fn expecting_one(statement: &str) -> String {
    expecting(statement, "1")
}

/// Raises unless the statement touches so many rows.
fn expecting(statement: &str, rows: &str) -> String {
    format!(
        "WITH changed AS ({statement} RETURNING 1) SELECT CASE WHEN pg_catalog.count(*) = {rows} THEN NULL \
         ELSE headwater.expect(pg_catalog.count(*), {rows}) END FROM changed"
    )
}

pub(crate) fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Column, Relation, RelationId, ReplicaIdentity, TypeId};
    use crate::testing;

    fn target(key: &[&str]) -> Target {
        let columns = [testing::TestColumn::new("id", 23).not_null(), testing::TestColumn::new("v", 25)];
        let table = testing::table("it's", &columns);
        let relation = Relation {
            leaves: Default::default(),
            id: RelationId(1),
            name: table.name(),
            replica_identity: ReplicaIdentity::Full,
            columns: columns_of(&["id", "v"], key),
        };
        Target::bind(&relation.into(), &table, &testing::types(), None).unwrap()
    }

    fn columns_of(names: &[&str], key: &[&str]) -> Vec<Column> {
        let column = |name: &&str| Column {
            name: crate::pg::Ident::new(*name),
            in_identity: key.contains(name),
            type_id: TypeId(if *name == "id" { 23 } else { 25 }),
            type_modifier: -1,
        };
        names.iter().map(column).collect()
    }

    #[test]
    fn every_statement_that_writes_rows_refuses_what_is_not_the_table_that_was_filled() {
        let target = target(&["id"]);
        let (refused, one) = (is_target(&target), std::slice::from_ref(&target));
        let [_, before, _, behind] = truncate(&one.iter().collect::<Vec<_>>(), false);
        let statements = [
            insert_row(&target),
            update_row(&target, &[1], &[0]),
            update_whole_row(&target, &[1]),
            delete_row(&target, &[0]),
            delete_whole_row(&target),
            delete_set(&target, &[0]),
            delete_set(&target, &[0, 1]),
            update_set(&target, &[1], &[0]),
            delete_all(&target),
            before,
            behind,
        ];
        for statement in statements {
            assert!(statement.contains(&refused), "{statement}");
        }
        let name = r#"CASE WHEN '"public"."it''s"'::pg_catalog.regclass::pg_catalog.oid OPERATOR(pg_catalog.=) "#;
        assert!(refused.contains(name), "{refused}");
        assert!(refused.contains("ELSE headwater.other_table('public', 'it''s') END"), "{refused}");
    }
}
