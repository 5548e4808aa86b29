//! What follows from a stream's health that is lost.
//!
//! Awaited next to the replication loop. [`super::stream_health`] finds it; here it becomes the fault that ends the stream.

use tokio::sync::watch;

use super::looks::{GivenUp, LOOK_MAX};
use super::stream_health::StreamHealth;
use crate::destination::DestinationError;
use crate::error_policy::Fault;
use crate::session::SessionError;
use crate::source::SourceError;
use crate::transaction::TransactionError;

/// Resolves when the monitor finds the stream's health lost.
pub(super) async fn health_lost(health: &mut watch::Receiver<StreamHealth>) -> Fault {
    loop {
        if let Some(fault) = fault(&health.borrow_and_update()) {
            return fault;
        }
        if health.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The fault that ends a stream of this health.
fn fault(health: &StreamHealth) -> Option<Fault> {
    Some(match health {
        StreamHealth::Healthy => return None,
        StreamHealth::Gone { report, gap: None } => Fault::Halted(report.clone()),
        StreamHealth::Gone { report, gap: Some(remembered) } => {
            SourceError::Gap { report: report.clone(), remembered: remembered.clone() }.into()
        }
        StreamHealth::Unpublished { publication, tables } => {
            let (publication, tables) = (publication.clone(), tables.clone());
            Fault::Source(SourceError::Unpublished { publication, tables })
        }
        StreamHealth::Replaced { table, old, new } => {
            let replaced = TransactionError::Replaced { table: table.clone(), old: *old, new: *new };
            Fault::Source(SourceError::Transaction(replaced))
        }
        StreamHealth::ForeignCode(report) | StreamHealth::Cascades(report) => {
            Fault::Destination(DestinationError::Refused(report.clone()))
        }
        StreamHealth::Changed { table, reason } => {
            Fault::Destination(DestinationError::NeedsCopy { table: table.clone(), reason: reason.clone() })
        }
        StreamHealth::OtherTables(others) => Fault::Destination(DestinationError::OtherTables(others.clone())),
        StreamHealth::Misunderstood { doing, what } => {
            let error = SessionError::Answer { doing, what: what.clone() };
            Fault::Source(SourceError::Session(error))
        }
        StreamHealth::NotLooked { transaction, reason } => {
            let (transaction, within) = (*transaction, LOOK_MAX);
            Fault::Source(match reason {
                GivenUp::Unseen => SourceError::Unseen { transaction, within },
                GivenUp::Unread(reason) => SourceError::NotLooked { transaction, within, reason: reason.clone() },
            })
        }
        StreamHealth::DestinationSilent(silent) => DestinationError::Silent(silent.clone()).into(),
    })
}
