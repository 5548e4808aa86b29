//! What the source cannot send: the stream ends there each time. The operator learns the way out, and meanwhile nothing is copied in vain.

use crate::support::suspension::copied_again;
use crate::support::{Database, Service, Setup, eventually};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO t SELECT i, 1 FROM generate_series(1, 100) i;
    ALTER TABLE t REPLICA IDENTITY FULL;
    CREATE TABLE other (id int PRIMARY KEY, v int);
    INSERT INTO other SELECT i, 0 FROM generate_series(1, 10) i;";

/// Waits for more attempts.
async fn four_more_attempts(service: &Service, reason: &str) {
    let before = service.restarts(reason).await.unwrap_or_default();
    eventually("four more attempts", || async { (service.restarts(reason).await? >= before + 4.0).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_wait_while_the_source_fails_at_what_follows_and_the_way_out_is_told() {
    let database = Database::new("undecodable", &["t", "other"], SCHEMA).await;
    if database.source_major().await < 15 {
        // It has no row filters.
        return;
    }
    // The filter fails on a row: the source cannot decide whether to send it.
    let filtered = "CREATE PUBLICATION {} FOR TABLE t WHERE (1 / (n - 5) IS NOT NULL), other WITH (publish_via_partition_root = true)";
    database.at_source(&filtered.replace("{}", &database.name)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE other SET v = 1").await;
    database.caught_up().await;
    database.at_source("INSERT INTO t VALUES (101, 5); UPDATE other SET v = 2").await;
    service.is("waiting").await;
    service.says("division by zero").await;
    service.says("Otherwise stop headwater, and start it once with headwater run --resnapshot").await;
    let setup = Setup::of(&database);
    setup.command(&["resnapshot", "--no-wait", "public.other"]).await.exits(0);
    four_more_attempts(&service, "constraint").await;
    assert!(!service.log().contains("copying public.other again"), "{}", service.log());
    let (_, explained) = service.command(&["explain"]).await;
    assert!(explained.contains("division by zero") && explained.contains("--resnapshot"), "{explained}");
    service.stop().await;
    // The way out. The slot keeps its WAL: what failed there is passed over.
    database.at_source("ALTER PUBLICATION {} DROP TABLE t".replace("{}", &database.name).as_str()).await;
    database.at_source("DELETE FROM t WHERE n = 5").await;
    database
        .at_source(
            "ALTER PUBLICATION {} ADD TABLE t WHERE (1 / (n - 5) IS NOT NULL)".replace("{}", &database.name).as_str(),
        )
        .await;
    let service = setup.argument("--resnapshot").start();
    copied_again(&database).await;
    service.streams().await;
    database.at_source("UPDATE t SET n = 7").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_did_not_exist_then_is_told_with_the_way_out() {
    let database = Database::new("absentthen", &["t", "other"], SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    // While nobody looks.
    let name = &database.name;
    database.at_source(&format!("DROP PUBLICATION {name}")).await;
    database.at_source("UPDATE t SET n = 2; UPDATE other SET v = 3").await;
    let create = format!("CREATE PUBLICATION {name} FOR TABLE t, other WITH (publish_via_partition_root = true)");
    database.at_source(&create).await;
    let mut service = Setup::of(&database).start();
    // From 18 on the source passes over what was written meanwhile, and the tables are copied.
    if database.source_major().await < 18 {
        service
            .says(&format!("publication {name} did not exist when the source wrote what follows in the stream"))
            .await;
        service.is("waiting").await;
        four_more_attempts(&service, "publication_gap").await;
        let copies = service.log().lines().filter(|line| line.contains("again while the stream continues")).count();
        assert!(copies <= 1, "{}", service.log());
        let (_, explained) = service.command(&["explain"]).await;
        assert!(explained.contains("did not exist when") && explained.contains("--resnapshot"), "{explained}");
        service.stop().await;
        service = Setup::of(&database).argument("--resnapshot").start();
    }
    copied_again(&database).await;
    service.streams().await;
    database.at_source("UPDATE t SET n = 3 WHERE id < 9").await;
    database.assert_catches_up().await;
    service.stop().await;
}
