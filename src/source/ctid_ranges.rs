//! What a snapshot reads: each table in ranges of pages that readers take from one queue.
//!
//! Asked by `table_sync` on the session that locks the tables; the ranges' COPY statements are `apply_plan`'s. A large table is
//! split into ranges of pages (ctid), a small one is one range. The rows of a partitioned table are its partitions',
//! which are read one by one where our role may; otherwise through their root, which needs no privilege on them.
//!
//! The tables are locked since before the slot, so no page that the snapshot's rows lie on can go away: VACUUM may free
//! rows, but neither truncate nor rewrite the table.

use std::collections::HashMap;

use super::error::SourceError;
use crate::catalog::leaves::KnownLeaves;
use crate::catalog::schema::{TableDefinition, TableKind};
use crate::comparison::reconcile_sql::PageRange;
use crate::pg::QualifiedName;
use crate::session::{Row, SessionError, SqlClient};

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

impl CtidRange {
    /// All of a table, through its root.
    pub fn whole(table: &TableDefinition) -> CtidRange {
        CtidRange {
            relation: table.name(),
            whole_tree: table.kind == TableKind::Partitioned,
            pages: PageRange { first: 0, end: None },
            bytes: 0,
        }
    }
}

const PAGES: &str = include_str!("../../sql/table_pages.sql");

/// A table, and those of its partitions that are to be read.
#[derive(Clone, Copy, Debug)]
pub struct TableToRead<'a> {
    /// The table.
    pub table: &'a TableDefinition,
    /// Its partitions, where it has any.
    pub leaves: &'a KnownLeaves,
}

/// The ranges of each table, as large as it is now. Of its partitions only `leaves` are read: one that was attached since the snapshot has
/// rows that were not the table's then. Where the role must read through the root, nothing keeps them apart. One question for all tables.
///
/// # Errors
/// [`SourceError`].
pub async fn ctid_ranges(client: &SqlClient, tables: &[TableToRead<'_>]) -> Result<Vec<Vec<CtidRange>>, SourceError> {
    let roots: Vec<u32> = tables.iter().map(|read| read.table.id).collect();
    let (mut roots_of_leaves, mut leaves) = (Vec::new(), Vec::new());
    for TableToRead { table, leaves: known } in tables {
        for leaf in known.known.iter().chain(known.empty.keys()) {
            roots_of_leaves.push(table.id);
            leaves.push(*leaf);
        }
    }
    let rows = client.query("measuring tables", PAGES, &[&roots, &roots_of_leaves, &leaves]).await?;
    let mut of_roots: HashMap<u32, Vec<&Row>> = HashMap::new();
    for row in &rows {
        of_roots.entry(row.get(0)?).or_default().push(row);
    }
    tables.iter().map(|read| ranges(read.table, of_roots.get(&read.table.id).map_or(&[], Vec::as_slice))).collect()
}

/// The ranges of a table, by what was answered of it and of its partitions.
fn ranges(table: &TableDefinition, rows: &[&Row]) -> Result<Vec<CtidRange>, SourceError> {
    let mut whole = CtidRange::whole(table);
    // Without a privilege on the whole table its ctid cannot be read; without one on a partition, the partition.
    let mut are_readable = true;
    let mut ranges = Vec::new();
    for row in rows {
        are_readable &= row.get::<Option<bool>>(3)? == Some(true);
        let relation = QualifiedName::new(row.get::<&str>(1)?, row.get::<&str>(2)?);
        // Sizes are NULL for what was dropped meanwhile; it has no rows to read then, and reading it says so.
        let pages = u32::try_from(row.get::<Option<i64>>(4)?.unwrap_or(0));
        let pages = pages.map_err(|_| SessionError::answer("measuring tables", "more pages than a table can have"))?;
        let block_bytes = u64::try_from(row.get::<i64>(5)?).unwrap_or(8192);
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
