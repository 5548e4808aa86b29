//! What the destination remembers: the stream that feeds it, its tables, and where it stands.
//!
//! Read by `pipeline` at every start, before anything is decided; written in few places, each in one transaction.
//!
//! ```text
//!        (no row) ──begin_stream──▶ creating ──publish──▶ live
//!                                      ▲                    │
//!                                      └── resnapshot after a lost slot
//! ```
//!
//! A row `creating` is committed before the slot is asked for. So a crash between the two leaves a row, and whatever
//! slot bears its name is ours to drop; without a row, a slot of that name is somebody else's.

use std::time::Duration;

use super::error::DestinationError;
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, RelationId, SlotName};
use crate::session::{SessionError, Sql, SqlClient, SqlState};

const SCHEMA: &str = include_str!("../../sql/bookkeeping.sql");

/// Raised when the tables' layout changes; an older headwater then refuses to touch what it does not know.
const VERSION: i32 = 1;

/// How far a stream's making has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamState {
    /// The slot and the snapshot are being made.
    Creating,
    /// The position is valid.
    Live {
        /// Where the slot began.
        consistent_point: Lsn,
    },
}

/// The stream that feeds this destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// How far its making has come.
    pub state: StreamState,
    /// Drawn anew for every slot.
    pub generation: String,
    /// The slot at the source.
    pub slot: SlotName,
    /// The publication at the source.
    pub publication: Ident,
    /// The source cluster's system identifier.
    pub system_identifier: String,
    /// The source's timeline when it was last connected.
    pub timeline: u32,
    /// The source's database.
    pub source_database: String,
    /// Why the copy may have gaps, until a resnapshot of all tables has closed them.
    pub gap: Option<String>,
    /// Rows that tables hold may be changed by the copy being made: an earlier stream brought them, or the operator has agreed.
    pub agreed: bool,
}

/// Whether a table is followed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableState {
    /// Not followed: a copy is to replace its rows, which serve until then.
    Staging,
    /// Followed from here on.
    Live {
        /// Changes with commit_lsn below this are in the snapshot.
        snapshot_position: Lsn,
    },
}

/// A table that is kept equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRecord {
    /// Its name, on both sides.
    pub name: QualifiedName,
    /// Its OID at the source.
    pub source_id: RelationId,
    /// Whether it is followed yet.
    pub state: TableState,
}

/// A session for the bookkeeping.
pub struct Bookkeeping {
    client: SqlClient,
}

impl Bookkeeping {
    /// Opens a session.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn connect(sql: &Sql) -> Result<Bookkeeping, DestinationError> {
        let client = sql.connect().await?;
        // What is decided on the strength of these rows happens at the source too: they must survive a crash here.
        client.batch("setting up a session", "SET synchronous_commit = on").await?;
        Ok(Bookkeeping { client })
    }

    /// The session, for questions of other kinds.
    pub fn client(&self) -> &SqlClient {
        &self.client
    }

    /// What the destination is fed from; `None` when it never was, or not any more.
    ///
    /// # Errors
    /// [`DestinationError`]; also when a newer headwater wrote the bookkeeping.
    pub async fn stream(&self) -> Result<Option<Stream>, DestinationError> {
        let doing = "reading headwater.stream";
        let sql = "SELECT pg_catalog.to_regclass('headwater.stream') IS NOT NULL";
        if !self.client.query_one(doing, sql, &[]).await?.get::<_, bool>(0) {
            return Ok(None);
        }
        let sql = "SELECT state, generation, slot, publication, system_identifier, timeline, source_database,
                          consistent_point::text, bookkeeping_version, gap,
                          COALESCE((pg_catalog.to_jsonb(stream) ->> 'agreed')::boolean, true)
                   FROM headwater.stream";
        let asked = self.client.query_opt(doing, sql, &[]).await.map_err(|error| incomplete("headwater.stream", error));
        let Some(row) = asked? else { return Ok(None) };
        let version: i32 = row.get(8);
        if version > VERSION {
            return Err(DestinationError::Refused(
                ErrorReport::new(format!(
                    "the bookkeeping at the destination has version {version}, this headwater knows {VERSION}"
                ))
                .hint("Run the headwater that wrote it, or a newer one."),
            ));
        }
        let point: Option<&str> = row.get(7);
        let state = match (row.get::<_, &str>(0), point.and_then(|point| point.parse().ok())) {
            ("live", Some(consistent_point)) => StreamState::Live { consistent_point },
            (_, _) => StreamState::Creating,
        };
        let slot: &str = row.get(2);
        Ok(Some(Stream {
            state,
            generation: row.get(1),
            slot: slot.parse().map_err(|_| damaged("headwater.stream.slot"))?,
            publication: Ident::new(row.get::<_, &str>(3)),
            system_identifier: row.get(4),
            timeline: u32::try_from(row.get::<_, i32>(5)).unwrap_or(0),
            source_database: row.get(6),
            gap: row.get(9),
            agreed: row.get(10),
        }))
    }

    /// Whether a newer headwater wrote the bookkeeping.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn is_newer(&self) -> Result<bool, DestinationError> {
        let sql = "SELECT bookkeeping_version > $1 FROM headwater.stream";
        let row = self.client.query_opt("reading headwater.stream", sql, &[&VERSION]).await?;
        Ok(row.is_some_and(|row| row.get(0)))
    }

    async fn exists(&self) -> Result<bool, DestinationError> {
        // Each version's last object; the script runs in one transaction.
        let sql = "SELECT pg_catalog.to_regprocedure('headwater.expect(bigint, bigint)') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.dead_letter') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.shapes') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.open_conflict') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.resnapshots') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.sessions') IS NOT NULL
                          AND EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attname = 'agreed'
                                      AND attrelid = pg_catalog.to_regclass('headwater.stream'))
                          AND (SELECT pg_catalog.count(*) = 2 FROM pg_catalog.pg_class WHERE relreplident = 'f'
                               AND oid IN (pg_catalog.to_regclass('headwater.position'), pg_catalog.to_regclass('headwater.skip')))
                          AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conname = 'resnapshots_origin_check'
                                          AND conrelid = pg_catalog.to_regclass('headwater.resnapshots'))";
        Ok(self.client.query_one("looking for the bookkeeping", sql, &[]).await?.get(0))
    }

    /// Creates what is missing of the bookkeeping's schema.
    ///
    /// # Errors
    /// [`DestinationError`]: the role may not create it, with the GRANT that lets it.
    pub async fn ensure(&self) -> Result<(), DestinationError> {
        if self.exists().await? {
            return Ok(());
        }
        // Two instances may start at the same moment: the loser's CREATE fails on the catalog's own unique keys.
        let mut attempts_left = 3;
        loop {
            let error = match self.client.batch("creating the bookkeeping", SCHEMA).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let code = error.code();
            if code == Some(SqlState::new(b"42501")) {
                let (role, database) = self.role_and_database().await?;
                return Err(DestinationError::Refused(
                    ErrorReport::new(format!("role {role} may not create the schema headwater at the destination"))
                        .hint(format!("Run as the database's owner:\nGRANT CREATE ON DATABASE {database} TO {role};")),
                ));
            }
            let raced = ["23505", "42P06", "42P07", "42710", "42723", "XX000"].iter();
            attempts_left -= 1;
            if attempts_left == 0 || !raced.map(|c| SqlState::parse(c)).any(|c| Some(c) == code) {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn role_and_database(&self) -> Result<(Ident, Ident), DestinationError> {
        let row = self
            .client
            .query_one("asking who we are", "SELECT current_user::text, pg_catalog.current_database()::text", &[])
            .await?;
        Ok((Ident::new(row.get::<_, &str>(0)), Ident::new(row.get::<_, &str>(1))))
    }

    /// Commits a row `creating`, before the slot is asked for. Replaces a row of an earlier stream.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn begin_stream(&self, stream: &Stream) -> Result<(), DestinationError> {
        let sql = "INSERT INTO headwater.stream (state, generation, slot, publication, system_identifier, timeline,
                                                 source_database, bookkeeping_version, agreed)
                   VALUES ('creating', $1, $2, $3, $4, $5, $6, $7, $8)
                   ON CONFLICT (only_row) DO UPDATE SET
                       state = EXCLUDED.state, generation = EXCLUDED.generation, slot = EXCLUDED.slot,
                       publication = EXCLUDED.publication, system_identifier = EXCLUDED.system_identifier,
                       timeline = EXCLUDED.timeline, source_database = EXCLUDED.source_database,
                       consistent_point = NULL, gap = NULL, agreed = EXCLUDED.agreed,
                       bookkeeping_version = EXCLUDED.bookkeeping_version,
                       created_at = pg_catalog.now()";
        self.client
            .execute(
                "writing headwater.stream",
                sql,
                &[
                    &stream.generation,
                    &stream.slot.as_str(),
                    &stream.publication.as_str(),
                    &stream.system_identifier,
                    &i32::try_from(stream.timeline).unwrap_or(i32::MAX),
                    &stream.source_database,
                    &VERSION,
                    &stream.agreed,
                ],
            )
            .await?;
        Ok(())
    }

    /// Remembers the timeline on which the source was found to hold our history.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn set_timeline(&self, timeline: u32) -> Result<(), DestinationError> {
        let timeline = i32::try_from(timeline).unwrap_or(i32::MAX);
        self.client
            .execute("writing headwater.stream", "UPDATE headwater.stream SET timeline = $1", &[&timeline])
            .await?;
        Ok(())
    }

    /// Remembers why the copy may have gaps, so that no start goes on as if there were none.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn set_gap(&self, reason: &str) -> Result<(), DestinationError> {
        self.client
            .execute("writing headwater.stream", "UPDATE headwater.stream SET gap = COALESCE(gap, $1)", &[&reason])
            .await?;
        Ok(())
    }

    /// The stored position; `None` before the first snapshot is published.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn position(&self) -> Result<Option<Lsn>, DestinationError> {
        let sql = "SELECT position::text FROM headwater.position";
        let asked = self.client.query_opt("reading headwater.position", sql, &[]).await;
        let row = asked.map_err(|error| incomplete("headwater.position", error))?;
        row.map(|row| row.get::<_, &str>(0).parse().map_err(|_| damaged("headwater.position"))).transpose()
    }

    /// The tables that are kept equal.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn tables(&self) -> Result<Vec<TableRecord>, DestinationError> {
        table_records(&self.client).await
    }
}

/// The tables that are kept equal, as this session's snapshot shows them.
///
/// # Errors
/// [`DestinationError`].
pub async fn table_records(client: &SqlClient) -> Result<Vec<TableRecord>, DestinationError> {
    let sql = "SELECT schema_name, table_name, source_id, state, snapshot_position::text
               FROM headwater.tables ORDER BY schema_name, table_name";
    let asked = client.query("reading headwater.tables", sql, &[]).await;
    let rows = asked.map_err(|error| incomplete("headwater.tables", error))?;
    rows.iter()
        .map(|row| {
            let position: Option<&str> = row.get(4);
            let state = match (row.get::<_, &str>(3), position) {
                ("live", Some(position)) => {
                    TableState::Live { snapshot_position: position.parse().map_err(|_| damaged("headwater.tables"))? }
                }
                (_, _) => TableState::Staging,
            };
            Ok(TableRecord {
                name: QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
                source_id: RelationId(row.get(2)),
                state,
            })
        })
        .collect()
}

fn damaged(what: &str) -> DestinationError {
    DestinationError::Refused(
        ErrorReport::new(format!("{what} at the destination holds a value that headwater did not write"))
            .hint("Restore it, or run headwater teardown and start over with --resnapshot."),
    )
}

/// A table of the bookkeeping that is not there, or not as headwater made it; other errors stay what they are.
fn incomplete(what: &str, error: SessionError) -> DestinationError {
    if !error.code().is_some_and(|code| matches!(code.as_str(), "42P01" | "42703")) {
        return error.into();
    }
    DestinationError::Refused(
        ErrorReport::new(format!("{what} at the destination is not as headwater made it"))
            .detail(format!("{}.", error))
            .hint("Restore the bookkeeping, or run headwater teardown and start over with --resnapshot."),
    )
}
