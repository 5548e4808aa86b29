//! From COMMIT returned at the source to first visible at the destination.
//!
//! One writer commits one-row transactions at a fixed rate; one reader asks the destination, again and again, for the
//! highest row it sees. How often the reader asks (about 0.1 ms) is the resolution.

use super::Script;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::items::{Base, MESSAGES, scaled};
use crate::peers::{Copy, Peer};
use crate::report::Latency;
use crate::{Bench, value};

/// How long transactions are written, at scale 1.
const SECONDS: f64 = 12.0;

pub async fn measure(bench: &Bench, peer: Peer, rate: u64, round: usize) -> Latency {
    let name = format!("latency_{rate}_{}_{round}", peer.key());
    bench.sql(&bench.source, "postgres", &format!("CREATE DATABASE {name} TEMPLATE forum STRATEGY file_copy")).await;
    let source = bench.open(&bench.source, &name).await;
    let publish = format!("CREATE PUBLICATION bench FOR TABLE {}", Base::Forum.tables().join(", "));
    source.script("publishing", &publish).await.unwrap();
    value(&source, &format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')::text")).await;
    let run = Copy::new(bench, &name, Base::Forum, &name).await;
    let destination = bench.open(&bench.destination, &run.database).await;
    let reader = bench.open(&bench.destination, &run.database).await;
    let running = run.start(peer, &destination).await;
    // Once a first row has come through, everything is warm.
    source.batch("the marker", "INSERT INTO public.marker VALUES (1)").await.unwrap();
    while destination.query_opt("the marker", "SELECT FROM public.marker", &[]).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let first = i64::try_from(scaled(MESSAGES, bench.scale)).unwrap() + 1;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
    let count = (rate as f64 * (SECONDS * bench.scale).max(1.0)) as i64;
    let began = Instant::now();
    let written = Arc::new(AtomicI64::new(0));
    let progress = Arc::clone(&written);
    let writer = tokio::spawn(async move {
        let mut committed = Vec::new();
        let sql = "INSERT INTO public.messages VALUES ($1, 1, 1, 'a message of ordinary length, as people write them', now())";
        for at in 0..count {
            let due = began + Duration::from_secs(1) * u32::try_from(at).unwrap() / u32::try_from(rate).unwrap();
            tokio::time::sleep_until(due.into()).await;
            source.execute("a message", sql, &[&(first + at)]).await.unwrap();
            committed.push(began.elapsed());
            progress.store(at + 1, Ordering::Relaxed);
        }
        (source, committed)
    });
    let mut seen: Vec<Duration> = Vec::new();
    let sql = format!("SELECT coalesce(max(id), 0) - {} FROM public.messages WHERE id >= {first}", first - 1);
    // The rows already seen are not looked at again: the highest key is the index's last.
    while i64::try_from(seen.len()).unwrap() < count {
        assert!(began.elapsed() < Duration::from_secs(600), "{} does not follow", peer.key());
        let visible: i64 = reader.query_one("the newest row", &sql, &[]).await.unwrap().get(0).expect("an answer");
        let now = began.elapsed();
        while i64::try_from(seen.len()).unwrap() < visible {
            seen.push(now);
        }
    }
    let (source, committed) = writer.await.unwrap();
    let mut latencies: Vec<Duration> = seen.iter().zip(&committed).map(|(seen, at)| seen.saturating_sub(*at)).collect();
    latencies.sort_unstable();
    running.stop(&destination).await;
    drop(destination);
    drop(reader);
    run.remove().await;
    value(&source, &format!("SELECT pg_drop_replication_slot('{name}')::text")).await;
    drop(source);
    bench.drop_database(&bench.source, &name).await;
    let at =
        |percent: usize| latencies.get((latencies.len() * percent / 100).min(latencies.len() - 1)).copied().unwrap();
    Latency { p50: at(50), p99: at(99), max: at(100) }
}
