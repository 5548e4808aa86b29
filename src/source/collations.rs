//! How the source's collations are made, for destinations that lack one.
//!
//! In come names; out goes for each the statement that creates the same one elsewhere. Nobody here runs it: a collation's
//! rules come from the operating system or from ICU, and which of those the destination has is its operator's affair.

use std::collections::BTreeMap;

use super::error::SourceError;
use crate::pg::{QualifiedName, quote_literal};
use crate::session::{SessionError, SqlClient};

/// The statements that create these collations, by name.
///
/// # Errors
/// [`SourceError`] when the source does not answer.
pub async fn collation_statements(
    client: &SqlClient,
    names: &[QualifiedName],
) -> Result<BTreeMap<QualifiedName, String>, SourceError> {
    // The locale of ICU and the built-in provider is in collcollate up to 14, in colliculocale up to 16.
    let sql = "SELECT n.nspname::text, c.collname::text, c.collprovider::text, c.collisdeterministic,
                      pg_catalog.to_jsonb(c) ->> 'collcollate', pg_catalog.to_jsonb(c) ->> 'collctype',
                      COALESCE(pg_catalog.to_jsonb(c) ->> 'colllocale', pg_catalog.to_jsonb(c) ->> 'colliculocale',
                               pg_catalog.to_jsonb(c) ->> 'collcollate'),
                      pg_catalog.to_jsonb(c) ->> 'collicurules'
               FROM pg_catalog.pg_collation c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
               JOIN ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS wanted (schema, name)
                   ON wanted.schema = n.nspname AND wanted.name = c.collname
               WHERE c.collencoding IN (-1, (SELECT encoding FROM pg_catalog.pg_database
                                             WHERE datname = pg_catalog.current_database()))";
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let collations: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = client.query("looking at collations", sql, &[&schemas, &collations]).await?;
    let statements = rows.iter().map(|row| {
        let name = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
        let text = |at: usize| Ok::<_, SessionError>(quote_literal(row.get::<Option<&str>>(at)?.unwrap_or_default()));
        let statement = match row.get::<&str>(2)? {
            "c" => {
                format!(
                    "CREATE COLLATION {name} (provider = libc, lc_collate = {}, lc_ctype = {});",
                    text(4)?,
                    text(5)?
                )
            }
            "b" => format!("CREATE COLLATION {name} (provider = builtin, locale = {});", text(6)?),
            _ => {
                let deterministic: bool = row.get(3)?;
                let rules = match row.get::<Option<&str>>(7)? {
                    Some(rules) => format!(", rules = {}", quote_literal(rules)),
                    None => String::new(),
                };
                format!(
                    "CREATE COLLATION {name} (provider = icu, locale = {}, deterministic = {deterministic}{rules});",
                    text(6)?
                )
            }
        };
        Ok((name, statement))
    });
    statements.collect()
}
