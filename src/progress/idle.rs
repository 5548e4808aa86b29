//! When an idle stream's position is worth storing.
//!
//! Asked by `apply_core` with nothing in flight. A keepalive's wal_end is first stored, then confirmed, so
//! that a slot ahead of the stored position never is normal. Storing costs the destination a synchronous commit,
//! hence at most every 10 s or once 16 MB of WAL have passed.

use std::time::Duration;

use crate::pg::Lsn;

const STORE_EVERY: Duration = Duration::from_secs(10);
const STORE_AFTER_BYTES: u64 = 16 << 20;

/// Keeps the newest reached position until it is due.
#[derive(Clone, Debug)]
pub struct IdleAdvance {
    reached: Lsn,
    stored_at: Duration,
}

impl IdleAdvance {
    /// From `now` on, a time since any fixed moment; nothing is due at once.
    pub fn new(now: Duration) -> IdleAdvance {
        IdleAdvance { reached: Lsn::INVALID, stored_at: now }
    }

    /// Everything up to here was seen and is not for us.
    pub fn reached(&mut self, position: Lsn) {
        self.reached = self.reached.max(position);
    }

    /// The newest position reached.
    pub fn position(&self) -> Lsn {
        self.reached
    }

    /// A position was stored, with rows or without.
    pub fn stored(&mut self, now: Duration) {
        self.stored_at = now;
    }

    /// The position to store now, when the stored one is `position` and nothing is in flight.
    pub fn due(&self, position: Lsn, now: Duration) -> Option<Lsn> {
        let ahead = self.reached.bytes_since(position);
        let late = now.saturating_sub(self.stored_at) >= STORE_EVERY;
        (ahead > 0 && (late || ahead >= STORE_AFTER_BYTES)).then_some(self.reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_position_is_stored_every_ten_seconds_or_sixteen_megabytes() {
        let mut idle = IdleAdvance::new(Duration::ZERO);
        let position = Lsn::new(1000);
        assert_eq!(idle.due(position, Duration::from_secs(99)), None, "nothing reached");
        idle.reached(Lsn::new(2000));
        assert_eq!(idle.due(position, Duration::from_secs(9)), None, "too early");
        assert_eq!(idle.due(position, Duration::from_secs(10)), Some(Lsn::new(2000)));
        idle.stored(Duration::from_secs(10));
        assert_eq!(idle.due(Lsn::new(2000), Duration::from_secs(30)), None, "nothing new");
        idle.reached(Lsn::new(2000 + (16 << 20)));
        assert_eq!(idle.due(Lsn::new(2000), Duration::from_secs(11)), Some(Lsn::new(2000 + (16 << 20))));
    }
}
