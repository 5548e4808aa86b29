//! Applies a dead letter after all: its changes one by one, in one transaction that also removes it.
//!
//! Called by the command `replay`, with or without a running service. It has a writing session of its own, set up as the
//! leader's, but neither the leader's lock nor its position: what it writes stands for no place in the stream. The
//! destination has changed since the transaction was skipped, so these changes act on the rows as they are now.
//!
//! All or nothing: any error leaves destination and dead letter as they were.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::catalog::Catalog;
use super::conflict::{OverwriteCounts, Repair};
use super::dead_letter::{WantedLetters, parts, read_part, remove};
use super::error::DestinationError;
use super::foreign_code::Writes;
use super::formats::formats_of;
use super::other_tables::refuse_other_tables;
use super::writer::{ReplicationRole, Writer, WritingSettings};
use crate::apply_plan::row_by_row::{self, RowStatement};
use crate::apply_plan::sql;
use crate::apply_plan::target::Target;
use crate::config::TruncateMode;
use crate::pg::{Datum, ErrorReport, Ident, QualifiedName, Relation};
use crate::session::{PipelinedAnswer, PipelinedRequest, SqlClient, StatementAnswer, StatementName, WritingSession};
use crate::transaction::{Change, RowChange};

/// What a replay did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Changes that were applied.
    pub changes: u64,
    /// Deletes that found no row.
    pub missing_deletes: u64,
    /// Rows that were in conflict, where those of the letter have won.
    pub repairs: Vec<Repair>,
}

/// What is to be replayed, and how.
#[derive(Clone, Copy, Debug)]
pub struct ReplayRequest<'a> {
    /// The dead letter.
    pub wanted: WantedLetters,
    /// The configured tables. No other is written: who may write headwater.dead_letter must not choose what is written with our rights.
    pub tables: &'a [QualifiedName],
    /// Roles whose code is accepted.
    pub trusted_roles: &'a [Ident],
    /// Roles that could attach code to the tables are in the way, whether there is any or not.
    pub names_owners: bool,
    /// How a TRUNCATE is applied.
    pub truncate: TruncateMode,
    /// The letter's rows win over those that are there.
    pub wins: bool,
}

/// Applies a dead letter and removes it.
///
/// # Errors
/// [`DestinationError`]; nothing is changed then.
pub async fn replay(
    client: &SqlClient,
    settings: &WritingSettings,
    request: &ReplayRequest<'_>,
) -> Result<Replayed, DestinationError> {
    let ReplayRequest { wanted, tables, trusted_roles, names_owners, truncate, wins } = *request;
    let parts = parts(client, wanted).await?;
    if parts == 0 {
        return Err(DestinationError::Refused(
            ErrorReport::new(format!("there is no dead letter with {wanted}"))
                .hint("See what there is: headwater dead-letter list"),
        ));
    }
    let (session, role) = Writer::of_command(settings).await?;
    let mut replay = DeadLetterReplay {
        session,
        role,
        settings: settings.clone(),
        tables: tables.to_vec(),
        trusted_roles: trusted_roles.to_vec(),
        names_owners,
        truncate,
        wins,
        catalog: Catalog::default(),
        targets: HashMap::new(),
        done: Replayed::default(),
    };
    let mut request = PipelinedRequest::new();
    request.run("BEGIN");
    replay.send(request).await?;
    for part in 1..=parts {
        let changes = read_part(client, wanted, part).await?;
        replay.learn(client, &changes).await?;
        replay.apply(&changes).await?;
    }
    let mut request = PipelinedRequest::new();
    request.run(&remove(wanted));
    request.commit();
    let answer = replay.send(request).await?;
    replay.session.close().await;
    if !answer.committed {
        return Err(DestinationError::Refused(ErrorReport::new("the dead letter's transaction was rolled back")));
    }
    Ok(replay.done)
}

struct DeadLetterReplay {
    session: WritingSession,
    role: ReplicationRole,
    settings: WritingSettings,
    tables: Vec<QualifiedName>,
    trusted_roles: Vec<Ident>,
    names_owners: bool,
    truncate: TruncateMode,
    wins: bool,
    catalog: Catalog,
    targets: HashMap<Arc<Relation>, Arc<Target>>,
    done: Replayed,
}

/// Changes sent at once at most: a pipelined request is held in memory.
const CHANGES_AT_ONCE: usize = 1000;

impl DeadLetterReplay {
    async fn send(&mut self, request: PipelinedRequest) -> Result<PipelinedAnswer, DestinationError> {
        Ok(self.session.round_trip("replaying a dead letter", request, self.settings.timeout).await?)
    }

    /// Binds the relations of some changes to the tables as they are now.
    async fn learn(&mut self, client: &SqlClient, changes: &[Change]) -> Result<(), DestinationError> {
        let mut relations: Vec<&Arc<Relation>> = Vec::new();
        for change in changes {
            relations.extend(change.relations());
        }
        if let Some(other) = relations.iter().find(|relation| !self.tables.contains(&relation.name)) {
            return Err(DestinationError::Refused(
                ErrorReport::new(format!("table {} of the dead letter is not configured", other.name))
                    .detail("Only tables of the configuration are written.")
                    .hint("Name it in tables, as it was when the transaction was skipped; or delete the dead letter."),
            ));
        }
        let unknown: BTreeSet<&QualifiedName> =
            relations.iter().map(|relation| &relation.name).filter(|name| self.catalog.table(name).is_none()).collect();
        if !unknown.is_empty() {
            let mut names: Vec<QualifiedName> = unknown.into_iter().cloned().collect();
            names.extend(self.catalog.tables.keys().cloned());
            self.catalog = Catalog::read(client, &names).await?;
        }
        let mut writes = Writes {
            foreign_keys_act: self.role == ReplicationRole::Origin,
            trusted_roles: self.trusted_roles.clone(),
            names_owners: self.names_owners,
            ..Writes::default()
        };
        for relation in relations {
            if self.targets.contains_key(relation) {
                continue;
            }
            let Some(table) = self.catalog.table(&relation.name) else {
                return Err(DestinationError::Refused(ErrorReport::new(format!(
                    "table {} of the dead letter does not exist at the destination any more",
                    relation.name
                ))));
            };
            let target = Target::bind(relation, table, &self.catalog.types, None)?;
            self.targets.insert(Arc::clone(relation), Arc::new(target));
            let supplied = relation.columns.iter().map(|column| (relation.name.clone(), column.name.clone()));
            writes.supplied.extend(supplied);
            writes.tables.push(relation.name.clone());
        }
        if !writes.tables.is_empty() {
            // Locked first, in the transaction that writes, so that nobody attaches anything behind the look.
            let mut request = PipelinedRequest::new();
            request.run(&writes.lock());
            self.send(request).await?;
            refuse_other_tables(client, false).await?;
            writes.refuse_foreign_code(client).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, changes: &[Change]) -> Result<(), DestinationError> {
        for some in changes.chunks(CHANGES_AT_ONCE) {
            let mut request = PipelinedRequest::new();
            let mut overwriting = OverwriteCounts::default();
            let mut marks = Vec::new();
            for change in some {
                marks.push(request.statements());
                self.write(&mut request, &mut overwriting, change)?;
            }
            self.session.send(request);
            let waiting = tokio::time::timeout(self.settings.timeout, self.session.answer()).await;
            let answer = waiting.map_err(|_| crate::session::SessionError::Timeout {
                doing: "replaying a dead letter",
                within: self.settings.timeout,
                process_id: Some(self.session.process_id()),
            })??;
            if let Some((statement, error)) = answer.failure {
                let at = marks.partition_point(|mark| *mark <= statement).saturating_sub(1);
                return Err(failed(some.get(at), &error));
            }
            let counts = answer.answers.into_iter().filter_map(|answer| match answer {
                StatementAnswer::Count(count) => Some(count),
                StatementAnswer::Row(_) => None,
            });
            if self.wins {
                let (repairs, missing_deletes) = overwriting.conclude(counts);
                self.done.repairs.extend(repairs);
                self.done.missing_deletes += missing_deletes;
            } else {
                self.done.missing_deletes += counts.map(|count| u64::from(count == 0)).sum::<u64>();
            }
            self.done.changes += u64::try_from(some.len()).unwrap_or(0);
        }
        Ok(())
    }

    fn write(
        &self,
        request: &mut PipelinedRequest,
        overwriting: &mut OverwriteCounts,
        change: &Change,
    ) -> Result<(), DestinationError> {
        let target = |relation: &Arc<Relation>| self.targets.get(relation).map(Arc::as_ref);
        match change {
            Change::Row(row) => {
                if let Some(target) = target(row.relation()) {
                    self.write_row(request, overwriting, target, row)?;
                }
            }
            Change::Truncate { relations, restart_identity } => {
                let targets: Vec<&Target> = relations.iter().filter_map(target).collect();
                match self.truncate {
                    TruncateMode::Truncate => {
                        sql::truncate(&targets, *restart_identity).iter().for_each(|statement| request.run(statement));
                    }
                    TruncateMode::Delete => targets.iter().for_each(|target| request.run(&sql::delete_all(target))),
                }
            }
        }
        Ok(())
    }

    fn write_row(
        &self,
        request: &mut PipelinedRequest,
        overwriting: &mut OverwriteCounts,
        target: &Target,
        change: &RowChange,
    ) -> Result<(), DestinationError> {
        check_types(target, change)?;
        if self.wins
            && let Some(table) = self.catalog.table(&target.table)
        {
            // What the source's table is like now is not known: rows are found by their key alone.
            return overwriting.write(request, target, table, None, self.role, change);
        }
        let Some(statement) = row_by_row::statement(target, change)? else { return Ok(()) };
        let mut values = Vec::new();
        row_by_row::row_parameters(target, &statement, change.identity(), change.image(), |value| values.push(value));
        let formats = formats_of(&values);
        request.parse("", &row_by_row::sql(target, &statement), &row_by_row::parameter_types(target, &statement));
        let put = |to: &mut crate::session::StatementParameters<'_>| values.iter().for_each(|v| to.put(v.bytes()));
        match statement {
            RowStatement::Delete => request.execute_counted(StatementName::UNNAMED, &formats, values.len(), put),
            RowStatement::Insert | RowStatement::Update { .. } => {
                request.execute(StatementName::UNNAMED, &formats, values.len(), put);
            }
        }
        Ok(())
    }
}

/// A binary value means something to its own type only; any type that can parse a text value takes it.
fn check_types(target: &Target, change: &RowChange) -> Result<(), DestinationError> {
    let tuple = change.image();
    for ((index, value), column) in tuple.columns().enumerate().zip(&target.relation.columns) {
        let Some(here) = target.column(index) else { continue };
        let built_in = column.type_id.is_built_in() || here.type_id.is_built_in();
        if matches!(value, Datum::Binary(_)) && built_in && column.type_id != here.type_id {
            return Err(DestinationError::Refused(ErrorReport::new(format!(
                "column {} of table {} has another type now than in the dead letter",
                column.name, target.table
            ))));
        }
    }
    Ok(())
}

/// The error for a change that the destination refuses.
fn failed(change: Option<&Change>, error: &crate::session::ServerError) -> DestinationError {
    let what = match change {
        Some(Change::Row(RowChange::Insert { relation, .. })) => format!("the insert into {}", relation.name),
        Some(Change::Row(RowChange::Update { relation, .. })) => format!("an update of {}", relation.name),
        Some(Change::Row(RowChange::Delete { relation, .. })) => format!("a delete from {}", relation.name),
        Some(Change::Truncate { .. }) | None => "a truncate".to_owned(),
    };
    let message = if error.code.as_str() == "HW002" { "its row does not exist" } else { error.message.as_str() };
    let report = ErrorReport::new(format!("the dead letter cannot be replayed: {what} fails: {message}"));
    let report = match &error.constraint {
        Some(constraint) => report.detail(format!("Constraint: {constraint}. Nothing was changed.")),
        None => report.detail("Nothing was changed."),
    };
    DestinationError::Refused(report.hint("Repair the rows at the destination, or add --source-wins."))
}
