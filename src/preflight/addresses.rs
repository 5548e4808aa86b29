//! Where both servers are, and under which names our sessions ask.
//!
//! Made from the configuration by each module that opens sessions. Plain data.

use crate::config::Config;
use crate::pg::SlotName;
use crate::session::Sql;

/// How the sessions of an attempt are opened.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) source: Sql,
    pub(crate) destination: Sql,
    pub(crate) slot: SlotName,
}

impl Addresses {
    pub(crate) fn new(config: &Config) -> Addresses {
        Addresses {
            source: Sql { connection: config.source.url.clone(), purpose: "control", timeout: QUERY_MAX },
            destination: Sql { connection: config.destination.url.clone(), purpose: "bookkeeping", timeout: QUERY_MAX },
            slot: config.source.slot.clone(),
        }
    }

    /// The destination for a session whose name tells the slot, so that a later leader finds what an earlier one left.
    pub(crate) fn destination_for(&self, purpose: &'static str) -> Sql {
        let connection = self.destination.connection.with_application_suffix(self.slot.as_str());
        Sql { connection, purpose, ..self.destination.clone() }
    }
}

/// How long a catalog query may take: far longer than any does.
pub(crate) const QUERY_MAX: std::time::Duration = std::time::Duration::from_secs(60);
