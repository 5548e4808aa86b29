//! Roles and databases that were set up for other programs: whatever ALTER ROLE and ALTER DATABASE set, headwater's sessions
//! copy, stream, compare and clean up.

use fastrand::Rng;
use headwater::session::SqlClient;

use crate::support::database::connect;
use crate::support::roles::{Roles, reader, writer};
use crate::support::{
    Database, Script, Setup, bin_of, destination, eventually, new_destination, new_source_of, seed, source,
};

const TABLES: &[&str] = &["things", "lines"];

/// Values whose text depends on settings, names that quoting changes, defaults and sequences.
const SCHEMA: &str = "
    CREATE TYPE \"Mood\" AS ENUM ('so so', 'NULL');
    CREATE DOMAIN word AS text CHECK (VALUE <> '');
    CREATE TABLE things (id serial PRIMARY KEY, \"user\" text DEFAULT 'a\\b', day date, at timestamptz DEFAULT now(), took interval,
        single real, double double precision, raw bytea, doc xml, price money, list text[], mood \"Mood\", word word, j jsonb,
        double_id bigint GENERATED ALWAYS AS (id * 2) STORED, CHECK (single IS NULL OR single < 1e30));
    CREATE INDEX ON things (\"user\" DESC) WHERE \"user\" IS NOT NULL;
    CREATE TABLE lines (thing int REFERENCES things ON DELETE CASCADE, n int, body text, PRIMARY KEY (thing, n));
    INSERT INTO things (day, took, single, double, raw, doc, price, list, mood, word, j)
        SELECT date '2026-02-03' + i, make_interval(months => i, secs => -i * 1.5), i / 3.0, i / 7.0, decode(md5(i::text), 'hex'),
               xmlparse(content 'text <a>' || i || '</a>'), (i || '.25')::money, ARRAY['NULL', NULL, 'a,b'], 'NULL', 'w', '{\"a\": \"\\\\u00e9\"}'
        FROM generate_series(1, 300) i;
    INSERT INTO lines SELECT id, 1, 'it''s \\' FROM things;";

/// A setting, and what others want of it.
const SETTINGS: &[(&str, &[&str])] = &[
    ("statement_timeout", &["1ms", "20ms"]),
    ("lock_timeout", &["1ms"]),
    ("idle_in_transaction_session_timeout", &["1ms", "50ms"]),
    ("idle_session_timeout", &["1ms", "50ms"]),
    ("transaction_timeout", &["250ms"]),
    ("default_transaction_read_only", &["on"]),
    ("default_transaction_isolation", &["serializable", "repeatable read"]),
    ("default_transaction_deferrable", &["on"]),
    ("standard_conforming_strings", &["off"]),
    ("escape_string_warning", &["off"]),
    ("backslash_quote", &["off", "on"]),
    ("quote_all_identifiers", &["on"]),
    ("bytea_output", &["escape"]),
    ("xmlbinary", &["hex"]),
    ("xmloption", &["document"]),
    ("array_nulls", &["off"]),
    ("DateStyle", &["SQL, DMY", "German", "Postgres, MDY"]),
    ("IntervalStyle", &["sql_standard", "iso_8601", "postgres_verbose"]),
    ("TimeZone", &["Asia/Kathmandu", "America/New_York"]),
    ("extra_float_digits", &["-15", "0"]),
    ("client_encoding", &["LATIN1", "SJIS", "SQL_ASCII"]),
    ("check_function_bodies", &["off"]),
    ("exit_on_error", &["on"]),
    ("transform_null_equals", &["on"]),
    ("search_path", &["nowhere", "pg_temp, pg_catalog"]),
    ("row_security", &["on"]),
    ("jit_above_cost", &["0"]),
    ("client_min_messages", &["debug1", "error"]),
    ("enable_seqscan", &["off"]),
    ("enable_indexscan", &["off"]),
    ("enable_tidscan", &["off"]),
    ("enable_hashjoin", &["off"]),
    ("force_parallel_mode", &["regress", "on"]),
    ("debug_parallel_query", &["regress", "on"]),
    ("work_mem", &["64kB"]),
    ("maintenance_work_mem", &["1MB"]),
    ("plan_cache_mode", &["force_custom_plan"]),
    ("synchronous_commit", &["off", "remote_apply"]),
    ("constraint_exclusion", &["on"]),
    ("cursor_tuple_fraction", &["1"]),
    ("application_name", &["somebody else"]),
    ("client_connection_check_interval", &["0"]),
    ("logical_decoding_work_mem", &["64kB"]),
    ("debug_logical_replication_streaming", &["immediate"]),
    ("wal_sender_timeout", &["1s"]),
    ("session_preload_libraries", &["auto_explain"]),
    ("session_replication_role", &["replica", "local"]),
    ("stats_fetch_consistency", &["snapshot", "none"]),
    ("lo_compat_privileges", &["on"]),
    ("default_statistics_target", &["1"]),
    ("createrole_self_grant", &["set"]),
    ("default_toast_compression", &["pglz"]),
    ("synchronize_seqscans", &["off"]),
    ("password_encryption", &["md5"]),
    ("track_activities", &["off"]),
    ("geqo", &["off"]),
];

/// Sets some of them for the role, for the database, or for the role in the database; returns the statements.
async fn set_some(client: &SqlClient, rng: &mut Rng, role: &str, database: &str) -> String {
    let known = client.query("listing settings", "SELECT lower(name) FROM pg_settings", &[]).await.expect("settings");
    let known: Vec<String> = known.iter().map(|row| row.get(0).unwrap()).collect();
    let mut statements = Vec::new();
    for (name, values) in SETTINGS {
        if !known.contains(&name.to_lowercase()) || rng.u32(..2) == 0 {
            continue;
        }
        let whose = match rng.u32(..3) {
            0 => format!("ROLE {role}"),
            1 => format!("DATABASE {database}"),
            _ => format!("ROLE {role} IN DATABASE {database}"),
        };
        // Lists are several values, not one.
        let value = values[rng.usize(..values.len())];
        let value = if *name == "search_path" { value.to_owned() } else { format!("'{value}'") };
        statements.push(format!("ALTER {whose} SET {name} = {value};"));
    }
    let statements = statements.join("\n");
    client
        .script("setting what others want", &statements)
        .await
        .unwrap_or_else(|error| panic!("{error} in\n{statements}"));
    statements
}

/// Copies, streams, compares, copies again, and cleans up.
async fn lives_with(mut database: Database, mut rng: Rng) {
    database.tables = TABLES.iter().map(|table| (*table).to_owned()).collect();
    let said = set_some(&database.source, &mut rng, &reader(&database.name), &database.name).await;
    println!("at the source:\n{said}");
    let said = set_some(&database.destination, &mut rng, &writer(&database.name), &database.name).await;
    println!("at the destination:\n{said}");
    let setup = Setup::of(&database);
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    service.streams().await;
    let default = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'things'::regclass AND adnum = 1";
    assert_eq!(database.destination_value(default).await.as_deref(), Some("nextval('things_id_seq'::regclass)"));
    // One large transaction and small ones, longer than any of the timeouts above; a column with a default; new rows.
    database
        .at_source(
            "BEGIN; INSERT INTO things (list, single) SELECT ARRAY['NULL', NULL], i / 9.0 FROM generate_series(1, 30000) i;
             SELECT pg_sleep(0.3); UPDATE things SET double = random() WHERE id < 5000; COMMIT",
        )
        .await;
    database
        .at_source("UPDATE things SET took = took * 2, raw = raw || '\\x00ff', doc = '<b/>', price = price * 2")
        .await;
    database.at_source("ALTER TABLE lines ADD COLUMN kind text NOT NULL DEFAULT 'a\\b''c'").await;
    database
        .at_source(
            "INSERT INTO lines SELECT id, 2, E'\\\\n' FROM things WHERE id < 50; DELETE FROM things WHERE id = 7",
        )
        .await;
    database.assert_catches_up().await;
    setup.command(&["verify"]).await.exits(0);
    // An error inside a transaction ends a statement, not the session, and is said.
    database.at_destination("DELETE FROM lines WHERE thing = 9 AND n = 1").await;
    setup.command(&["verify", "--repair"]).await.exits(0).says(&["1 inserted"]);
    setup.command(&["resnapshot"]).await.exits(0);
    database.assert_catches_up().await;
    service.command(&["explain"]).await;
    service.stop().await;
    setup.command(&["teardown"]).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_roles_and_databases_set_the_copy_is_made_and_followed() {
    let mut rng = Rng::with_seed(seed("settings"));
    for round in 0..3 {
        let roles = Roles::Least { replica: rng.bool() };
        let name = format!("set{round}");
        let database = Database::under(roles, source().await, destination().await, &name, &[], SCHEMA).await;
        lives_with(database, rng.fork()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_roles_and_databases_of_18_set_the_copy_is_made_and_followed() {
    let mut rng = Rng::with_seed(seed("settings of 18"));
    let Some(bin) = bin_of(18) else { return };
    let from = new_source_of(&bin, &[]).await;
    let to = new_destination(&[]).await;
    for round in 0..2 {
        let name = format!("set18_{round}");
        let database = Database::under(Roles::Least { replica: true }, &from, &to, &name, &[], SCHEMA).await;
        lives_with(database, rng.fork()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn roles_that_become_another_role_at_login_copy_stream_and_verify() {
    let roles = Roles::Least { replica: true };
    let mut database = Database::under(roles, source().await, destination().await, "becoming", TABLES, SCHEMA).await;
    // As a secret store makes them: a login for a while, whose objects belong to a role that stays.
    let (reader, writer) = (reader(&database.name), writer(&database.name));
    let login = |role: &str, attributes: &str| {
        format!(
            "CREATE ROLE v_{role} LOGIN {attributes} NOINHERIT; GRANT {role} TO v_{role}; ALTER ROLE v_{role} SET role = {role};
             ALTER ROLE {role} NOLOGIN NOREPLICATION"
        )
    };
    database.at_source(&login(&reader, "REPLICATION")).await;
    database.at_destination(&login(&writer, "")).await;
    database.source_url = database.source_url.replacen(&reader, &format!("v_{reader}"), 1);
    database.destination_url = database.destination_url.replacen(&writer, &format!("v_{writer}"), 1);
    let setup = Setup::of(&database);
    let said = format!("role {writer} (logged in as v_{writer})");
    setup.command(&["check"]).await.exits(0).says(&["over a Unix socket", &said]);
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE things SET took = took * 2").await;
    database.assert_catches_up().await;
    setup.command(&["verify"]).await.exits(0);
    setup.command(&["resnapshot"]).await.exits(0);
    // A fence that takes too long gives its slot up.
    let other = connect(&database.source_url.replacen(&format!("v_{reader}"), "postgres", 1)).await.expect("a session");
    other.batch("writing", "BEGIN; DELETE FROM things WHERE id = 1").await.expect("an open transaction");
    let impatient = setup.clone().setting("fence_timeout = \"2s\"");
    service.stop().await;
    let service = impatient.start();
    service.streams().await;
    impatient.command(&["verify"]).await.exits(1).says(&["the slot was not created within 2s"]);
    service.says("no fence could be made: the slot was not created within 2s").await;
    other.batch("writing", "ROLLBACK").await.expect("its end");
    impatient.command(&["verify"]).await.exits(0);
    assert!(!service.log().contains("could not be ended"), "{}", service.log());
    let (code, said) = service.command(&["explain"]).await;
    assert_eq!(code, Some(0), "{said}");
    // Its sessions are known for its own also while another role looks.
    database.at_destination("BEGIN; LOCK TABLE things").await;
    database.at_source("UPDATE things SET took = took * 2 WHERE id = 3").await;
    eventually("explain names the lock", || async {
        let (_, said) = service.command(&["explain"]).await;
        said.contains("destination: headwater's process").then_some(())
    })
    .await;
    database.at_destination("ROLLBACK").await;
    database.assert_catches_up().await;
    // The walsender that a frozen instance has left is ended by the next one, and named.
    service.signal("STOP");
    let next = impatient.start();
    next.says("which held replication slot").await;
    assert!(next.log().contains(&format!("role v_{reader}")), "{}", next.log());
    next.streams().await;
    let mut service = service;
    service.kill();
    database.at_source("UPDATE things SET took = took * 2 WHERE id = 4").await;
    database.assert_catches_up().await;
    next.stop().await;
    setup.command(&["teardown"]).await.exits(0);
}
