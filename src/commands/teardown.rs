//! `headwater teardown`: removes what headwater has made on both sides, except rows.
//!
//! Says of each thing what became of it, also of those before an error; exit 0 when nothing is left, 1 when something is, with the SQL that
//! removes it.

use std::path::PathBuf;

use super::cli::TeardownArguments;
use super::lock_waits::telling;
use super::{display, settings};
use crate::commands::exit::ExitStatus;
use crate::maintenance::teardown::{self, Removal};

/// Removes, or says what would be removed.
pub(super) async fn run(path: &Option<PathBuf>, arguments: &TeardownArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let mut removals = Vec::new();
    let (ended, waits) = telling(&config, teardown::run(&config, arguments.dry_run, &mut removals)).await;
    let removed = if arguments.dry_run { "would remove" } else { "removed" };
    for removal in &removals {
        match removal {
            Removal::Removed(what) => display::result(&format!("{removed}: {what}")),
            Removal::Kept(what) => display::result(&format!("kept: {what}")),
            Removal::Left { what, sql } => {
                display::result(&format!("left: {what}\n    {}", sql.replace('\n', "\n    ")));
            }
        }
    }
    if let Err(fault) = ended {
        display::error(&waits.report(&fault).lines());
        display::line(match removals.is_empty() {
            true => "nothing was removed",
            false => "what is listed was done before that; run headwater teardown again for the rest",
        });
        return ExitStatus::OperatorMustAct;
    }
    let left = removals.iter().any(|removal| matches!(removal, Removal::Left { .. }));
    if left { ExitStatus::OperatorMustAct } else { ExitStatus::Done }
}
