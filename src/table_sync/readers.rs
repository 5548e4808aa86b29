//! A snapshot's readers: sessions that hold the tables before the slot is asked for, and read them under its snapshot.
//!
//! Opened by `super` between the tables' locks and the slot; `copy` and `fill` give them ranges. Each one holds ACCESS SHARE on
//! every table in the transaction in which it reads later. It must hold it from the start: a session that asks for it
//! later waits behind a session that has asked for ACCESS EXCLUSIVE in between, and that session waits for our own locks. No
//! server sees this circle, because we are a part of it.
//!
//! So a lock that is not available at once, here or for a reader that reopens in the middle of a copy, ends the
//! attempt: headwater releases everything, the other session has its turn, and the snapshot begins again.
//!
//! A role that may read some columns of a table only cannot lock it without reading, and reading would fix the
//! transaction's snapshot. Then the table is held by [`TableLocks`] alone, and a COPY that has to wait for it ends the
//! attempt in the same way.
//!
//! Bounds: as many readers as `copy` has work for; a range is retried [`RETRIES_MAX`] times; a COPY waits for a lock
//! no longer than [`WAIT_MAX`].

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::destination::DestinationError;
use crate::error_policy::Fault;
use crate::pg::{QualifiedName, quote_literal};
use crate::session::{Connection, SessionError, SqlState};
use crate::source::{SourceError, TableLocks, lock_all};

/// How often in a row one range may lose its connection to the source.
pub(super) const RETRIES_MAX: u32 = 10;

/// How long a COPY may wait for its table, in milliseconds: only somebody who waits for us can be before it.
const WAIT_MAX: Duration = Duration::from_secs(2);

const LOCK_NOT_AVAILABLE: SqlState = SqlState::new(b"55P03");
const INSUFFICIENT_PRIVILEGE: SqlState = SqlState::new(b"42501");

/// A session that reads at the source, and holds the tables.
pub(crate) struct Reader {
    pub(super) connection: Connection,
    /// The transaction has taken the snapshot.
    in_snapshot: bool,
}

impl Reader {
    /// Opens the session and locks `tables`.
    pub(super) async fn open(config: &Config, tables: &[QualifiedName]) -> Result<Reader, Fault> {
        let timeout = config.destination.timeout;
        let settings = [("lock_timeout", WAIT_MAX.as_millis().to_string())];
        let purpose = format!("{} snapshot", config.source.slot);
        let connection = Connection::open(&config.source.url, &purpose, &settings).await;
        let mut connection = connection.map_err(SourceError::Session)?;
        lock(&mut connection, tables, timeout).await?;
        Ok(Reader { connection, in_snapshot: false })
    }

    /// From here on it reads under the snapshot, in the transaction that holds the locks.
    pub(super) async fn take_snapshot(&mut self, name: &str, timeout: Duration) -> Result<(), Fault> {
        if self.in_snapshot {
            return Ok(());
        }
        let import = format!("SET TRANSACTION SNAPSHOT {}", quote_literal(name));
        self.connection.statements(&[&import], "importing the snapshot", timeout).await.map_err(|error| {
            // Refused, not lost: then the snapshot is not there any more.
            let gone = error.server().is_some_and(|server| !server.fatal);
            if gone { SourceError::SnapshotLost(error) } else { SourceError::Session(error) }
        })?;
        self.in_snapshot = true;
        Ok(())
    }
}

/// Opens a session that writes into staging.
pub(super) async fn open_writer(config: &Config) -> Result<Connection, Fault> {
    // What is published is flushed with the publish's own commit, and staging that a crash has touched is not published.
    let settings = [("synchronous_commit", "off".to_owned())];
    let purpose = format!("{} staging", config.source.slot);
    let writer = Connection::open(&config.destination.url, &purpose, &settings).await;
    Ok(writer.map_err(DestinationError::Session)?)
}

/// Whether another connection to the source may do better. Whether the snapshot still lives it finds out by itself.
pub(super) fn is_lost_source(fault: &Fault) -> bool {
    match fault {
        Fault::Source(SourceError::Session(error)) => match error {
            SessionError::Lost { .. }
            | SessionError::Unreachable { .. }
            | SessionError::Unwanted { .. }
            | SessionError::Timeout { .. } => true,
            // Ended by an administrator or a timeout of the server's, or out of connections.
            SessionError::Server { error, .. } => error.fatal || matches!(error.code.class(), "57" | "08" | "25"),
            SessionError::Tls { .. }
            | SessionError::Authentication { .. }
            | SessionError::TooOld { .. }
            | SessionError::File { .. }
            | SessionError::Protocol { .. }
            | SessionError::Replaced { .. }
            | SessionError::Answer { .. } => false,
        },
        Fault::Source(_) | Fault::Destination(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => false,
    }
}

/// How long to wait before a range is read again: longer than a server needs to come back to its senses, shorter than
/// anybody's patience.
pub(super) fn pause_before_retry(retries: u32) -> Duration {
    Duration::from_millis(100 << retries.min(5))
}

/// What an attempt at a range has copied so far, by which the telemetry is set back when it fails.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Spends at most so many bytes a second, over all readers.
#[derive(Debug)]
pub(super) struct CopyRate {
    bytes_per_second: Option<u64>,
    /// When everything spent so far will have been earned.
    earned_at: Instant,
}

impl CopyRate {
    pub(super) fn new(bytes_per_second: Option<u64>, now: Instant) -> CopyRate {
        CopyRate { bytes_per_second, earned_at: now }
    }

    /// How long to wait after having spent `bytes`.
    pub(super) fn spend(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.earned_at = self.earned_at.max(now) + cost;
        self.earned_at.duration_since(now)
    }
}

/// Begins the transaction that reads later, and locks the tables in it, without waiting.
async fn lock(reader: &mut Connection, tables: &[QualifiedName], timeout: Duration) -> Result<(), Fault> {
    const DOING: &str = "locking the tables of the snapshot";
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    reader.simple_query(begin, DOING, timeout).await.map_err(SourceError::Session)?;
    if tables.is_empty() {
        return Ok(());
    }
    let lock = lock_all(tables.iter().cloned(), " NOWAIT");
    let statements = ["SAVEPOINT locking", &lock, "RELEASE SAVEPOINT locking"];
    match reader.statements(&statements, DOING, timeout).await {
        Ok(()) => return Ok(()),
        // One of them cannot be locked so: it is found one by one.
        Err(error) if error.server().is_some_and(|server| !server.fatal) => {
            let without = "ROLLBACK TO SAVEPOINT locking; RELEASE SAVEPOINT locking";
            reader.simple_query(without, DOING, timeout).await.map_err(SourceError::Session)?;
        }
        Err(error) => return Err(SourceError::Session(error).into()),
    }
    for table in tables {
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT", table.sql());
        let statements = ["SAVEPOINT locking", &lock, "RELEASE SAVEPOINT locking"];
        let Err(error) = reader.statements(&statements, DOING, timeout).await else { continue };
        if error.code() != Some(INSUFFICIENT_PRIVILEGE) {
            return Err(in_the_way(error, table).into());
        }
        let without = "ROLLBACK TO SAVEPOINT locking; RELEASE SAVEPOINT locking";
        reader.simple_query(without, DOING, timeout).await.map_err(SourceError::Session)?;
    }
    Ok(())
}

/// A lock that is not available means that another session waits for ours.
pub(super) fn in_the_way(error: SessionError, table: &QualifiedName) -> SourceError {
    if error.code() == Some(LOCK_NOT_AVAILABLE) {
        return SourceError::InTheWay { table: table.clone(), process_id: None };
    }
    SourceError::Session(error)
}

/// Waits for as long as nobody waits for the tables that we hold; asked while the slot is not there yet.
///
/// A session that wants ACCESS EXCLUSIVE has a transaction id while it waits, so that the slot waits for it, and it for us.
pub(super) async fn stand_in_the_way(locks: &TableLocks) -> SourceError {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match locks.waited_for().await {
            Ok(None) => {}
            Ok(Some((table, process_id))) => {
                return SourceError::InTheWay { table, process_id: Some(process_id) };
            }
            Err(error) => return error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_all_that_is_spent() {
        let now = Instant::now();
        let mut rate = CopyRate::new(Some(1000), now);
        assert_eq!(rate.spend(500, now), Duration::from_millis(500));
        assert_eq!(rate.spend(500, now), Duration::from_secs(1));
        assert_eq!(rate.spend(0, now + Duration::from_secs(5)), Duration::ZERO, "nothing is owed later on");
        assert_eq!(CopyRate::new(None, now).spend(u64::MAX, now), Duration::ZERO);
    }
}
