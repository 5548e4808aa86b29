//! What the operator types.
//!
//! I/O, the last one. In come arguments, the configuration file and the environment; out come a running
//! service, a report, and an exit code: 0 asked to stop, 1 an operator must act, 2 usage or configuration. The only
//! module that prints.

mod check;
mod cli;
mod config_file;
mod conflict;
mod cutover;
mod dead_letter;
pub mod demo;
mod display;
pub mod exit;
mod explain;
mod format;
mod init;
mod man;
mod lock_waits;
mod observe;
mod replay;
mod resnapshot;
mod run;
mod settings;
mod skip;
mod status;
mod teardown;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use cli::{Arguments, Command, ConflictCommand};

pub use crate::commands::exit::ExitStatus;

impl From<ExitStatus> for ExitCode {
    fn from(exit: ExitStatus) -> ExitCode {
        ExitCode::from(match exit {
            ExitStatus::Done => 0,
            ExitStatus::OperatorMustAct => 1,
            ExitStatus::Usage => 2,
        })
    }
}

/// Parses the process's arguments and does what they say.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread: the ring's two tasks hand each other work all the time, and neither computes for long. On several
    // threads a large transaction took a third longer, most of it waking and being woken.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            display::error(&format!("cannot start the runtime: {error}"));
            return ExitStatus::OperatorMustAct.into();
        }
    };
    let exit = runtime.block_on(async {
        match arguments.command {
            Command::Run(options) => run::run(&arguments.config, &options).await,
            Command::Skip(options) => skip::skip(&arguments.config, &options).await,
            Command::Conflict(ConflictCommand::Show(options)) => conflict::show(&arguments.config, &options).await,
            Command::DeadLetter(command) => dead_letter::dead_letter(&arguments.config, &command).await,
            Command::Replay(options) => replay::replay(&arguments.config, &options).await,
            Command::Status(options) => status::status(arguments.config.as_deref(), &options).await,
            Command::Explain => explain::explain(arguments.config.as_deref()).await,
            Command::Resnapshot(options) => resnapshot::resnapshot(&arguments.config, &options).await,
            Command::Completions(options) => crate::commands::man::completions(options.shell),
            Command::Man(options) => crate::commands::man::man(&options.dir),
            Command::Check(options) => check::run(&arguments.config, &options).await,
            Command::Cutover(options) => cutover::run(&arguments.config, &options).await,
            Command::Teardown(options) => teardown::run(&arguments.config, &options).await,
            Command::Init(options) => init::run(&options).await,
            Command::Verify(options) => verify::run(&arguments.config, &options).await,
            Command::Demo(options) => demo::demo(options.seconds).await,
        }
    });
    // Whatever still runs has nothing left to do that anybody waits for.
    runtime.shutdown_background();
    exit.into()
}
