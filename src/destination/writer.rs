//! The writing session: how it is set up, what its role may do, and where it found the position.
//!
//! Opened by `leadership` for the instance that leads, by `supervisor` for a staging schema and for parallel apply, by `replay`
//! and `row_values` for a command. `apply` sends its pipelined requests through it. It holds no lock: who may try to write is
//! `leadership`'s, and the conditional position update alone decides who commits.
//!
//! Its life does not depend on how busy this process is: the server lets it be idle for as long as it likes, and ends it only
//! when it has been silent for `silence_max` inside a transaction, whose locks others may wait for. What outlives its process
//! is recorded in `headwater.sessions` and ended by the next leader.

use std::time::Duration;

use super::error::DestinationError;
use super::origin::{Marking, mark, origin_name, parallel_apply_origin_name};
use super::sessions::record_writing;
use crate::config::{ConnectionSettings, SynchronousCommit};
use crate::destination::first_row::one_row;
use crate::pg::{ErrorReport, Ident, Lsn, SlotName};
use crate::session::{PipelinedRequest, SessionError, SqlState, WritingSession};

/// How the writing session is set up.
#[derive(Clone, Debug)]
pub struct WritingSettings {
    /// Where, and as whom.
    pub connection: ConnectionSettings,
    /// The slot: part of the session's name and of its origin's.
    pub slot: SlotName,
    /// The schema that holds the position and `advance`: headwater, or one of staging's.
    pub positions: Ident,
    /// Silence inside a transaction after which the server ends the session.
    pub silence_max: Duration,
    /// How long a statement waits for a lock.
    pub lock_timeout: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// `synchronous_commit` of the session.
    pub synchronous_commit: SynchronousCommit,
}

/// `session_replication_role` of the writing session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationRole {
    /// Foreign keys and ordinary triggers do not act.
    Replica,
    /// They do: the role may not set session_replication_role.
    Origin,
}

/// A session that writes: the leader's, that of parallel apply, or that of a staging schema.
pub struct Writer {
    pub(super) session: WritingSession,
    pub(super) settings: WritingSettings,
    role: ReplicationRole,
    marking: Marking,
    wal_block_bytes: u64,
    /// The role that writes, where it is known: `current_user`.
    user: Option<Ident>,
}

const DOING: &str = "opening the writing session";

impl Writer {
    /// Opens the writer of a staging schema. It needs no lock: the schema has a position that only this process knows.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn of_staging(settings: &WritingSettings) -> Result<Writer, DestinationError> {
        Writer::recorded(settings, "catching up").await?.marked().await
    }

    /// Opens a session that the next leader ends, should it outlive this one. It is not marked as replication's yet.
    pub(super) async fn recorded(settings: &WritingSettings, purpose: &str) -> Result<Writer, DestinationError> {
        let mut session = connect(settings, purpose).await?;
        record_writing(&mut session, purpose, settings.timeout).await?;
        let role = take_replica_role(&mut session, settings.timeout).await?;
        let sql = "SELECT pg_catalog.current_setting('wal_block_size'), current_user::text";
        let row = ask(&mut session, sql, settings.timeout).await?;
        let wal_block_bytes = row.first().and_then(|size| size.as_deref()?.parse().ok());
        let wal_block_bytes =
            wal_block_bytes.ok_or_else(|| SessionError::answer("asking for wal_block_size", "no number"))?;
        let user = row.get(1).and_then(|user| Some(Ident::new(user.as_deref()?)));
        let marking = Marking::None("it was not asked for".to_owned());
        Ok(Writer { session, settings: settings.clone(), role, marking, wal_block_bytes, user })
    }

    /// Marks what it writes as replicated, where the role may.
    pub(super) async fn marked(mut self) -> Result<Writer, DestinationError> {
        self.marking = mark(&mut self.session, &origin_name(&self.settings.slot), self.settings.timeout).await?;
        Ok(self)
    }

    /// Opens a session for parallel apply; `None` where it cannot be like the leader's own: replication role and, with `marked`,
    /// an origin.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn for_parallel_apply(
        settings: &WritingSettings,
        marked: bool,
    ) -> Result<Option<Writer>, DestinationError> {
        let mut session = connect(settings, "parallel apply").await?;
        let role = take_replica_role(&mut session, settings.timeout).await?;
        let mut marking = Marking::None("the leader does not".to_owned());
        if marked {
            marking = mark(&mut session, &parallel_apply_origin_name(&settings.slot), settings.timeout).await?;
        }
        if role != ReplicationRole::Replica || marked && !matches!(marking, Marking::Origin(_)) {
            session.close().await;
            return Ok(None);
        }
        record_writing(&mut session, "parallel apply", settings.timeout).await?;
        Ok(Some(Writer { session, settings: settings.clone(), role, marking, wal_block_bytes: 0, user: None }))
    }

    /// Opens a session like the writing ones, for a command.
    ///
    /// # Errors
    /// [`DestinationError`]; a transaction pooler in between is refused.
    pub(super) async fn of_command(
        settings: &WritingSettings,
    ) -> Result<(WritingSession, ReplicationRole), DestinationError> {
        let mut session = connect(settings, "command").await?;
        let role = take_replica_role(&mut session, settings.timeout).await?;
        Ok((session, role))
    }

    /// Opens a writing session as a start does, and closes it again.
    ///
    /// # Errors
    /// [`DestinationError`]; a transaction pooler in between is refused.
    pub async fn try_open(settings: &WritingSettings) -> Result<(), DestinationError> {
        connect(settings, "check").await?.close().await;
        Ok(())
    }

    /// How the session is set up.
    pub fn settings(&self) -> &WritingSettings {
        &self.settings
    }

    /// The role that writes.
    pub(super) fn user(&self) -> Option<&Ident> {
        self.user.as_ref()
    }

    /// Whether foreign keys and triggers act on what this session writes.
    pub fn role(&self) -> ReplicationRole {
        self.role
    }

    /// Whether what this session writes is marked as replicated.
    pub fn marking(&self) -> &Marking {
        &self.marking
    }

    /// The destination's `wal_block_size`, in bytes.
    pub fn wal_block_bytes(&self) -> u64 {
        self.wal_block_bytes
    }

    /// The stored position, found again by its ctid from here on.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost or there is no position.
    pub async fn read_position(&mut self) -> Result<Lsn, DestinationError> {
        let mut request = PipelinedRequest::new();
        request.query(&self.settings.read_position());
        let row = one_row(self.session.round_trip("reading the position", request, self.settings.timeout).await?);
        position_in(&row)
    }

    /// Ends the session, and waits a moment until the server has let go of its locks and its origin.
    pub async fn close(self) {
        self.session.close_and_wait().await;
    }
}

async fn connect(settings: &WritingSettings, purpose: &str) -> Result<WritingSession, DestinationError> {
    let millis = |duration: Duration| duration.as_millis().to_string();
    let purpose = format!("{} {purpose}", settings.slot);
    let mut session = WritingSession::connect(
        &settings.connection,
        &purpose,
        &[
            ("search_path", String::new()),
            ("synchronous_commit", settings.synchronous_commit.as_str().to_owned()),
            ("lock_timeout", millis(settings.lock_timeout)),
            ("statement_timeout", "0".to_owned()),
            ("idle_session_timeout", "0".to_owned()),
            ("idle_in_transaction_session_timeout", millis(settings.silence_max)),
            ("client_connection_check_interval", "1000".to_owned()),
            ("row_security", "off".to_owned()),
            ("lc_monetary", "C".to_owned()),
            ("xmloption", "content".to_owned()),
            // Statements are prepared once and their parameters say nothing about the best plan; compiling them to
            // machine code takes longer than running them.
            ("plan_cache_mode", "force_generic_plan".to_owned()),
            ("jit", "off".to_owned()),
            // Rows are found by their key's index. A plan made while the table was small would be kept when it has grown.
            ("enable_seqscan", "off".to_owned()),
            ("enable_hashjoin", "off".to_owned()),
            ("enable_mergejoin", "off".to_owned()),
        ],
    )
    .await
    .map_err(refuse_pooler)?;
    let row = ask(&mut session, OWN_PROCESS, settings.timeout).await?;
    check_no_pooler(&row, session.process_id())?;
    Ok(session)
}

async fn ask(session: &mut WritingSession, sql: &str, timeout: Duration) -> Result<Vec<Option<String>>, SessionError> {
    let mut request = PipelinedRequest::new();
    request.query(sql);
    Ok(one_row(session.round_trip(DOING, request, timeout).await?))
}

async fn take_replica_role(
    session: &mut WritingSession,
    timeout: Duration,
) -> Result<ReplicationRole, DestinationError> {
    replication_role(ask(session, TAKE_REPLICA_ROLE, timeout).await)
}

/// Makes a session act as replication does, where its role may.
pub(super) const TAKE_REPLICA_ROLE: &str = "SELECT pg_catalog.set_config('session_replication_role', 'replica', false)";

/// What the answer to [`TAKE_REPLICA_ROLE`] means.
pub(super) fn replication_role<T>(answer: Result<T, SessionError>) -> Result<ReplicationRole, DestinationError> {
    match answer {
        Ok(_) => Ok(ReplicationRole::Replica),
        Err(error) if error.code() == Some(SqlState::new(b"42501")) => Ok(ReplicationRole::Origin),
        Err(error) => Err(error.into()),
    }
}

/// Asks a session which process serves it.
pub(super) const OWN_PROCESS: &str = "SELECT pg_catalog.pg_backend_pid()";

/// Between us and the server somebody may hand our session to others: then no lock and no setting of ours would hold.
pub(super) fn check_no_pooler(row: &[Option<String>], process_id: u32) -> Result<(), DestinationError> {
    let found = row.first().and_then(|pid| pid.as_deref()?.parse::<u32>().ok());
    if found == Some(process_id) { Ok(()) } else { Err(DestinationError::Refused(pooler_report())) }
}

impl WritingSettings {
    /// Reads the position and remembers its ctid for `advance`.
    pub(super) fn read_position(&self) -> String {
        format!(
            "SELECT position, pg_catalog.set_config('headwater.position_ctid', ctid::pg_catalog.text, false) FROM {}.position",
            self.positions.sql()
        )
    }

    /// Moves the position from $1 to $2.
    pub(super) fn advance(&self) -> String {
        format!("SELECT {}.advance($1, $2)", self.positions.sql())
    }
}

pub(super) fn position_in(row: &[Option<String>]) -> Result<Lsn, DestinationError> {
    row.first()
        .and_then(|position| position.as_deref()?.parse().ok())
        .ok_or_else(|| DestinationError::Refused(position_missing_report()))
}

/// What to say of a live stream without a position.
pub fn position_missing_report() -> ErrorReport {
    ErrorReport::new("headwater.position at the destination holds no position")
        .hint("Restore the bookkeeping, or run headwater teardown and start over with --resnapshot.")
}

fn pooler_report() -> ErrorReport {
    ErrorReport::new("destination.url leads through a connection pooler")
        .detail(
            "headwater needs sessions of its own: its advisory lock, prepared statements and settings live in them.",
        )
        .hint("Give the address of the PostgreSQL server itself as destination.url.")
}

/// pgbouncer refuses settings that it does not know in the startup message.
pub(super) fn refuse_pooler(error: SessionError) -> DestinationError {
    match error.server() {
        Some(server) if server.message.contains("unsupported startup parameter") => {
            DestinationError::Refused(pooler_report())
        }
        Some(_) | None => DestinationError::Session(error),
    }
}
