//! The net effect of a batch on a table: what each row is in the end, by operation.
//!
//! Made by [`super::coalesce`], written as statements by [`super::sets`]. Plain data.

/// A row of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetRow {
    /// Orders rows roughly as the key's index does.
    pub(crate) sort_key: u64,
    /// The row's first change: where the destination finds it.
    pub(crate) first: u32,
    /// The change that holds its last image; behind [`MERGED`], one of the merged tuples.
    pub(crate) image: u32,
}

/// What a set does to its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetEffect {
    /// Delete the rows.
    Delete,
    /// Set the columns with these indexes.
    Update(Vec<usize>),
    /// Insert the rows.
    Insert,
}

/// From here on images are merged tuples. A batch has fewer changes: it is bounded by `apply.batch_rows_max` and bytes.
pub(crate) const MERGED: u32 = 1 << 31;
