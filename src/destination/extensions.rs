//! What gives the destination a type, or an operator class, of an extension: as the hint of a message.
//!
//! In come the extension and the schema that it has at the source; out go the statements, which depend on what the destination has:
//! nothing, the extension in another schema or version, or not even its files. Asked where something of an extension was looked for by its
//! name and not found: before the first copy, by `check`, and while a schema change is followed. Extensions are the operator's to install,
//! since CREATE EXTENSION runs code of the extension's choice.

use serde::Deserialize;

use super::error::DestinationError;
use crate::pg::{Ident, quote_literal};
use crate::session::{SessionError, SqlClient};

const DOING: &str = "looking for an extension";

/// What the destination has of an extension.
#[derive(Debug, Deserialize)]
struct FoundExtension {
    /// The schema in which it is installed.
    schema: Option<Ident>,
    /// ALTER EXTENSION … SET SCHEMA is possible.
    relocatable: Option<bool>,
    version: Option<String>,
    /// The version that CREATE EXTENSION and ALTER EXTENSION … UPDATE install; none without its files.
    available: Option<String>,
    /// The source's schema of it exists.
    schema_exists: bool,
    /// It requires others, one of which is not installed.
    lacks_required: bool,
}

/// The question: one row with one text.
pub(super) fn ask(extension: &Ident, schema: &Ident) -> String {
    let (name, schema) = (quote_literal(extension.as_str()), quote_literal(schema.as_str()));
    format!(
        "SELECT pg_catalog.jsonb_build_object(
             'schema', n.nspname, 'relocatable', x.extrelocatable, 'version', x.extversion, 'available', a.default_version,
             'schema_exists', EXISTS (SELECT FROM pg_catalog.pg_namespace s WHERE s.nspname = {schema}),
             'lacks_required', EXISTS (
                 SELECT FROM pg_catalog.pg_available_extension_versions v CROSS JOIN LATERAL pg_catalog.unnest(v.requires) AS required
                 WHERE v.name = a.name AND v.version = a.default_version
                   AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension r WHERE r.extname = required)))::text
         FROM (SELECT {name}::pg_catalog.name) AS wanted (name)
         LEFT JOIN pg_catalog.pg_extension x ON x.extname = wanted.name
         LEFT JOIN pg_catalog.pg_namespace n ON n.oid = x.extnamespace
         LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = wanted.name"
    )
}

/// The hint, from the answer.
///
/// # Errors
/// [`DestinationError`] when the answer is not one.
pub(super) fn hint(answer: &str, extension: &Ident, schema: &Ident) -> Result<String, DestinationError> {
    let found: FoundExtension =
        serde_json::from_str(answer).map_err(|error| SessionError::answer(DOING, error.to_string()))?;
    Ok(found.hint(extension, schema))
}

/// What gives the destination what it lacks of an extension.
///
/// # Errors
/// [`DestinationError`].
pub async fn extension_hint(client: &SqlClient, extension: &Ident, schema: &Ident) -> Result<String, DestinationError> {
    let answer: String = client.query_one(DOING, &ask(extension, schema), &[]).await?.get(0)?;
    hint(&answer, extension, schema)
}

impl FoundExtension {
    fn hint(&self, extension: &Ident, schema: &Ident) -> String {
        let new_schema = if self.schema_exists { String::new() } else { format!("CREATE SCHEMA {schema};\n") };
        let create = match self.lacks_required {
            true => format!("CREATE EXTENSION {extension} SCHEMA {schema} CASCADE;"),
            false => format!("CREATE EXTENSION {extension} SCHEMA {schema};"),
        };
        let files = "Install the extension's files on the destination's machine, in the version that the source has, then run there";
        match (&self.schema, &self.available) {
            (None, None) => format!("{files}:\n{new_schema}{create}"),
            (None, Some(_)) => format!("Run at the destination:\n{new_schema}{create}"),
            (Some(here), _) if here != schema => match self.relocatable {
                Some(true) => {
                    format!("Run at the destination:\n{new_schema}ALTER EXTENSION {extension} SET SCHEMA {schema};")
                }
                Some(false) | None => format!(
                    "The extension is in another schema. Run at the destination, where nothing may use it:\n\
                     {new_schema}DROP EXTENSION {extension};\n{create}"
                ),
            },
            (Some(_), available) => {
                let has_newer = available.is_some() && *available != self.version;
                let first = if has_newer { "Run at the destination" } else { files };
                format!("{first}:\nALTER EXTENSION {extension} UPDATE;")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_depends_on_what_the_destination_has() {
        let told = |found: &str| {
            let found = found.replace('\'', "\"");
            let answer = format!("{{{found}, \"relocatable\": true}}");
            hint(&answer, &Ident::new("cube"), &Ident::new("Ext")).unwrap_or_else(|error| panic!("{error}"))
        };
        let absent = "'schema': null, 'version': null, 'available': '1.5'";
        assert_eq!(
            told(&format!("{absent}, 'schema_exists': true, 'lacks_required': false")),
            "Run at the destination:\nCREATE EXTENSION cube SCHEMA \"Ext\";"
        );
        assert_eq!(
            told(&format!("{absent}, 'schema_exists': false, 'lacks_required': true")),
            "Run at the destination:\nCREATE SCHEMA \"Ext\";\nCREATE EXTENSION cube SCHEMA \"Ext\" CASCADE;"
        );
        let elsewhere =
            "'schema': 'public', 'version': '1.5', 'available': '1.5', 'schema_exists': false, 'lacks_required': false";
        assert_eq!(
            told(elsewhere),
            "Run at the destination:\nCREATE SCHEMA \"Ext\";\nALTER EXTENSION cube SET SCHEMA \"Ext\";"
        );
        let older =
            "'schema': 'Ext', 'version': '1.4', 'available': '1.5', 'schema_exists': true, 'lacks_required': false";
        assert_eq!(told(older), "Run at the destination:\nALTER EXTENSION cube UPDATE;");
        assert!(told(&older.replace("1.5", "1.4")).starts_with("Install the extension's files"));
        assert!(hint("[]", &Ident::new("cube"), &Ident::new("public")).is_err());
    }
}
