//! Whether a cluster of another system identifier is the old source after pg_upgrade, which from 17 on keeps logical slots.
//!
//! Asked by `supervisor` where an operator has said so (`run --accept-source-identity`). In come what the server says of itself and
//! what the bookkeeping remembers; out goes the position from which on the kept slot continues, or a refusal. Nothing is read or
//! written here.
//!
//! Why no row is lost: pg_upgrade refuses to begin unless each slot of the old cluster has sent everything up to its shutdown
//! checkpoint, so the destination, which confirms only what it has stored, has all of it. It then makes the slot again at the end
//! of the new cluster's WAL, which begins behind the old one's (17 to 18: position 0/18879C8, kept slot 0/8000110). So the slot is
//! ahead of the position, and nothing was written between. OIDs of the database and of tables are kept, too, which a dump and
//! restore would not do, and the next transaction ID. A cluster that the same script has made may have all of that by chance, so
//! `supervisor` says how to compare the rows. Relation files are kept as well; the start looks at them for every table
//! (`fingerprint`), since any VACUUM FULL replaces one.

use super::error::SourceError;
use super::history::check_valid;
use super::slot::{Slot, check_slot};
use crate::pg::{ErrorReport, Lsn, QualifiedName, printable};
use crate::session::SystemIdentification;
use crate::source::stored_history::{KEEPS_SLOTS_SINCE, SourceDatabase, StoredHistory};

/// The position from which on the slot of this server continues what the destination has. `replaced`: the followed tables that
/// have another OID here.
///
/// # Errors
/// [`SourceError::Refused`] where something speaks against pg_upgrade; [`SourceError::LostHistory`] for an invalidated slot.
pub fn kept_slot_position(
    now: &SystemIdentification,
    database: &SourceDatabase,
    slot: Option<&Slot>,
    stored: &StoredHistory<'_>,
    replaced: &[QualifiedName],
) -> Result<Lsn, SourceError> {
    // Long: one list of what speaks against it.
    if now.in_recovery {
        return Err(not_accepted("It is a standby.".to_owned()));
    }
    if let Some(version) = [Some(database.server_version), stored.version].into_iter().flatten().min()
        && version < KEEPS_SLOTS_SINCE
    {
        return Err(not_accepted(format!(
            "pg_upgrade keeps replication slots only from 17 on, of a cluster of 17 or later, and one of the two is of {}: what was \
             written since the position cannot be fetched.",
            major(version)
        )));
    }
    if let Some(before) = stored.version.map(major).filter(|before| *before > major(database.server_version)) {
        return Err(not_accepted(format!(
            "It is of version {}, and the one that fed the destination was of {before}: pg_upgrade never leads to a lower one.",
            major(database.server_version)
        )));
    }
    if database.name != stored.database {
        return Err(not_accepted(format!(
            "The destination was fed from database {}, and source.url leads to {}.",
            printable(stored.database),
            printable(&database.name)
        )));
    }
    if let Some(id) = stored.database_id.filter(|id| *id != database.id) {
        return Err(not_accepted(format!(
            "Database {} has the OID {} there, and had {id}: pg_upgrade keeps it.",
            printable(&database.name),
            database.id
        )));
    }
    if let Some(reached) = stored.xid.filter(|reached| database.next_xid < *reached) {
        return Err(not_accepted(format!(
            "Its next transaction ID is {}, and {reached} was reached at the one that fed the destination: pg_upgrade keeps it.",
            database.next_xid
        )));
    }
    let Some(slot) = slot else {
        return Err(not_accepted(format!("Replication slot {} does not exist there: it was not kept.", stored.slot)));
    };
    check_slot(slot, database)?;
    check_valid(slot)?;
    if slot.two_phase {
        return Err(not_accepted(format!(
            "Replication slot {} decodes prepared transactions (two_phase), which headwater never asks for, and pg_upgrade keeps that.",
            slot.name
        )));
    }
    if let Some(process_id) = slot.active_pid {
        return Err(not_accepted(format!("Process {process_id} there is using replication slot {}.", slot.name)));
    }
    if let Some(table) = replaced.first() {
        return Err(not_accepted(format!(
            "Table {table} has another OID there, and pg_upgrade keeps them: it was dumped and restored, or made again."
        )));
    }
    let Some(confirmed) = slot.confirmed_flush_lsn.filter(|confirmed| *confirmed >= stored.position) else {
        return Err(not_accepted(format!(
            "Replication slot {} is behind the destination's position {}, and pg_upgrade makes it ahead of that.",
            slot.name, stored.position
        )));
    };
    if confirmed > now.flushed_lsn {
        let ends = now.flushed_lsn;
        return Err(not_accepted(format!(
            "Its WAL ends at {ends}, before replication slot {} at {confirmed}.",
            slot.name
        )));
    }
    Ok(confirmed)
}

fn major(version: i32) -> i32 {
    version / 10_000
}

fn not_accepted(detail: String) -> SourceError {
    SourceError::Refused(
        ErrorReport::new("this source is not the one that fed the destination, nor what pg_upgrade makes of it").detail(detail).hint(
            "Correct source.url. If this cluster is to feed the destination from now on, run headwater run --resnapshot: all tables \
             become equal to it.",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;
    use crate::pg::Timeline;
    use crate::source::slot::testing::database;

    fn upgraded() -> SystemIdentification {
        SystemIdentification {
            host: Host::Tcp { host: "db1".into(), address: None, port: 5432 },
            system_identifier: "2".into(),
            timeline: Timeline { number: 1, history: Some(crate::pg::TimelineHistory::default()) },
            flushed_lsn: Lsn::new(0x900),
            in_recovery: false,
            database: "forum".into(),
        }
    }

    fn kept() -> Slot {
        Slot { confirmed_flush_lsn: Some(Lsn::new(0x800)), ..crate::source::slot::testing::slot() }
    }

    /// With a position of 0x500.
    fn position(now: &SystemIdentification, slot: Option<&Slot>, replaced: &[QualifiedName]) -> Result<Lsn, String> {
        position_in(&database(), Some(170_010), now, slot, replaced)
    }

    fn position_in(
        database: &SourceDatabase,
        version: Option<i32>,
        now: &SystemIdentification,
        slot: Option<&Slot>,
        replaced: &[QualifiedName],
    ) -> Result<Lsn, String> {
        let name = "hw".parse().unwrap();
        let timeline = Timeline { number: 3, history: None };
        let stored = StoredHistory {
            slot: &name,
            system_identifier: "1",
            timeline: &timeline,
            database: "forum",
            database_id: Some(16_384),
            position: Lsn::new(0x500),
            version,
            xid: Some(1000),
        };
        kept_slot_position(now, database, slot, &stored, replaced)
            .map_err(|error| if let SourceError::Refused(report) = &error { report.lines() } else { error.to_string() })
    }

    #[test]
    fn a_kept_slot_continues_where_it_begins_and_nothing_else_is_accepted() {
        assert_eq!(position(&upgraded(), Some(&kept()), &[]), Ok(Lsn::new(0x800)));
        let at_the_position = Slot { confirmed_flush_lsn: Some(Lsn::new(0x500)), ..kept() };
        assert_eq!(position(&upgraded(), Some(&at_the_position), &[]), Ok(Lsn::new(0x500)));
        let table: QualifiedName = "public.t".parse().unwrap();
        let lost = Slot { wal_status: "lost".into(), ..kept() };
        for (now, slot, replaced, said) in [
            (upgraded(), None, None, "was not kept"),
            (
                upgraded(),
                Some(Slot { plugin: "wal2json".into(), ..kept() }),
                None,
                "is not the one that headwater created",
            ),
            (upgraded(), Some(lost), None, "wal_removed"),
            (upgraded(), Some(Slot { active_pid: Some(7), ..kept() }), None, "Process 7"),
            (upgraded(), Some(kept()), Some(table), "another OID"),
            (upgraded(), Some(Slot { confirmed_flush_lsn: Some(Lsn::new(0x4ff)), ..kept() }), None, "is behind"),
            (upgraded(), Some(Slot { confirmed_flush_lsn: None, ..kept() }), None, "is behind"),
            (SystemIdentification { flushed_lsn: Lsn::new(0x7ff), ..upgraded() }, Some(kept()), None, "WAL ends at"),
            (SystemIdentification { in_recovery: true, ..upgraded() }, Some(kept()), None, "a standby"),
            (upgraded(), Some(Slot { two_phase: true, ..kept() }), None, "two_phase"),
        ] {
            let replaced: Vec<QualifiedName> = replaced.into_iter().collect();
            let refused = position(&now, slot.as_ref(), &replaced).unwrap_err();
            assert!(refused.contains(said), "{said}: {refused}");
        }
    }

    #[test]
    fn what_pg_upgrade_keeps_must_have_been_kept() {
        let found =
            |database: SourceDatabase, version| position_in(&database, version, &upgraded(), Some(&kept()), &[]);
        assert_eq!(found(database(), None), Ok(Lsn::new(0x800)), "an earlier version did not record it");
        assert_eq!(
            found(database(), Some(180_000)),
            Ok(Lsn::new(0x800)),
            "a cluster may be made again by the same version"
        );
        for (other, version, said) in [
            (SourceDatabase { server_version: 160_009, ..database() }, None, "one of the two is of 16"),
            (SourceDatabase { server_version: 150_009, ..database() }, Some(160_000), "one of the two is of 15"),
            (database(), Some(169_999), "one of the two is of 16"),
            (SourceDatabase { server_version: 170_009, ..database() }, Some(180_001), "never leads to a lower one"),
            (SourceDatabase { id: 16_385, ..database() }, Some(170_000), "has the OID 16385 there, and had 16384"),
            (SourceDatabase { next_xid: 999, ..database() }, Some(170_000), "Its next transaction ID is 999, and 1000"),
        ] {
            let refused = found(other, version).unwrap_err();
            assert!(refused.contains(said), "{said}: {refused}");
        }
    }
}
