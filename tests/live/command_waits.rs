//! Commands, too, say what they wait for and end in time; and what was asked for ends with the one who asked.

use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::waits::{holding, waits_for_standby};
use crate::support::{
    Database, Script, Setup, destination, eventually, headwater, new_destination, new_source, source,
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')";

/// Every command that reads or writes the bookkeeping, and ends.
const COMMANDS: &[&[&str]] = &[
    &["check"],
    &["teardown"],
    &["cutover"],
    &["resnapshot"],
    &["verify"],
    &["skip", "--commit-lsn", "0/1"],
    &["replay", "--commit-lsn", "0/1"],
    &["dead-letter", "list"],
    &["conflict", "show"],
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn every_command_says_who_holds_the_lock_that_it_waits_for_and_what_ends_it() {
    let database = Database::of_superuser("commandwaits", &["t"], TABLE).await;
    // verify's own bound, and that of the questions of the others.
    let setup = Setup::of(&database).setting("fence_timeout = \"15s\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    let all = "DO $$ DECLARE name text; BEGIN FOR name IN SELECT oid::regclass FROM pg_class
               WHERE relnamespace = 'headwater'::regnamespace AND relkind = 'r' LOOP EXECUTE 'LOCK TABLE ' || name; END LOOP; END $$";
    let (_holder, process) = holding(destination().await, &database, all).await;
    let (setup, process) = (&setup, process.as_str());
    join_all(COMMANDS.iter().map(|arguments| async move {
        let began = Instant::now();
        let ended = setup.command(arguments).await.exits(1);
        let elapsed = began.elapsed();
        let waits = "waits for AccessShareLock on headwater.";
        let ends = format!("SELECT pg_terminate_backend({process});");
        let held = format!(", held by process {process}. To end it: {ends} It is of role postgres, from ");
        let line = ended.err.lines().any(|line| {
            line.starts_with("destination: ")
                && [waits, &held, "'night job'", " since "].iter().all(|text| line.contains(text))
        });
        assert!(line, "{arguments:?}: {}", ended.err);
        let hint = format!("{ends} -- at the destination");
        let ended = ended
            .says(&["Let what is in the way end, and try again (headwater explain shows it, too); or end it:", &hint]);
        let bound = if arguments[0] == "verify" { 40 } else { 90 };
        assert!(elapsed < Duration::from_secs(bound), "{arguments:?} took {elapsed:?}: {}", ended.err);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_does_not_wait_for_a_synchronous_standby_of_the_destination() {
    let to = new_destination(&[]).await;
    let database = Database::on(source().await, &to, "verifystandby", &["t"], TABLE).await;
    let setup = Setup::of(&database).setting("fence_timeout = \"10s\"");
    let service = setup.start();
    service.streams().await;
    // The service has made the tables of requests.
    setup.command(&["verify"]).await.exits(0);
    waits_for_standby(&to, &database).await;
    let began = Instant::now();
    setup.command(&["verify"]).await.exits(0);
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_fence_whose_requester_is_gone_is_given_up_and_apply_continues() {
    let from = new_source(&[]).await;
    let database = Database::on(&from, destination().await, "fencegone", &["t"], TABLE).await;
    let setup = Setup::of(&database).setting("fence_timeout = \"10m\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    // The slot of a fence waits for it, and apply stands still meanwhile.
    let (_holder, _) = holding(&from, &database, "CREATE TABLE elsewhere (id int)").await;
    let mut verify = tokio::process::Command::new(headwater());
    verify.arg("verify").arg("--config").arg(service.configuration_file()).env_remove("PGPASSWORD").kill_on_drop(true);
    let mut verify = verify.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let fence = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE '% fence' AND backend_type = 'walsender'";
    let fences = async |count: &str| (database.source_value(fence).await.as_deref() == Some(count)).then_some(());
    eventually("a fence is made", || fences("1")).await;
    verify.kill().await.unwrap();
    database.at_source("INSERT INTO t VALUES (3, 'c')").await;
    eventually("nobody waits for the slot of a fence", || fences("0")).await;
    database.assert_catches_up().await;
    service.says("the fence was given up: its requester waits no longer").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_fence_is_made_though_somebody_locks_the_table_of_its_request() {
    let from = new_source(&[]).await;
    let database = Database::on(&from, destination().await, "fencelocked", &["t"], TABLE).await;
    let setup = Setup::of(&database).setting("fence_timeout = \"10m\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let (at_source, _) = holding(&from, &database, "CREATE TABLE elsewhere (id int)").await;
    let mut verify = tokio::process::Command::new(headwater());
    verify.arg("verify").arg("--config").arg(service.configuration_file()).env_remove("PGPASSWORD").kill_on_drop(true);
    let _verify = verify.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    service.says("fence waits for ShareLock on a transactionid").await;
    let (_at_destination, process) =
        holding(destination().await, &database, "LOCK TABLE headwater.fence_requests").await;
    service
        .says(&format!("fences waits for AccessShareLock on headwater.fence_requests, held by process {process}"))
        .await;
    at_source.batch("letting go", "ROLLBACK").await.unwrap();
    // Apply stands still until the fence is made.
    database.at_source("INSERT INTO t VALUES (3, 'c')").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_a_command_has_waited_for_is_its_own_and_not_what_others_wait_for() {
    let database = Database::of_superuser("waitsown", &["t"], TABLE).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let to = destination().await;
    let (_theirs, theirs) = holding(to, &database, "LOCK TABLE t").await;
    let (_ours, ours) = holding(to, &database, "LOCK TABLE headwater.dead_letter").await;
    let other = to.connect(&database.name).await.unwrap().with_timeout(Duration::from_secs(600));
    let waiting = tokio::spawn(async move {
        let sql = "SET application_name = 'headwater of another slot'; BEGIN; LOCK TABLE public.t";
        let _ = other.script("waiting", sql).await;
    });
    let ended = setup.command(&["dead-letter", "list"]).await.exits(1);
    let hint = format!("SELECT pg_terminate_backend({ours}); -- at the destination");
    let error = ended.says(&["no answer within", &hint]).err;
    let error = error.split_once("headwater: error: ").expect("an error").1;
    assert!(!error.contains(&format!("pg_terminate_backend({theirs})")), "{error}");
    waiting.abort();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_lock_is_waited_for_as_long_as_lock_timeout_says_and_no_shorter() {
    let database = Database::new("locklonger", &["t"], TABLE).await;
    let setup = Setup::of(&database).destination("lock_timeout = \"60s\"").destination("timeout = \"3s\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let (holder, _) = holding(destination().await, &database, "LOCK TABLE t").await;
    database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
    // More than the bound of an answer later.
    service.says("writing waits for RowExclusiveLock on public.t").await;
    assert!(!service.log().contains("no answer within"), "{}", service.log());
    holder.batch("letting go", "ROLLBACK").await.unwrap();
    database.assert_catches_up().await;
    assert!(!service.log().contains("no answer within"), "{}", service.log());
    service.stop().await;
}
