//! What can go wrong at the destination.
//!
//! Goes to `error_policy`, which decides what now.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::apply_plan::target::BindError;
use crate::config::OnConflict;
use crate::destination::other_table::{OtherTable, OtherTables};
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName};
use crate::schema_change::constraint_difference::{Difference, Violated};
use crate::session::{SessionError, SqlState};
use crate::transaction::Change;

/// How a row at the destination was not what a change expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConflictKind {
    /// An insert, or a changed key, meets a row that exists; or another unique key does.
    UniqueViolation,
    /// An update's row is missing.
    MissingRow,
    /// A foreign key.
    ForeignKeyViolation,
    /// A check.
    CheckViolation,
    /// A NULL where none may be.
    NotNullViolation,
    /// An exclusion constraint.
    ExclusionViolation,
    /// A value that its column does not take.
    DataException,
    /// The role may not write the row: privileges, or row-level security.
    PermissionDenied,
    /// Anything else that the destination refused about a row.
    Other,
}

impl ConflictKind {
    /// All there are.
    pub const ALL: [ConflictKind; 9] = [
        ConflictKind::UniqueViolation,
        ConflictKind::MissingRow,
        ConflictKind::ForeignKeyViolation,
        ConflictKind::CheckViolation,
        ConflictKind::NotNullViolation,
        ConflictKind::ExclusionViolation,
        ConflictKind::DataException,
        ConflictKind::PermissionDenied,
        ConflictKind::Other,
    ];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConflictKind::UniqueViolation => "unique_violation",
            ConflictKind::MissingRow => "missing_row",
            ConflictKind::ForeignKeyViolation => "foreign_key_violation",
            ConflictKind::CheckViolation => "check_violation",
            ConflictKind::NotNullViolation => "not_null_violation",
            ConflictKind::ExclusionViolation => "exclusion_violation",
            ConflictKind::DataException => "data_exception",
            ConflictKind::PermissionDenied => "permission_denied",
            ConflictKind::Other => "other",
        }
    }

    /// What an error inside a batch says about a row; `None` when it says nothing about one.
    pub fn of(code: SqlState) -> Option<ConflictKind> {
        Some(match code.as_str() {
            "23505" => ConflictKind::UniqueViolation,
            "HW002" => ConflictKind::MissingRow,
            "23503" | "23001" => ConflictKind::ForeignKeyViolation,
            "23514" => ConflictKind::CheckViolation,
            "23502" => ConflictKind::NotNullViolation,
            "23P01" => ConflictKind::ExclusionViolation,
            "42501" => ConflictKind::PermissionDenied,
            // 44000 WITH CHECK OPTION, P0001 a trigger's exception, 428C9 a generated column; 27000 a trigger that
            // changed the row.
            "44000" | "P0001" | "428C9" | "27000" => ConflictKind::Other,
            // How jsonpath and ltree refuse a value of a later major: our own statements were accepted before.
            "42601" => ConflictKind::DataException,
            _ => match code.class() {
                "22" => ConflictKind::DataException,
                "23" => ConflictKind::Other,
                // 54 program limit exceeded: a row too large for an index of the destination's.
                "54" => ConflictKind::Other,
                _ => return None,
            },
        })
    }
}

/// A change that the destination's rows do not allow. Names the row by its key's columns, never by its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What kind.
    pub kind: ConflictKind,
    /// The table, when the failing change is known.
    pub table: Option<QualifiedName>,
    /// What the change does: insert, update, delete, truncate.
    pub operation: Option<&'static str>,
    /// The columns by which the change finds its row.
    pub key: Vec<Ident>,
    /// The violated constraint or the column concerned, in the server's words.
    pub constraint: Option<String>,
    /// The server's words.
    pub message: String,
    /// The SQLSTATE.
    pub code: SqlState,
    /// The source transaction's commit_lsn.
    pub commit_lsn: Lsn,
    /// The source transaction's end_lsn; one that comes in chunks is known by its commit_lsn only.
    pub end_lsn: Option<Lsn>,
    /// The next attempt lets its rows win.
    pub will_win: bool,
    /// What the settings say of conflicts.
    pub on_conflict: OnConflict,
    /// What the server has named.
    pub violated: Violated,
    /// How the ends differ in it, where the source does not have the constraint as it is here.
    pub difference: Option<Difference>,
    /// The role that writes.
    pub user: Option<Ident>,
    /// The change that failed, where the statement tells it.
    pub change: Option<FailedChange>,
}

/// The change that met a conflict. Its values reach nobody by formatting: [`FailedChange::get`] is the only way to them.
#[derive(Clone, PartialEq, Eq)]
pub struct FailedChange(Box<Change>);

impl FailedChange {
    /// Keeps a copy of a change; its values stay slices of the read buffer.
    pub fn of(change: &Change) -> FailedChange {
        FailedChange(Box::new(change.clone()))
    }

    /// The change, for headwater.open_conflict.
    pub fn get(&self) -> &Change {
        &self.0
    }
}

impl fmt::Debug for FailedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailedChange")
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.table, self.operation) {
            (Some(table), Some(operation)) => write!(f, "conflict: {operation} on table {table}")?,
            (Some(table), None) => write!(f, "conflict on table {table}")?,
            (None, _) => f.write_str("conflict at commit")?,
        }
        if !self.key.is_empty() {
            let key: Vec<String> = self.key.iter().map(Ident::to_string).collect();
            write!(f, " (key {})", key.join(", "))?;
        }
        write!(f, ": {} (SQLSTATE {}), in the source transaction", self.message, self.code)?;
        match self.end_lsn {
            Some(end_lsn) => write!(f, " with end_lsn {end_lsn}"),
            None => write!(f, " with commit_lsn {}", self.commit_lsn),
        }
    }
}

/// A key of the destination's table under which the source's rows cannot all stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRefusal {
    /// The table.
    pub table: QualifiedName,
    /// The unique index; `None` where it is not known.
    pub index: Option<Ident>,
    /// Its columns.
    pub columns: Vec<Ident>,
    /// The column in which a row of the source is NULL; `None`: several rows have the same values.
    pub null: Option<Ident>,
}

impl KeyRefusal {
    /// As the server would name it if it were asked to write these rows.
    pub fn violated(&self) -> Violated {
        let constraint = if self.null.is_some() { None } else { self.index.clone() };
        Violated { table: Some(self.table.clone()), constraint, column: self.null.clone() }
    }
}

impl fmt::Display for KeyRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = || self.columns.iter().map(Ident::to_string).collect::<Vec<_>>().join(", ");
        let table = &self.table;
        match (&self.null, &self.index) {
            (Some(column), _) => {
                write!(f, "table {table} does not take rows of the source whose column {column} is NULL")
            }
            (None, Some(index)) => write!(
                f,
                "unique index {index} of table {table} does not take rows of the source that are equal in {}",
                columns()
            ),
            (None, None) => write!(f, "table {table} does not take rows of the source that are equal in {}", columns()),
        }
    }
}

/// What went wrong at the destination.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// The session.
    #[error("destination: {0}")]
    Session(#[from] SessionError),
    /// Something that an operator must fix.
    #[error("{0}")]
    Refused(ErrorReport),
    /// The stored position is not the one that this instance wrote: another one leads.
    #[error("the stored position is {found}, not {expected}: another instance has written")]
    PositionMoved {
        /// What this instance stored last.
        expected: Lsn,
        /// What is stored.
        found: Lsn,
    },
    /// A change that the destination's rows do not allow.
    #[error("{0}")]
    Conflict(Box<Conflict>),
    /// A row that is copied violates a constraint that the source does not have, or has otherwise.
    #[error("{0}")]
    Constraint(ErrorReport),
    /// The rows that are copied, or repaired, cannot all stand under a key of the destination's.
    #[error("{0}")]
    KeyRefuses(KeyRefusal),
    /// A row has an enum's label that was added at the source and is not here yet.
    #[error("an enum has got a label at the source: it is added, and the stream started again")]
    LabelMissing,
    /// Attributes of a composite type have other names at the source by now.
    #[error(
        "attributes of a composite type were renamed at the source: they are renamed, and the stream started again"
    )]
    AttributesRenamed,
    /// A table has changed so that values travel in another form from now on.
    #[error("table {0} has changed so that its values travel in another form: the stream is started again")]
    FormatChanged(QualifiedName),
    /// A table has changed in a way that the stream does not show: only a copy has its rows.
    #[error("table {table} has changed at the source in a way that the stream does not tell: {reason}")]
    NeedsCopy {
        /// The table.
        table: QualifiedName,
        /// What has changed, as a sentence without its full stop.
        reason: String,
    },
    /// Tables have the names of followed ones and are others.
    #[error("{0}")]
    OtherTables(OtherTables),
    /// The table lacks a column that it had: once it is there again, the rows would lack its values.
    #[error("column {column} of table {table} is gone at the destination")]
    ColumnLost {
        /// The table.
        table: QualifiedName,
        /// The column.
        column: Ident,
        /// The only column there of its type that the source does not have: it may be the same one, renamed.
        renamed: Option<Ident>,
    },
    /// The stream brings a followed table under another name.
    #[error("table {table} is now called {renamed} at the source")]
    Renamed {
        /// The table, by the name that is followed.
        table: QualifiedName,
        /// Its name at the source.
        renamed: QualifiedName,
    },
    /// A transaction in chunks met a row's error in sets. That may be the sets' doing: in their original order its
    /// changes may be allowed.
    #[error("the transaction with commit_lsn {commit_lsn} is applied again, change by change: {message}")]
    SetsRefused {
        /// The transaction.
        commit_lsn: Lsn,
        /// The server's words.
        message: String,
    },
    /// A transaction in chunks must be skipped, which only its end has shown.
    #[error("the source transaction with end_lsn {end_lsn} is to be left out: it is taken from its beginning again")]
    WantedOut {
        /// By which it is known from its beginning on.
        commit_lsn: Lsn,
        /// By which the operator has named it.
        end_lsn: Lsn,
    },
    /// A relation that does not fit its table any more.
    #[error("schema change: {0}")]
    Bind(#[from] BindError),
    /// An update or delete without an identity.
    #[error(transparent)]
    NoIdentity(#[from] crate::apply_plan::row_by_row::NoIdentity),
    /// A copy that nobody has asked for lacks most of the rows that are here.
    #[error("the new copy lacks most of the rows that the destination has, and nobody has asked for it")]
    LacksMost {
        /// `table public.t (950 of 1000)`, several of them joined.
        tables: String,
        /// When the copy was begun that these were counted in, where that was at an earlier start.
        copy_begun_at: Option<String>,
    },
    /// Staged rows are not those that were sent.
    #[error("staging was lost: {0}")]
    StagingLost(String),
    /// The destination has not answered the monitor for too long.
    #[error("destination: {0}")]
    Silent(Silent),
}

/// How long a server has not answered, and what the last try has met.
#[derive(Clone, Debug)]
pub struct Silent {
    /// For so long.
    pub within: Duration,
    /// What the last try has met.
    pub error: Arc<SessionError>,
}

/// The same try.
impl PartialEq for Silent {
    fn eq(&self, other: &Silent) -> bool {
        self.within == other.within && Arc::ptr_eq(&self.error, &other.error)
    }
}

impl Eq for Silent {}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no sign of life for {}; at last: {}", humantime::format_duration(self.within), self.error)
    }
}

impl From<OtherTable> for DestinationError {
    fn from(other: OtherTable) -> DestinationError {
        DestinationError::OtherTables(OtherTables(vec![other]))
    }
}
