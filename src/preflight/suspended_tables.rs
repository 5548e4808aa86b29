//! Suspends a table that the stream cannot keep equal any more, so that the others continue, until a copy has replaced it.
//!
//! Asked by `attempt` when a stream, or what precedes it, ends with a fault that concerns the rows of one table, or of a few: it was
//! changed in a way that the stream does not tell ([`DestinationError::NeedsCopy`]), or its changes do not say which row they mean
//! ([`DestinationError::NoIdentity`]), or another table bears its name now ([`TransactionError::Replaced`]), or the publication does
//! not hold it any more ([`SourceError::Unpublished`]). Or the table lacks a column at the destination
//! ([`DestinationError::ColumnLost`]), or another table has its name there ([`DestinationError::OtherTables`]): into that one the rows are
//! copied when an operator has asked for it. Or a change of its rows met a conflict ([`DestinationError::Conflict`]) while a copy of it
//! is asked for: the copy waits for the stream, which would wait for the conflict.
//!
//! ```text
//!  live at P ──fault: rolled back to P──▶ suspended, a copy is asked for ──▶ stream on from P, without the table
//!    ▲                                                                              │ hand-over: slot at C, copied
//!    └──── stream restarted from D ◀── published at D, in the same transaction ◀─────┘ under it, brought to D
//! ```
//!
//! Why no row is lost or doubled: a change is applied if its table is live and its commit_lsn is not below the table's snapshot
//! position. The transaction with the fault was rolled back whole, so at P the table equals the source as all others do. From
//! then on it is not live: its changes are passed over and its rows stay as they were, also while the stream continues to D. The
//! copy holds every transaction with commit_lsn < D and none other, and is published while the stream stands at D. The stream
//! that begins there applies those with commit_lsn >= D. The other tables never notice more than a restart of the stream.
//!
//! After a crash the bookkeeping holds the suspended table with the request for its copy, written in one transaction, or
//! neither; the next start comes to the same fault, or to the hand-over. This instance is not ready until the copy is
//! published, since the table's rows are older than the others'.

use super::fingerprints::table_called;
use crate::apply_plan::row_by_row::NoIdentity;
use crate::config::{Config, SchemaChanges};
use crate::destination::{
    AskedBy, Bookkeeping, DestinationError, OtherTables, TableRecord, TableState, renamed_report,
};
use crate::error_policy::{Fault, rename_back, report};
use crate::pg::{ErrorReport, QualifiedName, RelationId};
use crate::preflight::addresses::Addresses;
use crate::source::SourceError;
use crate::telemetry::{Telemetry, failpoint};
use crate::transaction::TransactionError;

/// The tables whose rows a fault is about, and none other's; none where it is about something else.
fn concerned(fault: &Fault) -> Vec<&QualifiedName> {
    match fault {
        Fault::Destination(
            DestinationError::NeedsCopy { table, .. }
            | DestinationError::ColumnLost { table, .. }
            | DestinationError::NoIdentity(NoIdentity { table }),
        )
        | Fault::Source(SourceError::Transaction(TransactionError::Replaced { table, .. })) => vec![table],
        Fault::Destination(DestinationError::OtherTables(others)) => others.names().collect(),
        Fault::Destination(DestinationError::Conflict(conflict)) if !conflict.will_win => {
            conflict.table.iter().collect()
        }
        Fault::Source(SourceError::Unpublished { tables, .. }) => tables.iter().collect(),
        Fault::Destination(_) | Fault::Source(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => {
            Vec::new()
        }
    }
}

/// Suspends the tables that a fault is about; the fault comes back when there are none, or when it is the operator's matter.
pub(crate) async fn suspend(
    config: &Config,
    addresses: &Addresses,
    telemetry: &Telemetry,
    fault: Fault,
    foreign_keys_act: bool,
) -> Result<(), Fault> {
    let fault = renamed(config, addresses, fault).await;
    let tables = concerned(&fault);
    if tables.is_empty() {
        return Err(fault);
    }
    let bookkeeping = Bookkeeping::connect(&addresses.destination).await?;
    if let Some(held) = held(&bookkeeping, &fault, foreign_keys_act).await? {
        let is_conflict = matches!(fault, Fault::Destination(DestinationError::Conflict(_)));
        return Err(if is_conflict { fault } else { Fault::Halted(held) });
    }
    let asked_by = asked_by(config, &fault);
    let mut suspended = Vec::new();
    for table in tables {
        if bookkeeping.suspend(table, asked_by).await? {
            suspended.push(table.clone());
        }
    }
    if suspended.is_empty() {
        return Err(fault);
    }
    let copied = if suspended.len() == 1 { "it is" } else { "they are" };
    let fault = only_of(fault, &suspended);
    let mut text = format!("{fault}; {copied} copied again, while the others stream on");
    if let Fault::Destination(DestinationError::ColumnLost { renamed: Some(renamed), .. }) = &fault {
        text += &format!(
            "; it may have been renamed to {renamed}, which the source does not have and which stays as it is"
        );
    }
    telemetry.warning("schema", text);
    failpoint::reached("schema.suspended");
    Ok(())
}

/// The fault without the other tables that wait for an operator.
fn only_of(fault: Fault, tables: &[QualifiedName]) -> Fault {
    let Fault::Destination(DestinationError::OtherTables(OtherTables(mut others))) = fault else { return fault };
    others.retain(|other| tables.contains(&other.table));
    Fault::Destination(DestinationError::OtherTables(OtherTables(others)))
}

/// A table that the stream brings under another name: where its own name is another table's by now, that one replaces it.
async fn renamed(config: &Config, addresses: &Addresses, fault: Fault) -> Fault {
    let Fault::Destination(DestinationError::Renamed { table, renamed }) = &fault else { return fault };
    match replaced_by(addresses, table).await {
        Ok(Some((old, new))) => {
            SourceError::Transaction(TransactionError::Replaced { table: table.clone(), old, new }).into()
        }
        Ok(None) => Fault::Halted(renamed_report(table, renamed, config.tables.contains(renamed))),
        Err(error) => {
            tracing::debug!("a renamed table could not be looked for: {error}");
            fault
        }
    }
}

async fn replaced_by(addresses: &Addresses, table: &QualifiedName) -> Result<Option<(RelationId, RelationId)>, Fault> {
    let bookkeeping = Bookkeeping::connect(&addresses.destination).await?;
    let known = bookkeeping.tables().await?.into_iter().find(|known| known.name == *table);
    let source = addresses.source.connect().await.map_err(SourceError::Session)?;
    let now = table_called(&source, table).await.map_err(SourceError::Session)?;
    Ok(known.map(|known| known.source_id).zip(now).filter(|(old, new)| old != new))
}

/// What prevents an automatic copy of tables on this fault, for callers that change nothing; `None`: nothing does.
pub(crate) async fn obstacle(
    config: &Config,
    bookkeeping: &Bookkeeping,
    fault: &Fault,
    foreign_keys_act: bool,
) -> Result<Option<ErrorReport>, DestinationError> {
    let tables = concerned(fault);
    if tables.is_empty() {
        return Ok(Some(report(fault)));
    }
    if let Some(held) = held(bookkeeping, fault, foreign_keys_act).await? {
        return Ok(Some(held));
    }
    let requests = bookkeeping.requests().await?;
    let asked_by = asked_by(config, fault);
    let are_asked = tables.iter().all(|table| requests.iter().any(|request| request.is_for(table, asked_by)));
    Ok((asked_by != AskedBy::Nobody && !are_asked).then(|| report(fault)))
}

/// Who must have asked for the copy: an operator where he wants to make changes himself, and where he has put another table, with
/// whatever rows, under the name.
fn asked_by(config: &Config, fault: &Fault) -> AskedBy {
    match fault {
        Fault::Destination(DestinationError::OtherTables(_)) => AskedBy::Operator,
        Fault::Destination(DestinationError::Conflict(_)) => AskedBy::Anybody,
        Fault::Source(_) | Fault::Destination(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => {
            match config.schema_changes {
                SchemaChanges::Stop => AskedBy::Operator,
                SchemaChanges::Follow => AskedBy::Nobody,
            }
        }
    }
}

async fn held(
    bookkeeping: &Bookkeeping,
    fault: &Fault,
    foreign_keys_act: bool,
) -> Result<Option<ErrorReport>, DestinationError> {
    if !foreign_keys_act {
        return Ok(None);
    }
    for table in concerned(fault) {
        if let Some(foreign_key) = bookkeeping.foreign_key_of(table).await? {
            return Ok(Some(held_by_foreign_key(fault, &foreign_key)));
        }
    }
    Ok(None)
}

/// Rows that refer to a suspended table would be refused.
fn held_by_foreign_key(fault: &Fault, foreign_key: &str) -> ErrorReport {
    let report = report(fault);
    let because = format!(
        "No copy is made by itself: our role may not set session_replication_role, so foreign key {foreign_key} would refuse \
         rows of the other tables meanwhile."
    );
    let detail = report.detail.as_deref().map_or(because.clone(), |detail| format!("{detail} {because}"));
    let copy = "Copy all tables again: headwater run --resnapshot";
    let hint = rename_back(fault).map_or(copy.to_owned(), |rename| format!("{rename}\nOtherwise:\n{copy}"));
    ErrorReport::new(report.message).detail(detail).hint(hint)
}

/// The tables that are suspended.
pub(crate) fn suspended(tables: &[TableRecord]) -> Vec<QualifiedName> {
    let suspended = tables.iter().filter(|table| table.state == TableState::Staging);
    suspended.map(|table| table.name.clone()).collect()
}
