//! Foreign keys that the copied rows violate, though the source says that they are valid.
//!
//! A source has such rows when they were written where foreign keys do not act. `build` and `publish` then keep the foreign
//! key NOT VALID, and report it: it holds for new rows, as it does at the source, and the copy has every row.

use super::error::DestinationError;
use crate::pg::{Ident, QualifiedName};
use crate::schema_change::ddl;
use crate::session::{SessionError, SqlClient, SqlState};

const DOING: &str = "validating a foreign key";

/// The message about a foreign key that stays NOT VALID.
pub(super) fn orphans_told(table: &QualifiedName, constraint: &Ident) -> String {
    format!(
        "table {table}: foreign key {constraint} is NOT VALID at the destination: the source has rows that violate it, though it is \
         valid there"
    )
}

/// foreign_key_violation
pub(super) fn is_orphaned(error: &SessionError) -> bool {
    error.code() == Some(SqlState::new(b"23503"))
}

/// Whether a foreign key holds for all rows; where it does not it stays NOT VALID.
pub(super) async fn validates(
    client: &SqlClient,
    table: &QualifiedName,
    constraint: &Ident,
) -> Result<bool, DestinationError> {
    client.batch(DOING, "SAVEPOINT headwater_validate").await?;
    match client.statement(DOING, &ddl::validate_constraint(table, constraint)).await {
        Ok(()) => {
            client.batch(DOING, "RELEASE SAVEPOINT headwater_validate").await?;
            Ok(true)
        }
        Err(error) if is_orphaned(&error) => {
            client.batch(DOING, "ROLLBACK TO SAVEPOINT headwater_validate").await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
