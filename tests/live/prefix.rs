//! A reader of the destination sees only states that the source was in, in the order in which it was in them.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use headwater::session::SqlClient;

use crate::support::{Database, Script, Setup, eventually, seed};

const TABLES: &[&str] = &["left_accounts", "right_accounts", "counter", "journal"];

/// Transfers keep the sum over two tables; every transaction counts itself and writes its number into a journal.
const SCHEMA: &str = "
    CREATE TABLE left_accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE right_accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL);
    CREATE TABLE journal (n bigint PRIMARY KEY, writer int);
    INSERT INTO left_accounts SELECT i, 1000 FROM generate_series(1, 50) i;
    INSERT INTO right_accounts SELECT i, 1000 FROM generate_series(1, 50) i;
    INSERT INTO counter VALUES (1, 0);";

const SUM: i64 = 100_000;

async fn write(client: &SqlClient, writer: usize, rng: &mut Rng, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let (from, to, amount) = (rng.u32(1..=50), rng.u32(1..=50), rng.i32(-50..50));
        let mut script = vec![
            "BEGIN; SET LOCAL search_path = public".to_owned(),
            // The counter's lock makes the commit order the counting order.
            "UPDATE counter SET n = n + 1".to_owned(),
            format!("INSERT INTO journal SELECT n, {writer} FROM counter"),
            format!("UPDATE left_accounts SET balance = balance - {amount} WHERE id = {from}"),
        ];
        if rng.u32(..5) == 0 {
            script.push("SAVEPOINT s; UPDATE right_accounts SET balance = 0; ROLLBACK TO SAVEPOINT s".to_owned());
        }
        script.push(format!("UPDATE right_accounts SET balance = balance + {amount} WHERE id = {to}"));
        script.push(if rng.u32(..10) == 0 { "ROLLBACK" } else { "COMMIT" }.to_owned());
        if client.script("a transfer", &script.join("; ")).await.is_err() {
            let _ = client.batch("rolling back", "ROLLBACK").await;
        }
    }
}

/// Reads one state; `None` before the tables are there.
async fn read(client: &SqlClient) -> Option<i64> {
    let sql = "SELECT (SELECT n FROM public.counter), (SELECT count(*) FROM public.journal),
                      (SELECT COALESCE(max(n), 0) FROM public.journal),
                      ((SELECT sum(balance) FROM public.left_accounts) + (SELECT sum(balance) FROM public.right_accounts))::bigint";
    let row = match client.query_one("reading a state", sql, &[]).await {
        Ok(row) => row,
        // Only before the first snapshot is published may a table be missing.
        Err(error) if error.code().is_some_and(|code| code.as_str() == "42P01") => return None,
        Err(error) => panic!("{error}"),
    };
    let (counted, journal, newest, sum): (Option<i64>, i64, i64, Option<i64>) =
        (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap(), row.get(3).unwrap());
    let counted = counted.expect("the counter's row is there as soon as its table is");
    assert_eq!((journal, newest, sum), (counted, counted, Some(SUM)), "a state that the source was never in");
    Some(counted)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_that_a_reader_sees_is_a_prefix_of_the_sources_commits() {
    let seed = seed("every_state_that_a_reader_sees");
    let database = Database::new("prefix", TABLES, SCHEMA).await;
    let done = AtomicBool::new(false);
    let highest = AtomicI64::new(-1);
    let mut writers = Vec::new();
    for _ in 0..3 {
        writers.push(crate::support::source().await.connect(&database.name).await.unwrap());
    }
    let reader = crate::support::destination().await.connect(&database.name).await.unwrap();

    let writing = async {
        let mut rngs: Vec<Rng> = (0..3).map(|n| Rng::with_seed(seed + n)).collect();
        let [a, b, c] = rngs.as_mut_slice() else { unreachable!() };
        tokio::join!(write(&writers[0], 0, a, &done), write(&writers[1], 1, b, &done), write(&writers[2], 2, c, &done));
    };
    let reading = async {
        let mut states = 0_u64;
        while !done.load(Ordering::Relaxed) {
            if let Some(counted) = read(&reader).await {
                let before = highest.fetch_max(counted, Ordering::Relaxed);
                assert!(counted >= before, "the destination went back from {before} to {counted}");
                states += 1;
            }
        }
        states
    };
    let running = async {
        let mut rng = Rng::with_seed(seed);
        // The snapshot happens while the writers write; then it is killed and stopped in between.
        for round in 0..6 {
            let mut service = Setup::of(&database).start();
            service.streams().await;
            let until = highest.load(Ordering::Relaxed) + rng.i64(50..200);
            eventually("the destination has moved on", || async {
                (highest.load(Ordering::Relaxed) >= until).then_some(())
            })
            .await;
            if round % 2 == 0 { service.kill() } else { service.stop().await }
        }
        done.store(true, Ordering::Relaxed);
    };
    let began = Instant::now();
    let ((), states, ()) = tokio::join!(writing, reading, running);
    assert!(states > 100, "only {states} states were read in {:?}", began.elapsed());
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_concurrent_writes_joins_the_stream_without_a_gap_or_an_overlap() {
    let seed = seed("a_snapshot_under_concurrent_writes");
    let source = crate::support::source().await;
    for round in 0..4 {
        let database = Database::new("joins", TABLES, SCHEMA).await;
        let done = AtomicBool::new(false);
        let mut writers = Vec::new();
        for _ in 0..2 {
            writers.push(source.connect(&database.name).await.unwrap());
        }
        let writing = async {
            let (mut a, mut b) = (Rng::with_seed(seed + round), Rng::with_seed(seed - round));
            tokio::join!(write(&writers[0], 0, &mut a, &done), write(&writers[1], 1, &mut b, &done));
        };
        let running = async {
            let service = Setup::of(&database).start();
            service.streams().await;
            let until = Instant::now() + Duration::from_millis(200);
            while Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            done.store(true, Ordering::Relaxed);
            service
        };
        let ((), service) = tokio::join!(writing, running);
        database.assert_catches_up().await;
        service.stop().await;
    }
}
