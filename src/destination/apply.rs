//! Work into flights, answers into progress.
//!
//! Driven by `pipeline::apply_loop`: [`Applier::submit`] writes a flight for each piece of work,
//! [`Applier::answered`] and [`Applier::conclude`] tell what became of the oldest. Two flights are under way at most:
//! the next is sent before the previous one is answered.
//!
//! ```text
//! a batch:            BEGIN · advance(p, end_lsn) · rows … · COMMIT · Sync
//! a large one:        BEGIN · advance(p, p) · Sync   rows … · Sync   …   advance(p, end_lsn) · COMMIT · Sync
//!                                             └ sent only once the server says that it is inside a transaction
//! an idle position:   BEGIN · SET LOCAL synchronous_commit = on · advance(p, wal_end) · COMMIT · Sync
//! ```
//!
//! After an error: wait for the last outstanding Sync, ROLLBACK, read the position, decide. A batch that met a row's
//! error is done again one source transaction at a time, so that those before it are applied and the one that fails is
//! known; only then is it a conflict. Originals are kept until COMMIT is answered with COMMIT.
//!
//! Invariants: the position is advanced first, from where this instance left it (I3); what is between BEGIN and
//! COMMIT is whole source transactions (I2).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::catalog::Catalog;
use super::error::{Conflict, ConflictKind, DestinationError};
use super::leadership::{Leader, READ_POSITION, one_row, position_in};
use crate::config::TruncateMode;
use crate::pg::{Datum, ErrorReport, Lsn, QualifiedName, Relation, RelationId, TypeId};
use crate::plan::fit::{self, End, Transfer};
use crate::plan::schema::Types;
use crate::plan::sql::apply as sql;
use crate::plan::statement::{self, Shape};
use crate::plan::target::{Target, TargetIdentity};
use crate::plan::{Batch, Work};
use crate::progress::WalReading;
use crate::session::{Flight, FlightAnswer, Format, ServerError, SessionError, StatementAnswer};
use crate::telemetry::failpoint;
use crate::transaction::Change;

/// Flights under way at most: one being executed, the next one already there when it is done.
const FLIGHTS_MAX: usize = 2;
/// Prepared statements kept at most; beyond that all are forgotten and prepared anew as needed.
const PREPARED_MAX: usize = 2000;
/// pg_lsn
const PG_LSN: TypeId = TypeId(3220);

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
    /// How long an answer may take.
    pub timeout: Duration,
}

/// A table that is followed.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Its name at the destination.
    pub name: QualifiedName,
    /// Changes with commit_lsn below this are in its snapshot.
    pub snapshot_position: Lsn,
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
    /// The destination's WAL positions, when they were asked for.
    pub wal: Option<WalReading>,
    /// From sending to the answer.
    pub took: Duration,
}

/// Applies work through the leader's session.
pub struct Applier {
    leader: Leader,
    settings: ApplierSettings,
    catalog: Catalog,
    source_types: Types,
    followed: HashMap<RelationId, Followed>,
    /// Every table's snapshot position is at or before this.
    snapshots_end: Lsn,
    bound: HashMap<RelationId, Bound>,
    prepared: usize,
    advance_prepared: bool,
    /// The position once everything that was sent has committed.
    sent: Lsn,
    /// The position that is known to be stored.
    stored: Lsn,
    under_way: VecDeque<Sent>,
    /// Work that goes first: batches that are done again, one source transaction at a time.
    again: VecDeque<Work>,
    large: Option<Large>,
    formats: Vec<Format>,
}

/// A relation, its table, and the statements prepared for it.
struct Bound {
    relation: Arc<Relation>,
    target: Arc<Target>,
    statements: HashMap<Shape, Prepared>,
}

#[derive(Clone)]
struct Prepared {
    name: String,
    parameters: usize,
}

/// A flight that is not answered.
struct Sent {
    cargo: Cargo,
    /// The position that its COMMIT stores.
    commits: Option<Lsn>,
    durable: bool,
    sent_at: Instant,
}

/// A flight with its answer, from which no conclusions were drawn yet.
pub struct Answered {
    sent: Sent,
    answer: FlightAnswer,
}

enum Cargo {
    Work(Work),
    Ping,
}

/// The source transaction that is being applied in pieces.
#[derive(Clone, Copy)]
struct Large {
    final_lsn: Lsn,
    /// The server has said that it is inside the transaction.
    open: bool,
}

impl Applier {
    /// An applier for a leader at the position that it has read.
    pub fn new(
        leader: Leader,
        position: Lsn,
        settings: ApplierSettings,
        catalog: Catalog,
        source_types: Types,
        followed: HashMap<RelationId, Followed>,
    ) -> Applier {
        let snapshots_end = followed.values().map(|table| table.snapshot_position).max().unwrap_or_default();
        Applier {
            leader,
            settings,
            catalog,
            source_types,
            followed,
            snapshots_end,
            bound: HashMap::new(),
            prepared: 0,
            advance_prepared: false,
            sent: position,
            stored: position,
            under_way: VecDeque::new(),
            again: VecDeque::new(),
            large: None,
            formats: Vec::new(),
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
        self.under_way.len() < FLIGHTS_MAX && self.again.is_empty() && self.large.is_none_or(|large| large.open)
    }

    /// Whether an answer is awaited.
    pub fn is_busy(&self) -> bool {
        !self.under_way.is_empty() || !self.again.is_empty()
    }

    /// Whether a source transaction is applied in part.
    pub fn in_large_transaction(&self) -> bool {
        self.large.is_some()
    }

    /// Writes and sends the flight for a piece of work. With `read_wal` the answer brings the destination's WAL
    /// positions, read after the commit.
    ///
    /// # Errors
    /// [`DestinationError`]: a relation does not fit its table, or the session is lost.
    pub async fn submit(&mut self, work: Work, read_wal: bool) -> Result<(), DestinationError> {
        let mut flight = Flight::new();
        let mut commits = None;
        let mut durable = self.settings.commits_are_durable;
        match &work {
            Work::Batch(batch) => {
                let end_lsn = batch.end_lsn();
                flight.run("BEGIN");
                self.advance(&mut flight, self.sent, end_lsn);
                self.write_batch(&mut flight, batch)?;
                flight.commit();
                commits = Some(end_lsn);
            }
            Work::BeginLarge(begin) => {
                assert!(self.large.is_none(), "a transaction begins only after the previous one has ended");
                flight.run("BEGIN");
                self.advance(&mut flight, self.sent, self.sent);
                self.large = Some(Large { final_lsn: begin.final_lsn, open: false });
            }
            Work::PieceOfLarge(piece) => {
                let large = self.large.expect("a piece comes between its transaction's begin and commit");
                self.write_changes(&mut flight, &piece.changes, large.final_lsn)?;
            }
            Work::CommitLarge { commit, .. } => {
                self.advance(&mut flight, self.sent, commit.end_lsn);
                flight.commit();
                commits = Some(commit.end_lsn);
                self.large = None;
            }
            Work::Reached(position) => {
                flight.run("BEGIN");
                flight.run("SET LOCAL synchronous_commit = on");
                self.advance(&mut flight, self.sent, *position);
                flight.commit();
                commits = Some(*position);
                durable = true;
            }
        }
        if read_wal && commits.is_some() {
            flight.query(READ_WAL);
        }
        self.sent = commits.unwrap_or(self.sent);
        self.send(Cargo::Work(work), flight, commits, durable).await
    }

    /// Sends an empty flight, so that the server does not take us for frozen. With `read_wal` the answer brings the
    /// destination's WAL positions.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost.
    pub async fn ping(&mut self, read_wal: bool) -> Result<(), DestinationError> {
        let mut flight = Flight::new();
        if read_wal {
            flight.query(READ_WAL);
        }
        self.send(Cargo::Ping, flight, None, false).await
    }

    async fn send(
        &mut self,
        cargo: Cargo,
        flight: Flight,
        commits: Option<Lsn>,
        durable: bool,
    ) -> Result<(), DestinationError> {
        self.leader.session.send(flight);
        self.under_way.push_back(Sent { cargo, commits, durable, sent_at: Instant::now() });
        self.leader.session.push().await?;
        failpoint::reached("apply.flight_sent");
        Ok(())
    }

    /// Waits until the oldest flight is answered. Cancel-safe.
    ///
    /// # Errors
    /// [`DestinationError`] when the session is lost or no answer came in time.
    ///
    /// # Panics
    /// When nothing is awaited.
    pub async fn answered(&mut self) -> Result<Answered, DestinationError> {
        let sent_at = self.under_way.front().expect("an answer is awaited only for a flight that was sent").sent_at;
        let left = self.settings.timeout.saturating_sub(sent_at.elapsed());
        let answer = match tokio::time::timeout(left, self.leader.session.answer()).await {
            Ok(answer) => answer?,
            Err(_) => {
                let doing = "waiting for the destination's answer";
                return Err(SessionError::Timeout { doing, within: self.settings.timeout }.into());
            }
        };
        failpoint::reached("apply.flight_answered");
        let sent = self.under_way.pop_front().expect("the flight that was answered");
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
            Some((statement, error)) => {
                self.failed(sent, statement, error).await?;
                Ok(None)
            }
            None => {
                let applied = self.succeeded(sent, answer)?;
                if self.under_way.is_empty() {
                    self.resend_next().await?;
                }
                Ok(Some(applied))
            }
        }
    }

    fn succeeded(&mut self, sent: Sent, answer: FlightAnswer) -> Result<Applied, DestinationError> {
        if sent.commits.is_some() && !answer.committed {
            // The transaction had failed before, so COMMIT was answered with ROLLBACK.
            return Err(SessionError::Protocol {
                doing: "committing",
                what: "COMMIT was not answered with COMMIT".to_owned(),
            }
            .into());
        }
        if let Cargo::Work(Work::BeginLarge(_)) = &sent.cargo
            && let Some(large) = &mut self.large
        {
            large.open = answer.in_transaction;
        }
        let mut missing_deletes = 0;
        let mut wal = None;
        for answer in answer.answers {
            match answer {
                StatementAnswer::Count(0) => missing_deletes += 1,
                StatementAnswer::Count(_) => {}
                StatementAnswer::Row(row) => wal = row.and_then(|row| wal_reading(&row)),
            }
        }
        if let Some(position) = sent.commits {
            self.stored = position;
        }
        Ok(Applied {
            work: match sent.cargo {
                Cargo::Work(work) => Some(work),
                Cargo::Ping => None,
            },
            position: sent.commits,
            durable: sent.durable,
            missing_deletes,
            wal,
            took: sent.sent_at.elapsed(),
        })
    }

    /// A flight failed: those behind it fail too, at their first statement. Nothing of them is stored.
    async fn failed(&mut self, sent: Sent, statement: usize, error: ServerError) -> Result<(), DestinationError> {
        let followers = self.roll_back().await?;
        let found = self.read_position().await?;
        if found != self.stored {
            return Err(DestinationError::PositionMoved { expected: self.stored, found });
        }
        let kind = ConflictKind::of(error.code);
        let several = matches!(&sent.cargo, Cargo::Work(Work::Batch(batch)) if batch.members.len() > 1);
        // The position is as it should be, so its row has only moved (VACUUM FULL): its new ctid was just read.
        let moved = error.code.as_str() == "HW001";
        let Cargo::Work(work) = sent.cargo else {
            return Err(SessionError::Server { doing: "pinging the destination", error: Box::new(error) }.into());
        };
        match (work, kind) {
            (work @ Work::Batch(_), _) if moved => self.again.push_back(work),
            (Work::Batch(batch), Some(_)) if several => self.again.extend(batch.split().map(Work::Batch)),
            (work, Some(kind)) => {
                return Err(DestinationError::Conflict(Box::new(self.conflict(&work, statement, kind, error))));
            }
            (_, None) => return Err(SessionError::Server { doing: "applying changes", error: Box::new(error) }.into()),
        }
        self.again.extend(followers);
        self.resend_next().await
    }

    /// Waits for the last outstanding Sync and leaves the transaction; returns the work that was under way.
    async fn roll_back(&mut self) -> Result<Vec<Work>, DestinationError> {
        let mut followers = Vec::new();
        while let Some(follower) = self.under_way.pop_front() {
            tokio::time::timeout(self.settings.timeout, self.leader.session.answer()).await.map_err(|_| {
                let doing = "waiting for the destination's answer";
                SessionError::Timeout { doing, within: self.settings.timeout }
            })??;
            if let Cargo::Work(work) = follower.cargo {
                followers.push(work);
            }
        }
        followers.extend(self.again.drain(..));
        let mut flight = Flight::new();
        flight.run("ROLLBACK");
        flight.run("DEALLOCATE ALL");
        self.leader.session.round_trip("rolling back", flight, self.settings.timeout).await?;
        self.bound.clear();
        self.prepared = 0;
        self.advance_prepared = false;
        self.large = None;
        Ok(followers)
    }

    async fn read_position(&mut self) -> Result<Lsn, DestinationError> {
        let mut flight = Flight::new();
        flight.query(READ_POSITION);
        let answer = self.leader.session.round_trip("reading the position", flight, self.settings.timeout).await?;
        let found = position_in(&one_row(answer))?;
        self.sent = self.stored;
        Ok(found)
    }

    /// Sends the next of what is done again, one flight at a time.
    async fn resend_next(&mut self) -> Result<(), DestinationError> {
        if let Some(work) = self.again.pop_front() {
            // Only batches can be done again: a large transaction's failure ends the run.
            self.submit(work, false).await?;
        }
        Ok(())
    }

    fn conflict(&self, work: &Work, statement: usize, kind: ConflictKind, error: ServerError) -> Conflict {
        let change = self.change_of(work, statement);
        let (commit_lsn, end_lsn) = match work {
            Work::Batch(batch) => batch
                .members
                .first()
                .map_or((Lsn::INVALID, None), |member| (member.commit.commit_lsn, Some(member.commit.end_lsn))),
            Work::CommitLarge { commit, .. } => (commit.commit_lsn, Some(commit.end_lsn)),
            Work::BeginLarge(begin) => (begin.final_lsn, None),
            Work::PieceOfLarge(_) => (self.large.map_or(Lsn::INVALID, |large| large.final_lsn), None),
            Work::Reached(_) => (Lsn::INVALID, None),
        };
        let (relation, operation) = match change {
            Some(Change::Insert { relation, .. }) => (Some(relation), Some("insert")),
            Some(Change::Update { relation, .. }) => (Some(relation), Some("update")),
            Some(Change::Delete { relation, .. }) => (Some(relation), Some("delete")),
            Some(Change::Truncate { relations, .. }) => (relations.first(), Some("truncate")),
            None => (None, None),
        };
        let key = relation.into_iter().flat_map(|relation| &relation.columns);
        let message = match kind {
            ConflictKind::MissingRow => "the row to update does not exist".to_owned(),
            ConflictKind::UniqueViolation
            | ConflictKind::ForeignKeyViolation
            | ConflictKind::CheckViolation
            | ConflictKind::NotNullViolation
            | ConflictKind::ExclusionViolation
            | ConflictKind::DataException
            | ConflictKind::Other => error.message,
        };
        Conflict {
            kind,
            table: relation.map(|relation| relation.name.clone()),
            operation,
            key: key.filter(|column| column.in_identity).map(|column| column.name.clone()).collect(),
            constraint: error.constraint.or(error.column),
            message,
            code: error.code,
            commit_lsn,
            end_lsn,
        }
    }

    /// The change that a statement of a flight carried out, counted as they were written.
    fn change_of<'a>(&self, work: &'a Work, statement: usize) -> Option<&'a Change> {
        // BEGIN and advance come before the first change of a batch; pieces begin with theirs.
        let (changes, before) = match work {
            Work::Batch(batch) => (&batch.changes, 2),
            Work::PieceOfLarge(piece) => (&piece.changes, 0),
            Work::BeginLarge(_) | Work::CommitLarge { .. } | Work::Reached(_) => return None,
        };
        let mut left = statement.checked_sub(before)?;
        for change in changes {
            let statements = match change {
                Change::Truncate { relations, .. } => match self.settings.truncate {
                    TruncateMode::Truncate => 1,
                    TruncateMode::Delete => relations.len(),
                },
                // Which changes take no statement depends on their target, which is forgotten by now; they are so rare
                // that a neighbour may be named instead.
                Change::Insert { .. } | Change::Update { .. } | Change::Delete { .. } => 1,
            };
            if left < statements {
                return Some(change);
            }
            left -= statements;
        }
        None
    }

    fn advance(&mut self, flight: &mut Flight, previous: Lsn, next: Lsn) {
        if !self.advance_prepared {
            flight.parse("advance", "SELECT headwater.advance($1, $2)", &[PG_LSN, PG_LSN]);
            self.advance_prepared = true;
        }
        flight.execute("advance", &[Format::Binary], 2, |values| {
            values.put(Some(&previous.as_u64().to_be_bytes()));
            values.put(Some(&next.as_u64().to_be_bytes()));
        });
    }

    fn write_batch(&mut self, flight: &mut Flight, batch: &Batch) -> Result<(), DestinationError> {
        let mut begin = 0;
        for member in &batch.members {
            let changes = batch.changes.get(begin..member.changes_end).unwrap_or_default();
            self.write_changes(flight, changes, member.commit.commit_lsn)?;
            begin = member.changes_end;
        }
        Ok(())
    }

    fn write_changes(
        &mut self,
        flight: &mut Flight,
        changes: &[Change],
        commit_lsn: Lsn,
    ) -> Result<(), DestinationError> {
        for change in changes {
            match change {
                Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
                    if self.is_live(relation.id, commit_lsn) {
                        self.write_row(flight, relation, change)?;
                    }
                }
                Change::Truncate { relations, restart_identity } => {
                    let mut targets = Vec::new();
                    for relation in relations {
                        if self.is_live(relation.id, commit_lsn) {
                            self.bind(relation)?;
                            targets.extend(self.bound.get(&relation.id).map(|bound| Arc::clone(&bound.target)));
                        }
                    }
                    self.write_truncate(flight, &targets, *restart_identity);
                }
            }
        }
        Ok(())
    }

    /// Whether a change of a transaction belongs to what is followed, and not to the table's snapshot.
    fn is_live(&self, relation: RelationId, commit_lsn: Lsn) -> bool {
        match self.followed.get(&relation) {
            Some(_) if commit_lsn >= self.snapshots_end => true,
            Some(table) => commit_lsn >= table.snapshot_position,
            None => false,
        }
    }

    fn write_truncate(&mut self, flight: &mut Flight, targets: &[Arc<Target>], restart_identity: bool) {
        if targets.is_empty() {
            return;
        }
        match self.settings.truncate {
            TruncateMode::Truncate => {
                let targets: Vec<&Target> = targets.iter().map(Arc::as_ref).collect();
                flight.run(&sql::truncate(&targets, restart_identity));
            }
            TruncateMode::Delete => {
                for target in targets {
                    flight.run(&sql::delete_all(target));
                }
            }
        }
    }

    fn write_row(
        &mut self,
        flight: &mut Flight,
        relation: &Arc<Relation>,
        change: &Change,
    ) -> Result<(), DestinationError> {
        self.bind(relation)?;
        if self.prepared >= PREPARED_MAX {
            flight.run("DEALLOCATE ALL");
            self.forget_prepared();
        }
        let Some(bound) = self.bound.get_mut(&relation.id) else { return Ok(()) };
        let target = Arc::clone(&bound.target);
        let Some(shape) = statement::shape(&target, change)? else { return Ok(()) };
        let prepared = match bound.statements.get(&shape) {
            Some(prepared) => prepared.clone(),
            None => {
                self.prepared += 1;
                let types = statement::parameter_types(&target, &shape);
                let prepared = Prepared { name: format!("s{}", self.prepared), parameters: types.len() };
                flight.parse(&prepared.name, &statement::sql(&target, &shape), &types);
                bound.statements.insert(shape.clone(), prepared.clone());
                prepared
            }
        };
        self.formats.clear();
        statement::parameters(&target, &shape, change, |value| {
            self.formats.push(if matches!(value, Datum::Text(_)) { Format::Text } else { Format::Binary });
        });
        let write = |values: &mut crate::session::Parameters<'_>| {
            statement::parameters(&target, &shape, change, |value| values.put(value.bytes()));
        };
        match shape {
            Shape::Delete => flight.execute_counted(&prepared.name, &self.formats, prepared.parameters, write),
            Shape::Insert | Shape::Update { .. } => {
                flight.execute(&prepared.name, &self.formats, prepared.parameters, write);
            }
        }
        Ok(())
    }

    fn forget_prepared(&mut self) {
        for bound in self.bound.values_mut() {
            bound.statements.clear();
        }
        self.prepared = 0;
        self.advance_prepared = false;
    }

    /// Makes sure that the relation is bound to its table as the stream describes it now.
    fn bind(&mut self, relation: &Arc<Relation>) -> Result<(), DestinationError> {
        if let Some(bound) = self.bound.get_mut(&relation.id) {
            if Arc::ptr_eq(&bound.relation, relation) {
                return Ok(());
            }
            if bound.relation == *relation {
                bound.relation = Arc::clone(relation);
                return Ok(());
            }
        }
        let name = self.followed.get(&relation.id).map(|table| table.name.clone());
        let name = name.unwrap_or_else(|| relation.name.clone());
        let Some(table) = self.catalog.table(&name) else {
            return Err(DestinationError::Refused(
                ErrorReport::new(format!("table {name} does not exist at the destination"))
                    .hint("Run headwater with --resnapshot to create and fill it."),
            ));
        };
        let end = End { table, types: &self.catalog.types };
        let fits = fit::relation_fit(relation, &self.source_types, end);
        match fits {
            Ok(transfer) if transfer <= self.settings.transfer => {}
            Ok(_) => {
                return Err(DestinationError::Refused(ErrorReport::new(format!(
                    "table {name} has changed so that its values must travel as text"
                ))));
            }
            Err(misfits) => return Err(DestinationError::Refused(misfit_report(&name, &misfits))),
        }
        let target = Target::bind(relation, table, &self.catalog.types)?;
        let bound = Bound { relation: Arc::clone(relation), target: Arc::new(target), statements: HashMap::new() };
        self.bound.insert(relation.id, bound);
        Ok(())
    }

    /// The identity by which rows of a relation are found, for messages.
    pub fn identity_of(&self, relation: RelationId) -> Option<&TargetIdentity> {
        self.bound.get(&relation).map(|bound| &bound.target.identity)
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

    /// Gives the leader's session back.
    pub fn into_leader(self) -> Leader {
        self.leader
    }
}

/// All misfits of a table in one report, with the statements that mend them.
pub fn misfit_report(table: &QualifiedName, misfits: &[fit::Misfit]) -> ErrorReport {
    let problems: Vec<&str> = misfits.iter().map(|misfit| misfit.problem.as_str()).collect();
    let remedies: Vec<&str> = misfits.iter().filter_map(|misfit| misfit.remedy.as_deref()).collect();
    let report = ErrorReport::new(format!("table {table} at the destination does not fit the source"))
        .detail(format!("{}.", problems.join(";\n")));
    if remedies.is_empty() {
        return report.hint("Drop the table and let headwater create it, or change it by hand.");
    }
    report.hint(format!("Run at the destination:\n{}", remedies.join("\n")))
}

fn wal_reading(row: &[Option<String>]) -> Option<WalReading> {
    let [insert_lsn, flush_lsn] = row else { return None };
    Some(WalReading {
        insert_lsn: insert_lsn.as_deref()?.parse().ok()?,
        flush_lsn: flush_lsn.as_deref()?.parse().ok()?,
    })
}
