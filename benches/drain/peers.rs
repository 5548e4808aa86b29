//! Who drains: the wall, PostgreSQL's own subscription in text and in binary, pglogical, headwater.
//!
//! Each is started on a slot that waits for it, timed until the marker row is visible, read off, and stopped.

use super::Script;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headwater::commands::demo::Cluster;
use headwater::session::SqlClient;

use crate::items::Base;
use crate::measure::{Cpu, resident_max_megabytes};
use crate::pglogical;
use crate::report::Measured;
use crate::{Bench, content, value};

/// A way to drain a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// pg_recvlogical to /dev/null, with the options that headwater asks for.
    Wall,
    /// CREATE SUBSCRIPTION.
    Native,
    /// CREATE SUBSCRIPTION … WITH (binary = true).
    NativeBinary,
    /// pglogical, where the package is installed.
    Pglogical,
    /// headwater.
    Headwater,
}

impl Peer {
    /// Those that can run here, in the order in which they take turns.
    pub fn available(bin: &Path) -> Vec<Peer> {
        let pglogical = bin.parent().is_some_and(|root| root.join("lib/pglogical.so").exists());
        [Peer::Wall, Peer::Native, Peer::NativeBinary, Peer::Pglogical, Peer::Headwater]
            .into_iter()
            .filter(|peer| *peer != Peer::Pglogical || pglogical)
            .collect()
    }

    pub const fn key(self) -> &'static str {
        match self {
            Peer::Wall => "wall",
            Peer::Native => "native",
            Peer::NativeBinary => "native_binary",
            Peer::Pglogical => "pglogical",
            Peer::Headwater => "headwater",
        }
    }

    /// Whether latencies are measured of it.
    pub const fn is_live(self) -> bool {
        matches!(self, Peer::Native | Peer::Headwater)
    }

    /// The output plugin of its slots.
    pub const fn plugin(self) -> &'static str {
        match self {
            Peer::Pglogical => pglogical::PLUGIN,
            Peer::Wall | Peer::Native | Peer::NativeBinary | Peer::Headwater => "pgoutput",
        }
    }
}

/// Longest drain that is waited for.
const PATIENCE: Duration = Duration::from_secs(900);

/// One drain to be measured.
pub struct Drain<'a> {
    pub bench: &'a Bench,
    /// The source's database, and the stem of the destination's.
    pub item: String,
    pub base: Base,
    pub slot: String,
    /// Where the backlog ends.
    pub end_lsn: String,
    /// Another session holds a snapshot open at the destination.
    pub old_snapshot: bool,
    /// What the tables hold at the source.
    pub expected: &'a [String],
}

impl Drain<'_> {
    pub async fn run(&self, peer: Peer) -> Measured {
        match peer {
            Peer::Wall => self.wall().await,
            Peer::Native | Peer::NativeBinary | Peer::Pglogical | Peer::Headwater => self.copy(peer).await,
        }
    }

    async fn wall(&self) -> Measured {
        let bench = self.bench;
        let source = bench.open(&bench.source, &self.item).await;
        source.batch("a checkpoint", "CHECKPOINT").await.unwrap();
        let mut command = Command::new(bench.bin.join("pg_recvlogical"));
        command.args(["--start", "--no-loop", "-f", "/dev/null", "-F", "0", "-S", &self.slot, "-E", &self.end_lsn]);
        command.args([
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=bench",
            "-o",
            "messages=true",
            "-o",
            "binary=true",
        ]);
        command.args(["-d", &self.item, "-h"]).arg(bench.source.dir()).args(["-p", &bench.source.port().to_string()]);
        command.args(["-U", "postgres"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        let client = Cpu::of(child.id());
        let sender = Cpu::of(sender(&source, &self.slot).await);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "pg_recvlogical does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert!(status.success(), "pg_recvlogical: {status}");
        Measured {
            seconds: began.elapsed().as_secs_f64(),
            sender_cpu: sender.seconds(),
            client_cpu: client.seconds(),
            ..Measured::default()
        }
    }

    async fn copy(&self, peer: Peer) -> Measured {
        let bench = self.bench;
        let run = Copy::new(bench, &self.item, self.base, &self.slot).await;
        let destination = bench.open(&bench.destination, &run.database).await;
        let source = bench.open(&bench.source, &self.item).await;
        let prewarm = "SELECT count(public.pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i', 't')";
        destination.script("warming up", prewarm).await.unwrap();
        destination.batch("a checkpoint", "CHECKPOINT").await.unwrap();
        let reader = bench.open(&bench.destination, &run.database).await;
        if self.old_snapshot {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM public.marker";
            reader.script("an old snapshot", begin).await.unwrap();
        }
        if peer == Peer::Pglogical {
            let own = connection(&bench.destination, &run.database);
            destination.script("a subscriber", &pglogical::subscriber(&own)).await.unwrap();
        }
        let wal_before = value(&destination, "SELECT pg_current_wal_insert_lsn()::text").await;
        let began = Instant::now();
        let running = run.start(peer, &destination).await;
        let sender = Cpu::of(sender(&source, &self.slot).await);
        let writer = Cpu::of(running.writer(&destination).await);
        let client = running.process_id().map(Cpu::of);
        // A second session comes and goes with a large transaction.
        let mut ahead: Option<Cpu> = None;
        let ahead_of = "SELECT pid FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name ~ ' (ahead|parallel apply)$'";
        // Looking takes its share of the two cores.
        for turn in 0_u32.. {
            if ahead.is_none() && turn.is_multiple_of(8) {
                let row = destination.query_opt("a session that applies ahead", ahead_of, &[]).await.unwrap();
                ahead = row.and_then(|row| u32::try_from(row.get::<i32>(0).expect("an answer")).ok()).map(Cpu::of);
            }
            if destination.query_opt("the marker", "SELECT id FROM public.marker", &[]).await.unwrap().is_some() {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{} does not drain {}", peer.key(), self.item);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        let mut measured = Measured {
            seconds,
            sender_cpu: sender.seconds(),
            writer_cpu: writer.seconds() + ahead.map_or(0.0, Cpu::seconds),
            client_cpu: client.map_or(0.0, Cpu::seconds),
            resident_megabytes: running.process_id().map_or(0, resident_max_megabytes),
            ..Measured::default()
        };
        let wal =
            format!("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{wal_before}')::bigint / 1048576.0::float8");
        measured.wal_megabytes = destination.query_one("WAL", &wal, &[]).await.unwrap().get(0).expect("an answer");
        drop(reader);
        let found = content(&destination, self.base).await;
        if found != self.expected {
            measured.unequal = Some(format!("expected {:?}, found {found:?}", self.expected));
        }
        if peer == Peer::Headwater && run.was_copied(&destination).await {
            measured.unequal = Some("the tables were copied again instead".to_owned());
        }
        running.stop(&destination).await;
        drop(destination);
        run.remove().await;
        measured
    }
}

/// The process id of the walsender that serves a slot.
async fn sender(source: &SqlClient, slot: &str) -> u32 {
    let sql = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let began = Instant::now();
    loop {
        let row = source.query_one("the walsender", &sql, &[]).await.unwrap();
        if let Some(id) = row.get::<Option<i32>>(0).expect("an answer").and_then(|id| u32::try_from(id).ok()) {
            return id;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "nobody uses slot {slot}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a question has an answer.
async fn until(client: &SqlClient, what: &'static str, sql: &str) {
    let began = Instant::now();
    while client.query_opt(what, sql, &[]).await.unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A fresh copy of the destination's base, with a slot that waits for it.
pub struct Copy<'a> {
    bench: &'a Bench,
    pub database: String,
    source_database: String,
    base: Base,
    slot: String,
    /// Where the backlog begins.
    from: String,
}

impl<'a> Copy<'a> {
    pub async fn new(bench: &'a Bench, source_database: &str, base: Base, slot: &str) -> Copy<'a> {
        let database = format!("run_{slot}");
        let create = format!("CREATE DATABASE {database} TEMPLATE {} STRATEGY file_copy", base.name());
        bench.sql(&bench.destination, "postgres", &create).await;
        let source = bench.open(&bench.source, source_database).await;
        let sql = format!("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let from = value(&source, &sql).await;
        // The copy was made from the base's own slot, source database and publication; its bookkeeping gets the name of the
        // slot that it continues from, and forgets what tells these databases apart.
        let adopt = format!(
            "UPDATE headwater.stream SET slot = '{slot}', source_database = '{source_database}', consistent_point = '{from}';
             UPDATE headwater.position SET position = '{from}';
             UPDATE headwater.tables SET snapshot_position = '{from}'"
        );
        bench.sql(&bench.destination, &database, &adopt).await;
        let destination = bench.open(&bench.destination, &database).await;
        for (table, column) in [("stream", "source_database_id"), ("shapes", "fingerprint")] {
            // An older program, by BENCH_HEADWATER, may not have the column yet.
            let sql = format!(
                "SELECT FROM pg_attribute WHERE attrelid = 'headwater.{table}'::regclass AND attname = '{column}' AND NOT attisdropped"
            );
            if destination.query_opt("a column", &sql, &[]).await.unwrap().is_some() {
                let forget = format!("UPDATE headwater.{table} SET {column} = NULL");
                destination.script("forgetting", &forget).await.unwrap();
            }
        }
        let source_database = source_database.to_owned();
        Copy { bench, database, source_database, base, slot: slot.to_owned(), from }
    }

    pub async fn start(&self, peer: Peer, destination: &SqlClient) -> Running {
        assert!(peer != Peer::Wall, "{} has no copy", peer.key());
        let bench = self.bench;
        if peer == Peer::Headwater {
            let log = bench.dir.join(format!("{}.log", self.slot));
            let (from, to) = (bench.source.url(&self.source_database), bench.destination.url(&self.database));
            return Running::Headwater(start_headwater(bench, (&from, &to), self.base, &self.slot, &log));
        }
        let from = connection(&bench.source, &self.source_database);
        if peer == Peer::Pglogical {
            let subscribe = pglogical::subscription(&self.slot, &from);
            destination.script("a subscription", &subscribe).await.unwrap();
            return Running::Pglogical(self.slot.clone());
        }
        let binary = peer == Peer::NativeBinary;
        let create = format!(
            "CREATE SUBSCRIPTION {slot} CONNECTION '{from}' PUBLICATION bench
             WITH (slot_name = '{slot}', create_slot = false, enabled = false, copy_data = false, binary = {binary})",
            slot = self.slot
        );
        destination.script("a subscription", &create).await.unwrap();
        destination.script("enabling it", &format!("ALTER SUBSCRIPTION {} ENABLE", self.slot)).await.unwrap();
        Running::Native(self.slot.clone())
    }

    /// Whether headwater has copied a table: then no figure is of a drain.
    async fn was_copied(&self, destination: &SqlClient) -> bool {
        let sql = format!(
            "SELECT FROM headwater.tables WHERE state <> 'live' OR snapshot_position <> '{}' LIMIT 1",
            self.from
        );
        destination.query_opt("copied tables", &sql, &[]).await.unwrap().is_some()
    }

    pub async fn remove(self) {
        self.bench.drop_database(&self.bench.destination, &self.database).await;
    }
}

/// How a server reaches another's database.
pub fn connection(cluster: &Cluster, database: &str) -> String {
    format!("host={} port={} user=postgres dbname={database}", cluster.dir().display(), cluster.port())
}

/// A peer at work.
pub enum Running {
    Native(String),
    Pglogical(String),
    Headwater(Child),
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Running::Headwater(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    fn process_id(&self) -> Option<u32> {
        match self {
            Running::Headwater(child) => Some(child.id()),
            Running::Native(_) | Running::Pglogical(_) => None,
        }
    }

    /// The server process that writes: the apply worker, or the writing session's backend.
    async fn writer(&self, destination: &SqlClient) -> u32 {
        let sql = match self {
            Running::Native(name) => format!("SELECT pid FROM pg_stat_subscription WHERE subname = '{name}'"),
            Running::Pglogical(_) => "SELECT max(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name LIKE 'pglogical apply%'"
                .to_owned(),
            Running::Headwater(_) => "SELECT max(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name LIKE '%writing'"
                .to_owned(),
        };
        let began = Instant::now();
        loop {
            let row = destination.query_opt("the writer", &sql, &[]).await.unwrap();
            let id =
                row.and_then(|row| row.get::<Option<i32>>(0).expect("an answer")).and_then(|id| u32::try_from(id).ok());
            if let Some(id) = id {
                return id;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "nobody writes");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn stop(mut self, destination: &SqlClient) {
        match &mut self {
            Running::Native(name) => {
                for sql in [
                    format!("ALTER SUBSCRIPTION {name} DISABLE"),
                    format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"),
                    format!("DROP SUBSCRIPTION {name}"),
                ] {
                    destination.script("ending the subscription", &sql).await.unwrap();
                }
            }
            Running::Pglogical(slot) => {
                destination.script("ending the subscription", pglogical::STOP).await.unwrap();
                until(destination, "the end of pglogical's workers", pglogical::IS_GONE).await;
                let origin = format!("SELECT pg_catalog.pg_replication_origin_drop('{slot}')");
                destination.script("its origin", &origin).await.unwrap();
                destination.script("removing pglogical", pglogical::REMOVE).await.unwrap();
            }
            Running::Headwater(child) => stop_headwater(child),
        }
    }
}

fn stop_headwater(child: &mut Child) {
    let _ = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
    let status = child.wait().unwrap();
    assert!(status.success(), "headwater ended with {status}");
}

fn start_headwater(bench: &Bench, (from, to): (&str, &str), base: Base, slot: &str, log: &Path) -> Child {
    let config = bench.dir.join(format!("{slot}.toml"));
    let text = format!(
        "tables = {:?}\n[source]\nurl = {from:?}\nslot = {slot:?}\npublication = \"bench\"\n[destination]\nurl = {to:?}\n\
         [http]\nlisten = \"off\"\n",
        base.tables()
    );
    fs::write(&config, text).unwrap();
    let output = fs::File::create(log).unwrap();
    let program = std::env::var_os("BENCH_HEADWATER").unwrap_or_else(|| env!("CARGO_BIN_EXE_headwater").into());
    let mut command = match std::env::var("BENCH_WRAPPER") {
        // For profiles: `perf record -g -o file --`.
        Ok(wrapper) => {
            let mut words = wrapper.split_whitespace();
            let mut command = Command::new(words.next().unwrap());
            command.args(words).arg(program);
            command
        }
        Err(_) => Command::new(program),
    };
    command.arg("run").arg("--config").arg(&config).stdin(Stdio::null());
    command.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap()
}

/// Lets headwater make the destination's base by its own snapshot.
pub async fn copy_base(bench: &Bench, base: Base) {
    let slot = format!("base_{}", base.name());
    let (from, to) = (bench.source.url(base.name()), bench.destination.url(base.name()));
    let log = bench.dir.join(format!("{slot}.log"));
    let mut child = start_headwater(bench, (&from, &to), base, &slot, &log);
    let source = bench.open(&bench.source, base.name()).await;
    let began = Instant::now();
    loop {
        // It streams once the copy is published.
        let sql = "SELECT FROM pg_stat_replication WHERE state IN ('streaming', 'catchup')";
        if source.query_opt("the stream", sql, &[]).await.unwrap().is_some() {
            break;
        }
        let ended = child.try_wait().unwrap();
        let late = began.elapsed() > PATIENCE;
        assert!(ended.is_none() && !late, "no copy:\n{}", fs::read_to_string(&log).unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop_headwater(&mut child);
    let drop = format!("SELECT pg_catalog.pg_drop_replication_slot('{slot}')");
    source.script("dropping a slot", &drop).await.unwrap();
}
