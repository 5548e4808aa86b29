//! Lag that does not lie: bytes, seconds, and 0 when there is nothing to wait for.
//!
//! Fed by `pipeline` (what was received, what was stored) and its monitor (how far the source is); shown by
//! `telemetry`. Seconds are the age of the oldest source commit that is not applied. While commits are received their
//! own time counts, on the source's clock, corrected by the offset that the stream itself shows. While nothing can be
//! received (a link or the destination is down) the oldest unapplied commit is younger than the last moment at which
//! nothing was missing; so that moment counts, on our own clock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pg::{Lsn, PgTimestamp};

/// How far the source's clock is ahead of ours, at most.
///
/// Each message carries the source's clock when it was sent, so that clock minus ours at receipt is the offset minus
/// the message's travelling time. The greatest of the recent ones is the best estimate.
#[derive(Clone, Debug, Default)]
pub struct ClockOffset {
    recent: Option<i64>,
    previous: Option<i64>,
    since: Duration,
}

/// How long an estimate counts: clocks are stepped, and machines are suspended.
const OFFSET_WINDOW: Duration = Duration::from_secs(60);

impl ClockOffset {
    /// A message with the source's clock was received at `local`, our clock, `now` since any fixed moment.
    pub fn observe(&mut self, source: PgTimestamp, local: PgTimestamp, now: Duration) {
        if now.saturating_sub(self.since) >= OFFSET_WINDOW {
            self.previous = self.recent.take();
            self.since = now;
        }
        let offset = source.micros_since(local);
        self.recent = Some(self.recent.map_or(offset, |best| best.max(offset)));
    }

    /// Our clock's `local` as the source's clock shows it; the same when nothing is known.
    pub fn source_time(&self, local: PgTimestamp) -> PgTimestamp {
        local.shifted_by(self.recent.max(self.previous).unwrap_or(0))
    }
}

/// A received commit that is not applied yet.
#[derive(Clone, Copy, Debug)]
struct Unapplied {
    end_lsn: Lsn,
    committed_at: PgTimestamp,
}

/// How far the destination is behind.
#[derive(Clone, Debug)]
pub struct Lag {
    source_flush_lsn: Lsn,
    stored: Lsn,
    /// Seen by the stream with nothing for us in it.
    reached: Lsn,
    unapplied: VecDeque<Unapplied>,
    /// The last moment at which nothing was missing, as a time since any fixed moment.
    caught_up_at: Duration,
}

/// One entry per so many is kept once the queue is long: seconds of lag do not need every commit.
const UNAPPLIED_MAX: usize = 4096;

impl Lag {
    /// From `now` on; what is missing before the first message counts from here.
    pub fn new(stored: Lsn, now: Duration) -> Lag {
        Lag { source_flush_lsn: stored, stored, reached: stored, unapplied: VecDeque::new(), caught_up_at: now }
    }

    /// The source's WAL is flushed up to here.
    pub fn source_at(&mut self, flush_lsn: Lsn, now: Duration) {
        self.source_flush_lsn = self.source_flush_lsn.max(flush_lsn);
        self.settle(now);
    }

    /// A commit was received.
    pub fn received(&mut self, end_lsn: Lsn, committed_at: PgTimestamp, now: Duration) {
        self.source_flush_lsn = self.source_flush_lsn.max(end_lsn);
        if self.unapplied.len() >= UNAPPLIED_MAX {
            // The last one stands for those behind it: its time is older, so lag is never shown too small.
            if let Some(last) = self.unapplied.back_mut() {
                last.end_lsn = end_lsn;
            }
        } else {
            self.unapplied.push_back(Unapplied { end_lsn, committed_at });
        }
        self.settle(now);
    }

    /// The stream has passed this position and nothing was for us.
    pub fn reached(&mut self, position: Lsn, now: Duration) {
        self.reached = self.reached.max(position);
        self.source_flush_lsn = self.source_flush_lsn.max(position);
        self.settle(now);
    }

    /// The destination stores this position.
    pub fn stored(&mut self, position: Lsn, now: Duration) {
        self.stored = self.stored.max(position);
        while self.unapplied.front().is_some_and(|oldest| oldest.end_lsn <= self.stored) {
            self.unapplied.pop_front();
        }
        self.settle(now);
    }

    /// The stream was broken off: what was received and not stored will come again.
    pub fn restarted(&mut self) {
        self.unapplied.clear();
        self.reached = self.stored;
    }

    fn settle(&mut self, now: Duration) {
        if self.bytes() == 0 {
            self.caught_up_at = now;
        }
    }

    /// Bytes of source WAL that the destination does not reflect; 0 when all of them are known not to concern us.
    pub fn bytes(&self) -> u64 {
        // With a commit outstanding the position decides; without one, what the stream has passed.
        let at = if self.unapplied.is_empty() { self.stored.max(self.reached) } else { self.stored };
        self.source_flush_lsn.bytes_since(at)
    }

    /// Age of the oldest source commit that is not applied; zero when there is none.
    ///
    /// `streaming`: whether commits are being received, so that none can be missing without our knowing.
    pub fn age(&self, streaming: bool, source_now: PgTimestamp, now: Duration) -> Duration {
        match self.unapplied.front() {
            Some(oldest) => source_now.since(oldest.committed_at),
            None if streaming || self.bytes() == 0 => Duration::ZERO,
            None => now.saturating_sub(self.caught_up_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(offset: u64) -> Lsn {
        Lsn::new(offset)
    }

    fn secs(seconds: i64) -> PgTimestamp {
        PgTimestamp::from_micros(seconds * 1_000_000)
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_idle_source_means_no_lag() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.source_at(lsn(500), at(1));
        assert_eq!(lag.bytes(), 400);
        lag.reached(lsn(500), at(2));
        assert_eq!((lag.bytes(), lag.age(true, secs(9), at(9))), (0, Duration::ZERO));
    }

    #[test]
    fn seconds_are_the_age_of_the_oldest_unapplied_commit() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.received(lsn(200), secs(10), at(10));
        lag.received(lsn(300), secs(12), at(12));
        assert_eq!(lag.age(true, secs(15), at(15)), at(5));
        lag.stored(lsn(200), at(15));
        assert_eq!(lag.age(true, secs(15), at(15)), at(3));
        assert_eq!(lag.bytes(), 100);
        lag.stored(lsn(300), at(16));
        assert_eq!((lag.bytes(), lag.age(true, secs(15), at(16))), (0, Duration::ZERO));
    }

    #[test]
    fn lag_rises_while_nothing_can_be_received() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.reached(lsn(100), at(20));
        lag.restarted();
        lag.source_at(lsn(900), at(25));
        assert_eq!(lag.bytes(), 800);
        assert_eq!(lag.age(false, secs(0), at(50)), at(30), "since the last moment at which nothing was missing");
    }

    #[test]
    fn lag_is_never_negative_whatever_the_clocks_say() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.received(lsn(200), secs(1000), at(1));
        assert_eq!(lag.age(true, secs(1), at(2)), Duration::ZERO);
    }

    #[test]
    fn the_clock_offset_is_the_largest_seen_lately() {
        let mut offset = ClockOffset::default();
        assert_eq!(offset.source_time(secs(5)), secs(5));
        offset.observe(secs(295), secs(0), at(0));
        offset.observe(secs(300), secs(0), at(1));
        offset.observe(secs(298), secs(0), at(2));
        assert_eq!(offset.source_time(secs(10)), secs(310));
        offset.observe(secs(-300), secs(0), at(61));
        offset.observe(secs(-300), secs(0), at(130));
        assert_eq!(offset.source_time(secs(10)), secs(-290), "a stepped clock is forgotten");
    }
}
