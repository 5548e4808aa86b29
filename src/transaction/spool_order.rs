//! What the spool is to do, in the order of the stream.
//!
//! Given out by `streams` inside `change::Output`s, carried out by `spool`. Plain data.

use bytes::Bytes;

use crate::transaction::replay::Replay;

/// What `spool` is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolOrder {
    /// Keep these records of a stream, behind those that it has.
    Append {
        /// The stream, by its top-level transaction.
        xid: u32,
        /// Whole records.
        records: Bytes,
    },
    /// Keep only so many bytes of a stream: the rest was rolled back.
    Cut {
        /// The stream.
        xid: u32,
        /// Where its records end now.
        at: u64,
    },
    /// Forget a stream.
    Discard {
        /// The stream.
        xid: u32,
    },
    /// Give a stream back, which has committed, and forget it.
    Replay(Box<Replay>),
}
