//! A disk that is full, at the destination and at the source: said, waited for, and gone on from by itself.

use std::path::Path;
use std::process::Command;

use headwater::commands::demo::{Cluster, StopMode};

use crate::support::disk::Disk;
use crate::support::{Database, Script, Service, Setup, eventually, new_destination, new_source, source};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (0, 'small');";

/// What no small disk holds: 20 MB that do not compress.
const LARGE: &str = "INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 20000) i";

/// Waits until the service says, wherever an operator looks, that this end's disk is full, and checks that it stays.
async fn says_full(service: &Service, end: &str) {
    eventually("it waits for room", || async {
        let status = service.status().await?;
        let reason = status["reason"].to_string();
        (status["state"] == "waiting" && reason.contains("No space left on device")).then_some(())
    })
    .await;
    let status = service.status().await.unwrap().to_string();
    assert!(status.contains(&format!("Make room on the {end}'s disk")), "{status}");
    let (code, ready) = service.get("/readyz").await.unwrap();
    assert!(code == 503 && ready.contains("No space left on device"), "{code} {ready}");
    let restarts = service.restarts("disk_full").await;
    assert!(restarts.is_some_and(|restarts| restarts >= 1.0), "{restarts:?}");
    assert_eq!(service.get("/healthz").await.map(|(code, _)| code), Some(200), "no reason to restart the process");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_full_disk_of_the_destination_is_waited_for_and_nothing_is_lost() {
    let (source, destination) = (new_source(&[]).await, new_destination(&[]).await);
    let place = destination.dir().join("small");
    let Some(disk) = Disk::mount(&place, "6m") else { return };
    let database = Database::on(&source, &destination, "fullhere", &["t"], SCHEMA).await;
    let admin = destination.connect(&database.name).await.unwrap();
    let tablespace = format!("CREATE TABLESPACE small LOCATION '{}'", place.display());
    admin.script("a small tablespace", &tablespace).await.unwrap();
    let service = Setup::of(&database).start();
    service.streams().await;
    admin.batch("moving a table there", "ALTER TABLE public.t SET TABLESPACE small").await.unwrap();
    database.at_source("UPDATE t SET v = 'before'; INSERT INTO t VALUES (-1, 'before')").await;
    database.assert_catches_up().await;
    database.at_source(LARGE).await;
    database.at_source("INSERT INTO t VALUES (-2, 'after')").await;
    says_full(&service, "destination").await;
    let count = "SELECT count(*)::text FROM t";
    assert_eq!(database.destination_value(count).await.as_deref(), Some("2"), "nothing of it, and nothing behind it");
    disk.enlarge("200m");
    database.assert_catches_up().await;
    service.streams().await;
    service.stop().await;
}

/// Whether nothing of a snapshot is left: no staging at the destination, and at the source no slot but these many.
async fn nothing_is_left(database: &Database, slots: usize) -> Option<()> {
    let staging = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater_staging%'";
    let at_source = format!("SELECT count(*)::text FROM pg_replication_slots WHERE database = '{}'", database.name);
    let left = (database.destination_value(staging).await, database.source_value(&at_source).await);
    (left == (Some("0".to_owned()), Some(slots.to_string()))).then_some(())
}

/// From now on what headwater makes at the destination lies on a small disk.
async fn makes_tables_there(destination: &Cluster, database: &Database, place: &Path) {
    let admin = destination.connect(&database.name).await.unwrap();
    let tablespace = format!("CREATE TABLESPACE small LOCATION '{}'", place.display());
    admin.script("a small tablespace", &tablespace).await.unwrap();
    let default = format!(
        "GRANT CREATE ON TABLESPACE small TO PUBLIC; ALTER DATABASE {} SET default_tablespace = small",
        database.name
    );
    admin.script("making it the default", &default).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_first_copy_that_the_destinations_disk_cannot_hold_is_made_once_there_is_room() {
    let (source, destination) = (new_source(&[]).await, new_destination(&[]).await);
    let place = destination.dir().join("small");
    let Some(disk) = Disk::mount(&place, "6m") else { return };
    let schema = format!("{SCHEMA} {LARGE}; CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1);");
    let database = Database::on(&source, &destination, "fullfirst", &["t", "u"], &schema).await;
    makes_tables_there(&destination, &database, &place).await;
    let service = Setup::of(&database).start();
    says_full(&service, "destination").await;
    let seen = "SELECT count(*)::text FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(database.destination_value(seen).await.as_deref(), Some("0"), "all tables or none");
    database.at_source("UPDATE t SET v = 'meanwhile' WHERE id = 0; INSERT INTO u VALUES (2)").await;
    // Between two attempts, when nobody leads: neither that disk nor the source's WAL is kept for it.
    let leads = "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory'";
    eventually("it holds nothing while it waits", || async {
        nothing_is_left(&database, 0).await?;
        (database.destination_value(leads).await.as_deref() == Some("0")).then_some(())
    })
    .await;
    disk.enlarge("200m");
    service.streams().await;
    database.assert_catches_up().await;
    nothing_is_left(&database, 1).await.expect("no staging, and one slot");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_disk_that_is_full_three_times_asks_for_room_and_for_a_request() {
    let destination = new_destination(&[]).await;
    let place = destination.dir().join("small");
    let Some(disk) = Disk::mount(&place, "6m") else { return };
    let database = Database::on(source().await, &destination, "fullfilled", &["t"], &format!("{SCHEMA} {LARGE}")).await;
    let admin = destination.connect(&database.name).await.unwrap();
    let tablespace = format!("CREATE TABLESPACE small LOCATION '{}'", place.display());
    admin.script("a small tablespace", &tablespace).await.unwrap();
    // It is there and empty: the transaction that publishes the rows fills it.
    database.at_destination("CREATE TABLE t (id int PRIMARY KEY, v text) TABLESPACE small").await;
    let service = Setup::of(&database).start();
    service.says("The copy has failed in this way 3 times and is not tried again by itself").await;
    says_full(&service, "destination").await;
    let (code, explained) = service.command(&["explain"]).await;
    assert!(code == Some(1) && explained.contains("headwater resnapshot"), "{explained}");
    assert!(!explained.contains("continues by itself"), "{explained}");
    disk.enlarge("200m");
    service.command(&["resnapshot", "--no-wait"]).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_resnapshot_on_a_full_disk_leaves_the_stream_alone_and_succeeds_with_room() {
    let (source, destination) = (new_source(&[]).await, new_destination(&[]).await);
    let place = destination.dir().join("small");
    let Some(disk) = Disk::mount(&place, "6m") else { return };
    let database = Database::on(&source, &destination, "fullagain", &["t"], SCHEMA).await;
    makes_tables_there(&destination, &database, &place).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    // Only staging is to lie there.
    let away = "ALTER TABLE t SET TABLESPACE pg_default; ALTER INDEX t_pkey SET TABLESPACE pg_default";
    database.at_destination(away).await;
    database.at_source(LARGE).await;
    database.caught_up().await;
    database.at_destination("UPDATE t SET v = 'drifted' WHERE id = 7; DELETE FROM t WHERE id = 8").await;
    let asked = service.command(&["resnapshot"]);
    let meanwhile = async {
        service.says("is tried again").await;
        eventually("it holds nothing until it is tried again", || nothing_is_left(&database, 1)).await;
        // The old data serves, and goes on being fed.
        database.at_source("UPDATE t SET v = 'meanwhile' WHERE id = 0").await;
        database.caught_up().await;
        let row = "SELECT string_agg(v, ' ' ORDER BY id) FROM t WHERE id IN (0, 7, 8)";
        assert_eq!(database.destination_value(row).await.as_deref(), Some("meanwhile drifted"));
        let status = service.status().await.unwrap();
        assert_eq!(status["state"], "streaming");
        let event = "the snapshot of all tables failed and is tried again; the old data is still there: destination: ";
        let events = status["events"].to_string();
        for said in [event, "No space left on device", "Make room on the destination's disk"] {
            assert!(events.contains(said), "{events}");
        }
        let ready = service.get("/readyz").await;
        assert_eq!(ready.map(|(code, _)| code), Some(200), "what readers see is fed");
        disk.enlarge("200m");
    };
    let ((code, said), ()) = tokio::join!(asked, meanwhile);
    assert!(code == Some(0) && said.contains("it is tried again") && said.contains("published"), "{said}");
    assert!(said.contains("Make room on the destination's disk"), "{said}");
    database.assert_catches_up().await;
    eventually("nothing is left", || nothing_is_left(&database, 1)).await;
    assert_eq!(service.restarts("disk_full").await, None, "the stream went on");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_full_disk_of_the_source_is_waited_for_and_nothing_is_lost() {
    // Large transactions are left to the source, which writes them to its disk until they commit.
    let mut source = new_source(&[("logical_decoding_work_mem", "64kB")]).await;
    let destination = new_destination(&[]).await;
    source.stop(StopMode::Fast).await.unwrap();
    let Some(disk) = Disk::mount(&source.dir().join("data/pg_replslot"), "2m") else { return };
    source.start().await.unwrap();
    let database = Database::on(&source, &destination, "fullthere", &["t"], SCHEMA).await;
    // A directory that is a file: nothing is streamed before its commit.
    let file = source.dir().join("file");
    std::fs::write(&file, "").unwrap();
    let service = Setup::of(&database).section(&format!("[spool]\ndir = {:?}", file.join("spool"))).start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_source(LARGE).await;
    database.at_source("INSERT INTO t VALUES (-2, 'after')").await;
    says_full(&service, "source").await;
    let count = "SELECT count(*)::text FROM t";
    assert_eq!(database.destination_value(count).await.as_deref(), Some("1"), "nothing of it, and nothing behind it");
    disk.enlarge("200m");
    database.assert_catches_up().await;
    service.streams().await;
    service.stop().await;
}

/// Puts the WAL of a server that is stopped on a disk of this size.
fn moves_its_wal(cluster: &Cluster, size: &str) -> Option<Disk> {
    let (wal, kept) = (cluster.dir().join("data/pg_wal"), cluster.dir().join("data/kept_wal"));
    std::fs::rename(&wal, &kept).expect("the WAL is moved aside");
    let disk = Disk::mount(&wal, size);
    let copied = Command::new("cp").arg("-a").arg(kept.join(".")).arg(&wal).status().expect("cp runs");
    assert!(copied.success(), "the WAL is copied");
    disk
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_destination_that_falls_as_its_wal_has_no_room_is_waited_for_and_loses_nothing() {
    let (source, mut destination) = (new_source(&[]).await, new_destination(&[("min_wal_size", "32MB")]).await);
    let mut database = Database::on(&source, &destination, "fullwal", &["t"], SCHEMA).await;
    destination.stop(StopMode::Fast).await.unwrap();
    let Some(disk) = moves_its_wal(&destination, "52m") else { return };
    destination.start().await.unwrap();
    let service = Setup::of(&database).start();
    service.streams().await;
    let large = LARGE.replace("20000", "80000");
    database.at_source(&large).await;
    database.at_source("INSERT INTO t VALUES (-2, 'after')").await;
    eventually("the server has fallen", || async { destination.log().contains("PANIC").then_some(()) }).await;
    service.is("connecting").await;
    disk.enlarge("400m");
    // It may have ended, since it could not even recover.
    if destination.connect("postgres").await.is_err() {
        destination.stop(StopMode::Immediate).await.unwrap();
        destination.start().await.unwrap();
    }
    database.reconnect_destination(&destination).await;
    database.assert_catches_up().await;
    service.streams().await;
    service.stop().await;
}
