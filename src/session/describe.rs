//! Reads the description of tables and types from a server.
//!
//! The same questions on both ends, so they stand here, under `source` and `destination`, which never import each
//! other. The SQL is in sql/describe_tables.sql and sql/describe_types.sql and answers with one JSON object a row,
//! which keeps one text for PostgreSQL 14 to 18; what comes out is `catalog::schema`'s plain data. A server that answers
//! with something else is refused, whatever it is.

use std::collections::HashMap;

use super::error::SessionError;
use super::row::Row;
use super::sql::SqlClient;
use crate::catalog::nesting::nesting_problem;
use crate::catalog::not_carried::Thing;
use crate::catalog::replica_identity::IdentityMember;
use crate::catalog::schema::{TableDefinition, TypeDefinition, Types};
use crate::pg::{Description, Ident, QualifiedName, RelationId, TypeId, quote_literal};

const TABLES: &str = include_str!("../../sql/describe_tables.sql");
const IDENTITIES: &str = include_str!("../../sql/identities.sql");
const TYPES: &str = include_str!("../../sql/describe_types.sql");
const NOT_CARRIED: &str = include_str!("../../sql/not_carried.sql");

/// The tables among `names` that exist and that the role may look up, in the order of their names.
///
/// # Errors
/// [`SessionError`].
pub async fn describe_tables(
    client: &SqlClient,
    names: &[QualifiedName],
) -> Result<Vec<TableDefinition>, SessionError> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    describe(client, "describing tables", TABLES, &[&schemas, &tables]).await
}

/// The types with these OIDs and all that they are made of.
///
/// # Errors
/// [`SessionError`].
pub async fn describe_types(client: &SqlClient, ids: &[TypeId]) -> Result<Types, SessionError> {
    let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
    types_of(describe(client, "describing types", TYPES, &[&ids]).await?)
}

/// What belongs to these tables, and to their database, that replication does not carry; without these publications.
///
/// # Errors
/// [`SessionError`].
pub async fn describe_not_carried(
    client: &SqlClient,
    names: &[QualifiedName],
    publications: &[&str],
) -> Result<Vec<Thing>, SessionError> {
    let doing = "looking at what is not carried";
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::int >= 150000";
    let is_newer: bool = client.query_one(doing, sql, &[]).await?.get(0)?;
    let sql = if is_newer { NOT_CARRIED.replace("--15 ", "") } else { NOT_CARRIED.to_owned() };
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    describe(client, doing, &sql, &[&schemas, &tables, &publications]).await
}

/// The types with these names that exist, and all that they are made of.
///
/// # Errors
/// [`SessionError`].
pub async fn describe_named_types(client: &SqlClient, names: &[QualifiedName]) -> Result<Types, SessionError> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let types: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let sql = "SELECT t.oid FROM pg_catalog.pg_type t
               JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
               JOIN unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS wanted (schema_name, type_name) -- its form takes no schema
                   ON n.nspname = wanted.schema_name AND t.typname = wanted.type_name";
    let rows = client.query("looking for types", sql, &[&schemas, &types]).await?;
    let ids: Vec<TypeId> = rows.iter().map(|row| Ok(TypeId(row.get(0)?))).collect::<Result<_, SessionError>>()?;
    describe_types(client, &ids).await
}

/// How old rows of the tables with these OIDs are identified, each table followed by its leaves.
///
/// # Errors
/// [`SessionError`].
pub async fn describe_identities(
    client: &SqlClient,
    ids: &[u32],
    publication: &Ident,
) -> Result<Vec<IdentityMember>, SessionError> {
    describe(client, "looking at replica identities", IDENTITIES, &[&ids, &publication.as_str()]).await
}

/// The bytes on disk of those of the tables with these OIDs that exist, TOAST and partitions included. Asking locks each of them for a
/// moment.
///
/// # Errors
/// [`SessionError`].
pub async fn table_sizes(client: &SqlClient, ids: &[u32]) -> Result<HashMap<u32, u64>, SessionError> {
    let doing = "measuring tables";
    let sql = "WITH RECURSIVE tree (root, relid) AS (
                   SELECT wanted.id, wanted.id FROM pg_catalog.unnest($1::pg_catalog.oid[]) AS wanted (id)
                   UNION SELECT tree.root, i.inhrelid FROM tree
                   JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending)
               SELECT tree.root, COALESCE(pg_catalog.sum(pg_catalog.pg_table_size(tree.relid)), 0)::pg_catalog.int8
               FROM tree GROUP BY tree.root";
    let sizes = client.query(doing, sql, &[&ids]).await?;
    let size = |row: &Row| {
        let bytes = u64::try_from(row.get::<i64>(1)?);
        Ok((row.get(0)?, bytes.map_err(|_| SessionError::answer(doing, "a negative size"))?))
    };
    sizes.iter().map(size).collect()
}

/// A table and its types as the catalog describes them, as text for a parser elsewhere.
///
/// # Errors
/// [`SessionError`].
pub async fn describe_relation(client: &SqlClient, id: RelationId) -> Result<Option<Description>, SessionError> {
    let doing = "describing a table";
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";
    let Some(row) = client.query_opt(doing, sql, &[&id.0]).await? else { return Ok(None) };
    let name = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
    let schemas = [name.schema.as_str()];
    let tables = [name.name.as_str()];
    let Some(row) = client.query_opt(doing, TABLES, &[&schemas.as_slice(), &tables.as_slice()]).await? else {
        return Ok(None);
    };
    let table: String = row.get(0)?;
    let definition: TableDefinition = parse(doing, &table)?;
    if definition.id != id.0 {
        return Ok(None);
    }
    let mut ids: Vec<u32> = definition.columns.iter().map(|column| column.type_id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    let types = client.query(doing, TYPES, &[&ids]).await?;
    let types: Vec<&str> = types.iter().map(|row| row.get(0)).collect::<Result<_, SessionError>>()?;
    Ok(Some(Description { table, types: format!("[{}]", types.join(",")) }))
}

/// Reads a description.
///
/// # Errors
/// [`SessionError`] when it is none.
pub fn read_description(description: &Description) -> Result<(TableDefinition, Types), SessionError> {
    let doing = "reading a table's description";
    let types = types_of(parse(doing, &description.types)?)?;
    Ok((parse(doing, &description.table)?, types))
}

/// The question for a table, for a session that takes no parameters; the answer is a row of one text, for
/// [`read_table`].
pub fn ask_table(name: &QualifiedName) -> String {
    let list = |name: &str| format!("ARRAY[{}]", quote_literal(name));
    fill_in(TABLES, &[list(name.schema.as_str()), list(name.name.as_str())])
}

/// The question for types, as [`ask_table`]; the answer is for [`read_types`].
pub fn ask_types(ids: &[TypeId]) -> String {
    let ids: Vec<String> = ids.iter().map(TypeId::to_string).collect();
    let types = fill_in(TYPES, &[format!("ARRAY[{}]", ids.join(", "))]);
    format!(
        "SELECT pg_catalog.json_agg(described.line::pg_catalog.json)::pg_catalog.text FROM ({types}) AS described (line)"
    )
}

/// A fixed question with its parameters (`$1`, …) as SQL in their places, for a session that takes none. In one
/// pass, so that a name which holds `$2` stays a name; without the lines that are comments, which a line break in a name would
/// end.
pub fn fill_in(question: &str, parameters: &[String]) -> String {
    let mut filled = String::with_capacity(question.len());
    for line in question.lines().filter(|line| !line.trim_start().starts_with("--")) {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once('$') {
            filled.push_str(before);
            let digits = after.len() - after.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            let number = after.get(..digits).and_then(|digits| digits.parse::<usize>().ok());
            let parameter = number.and_then(|number| parameters.get(number.checked_sub(1)?));
            match parameter {
                Some(parameter) => {
                    filled.push_str(parameter);
                    rest = after.get(digits..).unwrap_or_default();
                }
                None => {
                    filled.push('$');
                    rest = after;
                }
            }
        }
        filled.push_str(rest);
        filled.push('\n');
    }
    filled
}

/// Reads the answer to [`ask_table`].
///
/// # Errors
/// [`SessionError`] when it is none.
pub fn read_table(text: &str) -> Result<TableDefinition, SessionError> {
    parse("describing tables", text)
}

/// Reads the answer to [`ask_types`].
///
/// # Errors
/// [`SessionError`] when it is none.
pub fn read_types(text: &str) -> Result<Types, SessionError> {
    types_of(parse("describing types", text)?)
}

fn types_of(described: Vec<TypeDefinition>) -> Result<Types, SessionError> {
    let types = described.into_iter().map(|definition| (definition.id, definition)).collect();
    refuse_endless(&types)?;
    Ok(types)
}

/// Refuses types whose parts have no end, or too many of them: for one answer, and for several together.
///
/// # Errors
/// [`SessionError`].
pub fn refuse_endless(types: &Types) -> Result<(), SessionError> {
    nesting_problem(types).map_or(Ok(()), |what| Err(SessionError::answer("describing types", what)))
}

pub(super) async fn describe<T: serde::de::DeserializeOwned>(
    client: &SqlClient,
    doing: &'static str,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Vec<T>, SessionError> {
    let mut tries = 1;
    loop {
        let rows = client.query(doing, sql, parameters).await?;
        let described: Result<Vec<T>, SessionError> = rows.iter().map(|row| parse(doing, row.get(0)?)).collect();
        // Functions that look at the catalog of now give NULL for what was dropped since the statement began.
        if described.is_ok() || tries == DESCRIBED_MAX {
            return described;
        }
        tries += 1;
    }
}

/// How often a question is asked whose answer makes no sense, because an object in it was dropped meanwhile.
const DESCRIBED_MAX: u32 = 5;

fn parse<T: serde::de::DeserializeOwned>(doing: &'static str, text: &str) -> Result<T, SessionError> {
    serde_json::from_str(text).map_err(|error| SessionError::from_json(doing, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_a_parameter_or_ends_a_line_stays_a_name() {
        let question = "-- of $1\nSELECT $1, $2, $3 -- $2\n";
        let filled = fill_in(question, &["'$2\n'".to_owned(), "'b'".to_owned()]);
        assert_eq!(filled, "SELECT '$2\n', 'b', $3 -- 'b'\n");
        let ten: Vec<String> = ('a'..='j').map(String::from).collect();
        assert_eq!(fill_in("$1, $10, $11, $9", &ten), "a, j, $11, i\n");
        let asked = ask_table(&QualifiedName::new("a$2", "b\n'; --"));
        assert_eq!(asked.matches("'a$2'").count(), 1);
        assert_eq!(asked.matches("'b\n''; --'").count(), 1);
    }

    #[test]
    fn questions_are_understood_by_servers_of_every_encoding() {
        assert!(TABLES.is_ascii(), "sql/describe_tables.sql");
        assert!(TYPES.is_ascii(), "sql/describe_types.sql");
        assert!(IDENTITIES.is_ascii(), "sql/identities.sql");
    }
}
