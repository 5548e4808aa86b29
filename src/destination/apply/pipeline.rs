//! The session that awaits: requests out, their answers back in the order in which they were sent.
//!
//! Two pipelined requests are in flight at most: the next is sent before the previous one is answered. Everything that takes the session
//! for itself (a rollback, a question) waits until nothing is in flight.
//!
//! `T` is what the owner must know of a request when its answer comes: an [`Applier`](super::Applier) and a
//! [`ParallelApplier`](super::ParallelApplier) have each their own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::encoder::{Encoded, ExpectedAnswer};
use crate::destination::error::DestinationError;
use crate::destination::writer::Writer;
use crate::progress::WalReading;
use crate::session::{PipelinedAnswer, PipelinedRequest, SessionError, StatementAnswer};
use crate::telemetry::failpoint;

/// Pipelined requests in flight at most: one being executed, the next one already there when it is done.
const REQUESTS_MAX: usize = 2;

/// A request that is not answered yet.
struct InFlight<T> {
    task: T,
    expected: ExpectedAnswer,
    sent_at: Instant,
}

/// A request with its answer, from which no conclusions were drawn yet.
pub(super) struct AnsweredRequest<T> {
    pub(super) task: T,
    pub(super) expected: ExpectedAnswer,
    pub(super) answer: PipelinedAnswer,
    /// From sending to the answer.
    pub(super) elapsed: Duration,
}

/// A writing session with requests in flight.
pub(super) struct Pipeline<T> {
    pub(super) writer: Writer,
    in_flight: VecDeque<InFlight<T>>,
    timeout: Duration,
}

impl<T> Pipeline<T> {
    pub(super) fn new(writer: Writer, timeout: Duration) -> Pipeline<T> {
        Pipeline { writer, in_flight: VecDeque::new(), timeout }
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight.len() < REQUESTS_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// For how long the oldest answer has been awaited.
    pub(super) fn waits_for(&self) -> Duration {
        self.in_flight.front().map(|request| request.sent_at.elapsed()).unwrap_or_default()
    }

    /// Sends a request.
    pub(super) async fn send(&mut self, task: T, encoded: Encoded) -> Result<(), DestinationError> {
        let Encoded { request, expected } = encoded;
        self.writer.session.send(request);
        self.in_flight.push_back(InFlight { task, expected, sent_at: Instant::now() });
        self.writer.session.push().await?;
        failpoint::reached("apply.flight_sent");
        Ok(())
    }

    /// Waits until the oldest request is answered. Cancel-safe.
    ///
    /// # Panics
    /// When nothing is awaited.
    pub(super) async fn answered(&mut self) -> Result<AnsweredRequest<T>, DestinationError> {
        let oldest = self.in_flight.front().expect("an answer is awaited only for a request that was sent");
        let remaining = self.timeout.saturating_sub(oldest.sent_at.elapsed());
        let answer = self.answer_within(remaining).await?;
        failpoint::reached("apply.flight_answered");
        let InFlight { task, expected, sent_at } = self.in_flight.pop_front().expect("the request that was answered");
        Ok(AnsweredRequest { task, expected, answer, elapsed: sent_at.elapsed() })
    }

    async fn answer_within(&mut self, remaining: Duration) -> Result<PipelinedAnswer, DestinationError> {
        match tokio::time::timeout(remaining, self.writer.session.answer()).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                let doing = "waiting for the destination's answer";
                Err(SessionError::Timeout { doing, within: self.timeout, process_id: None }.into())
            }
        }
    }

    /// Waits for the last outstanding Sync and leaves the transaction; returns the tasks that were in flight.
    pub(super) async fn roll_back(&mut self) -> Result<Vec<T>, DestinationError> {
        let mut followers = Vec::new();
        while let Some(follower) = self.in_flight.pop_front() {
            self.answer_within(self.timeout).await?;
            followers.push(follower.task);
        }
        let mut request = PipelinedRequest::new();
        request.run("ROLLBACK");
        request.run("DEALLOCATE ALL");
        self.writer.session.round_trip("rolling back", request, self.timeout).await?;
        Ok(followers)
    }
}

/// What the statements of a request that went well have answered.
pub(super) struct Answers {
    pub(super) counts: Vec<u64>,
    pub(super) wal: Option<WalReading>,
}

impl<T> AnsweredRequest<T> {
    /// Checks that the COMMIT at the end of the request did so.
    ///
    /// # Errors
    /// COMMIT was answered with something else: the transaction had failed before, and this is ROLLBACK's answer.
    pub(super) fn check_committed(&self) -> Result<(), DestinationError> {
        if self.answer.committed {
            return Ok(());
        }
        let what = "COMMIT was not answered with COMMIT".to_owned();
        Err(SessionError::Protocol { doing: "committing", what }.into())
    }

    /// What the statements have answered.
    pub(super) fn take_answers(&mut self) -> Answers {
        let mut answers = Answers { counts: Vec::new(), wal: None };
        for answer in std::mem::take(&mut self.answer.answers) {
            match answer {
                StatementAnswer::Count(count) => answers.counts.push(count),
                StatementAnswer::Row(row) => answers.wal = row.and_then(|row| wal_reading(&row)),
            }
        }
        answers
    }
}

fn wal_reading(row: &[Option<String>]) -> Option<WalReading> {
    let [insert_lsn, flush_lsn] = row else { return None };
    Some(WalReading {
        insert_lsn: insert_lsn.as_deref()?.parse().ok()?,
        flush_lsn: flush_lsn.as_deref()?.parse().ok()?,
    })
}
