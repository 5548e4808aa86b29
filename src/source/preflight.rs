//! What the source must be like before anything is asked of it.
//!
//! Run by `supervisor` at every start; changes nothing. Each failed requirement is a report with the statement or setting
//! that fixes it.

use super::error::SourceError;
use super::output_plugin::plugin_report;
use crate::config::ConnectionSettings;
use crate::pg::{ErrorReport, Ident, Provider, logical_decoding_hint, settings_hint, shown_literal};
use crate::session::{SessionError, SqlClient, SystemIdentification, ask_provider};

/// The source server, as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceServer {
    /// `server_version_num`
    pub version: i32,
    /// The role that we are.
    pub role: Ident,
    /// It is a standby.
    pub in_recovery: bool,
    /// `wal_sender_timeout` that we asked for is in force per session; this is the server's word on sync standbys.
    pub synchronous_standby_names: String,
}

impl SourceServer {
    /// Asks the server and checks what does not depend on tables.
    ///
    /// `needs_slot`: one more replication slot will be asked for, for the stream or for a snapshot.
    ///
    /// # Errors
    /// [`SourceError::Refused`] names the setting and how to change it.
    pub async fn check(client: &SqlClient, needs_slot: bool) -> Result<SourceServer, SourceError> {
        let (server, problems) = SourceServer::examine(client, needs_slot).await?;
        match problems.into_iter().next() {
            Some(problem) => Err(refused(problem)),
            None => Ok(server),
        }
    }

    /// The same, listing all that an operator must fix.
    ///
    /// # Errors
    /// [`SourceError`] when the server does not answer.
    pub async fn examine(
        client: &SqlClient,
        needs_slot: bool,
    ) -> Result<(SourceServer, Vec<ErrorReport>), SourceError> {
        let sql = "SELECT pg_catalog.current_setting('server_version_num')::int, current_user::text,
                          pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('wal_level'),
                          pg_catalog.current_setting('synchronous_standby_names'),
                          pg_catalog.current_setting('max_replication_slots')::bigint,
                          (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots),
                          pg_catalog.current_setting('max_wal_senders')::bigint,
                          -- From 19 on decoding can be switched on without wal_level = logical.
                          pg_catalog.current_setting('effective_wal_level', true)";
        let row = client.query_one("looking at the source", sql, &[]).await?;
        let server = SourceServer {
            version: row.get(0)?,
            role: Ident::new(row.get::<&str>(1)?),
            in_recovery: row.get(2)?,
            synchronous_standby_names: row.get(4)?,
        };
        let provider = ask_provider(client).await?;
        let mut problems = Vec::new();
        let wal_level: &str = row.get::<Option<&str>>(8)?.unwrap_or(row.get(3)?);
        if wal_level != "logical" {
            problems.push(
                ErrorReport::new(format!("wal_level is {wal_level} at the source, headwater needs logical"))
                    .hint(logical_decoding_hint(provider)),
            );
        }
        let (slots_max, slots): (i64, i64) = (row.get(5)?, row.get(6)?);
        if needs_slot && slots >= slots_max {
            problems.push(
                ErrorReport::new(format!("all {slots_max} replication slots at the source are taken"))
                    .hint(more_slots(provider, slots_max.saturating_add(4))),
            );
        }
        if row.get::<i64>(7)? == 0 {
            problems.push(ErrorReport::new("max_wal_senders is 0 at the source").hint(settings_hint(
                provider,
                &[("max_wal_senders", "10".to_owned())],
                true,
            )));
        }
        problems.extend(plugin_report(client).await?);
        Ok((server, problems))
    }

    /// Refuses to become a synchronous standby: then every COMMIT at the source would wait for us.
    ///
    /// # Errors
    /// [`SourceError::Refused`] with the setting that leaves us out.
    pub fn check_not_synchronous(&self, application_name: &str) -> Result<(), SourceError> {
        if !waits_for(&self.synchronous_standby_names, application_name) {
            return Ok(());
        }
        Err(refused(synchronous_report(&self.synchronous_standby_names)))
    }
}

/// A slot that is free, or room for more.
fn more_slots(provider: Option<Provider>, count: i64) -> String {
    let setting = ("max_replication_slots", count.to_string());
    match provider {
        None => format!(
            "Drop a slot that nobody needs, or run at the source as a superuser and restart it:\n\
             ALTER SYSTEM SET max_replication_slots = {count};"
        ),
        Some(_) => format!("Drop a slot that nobody needs. Or: {}", settings_hint(provider, &[setting], true)),
    }
}

/// What to say when commits at the source would wait for us.
fn synchronous_report(names: &str) -> ErrorReport {
    ErrorReport::new("headwater would be a synchronous standby of the source")
        .detail(format!(
            "synchronous_standby_names = {} includes it, so every COMMIT there would wait for headwater.",
            shown_literal(names)
        ))
        .hint(
            "Name the real standbys in synchronous_standby_names instead of '*', for instance:\n\
             ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (standby1)';\nSELECT pg_reload_conf();",
        )
}

/// Whether a walsender of this application_name counts for synchronous_standby_names (syncrep_gram.y: names are
/// compared without regard to case, `*` matches all).
fn waits_for(names: &str, application_name: &str) -> bool {
    let names = match (names.find('('), names.rfind(')')) {
        (Some(open), Some(close)) if open < close => names.get(open + 1..close).unwrap_or_default(),
        (_, _) => names,
    };
    names
        .split(',')
        .map(|name| name.trim().trim_matches('"'))
        .any(|name| name == "*" || (!name.is_empty() && name.eq_ignore_ascii_case(application_name)))
}

fn refused(report: ErrorReport) -> SourceError {
    SourceError::Refused(report)
}

/// What to say of a destination that is the source itself.
///
/// # Errors
/// [`SessionError`] of the destination's session.
pub async fn same_database(
    source: &SystemIdentification,
    destination: &SqlClient,
    source_url: &ConnectionSettings,
    destination_url: &ConnectionSettings,
) -> Result<Option<ErrorReport>, SessionError> {
    let sql = "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), pg_catalog.current_database()::text";
    let row = destination.query_one("looking at the destination", sql, &[]).await?;
    let (system, database): (&str, &str) = (row.get(0)?, row.get(1)?);
    if system != source.system_identifier || database != source.database {
        return Ok(None);
    }
    Ok(Some(
        ErrorReport::new(format!("source and destination are the same database, {database}"))
            .detail(format!("source.url leads to {source_url}, destination.url to {destination_url}."))
            .hint("Correct source.url or destination.url."),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synchronous_standby_names_is_read_as_the_server_reads_it() {
        for (names, included) in [
            ("", false),
            ("*", true),
            ("standby1, standby2", false),
            ("FIRST 2 (a, \"Headwater x streaming\")", true),
            ("ANY 1 (*)", true),
            ("2 (a, b)", false),
            ("headwater X streaming", true),
        ] {
            assert_eq!(waits_for(names, "headwater x streaming"), included, "{names}");
        }
    }
}
