//! Reads what tells whether tables are still what they were (`plan::fingerprint`), all of them in one question.
//!
//! Asked of the source by the monitor, at every start, and under the locks of a copy. The SQL is in sql/fingerprints.sql. It costs
//! the source a pass over the catalog rows of the tables asked about and takes no lock; most answers are digests, and the facts are
//! asked for where a digest is another one.

use std::collections::HashMap;

use super::error::SessionError;
use super::sql::SqlClient;
use crate::pg::{Ident, RelationId};
use crate::plan::fingerprint::Fingerprint;

const FINGERPRINTS: &str = include_str!("../../sql/fingerprints.sql");
const DOING: &str = "reading fingerprints of tables";

/// The digests of the facts of those of the tables that exist.
///
/// # Errors
/// [`SessionError`].
pub async fn fingerprint_digests(
    client: &SqlClient,
    tables: &[RelationId],
    publication: &Ident,
) -> Result<HashMap<RelationId, String>, SessionError> {
    let ids: Vec<u32> = tables.iter().map(|table| table.0).collect();
    let rows = client.query(DOING, FINGERPRINTS, &[&ids, &publication.as_str(), &false]).await?;
    Ok(rows.iter().map(|row| (RelationId(row.get(0)), row.get(1))).collect())
}

/// The facts about those of the tables that exist.
///
/// # Errors
/// [`SessionError`].
pub async fn fingerprint_facts(
    client: &SqlClient,
    tables: &[RelationId],
    publication: &Ident,
) -> Result<HashMap<RelationId, FingerprintFacts>, SessionError> {
    let ids: Vec<u32> = tables.iter().map(|table| table.0).collect();
    let rows = client.query(DOING, FINGERPRINTS, &[&ids, &publication.as_str(), &true]).await?;
    let facts = rows.iter().map(|row| FingerprintFacts { digest: row.get(1), facts: row.get(2) });
    Ok(rows.iter().map(|row| RelationId(row.get(0))).zip(facts).collect())
}

/// What the catalog says of a table, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintFacts {
    /// The source's digest of the facts: another server's may be another one, for the sake of its encoding.
    pub digest: String,
    facts: String,
}

impl FingerprintFacts {
    /// Which facts a document has: counted up when sql/fingerprints.sql asks for others.
    pub const FORMAT: u32 = 1;

    /// Reads them.
    ///
    /// # Errors
    /// [`SessionError`] when they are none.
    pub fn read(&self) -> Result<Fingerprint, SessionError> {
        serde_json::from_str(&self.facts).map_err(|error| SessionError::protocol(DOING, error.to_string()))
    }

    /// As one JSON document.
    pub fn to_document(&self) -> String {
        let digest = serde_json::Value::from(self.digest.as_str());
        format!("{{\"format\": {}, \"digest\": {digest}, \"facts\": {}}}", Self::FORMAT, self.facts)
    }

    /// From one; `None` when another version has written it with other facts.
    ///
    /// # Errors
    /// [`SessionError`] when it is none.
    pub fn from_document(text: &str) -> Result<Option<FingerprintFacts>, SessionError> {
        #[derive(serde::Deserialize)]
        struct Document {
            format: u32,
            digest: String,
            facts: serde_json::Value,
        }
        let Document { format, digest, facts } =
            serde_json::from_str(text).map_err(|error| SessionError::protocol(DOING, error.to_string()))?;
        Ok((format == Self::FORMAT).then(|| FingerprintFacts { digest, facts: facts.to_string() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_understood_by_servers_of_every_encoding() {
        assert!(FINGERPRINTS.is_ascii(), "sql/fingerprints.sql");
    }

    #[test]
    fn facts_come_back_from_their_document() {
        let facts =
            FingerprintFacts { digest: "d".to_owned(), facts: "{\"columns\":[[1,\"a \\\"b\\\"\"]]}".to_owned() };
        assert_eq!(FingerprintFacts::from_document(&facts.to_document()).unwrap(), Some(facts.clone()));
        let newer = facts.to_document().replace("\"format\": 1", "\"format\": 2");
        assert_eq!(FingerprintFacts::from_document(&newer).unwrap(), None);
    }
}
