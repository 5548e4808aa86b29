//! What the stream has told of a TRUNCATE, and whether a partition's rows behind it can have gone without a word.
//!
//! A TRUNCATE of a table comes through the stream, and leaves the mark of its transaction on every partition's row of `pg_class`. A
//! TRUNCATE of a partition alone does not come. In the transaction that has truncated the table before, it keeps the new file, so that
//! no catalog shows it either:
//!
//! ```text
//!   BEGIN; TRUNCATE t; INSERT INTO t …; TRUNCATE t_1; COMMIT     is in the catalog what
//!   BEGIN; TRUNCATE t; INSERT INTO t …; COMMIT                   is
//! ```
//!
//! What tells them apart (tried on 14.23, 15.18, 16.14, 17.10 and 18.4): the source names a partition before its first row behind the
//! TRUNCATE of the table, and again behind a TRUNCATE of the partition in place, since that builds its indexes again. So
//!
//! | the partition behind the TRUNCATE | its rows |
//! |---|---|
//! | was not named | none came, and none are lost |
//! | was named once, has had an index all the time, and its first page has a row of that transaction | came behind any TRUNCATE of it |
//! | anything else | may have gone |
//!
//! A partition without an index that was given another file and named before the TRUNCATE of the table is not named again behind it. A
//! row that the publication's filter holds back names no partition, so one of that transaction proves nothing there. In the same way
//! a partition is judged by the transaction that has created it (`session::partition_rows`), with or without a TRUNCATE of the table.
//!
//! A TRUNCATE explains another file, so it would also explain that of SET UNLOGGED and SET LOGGED, between which no row comes. Where there
//! is a TOAST table that is another one behind them. Without it the rows tell: SET LOGGED writes them again with the number of its own
//! command, and the row of `pg_class` with the same or a later one, while a row that came behind the TRUNCATE has a later one than that
//! ([`FirstPage`], tried on 15.18 and 18.4).
//!
//! In comes each name from `transaction::assembler`; `catalog::fingerprint` asks. A transaction in progress may roll a TRUNCATE back to
//! a savepoint, so nothing that was named is ever forgotten at the next one: that only makes a copy that was not needed.

use std::collections::{BTreeMap, BTreeSet};

/// The TRUNCATEs of one table in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truncation {
    /// The transaction, or the subtransactions of it, that truncated the table.
    transactions: BTreeSet<u32>,
    /// The partitions that were named behind the first one: whether more than once.
    named: BTreeMap<u32, bool>,
    /// Those that were named before it.
    named_before: BTreeSet<u32>,
}

/// What a TRUNCATE that the stream has told of says of a partition's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// None came behind it.
    Empty,
    /// None came behind it of a partition that has an index all the time. One without an index may have had another file before in the
    /// transaction: then the TRUNCATE of the table changes nothing that would make the source name it again.
    EmptyIfIndexed,
    /// Some came, without anything between them: they are there if one is.
    Once,
    /// Some came, and then some more behind something that may have been a TRUNCATE of the partition.
    Again,
}

impl Truncation {
    /// Whether the table was truncated at all.
    pub fn is_any(&self) -> bool {
        !self.transactions.is_empty()
    }

    /// This transaction, or subtransaction, has truncated the table.
    pub fn add(&mut self, transaction: u32) {
        if !self.is_any() {
            self.named_before = std::mem::take(&mut self.named).into_keys().collect();
        }
        self.transactions.insert(transaction);
    }

    /// The source has named a partition.
    pub fn name(&mut self, leaf: u32) {
        self.named.entry(leaf).and_modify(|again| *again = true).or_insert(false);
    }

    /// What it says of a partition, or of the table, whose row of `pg_class` this transaction has written; `None`: it was another one.
    pub fn says(&self, member: u32, changed_by: u32) -> Option<Said> {
        self.transactions.contains(&changed_by).then(|| match self.named.get(&member) {
            None if self.named_before.contains(&member) => Said::EmptyIfIndexed,
            None => Said::Empty,
            Some(false) => Said::Once,
            Some(true) => Said::Again,
        })
    }
}

/// What the first page of a file has of the transaction that has written the row of `pg_class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstPage {
    /// No row.
    None,
    /// Rows that were written by statements behind the one that has written that row.
    Behind,
    /// Others, or one cannot tell.
    Before,
}

/// The TRUNCATEs of a table that the stream has told of, and which partitions were seen to have a row of such a transaction.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The last ones.
    pub truncations: Vec<Truncation>,
    /// What the first pages of the table and its partitions have of the transaction that has written their row of `pg_class`.
    pub pages: BTreeMap<u32, FirstPage>,
    /// The publication sends some of the rows only.
    pub is_filtered: bool,
}

impl Told {
    /// What the TRUNCATE by this transaction says of a member; `None`: the stream has brought none.
    pub fn says(&self, member: u32, changed_by: u32) -> Option<Said> {
        self.truncations.iter().find_map(|truncation| truncation.says(member, changed_by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_is_named_again_may_have_been_emptied_in_between() {
        let mut truncation = Truncation::default();
        truncation.name(4);
        truncation.name(2);
        truncation.add(700);
        truncation.name(1);
        truncation.name(2);
        truncation.name(2);
        truncation.add(702);
        let told = Told { truncations: vec![Truncation::default(), truncation], ..Told::default() };
        let said = |member| told.says(member, 702);
        assert_eq!([1, 2, 3].map(said), [Some(Said::Once), Some(Said::Again), Some(Said::Empty)]);
        assert_eq!(said(4), Some(Said::EmptyIfIndexed), "named before the first TRUNCATE");
        assert_eq!((told.says(3, 700), told.says(3, 701)), (Some(Said::Empty), None));
    }
}
