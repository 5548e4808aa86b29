//! What can go wrong at the source.
//!
//! Goes to `error_policy`, which decides what now.

use std::time::Duration;

use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName};
use crate::session::{SessionError, StreamError};
use crate::spool::SpoolError;
use crate::transaction::TransactionError;
use crate::wire::WireError;

/// Why the stream cannot continue from the stored position, and what to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{report}")]
pub struct LostHistory {
    /// Why.
    pub cause: LostCause,
    /// What to say.
    pub report: ErrorReport,
}

/// Why the stream cannot continue from the stored position. `error_policy` decides what may follow from each: after some the source is
/// still known to continue what the destination has, after others it may be another server, or an older state of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostCause {
    /// The slot does not exist any more.
    SlotMissing,
    /// The slot was invalidated.
    SlotInvalidated,
    /// The slot is ahead of the position, and nobody uses it: the destination is an older state of itself.
    SlotAhead,
    /// The slot is ahead of the position, and somebody else uses it: it may feed another destination.
    SlotTaken,
    /// The source is another cluster.
    OtherCluster,
    /// It is another database of the same cluster.
    OtherDatabase,
    /// Its timeline is lower than the one that fed the destination.
    OlderTimeline,
    /// Its timeline does not descend from the one that fed the destination.
    ForkedTimeline,
    /// Its timeline left the one that fed the destination before the position.
    LeftBefore,
    /// Its WAL ends before the position.
    EndsBefore,
    /// Its WAL reaches the position with fewer transactions than the one that fed the destination had.
    XidBefore,
}

/// What went wrong at the source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The session.
    #[error("source: {0}")]
    Session(#[from] SessionError),
    /// Something that an operator must fix.
    #[error("{0}")]
    Refused(ErrorReport),
    /// The stream cannot continue from the stored position.
    #[error("{0}")]
    LostHistory(Box<LostHistory>),
    /// Changes were not sent: the copy has gaps.
    #[error("{report}")]
    Gap {
        /// What is to be done.
        report: ErrorReport,
        /// What later starts say of the publication, behind its name.
        remembered: String,
    },
    /// Tables that are followed have left the publication: their changes were not sent, those of the others were.
    #[error("publication {publication} does not hold {} any more", listed(.tables))]
    Unpublished {
        /// The publication.
        publication: Ident,
        /// The tables.
        tables: Vec<QualifiedName>,
    },
    /// Another session streams from the slot.
    #[error("replication slot {slot} is in use by process {process_id} at the source")]
    SlotInUse {
        /// The slot.
        slot: String,
        /// The server process that uses it.
        process_id: i32,
        /// Whose that is, as far as our role may see it.
        holder: String,
    },
    /// The source is a standby that has not replayed up to the position.
    #[error("the source, a standby, has replayed up to {replayed} only, and the destination is at {position}")]
    Behind {
        /// How far it is.
        replayed: Lsn,
        /// How far the destination is.
        position: Lsn,
    },
    /// The source has said nothing for too long.
    #[error("the source has said nothing for {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The source ended the stream: it is shutting down.
    #[error("the source ended the stream")]
    Ended,
    /// A transaction that the stream has brought does not become visible: its session waits for a synchronous standby.
    #[error(
        "transaction {transaction} has come through the stream, and is not visible at the source after {}",
        humantime::format_duration(*.within)
    )]
    Unseen {
        /// Its xid.
        transaction: u32,
        /// How long it was waited for.
        within: Duration,
    },
    /// The stream waits at a schema change, and nobody could look at the tables.
    #[error(
        "the tables could not be looked at within {} for the schema change of transaction {transaction}: {reason}",
        humantime::format_duration(*.within)
    )]
    NotLooked {
        /// Its xid.
        transaction: u32,
        /// How long the stream has waited.
        within: Duration,
        /// What the last look met.
        reason: String,
    },
    /// A transaction has committed, and the source cannot tell whether a part of it was rolled back before.
    #[error("the source cannot tell what became of subtransaction {subtransaction} of transaction {transaction}")]
    OutcomeUnknown {
        /// The xid of the part.
        subtransaction: u32,
        /// The xid of the whole.
        transaction: u32,
    },
    /// Bytes that are not understood.
    #[error("source: {0}")]
    Wire(#[from] WireError),
    /// Messages that do not fit together, or a table that is another one now.
    #[error("source: {0}")]
    Transaction(#[from] TransactionError),
    /// The spool cannot keep transactions that are still in progress.
    #[error("{0}")]
    Spool(#[from] SpoolError),
    /// Another session waits for a table that a snapshot has locked, and the snapshot cannot continue either.
    #[error("{} waits for table {table}, which the snapshot has locked: the snapshot lets it go, and begins again", waiting(*.process_id))]
    InTheWay {
        /// The table.
        table: QualifiedName,
        /// The server process that waits, where it is known.
        process_id: Option<i32>,
    },
    /// A table is not what it was when the catalog was read, before its lock was there.
    #[error("table {0} was changed at the source while the snapshot waited for its lock: the snapshot begins again")]
    Changed(QualifiedName),
    /// The snapshot's holder was lost: what was read before and what is read after are not one snapshot.
    #[error("the snapshot was lost: {0}")]
    SnapshotLost(SessionError),
}

fn listed(tables: &[QualifiedName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn waiting(process_id: Option<i32>) -> String {
    process_id.map_or_else(|| "another session at the source".to_owned(), |id| format!("process {id} at the source"))
}

impl From<LostHistory> for SourceError {
    fn from(lost: LostHistory) -> SourceError {
        SourceError::LostHistory(Box::new(lost))
    }
}

impl From<StreamError> for SourceError {
    fn from(error: StreamError) -> SourceError {
        match error {
            StreamError::Session(error) => SourceError::Session(error),
            StreamError::Wire(error) => SourceError::Wire(error),
        }
    }
}
