//! Schema changes at the source while it is followed.

use crate::support::suspension::{all_live, copied_again};
use crate::support::{Database, Setup, eventually};

const FORUM: &str = "
    CREATE TABLE t (id int PRIMARY KEY, a text, n int NOT NULL DEFAULT 1);
    INSERT INTO t SELECT i, 'a' || i, i FROM generate_series(1, 100) i;
    CREATE TABLE other (id int PRIMARY KEY, v varchar(20));
    INSERT INTO other SELECT i, 'v' FROM generate_series(1, 10) i;";

/// A column as both ends should have it: name, type, NOT NULL.
const COLUMNS: &str =
    "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull, ', ' ORDER BY attname)
    FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped";

/// Streams, makes each change with a write of its own behind it, and expects rows and columns to be equal after each.
async fn follows(name: &str, schema: &str, changes: &[&str]) -> Database {
    let database = Database::new(name, &["t", "other"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for change in changes {
        database.at_source(change).await;
        database
            .at_source("UPDATE t SET id = id WHERE id = 7; INSERT INTO other SELECT max(id) + 1, 'more' FROM other")
            .await;
        database.caught_up().await;
        all_live(&database).await;
        // What the old rows did not keep yet comes with the table's next change.
        database.at_source("ANALYZE t; UPDATE t SET id = id WHERE id = 7").await;
        database.assert_catches_up().await;
        assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await, "{change}");
    }
    service.is("streaming").await;
    service.stop().await;
    database
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn added_columns_hold_what_old_rows_hold_at_the_source() {
    follows(
        "ddladd",
        FORUM,
        &[
            "ALTER TABLE t ADD COLUMN plain text",
            "ALTER TABLE t ADD COLUMN counted int NOT NULL DEFAULT 5",
            "ALTER TABLE t ADD COLUMN said text DEFAULT 'it''s \\ \"quoted\", {here}'",
            "ALTER TABLE t ADD COLUMN list int[] DEFAULT '{1,NULL,3}'",
            "ALTER TABLE t ADD COLUMN at timestamptz NOT NULL DEFAULT now()",
            "ALTER TABLE t ADD COLUMN gone numeric(10,2) DEFAULT 1.50; ALTER TABLE t ALTER COLUMN gone DROP DEFAULT",
            "ALTER TABLE t ADD COLUMN later int; ALTER TABLE t ALTER COLUMN later SET DEFAULT 9",
            "CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE t ADD COLUMN m mood DEFAULT 'ok'",
            "CREATE DOMAIN percent AS int; ALTER TABLE t ADD COLUMN p percent DEFAULT 50",
            "CREATE TYPE pair AS (a int, b text); ALTER TABLE t ADD COLUMN q pair DEFAULT '(1,\"x,y\")'",
            "ALTER TABLE t ADD COLUMN moods mood[] DEFAULT '{sad,ok}'",
            "ALTER TABLE t ADD COLUMN \"Mixed \"\" Case\" jsonb DEFAULT '{\"a\": \"b\"}'",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn renamed_widened_and_nullable_columns_are_followed() {
    follows(
        "ddlalter",
        FORUM,
        &[
            "ALTER TABLE t RENAME COLUMN a TO b",
            "ALTER TABLE t ALTER COLUMN n TYPE bigint",
            "ALTER TABLE t ADD COLUMN s varchar(10) DEFAULT 'short'",
            "ALTER TABLE t ALTER COLUMN s TYPE varchar(20)",
            "ALTER TABLE t ALTER COLUMN s TYPE text",
            "ALTER TABLE t ALTER COLUMN n TYPE numeric",
            "ALTER TABLE t ALTER COLUMN n DROP NOT NULL",
            "UPDATE t SET n = NULL WHERE id = 3",
            "UPDATE t SET n = 3 WHERE id = 3; ALTER TABLE t ALTER COLUMN n SET NOT NULL",
            // Names that change hands.
            "ALTER TABLE t RENAME COLUMN b TO between; ALTER TABLE t RENAME COLUMN s TO b; ALTER TABLE t RENAME COLUMN between TO s",
            "ALTER TABLE t RENAME COLUMN id TO key; ALTER TABLE t RENAME COLUMN key TO id",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_stays_and_asks_for_no_values() {
    let database = Database::new("ddldrop", &["t"], FORUM).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("ALTER TABLE t ALTER COLUMN n DROP DEFAULT; UPDATE t SET n = n WHERE id = 1").await;
    database.caught_up().await;
    database.at_destination("ALTER TABLE t ALTER COLUMN n DROP DEFAULT").await;
    database
        .at_source("ALTER TABLE t DROP COLUMN n; INSERT INTO t VALUES (1000, 'after'); DELETE FROM t WHERE id = 5")
        .await;
    database.caught_up().await;
    let rows = "SELECT string_agg(id || a, ',' ORDER BY id) FROM t";
    assert_eq!(database.destination_value(rows).await, database.source_value(rows).await);
    assert_eq!(
        database.destination_value("SELECT count(n)::text FROM t").await.as_deref(),
        Some("99"),
        "its values stay"
    );
    // The name is free at the source: the column that is here is taken over, with the source's values.
    database.at_source("ALTER TABLE t ADD COLUMN n bigint DEFAULT 8; UPDATE t SET a = 'x' WHERE id = 9").await;
    service.says("another one of that name and another type").await;
    database.at_destination("ALTER TABLE t RENAME COLUMN n TO old_n").await;
    database.caught_up().await;
    let rows = "SELECT string_agg(id || a || n, ',' ORDER BY id) FROM t";
    assert_eq!(database.destination_value(rows).await, database.source_value(rows).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_unique_indexes_are_created() {
    let database = follows(
        "ddlunique",
        FORUM,
        &[
            "CREATE UNIQUE INDEX t_n ON t (n)",
            "ALTER TABLE t ADD CONSTRAINT t_a UNIQUE (a)",
            "CREATE UNIQUE INDEX t_expr ON t (lower(a)) WHERE n > 0",
            "CREATE INDEX t_plain ON t (a)",
        ],
    )
    .await;
    let indexes = "SELECT string_agg(indexname, ',' ORDER BY indexname) FROM pg_indexes WHERE tablename = 't'";
    assert_eq!(
        database.destination_value(indexes).await.as_deref(),
        Some("t_a,t_expr,t_n,t_pkey"),
        "plain ones are the operator's"
    );
    let constraints = "SELECT count(*)::text FROM pg_constraint WHERE conname = 't_a'";
    assert_eq!(database.destination_value(constraints).await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn new_enum_labels_are_added_in_their_places() {
    let database = Database::new(
        "ddlenum",
        &["t"],
        "CREATE TYPE mood AS ENUM ('b', 'd'); CREATE DOMAIN feeling AS mood;
         CREATE TABLE t (id int PRIMARY KEY, m mood, f feeling, l mood[]); INSERT INTO t VALUES (1, 'b', 'd', '{b,d}');",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for (label, place) in [("e", "AFTER 'd'"), ("a", "BEFORE 'b'"), ("c", "AFTER 'b'")] {
        database.at_source(&format!("ALTER TYPE mood ADD VALUE '{label}' {place}")).await;
        database
            .at_source(&format!("INSERT INTO t SELECT max(id) + 1, '{label}', '{label}', '{{b,{label}}}' FROM t; UPDATE t SET m = '{label}' WHERE id = 1"))
            .await;
        database.assert_catches_up().await;
    }
    let labels =
        "SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = 'mood'::regtype";
    assert_eq!(database.destination_value(labels).await.as_deref(), Some("a,b,c,d,e"));
    // A label that is used for nothing yet comes with the next start.
    database.at_source("ALTER TYPE mood ADD VALUE 'f'").await;
    service.stop().await;
    let service = Setup::of(&database).start();
    service.streams().await;
    assert_eq!(database.destination_value(labels).await.as_deref(), Some("a,b,c,d,e,f"));
    // A label is known by its OID, whatever else has changed; its tables are copied, since rows under way have the old name.
    database
        .at_source(
            "INSERT INTO t VALUES (98, 'f'); ALTER TYPE mood RENAME VALUE 'f' TO 'z'; ALTER TYPE mood ADD VALUE 'g'",
        )
        .await;
    database.at_source("INSERT INTO t VALUES (99, 'z'), (100, 'g')").await;
    copied_again(&database).await;
    assert_eq!(database.destination_value(labels).await.as_deref(), Some("a,b,c,d,e,z,g"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_and_dml_in_one_transaction_are_followed_in_their_order() {
    let database = Database::new("ddlmixed", &["t", "other"], FORUM).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source(
            "BEGIN;
             UPDATE t SET a = 'before' WHERE id < 10; INSERT INTO other VALUES (50, 'x');
             ALTER TABLE t ADD COLUMN c int DEFAULT 3;
             INSERT INTO t (id, a, c) VALUES (200, 'new', 4); DELETE FROM t WHERE id = 20;
             ALTER TABLE t RENAME COLUMN a TO b;
             UPDATE t SET b = 'renamed', c = 6 WHERE id = 200; INSERT INTO other VALUES (51, 'y');
             ALTER TABLE other ADD COLUMN w text DEFAULT 'w';
             UPDATE other SET w = 'set' WHERE id = 50;
             UPDATE t SET id = 201 WHERE id = 200;
             ALTER TABLE other ALTER COLUMN v TYPE text; ALTER TABLE t ADD COLUMN d varchar(5) DEFAULT 'd';
             UPDATE t SET c = 5 WHERE id = 1;
             COMMIT",
        )
        .await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await);
    // What is rolled back was never there.
    database
        .at_source("BEGIN; ALTER TABLE t ADD COLUMN never int DEFAULT 1; UPDATE t SET never = 2; ROLLBACK; UPDATE t SET b = 'y' WHERE id = 2")
        .await;
    database
        .at_source(
            "BEGIN; SAVEPOINT s; ALTER TABLE t DROP COLUMN n; UPDATE t SET b = 'z' WHERE id = 4; ROLLBACK TO s;
             UPDATE t SET n = 9 WHERE id = 4; COMMIT",
        )
        .await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn changes_made_while_headwater_was_down_are_followed() {
    let database = Database::new("ddldown", &["t", "other"], FORUM).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    for change in [
        "UPDATE t SET a = 'one' WHERE id = 1",
        "ALTER TABLE t ADD COLUMN c int NOT NULL DEFAULT 3; UPDATE t SET a = 'two', c = 4 WHERE id = 2",
        "ALTER TABLE t ADD COLUMN d text DEFAULT 'd'; UPDATE t SET d = 'e' WHERE id = 3",
        "ALTER TABLE t ADD COLUMN e int[] DEFAULT '{7}'; INSERT INTO t (id) VALUES (300)",
        "CREATE TYPE color AS ENUM ('red'); ALTER TABLE other ADD COLUMN k color[] DEFAULT '{red}'; UPDATE other SET v = 'q'",
        "ALTER TYPE color ADD VALUE 'blue'",
        "UPDATE other SET k = '{red,blue}' WHERE id = 2",
    ] {
        database.at_source(change).await;
    }
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_backlog_of_many_changes_is_followed_without_waiting_at_each() {
    let database = Database::new("ddlbacklog", &["t", "other"], FORUM).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    // At each of them the catalog is further ahead than the stream.
    for n in 0..40 {
        let change = format!("ALTER TABLE t ADD COLUMN c{n} int DEFAULT {n}; UPDATE t SET a = '{n}' WHERE id = {n}");
        database.at_source(&change).await;
    }
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await);
    assert!(!service.log().contains("copied again"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn columns_that_are_gone_from_the_catalog_are_still_taken_from_the_stream() {
    let schema = format!(
        "{FORUM} CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE t ADD COLUMN m mood DEFAULT 'ok';
         ALTER TABLE other ADD COLUMN r regtype DEFAULT 'text'"
    );
    let database = Database::new("ddlgone", &["t", "other"], &schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    // The only column of its type, and the only one that travels as text.
    database.at_source("UPDATE other SET v = 'last', r = 'int' WHERE id = 1; ALTER TABLE other DROP COLUMN v").await;
    database.at_source("ALTER TABLE other DROP COLUMN r; INSERT INTO other VALUES (11)").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let rows = "SELECT v || ' ' || r || ' ' || (SELECT max(id) FROM other) FROM other WHERE id = 1";
    assert_eq!(database.destination_value(rows).await.as_deref(), Some("last integer 11"));
    assert!(!service.log().contains("copied again"), "{}", service.log());
    service.stop().await;
    // Nobody can tell any more what a type was that is gone, too.
    database.at_source("UPDATE t SET m = 'sad' WHERE id = 1; ALTER TABLE t DROP COLUMN m; DROP TYPE mood").await;
    database.at_source("UPDATE t SET a = 'after' WHERE id = 2").await;
    let service = Setup::of(&database).start();
    service.says("the type of column m is gone since; it is copied again").await;
    all_live(&database).await;
    database.caught_up().await;
    let rows = "SELECT string_agg(id || a || n, ',' ORDER BY id) FROM t";
    assert_eq!(database.destination_value(rows).await, database.source_value(rows).await);
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_type_that_was_changed_by_an_expression_is_copied_and_no_cast_is_proposed() {
    let database = Database::new("ddltype", &["t", "other"], FORUM).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for change in [
        "ALTER TABLE t ALTER COLUMN n DROP DEFAULT; ALTER TABLE t ALTER COLUMN n TYPE text USING (n * 7)::text",
        "ALTER TABLE t ALTER COLUMN n TYPE bigint USING n::bigint * 100",
        "ALTER TABLE t ALTER COLUMN n TYPE text USING 'n' || n",
    ] {
        database.at_source(&format!("{change}; UPDATE t SET a = a || 'x' WHERE id = 1")).await;
        copied_again(&database).await;
        let types = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'n'";
        assert_eq!(database.destination_value(types).await, database.source_value(types).await);
    }
    assert!(!service.log().contains("n::"), "{}", service.log());
    // What the destination's old rows cannot be cast to is the operator's, as it is printed.
    database
        .at_source("ALTER TABLE t ALTER COLUMN n TYPE int USING substr(n, 2)::int; UPDATE t SET a = 'y' WHERE id = 1")
        .await;
    service.says("USING NULL;").await;
    let log = service.log();
    let (_, printed) =
        log.split_once("The copy brings the values of the column. Run at the destination:\n").expect("the way out");
    let statements: Vec<&str> =
        printed.lines().take(3).map(|line| line.trim().trim_end_matches(" state=\"streaming\"")).collect();
    let statements: Vec<&str> =
        statements.iter().map(|line| line.split_once(';').map_or(*line, |(sql, _)| sql)).collect();
    database.at_destination(&statements.join("; ")).await;
    copied_again(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn schema_changes_stop_means_that_the_operator_makes_them() {
    let database = Database::new("ddlstop", &["t"], FORUM).await;
    let service = Setup::of(&database).setting("schema_changes = \"stop\"").start();
    service.streams().await;
    database.at_source("ALTER TABLE t ADD COLUMN c int DEFAULT 3; UPDATE t SET a = 'after' WHERE id = 1").await;
    service.is("waiting").await;
    service.says("schema_changes = \"stop\"").await;
    service.says("ALTER TABLE \"public\".\"t\" ADD COLUMN \"c\" integer DEFAULT").await;
    assert_eq!(service.get("/readyz").await.map(|(status, _)| status), Some(503));
    database.at_destination("ALTER TABLE t ADD COLUMN c int DEFAULT 3").await;
    database.assert_catches_up().await;
    // What is printed brings the sequence along.
    database
        .at_source(
            "ALTER TABLE t ADD COLUMN q int; CREATE SEQUENCE q; DO $$ BEGIN EXECUTE 'ALTER SEQUENCE q OWNER TO '
                 || (SELECT relowner::regrole FROM pg_class WHERE oid = 't'::regclass); END $$;
             ALTER SEQUENCE q OWNED BY t.q; ALTER TABLE t ALTER COLUMN q SET DEFAULT nextval('q');
             INSERT INTO t SELECT -1; INSERT INTO t SELECT -2",
        )
        .await;
    service.says("SET DEFAULT pg_catalog.nextval('\"public\".\"q\"'::pg_catalog.regclass);").await;
    let log = service.log();
    let (_, printed) = log.rsplit_once("set schema_changes = \"follow\":\n").expect("the statements");
    let statements: Vec<&str> = printed.lines().map(str::trim).take_while(|line| line.ends_with(';')).collect();
    database.at_destination(&statements.join("\n")).await;
    database.assert_catches_up().await;
    service.is("streaming").await;
    service.stop().await;
    let next = database.destination_value("SELECT nextval(pg_get_serial_sequence('t', 'q'))::text").await;
    assert_eq!(next.as_deref(), Some("3"), "it followed at the stop");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_rewrite_that_fills_a_column_is_not_guessed_where_changes_are_the_operators() {
    let database = Database::new("ddlvolatile", &["t"], FORUM).await;
    let service = Setup::of(&database).setting("schema_changes = \"stop\"").start();
    service.streams().await;
    database
        .at_source("ALTER TABLE t ADD COLUMN r float8 DEFAULT random(); UPDATE t SET a = 'after' WHERE id = 1")
        .await;
    service.is("waiting").await;
    service.says("Column r was added and the table rewritten").await;
    service.says("--resnapshot=public.t").await;
    eventually("the row has not moved on", || async {
        let sql = "SELECT a FROM t WHERE id = 1";
        (database.destination_value(sql).await.as_deref() == Some("a1")).then_some(())
    })
    .await;
    assert_eq!(service.get("/readyz").await.map(|(status, _)| status), Some(503));
    service.stop().await;
    // The way out that is printed.
    let service = Setup::of(&database).setting("schema_changes = \"stop\"").argument("--resnapshot=public.t").start();
    service.streams().await;
    all_live(&database).await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_table_halts_with_the_ways_out() {
    let database = Database::new("ddltable", &["t"], FORUM).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("ALTER TABLE t RENAME TO u; UPDATE u SET a = 'after' WHERE id = 1").await;
    service.says("table public.t is now called public.u at the source").await;
    service.says("ALTER TABLE public.t RENAME TO u;").await;
    // Calling it by its old name again is one way out.
    database.at_source("ALTER TABLE u RENAME TO t").await;
    database.at_source("UPDATE t SET a = 'later' WHERE id = 2").await;
    database.assert_catches_up().await;
    service.is("streaming").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_renamed_table_keeps_its_new_name_by_the_statements_that_are_printed() {
    for (name, change, renamed) in [
        ("ddlrename", "ALTER TABLE t RENAME TO \"The New\"", "\"The New\""),
        ("ddlmove", "CREATE SCHEMA elsewhere; ALTER TABLE t SET SCHEMA elsewhere", "elsewhere.t"),
        (
            "ddlboth",
            "CREATE SCHEMA elsewhere; ALTER TABLE t SET SCHEMA elsewhere; ALTER TABLE elsewhere.t RENAME TO u",
            "elsewhere.u",
        ),
    ] {
        let mut database = Database::new(name, &["t", "other"], FORUM).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        let oid = database.destination_value("SELECT 't'::regclass::oid::text").await;
        database.at_source(change).await;
        database.at_source(&format!("UPDATE {renamed} SET a = 'after' WHERE id = 1; UPDATE other SET v = 'w'")).await;
        service.says(", which writes only what differs:").await;
        let flag = if renamed.contains('"') {
            "--resnapshot='public.\"The New\"',"
        } else {
            &format!("--resnapshot={renamed},")
        };
        service.says(&format!("in its place, and start once with {flag}")).await;
        let log = service.log();
        service.stop().await;
        let (_, printed) = log.split_once("writes only what differs:\n").expect("the way out");
        let statements: Vec<&str> = printed.lines().map(str::trim).take_while(|line| line.contains(';')).collect();
        let statements: Vec<&str> =
            statements.iter().map(|line| line.rsplit_once(';').map_or(*line, |(sql, _)| sql)).collect();
        database.at_destination(&statements.join("; ")).await;
        database.tables[0] = renamed.to_owned();
        let service = Setup::of(&database).argument(&format!("--resnapshot={renamed}")).start();
        service.streams().await;
        database.at_source(&format!("UPDATE {renamed} SET a = 'later' WHERE id = 2")).await;
        database.caught_up().await;
        all_live(&database).await;
        database.assert_catches_up().await;
        let now = database.destination_value(&format!("SELECT '{renamed}'::regclass::oid::text")).await;
        assert_eq!(now, oid, "it is the same table");
        service.stop().await;
    }
}
