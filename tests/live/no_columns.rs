//! Tables without columns: PostgreSQL has them, and they halt nothing.

use crate::support::{Database, Setup};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 't');
    CREATE TABLE e (); ALTER TABLE e REPLICA IDENTITY FULL; INSERT INTO e DEFAULT VALUES;
    CREATE TABLE d (a int, b text); ALTER TABLE d REPLICA IDENTITY FULL; INSERT INTO d VALUES (1, 'd');";

/// What both ends have of the tables without columns.
const COUNTS: &str = "SELECT (SELECT count(*) FROM e) || ' ' || (SELECT count(*) FROM d)";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_columns_is_copied_and_followed_and_halts_no_other() {
    let database = Database::new("nocolumns", &["t", "e", "d"], SCHEMA).await;
    let setup = Setup::of(&database);
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO e DEFAULT VALUES; INSERT INTO e DEFAULT VALUES; UPDATE t SET v = 'u'").await;
    database.caught_up().await;
    assert_eq!(database.destination_value(COUNTS).await.as_deref(), Some("3 1"));
    // The last column goes while the stream runs.
    database.at_source("ALTER TABLE d DROP COLUMN a; ALTER TABLE d DROP COLUMN b; INSERT INTO d DEFAULT VALUES").await;
    database.at_source("UPDATE t SET v = 'w'; TRUNCATE e; INSERT INTO e DEFAULT VALUES").await;
    database.caught_up().await;
    crate::support::suspension::all_live(&database).await;
    assert_eq!(database.destination_value(COUNTS).await, database.source_value(COUNTS).await);
    service.stop().await;
    database.at_source("UPDATE t SET v = 'x'; INSERT INTO d DEFAULT VALUES").await;
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    assert_eq!(database.destination_value(COUNTS).await, database.source_value(COUNTS).await);
    assert_eq!(database.destination_value("SELECT v FROM t").await.as_deref(), Some("x"));
    assert!(!service.log().contains("scalar"), "{}", service.log());
    setup.command(&["check"]).await.exits(0);
    setup.command(&["verify"]).await.exits(0);
    service.stop().await;
}
