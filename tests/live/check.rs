//! Check names every requirement that is not met; each is provoked here, and mended by running what it prints, verbatim.

use headwater::commands::demo::{Cluster, StopMode};
use serde_json::Value;

use crate::support::{Database, Setup, bin, destination, new_source, parent, source};

const TABLES: &[&str] = &["parent", "child"];
const SCHEMA: &str = "
    CREATE TABLE parent (id int PRIMARY KEY, v text);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, v varchar(20));
    INSERT INTO parent VALUES (1, 'secret'); INSERT INTO child VALUES (1, 1, 'secret');";

/// What check found, as objects.
async fn findings(setup: &Setup) -> Vec<Value> {
    let finished = setup.command(&["check", "--json"]).await;
    let found: Value =
        serde_json::from_str(&finished.out).unwrap_or_else(|_| panic!("no JSON:\n{}{}", finished.out, finished.err));
    let found = found.as_array().expect("an array").clone();
    let failed = found.iter().any(|finding| finding["standing"] == "failed");
    assert_eq!(finished.code, Some(i32::from(failed)), "{}", finished.out);
    assert!(!finished.out.contains("secret"), "a value is in\n{}", finished.out);
    found
}

/// The finding with this text in its message and this standing.
fn find<'a>(found: &'a [Value], standing: &str, text: &str) -> Option<&'a Value> {
    found.iter().find(|finding| {
        finding["standing"] == standing && finding["message"].as_str().unwrap_or_default().contains(text)
    })
}

/// The SQL that a finding's hint holds: all but its first line.
fn fix(finding: &Value) -> String {
    let hint = finding["hint"].as_str().unwrap_or_else(|| panic!("no hint in {finding}"));
    let lines: Vec<&str> = hint.lines().skip(1).collect();
    assert!(!lines.is_empty(), "no SQL in {finding}");
    lines.join("\n")
}

/// A pair of databases with an ordinary role on either side, to which everything is granted that check asks for.
async fn granted(name: &str) -> (Database, Setup, String) {
    let database = Database::of_superuser(name, TABLES, SCHEMA).await;
    let role = format!("r_{}", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON parent, child TO {role};
             CREATE PUBLICATION {} FOR TABLE parent, child",
            database.name
        ))
        .await;
    database
        .at_destination(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role}", database.name))
        .await;
    database.at_destination(&format!("GRANT USAGE, CREATE ON SCHEMA public TO {role}")).await;
    let mut setup = Setup::of(&database);
    let login = format!("{role}@");
    setup.source_url = setup.source_url.replace("postgres@", &login);
    setup.destination_url = setup.destination_url.replace("postgres@", &login);
    (database, setup, role)
}

/// Breaks something, sees it reported, runs the printed fix on the side that it is about, and sees it gone.
async fn provoke(database: &Database, setup: &Setup, (side, sql): (&str, &str), message: &str) {
    let at = async |side: &str, sql: &str| match side {
        "source" => database.at_source(sql).await,
        _ => database.at_destination(sql).await,
    };
    at(side, sql).await;
    let found = findings(setup).await;
    let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no failure {message:?} in {found:#?}"));
    let about = if finding["about"] == "both" { "destination" } else { finding["about"].as_str().expect("a side") };
    at(about, &fix(finding)).await;
    let found = findings(setup).await;
    assert!(find(&found, "failed", message).is_none(), "{message:?} is still there after its fix: {found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_pair_passes_and_nothing_is_changed() {
    let (database, setup, _) = granted("good").await;
    let objects =
        "SELECT string_agg(relname, ',' ORDER BY relname) || (SELECT count(*) FROM pg_namespace) FROM pg_class
                   WHERE relnamespace <> 'pg_toast'::regnamespace";
    let before = (database.source_value(objects).await, database.destination_value(objects).await);
    let finished = setup.command(&["check"]).await.exits(0);
    let finished =
        finished.says(&["connection", "server", "replication", "publication", "privileges", "columns", "0 failed"]);
    assert!(finished.out.contains("session_replication_role  warning"), "{}", finished.out);
    let slots = format!("SELECT count(*)::text FROM pg_replication_slots WHERE database = '{}'", database.name);
    assert_eq!(database.source_value(&slots).await.as_deref(), Some("0"));
    assert_eq!(before, (database.source_value(objects).await, database.destination_value(objects).await));
    // What a start would do is said, and only tried.
    database.at_source(&format!("DROP PUBLICATION {}", database.name)).await;
    let superuser = Setup::of(&database);
    superuser.command(&["check"]).await.exits(0).says(&["will create publication"]);
    let publications = "SELECT count(*)::text FROM pg_publication";
    assert_eq!(database.source_value(publications).await.as_deref(), Some("0"));
    let service = superuser.start();
    service.streams().await;
    superuser.command(&["check"]).await.exits(0).says(&[
        "fed through slot",
        "the source leads on from",
        "an instance runs",
    ]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failed_requirement_of_the_source_is_mended_by_what_is_printed() {
    let (database, setup, role) = granted("mends").await;
    let name = &database.name;
    let cases = [
        (format!("ALTER ROLE {role} NOREPLICATION"), "may not replicate"),
        (format!("REVOKE SELECT ON child FROM {role}"), "may not read table public.child at the source"),
        ("ALTER TABLE child ENABLE ROW LEVEL SECURITY".to_owned(), "would hide rows"),
        (format!("ALTER PUBLICATION {name} SET (publish = 'insert, update')"), "leaves out delete, truncate"),
        (format!("ALTER PUBLICATION {name} DROP TABLE child"), "does not hold public.child"),
        (format!("DROP PUBLICATION {name}"), "our role may not create it"),
        (
            format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"),
            "this destination has no record of it",
        ),
    ];
    for (sql, message) in cases {
        provoke(&database, &setup, ("source", &sql), message).await;
    }
    // These need the table out of the publication, or to be published by us.
    let superuser = Setup::of(&database);
    database.at_source(&format!("DROP PUBLICATION {name}")).await;
    provoke(&database, &superuser, ("source", "ALTER TABLE child REPLICA IDENTITY NOTHING"), "has no replica identity")
        .await;
    provoke(&database, &superuser, ("source", "ALTER TABLE child SET UNLOGGED"), "is unlogged or temporary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failed_requirement_of_the_destination_is_mended_by_what_is_printed() {
    let (database, setup, role) = granted("mendd").await;
    let name = &database.name;
    database
        .at_destination(&format!(
            "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (id int PRIMARY KEY, parent int, v varchar(20));
             GRANT ALL ON parent, child TO {role}"
        ))
        .await;
    let cases = [
        (format!("REVOKE CREATE ON DATABASE {name} FROM {role}"), "may not create schemas at the destination"),
        (format!("REVOKE UPDATE, TRUNCATE ON child FROM {role}"), "lacks UPDATE, TRUNCATE on table public.child"),
        (
            "ALTER TABLE parent ENABLE ROW LEVEL SECURITY".to_owned(),
            "row-level security of table public.parent at the destination",
        ),
        (
            "ALTER TABLE child ALTER COLUMN v TYPE varchar(10)".to_owned(),
            "table public.child at the destination does not fit",
        ),
        ("ALTER TABLE child DROP COLUMN v".to_owned(), "table public.child at the destination does not fit"),
        (
            "ALTER TABLE child ADD COLUMN mine int NOT NULL".to_owned(),
            "table public.child at the destination does not fit",
        ),
        (
            format!(
                "DROP TABLE child; REVOKE CREATE ON SCHEMA public FROM {role}; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
            ),
            "may not use schema public at the destination",
        ),
    ];
    for (sql, message) in cases {
        provoke(&database, &setup, ("destination", &sql), message).await;
    }
    let found = findings(&setup).await;
    let finding = find(&found, "warning", "origin: foreign keys and triggers act").expect("a warning about the role");
    if !fix(finding).is_empty() && destination().await.connect("postgres").await.is_ok() {
        database.at_destination(&fix(finding)).await;
        assert!(find(&findings(&setup).await, "ok", "replica: foreign keys").is_some());
    }
    // Rows that are there need the operator's word, and get it as the hint says.
    database.at_destination("INSERT INTO parent VALUES (7, 'here')").await;
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "destination tables already have rows").expect("a failure");
    assert!(finding["hint"].as_str().unwrap_or_default().contains("--resnapshot"), "{finding}");
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    database.assert_equal().await;
    service.stop().await;
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_need_a_restart_are_mended_by_what_is_printed() {
    // Nothing on its command line: ALTER SYSTEM must be able to change what check complains about.
    let mut cluster = Cluster::start_new(&bin("SOURCE"), &parent(), "source", &[("fsync", "off")], &[]).await.unwrap();
    let mut database = Database::on(&cluster, destination().await, "restart", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    database.at_source("ALTER SYSTEM SET max_replication_slots = 0").await;
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    let found = findings(&setup).await;
    for message in ["wal_level is replica at the source", "all 0 replication slots at the source are taken"] {
        let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no {message:?} in {found:#?}"));
        database.at_source(&fix(finding)).await;
    }
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));

    database.at_source("ALTER SYSTEM SET max_wal_senders = 0").await;
    database.at_source("ALTER SYSTEM SET wal_level = replica").await;
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    let found = findings(&setup).await;
    for message in ["max_wal_senders is 0 at the source", "wal_level is replica at the source"] {
        let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no {message:?} in {found:#?}"));
        database.at_source(&fix(finding)).await;
    }
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_left_open_and_synchronous_standbys_are_found() {
    let cluster = new_source(&[("max_prepared_transactions", "5")]).await;
    let database = Database::on(&cluster, destination().await, "prepared", TABLES, SCHEMA).await;
    let setup = Setup::of(&database).setting("fence_timeout = \"100ms\"");
    database.at_source("BEGIN; INSERT INTO parent VALUES (5); PREPARE TRANSACTION 'it''s open'").await;
    let found = findings(&setup).await;
    let finding =
        find(&found, "failed", "prepared transaction 'it''s open' has been left open").expect("the transaction");
    database.at_source(&fix(finding)).await;
    assert!(find(&findings(&setup).await, "failed", "prepared transaction").is_none());

    let long = cluster.connect(&database.name).await.unwrap();
    long.batch("a long transaction", "BEGIN; INSERT INTO public.parent VALUES (6)").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let found = findings(&setup).await;
    let finding = find(&found, "warning", "has been in a transaction for").expect("the transaction");
    database.at_source(finding["hint"].as_str().unwrap().lines().last().unwrap()).await;
    assert!(find(&findings(&setup).await, "warning", "has been in a transaction for").is_none());

    database.at_source("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    database.source_value("SELECT pg_reload_conf()::text").await;
    crate::support::eventually("the setting is in force", || async {
        find(&findings(&setup).await, "failed", "headwater would be a synchronous standby").map(|_| ())
    })
    .await;
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "headwater would be a synchronous standby").unwrap();
    for statement in fix(finding).lines() {
        // One by one: ALTER SYSTEM cannot be part of several.
        database.at_source(statement).await;
    }
    crate::support::eventually("the setting is mended", || async {
        find(&findings(&setup).await, "failed", "synchronous standby").is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_does_not_answer_is_one_failure_and_the_other_side_is_looked_at() {
    let database = Database::new("oneside", TABLES, SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.source_url = format!("postgresql://postgres@127.0.0.1:1/{}", database.name);
    let found = findings(&setup).await;
    assert_eq!(found.iter().filter(|finding| finding["standing"] == "failed").count(), 1, "{found:#?}");
    assert!(found.iter().any(|finding| finding["about"] == "destination" && finding["what"] == "privileges"));
    let mut setup = Setup::of(&database);
    setup.destination_url = source().await.tcp_url(&database.name);
    assert!(find(&findings(&setup).await, "failed", "source and destination are the same database").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_points_at_the_set_from_outside_is_named() {
    let database = Database::new("outside", &["parent"], SCHEMA).await;
    database
        .at_destination(
            "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE mine (p int REFERENCES parent);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER always BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE parent ENABLE ALWAYS TRIGGER always",
        )
        .await;
    let setup = Setup::of(&database);
    let found = findings(&setup).await;
    assert!(find(&found, "warning", "local tables point at table public.parent: public.mine").is_some(), "{found:#?}");
    assert!(
        find(&found, "warning", "triggers of table public.parent fire for what is applied: always").is_some(),
        "{found:#?}"
    );
    let database = Database::new("outside2", &["child"], SCHEMA).await;
    let found = findings(&Setup::of(&database)).await;
    assert!(find(&found, "warning", "points at public.parent, which is not replicated").is_some(), "{found:#?}");
}
