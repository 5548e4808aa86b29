//! headwater's other commands: run to their end beside a service, with its configuration.

use std::process::Stdio;
use std::time::Duration;

use super::{Setup, headwater, parent};

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    /// Standard output: results.
    pub out: String,
    /// Standard error: messages.
    pub err: String,
}

/// Asserts that the output has each of these texts.
pub fn assert_says(output: &str, texts: &[&str]) {
    for text in texts {
        assert!(output.contains(text), "no {text:?} in\n{output}");
    }
}

impl Finished {
    /// Asserts its exit code.
    pub fn exits(self, code: i32) -> Finished {
        assert_eq!(self.code, Some(code), "exit code\n---- out\n{}---- err\n{}", self.out, self.err);
        self
    }

    /// Asserts that it printed each of these, wherever.
    pub fn says(self, texts: &[&str]) -> Finished {
        for text in texts {
            let said = self.out.contains(text) || self.err.contains(text);
            assert!(said, "no {text:?} in\n---- out\n{}---- err\n{}", self.out, self.err);
        }
        self
    }

    /// Asserts that it printed none of these.
    pub fn omits(self, texts: &[&str]) -> Finished {
        for text in texts {
            let said = self.out.contains(text) || self.err.contains(text);
            assert!(!said, "{text:?} in\n---- out\n{}---- err\n{}", self.out, self.err);
        }
        self
    }
}

/// A command that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(300);

impl Setup {
    /// The configuration file's text.
    pub fn configuration_text(&self) -> String {
        self.configuration(0)
    }

    /// Runs a command with this configuration.
    pub async fn command(&self, arguments: &[&str]) -> Finished {
        let config = parent().join(format!("{}-{:08x}.toml", self.slot, fastrand::u32(..)));
        std::fs::write(&config, self.configuration(0)).expect("a configuration file");
        let mut command = tokio::process::Command::new(headwater());
        command
            .args(arguments)
            .arg("--config")
            .arg(&config)
            .env_remove("PGPASSWORD")
            .env_remove("HEADWATER_TEST_ROLES");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        let output =
            output.unwrap_or_else(|_| panic!("headwater {arguments:?} does not end")).expect("headwater starts");
        std::fs::remove_file(config).expect("the configuration file");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Finished { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}
