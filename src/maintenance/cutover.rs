//! Cut-over: proves that the destination has everything that the source has, moves the sequences, and names the position from which
//! on the destination may be written.
//!
//! Runs while the service continues, and changes nothing but sequences, which only move forward. So until the first write at the
//! destination, the way back is to continue writing at the source.
//!
//! ```text
//! nobody writes ─▶ a slot that watches ─▶ drained to W ─▶ verified at a fence ─▶ sequences ─▶ the slot saw nothing ─▶ position
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::not_carried::NotCarried;
use crate::catalog::schema::{ForeignKeyAction, IdentityColumn};
use crate::catalog::sequences::SequenceReading;
use crate::config::Config;
use crate::destination::{
    Bookkeeping, Catalog, DestinationError, FollowedSequences, LockHolders, StreamState, refuse_other_tables,
};
use crate::error_policy::{Fault, report};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName, SlotName};
use crate::preflight::addresses::Addresses;
use crate::preflight::hosts::settle;
use crate::preflight::not_carried::not_carried;
use crate::preflight::sequences::follow;
use crate::preflight::suspended_tables::suspended;
use crate::session::{SessionError, SqlClient, SqlState};
use crate::source::{Running, SourceCatalog, SourceError, ending_hint, lock_holder, source_sequences};
use crate::sql::partition_tree;
use crate::verification::fence::{slot_not_created, sql_for};
use crate::verification::verdict::{Verdict, VerifyOptions, VerifyProgress};

/// How a cut-over stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cutover {
    /// What verify found.
    pub verdict: Verdict,
    /// Sequences that were moved forward.
    pub sequences: usize,
    /// Sequences that could not be, and why.
    pub reports: Vec<ErrorReport>,
    /// The destination holds everything that was committed at the source up to here.
    pub position: Lsn,
    /// Statements that make columns draw as they do at the source: from a sequence, and always where that is so there.
    pub identities: Vec<String>,
    /// Statements that give foreign keys the source's actions back, for when the service has stopped.
    pub foreign_keys: Vec<String>,
    /// What the destination lacks and replication does not carry.
    pub not_carried: Vec<NotCarried>,
}

/// How long draining may take.
const DRAIN_MAX: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Drains, verifies, brings the sequences over.
///
/// # Errors
/// [`Fault`]: no service runs, the source is still written to, it does not drain, or a side does not answer.
pub(crate) async fn run(
    config: &Arc<Config>,
    options: &VerifyOptions,
    progress: &Arc<VerifyProgress>,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Cutover, Fault> {
    let bookkeeping =
        Bookkeeping::connect_checked(&Addresses::new(config).destination, &config.destination.trusted_roles).await?;
    let settled = settle(config, &bookkeeping).await?;
    let config = &settled.config;
    let addresses = Addresses::new(config);
    let live = matches!(bookkeeping.stream().await?, Some(stream) if matches!(stream.state, StreamState::Live { .. }));
    if !live || LockHolders::look(bookkeeping.client(), &config.source.slot).await?.leader.is_none() {
        return Err(Fault::Refused(
            ErrorReport::new("no service runs: what was written last at the source may not be here")
                .hint("Start headwater run, wait until it streams, and cut over then."),
        ));
    }
    if let Some(table) = suspended(&bookkeeping.tables().await?).first() {
        return Err(Fault::Refused(
            ErrorReport::new(format!("table {table} is suspended until it is copied again"))
                .hint("Cut over when it is done: headwater status tells how far it is."),
        ));
    }
    refuse_other_tables(bookkeeping.client(), false).await?;
    let source = sql_for(&addresses.source, "cutover").connect().await.map_err(SourceError::Session)?;
    refuse_standby(&source).await?;
    nobody_writes(config, &source).await?;
    let slot = watch(config, &source).await?;
    tell("draining: waiting until everything that is committed at the source is here");
    drain(&source, &bookkeeping).await?;
    tell("verifying");
    let verdict = super::verify::run(config, options, progress, tell).await?;
    if !verdict.is_proof() {
        let position = bookkeeping.position().await?.unwrap_or(Lsn::INVALID);
        return Ok(Cutover {
            verdict,
            sequences: 0,
            reports: Vec::new(),
            position,
            identities: Vec::new(),
            foreign_keys: Vec::new(),
            not_carried: Vec::new(),
        });
    }
    tell("bringing the sequences over");
    let followed = follow(&source, bookkeeping.client(), &config.tables, config.schema_changes).await?;
    nobody_writes(config, &source).await?;
    let position = drain(&source, &bookkeeping).await?;
    if is_written(config, &source, &slot).await.map_err(SourceError::Session)? {
        let text = "its tables were written to while both sides were compared";
        return Err(Fault::Refused(still_written(config, text)));
    }
    let catalog = SourceCatalog::read(&source, &config.tables).await?;
    let here = Catalog::read(bookkeeping.client(), &config.tables).await?;
    let standing = source_sequences(&source, &config.tables).await?;
    let identities = identities(&standing, &catalog, &here);
    let publication = Some(&config.source.publication);
    let not_carried = match not_carried(&source, bookkeeping.client(), &config.tables, publication).await {
        Ok(found) => found,
        // The cut-over itself does not need it.
        Err(fault) => {
            tell(&format!("what is not carried could not be listed: {}", report(&fault).message));
            Vec::new()
        }
    };
    let foreign_keys = foreign_keys(&catalog, &here);
    let FollowedSequences { moved: sequences, reports, .. } = followed;
    Ok(Cutover { verdict, sequences, reports, position, identities, foreign_keys, not_carried })
}

/// Who writes at the primary of a standby is not seen there, nor how far the primary is.
async fn refuse_standby(source: &SqlClient) -> Result<(), Fault> {
    let sql = "SELECT pg_catalog.pg_is_in_recovery()";
    let row = source.query_one("asking for the kind of server", sql, &[]).await;
    if !row.and_then(|row| row.get::<bool>(0)).map_err(SourceError::Session)? {
        return Ok(());
    }
    Err(Fault::Refused(
        ErrorReport::new("the source is a standby: whether its primary is still written to cannot be seen there")
            .hint(
                "Stop what writes at the primary, wait until headwater status shows no lag, compare both sides with headwater verify, and \
                 set the sequences at the destination by hand.",
            ),
    ))
}

fn still_written(config: &Config, detail: &str) -> ErrorReport {
    let database = Ident::new(config.source.url.database.as_str());
    ErrorReport::new("the source is still written to")
        .detail(format!(
            "{}{}.",
            detail.get(..1).unwrap_or_default().to_uppercase(),
            detail.get(1..).unwrap_or_default()
        ))
        .hint(format!(
            "Stop what writes there, and end its sessions; for instance run at the source as the database's owner:\n\
             ALTER DATABASE {database} SET default_transaction_read_only = on;"
        ))
}

/// No open transaction has written, or is about to write, to the tables.
async fn nobody_writes(config: &Config, source: &SqlClient) -> Result<(), Fault> {
    let names: Vec<String> = config.tables.iter().map(QualifiedName::sql).collect();
    // A prepared transaction has no process, and writes when it is committed. Who writes to a partition by its name locks it alone.
    let sql = concat!(
        "WITH tables AS (SELECT pg_catalog.to_regclass(name) AS id FROM pg_catalog.unnest($1::text[]) AS name)
               SELECT DISTINCT l.pid, l.virtualtransaction FROM pg_catalog.pg_locks l
               WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
                 AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
                 AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
                 AND l.relation IN (SELECT t.id FROM tables t UNION ALL
                                    SELECT p.relid FROM tables t, LATERAL ",
        partition_tree!("t.id"),
        " p)
               LIMIT 5"
    );
    let rows = source.query("looking for writers", sql, &[&names]).await.map_err(SourceError::Session)?;
    if rows.is_empty() {
        return Ok(());
    }
    let mut holders = Vec::new();
    for row in &rows {
        let (process_id, virtual_transaction) =
            row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(SourceError::Session)?;
        holders.extend(lock_holder(source, process_id, virtual_transaction).await.map_err(SourceError::Session)?);
    }
    // What has ended between the two questions is seen by the slot, or was written before it.
    if holders.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = holders.iter().map(Running::words).collect();
    let text = format!("transactions that are open write to its tables: {}", names.join("; "));
    let report = still_written(config, &text);
    Err(Fault::Refused(match ending_hint(&holders) {
        Some(hint) => report.hint(hint),
        None => report,
    }))
}

/// A temporary slot of this session, which sees every change from here on. (Statistics would not do: an idle session may
/// report what it has written many seconds later.)
async fn watch(config: &Config, source: &SqlClient) -> Result<SlotName, Fault> {
    let doing = "watching for changes";
    let name = format!("headwater_cutover_{:016x}", fastrand::u64(..));
    let slot: SlotName = name.parse().unwrap_or_else(|_| config.source.slot.clone());
    let within = format!("SET statement_timeout = {}", config.fence_timeout.as_millis());
    source.statement(doing, &within).await.map_err(SourceError::Session)?;
    let sql = "SELECT pg_catalog.pg_create_logical_replication_slot($1::text, 'pgoutput', true)::text";
    let created = source.query(doing, sql, &[&slot.as_str()]).await;
    match created {
        Ok(_) => {}
        // A slot waits for the transactions that run.
        Err(error) if error.code() == Some(SqlState::new(b"57014")) => {
            return Err(Fault::Refused(slot_not_created(config, source).await));
        }
        Err(error) => return Err(SourceError::Session(error).into()),
    }
    source.batch(doing, "SET statement_timeout = 0").await.map_err(SourceError::Session)?;
    Ok(slot)
}

/// Changes that are looked at, at most: one is enough to know.
const CHANGES_MAX: i32 = 100_000;

/// Whether the slot has seen a row of the publication written: insert, update, delete or truncate, by pgoutput's letters.
async fn is_written(config: &Config, source: &SqlClient, slot: &SlotName) -> Result<bool, SessionError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_logical_slot_peek_binary_changes($1::text, NULL, $2, 'proto_version', '1',
                   'publication_names', $3::text) WHERE pg_catalog.get_byte(data, 0) IN (73, 85, 68, 84))";
    let publication = config.source.publication.sql();
    let row = source.query_one("looking for changes", sql, &[&slot.as_str(), &CHANGES_MAX, &publication]).await?;
    row.get(0)
}

/// Waits until everything that is committed at the source now is here; returns the position.
async fn drain(source: &SqlClient, bookkeeping: &Bookkeeping) -> Result<Lsn, Fault> {
    let sql = "SELECT pg_catalog.pg_current_wal_insert_lsn()::text";
    let row = source.query_one("asking how far the source is", sql, &[]).await.map_err(SourceError::Session)?;
    let until: Lsn = row.parse(0).map_err(SourceError::Session)?;
    // An idle stream says only now and then how far it is; a message behind it makes it say so at once.
    let message = "SELECT pg_catalog.pg_logical_emit_message(true, 'headwater', 'cutover')";
    source.query("writing a message", message, &[]).await.map_err(SourceError::Session)?;
    let began = Instant::now();
    loop {
        let position = bookkeeping.position().await?.unwrap_or(Lsn::INVALID);
        if position >= until {
            return Ok(position);
        }
        if began.elapsed() > DRAIN_MAX {
            return Err(DestinationError::Refused(
                ErrorReport::new(format!("the destination is at {position}, and has not reached {until}"))
                    .hint("Look at headwater's /status: it must stream, and catch up."),
            )
            .into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A column may draw from no sequence here: the operator made it, or our role was not allowed to create one. One that has a
/// default here, or an identity, has what its owner wanted; only ALWAYS is put back, which no UPDATE of ours could have set.
fn identities(standing: &[SequenceReading], source: &SourceCatalog, destination: &Catalog) -> Vec<String> {
    let mut statements = Vec::new();
    for (sequence, state) in standing {
        let (table, column) = (&sequence.table, &sequence.column);
        let Some(here) = destination.table(table).and_then(|table| table.column(column)) else { continue };
        let there = source.table(table).and_then(|table| table.definition.column(column));
        let (Some(there), Some(state)) = (there, state) else { continue };
        let always = there.identity == Some(IdentityColumn::Always);
        if always && here.identity == Some(IdentityColumn::ByDefault) {
            statements.push(format!("ALTER TABLE {table} ALTER COLUMN {column} SET GENERATED ALWAYS;"));
        }
        let drawn = there.identity.is_some() || there.default.is_some();
        if !drawn || here.identity.is_some() || here.default.is_some() || here.generated.is_some() {
            continue;
        }
        if !here.not_null {
            statements.push(format!("ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;"));
        }
        let step = if sequence.ascending { 1 } else { -1 };
        let start = if state.is_called { state.last_value.saturating_add(step) } else { state.last_value };
        let kind = if always { "ALWAYS" } else { "BY DEFAULT" };
        statements.push(format!(
            "ALTER TABLE {table} ALTER COLUMN {column} ADD GENERATED {kind} AS IDENTITY (INCREMENT {step} START {start} \
             MINVALUE {} MAXVALUE {});",
            sequence.least, sequence.most
        ));
    }
    statements
}

/// headwater's own foreign keys are NO ACTION: the source's cascades arrived as rows. From now on they must act.
fn foreign_keys(source: &SourceCatalog, destination: &Catalog) -> Vec<String> {
    let mut statements = Vec::new();
    for table in &source.tables {
        let name = table.definition.name();
        let Some(here) = destination.table(&name) else { continue };
        for (constraint, target) in table.definition.foreign_keys() {
            let own = here.foreign_keys().find(|(own, _)| own.name == constraint.name);
            let Some((_, found)) = own else { continue };
            if found.on_delete == target.on_delete && found.on_update == target.on_update {
                continue;
            }
            let columns = constraint.columns.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let theirs = target.columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let action = |on: &str, action: ForeignKeyAction| match action {
                ForeignKeyAction::NoAction => String::new(),
                ForeignKeyAction::Restrict
                | ForeignKeyAction::Cascade
                | ForeignKeyAction::SetNull
                | ForeignKeyAction::SetDefault => format!(" ON {on} {}", action.as_sql()),
            };
            let full = if target.matching == 'f' { " MATCH FULL" } else { "" };
            statements.push(format!(
                "ALTER TABLE {name} DROP CONSTRAINT {0}, ADD CONSTRAINT {0} FOREIGN KEY ({columns}) REFERENCES {1} ({theirs}){full}{2}{3};",
                constraint.name,
                target.table(),
                action("DELETE", target.on_delete),
                action("UPDATE", target.on_update),
            ));
        }
    }
    statements
}
