//! Verify says what differs, all of it and nothing else, while both sides are being written.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use headwater::config::{Config, Environment, FileText};
use headwater::maintenance::verify::run as verify;
use headwater::verification::verdict::{VerifyOptions, VerifyProgress};

use crate::support::{Database, Script, Setup, eventually, new_destination, new_source, seed, source, workload};

const DRIFT: &[&str] = &["public.drift", "public.moving"];

/// Rows up to 1000 are not written to at the source; those above are, all the time.
const DRIFT_SCHEMA: &str = "
    CREATE TABLE drift (id bigint, part text COLLATE \"C\", v text, n numeric, f float8, c char(5), big text, js json, p point,
        PRIMARY KEY (id, part));
    CREATE TABLE moving (id int PRIMARY KEY, v text);
    INSERT INTO drift SELECT i, 'k' || i % 3, 'v' || i, i * 1.0, 0, 'c', repeat(md5(i::text), 300), '{\"a\": 1}', point(1, 2)
        FROM generate_series(1, 1000) i;
    INSERT INTO moving SELECT i, 'v' FROM generate_series(1, 100) i;";

/// Writes to both tables, in small transactions and a few large ones.
async fn write(client: &headwater::session::SqlClient, rng: &mut Rng, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let id = rng.u32(2000..3000);
        let many = if rng.u32(..50) == 0 { 100 } else { 1 };
        let sql = format!(
            "BEGIN;
             INSERT INTO drift SELECT i, 'k', 'moving', i, 1, 'x' FROM generate_series({id}, {id} + {many}) i
                 ON CONFLICT (id, part) DO UPDATE SET v = drift.v || 'x', n = drift.n + 1;
             DELETE FROM drift WHERE id = {id} + 7 AND id > 1000;
             UPDATE moving SET v = v || 'x' WHERE id = {};
             COMMIT",
            rng.u32(1..100)
        );
        client.script("writing", &sql).await.expect("a transaction");
        // So that apply keeps up on a busy machine: this is about exactness, not about speed.
        tokio::time::sleep(Duration::from_millis(rng.u64(..20))).await;
    }
}

/// Plants a drift in the row `id` at the destination; returns the line that verify should print.
async fn plant(database: &Database, rng: &mut Rng, id: u32) -> String {
    let part = format!("k{}", id % 3);
    let key = format!("(id, part)=({id}, {part})");
    let (sql, what) = match rng.u32(..9) {
        0 => ("UPDATE drift SET v = v || '!' WHERE id = {id}", "differs"),
        1 => ("UPDATE drift SET v = NULL WHERE id = {id}", "differs"),
        2 => ("UPDATE drift SET v = v || ' ' WHERE id = {id}", "differs"),
        3 => ("UPDATE drift SET f = '-0' WHERE id = {id}", "differs"),
        4 => ("UPDATE drift SET n = n::numeric(20, 2) WHERE id = {id}", "differs"),
        5 => ("UPDATE drift SET big = overlay(big placing '?' from 5000) WHERE id = {id}", "differs"),
        6 => ("UPDATE drift SET p = point(2, 1), js = '{\"a\":1}' WHERE id = {id}", "differs"),
        7 => ("DELETE FROM drift WHERE id = {id}", "missing"),
        _ => {
            let sql = format!("INSERT INTO drift SELECT -id, part, v, n, f, c, big, js, p FROM drift WHERE id = {id}");
            database.at_destination(&sql).await;
            return format!("extra    (id, part)=(-{id}, {part})");
        }
    };
    database.at_destination(&sql.replace("{id}", &id.to_string())).await;
    format!("{what:7}  {key}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_drift_is_found_and_nothing_else_is_reported() {
    let rounds: u32 = std::env::var("HEADWATER_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let seed = seed("drift");
    let mut rng = Rng::with_seed(seed);
    let database = Database::new("drift", DRIFT, DRIFT_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("CREATE TABLE kept AS SELECT * FROM drift WHERE id <= 1000").await;
    let done = AtomicBool::new(false);
    let mut writer = Rng::with_seed(seed + 1);
    let rounds = async {
        for round in 0..rounds {
            let mut expected = BTreeSet::new();
            for _ in 0..rng.usize(0..6) {
                let id = rng.u32(1..=1000);
                // Two drifts of one row may cancel each other out, and would be one line.
                if expected
                    .iter()
                    .all(|line: &String| !line.contains(&format!("({id}, ")) && !line.contains(&format!("(-{id}, ")))
                {
                    expected.insert(plant(&database, &mut rng, id).await);
                }
            }
            let finished = setup.command(&["verify"]).await;
            let found: BTreeSet<String> =
                finished.out.lines().filter_map(|line| line.strip_prefix("  ")).map(str::to_owned).collect();
            assert_eq!(found, expected, "round {round}\n{}{}", finished.out, finished.err);
            assert_eq!(finished.code, Some(i32::from(!expected.is_empty())), "round {round}\n{}", finished.out);
            database
                .at_destination(
                    "BEGIN; DELETE FROM drift WHERE id <= 1000; INSERT INTO drift SELECT * FROM kept; COMMIT",
                )
                .await;
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(rounds, write(&database.source, &mut writer, &done));
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_are_equal_while_anything_is_written() {
    let seed = seed("equal");
    let database = Database::new("equal", workload::TABLES, workload::SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let done = AtomicBool::new(false);
    let mut rng = Rng::with_seed(seed);
    let writing = async {
        while !done.load(Ordering::Relaxed) {
            let mut left = 3;
            workload::run(&database.source, &mut rng, || {
                left -= 1;
                left < 0
            })
            .await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let verified = async {
        let (mut equal, mut refused) = (0, 0);
        while equal < 6 {
            let finished = setup.command(&["verify", "--workers", "2"]).await;
            // On a busy machine the workload truncates a table between any two fences: that is said, and is no difference.
            if finished.err.contains("was truncated, rewritten or dropped at each of 5 attempts") {
                refused += 1;
                assert!(refused < 12, "{}", finished.err);
                continue;
            }
            finished.exits(0).says(&["equal: both sides compared at"]);
            equal += 1;
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(writing, verified);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_puts_right_what_differs_while_both_sides_are_written() {
    let seed = seed("repair");
    let mut rng = Rng::with_seed(seed);
    let database = Database::new("repair", DRIFT, DRIFT_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let done = AtomicBool::new(false);
    let mut writer = Rng::with_seed(seed + 1);
    let repairs = async {
        for _ in 0..3 {
            for id in [3, 55, 555, 777, 999] {
                plant(&database, &mut rng, id).await;
            }
            setup.command(&["verify", "--repair", "--table", "drift"]).await.exits(0).says(&["repaired:"]);
            setup.command(&["verify"]).await.exits(0).says(&["table public.drift: equal"]);
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(repairs, write(&database.source, &mut writer, &done));
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_columns_that_differ_are_named_and_no_value_is() {
    let database = Database::new("columns", DRIFT, DRIFT_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("UPDATE drift SET v = 'secret', c = NULL, f = 2 WHERE id = 5").await;
    let finished = setup.command(&["verify", "--show-columns"]).await.exits(1);
    assert!(finished.out.contains("  differs  (id, part)=(5, k2): c, f, v\n"), "{}", finished.out);
    assert!(!finished.out.contains("secret") && !finished.err.contains("secret"));
    setup.command(&["verify", "--table", "nosuch"]).await.exits(1).says(&["table public.nosuch is not configured"]);
    setup.command(&["verify", "--max-rate", "fast"]).await.exits(2).says(&["--max-rate fast: give a size, as 50MB"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_the_destination_is_taken_as_it_stands_or_caught_up_first() {
    let database = Database::new("alone", DRIFT, DRIFT_SCHEMA).await;
    // A service that leads is waited for that long, before differences are told.
    let setup = Setup::of(&database).setting("leader_timeout = \"2s\"");
    setup.command(&["verify"]).await.exits(1).says(&["nothing is followed yet"]);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    setup.command(&["verify"]).await.exits(0).says(&["no service runs", "equal: the source at"]);
    database.at_source("UPDATE moving SET v = 'later' WHERE id = 5").await;
    setup.command(&["verify"]).await.exits(1).says(&["differs  (id)=(5)", "--catch-up applies it first"]);
    setup.command(&["verify", "--repair"]).await.exits(1).says(&["a repair needs a fence"]);
    let finished = setup.command(&["verify", "--catch-up"]).await.exits(0);
    finished.says(&["catching up", "equal: both sides compared at", " rows in "]);
    setup.command(&["verify"]).await.exits(0);
    database.at_destination("DELETE FROM moving WHERE id = 6").await;
    setup.command(&["verify", "--catch-up", "--repair"]).await.exits(0).says(&["1 inserted"]);
    setup.command(&["verify"]).await.exits(0);
    let left = "SELECT count(*)::text FROM headwater.fence_requests";
    assert_eq!(database.destination_value(left).await.as_deref(), Some("0"), "requests are withdrawn");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_leads_nothing_for_a_moment_is_no_false_alarm() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'first')";
    let database = Database::new("moment", &["t"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    database.at_source("UPDATE t SET v = 'later'").await;
    // The change is not applied before the destination, as it stands, was found to lack it.
    let holding = crate::support::destination().await.connect(&database.name).await.unwrap();
    holding.batch("holding a row", "BEGIN; SELECT FROM public.t FOR UPDATE").await.unwrap();
    let leads = "SELECT min('t') FROM pg_locks JOIN pg_database AS d ON d.oid = database
                 WHERE locktype = 'advisory' AND granted AND d.datname = current_database()";
    let (mut service, mut said) = (None, Vec::new());
    let runtime = tokio::runtime::Handle::current();
    let mut tell = |what: &str| {
        said.push(what.to_owned());
        if what.starts_with("no service runs") {
            service = Some(setup.start());
            let it_leads = eventually("it leads", || async { database.destination_value(leads).await });
            tokio::task::block_in_place(|| runtime.block_on(it_leads));
        } else if what.starts_with("a service runs after all") {
            tokio::task::block_in_place(|| runtime.block_on(holding.batch("letting go", "COMMIT"))).unwrap();
        }
    };
    let progress = Arc::new(VerifyProgress::default());
    let verdict = verify(&setup.parsed(), &VerifyOptions::default(), &progress, &mut tell).await.expect("a verdict");
    assert!(verdict.is_equal() && verdict.at_fence, "{said:?}: {verdict:?}");
    service.expect("it was started").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_counted_with_their_duplicates_and_partitions_are_read() {
    let schema = "
        CREATE TABLE bag (v text, n int); ALTER TABLE bag REPLICA IDENTITY FULL;
        INSERT INTO bag SELECT 'v', i % 3 FROM generate_series(1, 30) i;
        CREATE TABLE parted (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
        CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
        INSERT INTO parted SELECT i, '2024-06-01'::date + i, 'v' FROM generate_series(1, 500) i;
        CREATE TABLE none (id int PRIMARY KEY);";
    let database = Database::new("bag", &["bag", "parted", "none"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    setup
        .command(&["verify"])
        .await
        .exits(0)
        .says(&["table public.bag: equal, 30 rows", "table public.parted: equal, 500 rows"]);
    // Two equal rows more, one less, and a row in either partition.
    database
        .at_destination(
            "INSERT INTO bag VALUES ('w', 1), ('w', 1); DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE n = 2);
             UPDATE parted SET v = 'x' WHERE id IN (3, 400)",
        )
        .await;
    let finished = setup.command(&["verify"]).await.exits(1);
    let finished = finished.says(&["table public.bag: 1 row missing, 2 extra, 0 differing"]);
    finished.says(&[
        "differs  (id, at)=(3, 2024-06-04)",
        "differs  (id, at)=(400, 2025-07-06)",
        "public.parted: 0 rows missing",
    ]);
    setup.command(&["verify", "--repair"]).await.exits(1).says(&["rows of table public.bag have no key"]);
    setup.command(&["verify", "--repair", "--table", "parted"]).await.exits(0).says(&["2 updated"]);
    setup.command(&["verify", "--table", "parted"]).await.exits(0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_between_fence_and_read_is_no_false_alarm() {
    let database = Database::new("truncated", DRIFT, DRIFT_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let config = setup.parsed();
    let done = AtomicBool::new(false);
    let rewriting = async {
        let mut rng = Rng::with_seed(seed("truncated"));
        while !done.load(Ordering::Relaxed) {
            let sql = "BEGIN; TRUNCATE moving; INSERT INTO moving SELECT i, 'v' FROM generate_series(1, 100) i; COMMIT";
            database.at_source(sql).await;
            tokio::time::sleep(Duration::from_millis(rng.u64(500..2500))).await;
        }
    };
    let verifying = async {
        let mut equal = 0;
        for _ in 0..8 {
            let progress = Arc::new(VerifyProgress::default());
            match verify(&config, &VerifyOptions::default(), &progress, &mut |_| {}).await {
                Ok(verdict) => {
                    assert!(verdict.is_equal(), "{:?}", verdict.tables);
                    equal += 1;
                }
                // Truncated at each attempt: said, and no alarm.
                Err(fault) => assert!(fault.to_string().contains("was truncated, rewritten or dropped"), "{fault}"),
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(equal > 0, "not one verify found a moment between two truncates");
    };
    tokio::join!(rewriting, verifying);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_waits_for_no_transaction_longer_than_fence_timeout_and_names_it() {
    let cluster = new_source(&[]).await;
    let database = Database::on(&cluster, crate::support::destination().await, "longtx", DRIFT, DRIFT_SCHEMA).await;
    let setup = Setup::of(&database).setting("fence_timeout = \"1s\"");
    let service = setup.start();
    service.streams().await;
    let long = cluster.connect(&database.name).await.expect("a session");
    long.batch("a long transaction", "BEGIN; SET search_path = public; INSERT INTO moving VALUES (7777, 'long')")
        .await
        .unwrap();
    let pid: i32 = long.query_one("its process", "SELECT pg_backend_pid()", &[]).await.unwrap().get(0).unwrap();
    // Apply goes on meanwhile.
    let beside = async {
        database.at_source("INSERT INTO moving VALUES (8888, 'beside')").await;
        let sql = "SELECT count(*)::text FROM moving WHERE id = 8888";
        eventually("apply goes on", || async {
            (database.destination_value(sql).await.as_deref() == Some("1")).then_some(())
        })
        .await;
    };
    let (finished, ()) = tokio::join!(setup.command(&["verify"]), beside);
    let named = format!("process {pid}");
    finished.exits(1).says(&["the slot was not created within 1s", &named, "headwater verify --no-fence"]);
    service.says(&named).await;
    long.batch("its end", "COMMIT").await.unwrap();
    setup.command(&["verify"]).await.exits(0).says(&["equal"]);
    let slots = "SELECT count(*)::text FROM pg_replication_slots WHERE temporary";
    eventually("no slot is left", || async {
        (database.source_value(slots).await.as_deref() == Some("0")).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_heartbeat_is_dropped_and_apply_goes_on() {
    let database = Database::new("stale", DRIFT, DRIFT_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    setup.command(&["verify"]).await.exits(0);
    // As a verify leaves it that was killed: asked for, and nobody waits.
    database
        .at_destination(
            "INSERT INTO headwater.fence_requests (id, kind, heartbeat_at) VALUES ('dead', 'verify', now() - interval '11 s')",
        )
        .await;
    let sql = "SELECT count(*)::text FROM headwater.fence_requests";
    eventually("the request is dropped", || async {
        (database.destination_value(sql).await.as_deref() == Some("0")).then_some(())
    })
    .await;
    database.at_source("UPDATE moving SET v = 'on'").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_verifies_by_itself_and_shows_what_it_found() {
    let database = Database::new("every", DRIFT, DRIFT_SCHEMA).await;
    let service = Setup::of(&database).setting("verify_every = \"1s\"").start();
    service.streams().await;
    service.says("2 tables equal at").await;
    assert_eq!(service.metric("headwater_verify_mismatched_rows").await, Some(0.0));
    assert!(service.metric("headwater_last_verified_position").await > Some(0.0));
    database.at_destination("UPDATE moving SET v = 'secret' WHERE id IN (1, 2, 3)").await;
    eventually("the drift shows in the metric", || async {
        (service.metric("headwater_verify_mismatched_rows").await == Some(3.0)).then_some(())
    })
    .await;
    service.says("differs from the source in public.moving (3 rows)").await;
    assert!(!service.log().contains("secret"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_different_encodings_are_compared_by_their_characters() {
    let database = Database::new("latin", &["t"], "").await;
    let admin = source().await.connect("postgres").await.unwrap();
    let name = format!("{}_latin1", database.name);
    let sql = format!("CREATE DATABASE {name} ENCODING LATIN1 TEMPLATE template0");
    admin.script("a database of another encoding", &sql).await.unwrap();
    let latin = source().await.connect(&name).await.unwrap();
    let schema =
        "CREATE TABLE public.t (id int PRIMARY KEY, v text); INSERT INTO public.t VALUES (1, 'é'), (2, 'ß'), (3, 'a')";
    latin.script("a schema", schema).await.unwrap();
    let mut setup = Setup::of(&database);
    setup.source_url = source().await.url(&name);
    let service = setup.start();
    service.streams().await;
    setup.command(&["verify"]).await.exits(0).says(&["equal, 3 rows"]);
    database.at_destination("UPDATE t SET v = 'e' WHERE id = 1").await;
    setup.command(&["verify"]).await.exits(1).says(&["differs  (id)=(1)"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_bounds_what_is_read() {
    let cluster = new_destination(&[]).await;
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 6000) i";
    let database = Database::on(source().await, &cluster, "rate", &["t"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let config = setup.parsed();
    let progress = Arc::new(VerifyProgress::default());
    let options = VerifyOptions { max_rate: Some(2 << 20), workers: Some(1), ..VerifyOptions::default() };
    let verdict = verify(&config, &options, &progress, &mut |_| {}).await.expect("a verdict");
    assert!(verdict.is_equal());
    // 7 MB at 2 MB a second; the last range is not waited for.
    assert!(verdict.took > Duration::from_secs(2), "{:?}", verdict.took);
    service.stop().await;
}

impl Setup {
    /// The configuration as the library reads it.
    pub fn parsed(&self) -> Arc<Config> {
        let text = self.configuration_text();
        let file = FileText { name: "test", text: &text };
        Arc::new(Config::parse(Some(file), &Environment::new()).expect("a valid configuration"))
    }
}
