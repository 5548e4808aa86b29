//! What the kernel says of a process: processor seconds and memory.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Processor time in hundredths of a second (USER_HZ is 100 on every Linux that PostgreSQL runs on).
fn ticks(process_id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process_id}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    // Behind the name: state is field 3, utime 14, stime 15.
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Follows a process's processor time until it ends or is no longer of interest.
pub struct Cpu {
    last: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Cpu {
    pub fn of(process_id: u32) -> Cpu {
        let last = Arc::new(AtomicU64::new(ticks(process_id).unwrap_or(0)));
        let done = Arc::new(AtomicBool::new(false));
        let (shared, over) = (Arc::clone(&last), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                match ticks(process_id) {
                    Some(now) => shared.fetch_max(now, Ordering::Relaxed),
                    None => return,
                };
                std::thread::park_timeout(Duration::from_millis(20));
            }
            shared.fetch_max(ticks(process_id).unwrap_or(0), Ordering::Relaxed);
        });
        Cpu { last, done, thread: Some(thread) }
    }

    /// Seconds so far.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn seconds(mut self) -> f64 {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.last.load(Ordering::Relaxed) as f64 / 100.0
    }
}

/// The most memory that a process ever had, in megabytes.
pub fn resident_max_megabytes(process_id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
