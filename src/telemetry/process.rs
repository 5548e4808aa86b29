//! What the process takes of its machine: the `process_*` metrics by the names that Prometheus gives them.
//!
//! Read from /proc/self whenever the metrics are asked for, a few files of the kernel's memory. What the system does not
//! tell has no value: nothing but the process's own directory is needed, as `ProcSubset=pid` of the unit leaves it.

use std::time::SystemTime;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// As of the moment of reading.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProcessUsage {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) descriptors: Option<u64>,
    /// `None`: as many as it likes.
    pub(super) descriptors_max: Option<u64>,
}

impl ProcessUsage {
    /// Asks the system.
    pub(super) fn read() -> ProcessUsage {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let descriptors = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
        ProcessUsage {
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            resident_bytes: field(&status, "VmRSS:").map(|kilobytes| kilobytes * 1024),
            virtual_bytes: field(&status, "VmSize:").map(|kilobytes| kilobytes * 1024),
            threads: field(&status, "Threads:"),
            descriptors,
            descriptors_max: getrlimit(Resource::Nofile).current,
        }
    }
}

/// A number of /proc/self/status (proc_pid_status(5)).
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The time in seconds since 1970.
pub(super) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_with_its_memory_and_descriptors() {
        let usage = ProcessUsage::read();
        assert!(usage.cpu_seconds > 0.0, "{usage:?}");
        if cfg!(target_os = "linux") {
            let there = [usage.resident_bytes, usage.virtual_bytes, usage.threads, usage.descriptors];
            assert!(there.iter().all(|value| value.is_some_and(|value| value > 0)), "{usage:?}");
            assert!(usage.resident_bytes < usage.virtual_bytes, "{usage:?}");
        }
        assert_eq!(field("VmRSS:\t   12 kB\nThreads:\t3\n", "Threads:"), Some(3));
    }
}
