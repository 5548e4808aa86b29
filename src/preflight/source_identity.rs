//! `run --accept-source-identity`: the source was upgraded by pg_upgrade, and is to be followed on without a copy.
//!
//! Called by an attempt that leads, before it prepares. The new identity and the position that goes with it are written in one
//! statement; from then on the start is like any other, and the flag changes nothing when a supervisor gives it again.

use super::history::stored_history;
use super::prepare::replaced;
use super::replication_session::connect_replication;
use super::whereabouts::told;
use crate::config::Config;
use crate::destination::{Bookkeeping, StreamState};
use crate::error_policy::Fault;
use crate::preflight::addresses::Addresses;
use crate::preflight::prepare::record_of;
use crate::source::{SourceCatalog, SourceDatabase, SourceError, find_slot, kept_slot_position};
use crate::telemetry::Telemetry;

/// Makes the bookkeeping follow the server that source.url leads to, if it is another cluster and its slot continues.
pub(crate) async fn accept_identity(
    config: &Config,
    addresses: &Addresses,
    bookkeeping: &Bookkeeping,
    telemetry: &Telemetry,
) -> Result<(), Fault> {
    // Without a position there is nothing to continue from, and the start says what is missing.
    let (Some(stream), Some(position)) = (bookkeeping.stream().await?, bookkeeping.position().await?) else {
        return Ok(());
    };
    if !matches!(stream.state, StreamState::Live { .. }) {
        return Ok(());
    }
    let mut session = connect_replication(config, "accepting").await?;
    let identification = session.identify_system().await.map_err(SourceError::Session)?;
    session.close_and_wait().await;
    if identification.system_identifier == stream.system_identifier {
        telemetry.event("source", "the source is the one that is known: --accept-source-identity changes nothing");
        return Ok(());
    }
    let source = addresses.source.connect().await.map_err(SourceError::Session)?;
    let database = SourceDatabase::read(&source, &stream.source_database).await?;
    let slot = find_slot(&source, &stream.slot).await?;
    let stored = stored_history(&stream, position);
    let catalog = match SourceCatalog::read(&source, &config.tables).await {
        Ok(catalog) => catalog,
        Err(error) => {
            // Where all else says that it is the cluster that pg_upgrade has made, the OIDs are the same.
            kept_slot_position(&identification, &database, slot.as_ref(), &stored, &[])?;
            let report = told(&source, bookkeeping, &config.tables).await?;
            return Err(report.map_or_else(|| error.into(), Fault::Halted));
        }
    };
    let followed = bookkeeping.tables().await?;
    let replaced: Vec<_> = replaced(&followed, &catalog).map(|(table, _)| table.name.clone()).collect();
    let next = kept_slot_position(&identification, &database, slot.as_ref(), &stored, &replaced)?;
    bookkeeping.accept_source(&identification, record_of(&database), position, next).await?;
    telemetry.warning(
        "source",
        format!(
            "the source is the cluster with system identifier {} now, and was {}: accepted as what pg_upgrade has made of it; the \
             position goes from {position} to {next}, where its slot begins. A cluster that was made in the same way cannot be told \
             from it: run headwater verify now",
            identification.system_identifier, stream.system_identifier
        ),
    );
    Ok(())
}
