//! Where both servers are, and under which names our sessions ask.
//!
//! Made from the configuration by each module that opens sessions. Plain data.

use std::time::Duration;

use crate::config::{Config, LOCK_MARGIN};
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
        // A session may wait for a lock for as long as either setting says; then the server's message comes first.
        let timeout = QUERY_MAX.max(config.destination.lock_timeout.max(config.fence_timeout) + LOCK_MARGIN);
        Addresses {
            source: Sql { connection: config.source.url.clone(), purpose: "control", timeout },
            destination: Sql { connection: config.destination.url.clone(), purpose: "bookkeeping", timeout },
            slot: config.source.slot.clone(),
        }
    }

    /// The same, with another bound for each question.
    pub(crate) fn within(mut self, timeout: Duration) -> Addresses {
        self.source.timeout = timeout;
        self.destination.timeout = timeout;
        self
    }

    /// The destination for a session whose name tells the slot, so that a later leader finds what an earlier one left.
    pub(crate) fn destination_for(&self, purpose: &'static str) -> Sql {
        let connection = self.destination.connection.with_application_suffix(self.slot.as_str());
        Sql { connection, purpose, ..self.destination.clone() }
    }
}

/// How long a catalog query may take: far longer than any does.
pub(crate) const QUERY_MAX: Duration = Duration::from_secs(60);
