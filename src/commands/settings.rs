//! The configuration of a command: file and environment read, every problem printed.
//!
//! The I/O half of `config`, which is pure. Used by every command that needs settings.

use std::path::Path;
use std::time::Duration;

use super::config_file::{ConfigFile, PLACES};
use super::display;
use crate::commands::exit::ExitStatus;
use crate::config::{Config, Environment, Problem, SynchronousCommit, misspelt_variables};
use crate::destination::{Bookkeeping, DestinationError, WritingSettings};
use crate::pg::Ident;
use crate::session::Sql;

/// Reads the configuration. What is wrong with it is printed, all at once.
pub(super) fn load(path: Option<&Path>) -> Result<Config, ExitStatus> {
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let found = ConfigFile::read(path).map_err(|error| {
        display::error(&error.to_string());
        ExitStatus::Usage
    })?;
    let file = found.as_ref().map(ConfigFile::text);
    for (variable, meant) in misspelt_variables(&environment) {
        display::warning(&format!("environment variable {variable} is no setting; did you mean {meant}?"));
    }
    for warning in found.as_ref().map_or_else(Vec::new, ConfigFile::warnings) {
        display::warning(&warning);
    }
    Config::parse(file, &environment).map_err(|problems| {
        let count = problems.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        display::error(&format!("the configuration has {count} {noun}:"));
        for problem in &problems.0 {
            display::line(&format!("  {}", Problem::to_string(problem)));
        }
        if found.is_none() {
            display::line(&format!(
                "No configuration file was found ({}): name one with --config FILE, or see headwater init --help.",
                PLACES.join(", ")
            ));
        }
        ExitStatus::Usage
    })
}

/// How long a statement of a command may take.
const STATEMENT_MAX: Duration = Duration::from_secs(60);

/// A session for the bookkeeping at the destination, once it is known that nothing there is somebody else's.
pub(super) async fn bookkeeping(config: &Config) -> Result<Bookkeeping, DestinationError> {
    Bookkeeping::connect_checked(&destination(config), &config.destination.trusted_roles).await
}

/// Ordinary sessions at the destination.
fn destination(config: &Config) -> Sql {
    Sql { connection: config.destination.url.clone(), purpose: "command", timeout: STATEMENT_MAX }
}

/// A writing session at the destination, in addition to the service's own.
pub(super) fn writing(config: &Config) -> WritingSettings {
    WritingSettings {
        connection: config.destination.url.clone(),
        slot: config.source.slot.clone(),
        positions: Ident::new("headwater"),
        silence_max: config.destination.timeout,
        lock_timeout: config.destination.lock_timeout,
        timeout: config.destination.answer_max(),
        synchronous_commit: SynchronousCommit::On,
    }
}
