//! A real Chromium, without a window, spoken to by the DevTools protocol over a pipe.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{PATIENCE, tools};

/// A running browser with one page.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    profile: PathBuf,
    session: String,
    number: u64,
    /// What the page has complained of: exceptions, and what its policy refused.
    pub complaints: Vec<String>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

impl Browser {
    /// Starts a browser that shows `url`; `None`, after saying so, where there is none.
    pub async fn open(url: &str) -> Option<Browser> {
        let program = tools::program("chromium")?;
        let profile = std::env::temp_dir().join("headwater-tests").join(format!("chromium-{:08x}", fastrand::u32(..)));
        std::fs::create_dir_all(&profile).expect("a directory for the profile");
        // The protocol's pipe is on descriptors 3 and 4.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"]).arg(program);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]);
        command.args(["--remote-debugging-pipe", "--lang=en-GB"]);
        command.arg(format!("--user-data-dir={}", profile.display())).env("HOME", &profile);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("a browser");
        let (to, from) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let from = BufReader::new(from);
        let mut browser =
            Browser { child, to, from, profile, session: String::new(), number: 0, complaints: Vec::new() };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach).await;
        session["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable", "Accessibility.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser.size(1200, 900).await;
        browser.call("Page.navigate", json!({ "url": url })).await;
        Some(browser)
    }

    /// Calls a method of the protocol and waits for its answer.
    pub async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.number += 1;
        let mut call = json!({ "id": self.number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            call["sessionId"] = json!(self.session);
        }
        let mut bytes = call.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).await.expect("the browser listens");
        let answered = tokio::time::timeout(PATIENCE, async {
            loop {
                let mut bytes = Vec::new();
                self.from.read_until(0, &mut bytes).await.expect("the browser answers");
                assert!(bytes.pop() == Some(0), "the browser has ended");
                let message: Value = serde_json::from_slice(&bytes).expect("JSON");
                if message["id"] == json!(self.number) {
                    return message;
                }
                self.note(&message);
            }
        });
        let answer = answered.await.unwrap_or_else(|_| panic!("no answer to {method}"));
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn note(&mut self, message: &Value) {
        let parameters = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters["exceptionDetails"].to_string()),
            // A stream that is refused while the service is down is no mistake of the page's.
            Some("Log.entryAdded") if parameters["entry"]["source"] != "network" => {
                self.complaints.push(parameters["entry"]["text"].to_string());
            }
            _ => {}
        }
    }

    /// What an expression is worth in the page.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text that a person sees in an element.
    pub async fn text(&mut self, selector: &str) -> String {
        let expression = format!("document.querySelector({selector:?})?.innerText ?? ''");
        self.evaluate(&expression).await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element's text contains something.
    pub async fn shows(&mut self, selector: &str, wanted: &str) {
        self.text_is(selector, &format!("something with {wanted:?}"), |text| text.contains(wanted)).await;
    }

    /// Waits until an element's text is as `wanted` says.
    pub async fn text_is(&mut self, selector: &str, wanted: &str, is: impl Fn(&str) -> bool) {
        let began = Instant::now();
        loop {
            let text = self.text(selector).await;
            if is(&text) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{selector} does not show {wanted} but {text:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The window's size.
    pub async fn size(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Light or dark.
    pub async fn colours(&mut self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features).await;
    }

    /// A picture of the whole page, as PNG, written to HEADWATER_SCREENSHOTS when that names a directory.
    pub async fn picture(&mut self, name: &str) {
        self.picture_of_height(name, "document.documentElement.scrollHeight").await;
    }

    /// The same of the page's upper part, which ends below an element.
    pub async fn picture_down_to(&mut self, name: &str, selector: &str) {
        let bottom = format!("document.querySelector({selector:?}).getBoundingClientRect().bottom + scrollY + 16");
        self.picture_of_height(name, &bottom).await;
    }

    async fn picture_of_height(&mut self, name: &str, height: &str) {
        let Some(dir) = std::env::var_os("HEADWATER_SCREENSHOTS") else { return };
        let height = self.evaluate(height).await;
        let width = self.evaluate("document.documentElement.clientWidth").await;
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let shot = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true, "clip": clip })).await;
        let bytes = STANDARD.decode(shot["data"].as_str().unwrap_or_default()).expect("base64");
        std::fs::write(Path::new(&dir).join(format!("{name}.png")), bytes).expect("a picture");
    }

    /// Roles and names of everything that a screen reader would meet.
    pub async fn accessible(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await;
        let nodes = tree["nodes"].as_array().cloned().unwrap_or_default();
        let said = |node: &Value, what: &str| node[what]["value"].as_str().unwrap_or_default().to_owned();
        nodes
            .iter()
            .filter(|node| node["ignored"] != json!(true))
            .map(|node| (said(node, "role"), said(node, "name")))
            .collect()
    }

    /// Asserts that the page has complained of nothing: no exception, nothing that its policy refused.
    pub async fn is_content(&mut self) {
        self.evaluate("new Promise(done => setTimeout(done, 0))").await;
        assert!(self.complaints.is_empty(), "{:?}", self.complaints);
    }
}
