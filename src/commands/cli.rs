//! The command line, as clap reads it.
//!
//! Flags as typed; what they mean is the commands' own affair.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::destination::Wanted;
use crate::pg::Lsn;

/// Keeps local PostgreSQL tables equal to those of another PostgreSQL database.
///
/// headwater takes one full snapshot in foreign-key order, shows it in one instant, then follows the source's logical
/// replication stream and applies every insert, update, delete and truncate transactionally.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, max_term_width = 100)]
pub(super) struct Arguments {
    /// The configuration file; by default ./headwater.toml or /etc/headwater/headwater.toml. HEADWATER_… variables win over it.
    #[arg(long, short, global = true, value_name = "FILE", env = "HEADWATER_CONFIG")]
    pub(super) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Keep the destination equal to the source, until asked to stop.
    Run(RunArguments),
    /// Leave a source transaction out that the destination cannot take: it goes to headwater.dead_letter instead.
    Skip(TransactionArguments),
    /// Show the conflict that halts the service.
    #[command(subcommand)]
    Conflict(ConflictCommand),
    /// See the transactions that were left out.
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
    /// Apply a transaction that was left out, to the rows as they are now, and remove it from headwater.dead_letter.
    Replay(ReplayArguments),
    /// Show how fresh the copy is, as the status page does; also when the service is down.
    Status(StatusArguments),
    /// Say what blocks progress right now, and what to do about it.
    Explain,
    /// Ask the running service to copy all or the given tables again and reconcile the differences, without a restart.
    Resnapshot(ResnapshotArguments),
    /// See whether everything is as `run` needs it; nothing is changed.
    Check(CheckArguments),
    /// Write a first configuration, and print the privileges that it needs, after looking at both databases.
    Init(InitArguments),
    /// Compare both sides, row for row, while both are being written.
    Verify(VerifyArguments),
    /// Prove that the destination may take over: drained, equal, sequences brought over.
    Cutover(CutoverArguments),
    /// Remove slot, publication and bookkeeping; the rows stay.
    Teardown(TeardownArguments),
    /// Print the completions for a shell, to be sourced or installed.
    Completions(CompletionsArguments),
    /// Write the manual pages into a directory.
    #[command(hide = true)]
    Man(ManArguments),
    /// Watch it work: two throw-away clusters, a forum that is written to, and headwater between them.
    Demo(DemoArguments),
}

/// A source transaction by one of its names.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct TransactionArguments {
    /// The transaction's end_lsn, as the service names it.
    #[arg(long, value_name = "LSN")]
    pub(super) end_lsn: Option<Lsn>,

    /// The transaction's commit_lsn; the service gives it for large transactions, whose end it has not seen.
    #[arg(long, value_name = "LSN")]
    pub(super) commit_lsn: Option<Lsn>,
}

impl TransactionArguments {
    /// Which transaction is meant; clap lets through exactly one of the two.
    pub(super) fn wanted(&self) -> Wanted {
        match (self.end_lsn, self.commit_lsn) {
            (Some(end_lsn), _) => Wanted::EndLsn(end_lsn),
            (None, commit_lsn) => Wanted::CommitLsn(commit_lsn.unwrap_or_default()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ConflictCommand {
    /// Print the change that failed and the rows that it is about, at both ends, with their values.
    ///
    /// The values go to this terminal only: no log, status or metric holds them. Reads both databases as the roles of the
    /// configuration; changes nothing. Exit status 1 while a conflict halts the service.
    Show(ConflictShowArguments),
}

#[derive(Debug, Args)]
pub(super) struct ConflictShowArguments {
    /// Print values whole; otherwise those longer than 200 characters are cut.
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

    /// Show the values of rows, too.
    #[arg(long)]
    pub(super) values: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArguments {
    #[command(flatten)]
    pub(super) transaction: TransactionArguments,

    /// Overwrite rows that are there, and insert rows that an update misses.
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
    /// The directory, created where it is missing.
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// Keep showing it, every second, until Ctrl-C.
    #[arg(long, short)]
    pub(super) watch: bool,

    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DemoArguments {
    /// End by itself after so many seconds; otherwise Ctrl-C ends it.
    #[arg(long, value_name = "SECONDS", env = "DEMO_SECONDS")]
    pub(super) seconds: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct InitArguments {
    /// Where the source is, as postgresql://user@host/database.
    ///
    /// Other users of this machine see the arguments of its processes: give a password by PGPASSWORD, a password file
    /// (~/.pgpass), or in HEADWATER_SOURCE_URL instead of here.
    #[arg(
        value_name = "SOURCE_URL",
        env = "HEADWATER_SOURCE_URL",
        hide_env_values = true,
        required_unless_present = "ddl_marks"
    )]
    pub(super) source: Option<String>,

    /// Where the destination is.
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

    /// The file to write; one that is there is never written over.
    #[arg(long, short, value_name = "FILE", default_value = "headwater.toml")]
    pub(super) output: PathBuf,

    /// Propose this table, and those that its foreign keys need; may be given several times. Default: all.
    #[arg(long, value_name = "TABLE")]
    pub(super) table: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct CutoverArguments {
    /// Sessions on each side of the comparison. Default: as many as this machine has cores, at most 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(super) workers: Option<u8>,

    /// Print, too, the SQL of everything that replication does not carry (triggers, policies, grants, …).
    #[arg(long)]
    pub(super) not_carried: bool,
}

#[derive(Debug, Args)]
pub(super) struct TeardownArguments {
    /// Only say what would be removed.
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

    /// Print the SQL of everything that replication does not carry (triggers, policies, grants, …), to be read and run by hand.
    #[arg(long, conflicts_with = "json")]
    pub(super) not_carried: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    /// Compare this table only; may be given several times.
    #[arg(long, value_name = "TABLE")]
    pub(super) table: Vec<String>,

    /// Sessions on each side. Default: as many as this machine has cores, at most 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(super) workers: Option<u8>,

    /// Most bytes read a second on each side, as 50MB.
    #[arg(long, value_name = "SIZE")]
    pub(super) max_rate: Option<String>,

    /// Name the columns that differ.
    #[arg(long)]
    pub(super) show_columns: bool,

    /// Put the differing rows right, at a second fence.
    #[arg(long)]
    pub(super) repair: bool,

    /// Without a running service: apply what is missing up to the fence first.
    #[arg(long)]
    pub(super) catch_up: bool,

    /// Compare both sides as they stand, without waiting for the service; what is not applied yet counts as a difference.
    #[arg(long, conflicts_with_all = ["repair", "catch_up"])]
    pub(super) no_fence: bool,

    /// Keys printed of each table at most.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) limit: usize,
}

#[derive(Debug, Args)]
pub(super) struct ResnapshotArguments {
    /// The tables; without any, all that are configured.
    #[arg(value_name = "TABLE")]
    pub(super) tables: Vec<String>,

    /// Only ask: do not wait until it is done.
    #[arg(long)]
    pub(super) no_wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// Copy all or the given tables again and reconcile the differences; permits changes to tables that already have rows.
    ///
    /// It is done once, also when a supervisor starts the same command line again after a crash.
    #[arg(long, value_name = "TABLE,…", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(super) resnapshot: Option<String>,

    /// The source was upgraded by pg_upgrade, which has kept the slot: continue from there without a copy.
    ///
    /// pg_upgrade gives the cluster another system identifier, so that without this flag it is taken for another source. Give it
    /// once, and only for a cluster that pg_upgrade (17 or later) has made of the one that fed the destination.
    #[arg(long, conflicts_with = "resnapshot")]
    pub(super) accept_source_identity: bool,

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
