//! Attributes of composite types that were renamed at the source, renamed at the destination.
//!
//! Called by `prepare` whenever a stream is to begin ([`follow_types`], with the labels of enums), and by `snapshot` when tables are
//! copied again. In come the types of both ends; the destination's types have the source's names afterwards. All of it is one
//! transaction, since names may change hands.

use crate::catalog::attribute_names::attribute_names;
use crate::catalog::schema::{BothTypes, Types};
use crate::destination::{Catalog, DestinationError};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, shown_sql};
use crate::preflight::enum_labels::{follow_labels, known_labels, rename};
use crate::session::{Clients, SqlClient, SqlState};

/// What may be done to types so that they have the source's names.
#[derive(Clone, Copy)]
pub(crate) struct AllowedChanges {
    /// Labels may be renamed: no row under way has the old names.
    pub(crate) renamed_labels: bool,
    /// `schema_changes = "follow"`; otherwise a difference is refused, with the statements to run.
    pub(crate) follow: bool,
}

/// Brings labels and attributes of types to the source's, and reads the destination's types again where something was done; returns
/// what that was, for the log.
///
/// # Errors
/// [`Fault`]: they are not to be followed, or cannot be, with the statements to run.
pub(crate) async fn follow_types(
    Clients { source, destination }: Clients<'_>,
    source_types: &Types,
    destination_catalog: &mut Catalog,
    allowed: AllowedChanges,
) -> Result<Vec<String>, Fault> {
    let mut told = Vec::new();
    let AllowedChanges { renamed_labels, follow } = allowed;
    if renamed_labels {
        let known = known_labels(source, destination).await?;
        told = follow_labels(destination, source_types, &destination_catalog.types, &known, follow).await?;
    }
    told.extend(
        follow_attributes(
            destination,
            BothTypes { source: source_types, destination: &destination_catalog.types },
            follow,
        )
        .await?,
    );
    if !told.is_empty() {
        destination_catalog.read_types_again(destination).await?;
    }
    Ok(told)
}

/// Renames the attributes that have other names at the destination; returns what was done, for the log.
///
/// # Errors
/// [`Fault`]: they are not to be followed, or cannot be, with the statements to run.
pub(crate) async fn follow_attributes(
    destination: &SqlClient,
    types: BothTypes<'_>,
    follow: bool,
) -> Result<Vec<String>, Fault> {
    let renamed = attribute_names(types.source, types.destination);
    let statements: Vec<String> = renamed.iter().flat_map(|names| names.statements.clone()).collect();
    if statements.is_empty() {
        return Ok(Vec::new());
    }
    let told: Vec<String> = renamed
        .iter()
        .map(|names| format!("attributes of type {} have other names at the source", names.name))
        .collect();
    let run: Vec<String> = statements.iter().map(|statement| format!("{};", shown_sql(statement))).collect();
    let run = run.join("\n");
    if !follow {
        let report = ErrorReport::new("a composite type has changed at the source, and schema_changes = \"stop\"");
        return Err(Fault::Halted(
            report.detail(format!("{}.", told.join("; "))).hint(format!("Run at the destination:\n{run}")),
        ));
    }
    rename(destination, "renaming attributes", &statements).await.map_err(|error| {
        if error.code() != Some(SqlState::new(b"42501")) {
            return Fault::from(DestinationError::Session(error));
        }
        let report =
            ErrorReport::new(format!("cannot rename attributes of a composite type at the destination: {error}"));
        Fault::Halted(report.hint(format!("Run at the destination as the owner of the type:\n{run}")))
    })?;
    Ok(told)
}
