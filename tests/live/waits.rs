//! Nothing waits at the destination without saying for what: a line in the log, once, and a place in /status while it lasts.

use crate::support::{Database, Service, Setup, destination, eventually, new_destination, source};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')";

/// The waits that /status shows.
async fn waits(service: &Service) -> Option<Vec<String>> {
    let status = service.status().await?;
    let waits = status.get("waits")?.as_array()?;
    Some(waits.iter().filter_map(|wait| Some(wait.as_str()?.to_owned())).collect())
}

/// Waits until the log and /status tell of a wait with all of these words, and returns it.
async fn tells(service: &Service, words: &[&str]) -> String {
    let has_all = |text: &str| words.iter().all(|word| text.contains(word));
    eventually(&format!("a wait is told: {words:?}"), || async {
        let wait = waits(service).await?.into_iter().find(|wait| has_all(wait))?;
        service.log().lines().any(has_all).then_some(wait)
    })
    .await
}

async fn is_over(service: &Service) {
    eventually("no wait is shown", || async { waits(service).await?.is_empty().then_some(()) }).await;
}

fn times(service: &Service, text: &str) -> usize {
    service.log().lines().filter(|line| line.contains(text)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_holds_up_a_batch_is_told_once_with_its_holder_and_what_ends_it() {
    let database = Database::new("waitbatch", &["t"], TABLE).await;
    // Shorter than the wait: the batch is rolled back and tried again, and waits for the same holder.
    let service = Setup::of(&database).destination("lock_timeout = \"8s\"").start();
    service.streams().await;
    let holder = destination().await.connect(&database.name).await.unwrap();
    holder
        .batch(
            "holding",
            "SET application_name = 'job. To end it: SELECT 1; it''s'; BEGIN; LOCK TABLE public.t; SELECT 'secret'",
        )
        .await
        .unwrap();
    let process = holder.query_one("asking", "SELECT pg_backend_pid()::text", &[]).await.unwrap();
    let process: String = process.get(0).unwrap();
    database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
    let end = format!("SELECT pg_terminate_backend({process});");
    let named = format!("held by process {process}. To end it: {end} It is of role ");
    let name = "application_name: 'job. To end it: SELECT 1; it''s'; last statement";
    let what = "writing waits for RowExclusiveLock on public.t";
    let wait = tells(&service, &[what, &named, "idle in transaction", " since ", name]).await;
    assert!(!wait.contains("secret"), "{wait}");
    let (_, text) = service.command(&["status"]).await;
    assert!(text.contains(what) && text.contains(&end), "{text}");
    eventually("it was tried again", || service.restarts("lock_timeout")).await;
    tells(&service, &[what]).await;
    assert_eq!(times(&service, what), 1, "{}", service.log());
    holder.batch("letting go", "ROLLBACK").await.unwrap();
    is_over(&service).await;
    database.assert_catches_up().await;
    // Another transaction of the same session is another wait. It does not keep the service from stopping.
    holder.batch("holding", "BEGIN; LOCK TABLE public.t").await.unwrap();
    database.at_source("UPDATE t SET v = 'd' WHERE id = 1").await;
    eventually("it is told", || async { (times(&service, what) == 2).then_some(()) }).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_holds_up_a_publish_and_a_prepared_transaction_are_told() {
    let to = new_destination(&[("max_prepared_transactions", "5")]).await;
    let database = Database::on(source().await, &to, "waitpublish", &["t"], TABLE).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let holder = to.connect(&database.name).await.unwrap();
    holder.batch("preparing", "BEGIN; LOCK TABLE public.t; PREPARE TRANSACTION 'left over'").await.unwrap();
    database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
    tells(
        &service,
        &[
            "writing waits for RowExclusiveLock on public.t",
            "prepared transaction 'left over'",
            "ROLLBACK PREPARED 'left over';",
        ],
    )
    .await;
    holder.batch("ending", "ROLLBACK PREPARED 'left over'").await.unwrap();
    is_over(&service).await;
    database.assert_catches_up().await;
    service.stop().await;
    // A resync writes the row that differs, for which this waits.
    database.at_destination("UPDATE t SET v = 'other' WHERE id = 2").await;
    holder.batch("holding", "BEGIN; UPDATE public.t SET v = 'mine' WHERE id = 2").await.unwrap();
    let service = Setup::of(&database).argument("--resnapshot").start();
    tells(&service, &["publishing waits for ShareLock on a transactionid", "held by process "]).await;
    holder.batch("letting go", "ROLLBACK").await.unwrap();
    service.streams().await;
    is_over(&service).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_two_busy_sessions_is_told_once_for_each() {
    let database = Database::new("waitbusy", &["t"], TABLE).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let mut holders = Vec::new();
    for _ in 0..2 {
        let holder = destination().await.connect(&database.name).await.unwrap();
        holder.batch("holding", "BEGIN; LOCK TABLE public.t IN SHARE MODE").await.unwrap();
        holders.push(holder);
    }
    database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
    let what = "writing waits for RowExclusiveLock on public.t";
    eventually("both are told", || async { (times(&service, what) >= 2).then_some(()) }).await;
    // Another statement at each of the next looks.
    for number in 0..12 {
        for holder in &holders {
            let sql = format!("SELECT count(*) AS c{number} FROM public.t, pg_sleep(0.3)");
            holder.query("working", &sql, &[]).await.unwrap();
        }
    }
    assert_eq!(times(&service, what), 2, "{}", service.log());
    drop(holders);
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_synchronous_standby_of_the_destination_is_told() {
    let mut destination = new_destination(&[]).await;
    let database = Database::on(source().await, &destination, "waitsync", &["t"], TABLE).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let set = |names: &str| format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
    database.at_destination(&set("standby_of_nobody")).await;
    database.at_destination("SELECT pg_reload_conf()").await;
    let setup = Setup::of(&database);
    let asking = tokio::spawn(async move { setup.command(&["resnapshot", "t"]).await });
    let what = "waits for a synchronous standby of the destination to confirm a COMMIT";
    let wait = tells(&service, &[what, "synchronous_standby_names back ('standby_of_nobody')"]).await;
    let (_, text) = service.command(&["status"]).await;
    assert!(text.contains(&wait), "{text}");
    database.at_destination("ALTER SYSTEM RESET synchronous_standby_names").await;
    database.at_destination("SELECT pg_reload_conf()").await;
    is_over(&service).await;
    drop(asking.await);
    database.assert_catches_up().await;
    service.stop().await;
    destination.stop(headwater::commands::demo::StopMode::Fast).await.unwrap();
}
