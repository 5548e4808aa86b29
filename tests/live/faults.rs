//! The sweep: every fault that we can make, drawn by chance, under a random workload; after each, both sides are equal.
//!
//! ```text
//! two writers ──▶ source ══ proxy ══ headwater, now and then two ══ proxy ══ destination ◀── a reader of every state
//!                   ▲                       ▲                                 ▲
//!                   └──────────────── the scheduler ──────────────────────────┘
//! ```
//!
//! The source's schema changes, too: one table's columns, types, unique indexes and labels are followed with the rows.
//!
//! `SOAK_SECONDS` says how long (40 by default, `make soak` 1800), `HEADWATER_SEED` which faults in which order. Every
//! transaction counts itself, writes its number down and moves money between two tables, so that the reader knows a state
//! that the source was never in when it sees one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use headwater::commands::demo::{Cluster, StopMode};
use headwater::session::SqlClient;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use crate::support::database::connect;
use crate::support::proxy::{Mode, Proxy};
use crate::support::suspension::{all_live, an_hour_passes};
use crate::support::{
    Database, Script, Service, Setup, eventually, let_pass, new_destination, new_source, seed, shifting, workload,
};

const SCHEMA: &str = "
    CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL);
    CREATE TABLE journal (n bigint PRIMARY KEY, writer int);
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE reserves (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE bulk (id int PRIMARY KEY, writer int, text text);
    INSERT INTO counter VALUES (1, 0);
    INSERT INTO accounts SELECT i, 1000 FROM generate_series(1, 50) i;
    INSERT INTO reserves SELECT i, 1000 FROM generate_series(1, 50) i;";

const SUM: i64 = 100_000;

/// One transaction of the workload, with its number, its entry and its transfer.
fn transaction(rng: &mut Rng, writer: u32) -> String {
    let script = workload::transaction(rng);
    let Some(script) = script.strip_suffix("COMMIT") else { return script };
    let more = match rng.u32(..80) {
        0 | 1 => format!(
            "INSERT INTO bulk SELECT i, {writer}, md5(i::text) FROM generate_series(1, {}) i ON CONFLICT (id) DO UPDATE SET \
             writer = EXCLUDED.writer, text = md5(bulk.text); ",
            rng.u32(1..10_000)
        ),
        2 | 3 => "DELETE FROM bulk WHERE id % 3 = 0; ".to_owned(),
        4 | 5 => "UPDATE messages SET score = score + 1; ".to_owned(),
        6 => format!("SELECT shift({}); ", rng.i32(0..)),
        7 => format!("SELECT touch({}), shift({}); SELECT touch({}); ", rng.i32(0..), rng.i32(0..), rng.i32(0..)),
        8..20 => format!("SELECT touch({}); ", rng.i32(0..)),
        _ => String::new(),
    };
    let (from, to, amount) = (rng.u32(1..=50), rng.u32(1..=50), rng.i32(-50..50));
    // The counter's lock comes last: it makes the commit order the counting order.
    format!(
        "{script}{more}UPDATE accounts SET balance = balance - {amount} WHERE id = {from}; \
         UPDATE reserves SET balance = balance + {amount} WHERE id = {to}; UPDATE counter SET n = n + 1; \
         INSERT INTO journal SELECT n, {writer} FROM counter; COMMIT"
    )
}

/// How many transactions were answered, and how many of them changed a schema.
type Counts = (Arc<AtomicU64>, Arc<AtomicU64>);

/// Writes until it is aborted, also across the source's crashes; `gate` holds it between transactions.
async fn write(url: String, gate: Arc<RwLock<()>>, (committed, shifted): Counts, seed: u64, writer: u32) {
    let mut rng = Rng::with_seed(seed);
    let mut client: Option<SqlClient> = None;
    loop {
        let _open = gate.read().await;
        let Some(session) = &client else {
            client = connect(&url).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let script = transaction(&mut rng, writer);
        match session.script("a random transaction", &script).await {
            Ok(()) => {
                let commits = script.ends_with("COMMIT");
                committed.fetch_add(u64::from(commits), Ordering::Relaxed);
                shifted.fetch_add(u64::from(commits && script.contains("shift(")), Ordering::Relaxed);
            }
            Err(error) if error.server().is_some_and(|error| !error.fatal) => {
                let _ = session.batch("rolling back", "ROLLBACK").await;
            }
            Err(_) => client = None,
        }
    }
}

/// Reads the destination's states until it is aborted; panics at one that the source was never in.
async fn read(url: String, states: Arc<AtomicU64>) {
    let sql =
        "SELECT (SELECT n FROM counter), (SELECT count(*) FROM journal), (SELECT COALESCE(max(n), 0) FROM journal),
                      ((SELECT sum(balance) FROM accounts) + (SELECT sum(balance) FROM reserves))::bigint";
    loop {
        let Some(client) = connect(&url).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // A crash may take the destination back to an earlier state, and ends this session.
        let mut highest = -1;
        while let Ok(row) = client.query_one("reading a state", sql, &[]).await {
            let (counted, journal, newest, sum): (Option<i64>, i64, i64, Option<i64>) =
                (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap(), row.get(3).unwrap());
            let counted = counted.expect("the counter is there");
            assert_eq!((journal, newest, sum), (counted, counted, Some(SUM)), "a state that the source was never in");
            assert!(counted >= highest, "the destination went back from {highest} to {counted}");
            highest = counted;
            states.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Everything that a fault can be made with.
struct Sweep {
    source: Cluster,
    destination: Cluster,
    database: Database,
    to_source: Proxy,
    to_destination: Proxy,
    setup: Setup,
    service: Service,
    rng: Rng,
}

const FAULTS: u32 = 19;

impl Sweep {
    async fn pause(&mut self, millis: std::ops::Range<u64>) {
        let_pass(self.rng.u64(millis)).await;
    }

    /// Makes one fault and undoes it where it does not undo itself; its name.
    async fn fault(&mut self, kind: u32) -> &'static str {
        match kind {
            0 => {
                self.service.kill();
                self.pause(0..500).await;
                self.service = self.setup.start();
                "headwater killed"
            }
            1 => {
                let service = std::mem::replace(&mut self.service, self.setup.start());
                service.stop().await;
                "headwater stopped, the next one there already"
            }
            2 => {
                self.service.signal("STOP");
                self.pause(100..9000).await;
                self.service.signal("CONT");
                "headwater frozen"
            }
            3 => {
                let mut leader = self.with_a_standby().await;
                leader.kill();
                "leader killed, standby takes over"
            }
            4 => {
                let mut leader = self.with_a_standby().await;
                leader.signal("STOP");
                self.pause(4000..9000).await;
                leader.signal("CONT");
                leader.kill();
                "leader frozen, standby takes over"
            }
            5 => {
                self.source.stop(StopMode::Immediate).await.unwrap();
                self.pause(0..1500).await;
                self.source.start().await.unwrap();
                "source crashed"
            }
            6 => {
                self.destination.stop(StopMode::Immediate).await.unwrap();
                self.pause(0..1500).await;
                self.destination.start().await.unwrap();
                "destination crashed"
            }
            7 => {
                let mode = StopMode::Immediate;
                let (there, here) = tokio::join!(self.source.stop(mode), self.destination.stop(mode));
                there.and(here).unwrap();
                let (there, here) = tokio::join!(self.source.start(), self.destination.start());
                there.and(here).unwrap();
                "both crashed at once"
            }
            8 => {
                self.source.stop(StopMode::Fast).await.unwrap();
                self.source.start().await.unwrap();
                "source restarted"
            }
            9 => {
                self.destination.stop(StopMode::Fast).await.unwrap();
                self.destination.start().await.unwrap();
                "destination restarted"
            }
            10 => self.link(Mode::Cut, 0..1500, "link cut").await,
            11 => self.link(Mode::Stalled, 100..7000, "link stalled").await,
            12 => {
                let millis = self.rng.u64(1..40);
                self.link(Mode::Delayed(millis), 200..3000, "link slow").await
            }
            13 => self.link(Mode::HalfClosed, 0..1500, "link half-closed").await,
            14 => {
                let name = &self.database.name;
                let sql = format!(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{name}' AND active_pid > 0"
                );
                self.at_source(&sql).await;
                "walsender terminated"
            }
            15 => {
                let (session, told) =
                    if self.rng.bool() { ("writing", "writer terminated") } else { ("leading", "lock taken away") };
                let sql = format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%{session}'"
                );
                self.at_destination(&sql).await;
                told
            }
            16 => {
                self.at_destination(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%writing';
                     VACUUM FULL headwater.position",
                )
                .await;
                "writer's statement cancelled, position rewritten"
            }
            17 => {
                // Readers that lock rows and tables in an order of their own, DDL among them.
                let millis = self.rng.u64(100..4000);
                let locks = format!(
                    "BEGIN; SELECT FROM messages WHERE id < 500 FOR UPDATE; SELECT pg_sleep({}); SELECT FROM pairs FOR UPDATE; \
                     LOCK TABLE topics IN ACCESS EXCLUSIVE MODE; ROLLBACK; CREATE INDEX later ON messages (topic_id); DROP INDEX later",
                    millis as f64 / 1000.0
                );
                self.at_destination(&locks).await;
                "local locks, deadlocks and DDL"
            }
            _ => {
                self.at_source("CHECKPOINT").await;
                self.at_destination("CHECKPOINT; VACUUM FULL messages; REINDEX TABLE pairs").await;
                "checkpoints and rewrites"
            }
        }
    }

    /// Starts another instance; afterwards the service is the one that stands by. Which one leads a fault just before
    /// may have changed.
    async fn with_a_standby(&mut self) -> Service {
        let next = self.setup.start();
        let next_stands_by = eventually("one of two instances stands by", || async {
            let (old, new) = (self.service.status().await?, next.status().await?);
            (new["state"] == "standby").then_some(true).or((old["state"] == "standby").then_some(false))
        })
        .await;
        if next_stands_by { std::mem::replace(&mut self.service, next) } else { next }
    }

    async fn link(&mut self, mode: Mode, millis: std::ops::Range<u64>, name: &'static str) -> &'static str {
        let which = self.rng.u32(..3);
        let proxies = [(which != 1).then_some(&self.to_source), (which != 0).then_some(&self.to_destination)];
        proxies.iter().flatten().for_each(|proxy| proxy.set(mode));
        let_pass(self.rng.u64(millis)).await;
        proxies.iter().flatten().for_each(|proxy| proxy.set(Mode::Open));
        name
    }

    /// Its own failure (a deadlock, a lock timeout) is a part of the fault.
    async fn at_source(&self, sql: &str) {
        if let Some(client) = connect(&self.database.source_url).await {
            let _ = client.script("a fault", sql).await;
        }
    }

    async fn at_destination(&self, sql: &str) {
        if let Some(client) = connect(&self.database.destination_url).await {
            for statement in sql.split(';').filter(|statement| !statement.trim().is_empty()) {
                let _ = client.script("a fault", statement).await;
            }
        }
    }

    /// Nothing is written now: both sides become equal, and what was confirmed is here.
    async fn check(&mut self) {
        self.database.reconnect_source(&self.source).await;
        self.database.reconnect_destination(&self.destination).await;
        let slot = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'",
            self.database.name
        );
        let confirmed = self.database.source_value(&slot).await.expect("the slot is there");
        let position = format!("SELECT (position >= '{confirmed}')::text FROM headwater.position");
        let held = self.database.destination_value(&position).await;
        assert_eq!(held.as_deref(), Some("true"), "confirmed {confirmed} is not at the destination");
        shifting::describe(&self.database).await;
        self.database.caught_up().await;
        an_hour_passes(&self.database).await;
        all_live(&self.database).await;
        shifting::tidy(&self.database).await;
        self.database.assert_catches_up().await;
    }
}

fn settings(database: &Database, to_source: &Proxy, to_destination: &Proxy) -> Setup {
    let mut setup = Setup::of(database)
        .source("timeout = \"4s\"")
        .destination("timeout = \"5s\"\nlock_timeout = \"2s\"")
        .setting("leader_timeout = \"2s\"")
        .section("[apply]\nbatch_bytes_max = \"512kB\"");
    setup.source_url = to_source.in_place_of(&setup.source_url);
    setup.destination_url = to_destination.in_place_of(&setup.destination_url);
    setup.quiet()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_in_whatever_order_both_sides_are_equal_again() {
    let seed = seed("whatever_fails_in_whatever_order");
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let lasts = Duration::from_secs(seconds);
    // A walwriter that sleeps makes unflushed commits, which a crash loses.
    let (source, destination) = (new_source(&[]).await, new_destination(&[("wal_writer_delay", "2s")]).await);
    let tables: Vec<&str> = workload::TABLES
        .iter()
        .copied()
        .chain(["counter", "journal", "accounts", "reserves", "bulk", shifting::TABLE])
        .collect();
    let schema = format!("{}{SCHEMA}{}", workload::SCHEMA, shifting::SCHEMA);
    let database = Database::on(&source, &destination, "sweep", &tables, &schema).await;
    let (to_source, to_destination) = (Proxy::to(source.port()).await, Proxy::to(destination.port()).await);
    let setup = settings(&database, &to_source, &to_destination);
    let service = setup.start();
    service.streams().await;

    let (gate, committed, states) =
        (Arc::new(RwLock::new(())), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let shifted = Arc::new(AtomicU64::new(0));
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    for writer in 0..2 {
        let (url, gate) = (database.source_url.clone(), Arc::clone(&gate));
        let counts = (Arc::clone(&committed), Arc::clone(&shifted));
        tasks.push(tokio::spawn(write(url, gate, counts, seed + u64::from(writer), writer)));
    }
    tasks.push(tokio::spawn(read(database.destination_url.clone(), Arc::clone(&states))));

    let rng = Rng::with_seed(seed);
    let mut sweep = Sweep { source, destination, database, to_source, to_destination, setup, service, rng };
    let (mut faults, mut rounds) = (BTreeMap::<&str, u32>::new(), 0_u32);
    // Each fault comes before any comes again.
    let mut deck: Vec<u32> = Vec::new();
    let began = Instant::now();
    while began.elapsed() < lasts {
        for _ in 0..sweep.rng.u32(1..3) {
            if deck.is_empty() {
                deck = (0..FAULTS).collect();
                sweep.rng.shuffle(&mut deck);
            }
            sweep.pause(50..800).await;
            let kind = deck.pop().unwrap_or_default();
            let began = Instant::now();
            let name = sweep.fault(kind).await;
            println!("{:6} ms  {name}", began.elapsed().as_millis());
            *faults.entry(name).or_default() += 1;
        }
        let closed = gate.write().await;
        let checking = Instant::now();
        sweep.check().await;
        drop(closed);
        println!("{:6} ms  until both sides are equal", checking.elapsed().as_millis());
        rounds += 1;
        if let Some(at) = tasks.iter().position(JoinHandle::is_finished) {
            tasks.swap_remove(at).await.expect("writers and reader go on to the end");
        }
    }
    let closed = gate.write().await;
    sweep.check().await;
    let count = "SELECT n::text FROM counter";
    let (there, here) = (sweep.database.source_value(count).await, sweep.database.destination_value(count).await);
    drop(closed);
    assert_eq!(there, here);
    // A commit whose answer a crash took away counts there, not here.
    let (counted, known) = (there.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0), committed.load(Ordering::Relaxed));
    println!("seed {seed}: {} faults in {rounds} rounds of {:?}", faults.values().sum::<u32>(), began.elapsed());
    println!(
        "{counted} transactions counted by the source, {known} answered, {} with schema changes; {} states read, 0 torn",
        shifted.load(Ordering::Relaxed),
        states.load(Ordering::Relaxed)
    );
    println!("{counted} transactions counted by the destination: 0 lost, 0 doubled");
    for (name, times) in &faults {
        println!("{times:5} {name}");
    }
    assert!(counted >= known && states.load(Ordering::Relaxed) > 0);
    tasks.iter().for_each(JoinHandle::abort);
    sweep.service.streams().await;
    sweep.service.stop().await;
}
