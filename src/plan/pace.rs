//! When what has arrived is worth a flight.
//!
//! Asked by `pipeline::apply_loop` before it takes a batch from the [`super::Batcher`]. Each commit costs the
//! destination as much as dozens of rows, and in a backlog the source delivers faster than one can ask: batches that are
//! sent as soon as one transaction is there stay small and waste both machines. So what is late anyway may wait a little
//! for more, a tenth of its age and no longer. What is fresh never waits: at light load each transaction is a flight at
//! once.

use std::time::Duration;

/// A batch of so many rows is worth its flight whatever is under way: beyond it rows cost what they cost.
const ROWS_ENOUGH: usize = 2_000;
/// Younger than this is no backlog.
const FRESH: Duration = Duration::from_millis(50);
/// Longest wait: a flight of [`ROWS_ENOUGH`] rows takes about as long.
const WAIT_MAX: Duration = Duration::from_millis(20);

/// What is known when the question comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Row changes that have arrived.
    pub rows: usize,
    /// How long ago the oldest of them was committed at the source.
    pub age: Duration,
    /// How long it has been here.
    pub waited: Duration,
}

/// How long to wait for more; zero means that it goes now.
pub fn wait_for_more(queued: Queued) -> Duration {
    let Queued { rows, age, waited } = queued;
    if rows >= ROWS_ENOUGH || age < FRESH {
        return Duration::ZERO;
    }
    (age / 10).min(WAIT_MAX).saturating_sub(waited)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn queued(rows: usize, age: Duration, waited: Duration) -> Duration {
        wait_for_more(Queued { rows, age, waited })
    }

    #[test]
    fn a_fresh_transaction_goes_at_once() {
        assert_eq!(queued(1, MILLI, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn what_is_late_waits_a_tenth_of_its_age_and_no_longer() {
        assert_eq!(queued(1, 100 * MILLI, Duration::ZERO), 10 * MILLI);
        assert_eq!(queued(1, 100 * MILLI, 7 * MILLI), 3 * MILLI);
        assert_eq!(queued(1, 100 * MILLI, 11 * MILLI), Duration::ZERO);
        assert_eq!(queued(1, 3_600_000 * MILLI, Duration::ZERO), 20 * MILLI);
    }

    #[test]
    fn enough_rows_go_however_late_they_are() {
        assert_eq!(queued(2_000, 100 * MILLI, Duration::ZERO), Duration::ZERO);
        assert!(queued(1_999, 100 * MILLI, Duration::ZERO) > Duration::ZERO);
    }
}
