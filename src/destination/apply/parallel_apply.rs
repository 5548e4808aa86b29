//! Applies a transaction that is still in progress at the source, on another session than the leader's.
//!
//! Driven by `apply_worker::parallel_apply`. It knows what the leader's applier knows ([`ApplyContext`]), but it does
//! not hold the lock and, until the commit, does not touch the position. The commit moves the position as the leader's does, on
//! condition that it is where the leader's session left it. So the commit has its place in the order of commits, and a session
//! that outlives its leader commits nothing (I2, I3).
//!
//! Sound only where the source's own locks order everything that could meet: rows found by a key, foreign keys and triggers
//! that do not act, no TRUNCATE. Anything else is an [`Obstacle`], and every error counts as one: the leader's session then applies the
//! transaction at its commit. So nothing is done again here, and nothing is kept for it.

use std::sync::Arc;
use std::time::Duration;

use super::pipeline::{AnsweredRequest, Pipeline};
use super::relation_map::RelationMap;
use super::requests::{self, Advance, Strategy};
use super::rows::TransactionChanges;
use super::settings::ApplyContext;
use crate::apply_core::{Observed, Obstacle, TableTraits, obstacle};
use crate::apply_plan::target::TargetIdentity;
use crate::destination::conflict::ApplyMode;
use crate::destination::error::DestinationError;
use crate::destination::writer::Writer;
use crate::pg::{Lsn, Relation};
use crate::session::SessionError;
use crate::transaction::Change;
use crate::wire::Commit;

/// Its commit is not known yet: it comes after everything that is.
const COMMIT_LSN: Lsn = Lsn::new(u64::MAX);

/// What a request of parallel apply carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParallelRequest {
    Begin,
    Changes,
    Commit,
    Ping,
}

/// Applies one transaction in parallel, before it commits.
pub struct ParallelApplier {
    pipeline: Pipeline<ParallelRequest>,
    map: RelationMap,
    /// The server has said that it is inside the transaction.
    is_open: bool,
}

/// What became of a request that went well.
#[derive(Clone, Copy, Debug)]
pub struct ParallelApplied {
    /// Deletes that found no row.
    pub missing_deletes: u64,
    /// From sending to the answer.
    pub elapsed: Duration,
}

/// A request of a [`ParallelApplier`] with its answer, from which no conclusions were drawn yet.
pub struct ParallelAnswered(AnsweredRequest<ParallelRequest>);

impl ParallelApplier {
    /// An applier for one transaction that has not committed at the source; its destination transaction is begun.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost.
    pub async fn begin(writer: Writer, context: ApplyContext) -> Result<ParallelApplier, DestinationError> {
        let timeout = context.settings.timeout;
        let map = RelationMap::new(context, writer.role(), writer.settings().advance());
        let mut applier = ParallelApplier { pipeline: Pipeline::new(writer, timeout), map, is_open: false };
        let begin = requests::begin_parallel(&mut applier.map);
        applier.pipeline.send(ParallelRequest::Begin, begin).await?;
        Ok(applier)
    }

    /// What stands against applying these changes in parallel, before they commit.
    ///
    /// # Errors
    /// [`DestinationError`]: a relation does not fit its table.
    pub fn obstacle(&mut self, changes: &[Change]) -> Result<Option<Obstacle>, DestinationError> {
        let mut last: Option<(&Arc<Relation>, Option<TableTraits>)> = None;
        for change in changes {
            let table = match change {
                Change::Truncate { .. } => None,
                // Runs of one table are the rule.
                Change::Row(row) => match last {
                    Some((known, table)) if Arc::ptr_eq(known, row.relation()) => table,
                    Some(_) | None => {
                        let table = self.traits_of(row.relation())?;
                        last = Some((row.relation(), table));
                        table
                    }
                },
            };
            if let Some(obstacle) = obstacle(&Observed::Change { change, table }) {
                return Ok(Some(obstacle));
            }
        }
        Ok(None)
    }

    /// `None` for a table that is not followed.
    fn traits_of(&mut self, relation: &Arc<Relation>) -> Result<Option<TableTraits>, DestinationError> {
        if self.map.followed.get(relation.id).is_none() {
            return Ok(None);
        }
        let target = self.map.bind(relation)?;
        Ok(Some(TableTraits {
            has_acting_triggers: target.side_effects.acts_in_replica(),
            has_key: matches!(target.identity, TargetIdentity::Key(_)),
        }))
    }

    /// Whether another request may be sent now.
    pub fn has_room(&self) -> bool {
        self.is_open && self.pipeline.has_room()
    }

    /// Whether an answer is awaited.
    pub fn is_busy(&self) -> bool {
        !self.pipeline.is_empty()
    }

    /// Sends changes of the transaction.
    ///
    /// # Errors
    /// [`DestinationError`]: a relation does not fit its table, or the session is lost.
    pub async fn apply(&mut self, changes: &[Change]) -> Result<(), DestinationError> {
        let part = TransactionChanges { first: 0, changes, commit_lsn: COMMIT_LSN };
        let encoded = requests::chunk(&mut self.map, part, ApplyMode::Normal, Strategy::Coalesced)?;
        self.pipeline.send(ParallelRequest::Changes, encoded).await
    }

    /// Sends the commit, when it is the transaction's turn: it moves the position from `stored`.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost.
    pub async fn commit(&mut self, stored: Lsn, commit: &Commit) -> Result<(), DestinationError> {
        let read_position = self.pipeline.writer.settings.read_position();
        let advance = Advance { from: stored, to: commit.end_lsn };
        let encoded = requests::commit_parallel(&mut self.map, &read_position, advance);
        self.pipeline.send(ParallelRequest::Commit, encoded).await
    }

    /// Sends an empty pipelined request, so that the server does not take us for frozen.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost.
    pub async fn ping(&mut self) -> Result<(), DestinationError> {
        self.pipeline.send(ParallelRequest::Ping, requests::ping(&mut self.map)).await
    }

    /// Waits until the oldest request is answered. Cancel-safe.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost or no answer came in time.
    ///
    /// # Panics
    /// When nothing is awaited.
    pub async fn answered(&mut self) -> Result<ParallelAnswered, DestinationError> {
        self.pipeline.answered().await.map(ParallelAnswered)
    }

    /// Draws the conclusions from an answer.
    ///
    /// # Errors
    /// Any failure: the transaction is applied at its commit, and that says what it means.
    pub fn conclude(
        &mut self,
        ParallelAnswered(mut answered): ParallelAnswered,
    ) -> Result<ParallelApplied, DestinationError> {
        if let Some((_, error)) = answered.answer.failure.take() {
            let doing = "applying ahead of the commit";
            return Err(SessionError::Server { doing, error: Box::new(error) }.into());
        }
        match answered.task {
            ParallelRequest::Begin => self.is_open = answered.answer.in_transaction,
            ParallelRequest::Commit => answered.check_committed()?,
            ParallelRequest::Changes | ParallelRequest::Ping => {}
        }
        let counts = answered.take_answers().counts;
        let AnsweredRequest { expected, elapsed, .. } = answered;
        let effects = expected.counts.conclude(counts.into_iter());
        Ok(ParallelApplied { missing_deletes: effects.missing_deletes, elapsed })
    }

    /// Gives the session back.
    pub fn into_writer(self) -> Writer {
        self.pipeline.writer
    }
}
