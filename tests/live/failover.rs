//! The source fails over: headwater goes on against the promoted standby, or reads from a standby from the beginning.

use std::path::Path;

use headwater::commands::demo::{Cluster, StopMode};
use headwater::session::SqlClient;

use crate::support::findings::{failed, find, findings, fix, mended};
use crate::support::tools::{program, run};
use crate::support::{
    Database, Service, Setup, bin_of, destination, eventually, new_source_of, parent, seed, workload,
};

/// A primary and a standby that follows it, both of this major and with these settings of the standby's.
async fn pair(major: u32, primary: &[(&str, &str)], standby: &[(&str, &str)]) -> Option<(Cluster, Cluster)> {
    let mut first = new_source_of(&bin_of(major)?, primary).await;
    let admin = first.connect("postgres").await.unwrap();
    admin.batch("a slot", "SELECT pg_create_physical_replication_slot('physical', true)").await.unwrap();
    drop(admin);
    first.stop(StopMode::Fast).await.unwrap();
    let address = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", first.port());
    let own = [
        ("primary_conninfo", address.as_str()),
        ("primary_slot_name", "physical"),
        ("hot_standby_feedback", "on"),
        ("wal_receiver_status_interval", "1s"),
        // Nobody follows it, so it must wait for nobody once it is the primary.
        ("synchronized_standby_slots", ""),
    ];
    let own = own.iter().filter(|(name, _)| major >= 17 || *name != "synchronized_standby_slots");
    let settings: Vec<_> = own.chain(standby).copied().collect();
    let mut second = first.copy(&parent(), "standby", &settings, true).unwrap();
    first.start().await.unwrap();
    second.start().await.unwrap();
    Some((first, second))
}

/// Waits until the standby has all that its primary has now.
async fn replayed(database: &Database, at_standby: &SqlClient) {
    let behind = database.source_value("SELECT pg_current_wal_lsn()::text").await.unwrap();
    let sql = format!("SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{behind}'");
    eventually("the standby has replayed", || async { at_standby.query_opt("looking", &sql, &[]).await.ok()? }).await;
}

async fn applies_more(service: &Service, transactions: f64) {
    let applied = "headwater_transactions_applied_total";
    let before = service.metric(applied).await.unwrap_or(0.0);
    eventually("some more transactions are applied", || async {
        (service.metric(applied).await? > before + transactions).then_some(())
    })
    .await;
}

async fn goes_on_after_a_failover(major: u32) {
    let seed = seed(&format!("goes_on_after_a_failover of {major}"));
    // The logical walsender sends nothing that the standby has not received.
    let waits = [("synchronized_standby_slots", "physical")];
    let Some((mut first, second)) = pair(major, &waits, &[("sync_replication_slots", "on")]).await else { return };
    let mut database = Database::on(&first, destination().await, "failover", workload::TABLES, workload::SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.source_url = format!(
        "postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=read-write",
        first.port(),
        second.port(),
        database.name
    );
    let service = setup.start();
    service.streams().await;
    let slot = format!("SELECT failover::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    assert_eq!(database.source_value(&slot).await.as_deref(), Some("true"));

    let at_standby = second.connect("postgres").await.unwrap();
    let synced = format!(
        "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name = '{}' AND synced AND NOT temporary AND \
         invalidation_reason IS NULL",
        database.name
    );
    eventually("the slot is held ready at the standby", || async {
        // The slot's synchronization follows what is confirmed.
        database.at_source("UPDATE sections SET place = place + 1 WHERE id = 1").await;
        at_standby.query_opt("looking", &synced, &[]).await.ok()?
    })
    .await;
    workload::while_running(&database, seed, async {
        applies_more(&service, 30.0).await;
        first.stop(StopMode::Immediate).await.unwrap();
        at_standby.batch("promoting", "SELECT pg_promote()").await.unwrap();
    })
    .await;
    database.reconnect_source(&second).await;
    database.assert_catches_up().await;
    service.streams().await;
    workload::while_running(&database, seed + 1, async {
        applies_more(&service, 30.0).await;
    })
    .await;
    database.assert_catches_up().await;
    let timeline = database.destination_value("SELECT timeline::text FROM headwater.stream").await;
    println!("major {major}: goes on against the promoted standby, timeline {}", timeline.as_deref().unwrap_or("?"));
    assert_eq!(timeline.as_deref(), Some("2"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_of_17_is_followed_through_a_list_of_hosts() {
    goes_on_after_a_failover(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_of_18_is_followed_through_a_list_of_hosts() {
    goes_on_after_a_failover(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_can_be_the_source() {
    let Some((first, mut second)) = pair(16, &[], &[]).await else { return };
    let mut database = Database::on(&first, destination().await, "standby", workload::TABLES, workload::SCHEMA).await;
    let at_standby = second.connect("postgres").await.unwrap();
    let mut setup = Setup::of(&database).setting("fence_timeout = \"6s\"");
    setup.source_url = format!(
        "postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=standby",
        first.port(),
        second.port(),
        database.name
    );
    // What a standby cannot make is the primary's to make, by what check prints.
    let drop_one = format!("ALTER PUBLICATION {} DROP TABLE {}", database.name, workload::TABLES[0]);
    for (sql, message) in [("SELECT 1", "does not exist, and the source is a standby"), (&drop_one, "does not hold")] {
        database.at_source(sql).await;
        replayed(&database, &at_standby).await;
        let finding = failed(&setup, message).await;
        assert!(finding["hint"].as_str().is_some_and(|hint| hint.starts_with("Run at the primary")), "{finding}");
        database.at_source(&fix(&finding)).await;
        replayed(&database, &at_standby).await;
    }
    mended(&setup).await;
    let wanted = "the server is a primary, but target_session_attrs wants a standby";
    assert!(find(&findings(&setup).await, "ok", wanted).is_some(), "the other host is named");
    // A slot there waits for the primary to log its running transactions, and for those.
    let running = first.connect(&database.name).await.unwrap();
    running.batch("a transaction", "BEGIN; CREATE TEMP TABLE held (id int)").await.unwrap();
    let service = setup.start();
    service.says("To have it logged now, run at the primary").await;
    assert_eq!(service.status().await.unwrap()["state"], "snapshot");
    running.batch("its end", "COMMIT").await.unwrap();
    eventually("it streams", || async {
        database.at_source("SELECT pg_log_standby_snapshot()").await;
        (service.status().await?["state"] == "streaming").then_some(())
    })
    .await;
    database.at_source("UPDATE messages SET score = 7 WHERE id < 100; DELETE FROM topics WHERE id = 3").await;
    database.assert_catches_up().await;

    // So does that of a fence, as soon as the primary writes nothing; and no cut-over can be proved there.
    eventually("verify says what its fence waits for", || async {
        let (code, text) = service.command(&["verify"]).await;
        let primary = "Run at the primary:\n        SELECT pg_log_standby_snapshot();";
        (code == Some(1) && text.contains("The source is a standby: ") && text.contains(primary)).then_some(())
    })
    .await;
    let (code, text) = service.command(&["cutover"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("the source is a standby: whether its primary is still written to cannot be seen there"),
        "{text}"
    );

    // A standby that loses rows of the catalog that the slot needs loses the slot.
    service.stop().await;
    drop(at_standby);
    second.stop(StopMode::Fast).await.unwrap();
    second.set("hot_standby_feedback", "off");
    second.start().await.unwrap();
    let at_standby = second.connect("postgres").await.unwrap();
    let reason = format!("SELECT conflicting::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    eventually("the slot is invalidated", || async {
        for statement in ["CREATE TABLE gone (id int)", "DROP TABLE gone", "VACUUM pg_class", "VACUUM pg_attribute"] {
            database.at_source(statement).await;
        }
        let row = at_standby.query_opt("looking", &reason, &[]).await.ok()??;
        (row.get::<Option<&str>>(0).unwrap() == Some("true")).then_some(())
    })
    .await;
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("was invalidated by the source") && output.contains("hot_standby_feedback"), "{output}");

    // A standby drops its slot, and its primary the publication, by what is printed.
    let comment = format!("COMMENT ON PUBLICATION {} IS 'Created by headwater'", database.name);
    database.at_source(&comment).await;
    replayed(&database, &at_standby).await;
    let left = setup.command(&["teardown"]).await.exits(1);
    let left = left.says(&["removed: slot", "a standby; its primary drops it", "removed: the bookkeeping"]);
    let sql = left
        .out
        .lines()
        .find(|line| line.trim().starts_with("DROP PUBLICATION"))
        .expect("the statement")
        .trim()
        .to_owned();
    database.at_source(&sql).await;
    replayed(&database, &at_standby).await;
    setup.command(&["teardown"]).await.exits(0).says(&["kept: slot", "kept: publication"]);
    database.tables.clear();
}

/// Which of the two is named first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    OldFirst,
    PromotedFirst,
}

/// The standby is promoted, the old primary comes back and is written to: rows of it never arrive, whichever host stands first,
/// whether it is alone or not, and whatever `on_slot_lost` says; then the stream goes on from the promoted one.
async fn split_brain(major: u32, order: Order, on_slot_lost: &str) {
    println!("split brain on {major}, {order:?}, on_slot_lost = {on_slot_lost}");
    let synced = major >= 17;
    let waits: &[(&str, &str)] = if synced { &[("synchronized_standby_slots", "physical")] } else { &[] };
    let syncs: &[(&str, &str)] = if synced { &[("sync_replication_slots", "on")] } else { &[] };
    let Some((mut first, second)) = pair(major, waits, syncs).await else { return };
    let schema = "CREATE TABLE t (id int PRIMARY KEY, origin text); INSERT INTO t SELECT i, 'both' FROM generate_series(1, 1000) i";
    let mut database = Database::on(&first, destination().await, "splitbrain", &["public.t"], schema).await;
    let hosts = match order {
        Order::OldFirst => [first.port(), second.port()],
        Order::PromotedFirst => [second.port(), first.port()],
    };
    let mut setup = Setup::of(&database).setting(&format!("on_slot_lost = {on_slot_lost:?}"));
    setup.source_url = format!(
        "postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=read-write",
        hosts[0], hosts[1], database.name
    );
    let service = setup.start();
    service.streams().await;
    let at_standby = second.connect("postgres").await.unwrap();
    if synced {
        let ready = format!(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = '{}' AND synced AND NOT temporary AND invalidation_reason IS NULL",
            database.name
        );
        eventually("the slot is held ready at the standby", || async {
            database.at_source("UPDATE t SET origin = 'both' WHERE id = 1").await;
            at_standby.query_opt("looking", &ready, &[]).await.ok()?
        })
        .await;
    }
    database.assert_catches_up().await;
    replayed(&database, &at_standby).await;
    service.stop().await;
    // The old primary is cut off, the standby is promoted and written to.
    first.stop(StopMode::Immediate).await.unwrap();
    at_standby.batch("promoting", "SELECT pg_promote()").await.unwrap();
    database.reconnect_source(&second).await;
    database.at_source("UPDATE t SET origin = 'promoted' WHERE id <= 10").await;
    if synced || on_slot_lost == "resnapshot" {
        let service = setup.start();
        service.streams().await;
        database.assert_catches_up().await;
        service.stop().await;
    } else {
        let output = setup.start().ends_with(1).await;
        assert!(output.contains("does not exist at the source any more"), "{output}");
        let service = setup.clone().argument("--resnapshot").start();
        service.streams().await;
        database.assert_catches_up().await;
        service.stop().await;
    }
    // It comes back, and somebody writes to it.
    first.start().await.unwrap();
    let stale = first.connect(&database.name).await.unwrap();
    stale
        .batch("stale rows", "DELETE FROM public.t WHERE id > 20; UPDATE public.t SET origin = 'stale'")
        .await
        .unwrap();
    let old = format!("127.0.0.1:{}", first.port());
    let service = setup.start();
    service.streams().await;
    service.says(&format!("{old} is passed over: it is on timeline 1")).await;
    database.at_source("UPDATE t SET origin = 'after' WHERE id = 500").await;
    database.assert_catches_up().await;
    service.stop().await;
    // It alone answers: under its own address, and among the hosts. A start ends, whatever the setting.
    let mut alone = setup.clone();
    alone.source_url = first.tcp_url(&database.name);
    let output = alone.start().ends_with(1).await;
    assert!(output.contains(&format!("old primary that came back: {old}")), "{output}");
    assert!(!output.contains("on_slot_lost"), "{output}");
    database.assert_equal().await;
    // A running service waits until the right one answers, and then goes on.
    let service = setup.start();
    service.streams().await;
    let mut second = second;
    second.stop(StopMode::Immediate).await.unwrap();
    service.says(&format!("old primary that came back: {old}")).await;
    service.is("waiting").await;
    service.says("source.url names others").await;
    let stale_rows = "SELECT count(*)::text FROM t WHERE origin = 'stale'";
    assert_eq!(database.destination_value(stale_rows).await.as_deref(), Some("0"));
    assert_eq!(database.destination_value("SELECT count(*)::text FROM t").await.as_deref(), Some("1000"));
    second.start().await.unwrap();
    database.reconnect_source(&second).await;
    service.streams().await;
    database.at_source("UPDATE t SET origin = 'again' WHERE id = 600").await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(stale_rows).await.as_deref(), Some("0"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_comes_back_is_passed_over_on_15_with_stop() {
    split_brain(15, Order::OldFirst, "stop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_comes_back_is_passed_over_on_15_with_resnapshot() {
    split_brain(15, Order::PromotedFirst, "resnapshot").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_comes_back_is_passed_over_on_17_with_resnapshot() {
    split_brain(17, Order::OldFirst, "resnapshot").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_comes_back_is_passed_over_on_18_with_stop() {
    split_brain(18, Order::PromotedFirst, "stop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_of_a_slot_that_no_standby_can_hold_ready() {
    let (Some(bin), Some(psql)) = (bin_of(18), program("psql")) else { return };
    let source = new_source_of(&bin, &[]).await;
    let database =
        Database::on(&source, destination().await, "nofailover", &["t"], "CREATE TABLE t (id int PRIMARY KEY)");
    let database = database.await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    let message = "is no failover slot";
    assert!(find(&findings(&setup).await, "warning", message).is_none(), "headwater makes it one");
    // As pg_upgrade brings one from 16.
    let connection = format!(
        "host={} port={} user=postgres dbname={} replication=database",
        source.dir().display(),
        source.port(),
        database.name
    );
    let alter = format!("ALTER_REPLICATION_SLOT {} (FAILOVER false)", database.name);
    let (done, said) = run(&psql, &["-d", &connection, "-c", &alter], "");
    assert!(done, "{said}");
    let found = findings(&setup).await;
    let finding = find(&found, "warning", message).unwrap_or_else(|| panic!("no warning in {found:#?}"));
    let (done, said) = run(Path::new("/bin/sh"), &["-ec", &fix(finding)], "");
    assert!(done, "{said}");
    assert!(find(&findings(&setup).await, "warning", message).is_none(), "what it prints mends it");
}

/// pg_current_snapshot() lists no transaction in progress on a standby, so this one looks as if it had been seen whole at the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_replaced_by_a_transaction_under_way_is_followed_on_a_standby() {
    let Some((first, second)) = pair(16, &[], &[]).await else { return };
    let schema = "CREATE TABLE a (id int PRIMARY KEY, c int); CREATE TABLE b (id int PRIMARY KEY);
                  INSERT INTO a SELECT i, i FROM generate_series(1, 5) i";
    let database = Database::on(&first, destination().await, "underway", &["public.a", "public.b"], schema).await;
    let at_standby = second.connect("postgres").await.unwrap();
    database.at_source(&format!("CREATE PUBLICATION {} FOR TABLE a, b", database.name)).await;
    replayed(&database, &at_standby).await;
    let mut setup = Setup::of(&database);
    setup.source_url = format!("postgresql://postgres@127.0.0.1:{}/{}", second.port(), database.name);
    let service = setup.start();
    eventually("it streams", || async {
        database.at_source("SELECT pg_log_standby_snapshot()").await;
        (service.status().await?["state"] == "streaming").then_some(())
    })
    .await;
    service.stop().await;

    let under_way = first.connect(&database.name).await.unwrap();
    under_way.batch("it has an xid", "BEGIN; INSERT INTO public.b VALUES (1)").await.unwrap();
    database.at_source("INSERT INTO b VALUES (2)").await;
    replayed(&database, &at_standby).await;
    let service = setup.start();
    service.streams().await;
    let replace = "ALTER TABLE public.a DROP COLUMN c; ALTER TABLE public.a ADD COLUMN c int;
                   INSERT INTO public.a VALUES (7, 7); COMMIT";
    under_way.batch("it replaces the column", replace).await.unwrap();
    // It is copied again, and a slot of a standby waits for the primary to log its running transactions.
    eventually("the rows are those of the new column", || async {
        database.at_source("SELECT pg_log_standby_snapshot()").await;
        let rows = database.destination_value("SELECT count(*) || ', ' || count(c) FROM a").await;
        (rows.as_deref() == Some("6, 1")).then_some(())
    })
    .await;
    database.assert_equal().await;
    service.stop().await;
}
