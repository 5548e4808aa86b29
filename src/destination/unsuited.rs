//! What at the destination bears a table's name and cannot take its rows: a view, an unlogged table, a table with rules.
//!
//! Asked by `preflight` for all tables at once, at every start and by `check`.

use super::error::DestinationError;
use super::staging_schema::is_own_schema;
use crate::catalog::schema::TableKind;
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::session::SqlClient;
use crate::sql::partition_tree;

const DOING: &str = "looking at the destination's tables";

/// For each name: the relation, the unlogged tables of its tree, and the rules that would change what is written to it. A rule
/// acts where a trigger of its `ev_enabled` would (rewriteHandler.c).
const RELATIONS: &str = concat!(
        "
    SELECT n.nspname::text, c.relname::text, c.relkind::text,
           ARRAY(SELECT pg_catalog.jsonb_build_object('schema', un.nspname, 'name', u.relname)::text
                 FROM (SELECT c.oid UNION SELECT t.relid FROM ",
        partition_tree!("c.oid"),
        " t) AS tree (id)
                 JOIN pg_catalog.pg_class u ON u.oid = tree.id
                 JOIN pg_catalog.pg_namespace un ON un.oid = u.relnamespace
                 WHERE c.relkind IN ('r', 'p') AND u.relkind = 'r' AND u.relpersistence = 'u' ORDER BY 1),
           ARRAY(SELECT r.rulename::text FROM pg_catalog.pg_rewrite r
                 WHERE c.relkind IN ('r', 'p') AND r.ev_class = c.oid AND r.ev_type <> '1'
                   AND r.ev_enabled = ANY (CASE WHEN $3 THEN '{R,A}'::\"char\"[] ELSE '{O,A}'::\"char\"[] END) ORDER BY 1)
    FROM unnest($1::text[], $2::text[]) AS wanted (schema_name, table_name)
    JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name"
    );

/// What an operator must change before these tables can be written. `replica`: the role may set session_replication_role.
///
/// # Errors
/// [`DestinationError`] when the destination does not answer.
pub(super) async fn unsuited(
    client: &SqlClient,
    names: &[QualifiedName],
    replica: bool,
) -> Result<Vec<ErrorReport>, DestinationError> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let mut problems: Vec<ErrorReport> =
        names.iter().filter(|name| is_own_schema(&name.schema)).map(own_schema).collect();
    for row in client.query(DOING, RELATIONS, &[&schemas, &tables, &replica]).await? {
        let name = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
        problems.extend(other_kind(&name, row.get(2)?));
        let unlogged: Vec<String> = row.get(3)?;
        let unlogged: Result<Vec<QualifiedName>, _> = unlogged.iter().map(|text| serde_json::from_str(text)).collect();
        let unlogged = unlogged.map_err(|error| crate::session::SessionError::from_json(DOING, &error))?;
        if !unlogged.is_empty() {
            problems.push(unlogged_report(&name, &unlogged));
        }
        let rules: Vec<String> = row.get(4)?;
        if !rules.is_empty() {
            problems.push(rules_report(&name, &rules.into_iter().map(Ident::new).collect::<Vec<_>>()));
        }
    }
    Ok(problems)
}

/// Refuses to read relations that are no tables: a view's query is its owner's code.
///
/// # Errors
/// [`DestinationError::Refused`], or the destination does not answer.
pub async fn refuse_other_kinds(client: &SqlClient, names: &[QualifiedName]) -> Result<(), DestinationError> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = client.query(DOING, RELATIONS, &[&schemas, &tables, &true]).await?;
    for row in &rows {
        let name = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
        if let Some(report) = other_kind(&name, row.get(2)?) {
            return Err(DestinationError::Refused(report));
        }
    }
    Ok(())
}

fn own_schema(name: &QualifiedName) -> ErrorReport {
    ErrorReport::new(format!("table {name} would stand in a schema that headwater keeps for itself at the destination"))
        .detail("Schema headwater holds the bookkeeping and goes with teardown; those named headwater_staging_… go with each copy.")
        .hint("Move the table to another schema at the source, or take it out of tables.")
}

fn other_kind(name: &QualifiedName, letter: &str) -> Option<ErrorReport> {
    let (kind, statement) = match letter {
        "v" => (TableKind::View.to_string(), "VIEW"),
        "m" => (TableKind::MaterializedView.to_string(), "MATERIALIZED VIEW"),
        "f" => (TableKind::Foreign.to_string(), "FOREIGN TABLE"),
        "S" => ("sequence".to_owned(), "SEQUENCE"),
        "i" | "I" => ("index".to_owned(), "INDEX"),
        "c" => ("composite type".to_owned(), "TYPE"),
        // r and p are what is wanted; TOAST tables are in a schema of their own.
        _ => return None,
    };
    let other = name.name.with_suffix("_old");
    Some(ErrorReport::new(format!("{name} is a {kind} at the destination, not a table")).hint(format!(
        "Give it another name, or drop it. Run at the destination:\nALTER {statement} {name} RENAME TO {other};"
    )))
}

fn unlogged_report(name: &QualifiedName, unlogged: &[QualifiedName]) -> ErrorReport {
    let statements: Vec<String> = unlogged.iter().map(|table| format!("ALTER TABLE {table} SET LOGGED;")).collect();
    ErrorReport::new(format!("table {name} is unlogged at the destination"))
        .detail("A crash of the destination empties it, and the stream continues from a position that says otherwise.")
        .hint(format!(
            "Run at the destination, and copy the table again if there was a crash:\n{}",
            statements.join("\n")
        ))
}

fn rules_report(name: &QualifiedName, rules: &[Ident]) -> ErrorReport {
    let statements: Vec<String> = rules.iter().map(|rule| format!("ALTER TABLE {name} DISABLE RULE {rule};")).collect();
    let named: Vec<String> = rules.iter().map(Ident::to_string).collect();
    ErrorReport::new(format!(
        "rules of table {name} at the destination would change what is written to it: {}",
        named.join(", ")
    ))
    .detail("They act on the statements of headwater as on any other.")
    .hint(format!("Run at the destination:\n{}", statements.join("\n")))
}
