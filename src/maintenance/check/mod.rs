//! Check: everything that `run` requires, and what an operator should know besides, without changing anything.
//!
//! Runs outside the replication loop: it needs no running service and starts none. The functions that check the requirements at a
//! start check them here, so the messages are the same; but no failure ends the list. What a start would change (such as
//! creating a publication) is tried in a transaction that is rolled back.
//!
//! ```text
//! source ─▶ connection, server, role, publication and tables, transactions, slot
//! destination ─▶ connection, server, role, tables, bookkeeping
//! both ─▶ columns, types, publications at the destination, foreign keys, encodings, clocks, history
//! here ─▶ the spool's directory
//! ```
//!
//! A side that cannot be reached is one failure; the checks that need it are omitted.

mod both;
mod connection;
mod constraints;
mod destination;
pub(crate) mod findings;
mod host;
mod publications;
mod sessions;
mod source;
mod values;

use std::sync::Arc;

use crate::config::Config;
use crate::maintenance::check::findings::{About, Finding, Findings};
use crate::pg::ErrorReport;
use crate::preflight::addresses::Addresses;
use crate::preflight::hosts::{Settled, settle};

/// Looks at both sides; changes nothing.
pub(crate) async fn run(config: &Arc<Config>) -> Vec<Finding> {
    let addresses = Addresses::new(config);
    let mut findings = Findings::default();
    let destination = destination::look(config, &addresses, &mut findings).await;
    let settled = match &destination {
        Some(destination) => {
            let settled = settle(config, &destination.bookkeeping).await;
            findings.take(About::Source, "hosts", settled)
        }
        // Without the bookkeeping nothing is known of the source's history.
        None => Some(Settled::as_configured(config)),
    };
    // Where no host will do, everything else at the source only follows from it.
    if let Some(settled) = settled {
        for text in settled.passed_over.iter().chain(&settled.out_of_reach) {
            findings.warn(About::Source, "hosts", ErrorReport::new(text));
        }
        for text in settled.unwanted {
            findings.ok(About::Source, "hosts", text);
        }
        let config = &settled.config;
        let addresses = Addresses::new(config);
        let source = source::look(config, &addresses, destination.as_ref(), &mut findings).await;
        if let (Some(source), Some(destination)) = (source, destination) {
            both::look(config, source, &destination, &mut findings).await;
        }
    }
    crate::maintenance::check::host::look(config, &mut findings);
    // A stable order: by side, as they were found.
    findings.0.sort_by_key(|finding| match finding.about {
        About::Source => 0,
        About::Destination => 1,
        About::Both => 2,
        About::Here => 3,
    });
    findings.0
}
