//! How often the copy of all tables has failed in the same way.
//!
//! Asked by `supervisor::run` after each failed attempt. A copy reads the whole source; one that fails again for the same cause is
//! not begun again and again. Failures of other kinds in between change nothing: of two readers now one and now the other
//! meets the error of its table first, and a server that a copy has brought down cannot be reached for a while. Pure.

use std::time::Duration;

use crate::error_policy::{Fault, report};
use crate::pg::ErrorReport;
use crate::supervisor::failure_kind::FailureKind;

/// A copy that has failed the same way so often waits for an operator: once may be chance, twice a coincidence.
const SAME_FAILURES_MAX: u32 = 3;

/// A failure that may pass by itself is forgotten after this time: a copy of days meets a restart of a server or two.
const PASSING_FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// As many kinds are kept; the oldest goes first.
const KINDS_MAX: usize = 32;

/// How far the copy had come in which an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailedCopy {
    /// No row was read yet.
    Preparing,
    /// The source was read, if only in part.
    Reading,
}

/// How a copy of all tables has failed since it was last asked for.
#[derive(Debug, Default)]
pub(super) struct CopyFailures(Vec<Failures>);

/// Failures of one kind.
#[derive(Debug)]
struct Failures {
    kind: FailureKind,
    times: u32,
    /// The last of them, since any fixed moment.
    last_at: Duration,
}

impl CopyFailures {
    /// Counts a failure, and whether it may pass by itself; the report to show when the copy is not tried again by itself. `now` is since
    /// any fixed moment.
    pub(super) fn count(&mut self, fault: &Fault, may_pass: bool, now: Duration) -> Option<ErrorReport> {
        let kind = FailureKind::of(fault);
        let known = self.0.iter().position(|known| known.kind == kind).map(|at| self.0.remove(at));
        let counts = |known: &Failures| !may_pass || now.saturating_sub(known.last_at) < PASSING_FORGOTTEN_AFTER;
        let times = 1 + known.filter(counts).map_or(0, |known| known.times);
        if self.0.len() == KINDS_MAX {
            self.0.remove(0);
        }
        self.0.push(Failures { kind, times, last_at: now });
        (times >= SAME_FAILURES_MAX).then(|| waits(report(fault), times))
    }

    /// The copy is made, or is asked for again.
    pub(super) fn reset(&mut self) {
        self.0.clear();
    }
}

/// What hints say of failures that are tried again for as long as it takes.
const PROMISES: [&str; 3] =
    ["; headwater then continues by itself", "\nheadwater then continues by itself.", "; headwater run waits for it"];

fn waits(report: ErrorReport, times: u32) -> ErrorReport {
    let hint = format!(
        "The copy has failed in this way {times} times and is not tried again by itself. Once the cause is gone, run:\nheadwater resnapshot"
    );
    let hint = match &report.hint {
        Some(first) => {
            format!("{}\n{hint}", PROMISES.iter().fold(first.clone(), |hint, promise| hint.replace(promise, "")))
        }
        None => hint,
    };
    ErrorReport { hint: Some(hint), ..report }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        Fault::Halted(ErrorReport::new(text).hint("fix it"))
    }

    #[test]
    fn only_the_same_failure_three_times_waits_for_an_operator() {
        let mut failures = CopyFailures::default();
        assert_eq!(failures.count(&fault("one at line 7"), false, Duration::ZERO), None);
        assert_eq!(failures.count(&fault("other"), false, Duration::ZERO), None);
        assert_eq!(failures.count(&fault("one at line 8"), false, Duration::ZERO), None);
        assert_eq!(failures.count(&fault("other"), false, Duration::ZERO), None);
        let waits = failures.count(&fault("one at line 9"), false, Duration::ZERO).expect("the third");
        let hint = waits.hint.expect("a hint");
        assert!(hint.starts_with("fix it\n") && hint.ends_with("headwater resnapshot"), "{hint}");
        assert_eq!(waits.message, "one at line 9");
        let full = ErrorReport::new("full").hint("Make room; headwater then continues by itself.");
        let hint = super::waits(full, 3).hint.expect("a hint");
        assert!(
            hint.starts_with("Make room.\nThe copy has failed in this way 3 times and is not tried again"),
            "{hint}"
        );
        failures.reset();
        assert_eq!(failures.count(&fault("one"), false, Duration::ZERO), None);
    }

    #[test]
    fn failures_that_may_pass_are_counted_for_an_hour() {
        let mut failures = CopyFailures::default();
        let mut at = |minutes: u64| failures.count(&fault("cut"), true, Duration::from_secs(60 * minutes)).is_some();
        assert!(![0, 61, 122, 183].into_iter().any(&mut at), "one now and then");
        assert!(![184].into_iter().any(&mut at));
        assert!(at(185), "three in a row");
    }

    #[test]
    fn failures_of_many_kinds_take_no_more_room() {
        let mut failures = CopyFailures::default();
        for kind in 0..10 * KINDS_MAX {
            assert_eq!(failures.count(&fault(&format!("t{kind}")), false, Duration::ZERO), None);
        }
        assert_eq!(failures.0.len(), KINDS_MAX);
    }
}
