//! The source's half of the list.

use std::collections::BTreeSet;

use super::{About, Findings, connection};
use crate::config::Config;
use crate::pg::{ErrorReport, QualifiedName, counted};
use crate::pipeline::check::destination::DestinationView;
use crate::pipeline::prepare::{Addresses, connect_replication, live_names, replaced};
use crate::plan::schema::{Identity, TableKind};
use crate::session::{ReplicationSession, SessionError, SqlClient, SystemIdentification};
use crate::source::{
    Notice, Slot, SourceCatalog, SourceError, SourceServer, ensure_publication, find_slot, slot_unknown_report,
};

const SOURCE: About = About::Source;

/// What is known of the source, for what concerns both.
pub(super) struct SourceView {
    pub(super) client: SqlClient,
    pub(super) replication: Option<(ReplicationSession, SystemIdentification)>,
    pub(super) slot: Option<Slot>,
    pub(super) catalog: Option<SourceCatalog>,
}

pub(super) async fn look(
    config: &Config,
    addresses: &Addresses,
    destination: Option<&DestinationView>,
    findings: &mut Findings,
) -> Option<SourceView> {
    let connected = addresses.source.connect().await.map_err(SourceError::Session);
    let client = findings.take(SOURCE, "connection", connected)?;
    match connection::judge(&client, &config.source.url, "source.url").await {
        Ok(Ok(text)) => findings.ok(SOURCE, "connection", text),
        Ok(Err(report)) => findings.warn(SOURCE, "connection", report),
        Err(error) => findings.fault(SOURCE, "connection", SourceError::Session(error)),
    }
    let lock_timeout = format!("SET lock_timeout = {}", config.destination.lock_timeout.as_millis());
    let _ = client.batch("setting up a session", &lock_timeout).await;
    let slot = findings.take(SOURCE, "slot", find_slot(&client, &config.source.slot).await).flatten();
    server(config, &client, slot.is_none(), findings).await;
    let replication = replication(config, findings).await;
    room(&client, findings).await;
    let catalog = tables(config, &client, destination, findings).await;
    transactions(config, &client, findings).await;
    match (&slot, destination.is_some_and(|destination| destination.stream.is_none())) {
        (Some(slot), true) => findings.fail(SOURCE, "slot", slot_unknown_report(slot)),
        (Some(slot), false) => {
            findings.ok(SOURCE, "slot", format!("{} exists, wal_status {}", slot.name, slot.wal_status));
        }
        (None, _) => findings.ok(SOURCE, "slot", format!("{} will be created", config.source.slot)),
    }
    Some(SourceView { client, replication, slot, catalog })
}

async fn server(config: &Config, client: &SqlClient, needs_slot: bool, findings: &mut Findings) {
    let Some((server, problems)) = findings.take(SOURCE, "server", SourceServer::examine(client, needs_slot).await)
    else {
        return;
    };
    if problems.is_empty() {
        findings.ok(SOURCE, "server", "wal_level, replication slots and walsenders are as they should be");
    }
    for problem in problems {
        findings.fail(SOURCE, "server", problem);
    }
    if server.in_recovery {
        findings.ok(
            SOURCE,
            "standby",
            "the source is a standby: slots wait for its primary to log running transactions",
        );
    }
    let application_name = format!("{} {} streaming", config.source.url.application_name, config.source.slot);
    match server.check_not_synchronous(&application_name) {
        Ok(()) => findings.ok(SOURCE, "synchronous standbys", "headwater is none: no COMMIT waits for it"),
        Err(error) => findings.fault(SOURCE, "synchronous standbys", error),
    }
}

async fn replication(config: &Config, findings: &mut Findings) -> Option<(ReplicationSession, SystemIdentification)> {
    let session = connect_replication(config, "check").await;
    let mut session = findings.take(SOURCE, "replication", session)?;
    let identified = session.identify_system().await.map_err(SourceError::Session);
    let identification = findings.take(SOURCE, "replication", identified)?;
    let text = format!(
        "the role may replicate, directly (no pooler stands in between); timeline {}",
        identification.timeline.number
    );
    findings.ok(SOURCE, "replication", text);
    Some((session, identification))
}

/// What is left of slots, walsenders and WAL.
async fn room(client: &SqlClient, findings: &mut Findings) {
    let sql = "SELECT pg_catalog.current_setting('max_replication_slots')::bigint
                          - (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots),
                      pg_catalog.current_setting('max_wal_senders')::bigint
                          - (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication),
                      (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
                      pg_catalog.current_setting('idle_replication_slot_timeout', true)";
    let row = match client.query_one("looking at slots", sql, &[]).await {
        Ok(row) => row,
        Err(error) => return findings.fault(SOURCE, "room", SourceError::Session(error)),
    };
    let (slots, senders): (i64, i64) = (row.get(0), row.get(1));
    let text = format!("free: {}, {}", counted(slots, "slot"), counted(senders, "walsender"));
    if slots < 2 || senders < 2 {
        let report = ErrorReport::new(text)
            .detail("Beside the stream, verify and a resnapshot need one of each for a while.")
            .hint(
                "Run at the source as a superuser, then restart it:\nALTER SYSTEM SET max_replication_slots = 20;\n\
                 ALTER SYSTEM SET max_wal_senders = 20;",
            );
        findings.warn(SOURCE, "room", report);
    } else {
        findings.ok(SOURCE, "room", text);
    }
    match row.get::<_, Option<i64>>(2) {
        Some(-1) | None => findings.ok(
            SOURCE,
            "WAL",
            "max_slot_wal_keep_size is not set: WAL is kept for as long as headwater is away, and may fill the source's disk",
        ),
        Some(megabytes) => {
            let report = ErrorReport::new(format!("max_slot_wal_keep_size is {megabytes} MB at the source"))
                .detail("When headwater is further behind than that, its slot is lost, and all tables are copied anew.")
                .hint("Watch headwater_slot_seconds_until_lost, and set it to what the source's disk bears.");
            findings.warn(SOURCE, "WAL", report);
        }
    }
    let idle: Option<String> = row.get(3);
    if let Some(idle) = idle.filter(|idle| idle != "0") {
        let report = ErrorReport::new(format!("idle_replication_slot_timeout is {idle} at the source"))
            .detail("A slot that is not used for so long is lost.")
            .hint("Run at the source as a superuser:\nALTER SYSTEM SET idle_replication_slot_timeout = 0;\nSELECT pg_reload_conf();");
        findings.warn(SOURCE, "WAL", report);
    }
}

/// Tables, their identities, and the publication, as a start would leave it.
async fn tables(
    config: &Config,
    client: &SqlClient,
    destination: Option<&DestinationView>,
    findings: &mut Findings,
) -> Option<SourceCatalog> {
    let examined = SourceCatalog::examine(client, &config.tables).await;
    let (mut catalog, problems) = findings.take(SOURCE, "tables", examined)?;
    if problems.is_empty() {
        let text =
            format!("{}, {} MB, readable by the role", counted(catalog.tables.len(), "table"), catalog.bytes() >> 20);
        findings.ok(SOURCE, "tables", text);
    }
    for problem in problems {
        findings.fail(SOURCE, "tables", problem);
    }
    if catalog.tables.is_empty() {
        return None;
    }
    let mut keyed_tables = 0;
    for table in &catalog.tables {
        let (definition, name) = (&table.definition, table.definition.name());
        match definition.identity_columns() {
            Identity::Key(_) => keyed_tables += 1,
            Identity::WholeRow => {
                let keyed = definition.indexes.iter().any(|index| index.unique_columns().is_some());
                let text =
                    format!("table {name} has REPLICA IDENTITY FULL: every update and delete logs the whole old row");
                let report = ErrorReport::new(text);
                if keyed {
                    findings.ok(SOURCE, "replica identity", report.message);
                } else {
                    findings.warn(
                        SOURCE,
                        "replica identity",
                        report.detail("Without a key, each change is applied by itself."),
                    );
                }
            }
            // The publication's check says so, unless its owner has published it all the same.
            Identity::None => {}
        }
    }
    if keyed_tables > 0 {
        let text =
            format!("rows of {keyed_tables} of {} are found by their key", counted(catalog.tables.len(), "table"));
        findings.ok(SOURCE, "replica identity", text);
    }
    partitions(&catalog, findings);
    for cycle in &catalog.cycles {
        let names: Vec<String> = cycle.iter().map(ToString::to_string).collect();
        let text = format!("foreign keys of {} form a circle: they are checked at the end", names.join(", "));
        findings.ok(SOURCE, "foreign keys", text);
    }
    // What is another table now is copied anew, and so is put into the publication again.
    let followed = destination.map(|destination| destination.followed.as_slice()).unwrap_or_default();
    let anew: BTreeSet<QualifiedName> = replaced(followed, &catalog).map(|(table, _)| table.name.clone()).collect();
    let followed = live_names(followed).filter(|name| !anew.contains(name)).cloned().collect();
    let tried = publication(config, client, &mut catalog, &followed).await;
    let Some(told) = findings.take(SOURCE, "publication", tried) else { return Some(catalog) };
    let name = &config.source.publication;
    if told.is_empty() {
        findings.ok(SOURCE, "publication", format!("{name} holds all tables"));
    }
    for notice in told {
        match notice {
            // What a start has done, a check has only tried.
            Notice::Changed(text) => {
                let text = text.replacen("created publication", "will create publication", 1);
                findings.ok(SOURCE, "publication", text.replacen("added ", "will add ", 1));
            }
            Notice::SendsLess(text) => findings.warn(SOURCE, "publication", ErrorReport::new(text)),
            // A start takes it as its owner's choice; but it is the source's application that fails.
            Notice::Unidentified(found) => findings.fail(SOURCE, "replica identity", found.report),
        }
    }
    Some(catalog)
}

/// How partitioned tables, partitions and parents are followed.
fn partitions(catalog: &SourceCatalog, findings: &mut Findings) {
    for definition in catalog.tables.iter().map(|table| &table.definition) {
        let name = definition.name();
        if definition.kind == TableKind::Partitioned {
            let count = definition.partitions.as_ref().map_or(0, Vec::len);
            let text = format!("table {name} is followed through its root, with {}", counted(count, "partition"));
            findings.ok(SOURCE, "partitions", text);
        } else if definition.is_partition {
            findings.ok(SOURCE, "partitions", format!("table {name} is a partition, and followed by itself"));
        } else if definition.has_children {
            let report = ErrorReport::new(format!("other tables inherit from table {name}"))
                .detail("Only its own rows are replicated; those of the tables that inherit from it are theirs.")
                .hint("Add these tables to tables, if their rows are wanted.");
            findings.warn(SOURCE, "partitions", report);
        }
    }
}

/// Makes the publication what it must be, and takes that back.
async fn publication(
    config: &Config,
    client: &SqlClient,
    catalog: &mut SourceCatalog,
    followed: &BTreeSet<QualifiedName>,
) -> Result<Vec<Notice>, SourceError> {
    client.batch("trying the publication", "BEGIN").await?;
    let tried = ensure_publication(client, &config.source.publication, catalog, followed).await;
    client.batch("trying the publication", "ROLLBACK").await?;
    tried
}

/// Transactions that a new slot waits for.
async fn transactions(config: &Config, client: &SqlClient, findings: &mut Findings) {
    if let Err(error) = look_at_transactions(config, client, findings).await {
        findings.fault(SOURCE, "transactions", SourceError::Session(error));
    }
}

async fn look_at_transactions(
    config: &Config,
    client: &SqlClient,
    findings: &mut Findings,
) -> Result<(), SessionError> {
    let doing = "looking for long transactions";
    let sql = "SELECT pid, pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - xact_start)::text
               FROM pg_catalog.pg_stat_activity
               WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()
                 AND xact_start < pg_catalog.clock_timestamp() - $1::float8 * interval '1 second'
               ORDER BY xact_start LIMIT 5";
    let long = client.query(doing, sql, &[&config.fence_timeout.as_secs_f64()]).await?;
    for row in &long {
        let (pid, age): (i32, Option<&str>) = (row.get(0), row.get(1));
        let report = ErrorReport::new(format!("process {pid} has been in a transaction for {}", age.unwrap_or("?")))
            .detail("A snapshot, and a fence of verify, begin only after it has ended.")
            .hint(format!("Wait for it; or run at the source:\nSELECT pg_terminate_backend({pid});"));
        findings.warn(SOURCE, "transactions", report);
    }
    let sql = "SELECT gid, pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - prepared)::text
               FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() ORDER BY prepared LIMIT 5";
    let prepared = client.query(doing, sql, &[]).await?;
    for row in &prepared {
        let (gid, age): (&str, &str) = (row.get(0), row.get(1));
        let literal = crate::pg::shown_literal(gid);
        let report = ErrorReport::new(format!("prepared transaction {literal} has been left open for {age}"))
            .detail("No slot can be created before it has ended, so no snapshot begins.")
            .hint(format!("If nobody will end it, run at the source as its owner:\nROLLBACK PREPARED {literal};"));
        findings.fail(SOURCE, "transactions", report);
    }
    if long.is_empty() && prepared.is_empty() {
        findings.ok(SOURCE, "transactions", "none that a slot would have to wait for");
    }
    Ok(())
}
