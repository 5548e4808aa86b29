//! A constraint of the destination has refused a row, while streaming or copying: does the source have it?
//!
//! In comes the fault of an attempt or of a copy; out goes the same fault, with the statements that make the destination's constraints
//! the source's where they differ. Both catalogs are read as they are now. What cannot be asked leaves the fault as it is.
//! Which rows are in the way is for `fault::conflict` to say, and right only where the source has the constraint, too.

use std::time::Duration;

use super::prepare::Addresses;
use crate::config::Config;
use crate::destination::{ConflictKind, DestinationError, expressions_here};
use crate::fault::{Fault, report};
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::plan::difference::{Difference, Ends, Violated, domain_difference};
use crate::plan::schema::{TableDefinition, TypeDefinition};
use crate::plan::sql::ddl::Creation;
use crate::session::{SessionError, SqlClient, describe_tables, describe_types};
use crate::source::SourceError;

/// The fault is told without the difference when the servers take longer.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// The fault, with the difference between the ends where a constraint is not the source's.
pub(super) async fn explained(config: &Config, addresses: &Addresses, fault: Fault) -> Fault {
    let Some(violated) = violated(&fault) else { return fault };
    let tables: Vec<QualifiedName> = match &violated.table {
        Some(table) if config.tables.contains(table) => vec![table.clone()],
        // A domain's schema alone is named.
        Some(_) | None => match &fault {
            Fault::Destination(DestinationError::Conflict(conflict)) => conflict.table.iter().cloned().collect(),
            Fault::Destination(_) | Fault::Source(_) | Fault::Refused(_) | Fault::Halted(_) => config.tables.clone(),
        },
    };
    match tokio::time::timeout(LOOK_MAX, look(addresses, &tables, &violated)).await {
        Ok(Ok(Some(difference))) => with_difference(fault, difference),
        Ok(Ok(None)) => fault,
        Ok(Err(error)) => {
            tracing::debug!("the constraint could not be compared with the source's: {error}");
            fault
        }
        Err(_) => {
            tracing::debug!("the constraint could not be compared with the source's: a server did not answer");
            fault
        }
    }
}

/// What was violated, where it is a constraint that the source may have otherwise.
fn violated(fault: &Fault) -> Option<Violated> {
    let is_of_constraint = |kind: ConflictKind| match kind {
        ConflictKind::UniqueViolation
        | ConflictKind::ForeignKeyViolation
        | ConflictKind::CheckViolation
        | ConflictKind::NotNullViolation
        | ConflictKind::ExclusionViolation => true,
        ConflictKind::MissingRow
        | ConflictKind::DataException
        | ConflictKind::PermissionDenied
        | ConflictKind::Other => false,
    };
    match fault {
        Fault::Destination(DestinationError::Conflict(conflict)) => {
            (is_of_constraint(conflict.kind) && !conflict.will_win).then(|| conflict.violated.clone())
        }
        Fault::Destination(DestinationError::Session(error)) => {
            let server = error.server().filter(|server| ConflictKind::of(server.code).is_some_and(is_of_constraint))?;
            Some(server.violated())
        }
        Fault::Destination(_) | Fault::Source(_) | Fault::Refused(_) | Fault::Halted(_) => None,
    }
}

async fn look(
    addresses: &Addresses,
    tables: &[QualifiedName],
    violated: &Violated,
) -> Result<Option<Difference>, Fault> {
    let here = addresses.destination.connect().await.map_err(DestinationError::Session)?;
    let source = addresses.source.connect().await.map_err(SourceError::Session)?;
    let expressions = expressions_here(&here).await?;
    let tables_here = describe_tables(&here, tables).await.map_err(DestinationError::Session)?;
    let tables_there = describe_tables(&source, tables).await.map_err(SourceError::Session)?;
    let types_here = types_of(&here, &tables_here).await.map_err(DestinationError::Session)?;
    let types_there = types_of(&source, &tables_there).await.map_err(SourceError::Session)?;
    let there = |table: &TableDefinition| tables_there.iter().find(|there| there.name() == table.name());
    for (table, there) in tables_here.iter().filter_map(|table| Some((table, there(table)?))) {
        if violated.table.as_ref().is_some_and(|named| *named != table.name()) {
            continue;
        }
        let columns: Vec<Ident> = there.columns.iter().map(|column| column.name.clone()).collect();
        let columns: Vec<Ident> = columns.into_iter().filter(|column| table.column(column).is_some()).collect();
        let creation = Creation {
            table: there,
            schema: &there.schema,
            type_sql: &|_| String::new(),
            types: &types_there,
            expressions: &expressions,
            columns: &columns,
        };
        let ends = Ends { here: table, source: there, creation: &creation };
        if let Some(difference) = ends.difference(violated) {
            return Ok(Some(difference));
        }
    }
    Ok(domain_difference(violated, (&types_here, &types_there), &expressions))
}

async fn types_of(
    client: &SqlClient,
    tables: &[TableDefinition],
) -> Result<std::collections::BTreeMap<crate::pg::TypeId, TypeDefinition>, SessionError> {
    let mut ids: Vec<_> = tables.iter().flat_map(|table| table.columns.iter().map(|column| column.type_id)).collect();
    ids.sort_unstable();
    ids.dedup();
    describe_types(client, &ids).await
}

fn with_difference(fault: Fault, difference: Difference) -> Fault {
    match fault {
        Fault::Destination(DestinationError::Conflict(mut conflict)) => {
            conflict.difference = Some(difference);
            Fault::Destination(DestinationError::Conflict(conflict))
        }
        other @ (Fault::Destination(_) | Fault::Source(_) | Fault::Refused(_) | Fault::Halted(_)) => {
            let told = report(&other);
            let why = format!("{}.", difference.why);
            let detail = told.detail.map_or(why.clone(), |detail| format!("{detail} {why}"));
            let report = ErrorReport::new(told.message)
                .detail(detail)
                .hint(format!("Run at the destination:\n{}", difference.shown()));
            Fault::Destination(DestinationError::Constraint(report))
        }
    }
}
