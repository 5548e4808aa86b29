//! The relation map: what each relation of the stream is at the destination, and the statements that are prepared for it.
//!
//! ```text
//! relation (stream) ── bind ──▶ Target (columns, identity, side effects)   as the catalog has the table now
//!                                  └─ statements prepared for it, in this session
//! ```
//!
//! Owned by an applier; written while requests are encoded, by `schema_follower` when a table has changed, and emptied when the
//! session has rolled back (a rollback takes no prepared statement with it, but what was sent behind the error was never prepared).
//! A relation is bound at its first change and again whenever the stream describes it in another way.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::followed::{Followed, FollowedTables};
use super::prepared::{PreparedStatement, SetStatement, StatementNames};
use super::settings::{ApplierSettings, ApplyContext};
use crate::apply_plan::row_by_row::{self, RowStatement};
use crate::apply_plan::target::Target;
use crate::catalog::attribute_names::attribute_names;
use crate::catalog::fit::{self, End};
use crate::catalog::schema::{TableDefinition, Types};
use crate::destination::catalog::Catalog;
use crate::destination::error::DestinationError;
use crate::destination::misfits::misfit_report;
use crate::destination::source_tables::SourceTables;
use crate::destination::writer::ReplicationRole;
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, Relation, RelationId, TypeId};
use crate::session::{Format, PipelinedRequest, Verb};
use crate::transaction::RowChange;

const READ_WAL: &str = "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn()";

/// pg_lsn
const PG_LSN: TypeId = TypeId(3220);

/// A relation, its table, and the statements prepared for it.
struct BoundRelation {
    relation: Arc<Relation>,
    target: Arc<Target>,
    row_statements: HashMap<RowStatement, PreparedStatement>,
    set_statements: HashMap<SetStatement, PreparedStatement>,
}

/// What the relations of the stream are at the destination.
pub(super) struct RelationMap {
    pub(super) settings: ApplierSettings,
    pub(super) role: ReplicationRole,
    pub(super) catalog: Catalog,
    pub(super) source_types: Types,
    pub(super) source_tables: SourceTables,
    pub(super) followed: FollowedTables,
    bound: HashMap<RelationId, BoundRelation>,
    /// Names that tables bore for a while, as the stream still brings them.
    former_names: BTreeSet<(RelationId, QualifiedName)>,
    names: StatementNames,
    /// Moves the position.
    advance: Option<PreparedStatement>,
    advance_sql: String,
    /// Reads the destination's WAL positions.
    wal: Option<PreparedStatement>,
    /// Triggers act on what this session writes, though it may have the replica role.
    has_replica_triggers: bool,
}

impl RelationMap {
    /// Nothing is bound yet. `advance_sql` moves the position from $1 to $2.
    pub(super) fn new(context: ApplyContext, role: ReplicationRole, advance_sql: String) -> RelationMap {
        let ApplyContext { settings, catalog, source_types, source_tables, followed } = context;
        RelationMap {
            settings,
            role,
            catalog,
            source_types,
            source_tables,
            followed: FollowedTables::new(followed),
            bound: HashMap::new(),
            former_names: BTreeSet::new(),
            names: StatementNames::default(),
            advance: None,
            advance_sql,
            wal: None,
            has_replica_triggers: false,
        }
    }

    /// What another applier must know to write as this one.
    pub(super) fn context(&self) -> ApplyContext {
        ApplyContext {
            settings: self.settings.clone(),
            catalog: self.catalog.clone(),
            source_types: self.source_types.clone(),
            source_tables: self.source_tables.clone(),
            followed: self.followed.tables().clone(),
        }
    }

    /// Whether foreign keys and ordinary triggers act on what this session writes.
    pub(super) fn foreign_keys_act(&self) -> bool {
        self.role == ReplicationRole::Origin
    }

    /// Whether code of the destination may run in this session.
    pub(super) fn may_run_code(&self) -> bool {
        self.foreign_keys_act() || self.has_replica_triggers || !self.settings.names_owners
    }

    /// Whether a change of a transaction belongs to what is followed, and not to the table's snapshot.
    pub(super) fn is_live(&self, relation: RelationId, commit_lsn: Lsn) -> bool {
        self.followed.is_live(relation, commit_lsn)
    }

    /// The table that a relation stands for, as the stream describes it now.
    ///
    /// # Errors
    /// [`DestinationError`] where the relation does not fit its table.
    pub(super) fn bind(&mut self, relation: &Arc<Relation>) -> Result<Arc<Target>, DestinationError> {
        if let Some(bound) = self.bound.get_mut(&relation.id) {
            if Arc::ptr_eq(&bound.relation, relation) {
                return Ok(Arc::clone(&bound.target));
            }
            if bound.relation == *relation {
                bound.relation = Arc::clone(relation);
                return Ok(Arc::clone(&bound.target));
            }
        }
        let target = Arc::new(self.fitting_target(relation)?);
        self.has_replica_triggers |= target.side_effects.acts_in_replica();
        let bound = BoundRelation {
            relation: Arc::clone(relation),
            target: Arc::clone(&target),
            row_statements: HashMap::new(),
            set_statements: HashMap::new(),
        };
        self.bound.insert(relation.id, bound);
        Ok(target)
    }

    fn fitting_target(&self, relation: &Arc<Relation>) -> Result<Target, DestinationError> {
        let followed = self.followed.get(relation.id);
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
        self.check_columns(relation, &name, table)?;
        self.check_fit(relation, &name, table)?;
        let source = self.source_tables.get(relation.id);
        if self.former_names.contains(&(relation.id, relation.name.clone())) {
            let renamed = Relation { name, ..(**relation).clone() };
            return Ok(Target::bind(&Arc::new(renamed), table, &self.catalog.types, source)?);
        }
        Ok(Target::bind(relation, table, &self.catalog.types, source)?)
    }

    fn check_columns(
        &self,
        relation: &Relation,
        name: &QualifiedName,
        table: &TableDefinition,
    ) -> Result<(), DestinationError> {
        if let Some(column) = relation.columns.iter().find(|c| !self.source_types.contains_key(&c.type_id)) {
            let reason = format!("the type of column {} is gone since", column.name);
            return Err(DestinationError::NeedsCopy { table: name.clone(), reason });
        }
        // What the source has added was added here before its first row came, or could not be, which was said.
        let Some(column) = relation.columns.iter().find(|column| table.column(&column.name).is_none()) else {
            return Ok(());
        };
        let source = self.source_tables.get(relation.id);
        let is_known = |name: &Ident| {
            relation.columns.iter().any(|column| column.name == *name)
                || source.is_some_and(|source| source.column(name).is_some())
        };
        let here = End { table, types: &self.catalog.types };
        let renamed = fit::renamed_column(column.type_id, column.type_modifier, &self.source_types, here, is_known);
        let renamed = renamed.cloned();
        Err(DestinationError::ColumnLost { table: name.clone(), column: column.name.clone(), renamed })
    }

    fn check_fit(
        &self,
        relation: &Relation,
        name: &QualifiedName,
        table: &TableDefinition,
    ) -> Result<(), DestinationError> {
        let ApplierSettings { transfer: agreed, follow_schema_changes, .. } = self.settings;
        match fit::relation_fit(relation, &self.source_types, End { table, types: &self.catalog.types }) {
            Ok(transfer) if transfer <= agreed => Ok(()),
            Ok(_) => Err(DestinationError::FormatChanged(name.clone())),
            Err(_) if follow_schema_changes && !attribute_names(&self.source_types, &self.catalog.types).is_empty() => {
                Err(DestinationError::AttributesRenamed)
            }
            Err(misfits) => Err(DestinationError::Refused(misfit_report(name, &misfits))),
        }
    }

    /// Refuses a change that does not say which row it means: only a copy has the table's rows then.
    pub(super) fn check_identified(&self, change: &RowChange) -> Result<(), DestinationError> {
        if !row_by_row::is_misidentified(change) {
            return Ok(());
        }
        let relation = change.relation();
        let name = self.followed.get(relation.id).map(|table| table.name.clone());
        let reason = "a partition identifies its rows otherwise than the table, so an update or delete does not say which row it means";
        Err(DestinationError::NeedsCopy {
            table: name.unwrap_or_else(|| relation.name.clone()),
            reason: reason.to_owned(),
        })
    }

    /// A table was changed, or described in another way: its relation is bound again at its next change.
    pub(super) fn table_changed(&mut self, relation: &Relation, followed: &Followed) {
        if relation.name != followed.name {
            self.former_names.insert((relation.id, relation.name.clone()));
        }
        self.bound.remove(&relation.id);
    }

    /// The session has rolled back and forgotten all prepared statements.
    pub(super) fn session_was_reset(&mut self) {
        self.bound.clear();
        self.forget_statements();
    }

    fn forget_statements(&mut self) {
        self.names = StatementNames::default();
        self.advance = None;
        self.wal = None;
    }

    /// Reads the destination's WAL positions behind a COMMIT. Where code of the destination may run, it could put another statement under
    /// the name at that COMMIT, behind the look at the prepared statements: there the question goes out as text.
    pub(super) fn read_wal(&mut self, request: &mut PipelinedRequest) {
        if self.may_run_code() {
            request.query(READ_WAL);
            return;
        }
        let wal = self
            .wal
            .get_or_insert_with(|| PreparedStatement::parsed(request, Arc::from("wal"), Verb::Select, READ_WAL, &[]));
        request.execute_returning(wal.statement().name, &[], wal.parameters, |_| {});
    }

    /// Moves the position, on condition that it is at `previous`.
    pub(super) fn advance(&mut self, request: &mut PipelinedRequest, previous: Lsn, next: Lsn) {
        let RelationMap { advance, advance_sql, .. } = self;
        let advance = advance.get_or_insert_with(|| {
            PreparedStatement::parsed(request, Arc::from("advance"), Verb::Select, advance_sql, &[PG_LSN, PG_LSN])
        });
        request.execute(advance.statement(), &[Format::Binary], advance.parameters, |values| {
            values.put(Some(&previous.as_u64().to_be_bytes()));
            values.put(Some(&next.as_u64().to_be_bytes()));
        });
    }

    /// The prepared form of a statement for single rows.
    pub(super) fn prepare_row(
        &mut self,
        request: &mut PipelinedRequest,
        target: &Target,
        statement: &RowStatement,
    ) -> PreparedStatement {
        let known = self.bound.get(&target.relation.id).and_then(|bound| bound.row_statements.get(statement));
        if let Some(known) = known {
            return known.clone();
        }
        let name = self.next_name(request);
        let prepared = PreparedStatement::row(request, name, target, statement);
        if let Some(bound) = self.bound.get_mut(&target.relation.id) {
            bound.row_statements.insert(statement.clone(), prepared.clone());
        }
        prepared
    }

    /// The prepared form of a statement for sets of rows.
    pub(super) fn prepare_set(
        &mut self,
        request: &mut PipelinedRequest,
        target: &Target,
        statement: &SetStatement,
    ) -> PreparedStatement {
        let known = self.bound.get(&target.relation.id).and_then(|bound| bound.set_statements.get(statement));
        if let Some(known) = known {
            return known.clone();
        }
        let name = self.next_name(request);
        let prepared = PreparedStatement::set(request, name, target, statement);
        if let Some(bound) = self.bound.get_mut(&target.relation.id) {
            bound.set_statements.insert(statement.clone(), prepared.clone());
        }
        prepared
    }

    /// A new name; when there are too many, all statements are forgotten first.
    fn next_name(&mut self, request: &mut PipelinedRequest) -> Arc<str> {
        if self.names.are_used_up() {
            request.run("DEALLOCATE ALL");
            for bound in self.bound.values_mut() {
                bound.row_statements.clear();
                bound.set_statements.clear();
            }
            self.forget_statements();
        }
        self.names.next()
    }
}
