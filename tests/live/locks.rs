//! The room for locks that all sessions of a server share: what a copy needs of it is compared first, and nobody else ever runs
//! out of it because of us.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use headwater::commands::demo::Cluster;

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
async fn a_copy_whose_locks_a_server_has_no_room_for_is_refused_before_anything_is_locked() {
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
async fn a_copy_that_fits_takes_no_lock_from_others_and_one_whose_differences_do_not_is_refused() {
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
