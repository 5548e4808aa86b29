//! `headwater skip`: leaves a source transaction out that the destination cannot take.
//!
//! Writes the operator's wish; the running service, which meets the transaction again and again, moves it to
//! headwater.dead_letter at its next attempt. Nothing is skipped that was not named.

use std::path::PathBuf;

use super::cli::TransactionArguments;
use super::lock_waits::telling;
use super::{display, settings};
use crate::commands::exit::ExitStatus;
use crate::destination::request_skip;
use crate::error_policy::Fault;

/// Asks for a transaction to be left out.
pub(super) async fn skip(path: &Option<PathBuf>, options: &TransactionArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let wanted = options.wanted();
    let asked = async {
        let bookkeeping = settings::bookkeeping(&config).await?;
        request_skip(bookkeeping.client(), wanted).await
    };
    let (asked, waits) = telling(&config, asked).await;
    match asked {
        Ok(()) => {
            display::result(&format!(
                "the source transaction with {wanted} will be left out and kept in headwater.dead_letter when headwater meets it"
            ));
            ExitStatus::Done
        }
        Err(error) => {
            display::error(&waits.report(&Fault::Destination(error)).lines());
            ExitStatus::OperatorMustAct
        }
    }
}
