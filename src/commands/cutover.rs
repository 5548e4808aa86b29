//! `headwater cutover`: may the destination take over now, and from where on.
//!
//! Exit 0 when it may: both sides are equal, the sequences are over, and nobody has written at the source since. It
//! stops nothing; the operator does, with what is printed.

use std::path::PathBuf;
use std::sync::Arc;

use super::cli::CutoverArguments;
use super::lock_waits::telling;
use super::{display, settings, verify};
use crate::catalog::not_carried::{script, summary};
use crate::commands::exit::ExitStatus;
use crate::maintenance::cutover;
use crate::verification::verdict::{VerifyOptions, VerifyProgress};

/// Drains, verifies, brings sequences over, reports.
pub(super) async fn run(path: &Option<PathBuf>, arguments: &CutoverArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => Arc::new(config),
        Err(exit) => return exit,
    };
    let options = VerifyOptions { workers: arguments.workers.map(usize::from), ..VerifyOptions::default() };
    let progress = Arc::new(VerifyProgress::default());
    let shown = tokio::spawn(verify::show(Arc::clone(&progress)));
    let mut tell = display::line;
    let cutting_over = cutover::run(&config, &options, &progress, &mut tell);
    let (ended, waits) = telling(&config, cutting_over).await;
    display::end(shown).await;
    let cutover = match ended {
        Ok(cutover) => cutover,
        Err(fault) => {
            display::error(&waits.report(&fault).lines());
            return ExitStatus::OperatorMustAct;
        }
    };
    verify::print(&cutover.verdict, 1000);
    if !cutover.verdict.left_out.is_empty() {
        display::error("not all tables could be compared: cut over again when each of them streams");
        return ExitStatus::OperatorMustAct;
    }
    if !cutover.verdict.is_equal() {
        display::error("the sides differ: repair first (headwater verify --repair), then cut over again");
        return ExitStatus::OperatorMustAct;
    }
    if !cutover.verdict.is_proof() {
        display::error(
            "not all values could be compared: compare the columns named above by hand, then cut over without headwater cutover",
        );
        return ExitStatus::OperatorMustAct;
    }
    display::result(&format!("sequences moved forward: {}", cutover.sequences));
    for report in &cutover.reports {
        display::warning(&report.lines());
    }
    display::result(&format!(
        "the destination may be written: it holds everything up to {}, and the source was not written to since",
        cutover.position
    ));
    display::result("next: stop headwater run, then let the applications write here");
    if !cutover.identities.is_empty() {
        display::result("once it has stopped, let columns draw as they do at the source:");
        for statement in &cutover.identities {
            display::result(&format!("    {statement}"));
        }
    }
    if !cutover.foreign_keys.is_empty() {
        display::result("once it has stopped, give the foreign keys their actions back:");
        for statement in &cutover.foreign_keys {
            display::result(&format!("    {statement}"));
        }
    }
    for (_, line) in summary(&cutover.not_carried) {
        display::result(&line);
    }
    if arguments.not_carried {
        display::result(&script(&cutover.not_carried));
    } else if !cutover.not_carried.is_empty() {
        display::result("headwater check --not-carried prints the SQL that makes these here");
    }
    display::result("undo: until something is written here, keep writing at the source; headwater run carries on");
    if cutover.reports.is_empty() { ExitStatus::Done } else { ExitStatus::OperatorMustAct }
}
