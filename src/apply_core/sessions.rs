//! The two writing sessions, as far as decisions depend on them.
//!
//! Made by the shell (`apply_worker`) before each question. Plain data.

use std::time::Duration;

use crate::pg::Lsn;

/// The leader's writing session, as far as decisions depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSession {
    /// The position that is known to be stored.
    pub stored: Lsn,
    /// An answer is awaited.
    pub is_busy: bool,
    /// Another task may be submitted.
    pub has_room: bool,
    /// A source transaction is applied in part.
    pub in_large_transaction: bool,
    /// For how long the oldest answer has been awaited.
    pub waits_for: Duration,
}

impl LiveSession {
    /// Whether nothing is under way.
    pub fn is_free(&self) -> bool {
        !self.is_busy && !self.in_large_transaction
    }
}

/// What the second session has in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondSession {
    /// Changes of the chunk that is being gathered.
    pub gathered: usize,
    /// What they weigh.
    pub gathered_bytes: usize,
    /// An answer is awaited.
    pub is_busy: bool,
    /// Another request may be sent.
    pub has_room: bool,
}
