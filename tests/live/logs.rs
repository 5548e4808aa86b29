//! Logs: one JSON object a line, one line per change of state, fields named as the metrics; and what a package installs.

use std::process::Command;

use serde_json::Value;

use crate::basics::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, headwater, parent, tools};

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
