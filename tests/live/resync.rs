//! Every way to make a table equal to the source again, drawn by chance, while it is written to and read; then compared exactly.
//!
//! ```text
//! two writers ──▶ source ══ headwater, killed now and then ══ destination ◀── a reader of every state
//!                   ▲           ▲                                 ▲
//!                   └───────────┴──── one way a round, drift ─────┘
//! ```
//!
//! Ways: the first copy into tables with rows, a table that is added (full, empty or missing at the destination), a table that is
//! suspended, `resnapshot` of all or some tables, `run --resnapshot`, a lost slot, `verify --repair`. After each round the writers
//! wait, everything is applied, and every followed table is compared.
//!
//! Rows come in pairs whose numbers add up to zero, in every source transaction and in the drift, too; so a reader of the destination
//! knows a partial state of a table when it sees one. `HEADWATER_SEED` says which rounds are made, `ROUNDS` how many, and `LANES` in how
//! many databases at a time, since a round waits most of the time (`make soak-resync`); without it as many as fit into 30 seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use headwater::session::SqlClient;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use crate::support::database::connect;
use crate::support::suspension::{all_live, an_hour_passes};
use crate::support::{Database, Script, Service, Setup, eventually, seed};

/// Always followed: each transaction counts itself and writes its number down.
const COUNTED: &[&str] = &["counter", "journal"];

/// What is made equal again. All but `bag` have a key.
const TABLES: &[&str] = &["plain", "whole", "indexed", "moods", "toasted", "parted", "bag"];

const SCHEMA: &str = "
    CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL); INSERT INTO counter VALUES (1, 0);
    CREATE TABLE journal (n bigint PRIMARY KEY);
    CREATE TABLE plain (id int PRIMARY KEY, n bigint, v text);
    CREATE TABLE whole (id int PRIMARY KEY, n bigint, v text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE indexed (id int PRIMARY KEY, n bigint, v text, k serial UNIQUE);
    ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_k_key;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TABLE moods (id int PRIMARY KEY, n bigint, v text, m mood NOT NULL DEFAULT 'ok');
    CREATE TABLE toasted (id int PRIMARY KEY, n bigint, v text, large text NOT NULL DEFAULT repeat('large', 1000));
    ALTER TABLE toasted ALTER COLUMN large SET STORAGE EXTERNAL;
    CREATE TABLE parted (id int PRIMARY KEY, n bigint, v text) PARTITION BY RANGE (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (300);
    CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (300) TO (MAXVALUE);
    CREATE TABLE bag (g int, n bigint, v text); ALTER TABLE bag REPLICA IDENTITY FULL;
    DO $$ DECLARE t text; BEGIN
        FOREACH t IN ARRAY ARRAY['plain', 'whole', 'indexed', 'moods', 'toasted', 'parted'] LOOP
            EXECUTE format('INSERT INTO %I (id, n, v) SELECT 2 * p + s, (1 - 2 * s) * p, md5(p::text)
                FROM generate_series(1, 300) p, generate_series(0, 1) s', t);
        END LOOP;
    END $$;
    INSERT INTO bag SELECT p % 40, (1 - 2 * s) * p, 'bag' FROM generate_series(1, 100) p, generate_series(0, 1) s;";

/// Pairs of a table lie below this.
const PAIRS: i64 = 500;

/// One change of a table by an application: of whole pairs, also where two writers meet. So what an INSERT finds there it locks: with DO NOTHING
/// the other could delete a pair between its two rows, and the second would be inserted alone.
fn change(rng: &mut Rng, table: &str) -> String {
    let (p, q, some) = (rng.i64(1..PAIRS), rng.i64(1..PAIRS), rng.i64(0..6));
    let (first, last) = (2 * p, 2 * (p + some) + 1);
    let text = format!("md5('{}')", rng.u32(..));
    // Now and then: a table that is truncated all the time is never there long enough to be verified.
    if rng.u32(..1500) == 0 {
        return format!("TRUNCATE {table}");
    }
    if table == "bag" {
        return match rng.u32(..8) {
            0..3 => format!("INSERT INTO bag SELECT {p} % 40, (1 - 2 * s) * {q}, {text} FROM generate_series(0, 1) s"),
            3 => format!("DELETE FROM bag WHERE g = {p} % 40"),
            4..7 => format!("UPDATE bag SET v = {text}, n = -n WHERE g = {p} % 40"),
            _ => format!("UPDATE bag SET g = {q} % 40 WHERE g = {p} % 40"),
        };
    }
    match rng.u32(..200) {
        0..50 => format!(
            "INSERT INTO {table} (id, n, v) SELECT 2 * p + s, (1 - 2 * s) * {q}, {text} \
             FROM generate_series({p}, {p} + {some}) p, generate_series(0, 1) s ON CONFLICT (id) DO UPDATE SET v = excluded.v"
        ),
        50..100 => format!("UPDATE {table} SET n = -n, v = {text} WHERE id BETWEEN {first} AND {last}"),
        100..135 => format!("DELETE FROM {table} WHERE id BETWEEN {first} AND {last}"),
        135..155 => {
            format!("UPDATE {table} SET id = id + 2 * ({q} - {p}) WHERE id BETWEEN 2 * {p} AND 2 * {p} + 1")
        }
        155..170 => format!(
            "UPDATE {table} SET id = -id WHERE id BETWEEN 2 * {p} AND 2 * {p} + 1; \
             UPDATE {table} SET id = id + 2 * ({p} - {q}) WHERE id BETWEEN 2 * {q} AND 2 * {q} + 1; \
             UPDATE {table} SET id = 2 * ({q} - {p}) - id WHERE id BETWEEN -2 * {p} - 1 AND -2 * {p}"
        ),
        _ => match table {
            "indexed" => {
                let rows = format!("(2 * {p}, 2 * {q})");
                format!(
                    "UPDATE indexed SET k = -k WHERE id IN {rows}; \
                     UPDATE indexed a SET k = -b.k FROM indexed b WHERE a.id IN {rows} AND b.id IN {rows} AND a.id <> b.id"
                )
            }
            "moods" => format!("UPDATE moods SET m = 'happy', v = {text} WHERE id BETWEEN {first} AND {last}"),
            "toasted" => {
                format!("UPDATE toasted SET large = repeat({text}, 100) WHERE id BETWEEN {first} AND {last}")
            }
            _ => format!("UPDATE {table} SET v = NULL WHERE id BETWEEN {first} AND {last}"),
        },
    }
}

fn transaction(rng: &mut Rng) -> String {
    let changes = if rng.u32(..30) == 0 { 60 } else { rng.usize(1..6) };
    let changes: Vec<String> = (0..changes)
        .map(|_| {
            let table = TABLES[rng.usize(..TABLES.len())];
            change(rng, table)
        })
        .collect();
    format!(
        "BEGIN; {}; UPDATE counter SET n = n + 1; INSERT INTO journal SELECT n FROM counter; COMMIT",
        changes.join("; ")
    )
}

/// Writes until it is aborted; `gate` holds it between transactions.
async fn write(url: String, gate: Arc<RwLock<()>>, committed: Arc<AtomicU64>, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let session = connect(&url).await.expect("a session");
    loop {
        let _open = gate.read().await;
        match session.script("a random transaction", &transaction(&mut rng)).await {
            Ok(()) => {
                committed.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => session.batch("rolling back", "ROLLBACK").await.expect("the session lives"),
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(5..25))).await;
    }
}

/// The tables that are followed from the beginning.
const FOLLOWED_FIRST: usize = 5;

/// Reads states of the destination until it is aborted; panics at one that the source was never in. Tables that are added
/// later may be missing, so two questions take turns: with them and without.
async fn read(url: String, states: Arc<AtomicU64>) {
    let session = connect(&url).await.expect("a session");
    let questions = [&TABLES[..FOLLOWED_FIRST], TABLES].map(|tables| {
        let sums: Vec<String> = tables.iter().map(|table| format!("(SELECT sum(n) FROM {table})::text")).collect();
        let sql = format!(
            "SELECT (SELECT n FROM counter)::text, (SELECT count(*) FROM journal)::text, (SELECT COALESCE(max(n), 0) FROM journal)::text, {}",
            sums.join(", ")
        );
        (tables, sql)
    });
    for (tables, sql) in questions.iter().cycle() {
        if let Ok(row) = session.query_one("reading a state", sql, &[]).await {
            let counted: Option<String> = row.get(0).unwrap();
            let journal = [1, 2].map(|at| row.get::<Option<String>>(at).unwrap());
            assert_eq!(journal, [counted.clone(), counted], "a state that the source was never in");
            for (table, at) in tables.iter().zip(3..) {
                let sum: Option<String> = row.get(at).unwrap();
                let is_whole = sum.is_none_or(|sum| sum == "0");
                assert!(is_whole, "half of a pair is in table {table}; now: {:?}", halves(&session, table).await);
            }
            states.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// The pairs of a table of which one row is missing or has another number, with the numbers' sum.
async fn halves(session: &SqlClient, table: &str) -> Option<String> {
    let pair = if table == "bag" { "g" } else { "id / 2" };
    let sql = format!(
        "SELECT string_agg(pair || ': ' || sum, ', ') FROM (SELECT {pair} AS pair, sum(n) FROM {table} GROUP BY 1 HAVING sum(n) <> 0) AS halves"
    );
    session.query_one("looking for halves", &sql, &[]).await.expect("an answer").get(0).unwrap()
}

/// Makes a table of the destination differ, pair by pair, in ways that are no conflict for a stream whose rows win.
fn drift(rng: &mut Rng, table: &str) -> String {
    let (some, p) = (rng.u32(2..9), rng.i64(1..PAIRS));
    // Where no pair is moved to.
    let extra = 20_000 + p;
    let mut script = vec![match table {
        "bag" => {
            return format!("DELETE FROM bag WHERE g = {p} % 40; INSERT INTO bag VALUES (41, 1, 'x'), (41, -1, 'x')");
        }
        "indexed" => format!(
            "INSERT INTO indexed (id, n, v, k) SELECT 2 * {extra} + s, 1 - 2 * s, 'extra', -1000000000 - 2 * {extra} - s FROM generate_series(0, 1) s \
             ON CONFLICT DO NOTHING"
        ),
        _ => format!(
            "INSERT INTO {table} (id, n, v) SELECT 2 * {extra} + s, 1 - 2 * s, 'extra' FROM generate_series(0, 1) s \
             ON CONFLICT DO NOTHING"
        ),
    }];
    // Where the source changes one row of a pair, the stream would bring its half of the numbers alone.
    let numbers = if table == "indexed" { "" } else { ", n = -n" };
    script.push(format!("UPDATE {table} SET v = 'drifted'{numbers} WHERE id / 2 % 9 = {some}"));
    if !["indexed", "toasted"].contains(&table) {
        script.push(format!("DELETE FROM {table} WHERE id / 2 % 11 = {some}"));
        script.push(format!("UPDATE {table} SET id = id + 20000 WHERE id BETWEEN 2 * {p} AND 2 * {p} + 1"));
    }
    script.join("; ")
}

/// A way to make tables equal again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    FirstCopy,
    Added,
    Suspended,
    Resnapshot,
    AtStart,
    LostSlot,
    Repair,
}

const WAYS: [Way; 7] =
    [Way::FirstCopy, Way::Added, Way::Suspended, Way::Resnapshot, Way::AtStart, Way::LostSlot, Way::Repair];

struct World {
    database: Database,
    setup: Setup,
    service: Option<Service>,
    /// The tables that are followed, of [`TABLES`].
    followed: Vec<&'static str>,
    rng: Rng,
    /// What the last command line was, for whoever starts it again after a kill.
    argument: Option<String>,
}

impl World {
    fn set_tables(&mut self, followed: Vec<&'static str>) {
        let tables: Vec<String> = COUNTED.iter().chain(&followed).map(|table| (*table).to_owned()).collect();
        self.followed = followed;
        self.setup.tables.clone_from(&tables);
        self.database.tables = tables;
    }

    async fn stop(&mut self) {
        if let Some(service) = self.service.take() {
            service.stop().await;
        }
    }

    fn start(&mut self, argument: Option<String>) {
        let mut setup = self.setup.clone();
        setup.arguments.extend(argument.clone());
        self.argument = argument;
        self.service = Some(setup.start());
    }

    async fn pause(&mut self, millis: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(millis))).await;
    }

    /// Some of the followed tables, at least one.
    fn some(&mut self) -> Vec<&'static str> {
        let mut tables = self.followed.clone();
        self.rng.shuffle(&mut tables);
        let most = tables.len();
        tables.truncate(self.rng.usize(1..=most));
        tables
    }

    async fn drift(&mut self, tables: &[&'static str]) {
        for table in tables {
            let script = drift(&mut self.rng, table);
            let session = connect(&self.database.destination_url).await.expect("a session");
            let script = format!("SET session_replication_role = replica; BEGIN; {script}; COMMIT");
            // A deadlock with apply is no drift.
            if session.script("drifting", &script).await.is_err() {
                println!("        no drift of {table} this time");
            }
        }
    }

    /// Begins a round; returns what waits for its end, beside the tables being live.
    async fn begin(&mut self, way: Way) -> Option<JoinHandle<()>> {
        match way {
            Way::FirstCopy => {
                self.stop().await;
                self.setup.command(&["teardown"]).await.exits(0);
                let mut followed = TABLES.to_vec();
                self.rng.shuffle(&mut followed);
                followed.truncate(self.rng.usize(2..TABLES.len()));
                self.set_tables(followed.clone());
                self.drift(&followed).await;
                self.start(Some("--resnapshot".to_owned()));
            }
            Way::Added => {
                let added = TABLES.iter().find(|table| !self.followed.contains(*table))?;
                self.stop().await;
                let kind = self.rng.u32(..3);
                let (prepare, argument) = match kind {
                    0 => (String::new(), Some(format!("--resnapshot={added}"))),
                    1 => (format!("TRUNCATE {added}"), None),
                    _ => (format!("DROP TABLE {added}"), None),
                };
                let exists = format!("SELECT (to_regclass('{added}') IS NOT NULL)::text");
                if self.database.destination_value(&exists).await.as_deref() == Some("true") {
                    self.database.at_destination(&prepare).await;
                }
                let mut followed = self.followed.clone();
                followed.push(added);
                self.set_tables(followed);
                self.start(argument);
            }
            Way::Suspended => {
                let tables = self.some();
                for table in tables.iter().take(2) {
                    self.database
                        .at_source(&format!(
                            "ALTER TABLE {table} DROP COLUMN IF EXISTS r; ALTER TABLE {table} ADD COLUMN r float8 DEFAULT random()"
                        ))
                        .await;
                    let touch = match *table {
                        "bag" => "INSERT INTO bag VALUES (42, 0, 'touched')".to_owned(),
                        table => format!(
                            "INSERT INTO {table} (id, n, v) VALUES (-1, 0, 'touched') ON CONFLICT (id) DO UPDATE SET v = 'touched'"
                        ),
                    };
                    self.database.at_source(&touch).await;
                }
            }
            Way::Resnapshot => {
                let tables = self.some();
                self.drift(&tables).await;
                let (setup, all) = (self.setup.clone(), self.rng.bool());
                return Some(tokio::spawn(async move {
                    let arguments: Vec<&str> =
                        ["resnapshot"].into_iter().chain(tables.into_iter().filter(|_| !all)).collect();
                    setup.command(&arguments).await.exits(0);
                }));
            }
            Way::AtStart => {
                self.stop().await;
                let tables = self.some();
                self.drift(&tables).await;
                let argument = if self.rng.bool() {
                    "--resnapshot".to_owned()
                } else {
                    format!("--resnapshot={}", tables.join(","))
                };
                self.start(Some(argument));
            }
            Way::LostSlot => {
                self.stop().await;
                self.database.at_source(&format!("SELECT pg_drop_replication_slot('{}')", self.database.name)).await;
                let tables = self.some();
                self.drift(&tables).await;
                // A table that was truncated meanwhile lacks most of its rows: only the operator's word publishes such a copy.
                self.start(Some("--resnapshot".to_owned()));
            }
            Way::Repair => {
                let tables: Vec<_> = self.some().into_iter().filter(|table| *table != "bag").collect();
                self.drift(&tables).await;
                let setup = self.setup.clone();
                return Some(tokio::spawn(async move {
                    // A drift in which a TRUNCATE has its part is mended by a copy: what stands still is compared again.
                    loop {
                        let verified = setup.command(&["verify", "--repair"]).await;
                        if !verified.out.contains("is suspended until it is copied again") {
                            verified.exits(0);
                            break;
                        }
                    }
                }));
            }
        }
        None
    }

    /// Makes one round, and compares; whether the service was killed in it.
    async fn round(&mut self, way: Way, gate: &RwLock<()>) -> bool {
        let waiting = self.begin(way).await;
        // A repair that is interrupted says so and is done again by hand; all other ways continue by themselves.
        let killed = way != Way::Repair && self.rng.u32(..5) == 0;
        if killed {
            self.pause(0..1500).await;
            self.service.as_mut().expect("a service").kill();
            let argument = self.argument.clone();
            self.start(argument);
        }
        self.pause(100..1000).await;
        if let Some(waiting) = waiting {
            waiting.await.expect("the command succeeds");
        }
        let _closed = gate.write().await;
        self.check().await;
        killed
    }

    /// Nothing is written now: every table becomes live, and equal.
    async fn check(&mut self) {
        let service = self.service.as_ref().expect("a service");
        eventually("a position is stored and the service streams", || async {
            (service.status().await?["state"] == "streaming").then_some(())
        })
        .await;
        self.database.caught_up_when_there().await;
        an_hour_passes(&self.database).await;
        all_live(&self.database).await;
        self.database.caught_up().await;
        for table in &self.database.tables {
            assert_same(&self.database, table).await;
        }
        for table in &self.followed {
            let halves = halves(&self.database.source, table).await;
            assert_eq!(halves, None, "the writers made half a pair of table {table}, so no reader can tell");
        }
    }
}

/// Compares a table in the columns that the source has: those that were dropped there stay at the destination.
async fn assert_same(database: &Database, table: &str) {
    let columns = format!(
        "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped"
    );
    let columns = database.source_value(&columns).await.expect("columns");
    let sql = format!("SELECT ROW({columns})::text FROM {table} ORDER BY 1");
    let mut sides: Vec<Vec<String>> = Vec::new();
    for client in [&database.source, &database.destination] {
        let rows = client.query("reading a table", &sql, &[]).await.expect("rows");
        sides.push(rows.iter().map(|row| row.get(0).unwrap()).collect());
    }
    if sides[0] != sides[1] {
        let sets: Vec<BTreeSet<&String>> = sides.iter().map(|rows| rows.iter().collect()).collect();
        let short = |row: &&&String| row.chars().take(120).collect::<String>();
        let missing: Vec<String> = sets[0].difference(&sets[1]).take(10).map(|row| short(&row)).collect();
        let extra: Vec<String> = sets[1].difference(&sets[0]).take(10).map(|row| short(&row)).collect();
        panic!(
            "table {table} differs: {} rows at the source, {} here\nmissing: {missing:#?}\nextra: {extra:#?}",
            sides[0].len(),
            sides[1].len()
        );
    }
}

/// What a lane did.
#[derive(Default)]
struct Tally {
    rounds: u32,
    kills: u32,
    transactions: u64,
    states: u64,
    ways: BTreeMap<Way, u32>,
}

/// Makes this many rounds in databases of its own, or as many as fit into 30 seconds.
async fn lane(lane: u64, seed: u64, rounds: Option<u32>) -> Tally {
    let lasts = Duration::from_secs(30);
    let database = Database::of_superuser("resync", &[], SCHEMA).await;
    let setup = Setup::of(&database)
        .quiet()
        .setting("on_conflict = \"source-wins\"\non_slot_lost = \"resnapshot\"\nleader_timeout = \"2s\"")
        .section("[apply]\nbatch_bytes_max = \"256kB\"");
    let mut world =
        World { database, setup, service: None, followed: Vec::new(), rng: Rng::with_seed(seed), argument: None };
    world.set_tables(TABLES.iter().take(FOLLOWED_FIRST).copied().collect());
    world.start(None);
    world.service.as_ref().expect("a service").streams().await;

    let gate = Arc::new(RwLock::new(()));
    let (committed, states) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    for writer in 0..2 {
        let url = world.database.source_url.clone();
        tasks.push(tokio::spawn(write(url, Arc::clone(&gate), Arc::clone(&committed), seed + writer)));
    }
    tasks.push(tokio::spawn(read(world.database.destination_url.clone(), Arc::clone(&states))));

    let mut tally = Tally::default();
    let mut deck: Vec<Way> = Vec::new();
    let began = Instant::now();
    while rounds.map_or_else(|| began.elapsed() < lasts, |rounds| tally.rounds < rounds) {
        if deck.is_empty() {
            deck = WAYS.to_vec();
            world.rng.shuffle(&mut deck);
        }
        let way = deck.pop().expect("a way");
        let round_began = Instant::now();
        let killed = world.round(way, &gate).await;
        println!(
            "{lane}.{:<4} {way:?}{} {} ms",
            tally.rounds,
            if killed { ", killed:" } else { ":" },
            round_began.elapsed().as_millis()
        );
        if round_began.elapsed() > Duration::from_secs(30) {
            let log = world.service.as_ref().map(Service::log).unwrap_or_default();
            println!(
                "---- why it took so long\n{}",
                log.lines().filter(|line| !line.contains("DEBUG")).collect::<Vec<_>>().join("\n")
            );
        }
        tally.rounds += 1;
        if tally.rounds % 10 == 0 {
            // As autovacuum would: the reader reads whole tables.
            world.database.at_source("VACUUM").await;
            world.database.at_destination("VACUUM").await;
        }
        tally.kills += u32::from(killed);
        *tally.ways.entry(way).or_default() += 1;
        if let Some(at) = tasks.iter().position(JoinHandle::is_finished) {
            tasks.swap_remove(at).await.expect("writers and reader go on to the end");
        }
    }
    tasks.iter().for_each(JoinHandle::abort);
    world.stop().await;
    Tally { transactions: committed.load(Ordering::Relaxed), states: states.load(Ordering::Relaxed), ..tally }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_a_resync_ends_equal_and_shows_nothing_partial() {
    let seed = seed("every_way_of_a_resync");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let (rounds, lanes) = (number("ROUNDS"), number("LANES").unwrap_or(1));
    let began = Instant::now();
    let share = rounds.map(|rounds| rounds.div_ceil(lanes));
    let each = (0..u64::from(lanes)).map(|number| tokio::spawn(lane(number, seed + number * 1000, share)));
    let mut total = Tally::default();
    for lane in futures_util::future::join_all(each).await {
        let lane = lane.expect("a lane ends as it should");
        assert!(lane.states > 0 && lane.transactions > 0);
        total.rounds += lane.rounds;
        total.kills += lane.kills;
        total.transactions += lane.transactions;
        total.states += lane.states;
        lane.ways.into_iter().for_each(|(way, rounds)| *total.ways.entry(way).or_default() += rounds);
    }
    let Tally { rounds, kills, transactions, states, ways } = total;
    println!(
        "seed {seed}: {rounds} rounds in {:?}, {kills} kills, {transactions} transactions, {states} states read, 0 partial: {ways:?}",
        began.elapsed()
    );
}
