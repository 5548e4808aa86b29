//! What verify says is what is true: differences of every kind, number and type are planted, and its words compared with them.

use std::collections::BTreeSet;
use std::sync::Arc;

use fastrand::Rng;
use headwater::comparison::Bounds;
use headwater::config::{Config, Environment, FileText};
use headwater::maintenance::verify::run as verify;
use headwater::verification::verdict::{TableVerdict, VerifyOptions, VerifyProgress};

use crate::support::{Database, Setup, seed};

/// Tables with a key in column `id`, each with a column `v` to tell a differing row by. `big` is for many differences.
const SCHEMA: &str = "
    CREATE TABLE plain (id int PRIMARY KEY, v text);
    CREATE TABLE texts (id text PRIMARY KEY, v text, n numeric);
    CREATE TABLE pairs (id int, part text, v text, PRIMARY KEY (part, id));
    CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
    CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE made (id int PRIMARY KEY, v text, doubled text GENERATED ALWAYS AS (v || v) STORED);
    CREATE TABLE big (id int PRIMARY KEY, v text);
    INSERT INTO plain SELECT i, 'v' FROM generate_series(1, 3000) i;
    INSERT INTO texts SELECT 'key ' || i, 'v', i FROM generate_series(1, 3000) i;
    INSERT INTO pairs SELECT i, 'part ' || i % 3, 'v' FROM generate_series(1, 3000) i;
    INSERT INTO parts SELECT i, 'v' FROM generate_series(1, 3000) i;
    INSERT INTO made SELECT i, 'v' FROM generate_series(1, 3000) i;
    INSERT INTO big SELECT i, 'v' FROM generate_series(1, 110000) i;";

const TABLES: &[&str] = &["plain", "texts", "pairs", "parts", "made", "big"];

/// What was planted in a table, by row numbers.
struct Planted {
    table: &'static str,
    rows: u32,
    missing: BTreeSet<u32>,
    extra: BTreeSet<u32>,
    differing: BTreeSet<u32>,
}

/// How a row of a number is found, and what verify prints of its key.
fn key(table: &str, number: u32) -> String {
    match table {
        "texts" => format!("(id)=(key {number})"),
        "pairs" => format!("(part, id)=(part {}, {number})", number % 3),
        _ => format!("(id)=({number})"),
    }
}

/// So many numbers up to `rows`: scattered, or all in a row.
fn numbers(rng: &mut Rng, rows: u32, count: u32) -> BTreeSet<u32> {
    if rng.bool() {
        let first = rng.u32(1..=rows - count + 1);
        return (first..first + count).collect();
    }
    let mut found = BTreeSet::new();
    while u32::try_from(found.len()).unwrap() < count {
        found.insert(rng.u32(1..=rows));
    }
    found
}

/// Up to so many, small numbers as likely as large ones; now and then none.
fn count(rng: &mut Rng, most: u32) -> u32 {
    if rng.u32(..4) == 0 { 0 } else { rng.u32(1..=most) >> rng.u32(..most.ilog2()) }
}

impl Planted {
    /// Plants up to `most` rows of each kind.
    async fn plant(database: &Database, rng: &mut Rng, table: &'static str, most: u32) -> Planted {
        let rows = if table == "big" { 110_000 } else { 3000 };
        let counts = [count(rng, most), count(rng, most), count(rng, most)];
        let missing = numbers(rng, rows, counts[0]);
        let extra: BTreeSet<u32> = numbers(rng, rows, counts[1]).iter().map(|number| number + 1_000_000).collect();
        let differing = &numbers(rng, rows, counts[2]) - &missing;
        let list = |numbers: &BTreeSet<u32>| {
            let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
            format!("(SELECT unnest('{{{}}}'::int[]))", numbers.join(","))
        };
        let number = if table == "texts" { "substr(id, 5)::int" } else { "id" };
        let insert = match table {
            "texts" => "INSERT INTO texts SELECT 'key ' || x, 'extra', x FROM",
            "pairs" => "INSERT INTO pairs SELECT x, 'part ' || x % 3, 'extra' FROM",
            table => &format!("INSERT INTO {table} (id, v) SELECT x, 'extra' FROM"),
        };
        // Values that are another one, another image of an equal one, or NULL.
        let change = match (table, rng.u32(..3)) {
            ("texts", 0) => "n = n::numeric(12, 3)",
            (_, 1) => "v = NULL",
            _ => "v = v || ' '",
        };
        database
            .at_destination(&format!(
                "SET session_replication_role = replica; DELETE FROM {table} WHERE {number} IN {}; {insert} {} AS e (x);
                 UPDATE {table} SET {change} WHERE {number} IN {}; RESET session_replication_role",
                list(&missing),
                list(&extra),
                list(&differing)
            ))
            .await;
        Planted { table, rows, missing, extra, differing }
    }

    fn total(&self) -> usize {
        self.missing.len() + self.extra.len() + self.differing.len()
    }

    /// What verify says of the table.
    fn line(&self) -> String {
        if self.total() == 0 {
            return format!("table public.{}: equal, {} rows", self.table, self.rows);
        }
        let plural = if self.missing.len() == 1 { "" } else { "s" };
        let here = self.rows as usize - self.missing.len() + self.extra.len();
        format!(
            "table public.{}: {} row{plural} missing, {} extra, {} differing ({} rows at the source, {here} here)",
            self.table,
            self.missing.len(),
            self.extra.len(),
            self.differing.len(),
            self.rows
        )
    }

    /// A line for each key.
    fn keys(&self) -> BTreeSet<String> {
        let line = |what: &'static str| move |number: &u32| format!("  {what:7}  {}", key(self.table, *number));
        let missing = self.missing.iter().map(line("missing"));
        missing.chain(self.extra.iter().map(line("extra"))).chain(self.differing.iter().map(line("differs"))).collect()
    }

    /// What a repair says in the end.
    fn repaired(&self) -> (usize, usize, usize) {
        (self.extra.len(), self.differing.len(), self.missing.len())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_says_just_what_was_planted_and_repair_leaves_nothing() {
    let seed = seed("verify_says_just_what_was_planted");
    let rounds: u32 = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut rng = Rng::with_seed(seed);
    let database = Database::new("truth", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    for round in 0..rounds {
        let mut planted = Vec::new();
        for table in TABLES {
            let most = if *table == "big" { 36_000 } else { 1000 };
            planted.push(Planted::plant(&database, &mut rng, table, most).await);
        }
        let total: usize = planted.iter().map(Planted::total).sum();
        println!("round {round}: {total} differences");
        let finished = setup.command(&["verify", "--limit", "1000000"]).await.exits(i32::from(total > 0));
        let keys: BTreeSet<String> =
            finished.out.lines().filter(|line| line.starts_with("  ")).map(str::to_owned).collect();
        for table in &planted {
            assert!(finished.out.contains(&table.line()), "no {:?} in\n{}", table.line(), head(&finished.out));
        }
        let wanted: BTreeSet<String> = planted.iter().flat_map(Planted::keys).collect();
        let (first, other) = (wanted.difference(&keys).next(), keys.difference(&wanted).next());
        assert_eq!((first, other), (None, None), "planted and not said, said and not planted");
        let repaired = setup.command(&["verify", "--repair", "--limit", "0"]).await.exits(0);
        if total > 0 {
            let (deleted, updated, inserted) =
                planted.iter().map(Planted::repaired).fold((0, 0, 0), |(a, b, c), (d, e, f)| (a + d, b + e, c + f));
            let plural = if deleted == 1 { "" } else { "s" };
            let line = format!("repaired: {deleted} row{plural} deleted, {updated} updated, {inserted} inserted");
            repaired.says(&[&line, "equal after the repair: both sides compared at"]);
        }
        database.assert_equal().await;
        setup.command(&["verify"]).await.exits(0).says(&["equal: both sides compared at"]);
    }
    service.stop().await;
}

fn head(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("  ")).collect::<Vec<_>>().join("\n")
}

/// A column of every kind of value that is easily taken for an equal one, as the source has it and as the destination does.
const VALUES: &[(&str, &str, &str)] = &[
    ("bool", "true", "false"),
    ("int", "1", "NULL"),
    ("numeric", "1.0", "1.00"),
    ("numeric", "'NaN'", "'Infinity'"),
    ("float8", "'-0'", "0"),
    ("float8", "0.1", "0.1 + 1e-17 + 2e-17"),
    ("float4", "1e-45", "0"),
    ("money", "1.00", "1.01"),
    ("text", "''", "NULL"),
    ("text", "'a'", "'a '"),
    ("char(5)", "'a'", "'b'"),
    ("bytea", "'\\x00'", "'\\x'"),
    ("json", "'{\"a\":1}'", "'{\"a\": 1}'"),
    ("jsonb", "'[1]'", "'[1.0]'"),
    ("interval", "'1 day'", "'24:00'"),
    ("timestamptz", "'2026-01-01 00:00+00'", "'2026-01-01 00:00:00.000001+00'"),
    ("time", "'24:00'", "'00:00'"),
    ("box", "'(0,0),(2,3)'", "'(0,0),(3,2)'"),
    ("point", "'(1,-0)'", "'(1,0)'"),
    ("path", "'((0,0),(1,1))'", "'[(0,0),(1,1)]'"),
    ("inet", "'10.0.0.1/8'", "'10.0.0.1/9'"),
    ("bit varying", "B'0'", "B'00'"),
    ("tsvector", "'a:1'", "'a:2'"),
    ("xml", "'<a/>'", "'<a></a>'"),
    ("int[]", "'{1}'", "'[0:0]={1}'"),
    ("text[]", "'{NULL}'", "'{\"NULL\"}'"),
    ("text[]", "'{}'", "NULL"),
    ("int4range", "'[1,5)'", "'[1,6)'"),
    ("numrange", "'[1.0,2]'", "'[1.00,2]'"),
    ("mood", "'ok'", "'sad'"),
    ("pair", "ROW(NULL, NULL)", "NULL"),
    ("pair", "ROW(1, 'a,b')", "ROW(1, 'a, b')"),
    ("pair[]", "ARRAY[ROW(1, NULL)::pair]", "ARRAY[ROW(1, '')::pair]"),
    ("amount", "1.0", "1.00"),
    ("citext", "'a'", "'A'"),
    ("citext[]", "'{a,b}'", "'{\"a,b\"}'"),
    ("hstore", "'a=>NULL'", "'a=>\"NULL\"'"),
    ("hstore[]", "ARRAY['a=>1'::hstore, NULL]", "ARRAY['a=>1'::hstore, '']"),
    ("cube", "'(0,1)'", "'(-0,1)'"),
    ("seg", "'1.0'", "'1.00'"),
    ("tagged", "ROW('a=>1', 1)", "ROW('a=>2', 1)"),
    ("tagged", "ROW(NULL, NULL)", "NULL"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_in_a_value_of_any_type_is_found_and_named_and_repaired() {
    let mut schema = "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION cube; CREATE EXTENSION seg;
        CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN amount AS numeric;
        CREATE TYPE tagged AS (tags hstore, n int); "
        .to_owned();
    let columns: Vec<String> =
        VALUES.iter().enumerate().map(|(at, (type_sql, ..))| format!("c{at} {type_sql}")).collect();
    let values: Vec<String> = VALUES.iter().map(|(type_sql, value, _)| format!("({value})::{type_sql}")).collect();
    schema.push_str(&format!(
        "CREATE TABLE typed (id int PRIMARY KEY, {}); INSERT INTO typed SELECT i, {} FROM generate_series(1, {}) i",
        columns.join(", "),
        values.join(", "),
        VALUES.len() + 10
    ));
    let database = Database::of_superuser("truthtypes", &["typed"], &schema).await;
    database
        .at_destination("CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION cube; CREATE EXTENSION seg")
        .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    setup.command(&["verify"]).await.exits(0);
    for (at, (type_sql, _, other)) in VALUES.iter().enumerate() {
        database.at_destination(&format!("UPDATE typed SET c{at} = ({other})::{type_sql} WHERE id = {at} + 1")).await;
    }
    let finished = setup.command(&["verify", "--show-columns", "--limit", "1000"]).await.exits(1);
    for (at, (type_sql, value, other)) in VALUES.iter().enumerate() {
        let line = format!("  differs  (id)=({}): c{at}", at + 1);
        assert!(finished.out.lines().any(|found| found == line), "{type_sql}, {value} or {other}: {}", finished.out);
    }
    let line = format!("0 rows missing, 0 extra, {} differing", VALUES.len());
    let finished = finished.says(&[&line]);
    assert!(!finished.out.contains("not comparable"), "{}", finished.out);
    let line = format!("repaired: 0 rows deleted, {} updated, 0 inserted", VALUES.len());
    let finished = setup.command(&["verify", "--repair", "--show-columns"]).await;
    finished.exits(0).says(&[&line, "equal after the repair"]);
    setup.command(&["verify"]).await.exits(0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_not_what_their_text_says_are_named_and_never_called_equal() {
    let database = Database::of_superuser(
        "truthtext",
        &["marked", "other"],
        "CREATE EXTENSION seg; CREATE TABLE marked (id int PRIMARY KEY, s seg, more seg[]); CREATE TABLE other (id int PRIMARY KEY);
         INSERT INTO marked SELECT i, '1.5 .. 2.5', ARRAY['1.5'::seg] FROM generate_series(1, 10) i; INSERT INTO other VALUES (1)",
    )
    .await;
    database.at_destination("CREATE EXTENSION seg").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    setup.command(&["verify"]).await.exits(0);
    // seg's text has six digits, its value more.
    database.at_source("UPDATE marked SET s = '1.23456789', more[2] = '3.1415926535' WHERE id IN (3, 4)").await;
    database.caught_up().await;
    let finished = setup.command(&["verify"]).await.exits(1);
    let finished = finished.says(&[
        "not comparable: 2 values of column s are not exactly what their text says, and have no binary form",
        "not comparable: 2 values of column more",
        "table public.other: equal",
    ]);
    assert!(!finished.out.contains("\nequal:"), "{}", finished.out);
    setup.command(&["verify", "--table", "other"]).await.exits(0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_compared_and_no_repair_claims_to_have_set_them() {
    let database = Database::new(
        "truthmade",
        &["made"],
        "CREATE TABLE made (id int PRIMARY KEY, v int, doubled int GENERATED ALWAYS AS (v * 2) STORED);
         INSERT INTO made SELECT i, i FROM generate_series(1, 100) i",
    )
    .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_destination(
            "ALTER TABLE made DROP doubled; ALTER TABLE made ADD doubled int GENERATED ALWAYS AS (v * 3) STORED",
        )
        .await;
    let finished = setup.command(&["verify", "--show-columns"]).await.exits(1);
    finished.says(&["0 rows missing, 0 extra, 100 differing", "(id)=(7): doubled"]);
    database.at_destination("UPDATE made SET v = 0 WHERE id = 7").await;
    let finished = setup.command(&["verify", "--repair"]).await.exits(1);
    finished.says(&[
        "repaired: 0 rows deleted, 1 updated, 0 inserted",
        "100 rows differ after the repair: both sides compared at",
        "no repair sets what the destination generates: doubled",
    ]);
    database
        .at_destination(
            "ALTER TABLE made DROP doubled; ALTER TABLE made ADD doubled int GENERATED ALWAYS AS (v * 2) STORED",
        )
        .await;
    setup.command(&["verify"]).await.exits(0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_sets_what_no_update_can_and_exchanges_values_that_changed_hands() {
    let schema = "CREATE TABLE fixed (id int PRIMARY KEY, n int, v text); INSERT INTO fixed SELECT i, i, 'v' FROM generate_series(1, 20) i;
                  CREATE TABLE seats (id int PRIMARY KEY, seat int UNIQUE); INSERT INTO seats SELECT i, i FROM generate_series(1, 20) i;";
    let database = Database::with_replica_role("truthfixed", &["fixed", "seats"], schema).await;
    database
        .at_destination(
            "CREATE TABLE fixed (id int PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY, v text, local text DEFAULT 'kept');",
        )
        .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_destination(
            "ALTER TABLE fixed ALTER n SET GENERATED ALWAYS; UPDATE fixed SET local = 'mine ' || id;
             UPDATE fixed SET n = DEFAULT WHERE id BETWEEN 6 AND 9; UPDATE fixed SET v = 'w' WHERE id = 10;
             UPDATE seats SET seat = -seat WHERE id <= 10; UPDATE seats SET seat = 11 + seat WHERE id <= 10",
        )
        .await;
    let finished = setup.command(&["verify", "--repair"]).await.exits(0);
    finished.says(&["repaired: 0 rows deleted, 15 updated, 0 inserted", "equal after the repair"]);
    let kept = "SELECT count(*)::text FROM fixed WHERE local = 'mine ' || id";
    assert_eq!(database.destination_value(kept).await.as_deref(), Some("20"), "what is local stays");
    setup.command(&["verify"]).await.exits(0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_exchanges_unique_values_among_more_rows_than_one_statement_writes() {
    let schema = "CREATE TABLE seats (id int PRIMARY KEY, seat int UNIQUE); INSERT INTO seats SELECT i, i FROM generate_series(1, 1300) i";
    let database = Database::with_replica_role("truthseats", &["seats"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    // Each row holds the seat of the one 700 further on, and the last one's is to go to a row that is not here.
    database
        .at_destination(
            "UPDATE seats SET seat = -(1 + (id + 700) % 1300); UPDATE seats SET seat = -seat; DELETE FROM seats WHERE id = 5",
        )
        .await;
    let finished = setup.command(&["verify", "--repair", "--limit", "0"]).await.exits(0);
    finished.says(&["repaired: 0 rows deleted, 1299 updated, 1 inserted", "equal after the repair"]);
    database.assert_equal().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_something_else_undoes_is_given_up_and_says_so() {
    let schema =
        "CREATE TABLE ring (id int PRIMARY KEY, v int); INSERT INTO ring SELECT i, 0 FROM generate_series(0, 99) i";
    let database = Database::of_superuser("truthring", &["ring"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    // What is put right in one row goes wrong in the next one.
    database
        .at_destination(
            "UPDATE ring SET v = 1 WHERE id = 7;
             CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN UPDATE public.ring SET v = 1 WHERE id = (NEW.id + 1) % 100; RETURN NULL; END $$;
             CREATE TRIGGER spoil AFTER UPDATE ON ring FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION spoil();
             ALTER TABLE ring ENABLE ALWAYS TRIGGER spoil",
        )
        .await;
    let finished = setup.command(&["verify", "--repair"]).await.exits(1);
    finished.says(&[
        "repaired: 0 rows deleted, 3 updated, 0 inserted",
        "differs  (id)=(10)",
        "1 row differs after the repair: both sides compared at",
        "the repair was given up: rows differ that did not differ before",
    ]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_takes_longer_than_fence_timeout_goes_on_with_fewer_rows_at_a_time() {
    let schema =
        "CREATE TABLE slow (id int PRIMARY KEY, v int); INSERT INTO slow SELECT i, 0 FROM generate_series(1, 700) i";
    let database = Database::of_superuser("truthslow", &["slow"], schema).await;
    let setup = Setup::of(&database).setting("fence_timeout = \"4s\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_destination(
            "UPDATE slow SET v = 1;
             CREATE FUNCTION wait_if_many() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF (SELECT count(*) FROM now_there) > 200 THEN PERFORM pg_sleep(6); END IF; RETURN NULL; END $$;
             CREATE TRIGGER wait_if_many AFTER UPDATE ON slow REFERENCING NEW TABLE AS now_there
             FOR EACH STATEMENT EXECUTE FUNCTION wait_if_many(); ALTER TABLE slow ENABLE ALWAYS TRIGGER wait_if_many",
        )
        .await;
    let finished = setup.command(&["verify", "--repair", "--limit", "0"]).await.exits(0);
    finished.says(&[
        "the repair took longer than 4s: repairing 350 at a time",
        "the repair took longer than 4s: repairing 175 at a time",
        "repaired: 0 rows deleted, 700 updated, 0 inserted",
        "equal after the repair",
    ]);
    service.stop().await;
}

fn config(setup: &Setup) -> Arc<Config> {
    let text = setup.configuration_text();
    let file = FileText { name: "test", text: &text };
    Arc::new(Config::parse(Some(file), &Environment::new()).expect("a configuration"))
}

fn numbers_of(keys: &[Vec<String>]) -> BTreeSet<u32> {
    keys.iter().map(|key| key[0].parse().expect("a number")).collect()
}

/// However little is looked at: what is said is true, and what is not said is said to be more.
fn assert_true(found: &TableVerdict, planted: &Planted) {
    let differences = &found.differences;
    assert!(numbers_of(&differences.missing).is_subset(&planted.missing), "called missing");
    assert!(numbers_of(&differences.extra).is_subset(&planted.extra), "called extra");
    assert!(numbers_of(&differences.differing).is_subset(&planted.differing), "called differing");
    let said = usize::try_from(differences.rows()).unwrap();
    assert_eq!(differences.more, said < planted.total(), "{said} of {}", planted.total());
}

#[tokio::test(flavor = "multi_thread")]
async fn within_bounds_nothing_untrue_is_said_and_a_repair_goes_on_until_nothing_is_left() {
    let mut rng = Rng::with_seed(seed("within_bounds"));
    let database = Database::new("truthbounds", &["plain"], SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let config = config(&setup);
    for (hashes_max, keys_max, keys_at_once) in [(1, 1000, 1000), (100, 1000, 37), (400, 90, 50), (100_000, 50, 20)] {
        let planted = Planted::plant(&database, &mut rng, "plain", 150).await;
        let bounds = Bounds { hashes_max, keys_max, keys_at_once };
        let mut options = VerifyOptions { bounds, workers: Some(2), ..VerifyOptions::default() };
        let progress = Arc::new(VerifyProgress::default());
        let verdict = verify(&config, &options, &progress, &mut |_| {}).await.expect("a verdict");
        assert_true(&verdict.tables[0], &planted);
        if planted.total() > 200 && hashes_max < 200 {
            assert!(verdict.tables[0].differences.more, "{bounds:?}");
        }
        options.repair = true;
        if hashes_max == 1 {
            // One row at a time would take as many rounds as there are rows.
            options.bounds.hashes_max = 500;
        }
        let verdict = verify(&config, &options, &progress, &mut |_| {}).await.expect("a verdict");
        assert!(verdict.is_proof(), "{bounds:?}: {:?}", verdict.repaired);
        if let Some(repaired) = verdict.repaired {
            let outcome = repaired.outcome;
            let counts =
                [outcome.deleted, outcome.updated, outcome.inserted].map(|count| usize::try_from(count).unwrap());
            let (deleted, updated, inserted) = planted.repaired();
            assert_eq!(counts, [deleted, updated, inserted], "{bounds:?}");
        }
        database.assert_equal().await;
    }
    service.stop().await;
}
