//! The source's sequences that replicated columns own.
//!
//! Asked by `preflight::sequences` now and then; they are in no stream.

use super::error::SourceError;
use crate::catalog::sequences::SequenceReading;
use crate::pg::QualifiedName;
use crate::session::{SqlClient, read_sequences};

/// Where they stand.
///
/// # Errors
/// [`SourceError`].
pub async fn source_sequences(
    client: &SqlClient,
    tables: &[QualifiedName],
) -> Result<Vec<SequenceReading>, SourceError> {
    Ok(read_sequences(client, tables).await?)
}
