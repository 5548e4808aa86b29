//! The pipelined request: everything of one destination transaction in one go, with exactly one Sync, at its end.
//!
//! Written by `destination::apply`, sent by [`crate::session::writing::WritingSession`]. BEGIN, the position, the rows (COPY as
//! Execute, CopyData, CopyDone), COMMIT: extended-protocol messages back to back. Any error, BEGIN's too, makes the
//! server skip to the Sync, so that nothing can commit by itself. With a Sync per statement a cancelled BEGIN let a
//! batch commit row by row (seen: 7 torn batches of 4,398; with one Sync none).
//!
//! Values of [`LARGE_VALUE_BYTES`] and more stay where they lie: a request has the places at which they are sent.
//!
//! The answer names the statement that failed by its number, so that the caller can tell which change it was.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::ServerError;
use crate::pg::TypeId;

/// What the caller wants to know of a statement's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expectation {
    /// Only that it went well.
    Nothing,
    /// How many rows it touched.
    Count,
    /// The row that it returns.
    Row,
    /// That its tag says COMMIT.
    Commit,
}

/// What a statement's answer begins with; it shows whether another statement has replaced it under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// INSERT
    Insert,
    /// DELETE
    Delete,
    /// COPY
    Copy,
    /// SELECT
    Select,
    /// LOCK TABLE
    Lock,
    /// The statement has no name: it is the one that was sent.
    Any,
}

impl Verb {
    /// Whether a command tag is one of such a statement.
    pub(super) fn is_of(self, tag: &[u8]) -> bool {
        tag.starts_with(self.as_str().as_bytes())
    }

    /// The word.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Verb::Insert => "INSERT",
            Verb::Delete => "DELETE",
            Verb::Copy => "COPY",
            Verb::Select => "SELECT",
            Verb::Lock => "LOCK",
            Verb::Any => "",
        }
    }
}

/// A prepared statement, as it is executed.
#[derive(Clone, Copy, Debug)]
pub struct StatementName<'a> {
    /// Its name; empty for the one that was prepared last without one.
    pub name: &'a str,
    /// What its answer begins with.
    pub verb: Verb,
}

impl StatementName<'_> {
    /// The statement that was prepared last without a name.
    pub const UNNAMED: StatementName<'static> = StatementName { name: "", verb: Verb::Any };
}

/// How a parameter or a column is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text.
    Text,
    /// Binary.
    Binary,
}

impl Format {
    const fn code(self) -> u16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }
}

/// Messages of one pipelined request, as they will be sent.
#[derive(Default)]
pub struct PipelinedRequest {
    /// All but the large values.
    pub(super) bytes: BytesMut,
    /// The large values, in order.
    pub(super) large: Vec<LargeValue>,
    pub(super) expectations: Vec<(Expectation, Verb)>,
}

/// A value that is sent from where it lies: a second one of it would not fit into the memory of a small machine.
pub(super) struct LargeValue {
    /// It comes before this one of the other bytes.
    pub(super) before: usize,
    pub(super) value: Bytes,
}

/// Values of this size are not copied: below it one more piece to send costs more than the copy.
pub const LARGE_VALUE_BYTES: usize = 1 << 20;

/// The values of a Bind being written.
pub struct StatementParameters<'a> {
    out: &'a mut BytesMut,
    large: &'a mut Vec<LargeValue>,
}

impl StatementParameters<'_> {
    /// The next value; `None` is NULL.
    #[inline]
    pub fn put(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => {
                self.out.put_i32(length(value.len()));
                self.out.extend_from_slice(value);
            }
            None => self.out.put_i32(-1),
        }
    }

    /// The next value, which is not copied.
    pub fn put_shared(&mut self, value: Bytes) {
        self.out.put_i32(length(value.len()));
        self.large.push(LargeValue { before: self.out.len(), value });
    }

    /// The next value, written by `write`; its length is filled in afterwards.
    pub fn put_with(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let at = self.out.len();
        self.out.put_i32(0);
        write(self.out);
        let written = self.out.len() - at - 4;
        patch(self.out, at, length(written));
    }
}

impl PipelinedRequest {
    /// An empty pipelined request.
    pub fn new() -> PipelinedRequest {
        PipelinedRequest::default()
    }

    /// How many bytes it has, as sent.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len() + self.large.iter().map(|large| large.value.len()).sum::<usize>()
    }

    /// Its bytes, piece by piece, as they are sent.
    pub(super) fn pieces(bytes: BytesMut, large: Vec<LargeValue>) -> impl Iterator<Item = Bytes> {
        let mut rest = bytes.freeze();
        let mut taken = 0;
        let mut pieces = Vec::with_capacity(2 * large.len() + 1);
        for LargeValue { before, value } in large {
            pieces.push(rest.split_to(before - std::mem::replace(&mut taken, before)));
            pieces.push(value);
        }
        pieces.push(rest);
        pieces.into_iter()
    }

    /// How many statements it executes so far: the number of the next one.
    pub fn statements(&self) -> usize {
        self.expectations.len()
    }

    /// Prepares `sql` as `name` for the session.
    pub fn parse(&mut self, name: &str, sql: &str, types: &[TypeId]) {
        self.message(b'P', |out| {
            put_str(out, name);
            put_str(out, sql);
            out.put_u16(count(types.len()));
            for id in types {
                out.put_u32(id.0);
            }
        });
    }

    /// Executes `sql`, which takes no parameters and whose result nobody wants.
    pub fn run(&mut self, sql: &str) {
        self.run_expecting(sql, Expectation::Nothing);
    }

    /// Executes a prepared statement with the parameters that `write` puts.
    pub fn execute(
        &mut self,
        statement: StatementName<'_>,
        formats: &[Format],
        parameters: usize,
        write: impl FnOnce(&mut StatementParameters<'_>),
    ) {
        self.bind(statement.name, formats, parameters, write);
        self.execute_bound(Expectation::Nothing, statement.verb);
    }

    /// The same; the answer will hold the number of rows touched.
    pub fn execute_counted(
        &mut self,
        statement: StatementName<'_>,
        formats: &[Format],
        parameters: usize,
        write: impl FnOnce(&mut StatementParameters<'_>),
    ) {
        self.bind(statement.name, formats, parameters, write);
        self.execute_bound(Expectation::Count, statement.verb);
    }

    /// The same; the answer will hold the row that it returns, as text.
    pub fn execute_returning(
        &mut self,
        name: &str,
        formats: &[Format],
        parameters: usize,
        write: impl FnOnce(&mut StatementParameters<'_>),
    ) {
        self.bind(name, formats, parameters, write);
        self.execute_bound(Expectation::Row, Verb::Any);
    }

    /// Executes `sql` without parameters; the answer will hold the row that it returns, as text.
    pub fn query(&mut self, sql: &str) {
        self.run_expecting(sql, Expectation::Row);
    }

    /// Executes a prepared `COPY … FROM STDIN` with the data that `write` appends, cut into CopyData messages.
    pub fn copy(&mut self, name: &str, write: impl FnOnce(&mut CopyData<'_>)) {
        self.bind(name, &[], 0, |_| {});
        self.execute_bound(Expectation::Count, Verb::Copy);
        let mut data = CopyData { out: &mut self.bytes, at: 0 };
        data.open();
        write(&mut data);
        data.close();
        self.message(b'c', |_| {});
    }

    /// COMMIT; the answer tells whether it did.
    pub fn commit(&mut self) {
        self.run_expecting("COMMIT", Expectation::Commit);
    }

    /// Ends the pipelined request. Nothing is added behind it.
    pub(super) fn sync(&mut self) {
        self.message(b'S', |_| {});
    }

    fn run_expecting(&mut self, sql: &str, expectation: Expectation) {
        self.parse("", sql, &[]);
        self.bind("", &[], 0, |_| {});
        self.execute_bound(expectation, Verb::Any);
    }

    fn bind(
        &mut self,
        name: &str,
        formats: &[Format],
        parameters: usize,
        write: impl FnOnce(&mut StatementParameters<'_>),
    ) {
        self.message_with(b'B', |out, large| {
            out.put_u8(0);
            put_str(out, name);
            // One format for all parameters is said once.
            let uniform = formats.first().filter(|first| formats.iter().all(|format| format == *first));
            match uniform {
                Some(format) => {
                    out.put_u16(1);
                    out.put_u16(format.code());
                }
                None => {
                    out.put_u16(count(formats.len()));
                    for format in formats {
                        out.put_u16(format.code());
                    }
                }
            }
            out.put_u16(count(parameters));
            write(&mut StatementParameters { out, large });
            out.put_u16(0);
        });
    }

    fn execute_bound(&mut self, expectation: Expectation, verb: Verb) {
        self.message(b'E', |out| {
            out.put_u8(0);
            out.put_u32(0);
        });
        self.expectations.push((expectation, verb));
    }

    #[inline]
    fn message(&mut self, tag: u8, write: impl FnOnce(&mut BytesMut)) {
        self.message_with(tag, |out, _| write(out));
    }

    #[inline]
    fn message_with(&mut self, tag: u8, write: impl FnOnce(&mut BytesMut, &mut Vec<LargeValue>)) {
        self.bytes.put_u8(tag);
        let (at, large) = (self.bytes.len(), self.large.len());
        self.bytes.put_i32(0);
        write(&mut self.bytes, &mut self.large);
        let large = self.large.iter().skip(large).map(|large| large.value.len()).sum::<usize>();
        let written = self.bytes.len() - at + large;
        patch(&mut self.bytes, at, length(written));
    }
}

/// COPY data being written: rows are appended, messages are cut between them.
pub struct CopyData<'a> {
    out: &'a mut BytesMut,
    at: usize,
}

/// A CopyData message is closed once it has so many bytes: the server holds one message in memory at a time.
const COPY_MESSAGE_BYTES: usize = 64 << 10;

impl CopyData<'_> {
    /// Appends one row, or the format's header or trailer, to `out` as `write` does.
    #[inline]
    pub fn row(&mut self, write: impl FnOnce(&mut BytesMut)) {
        write(self.out);
        if self.out.len() - self.at > COPY_MESSAGE_BYTES {
            self.close();
            self.open();
        }
    }

    fn open(&mut self) {
        self.out.put_u8(b'd');
        self.at = self.out.len();
        self.out.put_i32(0);
    }

    fn close(&mut self) {
        let written = self.out.len() - self.at;
        patch(self.out, self.at, length(written));
    }
}

/// What became of one statement, where the caller wanted to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatementAnswer {
    /// The rows that it touched.
    Count(u64),
    /// The row that it returned, if any.
    Row(Option<Vec<Option<String>>>),
}

/// What became of a pipelined request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelinedAnswer {
    /// The answers that were wanted, in order, up to the failure if there is one.
    pub answers: Vec<StatementAnswer>,
    /// COMMIT was answered with COMMIT.
    pub committed: bool,
    /// The first error and the number of the statement that failed. BEGIN is statement 0.
    pub failure: Option<(usize, ServerError)>,
    /// The session is inside a transaction now (open or failed).
    pub in_transaction: bool,
}

/// The row count at the end of a command tag: `INSERT 0 5`, `COPY 7`; 0 when there is none.
pub(super) fn rows_in_tag(body: &[u8]) -> u64 {
    let tag = body.strip_suffix(&[0]).unwrap_or(body);
    let digits = tag.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let number = tag.get(tag.len() - digits..).unwrap_or_default();
    std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn put_str(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.put_u8(0);
}

fn patch(out: &mut BytesMut, at: usize, value: i32) {
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// A length field. Values and pipelined requests stay far below 2 GiB: a value is part of a received message of at most 1 GiB,
/// and batches are bounded.
fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("a message is shorter than 2 GiB")
}

/// A count field. Statements have at most as many parameters as a table has columns in its rows (1,600 at most).
fn count(items: usize) -> u16 {
    u16::try_from(items).expect("a statement has at most 65,535 parameters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipelined_request_has_exactly_one_sync_at_its_end() {
        let mut request = PipelinedRequest::new();
        request.run("BEGIN");
        request.parse("h1", "INSERT INTO t VALUES ($1)", &[TypeId(23)]);
        request.execute(StatementName { name: "h1", verb: Verb::Insert }, &[Format::Binary], 1, |values| {
            values.put(Some(&[0, 0, 0, 7]))
        });
        request.parse("h2", "COPY t FROM STDIN", &[]);
        request.copy("h2", |data| data.row(|out| out.extend_from_slice(b"1\n")));
        request.commit();
        request.sync();
        let mut rest = &request.bytes[..];
        let mut tags = Vec::new();
        while let Some((tag, after)) = rest.split_first() {
            tags.push(*tag);
            let length = u32::from_be_bytes(after[..4].try_into().unwrap());
            rest = &after[usize::try_from(length).unwrap()..];
        }
        assert_eq!(tags, b"PBEPBEPBEdcPBES");
        assert_eq!(request.statements(), 4);
    }

    #[test]
    fn a_statement_is_parsed_and_bound_under_its_name() {
        let mut request = PipelinedRequest::new();
        request.parse("h1", "SELECT $1", &[TypeId(23)]);
        let parse = b"P\0\0\0\x17h1\0SELECT $1\0\0\x01\0\0\0\x17";
        assert_eq!(&request.bytes[..], parse);
        request.execute(
            StatementName { name: "h1", verb: Verb::Insert },
            &[Format::Text, Format::Binary],
            2,
            |values| {
                values.put(Some(b"7"));
                values.put(None);
            },
        );
        let bind = b"B\0\0\0\x1b\0h1\0\0\x02\0\0\0\x01\0\x02\0\0\0\x017\xff\xff\xff\xff\0\0";
        let execute = b"E\0\0\0\x09\0\0\0\0\0";
        assert_eq!(&request.bytes[parse.len()..], [&bind[..], &execute[..]].concat());
    }

    #[test]
    fn a_large_value_stands_in_its_message_without_being_copied() {
        let value = Bytes::from(vec![b'v'; LARGE_VALUE_BYTES]);
        let written = |write: &dyn Fn(&mut StatementParameters<'_>)| {
            let mut request = PipelinedRequest::new();
            let statement = StatementName { name: "h1", verb: Verb::Insert };
            for _ in 0..2 {
                request.execute(statement, &[Format::Binary], 3, |values| {
                    values.put(Some(b"k"));
                    write(values);
                    values.put(None);
                });
            }
            request.sync();
            (request.size_bytes(), PipelinedRequest::pieces(request.bytes, request.large).collect::<Vec<_>>())
        };
        let (copied_bytes, copied) = written(&|values| values.put(Some(&value)));
        let (shared_bytes, shared) = written(&|values| values.put_shared(value.clone()));
        assert_eq!(copied_bytes, shared_bytes);
        assert_eq!(copied.concat(), shared.concat());
        assert_eq!(shared.iter().filter(|piece| piece.as_ptr() == value.as_ptr()).count(), 2, "it is the same");
    }

    #[test]
    fn copy_data_is_cut_between_rows() {
        let mut request = PipelinedRequest::new();
        request.copy("c", |data| {
            for _ in 0..5 {
                data.row(|out| out.extend_from_slice(&[b'x'; 40 << 10]));
            }
        });
        let messages = request.bytes.windows(1).filter(|w| w[0] == b'd').count();
        assert_eq!(messages, 3, "two rows, two rows, one row");
    }

    #[test]
    fn row_counts_come_from_the_tag() {
        for (tag, rows) in
            [(&b"INSERT 0 5\0"[..], 5), (b"COPY 70\0", 70), (b"BEGIN\0", 0), (b"DELETE 0\0", 0), (b"", 0)]
        {
            assert_eq!(rows_in_tag(tag), rows);
        }
    }

    #[test]
    fn a_tag_of_another_verb_is_no_answer_to_what_was_sent() {
        let tags = [&b"INSERT 0 1\0"[..], b"DELETE 1\0", b"COPY 7\0", b"SELECT 1\0", b"LOCK TABLE\0"];
        let verbs = [Verb::Insert, Verb::Delete, Verb::Copy, Verb::Select, Verb::Lock];
        for (tag, own) in tags.iter().zip(verbs) {
            for verb in verbs {
                assert_eq!(verb.is_of(tag), verb == own, "{verb:?} {}", tag.escape_ascii());
            }
            assert!(Verb::Any.is_of(tag));
        }
    }
}
