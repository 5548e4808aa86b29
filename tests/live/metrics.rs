//! Lag that does not lie: what the metrics say while the destination is locked, the source idle, or the clocks apart.

use std::time::{Duration, Instant, SystemTime};

use headwater::commands::demo::StopMode;

use crate::support::clock::source_with_clock;
use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::service::Service;
use crate::support::{Database, Script, Setup, eventually, new_destination, new_source, tools};

const BYTES: &str = "headwater_replication_lag_bytes";
const SECONDS: &str = "headwater_replication_lag_seconds";
const HEARTBEAT: &str = "headwater_heartbeat_lag_seconds";

/// Waits until a metric has a value that will do.
async fn metric_is(service: &Service, name: &str, what: &str, fits: impl Fn(f64) -> bool) -> f64 {
    eventually(&format!("{name} is {what}"), || async { service.metric(name).await.filter(|value| fits(*value)) }).await
}

async fn no_lag(service: &Service) {
    metric_is(service, BYTES, "0", |bytes| bytes == 0.0).await;
    metric_is(service, SECONDS, "0", |seconds| seconds == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_heartbeat_lag_rises_while_either_server_is_down_and_falls_afterwards() {
    let (mut source, mut destination) = (new_source(&[]).await, new_destination(&[]).await);
    let database = Database::on(&source, &destination, "beat", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).source("heartbeat_every = \"200ms\"").start();
    service.streams().await;
    let calm = metric_is(&service, HEARTBEAT, "measured", |_| true).await;
    assert!((0.0..5.0).contains(&calm), "{calm} s on an idle machine");

    destination.stop(StopMode::Fast).await.unwrap();
    metric_is(&service, HEARTBEAT, "above 3 s: the destination is down", |seconds| seconds > 3.0).await;
    destination.start().await.unwrap();
    service.streams().await;
    metric_is(&service, HEARTBEAT, "small again", |seconds| seconds < 1.0).await;

    source.stop(StopMode::Fast).await.unwrap();
    metric_is(&service, HEARTBEAT, "above 3 s: the source is down", |seconds| seconds > 3.0).await;
    let (code, reason) = service.get("/readyz").await.unwrap();
    assert!(code == 503 && reason.contains("source"), "{code} {reason}");
    source.start().await.unwrap();
    service.streams().await;
    metric_is(&service, HEARTBEAT, "small again", |seconds| seconds < 1.0).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_at_the_destination_is_lag_and_makes_it_not_ready() {
    let database = Database::new("locklag", FORUM, FORUM_SCHEMA).await;
    let setup = Setup::of(&database).source("heartbeat_every = \"200ms\"").section("ready_lag_max = \"1s\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    no_lag(&service).await;
    database.at_destination("BEGIN; LOCK TABLE messages").await;
    database.at_source("UPDATE messages SET body = 'held up' WHERE id <= 100").await;
    metric_is(&service, SECONDS, "above 2", |seconds| seconds > 2.0).await;
    metric_is(&service, BYTES, "above 0", |bytes| bytes > 0.0).await;
    metric_is(&service, HEARTBEAT, "above 2", |seconds| seconds > 2.0).await;
    let (code, reason) = service.get("/readyz").await.unwrap();
    assert_eq!(code, 503);
    assert!(reason.contains("s behind the source (at most 1.0 s)"), "{reason}");
    database.at_destination("ROLLBACK").await;
    database.assert_catches_up().await;
    no_lag(&service).await;
    metric_is(&service, HEARTBEAT, "small again", |seconds| seconds < 1.0).await;
    assert_eq!(service.get("/readyz").await.unwrap().0, 200);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_huge_transaction_is_lag_from_its_commit_on_and_not_before() {
    let source = new_source(&[]).await;
    let database = Database::on(&source, crate::support::destination().await, "huge", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let other = source.connect(&database.name).await.unwrap();
    other.batch("a huge transaction", "BEGIN; SET search_path = public").await.unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        let sql =
            "INSERT INTO messages SELECT COALESCE((SELECT max(id) FROM messages), 0) + i, 1, repeat(md5(i::text), 20)
                   FROM generate_series(1, 5000) i";
        other.script("more of it", sql).await.unwrap();
    }
    // On a busy machine the source may need a while to decode it. Counted from its first row it would be 6 s, and grow.
    metric_is(&service, SECONDS, "small: nothing is committed", |seconds| seconds < 2.0).await;
    // It may have been applied already: its commit here is kept waiting.
    let here = crate::support::database::connect(&database.destination_url).await.expect("a session");
    here.batch("keeping the position", "BEGIN; SELECT FROM headwater.position FOR UPDATE").await.unwrap();
    other.batch("its end", "COMMIT").await.unwrap();
    metric_is(&service, SECONDS, "above 0: it is committed and not here", |seconds| seconds > 0.0).await;
    here.batch("letting it go", "COMMIT").await.unwrap();
    database.assert_catches_up().await;
    no_lag(&service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn clocks_five_minutes_apart_change_neither_lag_nor_heartbeat() {
    for offset in ["+300", "-300"] {
        let Some(source) = source_with_clock(offset).await else { return };
        let database = Database::on(&source, crate::support::destination().await, "clock", FORUM, FORUM_SCHEMA).await;
        let there = "SELECT extract(epoch FROM clock_timestamp())::bigint::text";
        let apart = database.source_value(there).await.unwrap().parse::<i64>().unwrap()
            - database.destination_value(there).await.unwrap().parse::<i64>().unwrap();
        assert!((290..=310).contains(&apart.abs()), "the clocks are {apart} s apart");
        let service = Setup::of(&database).source("heartbeat_every = \"100ms\"").start();
        service.streams().await;
        database.at_destination("BEGIN; LOCK TABLE messages").await;
        database.at_source("UPDATE messages SET body = 'held up' WHERE id = 1").await;
        let began = Instant::now();
        // True to within the second that reading takes on a busy machine: 5 minutes would be seen.
        let lag = metric_is(&service, SECONDS, "above 1", |seconds| seconds > 1.0).await;
        assert!(lag <= began.elapsed().as_secs_f64() + 5.0, "{lag} s after {:?}", began.elapsed());
        database.at_destination("ROLLBACK").await;
        database.assert_catches_up().await;
        no_lag(&service).await;
        let heartbeat = metric_is(&service, HEARTBEAT, "small", |seconds| seconds < 5.0).await;
        assert!(heartbeat >= 0.0);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn without_heartbeats_there_is_no_number_for_them_and_lag_is_0_all_the_same() {
    let database = Database::new("nobeat", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).source("heartbeat_every = \"off\"").start();
    service.streams().await;
    database.at_source("UPDATE messages SET body = 'x'").await;
    database.assert_catches_up().await;
    no_lag(&service).await;
    assert_eq!(service.metric(HEARTBEAT).await, None);
    let status = service.status().await.unwrap();
    assert_eq!(status["heartbeat_off"], "source.heartbeat_every is off");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_instance_leaves_lag_to_the_leader() {
    let database = Database::new("twolag", FORUM, FORUM_SCHEMA).await;
    let leader = Setup::of(&database).start();
    leader.streams().await;
    let standby = Setup::of(&database).start();
    standby.is("standby").await;
    for name in [BYTES, SECONDS, HEARTBEAT, "headwater_last_progress_age_seconds"] {
        assert_eq!(standby.metric(name).await, None, "{name}");
    }
    let (code, reason) = standby.get("/readyz").await.unwrap();
    assert!(code == 503 && reason.contains("another instance leads"), "{code} {reason}");
    leader.stop().await;
    standby.streams().await;
    database.at_source("UPDATE messages SET body = 'y'").await;
    database.assert_catches_up().await;
    no_lag(&standby).await;
    standby.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_0_before_there_is_something_to_count_and_the_last_verify_is_dated() {
    let database = Database::new("zero", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).setting("verify_every = \"2s\"").start();
    service.streams().await;
    for name in [
        "headwater_conflicts_total{kind=\"missing_row\",table=\"public.messages\"}",
        "headwater_restarts_total{reason=\"source_lost\"}",
        "headwater_rows_applied_total{operation=\"delete\",table=\"public.sections\"}",
        "headwater_missing_deletes_total",
        "headwater_batch_retries_total",
    ] {
        assert_eq!(service.metric(name).await, Some(0.0), "{name}");
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let began = service.metric("process_start_time_seconds").await.unwrap();
    assert!((now - 3600.0..=now).contains(&began), "{began} and now {now}");
    let resident = service.metric("process_resident_memory_bytes").await.unwrap();
    assert!(resident > 1e6 && resident <= service.resident_max_bytes() as f64, "{resident}");
    for name in [
        "process_cpu_seconds_total",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
    ] {
        assert!(service.metric(name).await > Some(0.0), "{name}");
    }
    let verified = metric_is(&service, "headwater_last_verify_timestamp_seconds", "known", |_| true).await;
    assert!(verified >= now.floor() && verified <= now + 3600.0, "{verified} and began at {now}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_waits_for_a_leader_or_standby_and_not_for_a_first_copy() {
    let manifest = std::fs::read_to_string("deploy/kubernetes/deployment.yaml").expect("the manifest");
    let probe = manifest.split("readinessProbe:").nth(1).expect("a readiness probe");
    assert!(probe.lines().take(4).any(|line| line.trim() == "path: /rolloutz"), "{probe}");
    let database = Database::new("rollout", FORUM, FORUM_SCHEMA).await;
    let leader = Setup::of(&database).start();
    leader.streams().await;
    let standby = Setup::of(&database).start();
    standby.is("standby").await;
    let code = async |service: &Service, path| service.get(path).await.map(|(code, _)| code);
    for path in ["/readyz", "/rolloutz"] {
        assert_eq!(code(&leader, path).await, Some(200), "{path} of the leader");
    }
    assert_eq!(code(&standby, "/readyz").await, Some(503), "readers are led by the leader");
    assert_eq!(code(&standby, "/rolloutz").await, Some(200), "the next instance may be replaced");
    database.at_destination("DELETE FROM messages WHERE id = 1").await;
    database.at_source("UPDATE messages SET body = 'conflict' WHERE id = 1").await;
    leader.is("waiting").await;
    let (halted, reason) = leader.get("/rolloutz").await.unwrap();
    assert!(halted == 503 && reason.starts_with("waiting: ") && reason.contains("messages"), "{halted} {reason}");
    assert_eq!(code(&standby, "/rolloutz").await, Some(200));
    standby.stop().await;
    leader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_own_linter_finds_nothing_to_object_to() {
    let Some(promtool) = tools::program("promtool") else { return };
    let database = Database::new("promtool", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).source("heartbeat_every = \"100ms\"").start();
    service.streams().await;
    database.at_source("UPDATE messages SET body = 'z'; DELETE FROM messages WHERE id = 1").await;
    database.assert_catches_up().await;
    metric_is(&service, HEARTBEAT, "measured", |_| true).await;
    metric_is(&service, "headwater_slot_retained_wal_bytes", "measured", |_| true).await;
    let (_, text) = service.get("/metrics").await.unwrap();
    let (clean, words) = tools::run(&promtool, &["check", "metrics"], &text);
    assert!(clean && words.trim().is_empty(), "{words}\n{text}");
    service.stop().await;
}
