//! The command line, as clap reads it.
//!
//! Flags as typed; what they mean is the commands' own affair.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::destination::WantedLetters;
use crate::pg::Lsn;

/// Keeps local PostgreSQL tables equal to those of another PostgreSQL database.
///
/// headwater takes one full snapshot in foreign-key order, publishes it in one transaction, then consumes the source's logical
/// replication stream and applies every insert, update, delete and truncate transactionally.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, max_term_width = 100)]
pub(super) struct Arguments {
    /// The configuration file; by default ./headwater.toml or /etc/headwater/headwater.toml. HEADWATER_… environment variables override it.
    #[arg(long, short, global = true, value_name = "FILE", env = "HEADWATER_CONFIG")]
    pub(super) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the service: keep the destination equal to the source until SIGTERM or SIGINT.
    Run(RunArguments),
    /// Skip a source transaction that cannot be applied and move it to headwater.dead_letter.
    Skip(TransactionArguments),
    /// Show the conflict that halts apply.
    #[command(subcommand)]
    Conflict(ConflictCommand),
    /// List or show skipped transactions.
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
    /// Apply a skipped transaction to the rows as they are now and remove it from headwater.dead_letter.
    Replay(ReplayArguments),
    /// Show state and lag, as the status page does; works while the service is down.
    Status(StatusArguments),
    /// Report what blocks progress right now, and what to do about it.
    Explain,
    /// Ask the running service to copy all or the given tables again and reconcile the differences, without a restart.
    Resnapshot(ResnapshotArguments),
    /// Check that everything `run` requires is in place; makes no changes.
    Check(CheckArguments),
    /// Read both databases, write a first configuration and print the privileges that it requires.
    Init(InitArguments),
    /// Compare source and destination row by row while both are being written.
    Verify(VerifyArguments),
    /// Prepare the switch to the destination: drain the stream, verify the rows, copy the sequences.
    Cutover(CutoverArguments),
    /// Remove the slot, the publication and the bookkeeping; keeps the rows.
    Teardown(TeardownArguments),
    /// Print shell completions.
    Completions(CompletionsArguments),
    /// Write the manual pages into a directory.
    #[command(hide = true)]
    Man(ManArguments),
    /// Run a demonstration: two temporary clusters, a forum that is written to, and headwater between them.
    Demo(DemoArguments),
}

/// A source transaction by one of its positions.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct TransactionArguments {
    /// The transaction's end_lsn, as the service reports it.
    #[arg(long, value_name = "LSN")]
    pub(super) end_lsn: Option<Lsn>,

    /// The transaction's commit_lsn; the service reports it for large transactions, whose end it has not received.
    #[arg(long, value_name = "LSN")]
    pub(super) commit_lsn: Option<Lsn>,
}

impl TransactionArguments {
    /// Which transaction is meant; clap lets through exactly one of the two.
    pub(super) fn wanted(&self) -> WantedLetters {
        match (self.end_lsn, self.commit_lsn) {
            (Some(end_lsn), _) => WantedLetters::EndLsn(end_lsn),
            (None, commit_lsn) => WantedLetters::CommitLsn(commit_lsn.unwrap_or_default()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ConflictCommand {
    /// Print the change that failed, and the rows concerned at both ends, with their values.
    ///
    /// Prints values to this terminal only: no log, status or metric contains them. Reads both databases as the roles of the
    /// configuration; makes no changes. Exit status 1 while a conflict halts apply.
    Show(ConflictShowArguments),
}

#[derive(Debug, Args)]
pub(super) struct ConflictShowArguments {
    /// Print whole values; without it, values longer than 200 characters are cut.
    #[arg(long)]
    pub(super) full: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetterCommand {
    /// List them, oldest first.
    List,
    /// Show the changes of one.
    Show(ShowArguments),
}

#[derive(Debug, Args)]
pub(super) struct ShowArguments {
    #[command(flatten)]
    pub(super) transaction: TransactionArguments,

    /// Include the values of rows.
    #[arg(long)]
    pub(super) values: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArguments {
    #[command(flatten)]
    pub(super) transaction: TransactionArguments,

    /// Overwrite existing rows, and insert rows that an update does not find.
    #[arg(long)]
    pub(super) source_wins: bool,
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArguments {
    /// Which shell.
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArguments {
    /// The directory; created if missing.
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// Refresh every second until Ctrl-C.
    #[arg(long, short)]
    pub(super) watch: bool,

    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DemoArguments {
    /// Stop after this many seconds. Default: run until Ctrl-C.
    #[arg(long, value_name = "SECONDS", env = "DEMO_SECONDS")]
    pub(super) seconds: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct InitArguments {
    /// The source's URL, as postgresql://user@host/database.
    ///
    /// Other users of this machine see the arguments of its processes: give a password by a password file (~/.pgpass),
    /// PGPASSWORD, or in HEADWATER_SOURCE_URL instead of here.
    #[arg(
        value_name = "SOURCE_URL",
        env = "HEADWATER_SOURCE_URL",
        hide_env_values = true,
        required_unless_present = "ddl_marks"
    )]
    pub(super) source: Option<String>,

    /// The destination's URL.
    #[arg(
        value_name = "DESTINATION_URL",
        env = "HEADWATER_DESTINATION_URL",
        hide_env_values = true,
        required_unless_present = "ddl_marks"
    )]
    pub(super) destination: Option<String>,

    /// Only print the event triggers that mark schema changes in the source's stream, and the statements that drop them.
    ///
    /// With marks, tables are compared with the source's catalog at the very transaction that changes them. They are optional, and a
    /// superuser of the source installs them.
    #[arg(long)]
    pub(super) ddl_marks: bool,

    /// The file to write; never overwrites an existing file.
    #[arg(long, short, value_name = "FILE", default_value = "headwater.toml")]
    pub(super) output: PathBuf,

    /// Propose this table and the tables that its foreign keys reference; may be repeated. Default: all.
    #[arg(long, value_name = "TABLE")]
    pub(super) table: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct CutoverArguments {
    /// Number of sessions on each side of the comparison. Default: the number of cores, at most 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(super) workers: Option<u8>,

    /// Also print the SQL of everything that replication does not carry (triggers, policies, grants, …).
    #[arg(long)]
    pub(super) not_carried: bool,
}

#[derive(Debug, Args)]
pub(super) struct TeardownArguments {
    /// Print what would be removed; makes no changes.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// Print an array of objects.
    #[arg(long)]
    pub(super) json: bool,

    /// Print only warnings and failures; nothing when there are none.
    #[arg(long, short, conflicts_with_all = ["json", "not_carried"])]
    pub(super) quiet: bool,

    /// Print the SQL of everything that replication does not carry (triggers, policies, grants, …), to review and run by hand.
    #[arg(long, conflicts_with = "json")]
    pub(super) not_carried: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    /// Compare only this table; may be repeated.
    #[arg(long, value_name = "TABLE")]
    pub(super) table: Vec<String>,

    /// Number of sessions on each side. Default: the number of cores, at most 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(super) workers: Option<u8>,

    /// Maximum number of bytes to read per second on each side, such as 50MB.
    #[arg(long, value_name = "SIZE")]
    pub(super) max_rate: Option<String>,

    /// Print the columns that differ.
    #[arg(long)]
    pub(super) show_columns: bool,

    /// Repair the differing rows, at a second fence.
    #[arg(long)]
    pub(super) repair: bool,

    /// Without a running service: apply the stream up to the fence first.
    #[arg(long)]
    pub(super) catch_up: bool,

    /// Compare both sides as they are, without a fence; changes that are not applied yet count as differences.
    #[arg(long, conflicts_with_all = ["repair", "catch_up"])]
    pub(super) no_fence: bool,

    /// Maximum number of differing keys to print per table.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) limit: usize,
}

#[derive(Debug, Args)]
pub(super) struct ResnapshotArguments {
    /// The tables. Default: all configured tables.
    #[arg(value_name = "TABLE")]
    pub(super) tables: Vec<String>,

    /// Submit the request and return; does not wait for the copy.
    #[arg(long)]
    pub(super) no_wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// Copy all or the given tables again and reconcile the differences; permits changes to tables that already have rows.
    ///
    /// Takes effect once, even if a supervisor starts the same command line again after a crash.
    #[arg(long, value_name = "TABLE,…", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(super) resnapshot: Option<String>,

    /// Continue without a copy at a source that pg_upgrade has upgraded, keeping the slot.
    ///
    /// pg_upgrade gives the cluster another system identifier, so without this flag headwater takes it for another source. Use it
    /// once, and only for a cluster that pg_upgrade (17 or later) has made of the one that fed the destination.
    #[arg(long, conflicts_with = "resnapshot")]
    pub(super) accept_source_identity: bool,

    /// The format of log lines.
    #[arg(long, value_enum, default_value_t = LogStyle::Human, env = "HEADWATER_LOG_FORMAT")]
    pub(super) log_format: LogStyle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogStyle {
    /// Text, for people.
    Human,
    /// One JSON object per line.
    Json,
}
