//! What tables need that the destination will create, and that only its operator can give: types of extensions,
//! collations.
//!
//! Asked by `prepare` before the first copy, and by `check`. In come both catalogs; out goes a report for each thing that is
//! missing, with the statement that creates it. Schemas, enums, domains and composites are no matter of this file: they are
//! created.

use std::collections::{BTreeMap, BTreeSet};

use crate::destination::{Catalog, DestinationError, missing_collations, missing_types, needed_types};
use crate::fault::Fault;
use crate::pg::{ErrorReport, QualifiedName, shown_sql};
use crate::plan::fit::type_misfit;
use crate::plan::schema::{ColumnDefinition, TableDefinition, TypeDefinition, Types};
use crate::session::{SqlClient, describe_named_types};
use crate::source::{SourceCatalog, SourceTable, collation_statements};

/// What is missing for tables, and columns, that the destination does not have yet.
///
/// # Errors
/// [`Fault`] when one end does not answer.
pub(super) async fn lacking(
    source: &SqlClient,
    here: &SqlClient,
    catalog: &SourceCatalog,
    existing: &Catalog,
) -> Result<Vec<ErrorReport>, Fault> {
    let to_come: Vec<(&TableDefinition, Vec<&ColumnDefinition>)> = catalog
        .tables
        .iter()
        .map(|table| (&table.definition, to_create(table, existing.table(&table.definition.name()))))
        .collect();
    let columns: Vec<&ColumnDefinition> = to_come.iter().flat_map(|(_, columns)| columns.iter().copied()).collect();
    let mut reports = missing_types(here, &catalog.types, &columns).await?;
    reports.extend(other_types(here, &catalog.types, &columns).await?);

    let mut users: BTreeMap<QualifiedName, BTreeSet<String>> = BTreeMap::new();
    for (table, columns) in &to_come {
        let name = table.name();
        let of_columns = columns.iter().filter_map(|column| Some((column.collation.clone()?, &column.name)));
        let new_table = existing.table(&name).is_none();
        let parts = table.indexes.iter().filter(|_| new_table).flat_map(|index| &index.parts);
        let of_indexes = parts.filter_map(|part| Some((part.collation.clone()?, part.column.as_ref()?)));
        for (collation, column) in of_columns.chain(of_indexes) {
            users.entry(collation).or_default().insert(format!("{name}.{column}"));
        }
    }
    let names: Vec<QualifiedName> = users.keys().cloned().collect();
    let missing = missing_collations(here, &names).await?;
    if missing.is_empty() {
        return Ok(reports);
    }
    let missing_names: Vec<QualifiedName> = missing.iter().map(|(name, _)| name.clone()).collect();
    let statements = collation_statements(source, &missing_names).await?;
    for (name, schema_exists) in missing {
        let used_by: Vec<&str> = users.get(&name).into_iter().flatten().map(String::as_str).collect();
        reports.push(collation_report(&name, &used_by, statements.get(&name), schema_exists));
    }
    Ok(reports)
}

/// Types that columns to come would get by their names, and that are not the source's.
async fn other_types(
    here: &SqlClient,
    types: &Types,
    columns: &[&ColumnDefinition],
) -> Result<Vec<ErrorReport>, DestinationError> {
    let needed = needed_types(types, columns.iter().map(|column| column.type_id))?;
    let definitions = needed.iter().filter_map(|id| types.get(id)).filter(|definition| definition.element.is_none());
    let names: Vec<QualifiedName> = definitions.map(TypeDefinition::qualified_name).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let existing = describe_named_types(here, &names).await?;
    let misfits = needed.iter().filter_map(|id| type_misfit(*id, types, &existing));
    let report = |misfit: String| {
        ErrorReport::new(misfit)
            .detail("A table that is created at the destination would get the type that is there.")
            .hint("Rename or drop the type at the destination; headwater then creates the source's, unless it is a range.")
    };
    Ok(misfits.map(report).collect())
}

/// The columns that will be created.
fn to_create<'a>(table: &'a SourceTable, existing: Option<&TableDefinition>) -> Vec<&'a ColumnDefinition> {
    let columns = table.definition.columns.iter();
    let taken_over = columns.filter(|column| column.generated.is_some() || table.columns.contains(&column.name));
    taken_over.filter(|column| existing.is_none_or(|existing| existing.column(&column.name).is_none())).collect()
}

fn collation_report(
    name: &QualifiedName,
    used_by: &[&str],
    statement: Option<&String>,
    schema_exists: bool,
) -> ErrorReport {
    let report = ErrorReport::new(format!("collation {name} does not exist at the destination"))
        .detail(format!("It is used by {}.", used_by.join(", ")));
    let own = "or create these tables yourself, with a collation that is there";
    match statement {
        // These come with the operating system's locales, or with ICU.
        _ if name.schema.as_str() == "pg_catalog" => report.hint(format!(
            "Install the locale on the destination's machine, then run there as a superuser, {own}:\n\
             SELECT pg_import_system_collations('pg_catalog');"
        )),
        None => report.hint(format!("Create it at the destination, as it is at the source, {own}.")),
        Some(statement) => {
            let schema = if schema_exists { String::new() } else { format!("CREATE SCHEMA {};\n", name.schema) };
            report.hint(format!("Run at the destination, {own}:\n{schema}{}", shown_sql(statement)))
        }
    }
}
