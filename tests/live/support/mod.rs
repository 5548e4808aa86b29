//! Real clusters, real processes, and the means to break them.
//!
//! The tests of this binary share two clusters, a source and a destination, each test with databases of its own; tests that
//! stop or crash a server start their own. Every wait is for a named event and bounded: the question is asked every
//! 20 ms until it answers. What sleeps otherwise plays a slow link or a starved machine.

#![allow(dead_code, reason = "not every test uses everything")]

pub mod browser;
pub mod certificates;
pub mod clock;
pub mod command;
pub mod compare;
pub mod database;
pub mod disk;
pub mod findings;
pub mod forum;
pub mod marks;
pub mod pause;
pub mod pooler;
pub mod proxy;
pub mod roles;
pub mod service;
pub mod shifting;
pub mod starved;
pub mod strangers;
pub mod streamed;
pub mod suspension;
pub mod tools;
pub mod waits;
pub mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use headwater::commands::demo::{Cluster, installed_bin};
use headwater::session::{SessionError, SqlClient};
use tokio::sync::OnceCell;

pub use database::Database;
pub use service::{Service, Setup};

/// What every source needs, and what makes tests quick.
pub const SOURCE: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_replication_slots", "60"),
    ("max_wal_senders", "60"),
    ("max_connections", "300"),
    ("fsync", "off"),
    ("autovacuum", "off"),
    ("log_min_messages", "warning"),
];

/// What makes tests quick. Up to 17 the number of slots is that of replication origins, too, and each test leaves one.
pub const DESTINATION: &[(&str, &str)] = &[
    ("max_connections", "300"),
    ("max_replication_slots", "1000"),
    ("fsync", "off"),
    ("autovacuum", "off"),
    ("log_min_messages", "warning"),
];

/// The server programs of one end: HEADWATER_TEST_SOURCE_BIN, HEADWATER_TEST_DESTINATION_BIN, or what is installed.
pub fn bin(end: &str) -> PathBuf {
    match std::env::var_os(format!("HEADWATER_TEST_{end}_BIN")) {
        Some(bin) => PathBuf::from(bin),
        None => installed_bin().expect("PostgreSQL's server programs are installed (apt-get install postgresql)"),
    }
}

/// The server programs of a major, fetched when they are not there; `None`, and a line, when they cannot be.
pub fn bin_of(major: u32) -> Option<PathBuf> {
    bin_of_version(&major.to_string())
}

/// The server programs of a version that `tests/servers` knows, likewise.
pub fn bin_of_version(version: &str) -> Option<PathBuf> {
    let output = std::process::Command::new("tests/servers").arg(version).output().expect("tests/servers runs");
    if !output.status.success() {
        println!("not run: servers of {version} cannot be fetched: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The major of one end's server, SOURCE or DESTINATION.
pub fn major(end: &str) -> u32 {
    major_of(&bin(end))
}

/// The major of server programs.
fn major_of(bin: &Path) -> u32 {
    let output = std::process::Command::new(bin.join("postgres")).arg("--version").output().expect("postgres runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.rsplit("(PostgreSQL) ").next().unwrap_or_default();
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok()).expect("a version")
}

/// A source cluster of one's own of a major.
pub async fn new_source_of(bin: &Path, settings: &[(&str, &str)]) -> Cluster {
    let settings: Vec<_> = SOURCE.iter().chain(settings).copied().collect();
    Cluster::start_new(bin, &parent(), "source", &settings, &[]).await.expect("a source cluster")
}

/// Where clusters are made.
pub fn parent() -> PathBuf {
    let parent = std::env::temp_dir().join("headwater-tests");
    std::fs::create_dir_all(&parent).expect("a directory for clusters");
    parent
}

/// A source cluster of one's own.
pub async fn new_source(settings: &[(&str, &str)]) -> Cluster {
    new_source_of(&bin("SOURCE"), settings).await
}

/// A destination cluster of one's own.
pub async fn new_destination(settings: &[(&str, &str)]) -> Cluster {
    new_destination_of(&bin("DESTINATION"), settings).await
}

/// A destination cluster of one's own of a major.
pub async fn new_destination_of(bin: &Path, settings: &[(&str, &str)]) -> Cluster {
    // From 18 on the number of replication origins is one of its own.
    let origins = [("max_active_replication_origins", "1000")];
    let origins = origins.iter().filter(|_| major_of(bin) >= 18);
    let settings: Vec<_> = DESTINATION.iter().chain(origins).chain(settings).copied().collect();
    let cluster = Cluster::start_new(bin, &parent(), "destination", &settings, &[]).await;
    cluster.expect("a destination cluster")
}

static SOURCE_CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
static DESTINATION_CLUSTER: OnceCell<Cluster> = OnceCell::const_new();

/// The shared source. It lives until the process ends; its keeper then removes it.
pub async fn source() -> &'static Cluster {
    SOURCE_CLUSTER.get_or_init(|| new_source(&[])).await
}

/// The shared destination.
pub async fn destination() -> &'static Cluster {
    DESTINATION_CLUSTER.get_or_init(|| new_destination(&[])).await
}

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Does the same at each of these points, three at a time: each has a database of its own, and waits most of the time.
pub async fn at_each<F>(points: &[&'static str], each: impl Fn(&'static str) -> F)
where
    F: Future<Output = ()>,
{
    stream::iter(points).map(|point| each(point)).buffer_unordered(3).collect::<()>().await;
}

/// Lets time pass for what a test does to the service meanwhile; no test waits for anything in this way.
pub async fn let_pass(millis: u64) {
    let until = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks `question` until it answers, and returns the answer.
pub async fn eventually<T, F>(what: &str, mut question: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The binary under test.
pub fn headwater() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_headwater"))
}

/// The seed of a randomized test: HEADWATER_SEED, or a new one. Printed, so that a failure can be replayed.
pub fn seed(test: &str) -> u64 {
    let seed = std::env::var("HEADWATER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..) >> 16);
    println!("{test}: HEADWATER_SEED={seed}");
    seed
}

/// Statements of a test, any number in one text. The program itself has no such way for what is made at run time, so they are
/// given the life of a constant.
pub trait Script {
    /// Runs them as [`SqlClient::batch`] does.
    fn script(&self, doing: &'static str, sql: &str) -> impl Future<Output = Result<(), SessionError>> + Send;
}

impl Script for SqlClient {
    fn script(&self, doing: &'static str, sql: &str) -> impl Future<Output = Result<(), SessionError>> + Send {
        self.batch(doing, Box::leak(sql.to_owned().into_boxed_str()))
    }
}
