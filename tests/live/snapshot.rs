//! The first copy: by several readers, of tables of every shape, with everything that can break while it is made.

use headwater::commands::demo::StopMode;
use headwater::destination::{Catalog, DestinationError, Staging, Writes};

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Script, Setup, eventually, new_destination, new_source};

/// Pages are nearly empty, so that few rows make a table of several pieces.
const SHAPES: &str = "
    CREATE TABLE nothing (id int PRIMARY KEY, body text);
    CREATE TABLE one_page (id int PRIMARY KEY, body text);
    INSERT INTO one_page VALUES (1, 'one');
    CREATE TABLE large (id int PRIMARY KEY, body text) WITH (fillfactor = 10);
    INSERT INTO large SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 40000) AS i;
    DELETE FROM large WHERE id % 3 = 0;
    CREATE INDEX ON large (md5(body));
    CREATE TABLE parent (id int PRIMARY KEY, body text);
    CREATE TABLE child (extra int) INHERITS (parent);
    INSERT INTO parent SELECT i, 'parent' FROM generate_series(1, 100) AS i;
    INSERT INTO child SELECT i, 'child', i FROM generate_series(1, 100) AS i;
    CREATE TABLE parted (id int, day int, body text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10) WITH (fillfactor = 10);
    CREATE TABLE parted_2 (body text, dropped int, day int NOT NULL, id int NOT NULL);
    ALTER TABLE parted_2 DROP COLUMN dropped;
    ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (10) TO (100);
    INSERT INTO parted SELECT i, i % 100, repeat(md5(i::text), 10) FROM generate_series(1, 30000) AS i;
    CREATE TABLE leafless (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE SCHEMA other;
    CREATE TABLE other.one_page (id int PRIMARY KEY, body text);
    INSERT INTO other.one_page VALUES (2, 'two');";

const SHAPES_TABLES: &[&str] = &[
    "public.nothing",
    "public.one_page",
    "public.large",
    "public.parent",
    "public.parted",
    "public.leafless",
    "other.one_page",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn tables_of_every_shape_are_copied_by_several_readers_at_once() {
    let database = Database::new("pieces", SHAPES_TABLES, SHAPES).await;
    let pages = "SELECT (pg_relation_size('large') / 8192)::text";
    let pages: i64 = database.source_value(pages).await.unwrap().parse().unwrap();
    assert!(pages > 3 * 4096, "the large table is of several pieces: {pages} pages");
    let service = Setup::of(&database).section("[snapshot]\nworkers = 4").start();
    service.streams().await;
    database.caught_up().await;
    // The rows of a parent's children are not its own.
    let rows = "SELECT count(*)::text FROM parent";
    assert_eq!(database.destination_value(rows).await.as_deref(), Some("100"));
    database.at_source("DROP TABLE child").await;
    database.assert_equal().await;
    let indexes = "SELECT string_agg(indexname, ' ' ORDER BY indexname) FROM pg_indexes WHERE tablename = 'large'";
    assert_eq!(database.destination_value(indexes).await.as_deref(), Some("large_md5_idx large_pkey"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_read_a_partitioned_table_but_not_its_partitions_copies_it() {
    let database = Database::of_superuser("rootonly", &["public.parted", "public.columns_only"], SHAPES).await;
    let role = format!("{}_reader", database.name);
    database
        .at_source(&format!(
            "CREATE TABLE columns_only (id int PRIMARY KEY, body text);
             INSERT INTO columns_only SELECT i, 'some' FROM generate_series(1, 1000) AS i;
             CREATE ROLE {role} LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO {role};
             GRANT SELECT ON parted TO {role}; GRANT SELECT (id, body) ON columns_only TO {role};
             CREATE PUBLICATION {0} FOR TABLE parted, columns_only WITH (publish_via_partition_root = true)",
            database.name
        ))
        .await;
    let mut setup = Setup::of(&database);
    setup.source_url = setup
        .source_url
        .replace("user=postgres", &format!("user={role}"))
        .replace("//postgres@", &format!("//{role}@"));
    assert!(setup.source_url.contains(&role), "{}", setup.source_url);
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_reader_that_loses_its_connection_rereads_its_range_in_the_same_snapshot() {
    let database = Database::new("reader", SHAPES_TABLES, SHAPES).await;
    let service = Setup::of(&database).section("[snapshot]\nworkers = 2\nmax_rate = \"6MB\"").start();
    for times in 1..=3 {
        eventually("some rows are copied", || async {
            let rows = service.metric("headwater_snapshot_rows_total{table=\"public.large\"}").await?;
            (rows > 1000.0 * f64::from(times)).then_some(())
        })
        .await;
        let kill = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE datname = current_database()
                    AND application_name LIKE '% snapshot' AND query LIKE 'COPY%' LIMIT 1";
        eventually("a reader is ended", || async {
            let row = database.source.query_opt("ending a reader", kill, &[]).await.unwrap();
            (row?.get::<&str>(0).unwrap() == "true").then_some(())
        })
        .await;
    }
    service.streams().await;
    database.at_source("DROP TABLE child").await;
    database.assert_catches_up().await;
    assert!(service.log().contains("its piece is read again"), "{}", service.log());
    assert_eq!(service.restarts("source_lost").await, None, "nothing was started over");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn empty_tables_are_filled_all_at_once_despite_lost_readers_and_kills() {
    let database = Database::new("fill", SHAPES_TABLES, SHAPES).await;
    database.at_source("DROP TABLE child").await;
    database.at_destination(SHAPES).await;
    database.at_destination(&format!("DROP TABLE child; TRUNCATE {}", SHAPES_TABLES.join(", "))).await;
    let copied = "headwater_snapshot_rows_total{table=\"public.large\"}";
    let seen = "SELECT count(*)::text FROM large";
    let setup = Setup::of(&database).section("[snapshot]\nmax_rate = \"6MB\"");
    let mut killed = setup.start();
    eventually("some rows are copied", || async { (killed.metric(copied).await? > 1000.0).then_some(()) }).await;
    killed.kill();
    let service = setup.start();
    for times in 1..=2 {
        let enough = 1000.0 * f64::from(times);
        eventually("some rows are copied", || async { (service.metric(copied).await? > enough).then_some(()) }).await;
        assert_eq!(database.destination_value(seen).await.as_deref(), Some("0"), "nobody sees a part");
        let kill = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE datname = current_database()
                    AND application_name LIKE '% snapshot' AND query LIKE 'COPY%' LIMIT 1";
        eventually("the reader is ended", || async {
            let row = database.source.query_opt("ending a reader", kill, &[]).await.unwrap();
            (row?.get::<&str>(0).unwrap() == "true").then_some(())
        })
        .await;
    }
    service.streams().await;
    database.assert_catches_up().await;
    assert!(service.log().contains("its piece is read again"), "{}", service.log());
    assert_eq!(service.restarts("source_lost").await, None);
    let staging = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater\\_staging%'";
    assert_eq!(database.destination_value(staging).await.as_deref(), Some("0"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_snapshot_whose_holder_is_lost_starts_over_by_itself_and_says_why() {
    let database = Database::new("holder", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).section("[snapshot]\nworkers = 1\nmax_rate = \"400kB\"").start();
    eventually("some rows are copied", || async {
        (service.metric("headwater_snapshot_rows_total{table=\"public.messages\"}").await? > 100.0).then_some(())
    })
    .await;
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()
                AND application_name LIKE '% control' AND backend_xmin IS NOT NULL";
    database.source.query("ending the holder", kill, &[]).await.unwrap();
    service.says("the snapshot was lost").await;
    service.streams().await;
    assert_eq!(service.restarts("snapshot_lost").await, Some(1.0));
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_that_the_servers_set_tightly_do_not_end_a_snapshot() {
    let database = Database::new("tight", FORUM, FORUM_SCHEMA).await;
    for (client, end) in [(&database.source, "source"), (&database.destination, "destination")] {
        let names =
            "SELECT name FROM pg_settings WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout',
                     'transaction_timeout', 'idle_session_timeout', 'lock_timeout')";
        for row in client.query("listing timeouts", names, &[]).await.unwrap() {
            let name: &str = row.get(0).unwrap();
            let sql = format!("ALTER DATABASE {} SET {name} = '300ms'", database.name);
            client.script(end, &sql).await.unwrap();
        }
    }
    let service = Setup::of(&database).section("[snapshot]\nworkers = 1\nmax_rate = \"400kB\"").start();
    service.streams().await;
    assert!(!service.log().contains("timeout"), "{}", service.log());
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rewrites_truncates_or_drops_a_table_waits_until_it_is_copied() {
    let database = Database::new("rewrites", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).section("[snapshot]\nworkers = 1\nmax_rate = \"400kB\"").start();
    eventually("some rows are copied", || async {
        (service.metric("headwater_snapshot_rows_total{table=\"public.messages\"}").await? > 100.0).then_some(())
    })
    .await;
    // They wait for the locks, and their effect comes by the stream, if at all.
    for rewrite in ["VACUUM FULL messages", "CLUSTER topics USING topics_pkey", "VACUUM messages"] {
        database.at_source(rewrite).await;
    }
    database
        .at_source("TRUNCATE messages; INSERT INTO messages (id, topic_id, body) VALUES (1, 2, 'afterwards')")
        .await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_that_a_crash_of_one_server_process_has_emptied_is_not_published() {
    let cluster = new_destination(&[]).await;
    let source = new_source(&[]).await;
    let database =
        Database::on(&source, &cluster, "marked", &["public.t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let (types, catalog, trust) = (Default::default(), Catalog::default(), Writes::default());
    let staging = Staging::prepare(&database.destination, "test", Vec::new(), &types, &catalog, &trust).await.unwrap();
    staging.check_alive(&database.destination).await.unwrap();
    // A crash of one backend restarts all of them without a new start time of the server.
    let before = database.destination_value("SELECT pg_postmaster_start_time()::text").await;
    let pid: i32 = {
        let victim = cluster.connect(&database.name).await.unwrap();
        victim.query_one("a victim", "SELECT pg_backend_pid()", &[]).await.unwrap().get(0).unwrap()
    };
    let victim = cluster.connect(&database.name).await.unwrap();
    let pid = victim.query_one("a victim", "SELECT pg_backend_pid()", &[]).await.map_or(pid, |row| row.get(0).unwrap());
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    // It answers for a moment still, before it notices.
    let start = eventually("the destination is back, and its staging is lost", || async {
        let client = cluster.connect(&database.name).await.ok()?;
        let row = client.query_one("the start", "SELECT pg_postmaster_start_time()::text", &[]).await.ok()?;
        let lost = staging.check_alive(&client).await.err()?;
        matches!(lost, DestinationError::StagingLost(_)).then(|| row.get::<String>(0).unwrap())
    })
    .await;
    assert_eq!(Some(start), before, "the server was not restarted as a whole");
    let mut cluster = cluster;
    cluster.stop(StopMode::Immediate).await.unwrap();
    cluster.start().await.unwrap();
    let client = cluster.connect(&database.name).await.unwrap();
    let lost = staging.check_alive(&client).await.unwrap_err();
    assert!(lost.to_string().contains("was restarted"), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_snapshot_that_takes_too_long_for_the_source_says_what_it_holds_back() {
    let database = Database::new("overdue", FORUM, FORUM_SCHEMA).await;
    let section = "[snapshot]\nworkers = 1\nmax_rate = \"150kB\"\nmax_duration = \"1s\"";
    let service = Setup::of(&database).section(section).start();
    service.is("snapshot").await;
    for _ in 0..50 {
        database.at_source("UPDATE topics SET title = title || '.' WHERE id = 1").await;
    }
    service.says("older than snapshot.max_duration").await;
    let held = |name: &'static str| {
        let service = &service;
        move || async move { service.metric(name).await.filter(|value| *value > 0.0) }
    };
    eventually("transactions are held", held("headwater_snapshot_held_transactions")).await;
    eventually("WAL is held", held("headwater_snapshot_held_wal_bytes")).await;
    service.streams().await;
    assert_eq!(service.metric("headwater_snapshot_held_wal_bytes").await, Some(0.0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uncommitted_rows_in_an_empty_table_are_waited_for_and_not_mixed_with_the_copy() {
    let database = Database::new("mixed", FORUM, FORUM_SCHEMA).await;
    database.at_destination(FORUM_SCHEMA).await;
    database.at_destination("TRUNCATE sections, topics, messages RESTART IDENTITY").await;
    let somebody = crate::support::destination().await.connect(&database.name).await.unwrap();
    somebody.batch("a local row", "BEGIN; INSERT INTO public.sections (name) VALUES ('of ours')").await.unwrap();
    let service = Setup::of(&database).start();
    eventually("it waits for the writer", || async {
        let waits = "SELECT count(*)::text FROM pg_locks WHERE NOT granted AND mode = 'ShareRowExclusiveLock'
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        (database.destination_value(waits).await? == "1").then_some(())
    })
    .await;
    somebody.batch("it commits", "COMMIT").await.unwrap();
    let output = service.ends_with(1).await;
    assert!(output.contains("public.sections") && output.contains("--resnapshot"), "{output}");
    assert_eq!(database.destination_value("SELECT count(*)::text FROM sections").await.as_deref(), Some("1"));
    assert_eq!(database.destination_value("SELECT count(*)::text FROM messages").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_during_its_copy_is_complete_before_the_service_halts() {
    let database = Database::new("dropped", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).section("[snapshot]\nworkers = 1\nmax_rate = \"400kB\"").start();
    eventually("some rows are copied", || async {
        (service.metric("headwater_snapshot_rows_total{table=\"public.messages\"}").await? > 100.0).then_some(())
    })
    .await;
    database.at_source("DROP TABLE messages").await;
    // DROP waited for the copy; there is nothing to follow then.
    service.says("table public.messages was dropped at the source").await;
    service.is("waiting").await;
    assert!(service.log().contains("published 5110 rows of 3 tables"), "{}", service.log());
    service.stop().await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM messages").await.as_deref(), Some("5000"));
}

/// Runs the service with a terminal for its standard error, and returns what is on it at the end.
async fn on_a_terminal(configuration: &std::path::Path) -> String {
    let command = format!("{} run --config {}", crate::support::headwater().display(), configuration.display());
    let mut script = tokio::process::Command::new("script");
    // Its own standard input: script ends with it.
    script.args(["-qefc", &command, "/dev/null"]).stdin(std::process::Stdio::piped()).kill_on_drop(true);
    script.env("TERM", "xterm").env_remove("RUST_LOG").stdout(std::process::Stdio::piped());
    let child = script.spawn().expect("script of util-linux");
    let output = tokio::time::timeout(std::time::Duration::from_secs(120), child.wait_with_output()).await;
    String::from_utf8_lossy(&output.expect("it ends").unwrap().stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn progress_is_bars_on_a_terminal_and_a_line_every_ten_seconds_elsewhere() {
    let database = Database::new("bars", FORUM, FORUM_SCHEMA).await;
    let slow = |rate: &str| Setup::of(&database).section(&format!("[snapshot]\nworkers = 1\nmax_rate = \"{rate}\""));
    // About 800 kB of messages.
    let service = slow("60kB").start();
    service.says("copying public.messages: ").await;
    let log = service.log();
    let line = log.lines().find(|line| line.contains("copying public.messages: ")).unwrap();
    assert!(line.contains(" rows, ") && line.contains(" % (") && line.contains("MB/s"), "{line}");
    assert!(!log.contains("[="), "no bars in a log: {log}");
    service.stop().await;

    let stopped = slow("200kB").start();
    let configuration = stopped.configuration_file().with_extension("terminal.toml");
    stopped.says("copying the tables").await;
    std::fs::copy(stopped.configuration_file(), &configuration).unwrap();
    stopped.stop().await;
    let ending = async {
        eventually("it streams", || async {
            let row = database.destination_value("SELECT state FROM headwater.stream").await?;
            (row == "live").then_some(())
        })
        .await;
        // Not script, nor the shell that it starts.
        let command =
            [crate::support::headwater().to_str().unwrap(), "run", "--config", configuration.to_str().unwrap()];
        let ours = |entry: &std::fs::DirEntry| {
            let words = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            words.split_terminator('\0').eq(command)
        };
        let process = std::fs::read_dir("/proc").unwrap().flatten().find(ours).expect("headwater runs");
        let status = std::process::Command::new("kill").arg("-TERM").arg(process.file_name()).status();
        assert!(status.unwrap().success());
    };
    let (screen, ()) = tokio::join!(on_a_terminal(&configuration), ending);
    std::fs::remove_file(&configuration).unwrap();
    let bar = screen.split(['\r', '\n']).rfind(|line| line.contains("public.messages ") && line.contains(" rows, "));
    let bar = bar.unwrap_or_else(|| panic!("no bar on\n{screen}"));
    assert!(bar.contains("[=") && bar.contains("%  ") && bar.contains("/s"), "{bar}");
    assert!(screen.contains("left"), "an estimate: {screen}");
    for table in ["public.sections", "public.topics"] {
        assert!(screen.contains(table), "{screen}");
    }
}
