//! The spool's directory: one of its own for each process, below `spool.dir`.
//!
//! In come `spool.dir` and the slot's name; out goes a [`Directory`] whose files [`super::store`] opens. Several
//! processes may share `spool.dir`. Each makes a directory with a marker in it, which it holds locked as long as it lives;
//! the marker of a dead process is free, and [`super::sweep`] removes its directory. Making and sweeping happen under one
//! more lock, the gate, so that nobody sweeps what is just being made.
//!
//! Whatever the umask, directories have the mode 0700 and files 0600: rows are in them. Everything is opened relative to
//! directories that stay open, without following links: what others do to the names below a `spool.dir` that they may
//! write into changes nothing.
//!
//! If the process dies anywhere here, its locks go with it, and the next start sweeps.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmodat, fchmod, fstat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;

use super::SpoolError;
use super::sweep::{self, MARKER, MARKER_TEXT};
use crate::pg::SlotName;

/// Held while directories are made and swept.
pub(super) const GATE: &str = "spool.lock";
/// Making and sweeping take milliseconds; who holds the gate for longer is no headwater, or hangs on its disk.
const GATE_MAX: Duration = Duration::from_secs(20);
const GATE_POLL: Duration = Duration::from_millis(20);

const DIRECTORY_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A directory of our own. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Directory {
    /// `spool.dir`.
    parent: PathBuf,
    parent_fd: OwnedFd,
    name: String,
    fd: OwnedFd,
    /// Locked.
    _marker: File,
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is swept by the next start.
        let _ = sweep::remove(&self.parent_fd, &self.name, &self.fd);
    }
}

impl Directory {
    /// Sweeps `parent`, which is made where it is missing, and makes a directory in it.
    pub(super) fn create(parent: &Path, slot: &SlotName) -> Result<Directory, SpoolError> {
        create_directories(parent).map_err(failed("create the directory", parent))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent_fd = rustix::fs::open(parent, flags, Mode::empty()).map_err(failed("open", parent))?;
        let _gate = lock_gate(&parent_fd, &parent.join(GATE))?;
        sweep::sweep(&parent_fd).map_err(failed("read the directory", parent))?;
        let name = sweep::name_of(slot, fastrand::u64(..));
        let path = parent.join(&name);
        let creating = failed("create the directory", &path);
        mkdirat(&parent_fd, &name, DIRECTORY_MODE).map_err(&creating)?;
        // The umask may have taken bits away that opening it needs.
        chmodat(&parent_fd, &name, DIRECTORY_MODE, AtFlags::empty()).map_err(&creating)?;
        let fd = openat(&parent_fd, &name, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(&creating)?;
        let created = fstat(&fd).map_err(&creating)?;
        if created.st_uid != rustix::process::geteuid().as_raw() || created.st_mode & 0o077 != 0 {
            let error = io::Error::other("somebody else has put another one in its place");
            return Err(failed("create the directory", &path)(error));
        }
        let marker_path = path.join(MARKER);
        let mut marker = open_file(&fd, MARKER, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
            .map_err(failed("create", &marker_path))?;
        marker.try_lock().map_err(io::Error::from).map_err(failed("lock", &marker_path))?;
        marker.write_all(MARKER_TEXT).map_err(failed("write", &marker_path))?;
        Ok(Directory { parent: parent.to_owned(), parent_fd, name, fd, _marker: marker })
    }

    /// `spool.dir`.
    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    /// Where a stream's file is: for messages.
    pub(super) fn path(&self, xid: u32) -> PathBuf {
        self.parent.join(&self.name).join(xid.to_string())
    }

    /// A stream's file, to write to its end; made where it is missing.
    pub(super) fn append(&self, xid: u32) -> Result<File, SpoolError> {
        self.open(xid, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)
    }

    /// A stream's file, to be read and truncated.
    pub(super) fn edit(&self, xid: u32) -> Result<File, SpoolError> {
        self.open(xid, OFlags::RDWR)
    }

    /// A stream's file, to be read.
    pub(super) fn read(&self, xid: u32) -> Result<File, SpoolError> {
        self.open(xid, OFlags::RDONLY)
    }

    fn open(&self, xid: u32, flags: OFlags) -> Result<File, SpoolError> {
        open_file(&self.fd, &xid.to_string(), flags).map_err(failed("open", &self.path(xid)))
    }

    /// Removes a stream's file.
    pub(super) fn remove(&self, xid: u32) -> Result<(), SpoolError> {
        unlinkat(&self.fd, xid.to_string(), AtFlags::empty()).map_err(failed("remove", &self.path(xid)))
    }
}

/// Makes a directory and those above it that are missing, for us alone.
fn create_directories(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY_MODE.bits()).create(directory) {
        // The umask may have taken bits away that making the next one in it needs.
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE.bits())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).ok_or(error)?;
            create_directories(parent)?;
            create_directories(directory)
        }
        Err(error) => Err(error),
    }
}

/// Opens a regular file, and no other one. With `CREATE` it is made where it is missing, with the mode 0600.
fn open_file(directory: impl AsFd, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if flags.contains(OFlags::CREATE) {
        match openat(&directory, name, flags | OFlags::EXCL, FILE_MODE) {
            Ok(file) => {
                // The umask may have taken bits away.
                fchmod(&file, FILE_MODE)?;
                return Ok(File::from(file));
            }
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let file = openat(&directory, name, flags.difference(OFlags::CREATE), Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(File::from(file))
}

fn lock_gate(parent: impl AsFd, path: &Path) -> Result<File, SpoolError> {
    let opening = failed("open", path);
    if let Ok(found) = statat(&parent, GATE, AtFlags::SYMLINK_NOFOLLOW)
        && FileType::from_raw_mode(found.st_mode) != FileType::RegularFile
    {
        return Err(opening(io::Error::other("it is not a regular file")));
    }
    let gate = open_file(&parent, GATE, OFlags::RDWR | OFlags::CREATE).map_err(opening)?;
    let give_up = Instant::now() + GATE_MAX;
    loop {
        match gate.try_lock() {
            Ok(()) => return Ok(gate),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(GATE_POLL),
            Err(TryLockError::WouldBlock) => {
                return Err(failed("lock", path)(io::Error::other("another process holds it locked")));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
        }
    }
}

pub(super) fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl Fn(E) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::File { doing, path: path.clone(), source: source.into() }
}
