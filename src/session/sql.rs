//! Ordinary SQL sessions: tokio-postgres over our own streams.
//!
//! Serves catalog queries, bookkeeping, snapshot control and whatever the commands ask, on both sides. Hosts, TLS and
//! passwords are `connect`'s, so that these sessions and our own reach the same server in the same way;
//! tokio-postgres is handed a stream on which TLS, if any, is already in force.
//!
//! A statement that a session has asked before is neither parsed nor planned again ([`super::statement_cache`]; plans do not depend on
//! parameters, which are names, OIDs and keys).
//!
//! Bounds: every statement through [`SqlClient`] has one in time, and each answer has one in memory (`bounded`), at which the session
//! ends; after a statement that exceeds one, every other one fails with the same error.

use std::collections::{BTreeSet, VecDeque};
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use futures_util::future::maybe_done;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, oneshot};
use tokio_postgres::config::{ChannelBinding as TokioChannelBinding, SslMode as TokioSslMode};
use tokio_postgres::tls::{ChannelBinding as BindingData, TlsConnect, TlsStream};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Config, Statement};

use super::bounded::{BoundedStream, Complaint};
use super::connect::{self, Opened, ServerKind};
use super::error::{MAJOR_MIN, SessionError};
use super::password_file;
use super::row::Row;
use super::settings;
use super::slow_answers::{self, Awaiting, Bound, Server};
use super::startup::{PASSWORD_MISSING, UNBOUND};
use super::statement_cache::StatementCache;
use crate::config::{ChannelBinding, ConnectionSettings};
use crate::pg::Ident;
use crate::pg::quote_literal;

/// How a SQL session is opened.
#[derive(Clone, Debug)]
pub struct Sql {
    /// Where, and as whom.
    pub connection: ConnectionSettings,
    /// What the session is for, behind application_name.
    pub purpose: &'static str,
    /// The bound of every statement.
    pub timeout: Duration,
}

impl Sql {
    /// Opens the session with the first host that will do, with the settings of every session.
    ///
    /// # Errors
    /// [`SessionError`] says why no host would do.
    pub async fn connect(&self) -> Result<SqlClient, SessionError> {
        connect::first_host(&self.connection, |opened| self.start(opened)).await
    }

    async fn start(&self, opened: Opened) -> Result<SqlClient, SessionError> {
        let Opened { stream, host, wanted, tls, channel_binding } = opened;
        let to = &self.connection;
        let mut config = Config::new();
        config
            .user(&to.user)
            .dbname(&to.database)
            .application_name(format!("{} {}", to.application_name, self.purpose))
            .channel_binding(match to.channel_binding {
                ChannelBinding::Disable => TokioChannelBinding::Disable,
                ChannelBinding::Prefer => TokioChannelBinding::Prefer,
                ChannelBinding::Require => TokioChannelBinding::Require,
            });
        let password = password_file::password_for(to, &host)?;
        if let Some(password) = &password {
            config.password(password.reveal());
        }
        let planned_once = ("plan_cache_mode", "force_generic_plan".to_owned());
        config.options(settings::as_options(to, &[planned_once]));
        // TLS is already in force: "direct" makes tokio-postgres take the stream over without a request of its own.
        config.ssl_mode(if tls.is_some() { TokioSslMode::Require } else { TokioSslMode::Disable });
        config.ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
        let stream = BoundedStream::new(stream);
        let (complaint, process) = (stream.complaint(), stream.process());
        let connecting = config.connect_raw(stream, Negotiated { channel_binding });
        let (client, connection) = connecting.await.map_err(|error| {
            let error = SessionError::from_sql("connecting", &error);
            // What tokio-postgres finds wrong by itself at this stage concerns the authentication.
            if let SessionError::Answer { what, .. } = error {
                return SessionError::Authentication { host: host.to_string(), reason: in_our_words(what) };
            }
            error.without_password(password.as_ref())
        })?;
        let version = connection.parameter("server_version").map(str::to_owned);
        ServerKind::reported(|name| connection.parameter(name)).check(wanted, &host)?;
        let too_old = settings::major(version.as_deref()).is_some_and(|major| major < MAJOR_MIN);
        if let Some(version) = version.as_ref().filter(|_| too_old) {
            return Err(SessionError::TooOld { version: version.clone() });
        }
        let (owner, dropped) = oneshot::channel();
        let notified = Arc::new(Notify::new());
        let connection = run(connection, Arc::clone(&notified));
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            // Callers that wait for an answer learn that the connection has ended, and what the stream complains about.
            tokio::select! {
                () = &mut connection => {}
                Err(_) = dropped => {
                    // Without a client it says goodbye and ends, unless the server does not take it.
                    let _ = tokio::time::timeout(GOODBYE_MAX, connection).await;
                }
            }
        });
        let server = Server { host: host.to_string().into(), process_id: process.id() };
        let late = OnceLock::new();
        let prepared = Mutex::default();
        let timeout = self.timeout;
        let client = SqlClient { client, server, timeout, late, tls, complaint, prepared, notified, _owner: owner };
        for sql in settings::afterwards(to, version.as_deref()) {
            client.batch("setting up a session", sql).await?;
        }
        Ok(client)
    }
}

/// Passes messages on until the connection ends, which everybody who waits for an answer learns from the client.
async fn run<S, T>(mut connection: tokio_postgres::Connection<S, T>, notified: Arc<Notify>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if matches!(message, AsyncMessage::Notification(_)) {
            notified.notify_one();
        }
    }
}

/// Requests without an answer that a session sends at most: while the server works on one, others are on their way.
const PIPELINED_MAX: usize = 128;

/// Every role may notify, as often as it likes.
const NOTIFIED_APART: Duration = Duration::from_millis(50);

/// How long a session that nobody needs may take to end.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// An open SQL session. Dropping it ends the session.
pub struct SqlClient {
    client: tokio_postgres::Client,
    server: Server,
    timeout: Duration,
    /// What has exceeded its bound. The server is busy with it, and would answer nothing else before.
    late: OnceLock<Late>,
    tls: Option<String>,
    complaint: Complaint,
    /// No lock is held while anything is awaited.
    prepared: Mutex<StatementCache<Statement>>,
    notified: Arc<Notify>,
    _owner: oneshot::Sender<()>,
}

impl SqlClient {
    /// Runs one statement with parameters and returns its rows.
    ///
    /// # Errors
    /// [`SessionError`], saying what was being `doing`.
    pub async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SessionError> {
        let rows = self.answer(doing, sql, async |statement| self.client.query(&statement, parameters).await).await?;
        Ok(rows.into_iter().map(|row| Row::new(doing, row)).collect())
    }

    /// From now on [`SqlClient::notified`] ends when somebody sends `NOTIFY headwater` in this database.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn listen(&self) -> Result<(), SessionError> {
        self.batch("listening for requests", "LISTEN headwater").await
    }

    /// Waits for a notification since the last call, or for as long as this. A notification may say nothing of interest, and
    /// one is lost with its session.
    pub async fn notified(&self, timeout: Duration) {
        if tokio::time::timeout(timeout, self.notified.notified()).await.is_ok() {
            tokio::time::sleep(NOTIFIED_APART).await;
        }
    }

    /// Wakes those who listen, once the current transaction has committed.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn notify(&self) -> Result<(), SessionError> {
        self.batch("announcing a request", "NOTIFY headwater").await
    }

    /// Runs a statement that returns exactly one row.
    ///
    /// # Errors
    /// [`SessionError`]; also when there is no row, or more than one.
    pub async fn query_one(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, SessionError> {
        let row =
            self.answer(doing, sql, async |statement| self.client.query_one(&statement, parameters).await).await?;
        Ok(Row::new(doing, row))
    }

    /// Runs a statement that returns at most one row.
    ///
    /// # Errors
    /// [`SessionError`]; also when there is more than one row.
    pub async fn query_opt(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, SessionError> {
        let row =
            self.answer(doing, sql, async |statement| self.client.query_opt(&statement, parameters).await).await?;
        Ok(row.map(|row| Row::new(doing, row)))
    }

    /// Runs one statement as the role that has logged in, and returns its rows. Not inside a transaction.
    ///
    /// A role with `ALTER ROLE … SET role` acts as another one, which may neither see nor end the sessions of the first:
    /// pg_stat_activity and pg_terminate_backend compare with the role of the login.
    ///
    /// # Errors
    /// [`SessionError`], saying what was being `doing`.
    pub async fn query_as_login_role(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SessionError> {
        self.batch(doing, "BEGIN; SET LOCAL ROLE NONE").await?;
        let rows = self.query(doing, sql, parameters).await;
        // After an error this rolls back.
        self.batch(doing, "COMMIT").await?;
        rows
    }

    /// Runs one statement and returns how many rows it touched.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn execute(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, SessionError> {
        self.answer(doing, sql, async |statement| self.client.execute(&statement, parameters).await).await
    }

    /// Runs one statement without parameters that was made at run time.
    ///
    /// It goes out by the extended protocol, in one round trip: whatever its text has become, a second statement in it is a
    /// syntax error.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn statement(&self, doing: &'static str, sql: &str) -> Result<(), SessionError> {
        self.bounded(doing, self.client.execute_typed(sql, &[])).await.map(|_| ())
    }

    /// Runs statements that were made at run time, each as [`SqlClient::statement`] does, one after another.
    ///
    /// # Errors
    /// [`SessionError`] of the first that fails; the others are not run. Outside of a transaction those before it stay done.
    pub async fn statements<S: AsRef<str>>(&self, doing: &'static str, sql: &[S]) -> Result<(), SessionError> {
        for statement in sql {
            self.statement(doing, statement.as_ref()).await?;
        }
        Ok(())
    }

    /// The same without waiting for an answer in between; returns how many rows each has touched.
    ///
    /// In a transaction the server refuses what comes behind one that fails. Outside of one it runs it all the same: then only where
    /// that does no harm.
    ///
    /// # Errors
    /// [`SessionError`] of the first that fails.
    pub async fn execute_each<S: AsRef<str>>(&self, doing: &'static str, sql: &[S]) -> Result<Vec<u64>, SessionError> {
        self.pipelined(doing, sql.iter().map(|sql| self.client.execute_typed(sql.as_ref(), &[]))).await
    }

    /// Asks questions that were made at run time, without waiting for an answer in between; returns the rows of each.
    ///
    /// # Errors
    /// [`SessionError`] of the first that fails.
    pub async fn query_each<S: AsRef<str>>(
        &self,
        doing: &'static str,
        sql: &[S],
    ) -> Result<Vec<Vec<Row>>, SessionError> {
        let answers = self.pipelined(doing, sql.iter().map(|sql| self.client.query_typed(sql.as_ref(), &[]))).await?;
        Ok(answers.into_iter().map(|rows| rows.into_iter().map(|row| Row::new(doing, row)).collect()).collect())
    }

    /// Sends requests, [`PIPELINED_MAX`] ahead of their answers at most. Each answer has the session's bound behind the one before.
    async fn pipelined<T, F>(
        &self,
        doing: &'static str,
        requests: impl Iterator<Item = F>,
    ) -> Result<Vec<T>, SessionError>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let mut requests = requests.map(|request| Box::pin(maybe_done(request)));
        let mut in_flight = VecDeque::new();
        let mut answers = Vec::new();
        loop {
            while in_flight.len() < PIPELINED_MAX
                && let Some(mut request) = requests.next()
            {
                // The first poll sends it.
                poll_fn(|context| Poll::Ready(request.as_mut().poll(context).is_ready())).await;
                in_flight.push_back(request);
            }
            let Some(mut oldest) = in_flight.pop_front() else { return Ok(answers) };
            let answer = async {
                oldest.as_mut().await;
                oldest.as_mut().take_output().expect("it is done, and nobody else takes what came of it")
            };
            answers.push(self.bounded(doing, answer).await?);
        }
    }

    /// Runs a statement that was made at run time right behind `first`, without waiting for the answer in between. `first` begins a
    /// transaction or a savepoint in one, so that nothing is done when it fails.
    ///
    /// # Errors
    /// [`SessionError`] of the first of them that fails.
    pub async fn statement_behind(
        &self,
        first: &'static str,
        doing: &'static str,
        sql: &str,
    ) -> Result<(), SessionError> {
        // Requests are sent in the order in which they are first polled, which is that of the arguments.
        let (begun, done) = tokio::join!(biased; self.batch(doing, first), self.statement(doing, sql));
        begun?;
        done
    }

    /// Begins a transaction that reads under a snapshot which another session has exported.
    ///
    /// # Errors
    /// [`SessionError`]: the snapshot is not there any more, for instance.
    pub async fn import_snapshot(&self, name: &str) -> Result<(), SessionError> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let import = format!("SET TRANSACTION SNAPSHOT {}", quote_literal(name));
        self.statement_behind(begin, "importing the snapshot", &import).await
    }

    /// Runs several statements without parameters, in one implicit transaction unless they say otherwise.
    ///
    /// By the simple protocol, in which a text may hold any number of statements: so it takes only what stands in the program's
    /// own source, and nothing that was made at run time. That is what [`SqlClient::statement`] is for.
    ///
    /// # Errors
    /// [`SessionError`] of the first that fails; the others are not run.
    pub async fn batch(&self, doing: &'static str, sql: &'static str) -> Result<(), SessionError> {
        self.bounded(doing, self.client.batch_execute(sql)).await
    }

    /// Starts a COPY … FROM STDIN.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn copy_in(&self, doing: &'static str, sql: &str) -> Result<SqlCopyIn<'_>, SessionError> {
        let sink = self.bounded(doing, self.client.copy_in(sql)).await?;
        Ok(SqlCopyIn { client: self, doing, sink: Box::pin(sink) })
    }

    /// The same session with another bound, for statements that honestly take long.
    pub fn with_timeout(mut self, timeout: Duration) -> SqlClient {
        self.timeout = timeout;
        self
    }

    /// How long one of its statements may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// TLS that is in force, in words; `None` without.
    pub fn tls(&self) -> Option<&str> {
        self.tls.as_deref()
    }

    /// Ends a session of the role that we have logged in as, also where SET ROLE has made us another one.
    ///
    /// # Errors
    /// [`SessionError`]: it belongs to somebody else; or this session is in a transaction that has failed.
    pub async fn terminate(&self, doing: &'static str, process_id: u32) -> Result<(), SessionError> {
        let sql = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = $1::bigint";
        self.query_as_login_role(doing, sql, &[&i64::from(process_id)]).await.map(|_| ())
    }

    /// How many more sessions this role may open.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn free_sessions(&self) -> Result<usize, SessionError> {
        Ok(usize::try_from(self.sessions_room().await?.least()).unwrap_or(0))
    }

    /// How many more sessions this role may open, by each limit.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn sessions_room(&self) -> Result<SessionsRoom, SessionError> {
        // Limits of roles and databases hold for walsenders, too, and not for superusers.
        let sql = "WITH open AS (SELECT a.usesysid, a.datid, a.backend_type FROM pg_catalog.pg_stat_activity a
                                 WHERE a.backend_type IN ('client backend', 'walsender'))
                   SELECT pg_catalog.current_setting('max_connections')::bigint
                              - pg_catalog.current_setting('superuser_reserved_connections')::bigint
                              - (SELECT pg_catalog.count(*) FROM open WHERE open.backend_type = 'client backend'),
                          CASE WHEN r.rolconnlimit >= 0 AND NOT r.rolsuper THEN
                              r.rolconnlimit - (SELECT pg_catalog.count(*) FROM open WHERE open.usesysid = r.oid) END,
                          CASE WHEN d.datconnlimit >= 0 AND NOT r.rolsuper THEN
                              d.datconnlimit - (SELECT pg_catalog.count(*) FROM open WHERE open.datid = d.oid) END,
                          r.rolname::text, d.datname::text
                   FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
                   WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database()";
        let row = self.query_one("counting sessions", sql, &[]).await?;
        Ok(SessionsRoom {
            server: row.get(0)?,
            role: row.get(1)?,
            database: row.get(2)?,
            role_name: Ident::new(row.get::<&str>(3)?),
            database_name: Ident::new(row.get::<&str>(4)?),
        })
    }

    /// What these processes of the server wait for is reported with what is in their way, until [`super::explain_no_answers`]: of this
    /// session's server, which is the one at `end`.
    pub fn explain_answers(&self, end: &'static str, processes: BTreeSet<u32>) {
        slow_answers::explain_answers(end, &self.server, processes);
    }

    /// Whether the session is known to have ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The answer to one statement, which is prepared unless the session has it; one that fails is prepared again the next time.
    async fn answer<T>(
        &self,
        doing: &'static str,
        sql: &str,
        ask: impl AsyncFnOnce(Statement) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, SessionError> {
        let prepared = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let known = prepared().get(sql);
        let work = async {
            let statement = match known {
                Some(statement) => statement,
                None => {
                    let statement = self.client.prepare(sql).await?;
                    prepared().keep(sql, statement.clone());
                    statement
                }
            };
            ask(statement).await
        };
        let answer = self.bounded(doing, work).await;
        if answer.is_err() {
            // What it returns may be of another type now.
            prepared().forget(sql);
        }
        answer
    }

    async fn bounded<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SessionError> {
        if let Some(late) = self.late.get() {
            return Err(late.error(self.server.process_id));
        }
        let _awaiting = Awaiting::begin(&self.server, doing, Bound::After(self.timeout));
        match tokio::time::timeout(self.timeout, work).await {
            Ok(result) => result.map_err(|error| match self.complaint.take().filter(|_| error.is_closed()) {
                Some(what) => SessionError::answer(doing, what),
                None => SessionError::from_sql(doing, &error).met_by(self.server.process_id),
            }),
            Err(_) => Err(self.late.get_or_init(|| Late { doing, within: self.timeout }).error(self.server.process_id)),
        }
    }
}

/// A statement that has exceeded its bound.
#[derive(Clone, Copy, Debug)]
struct Late {
    doing: &'static str,
    within: Duration,
}

impl Late {
    fn error(self, process_id: u32) -> SessionError {
        let Late { doing, within } = self;
        SessionError::Timeout { doing, within, process_id: None }.met_by(process_id)
    }
}

/// How many more sessions a role may open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsRoom {
    /// Of those that the server takes, without the ones that it reserves for superusers.
    pub server: i64,
    /// Of the role's; `None` where it has no limit.
    pub role: Option<i64>,
    /// Of the database's; `None` where it has no limit.
    pub database: Option<i64>,
    /// The role.
    pub role_name: Ident,
    /// The database.
    pub database_name: Ident,
}

impl SessionsRoom {
    /// By the narrowest limit.
    pub fn least(&self) -> i64 {
        [Some(self.server), self.role, self.database].into_iter().flatten().min().unwrap_or(0)
    }
}

/// A COPY … FROM STDIN that is running. Dropped before its end it fails, and with it the transaction.
pub struct SqlCopyIn<'a> {
    client: &'a SqlClient,
    doing: &'static str,
    sink: Pin<Box<tokio_postgres::CopyInSink<Bytes>>>,
}

impl SqlCopyIn<'_> {
    /// Sends a part of the rows, in whatever cut; waits while the server is slower.
    ///
    /// # Errors
    /// [`SessionError`]: the server's refusal of an earlier part, too.
    pub async fn send(&mut self, rows: Bytes) -> Result<(), SessionError> {
        self.client.bounded(self.doing, self.sink.send(rows)).await
    }

    /// Ends the rows and returns how many there were.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn finish(mut self) -> Result<u64, SessionError> {
        self.client.bounded(self.doing, self.sink.as_mut().finish()).await
    }
}

/// The same words for the same trouble, whichever kind of session meets it.
fn in_our_words(what: String) -> String {
    if what.contains("password missing") {
        PASSWORD_MISSING.to_owned()
    } else if what.contains("did not use channel binding") {
        UNBOUND.to_owned()
    } else {
        what
    }
}

/// A stream on which TLS is already in force, in the shape in which tokio-postgres asks for it.
struct Negotiated {
    channel_binding: Option<Vec<u8>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsConnect<S> for Negotiated {
    type Stream = NegotiatedStream<S>;
    type Error = io::Error;
    type Future = Ready<io::Result<NegotiatedStream<S>>>;

    fn connect(self, stream: S) -> Self::Future {
        ready(Ok(NegotiatedStream { stream, channel_binding: self.channel_binding }))
    }
}

struct NegotiatedStream<S> {
    stream: S,
    channel_binding: Option<Vec<u8>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for NegotiatedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NegotiatedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for NegotiatedStream<S> {
    fn channel_binding(&self) -> BindingData {
        match &self.channel_binding {
            Some(binding) => BindingData::tls_server_end_point(binding.clone()),
            None => BindingData::none(),
        }
    }
}
