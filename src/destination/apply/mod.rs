//! Work into pipelined requests, answers into progress.
//!
//! Driven by `apply_worker::apply_loop`: [`Applier::submit`] writes a pipelined request for each piece of work,
//! [`Applier::answered`] and [`Applier::conclude`] tell what became of the oldest. Two pipelined requests are under way at most:
//! the next is sent before the previous one is answered.
//!
//! ```text
//! a batch:            BEGIN · advance(p, end_lsn) · rows … · COMMIT · Sync
//! a large one:        BEGIN · advance(p, p) · Sync   rows … · Sync   …   advance(p, end_lsn) · COMMIT · Sync
//!                                             └ sent only once the server says that it is inside a transaction
//! a changed table:    between two pieces of a large one, once those before are answered: see `evolve`
//! ahead of a commit:  BEGIN · Sync   rows … · Sync   …   advance(p, end_lsn) · COMMIT · Sync      see `ahead`
//! an idle position:   BEGIN · SET LOCAL synchronous_commit = local · advance(p, wal_end) · COMMIT · Sync
//! ```
//!
//! Changes go by their net effect, in sets. After an error: wait for the last outstanding Sync, ROLLBACK, read the
//! position, decide. A batch that met a row's error is done again change by change, in the original order, then one
//! source transaction at a time, so that those before it are applied and the one that fails is known; only then is it a
//! conflict. Originals are kept until COMMIT is answered with COMMIT.
//!
//! Invariants: the position is advanced first, from where this instance left it (I3); what is between BEGIN and
//! COMMIT is whole source transactions (I2).

mod parallel_apply;
mod bind;
mod evolve;
mod followed;
mod apply_mode;
mod retry;
mod rows;
mod sets;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::catalog::Catalog;
use super::conflict::{ApplyMode, Conflicts, Repair, Winning};
use super::error::DestinationError;
use super::writer::{ReplicationRole, Writer};
use crate::apply_plan::Work;
use crate::apply_plan::coalesce::Net;
use crate::catalog::fit::Transfer;
use crate::catalog::schema::Types;
use crate::config::TruncateMode;
use crate::pg::{Ident, Lsn, QualifiedName, RelationId};
use crate::progress::WalReading;
use crate::schema_change::expression::Expressions;
use crate::session::{Format, PipelinedAnswer, PipelinedRequest, SessionError, StatementAnswer};
use crate::telemetry::failpoint;
use crate::transaction::SchemaChange;
use crate::wire::Begin;
use bind::Bound;

pub use evolve::renamed_report;
pub use followed::Followed;
pub use parallel_apply::{ApplyContext, Unfit};
pub use retry::FIND_PREPARE;

/// Pipelined requests under way at most: one being executed, the next one already there when it is done.
const REQUESTS_MAX: usize = 2;

/// Calls the function, not the view: a lock on pg_rewrite would keep the view waiting.
const REFUSE_REPLACED: &str = "SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_prepared_statement() AS s WHERE s.from_sql) \
     THEN headwater.statement_replaced() END";

const READ_WAL: &str = "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn()";

/// How changes are applied.
#[derive(Clone, Debug)]
pub struct ApplierSettings {
    /// How a TRUNCATE is carried out.
    pub truncate: TruncateMode,
    /// COMMIT's answer means that it is durable.
    pub commits_are_durable: bool,
    /// The format in which values arrive.
    pub transfer: Transfer,
    /// Changes of the source's tables are followed; otherwise they stop the stream until they are made here.
    pub follow_schema_changes: bool,
    /// Roles whose code may run with our rights.
    pub trusted_roles: Vec<Ident>,
    /// Roles that own types of columns which are added are in the way, whether there is code or not.
    pub names_owners: bool,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What became of a piece of work.
#[derive(Debug)]
pub struct Applied {
    /// The work, with its originals; `None` for a ping.
    pub work: Option<Work>,
    /// The position that is stored now, when the work committed.
    pub position: Option<Lsn>,
    /// That position is durable.
    pub durable: bool,
    /// Deletes that found no row.
    pub missing_deletes: u64,
    /// Rows that were in conflict, where the source's have won.
    pub repairs: Vec<Repair>,
    /// The work was left out: it is in headwater.dead_letter.
    pub left_out: bool,
    /// The destination's WAL positions, when they were asked for.
    pub wal: Option<WalReading>,
    /// From sending to the answer.
    pub took: Duration,
}

/// Applies work through a writing session.
pub struct Applier {
    writer: Writer,
    settings: ApplierSettings,
    catalog: Catalog,
    source_types: Types,
    followed: HashMap<RelationId, Followed>,
    /// Every table's snapshot position is at or before this.
    snapshots_end: Lsn,
    bound: HashMap<RelationId, Bound>,
    /// Names that tables bore for a while, as the stream still brings them.
    former_names: BTreeSet<(RelationId, QualifiedName)>,
    prepared: usize,
    advance_prepared: bool,
    /// The position once everything that was sent has committed.
    sent: Lsn,
    /// The position that is known to be stored.
    stored: Lsn,
    under_way: VecDeque<Sent>,
    /// Work that goes first: what failed and what was under way behind it, done again.
    again: VecDeque<(Work, Strategy)>,
    large: Option<Large>,
    /// A schema change that waits until nothing is under way.
    schema_change: Option<SchemaChange>,
    /// A followed schema change has changed the catalog.
    changed: bool,
    /// What expressions of the source may call here, once it was asked for.
    expressions: Option<Expressions>,
    told: Vec<String>,
    formats: Vec<Format>,
    conflicts: Conflicts,
    /// While a pipelined request is written in which the source's rows win.
    winning: Option<Winning>,
    /// The number of the first statement of each change, while a pipelined request is written.
    marks: Vec<usize>,
    /// Foreign keys and ordinary triggers act on what this session writes.
    foreign_keys_act: bool,
    /// Triggers act on what this session writes, though it has the replica role.
    code_acts: bool,
    /// Gathers a pipelined request's changes; empty between pipelined requests.
    net: Net,
    /// The rows that the counted statements of the pipelined request being written are to touch.
    expected_counts: Vec<u64>,
    /// It applies one transaction in parallel, before it commits, while the leader's own session applies others.
    ahead: bool,
}

/// How a piece of work is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    /// By its net effect, in sets.
    Net,
    /// Change by change, as they came.
    InOrder,
}

/// A pipelined request that is not answered.
struct Sent {
    cargo: InFlight,
    /// The position that its COMMIT stores.
    commits: Option<Lsn>,
    durable: bool,
    sent_at: Instant,
    /// The number of the first statement of each change.
    marks: Vec<usize>,
    winning: Option<Winning>,
    left_out: bool,
    /// The commit_lsn of the transaction in pieces that it belongs to.
    large: Lsn,
    expected_counts: Vec<u64>,
}

/// A pipelined request with its answer, from which no conclusions were drawn yet.
pub struct Answered {
    sent: Sent,
    answer: PipelinedAnswer,
}

enum InFlight {
    Work(Work, Strategy),
    Ping,
}

/// The source transaction that is being applied in pieces.
#[derive(Clone, Copy)]
struct Large {
    begin: Begin,
    mode: ApplyMode,
    /// Parts that were written as dead letters.
    parts: u32,
    /// The server has said that it is inside the transaction.
    open: bool,
}

impl Applier {
    /// An applier for a writer at the position that it has read.
    pub fn new(
        writer: Writer,
        position: Lsn,
        settings: ApplierSettings,
        catalog: Catalog,
        source_types: Types,
        followed: HashMap<RelationId, Followed>,
        conflicts: Conflicts,
    ) -> Applier {
        let foreign_keys_act = writer.role() == ReplicationRole::Origin;
        let snapshots_end = followed.values().map(|table| table.snapshot_position).max().unwrap_or_default();
        Applier {
            writer,
            settings,
            catalog,
            source_types,
            followed,
            snapshots_end,
            bound: HashMap::new(),
            former_names: BTreeSet::new(),
            prepared: 0,
            advance_prepared: false,
            sent: position,
            stored: position,
            under_way: VecDeque::new(),
            again: VecDeque::new(),
            large: None,
            schema_change: None,
            changed: false,
            expressions: None,
            told: Vec::new(),
            formats: Vec::new(),
            conflicts,
            winning: None,
            marks: Vec::new(),
            foreign_keys_act,
            code_acts: false,
            net: Net::default(),
            expected_counts: Vec::new(),
            ahead: false,
        }
    }

    /// The position that is known to be stored.
    pub fn stored(&self) -> Lsn {
        self.stored
    }

    /// The position once everything that was sent has committed.
    pub fn sent(&self) -> Lsn {
        self.sent
    }

    /// Whether another piece of work may be submitted now.
    pub fn has_room(&self) -> bool {
        self.under_way.len() < REQUESTS_MAX
            && self.again.is_empty()
            && self.schema_change.is_none()
            && self.large.is_none_or(|large| large.open)
    }

    /// Whether an answer is awaited.
    pub fn is_busy(&self) -> bool {
        !self.under_way.is_empty() || !self.again.is_empty()
    }

    /// For how long the oldest answer has been awaited.
    pub fn waits_for(&self) -> Duration {
        self.under_way.front().map(|sent| sent.sent_at.elapsed()).unwrap_or_default()
    }

    /// Whether a source transaction is applied in part.
    pub fn in_large_transaction(&self) -> bool {
        self.large.is_some()
    }

    /// Writes and sends the pipelined request for a piece of work. With `read_wal` the answer brings the destination's WAL
    /// positions, read after the commit.
    ///
    /// # Errors
    /// [`DestinationError`]: a relation does not fit its table, or the session is lost.
    pub async fn submit(&mut self, work: Work, read_wal: bool) -> Result<(), DestinationError> {
        self.submit_as(work, Strategy::Net, read_wal).await
    }

    async fn submit_as(&mut self, work: Work, strategy: Strategy, read_wal: bool) -> Result<(), DestinationError> {
        let work = self.split_left_out(work, strategy);
        if let Work::ChangeSchema(change) = work {
            self.schema_change = Some(change);
            return self.follow_waiting().await;
        }
        let mut request = PipelinedRequest::new();
        let mut commits = None;
        let mut left_out = false;
        let mut durable = self.settings.commits_are_durable;
        match &work {
            Work::Batch(batch) => {
                let end_lsn = batch.end_lsn();
                self.begin(&mut request);
                self.advance(&mut request, self.sent, end_lsn);
                self.defer_foreign_keys(&mut request);
                left_out = self.write_in_mode(&mut request, batch, strategy)?;
                self.marks.push(request.statements());
                self.refuse_replaced(&mut request);
                request.commit();
                commits = Some(end_lsn);
            }
            Work::BeginLarge(begin) => {
                assert!(self.large.is_none(), "a transaction begins only after the previous one has ended");
                self.begin(&mut request);
                // In parallel apply it must hold up nobody who moves the position.
                if !self.ahead {
                    self.advance(&mut request, self.sent, self.sent);
                }
                self.defer_foreign_keys(&mut request);
                self.begin_large(begin);
            }
            Work::PieceOfLarge(piece) => {
                left_out = self.write_piece(&mut request, piece)?;
                self.marks.push(request.statements());
            }
            Work::ChangeSchema(_) => {}
            Work::CommitLarge { commit, .. } => {
                self.check_wanted(commit)?;
                self.advance(&mut request, self.sent, commit.end_lsn);
                left_out = self.end_large(&mut request, commit);
                self.refuse_replaced(&mut request);
                request.commit();
                commits = Some(commit.end_lsn);
            }
            Work::CommitParallel { commit, .. } => {
                // Others have moved the position's row meanwhile: this finds it for `advance`.
                request.query(&self.writer.settings.read_position());
                self.advance(&mut request, self.sent, commit.end_lsn);
                self.large = None;
                self.refuse_replaced(&mut request);
                request.commit();
                commits = Some(commit.end_lsn);
            }
            Work::Reached(position) => {
                request.run("BEGIN");
                // Its answer must mean that it is durable here. Whether a standby has it, too, is for the operator's setting to
                // say, as of every other commit: one that is out of reach would hold up all rows behind this.
                if !self.settings.commits_are_durable {
                    request.run("SET LOCAL synchronous_commit = local");
                }
                self.advance(&mut request, self.sent, *position);
                request.commit();
                commits = Some(*position);
                durable = true;
            }
        }
        if read_wal && commits.is_some() {
            request.query(READ_WAL);
        }
        self.sent = commits.unwrap_or(self.sent);
        self.send(InFlight::Work(work, strategy), request, commits, (durable, left_out)).await
    }

    /// Where code of the destination runs in this session, makes COMMIT wait for a look at its prepared statements: headwater's own are
    /// prepared by the protocol alone. The look costs a microsecond for each of them, so others do without.
    fn refuse_replaced(&self, request: &mut PipelinedRequest) {
        if self.foreign_keys_act || self.code_acts || !self.settings.names_owners {
            request.run(REFUSE_REPLACED);
        }
    }

    /// Where foreign keys act, they are checked at the end of the transaction: the source's cascades arrive as rows, the
    /// parent's delete before its children's.
    fn defer_foreign_keys(&self, request: &mut PipelinedRequest) {
        if self.foreign_keys_act {
            request.run("SET CONSTRAINTS ALL DEFERRED");
        }
    }

    /// Sends an empty pipelined request, so that the server does not take us for frozen. With `read_wal` the answer brings the
    /// destination's WAL positions.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost.
    pub async fn ping(&mut self, read_wal: bool) -> Result<(), DestinationError> {
        let mut request = PipelinedRequest::new();
        if read_wal {
            request.query(READ_WAL);
        }
        self.send(InFlight::Ping, request, None, (false, false)).await
    }

    async fn send(
        &mut self,
        cargo: InFlight,
        request: PipelinedRequest,
        commits: Option<Lsn>,
        (durable, left_out): (bool, bool),
    ) -> Result<(), DestinationError> {
        self.writer.session.send(request);
        let (marks, winning) = (std::mem::take(&mut self.marks), self.winning.take());
        let (sent_at, large) = (Instant::now(), self.large_commit_lsn());
        let expected_counts = std::mem::take(&mut self.expected_counts);
        let sent = Sent { cargo, commits, durable, sent_at, marks, winning, left_out, large, expected_counts };
        self.under_way.push_back(sent);
        self.writer.session.push().await?;
        failpoint::reached("apply.flight_sent");
        Ok(())
    }

    /// Waits until the oldest pipelined request is answered. Cancel-safe.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost or no answer came in time.
    ///
    /// # Panics
    /// When nothing is awaited.
    pub async fn answered(&mut self) -> Result<Answered, DestinationError> {
        let sent_at =
            self.under_way.front().expect("an answer is awaited only for a pipelined request that was sent").sent_at;
        let left = self.settings.timeout.saturating_sub(sent_at.elapsed());
        let answer = match tokio::time::timeout(left, self.writer.session.answer()).await {
            Ok(answer) => answer?,
            Err(_) => {
                let doing = "waiting for the destination's answer";
                return Err(SessionError::Timeout { doing, within: self.settings.timeout }.into());
            }
        };
        failpoint::reached("apply.flight_answered");
        let sent = self.under_way.pop_front().expect("the pipelined request that was answered");
        Ok(Answered { sent, answer })
    }

    /// Draws the conclusions from an answer: `None` when the work failed and is being done again. Not cancel-safe.
    ///
    /// # Errors
    /// [`DestinationError::Conflict`] for a row that the destination does not allow, after everything before it has
    /// been applied; [`DestinationError::PositionMoved`] when another instance writes; or the session is lost.
    pub async fn conclude(&mut self, answered: Answered) -> Result<Option<Applied>, DestinationError> {
        let Answered { sent, answer } = answered;
        match answer.failure {
            // Whatever it is: the transaction is applied at its commit, and that tells.
            Some((_, error)) if self.ahead => {
                Err(SessionError::Server { doing: "applying ahead of the commit", error: Box::new(error) }.into())
            }
            Some((statement, error)) => {
                self.failed(sent, statement, error).await?;
                Ok(None)
            }
            None => {
                let applied = self.succeeded(sent, answer)?;
                if self.under_way.is_empty() {
                    self.resend_next().await?;
                }
                self.follow_waiting().await?;
                Ok(Some(applied))
            }
        }
    }

    fn succeeded(&mut self, sent: Sent, answer: PipelinedAnswer) -> Result<Applied, DestinationError> {
        if sent.commits.is_some() && !answer.committed {
            // The transaction had failed before, so COMMIT was answered with ROLLBACK.
            return Err(SessionError::Protocol {
                doing: "committing",
                what: "COMMIT was not answered with COMMIT".to_owned(),
            }
            .into());
        }
        if let InFlight::Work(Work::BeginLarge(_), _) = &sent.cargo
            && let Some(large) = &mut self.large
        {
            large.open = answer.in_transaction;
        }
        let mut counts = Vec::new();
        let mut wal = None;
        for answer in answer.answers {
            match answer {
                StatementAnswer::Count(count) => counts.push(count),
                StatementAnswer::Row(row) => wal = row.and_then(|row| wal_reading(&row)),
            }
        }
        let (repairs, missing_deletes) = match sent.winning {
            Some(winning) => winning.conclude(counts.into_iter()),
            // Only deletes may find fewer rows than they name: updates raise, COPY counts what it was given.
            None => {
                let missing =
                    counts.iter().zip(&sent.expected_counts).map(|(found, named)| named.saturating_sub(*found));
                (Vec::new(), missing.sum())
            }
        };
        if let Some(position) = sent.commits {
            self.stored = position;
        }
        Ok(Applied {
            work: match sent.cargo {
                InFlight::Work(work, _) => Some(work),
                InFlight::Ping => None,
            },
            position: sent.commits,
            durable: sent.durable,
            missing_deletes,
            repairs,
            left_out: sent.left_out,
            wal,
            took: sent.sent_at.elapsed(),
        })
    }

    /// Leaves a transaction that was applied in part, if there is one.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost; the server then rolls back by itself.
    pub async fn abandon_large(&mut self) -> Result<(), DestinationError> {
        if self.large.is_some() {
            self.roll_back().await?;
            self.sent = self.stored;
        }
        Ok(())
    }

    /// Gives the session back.
    pub fn into_writer(self) -> Writer {
        self.writer
    }
}

fn wal_reading(row: &[Option<String>]) -> Option<WalReading> {
    let [insert_lsn, flush_lsn] = row else { return None };
    Some(WalReading {
        insert_lsn: insert_lsn.as_deref()?.parse().ok()?,
        flush_lsn: flush_lsn.as_deref()?.parse().ok()?,
    })
}
