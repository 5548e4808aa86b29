//! Enum labels that the destination lacks: a copy brings them, whichever it is.

use crate::support::findings::{find, findings, fix, mended};
use crate::support::suspension::all_live;
use crate::support::waits::holding;
use crate::support::{Database, Setup, destination};

const LABELS: &str =
    "SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = 'mood'::regtype";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_first_copy_adds_labels_to_enums_that_are_there() {
    let tables = &["plain", "nested", "created"];
    let schema = "
        CREATE TYPE mood AS ENUM ('low', 'sad', 'ok', 'glad');
        CREATE DOMAIN feeling AS mood; CREATE TYPE pair AS (a int, m mood);
        CREATE TABLE plain (id int PRIMARY KEY, m mood); INSERT INTO plain VALUES (1, 'low'), (2, 'glad');
        CREATE TABLE nested (id int PRIMARY KEY, a mood[], f feeling, p pair);
        INSERT INTO nested VALUES (1, '{low,glad}', 'sad', ROW(1, 'low'));
        CREATE TABLE created (id int PRIMARY KEY, m mood); INSERT INTO created VALUES (1, 'low');";
    let database = Database::of_superuser("labels", tables, schema).await;
    let here =
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN feeling AS mood; CREATE TYPE pair AS (a int, m mood);
         CREATE TABLE plain (id int PRIMARY KEY, m mood); INSERT INTO plain VALUES (1, 'sad'), (9, 'ok');
         CREATE TABLE nested (id int PRIMARY KEY, a mood[], f feeling, p pair);";
    database.at_destination(here).await;
    let setup = Setup::of(&database).argument("--resnapshot");
    let found = findings(&setup).await;
    assert!(find(&found, "ok", "enum public.mood has got a label").is_some(), "{found:#?}");
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(LABELS).await.as_deref(), Some("low,sad,ok,glad"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_are_the_operators_are_told_before_a_row_moves() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood); INSERT INTO t VALUES (1, 'ok')";
    let database = Database::new("labelsstop", &["t"], schema).await;
    // The type is there, the table is not.
    database.at_destination("CREATE TYPE mood AS ENUM ('sad')").await;
    let setup = Setup::of(&database).setting("schema_changes = \"stop\"");
    let found = findings(&setup).await;
    let told = find(&found, "failed", "an enum has got labels at the source").unwrap_or_else(|| panic!("{found:#?}"));
    let service = setup.start();
    service.is("waiting").await;
    service.says("ALTER TYPE \"public\".\"mood\" ADD VALUE").await;
    assert_eq!(database.destination_value("SELECT to_regclass('t')::text").await, None);
    database.at_destination(&fix(told)).await;
    mended(&setup).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_copy_of_a_suspended_table_adds_labels_that_came_meanwhile() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood);
                  INSERT INTO t VALUES (1, 'ok'), (2, 'sad')";
    let database = Database::new("labelssuspended", &["t"], schema).await;
    let service = Setup::of(&database).destination("lock_timeout = \"500ms\"").start();
    service.streams().await;
    database.caught_up().await;
    // The copy cannot be published yet, and nothing of the table is streamed meanwhile.
    let reader = crate::support::destination().await.connect(&database.name).await.unwrap();
    reader.batch("locking", "BEGIN; LOCK TABLE public.t IN SHARE MODE").await.unwrap();
    database.at_source("ALTER TABLE t ADD COLUMN r float8 DEFAULT random(); UPDATE t SET m = 'sad' WHERE id = 1").await;
    service.says("failed and is tried again").await;
    database.at_source("ALTER TYPE mood ADD VALUE 'glad' BEFORE 'ok'").await;
    database.at_source("UPDATE t SET m = 'glad' WHERE id = 2").await;
    reader.batch("unlocking", "COMMIT").await.unwrap();
    all_live(&database).await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(LABELS).await.as_deref(), Some("sad,glad,ok"));
    assert!(!service.log().contains("22P02"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_label_is_followed_though_somebody_locks_the_table_of_conflicts() {
    let schema =
        "CREATE TYPE mood AS ENUM ('a'); CREATE TABLE t (id int PRIMARY KEY, m mood); INSERT INTO t VALUES (1, 'a')";
    let database = Database::new("labellocked", &["t"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    // The stream begins by removing a conflict that is over, which waits.
    let lock = "LOCK TABLE headwater.open_conflict IN SHARE MODE";
    let (holder, _) = holding(destination().await, &database, lock).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE t SET m = 'a'").await;
    database.caught_up().await;
    database.at_source("ALTER TYPE mood ADD VALUE 'b'").await;
    database.at_source("INSERT INTO t VALUES (2, 'b')").await;
    database.assert_catches_up().await;
    assert_eq!(service.restarts("label_missing").await, Some(1.0), "{}", service.log());
    assert_eq!(service.restarts("destination_lost").await, None, "{}", service.log());
    drop(holder);
    service.stop().await;
}
