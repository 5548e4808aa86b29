//! A table that stands under a followed table's name and is another one.
//!
//! Found by [`super::other_tables`], told by `error`. Plain data.

use crate::pg::QualifiedName;

/// What became of the table that headwater has filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    /// It was dropped.
    Dropped,
    /// It has this name now.
    Called(QualifiedName),
    /// Nobody has looked yet.
    Unknown,
}

/// A table that is not the one that headwater has filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherTable {
    /// Its name.
    pub table: QualifiedName,
    /// The table that had the name before.
    pub filled: Filled,
}
