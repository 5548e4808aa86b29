//! A pair of databases for one test, one on each cluster, with a slot and a publication of their own.

use super::Script;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use headwater::commands::demo::Cluster;
use headwater::config::{ConnectionSettings, Environment};
use headwater::session::{Sql, SqlClient};

use super::roles::{self, Roles};
use super::{PATIENCE, compare, destination, eventually, source};

/// Databases whose tests are over: they go, and their slots, before the next ones are made.
static OVER: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A test's databases. They go after the test.
pub struct Database {
    pub name: String,
    pub source: SqlClient,
    pub destination: SqlClient,
    pub source_url: String,
    pub destination_url: String,
    /// The tables, as configured.
    pub tables: Vec<String>,
    pub over: Over,
}

/// Says that the test is over when it is dropped.
pub struct Over(String);

impl Over {
    /// For the databases of this name.
    pub fn of(name: &str) -> Over {
        Over(name.to_owned())
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        OVER.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.0));
    }
}

/// Drops slots and databases that are left of tests that are over: the whole run would need 12 GB otherwise. What is still in use
/// goes later, or with its cluster.
async fn drop_what_is_over(admin: &SqlClient) {
    let over = OVER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let sql =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = ANY ($1) AND NOT active";
    // Somebody else may have dropped it in the same moment.
    let _ = admin.query("dropping slots", sql, &[&over]).await;
    let sql = "SELECT quote_ident(datname) FROM pg_database WHERE datname = ANY ($1)
               AND datname NOT IN (SELECT a.datname FROM pg_stat_activity a WHERE a.datname IS NOT NULL
                                   UNION SELECT s.database FROM pg_replication_slots s WHERE s.database IS NOT NULL)";
    for row in admin.query("looking for databases", sql, &[&over]).await.expect("the cluster answers") {
        let _ = admin
            .script("dropping a database", &format!("DROP DATABASE IF EXISTS {}", row.get::<&str>(0).unwrap()))
            .await;
    }
}

impl Database {
    /// Databases on the shared clusters; `schema` is run at the source.
    pub async fn new(name: &str, tables: &[&str], schema: &str) -> Database {
        Database::on(source().await, destination().await, name, tables, schema).await
    }

    /// The same, whatever HEADWATER_TEST_ROLES says: for tests that make roles themselves.
    pub async fn of_superuser(name: &str, tables: &[&str], schema: &str) -> Database {
        Database::under(Roles::Superuser, source().await, destination().await, name, tables, schema).await
    }

    /// The same, for what only works where foreign keys do not act: the roles may set session_replication_role in any case.
    pub async fn with_replica_role(name: &str, tables: &[&str], schema: &str) -> Database {
        Database::under(Roles::wanted_with_replica(), source().await, destination().await, name, tables, schema).await
    }

    /// Databases on these clusters.
    pub async fn on(from: &Cluster, to: &Cluster, name: &str, tables: &[&str], schema: &str) -> Database {
        Database::under(Roles::wanted(), from, to, name, tables, schema).await
    }

    /// Databases on these clusters, for headwater in these roles.
    pub async fn under(
        roles: Roles,
        from: &Cluster,
        to: &Cluster,
        name: &str,
        tables: &[&str],
        schema: &str,
    ) -> Database {
        let name = format!("{name}_{:06x}", fastrand::u32(..0x100_0000));
        for cluster in [from, to] {
            let admin = cluster.connect("postgres").await.expect("the cluster answers");
            drop_what_is_over(&admin).await;
            admin.script("creating a database", &format!("CREATE DATABASE {name}")).await.expect("a new database");
        }
        let mut database = Database::opened(from, to, &name).await;
        if let Roles::Least { replica } = roles {
            database.under_least_roles(replica).await;
        }
        database.tables = tables.iter().map(|table| (*table).to_owned()).collect();
        database.at_destination("SET search_path = public").await;
        database.at_source("SET search_path = public").await;
        database.at_source(schema).await;
        database
    }

    /// From now on headwater connects as the roles of docs/roles.md. Before the schema is made.
    async fn under_least_roles(&mut self, replica: bool) {
        roles::make(&self.name, &self.source, &self.destination, replica).await;
        self.source_url = roles::as_role(&self.source_url, &roles::reader(&self.name));
        self.destination_url = roles::as_role(&self.destination_url, &roles::writer(&self.name));
    }

    /// Opens the source's session again, after its server was restarted.
    pub async fn reconnect_source(&mut self, cluster: &Cluster) {
        self.source = cluster.connect(&self.name).await.expect("the source answers again");
        self.at_source("SET search_path = public").await;
    }

    /// Opens the destination's session again, after its server was restarted.
    pub async fn reconnect_destination(&mut self, cluster: &Cluster) {
        self.destination = cluster.connect(&self.name).await.expect("the destination answers again");
        self.at_destination("SET search_path = public").await;
    }

    /// Databases of this name that are there already on the shared clusters.
    pub async fn existing(name: &str) -> Database {
        Database::opened(source().await, destination().await, name).await
    }

    async fn opened(from: &Cluster, to: &Cluster, name: &str) -> Database {
        let destination = to.connect(name).await.expect("the new destination database");
        // 14 lets everybody create there, so that code of anybody could run.
        run(&destination, "REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
        Database {
            source: from.connect(name).await.expect("the new source database"),
            destination,
            source_url: from.url(name),
            destination_url: to.url(name),
            tables: Vec::new(),
            over: Over::of(name),
            name: name.to_owned(),
        }
    }

    /// Runs SQL at the source.
    pub async fn at_source(&self, sql: &str) {
        run(&self.source, sql).await;
    }

    /// Runs SQL at the destination.
    pub async fn at_destination(&self, sql: &str) {
        run(&self.destination, sql).await;
    }

    /// One value from the destination, as text.
    pub async fn destination_value(&self, sql: &str) -> Option<String> {
        value(&self.destination, sql).await
    }

    /// One value from the source, as text.
    pub async fn source_value(&self, sql: &str) -> Option<String> {
        value(&self.source, sql).await
    }

    /// The source's major version.
    pub async fn source_major(&self) -> u32 {
        major(&self.source).await
    }

    /// The destination's major version.
    pub async fn destination_major(&self) -> u32 {
        major(&self.destination).await
    }

    /// Waits until the rows of a table are the source's.
    pub async fn becomes_equal(&self, table: &str) {
        let rows = format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM {table} t");
        super::eventually(&format!("table {table} is equal"), || self.answer_alike(&rows)).await;
    }

    /// That both ends answer a question alike.
    pub async fn answer_alike(&self, sql: &str) -> Option<()> {
        (self.destination_value(sql).await == self.source_value(sql).await).then_some(())
    }

    /// A stream that has brought one change and is stopped then.
    pub async fn follows_then_stops(&self, change: &str) {
        let service = super::Setup::of(self).start();
        service.streams().await;
        self.at_source(change).await;
        self.assert_catches_up().await;
        service.stop().await;
    }

    /// Waits until the destination holds everything that is committed at the source now.
    pub async fn caught_up(&self) {
        let now = self.source_value("SELECT pg_current_wal_lsn()::text").await.expect("a position");
        // Something must come after it, or an idle source would say so only after seconds.
        self.at_source("SELECT pg_logical_emit_message(true, 'test', 'caught up?')").await;
        let sql = format!(
            "SELECT position::text || CASE WHEN position >= '{now}' THEN ' reached' ELSE '' END FROM headwater.position"
        );
        // On a busy machine a backlog takes as long as it takes: what must not be is that it stands still.
        let (mut known, mut since) = (None, Instant::now());
        loop {
            let position = value_if_any(&self.destination, &sql).await;
            if position.as_ref().is_some_and(|position| position.ends_with("reached")) {
                return;
            }
            if position != known {
                (known, since) = (position, Instant::now());
            }
            let waited = since.elapsed();
            assert!(
                waited < PATIENCE,
                "waited {PATIENCE:?} in vain until the destination's position {known:?} moved towards {now}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the bookkeeping remembers a transaction ID that the source has reached by now.
    pub async fn transaction_id_is_remembered(&self) {
        let reached = self.source_value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text").await.expect("an ID");
        let remembered = format!("SELECT (source_xid >= {reached})::text FROM headwater.stream");
        eventually("the transaction ID is remembered", || async {
            (self.destination_value(&remembered).await.as_deref() == Some("true")).then_some(())
        })
        .await;
    }

    /// The same, once a service that was just started has a position.
    pub async fn caught_up_when_there(&self) {
        let sql = "SELECT (to_regclass('headwater.position') IS NOT NULL)::text";
        eventually("there is bookkeeping", || async {
            (value_if_any(&self.destination, sql).await.as_deref() == Some("true")).then_some(())
        })
        .await;
        self.caught_up().await;
    }

    /// Compares all tables by content.
    pub async fn assert_equal(&self) {
        compare::assert_equal(&self.source, &self.destination, &self.tables).await;
    }

    /// Waits until everything is there, then compares.
    pub async fn assert_catches_up(&self) {
        self.caught_up().await;
        self.assert_equal().await;
    }
}

/// A session at this address, if somebody answers there.
pub async fn connect(url: &str) -> Option<SqlClient> {
    let connection = ConnectionSettings::parse(url, &Environment::new()).expect("an address");
    let sql = Sql { connection, purpose: "observer", timeout: Duration::from_secs(60) };
    let client = sql.connect().await.ok()?;
    client.batch("setting up a session", "SET search_path = public").await.ok()?;
    Some(client)
}

async fn run(client: &SqlClient, sql: &str) {
    if let Err(error) = client.script("a test's statement", sql).await {
        panic!("{error} ({:?}) in:\n{sql}", error.server());
    }
}

async fn major(client: &SqlClient) -> u32 {
    let version = value(client, "SELECT current_setting('server_version_num')").await.expect("a version");
    version.parse::<u32>().expect("a number") / 10_000
}

async fn value_if_any(client: &SqlClient, sql: &str) -> Option<String> {
    let row = client.query_opt("a test's question", sql, &[]).await.ok()??;
    row.get(0).unwrap()
}

async fn value(client: &SqlClient, sql: &str) -> Option<String> {
    match client.query_one("a test's question", sql, &[]).await {
        Ok(row) => row.get(0).unwrap(),
        Err(error) => panic!("{error} in:\n{sql}"),
    }
}

/// Creates a partitioned table with one partition, and a row in it.
pub fn partitioned_table(name: &str) -> String {
    format!(
        "CREATE TABLE {name} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (10); INSERT INTO {name} VALUES (1, 'v');"
    )
}
