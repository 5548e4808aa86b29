//! What a pipelined request's error means, and how its work is done again.
//!
//! Asked by `apply` when an answer names a failure. The transaction is left, the position read; then the batch goes
//! again change by change, or the error goes to `error_policy` as a conflict that names the change.

use std::sync::Arc;

use super::super::conflict::ApplyMode;
use super::super::error::{Conflict, ConflictKind, DestinationError, FailedChange};
use super::super::writer::position_in;
use super::{Applier, InFlight, Sent, Strategy};
use crate::apply_plan::Work;
use crate::catalog::schema::TableDefinition;
use crate::destination::first_row::one_row;
use crate::destination::other_table::{Filled, OtherTable};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, Relation, ReplicaIdentity};
use crate::session::{PipelinedRequest, ServerError, SessionError};
use crate::sql::table_guard::{OTHER_TABLE, is_refusal};
use crate::transaction::Change;

impl Applier {
    /// A pipelined request failed: those behind it fail too, at their first statement. Nothing of them is stored.
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
        if let Some(other) = other_table(&error) {
            return Err(other.into());
        }
        if error.code.as_str() == STATEMENT_REPLACED {
            return Err(DestinationError::Refused(statement_replaced_report()));
        }
        let kind = ConflictKind::of(error.code);
        let several = matches!(&sent.cargo, InFlight::Work(Work::Batch(batch), _) if batch.members.len() > 1);
        // The position is as it should be, so its row has only moved (VACUUM FULL): its new ctid was just read.
        let moved = error.code.as_str() == "HW001";
        let InFlight::Work(work, strategy) = sent.cargo else {
            return Err(SessionError::Server { doing: "pinging the destination", error: Box::new(error) }.into());
        };
        match (work, kind) {
            (work @ Work::Batch(_), _) if moved => self.again.push_back((work, strategy)),
            // Sets may meet constraints that the original order does not.
            (work @ Work::Batch(_), Some(_)) if strategy == Strategy::Net => {
                self.again.push_back((work, Strategy::InOrder));
            }
            (Work::Batch(batch), Some(_)) if several => {
                self.again.extend(batch.split().map(|batch| (Work::Batch(batch), Strategy::InOrder)));
            }
            (Work::PieceOfLarge(_), Some(_)) if self.went_in_sets(sent.large) => {
                return Err(DestinationError::SetsRefused { commit_lsn: sent.large, message: error.message });
            }
            (Work::CommitLarge { commit, .. }, Some(_)) if self.went_in_sets(commit.commit_lsn) => {
                return Err(DestinationError::SetsRefused { commit_lsn: commit.commit_lsn, message: error.message });
            }
            (work, Some(kind)) => {
                let mut conflict = self.conflict((&work, &sent.marks, sent.large), statement, kind, error);
                let wins = self.conflicts.may_win(&conflict);
                match work {
                    Work::Batch(batch)
                        if wins && !self.conflicts.needs_newer_catalog(&batch.changes, &self.catalog) =>
                    {
                        self.conflicts.winning = Some(conflict.commit_lsn);
                        self.again.push_back((Work::Batch(batch), Strategy::InOrder));
                    }
                    Work::Batch(_)
                    | Work::BeginLarge(_)
                    | Work::PieceOfLarge(_)
                    | Work::ChangeSchema(_)
                    | Work::CommitLarge { .. }
                    | Work::CommitParallel { .. }
                    | Work::Reached(_) => {
                        conflict.will_win = wins;
                        return Err(DestinationError::Conflict(Box::new(conflict)));
                    }
                }
            }
            (work, None)
                if error.code.as_str() == FEATURE_NOT_SUPPORTED
                    && !is_refusal(FEATURE_NOT_SUPPORTED, &error.message) =>
            {
                return Err(match change_of(&work, &sent.marks, statement) {
                    Some(Change::Truncate { relations, .. }) => truncate_refused(relations, &error),
                    Some(Change::Insert { .. } | Change::Update { .. } | Change::Delete { .. }) | None => {
                        SessionError::Server { doing: "applying changes", error: Box::new(error) }.into()
                    }
                });
            }
            (_, None) => return Err(SessionError::Server { doing: "applying changes", error: Box::new(error) }.into()),
        }
        self.again.extend(followers);
        self.resend_next().await
    }

    /// Whether a transaction in pieces was applied by its net effect.
    fn went_in_sets(&self, commit_lsn: Lsn) -> bool {
        let plain = self.conflicts.mode(commit_lsn, None) == ApplyMode::Normal;
        plain && self.conflicts.in_order != Some(commit_lsn)
    }

    /// Waits for the last outstanding Sync and leaves the transaction; returns the work that was under way.
    pub(super) async fn roll_back(&mut self) -> Result<Vec<(Work, Strategy)>, DestinationError> {
        let mut followers = Vec::new();
        while let Some(follower) = self.under_way.pop_front() {
            tokio::time::timeout(self.settings.timeout, self.writer.session.answer()).await.map_err(|_| {
                let doing = "waiting for the destination's answer";
                SessionError::Timeout { doing, within: self.settings.timeout }
            })??;
            if let InFlight::Work(work, strategy) = follower.cargo {
                followers.push((work, strategy));
            }
        }
        followers.extend(self.again.drain(..));
        let mut request = PipelinedRequest::new();
        request.run("ROLLBACK");
        request.run("DEALLOCATE ALL");
        self.writer.session.round_trip("rolling back", request, self.settings.timeout).await?;
        self.bound.clear();
        self.prepared = 0;
        self.advance_prepared = false;
        self.large = None;
        Ok(followers)
    }

    pub(super) async fn read_position(&mut self) -> Result<Lsn, DestinationError> {
        let mut request = PipelinedRequest::new();
        request.query(&self.writer.settings.read_position());
        let answer = self.writer.session.round_trip("reading the position", request, self.settings.timeout).await?;
        let found = position_in(&one_row(answer))?;
        self.sent = self.stored;
        Ok(found)
    }

    /// Sends the next of what is done again, one pipelined request at a time.
    pub(super) async fn resend_next(&mut self) -> Result<(), DestinationError> {
        if let Some((work, strategy)) = self.again.pop_front() {
            // Only batches can be done again: a large transaction's failure ends the run.
            self.submit_as(work, strategy, false).await?;
        }
        Ok(())
    }

    fn conflict(
        &self,
        (work, marks, large): (&Work, &[usize], Lsn),
        statement: usize,
        kind: ConflictKind,
        error: ServerError,
    ) -> Conflict {
        let change = change_of(work, marks, statement);
        let (commit_lsn, end_lsn) = match work {
            Work::Batch(batch) => batch
                .members
                .first()
                .map_or((Lsn::INVALID, None), |member| (member.commit.commit_lsn, Some(member.commit.end_lsn))),
            // Its begin did not tell the end_lsn, so that is no name by which the next attempt would know it.
            Work::CommitLarge { commit, .. } | Work::CommitParallel { commit, .. } => (commit.commit_lsn, None),
            Work::BeginLarge(begin) => (begin.final_lsn, None),
            Work::PieceOfLarge(_) => (large, None),
            Work::ChangeSchema(_) | Work::Reached(_) => (Lsn::INVALID, None),
        };
        let (relation, operation) = match change {
            Some(Change::Insert { relation, .. }) => (Some(relation), Some("insert")),
            Some(Change::Update { relation, .. }) => (Some(relation), Some("update")),
            Some(Change::Delete { relation, .. }) => (Some(relation), Some("delete")),
            Some(Change::Truncate { relations, .. }) => (relations.first(), Some("truncate")),
            None => (None, None),
        };
        // What is checked at COMMIT belongs to no statement, but its table is named.
        let named = || Some(QualifiedName::new(error.schema.as_deref()?, error.table.as_deref()?));
        let table = relation.map(|relation| relation.name.clone()).or_else(named);
        let message = match kind {
            ConflictKind::MissingRow => "the row to update does not exist".to_owned(),
            ConflictKind::UniqueViolation
            | ConflictKind::ForeignKeyViolation
            | ConflictKind::CheckViolation
            | ConflictKind::NotNullViolation
            | ConflictKind::ExclusionViolation
            | ConflictKind::DataException
            | ConflictKind::PermissionDenied
            | ConflictKind::Other => error.message.clone(),
        };
        let violated = error.violated();
        let here = table.as_ref().and_then(|table| self.catalog.table(table));
        Conflict {
            kind,
            operation,
            key: relation.map(|relation| key_columns(relation, here)).unwrap_or_default(),
            constraint: error
                .constraint
                .map(|name| with_columns(name, here))
                .or_else(|| error.column.map(|name| Ident::new(name).to_string())),
            table,
            message,
            code: error.code,
            commit_lsn,
            end_lsn,
            will_win: false,
            on_conflict: self.conflicts.on_conflict,
            violated,
            difference: None,
            user: self.writer.user().cloned(),
            change: change.map(FailedChange::of),
        }
    }
}

/// feature_not_supported: what TRUNCATE raises when a table that it does not name has a foreign key onto one that it does.
const FEATURE_NOT_SUPPORTED: &str = "0A000";

/// What headwater.statement_replaced raises.
const STATEMENT_REPLACED: &str = "HW004";

fn statement_replaced_report() -> ErrorReport {
    ErrorReport::new("code of the destination prepares statements in the session that writes")
        .detail(
            "What it prepares under a name of headwater's would be executed instead of writing rows. The transaction was rolled back.",
        )
        .hint(FIND_PREPARE)
}

/// How to find code that prepares statements in sessions that are not its own.
pub const FIND_PREPARE: &str = "Find the function, and take it away from triggers, constraints and indexes; at the destination:\n\
     SELECT p.oid::pg_catalog.regprocedure, pg_catalog.pg_get_userbyid(p.proowner) FROM pg_catalog.pg_proc p \
     WHERE p.prosrc ~* 'prepare' AND p.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace;";

/// The table that a statement was refused for, because another one has its name.
fn other_table(error: &ServerError) -> Option<OtherTable> {
    if error.code.as_str() != OTHER_TABLE {
        return None;
    }
    let table = QualifiedName::new(error.schema.as_deref()?, error.table.as_deref()?);
    Some(OtherTable { table, filled: Filled::Unknown })
}

fn truncate_refused(relations: &[Arc<Relation>], error: &ServerError) -> DestinationError {
    let names: Vec<String> = relations.iter().map(|relation| relation.name.to_string()).collect();
    let report =
        ErrorReport::new(format!("truncate of table {} is not possible here: {}", names.join(", "), error.message));
    let report = match &error.detail {
        Some(detail) => report.detail(detail.clone()),
        None => report,
    };
    DestinationError::Refused(report.hint(
        "A table outside of the set has a foreign key onto a table that was truncated at the source. Drop that foreign key, \
         or set truncate = \"delete\".",
    ))
}

/// The change that a statement of a pipelined request carried out. `marks` are the numbers of each change's first statement, and of
/// the first one behind them.
fn change_of<'a>(work: &'a Work, marks: &[usize], statement: usize) -> Option<&'a Change> {
    let changes = match work {
        Work::Batch(batch) => &batch.changes,
        Work::PieceOfLarge(piece) => &piece.changes,
        Work::BeginLarge(_)
        | Work::ChangeSchema(_)
        | Work::CommitLarge { .. }
        | Work::CommitParallel { .. }
        | Work::Reached(_) => return None,
    };
    // Changes that take no statement share their mark with the next one that does.
    let at = marks.partition_point(|mark| *mark <= statement).checked_sub(1)?;
    changes.get(at)
}

/// The columns by which a row is known: the replica identity, or where that is the whole row, the primary key.
fn key_columns(relation: &Relation, here: Option<&TableDefinition>) -> Vec<Ident> {
    if relation.replica_identity == ReplicaIdentity::Full {
        let primary = here.and_then(|table| table.indexes.iter().find(|index| index.primary));
        return primary.map(|index| index.key_columns().cloned().collect()).unwrap_or_default();
    }
    relation.columns.iter().filter(|column| column.in_identity).map(|column| column.name.clone()).collect()
}

/// A constraint's name with its columns, where the catalog knows them.
fn with_columns(name: String, here: Option<&TableDefinition>) -> String {
    let of_index = |table: &TableDefinition| {
        let index = table.indexes.iter().find(|index| index.name.as_str() == name)?;
        Some(index.key_columns().cloned().collect::<Vec<_>>())
    };
    let of_constraint = |table: &TableDefinition| {
        table.constraints.iter().find(|constraint| constraint.name.as_str() == name)?.columns.clone()
    };
    let columns = here.and_then(|table| of_constraint(table).or_else(|| of_index(table))).unwrap_or_default();
    let name = Ident::new(name);
    if columns.is_empty() {
        return name.to_string();
    }
    let columns: Vec<String> = columns.iter().map(Ident::to_string).collect();
    format!("{name} ({})", columns.join(", "))
}
