//! Whose turn it is: which requests are taken up together, and which have failed and wait.
//!
//! Asked by `handover`, which fulfils requests one hand-over at a time. New requests are taken up together: the source is read
//! once, and their tables are published in one transaction. But a fault that an operator must fix concerns one of them, and must
//! not keep the others waiting. So once a hand-over has failed for such a reason, each of its requests goes alone:
//!
//! ```text
//!            passes by itself: wait, together
//!              ┌──────┐
//!   new ──▶ together ─┴─ the operator's ──▶ alone, each with a back-off of its own
//!              └── published                   └── published
//! ```
//!
//! What waits for an operator is tried again by itself, since he may have mended it; but a copy that takes long to fail has read the
//! source for nothing, and waits as long before it does so again. A new request goes at once.
//!
//! Pure: time and chance are arguments. Bounds: as many entries as there are requests.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::destination::Request;
use crate::error_policy::Backoff;

/// Why a hand-over failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyFailure {
    /// It may succeed the next time: a lost connection, say.
    Passing,
    /// One of its tables waits for an operator.
    Operators,
}

/// Which requests have failed, and when they are tried again. Times are since any fixed moment.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Requests that were there before; others are new to this stream.
    known: HashSet<i64>,
    together: RequestTurn,
    alone: HashMap<i64, RequestTurn>,
}

/// When a hand-over has failed, and after how long. Times are since any fixed moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedAt {
    pub(super) now: Duration,
    pub(super) took: Duration,
    /// Between 0 and 1.
    pub(super) chance: f64,
}

/// A wait does not get longer for what a copy took.
const WAIT_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct RequestTurn {
    backoff: Backoff,
    not_before: Duration,
}

impl RequestTurn {
    fn wait(&mut self, now: Duration, chance: f64) {
        self.not_before = now + self.backoff.wait(chance);
    }

    fn wait_for_operator(&mut self, failed: FailedAt) {
        self.not_before = failed.now + self.backoff.wait(failed.chance).max(failed.took.min(WAIT_MAX));
    }
}

impl Turns {
    /// The requests to take up now; empty when all of them wait. What failed in an earlier stream goes alone, too.
    pub(super) fn next(&mut self, requests: Vec<Request>, now: Duration) -> Vec<Request> {
        let failed_before = |request: &&Request| request.failure.is_some() && !self.known.contains(&request.id);
        let failed_before: Vec<i64> = requests.iter().filter(failed_before).map(|request| request.id).collect();
        self.alone.extend(failed_before.into_iter().map(|id| (id, RequestTurn::default())));
        self.known = requests.iter().map(|request| request.id).collect();
        self.alone.retain(|id, _| self.known.contains(id));
        let (alone, together): (Vec<Request>, Vec<Request>) =
            requests.into_iter().partition(|request| self.alone.contains_key(&request.id));
        if together.is_empty() {
            self.together = RequestTurn::default();
        } else if self.together.not_before <= now {
            return together;
        }
        let turn = |request: &Request| self.alone.get(&request.id).map(|turn| turn.not_before);
        let due = alone.into_iter().filter(|request| turn(request).is_some_and(|not_before| not_before <= now));
        due.min_by_key(turn).into_iter().collect()
    }

    /// Requests that were taken up together have failed.
    pub(super) fn failed(&mut self, requests: &[Request], failure: CopyFailure, failed: FailedAt) {
        match (requests, failure) {
            ([request], CopyFailure::Operators) => self.alone.entry(request.id).or_default().wait_for_operator(failed),
            ([request], CopyFailure::Passing) if self.alone.contains_key(&request.id) => {
                self.alone.entry(request.id).or_default().wait(failed.now, failed.chance);
            }
            (_, CopyFailure::Passing) => self.together.wait(failed.now, failed.chance),
            (_, CopyFailure::Operators) => {
                // Which of them it was is found out at once.
                self.alone.extend(requests.iter().map(|request| (request.id, RequestTurn::default())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::{RequestOrigin, Scope};
    use crate::pg::QualifiedName;

    fn request(id: i64) -> Request {
        let scope = Scope::Tables(vec![QualifiedName::new("public", format!("t{id}"))]);
        Request { id, scope, origin: RequestOrigin::Changed, failure: None, for_source: None }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn next(turns: &mut Turns, ids: &[i64], now: Duration) -> Vec<i64> {
        let requests = ids.iter().map(|id| request(*id)).collect();
        turns.next(requests, now).iter().map(|request| request.id).collect()
    }

    fn failed(turns: &mut Turns, ids: &[i64], failure: CopyFailure, now: Duration) {
        let requests: Vec<Request> = ids.iter().map(|id| request(*id)).collect();
        turns.failed(&requests, failure, FailedAt { now, took: Duration::ZERO, chance: 1.0 });
    }

    #[test]
    fn new_requests_are_taken_up_together() {
        let mut turns = Turns::default();
        assert_eq!(next(&mut turns, &[1, 2, 3], at(0)), [1, 2, 3]);
        assert_eq!(next(&mut turns, &[], at(0)), [] as [i64; 0]);
    }

    #[test]
    fn what_passes_by_itself_is_waited_for_together() {
        let mut turns = Turns::default();
        failed(&mut turns, &[1, 2], CopyFailure::Passing, at(0));
        assert_eq!(next(&mut turns, &[1, 2], at(0)), [] as [i64; 0]);
        assert_eq!(next(&mut turns, &[1, 2, 3], at(1)), [1, 2, 3]);
    }

    #[test]
    fn one_that_waits_for_an_operator_keeps_no_other_waiting() {
        let mut turns = Turns::default();
        failed(&mut turns, &[1, 2], CopyFailure::Operators, at(0));
        let first = next(&mut turns, &[1, 2], at(0));
        assert_eq!(first.len(), 1, "each by itself, and at once");
        failed(&mut turns, &[1], CopyFailure::Operators, at(0));
        assert_eq!(next(&mut turns, &[1, 2], at(0)), [2]);
        assert_eq!(next(&mut turns, &[1], at(0)), [] as [i64; 0], "it waits");
        assert_eq!(next(&mut turns, &[1, 3], at(0)), [3], "a new one does not wait with it");
        assert_eq!(next(&mut turns, &[1], at(1)), [1]);
        failed(&mut turns, &[1], CopyFailure::Operators, at(1));
        failed(&mut turns, &[1], CopyFailure::Passing, at(1));
        assert_eq!(next(&mut turns, &[1], at(1)), [] as [i64; 0], "its wait grows");
    }

    #[test]
    fn a_copy_that_takes_long_to_fail_waits_as_long() {
        let mut turns = Turns::default();
        let failed = FailedAt { now: at(500), took: at(400), chance: 1.0 };
        turns.failed(&[request(1)], CopyFailure::Operators, failed);
        assert_eq!(next(&mut turns, &[1], at(899)), [] as [i64; 0]);
        assert_eq!(next(&mut turns, &[1, 2], at(899)), [2], "a new request does not wait with it");
        assert_eq!(next(&mut turns, &[1], at(900)), [1]);
        turns.failed(
            &[request(1)],
            CopyFailure::Operators,
            FailedAt { now: at(90_000), took: at(80_000), chance: 1.0 },
        );
        assert_eq!(next(&mut turns, &[1], at(90_000) + WAIT_MAX), [1]);
    }

    #[test]
    fn what_failed_in_an_earlier_stream_goes_alone() {
        let mut turns = Turns::default();
        let requests = vec![Request { failure: Some("why".to_owned()), ..request(1) }, request(2), request(3)];
        let ids = |requests: Vec<Request>| requests.iter().map(|request| request.id).collect::<Vec<_>>();
        assert_eq!(ids(turns.next(requests.clone(), at(0))), [2, 3]);
        assert_eq!(ids(turns.next(requests.into_iter().take(1).collect(), at(0))), [1]);
        let mut turns = Turns::default();
        assert_eq!(next(&mut turns, &[1, 2], at(0)), [1, 2]);
        failed(&mut turns, &[1, 2], CopyFailure::Passing, at(0));
        let requests = [1, 2].map(|id| Request { failure: Some("why".to_owned()), ..request(id) }).to_vec();
        assert_eq!(ids(turns.next(requests, at(1))), [1, 2], "it failed in this one, and for them all");
    }
}
