//! Marks of schema changes: the event triggers that `init --ddl-marks` prints, and what they make of the moment until a change is seen.

use std::time::{Duration, Instant};

use crate::support::findings::findings;
use crate::support::marks::printed_marks;
use crate::support::suspension::all_live;
use crate::support::waits::waits_for_standby;
use crate::support::{Database, Script, Service, Setup, destination, eventually, new_source};

const SCHEMA: &str = "
    CREATE TYPE pair AS (a int, b int);
    CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i;
    CREATE TABLE tree (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE tree_1 PARTITION OF tree FOR VALUES FROM (0) TO (10); CREATE TABLE tree_2 PARTITION OF tree FOR VALUES FROM (10) TO (20);
    INSERT INTO tree SELECT i FROM generate_series(1, 19) i;
    CREATE TABLE pairs (id int PRIMARY KEY, p pair); INSERT INTO pairs VALUES (1, '(1,2)');
    CREATE TABLE other (id int PRIMARY KEY, v text);";

const TABLES: &[&str] = &["t", "tree", "pairs", "other"];

async fn marked(name: &str, setup: impl Fn(&Database) -> Setup) -> (Database, Setup, Service) {
    let database = Database::of_superuser(name, TABLES, SCHEMA).await;
    database.at_source(&printed_marks().await.0).await;
    let setup = setup(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    (database, setup, service)
}

const LOOKED: &str = "has changed a schema, and the tables were looked at";

/// Waits for a row of another table, and asserts that the table is not followed any more, or new, at the very commit that brings it.
async fn is_judged_before(database: &Database, table: &str, id: i32) {
    let rows = format!("(SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM {table} t)");
    let there = database.source_value(&format!("SELECT {rows}")).await;
    let state = format!("(SELECT state FROM headwater.tables WHERE table_name = '{table}')");
    let ask = format!("SELECT CASE WHEN EXISTS (SELECT FROM other WHERE id = {id}) THEN {state} || ':' || {rows} END");
    let seen = eventually("the row behind the change", || async { database.destination_value(&ask).await }).await;
    let (state, rows) = seen.split_once(':').expect("a state");
    assert!(state != "live" || Some(rows) == there.as_deref(), "{table} is {state} with rows of before: {rows}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn with_marks_no_later_row_is_here_beside_a_table_as_it_was_before_its_rewrite() {
    let (database, _, service) = marked("marks", Setup::of).await;
    let changes = [
        ("t", "ALTER TABLE t ALTER n TYPE int USING n * 100"),
        ("tree", "DROP TABLE tree_2"),
        ("pairs", "ALTER TYPE pair DROP ATTRIBUTE b, ADD ATTRIBUTE d int"),
        ("tree", "CREATE TABLE tree_2 PARTITION OF tree FOR VALUES FROM (10) TO (20); INSERT INTO tree VALUES (15)"),
        ("tree", "ALTER TABLE tree DETACH PARTITION tree_2"),
        ("t", "SAVEPOINT s; ALTER TABLE t ALTER n TYPE int USING n + 1; RELEASE s"),
    ];
    for (number, (table, change)) in changes.into_iter().enumerate() {
        let id = i32::try_from(number).expect("a few");
        database.at_source(&format!("BEGIN; {change}; INSERT INTO other VALUES ({id}, 'behind'); COMMIT")).await;
        is_judged_before(&database, table, id).await;
        all_live(&database).await;
        database.assert_catches_up().await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_in_a_transaction_that_arrives_before_it_commits_is_judged_at_its_commit() {
    let (database, _, service) = marked("marksstreamed", Setup::of).await;
    let sql = format!("ALTER DATABASE \"{}\" SET logical_decoding_work_mem = '64kB'", database.name);
    database.at_source(&sql).await;
    service.stop().await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source(
            "BEGIN; INSERT INTO other SELECT i, repeat('v', 100) FROM generate_series(1, 3000) i;
             ALTER TABLE t ALTER n TYPE int USING n * 100; SAVEPOINT s; ALTER TABLE pairs ADD c int; ROLLBACK TO s;
             INSERT INTO other SELECT i, repeat('v', 100) FROM generate_series(3001, 6000) i; COMMIT",
        )
        .await;
    is_judged_before(&database, "t", 6000).await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_rewrite_at_a_mark_halts_in_its_place_where_schema_changes_are_the_operators() {
    let (database, setup, service) =
        marked("marksstop", |database| Setup::of(database).setting("schema_changes = \"stop\"")).await;
    database
        .at_source(
            "BEGIN; ALTER TABLE t ALTER n TYPE int USING n * 100; INSERT INTO other VALUES (1, 'behind'); COMMIT",
        )
        .await;
    service.says("The table was rewritten, and the values of column n may be others.").await;
    service.is("waiting").await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM other").await.as_deref(), Some("0"));
    setup.command(&["resnapshot", "t"]).await.exits(0);
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn marks_cost_a_look_for_each_moment_and_none_for_tables_that_are_not_followed() {
    let (database, _, service) = marked("marksmany", Setup::of).await;
    let looks = || service.log().matches(LOOKED).count();
    // What marks can be about is known from the first one on.
    database.at_source("CREATE TABLE nobody (id int)").await;
    database.caught_up().await;
    let first = looks();
    assert!(first <= 1, "{first}");
    database
        .at_source(
            "DO $$ BEGIN FOR i IN 1..500 LOOP EXECUTE 'CREATE TABLE nobody_' || i || ' (id int)'; END LOOP; END $$;
             DO $$ BEGIN FOR i IN 1..500 LOOP EXECUTE 'DROP TABLE nobody_' || i; END LOOP; END $$;
             SELECT pg_logical_emit_message(true, 'headwater.ddl', repeat('7 ', 100000));
             SELECT pg_logical_emit_message(false, 'headwater.ddl', '*')",
        )
        .await;
    database.caught_up().await;
    assert_eq!(looks(), first);
    database
        .at_source(
            "DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE 'ALTER TABLE t ALTER n SET STATISTICS ' || i % 100; END LOOP; END $$",
        )
        .await;
    database.caught_up().await;
    assert_eq!(looks(), first + 1, "one for all marks of a transaction");
    // A role that writes marks all the time slows the stream down and no more.
    let began = Instant::now();
    database
        .at_source("CREATE PROCEDURE flood() LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..300 LOOP
            PERFORM pg_logical_emit_message(true, 'headwater.ddl', '*'); INSERT INTO other VALUES (i, 'flood'); COMMIT; END LOOP; END $$")
        .await;
    database.at_source("CALL flood()").await;
    database.assert_catches_up().await;
    let most = usize::try_from(began.elapsed().as_millis() / 100).expect("a few") + 2;
    assert!(looks() <= first + 1 + most, "{} looks, at most {most} may be", looks() - first - 1);
    service.is("streaming").await;
    assert!(!service.log().contains("copied again"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn no_schema_change_fails_because_of_marks_and_what_was_printed_takes_them_away() {
    let (database, setup, service) = marked("marksrights", Setup::of).await;
    let told = |wanted: &'static str| {
        let setup = &setup;
        async move {
            let found = findings(setup).await;
            found.iter().any(|finding| finding["message"].as_str().unwrap_or_default().contains(wanted))
        }
    };
    assert!(told("event triggers mark schema changes in the stream").await);
    let listed = setup.command(&["check", "--not-carried"]).await;
    assert!(!listed.out.contains("headwater_ddl"), "they are the source's alone: {}", listed.out);
    let role = format!("\"plain_{}\"", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role}; CREATE SCHEMA theirs AUTHORIZATION {role}; CREATE TABLE theirs.v (id int); ALTER TABLE theirs.v OWNER TO {role};
             DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
                 EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$;
             REVOKE ALL ON SCHEMA headwater_marks FROM PUBLIC"
        ))
        .await;
    // The function of the triggers finds no other under these names.
    let hostile = "CREATE FUNCTION theirs.pg_logical_emit_message(boolean, text, text) RETURNS pg_lsn LANGUAGE plpgsql
                   AS 'BEGIN RAISE ''called''; END'; SET search_path = theirs, pg_catalog";
    for statements in [
        "CREATE TABLE theirs.w (id int); ALTER TABLE theirs.w ADD v int DEFAULT random(); DROP TABLE theirs.w",
        "CREATE TEMP TABLE x (id int); ALTER TABLE x ALTER id TYPE bigint; DROP TABLE x",
        hostile,
        "ALTER TABLE theirs.v ALTER id TYPE bigint; CREATE TYPE theirs.e AS ENUM ('a'); DROP TYPE theirs.e; SET search_path = public",
    ] {
        database.at_source(&format!("SET ROLE {role}; {statements}; RESET ROLE")).await;
    }
    database.at_source("INSERT INTO other VALUES (1, 'streams')").await;
    database.assert_catches_up().await;
    database.at_source("ALTER EVENT TRIGGER headwater_ddl_drop DISABLE").await;
    assert!(told("of the 3 event triggers that mark schema changes, 2 fire").await);
    database.at_source(&printed_marks().await.1).await;
    assert!(told("with the event triggers that headwater init --ddl-marks prints").await);
    database.at_source(&format!("DROP SCHEMA theirs CASCADE; DROP ROLE {role}")).await;
    // Without them the monitor sees it.
    database.at_source("ALTER TABLE t ALTER n TYPE int USING n * 100").await;
    let rows = "SELECT sum(n)::text FROM t";
    let there = database.source_value(rows).await;
    eventually("the copy", || async { (database.destination_value(rows).await == there).then_some(()) }).await;
    all_live(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn no_copy_begins_while_the_stream_cannot_pass_a_mark() {
    let from = new_source(&[]).await;
    let database = Database::on(&from, destination().await, "markscopies", TABLES, SCHEMA).await;
    database.at_source(&printed_marks().await.0).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    waits_for_standby(&from, &database).await;
    let session = from.connect(&database.name).await.unwrap().with_timeout(Duration::from_secs(600));
    let committing = tokio::spawn(async move {
        let sql = "BEGIN; ALTER TABLE public.t ADD more int; INSERT INTO public.t VALUES (99, 9, 9); COMMIT";
        let _ = session.script("committing", sql).await;
    });
    let attempts = async |count: f64| {
        service.metric("headwater_restarts_total{reason=\"transaction_unseen\"}").await.filter(|ended| *ended >= count)
    };
    eventually("an attempt ends at the mark", || attempts(1.0)).await;
    setup.command(&["resnapshot", "--no-wait", "other"]).await.exits(0);
    eventually("the next attempt ends there, too", || attempts(2.0)).await;
    assert!(!service.log().contains("copying public.other again"), "{}", service.log());
    let admin = from.connect(&database.name).await.unwrap();
    admin.batch("naming no standby", "ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    admin.batch("reloading", "SELECT pg_reload_conf()").await.unwrap();
    committing.await.unwrap();
    all_live(&database).await;
    database.assert_catches_up().await;
    service.says("copying public.other again").await;
    service.stop().await;
}
