//! A snapshot's readers: sessions that hold the tables before the slot is asked for, and read them under its snapshot.
//!
//! Opened by `super` between the tables' locks and the slot; `copy` gives them pieces. Each one holds ACCESS SHARE on
//! every table in the transaction in which it reads later. It must hold it from the start: a session that asks for it
//! later waits behind whoever has asked for ACCESS EXCLUSIVE in between, and that session waits for our own locks. No
//! server sees this circle, because we are a part of it.
//!
//! So a lock that is not to be had at once, here or of a reader that is opened anew in the middle of a copy, ends the
//! attempt: everything is let go, the other session has its turn, and the snapshot begins again.
//!
//! A role that may read some columns of a table only cannot lock it without reading, and reading would fix the
//! transaction's snapshot. Then the table is held by [`TableLocks`] alone, and a COPY that has to wait for it ends the
//! attempt in the same way.
//!
//! Bounds: as many readers as `copy` has work for; a COPY waits for a lock no longer than [`WAIT_MAX`].

use std::time::Duration;

use crate::config::Config;
use crate::destination::DestinationError;
use crate::fault::Fault;
use crate::pg::{QualifiedName, quote_literal};
use crate::session::{Connection, SessionError, SqlState};
use crate::source::{SourceError, TableLocks};

/// How long a COPY may wait for its table, in milliseconds: only somebody who waits for us can be before it.
const WAIT_MAX: Duration = Duration::from_secs(2);

const LOCK_NOT_AVAILABLE: SqlState = SqlState::new(b"55P03");
const INSUFFICIENT_PRIVILEGE: SqlState = SqlState::new(b"42501");

/// transaction_timeout (17 and later) cannot be named where it does not exist.
const UNLIMITED: &str =
    "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'";

/// One reader: a session that reads at the source, and one that writes at the destination.
pub(super) struct Pipe {
    pub(super) reader: Connection,
    pub(super) writer: Connection,
    /// The transaction has taken the snapshot.
    in_snapshot: bool,
}

impl Pipe {
    /// Opens both sessions and locks `tables` for the reader.
    pub(super) async fn open(config: &Config, tables: &[QualifiedName]) -> Result<Pipe, Fault> {
        let purpose = |what: &str| format!("{} {what}", config.source.slot);
        let timeout = config.destination.timeout;
        let lock_timeout = WAIT_MAX.as_millis().to_string();
        let reader = Connection::open(&config.source.url, &purpose("snapshot"), &settings(&lock_timeout, None)).await;
        let mut reader = reader.map_err(SourceError::Session)?;
        reader.simple_query(UNLIMITED, "setting up a reader", timeout).await.map_err(SourceError::Session)?;
        lock(&mut reader, tables, timeout).await?;
        // What is published is flushed with the publish's own commit, and staging that a crash has touched is not
        // published.
        let settings = settings("0", Some(("synchronous_commit", "off")));
        let writer = Connection::open(&config.destination.url, &purpose("staging"), &settings).await;
        let mut writer = writer.map_err(DestinationError::Session)?;
        writer.simple_query(UNLIMITED, "setting up a session", timeout).await.map_err(DestinationError::Session)?;
        Ok(Pipe { reader, writer, in_snapshot: false })
    }

    /// From here on it reads under the snapshot, in the transaction that holds the locks.
    pub(super) async fn take_snapshot(&mut self, name: &str, timeout: Duration) -> Result<(), Fault> {
        if self.in_snapshot {
            return Ok(());
        }
        let import = format!("SET TRANSACTION SNAPSHOT {}", quote_literal(name));
        self.reader.simple_query(&import, "importing the snapshot", timeout).await.map_err(|error| {
            // Refused, not lost: then the snapshot is not there any more.
            let gone = error.server().is_some_and(|server| !server.fatal);
            if gone { SourceError::SnapshotLost(error) } else { SourceError::Session(error) }
        })?;
        self.in_snapshot = true;
        Ok(())
    }

    pub(super) async fn close(self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

fn settings<'a>(lock_timeout: &str, more: Option<(&'a str, &str)>) -> Vec<(&'a str, String)> {
    [
        ("datestyle", "ISO"),
        ("intervalstyle", "postgres"),
        ("extra_float_digits", "3"),
        ("timezone", "UTC"),
        ("lc_monetary", "C"),
        ("search_path", ""),
        ("row_security", "off"),
        ("client_connection_check_interval", "1000"),
        ("statement_timeout", "0"),
        ("lock_timeout", lock_timeout),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", "0"),
    ]
    .into_iter()
    .chain(more)
    .map(|(name, value)| (name, value.to_owned()))
    .collect()
}

/// Begins the transaction that reads later, and locks the tables in it, without waiting.
async fn lock(reader: &mut Connection, tables: &[QualifiedName], timeout: Duration) -> Result<(), Fault> {
    const DOING: &str = "locking the tables of the snapshot";
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    reader.simple_query(begin, DOING, timeout).await.map_err(SourceError::Session)?;
    for table in tables {
        let statement = format!(
            "SAVEPOINT locking; LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT; RELEASE SAVEPOINT locking",
            table.sql()
        );
        let Err(error) = reader.simple_query(&statement, DOING, timeout).await else { continue };
        if error.code() != Some(INSUFFICIENT_PRIVILEGE) {
            return Err(in_the_way(error, table).into());
        }
        let without = "ROLLBACK TO SAVEPOINT locking; RELEASE SAVEPOINT locking";
        reader.simple_query(without, DOING, timeout).await.map_err(SourceError::Session)?;
    }
    Ok(())
}

/// A lock that is not to be had means that somebody waits for ours.
pub(super) fn in_the_way(error: SessionError, table: &QualifiedName) -> SourceError {
    if error.code() == Some(LOCK_NOT_AVAILABLE) {
        return SourceError::InTheWay { table: table.clone(), process_id: None };
    }
    SourceError::Session(error)
}

/// Waits for as long as nobody waits for the tables that we hold; asked while the slot is not there yet.
///
/// Whoever wants ACCESS EXCLUSIVE has a transaction id while it waits, so that the slot waits for it, and it for us.
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
