//! Reads what tells whether tables are still what they were (`catalog::fingerprint`), all of them in one question.
//!
//! Asked of the source by the monitor, at every start, and under the locks of a copy. The SQL is in sql/fingerprints.sql. It costs
//! the source a pass over the catalog rows of the tables asked about and takes no lock; most answers are digests, and the facts are
//! asked for where a digest is another one.

use std::collections::HashMap;

use super::error::SessionError;
use super::sql::SqlClient;
use crate::catalog::fingerprint::Fingerprint;
use crate::catalog::leaves::{KnownLeaves, Vacancy};
use crate::pg::{Ident, Lsn, RelationId};

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
    rows.iter().map(|row| Ok((RelationId(row.get(0)?), row.get(1)?))).collect()
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
    let facts = rows.iter().map(|row| {
        let facts = FingerprintFacts { digest: row.get(1)?, facts: row.get(2)?, passed: Passed::These };
        Ok((RelationId(row.get(0)?), facts))
    });
    facts.collect()
}

/// What the catalog says of a table, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintFacts {
    /// The source's digest of the facts: another server's may be another one, for the sake of its encoding.
    pub digest: String,
    facts: String,
    passed: Passed,
}

/// The facts that the stream has passed: what held at a moment at or before the stored position.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Passed {
    /// Those that are remembered.
    These,
    /// Earlier ones: the others may be of a moment that the stream has not come to.
    Earlier(String),
    /// None that anybody knows.
    None,
}

impl FingerprintFacts {
    /// Which facts a document has: counted up when sql/fingerprints.sql asks for others.
    pub const FORMAT: u32 = 2;

    /// Reads them.
    ///
    /// # Errors
    /// [`SessionError`] when they are none.
    pub fn read(&self) -> Result<Fingerprint, SessionError> {
        serde_json::from_str(&self.facts).map_err(|error| SessionError::from_json(DOING, &error))
    }

    /// The partitions of the table with this OID, each of which may have rows.
    ///
    /// # Errors
    /// [`SessionError`] when these are no facts.
    pub fn leaves(&self, table: RelationId) -> Result<KnownLeaves, SessionError> {
        let now = self.read()?;
        Ok(now.known_leaves(table, None, &KnownLeaves::default(), &Vacancy::default(), Lsn::INVALID))
    }

    /// These, of which the stream has passed others.
    #[must_use]
    pub fn ahead_of(self, passed: &FingerprintFacts) -> FingerprintFacts {
        match self.facts == passed.facts {
            true => self,
            false => FingerprintFacts { passed: Passed::Earlier(passed.facts.clone()), ..self },
        }
    }

    /// Whether the stream may not have come to the moment of these facts.
    pub fn are_ahead(&self) -> bool {
        self.passed != Passed::These
    }

    /// The facts that the stream has passed; `None` where nobody knows of any.
    ///
    /// # Errors
    /// [`SessionError`] when they are none.
    pub fn read_passed(&self) -> Result<Option<Fingerprint>, SessionError> {
        let facts = match &self.passed {
            Passed::These => &self.facts,
            Passed::Earlier(facts) => facts,
            Passed::None => return Ok(None),
        };
        serde_json::from_str(facts).map(Some).map_err(|error| SessionError::from_json(DOING, &error))
    }

    /// As one JSON document.
    pub fn to_document(&self) -> String {
        let digest = serde_json::Value::from(self.digest.as_str());
        let passed = match &self.passed {
            Passed::These => String::new(),
            Passed::Earlier(facts) => format!(", \"passed\": {facts}"),
            Passed::None => ", \"passed\": {}".to_owned(),
        };
        format!("{{\"format\": {}, \"digest\": {digest}, \"facts\": {}{passed}}}", Self::FORMAT, self.facts)
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
            passed: Option<serde_json::Map<String, serde_json::Value>>,
        }
        let Document { format, digest, facts, passed } =
            serde_json::from_str(text).map_err(|error| SessionError::from_json(DOING, &error))?;
        let passed = match passed {
            None => Passed::These,
            Some(passed) if passed.is_empty() => Passed::None,
            Some(passed) => Passed::Earlier(serde_json::Value::Object(passed).to_string()),
        };
        Ok((format == Self::FORMAT).then(|| FingerprintFacts { digest, facts: facts.to_string(), passed }))
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
        let mut facts = FingerprintFacts {
            digest: "d".to_owned(),
            facts: "{\"columns\":[[1,\"a \\\"b\\\"\"]]}".to_owned(),
            passed: Passed::These,
        };
        assert_eq!(FingerprintFacts::from_document(&facts.to_document()).unwrap(), Some(facts.clone()));
        for (added, passed) in [("{}", Passed::None), ("{\"keys\":[]}", Passed::Earlier("{\"keys\":[]}".to_owned()))] {
            facts.passed = Passed::These;
            let document = facts.to_document().replace("{\"format\"", &format!("{{\"passed\": {added}, \"format\""));
            facts.passed = passed;
            assert_eq!(FingerprintFacts::from_document(&document).unwrap(), Some(facts.clone()));
            assert_eq!(FingerprintFacts::from_document(&facts.to_document()).unwrap(), Some(facts.clone()));
        }
        let passed = FingerprintFacts { facts: "{\"keys\":[]}".to_owned(), passed: Passed::These, ..facts.clone() };
        assert_eq!(facts.clone().ahead_of(&passed).passed, Passed::Earlier(passed.facts.clone()));
        assert_eq!(passed.clone().ahead_of(&passed), passed);
        let newer = facts.to_document().replace("\"format\": 2", "\"format\": 3");
        assert_eq!(FingerprintFacts::from_document(&newer).unwrap(), None);
    }
}
