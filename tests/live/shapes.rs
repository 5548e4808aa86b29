//! Shapes of tables and changes: keys, identities, TOAST, truncates, names.

use crate::support::{Database, Setup};

/// Starts headwater on a schema, streams, makes the changes, and expects both sides to be equal.
async fn follows(name: &str, tables: &[&str], schema: &str, changes: &[&str]) {
    let database = Database::new(name, tables, schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_equal().await;
    for change in changes {
        database.at_source(change).await;
    }
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_toast_value_stays_as_it_is() {
    // Random text does not compress, so 20 kB go out of line.
    follows(
        "toast",
        &["big"],
        "CREATE TABLE big (id int PRIMARY KEY, small text, large text);
         INSERT INTO big SELECT i, 'a', (SELECT string_agg(md5(random()::text || g || i), '') FROM generate_series(1, 640) g) FROM generate_series(1, 20) i;",
        &[
            "UPDATE big SET small = 'b' WHERE id <= 10",
            "UPDATE big SET id = id + 100 WHERE id > 15",
            "BEGIN; UPDATE big SET large = repeat('x', 10) WHERE id = 1; UPDATE big SET small = 'c' WHERE id = 1; COMMIT",
            "BEGIN; UPDATE big SET large = large || 'more', small = 'd' WHERE id = 2; UPDATE big SET small = 'e' WHERE id = 2; COMMIT",
            "BEGIN; INSERT INTO big SELECT 999, 'n', large FROM big WHERE id = 3; UPDATE big SET small = 'o' WHERE id = 999; COMMIT",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_toast_value_stays_under_replica_identity_full_too() {
    follows(
        "toastfull",
        &["big"],
        "CREATE TABLE big (id int, small text, large text);
         ALTER TABLE big REPLICA IDENTITY FULL;
         INSERT INTO big SELECT i, 'a', (SELECT string_agg(md5(random()::text || g || i), '') FROM generate_series(1, 640) g) FROM generate_series(1, 5) i;",
        &["UPDATE big SET small = 'b'", "DELETE FROM big WHERE id = 3", "UPDATE big SET large = NULL WHERE id = 4"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_may_change_and_change_places() {
    follows(
        "keys",
        &["t", "pairs"],
        "CREATE TABLE t (id int PRIMARY KEY, name text);
         INSERT INTO t SELECT i, 'n' || i FROM generate_series(1, 20) i;
         CREATE TABLE pairs (a int, b text, value text, PRIMARY KEY (b, a));
         INSERT INTO pairs SELECT i, 'b' || i % 3, 'v' FROM generate_series(1, 20) i;",
        &[
            "UPDATE t SET id = -id WHERE id % 2 = 0",
            "BEGIN; UPDATE t SET id = 100 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 3; UPDATE t SET id = 3 WHERE id = 100; COMMIT",
            "UPDATE t SET id = id + 1000",
            "UPDATE pairs SET a = a + 5, value = 'w' WHERE b = 'b1'",
            "BEGIN; DELETE FROM pairs WHERE a = 2; INSERT INTO pairs VALUES (2, 'b2', 'again'); COMMIT",
            "DELETE FROM pairs WHERE b = 'b0'",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_identity_touches_exactly_one_of_several_equal_rows() {
    follows(
        "fullequal",
        &["log"],
        "CREATE TABLE log (a int, b text, c numeric, d json, e point);
         ALTER TABLE log REPLICA IDENTITY FULL;
         INSERT INTO log SELECT 1, 'same', 1.0, '{\"a\": 1}', '(1,2)' FROM generate_series(1, 5);
         INSERT INTO log VALUES (1, 'same', 1.00, '{\"a\": 1}', '(1,2)'), (NULL, NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL, NULL);",
        &[
            "DELETE FROM log WHERE ctid = (SELECT ctid FROM log WHERE a = 1 LIMIT 1)",
            "DELETE FROM log WHERE c::text = '1.00'",
            "UPDATE log SET b = 'other' WHERE ctid = (SELECT ctid FROM log WHERE a = 1 LIMIT 1)",
            "UPDATE log SET a = 7 WHERE ctid = (SELECT ctid FROM log WHERE a IS NULL LIMIT 1)",
            "DELETE FROM log WHERE a IS NULL",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_can_be_the_identity() {
    follows(
        "byindex",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, value text);
         CREATE UNIQUE INDEX t_code ON t (code);
         ALTER TABLE t REPLICA IDENTITY USING INDEX t_code;
         INSERT INTO t SELECT i, 'c' || i, 'v' FROM generate_series(1, 10) i;",
        &[
            "UPDATE t SET value = 'w' WHERE id < 4",
            "UPDATE t SET code = 'new', id = 77 WHERE id = 4",
            "DELETE FROM t WHERE id = 5",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_key_that_are_only_inserted_into_are_followed() {
    // The owner's publication holds it already, so the source lives with it.
    let database = Database::new("nokey", &["history"], "CREATE TABLE history (at timestamptz, what text)").await;
    database.at_source(&format!("CREATE PUBLICATION {} FOR TABLE history", database.name)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.says("only inserts can come").await;
    database.at_source("INSERT INTO history SELECT now(), 'w' || i FROM generate_series(1, 100) i").await;
    database.at_source("TRUNCATE history").await;
    database.at_source("INSERT INTO history SELECT now(), 'x' FROM generate_series(1, 3) i").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncates_arrive_alone_together_and_between_writes() {
    for mode in ["truncate", "delete"] {
        let database = Database::new(
            &format!("trunc_{mode}"),
            &["a", "b"],
            "CREATE TABLE a (id serial PRIMARY KEY, v text);
             CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
             INSERT INTO a (v) SELECT 'v' FROM generate_series(1, 10); INSERT INTO b SELECT i, i FROM generate_series(1, 10) i;",
        )
        .await;
        let service = Setup::of(&database).setting(&format!("truncate = \"{mode}\"")).start();
        service.streams().await;
        database.at_source("TRUNCATE b").await;
        database.at_source("INSERT INTO b SELECT i, i FROM generate_series(1, 5) i").await;
        database.at_source("TRUNCATE a CASCADE").await;
        database.at_source("INSERT INTO a (v) VALUES ('after')").await;
        database
            .at_source(
                "BEGIN; INSERT INTO a (v) VALUES ('gone'); TRUNCATE a, b RESTART IDENTITY; INSERT INTO a (v) VALUES ('stays');
                 INSERT INTO b VALUES (1, 1); COMMIT",
            )
            .await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_be_quoted_mixed_reserved_unicode_and_hostile() {
    follows(
        "names",
        &["\"Mixed Case\"", "\"select\"", "\"straße\"", "\"we\"\"ird; DROP TABLE x; --\"", "\"o'dd \\ one\".\"t.t\""],
        "CREATE TABLE \"Mixed Case\" (\"Id\" int PRIMARY KEY, \"from\" text, \"a b\" text);
         CREATE TABLE \"select\" (\"where\" int PRIMARY KEY, \"$1\" text);
         CREATE TABLE \"straße\" (\"größe\" int PRIMARY KEY, \"日本\" text);
         CREATE TABLE \"we\"\"ird; DROP TABLE x; --\" (\"a\"\"b\" int PRIMARY KEY, \"c';--\" text);
         CREATE SCHEMA \"o'dd \\ one\"; CREATE TABLE \"o'dd \\ one\".\"t.t\" (id int PRIMARY KEY, v text);
         INSERT INTO \"Mixed Case\" VALUES (1, 'a', 'b'); INSERT INTO \"select\" VALUES (1, 'x'); INSERT INTO \"straße\" VALUES (1, 'ü');
         INSERT INTO \"we\"\"ird; DROP TABLE x; --\" VALUES (1, 'y'); INSERT INTO \"o'dd \\ one\".\"t.t\" VALUES (1, 'z');",
        &[
            "UPDATE \"Mixed Case\" SET \"from\" = 'c', \"Id\" = 2",
            "INSERT INTO \"select\" VALUES (2, 'y'); DELETE FROM \"select\" WHERE \"where\" = 1",
            "UPDATE \"straße\" SET \"日本\" = 'ö'",
            "UPDATE \"we\"\"ird; DROP TABLE x; --\" SET \"c';--\" = 'it''s'",
            "UPDATE \"o'dd \\ one\".\"t.t\" SET v = 'changed'; TRUNCATE \"select\"",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_tables_narrow_tables_and_wide_tables_are_followed() {
    let wide: Vec<String> = (1..1600).map(|i| format!("c{i} int")).collect();
    follows(
        "widths",
        &["empty", "keyonly", "wide"],
        &format!(
            "CREATE TABLE empty (id int PRIMARY KEY, v text);
             CREATE TABLE keyonly (id int PRIMARY KEY); INSERT INTO keyonly VALUES (1), (2);
             CREATE TABLE wide (id int PRIMARY KEY, {}); INSERT INTO wide (id, c1, c1599) VALUES (1, 2, 3);",
            wide.join(", ")
        ),
        &[
            "INSERT INTO empty VALUES (1, 'first')",
            "INSERT INTO keyonly VALUES (3); UPDATE keyonly SET id = id; UPDATE keyonly SET id = 10 WHERE id = 1; DELETE FROM keyonly WHERE id = 2",
            "UPDATE wide SET c800 = 7; INSERT INTO wide (id) VALUES (2)",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_identity_and_default_columns_are_followed() {
    follows(
        "generated",
        &["t"],
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, price numeric, tax numeric GENERATED ALWAYS AS (price * 0.2) STORED,
             note text DEFAULT 'none', serial serial);
         INSERT INTO t (price) SELECT i FROM generate_series(1, 10) i;",
        &["INSERT INTO t (price) VALUES (99.5)", "UPDATE t SET price = price + 1", "DELETE FROM t WHERE id = 3", "UPDATE t SET id = DEFAULT WHERE id = 4"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_may_stand_in_another_order_with_local_ones_between() {
    let database = Database::new(
        "order",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, a text, b int); INSERT INTO t SELECT i, 'a' || i, i FROM generate_series(1, 10) i;",
    )
    .await;
    database
        .at_destination(
            "CREATE TABLE t (seen timestamptz DEFAULT now(), b bigint, local text DEFAULT 'mine', id int PRIMARY KEY, a text);",
        )
        .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source("INSERT INTO t VALUES (11, 'x', 5); UPDATE t SET b = 77 WHERE id = 3; DELETE FROM t WHERE id = 4; UPDATE t SET id = 50 WHERE id = 5")
        .await;
    database.at_destination("UPDATE t SET local = 'kept' WHERE id = 6").await;
    database.at_source("UPDATE t SET a = 'changed' WHERE id = 6").await;
    database.caught_up().await;
    let rows = "SELECT string_agg(id || a || b, ',' ORDER BY id) FROM t";
    assert_eq!(database.source_value(rows).await, database.destination_value(rows).await);
    assert_eq!(
        database.destination_value("SELECT string_agg(DISTINCT local, ',' ORDER BY local) FROM t").await.as_deref(),
        Some("kept,mine"),
        "local columns keep their defaults and their values"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_followed_through_its_root() {
    follows(
        "parted",
        &["parted"],
        "CREATE TABLE parted (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
         CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
         INSERT INTO parted SELECT i, '2020-06-01'::date + i * 10, 'v' FROM generate_series(1, 40) i;",
        &[
            "INSERT INTO parted VALUES (100, '2021-03-03', 'new')",
            "UPDATE parted SET at = '2021-05-05' WHERE id = 1",
            "DELETE FROM parted WHERE id = 2",
            "TRUNCATE parted; INSERT INTO parted VALUES (1, '2020-02-02', 'after')",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_inherited_table_stay_in_their_own_table() {
    let database = Database::new(
        "inherit",
        &["parent", "child"],
        "CREATE TABLE parent (id int PRIMARY KEY, v text);
         CREATE TABLE child (extra text, PRIMARY KEY (id)) INHERITS (parent);
         INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c', 'x');",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source(
            "UPDATE parent SET v = 'both'; DELETE FROM ONLY parent WHERE id = 1; INSERT INTO parent VALUES (3, 'p3')",
        )
        .await;
    database.caught_up().await;
    for table in ["parent", "child"] {
        let rows = format!("SELECT string_agg(t::text, ',' ORDER BY id) FROM ONLY {table} t");
        assert_eq!(database.source_value(&rows).await, database.destination_value(&rows).await, "{table}");
    }
    service.stop().await;
}

/// A parent that is followed, and a child that only the destination has.
const INHERITED: &str = "CREATE TABLE parent (id int PRIMARY KEY, v text)";
const OF_A_CHILD: &str = "SELECT count(*) || ' ' || sum(id) || ' ' || min(v) || ' ' || max(v) FROM child";

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_child_that_only_the_destination_has_count_for_nothing_and_stay() {
    let database = Database::new("localchild", &["parent"], INHERITED).await;
    database.at_source("INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 4) i").await;
    let child = "CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent); ALTER TABLE parent ADD w int;
                 INSERT INTO child SELECT i, 'mine', 7 FROM generate_series(1, 1000) i";
    database.at_destination(&format!("{INHERITED}; {child}")).await;
    let children = "1000 500500 mine mine";
    let own = "SELECT string_agg(id || v, ' ' ORDER BY id) FROM ONLY parent";
    // The parent is empty: a first start fills it unasked.
    let setup = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"");
    let service = setup.start();
    service.streams().await;
    assert_eq!(database.destination_value(own).await, database.source_value(own).await);
    // A column that is there already is set in the parent's rows alone.
    database.at_source("ALTER TABLE parent ADD w int DEFAULT 5; UPDATE parent SET v = 'q' WHERE id = 1").await;
    database.caught_up().await;
    let filled =
        "SELECT string_agg(w::text, ' ') || ' ' || (SELECT min(w) || ' ' || max(w) FROM child) FROM ONLY parent";
    assert_eq!(database.destination_value(filled).await.as_deref(), Some("5 5 5 5 7 7"));
    let (code, said) = service.command(&["verify"]).await;
    assert_eq!(code, Some(0), "{said}");
    service.stop().await;

    // Three of the parent's four rows are most of them, whatever the child holds.
    database.at_source(&format!("SELECT pg_drop_replication_slot('{}')", database.name)).await;
    database.at_source("DELETE FROM parent WHERE id < 4").await;
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("table public.parent (3 of 4)"), "{output}");
    assert_eq!(database.destination_value(own).await.as_deref(), Some("1q 2p 3p 4p"), "nothing was touched");
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    database.caught_up().await;
    assert_eq!(database.destination_value(own).await, database.source_value(own).await);
    assert_eq!(database.destination_value(OF_A_CHILD).await.as_deref(), Some(children));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn most_rows_of_a_parent_are_its_own_where_both_sides_have_its_children() {
    let schema = format!("{INHERITED}; CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)");
    let database = Database::new("bothchildren", &["parent", "child"], &schema).await;
    let rows = "INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 4) i;
                INSERT INTO child SELECT i, 'c' FROM generate_series(1, 1000) i";
    database.at_source(rows).await;
    database.at_destination(&schema).await;
    let setup = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"");
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    let equal = || async {
        for table in ["parent", "child"] {
            let rows = format!("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM ONLY {table} t");
            assert_eq!(database.source_value(&rows).await, database.destination_value(&rows).await, "{table}");
        }
    };
    equal().await;
    database.at_source(&format!("SELECT pg_drop_replication_slot('{}')", database.name)).await;
    database.at_source("DELETE FROM ONLY parent WHERE id < 4; DELETE FROM child WHERE id < 400").await;
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("would delete") && output.contains("table public.parent (3 of 4)."), "{output}");
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    database.caught_up().await;
    equal().await;
    let (code, said) = service.command(&["verify"]).await;
    assert_eq!(code, Some(0), "{said}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn composites_are_updated_and_deleted_by_many_at_once() {
    let database = Database::new(
        "composites",
        &["t", "keyed"],
        "CREATE TYPE pair AS (a int, b text); CREATE DOMAIN pair_domain AS pair;
         CREATE TABLE t (v text, p pair, d pair_domain, n timestamptz, id int PRIMARY KEY);
         INSERT INTO t SELECT 'v', ROW(i, 'b')::pair, ROW(i, 'd')::pair, now(), i FROM generate_series(1, 100) i;
         CREATE TABLE keyed (p pair PRIMARY KEY, v text);
         INSERT INTO keyed SELECT ROW(i, 'b')::pair, 'v' FROM generate_series(1, 100) i;",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE t SET v = 'w', p = ROW(id, 'c')::pair, d = ROW(id, 'e')::pair, n = n + '1 day'").await;
    database.at_source("UPDATE keyed SET v = 'w' WHERE (p).a > 20; DELETE FROM keyed WHERE (p).a > 50").await;
    database.at_source("UPDATE t SET p = NULL WHERE id > 50; DELETE FROM t WHERE id < 20").await;
    database.assert_catches_up().await;
    assert!(!service.log().contains("ERROR"), "{}", service.log());
    service.stop().await;
}
