//! Publishing: one transaction that makes a whole snapshot visible, with the position in it.
//!
//! Called by `table_sync` once staging is finished. Everything that takes time was done before; here tables
//! are moved, filled or reconciled in foreign-key order and the bookkeeping is written. Readers never see a partial
//! or empty table and are never blocked by fill and reconcile, which are ordinary DML; a move concerns tables that
//! nobody knew before. Where all tables are there and empty, staging would only be a detour: the snapshot's rows come
//! into this transaction straight from the source.
//!
//! If the answer to COMMIT is lost, the bookkeeping row tells: it was one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;

use super::catalog::{Catalog, TableToCount};
use super::compare::{KeysToCheck, ListedDifferences, check_keys, small_together};
use super::error::DestinationError;
use super::foreign_code::{Writes, name_of};
use super::orphans::{orphans_told, validates};
use super::other_tables::{BOOKKEEPING_IDS, DATABASE_ID, SYSTEM_IDENTIFIER};
use super::resnapshots::FULFIL;
use super::schema::needed_types;
use super::staging::{Mode, NewForeignKey, StagedTable, Staging};
use super::writer::ReplicationRole;
use super::{fingerprints, shapes, staging_schema};
use crate::catalog::schema::Types;
use crate::catalog::shape::Shape;
use crate::comparison::reconcile_sql as sql;
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, RelationId, counted};
use crate::schema_change::ddl;
use crate::session::{SessionError, SqlClient, SqlState, read_lock_table};
use crate::sql::partition_tree;
use crate::telemetry::{SnapshotPhase, Telemetry, failpoint};

/// Where the position stands, and where it will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishPosition {
    /// No stream is running: all tables are published at the snapshot's consistent point, which becomes the position.
    Beginning {
        /// The position that the bookkeeping must still hold, where there is one already.
        live_position: Option<Lsn>,
        /// The position from here on.
        consistent_point: Lsn,
    },
    /// The stream is held here, and staging has been brought to the same position, which stays.
    Held {
        /// The position.
        position: Lsn,
    },
}

/// How many rows of a table may be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    /// All: an operator has asked for the copy, or the stream itself has reported the table's change.
    All,
    /// Not more than half of any table, however small: the copy is made by itself after a slot was lost, and a source that lacks so
    /// much is in doubt. A row counts as deleted where the copy has no row of its key; in a table without a key, no row equal to it.
    Half,
}

/// What is to be published.
#[derive(Clone, Debug)]
pub struct Publication<'a> {
    /// The rows.
    pub staging: &'a Staging,
    /// Rows sent into staging, by table, where nothing was changed there since.
    pub sent: Option<&'a BTreeMap<QualifiedName, u64>>,
    /// The keys of the rows that differ, where they are listed.
    pub differences: &'a ListedDifferences,
    /// The generation that the bookkeeping must still hold.
    pub generation: &'a str,
    /// Where the position stands, and where it will.
    pub place: PublishPosition,
    /// Requests that are fulfilled by this.
    pub requests: &'a [i64],
    /// How many rows may go.
    pub deletes: Deletes,
    /// How long to wait for locks.
    pub lock_timeout_millis: u128,
    /// What the source's columns are made of.
    pub types: &'a Types,
    /// Roles whose code may run.
    pub trusted_roles: &'a [Ident],
    /// Roles that could attach code to what is published are in the way, whether there is any or not.
    pub names_owners: bool,
}

/// Refuses to write more tables in one transaction than the server has room for in locks. Staging's are taken already.
async fn check_room(client: &SqlClient, written: &[&StagedTable]) -> Result<(), DestinationError> {
    let need = written.iter().map(|table| table.writing_locks).sum();
    let doing = format!("making {} equal", counted(written.len(), "table"));
    match read_lock_table(client).await?.lacks_room("destination", &doing, need) {
        Some(report) => Err(DestinationError::Refused(report)),
        None => Ok(()),
    }
}

/// Refuses tables that have the names of those for which rows were staged, and are others. Behind their locks: until the transaction
/// ends, the names stay.
async fn refuse_others(client: &SqlClient, tables: &[&StagedTable]) -> Result<(), DestinationError> {
    let (names, ids): (Vec<String>, Vec<u32>) =
        tables.iter().filter_map(|table| Some((table.live.sql(), table.live_id?))).unzip();
    let sql = "SELECT pg_catalog.min(t.number)
               FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::oid[])) WITH ORDINALITY AS t (name, id, number)
               WHERE pg_catalog.to_regclass(t.name)::oid IS DISTINCT FROM t.id";
    let first: Option<i64> = client.query_one(DOING, sql, &[&names, &ids]).await?.get(0)?;
    match first
        .and_then(|number| tables.iter().filter(|table| table.live_id.is_some()).nth(usize::try_from(number - 1).ok()?))
    {
        Some(table) => Err(exchanged(&table.live)),
        None => Ok(()),
    }
}

/// The next attempt looks at what stands there.
fn exchanged(table: &QualifiedName) -> DestinationError {
    DestinationError::StagingLost(format!("table {table} at the destination is another one than when the copy began"))
}

/// What publishing wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishOutcome {
    /// Rows deleted, updated and inserted by reconciling, by table.
    pub reconciled: BTreeMap<QualifiedName, (u64, u64, u64)>,
    /// Rows that are not what was written, because triggers of the destination act on them: how many, and the triggers.
    pub altered: BTreeMap<QualifiedName, (i64, String)>,
    /// Foreign keys that the copied rows violate, each a sentence without its full stop.
    pub orphaned: Vec<String>,
    /// Privileges that default privileges would have granted on new tables, each a sentence without its full stop.
    pub withheld: Vec<String>,
    /// Tables that have lost more than half of their rows: `table public.t (950 of 1000)`.
    pub lost_most: Vec<String>,
}

const DOING: &str = "publishing the snapshot";

impl Publication<'_> {
    /// Publishes. On any error nothing has changed.
    ///
    /// # Errors
    /// [`DestinationError`]: staging was lost, another instance has taken over, or a table does not take the rows.
    pub async fn run(&self, client: &SqlClient, telemetry: &Telemetry) -> Result<PublishOutcome, DestinationError> {
        let result = self.transaction(client, telemetry).await;
        if result.is_err() {
            // The session may be gone; then the server rolls back by itself.
            let _ = client.batch("rolling back", "ROLLBACK").await;
        }
        result
    }

    /// Publishes rows that `filling` brings into the live tables on the same session, none of which has any before.
    ///
    /// # Errors
    /// The same, and what `filling` fails with. On any error nothing has changed.
    pub async fn run_filling<E: From<DestinationError>>(
        &self,
        client: &SqlClient,
        filling: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        let transaction = async {
            self.begin(client).await?;
            filling.await?;
            Ok(self.commit(client).await?)
        };
        let result = transaction.await;
        if result.is_err() {
            let _ = client.batch("rolling back", "ROLLBACK").await;
        }
        result
    }

    async fn transaction(&self, client: &SqlClient, telemetry: &Telemetry) -> Result<PublishOutcome, DestinationError> {
        telemetry.snapshot_phase(SnapshotPhase::Publishing, []);
        let role = self.begin(client).await?;
        let outcome = self.move_rows(client, role, telemetry).await?;
        self.commit(client).await?;
        Ok(outcome)
    }

    async fn begin(&self, client: &SqlClient) -> Result<ReplicationRole, DestinationError> {
        client.batch(DOING, "BEGIN; SET LOCAL synchronous_commit = on").await?;
        client.statement(DOING, &format!("SET LOCAL lock_timeout = {}", self.lock_timeout_millis)).await?;
        self.take_turn(client).await?;
        // Before the first write: what was staged is what will be published.
        self.staging.check_alive(client).await?;
        if let Some(sent) = self.sent {
            self.staging.check_counts(client, sent).await?;
        }
        let filled: Vec<&StagedTable> = self.staging.tables.iter().filter(|table| table.mode == Mode::Fill).collect();
        // The count would miss a row that another session has written and not committed yet, and both rows would stay.
        let locks: Vec<String> = filled.iter().map(|table| sql::lock_against_writers(&table.live)).collect();
        client.execute_each(DOING, &locks).await?;
        let counted: Vec<TableToCount<'_>> =
            filled.iter().map(|table| TableToCount { name: &table.live, most: 1 }).collect();
        let counts = Catalog::count_rows_of_each(client, &counted).await?;
        if let Some((table, _)) = filled.iter().zip(counts).find(|(_, rows)| *rows > 0) {
            let what = format!("table {} was empty, and has rows now", table.live);
            return Err(DestinationError::StagingLost(what));
        }
        let role = replica_role(client).await?;
        if role == ReplicationRole::Origin {
            client.batch(DOING, "SET CONSTRAINTS ALL DEFERRED").await?;
        }
        self.writes(role, &filled).lock_and_refuse_foreign_code(client).await?;
        refuse_others(client, &filled).await?;
        Ok(role)
    }

    fn writes(&self, role: ReplicationRole, tables: &[&StagedTable]) -> Writes {
        let supplied = tables.iter().flat_map(|table| {
            let columns = table.route.columns.iter();
            columns.map(|column| (table.live.clone(), column.clone()))
        });
        Writes {
            tables: tables.iter().map(|table| table.live.clone()).collect(),
            supplied: supplied.collect(),
            // The tables are there by now, with their types.
            types: Vec::new(),
            collations: Vec::new(),
            foreign_keys_act: role == ReplicationRole::Origin,
            trusted_roles: self.trusted_roles.to_vec(),
            names_owners: self.names_owners,
        }
    }

    async fn commit(&self, client: &SqlClient) -> Result<(), DestinationError> {
        self.write_bookkeeping(client).await?;
        failpoint::reached("publish.before_commit");
        client.batch("committing the snapshot", "COMMIT").await?;
        failpoint::reached("publish.committed");
        Ok(())
    }

    /// The bookkeeping must still be as it was when the snapshot began. Its rows are locked: no other instance publishes
    /// too, and none moves the position before this commits.
    async fn take_turn(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let sql = "SELECT position::text FROM headwater.position FOR UPDATE";
        let position: Option<Lsn> = client.query_opt(DOING, sql, &[]).await?.map(|row| row.parse(0)).transpose()?;
        let sql = "SELECT state, generation FROM headwater.stream FOR UPDATE";
        let row = client.query_opt(DOING, sql, &[]).await?;
        let stream = row.map(|row| Ok::<(String, String), SessionError>((row.get(0)?, row.get(1)?))).transpose()?;
        let ours = stream.is_some_and(|(state, generation)| {
            let waiting = match self.place {
                PublishPosition::Beginning { live_position: None, .. } => state == "creating",
                PublishPosition::Beginning { live_position: Some(held), .. }
                | PublishPosition::Held { position: held } => state == "live" && position == Some(held),
            };
            waiting && generation == self.generation
        });
        if ours {
            return Ok(());
        }
        Err(DestinationError::StagingLost("another instance has gone on meanwhile".to_owned()))
    }

    async fn move_rows(
        &self,
        client: &SqlClient,
        role: ReplicationRole,
        telemetry: &Telemetry,
    ) -> Result<PublishOutcome, DestinationError> {
        let mut outcome = PublishOutcome::default();
        let tables = &self.staging.tables;
        let equal = self.differences.equal(client).await?;
        let reconciled: Vec<&StagedTable> = tables.iter().filter(|table| table.mode == Mode::Reconcile).collect();
        outcome.reconciled.extend(reconciled.iter().map(|table| (table.live.clone(), (0, 0, 0))));
        let differs = |table: &StagedTable| table.mode == Mode::Reconcile && !equal.contains(&&table.live);
        let listed = |table: &StagedTable| self.differences.of(&table.live);
        let written: Vec<&StagedTable> = tables.iter().filter(|table| differs(table)).collect();
        check_room(client, &written).await?;
        self.writes(role, &written).lock_and_refuse_foreign_code(client).await?;
        refuse_others(client, &written).await?;
        let keys: Vec<KeysToCheck<'_>> =
            written.iter().filter_map(|table| Some(KeysToCheck { table, listed: Some(listed(table)?) })).collect();
        check_keys(client, &keys).await?;
        // What differs is deleted, updated and inserted; whatever else there is takes one step.
        let steps = written.iter().flat_map(|table| [table, table]).copied().chain(tables);
        telemetry.snapshot_phase(SnapshotPhase::Publishing, steps.map(|table| table.source.bytes));
        for together in small_together(&written.iter().rev().copied().collect::<Vec<_>>(), |table| table.source.bytes) {
            self.delete_extra(client, together, &mut outcome).await?;
            together.iter().for_each(|table| telemetry.snapshot_step_done(table.source.bytes));
        }
        outcome.lost_most.reverse();
        if self.deletes == Deletes::Half && !outcome.lost_most.is_empty() {
            return Err(DestinationError::LacksMost { tables: outcome.lost_most.join(", "), copy_begun_at: None });
        }
        let numbered = tables.iter().enumerate().filter(|(_, table)| differs(table));
        let numbered: Vec<Numbered<'_>> = numbered.map(|(number, table)| Numbered { number, table }).collect();
        for together in small_together(&numbered, |numbered| numbered.table.source.bytes) {
            self.update(client, role, together, &mut outcome).await?;
            together.iter().for_each(|numbered| telemetry.snapshot_step_done(numbered.table.source.bytes));
        }
        outcome.withheld = self.move_tables(client, role).await?;
        let tables: Vec<&StagedTable> = tables.iter().collect();
        for together in small_together(&tables, |table| table.source.bytes) {
            let inserted: Vec<&StagedTable> =
                together.iter().copied().filter(|table| table.mode == Mode::Fill || differs(table)).collect();
            let insert = |table: &&StagedTable| match table.mode {
                Mode::Fill => sql::fill(&table.staging, &table.live, &table.route.columns, table.overrides_identity),
                Mode::Reconcile | Mode::Move => {
                    table.matching.insert_missing(&table.staging, &table.live, listed(table))
                }
            };
            let statements: Vec<String> = inserted.iter().map(insert).collect();
            for (table, rows) in inserted.iter().zip(client.execute_each(DOING, &statements).await?) {
                if table.mode == Mode::Reconcile {
                    outcome.reconciled.entry(table.live.clone()).or_default().2 = rows;
                }
            }
            together.iter().for_each(|table| telemetry.snapshot_step_done(table.source.bytes));
        }
        self.check(client, role, &written, &mut outcome).await?;
        self.add_foreign_keys(client, &mut outcome).await?;
        self.staging.review_moved(client).await?;
        Ok(outcome)
    }

    /// Deletes the rows that the copy does not have, and notes where that was most of them.
    async fn delete_extra(
        &self,
        client: &SqlClient,
        tables: &[&StagedTable],
        outcome: &mut PublishOutcome,
    ) -> Result<(), DestinationError> {
        let delete = |table: &&StagedTable| {
            table.matching.delete_extra(&table.staging, &table.live, self.differences.of(&table.live))
        };
        let statements: Vec<String> = tables.iter().map(delete).collect();
        let mut counted = Vec::new();
        for (table, deleted) in tables.iter().zip(client.execute_each(DOING, &statements).await?) {
            outcome.reconciled.entry(table.live.clone()).or_default().0 = deleted;
            if deleted > 0 {
                // Counted up to as many as were deleted: more of them are not the smaller half.
                counted.push(TableToCount { name: &table.live, most: i64::try_from(deleted).unwrap_or(i64::MAX) });
            }
        }
        let counts = Catalog::count_rows_of_each(client, &counted).await?;
        for (TableToCount { name, most: deleted }, left) in counted.into_iter().zip(counts) {
            if left < deleted {
                outcome.lost_most.push(format!("table {name} ({deleted} of {})", deleted.saturating_add(left)));
            }
        }
        Ok(())
    }

    /// Adds the foreign keys of tables that are new, and notes those that rows here violate.
    async fn add_foreign_keys(&self, client: &SqlClient, outcome: &mut PublishOutcome) -> Result<(), DestinationError> {
        for NewForeignKey { table, constraint, target } in self.staging.new_foreign_keys() {
            let parent = target.table();
            if self.staging.exists(&parent) {
                let statement = ddl::add_foreign_key(&table.live, constraint, target, &parent);
                client.statement(DOING, &ddl::unvalidated(&statement)).await?;
                if constraint.validated && !validates(client, &table.live, &constraint.name).await? {
                    outcome.orphaned.push(orphans_told(&table.live, &constraint.name));
                }
            }
        }
        Ok(())
    }

    /// Every listed row must be the same on both sides now, or what the list was made by does not hold. Only triggers of the
    /// destination's own may have made other rows of them; then how many, and which triggers.
    async fn check(
        &self,
        client: &SqlClient,
        role: ReplicationRole,
        tables: &[&StagedTable],
        outcome: &mut PublishOutcome,
    ) -> Result<(), DestinationError> {
        let (mut listed, mut questions) = (Vec::new(), Vec::new());
        for table in tables {
            let Some(list) = self.differences.of(&table.live) else { continue };
            listed.push(*table);
            questions.push(table.matching.still_different(&table.staging, &table.live, list));
        }
        for (table, rows) in listed.into_iter().zip(client.query_each(DOING, &questions).await?) {
            let different: i64 = rows.first().ok_or_else(|| SessionError::answer(DOING, "no row"))?.get(0)?;
            if different == 0 {
                continue;
            }
            let Some(triggers) = acting_triggers(client, role, &table.live).await? else {
                let rows = counted(different, "row");
                let what = format!("{rows} of table {} differ from the source after they were written", table.live);
                return Err(DestinationError::StagingLost(what));
            };
            outcome.altered.insert(table.live.clone(), (different, triggers));
        }
        Ok(())
    }

    /// Updates what differs in some tables, all together; where a table does not take that, each by itself.
    async fn update(
        &self,
        client: &SqlClient,
        role: ReplicationRole,
        tables: &[Numbered<'_>],
        outcome: &mut PublishOutcome,
    ) -> Result<(), DestinationError> {
        if let Some(updated) = self.update_together(client, tables).await? {
            for (Numbered { table, .. }, rows) in tables.iter().zip(updated) {
                outcome.reconciled.entry(table.live.clone()).or_default().1 = rows;
            }
            return Ok(());
        }
        for Numbered { number, table } in tables {
            outcome.reconciled.entry(table.live.clone()).or_default().1 =
                self.update_one(client, role, *number, table).await?;
        }
        Ok(())
    }

    /// `None`: nothing was changed, and they are to be updated one by one.
    async fn update_together(
        &self,
        client: &SqlClient,
        tables: &[Numbered<'_>],
    ) -> Result<Option<Vec<u64>>, DestinationError> {
        let mut statements = Vec::new();
        for Numbered { table, .. } in tables {
            let listed = self.differences.of(&table.live);
            if table.matching.fixed_differ(&table.staging, &table.live, listed).is_some() {
                return Ok(None);
            }
            statements.push(table.matching.update_different(&table.staging, &table.live, listed));
        }
        client.batch(DOING, "SAVEPOINT headwater_update").await?;
        match client.execute_each(DOING, &statements.iter().flatten().collect::<Vec<_>>()).await {
            Ok(updated) => {
                client.batch(DOING, "RELEASE SAVEPOINT headwater_update").await?;
                let mut updated = updated.into_iter();
                // A table whose columns are all in its key takes no UPDATE.
                let rows = statements.iter().map(|statement| statement.as_ref().and_then(|_| updated.next()));
                Ok(Some(rows.map(Option::unwrap_or_default).collect()))
            }
            Err(error) if hands_change(&error) => {
                client.batch(DOING, "ROLLBACK TO SAVEPOINT headwater_update").await?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Updates what differs; where no UPDATE can, by exchanging rows.
    async fn update_one(
        &self,
        client: &SqlClient,
        role: ReplicationRole,
        number: usize,
        table: &StagedTable,
    ) -> Result<u64, DestinationError> {
        let listed = self.differences.of(&table.live);
        let mut exchanged = 0;
        if let Some(question) = table.matching.fixed_differ(&table.staging, &table.live, listed)
            && client.query_one(DOING, &question, &[]).await?.get(0)?
        {
            exchanged = self.exchange(client, role, number, table, true).await?;
        }
        let Some(statement) = table.matching.update_different(&table.staging, &table.live, listed) else {
            return Ok(exchanged);
        };
        client.batch(DOING, "SAVEPOINT headwater_update").await?;
        let error = match client.execute(DOING, &statement, &[]).await {
            Ok(updated) => {
                client.batch(DOING, "RELEASE SAVEPOINT headwater_update").await?;
                return Ok(exchanged + updated);
            }
            Err(error) => error,
        };
        if !hands_change(&error) {
            return Err(error.into());
        }
        client.batch(DOING, "ROLLBACK TO SAVEPOINT headwater_update").await?;
        Ok(exchanged + self.exchange(client, role, number, table, false).await?)
    }

    /// Deletes rows that differ and inserts them again; `only_fixed`: those in which a column differs that no UPDATE can set.
    async fn exchange(
        &self,
        client: &SqlClient,
        role: ReplicationRole,
        number: usize,
        table: &StagedTable,
        only_fixed: bool,
    ) -> Result<u64, DestinationError> {
        let reason = if only_fixed { ExchangeReason::FixedValues } else { ExchangeReason::UniqueValues };
        if role == ReplicationRole::Origin
            && let Some(report) = exchange_obstacle(client, &table.live, reason).await?
        {
            return Err(DestinationError::Refused(report));
        }
        let name = Ident::new(format!("{}{number}", if only_fixed { "f" } else { "a" }));
        let removed = QualifiedName { schema: self.staging.schema.clone(), name };
        let listed = self.differences.of(&table.live);
        let [keep, delete, insert] =
            table.matching.exchange_different(&table.staging, &table.live, listed, &removed, &table.stored, only_fixed);
        client.statement(DOING, &keep).await?;
        staging_schema::withhold(client, DOING, &[&removed]).await?;
        client.execute(DOING, &delete, &[]).await?;
        Ok(client.execute(DOING, &insert, &[]).await?)
    }

    /// Moves new tables to where they belong.
    async fn move_tables(&self, client: &SqlClient, role: ReplicationRole) -> Result<Vec<String>, DestinationError> {
        let moved: Vec<&StagedTable> = self.staging.tables.iter().filter(|table| table.mode == Mode::Move).collect();
        if moved.is_empty() {
            return Ok(Vec::new());
        }
        let schemas: BTreeSet<&Ident> = moved.iter().map(|table| &table.live.schema).collect();
        for schema in schemas {
            let sql = "SELECT pg_catalog.to_regnamespace($1) IS NOT NULL";
            if !client.query_one(DOING, sql, &[&schema.sql()]).await?.get::<bool>(0)? {
                client.statement(DOING, &format!("CREATE SCHEMA {}", schema.sql())).await?;
            }
        }
        let moves: Vec<String> = moved.iter().map(|table| sql::move_to(&table.staging, &table.live.schema)).collect();
        client.execute_each(DOING, &moves).await?;
        let names: Vec<&QualifiedName> = moved.iter().map(|table| &table.live).collect();
        self.grant_defaults(client, &names).await?;
        match role {
            ReplicationRole::Origin => self.withhold(client, &names, &["TRIGGER", "REFERENCES"]).await,
            ReplicationRole::Replica if self.names_owners => self.withhold(client, &names, &["TRIGGER"]).await,
            ReplicationRole::Replica => Ok(Vec::new()),
        }
    }

    /// Where triggers and foreign keys act on what is applied, nobody else gets what attaches them to new tables: by the time that
    /// the monitor looks, the first changes would have run them. Where TRIGGER is in the way of a start, nobody gets it either.
    async fn withhold(
        &self,
        client: &SqlClient,
        tables: &[&QualifiedName],
        kept_back: &[&str],
    ) -> Result<Vec<String>, DestinationError> {
        let sql = "SELECT t.number, CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END,
                          pg_catalog.string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type)
                   FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS t (name, number)
                   JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(t.name)
                   CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
                   WHERE a.privilege_type = ANY ($2::text[]) AND a.grantee <> c.relowner
                   GROUP BY t.number, a.grantee ORDER BY 1, 2";
        let names: Vec<String> = tables.iter().map(|table| table.sql()).collect();
        let (mut withheld, mut revokes) = (Vec::new(), Vec::new());
        for row in client.query(DOING, sql, &[&names, &kept_back]).await? {
            let number = usize::try_from(row.get::<i64>(0)? - 1).ok();
            let table = number.and_then(|number| tables.get(number));
            let table = table.ok_or_else(|| SessionError::answer(DOING, "a table that was not asked for"))?;
            let grantee: Option<Ident> = row.get::<Option<&str>>(1)?.map(Ident::new);
            let privileges: &str = row.get(2)?;
            let sent = grantee.as_ref().map_or("PUBLIC".to_owned(), Ident::sql);
            revokes.push(format!("REVOKE {privileges} ON TABLE {} FROM {sent} CASCADE", table.sql()));
            let grantee = name_of(grantee.as_ref());
            let told = format!(
                "table {table}: {privileges} not granted to role {grantee}, whose triggers would run with headwater's rights"
            );
            withheld.push(format!("{told}. To grant it: GRANT {privileges} ON TABLE {table} TO {grantee};"));
        }
        client.execute_each(DOING, &revokes).await?;
        Ok(withheld)
    }

    /// Moved tables lack what ALTER DEFAULT PRIVILEGES would have granted had they been created in their schemas: in staging nobody else
    /// had any privilege on them. The same of their sequences.
    async fn grant_defaults(&self, client: &SqlClient, tables: &[&QualifiedName]) -> Result<(), DestinationError> {
        let sql = "SELECT pg_catalog.format('GRANT %s ON %s %I.%I TO %s%s', pg_catalog.string_agg(DISTINCT a.privilege_type, ', '),
                                            CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname,
                                            CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END,
                                            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
                   FROM (SELECT pg_catalog.to_regclass(t.name)::oid FROM pg_catalog.unnest($1::text[]) AS t (name)
                         UNION ALL
                         SELECT d.objid FROM pg_catalog.unnest($1::text[]) AS t (name) JOIN pg_catalog.pg_depend d
                         ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = pg_catalog.to_regclass(t.name)
                           AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i')) AS moved(id)
                   JOIN pg_catalog.pg_class c ON c.oid = moved.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   JOIN pg_catalog.pg_default_acl d ON d.defaclobjtype = CASE c.relkind WHEN 'S' THEN 'S' ELSE 'r' END
                   CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) a
                   LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
                   WHERE c.relkind IN ('r', 'p', 'S')
                     AND d.defaclrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
                     AND d.defaclnamespace IN (0, c.relnamespace) AND (a.grantee = 0 OR r.rolname <> current_user)
                   GROUP BY c.relkind, n.nspname, c.relname, a.grantee, r.rolname, a.is_grantable";
        let names: Vec<String> = tables.iter().map(|table| table.sql()).collect();
        let rows = client.query(DOING, sql, &[&names]).await?;
        let grants = rows.iter().map(|row| row.get::<&str>(0)).collect::<Result<Vec<_>, _>>()?;
        client.execute_each(DOING, &grants).await?;
        Ok(())
    }

    /// What is remembered of a table.
    fn shape(&self, table: &StagedTable, remembered: &HashMap<RelationId, Shape>) -> Result<Shape, DestinationError> {
        // Only the types that the table itself uses, as in a description of this table alone.
        let ids = needed_types(self.types, table.source.columns.iter().map(|column| column.type_id))?;
        let types = ids.iter().filter_map(|id| Some((*id, self.types.get(id)?.clone()))).collect();
        let shape = Shape::of(&table.source, &types, |column| table.published.contains(column));
        // What the destination's own table does not promise yet is followed when the stream describes it next.
        let shape = match table.mode {
            Mode::Move => shape,
            Mode::Fill | Mode::Reconcile => shape.without_new_promises(remembered.get(&table.source.relation_id())),
        };
        // Others may be there since the table was described, and before the copy.
        Ok(match self.staging.leaves.get(&table.source.relation_id()) {
            Some(leaves) => shape.with_leaves(leaves.clone()),
            None => shape,
        })
    }

    /// Writes which tables are followed from where on, and what is remembered of them: one statement each for all of them.
    async fn write_tables(&self, client: &SqlClient, position: &str) -> Result<(), DestinationError> {
        let tables = &self.staging.tables;
        let schemas: Vec<&str> = tables.iter().map(|table| table.live.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.live.name.as_str()).collect();
        let sources: Vec<u32> = tables.iter().map(|table| table.source.id).collect();
        let live: Vec<String> = tables.iter().map(|table| table.live.sql()).collect();
        let sql = "INSERT INTO headwater.tables AS t (schema_name, table_name, source_id, destination_id, state, snapshot_position)
                   SELECT n.schema_name, n.table_name, n.source_id, n.live::pg_catalog.regclass, 'live', $5::text::pg_lsn
                   FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::oid[]),
                                   pg_catalog.unnest($4::text[])) AS n (schema_name, table_name, source_id, live)
                   ON CONFLICT (schema_name, table_name) DO UPDATE SET source_id = EXCLUDED.source_id,
                       destination_id = EXCLUDED.destination_id, state = 'live', snapshot_position = EXCLUDED.snapshot_position
                   RETURNING schema_name, table_name, destination_id";
        let mut written = BTreeMap::new();
        for row in client.query(DOING, sql, &[&schemas, &names, &sources, &live, &position]).await? {
            written.insert(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?), row.get::<u32>(2)?);
        }
        // Tables that were equal are not locked, and a schema's name is given to another one without locks on its tables.
        let is_exchanged = |table: &&StagedTable| {
            table.live_id.is_some_and(|live_id| written.get(&table.live).copied() != Some(live_id))
        };
        if let Some(table) = tables.iter().find(is_exchanged) {
            return Err(exchanged(&table.live));
        }
        let remembered = shapes::shapes_of(client, &sources).await?;
        let (mut new_shapes, mut new_facts) = (Vec::new(), Vec::new());
        for table in tables {
            let id = table.source.relation_id();
            new_shapes.push((id, self.shape(table, &remembered)?));
            new_facts.extend(self.staging.fingerprints.get(&id).map(|facts| (id, facts)));
        }
        shapes::remember_all(client, DOING, &new_shapes).await?;
        fingerprints::remember_all(client, DOING, &new_facts).await
    }

    async fn write_bookkeeping(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let point = match self.place {
            PublishPosition::Beginning { consistent_point, .. } => consistent_point,
            PublishPosition::Held { position } => position,
        };
        let text = point.to_string();
        if let PublishPosition::Beginning { .. } = self.place {
            client
                .batch(
                    DOING,
                    "DELETE FROM headwater.tables; DELETE FROM headwater.shapes; DELETE FROM headwater.position",
                )
                .await?;
        }
        self.write_tables(client, &text).await?;
        // Forgets the old shape of a table that was dropped and created again.
        let sql = "DELETE FROM headwater.shapes s
                   WHERE NOT EXISTS (SELECT FROM headwater.tables t WHERE t.source_id = s.source_id)";
        client.batch(DOING, sql).await?;
        if let PublishPosition::Beginning { .. } = self.place {
            let sql = "INSERT INTO headwater.position (position) VALUES ($1::text::pg_lsn)";
            client.execute(DOING, sql, &[&text]).await?;
            let sql = format!(
                "UPDATE headwater.stream SET state = 'live', consistent_point = $1::text::pg_lsn, gap = NULL,
                        bookkeeping_ids = {BOOKKEEPING_IDS}, destination_system_identifier = {SYSTEM_IDENTIFIER},
                        destination_database_id = {DATABASE_ID} WHERE generation = $2"
            );
            if client.execute(DOING, &sql, &[&text, &self.generation]).await? != 1 {
                return Err(DestinationError::Refused(ErrorReport::new("headwater.stream has lost its row")));
            }
        }
        if !self.requests.is_empty() {
            let requests = self.requests.to_vec();
            client.execute(DOING, FULFIL, &[&requests]).await?;
        }
        Ok(())
    }
}

/// A table, and its place among all that are published.
#[derive(Clone, Copy)]
struct Numbered<'a> {
    number: usize,
    table: &'a StagedTable,
}

/// Whether values that must be unique have changed hands among the rows of a statement.
fn hands_change(error: &SessionError) -> bool {
    [b"23505", b"23P01"].iter().any(|code| error.code() == Some(SqlState::new(code)))
}

/// Why rows are deleted and inserted again instead of being updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeReason {
    /// Unique values change hands among them.
    UniqueValues,
    /// They differ in a column that no UPDATE can set.
    FixedValues,
}

/// What would act if rows of a table were deleted and inserted again in one transaction with all constraints deferred: a foreign
/// key onto the table that does more than check at the end, or a trigger.
///
/// # Errors
/// [`DestinationError`].
pub async fn exchange_obstacle(
    client: &SqlClient,
    table: &QualifiedName,
    reason: ExchangeReason,
) -> Result<Option<ErrorReport>, DestinationError> {
    let sql = "SELECT pg_catalog.format('foreign key %I of table %s', k.conname, k.conrelid::pg_catalog.regclass), current_user::text
               FROM pg_catalog.pg_constraint k WHERE k.confrelid = pg_catalog.to_regclass($1) AND k.contype = 'f'
                 AND NOT (k.condeferrable AND k.confdeltype = 'a')
               UNION ALL
               SELECT pg_catalog.format('trigger %I', g.tgname), current_user::text FROM pg_catalog.pg_trigger g
               WHERE g.tgrelid = pg_catalog.to_regclass($1) AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
               LIMIT 1";
    let Some(row) = client.query_opt(DOING, sql, &[&table.sql()]).await? else { return Ok(None) };
    let message = match reason {
        ExchangeReason::UniqueValues => format!("unique values have changed hands among rows of table {table}"),
        ExchangeReason::FixedValues => {
            format!("identity columns that are GENERATED ALWAYS differ in rows of table {table}")
        }
    };
    Ok(Some(exchange_refused(message, row.get(0)?, &Ident::new(row.get::<&str>(1)?))))
}

/// The triggers that act on rows that a session in this role writes.
async fn acting_triggers(
    client: &SqlClient,
    role: ReplicationRole,
    table: &QualifiedName,
) -> Result<Option<String>, DestinationError> {
    let when = match role {
        ReplicationRole::Replica => "'R', 'A'",
        ReplicationRole::Origin => "'O', 'A'",
    };
    // Those of partitions are their own.
    let sql = format!(
        "SELECT pg_catalog.string_agg(DISTINCT pg_catalog.quote_ident(g.tgname), ', ') FROM pg_catalog.pg_trigger g
         WHERE NOT g.tgisinternal AND g.tgenabled IN ({when}) AND g.tgrelid IN (
             SELECT pg_catalog.to_regclass($1)
             UNION SELECT relid FROM {} AS t)",
        partition_tree!("pg_catalog.to_regclass($1)")
    );
    Ok(client.query_one(DOING, &sql, &[&table.sql()]).await?.get(0)?)
}

fn exchange_refused(message: String, acting: &str, role: &Ident) -> ErrorReport {
    ErrorReport::new(message)
        .detail(format!(
            "They could only be deleted and inserted again, on which {acting} would act: our role may not set session_replication_role."
        ))
        .hint(format!(
            "Give these rows other values by hand; or run at the destination as a superuser (15 and later):\n\
             GRANT SET ON PARAMETER session_replication_role TO {role};"
        ))
}

/// Takes session_replication_role = replica for this transaction, where the role may.
async fn replica_role(client: &SqlClient) -> Result<ReplicationRole, DestinationError> {
    client.batch(DOING, "SAVEPOINT headwater_role").await?;
    let taken = client.batch(DOING, "SET LOCAL session_replication_role = replica").await;
    match taken {
        Ok(()) => Ok(ReplicationRole::Replica),
        Err(error) if error.code() == Some(crate::session::SqlState::new(b"42501")) => {
            client.batch(DOING, "ROLLBACK TO SAVEPOINT headwater_role").await?;
            Ok(ReplicationRole::Origin)
        }
        Err(error) => Err(error.into()),
    }
}
