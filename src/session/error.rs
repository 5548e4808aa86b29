//! What can go wrong on a session, with the server's own words where it had any, and never a row's value.
//!
//! Comes from every file of this module; goes to `error_policy`, which decides what now, and to the operator. A server's error
//! keeps its SQLSTATE, object names, detail and hint, because those are what an operator needs; but some messages and
//! most details of classes 22, 23 and P0 quote the row (`Key (id)=(7) already exists`), so these parts are left out
//! here, at the only door through which they could come in (I9). At the same door their text is made printable.

use std::time::Duration;
use std::{fmt, io};

use crate::config::Secret;
use crate::pg::{Ident, QualifiedName, printable};
use crate::schema_change::constraint_difference::Violated;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// An error whose code the server did not send.
    pub const UNKNOWN: SqlState = SqlState(*b"XX000");

    /// From a five-character code.
    pub const fn new(code: &[u8; 5]) -> SqlState {
        SqlState(*code)
    }

    /// From the text of a server's error; anything odd becomes [`SqlState::UNKNOWN`].
    pub fn parse(code: &str) -> SqlState {
        let ok = |code: &[u8; 5]| code.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        code.as_bytes()
            .first_chunk::<5>()
            .filter(|c| code.len() == 5 && ok(c))
            .map_or(SqlState::UNKNOWN, |c| SqlState(*c))
    }

    /// The code's text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// The class: the code's first two characters.
    pub fn class(&self) -> &str {
        self.as_str().get(..2).unwrap_or("XX")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error that the server reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// The SQLSTATE.
    pub code: SqlState,
    /// FATAL or PANIC: the server ended the session with it.
    pub fatal: bool,
    /// It happened in a function of somebody's, of a trigger or a check, say: other rows, or a change of that function, may not meet it.
    pub in_function: bool,
    /// The server's message, unless it may quote a row.
    pub message: String,
    /// The server's detail, unless it may quote a row.
    pub detail: Option<String>,
    /// The server's hint.
    pub hint: Option<String>,
    /// The schema of the object concerned.
    pub schema: Option<String>,
    /// The table concerned.
    pub table: Option<String>,
    /// The column concerned.
    pub column: Option<String>,
    /// The constraint concerned.
    pub constraint: Option<String>,
    /// The server's process of the session that met it, where that is known.
    pub process_id: Option<u32>,
}

impl ServerError {
    /// What the server has named of a constraint that refused a row; of a domain its schema alone, with an empty table.
    pub fn violated(&self) -> Violated {
        let schema = self.schema.as_deref().map(|schema| (schema, self.table.as_deref().unwrap_or_default()));
        Violated {
            table: schema.map(|(schema, table)| QualifiedName::new(schema, table)),
            constraint: self.constraint.as_deref().map(Ident::new),
            column: self.column.as_deref().map(Ident::new),
        }
    }
}

/// An error's fields as a server sends them, before what may quote a row is left out.
#[derive(Default)]
pub(super) struct RawServerError {
    pub(super) severity: String,
    pub(super) code: String,
    pub(super) message: String,
    pub(super) detail: Option<String>,
    pub(super) hint: Option<String>,
    pub(super) schema: Option<String>,
    pub(super) table: Option<String>,
    pub(super) column: Option<String>,
    pub(super) constraint: Option<String>,
    /// The server's function that reported it.
    pub(super) routine: Option<String>,
    /// Where it happened; quotes rows (`COPY t, line 1, column x: "…"`).
    pub(super) context: Option<String>,
}

/// An error's field that is longer is cut: it stays in memory, in /status and in the log.
const FIELD_BYTES_MAX: usize = 4 << 10;

/// The server's function behind PL/pgSQL's RAISE.
const RAISE: &str = "exec_stmt_raise";

impl RawServerError {
    pub(super) fn without_values(mut self) -> ServerError {
        let code = SqlState::parse(&self.code);
        let in_function = self.is_in_function();
        // RAISE takes any SQLSTATE, and any text and names. Those of class HW are our own functions'.
        let raised = self.routine.as_deref() == Some(RAISE) && code.class() != "HW";
        if raised || code.class() == "P0" {
            (self.hint, self.schema, self.table, self.column, self.constraint) = (None, None, None, None, None);
        }
        let (message, detail) = match code.class() {
            _ if raised => (RAISED.to_owned(), None),
            // The value of a parameter is quoted, too.
            "22" if code.as_str() == "22023" && self.parameter().is_some() => {
                (format!("invalid value for parameter \"{}\"", self.parameter().unwrap_or_default()), None)
            }
            // Data exceptions quote the value in the message: `invalid input syntax for type integer: "…"`.
            "22" => (data_exception(code).to_owned(), self.copied_at()),
            // Violated constraints name it in the message and quote the row in the detail.
            "23" => {
                let at = self.copied_at();
                (self.message, at)
            }
            // RAISE in somebody's trigger or function may quote anything.
            "P0" => (RAISED.to_owned(), None),
            // A value that names an object, for instance of type regclass, is quoted where there is no such object.
            "42" | "3F" | "0A" if code.as_str() != "42501" && self.is_about_a_value() => {
                self.hint = None;
                (NAMED.to_owned(), None)
            }
            // A statement that somebody's trigger makes up may hold a row's value as a name.
            "42" | "3F" | "0A" if self.function().is_some() => {
                let function = self.function().unwrap_or_default().to_owned();
                self.hint = is_missing(code).then(|| search_path_hint(&function));
                (format!("function {function} failed: {}", condition(code)), Some(IN_LOG.to_owned()))
            }
            _ => (self.message, self.detail),
        };
        ServerError {
            code,
            fatal: matches!(self.severity.as_str(), "FATAL" | "PANIC"),
            in_function,
            message: cut(shown(&message)),
            detail: detail.map(|detail| cut(shown(&detail))),
            hint: self.hint.map(|hint| cut(shown(&hint))),
            schema: self.schema.map(cut),
            table: self.table.map(cut),
            column: self.column.map(cut),
            constraint: self.constraint.map(cut),
            process_id: None,
        }
    }

    /// Where a COPY met the error: `COPY items, line 3, column body`. The value, or the row, follows behind a colon (copyfromparse.c,
    /// `CopyFromErrorCallback`, 14 to 18). The words are translated; what has another form than these, or an odd name in it, is not shown.
    fn copied_at(&self) -> Option<String> {
        let line = self.context.as_ref()?.lines().find_map(|line| line.strip_prefix("COPY "))?;
        let at = line.split_once(':').map_or(line, |(at, _)| at).trim_end();
        let parts: Vec<&str> = at.split(", ").collect();
        let is_name =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let shown = match parts.as_slice() {
            [table, line] => is_name(table) && line.split_once(' ').is_some_and(|(_, number)| is_number(number)),
            [table, line, column] => {
                is_name(table)
                    && line.split_once(' ').is_some_and(|(_, number)| is_number(number))
                    && column.split_once(' ').is_some_and(|(word, name)| is_name(word) && is_name(name))
            }
            _ => false,
        };
        shown.then(|| format!("It happened at COPY {at}."))
    }

    /// The configuration parameter that does not take a value: the first name that is quoted, in whatever language's way. The server's
    /// functions that say so know the parameter (guc.c, 14 to 18).
    fn parameter(&self) -> Option<&str> {
        let routine = self.routine.as_deref()?;
        if routine != "parse_and_validate_value" && !(routine.starts_with("call_") && routine.ends_with("_check_hook"))
        {
            return None;
        }
        let quoted = self.message.split(QUOTES).nth(1)?.trim();
        let is_name = !quoted.is_empty() && quoted.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        is_name.then_some(quoted)
    }

    /// Whether a line of COPY's or a statement's parameter was being read. The words around are translated; `COPY` and `$1` are not
    /// (copyfromparse.c, `CopyFromErrorCallback`; postgres.c, `bind_param_error_callback`). What a trigger does comes before them, as
    /// the innermost is named first.
    fn is_about_a_value(&self) -> bool {
        let Some(context) = self.context.as_ref().filter(|_| self.function().is_none()) else { return false };
        let mut dollars = context.split('$').skip(1);
        context.contains("COPY ") || dollars.any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    }

    /// The context without the line of a COPY and what follows it, which quotes rows.
    fn calls(&self) -> impl Iterator<Item = &str> {
        let lines = self.context.iter().flat_map(|context| context.lines());
        lines.take_while(|line| !line.starts_with("COPY "))
    }

    /// The function in which it happened, with the types of its arguments: the outermost, which the server has called, as a trigger's or a
    /// check's. Those of other schemas than pg_catalog are named with theirs, as our search_path is empty (pl_exec.c,
    /// `plpgsql_exec_error_callback`, 14 to 18). Our own bookkeeping's are none of these.
    fn function(&self) -> Option<&str> {
        let line = self.calls().last().filter(|line| line.contains("PL/pgSQL"))?;
        let opens = line.find('(')?;
        let closes = opens + line.get(opens..)?.find(')')?;
        let begins = line.get(..opens)?.rfind(' ')? + 1;
        let (name, types) = (line.get(begins..opens)?, line.get(opens + 1..closes)?);
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let is_name = name.chars().all(is_word) && name.contains('.') && !name.starts_with("headwater.");
        let is_types = types.chars().all(|c| is_word(c) || matches!(c, ' ' | ',' | '[' | ']'));
        if is_name && is_types { line.get(begins..=closes) } else { None }
    }

    /// Whether a function of somebody's was running, in SQL or PL/pgSQL: the word is in what each says of itself, and in what says which
    /// statement of it was run. What stands before a line was called by it; statements of our own bookkeeping's functions are ours.
    fn is_in_function(&self) -> bool {
        let calls: Vec<&str> = self.calls().collect();
        let mut in_ours = false;
        for line in calls.into_iter().rev().filter(|line| line.contains("SQL")) {
            let is_statement = !line.contains("PL/pgSQL") && !is_sql_function(line);
            if is_statement && in_ours {
                continue;
            }
            in_ours = line.contains(" headwater.") && line.contains("PL/pgSQL");
            if !in_ours {
                return true;
            }
        }
        false
    }
}

/// Whether a line of a context is that of a function in SQL, and not of a statement in PL/pgSQL: a name is quoted, and words follow it
/// (functions.c, `sql_exec_error_callback`; spi.c, `_SPI_error_callback`; 14 to 18).
fn is_sql_function(line: &str) -> bool {
    let mut parts = line.split(QUOTES);
    let (name, rest) = (parts.nth(1), parts.next());
    name.is_some_and(|name| !name.trim().is_empty() && !name.trim().contains(' '))
        && rest.is_some_and(|rest| !rest.trim().is_empty())
}

/// What stands around names in the server's languages.
const QUOTES: [char; 10] = ['"', '„', '“', '”', '«', '»', '‹', '›', '「', '」'];

/// The server's words on one line, printable: names in them are anybody's. The names that come apart stay exact.
fn shown(text: &str) -> String {
    printable(&text.trim_end().replace('\n', "; ")).into_owned()
}

fn cut(mut text: String) -> String {
    if text.len() > FIELD_BYTES_MAX {
        let end = (0..=FIELD_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

const RAISED: &str = "an exception was raised in a function or trigger (its text is in the server's log)";

const IN_LOG: &str = "The server's words may quote a row: they are in its log.";

/// Whether something that was named could not be found.
fn is_missing(code: SqlState) -> bool {
    matches!(code.as_str(), "42P01" | "42883" | "42704" | "3F000" | "42703")
}

/// The condition names of errors that statements in functions meet (errcodes appendix).
fn condition(code: SqlState) -> &'static str {
    match code.as_str() {
        "42P01" => "a table that it names was not found",
        "42883" => "a function or operator that it names was not found",
        "42704" => "an object that it names was not found",
        "42703" => "a column that it names was not found",
        "3F000" => "a schema that it names was not found",
        "42501" => "headwater's role lacks a privilege that it needs",
        "42601" => "a statement in it is not valid",
        _ => "a statement in it was refused",
    }
}

fn search_path_hint(function: &str) -> String {
    format!(
        "headwater's search_path is empty, so that names in it without a schema are not found. Run at the destination, with the schemas of \
         what it names:\nALTER FUNCTION {function} SET search_path = public;"
    )
}

const NAMED: &str = "a value names something that the server does not have (its text is in the server's log)";

/// The condition names of class 22 that replicated values can meet (errcodes appendix).
fn data_exception(code: SqlState) -> &'static str {
    match code.as_str() {
        "22001" => "value too long for its column",
        "22003" => "numeric value out of range",
        "22007" => "invalid datetime format",
        "22008" => "datetime field overflow",
        "22021" => "character not in repertoire",
        "22P02" => "invalid text representation",
        "22P03" => "invalid binary representation",
        "22P04" => "bad copy file format",
        "22P05" => "untranslatable character",
        "22012" => "division by zero",
        "2200M" | "2200N" => "invalid XML",
        _ => "data exception",
    }
}

impl ServerError {
    /// Reads the body of an ErrorResponse: fields of a type byte and a NUL-terminated string.
    pub fn read(body: &[u8]) -> ServerError {
        let mut raw = RawServerError::default();
        for field in body.split(|b| *b == 0) {
            let Some((kind, value)) = field.split_first() else { break };
            let value = String::from_utf8_lossy(value.get(..2 * FIELD_BYTES_MAX).unwrap_or(value)).into_owned();
            match kind {
                // V is the severity that is never translated; S comes first and is overwritten.
                b'S' | b'V' => raw.severity = value,
                b'C' => raw.code = value,
                b'M' => raw.message = value,
                b'D' => raw.detail = Some(value),
                b'H' => raw.hint = Some(value),
                b's' => raw.schema = Some(value),
                b't' => raw.table = Some(value),
                b'c' => raw.column = Some(value),
                b'n' => raw.constraint = Some(value),
                b'R' => raw.routine = Some(value),
                b'W' => raw.context = Some(value),
                // The rest is of no use here.
                _ => {}
            }
        }
        raw.without_values()
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)
    }
}

impl std::error::Error for ServerError {}

/// Why TLS could not be established: one variant for each remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsProblem {
    /// The server has none.
    NotOffered,
    /// No root vouches for the server's certificate.
    Untrusted,
    /// The server's certificate is for another name.
    OtherName,
    /// The server's certificate has expired.
    Expired,
    /// The server's certificate is not valid yet.
    NotYet,
    /// The server refuses the certificate that we show.
    OurCertificate,
    /// What headwater, and mostly OpenSSL as well, does not take for a certificate or its key.
    Unfit,
    /// Server and client have no kind of key, cipher or version in common.
    NothingInCommon,
    /// TLS was begun at once, with a server that does not know how.
    NotDirect,
    /// Anything else.
    Other,
}

/// The oldest major that is supported: binary pgoutput, and settings that every session makes, came with 14.
pub const MAJOR_MIN: u32 = 14;

/// What went wrong on a session, and while doing what.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No host could be reached; the reasons, one per host.
    #[error("cannot connect to {target}: {reasons}")]
    Unreachable {
        /// `user@host/database`.
        target: String,
        /// Each host's reason.
        reasons: String,
    },
    /// Every host answered, and none is what target_session_attrs wants; the reasons, one per host.
    #[error("cannot connect to {target}: {reasons}")]
    Unwanted {
        /// `user@host/database`.
        target: String,
        /// Each host's reason.
        reasons: String,
    },
    /// TLS was refused, or the certificate is not trusted.
    #[error("TLS with {host}: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// What kind of thing is wrong.
        problem: TlsProblem,
        /// What is wrong.
        reason: String,
    },
    /// The server asks for a kind of authentication that we do not support, or we lack what it asks for.
    #[error("authentication with {host}: {reason}")]
    Authentication {
        /// The host.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The server is of a major that is not supported.
    #[error("the server is PostgreSQL {version}, headwater needs {MAJOR_MIN} or later")]
    TooOld {
        /// `server_version`
        version: String,
    },
    /// A certificate, key or password file cannot be used.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The server reported an error.
    #[error("{doing}: {error}")]
    Server {
        /// What was being done.
        doing: &'static str,
        /// The server's words.
        error: Box<ServerError>,
    },
    /// The connection broke.
    #[error("{doing}: connection lost: {error}")]
    Lost {
        /// What was being done.
        doing: &'static str,
        /// The operating system's words.
        error: io::Error,
    },
    /// No answer within the bound.
    #[error("{doing}: no answer within {}", humantime::format_duration(*.within))]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// The bound.
        within: Duration,
        /// The server's process of the session, where that is known.
        process_id: Option<u32>,
    },
    /// The server answered something that the protocol does not allow here.
    #[error("{doing}: unexpected answer from the server: {what}")]
    Protocol {
        /// What was being done.
        doing: &'static str,
        /// What came.
        what: String,
    },
    /// Another statement was executed than the one that headwater has prepared under the name.
    #[error("a prepared statement of the writing session was replaced: {sent} was answered with {answered}")]
    Replaced {
        /// The verb of the statement that was prepared.
        sent: &'static str,
        /// The command tag that came, without its numbers.
        answered: String,
    },
    /// The answer to a question by SQL is not what was asked for.
    #[error("{doing}: could not understand the server's answer: {what}")]
    Answer {
        /// What was being done.
        doing: &'static str,
        /// What is wrong with the answer, without its values.
        what: String,
    },
}

impl SessionError {
    /// The same, where a server that was given a password quotes it in its refusal.
    pub(super) fn without_password(mut self, password: Option<&Secret>) -> SessionError {
        let password = password.and_then(|secret| std::str::from_utf8(secret.reveal()).ok()).unwrap_or_default();
        if let (SessionError::Server { error, .. }, false) = (&mut self, password.is_empty()) {
            let hide = |text: &mut String| *text = text.replace(password, "…");
            hide(&mut error.message);
            let ServerError { detail, hint, schema, table, column, constraint, .. } = &mut **error;
            [detail, hint, schema, table, column, constraint].into_iter().flatten().for_each(hide);
        }
        self
    }

    /// The server's error with where it happened, a sentence, in its detail. Other errors as they are.
    pub fn at(mut self, place: &str) -> SessionError {
        if let SessionError::Server { error, .. } = &mut self {
            error.detail = Some(error.detail.take().map_or(place.to_owned(), |detail| format!("{place} {detail}")));
        }
        self
    }

    /// The server's error, when it is one.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            SessionError::Server { error, .. } => Some(error),
            SessionError::Unreachable { .. }
            | SessionError::Unwanted { .. }
            | SessionError::Tls { .. }
            | SessionError::Authentication { .. }
            | SessionError::TooOld { .. }
            | SessionError::File { .. }
            | SessionError::Lost { .. }
            | SessionError::Timeout { .. }
            | SessionError::Protocol { .. }
            | SessionError::Replaced { .. }
            | SessionError::Answer { .. } => None,
        }
    }

    /// The same, of the session that the server serves by this process; 0: it has not said by which.
    pub(super) fn met_by(mut self, process: u32) -> SessionError {
        if process == 0 {
            return self;
        }
        match &mut self {
            SessionError::Timeout { process_id, .. } => *process_id = Some(process),
            SessionError::Server { error, .. } => error.process_id = Some(process),
            SessionError::Unreachable { .. }
            | SessionError::Unwanted { .. }
            | SessionError::Tls { .. }
            | SessionError::Authentication { .. }
            | SessionError::TooOld { .. }
            | SessionError::File { .. }
            | SessionError::Lost { .. }
            | SessionError::Protocol { .. }
            | SessionError::Replaced { .. }
            | SessionError::Answer { .. } => {}
        }
        self
    }

    /// The SQLSTATE, when the server reported one.
    pub fn code(&self) -> Option<SqlState> {
        self.server().map(|error| error.code)
    }

    pub(super) fn lost(doing: &'static str, error: io::Error) -> SessionError {
        SessionError::Lost { doing, error }
    }

    pub(super) fn closed(doing: &'static str) -> SessionError {
        SessionError::Lost { doing, error: io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it") }
    }

    pub(crate) fn protocol(doing: &'static str, what: impl Into<String>) -> SessionError {
        SessionError::Protocol { doing, what: what.into() }
    }

    pub(super) fn replaced(sent: &'static str, tag: &[u8]) -> SessionError {
        let letters = tag.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b' ');
        let answered = letters.map(|byte| char::from(*byte)).collect::<String>().trim_end().to_owned();
        SessionError::Replaced { sent, answered }
    }

    pub(crate) fn answer(doing: &'static str, what: impl Into<String>) -> SessionError {
        SessionError::Answer { doing, what: what.into() }
    }

    /// JSON that is not what was asked for. The error's own words may quote it.
    pub(crate) fn from_json(doing: &'static str, error: &serde_json::Error) -> SessionError {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "ends too early",
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => "is malformed",
            serde_json::error::Category::Data => "holds something else than was asked for",
        };
        SessionError::answer(doing, format!("JSON {what} at line {}, column {}", error.line(), error.column()))
    }

    pub(super) fn from_server(doing: &'static str, error: ServerError) -> SessionError {
        SessionError::Server { doing, error: Box::new(error) }
    }

    pub(super) fn from_sql(doing: &'static str, error: &tokio_postgres::Error) -> SessionError {
        if let Some(db) = error.as_db_error() {
            let raw = RawServerError {
                severity: db.parsed_severity().map_or_else(|| db.severity().to_owned(), |s| s.to_string()),
                code: db.code().code().to_owned(),
                message: db.message().to_owned(),
                detail: db.detail().map(str::to_owned),
                hint: db.hint().map(str::to_owned),
                schema: db.schema().map(str::to_owned),
                table: db.table().map(str::to_owned),
                column: db.column().map(str::to_owned),
                constraint: db.constraint().map(str::to_owned),
                routine: db.routine().map(str::to_owned),
                context: db.where_().map(str::to_owned),
            };
            return SessionError::from_server(doing, raw.without_values());
        }
        let source = std::error::Error::source(error);
        if let Some(io) = source.and_then(|source| source.downcast_ref::<io::Error>()) {
            // What TLS says is kept whole: `connect` looks for what the server holds against our certificate.
            let tls = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let copy = tls.map_or_else(
                || io::Error::new(io.kind(), io.to_string()),
                |tls| io::Error::new(io.kind(), tls.clone()),
            );
            return SessionError::lost(doing, copy);
        }
        if error.is_closed() {
            return SessionError::closed(doing);
        }
        // tokio-postgres's own errors name their stage (`error deserializing column 3`) and cause, no values.
        let cause = source.map(|cause| format!(": {cause}")).unwrap_or_default();
        SessionError::answer(doing, format!("{error}{cause}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_absurd_length_are_cut_also_inside_a_character() {
        let long = "é".repeat(1 << 20);
        let body = format!("SERROR\0C53100\0Mx{long}\0H{long}\0n{long}\0\0");
        let error = ServerError::read(body.as_bytes());
        assert!(error.message.ends_with('…') && error.message.len() <= FIELD_BYTES_MAX + 3, "{}", error.message.len());
        assert!(error.hint.as_ref().is_some_and(|hint| hint.len() <= FIELD_BYTES_MAX + 3));
        assert!(error.constraint.is_some_and(|name| name.len() <= FIELD_BYTES_MAX + 3));
    }

    fn shown(code: &str, message: &str, detail: &str) -> String {
        let raw = RawServerError {
            code: code.into(),
            message: message.into(),
            detail: Some(detail.into()),
            constraint: Some("messages_pkey".into()),
            ..RawServerError::default()
        };
        format!("{:?}", raw.without_values())
    }

    #[test]
    fn an_error_in_a_trigger_names_its_function_and_not_what_it_has_made_of_a_row() {
        let read = |code: &str, context: &str| {
            let fields = format!("SERROR\0C{code}\0Mrelation \"log_s3cret\" does not exist\0Hs3cret\0W{context}\0\0");
            let error = ServerError::read(fields.as_bytes());
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
            error
        };
        for context in [
            "SQL statement \"insert into log_s3cret\"\nPL/pgSQL function public.f() line 1 at EXECUTE\nCOPY t, line 1: \"s3cret\"",
            "PL/pgSQL-Funktion public.f() Zeile 1 bei SQL-Anweisung",
            "fonction PL/pgSQL public.f(), ligne 1",
        ] {
            let error = read("42P01", context);
            assert_eq!(error.message, "function public.f() failed: a table that it names was not found");
            assert!(error.in_function);
            assert!(
                error.hint.is_some_and(|hint| hint.ends_with("ALTER FUNCTION public.f() SET search_path = public;"))
            );
        }
        // A check's takes arguments.
        let error = read("42883", "PL/pgSQL function public.f(text,integer[]) line 1 at IF");
        assert_eq!(
            error.message,
            "function public.f(text,integer[]) failed: a function or operator that it names was not found"
        );
        let hint = error.hint.expect("a hint");
        assert!(hint.ends_with("ALTER FUNCTION public.f(text,integer[]) SET search_path = public;"), "{hint}");
        let error = read("42501", "PL/pgSQL function public.f() line 1 at EXECUTE");
        assert_eq!(error.hint, None, "it has nothing to do with search_path");
        // A value that looks like a function is none.
        assert_eq!(read("42P01", "COPY t, line 1, column x: \"a\nPL/pgSQL function s3cret.s3cret()\"").message, NAMED);
    }

    #[test]
    fn an_error_in_a_function_of_sql_is_one_in_a_function_and_one_in_our_own_is_none() {
        let read = |context: &str| ServerError::read(format!("SERROR\0C42P01\0Mm\0W{context}\0\0").as_bytes());
        assert!(read("SQL function \"known\" statement 1").in_function);
        assert!(!read("COPY t, line 1: \"SQL function\"").in_function);
        assert!(!read("PL/pgSQL function headwater.advance(pg_lsn,pg_lsn) line 3 at RAISE").in_function);
        assert!(!read("").in_function);
        // A statement of ours is none of somebody's; theirs may have names like ours, and be called by us.
        let ours = "PL/pgSQL function headwater.wait_for(pg_lsn,interval) line 3 at IF";
        assert!(!read(&format!("SQL statement \"SELECT 1 FROM t\"\n{ours}")).in_function);
        assert!(!read(&format!("SQL-Anweisung »SELECT 1«\n{ours}")).in_function);
        for theirs in [
            "PL/pgSQL function headwater_audit.log() line 1 at SQL statement",
            "SQL function \"headwater\" statement 1",
            "SQL function \"known\" statement 1",
            "SQL-Funktion »known« Anweisung 1",
        ] {
            assert!(read(theirs).in_function, "{theirs}");
            assert!(read(&format!("{theirs}\n{ours}")).in_function, "{theirs}, called by ours");
        }
        assert!(read("SQL statement \"SELECT 1 FROM ONLY headwater_orders x\"").in_function, "of a foreign key");
    }

    #[test]
    fn no_row_value_gets_in() {
        let unique =
            shown("23505", "duplicate key value violates unique constraint \"messages_pkey\"", "Key (id)=(s3cret)");
        assert!(unique.contains("messages_pkey") && !unique.contains("s3cret"), "{unique}");
        let syntax = shown("22P02", "invalid input syntax for type integer: \"s3cret\"", "s3cret");
        assert!(!syntax.contains("s3cret") && syntax.contains("22P02"), "{syntax}");
        let raised = shown("P0001", "row s3cret is bad", "s3cret");
        assert!(!raised.contains("s3cret"), "{raised}");
        for code in ["23514", "ABC01", "40P01"] {
            let fields = format!("SERROR\0C{code}\0Mrow s3cret\0Ds3cret\0Hs3cret\0ns3cret\0Rexec_stmt_raise\0\0");
            let raised = format!("{:?}", ServerError::read(fields.as_bytes()));
            assert!(!raised.contains("s3cret") && raised.contains(code), "RAISE takes any SQLSTATE: {raised}");
        }
        for context in [
            "COPY t, Zeile 1, Spalte x: »s3cret«",
            "unbenanntes Portal, Parameter $1",
            "unnamed portal parameter $12 = '…'",
        ] {
            for code in ["42P01", "42704", "42883", "42601", "3F000", "0A000"] {
                let fields = format!("SERROR\0C{code}\0Mrelation \"s3cret\" does not exist\0Hs3cret\0W{context}\0\0");
                let named = format!("{:?}", ServerError::read(fields.as_bytes()));
                assert!(!named.contains("s3cret") && named.contains(code), "{named}");
            }
        }
        let missing = ServerError::read(b"SERROR\0C42P01\0Mrelation \"t\" does not exist\0\0");
        assert!(missing.message.contains("\"t\""), "{missing}");
        let lock = shown("55P03", "canceling statement due to lock timeout", "kept");
        assert!(lock.contains("lock timeout") && lock.contains("kept"), "{lock}");
    }

    #[test]
    fn a_parameter_that_does_not_take_a_value_is_named_without_it() {
        let read = |message: &str, routine: &str| {
            let error = ServerError::read(format!("SFATAL\0C22023\0M{message}\0R{routine}\0\0").as_bytes());
            assert!(!error.message.contains("s3cret"), "{error}");
            error.message
        };
        let named = "invalid value for parameter \"DateStyle\"";
        for (message, routine) in [
            ("invalid value for parameter \"DateStyle\": \"s3cret\"", "call_string_check_hook"),
            ("ungültiger Wert für Parameter »DateStyle«: »s3cret«", "parse_and_validate_value"),
            ("valeur invalide pour le paramètre « DateStyle » : « s3cret »", "parse_and_validate_value"),
        ] {
            assert_eq!(read(message, routine), named, "{message}");
        }
        assert_eq!(read("invalid value for parameter \"a\": \"s3cret\"", "somebody_elses"), "data exception");
        assert_eq!(read("odd \"s3cret, and more\"", "parse_and_validate_value"), "data exception");
    }

    #[test]
    fn an_error_of_a_copy_says_where_and_never_what() {
        let detail = |context: &str| {
            let fields = format!("SERROR\0C22P02\0Minvalid input: \"s3cret\"\0W{context}\0\0");
            let error = ServerError::read(fields.as_bytes());
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
            error.detail
        };
        for (context, at) in [
            ("COPY items, line 3, column body: \"s3cret\"", "COPY items, line 3, column body"),
            ("COPY items, line 3: \"1\ts3cret\"", "COPY items, line 3"),
            ("COPY items, line 3, column body", "COPY items, line 3, column body"),
            ("COPY items, ligne 3, colonne body : « s3cret »", "COPY items, ligne 3, colonne body"),
            (
                "SQL function \"f\" statement 1\nCOPY items, Zeile 3, Spalte body: »s3cret«",
                "COPY items, Zeile 3, Spalte body",
            ),
        ] {
            assert_eq!(detail(context), Some(format!("It happened at {at}.")), "{context}");
        }
        for context in [
            "COPY s3cret",
            "COPY items FROM 's3cret'",
            "COPY items, line 3, column x\u{ff1a}\u{300c}s3cret\u{300d}",
            "COPY items, line s3cret",
            "COPY s3cret, line 3, column x, y",
            "SQL statement \"COPY s3cret, line 3\"",
        ] {
            assert_eq!(detail(context), None, "{context}");
        }
    }

    #[test]
    fn an_error_response_is_read_field_by_field() {
        let error = ServerError::read(b"SFEHLER\0VFATAL\0C57P01\0Mterminating\0Hwait\0Wrow s3cret\0nfk\0\0");
        assert!(error.fatal);
        assert_eq!((error.code.as_str(), error.message.as_str()), ("57P01", "terminating"));
        assert_eq!((error.hint.as_deref(), error.constraint.as_deref()), (Some("wait"), Some("fk")));
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    #[test]
    fn an_odd_code_is_an_unknown_error() {
        assert_eq!(SqlState::parse("23505").class(), "23");
        for odd in ["", "2350", "235055", "ab\u{e9}"] {
            assert_eq!(SqlState::parse(odd), SqlState::UNKNOWN, "{odd}");
        }
    }
}
