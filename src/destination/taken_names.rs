//! Names that new tables need at the destination and that something else has.
//!
//! Asked by `staging` before rows are copied for a table, and by `check` for all tables that a start would create. Publishing moves a
//! table into its schema, which fails at the very end of a copy where its name, an index's or a sequence's is taken; so it does where
//! a type has the name of the table's row type, or of the array of it. One question for any number of tables.

use super::error::DestinationError;
use crate::catalog::schema::TableDefinition;
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::session::SqlClient;

const DOING: &str = "looking for taken names";

/// PostgreSQL keeps so many bytes of a name.
const NAME_BYTES_MAX: usize = 63;

/// What an operator must rename or drop before these tables can be created, a report for each.
///
/// # Errors
/// [`DestinationError`].
pub async fn taken_names(
    client: &SqlClient,
    tables: &[&TableDefinition],
) -> Result<Vec<ErrorReport>, DestinationError> {
    let (mut numbers, mut schemas, mut own) = (Vec::new(), Vec::new(), Vec::new());
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for (number, table) in (0_i32..).zip(tables) {
        let relations = relations(table).into_iter().map(|name| (name, false));
        let row_types = [table.table.as_str().to_owned(), array_of(table.table.as_str())].map(|name| (name, true));
        for (name, is_type) in relations.chain(row_types) {
            numbers.push(number);
            schemas.push(table.schema.as_str());
            own.push(table.table.as_str());
            names.push(name);
            types.push(is_type);
        }
    }
    // The array of a type that has the table's name goes with that type.
    let sql = "SELECT wanted.number, wanted.name
               FROM ROWS FROM (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                               pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::bool[]))
                   AS wanted (number, schema_name, own, name, is_type)
               JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
               WHERE CASE WHEN wanted.is_type
                   THEN EXISTS (SELECT FROM pg_catalog.pg_type t WHERE t.typnamespace = n.oid AND t.typname = wanted.name
                                AND NOT EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid
                                                AND e.typnamespace = n.oid AND e.typname = wanted.own))
                   ELSE EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname = wanted.name) END
               GROUP BY 1, 2 ORDER BY 1, 2";
    let rows = client.query(DOING, sql, &[&numbers, &schemas, &own, &names, &types]).await?;
    let mut found: Vec<(i32, String)> = Vec::new();
    for row in &rows {
        found.push((row.get(0)?, Ident::new(row.get::<&str>(1)?).to_string()));
    }
    let taken = |number: i32| found.iter().filter(move |found| found.0 == number).map(|found| found.1.clone());
    let reports = (0_i32..).zip(tables).filter_map(|(number, table)| report(table, taken(number).collect()));
    Ok(reports.collect())
}

/// The table's own name, and those of its indexes and sequences.
fn relations(table: &TableDefinition) -> Vec<String> {
    let mut names: Vec<String> = vec![table.table.as_str().to_owned()];
    names.extend(table.indexes.iter().map(|index| index.name.as_str().to_owned()));
    for column in &table.columns {
        let sequence = column.sequence.as_deref().and_then(|name| name.parse::<QualifiedName>().ok());
        names.extend(sequence.map(|sequence| sequence.name.as_str().to_owned()));
    }
    names
}

/// The name that the server gives to the array of a type.
fn array_of(name: &str) -> String {
    let mut array = format!("_{name}");
    while array.len() > NAME_BYTES_MAX {
        array.pop();
    }
    array
}

fn report(table: &TableDefinition, taken: Vec<String>) -> Option<ErrorReport> {
    if taken.is_empty() {
        return None;
    }
    let report = ErrorReport::new(format!("names that table {} needs are taken at the destination", table.name()))
        .detail(format!("In schema {}: {}.", table.schema, taken.join(", ")))
        .hint("Rename or drop these objects at the destination.");
    Some(report)
}

/// Refuses tables whose names are taken.
///
/// # Errors
/// [`DestinationError::Refused`] names the first.
pub(crate) async fn check_names_free(client: &SqlClient, tables: &[&TableDefinition]) -> Result<(), DestinationError> {
    match taken_names(client, tables).await?.into_iter().next() {
        Some(report) => Err(DestinationError::Refused(report)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_array_is_cut_as_the_server_cuts_it() {
        assert_eq!(array_of("t"), "_t");
        assert_eq!(array_of(&"x".repeat(63)), format!("_{}", "x".repeat(62)));
        assert_eq!(array_of(&"ä".repeat(31)), format!("_{}", "ä".repeat(31)));
    }
}
