//! What `headwater check --json` finds, and a pair of tables to look at.

use serde_json::Value;

use super::{Database, Setup};

/// A parent and its child.
pub const FAMILY: &[&str] = &["parent", "child"];

pub const FAMILY_SCHEMA: &str = "
    CREATE TABLE parent (id int PRIMARY KEY, v text);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, v varchar(20));
    INSERT INTO parent VALUES (1, 'secret'); INSERT INTO child VALUES (1, 1, 'secret');";

/// What check found, as objects.
pub async fn findings(setup: &Setup) -> Vec<Value> {
    let finished = setup.command(&["check", "--json"]).await;
    let found: Value =
        serde_json::from_str(&finished.out).unwrap_or_else(|_| panic!("no JSON:\n{}{}", finished.out, finished.err));
    let found = found.as_array().expect("an array").clone();
    let failed = found.iter().any(|finding| finding["standing"] == "failed");
    assert_eq!(finished.code, Some(i32::from(failed)), "{}", finished.out);
    assert!(!finished.out.contains("secret"), "a value is in\n{}", finished.out);
    found
}

/// The finding with this text in its message and this standing.
pub fn find<'a>(found: &'a [Value], standing: &str, text: &str) -> Option<&'a Value> {
    found.iter().find(|finding| {
        finding["standing"] == standing && finding["message"].as_str().unwrap_or_default().contains(text)
    })
}

/// The SQL that a finding's hint holds: all but its first line.
pub fn fix(finding: &Value) -> String {
    let hint = finding["hint"].as_str().unwrap_or_else(|| panic!("no hint in {finding}"));
    let lines: Vec<&str> = hint.lines().skip(1).collect();
    assert!(!lines.is_empty(), "no SQL in {finding}");
    lines.join("\n")
}

/// A pair of databases with an ordinary role on either side, to which everything is granted that check asks for.
pub async fn granted(name: &str) -> (Database, Setup, String) {
    let database = Database::of_superuser(name, FAMILY, FAMILY_SCHEMA).await;
    let role = format!("r_{}", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON parent, child TO {role};
             CREATE PUBLICATION {} FOR TABLE parent, child",
            database.name
        ))
        .await;
    database
        .at_destination(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role}", database.name))
        .await;
    database.at_destination(&format!("GRANT USAGE, CREATE ON SCHEMA public TO {role}")).await;
    let mut setup = Setup::of(&database);
    let login = format!("{role}@");
    setup.source_url = setup.source_url.replace("postgres@", &login);
    setup.destination_url = setup.destination_url.replace("postgres@", &login);
    (database, setup, role)
}

/// The failure with this message; its hint is there.
pub async fn failed(setup: &Setup, message: &str) -> Value {
    let found = findings(setup).await;
    let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no failure {message:?} in {found:#?}"));
    assert!(finding["hint"].is_string(), "{finding}");
    finding.clone()
}

/// Asserts that check finds no failure.
pub async fn mended(setup: &Setup) {
    let found = findings(setup).await;
    assert!(found.iter().all(|finding| finding["standing"] != "failed"), "{found:#?}");
}

/// The hint of a finding.
pub fn hint(finding: &Value) -> &str {
    finding["hint"].as_str().expect("a hint")
}
