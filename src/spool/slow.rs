//! The wait for a spool whose disk does not take or give anything.
//!
//! Held by the handles of [`super`], around each await of the thread. In comes the wait; out goes what came of it, or
//! [`SpoolError::Slow`] once the disk has taken and given nothing for [`STILL_MAX`]: one that is slow, or has a large row to write, is
//! waited for while [`DiskProgress`] moves. A wait that lasts for [`TOLD_AFTER`] is a line in the log, once while the disk is slow,
//! and stands in /status.
//!
//! The thread itself cannot be interrupted in the middle of a system call: it ends once the disk has answered. Until then its files stay,
//! and the next start sweeps them.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::spool::error::SpoolError;
use crate::telemetry::Telemetry;

/// A wait that is over sooner is not reported.
const TOLD_AFTER: Duration = Duration::from_secs(5);
/// A disk that has taken and given nothing for so long is given up: the source keeps large transactions until they commit instead.
const STILL_MAX: Duration = Duration::from_secs(60);
/// How often a reported wait looks whether the disk moves.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A disk that is slow again and again is a line in the log so often.
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// What the disk has done: it moves with each piece that was written or read, and with each order that was carried out.
#[derive(Clone, Debug, Default)]
pub(super) struct DiskProgress(Arc<AtomicU64>);

impl DiskProgress {
    /// The disk has done something.
    pub(super) fn moved(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The wait for the spool's thread.
pub(super) struct SlowSpool {
    telemetry: Arc<Telemetry>,
    path: PathBuf,
    progress: DiskProgress,
    standing: Option<SlowWait>,
    /// Under which name the wait stands in telemetry.
    shown_as: &'static str,
    /// When a wait of any handle was last told.
    told_at: Arc<Mutex<Option<Instant>>>,
    is_shown: bool,
}

/// A wait that is not over.
#[derive(Clone, Copy, Debug)]
struct SlowWait {
    since: Instant,
    at: SystemTime,
    /// The progress that was seen last, and when it was seen first.
    moved: u64,
    still_since: Instant,
}

impl SlowWait {
    fn begin(moved: u64) -> SlowWait {
        let now = Instant::now();
        SlowWait { since: now, at: SystemTime::now(), moved, still_since: now }
    }

    /// Whether the disk, which has come so far by `now`, has stood still for too long.
    fn is_still(&mut self, moved: u64, now: Instant) -> bool {
        if moved != self.moved {
            (self.moved, self.still_since) = (moved, now);
        }
        now.saturating_duration_since(self.still_since) >= STILL_MAX
    }
}

impl SlowSpool {
    pub(super) fn new(telemetry: Arc<Telemetry>, path: PathBuf, progress: DiskProgress) -> SlowSpool {
        SlowSpool {
            telemetry,
            path,
            progress,
            standing: None,
            shown_as: "spool",
            told_at: Arc::default(),
            is_shown: false,
        }
    }

    /// The wait of another handle.
    pub(super) fn another(&self, shown_as: &'static str) -> SlowSpool {
        SlowSpool {
            telemetry: Arc::clone(&self.telemetry),
            path: self.path.clone(),
            progress: self.progress.clone(),
            standing: None,
            shown_as,
            told_at: Arc::clone(&self.told_at),
            is_shown: false,
        }
    }

    /// Waits. Cancel-safe if the work is: who waits again, waits on.
    pub(super) async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Result<T, SpoolError> {
        let progress = self.progress.clone();
        let mut work = pin!(work);
        loop {
            let standing = self.standing.get_or_insert_with(|| SlowWait::begin(progress.now()));
            let wait = if self.is_shown { LOOK_EVERY } else { TOLD_AFTER.saturating_sub(standing.since.elapsed()) };
            tokio::select! {
                biased;
                done = &mut work => {
                    self.standing = None;
                    self.hide();
                    return Ok(done);
                }
                () = tokio::time::sleep(wait) => {}
            }
            if standing.is_still(progress.now(), Instant::now()) {
                return Err(SpoolError::Slow { within: STILL_MAX, path: self.path.clone() });
            }
            let at = standing.at;
            if !self.is_shown {
                self.show(at);
            }
        }
    }

    fn show(&mut self, at: SystemTime) {
        let text = format!(
            "the stream waits for the disk of {}, where transactions in progress are kept, since {}. It is given up after {} in which \
             that does nothing",
            self.path.display(),
            humantime::format_rfc3339_seconds(at),
            humantime::format_duration(STILL_MAX)
        );
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            self.telemetry.warning("wait", text.clone());
        }
        *told_at = Some(Instant::now());
        drop(told_at);
        self.is_shown = true;
        self.telemetry.waits(self.shown_as, vec![text]);
    }

    fn hide(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            self.telemetry.waits(self.shown_as, Vec::new());
        }
    }
}

impl fmt::Debug for SlowSpool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowSpool").field("path", &self.path).field("standing", &self.standing).finish_non_exhaustive()
    }
}

impl Drop for SlowSpool {
    fn drop(&mut self) {
        self.hide();
    }
}

impl Clone for SlowSpool {
    fn clone(&self) -> SlowSpool {
        self.another(self.shown_as)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_given_up_for_standing_still_and_not_for_being_slow() {
        let mut standing = SlowWait::begin(0);
        let at = |seconds: u64| standing.since + Duration::from_secs(seconds);
        let looks = [(0, 59), (1, 61), (1, 100), (2, 119), (3, 175), (4, 1000), (4, 1059)]
            .map(|(moved, seconds)| (moved, at(seconds)));
        for (moved, now) in looks {
            assert!(!standing.is_still(moved, now), "{moved}");
        }
        let end = standing.still_since + STILL_MAX;
        assert!(standing.is_still(4, end));
    }
}
