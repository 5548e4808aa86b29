//! Statements that are prepared in the writing session, by name.
//!
//! Owned by `relation_map`: each bound relation keeps its own. A statement is prepared in the pipelined request that needs it first and
//! is only bound after that. Bound: [`PREPARED_MAX`] statements; at more, all are forgotten and prepared again as needed.

use std::sync::Arc;

use crate::apply_plan::row_by_row::{self, RowStatement};
use crate::apply_plan::sets::{self, WriteMethod};
use crate::apply_plan::target::Target;
use crate::apply_plan::target_guard::is_target;
use crate::apply_plan::{net_effect::SetEffect, sql};
use crate::pg::TypeId;
use crate::session::{PipelinedRequest, StatementName, Verb};
use crate::sql::table_guard::{LockMode, lock, refuse_others};

/// Maximum number of prepared statements: the server keeps a plan for each, some tens of kilobytes.
const PREPARED_MAX: usize = 2000;

/// What a statement does to a set of rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum SetStatement {
    /// Deletes them.
    Delete,
    /// Updates the columns with these indexes.
    Update(Vec<usize>),
    /// Locks the table as a COPY will.
    Lock,
    /// Refuses what is not this table, before a COPY and after it.
    RefuseOthers,
    /// Inserts them.
    Copy(WriteMethod),
}

/// A prepared statement.
#[derive(Clone)]
pub(super) struct PreparedStatement {
    name: Arc<str>,
    pub(super) parameters: usize,
    verb: Verb,
}

impl PreparedStatement {
    pub(super) fn statement(&self) -> StatementName<'_> {
        StatementName { name: &self.name, verb: self.verb }
    }

    /// Prepares a statement for single rows.
    pub(super) fn row(
        request: &mut PipelinedRequest,
        name: Arc<str>,
        target: &Target,
        of: &RowStatement,
    ) -> PreparedStatement {
        let verb = match of {
            RowStatement::Insert => Verb::Insert,
            // Behind the count that it checks.
            RowStatement::Update { .. } => Verb::Select,
            RowStatement::Delete => Verb::Delete,
        };
        let types = row_by_row::parameter_types(target, of);
        PreparedStatement::parsed(request, name, verb, &row_by_row::sql(target, of), &types)
    }

    /// Prepares a statement for sets of rows.
    pub(super) fn set(
        request: &mut PipelinedRequest,
        name: Arc<str>,
        target: &Target,
        of: &SetStatement,
    ) -> PreparedStatement {
        let arrays = |effect| (sets::arrays_sql(target, &effect), sets::arrays_types(target, &effect));
        let (verb, (sql, types)) = match of {
            SetStatement::Delete => (Verb::Delete, arrays(SetEffect::Delete)),
            // Behind the count that it checks.
            SetStatement::Update(set) => (Verb::Select, arrays(SetEffect::Update(set.clone()))),
            // The partitions of a table are found through it, whatever they are called.
            SetStatement::Lock => {
                let table = format!("ONLY {}", target.table.sql());
                (Verb::Lock, (lock(&table, LockMode::RowExclusive), Vec::new()))
            }
            SetStatement::RefuseOthers => {
                (Verb::Select, (refuse_others(std::iter::once(is_target(target))), Vec::new()))
            }
            SetStatement::Copy(method) => {
                (Verb::Copy, (sql::copy_rows(target, *method == WriteMethod::CopyBinary), Vec::new()))
            }
        };
        PreparedStatement::parsed(request, name, verb, &sql, &types)
    }

    /// Prepares a statement under a name.
    pub(super) fn parsed(
        request: &mut PipelinedRequest,
        name: Arc<str>,
        verb: Verb,
        sql: &str,
        types: &[TypeId],
    ) -> PreparedStatement {
        request.parse(&name, sql, types);
        PreparedStatement { name, parameters: types.len(), verb }
    }
}

/// Names of prepared statements: s1, s2, …
#[derive(Debug, Default)]
pub(super) struct StatementNames {
    given: usize,
}

impl StatementNames {
    /// Whether all statements must be forgotten before another one is prepared.
    pub(super) fn are_used_up(&self) -> bool {
        self.given >= PREPARED_MAX
    }

    pub(super) fn next(&mut self) -> Arc<str> {
        self.given += 1;
        Arc::from(format!("s{}", self.given))
    }
}
