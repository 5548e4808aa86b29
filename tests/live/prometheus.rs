//! A real Prometheus scrapes a live headwater: every query of the dashboard has data, and the alerts fire.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use headwater::commands::demo::free_port;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, eventually, parent, tools};

/// A running Prometheus. Dropping it ends it.
struct Prometheus {
    _child: Child,
    port: u16,
    dir: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self._child.start_kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Prometheus {
    /// Scrapes a service every second, with the packaged alerts.
    fn watching(program: &Path, target: &str) -> Prometheus {
        let dir = parent().join(format!("prometheus-{:08x}", fastrand::u32(..)));
        std::fs::create_dir_all(&dir).expect("a directory");
        let packaged = std::fs::read_to_string("deploy/prometheus/prometheus.yml").expect("the configuration");
        let alerts = std::path::absolute("deploy/prometheus/alerts.yml").expect("the alerts");
        // The packaged configuration, with this service for its target and a test's patience.
        let configuration = packaged
            .replace("headwater:9477", target)
            .replace("scrape_interval: 5s", "scrape_interval: 1s")
            .replace("evaluation_interval: 15s", "evaluation_interval: 1s")
            .replace("- alerts.yml", &format!("- {}", alerts.display()));
        std::fs::write(dir.join("prometheus.yml"), configuration).expect("a configuration");
        let port = free_port().expect("a port");
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", dir.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--log.level=error");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        Prometheus { _child: command.spawn().expect("Prometheus starts"), port, dir }
    }

    /// What its API answers.
    async fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// The series that a query yields now; a query that is wrong is a failure.
    async fn query(&self, query: &str) -> Option<Vec<Value>> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}")).await?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().cloned()
    }
}

/// Title and query of everything that the dashboard asks for, with Grafana's variables filled in.
fn queries(instance: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string("deploy/grafana/headwater.json").expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let filled = |query: &Value| {
        let query = query.as_str().expect("a query").replace("$__rate_interval", "15s");
        query.replace("$job", "headwater").replace("$instance", instance)
    };
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((panel["title"].as_str().unwrap_or_default().to_owned(), filled(&target["expr"])));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().expect("annotations") {
        queries.push((format!("annotation: {}", annotation["name"]), filled(&annotation["expr"])));
    }
    queries
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn every_query_of_the_dashboard_has_data_and_a_conflict_raises_its_alert() {
    let Some(program) = tools::program("prometheus") else { return };
    let database = Database::new("prometheus", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).setting("verify_every = \"1s\"").source("heartbeat_every = \"500ms\"").start();
    let target = service.http_url().replace("http://", "").replace('/', "");
    let prometheus = Prometheus::watching(&program, &target);
    service.streams().await;
    eventually("Prometheus has scraped it", || async {
        let up = prometheus.query("headwater_state{state=\"streaming\"} == 1").await?;
        (up.len() == 1).then_some(())
    })
    .await;

    // A conflict, which restarts the stream until it is mended.
    database.at_destination("DELETE FROM messages WHERE id = 7").await;
    database.at_source("UPDATE messages SET body = 'x' WHERE id = 7").await;
    service.is("waiting").await;
    for alert in ["HeadwaterConflict", "HeadwaterHeldUp"] {
        eventually(&format!("{alert} is raised"), || async {
            let alerts = prometheus.query(&format!("ALERTS{{alertname=\"{alert}\"}}")).await?;
            (!alerts.is_empty()).then_some(())
        })
        .await;
    }
    eventually("the conflict has been tried several times", || async {
        let changes = prometheus.query("changes(headwater_restarts_total{reason=\"conflict\"}[1m]) > 1").await?;
        (!changes.is_empty()).then_some(())
    })
    .await;
    database.at_destination("INSERT INTO messages (id, topic_id) VALUES (7, 1)").await;
    service.streams().await;

    // Work of every kind, so that there is something to draw. A query that has had data is done with: on a busy machine the
    // restarts may be out of their window before the rates are in theirs.
    let left = std::cell::RefCell::new(queries(".*"));
    let all = left.borrow().len();
    eventually("every query of the dashboard has data", || async {
        database
            .at_source("UPDATE messages SET body = body || '.' WHERE id < 50; DELETE FROM messages WHERE id = 900")
            .await;
        let mut still = Vec::new();
        for (title, query) in left.take() {
            match prometheus.query(&query).await.map_or(0, |series| series.len()) {
                0 => still.push((title, query)),
                series => println!("{title}: {series} series: {query}"),
            }
        }
        println!("still without data: {still:#?}");
        left.replace(still);
        left.borrow().is_empty().then_some(())
    })
    .await;
    assert!(all >= 25, "{all} queries");
    database.assert_catches_up().await;
    service.stop().await;
}

#[test]
fn the_alerts_fire_when_they_should_and_not_before() {
    let Some(promtool) = tools::program("promtool") else { return };
    let (right, words) = tools::run(&promtool, &["check", "rules", "deploy/prometheus/alerts.yml"], "");
    assert!(right && words.contains("SUCCESS"), "{words}");
    let (right, words) = tools::run(&promtool, &["test", "rules", "deploy/prometheus/alerts.test.yml"], "");
    assert!(right, "{words}");
}

#[test]
fn every_alert_has_a_test_and_an_entry_in_the_runbook_that_it_links_to() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (rules, tests) = (read("deploy/prometheus/alerts.yml"), read("deploy/prometheus/alerts.test.yml"));
    let runbook = read("docs/operations.md");
    let mut alerts = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default();
        let link = format!("\"docs/operations.md\" }}}}#{}'", name.to_lowercase());
        assert!(rule.contains(&link), "{name} links to its entry");
        assert!(runbook.contains(&format!("\n### {name}\n")), "{name} has an entry in docs/operations.md");
        assert!(tests.matches(&format!("alertname: {name}")).count() >= 2, "{name} is tested, quiet and firing");
        alerts += 1;
    }
    assert!(alerts >= 7, "{alerts} alerts");
    let entries = runbook.lines().filter(|line| line.starts_with("### Headwater")).count();
    assert_eq!(entries, alerts, "no entry without its alert");
}

#[test]
fn metrics_in_dashboard_and_alerts_are_ones_that_there_are() {
    let source = std::fs::read_to_string("src/telemetry/metrics.rs").expect("the metrics");
    let shown = ["deploy/grafana/headwater.json", "deploy/prometheus/alerts.yml", "docs/operations.md"];
    for path in shown {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        for word in
            text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|w| w.starts_with("headwater_"))
        {
            let name =
                ["_bucket", "_sum", "_count"].iter().fold(word, |name, part| name.strip_suffix(part).unwrap_or(name));
            // A role of docs/roles.md.
            let is_role = ["headwater_reader", "headwater_writer"].contains(&word);
            assert!(is_role || source.contains(&format!("\"{name}\"")), "{path} speaks of {word}");
        }
    }
}
