//! What check tells of a pair that works, and that it tells all of it: one failure hides no other.

use serde_json::Value;

use crate::support::findings::{FAMILY, FAMILY_SCHEMA, find, findings, fix, granted};
use crate::support::{Database, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn what_points_at_the_set_from_outside_is_named() {
    let database = Database::new("outside", &["parent"], FAMILY_SCHEMA).await;
    database
        .at_destination(
            "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE mine (p int REFERENCES parent);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER always BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE parent ENABLE ALWAYS TRIGGER always",
        )
        .await;
    let setup = Setup::of(&database);
    let found = findings(&setup).await;
    assert!(find(&found, "warning", "local tables point at table public.parent: public.mine").is_some(), "{found:#?}");
    assert!(
        find(&found, "warning", "triggers of table public.parent fire for what is applied: always").is_some(),
        "{found:#?}"
    );
    let database = Database::new("outside2", &["child"], FAMILY_SCHEMA).await;
    let found = findings(&Setup::of(&database)).await;
    assert!(find(&found, "warning", "points at public.parent, which is not replicated").is_some(), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_read_hides_nothing_else() {
    let (database, setup, role) = granted("hides").await;
    database
        .at_source(&format!("REVOKE SELECT ON child FROM {role}; ALTER TABLE parent ENABLE ROW LEVEL SECURITY"))
        .await;
    database
        .at_destination(
            "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (id int PRIMARY KEY, parent int);
             INSERT INTO parent VALUES (1, 'secret')",
        )
        .await;
    let found = findings(&setup).await;
    for message in [
        "may not read table public.child at the source",
        "row-level security of table public.parent would hide rows",
        "lacks SELECT, INSERT, UPDATE, DELETE, TRUNCATE on table public.child at the destination",
        "lacks SELECT, INSERT, UPDATE, DELETE, TRUNCATE on table public.parent at the destination",
        "table public.child at the destination does not fit",
    ] {
        let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no {message:?} in {found:#?}"));
        assert!(!fix(finding).is_empty());
    }
    for what in ["publication", "encodings", "clocks", "disk", "history", "replica identity"] {
        let seen = found.iter().any(|finding| finding["what"] == what);
        assert_eq!(seen, what != "history", "{what}: {found:#?}");
    }
    let told = found.iter().all(|finding| finding["standing"] != "failed" || finding["hint"].is_string());
    assert!(told && !found.iter().any(|finding| finding["message"].as_str().unwrap().contains("permission denied")));
    // All that is printed, at once: what is left is what could not be seen before.
    for finding in found.iter().filter(|finding| finding["standing"] == "failed") {
        match finding["about"].as_str() {
            Some("source") => database.at_source(&fix(finding)).await,
            _ => database.at_destination(&fix(finding)).await,
        }
    }
    let found = findings(&setup).await;
    let failed: Vec<&Value> = found.iter().filter(|finding| finding["standing"] == "failed").collect();
    assert_eq!(failed.len(), 1, "{found:#?}");
    assert!(find(&found, "failed", "destination tables already have rows").is_some());
    database.at_destination("TRUNCATE parent CASCADE").await;
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_has_not_come_to_a_change_yet_is_no_failure_where_run_follows_it() {
    let database = Database::new("ahead", FAMILY, FAMILY_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    database.at_source("ALTER TABLE child ADD COLUMN late text").await;
    let found = findings(&setup).await;
    let finding = find(&found, "warning", "table public.child at the destination does not fit").expect("a warning");
    assert!(finding["detail"].as_str().unwrap().contains("The stream has not come to that change yet"), "{finding}");
    let operators = setup.clone().setting("schema_changes = \"stop\"");
    assert!(
        find(&findings(&operators).await, "failed", "table public.child at the destination does not fit").is_some()
    );
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE child SET v = 'secret'").await;
    database.assert_catches_up().await;
    service.stop().await;
    assert!(find(&findings(&setup).await, "ok", "they fit; values travel in binary").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_types_and_inheritance_are_told() {
    let schema = "CREATE TABLE parent (id int PRIMARY KEY, t regclass); CREATE TABLE child (id int PRIMARY KEY);
        CREATE TABLE heir () INHERITS (child);";
    let (database, setup, role) = {
        let database = Database::of_superuser("told", FAMILY, schema).await;
        let role = format!("r_{}", database.name);
        database
            .at_destination(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role}", database.name))
            .await;
        let mut setup = Setup::of(&database);
        setup.destination_url = setup.destination_url.replace("postgres@", &format!("{role}@"));
        (database, setup, role)
    };
    database
        .at_destination(&format!(
            "CREATE TABLE parent (id int PRIMARY KEY, t regclass); CREATE TABLE child (id int PRIMARY KEY);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER ordinary BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION f();
             CREATE TRIGGER replica BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE parent ENABLE REPLICA TRIGGER replica; GRANT ALL ON parent, child TO {role}; GRANT USAGE ON SCHEMA public TO {role}"
        ))
        .await;
    let found = findings(&setup).await;
    assert!(find(&found, "ok", "values travel as text, because of public.parent.t (regclass)").is_some(), "{found:#?}");
    assert!(find(&found, "warning", "other tables inherit from table public.child").is_some(), "{found:#?}");
    assert!(
        find(&found, "warning", "triggers of table public.parent fire for what is applied: ordinary").is_some(),
        "{found:#?}"
    );
    let superuser = Setup::of(&database);
    let found = findings(&superuser).await;
    assert!(
        find(&found, "warning", "triggers of table public.parent fire for what is applied: replica").is_some(),
        "{found:#?}"
    );
}
