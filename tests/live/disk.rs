//! A disk that is full, at the destination and at the source: said, waited for, and gone on from by itself.

use headwater::commands::demo::StopMode;

use crate::support::disk::Disk;
use crate::support::{Database, Service, Setup, eventually, new_destination, new_source};

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
    let restarts = service.metric("headwater_restarts_total{reason=\"disk_full\"}").await;
    assert!(restarts.is_some_and(|restarts| restarts >= 1.0), "{restarts:?}");
    assert_eq!(service.get("/healthz").await.map(|(code, _)| code), Some(200), "no reason to restart the process");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_destination_is_waited_for_and_nothing_is_lost() {
    let (source, destination) = (new_source(&[]).await, new_destination(&[]).await);
    let place = destination.dir().join("small");
    let Some(disk) = Disk::mount(&place, "6m") else { return };
    let database = Database::on(&source, &destination, "fullhere", &["t"], SCHEMA).await;
    let admin = destination.connect(&database.name).await.unwrap();
    let tablespace = format!("CREATE TABLESPACE small LOCATION '{}'", place.display());
    admin.batch("a small tablespace", &tablespace).await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
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
