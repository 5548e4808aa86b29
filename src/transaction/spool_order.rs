//! What the spool is to do, in the order of the stream.
//!
//! Given out by `streams` inside `change::Output`s, carried out by `spool`. Plain data.

use bytes::Bytes;

use crate::transaction::replay::Replay;

/// Whole records of a stream. There is one copy of a large row in memory: as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// All of them, or all but the end of the last one.
    pub head: Bytes,
    /// The end of the last one, which is a large row's: its values, in the buffer in which they have arrived. Empty: there is none.
    pub large: Bytes,
}

impl Records {
    /// How many bytes they are.
    pub fn len(&self) -> usize {
        self.head.len() + self.large.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, part by part.
    pub fn parts(&self) -> [&Bytes; 2] {
        [&self.head, &self.large]
    }

    /// The bytes in one piece, for which those of a large row are copied.
    pub fn joined(self) -> Bytes {
        if self.large.is_empty() {
            return self.head;
        }
        let mut joined = Vec::with_capacity(self.len());
        self.parts().into_iter().for_each(|part| joined.extend_from_slice(part));
        Bytes::from(joined)
    }
}

impl From<Bytes> for Records {
    fn from(head: Bytes) -> Records {
        Records { head, large: Bytes::new() }
    }
}

/// What `spool` is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolOrder {
    /// Keep these records of a stream, behind those that it has.
    Append {
        /// The stream, by its top-level transaction.
        xid: u32,
        /// Whole records.
        records: Records,
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
