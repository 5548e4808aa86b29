//! A settled snapshot at a slot's consistent point, and the locks that keep its tables from being rewritten before
//! they are read.
//!
//! Called by `supervisor` in this order; the readers' COPY statements stand between the last two:
//!
//! ```text
//! TableLocks::take          ACCESS SHARE on every table, in a transaction without an xid
//! TableLocks::check         the tables are what the catalog said before they were locked
//!   readers lock them, too
//! create_slot               waits for running transactions; exports a snapshot that dies at the next command on that session
//! hold_snapshot             imports it, waits until it has settled, exports it again
//!   readers import the second export
//! HeldSnapshot::release     once all rows are read
//! TableLocks::release
//! ```
//!
//! **Why locks first.** A table that is rewritten (ALTER TABLE … ADD COLUMN … DEFAULT random()) between slot and
//! first read looks empty under the older snapshot, and the stream never repairs it (seen on 15 and 18: 0 of 1,000
//! rows). Every session that queries one of the tables afterwards has held such a lock since before the slot: in the
//! queue behind ACCESS EXCLUSIVE it would wait for a session that waits for us.
//!
//! **Why the catalog is read twice.** A session that reads it while another alters a table waits for the other, and then
//! gets the table as it was before: the query's snapshot is older than the wait. Rows read by those columns would lack what
//! the change has filled, and the stream would not send that any more. Under the locks nobody alters them.
//!
//! **Why settle.** The exported snapshot can name a transaction as committed a moment before its commit is in CLOG
//! and it has left the list of running ones. A session that reads one of its rows in that moment takes it for aborted,
//! loses the row, *and marks the row dead at the source forever* (seen: 27 rows on 17.10 and 18.4 in 326 rounds). So no
//! session reads while a transaction that the snapshot shows is still running.
//!
//! Bounds: locks wait at most `lock_timeout`; settling waits as long as a commit takes to become visible, which is
//! microseconds, at most [`SETTLE_MAX`].

use std::time::{Duration, Instant};

use super::error::SourceError;
use super::running::{Running, ending_hint, lock_holder};
use crate::catalog::schema::TableDefinition;
use crate::pg::{ErrorReport, QualifiedName};
use crate::session::{SessionError, Sql, SqlClient, SqlState, describe_tables};

/// A commit that takes longer to become visible is stuck, and the snapshot is given up.
const SETTLE_MAX: Duration = Duration::from_secs(60);

const LOCKING: &str = "locking the tables of the snapshot";

/// ACCESS SHARE on the tables of a snapshot, held by a session of its own.
pub struct TableLocks {
    client: SqlClient,
}

impl TableLocks {
    /// Locks every table, the largest first.
    ///
    /// # Errors
    /// [`SourceError::Refused`] when another session holds a table for longer than `lock_timeout`, naming it.
    pub async fn take(
        sql: &Sql,
        tables: &[&TableDefinition],
        lock_timeout: Duration,
    ) -> Result<TableLocks, SourceError> {
        let client = sql.connect().await?;
        let mut tables: Vec<&TableDefinition> = tables.to_vec();
        tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
        let bound = format!("SET LOCAL lock_timeout = {}", lock_timeout.as_millis());
        client.statement_behind("BEGIN", LOCKING, &bound).await?;
        // It bounds the wait for each table, and one statement waits for all of them.
        let each = client.timeout();
        let all = each.saturating_mul(u32::try_from(tables.len()).unwrap_or(u32::MAX).max(1));
        let client = client.with_timeout(all);
        let are_locked = lock_together(&client, &tables).await?;
        let client = client.with_timeout(each);
        if are_locked {
            return Ok(TableLocks { client });
        }
        for table in tables {
            let name = table.name();
            let statement = format!("LOCK TABLE {} IN ACCESS SHARE MODE", name.sql());
            let mut locked = client.statement_behind("SAVEPOINT locking", LOCKING, &statement).await;
            if let Err(error) = &locked
                && error.code() == Some(SqlState::new(b"42501"))
            {
                // LOCK needs a privilege on the whole table; who may read some columns takes the same lock by reading none.
                let statement = format!("SELECT FROM {} LIMIT 0", name.sql());
                locked = client.statement_behind("ROLLBACK TO SAVEPOINT locking", LOCKING, &statement).await;
            }
            if let Err(error) = locked {
                client.batch("unlocking the tables of the snapshot", "ROLLBACK").await?;
                return Err(explain_lock(&client, error, &[name]).await);
            }
        }
        Ok(TableLocks { client })
    }

    /// Makes sure that the tables are still what was read of them before they were locked.
    ///
    /// # Errors
    /// [`SourceError::Changed`] names the first one that is not.
    pub async fn check(&self, tables: &[&TableDefinition]) -> Result<(), SourceError> {
        let names: Vec<QualifiedName> = tables.iter().map(|table| table.name()).collect();
        let now = describe_tables(&self.client, &names).await?;
        let is_as_it_was = |table: &&&TableDefinition| {
            let mut now = now.iter().filter(|now| now.id == table.id);
            // How large it is says nothing about what it is.
            now.any(|now| TableDefinition { bytes: table.bytes, ..now.clone() } == ***table)
        };
        match tables.iter().find(|table| !is_as_it_was(table)) {
            Some(table) => Err(SourceError::Changed(table.name())),
            None => Ok(()),
        }
    }

    /// The session, for questions about the tables: any other would queue behind a session that waits to lock them.
    pub fn client(&self) -> &SqlClient {
        &self.client
    }

    /// A session that waits for one of the tables, with its process.
    ///
    /// # Errors
    /// [`SourceError`] when the session is lost, and with it all locks.
    pub async fn waited_for(&self) -> Result<Option<(QualifiedName, i32)>, SourceError> {
        let sql = "SELECT n.nspname::text, c.relname::text, w.pid FROM pg_catalog.pg_locks o
                   JOIN pg_catalog.pg_locks w ON w.database = o.database AND w.relation = o.relation AND NOT w.granted
                   JOIN pg_catalog.pg_class c ON c.oid = o.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE o.pid = pg_catalog.pg_backend_pid() AND o.locktype = 'relation' AND o.mode = 'AccessShareLock'
                     AND n.nspname <> 'pg_catalog' LIMIT 1";
        let row = self.client.query_opt("looking for sessions that wait for the tables", sql, &[]).await?;
        row.map(|row| Ok((QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?), row.get(2)?))).transpose()
    }

    /// Lets go of all.
    ///
    /// # Errors
    /// [`SourceError`] when the session was lost before, so that the tables were not locked all the time.
    pub async fn release(self) -> Result<(), SourceError> {
        Ok(self.client.batch("unlocking the tables of the snapshot", "COMMIT").await?)
    }
}

/// Locks all tables by one statement, in their order. `false`: one cannot be locked so, which the caller finds; none is locked.
async fn lock_together(client: &SqlClient, tables: &[&TableDefinition]) -> Result<bool, SourceError> {
    if tables.is_empty() {
        return Ok(true);
    }
    let statement = lock_all(tables.iter().map(|table| table.name()), "");
    match client.statement_behind("SAVEPOINT locking", LOCKING, &statement).await {
        Ok(()) => Ok(true),
        // It was waited for as long as it may be.
        Err(error) if error.code() == Some(SqlState::new(b"55P03")) => {
            client.batch("unlocking the tables of the snapshot", "ROLLBACK").await?;
            let names: Vec<QualifiedName> = tables.iter().map(|table| table.name()).collect();
            Err(explain_lock(client, error, &names).await)
        }
        Err(error) if error.server().is_some_and(|server| !server.fatal) => {
            client.batch(LOCKING, "ROLLBACK TO SAVEPOINT locking").await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// The statement that locks tables as a copy does, one after another.
pub fn lock_all(tables: impl Iterator<Item = QualifiedName>, ending: &str) -> String {
    let names: Vec<String> = tables.map(|name| name.sql()).collect();
    format!("LOCK TABLE {} IN ACCESS SHARE MODE{ending}", names.join(", "))
}

/// Turns a failure to get a lock into a report of who holds it; `client` must be in no transaction.
pub(super) async fn explain_lock(client: &SqlClient, error: SessionError, tables: &[QualifiedName]) -> SourceError {
    if error.code() != Some(SqlState::new(b"55P03")) {
        return error.into();
    }
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    match exclusive_holder(client, &names).await {
        Ok(Some((table, holder))) => {
            let needs = "A snapshot needs ACCESS SHARE on it";
            let report = ErrorReport::new(format!("table {table} is locked at the source"))
                .detail(format!("{needs}. ACCESS EXCLUSIVE is held by {}.", holder.words()));
            SourceError::Refused(match ending_hint(&[holder]) {
                Some(hint) => report.hint(hint),
                None => report,
            })
        }
        Ok(None) | Err(_) => SourceError::Refused(
            ErrorReport::new("a table of the set was locked at the source")
                .hint("Wait for that session's transaction, or end it."),
        ),
    }
}

/// Who holds ACCESS EXCLUSIVE on one of these tables, or on a partition of one.
async fn exclusive_holder(
    client: &SqlClient,
    names: &[String],
) -> Result<Option<(QualifiedName, Running)>, SessionError> {
    let sql = "WITH RECURSIVE tree (relid) AS (
                   SELECT pg_catalog.to_regclass(name)::pg_catalog.oid FROM pg_catalog.unnest($1::text[]) AS name
                   UNION SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.relid)
               SELECT n.nspname::text, c.relname::text, l.pid, l.virtualtransaction FROM pg_catalog.pg_locks l
               JOIN pg_catalog.pg_class c ON c.oid = l.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE l.relation IN (SELECT tree.relid FROM tree)
                 AND l.mode = 'AccessExclusiveLock' AND l.granted
                 AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) LIMIT 1";
    let Some(row) = client.query_opt("looking for the lock's holder", sql, &[&names]).await? else { return Ok(None) };
    let table = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
    let holder = lock_holder(client, row.get(2)?, row.get(3)?).await?;
    Ok(holder.map(|holder| (table, holder)))
}

/// The session that keeps a settled snapshot alive and lends it to readers.
pub struct HeldSnapshot {
    client: SqlClient,
    /// What readers name in SET TRANSACTION SNAPSHOT.
    pub snapshot_name: String,
}

/// Imports an exported snapshot, waits until it has settled, and exports it again, so that the slot's session is free.
///
/// # Errors
/// [`SourceError`].
pub async fn hold_snapshot(sql: &Sql, exported: &str) -> Result<HeldSnapshot, SourceError> {
    let client = sql.connect().await?;
    client.import_snapshot(exported).await?;
    let imported = current_snapshot(&client).await?;
    settle(sql, &imported).await?;
    let row = client.query_one("exporting the snapshot", "SELECT pg_catalog.pg_export_snapshot()", &[]).await?;
    Ok(HeldSnapshot { client, snapshot_name: row.get(0)? })
}

impl HeldSnapshot {
    /// Whether the snapshot is still held.
    pub fn is_held(&self) -> bool {
        !self.client.is_closed()
    }

    /// The session, for questions that are answered under the snapshot.
    pub fn client(&self) -> &SqlClient {
        &self.client
    }

    /// Makes sure that the snapshot was held all the time, and lets it go.
    ///
    /// # Errors
    /// [`SourceError::SnapshotLost`] when it was not.
    pub async fn release(self) -> Result<(), SourceError> {
        self.client.batch("releasing the snapshot", "COMMIT").await.map_err(SourceError::SnapshotLost)
    }
}

/// A snapshot's text as `pg_current_snapshot()` gives it: `xmin:xmax:xip,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Snapshot {
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

impl Snapshot {
    fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.split(':');
        let (xmin, xmax, list) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let in_progress: Result<Vec<u64>, _> = list.split(',').filter(|xid| !xid.is_empty()).map(str::parse).collect();
        Some(Snapshot { xmin, xmax, in_progress: in_progress.ok()? })
    }

    /// The transaction whose xid has these last 32 bits, of those near to the newest ones.
    fn nearest(&self, xid: u32) -> u64 {
        let newest = u32::try_from(self.xmax & u64::from(u32::MAX)).expect("the last 32 bits");
        self.xmax.wrapping_add_signed(i64::from(xid.wrapping_sub(newest).cast_signed()))
    }

    /// Whether a transaction has committed as far as this snapshot is concerned.
    fn shows(&self, xid: u64) -> bool {
        xid < self.xmax && !self.in_progress.contains(&xid)
    }
}

/// Whether nothing that `imported` shows is still running, when `now` is what another session sees.
pub fn settled(imported: &str, now: &str) -> bool {
    match (Snapshot::parse(imported), Snapshot::parse(now)) {
        // At and behind `now`'s xmax nothing has ended yet, so the imported snapshot must not reach further.
        (Some(imported), Some(now)) => {
            imported.xmax <= now.xmax && !now.in_progress.iter().any(|xid| imported.shows(*xid))
        }
        (_, _) => false,
    }
}

async fn current_snapshot(client: &SqlClient) -> Result<String, SourceError> {
    let sql = "SELECT pg_catalog.pg_current_snapshot()::text";
    Ok(client.query_one("reading the snapshot", sql, &[]).await?.get(0)?)
}

/// The transactions that every question sees which a session asks from a moment on.
#[derive(Clone, Debug)]
pub struct VisibleTransactions {
    snapshot: Snapshot,
    /// A standby's snapshot, in which `pg_current_snapshot()` lists none that is in progress.
    in_recovery: bool,
}

impl VisibleTransactions {
    /// Those that are visible now.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn read(client: &SqlClient) -> Result<VisibleTransactions, SessionError> {
        const DOING: &str = "reading the snapshot";
        // In this order: a standby that was promoted between the two counts as one.
        let asked = ["SELECT pg_catalog.pg_is_in_recovery()", "SELECT pg_catalog.pg_current_snapshot()::text"];
        let answers = client.query_each(DOING, &asked).await?;
        let [recovery, snapshot] = answers.as_slice() else { return Err(SessionError::protocol(DOING, "no answer")) };
        let (Some(recovery), Some(snapshot)) = (recovery.first(), snapshot.first()) else {
            return Err(SessionError::protocol(DOING, "no row"));
        };
        let in_recovery = recovery.get(0)?;
        let snapshot = Snapshot::parse(snapshot.get(0)?).ok_or_else(|| SessionError::protocol(DOING, "no snapshot"))?;
        Ok(VisibleTransactions { snapshot, in_recovery })
    }

    #[cfg(test)]
    pub(super) fn parse(text: &str, in_recovery: bool) -> Option<VisibleTransactions> {
        Snapshot::parse(text).map(|snapshot| VisibleTransactions { snapshot, in_recovery })
    }

    /// The newest of them, or one that is under way: later ones have higher numbers.
    pub(super) fn newest(&self) -> u64 {
        self.snapshot.xmax
    }

    /// Whether they are a standby's, where [`Self::covers`] says yes of few.
    pub(super) fn in_recovery(&self) -> bool {
        self.in_recovery
    }

    /// Whether one is among them of which the stream has brought the commit, by its xid there.
    pub fn contains(&self, xid: u32) -> bool {
        self.snapshot.shows(self.snapshot.nearest(xid))
    }

    /// Whether one is among them for certain, even if it may have been in progress at that moment.
    pub fn covers(&self, xid: u32) -> bool {
        let xid = self.snapshot.nearest(xid);
        if self.in_recovery { xid < self.snapshot.xmin } else { self.snapshot.shows(xid) }
    }
}

async fn settle(sql: &Sql, imported: &str) -> Result<(), SourceError> {
    let observer = sql.connect().await?;
    let began = Instant::now();
    while !settled(imported, &current_snapshot(&observer).await?) {
        if began.elapsed() > SETTLE_MAX {
            return Err(SessionError::Timeout {
                doing: "waiting for the snapshot to settle",
                within: SETTLE_MAX,
                process_id: None,
            }
            .into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_found_by_its_xid_across_the_wraparound() {
        let snapshot = Snapshot::parse("8589934590:8589934602:8589934591,8589934600").unwrap();
        assert_eq!(snapshot.nearest(3), (2 << 32) + 3, "the newest epoch");
        assert_eq!(snapshot.nearest(u32::MAX), (2 << 32) - 1, "the one before");
        assert_eq!(snapshot.nearest(20), (2 << 32) + 20, "not begun as far as this snapshot knows");
        let sees = |xid| snapshot.shows(snapshot.nearest(xid));
        assert!(sees(3) && sees(u32::MAX - 5), "committed");
        assert!(!sees(u32::MAX) && !sees(8), "running");
        assert!(!sees(10) && !sees(20), "still to come");
    }

    #[test]
    fn a_standby_shows_for_certain_what_is_older_than_all_that_could_be_in_progress() {
        let primary = VisibleTransactions::parse("10:20:12", false).unwrap();
        let standby = VisibleTransactions::parse("10:20:", true).unwrap();
        assert!(primary.covers(9) && primary.covers(15) && !primary.covers(12) && !primary.covers(20));
        assert!(standby.covers(9) && !standby.covers(10) && !standby.covers(12) && !standby.covers(15));
        assert!(standby.contains(15), "the stream has brought its commit, which is replayed before");
    }

    #[test]
    fn a_snapshot_has_settled_when_nothing_that_it_shows_is_running() {
        assert!(settled("10:20:12,15", "10:20:12,15"), "the same");
        assert!(settled("10:20:12,15", "12:25:12,22"), "later");
        assert!(!settled("10:20:12", "10:20:12,15"), "15 is shown, and still running");
        assert!(!settled("10:21:12", "10:20:12"), "20 is shown, and has not even ended");
        assert!(settled("10:20:", "20:20:"));
        assert!(!settled("rubbish", "10:20:"));
    }
}
