//! The configuration of a command: file and environment read, every problem printed.
//!
//! The I/O half of `config`, which is pure. Used by every command that needs settings.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Exit;
use super::display;
use crate::config::{Config, Environment, FileText, Problem, SynchronousCommit, misspelt_variables};
use crate::destination::{Bookkeeping, DestinationError, WritingSettings};
use crate::pg::{Ident, shell_word};
use crate::session::Sql;

/// Where a configuration is looked for when neither the command line nor HEADWATER_CONFIG names one.
const PLACES: [&str; 2] = ["./headwater.toml", "/etc/headwater/headwater.toml"];

/// The configuration file: the one that was named, otherwise the first that exists. Without one the environment has it all.
pub(super) fn file(named: Option<&Path>) -> Option<PathBuf> {
    named.map(Path::to_path_buf).or_else(|| first(PLACES.iter().map(Path::new)))
}

/// The first that exists. One that cannot be looked at counts: whoever reads it is told why not.
fn first<'a>(mut places: impl Iterator<Item = &'a Path>) -> Option<PathBuf> {
    places.find(|path| path.try_exists().unwrap_or(true)).map(Path::to_path_buf)
}

/// Reads the configuration. What is wrong with it is printed, all at once.
pub(super) fn load(path: Option<&Path>) -> Result<Config, Exit> {
    let path = file(path);
    let path = path.as_deref();
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
    if let Some((path, file)) = path.zip(file) {
        warn_of_others(path, &file);
    }
    Config::parse(file, &environment).map_err(|problems| {
        let count = problems.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        display::error(&format!("the configuration has {count} {noun}:"));
        for problem in &problems.0 {
            display::line(&format!("  {}", Problem::to_string(problem)));
        }
        if path.is_none() {
            display::line(&format!(
                "No configuration file was found ({}): name one with --config FILE, or see headwater init --help.",
                PLACES.join(", ")
            ));
        }
        Exit::Usage
    })
}

/// Says it where other users of the machine may change the file, or read a password in it.
fn warn_of_others(path: &Path, file: &FileText<'_>) {
    let Ok(found) = std::fs::metadata(path) else { return };
    let shown = path.display().to_string();
    let word = shell_word(&shown);
    if found.is_file() && found.mode() & 0o022 != 0 {
        display::warning(&format!(
            "others may write configuration file {shown}; take that from them: chmod go-w {word}"
        ));
    }
    let has_password = Config::parse(Some(*file), &Environment::new())
        .is_ok_and(|config| config.source.url.password.is_some() || config.destination.url.password.is_some());
    if has_password && found.is_file() && is_readable_by_others(&found) {
        display::warning(&format!(
            "others can read the password in configuration file {shown}; take that from them, or use ~/.pgpass: chmod go-r {word}"
        ));
    }
}

/// Whether somebody besides its owner may read a file. What root has made for a group is meant for it, as libpq has it for keys.
fn is_readable_by_others(found: &std::fs::Metadata) -> bool {
    found.mode() & if found.uid() == 0 { 0o007 } else { 0o077 } != 0
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

/// A writing session at the destination beside the service's own.
pub(super) fn writing(config: &Config) -> WritingSettings {
    WritingSettings {
        connection: config.destination.url.clone(),
        slot: config.source.slot.clone(),
        positions: Ident::new("headwater"),
        silence_max: config.destination.timeout,
        lock_timeout: config.destination.lock_timeout,
        timeout: config.destination.timeout,
        synchronous_commit: SynchronousCommit::On,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_configuration_that_exists_is_taken_and_a_named_one_always() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (missing, present, other) = (here.join("no-such-file"), here.join("Cargo.toml"), here.join("clippy.toml"));
        let places = [missing.as_path(), present.as_path(), other.as_path()];
        assert_eq!(first(places.into_iter()), Some(present));
        assert_eq!(first([missing.as_path()].into_iter()), None);
        assert_eq!(file(Some(&missing)), Some(missing.clone()), "what was named is read, or said to be missing");
    }
}
