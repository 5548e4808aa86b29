//! Log lines: for people on a terminal, or JSON.
//!
//! Started once by `commands`. The level is `info` unless `RUST_LOG` says otherwise; only our own room is shown below
//! `warn`, so a library's chatter does not bury a state change. Lines go to standard error, for standard output
//! belongs to the commands' results.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    let started = match format {
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    // Tests start it several times in one process.
    let _ = started;
}
