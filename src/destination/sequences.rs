//! Moves the destination's sequences after the source's, never back.
//!
//! Called by `pipeline::sequences` with where the source's stand. Not in the stream's transactions: a sequence that is ahead
//! of its rows does no harm, and one that is moved again does not either, so a lost answer needs no care.

use super::error::DestinationError;
use crate::pg::{ErrorReport, QualifiedName};
use crate::plan::sequences::{Standing, moves};
use crate::plan::sql::sequences::move_forward;
use crate::session::{SqlClient, query_sequences, read_sequences};

/// Moves the sequences of `tables` that the source's are ahead of. Returns how many, and what could not be done.
///
/// # Errors
/// [`DestinationError`]; sequences that were moved before stay moved.
pub async fn follow_sequences(
    client: &SqlClient,
    tables: &[QualifiedName],
    source: &[Standing],
) -> Result<(usize, Vec<ErrorReport>), DestinationError> {
    let found = moves(source, &read_sequences(client, tables).await?);
    for sequence in &found.moves {
        query_sequences(client, "moving a sequence", &[&sequence.name], &move_forward(sequence)).await?;
    }
    Ok((found.moves.len(), found.reports))
}
