//! Tables of every kind: partitioned, with lists and filters, without keys, of several schemas.

use crate::support::suspension::all_live;
use crate::support::{Database, Setup};

const PARTED: &str = "
    CREATE TABLE parted (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
    INSERT INTO parted SELECT i, '2020-06-01'::date + i * 10, 'v' FROM generate_series(1, 40) i;";

/// A database whose publication is the owner's.
async fn published(name: &str, tables: &[&str], schema: &str, publication: &str) -> Database {
    let database = Database::new(name, tables, schema).await;
    database.at_source(&format!("CREATE PUBLICATION {} {publication}", database.name)).await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_fills_a_partitioned_table_with_other_partitions() {
    let database = Database::new("partboth", &["parted"], PARTED).await;
    database
        .at_destination(
            "CREATE TABLE parted (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY HASH (id);
             CREATE TABLE p0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE p1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);",
        )
        .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source(
            "UPDATE parted SET v = 'w' WHERE id < 5; UPDATE parted SET at = '2021-12-01' WHERE id = 6; UPDATE parted SET id = 100 WHERE id = 7;
             DELETE FROM parted WHERE id = 8; INSERT INTO parted VALUES (200, '2020-01-01', 'n')",
        )
        .await;
    database.assert_catches_up().await;
    database.at_source("TRUNCATE parted; INSERT INTO parted VALUES (1, '2020-01-01', 'n')").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_without_a_key_touches_one_of_equal_rows() {
    let database = Database::new(
        "partfull",
        &["parted"],
        "CREATE TABLE parted (id int, v text) PARTITION BY LIST (id);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1); CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
         ALTER TABLE parted REPLICA IDENTITY FULL; ALTER TABLE parted_1 REPLICA IDENTITY FULL; ALTER TABLE parted_2 REPLICA IDENTITY FULL;
         INSERT INTO parted SELECT 1 + i % 2, 'same' FROM generate_series(1, 10) i;",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source(
            "DELETE FROM parted WHERE ctid = (SELECT ctid FROM parted WHERE id = 1 LIMIT 1) AND id = 1;
             UPDATE parted SET id = 2 WHERE ctid = (SELECT ctid FROM parted WHERE id = 1 LIMIT 1) AND id = 1",
        )
        .await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_can_be_followed_each_by_itself() {
    let database = Database::new("partleaves", &["parted_1", "parted_2"], PARTED).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE parted SET v = 'w' WHERE id < 30; UPDATE parted SET at = '2021-12-01' WHERE id = 6; TRUNCATE parted_1").await;
    database.at_source("INSERT INTO parted VALUES (77, '2020-02-02', 'x')").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_partition_is_followed_and_one_with_rows_is_copied() {
    let database = Database::new("partattach", &["parted"], PARTED).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source(
            "CREATE TABLE parted_3 PARTITION OF parted FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
             INSERT INTO parted VALUES (300, '2022-03-03', 'in the new one')",
        )
        .await;
    database.assert_catches_up().await;
    database
        .at_source(
            "ALTER TABLE parted ADD COLUMN extra int DEFAULT 7; INSERT INTO parted VALUES (301, '2022-03-03', 'x', 8)",
        )
        .await;
    database.assert_catches_up().await;
    database
        .at_source(
            "CREATE TABLE parted_4 (LIKE parted INCLUDING ALL); INSERT INTO parted_4 SELECT i, '2023-05-05', 'v', i FROM generate_series(1, 50) i;
             ALTER TABLE parted ATTACH PARTITION parted_4 FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
             INSERT INTO parted VALUES (302, '2022-03-03', 'y', 9)",
        )
        .await;
    service.says("partitions with rows of their own were attached, or detached; it is copied again").await;
    database.caught_up().await;
    all_live(&database).await;
    database.assert_catches_up().await;
    database.at_source("ALTER TABLE parted DETACH PARTITION parted_1; UPDATE parted SET v = 'z' WHERE id = 302").await;
    database.caught_up().await;
    all_live(&database).await;
    database.assert_catches_up().await;
    assert_eq!(service.log().matches("it is copied again, while the others stream on").count(), 2, "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn column_lists_and_row_filters_hold_for_snapshot_and_stream_alike() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, secret text, v text, n int); INSERT INTO t SELECT i, 's', 'v' || i, i FROM generate_series(1, 100) i;";
    let probe = Database::new("listprobe", &[], "").await;
    if probe.source_major().await < 15 {
        println!("column lists and row filters came with 15");
        return;
    }
    let database = published("lists", &["t"], schema, "FOR TABLE t (id, v, n) WHERE (id > 50)").await;
    database.at_source("ALTER TABLE t REPLICA IDENTITY DEFAULT").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let log = service.log();
    for said in ["sends only rows of table public.t where (id > 50)", "of table public.t"] {
        let line = log.lines().find(|line| line.contains(said)).unwrap_or_else(|| panic!("no {said:?} in {log}"));
        assert!(line.contains("WARN"), "what is left out is a warning: {line}");
    }
    let there = "SELECT string_agg(id || v || n, ',' ORDER BY id) FROM t WHERE id > 50";
    let here = "SELECT string_agg(id || v || n, ',' ORDER BY id) FROM t";
    assert_eq!(database.source_value(there).await, database.destination_value(here).await);
    database
        .at_source(
            "UPDATE t SET v = 'w', secret = 'x' WHERE id IN (10, 60); UPDATE t SET id = 1000 WHERE id = 20; UPDATE t SET id = -1 WHERE id = 70;
             DELETE FROM t WHERE id IN (30, 80); INSERT INTO t VALUES (2000, 's', 'new', 1), (-5, 's', 'no', 1)",
        )
        .await;
    database.caught_up().await;
    assert_eq!(database.source_value(there).await, database.destination_value(here).await);
    let secrets = "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'secret'";
    assert_eq!(database.destination_value(secrets).await.as_deref(), Some("0"), "what is not published is not here");
    // Columns outside of the list are nobody's matter.
    database.at_source("ALTER TABLE t ADD COLUMN more int DEFAULT 3; ALTER TABLE t DROP COLUMN secret; UPDATE t SET v = 'q' WHERE id = 60").await;
    database.caught_up().await;
    assert_eq!(database.source_value(there).await, database.destination_value(here).await);
    service.is("streaming").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_generated_column_is_recomputed_here() {
    let database = Database::new(
        "genpublished",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, price numeric, tax numeric GENERATED ALWAYS AS (price * 0.2) STORED);
         INSERT INTO t (id, price) SELECT i, i FROM generate_series(1, 10) i;",
    )
    .await;
    let with = if database.source_major().await >= 18 { "WITH (publish_generated_columns = stored)" } else { "" };
    database.at_source(&format!("CREATE PUBLICATION {} FOR TABLE t {with}", database.name)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source(
            "INSERT INTO t (id, price) VALUES (50, 99.5); UPDATE t SET price = price + 1; DELETE FROM t WHERE id = 3",
        )
        .await;
    database.assert_catches_up().await;
    database.at_source("ALTER TABLE t ADD COLUMN double numeric GENERATED ALWAYS AS (price * 2) STORED; UPDATE t SET price = 7 WHERE id = 1").await;
    // The stream does not tell of the column: the monitor does, and the table is copied, before or behind the row.
    service.says("generated column double was added").await;
    database.caught_up().await;
    all_live(&database).await;
    let rows = "SELECT string_agg(id || ' ' || price || ' ' || tax, ',' ORDER BY id) FROM t";
    assert_eq!(database.source_value(rows).await, database.destination_value(rows).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_one_name_in_several_schemas_do_not_meet() {
    let database = Database::new(
        "schemas",
        &["one.t", "two.t", "\"Three Four\".t"],
        "CREATE SCHEMA one; CREATE SCHEMA two; CREATE SCHEMA \"Three Four\";
         CREATE TABLE one.t (id int PRIMARY KEY, v text); CREATE TABLE two.t (id int PRIMARY KEY, v text);
         CREATE TABLE \"Three Four\".t (id int PRIMARY KEY, v text);
         INSERT INTO one.t VALUES (1, 'one'); INSERT INTO two.t VALUES (1, 'two'); INSERT INTO \"Three Four\".t VALUES (1, 'three');",
    )
    .await;
    // Existing ones are filled under names of their own.
    for schema in ["one", "two", "\"Three Four\""] {
        let create = format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.t (id int PRIMARY KEY, v text)");
        database.at_destination(&create).await;
    }
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source("INSERT INTO one.t VALUES (2, 'x'); UPDATE two.t SET v = 'y'; DELETE FROM \"Three Four\".t")
        .await;
    database.at_source("ALTER TABLE two.t ADD COLUMN w int DEFAULT 2; UPDATE two.t SET v = 'z'; TRUNCATE one.t").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deferrable_keys_and_identities_that_change_are_followed() {
    let database = Database::new(
        "identities",
        &["d", "n"],
        "CREATE TABLE d (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, code int UNIQUE NOT NULL, v text); ALTER TABLE d REPLICA IDENTITY USING INDEX d_code_key;
         INSERT INTO d SELECT i, i, 'v' FROM generate_series(1, 20) i;
         CREATE TABLE n (a int NOT NULL, b int, v text); ALTER TABLE n REPLICA IDENTITY FULL; INSERT INTO n SELECT i, NULL, 'v' FROM generate_series(1, 10) i;",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for change in [
        "UPDATE d SET id = 21 - id; UPDATE d SET v = 'w' WHERE code = 3; DELETE FROM d WHERE code = 4",
        "ALTER TABLE d REPLICA IDENTITY FULL; UPDATE d SET code = code + 100; DELETE FROM d WHERE id = 10",
        "UPDATE n SET v = 'w' WHERE a = 1; DELETE FROM n WHERE a = 2",
        "ALTER TABLE n ADD PRIMARY KEY (a); ALTER TABLE n REPLICA IDENTITY DEFAULT; UPDATE n SET v = 'x' WHERE a = 3; UPDATE n SET a = 30 WHERE a = 4",
        "UPDATE n SET b = 1, v = NULL WHERE a = 5; DELETE FROM n WHERE a = 6",
    ] {
        database.at_source(change).await;
        database.assert_catches_up().await;
    }
    let key = "SELECT count(*)::text FROM pg_index WHERE indrelid = 'n'::regclass AND indisprimary";
    assert_eq!(database.destination_value(key).await.as_deref(), Some("1"), "the new key is here, too");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_replica_identity_nothing_is_only_inserted_into() {
    let database = published(
        "nothing",
        &["h"],
        "CREATE TABLE h (id int PRIMARY KEY, v text); ALTER TABLE h REPLICA IDENTITY NOTHING",
        "FOR TABLE h",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.says("only inserts can come").await;
    database.at_source("INSERT INTO h SELECT i, 'v' FROM generate_series(1, 10) i").await;
    database.assert_catches_up().await;
    service.stop().await;
}
