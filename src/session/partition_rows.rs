//! Asks the source whether a table or a partition has rows, and of which transactions.
//!
//! Each question locks what it asks about for a moment, so it waits for the lock of another session a tenth of a second only, and the
//! answer may be that it is locked. What an answer means is judged in `catalog::leaves` and `catalog::truncation`.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{SessionError, SqlState};
use super::sql::SqlClient;
use crate::catalog::leaves::Vacancy;
use crate::catalog::truncation::FirstPage;
use crate::pg::{QualifiedName, RelationId};

const LOCK_NOT_AVAILABLE: SqlState = SqlState::new(b"55P03");

/// Of so many partitions that others have locked each is waited for by itself; the others count as locked, too.
const LOCKED_MAX: usize = 10;

/// Which of the partitions with these OIDs have no block; one that was dropped has none. Each is locked for a moment, and a lock of another
/// session is waited for a tenth of a second. Not inside a transaction.
///
/// # Errors
/// [`SessionError`].
pub async fn vacancy(client: &SqlClient, ids: &[u32]) -> Result<Vacancy, SessionError> {
    let mut found = Vacancy::default();
    if ids.is_empty() {
        return Ok(found);
    }
    match vacant_of(client, ids).await? {
        Some(vacant) => found.vacant = vacant,
        None => {
            for id in ids {
                let vacant = match found.locked.len() < LOCKED_MAX {
                    true => vacant_of(client, &[*id]).await?,
                    false => None,
                };
                match vacant {
                    Some(vacant) => found.vacant.extend(vacant),
                    None => drop(found.locked.insert(*id)),
                }
            }
        }
    }
    Ok(found)
}

/// `None`: one of them is locked.
async fn vacant_of(client: &SqlClient, ids: &[u32]) -> Result<Option<BTreeSet<u32>>, SessionError> {
    let doing = "asking whether partitions have rows";
    client.batch(doing, "BEGIN; SET LOCAL lock_timeout = 100").await?;
    let sql = "SELECT leaf.id FROM pg_catalog.unnest($1::pg_catalog.oid[]) AS leaf (id)
               WHERE COALESCE(pg_catalog.pg_relation_size(leaf.id), 0) = 0";
    let rows = client.query(doing, sql, &[&ids]).await;
    // After an error this rolls back.
    client.batch(doing, "COMMIT").await?;
    match rows {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect::<Result<_, SessionError>>().map(Some),
        Err(error) if error.code() == Some(LOCK_NOT_AVAILABLE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file that is to be asked for rows of a transaction.
#[derive(Clone, Debug)]
pub struct RowsOf {
    /// The OID of the table or the partition.
    pub id: u32,
    /// Its name.
    pub name: QualifiedName,
    /// The transaction, or the subtransaction.
    pub transaction: u32,
}

/// What first pages have.
#[derive(Clone, Debug, Default)]
pub struct FirstPages {
    /// By OID; without those that our role may not read.
    pub found: BTreeMap<u32, FirstPage>,
    /// Another session had them locked.
    pub locked: BTreeSet<u32>,
}

/// What the first pages of these have of the transaction that has written their rows of `pg_class`.
///
/// # Errors
/// [`SessionError`].
pub async fn first_pages(client: &SqlClient, wanted: &[RowsOf]) -> Result<FirstPages, SessionError> {
    // An UPDATE or DELETE that was rolled back leaves another cmin, and an xmax.
    let question = |RowsOf { id, name, transaction }: &RowsOf| {
        let behind = format!(
            "c.xmin OPERATOR(pg_catalog.=) '{transaction}'::pg_catalog.xid AND r.cmin::pg_catalog.text::pg_catalog.int8
                 OPERATOR(pg_catalog.>) c.cmin::pg_catalog.text::pg_catalog.int8"
        );
        let clean = "r.xmax OPERATOR(pg_catalog.=) '0'::pg_catalog.xid";
        let sql = format!(
            "SELECT {id}::pg_catalog.oid, CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) 0 THEN 'none'
                 WHEN pg_catalog.bool_or({clean} AND NOT ({behind})) THEN 'before'
                 WHEN pg_catalog.bool_or({clean}) THEN 'behind' ELSE 'before' END
             FROM ONLY {} r, pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) {id}::pg_catalog.oid
             AND r.ctid OPERATOR(pg_catalog.<) '(1,0)'::pg_catalog.tid
             AND r.xmin OPERATOR(pg_catalog.=) '{transaction}'::pg_catalog.xid",
            name.sql()
        );
        (*id, sql)
    };
    let answers = answers(client, &wanted.iter().map(question).collect::<Vec<_>>()).await?;
    let page = |answer: &str| match answer {
        "none" => FirstPage::None,
        "behind" => FirstPage::Behind,
        _ => FirstPage::Before,
    };
    let mut found: BTreeMap<u32, FirstPage> = answers.given.iter().map(|(id, said)| (*id, page(said))).collect();
    // Whether it has any is no secret.
    let vacant = vacancy(client, &answers.refused).await?.vacant;
    found.extend(vacant.into_iter().map(|id| (id, FirstPage::None)));
    Ok(FirstPages { found, locked: answers.locked })
}

/// A partition that the stream has named in a transaction.
#[derive(Clone, Debug)]
pub struct NamedPartition {
    /// Its OID.
    pub id: u32,
    /// Its name.
    pub name: QualifiedName,
    /// Something was between its rows, so that the stream has named it again.
    pub is_named_again: bool,
}

/// Those of a table's partitions that this transaction may have created, unless it can be shown that it has emptied none of them behind
/// rows that the stream has brought. `named` are those that the stream has named in it.
///
/// # Errors
/// [`SessionError`].
pub async fn unproven(
    client: &SqlClient,
    table: RelationId,
    transaction: u32,
    named: &[NamedPartition],
) -> Result<BTreeSet<u32>, SessionError> {
    if named.is_empty() {
        return Ok(BTreeSet::new());
    }
    // Subtransactions are younger than their transaction. An age is what compares them.
    let sql = "SELECT h.inhrelid, h.xmin::pg_catalog.text, EXISTS (SELECT FROM pg_catalog.pg_publication_rel p
                   WHERE p.prrelid = $3 AND (pg_catalog.to_jsonb(p) ->> 'prqual') IS NOT NULL)
               FROM pg_catalog.pg_inherits h
               WHERE h.inhrelid = ANY ($1::pg_catalog.oid[])
                   AND pg_catalog.age(h.xmin) <= pg_catalog.age($2::pg_catalog.text::pg_catalog.xid)";
    let ids: Vec<u32> = named.iter().map(|partition| partition.id).collect();
    let rows =
        client.query("asking when partitions were created", sql, &[&ids, &transaction.to_string(), &table.0]).await?;
    let mut unproven = BTreeSet::new();
    let mut questions = Vec::new();
    for row in &rows {
        let (id, created_by, is_filtered) = (row.get::<u32>(0)?, row.get::<&str>(1)?, row.get::<bool>(2)?);
        unproven.insert(id);
        let Some(NamedPartition { name, is_named_again: false, .. }) = named.iter().find(|named| named.id == id) else {
            continue;
        };
        // A row that is held back names nobody.
        if is_filtered {
            continue;
        }
        let written = |what: &str| {
            format!("{what}.xmin OPERATOR(pg_catalog.=) ANY (ARRAY['{transaction}', '{created_by}']::pg_catalog.xid[])")
        };
        // An index that was there before the rows: without one, a TRUNCATE would not have made the source name the partition again.
        let sql = format!(
            "SELECT {id}::pg_catalog.oid, 'there' WHERE EXISTS (SELECT FROM ONLY {} r, pg_catalog.pg_index i
             WHERE r.ctid OPERATOR(pg_catalog.<) '(1,0)'::pg_catalog.tid AND {} AND r.xmax OPERATOR(pg_catalog.=) '0'::pg_catalog.xid
             AND i.indrelid OPERATOR(pg_catalog.=) {id}::pg_catalog.oid AND i.indislive AND {}
             AND i.cmin::pg_catalog.text::pg_catalog.int8 OPERATOR(pg_catalog.<) r.cmin::pg_catalog.text::pg_catalog.int8)",
            name.sql(),
            written("r"),
            written("i")
        );
        questions.push((id, sql));
    }
    let answers = answers(client, &questions).await?;
    unproven.retain(|id| !answers.given.contains_key(id));
    Ok(unproven)
}

/// Files that are asked in one statement, which locks each of them and its indexes.
const READ_AT_ONCE: usize = 50;

#[derive(Debug, Default)]
struct FileAnswers {
    given: BTreeMap<u32, String>,
    locked: BTreeSet<u32>,
    refused: Vec<u32>,
}

/// What is answered to questions about files, each of which reads one. Not inside a transaction.
async fn answers(client: &SqlClient, questions: &[(u32, String)]) -> Result<FileAnswers, SessionError> {
    let mut answers = FileAnswers::default();
    for questions in questions.chunks(READ_AT_ONCE) {
        match ask(client, questions).await? {
            Ok(given) => answers.given.extend(given),
            Err(_) => {
                for question in questions {
                    let given = match answers.locked.len() < LOCKED_MAX {
                        true => ask(client, std::slice::from_ref(question)).await?,
                        false => Err(Some(LOCK_NOT_AVAILABLE)),
                    };
                    match given {
                        Ok(given) => answers.given.extend(given),
                        Err(Some(LOCK_NOT_AVAILABLE)) => drop(answers.locked.insert(question.0)),
                        // It was renamed or dropped, or may not be read.
                        Err(_) => answers.refused.push(question.0),
                    }
                }
            }
        }
    }
    Ok(answers)
}

/// The error is the server's refusal.
async fn ask(
    client: &SqlClient,
    questions: &[(u32, String)],
) -> Result<Result<BTreeMap<u32, String>, Option<SqlState>>, SessionError> {
    let doing = "asking for rows of a transaction";
    client.batch(doing, "BEGIN; SET LOCAL lock_timeout = 100").await?;
    let sql: Vec<&str> = questions.iter().map(|(_, sql)| sql.as_str()).collect();
    let rows = client.query(doing, &sql.join(" UNION ALL "), &[]).await;
    // After an error this rolls back.
    client.batch(doing, "COMMIT").await?;
    match rows {
        Ok(rows) => {
            let given = rows.iter().map(|row| Ok((row.get(0)?, row.get::<&str>(1)?.to_owned())));
            Ok(Ok(given.collect::<Result<_, SessionError>>()?))
        }
        Err(error) if error.code().is_some() => Ok(Err(error.code())),
        Err(error) => Err(error),
    }
}
