//! `headwater replay`: applies a skipped transaction, once its obstacle is removed.
//!
//! All or nothing: one destination transaction applies it and removes the dead letter. The service may keep running
//! meanwhile.

use std::path::PathBuf;

use super::cli::ReplayArguments;
use super::lock_waits::telling;
use super::{display, settings};
use crate::commands::exit::ExitStatus;
use crate::destination::{self, ReplayRequest};
use crate::error_policy::Fault;
use crate::pg::counted;

/// Applies a dead letter.
pub(super) async fn replay(path: &Option<PathBuf>, options: &ReplayArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let wanted = options.transaction.wanted();
    let writing = settings::writing(&config);
    let request = ReplayRequest {
        wanted,
        tables: &config.tables,
        trusted_roles: &config.destination.trusted_roles,
        names_owners: config.destination.names_owners(),
        truncate: config.truncate,
        wins: options.source_wins,
    };
    let replayed = async {
        let bookkeeping = settings::bookkeeping(&config).await?;
        destination::replay(bookkeeping.client(), &writing, &request).await
    };
    let (replayed, waits) = telling(&config, replayed).await;
    match replayed {
        Ok(replayed) => {
            display::result(&format!(
                "applied {} of the source transaction with {wanted}; it is no dead letter any more",
                counted(replayed.changes, "change")
            ));
            if replayed.missing_deletes > 0 {
                display::result(&format!("gone already: {} to delete", counted(replayed.missing_deletes, "row")));
            }
            for repair in &replayed.repairs {
                let what = repair.kind.as_str();
                display::result(&format!(
                    "{}: {} with a conflict ({what}), now equal",
                    repair.table,
                    counted(repair.rows, "row")
                ));
            }
            ExitStatus::Done
        }
        Err(error) => {
            display::error(&waits.report(&Fault::Destination(error)).lines());
            ExitStatus::OperatorMustAct
        }
    }
}
