//! The ledger: which stored positions are durable at the destination.
//!
//! The destination commits with synchronous_commit=off, so a commit's answer does not mean that it survives a crash.
//! After a commit the destination's insert position is read; once its flush position has passed that, everything
//! stored before the reading is durable. With synchronous commits the answer itself is the proof.
//!
//! ```text
//! stored(p1) stored(p2)   reading(insert=100, flush=40)   stored(p3)   reading(insert=130, flush=110)
//!                          └ p1, p2 durable from 100 on                 └ p1, p2 are durable; p3 from 130 on
//! ```
//!
//! Bound: readings that wait for their flush are at most [`WAITING_MAX`]; beyond that the newest two become one, which
//! only delays a confirmation.

use std::collections::VecDeque;

use crate::pg::Lsn;

/// The destination's WAL positions, read in one statement after a commit was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalReading {
    /// `pg_current_wal_insert_lsn()`.
    pub insert_lsn: Lsn,
    /// `pg_current_wal_flush_lsn()`.
    pub flush_lsn: Lsn,
}

/// A position that a COMMIT has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPosition {
    /// The position.
    pub position: Lsn,
    /// The answer means that it is durable.
    pub is_durable: bool,
}

/// More than the readings of three minutes at 5 a second would be odd.
const WAITING_MAX: usize = 1024;

/// A WAL page begins with a header of 24 bytes, the first of a segment with one of 40 (`XLogPageHeaderData`, 14 to 18).
const PAGE_HEADER_BYTES_MAX: u64 = 40;

/// What is stored and what is durable at the destination.
#[derive(Clone, Debug)]
pub struct Ledger {
    wal_block_bytes: u64,
    stored: Lsn,
    flushed: Lsn,
    /// Stored positions with the destination's WAL position from which on they are durable, both ascending.
    waiting: VecDeque<(Lsn, Lsn)>,
    /// The newest position that a reading covers.
    covered: Lsn,
}

impl Ledger {
    /// A ledger for a destination whose stored position was just read.
    ///
    /// It may have been committed a moment ago without being flushed, so nothing is durable yet but what the source
    /// already knows as `confirmed`. `wal_block_bytes` is the destination's `wal_block_size`.
    pub fn resume(stored: Lsn, confirmed: Lsn, wal_block_bytes: u64) -> Ledger {
        let flushed = confirmed.min(stored);
        Ledger { wal_block_bytes, stored, flushed, waiting: VecDeque::new(), covered: flushed }
    }

    /// The position that the destination holds.
    pub fn stored(&self) -> Lsn {
        self.stored
    }

    /// The position that may be confirmed to the source.
    pub fn flushed(&self) -> Lsn {
        self.flushed
    }

    /// Whether there is something stored whose durability no reading covers yet.
    pub fn wants_reading(&self) -> bool {
        self.covered < self.stored || !self.waiting.is_empty()
    }

    /// A commit with this position was answered, without a proof that it is durable.
    ///
    /// # Panics
    /// When positions go backwards: the conditional position update makes that impossible.
    pub fn store(&mut self, position: Lsn) {
        assert!(position >= self.stored, "position went back from {} to {position}", self.stored);
        self.stored = position;
    }

    /// A commit with this position was answered, and the answer means that it is durable.
    pub fn store_durably(&mut self, position: Lsn) {
        self.store(position);
        self.flushed = position;
        self.covered = position;
        // The WAL is flushed in order, so everything stored earlier is durable too.
        self.waiting.clear();
    }

    /// A commit was answered.
    ///
    /// # Panics
    /// As for [`Ledger::store`].
    pub fn stored_position(&mut self, stored: StoredPosition) {
        let StoredPosition { position, is_durable } = stored;
        if is_durable { self.store_durably(position) } else { self.store(position) }
    }

    /// The destination's WAL positions were read after everything stored so far had been answered.
    pub fn read(&mut self, reading: WalReading) {
        if self.covered < self.stored {
            self.covered = self.stored;
            // Behind a commit that ends on a page boundary the insert position already skips the next page's header,
            // which an idle server never flushes: the page's start is enough then.
            let page = reading.insert_lsn.page_start(self.wal_block_bytes);
            let in_header = reading.insert_lsn.bytes_since(page) <= PAGE_HEADER_BYTES_MAX;
            let needed = if in_header { page } else { reading.insert_lsn };
            if self.waiting.len() >= WAITING_MAX {
                self.waiting.pop_back();
            }
            self.waiting.push_back((self.stored, needed));
        }
        while let Some((position, needed)) = self.waiting.front().copied()
            && needed <= reading.flush_lsn
        {
            self.waiting.pop_front();
            self.flushed = self.flushed.max(position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(offset: u64) -> Lsn {
        Lsn::new(offset)
    }

    fn reading(insert: u64, flush: u64) -> WalReading {
        WalReading { insert_lsn: lsn(insert), flush_lsn: lsn(flush) }
    }

    #[test]
    fn nothing_is_confirmed_before_its_wal_is_flushed() {
        let mut ledger = Ledger::resume(lsn(10), lsn(10), 8192);
        ledger.store(lsn(20));
        ledger.read(reading(1000, 500));
        assert_eq!(ledger.flushed(), lsn(10), "stored, not flushed");
        ledger.store(lsn(30));
        ledger.read(reading(1200, 1000));
        assert_eq!(ledger.flushed(), lsn(20), "the first is, the second is not");
        ledger.read(reading(1300, 1199));
        assert_eq!(ledger.flushed(), lsn(20));
        assert!(ledger.wants_reading());
        ledger.read(reading(1300, 1200));
        assert_eq!(ledger.flushed(), lsn(30));
        assert!(!ledger.wants_reading());
    }

    #[test]
    fn a_position_found_at_start_is_not_taken_for_durable() {
        let mut ledger = Ledger::resume(lsn(50), lsn(20), 8192);
        assert_eq!(ledger.flushed(), lsn(20));
        assert!(ledger.wants_reading());
        ledger.read(reading(1000, 1000));
        assert_eq!(ledger.flushed(), lsn(50));
    }

    #[test]
    fn an_idle_server_whose_commit_ended_on_a_page_boundary_is_understood() {
        for header in [0, 24, 40] {
            let mut ledger = Ledger::resume(lsn(10), lsn(10), 8192);
            ledger.store(lsn(20));
            ledger.read(reading(8192 * 5 + header, 8192 * 5));
            assert_eq!(ledger.flushed(), lsn(20), "{header} bytes into the page");
        }
        let mut ledger = Ledger::resume(lsn(10), lsn(10), 8192);
        ledger.store(lsn(20));
        ledger.read(reading(8192 * 5 + 41, 8192 * 5));
        assert_eq!(ledger.flushed(), lsn(10), "a record begins behind the header");
    }

    #[test]
    fn a_synchronous_commit_is_its_own_proof() {
        let mut ledger = Ledger::resume(lsn(10), lsn(10), 8192);
        ledger.store(lsn(20));
        ledger.read(reading(1000, 0));
        ledger.store_durably(lsn(30));
        assert_eq!(ledger.flushed(), lsn(30));
        assert!(!ledger.wants_reading());
    }

    #[test]
    fn waiting_readings_are_bounded_and_lose_nothing() {
        let mut ledger = Ledger::resume(lsn(0), lsn(0), 8192);
        for n in 1..=5000 {
            ledger.store(lsn(n));
            ledger.read(reading(10_000 + n * 100, 0));
        }
        assert!(ledger.waiting.len() <= WAITING_MAX);
        ledger.read(reading(10_000_000, 10_000 + 5000 * 100));
        assert_eq!(ledger.flushed(), lsn(5000));
    }

    #[test]
    #[should_panic(expected = "position went back")]
    fn a_position_that_goes_back_is_a_broken_invariant() {
        let mut ledger = Ledger::resume(lsn(10), lsn(10), 8192);
        ledger.store(lsn(9));
    }
}
