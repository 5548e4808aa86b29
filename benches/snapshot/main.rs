//! `make bench-snapshot`: the first copy and the resync side by side with PostgreSQL's own, pgcopydb and the limit.
//!
//! Two throw-away clusters and a forum: 2 million messages of about 300 bytes, 20,000 topics, 20 sections, with the
//! secondary indexes and foreign keys of a forum. Every peer copies it into a fresh database, peers taking turns; a copy
//! counts from the peer's start until everything is visible, with keys and indexes; then row counts are compared.
//!
//! The limit is what one session can do at best, in one transaction: COPY BINARY out of one psql into another, then
//! keys and indexes. Set BENCH_SCALE=0.05 for a short look, BENCH_PEERS (names with ; between them) and BENCH_ROUNDS for a part; BENCH_OUT names the
//! page whose section is written.

#![allow(missing_docs, unreachable_pub, reason = "a program, not a library")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its result")]
#![allow(clippy::unwrap_used, reason = "a measurement that meets the unexpected ends")]

mod load;
mod measure;
mod peers;

use std::path::PathBuf;

use headwater::commands::demo::{Cluster, installed_bin};

use measure::{Figure, table, write_section};
use peers::Peer;

/// What both servers run with; what differs from the defaults is what an operator would set on such a machine.
const SERVER: &[(&str, &str)] = &[
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("wal_level", "logical"),
    ("max_replication_slots", "50"),
    ("max_wal_senders", "20"),
    ("autovacuum", "off"),
    ("log_min_messages", "warning"),
];

/// The clusters and what is wanted of them.
pub struct Bench {
    pub source: Cluster,
    pub destination: Cluster,
    pub bin: PathBuf,
    pub dir: PathBuf,
    pub messages: u64,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // `cargo bench` and `cargo test --benches` hand over arguments of their own.
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    let scale: f64 = variable("BENCH_SCALE").map_or(1.0, |scale| scale.parse().unwrap());
    let rounds: usize = variable("BENCH_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap());
    let wanted = variable("BENCH_PEERS");
    let bin = variable("BENCH_BIN").map(PathBuf::from).or_else(installed_bin).expect("PostgreSQL is installed");
    let dir = std::env::temp_dir().join(format!("headwater-bench-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(&dir).unwrap();
    let work = async {
        let source = Cluster::start_new(&bin, &dir, "source", SERVER, &[]).await.unwrap();
        let destination = Cluster::start_new(&bin, &dir, "destination", SERVER, &[]).await.unwrap();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of rows")]
        let messages = (2_000_000.0 * scale) as u64;
        let bench = Bench { source, destination, bin, dir: dir.clone(), messages };
        bench.make_forum().await;
        let peers: Vec<Peer> = Peer::all()
            .into_iter()
            .filter(|peer| wanted.as_ref().is_none_or(|wanted| wanted.split(';').any(|name| name == peer.name())))
            .collect();
        let mut figures: Vec<(Peer, Vec<Figure>)> = peers.iter().map(|peer| (*peer, Vec::new())).collect();
        for round in 1..=rounds {
            for (peer, taken) in &mut figures {
                if let Some(figure) = bench.copy(*peer, round).await {
                    println!("round {round} {}: {figure}", peer.name());
                    taken.push(figure);
                }
            }
        }
        let text = table(&figures, messages, rounds);
        println!("\n{text}");
        if let Some(page) = variable("BENCH_OUT") {
            write_section(&PathBuf::from(page), &text);
        }
    };
    work.await;
    let _ = std::fs::remove_dir_all(&dir);
}
