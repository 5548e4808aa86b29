//! What an operator must mend: each provoked, its words read, and where the hint holds SQL, run as printed.

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::roles::{Roles, reader, writer};
use crate::support::{Database, Script, Setup, destination, new_destination, new_source, source};

/// Asserts that the output has each of these texts, in this order.
fn says_in_order(output: &str, texts: &[&str]) {
    let mut rest = output;
    for text in texts {
        let at = rest.find(text).unwrap_or_else(|| panic!("no {text:?} in (the rest of)\n{output}"));
        rest = &rest[at + text.len()..];
    }
}

/// The SQL of a hint: the lines behind `HINT:` that are indented.
fn hinted_sql(output: &str) -> String {
    let (_, hint) = output.split_once("HINT:").expect("a hint");
    let lines: Vec<&str> =
        hint.lines().skip(1).take_while(|line| line.starts_with("        ")).map(str::trim).collect();
    assert!(!lines.is_empty(), "no SQL in the hint of\n{output}");
    lines.join("\n")
}

const ONE: &[&str] = &["t"];
const ONE_SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'secret value');";

#[tokio::test(flavor = "multi_thread")]
async fn wal_level_must_be_logical() {
    let source = new_source(&[("wal_level", "replica")]).await;
    let database = Database::on(&source, destination().await, "wallevel", ONE, ONE_SCHEMA).await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(
        &output,
        &["error: wal_level is replica at the source", "HINT:", "ALTER SYSTEM SET wal_level = logical;"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_needs_replication() {
    let database = Database::of_superuser("norepl", ONE, ONE_SCHEMA).await;
    let role = format!("r_{}", database.name);
    database.at_source(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON t TO {role};")).await;
    database.at_source(&format!("CREATE PUBLICATION {} FOR TABLE t", database.name)).await;
    let mut setup = Setup::of(&database);
    setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["error: role", &role, "REPLICATION", "HINT:", "ALTER ROLE", "REPLICATION;"]);
    database.at_source(&hinted_sql(&output)).await;
    let service = setup.start();
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_slot_and_a_walsender_must_be_free() {
    let source = new_source(&[("max_replication_slots", "1"), ("max_wal_senders", "3")]).await;
    let database = Database::on(&source, destination().await, "noslot", ONE, ONE_SCHEMA).await;
    database.at_source("SELECT pg_create_physical_replication_slot('taken')").await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(&output, &["all 1 replication slots at the source are taken", "HINT:", "max_replication_slots"]);

    // A resnapshot needs one more, a temporary one.
    database.at_source("SELECT pg_drop_replication_slot('taken')").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    let output = Setup::of(&database).argument("--resnapshot").start().ends_with(1).await;
    says_in_order(&output, &["all 1 replication slots at the source are taken", "HINT:", "max_replication_slots"]);

    let source = new_source(&[("max_wal_senders", "0")]).await;
    let database = Database::on(&source, destination().await, "nosender", ONE, ONE_SCHEMA).await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(&output, &["max_wal_senders is 0", "HINT:", "ALTER SYSTEM SET max_wal_senders"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_we_may_not_create_is_asked_for_with_its_sql() {
    let database = Database::of_superuser("nopub", FORUM, FORUM_SCHEMA).await;
    let role = format!("r_{}", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};"
        ))
        .await;
    let mut setup = Setup::of(&database);
    setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
    let output = setup.start().ends_with(1).await;
    says_in_order(
        &output,
        &["publication", "does not exist at the source, and our role may not create it", "CREATE PUBLICATION"],
    );
    database.at_source(&hinted_sql(&output)).await;
    let service = setup.start();
    service.streams().await;
    database.assert_equal().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_something_out_is_refused() {
    let database = Database::new("partpub", ONE, ONE_SCHEMA).await;
    database
        .at_source(&format!("CREATE PUBLICATION {} FOR TABLE t WITH (publish = 'insert, update')", database.name))
        .await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(&output, &["leaves out delete, truncate", "HINT:", "ALTER PUBLICATION"]);
    database.at_source(&hinted_sql(&output)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_must_exist_and_be_tables() {
    let database = Database::new("notable", &["t", "missing", "other.gone"], ONE_SCHEMA).await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(&output, &["tables public.missing, other.gone not found at the source"]);

    let database = Database::new("view", &["v"], "CREATE TABLE t (id int); CREATE VIEW v AS SELECT * FROM t").await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(&output, &["public.v is a view, which cannot be replicated"]);

    let database = Database::new("unlogged", &["u"], "CREATE UNLOGGED TABLE u (id int PRIMARY KEY)").await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(&output, &["unlogged", "ALTER TABLE public.u SET LOGGED;"]);
    database.at_source(&hinted_sql(&output)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_identity_is_not_published_lest_the_sources_updates_fail() {
    let database = Database::new("noid", &["h"], "CREATE TABLE h (v text); INSERT INTO h VALUES ('x')").await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(
        &output,
        &["table public.h has no replica identity", "the source application's own UPDATE", "REPLICA IDENTITY FULL"],
    );
    database.at_source("UPDATE h SET v = 'still possible'").await;
    database.at_source(&hinted_sql(&output)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_and_destination_must_differ() {
    let database = Database::new("same", ONE, ONE_SCHEMA).await;
    let mut setup = Setup::of(&database);
    // By another road, so that the text does not give it away.
    setup.destination_url = source().await.tcp_url(&database.name);
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["source and destination are the same database"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_this_destination_knows_nothing_of_is_not_touched() {
    let database = Database::new("foreign", ONE, ONE_SCHEMA).await;
    database.at_source(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", database.name)).await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(
        &output,
        &["exists but this destination has no record of it", "DETAIL:", "HINT:", "pg_drop_replication_slot"],
    );
    let count = format!("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    assert_eq!(database.source_value(&count).await.as_deref(), Some("1"), "the slot is still there");
    database.at_source(&hinted_sql(&output)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_by_somebody_else_is_said() {
    let database = Database::of_superuser("inuse", ONE, ONE_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    // Another role's session streams from our slot, and we may not end it.
    let role = format!("r_{}", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}; GRANT pg_monitor TO {role}"
        ))
        .await;
    let mut pump = std::process::Command::new("pg_recvlogical");
    let bin = headwater::commands::demo::installed_bin().unwrap();
    let url = source().await.tcp_url(&database.name);
    pump = {
        let mut command = std::process::Command::new(bin.join(pump.get_program()));
        command.args(["--start", "--slot", &database.name, "--file", "/dev/null", "--dbname", &url]);
        command.args(["-o", "proto_version=1", "-o", &format!("publication_names={}", database.name)]);
        command
    };
    let mut pump = pump.spawn().unwrap();
    let active = format!("SELECT active::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    crate::support::eventually("the slot is in use", || async {
        (database.source_value(&active).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    let mut setup = Setup::of(&database);
    setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["replication slot", "is in use by process", "HINT:"]);
    pump.kill().unwrap();
    pump.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn another_source_another_table_set_another_slot_are_told_apart() {
    let database = Database::new("other", &["t"], ONE_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;

    let elsewhere = new_source(&[]).await;
    let other = Database::on(&elsewhere, destination().await, "elsewhere", ONE, ONE_SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.source_url = elsewhere.url(&other.name);
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["the destination was fed by another source", "system identifier"]);

    // A table more is copied, one less is no longer followed: also where that is the whole set.
    database
        .at_source("CREATE TABLE more (id int PRIMARY KEY); INSERT INTO more VALUES (1); UPDATE t SET v = 'b'")
        .await;
    let mut setup = Setup::of(&database);
    setup.tables = vec!["more".to_owned()];
    let service = setup.start();
    service.says("table public.t is not configured any more and no longer followed").await;
    service.streams().await;
    crate::support::suspension::all_live(&database).await;
    database.at_source("INSERT INTO more VALUES (2); UPDATE t SET v = 'c'").await;
    database.caught_up().await;
    let rows = "SELECT (SELECT string_agg(v, ' ') FROM t) || ' ' || (SELECT count(*) FROM more)";
    assert_eq!(database.destination_value(rows).await.as_deref(), Some("secret value 2"));
    service.stop().await;

    let mut setup = Setup::of(&database);
    setup.slot.push_str("_2");
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["this destination is fed through slot", &database.name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_ahead_of_the_position_is_lost_history_and_not_started() {
    let database = Database::new("ahead", ONE, ONE_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    // As after a restore of the destination from a backup.
    database.at_destination("UPDATE headwater.position SET position = position - 8").await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(
        &output,
        &["ahead of the destination's position", "DETAIL:", "restored or failed over", "HINT:", "--resnapshot"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_tables_with_rows_need_the_operators_word() {
    let database = Database::new("rows", ONE, ONE_SCHEMA).await;
    database
        .at_destination(
            "CREATE TABLE t (id int PRIMARY KEY, v text, local int DEFAULT 5); INSERT INTO t VALUES (7, 'mine')",
        )
        .await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(&output, &["destination tables already have rows", "Table public.t has 1 row.", "--resnapshot"]);
    let nothing = "SELECT (to_regnamespace('headwater') IS NULL)::text";
    assert_eq!(database.destination_value(nothing).await.as_deref(), Some("true"), "nothing was touched");
    let slots = format!("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    assert_eq!(database.source_value(&slots).await.as_deref(), Some("0"), "nothing was touched");
    let service = Setup::of(&database).argument("--resnapshot").start();
    service.streams().await;
    let rows = "SELECT string_agg(id || v, ',' ORDER BY id) FROM t";
    assert_eq!(database.source_value(rows).await, database.destination_value(rows).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_refuse_to_be_a_synchronous_standby() {
    let source = new_source(&[("synchronous_standby_names", "*"), ("synchronous_commit", "local")]).await;
    let database = Database::on(&source, destination().await, "sync", ONE, ONE_SCHEMA).await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(&output, &["would be a synchronous standby", "HINT:", "synchronous_standby_names"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn becoming_a_synchronous_standby_later_halts() {
    let source = new_source(&[]).await;
    let database = Database::on(&source, destination().await, "synclater", ONE, ONE_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("SET synchronous_commit = local").await;
    database.at_source("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    database.at_source("SELECT pg_reload_conf()").await;
    service.is("waiting").await;
    service.says("synchronous standby").await;
    database.at_source("ALTER SYSTEM RESET synchronous_standby_names").await;
    database.at_source("SELECT pg_reload_conf()").await;
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_database_and_host_are_clear_and_show_no_password() {
    let database = Database::of_superuser("auth", ONE, ONE_SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.source_url = source().await.tcp_url("nosuchdatabase");
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["source:", "database \"nosuchdatabase\" does not exist", "HINT:", "source.url"]);

    let mut setup = Setup::of(&database);
    setup.destination_url = destination().await.tcp_url(&database.name).replace("postgres@", "nobody:hunter2@");
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["destination:", "role \"nobody\" does not exist"]);
    assert!(!output.contains("hunter2"));

    // A host that does not answer is waited for, with one line.
    let mut setup = Setup::of(&database);
    setup.source_url = format!("postgresql://postgres:hunter2@127.0.0.1:1/{}", database.name);
    let service = setup.start();
    service.says("cannot connect to postgres@127.0.0.1:1").await;
    let lines = service.log().matches("cannot connect").count();
    assert_eq!(lines, 1, "{}", service.log());
    assert!(!service.log().contains("hunter2"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_do_not_fit_are_all_listed_with_their_alter() {
    let database = Database::new(
        "misfit",
        &["t"],
        "CREATE TABLE t (id bigint PRIMARY KEY, name varchar(50), price numeric(10, 2), at timestamptz, gone text);
         INSERT INTO t VALUES (1, 'a', 1.5, now(), 'g')",
    )
    .await;
    database
        .at_destination("CREATE TABLE t (id int PRIMARY KEY, name varchar(20), price numeric(8, 1), at timestamp, mine int NOT NULL)")
        .await;
    let output = Setup::of(&database).start().ends_with(1).await;
    says_in_order(
        &output,
        &[
            "table public.t at the destination does not fit the source",
            "column id is int8 at the source, but int4 here",
            "column name is varchar(50) at the source, but varchar(20) here",
            "column price is numeric(10,2) at the source, but numeric(8,1) here",
            "column at is timestamptz at the source, but timestamp here",
            "column gone is missing",
            "column mine does not come from the source",
            "HINT:",
        ],
    );
    database.at_destination(&hinted_sql(&output)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let rows = "SELECT string_agg(id || name || price || at || gone, ',') FROM t";
    assert_eq!(database.source_value(rows).await, database.destination_value(rows).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_role_that_may_not_create_is_told_the_grant() {
    let database = Database::of_superuser("nocreate", ONE, ONE_SCHEMA).await;
    let role = format!("r_{}", database.name);
    database.at_destination(&format!("CREATE ROLE {role} LOGIN")).await;
    let mut setup = Setup::of(&database);
    setup.destination_url = setup.destination_url.replace("postgres@", &format!("{role}@"));
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["may not create schemas at the destination", "HINT:", "GRANT CREATE ON DATABASE"]);
    database.at_destination(&hinted_sql(&output)).await;
    database.at_destination(&format!("GRANT CREATE ON SCHEMA public TO {role}")).await;
    let service = setup.start();
    service.streams().await;
    database.assert_equal().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_hidden_by_row_level_security_are_an_error_not_a_smaller_copy() {
    let database = Database::of_superuser("rls", ONE, ONE_SCHEMA).await;
    let role = format!("r_{}", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}; ALTER TABLE t ENABLE ROW LEVEL SECURITY;
             CREATE POLICY p ON t USING (id > 5); CREATE PUBLICATION {} FOR TABLE t",
            database.name
        ))
        .await;
    let mut setup = Setup::of(&database);
    setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
    let output = setup.start().ends_with(1).await;
    says_in_order(&output, &["row-level security of table public.t would hide rows", "BYPASSRLS"]);
    database.at_source(&hinted_sql(&output)).await;
    let service = setup.start();
    service.streams().await;
    database.assert_equal().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_destination_that_is_a_source_of_its_own_cluster_works() {
    // One cluster, two databases: creating the slot must not wait for a transaction of ours at the destination.
    let both = new_source(&[]).await;
    let database = Database::on(&both, &new_destination(&[]).await, "samecluster", ONE, ONE_SCHEMA).await;
    both.connect("postgres")
        .await
        .unwrap()
        .script("a database", &format!("CREATE DATABASE {}_copy", database.name))
        .await
        .unwrap();
    let copy = format!("{}_copy", database.name);
    let mut setup = Setup::of(&database);
    setup.destination_url = both.url(&copy);
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO t VALUES (2, 'b')").await;
    let there = both.connect(&copy).await.unwrap();
    crate::support::eventually("the row arrives", || async {
        let row = there.query_one("counting", "SELECT count(*) FROM public.t", &[]).await.ok()?;
        (row.get::<i64>(0).unwrap() == 2).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_in_options_that_does_not_take_its_value_is_named() {
    let database = Database::new("badoption", ONE, ONE_SCHEMA).await;
    for end in ["source", "destination"] {
        let mut setup = Setup::of(&database);
        let url = if end == "source" { &mut setup.source_url } else { &mut setup.destination_url };
        let mark = if url.contains('?') { '&' } else { '?' };
        url.push_str(&format!("{mark}options=-c%20statement_timeout%3Dsecret"));
        let output = setup.start().ends_with(1).await;
        let named = format!("{end}: connecting: invalid value for parameter \"statement_timeout\"");
        says_in_order(&output, &["error: ", &named, "HINT:", &format!("options of {end}.url")]);
        let checked = setup.command(&["check"]).await.exits(1);
        says_in_order(&checked.out, &[&named]);
        assert!(!checked.out.contains("secret") && !output.contains("secret"), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_the_destination_keeps_from_us_is_named_as_the_destinations() {
    let server = new_destination(&[]).await;
    let roles = Roles::Least { replica: true };
    let database = Database::under(roles, source().await, &server, "nocontrol", ONE, ONE_SCHEMA).await;
    database.at_destination("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").await;
    let setup = Setup::of(&database);
    let refused = "destination: looking at the destination: permission denied for function pg_control_system";
    says_in_order(&setup.command(&["check"]).await.exits(1).out, &[refused]);
    says_in_order(&setup.start().ends_with(1).await, &["error: ", refused]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_trigger_that_refuses_a_schema_change_halts_the_stream_until_it_is_gone() {
    let database = Database::of_superuser("evtrigger", ONE, ONE_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database
        .at_destination(
            "CREATE FUNCTION frozen() RETURNS event_trigger LANGUAGE plpgsql AS
                 $$BEGIN RAISE EXCEPTION 'no changes this week'; END$$;
             CREATE EVENT TRIGGER frozen ON ddl_command_start WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION frozen();
             ALTER EVENT TRIGGER frozen ENABLE ALWAYS",
        )
        .await;
    setup.command(&["check"]).await.exits(0).says(&["event triggers fire for what headwater creates: frozen"]);
    database.at_source("ALTER TABLE t ADD COLUMN w int; INSERT INTO t VALUES (2, 'b', 3)").await;
    service.is("waiting").await;
    let (code, text) = service.command(&["explain"]).await;
    assert_eq!(code, Some(1), "{text}");
    says_in_order(&text, &["an exception was raised in a function or trigger"]);
    database.at_destination("DROP EVENT TRIGGER frozen").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_at_either_end_halt_a_running_service_until_one_is_free() {
    let roles = Roles::Least { replica: true };
    let database = Database::under(roles, source().await, destination().await, "fullhouse", ONE, ONE_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    for (end, client, role) in [
        ("source", &database.source, reader(&database.name)),
        ("destination", &database.destination, writer(&database.name)),
    ] {
        // It has sessions, and is to open them again: the limit holds before they end.
        let full = format!("ALTER ROLE {role} CONNECTION LIMIT 0");
        client.script("filling the server", &full).await.unwrap();
        let ends = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'");
        client.script("ending its sessions", &ends).await.unwrap();
        service.is("waiting").await;
        let (code, text) = service.command(&["explain"]).await;
        assert_eq!(code, Some(1), "{text}");
        let statement = format!("ALTER ROLE {role} CONNECTION LIMIT 20;");
        says_in_order(&text, &[&format!("{end}: "), "too many connections for role", "SQLSTATE 53300", &statement]);
        client.script("following the hint", &statement).await.unwrap();
        service.streams().await;
        database.at_source(&format!("UPDATE t SET v = '{end}'")).await;
        database.assert_catches_up().await;
    }
    service.stop().await;
}
