//! Whether the rows of the tables that are followed may be others than the stream has told of.
//!
//! Asked by `attempt` before a stream begins and by `monitor` on its clock. In come a session with the source and what is
//! remembered of the tables; out goes a [`Look`], in which every difference has found its place. The judgement is
//! [`crate::catalog::fingerprint`]'s; here the catalog is asked: for digests of all tables at once, and for the facts of those
//! whose digest is another one. Partitions that nobody knows are asked for their sizes, which locks each for a moment.

use std::collections::{BTreeSet, HashMap};

use crate::catalog::fingerprint::{Fingerprint, RowVerdict};
use crate::catalog::leaves::Vacancy;
use crate::catalog::truncation::Told;
use crate::destination::{
    Bookkeeping, DestinationError, NewFacts, RememberedTable, Request, RequestOrigin, Scope, remembered_fingerprints,
};
use crate::pg::{Ident, Lsn, QualifiedName, RelationId};
use crate::session::{
    FingerprintFacts, RowsOf, SessionError, SqlClient, fingerprint_digests, fingerprint_facts, first_pages, vacancy,
};
use crate::telemetry::Telemetry;

/// What has become of the tables that are followed.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Their rows may be others: each with the reason.
    pub(crate) differ: Vec<(QualifiedName, String)>,
    /// The same, unless the stream reports a TRUNCATE on its way to [`Look::read_at`].
    pub(crate) doubt: Vec<Doubt>,
    /// They are called otherwise now: the name that is followed, and the OID.
    pub(crate) renamed: Vec<(QualifiedName, RelationId, QualifiedName)>,
    /// What is to be remembered of the others.
    pub(crate) harmless: Vec<NewFacts>,
    /// What is remembered of these is what the catalog says, by its digest, and the stream had not passed such a moment before.
    pub(crate) ahead: Vec<(RelationId, String)>,
    /// The same of these, and the stream has passed such a moment.
    pub(crate) same: Vec<(RelationId, String)>,
    /// How far the source's WAL was when all this had been read.
    pub(crate) read_at: Lsn,
}

/// A table of which the catalog cannot tell whether its rows are others.
#[derive(Debug)]
pub(crate) struct Doubt {
    pub(crate) table: RelationId,
    pub(crate) name: QualifiedName,
    pub(crate) digest: String,
    pub(crate) reason: String,
    /// A partition was locked that would have told.
    pub(crate) is_locked: bool,
    pub(crate) seen: SeenInDoubt,
}

/// What a look has seen of a table in doubt, to be judged once the stream has passed it.
#[derive(Clone, Debug)]
pub(crate) struct SeenInDoubt {
    now: Fingerprint,
    told: Told,
    vacancy: Vacancy,
}

impl SeenInDoubt {
    /// Whether what the stream has told of since explains it. The table may be another one by now, and in doubt for another reason.
    pub(crate) fn is_explained(
        &self,
        table: RelationId,
        remembered: &RememberedTable,
        truncations: &Truncations,
    ) -> Result<bool, SessionError> {
        let Some(before) = remembered.facts.as_ref().map(FingerprintFacts::read).transpose()? else {
            return Ok(true);
        };
        let truncations = truncations.get(&table).map(|told| told.truncations.clone()).unwrap_or_default();
        let told = Told { truncations, ..self.told.clone() };
        let verdict = before.compare(&self.now, table, &told, &remembered.leaves, &self.vacancy);
        Ok(verdict == RowVerdict::Same)
    }
}

/// The TRUNCATEs of tables that the stream has told of.
pub(crate) type Truncations = HashMap<RelationId, Told>;

/// Compares the tables with what is remembered of them.
pub(crate) async fn look(
    source: &SqlClient,
    publication: &Ident,
    remembered: &HashMap<RelationId, RememberedTable>,
    truncations: &Truncations,
) -> Result<Look, SessionError> {
    let ids: Vec<RelationId> = remembered.keys().copied().collect();
    let digests = fingerprint_digests(source, &ids, publication).await?;
    let mut changed = Vec::new();
    for (table, known) in remembered {
        let Some(now) = digests.get(table) else { continue };
        let before = known.facts.as_ref().map(|facts| &facts.digest);
        if Some(now) != before || known.has_unseen_leaves()? {
            changed.push(*table);
        }
    }
    let known = remembered.iter().filter(|(table, _)| !changed.contains(table) && digests.contains_key(table));
    let known = known.filter_map(|(table, known)| Some((*table, known.facts.as_ref()?)));
    let (ahead, same): (Vec<_>, Vec<_>) = known.partition(|(_, facts)| facts.are_ahead());
    let digests_of = |of: Vec<(RelationId, &FingerprintFacts)>| {
        of.into_iter().map(|(table, facts)| (table, facts.digest.clone())).collect::<Vec<_>>()
    };
    let mut found = Look { ahead: digests_of(ahead), same: digests_of(same), ..Look::default() };
    if changed.is_empty() {
        if !found.ahead.is_empty() {
            found.read_at = end_of_wal(source).await?;
        }
        return Ok(found);
    }
    for (table, facts) in fingerprint_facts(source, &changed, publication).await? {
        let Some(known @ RememberedTable { name, facts: before, leaves }) = remembered.get(&table) else { continue };
        let now = facts.read()?;
        if let Some(renamed) = now.name(table).filter(|now| now != name) {
            found.renamed.push((name.clone(), table, renamed));
            continue;
        }
        let before = before.as_ref().map(FingerprintFacts::read).transpose()?;
        let unknown = before.as_ref().map(|before| before.to_measure(&now, table, leaves));
        // Not what it is in the digests: nothing else here waits for a lock.
        let vacancy = vacancy(source, &unknown.unwrap_or_default()).await?;
        let (told, is_locked) = match &before {
            Some(before) => told(source, table, before, &now, truncations).await?,
            None => (Told::default(), false),
        };
        let verdict = match &before {
            Some(before) => before.compare(&now, table, &told, leaves, &vacancy),
            None => now.alone(),
        };
        match verdict {
            RowVerdict::Same => {
                // Behind the question: rows that came before this, into a partition without rows, are gone.
                let read_at = match vacancy.vacant.is_empty() {
                    true => Lsn::INVALID,
                    false => end_of_wal(source).await?,
                };
                let leaves = now.known_leaves(table, before.as_ref(), leaves, &vacancy, read_at);
                found.harmless.push(NewFacts { table, before: known.clone(), facts, now, leaves });
            }
            RowVerdict::Differ(reason) => found.differ.push((name.clone(), reason)),
            RowVerdict::Doubt(reason) => {
                let seen = SeenInDoubt { now, told, vacancy };
                found.doubt.push(Doubt { table, name: name.clone(), digest: facts.digest, reason, is_locked, seen });
            }
        }
    }
    found.read_at = end_of_wal(source).await?;
    Ok(found)
}

/// What the stream has told of TRUNCATEs of a table, with what their first pages have of them; and whether one was locked.
async fn told(
    source: &SqlClient,
    table: RelationId,
    before: &Fingerprint,
    now: &Fingerprint,
    truncations: &Truncations,
) -> Result<(Told, bool), SessionError> {
    let Some(told) = truncations.get(&table) else { return Ok((Told::default(), false)) };
    let wanted = before.to_find_rows_in(now, table, told).into_iter();
    let wanted: Vec<RowsOf> =
        wanted.map(|member| RowsOf { id: member.id, name: member.name(), transaction: member.changed_by }).collect();
    let pages = first_pages(source, &wanted).await?;
    Ok((Told { pages: pages.found, ..told.clone() }, !pages.locked.is_empty()))
}

/// The table that bears a name at the source now. A view is none that could be followed.
pub(crate) async fn table_called(source: &SqlClient, name: &QualifiedName) -> Result<Option<RelationId>, SessionError> {
    let sql = "SELECT c.oid FROM pg_catalog.pg_class c
               WHERE c.oid = pg_catalog.to_regclass($1) AND c.relkind IN ('r', 'p')";
    let row = source.query_opt("looking for a renamed table", sql, &[&name.sql()]).await?;
    row.map(|row| Ok(RelationId(row.get(0)?))).transpose()
}

/// How far the source's WAL is written; everything that a question before this has seen stands before it.
pub(crate) async fn end_of_wal(source: &SqlClient) -> Result<Lsn, SessionError> {
    let sql = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
               ELSE pg_catalog.pg_current_wal_insert_lsn() END)::text";
    let row = source.query_one("asking how far the source is", sql, &[]).await?;
    let text: Option<&str> = row.get(0)?;
    let parsed = text.and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| SessionError::answer("asking how far the source is", "no position"))
}

/// The unique indexes that the tables had at a moment that the stream has passed, by their OIDs.
pub(crate) async fn passed_indexes(
    bookkeeping: &Bookkeeping,
) -> Result<HashMap<RelationId, BTreeSet<u32>>, DestinationError> {
    let mut indexes = HashMap::new();
    for (table, known) in remembered_fingerprints(bookkeeping.client()).await? {
        let passed = known.facts.as_ref().map(FingerprintFacts::read_passed).transpose();
        if let Some(passed) = passed.map_err(DestinationError::Session)?.flatten() {
            indexes.insert(table, passed.unique_indexes(table).collect());
        }
    }
    Ok(indexes)
}

/// What compares a table in doubt with the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// A copy that is asked for because of the doubt, by this look or an earlier one.
    Asked,
    /// A copy that somebody has asked for otherwise. It may have begun before the table was changed.
    OfOthers,
}

/// Requests a comparison with the source for a table whose rows are in doubt, unless its copy is asked for: it is copied while the stream
/// continues.
pub(crate) async fn ask_for_comparison(
    bookkeeping: &Bookkeeping,
    telemetry: &Telemetry,
    doubt: &Doubt,
) -> Result<Comparison, DestinationError> {
    let Doubt { name, reason, .. } = doubt;
    let requests = bookkeeping.requests().await?;
    if requests.iter().any(|request| request.scope.contains(name)) {
        let is_asked = Request::tables_in_doubt(&requests).contains(name);
        return Ok(if is_asked { Comparison::Asked } else { Comparison::OfOthers });
    }
    bookkeeping.request(&Scope::Tables(vec![name.clone()]), RequestOrigin::Changed, None).await?;
    telemetry.in_doubt(Request::tables_in_doubt(&bookkeeping.requests().await?));
    let text = format!(
        "table {name}: {reason}, and the stream has not reported why: it is compared with the source, and is followed meanwhile"
    );
    telemetry.warning("schema", text);
    Ok(Comparison::Asked)
}
