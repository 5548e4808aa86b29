//! Log lines: for people on a terminal, or JSON.
//!
//! Started once by `commands`. The level is `info` unless `RUST_LOG` says otherwise; only our own modules are shown below
//! `warn`, so a library's chatter does not bury a state change. Lines go to standard error, for standard output
//! belongs to the commands' results.
//!
//! For people an event is one line, `LEVEL message field="value"`, and the further lines of its message (DETAIL, HINT), which
//! are indented: only an event begins a line at its left edge, whatever text of others is in it, and the last line
//! of a hint ends with the hint. As JSON it is one object on one line. Both are printable, see [`crate::pg::printable`].

use std::fmt::{self, Debug, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

use crate::pg::{printable, printable_json, printable_lines};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

static JSON: AtomicBool = AtomicBool::new(false);

/// Whether lines are JSON: then detail and hint are fields, not lines of the message.
pub(super) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Starts logging for the whole process. A second call changes nothing.
///
/// `writer` writes to standard error, in a way that leaves whole what else is on the terminal.
pub fn start_logging<W>(format: LogFormat, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .parse_lossy(std::env::var("RUST_LOG").unwrap_or_else(|_| "headwater=info".to_owned()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    let started = match format {
        LogFormat::Human => {
            builder.with_ansi(io::stderr().is_terminal()).fmt_fields(MessageThenFields).with_writer(writer).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_writer(PrintableJson(writer)).try_init(),
    };
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    // Tests start it several times in one process.
    let _ = started;
}

/// Below each other, and apart from the lines that begin an event.
const INDENT: &str = "    ";

/// An event for people: the message's first line, the fields, the message's further lines.
struct MessageThenFields;

impl<'writer> FormatFields<'writer> for MessageThenFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut event = EventText::default();
        fields.record(&mut event);
        let mut lines = event.message.lines();
        writer.write_str(lines.next().unwrap_or_default())?;
        writer.write_str(&event.fields)?;
        for line in lines {
            write!(writer, "\n{INDENT}{line}")?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct EventText {
    message: String,
    fields: String,
}

impl Visit for EventText {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = printable_lines(&text).into_owned();
        } else {
            write!(self.fields, " {}={}", field.name(), printable(&text)).expect("a String takes everything");
        }
    }
}

/// A writer of JSON lines that writes them printably.
struct PrintableJson<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for PrintableJson<W> {
    type Writer = PrintableJsonLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        PrintableJsonLine(self.0.make_writer())
    }
}

/// Each write is a whole event, as tracing-subscriber writes them.
struct PrintableJsonLine<W>(W);

impl<W: Write> Write for PrintableJsonLine<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable_json(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is written, to be looked at.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str = "x\n2026-01-01T00:00:00Z ERROR forged\u{1b}[2J\u{202e}\u{2028}\r\u{7f}\u{e0041}";

    fn text(written: &Written) -> String {
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line_for_people_cannot_be_forged_and_its_hint_ends_with_the_hint() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .fmt_fields(MessageThenFields)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(state = "waiting", name = HOSTILE, shown = %HOSTILE, "{HOSTILE}\nHINT:  Run:\n        SELECT 1;");
            tracing::info!(rows = 7, "applied");
        });
        let text = text(&written);
        assert!(text.chars().all(|c| crate::pg::is_printable(c) || c == '\n'), "{text:?}");
        let at_the_edge: Vec<&str> = text.lines().filter(|line| !line.starts_with("    ")).collect();
        let [first, second] = at_the_edge[..] else { panic!("{text}") };
        assert!(
            first.starts_with("ERROR x state=\"waiting\" name=\"x\\n2026") && second.ends_with("applied rows=7"),
            "{text}"
        );
        assert!(text.contains("\n            SELECT 1;\n"), "{text}");
    }

    #[test]
    fn a_line_of_json_is_valid_printable_and_exact() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(PrintableJson(move || writer.clone()))
            .finish();
        tracing::subscriber::with_default(subscriber, || tracing::error!(hint = HOSTILE, "{HOSTILE}"));
        let text = text(&written);
        assert!(text.trim_end().chars().all(crate::pg::is_printable), "{text:?}");
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(event["message"] == HOSTILE && event["hint"] == HOSTILE, "{event}");
    }
}
