//! Whether the source keeps the slot while all tables are copied.
//!
//! Awaited by `attempt` next to the copy, which does not use the slot before its end: without the slot's WAL nothing can follow
//! it, so that a copy of hours would be published to be made again. I/O, on a session of its own.
//!
//! A slot that is lost when this begins is an old one, which the copy replaces. So only one that was seen in order before can be
//! found lost.
//!
//! Bounds: one question every [`LOOK_EVERY`]. A source that cannot be asked is the copy's to report.

use std::time::Duration;

use crate::error_policy::Fault;
use crate::preflight::addresses::Addresses;
use crate::session::{Sql, SqlClient};
use crate::source::{LostHistory, SourceError, check_valid, find_slot};

/// A slot that is lost early costs so much of the copy at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Resolves once a slot that was there in order is invalidated.
pub(super) async fn slot_lost(addresses: &Addresses) -> Fault {
    let asking = Sql { purpose: "slot", ..addresses.source.clone() };
    let mut session: Option<SqlClient> = None;
    let mut was_in_order = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let client = match session.take() {
            Some(client) => client,
            None => match asking.connect().await {
                Ok(client) => client,
                Err(_) => continue,
            },
        };
        match look(&client, addresses).await {
            Ok(Some(Ok(()))) => was_in_order = true,
            Ok(Some(Err(lost))) if was_in_order => return SourceError::from(lost).into(),
            // There is none yet, or it is replaced.
            Ok(Some(Err(_)) | None) => {}
            Err(error) => {
                tracing::debug!("the slot could not be looked at while tables are copied: {error}");
                continue;
            }
        }
        session = Some(client);
    }
}

/// Whether the slot is in order; `None`: there is none.
async fn look(client: &SqlClient, addresses: &Addresses) -> Result<Option<Result<(), LostHistory>>, SourceError> {
    Ok(find_slot(client, &addresses.slot).await?.map(|slot| check_valid(&slot)))
}
