//! How long the destination stands still when a leader goes, however it goes.

use std::time::{Duration, Instant};

use crate::support::proxy::{Mode, Proxy};
use crate::support::{Database, Service, Setup, destination, eventually};

const TABLES: &[&str] = &["public.ticks"];
const SCHEMA: &str = "CREATE TABLE ticks (n int PRIMARY KEY)";

/// How a leader goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    Killed,
    Frozen,
    CutOff,
    Stopped,
}

/// Writes ticks one after another and waits for each at the destination; the longest wait.
async fn longest_gap(database: &Database, next: &mut i32, ticks: i32) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..ticks {
        let n = *next;
        *next += 1;
        let began = Instant::now();
        database.at_source(&format!("INSERT INTO ticks VALUES ({n})")).await;
        let there = format!("SELECT 't' FROM ticks WHERE n = {n}");
        eventually("a tick is there", || async { database.destination.query_opt("looking", &there, &[]).await.ok()? })
            .await;
        longest = longest.max(began.elapsed());
    }
    longest
}

async fn with_a_standby(first: &Setup, second: &Setup) -> (Service, Service) {
    let leader = first.start();
    leader.streams().await;
    let standby = second.start();
    standby.is("standby").await;
    (leader, standby)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_applies_soon_after_the_leader_went_however_it_went() {
    let database = Database::new("takes", TABLES, SCHEMA).await;
    let proxy = Proxy::to(destination().await.port()).await;
    let setup = Setup::of(&database).setting("leader_timeout = \"3s\"").quiet();
    let mut behind_proxy = setup.clone();
    behind_proxy.destination_url = proxy.in_place_of(&behind_proxy.destination_url);
    let mut next = 1;
    let (mut restarts, mut frozen) = (Vec::new(), Vec::new());
    let rounds = std::env::var("HEADWATER_TAKEOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let ways = [Going::Killed, Going::Frozen, Going::CutOff, Going::Stopped, Going::Stopped, Going::Stopped];
    for going in ways.repeat(rounds) {
        let (mut leader, standby) = with_a_standby(&behind_proxy, &setup).await;
        longest_gap(&database, &mut next, 5).await;
        match going {
            Going::Killed => leader.kill(),
            Going::Frozen => leader.signal("STOP"),
            Going::CutOff => proxy.set(Mode::Stalled),
            Going::Stopped => leader.signal("TERM"),
        }
        let gap = longest_gap(&database, &mut next, 5).await;
        println!("leader {going:?}: the next change is there after {} ms", gap.as_millis());
        assert!(gap < Duration::from_secs(10), "{going:?}: {gap:?}");
        match going {
            Going::Stopped => restarts.push(gap),
            Going::Frozen => frozen.push(gap),
            Going::Killed | Going::CutOff => {}
        }
        // It wakes, or its link is whole again: it must not write.
        match going {
            Going::Frozen => leader.signal("CONT"),
            Going::CutOff => proxy.set(Mode::Open),
            Going::Killed | Going::Stopped => {}
        }
        longest_gap(&database, &mut next, 5).await;
        if going != Going::Killed && going != Going::Stopped {
            leader.is("standby").await;
            leader.kill();
        }
        drop(leader);
        database.assert_equal().await;
        standby.stop().await;
    }
    // A rolling restart does not wait for leader_timeout, as a frozen leader is waited for. On a busy machine one of them may take longer.
    assert!(restarts.iter().min() < frozen.iter().min(), "{restarts:?}, {frozen:?}");
}
