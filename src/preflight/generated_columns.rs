//! Columns that both ends compute: by one expression, or every value differs.
//!
//! Asked by `prepare` before a copy, and by `check`. An expression that is replaced while a table is followed is followed, too
//! (`schema_change::steps`). Expressions are compared as their parsed form is written, since servers of other versions may print them
//! otherwise; of two that are not understood nothing is said, and `verify` compares the values.

use crate::catalog::fit::type_sql;
use crate::catalog::schema::{ColumnDefinition, TableDefinition};
use crate::destination::{Catalog, DestinationError, expressions_here};
use crate::pg::ErrorReport;
use crate::schema_change::ddl::Creation;
use crate::schema_change::sql;
use crate::session::SqlClient;
use crate::source::{SourceCatalog, SourceTable};

/// Servers from here on know SET EXPRESSION.
const SET_EXPRESSION: u32 = 170_000;

/// A generated column that the ends print otherwise.
struct PrintedOtherwise<'a> {
    table: &'a SourceTable,
    there: &'a ColumnDefinition,
    here: &'a ColumnDefinition,
}

/// A report for each generated column of an existing table that is computed otherwise than at the source.
///
/// # Errors
/// [`DestinationError`].
pub(crate) async fn computed_otherwise(
    client: &SqlClient,
    catalog: &SourceCatalog,
    existing: &Catalog,
) -> Result<Vec<ErrorReport>, DestinationError> {
    let mut found = Vec::new();
    for table in &catalog.tables {
        let Some(live) = existing.table(&table.definition.name()) else { continue };
        for there in table.definition.columns.iter().filter(|column| column.generated.is_some()) {
            let here = live.column(&there.name).filter(|here| here.generated.is_some());
            let here = here.filter(|here| here.default != there.default);
            found.extend(here.map(|here| PrintedOtherwise { table, there, here }));
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let expressions = expressions_here(client).await?;
    let mut reports = Vec::new();
    for PrintedOtherwise { table, there, here } in found {
        let TableDefinition { schema, .. } = &table.definition;
        let creation = Creation {
            table: &table.definition,
            schema,
            type_sql: &|column| type_sql(column.type_id, column.type_modifier, &catalog.types).unwrap_or_default(),
            types: &catalog.types,
            expressions: &expressions,
            columns: &table.columns,
        };
        let (wanted, present) = (creation.generated(there), creation.generated(here));
        if wanted.is_err() && present.is_err() || wanted.as_ref().ok() == present.as_ref().ok() {
            continue;
        }
        let name = table.definition.name();
        let printed = |column: &ColumnDefinition| column.default.clone().unwrap_or_default();
        let report = ErrorReport::new(format!(
            "generated column {} of table {name} is computed otherwise at the destination",
            there.name
        ))
        .detail(format!(
            "It is {} at the source and {} here, so that all of its values would differ.",
            printed(there),
            printed(here)
        ));
        let statements = match wanted {
            Ok(wanted) if expressions.version() >= SET_EXPRESSION => sql::set_expression(&name, &there.name, &wanted),
            Ok(_) => {
                let again = sql::add_column(&name, there, &(creation.type_sql)(there), &creation).sql.join(";\n");
                format!("{};\n{again}", sql::drop_column(&name, &there.name))
            }
            Err(_) => sql::drop_column(&name, &there.name),
        };
        reports.push(report.hint(format!("Run at the destination:\n{statements};")));
    }
    Ok(reports)
}
