//! Lag that does not lie: bytes, seconds, and 0 when there is nothing to wait for.
//!
//! Fed by `supervisor` (what was received, what was stored) and its monitor (how far the source is); shown by
//! `telemetry`. Seconds are the age of the oldest source commit that is not applied.
//!
//! - A commit that was received counts by its own time, on the source's clock, corrected by the offset that the stream
//!   itself shows. It counts from its Begin on, since a huge transaction takes long to arrive, and is remembered when
//!   the stream breaks off, since it is still missing then.
//! - A commit that was not received is younger than the last moment at which the stream had passed all of the source's
//!   WAL; so that moment counts, on our own clock. While streaming, a moment's gap is the network's and the sampling's
//!   and no lag.

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
    /// Past its commit record's start; a position at or behind it holds the transaction.
    commit_lsn: Lsn,
    committed_at: PgTimestamp,
}

/// The source's WAL was flushed up to here when we looked.
#[derive(Clone, Copy, Debug)]
struct LagSample {
    flush_lsn: Lsn,
    at: Duration,
}

/// How far the destination is behind.
#[derive(Clone, Debug)]
pub struct Lag {
    source_flush_lsn: Lsn,
    stored: Lsn,
    /// The stream has passed this: whatever committed before it was received.
    received: Lsn,
    unapplied: VecDeque<Unapplied>,
    /// Samples that the stream has not passed, oldest first.
    ahead: VecDeque<LagSample>,
    /// The last moment at which the stream had passed all of the source's WAL, since any fixed moment.
    complete_at: Duration,
}

/// One entry per so many is kept once the queue is long: seconds of lag do not need every commit.
const UNAPPLIED_MAX: usize = 4096;
/// At one sample a second, an hour exactly; then every second one is forgotten, which makes lag larger, never smaller.
const SAMPLES_MAX: usize = 3600;
/// While streaming, WAL that was not passed for less than this is on its way: it is looked at once a second.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

impl Lag {
    /// From `now` on; what is missing before the first message counts from here.
    pub fn new(stored: Lsn, now: Duration) -> Lag {
        Lag {
            source_flush_lsn: stored,
            stored,
            received: stored,
            unapplied: VecDeque::new(),
            ahead: VecDeque::new(),
            complete_at: now,
        }
    }

    /// The source's WAL is flushed up to here.
    pub fn source_at(&mut self, flush_lsn: Lsn, now: Duration) {
        if flush_lsn > self.source_flush_lsn {
            self.source_flush_lsn = flush_lsn;
            if self.ahead.len() >= SAMPLES_MAX {
                let mut number = 0_usize;
                self.ahead.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
            }
            self.ahead.push_back(LagSample { flush_lsn, at: now });
        }
        self.settle(now);
    }

    /// A transaction's Begin was received, with its commit's position and time.
    pub fn received(&mut self, final_lsn: Lsn, committed_at: PgTimestamp, now: Duration) {
        // The record before may end where this commit's begins, so that position does not hold it yet.
        let commit_lsn = Lsn::new(final_lsn.as_u64().saturating_add(1));
        self.received = self.received.max(commit_lsn);
        self.source_flush_lsn = self.source_flush_lsn.max(commit_lsn);
        // After a stream broke off, what is not stored comes again.
        let known = self.unapplied.back().is_some_and(|last| commit_lsn <= last.commit_lsn);
        if !known && commit_lsn > self.stored {
            let full = self.unapplied.len() >= UNAPPLIED_MAX;
            match self.unapplied.back_mut() {
                // The last one stands for those behind it: its time is older, so lag is never shown too small.
                Some(last) if full => last.commit_lsn = commit_lsn,
                Some(_) | None => self.unapplied.push_back(Unapplied { commit_lsn, committed_at }),
            }
        }
        self.settle(now);
    }

    /// The stream has passed this position; `nothing_under_way`: and all that came before it for us is stored.
    pub fn reached(&mut self, position: Lsn, nothing_under_way: bool, now: Duration) {
        self.received = self.received.max(position);
        self.source_flush_lsn = self.source_flush_lsn.max(position);
        if nothing_under_way {
            self.applied_up_to(position);
        }
        self.settle(now);
    }

    /// The destination stores this position.
    pub fn stored(&mut self, position: Lsn, now: Duration) {
        self.stored = self.stored.max(position);
        self.received = self.received.max(position);
        self.applied_up_to(position);
        self.settle(now);
    }

    fn applied_up_to(&mut self, position: Lsn) {
        while self.unapplied.front().is_some_and(|oldest| oldest.commit_lsn <= position) {
            self.unapplied.pop_front();
        }
    }

    fn settle(&mut self, now: Duration) {
        while let Some(sample) = self.ahead.front()
            && sample.flush_lsn <= self.received
        {
            self.complete_at = self.complete_at.max(sample.at);
            self.ahead.pop_front();
        }
        if self.source_flush_lsn <= self.received {
            self.complete_at = now;
        }
    }

    /// Bytes of source WAL that the destination does not reflect; 0 when all of them are known not to concern us.
    pub fn bytes(&self) -> u64 {
        // With a commit outstanding the position decides; without one, what the stream has passed.
        let at = if self.unapplied.is_empty() { self.received } else { self.stored };
        self.source_flush_lsn.bytes_since(at)
    }

    /// Age of the oldest source commit that is not applied, as far as is known; zero when there is none.
    ///
    /// `streaming`: whether commits are being received.
    pub fn age(&self, streaming: bool, source_now: PgTimestamp, now: Duration) -> Duration {
        let oldest = self.unapplied.front().map(|oldest| source_now.since(oldest.committed_at)).unwrap_or_default();
        let incomplete =
            if self.source_flush_lsn > self.received { now.saturating_sub(self.complete_at) } else { Duration::ZERO };
        if streaming && incomplete < ON_ITS_WAY { oldest } else { oldest.max(incomplete) }
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
    fn the_clocks_offset_is_the_greatest_of_this_minute_and_the_one_before() {
        let mut clock = ClockOffset::default();
        let mut shift = |offset: i64, now: u64| {
            clock.observe(secs(1_000 + offset), secs(1_000), at(now));
            clock.source_time(secs(0)).micros_since(secs(0)) / 1_000_000
        };
        assert_eq!(shift(10, 1), 10);
        assert_eq!(shift(7, 2), 10, "a slow message is no other clock");
        assert_eq!(shift(5, 61), 10, "the minute before counts");
        assert_eq!(shift(3, 62), 10, "throughout the minute");
        assert_eq!(shift(4, 122), 5, "and then no more");
    }

    #[test]
    fn an_idle_source_means_no_lag() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.source_at(lsn(500), at(1));
        assert_eq!(lag.bytes(), 400);
        lag.reached(lsn(500), true, at(2));
        assert_eq!((lag.bytes(), lag.age(true, secs(9), at(9))), (0, Duration::ZERO));
    }

    #[test]
    fn seconds_are_the_age_of_the_oldest_unapplied_commit() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.received(lsn(200), secs(10), at(10));
        lag.received(lsn(300), secs(12), at(12));
        assert_eq!(lag.age(true, secs(15), at(15)), at(5));
        lag.stored(lsn(210), at(15));
        assert_eq!(lag.age(true, secs(15), at(15)), at(3));
        assert_eq!(lag.bytes(), 91);
        lag.stored(lsn(310), at(16));
        assert_eq!((lag.bytes(), lag.age(true, secs(15), at(16))), (0, Duration::ZERO));
    }

    #[test]
    fn a_position_where_a_commit_record_begins_does_not_hold_that_commit() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.received(lsn(200), secs(10), at(10));
        lag.stored(lsn(200), at(11));
        assert_eq!(lag.age(true, secs(15), at(15)), at(5), "the transaction before it ends where it begins");
    }

    #[test]
    fn a_transaction_without_anything_for_us_is_no_lag_once_it_is_passed() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.received(lsn(200), secs(10), at(10));
        lag.reached(lsn(210), false, at(11));
        assert_eq!(lag.age(true, secs(15), at(15)), at(5), "something before it may be under way");
        lag.reached(lsn(210), true, at(16));
        assert_eq!((lag.bytes(), lag.age(true, secs(16), at(16))), (0, Duration::ZERO));
    }

    #[test]
    fn lag_rises_while_nothing_can_be_received() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.reached(lsn(100), true, at(20));
        lag.source_at(lsn(900), at(25));
        assert_eq!(lag.bytes(), 800);
        assert_eq!(lag.age(false, secs(0), at(50)), at(30), "since the last moment at which nothing was missing");
    }

    #[test]
    fn what_was_received_before_the_stream_broke_off_keeps_its_age_and_counts_once() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.received(lsn(200), secs(10), at(10));
        lag.received(lsn(300), secs(11), at(11));
        assert_eq!(lag.age(false, secs(40), at(40)), at(30));
        lag.received(lsn(200), secs(10), at(41));
        lag.received(lsn(300), secs(11), at(41));
        lag.stored(lsn(210), at(42));
        assert_eq!(lag.age(true, secs(42), at(42)), at(31));
        lag.stored(lsn(310), at(43));
        assert_eq!((lag.bytes(), lag.age(true, secs(43), at(43))), (0, Duration::ZERO));
    }

    #[test]
    fn a_backlog_that_is_not_received_yet_is_lag_also_while_streaming() {
        let mut lag = Lag::new(lsn(100), at(0));
        for second in 1..=60 {
            lag.source_at(lsn(100 + second * 10), at(second));
        }
        assert_eq!(lag.age(true, secs(60), at(60)), at(60));
        // Received and applied up to what the source had at second 40, and nothing outstanding.
        lag.received(lsn(499), secs(40), at(61));
        lag.stored(lsn(500), at(61));
        assert_eq!(lag.age(true, secs(61), at(61)), at(21), "the rest may hold commits since second 40");
        lag.reached(lsn(700), true, at(62));
        assert_eq!((lag.bytes(), lag.age(true, secs(62), at(62))), (0, Duration::ZERO));
    }

    #[test]
    fn a_moment_between_sampling_and_receiving_is_no_lag_while_streaming() {
        let mut lag = Lag::new(lsn(100), at(0));
        lag.reached(lsn(100), true, at(10));
        lag.source_at(lsn(200), at(11));
        assert_eq!(lag.age(true, secs(11), at(11)), Duration::ZERO);
        assert_eq!(lag.age(false, secs(11), at(11)), at(1));
    }

    #[test]
    fn forgetting_samples_never_makes_lag_smaller() {
        let mut lag = Lag::new(lsn(0), at(0));
        for second in 1..=10_000 {
            lag.source_at(lsn(second), at(second));
        }
        assert!(lag.ahead.len() <= SAMPLES_MAX);
        lag.stored(lsn(5_000), at(10_000));
        let age = lag.age(false, secs(0), at(10_000));
        assert!(age >= at(5_000) && age < at(5_020), "{age:?}");
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
