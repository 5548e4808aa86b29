//! An idle source still advances the slot, and lag does not lie.

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, eventually, new_destination, new_source};

async fn slot_position(database: &Database) -> String {
    let sql =
        format!("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    database.source_value(&sql).await.expect("the slot's position")
}

/// Waits until the slot has passed everything that is in the source's WAL now.
async fn slot_passes(database: &Database, now: &str) {
    let sql = format!(
        "SELECT (confirmed_flush_lsn >= '{now}')::text FROM pg_replication_slots WHERE slot_name = '{}'",
        database.name
    );
    eventually(&format!("the slot has passed {now}"), || async {
        (database.source_value(&sql).await.as_deref() == Some("true")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_slot_advances_when_only_other_tables_or_other_databases_are_written() {
    let (source, destination) = (new_source(&[]).await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "idle", FORUM, FORUM_SCHEMA).await;
    // Without heartbeats: nothing of ours is in the stream at all.
    let service = Setup::of(&database).source("heartbeat_every = \"off\"").start();
    service.streams().await;

    database.at_source("CREATE TABLE other (id int, v text)").await;
    database.at_source("INSERT INTO other SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i").await;
    let now = database.source_value("SELECT pg_current_wal_lsn()::text").await.unwrap();
    slot_passes(&database, &now).await;

    let elsewhere = source.connect("postgres").await.unwrap();
    elsewhere
        .batch(
            "another database",
            "CREATE TABLE public.elsewhere AS SELECT i, repeat('y', 100) FROM generate_series(1, 200000) i",
        )
        .await
        .unwrap();
    let now = database.source_value("SELECT pg_current_wal_lsn()::text").await.unwrap();
    slot_passes(&database, &now).await;

    // What is confirmed was stored first: the slot is never ahead of the position.
    let confirmed = slot_position(&database).await;
    let stored = format!("SELECT (position >= '{confirmed}')::text FROM headwater.position");
    assert_eq!(database.destination_value(&stored).await.as_deref(), Some("true"));
    eventually("lag is 0", || async {
        let bytes = service.metric("headwater_replication_lag_bytes").await?;
        let seconds = service.metric("headwater_replication_lag_seconds").await?;
        (bytes == 0.0 && seconds == 0.0).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn lag_rises_while_the_destination_is_down_and_falls_to_0_afterwards() {
    let (source, mut destination) = (new_source(&[]).await, new_destination(&[]).await);
    let mut database = Database::on(&source, &destination, "lag", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).section("").start();
    service.streams().await;
    assert_eq!(service.get("/readyz").await.unwrap().0, 200);
    destination.stop(headwater::commands::demo::StopMode::Fast).await.unwrap();
    database.at_source("UPDATE messages SET body = body || '!'").await;
    let mut before = (0.0, 0.0);
    for _ in 0..3 {
        before = eventually("lag rises in bytes and in seconds", || async {
            let bytes = service.metric("headwater_replication_lag_bytes").await?;
            let seconds = service.metric("headwater_replication_lag_seconds").await?;
            (bytes > 100_000.0 && bytes >= before.0 && seconds > before.1 + 0.3).then_some((bytes, seconds))
        })
        .await;
    }
    let (code, reason) = service.get("/readyz").await.unwrap();
    assert_eq!(code, 503);
    assert!(reason.contains("destination"), "{reason}");
    assert_eq!(service.get("/healthz").await.unwrap().0, 200, "the process is alive");
    destination.start().await.unwrap();
    database.reconnect_destination(&destination).await;
    service.streams().await;
    database.assert_catches_up().await;
    eventually("lag is 0 again", || async {
        let bytes = service.metric("headwater_replication_lag_bytes").await?;
        let seconds = service.metric("headwater_replication_lag_seconds").await?;
        (bytes == 0.0 && seconds == 0.0).then_some(())
    })
    .await;
    assert_eq!(service.get("/readyz").await.unwrap().0, 200);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_position_is_moved_without_searching_dead_versions_of_it() {
    let database = Database::new("oldsnap", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    let old = crate::support::destination().await.connect(&database.name).await.unwrap();
    old.batch("an old snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM public.t").await.unwrap();
    // Thousands of positions, each committed, none of which the old snapshot lets go.
    database
        .at_destination(
            "DO $$ DECLARE p pg_lsn; BEGIN
                 SELECT position, ctid::text INTO p FROM headwater.position;
                 PERFORM set_config('headwater.position_ctid', (SELECT ctid::text FROM headwater.position), false);
                 FOR i IN 1..5000 LOOP PERFORM headwater.advance(p, p + 1); p := p + 1; COMMIT; END LOOP;
             END $$",
        )
        .await;
    // By its ctid each update reads one row; by scanning it would read all dead versions before it, some twelve million.
    let read = "SELECT CASE WHEN n_tup_upd >= 5000 THEN (seq_tup_read + COALESCE(idx_tup_fetch, 0))::text END
                FROM pg_stat_user_tables WHERE schemaname = 'headwater' AND relname = 'position'";
    let read: u64 = eventually("the statistics of headwater.position are in", || async {
        database.destination_value(read).await?.parse().ok()
    })
    .await;
    assert!(read < 1000, "{read} versions were read for 5,000 updates");
    old.batch("the old snapshot goes", "ROLLBACK").await.unwrap();
}

/// Has the destination wait for a standby that is not there, or not any more.
async fn wait_for_nobody(database: &Database, wait: bool) {
    let set = if wait { "SET synchronous_standby_names = 'nobody'" } else { "RESET synchronous_standby_names" };
    database.at_destination(&format!("ALTER SYSTEM {set}")).await;
    database.destination_value("SELECT pg_reload_conf()::text").await;
    let names = if wait { "nobody" } else { "" };
    eventually("the destination has read its settings", || async {
        (database.destination_value("SHOW synchronous_standby_names").await.as_deref() == Some(names)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_unreachable_destination_standby_delays_neither_rows_nor_the_idle_slot() {
    let (source, destination) = (new_source(&[]).await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "nobody", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).source("heartbeat_every = \"off\"").start();
    service.streams().await;
    wait_for_nobody(&database, true).await;
    database.at_source("CREATE TABLE other AS SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i").await;
    let now = database.source_value("SELECT pg_current_wal_lsn()::text").await.unwrap();
    slot_passes(&database, &now).await;
    // What is confirmed is stored here, and flushed.
    let confirmed = slot_position(&database).await;
    let stored = format!("SELECT (position >= '{confirmed}')::text FROM headwater.position");
    assert_eq!(database.destination_value(&stored).await.as_deref(), Some("true"));
    database.at_source("UPDATE messages SET body = body || '!'").await;
    database.assert_catches_up().await;
    wait_for_nobody(&database, false).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn commits_that_wait_for_the_destinations_standby_are_not_confirmed_before_it() {
    let (source, destination) = (new_source(&[]).await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "standby", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).destination("synchronous_commit = \"on\"").start();
    service.streams().await;
    wait_for_nobody(&database, true).await;
    database.at_source("UPDATE messages SET body = body || '!'").await;
    let written = database.source_value("SELECT pg_current_wal_lsn()::text").await.unwrap();
    eventually("the commit waits for the standby", || async {
        let sql =
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%COMMIT%')::text";
        (database.destination_value(sql).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    // Statuses go out while it waits.
    eventually("the source has heard from headwater since", || async {
        let sql = format!("SELECT EXISTS (SELECT FROM pg_stat_replication WHERE write_lsn >= '{written}')::text");
        (database.source_value(&sql).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    let sql = format!(
        "SELECT (confirmed_flush_lsn < '{written}')::text FROM pg_replication_slots WHERE slot_name = '{}'",
        database.name
    );
    assert_eq!(database.source_value(&sql).await.as_deref(), Some("true"));
    wait_for_nobody(&database, false).await;
    database.assert_catches_up().await;
    slot_passes(&database, &written).await;
    service.stop().await;
}
