//! When to send a status update to the source.
//!
//! Asked by `source::stream` on every turn; time is an argument. At once when the source asks, when a position moved
//! but at most 20 times a second, and in any case before a third of wal_sender_timeout has passed in silence, also
//! while the destination is busy for minutes. With wal_sender_timeout = 0 the source never asks: then every 10
//! seconds.

use std::time::Duration;

use crate::pg::Lsn;

/// Least time between two updates that only report movement.
const MOVEMENT_EVERY: Duration = Duration::from_millis(50);
/// Most time between two updates.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The positions that a StandbyStatusUpdate carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Positions {
    /// Received.
    pub written: Lsn,
    /// Stored by the destination and durable there: what is confirmed.
    pub flushed: Lsn,
    /// Stored by the destination.
    pub applied: Lsn,
}

/// Decides when to send a status update, and keeps its positions from going back.
#[derive(Clone, Debug)]
pub struct Feedback {
    silence_max: Duration,
    now: Positions,
    sent: Positions,
    sent_at: Duration,
    asked: bool,
}

impl Feedback {
    /// Feedback for a session that began at `now`, a time since any fixed moment, with these positions.
    pub fn new(sender_timeout: Duration, confirmed: Lsn, applied: Lsn, now: Duration) -> Feedback {
        let third = sender_timeout / 3;
        let silence_max = if third.is_zero() { SILENCE_MAX } else { third.min(SILENCE_MAX) };
        let positions = Positions { written: applied, flushed: confirmed, applied };
        // Nothing was sent yet: the first update goes out at once.
        Feedback { silence_max, now: positions, sent: Positions::default(), sent_at: now, asked: true }
    }

    /// Something was received up to here.
    pub fn received(&mut self, position: Lsn) {
        self.now.written = self.now.written.max(position);
    }

    /// The destination stored `stored` and `flushed` of it is durable.
    pub fn progressed(&mut self, stored: Lsn, flushed: Lsn) {
        self.now.applied = self.now.applied.max(stored);
        self.now.flushed = self.now.flushed.max(flushed);
        self.now.written = self.now.written.max(self.now.applied);
    }

    /// The source wants an answer at once.
    pub fn asked(&mut self) {
        self.asked = true;
    }

    /// How long nothing needs to be sent; zero when something is due.
    pub fn due_in(&self, now: Duration) -> Duration {
        let silent_for = now.saturating_sub(self.sent_at);
        if self.asked {
            return Duration::ZERO;
        }
        // The update also carries the received position, which is no reason to send one: it moves with every message.
        let moved = self.now.flushed != self.sent.flushed || self.now.applied != self.sent.applied;
        let wait = if moved { MOVEMENT_EVERY } else { self.silence_max };
        wait.saturating_sub(silent_for)
    }

    /// The positions to send now.
    pub fn take(&mut self, now: Duration) -> Positions {
        self.asked = false;
        self.sent = self.now;
        self.sent_at = now;
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn positions(written: Lsn, flushed: Lsn, applied: Lsn) -> Positions {
        Positions { written, flushed, applied }
    }

    fn quiet() -> Feedback {
        let mut feedback = Feedback::new(at(60_000), Lsn::new(10), Lsn::new(20), at(0));
        assert_eq!(feedback.due_in(at(0)), at(0), "the first at once");
        assert_eq!(feedback.take(at(0)), positions(Lsn::new(20), Lsn::new(10), Lsn::new(20)));
        feedback
    }

    #[test]
    fn a_request_is_answered_at_once() {
        let mut feedback = quiet();
        feedback.asked();
        assert_eq!(feedback.due_in(at(1)), at(0));
        feedback.take(at(1));
        assert!(feedback.due_in(at(1)) > at(0));
    }

    #[test]
    fn movement_is_told_at_most_twenty_times_a_second() {
        let mut feedback = quiet();
        feedback.progressed(Lsn::new(30), Lsn::new(25));
        assert_eq!(feedback.due_in(at(10)), at(40));
        assert_eq!(feedback.due_in(at(50)), at(0));
    }

    #[test]
    fn movement_of_either_position_alone_is_told_and_what_was_only_received_is_not() {
        for (stored, flushed) in [(20, 15), (30, 10)] {
            let mut feedback = quiet();
            feedback.progressed(Lsn::new(stored), Lsn::new(flushed));
            assert_eq!(feedback.due_in(at(10)), at(40), "{stored} stored, {flushed} flushed");
            assert_eq!(feedback.take(at(60)), positions(Lsn::new(stored), Lsn::new(flushed), Lsn::new(stored)));
            assert_eq!(feedback.due_in(at(70)), at(9_990), "it was told");
        }
        let mut feedback = quiet();
        feedback.received(Lsn::new(40));
        assert_eq!(feedback.due_in(at(10)), at(9_990));
        assert_eq!(feedback.take(at(10)), positions(Lsn::new(40), Lsn::new(10), Lsn::new(20)), "but told along");
    }

    #[test]
    fn silence_never_lasts_a_third_of_the_senders_timeout() {
        let feedback = quiet();
        assert_eq!(feedback.due_in(at(0)), at(10_000), "and never more than ten seconds");
        let mut strict = Feedback::new(at(3_000), Lsn::INVALID, Lsn::INVALID, at(0));
        strict.take(at(0));
        assert_eq!(strict.due_in(at(0)), at(1_000));
        let mut without = Feedback::new(at(0), Lsn::INVALID, Lsn::INVALID, at(0));
        without.take(at(0));
        assert_eq!(without.due_in(at(0)), at(10_000), "wal_sender_timeout = 0");
    }

    #[test]
    fn feedback_never_goes_back() {
        let mut feedback = quiet();
        feedback.progressed(Lsn::new(5), Lsn::new(1));
        feedback.received(Lsn::new(2));
        assert_eq!(feedback.take(at(1)), positions(Lsn::new(20), Lsn::new(10), Lsn::new(20)));
    }
}
