//! Which rows of the live tables differ from staging, listed before the publish.
//!
//! Called by `pipeline::snapshot` when staging is finished. Comparing reads both tables whole, which takes seconds for
//! millions of rows; writing what differs does not. So the publish is given the list of keys, and holds the stream only
//! for the rows on it.
//!
//! Under a live stream the list is made from one snapshot of the destination that was taken while both sides stood at
//! the same position. From there on both take the same changes, so rows that were equal stay equal, and what differs
//! later is on the list; except rows whose key the stream has changed meanwhile, which the caller must watch for.
//! Tables without a key have no list and are compared in the publish.

use std::collections::BTreeMap;

use super::error::DestinationError;
use super::staging::{Mode, STATEMENT_MAX, StagedTable, Staging};
use crate::pg::{Ident, QualifiedName};
use crate::plan::sql::staging as sql;
use crate::session::{Sql, SqlClient, SqlState};

/// A session that sees the destination as it was when it was opened.
pub struct Comparison {
    client: SqlClient,
}

/// The lists, by live table.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    lists: BTreeMap<QualifiedName, QualifiedName>,
}

const DOING: &str = "comparing with staging";

impl Comparison {
    /// Opens the session and takes its snapshot.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn begin(destination: &Sql) -> Result<Comparison, DestinationError> {
        let client = destination.connect().await?.with_timeout(STATEMENT_MAX);
        // A list of rows is nothing to be kept after a crash. A quarter of the shared buffers serves one session.
        let setup = "SET synchronous_commit = off;
             SELECT pg_catalog.set_config('work_mem', GREATEST(own, LEAST(shared / 4, 262144)) || 'kB', false)
             FROM (SELECT pg_catalog.max(setting::bigint) FILTER (WHERE name = 'work_mem') AS own,
                          pg_catalog.max(setting::bigint * 8) FILTER (WHERE name = 'shared_buffers') AS shared
                   FROM pg_catalog.pg_settings) AS settings";
        client.batch(DOING, setup).await?;
        client.batch(DOING, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_catalog.pg_current_snapshot()").await?;
        Ok(Comparison { client })
    }

    /// Lists what differs.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn run(self, staging: &Staging) -> Result<Differences, DestinationError> {
        let mut differences = Differences::default();
        for (number, table) in staging.tables.iter().enumerate() {
            let list = QualifiedName { schema: staging.schema.clone(), name: Ident::new(format!("d{number}")) };
            if table.mode == Mode::Reconcile && differences.make(&self.client, table, &list).await? {
                differences.lists.insert(table.live.clone(), list);
            }
        }
        self.client.batch(DOING, "COMMIT").await?;
        Ok(differences)
    }
}

impl Differences {
    async fn make(
        &self,
        client: &SqlClient,
        table: &StagedTable,
        list: &QualifiedName,
    ) -> Result<bool, DestinationError> {
        let Some([at_once, one_by_one]) = table.matching.differences(&table.staging, &table.live, list) else {
            return Ok(false);
        };
        client.batch(DOING, "SAVEPOINT comparing").await?;
        match client.batch(DOING, &at_once).await {
            // Said by the planner, before anything is read.
            Err(error) if error.code() == Some(SqlState::new(b"0A000")) => {
                client.batch(DOING, "ROLLBACK TO SAVEPOINT comparing").await?;
                client.batch(DOING, &one_by_one).await?;
            }
            compared => compared?,
        }
        client.batch(DOING, &sql::analyze(list)).await?;
        Ok(true)
    }

    /// The list of a table's differing keys, if there is one.
    pub fn of(&self, live: &QualifiedName) -> Option<&QualifiedName> {
        self.lists.get(live)
    }

    /// A list is not to be trusted any more: its table is compared whole.
    pub fn forget(&mut self, live: &QualifiedName) {
        self.lists.remove(live);
    }

    /// Roughly how many rows of a table will be touched; `None` when it is not known.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn count(&self, client: &SqlClient, live: &QualifiedName) -> Result<Option<i64>, DestinationError> {
        let Some(list) = self.of(live) else { return Ok(None) };
        Ok(Some(client.query_one(DOING, &sql::count(list), &[]).await?.get(0)))
    }
}
