//! What concerns both sides together.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::destination::DestinationView;
use super::source::SourceView;
use super::{About, Findings};
use crate::config::Config;
use crate::destination::{Catalog, DestinationError};
use crate::fault::Fault;
use crate::pg::ErrorReport;
use crate::pipeline::asked::Asked;
use crate::pipeline::prepare::{check_fit, check_tables, stored_history};
use crate::plan::fit::Transfer;
use crate::session::SqlClient;
use crate::source::{SourceCatalog, SourceError, check_history, gap_report, same_database};

const BOTH: About = About::Both;

pub(super) async fn look(config: &Config, source: SourceView, destination: &DestinationView, findings: &mut Findings) {
    let SourceView { client, mut replication, slot, catalog } = source;
    let here = destination.bookkeeping.client();
    if let Some((session, identification)) = &mut replication {
        let urls = (&config.source.url, &config.destination.url);
        match same_database(identification, here, urls).await {
            Ok(()) => {}
            Err(error) => findings.fault(BOTH, "databases", error),
        }
        // Read after the slot, and before the end of the source's WAL: a service that runs moves all three.
        let position = match destination.position {
            Some(before) => destination.bookkeeping.position().await.ok().flatten().or(Some(before)),
            None => None,
        };
        let stored = position.and_then(|position| stored_history(destination.stream.as_ref(), position));
        if let Some(stored) = stored {
            if let Ok(now) = session.identify_system().await {
                *identification = now;
            }
            match check_history(session, identification, slot.as_ref(), &stored).await {
                Ok(()) => findings.ok(BOTH, "history", format!("the source leads on from {}", stored.position)),
                Err(error) => findings.fault(BOTH, "history", error),
            }
        }
    }
    if let (Some(catalog), Some(existing)) = (&catalog, &destination.catalog) {
        fit(catalog, existing, findings);
        foreign_keys(config, catalog, findings);
        if destination.position.is_some() {
            match destination.bookkeeping.tables().await.map_err(Fault::from) {
                Ok(followed) => {
                    if let Err(fault) = check_tables(&followed, catalog, &Asked::default()) {
                        findings.fault(BOTH, "tables", fault);
                    }
                }
                Err(fault) => findings.fault(BOTH, "tables", fault),
            }
        }
        if let Some(gap) = destination.stream.as_ref().and_then(|stream| stream.gap.as_deref()) {
            findings.fail(BOTH, "gap", gap_report(&config.source.publication, gap, catalog));
        }
    }
    encodings(&client, here, findings).await;
    clocks(&client, here, findings).await;
}

fn fit(catalog: &SourceCatalog, existing: &Catalog, findings: &mut Findings) {
    match check_fit(catalog, existing) {
        Ok(Transfer::Binary) => findings.ok(BOTH, "columns", "they fit; values travel in binary"),
        Ok(Transfer::Text) => findings.ok(BOTH, "columns", "they fit; values travel as text, because of some types"),
        Err(fault) => findings.fault(BOTH, "columns", fault),
    }
    for table in &catalog.tables {
        let generated: Vec<String> = table
            .definition
            .columns
            .iter()
            .filter(|column| column.generated.is_some())
            .map(|column| column.name.to_string())
            .collect();
        if !generated.is_empty() {
            let name = table.definition.name();
            let text =
                format!("generated columns of table {name} are computed at the destination: {}", generated.join(", "));
            findings.ok(BOTH, "generated columns", text);
        }
    }
}

fn foreign_keys(config: &Config, catalog: &SourceCatalog, findings: &mut Findings) {
    for table in &catalog.tables {
        for (constraint, target) in table.definition.foreign_keys() {
            let parent = target.table();
            if !config.tables.contains(&parent) {
                let name = table.definition.name();
                let text = format!(
                    "foreign key {} of table {name} points at {parent}, which is not replicated",
                    constraint.name
                );
                let report = ErrorReport::new(text)
                    .detail("Such a foreign key is not created at the destination; one that is there already may fail.")
                    .hint(format!("Add {parent} to tables."));
                findings.warn(BOTH, "foreign keys", report);
            }
        }
    }
}

async fn encodings(source: &SqlClient, destination: &SqlClient, findings: &mut Findings) {
    let sql = "SELECT pg_catalog.pg_encoding_to_char(encoding)::text, datcollate::text FROM pg_catalog.pg_database
               WHERE datname = pg_catalog.current_database()";
    let doing = "comparing encodings";
    let there = source.query_one(doing, sql, &[]).await.map_err(|error| Fault::from(SourceError::Session(error)));
    let here = destination.query_one(doing, sql, &[]).await;
    let here = here.map_err(|error| Fault::from(DestinationError::Session(error)));
    let (there, here) = match (there, here) {
        (Ok(there), Ok(here)) => (there, here),
        (Err(fault), _) | (_, Err(fault)) => return findings.fault(BOTH, "encodings", fault),
    };
    let names: [String; 4] = [there.get(0), here.get(0), there.get(1), here.get(1)];
    let [encoding_there, encoding_here, collation_there, collation_here] = names;
    if encoding_there == encoding_here || encoding_here == "UTF8" {
        findings.ok(BOTH, "encodings", format!("{encoding_there} at the source, {encoding_here} here"));
    } else {
        let text = format!("the source's encoding is {encoding_there}, the destination's {encoding_here}");
        let report = ErrorReport::new(text)
            .detail("A character that the destination's encoding lacks halts the stream.")
            .hint("Use a destination database with ENCODING 'UTF8'.");
        findings.warn(BOTH, "encodings", report);
    }
    if collation_there != collation_here {
        let text = format!(
            "collation {collation_there} at the source, {collation_here} here: texts may be sorted differently"
        );
        findings.ok(BOTH, "collations", text);
    }
}

/// Clocks that differ by more make seconds of lag hard to read beside other logs.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(2);

async fn clocks(source: &SqlClient, destination: &SqlClient, findings: &mut Findings) {
    let mut apart = Vec::new();
    for (name, client) in [("source", source), ("destination", destination)] {
        let sql = "SELECT EXTRACT(EPOCH FROM pg_catalog.clock_timestamp())::float8";
        let asked = Instant::now();
        let Ok(row) = client.query_one("comparing clocks", sql, &[]).await else { return };
        let took = asked.elapsed().as_secs_f64();
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let offset: f64 = row.get::<_, f64>(0) - (ours - took / 2.0);
        if offset.abs() > CLOCKS_APART_MAX.as_secs_f64() + took {
            apart.push(format!("the {name}'s clock is {offset:+.1} s from this machine's"));
        }
    }
    if apart.is_empty() {
        findings.ok(BOTH, "clocks", "they agree");
    } else {
        let report = ErrorReport::new(apart.join("; "))
            .detail("Lag is corrected for it, but times in logs do not compare.")
            .hint("Let all machines follow one time server.");
        findings.warn(BOTH, "clocks", report);
    }
}
