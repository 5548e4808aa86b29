//! What the source has of its tables and replication does not carry, asked of both ends.
//!
//! For `check`, `init` and `cutover`, which show it; nothing is changed. One question at each end, whatever the number of tables.

use std::collections::BTreeSet;

use crate::catalog::not_carried::{Class, NotCarried, not_carried as compare};
use crate::destination::DestinationError;
use crate::error_policy::Fault;
use crate::pg::{Ident, QualifiedName};
use crate::session::{SqlClient, describe_not_carried};
use crate::source::SourceError;

/// What the destination lacks, or has otherwise. `publication` is headwater's own, if it is known.
///
/// # Errors
/// [`Fault`] when an end does not answer.
pub(crate) async fn not_carried(
    source: &SqlClient,
    here: &SqlClient,
    tables: &[QualifiedName],
    publication: Option<&Ident>,
) -> Result<Vec<NotCarried>, Fault> {
    let own: Vec<&str> = publication.map(Ident::as_str).into_iter().collect();
    let there = describe_not_carried(source, tables, &own).await.map_err(SourceError::Session)?;
    let here = describe_not_carried(here, tables, &[]).await.map_err(DestinationError::Session)?;
    // Every table has an owner.
    let owned = here.iter().filter(|thing| thing.class == Class::Owner);
    let existing: BTreeSet<&str> = owned.filter_map(|thing| thing.table.as_deref()).collect();
    Ok(compare(there, &here, |table| !existing.contains(table)))
}
