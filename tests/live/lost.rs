//! A slot or a history that is lost: recognised at once with its cause, never started anew in silence; and mended when asked.

use headwater::commands::demo::{Cluster, StopMode};

use crate::support::roles::like;
use crate::support::{
    Database, Script, Setup, bin_of, destination, eventually, new_source, new_source_of, parent, source, workload,
};

const TABLES: &[&str] = &["public.t", "public.u"];
const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE u (id int PRIMARY KEY, t int REFERENCES t);
    INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i; INSERT INTO u SELECT i, i FROM generate_series(1, 500) i;";
/// What the stream then does not tell: every kind of change.
const MEANWHILE: &str = "DELETE FROM u WHERE id < 50; DELETE FROM t WHERE id < 50; UPDATE t SET n = -n WHERE id > 900;
    INSERT INTO t SELECT i, i FROM generate_series(2001, 2100) i; INSERT INTO u VALUES (2001, 2001)";

/// A database that was followed and is not any more.
async fn followed_from(name: &str, from: &Cluster) -> Database {
    let database = Database::on(from, destination().await, name, TABLES, SCHEMA).await;
    database.follows_then_stops("UPDATE t SET n = n + 1 WHERE id = 1000").await;
    database
}

/// Ends with the cause, touches nothing, and with `on_slot_lost = "resnapshot"` goes on.
async fn is_told_then_mended(database: &Database, says: &[&str]) {
    let before = database.destination_value("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM t").await;
    // Check says the same words, with the same way out.
    Setup::of(database).command(&["check"]).await.exits(1).says(says).says(&["--resnapshot"]);
    let output = Setup::of(database).start().ends_with(1).await;
    for text in says.iter().chain(&["--resnapshot", "on_slot_lost = \"resnapshot\""]) {
        assert!(output.contains(text), "{text:?} is not in:\n{output}");
    }
    let after = database.destination_value("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM t").await;
    assert_eq!(before, after, "nothing was touched");

    let service = Setup::of(database).setting("on_slot_lost = \"resnapshot\"").start();
    let mut fewest = i64::MAX;
    eventually("it streams again", || {
        let (service, database) = (&service, &database);
        async move {
            // Readers are neither held up nor shown anything in between.
            let count = database.destination_value("SELECT count(*)::text FROM t").await?.parse::<i64>().ok()?;
            let state = service.status().await?.get("state")?.as_str()?.to_owned();
            Some((count, state == "streaming"))
        }
    })
    .await;
    loop {
        let count = database.destination_value("SELECT count(*)::text FROM t").await.unwrap();
        fewest = fewest.min(count.parse().unwrap());
        if service.status().await.is_some_and(|status| status["state"] == "streaming") {
            break;
        }
    }
    assert!(fewest >= 1000, "a reader saw {fewest} rows");
    database.assert_catches_up().await;
    database.at_source("UPDATE t SET n = 7 WHERE id = 500").await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// What the destination holds.
async fn fingerprint(database: &Database) -> Option<String> {
    database.destination_value("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM t").await
}

/// Ends with the cause and touches nothing, whatever `on_slot_lost` says; copies when the command line asks for it.
async fn is_copied_only_when_asked(database: &Database, says: &[&str]) {
    let before = fingerprint(database).await;
    Setup::of(database).command(&["check"]).await.exits(1).says(says).says(&["--resnapshot"]);
    for setting in ["stop", "resnapshot"] {
        let setup = Setup::of(database).setting(&format!("on_slot_lost = \"{setting}\""));
        let output = setup.start().ends_with(1).await;
        for text in says {
            assert!(output.contains(text), "{text:?} is not in:\n{output}");
        }
        assert!(!output.contains("on_slot_lost"), "{output}");
        assert_eq!(before, fingerprint(database).await, "nothing was touched with on_slot_lost = {setting}");
    }
    let service = Setup::of(database).argument("--resnapshot").start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_source("UPDATE t SET n = 7 WHERE id = 500").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_dropped_slot_is_never_replaced_in_silence() {
    let database = followed_from("dropped", source().await).await;
    database.at_source(&format!("SELECT pg_drop_replication_slot('{}')", database.name)).await;
    database.at_source(MEANWHILE).await;
    is_told_then_mended(&database, &["does not exist at the source any more", "The destination stands at"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_lost_under_the_running_service_is_mended_by_it() {
    let database = Database::on(source().await, destination().await, "lostrunning", TABLES, SCHEMA).await;
    let service = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"").start();
    service.streams().await;
    let drop = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{0}' AND active_pid > 0;
         SELECT pg_drop_replication_slot('{0}')",
        database.name
    );
    eventually("the slot is dropped", || async { database.source.script("dropping", &drop).await.ok() }).await;
    database.at_source(MEANWHILE).await;
    service.says("reconciling all tables with a new snapshot").await;
    database.caught_up().await;
    service.streams().await;
    database.assert_catches_up().await;
    assert_eq!(service.restarts("slot_lost").await, Some(1.0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_slot_whose_wal_was_removed_is_told_with_the_setting_that_did_it() {
    let source =
        new_source(&[("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")]).await;
    let database = followed_from("walremoved", &source).await;
    database.at_source(MEANWHILE).await;
    for _ in 0..6 {
        database.at_source("SELECT pg_logical_emit_message(true, 'x', 'x'); SELECT pg_switch_wal(); CHECKPOINT").await;
    }
    let lost = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    assert_eq!(database.source_value(&lost).await.as_deref(), Some("lost"));
    is_told_then_mended(&database, &["was invalidated by the source (wal_removed)", "max_slot_wal_keep_size"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_whose_slot_is_lost_meanwhile_ends_at_once_and_publishes_nothing() {
    let source =
        new_source(&[("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")]).await;
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i";
    let database = Database::on(&source, destination().await, "lostcopying", &["t"], schema).await;
    // It would last for a minute and more.
    let setup = Setup::of(&database);
    let service = setup.clone().section("[snapshot]\nmax_rate = \"200kB\"").start();
    service.says("copying public.t: ").await;
    // The copy was seen with its slot in order.
    let looked = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE datname = '{}' AND query LIKE '%pg_replication_slots%' AND state = 'idle'
         AND application_name LIKE '% slot'",
        database.name
    );
    eventually("the slot was looked at", || async {
        (database.source_value(&looked).await.as_deref() != Some("0")).then_some(())
    })
    .await;
    for _ in 0..6 {
        database.at_source("SELECT pg_logical_emit_message(true, 'x', 'x'); SELECT pg_switch_wal(); CHECKPOINT").await;
    }
    let output = service.ends_with(1).await;
    assert!(output.contains("was invalidated by the source (wal_removed)"), "{output}");
    assert!(!output.contains("published 20000 rows"), "{output}");
    // Nothing was published, so the next start begins by itself.
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn how_long_a_slot_has_left_is_told_before_it_is_lost() {
    let source = new_source(&[("max_slot_wal_keep_size", "1GB")]).await;
    let database = Database::on(&source, destination().await, "leaves", TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    // A local lock holds the apply up, so the slot stands still while the source writes on.
    let local = destination().await.connect(&database.name).await.unwrap();
    local.batch("locking", "BEGIN; LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    database.at_source("UPDATE t SET n = 0").await;
    eventually("seconds are told", || async {
        database.at_source("SELECT pg_logical_emit_message(false, 'x', repeat('x', 200000))").await;
        let left = service.metric("headwater_slot_seconds_until_lost").await?;
        (left > 0.0 && left < 100_000.0).then_some(())
    })
    .await;
    local.batch("unlocking", "ROLLBACK").await.unwrap();
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_slot_that_was_idle_for_too_long_is_told_with_the_setting_that_did_it() {
    let Some(bin) = bin_of(18) else { return };
    let source = new_source_of(&bin, &[("idle_replication_slot_timeout", "1s")]).await;
    let database = followed_from("idletimeout", &source).await;
    database.at_source(MEANWHILE).await;
    let lost = format!("SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    eventually("the slot is invalidated", || async {
        database.at_source("SELECT pg_logical_emit_message(true, 'x', 'x'); CHECKPOINT").await;
        database.source_value(&lost).await
    })
    .await;
    is_told_then_mended(&database, &["was invalidated by the source (idle_timeout)", "idle_replication_slot_timeout"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_source_restored_from_an_older_state_is_copied_only_when_asked() {
    let mut source = new_source(&[]).await;
    let mut database = followed_from("restored", &source).await;
    source.stop(StopMode::Fast).await.unwrap();
    let mut yesterday = source.copy(&parent(), "yesterday", &[], false).unwrap();
    source.start().await.unwrap();
    database.reconnect_source(&source).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("INSERT INTO t SELECT i, i FROM generate_series(3001, 9000) i").await;
    database.assert_catches_up().await;
    service.stop().await;
    source.stop(StopMode::Fast).await.unwrap();

    yesterday.start().await.unwrap();
    database.source_url = like(&database.source_url, &yesterday.url(&database.name));
    database.reconnect_source(&yesterday).await;
    is_copied_only_when_asked(&database, &["the source's WAL ends at", "before the destination's position"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_of_the_sources_files_with_fewer_transactions_is_copied_only_when_asked() {
    let mut source = new_source(&[]).await;
    let mut database = followed_from("filecopy", &source).await;
    source.stop(StopMode::Fast).await.unwrap();
    let mut copy = source.copy(&parent(), "filecopy", &[], false).unwrap();
    source.start().await.unwrap();
    database.reconnect_source(&source).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source("DO $$ BEGIN FOR i IN 3001..4000 LOOP INSERT INTO t VALUES (i, i); COMMIT; END LOOP; END $$")
        .await;
    database.assert_catches_up().await;
    database.transaction_id_is_remembered().await;
    service.stop().await;
    let position = database.destination_value("SELECT position::text FROM headwater.position").await.unwrap();
    source.stop(StopMode::Fast).await.unwrap();

    // Same system identifier, same timeline, a slot that is behind, and WAL that reaches the position.
    copy.start().await.unwrap();
    database.source_url = like(&database.source_url, &copy.url(&database.name));
    database.reconnect_source(&copy).await;
    let passed = format!("SELECT (pg_current_wal_flush_lsn() > '{position}')::text");
    while database.source_value(&passed).await.as_deref() != Some("true") {
        database.at_source("INSERT INTO t SELECT max(id) + 1, 0 FROM t; SELECT pg_switch_wal()").await;
    }
    is_copied_only_when_asked(&database, &["has assigned fewer transaction IDs", "started without recovery"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_timeline_that_left_before_the_position_is_copied_only_when_asked() {
    let mut source = new_source(&[]).await;
    let mut database = followed_from("timeline", &source).await;
    source.stop(StopMode::Fast).await.unwrap();
    // A standby that has received nothing since.
    let mut standby =
        source.copy(&parent(), "standby", &[("primary_conninfo", "host=127.0.0.1 port=1")], true).unwrap();
    source.start().await.unwrap();
    database.reconnect_source(&source).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("INSERT INTO t SELECT i, i FROM generate_series(3001, 9000) i").await;
    database.assert_catches_up().await;
    service.stop().await;
    source.stop(StopMode::Fast).await.unwrap();

    standby.start().await.unwrap();
    database.source_url = like(&database.source_url, &standby.url(&database.name));
    let admin = standby.connect("postgres").await.unwrap();
    admin.batch("promoting", "SELECT pg_promote()").await.unwrap();
    database.reconnect_source(&standby).await;
    is_copied_only_when_asked(&database, &["the source is on timeline 2", "before the destination's position"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_destination_that_went_back_is_lost_history_and_mended_with_its_deletes() {
    let seed = crate::support::seed("a_destination_that_went_back");
    let mut here = crate::support::new_destination(&[]).await;
    let mut database = Database::on(source().await, &here, "wentback", workload::TABLES, workload::SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    // Yesterday's backup, or an asynchronous standby that had not received everything.
    here.stop(StopMode::Fast).await.unwrap();
    let mut yesterday = here.copy(&parent(), "backup", &[], false).unwrap();
    here.start().await.unwrap();
    database.reconnect_destination(&here).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let applied = async {
        eventually("some transactions are applied", || async {
            (service.metric("headwater_transactions_applied_total").await? > 50.0).then_some(())
        })
        .await;
    };
    workload::while_running(&database, seed, applied).await;
    database.assert_catches_up().await;
    service.stop().await;
    here.stop(StopMode::Fast).await.unwrap();

    yesterday.start().await.unwrap();
    database.destination_url = like(&database.destination_url, &yesterday.url(&database.name));
    database.reconnect_destination(&yesterday).await;
    let output = Setup::of(&database).start().ends_with(1).await;
    assert!(output.contains("ahead of the destination's position"), "{output}");
    // The workload has replaced most rows of some tables, so it is the operator who asks.
    let service = Setup::of(&database).argument("--resnapshot").start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_slot_ahead_of_the_position_is_told_then_mended_by_itself() {
    let database = followed_from("slotahead", source().await).await;
    database.at_source(MEANWHILE).await;
    // What an older state of the destination looks like to the source.
    let advance = format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", database.name);
    database.at_source(&advance).await;
    is_told_then_mended(&database, &["ahead of the destination's position", "restored or failed over"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_ahead_of_the_position_that_feeds_another_destination_is_left_to_it() {
    let database = followed_from("slottaken", source().await).await;
    // A copy of the destination takes over, with the same configuration; then the original is started once more.
    let clone = format!("{}_clone", database.name);
    let admin = destination().await.connect("postgres").await.unwrap();
    let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'", database.name);
    admin.script("ending sessions", &end).await.unwrap();
    admin.script("a copy", &format!("CREATE DATABASE {clone} TEMPLATE {}", database.name)).await.unwrap();
    let mut database = database;
    database.reconnect_destination(destination().await).await;
    let mut other = Setup::of(&database);
    other.destination_url = other.destination_url.replace(&database.name, &clone);
    let feeding = other.start();
    feeding.streams().await;
    database.at_source("UPDATE t SET n = n + 1 WHERE id = 1000").await;
    let confirmed = format!(
        "SELECT (s.confirmed_flush_lsn > '{}')::text FROM pg_replication_slots s WHERE slot_name = '{}'",
        database.destination_value("SELECT position::text FROM headwater.position").await.unwrap(),
        database.name
    );
    eventually("the slot has passed the original's position", || async {
        (database.source_value(&confirmed).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    let before = fingerprint(&database).await;
    let setup = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"");
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("it may feed another destination"), "{output}");
    let output = setup.argument("--resnapshot").start().ends_with(1).await;
    assert!(output.contains("feeds somebody else"), "{output}");
    assert_eq!(before, fingerprint(&database).await);
    feeding.streams().await;
    assert_eq!(feeding.restarts("source_lost").await.unwrap_or(0.0), 0.0);
    feeding.stop().await;
    admin.script("removing the copy", &format!("DROP DATABASE {clone}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn another_cluster_is_copied_only_when_asked() {
    let mut database = followed_from("othercluster", source().await).await;
    let other = new_source(&[]).await;
    let admin = other.connect("postgres").await.unwrap();
    admin.script("a database", &format!("CREATE DATABASE {}", database.name)).await.unwrap();
    database.source_url = other.url(&database.name);
    database.reconnect_source(&other).await;
    database.at_source(SCHEMA).await;
    is_copied_only_when_asked(&database, &["the destination was fed by another source", "Correct source.url"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_database_of_the_source_that_was_renamed_is_followed_without_a_copy() {
    let cluster = new_source(&[]).await;
    let mut database = followed_from("renamed", &cluster).await;
    let admin = cluster.connect("postgres").await.unwrap();
    drop(std::mem::replace(&mut database.source, cluster.connect("postgres").await.unwrap()));
    let (old, new) = (database.name.clone(), format!("{}_new", database.name));
    admin.script("renaming", &format!("ALTER DATABASE {old} RENAME TO {new}")).await.unwrap();
    database.source = cluster.connect(&new).await.unwrap();
    database.at_destination("UPDATE t SET n = -7 WHERE id = 77").await;
    let mut setup = Setup::of(&database);
    setup.source_url = cluster.url(&new);
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    service.streams().await;
    service.says(&format!("database {old} at the source is called {new} now: it is the same one")).await;
    let marked = "SELECT n::text FROM t WHERE id = 77";
    assert_eq!(database.destination_value(marked).await.as_deref(), Some("-7"), "nothing was copied");
    database.at_destination("UPDATE t SET n = 77 WHERE id = 77").await;
    database.at_source("UPDATE public.t SET n = 8 WHERE id = 500").await;
    database.assert_catches_up().await;
    service.stop().await;
    database.tables.clear();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn another_database_of_the_source_is_copied_only_when_asked() {
    let cluster = new_source(&[]).await;
    let mut database = followed_from("otherdatabase", &cluster).await;
    let admin = cluster.connect("postgres").await.unwrap();
    drop(std::mem::replace(&mut database.source, cluster.connect("postgres").await.unwrap()));
    let sql = format!(
        "SELECT pg_drop_replication_slot('{0}'); ALTER DATABASE {0} RENAME TO {0}_old; CREATE DATABASE {0}",
        database.name
    );
    for statement in sql.split("; ") {
        admin.script("another database of the name", statement).await.unwrap();
    }
    database.reconnect_source(&cluster).await;
    database.at_source(SCHEMA).await;
    let says = ["was fed from another database of the source", "another one has its name now"];
    is_copied_only_when_asked(&database, &says).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_lacks_most_rows_of_a_table_is_published_only_when_asked() {
    let database = followed_from("lacksmost", source().await).await;
    database.at_source(&format!("SELECT pg_drop_replication_slot('{}')", database.name)).await;
    // Half of one, all but a few of the other.
    database.at_source("DELETE FROM u WHERE id > 10; DELETE FROM t WHERE id > 500").await;
    let before = fingerprint(&database).await;
    let setup = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"");
    let output = setup.start().ends_with(1).await;
    for text in ["lacks most of the rows", "table public.u (490 of 500)", "headwater run --resnapshot"] {
        assert!(output.contains(text), "{text:?} is not in:\n{output}");
    }
    assert!(!output.contains("table public.t (500"), "half is not more than half:\n{output}");
    assert_eq!(before, fingerprint(&database).await);
    assert_eq!(database.destination_value("SELECT count(*)::text FROM u").await.as_deref(), Some("500"));
    let slots = format!("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    assert_eq!(database.source_value(&slots).await.as_deref(), Some("0"), "no slot is left to keep WAL");

    // A supervisor starts it again: it ends at once, and reads nothing.
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("table public.u (490 of 500)") && !output.contains("locked in ACCESS SHARE"), "{output}");

    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    service.says("more than half of the rows were deleted: table public.u (490 of 500)").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn most_rows_of_a_table_are_deleted_only_when_asked_however_small_it_is() {
    let tables = &["public.a", "public.b", "public.c", "public.d", "public.e", "public.f"];
    let schema = "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (LIKE a INCLUDING ALL);
        CREATE TABLE c (LIKE a INCLUDING ALL); CREATE TABLE d (LIKE a INCLUDING ALL); CREATE TABLE e (LIKE a INCLUDING ALL);
        CREATE TABLE f (LIKE a INCLUDING ALL);
        INSERT INTO a VALUES (1, 1), (2, 2), (3, 3); INSERT INTO b VALUES (1, 1), (2, 2); INSERT INTO c VALUES (1, 1), (2, 2), (3, 3);
        INSERT INTO d SELECT i, i FROM generate_series(1, 1000) i; INSERT INTO f VALUES (1, 1)";
    let database = Database::on(source().await, destination().await, "fewrows", tables, schema).await;
    let setup = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"");
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    let lose = format!("SELECT pg_drop_replication_slot('{}')", database.name);
    database.at_source(&lose).await;
    // Two of three, one of two, the keys of two of three, all values, nothing at all, and the only one.
    let meanwhile = "DELETE FROM a WHERE id < 3; DELETE FROM b WHERE id = 1; UPDATE c SET id = id + 100 WHERE id < 3;
        UPDATE d SET n = -n; DELETE FROM f";
    database.at_source(meanwhile).await;
    let output = setup.start().ends_with(1).await;
    for text in
        ["Publishing it would delete", "table public.a (2 of 3), table public.c (2 of 3), table public.f (1 of 1)."]
    {
        assert!(output.contains(text), "{text:?} is not in:\n{output}");
    }
    for table in ["public.b", "public.d", "public.e"] {
        assert!(!output.contains(&format!("table {table} (")), "{output}");
    }
    let counts = "SELECT concat_ws(' ', (SELECT count(*) FROM a), (SELECT count(*) FROM b), (SELECT count(*) FROM c),
        (SELECT min(n) FROM d), (SELECT count(*) FROM f))";
    assert_eq!(database.destination_value(counts).await.as_deref(), Some("3 2 3 1 1"), "nothing was touched");

    // Rows are back. A later start copies nothing, so it says when the counts are from.
    let begun = "SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM headwater.stream";
    let begun = database.destination_value(begun).await.unwrap();
    database.at_source("INSERT INTO a VALUES (1, 1), (2, 2); UPDATE c SET id = id - 100 WHERE id > 100").await;
    let output = setup.start().ends_with(1).await;
    let says = format!("has not counted again. Publishing the copy that was begun at {begun} UTC would have deleted");
    assert!(output.contains(&says) && output.contains("table public.f (1 of 1)."), "{says:?} is not in:\n{output}");
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;

    // Without what speaks against it the copy is made unasked.
    database.at_source(&lose).await;
    database.at_source("UPDATE d SET n = n + 1; UPDATE a SET n = 0").await;
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_that_was_begun_by_itself_is_not_finished_from_another_server() {
    let mut cluster = new_source(&[]).await;
    let mut database = followed_from("begunelse", &cluster).await;
    // An older state, to come back once a copy of the newer one has begun.
    cluster.stop(StopMode::Fast).await.unwrap();
    let mut older = cluster.copy(&parent(), "older", &[], false).unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("INSERT INTO t SELECT i, i FROM generate_series(3001, 9000) i").await;
    database.assert_catches_up().await;
    service.stop().await;
    database.at_source(&format!("SELECT pg_drop_replication_slot('{}')", database.name)).await;
    let setup = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"");
    let mut dying = setup.clone().failing_at("snapshot.slot_created").start();
    dying.ended().await;
    let state = database.destination_value("SELECT state FROM headwater.stream").await;
    assert_eq!(state.as_deref(), Some("creating"));
    cluster.stop(StopMode::Fast).await.unwrap();

    older.start().await.unwrap();
    let newer_url = std::mem::replace(&mut database.source_url, older.url(&database.name));
    let before = fingerprint(&database).await;
    let output = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"").start().ends_with(1).await;
    assert!(output.contains("the source's WAL ends at"), "{output}");
    assert_eq!(before, fingerprint(&database).await);
    older.stop(StopMode::Fast).await.unwrap();

    database.source_url = newer_url;
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_word_that_was_given_for_one_server_does_not_hold_for_another() {
    let mut cluster = new_source(&[]).await;
    let mut database = followed_from("wordelse", &cluster).await;
    cluster.stop(StopMode::Fast).await.unwrap();
    let mut older = cluster.copy(&parent(), "older", &[], false).unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    // The operator asks for a copy of the right server, and the service dies while it is made.
    let setup = Setup::of(&database);
    let asking = setup.clone().argument("--resnapshot");
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO t SELECT i, i FROM generate_series(3001, 9000) i").await;
    database.assert_catches_up().await;
    service.stop().await;
    asking.clone().failing_at("snapshot.slot_created").start().ended().await;
    cluster.stop(StopMode::Fast).await.unwrap();

    // Another one answers to the same command line: same system identifier, same timeline.
    older.start().await.unwrap();
    database.source_url = older.url(&database.name);
    let before = fingerprint(&database).await;
    for again in [&Setup { source_url: database.source_url.clone(), ..asking.clone() }, &Setup::of(&database)] {
        let output = again.start().ends_with(1).await;
        assert!(output.contains("the source's WAL ends at"), "{output}");
        assert!(output.contains("was meant for another server"), "{output}");
        assert_eq!(before, fingerprint(&database).await);
    }
    // A start without it has said what is wrong; one with it is the operator's answer.
    let service = Setup { source_url: database.source_url.clone(), ..asking }.start();
    service.streams().await;
    database.reconnect_source(&older).await;
    database.assert_catches_up().await;
    service.stop().await;
}
