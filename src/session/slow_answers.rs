//! The answers that this process waits for, so that one that does not come can be reported.
//!
//! Held by every kind of session, around each wait for its server: a statement, a batch, rows of a copy, a sign of life. Whether a process
//! of the server works or stands still cannot be seen from here, so a wait that lasts is reported as what it is ([`slow_answers`]); where
//! the server itself says what its process waits for, that is reported instead ([`super::SqlClient::explain_answers`]).
//!
//! Bound: one entry for each wait, which goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The answers that are awaited in this process.
static AWAITED: Mutex<BTreeMap<u64, Awaited>> = Mutex::new(BTreeMap::new());

/// At each end, the processes whose waits are reported with what is in their way.
static EXPLAINED: Mutex<BTreeMap<&'static str, Explained>> = Mutex::new(BTreeMap::new());

/// Processes of one server.
#[derive(Clone)]
struct Explained {
    host: Arc<str>,
    processes: BTreeSet<u32>,
}

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

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Something that may honestly take long: what it is for.
    Work(&'static str),
    /// A sign of life, which every walsender gives within a moment, whatever it sends.
    SignOfLife,
}

struct Awaited {
    server: Server,
    question: Question,
    bound: Bound,
    since: Instant,
    at: SystemTime,
}

/// Keeps an answer among those that are awaited, until it is dropped.
#[derive(Debug)]
pub struct Awaiting(u64);

impl Awaiting {
    /// An answer to what was asked just now.
    pub(super) fn begin(server: &Server, doing: &'static str, bound: Bound) -> Awaiting {
        Awaiting::of(server, Question::Work(doing), bound, Duration::ZERO)
    }

    /// A sign of life of a stream that has been silent for so long.
    pub(super) fn sign_of_life(server: &Server, bound: Bound, silent_for: Duration) -> Awaiting {
        Awaiting::of(server, Question::SignOfLife, bound, silent_for)
    }

    fn of(server: &Server, question: Question, bound: Bound, waited: Duration) -> Awaiting {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let (now, at) = (Instant::now(), SystemTime::now());
        let (since, at) = (now.checked_sub(waited).unwrap_or(now), at.checked_sub(waited).unwrap_or(at));
        let awaited = Awaited { server: server.clone(), question, bound, since, at };
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

/// What these processes of the server at this end wait for is reported with what is in their way, until it is said otherwise.
pub(super) fn explain_answers(end: &'static str, server: &Server, processes: BTreeSet<u32>) {
    let explained = Explained { host: Arc::clone(&server.host), processes };
    EXPLAINED.lock().unwrap_or_else(PoisonError::into_inner).insert(end, explained);
}

/// Nobody looks at this end any more: what its processes wait for is not known.
pub fn explain_no_answers(end: &'static str) {
    EXPLAINED.lock().unwrap_or_else(PoisonError::into_inner).remove(end);
}

/// The answers that this process has awaited for so long, one for each server and question: the oldest.
pub fn slow_answers(longer_than: Duration) -> Vec<SlowAnswer> {
    let explained = EXPLAINED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let awaited = AWAITED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_explained = |server: &Server| {
        explained.values().any(|known| known.host == server.host && known.processes.contains(&server.process_id))
    };
    let mut slow: Vec<SlowAnswer> = Vec::new();
    for awaited in awaited.values() {
        if awaited.since.elapsed() < longer_than || is_explained(&awaited.server) {
            continue;
        }
        let answer = awaited.as_slow();
        if !slow.iter().any(|other| other.key == answer.key) {
            slow.push(answer);
        }
    }
    slow
}

impl Awaited {
    fn as_slow(&self) -> SlowAnswer {
        let Awaited { server: Server { host, process_id }, question, bound, since: _, at } = self;
        let process = match process_id {
            0 => String::new(),
            id => format!(". Process {id} there works on that, or stands still"),
        };
        let since = format!("{}{process}", humantime::format_rfc3339_seconds(*at));
        let end = match bound {
            Bound::After(within) => humantime::format_duration(*within).to_string(),
            Bound::Setting(name) => (*name).to_owned(),
        };
        match question {
            Question::Work(doing) => SlowAnswer {
                key: format!("{host} {doing}"),
                text: format!("{doing}: no answer from {host} yet, since {since}. It is given up after {end}"),
            },
            Question::SignOfLife => SlowAnswer {
                key: format!("{host} is silent"),
                text: format!(
                    "the source does not answer: no sign of life of the stream from {host}, since {since}. It is given up after {end}"
                ),
            },
        }
    }
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
        explain_answers("a test", &server, BTreeSet::from([server.process_id]));
        assert_eq!(own(slow_answers(Duration::ZERO)), None);
        let other = Server { host: "another-test:1".into(), ..server.clone() };
        explain_answers("a test", &other, BTreeSet::from([server.process_id]));
        assert!(own(slow_answers(Duration::ZERO)).is_some(), "a process of another server has that number");
        explain_answers("a test", &server, BTreeSet::from([server.process_id]));
        explain_no_answers("a test");
        assert!(own(slow_answers(Duration::ZERO)).is_some(), "nobody looks at that server any more");
        drop(waits);
        assert_eq!(own(slow_answers(Duration::ZERO)), None);
        let silent_for = Duration::from_secs(5);
        let waits = Awaiting::sign_of_life(&server, Bound::After(Duration::from_secs(60)), silent_for);
        let text = own(slow_answers(silent_for)).expect("it has waited since the last word").text;
        assert!(
            text.starts_with("the source does not answer: no sign of life of the stream from a-test:1, since "),
            "{text}"
        );
        drop(waits);
    }
}
