//! Changes one by one, in the order in which they came: a prepared statement for each.
//!
//! Writes into the pipelined request that `apply` sends. Statements are prepared once for each table and shape and then only
//! bound.

use std::sync::Arc;

use super::super::error::DestinationError;
use super::Applier;
use super::bind::Prepared;
use crate::apply_plan::row_by_row::{self, Shape};
use crate::apply_plan::target::Target;
use crate::apply_plan::{Batch, sql};
use crate::config::TruncateMode;
use crate::pg::{Lsn, Relation, RelationId, TypeId};
use crate::session::{Format, PipelinedRequest, Verb};
use crate::transaction::Change;

/// Maximum number of prepared statements; beyond it all are forgotten, and prepared again as needed.
const PREPARED_MAX: usize = 2000;
/// pg_lsn
const PG_LSN: TypeId = TypeId(3220);

impl Applier {
    /// Begins a transaction that applies changes.
    pub(super) fn begin(&self, request: &mut PipelinedRequest) {
        request.run("BEGIN");
        self.defer_foreign_keys(request);
    }

    pub(super) fn advance(&mut self, request: &mut PipelinedRequest, previous: Lsn, next: Lsn) {
        if !self.advance_prepared {
            request.parse("advance", &self.writer.settings.advance(), &[PG_LSN, PG_LSN]);
            self.advance_prepared = true;
        }
        request.execute(("advance", Verb::Select), &[Format::Binary], 2, |values| {
            values.put(Some(&previous.as_u64().to_be_bytes()));
            values.put(Some(&next.as_u64().to_be_bytes()));
        });
    }

    pub(super) fn write_batch(
        &mut self,
        request: &mut PipelinedRequest,
        batch: &Batch,
    ) -> Result<(), DestinationError> {
        let mut begin = 0;
        for member in &batch.members {
            let changes = batch.changes.get(begin..member.changes_end).unwrap_or_default();
            self.write_changes(request, changes, member.commit.commit_lsn)?;
            begin = member.changes_end;
        }
        Ok(())
    }

    pub(super) fn write_changes(
        &mut self,
        request: &mut PipelinedRequest,
        changes: &[Change],
        commit_lsn: Lsn,
    ) -> Result<(), DestinationError> {
        for change in changes {
            self.marks.push(request.statements());
            match change {
                Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => {
                    if self.is_live(relation.id, commit_lsn) {
                        self.write_row(request, relation, change)?;
                    }
                }
                Change::Truncate { relations, restart_identity } => {
                    let mut targets = Vec::new();
                    let whole = relations.iter().all(|relation| self.is_live(relation.id, commit_lsn));
                    for relation in relations {
                        if self.is_live(relation.id, commit_lsn) {
                            self.bind(relation)?;
                            targets.extend(self.bound.get(&relation.id).map(|bound| Arc::clone(&bound.target)));
                        }
                    }
                    // TRUNCATE refuses a table without those that refer to it.
                    let mode = if whole { self.settings.truncate } else { TruncateMode::Delete };
                    if self.foreign_keys_act && mode == TruncateMode::Truncate {
                        // TRUNCATE refuses a table whose rows are not checked yet. At the source they were, by now.
                        request.run("SET CONSTRAINTS ALL IMMEDIATE");
                    }
                    Self::write_truncate(request, mode, &targets, *restart_identity);
                    self.defer_foreign_keys(request);
                }
            }
        }
        Ok(())
    }

    /// Whether a change of a transaction belongs to what is followed, and not to the table's snapshot.
    pub(super) fn is_live(&self, relation: RelationId, commit_lsn: Lsn) -> bool {
        match self.followed.get(&relation) {
            Some(_) if commit_lsn >= self.snapshots_end => true,
            Some(table) => table.is_live_at(commit_lsn),
            None => false,
        }
    }

    fn write_truncate(
        request: &mut PipelinedRequest,
        mode: TruncateMode,
        targets: &[Arc<Target>],
        restart_identity: bool,
    ) {
        if targets.is_empty() {
            return;
        }
        match mode {
            TruncateMode::Truncate => {
                let targets: Vec<&Target> = targets.iter().map(Arc::as_ref).collect();
                sql::truncate(&targets, restart_identity).iter().for_each(|statement| request.run(statement));
            }
            TruncateMode::Delete => {
                for target in targets {
                    request.run(&sql::delete_all(target));
                }
            }
        }
    }

    pub(super) fn write_row(
        &mut self,
        request: &mut PipelinedRequest,
        relation: &Arc<Relation>,
        change: &Change,
    ) -> Result<(), DestinationError> {
        self.bind(relation)?;
        self.check_identified(relation, change)?;
        if self.winning.is_some() {
            return self.write_winning(request, relation, change);
        }
        let Some(bound) = self.bound.get(&relation.id) else { return Ok(()) };
        let target = Arc::clone(&bound.target);
        let Some(shape) = row_by_row::shape(&target, change)? else { return Ok(()) };
        let prepared = self.prepare_row(request, &target, &shape);
        let (key, image) = row_by_row::key_and_image(change);
        self.write_prepared(request, &target, &prepared, &shape, (key, image));
        Ok(())
    }

    /// The prepared statement of a shape.
    pub(super) fn prepare_row(&mut self, request: &mut PipelinedRequest, target: &Target, shape: &Shape) -> Prepared {
        let known = self.bound.get(&target.relation.id).and_then(|bound| bound.statements.get(shape));
        if let Some(known) = known {
            return known.clone();
        }
        let types = row_by_row::parameter_types(target, shape);
        let verb = match shape {
            Shape::Insert => Verb::Insert,
            // Behind the count that it checks.
            Shape::Update { .. } => Verb::Select,
            Shape::Delete => Verb::Delete,
        };
        let prepared = self.new_prepared(request, types.len(), verb);
        request.parse(&prepared.name, &row_by_row::sql(target, shape), &types);
        if let Some(bound) = self.bound.get_mut(&target.relation.id) {
            bound.statements.insert(shape.clone(), prepared.clone());
        }
        prepared
    }

    /// A new name; when there are too many, all statements are forgotten first.
    pub(super) fn new_prepared(&mut self, request: &mut PipelinedRequest, parameters: usize, verb: Verb) -> Prepared {
        if self.prepared >= PREPARED_MAX {
            request.run("DEALLOCATE ALL");
            self.forget_prepared();
        }
        self.prepared += 1;
        Prepared { name: Arc::from(format!("s{}", self.prepared)), parameters, verb }
    }

    fn forget_prepared(&mut self) {
        for bound in self.bound.values_mut() {
            bound.statements.clear();
            bound.sets.clear();
        }
        self.prepared = 0;
        self.advance_prepared = false;
    }
}
