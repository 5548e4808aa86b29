//! The configuration file: found, opened where that is safe, read, and what others may do to it said.
//!
//! Called by `settings` for every command. The file decides which servers receive the passwords of `~/.pgpass`. So a file in the working
//! directory that was not named is taken only from this user or root: a command in another user's directory, or in
//! `/tmp`, must not obey a file there. A file that was named is the operator's choice, and may be a pipe. The one in
//! `/etc` is the operator's choice, too, and may belong to any user: a container has it from a user of its host.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::{FileText, holds_password};
use crate::pg::{printable, shell_word};

/// Where a configuration is looked for when neither the command line nor HEADWATER_CONFIG names one.
pub(super) const PLACES: [&str; 2] = [WORKING_DIRECTORY, "/etc/headwater/headwater.toml"];
const WORKING_DIRECTORY: &str = "./headwater.toml";

/// A configuration file that was read.
pub(super) struct ConfigFile {
    path: PathBuf,
    name: String,
    text: String,
    found: Metadata,
}

/// Why a configuration file is not read.
#[derive(Debug)]
pub(super) enum ConfigFileError {
    /// The operating system refuses, or the text is no UTF-8.
    Unreadable(PathBuf, io::Error),
    /// It was found, not named, and is a pipe, a device or a directory.
    NotRegular(PathBuf),
    /// It was found in the working directory, not named, and somebody else may own what it says.
    OfOther {
        /// The file.
        path: PathBuf,
        /// What belongs to somebody else: the file, a link to it or its directory.
        owned: PathBuf,
        /// The user's number.
        user: u32,
    },
    /// It was found in the working directory, not named, and everybody may write the file or its directory.
    OfAnybody {
        /// The file.
        path: PathBuf,
        /// What everybody may write.
        open: PathBuf,
    },
}

impl fmt::Display for ConfigFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| printable(&path.display().to_string()).into_owned();
        match self {
            ConfigFileError::Unreadable(path, error) => {
                write!(f, "cannot read the configuration file {}: {error}", shown(path))
            }
            ConfigFileError::NotRegular(path) => {
                write!(
                    f,
                    "{} is no regular file; to read it all the same, name it: --config {}",
                    shown(path),
                    word(path)
                )
            }
            ConfigFileError::OfOther { path, owned, user } => write!(
                f,
                "configuration file {} was found, but {} belongs to user {user}, who decides by it where passwords go; if you trust \
                 this user, name the file: --config {}",
                shown(path),
                shown(owned),
                word(path)
            ),
            ConfigFileError::OfAnybody { path, open } => write!(
                f,
                "configuration file {} was found, but everybody may write {}; take that from others: chmod o-w {}",
                shown(path),
                shown(open),
                word(open)
            ),
        }
    }
}

impl ConfigFile {
    /// Reads the file that was named, otherwise the first that exists. Without one the environment has it all.
    ///
    /// # Errors
    /// It cannot be read; or it was not named, and is no regular file; or it stands in the working directory and belongs to another user
    /// than this one and root.
    pub(super) fn read(named: Option<&Path>) -> Result<Option<ConfigFile>, ConfigFileError> {
        let Some(path) = file(named) else { return Ok(None) };
        let failed = |error| ConfigFileError::Unreadable(path.clone(), error);
        let mut options = OpenOptions::new();
        options.read(true);
        if named.is_none() {
            // A pipe without a writer would be waited for.
            options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        }
        let mut opened = options.open(&path).map_err(failed)?;
        let found = opened.metadata().map_err(failed)?;
        if named.is_none() {
            if !found.is_file() {
                return Err(ConfigFileError::NotRegular(path));
            }
            if path == Path::new(WORKING_DIRECTORY) {
                refuse_of_other(&path, &found)?;
            }
        }
        let text = read_text(&mut opened).map_err(failed)?;
        Ok(Some(ConfigFile { name: path.display().to_string(), path, text, found }))
    }

    /// What it says.
    pub(super) fn text(&self) -> FileText<'_> {
        FileText { name: &self.name, text: &self.text }
    }

    /// Where other users of the machine may change the file, or read a password in it.
    pub(super) fn warnings(&self) -> Vec<String> {
        let ConfigFile { path, name: shown, found, .. } = self;
        let word = word(path);
        let mut warnings = Vec::new();
        if found.is_file() && is_of_other(found.uid()) {
            warnings.push(format!("configuration file {shown} belongs to user {}, who may change it", found.uid()));
        }
        if found.is_file() && others(found) & 0o022 != 0 {
            warnings
                .push(format!("others may write configuration file {shown}; take that from them: chmod go-w {word}"));
        }
        warnings.extend(warning_of_directory(path));
        if found.is_file() && is_readable_by_others(found) && holds_password(self.text()) {
            warnings.push(format!(
                "others can read the password in configuration file {shown}; take that from them, or use ~/.pgpass: chmod go-r {word}"
            ));
        }
        warnings
    }
}

/// The configuration file: the one that was named, otherwise the first that exists.
pub(super) fn file(named: Option<&Path>) -> Option<PathBuf> {
    named.map(Path::to_path_buf).or_else(|| first(PLACES.iter().map(Path::new)))
}

/// The first that exists, even as a dangling symlink. A path that cannot be examined counts, so that reading it reports why.
fn first<'a>(mut places: impl Iterator<Item = &'a Path>) -> Option<PathBuf> {
    let exists = |path: &&Path| match std::fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    };
    places.find(exists).map(Path::to_path_buf)
}

fn read_text(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Refuses a file that another user may have put there: its owner, that of a link to it, and of the directories of both.
fn refuse_of_other(path: &Path, found: &Metadata) -> Result<(), ConfigFileError> {
    let failed = |error| ConfigFileError::Unreadable(path.to_path_buf(), error);
    let refused = |owned: &Path, user: u32| ConfigFileError::OfOther {
        path: path.to_path_buf(),
        owned: owned.to_path_buf(),
        user,
    };
    if is_of_other(found.uid()) {
        return Err(refused(path, found.uid()));
    }
    let target = std::fs::canonicalize(path).map_err(failed)?;
    let link = std::path::absolute(path).map_err(failed)?;
    let directories = [link.parent(), target.parent()];
    for place in [Some(link.as_path())].into_iter().chain(directories).flatten() {
        let owner = std::fs::symlink_metadata(place).map_err(failed)?.uid();
        if is_of_other(owner) {
            return Err(refused(place, owner));
        }
    }
    let open_to_everybody =
        |open: &Path| ConfigFileError::OfAnybody { path: path.to_path_buf(), open: open.to_path_buf() };
    if found.mode() & 0o002 != 0 {
        return Err(open_to_everybody(path));
    }
    for directory in directories.into_iter().flatten() {
        if std::fs::metadata(directory).map_err(failed)?.mode() & 0o1002 == 0o002 {
            return Err(open_to_everybody(directory));
        }
    }
    Ok(())
}

/// Whether a user is another than this one and root. Who has become root by sudo is still himself.
fn is_of_other(user: u32) -> bool {
    let own = rustix::process::geteuid();
    let before_sudo = || std::env::var("SUDO_UID").ok().and_then(|text| text.parse().ok());
    user != 0 && user != own.as_raw() && !(own.is_root() && before_sudo() == Some(user))
}

fn word(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

/// Where other users may put another file in the place of this one. In a sticky directory only its owner may.
fn warning_of_directory(path: &Path) -> Option<String> {
    let directory = std::fs::canonicalize(path).ok()?.parent()?.to_path_buf();
    let found = std::fs::metadata(&directory).ok()?;
    let is_open = others(&found) & 0o022 != 0 && found.mode() & 0o1000 == 0;
    is_open.then(|| {
        format!(
            "others may replace the configuration file, since they may write directory {}; take that from them: chmod go-w {}",
            directory.display(),
            word(&directory)
        )
    })
}

/// Whether somebody besides its owner may read a file. What root has made for a group is meant for it, as libpq has it for keys.
fn is_readable_by_others(found: &Metadata) -> bool {
    others(found) & if found.uid() == 0 { 0o007 } else { 0o077 } != 0
}

/// The bits of a mode that concern others than the owner: not those of a group that is the owner alone.
fn others(found: &Metadata) -> u32 {
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
