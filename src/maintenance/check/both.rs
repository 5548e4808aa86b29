//! What concerns both sides together.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::destination::DestinationView;
use super::source::SourceView;
use super::{connection, constraints, publications, values};
use crate::catalog::fit::Transfer;
use crate::catalog::schema::{Identity, IndexDefinition, TableKind};
use crate::catalog::sequences::{OwnedSequence, SequenceReading, unreadable};
use crate::config::{Config, SchemaChanges};
use crate::destination::{Catalog, DestinationError, OtherTables, Writes, expressions_here, other_tables, taken_names};
use crate::error_policy::{Fault, report};
use crate::maintenance::check::findings::{About, Findings};
use crate::maintenance::check::host::free_bytes;
use crate::pg::{ErrorReport, Ident};
use crate::preflight::generated_columns::computed_otherwise;
use crate::preflight::history::stored_history;
use crate::preflight::missing_objects::{lacking, server_version};
use crate::preflight::not_carried::not_carried;
use crate::preflight::prepare::{check_added_empty, check_fit, check_tables, replaced, writes};
use crate::preflight::resync_requests::ResyncRequests;
use crate::preflight::suspended_tables::obstacle;
use crate::preflight::{cascades, collations};
use crate::session::{Clients, SessionError, SqlClient, read_sequences};
use crate::source::{Gap, SourceCatalog, SourceDatabase, SourceError, check_history, gap_report, same_database};
use crate::table_sync::lock_budget::LockRoom;

const BOTH: About = About::Both;

pub(super) async fn look(
    config: &Config,
    mut source: SourceView,
    destination: &DestinationView,
    findings: &mut Findings,
) {
    history(config, &mut source, destination, findings).await;
    let SourceView { client, catalog, .. } = source;
    let here = destination.bookkeeping.client();
    if let (Some(catalog), Some(existing)) = (&catalog, &destination.catalog) {
        let mut existing = existing.clone();
        if let Err(error) = existing.learn_types(here, &catalog.types).await {
            findings.fault(BOTH, "types", error);
        }
        CheckedTables { config, client: &client, here, catalog, existing: &existing, destination }.look(findings).await;
    }
    sequences(config, &client, here, findings).await;
    match not_carried(&client, here, &config.tables, Some(&config.source.publication)).await {
        Ok(found) => findings.not_carried(found),
        // Nothing that a start needs.
        Err(fault) => findings.warn(BOTH, "not carried", report(&fault)),
    }
    if let Some(catalog) = &catalog {
        disk(catalog, destination, findings).await;
    }
    encodings(&client, here, findings).await;
    clocks(&client, here, findings).await;
}

/// Whether the two are different databases, and the source leads on from the stored position.
async fn history(config: &Config, source: &mut SourceView, destination: &DestinationView, findings: &mut Findings) {
    let SourceView { client, replication, slot, .. } = source;
    let Some((session, identification)) = replication else { return };
    let (from, to) = (&config.source.url, &config.destination.url);
    match same_database(identification, destination.bookkeeping.client(), from, to).await {
        Ok(None) => {}
        Ok(Some(report)) => findings.fail(BOTH, "databases", report),
        Err(error) => findings.fault(BOTH, "databases", DestinationError::Session(error)),
    }
    // Read after the slot, and before the end of the source's WAL: a service that runs moves all three.
    let position = match destination.position {
        Some(before) => destination.bookkeeping.position().await.ok().flatten().or(Some(before)),
        None => None,
    };
    // Of another slot than the one that feeds this destination nothing follows.
    let stream = destination.stream.as_ref().filter(|stream| stream.slot == config.source.slot);
    let (Some(stream), Some(position)) = (stream, position) else { return };
    if let Ok(now) = session.identify_system().await {
        *identification = now;
    }
    let stored = stored_history(stream, position);
    let checked = match SourceDatabase::read(client, stored.database).await {
        Ok(database) => check_history(identification, &database, slot.as_ref(), &stored),
        Err(error) => Err(error),
    };
    match checked {
        Ok(()) => findings.ok(BOTH, "history", format!("the source leads on from {position}")),
        Err(error) => findings.fault(BOTH, "history", error),
    }
}

/// The tables, as both sides have them.
struct CheckedTables<'a> {
    config: &'a Config,
    client: &'a SqlClient,
    here: &'a SqlClient,
    catalog: &'a SourceCatalog,
    existing: &'a Catalog,
    destination: &'a DestinationView,
}

impl CheckedTables<'_> {
    fn clients(&self) -> Clients<'_> {
        Clients { source: self.client, destination: self.here }
    }

    async fn look(&self, findings: &mut Findings) {
        let CheckedTables { config, client, here, catalog, existing, destination } = *self;
        created(here, catalog, existing, findings).await;
        keys(catalog, existing, findings);
        let transfer = fit(config, catalog, existing, destination.position.is_some(), findings);
        if let Err(fault) = values::look(self.clients(), catalog, existing, transfer, findings).await {
            findings.fault(BOTH, "values", fault);
        }
        match computed_otherwise(here, catalog, existing).await {
            // The stream may not have come to it yet.
            Ok(reports) if destination.position.is_some() => {
                reports.into_iter().for_each(|report| findings.warn(BOTH, "generated columns", report));
            }
            Ok(reports) => reports.into_iter().for_each(|report| findings.fail(BOTH, "generated columns", report)),
            Err(error) => findings.fault(BOTH, "generated columns", error),
        }
        match lacking(client, here, catalog, existing).await {
            Ok(reports) => reports.into_iter().for_each(|report| findings.fail(About::Destination, "types", report)),
            Err(fault) => findings.fault(BOTH, "types", fault),
        }
        self.constraints(findings).await;
        if let Err(error) = publications::look(here, catalog, existing, findings).await {
            findings.fault(About::Destination, "publications", error);
        }
        values::enum_labels(config, here, catalog, findings).await;
        let writes = match writes(config, catalog, existing, destination.foreign_keys_act) {
            Ok(writes) => writes,
            Err(fault) => return findings.fault(About::Destination, "code", fault),
        };
        self.foreign_code(&writes, findings).await;
        locks(self.clients(), catalog, existing, destination.position.is_some(), findings).await;
        foreign_keys(config, catalog, findings);
        if destination.position.is_some()
            && let Err(fault) = followed(config, catalog, existing, destination, findings).await
        {
            findings.fault(BOTH, "tables", fault);
        }
        if let Some(gap) = destination.stream.as_ref().and_then(|stream| stream.gap.as_deref()) {
            findings.fail(BOTH, "gap", gap_report(&config.source.publication, &Gap::Before(gap.to_owned()), catalog));
        }
    }

    /// Constraints of the destination that the source does not have, or that its server is too old for.
    async fn constraints(&self, findings: &mut Findings) {
        let CheckedTables { here, catalog, existing, .. } = *self;
        match server_version(here).await {
            Ok(version) => {
                if let Some(report) = connection::newer(version, "destination") {
                    findings.warn(About::Destination, "server", report);
                }
                constraints::too_new_for(version, catalog, existing, findings);
            }
            Err(fault) => findings.fault(BOTH, "constraints", fault),
        }
        match expressions_here(here).await {
            Ok(expressions) => {
                constraints::stricter(catalog, existing, &expressions, findings);
                if let Err(fault) =
                    constraints::stricter_partitions(self.clients(), catalog, existing, &expressions, findings).await
                {
                    findings.fault(BOTH, "constraints", fault);
                }
            }
            Err(error) => findings.fault(BOTH, "constraints", error),
        }
        if let Err(error) = constraints::partitions(here, catalog, existing, findings).await {
            findings.fault(BOTH, "partitions", error);
        }
    }

    /// Code that would run when rows are written, and what it would do to other rows.
    async fn foreign_code(&self, writes: &Writes, findings: &mut Findings) {
        let CheckedTables { client, here, catalog, existing, .. } = *self;
        match writes.foreign_code_report(here).await {
            Ok(None) => findings.ok(About::Destination, "code", "none of others would run when rows are written"),
            Ok(Some(report)) => findings.fail(About::Destination, "code", report),
            Err(error) => findings.fault(About::Destination, "code", error),
        }
        match cascades::report(client, here, writes).await {
            Ok(None) => {
                findings.ok(BOTH, "actions", "no foreign key of the destination changes rows that the source keeps")
            }
            Ok(Some(report)) => findings.fail(BOTH, "actions", report),
            Err(fault) => findings.fault(BOTH, "actions", fault),
        }
        match collations::report(self.clients(), catalog, existing).await {
            Ok(None) => {
                findings.ok(BOTH, "keys", "no collation of the destination makes keys equal that differ at the source")
            }
            Ok(Some(report)) => findings.fail(BOTH, "keys", report),
            Err(fault) => findings.fault(BOTH, "keys", fault),
        }
    }
}

/// The source's tables that the destination lacks.
async fn created(here: &SqlClient, catalog: &SourceCatalog, existing: &Catalog, findings: &mut Findings) {
    let tables = catalog.tables.iter().map(|table| &table.definition);
    let missing: Vec<_> = tables.filter(|table| existing.table(&table.name()).is_none()).collect();
    if missing.is_empty() {
        return;
    }
    let taken = findings.take(About::Destination, "tables", taken_names(here, &missing).await).unwrap_or_default();
    if taken.is_empty() {
        let names: Vec<String> = missing.iter().map(|table| table.name().to_string()).collect();
        findings.ok(About::Destination, "tables", format!("{} will be created", names.join(", ")));
    }
    taken.into_iter().for_each(|report| findings.fail(About::Destination, "tables", report));
}

/// Tables of the destination without a unique index over the key by which their rows are found: an operator may have made them, or
/// dropped it since.
fn keys(catalog: &SourceCatalog, existing: &Catalog, findings: &mut Findings) {
    for table in &catalog.tables {
        let name = table.definition.name();
        let (Identity::Key(key), Some(here)) = (table.definition.identity_columns(), existing.table(&name)) else {
            continue;
        };
        let key: BTreeSet<&Ident> = key.into_iter().collect();
        let covers = |index: &IndexDefinition| {
            index.unique_columns().is_some_and(|columns| columns.into_iter().collect::<BTreeSet<_>>() == key)
        };
        if here.indexes.iter().any(covers) {
            continue;
        }
        let key = key.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let statement = match (here.kind, here.indexes.iter().any(|index| index.primary)) {
            // A unique index of a partitioned table needs the columns of its partitions' bounds.
            (TableKind::Partitioned, _) => format!("CREATE INDEX ON {name} ({key});"),
            (_, true) => format!("CREATE UNIQUE INDEX ON {name} ({key});"),
            (_, false) => format!("ALTER TABLE {name} ADD PRIMARY KEY ({key});"),
        };
        let report = ErrorReport::new(format!(
            "table {name} has no unique index over its key ({key}) at the destination"
        ))
        .detail("Each update and delete reads the whole table, and nothing keeps a second row with the same key out.")
        .hint(format!("Run at the destination:\n{statement}"));
        findings.warn(About::Destination, "keys", report);
    }
}

/// Whether both servers have room for the locks of a copy. Where a stream is live, only `resnapshot` of all tables makes one.
async fn locks(
    clients: Clients<'_>,
    catalog: &SourceCatalog,
    existing: &Catalog,
    is_live: bool,
    findings: &mut Findings,
) {
    let Some(room) = findings.take(BOTH, "locks", LockRoom::look(clients, catalog, existing).await) else { return };
    for (about, lacks) in [(About::Source, room.lacks_at_source), (About::Destination, room.lacks_at_destination)] {
        match lacks {
            None => findings.ok(about, "locks", "there is room for those of a copy"),
            Some(report) if is_live => findings.warn(about, "locks", report),
            Some(report) => findings.fail(about, "locks", report),
        }
    }
}

/// What a live stream has to say of the tables: which were followed, which are new, which are other tables now.
async fn followed(
    config: &Config,
    catalog: &SourceCatalog,
    existing: &Catalog,
    destination: &DestinationView,
    findings: &mut Findings,
) -> Result<(), Fault> {
    let bookkeeping = &destination.bookkeeping;
    let mut recreated = Vec::new();
    for (table, error) in replaced(&destination.followed, catalog) {
        recreated.push(table.name.clone());
        let fault = Fault::Source(SourceError::Transaction(error));
        match obstacle(config, bookkeeping, &fault, destination.foreign_keys_act).await? {
            Some(report) => findings.fail(BOTH, "tables", report),
            None => {
                let report = ErrorReport::new(format!("{}; it is copied again by itself", report(&fault).message))
                    .detail("The others stream on meanwhile.");
                findings.warn(BOTH, "tables", report);
            }
        }
    }
    let mut in_the_way = Vec::new();
    for other in other_tables(bookkeeping.client()).await? {
        let fault = Fault::Destination(DestinationError::OtherTables(OtherTables(vec![other.clone()])));
        match obstacle(config, bookkeeping, &fault, destination.foreign_keys_act).await? {
            Some(_) => in_the_way.push(other),
            None => {
                let text = format!("{}; the source's rows are copied into it", report(&fault).message);
                let report = ErrorReport::new(text).detail("The others stream on meanwhile.");
                findings.warn(About::Destination, "tables", report);
            }
        }
    }
    if !in_the_way.is_empty() {
        let fault = Fault::Destination(DestinationError::OtherTables(OtherTables(in_the_way)));
        let held = obstacle(config, bookkeeping, &fault, destination.foreign_keys_act).await?;
        findings.fail(About::Destination, "tables", held.unwrap_or_else(|| report(&fault)));
    }
    let added = check_tables(&destination.followed, catalog, &ResyncRequests::these(recreated))?;
    let added: Vec<_> = added.iter().filter(|name| existing.table(name).is_some()).collect();
    check_added_empty(bookkeeping.client(), added.into_iter()).await
}

/// `live`: a stream follows the tables, and comes to each change of theirs in its turn.
/// Returns the format that the stream would have, where all tables fit.
fn fit(
    config: &Config,
    catalog: &SourceCatalog,
    existing: &Catalog,
    live: bool,
    findings: &mut Findings,
) -> Option<Transfer> {
    let fitting = check_fit(catalog, existing);
    let transfer = fitting.as_ref().ok().copied();
    match fitting {
        Ok(Transfer::Binary) => findings.ok(BOTH, "columns", "they fit; values travel in binary"),
        Ok(Transfer::Text) => {
            let text = format!("they fit; values travel as text, because of {}", values::text_types(catalog, existing));
            findings.ok(BOTH, "columns", text);
        }
        Err(Fault::Refused(report)) if live && config.schema_changes == SchemaChanges::Follow => {
            let detail = "The stream has not come to that change yet. With the table's next row it follows what it can, and \
                          halts with the statement where it cannot.";
            let detail = report.detail.as_deref().map_or(detail.to_owned(), |own| format!("{own}\n{detail}"));
            findings.warn(BOTH, "columns", report.detail(detail));
        }
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
    transfer
}

/// Whether owned sequences can follow: nothing else reports it before a cut-over.
async fn sequences(config: &Config, source: &SqlClient, here: &SqlClient, findings: &mut Findings) {
    let there = read_sequences(source, &config.tables).await.map_err(|error| Fault::from(SourceError::Session(error)));
    let here = read_sequences(here, &config.tables).await;
    let here = here.map_err(|error| Fault::from(DestinationError::Session(error)));
    let (there, here) = match (there, here) {
        (Ok(there), Ok(here)) => (there, here),
        (Err(fault), _) | (_, Err(fault)) => return findings.fault(BOTH, "sequences", fault),
    };
    let lacking = |end, standing: &[SequenceReading], least: fn(&OwnedSequence) -> bool, privilege| {
        let lacking = standing.iter().filter(|(sequence, _)| !least(sequence));
        lacking.map(|(sequence, _)| unreadable(end, privilege, sequence)).collect::<Vec<_>>()
    };
    let mut reports = lacking("source", &there, |sequence| sequence.readable, "SELECT");
    let settable = |sequence: &OwnedSequence| sequence.readable && sequence.movable;
    reports.extend(lacking("destination", &here, settable, "SELECT, UPDATE"));
    if reports.is_empty() && !there.is_empty() {
        findings.ok(BOTH, "sequences", format!("{} owned by columns of the tables follow", there.len()));
    }
    for report in reports {
        findings.warn(BOTH, "sequences", report);
    }
}

/// Whether what is copied has room at the destination, as far as that can be seen from here.
async fn disk(catalog: &SourceCatalog, destination: &DestinationView, findings: &mut Findings) {
    let megabytes = catalog.bytes() >> 20;
    let copies = match destination.position {
        None => format!("the first copy brings about {megabytes} MB"),
        Some(_) => format!("the tables have about {megabytes} MB at the source"),
    };
    match data_free_bytes(destination.bookkeeping.client()).await {
        None => {
            let text = format!("{copies}; what is free at the destination cannot be seen from here");
            findings.ok(BOTH, "disk", text);
        }
        // A copy is staged first: reconciled tables are there twice for a while.
        Some(free) if destination.position.is_none() && free >> 20 < megabytes.saturating_mul(2) => {
            let report = ErrorReport::new(format!(
                "{copies}, and {} MB are free where the destination keeps its data",
                free >> 20
            ))
            .detail("Tables that are there already are staged next to themselves before they are reconciled.")
            .hint("Make room at the destination, or move its data directory to a larger disk.");
            findings.warn(BOTH, "disk", report);
        }
        Some(free) => {
            let text = format!("{copies}, and {} MB are free where the destination keeps its data", free >> 20);
            findings.ok(BOTH, "disk", text);
        }
    }
}

/// What is free below the data directory of a destination on this machine; `None` where it cannot be seen.
async fn data_free_bytes(client: &SqlClient) -> Option<u64> {
    let sql = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'
               AND (pg_catalog.inet_server_addr() IS NULL OR pg_catalog.inet_server_addr() <<= '127.0.0.0/8'
                    OR pg_catalog.inet_server_addr() = '::1')";
    let row = client.query_opt("asking for the data directory", sql, &[]).await.ok()??;
    free_bytes(std::path::Path::new(row.get::<&str>(0).ok()?))
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
    let asked = async |client: &SqlClient| -> Result<(String, String), SessionError> {
        let row = client.query_one(doing, sql, &[]).await?;
        Ok((row.get(0)?, row.get(1)?))
    };
    let there = asked(source).await.map_err(|error| Fault::from(SourceError::Session(error)));
    let here = asked(destination).await.map_err(|error| Fault::from(DestinationError::Session(error)));
    let ((encoding_there, collation_there), (encoding_here, collation_here)) = match (there, here) {
        (Ok(there), Ok(here)) => (there, here),
        (Err(fault), _) | (_, Err(fault)) => return findings.fault(BOTH, "encodings", fault),
    };
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

/// Clocks that differ by more make seconds of lag hard to relate to other logs.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(2);

async fn clocks(source: &SqlClient, destination: &SqlClient, findings: &mut Findings) {
    let mut apart = Vec::new();
    for (name, client) in [("source", source), ("destination", destination)] {
        let sql = "SELECT EXTRACT(EPOCH FROM pg_catalog.clock_timestamp())::float8";
        let asked = Instant::now();
        let Ok(now) = client.query_one("comparing clocks", sql, &[]).await.and_then(|row| row.get::<f64>(0)) else {
            return;
        };
        let took = asked.elapsed().as_secs_f64();
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let offset = now - (ours - took / 2.0);
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
