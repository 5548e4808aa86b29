//! How many locks a copy holds at once, and whether a server's lock table has room for them.
//!
//! Asked by `table_sync` before it locks or creates anything, by `destination::publish` once it is known which tables
//! differ, and by `check`. The counts are of what was seen in pg_locks on 15 and 18: a lock is held on a relation until its
//! transaction ends, and planning a statement locks the indexes of its tables, too.
//!
//! All sessions of a server share one lock table. When it is full, *any* session that asks next gets "out of shared memory" (53200),
//! also one of another program. So headwater refuses what does not fit before it takes the first lock.
//!
//! The size is the documented one, max_locks_per_transaction * (max_connections + max_prepared_transactions) (runtime-config-locks,
//! 14 to 18). What a server really has is a little more: background processes count, too (lock.c, `NLOCKENTS`; postinit.c,
//! `InitializeMaxBackends`). That, and a tenth of the documented size, is left to others.

use crate::catalog::schema::TableDefinition;
use crate::pg::ErrorReport;

/// A server's lock table, and how much of it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockTable {
    /// max_locks_per_transaction
    pub per_transaction: u64,
    /// max_connections + max_prepared_transactions
    pub transactions: u64,
    /// Objects that are locked now, by anybody.
    pub in_use: u64,
}

/// The share that is left to other sessions: one part of so many.
const OTHERS_PART: u64 = 10;
/// Catalogs, bookkeeping and other things that every copy locks, whatever its tables.
const FIXED: u64 = 100;
/// The lock table's second half counts holders; it has room for so many per lock (lock.c, `InitLocks`).
const HOLDERS_PER_LOCK: u64 = 2;

impl LockTable {
    /// How many locks we may hold at once.
    pub fn available(&self) -> u64 {
        let size = self.per_transaction.saturating_mul(self.transactions);
        (size - size / OTHERS_PART).saturating_sub(self.in_use)
    }

    /// Whether `need` locks fit; otherwise what to say. `doing` names the work: "the copy of 500 tables".
    pub fn lacks_room(&self, end: &str, doing: &str, need: u64) -> Option<ErrorReport> {
        let available = self.available();
        if need <= available {
            return None;
        }
        let LockTable { per_transaction, transactions, in_use } = self;
        let size = per_transaction.saturating_mul(*transactions);
        // Twice what is missing need not be asked for twice; settings are round numbers.
        let wanted = need.saturating_add(*in_use).saturating_mul(OTHERS_PART) / (OTHERS_PART - 1);
        let setting = (wanted / (*transactions).max(1) + 1).next_multiple_of(64);
        Some(
            ErrorReport::new(format!(
                "{doing} needs about {need} locks at once at the {end}, and only {available} can be had there"
            ))
            .detail(format!(
                "The server has room for {size} (max_locks_per_transaction = {per_transaction}, times {transactions} for \
                 max_connections and max_prepared_transactions). {in_use} are in use, and a tenth is left to other sessions: when \
                 the room is used up, every session that asks for a lock fails, with \"out of shared memory\"."
            ))
            .hint(format!(
                "Raise the setting at the {end}, and restart that server:\nALTER SYSTEM SET max_locks_per_transaction = {setting};"
            )),
        )
    }

    /// How many of `wanted` readers may hold all of `relations` at the same time.
    pub fn readers(&self, wanted: usize, relations: u64) -> usize {
        // The session that locks the tables first holds each of them, too.
        let holders = self.available().saturating_mul(HOLDERS_PER_LOCK) / relations.max(1);
        wanted.min(usize::try_from(holders.saturating_sub(1)).unwrap_or(usize::MAX)).max(1)
    }
}

/// A table and its partitions.
pub fn relations(table: &TableDefinition) -> u64 {
    1 + table.partitions.as_ref().map_or(0, |partitions| count(partitions.len()))
}

fn indexes(table: &TableDefinition) -> u64 {
    count(table.indexes.len()) * relations(table)
}

fn sequences(table: &TableDefinition) -> u64 {
    count(table.columns.iter().filter(|column| column.sequence.is_some()).count())
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// At the source: one session that locks the tables and `readers` that hold them, too. The flag of a table says whether a query reads
/// it: then its indexes are locked with it.
pub fn of_reading<'a>(tables: impl Iterator<Item = (&'a TableDefinition, bool)>, readers: usize) -> u64 {
    let (mut locked, mut held) = (0, 0);
    for (table, is_read_by_query) in tables {
        let relations = relations(table);
        let indexes = if is_read_by_query { indexes(table) } else { 0 };
        locked += relations + indexes;
        held += relations * (count(readers) + 1) + indexes * count(readers);
    }
    FIXED + locked.max(held / HOLDERS_PER_LOCK)
}

/// One statement that compares a table: a partition and its indexes, or, where all are read through their root (`whole_tree`), those
/// of each.
pub fn of_comparing(table: &TableDefinition, whole_tree: bool) -> u64 {
    if whole_tree { relations(table) + indexes(table) } else { 1 + count(table.indexes.len()) }
}

/// How many sessions may run such statements at the same time, which need `each` at most; or what to say when not even one may.
///
/// # Errors
/// A report with the numbers and the setting to raise.
pub fn comparing_sessions(
    room: &LockTable,
    end: &str,
    doing: &str,
    wanted: usize,
    each: u64,
) -> Result<usize, ErrorReport> {
    if let Some(report) = room.lacks_room(end, doing, each.saturating_add(FIXED)) {
        return Err(report);
    }
    let sessions = (room.available() - FIXED) / each.max(1);
    Ok(wanted.min(usize::try_from(sessions).unwrap_or(usize::MAX)).max(1))
}

/// What a repair of these tables locks in one transaction at the source, where it reads rows by their keys, and at the destination.
pub fn of_repairing<'a>(tables: impl Iterator<Item = (&'a TableDefinition, &'a TableDefinition)>) -> (u64, u64) {
    tables.fold((FIXED, FIXED), |(at_source, at_destination), (source, destination)| {
        (at_source + of_comparing(source, true), at_destination + of_writing(destination))
    })
}

/// What will be done with a table at the destination.
#[derive(Clone, Copy, Debug)]
pub enum TableToPublish<'a> {
    /// It is missing: one like the source's is moved to its place.
    Move(&'a TableDefinition),
    /// It exists: it is compared with its staging, or filled, which takes as many.
    Compare(&'a TableDefinition),
}

/// A table's TOAST table and its index: written to, they stay locked.
const TOAST: u64 = 2;

/// What is locked of a table at the destination when its rows are written.
pub fn of_writing(table: &TableDefinition) -> u64 {
    indexes(table) + relations(table) * (1 + TOAST)
}

/// At the destination: the transaction that publishes, or compares, all of these.
pub fn of_publishing<'a>(tables: impl Iterator<Item = TableToPublish<'a>>) -> u64 {
    /// A staging table, the index on its key, and the list of keys that differ.
    const STAGING: u64 = 3;
    let each = tables.map(|table| match table {
        TableToPublish::Move(table) => relations(table) + indexes(table) + sequences(table),
        TableToPublish::Compare(table) => STAGING + indexes(table) + relations(table),
    });
    FIXED + each.sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: LockTable = LockTable { per_transaction: 64, transactions: 100, in_use: 60 };

    #[test]
    fn lock_budget_names_the_setting_to_raise_only_when_locks_do_not_fit() {
        assert_eq!(DEFAULT.available(), 5_700);
        assert_eq!(DEFAULT.lacks_room("destination", "the copy", 5_700), None);
        let report = DEFAULT.lacks_room("destination", "the copy of 5000 tables", 20_000).unwrap();
        assert_eq!(
            report.message,
            "the copy of 5000 tables needs about 20000 locks at once at the destination, and only 5700 can be had there"
        );
        assert!(report.hint.unwrap().ends_with("ALTER SYSTEM SET max_locks_per_transaction = 256;"));
        assert!(LockTable { per_transaction: 256, ..DEFAULT }.lacks_room("destination", "it", 20_000).is_none());
    }

    #[test]
    fn comparing_sessions_are_as_many_as_fit_and_no_room_for_one_is_an_error() {
        assert_eq!(comparing_sessions(&DEFAULT, "source", "it", 4, 1_000), Ok(4));
        assert_eq!(comparing_sessions(&DEFAULT, "source", "it", 4, 2_000), Ok(2));
        assert_eq!(comparing_sessions(&DEFAULT, "source", "it", 4, 5_600), Ok(1));
        assert!(comparing_sessions(&DEFAULT, "source", "it", 4, 5_601).is_err());
    }

    #[test]
    fn readers_are_as_many_as_may_hold_all_tables_and_one_at_least() {
        assert_eq!(DEFAULT.readers(8, 100), 8);
        assert_eq!(DEFAULT.readers(8, 3_000), 2, "three hold 9,000 of 11,400");
        assert_eq!(DEFAULT.readers(8, 100_000), 1);
    }
}
