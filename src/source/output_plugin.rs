//! Whether the source lets pgoutput decode: `output_plugin_libraries` of the minors that have it (18.6 and its siblings, tried on 18.6)
//! lists the output plugins that may be used, for superusers as well.
//!
//! In comes a session at the source; out goes what to report. Asked by `preflight`, and by the check, which also tries where the setting
//! cannot be seen: it is hidden from roles without `pg_read_all_settings`.

use super::error::SourceError;
use crate::pg::{ErrorReport, Ident, shown_literal};
use crate::session::SqlClient;

/// The setting with which a start would fail; `None` where there is none, or where our role cannot see it.
///
/// # Errors
/// [`SourceError`] when the server does not answer.
pub(super) async fn plugin_report(client: &SqlClient) -> Result<Option<ErrorReport>, SourceError> {
    let sql =
        "SELECT setting, source, session_user::text FROM pg_catalog.pg_settings WHERE name = 'output_plugin_libraries'";
    let Some(row) = client.query_opt("looking at output plugins", sql, &[]).await? else { return Ok(None) };
    let (list, set_by, login): (&str, &str, &str) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let mut plugins = elements(list);
    if plugins.iter().any(|plugin| plugin == PLUGIN) {
        return Ok(None);
    }
    plugins.push(PLUGIN.to_owned());
    let plugins: Vec<String> = plugins.iter().map(|plugin| shown_literal(plugin)).collect();
    let plugins = plugins.join(", ");
    // What is set for a role or a database comes before the server's.
    let statement = match set_by {
        "user" | "database" | "database user" => {
            format!("ALTER ROLE {} SET output_plugin_libraries = {plugins};", Ident::new(login))
        }
        _ => format!("ALTER SYSTEM SET output_plugin_libraries = {plugins};\nSELECT pg_reload_conf();"),
    };
    Ok(Some(refused_report().hint(format!("Run at the source as a superuser:\n{statement}"))))
}

/// Tries it where the setting cannot be seen: with a temporary slot, which goes at once.
///
/// # Errors
/// [`SourceError::Refused`] when pgoutput may not be used; others when the server does not answer.
pub async fn try_plugin(client: &SqlClient) -> Result<(), SourceError> {
    let hidden = "SELECT pg_catalog.current_setting('output_plugin_libraries', true) IS NULL";
    // Where the setting can be seen, it has been judged already.
    if !is_denied(client.query_one("looking at output plugins", hidden, &[]).await.err())? {
        return Ok(());
    }
    client.statement("setting up a session", "SET statement_timeout = '1s'").await?;
    let name = format!("headwater_check_{:016x}", fastrand::u64(..));
    // A list without pgoutput is an error at once; with it, the slot waits for running transactions, and that is enough to know.
    let sql = "SELECT pg_catalog.pg_drop_replication_slot(slot_name)
               FROM pg_catalog.pg_create_logical_replication_slot($1::text, 'pgoutput', true)";
    let tried = is_denied(client.query_one("trying the output plugin", sql, &[&name]).await.err());
    client.statement("setting up a session", "RESET statement_timeout").await?;
    match tried {
        Ok(true) => Err(SourceError::Refused(refused_report().hint(
            "Run at the source as a superuser, after what SHOW output_plugin_libraries lists there:\n\
             ALTER SYSTEM SET output_plugin_libraries = 'test_decoding', 'pgoutput';\nSELECT pg_reload_conf();",
        ))),
        // Slots that are all taken, and the like, are judged elsewhere.
        Ok(false) | Err(_) => Ok(()),
    }
}

const PLUGIN: &str = "pgoutput";

fn refused_report() -> ErrorReport {
    ErrorReport::new("output_plugin_libraries at the source does not list pgoutput")
        .detail("No slot of headwater's can be created or read there.")
}

/// Whether the error says that something is not permitted; any other error is passed on.
fn is_denied(error: Option<crate::session::SessionError>) -> Result<bool, SourceError> {
    match error {
        None => Ok(false),
        Some(error) if error.code().is_some_and(|code| code.as_str() == "42501") => Ok(true),
        Some(error) => Err(error.into()),
    }
}

/// The elements of a list setting, as pg_settings shows it: those with other characters than a name's are in double quotes.
fn elements(list: &str) -> Vec<String> {
    let (mut found, mut element, mut quoted) = (Vec::new(), String::new(), false);
    for c in list.chars().chain([',']) {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                let text = std::mem::take(&mut element).trim().to_owned();
                found.extend((!text.is_empty()).then_some(text));
            }
            c => element.push(c),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_setting_is_read_as_the_server_reads_it() {
        for (list, expected) in [
            ("pgoutput, test_decoding", vec!["pgoutput", "test_decoding"]),
            ("", vec![]),
            ("\"a, b\",pgoutput", vec!["a, b", "pgoutput"]),
            (" wal2json ", vec!["wal2json"]),
        ] {
            assert_eq!(elements(list), expected, "{list}");
        }
    }
}
