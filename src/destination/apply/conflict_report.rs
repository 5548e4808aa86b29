//! What a failure is reported as: the conflict of a row, and other refusals, by the change that the failed statement carried out.
//!
//! Asked by `applier` once `failure` has said that the attempt ends. Pure. Rows are named by the columns of their key, never by values.

use std::sync::Arc;

use crate::catalog::schema::TableDefinition;
use crate::config::OnConflict;
use crate::destination::catalog::Catalog;
use crate::destination::error::{Conflict, ConflictKind, DestinationError, FailedChange};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, Relation, ReplicaIdentity};
use crate::session::ServerError;
use crate::transaction::{Change, RowChange};

/// The source transaction that a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FailedTransaction {
    pub(super) commit_lsn: Lsn,
    /// Unknown of a large one.
    pub(super) end_lsn: Option<Lsn>,
}

impl FailedTransaction {
    /// None: the request held a position alone.
    pub(super) const UNKNOWN: FailedTransaction = FailedTransaction { commit_lsn: Lsn::INVALID, end_lsn: None };
}

/// The conflict of a change; `None`: it belongs to no single one.
pub(super) fn conflict(
    transaction: FailedTransaction,
    change: Option<&Change>,
    kind: ConflictKind,
    error: ServerError,
    catalog: &Catalog,
) -> Conflict {
    let relation = change.and_then(|change| change.relations().first());
    let operation = change.map(|change| match change {
        Change::Row(RowChange::Insert { .. }) => "insert",
        Change::Row(RowChange::Update { .. }) => "update",
        Change::Row(RowChange::Delete { .. }) => "delete",
        Change::Truncate { .. } => "truncate",
    });
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
    let definition = table.as_ref().and_then(|table| catalog.table(table));
    Conflict {
        kind,
        operation,
        key: relation.map(|relation| key_columns(relation, definition)).unwrap_or_default(),
        constraint: error
            .constraint
            .map(|name| with_columns(name, definition))
            .or_else(|| error.column.map(|name| Ident::new(name).to_string())),
        table,
        message,
        code: error.code,
        commit_lsn: transaction.commit_lsn,
        end_lsn: transaction.end_lsn,
        will_win: false,
        on_conflict: OnConflict::Stop,
        violated,
        difference: None,
        user: None,
        change: change.map(FailedChange::of),
    }
}

pub(super) fn statement_replaced_report() -> ErrorReport {
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

pub(super) fn truncate_refused(relations: &[Arc<Relation>], error: &ServerError) -> DestinationError {
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

/// The columns by which a row is known: the replica identity, or where that is the whole row, the primary key.
fn key_columns(relation: &Relation, table: Option<&TableDefinition>) -> Vec<Ident> {
    if relation.replica_identity == ReplicaIdentity::Full {
        let primary = table.and_then(|table| table.indexes.iter().find(|index| index.primary));
        return primary.map(|index| index.key_columns().cloned().collect()).unwrap_or_default();
    }
    relation.columns.iter().filter(|column| column.in_identity).map(|column| column.name.clone()).collect()
}

/// A constraint's name with its columns, where the catalog knows them.
fn with_columns(name: String, table: Option<&TableDefinition>) -> String {
    let of_index = |table: &TableDefinition| {
        let index = table.indexes.iter().find(|index| index.name.as_str() == name)?;
        Some(index.key_columns().cloned().collect::<Vec<_>>())
    };
    let of_constraint = |table: &TableDefinition| {
        table.constraints.iter().find(|constraint| constraint.name.as_str() == name)?.columns.clone()
    };
    let columns = table.and_then(|table| of_constraint(table).or_else(|| of_index(table))).unwrap_or_default();
    let name = Ident::new(name);
    if columns.is_empty() {
        return name.to_string();
    }
    let columns: Vec<String> = columns.iter().map(Ident::to_string).collect();
    format!("{name} ({})", columns.join(", "))
}
