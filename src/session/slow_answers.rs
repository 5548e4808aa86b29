//! The answers that this process waits for, so that one that does not come can be reported.
//!
//! Held by every kind of session, around each wait for its server: a statement, a batch, rows of a copy, a sign of life. Whether a process
//! of the server works or stands still cannot be seen from here, so a wait that lasts is reported as what it is ([`slow_answers`]); where
//! the server itself says what its process waits for, that is reported instead ([`explain_answers`]).
//!
//! Bound: one entry for each wait, which goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The answers that are awaited in this process.
static AWAITED: Mutex<BTreeMap<u64, Awaited>> = Mutex::new(BTreeMap::new());

/// Of each server, the processes whose waits are reported with what is in their way.
static EXPLAINED: Mutex<BTreeMap<&'static str, BTreeSet<u32>>> = Mutex::new(BTreeMap::new());

/// Who is to answer.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Its address.
    pub(super) host: Arc<str>,
    /// The process that serves the session; 0: it has not told.
    pub(super) process_id: u32,
}

/// When an answer is given up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// After this time.
    After(Duration),
    /// After the time that this setting has.
    Setting(&'static str),
}

struct Awaited {
    server: Server,
    doing: &'static str,
    bound: Bound,
    since: Instant,
    at: SystemTime,
}

/// Keeps an answer among those that are awaited, until it is dropped.
#[derive(Debug)]
pub struct Awaiting(u64);

impl Awaiting {
    pub(super) fn begin(server: &Server, doing: &'static str, bound: Bound) -> Awaiting {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let (since, at) = (Instant::now(), SystemTime::now());
        let awaited = Awaited { server: server.clone(), doing, bound, since, at };
        AWAITED.lock().unwrap_or_else(PoisonError::into_inner).insert(number, awaited);
        Awaiting(number)
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        AWAITED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// An answer that takes long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowAnswer {
    /// What is awaited from whom, whichever session asks.
    pub key: String,
    /// The same in words.
    pub text: String,
}

/// What these processes of a server wait for is reported with what is in their way, until it is said otherwise.
pub fn explain_answers(server: &'static str, processes: BTreeSet<u32>) {
    EXPLAINED.lock().unwrap_or_else(PoisonError::into_inner).insert(server, processes);
}

/// The answers that this process has awaited for so long, one for each server and question: the oldest.
pub fn slow_answers(longer_than: Duration) -> Vec<SlowAnswer> {
    let explained = EXPLAINED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let awaited = AWAITED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut slow: Vec<SlowAnswer> = Vec::new();
    for Awaited { server: Server { host, process_id }, doing, bound, since, at } in awaited.values() {
        let key = format!("{host} {doing}");
        let is_explained = explained.values().any(|processes| processes.contains(process_id));
        if since.elapsed() < longer_than || is_explained || slow.iter().any(|other| other.key == key) {
            continue;
        }
        let process = match process_id {
            0 => String::new(),
            id => format!(". Process {id} there works on that, or stands still"),
        };
        let end = match bound {
            Bound::After(within) => humantime::format_duration(*within).to_string(),
            Bound::Setting(name) => (*name).to_owned(),
        };
        let since = format!("{}{process}", humantime::format_rfc3339_seconds(*at));
        slow.push(SlowAnswer {
            key,
            text: format!("{doing}: no answer from {host} yet, since {since}. It is given up after {end}"),
        });
    }
    slow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_come_is_named_unless_its_server_says_what_it_waits_for() {
        let server = Server { host: "a-test:1".into(), process_id: 4_000_000_001 };
        let own = |slow: Vec<SlowAnswer>| slow.into_iter().find(|slow| slow.key.starts_with("a-test:1"));
        let waits = Awaiting::begin(&server, "asking", Bound::After(Duration::from_secs(60)));
        assert_eq!(own(slow_answers(Duration::from_secs(60))), None);
        let text = own(slow_answers(Duration::ZERO)).expect("it waits").text;
        assert!(text.starts_with("asking: no answer from a-test:1 yet, since "), "{text}");
        assert!(
            text.ends_with(". Process 4000000001 there works on that, or stands still. It is given up after 1m"),
            "{text}"
        );
        explain_answers("a test", BTreeSet::from([server.process_id]));
        assert_eq!(own(slow_answers(Duration::ZERO)), None);
        explain_answers("a test", BTreeSet::new());
        assert!(own(slow_answers(Duration::ZERO)).is_some());
        drop(waits);
        assert_eq!(own(slow_answers(Duration::ZERO)), None);
    }
}
