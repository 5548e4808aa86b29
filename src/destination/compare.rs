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
use super::staging_schema::{self, NewTable};
use crate::comparison::reconcile_sql as sql;
use crate::pg::{Ident, QualifiedName};
use crate::session::{SessionError, Sql, SqlClient, SqlState};
use crate::telemetry::{SnapshotPhase, Telemetry, failpoint};

/// The lists, by live table. From their making on they get the key of every row of staging that is written.
#[derive(Debug)]
pub struct Lists {
    lists: BTreeMap<QualifiedName, QualifiedName>,
}

/// How many rows of a table differ.
#[derive(Clone, Copy, Debug)]
pub struct DifferingRows<'a> {
    /// The table.
    pub table: &'a QualifiedName,
    /// So many, or a few more.
    pub rows: i64,
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

/// Tables whose statements are sent together at most, and their bytes: progress is shown behind them, and a session that ends for a slow
/// answer has worked on little.
pub(super) const TOGETHER_MAX: usize = 64;
pub(super) const TOGETHER_BYTES_MAX: u64 = 16 << 20;
/// Lists asked in one statement whether they are empty.
const ASKED_AT_ONCE: usize = 100;

impl Lists {
    /// Begins a list for each table that is compared by its key.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn keep(client: &SqlClient, staging: &Staging) -> Result<Lists, DestinationError> {
        let (mut lists, mut tables) = (BTreeMap::new(), Vec::new());
        for (number, table) in staging.tables.iter().enumerate().filter(|(_, table)| table.mode == Mode::Reconcile) {
            let list = QualifiedName { schema: staging.schema.clone(), name: Ident::new(format!("k{number}")) };
            let Some(statements) = table.matching.keep_list(&table.staging, &list) else { continue };
            if lists.is_empty() {
                let function = sql::create_list_function(&staging.schema);
                staging_schema::create_function(client, DOING, &staging.schema, &function).await?;
            }
            tables.push(NewTable { name: list.clone(), reads: None, statements: statements.to_vec() });
            lists.insert(table.live.clone(), list);
        }
        staging_schema::create_tables(client, DOING, &tables).await?;
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
        let compared = staging.tables.iter().enumerate().filter_map(|(number, table)| {
            let found = QualifiedName { schema: staging.schema.clone(), name: Ident::new(format!("d{number}")) };
            Some(Compared { table, list: lists.get(&table.live)?, found })
        });
        let compared: Vec<Compared<'_>> = compared.collect();
        for together in small_together(&compared, |compared| compared.table.source.bytes) {
            let keys: Vec<KeysToCheck<'_>> =
                together.iter().map(|compared| KeysToCheck { table: compared.table, listed: None }).collect();
            check_keys(&client, &keys).await?;
            compare(&client, together).await?;
            together.iter().for_each(|compared| telemetry.snapshot_step_done(compared.table.source.bytes));
        }
        failpoint::pause("comparison.read").await;
        client.batch(DOING, "COMMIT").await?;
        let analyzes: Vec<String> = lists.values().map(sql::analyze).collect();
        client.execute_each(DOING, &analyzes).await?;
        Ok(ListedDifferences { lists })
    }
}

/// A table that is compared by its key.
struct Compared<'a> {
    table: &'a StagedTable,
    /// Where the keys of its differing rows come.
    list: &'a QualifiedName,
    /// Where they come first: only a statement that creates a table is carried out by several processes.
    found: QualifiedName,
}

/// Puts the keys of the differing rows of some tables on their lists.
async fn compare(client: &SqlClient, tables: &[Compared<'_>]) -> Result<(), DestinationError> {
    let mut statements = Vec::new();
    for Compared { table, list, found } in tables {
        let differences = table.matching.differences(&table.staging, &table.live, found);
        statements.extend(differences.map(|[at_once, one_by_one]| (*list, found, at_once, one_by_one)));
    }
    if statements.is_empty() {
        return Ok(());
    }
    client.batch(DOING, "SAVEPOINT comparing").await?;
    let at_once: Vec<&String> = statements.iter().map(|(_, _, at_once, _)| at_once).collect();
    match client.execute_each(DOING, &at_once).await {
        // Said by the planner, before anything of that table is read.
        Err(error) if error.code() == Some(SqlState::new(b"0A000")) => {
            client.batch(DOING, "ROLLBACK TO SAVEPOINT comparing").await?;
            for (_, _, at_once, one_by_one) in &statements {
                client.batch(DOING, "SAVEPOINT comparing").await?;
                match client.statement(DOING, at_once).await {
                    Err(error) if error.code() == Some(SqlState::new(b"0A000")) => {
                        client.batch(DOING, "ROLLBACK TO SAVEPOINT comparing").await?;
                        client.statement(DOING, one_by_one).await?;
                    }
                    compared => compared?,
                }
            }
        }
        compared => drop(compared?),
    }
    let found: Vec<&QualifiedName> = statements.iter().map(|(_, found, _, _)| *found).collect();
    staging_schema::withhold(client, DOING, &found).await?;
    let adds: Vec<String> = statements.iter().map(|(list, found, _, _)| sql::add_to_list(list, found)).collect();
    client.execute_each(DOING, &adds).await?;
    Ok(())
}

/// A table whose keys are checked.
pub(super) struct KeysToCheck<'a> {
    pub(super) table: &'a StagedTable,
    /// Only those of its rows that are listed here.
    pub(super) listed: Option<&'a QualifiedName>,
}

/// Refuses rows of staging, or those of them that are listed, that cannot all stand under the live table's key.
///
/// # Errors
/// [`DestinationError::KeyRefuses`].
pub(super) async fn check_keys(client: &SqlClient, tables: &[KeysToCheck<'_>]) -> Result<(), DestinationError> {
    const DOING: &str = "looking for rows that share a key";
    let (mut questions, mut refusals) = (Vec::new(), Vec::new());
    for KeysToCheck { table, listed } in tables {
        let matching = &table.matching;
        for (column, question) in matching.key_is_null(listed.unwrap_or(&table.staging)) {
            questions.push(question);
            refusals.push(table.key_refusal(Some(column)));
        }
        if let Some(question) = matching.key_is_shared(&table.staging, *listed) {
            questions.push(question);
            refusals.push(table.key_refusal(None));
        }
    }
    let answers = client.query_each(DOING, &questions).await?;
    for (rows, refusal) in answers.iter().zip(refusals) {
        let row = rows.first().ok_or_else(|| SessionError::answer(DOING, "no row"))?;
        if row.get(0)? {
            return Err(DestinationError::KeyRefuses(refusal));
        }
    }
    Ok(())
}

/// Items in their order, small ones together: those go to the server without waiting for answers in between.
pub(super) fn small_together<T>(items: &[T], bytes: impl Fn(&T) -> u64) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut total: u64 = 0;
        let fits = |item: &&T| {
            total = total.saturating_add(bytes(item));
            total <= TOGETHER_BYTES_MAX
        };
        let taken = rest.iter().take(TOGETHER_MAX).take_while(fits).count().max(1);
        let (together, others) = rest.split_at_checked(taken)?;
        rest = others;
        Some(together)
    })
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

    /// Roughly how many rows of each of these tables will be written, of those of which it is known.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn counts<'a>(
        &self,
        client: &SqlClient,
        tables: &[&'a QualifiedName],
    ) -> Result<Vec<DifferingRows<'a>>, DestinationError> {
        let listed: Vec<(&'a QualifiedName, &QualifiedName)> =
            tables.iter().filter_map(|live| Some((*live, self.of(live)?))).collect();
        let questions: Vec<String> = listed.iter().map(|(_, list)| sql::count(list)).collect();
        let mut counts = Vec::new();
        for (&(table, _), rows) in listed.iter().zip(client.query_each(DOING, &questions).await?) {
            let row = rows.first().ok_or_else(|| SessionError::answer(DOING, "no row"))?;
            counts.push(DifferingRows { table, rows: row.get(0)? });
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tables_go_together_and_a_large_one_by_itself() {
        let groups = |sizes: &[u64]| small_together(sizes, |size| *size).map(<[u64]>::len).collect::<Vec<_>>();
        assert_eq!(groups(&[1, 1, TOGETHER_BYTES_MAX, 1, 1]), [2, 1, 2]);
        assert_eq!(groups(&[u64::MAX, u64::MAX, 1]), [1, 1, 1]);
        assert_eq!(groups(&[1; 2 * TOGETHER_MAX + 1]), [TOGETHER_MAX, TOGETHER_MAX, 1]);
        assert_eq!(groups(&[]), [0; 0]);
    }
}
