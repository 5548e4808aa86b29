//! Whether both servers have room for the locks that a copy holds at once.
//!
//! Asked by `super` before the first table is locked, and by `check`. What the numbers are made of is `catalog::lock_budget`'s. Which
//! tables
//! differ is known only once they are compared, so the publish looks again before it writes.

use crate::catalog::lock_budget::{self, LockTable, TableToPublish};
use crate::catalog::schema::TableKind;
use crate::destination::{Catalog, DestinationError};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, counted};
use crate::session::{Clients, read_lock_table};
use crate::source::{CTID_RANGE_BYTES, SourceCatalog, SourceError, SourceTable};

/// The room for locks at both ends, and what a copy of these tables lacks of it.
pub(crate) struct LockRoom {
    /// The source's lock table.
    pub(crate) source: LockTable,
    /// One reader is too many for the source.
    pub(crate) lacks_at_source: Option<ErrorReport>,
    /// Comparing or publishing is too much for the destination.
    pub(crate) lacks_at_destination: Option<ErrorReport>,
}

impl LockRoom {
    /// Looks at both ends.
    ///
    /// # Errors
    /// [`Fault`] when one of them cannot be asked.
    pub(crate) async fn look(
        Clients { source, destination }: Clients<'_>,
        catalog: &SourceCatalog,
        existing: &Catalog,
    ) -> Result<LockRoom, Fault> {
        let at_source = read_lock_table(source).await.map_err(SourceError::Session)?;
        let at_destination = read_lock_table(destination).await.map_err(DestinationError::Session)?;
        let doing = format!("the copy of {}", counted(catalog.tables.len(), "table"));
        let reading = catalog.tables.iter().map(|table| (&table.definition, is_read_by_query(table)));
        let reading = lock_budget::of_reading(reading, 1);
        let publishing =
            lock_budget::of_publishing(catalog.tables.iter().map(
                |table| match existing.table(&table.definition.name()) {
                    Some(live) => TableToPublish::Compare(live),
                    None => TableToPublish::Move(&table.definition),
                },
            ));
        Ok(LockRoom {
            source: at_source,
            lacks_at_source: at_source.lacks_room("source", &doing, reading),
            lacks_at_destination: at_destination.lacks_room("destination", &doing, publishing),
        })
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// [`Fault`] with the numbers, and the setting to raise.
    pub(crate) fn require(self) -> Result<LockTable, Fault> {
        if let Some(report) = self.lacks_at_source {
            return Err(SourceError::Refused(report).into());
        }
        if let Some(report) = self.lacks_at_destination {
            return Err(DestinationError::Refused(report).into());
        }
        Ok(self.source)
    }
}

/// A small table is read by COPY of the table itself, which leaves its indexes alone.
fn is_read_by_query(SourceTable { definition, row_filter, .. }: &SourceTable) -> bool {
    definition.bytes > CTID_RANGE_BYTES || definition.kind == TableKind::Partitioned || row_filter.is_some()
}
