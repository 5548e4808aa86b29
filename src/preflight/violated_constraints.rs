//! A constraint of the destination has refused a row, while streaming or copying: does the source have it?
//!
//! In comes the fault of an attempt or of a copy; out goes the same fault, with the statements that make the destination's constraints
//! the source's where they differ. Both catalogs are read as they are now. What cannot be asked leaves the fault as it is.
//! Which rows are in the way is for `error_policy::conflict` to say, and right only where the source has the constraint, too, and has
//! had it
//! all the time: what was dropped and made again since the stream's place explains a row that is refused by itself. Then no row of
//! the destination is at fault, and only a copy has the rows ([`let_through`]).

use std::time::Duration;

use crate::catalog::fingerprint::RowRefusal;
use crate::catalog::schema::{BothTypes, TableDefinition, TypeDefinition};
use crate::config::Config;
use crate::destination::{
    Bookkeeping, Conflict, ConflictKind, DestinationError, RememberedTable, expressions_here, remembered_fingerprints,
};
use crate::error_policy::{Fault, report};
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::preflight::addresses::Addresses;
use crate::preflight::partitions::{self, made_at, with_own_constraints};
use crate::schema_change::constraint_difference::{Difference, TableEnds, Violated, domain_difference};
use crate::schema_change::ddl::Creation;
use crate::session::{Clients, SessionError, SqlClient, describe_tables, describe_types, fingerprint_facts};
use crate::source::SourceError;

/// When the servers take longer, the fault is reported without the difference.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// The fault, with the difference between the ends where a constraint is not the source's.
pub(crate) async fn explained(config: &Config, addresses: &Addresses, fault: Fault) -> Fault {
    let Some(violated) = violated(&fault) else { return fault };
    let tables: Vec<QualifiedName> = match &violated.table {
        Some(table) if config.tables.contains(table) => vec![table.clone()],
        // A domain's schema alone is named.
        Some(_) | None => match &fault {
            Fault::Destination(DestinationError::Conflict(conflict)) => conflict.table.iter().cloned().collect(),
            Fault::Destination(_) | Fault::Source(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => {
                config.tables.clone()
            }
        },
    };
    match tokio::time::timeout(LOOK_MAX, look(addresses, &tables, &violated)).await {
        Ok(Ok(ConstraintFound { difference: Some(difference), .. })) => with_difference(fault, difference),
        Ok(Ok(ConstraintFound { difference: None, .. })) => fault,
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
        Fault::Destination(DestinationError::KeyRefuses(refusal)) => Some(refusal.violated()),
        Fault::Destination(_) | Fault::Source(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => None,
    }
}

/// A conflict that is explained by what the source had otherwise for a while, as the need of a copy; any other fault as it is. One in
/// which the source's row was to win waits where that cannot be asked.
pub(crate) async fn let_through(config: &Config, addresses: &Addresses, fault: Fault) -> Fault {
    let Fault::Destination(DestinationError::Conflict(mut conflict)) = fault else { return fault };
    let asked = match conflict.table.clone() {
        Some(table) => tokio::time::timeout(LOOK_MAX, reason(config, addresses, &conflict, &table)).await,
        None => Ok(Ok(None)),
    };
    match asked {
        Ok(Ok(Some(needs_copy))) => return Fault::Destination(needs_copy),
        Ok(Ok(None)) => {}
        Ok(Err(fault)) => {
            tracing::warn!("the conflict could not be compared with the source's catalog: {}", report(&fault).lines());
            conflict.will_win = false;
        }
        Err(_) => {
            tracing::warn!("the conflict could not be compared with the source's catalog: a server did not answer");
            conflict.will_win = false;
        }
    }
    Fault::Destination(DestinationError::Conflict(conflict))
}

async fn reason(
    config: &Config,
    addresses: &Addresses,
    conflict: &Conflict,
    table: &QualifiedName,
) -> Result<Option<DestinationError>, Fault> {
    let Some(refusal) = refusal(addresses, conflict, table).await? else { return Ok(None) };
    let bookkeeping = Bookkeeping::connect(&addresses.destination).await?;
    let remembered = remembered_fingerprints(bookkeeping.client()).await?;
    let known = remembered.into_iter().find(|(_, known)| known.name == *table);
    let Some((id, RememberedTable { facts: Some(facts), .. })) = known else { return Ok(None) };
    let Some(passed) = facts.read_passed().map_err(DestinationError::Session)? else { return Ok(None) };
    let source = addresses.source.connect().await.map_err(SourceError::Session)?;
    let now = fingerprint_facts(&source, &[id], &config.source.publication).await.map_err(SourceError::Session)?;
    let Some(now) = now.get(&id) else { return Ok(None) };
    let reason = passed.explains(&now.read().map_err(SourceError::Session)?, id, &refusal);
    Ok(reason.map(|reason| DestinationError::NeedsCopy { table: table.clone(), reason }))
}

/// What was refused, where both ends have the rule now. Where the source lacks it, the report names what ends the difference.
async fn refusal(
    addresses: &Addresses,
    conflict: &Conflict,
    table: &QualifiedName,
) -> Result<Option<RowRefusal>, Fault> {
    let Violated { constraint, column, .. } = &conflict.violated;
    let is_of_table = match conflict.kind {
        ConflictKind::MissingRow => return Ok(Some(RowRefusal::Missing)),
        ConflictKind::UniqueViolation
        | ConflictKind::CheckViolation
        | ConflictKind::ExclusionViolation
        | ConflictKind::ForeignKeyViolation => constraint.is_some(),
        ConflictKind::NotNullViolation => column.is_some(),
        ConflictKind::DataException | ConflictKind::PermissionDenied | ConflictKind::Other => false,
    };
    if !is_of_table {
        return Ok(None);
    }
    let looked = look(addresses, std::slice::from_ref(table), &conflict.violated).await?;
    if looked.difference.is_some() {
        return Ok(None);
    }
    Ok(match conflict.kind {
        ConflictKind::UniqueViolation => Some(RowRefusal::Alike(looked.counterparts)),
        ConflictKind::NotNullViolation => column.clone().map(RowRefusal::Null),
        ConflictKind::MissingRow
        | ConflictKind::CheckViolation
        | ConflictKind::ExclusionViolation
        | ConflictKind::ForeignKeyViolation
        | ConflictKind::DataException
        | ConflictKind::PermissionDenied
        | ConflictKind::Other => constraint.clone().map(RowRefusal::Constraint),
    })
}

/// What both catalogs say of a constraint that was violated.
#[derive(Default)]
struct ConstraintFound {
    difference: Option<Difference>,
    /// The source's indexes that forbid the same.
    counterparts: Vec<u32>,
}

async fn look(addresses: &Addresses, tables: &[QualifiedName], violated: &Violated) -> Result<ConstraintFound, Fault> {
    let here = addresses.destination.connect().await.map_err(DestinationError::Session)?;
    let source = addresses.source.connect().await.map_err(SourceError::Session)?;
    let expressions = expressions_here(&here).await?;
    let tables_here = describe_tables(&here, tables).await.map_err(DestinationError::Session)?;
    let tables_there = describe_tables(&source, tables).await.map_err(SourceError::Session)?;
    let types_here = types_of(&here, &tables_here).await.map_err(DestinationError::Session)?;
    let types_there = types_of(&source, &tables_there).await.map_err(SourceError::Session)?;
    let violated = &made_at(&here, violated).await?.unwrap_or_else(|| violated.clone());
    let partition = match &violated.table {
        Some(named) if !tables.contains(named) => {
            let trees: Vec<u32> = tables_here.iter().filter(|table| table.is_tree()).map(|table| table.id).collect();
            with_own_constraints(&here, &trees).await?.into_iter().filter(|own| own.partition == *named).collect()
        }
        Some(_) | None => Vec::new(),
    };
    let sources: Vec<&TableDefinition> = tables_there.iter().collect();
    let partition = partitions::ends(Clients { source: &source, destination: &here }, &partition, &sources).await?;
    let there = |table: &TableDefinition| tables_there.iter().find(|there| there.name() == table.name());
    let tables = tables_here.iter().filter_map(|table| Some((table, there(table)?)));
    let tables = tables.filter(|(table, _)| violated.table.as_ref().is_none_or(|named| *named == table.name()));
    let mut counterparts = Vec::new();
    for (table, there) in tables.chain(partition.iter().map(|ends| (&ends.here, &ends.source))) {
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
        let ends = TableEnds { here: table, source: there, creation: &creation };
        if let Some(difference) = ends.difference(violated) {
            return Ok(ConstraintFound { difference: Some(difference), ..ConstraintFound::default() });
        }
        counterparts.extend(violated.constraint.iter().flat_map(|name| ends.counterparts(name)));
    }
    let difference =
        domain_difference(violated, BothTypes { source: &types_there, destination: &types_here }, &expressions);
    Ok(ConstraintFound { difference, counterparts })
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
        other @ (Fault::Destination(_)
        | Fault::Source(_)
        | Fault::Refused(_)
        | Fault::Halted(_)
        | Fault::Unwatched(_)) => {
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
