//! The replication protocol's bytes: CopyData payloads into messages, status into bytes.
//!
//! Pure. In comes the payload of each CopyData that the source's walsender sends (`source::stream` takes it
//! from `session`); out go [`ReplicationMessage`]s, inside them pgoutput's [`Message`]s, which `transaction`
//! assembles. The other way a [`StandbyStatusUpdate`] becomes bytes.
//!
//! Reading and writing stand side by side, as in PostgreSQL's `proto.c`: what we read we can also write, which gives
//! tests, simulation and benchmarks a source of their own, and lets a property hold both to each other.
//!
//! Invariants: a reader consumes its message to the last byte or refuses it (I10); no length that a message claims is
//! believed before the bytes are there; nothing here panics, whatever arrives. Values are slices of the read buffer.

mod cursor;
mod pgoutput;
mod replication;

pub use cursor::WireError;
pub use pgoutput::{
    Abort, Begin, Commit, Decoder, LogicalMessage, Message, OldTuple, Truncate, TypeDescription, write_message,
};
pub use replication::{PrimaryKeepalive, ReplicationMessage, StandbyStatusUpdate, XLogData};
