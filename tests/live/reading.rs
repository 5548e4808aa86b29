//! Reading one's own writes at the destination.

use crate::support::roles::Roles;
use crate::support::{Database, Script, Setup, destination, eventually, source};

#[tokio::test(flavor = "multi_thread")]
async fn an_application_reads_its_own_writes_after_waiting_for_their_position() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let database = Database::new("reading", &["t"], schema).await;
    let role = format!("app_{}", database.name);
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let there = "SELECT (to_regprocedure('headwater.wait_for(pg_lsn, interval)') IS NOT NULL)::text";
    eventually("the functions are there", || async {
        (database.destination_value(there).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    // An application's role that may read the table and use the schema, and nothing else of it.
    database
        .at_destination(&format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA headwater TO {role}; GRANT SELECT ON t TO {role}; SET ROLE {role}"
        ))
        .await;
    for id in 0..20 {
        database.at_source(&format!("INSERT INTO t VALUES ({id}, 'mine')")).await;
        let written = database.source_value("SELECT pg_current_wal_insert_lsn()::text").await.unwrap();
        let waited = database.destination_value(&format!("SELECT headwater.wait_for('{written}', '60 s')::text")).await;
        assert_eq!(waited.as_deref(), Some("true"));
        let row = database.destination_value(&format!("SELECT v FROM t WHERE id = {id}")).await;
        assert_eq!(row.as_deref(), Some("mine"), "row {id} after waiting for {written}");
        let applied =
            database.destination_value(&format!("SELECT (headwater.applied_lsn() >= '{written}')::text")).await;
        assert_eq!(applied.as_deref(), Some("true"));
    }
    let never = "SELECT headwater.wait_for('FFFF/0', '200 ms')::text";
    assert_eq!(database.destination_value(never).await.as_deref(), Some("false"));
    let old = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT headwater.wait_for('0/1')";
    let refused = database.destination.script("an old snapshot", old).await.expect_err("refused");
    assert!(refused.to_string().contains("SQLSTATE 55000"), "{refused}");
    database.at_destination("ROLLBACK").await;
    let hidden = database.destination.batch("the bookkeeping itself", "SELECT * FROM headwater.stream").await;
    assert!(hidden.is_err(), "an application's role sees nothing else");
    service.stop().await;
}

/// The functions in schema headwater, each with what it sets.
const FUNCTIONS: &str =
    "SELECT string_agg(proname || ' ' || coalesce(proconfig::text, 'nothing'), E'\\n' ORDER BY proname)
    FROM pg_proc WHERE pronamespace = 'headwater'::regnamespace";
/// The same where each looks into pg_temp last.
const PINNED: &str = r#"advance {"search_path=pg_catalog, pg_temp"}
applied_lsn {"search_path=pg_catalog, pg_temp"}
expect {"search_path=pg_catalog, pg_temp"}
other_table {"search_path=pg_catalog, pg_temp"}
random_key {"search_path=pg_catalog, pg_temp"}
statement_replaced {"search_path=pg_catalog, pg_temp"}
wait_for {"search_path=pg_catalog, pg_temp"}"#;

async fn functions_are_pinned(database: &Database) {
    eventually("each function of schema headwater has its search_path", || async {
        (database.destination_value(FUNCTIONS).await.as_deref() == Some(PINNED)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_and_tables_in_the_callers_pg_temp_are_not_taken_by_headwaters_functions() {
    let database = Database::new("pg_temp", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let role = format!("app_{}", database.name);
    let service = Setup::of(&database).start();
    service.streams().await;
    functions_are_pinned(&database).await;
    let domains = [
        ("timestamptz", "timestamptz"),
        ("float8", "float8"),
        ("pg_lsn", "pg_lsn"),
        ("interval", "interval"),
        ("text", "text"),
        ("boolean", "bool"),
        ("bool", "bool"),
        ("numeric", "numeric"),
        ("int4", "int4"),
        ("tid", "tid"),
    ];
    let domains = domains.map(|(name, base)| {
        format!("CREATE DOMAIN pg_temp.\"{name}\" AS pg_catalog.{base} CHECK (pg_temp.strange());")
    });
    database
        .at_destination(&format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA headwater TO {role}; SET ROLE {role}; SET search_path = pg_catalog, pg_temp;
             CREATE FUNCTION pg_temp.strange() RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
             BEGIN
                 IF current_user <> '{role}' THEN RAISE 'code of {role} runs as %', current_user; END IF;
                 RETURN true;
             END $$;
             CREATE TABLE pg_temp.position (position pg_catalog.pg_lsn); CREATE VIEW pg_temp.pg_class AS SELECT 1 AS one; {}",
            domains.join(" ")
        ))
        .await;
    for path in ["pg_catalog, pg_temp", "pg_temp, pg_catalog"] {
        database.at_destination(&format!("SET search_path = {path}")).await;
        let waited = "SELECT headwater.wait_for('0/1', '1 s')::pg_catalog.text";
        assert_eq!(database.destination_value(waited).await.as_deref(), Some("true"), "{path}");
        let never = "SELECT headwater.wait_for('FFFF/0', '20 ms')::pg_catalog.text";
        assert_eq!(database.destination_value(never).await.as_deref(), Some("false"), "{path}");
        let applied = "SELECT (headwater.applied_lsn() > '0/1')::pg_catalog.text";
        assert_eq!(database.destination_value(applied).await.as_deref(), Some("true"), "{path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_an_earlier_version_are_replaced_and_keep_their_grants() {
    let database = Database::new("replaced", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let role = format!("app_{}", database.name);
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    functions_are_pinned(&database).await;
    service.stop().await;
    database
        .at_destination(&format!(
            "CREATE ROLE {role}; REVOKE EXECUTE ON FUNCTION headwater.applied_lsn() FROM PUBLIC;
             GRANT EXECUTE ON FUNCTION headwater.applied_lsn() TO {role};
             ALTER FUNCTION headwater.wait_for SET search_path = pg_catalog; ALTER FUNCTION headwater.advance RESET ALL;
             ALTER FUNCTION headwater.expect RESET ALL; ALTER FUNCTION headwater.random_key RESET ALL;
             CREATE OR REPLACE FUNCTION headwater.applied_lsn() RETURNS pg_lsn LANGUAGE sql VOLATILE SECURITY DEFINER
             SET search_path = pg_catalog, pg_temp AS 'SELECT NULL::pg_lsn'"
        ))
        .await;
    let kept = "SELECT string_agg(proname || ' ' || proowner || coalesce(proacl::text, ''), E'\\n' ORDER BY proname)
                FROM pg_proc WHERE pronamespace = 'headwater'::regnamespace";
    let before = database.destination_value(kept).await;
    let service = setup.start();
    service.streams().await;
    functions_are_pinned(&database).await;
    eventually("a changed body is replaced", || async {
        let applied = "SELECT (headwater.applied_lsn() IS NOT NULL)::text";
        (database.destination_value(applied).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    assert_eq!(database.destination_value(kept).await, before);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_of_an_earlier_version_with_another_owner_is_named_with_its_fix() {
    let roles = Roles::Least { replica: false };
    let schema = "CREATE TABLE t (id int PRIMARY KEY)";
    let database = Database::under(roles, source().await, destination().await, "not_ours", &["t"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    functions_are_pinned(&database).await;
    service.stop().await;
    database
        .at_destination(
            "ALTER FUNCTION headwater.wait_for SET search_path = pg_catalog; ALTER FUNCTION headwater.wait_for OWNER TO current_user",
        )
        .await;
    let service = setup.start();
    service
        .says("cannot replace function headwater.wait_for(pg_lsn,interval) of an earlier version: it belongs to role ")
        .await;
    database
        .at_destination("ALTER FUNCTION headwater.wait_for(pg_lsn,interval) SET search_path = pg_catalog, pg_temp;")
        .await;
    functions_are_pinned(&database).await;
    service.streams().await;
    assert!(
        service
            .log()
            .contains("ALTER FUNCTION headwater.wait_for(pg_lsn,interval) SET search_path = pg_catalog, pg_temp;")
    );
    service.stop().await;
}
