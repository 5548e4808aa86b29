//! What tables need that the destination will create, and that only its operator can give: types of extensions,
//! their operator classes, collations.
//!
//! Asked by `prepare` before the first copy, and by `check`. In come both catalogs; out goes a report for each thing that is
//! missing, with the statement that creates it. Schemas, enums, domains and composites are no matter of this file: they are
//! created.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::features::Feature;
use crate::catalog::fit::type_misfit;
use crate::catalog::schema::{ColumnDefinition, TableDefinition, TypeDefinition, TypeKind, Types};
use crate::destination::{
    Catalog, DestinationError, extension_hint, missing_collations, missing_types, needed_types, operator_classes_here,
};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Ident, QualifiedName, shown_sql};
use crate::session::{Clients, SqlClient, describe_named_types};
use crate::source::{OperatorClass, SourceCatalog, SourceError, SourceTable, collation_statements, operator_classes};

/// What is missing for tables, and columns, that the destination does not have yet.
///
/// # Errors
/// [`Fault`] when one end does not answer.
pub(crate) async fn lacking(
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
    reports.extend(row_types(Clients { source, destination: here }, &catalog.types, &columns).await?);
    reports.extend(other_types(here, &catalog.types, &columns).await?);
    let version = server_version(here).await?;
    let new_tables = to_come.iter().map(|(table, _)| *table).filter(|table| existing.table(&table.name()).is_none());
    for report in missing_classes(source, here, new_tables, version).await? {
        // An extension that a type needs is said already.
        if !reports.iter().any(|known| known.hint == report.hint) {
            reports.push(report);
        }
    }

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
        for column in columns {
            for id in needed_types(&catalog.types, std::iter::once(column.type_id))? {
                let Some(definition) = catalog.types.get(&id) else { continue };
                let there = definition.qualified_name();
                if existing.types.values().any(|here| here.qualified_name() == there) {
                    continue;
                }
                for collation in definition.collations().cloned() {
                    users.entry(collation).or_default().insert(format!("{name}.{}", column.name));
                }
            }
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

/// Row types of tables and views, which come with their tables and are not created separately.
async fn row_types(
    Clients { source, destination }: Clients<'_>,
    types: &Types,
    columns: &[&ColumnDefinition],
) -> Result<Vec<ErrorReport>, Fault> {
    let needed = needed_types(types, columns.iter().map(|column| column.type_id))?;
    let composites =
        needed.into_iter().filter(|id| types.get(id).is_some_and(|found| found.kind == TypeKind::Composite));
    let ids: Vec<u32> = composites.map(|id| id.0).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE c.reltype = ANY ($1) AND c.relkind <> 'c' ORDER BY 1, 2";
    let rows = source.query("looking for row types", sql, &[&ids]).await.map_err(SourceError::Session)?;
    let names = rows.iter().map(|row| Ok(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?)));
    let names = names.collect::<Result<Vec<_>, _>>().map_err(SourceError::Session)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let existing = describe_named_types(destination, &names).await.map_err(DestinationError::Session)?;
    let is_missing = |name: &&QualifiedName| !existing.values().any(|found| found.qualified_name() == **name);
    let report = |name: &QualifiedName| {
        ErrorReport::new(format!("the row type of {name} does not exist at the destination"))
            .detail("A column to come is made of it. Such a type comes with its table and is not created for a column.")
            .hint(format!(
                "Create {name} at the destination, as it is at the source, or leave the column out of the publication."
            ))
    };
    Ok(names.iter().filter(is_missing).map(report).collect())
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

/// The destination's `server_version_num`.
pub(crate) async fn server_version(here: &SqlClient) -> Result<u32, Fault> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::int";
    let row = here.query_one("asking for the version", sql, &[]).await.map_err(DestinationError::Session)?;
    Ok(row.get::<i32>(0).map_err(DestinationError::Session)?.unsigned_abs())
}

/// Operator classes of extensions that the new tables' indexes need, and the destination lacks.
async fn missing_classes(
    source: &SqlClient,
    here: &SqlClient,
    tables: impl Iterator<Item = &TableDefinition>,
    version: u32,
) -> Result<Vec<ErrorReport>, Fault> {
    let mut indexes: Vec<u32> = Vec::new();
    for table in tables {
        // Exclusion constraints are not created. A key WITHOUT OVERLAPS is, where it is known.
        let is_period = |id: u32| table.constraints.iter().any(|found| found.index == Some(id) && found.period);
        let is_built = |id: u32, exclusion: bool| match is_period(id) {
            true => Feature::WithoutOverlaps.is_known_to(version),
            false => !exclusion,
        };
        let valid = table.indexes.iter().filter(|index| index.valid);
        indexes.extend(valid.filter(|index| is_built(index.id, index.exclusion)).map(|index| index.id));
    }
    let classes = operator_classes(source, &indexes).await?;
    if classes.is_empty() {
        return Ok(Vec::new());
    }
    let wanted: Vec<(Ident, Ident)> = classes.iter().map(|class| (class.name.clone(), class.method.clone())).collect();
    let found = operator_classes_here(here, &wanted).await?;
    let missing = classes.iter().filter(|class| !found.contains(&(class.name.clone(), class.method.clone())));
    let mut by_extension: BTreeMap<&Ident, Vec<&OperatorClass>> = BTreeMap::new();
    missing.for_each(|class| by_extension.entry(&class.extension).or_default().push(class));
    let mut reports = Vec::new();
    for (extension, classes) in by_extension {
        let Some(first) = classes.first() else { continue };
        let hint = extension_hint(here, extension, &first.schema).await?;
        reports.push(classes_report(extension, &classes).hint(hint));
    }
    Ok(reports)
}

/// Without a hint.
fn classes_report(extension: &Ident, classes: &[&OperatorClass]) -> ErrorReport {
    let names: Vec<String> = classes.iter().map(|class| format!("{} of {}", class.name, class.method)).collect();
    let users: BTreeSet<String> = classes
        .iter()
        .flat_map(|class| class.users.iter().map(|(index, table)| format!("index {index} of table {table}")))
        .collect();
    let users: Vec<String> = users.into_iter().collect();
    ErrorReport::new(format!("operator classes of extension {extension} do not exist at the destination"))
        .detail(format!("{} is used by {}.", names.join(", "), users.join(", ")))
}

/// The columns that will be created.
pub(super) fn to_create<'a>(table: &'a SourceTable, existing: Option<&TableDefinition>) -> Vec<&'a ColumnDefinition> {
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
