//! The configuration of a command: file and environment read, every problem printed.
//!
//! The I/O half of `config`, which is pure. Used by every command that needs settings.

use std::path::Path;
use std::time::Duration;

use super::Exit;
use super::display;
use crate::config::{Config, Environment, FileText, Problem, SynchronousCommit, misspelt_variables};
use crate::destination::WritingSettings;
use crate::pg::Ident;
use crate::session::Sql;

/// Reads the configuration. What is wrong with it is printed, all at once.
pub(super) fn load(path: Option<&Path>) -> Result<Config, Exit> {
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let text = match path.map(std::fs::read_to_string).transpose() {
        Ok(text) => text,
        Err(error) => {
            let path = path.unwrap_or(Path::new(""));
            display::error(&format!("cannot read the configuration file {}: {error}", path.display()));
            return Err(Exit::Usage);
        }
    };
    let name = path.map(|path| path.display().to_string()).unwrap_or_default();
    let file = text.as_deref().map(|text| FileText { name: &name, text });
    for (variable, meant) in misspelt_variables(&environment) {
        display::warning(&format!("environment variable {variable} is no setting; did you mean {meant}?"));
    }
    Config::parse(file, &environment).map_err(|problems| {
        let count = problems.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        display::error(&format!("the configuration has {count} {noun}:"));
        for problem in &problems.0 {
            display::line(&format!("  {}", Problem::to_string(problem)));
        }
        Exit::Usage
    })
}

/// How long a statement of a command may take.
const STATEMENT_MAX: Duration = Duration::from_secs(60);

/// Ordinary sessions at the destination.
pub(super) fn destination(config: &Config) -> Sql {
    Sql { connection: config.destination.url.clone(), purpose: "command", timeout: STATEMENT_MAX }
}

/// A writing session at the destination beside the service's own.
pub(super) fn writing(config: &Config) -> WritingSettings {
    WritingSettings {
        connection: config.destination.url.clone(),
        slot: config.source.slot.clone(),
        positions: Ident::new("headwater"),
        // It leads nothing, so nobody waits for its silence.
        leader_timeout: config.destination.timeout,
        lock_timeout: config.destination.lock_timeout,
        timeout: config.destination.timeout,
        synchronous_commit: SynchronousCommit::On,
    }
}
