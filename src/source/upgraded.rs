//! Whether a cluster of another system identifier is the old source after pg_upgrade, which from 17 on keeps logical slots.
//!
//! Asked by `pipeline` where an operator has said so (`run --accept-source-identity`). In come what the server says of itself and
//! what the bookkeeping remembers; out goes the position from which on the kept slot continues, or a refusal. Nothing is read or
//! written here.
//!
//! Why no row is lost: pg_upgrade refuses to begin unless each slot of the old cluster has sent everything up to its shutdown
//! checkpoint, so the destination, which confirms only what it has stored, has all of it. It then makes the slot again at the end
//! of the new cluster's WAL, which begins behind the old one's (17 to 18: position 0/18879C8, kept slot 0/8000110). So the slot is
//! ahead of the position, and nothing was written between. OIDs of tables are kept, too, which a dump and restore would not do.

use super::error::SourceError;
use super::history::{SourceDatabase, StoredHistory, check_valid};
use super::slot::{Slot, check_slot};
use crate::pg::{ErrorReport, Lsn, QualifiedName, printable};
use crate::session::SystemIdentification;

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
    if now.in_recovery {
        return Err(not_accepted("It is a standby.".to_owned()));
    }
    if database.name != stored.database {
        return Err(not_accepted(format!(
            "The destination was fed from database {}, and source.url leads to {}.",
            printable(stored.database),
            printable(&database.name)
        )));
    }
    let Some(slot) = slot else {
        return Err(not_accepted(format!("Replication slot {} does not exist there: it was not kept.", stored.slot)));
    };
    check_slot(slot, database)?;
    check_valid(slot)?;
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
        let name = "hw".parse().unwrap();
        let timeline = Timeline { number: 3, history: None };
        let stored = StoredHistory {
            slot: &name,
            system_identifier: "1",
            timeline: &timeline,
            database: "forum",
            database_id: Some(5),
            position: Lsn::new(0x500),
        };
        let database = SourceDatabase { id: 16_384, name: "forum".into(), remembered_exists: true };
        kept_slot_position(now, &database, slot, &stored, replaced)
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
        ] {
            let replaced: Vec<QualifiedName> = replaced.into_iter().collect();
            let refused = position(&now, slot.as_ref(), &replaced).unwrap_err();
            assert!(refused.contains(said), "{said}: {refused}");
        }
    }
}
