//! How often the first copy has failed in the same way.
//!
//! Asked by `supervisor::run` after each failed attempt. A copy reads the whole source; one that an operator's act alone can
//! make succeed is not read again and again. Pure.

use crate::pg::ErrorReport;

/// A copy that has failed the same way so often waits for an operator: once may be chance, twice a coincidence.
const SAME_FAILURES_MAX: u32 = 3;

/// The last failure of a first copy, and how often it has come in a row.
#[derive(Debug, Default)]
pub(super) struct CopyFailures {
    last: Option<ErrorReport>,
    times: u32,
}

impl CopyFailures {
    /// Counts a failure; the report to show when the copy is not tried again by itself.
    pub(super) fn count(&mut self, report: &ErrorReport) -> Option<ErrorReport> {
        // Several readers may meet it in another line first, which the detail names.
        let same =
            self.last.as_ref().is_some_and(|last| (&last.message, &last.hint) == (&report.message, &report.hint));
        self.times = if same { self.times + 1 } else { 1 };
        self.last = Some(report.clone());
        (self.times >= SAME_FAILURES_MAX).then(|| waits(report))
    }

    /// Something else has happened.
    pub(super) fn reset(&mut self) {
        *self = CopyFailures::default();
    }
}

fn waits(report: &ErrorReport) -> ErrorReport {
    let hint = format!(
        "The copy has failed in this way {SAME_FAILURES_MAX} times and is not tried again by itself. Then run:\nheadwater resnapshot"
    );
    ErrorReport {
        hint: Some(report.hint.as_ref().map_or(hint.clone(), |first| format!("{first}\n{hint}"))),
        ..report.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_failure_three_times_in_a_row_waits_for_an_operator() {
        let (one, other) = (ErrorReport::new("one").hint("fix it"), ErrorReport::new("other"));
        let mut failures = CopyFailures::default();
        assert_eq!(failures.count(&one), None);
        assert_eq!(failures.count(&other), None);
        assert_eq!(failures.count(&one), None);
        assert_eq!(failures.count(&one), None);
        let waits = failures.count(&one).expect("the third in a row");
        let hint = waits.hint.expect("a hint");
        assert!(
            waits.message == "one" && hint.starts_with("fix it\n") && hint.ends_with("headwater resnapshot"),
            "{hint}"
        );
        failures.reset();
        assert_eq!(failures.count(&one.clone().detail("line 3")), None);
        assert_eq!(failures.count(&one.clone().detail("line 4")), None);
        assert!(failures.count(&one).is_some(), "in whichever line");
    }
}
