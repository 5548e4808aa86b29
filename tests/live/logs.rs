//! Logs: one JSON object a line, one line per change of state, fields named as the metrics; and what a package installs.

use std::process::Command;

use serde_json::Value;

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, eventually, headwater, parent, tools};

fn lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn json_logs_have_one_object_a_line_with_state_detail_and_hint_and_no_value() {
    let database = Database::new("logs", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).argument("--log-format=json").start();
    service.streams().await;
    database.at_source("UPDATE messages SET body = 'SECRET' WHERE id <= 321").await;
    database.caught_up().await;
    service.says("\"batch_rows\":321").await;
    database.at_destination("DELETE FROM messages WHERE id = 7").await;
    database.at_source("UPDATE messages SET body = 'SECRET' WHERE id = 7").await;
    service.is("waiting").await;
    let log = service.log();
    assert!(!log.contains("SECRET"), "{log}");
    let lines = lines(&log);
    let waiting = lines.iter().find(|line| line["state"] == "waiting").expect("a line for the state");
    assert_eq!(waiting["level"], "ERROR");
    assert!(waiting["hint"].as_str().unwrap().contains("Insert it there again"), "{waiting}");
    assert!(!waiting["message"].as_str().unwrap().contains('\n'), "{waiting}");
    let batch = lines.iter().find(|line| line["batch_rows"] == 321).expect("a line for the batch");
    assert!(batch["level"] == "DEBUG" && batch["apply_duration_seconds"].as_f64().unwrap() > 0.0, "{batch}");
    let streaming = lines.iter().filter(|line| line["state"] == "streaming").count();
    assert_eq!(streaming, 1, "one line per change of state");
    service.stop().await;
}

/// Types whose values name objects, each with a value and what makes its object.
const NAMING: &[(&str, &str, &str)] = &[
    ("regclass", "s3cret", "CREATE TABLE s3cret (id int)"),
    ("regtype", "s3cret_d", "CREATE DOMAIN s3cret_d AS int"),
    ("regproc", "s3cret_f", "CREATE FUNCTION s3cret_f() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    ("regprocedure", "s3cret_p(integer)", "CREATE FUNCTION s3cret_p(int) RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    ("regnamespace", "s3cret_s", "CREATE SCHEMA s3cret_s"),
    ("regconfig", "s3cret_c", "CREATE TEXT SEARCH CONFIGURATION s3cret_c (COPY = simple)"),
    ("regcollation", "s3cret_l", "CREATE COLLATION s3cret_l FROM \"C\""),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_value_that_names_an_object_which_the_destination_lacks_is_shown_nowhere() {
    let columns: String = (0..).zip(NAMING).map(|(number, (name, ..))| format!(", c{number} {name}")).collect();
    let database = Database::new("named", &["t"], &format!("CREATE TABLE t (id int PRIMARY KEY{columns})")).await;
    let setup = Setup::of(&database);
    let said = "a value names something that the server does not have";
    let insert = |number: usize, value: &str| format!("INSERT INTO t (id, c{number}) VALUES ({number}, '{value}')");
    let (copied, streamed) = NAMING.split_at(3);
    for (number, (name, value, create)) in copied.iter().enumerate() {
        database.at_source(&format!("{create}; {}", insert(number, value))).await;
        let output = setup.start().ends_with(1).await;
        assert!(output.contains(said) && !output.contains("s3cret"), "{name}: {output}");
        database.at_destination(create).await;
    }
    let service = setup.start();
    service.streams().await;
    for (number, (name, value, create)) in NAMING.iter().enumerate().skip(copied.len()).take(streamed.len()) {
        let seen = service.log().matches(said).count();
        database.at_source(&format!("{create}; {}", insert(number, value))).await;
        eventually(&format!("{name} is missed"), || async {
            (service.log().matches(said).count() > seen).then_some(())
        })
        .await;
        for path in ["/", "/status", "/metrics", "/readyz"] {
            let (_, text) = service.get(path).await.expect("an answer");
            assert!(!text.contains("s3cret"), "{name} {path}: {text}");
        }
        let explained = setup.command(&["explain"]).await;
        assert!(!format!("{}{}", explained.out, explained.err).contains("s3cret"), "{name}: {}", explained.out);
        assert!(!service.log().contains("s3cret"), "{name}: {}", service.log());
        database.at_destination(create).await;
        service.streams().await;
        database.caught_up().await;
    }
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_words_of_a_service_that_ends_are_json_too() {
    let mut database = Database::new("lastwords", FORUM, FORUM_SCHEMA).await;
    database.tables = vec!["public.nowhere".to_owned()];
    let output = Setup::of(&database).argument("--log-format=json").start().ends_with(1).await;
    let lines = lines(&output);
    let last = lines.last().expect("a line");
    assert!(last["level"] == "ERROR" && last["message"].as_str().unwrap().contains("public.nowhere"), "{last}");
}

#[test]
fn completions_are_accepted_by_their_shell_and_every_command_has_a_manual_page() {
    let output = Command::new(headwater()).args(["completions", "bash"]).output().unwrap();
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && script.contains("explain"), "{script}");
    if let Some(bash) = tools::program("bash") {
        let (accepted, words) = tools::run(&bash, &["-n"], &script);
        assert!(accepted, "{words}");
    }
    let dir = parent().join(format!("man-{:08x}", fastrand::u32(..)));
    let status = Command::new(headwater()).arg("man").arg(&dir).status().unwrap();
    assert!(status.success());
    for page in ["headwater", "headwater-run", "headwater-status", "headwater-explain"] {
        let text =
            std::fs::read_to_string(dir.join(format!("{page}.1"))).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".TH"), "{page}:\n{text}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
