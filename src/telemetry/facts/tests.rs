//! What the facts promise to their readers.

use super::*;
use crate::telemetry::view::SnapshotPhase;

#[test]
fn the_source_is_never_shown_behind_what_it_has_sent() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    telemetry.stream_begins(Lsn::new(100), []);
    telemetry.source_at(Lsn::new(150));
    telemetry.stored(Lsn::new(200));
    assert_eq!((telemetry.status().position, telemetry.status().source_flush_lsn), (Lsn::new(200), Lsn::new(200)));
    telemetry.source_at(Lsn::new(180));
    assert_eq!(telemetry.status().source_flush_lsn, Lsn::new(200));
    // Another source, whose positions are others.
    telemetry.stream_begins(Lsn::new(50), []);
    telemetry.source_at(Lsn::new(60));
    assert_eq!(telemetry.status().source_flush_lsn, Lsn::new(60));
}

#[test]
fn exactly_one_state_is_1_and_every_metric_has_its_name() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    telemetry.set_state(State::Streaming, None);
    telemetry.stream_begins(Lsn::new(1), [QualifiedName::new("public", "t")]);
    telemetry.snapshot_begins([(QualifiedName::new("public", "t"), 5)]);
    telemetry.snapshot_copied(&QualifiedName::new("public", "t"), 1, 1);
    telemetry.conflict("public.t", "missing_row", 1);
    telemetry.restart("source_lost");
    let absent = String::from_utf8(telemetry.render_metrics()).unwrap();
    for name in [
        "heartbeat_lag_seconds",
        "slot_retained_wal_bytes",
        "slot_seconds_until_lost",
        "verify_mismatched_rows",
        "last_verify_timestamp_seconds",
    ] {
        assert!(!absent.contains(&format!("headwater_{name} ")), "{name} before anything is known of it");
    }
    telemetry.heartbeat_returned(Duration::from_millis(3));
    telemetry.slot(SlotHealth::default());
    telemetry.spooled(1);
    telemetry.verified(Lsn::new(1), 0);
    let text = String::from_utf8(telemetry.render_metrics()).unwrap();
    let ones = text.lines().filter(|line| line.starts_with("headwater_state{") && line.ends_with(" 1")).count();
    assert_eq!(ones, 1, "{text}");
    for name in [
        "headwater_replication_lag_bytes",
        "headwater_replication_lag_seconds",
        "headwater_heartbeat_lag_seconds",
        "headwater_last_progress_age_seconds",
        "headwater_transactions_applied_total",
        "headwater_rows_applied_total{operation=\"insert\",table=\"public.t\"}",
        "headwater_batch_rows_bucket",
        "headwater_apply_duration_seconds_bucket",
        "headwater_snapshot_rows_total{table=\"public.t\"}",
        "headwater_snapshot_progress_ratio{table=\"public.t\"}",
        "headwater_state{state=\"streaming\"}",
        "headwater_slot_retained_wal_bytes",
        "headwater_slot_seconds_until_lost",
        "headwater_conflicts_total{kind=\"missing_row\",table=\"public.t\"}",
        "headwater_restarts_total{reason=\"source_lost\"}",
        "headwater_build_info",
        "headwater_snapshot_phase{phase=\"indexing\"} 0",
        "headwater_spool_bytes 1",
        "headwater_verify_mismatched_rows 0",
        "headwater_last_verify_timestamp_seconds ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
        "process_max_fds ",
        "headwater_slot_seconds_until_lost inf",
    ] {
        assert!(text.contains(name), "no {name} in\n{text}");
    }
}

#[test]
fn everything_that_can_be_counted_is_0_before_it_happens() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    let many: Vec<_> = (0..300).map(|number| QualifiedName::new("public", format!("t{number:03}"))).collect();
    telemetry.service_begins(&many, ["missing_row", "other"], ["source_lost"]);
    let text = String::from_utf8(telemetry.render_metrics()).unwrap();
    for name in [
        "headwater_transactions_applied_total 0",
        "headwater_rows_applied_total{operation=\"truncate\",table=\"public.t299\"} 0",
        "headwater_snapshot_rows_total{table=\"public.t299\"} 0",
        "headwater_conflicts_total{kind=\"missing_row\",table=\"public.t000\"} 0",
        "headwater_restarts_total{reason=\"source_lost\"} 0",
        "headwater_missing_deletes_total 0",
        "headwater_batch_retries_total 0",
    ] {
        assert!(text.contains(&format!("\n{name}\n")), "no {name} in\n{text}");
    }
    let conflicts = text.lines().filter(|line| line.starts_with("headwater_conflicts_total{")).count();
    assert_eq!(conflicts, 2 * CONFLICT_TABLES_MAX, "of thousands of tables they are too many");
}

fn tables(names: &[&str]) -> Vec<QualifiedName> {
    names.iter().map(|name| QualifiedName::new("public", *name)).collect()
}

#[test]
fn a_snapshot_is_told_by_phases_and_is_never_done_before_it_is_over() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    let now = || telemetry.status().snapshot.unwrap();
    let told = || (now().phase.as_str(), now().text, now().ratio);
    let [large, small] = &tables(&["large", "small"])[..] else { unreachable!() };
    telemetry.snapshot_begins([(large.clone(), 900), (small.clone(), 100)]);
    assert_eq!(told(), ("preparing", "preparing the copy".to_owned(), None));
    telemetry.snapshot_phase(SnapshotPhase::Copying, []);
    assert_eq!(told(), ("copying", "copying 2 tables 0 % (0 of 2)".to_owned(), Some(0.0)));
    telemetry.snapshot_copied(large, 1, 450);
    assert_eq!(told(), ("copying", "copying public.large 45 % (1 of 2)".to_owned(), Some(0.45)));
    assert!(now().seconds_left.is_some());
    // Rows take more on the wire than on disk: what is left is not known, and it is not done.
    telemetry.snapshot_copied(large, 1, 9000);
    telemetry.snapshot_table_done(small);
    assert_eq!((now().text.as_str(), now().seconds_left), ("copying public.large 99 % (2 of 2)", None));
    telemetry.snapshot_table_done(large);
    assert_eq!((now().text.as_str(), now().seconds_left), ("copying 2 tables 99 % (2 of 2)", None));
    telemetry.snapshot_phase(SnapshotPhase::Indexing, [900, 100]);
    telemetry.snapshot_steps_under_way(450.0);
    assert_eq!(told(), ("indexing", "building indexes 45 % (0 of 2 done)".to_owned(), Some(0.45)));
    assert!(now().seconds_left.is_some());
    telemetry.snapshot_step_done(900);
    assert_eq!(told(), ("indexing", "building indexes 90 % (1 of 2 done)".to_owned(), Some(0.9)));
    telemetry.snapshot_phase(SnapshotPhase::CatchingUp, []);
    telemetry.snapshot_lacks_wal(7);
    assert_eq!((told().2, now().wal_bytes_left), (None, Some(7)));
    telemetry.snapshot_phase(SnapshotPhase::Publishing, [1]);
    telemetry.snapshot_step_done(1);
    assert_eq!(now().text, "publishing 99 % (1 of 1 done)");
    assert_eq!((now().seconds_left, now().wal_bytes_left), (None, None), "the commit is still to come");
    let metrics = || String::from_utf8(telemetry.render_metrics()).unwrap();
    let phases = || {
        metrics().lines().filter(|line| line.starts_with("headwater_snapshot_phase{") && line.ends_with(" 1")).count()
    };
    assert!(metrics().contains("headwater_snapshot_phase{phase=\"publishing\"} 1"), "{}", metrics());
    assert_eq!(phases(), 1);
    telemetry.snapshot_ends();
    assert!(telemetry.status().snapshot.is_none() && phases() == 0);
}

#[test]
fn a_copy_of_some_tables_tells_of_these_alone() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    let [views, topics] = &tables(&["views", "topics"])[..] else { unreachable!() };
    telemetry.stream_begins(Lsn::new(1), [views.clone(), topics.clone()]);
    telemetry.snapshot_begins([(views.clone(), 100)]);
    telemetry.snapshot_phase(SnapshotPhase::Copying, []);
    telemetry.snapshot_copied(views, 1, 71);
    let snapshot = telemetry.status().snapshot.unwrap();
    assert_eq!(snapshot.text, "copying public.views 71 % (1 of 1)");
    assert_eq!((snapshot.tables, snapshot.total), (vec!["public.views".to_owned()], 1));
}

#[test]
fn a_standby_shows_no_lag_of_its_own() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    telemetry.source_at(Lsn::new(100));
    telemetry.heartbeat_sent();
    telemetry.set_state(State::Standby, None);
    telemetry.source_at(Lsn::new(900));
    let text = String::from_utf8(telemetry.render_metrics()).unwrap();
    for name in
        ["replication_lag_bytes", "replication_lag_seconds", "heartbeat_lag_seconds", "last_progress_age_seconds"]
    {
        assert!(!text.contains(&format!("\nheadwater_{name} ")), "{name} is the leader's:\n{text}");
    }
    assert!(!telemetry.expects_heartbeats());
    assert_eq!(telemetry.ready(), Err("standby: another instance leads".to_owned()));
}

#[test]
fn an_outage_of_an_hour_is_a_few_events_and_two_outages_are_two() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    telemetry.event("snapshot", "published");
    for _ in 0..2 {
        telemetry.set_state(State::Streaming, None);
        for attempt in 0..500 {
            telemetry.restart("destination_lost");
            let message = if attempt % 2 == 0 { "refused" } else { "no such host" };
            telemetry.set_state(State::Connecting, Some(ErrorReport::new(message)));
        }
    }
    let events = telemetry.status().events;
    let told: Vec<_> = events.iter().map(|event| (event.text.as_str(), event.times)).collect();
    let outage =
        [("connecting: no such host", 250), ("destination_lost", 500), ("connecting: refused", 250), ("streaming", 1)];
    assert_eq!(told, [&outage[..], &outage[..], &[("published", 1)]].concat());
}

#[test]
fn a_heartbeat_counts_until_it_or_a_later_one_is_back() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    let lag = || telemetry.status().heartbeat_lag_seconds;
    assert_eq!(lag(), None);
    telemetry.heartbeat_sent();
    telemetry.heartbeat_sent();
    let waited = lag().unwrap();
    assert!(lag().unwrap() > waited, "it grows while one is on its way");
    telemetry.heartbeat_returned(Duration::ZERO);
    assert_eq!(lag(), Some(0.0), "both were written before the one that came back");
    telemetry.heartbeat_sent();
    telemetry.heartbeat_returned(Duration::from_secs(5));
    assert!(telemetry.inner().heartbeats_on_their_way.len() == 1, "an older one says nothing of a later one");
}

#[test]
fn ready_means_streaming_within_the_lag_threshold() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    assert_eq!(telemetry.ready(), Err("connecting".to_owned()));
    telemetry.set_state(State::Waiting, Some(ErrorReport::new("disk full")));
    assert_eq!(telemetry.ready(), Err("waiting: disk full".to_owned()));
    telemetry.set_state(State::Streaming, None);
    assert_eq!(telemetry.ready(), Ok(()));
    telemetry.stream_begins(Lsn::new(1), []);
    telemetry.received(Lsn::new(9), local_clock().shifted_by(-90_000_000));
    let reason = telemetry.ready().unwrap_err();
    assert!(reason.contains("behind the source (at most 60.0 s)"), "{reason}");
}

#[test]
fn an_instance_is_in_service_while_it_copies_streams_or_stands_by() {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    assert_eq!(telemetry.in_service(), Err("connecting".to_owned()));
    for state in [State::Snapshot, State::CatchingUp, State::Streaming, State::Standby] {
        telemetry.set_state(state, None);
        assert_eq!(telemetry.in_service(), Ok(()), "{state:?}");
    }
    telemetry.set_state(State::Waiting, Some(ErrorReport::new("disk full")));
    assert_eq!(telemetry.in_service(), Err("waiting: disk full".to_owned()));
}
