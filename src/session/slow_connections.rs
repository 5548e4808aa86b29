//! The attempts of this process to connect that are under way, so that one that takes long can be reported.
//!
//! `connect` tries the hosts of a connection string one after another, each for `connect_timeout`, and its callers only hear of the end.
//! The service asks here what they wait for ([`slow_connections`]).
//!
//! Bound: one entry for each attempt, which goes with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::config::Host;

/// The attempts to connect that are under way in this process.
static UNDER_WAY: Mutex<BTreeMap<u64, ConnectsUnderWay>> = Mutex::new(BTreeMap::new());

struct ConnectsUnderWay {
    host: String,
    step: ConnectStep,
    /// The hosts before it that did not answer.
    silent: Vec<String>,
    since: Instant,
    at: SystemTime,
    within: Duration,
}

/// What an attempt waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectStep {
    /// The addresses of the host's name.
    Name,
    /// The server there.
    Server,
}

/// Keeps an attempt to connect among those under way, until it is dropped.
pub(super) struct Trying(u64);

impl Trying {
    pub(super) fn begin(within: Duration) -> Trying {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let (since, at) = (Instant::now(), SystemTime::now());
        let (host, step) = (String::new(), ConnectStep::Server);
        let under_way = ConnectsUnderWay { host, step, silent: Vec::new(), since, at, within };
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).insert(number, under_way);
        Trying(number)
    }

    /// From now on this host is tried, and those before it did not answer.
    pub(super) fn is_at(&self, host: &Host, silent: &[String]) {
        if let Some(own) = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&self.0) {
            own.host = host.to_string();
            own.silent = silent.to_vec();
        }
    }

    /// From now on this is waited for.
    pub(super) fn awaits(&self, step: ConnectStep) {
        if let Some(own) = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&self.0) {
            own.step = step;
        }
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// An attempt to connect that takes long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowConnection {
    /// What is awaited of which host, whichever session connects.
    pub key: String,
    /// What it waits for, in words.
    pub text: String,
}

/// The attempts of this process to connect that have lasted for so long, one for each host that is tried now: the oldest.
pub fn slow_connections(longer_than: Duration) -> Vec<SlowConnection> {
    let under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut slow: Vec<SlowConnection> = Vec::new();
    for ConnectsUnderWay { host, step, silent, since, at, within } in under_way.values() {
        let key = format!("{step:?} {host}");
        if since.elapsed() < longer_than || slow.iter().any(|other| other.key == key) {
            continue;
        }
        let before = if silent.is_empty() { String::new() } else { format!(" (before: {})", silent.join("; ")) };
        let since = format!("{}{before}", humantime::format_rfc3339_seconds(*at));
        let within = humantime::format_duration(*within);
        let text = match step {
            ConnectStep::Name => format!(
                "connecting: no address for the name of {host} yet, since {since}. A host is given up after connect_timeout, {within}; \
                 then the next one is tried, or all of them again"
            ),
            ConnectStep::Server => format!(
                "connecting: no answer from {host} yet, since {since}. A host is given up after connect_timeout, {within}; \
                 then the next one is tried, or all of them again"
            ),
        };
        slow.push(SlowConnection { key, text });
    }
    slow
}
