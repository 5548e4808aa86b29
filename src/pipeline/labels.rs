//! Labels that enums have got at the source, added at the destination.
//!
//! Called by `prepare` whenever a stream is to begin, and by `attempt` when a row had a value that its column does not
//! take. A label is added in a transaction of its own, because PostgreSQL lets nobody use one before it is committed; it may
//! come earlier than the stream's position, since nothing refers to it until then.

use crate::destination::DestinationError;
use crate::fault::Fault;
use crate::pg::{ErrorReport, TypeId};
use crate::plan::evolution::labels;
use crate::plan::schema::Types;
use crate::session::{SqlClient, describe_types};
use crate::source::SourceError;

/// Adds the labels that the destination lacks; returns what was done, for the log.
///
/// # Errors
/// [`Fault`]: they are not to be followed, or cannot be, with the statements to run.
pub(super) async fn follow_labels(
    destination: &SqlClient,
    source_types: &Types,
    destination_types: &Types,
    follow: bool,
) -> Result<Vec<String>, Fault> {
    let missing = labels(source_types, destination_types);
    if missing.renamed.is_empty() && (missing.added.is_empty() || follow) {
        for statement in &missing.added {
            let added = destination.batch("adding an enum's label", statement).await;
            added.map_err(DestinationError::Session)?;
        }
        return Ok(missing.told);
    }
    let statements: Vec<String> =
        missing.renamed.iter().chain(&missing.added).map(|statement| format!("{statement};")).collect();
    let message = if missing.renamed.is_empty() {
        "an enum has got labels at the source, and schema_changes = \"stop\""
    } else {
        "an enum has other labels at the source than here"
    };
    Err(Fault::Halted(
        ErrorReport::new(message)
            .detail(format!("{}.", missing.told.join("; ")))
            .hint(format!("Run at the destination:\n{}", statements.join("\n"))),
    ))
}

/// Whether the source's enums have labels by now that the destination's lack.
pub(super) async fn labels_are_missing(
    source: &SqlClient,
    destination: &SqlClient,
    (source_ids, destination_ids): (&[TypeId], &[TypeId]),
) -> Result<bool, Fault> {
    let there = describe_types(source, source_ids).await.map_err(SourceError::Session)?;
    let here = describe_types(destination, destination_ids).await.map_err(DestinationError::Session)?;
    let missing = labels(&there, &here);
    Ok(!missing.added.is_empty() || !missing.renamed.is_empty())
}
