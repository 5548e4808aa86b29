//! One authenticated connection: frames in, bytes out, both ways at once.
//!
//! Stands on the byte stream that `connect` opened and `startup` authenticated; under `replication`, `writing` and
//! `copy`. A frame's body is a slice of the read buffer. Reading and writing are driven together, because a client that
//! only writes while the server only answers blocks both forever (pgcopydb#823).
//!
//! Cancel-safe: all state is in [`Connection`], so a caller may drop any of these futures at an await and call again.
//!
//! Bounds: a frame is at most [`FRAME_BYTES_MAX`], which is PostgreSQL's own limit for a message
//! (`PQ_LARGE_MESSAGE_LIMIT` and MaxAllocSize, 14 to 18), and at most 64 KiB before the server has proved who we are
//! to it. Memory grows with what has arrived, not with what a length claims. The rows of an answer take [`ANSWER_BYTES_MAX`] at most.
//! Of the server's settings [`PARAMETERS_MAX`] are kept. What is outgoing is bounded by the callers: a pipelined request, a piece of
//! COPY.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::error::{ServerError, SessionError};
use super::pipelined_request::PipelinedRequest;
use super::slow_answers::{Awaiting, Bound, Server};
use crate::config::Host;
use crate::pg::usize_from;
use crate::session::stream::{BoxedStream, ByteStream};

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> ByteStream for T {}

/// Longest frame: 1 GiB.
pub(super) const FRAME_BYTES_MAX: usize = 1 << 30;
/// Longest frame before authentication: as much as any honest server needs, and no more.
pub(super) const FRAME_BYTES_MAX_UNAUTHENTICATED: usize = 64 << 10;
/// What the rows of one answer may take in memory: 512 MiB. Catalog answers are the longest that are gathered; they hold 300 bytes of each
/// column at most, so that 10,000 tables of 150 columns fit. Rows that are copied or streamed are no answers.
pub(super) const ANSWER_BYTES_MAX: usize = 512 << 20;
/// Maximum memory of a row in addition to its message: the row itself, in a vector that has just doubled, and its allocations.
const ROW_BYTES: usize = 192;
/// The same of each value of a row.
const VALUE_BYTES: usize = 32;
/// How many settings of the server's are kept, and how long each may be with its name.
const PARAMETERS_MAX: usize = 100;
const PARAMETER_BYTES_MAX: usize = 4 << 10;
/// What is read at once. One allocation of this size carries the values of many rows.
const READ_BYTES: usize = 128 << 10;
/// The buffer of a frame that is larger is not kept for the next ones.
const KEPT_BYTES: usize = 1 << 20;
/// Room for less than this is not worth a system call.
const READ_BYTES_LEAST: usize = 8 << 10;

/// One backend message.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The message's type.
    pub tag: u8,
    /// Its body, without tag and length.
    pub body: Bytes,
}

impl Frame {
    /// Takes the first frame of what has arrived; `None` when it has not arrived whole.
    ///
    /// # Errors
    /// The length that it claims, when that is none or longer than `bytes_max`.
    pub fn take(incoming: &mut BytesMut, bytes_max: usize) -> Result<Option<Frame>, usize> {
        let Some([tag, length @ ..]) = incoming.first_chunk::<5>().copied() else { return Ok(None) };
        let length = usize_from(u32::from_be_bytes(length));
        if length < 4 || length > bytes_max {
            return Err(length);
        }
        if incoming.len() <= length {
            return Ok(None);
        }
        let mut body = incoming.split_to(length + 1).freeze();
        body.advance(5);
        Ok(Some(Frame { tag, body }))
    }
}

/// What the rows of one answer have taken of [`ANSWER_BYTES_MAX`].
#[derive(Default)]
pub(super) struct AnswerBudget {
    taken: usize,
}

impl AnswerBudget {
    /// Counts a row, by the length of its message and the number of its values.
    ///
    /// # Errors
    /// The answer is too large, in words.
    pub(super) fn take(&mut self, message_bytes: usize, values: u16) -> Result<(), String> {
        self.taken = self.taken.saturating_add(message_bytes + ROW_BYTES + VALUE_BYTES * usize::from(values));
        match self.taken > ANSWER_BYTES_MAX {
            true => Err(format!("its rows take more than {} MiB", ANSWER_BYTES_MAX >> 20)),
            false => Ok(()),
        }
    }
}

/// An open connection to a server.
pub struct Connection {
    stream: BoxedStream,
    host: Host,
    incoming: BytesMut,
    /// Pieces that are sent from where they lie, before `outgoing`.
    shared: VecDeque<Bytes>,
    outgoing: BytesMut,
    unflushed: bool,
    frame_bytes_max: usize,
    parameters: BTreeMap<String, String>,
    server: Server,
}

impl Connection {
    pub(super) fn new(stream: BoxedStream, host: Host) -> Connection {
        let server = Server { host: host.to_string().into(), process_id: 0 };
        Connection {
            stream,
            host,
            incoming: BytesMut::new(),
            shared: VecDeque::new(),
            outgoing: BytesMut::new(),
            unflushed: false,
            frame_bytes_max: FRAME_BYTES_MAX_UNAUTHENTICATED,
            parameters: BTreeMap::new(),
            server,
        }
    }

    pub(super) fn authenticated(&mut self) {
        self.frame_bytes_max = FRAME_BYTES_MAX;
    }

    pub(super) fn set_process_id(&mut self, process_id: u32) {
        self.server.process_id = process_id;
    }

    /// The server process that serves this connection.
    pub fn process_id(&self) -> u32 {
        self.server.process_id
    }

    /// Who answers.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// The host that answered.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A setting that the server reports by itself, as of now (ParameterStatus).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The bytes that the next drive sends. Append only.
    pub(super) fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Bytes that are not handed to the operating system yet.
    pub(super) fn outgoing_bytes(&self) -> usize {
        self.shared.iter().map(Bytes::len).sum::<usize>() + self.outgoing.len()
    }

    /// Appends bytes that are already framed.
    pub(super) fn send(&mut self, framed: &[u8]) {
        self.outgoing.extend_from_slice(framed);
    }

    /// Appends bytes that are already framed, without copying them.
    pub(super) fn send_shared(&mut self, framed: Bytes) {
        if !self.outgoing.is_empty() {
            self.shared.push_back(self.outgoing.split().freeze());
        }
        if !framed.is_empty() {
            self.shared.push_back(framed);
        }
    }

    /// A frame that has already arrived, other than the notices and settings that may come at any time.
    pub(super) fn ready_frame(&mut self, doing: &'static str) -> Result<Option<Frame>, SessionError> {
        while let Some(frame) = Frame::take(&mut self.incoming, self.frame_bytes_max).map_err(|length| {
            SessionError::protocol(doing, format!("a message that claims to be {length} bytes long"))
        })? {
            if frame.body.len() > KEPT_BYTES {
                self.give_back();
            }
            match frame.tag {
                b'N' | b'A' => {}
                b'S' => self.learn(&frame.body),
                _ => return Ok(Some(frame)),
            }
        }
        Ok(None)
    }

    /// Replaces the buffer behind a large frame: its memory is then the frame's alone, and is freed with it.
    fn give_back(&mut self) {
        let rest = std::mem::take(&mut self.incoming);
        self.incoming = BytesMut::with_capacity(READ_BYTES.max(rest.len()));
        self.incoming.extend_from_slice(&rest);
    }

    /// A setting that the server reports. An honest one reports two dozen; whatever else comes is nobody's to keep.
    fn learn(&mut self, body: &[u8]) {
        let mut texts = body.split(|b| *b == 0).map(|text| String::from_utf8_lossy(text).into_owned());
        if let (Some(name), Some(value)) = (texts.next(), texts.next())
            && body.len() <= PARAMETER_BYTES_MAX
            && (self.parameters.len() < PARAMETERS_MAX || self.parameters.contains_key(&name))
        {
            self.parameters.insert(name, value);
        }
    }

    /// The next frame; what is outgoing is sent meanwhile.
    pub(super) async fn next_frame(&mut self, doing: &'static str) -> Result<Frame, SessionError> {
        loop {
            if let Some(frame) = self.ready_frame(doing)? {
                return Ok(frame);
            }
            self.receive(doing).await?;
        }
    }

    /// Bytes that have arrived and were not taken yet, for callers that pass frames on in part.
    pub(super) fn incoming(&mut self) -> &mut BytesMut {
        &mut self.incoming
    }

    /// Waits until more has arrived; what is outgoing is sent meanwhile.
    pub(super) async fn receive(&mut self, doing: &'static str) -> Result<(), SessionError> {
        let read = poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            self.poll_receive(cx)
        });
        match read.await.map_err(|error| SessionError::lost(doing, error))? {
            0 => Err(SessionError::closed(doing)),
            _ => Ok(()),
        }
    }

    /// The next frame, as an error when it is an ErrorResponse.
    pub(super) async fn next_answer(&mut self, doing: &'static str) -> Result<Frame, SessionError> {
        let frame = self.next_frame(doing).await?;
        match frame.tag {
            b'E' => Err(SessionError::from_server(doing, ServerError::read(&frame.body))),
            _ => Ok(frame),
        }
    }

    /// Sends until at most `left` bytes are outgoing; takes in what arrives meanwhile, up to `READ_BYTES`.
    pub(super) async fn send_down_to(&mut self, left: usize, doing: &'static str) -> Result<(), SessionError> {
        poll_fn(|cx| {
            loop {
                let before = self.outgoing_bytes();
                if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                    return Poll::Ready(Err(error));
                }
                if self.outgoing_bytes() <= left && !(left == 0 && self.unflushed) {
                    return Poll::Ready(Ok(()));
                }
                // The server may wait for us to read what it has to say before it reads on.
                let received = self.incoming.len() < READ_BYTES && self.poll_receive(cx)?.is_ready();
                if !received && self.outgoing_bytes() == before {
                    return Poll::Pending;
                }
            }
        })
        .await
        .map_err(|error| SessionError::lost(doing, error))
    }

    /// Sends everything that is outgoing.
    pub(super) async fn flush(&mut self, doing: &'static str) -> Result<(), SessionError> {
        self.send_down_to(0, doing).await
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.shared.is_empty() || !self.outgoing.is_empty() {
            let next = self.shared.front().map_or(&self.outgoing[..], |piece| piece);
            match Pin::new(&mut self.stream).poll_write(cx, next) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => {
                    self.sent(sent);
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                poll @ (Poll::Pending | Poll::Ready(Err(_))) => return poll,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn sent(&mut self, bytes: usize) {
        match self.shared.front_mut() {
            Some(piece) => {
                piece.advance(bytes);
                if piece.is_empty() {
                    self.shared.pop_front();
                }
            }
            None => self.outgoing.advance(bytes),
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Used up before more is taken: rows hold on to the whole allocation that they came in. A long frame doubles it,
        // as far as it has arrived, without trusting its claimed length.
        if self.incoming.capacity() - self.incoming.len() < READ_BYTES_LEAST {
            self.incoming.reserve(READ_BYTES);
        }
        pin!(self.stream.read_buf(&mut self.incoming)).poll(cx)
    }

    /// Runs SQL by the simple protocol and returns the rows of its last statement as text.
    ///
    /// In that protocol a text may hold any number of statements: so it takes only what stands in the program's own source.
    /// What was made at run time goes through [`Connection::statements`].
    ///
    /// # Errors
    /// [`SessionError`]: the server's error, a lost connection, or no answer `within` the bound.
    pub async fn simple_query(
        &mut self,
        sql: &'static str,
        doing: &'static str,
        within: Duration,
    ) -> Result<Vec<Vec<Option<String>>>, SessionError> {
        self.replication_command(sql, doing, within).await
    }

    /// Runs a command of the replication protocol, for which a walsender takes the simple protocol only ("replication connections
    /// do not support the extended query protocol", 14 to 18). What is put into a command is a number, or a name of a slot: nothing
    /// that could end it.
    pub(super) async fn replication_command(
        &mut self,
        command: &str,
        doing: &'static str,
        within: Duration,
    ) -> Result<Vec<Vec<Option<String>>>, SessionError> {
        frontend::query(command, &mut self.outgoing).map_err(|error| SessionError::lost(doing, error))?;
        let server = self.server.clone();
        let rows = bounded(&server, within, doing, self.read_rows(doing)).await;
        rows.map_err(|error| error.met_by(server.process_id))
    }

    /// Runs statements that were made at run time, each alone by the extended protocol, in which a second statement in a text is a
    /// syntax error. They are sent together; behind one that fails none is run.
    ///
    /// # Errors
    /// [`SessionError`]: the server's error, a lost connection, or no answer `within` the bound.
    pub async fn statements(
        &mut self,
        sql: &[&str],
        doing: &'static str,
        within: Duration,
    ) -> Result<(), SessionError> {
        let mut request = PipelinedRequest::new();
        sql.iter().for_each(|statement| request.run(statement));
        request.sync();
        self.outgoing.extend_from_slice(&request.bytes);
        let server = self.server.clone();
        let rows = bounded(&server, within, doing, self.read_rows(doing)).await;
        rows.map(|_| ()).map_err(|error| error.met_by(server.process_id))
    }

    async fn read_rows(&mut self, doing: &'static str) -> Result<Vec<Vec<Option<String>>>, SessionError> {
        let mut rows = Vec::new();
        let mut budget = AnswerBudget::default();
        let mut error = None;
        loop {
            let frame = self.next_frame(doing).await?;
            match frame.tag {
                b'T' => rows.clear(),
                b'D' => {
                    let values = frame.body.first_chunk::<2>().map_or(0, |count| u16::from_be_bytes(*count));
                    if let Err(what) = budget.take(frame.body.len(), values) {
                        self.hang_up();
                        return Err(SessionError::answer(doing, what));
                    }
                    rows.push(read_row(&frame.body).ok_or_else(|| SessionError::protocol(doing, "malformed DataRow"))?)
                }
                // CommandComplete, EmptyQueryResponse; ParseComplete, BindComplete.
                b'C' | b'I' | b'1' | b'2' => {}
                b'E' => {
                    let server = ServerError::read(&frame.body);
                    let fatal = server.fatal;
                    error.get_or_insert(SessionError::from_server(doing, server));
                    if fatal {
                        break;
                    }
                }
                b'Z' => break,
                tag => return Err(SessionError::protocol(doing, format!("message {}", tag.escape_ascii()))),
            }
        }
        error.map_or(Ok(rows), Err)
    }

    /// Ends the connection at once, for a server whose answer has no end: whatever is asked next is answered with the loss.
    fn hang_up(&mut self) {
        self.stream = Box::new(tokio::io::empty());
        self.incoming = BytesMut::new();
    }

    /// Says goodbye. The server ends the session whether or not it hears it.
    pub async fn close(mut self) {
        frontend::terminate(&mut self.outgoing);
        // A second is plenty for five bytes; a peer that does not take them is gone anyway.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.flush("closing")).await;
    }

    /// The same, and waits a second at most for the server's end of it: its process closes the connection when it has let go of
    /// everything else.
    pub async fn close_and_wait(mut self) {
        frontend::terminate(&mut self.outgoing);
        let ended = async { while self.receive("closing").await.is_ok() {} };
        // A server that takes longer is no reason to wait: what needs its place says so.
        let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
    }
}

/// Bounds a wait for a server.
pub(super) async fn bounded<T>(
    server: &Server,
    within: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    let _awaiting = Awaiting::begin(server, doing, Bound::After(within));
    tokio::time::timeout(within, work).await.unwrap_or(Err(SessionError::Timeout { doing, within, process_id: None }))
}

/// The values of a DataRow in text format.
pub(super) fn read_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        match i32::from_be_bytes(*length) {
            -1 => values.push(None),
            length => {
                let (value, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                values.push(Some(String::from_utf8_lossy(value).into_owned()));
                rest = after;
            }
        }
    }
    rest.is_empty().then_some(values)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn parameter(name: &str, value: &str) -> Vec<u8> {
        let body = format!("{name}\0{value}\0");
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [b"S".as_slice(), &length, body.as_bytes()].concat()
    }

    #[tokio::test]
    async fn settings_that_a_server_makes_up_are_not_kept_without_end() {
        let (mut server, ours) = tokio::io::duplex(1 << 20);
        let mut connection =
            Connection::new(Box::new(ours), Host::Tcp { host: "test".to_owned(), address: None, port: 1 });
        let sending = tokio::spawn(async move {
            server.write_all(&parameter("server_version", "17.1")).await.unwrap();
            server.write_all(&parameter("long", &"x".repeat(10_000))).await.unwrap();
            for n in 0..10_000 {
                server.write_all(&parameter(&format!("made_up_{n}"), "value")).await.unwrap();
            }
            server.write_all(&parameter("server_version", "17.2")).await.unwrap();
            server.write_all(b"Z\0\0\0\x05I").await.unwrap();
        });
        assert_eq!(connection.next_frame("testing").await.unwrap().tag, b'Z');
        sending.await.unwrap();
        assert_eq!(connection.parameters.len(), PARAMETERS_MAX);
        assert_eq!(connection.parameter("server_version"), Some("17.2"), "what is known is kept up to date");
        assert_eq!(connection.parameter("long"), None);
    }

    #[tokio::test]
    async fn an_answer_without_end_ends_the_connection() {
        let (mut server, ours) = tokio::io::duplex(1 << 20);
        let mut connection =
            Connection::new(Box::new(ours), Host::Tcp { host: "test".to_owned(), address: None, port: 1 });
        connection.authenticated();
        let rows = b"D\0\0\0\x0a\0\x01\xff\xff\xff\xff".repeat(10_000);
        let sending = tokio::spawn(async move { while server.write_all(&rows).await.is_ok() {} });
        let within = Duration::from_secs(600);
        let error = connection.simple_query("IDENTIFY_SYSTEM", "testing", within).await.unwrap_err();
        let said = "testing: could not understand the server's answer: its rows take more than 512 MiB";
        assert_eq!(error.to_string(), said);
        // The server learns of it, and nothing waits for the rest.
        sending.await.unwrap();
        let error = connection.simple_query("IDENTIFY_SYSTEM", "testing", within).await.unwrap_err();
        assert!(matches!(error, SessionError::Lost { .. }), "{error}");
    }
}
