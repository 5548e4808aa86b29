//! Which partitions of a table have brought rows, and which were seen without any.
//!
//! TRUNCATE or DROP of a partition does not come through its root, and a partition that comes and goes between two looks at the catalog
//! is in none of them. But the stream names a partition before its first row (`transaction::assembler`). So what is remembered of a
//! table ([`super::shape::Shape`]) has each partition in one of three places, and none in two:
//!
//! ```text
//!             named, and it has rows                  gone, or changed: a copy
//!   unknown ────────────────────────────▶  known  ────────────────────────────▶
//!      │  ▲                                  ▲
//!      │  └── gone                           │ named by a transaction that committed behind X;
//!      └────▶ seen empty at X ───────────────┘ before X: its rows went without a word: a copy
//!      no block at X
//! ```
//!
//! Used where the stream describes a table ([`named`]) and where the catalog is compared ([`crate::catalog::fingerprint`]). Invariant: a
//! partition of which the destination has rows is known, since the transaction that stores the first of them stores this, too.

use std::collections::{BTreeMap, BTreeSet};

use super::schema::{Partition, TableKind};
use crate::pg::{Leaves, Lsn};

/// What is remembered of a table's partitions, by their OIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownLeaves {
    /// They may have brought rows.
    pub known: BTreeSet<u32>,
    /// They had no rows when the source's WAL was as far as this, and the stream has named none of them.
    pub empty: BTreeMap<u32, Lsn>,
}

impl KnownLeaves {
    /// Whether nothing is known of a partition.
    pub fn is_unknown(&self, leaf: u32) -> bool {
        !self.known.contains(&leaf) && !self.empty.contains_key(&leaf)
    }

    /// Whether no row of a partition has come that the stream has told of.
    pub fn is_empty(&self, leaf: u32) -> bool {
        self.empty.contains_key(&leaf) && !self.known.contains(&leaf)
    }
}

/// What became of partitions without rows when they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vacancy {
    /// They have no block.
    pub vacant: BTreeSet<u32>,
    /// Another session had them locked.
    pub locked: BTreeSet<u32>,
}

/// What the source says of partitions that the stream has named in a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// They have no block.
    pub vacant: BTreeSet<u32>,
    /// The transaction has created them, and nothing shows that no TRUNCATE was among their rows.
    pub unproven: BTreeSet<u32>,
    /// They were created as partitions, and the transaction ends with a TRUNCATE of the table, which takes their rows at both ends.
    pub truncated: BTreeSet<u32>,
}

/// The partitions that must be asked for rows where the stream has named some: all that are unknown, if one of them was attached.
pub fn to_measure(known: &KnownLeaves, named: &Leaves, now: &[Partition]) -> Vec<u32> {
    let unknown = || now.iter().filter(|leaf| known.is_unknown(leaf.id));
    let is_named = |leaf: &&Partition| named.iter().any(|named| named.0 == leaf.id);
    match unknown().any(|leaf| leaf.attached) {
        true => unknown().map(|leaf| leaf.id).collect(),
        false => unknown().filter(is_named).map(|leaf| leaf.id).collect(),
    }
}

/// What is known once the stream has named partitions in a transaction with this commit_lsn. `now` are those that the table has by now, as
/// the catalog says once it sees that transaction, and `measured` is what was asked of them.
///
/// # Errors
/// Why rows may be lost on the way, as a sentence without its full stop: the table must be copied.
pub fn named(
    known: &KnownLeaves,
    named: &Leaves,
    now: &[Partition],
    Measured { vacant, unproven, truncated }: &Measured,
    commit_lsn: Lsn,
) -> Result<KnownLeaves, String> {
    let has_rows = |leaf: &Partition| known.is_unknown(leaf.id) && !vacant.contains(&leaf.id);
    let may_have_brought = |leaf: &Partition| match leaf.kind {
        // It has no block itself.
        TableKind::Partitioned => now.iter().any(|leaf| leaf.kind != TableKind::Partitioned && has_rows(leaf)),
        TableKind::Ordinary | TableKind::Foreign | TableKind::View | TableKind::MaterializedView => has_rows(leaf),
    };
    let brought = now.iter().any(|leaf| leaf.attached && known.is_unknown(leaf.id) && may_have_brought(leaf));
    if brought || known.known.iter().any(|known| !now.iter().any(|now| now.id == *known)) {
        return Err("partitions with rows of their own were attached, or detached".to_owned());
    }
    let mut after = known.clone();
    for leaf in named.iter().map(|leaf| leaf.0) {
        // Also one whose first rows this transaction has brought before.
        if unproven.contains(&leaf) {
            return Err(format!(
                "partition {} may have been emptied by the transaction that created it",
                called(now, leaf)
            ));
        }
        if known.known.contains(&leaf) {
            continue;
        }
        let Some(now) = now.iter().find(|now| now.id == leaf) else {
            return Err("a partition was dropped or detached, and its rows with it".to_owned());
        };
        let was_emptied = match known.empty.get(&leaf) {
            Some(seen) => commit_lsn <= *seen,
            None => vacant.contains(&leaf) && !truncated.contains(&leaf),
        };
        if was_emptied {
            return Err(format!("partition {} was emptied, and the stream has told of its rows only", now.name));
        }
        after.empty.remove(&leaf);
        after.known.insert(leaf);
    }
    Ok(after)
}

fn called(now: &[Partition], leaf: u32) -> String {
    let named = now.iter().find(|now| now.id == leaf);
    named.map_or_else(|| format!("with the OID {leaf}"), |leaf| leaf.name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{QualifiedName, RelationId};

    fn leaf(id: u32, attached: bool) -> Partition {
        let name = QualifiedName::new("public", format!("t{id}"));
        Partition { id, name, kind: TableKind::Ordinary, persistence: 'p', attached }
    }

    fn leaves(ids: &[u32]) -> Leaves {
        let mut leaves = Leaves::default();
        ids.iter().for_each(|id| leaves.add(RelationId(*id)));
        leaves
    }

    fn remembered() -> KnownLeaves {
        KnownLeaves { known: BTreeSet::from([10]), empty: BTreeMap::from([(20, Lsn::new(500))]) }
    }

    /// What becomes of a name at this commit_lsn: `K`nown, or `C`opied.
    fn said(name: u32, now: &[Partition], vacant: &[u32], commit_lsn: u64) -> char {
        let measured = Measured { vacant: vacant.iter().copied().collect(), ..Measured::default() };
        let after = named(&remembered(), &leaves(&[name]), now, &measured, Lsn::new(commit_lsn));
        match after {
            Ok(after) => {
                assert!(after.known.contains(&name) && !after.empty.contains_key(&name));
                'K'
            }
            Err(_) => 'C',
        }
    }

    #[test]
    fn rows_of_a_partition_that_went_without_a_word_are_copied() {
        let now =
            |more: Option<Partition>| [leaf(10, false), leaf(20, true)].into_iter().chain(more).collect::<Vec<_>>();
        assert_eq!(said(10, &now(None), &[], 400), 'K', "it is known");
        assert_eq!(said(10, &[leaf(20, true)], &[], 400), 'C', "it was known, and is gone");
        assert_eq!(said(20, &now(None), &[], 501), 'K', "its rows came behind the moment at which it was empty");
        assert_eq!(said(20, &now(None), &[20], 500), 'C', "they came before, and are gone");
        assert_eq!(said(20, &[leaf(10, false)], &[], 501), 'C', "they came behind it, and it is gone");
        assert_eq!(said(30, &now(None), &[], 600), 'C', "nobody knows it, and it is gone");
        assert_eq!(said(30, &now(Some(leaf(30, false))), &[], 600), 'K', "created, and it has rows");
        assert_eq!(said(30, &now(Some(leaf(30, false))), &[30], 600), 'C', "created, filled and emptied");
        assert_eq!(said(30, &now(Some(leaf(30, true))), &[], 600), 'C', "it may have brought rows");
        assert_eq!(said(30, &now(Some(leaf(30, true))), &[30], 600), 'C', "filled and emptied");
        assert_eq!(said(10, &now(Some(leaf(30, true))), &[30], 400), 'K', "another one was attached without rows");
        assert_eq!(said(10, &now(Some(leaf(30, true))), &[], 400), 'C', "another one was attached with rows");
        let tree = |vacant: &[u32]| {
            let root = Partition { kind: TableKind::Partitioned, ..leaf(30, true) };
            said(10, &[leaf(10, false), leaf(20, true), root, leaf(31, false)], vacant, 400)
        };
        assert_eq!((tree(&[30, 31]), tree(&[30])), ('K', 'C'), "a table that was attached with partitions of its own");
    }

    #[test]
    fn a_partition_that_its_own_transaction_may_have_emptied_is_copied() {
        let now = [leaf(10, false), leaf(20, true), leaf(30, false), leaf(40, false)];
        let measured = Measured { unproven: BTreeSet::from([30]), ..Measured::default() };
        let said = |known: &KnownLeaves, name| named(known, &leaves(&[name]), &now, &measured, Lsn::new(600));
        assert!(said(&remembered(), 30).is_err() && said(&remembered(), 40).is_ok());
        let mut known = remembered();
        known.known.insert(30);
        assert!(said(&known, 30).is_err(), "rows of it came before in this transaction");
        assert!(said(&known, 10).is_ok(), "another one was named");
    }

    #[test]
    fn a_partition_that_a_truncate_of_its_table_has_emptied_is_known() {
        let now = [leaf(10, false), leaf(20, false), leaf(30, false), leaf(40, true)];
        let measured = Measured {
            vacant: BTreeSet::from([20, 30, 40]),
            truncated: BTreeSet::from([20, 30]),
            ..Measured::default()
        };
        let said = |name, commit_lsn| named(&remembered(), &leaves(&[name]), &now, &measured, Lsn::new(commit_lsn));
        assert!(said(30, 600).is_ok_and(|after| after.known.contains(&30)));
        assert!(said(40, 600).is_err(), "it was attached");
        assert!(said(20, 500).is_err(), "it was seen empty behind its rows, and others may have come in between");
    }

    #[test]
    fn only_what_is_unknown_is_asked_for() {
        let all = [leaf(10, false), leaf(20, true), leaf(30, false), leaf(40, false)];
        assert_eq!(to_measure(&remembered(), &leaves(&[10, 20]), &all), [0; 0]);
        assert_eq!(to_measure(&remembered(), &leaves(&[40]), &all), [40]);
        let attached = [leaf(10, false), leaf(30, true), leaf(40, false)];
        assert_eq!(to_measure(&remembered(), &leaves(&[10]), &attached), [30, 40]);
    }
}
