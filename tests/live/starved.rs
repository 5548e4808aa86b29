//! Leadership does not hang on how busy or starved the process is; a process that is frozen as a whole loses it.
//!
//! `make starved` runs the same with more tables and a larger row: HEADWATER_STARVED_TABLES, HEADWATER_STARVED_ROW_MB.

use std::time::{Duration, Instant};

use crate::support::starved::Starved;
use crate::support::{Database, PATIENCE, Service, Setup, eventually, seed, workload};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, body bytea); ALTER TABLE t ALTER body SET STORAGE EXTERNAL";

fn size(variable: &str, usually: u64) -> u64 {
    std::env::var(variable).ok().and_then(|size| size.parse().ok()).unwrap_or(usually)
}

/// The process of the session that holds the leader's lock; `None` while nobody does.
async fn leads(database: &Database) -> Option<String> {
    database
        .destination_value(
            "SELECT string_agg(DISTINCT l.pid::text, ', ') FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE l.locktype = 'advisory' AND l.granted AND a.datname = current_database()",
        )
        .await
}

async fn leader_of(database: &Database) -> String {
    eventually("somebody leads", || leads(database)).await
}

/// The same session leads, and nothing was started over.
async fn assert_still_leads(database: &Database, service: &Service, leader: &str) {
    assert_eq!(leads(database).await.as_deref(), Some(leader), "{}", service.log());
    assert!(service.all_restarts().await.expect("its metrics") < 1.0, "{}", service.log());
}

/// Waits for something that takes longer than other things do.
async fn in_the_end<F: Future<Output = Option<()>>>(what: &str, mut question: impl FnMut() -> F) {
    let began = Instant::now();
    while question().await.is_none() {
        assert!(began.elapsed() < 10 * PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenth_of_a_core_and_a_large_row_do_not_cost_the_lead() {
    let megabytes = size("HEADWATER_STARVED_ROW_MB", 32);
    let row = |id: i32| format!("INSERT INTO t SELECT {id}, convert_to(repeat('x', {megabytes} << 20), 'UTF8')");
    let database = Database::new("tenth", &["t"], &format!("{TABLE}; {}", row(1))).await;
    // Shorter than the row takes.
    let service = Setup::of(&database).setting("leader_timeout = \"1s\"").start();
    let starved = Starved::to(10, service.process_id());
    let leader = leader_of(&database).await;
    in_the_end("headwater streams", || async {
        (service.status().await?.get("state")?.as_str()? == "streaming").then_some(())
    })
    .await;
    assert_still_leads(&database, &service, &leader).await;
    database.at_source(&row(2)).await;
    for id in 3..20 {
        database.at_source(&format!("INSERT INTO t VALUES ({id}, '\\x00')")).await;
    }
    let content = "SELECT count(*) || ' ' || sum(length(body)) FROM t";
    in_the_end("the row is there", || database.answer_alike(content)).await;
    assert_still_leads(&database, &service, &leader).await;
    println!("{megabytes} MB: at most {} MB resident", service.resident_max_bytes() >> 20);
    drop(starved);
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_many_tables_does_not_cost_the_lead() {
    let count = size("HEADWATER_STARVED_TABLES", 40);
    let names: Vec<String> = (0..count).map(|n| format!("t{n}")).collect();
    let tables: Vec<&str> = names.iter().map(String::as_str).collect();
    let schema: Vec<String> = names
        .iter()
        .map(|name| {
            format!("CREATE TABLE {name} (id int PRIMARY KEY, v text UNIQUE); INSERT INTO {name} VALUES (1, 'a')")
        })
        .collect();
    let database = Database::new("manytables", &tables, &schema.join(";")).await;
    let service = Setup::of(&database).setting("leader_timeout = \"1s\"").start();
    let leader = leader_of(&database).await;
    in_the_end("headwater streams", || async {
        (service.status().await?.get("state")?.as_str()? == "streaming").then_some(())
    })
    .await;
    assert_still_leads(&database, &service, &leader).await;
    let last = format!("SELECT count(*)::text FROM t{}", count - 1);
    database.at_source(&format!("INSERT INTO t{} VALUES (2, 'b')", count - 1)).await;
    eventually("a change is applied", || database.answer_alike(&last)).await;
    assert_still_leads(&database, &service, &leader).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_blocks_the_runtime_past_leader_timeout_keeps_the_lead() {
    // While the first copy is made, and while a batch is under way.
    for (name, point) in [("blockscopy", "snapshot.staged"), ("blocksapply", "apply.flight_sent")] {
        let database = Database::new(name, &["t"], &format!("{TABLE}; INSERT INTO t VALUES (1, '\\x00')")).await;
        let mut setup = Setup::of(&database).setting("leader_timeout = \"1s\"");
        setup.environment.push(("HEADWATER_FAILPOINT_BLOCK".to_owned(), format!("{point}=4000")));
        let service = setup.start();
        let leader = leader_of(&database).await;
        service.streams().await;
        database.at_source("INSERT INTO t VALUES (2, '\\x00')").await;
        database.assert_catches_up().await;
        service.says(&format!("{point}: its thread is kept")).await;
        // The servers may be equal before the thread is let go.
        let began = Instant::now();
        eventually("the thread is let go", || async { (began.elapsed() > Duration::from_secs(5)).then_some(()) }).await;
        assert_still_leads(&database, &service, &leader).await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_process_loses_the_lead_in_time_and_commits_nothing_on_waking() {
    let seed = seed("a_frozen_process");
    let database = Database::new("froze", workload::TABLES, workload::SCHEMA).await;
    let setup = Setup::of(&database).setting("leader_timeout = \"2s\"");
    let frozen = setup.start();
    frozen.streams().await;
    let leader = leader_of(&database).await;
    let next = setup.start();
    next.is("standby").await;
    database.assert_catches_up().await;
    frozen.signal("STOP");
    let began = Instant::now();
    workload::while_running(&database, seed, async {
        eventually("another session leads", || async { (leads(&database).await? != leader).then_some(()) }).await;
        // The timeout, a poll each second, and what a busy machine takes.
        assert!(began.elapsed() < Duration::from_secs(8), "it took {:?}", began.elapsed());
        next.streams().await;
        next.says("that an earlier leader had left").await;
        frozen.signal("CONT");
        frozen.is("standby").await;
    })
    .await;
    // Until it froze no row had come, though a transaction without any may have been on its way.
    let metrics = frozen.get("/metrics").await.expect("metrics").1;
    let applied = metrics.lines().filter(|line| line.starts_with("headwater_rows_applied_total{"));
    let applied: Vec<&str> = applied.filter(|line| !line.ends_with(" 0")).collect();
    assert!(applied.is_empty(), "{applied:?}");
    database.assert_catches_up().await;
    frozen.stop().await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leader_that_froze_inside_a_transaction_has_locked_is_free_for_the_next() {
    let database = Database::new("frozeinside", &["t"], "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    // Without a spool a large transaction comes at its commit, and is applied in pieces.
    let setup = Setup::of(&database)
        .setting("leader_timeout = \"2s\"")
        .section("[spool]\ndir = \"/dev/null/spool\"")
        .section("[apply]\nbatch_bytes_max = \"64kB\"");
    let mut frozen = setup.start();
    frozen.streams().await;
    let leader = leader_of(&database).await;
    let next = setup.start();
    next.is("standby").await;
    database.at_source("INSERT INTO t SELECT n, n FROM generate_series(1, 200000) n").await;
    // In one statement: the process is inside its transaction when it is stopped.
    let inside = "SELECT string_agg(pid::text, ', ') FROM pg_stat_activity WHERE datname = current_database()
                  AND application_name LIKE '% writing' AND backend_xid IS NOT NULL";
    eventually("the leader is inside a transaction", || database.destination_value(inside)).await;
    frozen.signal("STOP");
    let began = Instant::now();
    eventually("another session leads", || async { (leads(&database).await? != leader).then_some(()) }).await;
    assert!(began.elapsed() < Duration::from_secs(8), "it took {:?}", began.elapsed());
    eventually("all rows are there", || database.answer_alike("SELECT count(*)::text FROM t")).await;
    frozen.signal("CONT");
    frozen.is("standby").await;
    database.assert_catches_up().await;
    frozen.kill();
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_leaves_no_lock_behind() {
    let database = Database::new("nolock", &["t"], TABLE).await;
    let mut service = Setup::of(&database).setting("leader_timeout = \"5s\"").start();
    service.streams().await;
    leader_of(&database).await;
    service.kill();
    let began = Instant::now();
    eventually("nobody leads", || async { leads(&database).await.is_none().then_some(()) }).await;
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_lock_is_taken_away_takes_it_again_before_it_writes_on() {
    let database = Database::new("lockaway", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let leader = leader_of(&database).await;
    for id in 0..5 {
        database.at_source(&format!("INSERT INTO t VALUES ({id})")).await;
    }
    database.at_destination(&format!("SELECT pg_terminate_backend({leader})")).await;
    let next = eventually("it leads again", || async { leads(&database).await.filter(|next| *next != leader) }).await;
    database.at_source("INSERT INTO t VALUES (100)").await;
    database.assert_catches_up().await;
    assert_eq!(leads(&database).await, Some(next));
    assert!((service.all_restarts().await.expect("its metrics") - 1.0).abs() < 0.5, "one restart: {}", service.log());
    service.stop().await;
}
