//! Teardown removes what headwater made, says what it left, and touches no row.

use crate::support::{Database, Setup};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v')";

async fn slots(database: &Database) -> Option<String> {
    let sql = format!("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    database.source_value(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_headwater_made_goes_and_the_rows_stay() {
    let database = Database::new("teardown", &["t"], SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    setup.command(&["teardown"]).await.exits(1).says(&["an instance runs (process", "Stop every headwater run"]);
    service.stop().await;
    let dry = setup.command(&["teardown", "--dry-run"]).await.exits(0);
    dry.says(&["would remove: slot", "would remove: publication", "would remove: the bookkeeping"]);
    assert_eq!(slots(&database).await.as_deref(), Some("1"), "a dry run removes nothing");
    setup.command(&["teardown"]).await.exits(0).says(&[
        "removed: slot",
        "removed: publication",
        "removed: the bookkeeping",
    ]);
    assert_eq!(slots(&database).await.as_deref(), Some("0"));
    let publications = database.source_value("SELECT count(*)::text FROM pg_publication").await;
    assert_eq!(publications.as_deref(), Some("0"));
    let schemas = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater%'";
    assert_eq!(database.destination_value(schemas).await.as_deref(), Some("0"));
    database.assert_equal().await;
    // Again, and then from the start.
    setup.command(&["teardown"]).await.exits(0).says(&["kept: slot", "does not exist", "there is no bookkeeping"]);
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    database.assert_equal().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_to_be_ours_is_left() {
    let database = Database::new("notours", &["t"], SCHEMA).await;
    let name = &database.name;
    database.at_source(&format!("CREATE PUBLICATION {name} FOR TABLE t")).await;
    database.source_value(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')::text")).await;
    let setup = Setup::of(&database);
    let finished = setup.command(&["teardown"]).await.exits(1);
    let finished =
        finished.says(&["left: slot", "this destination has no record of it", "which headwater did not create"]);
    assert_eq!(slots(&database).await.as_deref(), Some("1"));
    // What it prints for what is left does remove it.
    let sql = finished.out.lines().find_map(|line| line.trim().strip_prefix("SELECT pg_drop")).expect("the statement");
    database.source_value(&format!("SELECT pg_drop{}", sql.trim_end_matches(';')).replace(')', ")::text")).await;
    assert_eq!(slots(&database).await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_side_out_of_reach_the_other_is_torn_down_and_the_rest_is_named() {
    let database = Database::new("halfway", &["t"], SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    let nowhere = |name: &str| format!("postgresql://postgres@127.0.0.1:1/{name}");
    let without = Setup { destination_url: nowhere(&database.name), ..setup.clone() };
    let finished = without.command(&["teardown"]).await.exits(1);
    finished.says(&[
        "left: slot",
        "whether it is ours is written at the destination",
        "DROP SCHEMA IF EXISTS headwater CASCADE;",
    ]);
    assert_eq!(slots(&database).await.as_deref(), Some("1"), "nobody can say whose it is");
    let without = Setup { source_url: nowhere(&database.name), ..setup.clone() };
    let finished = without.command(&["teardown"]).await.exits(1);
    let finished = finished.says(&[
        "removed: the bookkeeping",
        "at the source, which is out of reach",
        "pg_drop_replication_slot",
    ]);
    let sql: Vec<&str> = finished.out.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert_eq!(sql.len(), 2, "{}", finished.out);
    for statement in sql {
        database.at_source(statement).await;
    }
    assert_eq!(slots(&database).await.as_deref(), Some("0"));
    let neither = Setup { source_url: nowhere("x"), destination_url: nowhere("y"), ..setup };
    neither.command(&["teardown"]).await.exits(1);
}
