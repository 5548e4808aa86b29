//! Moves the destination's sequences after the source's, never back.
//!
//! Called by `preflight::sequences` with where the source's stand. Not in the stream's transactions: a sequence that is ahead
//! of its rows does no harm, and one that is moved again does not either, so a lost answer needs no care.

use super::error::DestinationError;
use crate::catalog::sequences::{SequenceReading, Widening, moves};
use crate::catalog::sequences_sql::{move_forward, widen};
use crate::config::SchemaChanges;
use crate::pg::{ErrorReport, QualifiedName};
use crate::session::{SqlClient, query_sequences, read_sequences};

/// What a round has done.
#[derive(Debug)]
pub struct FollowedSequences {
    /// Sequences that were moved.
    pub moved: usize,
    /// Those that have got the source's type.
    pub widened: Vec<Widening>,
    /// What could not be done.
    pub reports: Vec<ErrorReport>,
}

/// Moves the sequences of `tables` that the source's are ahead of, those with a narrower type widened first.
///
/// # Errors
/// [`DestinationError`]; sequences that were moved before stay moved.
pub async fn follow_sequences(
    client: &SqlClient,
    tables: &[QualifiedName],
    source: &[SequenceReading],
    changes: SchemaChanges,
) -> Result<FollowedSequences, DestinationError> {
    let found = moves(source, &read_sequences(client, tables).await?, changes);
    for sequence in &found.widenings {
        query_sequences(client, "widening a sequence", &[&sequence.name], &widen(sequence)).await?;
    }
    for sequence in &found.moves {
        query_sequences(client, "moving a sequence", &[&sequence.name], &move_forward(sequence)).await?;
    }
    Ok(FollowedSequences { moved: found.moves.len(), widened: found.widenings, reports: found.reports })
}
