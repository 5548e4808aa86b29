//! Types and tables that the destination lacks, created from the source's catalog.
//!
//! Serves `staging`. In come the source's definitions; out go created types and the names under which the destination
//! knows each of the source's types. A type is found by its name: built-in ones exist, enums, domains and composites
//! are created, those of an extension are the operator's affair (CREATE EXTENSION runs code of the extension's
//! choice).

use std::collections::{BTreeMap, BTreeSet};

use super::error::DestinationError;
use super::expressions;
use super::extensions::extension_hint;
use super::review::Created;
use crate::catalog::fit::{modifier_at, modifier_sql};
use crate::catalog::schema::{ColumnDefinition, TypeDefinition, TypeKind, Types};
use crate::pg::{ErrorReport, Ident, QualifiedName, TypeId, quote_literal};
use crate::schema_change::ddl::Statements;
use crate::schema_change::expression::purpose::Purpose;
use crate::schema_change::expression::{BOOLEAN, ExpressionScope, Expressions};
use crate::session::{SessionError, SqlClient};

/// How the destination writes the source's types.
#[derive(Clone, Debug, Default)]
pub(super) struct ResolvedTypes {
    /// By the source's OID and type modifier.
    names: BTreeMap<(TypeId, i32), String>,
    /// What of the types that were created is not taken over, each a sentence without its full stop.
    pub(super) left_out: Vec<String>,
}

impl ResolvedTypes {
    /// What the destination has answered, by the source's OID and type modifier.
    pub(super) fn new(names: impl Iterator<Item = ((TypeId, i32), String)>, left_out: Vec<String>) -> ResolvedTypes {
        ResolvedTypes { names: names.collect(), left_out }
    }

    /// The type of a source's column, as SQL of the destination.
    pub(super) fn sql(&self, column: &ColumnDefinition) -> String {
        self.names.get(&(column.type_id, column.type_modifier)).cloned().unwrap_or_default()
    }
}

/// Creates the schemas, types that `columns` need and the destination lacks, and resolves all of them. The caller has
/// `created` reviewed before it commits.
///
/// # Errors
/// [`DestinationError`]: a type of an extension is missing (with the statement that installs it), or may not be
/// created.
pub(super) async fn resolve_types(
    client: &SqlClient,
    source_types: &Types,
    columns: &[&ColumnDefinition],
    expressions: &Expressions,
    created: &mut Created,
) -> Result<ResolvedTypes, DestinationError> {
    let mut resolved = ResolvedTypes::default();
    let needed = needed_types(source_types, columns.iter().map(|column| column.type_id))?;
    let sql = "SELECT t.number FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS t (name, number)
               WHERE pg_catalog.to_regtype(t.name) IS NULL ORDER BY t.number";
    let names: Vec<String> = needed.iter().map(|id| type_name(source_types, *id)).collect();
    let missing =
        if needed.is_empty() { Vec::new() } else { client.query("looking for types", sql, &[&names]).await? };
    for row in &missing {
        let number = usize::try_from(row.get::<i64>(0)? - 1).ok();
        let id = number.and_then(|number| needed.get(number)).copied();
        let id = id.ok_or_else(|| SessionError::answer("looking for types", "a type that was not asked for"))?;
        // One before it may have brought it along: an array comes with its element.
        let sql = "SELECT pg_catalog.to_regtype($1) IS NOT NULL";
        let name = type_name(source_types, id);
        let exists: bool = client.query_one("looking for a type", sql, &[&name]).await?.get(0)?;
        if !exists {
            if let Some((extension, schema)) = extension_of(source_types, id) {
                let hint = extension_hint(client, &extension, &schema).await?;
                return Err(DestinationError::Refused(missing_type_report(source_types, id).hint(hint)));
            }
            let statements = type_creation(source_types, id, expressions)?;
            for statement in &statements.sql {
                client.statement("creating a type", statement).await?;
            }
            created.add_type(source_types.get(&id).map(TypeDefinition::qualified_name));
            resolved.left_out.extend(statements.left_out);
        }
    }
    let wanted: BTreeSet<(TypeId, i32)> = columns.iter().map(|column| (column.type_id, column.type_modifier)).collect();
    if wanted.is_empty() {
        return Ok(resolved);
    }
    let names: Vec<String> = wanted.iter().map(|(id, _)| type_name(source_types, *id)).collect();
    let known = |(id, modifier): &(TypeId, i32)| modifier_at(*id, *modifier, source_types, expressions.version());
    let modifiers: Vec<i32> = wanted.iter().map(known).collect();
    let sql = "SELECT pg_catalog.format_type(pg_catalog.to_regtype(t.name), t.modifier)
               FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::int4[])) WITH ORDINALITY
                   AS t (name, modifier, number) ORDER BY t.number";
    let rows = client.query("resolving types", sql, &[&names, &modifiers]).await?;
    for ((id, modifier), row) in wanted.into_iter().zip(&rows) {
        let Some(text) = row.get::<Option<String>>(0)? else { return Err(missing_type(source_types, id)) };
        resolved.names.insert((id, modifier), text);
    }
    Ok(resolved)
}

/// What keeps types from being created that `columns` need and the destination lacks; nothing is created.
///
/// # Errors
/// [`DestinationError`] when the destination does not answer, or the source did not describe a type.
pub async fn missing_types(
    client: &SqlClient,
    source_types: &Types,
    columns: &[&ColumnDefinition],
) -> Result<Vec<ErrorReport>, DestinationError> {
    let expressions = expressions::read(client).await?;
    let mut reports = missing_built_in(client, source_types, columns).await?;
    for id in needed_types(source_types, columns.iter().map(|column| column.type_id))? {
        let sql = "SELECT pg_catalog.to_regtype($1) IS NOT NULL";
        let name = type_name(source_types, id);
        if client.query_one("looking for a type", sql, &[&name]).await?.get(0)? {
            continue;
        }
        let report = match (extension_of(source_types, id), type_creation(source_types, id, &expressions)) {
            (Some((extension, schema)), _) => {
                missing_type_report(source_types, id).hint(extension_hint(client, &extension, &schema).await?)
            }
            (None, Ok(_)) => continue,
            (None, Err(DestinationError::Refused(report))) => report,
            (None, Err(error)) => return Err(error),
        };
        if !reports.contains(&report) {
            reports.push(report);
        }
    }
    Ok(reports)
}

/// Types that came with a later major of PostgreSQL than the destination's.
async fn missing_built_in(
    client: &SqlClient,
    source_types: &Types,
    columns: &[&ColumnDefinition],
) -> Result<Vec<ErrorReport>, DestinationError> {
    let ids: BTreeSet<TypeId> = columns
        .iter()
        .map(|column| column.type_id)
        .filter(|id| id.is_built_in() && source_types.contains_key(id))
        .collect();
    let names: Vec<String> = ids.iter().map(|id| type_name(source_types, *id)).collect();
    let sql = "SELECT wanted FROM unnest($1::pg_catalog.text[]) AS wanted WHERE pg_catalog.to_regtype(wanted) IS NULL";
    let rows = client.query("looking for types", sql, &[&names]).await?;
    let report = |name: &str| {
        ErrorReport::new(format!("type {name} does not exist at the destination"))
            .detail("It came with a later major of PostgreSQL.")
            .hint("Upgrade the destination, or leave the column out of the publication.")
    };
    rows.iter().map(|row| Ok(report(row.get(0)?))).collect()
}

/// The collations among `names` that do not exist, and whether their schemas do.
///
/// # Errors
/// [`DestinationError`].
pub async fn missing_collations(
    client: &SqlClient,
    names: &[QualifiedName],
) -> Result<Vec<(QualifiedName, bool)>, DestinationError> {
    let sql = "SELECT wanted.schema, wanted.name, n.oid IS NOT NULL
               FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS wanted (schema, name)
               LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema
               WHERE NOT EXISTS (
                   SELECT FROM pg_catalog.pg_collation c WHERE c.collnamespace = n.oid AND c.collname = wanted.name
                   AND c.collencoding IN (-1, (SELECT encoding FROM pg_catalog.pg_database
                                               WHERE datname = pg_catalog.current_database())))";
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let collations: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = client.query("looking for collations", sql, &[&schemas, &collations]).await?;
    let found = rows.iter().map(|row| Ok((QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?), row.get(2)?)));
    found.collect()
}

/// The operator classes among `wanted`, each with its access method, that exist in some schema.
///
/// # Errors
/// [`DestinationError`].
pub async fn operator_classes_here(
    client: &SqlClient,
    wanted: &[(Ident, Ident)],
) -> Result<BTreeSet<(Ident, Ident)>, DestinationError> {
    let sql = "SELECT DISTINCT oc.opcname::text, am.amname::text
               FROM pg_catalog.pg_opclass oc
               JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod
               JOIN ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS wanted (class, method)
                   ON wanted.class = oc.opcname AND wanted.method = am.amname";
    let classes: Vec<&str> = wanted.iter().map(|(class, _)| class.as_str()).collect();
    let methods: Vec<&str> = wanted.iter().map(|(_, method)| method.as_str()).collect();
    let rows = client.query("looking for operator classes", sql, &[&classes, &methods]).await?;
    let found = rows.iter().map(|row| Ok((Ident::new(row.get::<&str>(0)?), Ident::new(row.get::<&str>(1)?))));
    found.collect()
}

/// A source type's name as SQL; an array's is its element's with brackets.
pub(super) fn type_name(types: &Types, id: TypeId) -> String {
    match types.get(&id) {
        Some(definition) => match definition.element {
            Some(element) => format!("{}[]", type_name(types, element)),
            None => definition.qualified_name().sql(),
        },
        None => String::new(),
    }
}

/// The extension that a type belongs to, and its schema; `None` for an array, which comes with its element.
pub(super) fn extension_of(types: &Types, id: TypeId) -> Option<(Ident, Ident)> {
    let definition = types.get(&id).filter(|definition| definition.element.is_none())?;
    Some((Ident::new(definition.extension.as_deref()?), definition.schema.clone()))
}

/// Without a hint.
pub(super) fn missing_type_report(types: &Types, id: TypeId) -> ErrorReport {
    let name = types.get(&id).map_or_else(|| id.to_string(), |definition| definition.qualified_name().to_string());
    ErrorReport::new(format!("type {name} does not exist at the destination"))
}

pub(super) fn missing_type(types: &Types, id: TypeId) -> DestinationError {
    let report = missing_type_report(types, id);
    DestinationError::Refused(report.hint("Create the type at the destination, as it is at the source."))
}

/// The user types that `ids` need, each after those that it is made of.
///
/// # Errors
/// [`DestinationError`] when the source did not describe one of them.
pub fn needed_types(types: &Types, ids: impl Iterator<Item = TypeId>) -> Result<Vec<TypeId>, DestinationError> {
    fn add(types: &Types, id: TypeId, needed: &mut Vec<TypeId>) -> Result<(), DestinationError> {
        if id.is_built_in() || needed.contains(&id) {
            return Ok(());
        }
        let Some(definition) = types.get(&id) else { return Err(missing_type(types, id)) };
        let parts = definition.base.into_iter().chain(definition.element);
        let attributes = definition.attributes.iter().flatten().map(|attribute| attribute.type_id);
        for part in parts.chain(attributes) {
            add(types, part, needed)?;
        }
        needed.push(id);
        Ok(())
    }
    let mut needed = Vec::new();
    for id in ids {
        add(types, id, &mut needed)?;
    }
    Ok(needed)
}

/// The statements that create a type which the destination lacks; none for an array, which comes with its element.
///
/// # Errors
/// [`DestinationError`]: the type is of an extension, or of a kind that is not created.
pub(super) fn type_creation(
    types: &Types,
    id: TypeId,
    expressions: &Expressions,
) -> Result<Statements, DestinationError> {
    let Some(definition) = types.get(&id) else { return Err(missing_type(types, id)) };
    if definition.element.is_some() {
        return Ok(Statements::default());
    }
    if definition.extension.is_some() {
        return Err(missing_type(types, id));
    }
    let mut statements = Statements::default();
    statements.sql.push(format!("CREATE SCHEMA IF NOT EXISTS {}", definition.schema.sql()));
    let statement = creation(types, definition, expressions, &mut statements.left_out);
    statements.sql.push(statement.ok_or_else(|| missing_type(types, id))?);
    Ok(statements)
}

fn creation(
    types: &Types,
    definition: &TypeDefinition,
    expressions: &Expressions,
    left_out: &mut Vec<String>,
) -> Option<String> {
    let name = definition.qualified_name().sql();
    match definition.kind {
        TypeKind::Enum => {
            let labels: Vec<String> = definition.labels.iter().flatten().map(|label| quote_literal(label)).collect();
            Some(format!("CREATE TYPE {name} AS ENUM ({})", labels.join(", ")))
        }
        TypeKind::Domain => domain_creation(types, definition, expressions, left_out),
        TypeKind::Composite => {
            let attributes: Vec<String> = definition
                .attributes
                .iter()
                .flatten()
                .map(|a| {
                    format!(
                        "{} {}{}",
                        a.name.sql(),
                        with_modifier(types, a.type_id, a.type_modifier, expressions.version()),
                        collate(a.collation.as_ref())
                    )
                })
                .collect();
            Some(format!("CREATE TYPE {name} AS ({})", attributes.join(", ")))
        }
        TypeKind::Base | TypeKind::Multirange | TypeKind::Pseudo | TypeKind::Range => None,
    }
}

fn domain_creation(
    types: &Types,
    definition: &TypeDefinition,
    expressions: &Expressions,
    left_out: &mut Vec<String>,
) -> Option<String> {
    let name = definition.qualified_name().sql();
    let base = definition.base?;
    let mut sql = format!(
        "CREATE DOMAIN {name} AS {}",
        with_modifier(types, base, definition.base_modifier, expressions.version())
    );
    sql.push_str(&collate(definition.collation.as_ref()));
    let scope = ExpressionScope::domain(base, types).assigned_to(BOOLEAN);
    let domain = definition.qualified_name();
    if let Some(text) = &definition.default {
        let scope = scope.without_columns().assigned_to(base);
        match expressions.accept(text, Purpose::Default, &scope) {
            Ok(expression) => sql.push_str(&format!(" DEFAULT {expression}")),
            Err(refusal) => {
                left_out.push(format!("domain {domain}: its default ({refusal}) was not taken over"));
            }
        }
    }
    match &definition.not_null_name {
        Some(name) => sql.push_str(&format!(" CONSTRAINT {} NOT NULL", name.sql())),
        None if definition.not_null => sql.push_str(" NOT NULL"),
        None => {}
    }
    for check in definition.checks.iter().flatten() {
        if !check.validated {
            // A row that holds such a value is written whole here, whichever of its columns has changed there.
            left_out.push(format!(
                "domain {domain}: check constraint {} (it is NOT VALID: values that are older than it come, too) was \
                         not taken over",
                check.name
            ));
            continue;
        }
        match expressions.accept(&check.expression, Purpose::Immutable, &scope) {
            Ok(expression) => {
                sql.push_str(&format!(" CONSTRAINT {} CHECK ({expression})", check.name.sql()));
            }
            // The source has already checked every value.
            Err(refusal) => left_out
                .push(format!("domain {domain}: check constraint {} ({refusal}) was not taken over", check.name)),
        }
    }
    Some(sql)
}

fn collate(collation: Option<&QualifiedName>) -> String {
    collation.map_or(String::new(), |collation| format!(" COLLATE {}", collation.sql()))
}

/// A type with its modifier as this version of the destination has it.
fn with_modifier(types: &Types, id: TypeId, modifier: i32, version: u32) -> String {
    let element = types.get(&id).and_then(|definition| definition.element).unwrap_or(id);
    let modifier = modifier_sql(element, modifier_at(id, modifier, types, version));
    match types.get(&id).and_then(|definition| definition.element) {
        Some(element) => format!("{}{modifier}[]", type_name(types, element)),
        None => format!("{}{modifier}", type_name(types, id)),
    }
}
