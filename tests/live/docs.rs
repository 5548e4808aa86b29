//! What the documentation tells people to run does run: statements verbatim (roles get names of their own), commands with the
//! flags that they show.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::roles::{as_role, blocks, pages, reader, statements, writer};
use crate::support::{Database, Setup, headwater};

fn help(command: &str) -> Option<String> {
    let output = std::process::Command::new(headwater())
        .args(command.split(' '))
        .arg("--help")
        .output()
        .expect("headwater starts");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn every_command_in_the_documentation_exists_with_its_flags() {
    let mut helps: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        let in_blocks = blocks(&text).into_iter().filter(|(language, ..)| language == "sh" || language == "console");
        let in_blocks = in_blocks.flat_map(|(_, text, _)| text.lines().map(str::to_owned).collect::<Vec<_>>());
        // Commands in running text, too.
        let inline = text.split('`').skip(1).step_by(2).map(|line| (line.to_owned(), false));
        for (line, is_command) in in_blocks.map(|line| (line, true)).chain(inline) {
            let line = line.trim_start_matches("$ ").split('#').next().unwrap_or_default().to_owned();
            let mut words = line.split_whitespace();
            if words.next() != Some("headwater") {
                continue;
            }
            let Some(command) = words.next().filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            else {
                continue;
            };
            if command.starts_with('-') {
                continue;
            }
            // A command of a command, as dead-letter show.
            let inner = words
                .next()
                .map(|word| format!("{command} {word}"))
                .filter(|both| both.chars().all(|c| c.is_ascii_lowercase() || c == ' ') || command == "dead-letter")
                .filter(|both| !both.contains(" -") && help(both).is_some());
            let command = inner.as_deref().unwrap_or(command);
            let help = helps.entry(command.to_owned()).or_insert_with(|| help(command));
            let Some(help) = help else {
                // Running text may also say what headwater is, or would be.
                assert!(!is_command && !line.contains("--"), "{}: no command {command:?} in {line:?}", page.display());
                continue;
            };
            for flag in line.split_whitespace().filter(|word| word.starts_with("--")) {
                let flag = flag.split('=').next().unwrap_or(flag).trim_end_matches([';', ',', '.']);
                let flag = flag.split('[').next().unwrap_or(flag);
                assert!(help.contains(flag), "{}: {command} has no {flag}: {line:?}", page.display());
            }
            seen.insert(command.to_owned());
        }
    }
    for command in ["run", "check", "verify", "teardown", "cutover", "init"] {
        assert!(seen.contains(command), "no page tells of headwater {command}");
    }
}

#[test]
fn every_command_explains_itself_and_completions_know_them_all() {
    for command in ["run", "check", "init", "verify", "cutover", "teardown", "completions", "demo"] {
        let text = help(command).unwrap_or_else(|| panic!("headwater {command} --help"));
        assert!(text.lines().next().is_some_and(|line| line.len() > 10), "{command} says nothing of itself:\n{text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output =
            std::process::Command::new(headwater()).args(["completions", shell]).output().expect("headwater starts");
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("teardown") && text.contains("max-rate"), "{shell}");
    }
}

async fn under_roles(name: &str, optional: bool) {
    let database = Database::of_superuser(name, FORUM, FORUM_SCHEMA).await;
    database.at_source(&statements("source", &database.name)).await;
    database.at_destination(&statements("destination", &database.name)).await;
    let version = database.destination_value("SELECT current_setting('server_version_num')").await.unwrap();
    // 14 cannot grant it: there only superusers may set it.
    let optional = optional && version.parse::<u32>().unwrap() >= 150_000;
    if optional {
        database.at_destination(&statements("destination, optional", &database.name)).await;
    }
    let mut setup = Setup::of(&database);
    setup.source_url = as_role(&setup.source_url, &reader(&database.name));
    setup.destination_url = as_role(&setup.destination_url, &writer(&database.name));
    let says = if optional { "replica: foreign keys" } else { "origin: foreign keys" };
    setup.command(&["check"]).await.exits(0).says(&[says]);
    let service = setup.start();
    service.streams().await;
    database
        .at_source(
            "BEGIN; INSERT INTO sections (name, place) VALUES ('new', 1); UPDATE messages SET topic_id = 2 WHERE topic_id = 1;
             DELETE FROM topics WHERE id = 1; INSERT INTO messages SELECT i, 2, 'b', 1, true FROM generate_series(9001, 9200) i; COMMIT;
             DELETE FROM sections WHERE name = 'section 5'; UPDATE topics SET title = 'new' WHERE id = 2",
        )
        .await;
    database.assert_catches_up().await;
    setup.command(&["verify"]).await.exits(0);
    database
        .at_destination("DELETE FROM messages WHERE id = 9003; UPDATE sections SET place = 77 WHERE name = 'new'")
        .await;
    setup.command(&["verify", "--repair"]).await.exits(0).says(&["1 updated, 1 inserted"]);
    setup.command(&["cutover"]).await.exits(0).says(&["the destination may be written"]);
    service.stop().await;
    let again = setup.clone().argument("--resnapshot").start();
    again.streams().await;
    database.assert_equal().await;
    again.stop().await;
    setup.command(&["teardown"]).await.exits(0).says(&[
        "removed: slot",
        "which headwater did not create",
        "removed: the bookkeeping",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn everything_works_under_the_documented_roles() {
    under_roles("roles", true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn everything_works_where_session_replication_role_may_not_be_set() {
    under_roles("origin", false).await;
}
