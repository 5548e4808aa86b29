//! The spool's directory: one of its own for each process, below `spool.dir`, and nothing left of the dead.
//!
//! Several processes may share `spool.dir`. Each makes `NAME.lock`, which it holds locked as long as it lives, and
//! `NAME/`. Whoever finds a lock that nobody holds sweeps both. Making and sweeping happen under one more lock, so that
//! nobody sweeps what is just being made.
//!
//! If the process dies anywhere here, its locks go with it, and the next start sweeps.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::SpoolError;

/// Held while directories are made and swept.
const GATE: &str = "spool.lock";

/// A directory of our own. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Directory {
    /// `spool.dir`.
    parent: PathBuf,
    path: PathBuf,
    lock_path: PathBuf,
    /// Locked.
    _lock: File,
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is swept by the next start.
        let _ = fs::remove_dir_all(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

impl Directory {
    /// Sweeps `parent`, which is made where it is missing, and makes a directory in it.
    pub(super) fn create(parent: &Path, slot: &str) -> Result<Directory, SpoolError> {
        fs::create_dir_all(parent).map_err(failed("create the directory", parent))?;
        let gate_path = parent.join(GATE);
        let gate = open_lock(&gate_path)?;
        gate.lock().map_err(failed("lock", &gate_path))?;
        sweep(parent)?;
        let name = format!("{slot}.{:016x}", fastrand::u64(..));
        let (path, lock_path) = (parent.join(&name), parent.join(format!("{name}.lock")));
        let lock = open_lock(&lock_path)?;
        lock.lock().map_err(failed("lock", &lock_path))?;
        fs::create_dir(&path).map_err(failed("create the directory", &path))?;
        Ok(Directory { parent: parent.to_owned(), path, lock_path, _lock: lock })
    }

    /// `spool.dir`.
    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    /// The file of a stream.
    pub(super) fn file(&self, xid: u32) -> PathBuf {
        self.path.join(xid.to_string())
    }
}

fn open_lock(path: &Path) -> Result<File, SpoolError> {
    let opened = File::options().create(true).truncate(false).write(true).open(path);
    opened.map_err(failed("open", path))
}

/// Removes the directories whose owners are dead.
fn sweep(parent: &Path) -> Result<(), SpoolError> {
    for entry in fs::read_dir(parent).map_err(failed("read the directory", parent))? {
        let lock_path = entry.map_err(failed("read the directory", parent))?.path();
        if lock_path.extension().is_none_or(|extension| extension != "lock") || lock_path.ends_with(GATE) {
            continue;
        }
        match open_lock(&lock_path)?.try_lock() {
            Ok(()) => {
                let dead = lock_path.with_extension("");
                match fs::remove_dir_all(&dead) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed("remove", &dead)(error));
                    }
                    Ok(()) | Err(_) => {}
                }
                fs::remove_file(&lock_path).map_err(failed("remove", &lock_path))?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failed("lock", &lock_path)(error)),
        }
    }
    Ok(())
}

pub(super) fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::File { doing, path: path.clone(), source }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A directory for one test.
    pub(in crate::spool) struct Scratch(pub(in crate::spool) PathBuf);

    impl Scratch {
        pub(in crate::spool) fn new() -> Scratch {
            Scratch(std::env::temp_dir().join(format!("headwater-spool-{:016x}", fastrand::u64(..))))
        }

        pub(in crate::spool) fn entries(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_the_dead_left_is_swept_and_what_the_living_have_stays() {
        let scratch = Scratch::new();
        let living = Directory::create(&scratch.0, "living").unwrap();
        fs::write(living.file(7), b"mine").unwrap();
        fs::create_dir_all(scratch.0.join("dead.0123")).unwrap();
        fs::write(scratch.0.join("dead.0123").join("9"), b"left over").unwrap();
        fs::write(scratch.0.join("dead.0123.lock"), b"").unwrap();
        fs::write(scratch.0.join("somebody.elses"), b"not ours").unwrap();
        let next = Directory::create(&scratch.0, "next").unwrap();
        assert_eq!(fs::read(living.file(7)).unwrap(), b"mine");
        let names = scratch.entries();
        assert!(!names.iter().any(|name| name.starts_with("dead")), "{names:?}");
        assert!(names.contains(&"somebody.elses".to_owned()), "{names:?}");
        drop((living, next));
        assert_eq!(scratch.entries(), ["somebody.elses", GATE]);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let scratch = Scratch::new();
        fs::write(&scratch.0, b"a file").unwrap();
        let error = Directory::create(&scratch.0.join("below"), "s").unwrap_err().to_string();
        assert!(error.contains("could not create the directory") && error.contains("below"), "{error}");
        fs::remove_file(&scratch.0).unwrap();
    }
}
