//! `headwater dead-letter`: the transactions that were left out, and what they hold.
//!
//! Reads headwater.dead_letter and prints; changes nothing. Values are shown when they are asked for.

use std::path::PathBuf;

use super::cli::{DeadLetterCommand, ShowArguments};
use super::lock_waits::telling;
use super::{display, settings};
use crate::commands::exit::ExitStatus;
use crate::config::Config;
use crate::destination::{
    DestinationError, WantedLetters, dead_letters, describe, describe_with_values, parts, pending_skips, read_part,
};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, counted, printable};
use crate::session::SqlClient;

/// Lists dead letters, or shows one.
pub(super) async fn dead_letter(path: &Option<PathBuf>, command: &DeadLetterCommand) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let shown = async {
        let bookkeeping = settings::bookkeeping(&config).await?;
        let client = bookkeeping.client();
        match command {
            DeadLetterCommand::List => list(client).await,
            DeadLetterCommand::Show(options) => show(&config, client, options).await,
        }
    };
    let (shown, waits) = telling(&config, shown).await;
    match shown {
        Ok(()) => ExitStatus::Done,
        Err(error) => {
            display::error(&waits.report(&Fault::Destination(error)).lines());
            ExitStatus::OperatorMustAct
        }
    }
}

async fn list(client: &SqlClient) -> Result<(), DestinationError> {
    let letters = dead_letters(client).await?;
    let pending = pending_skips(client).await?;
    if letters.is_empty() && pending.is_empty() {
        display::result("no transaction was left out");
    }
    for skip in pending {
        display::result(&format!(
            "{}, pending: skip requested {} by {}; the service skips it when the transaction comes",
            skip.wanted,
            skip.requested_at,
            printable(&skip.requested_by)
        ));
    }
    for letter in letters {
        display::result(&format!(
            "end_lsn {}, commit_lsn {}, committed {}, left out {}: {} of {}",
            letter.end_lsn,
            letter.commit_lsn,
            letter.committed_at,
            letter.moved_at,
            counted(letter.changes, "change"),
            printable(&letter.tables.join(", "))
        ));
    }
    Ok(())
}

async fn show(config: &Config, client: &SqlClient, options: &ShowArguments) -> Result<(), DestinationError> {
    let wanted: WantedLetters = options.transaction.wanted();
    let parts = parts(client, wanted).await?;
    if parts == 0 {
        return Err(DestinationError::Refused(
            ErrorReport::new(format!("there is no dead letter with {wanted}"))
                .hint("See what there is: headwater dead-letter list"),
        ));
    }
    for part in 1..=parts {
        let changes = read_part(client, wanted, part).await?;
        let lines = match options.values {
            true => describe_with_values(client, &settings::writing(config), &changes).await?,
            false => describe(&changes),
        };
        lines.iter().for_each(|line| display::result(line));
    }
    Ok(())
}
