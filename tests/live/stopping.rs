//! Stopping: within ten seconds, at any moment, with nothing left behind, and a second start that goes on exactly.

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, destination, eventually};

/// No session, temporary slot or staging of ours is left.
async fn nothing_is_left(database: &Database) {
    let sessions = format!(
        "SELECT string_agg(application_name || ' ' || state, ', ') FROM pg_stat_activity
         WHERE datname = '{}' AND application_name LIKE 'headwater%' AND application_name NOT LIKE '%observer'",
        database.name
    );
    for client in [&database.source, &database.destination] {
        eventually("no session of headwater's is left", || async {
            let row = client.query_one("looking for sessions", &sessions, &[]).await.unwrap();
            row.get::<Option<String>>(0).unwrap().is_none().then_some(())
        })
        .await;
    }
    let slots =
        format!("SELECT count(*)::text FROM pg_replication_slots WHERE database = '{}' AND temporary", database.name);
    assert_eq!(database.source_value(&slots).await.as_deref(), Some("0"));
    let staging = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater_staging%'";
    assert_eq!(database.destination_value(staging).await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_snapshot() {
    let database = Database::new("stopsnap", FORUM, FORUM_SCHEMA).await;
    let slow = Setup::of(&database).section("[snapshot]\nmax_rate = \"100kB\"");
    let service = slow.start();
    eventually("the copy has begun", || async {
        (service.metric("headwater_snapshot_rows_total{table=\"public.messages\"}").await? > 10.0).then_some(())
    })
    .await;
    service.stop().await;
    nothing_is_left(&database).await;
    let slots = format!("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    assert_eq!(database.source_value(&slots).await.as_deref(), Some("0"), "an unfinished slot keeps no WAL");
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_waiting_for_a_long_transaction_at_the_source() {
    let database = Database::new("stopwait", FORUM, FORUM_SCHEMA).await;
    let long = crate::support::source().await.connect(&database.name).await.unwrap();
    long.batch("a long transaction", "BEGIN; UPDATE public.sections SET place = 5 WHERE id = 1").await.unwrap();
    let service = Setup::of(&database).start();
    service.is("snapshot").await;
    let waiting = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'headwater {} snapshot' AND state = 'active'",
        database.name
    );
    eventually("the slot is being created", || async {
        (database.source_value(&waiting).await.as_deref() == Some("1")).then_some(())
    })
    .await;
    service.stop().await;
    long.batch("it ends", "ROLLBACK").await.unwrap();
    nothing_is_left(&database).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn in_the_middle_of_a_large_transaction() {
    let database = Database::new("stoplarge", FORUM, FORUM_SCHEMA).await;
    let setup = Setup::of(&database).section("[apply]\nbatch_bytes_max = \"64kB\"");
    let service = setup.start();
    service.streams().await;
    // A local lock stops it in the middle, with pieces applied and pieces to come.
    let local = destination().await.connect(&database.name).await.unwrap();
    local.batch("a lock", "BEGIN; UPDATE public.messages SET edited = true WHERE id = 4000").await.unwrap();
    database.at_source("UPDATE messages SET body = body || 'x'").await;
    let applied = "headwater_rows_applied_total{operation=\"update\",table=\"public.messages\"}";
    eventually("it is being applied", || async { (service.metric(applied).await? > 100.0).then_some(()) }).await;
    service.stop().await;
    local.batch("the lock goes", "ROLLBACK").await.unwrap();
    nothing_is_left(&database).await;
    let half = "SELECT count(*)::text FROM messages WHERE body LIKE '%x'";
    assert_eq!(database.destination_value(half).await.as_deref(), Some("0"), "no part of it is visible");
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_local_lock_holds_a_batch_up() {
    let database = Database::new("stoplock", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let local = destination().await.connect(&database.name).await.unwrap();
    local.batch("a lock", "BEGIN; LOCK TABLE public.topics IN EXCLUSIVE MODE").await.unwrap();
    database.at_source("UPDATE topics SET title = 'x' WHERE id = 1").await;
    let waiting = "SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = 'topics'::regclass";
    eventually("the batch waits for the lock", || async {
        (database.destination_value(waiting).await.as_deref() == Some("1")).then_some(())
    })
    .await;
    service.stop().await;
    nothing_is_left(&database).await;
    local.batch("the lock goes", "ROLLBACK").await.unwrap();
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_answers() {
    let database = Database::new("stopwaiting", FORUM, FORUM_SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.destination_url = "postgresql://postgres@127.0.0.1:1/x".to_owned();
    let service = setup.start();
    service.says("cannot connect").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_have_no_meaning_for_it_leave_it_streaming() {
    let database = Database::new("signals", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for (signal, said) in
        [("HUP", "SIGHUP changes nothing"), ("USR1", "SIGUSR1 is ignored"), ("USR2", "SIGUSR2 is ignored")]
    {
        service.signal(signal);
        service.says(said).await;
    }
    database.at_source("UPDATE messages SET body = 'x' WHERE id = 7").await;
    database.assert_catches_up().await;
    service.stop().await;
}
