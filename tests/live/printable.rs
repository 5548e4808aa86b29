//! Names that hide, steer a terminal or end a quote: whatever an operator sees of them is printable, and what is printed to be
//! pasted says what it says.

use headwater::commands::demo::Cluster;
use headwater::pg::{Ident, QualifiedName, is_printable, quote_literal, shown_literal, shown_sql};
use serde_json::Value;

use crate::support::database::Over;
use crate::support::findings::{findings, fix};
use crate::support::{Database, Script, Setup, destination, eventually, source};

/// A line of its own, a cleared screen, text that reads backwards, separators, nothing that is seen, and the ends of quotes.
const HOSTILE: &str = "a\n\u{1b}[2J\u{202e}\u{2028}\u{200b}\r\"'$$; DROP TABLE victim; --\\";

/// The name in quotes, as the server takes it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The text as a literal, as the server takes it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn url_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Databases, roles and application names that are all called so.
struct Hostile {
    database: Database,
    setup: Setup,
    name: String,
}

/// On both clusters a database and a role of this name, and in it a table `victim`.
async fn hostile(slot: &str, role: &str) -> Hostile {
    let slot = format!("{slot}_{:06x}", fastrand::u32(..0x100_0000));
    let name = format!("{HOSTILE}{slot}");
    assert!(name.len() <= 63);
    let mut ends = Vec::new();
    for cluster in [source().await, destination().await] {
        let admin = cluster.connect("postgres").await.unwrap();
        admin.script("a role", &format!("CREATE ROLE {} LOGIN {role}", quoted(&name))).await.unwrap();
        admin.script("a database", &format!("CREATE DATABASE {}", quoted(&name))).await.unwrap();
        let client = cluster.connect(&url_encoded(&name)).await.unwrap();
        client.batch("a victim", "CREATE TABLE public.victim (id int PRIMARY KEY)").await.unwrap();
        ends.push((client, url(cluster, &name)));
    }
    let (destination, destination_url) = ends.pop().unwrap();
    let (source, source_url) = ends.pop().unwrap();
    let over = Over::of(&name);
    let database = Database { name: slot, source, destination, source_url, destination_url, tables: Vec::new(), over };
    let mut setup = Setup::of(&database);
    setup.environment.push(("HEADWATER_SOURCE_PUBLICATION".to_owned(), name.clone()));
    Hostile { database, setup, name }
}

fn url(cluster: &Cluster, name: &str) -> String {
    let name = url_encoded(name);
    cluster.url(&name).replace("postgres@", &format!("{name}@")) + &format!("&application_name={name}")
}

/// Nothing of it hides or steers.
fn assert_printable(what: &str, text: &str) {
    let odd: Vec<char> = text.chars().filter(|c| !is_printable(*c) && *c != '\n').collect();
    assert!(odd.is_empty(), "{what}: {odd:?} in\n{text:?}");
}

/// Each line at the left edge is an event.
fn assert_log(log: &str) {
    assert_printable("log", log);
    for line in log.lines() {
        assert!(line.starts_with("20") || line.starts_with("    "), "a line that is no event's: {line:?}");
    }
}

impl Hostile {
    /// Everything that an operator may look at.
    async fn look(&self, service: &crate::support::Service) -> String {
        let mut all = String::new();
        for path in ["/", "/status", "/metrics", "/readyz", "/rolloutz", "/healthz"] {
            let (_, text) = service.get(path).await.unwrap();
            if path == "/metrics" {
                let ours = |line: &str| ["headwater_", "process_", "#"].iter().any(|start| line.starts_with(start));
                assert!(text.lines().all(ours), "{text}");
            }
            // The page is ours; what it shows comes from /events.
            if path != "/" {
                assert_printable(path, &text);
                all.push_str(&text);
            }
        }
        let status = service.status().await.unwrap();
        assert_values_printable(&status);
        for command in [&["status"][..], &["status", "--json"], &["explain"], &["check"], &["check", "--json"]] {
            // The service's port is in its own file.
            let (_, said) = service.command(command).await;
            assert_printable("json", &said);
            let finished = self.setup.command(command).await;
            assert_printable("json", &finished.out);
            assert_printable("json", &finished.err);
            all.extend([said, finished.out, finished.err]);
        }
        assert_log(&service.log());
        all
    }
}

/// No text of a JSON value hides or steers once it is read.
fn assert_values_printable(value: &Value) {
    match value {
        Value::String(text) => assert_printable("json", text),
        Value::Array(values) => values.iter().for_each(assert_values_printable),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            assert_printable("json", name);
            assert_values_printable(value);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn names_that_hide_steer_or_end_quotes_are_shown_printably_everywhere() {
    let Hostile { mut database, setup, name } = hostile("shown", "SUPERUSER REPLICATION").await;
    let (own, long) = (quoted(&name), format!("{name}{}", "x".repeat(63 - name.len())));
    let table = format!("{own}.{}", quoted(&long));
    let shown = QualifiedName::new(name.as_str(), long.as_str()).to_string();
    assert_eq!(shown.parse::<QualifiedName>().unwrap(), QualifiedName::new(name.as_str(), long.as_str()));
    let value = literal(&format!("{HOSTILE}value"));
    database
        .at_source(&format!(
            "CREATE SCHEMA {own}; CREATE TYPE {own}.{own} AS ENUM ({});
             CREATE TABLE {table} (id text, {own} text, e {own}.{own}, CONSTRAINT {own} PRIMARY KEY (id),
                 CONSTRAINT {} UNIQUE ({own}));
             COMMENT ON TABLE {table} IS {value};
             INSERT INTO {table} VALUES ({value}, 'x', {}), ('plain', 'y', NULL)",
            literal(&name),
            quoted(&long.replacen('a', "u", 1)),
            literal(&name)
        ))
        .await;
    database.tables = vec![shown.clone()];
    let setup = Setup { tables: database.tables.clone(), ..setup };
    let hostile = Hostile { database, setup, name: name.clone() };
    let (database, setup) = (&hostile.database, &hostile.setup);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    assert!(hostile.look(&service).await.contains("DROP TABLE victim"), "the names are shown, escaped");
    let count = format!("SELECT count(*)::text FROM {table}");
    assert_eq!(database.destination_value(&count).await.as_deref(), Some("2"));

    // A lock, held by a session of that name.
    database
        .at_destination(&format!("SET application_name = {value}; BEGIN; LOCK TABLE {table}; SELECT {value}"))
        .await;
    database.at_source(&format!("INSERT INTO {table} VALUES ('locked')")).await;
    eventually("the lock is explained", || async {
        let said = setup.command(&["explain"]).await;
        assert_printable("explain", &said.out);
        said.out.contains("waits for").then_some(())
    })
    .await;
    database.at_destination("COMMIT").await;

    // A row that is in the way.
    database.at_destination(&format!("INSERT INTO {table} VALUES ({value} || 'here', {value})")).await;
    database.at_source(&format!("INSERT INTO {table} VALUES ({value} || 'there', {value})")).await;
    service.is("waiting").await;
    hostile.look(&service).await;
    let conflict = setup.command(&["conflict", "show"]).await;
    assert_printable("conflict show", &conflict.out);
    assert!(conflict.out.contains("value"), "{conflict:?}");
    database.at_destination(&format!("DELETE FROM {table} WHERE id = {value} || 'here'")).await;
    service.streams().await;

    // A constraint that only the destination has: what is printed drops it, and nothing else.
    let check = quoted(&format!("{HOSTILE} (x) c"));
    database.at_destination(&format!("ALTER TABLE {table} ADD CONSTRAINT {check} CHECK (id <> 'refused')")).await;
    database.at_source(&format!("INSERT INTO {table} VALUES ('refused')")).await;
    service.is("waiting").await;
    hostile.look(&service).await;
    let hint = service.status().await.unwrap()["hint"].as_str().unwrap().to_owned();
    let statement = hint.lines().find(|line| line.starts_with("ALTER TABLE")).expect("a statement");
    database.at_destination(statement).await;
    service.streams().await;

    // A transaction that is skipped, and looked at.
    let column = quoted(&format!("{HOSTILE}c"));
    database.at_destination(&format!("ALTER TABLE {table} ADD COLUMN {column} int NOT NULL DEFAULT 0")).await;
    database.at_destination(&format!("ALTER TABLE {table} ADD CHECK (id <> 'skipped')")).await;
    database.at_source(&format!("INSERT INTO {table} VALUES ('skipped', {value} || 'skipped')")).await;
    service.is("waiting").await;
    let hint = service.status().await.unwrap()["hint"].as_str().unwrap().to_owned();
    let skip = hint.lines().find_map(|line| line.split_once("headwater skip ")).expect("a command").1.to_owned();
    let words: Vec<&str> = ["skip"].into_iter().chain(skip.split(' ')).collect();
    setup.command(&words).await.exits(0);
    service.streams().await;
    for command in [&["dead-letter", "list"][..], &["dead-letter", "show", words[1], words[2], "--values"]] {
        let letters = setup.command(command).await;
        assert_printable("json", &letters.out);
        assert!(letters.out.contains("DROP TABLE victim"), "{letters:?}");
    }

    // Rows that differ, by keys that hide.
    database.at_destination(&format!("DELETE FROM {table} WHERE id = {value}")).await;
    let verified = setup.command(&["verify"]).await;
    assert_printable("verify", &verified.out);
    assert_printable("verify", &verified.err);
    assert!(verified.out.contains("missing"), "{verified:?}");
    hostile.look(&service).await;
    service.stop().await;

    let service = setup.clone().argument("--log-format=json").start();
    service.streams().await;
    database.at_destination(&format!("DELETE FROM {table} WHERE id = 'plain'")).await;
    database.at_source(&format!("UPDATE {table} SET {own} = {value} || 'updated' WHERE id = 'plain'")).await;
    service.is("waiting").await;
    for line in service.log().lines() {
        assert_printable("json", line);
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_values_printable(&event);
    }
    service.stop().await;
    for (end, left) in [
        ("source", database.source_value("SELECT count(*)::text FROM public.victim").await),
        ("destination", database.destination_value("SELECT count(*)::text FROM public.victim").await),
    ] {
        assert_eq!(left.as_deref(), Some("0"), "the {end}'s victim");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_check_prints_to_be_pasted_says_what_it_says_whatever_the_names() {
    let Hostile { mut database, setup, name } = hostile("pasted", "").await;
    let own = quoted(&name);
    let tables = [0, 1, 2, 3, 4].map(|number| format!("{HOSTILE}{number}"));
    let [ordinary, unlogged, keyless, guarded, existing] = tables.each_ref().map(|table| quoted(table));
    database
        .at_source(&format!(
            "CREATE SCHEMA {own}; GRANT USAGE ON SCHEMA {own} TO {own};
             CREATE TABLE {own}.{ordinary} (id int PRIMARY KEY, {own} int);
             CREATE UNLOGGED TABLE {own}.{unlogged} (id int PRIMARY KEY);
             CREATE TABLE {own}.{keyless} (id int);
             CREATE TABLE {own}.{guarded} (id int PRIMARY KEY); ALTER TABLE {own}.{guarded} ENABLE ROW LEVEL SECURITY;
             CREATE TABLE {own}.{existing} (id int PRIMARY KEY, {own} text, {ordinary} text)"
        ))
        .await;
    database
        .at_destination(&format!(
            "CREATE SCHEMA {own}; CREATE TABLE {own}.{existing} (id int PRIMARY KEY, {own} int, {unlogged} int NOT NULL);
             ALTER TABLE {own}.{existing} ENABLE ROW LEVEL SECURITY"
        ))
        .await;
    database.tables =
        tables.iter().map(|table| QualifiedName::new(name.as_str(), table.as_str()).to_string()).collect();
    let setup = Setup { tables: database.tables.clone(), ..setup };
    let mut pasted = Vec::new();
    loop {
        let found = findings(&setup).await;
        found.iter().for_each(assert_values_printable);
        let has_sql = |finding: &&Value| {
            finding["standing"] == "failed" && finding["hint"].as_str().is_some_and(|hint| hint.contains(":\n"))
        };
        let Some(finding) = found.iter().find(has_sql) else {
            let failed: Vec<&Value> = found.iter().filter(|finding| finding["standing"] == "failed").collect();
            assert!(failed.is_empty(), "left after {pasted:#?}: {failed:#?}");
            break;
        };
        let (about, sql) = (finding["about"].as_str().expect("a side").to_owned(), fix(finding));
        assert!(!pasted.contains(&(about.clone(), sql.clone())), "it mended nothing: {finding:#?}");
        match about.as_str() {
            "source" => database.at_source(&sql).await,
            _ => database.at_destination(&sql).await,
        }
        pasted.push((about, sql));
    }
    assert!(pasted.len() >= 8, "{pasted:#?}");
    assert!(
        pasted.iter().all(|(_, sql)| sql.lines().all(|line| line.ends_with(';') || line.starts_with("-- "))),
        "{pasted:#?}"
    );
    let shown = Ident::new(name.as_str()).to_string();
    assert!(pasted.iter().all(|(_, sql)| sql.contains(&shown)), "{pasted:#?}");
    // They did what they say and no more: the victims are there, and the role got what it was to get.
    for (client, replicates) in [(&database.source, true), (&database.destination, false)] {
        let sql = "SELECT (to_regclass('public.victim') IS NOT NULL), rolsuper, rolreplication, rolcreaterole
                   FROM pg_roles WHERE rolname = $1::text";
        let row = client.query_one("looking", sql, &[&name]).await.unwrap();
        let seen: [bool; 4] = [row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap(), row.get(3).unwrap()];
        assert_eq!(seen, [true, false, replicates, false]);
    }
    let service = setup.start();
    service.streams().await;
    database.at_source(&format!("INSERT INTO {own}.{ordinary} VALUES (1, 1)")).await;
    database.caught_up().await;
    let count = format!("SELECT count(*)::text FROM {own}.{ordinary}");
    assert_eq!(database.destination_value(&count).await.as_deref(), Some("1"));
    assert_log(&service.log());
    service.stop().await;
}

/// What a role that is not trusted attaches to the table `own.own`, every name of it hostile.
fn attached(own: &str, other: &str, mood: &str, role: &str) -> String {
    format!(
        "CREATE ROLE {role}; CREATE SCHEMA {own} AUTHORIZATION {role}; SET ROLE {role};
         CREATE FUNCTION {own}.{own}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE FUNCTION {own}.{own}(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
         CREATE TYPE {own}.{mood} AS ENUM ('a');
         CREATE FUNCTION {own}.{own}({own}.{mood}) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT ''x''::text';
         CREATE CAST ({own}.{mood} AS text) WITH FUNCTION {own}.{own}({own}.{mood});
         CREATE DOMAIN {own}.{other} AS text DEFAULT {own}.{own}('x')::text CONSTRAINT {own} CHECK ({own}.{own}(VALUE));
         CREATE TABLE {own}.{own} (id int PRIMARY KEY, v text, e {own}.{mood}, {own} {own}.{other},
             {mood} boolean DEFAULT {own}.{own}('x'), {other} boolean GENERATED ALWAYS AS ({own}.{own}(v)) STORED,
             CONSTRAINT {own} CHECK ({own}.{own}(v)));
         CREATE INDEX {mood} ON {own}.{own} (({own}.{own}(v)));
         CREATE TRIGGER {own} BEFORE INSERT ON {own}.{own} FOR EACH ROW EXECUTE FUNCTION {own}.{own}();
         ALTER TABLE {own}.{own} ENABLE ALWAYS TRIGGER {own};
         CREATE RULE {own} AS ON DELETE TO {own}.{own} DO ALSO SELECT 1; ALTER TABLE {own}.{own} ENABLE ALWAYS RULE {own};
         RESET ROLE"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_is_printed_of_others_code_leaves_and_schema_changes_says_what_it_says() {
    let Hostile { mut database, setup, name } = hostile("p", "SUPERUSER REPLICATION").await;
    let [own, other, mood, role, tree] = ["", "2", "m", "r", "t"].map(|end| quoted(&format!("{name}{end}")));
    let leaves: Vec<String> =
        (0..25).map(|n| format!("CREATE TABLE {own}.leaf{n} PARTITION OF {own}.{tree} FOR VALUES IN ({n})")).collect();
    database
        .at_source(&format!(
            "CREATE SCHEMA {own}; CREATE TYPE {own}.{mood} AS ENUM ('a');
             CREATE TABLE {own}.{own} (id int PRIMARY KEY, v text, e {own}.{mood});
             CREATE TABLE {own}.{tree} (id int) PARTITION BY LIST (id); {}; INSERT INTO {own}.{own} VALUES (1, 'x', 'a')",
            leaves.join("; ")
        ))
        .await;
    database.at_destination(&attached(&own, &other, &mood, &role)).await;
    database.tables =
        ["", "t"].map(|end| QualifiedName::new(name.as_str(), format!("{name}{end}").as_str()).to_string()).into();
    let setup = Setup { tables: database.tables.clone(), ..setup }
        .setting("schema_changes = \"stop\"")
        .destination("untrusted_owners = \"watch\"");
    let mut pasted = String::new();
    loop {
        let found = findings(&setup).await;
        found.iter().for_each(assert_values_printable);
        let Some(finding) = found.iter().find(|finding| finding["standing"] == "failed") else { break };
        let sql = fix(finding);
        assert!(!pasted.contains(&sql), "it mended nothing: {finding:#?}");
        match finding["about"].as_str() {
            Some("source") => database.at_source(&sql).await,
            _ => database.at_destination(&sql).await,
        }
        pasted.push_str(&sql);
    }
    for kind in [
        "DO $q$ ",
        "DROP CAST (",
        "DROP CONSTRAINT",
        "DROP DEFAULT;",
        "DROP EXPRESSION;",
        "DROP INDEX",
        "ENABLE TRIGGER",
        "DISABLE RULE",
        "ALTER DOMAIN",
    ] {
        assert!(pasted.contains(kind), "{kind} is not in {pasted}");
    }

    let service = setup.start();
    service.streams().await;
    let said = literal(&format!("{HOSTILE}said"));
    for change in [
        format!("ADD COLUMN {role} text NOT NULL DEFAULT {said}, ADD COLUMN {} int", quoted(&format!("{name}x"))),
        format!("RENAME COLUMN {role} TO {}", quoted(&format!("{name}y"))),
    ] {
        println!("{change}");
        database.at_source(&format!("ALTER TABLE {own}.{own} {change}; UPDATE {own}.{own} SET v = v || 'x'")).await;
        paste_what_halts(&database, &service).await;
    }
    database.at_source(&format!("ALTER TYPE {own}.{mood} ADD VALUE {}", literal(&name))).await;
    database.at_source(&format!("UPDATE {own}.{own} SET e = {}", literal(&name))).await;
    paste_what_halts(&database, &service).await;
    assert_log(&service.log());
    service.stop().await;
    for client in [&database.source, &database.destination] {
        let sql = "SELECT count(*) FROM public.victim";
        assert_eq!(client.query_one("looking", sql, &[]).await.unwrap().get::<i64>(0).unwrap(), 0);
    }
}

/// Runs what the halted service prints at the destination, as printed, until it streams.
async fn paste_what_halts(database: &Database, service: &crate::support::Service) {
    service.is("waiting").await;
    let status = service.status().await.unwrap();
    assert_values_printable(&status);
    let hint = status["hint"].as_str().unwrap_or_else(|| panic!("no hint in {status:#}"));
    let (_, sql) = hint.split_once(":\n").unwrap_or_else(|| panic!("no SQL in {hint}"));
    database.at_destination(sql).await;
    service.streams().await;
    database.caught_up().await;
}

/// Up to 56 bytes of what ends quotes, hides or steers, and of any character that PostgreSQL can keep.
fn random_name(rng: &mut fastrand::Rng) -> String {
    const ODD: &[char] = &[
        '"',
        '\'',
        '\\',
        '$',
        'E',
        'U',
        '&',
        '+',
        '0',
        '.',
        ',',
        ';',
        '-',
        '/',
        '*',
        ' ',
        '\n',
        '\r',
        '\t',
        '\u{1}',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{200b}',
        '\u{200f}',
        '\u{202e}',
        '\u{2028}',
        '\u{2066}',
        '\u{feff}',
        '\u{e0001}',
        'ä',
        '日',
        '🐘',
    ];
    let mut name = String::new();
    let length = rng.usize(1..15);
    while name.chars().count() < length {
        name.push(if rng.u8(..4) > 0 { ODD[rng.usize(..ODD.len())] } else { rng.char('\u{1}'..) });
    }
    assert!(name.len() <= 56);
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_name_is_printed_as_sql_that_names_the_same_object() {
    let database = Database::new("names", &[], "SELECT 1").await;
    let client = &database.source;
    for round in 0..150 {
        let seed = fastrand::u64(..);
        println!("round {round}, seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut text = || random_name(&mut rng);
        let (schema, table, column, value) = (text() + &format!("_{round}"), text(), text(), text());
        let (name, ident) = (QualifiedName::new(schema.as_str(), table.as_str()), Ident::new(column.as_str()));
        let own = format!("{}.{}", quoted(&schema), quoted(&table));
        let sql = format!("CREATE SCHEMA {}; CREATE TABLE {own} ({} int)", quoted(&schema), quoted(&column));
        database.at_source(&sql).await;
        // A body between dollar quotes, in which quotes end nothing; the tag does not occur in it.
        let body = format!("SELECT {} --\t{}", quote_literal(&value), value.replace(['\n', '\r'], " "));
        for printed in [
            format!("COMMENT ON COLUMN {name}.{ident} IS {}", shown_literal(&value)),
            shown_sql(&format!("COMMENT ON TABLE {} IS {}", name.sql(), quote_literal(&value))),
            shown_sql(&format!("CREATE FUNCTION {}() RETURNS text LANGUAGE sql AS $body${body}$body$", name.sql())),
        ] {
            assert_printable("printed", &printed);
            database.at_source(&printed).await;
        }
        let sql = "SELECT pg_catalog.col_description(c.oid, 1), pg_catalog.obj_description(c.oid, 'pg_class'), p.prosrc
                   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = $3::text
                   JOIN pg_catalog.pg_proc p ON p.pronamespace = n.oid AND p.proname = c.relname
                   WHERE n.nspname = $1::text AND c.relname = $2::text";
        let row = client.query_one("looking", sql, &[&schema, &table, &column]).await.unwrap();
        let found: [Option<String>; 3] = [row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap()];
        assert_eq!(found, [Some(value.clone()), Some(value), Some(body)]);
        assert_eq!(name.to_string().parse::<QualifiedName>().unwrap(), name);
    }
}
