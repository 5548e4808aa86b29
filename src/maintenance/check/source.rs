//! The source's half of the list.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{connection, sessions};
use crate::catalog::schema::{Identity, TableKind};
use crate::config::{Config, Host};
use crate::error_policy::{Fault, report};
use crate::maintenance::check::destination::DestinationView;
use crate::maintenance::check::findings::{About, Findings, Severity};
use crate::pg::{ErrorReport, Ident, QualifiedName, counted, settings_hint, shell_word};
use crate::preflight::addresses::Addresses;
use crate::preflight::prepare::{live_names, replaced};
use crate::preflight::replication_session::connect_replication;
use crate::preflight::suspended_tables::obstacle;
use crate::preflight::whereabouts::{lost_report, lost_tables};
use crate::session::{ReplicationSession, SqlClient, SystemIdentification, ask_provider};
use crate::source::{
    Notice, Relied, RunningOwner, Slot, SourceCatalog, SourceError, SourceServer, ending_hint, find_slot,
    running_transactions, slot_unknown_report, try_plugin, try_publication,
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
    let _ = client.statement("setting up a session", &lock_timeout).await;
    let slot = findings.take(SOURCE, "slot", find_slot(&client, &config.source.slot).await).flatten();
    server(config, &client, slot.is_none(), findings).await;
    let replication = replication(config, findings).await;
    if destination.is_none_or(|destination| destination.position.is_none()) {
        let own = 1 + i64::from(replication.is_some());
        sessions::look(&client, own, SOURCE, |error| SourceError::Session(error).into(), findings).await;
    }
    room(&client, findings).await;
    let identification = replication.as_ref().map(|(_, identification)| identification);
    let lost = lost(config, &client, destination, identification, findings).await;
    let catalog = tables(config, &client, destination, &lost, findings).await;
    transactions(config, &client, slot.is_none(), findings).await;
    schema_marks(&client, findings).await;
    match (&slot, destination.is_some_and(|destination| destination.stream.is_none())) {
        (Some(slot), true) => findings.fail(SOURCE, "slot", slot_unknown_report(slot)),
        (Some(slot), false) => {
            findings.ok(SOURCE, "slot", format!("{} exists, wal_status {}", slot.name, slot.wal_status));
            let is_standby = replication.as_ref().is_some_and(|(_, identification)| identification.in_recovery);
            // A standby cannot make such a slot.
            if slot.failover == Some(false) && !is_standby {
                findings.warn(SOURCE, "slot", without_failover(config, slot));
            }
        }
        (None, _) => findings.ok(SOURCE, "slot", format!("{} will be created", config.source.slot)),
    }
    Some(SourceView { client, replication, slot, catalog })
}

/// Whether schema changes are marked in the stream (sql/ddl_marks.sql).
async fn schema_marks(client: &SqlClient, findings: &mut Findings) {
    const TOPIC: &str = "schema marks";
    const TRIGGERS: i64 = 3;
    let sql = "SELECT pg_catalog.count(*) FILTER (WHERE t.evtenabled IN ('O', 'A')), pg_catalog.count(*)
               FROM pg_catalog.pg_event_trigger t
               JOIN pg_catalog.pg_proc p ON p.oid = t.evtfoid
               JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
               WHERE n.nspname = 'headwater_marks' AND p.proname = 'mark'";
    let counted = client.query_one("looking at event triggers", sql, &[]).await;
    match counted.and_then(|row| Ok((row.get::<i64>(0)?, row.get::<i64>(1)?))) {
        Ok(counts) => match counts {
            (TRIGGERS, TRIGGERS) => findings.ok(
                SOURCE,
                TOPIC,
                "event triggers mark schema changes in the stream: tables are compared at the transaction that changes them",
            ),
            (_, 0) => findings.ok(
                SOURCE,
                TOPIC,
                "none: a change that the stream does not tell (values rewritten, partitions dropped) is seen within 10 s; with the event \
                 triggers that headwater init --ddl-marks prints, at its own transaction",
            ),
            (enabled, _) => findings.warn(
                SOURCE,
                TOPIC,
                ErrorReport::new(format!("of the {TRIGGERS} event triggers that mark schema changes, {enabled} fire"))
                    .detail("What the others would mark is seen within 10 s.")
                    .hint("Drop what is there and install all of them: headwater init --ddl-marks prints both."),
            ),
        },
        Err(error) => findings.fault(SOURCE, TOPIC, SourceError::Session(error)),
    }
}

/// The slot was made by an earlier major, or by other hands.
fn without_failover(config: &Config, slot: &Slot) -> ErrorReport {
    let url = &config.source.url;
    // Only a replication session can change it.
    let (host, port) = match url.hosts.first() {
        Some(Host::Tcp { host, port, .. }) => (host.clone(), *port),
        Some(Host::Unix { directory, port }) => (directory.display().to_string(), *port),
        None => (String::new(), 5432),
    };
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let connection = format!(
        "host={} port={port} user={} dbname={} replication=database",
        quoted(&host),
        quoted(&url.user),
        quoted(&url.database)
    );
    ErrorReport::new(format!("replication slot {} is no failover slot", slot.name))
        .detail("No standby can hold it ready: after a failover all tables would have to be copied again.")
        .hint(format!(
            "If the source has a standby, stop headwater and run in a shell:\npsql -d {} -c 'ALTER_REPLICATION_SLOT {} (FAILOVER true)'",
            shell_word(&connection),
            slot.name
        ))
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
    if let Err(error) = try_plugin(client).await {
        findings.fault(SOURCE, "server", error);
    }
    if let Some(report) = connection::newer(server.version.unsigned_abs(), "source") {
        findings.warn(SOURCE, "server", report);
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
    let asked = client.query_one("looking at slots", sql, &[]).await.and_then(|row| {
        let kept: Option<i64> = row.get(2)?;
        Ok((row.get::<i64>(0)?, row.get::<i64>(1)?, kept, row.get::<Option<String>>(3)?))
    });
    let (slots, senders, kept, idle) = match asked {
        Ok(asked) => asked,
        Err(error) => return findings.fault(SOURCE, "room", SourceError::Session(error)),
    };
    let text = format!("free: {}, {}", counted(slots, "slot"), counted(senders, "walsender"));
    let provider = match ask_provider(client).await {
        Ok(provider) => provider,
        Err(error) => return findings.fault(SOURCE, "room", SourceError::Session(error)),
    };
    if slots < 2 || senders < 2 {
        let wanted = [("max_replication_slots", "20".to_owned()), ("max_wal_senders", "20".to_owned())];
        let report = ErrorReport::new(text)
            .detail("Besides the stream, verify and a resnapshot need one of each for a while.")
            .hint(settings_hint(provider, &wanted, true));
        findings.warn(SOURCE, "room", report);
    } else {
        findings.ok(SOURCE, "room", text);
    }
    match kept {
        Some(-1) | None => findings.ok(
            SOURCE,
            "WAL",
            "max_slot_wal_keep_size is not set: WAL is kept for as long as headwater is away, and may fill the source's disk",
        ),
        Some(megabytes) => {
            let report = ErrorReport::new(format!("max_slot_wal_keep_size is {megabytes} MB at the source"))
                .detail("When headwater is further behind than that, its slot is lost, and all tables are copied again.")
                .hint("Watch headwater_slot_seconds_until_lost, and set it to what the source's disk bears.");
            findings.warn(SOURCE, "WAL", report);
        }
    }
    if let Some(idle) = idle.filter(|idle| idle != "0") {
        let report = ErrorReport::new(format!("idle_replication_slot_timeout is {idle} at the source"))
            .detail("A slot that is not used for so long is lost.")
            .hint(settings_hint(provider, &[("idle_replication_slot_timeout", "0".to_owned())], false));
        findings.warn(SOURCE, "WAL", report);
    }
}

/// The followed tables that no table at the source is any more, with why: a start says it in the same words.
async fn lost(
    config: &Config,
    client: &SqlClient,
    destination: Option<&DestinationView>,
    identification: Option<&SystemIdentification>,
    findings: &mut Findings,
) -> Vec<QualifiedName> {
    let stream = destination.and_then(|destination| Some((destination, destination.stream.as_ref()?)));
    let (Some((destination, stream)), Some(identification)) = (stream, identification) else { return Vec::new() };
    // OIDs of another cluster mean nothing.
    if stream.system_identifier != identification.system_identifier {
        return Vec::new();
    }
    let lost = lost_tables(client, &destination.followed, &config.tables).await.map_err(SourceError::Session);
    let lost = findings.take(SOURCE, "tables", lost).unwrap_or_default();
    if let Some(report) = lost_report(&lost, &config.tables) {
        findings.fail(SOURCE, "tables", report);
    }
    lost.into_iter().map(|lost| lost.table).collect()
}

/// Tables, their identities, and the publication, as a start would leave it.
async fn tables(
    config: &Config,
    client: &SqlClient,
    destination: Option<&DestinationView>,
    lost: &[QualifiedName],
    findings: &mut Findings,
) -> Option<SourceCatalog> {
    let names: Vec<QualifiedName> = config.tables.iter().filter(|name| !lost.contains(name)).cloned().collect();
    if names.is_empty() {
        return None;
    }
    let examined = SourceCatalog::examine(client, &names).await;
    let (mut catalog, problems) = findings.take(SOURCE, "tables", examined)?;
    // A copy needs ACCESS SHARE on each of them; a running stream needs no lock.
    match catalog.measure(client).await {
        Err(SourceError::Refused(report)) if destination.is_some_and(|destination| destination.position.is_some()) => {
            findings.warn(SOURCE, "tables", report);
        }
        measured => drop(findings.take(SOURCE, "tables", measured)),
    }
    if problems.is_empty() {
        let text =
            format!("{}, {} MB, readable by the role", counted(catalog.tables.len(), "table"), catalog.bytes() >> 20);
        findings.ok(SOURCE, "tables", text);
    }
    for problem in problems.into_iter().chain(catalog.unsent()) {
        findings.fail(SOURCE, "tables", problem);
    }
    if catalog.tables.is_empty() {
        return None;
    }
    identities(&catalog, findings);
    partitions(&catalog, findings);
    for cycle in &catalog.cycles {
        let names: Vec<String> = cycle.iter().map(ToString::to_string).collect();
        let text = format!("foreign keys of {} form a circle: they are checked at the end", names.join(", "));
        findings.ok(SOURCE, "foreign keys", text);
    }
    published(config, client, &mut catalog, destination, findings).await;
    Some(catalog)
}

/// How the rows of each table are found.
fn identities(catalog: &SourceCatalog, findings: &mut Findings) {
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
}

/// The publication, as a start would leave it.
async fn published(
    config: &Config,
    client: &SqlClient,
    catalog: &mut SourceCatalog,
    destination: Option<&DestinationView>,
    findings: &mut Findings,
) {
    // A table that another one has replaced is copied again, and so added to the publication again.
    let followed = destination.map(|destination| destination.followed.as_slice()).unwrap_or_default();
    let recreated: BTreeSet<QualifiedName> = replaced(followed, catalog).map(|(table, _)| table.name.clone()).collect();
    let live = live_names(followed).filter(|name| !recreated.contains(name)).cloned().collect();
    // Whether a table that waits for a copy can be added shall be seen.
    let relied = Relied { live, suspended: BTreeSet::new() };
    let tried = publication(config, client, catalog, &relied).await;
    let tried = match (tried, destination) {
        (Err(error @ SourceError::Unpublished { .. }), Some(destination)) => {
            return unpublished(config, destination, error, findings).await;
        }
        (tried, _) => tried,
    };
    let Some(told) = findings.take(SOURCE, "publication", tried) else { return };
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
}

/// Tables that have left the publication: a start copies them by itself, unless something keeps it from that.
async fn unpublished(config: &Config, destination: &DestinationView, error: SourceError, findings: &mut Findings) {
    let fault = Fault::Source(error);
    match obstacle(config, &destination.bookkeeping, &fault, destination.foreign_keys_act).await {
        Ok(Some(report)) => findings.fail(SOURCE, "publication", report),
        Ok(None) => {
            let text = format!("{}; what has left it is copied by itself", report(&fault).message);
            let report = ErrorReport::new(text).detail("The others stream on meanwhile.");
            findings.warn(SOURCE, "publication", report);
        }
        Err(error) => findings.fault(SOURCE, "publication", error),
    }
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
    relied: &Relied,
) -> Result<Vec<Notice>, SourceError> {
    try_publication(client, &config.source.publication, catalog, relied).await
}

/// Transactions that a new slot waits for. `needs_slot`: a start makes one, and begins with it.
async fn transactions(config: &Config, client: &SqlClient, needs_slot: bool, findings: &mut Findings) {
    let running = match running_transactions(client).await {
        Ok(running) => running,
        Err(error) => return findings.fault(SOURCE, "transactions", SourceError::Session(error)),
    };
    let long = config.fence_timeout.as_secs_f64();
    let mut said = false;
    for transaction in &running {
        let name = transaction.name();
        let text = match (&transaction.owner, transaction.seconds) {
            (RunningOwner::Session { .. }, Some(seconds)) if seconds < long => continue,
            (RunningOwner::Session { .. }, Some(seconds)) => {
                format!("{name} has been in a transaction for {}", duration(seconds))
            }
            // Most transactions are short; that this one is running now says nothing.
            (RunningOwner::Session { .. }, None) => continue,
            (RunningOwner::Prepared { .. }, seconds) => {
                format!("{name} has been left open for {}", duration(seconds.unwrap_or(0.0)))
            }
        };
        said = true;
        let report = ErrorReport::new(text)
            .detail("A new slot waits for it, in whichever database it is: until it ends no snapshot and no fence of verify begins.");
        let report = match ending_hint(std::slice::from_ref(transaction)) {
            Some(hint) => report.hint(hint),
            None => report,
        };
        let left_open = matches!(transaction.owner, RunningOwner::Prepared { .. });
        if left_open && needs_slot && transaction.seconds.is_some_and(|seconds| seconds >= long) {
            findings.fail(SOURCE, "transactions", report);
        } else {
            findings.warn(SOURCE, "transactions", report);
        }
    }
    let hidden = running.iter().filter(|transaction| transaction.seconds.is_none()).count();
    if hidden > 0 {
        let text = format!("for how long {} have run is not visible to this role", counted(hidden, "transaction"));
        let role = Ident::new(config.source.url.user.as_str());
        let report = ErrorReport::new(text)
            .hint(format!("To have it shown, run at the source as a superuser:\nGRANT pg_read_all_stats TO {role};"));
        findings.push(SOURCE, "transactions", Severity::Ok, report);
    } else if !said {
        findings.ok(SOURCE, "transactions", "none that a slot would have to wait for");
    }
}

fn duration(seconds: f64) -> String {
    // A clock that was set back makes it negative. A server may also say that it is infinite.
    let whole = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX).as_secs();
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}
