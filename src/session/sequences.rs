//! Reads where the sequences stand that columns of tables own, on either end.
//!
//! The same question on both ends, like `describe`'s. Sequences that our role may not read come without a state.

use super::describe::describe;
use super::error::SessionError;
use super::row::Row;
use super::sql::SqlClient;
use crate::catalog::sequences::{OwnedSequence, SequenceReading, SequenceState};
use crate::catalog::sequences_sql::{HOLD, read_states};
use crate::pg::QualifiedName;

const OWNED: &str = include_str!("../../sql/owned_sequences.sql");

/// Sequences that one statement reads at most.
const STATES_MAX: usize = 200;

/// Runs a statement that names these sequences, in a transaction in which they cannot become anything else.
///
/// # Errors
/// [`SessionError`]; also when one of them is not a sequence any more. The session is outside of a transaction again, unless it is gone.
pub async fn query_sequences(
    client: &SqlClient,
    doing: &'static str,
    names: &[&QualifiedName],
    sql: &str,
) -> Result<Vec<Row>, SessionError> {
    let names: Vec<String> = names.iter().map(|name| name.sql()).collect();
    client.batch(doing, "BEGIN").await?;
    let queried = async {
        let ids = async || -> Result<Vec<u32>, SessionError> {
            client.query(doing, HOLD, &[&names]).await?.iter().map(|row| row.get(0)).collect()
        };
        if ids().await? != ids().await? {
            return Err(SessionError::protocol(doing, "a sequence was renamed meanwhile".to_owned()));
        }
        client.query(doing, sql, &[]).await
    };
    let queried = queried.await;
    let ended = client.batch(doing, if queried.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    let rows = queried?;
    ended?;
    Ok(rows)
}

/// The sequences owned by columns of `tables`, and where they stand.
///
/// # Errors
/// [`SessionError`]; also when a sequence is dropped meanwhile, so ask again later.
pub async fn read_sequences(
    client: &SqlClient,
    tables: &[QualifiedName],
) -> Result<Vec<SequenceReading>, SessionError> {
    let doing = "reading sequences";
    let schemas: Vec<&str> = tables.iter().map(|name| name.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|name| name.name.as_str()).collect();
    let owned: Vec<OwnedSequence> = describe(client, "looking for sequences", OWNED, &[&schemas, &names]).await?;
    let mut standing: Vec<SequenceReading> = owned.into_iter().map(|sequence| (sequence, None)).collect();
    let mut readable: Vec<&mut SequenceReading> =
        standing.iter_mut().filter(|(sequence, _)| sequence.readable).collect();
    for some in readable.chunks_mut(STATES_MAX) {
        let names: Vec<&QualifiedName> = some.iter().map(|(sequence, _)| &sequence.name).collect();
        let sql = read_states(names.iter().copied());
        for row in query_sequences(client, doing, &names, &sql).await? {
            let index = usize::try_from(row.get::<i32>(0)?).ok();
            let (_, state) = index
                .and_then(|index| some.get_mut(index))
                .ok_or_else(|| SessionError::answer(doing, "a sequence that was not asked for"))?;
            *state = Some(SequenceState { last_value: row.get(1)?, is_called: row.get(2)? });
        }
    }
    Ok(standing)
}
