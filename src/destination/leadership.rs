//! Who may write: the writing session, its advisory lock, and what becomes of a leader that froze.
//!
//! `pipeline` opens a [`Candidate`] and polls it; the one that gets the lock becomes the [`Leader`] and applies. The
//! lock decides who tries; the conditional position update alone decides who commits, so two leaders for a moment are
//! a nuisance, not a danger.
//!
//! A frozen leader (SIGSTOP, a stalled machine) keeps its TCP connections alive through its kernel. So the writing
//! session sets idle_session_timeout and idle_in_transaction_session_timeout to `leader_timeout`, and a live leader
//! pings three times as often. One gap is left: frozen in the middle of a flight, the session is *active*, waiting
//! for our bytes, and no timeout of the server's runs. A candidate that sees it so for twice `leader_timeout` ends it
//! (same role: allowed).
//!
//! Bound: a candidate asks once a second, never inside a waiting statement, which would hold a snapshot open.

use std::time::Duration;

use super::bookkeeping::Bookkeeping;
use super::error::DestinationError;
use super::lock::{Got, LockHolders, LockKeys, Verdict, replace_key};
use super::origin::{Marking, mark, origin_name, origin_name_ahead};
use super::sessions::record_writing;
use crate::config::{ConnectionSettings, SynchronousCommit};
use crate::pg::{ErrorReport, Ident, Lsn, SlotName};
use crate::session::{Flight, FlightAnswer, SessionError, SqlClient, SqlState, StatementAnswer, WritingSession};

/// How the writing session is set up.
#[derive(Clone, Debug)]
pub struct WritingSettings {
    /// Where, and as whom.
    pub connection: ConnectionSettings,
    /// The slot: part of the lock's key.
    pub slot: SlotName,
    /// The schema that holds the position and `advance`: headwater, or one of staging's.
    pub positions: Ident,
    /// Silence after which the server ends the session.
    pub leader_timeout: Duration,
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

/// A writing session that does not hold the lock.
pub struct Candidate {
    session: WritingSession,
    settings: WritingSettings,
}

/// What has become of trying to take the lock.
pub struct LockAttempt {
    /// It is held now.
    pub taken: bool,
    /// Who else holds one of its keys.
    pub holders: LockHolders,
}

/// What has become of trying to lead. Either way: who else holds one of the lock's keys.
pub enum Led {
    /// It leads.
    Leader(Leader, LockHolders),
    /// Another instance does.
    Candidate(Candidate, LockHolders),
}

/// The writing session that holds the lock; or one beside it, of the same process, that applies ahead of a commit.
pub struct Leader {
    pub(super) session: WritingSession,
    pub(super) settings: WritingSettings,
    role: ReplicationRole,
    marking: Marking,
    wal_block_bytes: u64,
    /// The role that writes, where it is known: `current_user`.
    user: Option<Ident>,
}

const DOING: &str = "becoming the writer";

/// How often a key is replaced within one attempt: each round needs a foreign session that was quicker than we were.
const LOCK_ROUNDS: usize = 5;

impl Candidate {
    /// Opens the writing session.
    ///
    /// # Errors
    /// [`DestinationError`]; a transaction pooler in between is refused.
    pub async fn connect(settings: &WritingSettings) -> Result<Candidate, DestinationError> {
        Self::connect_as(settings, "writing").await
    }

    async fn connect_as(settings: &WritingSettings, purpose: &str) -> Result<Candidate, DestinationError> {
        let millis = |duration: Duration| duration.as_millis().to_string();
        let purpose = format!("{} {purpose}", settings.slot);
        let session = WritingSession::connect(
            &settings.connection,
            &purpose,
            &[
                ("search_path", String::new()),
                ("synchronous_commit", settings.synchronous_commit.as_str().to_owned()),
                ("lock_timeout", millis(settings.lock_timeout)),
                ("statement_timeout", "0".to_owned()),
                ("idle_session_timeout", millis(settings.leader_timeout)),
                ("idle_in_transaction_session_timeout", millis(settings.leader_timeout)),
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
        let mut candidate = Candidate { session, settings: settings.clone() };
        candidate.check_no_pooler().await?;
        Ok(candidate)
    }

    /// Between us and the server somebody may hand our session to others: then no lock and no setting of ours would
    /// hold.
    async fn check_no_pooler(&mut self) -> Result<(), DestinationError> {
        let row = self.ask("SELECT pg_catalog.pg_backend_pid()").await?;
        let process_id = row.first().and_then(|pid| pid.as_deref()?.parse::<u32>().ok());
        if process_id == Some(self.session.process_id()) {
            return Ok(());
        }
        Err(DestinationError::Refused(pooler_report()))
    }

    async fn ask(&mut self, sql: &str) -> Result<Vec<Option<String>>, DestinationError> {
        let mut flight = Flight::new();
        flight.query(sql);
        let answer = self.session.round_trip(DOING, flight, self.settings.timeout).await?;
        Ok(one_row(answer))
    }

    /// Tries to take the lock, for somebody who keeps others from leading and writes nothing.
    ///
    /// # Errors
    /// [`DestinationError`] when a session is lost, or the bookkeeping would have to be created and cannot be.
    pub async fn try_lock(&mut self, bookkeeping: &Bookkeeping) -> Result<LockAttempt, DestinationError> {
        let client = bookkeeping.client();
        let own = self.session.process_id().try_into().ok();
        let mut holders = LockHolders::default();
        for _ in 0..LOCK_ROUNDS {
            let keys = LockKeys::read(client, &self.settings.slot).await?;
            let got = self.take(keys).await?;
            if !got.all_of(keys) {
                holders = LockHolders::besides(client, keys, own).await?;
            }
            match holders.judge(keys, got) {
                // The row may have been written since it was read: then the lock is not the one that others try to take.
                Verdict::Lead if keys.same(LockKeys::read(client, &self.settings.slot).await?) => {
                    return Ok(LockAttempt { taken: true, holders });
                }
                Verdict::Lead => {}
                Verdict::Wait => {
                    self.release().await?;
                    return Ok(LockAttempt { taken: false, holders });
                }
                Verdict::ReplaceKey => {
                    if let Some(held) = keys.stored {
                        replace_key(client, held).await?;
                    }
                }
                Verdict::CreateKey => bookkeeping.ensure().await?,
            }
            self.release().await?;
        }
        Ok(LockAttempt { taken: false, holders })
    }

    async fn take(&mut self, keys: LockKeys) -> Result<Got, DestinationError> {
        let stored = keys.stored.map(|key| format!(", pg_catalog.pg_try_advisory_lock({key})")).unwrap_or_default();
        let row = self.ask(&format!("SELECT pg_catalog.pg_try_advisory_lock({}){stored}", keys.by_name)).await?;
        let got = |at: usize| row.get(at).and_then(Option::as_deref) == Some("t");
        Ok(Got { by_name: got(0), stored: got(1) })
    }

    async fn release(&mut self) -> Result<(), DestinationError> {
        self.ask("SELECT pg_catalog.pg_advisory_unlock_all()").await?;
        Ok(())
    }

    /// Tries to take the lock, and to become the leader by it.
    ///
    /// # Errors
    /// As [`Candidate::try_lock`].
    pub async fn try_lead(mut self, bookkeeping: &Bookkeeping) -> Result<Led, DestinationError> {
        let LockAttempt { taken, holders } = self.try_lock(bookkeeping).await?;
        if taken { Ok(Led::Leader(self.into_leader().await?, holders)) } else { Ok(Led::Candidate(self, holders)) }
    }

    async fn into_leader(mut self) -> Result<Leader, DestinationError> {
        let role = self.take_replica_role().await?;
        let marking = mark(&mut self.session, &origin_name(&self.settings.slot), self.settings.timeout).await?;
        let row = self.ask("SELECT pg_catalog.current_setting('wal_block_size'), current_user::text").await?;
        let wal_block_bytes = row.first().and_then(|size| size.as_deref()?.parse().ok()).unwrap_or(8192);
        let user = row.get(1).and_then(|user| Some(Ident::new(user.as_deref()?)));
        Ok(Leader { session: self.session, settings: self.settings, role, marking, wal_block_bytes, user })
    }

    /// The session as it is, for somebody who writes without leading.
    pub(super) async fn into_session(mut self) -> Result<(WritingSession, ReplicationRole), DestinationError> {
        let role = self.take_replica_role().await?;
        Ok((self.session, role))
    }

    async fn take_replica_role(&mut self) -> Result<ReplicationRole, DestinationError> {
        match self.ask("SELECT pg_catalog.set_config('session_replication_role', 'replica', false)").await {
            Ok(_) => Ok(ReplicationRole::Replica),
            Err(DestinationError::Session(error)) if error.code() == Some(SqlState::new(b"42501")) => {
                Ok(ReplicationRole::Origin)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the session.
    pub async fn close(self) {
        self.session.close().await;
    }
}

impl Leader {
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
        let mut flight = Flight::new();
        flight.query(&self.settings.read_position());
        let row = one_row(self.session.round_trip("reading the position", flight, self.settings.timeout).await?);
        position_in(&row)
    }

    /// Pings three times within `leader_timeout`, for as long as nothing else uses the session.
    ///
    /// Ends only with an error; may be dropped at any time, if [`Leader::settle`] follows.
    pub async fn keep_alive(&mut self) -> DestinationError {
        loop {
            tokio::time::sleep(self.settings.leader_timeout / 3).await;
            let pinged = self.session.round_trip("pinging the destination", Flight::new(), self.settings.timeout).await;
            if let Err(error) = pinged {
                return error.into();
            }
        }
    }

    /// Takes in the answer to a ping that was given up waiting for.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost.
    pub async fn settle(&mut self) -> Result<(), DestinationError> {
        while self.session.under_way() > 0 {
            let answer = tokio::time::timeout(self.settings.timeout, self.session.answer()).await;
            let doing = "pinging the destination";
            answer.map_err(|_| SessionError::Timeout { doing, within: self.settings.timeout })??;
        }
        Ok(())
    }

    /// Opens the writer of a staging schema. It needs no lock: the schema has a position that only this process knows.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn of_staging(settings: &WritingSettings) -> Result<Leader, DestinationError> {
        let mut candidate = Candidate::connect_as(settings, "catching up").await?;
        record_writing(&mut candidate.session, "catching up", settings.timeout).await?;
        candidate.into_leader().await
    }

    /// Opens a session beside this one, which applies ahead of a commit; `None` where it cannot be like the leader's own:
    /// replication role and, with `marked`, an origin.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn beside(settings: &WritingSettings, marked: bool) -> Result<Option<Leader>, DestinationError> {
        let mut candidate = Candidate::connect_as(settings, "ahead").await?;
        let role = candidate.take_replica_role().await?;
        let mut marking = Marking::None("the leader does not".to_owned());
        if marked {
            marking = mark(&mut candidate.session, &origin_name_ahead(&settings.slot), settings.timeout).await?;
        }
        if role != ReplicationRole::Replica || marked && !matches!(marking, Marking::Origin(_)) {
            candidate.close().await;
            return Ok(None);
        }
        let Candidate { mut session, settings } = candidate;
        record_writing(&mut session, "ahead", settings.timeout).await?;
        Ok(Some(Leader { session, settings, role, marking, wal_block_bytes: 0, user: None }))
    }

    /// Ends the session, and with it the leadership.
    pub async fn close(self) {
        self.session.close().await;
    }
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

pub(super) fn one_row(answer: FlightAnswer) -> Vec<Option<String>> {
    answer
        .answers
        .into_iter()
        .find_map(|answer| match answer {
            StatementAnswer::Row(row) => row,
            StatementAnswer::Count(_) => None,
        })
        .unwrap_or_default()
}

/// Ends a session of our own login role.
///
/// # Errors
/// [`DestinationError`].
pub async fn terminate(client: &SqlClient, process_id: i32) -> Result<(), DestinationError> {
    let sql = "SELECT pg_catalog.pg_terminate_backend($1)";
    client.query_as_login_role("ending a session", sql, &[&process_id]).await?;
    Ok(())
}

fn pooler_report() -> ErrorReport {
    ErrorReport::new("destination.url leads through a connection pooler")
        .detail(
            "headwater needs sessions of its own: its advisory lock, prepared statements and settings live in them.",
        )
        .hint("Give the address of the PostgreSQL server itself as destination.url.")
}

/// pgbouncer refuses settings that it does not know in the startup message.
fn refuse_pooler(error: SessionError) -> DestinationError {
    match error.server() {
        Some(server) if server.message.contains("unsupported startup parameter") => {
            DestinationError::Refused(pooler_report())
        }
        Some(_) | None => DestinationError::Session(error),
    }
}
