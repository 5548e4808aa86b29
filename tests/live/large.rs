//! A transaction of a million rows: one destination transaction, in bounded memory.

use crate::support::{Database, Setup};

/// Resident memory may not rise above this, whatever the transaction's size.
const RESIDENT_MAX: u64 = 300 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_a_million_rows_is_applied_whole_in_bounded_memory() {
    let database = Database::new("million", &["t"], "CREATE TABLE t (id bigint PRIMARY KEY, a int, body text)").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let reader = crate::support::destination().await.connect(&database.name).await.unwrap();
    let insert = "INSERT INTO t SELECT i, i % 1000, repeat(md5(i::text), 3) FROM generate_series(1, 1000000) i";
    database.at_source(insert).await;
    let mut seen = Vec::new();
    loop {
        let row = reader.query_one("counting", "SELECT count(*) FROM public.t", &[]).await.unwrap();
        let count: i64 = row.get(0);
        seen.push(count);
        if count > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(seen.last(), Some(&1_000_000), "visible all at once");
    let resident = service.resident_max_bytes();
    println!("resident memory at most {} MB", resident >> 20);
    assert!(resident < RESIDENT_MAX, "{} MB resident", resident >> 20);
    database
        .at_source("BEGIN; UPDATE t SET a = a + 1 WHERE id % 10 = 0; DELETE FROM t WHERE id % 10 = 1; COMMIT")
        .await;
    database.assert_catches_up().await;
    let resident = service.resident_max_bytes();
    assert!(resident < RESIDENT_MAX, "{} MB resident", resident >> 20);
    service.stop().await;
}
