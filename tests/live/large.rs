//! A transaction of a million rows: one destination transaction, in bounded memory.
//!
//! `make large` runs it with five million, in a release build. HEADWATER_LARGE_ROWS says how many.

use std::time::{Duration, Instant};

use crate::support::{Database, Setup, eventually};

/// Resident memory may not rise above this, whatever the transaction's size.
const RESIDENT_MAX: u64 = 300 << 20;

/// Ten minutes are enough for five million rows on a busy machine.
const ARRIVAL_MAX: Duration = Duration::from_secs(600);

fn rows(usually: i64) -> i64 {
    std::env::var("HEADWATER_LARGE_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(usually)
}

/// Waits until the rows are visible, which they must be all at once; returns how long that took, and the spool's most.
async fn arrival(database: &Database, service: &crate::support::Service, rows: i64, since: Instant) -> (Duration, f64) {
    let reader = crate::support::destination().await.connect(&database.name).await.unwrap();
    let mut spooled: f64 = 0.0;
    loop {
        spooled = spooled.max(service.metric("headwater_spool_bytes").await.unwrap_or(0.0));
        let row = reader.query_one("looking for a row", "SELECT EXISTS (SELECT FROM public.t)", &[]).await.unwrap();
        if row.get(0).unwrap() {
            break;
        }
        assert!(since.elapsed() < ARRIVAL_MAX, "the transaction does not arrive");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = since.elapsed();
    let row = reader.query_one("counting", "SELECT count(*) FROM public.t", &[]).await.unwrap();
    assert_eq!(row.get::<i64>(0).unwrap(), rows, "visible all at once");
    (took, spooled)
}

async fn large(name: &str, rows: i64, sections: &[&str]) {
    let database = Database::new(name, &["t"], "CREATE TABLE t (id bigint PRIMARY KEY, a int, body text)").await;
    let mut setup = Setup::of(&database);
    setup.sections.extend(sections.iter().map(|section| (*section).to_owned()));
    let service = setup.start();
    service.streams().await;
    let insert = format!("INSERT INTO t SELECT i, i % 1000, repeat(md5(i::text), 3) FROM generate_series(1, {rows}) i");
    let began = Instant::now();
    let inserting = async {
        database.at_source(&insert).await;
        Instant::now()
    };
    let (committed, (took, spooled)) = tokio::join!(inserting, arrival(&database, &service, rows, began));
    let resident = service.resident_max_bytes();
    println!(
        "{name}: {rows} rows, committed after {:.1} s, visible {:.1} s later; at most {} MB resident, {:.0} MB spooled",
        (committed - began).as_secs_f64(),
        (began + took - committed).as_secs_f64(),
        resident >> 20,
        spooled / 1_048_576.0
    );
    assert!(resident < RESIDENT_MAX, "{} MB resident", resident >> 20);
    database
        .at_source(
            "BEGIN; UPDATE t SET a = a + 1 WHERE id % 10 = 0 AND id < 1000000;
             DELETE FROM t WHERE id % 10 = 1 AND id < 1000000; COMMIT",
        )
        .await;
    database.assert_catches_up().await;
    let resident = service.resident_max_bytes();
    assert!(resident < RESIDENT_MAX, "{} MB resident", resident >> 20);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_transaction_of_a_million_rows_is_applied_whole_in_bounded_memory() {
    large("million", rows(1_000_000), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_large_transaction_that_comes_at_its_commit_is_applied_whole_in_bounded_memory() {
    // Without a directory that can be written there is no spool, and nothing is streamed.
    large("atcommit", rows(300_000), &["[spool]\ndir = \"/dev/null/spool\""]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_large_row_is_copied_in_pieces_and_streamed_in_memory_for_one_of_it() {
    // The largest that a server sends in one message is near 1 GB.
    let megabytes = std::env::var("HEADWATER_LARGE_ROW_MB").ok().and_then(|mb| mb.parse().ok()).unwrap_or(64_u64);
    let schema = format!(
        "CREATE TABLE t (id int PRIMARY KEY, n int, body bytea); ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
         INSERT INTO t SELECT 1, 1, convert_to(repeat('x', {megabytes} << 20), 'UTF8');
         INSERT INTO t SELECT i, i, '\\x00' FROM generate_series(2, 1000) i"
    );
    let database = Database::new("onerow", &["t"], &schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let resident = service.resident_max_bytes();
    println!("a row of {megabytes} MB: at most {} MB resident", resident >> 20);
    // It is passed on in pieces.
    assert!(resident < 100 << 20, "{} MB resident", resident >> 20);
    let content =
        "SELECT count(*) || ' ' || sum(length(body)) || ' ' || md5(string_agg(md5(body), '' ORDER BY id)) FROM t";
    assert_eq!(database.source_value(content).await, database.destination_value(content).await);
    // The stream brings it in one message. It is held once: as it came, then as it was read back from the spool, from where it is sent.
    database
        .at_source(&format!(
            "INSERT INTO t SELECT 2000 + i, 1, CASE i WHEN 5 THEN convert_to(repeat('y', {megabytes} << 20), 'UTF8') ELSE '\\x01' END
             FROM generate_series(0, 9) i"
        ))
        .await;
    database.caught_up().await;
    assert_eq!(database.source_value(content).await, database.destination_value(content).await);
    let resident = service.resident_max_bytes();
    println!("through the stream: at most {} MB resident", resident >> 20);
    assert!(resident < (100 + megabytes) << 20, "{} MB resident", resident >> 20);
    eventually("its memory is given back", || async { (service.resident_bytes() < 60 << 20).then_some(()) }).await;
    // Its value is not in the stream when something else of the row changes.
    database.at_source("UPDATE t SET n = -1 WHERE id = 1").await;
    database.caught_up().await;
    let changed = "SELECT n || ' ' || length(body) FROM t WHERE id = 1";
    assert_eq!(database.source_value(changed).await, database.destination_value(changed).await);
    service.stop().await;
}
