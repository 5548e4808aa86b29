//! A value means the same at both ends: between types of one name, keys that only one end has, and majors; what cannot is refused
//! first, with statements that correct it.

use serde_json::Value;

use crate::support::findings::{find, findings, fix};
use crate::support::{Database, Setup, eventually};

/// The failure that `check` prints with this text; a start is refused for the same.
async fn is_refused(setup: &Setup, message: &str) -> Value {
    let found = findings(setup).await;
    let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no failure {message:?} in {found:#?}"));
    let log = setup.start().ends_with(1).await;
    assert!(log.contains(message), "{log}");
    finding.clone()
}

/// What `check` fails on with this text is corrected by its hint, as printed; then `changes` arrive.
async fn is_corrected(database: &Database, message: &str, detail: &str, changes: &[&str]) {
    let setup = Setup::of(database);
    let finding = is_refused(&setup, message).await;
    assert!(finding.to_string().contains(detail), "no {detail:?} in {finding}");
    database.at_destination(&fix(&finding)).await;
    follows(database, &setup, changes).await;
}

async fn follows(database: &Database, setup: &Setup, changes: &[&str]) {
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    for change in changes {
        database.at_source(change).await;
    }
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_of_one_name_with_another_modifier_is_refused_and_corrected_by_the_hint() {
    let schema = "CREATE DOMAIN money2 AS numeric(20,6); CREATE TABLE paid (id int PRIMARY KEY, m money2);
                  INSERT INTO paid VALUES (1, 1.123456)";
    let database = Database::new("valdomain", &["paid"], schema).await;
    database
        .at_destination("CREATE DOMAIN money2 AS numeric(20,2); CREATE TABLE paid (id int PRIMARY KEY, m money2)")
        .await;
    let detail = "which is numeric(20,6) at the source, but numeric(20,2) here";
    let changes = ["INSERT INTO paid VALUES (2, 2.654321)", "UPDATE paid SET m = 3.000001 WHERE id = 1"];
    is_corrected(&database, "table public.paid at the destination does not fit the source", detail, &changes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_composite_with_other_attributes_is_refused_and_corrected_by_the_hint() {
    let schema = "CREATE TYPE pair AS (a int, b text); CREATE TABLE pairs (id int PRIMARY KEY, p pair, many pair[]);
                  INSERT INTO pairs VALUES (1, (1, 'x'), '{\"(2,y)\"}')";
    let database = Database::new("valpair", &["pairs"], schema).await;
    database
        .at_destination(
            "CREATE TYPE pair AS (b text, a int); CREATE TABLE pairs (id int PRIMARY KEY, p pair, many pair[])",
        )
        .await;
    let finding = is_refused(&Setup::of(&database), "table public.pairs at the destination does not fit").await;
    assert!(finding.to_string().contains("(a int4, b text) at the source, but (b text, a int4) here"), "{finding}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_a_table_to_come_would_get_and_that_is_another_is_refused() {
    let schema = "CREATE DOMAIN money2 AS numeric(20,6); CREATE TYPE span AS RANGE (SUBTYPE = float8);
                  CREATE TABLE paid (id int PRIMARY KEY, m money2, s span); INSERT INTO paid VALUES (1, 1.123456, '[1.5,2.5]')";
    let database = Database::new("valcome", &["paid"], schema).await;
    database.at_destination("CREATE DOMAIN money2 AS numeric(20,2); CREATE TYPE span AS RANGE (SUBTYPE = int4)").await;
    let setup = Setup::of(&database);
    let found = findings(&setup).await;
    for message in [
        "type public.money2 is numeric(20,6) at the source, but numeric(20,2) at the destination",
        "type public.span is RANGE (SUBTYPE = float8) at the source, but RANGE (SUBTYPE = int4) at the destination",
    ] {
        assert!(find(&found, "failed", message).is_some(), "no {message:?} in {found:#?}");
    }
    database.at_destination("DROP DOMAIN money2; DROP TYPE span; CREATE TYPE span AS RANGE (SUBTYPE = float8)").await;
    follows(&database, &setup, &["INSERT INTO paid VALUES (2, 2.654321, NULL)"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_type_is_made_of_may_be_wider_at_the_destination() {
    let schema = "CREATE DOMAIN whole AS int; CREATE TYPE pair AS (a int2, b varchar(3));
                  CREATE TABLE wide (id int PRIMARY KEY, n int[], s varchar(3)[], w whole, p pair, r real[]);
                  INSERT INTO wide VALUES (1, '{{1,NULL},{3,4}}', '{a,NULL}', 7, (1, 'abc'), '{0.1}')";
    let database = Database::new("valwide", &["wide"], schema).await;
    database
        .at_destination(
            "CREATE DOMAIN whole AS int8; CREATE TYPE pair AS (a int8, b text);
             CREATE TABLE wide (id int PRIMARY KEY, n int8[], s text[], w whole, p pair, r float8[])",
        )
        .await;
    let changes = [
        "INSERT INTO wide VALUES (2, '{}', '{}', 8, (2, NULL), '{1e-45}'), (3, NULL, NULL, NULL, NULL, NULL)",
        "UPDATE wide SET n = '{2147483647}' WHERE id = 1",
        "DELETE FROM wide WHERE id = 3",
    ];
    let service = Setup::of(&database).start();
    service.streams().await;
    for change in changes {
        database.at_source(change).await;
    }
    database.caught_up().await;
    let sql = "SELECT string_agg(t::text, ';' ORDER BY id) FROM wide t";
    assert_eq!(database.destination_value(sql).await, database.source_value(sql).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlogged_destination_table_is_refused_before_a_crash_can_empty_it() {
    let schema = "CREATE TABLE kept (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
                  CREATE TABLE kept_1 PARTITION OF kept FOR VALUES FROM (0) TO (10);
                  INSERT INTO kept SELECT i, i FROM generate_series(1, 9) i";
    let database = Database::new("valunlogged", &["kept"], schema).await;
    database
        .at_destination(
            "CREATE TABLE kept (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE UNLOGGED TABLE kept_1 PARTITION OF kept FOR VALUES FROM (0) TO (10)",
        )
        .await;
    let changes = ["UPDATE kept SET id = id + 100"];
    is_corrected(&database, "table public.kept is unlogged at the destination", "public.kept_1 SET LOGGED", &changes)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_views_of_the_tables_names_are_refused_and_corrected_by_the_hint() {
    let schema = "CREATE TABLE ruled (id int PRIMARY KEY, v int); INSERT INTO ruled VALUES (1, 1)";
    let database = Database::new("valrules", &["ruled"], schema).await;
    database
        .at_destination("CREATE TABLE ruled (id int PRIMARY KEY, v int); CREATE RULE \"No Rows\" AS ON UPDATE TO ruled DO INSTEAD NOTHING")
        .await;
    let setup = Setup::of(&database);
    let message = "rules of table public.ruled at the destination would change what is written to it: \"No Rows\"";
    let found = findings(&setup).await;
    match find(&found, "failed", message) {
        Some(finding) => database.at_destination(&fix(finding)).await,
        // An ordinary rule does not act for a session in replica role.
        None => {
            database.at_destination("ALTER TABLE ruled ENABLE ALWAYS RULE \"No Rows\"").await;
            let finding = is_refused(&setup, message).await;
            database.at_destination(&fix(&finding)).await;
        }
    }
    follows(&database, &setup, &["UPDATE ruled SET v = 2"]).await;

    let database =
        Database::new("valview", &["seen"], "CREATE TABLE seen (id int PRIMARY KEY); INSERT INTO seen VALUES (1)")
            .await;
    database.at_destination("CREATE VIEW seen AS SELECT 1 AS id").await;
    let changes = ["INSERT INTO seen VALUES (2)"];
    is_corrected(&database, "public.seen is a view at the destination, not a table", "ALTER VIEW", &changes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_in_the_bookkeepings_schema_is_refused() {
    let schema = "CREATE SCHEMA headwater; CREATE TABLE headwater.t (id int PRIMARY KEY)";
    let database = Database::new("valschema", &["headwater.t"], schema).await;
    is_refused(&Setup::of(&database), "table headwater.t would stand in a schema that headwater keeps for itself")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_always_identity_outside_of_the_key_is_refused_and_then_follows_every_update() {
    let schema = "CREATE TABLE numbered (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text);
                  INSERT INTO numbered (id, v) SELECT i, 'v' FROM generate_series(1, 5) i";
    let database = Database::new("valalways", &["numbered"], schema).await;
    database
        .at_destination("CREATE TABLE numbered (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text)")
        .await;
    let changes = ["UPDATE numbered SET n = DEFAULT WHERE id IN (2, 4)", "UPDATE numbered SET v = 'w', n = DEFAULT"];
    let detail = "column n is GENERATED ALWAYS AS IDENTITY here, so no update could set it";
    is_corrected(&database, "table public.numbered at the destination does not fit the source", detail, &changes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_of_a_table_that_headwater_creates_follows_every_update() {
    let schema = "CREATE TABLE numbered (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text);
                  INSERT INTO numbered (id, v) SELECT i, 'v' FROM generate_series(1, 5) i";
    let database = Database::new("valmade", &["numbered"], schema).await;
    follows(&database, &Setup::of(&database), &["UPDATE numbered SET n = DEFAULT WHERE id IN (2, 4)"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_identity_is_not_narrowed_to_a_key_that_only_the_destination_has() {
    let schema = "CREATE TABLE pairs (x int NOT NULL, y int); ALTER TABLE pairs REPLICA IDENTITY FULL;
                  INSERT INTO pairs VALUES (1, 5), (2, 11)";
    let database = Database::new("valfull", &["pairs"], schema).await;
    database.at_destination("CREATE TABLE pairs (x int PRIMARY KEY DEFERRABLE, y int)").await;
    database.at_destination("ALTER TABLE pairs ADD UNIQUE (x)").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database
        .at_source(
            "BEGIN; INSERT INTO pairs VALUES (3, 1); UPDATE pairs SET y = y + 1; DELETE FROM pairs WHERE x = 3; COMMIT",
        )
        .await;
    database.assert_catches_up().await;
    // Two rows of the source hold what is one key here: the stream waits, and no row is lost.
    database
        .at_source(
            "BEGIN; INSERT INTO pairs VALUES (1, 1); UPDATE pairs SET x = x + 1; DELETE FROM pairs WHERE x = 2; COMMIT",
        )
        .await;
    service.is("waiting").await;
    let rows = "SELECT string_agg(t::text, ';' ORDER BY x) FROM pairs t";
    assert_eq!(database.destination_value(rows).await.as_deref(), Some("(1,6);(2,12)"));
    database.at_destination("ALTER TABLE pairs DROP CONSTRAINT pairs_pkey, DROP CONSTRAINT pairs_x_key").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_wins_loses_no_row_where_the_sources_key_has_changed() {
    let schema =
        "CREATE TABLE rows (tenant int NOT NULL, id int NOT NULL, v text, CONSTRAINT rows_pkey PRIMARY KEY (id));
                  INSERT INTO rows VALUES (1, 1, 'a')";
    let database = Database::new("valkeys", &["rows"], schema).await;
    let service = Setup::of(&database).setting("on_conflict = \"source-wins\"").start();
    service.streams().await;
    database
        .at_source(
            "ALTER TABLE rows DROP CONSTRAINT rows_pkey; ALTER TABLE rows ADD CONSTRAINT rows_pkey PRIMARY KEY (tenant, id)",
        )
        .await;
    database.at_source("INSERT INTO rows VALUES (2, 1, 'b')").await;
    // The row of the other tenant is in the way of the destination's key alone.
    let is_there = || async {
        let sql = "SELECT string_agg(tenant || v, ',' ORDER BY tenant) FROM rows";
        let found = database.destination_value(sql).await;
        assert_ne!(found.as_deref(), Some("2b"), "the source still has row (1, 1)");
        let waits = service.status().await.is_some_and(|status| status["state"] == "waiting");
        (waits || found.as_deref() == Some("1a,2b")).then_some(())
    };
    eventually("both rows are there, or the stream waits", is_there).await;
    if database.destination_value("SELECT count(*)::text FROM rows").await.as_deref() == Some("1") {
        database
            .at_destination("ALTER TABLE rows DROP CONSTRAINT rows_pkey; ALTER TABLE rows ADD PRIMARY KEY (tenant, id)")
            .await;
    }
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scales_below_zero_and_above_the_precision_are_copied_and_rounded_no_further() {
    let probe = Database::new("valprobe", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    if probe.source_major().await < 15 {
        println!("left out: the source knows no such scale");
        return;
    }
    let schema = "CREATE DOMAIN thousands AS numeric(6,-3); CREATE TYPE scaled AS (small numeric(3,5));
                  CREATE TABLE scales (id int PRIMARY KEY, a numeric(5,-2), b numeric(3,5), c thousands, d scaled, e numeric(5,-2)[]);
                  INSERT INTO scales VALUES (1, 1234567, 0.00123, 123456, ROW(0.00321), '{12345,NULL}')";
    let database = Database::new("valscales", &["scales"], schema).await;
    let changes = ["INSERT INTO scales VALUES (2, -99, -0.00999, 500, NULL, '{}')", "UPDATE scales SET a = 7654321"];
    follows(&database, &Setup::of(&database), &changes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn intervals_mean_the_same_to_either_major() {
    let schema = "CREATE TABLE waits (id int PRIMARY KEY, i interval, many interval[]);
                  INSERT INTO waits VALUES (1, '1 mon -2 days 00:00:00.000001', '{1 day,NULL}'),
                      (2, '-178000000 years', NULL), (3, '2147483646 days', '{-1 mon}')";
    let database = Database::new("valintervals", &["waits"], schema).await;
    let (source, destination) = (database.source_major().await, database.destination_major().await);
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database
        .at_source("INSERT INTO waits SELECT id + 10, -i, many FROM waits; UPDATE waits SET i = i * 2 WHERE id = 1")
        .await;
    database.assert_catches_up().await;
    if source < 17 {
        return service.stop().await;
    }
    database.at_source("INSERT INTO waits VALUES (20, 'infinity', '{-infinity}')").await;
    if destination >= 17 {
        database.assert_catches_up().await;
        return service.stop().await;
    }
    // What the older major cannot hold becomes no other value.
    service.is("waiting").await;
    assert_eq!(
        database.destination_value("SELECT count(*)::text FROM waits WHERE id = 20").await.as_deref(),
        Some("0")
    );
    database.at_source("DELETE FROM waits WHERE id = 20").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_only_a_later_major_reads_is_a_conflict_and_never_altered() {
    let schema = "CREATE EXTENSION ltree; CREATE TABLE paths (id int PRIMARY KEY, p jsonpath); CREATE TABLE trees (id int PRIMARY KEY, t ltree);
                  INSERT INTO paths VALUES (1, '$.a ? (@ > 1.50)'), (2, NULL); INSERT INTO trees VALUES (1, 'a.b')";
    let database = Database::of_superuser("valpaths", &["paths", "trees"], schema).await;
    database.at_destination("CREATE EXTENSION ltree").await;
    let (source, destination) = (database.source_major().await, database.destination_major().await);
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("INSERT INTO paths VALUES (3, '$[*].size()'); INSERT INTO trees VALUES (2, 'c.d_e')").await;
    database.assert_catches_up().await;
    // Each with the major that it came with.
    for (since, value, table) in
        [(16, "trees VALUES (9, 'a-b.c')", "trees"), (17, "paths VALUES (9, '$.a.bigint()')", "paths")]
    {
        if source < since {
            continue;
        }
        database.at_source(&format!("INSERT INTO {value}")).await;
        if destination >= since {
            database.assert_catches_up().await;
            continue;
        }
        service.says(&format!("insert on table public.{table} (key id)")).await;
        service.is("waiting").await;
        let (code, shown) = service.command(&["conflict", "show"]).await;
        assert_eq!(code, Some(1), "{shown}");
        assert!(shown.contains(&format!("data_exception on public.{table}")), "{shown}");
        let (_, skip) = shown.rsplit_once("headwater skip ").expect("a way out");
        let words: Vec<&str> = std::iter::once("skip").chain(skip.split_whitespace().take(2)).collect();
        let (code, said) = service.command(&words).await;
        assert_eq!(code, Some(0), "{said}");
        service.streams().await;
        database.at_source(&format!("DELETE FROM {table} WHERE id = 9")).await;
        database.assert_catches_up().await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_name_missing_objects_are_told_by_check() {
    let schema = "CREATE TABLE named (id int PRIMARY KEY, c regclass, many regtype[]);
                  CREATE TABLE only_here (id int); CREATE TYPE only_mine AS ENUM ('a');
                  INSERT INTO named VALUES (1, 'only_here', '{int4,only_mine}'), (2, 'pg_class', NULL), (3, '-', '{}')";
    let database = Database::new("valnames", &["named"], schema).await;
    let setup = Setup::of(&database);
    let found = findings(&setup).await;
    for column in ["c", "many"] {
        let message = format!("values of column public.named.{column} name 1 objects that the destination lacks");
        assert!(find(&found, "failed", &message).is_some(), "no {message:?} in {found:#?}");
    }
    database.at_destination("CREATE TABLE only_here (id int); CREATE TYPE only_mine AS ENUM ('a')").await;
    let found = findings(&setup).await;
    assert!(find(&found, "failed", "name 1 objects").is_none(), "{found:#?}");
    follows(&database, &setup, &["INSERT INTO named VALUES (4, 'only_here', '{only_mine}')"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_types_whose_text_leaves_digits_out_are_named_by_check() {
    let schema = "CREATE EXTENSION seg; CREATE TABLE marks (id int PRIMARY KEY, s seg, fine seg);
                  INSERT INTO marks VALUES (1, '1.23456789', '1.5')";
    let database = Database::of_superuser("valseg", &["marks"], schema).await;
    database.at_destination("CREATE EXTENSION seg").await;
    let found = findings(&Setup::of(&database)).await;
    assert!(
        find(&found, "warning", "values of column public.marks.s (seg) are not exact as text").is_some(),
        "{found:#?}"
    );
    assert!(find(&found, "warning", "public.marks.fine").is_none(), "{found:#?}");
}
