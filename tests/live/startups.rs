//! `check` is a promise: whatever servers, roles, schemas and the configuration are like, a start does what check has said.
//!
//! Each draw makes a pair of databases with up to three peculiarities out of a list, and settings that its roles and databases have;
//! one of five has a server of its own that is set up oddly. A check without a failure before a service that does not come to stream is
//! a defect, and so is a failure before one that streams. `HEADWATER_SEED` replays a draw; `STARTUP_SECONDS` makes it as many as fit
//! (`make fuzz-startup`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::{StreamExt, stream};

use crate::support::roles::{Roles, reader, writer};
use crate::support::{Database, Script, Setup, destination, eventually, new_destination, new_source, seed, source};
use headwater::commands::demo::Cluster;

const TABLES: &[&str] = &["sections", "topics", "messages"];

const SCHEMA: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN short AS varchar(20) CHECK (VALUE <> '');
    CREATE TABLE sections (id int PRIMARY KEY, name text NOT NULL, m mood DEFAULT 'ok');
    CREATE TABLE topics (id int PRIMARY KEY, section int NOT NULL REFERENCES sections, title short, n numeric(10,2));
    CREATE TABLE messages (id bigint PRIMARY KEY, topic int REFERENCES topics, body text, at timestamptz DEFAULT now(),
        length int GENERATED ALWAYS AS (topic * 2) STORED);
    INSERT INTO sections SELECT i, 's' || i, 'sad' FROM generate_series(1, 5) i;
    INSERT INTO topics SELECT i, 1 + i % 5, 't', i FROM generate_series(1, 20) i;
    INSERT INTO messages (id, topic, body) SELECT i, 1 + i % 20, 'b' FROM generate_series(1, 100) i;";

/// The destination's tables as an operator may have prepared them.
const PREPARED: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN short AS varchar(20) CHECK (VALUE <> '');
    CREATE TABLE sections (id int PRIMARY KEY, name text NOT NULL, m mood DEFAULT 'ok');
    CREATE TABLE topics (id int PRIMARY KEY, section int NOT NULL REFERENCES sections, title short, n numeric(10,2));
    CREATE TABLE messages (id bigint PRIMARY KEY, topic int REFERENCES topics, body text, at timestamptz DEFAULT now(),
        length int GENERATED ALWAYS AS (topic * 2) STORED);";

/// What is done at one end. `{db}`, `{reader}` and `{writer}` stand for the database and headwater's roles.
#[derive(Clone, Copy)]
enum Peculiar {
    Source(&'static str),
    /// Where the destination has the tables already.
    Prepared(&'static str),
    Destination(&'static str),
    /// A line before the first section.
    Setting(&'static str),
    SourceSetting(&'static str),
    DestinationSetting(&'static str),
    Tables(&'static [&'static str]),
}

use Peculiar::{Destination, DestinationSetting, Prepared, Setting, Source, SourceSetting, Tables};

const PECULIARITIES: &[Peculiar] = &[
    Source("ALTER ROLE {reader} NOREPLICATION"),
    Source("ALTER ROLE {reader} CONNECTION LIMIT 1"),
    Source("ALTER ROLE {reader} CONNECTION LIMIT 2"),
    Source("ALTER ROLE {reader} CONNECTION LIMIT 4"),
    Source("ALTER ROLE {reader} CONNECTION LIMIT 12"),
    Source("ALTER ROLE {reader} SET default_transaction_read_only = on"),
    Source("ALTER ROLE {reader} SET statement_timeout = '5ms'"),
    Source("ALTER ROLE {reader} SET search_path = nowhere"),
    Source("REVOKE ALL ON topics FROM PUBLIC, {reader}"),
    Source("REVOKE USAGE ON SCHEMA public FROM PUBLIC, {reader}"),
    Source("DROP TABLE messages"),
    Source("DROP TABLE messages; CREATE VIEW messages AS SELECT 1 AS id"),
    Source("ALTER TABLE messages SET UNLOGGED"),
    Source("ALTER TABLE messages DROP CONSTRAINT messages_pkey"),
    Source("ALTER TABLE messages DROP CONSTRAINT messages_pkey; ALTER TABLE messages REPLICA IDENTITY FULL"),
    Source("ALTER TABLE messages REPLICA IDENTITY NOTHING"),
    Source("CREATE PUBLICATION {db} FOR TABLE sections, topics, messages"),
    Source("CREATE PUBLICATION {db} FOR TABLE sections, topics"),
    Source("CREATE PUBLICATION {db} FOR ALL TABLES"),
    Source("CREATE PUBLICATION {db} FOR TABLE sections, topics, messages WITH (publish = 'insert')"),
    Source("CREATE PUBLICATION {db} FOR TABLE sections, topics, messages (id, topic)"),
    Source("CREATE PUBLICATION {db} FOR TABLE sections, topics, messages WHERE (id > 5)"),
    Source("CREATE PUBLICATION {db} FOR TABLES IN SCHEMA public"),
    Source("CREATE PUBLICATION {db}"),
    Source("SELECT pg_create_logical_replication_slot('{db}', 'test_decoding')"),
    Source("SELECT pg_create_logical_replication_slot('{db}', 'pgoutput')"),
    Source("SELECT pg_create_physical_replication_slot('{db}')"),
    Source("ALTER TABLE sections ENABLE ROW LEVEL SECURITY; ALTER TABLE sections FORCE ROW LEVEL SECURITY"),
    Source("ALTER TABLE topics ADD COLUMN c citext"),
    Source("ALTER TABLE topics ADD COLUMN p sections; "),
    Source("ALTER TABLE topics ADD COLUMN r regclass DEFAULT 'topics'::regclass"),
    Source("ALTER TYPE mood ADD VALUE 'new' BEFORE 'sad'"),
    Source("ALTER TABLE topics ADD CHECK (n < 10) NOT VALID"),
    Source("ALTER TABLE messages ADD COLUMN extra int GENERATED ALWAYS AS IDENTITY"),
    Source(
        "CREATE COLLATION odd (provider = icu, locale = 'de-u-co-phonebk'); ALTER TABLE topics ADD COLUMN o text COLLATE odd",
    ),
    Source("ALTER TABLE messages ALTER COLUMN topic TYPE bigint USING topic"),
    Source("CREATE INDEX ON messages USING gin (to_tsvector('english', body))"),
    Source("ALTER TABLE sections RENAME TO \"Sections\""),
    Prepared("SELECT 1"),
    Prepared("INSERT INTO sections VALUES (1, 'other', 'ok')"),
    Prepared("ALTER TABLE topics DROP COLUMN title"),
    Prepared("ALTER TABLE topics ALTER COLUMN n TYPE numeric(5,2)"),
    Prepared("ALTER TABLE topics ALTER COLUMN section TYPE bigint"),
    Prepared("ALTER TABLE topics ADD COLUMN local int NOT NULL"),
    Prepared("ALTER TABLE topics ADD COLUMN local int NOT NULL DEFAULT 5"),
    Prepared("ALTER TABLE topics ADD CHECK (n < 10)"),
    Prepared("ALTER TABLE messages ADD UNIQUE (topic)"),
    Prepared("ALTER TABLE messages DROP CONSTRAINT messages_pkey"),
    Prepared("ALTER TABLE messages ALTER COLUMN body SET NOT NULL"),
    Prepared("ALTER TABLE messages SET UNLOGGED"),
    Prepared("ALTER TABLE messages DROP COLUMN length; ALTER TABLE messages ADD COLUMN length int"),
    Prepared("ALTER TABLE messages ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY"),
    Prepared("ALTER TABLE sections ENABLE ROW LEVEL SECURITY; ALTER TABLE sections FORCE ROW LEVEL SECURITY"),
    Prepared("CREATE RULE nothing AS ON INSERT TO messages DO INSTEAD NOTHING"),
    Prepared(
        "CREATE RULE nothing AS ON DELETE TO messages DO INSTEAD NOTHING; ALTER TABLE messages DISABLE RULE nothing",
    ),
    Prepared("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"),
    Prepared("ALTER DOMAIN short ADD CHECK (VALUE <> 't')"),
    Prepared("DROP TABLE messages; CREATE VIEW messages AS SELECT 1 AS id"),
    Prepared(
        "DROP TABLE messages; CREATE TABLE messages (id bigint PRIMARY KEY, topic int, body text, at timestamptz) PARTITION BY RANGE (id)",
    ),
    Prepared(
        "DROP TABLE messages; CREATE TABLE messages (id bigint PRIMARY KEY, topic int, body text, at timestamptz) \
              PARTITION BY RANGE (id); CREATE TABLE messages_1 PARTITION OF messages FOR VALUES FROM (0) TO (50)",
    ),
    Prepared("REVOKE ALL ON topics FROM {writer}; ALTER TABLE topics OWNER TO postgres"),
    Prepared(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'; \
              CREATE TRIGGER t BEFORE INSERT ON topics FOR EACH ROW EXECUTE FUNCTION fail(); \
              ALTER TABLE topics ENABLE ALWAYS TRIGGER t",
    ),
    Prepared(
        "CREATE FUNCTION harmless() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
              CREATE TRIGGER t BEFORE INSERT ON topics FOR EACH ROW EXECUTE FUNCTION harmless()",
    ),
    Prepared("CREATE TABLE local (topic int REFERENCES topics)"),
    Prepared(
        "CREATE TABLE allowed (title text); \
              CREATE FUNCTION known(t text) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN NOT EXISTS (SELECT FROM allowed WHERE title = t); END'; \
              ALTER TABLE topics ADD CHECK (known(title))",
    ),
    Prepared(
        "CREATE TABLE allowed (title text); \
              CREATE FUNCTION known(t text) RETURNS bool LANGUAGE sql VOLATILE AS 'SELECT NOT EXISTS (SELECT FROM allowed WHERE title = $1)'; \
              ALTER TABLE topics ADD CHECK (known(title))",
    ),
    Prepared(
        "CREATE FUNCTION key_of(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN other(t); END'; \
              CREATE FUNCTION other(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1'; \
              CREATE INDEX ON topics (key_of(title))",
    ),
    Destination("REVOKE CREATE ON DATABASE {db} FROM {writer}"),
    Destination("ALTER ROLE {writer} CONNECTION LIMIT 1"),
    Destination("ALTER ROLE {writer} CONNECTION LIMIT 3"),
    Destination("ALTER ROLE {writer} CONNECTION LIMIT 20"),
    Destination("ALTER ROLE {writer} SET default_transaction_read_only = on"),
    Destination("ALTER DATABASE {db} SET default_transaction_read_only = on"),
    Destination("ALTER ROLE {writer} SET search_path = nowhere"),
    Destination("CREATE PUBLICATION everything FOR ALL TABLES"),
    Destination("CREATE SCHEMA headwater"),
    Destination("CREATE SCHEMA headwater AUTHORIZATION {writer}; CREATE TABLE headwater.position (x int)"),
    Destination("CREATE TYPE mood AS ENUM ('sad')"),
    Destination("CREATE TYPE mood AS (a int)"),
    Destination("CREATE DOMAIN short AS varchar(5)"),
    Destination("REVOKE CREATE ON SCHEMA public FROM PUBLIC, {writer}"),
    Destination(
        "CREATE FUNCTION stop() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no DDL here''; END'; \
                 CREATE EVENT TRIGGER stop ON ddl_command_start EXECUTE FUNCTION stop()",
    ),
    Destination("REVOKE CONNECT ON DATABASE {db} FROM PUBLIC, {writer}"),
    Setting("on_conflict = \"source-wins\""),
    Setting("schema_changes = \"stop\""),
    SourceSetting("heartbeat_every = \"off\""),
    SourceSetting("create_publication = false"),
    DestinationSetting("parallel_apply = 4"),
    Tables(&["sections", "topics"]),
    Tables(&["topics", "messages"]),
    Tables(&["sections", "topics", "messages", "mesages"]),
    Tables(&["sections", "public.topics", "messages", "messages"]),
];

/// Settings of sessions, and what they are set to for a role or a database, as SQL.
const SETTINGS: &[(&str, &[&str])] = &[
    ("statement_timeout", &["1", "50", "'10s'"]),
    ("transaction_timeout", &["20", "'2s'"]),
    ("idle_in_transaction_session_timeout", &["10", "'1s'"]),
    ("idle_session_timeout", &["10", "'1s'"]),
    ("lock_timeout", &["1", "'1s'"]),
    ("deadlock_timeout", &["1"]),
    ("default_transaction_read_only", &["on"]),
    ("default_transaction_isolation", &["'serializable'", "'repeatable read'"]),
    ("default_transaction_deferrable", &["on"]),
    ("search_path", &["nowhere", "''", "public, pg_catalog", "pg_temp, public", "\"$user\""]),
    ("quote_all_identifiers", &["on"]),
    ("session_replication_role", &["replica", "local"]),
    ("row_security", &["off"]),
    ("bytea_output", &["escape"]),
    ("DateStyle", &["'SQL, DMY'", "'German'", "'Postgres, YMD'"]),
    ("IntervalStyle", &["sql_standard", "iso_8601", "postgres_verbose"]),
    ("TimeZone", &["'America/New_York'", "'Asia/Kathmandu'"]),
    ("extra_float_digits", &["-15", "0"]),
    ("standard_conforming_strings", &["off"]),
    ("backslash_quote", &["off"]),
    ("escape_string_warning", &["on"]),
    ("client_encoding", &["'LATIN1'", "'SQL_ASCII'"]),
    ("client_min_messages", &["error", "debug1"]),
    ("array_nulls", &["off"]),
    ("xmloption", &["document"]),
    ("xmlbinary", &["hex"]),
    ("transform_null_equals", &["on"]),
    ("check_function_bodies", &["off"]),
    ("enable_seqscan", &["off"]),
    ("enable_indexscan", &["off"]),
    ("enable_tidscan", &["off"]),
    ("enable_hashjoin", &["off"]),
    ("enable_nestloop", &["off"]),
    ("jit_above_cost", &["0"]),
    ("plan_cache_mode", &["force_generic_plan"]),
    ("from_collapse_limit", &["1"]),
    ("work_mem", &["'64kB'"]),
    ("maintenance_work_mem", &["'1MB'"]),
    ("temp_buffers", &["'800kB'"]),
    ("temp_file_limit", &["0"]),
    ("max_stack_depth", &["'100kB'"]),
    ("default_tablespace", &["nowhere"]),
    ("temp_tablespaces", &["nowhere"]),
    ("default_toast_compression", &["pglz"]),
    ("synchronous_commit", &["off", "remote_apply"]),
    ("wal_sender_timeout", &["1", "0"]),
    ("tcp_user_timeout", &["1"]),
    ("track_activities", &["off"]),
    ("log_statement", &["'all'"]),
    ("local_preload_libraries", &["nowhere"]),
    ("session_preload_libraries", &["nowhere"]),
    ("role", &["pg_monitor"]),
    ("application_name", &["'psql'"]),
];

/// What a server is started with.
const SOURCE_SERVERS: &[&[(&str, &str)]] = &[
    &[("wal_level", "replica")],
    &[("wal_level", "minimal"), ("max_wal_senders", "0")],
    &[("max_wal_senders", "0")],
    &[("max_wal_senders", "1")],
    &[("max_wal_senders", "2")],
    &[("max_wal_senders", "4")],
    &[("max_replication_slots", "0")],
    &[("max_replication_slots", "1")],
    &[("max_replication_slots", "2")],
    &[("max_locks_per_transaction", "10")],
    &[("max_locks_per_transaction", "10"), ("max_connections", "14")],
    &[("max_connections", "8")],
    &[("max_connections", "11")],
    &[("max_connections", "16")],
    &[("max_slot_wal_keep_size", "1MB")],
    &[("logical_decoding_work_mem", "64kB")],
    &[("shared_buffers", "128kB")],
    &[("default_transaction_read_only", "on")],
    &[("statement_timeout", "30")],
    &[("track_commit_timestamp", "on")],
];
const DESTINATION_SERVERS: &[&[(&str, &str)]] = &[
    &[("wal_level", "minimal"), ("max_wal_senders", "0")],
    &[("max_replication_slots", "0")],
    &[("max_replication_slots", "1")],
    &[("max_locks_per_transaction", "10")],
    &[("max_locks_per_transaction", "10"), ("max_connections", "14")],
    &[("max_connections", "8")],
    &[("max_connections", "11")],
    &[("max_connections", "16")],
    &[("max_worker_processes", "0")],
    &[("shared_buffers", "128kB")],
    &[("default_transaction_read_only", "on")],
    &[("statement_timeout", "30")],
    &[("full_page_writes", "off")],
];

/// How long a start that check has promised may wait for something before it counts as one that does not come to stream.
const HELD_UP_MAX: Duration = Duration::from_secs(60);
/// How long it may take on a machine that does much else: seen at a load of 30 on two cores were 90 s.
const PROMISED_MAX: Duration = Duration::from_secs(600);
/// How long a start that was refused by check may have to prove the opposite.
const REFUSED_MAX: Duration = Duration::from_secs(8);

/// Warnings that say of a start that it may be held up, by what only an attempt can show. It must not end even then.
const WARNED: &[&str] = &[
    "may refuse rows that the source has",
    "fire for what is applied",
    "fire for what headwater creates: hand_over, stop",
    "creates: stop",
    "has no default partition",
    // Whether names in them lack a schema only shows when they run.
    "indexes, checks or generated columns of table",
    // Whether rows that are not replicated are there.
    "which is not replicated",
    // The owner's publication holds the table: the source's own UPDATE fails whether headwater starts or not.
    "has no replica identity at the source",
];

struct Draw {
    seed: u64,
    /// Servers of its own, until it is judged.
    _servers: Vec<Cluster>,
    database: Database,
    setup: Setup,
    story: Vec<String>,
}

impl Draw {
    async fn make(seed: u64) -> Draw {
        let mut rng = Rng::with_seed(seed);
        let roles = match rng.u32(..3) {
            0 => Roles::Superuser,
            1 => Roles::Least { replica: true },
            _ => Roles::Least { replica: false },
        };
        let mut story = vec![format!("{roles:?}")];
        let mut servers = Vec::new();
        let own = rng.u32(..10);
        if own == 0 {
            let settings = *rng.choice(SOURCE_SERVERS).expect("one");
            story.push(format!("source: {settings:?}"));
            servers.push(new_source(settings).await);
        }
        if own == 1 {
            let settings = *rng.choice(DESTINATION_SERVERS).expect("one");
            story.push(format!("destination: {settings:?}"));
            servers.push(new_destination(settings).await);
        }
        let from = if own == 0 { servers.first().expect("one") } else { source().await };
        let to = if own == 1 { servers.first().expect("one") } else { destination().await };
        let database = Database::under(roles, from, to, "startup", TABLES, "").await;
        let mut chosen: Vec<Peculiar> = Vec::new();
        for _ in 0..rng.usize(..4) {
            chosen.push(*rng.choice(PECULIARITIES).expect("one"));
        }
        let (from, to) = match roles {
            Roles::Superuser => ("postgres".to_owned(), "postgres".to_owned()),
            Roles::Least { .. } => (reader(&database.name), writer(&database.name)),
        };
        let fill = |sql: &str| sql.replace("{db}", &database.name).replace("{reader}", &from).replace("{writer}", &to);
        database.at_source("CREATE EXTENSION citext").await;
        database.at_source(SCHEMA).await;
        if chosen.iter().any(|one| matches!(one, Prepared(_))) {
            database.at_destination(PREPARED).await;
        }
        let mut setup = Setup::of(&database);
        setup.tables = TABLES.iter().map(|table| (*table).to_owned()).collect();
        for one in chosen {
            let (client, sql) = match one {
                Source(sql) => (&database.source, sql),
                Prepared(sql) | Destination(sql) => (&database.destination, sql),
                Setting(line) => {
                    setup = setup.setting(line);
                    story.push(line.to_owned());
                    continue;
                }
                SourceSetting(line) => {
                    setup = setup.source(line);
                    story.push(line.to_owned());
                    continue;
                }
                DestinationSetting(line) => {
                    setup = setup.destination(line);
                    story.push(line.to_owned());
                    continue;
                }
                Tables(tables) => {
                    setup.tables = tables.iter().map(|table| (*table).to_owned()).collect();
                    story.push(format!("tables = {tables:?}"));
                    continue;
                }
            };
            let sql = fill(sql);
            // Of roles of the whole cluster only those of this database are touched.
            if sql.contains("ROLE postgres") || sql.contains("FROM PUBLIC, postgres") {
                continue;
            }
            // What one has taken away another cannot change.
            if client.script("a peculiarity", &sql).await.is_ok() {
                story.push(sql);
            }
        }
        // Alone they seldom keep a start from streaming: where nothing else is peculiar there are more of them.
        for _ in 0..rng.usize(1..4) + if story.len() == 1 { 6 } else { 0 } {
            let (name, values) = rng.choice(SETTINGS).expect("one");
            let value = rng.choice(*values).expect("one");
            let (client, role) = match rng.bool() {
                true => (&database.source, &from),
                false => (&database.destination, &to),
            };
            let whose = match rng.u32(..3) {
                0 if role != "postgres" => format!("ROLE {role}"),
                1 => format!("ROLE {role} IN DATABASE {}", database.name),
                _ => format!("DATABASE {}", database.name),
            };
            let sql = format!("ALTER {whose} SET {name} = {value}");
            // An older server does not know all of them.
            if client.script("a setting", &sql).await.is_ok() {
                let end = if role == &from { "source" } else { "destination" };
                story.push(format!("{end}: {sql}"));
            }
        }
        Draw { seed, _servers: servers, database, setup, story }
    }

    /// What check says against what a start does.
    async fn judge(self) -> Result<&'static str, String> {
        let checked = self.setup.command(&["check"]).await;
        let green = checked.code == Some(0);
        // What may go wrong, or not: a start may do either.
        let warned = WARNED.iter().any(|text| checked.out.contains(text));
        let mut service = self.setup.start();
        let (began, mut held_up, mut ended) = (Instant::now(), None, false);
        let streams = loop {
            let state = service.status().await.and_then(|status| status.get("state")?.as_str().map(str::to_owned));
            if state.as_deref() == Some("streaming") {
                break true;
            }
            if service.has_ended() {
                ended = true;
                break false;
            }
            // What holds a start up is said; one that only has little of a busy machine's time goes on.
            held_up = match state.as_deref() {
                Some("waiting") => held_up.or_else(|| Some(Instant::now())),
                Some(_) | None => None,
            };
            let patience = match (green, held_up) {
                (true, Some(since)) if since.elapsed() > HELD_UP_MAX => break false,
                (true, _) => PROMISED_MAX,
                (false, _) => REFUSED_MAX,
            };
            if began.elapsed() > patience {
                break false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let log = service.log();
        let seed = self.seed;
        if streams && green {
            let name = self.database.name.clone();
            eventually(&format!("{name} is copied"), || async {
                let rows = "SELECT count(*)::text FROM topics";
                let here = self.database.destination.query_opt("counting", rows, &[]).await.ok()??;
                (here.get::<String>(0).unwrap() == "20").then_some(())
            })
            .await;
        }
        drop(service);
        match (green, streams) {
            (true, true) => return Ok("green, streams"),
            (false, false) => return Ok("red, does not stream"),
            (true, false) if warned && !ended => return Ok("green with a warning, held up"),
            (false, true) if warned => return Ok("red with a warning, streams"),
            (_, _) => {}
        }
        let what = if green { "check is green, and a start is not" } else { "check is red, and a start streams" };
        Err(format!(
            "seed {seed}: {what}\n{}\n---- check\n{}{}\n---- log\n{}",
            self.story.join("\n"),
            checked.out,
            checked.err,
            log.lines().filter(|line| !line.contains(" DEBUG ")).take(40).collect::<Vec<_>>().join("\n")
        ))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_what_check_has_said_whatever_is_peculiar() {
    let first = seed("startups");
    let seconds: u64 = std::env::var("STARTUP_SECONDS").map_or(0, |text| text.parse().expect("seconds"));
    let began = Instant::now();
    let mut seeds = Rng::with_seed(first);
    // One draw is replayed by its own seed.
    let more = std::iter::once(first).chain(std::iter::from_fn(|| Some(seeds.u64(..) >> 16)));
    let more = more.enumerate().take_while(|(number, _)| *number < 8 || began.elapsed().as_secs() < seconds);
    let judged = stream::iter(more).map(|(_, seed)| async move { Draw::make(seed).await.judge().await });
    let mut judged = judged.buffer_unordered(3);
    let (mut counts, mut problems) = (BTreeMap::<&str, u32>::new(), Vec::new());
    while let Some(result) = judged.next().await {
        match result {
            Ok(outcome) => *counts.entry(outcome).or_default() += 1,
            Err(problem) => {
                println!("{problem}\n");
                problems.push(problem.lines().take(9).collect::<Vec<_>>().join(" | "));
            }
        }
    }
    println!("{counts:?}");
    assert!(problems.is_empty(), "{} draws failed:\n{}", problems.len(), problems.join("\n"));
}
