//! `headwater completions` and `headwater man`: what a package installs with the binary, generated from the command line's
//! own definition.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::cli::Arguments;
use super::display;
use crate::commands::exit::ExitStatus;

/// Prints the completions for a shell.
pub(super) fn completions(shell: Shell) -> ExitStatus {
    clap_complete::generate(shell, &mut Arguments::command(), "headwater", &mut std::io::stdout());
    ExitStatus::Done
}

/// Writes a manual page for headwater and one for each command into a directory.
pub(super) fn man(dir: &Path) -> ExitStatus {
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Arguments::command(), dir));
    match written {
        Ok(()) => ExitStatus::Done,
        Err(error) => {
            display::error(&format!("cannot write the manual pages into {}: {error}", dir.display()));
            ExitStatus::OperatorMustAct
        }
    }
}
