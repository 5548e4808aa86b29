//! Facts remembered of the source's catalog, which show whether its tables' rows are still those that the stream has described.
//!
//! One document a table, in headwater.shapes. Written when a snapshot is published, in the same transaction, from what was read
//! under the locks of the copy; and by the pipeline when it has found that a difference concerns no rows. Read at every start, and by
//! the monitor when the source's digest is another one. What an older version has written has none: then there is nothing to
//! compare with, and what is there now is remembered.

use std::collections::{BTreeSet, HashMap};

use serde::de::DeserializeOwned;

use super::error::DestinationError;
use crate::catalog::fingerprint::Fingerprint;
use crate::catalog::leaves::KnownLeaves;
use crate::pg::{QualifiedName, RelationId};
use crate::session::{FingerprintFacts, SessionError, SqlClient, SqlState};

const DOING: &str = "reading headwater.shapes";

/// A table that is followed, and what is remembered of it.
#[derive(Clone, Debug)]
pub struct RememberedTable {
    /// Its name.
    pub name: QualifiedName,
    /// The facts; `None` from a version that knew none, or others.
    pub facts: Option<FingerprintFacts>,
    /// What is known of its partitions.
    pub leaves: KnownLeaves,
}

impl RememberedTable {
    /// Whether the stream has told of partitions that no look has seen: they may be gone without a trace.
    ///
    /// # Errors
    /// [`SessionError`]: the facts are none.
    pub fn has_unseen_leaves(&self) -> Result<bool, SessionError> {
        let Some(facts) = self.facts.as_ref().filter(|_| !self.leaves.known.is_empty()) else { return Ok(false) };
        let members: BTreeSet<u32> = facts.read()?.members.iter().map(|member| member.id).collect();
        Ok(!self.leaves.known.is_subset(&members))
    }
}

/// What is remembered of the tables that are followed.
///
/// # Errors
/// [`DestinationError`].
pub async fn remembered_fingerprints(
    client: &SqlClient,
) -> Result<HashMap<RelationId, RememberedTable>, DestinationError> {
    let sql = "SELECT t.source_id, t.schema_name, t.table_name, pg_catalog.to_jsonb(s) ->> 'fingerprint',
                      s.shape ->> 'partitions', s.shape ->> 'empty_partitions'
               FROM headwater.tables t JOIN headwater.shapes s ON s.source_id = t.source_id WHERE t.state = 'live'";
    let rows = match client.query(DOING, sql, &[]).await {
        // An earlier version's bookkeeping may lack a table, until the stream begins.
        Err(error) if error.code() == Some(SqlState::new(b"42P01")) => return Ok(HashMap::new()),
        rows => rows?,
    };
    let read = rows.iter().map(|row| {
        let facts = row.get::<Option<&str>>(3)?.map(FingerprintFacts::from_document).transpose()?.flatten();
        let name = QualifiedName::new(row.get::<&str>(1)?, row.get::<&str>(2)?);
        // An earlier version knew of none that are empty.
        let leaves = KnownLeaves { known: read_leaves(row.get(4)?)?, empty: read_leaves(row.get(5)?)? };
        Ok((RelationId(row.get(0)?), RememberedTable { name, facts, leaves }))
    });
    read.collect()
}

fn read_leaves<T: Default + DeserializeOwned>(text: Option<&str>) -> Result<T, DestinationError> {
    let read = text.map(serde_json::from_str).transpose();
    Ok(read.map_err(|error| SessionError::from_json(DOING, &error))?.unwrap_or_default())
}

/// What is remembered of all tables, those too that wait for a copy.
///
/// # Errors
/// [`DestinationError`].
pub async fn all_fingerprints(client: &SqlClient) -> Result<Vec<Fingerprint>, DestinationError> {
    // An earlier version's bookkeeping has none, until the stream begins.
    let sql = "SELECT pg_catalog.to_jsonb(s) ->> 'fingerprint' FROM headwater.shapes s";
    let rows = client.query(DOING, sql, &[]).await?;
    let mut read = Vec::new();
    for row in &rows {
        let Some(text) = row.get::<Option<&str>>(0)? else { continue };
        if let Some(facts) = FingerprintFacts::from_document(text)? {
            read.push(facts.read()?);
        }
    }
    Ok(read)
}

/// Remembers facts of tables whose shapes are remembered, in one statement; for a transaction of the caller's.
///
/// # Errors
/// [`DestinationError`].
pub(super) async fn remember_all(
    client: &SqlClient,
    doing: &'static str,
    facts: &[(RelationId, &FingerprintFacts)],
) -> Result<(), DestinationError> {
    let ids: Vec<u32> = facts.iter().map(|(table, _)| table.0).collect();
    let documents: Vec<String> = facts.iter().map(|(_, facts)| facts.to_document()).collect();
    let sql = "UPDATE headwater.shapes s SET fingerprint = n.document::json
               FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::text[])) AS n (id, document)
               WHERE s.source_id = n.id";
    client.execute(doing, sql, &[&ids, &documents]).await?;
    Ok(())
}

/// Facts to remember of a table whose rows are those that the stream describes.
#[derive(Clone, Debug)]
pub struct NewFacts {
    /// The table.
    pub table: RelationId,
    /// What was remembered when it was looked at.
    pub before: RememberedTable,
    /// What is now.
    pub facts: FingerprintFacts,
    /// The same, as it was read.
    pub now: Fingerprint,
    /// What is known of its partitions now.
    pub leaves: KnownLeaves,
}

/// Remembers facts that differ from those of before in nothing that concerns rows, and what is known of partitions by them, unless
/// other facts or partitions were remembered meanwhile: then the next look decides. What the stream has passed stays what it was: see
/// [`set_passed`]. One statement for all tables.
///
/// # Errors
/// [`DestinationError`].
pub async fn remember_fingerprints(client: &SqlClient, new: &[NewFacts]) -> Result<(), DestinationError> {
    let tables: Vec<u32> = new.iter().map(|new| new.table.0).collect();
    let before: Vec<Option<&str>> =
        new.iter().map(|new| new.before.facts.as_ref().map(|facts| facts.digest.as_str())).collect();
    let documents: Vec<String> = new.iter().map(|new| new.facts.to_document()).collect();
    let (partitions, empty) = to_json(new.iter().map(|new| &new.leaves))?;
    let (partitions_before, empty_before) = to_json(new.iter().map(|new| &new.before.leaves))?;
    let sql = "UPDATE headwater.shapes s
               SET fingerprint = (n.document::jsonb || pg_catalog.jsonb_build_object('passed',
                       CASE WHEN (s.fingerprint ->> 'format')::int8 = $5
                       THEN COALESCE(s.fingerprint::jsonb -> 'passed', s.fingerprint::jsonb -> 'facts') ELSE '{}' END))::json,
                   shape = (s.shape::jsonb || pg_catalog.jsonb_build_object('partitions', n.partitions::jsonb,
                       'empty_partitions', n.vacant::jsonb))::json
               FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                   pg_catalog.unnest($4::text[]), pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::text[]),
                   pg_catalog.unnest($8::text[])) AS n (id, before, document, partitions, vacant, partitions_before, vacant_before)
               WHERE s.source_id = n.id AND n.before IS NOT DISTINCT FROM
                   CASE WHEN (s.fingerprint ->> 'format')::int8 = $5 THEN s.fingerprint ->> 'digest' END
                   AND COALESCE(s.shape::jsonb -> 'partitions', '[]') = n.partitions_before::jsonb
                   AND COALESCE(s.shape::jsonb -> 'empty_partitions', '{}') = n.vacant_before::jsonb";
    let format = i64::from(FingerprintFacts::FORMAT);
    client
        .query(
            "writing headwater.shapes",
            sql,
            &[&tables, &before, &documents, &partitions, &format, &empty, &partitions_before, &empty_before],
        )
        .await?;
    Ok(())
}

/// Of each the known and the empty partitions, as in a shape.
fn to_json<'a>(leaves: impl Iterator<Item = &'a KnownLeaves>) -> Result<(Vec<String>, Vec<String>), DestinationError> {
    let written = leaves.map(|KnownLeaves { known, empty }| {
        Ok::<_, serde_json::Error>((serde_json::to_string(known)?, serde_json::to_string(empty)?))
    });
    let written: Result<Vec<_>, _> = written.collect();
    Ok(written.map_err(|error| SessionError::from_json(DOING, &error))?.into_iter().unzip())
}

/// The stream has passed a moment at which the source's catalog said what is remembered of these tables, by its digests.
///
/// # Errors
/// [`DestinationError`].
pub async fn set_passed(client: &SqlClient, tables: &[(RelationId, String)]) -> Result<(), DestinationError> {
    let ids: Vec<u32> = tables.iter().map(|(table, _)| table.0).collect();
    let digests: Vec<&str> = tables.iter().map(|(_, digest)| digest.as_str()).collect();
    let sql = "UPDATE headwater.shapes s SET fingerprint = (s.fingerprint::jsonb - 'passed')::json
               FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::text[])) AS n (id, digest)
               WHERE s.source_id = n.id AND s.fingerprint ->> 'digest' = n.digest";
    client.query("writing headwater.shapes", sql, &[&ids, &digests]).await?;
    Ok(())
}
