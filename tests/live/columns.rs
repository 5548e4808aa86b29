//! Columns whose names prove nothing: the source's catalog is read later than the stream, or earlier, or tells nothing new.

use crate::support::suspension::{all_live, copied_again};
use crate::support::{Database, Script, Setup, eventually, new_source};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t SELECT i, i, 100 + i FROM generate_series(1, 9) i;
    CREATE TABLE u (id int PRIMARY KEY, a int); INSERT INTO u SELECT i, i FROM generate_series(1, 9) i;";
const TABLES: &[&str] = &["t", "u"];

/// The rows of a table, over the columns that the source has.
async fn assert_same_rows(database: &Database, table: &str) {
    let columns = format!(
        "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped"
    );
    let columns = database.source_value(&columns).await.expect("columns");
    let rows = format!("SELECT string_agg(ROW({columns})::text, ' ' ORDER BY id) FROM {table}");
    assert_eq!(
        database.destination_value(&rows).await,
        database.source_value(&rows).await,
        "table {table} ({columns})"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn columns_are_not_taken_for_each_other_when_the_catalog_is_two_changes_ahead() {
    let histories: &[(&str, &[&str])] = &[
        // What is called a in the stream is b, and is called z in the catalog.
        (
            "t",
            &[
                "ALTER TABLE t DROP COLUMN a",
                "ALTER TABLE t RENAME COLUMN b TO a",
                "INSERT INTO t VALUES (10, 1000)",
                "ALTER TABLE t RENAME COLUMN a TO z",
                "INSERT INTO t VALUES (11, 1100)",
            ],
        ),
        // The column of before is gone, and the new one has its name for a while.
        (
            "u",
            &[
                "ALTER TABLE u DROP COLUMN a; ALTER TABLE u ADD COLUMN a int DEFAULT 7",
                "INSERT INTO u VALUES (10, 1000)",
                "ALTER TABLE u RENAME COLUMN a TO c",
                "INSERT INTO u VALUES (11, 1100)",
            ],
        ),
        // A column that is renamed, then dropped, and another of its new name.
        (
            "u",
            &[
                "ALTER TABLE u RENAME COLUMN a TO c",
                "INSERT INTO u VALUES (10, 1000)",
                "ALTER TABLE u DROP COLUMN c; ALTER TABLE u ADD COLUMN c int DEFAULT 7",
                "INSERT INTO u VALUES (11, 1100)",
            ],
        ),
        // Names that have changed hands when the row comes, and have their owners back when the catalog is asked.
        (
            "t",
            &[
                "BEGIN; ALTER TABLE t RENAME COLUMN a TO x; ALTER TABLE t RENAME COLUMN b TO a;
                 ALTER TABLE t RENAME COLUMN x TO b; COMMIT",
                "INSERT INTO t (id, a, b) VALUES (10, 1000, 1)",
                "BEGIN; ALTER TABLE t RENAME COLUMN a TO x; ALTER TABLE t RENAME COLUMN b TO a;
                 ALTER TABLE t RENAME COLUMN x TO b; COMMIT",
                "INSERT INTO t (id, a, b) VALUES (11, 1, 1100)",
            ],
        ),
    ];
    for (number, (table, history)) in histories.iter().enumerate() {
        let database = Database::new(&format!("columnsahead{number}"), TABLES, SCHEMA).await;
        Setup::of(&database).start_streaming(&database).await.stop().await;
        for statement in *history {
            database.at_source(statement).await;
        }
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        all_live(&database).await;
        database.caught_up().await;
        assert_same_rows(&database, table).await;
        service.stop().await;
    }
}

/// A source that sends transactions of more than 64 kB before they commit.
async fn streams_early(database: &Database) {
    database.at_source(&format!("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'", database.name)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_column_dropped_and_added_around_a_streamed_transaction_is_noticed() {
    let rows = "INSERT INTO u (id) SELECT i FROM generate_series(1000, 5000) i";
    let again = "ALTER TABLE u DROP COLUMN a; ALTER TABLE u ADD COLUMN a int DEFAULT 7";
    let inside = format!("BEGIN; {again}; {rows}; COMMIT");
    let between =
        format!("BEGIN; {rows}; {again}; INSERT INTO u (id) SELECT i FROM generate_series(6000, 9000) i; COMMIT");
    let before = format!("{again}; BEGIN; {rows}; COMMIT");
    // Applied at its commit, and ahead of it, where the role may.
    for (number, (change, memory)) in
        [(&inside, "64MB"), (&inside, "100kB"), (&before, "100kB"), (&between, "64MB"), (&between, "100kB")]
            .iter()
            .enumerate()
    {
        let database = Database::with_replica_role(&format!("columnsstream{number}"), TABLES, SCHEMA).await;
        streams_early(&database).await;
        let spool = std::env::temp_dir().join("headwater-tests").join("spool");
        let section = format!("[spool]\ndir = {spool:?}\nmemory_bytes_max = \"{memory}\"");
        let service = Setup::of(&database).section(&section).start();
        service.streams().await;
        database.caught_up().await;
        database.at_source(change).await;
        copied_again(&database).await;
        let sql =
            format!("SELECT stream_txns::text FROM pg_stat_replication_slots WHERE slot_name = '{}'", database.name);
        assert_ne!(database.source_value(&sql).await.as_deref(), Some("0"), "{change}: it was not streamed");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_that_is_followed_by_a_streamed_reload_swallows_no_later_change() {
    let database = Database::new("columnsreload", TABLES, SCHEMA).await;
    streams_early(&database).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    database.at_source("BEGIN; TRUNCATE u; INSERT INTO u SELECT i, i FROM generate_series(1, 3000) i; COMMIT").await;
    database.caught_up().await;
    database
        .at_source(
            "ALTER TABLE u DROP COLUMN a; ALTER TABLE u ADD COLUMN a int DEFAULT 7; INSERT INTO u VALUES (9999, 1)",
        )
        .await;
    copied_again(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_change_that_waits_for_a_standby_is_followed_once_visible() {
    let source = new_source(&[]).await;
    let destination = crate::support::destination().await;
    let database = Database::on(&source, destination, "columnssync", TABLES, SCHEMA).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    let admin = source.connect(&database.name).await.unwrap();
    admin
        .batch("naming a standby that is not there", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        .await
        .unwrap();
    admin.batch("reloading", "SELECT pg_reload_conf()").await.unwrap();
    // The setting counts once the checkpointer has seen it, not when a session shows it: a commit that waits tells.
    let probe = source.connect(&database.name).await.unwrap();
    let probing = tokio::spawn(async move {
        while probe.batch("a probe", "SELECT pg_logical_emit_message(true, 'probe', '')").await.is_ok() {}
    });
    eventually("a commit waits for the standby", || async {
        let waiting = "SELECT (count(*) > 0)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        (database.source_value(waiting).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    probing.abort();
    eventually("the session that will commit knows of the standby", || async {
        let names = database.source_value("SHOW synchronous_standby_names").await;
        (names.as_deref() == Some("nobody")).then_some(())
    })
    .await;
    let change = "ALTER TABLE u DROP COLUMN a; ALTER TABLE u ADD COLUMN a int DEFAULT 7; INSERT INTO u VALUES (10, 1)";
    let committing = database.at_source(change);
    let standby_comes_back = async {
        service.says("has come through the stream and is not visible at the source yet").await;
        admin.batch("doing without", "ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
        admin.batch("reloading", "SELECT pg_reload_conf()").await.unwrap();
    };
    tokio::join!(committing, standby_comes_back);
    copied_again(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_that_waits_for_a_migration_takes_the_columns_of_after_it() {
    for resnapshot in [false, true] {
        let database = Database::new(&format!("columnsmigrating{resnapshot}"), TABLES, SCHEMA).await;
        let mut service = if resnapshot { Some(Setup::of(&database).start_streaming(&database).await) } else { None };
        let migration = crate::support::source().await.connect(&database.name).await.unwrap();
        let change = "SET search_path = public; BEGIN; ALTER TABLE t ADD COLUMN c int DEFAULT 5;
                      UPDATE t SET c = id * 100 WHERE id <= 3";
        migration.script("a migration", change).await.unwrap();
        let service = match service.take() {
            Some(service) => {
                let (_, out) = service.command(&["resnapshot", "--no-wait", "t"]).await;
                println!("{out}");
                service
            }
            None => Setup::of(&database).start(),
        };
        eventually("headwater waits for the migration", || async {
            let waiting = "SELECT (count(*) > 0)::text FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
            (database.source_value(waiting).await.as_deref() == Some("true")).then_some(())
        })
        .await;
        migration.batch("its end", "COMMIT").await.unwrap();
        database.at_source("INSERT INTO t (id) VALUES (10)").await;
        database.caught_up_when_there().await;
        copied_again(&database).await;
        service.stop().await;
    }
}
