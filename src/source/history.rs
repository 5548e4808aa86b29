//! Whether the source continues what it has sent before: same cluster, same database, a timeline that has the stored position
//! in its history, WAL that reaches it, and a slot that has not passed it.
//!
//! Asked by `supervisor` before START_REPLICATION, which itself would start silently at a later position, and by `check`. In come
//! what the server says of itself and what the bookkeeping remembers; out goes nothing, or a [`LostHistory`] with its cause.
//! Everything here but [`SourceDatabase::read`] is a comparison of values. What may follow from a cause is decided in `error_policy`.
//!
//! The order is from the outside in, so that the first thing that differs is the one that is reported: on another cluster
//! timelines and positions mean nothing, and on another timeline a slot means nothing.

use super::error::{LostCause, LostHistory, SourceError};
use super::slot::{Slot, check_slot};
use crate::pg::{Descent, ErrorReport, printable};
use crate::session::SystemIdentification;
use crate::source::stored_history::{KEEPS_SLOTS_SINCE, SourceDatabase, StoredHistory};

/// What to do about a history that is lost while the source is known to continue it.
const RESYNC_HINT: &str = "Run headwater with --resnapshot to reconcile all tables with a new snapshot, or set \
                           on_slot_lost = \"resnapshot\" to have that done by itself.";

/// Checks that the source continues the stored history: cluster, database, timeline, position, slot.
///
/// # Errors
/// [`SourceError::LostHistory`] with the cause; [`SourceError::Behind`] for a standby that still replays;
/// [`SourceError::Refused`] for a slot that is not ours.
pub fn check_history(
    now: &SystemIdentification,
    database: &SourceDatabase,
    slot: Option<&Slot>,
    stored: &StoredHistory<'_>,
) -> Result<(), SourceError> {
    check_line(now, database, slot, stored)?;
    let Some(slot) = slot else {
        return Err(lost(
            LostCause::SlotMissing,
            ErrorReport::new(format!("replication slot {} does not exist at the source any more", stored.slot))
                .detail(format!(
                    "The destination stands at {}; what was committed since cannot be fetched.",
                    stored.position
                ))
                .hint(RESYNC_HINT),
        )
        .into());
    };
    check_slot(slot, database)?;
    check_valid(slot)?;
    Ok(check_confirmed(slot, stored)?)
}

/// The same without the slot: whether rows of this source may be compared with what the destination has.
///
/// # Errors
/// As for [`check_history`].
pub fn check_line(
    now: &SystemIdentification,
    database: &SourceDatabase,
    slot: Option<&Slot>,
    stored: &StoredHistory<'_>,
) -> Result<(), SourceError> {
    check_cluster(now, slot.filter(|_| database.server_version >= KEEPS_SLOTS_SINCE), stored)?;
    check_database(database, slot, stored)?;
    check_timeline(now, stored)?;
    check_end(now, stored)?;
    Ok(check_xid(now, database, stored)?)
}

/// Whether the stored position is part of what this server has, as far as cluster, timeline and WAL tell.
///
/// # Errors
/// As for [`check_history`].
pub(super) fn continues(now: &SystemIdentification, stored: &StoredHistory<'_>) -> Result<(), SourceError> {
    check_cluster(now, None, stored)?;
    check_timeline(now, stored)?;
    check_end(now, stored)
}

fn lost(cause: LostCause, report: ErrorReport) -> LostHistory {
    LostHistory { cause, report }
}

/// `slot`: where pg_upgrade may have kept it.
fn check_cluster(
    now: &SystemIdentification,
    slot: Option<&Slot>,
    stored: &StoredHistory<'_>,
) -> Result<(), LostHistory> {
    if now.system_identifier == stored.system_identifier {
        return Ok(());
    }
    let mut hint = "Correct source.url. If this cluster is to feed the destination from now on, run headwater run --resnapshot: all \
                    tables become equal to it."
        .to_owned();
    if slot.is_some() {
        hint.push_str(
            " If pg_upgrade has made it of the one that fed the destination: headwater run --accept-source-identity, and headwater \
             verify at once, since a cluster that was made in the same way may look the same.",
        );
    }
    Err(lost(
        LostCause::OtherCluster,
        ErrorReport::new("the destination was fed by another source")
            .detail(format!(
                "It was fed by the cluster with system identifier {}; source.url leads to {} at {}.",
                printable(stored.system_identifier),
                printable(&now.system_identifier),
                now.host
            ))
            .hint(hint),
    ))
}

/// A database keeps its OID when it is renamed. Where only its name was recorded, the slot tells: it follows its database.
fn check_database(
    database: &SourceDatabase,
    slot: Option<&Slot>,
    stored: &StoredHistory<'_>,
) -> Result<(), LostHistory> {
    let same = match stored.database_id {
        Some(id) => id == database.id,
        None if database.name == stored.database => true,
        None => !database.remembered_exists && slot.is_some_and(|slot| slot.is_ours(database)),
    };
    if same {
        return Ok(());
    }
    let mut detail = if database.name == stored.database {
        format!(
            "The database {} that fed it was renamed or dropped, and another one has its name now.",
            printable(stored.database)
        )
    } else {
        format!("It was fed from {}; source.url leads to {}.", printable(stored.database), printable(&database.name))
    };
    if let Some(slot) = slot.filter(|slot| slot.database_id != Some(database.id)) {
        detail.push_str(&format!(" Replication slot {} belongs to database {}.", slot.name, printable(&slot.database)));
    }
    Err(lost(
        LostCause::OtherDatabase,
        ErrorReport::new("the destination was fed from another database of the source").detail(detail).hint(
            "Correct source.url. If this database is to feed the destination from now on, run headwater run --resnapshot: all \
             tables become equal to it.",
        ),
    ))
}

/// What an operator does when a server may be the primary now, or a copy that nobody should follow.
const BRANCH_HINT: &str = "If this server is the primary now, run headwater run --resnapshot: all tables become equal to it, and \
                           rows that only the destination has are deleted. Otherwise correct source.url.";

fn check_timeline(now: &SystemIdentification, stored: &StoredHistory<'_>) -> Result<(), LostHistory> {
    let (then, number) = (stored.timeline.number, now.timeline.number);
    let descent = now.timeline.descent(stored.timeline, stored.position);
    let report = ErrorReport::new(format!(
        "the source is on timeline {number}, the destination's position is on timeline {then}"
    ));
    Err(match descent {
        Descent::Continues => return Ok(()),
        Descent::Older => lost(
            LostCause::OlderTimeline,
            report
                .detail(format!(
                    "This may be the old primary that came back: {} is on timeline {number} still, and another server was promoted \
                     to timeline {then}. What was written here since then is no part of what feeds the destination.",
                    now.host
                ))
                .hint(
                    "Stop this server, or correct source.url so that it leads to the one that was promoted; headwater then \
                     continues from the stored position. Only if all tables are to become equal to this server: headwater run \
                     --resnapshot",
                ),
        ),
        Descent::Forked if number == then => lost(
            LostCause::ForkedTimeline,
            ErrorReport::new(format!("the source's timeline {number} is not the one that fed the destination"))
                .detail(format!(
                    "Both have number {number}, but they left their common history at different positions: two servers were \
                     promoted, and {} is not the one that the destination was fed by.",
                    now.host
                ))
                .hint(BRANCH_HINT),
        ),
        Descent::Forked => lost(
            LostCause::ForkedTimeline,
            report
                .detail(format!(
                    "Timeline {number} of {} does not descend from timeline {then}: two servers were promoted, or one was restored \
                     from a backup.",
                    now.host
                ))
                .hint(BRANCH_HINT),
        ),
        Descent::LeftBefore { at } => lost(
            LostCause::LeftBefore,
            report
                .detail(format!(
                    "{} left timeline {then} at {at}, before the destination's position {}: what was committed between is only at \
                     the destination. The source failed over to a standby that had not received everything, or this is a copy that \
                     was restored from an older state.",
                    now.host, stored.position
                ))
                .hint(BRANCH_HINT),
        ),
    })
}

/// The position was the source's once: a source whose WAL ends before it is another, or an older one.
fn check_end(now: &SystemIdentification, stored: &StoredHistory<'_>) -> Result<(), SourceError> {
    let ends = now.flushed_lsn;
    if stored.position <= ends {
        return Ok(());
    }
    if now.in_recovery {
        return Err(SourceError::Behind { replayed: ends, position: stored.position });
    }
    let report = ErrorReport::new(format!(
        "the source's WAL ends at {ends}, before the destination's position {}",
        stored.position
    ))
    .detail(format!(
        "{} was restored from an older state, or is an old primary that came back and had lost its last writes: what was committed \
         between is only at the destination.",
        now.host
    ))
    .hint(BRANCH_HINT);
    Err(lost(LostCause::EndsBefore, report).into())
}

/// A server that has all WAL up to the position has assigned all transaction IDs in it, whatever became of it since: a crash,
/// recovery and promotion begin behind the last one. A standby has them from its primary, and is not asked.
fn check_xid(
    now: &SystemIdentification,
    database: &SourceDatabase,
    stored: &StoredHistory<'_>,
) -> Result<(), LostHistory> {
    let Some(reached) = stored.xid.filter(|reached| !now.in_recovery && database.next_xid < *reached) else {
        return Ok(());
    };
    let report = ErrorReport::new("the source has assigned fewer transaction IDs than the one that fed the destination")
        .detail(format!(
            "Its next transaction ID is {}, and {reached} was reached before the destination's position {}. {} is a copy of the \
             source's files that was started without recovery and has been written to since, or was restored from an older state.",
            database.next_xid, stored.position, now.host
        ))
        .hint(BRANCH_HINT);
    Err(lost(LostCause::XidBefore, report))
}

/// Whether the source has invalidated the slot.
///
/// # Errors
/// [`LostHistory`] says why it has.
pub fn check_valid(slot: &Slot) -> Result<(), LostHistory> {
    let name = &slot.name;
    let reason = slot.invalidation_reason.clone().or((slot.wal_status == "lost").then(|| "wal_removed".to_owned()));
    let Some(reason) = reason else { return Ok(()) };
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
    Err(lost(
        LostCause::SlotInvalidated,
        ErrorReport::new(format!("replication slot {name} was invalidated by the source ({reason})"))
            .detail(cause)
            .hint(RESYNC_HINT),
    ))
}

fn check_confirmed(slot: &Slot, stored: &StoredHistory<'_>) -> Result<(), LostHistory> {
    let name = &slot.name;
    let Some(confirmed) = slot.confirmed_flush_lsn.filter(|confirmed| *confirmed > stored.position) else {
        return Ok(());
    };
    let report = ErrorReport::new(format!(
        "replication slot {name} is at {confirmed}, ahead of the destination's position {}",
        stored.position
    ));
    let Some(process_id) = slot.active_pid else {
        return Err(lost(
            LostCause::SlotAhead,
            report
                .detail(
                    "What was confirmed to the source is not at the destination: the destination was restored or failed over to an \
                     older state, or the slot is another one. The source will not send what lies between.",
                )
                .hint(RESYNC_HINT),
        ));
    };
    Err(lost(
        LostCause::SlotTaken,
        report
            .detail(format!(
                "Process {process_id} at the source is using it: it may feed another destination, of which this one is a copy."
            ))
            .hint(
                "Choose another name for source.slot if two destinations are to be fed; otherwise stop the other instance of \
                 headwater, and run headwater run --resnapshot.",
            ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;
    use crate::pg::Lsn;
    use crate::pg::Timeline;
    use crate::source::slot::testing::database;

    fn timeline(number: u32, history: &str) -> Timeline {
        Timeline { number, history: Some(history.parse().unwrap()) }
    }

    fn source(number: u32, history: &str) -> SystemIdentification {
        SystemIdentification {
            host: Host::Tcp { host: "db1".into(), address: None, port: 5432 },
            system_identifier: "1".into(),
            timeline: timeline(number, history),
            flushed_lsn: Lsn::new(0x900),
            in_recovery: false,
            database: "forum".into(),
        }
    }

    fn slot(confirmed: u64) -> Slot {
        Slot { confirmed_flush_lsn: Some(Lsn::new(confirmed)), ..crate::source::slot::testing::slot() }
    }

    /// Checks against a position of 0x500 on timeline 2, which left 1 at 0x100.
    fn check(
        now: &SystemIdentification,
        database: &SourceDatabase,
        slot: Option<&Slot>,
        database_id: Option<u32>,
    ) -> Result<(), SourceError> {
        let name = "hw".parse().unwrap();
        let stored = StoredHistory {
            slot: &name,
            system_identifier: "1",
            timeline: &timeline(2, "1@0/100"),
            database: "forum",
            database_id,
            position: Lsn::new(0x500),
            version: Some(180_004),
            xid: Some(1000),
        };
        check_history(now, database, slot, &stored)
    }

    fn cause(result: Result<(), SourceError>) -> Option<(LostCause, String)> {
        match result {
            Ok(()) => None,
            Err(SourceError::LostHistory(lost)) => Some((lost.cause, lost.report.lines())),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn each_way_in_which_a_history_is_lost_has_its_cause() {
        let here = source(2, "1@0/100");
        let good = slot(0x500);
        let cases: Vec<(&str, SystemIdentification, Option<Slot>, Option<LostCause>)> = vec![
            ("the same server", here.clone(), Some(good.clone()), None),
            ("a promoted one", source(3, "1@0/100,2@0/500"), Some(good.clone()), None),
            ("no slot", here.clone(), None, Some(LostCause::SlotMissing)),
            ("no slot on a promoted one", source(3, "1@0/100,2@0/600"), None, Some(LostCause::SlotMissing)),
            (
                "an invalidated slot",
                here.clone(),
                Some(Slot { wal_status: "lost".into(), ..good.clone() }),
                Some(LostCause::SlotInvalidated),
            ),
            ("a slot ahead", here.clone(), Some(slot(0x501)), Some(LostCause::SlotAhead)),
            (
                "a slot ahead that feeds somebody",
                here.clone(),
                Some(Slot { active_pid: Some(7), ..slot(0x501) }),
                Some(LostCause::SlotTaken),
            ),
            ("a slot that stepped back", here.clone(), Some(slot(0x499)), None),
            (
                "another cluster",
                SystemIdentification { system_identifier: "2".into(), ..here.clone() },
                Some(good.clone()),
                Some(LostCause::OtherCluster),
            ),
            ("the old primary", source(1, ""), Some(good.clone()), Some(LostCause::OlderTimeline)),
            ("the old primary without the slot", source(1, ""), None, Some(LostCause::OlderTimeline)),
            ("another timeline 2", source(2, "1@0/200"), Some(good.clone()), Some(LostCause::ForkedTimeline)),
            ("a fork of timeline 1", source(3, "1@0/600"), Some(good.clone()), Some(LostCause::ForkedTimeline)),
            ("promoted with loss", source(3, "1@0/100,2@0/499"), None, Some(LostCause::LeftBefore)),
            (
                "an older state",
                SystemIdentification { flushed_lsn: Lsn::new(0x499), ..here.clone() },
                None,
                Some(LostCause::EndsBefore),
            ),
        ];
        for (what, now, slot, expected) in cases {
            let found = cause(check(&now, &database(), slot.as_ref(), Some(16_384)));
            assert_eq!(found.map(|(cause, _)| cause), expected, "{what}");
        }
    }

    #[test]
    fn a_primary_that_has_assigned_fewer_transaction_ids_is_another_history() {
        let now = source(2, "1@0/100");
        let behind = SourceDatabase { next_xid: 999, ..database() };
        let (found, text) = cause(check(&now, &behind, Some(&slot(0x500)), Some(16_384))).unwrap();
        assert_eq!(found, LostCause::XidBefore);
        assert!(text.contains("next transaction ID is 999, and 1000 was reached"), "{text}");
        assert!(!text.contains("on_slot_lost"), "{text}");
        let standby = SystemIdentification { in_recovery: true, ..now };
        assert_eq!(cause(check(&standby, &behind, Some(&slot(0x500)), Some(16_384))), None);
    }

    #[test]
    fn the_old_primary_that_came_back_is_named_before_any_resnapshot() {
        let (_, text) = cause(check(&source(1, ""), &database(), None, None)).unwrap();
        assert!(text.contains("old primary that came back: db1:5432"), "{text}");
        assert!(text.contains("leads to the one that was promoted") && !text.contains("on_slot_lost"), "{text}");
        assert!(text.find("Stop this server") < text.find("--resnapshot"), "{text}");
    }

    #[test]
    fn a_standby_that_is_behind_the_position_still_replays() {
        let now = SystemIdentification { flushed_lsn: Lsn::new(0x499), in_recovery: true, ..source(2, "1@0/100") };
        assert!(matches!(check(&now, &database(), None, None), Err(SourceError::Behind { .. })));
    }

    #[test]
    fn a_database_is_known_by_its_oid_or_else_by_the_slot_that_follows_it() {
        let now = source(2, "1@0/100");
        let renamed = SourceDatabase { name: "board".into(), remembered_exists: false, ..database() };
        let moved = Slot { database: "board".into(), ..slot(0x500) };
        let lost = |database: &SourceDatabase, slot: &Slot, id| {
            cause(check(&now, database, Some(slot), id)).map(|(cause, _)| cause)
        };
        assert_eq!(lost(&renamed, &moved, Some(16_384)), None);
        assert_eq!(lost(&renamed, &moved, None), None, "an earlier version recorded only its name");
        let other = SourceDatabase { remembered_exists: true, ..renamed.clone() };
        assert_eq!(lost(&other, &moved, None), Some(LostCause::OtherDatabase), "the one that fed it is there still");
        assert_eq!(lost(&renamed, &slot(0x500), Some(99)), Some(LostCause::OtherDatabase));
        let replaced = SourceDatabase { id: 99, ..database() };
        let (cause, text) = cause(check(&now, &replaced, Some(&moved), Some(16_384))).unwrap();
        assert_eq!(cause, LostCause::OtherDatabase);
        assert!(text.contains("another one has its name now") && text.contains("belongs to database board"), "{text}");
    }

    #[test]
    fn an_invalidated_slot_is_lost_with_the_setting_that_did_it() {
        let now = source(2, "1@0/100");
        let lost = |slot: Slot| cause(check(&now, &database(), Some(&slot), None)).unwrap().1;
        let text = lost(Slot { wal_status: "lost".into(), ..slot(1) });
        assert!(text.contains("max_slot_wal_keep_size"), "{text}");
        let text = lost(Slot { invalidation_reason: Some("idle_timeout".into()), ..slot(1) });
        assert!(text.contains("idle_replication_slot_timeout"), "{text}");
    }
}
