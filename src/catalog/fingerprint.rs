//! The fingerprint of a source table: what shows whether its rows are still those that the stream has reported.
//!
//! pgoutput reports rows, not rewrites, leaves, persistence or types. So headwater remembers what the catalog says of a table (one row
//! of sql/fingerprints.sql, read by `session`) at the destination, and compares it at every start and on the monitor's
//! clock. Here is the comparison, and nothing else: in come two fingerprints, out comes a [`RowVerdict`].
//!
//! The catalog is read at a later moment than the stream's position. A difference may therefore be one that the stream has not
//! come to; a copy that is made from now on has it, so [`RowVerdict::Differ`] holds at any time. [`RowVerdict::Doubt`] holds only once the
//! stream has passed the moment at which the catalog was read: until then a TRUNCATE that explains it may be under way.
//!
//! What the catalogs show of each statement (tried on 15.18): a rewrite of the table gives it a new `relfilenode`; one that
//! may change values, `ALTER COLUMN … TYPE`, writes the column's `pg_attribute` row again in the same transaction. VACUUM FULL, CLUSTER
//! and TRUNCATE keep the TOAST table's OID and give it a new file; every rewrite by ALTER TABLE makes another TOAST table.
//! VACUUM, also with FREEZE, leaves the xmin of catalog rows as it is.
//!
//! Every rewrite also writes again the rows of columns that had a value for older rows in the catalog (`atthasmissing`).
//!
//! A change of a unique index, a constraint or the identity of a partition moves no row, and the stream reports every row since.
//! But the destination may refuse what the source let through meanwhile, or another row may have its key. So what the stream has passed
//! is kept apart from what the catalog says (`session::fingerprints`), and [`Fingerprint::explains`] a refused change by what was not
//! there all the time. Then the table is copied, and no row of the destination is ever reported to be in the way.
//!
//! | new file | TOAST table | columns' rows | so it was |
//! |---|---|---|---|
//! | no | same | any | nothing that touches values |
//! | yes | same | any | VACUUM FULL, CLUSTER, or TRUNCATE, which the stream reports unless it was a leaf's |
//! | yes | another, or none | a known column's is new | ALTER … TYPE: the values may be others |
//! | yes | another, or none | one that is not known | ADD COLUMN with a value for each row, or SET UNLOGGED and back |
//! | yes | another, or none | same | undecided: SET UNLOGGED and back, pg_repack; without TOAST also VACUUM FULL |

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::leaves::{KnownLeaves, Vacancy};
use super::truncation::{FirstPage, Said, Told};
use crate::pg::{Ident, Lsn, QualifiedName, RelationId, TypeId};

/// CATALOG_VERSION_NO of 15. Up to 14 a session does not send the rows of a table that it has met before the table was attached (tried on
/// 14.23: `rel_sync_cache_relation_cb` in pgoutput.c keeps what it was published as), so that only a copy has them.
const SENDS_ATTACHED: i64 = 202_209_061;

/// A member of a table's tree: the table itself, and every partition of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its OID.
    pub id: u32,
    /// Its schema.
    pub schema: Ident,
    /// Its name.
    pub name: Ident,
    /// `relkind`
    pub kind: char,
    /// `relpersistence`
    pub persistence: char,
    /// `relfilenode`: which file holds its rows; 0 where it has none.
    pub file: u32,
    /// `reltoastrelid`; 0 without one.
    pub toast: u32,
    /// The transaction that has changed its row of `pg_class` last.
    pub changed_by: u32,
    /// `relreplident`
    pub replica_identity: char,
    /// It was a table before it became a partition.
    pub attached: bool,
    /// The transaction that made it a partition; 0 for the table itself.
    pub attached_by: u32,
}

impl Member {
    /// Its name.
    pub fn name(&self) -> QualifiedName {
        QualifiedName { schema: self.schema.clone(), name: self.name.clone() }
    }

    /// Why its rows never come through the stream; `None`: they do.
    fn unsent(&self) -> Option<String> {
        match (self.kind, self.persistence) {
            ('f', _) => Some(format!("partition {} is a foreign table, whose rows do not come", self.name())),
            (_, 'p') => None,
            (_, _) => Some(format!("{} is unlogged, so its rows do not come", self.name())),
        }
    }
}

/// A column, by number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FingerprintColumn {
    /// `attnum`
    pub number: i16,
    /// The name.
    pub name: Ident,
    /// The type.
    pub type_id: TypeId,
    /// `atttypmod`
    pub type_modifier: i32,
    /// `attcollation`; 0 for none.
    pub collation: u32,
    /// NOT NULL
    pub not_null: bool,
    /// `attidentity`; empty for none.
    pub identity: String,
    /// `attgenerated`; empty for none.
    pub generated: String,
    /// A hash of the expression of a generated column.
    pub expression: Option<i64>,
    /// Rows that are older than the column have its value in the catalog, until the table is rewritten.
    pub has_missing: bool,
    /// The transaction that has written its row of `pg_attribute`.
    pub written_by: u32,
}

/// A unique index of the table, or of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct UniqueKey {
    /// Its OID: an index that is dropped and created again has another one.
    pub id: u32,
    /// The OID of the table or partition.
    pub table: u32,
    /// Its name.
    pub name: Ident,
    /// `indkey`: its columns by number, 0 for an expression.
    pub columns: String,
    /// PRIMARY KEY
    pub primary: bool,
    /// Chosen by REPLICA IDENTITY USING INDEX.
    pub replica_identity: bool,
    /// Not DEFERRABLE.
    pub immediate: bool,
    /// The transaction that has written its row of `pg_index`: a change of the identity writes it.
    pub written_by: u32,
}

/// A CHECK, foreign key or exclusion constraint of the table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TableConstraint {
    /// Its OID: one that is dropped and added again has another one.
    pub id: u32,
    /// Its name.
    pub name: Ident,
}

/// A label of an enum.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Label {
    /// Its OID, which it keeps when it is renamed.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// An attribute of a composite type.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Attribute {
    /// `attnum`
    pub number: i16,
    /// The name.
    pub name: Ident,
    /// The type.
    pub type_id: TypeId,
    /// `atttypmod`
    pub type_modifier: i32,
}

/// A type that is not built in, and that the table's columns are made of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct UsedType {
    /// Its OID.
    pub id: TypeId,
    /// Its schema.
    pub schema: Ident,
    /// Its name.
    pub name: Ident,
    /// `typtype`
    pub kind: char,
    /// What a domain is over; 0 for others.
    pub base: TypeId,
    /// The modifier that it applies.
    pub base_modifier: i32,
    /// An enum's labels, in order.
    pub labels: Vec<Label>,
    /// A composite type's attributes.
    pub attributes: Vec<Attribute>,
}

/// The server that the catalog is of, as it is until it is restored or upgraded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServerCatalog {
    /// The cluster.
    pub system_identifier: String,
    /// The layout of its catalogs: another one after `pg_upgrade`.
    pub catalog_version: i64,
}

/// What the catalog says of a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Fingerprint {
    /// Whose catalog it is.
    pub server: ServerCatalog,
    /// The table and its partitions, by OID.
    pub members: Vec<Member>,
    /// Its columns, by number.
    pub columns: Vec<FingerprintColumn>,
    /// Its unique indexes and those of its partitions, by OID.
    pub keys: Vec<UniqueKey>,
    /// Its CHECK, foreign key and exclusion constraints, by OID.
    pub constraints: Vec<TableConstraint>,
    /// The types that its columns are made of, by OID.
    pub types: Vec<UsedType>,
    /// The entry that names it in the publication; `None` where the publication names no tables.
    pub published: Option<u32>,
    /// The publication itself; `None` where it was remembered by an earlier version, or is gone.
    #[serde(default)]
    pub publication: Option<PublicationRow>,
}

/// A publication's row of `pg_publication`, without its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct PublicationRow {
    /// The transaction that has written it: ALTER PUBLICATION … SET, OWNER TO, RENAME TO.
    pub written_by: u32,
    /// Its OID.
    pub id: u32,
    /// Its owner's.
    pub owner: u32,
}

/// A change of the stream that the destination cannot take as it is: the source has let it through, so one of its rules was
/// another one at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowRefusal {
    /// Two rows are alike; the OIDs of the source's indexes that forbid it now.
    Alike(Vec<u32>),
    /// A constraint by its name, which both ends have now.
    Constraint(Ident),
    /// NULL in a column that is NOT NULL now.
    Null(Ident),
    /// The row to be updated is not there under the key of the table's identity.
    Missing,
}

/// What a comparison of two fingerprints says of the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowVerdict {
    /// The stream reports every row; other changes are followed when it describes the table.
    Same,
    /// Rows may differ from those that the stream has reported: a copy is needed. Why, as a sentence without its full stop.
    Differ(String),
    /// The catalog cannot tell, once the stream has passed the moment at which it was read.
    Doubt(String),
}

impl Fingerprint {
    /// The member that is the table itself.
    pub fn root(&self, table: RelationId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == table.0)
    }

    /// The table's name.
    pub fn name(&self, table: RelationId) -> Option<QualifiedName> {
        self.root(table).map(Member::name)
    }

    /// The OIDs of what the table is made of: its members, and the types of its columns.
    pub fn objects(&self) -> impl Iterator<Item = u32> + '_ {
        self.members.iter().map(|member| member.id).chain(self.types.iter().map(|used| used.id.0))
    }

    /// The partitions that are to be asked for rows before two fingerprints are compared: it decides whether they matter.
    pub fn to_measure(&self, now: &Fingerprint, table: RelationId, known: &KnownLeaves) -> Vec<u32> {
        if self.server != now.server {
            return Vec::new();
        }
        let new = now.leaves(table).filter(|leaf| self.before(leaf, known).is_none());
        new.map(|leaf| leaf.id).filter(|id| !known.known.contains(id)).collect()
    }

    /// Whether the other one says the same of the table, and of each partition that both have.
    pub fn differs_in_partitions_only(&self, other: &Fingerprint) -> bool {
        let of_both = |of: &Fingerprint, with: &Fingerprint| {
            let is_in_both = |id: u32| [of, with].iter().all(|both| both.members.iter().any(|member| member.id == id));
            let mut of = of.clone();
            of.members.retain(|member| is_in_both(member.id));
            of.keys.retain(|key| is_in_both(key.table));
            of
        };
        of_both(self, other) == of_both(other, self)
    }

    /// What is known of the partitions once a comparison has said that this fingerprint is [`RowVerdict::Same`] as the one of `before`.
    pub fn known_leaves(
        &self,
        table: RelationId,
        before: Option<&Fingerprint>,
        known: &KnownLeaves,
        vacancy: &Vacancy,
        read_at: Lsn,
    ) -> KnownLeaves {
        let Some(before) = before.filter(|before| before.server == self.server) else {
            return KnownLeaves { known: self.leaves(table).map(|leaf| leaf.id).collect(), empty: BTreeMap::new() };
        };
        let mut after = KnownLeaves { known: known.known.clone(), empty: BTreeMap::new() };
        for leaf in self.leaves(table).filter(|leaf| !known.known.contains(&leaf.id)) {
            let is_old = before.before(leaf, known).is_some();
            match known.empty.get(&leaf.id).filter(|_| is_old) {
                Some(seen) => drop(after.empty.insert(leaf.id, *seen)),
                None if !is_old && vacancy.vacant.contains(&leaf.id) => drop(after.empty.insert(leaf.id, read_at)),
                // Whether its rows are those that the stream brings is asked once that has named it.
                None if leaf.kind != 'p' && !leaf.attached => {}
                None if !is_old && vacancy.locked.contains(&leaf.id) => {}
                None => drop(after.known.insert(leaf.id)),
            }
        }
        after
    }

    fn leaves(&self, table: RelationId) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.id != table.0)
    }

    /// What a member was when it was seen last. One that was empty then and is another one now counts as new.
    fn before(&self, now: &Member, known: &KnownLeaves) -> Option<&Member> {
        let before = self.members.iter().find(|before| before.id == now.id)?;
        let is_another = (before.attached_by, before.file) != (now.attached_by, now.file);
        (!(is_another && now.kind != 'p' && known.is_empty(now.id))).then_some(before)
    }

    /// The partitions whose rows may have gone behind a TRUNCATE that the stream has told of, unless their first page says
    /// otherwise: to be asked for it before two fingerprints are compared. So is what may have been unlogged behind it.
    pub fn to_find_rows_in<'a>(&self, now: &'a Fingerprint, table: RelationId, told: &Told) -> Vec<&'a Member> {
        if self.server != now.server {
            return Vec::new();
        }
        let is_asked = |member: &&Member| {
            let before = self.members.iter().find(|before| before.id == member.id);
            if before.map_or(if member.file == 0 { 0 } else { member.id }, |before| before.file) == member.file {
                return false;
            }
            match told.says(member.id, member.changed_by) {
                None | Some(Said::Again) => false,
                Some(Said::Empty | Said::EmptyIfIndexed) => !Fingerprint::keeps_toast(before, member),
                Some(Said::Once) => !told.is_filtered && member.id != table.0 && self.has_index_since(now, member.id),
            }
        };
        now.members.iter().filter(is_asked).collect()
    }

    /// ALTER TABLE never keeps the TOAST table when it rewrites one, as SET UNLOGGED and SET LOGGED do.
    fn keeps_toast(before: Option<&Member>, now: &Member) -> bool {
        now.toast != 0 && before.is_some_and(|before| before.toast == now.toast)
    }

    /// Whether a member has had one and the same index all the time.
    fn has_index_since(&self, now: &Fingerprint, member: u32) -> bool {
        let is_old = |key: &UniqueKey| self.keys.iter().any(|before| before.id == key.id);
        now.keys.iter().filter(|key| key.table == member).any(is_old)
    }

    /// Whether the stream has told of a TRUNCATE that explains a member's new file, and brought all that came behind it.
    fn is_told(&self, whole: &Fingerprint, now: &Member, told: &Told) -> bool {
        let before = self.members.iter().find(|before| before.id == now.id);
        let keeps_toast = Fingerprint::keeps_toast(before, now);
        let page = told.pages.get(&now.id);
        let said = match told.says(now.id, now.changed_by) {
            Some(Said::EmptyIfIndexed) if self.has_index_since(whole, now.id) => Some(Said::Empty),
            said => said,
        };
        match (said, page) {
            (Some(Said::EmptyIfIndexed), _) => false,
            (None | Some(Said::Again), _) | (Some(Said::Once), None | Some(FirstPage::None)) => false,
            // Rows that SET LOGGED has written again are none that the stream has brought.
            (Some(Said::Once), Some(FirstPage::Before)) | (Some(Said::Empty), None | Some(FirstPage::Before)) => {
                keeps_toast
            }
            (Some(Said::Once), Some(FirstPage::Behind))
            | (Some(Said::Empty), Some(FirstPage::None | FirstPage::Behind)) => true,
        }
    }

    /// Compares what was remembered of a table with what the catalog says now. `told`: the TRUNCATEs of it that the stream has told of,
    /// and what the first pages of [`Fingerprint::to_find_rows_in`] have. `known`: what is remembered of its partitions, and which of
    /// those in [`Fingerprint::to_measure`] have no rows.
    pub fn compare(
        &self,
        now: &Fingerprint,
        table: RelationId,
        told: &Told,
        known: &KnownLeaves,
        vacancy: &Vacancy,
    ) -> RowVerdict {
        if let Some(reason) = now.unsent() {
            return RowVerdict::Differ(reason);
        }
        // The catalogs' rows were written again, so that nothing that they say can be compared.
        if self.server != now.server {
            return RowVerdict::Same;
        }
        let differences = [
            self.publication_differs(now),
            self.publication_was_altered(now),
            self.types_differ(now),
            self.generation_differs(now),
            self.partitions_differ(now, table, known, &vacancy.vacant),
        ];
        if let Some(reason) = differences.into_iter().flatten().next() {
            return RowVerdict::Differ(reason);
        }
        let mut doubt = None;
        for member in &now.members {
            let before = self.before(member, known);
            if before.is_none() && vacancy.vacant.contains(&member.id) {
                continue;
            }
            if before.is_some_and(|before| before.persistence != 'p') {
                return RowVerdict::Differ(format!("{} was unlogged, so its rows did not come", member.name()));
            }
            // A partition that is new began with the file of its own OID.
            let file = before.map_or(if member.file == 0 { 0 } else { member.id }, |before| before.file);
            if file == member.file {
                continue;
            }
            let only_moved = Fingerprint::keeps_toast(before, member);
            if !only_moved && let Some(reason) = self.rewritten(now) {
                return RowVerdict::Differ(reason);
            }
            // A TRUNCATE keeps the TOAST table, and one of the table itself comes through the stream; one of a leaf does not.
            let is_truncated = (only_moved || member.toast == 0 || before.is_none()) && self.is_told(now, member, told);
            if !(is_truncated || only_moved && member.id == table.0) {
                doubt = Some(format!("the rows of {} were moved to another file", member.name()));
            }
        }
        doubt.map_or(RowVerdict::Same, RowVerdict::Doubt)
    }

    /// The unique indexes of the table itself that are there all the time from this fingerprint to any other one that has them.
    pub fn unique_indexes(&self, table: RelationId) -> impl Iterator<Item = u32> + '_ {
        self.keys.iter().filter(move |key| key.table == table.0).map(|key| key.id)
    }

    /// Why the source let a change through that its catalog of now would refuse, or that says nothing of its row: what it has now
    /// was not there all the time since this fingerprint, which the stream has passed. `None` where it was: then the destination's
    /// rows are others.
    pub fn explains(&self, now: &Fingerprint, table: RelationId, refusal: &RowRefusal) -> Option<String> {
        if self.server != now.server {
            return None;
        }
        match refusal {
            RowRefusal::Alike(indexes) => {
                if let Some(leaf) = self.lost_leaf(now, table) {
                    return Some(format!("partition {} was emptied, rewritten or taken away", leaf.name()));
                }
                let known = |id: &u32| self.keys.iter().any(|key| key.id == *id);
                if indexes.iter().any(known) {
                    return None;
                }
                let new = now.keys.iter().find(|key| indexes.contains(&key.id))?;
                Some(format!(
                    "unique index {} was dropped for a while, and rows of that time are alike in its columns",
                    new.name
                ))
            }
            RowRefusal::Constraint(name) => {
                let named =
                    |of: &Fingerprint| of.constraints.iter().find(|found| found.name == *name).map(|found| found.id);
                let is_another = named(now).is_some_and(|id| Some(id) != named(self));
                is_another
                    .then(|| format!("constraint {name} was dropped for a while, and rows of that time violate it"))
            }
            RowRefusal::Null(name) => {
                let now = now.columns.iter().find(|column| column.name == *name)?;
                let before = self.columns.iter().find(|before| before.number == now.number);
                let is_another = before.is_none_or(|before| before.written_by != now.written_by);
                is_another.then(|| {
                    format!("column {name} was not NOT NULL for a while, and rows of that time are NULL in it")
                })
            }
            RowRefusal::Missing => {
                let mut leaves = now.members.iter().filter(|member| member.id != table.0);
                let changed = leaves.find(|leaf| !self.identifies_as(now, leaf.id))?;
                Some(format!(
                    "partition {} was altered, and may have identified its rows otherwise than the table for a while",
                    changed.name()
                ))
            }
        }
    }

    /// A leaf whose rows are in another file now, or that is none any more: a TRUNCATE of a leaf alone does not come through the stream.
    fn lost_leaf<'a>(&'a self, now: &'a Fingerprint, table: RelationId) -> Option<&'a Member> {
        let file =
            |of: &Fingerprint, id: u32| of.members.iter().find(|member| member.id == id).map(|member| member.file);
        let mut known = self.leaves(table);
        let lost = known.find(|leaf| file(now, leaf.id) != Some(leaf.file));
        // One that is new began with the file of its own OID.
        let is_lost = |leaf: &&Member| leaf.kind != 'p' && leaf.file != leaf.id && file(self, leaf.id).is_none();
        lost.or_else(|| now.leaves(table).find(is_lost))
    }

    /// Whether a member identifies its rows as it did, and has done so all the time.
    fn identifies_as(&self, now: &Fingerprint, member: u32) -> bool {
        let found = |of: &Fingerprint| {
            let member = of.members.iter().find(|found| found.id == member)?;
            Some((member.replica_identity, member.changed_by))
        };
        let keys = |of: &Fingerprint| -> Vec<(u32, u32)> {
            of.keys.iter().filter(|key| key.table == member).map(|key| (key.id, key.written_by)).collect()
        };
        found(self) == found(now) && keys(self) == keys(now)
    }

    /// What can be said of a table of which nothing was remembered.
    pub fn alone(&self) -> RowVerdict {
        self.unsent().map_or(RowVerdict::Same, RowVerdict::Differ)
    }

    fn unsent(&self) -> Option<String> {
        self.members.iter().find_map(Member::unsent)
    }

    fn publication_differs(&self, now: &Fingerprint) -> Option<String> {
        match (self.published, now.published) {
            (before, now) if before == now => None,
            (Some(_), None) => Some("the publication does not hold it any more, or holds it in another way".to_owned()),
            (_, _) => {
                Some("it was taken out of the publication and put in again, or is published in another way".to_owned())
            }
        }
    }

    /// What a publication sends may have been less for a moment, whatever it sends now.
    fn publication_was_altered(&self, now: &Fingerprint) -> Option<String> {
        let (before, now) = (self.publication?, now.publication?);
        // Another owner is a reason to write the row that has nothing to do with what is sent.
        let is_altered = before.id != now.id || (before.written_by != now.written_by && before.owner == now.owner);
        is_altered.then(|| {
            "the publication was altered or made again, so that it may not have sent everything for a moment".to_owned()
        })
    }

    /// Labels that are added are followed by themselves (`preflight::enum_labels`); names of types mean nothing to the rows. One that is
    /// renamed is renamed here once no rows are under way that have the old name.
    fn types_differ(&self, now: &Fingerprint) -> Option<String> {
        self.types.iter().find_map(|before| {
            let now = now.types.iter().find(|now| now.id == before.id)?;
            let is_renamed = |label: &Label| now.labels.iter().any(|now| now.id == label.id && now.name != label.name);
            if before.labels.iter().any(is_renamed) {
                return Some(format!("a label of enum {} has another name", now.name));
            }
            let shape = |attributes: &[Attribute]| -> Vec<(i16, TypeId, i32)> {
                attributes.iter().map(|a| (a.number, a.type_id, a.type_modifier)).collect()
            };
            let name = QualifiedName { schema: now.schema.clone(), name: now.name.clone() };
            (shape(&before.attributes) != shape(&now.attributes))
                .then(|| format!("the attributes of type {name} were changed, and with them the values of its columns"))
        })
    }

    /// Generated columns are not among those that the stream describes, or else they are copied once more than they need to be.
    fn generation_differs(&self, now: &Fingerprint) -> Option<String> {
        for now in now.columns.iter().filter(|now| !now.generated.is_empty()) {
            match self.columns.iter().find(|before| before.number == now.number) {
                None => return Some(format!("generated column {} was added", now.name)),
                Some(before) if before.name != now.name => {
                    return Some(format!("generated column {} is now called {}", before.name, now.name));
                }
                Some(_) => {}
            }
        }
        self.columns.iter().find_map(|before| {
            let now = now.columns.iter().find(|now| now.number == before.number)?;
            (before.generated != now.generated || before.expression != now.expression)
                .then(|| format!("column {} is generated in another way, or no more", now.name))
        })
    }

    fn partitions_differ(
        &self,
        now: &Fingerprint,
        table: RelationId,
        known: &KnownLeaves,
        vacant: &BTreeSet<u32>,
    ) -> Option<String> {
        let is_gone = |id: u32| !now.members.iter().any(|now| now.id == id);
        let gone = self.members.iter().find(|before| is_gone(before.id) && !known.is_empty(before.id));
        if let Some(gone) = gone {
            return Some(format!("partition {} was dropped or detached, and its rows with it", gone.name()));
        }
        // One that came and went between two looks, and that the stream has told of.
        if let Some(gone) = known.known.iter().find(|id| is_gone(**id)) {
            return Some(format!("a partition (OID {gone}) was dropped or detached, and its rows with it"));
        }
        let again = |now: &&Member| self.before(now, known).is_some_and(|before| before.attached_by != now.attached_by);
        if let Some(again) = now.members.iter().find(again) {
            return Some(format!("partition {} was detached for a while, and may have other rows", again.name()));
        }
        let new = || now.leaves(table).filter(|leaf| self.before(leaf, known).is_none());
        let has_rows = |leaf: &Member| known.known.contains(&leaf.id) || !vacant.contains(&leaf.id);
        let may_bring = |leaf: &&Member| match leaf.kind {
            _ if now.server.catalog_version < SENDS_ATTACHED => true,
            'p' => new().any(|leaf| leaf.kind != 'p' && has_rows(leaf)),
            _ => has_rows(leaf),
        };
        let attached = new().filter(|leaf| leaf.attached).find(may_bring);
        attached.map(|new| format!("partition {} was attached, and may have brought rows", new.name()))
    }

    /// Why values may be others than those that came, when the table was rewritten.
    fn rewritten(&self, now: &Fingerprint) -> Option<String> {
        let stored = || now.columns.iter().filter(|now| now.generated.is_empty());
        let known = |now: &FingerprintColumn| self.columns.iter().find(|before| before.number == now.number);
        let is_changed = |now: &&FingerprintColumn| {
            known(now)
                .is_some_and(|before| before.written_by != now.written_by && before.has_missing == now.has_missing)
        };
        if let Some(changed) = stored().find(is_changed) {
            return Some(format!("the table was rewritten, and the values of column {} may be others", changed.name));
        }
        let added = stored().find(|now| known(now).is_none())?;
        Some(format!(
            "column {} was added and the table rewritten, so its old rows hold values that did not come",
            added.name
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::truncation::Truncation;

    const TABLE: RelationId = RelationId(100);

    fn column(number: i16, written_by: u32) -> FingerprintColumn {
        FingerprintColumn {
            number,
            name: Ident::new(format!("c{number}")),
            type_id: TypeId(23),
            type_modifier: -1,
            collation: 0,
            not_null: false,
            identity: String::new(),
            generated: String::new(),
            expression: None,
            has_missing: false,
            written_by,
        }
    }

    fn member(id: u32, toast: u32) -> Member {
        Member {
            id,
            schema: Ident::new("public"),
            name: Ident::new(format!("t{id}")),
            kind: 'r',
            persistence: 'p',
            file: id,
            toast,
            changed_by: 700,
            replica_identity: 'd',
            attached: false,
            attached_by: 0,
        }
    }

    fn table(toast: u32) -> Fingerprint {
        Fingerprint {
            server: ServerCatalog { system_identifier: "7".to_owned(), catalog_version: 202209061 },
            members: vec![member(TABLE.0, toast)],
            columns: vec![column(1, 700), column(2, 700)],
            keys: Vec::new(),
            constraints: Vec::new(),
            types: Vec::new(),
            published: Some(9),
            publication: Some(PublicationRow { written_by: 600, id: 8, owner: 10 }),
        }
    }

    #[test]
    fn partitions_that_come_and_go_are_told_from_what_becomes_of_others() {
        let now = |change: &dyn Fn(&mut Fingerprint)| {
            let mut now = tree();
            change(&mut now);
            tree().differs_in_partitions_only(&now)
        };
        assert!(now(&|now| now.members.push(member(103, 7))) && now(&|now| drop(now.members.pop())));
        assert!(!now(&|now| now.members[1].file = 900) && !now(&|now| now.columns[0].written_by = 900));
        assert!(!now(&|now| now.published = None));
    }

    fn tree() -> Fingerprint {
        let mut root = member(TABLE.0, 0);
        (root.kind, root.file) = ('p', 0);
        Fingerprint { members: vec![root, member(101, 5), member(102, 6)], ..table(0) }
    }

    /// What is said after a change; `D` differ, `?` doubt, `=` the same.
    fn said(before: &Fingerprint, change: impl FnOnce(&mut Fingerprint)) -> char {
        let mut now = before.clone();
        change(&mut now);
        let known = KnownLeaves { known: before.leaves(TABLE).map(|leaf| leaf.id).collect(), empty: BTreeMap::new() };
        judged(before, &now, &known, &[])
    }

    /// The same, with what is known of the partitions and those that have no block.
    fn judged(before: &Fingerprint, now: &Fingerprint, known: &KnownLeaves, vacant: &[u32]) -> char {
        let vacancy = Vacancy { vacant: vacant.iter().copied().collect(), locked: BTreeSet::new() };
        let mut truncation = Truncation::default();
        truncation.add(800);
        let pages = now.members.iter().map(|member| (member.id, FirstPage::None)).collect();
        let told = Told { truncations: vec![truncation], pages, ..Told::default() };
        match before.compare(now, TABLE, &told, known, &vacancy) {
            RowVerdict::Same => '=',
            RowVerdict::Differ(_) => 'D',
            RowVerdict::Doubt(_) => '?',
        }
    }

    #[test]
    fn a_rewrite_of_values_is_told_from_one_that_only_moves_them() {
        for toast in [0, 7] {
            let before = table(toast);
            assert_eq!(said(&before, |_| {}), '=');
            assert_eq!(said(&before, |now| now.columns[1].written_by = 900), '=', "SET STATISTICS, varchar to text");
            let altered = |now: &mut Fingerprint| {
                now.columns[1].written_by = 900;
                now.members[0].file = 900;
                now.members[0].toast = if toast == 0 { 0 } else { 901 };
            };
            assert_eq!(said(&before, altered), 'D', "ALTER … TYPE");
            assert_eq!(said(&before, |now| now.columns.push(column(3, 900))), '=', "ADD COLUMN with a constant");
        }
        let moved = |now: &mut Fingerprint| now.members[0].file = 900;
        assert_eq!((said(&table(7), moved), said(&table(0), moved)), ('=', '?'), "VACUUM FULL");
        let remade = |now: &mut Fingerprint| (now.members[0].file, now.members[0].toast) = (900, 901);
        assert_eq!(said(&table(7), remade), '?', "SET UNLOGGED and back");
        for (toast, verdict) in [(0, '?'), (7, '=')] {
            let mut added = table(toast);
            added.columns[1].has_missing = true;
            let moved = |now: &mut Fingerprint| {
                (now.columns[1].has_missing, now.columns[1].written_by, now.members[0].file) = (false, 900, 900);
            };
            assert_eq!(said(&added, moved), verdict, "VACUUM FULL once a column was added with a constant");
        }
        let filled = |now: &mut Fingerprint| {
            (now.members[0].file, now.members[0].toast) = (900, 901);
            now.columns.push(column(3, 900));
        };
        assert_eq!(said(&table(7), filled), 'D', "ADD COLUMN with another value for each row");
        let truncated = |now: &mut Fingerprint| (now.members[0].file, now.members[0].changed_by) = (900, 800);
        assert_eq!((said(&table(0), truncated), said(&table(7), truncated)), ('=', '='), "the stream has told of it");
        let unlogged = |now: &mut Fingerprint| {
            truncated(now);
            now.members[0].toast = 901;
        };
        assert_eq!(said(&table(7), unlogged), '?', "TRUNCATE, and SET UNLOGGED for a while");
    }

    #[test]
    fn what_becomes_of_leaves_is_not_in_the_stream() {
        let before = tree();
        assert_eq!(said(&before, |now| now.members[1].file = 900), '?', "TRUNCATE or VACUUM FULL of a leaf");
        assert_eq!(said(&before, |now| (now.members[1].file, now.members[1].changed_by) = (900, 800)), '=');
        assert_eq!(said(&before, |now| drop(now.members.pop())), 'D', "dropped or detached");
        assert_eq!(said(&before, |now| now.members.push(member(103, 8))), '=', "created as a partition");
        let mut rewritten = Member { file: 900, ..member(103, 8) };
        assert_eq!(said(&before, |now| now.members.push(rewritten.clone())), '?', "and something was done to its rows");
        let altered = |now: &mut Fingerprint| {
            now.columns[1].written_by = 900;
            now.members.push(rewritten.clone());
        };
        assert_eq!(said(&before, altered), 'D', "and a column's values were rewritten");
        rewritten.changed_by = 800;
        assert_eq!(
            said(&before, |now| now.members.push(rewritten.clone())),
            '=',
            "and it was truncated with its table"
        );
        let attached = |now: &mut Fingerprint| now.members.push(Member { attached: true, ..member(103, 8) });
        assert_eq!(said(&before, attached), 'D');
        assert_eq!(said(&before, |now| now.members[1].attached_by = 900), 'D', "detached and attached again");
        assert_eq!(said(&before, |now| now.members[1].persistence = 'u'), 'D');
        assert_eq!(said(&before, |now| now.members.push(Member { kind: 'f', ..member(103, 0) })), 'D');
        let mut unlogged = tree();
        unlogged.members[1].persistence = 'u';
        assert_eq!(said(&unlogged, |now| now.members[1].persistence = 'p'), 'D', "rows were written meanwhile");
    }

    #[test]
    fn rows_of_a_leaf_behind_a_truncate_of_the_table_are_there_only_if_one_was_found() {
        let key = |id, table| UniqueKey {
            id,
            table,
            name: Ident::new("u"),
            columns: "1".to_owned(),
            primary: true,
            replica_identity: false,
            immediate: true,
            written_by: 700,
        };
        let mut before = tree();
        before.keys = vec![key(201, 101), key(202, 102)];
        let mut now = before.clone();
        now.members[1..].iter_mut().for_each(|leaf| (leaf.file, leaf.changed_by) = (900, 800));
        let known = KnownLeaves { known: BTreeSet::from([101, 102]), empty: BTreeMap::new() };
        // What is asked for, and what is said when these partitions have a row of the transaction.
        let said = |before: &Fingerprint, now: &Fingerprint, named: &[u32], kept: &[u32], is_filtered: bool| {
            let mut truncation = Truncation::default();
            truncation.add(800);
            named.iter().for_each(|leaf| truncation.name(*leaf));
            let pages = kept.iter().map(|leaf| (*leaf, FirstPage::Behind)).collect();
            let told = Told { truncations: vec![truncation], pages, is_filtered };
            let asked: Vec<u32> = before.to_find_rows_in(now, TABLE, &told).iter().map(|leaf| leaf.id).collect();
            (asked, before.compare(now, TABLE, &told, &known, &Vacancy::default()) == RowVerdict::Same)
        };
        assert_eq!(said(&before, &now, &[], &[], false), (vec![], true), "no row came behind it");
        assert_eq!(said(&before, &now, &[101], &[], false), (vec![101], false));
        assert_eq!(said(&before, &now, &[101, 102], &[101, 102], false), (vec![101, 102], true));
        assert_eq!(said(&before, &now, &[101, 102], &[101], false), (vec![101, 102], false));
        assert_eq!(said(&before, &now, &[101, 101], &[101], false), (vec![], false), "something was between its rows");
        assert_eq!(said(&before, &now, &[101], &[], true), (vec![], false), "rows that are filtered name nobody");
        assert_eq!(said(&now, &now.clone(), &[101], &[], false), (vec![], true), "judged before");
        let mut keyless = (before.clone(), now.clone());
        keyless.1.keys[0].id = 203;
        assert_eq!(said(&keyless.0, &keyless.1, &[101], &[], false), (vec![], false), "it had no index, perhaps");
        let mut restored = now.clone();
        restored.server.catalog_version += 1;
        assert_eq!(said(&before, &restored, &[101], &[], false), (vec![], true));
    }

    #[test]
    fn rows_that_were_unlogged_behind_a_truncate_are_told_from_those_that_came() {
        let said = |toast: u32, page: Option<FirstPage>| {
            let before = table(toast);
            let mut now = before.clone();
            (now.members[0].file, now.members[0].changed_by) = (900, 800);
            let mut truncation = Truncation::default();
            truncation.add(800);
            let pages = page.map(|page| (TABLE.0, page)).into_iter().collect();
            let told = Told { truncations: vec![truncation], pages, is_filtered: true };
            let is_asked = !before.to_find_rows_in(&now, TABLE, &told).is_empty();
            (
                is_asked,
                before.compare(&now, TABLE, &told, &KnownLeaves::default(), &Vacancy::default()) == RowVerdict::Same,
            )
        };
        assert_eq!(said(7, None), (false, true), "SET LOGGED makes another TOAST table");
        assert_eq!(said(0, None), (true, false), "our role may not read it");
        assert_eq!(said(0, Some(FirstPage::None)), (true, true));
        assert_eq!(said(0, Some(FirstPage::Behind)), (true, true));
        assert_eq!(said(0, Some(FirstPage::Before)), (true, false));
    }

    #[test]
    fn a_partition_that_was_attached_without_rows_is_remembered_with_the_moment() {
        let before = tree();
        let known = KnownLeaves { known: BTreeSet::from([101, 102]), empty: BTreeMap::new() };
        let now = |leaf: Member| {
            let mut now = before.clone();
            now.members.push(leaf);
            now
        };
        let attached = || now(Member { attached: true, attached_by: 800, ..member(103, 8) });
        assert_eq!(before.to_measure(&attached(), TABLE, &known), [103]);
        assert_eq!(judged(&before, &attached(), &known, &[]), 'D');
        assert_eq!(judged(&before, &attached(), &known, &[103]), '=');
        let created = now(Member { file: 900, ..member(103, 8) });
        assert_eq!((judged(&before, &created, &known, &[]), judged(&before, &created, &known, &[103])), ('?', '='));
        let mut old = (before.clone(), attached());
        (old.0.server.catalog_version, old.1.server.catalog_version) = (202_107_181, 202_107_181);
        assert_eq!(judged(&old.0, &old.1, &known, &[103]), 'D', "14 does not send what comes into it");
        // A partitioned table has no block itself.
        let mut deep = now(Member { kind: 'p', file: 0, attached: true, ..member(103, 0) });
        deep.members.push(member(104, 9));
        assert_eq!((judged(&before, &deep, &known, &[103]), judged(&before, &deep, &known, &[103, 104])), ('D', '='));
        let named = KnownLeaves { known: BTreeSet::from([101, 102, 103]), empty: BTreeMap::new() };
        assert_eq!(judged(&before, &attached(), &named, &[103]), 'D', "its rows came, and it was detached for a while");
        assert_eq!(judged(&before, &before.clone(), &named, &[]), 'D', "its rows came, and it is gone");

        let vacancy = |vacant: &[u32], locked: &[u32]| Vacancy {
            vacant: vacant.iter().copied().collect(),
            locked: locked.iter().copied().collect(),
        };
        let after = |before: &Fingerprint, now: &Fingerprint, known: &KnownLeaves, vacancy: Vacancy| {
            now.known_leaves(TABLE, Some(before), known, &vacancy, Lsn::new(500))
        };
        let empty = after(&before, &attached(), &known, vacancy(&[103], &[]));
        assert_eq!(empty, KnownLeaves { known: known.known.clone(), empty: BTreeMap::from([(103, Lsn::new(500))]) });
        assert_eq!(
            after(&before, &now(member(103, 8)), &known, vacancy(&[], &[])),
            known,
            "the stream has not named it"
        );
        assert_eq!(after(&before, &attached(), &known, vacancy(&[], &[])), named);
        assert_eq!(after(&before, &attached(), &known, vacancy(&[], &[103])), known, "nobody knows");

        // Seen empty, it is what it was until the stream names it; and it may go, or be attached again without rows.
        let seen = attached();
        assert_eq!(judged(&seen, &seen.clone(), &empty, &[]), '=');
        assert_eq!(after(&seen, &seen.clone(), &empty, vacancy(&[], &[])), empty);
        assert_eq!(judged(&seen, &before, &empty, &[]), '=');
        assert_eq!(after(&seen, &before, &empty, vacancy(&[], &[])), known);
        let again = now(Member { attached: true, attached_by: 900, ..member(103, 8) });
        assert_eq!(seen.to_measure(&again, TABLE, &empty), [103]);
        assert_eq!((judged(&seen, &again, &empty, &[]), judged(&seen, &again, &empty, &[103])), ('D', '='));
        let later = seen.known_leaves(TABLE, Some(&again), &empty, &vacancy(&[103], &[]), Lsn::new(700));
        assert_eq!(later.empty.get(&103), Some(&Lsn::new(700)));
        assert_eq!(judged(&seen, &again, &named, &[103]), 'D', "its rows came before");
        let truncated = now(Member { attached: true, attached_by: 800, file: 900, ..member(103, 8) });
        assert_eq!((judged(&seen, &truncated, &named, &[]), judged(&seen, &truncated, &empty, &[103])), ('?', '='));
    }

    #[test]
    fn what_the_source_let_through_is_told_from_rows_that_are_others_here() {
        let key = |id, table, written_by| UniqueKey {
            id,
            table,
            name: Ident::new("u"),
            columns: "1".to_owned(),
            primary: false,
            replica_identity: false,
            immediate: true,
            written_by,
        };
        let mut before = tree();
        before.keys = vec![key(200, TABLE.0, 700), key(201, 101, 700)];
        before.constraints = vec![TableConstraint { id: 300, name: Ident::new("c") }];
        let explained = |refusal: RowRefusal, change: &dyn Fn(&mut Fingerprint)| {
            let mut now = before.clone();
            change(&mut now);
            before.explains(&now, TABLE, &refusal).is_some()
        };
        let alike = |id| RowRefusal::Alike(vec![id]);
        assert!(!explained(alike(200), &|_| {}), "it was there all the time");
        assert!(explained(alike(250), &|now| now.keys[0].id = 250));
        assert!(!explained(alike(250), &|_| {}), "the source has no such index");
        assert!(explained(alike(200), &|now| now.members[1].file = 900), "rows of a leaf went without a word");
        assert!(explained(alike(200), &|now| drop(now.members.pop())), "and a leaf with its rows");
        assert!(!explained(alike(200), &|now| now.members[0].file = 900), "a TRUNCATE of the table comes by itself");
        assert!(!explained(alike(200), &|now| now.members.push(member(103, 8))), "a leaf that is new");
        let emptied = |now: &mut Fingerprint| now.members.push(Member { file: 900, ..member(103, 8) });
        assert!(explained(alike(200), &emptied), "and one whose rows went");
        let constraint = || RowRefusal::Constraint(Ident::new("c"));
        assert!(!explained(constraint(), &|_| {}));
        assert!(explained(constraint(), &|now| now.constraints[0].id = 350));
        assert!(!explained(constraint(), &|now| now.constraints.clear()), "a difference of the ends says it");
        let null = || RowRefusal::Null(Ident::new("c2"));
        assert!(!explained(null(), &|_| {}));
        assert!(explained(null(), &|now| now.columns[1].written_by = 900));
        assert!(!explained(RowRefusal::Missing, &|_| {}));
        assert!(
            !explained(RowRefusal::Missing, &|now| now.members[0].changed_by = 900),
            "the stream describes the table"
        );
        assert!(explained(RowRefusal::Missing, &|now| now.members[1].changed_by = 900));
        assert!(explained(RowRefusal::Missing, &|now| now.members[1].replica_identity = 'i'));
        assert!(
            explained(RowRefusal::Missing, &|now| now.keys[1].written_by = 900),
            "from one index to another and back"
        );
        assert!(explained(RowRefusal::Missing, &|now| now.members.push(member(103, 8))));
        let restored = |now: &mut Fingerprint| {
            now.server.catalog_version += 1;
            now.keys[0].id = 250;
        };
        assert!(!explained(alike(250), &restored), "nothing of another catalog can be compared");
    }

    #[test]
    fn types_generation_and_the_publication_count_too() {
        let attribute = |number| Attribute { number, name: Ident::new("a"), type_id: TypeId(23), type_modifier: -1 };
        let mut before = table(7);
        before.types.push(UsedType {
            id: TypeId(20_000),
            schema: Ident::new("public"),
            name: Ident::new("pair"),
            kind: 'c',
            base: TypeId(0),
            base_modifier: -1,
            labels: Vec::new(),
            attributes: vec![attribute(1), attribute(2)],
        });
        assert_eq!(said(&before, |now| now.types[0].name = Ident::new("couple")), '=');
        assert_eq!(said(&before, |now| now.types[0].attributes[1].number = 3), 'D', "dropped, and another one added");
        assert_eq!(said(&before, |now| now.columns[1].expression = Some(7)), 'D');
        assert_eq!(said(&before, |now| now.published = Some(10)), 'D');
        let row = |id, owner, written_by| Some(PublicationRow { written_by, id, owner });
        assert_eq!(said(&before, |now| now.publication = row(8, 10, 900)), 'D', "its options were others for a while");
        assert_eq!(said(&before, |now| now.publication = row(9, 10, 900)), 'D', "made again");
        assert_eq!(said(&before, |now| now.publication = row(8, 11, 900)), '=', "another owner");
        assert_eq!(said(&before, |now| now.publication = None), '=', "it is gone: the stream says so");
        let remembered = Fingerprint { publication: None, ..before.clone() };
        assert_eq!(said(&remembered, |now| now.publication = row(8, 10, 900)), '=', "by an earlier version");
        let restored = |now: &mut Fingerprint| {
            now.server.catalog_version += 1;
            now.published = Some(10);
        };
        assert_eq!(said(&before, restored), '=', "nothing of another catalog can be compared");
        let unlogged = |now: &mut Fingerprint| {
            now.server.catalog_version += 1;
            now.members[0].persistence = 'u';
        };
        assert_eq!(said(&before, unlogged), 'D', "its rows do not come, whatever was before");
    }

    #[test]
    fn facts_are_read_as_the_question_gives_them() {
        let text = r#"{"server": ["7435", 202209061], "members": [[100, "public", "t", "r", "p", 100, 7, 700, "d", false, 0]],
            "columns": [[1, "id", 23, -1, 0, true, "", "", null, false, 700], [2, "g", 23, -1, 0, false, "", "s", -5, true, 700]],
            "keys": [[103, 100, "t_pkey", "1", true, false, true, 699]], "constraints": [[104, "c"]],
            "types": [[16400, "public", "mood", "e", 0, -1, [[16402, "sad"]], []]], "published": null}"#;
        let read: Fingerprint = serde_json::from_str(text).unwrap();
        assert_eq!(read.name(TABLE), Some(QualifiedName::new("public", "t")));
        assert_eq!(read.columns[1].expression, Some(-5));
        assert_eq!(read.unique_indexes(TABLE).collect::<Vec<_>>(), [103]);
        assert_eq!(read.types[0].labels, [Label { id: 16402, name: "sad".to_owned() }]);
    }
}
