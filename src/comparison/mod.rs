//! Comparing two states of a table: what is read of each, and what the answers mean.
//!
//! Asked by `verification`, which has both servers compute hashes under snapshots of one state; pure. The SQL is
//! in [`crate::comparison::sql`].
//!
//! ```text
//! pass 1  sums       count(*) and sum(hash) of every range of pages, both sides      equal sums: equal tables
//! pass 2  buckets    the same by bucket of the key's hash, only of large tables      equal buckets are done
//! pass 3  rows       the key's and the row's hash of every row that is left          what does not cancel out differs: [`Net`]
//! pass 4  keys       the keys behind the hashes that differ                          matched by key, here
//! ```
//!
//! A row's hash is 64 bits over the images of all its columns; a set's is the sum of its rows' hashes, whatever their
//! order, with duplicates counted. So the two sides need not agree on pages, orders or collations, and ranges are
//! ranges of *hashes of keys*: both sides' rows of one key are in one bucket, so that no bound can part them. Without a key
//! the row itself takes its place.
//!
//! Bounds: [`BUCKETS`] sums a table, and [`Bounds`]. Differences beyond them are reported as "at least".

pub mod images;
pub mod reconcile_sql;
pub mod sql;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::catalog::schema::TableDefinition;
use crate::pg::{Ident, QualifiedName, length_u64};

/// Buckets of a table's rows: enough to leave few rows in each, few enough to be grouped in memory.
pub const BUCKETS: u64 = 1 << 14;

/// How much of one table is looked at row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Rows whose hashes are read one by one: a table with no more of them needs no buckets.
    pub hashes_max: u64,
    /// Keys listed: more differences than these are a matter for a new snapshot.
    pub keys_max: usize,
    /// Keys repaired at one fence.
    pub keys_at_once: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        // 100 MB of ours when no row has its counterpart yet; 20 MB of keys; some seconds' work while the stream is held.
        Bounds { hashes_max: 2_000_000, keys_max: 200_000, keys_at_once: 10_000 }
    }
}

/// A set of rows: how many, and the sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Rows.
    pub rows: u64,
    /// The sum of their hashes: 2⁶³ rows of 2⁶³ each fit.
    pub hashes: i128,
}

impl Sum {
    /// Both sets together.
    pub fn add(&mut self, other: Sum) {
        self.rows += other.rows;
        self.hashes += other.hashes;
    }

    /// From a count and a numeric, as text.
    pub fn parse(rows: &str, hashes: &str) -> Option<Sum> {
        Some(Sum { rows: rows.parse().ok()?, hashes: hashes.parse().ok()? })
    }
}

/// A table's ranges of pages, of at most `pages_max` each. The last has no end, so that pages beyond `pages`, which may
/// have been added since they were counted, are read too.
pub fn page_ranges(pages: u64, pages_max: u64) -> Vec<Range<Option<u64>>> {
    let pages_max = pages_max.max(1);
    let mut ranges = Vec::new();
    let mut begin = 0;
    while begin + pages_max < pages {
        ranges.push(Some(begin)..Some(begin + pages_max));
        begin += pages_max;
    }
    ranges.push((begin > 0).then_some(begin)..None);
    ranges
}

/// The buckets whose sums differ, with the rows in them on the fuller side.
pub fn differing_buckets(source: &BTreeMap<u64, Sum>, destination: &BTreeMap<u64, Sum>) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let both: std::collections::BTreeSet<u64> = source.keys().chain(destination.keys()).copied().collect();
    for bucket in both {
        let there = source.get(&bucket).copied().unwrap_or_default();
        let here = destination.get(&bucket).copied().unwrap_or_default();
        if there != here {
            found.push((bucket, there.rows.max(here.rows)));
        }
    }
    found
}

/// The buckets of a table that are read row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedBuckets {
    /// Their numbers.
    pub numbers: Vec<u64>,
    /// Others differ, too.
    pub more: bool,
}

/// As many of the buckets as hold at most so many rows.
pub fn listed_buckets(differing: &[(u64, u64)], hashes_max: u64) -> ListedBuckets {
    let mut listed = ListedBuckets::default();
    let mut total = 0;
    for (bucket, rows) in differing {
        total += rows;
        if total > hashes_max && !listed.numbers.is_empty() {
            listed.more = true;
            break;
        }
        listed.numbers.push(*bucket);
    }
    listed
}

/// The rows that one side has and the other has not, by the hashes of their keys; gathered while answers come in.
#[derive(Debug, Default)]
pub struct Net {
    /// Rows, and the sum of their hashes: the source's less the destination's. Kept while they are not both zero.
    open: HashMap<i64, (i32, i64)>,
}

impl Net {
    /// The source has a row with this key and this content.
    pub fn at_source(&mut self, key: i64, row: i64) {
        self.add(key, 1, row);
    }

    /// The destination has a row with this key and this content.
    pub fn at_destination(&mut self, key: i64, row: i64) {
        self.add(key, -1, row.wrapping_neg());
    }

    fn add(&mut self, key: i64, rows: i32, hash: i64) {
        match self.open.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert((rows, hash));
            }
            Entry::Occupied(mut entry) => {
                let (open, sum) = entry.get_mut();
                *open += rows;
                *sum = sum.wrapping_add(hash);
                if (*open, *sum) == (0, 0) {
                    entry.remove();
                }
            }
        }
    }

    /// The hashes of the keys whose rows differ, `keys_max` at most, and whether there are more.
    pub fn differing(&self, keys_max: usize) -> (Vec<i64>, bool) {
        let mut keys: Vec<i64> = self.open.keys().copied().collect();
        keys.sort_unstable();
        let more = keys.len() > keys_max;
        keys.truncate(keys_max);
        (keys, more)
    }

    /// What it means for a table without a key, whose rows are their own keys.
    pub fn without_key(&self) -> Differences {
        let mut found = Differences::default();
        for (rows, _) in self.open.values() {
            if *rows > 0 {
                found.unkeyed_missing += u64::from(rows.unsigned_abs());
            } else {
                found.unkeyed_extra += u64::from(rows.unsigned_abs());
            }
        }
        found
    }
}

/// A key's values as text, in the order of its columns.
pub type Key = Vec<String>;

/// A row whose key's hash is among those that differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashedRow {
    /// Its key.
    pub key: Key,
    /// Its hash.
    pub hash: i64,
}

/// How two states of a table differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Keys of rows that only the source has.
    pub missing: Vec<Key>,
    /// Keys of rows that only the destination has.
    pub extra: Vec<Key>,
    /// Keys of rows that both have, with other values.
    pub differing: Vec<Key>,
    /// Rows without a key that only the source has.
    pub unkeyed_missing: u64,
    /// Rows without a key that only the destination has.
    pub unkeyed_extra: u64,
    /// There are more than are listed.
    pub more: bool,
}

impl Differences {
    /// How many rows differ, as far as they are listed.
    pub fn rows(&self) -> u64 {
        let keyed = self.missing.len() + self.extra.len() + self.differing.len();
        length_u64(keyed) + self.unkeyed_missing + self.unkeyed_extra
    }

    /// Whether the states are equal.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0 && !self.more
    }

    /// Every key of it, each once.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.missing.iter().chain(&self.extra).chain(&self.differing)
    }
}

/// Matches rows by their keys. The key is the destination's: at the source several rows may share one, and count one by one.
pub fn differences(source: Vec<HashedRow>, destination: Vec<HashedRow>) -> Differences {
    let mut sides: BTreeMap<Key, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
    for row in source {
        sides.entry(row.key).or_default().0.push(row.hash);
    }
    for row in destination {
        sides.entry(row.key).or_default().1.push(row.hash);
    }
    let mut found = Differences::default();
    for (key, (mut there, mut here)) in sides {
        there.sort_unstable();
        here.sort_unstable();
        if there == here {
            continue;
        }
        match (there.is_empty(), here.is_empty()) {
            (false, true) => found.missing.push(key),
            (true, _) => found.extra.push(key),
            (false, false) => found.differing.push(key),
        }
    }
    found
}

/// A column of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its name.
    pub name: Ident,
    /// The operator that finds equal values.
    pub equality: QualifiedName,
}

/// The key by which a table's rows are named: a unique index of `table` over NOT NULL columns among `columns`, the
/// primary key first; empty when there is none.
pub fn comparison_key(table: &TableDefinition, columns: &[Ident]) -> Vec<KeyColumn> {
    let usable =
        |name: &&Ident| columns.contains(name) && table.column(name).is_some_and(|column| column.is_never_null());
    let index = table
        .indexes
        .iter()
        .find(|index| index.unique_columns().is_some_and(|key| !key.is_empty() && key.iter().all(usable)));
    let parts = index.into_iter().flat_map(|index| &index.parts).filter(|part| !part.included);
    parts
        .filter_map(|part| {
            let equality = part.equality.clone().unwrap_or_else(|| QualifiedName::new("pg_catalog", "="));
            Some(KeyColumn { name: part.column.clone()?, equality })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, hash: i64) -> HashedRow {
        HashedRow { key: vec![key.to_owned()], hash }
    }

    #[test]
    fn ranges_of_pages_leave_no_page_out() {
        assert_eq!(page_ranges(0, 10), [None..None]);
        assert_eq!(page_ranges(10, 10), [None..None]);
        assert_eq!(page_ranges(25, 10), [Some(0)..Some(10), Some(10)..Some(20), Some(20)..None]);
        assert_eq!(page_ranges(3, 0), [Some(0)..Some(1), Some(1)..Some(2), Some(2)..None]);
    }

    #[test]
    fn rows_are_missing_extra_or_differing_by_their_keys() {
        let source = vec![row("1", 10), row("2", 20), row("3", 30)];
        let destination = vec![row("1", 10), row("3", 31), row("4", 40)];
        let found = differences(source, destination);
        assert_eq!(found.missing, [["2"]]);
        assert_eq!(found.extra, [["4"]]);
        assert_eq!(found.differing, [["3"]]);
        assert_eq!(found.rows(), 3);
        assert!(differences(vec![row("1", 1)], vec![row("1", 1)]).is_empty());
    }

    #[test]
    fn rows_of_the_source_that_share_a_key_of_the_destination_differ() {
        for source in [[10, 10], [10, 11], [11, 10]] {
            let source = source.map(|hash| row("1", hash)).to_vec();
            assert_eq!(differences(source.clone(), vec![row("1", 10)]).differing, [["1"]]);
            assert_eq!(differences(source.clone(), Vec::new()).missing, [["1"]]);
            assert!(differences(source.clone(), source).is_empty());
        }
    }

    #[test]
    fn rows_without_a_key_are_counted_with_their_duplicates() {
        let mut net = Net::default();
        [1, 1, 1, 2].iter().for_each(|row| net.at_source(*row, *row));
        [1, 3, 3].iter().for_each(|row| net.at_destination(*row, *row));
        let found = net.without_key();
        assert_eq!((found.unkeyed_missing, found.unkeyed_extra), (3, 2));
        assert!(found.keys().next().is_none());
    }

    #[test]
    fn what_both_sides_have_cancels_out_in_whatever_order_it_comes() {
        let mut net = Net::default();
        for key in 0..1000 {
            net.at_source(key, key * 7);
        }
        for key in (0..1000).rev() {
            net.at_destination(key, if key == 17 { 5 } else { key * 7 });
        }
        net.at_source(-5, 0);
        net.at_destination(-6, 0);
        assert_eq!(net.differing(3), (vec![-6, -5, 17], false), "a hash of zero is a row, too");
        assert_eq!(net.differing(2), (vec![-6, -5], true));
    }

    #[test]
    fn two_equal_rows_do_not_cancel_each_other_out() {
        let mut twice = Sum { rows: 2, hashes: 2 * 77 };
        let other = Sum { rows: 2, hashes: 2 * 78 };
        assert_ne!(twice, other, "as they would with XOR");
        twice.add(Sum::parse("1", "-77").unwrap());
        assert_eq!(twice, Sum { rows: 3, hashes: 77 });
        assert_eq!(Sum::parse("x", "1"), None);
    }

    #[test]
    fn buckets_that_differ_on_either_side_are_found_and_listed_within_bounds() {
        let sum = |rows, hashes| Sum { rows, hashes };
        let source = BTreeMap::from([(1, sum(2, 5)), (2, sum(1, 9)), (3, sum(4, 4))]);
        let destination = BTreeMap::from([(1, sum(2, 5)), (3, sum(5, 4)), (9, sum(1, 1))]);
        let differing = differing_buckets(&source, &destination);
        assert_eq!(differing, [(2, 1), (3, 5), (9, 1)]);
        assert_eq!(listed_buckets(&differing, 7), ListedBuckets { numbers: vec![2, 3, 9], more: false });
        assert_eq!(listed_buckets(&differing, 6), ListedBuckets { numbers: vec![2, 3], more: true });
        assert_eq!(
            listed_buckets(&[(1, 14)], 7),
            ListedBuckets { numbers: vec![1], more: false },
            "one is always listed"
        );
    }
}
