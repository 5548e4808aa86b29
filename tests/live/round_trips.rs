//! What headwater asks of servers that are far away, with few tables and with many: nothing about each table waits for an answer of its own.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::support::proxy::{Mode, Proxy};
use crate::support::{Database, Setup, destination, eventually, major, source};

/// Each way. Long enough that everything that is sent without waiting for answers leaves before the first of them.
const DELAY: Mode = Mode::Delayed(10);

/// Round trips that may come with thirty more tables without one of them being a table's own: statements go in groups.
const MARGIN: u64 = 24;

/// What is asked again and again for as long as a step lasts by a session that asks for other things, too, in a second.
const REPEATED_BESIDE: u64 = 4;

/// What looks at the servers again and again, for as long as anything lasts.
const REPEATED: &[&str] = &["monitor", "fences", "asking", "streaming", "sequences"];

/// A link to each end, over which round trips are counted.
struct Links {
    source: Proxy,
    destination: Proxy,
}

impl Links {
    async fn open() -> Links {
        let links = Links {
            source: Proxy::to(source().await.port()).await,
            destination: Proxy::to(destination().await.port()).await,
        };
        links.source.set(DELAY);
        links.destination.set(DELAY);
        links
    }

    /// The round trips since this was asked last, at both ends, by what the sessions were for.
    fn take(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for (end, proxy) in [("source", &self.source), ("destination", &self.destination)] {
            for (application, count) in proxy.take_round_trips() {
                if !REPEATED.iter().any(|purpose| application.ends_with(purpose)) {
                    let purpose = application.rsplit(' ').next().unwrap_or_default();
                    *counts.entry(format!("{end}: {purpose}")).or_default() += count;
                }
            }
        }
        counts
    }
}

/// What a step takes.
struct Taken {
    step: &'static str,
    round_trips: BTreeMap<String, u64>,
    seconds: u64,
}

/// What each step takes with so many tables.
async fn measured(tables: u32) -> Vec<Taken> {
    let names: Vec<String> = (0..tables).map(|number| format!("public.t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let schema: String = (0..tables)
        .map(|number| {
            format!(
                "CREATE TABLE t{number} (id int PRIMARY KEY, v int); CREATE INDEX ON t{number} (v); \
                 INSERT INTO t{number} SELECT i, i FROM generate_series(1, 10) i;"
            )
        })
        .collect();
    let database = Database::new("roundtrips", &names, &schema).await;
    let links = Links::open().await;
    let mut setup = Setup::of(&database).source("heartbeat_every = \"off\"");
    setup.source_url = links.source.in_place_of(&setup.source_url);
    setup.destination_url = links.destination.in_place_of(&setup.destination_url);
    let mut steps = Vec::new();
    let mut began = Instant::now();
    let mut ends = |step| {
        let seconds = std::mem::replace(&mut began, Instant::now()).elapsed().as_secs();
        steps.push(Taken { step, round_trips: links.take(), seconds });
    };
    let service = setup.start();
    service.streams().await;
    ends("first copy");
    service.stop().await;
    ends("stop");
    let service = setup.start();
    service.streams().await;
    ends("restart");
    for number in 0..tables {
        database.at_source(&format!("INSERT INTO t{number} VALUES (100, 1)")).await;
    }
    let last = format!("SELECT count(*)::text FROM t{} WHERE id = 100", tables - 1);
    eventually("the last change", || async {
        (database.destination_value(&last).await.as_deref() == Some("1")).then_some(())
    })
    .await;
    ends("first changes");
    let (code, said) = service.command(&["verify"]).await;
    assert_eq!(code, Some(0), "{said}");
    ends("verify");
    let (code, said) = service.command(&["resnapshot"]).await;
    assert_eq!(code, Some(0), "{said}");
    ends("resnapshot");
    service.stop().await;
    steps
}

/// COPY begins and ends for each table at each end; what is applied is not asked about, but comes as it comes.
fn of_each_table(purpose: &str) -> u64 {
    match purpose {
        "source: snapshot" | "destination: staging" => 3,
        "destination: writing" => 2,
        _ => 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn round_trips_do_not_grow_with_the_number_of_tables() {
    let few = measured(10).await;
    let many = measured(40).await;
    let mut grown = Vec::new();
    for (few, many) in few.iter().zip(&many) {
        let step = few.step;
        println!("{step}: {:?} with 10 tables, {:?} with 40", few.round_trips, many.round_trips);
        println!("{step}: {} s with 10 tables, {} with 40", few.seconds, many.seconds);
        let repeated = REPEATED_BESIDE * many.seconds.saturating_sub(few.seconds);
        for (purpose, count) in &many.round_trips {
            let before = few.round_trips.get(purpose).copied().unwrap_or_default();
            if *count > before + MARGIN + repeated + 30 * of_each_table(purpose) {
                grown.push(format!("{step}, {purpose}: {before} with 10 tables, {count} with 40"));
            }
        }
    }
    assert!(grown.is_empty(), "{}", grown.join("\n"));
}

/// The questions about all tables of the set, with the types of their parameters and values for them.
const QUESTIONS: &[(&str, &str, &str, &str)] = &[
    ("describe_tables", include_str!("../../sql/describe_tables.sql"), "text[], text[]", "{schemas}, {names}"),
    ("fingerprints", include_str!("../../sql/fingerprints.sql"), "oid[], text, bool", "{ids}, 'p', false"),
    ("table_marks", include_str!("../../sql/table_marks.sql"), "text[], text[]", "{schemas}, {names}"),
    ("table_pages", include_str!("../../sql/table_pages.sql"), "oid[], oid[], oid[]", "{ids}, {ids}, {ids}"),
    ("table_parts", include_str!("../../sql/table_parts.sql"), "oid[], bool[]", "{ids}, {partitioned}"),
];

/// Rows of one catalog that a step of a plan may read for each table: some of its own, and catalogs as a whole that are small on every
/// server. Those that grow with the tables have more with as many as here.
const READ_OF_EACH: f64 = 700.0;

/// Steps that read more, of a plan as EXPLAIN (ANALYZE) prints it.
fn read_too_much(plan: &[String], tables: f64) -> Vec<String> {
    let number = |text: &str, key: &str| -> Option<f64> {
        let (_, behind) = text.split_once(key)?;
        behind.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?.parse().ok()
    };
    let mut found = Vec::new();
    for (at, line) in plan.iter().enumerate().filter(|(_, line)| line.contains(" Scan") && line.contains(" on pg_")) {
        let (Some(rows), Some(loops)) = (number(line, "actual rows="), number(line, "loops=")) else { continue };
        let details = plan.iter().skip(at + 1).take_while(|line| !line.contains("->"));
        let removed = details.filter_map(|line| number(line, "Rows Removed by Filter: ")).sum::<f64>();
        if (rows + removed) * loops > READ_OF_EACH * tables {
            found.push(format!("{} ({removed} removed)", line.trim()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_question_about_the_tables_reads_a_catalog_once_for_each() {
    const TABLES: u32 = 500;
    let schema: String = (0..TABLES)
        .map(|number| match number % 5 {
            0 => format!(
                "CREATE TABLE t{number} (id int, v int) PARTITION BY RANGE (id); \
                 CREATE TABLE t{number}_a PARTITION OF t{number} FOR VALUES FROM (0) TO (10); \
                 CREATE TABLE t{number}_b PARTITION OF t{number} FOR VALUES FROM (10) TO (20);"
            ),
            1 => format!("CREATE TABLE t{number} (id int PRIMARY KEY, v int REFERENCES t{number}, w text UNIQUE);"),
            _ => format!(
                "CREATE TABLE t{number} (id int PRIMARY KEY, v int CHECK (v > 0)); CREATE INDEX ON t{number} (v);"
            ),
        })
        .collect();
    let database = Database::of_superuser("catalogreads", &[], &schema).await;
    database.at_source("ANALYZE; SET plan_cache_mode = force_generic_plan").await;
    let aggregated = |what: &str| {
        format!(
            "SELECT pg_catalog.array_agg({what})::text FROM pg_catalog.pg_class c \
             WHERE c.relname ~ '^t[0-9]+$' AND c.relkind IN ('r', 'p')"
        )
    };
    let mut values = Vec::new();
    for (name, what) in
        [("ids", "c.oid"), ("partitioned", "c.relkind = 'p'"), ("names", "c.relname"), ("schemas", "'public'::text")]
    {
        let value = database.source_value(&aggregated(what)).await.expect("an array");
        values.push((format!("{{{name}}}"), format!("'{value}'")));
    }
    for (name, question, types, parameters) in QUESTIONS {
        let parameters =
            values.iter().fold((*parameters).to_owned(), |parameters, (name, value)| parameters.replace(name, value));
        database.at_source(&format!("PREPARE {name} ({types}) AS {question}")).await;
        let explain = format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE {name} ({parameters})");
        let rows = database.source.query("explaining", &explain, &[]).await.expect("a plan");
        let plan: Vec<String> = rows.iter().map(|row| row.get::<String>(0).expect("a line")).collect();
        assert!(plan.iter().any(|line| line.contains(" on pg_class")), "{plan:#?}");
        let found = read_too_much(&plan, f64::from(TABLES));
        assert!(found.is_empty(), "{name}: {found:#?}\n{}", plan.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_changes_behind_a_start_cost_no_question_where_no_table_has_changed() {
    let names = ["public.a", "public.b", "public.p"];
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'glad');
        CREATE TABLE a (id int PRIMARY KEY, m mood); INSERT INTO a VALUES (1, 'sad');
        CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b VALUES (1, 'x');
        CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
        INSERT INTO p VALUES (1), (11)";
    let database = Database::new("firstchanges", &names, schema).await;
    let proxy = Proxy::to(source().await.port()).await;
    let mut setup = Setup::of(&database);
    setup.source_url = proxy.in_place_of(&setup.source_url);
    setup.start_streaming(&database).await.stop().await;
    database
        .at_source("INSERT INTO a VALUES (2, 'glad'); INSERT INTO b VALUES (2, 'y'); INSERT INTO p VALUES (2); INSERT INTO p VALUES (12)")
        .await;
    proxy.take_round_trips();
    let service = setup.start_streaming(&database).await;
    let asked = |counts: BTreeMap<String, u64>| counts.keys().any(|application| application.ends_with("describing"));
    assert!(!asked(proxy.take_round_trips()), "what was written before the start");
    database.assert_equal().await;
    service.stop().await;

    // What changes between the start and the first change is found by it, and what has not changed is not asked about by itself.
    let service = setup.start_streaming(&database).await;
    database.at_source("ALTER TYPE mood ADD VALUE 'mad'").await;
    database.at_source("INSERT INTO a VALUES (3, 'mad')").await;
    database.at_source("ALTER TABLE b ADD COLUMN w int NOT NULL DEFAULT 5; INSERT INTO b VALUES (3, 'z', 6)").await;
    database.at_source("INSERT INTO p VALUES (3); INSERT INTO p VALUES (13)").await;
    database.caught_up().await;
    assert!(asked(proxy.take_round_trips()), "what was written behind it");
    database.assert_catches_up().await;
    service.assert_not_copied();
    service.stop().await;
}

/// Each is followed where the stream describes the table next.
const FOLLOWED: &[&str] = &[
    "ALTER TABLE a ADD COLUMN w int",
    "ALTER TABLE a ALTER COLUMN w SET DEFAULT nextval('numbers')",
    "ALTER SEQUENCE numbers OWNED BY a.w",
    "ALTER SEQUENCE numbers OWNED BY NONE",
    "ALTER TABLE a ALTER COLUMN w DROP DEFAULT",
    "ALTER TABLE a ALTER COLUMN w SET NOT NULL",
    "ALTER TABLE a ALTER COLUMN w DROP NOT NULL",
    "ALTER TABLE a RENAME COLUMN w TO x",
    "ALTER TABLE a ALTER COLUMN x TYPE bigint",
    "ALTER TABLE a ADD UNIQUE (x)",
    "ALTER TABLE a ADD CONSTRAINT positive CHECK (x > 0)",
    "ALTER TABLE a DROP CONSTRAINT positive",
    "ALTER TABLE a DROP COLUMN x",
    "ALTER TYPE mood ADD VALUE 'mad'",
    "ALTER TYPE mood RENAME VALUE 'mad' TO 'angry'",
    "ALTER TABLE a REPLICA IDENTITY FULL",
    "ALTER TABLE a ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY",
    "TRUNCATE a",
    "ALTER TABLE a RENAME TO b",
    "ALTER TABLE b SET SCHEMA other",
];

/// The same on 18 and later.
const FOLLOWED_ON_18: &[&str] =
    &["ALTER TABLE other.b ADD CONSTRAINT given NOT NULL m NOT VALID", "ALTER TABLE other.b VALIDATE CONSTRAINT given"];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_followed_where_a_table_is_described_next_changes_its_digest() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE SCHEMA other; CREATE SEQUENCE numbers;
        CREATE TABLE a (id int PRIMARY KEY, m mood)";
    let database = Database::of_superuser("digests", &[], schema).await;
    let id = database.source_value("SELECT 'a'::regclass::oid::text").await.expect("a table");
    let fingerprints = include_str!("../../sql/fingerprints.sql");
    database.at_source(&format!("PREPARE fingerprints (oid[], text, bool) AS {fingerprints}")).await;
    let digest = async || {
        let rows =
            database.source.query("a digest", &format!("EXECUTE fingerprints ('{{{id}}}', 'p', false)"), &[]).await;
        rows.expect("a digest").first().expect("a row").get::<String>(1).expect("a digest")
    };
    let mut last = digest().await;
    let on_18 = if major("SOURCE") >= 18 { FOLLOWED_ON_18 } else { &[] };
    for statement in FOLLOWED.iter().chain(on_18) {
        database.at_source(statement).await;
        let now = digest().await;
        assert_ne!(now, last, "{statement}");
        last = now;
    }
}
