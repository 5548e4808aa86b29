//! Who may write: one leader, whoever else stands by; a frozen leader cannot write when it wakes.

use std::time::{Duration, Instant};

use crate::support::service::Service;
use crate::support::{Database, Setup, eventually, seed, workload};

/// How long it takes until the next instance has the lead, which leader_timeout bounds; and then it applies. How long it needs for that
/// depends on how busy the machine is.
async fn leading_after(next: &Service) -> Duration {
    let began = Instant::now();
    next.says("this instance leads now").await;
    let took = began.elapsed();
    eventually("the next leader applies", || async {
        (next.metric("headwater_transactions_applied_total").await? > 0.0).then_some(())
    })
    .await;
    took
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_second_instance_stands_by_and_takes_over_when_the_leader_is_killed() {
    let seed = seed("a_second_instance_stands_by");
    let database = Database::new("takeover", workload::TABLES, workload::SCHEMA).await;
    let mut leader = Setup::of(&database).start();
    leader.streams().await;
    let mut next = Setup::of(&database).start();
    next.is("standby").await;
    workload::while_running(&database, seed, async {
        for _ in 0..3 {
            leader.kill();
            let took = leading_after(&next).await;
            assert!(took < Duration::from_secs(10), "taking the lead took {took:?}");
            next.streams().await;
            leader = std::mem::replace(&mut next, Setup::of(&database).start());
            next.is("standby").await;
        }
    })
    .await;
    database.assert_catches_up().await;
    leader.stop().await;
    next.streams().await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_frozen_leader_is_replaced_and_cannot_write_when_it_wakes() {
    let seed = seed("a_frozen_leader");
    let database = Database::new("frozen", workload::TABLES, workload::SCHEMA).await;
    let setup = Setup::of(&database).setting("leader_timeout = \"2s\"");
    let frozen = setup.start();
    frozen.streams().await;
    let next = setup.start();
    next.is("standby").await;
    workload::while_running(&database, seed, async {
        frozen.signal("STOP");
        let took = leading_after(&next).await;
        assert!(took < Duration::from_secs(10), "taking the lead took {took:?}");
        next.streams().await;
        let before = next.metric("headwater_transactions_applied_total").await.unwrap();
        eventually("the new leader applies", || async {
            (next.metric("headwater_transactions_applied_total").await? > before + 20.0).then_some(())
        })
        .await;
        // It wakes in the belief that it leads.
        frozen.signal("CONT");
        frozen.is("standby").await;
        let before = next.metric("headwater_transactions_applied_total").await.unwrap();
        eventually("the new leader still applies", || async {
            (next.metric("headwater_transactions_applied_total").await? > before + 20.0).then_some(())
        })
        .await;
    })
    .await;
    database.assert_catches_up().await;
    next.stop().await;
    frozen.streams().await;
    frozen.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_at_once_the_position_lets_only_one_commit() {
    let database = Database::new("twowriters", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    // Somebody moves the position behind the leader's back: as a second leader would.
    database.at_destination("UPDATE headwater.position SET position = position + 1").await;
    database.at_source("INSERT INTO t VALUES (1)").await;
    // It does not write on, but reads the position anew; there the slot turns out to be behind, and all is well.
    service.says("another instance has written").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_position_table_only_moves_the_row() {
    let database = Database::new("vacuumfull", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for n in 0..5 {
        database.at_source(&format!("INSERT INTO t VALUES ({n})")).await;
        database.caught_up().await;
        database.at_destination("VACUUM FULL headwater.position").await;
    }
    database.at_source("INSERT INTO t VALUES (100)").await;
    database.assert_catches_up().await;
    assert!(!service.log().contains("another instance"), "{}", service.log());
    service.stop().await;
}
