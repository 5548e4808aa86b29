//! What a flight's error means, and how its work is done again.
//!
//! Asked by `apply` when an answer names a failure. The transaction is left, the position read; then the batch goes
//! again one source transaction at a time, or the error goes to `fault` as a conflict that names the change.

use crate::config::TruncateMode;
use crate::pg::Lsn;
use crate::plan::Work;
use crate::session::{Flight, ServerError, SessionError};
use crate::transaction::Change;

use super::super::error::{Conflict, ConflictKind, DestinationError};
use super::super::leadership::{READ_POSITION, one_row, position_in};
use super::{Applier, Cargo, Sent};

impl Applier {
    /// A flight failed: those behind it fail too, at their first statement. Nothing of them is stored.
    pub(super) async fn failed(
        &mut self,
        sent: Sent,
        statement: usize,
        error: ServerError,
    ) -> Result<(), DestinationError> {
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
    pub(super) async fn roll_back(&mut self) -> Result<Vec<Work>, DestinationError> {
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
    pub(super) async fn resend_next(&mut self) -> Result<(), DestinationError> {
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
}
