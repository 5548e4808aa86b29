//! What dead processes left in `spool.dir`, and nothing else.
//!
//! In comes `spool.dir`, open; out goes nothing. Called by [`super::directory`] under its gate, before it makes a
//! directory of its own. `spool.dir` may be anybody's: whatever is in it that headwater did not make stays as it is.
//!
//! Made by headwater, and so removed, is a directory
//! - whose name is a slot's name, a dot and sixteen hexadecimal digits,
//! - that is a directory itself (no link), belongs to us, and that nobody else may write into,
//! - with a [`MARKER`] in it: a file of ours with [`MARKER_TEXT`], which no living process holds locked.
//!
//! In it only files that are named like a transaction are removed, then the marker, then the directory, if nothing else is in
//! it. What is not so, cannot be read or is of another kind is skipped. Everything is opened relative to the directory
//! that was looked at, without following links and without waiting (a FIFO would wait for a writer), so that swapping a name
//! for a link changes nothing.
//!
//! If the process dies between the marker and the directory, an empty directory stays.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::pg::SlotName;

/// The file that makes a directory headwater's; held locked by the process that uses it.
pub(super) const MARKER: &str = "marker";
/// What stands in it.
pub(super) const MARKER_TEXT: &[u8] = b"headwater made this directory, and removes it when it has ended\n";
/// Digits behind a slot's name.
const SUFFIX_DIGITS: usize = 16;

/// Never through a link, never waiting, never left to a child.
const CAREFULLY: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// The name of a new directory.
pub(super) fn name_of(slot: &SlotName, number: u64) -> String {
    format!("{slot}.{number:0SUFFIX_DIGITS$x}")
}

/// Removes the directories whose processes are dead.
pub(super) fn sweep(parent: impl AsFd) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in Dir::read_from(&parent)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && is_name_of_ours(name)
        {
            names.push(name.to_owned());
        }
    }
    for name in names {
        match sweep_one(&parent, &name) {
            Ok(()) => {}
            // It is not ours to read, or somebody took it away: it stays, or is gone.
            Err(error) => tracing::debug!("{name:?} below spool.dir is not swept: {error}"),
        }
    }
    Ok(())
}

fn is_name_of_ours(name: &str) -> bool {
    let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    name.rsplit_once('.').is_some_and(|(stem, suffix)| {
        stem.parse::<SlotName>().is_ok() && suffix.len() == SUFFIX_DIGITS && suffix.bytes().all(is_hex)
    })
}

fn sweep_one(parent: impl AsFd, name: &str) -> io::Result<()> {
    let directory = openat(&parent, name, OFlags::RDONLY | OFlags::DIRECTORY | CAREFULLY, Mode::empty())?;
    let found = fstat(&directory)?;
    if !is_ours(&found) || found.st_mode & 0o022 != 0 {
        return Ok(());
    }
    let mut marker = File::from(openat(&directory, MARKER, OFlags::RDONLY | CAREFULLY, Mode::empty())?);
    let mut text = Vec::new();
    if !is_own_file(&fstat(&marker)?) {
        return Ok(());
    }
    (&mut marker).take(2 * MARKER_TEXT.len() as u64).read_to_end(&mut text)?;
    if text != MARKER_TEXT {
        return Ok(());
    }
    match marker.try_lock() {
        Ok(()) => remove(&parent, name, &directory),
        Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes a directory of ours, of which the marker is locked by us, with the files that are named like a transaction. If
/// there is anything else in it, that stays, and so do the directory and its marker.
pub(super) fn remove(parent: impl AsFd, name: &str, directory: impl AsFd) -> io::Result<()> {
    let mut others = false;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let file = entry.file_name();
        let is_known = |known: &str| file.to_bytes() == known.as_bytes();
        if [".", "..", MARKER].into_iter().any(is_known) {
            continue;
        }
        let is_transaction =
            file.to_str().is_ok_and(|text| text.parse::<u32>().is_ok_and(|xid| xid.to_string() == text));
        if is_transaction && is_own_file(&statat(&directory, file, AtFlags::SYMLINK_NOFOLLOW)?) {
            unlinkat(&directory, file, AtFlags::empty())?;
        } else {
            others = true;
        }
    }
    let (opened, named) = (fstat(&directory)?, statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?);
    if others || (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino) {
        return Ok(());
    }
    unlinkat(&directory, MARKER, AtFlags::empty())?;
    match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        // Somebody has just put something into it.
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_ours(found: &Stat) -> bool {
    found.st_uid == rustix::process::geteuid().as_raw()
}

/// A regular file of ours that has no other name.
fn is_own_file(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && is_ours(found) && found.st_nlink == 1
}
