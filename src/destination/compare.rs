//! Which rows of the live tables differ from their copies in staging, listed before the publish.
//!
//! Called by `table_sync` when staging is finished. Comparing reads both tables whole, which takes seconds for
//! millions of rows; writing what differs does not. So the publish gets a list of keys, and holds the stream only for
//! the rows on it.
//!
//! # What a list promises, and why it keeps it
//! At the publish, in position D: *a row whose key is not on the list is the same in staging and in the live table.*
//!
//! ```text
//! before D1   lists are kept    from now on staging's own triggers put the key of every row that is written there on its list
//! at D1       compared          both sides stand; under one snapshot of the destination the keys of rows that differ are listed
//! D1 to D     staging           whatever the stream does to it is on the list: inserts, deletes, both keys of an update, TRUNCATE
//! D1 to D     the live table    its stream writes only rows that staging's stream writes, too
//! ```
//!
//! The last line is all that is assumed of the live side. Both streams bring the same transactions, and what is applied to
//! the live table may be less (it is not followed, it was suspended, a transaction was skipped) or done in another way
//! (the source's rows have won), but never another row: one that only loses to the source's row has differed before, and is
//! on the list. So it does not matter whether the live table takes the changes between D1 and D.
//!
//! Held by types: [`ListedDifferences`] come from a [`Comparison`], which takes the [`Lists`] that are being kept. Checked: after it
//! has written, the publish compares every listed row once more, and refuses what is not equal.
//!
//! A key is one of the live table's. Where the source does not have it, several rows of staging may share it, or be NULL in it: one live
//! row would stand for all of them. That is asked here and of what is listed once more in the publish ([`check_keys`]).
//!
//! Tables without a key have no list and are compared whole in the publish.

use std::collections::BTreeMap;

use super::error::DestinationError;
use super::sessions::connect_recorded;
use super::staging::{Mode, STATEMENT_MAX, StagedTable, Staging};
use super::staging_schema;
use crate::comparison::reconcile_sql as sql;
use crate::pg::{Ident, QualifiedName};
use crate::session::{SessionError, Sql, SqlClient, SqlState};
use crate::telemetry::{SnapshotPhase, Telemetry, failpoint};

/// The lists, by live table. From their making on they get the key of every row of staging that is written.
#[derive(Debug)]
pub struct Lists {
    lists: BTreeMap<QualifiedName, QualifiedName>,
}

/// A session that sees the destination as it was when it was opened.
pub struct Comparison {
    client: SqlClient,
    lists: Lists,
}

/// The lists, complete.
#[derive(Debug, Default)]
pub struct ListedDifferences {
    lists: BTreeMap<QualifiedName, QualifiedName>,
}

const DOING: &str = "comparing with staging";

/// Lists asked in one statement whether they are empty.
const ASKED_AT_ONCE: usize = 100;

impl Lists {
    /// Begins a list for each table that is compared by its key.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn keep(client: &SqlClient, staging: &Staging) -> Result<Lists, DestinationError> {
        let mut lists = BTreeMap::new();
        for (number, table) in staging.tables.iter().enumerate().filter(|(_, table)| table.mode == Mode::Reconcile) {
            let list = QualifiedName { schema: staging.schema.clone(), name: Ident::new(format!("k{number}")) };
            let Some(statements) = table.matching.keep_list(&table.staging, &list) else { continue };
            if lists.is_empty() {
                let function = sql::create_list_function(&staging.schema);
                staging_schema::create_function(client, DOING, &staging.schema, &function).await?;
            }
            staging_schema::create_table(client, DOING, &list, &statements).await?;
            lists.insert(table.live.clone(), list);
        }
        Ok(Lists { lists })
    }

    /// Whether no table is compared by a key.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }
}

impl Comparison {
    /// Opens the session and takes its snapshot. Where streams run, both sides must stand at one position until this returns.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn begin(destination: &Sql, lists: Lists) -> Result<Comparison, DestinationError> {
        let client = connect_recorded(destination).await?.with_timeout(STATEMENT_MAX);
        // A list of rows is nothing to be kept after a crash. A quarter of the shared buffers serves one session.
        let setup = "SET synchronous_commit = off;
             SELECT pg_catalog.set_config('work_mem', GREATEST(own, LEAST(shared / 4, 262144)) || 'kB', false)
             FROM (SELECT pg_catalog.max(setting::bigint) FILTER (WHERE name = 'work_mem') AS own,
                          pg_catalog.max(setting::bigint * 8) FILTER (WHERE name = 'shared_buffers') AS shared
                   FROM pg_catalog.pg_settings) AS settings";
        client.batch(DOING, setup).await?;
        client.batch(DOING, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_catalog.pg_current_snapshot()").await?;
        Ok(Comparison { client, lists })
    }

    /// Lists what differs.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn run(self, staging: &Staging, telemetry: &Telemetry) -> Result<ListedDifferences, DestinationError> {
        let Comparison { client, lists: Lists { lists } } = self;
        let compared = staging.tables.iter().filter(|table| lists.contains_key(&table.live));
        if !lists.is_empty() {
            telemetry.snapshot_phase(SnapshotPhase::Comparing, compared.map(|table| table.source.bytes));
        }
        for (number, table) in staging.tables.iter().enumerate() {
            let Some(list) = lists.get(&table.live) else { continue };
            let found = QualifiedName { schema: staging.schema.clone(), name: Ident::new(format!("d{number}")) };
            check_keys(&client, table, None).await?;
            compare(&client, table, &found, list).await?;
            telemetry.snapshot_step_done(table.source.bytes);
        }
        failpoint::pause("comparison.read").await;
        client.batch(DOING, "COMMIT").await?;
        for list in lists.values() {
            client.statement(DOING, &sql::analyze(list)).await?;
        }
        Ok(ListedDifferences { lists })
    }
}

/// Puts the keys of a table's differing rows on its list. A table of their own comes between, because only such a statement is
/// carried out by several processes.
async fn compare(
    client: &SqlClient,
    table: &StagedTable,
    found: &QualifiedName,
    list: &QualifiedName,
) -> Result<(), DestinationError> {
    let Some([at_once, one_by_one]) = table.matching.differences(&table.staging, &table.live, found) else {
        return Ok(());
    };
    client.batch(DOING, "SAVEPOINT comparing").await?;
    match client.statement(DOING, &at_once).await {
        // Said by the planner, before anything is read.
        Err(error) if error.code() == Some(SqlState::new(b"0A000")) => {
            client.batch(DOING, "ROLLBACK TO SAVEPOINT comparing").await?;
            client.statement(DOING, &one_by_one).await?;
        }
        compared => compared?,
    }
    staging_schema::withhold(client, DOING, found).await?;
    Ok(client.statement(DOING, &sql::add_to_list(list, found)).await?)
}

/// Refuses rows of staging, or those of them that are listed, that cannot all stand under the live table's key.
///
/// # Errors
/// [`DestinationError::KeyRefuses`].
pub(super) async fn check_keys(
    client: &SqlClient,
    table: &StagedTable,
    listed: Option<&QualifiedName>,
) -> Result<(), DestinationError> {
    const DOING: &str = "looking for rows that share a key";
    let matching = &table.matching;
    for (column, question) in matching.key_is_null(listed.unwrap_or(&table.staging)) {
        if client.query_one(DOING, &question, &[]).await?.get(0)? {
            return Err(DestinationError::KeyRefuses(table.key_refusal(Some(column))));
        }
    }
    if let Some(question) = matching.key_is_shared(&table.staging, listed)
        && client.query_one(DOING, &question, &[]).await?.get(0)?
    {
        return Err(DestinationError::KeyRefuses(table.key_refusal(None)));
    }
    Ok(())
}

impl ListedDifferences {
    /// The list of a table's differing keys, if it is compared by its key.
    pub fn of(&self, live: &QualifiedName) -> Option<&QualifiedName> {
        self.lists.get(live)
    }

    /// The tables whose lists have no key on them.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn equal(&self, client: &SqlClient) -> Result<Vec<&QualifiedName>, DestinationError> {
        let lists: Vec<(&QualifiedName, &QualifiedName)> = self.lists.iter().collect();
        let mut equal = Vec::new();
        for lists in lists.chunks(ASKED_AT_ONCE) {
            let names: Vec<&QualifiedName> = lists.iter().map(|(_, list)| *list).collect();
            for row in client.query(DOING, &sql::empty_lists(&names), &[]).await? {
                let list = usize::try_from(row.get::<i32>(0)?).ok().and_then(|number| lists.get(number));
                let (live, _) = list.ok_or_else(|| SessionError::answer(DOING, "a list that was not asked for"))?;
                equal.push(*live);
            }
        }
        Ok(equal)
    }

    /// Roughly how many rows of a table will be written; `None` when it is not known.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn count(&self, client: &SqlClient, live: &QualifiedName) -> Result<Option<i64>, DestinationError> {
        let Some(list) = self.of(live) else { return Ok(None) };
        Ok(Some(client.query_one(DOING, &sql::count(list), &[]).await?.get(0)?))
    }
}
