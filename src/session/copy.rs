//! COPY out of one server and into another, byte for byte.
//!
//! Serves the snapshot: `supervisor` pairs a [`CopyOut`] at the source with a [`CopyIn`] at the destination and calls
//! [`CopyOut::transfer`] until it is done. CopyData has the same frame in both directions, so frames are passed on as
//! they come, in whole or in part: the cost per row is a look at its header, and a row of 500 MB needs no more memory
//! than the pipe holds.
//!
//! Bounds: at most [`READ_AHEAD_BYTES`] wait for the destination; when it is slow, reading from the source waits.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::frontend;

use super::connection::{Connection, bounded};
use super::error::{ServerError, SessionError};
use super::pipelined_request::PipelinedRequest;
use super::sql::SqlCopyIn;
use crate::pg::{length_u64, usize_from};

/// What may wait in memory for the destination: a few reads, so that neither side stands still for the other.
const READ_AHEAD_BYTES: usize = 512 << 10;

/// A frame's tag and length.
const HEADER_BYTES: usize = 5;

const READING: &str = "reading rows from the source";
const WRITING: &str = "writing rows to the destination";

/// A COPY … TO STDOUT that is running.
pub struct CopyOut<'a> {
    connection: &'a mut Connection,
    /// Bytes of the current CopyData that have not come yet, and how many of them are its header's.
    frame_left: usize,
    header_left: usize,
    timeout: Duration,
}

/// A COPY … FROM STDIN that is running.
pub struct CopyIn<'a> {
    connection: &'a mut Connection,
    timeout: Duration,
}

/// Which side a transfer failed on.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source.
    #[error(transparent)]
    Source(SessionError),
    /// The destination.
    #[error(transparent)]
    Destination(SessionError),
}

/// What one step of a transfer moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// CopyData messages begun that carry a row: the binary format's header comes with the first one, its trailer alone.
    pub messages: u64,
    /// Bytes, with framing.
    pub bytes: u64,
    /// The source has sent everything.
    pub done: bool,
}

impl<'a> CopyOut<'a> {
    /// Starts `sql`, a COPY … TO STDOUT.
    ///
    /// # Errors
    /// [`SessionError`]: the server's refusal, or no answer within `timeout`, which bounds every later wait too.
    pub async fn start(
        connection: &'a mut Connection,
        sql: &str,
        timeout: Duration,
    ) -> Result<CopyOut<'a>, SessionError> {
        begin(connection, sql, Direction::Out, READING, timeout).await?;
        Ok(CopyOut { connection, frame_left: 0, header_left: 0, timeout })
    }

    /// Moves what has arrived, waiting for at least something.
    ///
    /// # Errors
    /// [`CopyError`] tells the side. Neither connection can be used afterwards.
    pub async fn transfer(&mut self, into: &mut CopyIn<'_>) -> Result<Transferred, CopyError> {
        let moved = self.receive(|bytes, _| into.connection.send(bytes)).await?;
        let server = into.connection.server().clone();
        let sent = bounded(&server, into.timeout, WRITING, into.connection.send_down_to(READ_AHEAD_BYTES, WRITING));
        sent.await.map_err(CopyError::Destination)?;
        // A destination that has refused the data says so at once, not after gigabytes.
        if let Some(frame) = into.connection.ready_frame(WRITING).map_err(CopyError::Destination)? {
            return Err(CopyError::Destination(refusal(&frame.body, frame.tag)));
        }
        Ok(moved)
    }

    /// The same into a COPY of an ordinary SQL session.
    ///
    /// # Errors
    /// [`CopyError`] tells the side.
    pub async fn transfer_into(&mut self, into: &mut SqlCopyIn<'_>) -> Result<Transferred, CopyError> {
        let mut rows = BytesMut::new();
        let moved = self.receive(|bytes, header| rows.extend_from_slice(&bytes[header..])).await?;
        if !rows.is_empty() {
            into.send(rows.freeze()).await.map_err(CopyError::Destination)?;
        }
        Ok(moved)
    }

    /// Hands what has arrived to `take`, waiting for at least something.
    async fn receive(&mut self, mut take: impl FnMut(&[u8], usize)) -> Result<Transferred, CopyError> {
        let mut moved = self.pass_on(&mut take)?;
        while moved == Transferred::default() {
            let server = self.connection.server().clone();
            let received = bounded(&server, self.timeout, READING, self.connection.receive(READING));
            received.await.map_err(CopyError::Source)?;
            moved = self.pass_on(&mut take)?;
        }
        Ok(moved)
    }

    /// Passes on what has arrived already: bytes, and how many of them belong to a frame's header.
    fn pass_on(&mut self, take: &mut impl FnMut(&[u8], usize)) -> Result<Transferred, CopyError> {
        let mut moved = Transferred::default();
        while !moved.done {
            if self.frame_left > 0 {
                let available = self.connection.incoming().len().min(self.frame_left);
                if available == 0 {
                    break;
                }
                let header = available.min(self.header_left);
                take(&self.connection.incoming()[..available], header);
                self.connection.incoming().advance(available);
                self.frame_left -= available;
                self.header_left -= header;
                moved.bytes += length_u64(available);
                continue;
            }
            match self.connection.incoming().first_chunk::<HEADER_BYTES>() {
                Some([b'd', length @ ..]) => {
                    let length = usize_from(u32::from_be_bytes(*length));
                    if !(4..=1 << 30).contains(&length) {
                        return Err(CopyError::Source(SessionError::protocol(READING, "a CopyData of absurd length")));
                    }
                    match carries_row(self.connection.incoming(), length) {
                        Some(carries) => moved.messages += u64::from(carries),
                        None => break,
                    }
                    self.frame_left = length + 1;
                    self.header_left = HEADER_BYTES;
                }
                Some(_) => match self.connection.ready_frame(READING).map_err(CopyError::Source)? {
                    Some(frame) if frame.tag == b'c' => moved.done = true,
                    Some(frame) if frame.tag == b'E' => {
                        let error = ServerError::read(&frame.body);
                        return Err(CopyError::Source(SessionError::from_server(READING, error)));
                    }
                    Some(frame) => {
                        let what = format!("message {}", frame.tag.escape_ascii());
                        return Err(CopyError::Source(SessionError::protocol(READING, what)));
                    }
                    None => break,
                },
                None => break,
            }
        }
        Ok(moved)
    }

    /// Takes the source's word that the COPY ended well.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn finish(self) -> Result<(), SessionError> {
        end(self.connection, READING, self.timeout).await.map(|_| ())
    }
}

/// Whether the CopyData message at the start of `incoming` carries a row; `None`: too little of it is here.
///
/// Only messages of two lengths may carry none: the binary format's trailer, and its header with the trailer behind it,
/// which is how an empty table is sent (copyto.c, 14 to 18). No row of either format looks like them.
fn carries_row(incoming: &[u8], length: usize) -> Option<bool> {
    const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0";
    const FILE_HEADER_BYTES: usize = HEADER.len() + 8;
    const TRAILER: &[u8] = &[0xff, 0xff];
    let body_bytes = length - 4;
    if body_bytes != TRAILER.len() && body_bytes != FILE_HEADER_BYTES + TRAILER.len() {
        return Some(true);
    }
    let body = incoming.get(HEADER_BYTES..HEADER_BYTES + body_bytes)?;
    let alone = body.len() == TRAILER.len() || body.starts_with(HEADER);
    Some(!(alone && body.ends_with(TRAILER)))
}

impl<'a> CopyIn<'a> {
    /// Starts `sql`, a COPY … FROM STDIN.
    ///
    /// # Errors
    /// [`SessionError`]: the server's refusal, or no answer within `timeout`, which bounds every later wait too.
    pub async fn start(
        connection: &'a mut Connection,
        sql: &str,
        timeout: Duration,
    ) -> Result<CopyIn<'a>, SessionError> {
        begin(connection, sql, Direction::In, WRITING, timeout).await?;
        Ok(CopyIn { connection, timeout })
    }

    /// Ends the data and returns how many rows the destination took.
    ///
    /// # Errors
    /// [`SessionError`]: the server's refusal of the data, or a broken connection.
    pub async fn finish(self) -> Result<u64, SessionError> {
        frontend::copy_done(self.connection.outgoing());
        frontend::sync(self.connection.outgoing());
        end(self.connection, WRITING, self.timeout).await
    }
}

/// Which way the rows go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

/// Starts the COPY by the extended protocol, in which its text can be nothing but one statement.
///
/// The server takes no Sync while it waits for rows (protocol-flow, "COPY Operations"): for COPY … FROM STDIN it follows behind
/// their end, or a refusal.
async fn begin(
    connection: &mut Connection,
    sql: &str,
    direction: Direction,
    doing: &'static str,
    timeout: Duration,
) -> Result<(), SessionError> {
    let mut request = PipelinedRequest::new();
    request.run(sql);
    let expected = match direction {
        Direction::Out => {
            request.sync();
            b'H'
        }
        Direction::In => b'G',
    };
    connection.outgoing().extend_from_slice(&request.bytes);
    let server = connection.server().clone();
    loop {
        let frame = bounded(&server, timeout, doing, connection.next_frame(doing)).await?;
        match frame.tag {
            // ParseComplete, BindComplete.
            b'1' | b'2' => {}
            tag if tag == expected => return Ok(()),
            tag => {
                if direction == Direction::In {
                    frontend::sync(connection.outgoing());
                }
                return Err(refused(connection, &frame.body, tag, doing).await);
            }
        }
    }
}

/// After a refusal of the COPY itself the connection is in order again once its ReadyForQuery has come.
async fn refused(connection: &mut Connection, body: &[u8], tag: u8, doing: &'static str) -> SessionError {
    if tag != b'E' {
        return SessionError::protocol(doing, format!("message {}", tag.escape_ascii()));
    }
    let error = ServerError::read(body);
    if !error.fatal {
        // Its outcome is the next user's to find out.
        let server = connection.server().clone();
        let _ = bounded(&server, Duration::from_secs(5), doing, connection.next_frame(doing)).await;
    }
    SessionError::from_server(doing, error)
}

fn refusal(body: &[u8], tag: u8) -> SessionError {
    match tag {
        b'E' => SessionError::from_server(WRITING, ServerError::read(body)),
        tag => SessionError::protocol(WRITING, format!("message {}", tag.escape_ascii())),
    }
}

/// Reads CommandComplete and ReadyForQuery; returns the row count of the former.
async fn end(connection: &mut Connection, doing: &'static str, timeout: Duration) -> Result<u64, SessionError> {
    let mut rows = 0;
    let server = connection.server().clone();
    loop {
        let frame = bounded(&server, timeout, doing, connection.next_answer(doing)).await?;
        match frame.tag {
            b'c' => {}
            b'C' => rows = super::pipelined_request::rows_in_tag(&frame.body),
            b'Z' => return Ok(rows),
            tag => return Err(SessionError::protocol(doing, format!("message {}", tag.escape_ascii()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Vec<u8> {
        let mut message = vec![b'd'];
        message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend_from_slice(body);
        message
    }

    #[test]
    fn only_rows_are_counted_as_rows() {
        let header = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
        let empty = [header.as_slice(), b"\xff\xff"].concat();
        let first_without_columns = [header.as_slice(), b"\0\0"].concat();
        for (body, carries) in [
            (b"\xff\xff".as_slice(), false),
            (&empty, false),
            (&first_without_columns, true),
            (b"\0\0", true),
            (b"7\n", true),
            (b"twenty bytes of text\n", true),
            (b"\0\x01\0\0\0\x04\0\0\0\x07", true),
        ] {
            let message = message(body);
            assert_eq!(carries_row(&message, body.len() + 4), Some(carries), "{body:?}");
        }
        assert_eq!(carries_row(&message(b"\xff\xff")[..6], 6), None, "the rest decides");
    }
}
