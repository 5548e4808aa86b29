//! Whoever dies, at whatever point: the next start yields the same rows. One test at least for each row of the crash table.

use std::time::{Duration, Instant};

use fastrand::Rng;
use headwater::commands::demo::StopMode;

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, at_each, eventually, new_destination, new_source, seed, workload};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn dying_at_any_point_of_a_snapshot_is_mended_by_the_next_start() {
    let points = [
        "snapshot.row_committed",
        "snapshot.slot_created",
        "snapshot.copying:2",
        "snapshot.staged",
        "snapshot.finished",
        "publish.before_commit",
        "publish.committed",
        "snapshot.published",
    ];
    at_each(&points, |point| async move {
        let database = Database::new("dies", FORUM, FORUM_SCHEMA).await;
        let mut dying = Setup::of(&database).failing_at(point).start();
        let status = dying.ended().await;
        assert_eq!(status.code(), None, "{point}: it was to die by a signal");
        database
            .at_source("UPDATE messages SET body = 'after the crash' WHERE id < 100; DELETE FROM topics WHERE id = 1")
            .await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.assert_catches_up().await;
        let staging = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater_staging%'";
        assert_eq!(database.destination_value(staging).await.as_deref(), Some("0"), "{point}: staging is swept");
        service.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn dying_at_any_point_of_the_stream_loses_and_doubles_nothing() {
    let seed = seed("dying_at_any_point_of_the_stream");
    let database = Database::new("diesstream", workload::TABLES, workload::SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    for (round, point) in (0..).zip([
        "apply.flight_sent:3",
        "apply.flight_answered:3",
        "stream.feedback_sent:4",
        "apply.flight_sent:20",
        "apply.flight_answered:17",
    ]) {
        let mut dying = Setup::of(&database).failing_at(point).start();
        let status = workload::while_running(&database, seed + round, dying.ended()).await;
        assert_eq!(status.code(), None, "{point}: it was to die by a signal");
    }
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn twenty_kills_under_load_lose_and_double_nothing() {
    let seed = seed("twenty_kills_under_load");
    let database = Database::new("kills", workload::TABLES, workload::SCHEMA).await;
    let mut rng = Rng::with_seed(seed);
    workload::while_running(&database, seed, async {
        for _ in 0..20 {
            let mut service = Setup::of(&database).start();
            // Sometimes in the middle of the snapshot, mostly in the middle of the stream.
            let began = Instant::now();
            let lifetime = Duration::from_millis(rng.u64(50..900));
            while began.elapsed() < lifetime {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            service.kill();
        }
    })
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_crash_of_the_destination_during_staging_starts_the_snapshot_over() {
    let (source, mut destination) = (new_source(&[]).await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "stagingcrash", FORUM, FORUM_SCHEMA).await;
    // Existing tables are staged in unlogged tables, which a crash empties.
    database
        .at_destination(
            "CREATE TABLE sections (id int PRIMARY KEY, name text, place int);
             CREATE TABLE topics (id int PRIMARY KEY, section_id int, title varchar(200), created_at timestamptz);
             CREATE TABLE messages (id bigint PRIMARY KEY, topic_id int, body text, score numeric(10, 2), edited boolean);",
        )
        .await;
    let service = Setup::of(&database).section("[snapshot]\nmax_rate = \"400kB\"\nworkers = 1").start();
    service.is("snapshot").await;
    eventually("some rows are staged", || async {
        (service.metric("headwater_snapshot_rows_total{table=\"public.messages\"}").await? > 100.0).then_some(())
    })
    .await;
    destination.stop(StopMode::Immediate).await.unwrap();
    destination.start().await.unwrap();
    service.streams().await;
    let database = Database { destination: destination.connect(&database.name).await.unwrap(), ..database };
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_crash_of_the_destination_before_its_wal_is_flushed_loses_nothing() {
    let seed = seed("a_crash_of_the_destination");
    // A walwriter that sleeps long leaves many commits unflushed.
    let (source, mut destination) = (new_source(&[]).await, new_destination(&[("wal_writer_delay", "10s")]).await);
    let mut database = Database::on(&source, &destination, "destcrash", workload::TABLES, workload::SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for round in 0..3 {
        workload::while_running(&database, seed + round, async {
            let before = service.metric("headwater_transactions_applied_total").await.unwrap();
            eventually("some more transactions are applied", || async {
                (service.metric("headwater_transactions_applied_total").await? > before + 50.0).then_some(())
            })
            .await;
            destination.stop(StopMode::Immediate).await.unwrap();
        })
        .await;
        destination.start().await.unwrap();
        database.reconnect_destination(&destination).await;
        // What was confirmed to the source is here: otherwise it would be lost for ever.
        let confirmed =
            format!("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
        let confirmed = database.source_value(&confirmed).await.unwrap();
        let position = format!("SELECT (position >= '{confirmed}')::text FROM headwater.position");
        assert_eq!(database.destination_value(&position).await.as_deref(), Some("true"));
    }
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_crash_of_the_source_makes_its_slot_step_back_and_doubles_nothing() {
    let seed = seed("a_crash_of_the_source");
    let (mut source, destination) = (new_source(&[]).await, new_destination(&[]).await);
    let mut database = Database::on(&source, &destination, "sourcecrash", workload::TABLES, workload::SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for round in 0..3 {
        workload::while_running(&database, seed + round, async {
            let before = service.metric("headwater_transactions_applied_total").await.unwrap();
            eventually("some more transactions are applied", || async {
                (service.metric("headwater_transactions_applied_total").await? > before + 50.0).then_some(())
            })
            .await;
            source.stop(StopMode::Immediate).await.unwrap();
        })
        .await;
        source.start().await.unwrap();
        database.reconnect_source(&source).await;
    }
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn both_servers_crash_at_once_and_both_sides_are_equal_again() {
    let seed = seed("both_servers_crash");
    let (mut source, mut destination) = (new_source(&[]).await, new_destination(&[]).await);
    let mut database = Database::on(&source, &destination, "bothcrash", workload::TABLES, workload::SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    workload::while_running(&database, seed, async {
        eventually("some transactions are applied", || async {
            (service.metric("headwater_transactions_applied_total").await? > 50.0).then_some(())
        })
        .await;
        let (source, destination) =
            tokio::join!(source.stop(StopMode::Immediate), destination.stop(StopMode::Immediate));
        source.and(destination).unwrap();
    })
    .await;
    let (source_up, destination_up) = tokio::join!(source.start(), destination.start());
    source_up.and(destination_up).unwrap();
    database.reconnect_source(&source).await;
    database.reconnect_destination(&destination).await;
    database.assert_catches_up().await;
    service.stop().await;
}
