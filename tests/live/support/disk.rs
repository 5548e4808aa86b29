//! File systems that are full: small ones in memory, mounted for one test.
//!
//! Only root may mount; and a server that found itself root in a user namespace of its own would refuse to run.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system. Dropping it takes it away, whoever still uses it; so it is made after the servers that do.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one of this size on a directory that is made where it is missing, and gives it to the directory's owner or, where
    /// it was missing, to its parent's. `None`, after saying so, where only root may.
    pub fn mount(directory: &Path, size: &str) -> Option<Disk> {
        let existing = directory.ancestors().find(|path| path.exists()).expect("the root exists");
        let owner = existing.metadata().expect("its owner");
        std::fs::create_dir_all(directory).expect("a directory");
        let options = format!("size={size},mode=700,uid={},gid={}", owner.uid(), owner.gid());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Disk(directory.to_owned()));
        }
        println!("left out: only root may mount a file system that is full");
        None
    }

    /// There is room now.
    pub fn enlarge(&self, size: &str) {
        let enlarged = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.0).status();
        assert!(enlarged.expect("mount runs").success(), "remounted");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
