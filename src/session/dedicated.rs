//! A session on a thread of its own, which stays alive whatever the process's other threads do.
//!
//! Opened by `destination::leadership` for the leader's lock. Its thread has a runtime of its own and does nothing else than
//! connect, ask what it is given to ask, and ping:
//!
//! ```text
//! the runtime that does the work          the thread "headwater-lock"
//!   open ───────────────────────────────▶ connect
//!   ask ───── question, at most one ────▶ pipelined request, answer ─▶ back to the asker
//!   lost ◀──── the error that ended it ── ping every `ping_every`; listens for the server in between
//!   close, or dropped ──────────────────▶ Terminate, end of the thread
//! ```
//!
//! So a runtime that computes for a minute, encodes a row of 200 MB or is starved by the kernel loses no session that the
//! server ends when it is silent. A process that is frozen as a whole is silent here, too, and loses it: that is the purpose.
//!
//! Bounds: one question at a time, whose asker waits; each answer, a ping's too, within `timeout`.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::error::SessionError;
use super::pipelined_request::{PipelinedAnswer, PipelinedRequest};
use super::writing::WritingSession;
use crate::config::ConnectionSettings;

const KEEPING: &str = "keeping the leader's lock";
/// Linux keeps 15 bytes of a thread's name.
const THREAD: &str = "headwater-lock";
/// How long [`DedicatedSession::close`] waits for the server to let go of what the session holds.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// How a dedicated session is opened and kept.
#[derive(Clone, Debug)]
pub struct DedicatedSettings {
    /// Where, and as whom.
    pub connection: ConnectionSettings,
    /// What the session is for, behind application_name.
    pub purpose: String,
    /// Settings of the server's.
    pub settings: Vec<(&'static str, String)>,
    /// How often the server hears from it.
    pub ping_every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// A session on a thread of its own. Dropping it ends both.
pub struct DedicatedSession {
    process_id: u32,
    questions: mpsc::Sender<SessionQuestion>,
    lost: oneshot::Receiver<SessionError>,
}

struct SessionQuestion {
    doing: &'static str,
    request: PipelinedRequest,
    answer: oneshot::Sender<Result<PipelinedAnswer, SessionError>>,
}

impl DedicatedSession {
    /// Opens the session on a new thread.
    ///
    /// # Errors
    /// [`SessionError`] says why no host would do, or that no thread could be started.
    pub async fn open(settings: DedicatedSettings) -> Result<DedicatedSession, SessionError> {
        let (opened, opening) = oneshot::channel();
        let (questions, asked) = mpsc::channel(1);
        let (losing, lost) = oneshot::channel();
        std::thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn(move || run(settings, opened, asked, losing))
            .map_err(|error| SessionError::lost("starting a thread for the leader's lock", error))?;
        let process_id = opening.await.unwrap_or_else(|_| Err(SessionError::closed(KEEPING)))?;
        Ok(DedicatedSession { process_id, questions, lost })
    }

    /// The server process of this session.
    pub fn process_id(&self) -> u32 {
        self.process_id
    }

    /// Sends one pipelined request and waits for its answer.
    ///
    /// # Errors
    /// [`SessionError`]: the session is lost, the pipelined request failed, or no answer came in time.
    pub async fn ask(&self, doing: &'static str, request: PipelinedRequest) -> Result<PipelinedAnswer, SessionError> {
        let (answer, answered) = oneshot::channel();
        let question = SessionQuestion { doing, request, answer };
        // A thread that has ended takes no question, and drops one that it has taken.
        self.questions.send(question).await.map_err(|_| SessionError::closed(doing))?;
        answered.await.unwrap_or_else(|_| Err(SessionError::closed(doing)))
    }

    /// Resolves when the session is lost. May be dropped at any time and called again.
    pub async fn lost(&mut self) -> SessionError {
        if self.lost.is_terminated() {
            return SessionError::closed(KEEPING);
        }
        (&mut self.lost).await.unwrap_or_else(|_| SessionError::closed(KEEPING))
    }

    /// Ends the session, and waits a moment until the server has let go of what it held.
    pub async fn close(self) {
        let DedicatedSession { process_id: _, questions, lost } = self;
        drop(questions);
        // The thread drops its end when it is done. A server that takes longer is no reason to wait.
        if !lost.is_terminated() {
            let _ = tokio::time::timeout(CLOSE_MAX, lost).await;
        }
    }
}

fn run(
    settings: DedicatedSettings,
    opened: oneshot::Sender<Result<u32, SessionError>>,
    questions: mpsc::Receiver<SessionQuestion>,
    lost: oneshot::Sender<SessionError>,
) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            runtime.block_on(keep(settings, opened, questions, lost));
            // A look-up of a host's name may still run: nobody wants its answer.
            runtime.shutdown_background();
        }
        // An opener that has given up needs no answer.
        Err(error) => drop(opened.send(Err(SessionError::lost(KEEPING, error)))),
    }
}

async fn keep(
    settings: DedicatedSettings,
    mut opened: oneshot::Sender<Result<u32, SessionError>>,
    mut questions: mpsc::Receiver<SessionQuestion>,
    lost: oneshot::Sender<SessionError>,
) {
    let DedicatedSettings { connection, purpose, settings, ping_every, timeout } = settings;
    let connecting = WritingSession::connect(&connection, &purpose, &settings);
    let connected = tokio::select! {
        connected = connecting => connected,
        () = opened.closed() => return,
    };
    let mut session = match connected {
        Ok(session) => session,
        Err(error) => return drop(opened.send(Err(error))),
    };
    if opened.send(Ok(session.process_id())).is_err() {
        return session.close().await;
    }
    let error = loop {
        tokio::select! {
            question = questions.recv() => {
                let Some(SessionQuestion { doing, request, answer }) = question else {
                    session.close_and_wait().await;
                    return;
                };
                let answered = session.round_trip(doing, request, timeout).await;
                // What the server refuses does not end the session.
                let ended = answered.as_ref().is_err_and(|error| error.server().is_none_or(|server| server.fatal));
                // An asker that has gone wants no answer.
                let _ = answer.send(answered);
                if ended {
                    return;
                }
            }
            error = session.ended(KEEPING) => break error,
            () = tokio::time::sleep(ping_every) => {
                if let Err(error) = session.round_trip("pinging the destination", PipelinedRequest::new(), timeout).await {
                    break error;
                }
            }
        }
    };
    // Nobody listens any more: then nobody believes to lead either.
    let _ = lost.send(error);
}
