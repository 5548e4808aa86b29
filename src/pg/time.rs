//! A moment as PostgreSQL counts it: microseconds since 2000-01-01 00:00 UTC.
//!
//! Comes in from Begin, Commit, XLogData and PrimaryKeepalive; goes out in StandbyStatusUpdate and as lag. The clock
//! is the sender's. Reading a clock is the I/O modules' affair; here is only arithmetic.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Microseconds between the Unix epoch and PostgreSQL's (10,957 days).
const UNIX_TO_POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// A timestamp in microseconds since 2000-01-01 00:00 UTC, on the writer's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PgTimestamp(i64);

impl PgTimestamp {
    /// From microseconds since PostgreSQL's epoch, as the protocol carries them.
    pub const fn from_micros(micros: i64) -> PgTimestamp {
        PgTimestamp(micros)
    }

    /// Microseconds since PostgreSQL's epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// From microseconds since the Unix epoch.
    pub const fn from_unix_micros(micros: i64) -> PgTimestamp {
        PgTimestamp(micros.saturating_sub(UNIX_TO_POSTGRES_EPOCH))
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_unix_micros(self) -> i64 {
        self.0.saturating_add(UNIX_TO_POSTGRES_EPOCH)
    }

    /// Microseconds from `earlier` to here, negative when `earlier` is later.
    pub const fn micros_since(self, earlier: PgTimestamp) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time from `earlier` to here; zero when `earlier` is not earlier.
    pub fn since(self, earlier: PgTimestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.micros_since(earlier)).unwrap_or(0))
    }

    /// This moment shifted by `micros`, which may be negative.
    pub const fn shifted_by(self, micros: i64) -> PgTimestamp {
        PgTimestamp(self.0.saturating_add(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_the_first_of_january_2000() {
        assert_eq!(PgTimestamp::from_unix_micros(946_684_800_000_000).as_micros(), 0);
        assert_eq!(PgTimestamp::from_micros(1).as_unix_micros(), 946_684_800_000_001);
    }

    #[test]
    fn time_since_a_later_moment_is_zero_not_negative() {
        let (early, late) = (PgTimestamp::from_micros(5), PgTimestamp::from_micros(9));
        assert_eq!(late.since(early), Duration::from_micros(4));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
