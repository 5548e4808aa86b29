//! The wait for a spool whose disk does not take or give anything.
//!
//! Held by the handles of [`super`], around each await of the thread. In comes the wait; out goes what came of it, or
//! [`SpoolError::Slow`] once it has lasted for [`SLOW_MAX`]. One that lasts for [`TOLD_AFTER`] is a line in the log, once for each
//! handle, and stands in /status.
//!
//! The thread itself cannot be interrupted in the middle of a system call: it ends once the disk has answered. Until then its files stay,
//! and the next start sweeps them.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::spool::error::SpoolError;
use crate::telemetry::Telemetry;

/// A wait that is over sooner is not reported.
const TOLD_AFTER: Duration = Duration::from_secs(5);
/// A disk that has not carried out one order by then is given up: the source keeps large transactions until they commit instead.
const SLOW_MAX: Duration = Duration::from_secs(60);
/// Under which name the wait stands in telemetry.
const SHOWN_AS: &str = "spool";

/// The wait for the spool's thread.
pub(super) struct SlowSpool {
    telemetry: Arc<Telemetry>,
    path: PathBuf,
    since: Option<(Instant, SystemTime)>,
    is_told: bool,
    is_shown: bool,
}

impl SlowSpool {
    pub(super) fn new(telemetry: Arc<Telemetry>, path: PathBuf) -> SlowSpool {
        SlowSpool { telemetry, path, since: None, is_told: false, is_shown: false }
    }

    /// The wait of another handle.
    pub(super) fn another(&self) -> SlowSpool {
        SlowSpool::new(Arc::clone(&self.telemetry), self.path.clone())
    }

    /// Waits. Cancel-safe if the work is: who waits again, waits on.
    pub(super) async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Result<T, SpoolError> {
        let (since, at) = *self.since.get_or_insert_with(|| (Instant::now(), SystemTime::now()));
        let mut work = pin!(work);
        loop {
            let until = if self.is_shown { SLOW_MAX } else { TOLD_AFTER };
            tokio::select! {
                biased;
                done = &mut work => {
                    self.since = None;
                    self.hide();
                    return Ok(done);
                }
                () = tokio::time::sleep(until.saturating_sub(since.elapsed())) => {}
            }
            if self.is_shown {
                return Err(SpoolError::Slow { within: SLOW_MAX, path: self.path.clone() });
            }
            self.show(at);
        }
    }

    fn show(&mut self, at: SystemTime) {
        let text = format!(
            "the stream waits for the disk of {}, where transactions in progress are kept, since {}. It is given up after {}",
            self.path.display(),
            humantime::format_rfc3339_seconds(at),
            humantime::format_duration(SLOW_MAX)
        );
        if !std::mem::replace(&mut self.is_told, true) {
            self.telemetry.warning("wait", text.clone());
        }
        self.is_shown = true;
        self.telemetry.waits(SHOWN_AS, vec![text]);
    }

    fn hide(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            self.telemetry.waits(SHOWN_AS, Vec::new());
        }
    }
}

impl fmt::Debug for SlowSpool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowSpool").field("path", &self.path).field("since", &self.since).finish_non_exhaustive()
    }
}

impl Drop for SlowSpool {
    fn drop(&mut self) {
        self.hide();
    }
}
