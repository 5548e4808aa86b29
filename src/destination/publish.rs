//! Publishing: one transaction that makes a whole snapshot visible, with the position in it.
//!
//! Called by `pipeline::snapshot` once staging is finished. Everything that takes time was done before; here tables
//! are moved, filled or reconciled in foreign-key order and the bookkeeping is written. Readers never see a partial
//! or empty table and are never blocked by fill and reconcile, which are ordinary DML; a move concerns tables that
//! nobody knew before.
//!
//! If the answer to COMMIT is lost, the bookkeeping row tells: it was one transaction.

use std::collections::BTreeMap;

use super::error::DestinationError;
use super::leadership::ReplicationRole;
use super::shapes;
use super::staging::{Mode, StagedTable, Staging};
use crate::pg::{ErrorReport, Lsn, QualifiedName, quote_literal};
use crate::plan::schema::Types;
use crate::plan::shape::Shape;
use crate::plan::sql::ddl;
use crate::plan::sql::staging as sql;
use crate::session::SqlClient;
use crate::telemetry::failpoint;

/// What is to be published.
#[derive(Clone, Debug)]
pub struct Publication<'a> {
    /// The rows.
    pub staging: &'a Staging,
    /// Rows sent into staging, by table.
    pub sent: &'a BTreeMap<QualifiedName, u64>,
    /// The generation that the bookkeeping must still hold.
    pub generation: &'a str,
    /// The position that the bookkeeping must still hold, when a stream is live.
    pub live_position: Option<Lsn>,
    /// Where the snapshot was taken: the position from here on.
    pub consistent_point: Lsn,
    /// How long to wait for locks.
    pub lock_timeout_millis: u128,
}

/// What publishing wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishOutcome {
    /// Rows deleted, updated and inserted by reconciling, by table.
    pub reconciled: BTreeMap<QualifiedName, (u64, u64, u64)>,
}

const DOING: &str = "publishing the snapshot";

impl Publication<'_> {
    /// Publishes. On any error nothing has changed.
    ///
    /// # Errors
    /// [`DestinationError`]: staging was lost, another instance has taken over, or a table does not take the rows.
    pub async fn run(&self, client: &SqlClient) -> Result<PublishOutcome, DestinationError> {
        let result = self.transaction(client).await;
        if result.is_err() {
            // The session may be gone; then the server rolls back by itself.
            let _ = client.batch("rolling back", "ROLLBACK").await;
        }
        result
    }

    async fn transaction(&self, client: &SqlClient) -> Result<PublishOutcome, DestinationError> {
        client
            .batch(
                DOING,
                &format!(
                    "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = {}",
                    self.lock_timeout_millis
                ),
            )
            .await?;
        self.take_turn(client).await?;
        // Before the first write: what was staged is what will be published.
        self.staging.check(client, self.sent).await?;
        if replica_role(client).await? == ReplicationRole::Origin {
            client.batch(DOING, "SET CONSTRAINTS ALL DEFERRED").await?;
        }
        let outcome = self.move_rows(client).await?;
        self.write_bookkeeping(client).await?;
        failpoint::reached("publish.before_commit");
        client.batch("committing the snapshot", "COMMIT").await?;
        failpoint::reached("publish.committed");
        Ok(outcome)
    }

    /// The bookkeeping must still be as it was when the snapshot began; its row is locked, so no other instance
    /// publishes too.
    async fn take_turn(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let sql = "SELECT state, generation, (SELECT position::text FROM headwater.position) FROM headwater.stream FOR UPDATE";
        let row = client.query_opt(DOING, sql, &[]).await?;
        let ours = row.is_some_and(|row| {
            let (state, generation): (&str, &str) = (row.get(0), row.get(1));
            let position: Option<&str> = row.get(2);
            let waiting = match self.live_position {
                None => state == "creating",
                Some(live) => state == "live" && position.and_then(|text| text.parse().ok()) == Some(live),
            };
            waiting && generation == self.generation
        });
        if ours {
            return Ok(());
        }
        Err(DestinationError::StagingLost("another instance has gone on meanwhile".to_owned()))
    }

    async fn move_rows(&self, client: &SqlClient) -> Result<PublishOutcome, DestinationError> {
        let mut outcome = PublishOutcome::default();
        let tables = &self.staging.tables;
        let reconciled = |table: &&StagedTable| table.mode == Mode::Reconcile;
        for table in tables.iter().rev().filter(reconciled) {
            let statement = table.matching.delete_extra(&table.staging, &table.live);
            outcome.reconciled.entry(table.live.clone()).or_default().0 =
                client.execute(DOING, &statement, &[]).await?;
        }
        for table in tables.iter().filter(reconciled) {
            if let Some(statement) = table.matching.update_different(&table.staging, &table.live) {
                outcome.reconciled.entry(table.live.clone()).or_default().1 =
                    client.execute(DOING, &statement, &[]).await?;
            }
        }
        for table in tables {
            match table.mode {
                Mode::Move => self.move_table(client, table).await?,
                Mode::Fill => {
                    let columns = &table.route.columns;
                    let statement = sql::fill(&table.staging, &table.live, columns, table.overrides_identity);
                    client.execute(DOING, &statement, &[]).await?;
                }
                Mode::Reconcile => {
                    let statement = table.matching.insert_missing(&table.staging, &table.live);
                    outcome.reconciled.entry(table.live.clone()).or_default().2 =
                        client.execute(DOING, &statement, &[]).await?;
                }
            }
        }
        for (table, constraint, target) in self.staging.new_foreign_keys() {
            let parent = target.table();
            let onto_existing = self.staging.tables.iter().any(|t| t.live == parent && t.mode != Mode::Move);
            if onto_existing {
                client.batch(DOING, &ddl::add_foreign_key(&table.live, constraint, target, &parent)).await?;
            }
        }
        Ok(outcome)
    }

    async fn move_table(&self, client: &SqlClient, table: &StagedTable) -> Result<(), DestinationError> {
        let schema = &table.live.schema;
        let exists: bool = client
            .query_one(DOING, "SELECT pg_catalog.to_regnamespace($1) IS NOT NULL", &[&schema.sql()])
            .await?
            .get(0);
        if !exists {
            client.batch(DOING, &format!("CREATE SCHEMA {}", schema.sql())).await?;
        }
        client.batch(DOING, &sql::move_to(&table.staging, schema)).await?;
        self.grant_defaults(client, &table.live).await
    }

    /// A moved table lacks what ALTER DEFAULT PRIVILEGES would have granted had it been created in its schema.
    async fn grant_defaults(&self, client: &SqlClient, table: &QualifiedName) -> Result<(), DestinationError> {
        let sql = "SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END,
                          pg_catalog.string_agg(a.privilege_type, ', '), a.is_grantable
                   FROM pg_catalog.pg_default_acl d
                   CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) a
                   LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
                   WHERE d.defaclobjtype = 'r' AND d.defaclrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
                     AND d.defaclnamespace = pg_catalog.to_regnamespace($1)
                     AND (a.grantee = 0 OR r.rolname <> current_user)
                   GROUP BY 1, 3";
        for row in client.query(DOING, sql, &[&table.schema.sql()]).await? {
            let (grantee, privileges, grantable): (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
            let option = if grantable { " WITH GRANT OPTION" } else { "" };
            client.batch(DOING, &format!("GRANT {privileges} ON {} TO {grantee}{option}", table.sql())).await?;
        }
        Ok(())
    }

    async fn write_bookkeeping(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let point = self.consistent_point.to_string();
        client
            .batch(DOING, "DELETE FROM headwater.tables; DELETE FROM headwater.shapes; DELETE FROM headwater.position")
            .await?;
        for table in &self.staging.tables {
            let live = quote_literal(&table.live.sql());
            let sql = format!(
                "INSERT INTO headwater.tables (schema_name, table_name, source_id, destination_id, state, snapshot_position)
                 VALUES ($1, $2, $3, {live}::pg_catalog.regclass, 'live', $4::text::pg_lsn)"
            );
            let (schema, name) = (table.live.schema.as_str(), table.live.name.as_str());
            client.execute(DOING, &sql, &[&schema, &name, &table.source.id, &point]).await?;
            let shape = Shape::of(&table.source, &Types::new(), |column| table.published.contains(column));
            client.batch(DOING, &shapes::remember(table.source.relation_id(), &shape)).await?;
        }
        client.execute(DOING, "INSERT INTO headwater.position (position) VALUES ($1::text::pg_lsn)", &[&point]).await?;
        let updated = client
            .execute(
                DOING,
                "UPDATE headwater.stream SET state = 'live', consistent_point = $1::text::pg_lsn, gap = NULL WHERE generation = $2",
                &[&point, &self.generation],
            )
            .await?;
        if updated != 1 {
            return Err(DestinationError::Refused(ErrorReport::new("headwater.stream has lost its row")));
        }
        Ok(())
    }
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
