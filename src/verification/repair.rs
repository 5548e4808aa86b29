//! Repair: corrects the rows that differ, at a fence at which apply stands still.
//!
//! The leader does it, asked through the bookkeeping. The keys come from a verify. Their rows are read again, as they are *now*,
//! under the fence's snapshot of the source, so that repair undoes nothing that was applied in between. One
//! destination transaction deletes what the source lacks (children first), updates what differs and inserts what is
//! missing (parents first). It holds the position's row, so that no other instance can apply before it has committed.
//!
//! If the answer to COMMIT is lost, repairing the same keys once more changes nothing.
//!
//! A table that was truncated or rewritten at the source since that snapshot looks empty in it, and partitions may have come or gone: then
//! nothing is written, and the command asks for the same repair at another fence.
//!
//! The keys are the destination's. Where the source has several rows of one, no row is written, and the report names that key.

use super::compare::Keys;
use super::parts::is_as_in_snapshot;
use super::tables::{Compared, column_types, key_parts, read_tables};
use super::workers::Side;
use crate::apply_worker::pause::PauseGuard;
use crate::catalog::lock_budget;
use crate::catalog::schema::{IdentityColumn, IndexDefinition, TableKind};
use crate::comparison::Key;
use crate::comparison::sql::{RepairedTable, rows_by_key};
use crate::config::Config;
use crate::destination::{
    DestinationError, ExchangeReason, KeyRefusal, RepairOutcome, STATEMENT_MAX, Writes, exchange_obstacle,
    refuse_other_tables,
};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Ident, Lsn, counted};
use crate::preflight::addresses::Addresses;
use crate::session::{SessionError, SqlClient, SqlState, read_lock_table};
use crate::sql::text_value::ValueType;
use crate::verification::fence::{Fence, sql_for};
use crate::verification::fence_request::{VerifyContext, other_files};
use crate::verification::verdict::{VerifyOptions, VerifyProgress};

/// Keys read and written at a time.
const KEYS_MAX: usize = 500;

const DOING: &str = "repairing rows";

/// A table's part of a repair.
struct RepairWork {
    table: Compared,
    repaired: RepairedTable,
    /// Keys that the source has no row for.
    gone: Vec<Key>,
    /// The source's rows, as texts.
    rows: Vec<Vec<Option<String>>>,
}

/// Reconciles the rows with these keys.
pub(crate) async fn repair(
    config: &Config,
    addresses: &Addresses,
    fence: &Fence,
    held: &PauseGuard,
    keys: &Keys,
) -> Result<RepairOutcome, Fault> {
    let (options, progress) = (VerifyOptions::default(), VerifyProgress::default().into());
    let ends = VerifyContext { config, addresses, options: &options, progress: &progress };
    let client = sql_for(&addresses.destination, "repairing").connect().await.map_err(DestinationError::Session)?;
    let client = client.with_timeout(STATEMENT_MAX);
    let source = fence.source.client();
    let names: Vec<_> = keys.iter().map(|(name, _)| name.clone()).collect();
    let mut work = Vec::new();
    // Parents first, as the catalog gives them.
    // A table that has been suspended since it was compared gets its rows by its copy; the next comparison leaves it out or finds
    // it equal.
    let (tables, _left_out) = read_tables(ends, source, &client, Some(&names)).await?;
    if tables.is_empty() {
        return Ok(RepairOutcome::default());
    }
    let needs = lock_budget::of_repairing(tables.iter().map(|table| (&table.source, &table.destination)));
    for (client, side, end, need) in
        [(source, Side::Source, "source", needs.0), (&client, Side::Destination, "destination", needs.1)]
    {
        let room = read_lock_table(client).await.map_err(|error| side.fault(error))?;
        let doing = format!("repairing {}", counted(tables.len(), "table"));
        if let Some(report) = room.lacks_room(end, &doing, need) {
            return Err(Fault::Refused(report));
        }
    }
    for table in tables {
        let keys = keys.iter().find(|(name, _)| *name == table.name).map(|(_, keys)| keys.as_slice());
        let part = read_rows(source, &client, table, keys.unwrap_or_default()).await?;
        let is_whole = is_as_in_snapshot(source, &part.table.source).await;
        if !is_whole.map_err(|error| Side::Source.fault(error))? {
            return Err(Fault::Refused(other_files(&part.table.name)));
        }
        work.push(part);
    }
    let done = write(config, &client, held.position(), &work).await;
    if done.is_err() {
        // The session may be gone; then the server rolls back by itself.
        let _ = client.batch("rolling back", "ROLLBACK").await;
    }
    done
}

/// The rows as the source has them at the fence.
async fn read_rows(source: &SqlClient, client: &SqlClient, table: Compared, keys: &[Key]) -> Result<RepairWork, Fault> {
    let key = key_parts(client, Side::Destination, &table).await?;
    let key_there = key_parts(source, Side::Source, &table).await?;
    let types = column_types(client, Side::Destination, &table.destination).await?;
    let definition = |name: &Ident| table.destination.column(name);
    let columns: Vec<(Ident, ValueType)> = table
        .hashing(Side::Destination)
        .columns
        .iter()
        .map(|column| &column.name)
        .filter(|name| definition(name).is_some_and(|column| column.generated.is_none()))
        .filter_map(|name| Some((name.clone(), types.get(name)?.declared.clone())))
        .collect();
    let fixed = columns
        .iter()
        .filter(|(name, _)| definition(name).and_then(|column| column.identity) == Some(IdentityColumn::Always))
        .map(|(name, _)| name.clone())
        .collect();
    let names: Vec<Ident> = columns.iter().map(|(name, _)| name.clone()).collect();
    let statement =
        rows_by_key(&table.source.name(), table.source.is_tree(), table.row_filter.as_deref(), &key_there, &names);
    let (mut gone, mut rows) = (Vec::new(), Vec::new());
    for keys in keys.chunks(KEYS_MAX) {
        let json = serde_json::to_string(keys).expect("texts can be written as JSON");
        let answer = source.query(DOING, &statement, &[&json]).await.map_err(|error| Side::Source.fault(error))?;
        let mut found = vec![false; keys.len()];
        for row in answer {
            let read = || Ok((row.get::<i64>(0)?, row.get::<Vec<Option<String>>>(1)?));
            let (number, texts) = read().map_err(|error| Side::Source.fault(error))?;
            let index = number.checked_sub(1).and_then(|index| usize::try_from(index).ok());
            let found = index.and_then(|index| found.get_mut(index)).ok_or_else(|| {
                Side::Source.fault(SessionError::answer(DOING, "a row of a key that was not asked for"))
            })?;
            if std::mem::replace(found, true) {
                return Err(shared(&table).into());
            }
            rows.push(texts);
        }
        gone.extend(keys.iter().zip(found).filter(|(_, found)| !found).map(|(key, _)| key.clone()));
    }
    let whole_tree = table.destination.kind == TableKind::Partitioned;
    let stored = table.destination.columns.iter().filter(|column| column.generated.is_none());
    let stored = stored.map(|column| column.name.clone()).collect();
    let repaired = RepairedTable { table: table.name.clone(), whole_tree, key, columns, fixed, stored };
    Ok(RepairWork { table, repaired, gone, rows })
}

/// Several rows of the source have one key of the destination's.
fn shared(table: &Compared) -> DestinationError {
    let names = table.key_names();
    let is_key =
        |index: &&IndexDefinition| index.unique_columns().is_some_and(|columns| columns.into_iter().eq(names.iter()));
    let index = table.destination.indexes.iter().find(is_key).map(|index| index.name.clone());
    DestinationError::KeyRefuses(KeyRefusal { table: table.name.clone(), index, columns: names, null: None })
}

async fn write(
    config: &Config,
    client: &SqlClient,
    position: Lsn,
    work: &[RepairWork],
) -> Result<RepairOutcome, Fault> {
    let fault = |error| Side::Destination.fault(error);
    // Foreign keys and triggers of the destination do not act on what is the source's, where we may say so.
    let role = client.batch(DOING, "SET session_replication_role = replica").await;
    let replica = match role {
        Ok(()) => true,
        Err(error) if error.code() == Some(SqlState::new(b"42501")) => false,
        Err(error) => return Err(fault(error)),
    };
    client.batch(DOING, "BEGIN; SET LOCAL synchronous_commit = on").await.map_err(fault)?;
    let lock_timeout = format!("SET LOCAL lock_timeout = {}", config.destination.lock_timeout.as_millis());
    client.statement(DOING, &lock_timeout).await.map_err(fault)?;
    if !replica {
        client.batch(DOING, "SET CONSTRAINTS ALL DEFERRED").await.map_err(fault)?;
    }
    let sql = "SELECT position::text FROM headwater.position FOR UPDATE";
    let found: Lsn = client.query_one(DOING, sql, &[]).await.and_then(|row| row.parse(0)).map_err(fault)?;
    if found != position {
        return Err(Fault::Refused(ErrorReport::new("another instance has gone on while rows were being repaired")));
    }
    let writes = Writes {
        tables: work.iter().map(|part| part.table.name.clone()).collect(),
        supplied: work
            .iter()
            .flat_map(|part| part.repaired.columns.iter().map(|(column, _)| (part.table.name.clone(), column.clone())))
            .collect(),
        types: Vec::new(),
        collations: Vec::new(),
        foreign_keys_act: !replica,
        trusted_roles: config.destination.trusted_roles.clone(),
        names_owners: config.destination.names_owners(),
    };
    writes.lock_and_refuse_foreign_code(client).await?;
    refuse_other_tables(client, false).await?;
    let mut outcome = RepairOutcome::default();
    for part in work.iter().rev() {
        for keys in part.gone.chunks(KEYS_MAX) {
            let json = serde_json::to_string(keys).expect("texts can be written as JSON");
            outcome.deleted += client.execute(DOING, &part.repaired.delete(), &[&json]).await.map_err(fault)?;
        }
    }
    for part in work {
        for rows in part.rows.chunks(KEYS_MAX) {
            let json = serde_json::to_string(rows).expect("texts can be written as JSON");
            outcome.updated += update(client, replica, part, &json).await?;
        }
        for rows in part.rows.chunks(KEYS_MAX) {
            let json = serde_json::to_string(rows).expect("texts can be written as JSON");
            outcome.inserted += client.execute(DOING, &part.repaired.insert(), &[&json]).await.map_err(fault)?;
        }
    }
    client.batch(DOING, "COMMIT").await.map_err(fault)?;
    for part in work {
        tracing::debug!("repaired table {}: {} keys read", part.table.name, part.gone.len() + part.rows.len());
    }
    Ok(outcome)
}

/// Updates those of these rows that differ; where no UPDATE can, by exchanging them.
async fn update(client: &SqlClient, replica: bool, part: &RepairWork, json: &str) -> Result<u64, Fault> {
    let repaired = &part.repaired;
    let fault = |error| Side::Destination.fault(error);
    let mut exchanged = 0;
    if let Some(question) = repaired.fixed_differ()
        && client.query_one(DOING, &question, &[&json]).await.and_then(|row| row.get(0)).map_err(fault)?
    {
        check_exchange(client, replica, repaired, ExchangeReason::FixedValues).await?;
        exchanged = client.execute(DOING, &repaired.exchange(true), &[&json]).await.map_err(fault)?;
    }
    let Some(update) = repaired.update() else { return Ok(exchanged) };
    client.batch(DOING, "SAVEPOINT headwater_update").await.map_err(fault)?;
    let error = match client.execute(DOING, &update, &[&json]).await {
        Ok(updated) => {
            client.batch(DOING, "RELEASE SAVEPOINT headwater_update").await.map_err(fault)?;
            return Ok(exchanged + updated);
        }
        Err(error) => error,
    };
    if ![b"23505", b"23P01"].iter().any(|code| error.code() == Some(SqlState::new(code))) {
        return Err(fault(error));
    }
    client.batch(DOING, "ROLLBACK TO SAVEPOINT headwater_update").await.map_err(fault)?;
    check_exchange(client, replica, repaired, ExchangeReason::UniqueValues).await?;
    // All rows of the table: the values may have changed hands with rows that are not among these.
    let json = serde_json::to_string(&part.rows).expect("texts can be written as JSON");
    Ok(exchanged + client.execute(DOING, &repaired.exchange(false), &[&json]).await.map_err(fault)?)
}

/// Rows are deleted and inserted again only where nothing acts on that.
async fn check_exchange(
    client: &SqlClient,
    replica: bool,
    repaired: &RepairedTable,
    reason: ExchangeReason,
) -> Result<(), Fault> {
    match exchange_obstacle(client, &repaired.table, reason).await? {
        Some(report) if !replica => Err(DestinationError::Refused(report).into()),
        Some(_) | None => Ok(()),
    }
}
