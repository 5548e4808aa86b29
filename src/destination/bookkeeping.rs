//! What the destination remembers: the stream that feeds it, its tables, and where it stands.
//!
//! Read by `supervisor` at every start, before anything is decided; written in few places, each in one transaction.
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
use super::owner::{check_bookkeeping, unusable_bookkeeping};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, RelationId, SlotName, Timeline};
use crate::session::{SessionError, Sql, SqlClient, SqlState, SystemIdentification};

const SCHEMA: &str = concat!(include_str!("../../sql/bookkeeping.sql"), include_str!("../../sql/withhold_grants.sql"));

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
    /// A new random value for every slot.
    pub generation: String,
    /// The slot at the source.
    pub slot: SlotName,
    /// The publication at the source.
    pub publication: Ident,
    /// The source cluster's system identifier.
    pub system_identifier: String,
    /// The source's timeline when it was last connected.
    pub timeline: Timeline,
    /// The source's database.
    pub source_database: String,
    /// Its OID; an earlier version did not record it.
    pub source_database_id: Option<u32>,
    /// Where the source's WAL ended when the copy was begun.
    pub source_lsn: Option<Lsn>,
    /// The source's server_version_num when it was last connected; an earlier version did not record it.
    pub source_version: Option<i32>,
    /// A 64-bit transaction ID that the source had reached before the position, where one is known.
    pub source_xid: Option<i64>,
    /// Why the copy may have gaps, until a resnapshot of all tables has closed them.
    pub gap: Option<String>,
    /// Rows that tables hold may be changed by the copy being made: an earlier stream brought them, or the operator has agreed.
    pub agreed: bool,
    /// A copy that was made by itself was not published.
    pub refused: Option<RefusedCopy>,
}

/// A copy that lacked most rows of tables, and that no operator had asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedCopy {
    /// `table public.t (950 of 1000)`, several of them joined.
    pub tables: String,
    /// When it was begun: `2026-11-27 10:20:01 UTC`.
    pub begun_at: String,
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
    /// The OID of the table at the destination that has the rows.
    pub destination_id: u32,
    /// Whether it is followed yet.
    pub state: TableState,
}

/// A function in schema headwater that differs from what this headwater would create.
pub(super) struct OutdatedFunction {
    /// With its arguments, as ALTER FUNCTION takes it.
    pub(super) name: String,
    /// The role it belongs to.
    pub(super) owner: String,
    /// Whether our role may replace it.
    pub(super) is_replaceable: bool,
}

/// The functions of `script` that exist with another body, or without the search_path that each of them has.
pub(super) async fn outdated_functions(
    client: &SqlClient,
    doing: &'static str,
    script: &str,
) -> Result<Vec<OutdatedFunction>, DestinationError> {
    // prosrc is the body as the script has it.
    let sql = "SELECT p.oid::regprocedure::text, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(p.proowner)),
                      pg_catalog.pg_has_role(p.proowner, 'USAGE')
               FROM pg_catalog.pg_proc p
               WHERE p.pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'headwater')
                 AND pg_catalog.strpos($1, 'FUNCTION headwater.' || p.proname::text || '(') > 0
                 AND (p.proconfig IS DISTINCT FROM ARRAY['search_path=pg_catalog, pg_temp']
                      OR pg_catalog.strpos($1, p.prosrc) = 0)
               ORDER BY 1";
    let rows = client.query(doing, sql, &[&script]).await?;
    let functions = rows
        .iter()
        .map(|row| Ok(OutdatedFunction { name: row.get(0)?, owner: row.get(1)?, is_replaceable: row.get(2)? }));
    functions.collect()
}

/// A session for the bookkeeping.
pub struct Bookkeeping {
    client: SqlClient,
}

/// The source's database, as the stream remembers it.
#[derive(Clone, Copy, Debug)]
pub struct SourceDatabaseRecord<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its OID.
    pub id: u32,
    /// Its server's `server_version_num`.
    pub server_version: i32,
}

impl Bookkeeping {
    /// Opens a session of a service whose start and monitor have looked at the schema already.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn connect(sql: &Sql) -> Result<Bookkeeping, DestinationError> {
        let client = sql.connect().await?;
        // What is decided on the strength of these rows happens at the source too: they must survive a crash here.
        client.batch("setting up a session", "SET synchronous_commit = on").await?;
        Ok(Bookkeeping { client })
    }

    /// Opens a session once it is known that nothing in schema `headwater` is somebody else's: for a start, and for every command that
    /// reads or writes there.
    ///
    /// # Errors
    /// [`DestinationError`]: [`DestinationError::Refused`] where others own the schema or something in it, or may change it.
    pub async fn connect_checked(sql: &Sql, trusted_roles: &[Ident]) -> Result<Bookkeeping, DestinationError> {
        let bookkeeping = Bookkeeping::connect(sql).await?;
        check_bookkeeping(&bookkeeping.client, trusted_roles).await?;
        Ok(bookkeeping)
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
        if !self.client.query_one(doing, sql, &[]).await?.get::<bool>(0)? {
            return Ok(None);
        }
        let sql = "SELECT state, generation, slot, publication, system_identifier, timeline, source_database,
                          consistent_point::text, bookkeeping_version, gap,
                          COALESCE((pg_catalog.to_jsonb(stream) ->> 'agreed')::boolean, true),
                          pg_catalog.to_jsonb(stream) ->> 'timeline_history',
                          (pg_catalog.to_jsonb(stream) ->> 'source_database_id')::oid,
                          pg_catalog.to_jsonb(stream) ->> 'source_lsn', pg_catalog.to_jsonb(stream) ->> 'refused',
                          pg_catalog.to_char(pg_catalog.timezone('UTC', created_at), 'YYYY-MM-DD HH24:MI:SS') || ' UTC',
                          (pg_catalog.to_jsonb(stream) ->> 'source_version')::int4,
                          CASE WHEN pg_catalog.to_jsonb(stream) ->> 'source_xid_generation' = generation
                              THEN (pg_catalog.to_jsonb(stream) ->> 'source_xid')::int8 END
                   FROM headwater.stream";
        let asked = self.client.query_opt(doing, sql, &[]).await.map_err(|error| incomplete("headwater.stream", error));
        let Some(row) = asked? else { return Ok(None) };
        let version: i32 = row.get(8)?;
        if version > VERSION {
            return Err(DestinationError::Refused(
                ErrorReport::new(format!(
                    "the bookkeeping at the destination has version {version}, this headwater knows {VERSION}"
                ))
                .hint("Run the headwater that wrote it, or a newer one."),
            ));
        }
        let point: Option<&str> = row.get(7)?;
        let point = point.map(str::parse).transpose().map_err(|_| damaged("headwater.stream.consistent_point"))?;
        let state = match (row.get::<&str>(0)?, point) {
            ("live", Some(consistent_point)) => StreamState::Live { consistent_point },
            (_, _) => StreamState::Creating,
        };
        let slot: &str = row.get(2)?;
        let history: Option<&str> = row.get(11)?;
        let history = history.map(str::parse).transpose();
        let source_lsn: Option<&str> = row.get(13)?;
        let refused: Option<String> = row.get(14)?;
        Ok(Some(Stream {
            state,
            generation: row.get(1)?,
            slot: slot.parse().map_err(|_| damaged("headwater.stream.slot"))?,
            publication: Ident::new(row.get::<&str>(3)?),
            system_identifier: row.get(4)?,
            timeline: Timeline {
                number: u32::try_from(row.get::<i32>(5)?).map_err(|_| damaged("headwater.stream.timeline"))?,
                history: history.map_err(|_| damaged("headwater.stream.timeline_history"))?,
            },
            source_database: row.get(6)?,
            source_database_id: row.get(12)?,
            source_lsn: source_lsn.map(str::parse).transpose().map_err(|_| damaged("headwater.stream.source_lsn"))?,
            source_version: row.get(16)?,
            source_xid: row.get(17)?,
            gap: row.get(9)?,
            agreed: row.get(10)?,
            refused: refused
                .map(|tables| Ok::<_, SessionError>(RefusedCopy { tables, begun_at: row.get(15)? }))
                .transpose()?,
        }))
    }

    /// Whether a newer headwater wrote the bookkeeping.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn is_newer(&self) -> Result<bool, DestinationError> {
        let sql = "SELECT bookkeeping_version > $1 FROM headwater.stream";
        let row = self.client.query_opt("reading headwater.stream", sql, &[&VERSION]).await?;
        row.map_or(Ok(false), |row| Ok(row.get(0)?))
    }

    async fn exists(&self) -> Result<bool, DestinationError> {
        // Each version's last object; the script runs in one transaction.
        let sql = "SELECT pg_catalog.to_regprocedure('headwater.expect(bigint, bigint)') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.dead_letter') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.shapes') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.open_conflict') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.resnapshots') IS NOT NULL
                          AND pg_catalog.to_regclass('headwater.sessions') IS NOT NULL
                          AND pg_catalog.to_regprocedure('headwater.other_table(text, text)') IS NOT NULL
                          AND pg_catalog.to_regprocedure('headwater.statement_replaced()') IS NOT NULL
                          AND EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attname = 'destination_database_id'
                                      AND attrelid = pg_catalog.to_regclass('headwater.stream'))
                          AND EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attname = 'fingerprint'
                                      AND attrelid = pg_catalog.to_regclass('headwater.shapes'))
                          AND NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relreplident <> 'f' -- a lost table stays lost
                               AND oid IN (pg_catalog.to_regclass('headwater.position'), pg_catalog.to_regclass('headwater.skip')))
                          AND EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attname = 'for_source'
                                      AND attrelid = pg_catalog.to_regclass('headwater.resnapshots'))
                          AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conname = 'resnapshots_origin_check'
                                          AND conrelid = pg_catalog.to_regclass('headwater.resnapshots'))";
        let doing = "looking for the bookkeeping";
        if !self.client.query_one(doing, sql, &[]).await?.get::<bool>(0)? {
            return Ok(false);
        }
        Ok(outdated_functions(&self.client, doing, SCHEMA).await?.iter().all(|function| !function.is_replaceable))
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
                if let Some(report) = unusable_bookkeeping(&self.client).await? {
                    return Err(DestinationError::Refused(report));
                }
                let Some((role, database)) = self.lacks_create().await? else { return Err(error.into()) };
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

    /// Our role and the database, if we may not create schemas there. A server refuses with the same code what a setting leads to, such as
    /// default_tablespace = pg_global.
    async fn lacks_create(&self) -> Result<Option<(Ident, Ident)>, DestinationError> {
        let sql = "SELECT current_user::text, pg_catalog.current_database()::text
                   WHERE NOT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')";
        let row = self.client.query_opt("asking what we may create", sql, &[]).await?;
        row.map(|row| Ok((Ident::new(row.get::<&str>(0)?), Ident::new(row.get::<&str>(1)?)))).transpose()
    }

    /// Commits a row `creating`, before the slot is asked for. Replaces a row of an earlier stream.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn begin_stream(&self, stream: &Stream) -> Result<(), DestinationError> {
        let sql = "INSERT INTO headwater.stream (state, generation, slot, publication, system_identifier, timeline,
                                                 source_database, bookkeeping_version, agreed, timeline_history,
                                                 source_database_id, source_lsn, source_version)
                   VALUES ('creating', $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text::pg_lsn, $12)
                   ON CONFLICT (only_row) DO UPDATE SET
                       state = EXCLUDED.state, generation = EXCLUDED.generation, slot = EXCLUDED.slot,
                       publication = EXCLUDED.publication, system_identifier = EXCLUDED.system_identifier,
                       timeline = EXCLUDED.timeline, source_database = EXCLUDED.source_database,
                       timeline_history = EXCLUDED.timeline_history,
                       source_database_id = EXCLUDED.source_database_id, source_lsn = EXCLUDED.source_lsn,
                       source_version = EXCLUDED.source_version,
                       consistent_point = NULL, gap = NULL, refused = NULL, agreed = EXCLUDED.agreed,
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
                    &number_of(&stream.timeline),
                    &stream.source_database,
                    &VERSION,
                    &stream.agreed,
                    &history_of(&stream.timeline),
                    &stream.source_database_id,
                    &stream.source_lsn.map(|lsn| lsn.to_string()),
                    &stream.source_version,
                ],
            )
            .await?;
        Ok(())
    }

    /// Remembers the source as it was found: it holds our history on this timeline, in a database of this name.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn set_source(
        &self,
        timeline: &Timeline,
        database: SourceDatabaseRecord<'_>,
    ) -> Result<(), DestinationError> {
        let sql = "UPDATE headwater.stream SET timeline = $1, timeline_history = $2, source_database = $3, source_database_id = $4,
                          source_version = $5";
        let (number, history) = (number_of(timeline), history_of(timeline));
        self.client
            .execute(
                "writing headwater.stream",
                sql,
                &[&number, &history, &database.name, &database.id, &database.server_version],
            )
            .await?;
        Ok(())
    }

    /// Remembers a transaction ID that the source has reached, if the position has reached `seen_at` and the stream is still that of
    /// this source. Does not wait for a session that has locked the row.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn set_source_xid(
        &self,
        xid: i64,
        seen_at: Lsn,
        source: &SystemIdentification,
    ) -> Result<(), DestinationError> {
        // Before another timeline is streamed from, the row has its number: so the position has come to `seen_at` on this one.
        let sql = "UPDATE headwater.stream SET source_xid = $1, source_xid_generation = generation
                   WHERE only_row IN (
                       SELECT only_row FROM headwater.stream
                       WHERE state = 'live' AND system_identifier = $3 AND timeline = $4
                         AND (source_xid_generation = generation AND source_xid >= $1) IS NOT TRUE
                         AND (SELECT position FROM headwater.position) >= $2::text::pg_lsn
                       FOR UPDATE SKIP LOCKED)";
        let (seen_at, number) = (seen_at.to_string(), number_of(&source.timeline));
        let identifier = &source.system_identifier;
        self.client.execute("writing headwater.stream", sql, &[&xid, &seen_at, identifier, &number]).await?;
        Ok(())
    }

    /// Records another cluster as the source, with the position at which it continues the stored one.
    ///
    /// # Errors
    /// [`DestinationError`]; the position is not `previous`.
    pub async fn accept_source(
        &self,
        source: &SystemIdentification,
        database: SourceDatabaseRecord<'_>,
        previous: Lsn,
        next: Lsn,
    ) -> Result<(), DestinationError> {
        let sql = "WITH moved AS (UPDATE headwater.position SET position = $1::text::pg_lsn
                                  WHERE position = $2::text::pg_lsn RETURNING position)
                   UPDATE headwater.stream SET system_identifier = $3, timeline = $4, timeline_history = $5,
                          source_database = $6, source_database_id = $7, source_version = $8
                   WHERE state = 'live' AND EXISTS (SELECT FROM moved)";
        let (number, history) = (number_of(&source.timeline), history_of(&source.timeline));
        let (next, from) = (next.to_string(), previous.to_string());
        let SourceDatabaseRecord { name, id, server_version } = database;
        let changed = self
            .client
            .execute(
                "writing headwater.stream",
                sql,
                &[&next, &from, &source.system_identifier, &number, &history, &name, &id, &server_version],
            )
            .await?;
        if changed == 1 {
            return Ok(());
        }
        Err(DestinationError::PositionMoved { expected: previous, found: self.position().await?.unwrap_or_default() })
    }

    /// Remembers that a copy was not published, and why: it is not made again before an operator asks for it.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn set_refused(&self, tables: &str) -> Result<(), DestinationError> {
        let sql = "UPDATE headwater.stream SET refused = $1 WHERE state = 'creating'";
        self.client.execute("writing headwater.stream", sql, &[&tables]).await?;
        Ok(())
    }

    /// Remembers why the copy may have gaps, so that no start continues as if there were none.
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
        row.map(|row| row.get::<&str>(0)?.parse().map_err(|_| damaged("headwater.position"))).transpose()
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
    let sql = "SELECT schema_name, table_name, source_id, state, snapshot_position::text, destination_id
               FROM headwater.tables ORDER BY schema_name, table_name";
    let asked = client.query("reading headwater.tables", sql, &[]).await;
    let rows = asked.map_err(|error| incomplete("headwater.tables", error))?;
    rows.iter()
        .map(|row| {
            let position: Option<&str> = row.get(4)?;
            let state = match (row.get::<&str>(3)?, position) {
                ("live", Some(position)) => {
                    TableState::Live { snapshot_position: position.parse().map_err(|_| damaged("headwater.tables"))? }
                }
                (_, _) => TableState::Staging,
            };
            Ok(TableRecord {
                name: QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?),
                source_id: RelationId(row.get(2)?),
                destination_id: row.get(5)?,
                state,
            })
        })
        .collect()
}

fn number_of(timeline: &Timeline) -> i32 {
    // PostgreSQL's TimeLineID is 32 bits wide without a sign; half of them are more promotions than there are seconds in 68 years.
    i32::try_from(timeline.number).unwrap_or(i32::MAX)
}

fn history_of(timeline: &Timeline) -> Option<String> {
    timeline.history.as_ref().map(ToString::to_string)
}

fn damaged(what: &str) -> DestinationError {
    DestinationError::Refused(
        ErrorReport::new(format!("{what} at the destination holds a value that headwater did not write"))
            .hint("Restore it, or run headwater teardown and start over with --resnapshot."),
    )
}

/// A table of the bookkeeping that is not there, or not as headwater made it; other errors stay what they are.
pub(super) fn incomplete(what: &str, error: SessionError) -> DestinationError {
    if !error.code().is_some_and(|code| matches!(code.as_str(), "42P01" | "42703")) {
        return error.into();
    }
    DestinationError::Refused(
        ErrorReport::new(format!("{what} at the destination is not as headwater made it"))
            .detail(format!("{}.", error))
            .hint("Restore the bookkeeping, or run headwater teardown and start over with --resnapshot."),
    )
}
