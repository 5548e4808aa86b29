//! `headwater explain`: each thing that can block, named with its process, its lock and its remedy.

use std::time::Instant;

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::service::Service;
use crate::support::{Database, PATIENCE, Setup, new_source};

/// Waits until `explain` says all of this, with this exit code, and returns what it said.
async fn explains(service: &Service, code: i32, wanted: &[&str]) -> String {
    let began = Instant::now();
    loop {
        let (ended, output) = service.command(&["explain"]).await;
        if ended == Some(code) && wanted.iter().all(|text| output.contains(text)) {
            return output;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "explain does not say {wanted:?} with exit code {code} but {ended:?}:\n{output}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_at_the_destination_is_explained_with_its_holder_and_without_values() {
    let database = Database::new("explainlock", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    explains(&service, 0, &["Nothing that can be seen from here blocks progress", "waits"]).await;
    database.at_destination("BEGIN; UPDATE messages SET body = 'SECRET' WHERE id = 7").await;
    database.at_source("UPDATE messages SET body = 'mine' WHERE id = 7").await;
    let process = database.destination_value("SELECT pg_backend_pid()::text").await.unwrap();
    // What the session last said is now the question above; its lock is the same.
    let held = format!("held by process {process}");
    let remedy = format!("SELECT pg_terminate_backend({process});");
    let output = explains(&service, 1, &["BLOCKS", "destination: headwater's process", &held, &remedy]).await;
    assert!(!output.contains("SECRET"), "{output}");
    database.at_destination("ROLLBACK").await;
    database.assert_catches_up().await;
    explains(&service, 0, &["The copy is fresh."]).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_lock_names_the_table() {
    let database = Database::new("explaintable", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_destination("BEGIN; LOCK TABLE messages").await;
    database.at_source("UPDATE messages SET body = 'mine' WHERE id = 7").await;
    let output = explains(&service, 1, &["waits for RowExclusiveLock on public.messages", "LOCK TABLE messages"]).await;
    assert!(output.contains("idle in transaction"), "{output}");
    database.at_destination("ROLLBACK").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_explained_with_its_table_and_its_remedy() {
    let database = Database::new("explainconflict", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_destination("DELETE FROM messages WHERE id = 7").await;
    database.at_source("UPDATE messages SET body = 'SECRET' WHERE id = 7").await;
    service.is("waiting").await;
    let output = explains(&service, 1, &["BLOCKS", "public.messages", "what to do", "Insert it there again"]).await;
    assert!(!output.contains("SECRET"), "{output}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_column_is_explained_with_its_alter() {
    let database = Database::new("explaincolumn", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).setting("schema_changes = \"stop\"").start();
    service.streams().await;
    database
        .at_source("ALTER TABLE messages ADD COLUMN mood text; UPDATE messages SET mood = 'SECRET' WHERE id = 7")
        .await;
    service.is("waiting").await;
    let output = explains(&service, 1, &["BLOCKS", "mood", "what to do"]).await;
    assert!(!output.contains("SECRET"), "{output}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_that_delays_the_slot_is_named() {
    let source = new_source(&[]).await;
    let database = Database::on(&source, crate::support::destination().await, "explainslot", FORUM, FORUM_SCHEMA).await;
    let other = source.connect(&database.name).await.unwrap();
    other.batch("a long transaction", "BEGIN; CREATE TABLE public.elsewhere (id int)").await.unwrap();
    let process: i32 = other.query_one("its process", "SELECT pg_backend_pid()", &[]).await.unwrap().get(0).unwrap();
    let service = Setup::of(&database).start();
    service.is("snapshot").await;
    let held = format!("held by process {process}");
    explains(&service, 1, &["source: headwater's process", "snapshot') waits for ShareLock on a transactionid", &held])
        .await;
    other.batch("its end", "ROLLBACK").await.unwrap();
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_explain_says_so_and_looks_at_both_servers() {
    let database = Database::new("explaindown", FORUM, FORUM_SCHEMA).await;
    let mut service = Setup::of(&database).start();
    service.streams().await;
    service.kill();
    explains(
        &service,
        1,
        &["headwater is not running here", "no instance holds the lock", "no walsender uses the slot"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_may_not_see_of_the_walsender_is_said_and_no_number_made_up() {
    let database = Database::new("explainblind", FORUM, FORUM_SCHEMA).await;
    let role = format!("blind_{}", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
        ))
        .await;
    database.at_source(&format!("CREATE PUBLICATION {} FOR TABLE sections, topics, messages", database.name)).await;
    let mut setup = Setup::of(&database);
    setup.source_url = setup.source_url.replacen("postgres@", &format!("{role}@"), 1);
    let service = setup.start();
    service.streams().await;
    let grant = format!("GRANT pg_read_all_stats TO {};", headwater::pg::Ident::new(role.as_str()).sql());
    let hidden = ["the walsender is process ", "what it does is not visible to this role", grant.as_str()];
    let said = explains(&service, 0, &hidden).await;
    assert!(!said.contains("sent up to"), "{said}");
    database.at_source(&grant).await;
    explains(&service, 0, &["the walsender (process ", " is streaming, has sent up to ", " behind the source: "]).await;
    service.stop().await;
}
