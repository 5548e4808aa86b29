//! `make bench-verify`: rows that verify compares in a second, next to COPY of the same tables.
//!
//! Two throw-away clusters and a forum of 2 million messages of about 300 bytes, which a service follows. COPY is one psql on
//! one connection to the source, its output to /dev/null; verify is the command as an operator types it, process start, fence
//! and both sides included, with one session a side and with as many as it takes by itself. They take turns.
//!
//! BENCH_SCALE=0.05 for a short look, BENCH_ROUNDS for fewer rounds; BENCH_OUT names the page whose section is written.

#![allow(missing_docs, unreachable_pub, reason = "a program, not a library")]
#![allow(clippy::print_stdout, reason = "its output is its result")]
#![allow(clippy::unwrap_used, reason = "a measurement that meets the unexpected ends")]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headwater::commands::demo::{Cluster, installed_bin};
use headwater::session::{SessionError, SqlClient};

/// What both servers run with; what differs from the defaults is what an operator would set on such a machine.
const SERVER: &[(&str, &str)] = &[
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("wal_level", "logical"),
    ("autovacuum", "off"),
    ("log_min_messages", "warning"),
];

const TABLES: [&str; 3] = ["sections", "topics", "messages"];

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// Who reads all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// COPY TO STDOUT of all tables, on one connection.
    Copy,
    /// `headwater verify` with so many sessions a side; `None`: as many as it takes by itself.
    Verify(Option<u32>),
}

impl Peer {
    const ALL: [Peer; 3] = [Peer::Copy, Peer::Verify(Some(1)), Peer::Verify(None)];

    fn name(self) -> String {
        match self {
            Peer::Copy => "COPY TO STDOUT, one connection".to_owned(),
            Peer::Verify(Some(workers)) => format!("verify --workers {workers}"),
            Peer::Verify(None) => "verify".to_owned(),
        }
    }
}

struct Bench {
    source: Cluster,
    destination: Cluster,
    bin: PathBuf,
    dir: PathBuf,
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
    let rounds: usize = variable("BENCH_ROUNDS").map_or(5, |rounds| rounds.parse().unwrap());
    let bin = variable("BENCH_BIN").map(PathBuf::from).or_else(installed_bin).expect("PostgreSQL is installed");
    let dir = std::env::temp_dir().join(format!("headwater-bench-{:08x}", fastrand::u32(..)));
    std::fs::create_dir_all(&dir).unwrap();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of rows")]
    let messages = (2_000_000.0 * scale) as u64;
    let source = Cluster::start_new(&bin, &dir, "source", SERVER, &[]).await.unwrap();
    let destination = Cluster::start_new(&bin, &dir, "destination", SERVER, &[]).await.unwrap();
    let bench = Bench { source, destination, bin, dir: dir.clone() };
    let rows = bench.make_forum(messages).await;
    let mut service = bench.start().await;
    let mut figures: Vec<(Peer, Vec<f64>)> = Peer::ALL.iter().map(|peer| (*peer, Vec::new())).collect();
    for round in 1..=rounds {
        for (peer, taken) in &mut figures {
            let seconds = bench.read(*peer, rows);
            println!("round {round} {}: {seconds:.2} s, {:.0} rows a second", peer.name(), rows as f64 / seconds);
            taken.push(seconds);
        }
    }
    service.stop();
    let text = table(&figures, rows, rounds);
    println!("\n{text}");
    if let Some(page) = variable("BENCH_OUT") {
        write_section(Path::new(&page), &text);
    }
    drop(bench);
    let _ = std::fs::remove_dir_all(&dir);
}

async fn run(client: &SqlClient, sql: &str) {
    if let Err(error) = client.script("a statement of the benchmark", sql).await {
        panic!("{error} in {sql}");
    }
}

async fn client(cluster: &Cluster, database: &str) -> SqlClient {
    let client = cluster.connect(database).await.unwrap().with_timeout(PATIENCE);
    run(&client, "SET search_path = public").await;
    client
}

impl Bench {
    /// The forum at the source; the number of its rows.
    async fn make_forum(&self, messages: u64) -> u64 {
        run(&client(&self.source, "postgres").await, "CREATE DATABASE forum").await;
        run(&client(&self.destination, "postgres").await, "CREATE DATABASE forum").await;
        let topics = 20_000.min(messages / 10 + 1);
        let source = client(&self.source, "forum").await;
        let sql = format!(
            "CREATE TABLE sections (id int PRIMARY KEY, name text NOT NULL);
             CREATE TABLE topics (id int PRIMARY KEY, section_id int NOT NULL REFERENCES sections, author int NOT NULL,
                 title text NOT NULL, created_at timestamptz NOT NULL);
             CREATE TABLE messages (id bigint PRIMARY KEY, topic_id int NOT NULL REFERENCES topics, author int NOT NULL,
                 created_at timestamptz NOT NULL, body text NOT NULL);
             INSERT INTO sections SELECT i, 'section ' || i FROM generate_series(1, 20) AS i;
             INSERT INTO topics SELECT i, 1 + i % 20, (random() * 50000)::int, md5(i::text), now() - i * interval '1 minute'
             FROM generate_series(1, {topics}) AS i;
             INSERT INTO messages SELECT i, 1 + (random() * ({topics} - 1))::int, (random() * 50000)::int,
                 '2020-01-01'::timestamptz + i * interval '1 minute', repeat(md5(i::text), 7 + i % 5) FROM generate_series(1, {messages}) AS i;"
        );
        run(&source, &sql).await;
        run(&source, "VACUUM ANALYZE").await;
        20 + topics + messages
    }

    fn headwater(&self, arguments: &[&str], output: Stdio) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
        command
            .args(arguments)
            .env("HEADWATER_SOURCE_URL", self.source.url("forum"))
            .env("HEADWATER_DESTINATION_URL", self.destination.url("forum"))
            .env("HEADWATER_TABLES", TABLES.join(","))
            .env("HEADWATER_SPOOL_DIR", self.dir.join("spool"))
            .env("HEADWATER_HTTP_LISTEN", "off")
            .stdin(Stdio::null())
            .stdout(output);
        command
    }

    /// A service that has copied everything and streams.
    async fn start(&self) -> Running {
        let log = self.dir.join("headwater.log");
        let mut command = self.headwater(&["run"], Stdio::null());
        let service = Running(command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap());
        let began = Instant::now();
        while !std::fs::read_to_string(&log).unwrap_or_default().contains("state=\"streaming\"") {
            assert!(began.elapsed() < PATIENCE, "{}", std::fs::read_to_string(&log).unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for cluster in [&self.source, &self.destination] {
            run(&client(cluster, "forum").await, "VACUUM ANALYZE").await;
            run(&client(cluster, "forum").await, "CHECKPOINT").await;
        }
        service
    }

    /// Reads everything once; the seconds that it took.
    fn read(&self, peer: Peer, rows: u64) -> f64 {
        let mut command = match peer {
            Peer::Copy => {
                let mut command = Command::new(self.bin.join("psql"));
                command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"]).arg(self.source.url("forum"));
                for table in TABLES {
                    command.arg("-c").arg(format!("COPY {table} TO STDOUT"));
                }
                command.stdin(Stdio::null()).stdout(Stdio::null());
                command
            }
            Peer::Verify(workers) => {
                let workers = workers.map(|workers| workers.to_string());
                let mut arguments = vec!["verify"];
                arguments.extend(workers.iter().flat_map(|workers| ["--workers", workers]));
                self.headwater(&arguments, Stdio::piped())
            }
        };
        let began = Instant::now();
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let seconds = began.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: {said}{}", peer.name(), String::from_utf8_lossy(&output.stderr));
        if let Peer::Verify(_) = peer {
            let compared: u64 = said
                .lines()
                .filter_map(|line| line.split_once(": equal, ")?.1.split(' ').next()?.parse::<u64>().ok())
                .sum();
            assert_eq!(compared, rows, "all rows are compared:\n{said}");
        }
        seconds
    }
}

fn table(figures: &[(Peer, Vec<f64>)], rows: u64, rounds: usize) -> String {
    let median = |seconds: &[f64]| {
        let mut seconds = seconds.to_vec();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let copy = figures.iter().find(|(peer, _)| *peer == Peer::Copy).map_or(f64::NAN, |(_, seconds)| median(seconds));
    let mut text = format!(
        "{rows} rows; {rounds} rounds, taking turns; medians (least–most).\n\n\
         | who | seconds | rows a second | of COPY |\n|---|---|---|---|\n"
    );
    for (peer, seconds) in figures {
        let middle = median(seconds);
        let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = seconds.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "| {} | {middle:.2} ({least:.2}–{most:.2}) | {:.0} | {:.2} |",
            peer.name(),
            rows as f64 / middle,
            copy / middle
        );
    }
    text
}

const BEGIN: &str = "<!-- make bench-verify -->";
const END: &str = "<!-- end of make bench-verify -->";

/// Writes the section of a page that is ours; the rest of it is others'.
fn write_section(page: &Path, text: &str) {
    let old = std::fs::read_to_string(page).unwrap_or_default();
    let section = format!(
        "{BEGIN}\n## Verify\n\n\
         Printed by `make bench-verify`: `headwater verify` reads and hashes both sides at a fence while the service streams, and psql \
         copies the same tables from the source to /dev/null on one connection. Verify's seconds hold the process's start and the \
         fence.\n\n{text}{END}\n"
    );
    let new = match (old.find(BEGIN), old.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let (before, after) =
                (old.get(..begin).unwrap_or_default(), old.get(end + END.len()..).unwrap_or_default());
            format!("{before}{}{after}", section.trim_end())
        }
        (_, _) => format!("{old}\n{section}"),
    };
    std::fs::write(page, new).unwrap();
}

/// A process of ours; dropping it kills it.
struct Running(Child);

impl Running {
    fn stop(&mut self) {
        let _ = Command::new("kill").arg("-TERM").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
