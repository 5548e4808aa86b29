//! headwater itself, as a process of its own.

use std::ffi::OsStr;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use headwater::commands::demo::free_port;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Database, PATIENCE, eventually, headwater};

/// How a service is configured and started.
#[derive(Clone, Debug)]
pub struct Setup {
    pub source_url: String,
    pub destination_url: String,
    pub slot: String,
    pub tables: Vec<String>,
    /// Lines before the first section.
    pub settings: Vec<String>,
    /// Lines of `[source]` and `[destination]`.
    pub source: Vec<String>,
    pub destination: Vec<String>,
    /// Sections of their own.
    pub sections: Vec<String>,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// A program that runs it, with arguments.
    pub wrapper: Vec<String>,
}

impl Setup {
    /// The usual configuration for a test's databases.
    pub fn of(database: &Database) -> Setup {
        Setup {
            source_url: database.source_url.clone(),
            destination_url: database.destination_url.clone(),
            slot: database.name.clone(),
            tables: database.tables.clone(),
            settings: Vec::new(),
            source: Vec::new(),
            destination: Vec::new(),
            sections: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    /// With a line before the first section.
    pub fn setting(mut self, line: &str) -> Setup {
        self.settings.push(line.to_owned());
        self
    }

    /// With a line of `[source]`.
    pub fn source(mut self, line: &str) -> Setup {
        self.source.push(line.to_owned());
        self
    }

    /// With a line of `[destination]`.
    pub fn destination(mut self, line: &str) -> Setup {
        self.destination.push(line.to_owned());
        self
    }

    /// With a section, header and lines.
    pub fn section(mut self, text: &str) -> Setup {
        self.sections.push(text.to_owned());
        self
    }

    /// With an argument of `run`.
    pub fn argument(mut self, argument: &str) -> Setup {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Dies at a failpoint.
    pub fn failing_at(mut self, point: &str) -> Setup {
        self.environment.push(("HEADWATER_FAILPOINT".to_owned(), point.to_owned()));
        self
    }

    /// May have no more than so many descriptors.
    pub fn descriptors(mut self, limit: u32) -> Setup {
        self.wrapper = vec!["prlimit".to_owned(), format!("--nofile={limit}:{limit}")];
        self
    }

    /// Runs with this umask, in octal.
    pub fn umask(mut self, umask: &str) -> Setup {
        self.wrapper = vec!["sh".to_owned(), "-c".to_owned(), format!("umask {umask}; exec \"$@\""), "sh".to_owned()];
        self
    }

    /// Logs what an operator sees, no more.
    pub fn quiet(mut self) -> Setup {
        self.environment.push(("RUST_LOG".to_owned(), "headwater=info".to_owned()));
        self
    }

    pub(super) fn configuration(&self, port: u16) -> String {
        // All services of a test run share one, as several instances on a machine do.
        let spool = match self.sections.iter().any(|section| section.contains("[spool]")) {
            true => String::new(),
            false => format!("[spool]\ndir = {:?}\n", std::env::temp_dir().join("headwater-tests").join("spool")),
        };
        // Under the roles of docs/roles.md the tables belong to somebody else, about whom tests of code of others are.
        let says =
            self.destination.iter().any(|line| line.contains("untrusted_owners") || line.contains("trusted_roles"));
        let owners = match self.destination_url.contains("//writer_") && !says {
            true => "untrusted_owners = \"watch\"",
            false => "",
        };
        let tables: Vec<String> = self.tables.iter().map(|table| format!("{table:?}")).collect();
        format!(
            "tables = [{}]\n{}\n[source]\nurl = {:?}\nslot = {:?}\npublication = {:?}\n{}\n[destination]\nurl = {:?}\n{owners}\n{}\n\
             {spool}[http]\nlisten = \"127.0.0.1:{port}\"\n{}\n",
            tables.join(", "),
            self.settings.join("\n"),
            self.source_url,
            self.slot,
            self.slot,
            self.source.join("\n"),
            self.destination_url,
            self.destination.join("\n"),
            self.sections.join("\n"),
        )
    }

    /// Starts a service and waits until it streams and has caught up.
    pub async fn start_streaming(&self, database: &Database) -> Service {
        let service = self.start();
        service.streams().await;
        database.caught_up().await;
        service
    }

    /// Starts it.
    pub fn start(&self) -> Service {
        let port = free_port().expect("a free port");
        let dir = std::env::temp_dir().join("headwater-tests");
        std::fs::create_dir_all(&dir).expect("a directory");
        let stem = dir.join(format!("{}-{:08x}", self.slot, fastrand::u32(..)));
        let (config, log) = (stem.with_extension("toml"), stem.with_extension("log"));
        let mut file = std::fs::File::create(&config).expect("a configuration file");
        file.write_all(self.configuration(port).as_bytes()).expect("a configuration");
        let output = std::fs::File::create(&log).expect("a log file");
        let mut words = self.wrapper.iter().map(OsStr::new).chain([headwater().as_os_str()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        command.arg("run").arg("--config").arg(&config).args(&self.arguments);
        command.env_remove("PGPASSWORD").env_remove("HEADWATER_TEST_ROLES").env("RUST_LOG", "headwater=debug");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log file")).stderr(output);
        Service { child: command.spawn().expect("headwater starts"), port, config, log }
    }
}

/// A running headwater. Dropping it kills it.
pub struct Service {
    child: Child,
    port: u16,
    config: PathBuf,
    log: PathBuf,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("---- headwater's log\n{}", self.log());
        } else {
            let _ = std::fs::remove_file(&self.log);
        }
        let _ = std::fs::remove_file(&self.config);
    }
}

impl Service {
    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Where its pages are.
    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Its configuration file.
    pub fn configuration_file(&self) -> &std::path::Path {
        &self.config
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal: `TERM`, `INT`, `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.process_id().to_string()).status();
        assert!(status.expect("kill runs").success(), "signal {name}");
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal("KILL");
        self.child.wait().expect("its end");
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_some()
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "headwater does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to stop, and asserts that it does so within 10 seconds, with exit code 0.
    pub async fn stop(mut self) {
        self.signal("TERM");
        let began = Instant::now();
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0), "exit code after SIGTERM");
        assert!(began.elapsed() < Duration::from_secs(10), "stopping took {:?}", began.elapsed());
    }

    /// Waits until it ends by itself with this exit code, and returns what it has printed.
    pub async fn ends_with(mut self, code: i32) -> String {
        let status = self.ended().await;
        assert_eq!(status.code(), Some(code), "exit code; it printed:\n{}", self.log());
        self.log()
    }

    /// Runs another command with the same configuration; its exit code and what it printed.
    pub async fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = tokio::process::Command::new(headwater());
        command
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .env_remove("PGPASSWORD")
            .env_remove("HEADWATER_TEST_ROLES")
            .stdin(Stdio::null());
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("a command ends");
        let output = output.expect("a command runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// GETs a path; the status code and the body.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let code = answer.split(' ').nth(1)?.parse().ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some((code, body.to_owned()))
    }

    /// What /status says.
    pub async fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/status").await?.1).ok()
    }

    /// Waits until it is in a state.
    pub async fn is(&self, state: &str) {
        eventually(&format!("headwater is {state}"), || async {
            (self.status().await?.get("state")?.as_str()? == state).then_some(())
        })
        .await;
    }

    /// Waits until it streams.
    pub async fn streams(&self) {
        self.is("streaming").await;
    }

    /// Waits until its log has a line with this text.
    pub async fn says(&self, text: &str) {
        eventually(&format!("headwater says {text:?}"), || async { self.log().contains(text).then_some(()) }).await;
    }

    /// A metric's value, by its name with labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// How often its stream was set up again, for whatever reason.
    pub async fn all_restarts(&self) -> Option<f64> {
        let (_, metrics) = self.get("/metrics").await?;
        let lines = metrics.lines().filter(|line| line.starts_with("headwater_restarts_total{"));
        Some(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// That it has copied no table again, nor compared one with the source.
    pub fn assert_not_copied(&self) {
        let log = self.log();
        assert!(!log.contains("copied again") && !log.contains("compared with the source"), "{log}");
    }

    /// How often its stream was set up again for this reason; `None` if never.
    pub async fn restarts(&self, reason: &str) -> Option<f64> {
        let count = self.metric(&format!("headwater_restarts_total{{reason=\"{reason}\"}}")).await;
        count.filter(|count| *count > 0.0)
    }

    /// Its resident memory, in bytes: the most that it ever had.
    pub fn resident_max_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process_id())).expect("its /proc entry");
        let line = status.lines().find(|line| line.starts_with(name)).expect("a line of that name");
        let kilobytes: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
        kilobytes * 1024
    }
}
