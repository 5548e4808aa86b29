//! The applier of the leader, and of a staging schema: tasks in their order, their results, what failed again.
//!
//! Driven by `apply_worker::apply_loop` and `table_sync::catch_up`: [`Applier::submit`] sends the request of a task,
//! [`Applier::answered`] and [`Applier::conclude`] say what became of the oldest. It owns the order: the position that the next request
//! starts from, what is sent again before anything new, the large transaction that is open, and the schema change that waits until
//! nothing is in flight.
//!
//! ```text
//!              submit                     answer                  conclude
//! task ─▶ (retry queue empty) ─▶ in flight ──▶ success: stored position, effects
//!   ▲                                    └──▶ failure: roll back, read the position, `failure::response`
//!   └──────────── retry queue ◀─────────────────────────┘ again, and what was in flight behind it
//! ```
//!
//! Originals are kept until COMMIT is answered with COMMIT: a task is dropped only in [`Applied`].

use std::collections::VecDeque;
use std::time::Duration;

use super::conflict_report::{FailedTransaction, conflict, statement_replaced_report, truncate_refused};
use super::encoder::{Effects, ExpectedAnswer};
use super::failure::{FailedTask, FailureResponse, Overwriting, response};
use super::pipeline::{AnsweredRequest, Answers, Pipeline};
use super::relation_map::RelationMap;
use super::requests::{self, Advance, Strategy};
use super::rows::TransactionChanges;
use super::schema_follower::SchemaFollower;
use super::settings::ApplyContext;
use crate::apply_core::{AtCommit, LiveSession};
use crate::apply_plan::{ApplyTask, Batch, LargeStep, TransactionEnd};
use crate::destination::conflict::{ApplyMode, ConflictPolicy, Repair};
use crate::destination::error::{Conflict, ConflictKind, DestinationError};
use crate::destination::other_table::{Filled, OtherTable};
use crate::destination::writer::Writer;
use crate::pg::{Lsn, QualifiedName};
use crate::progress::{StoredPosition, WalReading};
use crate::session::{ServerError, SessionError};
use crate::transaction::{Change, Chunk, SchemaChange};
use crate::wire::{Begin, Commit};

/// What became of a request.
#[derive(Debug)]
pub struct Applied {
    /// The task, with its originals; `None` for a ping and for a position without changes.
    pub task: Option<ApplyTask>,
    /// The position that is stored now, when the request committed.
    pub stored: Option<StoredPosition>,
    /// Deletes that found no row.
    pub missing_deletes: u64,
    /// Rows that were in conflict, where the source's have won.
    pub repairs: Vec<Repair>,
    /// The task was skipped: it is in headwater.dead_letter.
    pub is_skipped: bool,
    /// The destination's WAL positions, when they were asked for.
    pub wal: Option<WalReading>,
    /// From sending to the answer.
    pub elapsed: Duration,
}

/// A request of an [`Applier`] with its answer, from which no conclusions were drawn yet.
pub struct Answered(AnsweredRequest<SentTask>);

/// What a request carries out.
enum Submission {
    /// Whole transactions.
    Batch(Batch, Strategy),
    /// A step of the large transaction with this commit_lsn.
    Large(LargeStep, Lsn),
    /// A position without changes.
    Position(Lsn),
    /// Nothing.
    Ping,
}

/// What must be known of a request when its answer comes.
struct SentTask {
    submission: Submission,
    /// What its COMMIT stores.
    stores: Option<StoredPosition>,
    mode: ApplyMode,
}

/// The source transaction that is being applied in chunks.
#[derive(Clone, Copy)]
struct LargeTransaction {
    begin: Begin,
    mode: ApplyMode,
    /// Parts that were written as dead letters.
    letters: u32,
    /// The server has said that it is inside the transaction.
    is_open: bool,
}

/// Applies tasks through the leader's writing session, or a staging schema's.
pub struct Applier {
    pipeline: Pipeline<SentTask>,
    map: RelationMap,
    follower: SchemaFollower,
    policy: ConflictPolicy,
    /// The position once everything that was sent has committed.
    sent: Lsn,
    /// The position that is known to be stored.
    stored: Lsn,
    /// Sent before anything new: what failed and what was in flight behind it.
    retry_queue: VecDeque<Submission>,
    large: Option<LargeTransaction>,
    /// It waits until nothing is in flight.
    schema_change: Option<SchemaChange>,
}

impl Applier {
    /// An applier for a writer at the position that it has read.
    pub fn new(writer: Writer, position: Lsn, context: ApplyContext, policy: ConflictPolicy) -> Applier {
        let timeout = context.settings.timeout;
        Applier {
            map: RelationMap::new(context, writer.role(), writer.settings().advance()),
            pipeline: Pipeline::new(writer, timeout),
            follower: SchemaFollower::default(),
            policy,
            sent: position,
            stored: position,
            retry_queue: VecDeque::new(),
            large: None,
            schema_change: None,
        }
    }

    /// The position that is known to be stored.
    pub fn stored(&self) -> Lsn {
        self.stored
    }

    /// Whether another task may be submitted now.
    pub fn has_room(&self) -> bool {
        self.pipeline.has_room()
            && self.retry_queue.is_empty()
            && self.schema_change.is_none()
            && self.large.is_none_or(|large| large.is_open)
    }

    /// Whether an answer is awaited.
    pub fn is_busy(&self) -> bool {
        !self.pipeline.is_empty() || !self.retry_queue.is_empty()
    }

    /// For how long the oldest answer has been awaited.
    pub fn waits_for(&self) -> Duration {
        self.pipeline.waits_for()
    }

    /// Whether a source transaction is applied in part.
    pub fn in_large_transaction(&self) -> bool {
        self.large.is_some()
    }

    /// What schema changes were followed since this was asked last, for the log.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.follower.take_notices()
    }

    /// What parallel apply takes over from this applier.
    pub fn context(&self) -> ApplyContext {
        self.map.context()
    }

    /// Gives the session back.
    pub fn into_writer(self) -> Writer {
        self.pipeline.writer
    }

    /// Sends the request of a task. With `read_wal` the answer brings the destination's WAL positions, read after the commit.
    ///
    /// # Errors
    /// [`DestinationError`]: a relation does not fit its table, or the session is lost.
    pub async fn submit(&mut self, task: ApplyTask, read_wal: bool) -> Result<(), DestinationError> {
        match task {
            ApplyTask::Batch(batch) => self.submit_batch(batch, Strategy::Coalesced, read_wal).await,
            ApplyTask::Large(step) => self.submit_step(step, read_wal).await,
        }
    }

    /// Stores a position up to which the stream has nothing to apply.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost.
    pub async fn store_position(&mut self, position: Lsn) -> Result<(), DestinationError> {
        let encoded = requests::position(&mut self.map, Advance { from: self.sent, to: position });
        let stores = Some(StoredPosition { position, is_durable: true });
        self.sent = position;
        let sent = SentTask { submission: Submission::Position(position), stores, mode: ApplyMode::Normal };
        self.pipeline.send(sent, encoded).await
    }

    /// Sends an empty pipelined request, so that the server does not take us for frozen. With `read_wal` the answer brings the
    /// destination's WAL positions.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost.
    pub async fn ping(&mut self, read_wal: bool) -> Result<(), DestinationError> {
        let sent = SentTask { submission: Submission::Ping, stores: None, mode: ApplyMode::Normal };
        let encoded = requests::ping(&mut self.map).reading_wal(&mut self.map, read_wal);
        self.pipeline.send(sent, encoded).await
    }

    async fn submit_batch(&mut self, batch: Batch, strategy: Strategy, read_wal: bool) -> Result<(), DestinationError> {
        let batch = self.split_skipped(batch, strategy);
        let mode = match batch.members.as_slice() {
            [member] => self.policy.mode(member.commit.commit_lsn, Some(member.commit.end_lsn)),
            _ => ApplyMode::Normal,
        };
        let position = batch.end_lsn();
        let advance = Advance { from: self.sent, to: position };
        let encoded =
            requests::batch(&mut self.map, advance, &batch, mode, strategy)?.reading_wal(&mut self.map, read_wal);
        let stores = Some(self.stored_position(position));
        self.sent = position;
        let sent = SentTask { submission: Submission::Batch(batch, strategy), stores, mode };
        self.pipeline.send(sent, encoded).await
    }

    /// Takes a batch apart when it holds a transaction that is to be skipped: what comes back goes first, the rest waits in line.
    fn split_skipped(&mut self, batch: Batch, strategy: Strategy) -> Batch {
        let mut parts = batch.split_if(|commit| self.policy.is_skipped(commit.commit_lsn, Some(commit.end_lsn)));
        let first = parts.remove(0);
        for part in parts.into_iter().rev() {
            self.retry_queue.push_front(Submission::Batch(part, strategy));
        }
        first
    }

    async fn submit_step(&mut self, step: LargeStep, read_wal: bool) -> Result<(), DestinationError> {
        match step {
            LargeStep::Begin(begin) => self.submit_begin(begin).await,
            LargeStep::Chunk(chunk) => self.submit_chunk(chunk).await,
            LargeStep::ChangeSchema(change) => {
                self.schema_change = Some(change);
                self.follow_schema_change().await
            }
            LargeStep::Commit(end) => self.submit_commit(end, read_wal).await,
        }
    }

    async fn submit_begin(&mut self, begin: Begin) -> Result<(), DestinationError> {
        assert!(self.large.is_none(), "a transaction begins only after the previous one has ended");
        let mode = self.policy.mode(begin.final_lsn, None);
        self.large = Some(LargeTransaction { begin, mode, letters: 0, is_open: false });
        let encoded = requests::begin(&mut self.map, self.sent);
        let submission = Submission::Large(LargeStep::Begin(begin), begin.final_lsn);
        self.pipeline.send(SentTask { submission, stores: None, mode: ApplyMode::Normal }, encoded).await
    }

    async fn submit_chunk(&mut self, chunk: Chunk) -> Result<(), DestinationError> {
        let large = self.large.as_mut().expect("a chunk comes between its transaction's begin and commit");
        let LargeTransaction { begin, mode, .. } = *large;
        let encoded = match mode {
            ApplyMode::DeadLetter => {
                large.letters += 1;
                requests::dead_letter_chunk(&mut self.map, &begin, large.letters, &chunk.changes)
            }
            ApplyMode::Normal | ApplyMode::Overwrite => {
                let part = TransactionChanges { first: 0, changes: &chunk.changes, commit_lsn: begin.final_lsn };
                requests::chunk(&mut self.map, part, mode, strategy_of(&self.policy, begin.final_lsn))?
            }
        };
        let submission = Submission::Large(LargeStep::Chunk(chunk), begin.final_lsn);
        self.pipeline.send(SentTask { submission, stores: None, mode }, encoded).await
    }

    async fn submit_commit(&mut self, end: TransactionEnd, read_wal: bool) -> Result<(), DestinationError> {
        let Commit { commit_lsn, end_lsn, .. } = end.commit;
        let mode = self.large.map_or(ApplyMode::Normal, |large| large.mode);
        // Its end_lsn is known only now, and may be the name by which the operator wants it skipped.
        if mode != ApplyMode::DeadLetter && self.policy.is_skipped(commit_lsn, Some(end_lsn)) {
            return Err(DestinationError::WantedOut { commit_lsn, end_lsn });
        }
        let encoded =
            requests::commit(&mut self.map, self.sent, &end.commit, mode).reading_wal(&mut self.map, read_wal);
        self.large = None;
        let stores = Some(self.stored_position(end_lsn));
        self.sent = end_lsn;
        let submission = Submission::Large(LargeStep::Commit(end), commit_lsn);
        self.pipeline.send(SentTask { submission, stores, mode }, encoded).await
    }

    /// What a commit of changes stores.
    fn stored_position(&self, position: Lsn) -> StoredPosition {
        StoredPosition { position, is_durable: self.map.settings.commits_are_durable }
    }

    /// Follows the schema change that waits, once nothing is in flight.
    async fn follow_schema_change(&mut self) -> Result<(), DestinationError> {
        if self.pipeline.is_empty()
            && let Some(change) = self.schema_change.take()
        {
            let commit_lsn = self.large.map_or(Lsn::INVALID, |large| large.begin.final_lsn);
            if self.map.is_live(change.relation.id, commit_lsn) {
                self.follower.follow(&mut self.pipeline.writer, &mut self.map, change, commit_lsn).await?;
            }
        }
        Ok(())
    }

    /// Waits until the oldest request is answered. Cancel-safe.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost or no answer came in time.
    ///
    /// # Panics
    /// When nothing is awaited.
    pub async fn answered(&mut self) -> Result<Answered, DestinationError> {
        self.pipeline.answered().await.map(Answered)
    }

    /// Draws the conclusions from an answer: `None` when the task failed and is being done again. Not cancel-safe.
    ///
    /// # Errors
    /// [`DestinationError::Conflict`] for a row that the destination does not allow, after everything before it has
    /// been applied; [`DestinationError::PositionMoved`] when another instance writes; or the session is lost.
    pub async fn conclude(&mut self, Answered(mut answered): Answered) -> Result<Option<Applied>, DestinationError> {
        if let Some((statement, error)) = answered.answer.failure.take() {
            let AnsweredRequest { task, expected, .. } = answered;
            self.failed(task.submission, &expected, statement, error).await?;
            return Ok(None);
        }
        let applied = self.succeeded(answered)?;
        if self.pipeline.is_empty() {
            self.resend_next().await?;
        }
        self.follow_schema_change().await?;
        Ok(Some(applied))
    }

    fn succeeded(&mut self, mut answered: AnsweredRequest<SentTask>) -> Result<Applied, DestinationError> {
        let Answers { counts, wal } = answered.take_answers();
        if let Some(stored) = answered.task.stores {
            answered.check_committed()?;
            self.stored = stored.position;
        }
        let AnsweredRequest { task, expected, answer, elapsed } = answered;
        if let (Submission::Large(LargeStep::Begin(_), _), Some(large)) = (&task.submission, &mut self.large) {
            large.is_open = answer.in_transaction;
        }
        let Effects { repairs, missing_deletes } = expected.counts.conclude(counts.into_iter());
        Ok(Applied {
            task: task.submission.into_task(),
            stored: task.stores,
            missing_deletes,
            repairs,
            is_skipped: task.mode == ApplyMode::DeadLetter,
            wal,
            elapsed,
        })
    }

    /// A request failed: those behind it fail too, at their first statement. Nothing of them is stored.
    async fn failed(
        &mut self,
        submission: Submission,
        expected: &ExpectedAnswer,
        statement: usize,
        error: ServerError,
    ) -> Result<(), DestinationError> {
        let followers = self.roll_back().await?;
        self.refuse_moved_position(self.stored).await?;
        let again = match (response(self.failed_task(&submission, &error), &error), submission) {
            (FailureResponse::Resend(strategy), Submission::Batch(batch, _)) => {
                vec![Submission::Batch(batch, strategy)]
            }
            (FailureResponse::ResendEach, Submission::Batch(batch, _)) => {
                batch.split().map(|batch| Submission::Batch(batch, Strategy::RowByRow)).collect()
            }
            (FailureResponse::ResendOverwriting, Submission::Batch(batch, _)) => {
                self.policy.overwriting = batch.members.first().map(|member| member.commit.commit_lsn);
                vec![Submission::Batch(batch, Strategy::RowByRow)]
            }
            (response, submission) => {
                let change = expected.statement_offsets.change_of(statement);
                return Err(self.failure(response, &submission, change, error));
            }
        };
        self.retry_queue.extend(again);
        self.retry_queue.extend(followers);
        self.resend_next().await
    }

    /// What is known of a task, as far as its failure's meaning depends on it.
    fn failed_task(&self, submission: &Submission, error: &ServerError) -> FailedTask {
        let may_overwrite =
            |commit_lsn| ConflictKind::of(error.code).is_some_and(|kind| self.policy.may_overwrite(kind, commit_lsn));
        match submission {
            Submission::Batch(batch, strategy) => {
                let commit_lsn = submission.transaction().commit_lsn;
                let overwriting = if !may_overwrite(commit_lsn) {
                    Overwriting::No
                } else if self.map.source_tables.need_newer_catalog(&batch.changes, &self.map.catalog) {
                    Overwriting::WithNewerCatalog
                } else {
                    Overwriting::Now
                };
                FailedTask::Batch { transactions: batch.members.len(), strategy: *strategy, overwriting }
            }
            Submission::Large(LargeStep::Begin(_) | LargeStep::ChangeSchema(_), _) | Submission::Position(_) => {
                FailedTask::NoChanges
            }
            Submission::Large(LargeStep::Chunk(_) | LargeStep::Commit(_), commit_lsn) => {
                let overwriting =
                    if may_overwrite(*commit_lsn) { Overwriting::WithNewerCatalog } else { Overwriting::No };
                FailedTask::Large { strategy: strategy_of(&self.policy, *commit_lsn), overwriting }
            }
            Submission::Ping => FailedTask::Ping,
        }
    }

    /// The error that ends the attempt. `change`: the index of the one that failed.
    fn failure(
        &self,
        response: FailureResponse,
        submission: &Submission,
        change: Option<usize>,
        error: ServerError,
    ) -> DestinationError {
        let doing = "applying changes";
        let change = change.and_then(|index| submission.changes().get(index));
        let transaction = submission.transaction();
        match response {
            FailureResponse::OtherTable => {
                let (schema, table) = (error.schema.unwrap_or_default(), error.table.unwrap_or_default());
                OtherTable { table: QualifiedName::new(schema, table), filled: Filled::Unknown }.into()
            }
            FailureResponse::StatementReplaced => DestinationError::Refused(statement_replaced_report()),
            FailureResponse::RefuseSets => {
                DestinationError::SetsRefused { commit_lsn: transaction.commit_lsn, message: error.message }
            }
            FailureResponse::Conflict { kind, will_win } => DestinationError::Conflict(Box::new(Conflict {
                will_win,
                on_conflict: self.policy.on_conflict,
                user: self.pipeline.writer.user().cloned(),
                ..conflict(transaction, change, kind, error, &self.map.catalog)
            })),
            FailureResponse::TruncateRefused => match change {
                Some(Change::Truncate { relations, .. }) => truncate_refused(relations, &error),
                Some(Change::Row(_)) | None => SessionError::Server { doing, error: Box::new(error) }.into(),
            },
            FailureResponse::PingFailed => {
                SessionError::Server { doing: "pinging the destination", error: Box::new(error) }.into()
            }
            // Only batches are sent again: a large transaction's failure ends the attempt.
            FailureResponse::Resend(_)
            | FailureResponse::ResendEach
            | FailureResponse::ResendOverwriting
            | FailureResponse::Unexpected => SessionError::Server { doing, error: Box::new(error) }.into(),
        }
    }

    /// Leaves the transaction; returns what was in flight and what waited behind it.
    async fn roll_back(&mut self) -> Result<Vec<Submission>, DestinationError> {
        let followers = self.pipeline.roll_back().await?;
        self.map.session_was_reset();
        self.large = None;
        self.sent = self.stored;
        let followers = followers.into_iter().map(|sent| sent.submission).chain(self.retry_queue.drain(..));
        Ok(followers.filter(|submission| !matches!(submission, Submission::Ping)).collect())
    }

    /// Sends the next of what is done again, one request at a time.
    async fn resend_next(&mut self) -> Result<(), DestinationError> {
        match self.retry_queue.pop_front() {
            Some(Submission::Batch(batch, strategy)) => self.submit_batch(batch, strategy, false).await,
            Some(Submission::Large(step, _)) => self.submit_step(step, false).await,
            Some(Submission::Position(position)) => self.store_position(position).await,
            Some(Submission::Ping) | None => Ok(()),
        }
    }

    /// Leaves a transaction that was applied in part, if there is one.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost; the server then rolls back by itself.
    pub async fn abandon_large(&mut self) -> Result<(), DestinationError> {
        if self.large.is_some() {
            self.roll_back().await?;
        }
        Ok(())
    }

    /// What is known at its commit of a transaction that was applied in parallel.
    pub fn at_commit(&self, commit: &Commit) -> AtCommit {
        if self.policy.is_skipped(commit.commit_lsn, Some(commit.end_lsn)) {
            AtCommit::Skipped
        } else if self.map.followed.are_all_live_at(commit.commit_lsn) {
            AtCommit::Wanted
        } else {
            AtCommit::InSnapshot
        }
    }

    /// The session, as far as the apply loop's decisions depend on it.
    pub fn live_session(&self) -> LiveSession {
        LiveSession {
            stored: self.stored,
            is_busy: self.is_busy(),
            has_room: self.has_room(),
            in_large_transaction: self.in_large_transaction(),
            waits_for: self.waits_for(),
        }
    }

    /// Continues where the parallel session has moved the position to; call it with nothing in flight.
    ///
    /// # Errors
    /// [`DestinationError::PositionMoved`] when it is elsewhere; or the session is lost.
    pub async fn set_position(&mut self, position: Lsn) -> Result<(), DestinationError> {
        self.refuse_moved_position(position).await?;
        self.sent = position;
        self.stored = position;
        Ok(())
    }

    async fn refuse_moved_position(&mut self, expected: Lsn) -> Result<(), DestinationError> {
        let found = self.pipeline.writer.read_position().await?;
        if found == expected { Ok(()) } else { Err(DestinationError::PositionMoved { expected, found }) }
    }
}

/// How a large transaction's changes are carried out.
fn strategy_of(policy: &ConflictPolicy, commit_lsn: Lsn) -> Strategy {
    if policy.coalesces(commit_lsn) { Strategy::Coalesced } else { Strategy::RowByRow }
}

impl Submission {
    fn changes(&self) -> &[Change] {
        match self {
            Submission::Batch(batch, _) => &batch.changes,
            Submission::Large(LargeStep::Chunk(chunk), _) => &chunk.changes,
            Submission::Large(LargeStep::Begin(_) | LargeStep::ChangeSchema(_) | LargeStep::Commit(_), _)
            | Submission::Position(_)
            | Submission::Ping => &[],
        }
    }

    /// The transaction that a failure is about, by the names that the next attempt knows it by.
    fn transaction(&self) -> FailedTransaction {
        match self {
            Submission::Batch(batch, _) => batch.members.first().map_or(FailedTransaction::UNKNOWN, |member| {
                let Commit { commit_lsn, end_lsn, .. } = member.commit;
                FailedTransaction { commit_lsn, end_lsn: Some(end_lsn) }
            }),
            // Its begin did not tell the end_lsn, so that is no name by which the next attempt would know it.
            Submission::Large(_, commit_lsn) => FailedTransaction { commit_lsn: *commit_lsn, end_lsn: None },
            Submission::Position(_) | Submission::Ping => FailedTransaction::UNKNOWN,
        }
    }

    fn into_task(self) -> Option<ApplyTask> {
        match self {
            Submission::Batch(batch, _) => Some(ApplyTask::Batch(batch)),
            Submission::Large(step, _) => Some(ApplyTask::Large(step)),
            Submission::Position(_) | Submission::Ping => None,
        }
    }
}
