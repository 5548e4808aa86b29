//! How often the copy of all tables has failed in the same way.
//!
//! Asked by `supervisor::run` after each failed attempt. A copy reads the whole source; one that fails again for the same cause is
//! not begun again and again. Failures of other kinds in between change nothing: of two readers now one and now the other
//! meets the error of its table first, and a server that a copy has brought down cannot be reached for a while. Pure.

use crate::error_policy::{Fault, report};
use crate::pg::ErrorReport;
use crate::supervisor::failure_kind::FailureKind;

/// A copy that has failed the same way so often waits for an operator: once may be chance, twice a coincidence.
const SAME_FAILURES_MAX: u32 = 3;

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
pub(super) struct CopyFailures(Vec<(FailureKind, u32)>);

impl CopyFailures {
    /// Counts a failure; the report to show when the copy is not tried again by itself.
    pub(super) fn count(&mut self, fault: &Fault) -> Option<ErrorReport> {
        let kind = FailureKind::of(fault);
        let times = match self.0.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, times)) => {
                *times += 1;
                *times
            }
            None => {
                if self.0.len() == KINDS_MAX {
                    self.0.remove(0);
                }
                self.0.push((kind, 1));
                1
            }
        };
        (times >= SAME_FAILURES_MAX).then(|| waits(report(fault), times))
    }

    /// The copy is made, or is asked for again.
    pub(super) fn reset(&mut self) {
        self.0.clear();
    }
}

fn waits(report: ErrorReport, times: u32) -> ErrorReport {
    let hint = format!(
        "The copy has failed in this way {times} times and is not tried again by itself. Once the cause is gone, run:\nheadwater resnapshot"
    );
    let hint = report.hint.as_ref().map_or(hint.clone(), |first| format!("{first}\n{hint}"));
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
        assert_eq!(failures.count(&fault("one at line 7")), None);
        assert_eq!(failures.count(&fault("other")), None);
        assert_eq!(failures.count(&fault("one at line 8")), None);
        assert_eq!(failures.count(&fault("other")), None);
        let waits = failures.count(&fault("one at line 9")).expect("the third");
        let hint = waits.hint.expect("a hint");
        assert!(hint.starts_with("fix it\n") && hint.ends_with("headwater resnapshot"), "{hint}");
        assert_eq!(waits.message, "one at line 9");
        failures.reset();
        assert_eq!(failures.count(&fault("one")), None);
    }

    #[test]
    fn failures_of_many_kinds_take_no_more_room() {
        let mut failures = CopyFailures::default();
        for kind in 0..10 * KINDS_MAX {
            assert_eq!(failures.count(&fault(&format!("t{kind}"))), None);
        }
        assert_eq!(failures.0.len(), KINDS_MAX);
    }
}
