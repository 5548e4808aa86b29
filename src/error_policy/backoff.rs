//! How long to wait before the next attempt: doubling, bounded, with jitter.
//!
//! Asked by `supervisor` after each fault; chance is an argument. Jitter keeps a fleet from coming back in step after an
//! outage that all of it saw.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(15);

/// The wait before the next attempt.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: FIRST }
    }
}

impl Backoff {
    /// How long to wait now; the next wait is twice as long. `chance` is between 0 and 1.
    pub fn wait(&mut self, chance: f64) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(LONGEST);
        // Between half and all of it.
        wait.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    /// Something worked: the next fault is a new one.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..10).map(|_| backoff.wait(1.0)).collect();
        assert_eq!(waits.first(), Some(&FIRST));
        assert_eq!(waits.get(1), Some(&(FIRST * 2)));
        assert_eq!(waits.last(), Some(&LONGEST));
        backoff.reset();
        assert_eq!(backoff.wait(0.0), FIRST / 2);
    }
}
