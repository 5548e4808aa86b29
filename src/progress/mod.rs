//! How far we are: what may be confirmed, when, and what lag is.
//!
//! Pure: time is an argument. In come what was received, what the destination stored and how far its WAL is
//! flushed; out go the position that may be confirmed to the source ([`Ledger`]), the moments at which to say so
//! ([`Feedback`]), the moments at which an idle stream's position is worth storing ([`IdleAdvance`]) and the lag
//! ([`Lag`]). `source::stream` and `apply_worker::apply_loop` ask; `telemetry` shows.
//!
//! Invariants: received ≥ stored ≥ flushed, each only grows, and only what is stored *and flushed* at the destination
//! is ever confirmed (I3, I4).

mod feedback;
mod idle;
mod lag;
mod ledger;

pub use feedback::{Feedback, Positions};
pub use idle::IdleAdvance;
pub use lag::{ClockOffset, Lag};
pub use ledger::{Ledger, StoredPosition, WalReading};
