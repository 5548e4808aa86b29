//! The writing session: pipelined requests out, their answers in, several at a time.
//!
//! Stands between `destination::apply`, which writes pipelined requests and reads answers, and the destination server. The next
//! request is sent before the previous one is answered; answers come in the order of the requests. Sending and receiving
//! are driven together by [`WritingSession::answer`], so neither side can block the other.
//!
//! A caller that must be silent for longer than the session's idle timeouts allow pings by an empty pipelined request: one Sync. (TCP
//! keepalives do not count as a sign of life: a stopped process's kernel answers them.)
//!
//! Bounds: how many pipelined requests are under way is the caller's choice; how long an answer takes is bounded by the caller
//! too, who alone knows what an honest batch may need.

use std::collections::VecDeque;
use std::time::Duration;

use super::connection::{Connection, read_row};
use super::error::{ServerError, SessionError};
use super::pipelined_request::{Expectation, PipelinedAnswer, PipelinedRequest, StatementAnswer, Verb, rows_in_tag};
use super::slow_answers::{Awaiting, Bound};
use super::startup::{self, Startup};
use crate::config::ConnectionSettings;

const WRITING: &str = "writing to the destination";

/// A session that writes by pipelined requests.
pub struct WritingSession {
    connection: Connection,
    under_way: VecDeque<Vec<(Expectation, Verb)>>,
    current: TransferProgress,
    /// While a request is under way: since the last answer, or since it was sent.
    awaiting: Option<Awaiting>,
}

/// How far the oldest pipelined request's answers have been read.
#[derive(Default)]
struct TransferProgress {
    statement: usize,
    row: Option<Vec<Option<String>>>,
    answers: Vec<StatementAnswer>,
    committed: bool,
    failure: Option<(usize, ServerError)>,
    /// The verb of a statement that was answered with another tag.
    replaced: Option<(&'static str, Vec<u8>)>,
}

fn awaiting(connection: &Connection) -> Awaiting {
    Awaiting::begin(connection.server(), WRITING, Bound::Setting("destination.timeout"))
}

impl WritingSession {
    /// Opens the session with `settings` of the server's.
    ///
    /// # Errors
    /// [`SessionError`] says why no host would do.
    pub async fn connect(
        connection: &ConnectionSettings,
        purpose: &str,
        settings: &[(&str, String)],
    ) -> Result<WritingSession, SessionError> {
        let startup = Startup { replication: false, purpose, settings };
        let connection = startup::open(connection, &startup).await?;
        Ok(WritingSession {
            connection,
            under_way: VecDeque::new(),
            current: TransferProgress::default(),
            awaiting: None,
        })
    }

    /// The server process of this session.
    pub fn process_id(&self) -> u32 {
        self.connection.process_id()
    }

    /// Pipelined requests that are sent or queued and not answered.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Ends a pipelined request with its Sync and queues it; [`WritingSession::answer`] sends it.
    pub fn send(&mut self, mut request: PipelinedRequest) {
        request.sync();
        let PipelinedRequest { bytes, large, expectations } = request;
        if !large.is_empty() {
            PipelinedRequest::pieces(bytes, large).for_each(|piece| self.connection.send_shared(piece));
        } else if self.connection.outgoing().is_empty() {
            *self.connection.outgoing() = bytes;
        } else {
            self.connection.send(&bytes);
        }
        self.under_way.push_back(expectations);
        self.awaiting.get_or_insert_with(|| awaiting(&self.connection));
    }

    /// Starts to send what is queued, as far as the socket takes it at once.
    ///
    /// # Errors
    /// [`SessionError`] when the connection is broken.
    pub async fn push(&mut self) -> Result<(), SessionError> {
        self.connection.send_down_to(usize::MAX, WRITING).await
    }

    /// The oldest pipelined request's answer. Cancel-safe.
    ///
    /// # Errors
    /// [`SessionError`] when the session is lost; what became of the requests under way is then unknown. A failed request
    /// is no error here: see [`PipelinedAnswer::failure`].
    ///
    /// # Panics
    /// When no pipelined request is under way.
    pub async fn answer(&mut self) -> Result<PipelinedAnswer, SessionError> {
        assert!(!self.under_way.is_empty(), "an answer is awaited only for a pipelined request that was sent");
        loop {
            let frame = self.connection.next_frame(WRITING).await?;
            match frame.tag {
                // ParseComplete, BindComplete, CloseComplete, NoData, RowDescription, CopyInResponse: nothing to learn.
                b'1' | b'2' | b'3' | b'n' | b'T' | b't' | b'G' => {}
                b'C' | b'I' | b's' => self.statement_done(&frame.body),
                b'D' => {
                    let row = read_row(&frame.body);
                    self.current.row = Some(row.ok_or_else(|| SessionError::protocol(WRITING, "malformed DataRow"))?);
                }
                b'E' => {
                    let error = ServerError::read(&frame.body);
                    if error.fatal {
                        return Err(SessionError::from_server(WRITING, error));
                    }
                    let failed = (self.current.statement, error);
                    self.current.failure.get_or_insert(failed);
                }
                b'Z' => {
                    self.under_way.pop_front();
                    self.awaiting = (!self.under_way.is_empty()).then(|| awaiting(&self.connection));
                    let TransferProgress { statement: _, row: _, answers, committed, failure, replaced } =
                        std::mem::take(&mut self.current);
                    // Of a pipelined request that has failed nothing is stored.
                    if let (Some((sent, tag)), None) = (replaced, &failure) {
                        return Err(SessionError::replaced(sent, &tag));
                    }
                    let in_transaction = frame.body.first() != Some(&b'I');
                    return Ok(PipelinedAnswer { answers, committed, failure, in_transaction });
                }
                tag => return Err(SessionError::protocol(WRITING, format!("message {}", tag.escape_ascii()))),
            }
        }
    }

    fn statement_done(&mut self, tag: &[u8]) {
        let expectations = self.under_way.front();
        let expected = expectations.and_then(|all| all.get(self.current.statement)).copied();
        let (expectation, verb) = expected.unwrap_or((Expectation::Nothing, Verb::Any));
        if !verb.is_of(tag) {
            self.current.replaced.get_or_insert((verb.as_str(), tag.to_vec()));
        }
        match expectation {
            Expectation::Nothing => {}
            Expectation::Count => self.current.answers.push(StatementAnswer::Count(rows_in_tag(tag))),
            Expectation::Row => self.current.answers.push(StatementAnswer::Row(self.current.row.take())),
            // After an error inside, a COMMIT is answered ROLLBACK, without an error.
            Expectation::Commit => self.current.committed = tag.starts_with(b"COMMIT\0"),
        }
        self.current.row = None;
        self.current.statement += 1;
    }

    /// Sends one pipelined request and waits for its answer, with none other under way.
    ///
    /// # Errors
    /// [`SessionError`]: the session is lost, the pipelined request failed, or no answer came `within` the bound.
    pub async fn round_trip(
        &mut self,
        doing: &'static str,
        request: PipelinedRequest,
        within: Duration,
    ) -> Result<PipelinedAnswer, SessionError> {
        self.send(request);
        let server = self.connection.server().clone();
        let answer = super::connection::bounded(&server, within, doing, self.answer()).await?;
        match answer.failure {
            Some((_, error)) => Err(SessionError::from_server(doing, error)),
            None => Ok(answer),
        }
    }

    /// Resolves when the server ends the session, while no pipelined request is under way. Cancel-safe.
    pub(super) async fn ended(&mut self, doing: &'static str) -> SessionError {
        match self.connection.next_answer(doing).await {
            Ok(frame) => SessionError::protocol(doing, format!("message {}", frame.tag.escape_ascii())),
            Err(error) => error,
        }
    }

    /// Ends the session; a transaction that is still open is rolled back by the server.
    pub async fn close(self) {
        self.connection.close().await;
    }

    /// The same, and waits a moment until the server has let go of what the session held.
    pub async fn close_and_wait(self) {
        self.connection.close_and_wait().await;
    }
}
