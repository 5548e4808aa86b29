//! Relations bound to their tables, and the statements prepared for them.
//!
//! Asked by everything that writes into a pipelined request, at the first change of a relation and whenever its description is
//! another one.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::error::DestinationError;
use super::Applier;
use crate::apply_plan::row_by_row::{self, Shape};
use crate::apply_plan::sets::WriteMethod;
use crate::apply_plan::target::{Target, TargetIdentity};
use crate::catalog::attribute_names::attribute_names;
use crate::catalog::fit::{self, End};
use crate::destination::misfits::misfit_report;
use crate::pg::{ErrorReport, Ident, Relation, RelationId};
use crate::session::Verb;
use crate::transaction::Change;

/// A relation, its table, and the statements prepared for it.
pub(super) struct Bound {
    pub(super) relation: Arc<Relation>,
    pub(super) target: Arc<Target>,
    /// For single rows.
    pub(super) statements: HashMap<Shape, Prepared>,
    /// For sets of them.
    pub(super) sets: HashMap<SetStatement, Prepared>,
}

/// What a statement does to a set of rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum SetStatement {
    /// Deletes them.
    Delete,
    /// Updates the columns at these places.
    Update(Vec<usize>),
    /// Locks the table as a COPY will.
    Lock,
    /// Refuses what is not this table, before a COPY and after it.
    RefuseOthers,
    /// Inserts them.
    Copy(WriteMethod),
}

#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) name: Arc<str>,
    pub(super) parameters: usize,
    pub(super) verb: Verb,
}

impl Prepared {
    pub(super) fn statement(&self) -> (&str, Verb) {
        (&self.name, self.verb)
    }
}

impl Applier {
    /// Makes sure that the relation is bound to its table as the stream describes it now.
    pub(super) fn bind(&mut self, relation: &Arc<Relation>) -> Result<(), DestinationError> {
        if let Some(bound) = self.bound.get_mut(&relation.id) {
            if Arc::ptr_eq(&bound.relation, relation) {
                return Ok(());
            }
            if bound.relation == *relation {
                bound.relation = Arc::clone(relation);
                return Ok(());
            }
        }
        let followed = self.followed.get(&relation.id);
        let name = followed.map_or_else(|| relation.name.clone(), |table| table.name.clone());
        let Some(table) = self.catalog.table(&name) else {
            return Err(DestinationError::Refused(
                ErrorReport::new(format!("table {name} does not exist at the destination"))
                    .hint("Run headwater with --resnapshot to create and fill it."),
            ));
        };
        // The catalog may have been read since the start.
        if let Some(followed) = followed {
            followed.refuse_other(table.id)?;
        }
        if let Some(column) = relation.columns.iter().find(|c| !self.source_types.contains_key(&c.type_id)) {
            let reason = format!("the type of column {} is gone since", column.name);
            return Err(DestinationError::NeedsCopy { table: name, reason });
        }
        // What the source has added was added here before its first row came, or could not be, which was said.
        if let Some(column) = relation.columns.iter().find(|column| table.column(&column.name).is_none()) {
            let source = self.conflicts.source_table(relation.id);
            let is_known = |name: &Ident| {
                relation.columns.iter().any(|column| column.name == *name)
                    || source.is_some_and(|source| source.column(name).is_some())
            };
            let wanted = (column.type_id, column.type_modifier, &self.source_types);
            let renamed = fit::renamed_column(wanted, End { table, types: &self.catalog.types }, is_known).cloned();
            return Err(DestinationError::ColumnLost { table: name, column: column.name.clone(), renamed });
        }
        let end = End { table, types: &self.catalog.types };
        let fits = fit::relation_fit(relation, &self.source_types, end);
        match fits {
            Ok(transfer) if transfer <= self.settings.transfer => {}
            Ok(_) => return Err(DestinationError::FormatChanged(name)),
            Err(_)
                if self.settings.follow_schema_changes
                    && !attribute_names(&self.source_types, &self.catalog.types).is_empty() =>
            {
                return Err(DestinationError::AttributesRenamed);
            }
            Err(misfits) => return Err(DestinationError::Refused(misfit_report(&name, &misfits))),
        }
        let source = self.conflicts.source_table(relation.id);
        let target = if self.former_names.contains(&(relation.id, relation.name.clone())) {
            let called = Relation { name: name.clone(), ..(**relation).clone() };
            Target::bind(&Arc::new(called), table, &self.catalog.types, source)?
        } else {
            Target::bind(relation, table, &self.catalog.types, source)?
        };
        self.code_acts |= target.reaction.acts_in_replica();
        let bound = Bound {
            relation: Arc::clone(relation),
            target: Arc::new(target),
            statements: HashMap::new(),
            sets: HashMap::new(),
        };
        self.bound.insert(relation.id, bound);
        Ok(())
    }

    /// Refuses a change that does not say which row it means: only a copy has the table's rows then.
    pub(super) fn check_identified(&self, relation: &Relation, change: &Change) -> Result<(), DestinationError> {
        if !row_by_row::is_misidentified(change) {
            return Ok(());
        }
        let name = self.followed.get(&relation.id).map(|table| table.name.clone());
        let reason = "a partition identifies its rows otherwise than the table, so an update or delete does not say which row it means";
        Err(DestinationError::NeedsCopy {
            table: name.unwrap_or_else(|| relation.name.clone()),
            reason: reason.to_owned(),
        })
    }

    /// The identity by which rows of a relation are found, for messages.
    pub fn identity_of(&self, relation: RelationId) -> Option<&TargetIdentity> {
        self.bound.get(&relation).map(|bound| &bound.target.identity)
    }
}
