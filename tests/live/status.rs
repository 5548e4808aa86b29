//! `headwater status`: fresh, behind, down, and never fed.

use std::process::{Command, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::command::assert_says;
use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, eventually, headwater};

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_where_the_copy_stands_while_the_service_runs_and_when_it_is_down() {
    let database = Database::new("status", FORUM, FORUM_SCHEMA).await;
    let mut service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE messages SET body = 'x' WHERE id <= 1234").await;
    database.caught_up().await;
    let output = eventually("the service is ready, and has looked at its slot", || async {
        let (code, output) = service.command(&["status"]).await;
        (code == Some(0) && !output.contains("was not read yet")).then_some(output)
    })
    .await;
    assert_says(
        &output,
        &["The copy is fresh.", "streaming for", "1,234", "5,000", "public.messages", "reserved", "heartbeat"],
    );

    let (code, output) = service.command(&["status", "--json"]).await;
    assert_eq!(code, Some(0));
    let json: Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!((&json["running"], &json["status"]["state"]), (&Value::Bool(true), &Value::from("streaming")));
    assert_eq!(json["status"]["tables"]["public.messages"]["updates"], 1234);

    service.kill();
    database.at_source("UPDATE messages SET body = repeat('y', 100)").await;
    let position = database.destination_value("SELECT position::text FROM headwater.position").await.unwrap();
    let output = eventually("nobody leads any more", || async {
        let (code, output) = service.command(&["status"]).await;
        assert_eq!(code, Some(1), "{output}");
        output.contains("not running").then_some(output)
    })
    .await;
    let stands = format!("stands at {position}");
    assert_says(
        &output,
        &[&stands, "of WAL are not at the destination", "follows public.messages", "keeps", "nothing answers at"],
    );
    let (_, output) = service.command(&["status", "--json"]).await;
    let json: Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!((&json["running"], &json["destination"]["position"]), (&Value::Bool(false), &Value::from(position)));
    assert_eq!(json["source"]["slot"]["wal_status"], "reserved");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_that_an_instance_elsewhere_leads_and_that_nothing_was_ever_fed() {
    let database = Database::new("statuselse", FORUM, FORUM_SCHEMA).await;
    let mut down = Setup::of(&database).start();
    down.kill();
    let (code, output) = down.command(&["status"]).await;
    assert_eq!(code, Some(1), "{output}");
    let leader = Setup::of(&database).start();
    leader.streams().await;
    let (code, output) = down.command(&["status"]).await;
    assert_eq!(code, Some(1), "{output}");
    assert_says(&output, &["an instance elsewhere leads", "connected from this machine, leads"]);
    leader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_the_server_that_cannot_be_reached_and_no_password() {
    let database = Database::new("statusgone", FORUM, FORUM_SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.source_url = "postgresql://someone:secretword@127.0.0.1:1/nowhere".to_owned();
    let mut service = setup.start();
    service.kill();
    for command in ["status", "explain"] {
        let (code, output) = service.command(&[command]).await;
        assert_eq!(code, Some(1), "{output}");
        assert_says(&output, &["someone@127.0.0.1:1/nowhere"]);
        assert!(!output.contains("secretword"), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_goes_on_until_nobody_reads() {
    let database = Database::new("statuswatch", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let mut command = Command::new(headwater());
    command.args(["status", "--watch", "--config"]).arg(service.configuration_file()).stdout(Stdio::piped());
    let mut child = tokio::process::Command::from(command).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut pictures = 0;
    while pictures < 2 {
        let line = lines.next_line().await.unwrap().expect("it goes on");
        pictures += u32::from(line.starts_with("state "));
    }
    drop(lines);
    let ended = tokio::time::timeout(crate::support::PATIENCE, child.wait()).await;
    assert!(ended.expect("it ends when nobody reads").unwrap().success());
    service.stop().await;
}
