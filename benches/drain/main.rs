//! `make bench`: headwater side by side with PostgreSQL's own replication and the wall, on one backlog after the other.
//!
//! Two throw-away clusters. Each item's backlog is written once; every peer and round drains it from a slot of its own
//! into a fresh copy of the destination, peers taking turns. A drain counts from the peer's start until the backlog's
//! last row is visible; then both sides are compared by content, and a drain that is not equal prints no figure.
//!
//! ```text
//! base (made once) ─▶ source of the item ─ workload ─▶ slots, one per peer and round
//!       └─ headwater's snapshot ─▶ destination base ─ CREATE DATABASE … TEMPLATE ─▶ one copy per drain
//! ```
//!
//! `pg_recvlogical` discarding the same backlog is the wall: nobody can drain faster than the source's walsender
//! decodes. Set BENCH_SCALE=0.05 for a short look, BENCH_ITEMS, BENCH_PEERS and BENCH_ROUNDS for a part; BENCH_OUT
//! names a file for the report.

#![allow(missing_docs, unreachable_pub, reason = "a program, not a library")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its result")]
#![allow(clippy::unwrap_used, reason = "a measurement that meets the unexpected ends")]

mod items;
mod latency;
mod measure;
mod peers;
mod pglogical;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use headwater::commands::demo::{Cluster, installed_bin};
use headwater::session::{SessionError, SqlClient};

use items::{Base, ITEMS, Item, MESSAGES, PGBENCH_SCALE, TOPICS, Workload, scaled};
use peers::{Drain, Peer};
use report::Report;

/// What both servers run with; what differs from the defaults is what an operator would set on such a machine.
const SERVER: &[(&str, &str)] = &[
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("wal_level", "logical"),
    ("logical_decoding_work_mem", "64MB"),
    ("max_replication_slots", "100"),
    ("max_wal_senders", "20"),
    ("max_connections", "100"),
    ("autovacuum", "off"),
    ("log_min_messages", "warning"),
];

/// The clusters and what is wanted of them.
pub struct Bench {
    pub source: Cluster,
    pub destination: Cluster,
    pub bin: PathBuf,
    pub dir: PathBuf,
    pub scale: f64,
    pub rounds: usize,
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
    let bin = variable("BENCH_BIN").map(PathBuf::from).or_else(installed_bin).expect("PostgreSQL is installed");
    let dir = std::env::temp_dir().join(format!("headwater-bench-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(&dir).unwrap();
    let ended = tokio::spawn(run(bin, dir.clone(), scale, rounds)).await;
    let _ = std::fs::remove_dir_all(&dir);
    if ended.is_err() {
        std::process::exit(1);
    }
}

async fn run(bin: PathBuf, dir: PathBuf, scale: f64, rounds: usize) {
    let chosen = |list: &str, name: &str| list.split(',').any(|wanted| wanted.trim().eq_ignore_ascii_case(name));
    let wanted = variable("BENCH_ITEMS");
    let items: Vec<&Item> =
        ITEMS.iter().filter(|item| wanted.as_deref().is_none_or(|list| chosen(list, item.name))).collect();
    let latencies: Vec<u64> = [100, 1000]
        .into_iter()
        .filter(|rate| wanted.as_deref().is_none_or(|list| chosen(list, &format!("L{rate}"))))
        .collect();
    let peers = variable("BENCH_PEERS");
    let peers: Vec<Peer> = Peer::available(&bin)
        .into_iter()
        .filter(|peer| peers.as_deref().is_none_or(|list| chosen(list, peer.key())))
        .collect();

    let mut server = SERVER.to_vec();
    if peers.contains(&Peer::Pglogical) {
        server.extend_from_slice(pglogical::SERVER);
    }
    let source = Cluster::start_new(&bin, &dir, "source", &server, &[]).await.unwrap();
    let destination = Cluster::start_new(&bin, &dir, "destination", &server, &[]).await.unwrap();
    let bench = Bench { source, destination, bin, dir, scale, rounds };
    let mut report = Report::new(&bench, &peers);
    for base in Base::ALL {
        let of_base: Vec<&&Item> = items.iter().filter(|item| item.base == base).collect();
        let latencies: &[u64] = if base == Base::Forum { &latencies } else { &[] };
        if of_base.is_empty() && latencies.is_empty() {
            continue;
        }
        bench.make_base(base).await;
        for item in of_base {
            drain_item(&bench, item, &peers, &mut report).await;
        }
        for rate in latencies {
            for round in 0..rounds {
                for peer in peers.iter().filter(|peer| peer.is_live()) {
                    let sample = latency::measure(&bench, *peer, *rate, round).await;
                    report.latency(*rate, *peer, sample);
                }
            }
        }
    }
    let text = report.markdown();
    println!("\n{text}");
    if let Some(out) = variable("BENCH_OUT") {
        // The section of `make bench-snapshot` on the same page is kept.
        let old = std::fs::read_to_string(&out).unwrap_or_default();
        let kept = old.find("<!-- make bench-snapshot -->").and_then(|begin| old.get(begin..)).unwrap_or_default();
        std::fs::write(Path::new(&out), format!("{}\n{kept}", report.page())).unwrap();
    }
}

/// Writes an item's backlog and lets every peer drain it, in turns.
async fn drain_item(bench: &Bench, item: &Item, peers: &[Peer], report: &mut Report) {
    let name = item.name.to_lowercase();
    let mut runs = Vec::new();
    for round in 0..bench.rounds {
        for peer in peers {
            runs.push((*peer, round, false));
            if item.old_snapshot_too && *peer == Peer::Headwater {
                runs.push((*peer, round, true));
            }
        }
    }
    let slot = |at: usize| format!("{name}_{at}");
    bench
        .sql(
            &bench.source,
            "postgres",
            &format!("CREATE DATABASE {name} TEMPLATE {} STRATEGY file_copy", item.base.name()),
        )
        .await;
    let source = bench.open(&bench.source, &name).await;
    let tables = item.base.tables().join(", ");
    source.script("publishing", &format!("CREATE PUBLICATION bench FOR TABLE {tables}")).await.unwrap();
    source.batch("a checkpoint", "CHECKPOINT").await.unwrap();
    if peers.contains(&Peer::Pglogical) {
        let own = peers::connection(&bench.source, &name);
        source.script("a provider", &pglogical::provider(item.base.tables(), &own)).await.unwrap();
    }
    for (at, (peer, ..)) in runs.iter().enumerate() {
        let sql = format!("SELECT pg_catalog.pg_create_logical_replication_slot('{}', '{}')", slot(at), peer.plugin());
        source.script("a slot", &sql).await.unwrap();
    }
    eprintln!("{}: writing the backlog ({})", item.name, item.what);
    let units = item.scaled(bench.scale);
    match item.workload {
        Workload::Sql(statement) => {
            let client = bench.open(&bench.source, &name).await;
            client.batch("quick commits", "SET synchronous_commit = off").await.unwrap();
            client.script("the workload", &statement(units, scaled(MESSAGES, bench.scale))).await.unwrap();
        }
        Workload::Pgbench => bench.pgbench(&name, &["-n", "-c4", "--random-seed=42", "-t", &(units / 4).to_string()]),
    }
    source.batch("the marker", "INSERT INTO public.marker VALUES (1)").await.unwrap();
    source.batch("a checkpoint", "CHECKPOINT").await.unwrap();
    let end = value(&source, "SELECT pg_current_wal_lsn()::text").await;
    let expected = content(&source, item.base).await;
    for (at, (peer, round, old_snapshot)) in runs.into_iter().enumerate() {
        let drain = Drain {
            bench,
            item: name.clone(),
            base: item.base,
            slot: slot(at),
            end_lsn: end.clone(),
            old_snapshot,
            expected: &expected,
        };
        let measured = drain.run(peer).await;
        eprintln!(
            "{} round {} {}{}: {measured}",
            item.name,
            round + 1,
            peer.key(),
            if old_snapshot { " (old snapshot)" } else { "" }
        );
        report.drained(item, units, peer, old_snapshot, measured);
        let drop = format!("SELECT pg_catalog.pg_drop_replication_slot('{}')", slot(at));
        source.script("dropping a slot", &drop).await.unwrap();
    }
    if peers.contains(&Peer::Pglogical) {
        source.script("removing pglogical", pglogical::REMOVE).await.unwrap();
    }
    drop(source);
    bench.drop_database(&bench.source, &name).await;
    report.print_item(item);
}

impl Bench {
    pub async fn open(&self, cluster: &Cluster, database: &str) -> SqlClient {
        cluster.connect(database).await.unwrap().with_timeout(Duration::from_secs(3600))
    }

    pub async fn sql(&self, cluster: &Cluster, database: &str, sql: &str) {
        self.open(cluster, database).await.script("a statement", sql).await.unwrap_or_else(|e| panic!("{e} in {sql}"));
    }

    pub async fn drop_database(&self, cluster: &Cluster, database: &str) {
        let client = self.open(cluster, "postgres").await;
        if client.query_opt("pglogical's supervisor", pglogical::IS_SUPERVISED, &[]).await.unwrap().is_some() {
            self.sql(cluster, database, pglogical::EMPTY).await;
            return client.batch("letting go of its files", "CHECKPOINT").await.unwrap();
        }
        client.script("dropping it", &format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
    }

    fn pgbench(&self, database: &str, arguments: &[&str]) {
        let mut command = std::process::Command::new(self.bin.join("pgbench"));
        command.arg("-h").arg(self.source.dir()).arg("-p").arg(self.source.port().to_string()).args(["-U", "postgres"]);
        let output =
            command.args(arguments).arg(database).env("PGOPTIONS", "-c synchronous_commit=off").output().unwrap();
        assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The base at the source, and headwater's copy of it at the destination.
    async fn make_base(&self, base: Base) {
        let name = base.name();
        eprintln!("making the tables of {name}");
        self.sql(&self.source, "postgres", &format!("CREATE DATABASE {name}")).await;
        match base {
            Base::Forum => {
                let forum = items::forum(scaled(TOPICS, self.scale), scaled(MESSAGES, self.scale));
                self.sql(&self.source, name, &forum).await;
            }
            Base::Pgbench => {
                self.pgbench(name, &["-i", "-q", "-s", &PGBENCH_SCALE.to_string()]);
                self.sql(&self.source, name, "CREATE TABLE public.marker (id integer PRIMARY KEY)").await;
            }
        }
        self.sql(&self.source, name, &format!("CREATE PUBLICATION bench FOR TABLE {}", base.tables().join(", "))).await;
        self.sql(&self.destination, "postgres", &format!("CREATE DATABASE {name}")).await;
        peers::copy_base(self, base).await;
        self.sql(&self.source, name, "DROP PUBLICATION bench").await;
        self.sql(&self.destination, name, "CREATE EXTENSION pg_prewarm SCHEMA public; ANALYZE").await;
        self.sql(&self.destination, name, "VACUUM").await;
    }
}

pub async fn value(client: &SqlClient, sql: &str) -> String {
    client.query_one("a question", sql, &[]).await.unwrap().get(0).expect("an answer")
}

/// Rows and a hash over all of them, for each table.
pub async fn content(client: &SqlClient, base: Base) -> Vec<String> {
    let mut tables = Vec::new();
    for table in base.tables() {
        let sql = format!(
            "SELECT count(*)::text || ' rows ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} AS t"
        );
        tables.push(format!("{table} {}", value(client, &sql).await));
    }
    tables
}

/// Statements of a measurement, any number in one text. The program itself has no such way for what is made at run time, so they are
/// given the life of a constant.
trait Script {
    /// Runs them as [`SqlClient::batch`] does.
    async fn script(&self, doing: &'static str, sql: &str) -> Result<(), SessionError>;
}

impl Script for SqlClient {
    async fn script(&self, doing: &'static str, sql: &str) -> Result<(), SessionError> {
        self.batch(doing, Box::leak(sql.to_owned().into_boxed_str())).await
    }
}
