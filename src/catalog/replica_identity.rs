//! What the source's own UPDATE and DELETE say once a table is published, and what would let them through.
//!
//! Asked by `source::identity` with what the catalog holds of a table, of each leaf of its tree, and of the publication. The
//! rules are CheckCmdReplicaIdentity's (execReplication.c, 14 to 18): the server looks at the leaf that holds the row, never
//! at the root, so REPLICA IDENTITY FULL of a partitioned table alone lets nothing through.
//!
//! One rule is ours: an old row arrives as its leaf identifies it but described as its root does. Where the two disagree the
//! stream names rows by columns that it does not send.

use serde::Deserialize;

use super::schema::{TableKind, replica_identity};
use crate::pg::{Ident, QualifiedName, ReplicaIdentity, shown_literal};

/// A table, or a leaf of its tree.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct IdentityMember {
    /// The table of the set: its own OID, or its root's.
    pub root: u32,
    /// Its name.
    pub name: QualifiedName,
    /// What it is; of a partitioned table the rows are its leaves'.
    pub kind: TableKind,
    /// `relreplident`
    #[serde(deserialize_with = "replica_identity")]
    pub replica_identity: ReplicaIdentity,
    /// The columns of the identity's index; `None` where it has none.
    pub key: Option<Vec<Ident>>,
    /// A unique index over NOT NULL columns that is checked at once.
    pub usable: Option<UsableIndex>,
    /// The columns of a primary key that is deferrable, and so no identity.
    pub deferrable_key: Option<Vec<Ident>>,
    /// It has a primary key, of whatever kind.
    pub has_primary_key: bool,
    /// All its columns.
    pub columns: Vec<Ident>,
    /// Its stored generated columns.
    pub stored: Vec<Ident>,
    /// Its virtual generated columns.
    pub computed: Vec<Ident>,
    /// The publication's column list, of the table itself.
    pub listed: Option<Vec<Ident>>,
    /// The columns that the publication's row filter reads, of the table itself.
    pub filtered_by: Vec<Ident>,
}

/// An index that can identify rows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct UsableIndex {
    /// Its name.
    pub index: Ident,
    /// Its key.
    pub columns: Vec<Ident>,
}

impl IdentityMember {
    fn is_identified(&self) -> bool {
        match self.replica_identity {
            ReplicaIdentity::Full => true,
            ReplicaIdentity::Default | ReplicaIdentity::Index => self.key.is_some(),
            ReplicaIdentity::Nothing => false,
        }
    }

    fn is_tree(&self) -> bool {
        self.kind == TableKind::Partitioned
    }

    fn is_full(&self) -> bool {
        self.replica_identity == ReplicaIdentity::Full
    }

    /// Whether the leaf's rows arrive as the root is described: by the root's columns, or whole.
    fn tells_as(&self, root: &IdentityMember) -> bool {
        let same = |a: &[Ident], b: &[Ident]| a.len() == b.len() && a.iter().all(|column| b.contains(column));
        match (&root.key, &self.key) {
            _ if self.is_full() => true,
            (Some(root), Some(leaf)) => same(root, leaf),
            (None, _) | (_, None) => false,
        }
    }
}

/// A table of the set, its leaves, and what the publication sends of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifiedTable {
    /// The table.
    pub table: IdentityMember,
    /// The leaves of a partitioned table.
    pub leaves: Vec<IdentityMember>,
}

/// The publication, as far as it decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationTraits {
    /// Its name.
    pub name: Ident,
    /// Stored generated columns are sent (18 and later).
    pub sends_stored: bool,
    /// The server refuses identities with generated columns that are not sent (18 and later).
    pub judges_generated: bool,
}

/// Why the source's UPDATE and DELETE fail, or the stream cannot say which row they meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    /// These have no replica identity.
    NoIdentity(Vec<QualifiedName>),
    /// The table that is published has no replica identity, and leaves have one: their changes come and name no row.
    RootWithoutIdentity,
    /// These leaves identify their rows otherwise than the table that is published.
    OtherIdentity(Vec<QualifiedName>),
    /// The identity of these has stored generated columns that the publication does not send.
    StoredNotSent(Vec<QualifiedName>),
    /// The key of these has generated columns that no server before 18 sends: the stream names several rows at once.
    KeyNotSent(Vec<QualifiedName>),
    /// The identity of these has virtual generated columns, which no publication sends.
    Virtual(Vec<QualifiedName>),
    /// The row filter reads these columns, which the identity lacks.
    Filter(Vec<Ident>),
    /// The column list lacks these columns of the identity; all others of the table where the identity is the whole row.
    List(Vec<Ident>),
}

impl IdentifiedTable {
    /// Where rows are: the leaves of a tree, or the table itself.
    fn holders(&self) -> impl Iterator<Item = &IdentityMember> {
        let own = (!self.table.is_tree()).then_some(&self.table);
        self.leaves.iter().chain(own)
    }

    /// The table, then its leaves.
    fn members(&self) -> impl Iterator<Item = &IdentityMember> {
        std::iter::once(&self.table).chain(&self.leaves)
    }

    /// Everything that is wrong with publishing it.
    pub fn harms(&self, publishing: &PublicationTraits) -> Vec<Harm> {
        let named = |is: &dyn Fn(&IdentityMember) -> bool| {
            let found = self.holders().filter(|member| is(member));
            found.map(|member| member.name.clone()).collect::<Vec<_>>()
        };
        let mut harms = Vec::new();
        // A root without an identity describes rows that nothing identifies.
        let mut without = named(&|member| !member.is_identified());
        if self.table.is_tree() && !self.table.is_identified() {
            match self.leaves.iter().any(IdentityMember::is_identified) {
                true => harms.push(Harm::RootWithoutIdentity),
                false => without.insert(0, self.table.name.clone()),
            }
        }
        if !without.is_empty() {
            harms.push(Harm::NoIdentity(without));
        }
        let other = named(&|member| member.is_identified() && !member.tells_as(&self.table));
        if self.table.is_identified() && !other.is_empty() {
            harms.push(Harm::OtherIdentity(other));
        }
        let in_key = |member: &IdentityMember, columns: &[Ident]| {
            let has = |key: &Vec<Ident>| columns.iter().any(|column| key.contains(column));
            member.key.as_ref().is_some_and(has)
        };
        let not_sent = named(&|member| in_key(member, &member.stored));
        if !publishing.judges_generated && !not_sent.is_empty() {
            harms.push(Harm::KeyNotSent(not_sent));
        }
        if publishing.judges_generated {
            let in_identity = |member: &IdentityMember, columns: &[Ident]| {
                member.is_full() && !columns.is_empty() || in_key(member, columns)
            };
            let stored = named(&|member| in_identity(member, &member.stored));
            if !publishing.sends_stored && self.table.listed.is_none() && !stored.is_empty() {
                harms.push(Harm::StoredNotSent(stored));
            }
            let computed = named(&|member| in_identity(member, &member.computed));
            if !computed.is_empty() {
                harms.push(Harm::Virtual(computed));
            }
        }
        harms.extend(self.lists());
        harms
    }

    /// What a row filter and a column list leave out of the identity of some holder of rows.
    fn lists(&self) -> Vec<Harm> {
        let mut harms = Vec::new();
        let keys: Vec<&Vec<Ident>> = self.holders().filter_map(|member| member.key.as_ref()).collect();
        let outside = |column: &&Ident| keys.iter().any(|key| !key.contains(column));
        let filter: Vec<Ident> = self.table.filtered_by.iter().filter(outside).cloned().collect();
        if !filter.is_empty() {
            harms.push(Harm::Filter(filter));
        }
        if let Some(listed) = &self.table.listed {
            let whole = self.holders().any(IdentityMember::is_full);
            let columns: Vec<&Ident> = match whole {
                // With the whole row as identity no list is allowed, however long.
                true => self.table.columns.iter().collect(),
                false => keys.iter().flat_map(|key| key.iter()).collect(),
            };
            let mut lacking: Vec<Ident> =
                columns.into_iter().filter(|column| !listed.contains(column)).cloned().collect();
            lacking.sort();
            lacking.dedup();
            if whole || !lacking.is_empty() {
                harms.push(Harm::List(lacking));
            }
        }
        harms
    }

    /// The ways to give it an identity, each with the statements that do it, as they run.
    pub fn ways(&self, publishing: &PublicationTraits) -> Vec<Remedy> {
        [self.by_primary_key(), self.by_index(), self.by_whole_row(publishing)].into_iter().flatten().collect()
    }

    fn by_primary_key(&self) -> Option<Remedy> {
        let IdentityMember { name, has_primary_key, deferrable_key, usable, .. } = &self.table;
        let mut statements = Vec::new();
        match (has_primary_key, usable) {
            (true, _) if deferrable_key.is_some() => return None,
            (true, _) => {}
            (false, Some(UsableIndex { columns, .. })) => {
                statements.push(format!("ALTER TABLE {name} ADD PRIMARY KEY ({});", list(columns)));
            }
            // A tree's key must hold what its rows are parted by, and may not be made of an identity column before 17.
            (false, None) if self.table.is_tree() => return None,
            (false, None) => {
                let column = self.free_column();
                let kind = "bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY";
                statements.push(format!("ALTER TABLE {name} ADD COLUMN {column} {kind};"));
            }
        }
        let chosen = self.members().filter(|member| member.replica_identity != ReplicaIdentity::Default);
        statements.extend(chosen.map(|member| format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT;", member.name)));
        (!statements.is_empty()).then_some(Remedy { title: "its primary key identifies its rows", statements })
    }

    fn by_index(&self) -> Option<Remedy> {
        let choose = |member: &IdentityMember| {
            let UsableIndex { index, .. } = member.usable.as_ref()?;
            Some(format!("ALTER TABLE {} REPLICA IDENTITY USING INDEX {index};", member.name))
        };
        let statements = match (&self.table.usable, &self.table.deferrable_key) {
            (Some(UsableIndex { columns, .. }), _) => {
                let same =
                    |member: &IdentityMember| member.usable.as_ref().is_some_and(|other| other.columns == *columns);
                if !self.members().all(same) {
                    return None;
                }
                self.members().filter_map(choose).collect()
            }
            (None, Some(columns)) if !self.table.is_tree() => {
                let name = &self.table.name;
                let index = self.free_index();
                vec![
                    format!("CREATE UNIQUE INDEX {index} ON {name} ({});", list(columns)),
                    format!("ALTER TABLE {name} REPLICA IDENTITY USING INDEX {index};"),
                ]
            }
            (None, _) => return None,
        };
        Some(Remedy { title: "a unique index identifies its rows", statements })
    }

    fn by_whole_row(&self, publishing: &PublicationTraits) -> Option<Remedy> {
        let has =
            |columns: fn(&IdentityMember) -> &Vec<Ident>| self.members().any(|member| !columns(member).is_empty());
        if self.table.listed.is_some() || publishing.judges_generated && has(|member| &member.computed) {
            return None;
        }
        let mut statements = Vec::new();
        if publishing.judges_generated && !publishing.sends_stored && has(|member| &member.stored) {
            statements.push(format!("ALTER PUBLICATION {} SET (publish_generated_columns = stored);", publishing.name));
        }
        statements.extend(self.whole_rows());
        Some(Remedy { title: "the whole old row is logged with each update and delete", statements })
    }

    /// The statements that make the whole row the identity, of the table and of each leaf.
    pub fn whole_rows(&self) -> Vec<String> {
        let lacking: Vec<&IdentityMember> = self.members().filter(|member| !member.is_full()).collect();
        if lacking.len() > LEAVES_LISTED_MAX {
            let tree = shown_literal(&self.table.name.sql());
            let body = format!(
                "DECLARE leaf regclass; BEGIN\n  FOR leaf IN SELECT relid FROM pg_partition_tree({tree}) WHERE isleaf LOOP\n    \
                 EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', leaf);\n  END LOOP;\nEND"
            );
            let quote = dollar_quote(&body);
            return vec![
                format!("ALTER TABLE {} REPLICA IDENTITY FULL;", self.table.name),
                format!("DO {quote} {body} {quote};"),
            ];
        }
        lacking.into_iter().map(|member| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", member.name)).collect()
    }

    /// The same, of the leaves that are named.
    pub fn whole_rows_of(&self, names: &[QualifiedName]) -> Vec<String> {
        if names.len() > LEAVES_LISTED_MAX {
            return self.whole_rows();
        }
        names.iter().map(|name| format!("ALTER TABLE {name} REPLICA IDENTITY FULL;")).collect()
    }

    /// The columns that a list must have, in the table's order.
    pub fn listed_with(&self, lacking: &[Ident]) -> Vec<Ident> {
        let listed = self.table.listed.as_deref().unwrap_or_default();
        let wanted = self.table.columns.iter().filter(|column| listed.contains(column) || lacking.contains(column));
        wanted.cloned().collect()
    }

    fn free_column(&self) -> Ident {
        let names = ["id".to_owned(), "row_id".to_owned()].into_iter().chain((1..).map(|n| format!("row_id_{n}")));
        let mut free = names.map(Ident::new).filter(|name| !self.table.columns.contains(name));
        free.next().expect("there are more names than a table has columns")
    }

    fn free_index(&self) -> Ident {
        // The server cuts no name that it is given whole: 63 bytes.
        const SUFFIX: &str = "_identity";
        let mut name = self.table.name.name.as_str().to_owned();
        while name.len() + SUFFIX.len() > 63 {
            name.pop();
        }
        Ident::new(format!("{name}{SUFFIX}"))
    }
}

/// More leaves than this are altered by a loop: their statements would fill screens.
const LEAVES_LISTED_MAX: usize = 20;

/// A way to give a table an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// What it does.
    pub title: &'static str,
    /// The statements.
    pub statements: Vec<String>,
}

fn list(columns: &[Ident]) -> String {
    columns.iter().map(Ident::to_string).collect::<Vec<_>>().join(", ")
}

/// A dollar quote that the text does not end: a name in it may hold `$$`.
fn dollar_quote(text: &str) -> String {
    let mut quote = "$$".to_owned();
    while text.contains(&quote) {
        quote.insert(1, 'q');
    }
    quote
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, replica_identity: ReplicaIdentity, key: Option<&[&str]>) -> IdentityMember {
        let idents = |names: &[&str]| names.iter().map(|name| Ident::new(*name)).collect::<Vec<_>>();
        IdentityMember {
            root: 1,
            name: QualifiedName::new("public", name),
            kind: TableKind::Ordinary,
            replica_identity,
            key: key.map(idents),
            usable: None,
            deferrable_key: None,
            has_primary_key: key.is_some(),
            columns: idents(&["id", "code", "v"]),
            stored: Vec::new(),
            computed: Vec::new(),
            listed: None,
            filtered_by: Vec::new(),
        }
    }

    fn tree(root: IdentityMember, leaves: Vec<IdentityMember>) -> IdentifiedTable {
        let kind = if leaves.is_empty() { TableKind::Ordinary } else { TableKind::Partitioned };
        IdentifiedTable { table: IdentityMember { kind, ..root }, leaves }
    }

    fn publishing(major: u32) -> PublicationTraits {
        PublicationTraits { name: Ident::new("p"), sends_stored: false, judges_generated: major >= 18 }
    }

    const FULL: ReplicaIdentity = ReplicaIdentity::Full;
    const DEFAULT: ReplicaIdentity = ReplicaIdentity::Default;

    #[test]
    fn the_server_asks_the_leaf_and_never_the_root() {
        let leaf = |name, identity, key| member(name, identity, key);
        let of = |name: &str| vec![QualifiedName::new("public", name)];
        for (root, leaves, harms) in [
            (member("t", FULL, None), vec![], vec![]),
            (member("t", DEFAULT, Some(&["id"])), vec![], vec![]),
            (member("t", DEFAULT, None), vec![], vec![Harm::NoIdentity(of("t"))]),
            (member("t", FULL, None), vec![leaf("t1", DEFAULT, None)], vec![Harm::NoIdentity(of("t1"))]),
            (member("t", FULL, None), vec![leaf("t1", FULL, None)], vec![]),
            (member("t", FULL, None), vec![leaf("t1", DEFAULT, Some(&["id"]))], vec![Harm::OtherIdentity(of("t1"))]),
            (member("t", DEFAULT, Some(&["id"])), vec![leaf("t1", FULL, None)], vec![]),
            (
                member("t", ReplicaIdentity::Nothing, None),
                vec![leaf("t1", DEFAULT, Some(&["id"])), leaf("t2", DEFAULT, None)],
                vec![Harm::RootWithoutIdentity, Harm::NoIdentity(of("t2"))],
            ),
            (
                member("t", DEFAULT, Some(&["id"])),
                vec![leaf("t1", ReplicaIdentity::Index, Some(&["code"]))],
                vec![Harm::OtherIdentity(of("t1"))],
            ),
        ] {
            let table = tree(root, leaves);
            assert_eq!(table.harms(&publishing(15)), harms, "{table:?}");
        }
    }

    #[test]
    fn a_name_does_not_end_the_block_that_goes_through_the_leaves() {
        let leaves = (0..=LEAVES_LISTED_MAX).map(|n| member(&format!("t{n}"), DEFAULT, None)).collect();
        let whole_rows = tree(member("a$$; DROP TABLE victim; --\n\u{202e}", FULL, None), leaves).whole_rows();
        let block = &whole_rows[1];
        assert!(
            block.starts_with("DO $q$ ") && block.ends_with("END $q$;") && block.matches("$q$").count() == 2,
            "{block}"
        );
        assert!(block.contains(r#"(E'"public"."a$$; DROP TABLE victim; --\u000a\u202e"')"#), "{block}");
    }

    #[test]
    fn generated_columns_count_where_the_server_judges_them() {
        let mut full = member("t", FULL, None);
        full.stored = vec![Ident::new("v")];
        let table = tree(full, Vec::new());
        assert_eq!(table.harms(&publishing(17)), []);
        assert_eq!(table.harms(&publishing(18)), [Harm::StoredNotSent(vec![QualifiedName::new("public", "t")])]);
        assert_eq!(table.harms(&PublicationTraits { sends_stored: true, ..publishing(18) }), []);
        let ways = table.ways(&publishing(18));
        let last = ways.last().map(|way| way.statements.join(" "));
        assert_eq!(last.as_deref(), Some("ALTER PUBLICATION p SET (publish_generated_columns = stored);"));
    }

    #[test]
    fn filters_and_lists_must_cover_the_identity() {
        let mut table = tree(member("t", DEFAULT, Some(&["id"])), Vec::new());
        table.table.filtered_by = vec![Ident::new("id"), Ident::new("v")];
        table.table.listed = Some(vec![Ident::new("v")]);
        let harms = table.harms(&publishing(15));
        assert_eq!(harms, [Harm::Filter(vec![Ident::new("v")]), Harm::List(vec![Ident::new("id")])]);
        assert_eq!(table.listed_with(&[Ident::new("id")]), [Ident::new("id"), Ident::new("v")]);
        table.table.listed = None;
        table.table.replica_identity = FULL;
        table.table.key = None;
        assert_eq!(table.harms(&publishing(15)), [], "the whole row has all that a filter may read");
    }

    #[test]
    fn each_way_out_is_sql_of_its_own() {
        let mut table = tree(member("t", DEFAULT, None), Vec::new());
        let shown = |table: &IdentifiedTable| {
            let ways = table.ways(&publishing(15));
            ways.iter().map(|way| way.statements.join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(&table),
            [
                "ALTER TABLE public.t ADD COLUMN row_id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY;",
                "ALTER TABLE public.t REPLICA IDENTITY FULL;",
            ]
        );
        table.table.usable = Some(UsableIndex { index: Ident::new("t_code_key"), columns: vec![Ident::new("code")] });
        assert_eq!(
            shown(&table),
            [
                "ALTER TABLE public.t ADD PRIMARY KEY (code);",
                "ALTER TABLE public.t REPLICA IDENTITY USING INDEX t_code_key;",
                "ALTER TABLE public.t REPLICA IDENTITY FULL;",
            ]
        );
        table.table.usable = None;
        table.table.has_primary_key = true;
        table.table.deferrable_key = Some(vec![Ident::new("id")]);
        assert_eq!(
            shown(&table)[0],
            "CREATE UNIQUE INDEX t_identity ON public.t (id); ALTER TABLE public.t REPLICA IDENTITY USING INDEX t_identity;"
        );
    }
}
