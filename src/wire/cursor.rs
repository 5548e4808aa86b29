//! Reads a message's fields from its bytes, in order, and says where it stopped when they end too soon.
//!
//! Stands under both readers of this module. No indexing and no unchecked arithmetic: every field is split off the rest
//! with a check, so a lying length is an error, not a panic. Slices that outlive the message are taken from the shared
//! buffer without copying.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::Bytes;

use crate::pg::{Lsn, MalformedTuple, PgTimestamp, Tuple};

/// A message that is not what the protocol says it should be. The run ends: skipping it could lose a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message ends inside a field.
    #[error("{message} message ends inside its {field}")]
    Truncated {
        /// The message being read.
        message: &'static str,
        /// The field that is cut short.
        field: &'static str,
    },
    /// Bytes are left after the message's last field.
    #[error("{message} message has {bytes} bytes more than its fields")]
    Leftover {
        /// The message being read.
        message: &'static str,
        /// How many bytes are left over.
        bytes: usize,
    },
    /// A field has a value that the protocol does not define.
    #[error("{message} message has an unknown {field}: {value}")]
    Unknown {
        /// The message being read.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// Its value, as a number.
        value: u64,
    },
    /// A list or a name is longer than any that a server makes.
    #[error("{message} message has a {field} of more than {most}")]
    TooLong {
        /// The message being read.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// How long it may be.
        most: usize,
    },
    /// A name is not valid UTF-8, though client_encoding is UTF8.
    #[error("{message} message has a {field} that is not valid UTF-8")]
    NotUtf8 {
        /// The message being read.
        message: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A row's columns do not fit its bytes.
    #[error("{message} message has a {source}")]
    Tuple {
        /// The message being read.
        message: &'static str,
        /// What is wrong with the tuple.
        source: MalformedTuple,
    },
    /// The message cannot come here: a Stream Stop outside a stream, say.
    #[error("{message} message {place}")]
    Misplaced {
        /// The message being read.
        message: &'static str,
        /// Where it stood.
        place: &'static str,
    },
}

/// A name has NAMEDATALEN - 1 = 63 bytes in the server's encoding, and less than three times as many in UTF-8. There are builds in which
/// it is longer.
const NAME_BYTES_MAX: usize = 1024;

/// The unread part of one message.
pub(super) struct Cursor<'a> {
    message: &'static str,
    shared: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Begins to read the fields of `message` from `payload`.
    pub(super) fn new(message: &'static str, payload: &'a Bytes) -> Cursor<'a> {
        Cursor { message, shared: payload, rest: payload }
    }

    /// The same cursor, now known to stand in another message.
    pub(super) fn renamed(mut self, message: &'static str) -> Cursor<'a> {
        self.message = message;
        self
    }

    pub(super) fn message(&self) -> &'static str {
        self.message
    }

    fn truncated(&self, field: &'static str) -> WireError {
        WireError::Truncated { message: self.message, field }
    }

    fn chunk<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (chunk, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.truncated(field))?;
        self.rest = rest;
        Ok(*chunk)
    }

    pub(super) fn read_u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.chunk(field)?))
    }

    pub(super) fn read_u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.chunk(field)?))
    }

    pub(super) fn read_u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.chunk(field)?))
    }

    pub(super) fn read_i32(&mut self, field: &'static str) -> Result<i32, WireError> {
        Ok(i32::from_be_bytes(self.chunk(field)?))
    }

    pub(super) fn read_lsn(&mut self, field: &'static str) -> Result<Lsn, WireError> {
        Ok(Lsn::new(u64::from_be_bytes(self.chunk(field)?)))
    }

    pub(super) fn read_timestamp(&mut self, field: &'static str) -> Result<PgTimestamp, WireError> {
        Ok(PgTimestamp::from_micros(i64::from_be_bytes(self.chunk(field)?)))
    }

    /// A NUL-terminated string.
    pub(super) fn read_str(&mut self, field: &'static str) -> Result<&'a str, WireError> {
        let end = self.rest.iter().position(|b| *b == 0).ok_or_else(|| self.truncated(field))?;
        let (text, rest) = self.rest.split_at_checked(end).ok_or_else(|| self.truncated(field))?;
        self.rest = rest.split_first().expect("it begins with the NUL that was found").1;
        std::str::from_utf8(text).map_err(|_| WireError::NotUtf8 { message: self.message, field })
    }

    /// The name of an object, NUL-terminated.
    pub(super) fn read_name(&mut self, field: &'static str) -> Result<&'a str, WireError> {
        let name = self.read_str(field)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(WireError::TooLong { message: self.message, field, most: NAME_BYTES_MAX });
        }
        Ok(name)
    }

    /// The next `length` bytes, shared with the read buffer.
    pub(super) fn read_bytes(&mut self, length: usize, field: &'static str) -> Result<Bytes, WireError> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.truncated(field))?;
        self.rest = rest;
        Ok(self.shared.slice_ref(bytes))
    }

    /// All that is left, shared with the read buffer.
    pub(super) fn read_rest(&mut self) -> Bytes {
        self.shared.slice_ref(std::mem::take(&mut self.rest))
    }

    /// A TupleData: a column count and the columns.
    pub(super) fn read_tuple(&mut self) -> Result<Tuple, WireError> {
        let message = self.message;
        let malformed = |source| WireError::Tuple { message, source };
        let columns = self.read_u16("column count")?;
        let length = Tuple::measure(columns, self.rest).map_err(malformed)?;
        let data = self.read_bytes(length, "tuple")?;
        Ok(Tuple::from_measured(columns, data))
    }

    /// Says that the message has been read; what is left over is an error.
    pub(super) fn finish(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(WireError::Leftover { message: self.message, bytes }),
        }
    }
}
