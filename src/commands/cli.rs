//! The command line, as clap reads it.
//!
//! Flags as typed; what they mean is the commands' own affair.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Keeps local PostgreSQL tables equal to those of another PostgreSQL database.
///
/// headwater takes one full snapshot in foreign-key order, shows it in one instant, then follows the source's logical
/// replication stream and applies every insert, update, delete and truncate transactionally.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, max_term_width = 100)]
pub(super) struct Arguments {
    /// The configuration file. Without it, every setting comes from HEADWATER_… variables.
    #[arg(long, short, global = true, value_name = "FILE", env = "HEADWATER_CONFIG")]
    pub(super) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Keep the destination equal to the source, until asked to stop.
    Run(RunArguments),
    /// Watch it work: two throw-away clusters, a forum that is written to, and headwater between them.
    Demo(DemoArguments),
}

#[derive(Debug, Args)]
pub(super) struct DemoArguments {
    /// End by itself after so many seconds; otherwise Ctrl-C ends it.
    #[arg(long, value_name = "SECONDS", env = "DEMO_SECONDS")]
    pub(super) seconds: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// First reconcile all tables with a new snapshot; agrees to changing tables that already have rows.
    #[arg(long)]
    pub(super) resnapshot: bool,

    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogStyle::Human, env = "HEADWATER_LOG_FORMAT")]
    pub(super) log_format: LogStyle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogStyle {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}
