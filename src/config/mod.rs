//! Settings: TOML, environment and flags into a valid [`Config`], or into a list of everything that is wrong.
//!
//! Pure: the file's text and the environment are arguments. `commands` reads them and calls [`Config::parse`];
//! every other module takes the typed parts of the [`Config`] that come out.
//!
//! ```text
//! headwater.toml ─┐
//! HEADWATER_… ────┼─▶ values by key (file.rs) ─▶ typed settings (values.rs) ─▶ Config
//! defaults ───────┘              └──────────── every Problem found ─────────▶ exit 2
//! ```
//!
//! Invariants: a [`Config`] that exists is valid in itself; every problem is reported at once, with its line, its key
//! and the nearest known name; no message contains a password. One table, [`SETTINGS`], holds every key with its
//! default and its explanation; parser, environment names and docs/configuration.md are all made from it.

mod connection;
pub mod connection_parts;
mod file;
mod parameters;
pub mod problem;
mod settings;
pub mod typed;
mod values;

pub use crate::config::connection_parts::{
    ChannelBinding, ConnectionSettings, Host, RootCertificates, Secret, SslMode, SslNegotiation, TargetSession,
};
pub use crate::config::problem::{Environment, FileText, Problem, Problems, ValueOrigin};
pub use crate::config::typed::{
    ApplySettings, Config, DestinationSettings, HttpSettings, LOCK_MARGIN, OnConflict, OnSlotLost, Origin,
    SchemaChanges, SnapshotSettings, SourceSettings, SpoolSettings, SynchronousCommit, TruncateMode, UntrustedOwners,
};
pub use file::nearest;
pub use settings::{SETTINGS, Setting, reference};
pub use values::parse_rate;

impl Config {
    /// Reads settings from the file, overridden by `HEADWATER_…` variables, over the defaults.
    ///
    /// # Errors
    /// [`Problems`] holds every one that was found, not only the first.
    pub fn parse(file: Option<FileText<'_>>, environment: &Environment) -> Result<Config, Problems> {
        let (values, mut problems) = file::collect(file, environment);
        let config = values::typed(&values, environment, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            Some(_) | None => {
                problems.sort_by_key(|problem| match &problem.place {
                    ValueOrigin::File { line, .. } => (0, *line),
                    ValueOrigin::Environment { .. } => (1, 0),
                    ValueOrigin::Default => (2, 0),
                });
                Err(Problems(problems))
            }
        }
    }
}

/// Whether a configuration file holds a password; one that has mistakes may hold one, too.
pub fn holds_password(file: FileText<'_>) -> bool {
    let (values, _) = file::collect(Some(file), &Environment::new());
    ["source.url", "destination.url"].into_iter().any(|key| match values.get(key) {
        Some((file::RawValue::Text(url), _)) => connection::holds_password(url),
        Some((file::RawValue::List(_), _)) | None => false,
    })
}

/// Variables that look like misspelt settings, each with the setting that was probably meant.
///
/// Not an error: an orchestrator may set variables of its own (`HEADWATER_SERVICE_HOST`).
pub fn misspelt_variables(environment: &Environment) -> Vec<(String, String)> {
    file::misspelt_variables(environment)
}
