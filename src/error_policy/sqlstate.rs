//! What a server's SQLSTATE means for the service: the errcodes appendix (18), class by class.
//!
//! Asked by `decide` for errors outside of batches (a row's error inside one is a conflict). Every class of the
//! appendix is named here, so that each has a policy that somebody chose; what is not known is said, and tried again.

use crate::error_policy::decision::Decision;
use crate::session::SqlState;

/// A class of SQLSTATEs, as far as it has a policy of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SqlStateClass {
    Connection,
    Unsupported,
    Row,
    TransactionState,
    StatementName,
    Authorization,
    Rollback,
    Catalog,
    Resources,
    ProgramLimit,
    Prerequisite,
    Intervention,
    System,
    SnapshotTooOld,
    Configuration,
    Internal,
    Other,
}

fn class_of(code: SqlState) -> SqlStateClass {
    match code.class() {
        "08" => SqlStateClass::Connection,
        "0A" => SqlStateClass::Unsupported,
        // 21 cardinality, 22 data, 23 integrity, 27 triggered change, 44 WITH CHECK OPTION, P0 RAISE.
        "21" | "22" | "23" | "27" | "44" | "P0" => SqlStateClass::Row,
        "25" | "2D" | "3B" | "0B" => SqlStateClass::TransactionState,
        "24" | "26" | "34" => SqlStateClass::StatementName,
        "28" | "0L" | "0P" | "2B" => SqlStateClass::Authorization,
        "40" => SqlStateClass::Rollback,
        "3D" | "3F" | "42" => SqlStateClass::Catalog,
        "53" => SqlStateClass::Resources,
        "54" => SqlStateClass::ProgramLimit,
        "55" => SqlStateClass::Prerequisite,
        "57" => SqlStateClass::Intervention,
        "58" => SqlStateClass::System,
        "72" => SqlStateClass::SnapshotTooOld,
        "F0" => SqlStateClass::Configuration,
        "XX" => SqlStateClass::Internal,
        // 00 to 03 are no errors; 09, 0F, 0Z, 10, 20, 2F, 38, 39, HV belong to features that are not used here; the rest is
        // somebody's own or a later PostgreSQL's.
        _ => SqlStateClass::Other,
    }
}

/// What to do about an error that a server reported. `lost` is the reason when the session is what was lost;
/// `operator` decides what needs one.
pub(super) fn decide(code: SqlState, lost: &'static str, operator: &dyn Fn(&'static str) -> Decision) -> Decision {
    match code.as_str() {
        // The position moved under a statement of ours: read it again.
        "HW001" => return Decision::Retry("position_moved"),
        // Somebody speaks another protocol: a proxy, say. It will not get better by itself.
        "08P01" => return operator("protocol"),
        // A server timeout ended a transaction of ours; a failed one keeps failing until it is left.
        "25P02" | "25P03" | "25P04" => return Decision::Retry("transaction_timeout"),
        // A standby where a primary was, or default_transaction_read_only.
        "25006" => return Decision::Halt("read_only"),
        "53100" => return Decision::Halt("disk_full"),
        // Memory comes back when others let go of it.
        "53200" => return Decision::Retry("out_of_memory"),
        "53300" => return Decision::Halt("too_many_connections"),
        // The slot's previous walsender is still there, or a lock is held: both pass.
        "55006" => return Decision::Retry("slot_in_use"),
        "55P03" => return Decision::Retry("lock_timeout"),
        // Somebody cancelled a statement, or a timeout that we do not own ended it.
        "57014" => return Decision::Retry("canceled"),
        // The database was dropped under us.
        "57P04" => return operator("database_dropped"),
        // A damaged page or index: reading it again gives the same, and somebody must know.
        "XX001" | "XX002" => return Decision::Halt("data_corrupted"),
        _ => {}
    }
    match class_of(code) {
        // The session is gone: links break, servers shut down and start up.
        SqlStateClass::Connection | SqlStateClass::Intervention => Decision::Retry(lost),
        // Deadlocks and serialization failures: the same transaction will do next time.
        SqlStateClass::Rollback => Decision::Retry("deadlock"),
        // What a session held is not what we left there; a new session holds nothing.
        SqlStateClass::TransactionState | SqlStateClass::StatementName => Decision::Retry("session_state"),
        // The rows that a snapshot saw are gone: another snapshot.
        SqlStateClass::SnapshotTooOld => Decision::Retry("snapshot_lost"),
        // A wrong password or role, a missing database, privilege or object, a feature that is not there.
        SqlStateClass::Authorization | SqlStateClass::Catalog | SqlStateClass::Unsupported => operator("refused"),
        // The server is out of something that others may give back.
        SqlStateClass::Resources => Decision::Halt("resources"),
        // An object that is not ready: a slot that cannot be used, a table without replica identity.
        SqlStateClass::Prerequisite => Decision::Halt("not_in_state"),
        // The server's disk or files.
        SqlStateClass::System => Decision::Halt("system_error"),
        // A row's matter that reached us outside of a batch: publishing a snapshot, say.
        SqlStateClass::Row | SqlStateClass::ProgramLimit => Decision::Halt("constraint"),
        // The server's own configuration file, an internal error, and all that is not known: stop, say it, try again.
        SqlStateClass::Configuration | SqlStateClass::Internal | SqlStateClass::Other => Decision::Halt("server_error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str) -> Decision {
        decide(SqlState::parse(code), "lost", &|_| Decision::End)
    }

    #[test]
    fn every_class_of_the_appendix_has_a_policy() {
        let (retry, halt, end) = (Decision::Retry, Decision::Halt, Decision::End);
        for (code, decision) in [
            ("08006", retry("lost")),
            ("08P01", end),
            ("0A000", end),
            ("21000", halt("constraint")),
            ("22001", halt("constraint")),
            ("23505", halt("constraint")),
            ("24000", retry("session_state")),
            ("25001", retry("session_state")),
            ("25006", halt("read_only")),
            ("25P02", retry("transaction_timeout")),
            ("25P03", retry("transaction_timeout")),
            ("25P04", retry("transaction_timeout")),
            ("26000", retry("session_state")),
            ("27000", halt("constraint")),
            ("28000", end),
            ("28P01", end),
            ("3D000", end),
            ("3F000", end),
            ("40001", retry("deadlock")),
            ("40P01", retry("deadlock")),
            ("42501", end),
            ("42P01", end),
            ("42704", end),
            ("44000", halt("constraint")),
            ("53000", halt("resources")),
            ("53100", halt("disk_full")),
            ("53200", retry("out_of_memory")),
            ("53300", halt("too_many_connections")),
            ("53400", halt("resources")),
            ("54000", halt("constraint")),
            ("55000", halt("not_in_state")),
            ("55006", retry("slot_in_use")),
            ("55P03", retry("lock_timeout")),
            ("57014", retry("canceled")),
            ("57P01", retry("lost")),
            ("57P02", retry("lost")),
            ("57P03", retry("lost")),
            ("57P04", end),
            ("57P05", retry("lost")),
            ("58030", halt("system_error")),
            ("58P01", halt("system_error")),
            ("72000", retry("snapshot_lost")),
            ("F0000", halt("server_error")),
            ("HV000", halt("server_error")),
            ("P0001", halt("constraint")),
            ("XX000", halt("server_error")),
            ("XX001", halt("data_corrupted")),
            ("HW001", retry("position_moved")),
            ("ZZ999", halt("server_error")),
        ] {
            assert_eq!(of(code), decision, "{code}");
        }
    }
}
