//! Collations of the destination that make keys equal which the source tells apart: refused wherever rows are found or kept apart by them.

use crate::support::findings::{find, findings, fix};
use crate::support::{Database, Setup};

const MESSAGE: &str = "collations of the destination make values equal that differ at the source";
const LOOSE: &str = "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)";

/// Both servers know nondeterministic collations, which are ICU's.
async fn have_icu(database: &Database) -> bool {
    let sql = "SELECT count(*)::text FROM pg_collation WHERE collprovider = 'i'";
    let have = database.source_value(sql).await.as_deref() != Some("0")
        && database.destination_value(sql).await.as_deref() != Some("0");
    if !have {
        println!("not run: a server has no ICU");
    }
    have
}

/// The finding of `check`, which a start repeats; `None` when nothing is refused.
async fn refused(setup: &Setup) -> Option<serde_json::Value> {
    let found = findings(setup).await;
    if let Some(finding) = find(&found, "failed", MESSAGE) {
        return Some(finding.clone());
    }
    assert!(found.iter().all(|finding| finding["standing"] != "failed"), "{found:#?}");
    None
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn keys_equal_only_at_the_destination_are_refused_until_the_hint_is_run() {
    let database = Database::of_superuser("loose_keys", &["t"], "SELECT 1").await;
    if !have_icu(&database).await {
        return;
    }
    database.at_destination(&format!("CREATE COLLATION ci {LOOSE}")).await;
    database.at_source(&format!("CREATE COLLATION ci {LOOSE}")).await;
    let setup = Setup::of(&database);
    let source = "CREATE TABLE t (id text PRIMARY KEY, v text UNIQUE, w text)";
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text COLLATE ci); CREATE UNIQUE INDEX i ON t (v COLLATE \"C\");
        ALTER TABLE t ALTER v SET NOT NULL, REPLICA IDENTITY USING INDEX i";
    let key = "Column id of table public.t";
    let ways = [
        (source, "CREATE TABLE t (id text COLLATE ci PRIMARY KEY, v text UNIQUE, w text)", key),
        ("CREATE TABLE t (id varchar(40) PRIMARY KEY)", "CREATE TABLE t (id varchar(40) COLLATE ci)", key),
        (
            source,
            "CREATE TABLE t (id text PRIMARY KEY, v text COLLATE ci UNIQUE, w text)",
            "Column v of table public.t",
        ),
        (
            source,
            "CREATE TABLE t (id text PRIMARY KEY, v text, w text); CREATE UNIQUE INDEX i ON t (v COLLATE ci)",
            "Index i",
        ),
        (
            "CREATE DOMAIN d AS text; CREATE TABLE t (id d PRIMARY KEY)",
            "CREATE DOMAIN d AS text COLLATE ci; CREATE TABLE t (id d PRIMARY KEY)",
            key,
        ),
        (
            "CREATE TABLE t (id text[] PRIMARY KEY)",
            "CREATE DOMAIN d AS text COLLATE ci; CREATE TABLE t (id text[] COLLATE ci PRIMARY KEY)",
            key,
        ),
        (both, both, "Column v of table public.t"),
    ];
    let drop = "DROP TABLE IF EXISTS t; DROP DOMAIN IF EXISTS d; DROP TYPE IF EXISTS r";
    for (there, here, named) in ways {
        database.at_source(&format!("{drop}; {there}")).await;
        database.at_destination(&format!("{drop}; {here}")).await;
        let finding = refused(&setup).await.unwrap_or_else(|| panic!("not refused: {here}"));
        let detail = finding["detail"].as_str().unwrap();
        assert!(
            detail.starts_with(named) && detail.contains(" are equal by collation public.ci.\n"),
            "{here}: {detail}"
        );
        database.at_destination(&fix(&finding)).await;
        assert_eq!(refused(&setup).await, None, "{here}");
    }
    // Part of a value: no statement changes its type while a column has it.
    database
        .at_source(&format!("{drop}; CREATE TYPE r AS (a int, b text); CREATE TABLE t (id r PRIMARY KEY, v text)"))
        .await;
    database
        .at_destination(&format!(
            "{drop}; CREATE TYPE r AS (a int, b text COLLATE ci); CREATE TABLE t (id r PRIMARY KEY, v text)"
        ))
        .await;
    let finding = refused(&setup).await.expect("a row type");
    assert_eq!(finding["hint"], "Create type public.r again at the destination, as it is at the source.");
    let output = setup.start().ends_with(1).await;
    assert!(output.contains(MESSAGE) && !output.contains("published"), "{output}");

    let accepted = [
        // The source has it, too; or is stricter than the destination; or nothing depends on it.
        ("CREATE TABLE t (id text COLLATE ci PRIMARY KEY)", "CREATE TABLE t (id text COLLATE ci PRIMARY KEY)"),
        ("CREATE TABLE t (id text COLLATE ci PRIMARY KEY)", "CREATE TABLE t (id text PRIMARY KEY)"),
        ("CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE TABLE t (id int PRIMARY KEY, v text COLLATE ci)"),
        // An index of the operator's own is his affair, which check's finding on constraints tells.
        (source, "CREATE TABLE t (id text PRIMARY KEY, v text, w text COLLATE ci UNIQUE)"),
        (
            "CREATE TABLE t (id text, v text); ALTER TABLE t REPLICA IDENTITY FULL",
            "CREATE TABLE t (id text COLLATE ci, v text)",
        ),
        (
            "CREATE TYPE r AS (a text COLLATE ci); CREATE TABLE t (id r PRIMARY KEY)",
            "CREATE TYPE r AS (a text COLLATE ci); CREATE TABLE t (id r PRIMARY KEY)",
        ),
    ];
    for (there, here) in accepted {
        database.at_source(&format!("{drop}; {there}")).await;
        database.at_destination(&format!("{drop}; {here}")).await;
        assert_eq!(refused(&setup).await, None, "{here}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn collations_and_domains_used_by_name_are_compared_before_rows_come() {
    let schema =
        "CREATE COLLATION ci (locale = 'C'); CREATE DOMAIN d AS text; CREATE TABLE t (id text COLLATE ci PRIMARY KEY);
        CREATE TABLE u (id d PRIMARY KEY, v text); CREATE UNIQUE INDEX ON u (v COLLATE ci);
        INSERT INTO t VALUES ('a'), ('A'); INSERT INTO u VALUES ('a', 'a'), ('A', 'A')";
    let database = Database::of_superuser("loose_names", &["t", "u"], schema).await;
    if !have_icu(&database).await {
        return;
    }
    database.at_destination(&format!("CREATE COLLATION ci {LOOSE}; CREATE DOMAIN d AS text COLLATE ci")).await;
    let setup = Setup::of(&database);
    let output = setup.start().ends_with(1).await;
    assert!(output.contains(MESSAGE), "{output}");
    assert_eq!(database.destination_value("SELECT COALESCE(to_regclass('t'), to_regclass('u'))::text").await, None);
    let finding = refused(&setup).await.expect("both names");
    for text in
        ["index u_v_idx of public.u, public.t.id", "Type public.d, which the destination would use for public.u.id"]
    {
        assert!(finding["detail"].as_str().unwrap().contains(text), "{finding:#}");
    }
    database.at_destination(&fix(&finding)).await;
    assert_eq!(refused(&setup).await, None);
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;

    // In the stream: a collation, and a domain.
    database.at_destination(&format!("CREATE COLLATION later {LOOSE}; CREATE DOMAIN e AS text COLLATE later")).await;
    database
        .at_source(
            "CREATE COLLATION later (locale = 'C'); ALTER TABLE t ADD COLUMN v text COLLATE later UNIQUE;
             INSERT INTO t VALUES ('b', 'b'), ('B', 'B')",
        )
        .await;
    service.is("waiting").await;
    service
        .says("Column v of table public.t: values that the source tells apart are equal by collation public.later.")
        .await;
    let columns = "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attname IN ('v', 'w')";
    assert_eq!(database.destination_value(columns).await.as_deref(), Some("0"));
    let finding = refused(&setup).await.expect("the column's collation");
    database.at_destination(&fix(&finding)).await;
    service.streams().await;
    database.assert_catches_up().await;
    database
        .at_source("CREATE DOMAIN e AS text; ALTER TABLE t ADD COLUMN w e UNIQUE; INSERT INTO t VALUES ('c', 'c', 'c'), ('C', 'C', 'C')")
        .await;
    service.is("waiting").await;
    service
        .says("Column w of table public.t: values that the source tells apart are equal by collation public.later")
        .await;
    assert_eq!(database.destination_value(columns).await.as_deref(), Some("1"));
    let finding = refused(&setup).await.expect("the domain");
    database.at_destination(&fix(&finding)).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn domains_and_row_types_are_created_with_the_collations_of_the_source() {
    let schema = "CREATE COLLATION plain (locale = 'C');
        CREATE DOMAIN d AS text COLLATE \"C\" CHECK (VALUE <> ''); CREATE DOMAIN over_d AS d COLLATE plain NOT NULL; CREATE DOMAIN same AS d;
        CREATE TYPE r AS (a text COLLATE \"POSIX\", b d, c d COLLATE \"POSIX\", e int);
        CREATE TABLE t (id d PRIMARY KEY, o over_d, s same[], r r, x d COLLATE \"POSIX\")";
    let database = Database::of_superuser("type_collations", &["t"], schema).await;
    let setup = Setup::of(&database);
    // A type's collation that is missing is said like a column's.
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "collation public.plain does not exist at the destination")
        .expect("a domain's collation");
    assert_eq!(finding["detail"], "It is used by public.t.o.");
    database.at_destination(&fix(finding)).await;
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO t VALUES ('a', 'b', '{c}', '(a,b,c,1)', 'x')").await;
    database.assert_catches_up().await;
    database
        .at_source(
            "CREATE DOMAIN later AS varchar(20) COLLATE \"C\"; CREATE TYPE later_r AS (a text COLLATE plain);
             ALTER TABLE t ADD COLUMN l later, ADD COLUMN lr later_r; UPDATE t SET l = 'l', lr = '(a)'",
        )
        .await;
    database.assert_catches_up().await;
    service.stop().await;
    let types = "SELECT string_agg(typname || ' ' || typcollation::regcollation, ', ' ORDER BY typname) FROM pg_type
        WHERE typnamespace = 'public'::regnamespace AND typtype = 'd'";
    let columns = "SELECT string_agg(c.relname || ' ' || attname || ' ' || attcollation::regcollation, ', ' ORDER BY c.relname, attname)
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE attcollation <> 0 AND c.relnamespace = 'public'::regnamespace
        AND c.relname IN ('t', 'r', 'later_r')";
    for sql in [types, columns] {
        let there = database.source_value(sql).await;
        let here = database.destination_value(sql).await;
        assert!(there.as_ref().is_some_and(|found| found.contains("\"C\"") || found.contains("POSIX")), "{there:?}");
        assert_eq!(here, there);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_row_is_found_by_its_image_though_another_is_equal_to_it() {
    let schema = "CREATE TABLE t (v text, n int); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES ('a', 1), ('A', 1), ('b', 1), ('B', 1)";
    let database = Database::of_superuser("loose_rows", &["t"], schema).await;
    if !have_icu(&database).await {
        return;
    }
    database.at_destination(&format!("CREATE COLLATION ci {LOOSE}; CREATE TABLE t (v text COLLATE ci, n int)")).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("DELETE FROM t WHERE v = 'A'; UPDATE t SET n = 2 WHERE v = 'B'").await;
    database.assert_catches_up().await;
    database.at_source("UPDATE t SET v = 'B' WHERE v = 'b'; DELETE FROM t WHERE v = 'a'").await;
    database.assert_catches_up().await;
    service.stop().await;
}
