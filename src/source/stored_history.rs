//! What is remembered of the source, and which database it is now.
//!
//! Compared by `history`, and by `upgraded` for a cluster that pg_upgrade has made. Plain data.

use crate::pg::{Lsn, SlotName, Timeline};
use crate::session::SqlClient;
use crate::source::error::SourceError;

/// What the destination remembers of its source.
#[derive(Clone, Debug)]
pub struct StoredHistory<'a> {
    /// The slot.
    pub slot: &'a SlotName,
    /// The source's system identifier.
    pub system_identifier: &'a str,
    /// The timeline when it was last connected.
    pub timeline: &'a Timeline,
    /// The source's database.
    pub database: &'a str,
    /// Its OID; an earlier version did not record it.
    pub database_id: Option<u32>,
    /// How far the destination is.
    pub position: Lsn,
    /// The source's server_version_num, where it is known.
    pub version: Option<i32>,
    /// A 64-bit transaction ID that the source had reached before the position, where one is known.
    pub xid: Option<i64>,
}

/// The database that source.url leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceDatabase {
    /// Its OID, which stays when it is renamed.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// A database of the name that is remembered exists.
    pub remembered_exists: bool,
    /// Its server's server_version_num.
    pub server_version: i32,
    /// All transactions of its cluster before this 64-bit transaction ID have ended, and the latest of them is just before it.
    pub next_xid: i64,
}

impl SourceDatabase {
    /// Asks for the database of this session; `remembered` is the name that fed the destination.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn read(client: &SqlClient, remembered: &str) -> Result<SourceDatabase, SourceError> {
        let sql =
            "SELECT d.oid, d.datname::text, EXISTS (SELECT FROM pg_catalog.pg_database o WHERE o.datname = $1::text),
                          pg_catalog.current_setting('server_version_num')::int4,
                          pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8
                   FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";
        let row = client.query_one("looking at the source's database", sql, &[&remembered]).await?;
        Ok(SourceDatabase {
            id: row.get(0)?,
            name: row.get(1)?,
            remembered_exists: row.get(2)?,
            server_version: row.get(3)?,
            next_xid: row.get(4)?,
        })
    }
}

/// The first version whose pg_upgrade keeps logical slots: the old cluster and the new one must have it.
pub(crate) const KEEPS_SLOTS_SINCE: i32 = 170_000;
