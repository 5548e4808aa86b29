//! Pictures of headwater for its README, by `make screenshots`: the demo's status page in a real browser, light and dark, and what a
//! terminal shows from the first check to a repair. They go to the directory that HEADWATER_SCREENSHOTS names.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::browser::Browser;
use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, headwater};

/// Where pictures go, or nothing when nobody has asked for any.
fn directory() -> Option<PathBuf> {
    std::env::var_os("HEADWATER_SCREENSHOTS").map(PathBuf::from)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes pictures: make screenshots"]
async fn the_demos_page_is_pictured_in_light_and_dark() {
    if directory().is_none() {
        return;
    }
    let mut demo = tokio::process::Command::new(headwater());
    demo.arg("demo").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut demo = demo.spawn().expect("the demo starts");
    let mut lines = BufReader::new(demo.stdout.take().expect("its output")).lines();
    let url = loop {
        let line = lines.next_line().await.expect("its output").expect("the demo names its address");
        if let Some((_, url)) = line.split_once("metrics at ") {
            break url.trim_end_matches("metrics").to_owned();
        }
    };
    // What it prints from here on is read, so that it never waits for a reader.
    let rest = tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let Some(mut browser) = Browser::open(&url).await else { return };
    browser.shows("#headline", "The copy is fresh").await;
    // The charts show the last minute, so most of one has to pass.
    eventually_in(&mut browser, "fetch('/status').then(r => r.json()).then(s => s.uptime_seconds > 55)").await;
    browser.size(1200, 800).await;
    browser.picture_down_to("page-light", "#tables").await;
    browser.colours("dark").await;
    browser.picture_down_to("page-dark", "#tables").await;
    let process_id = demo.id().expect("its number").to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &process_id]).status().expect("kill runs").success());
    assert!(demo.wait().await.expect("its end").success());
    rest.abort();
}

/// Waits until an expression is true in the page.
async fn eventually_in(browser: &mut Browser, expression: &str) {
    let asked =
        "new Promise(done => { const ask = async () => (await QUESTION) ? done(true) : setTimeout(ask, 500); ask(); })";
    assert_eq!(browser.evaluate(&asked.replace("QUESTION", expression)).await, true);
}

/// What a terminal shows, line by line, and when.
#[derive(Default)]
struct Recording {
    lines: Vec<Shown>,
    seconds: f64,
}

/// A line of a terminal.
struct Shown {
    text: String,
    is_typed: bool,
    at_seconds: f64,
}

impl Recording {
    /// Somebody types a command, and reads what it printed.
    fn command(&mut self, typed: &str, printed: &str) {
        self.seconds += 1.2;
        self.lines.push(Shown { text: format!("$ {typed}"), is_typed: true, at_seconds: self.seconds });
        self.seconds += 0.8;
        for line in printed.lines().filter(|line| !line.trim().is_empty()) {
            self.seconds += 0.12;
            self.lines.push(Shown { text: line.trim_end().to_owned(), is_typed: false, at_seconds: self.seconds });
        }
    }

    /// As an animated picture, in which everything stays; readers who want no motion see the end at once.
    fn svg(&self) -> String {
        let height = 40 + 19 * self.lines.len();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 {height}\" role=\"img\" aria-label=\"A terminal: check, run, verify, repair\">\n\
             <style>text {{ font: 13px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #c9d3df; white-space: pre; opacity: 0; \
             animation: show 1ms forwards; }} .typed {{ fill: #7fe0c4; font-weight: 600; }} @keyframes show {{ to {{ opacity: 1; }} }} \
             @media (prefers-reduced-motion: reduce) {{ text {{ opacity: 1; animation: none; }} }}</style>\n\
             <rect width=\"900\" height=\"{height}\" rx=\"10\" fill=\"#141a21\"/>\n"
        );
        for (number, line) in self.lines.iter().enumerate() {
            let text = line.text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let class = if line.is_typed { " class=\"typed\"" } else { "" };
            let y = 32 + 19 * number;
            svg.push_str(&format!(
                "<text x=\"20\" y=\"{y}\"{class} style=\"animation-delay:{:.1}s\">{text}</text>\n",
                line.at_seconds
            ));
        }
        svg + "</svg>\n"
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes pictures: make screenshots"]
async fn a_terminal_is_recorded_from_the_first_check_to_a_repair() {
    let Some(dir) = directory() else { return };
    let database = Database::new("recorded", FORUM, FORUM_SCHEMA).await;
    let setup = Setup::of(&database);
    let run = async |arguments: &[&str]| setup.command(arguments).await.out.replace(&database.name, "forum");
    let mut recording = Recording::default();
    let checked = run(&["check"]).await;
    recording.command("headwater check | tail -n 1", checked.lines().last().unwrap_or_default());
    let service = setup.start();
    service.streams().await;
    recording.command("headwater run &", "copying the tables\npublished 5110 rows of 3 tables\nstreaming");
    recording.command("headwater verify", &run(&["verify"]).await);
    database.at_destination("UPDATE messages SET body = 'changed here' WHERE id = 7").await;
    recording
        .command("psql destination --command=\"UPDATE messages SET body = 'changed here' WHERE id = 7\"", "UPDATE 1");
    recording.command("headwater verify --show-columns", &run(&["verify", "--show-columns"]).await);
    recording.command("headwater verify --repair", &run(&["verify", "--repair"]).await);
    service.stop().await;
    std::fs::write(dir.join("terminal.svg"), recording.svg()).expect("a picture");
}
