//! A halt keeps its face: state and reason stay through every retry, explain and verify say the cause and end.

use std::collections::BTreeSet;

use crate::support::database::connect;
use crate::support::pause::Pause;
use crate::support::{Database, Service, Setup, eventually};

const TABLES: &[&str] = &["public.items", "public.others"];
const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, body text);
    CREATE TABLE others (id int PRIMARY KEY, n int);
    INSERT INTO items SELECT i, 'b' FROM generate_series(1, 10) i;
    INSERT INTO others SELECT i, 0 FROM generate_series(1, 10) i;";

/// Looks at the state until the service has tried again three times, and returns each state and reason that was seen.
async fn faces(service: &Service) -> BTreeSet<(String, String)> {
    let began = service.all_restarts().await.unwrap();
    let seen = std::sync::Mutex::new(BTreeSet::new());
    eventually("three retries", || async {
        let status = service.status().await?;
        let text = |key: &str| status.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        seen.lock().unwrap().insert((text("state"), text("reason")));
        (service.all_restarts().await? >= began + 3.0).then_some(())
    })
    .await;
    seen.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_conflict_keeps_its_state_and_reason_through_retries_in_every_command() {
    let database = Database::new("face", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("INSERT INTO items VALUES (11, 'mine')").await;
    // What came before in the same batch is applied, what comes behind is not: neither ends the halt.
    database
        .at_source("UPDATE others SET n = 1; INSERT INTO items VALUES (11, 'theirs'); UPDATE others SET n = 2")
        .await;
    for n in 1..20 {
        database.at_source(&format!("UPDATE others SET n = {n} WHERE id = 1")).await;
    }
    service.is("waiting").await;
    let seen = faces(&service).await;
    assert!(seen.iter().all(|(state, reason)| state == "waiting" && reason.contains("items")), "{seen:?}");
    assert_eq!(seen.len(), 1, "one reason: {seen:?}");

    let (code, text) = service.command(&["explain"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(text.matches("BLOCKS").count(), 1, "only the conflict blocks:\n{text}");
    assert!(text.contains("headwater conflict show") && !text.contains("holds the lock"), "{text}");

    // Whether the request meets a retry or a pause, verify ends and says what to do.
    for _ in 0..3 {
        let (code, text) = service.command(&["verify", "--table", "others"]).await;
        let refused =
            text.contains("no fence can be made: the service is halted") && text.contains("verify --no-fence");
        let as_it_stands = text.contains("a conflict halts the service");
        assert!(code == Some(1) && (refused || as_it_stands), "{code:?} {text}");
    }
    let (code, text) = service.command(&["verify", "--no-fence"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("public.items") && text.contains("what was not applied yet"), "{text}");

    database.at_destination("DELETE FROM items WHERE id = 11").await;
    service.streams().await;
    database.assert_catches_up().await;
    let (code, text) = service.command(&["verify", "--no-fence"]).await;
    assert_eq!(code, Some(0), "nothing is written now: {text}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_schema_change_that_is_not_followed_keeps_its_state_through_retries() {
    let database = Database::new("faceddl", TABLES, SCHEMA).await;
    let service = Setup::of(&database).setting("schema_changes = \"stop\"").start();
    service.streams().await;
    database
        .at_source("UPDATE others SET n = 1; ALTER TABLE items ADD more int; UPDATE others SET n = 2; INSERT INTO items VALUES (12, 'b', 1)")
        .await;
    database.at_source("UPDATE others SET n = 3").await;
    service.is("waiting").await;
    let seen = faces(&service).await;
    assert!(seen.iter().all(|(state, _)| state == "waiting"), "{seen:?}");
    assert_eq!(seen.len(), 1, "one reason: {seen:?}");
    database.at_destination("ALTER TABLE items ADD more int").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_that_fails_the_same_way_three_times_waits_for_an_operator() {
    let database = Database::new("thrice", TABLES, SCHEMA).await;
    database
        .at_destination(
            "CREATE TABLE items (id int PRIMARY KEY, body text CHECK (body <> 'b')); CREATE TABLE others (id int PRIMARY KEY, n int)",
        )
        .await;
    let service = Setup::of(&database).start();
    service.is("waiting").await;
    service.says("is not tried again by itself").await;
    let copies = service.all_restarts().await.unwrap();
    assert_eq!(copies, 3.0, "the source is read three times");
    // It does not take its time and then go on: what is asked for next is what it does next.
    assert_eq!(service.get("/readyz").await.map(|(code, _)| code), Some(503));
    database.at_destination("ALTER TABLE items DROP CONSTRAINT items_body_check").await;
    let (code, text) = service.command(&["resnapshot", "--no-wait"]).await;
    assert_eq!(code, Some(0), "{text}");
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_first_copy_that_a_lock_stops_three_times_waits_for_an_operator() {
    let database = Database::new("thrice_locked", TABLES, SCHEMA).await;
    // One that is there and one that is not: the rows are staged, and the table is locked once they all were read.
    database.at_destination("CREATE TABLE items (id int PRIMARY KEY, body text)").await;
    let setup = Setup::of(&database).destination("lock_timeout = \"300ms\"");
    let holder = connect(&database.destination_url).await.unwrap();
    holder.batch("holding a lock", "BEGIN; LOCK TABLE items IN SHARE MODE").await.unwrap();
    let service = setup.start();
    service.says("is not tried again by itself").await;
    service.is("waiting").await;
    assert_eq!(service.all_restarts().await, Some(3.0), "the source is read three times: {}", service.log());
    assert_eq!(service.get("/readyz").await.map(|(code, _)| code), Some(503));
    let (code, text) = service.command(&["explain"]).await;
    assert!(code == Some(1) && text.contains("headwater resnapshot"), "{text}");
    holder.batch("letting go", "ROLLBACK").await.unwrap();
    let (code, text) = service.command(&["resnapshot", "--no-wait"]).await;
    assert_eq!(code, Some(0), "{text}");
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_that_the_command_line_asks_for_waits_for_an_operator_after_three_times() {
    let database = Database::new("thrice_again", TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    database.at_destination("ALTER TABLE items ADD CONSTRAINT no_c CHECK (body <> 'c')").await;
    database.at_source("UPDATE items SET body = 'c' WHERE id = 7").await;
    let service = Setup::of(&database).argument("--resnapshot").start();
    service.says("is not tried again by itself").await;
    service.is("waiting").await;
    assert_eq!(service.all_restarts().await, Some(3.0), "the source is read three times: {}", service.log());
    database.at_destination("ALTER TABLE items DROP CONSTRAINT no_c").await;
    let (code, text) = service.command(&["resnapshot", "--no-wait"]).await;
    assert_eq!(code, Some(0), "{text}");
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_that_is_asked_for_before_the_service_waits_for_it_is_made() {
    let database = Database::new("asked_early", TABLES, SCHEMA).await;
    database.at_destination("CREATE TABLE items (id int PRIMARY KEY, body text CHECK (body <> 'b'))").await;
    let (setup, pause) = Pause::at("copy.waiting", Setup::of(&database));
    let service = setup.start();
    pause.reached().await;
    database.at_destination("ALTER TABLE items DROP CONSTRAINT items_body_check").await;
    let (code, text) = service.command(&["resnapshot", "--no-wait"]).await;
    assert_eq!(code, Some(0), "{text}");
    pause.end();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_error_of_the_copy_names_table_and_line_and_not_the_value() {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, body text); INSERT INTO items VALUES (1, '7'), (2, '8'), (3, 'SECRET')";
    let cases = [
        ("body text CHECK (body <> 'SECRET')", "violates check constraint", "ALTER TABLE public.items DROP CONSTRAINT"),
        ("body text CHECK (body::int > 0)", "invalid text representation (SQLSTATE 22P02)", ""),
    ];
    for (here, said, todo) in cases {
        let database = Database::new("copyline", &["public.items"], schema).await;
        database.at_destination(&format!("CREATE TABLE items (id int PRIMARY KEY, {here})")).await;
        let service = Setup::of(&database).start();
        service.is("waiting").await;
        service.says("is not tried again by itself").await;
        let (code, text) = service.command(&["explain"]).await;
        assert_eq!(code, Some(1), "{text}");
        for word in [said, todo, "COPY items, line 3"] {
            assert!(text.contains(word), "no {word:?} in {text}");
        }
        assert!(!text.contains("SECRET") && !service.log().contains("SECRET"), "{text}{}", service.log());
        service.stop().await;
    }
}
