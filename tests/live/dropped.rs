//! Followed tables that are dropped at the source: named, with ways out that work as printed.

use crate::support::pause::Pause;
use crate::support::{Database, Service, Setup};

const TABLES: &[&str] = &["t", "u", "w"];
const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 't' FROM generate_series(1, 100) i;
    CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u SELECT i, 'u' FROM generate_series(1, 100) i;
    CREATE TABLE w (id int PRIMARY KEY, v text); INSERT INTO w SELECT i, 'w' FROM generate_series(1, 100) i;";

async fn following(name: &str) -> (Database, Service) {
    let database = Database::new(name, TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE u SET v = 'followed' WHERE id < 10").await;
    database.assert_catches_up().await;
    (database, service)
}

/// That a service and `check` say it, in the same words, and nothing that leads elsewhere.
async fn is_told(setup: &Setup, service: &Service, says: &[&str]) {
    for text in says {
        service.says(text).await;
    }
    service.is("waiting").await;
    let checked = setup.command(&["check"]).await.exits(1);
    assert!(!checked.out.contains("will be created"), "{checked:?}");
    for output in [service.log(), checked.out] {
        assert!(says.iter().all(|text| output.contains(text)), "{output}");
        for wrong in ["ADD TABLE", "not found at the source", "is a view", "--resnapshot"] {
            assert!(!output.contains(wrong), "{wrong}: {output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_dropped_table_is_named_and_removing_it_lets_the_others_stream() {
    let (mut database, service) = following("dropstream").await;
    let rows = "SELECT count(*) || md5(string_agg(u::text, ',' ORDER BY id)) FROM u";
    let before = database.destination_value(rows).await;
    database.at_source("DROP TABLE u; UPDATE t SET v = 'behind' WHERE id < 50").await;
    let said = [
        "table public.u was dropped at the source",
        "At the destination public.u still has the rows that the stream has brought.",
        "Take public.u out of tables and start headwater again",
    ];
    is_told(&Setup::of(&database), &service, &said).await;
    Setup::of(&database).command(&["verify"]).await.exits(1).says(&said);
    service.stop().await;
    // A start says the same.
    let service = Setup::of(&database).start();
    is_told(&Setup::of(&database), &service, &said).await;
    service.stop().await;
    database.tables = vec!["t".to_owned(), "w".to_owned()];
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE w SET v = 'behind' WHERE id < 50").await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(rows).await, before);
    let log = service.log();
    assert!(log.contains("table public.u is not configured any more") && !log.contains("copying"), "{log}");
    service.stop().await;
    Setup::of(&database).command(&["check"]).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_dropped_table_that_is_created_again_is_copied_by_itself() {
    let (database, service) = following("dropagain").await;
    service.stop().await;
    database.at_source("BEGIN; UPDATE u SET v = 'last'; UPDATE t SET v = 'last'; COMMIT; DROP TABLE u").await;
    let service = Setup::of(&database).start();
    is_told(
        &Setup::of(&database),
        &service,
        &["table public.u was dropped at the source", "Or create public.u at the source again"],
    )
    .await;
    database
        .at_source("CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (3, 'new'); UPDATE t SET v = 'later' WHERE id = 5")
        .await;
    service.says("was dropped and created again at the source").await;
    service.streams().await;
    crate::support::suspension::copied_again(&database).await;
    database.at_source("BEGIN; INSERT INTO u VALUES (4, 'newer'); UPDATE t SET v = 'x' WHERE id = 6; COMMIT").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_that_is_created_again_while_a_start_looks_for_it_is_copied() {
    let (database, service) = following("dropraced").await;
    service.stop().await;
    database.at_source("DROP TABLE u").await;
    let (setup, pause) = Pause::at("catalog.problem", Setup::of(&database));
    let service = setup.start();
    pause.reached().await;
    database.at_source("CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (3, 'new')").await;
    pause.end();
    service.streams().await;
    crate::support::suspension::copied_again(&database).await;
    database.assert_catches_up().await;
    let log = service.log();
    assert!(!log.contains("not found at the source") && !log.contains("was dropped at the source"), "{log}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_dropped_tables_are_named_together_even_when_their_names_are_reused() {
    let (mut database, service) = following("dropseveral").await;
    service.stop().await;
    // One waits for a copy, and a view has the other's name.
    database
        .at_destination(
            "UPDATE headwater.tables SET state = 'staging', snapshot_position = NULL WHERE table_name = 'w'",
        )
        .await;
    database.at_source("BEGIN; UPDATE u SET v = 'last'; UPDATE t SET v = 'last'; COMMIT; DROP TABLE u, w").await;
    database.at_source("CREATE VIEW u AS SELECT * FROM t").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    is_told(&setup, &service, &["tables public.u, public.w were dropped at the source"]).await;
    service.stop().await;
    database.tables = vec!["t".to_owned()];
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE t SET v = 'later' WHERE id = 1").await;
    database.assert_catches_up().await;
    assert!(service.log().contains("tables public.u, public.w are not configured any more"), "{}", service.log());
    service.stop().await;
}
