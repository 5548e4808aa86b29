//! Why the spool cannot do what it was asked for.
//!
//! Returned by every part of this module; judged by `error_policy`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What went wrong with the spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The operating system refused.
    #[error("could not {doing} {path}: {source}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// `spool.bytes_max` is reached.
    #[error("in-progress transactions need more than the {bytes_max} bytes that spool.bytes_max allows in {path}")]
    Full {
        /// `spool.bytes_max`.
        bytes_max: u64,
        /// `spool.dir`.
        path: PathBuf,
    },
    /// The disk has not carried out an order.
    #[error("the spool's disk has not answered for {}: {path}", humantime::format_duration(*.within))]
    Slow {
        /// For so long.
        within: Duration,
        /// `spool.dir`.
        path: PathBuf,
    },
    /// What was read is not what was written.
    #[error("spool file {path} is damaged at byte {offset}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damaged block begins.
        offset: u64,
    },
    /// The thread is gone without a word.
    #[error("the spool's thread has ended")]
    Gone,
}
