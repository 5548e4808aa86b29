//! Who copies, and by which command.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headwater::session::{SessionError, SqlClient};

use super::Bench;
use super::load::drift;
use super::measure::{Cpu, Figure, children_cpu};

/// One way to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// CREATE SUBSCRIPTION, as it comes.
    Native,
    /// The same with binary = true, which the first copy heeds since 16.
    NativeBinary,
    /// `pgcopydb clone` with so many jobs.
    Pgcopydb(u32),
    /// psql into psql, in one transaction.
    Limit,
    /// headwater, tables missing.
    Headwater,
    /// headwater, tables there with their indexes, empty.
    HeadwaterFill,
    /// `headwater resnapshot` of what is equal already, while the stream runs.
    HeadwaterAgain,
    /// The same where one row in a hundred has drifted, while the source is written and the destination is read.
    HeadwaterDrift,
}

/// Tables, with keys; without secondary indexes and foreign keys.
const TABLES: &str = "
    CREATE TABLE sections (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE topics (id int PRIMARY KEY, section_id int NOT NULL, author int NOT NULL, title text NOT NULL, created_at timestamptz NOT NULL);
    CREATE TABLE messages (id bigint PRIMARY KEY, topic_id int NOT NULL, author int NOT NULL, created_at timestamptz NOT NULL, body text NOT NULL);";

const BARE: &str = "
    CREATE TABLE sections (id int NOT NULL, name text NOT NULL);
    CREATE TABLE topics (id int NOT NULL, section_id int NOT NULL, author int NOT NULL, title text NOT NULL, created_at timestamptz NOT NULL);
    CREATE TABLE messages (id bigint NOT NULL, topic_id int NOT NULL, author int NOT NULL, created_at timestamptz NOT NULL, body text NOT NULL);";

const KEYS: &str = "
    ALTER TABLE sections ADD PRIMARY KEY (id); ALTER TABLE topics ADD PRIMARY KEY (id); ALTER TABLE messages ADD PRIMARY KEY (id);";

const INDEXES: &str = "
    CREATE INDEX ON topics (section_id, created_at);
    CREATE INDEX ON messages (topic_id, created_at);
    CREATE INDEX ON messages (author);
    ALTER TABLE topics ADD FOREIGN KEY (section_id) REFERENCES sections;
    ALTER TABLE messages ADD FOREIGN KEY (topic_id) REFERENCES topics;";

/// How long one copy may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);

impl Peer {
    /// All, in the order in which they take turns.
    pub fn all() -> Vec<Peer> {
        let mut peers = vec![Peer::Native, Peer::NativeBinary];
        if Command::new("pgcopydb").arg("--version").output().is_ok() {
            peers.extend([1, 2, 4].map(Peer::Pgcopydb));
        }
        peers.extend([Peer::Limit, Peer::Headwater, Peer::HeadwaterFill, Peer::HeadwaterAgain]);
        peers.push(Peer::HeadwaterDrift);
        peers
    }

    pub fn name(self) -> String {
        match self {
            Peer::Native => "CREATE SUBSCRIPTION".to_owned(),
            Peer::NativeBinary => "CREATE SUBSCRIPTION, binary".to_owned(),
            Peer::Pgcopydb(jobs) => format!("pgcopydb, {jobs} jobs"),
            Peer::Limit => "the limit".to_owned(),
            Peer::Headwater => "headwater".to_owned(),
            Peer::HeadwaterFill => "headwater, tables there".to_owned(),
            Peer::HeadwaterAgain => "headwater, equal data again".to_owned(),
            Peer::HeadwaterDrift => "headwater, 1 % drift under load".to_owned(),
        }
    }
}

pub(super) async fn run(client: &SqlClient, sql: &str) {
    if let Err(error) = client.script("a statement of the benchmark", sql).await {
        panic!("{error} in {sql}");
    }
}

pub(super) async fn value(client: &SqlClient, sql: &str) -> Option<String> {
    client.query_opt("a question of the benchmark", sql, &[]).await.ok()??.get(0).ok()?
}

async fn until(client: &SqlClient, sql: &str) {
    let began = Instant::now();
    while value(client, sql).await.as_deref() != Some("true") {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {sql}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Bench {
    pub(super) async fn client(&self, source: bool, database: &str) -> SqlClient {
        let cluster = if source { &self.source } else { &self.destination };
        let client = cluster.connect(database).await.unwrap().with_timeout(PATIENCE);
        run(&client, "SET search_path = public").await;
        client
    }

    pub async fn make_forum(&self) {
        run(&self.client(true, "postgres").await, "CREATE DATABASE forum").await;
        let source = self.client(true, "forum").await;
        let (messages, topics) = (self.messages, 20_000.min(self.messages / 10 + 1));
        let rows = format!(
            "INSERT INTO sections SELECT i, 'section ' || i FROM generate_series(1, 20) AS i;
             INSERT INTO topics SELECT i, 1 + i % 20, (random() * 50000)::int, md5(i::text), now() - i * interval '1 minute'
             FROM generate_series(1, {topics}) AS i;
             INSERT INTO messages SELECT i, 1 + (random() * ({topics} - 1))::int, (random() * 50000)::int,
                 '2020-01-01'::timestamptz + i * interval '1 minute', repeat(md5(i::text), 7 + i % 5) FROM generate_series(1, {messages}) AS i;"
        );
        for sql in [TABLES, &rows, INDEXES, "CREATE PUBLICATION native FOR ALL TABLES"] {
            run(&source, sql).await;
        }
        for sql in ["VACUUM ANALYZE sections", "VACUUM ANALYZE topics", "VACUUM ANALYZE messages", "CHECKPOINT"] {
            run(&source, sql).await;
        }
    }

    fn cpu(&self) -> Cpu {
        Cpu::of(&[self.source.process_id(), self.destination.process_id()])
    }

    /// One copy into a fresh database.
    pub async fn copy(&self, peer: Peer, round: usize) -> Option<Figure> {
        let database = format!("copy_{round}_{}", fastrand::u32(..));
        let admin = self.client(false, "postgres").await;
        run(&admin, &format!("CREATE DATABASE {database}")).await;
        let destination = self.client(false, &database).await;
        let source = self.client(true, "forum").await;
        match peer {
            Peer::Native | Peer::NativeBinary | Peer::HeadwaterFill => {
                run(&destination, TABLES).await;
                run(&destination, INDEXES).await;
            }
            Peer::Pgcopydb(_) | Peer::Limit | Peer::Headwater | Peer::HeadwaterAgain | Peer::HeadwaterDrift => {}
        }
        run(&admin, "CHECKPOINT").await;
        run(&source, "CHECKPOINT").await;
        let figure = match peer {
            Peer::Native | Peer::NativeBinary => self.native(peer, &destination, &database).await,
            Peer::Pgcopydb(jobs) => self.command(&destination, &mut self.pgcopydb(jobs, &database)).await,
            Peer::Limit => self.command(&destination, &mut self.limit(&database)).await,
            Peer::Headwater | Peer::HeadwaterFill | Peer::HeadwaterAgain | Peer::HeadwaterDrift => {
                self.headwater(peer, &destination, &source, &database).await
            }
        };
        let rows = value(&destination, "SELECT count(*)::text FROM messages").await;
        assert_eq!(rows, Some(self.messages.to_string()), "{} has copied all", peer.name());
        drop(destination);
        run(&admin, &format!("DROP DATABASE {database} WITH (FORCE)")).await;
        Some(figure)
    }

    async fn native(&self, peer: Peer, destination: &SqlClient, database: &str) -> Figure {
        let binary = if peer == Peer::NativeBinary { ", binary = true" } else { "" };
        let create = format!(
            "CREATE SUBSCRIPTION {database} CONNECTION '{}' PUBLICATION native WITH (slot_name = '{database}'{binary})",
            self.source.url("forum").replace('\'', "''")
        );
        let (cpu, wal, began) = (self.cpu(), wal(destination).await, Instant::now());
        run(destination, &create).await;
        let ready = "SELECT (count(*) = 3 AND bool_and(srsubstate = 'r'))::text FROM pg_subscription_rel";
        until(destination, ready).await;
        let seconds = began.elapsed().as_secs_f64();
        let figure = Figure::new(seconds, self.cpu().since(&cpu), self.wal_since(destination, &wal).await);
        run(destination, &format!("DROP SUBSCRIPTION {database}")).await;
        figure
    }

    fn pgcopydb(&self, jobs: u32, database: &str) -> Command {
        let mut command = Command::new("pgcopydb");
        let (jobs, dir) = (jobs.to_string(), self.dir.join(format!("pgcopydb-{database}")));
        command.args(["clone", "--no-owner", "--no-acl", "--table-jobs", &jobs, "--index-jobs", &jobs]);
        command.arg("--dir").arg(dir);
        command.arg("--source").arg(self.source.url("forum")).arg("--target").arg(self.destination.url(database));
        command
    }

    fn limit(&self, database: &str) -> Command {
        let psql = self.bin.join("psql");
        let copies: Vec<String> = ["sections", "topics", "messages"]
            .iter()
            .map(|table| {
                let from = format!(
                    "{} -X -q -d \"{}\" -c \"COPY {table} TO STDOUT (FORMAT binary)\"",
                    psql.display(),
                    self.source.url("forum")
                );
                format!("\\copy {table} FROM PROGRAM '{}' WITH (FORMAT binary)", from.replace('\'', "''"))
            })
            .collect();
        let script = self.dir.join(format!("{database}.sql"));
        let text = format!("BEGIN;\n{BARE}\n{}\n{KEYS}\n{INDEXES}\nCOMMIT;\n", copies.join("\n"));
        std::fs::write(&script, text).unwrap();
        let mut command = Command::new(psql);
        command
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.destination.url(database))
            .arg("-f")
            .arg(script);
        command
    }

    /// A command that copies and ends.
    async fn command(&self, destination: &SqlClient, command: &mut Command) -> Figure {
        let (cpu, own, wal, began) = (self.cpu(), children_cpu(), wal(destination).await, Instant::now());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let seconds = began.elapsed().as_secs_f64();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let cpu = self.cpu().since(&cpu) + (children_cpu() - own);
        Figure::new(seconds, cpu, self.wal_since(destination, &wal).await)
    }

    fn headwater_command(&self, arguments: &[&str], database: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
        command
            .args(arguments)
            .env("HEADWATER_SOURCE_URL", self.source.url("forum"))
            .env("HEADWATER_SOURCE_SLOT", database)
            .env("HEADWATER_SOURCE_PUBLICATION", "native")
            .env("HEADWATER_DESTINATION_URL", self.destination.url(database))
            .env("HEADWATER_TABLES", "sections,topics,messages")
            .env("HEADWATER_HTTP_LISTEN", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(self.dir.join(format!("{database}.log")))
                    .unwrap(),
            );
        command
    }

    async fn headwater(&self, peer: Peer, destination: &SqlClient, source: &SqlClient, database: &str) -> Figure {
        let arguments: &[&str] = &["run"];
        let live = "SELECT (to_regclass('headwater.stream') IS NOT NULL)::text";
        let published = "SELECT (state = 'live')::text FROM headwater.stream";
        let (mut cpu, mut before, mut began) = (self.cpu(), wal(destination).await, Instant::now());
        let mut service = Running(self.headwater_command(arguments, database).spawn().unwrap());
        until(destination, live).await;
        until(destination, published).await;
        let (mut own, mut under_load) = (0.0, None);
        if matches!(peer, Peer::HeadwaterAgain | Peer::HeadwaterDrift) {
            if peer == Peer::HeadwaterDrift {
                run(destination, &drift(self.messages)).await;
            }
            // Whatever the first copy leaves to be done is done.
            run(destination, "CHECKPOINT").await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let load = if peer == Peer::HeadwaterDrift { Some(self.begin_load(database).await) } else { None };
            (cpu, before, began) = (self.cpu(), wal(destination).await, Instant::now());
            own = service.cpu();
            let mut asking = Running(self.headwater_command(&["resnapshot"], database).spawn().unwrap());
            loop {
                if let Some(status) = asking.0.try_wait().unwrap() {
                    assert!(status.success(), "{}", self.log(database));
                    break;
                }
                assert!(began.elapsed() < PATIENCE, "{}", self.log(database));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if let Some(load) = load {
                under_load = Some(load.end(&self.log(database)).await);
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let cpu = self.cpu().since(&cpu) + service.cpu() - own;
        let mut figure = Figure::new(seconds, cpu, self.wal_since(destination, &before).await);
        figure.resident_bytes = service.resident_max_bytes();
        figure.under_load = under_load;
        if under_load.is_some() {
            self.assert_becomes_equal(source, destination).await;
        }
        service.stop();
        let drop_slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{database}' AND NOT active"
        );
        let gone =
            format!("SELECT (count(*) = 0)::text FROM pg_replication_slots WHERE slot_name = '{database}' AND active");
        until(source, &gone).await;
        run(source, &drop_slot).await;
        figure
    }

    fn log(&self, database: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{database}.log"))).unwrap_or_default()
    }

    async fn wal_since(&self, destination: &SqlClient, before: &str) -> u64 {
        let sql = format!("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{before}')::bigint::text");
        value(destination, &sql).await.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
    }
}

async fn wal(destination: &SqlClient) -> String {
    value(destination, "SELECT pg_current_wal_insert_lsn()::text").await.unwrap()
}

/// A process of ours; dropping it kills it.
struct Running(Child);

impl Running {
    fn cpu(&self) -> f64 {
        super::measure::process_cpu(self.0.id())
    }

    fn resident_max_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

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
