//! The replication slot as the source reports it, and whether it still leads on from the stored position.
//!
//! Asked by `pipeline` before START_REPLICATION, which itself would start silently at a later position. A slot that
//! is gone, invalidated or ahead of the destination, another cluster, or a timeline that left before the position:
//! each is told with its cause.

use std::time::Duration;

use super::error::SourceError;
use crate::pg::{ErrorReport, Lsn, SlotName};
use crate::session::{ReplicationSession, SqlClient, SystemIdentification};

/// A row of pg_replication_slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: SlotName,
    /// Its output plugin.
    pub plugin: String,
    /// Its database.
    pub database: String,
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
                      s.slot_type
               FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1::text";
    let Some(row) = client.query_opt("looking at the replication slot", sql, &[&name.as_str()]).await? else {
        return Ok(None);
    };
    if row.get::<_, &str>(8) != "logical" {
        return Err(SourceError::Refused(
            ErrorReport::new(format!("replication slot {name} at the source is a physical slot"))
                .hint("Choose another name for source.slot."),
        ));
    }
    let confirmed: Option<&str> = row.get(3);
    Ok(Some(Slot {
        name: name.clone(),
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        confirmed_flush_lsn: confirmed.and_then(|lsn| lsn.parse().ok()),
        wal_status: row.get(4),
        safe_wal_size: row.get(5),
        retained_wal_bytes: row.get(6),
        invalidation_reason: row.get(7),
    }))
}

/// What to say of a slot that this destination knows nothing of.
pub fn slot_unknown_report(slot: &Slot) -> ErrorReport {
    let name = &slot.name;
    let mut detail = format!("It may belong to another destination: its database is {}", slot.database);
    match slot.active_pid {
        Some(process_id) => detail.push_str(&format!(", and process {process_id} is using it.")),
        None => detail.push_str(", and nobody is using it."),
    }
    ErrorReport::new(format!("replication slot {name} exists but this destination has no record of it")).detail(detail).hint(
        format!(
            "Choose another name for source.slot; or, if the slot is left over from a destination that is gone, run at the source:\n\
             SELECT pg_drop_replication_slot('{name}');"
        ),
    )
}

/// Ends the session that holds the slot, if it is one of our role's, and waits until it has let go.
///
/// # Errors
/// [`SourceError::SlotInUse`] when it does not let go.
pub async fn release_slot(client: &SqlClient, name: &SlotName) -> Result<(), SourceError> {
    let mut last = None;
    // A walsender that is told to go needs milliseconds; one that is stuck in a send goes with its connection.
    for attempt in 0..50 {
        let Some(Slot { active_pid: Some(process_id), .. }) = find_slot(client, name).await? else { return Ok(()) };
        last = Some(process_id);
        if attempt % 10 == 0 {
            let sql = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                       WHERE pid = $1 AND usename = current_user";
            client.query("ending the session that holds the slot", sql, &[&process_id]).await?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(SourceError::SlotInUse { slot: name.to_string(), process_id: last.unwrap_or(0) })
}

/// Checks that the source still holds the history that leads on from `position`, which this destination stored on
/// `timeline`.
///
/// # Errors
/// [`SourceError::SlotLost`] or [`SourceError::HistoryLost`] with the cause.
pub async fn check_history(
    session: &mut ReplicationSession,
    identification: &SystemIdentification,
    slot: Option<&Slot>,
    stored: &StoredHistory<'_>,
) -> Result<(), SourceError> {
    if identification.system_identifier != stored.system_identifier {
        return Err(SourceError::HistoryLost(
            ErrorReport::new("the destination was fed by another source")
                .detail(format!(
                    "It was fed by the cluster with system identifier {}; source.url leads to {}.",
                    stored.system_identifier, identification.system_identifier
                ))
                .hint(RESYNC_HINT),
        ));
    }
    if identification.database != stored.database {
        return Err(SourceError::HistoryLost(
            ErrorReport::new("the destination was fed from another database of the source")
                .detail(format!(
                    "It was fed from {}; source.url leads to {}.",
                    stored.database, identification.database
                ))
                .hint("Correct source.url."),
        ));
    }
    check_timeline(session, identification, stored).await?;
    check_end(identification, session.in_recovery(), stored)?;
    let Some(slot) = slot else {
        return Err(SourceError::SlotLost(
            ErrorReport::new(format!("replication slot {} does not exist at the source any more", stored.slot))
                .detail(format!(
                    "The destination stands at {}; what was committed since cannot be fetched.",
                    stored.position
                ))
                .hint(RESYNC_HINT),
        ));
    };
    check_slot(slot, stored)
}

/// What the destination remembers of its source.
#[derive(Clone, Copy, Debug)]
pub struct StoredHistory<'a> {
    /// The slot.
    pub slot: &'a SlotName,
    /// The source's system identifier.
    pub system_identifier: &'a str,
    /// The timeline when it was last connected.
    pub timeline: u32,
    /// The source's database.
    pub database: &'a str,
    /// How far the destination is.
    pub position: Lsn,
}

const RESYNC_HINT: &str = "Run headwater with --resnapshot to reconcile all tables with a new snapshot, or set \
                           on_slot_lost = \"resnapshot\" to have that done by itself.";

async fn check_timeline(
    session: &mut ReplicationSession,
    identification: &SystemIdentification,
    stored: &StoredHistory<'_>,
) -> Result<(), SourceError> {
    let (then, now) = (stored.timeline, identification.timeline);
    if now == then {
        return Ok(());
    }
    let lost = |detail: String| {
        SourceError::HistoryLost(
            ErrorReport::new(format!(
                "the source is on timeline {now}, the destination's position is on timeline {then}"
            ))
            .detail(detail)
            .hint(RESYNC_HINT),
        )
    };
    if now < then {
        return Err(lost("The source was restored from an older state.".to_owned()));
    }
    let history = session.timeline_history(now).await?;
    // Each line: where a timeline was left. All that was left since ours must have been left at or behind the position.
    let left_ours = history.iter().find(|(timeline, _)| *timeline == then);
    let Some((_, switch)) = left_ours else {
        return Err(lost(format!("Timeline {now} does not descend from timeline {then}.")));
    };
    if *switch < stored.position {
        return Err(lost(format!(
            "The source left timeline {then} at {switch}, before the destination's position {}: what was committed between is \
             only at the destination.",
            stored.position
        )));
    }
    Ok(())
}

/// The position was the source's once: a source whose WAL ends before it is another, or an older one.
fn check_end(
    identification: &SystemIdentification,
    in_recovery: bool,
    stored: &StoredHistory<'_>,
) -> Result<(), SourceError> {
    let ends = identification.flushed_lsn;
    if stored.position <= ends {
        return Ok(());
    }
    if in_recovery {
        return Err(SourceError::Behind { replayed: ends, position: stored.position });
    }
    Err(SourceError::HistoryLost(
        ErrorReport::new(format!("the source's WAL ends at {ends}, before the destination's position {}", stored.position))
            .detail(
                "The source was restored from an older state, or failed over to a standby that had not received everything: what \
                 was committed between is only at the destination.",
            )
            .hint(RESYNC_HINT),
    ))
}

fn check_slot(slot: &Slot, stored: &StoredHistory<'_>) -> Result<(), SourceError> {
    let name = &slot.name;
    if slot.plugin != "pgoutput" || slot.database != stored.database {
        return Err(SourceError::Refused(
            ErrorReport::new(format!("replication slot {name} is not the one that headwater created"))
                .detail(format!("Its plugin is {}, its database {}.", slot.plugin, slot.database))
                .hint("Correct source.slot or source.url."),
        ));
    }
    let reason = slot.invalidation_reason.clone().or((slot.wal_status == "lost").then(|| "wal_removed".to_owned()));
    if let Some(reason) = reason {
        let cause = match reason.as_str() {
            "wal_removed" => {
                "The WAL that it needs was removed, because it fell behind by more than max_slot_wal_keep_size."
            }
            "rows_removed" => {
                "Rows of the catalog that it needs were vacuumed at the standby's primary. hot_standby_feedback = on and \
                 primary_slot_name at the standby keep them."
            }
            "wal_level_insufficient" => "wal_level was lowered at the source's primary.",
            "idle_timeout" => "It was unused for longer than idle_replication_slot_timeout.",
            // 16 does not tell which of two.
            _ => {
                "It stood in the way of what the standby had to replay: rows of the catalog that it needs were vacuumed at the \
                 primary (hot_standby_feedback = on and primary_slot_name at the standby keep them), or wal_level was lowered \
                 there."
            }
        };
        return Err(SourceError::SlotLost(
            ErrorReport::new(format!("replication slot {name} was invalidated by the source ({reason})"))
                .detail(cause)
                .hint(RESYNC_HINT),
        ));
    }
    let Some(confirmed) = slot.confirmed_flush_lsn else { return Ok(()) };
    if confirmed > stored.position {
        return Err(SourceError::HistoryLost(
            ErrorReport::new(format!(
                "replication slot {name} is at {confirmed}, ahead of the destination's position {}",
                stored.position
            ))
            .detail(
                "What was confirmed to the source is not at the destination: the destination was restored or failed over to an \
                 older state, or the slot is another one. The source will not send what lies between.",
            )
            .hint(RESYNC_HINT),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(confirmed: u64) -> Slot {
        Slot {
            name: "hw".parse().unwrap(),
            plugin: "pgoutput".into(),
            database: "forum".into(),
            active_pid: None,
            confirmed_flush_lsn: Some(Lsn::new(confirmed)),
            wal_status: "reserved".into(),
            safe_wal_size: None,
            retained_wal_bytes: None,
            invalidation_reason: None,
        }
    }

    fn check(slot: &Slot, position: u64) -> Result<(), SourceError> {
        let name = "hw".parse().unwrap();
        check_slot(
            slot,
            &StoredHistory {
                slot: &name,
                system_identifier: "1",
                timeline: 1,
                database: "forum",
                position: Lsn::new(position),
            },
        )
    }

    #[test]
    fn a_slot_ahead_of_the_position_is_lost_history() {
        assert!(check(&slot(100), 100).is_ok());
        assert!(check(&slot(99), 100).is_ok(), "stepped back after a crash: resent and skipped");
        assert!(matches!(check(&slot(101), 100), Err(SourceError::HistoryLost(_))));
    }

    #[test]
    fn a_source_that_ends_before_the_position_is_an_older_one_unless_it_still_replays() {
        let identification = SystemIdentification {
            system_identifier: "1".into(),
            timeline: 1,
            flushed_lsn: Lsn::new(99),
            database: "forum".into(),
        };
        let slot = "hw".parse().unwrap();
        let stored = |position| StoredHistory {
            slot: &slot,
            system_identifier: "1",
            timeline: 1,
            database: "forum",
            position: Lsn::new(position),
        };
        assert!(check_end(&identification, false, &stored(99)).is_ok());
        assert!(matches!(check_end(&identification, false, &stored(100)), Err(SourceError::HistoryLost(_))));
        assert!(matches!(check_end(&identification, true, &stored(100)), Err(SourceError::Behind { .. })));
    }

    #[test]
    fn an_invalidated_slot_is_lost_with_its_cause() {
        let lost = Slot { wal_status: "lost".into(), ..slot(1) };
        let Err(SourceError::SlotLost(report)) = check(&lost, 100) else { panic!() };
        assert!(report.lines().contains("max_slot_wal_keep_size"), "{}", report.lines());
        let idle = Slot { invalidation_reason: Some("idle_timeout".into()), ..slot(1) };
        let Err(SourceError::SlotLost(report)) = check(&idle, 100) else { panic!() };
        assert!(report.lines().contains("idle_replication_slot_timeout"));
    }

    #[test]
    fn a_slot_of_another_plugin_or_database_is_not_ours() {
        for other in [Slot { plugin: "wal2json".into(), ..slot(1) }, Slot { database: "x".into(), ..slot(1) }] {
            assert!(matches!(check(&other, 100), Err(SourceError::Refused(_))));
        }
    }
}
