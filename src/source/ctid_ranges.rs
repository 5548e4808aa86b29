//! What a snapshot reads: each table in ranges of pages that readers take from one queue.
//!
//! Asked by `table_sync` on the session that locks the tables; the ranges' COPY statements are `apply_plan`'s. A large table is
//! split into ranges of pages (ctid), a small one is one range. The rows of a partitioned table are its partitions',
//! which are read one by one where our role may; otherwise through their root, which needs no privilege on them.
//!
//! The tables are locked since before the slot, so no page that the snapshot's rows lie on can go away: VACUUM may free
//! rows, but neither truncate nor rewrite the table.

use super::error::SourceError;
use crate::catalog::leaves::KnownLeaves;
use crate::catalog::schema::{TableDefinition, TableKind};
use crate::comparison::reconcile_sql::PageRange;
use crate::pg::QualifiedName;
use crate::session::{SessionError, SqlClient};
use crate::sql::partition_tree;

/// Pages of a range at most: 32 MB, a second or less of reading. What a lost connection costs is a range.
const CTID_RANGE_PAGES: u32 = 4096;
/// The same in bytes, with pages of the usual size.
pub const CTID_RANGE_BYTES: u64 = CTID_RANGE_PAGES as u64 * 8192;

/// What one reader copies at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CtidRange {
    /// The table, or one of its partitions.
    pub relation: QualifiedName,
    /// Rows of partitions belong to it.
    pub whole_tree: bool,
    /// Its pages.
    pub pages: PageRange,
    /// How much is to be read, in bytes on disk.
    pub bytes: u64,
}

const PAGES: &str = concat!(
    "
    SELECT n.nspname::text, c.relname::text,
           c.relkind = 'r' AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
               AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND (c.oid = $1 OR NOT c.relrowsecurity),
           pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint,
           pg_catalog.current_setting('block_size')::bigint
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid IN (SELECT t.relid FROM ",
    partition_tree!("$1"),
    " t WHERE t.isleaf AND t.relid = ANY ($2::pg_catalog.oid[]))
       OR (c.oid = $1 AND c.relkind = 'r')
    ORDER BY 1, 2"
);

/// A table's ranges, as large as it is now. Of its partitions only `leaves` are read: one that was attached since the snapshot has rows
/// that were not the table's then. Where the role must read through the root, nothing keeps them apart.
///
/// # Errors
/// [`SourceError`].
pub async fn ctid_ranges(
    client: &SqlClient,
    table: &TableDefinition,
    leaves: &KnownLeaves,
) -> Result<Vec<CtidRange>, SourceError> {
    let leaves: Vec<u32> = leaves.known.iter().chain(leaves.empty.keys()).copied().collect();
    let rows = client.query("measuring a table", PAGES, &[&table.id, &leaves]).await?;
    let mut whole = CtidRange {
        relation: table.name(),
        whole_tree: table.kind == TableKind::Partitioned,
        pages: PageRange { first: 0, end: None },
        bytes: 0,
    };
    // Without a privilege on the whole table its ctid cannot be read; without one on a partition, the partition.
    let mut are_readable = true;
    let mut ranges = Vec::new();
    for row in &rows {
        are_readable &= row.get::<Option<bool>>(2)? == Some(true);
        let relation = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
        // Sizes are NULL for what was dropped meanwhile; it has no rows to read then, and reading it says so.
        let pages = u32::try_from(row.get::<Option<i64>>(3)?.unwrap_or(0));
        let pages = pages.map_err(|_| SessionError::answer("measuring a table", "more pages than a table can have"))?;
        let block_bytes = u64::try_from(row.get::<i64>(4)?).unwrap_or(8192);
        whole.bytes += u64::from(pages).saturating_mul(block_bytes);
        ranges.extend(PageRange::split(pages, CTID_RANGE_PAGES).into_iter().map(|range| CtidRange {
            relation: relation.clone(),
            whole_tree: false,
            bytes: u64::from(range.end.unwrap_or(pages).saturating_sub(range.first)).saturating_mul(block_bytes),
            pages: range,
        }));
    }
    Ok(if are_readable { ranges } else { vec![whole] })
}
