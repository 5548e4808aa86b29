//! Teardown removes what headwater made, says what it left, and touches no row.

use headwater::commands::demo::StopMode;

use crate::support::findings::granted;
use crate::support::roles::Roles;
use crate::support::waits::holding;
use crate::support::{Database, Script, Setup, destination, eventually, new_source};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v')";

/// Whether the destination's cluster has the replication origin of this test's slot.
async fn has_origin(database: &Database) -> bool {
    let sql = format!("SELECT count(*)::text FROM pg_replication_origin WHERE roname = 'headwater_{}'", database.name);
    database.destination_value(&sql).await.as_deref() == Some("1")
}

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
    setup
        .command(&["teardown"])
        .await
        .exits(1)
        .says(&["an instance runs: at the destination, process", "Stop every headwater run"]);
    service.stop().await;
    // Only a role that may is asked for one.
    let marked = Roles::wanted() != Roles::Least { replica: false };
    assert_eq!(has_origin(&database).await, marked);
    let dry = setup.command(&["teardown", "--dry-run"]).await.exits(0);
    dry.says(&["would remove: slot", "would remove: publication", "would remove: the bookkeeping"]);
    assert_eq!(slots(&database).await.as_deref(), Some("1"), "a dry run removes nothing");
    assert_eq!(has_origin(&database).await, marked, "a dry run removes nothing");
    setup.command(&["teardown"]).await.exits(0).says(&[
        "removed: slot",
        "removed: publication",
        "removed: the bookkeeping",
    ]);
    assert_eq!(slots(&database).await.as_deref(), Some("0"));
    assert!(!has_origin(&database).await, "the replication origin goes");
    let publications = database.source_value("SELECT count(*)::text FROM pg_publication").await;
    assert_eq!(publications.as_deref(), Some("0"));
    let schemas = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater%'";
    assert_eq!(database.destination_value(schemas).await.as_deref(), Some("0"));
    database.assert_equal().await;
    // Again, and then from the start.
    setup.command(&["teardown"]).await.exits(0).says(&["kept: slot", "does not exist", "there is no bookkeeping"]);
    assert!(!has_origin(&database).await, "a teardown makes no replication origin");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_origin_goes_unless_others_use_it_or_the_role_may_not_drop_it() {
    let database = Database::of_superuser("origin", &["t"], SCHEMA).await;
    let name = &database.name;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    setup.command(&["teardown", "--dry-run"]).await.exits(0).says(&["would remove: replication origin"]);
    // A role that owns what headwater made, and may not drop origins.
    let role = format!("owner_{name}");
    database
        .at_destination(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {name} TO {role};
             ALTER SCHEMA headwater OWNER TO {role};
             GRANT SELECT ON ALL TABLES IN SCHEMA headwater TO {role}"
        ))
        .await;
    let as_owner =
        Setup { destination_url: setup.destination_url.replace("//postgres@", &format!("//{role}@")), ..setup.clone() };
    let finished = as_owner.command(&["teardown"]).await.exits(1);
    let finished = finished.says(&["left: replication origin", "permission denied", "removed: the bookkeeping"]);
    assert!(has_origin(&database).await);
    let sql = finished.out.lines().find_map(|line| line.trim().strip_prefix("SELECT ")).expect("the statement");
    database.at_destination(&format!("SELECT {sql}")).await;
    assert!(!has_origin(&database).await, "what is printed removes it");

    // Another database of the cluster is fed by a slot of the same name: its session holds the origin.
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    service.stop().await;
    let other = destination().await.connect("postgres").await.unwrap();
    let hold = format!("SELECT pg_replication_origin_session_setup('headwater_{name}')");
    other.script("using the origin", &hold).await.unwrap();
    setup.command(&["teardown"]).await.exits(0).says(&["kept: replication origin", "is in use"]);
    assert!(has_origin(&database).await);
    other.batch("letting go", "SELECT pg_replication_origin_session_reset()").await.unwrap();
    database.at_destination(&format!("SELECT pg_replication_origin_drop('headwater_{name}')")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_made_read_only_for_the_cut_over_is_torn_down_too() {
    let mut source = new_source(&[]).await;
    let mut database = Database::on(&source, destination().await, "frozen", &["t"], SCHEMA).await;
    for parameter in ["", "target_session_attrs=read-write"] {
        let mut setup = Setup::of(&database);
        if !parameter.is_empty() {
            let separator = if setup.source_url.contains('?') { '&' } else { '?' };
            setup.source_url.push_str(&format!("{separator}{parameter}"));
        }
        let service = setup.start();
        service.streams().await;
        service.stop().await;
        let role =
            setup.source_url.split("//").nth(1).and_then(|rest| rest.split('@').next()).expect("a role").to_owned();
        let freeze = format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name);
        database.at_source(&freeze).await;
        let of_role = format!(
            "SET default_transaction_read_only = off; ALTER ROLE {role} SET default_transaction_read_only = on"
        );
        database.at_source(&of_role).await;
        source.set("default_transaction_read_only", "on");
        source.stop(StopMode::Fast).await.unwrap();
        source.start().await.unwrap();
        database.reconnect_source(&source).await;
        setup.command(&["teardown"]).await.exits(0).says(&[
            "removed: slot",
            "removed: publication",
            "removed: the bookkeeping",
        ]);
        assert_eq!(slots(&database).await.as_deref(), Some("0"));
        let thaw = format!(
            "SET default_transaction_read_only = off; ALTER DATABASE {} RESET ALL; ALTER ROLE {role} RESET ALL",
            database.name
        );
        database.at_source(&thaw).await;
        source.set("default_transaction_read_only", "off");
        source.stop(StopMode::Fast).await.unwrap();
        source.start().await.unwrap();
        database.reconnect_source(&source).await;
        database.at_destination("DROP TABLE t").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_refuses_to_drop_is_left_with_its_statement_and_the_rest_goes() {
    let (database, setup, role) = granted("refuses").await;
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    let name = &database.name;
    database.at_source(&format!("COMMENT ON PUBLICATION {name} IS 'Created by headwater'")).await;
    database.at_source(&format!("ALTER ROLE {role} NOREPLICATION")).await;
    let left = setup.command(&["teardown"]).await.exits(1);
    let left = left.says(&[
        "left: slot",
        "may not replicate",
        "left: publication",
        "must be owner",
        "removed: the bookkeeping",
    ]);
    let sql: Vec<&str> = left.out.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert_eq!(sql.len(), 2, "{}", left.out);
    for statement in sql {
        database.at_source(statement).await;
    }
    assert_eq!(slots(&database).await.as_deref(), Some("0"));
    setup.command(&["teardown"]).await.exits(0).says(&["kept: slot", "does not exist", "there is no bookkeeping"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_has_made_under_the_name_of_ours_is_left() {
    let database = Database::new("slotother", &["t"], SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    let name = &database.name;
    eventually("the slot is released and dropped", || async {
        let drop = format!("SELECT pg_drop_replication_slot('{name}')");
        database.source.query_one("dropping the slot", &drop, &[]).await.ok().map(|_| ())
    })
    .await;
    database.source_value(&format!("SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')::text")).await;
    let said = format!("left: slot {name} at the source: it is of plugin test_decoding in database {name}");
    setup.command(&["teardown"]).await.exits(1).says(&[&said]);
    assert_eq!(slots(&database).await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_teardown_that_ends_at_a_lock_says_what_it_has_removed() {
    let from = new_source(&[]).await;
    let database = Database::on(&from, destination().await, "halflocked", &["t"], SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    // Reading it is allowed, and dropping the publication is not.
    let (holder, process) = holding(&from, &database, "LOCK TABLE pg_catalog.pg_publication IN SHARE MODE").await;
    let ends = format!("SELECT pg_terminate_backend({process}); -- at the source");
    setup.command(&["teardown"]).await.exits(1).says(&[
        "removed: slot",
        "dropping the publication: no answer within",
        "what is listed was done before that; run headwater teardown again for the rest",
        &ends,
    ]);
    holder.batch("letting go", "ROLLBACK").await.unwrap();
    setup.command(&["teardown"]).await.exits(0).says(&["removed: the bookkeeping"]);
}
