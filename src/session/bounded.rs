//! A byte stream that bounds the messages of a server: what it sends passes unchanged, or ends the session.
//!
//! Stands between `connect` and tokio-postgres, which gathers a message of any length in memory, from a server that has not yet let
//! us in as well, all rows of an answer, and every setting that a server reports. The bounds are those of our own sessions
//! ([`super::connection`]): 64 KiB before authentication, [`ANSWER_BYTES_MAX`] for the rows of an answer and for each message afterwards,
//! as no COPY reads from these sessions. The session ends at the first byte too many, and [`Complaint`] says why.
//!
//! Types, too: for one that it does not know tokio-postgres asks pg_type, goes from each answer to the next as deep as a server will
//! lead it, and keeps the answers. Our queries return types that every server has, so that another one ends the session.
//!
//! Invariant: looks at the heads of messages and at descriptions of rows and parameters, copies and delays nothing else. Format:
//! protocol-message-formats.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::types::Type;

use super::connection::{ANSWER_BYTES_MAX, AnswerBudget, FRAME_BYTES_MAX_UNAUTHENTICATED};
use crate::pg::usize_from;
use crate::session::stream::BoxedStream;

/// All that a session's server reports of its settings: a name and a value are some tens of bytes, and a dozen come with a session.
const PARAMETER_BYTES_MAX: usize = 1 << 20;

/// A description of rows or parameters: each of our questions has some tens of columns.
const DESCRIPTION_BYTES_MAX: usize = 64 << 10;

/// Why a stream has ended a session. tokio-postgres itself only reports to a waiting caller that the session is closed.
#[derive(Clone, Default)]
pub(super) struct Complaint(Arc<Mutex<Option<String>>>);

impl Complaint {
    /// The reason, once: for the answer that was awaited.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, reason: &io::Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_string());
    }
}

/// The server's process of a session, which tokio-postgres keeps to itself.
#[derive(Clone, Default)]
pub(super) struct Process(Arc<AtomicU32>);

impl Process {
    /// Its number; 0 until the server has told it.
    pub(super) fn id(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The stream of a session of tokio-postgres.
pub(super) struct BoundedStream {
    stream: BoxedStream,
    heads: Heads,
    complaint: Complaint,
}

impl BoundedStream {
    /// For a stream on which no message of the server's has been read.
    pub(super) fn new(stream: BoxedStream) -> BoundedStream {
        BoundedStream { stream, heads: Heads::default(), complaint: Complaint::default() }
    }

    /// Where the reason stands once the stream has ended the session.
    pub(super) fn complaint(&self) -> Complaint {
        self.complaint.clone()
    }

    /// Where the server's process stands once it has told it.
    pub(super) fn process(&self) -> Process {
        self.heads.process.clone()
    }
}

/// What is known of the messages that have passed.
#[derive(Default)]
struct Heads {
    /// The head that is being read: tag and length, of an authentication message the method, of a row the number of its values, of a
    /// description all, of BackendKeyData the process.
    head: Vec<u8>,
    /// Bytes of the message's body that are to come.
    body_left: usize,
    authenticated: bool,
    parameter_bytes: usize,
    answer: AnswerBudget,
    process: Process,
}

impl Heads {
    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let passed = self.body_left.min(bytes.len());
                self.body_left -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            self.read_head()?;
        }
        Ok(())
    }

    fn read_head(&mut self) -> io::Result<()> {
        let Some([tag, length @ ..]) = self.head.first_chunk::<5>().copied() else { return Ok(()) };
        let length = usize_from(u32::from_be_bytes(length));
        let most = if self.authenticated { ANSWER_BYTES_MAX } else { FRAME_BYTES_MAX_UNAUTHENTICATED };
        if length < 4 || length > most {
            return Err(invalid(format!("a message of {length} bytes")));
        }
        if tag == b'R' && !self.authenticated && length >= 8 {
            let Some(method) = self.head.get(5..9) else { return Ok(()) };
            self.authenticated = method == [0; 4];
        }
        if tag == b'S' {
            self.parameter_bytes = self.parameter_bytes.saturating_add(length);
            if self.parameter_bytes > PARAMETER_BYTES_MAX {
                return Err(invalid("settings without end".to_owned()));
            }
        }
        match tag {
            b'D' if length >= 6 => {
                let Some(values) = self.head.get(5..7).and_then(|count| count.first_chunk::<2>()) else {
                    return Ok(());
                };
                let fits = self.answer.take(length, u16::from_be_bytes(*values));
                fits.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
            }
            b'T' | b't' => {
                if length > DESCRIPTION_BYTES_MAX {
                    return Err(invalid(format!("a description of {length} bytes")));
                }
                let Some(body) = self.head.get(5..=length) else { return Ok(()) };
                let types = if tag == b'T' { types_of_columns(body) } else { types_of_parameters(body) };
                let types = types.ok_or_else(|| invalid("a malformed description".to_owned()))?;
                if let Some(unknown) = types.into_iter().find(|oid| Type::from_oid(*oid).is_none()) {
                    return Err(invalid(format!("values of type {unknown}, which was not asked for")));
                }
            }
            // BackendKeyData: the process, and a secret.
            b'K' if length >= 8 => {
                let Some(id) = self.head.get(5..9).and_then(|id| id.first_chunk::<4>()) else { return Ok(()) };
                self.process.0.store(u32::from_be_bytes(*id), Ordering::Relaxed);
            }
            // ReadyForQuery: another answer follows.
            b'Z' => self.answer = AnswerBudget::default(),
            _ => {}
        }
        self.body_left = length + 1 - self.head.len();
        self.head.clear();
        Ok(())
    }
}

/// The types of a RowDescription's columns; `None` where it is none.
fn types_of_columns(body: &[u8]) -> Option<Vec<u32>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut types = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        // A name; table and column; the type; its length, modifier and format.
        let end = rest.iter().position(|byte| *byte == 0)?;
        let fields = rest.get(end + 1..)?.first_chunk::<18>()?;
        types.push(u32::from_be_bytes(*fields.get(6..)?.first_chunk::<4>()?));
        rest = rest.get(end + 19..)?;
    }
    rest.is_empty().then_some(types)
}

/// The types of a ParameterDescription's parameters; `None` where it is none.
fn types_of_parameters(body: &[u8]) -> Option<Vec<u32>> {
    let (count, rest) = body.split_first_chunk::<2>()?;
    let (types, left) = rest.as_chunks::<4>();
    let fits = left.is_empty() && types.len() == usize::from(u16::from_be_bytes(*count));
    fits.then(|| types.iter().map(|oid| u32::from_be_bytes(*oid)).collect())
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server sends {what}"))
}

impl AsyncRead for BoundedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(this.heads.pass(read).inspect_err(|reason| this.complaint.set(reason)))
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("short");
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    /// However the bytes are cut.
    fn pass(heads: &mut Heads, bytes: &[u8], cut: usize) -> io::Result<()> {
        bytes.chunks(cut).try_for_each(|chunk| heads.pass(chunk))
    }

    #[test]
    fn messages_are_short_until_the_session_is_authenticated() {
        let long = message(b'D', &[0; FRAME_BYTES_MAX_UNAUTHENTICATED]);
        for cut in [1, 2, 7, 1 << 20] {
            for first in [message(b'R', &10_u32.to_be_bytes()), message(b'N', b"\0"), Vec::new()] {
                assert!(pass(&mut Heads::default(), &[first, long.clone()].concat(), cut).is_err());
            }
            let mut heads = Heads::default();
            let login = [message(b'R', b"\0\0\0\x0asasl"), message(b'R', &[0; 4]), message(b'K', b"\0\0\x01\x02key.")];
            let session = [login.concat(), message(b'Z', b"I"), long.clone()];
            assert!(pass(&mut heads, &session.concat(), cut).is_ok());
            assert_eq!(heads.process.id(), 258);
            assert!(heads.authenticated && heads.head.is_empty() && heads.body_left == 0);
            assert!(pass(&mut heads, b"D\x40\0\0\x01", cut).is_err(), "more than PostgreSQL's own limit");
            assert!(pass(&mut Heads::default(), b"R\0\0\0\x03", cut).is_err(), "no length");
        }
    }

    #[test]
    fn rows_of_one_answer_are_counted_however_short_they_are() {
        let short = message(b'D', &[0, 1, 0xff, 0xff, 0xff, 0xff]);
        for (row, rows) in [(short, ANSWER_BYTES_MAX / 250), (message(b'D', &[0; 1 << 20]), 500)] {
            let mut heads = Heads { authenticated: true, ..Heads::default() };
            let mut answer = |rows: usize| (0..rows).try_for_each(|_| heads.pass(&row));
            assert!(answer(rows).is_ok());
            assert!(answer(rows).is_err(), "an answer without end");
            let mut heads = Heads { authenticated: true, ..Heads::default() };
            for _ in 0..2 {
                assert!((0..rows).try_for_each(|_| heads.pass(&row)).is_ok(), "each answer is counted alone");
                assert!(heads.pass(&message(b'Z', b"I")).is_ok());
            }
        }
    }

    #[test]
    fn types_that_a_server_may_have_defined_end_the_session_before_any_query_for_them() {
        let column = |oid: u32| [&b"name\0"[..], &[0; 6], &oid.to_be_bytes(), &[0; 8]].concat();
        let rows = |oids: &[u32]| {
            let count = u16::try_from(oids.len()).expect("few").to_be_bytes();
            message(b'T', &[count.to_vec(), oids.iter().flat_map(|oid| column(*oid)).collect()].concat())
        };
        let parameters = |oids: &[u32]| {
            let count = u16::try_from(oids.len()).expect("few").to_be_bytes();
            message(b't', &[count.to_vec(), oids.iter().flat_map(|oid| oid.to_be_bytes()).collect()].concat())
        };
        // What tokio-postgres' own questions about types are of, and ours.
        let known = [16, 18, 19, 20, 23, 25, 26, 114, 701, 1009, 1028, 1184, 2249, 3220];
        for cut in [1, 3, 1 << 20] {
            let of = |bytes: &[u8]| pass(&mut Heads { authenticated: true, ..Heads::default() }, bytes, cut);
            assert!(of(&[rows(&known), parameters(&known), rows(&[]), parameters(&[])].concat()).is_ok());
            for unknown in [0, 9_999, 16_384, 100_000, u32::MAX] {
                assert!(of(&rows(&[25, unknown])).is_err(), "{unknown}");
                assert!(of(&parameters(&[25, unknown])).is_err(), "{unknown}");
            }
            assert!(of(&message(b'T', &[0, 1, b'a'])).is_err() && of(&message(b't', &[0, 2, 0, 0, 0, 25])).is_err());
            assert!(of(&message(b'T', &[0; DESCRIPTION_BYTES_MAX])).is_err());
        }
    }

    #[test]
    fn settings_are_not_reported_without_end() {
        let setting = message(b'S', &[b'x'; 60_000]);
        let mut heads = Heads::default();
        assert!(pass(&mut heads, &setting.repeat(17), 1 << 20).is_ok());
        assert!(pass(&mut heads, &setting, 1 << 20).is_err());
    }
}
