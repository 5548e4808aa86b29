//! A process that gets only a part of a core, as in a container with a small quota.
//!
//! By a cgroup of its own where the test may make one (version 1 or 2, as root); otherwise the process is stopped and continued
//! in turn, which comes to the same share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// One turn.
const PERIOD: Duration = Duration::from_millis(100);

/// Starves a process until it is dropped.
pub struct Starved {
    process_id: u32,
    means: Means,
}

enum Means {
    Cgroup { dir: PathBuf, root: PathBuf },
    Signals { over: Arc<AtomicBool>, thread: Option<JoinHandle<()>> },
}

impl Starved {
    /// Leaves the process `percent` of one core.
    pub fn to(percent: u32, process_id: u32) -> Starved {
        let means = cgroup_v1(percent, process_id)
            .or_else(|| cgroup_v2(percent, process_id))
            .unwrap_or_else(|| signals(percent, process_id));
        let by = if matches!(means, Means::Cgroup { .. }) { "a cgroup" } else { "SIGSTOP and SIGCONT" };
        println!("process {process_id} has {percent} % of a core, by {by}");
        Starved { process_id, means }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        match &mut self.means {
            Means::Cgroup { dir, root } => {
                // A process that has ended is in no group.
                let _ = fs::write(root.join("cgroup.procs"), self.process_id.to_string());
                let _ = fs::remove_dir(dir);
            }
            Means::Signals { over, thread } => {
                over.store(true, Ordering::Relaxed);
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
        }
    }
}

fn cgroup_v1(percent: u32, process_id: u32) -> Option<Means> {
    let root = Path::new("/sys/fs/cgroup/cpu");
    let dir = group(root, process_id)?;
    let period = PERIOD.as_micros();
    let set = fs::write(dir.join("cpu.cfs_period_us"), period.to_string())
        .and_then(|()| fs::write(dir.join("cpu.cfs_quota_us"), (period * u128::from(percent) / 100).to_string()))
        .and_then(|()| fs::write(dir.join("cgroup.procs"), process_id.to_string()));
    made(root, dir, set)
}

fn cgroup_v2(percent: u32, process_id: u32) -> Option<Means> {
    let root = Path::new("/sys/fs/cgroup");
    if !root.join("cgroup.controllers").exists() {
        return None;
    }
    let dir = group(root, process_id)?;
    let period = PERIOD.as_micros();
    let set = fs::write(dir.join("cpu.max"), format!("{} {period}", period * u128::from(percent) / 100))
        .and_then(|()| fs::write(dir.join("cgroup.procs"), process_id.to_string()));
    made(root, dir, set)
}

fn group(root: &Path, process_id: u32) -> Option<PathBuf> {
    let dir = root.join(format!("headwater-test-{process_id}"));
    root.exists().then(|| fs::create_dir(&dir).ok())??;
    Some(dir)
}

fn made(root: &Path, dir: PathBuf, set: std::io::Result<()>) -> Option<Means> {
    if set.is_err() {
        let _ = fs::remove_dir(&dir);
        return None;
    }
    Some(Means::Cgroup { dir, root: root.to_owned() })
}

fn signals(percent: u32, process_id: u32) -> Means {
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let pid = i32::try_from(process_id).ok().and_then(Pid::from_raw).expect("a process");
    let runs = PERIOD * percent / 100;
    let thread = std::thread::spawn(move || {
        // Once it has ended, its number is nobody's until it is waited for.
        while !ends.load(Ordering::Relaxed) && kill_process(pid, Signal::STOP).is_ok() {
            std::thread::sleep(PERIOD - runs);
            let _ = kill_process(pid, Signal::CONT);
            std::thread::sleep(runs);
        }
    });
    Means::Signals { over, thread: Some(thread) }
}
