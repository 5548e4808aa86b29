//! The streaming replication protocol inside CopyData: XLogData and keepalives in, status updates out.
//!
//! Stands between `session`, which delivers CopyData payloads, and `pgoutput`, which reads what XLogData carries.
//! Format: protocol-replication, "START_REPLICATION"; the same from PostgreSQL 14 to 18.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{BufMut, Bytes};

use super::cursor::{Cursor, WireError};
use crate::pg::{Lsn, PgTimestamp};

/// A piece of the stream: one pgoutput message and where it stands in the source's WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XLogData {
    /// The WAL position of the data. For pgoutput the record that caused the message, or 0/0.
    pub wal_start: Lsn,
    /// The end of WAL on the server when it sent this. Not a commit position, and never one to confirm.
    pub wal_end: Lsn,
    /// The source's clock when it sent this.
    pub sent_at: PgTimestamp,
    /// The output plugin's message.
    pub data: Bytes,
}

/// A sign of life: everything up to `wal_end` has been decoded and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryKeepalive {
    /// How far the walsender has decoded and sent; a record's end.
    pub wal_end: Lsn,
    /// The source's clock when it sent this.
    pub sent_at: PgTimestamp,
    /// The source wants a status update at once.
    pub reply_requested: bool,
}

/// What a walsender puts into CopyData.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// `w`
    XLogData(XLogData),
    /// `k`
    PrimaryKeepalive(PrimaryKeepalive),
}

impl ReplicationMessage {
    /// Reads the payload of one CopyData.
    ///
    /// # Errors
    /// [`WireError`] for anything but a whole XLogData or PrimaryKeepalive.
    pub fn read(payload: &Bytes) -> Result<ReplicationMessage, WireError> {
        let mut cursor = Cursor::new("replication", payload);
        match cursor.read_u8("kind")? {
            b'w' => {
                let mut cursor = cursor.renamed("XLogData");
                Ok(ReplicationMessage::XLogData(XLogData {
                    wal_start: cursor.read_lsn("wal_start")?,
                    wal_end: cursor.read_lsn("wal_end")?,
                    sent_at: cursor.read_timestamp("send time")?,
                    data: cursor.read_rest(),
                }))
            }
            b'k' => {
                let mut cursor = cursor.renamed("PrimaryKeepalive");
                let keepalive = PrimaryKeepalive {
                    wal_end: cursor.read_lsn("wal_end")?,
                    sent_at: cursor.read_timestamp("send time")?,
                    reply_requested: match cursor.read_u8("reply flag")? {
                        0 => false,
                        1 => true,
                        value => {
                            return Err(WireError::Unknown {
                                message: cursor.message(),
                                field: "reply flag",
                                value: value.into(),
                            });
                        }
                    },
                };
                cursor.finish()?;
                Ok(ReplicationMessage::PrimaryKeepalive(keepalive))
            }
            kind => Err(WireError::Unknown { message: "replication", field: "kind", value: kind.into() }),
        }
    }

    /// Writes the payload of one CopyData, as a walsender would.
    pub fn write(&self, out: &mut impl BufMut) {
        match self {
            ReplicationMessage::XLogData(message) => {
                out.put_u8(b'w');
                out.put_u64(message.wal_start.as_u64());
                out.put_u64(message.wal_end.as_u64());
                out.put_i64(message.sent_at.as_micros());
                out.put_slice(&message.data);
            }
            ReplicationMessage::PrimaryKeepalive(message) => {
                out.put_u8(b'k');
                out.put_u64(message.wal_end.as_u64());
                out.put_i64(message.sent_at.as_micros());
                out.put_u8(message.reply_requested.into());
            }
        }
    }
}

/// What we report to the source. All three positions only ever grow within a session, and `flushed ≤ written`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    /// Received here.
    pub written: Lsn,
    /// Stored at the destination and durable there: the source may forget everything before it.
    pub flushed: Lsn,
    /// Visible at the destination.
    pub applied: Lsn,
    /// Our clock.
    pub sent_at: PgTimestamp,
    /// Ask the source for a keepalive at once.
    pub reply_requested: bool,
}

impl StandbyStatusUpdate {
    /// Writes the payload of one CopyData.
    pub fn write(&self, out: &mut impl BufMut) {
        out.put_u8(b'r');
        out.put_u64(self.written.as_u64());
        out.put_u64(self.flushed.as_u64());
        out.put_u64(self.applied.as_u64());
        out.put_i64(self.sent_at.as_micros());
        out.put_u8(self.reply_requested.into());
    }

    /// Reads the payload of one CopyData, as a walsender would.
    ///
    /// # Errors
    /// [`WireError`] for anything but a whole status update.
    pub fn read(payload: &Bytes) -> Result<StandbyStatusUpdate, WireError> {
        let mut cursor = Cursor::new("StandbyStatusUpdate", payload);
        let kind = cursor.read_u8("kind")?;
        if kind != b'r' {
            return Err(WireError::Unknown { message: cursor.message(), field: "kind", value: kind.into() });
        }
        let update = StandbyStatusUpdate {
            written: cursor.read_lsn("written position")?,
            flushed: cursor.read_lsn("flushed position")?,
            applied: cursor.read_lsn("applied position")?,
            sent_at: cursor.read_timestamp("send time")?,
            reply_requested: cursor.read_u8("reply flag")? != 0,
        };
        cursor.finish()?;
        Ok(update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let messages = [
            ReplicationMessage::XLogData(XLogData {
                wal_start: Lsn::new(1),
                wal_end: Lsn::new(u64::MAX),
                sent_at: PgTimestamp::from_micros(-5),
                data: Bytes::from_static(b"B..."),
            }),
            ReplicationMessage::PrimaryKeepalive(PrimaryKeepalive {
                wal_end: Lsn::new(77),
                sent_at: PgTimestamp::from_micros(9),
                reply_requested: true,
            }),
        ];
        for message in messages {
            let mut bytes = Vec::new();
            message.write(&mut bytes);
            assert_eq!(ReplicationMessage::read(&Bytes::from(bytes)), Ok(message));
        }
        let update = StandbyStatusUpdate {
            written: Lsn::new(3),
            flushed: Lsn::new(1),
            applied: Lsn::new(2),
            sent_at: PgTimestamp::from_micros(4),
            reply_requested: false,
        };
        let mut bytes = Vec::new();
        update.write(&mut bytes);
        assert_eq!(StandbyStatusUpdate::read(&Bytes::from(bytes)), Ok(update));
    }

    #[test]
    fn bytes_that_are_not_understood_are_refused() {
        for payload in [&b""[..], b"x", b"k1234", b"w12345678", b"k12345678123456782", b"k1234567812345678\x01x"] {
            assert!(ReplicationMessage::read(&Bytes::copy_from_slice(payload)).is_err(), "{payload:?}");
        }
    }
}
