//! The destination's half of the list.

use std::collections::BTreeSet;

use super::{About, Findings, connection, unencrypted};
use crate::config::Config;
use crate::destination::{
    Bookkeeping, Candidate, Catalog, DestinationError, DestinationServer, Stream, WritingSettings, holder,
};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName};
use crate::pipeline::prepare::{Addresses, check_configured, check_empty};

const DESTINATION: About = About::Destination;

/// What is known of the destination, for what concerns both.
pub(super) struct DestinationView {
    pub(super) bookkeeping: Bookkeeping,
    pub(super) catalog: Option<Catalog>,
    pub(super) stream: Option<Stream>,
    /// The stored position of a live stream.
    pub(super) position: Option<Lsn>,
    /// The tables of a live stream.
    pub(super) followed: BTreeSet<QualifiedName>,
}

pub(super) async fn look(config: &Config, addresses: &Addresses, findings: &mut Findings) -> Option<DestinationView> {
    let connected = Bookkeeping::connect(&addresses.destination).await;
    let bookkeeping = findings.take(DESTINATION, "connection", connected)?;
    let client = bookkeeping.client();
    match connection(client).await {
        Ok((text, true)) => findings.ok(DESTINATION, "connection", text),
        Ok((_, false)) => findings.warn(DESTINATION, "connection", unencrypted("destination.url")),
        Err(error) => findings.fault(DESTINATION, "connection", DestinationError::Session(error)),
    }
    writing(config, findings).await;
    let examined = DestinationServer::examine(client, &config.tables).await;
    if let Some((server, problems)) = findings.take(DESTINATION, "privileges", examined) {
        if problems.is_empty() {
            findings.ok(DESTINATION, "privileges", "the role may write the tables and keep its bookkeeping");
        }
        for problem in problems {
            findings.fail(DESTINATION, "privileges", problem);
        }
        if server.replica_role {
            let text = "replica: foreign keys and ordinary triggers do not act on what is applied";
            findings.ok(DESTINATION, "session_replication_role", text);
        } else {
            let report = ErrorReport::new("origin: foreign keys and triggers act on what is applied")
                .detail(format!("Role {} may not set session_replication_role. It works, but it is slower.", server.role))
                .hint(format!(
                    "Run at the destination as a superuser (15 and later):\nGRANT SET ON PARAMETER session_replication_role TO {};",
                    server.role
                ));
            findings.warn(DESTINATION, "session_replication_role", report);
        }
    }
    let stream = findings.take(DESTINATION, "bookkeeping", bookkeeping.stream().await).flatten();
    let position = match &stream {
        Some(_) => findings.take(DESTINATION, "bookkeeping", bookkeeping.position().await).flatten(),
        None => None,
    };
    let followed = match position {
        Some(_) => findings.take(DESTINATION, "bookkeeping", bookkeeping.tables().await).unwrap_or_default(),
        None => Vec::new(),
    };
    let followed = followed.into_iter().map(|table| table.name).collect();
    let catalog = findings.take(DESTINATION, "tables", Catalog::read(client, &config.tables).await);
    match (&stream, position) {
        (Some(stream), position) => match check_configured(config, stream) {
            Ok(()) => {
                let at = position.map_or("not yet published".to_owned(), |position| format!("at {position}"));
                findings.ok(DESTINATION, "bookkeeping", format!("fed through slot {}, {at}", stream.slot));
            }
            Err(fault) => findings.fault(DESTINATION, "bookkeeping", fault),
        },
        (None, _) => {
            findings.ok(DESTINATION, "bookkeeping", "none yet: the first start makes a snapshot");
            if let Some(catalog) = &catalog {
                match check_empty(client, catalog.tables.keys()).await {
                    Ok(()) => {}
                    Err(fault) => findings.fault(DESTINATION, "tables", fault),
                }
            }
        }
    }
    if let Some(holder) = findings.take(DESTINATION, "leader", holder(client, &config.source.slot).await).flatten() {
        let text = format!("an instance runs (process {} here): another one would stand by", holder.process_id);
        findings.ok(DESTINATION, "leader", text);
    }
    if let Some(catalog) = &catalog {
        tables(config, catalog, findings);
    }
    Some(DestinationView { bookkeeping, catalog, stream, position, followed })
}

/// The writing session, as a start opens it: a pooler in between is found.
async fn writing(config: &Config, findings: &mut Findings) {
    let settings = WritingSettings {
        connection: config.destination.url.clone(),
        slot: config.source.slot.clone(),
        leader_timeout: config.leader_timeout,
        lock_timeout: config.destination.lock_timeout,
        timeout: config.destination.timeout,
        synchronous_commit: config.destination.synchronous_commit,
        positions: Ident::new("headwater"),
    };
    match Candidate::connect(&settings).await {
        Ok(candidate) => {
            candidate.close().await;
            findings.ok(DESTINATION, "writing session", "no pooler stands in between");
        }
        Err(error) => findings.fault(DESTINATION, "writing session", error),
    }
}

/// What acts on the tables that exist, and what points at them.
fn tables(config: &Config, catalog: &Catalog, findings: &mut Findings) {
    let missing: Vec<String> =
        config.tables.iter().filter(|name| catalog.table(name).is_none()).map(ToString::to_string).collect();
    if !missing.is_empty() {
        findings.ok(DESTINATION, "tables", format!("{} will be created", missing.join(", ")));
    }
    for name in &config.tables {
        let Some(table) = catalog.table(name) else { continue };
        let outside: Vec<String> = table
            .referenced_by
            .iter()
            .map(|key| (QualifiedName { schema: key.schema.clone(), name: key.table.clone() }, &key.name))
            .filter(|(child, _)| !config.tables.contains(child))
            .map(|(child, key)| format!("{child} ({key})"))
            .collect();
        if !outside.is_empty() {
            let report = ErrorReport::new(format!("local tables point at table {name}: {}", outside.join(", ")))
                .detail(
                    "Under session_replication_role = replica nothing checks them: rows that the source deletes leave orphans. \
                     Otherwise they can make a change fail.",
                )
                .hint("Replicate them too, or drop these foreign keys.");
            findings.warn(DESTINATION, "foreign keys", report);
        }
        let acting: Vec<String> = table
            .triggers
            .iter()
            .filter(|trigger| matches!(trigger.enabled, 'R' | 'A'))
            .map(|trigger| trigger.name.to_string())
            .collect();
        if !acting.is_empty() {
            let text = format!("triggers of table {name} fire for what is applied: {}", acting.join(", "));
            let report = ErrorReport::new(text).detail("They are ENABLE REPLICA or ENABLE ALWAYS.");
            findings.warn(DESTINATION, "triggers", report);
        }
    }
}
