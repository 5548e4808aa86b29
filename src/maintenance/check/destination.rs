//! The destination's half of the list.

use super::{connection, sessions};
use crate::config::Config;
use crate::destination::{
    Bookkeeping, Catalog, DestinationError, DestinationServer, LockHolders, Stream, StreamState, TableRecord, Writer,
    check_bookkeeping_owner, missing_roles_report, position_missing_report, writers_of_all_report,
};
use crate::maintenance::check::findings::{About, Findings};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName};
use crate::preflight::addresses::Addresses;
use crate::preflight::leadership::writing_settings;
use crate::preflight::prepare::{check_configured, check_empty};
use crate::preflight::suspended_tables::suspended;
use crate::preflight::unconfigured::{split, unconfigured_report};
use crate::session::SqlClient;

const DESTINATION: About = About::Destination;

/// What is known of the destination, for what concerns both.
pub(super) struct DestinationView {
    pub(super) bookkeeping: Bookkeeping,
    pub(super) catalog: Option<Catalog>,
    pub(super) stream: Option<Stream>,
    /// The stored position of a live stream.
    pub(super) position: Option<Lsn>,
    /// The tables of a live stream.
    pub(super) followed: Vec<TableRecord>,
    /// Foreign keys and ordinary triggers act on what is applied.
    pub(super) foreign_keys_act: bool,
}

pub(super) async fn look(config: &Config, addresses: &Addresses, findings: &mut Findings) -> Option<DestinationView> {
    let connected = Bookkeeping::connect(&addresses.destination).await;
    let bookkeeping = findings.take(DESTINATION, "connection", connected)?;
    let client = bookkeeping.client();
    match connection::judge(client, &config.destination.url, "destination.url").await {
        Ok(Ok(text)) => findings.ok(DESTINATION, "connection", text),
        Ok(Err(report)) => findings.warn(DESTINATION, "connection", report),
        Err(error) => findings.fault(DESTINATION, "connection", DestinationError::Session(error)),
    }
    let owned = check_bookkeeping_owner(client, &config.destination.trusted_roles).await;
    // What is in a stranger's schema is nothing to go by.
    findings.take(DESTINATION, "bookkeeping", owned)?;
    roles(config, client, findings).await;
    writing(config, findings).await;
    let foreign_keys_act = privileges(config, client, findings).await;
    let stream = findings.answered(DESTINATION, "bookkeeping", bookkeeping.stream().await)?.flatten();
    let live = matches!(&stream, Some(Stream { state: StreamState::Live { .. }, .. }));
    let stored = stored_position(&bookkeeping, live).await;
    let position = match findings.answered(DESTINATION, "bookkeeping", stored)? {
        Some(None) if live => {
            findings.fail(DESTINATION, "bookkeeping", position_missing_report());
            None
        }
        position => position.flatten(),
    };
    let followed = match position {
        Some(_) => findings.answered(DESTINATION, "bookkeeping", bookkeeping.tables().await)?.unwrap_or_default(),
        None => Vec::new(),
    };
    let (followed, unconfigured) = split(followed, &config.tables);
    if !unconfigured.is_empty() {
        findings.warn(DESTINATION, "tables", unconfigured_report(&unconfigured));
    }
    tell_suspended(&followed, findings);
    let catalog = findings.take(DESTINATION, "tables", Catalog::read(client, &config.tables).await);
    fed(config, stream.as_ref(), position, findings);
    let agreed = position.is_some() || stream.as_ref().is_some_and(|stream| stream.agreed);
    if !agreed && let Some(catalog) = &catalog {
        // Whether the others have rows cannot be seen; that they cannot be read is said above.
        match readable(client, catalog).await {
            Ok(names) => {
                if let Err(fault) = check_empty(client, names.iter()).await {
                    findings.fault(DESTINATION, "tables", fault);
                }
            }
            Err(error) => findings.fault(DESTINATION, "tables", error),
        }
    }
    let holders = LockHolders::look(client, &config.source.slot).await;
    let LockHolders { leader, foreign } = findings.answered(DESTINATION, "leader", holders)?.unwrap_or_default();
    if let Some(leader) = leader {
        findings.ok(DESTINATION, "leader", format!("an instance runs, {leader}: another one would stand by"));
    }
    for holder in foreign {
        findings.warn(DESTINATION, "leader", holder.foreign_report());
    }
    if position.is_none() {
        sessions::look(client, 1, DESTINATION, |error| DestinationError::Session(error).into(), findings).await;
    }
    event_triggers(client, findings).await;
    if let Some(catalog) = &catalog {
        tables(config, catalog, foreign_keys_act, findings);
        functions(client, catalog, findings).await;
    }
    Some(DestinationView { bookkeeping, catalog, stream, position, followed, foreign_keys_act })
}

/// Roles that may write everything, and names of roles that do not exist.
async fn roles(config: &Config, client: &SqlClient, findings: &mut Findings) {
    let writers = writers_of_all_report(client, &config.destination.trusted_roles).await;
    if let Some(report) = findings.take(DESTINATION, "bookkeeping", writers).flatten() {
        findings.warn(DESTINATION, "bookkeeping", report);
    }
    let missing = missing_roles_report(client, &config.destination.trusted_roles).await;
    if let Some(report) = findings.take(DESTINATION, "code", missing).flatten() {
        findings.warn(DESTINATION, "code", report);
    }
}

/// What the role may do; whether foreign keys and ordinary triggers act on what it writes.
async fn privileges(config: &Config, client: &SqlClient, findings: &mut Findings) -> bool {
    let examined = DestinationServer::examine(client, &config.tables).await;
    let mut foreign_keys_act = false;
    if let Some((server, problems)) = findings.take(DESTINATION, "privileges", examined) {
        if problems.is_empty() {
            findings.ok(DESTINATION, "privileges", "the role may write the tables and keep its bookkeeping");
        }
        for problem in problems {
            findings.fail(DESTINATION, "privileges", problem);
        }
        foreign_keys_act = !server.replica_role;
        if server.replica_role {
            let text = "replica: foreign keys and ordinary triggers do not act on what is applied";
            findings.ok(DESTINATION, "session_replication_role", text);
        } else {
            let report = ErrorReport::new("origin: foreign keys and triggers act on what is applied")
                .detail(format!(
                    "Role {} may not set session_replication_role: triggers of the destination fire for what the source's triggers have \
                     done already, and foreign keys are checked and cascade.",
                    server.role
                ))
                .hint(if server.grants_parameters {
                    format!(
                        "Run at the destination as a superuser:\nGRANT SET ON PARAMETER session_replication_role TO {};",
                        server.role
                    )
                } else {
                    "From 15 on a superuser may grant that; before, only superusers may set it.".to_owned()
                });
            findings.warn(DESTINATION, "session_replication_role", report);
        }
    }
    foreign_keys_act
}

/// Tables that wait for a copy.
fn tell_suspended(followed: &[TableRecord], findings: &mut Findings) {
    for name in suspended(followed) {
        let report = ErrorReport::new(format!("table {name} is suspended until it is copied again"))
            .detail("Its changes are passed over meanwhile; the copy brings them.")
            .hint(
                "headwater status tells how far it is; when the copy fails, headwater explain says why and what to do.",
            );
        findings.warn(DESTINATION, "tables", report);
    }
}

/// The stream that feeds this destination.
fn fed(config: &Config, stream: Option<&Stream>, position: Option<Lsn>, findings: &mut Findings) {
    let Some(stream) = stream else {
        return findings.ok(DESTINATION, "bookkeeping", "none yet: the first start makes a snapshot");
    };
    match check_configured(config, stream) {
        Ok(()) => {
            let at = position.map_or("not yet published".to_owned(), |position| format!("at {position}"));
            findings.ok(DESTINATION, "bookkeeping", format!("fed through slot {}, {at}", stream.slot));
        }
        Err(fault) => findings.fault(DESTINATION, "bookkeeping", fault),
    }
}

/// Event triggers that would fire when headwater creates and drops its own objects, and follows schema changes: all that are enabled,
/// since the one is done in sessions of role origin, and the other in those that take the replica role where they may. Those of roles
/// that are not trusted are code of others, and refused.
async fn event_triggers(client: &SqlClient, findings: &mut Findings) {
    let sql = "SELECT e.evtname::text FROM pg_catalog.pg_event_trigger e
               WHERE e.evtevent <> 'login' AND e.evtenabled <> 'D' ORDER BY 1";
    let found = client.query("looking for event triggers", sql, &[]).await.and_then(|rows| {
        rows.iter().map(|row| Ok(Ident::new(row.get::<&str>(0)?).to_string())).collect::<Result<Vec<_>, _>>()
    });
    let Some(names) = findings.take(DESTINATION, "event triggers", found.map_err(DestinationError::Session)) else {
        return;
    };
    if names.is_empty() {
        return;
    }
    let report = ErrorReport::new(format!("event triggers fire for what headwater creates: {}", names.join(", ")))
        .detail("An error in one of them halts a start. search_path is empty: names in them without a schema are not found.");
    findings.warn(DESTINATION, "event triggers", report);
}

/// Functions in SQL and PL/pgSQL behind indexes, checks and generated columns that look names up by our search_path. Only an attempt
/// shows whether they name anything without a schema: a body in PL/pgSQL is text until it runs.
async fn functions(client: &SqlClient, catalog: &Catalog, findings: &mut Findings) {
    // pg_depend (catalog-pg-depend, 14 to 18): an index, a constraint and a default depend on the functions of their expressions; on 14
    // a generated column itself does (StoreAttrDefault in heap.c). A body of BEGIN ATOMIC was looked up when it was made.
    let sql = "WITH parts AS (
                   SELECT i.indrelid AS id, 'pg_catalog.pg_class'::pg_catalog.regclass AS kind, i.indexrelid AS part
                       FROM pg_catalog.pg_index i
                   UNION ALL SELECT c.conrelid, 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid FROM pg_catalog.pg_constraint c
                   UNION ALL SELECT d.adrelid, 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.oid FROM pg_catalog.pg_attrdef d
                       JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum AND a.attgenerated <> ''
                   UNION ALL SELECT a.attrelid, 'pg_catalog.pg_class'::pg_catalog.regclass, a.attrelid
                       FROM pg_catalog.pg_attribute a WHERE a.attgenerated <> '')
               SELECT DISTINCT t.id, p.oid::pg_catalog.regprocedure::text COLLATE \"C\"
               FROM pg_catalog.unnest($1::oid[]) t(id)
               JOIN parts ON parts.id = t.id
               JOIN pg_catalog.pg_depend d ON d.classid = parts.kind AND d.objid = parts.part
                   AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
               JOIN pg_catalog.pg_proc p ON p.oid = d.refobjid
               JOIN pg_catalog.pg_language l ON l.oid = p.prolang
               WHERE l.lanname NOT IN ('internal', 'c') AND p.prosqlbody IS NULL
                 AND p.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace
                 AND NOT EXISTS (SELECT FROM pg_catalog.unnest(p.proconfig) s WHERE pg_catalog.starts_with(s, 'search_path='))
               ORDER BY 1, 2";
    let ids: Vec<u32> = catalog.tables.values().map(|table| table.definition.id).collect();
    let found = client.query("looking for functions of indexes and checks", sql, &[&ids]).await;
    let found = found.and_then(|rows| {
        rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect::<Result<Vec<(u32, String)>, _>>()
    });
    let Some(found) = findings.take(DESTINATION, "functions", found.map_err(DestinationError::Session)) else { return };
    for (name, table) in &catalog.tables {
        let of_table = found.iter().filter(|(id, _)| *id == table.definition.id);
        let names: Vec<&str> = of_table.map(|(_, function)| function.as_str()).collect();
        if names.is_empty() {
            continue;
        }
        let text = format!("indexes, checks or generated columns of table {name} call {}", names.join(", "));
        let detail = "search_path is empty for what is applied: names in these functions without a schema are not found, unless \
                      the function sets its own. Then the copy waits until it does.";
        findings.warn(DESTINATION, "functions", ErrorReport::new(text).detail(detail));
    }
}

async fn stored_position(bookkeeping: &Bookkeeping, live: bool) -> Result<Option<Lsn>, DestinationError> {
    if live { bookkeeping.position().await } else { Ok(None) }
}

/// The tables that our role may read.
async fn readable(client: &SqlClient, catalog: &Catalog) -> Result<Vec<QualifiedName>, DestinationError> {
    let names: Vec<&QualifiedName> = catalog.tables.keys().collect();
    let ids: Vec<u32> = catalog.tables.values().map(|table| table.definition.id).collect();
    let sql = "SELECT pg_catalog.has_table_privilege(c.oid, 'SELECT')
                      AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), c.oid
               FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1)";
    let rows = client.query("checking privileges at the destination", sql, &[&ids]).await?;
    let mut readable: Vec<u32> = Vec::new();
    for row in rows {
        if row.get(0)? {
            readable.push(row.get(1)?);
        }
    }
    let found = names.into_iter().zip(ids).filter(|(_, id)| readable.contains(id));
    Ok(found.map(|(name, _)| name.clone()).collect())
}

/// The writing session, as a start opens it: a pooler in between is found.
async fn writing(config: &Config, findings: &mut Findings) {
    match Writer::try_open(&writing_settings(config)).await {
        Ok(()) => findings.ok(DESTINATION, "writing session", "no pooler stands in between"),
        Err(error) => findings.fault(DESTINATION, "writing session", error),
    }
}

/// What acts on the tables that exist, and what points at them.
fn tables(config: &Config, catalog: &Catalog, foreign_keys_act: bool, findings: &mut Findings) {
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
            .filter(|trigger| {
                matches!(trigger.enabled, 'A') || trigger.enabled == if foreign_keys_act { 'O' } else { 'R' }
            })
            .map(|trigger| trigger.name.to_string())
            .collect();
        if !acting.is_empty() {
            let text = format!("triggers of table {name} fire for what is applied: {}", acting.join(", "));
            let why = match foreign_keys_act {
                true => "They are enabled, and our role may not set session_replication_role.",
                false => "They are ENABLE REPLICA or ENABLE ALWAYS.",
            };
            let detail = format!(
                "{why} Each change is applied by itself, in its order. search_path is empty for them: names without a schema are not \
                 found, unless their function sets its own."
            );
            let report = ErrorReport::new(text).detail(detail);
            findings.warn(DESTINATION, "triggers", report);
        }
    }
}
