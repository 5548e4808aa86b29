//! Servers that take a question and do not answer: one of their processes stands still, or waits for something that is no lock. Each is said
//! once in the log, stands in /status and `explain` with what is asked of whom, and is no obstacle to SIGTERM.

use std::process::Command;

use headwater::commands::demo::{Cluster, StopMode};
use headwater::session::SqlClient;

use crate::support::{Database, Service, Setup, bin_of, destination, eventually, new_source, new_source_of};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i";

/// Server processes that stand still, until this is dropped.
struct Stopped(Vec<String>);

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("CONT", &self.0);
    }
}

/// Stops a whole server: whoever connects is taken by its kernel, and nobody answers.
fn freeze(cluster: &Cluster) -> Stopped {
    let file = std::fs::read_to_string(cluster.dir().join("data/postmaster.pid")).expect("a server that runs");
    let postmaster = file.lines().next().expect("its process").trim().to_owned();
    // First, so that it starts none meanwhile.
    assert!(signal("STOP", std::slice::from_ref(&postmaster)), "{postmaster} is stopped");
    let children = Command::new("ps").args(["-o", "pid=", "--ppid", &postmaster]).output().expect("ps runs");
    let children = String::from_utf8_lossy(&children.stdout).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert!(signal("STOP", &children), "{children:?} are stopped");
    Stopped([children, vec![postmaster]].concat())
}

fn signal(name: &str, processes: &[String]) -> bool {
    let status = Command::new("kill").arg(format!("-{name}")).args(processes).status();
    status.is_ok_and(|status| status.success())
}

/// Stops the processes of which this condition on pg_stat_activity holds, once there are any. Nothing else of a session may move either.
async fn stop(client: &SqlClient, condition: &str) -> Stopped {
    let sql = format!("SELECT pid::text FROM pg_stat_activity WHERE datname = current_database() AND {condition}");
    let processes = eventually(condition, || async {
        let rows = client.query("asking", &sql, &[]).await.ok()?;
        let found: Vec<String> = rows.iter().map(|row| row.get::<String>(0).unwrap()).collect();
        (!found.is_empty()).then_some(found)
    })
    .await;
    assert!(signal("STOP", &processes), "{processes:?} are stopped");
    Stopped(processes)
}

/// Waits until all of it is said, and asserts that the log says it once.
async fn is_said(service: &Service, what: &str, words: &[&str]) {
    let has_all = |text: &str| text.contains(what) && words.iter().all(|word| text.contains(word));
    eventually(&format!("{what:?} is said"), || async {
        let status = service.status().await?;
        let is_shown = status.get("waits")?.as_array()?.iter().any(|wait| wait.as_str().is_some_and(has_all));
        (is_shown && service.log().lines().any(has_all)).then_some(())
    })
    .await;
    let (code, explained) = service.command(&["explain"]).await;
    let blocks = explained.lines().any(|line| line.starts_with("BLOCKS") && line.contains(what));
    assert!(code == Some(1) && blocks && has_all(&explained), "{explained}");
    let times = service.log().lines().filter(|line| line.contains(what)).count();
    assert_eq!(times, 1, "{}", service.log());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_server_process_that_does_not_answer_is_named_with_what_it_was_asked() {
    let database = Database::new("silence", &["t"], TABLE).await;
    let setup = Setup::of(&database);
    // A copy: slow enough to be met.
    let copying = setup.clone().section("[snapshot]\nmax_rate = \"200kB\"").start();
    let stopped = stop(&database.source, "query LIKE 'COPY %' AND state = 'active'").await;
    let what = "reading rows from the source: no answer from ";
    is_said(&copying, what, &["Process ", &stopped.0[0], "It is given up after "]).await;
    copying.stop().await;
    drop(stopped);
    // The stream.
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let stopped = stop(&database.source, "backend_type = 'walsender'").await;
    let what = "the source does not answer: no sign of life of the stream from ";
    is_said(&service, what, &["Process ", &stopped.0[0], "It is given up after 1m"]).await;
    drop(stopped);
    database.at_source("UPDATE t SET v = 'b' WHERE id < 10").await;
    database.assert_catches_up().await;
    // A batch.
    let stopped = stop(&database.destination, "application_name LIKE '%writing%'").await;
    database.at_source("UPDATE t SET v = 'c' WHERE id < 10").await;
    let what = "writing to the destination: no answer from ";
    is_said(&service, what, &["Process ", &stopped.0[0], "It is given up after destination.timeout"]).await;
    service.stop().await;
    drop(stopped);
    let service = setup.start();
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_source_that_stands_still_is_told_before_it_is_given_up_and_an_idle_one_is_not() {
    let source = new_source(&[]).await;
    let database = Database::on(&source, destination().await, "frozen", &["t"], TABLE).await;
    let service = Setup::of(&database).source("heartbeat_every = \"off\"").source("timeout = \"15s\"").start();
    service.streams().await;
    database.caught_up().await;
    // Idle for longer than a silent source would be waited for without a word.
    let walsender = format!("FROM pg_stat_replication WHERE application_name LIKE '%{}%'", database.name);
    let first = database.source_value(&format!("SELECT max(reply_time)::text {walsender}")).await.expect("a walsender");
    let later = format!("SELECT (max(reply_time) > '{first}'::timestamptz + interval '12 s')::text {walsender}");
    eventually("the stream has been idle", || async {
        (database.source_value(&later).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    let silent = "the source does not answer: no sign of life of the stream from ";
    let connecting = "connecting: no answer from ";
    assert!(!service.log().contains("no answer from") && !service.log().contains(silent), "{}", service.log());
    let frozen = freeze(&source);
    is_said(&service, silent, &["Process ", "It is given up after 15s"]).await;
    service.says("the source has said nothing for 15s").await;
    let position = |what: &str| service.log().find(what).expect("it is said");
    assert!(position(silent) < position("the source has said nothing for 15s"), "{}", service.log());
    is_said(&service, connecting, &["A host is given up after connect_timeout, 10s"]).await;
    drop(frozen);
    database.at_source("UPDATE t SET v = 'b' WHERE id < 10").await;
    database.assert_catches_up().await;
    let is_over = || async { service.status().await?["waits"].as_array()?.is_empty().then_some(()) };
    eventually("no wait is shown", is_over).await;
    // It is no obstacle to SIGTERM.
    let frozen = freeze(&source);
    service.stop().await;
    drop(frozen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_waits_for_standbys_is_told_with_the_setting_that_says_so() {
    let Some(bin) = bin_of(17) else { return };
    let mut source = new_source_of(&bin, &[]).await;
    let database = Database::on(&source, destination().await, "standbyslots", &["t"], TABLE).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database.at_source("SELECT pg_create_physical_replication_slot('gone', true)").await;
    database.at_source("ALTER SYSTEM SET synchronized_standby_slots = 'gone'").await;
    database.at_source("SELECT pg_reload_conf()").await;
    // It counts once the walsender has seen it.
    eventually("the walsender waits", || async {
        database.at_source("UPDATE t SET v = v || 'x' WHERE id < 3").await;
        let sql = "SELECT pid::text FROM pg_stat_activity WHERE wait_event = 'WaitForStandbyConfirmation'";
        database.source.query("asking", sql, &[]).await.ok().filter(|rows| !rows.is_empty()).map(|_| ())
    })
    .await;
    let words = ["synchronized_standby_slots", "bring the standbys of these slots back ('gone')"];
    is_said(&service, "waits until standbys have what it is to send", &words).await;
    database.at_source("ALTER SYSTEM RESET synchronized_standby_slots").await;
    database.at_source("SELECT pg_reload_conf()").await;
    database.assert_catches_up().await;
    eventually("no wait is shown", || async { service.status().await?["waits"].as_array()?.is_empty().then_some(()) })
        .await;
    service.stop().await;
    source.stop(StopMode::Fast).await.unwrap();
}
