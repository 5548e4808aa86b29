//! The configuration of a command: file and environment read, every problem printed.
//!
//! The I/O half of `config`, which is pure. Used by every command that needs settings.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::display;
use crate::commands::exit::Exit;
use crate::config::{Config, Environment, FileText, Problem, SynchronousCommit, holds_password, misspelt_variables};
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
    if found.is_file() && others(&found) & 0o022 != 0 {
        display::warning(&format!(
            "others may write configuration file {shown}; take that from them: chmod go-w {word}"
        ));
    }
    warn_of_others_in_directory(path);
    if found.is_file() && is_readable_by_others(&found) && holds_password(*file) {
        display::warning(&format!(
            "others can read the password in configuration file {shown}; take that from them, or use ~/.pgpass: chmod go-r {word}"
        ));
    }
}

/// Says it where other users may put another file in the place of this one. In a sticky directory only its owner may.
fn warn_of_others_in_directory(path: &Path) {
    let Some(directory) = std::fs::canonicalize(path).ok().and_then(|path| path.parent().map(Path::to_path_buf)) else {
        return;
    };
    let Ok(found) = std::fs::metadata(&directory) else { return };
    if others(&found) & 0o022 != 0 && found.mode() & 0o1000 == 0 {
        let shown = directory.display().to_string();
        display::warning(&format!(
            "others may replace the configuration file, since they may write directory {shown}; take that from them: chmod go-w {}",
            shell_word(&shown)
        ));
    }
}

/// Whether somebody besides its owner may read a file. What root has made for a group is meant for it, as libpq has it for keys.
fn is_readable_by_others(found: &std::fs::Metadata) -> bool {
    others(found) & if found.uid() == 0 { 0o007 } else { 0o077 } != 0
}

/// The bits of a mode that concern others than the owner: not those of a group that is the owner alone.
fn others(found: &std::fs::Metadata) -> u32 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let is_own = is_group_of_owner_alone(&read("/etc/passwd"), &read("/etc/group"), found.uid(), found.gid());
    found.mode() & if is_own { 0o007 } else { 0o077 }
}

/// Whether a group is that which several distributions give each user: of its name, its first, and without other members. There the
/// umask lets groups write. root's is not, since services run in it.
fn is_group_of_owner_alone(users: &str, groups: &str, uid: u32, gid: u32) -> bool {
    let (uid_text, gid_text) = (uid.to_string(), gid.to_string());
    let names = users.lines().filter_map(|line| match line.split(':').collect::<Vec<_>>().as_slice() {
        [name, _, id, group, ..] if *id == uid_text && *group == gid_text => Some(*name),
        _ => None,
    });
    let is_alone = |name: &str| groups.lines().any(|line| line.split(':').eq([name, "x", gid_text.as_str(), ""]));
    uid != 0 && names.into_iter().any(is_alone)
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
    fn a_group_is_its_owners_alone_where_it_has_his_name_and_no_members() {
        let users = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\npg:x:101:104:a b:/var:/bin/sh\nbob:x:7:9::/:";
        let groups = "root:x:0:\nann:x:1000:\npg:x:104:ann\nstaff:x:9:\n";
        let cases =
            [(1000, 1000, true), (101, 104, false), (7, 9, false), (0, 0, false), (1000, 9, false), (5, 5, false)];
        for (uid, gid, alone) in cases {
            assert_eq!(is_group_of_owner_alone(users, groups, uid, gid), alone, "{uid}:{gid}");
        }
    }

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
