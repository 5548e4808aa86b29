//! The room for locks that all sessions of a server share: what a copy needs of it is compared first, and nobody else ever runs
//! out of it because of us.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use headwater::commands::demo::{Cluster, StopMode};

use crate::support::{Database, Service, Setup, destination, eventually, new_destination, new_source, source};

/// Room for 1,000 locks by the documented reckoning; 900 of them may be ours.
const SMALL: &[(&str, &str)] = &[
    ("max_locks_per_transaction", "10"),
    ("max_connections", "100"),
    ("max_wal_senders", "10"),
    ("max_worker_processes", "4"),
];

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("t{n}")).collect()
}

/// Databases with so many tables of a key and a text, made in steps that every server has room for.
async fn with_tables(from: &Cluster, to: &Cluster, name: &str, count: usize) -> Database {
    let names = names(count);
    let tables: Vec<&str> = names.iter().map(String::as_str).collect();
    let database = Database::on(from, to, name, &tables, "SELECT").await;
    for names in names.chunks(20) {
        let create = names.iter().map(|t| format!("CREATE TABLE {t} (id int PRIMARY KEY, v text)")).collect::<Vec<_>>();
        let fill = names.iter().map(|t| format!("INSERT INTO {t} VALUES (1, 'a'), (2, 'b')")).collect::<Vec<_>>();
        database.at_source(&create.join(";")).await;
        database.at_source(&fill.join(";")).await;
    }
    database
}

/// A client that takes locks again and again, as many as the server gives every session, until it is told to stop.
struct Client {
    over: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<u32>,
}

impl Client {
    async fn of(cluster: &Cluster, database: &Database) -> Client {
        let session = cluster.connect(&database.name).await.expect("a session");
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let running = tokio::spawn(async move {
            let mut rounds = 0;
            while !ends.load(Ordering::Relaxed) {
                let sql = "SELECT count(pg_advisory_xact_lock(7000 + n)) FROM generate_series(1, 10) n";
                session.query("taking locks", sql, &[]).await.expect("a client of the server gets its locks");
                rounds += 1;
            }
            rounds
        });
        Client { over, running }
    }

    async fn ends(self) {
        self.over.store(true, Ordering::Relaxed);
        let rounds = self.running.await.expect("no lock was refused");
        assert!(rounds > 0, "it has run");
    }
}

async fn streams_at_last(service: &Service) {
    eventually("headwater has copied", || async { service.log().contains("streaming state=").then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_that_needs_more_locks_than_a_server_has_is_refused_before_locking() {
    let small_source = new_source(SMALL).await;
    let small = new_destination(SMALL).await;
    // A table and its index each at the destination, a table each at the source.
    for (from, to, count, end) in
        [(source().await, &small, 450, "destination"), (&small_source, destination().await, 900, "source")]
    {
        let database = with_tables(from, to, &format!("noroom{end}"), count).await;
        let client = Client::of(if end == "source" { from } else { to }, &database).await;
        let setup = Setup::of(&database);
        let needs = format!("the copy of {count} tables needs about 1000 locks at once at the {end}");
        let hint = "ALTER SYSTEM SET max_locks_per_transaction = 64;";
        setup.command(&["check"]).await.exits(1).says(&[&needs, hint]);
        let log = setup.start().ends_with(1).await;
        assert!(log.contains(&needs) && log.contains(hint), "{log}");
        client.ends().await;
        let slots = format!("SELECT count(*)::text FROM pg_replication_slots WHERE database = '{}'", database.name);
        assert_eq!(database.source_value(&slots).await.as_deref(), Some("0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn old_staging_is_dropped_in_steps_that_leave_locks_to_others() {
    let small = new_destination(SMALL).await;
    let database = with_tables(source().await, &small, "sweepsteps", 1).await;
    // What an attempt with many tables leaves.
    database
        .at_destination(
            "CREATE SCHEMA headwater_staging_0123456789abcdef;
             COMMENT ON SCHEMA headwater_staging_0123456789abcdef
             IS 'Staging of the headwater replicator: dropped with everything in it when the copy has ended'",
        )
        .await;
    for start in (0..400).step_by(20) {
        let sql: Vec<String> = (start..start + 20)
            .map(|n| {
                format!("CREATE TABLE headwater_staging_0123456789abcdef.t{n} (id serial PRIMARY KEY, v text UNIQUE)")
            })
            .collect();
        database.at_destination(&sql.join(";")).await;
    }
    let client = Client::of(&small, &database).await;
    let service = Setup::of(&database).start();
    streams_at_last(&service).await;
    client.ends().await;
    let left = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater\\_staging%'";
    assert_eq!(database.destination_value(left).await.as_deref(), Some("0"));
    assert!(!service.log().contains("out of shared memory"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_leaves_locks_for_others_and_one_that_cannot_is_refused() {
    let small_source = new_source(SMALL).await;
    let small = new_destination(SMALL).await;
    let database = with_tables(&small_source, &small, "fits", 140).await;
    let (at_source, at_destination) = (Client::of(&small_source, &database).await, Client::of(&small, &database).await);
    let setup = Setup::of(&database);
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    streams_at_last(&service).await;
    service.stop().await;
    // Nothing differs, so the tables themselves are not written.
    let service = setup.clone().argument("--resnapshot").start();
    streams_at_last(&service).await;
    service.stop().await;
    // Now every table does: to write them all in one transaction takes more than there is.
    for names in names(140).chunks(20) {
        let sql: Vec<String> = names.iter().map(|t| format!("UPDATE {t} SET v = 'other' WHERE id = 1")).collect();
        database.at_destination(&sql.join(";")).await;
    }
    let log = setup.clone().argument("--resnapshot").start().ends_with(1).await;
    assert!(log.contains("making 140 tables equal needs about 560 locks at once at the destination"), "{log}");
    assert!(log.contains("ALTER SYSTEM SET max_locks_per_transaction = "), "{log}");
    at_source.ends().await;
    at_destination.ends().await;
}

/// Partitions of the tables below.
const PARTITIONS: usize = 200;

/// Room for 400 locks by the documented reckoning.
const SMALLER: (&str, &str) = ("max_locks_per_transaction", "10");

/// A table with many partitions, made in steps.
async fn with_partitions(from: &Cluster, to: &Cluster, name: &str) -> Database {
    let schema = "CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)";
    let database = Database::on(from, to, name, &["parted"], schema).await;
    let partition =
        |n: &usize| format!("CREATE TABLE part{n} PARTITION OF parted FOR VALUES FROM ({n}) TO ({})", n + 1);
    for step in (0..PARTITIONS).collect::<Vec<_>>().chunks(30) {
        database.at_source(&step.iter().map(partition).collect::<Vec<_>>().join(";")).await;
        let ends = (step[0], step[0] + step.len() - 1);
        database
            .at_source(&format!("INSERT INTO parted SELECT n, 'v' FROM generate_series({}, {}) n", ends.0, ends.1))
            .await;
    }
    database
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn verify_takes_no_more_locks_than_there_are_and_says_when_too_few_are_left() {
    let mut source = new_source(&[("max_connections", "40")]).await;
    let mut database = with_partitions(&source, destination().await, "fewlocks").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    streams_at_last(&service).await;
    service.stop().await;
    source.set(SMALLER.0, SMALLER.1);
    source.stop(StopMode::Fast).await.unwrap();
    source.start().await.unwrap();
    database.reconnect_source(&source).await;
    let client = Client::of(&source, &database).await;
    let service = setup.start();
    service.streams().await;
    // Partition by partition there is room, also to find a row that differs; not so to read it by its key.
    setup.command(&["verify"]).await.exits(0).says(&["equal"]);
    database.at_destination("UPDATE parted SET v = 'other' WHERE id = 7").await;
    setup.command(&["verify"]).await.exits(1).says(&["differ", "(id)=(7)"]);
    let hint = "ALTER SYSTEM SET max_locks_per_transaction = ";
    let repair = setup.command(&["verify", "--repair"]).await.exits(1);
    repair.says(&["repairing 1 table needs about 502 locks at once at the source", hint]);
    // A role that may read the root only reads all partitions at once.
    let role = format!("root_{}", database.name);
    database.at_source(&format!("CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON parted TO {role}")).await;
    let url = format!("postgresql://{role}@127.0.0.1:{}/{}", source.port(), database.name);
    let through_root = Setup { source_url: url, ..setup.clone() };
    let refused = through_root.command(&["verify"]).await.exits(1);
    refused.says(&["comparing table public.parted needs about 502 locks at once at the source", hint]);
    client.ends().await;
    assert!(!service.log().contains("out of shared memory"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_a_table_locks_none_of_its_partitions() {
    let database = with_partitions(source().await, destination().await, "looked").await;
    let holder = source().await.connect(&database.name).await.expect("a session");
    holder.batch("a lock", "BEGIN; LOCK TABLE public.part199 IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let setup = Setup::of(&database);
    let looking = tokio::spawn(async move { setup.command(&["check"]).await });
    // Its size is asked for under a lock that is given back at once, so the question waits here, with all that it holds.
    let waiting = "SELECT max((SELECT count(*) FROM pg_locks g JOIN pg_inherits i ON i.inhrelid = g.relation
                               WHERE g.pid = w.pid AND g.granted))::text
                   FROM pg_locks w WHERE NOT w.granted AND w.relation = 'public.part199'::regclass";
    let held = eventually("check looks at the partition", || async { database.source_value(waiting).await }).await;
    assert_eq!(held, "0", "locks of other partitions");
    holder.batch("its end", "ROLLBACK").await.unwrap();
    looking.await.unwrap().exits(0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_start_waits_for_no_lock_on_tables_that_are_followed() {
    let database = with_partitions(source().await, destination().await, "startlocked").await;
    database.at_source("CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE free (id int PRIMARY KEY)").await;
    let tables = ["parted", "plain", "free"].map(str::to_owned).to_vec();
    let setup = Setup { tables, ..Setup::of(&database) }.destination("lock_timeout = \"500ms\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    // As VACUUM FULL does for hours.
    let holder = source().await.connect(&database.name).await.expect("a session");
    holder.batch("a lock", "BEGIN; LOCK TABLE public.part199, public.plain IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO free VALUES (1)").await;
    eventually("a row of another table is here", || async {
        database.destination_value("SELECT max(id)::text FROM free").await
    })
    .await;
    let checked = setup.command(&["check"]).await.exits(0);
    checked.says(&[" is locked at the source", "ACCESS EXCLUSIVE is held by process"]);
    holder.batch("its end", "ROLLBACK").await.unwrap();
    database.assert_catches_up().await;
    service.stop().await;
}
