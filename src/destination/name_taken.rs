//! Whether a name is taken: a statement of ours may then be tried with another one.

use crate::session::{SessionError, SqlState};

/// Something else has the name (duplicate_table, which says so of sequences, too).
pub(crate) fn is_taken(error: &SessionError) -> bool {
    error.code() == Some(SqlState::new(b"42P07"))
}
