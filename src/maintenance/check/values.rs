//! Values: which columns need text, which of their values text does not carry exactly, and which name objects of a server.
//!
//! Called by `both` with both catalogs. Types cannot be asked whether their text is exact, so some rows are: read back from its
//! text, a value must have the bytes that it had. Bounds: [`SAMPLE_ROWS`] rows of each column whose type is such.

use crate::catalog::fit::{Transfer, as_created, text_columns};
use crate::catalog::schema::{ColumnDefinition, IdentityColumn, TableDefinition, TypeKind, Types};
use crate::config::{Config, SchemaChanges};
use crate::destination::{Catalog, DestinationError};
use crate::error_policy::Fault;
use crate::maintenance::check::findings::{About, Findings};
use crate::pg::{ErrorReport, QualifiedName};
use crate::preflight::enum_labels::{labels_of_others, labels_of_others_report, labels_report, lacking_labels};
use crate::preflight::prepare::to_compare;
use crate::session::{Clients, SessionError, SqlClient, SqlState};
use crate::source::{SourceCatalog, SourceError, SourceTable};

const BOTH: About = About::Both;
const DOING: &str = "looking at values";

/// Rows that are looked at: enough to meet an ordinary value, and few enough to be read at once.
const SAMPLE_ROWS: u32 = 1000;

/// Looks at the columns that are published. `transfer` is the format that the stream would have, where all tables fit.
pub(super) async fn look(
    Clients { source, destination }: Clients<'_>,
    catalog: &SourceCatalog,
    existing: &Catalog,
    transfer: Option<Transfer>,
    findings: &mut Findings,
) -> Result<(), Fault> {
    for table in &catalog.tables {
        let name = table.definition.name();
        for column in table.published() {
            if transfer == Some(Transfer::Text) && is_of_extension(column, &catalog.types) {
                match is_inexact_as_text(source, &table.definition, column).await {
                    Ok(true) => findings.warn(BOTH, "values", inexact_report(&name, column, &catalog.types)),
                    Ok(false) => {}
                    Err(error) if is_privilege(&error) => {}
                    Err(error) => return Err(SourceError::Session(error).into()),
                }
            }
            if let Some(naming) = Naming::of(column, &catalog.types) {
                look_up(Clients { source, destination }, table, column, naming, findings).await?;
            }
        }
        if let Some(live) = existing.table(&name) {
            always_keys(&table.definition, live, findings);
        }
    }
    Ok(())
}

/// That a table cannot be read is said elsewhere.
fn is_privilege(error: &SessionError) -> bool {
    error.code() == Some(SqlState::new(b"42501"))
}

/// Whether the column's type, or its elements', is an extension's.
fn is_of_extension(column: &ColumnDefinition, types: &Types) -> bool {
    let Some(definition) = types.get(&column.type_id) else { return false };
    let definition = definition.element.and_then(|element| types.get(&element)).unwrap_or(definition);
    definition.kind == TypeKind::Base && !definition.id.is_built_in()
}

async fn is_inexact_as_text(
    source: &SqlClient,
    table: &TableDefinition,
    column: &ColumnDefinition,
) -> Result<bool, SessionError> {
    let sql = "SELECT pg_catalog.format_type(atttypid, NULL) FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum = $2";
    let row = source.query_one(DOING, sql, &[&table.id, &column.number]).await?;
    let kind: &str = row.get(0)?;
    let (name, column) = (table.name().sql(), column.name.sql());
    let only = if table.is_tree() { "" } else { "ONLY " };
    let sql = format!(
        "SELECT EXISTS (
             SELECT FROM (SELECT {column} AS value FROM {only}{name} WHERE {column} IS NOT NULL LIMIT {SAMPLE_ROWS}) AS sample
             WHERE ROW(value)::pg_catalog.record
                   OPERATOR(pg_catalog.*<>) ROW(value::pg_catalog.text::{kind})::pg_catalog.record)"
    );
    source.query_one(DOING, &sql, &[]).await?.get(0)
}

fn inexact_report(table: &QualifiedName, column: &ColumnDefinition, types: &Types) -> ErrorReport {
    let kind = types.get(&column.type_id).map_or_else(String::new, |found| found.name.to_string());
    ErrorReport::new(format!("values of column {table}.{} ({kind}) are not exact as text", column.name))
        .detail("Values travel as text, and this type's text leaves digits out: what arrives may differ from the source's.")
        .hint(
            "Where the type has a binary form, give the extension the same version at both ends, and leave out of the publication \
             what keeps values from travelling in binary. Otherwise take the column out of the publication.",
        )
}

/// What a value of a type that names objects names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// An object that this function of pg_catalog finds.
    Found(&'static str),
    /// An object that this query lists by its name.
    Listed(&'static str),
    /// Roles, in an access privilege.
    Roles,
}

impl Naming {
    fn of(column: &ColumnDefinition, types: &Types) -> Option<Naming> {
        let definition = types.get(&column.type_id)?;
        let definition = definition.element.and_then(|element| types.get(&element)).unwrap_or(definition);
        if !definition.id.is_built_in() {
            return None;
        }
        Some(match definition.name.as_str() {
            "regclass" => Naming::Found("to_regclass"),
            "regcollation" => Naming::Found("to_regcollation"),
            "regnamespace" => Naming::Found("to_regnamespace"),
            "regoper" => Naming::Found("to_regoper"),
            "regoperator" => Naming::Found("to_regoperator"),
            "regproc" => Naming::Found("to_regproc"),
            "regprocedure" => Naming::Found("to_regprocedure"),
            "regrole" => Naming::Found("to_regrole"),
            "regtype" => Naming::Found("to_regtype"),
            "regconfig" => Naming::Listed("SELECT oid::pg_catalog.regconfig::text FROM pg_catalog.pg_ts_config"),
            "regdictionary" => Naming::Listed("SELECT oid::pg_catalog.regdictionary::text FROM pg_catalog.pg_ts_dict"),
            "aclitem" => Naming::Roles,
            _ => return None,
        })
    }
}

/// Whether the objects exist at the destination that a column's values name.
async fn look_up(
    Clients { source, destination }: Clients<'_>,
    table: &SourceTable,
    column: &ColumnDefinition,
    naming: Naming,
    findings: &mut Findings,
) -> Result<(), Fault> {
    let of = format!("{}.{}", table.definition.name(), column.name);
    let missing = match naming {
        Naming::Roles => {
            let report = ErrorReport::new(format!("values of column {of} name roles"))
                .detail("A row whose roles do not exist at the destination halts the copy or the stream.")
                .hint("Create the roles at the destination, or leave the column out of the publication.");
            findings.warn(BOTH, "values", report);
            return Ok(());
        }
        Naming::Found(function) => format!("pg_catalog.{function}(value) IS NULL"),
        Naming::Listed(list) => format!("value NOT IN ({list})"),
    };
    let values = match names_in(source, &table.definition, column).await {
        Ok(values) => values,
        Err(error) if is_privilege(&error) => return Ok(()),
        Err(error) => return Err(SourceError::Session(error).into()),
    };
    let sql = format!("SELECT pg_catalog.count(*) FROM unnest($1::text[]) AS named (value) WHERE {missing}");
    let row = destination.query_one(DOING, &sql, &[&values]).await.map_err(DestinationError::Session)?;
    let lacking: i64 = row.get(0).map_err(DestinationError::Session)?;
    if lacking > 0 {
        let report =
            ErrorReport::new(format!("values of column {of} name {lacking} objects that the destination lacks"))
                .detail("A row with such a value halts the copy or the stream.")
                .hint("Create these objects at the destination, or leave the column out of the publication.");
        findings.fail(BOTH, "values", report);
    }
    Ok(())
}

/// The objects that the values name; a number stands for an object that the source itself lacks, and a dash for none.
async fn names_in(
    source: &SqlClient,
    table: &TableDefinition,
    column: &ColumnDefinition,
) -> Result<Vec<String>, SessionError> {
    let sql = "SELECT typelem <> 0 FROM pg_catalog.pg_type WHERE oid = $1";
    let is_array: bool = source.query_one(DOING, sql, &[&column.type_id.0]).await?.get(0)?;
    let (name, column) = (table.name().sql(), column.name.sql());
    let only = if table.is_tree() { "" } else { "ONLY " };
    let value = if is_array { format!("unnest({column})::text") } else { format!("{column}::text") };
    let sql = format!(
        "SELECT DISTINCT value
         FROM (SELECT {value} AS value FROM {only}{name} WHERE {column} IS NOT NULL LIMIT {SAMPLE_ROWS}) AS sample
         WHERE value <> '-' AND value !~ '^[0-9]+$'"
    );
    source.query(DOING, &sql, &[]).await?.iter().map(|row| row.get(0)).collect()
}

/// A key that is GENERATED ALWAYS at the destination: a change of it cannot be applied.
fn always_keys(source: &TableDefinition, live: &TableDefinition, findings: &mut Findings) {
    let always = |column: &&ColumnDefinition| column.identity == Some(IdentityColumn::Always);
    for column in live.columns.iter().filter(always).filter(|column| source.column(&column.name).is_some()) {
        let name = live.name();
        let report = ErrorReport::new(format!(
            "column {name}.{} is GENERATED ALWAYS AS IDENTITY at the destination",
            column.name
        ))
        .detail("A key that the source changes cannot be changed there: such an update halts the stream.")
        .hint(format!(
            "Run at the destination:\nALTER TABLE {name} ALTER COLUMN {} SET GENERATED BY DEFAULT;",
            column.name
        ));
        findings.warn(BOTH, "values", report);
    }
}

/// Labels that the destination's enums lack: a start adds them, unless the operator wants to do that.
pub(super) async fn enum_labels(config: &Config, here: &SqlClient, catalog: &SourceCatalog, findings: &mut Findings) {
    let missing = match lacking_labels(here, &catalog.types).await {
        Ok(missing) => missing,
        Err(fault) => return findings.fault(BOTH, "enums", fault),
    };
    if missing.statements().next().is_none() {
        return;
    }
    match labels_of_others(here, &catalog.types).await {
        Ok(others) if others.statements().next().is_some() => {
            return findings.fail(BOTH, "enums", labels_of_others_report(&others));
        }
        Ok(_) => {}
        Err(fault) => return findings.fault(BOTH, "enums", fault),
    }
    if missing.renamed.is_empty() && missing.presumed.is_empty() && config.schema_changes == SchemaChanges::Follow {
        let text = format!("{}: added before rows have them", missing.told.join("; "));
        return findings.ok(BOTH, "enums", text);
    }
    findings.fail(BOTH, "enums", labels_report(&missing));
}

/// Columns named in one line: more would hide the line that follows.
const NAMED_MAX: usize = 6;

/// The columns that keep values from travelling in binary.
pub(super) fn text_types(catalog: &SourceCatalog, existing: &Catalog) -> String {
    let mut named = Vec::new();
    let created = as_created(&catalog.types, &existing.types);
    for table in &catalog.tables {
        let (from, to) = to_compare(table, catalog, existing, &created);
        let columns = text_columns(from, &table.published(), to, &created);
        named.extend(columns.iter().map(|(column, sql)| format!("{}.{column} ({sql})", table.definition.name())));
    }
    let more = named.len().saturating_sub(NAMED_MAX);
    named.truncate(NAMED_MAX);
    if more > 0 {
        named.push(format!("{more} others"));
    }
    named.join(", ")
}
