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
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;

use super::sweep::{self, MARKER, MARKER_TEXT};
use crate::pg::SlotName;
use crate::spool::error::SpoolError;

/// Held while directories are made and swept.
pub(super) const GATE: &str = "spool.lock";
/// Making and sweeping take milliseconds; who holds the gate for longer is no headwater, or hangs on its disk. Every attempt to stream
/// waits for it.
const GATE_MAX: Duration = Duration::from_secs(3);
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
        let parent = &resolve(parent).map_err(failed("create the directory", parent))?;
        create_directories(parent).map_err(failed("create the directory", parent))?;
        let parent_fd = open_parent(parent).map_err(failed("open", parent))?;
        let gate_path = parent.join(GATE);
        let gate = open_gate(&parent_fd, OFlags::CREATE).map_err(failed("open", &gate_path))?;
        let _gate = lock_gate(gate, &gate_path)?;
        sweep::sweep(&parent_fd).map_err(failed("read the directory", parent))?;
        let name = sweep::name_of(slot, fastrand::u64(..));
        let path = parent.join(&name);
        let creating = failed("create the directory", &path);
        mkdirat(&parent_fd, &name, DIRECTORY_MODE).map_err(failed("create the directory", &path))?;
        let fd = open_created(&parent_fd, Path::new(&name)).map_err(&creating)?;
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

/// The absolute path of a `spool.dir`, without `.` and without a slash at its end: by these the directory above a missing one would be
/// taken for the missing one itself, and links would be followed where none may be. `check` judges the same path.
///
/// # Errors
/// The path is empty, or leads back by `..` from a directory that is missing.
pub fn resolve(directory: &Path) -> io::Result<PathBuf> {
    let resolved: PathBuf = std::path::absolute(directory)?.components().collect();
    let mut missing = resolved.ancestors().take_while(|directory| is_missing(directory));
    if missing.any(|directory| directory.ends_with("..")) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it leads back by .. from a directory that does not exist",
        ));
    }
    Ok(resolved)
}

fn is_missing(directory: &Path) -> bool {
    matches!(fs::symlink_metadata(directory), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Makes a resolved directory and those above it that are missing, for us alone. Each is tried once: where one cannot be made, as below
/// /proc, that is the answer.
fn create_directories(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|directory| is_missing(directory)).collect();
    for directory in missing.into_iter().rev() {
        match DirBuilder::new().mode(DIRECTORY_MODE.bits()).create(directory) {
            Ok(()) => drop(open_created(CWD, directory)?),
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    match fs::metadata(directory)?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

fn open_parent(parent: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a directory that was just made, and gives it the bits that the umask has taken away: those of its owner. A directory in its
/// place that was not made so is refused, and stays as it is: where others may write, they may have exchanged it.
pub(super) fn open_created(parent: impl AsFd, name: &Path) -> io::Result<OwnedFd> {
    // No bit is needed to get hold of it, and from here on it is this directory, whatever becomes of the name.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = openat(parent, name, flags, Mode::empty())?;
    let found = fstat(&held)?;
    if found.st_uid != rustix::process::geteuid().as_raw() || found.st_mode & 0o077 != 0 {
        return Err(io::Error::other("somebody else has put another one in its place"));
    }
    if found.st_mode & DIRECTORY_MODE.bits() != DIRECTORY_MODE.bits() {
        // fchmod refuses such a descriptor; this link leads to what it holds and to nothing else.
        fs::set_permissions(
            format!("/proc/self/fd/{}", held.as_raw_fd()),
            Permissions::from_mode(DIRECTORY_MODE.bits()),
        )?;
    }
    Ok(openat(&held, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
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

fn lock_gate(gate: File, path: &Path) -> Result<File, SpoolError> {
    let give_up = Instant::now() + GATE_MAX;
    loop {
        match gate.try_lock() {
            Ok(()) => return Ok(gate),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(GATE_POLL),
            Err(TryLockError::WouldBlock) => {
                let holder = match holder_of(&gate) {
                    Some(process_id) => format!("process {process_id}"),
                    None => "another process".to_owned(),
                };
                return Err(failed("lock", path)(io::Error::other(format!("{holder} holds it locked"))));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
        }
    }
}

fn open_gate(parent: impl AsFd, create: OFlags) -> io::Result<File> {
    if let Ok(found) = statat(&parent, GATE, AtFlags::SYMLINK_NOFOLLOW) {
        let kind = match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => None,
            FileType::Symlink => Some("it is a symbolic link, not a regular file"),
            FileType::Directory => Some("it is a directory, not a regular file"),
            FileType::Fifo => Some("it is a FIFO, not a regular file"),
            FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
                Some("it is not a regular file")
            }
        };
        if let Some(kind) = kind {
            return Err(io::Error::other(kind));
        }
    }
    open_file(&parent, GATE, OFlags::RDWR | create)
}

/// The process that holds a file locked, as far as this system tells (proc(5), /proc/locks: kind, access, process, file).
fn holder_of(file: &File) -> Option<u32> {
    let inode = fstat(file).ok()?.st_ino.to_string();
    fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip_while(|field| *field != "FLOCK").skip(3);
        let (process_id, held) = (fields.next()?, fields.next()?);
        if held.rsplit(':').next() == Some(inode.as_str()) { process_id.parse().ok() } else { None }
    })
}

/// What keeps a start from a directory that exists.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// It cannot be opened.
    #[error(transparent)]
    Directory(SpoolError),
    /// What has the lock file's name is none, or none of ours.
    #[error(transparent)]
    Kind(SpoolError),
    /// Somebody holds the lock file.
    #[error(transparent)]
    Held(SpoolError),
}

/// Whether a start gets past the gate of a directory that exists, for `check`: nothing is made here.
///
/// # Errors
/// [`GateError`], with what the start would say.
pub fn check_gate(directory: &Path) -> Result<(), GateError> {
    let path = directory.join(GATE);
    let parent = open_parent(directory).map_err(failed("open", directory)).map_err(GateError::Directory)?;
    if matches!(statat(&parent, GATE, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT)) {
        return Ok(());
    }
    let gate = open_gate(&parent, OFlags::empty()).map_err(failed("open", &path)).map_err(GateError::Kind)?;
    lock_gate(gate, &path).map(drop).map_err(GateError::Held)
}

pub(super) fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl Fn(E) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::File { doing, path: path.clone(), source: source.into() }
}
