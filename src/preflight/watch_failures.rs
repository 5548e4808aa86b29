//! What a watching task cannot look at, and why: said once for each reason, and shown for as long as it lasts.
//!
//! Each task that watches a server on a session of its own has one [`WatchFailure`]: those of the monitor, and the wait for an operator's
//! request. While a fault holds the service up, that fault's own message says what is wrong, so nothing is said here.
//!
//! Bound: none in time, since a watch is needed for as long as the service runs; every task tries again within seconds, and ends with
//! the process. [`REASONS_MAX`] reasons are remembered until the watch works again.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::telemetry::Telemetry;

/// A failure that is over sooner is not reported.
const TOLD_AFTER: Duration = Duration::from_secs(5);
/// One that is forgotten is said once more.
const REASONS_MAX: usize = 100;

/// Whether one watch fails.
pub(crate) struct WatchFailure {
    telemetry: Arc<Telemetry>,
    /// What is watched: the object of "cannot look at".
    watched: &'static str,
    /// Told while a fault holds the service up, too: what this watches for ends that.
    always: bool,
    since: Option<(Instant, SystemTime)>,
    told: BTreeSet<String>,
    is_shown: bool,
}

impl WatchFailure {
    /// A watch that has not failed.
    pub(crate) fn new(telemetry: Arc<Telemetry>, watched: &'static str) -> WatchFailure {
        WatchFailure { telemetry, watched, always: false, since: None, told: BTreeSet::new(), is_shown: false }
    }

    /// The same, for what an operator must be able to reach while a fault holds the service up.
    pub(crate) fn always(mut self) -> WatchFailure {
        self.always = true;
        self
    }

    /// The watch could not look, and is tried again.
    pub(crate) fn failed(&mut self, error: impl Display) {
        let (since, at) = *self.since.get_or_insert_with(|| (Instant::now(), SystemTime::now()));
        if since.elapsed() < TOLD_AFTER || (!self.always && self.telemetry.is_held_up()) {
            return self.hide();
        }
        let error = error.to_string();
        let text = format!(
            "headwater cannot look at {}: {error}. It has tried since {}, and tries again until that works",
            self.watched,
            humantime::format_rfc3339_seconds(at)
        );
        if !self.told.contains(&error) {
            if self.told.len() >= REASONS_MAX {
                self.told.clear();
            }
            self.told.insert(error);
            self.telemetry.warning("wait", text.clone());
        }
        self.is_shown = true;
        self.telemetry.waits(self.watched, vec![text]);
    }

    /// The watch has looked.
    pub(crate) fn works(&mut self) {
        self.since = None;
        self.hide();
        if !std::mem::take(&mut self.told).is_empty() {
            self.telemetry.event("wait", format!("headwater looks at {} again", self.watched));
        }
    }

    /// There is nothing to look at for now.
    pub(crate) fn rests(&mut self) {
        self.since = None;
        self.hide();
    }

    fn hide(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            self.telemetry.waits(self.watched, Vec::new());
        }
    }
}

impl Drop for WatchFailure {
    fn drop(&mut self) {
        self.hide();
    }
}
