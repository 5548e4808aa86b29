//! Who leads: the leader's advisory lock, in a session that does nothing but hold it.
//!
//! `supervisor` opens a [`Candidate`] and polls it; when it gets the lock it has a [`Lead`], whose loss ends everything that this
//! instance writes. `lock` knows the keys and the other holders; `writer` opens the session that writes.
//!
//! ```text
//! Candidate ─ try_lead ─▶ Lead ── earlier sessions ended (sessions) ── staging swept ── open_writer ── apply
//!     ▲          │         │
//!     └─ in use ─┘         └─ lost: the session ended ─▶ the attempt fails; lock, position, slot again, in this order
//! ```
//!
//! The lock decides who tries; the conditional position update alone decides who commits, so two leaders for a moment are
//! a nuisance, not a danger.
//!
//! The session lives on a thread of its own ([`DedicatedSession`]), so it does not depend on how busy the process is. A leader
//! that is frozen as a whole (SIGSTOP, a stalled machine) keeps its TCP connections alive through its kernel: the session
//! therefore sets idle_session_timeout to `leader_timeout`, and the thread pings three times as often. The session is never in
//! the middle of a statement that waits for its client, so that timeout always runs. What else the frozen leader has open,
//! its writing session first, is ended by the next leader before it begins. Decision 0022.
//!
//! Versions before this one held the lock with the writing session. That one may freeze in the middle of a pipelined request, *active* and
//! waiting for bytes, when no timeout of the server's runs: a candidate that sees it so for twice `leader_timeout` ends it.
//!
//! Bound: a candidate asks once a second, never inside a waiting statement, which would hold a snapshot open.

use std::time::Duration;

use super::bookkeeping::Bookkeeping;
use super::error::DestinationError;
use super::lock::{Got, LockHolders, LockKeys, LockVerdict, replace_key};
use super::writer::{
    OWN_PROCESS, ReplicationRole, TAKE_REPLICA_ROLE, Writer, WritingSettings, check_no_pooler, refuse_pooler,
    replication_role,
};
use crate::config::ConnectionSettings;
use crate::destination::first_row::one_row;
use crate::pg::SlotName;
use crate::session::{DedicatedSession, DedicatedSettings, PipelinedRequest, SessionError, SqlClient};

/// How the lock's session is set up.
#[derive(Clone, Debug)]
pub struct LockSettings {
    /// Where, and as whom.
    pub connection: ConnectionSettings,
    /// The slot: part of the lock's key.
    pub slot: SlotName,
    /// Silence after which the server ends the session.
    pub leader_timeout: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// A session that does not hold the lock.
pub struct Candidate {
    session: DedicatedSession,
    slot: SlotName,
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
    Lead(Lead, LockHolders),
    /// Another instance does.
    Candidate(Candidate, LockHolders),
}

/// The lock, held.
pub struct Lead {
    session: DedicatedSession,
    role: ReplicationRole,
}

const DOING: &str = "becoming the leader";

/// How often a key is replaced within one attempt: each round needs a foreign session that was quicker than we were.
const LOCK_ROUNDS: usize = 5;

impl Candidate {
    /// Opens the lock's session.
    ///
    /// # Errors
    /// [`DestinationError`]; a transaction pooler in between is refused.
    pub async fn connect(settings: &LockSettings) -> Result<Candidate, DestinationError> {
        let millis = settings.leader_timeout.as_millis().to_string();
        let session = DedicatedSession::open(DedicatedSettings {
            connection: settings.connection.clone(),
            purpose: format!("{} leading", settings.slot),
            settings: vec![("idle_session_timeout", millis.clone()), ("idle_in_transaction_session_timeout", millis)],
            ping_every: settings.leader_timeout / 3,
            timeout: settings.timeout,
        })
        .await
        .map_err(refuse_pooler)?;
        let candidate = Candidate { session, slot: settings.slot.clone() };
        let row = candidate.ask(OWN_PROCESS).await?;
        check_no_pooler(&row, candidate.session.process_id())?;
        Ok(candidate)
    }

    async fn ask(&self, sql: &str) -> Result<Vec<Option<String>>, SessionError> {
        let mut request = PipelinedRequest::new();
        request.query(sql);
        Ok(one_row(self.session.ask(DOING, request).await?))
    }

    /// Tries to take the lock, for somebody who keeps others from leading and writes nothing.
    ///
    /// # Errors
    /// [`DestinationError`] when a session is lost, or the bookkeeping would have to be created and cannot be.
    pub async fn try_lock(&self, bookkeeping: &Bookkeeping) -> Result<LockAttempt, DestinationError> {
        let client = bookkeeping.client();
        let own = self.session.process_id().try_into().ok();
        let mut holders = LockHolders::default();
        for _ in 0..LOCK_ROUNDS {
            let keys = LockKeys::read(client, &self.slot).await?;
            let got = self.take(keys).await?;
            if !got.all_of(keys) {
                holders = LockHolders::besides(client, keys, own).await?;
            }
            match holders.judge(keys, got) {
                // The row may have been written since it was read: then the lock is not the one that others try to take.
                LockVerdict::Lead if keys.same(LockKeys::read(client, &self.slot).await?) => {
                    return Ok(LockAttempt { taken: true, holders });
                }
                LockVerdict::Lead => {}
                LockVerdict::Wait => {
                    self.release().await?;
                    return Ok(LockAttempt { taken: false, holders });
                }
                LockVerdict::ReplaceKey => {
                    if let Some(held) = keys.stored {
                        replace_key(client, held).await?;
                    }
                }
                LockVerdict::CreateKey => bookkeeping.ensure().await?,
            }
            self.release().await?;
        }
        Ok(LockAttempt { taken: false, holders })
    }

    async fn take(&self, keys: LockKeys) -> Result<Got, DestinationError> {
        let stored = keys.stored.map(|key| format!(", pg_catalog.pg_try_advisory_lock({key})")).unwrap_or_default();
        let row = self.ask(&format!("SELECT pg_catalog.pg_try_advisory_lock({}){stored}", keys.by_name)).await?;
        let got = |at: usize| row.get(at).and_then(Option::as_deref) == Some("t");
        Ok(Got { by_name: got(0), stored: got(1) })
    }

    async fn release(&self) -> Result<(), DestinationError> {
        self.ask("SELECT pg_catalog.pg_advisory_unlock_all()").await?;
        Ok(())
    }

    /// Tries to take the lock, and to become the leader by it.
    ///
    /// # Errors
    /// As [`Candidate::try_lock`].
    pub async fn try_lead(self, bookkeeping: &Bookkeeping) -> Result<Led, DestinationError> {
        let LockAttempt { taken, holders } = self.try_lock(bookkeeping).await?;
        if !taken {
            return Ok(Led::Candidate(self, holders));
        }
        let role = replication_role(self.ask(TAKE_REPLICA_ROLE).await)?;
        Ok(Led::Lead(Lead { session: self.session, role }, holders))
    }

    /// Ends the session.
    pub async fn close(self) {
        self.session.close().await;
    }
}

impl Lead {
    /// Whether foreign keys and triggers act on what our role writes.
    pub fn role(&self) -> ReplicationRole {
        self.role
    }

    /// Opens the writing session. Every later leader finds it in `headwater.sessions`: the lock is known to be held after the
    /// record was made, so who takes the lock next reads the record.
    ///
    /// # Errors
    /// [`DestinationError`]; the lock is lost.
    pub async fn open_writer(&self, settings: &WritingSettings) -> Result<Writer, DestinationError> {
        let writer = Writer::recorded(settings, "writing").await?;
        self.session.ask("confirming the leader's lock", PipelinedRequest::new()).await?;
        writer.marked().await
    }

    /// Resolves when the lock is lost. May be dropped at any time and called again.
    pub async fn lost(&mut self) -> DestinationError {
        self.session.lost().await.into()
    }

    /// Lets go of the lock.
    pub async fn close(self) {
        self.session.close().await;
    }
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
