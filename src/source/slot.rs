//! The replication slot as the source reports it: whose it is, and how it is freed.
//!
//! Asked by `supervisor` at every start and by the monitor while streaming. Whether the slot, and the server that has it, continue
//! from the stored position is `history`'s to say.

use std::time::Duration;

use super::error::SourceError;
use crate::pg::{ErrorReport, Ident, Lsn, SlotName, printable, shown_literal};
use crate::session::SqlClient;
use crate::source::stored_history::SourceDatabase;

/// A row of pg_replication_slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: SlotName,
    /// Its output plugin.
    pub plugin: String,
    /// Its database.
    pub database: String,
    /// That database's OID; a physical slot has none.
    pub database_id: Option<u32>,
    /// The walsender that uses it.
    pub active_pid: Option<i32>,
    /// Up to here everything was confirmed.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: String,
    /// Bytes of WAL that may still be written before the slot is in danger.
    pub safe_wal_size: Option<i64>,
    /// Bytes of WAL that it keeps.
    pub retained_wal_bytes: Option<i64>,
    /// Why it was invalidated (17 and later).
    pub invalidation_reason: Option<String>,
    /// Whether standbys may hold it ready (17 and later).
    pub failover: Option<bool>,
    /// Whether it decodes prepared transactions at PREPARE TRANSACTION, which headwater never asks for.
    pub two_phase: bool,
}

impl Slot {
    /// Whether it is such as headwater makes them in this database. A slot belongs to a database by its OID, so it follows a
    /// database that is renamed.
    pub fn is_ours(&self, database: &SourceDatabase) -> bool {
        self.plugin == "pgoutput" && self.database_id == Some(database.id)
    }
}

/// The slot of a name, if there is one.
///
/// # Errors
/// [`SourceError`]; also when the slot is physical.
pub async fn find_slot(client: &SqlClient, name: &SlotName) -> Result<Option<Slot>, SourceError> {
    let sql = "SELECT COALESCE(s.plugin, '')::text, COALESCE(s.database, '')::text, s.active_pid, s.confirmed_flush_lsn::text,
                      COALESCE(s.wal_status, ''), s.safe_wal_size,
                      pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
                          THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::bigint,
                      COALESCE(pg_catalog.to_jsonb(s) ->> 'invalidation_reason',
                          CASE WHEN pg_catalog.pg_is_in_recovery() AND (pg_catalog.to_jsonb(s) ->> 'conflicting')::bool
                              THEN 'conflict with recovery' END),
                      s.slot_type, s.datoid, (pg_catalog.to_jsonb(s) ->> 'failover')::bool,
                      COALESCE((pg_catalog.to_jsonb(s) ->> 'two_phase')::bool, false)
               FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1::text";
    let Some(row) = client.query_opt("looking at the replication slot", sql, &[&name.as_str()]).await? else {
        return Ok(None);
    };
    if row.get::<&str>(8)? != "logical" {
        return Err(SourceError::Refused(
            ErrorReport::new(format!("replication slot {name} at the source is a physical slot"))
                .hint("Choose another name for source.slot."),
        ));
    }
    Ok(Some(Slot {
        name: name.clone(),
        plugin: row.get(0)?,
        database: row.get(1)?,
        database_id: row.get(9)?,
        active_pid: row.get(2)?,
        confirmed_flush_lsn: row.parse_nullable(3)?,
        wal_status: row.get(4)?,
        safe_wal_size: row.get(5)?,
        retained_wal_bytes: row.get(6)?,
        invalidation_reason: row.get(7)?,
        failover: row.get(10)?,
        two_phase: row.get(11)?,
    }))
}

/// What to say of a slot that this destination knows nothing of.
pub fn slot_unknown_report(slot: &Slot) -> ErrorReport {
    let name = &slot.name;
    let report = ErrorReport::new(format!("replication slot {name} exists but this destination has no record of it"));
    if slot.plugin != "pgoutput" {
        let (plugin, database) = (printable(&slot.plugin), printable(&slot.database));
        let detail =
            format!("It belongs to another program: its output plugin is {plugin}, its database is {database}.");
        return report.detail(detail).hint("Choose another name for source.slot.");
    }
    let mut detail = format!("It may belong to another destination: its database is {}", printable(&slot.database));
    match slot.active_pid {
        Some(process_id) => {
            detail.push_str(&format!(", and process {process_id} is using it."));
            return report.detail(detail).hint("Choose another name for source.slot.");
        }
        None => detail.push_str(", and nobody is using it."),
    }
    report.detail(detail).hint(format!(
        "Choose another name for source.slot; or, if the slot is left over from a destination that is gone, run at the source:\n\
         SELECT pg_drop_replication_slot('{name}');"
    ))
}

/// Ends the session that holds the slot, if it is one of our login role's, and waits until it has let go. Returns who was ended,
/// in words. Not inside a transaction.
///
/// # Errors
/// [`SourceError::SlotInUse`] when it does not let go.
pub async fn release_slot(client: &SqlClient, name: &SlotName) -> Result<Vec<String>, SourceError> {
    let mut ended = Vec::new();
    let mut last = None;
    // A terminated walsender ends within milliseconds; one that is stuck in a send ends with its connection.
    for attempt in 0..50 {
        let Some(Slot { active_pid: Some(process_id), .. }) = find_slot(client, name).await? else { return Ok(ended) };
        last = Some(process_id);
        if attempt % 10 == 0 {
            // Another role's may be the work of somebody else. Ours is the role that has logged in, whatever SET ROLE makes of it.
            let sql = "SELECT pg_catalog.pg_terminate_backend(pid), COALESCE(application_name, ''),
                              COALESCE(pg_catalog.host(client_addr), 'this machine'), COALESCE(usename::text, '')
                       FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND usename = session_user";
            let doing = "ending the session that holds the slot";
            for row in client.query_as_login_role(doing, sql, &[&process_id]).await? {
                let (application, from, role): (&str, &str, &str) = (row.get(1)?, row.get(2)?, row.get(3)?);
                let text = format!(
                    "ended process {process_id} at the source, which held replication slot {name}: role {}, application_name {}, \
                     from {from}",
                    Ident::new(role),
                    shown_literal(application)
                );
                if row.get::<bool>(0)? && !ended.contains(&text) {
                    ended.push(text);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let process_id = last.unwrap_or(0);
    let holder = holder(client, process_id).await?;
    Err(SourceError::SlotInUse { slot: name.to_string(), process_id, holder })
}

/// Whose a process is: `role app (application_name 'pg_recvlogical', from 10.0.0.7), since 2026-11-27 00:03:12 UTC`.
async fn holder(client: &SqlClient, process_id: i32) -> Result<String, SourceError> {
    let sql =
        "SELECT COALESCE(usename::text, '?'), application_name, COALESCE(pg_catalog.host(client_addr), 'this machine'),
                      pg_catalog.to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"')
               FROM pg_catalog.pg_stat_activity WHERE pid = $1";
    let Some(row) = client.query_opt("looking for the slot's holder", sql, &[&process_id]).await? else {
        return Ok("a session that has ended by now".to_owned());
    };
    let role = Ident::new(row.get::<&str>(0)?);
    Ok(match (row.get::<Option<&str>>(1)?, row.get::<Option<&str>>(3)?) {
        (Some(program), Some(since)) => {
            let (program, from) = (shown_literal(program), row.get::<&str>(2)?);
            format!("role {role} (application_name {program}, from {from}), since {since}")
        }
        (_, _) => format!("role {role} (the rest is not visible to this role)"),
    })
}

/// Refuses a slot that is not the one that headwater made, whatever it is called: one of another plugin or another database.
///
/// # Errors
/// [`SourceError::Refused`].
pub fn check_slot(slot: &Slot, database: &SourceDatabase) -> Result<(), SourceError> {
    if slot.is_ours(database) {
        return Ok(());
    }
    let mut detail = format!("Its plugin is {}, its database {}", printable(&slot.plugin), printable(&slot.database));
    if let Some(process_id) = slot.active_pid {
        detail.push_str(&format!(", and process {process_id} is using it"));
    }
    Err(SourceError::Refused(
        ErrorReport::new(format!("replication slot {} is not the one that headwater created", slot.name))
            .detail(format!("{detail}."))
            .hint("Choose another name for source.slot, or correct source.url."),
    ))
}

/// A slot for the tests of this module and its neighbours.
#[cfg(test)]
pub(crate) mod testing {
    use super::Slot;
    use crate::pg::Lsn;
    use crate::source::stored_history::SourceDatabase;

    /// Database 16384, forum, of an 18.4.
    pub(crate) fn database() -> SourceDatabase {
        SourceDatabase {
            id: 16_384,
            name: "forum".into(),
            remembered_exists: true,
            server_version: 180_004,
            next_xid: 1000,
        }
    }

    /// One of ours in database 16384, forum, at 0/1.
    pub(crate) fn slot() -> Slot {
        Slot {
            name: "hw".parse().unwrap(),
            plugin: "pgoutput".into(),
            database: "forum".into(),
            database_id: Some(16_384),
            active_pid: None,
            confirmed_flush_lsn: Some(Lsn::new(1)),
            wal_status: "reserved".into(),
            safe_wal_size: None,
            retained_wal_bytes: None,
            invalidation_reason: None,
            failover: None,
            two_phase: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_of_another_plugin_or_database_is_not_ours() {
        let database = testing::database();
        assert!(check_slot(&testing::slot(), &database).is_ok());
        let other_plugin = Slot { plugin: "wal2json".into(), ..testing::slot() };
        let other_database = Slot { database: "x".into(), database_id: Some(99), ..testing::slot() };
        for other in [other_plugin, other_database] {
            let Err(SourceError::Refused(report)) = check_slot(&other, &database) else { panic!("{other:?}") };
            assert!(!report.lines().contains("drop"), "{}", report.lines());
        }
    }
}
