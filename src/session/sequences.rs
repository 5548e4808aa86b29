//! Reads where the sequences stand that columns of tables own, on either end.
//!
//! The same question on both ends, like `describe`'s. Sequences that our role may not read come without a state.

use super::describe::describe;
use super::error::SessionError;
use super::sql::SqlClient;
use crate::pg::QualifiedName;
use crate::plan::sequences::{OwnedSequence, SequenceState, Standing};
use crate::plan::sql::sequences::read_states;

const OWNED: &str = include_str!("../../sql/owned_sequences.sql");

/// Sequences that one statement reads at most.
const STATES_MAX: usize = 200;

/// The sequences owned by columns of `tables`, and where they stand.
///
/// # Errors
/// [`SessionError`]; also when a sequence is dropped meanwhile, so ask again later.
pub async fn read_sequences(client: &SqlClient, tables: &[QualifiedName]) -> Result<Vec<Standing>, SessionError> {
    let schemas: Vec<&str> = tables.iter().map(|name| name.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|name| name.name.as_str()).collect();
    let owned: Vec<OwnedSequence> = describe(client, "looking for sequences", OWNED, &[&schemas, &names]).await?;
    let mut standing: Vec<Standing> = owned.into_iter().map(|sequence| (sequence, None)).collect();
    let mut readable: Vec<&mut Standing> = standing.iter_mut().filter(|(sequence, _)| sequence.readable).collect();
    for some in readable.chunks_mut(STATES_MAX) {
        let sql = read_states(some.iter().map(|(sequence, _)| &sequence.name));
        for row in client.query("reading sequences", &sql, &[]).await? {
            let place = usize::try_from(row.get::<_, i32>(0)).unwrap_or(usize::MAX);
            if let Some((_, state)) = some.get_mut(place) {
                *state = Some(SequenceState { last_value: row.get(1), is_called: row.get(2) });
            }
        }
    }
    Ok(standing)
}
