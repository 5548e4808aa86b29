//! After a green check a start comes to stream: what else a start needs, and what check says of it. Nothing that only follows from a
//! failure is said beside it.

use std::net::TcpListener;

use crate::support::findings::{FAMILY, FAMILY_SCHEMA, find, findings, fix, granted};
use crate::support::{Database, Setup, bin_of_version, destination, new_source_of};

/// All messages, and all hints, in one text.
fn text(found: &[serde_json::Value]) -> String {
    let part = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    found.iter().flat_map(|finding| [part(finding, "message"), part(finding, "hint")]).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_port_that_another_program_has_fails_check_and_a_start_alike() {
    let database = Database::new("port", FAMILY, FAMILY_SCHEMA).await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut setup = Setup::of(&database);
    setup.environment.push(("HEADWATER_HTTP_LISTEN".to_owned(), address.clone()));
    let message = format!("http.listen: cannot listen on {address}");
    let found = findings(&setup).await;
    assert!(find(&found, "failed", &message).is_some_and(|finding| finding["hint"].is_string()), "{found:#?}");
    setup.command(&["run"]).await.exits(1).says(&[&message, "HINT:  Set http.listen to an address that is free"]);
    drop(taken);
    let found = findings(&setup).await;
    assert!(find(&found, "ok", &format!("http.listen: {address} is free")).is_some(), "{found:#?}");
    // The running service's own port is none that is taken.
    let service = Setup::of(&database).start();
    service.streams().await;
    let (code, list) = service.command(&["check"]).await;
    assert!(code == Some(0) && list.contains("http.listen: the running service answers at"), "{list}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_table_is_told_with_the_nearest_and_nothing_that_follows_from_it() {
    let database = Database::new("misspelt", FAMILY, FAMILY_SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.tables = vec!["parent".to_owned(), "chlid".to_owned()];
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "table public.chlid not found at the source").expect("a failure");
    assert_eq!(finding["hint"], "Correct tables in the configuration. Nearest to public.chlid is public.child.");
    assert_eq!(text(&found).matches("chlid").count(), 2, "once in the message, once in the hint: {found:#?}");
    assert!(find(&found, "ok", "public.parent will be created").is_some(), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_slot_in_the_configuration_is_one_failure_and_not_a_lost_history() {
    let database = Database::new("renamed", FAMILY, FAMILY_SCHEMA).await;
    let mut setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    setup.slot = format!("other_{}", setup.slot);
    setup.environment.push(("HEADWATER_SOURCE_PUBLICATION".to_owned(), database.name.clone()));
    let found = findings(&setup).await;
    let failed: Vec<_> = found.iter().filter(|finding| finding["standing"] == "failed").collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(failed[0]["message"].as_str().unwrap_or_default().contains("is fed through slot"), "{failed:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_program_is_never_offered_to_be_dropped() {
    let database = Database::new("foreignslot", FAMILY, FAMILY_SCHEMA).await;
    let create = format!("SELECT pg_create_logical_replication_slot('{}', 'test_decoding')", database.name);
    database.at_source(&create).await;
    let setup = Setup::of(&database);
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "exists but this destination has no record of it").expect("a failure");
    assert!(finding["detail"].as_str().unwrap_or_default().contains("its output plugin is test_decoding"), "{finding}");
    assert_eq!(finding["hint"], "Choose another name for source.slot.");
    let drop = format!("SELECT pg_drop_replication_slot('{}')", database.name);
    database.at_source(&drop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_its_key_at_the_destination_is_mended_by_what_is_printed() {
    let database = Database::new("keyless", FAMILY, FAMILY_SCHEMA).await;
    let tables = "CREATE TABLE parent (id int, v text);
        CREATE TABLE child (id int NOT NULL, parent int, v varchar(20), other int PRIMARY KEY DEFAULT 1)";
    database.at_destination(tables).await;
    let setup = Setup::of(&database);
    for (table, statement) in [
        ("public.parent", "ALTER TABLE public.parent ADD PRIMARY KEY (id);"),
        ("public.child", "CREATE UNIQUE INDEX ON public.child (id);"),
    ] {
        let message = format!("table {table} has no unique index over its key (id) at the destination");
        let found = findings(&setup).await;
        let finding = find(&found, "warning", &message).unwrap_or_else(|| panic!("no {message:?} in {found:#?}"));
        assert_eq!(fix(finding), statement);
        database.at_destination(statement).await;
        assert!(find(&findings(&setup).await, "warning", &message).is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_prints_what_is_to_be_acted_on_and_nothing_else() {
    let (database, setup, role) = granted("quietly").await;
    let all = setup.command(&["check"]).await.exits(0);
    // How much room the disk has left differs from one to the other.
    let warnings = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.split_once("  warning  ")?.0.to_owned())).collect()
    };
    let quiet = setup.command(&["check", "--quiet"]).await.exits(0);
    assert_eq!(warnings(&quiet.out), warnings(&all.out));
    assert!(!quiet.out.contains("  ok  "), "{}", quiet.out);
    assert!(!all.out.contains('\u{1b}'), "colours are for terminals");
    database.at_source(&format!("REVOKE SELECT ON child FROM {role}")).await;
    let failed = setup.command(&["check", "-q"]).await.exits(1);
    assert!(
        failed.out.contains("  failed   ") && failed.out.contains("HINT:") && !failed.out.contains("  ok  "),
        "{}",
        failed.out
    );
}

/// Which roles may see the setting decides how it is found: both are tried.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_output_plugin_that_the_source_does_not_allow_is_mended_by_what_is_printed() {
    let Some(bin) = bin_of_version("18.6") else { return };
    // Not on its command line, which ALTER SYSTEM could not change.
    let cluster = new_source_of(&bin, &[]).await;
    let database = Database::on(&cluster, destination().await, "plugins", FAMILY, FAMILY_SCHEMA).await;
    let role = format!("replicator_{}", database.name);
    let grants = format!(
        "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON parent, child TO {role}; CREATE PUBLICATION {} FOR TABLE parent, child",
        database.name
    );
    database.at_source(&grants).await;
    let seeing = Setup::of(&database);
    let mut blind = seeing.clone();
    blind.source_url = blind.source_url.replacen("postgres@", &format!("{role}@"), 1);
    assert_ne!(blind.source_url, seeing.source_url);
    let message = "output_plugin_libraries at the source does not list pgoutput";
    for setup in [&blind, &seeing] {
        assert!(find(&findings(setup).await, "failed", message).is_none());
        database.at_source("ALTER SYSTEM SET output_plugin_libraries = 'test_decoding'").await;
        database.at_source("SELECT pg_reload_conf()").await;
        crate::support::eventually("the setting counts", || async {
            (database.source_value("SHOW output_plugin_libraries").await? == "test_decoding").then_some(())
        })
        .await;
        let found = findings(setup).await;
        let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no {message:?} in {found:#?}"));
        setup.command(&["run"]).await.exits(1).says(&["output_plugin"]);
        for statement in fix(finding).lines() {
            database.at_source(statement).await;
        }
        crate::support::eventually("check finds nothing any more", || async {
            find(&findings(setup).await, "failed", message).is_none().then_some(())
        })
        .await;
    }
    let service = blind.start();
    service.streams().await;
    service.stop().await;
}

/// A trigger of the destination's whose function names a table without its schema, as one that pg_dump has brought along.
const TRIGGER: &str = "
    CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE log_of_parent (at timestamptz DEFAULT now());
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN EXECUTE ''INSERT INTO log_of_parent /* '' || NEW.v || '' */ DEFAULT VALUES''; RETURN NEW; END';
    CREATE TRIGGER noted {when} INSERT ON parent FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE parent ENABLE ALWAYS TRIGGER noted;";

#[tokio::test(flavor = "multi_thread")]
async fn a_function_of_an_index_that_may_not_find_names_is_warned_of() {
    let database = Database::with_replica_role("called", &["parent"], FAMILY_SCHEMA).await;
    database
        .at_destination(
            "CREATE TABLE parent (id int PRIMARY KEY, v text);
             CREATE FUNCTION other(t text) RETURNS text LANGUAGE sql IMMUTABLE SET search_path = public AS 'SELECT $1';
             CREATE FUNCTION key_of(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN other(t); END';
             CREATE FUNCTION atomic(t text) RETURNS text LANGUAGE sql IMMUTABLE RETURN t;
             CREATE INDEX ON parent (key_of(v)); CREATE INDEX ON parent (other(v)); CREATE INDEX ON parent (atomic(v))",
        )
        .await;
    let setup = Setup::of(&database);
    let message = "indexes, checks or generated columns of table public.parent call public.key_of(text)";
    let found = findings(&setup).await;
    assert_eq!(find(&found, "warning", message).expect("a warning")["message"], message);
    let service = setup.start();
    service.is("waiting").await;
    let statement = "ALTER FUNCTION public.key_of(text) SET search_path = public;";
    let (_, text) = service.command(&["explain"]).await;
    assert!(text.contains(statement), "{text}");
    database.at_destination(statement).await;
    // A copy that has failed three times by then waits for this.
    setup.command(&["resnapshot", "--no-wait"]).await;
    service.streams().await;
    database.assert_catches_up().await;
    let found = findings(&setup).await;
    assert!(find(&found, "warning", message).is_none(), "{found:#?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_cannot_find_a_table_is_named_with_its_fix_and_no_value() {
    let message = "function public.note() failed: a table that it names was not found";
    for when in ["BEFORE", "AFTER"] {
        let database = Database::with_replica_role("noted", &["parent"], FAMILY_SCHEMA).await;
        database.at_destination(&TRIGGER.replace("{when}", when)).await;
        let setup = Setup::of(&database);
        let found = findings(&setup).await;
        let warned = find(&found, "warning", "triggers of table public.parent fire for what is applied: noted");
        let detail = warned.expect("a warning")["detail"].as_str().unwrap_or_default().to_owned();
        assert!(detail.contains("search_path is empty for them"), "{detail}");
        setup.command(&["check"]).await.exits(0);
        // What check has not called a failure does not end a start, either.
        let service = setup.start();
        service.is("waiting").await;
        let (code, text) = service.command(&["explain"]).await;
        assert_eq!(code, Some(1), "{text}");
        let statement = "ALTER FUNCTION public.note() SET search_path = public;";
        for said in [message, "Table public.parent was being filled.", statement] {
            assert!(text.contains(said) && !text.contains("secret"), "no {said:?} in {text}");
        }
        database.at_destination(statement).await;
        // A copy that has failed three times by then waits for this.
        setup.command(&["resnapshot", "--no-wait"]).await;
        service.streams().await;
        // The same while streaming.
        database.at_destination("ALTER FUNCTION note() RESET search_path").await;
        database.at_source("INSERT INTO parent VALUES (2, 'secret')").await;
        service.says(message).await;
        service.says(statement).await;
        let status = service.get("/status").await.expect("a status").1;
        assert!(!service.log().contains("secret") && !status.contains("secret"), "no value is told");
        database.at_destination(statement).await;
        service.streams().await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}
