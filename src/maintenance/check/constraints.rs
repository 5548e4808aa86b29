//! Constraints: what a destination of an older version cannot have, and what the tables that it has may refuse.
//!
//! Called by `both` with both catalogs. Whether a row violates what the source does not have is not asked: it may come tomorrow.

use std::collections::BTreeMap;

use crate::catalog::features::{TooNew, too_new};
use crate::catalog::schema::{BothTypes, TableDefinition};
use crate::destination::{Catalog, DestinationError};
use crate::error_policy::Fault;
use crate::maintenance::check::findings::{About, Findings};
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::preflight::partitions::{self, PartitionEnds, with_own_constraints};
use crate::schema_change::constraint_difference::{Difference, TableEnds, domain_differences};
use crate::schema_change::ddl::Creation;
use crate::schema_change::expression::Expressions;
use crate::session::{Clients, SqlClient};
use crate::source::SourceCatalog;

const BOTH: About = About::Both;

/// Constraints that a destination of an older version cannot have as the source has them: said before a row moves.
pub(super) fn too_new_for(version: u32, catalog: &SourceCatalog, existing: &Catalog, findings: &mut Findings) {
    for table in &catalog.tables {
        let name = table.definition.name();
        if existing.table(&name).is_some() {
            continue;
        }
        for TooNew { kind, name: constraint, feature } in too_new(&table.definition, version) {
            let report = ErrorReport::new(format!(
                "{kind} {constraint} of table {name} is {} at the source, which the destination (PostgreSQL {}) does not know",
                feature.as_sql(),
                version / 10_000
            ))
            .detail(format!("It came with PostgreSQL {}. When the table is created, {}.", feature.since(), feature.instead()))
            .hint(format!("To have it as at the source, use a destination of PostgreSQL {} or later.", feature.since()));
            findings.warn(BOTH, "constraints", report);
        }
    }
}

/// What in existing tables may refuse rows that the source has: the copy, or the stream, would halt on the first of them.
pub(super) fn stricter(
    catalog: &SourceCatalog,
    existing: &Catalog,
    expressions: &Expressions,
    findings: &mut Findings,
) {
    for table in &catalog.tables {
        let name = table.definition.name();
        let Some(here) = existing.table(&name) else { continue };
        let found = differences(here, &table.definition, table.columns.iter(), catalog, expressions);
        if let Some(report) = stricter_report(&format!("table {name}"), &found) {
            findings.warn(BOTH, "constraints", report);
        }
    }
    let differences =
        domain_differences(BothTypes { source: &catalog.types, destination: &existing.types }, expressions);
    if let Some(report) = stricter_report("domains", &differences) {
        findings.warn(BOTH, "constraints", report);
    }
}

/// What partitions of existing tables have of their own that may refuse rows which the source has.
///
/// # Errors
/// [`Fault`] when a server does not answer.
pub(super) async fn stricter_partitions(
    Clients { source, destination }: Clients<'_>,
    catalog: &SourceCatalog,
    existing: &Catalog,
    expressions: &Expressions,
    findings: &mut Findings,
) -> Result<(), Fault> {
    let trees: Vec<u32> =
        existing.tables.values().filter(|table| table.definition.is_tree()).map(|table| table.definition.id).collect();
    let partitions = with_own_constraints(destination, &trees).await?;
    let sources: Vec<&TableDefinition> = catalog.tables.iter().map(|table| &table.definition).collect();
    let mut found: BTreeMap<QualifiedName, Vec<Difference>> = BTreeMap::new();
    for PartitionEnds { table: name, here, source } in
        partitions::ends(Clients { source, destination }, &partitions, &sources).await?
    {
        let Some(table) = catalog.tables.iter().find(|table| table.definition.name() == name) else { continue };
        let differences = differences(&here, &source, table.columns.iter(), catalog, expressions);
        found.entry(name).or_default().extend(differences);
    }
    for (table, differences) in found {
        if let Some(report) = stricter_report(&format!("partitions of table {table}"), &differences) {
            findings.warn(BOTH, "constraints", report);
        }
    }
    Ok(())
}

fn differences<'a>(
    here: &TableDefinition,
    source: &TableDefinition,
    columns: impl Iterator<Item = &'a Ident>,
    catalog: &SourceCatalog,
    expressions: &Expressions,
) -> Vec<Difference> {
    let columns: Vec<Ident> = columns.filter(|name| here.column(name).is_some()).cloned().collect();
    let creation = Creation {
        table: source,
        schema: &here.schema,
        type_sql: &|_| String::new(),
        types: &catalog.types,
        expressions,
        columns: &columns,
    };
    TableEnds { here, source, creation: &creation }.all()
}

/// Partitioned tables of the destination where a row of the source may find no partition.
///
/// # Errors
/// [`DestinationError`] when the destination does not answer.
pub(super) async fn partitions(
    here: &SqlClient,
    catalog: &SourceCatalog,
    existing: &Catalog,
    findings: &mut Findings,
) -> Result<(), DestinationError> {
    let tables = catalog.tables.iter().filter_map(|table| existing.table(&table.definition.name()));
    let ids: Vec<u32> = tables.map(|table| table.id).collect();
    let sql = "SELECT p.partrelid, EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = p.partrelid)
               FROM pg_catalog.pg_partitioned_table p WHERE p.partrelid = ANY ($1) AND p.partdefid = 0";
    for row in here.query("looking at partitions", sql, &[&ids]).await? {
        let (id, has_some): (u32, bool) = (row.get(0)?, row.get(1)?);
        let found =
            catalog.tables.iter().find(|table| existing.table(&table.definition.name()).is_some_and(|t| t.id == id));
        let Some(table) = found else { continue };
        let name = table.definition.name();
        let default = QualifiedName { schema: name.schema.clone(), name: name.name.with_suffix("_default") };
        let hint = format!("Run at the destination:\nCREATE TABLE {default} PARTITION OF {name} DEFAULT;");
        if !has_some {
            let report = ErrorReport::new(format!("table {name} has no partition at the destination"));
            findings.fail(BOTH, "partitions", report.hint(hint));
        } else if !table.definition.is_tree() {
            let report = ErrorReport::new(format!("table {name} has no default partition at the destination"));
            let detail =
                "It is not partitioned at the source: a row that fits no partition halts the copy, or the stream.";
            findings.warn(BOTH, "partitions", report.detail(detail).hint(hint));
        }
    }
    Ok(())
}

fn stricter_report(what: &str, differences: &[Difference]) -> Option<ErrorReport> {
    if differences.is_empty() {
        return None;
    }
    let why: Vec<String> = differences.iter().map(|difference| format!("{}.", difference.why)).collect();
    let statements: Vec<String> = differences.iter().map(Difference::shown).collect();
    let report =
        ErrorReport::new(format!("constraints of {what} at the destination may refuse rows that the source has"));
    let report = report.detail(format!("{}\nThe first such row halts the copy, or the stream.", why.join("\n")));
    Some(report.hint(format!("Run at the destination:\n{}", statements.join("\n"))))
}
