//! Asks the source what became of the subtransactions of a streamed transaction that has committed.
//!
//! PostgreSQL marks a subtransaction as streamed only if it still has changes in memory once they were sent
//! (`ReorderBufferTruncateTXN`). One that it has written to its disk and restored in several batches, such as a single TOASTed value of
//! more than 4096 chunks (8 MB), has none then, and its rollback sends no Stream Abort (*seen* on 15.18). So at Stream Commit
//! [`stream`](super::stream()) asks about every subtransaction that has brought changes and that no Stream Abort has come for. Until the
//! answer nothing more is read.
//!
//! **Why the answer is certain.** A session marks a subtransaction, and all inside it, as aborted at its rollback, before it writes the
//! commit that has come through the stream; a standby replays both in this order before it sends them. So *aborted* is final. *committed*
//! means kept, and so does *in progress*: the stream may bring the commit before others see it. A question that fails ends the stream,
//! and the next one brings the transaction again.
//!
//! Bounds: one question is out at a time, within the bound of every statement; its answer names what was rolled back.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::error::SourceError;
use crate::session::{SessionError, Sql, SqlClient};
use crate::wire::Commit;

/// A session that was not used for so long may be gone without anybody having said so.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(30);

/// A transaction that has committed.
#[derive(Debug)]
pub(super) struct SubtransactionQuestion {
    /// Its xid.
    pub(super) transaction: u32,
    /// Its commit, which waits for the answer.
    pub(super) commit: Commit,
    /// The xids of what is asked about.
    pub(super) subtransactions: Vec<u32>,
}

/// What became of a transaction's subtransactions.
#[derive(Debug)]
pub(super) struct SubtransactionOutcome {
    /// The transaction's xid.
    pub(super) transaction: u32,
    /// Its commit.
    pub(super) commit: Commit,
    /// Those that were rolled back.
    pub(super) rolled_back: HashSet<u32>,
}

type SubtransactionAnswer = Result<(SubtransactionOutcome, SqlClient), SourceError>;

/// Asks.
pub(super) struct SubtransactionOutcomes {
    sql: Sql,
    asking: Option<JoinHandle<SubtransactionAnswer>>,
    /// The session of the last question, and when that was.
    session: Option<(SqlClient, Instant)>,
}

impl Drop for SubtransactionOutcomes {
    fn drop(&mut self) {
        if let Some(asking) = &self.asking {
            asking.abort();
        }
    }
}

impl SubtransactionOutcomes {
    /// Asks through sessions of its own.
    pub(super) fn new(sql: Sql) -> SubtransactionOutcomes {
        SubtransactionOutcomes { sql, asking: None, session: None }
    }

    /// Whether nothing is waited for.
    pub(super) fn is_over(&self) -> bool {
        self.asking.is_none()
    }

    /// Asks; only when nothing is waited for.
    pub(super) fn ask(&mut self, question: SubtransactionQuestion) {
        debug_assert!(self.is_over(), "one question at a time");
        let is_fresh =
            |(session, used): &(SqlClient, Instant)| used.elapsed() < SESSION_IDLE_MAX && !session.is_closed();
        let session = self.session.take().filter(is_fresh).map(|(session, _)| session);
        let sql = self.sql.clone();
        self.asking = Some(tokio::spawn(async move {
            let client = match session {
                Some(session) => session,
                None => sql.connect().await?,
            };
            let SubtransactionQuestion { transaction, commit, subtransactions } = question;
            let rolled_back = rolled_back(&client, transaction, &subtransactions).await?;
            Ok((SubtransactionOutcome { transaction, commit, rolled_back }, client))
        }));
    }

    /// Waits for the answer; pending when none is waited for. Cancel-safe.
    pub(super) async fn answered(&mut self) -> Result<SubtransactionOutcome, SourceError> {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answer = match asking.await {
            Ok(answer) => answer,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            // Nobody aborts it before this is dropped.
            Err(_) => Err(SourceError::Ended),
        };
        self.asking = None;
        let (outcome, session) = answer?;
        self.session = Some((session, Instant::now()));
        Ok(outcome)
    }
}

/// Of the subtransactions of a transaction, those that were rolled back.
async fn rolled_back(
    client: &SqlClient,
    transaction: u32,
    subtransactions: &[u32],
) -> Result<HashSet<u32>, SourceError> {
    const DOING: &str = "asking what became of subtransactions";
    // The stream has the last 32 bits of an xid. Meant is the one that is nearest to the newest ones: before them, or a little behind
    // where their end is not visible yet.
    let sql = "SELECT s.xid, o.status
               FROM (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint AS newest) AS n,
                    pg_catalog.unnest($1::bigint[]) AS s (xid),
                    LATERAL (SELECT pg_catalog.pg_xact_status((n.newest
                        + ((s.xid - n.newest + 2147483648) & 4294967295) - 2147483648)::text::pg_catalog.xid8) AS status) AS o
               WHERE o.status IS NULL OR o.status = 'aborted'";
    let xids: Vec<i64> = subtransactions.iter().map(|xid| i64::from(*xid)).collect();
    let mut rolled_back = HashSet::new();
    for row in client.query(DOING, sql, &[&xids]).await? {
        let subtransaction = u32::try_from(row.get::<i64>(0)?)
            .map_err(|_| SessionError::protocol(DOING, "an xid that was not asked about"))?;
        if row.get::<Option<&str>>(1)?.is_none() {
            return Err(SourceError::OutcomeUnknown { subtransaction, transaction });
        }
        rolled_back.insert(subtransaction);
    }
    if !rolled_back.is_empty() {
        tracing::debug!(
            transaction,
            count = rolled_back.len(),
            "subtransactions were rolled back without a Stream Abort"
        );
    }
    Ok(rolled_back)
}
