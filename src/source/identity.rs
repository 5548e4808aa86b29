//! The identities of the tables of the set, asked of the source before anything is published, at every start and by the monitor.
//!
//! In come OIDs and the publication's name; out go reports, with the statements that let the source's UPDATE and DELETE through.
//! What is wrong is [`crate::catalog::replica_identity`]'s to say. One query for all tables and leaves, which needs no privilege on them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::catalog::replica_identity::{Harm, IdentifiedTable, PublicationTraits};
use crate::pg::{ErrorReport, Ident, QualifiedName, RelationId, ReplicaIdentity};
use crate::session::{SessionError, SqlClient, describe_identities};

const DOING: &str = "looking at replica identities";

/// What the server and the publication, as far as there is one, have for identities.
#[derive(Clone, Debug)]
pub struct Identities {
    /// The publication.
    pub publishing: PublicationTraits,
    /// The server is of 18 or later, where a publication can send stored generated columns.
    pub can_send_stored: bool,
    tables: BTreeMap<RelationId, IdentifiedTable>,
}

/// Something wrong with the identity of a published table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unidentified {
    /// The table.
    pub table: QualifiedName,
    /// What is wrong.
    pub harm: Harm,
    /// The report to the operator.
    pub report: ErrorReport,
}

impl Unidentified {
    /// Whether rows of the stream would be taken for others: not even an owner's publication makes that right.
    pub fn misleads_the_stream(&self) -> bool {
        match self.harm {
            Harm::RootWithoutIdentity | Harm::OtherIdentity(_) | Harm::KeyNotSent(_) => true,
            Harm::NoIdentity(_) | Harm::StoredNotSent(_) | Harm::Virtual(_) | Harm::Filter(_) | Harm::List(_) => false,
        }
    }
}

impl Identities {
    /// Reads them; the publication need not exist.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn read(
        client: &SqlClient,
        publication: &Ident,
        tables: impl Iterator<Item = RelationId>,
    ) -> Result<Identities, SessionError> {
        let ids: Vec<u32> = tables.map(|id| id.0).collect();
        let sql = "SELECT pg_catalog.current_setting('server_version_num')::int,
                          (SELECT pg_catalog.to_jsonb(p) ->> 'pubgencols' FROM pg_catalog.pg_publication p WHERE p.pubname = $1::text)";
        let row = client.query_one(DOING, sql, &[&publication.as_str()]).await?;
        let can_send_stored = row.get::<i32>(0)? >= GENERATED_COLUMNS;
        let sends_stored = row.get::<Option<&str>>(1)? == Some("s");
        let publishing =
            PublicationTraits { name: publication.clone(), sends_stored, judges_generated: can_send_stored };
        let mut found: BTreeMap<RelationId, IdentifiedTable> = BTreeMap::new();
        for member in describe_identities(client, &ids, publication).await? {
            match found.entry(RelationId(member.root)) {
                // A table comes before its leaves.
                Entry::Vacant(entry) => {
                    entry.insert(IdentifiedTable { table: member, leaves: Vec::new() });
                }
                Entry::Occupied(mut entry) => entry.get_mut().leaves.push(member),
            }
        }
        Ok(Identities { publishing, can_send_stored, tables: found })
    }

    /// The same, as a publication that does not exist yet would have them: it sends generated columns where it must.
    #[must_use]
    pub fn to_be_created(mut self) -> Identities {
        let harms = self.tables.values().flat_map(|table| table.harms(&self.publishing));
        let needed = harms.into_iter().any(|harm| matches!(harm, Harm::StoredNotSent(_)));
        self.publishing.sends_stored = self.can_send_stored && needed;
        self
    }

    /// What is wrong with these tables; `published` says whether the source lives with it already.
    pub fn problems<'a>(
        &'a self,
        published: bool,
        tables: impl Iterator<Item = RelationId> + 'a,
    ) -> impl Iterator<Item = Unidentified> + 'a {
        let found = tables.filter_map(|id| self.tables.get(&id));
        found.flat_map(move |table| {
            table.harms(&self.publishing).into_iter().map(move |harm| Unidentified {
                table: table.table.name.clone(),
                report: report(table, &harm, &self.publishing, published),
                harm,
            })
        })
    }
}

/// The first `server_version_num` whose publications can send stored generated columns.
const GENERATED_COLUMNS: i32 = 180_000;

/// Maximum number of names in one report: the leaves of a tree may be thousands.
const NAMED_MAX: usize = 5;

fn named(names: &[QualifiedName]) -> String {
    let mut shown: Vec<String> = names.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if names.len() > NAMED_MAX {
        shown.push(format!("{} more", names.len() - NAMED_MAX));
    }
    shown.join(", ")
}

fn listed(columns: &[Ident]) -> String {
    columns.iter().map(Ident::to_string).collect::<Vec<_>>().join(", ")
}

fn report(table: &IdentifiedTable, harm: &Harm, publishing: &PublicationTraits, published: bool) -> ErrorReport {
    // Long: an arm for each harm.
    let (name, publication) = (&table.table.name, &publishing.name);
    let when = if published {
        "The source application's own UPDATE and DELETE"
    } else {
        "Once it is published, the source application's own UPDATE and DELETE"
    };
    let fail = if published { "fail" } else { "would fail" };
    let refused = |words: &str| format!("{when} on it {fail} with \"cannot update table …\": {words}.");
    match harm {
        Harm::NoIdentity(without) => {
            let of_leaves: Vec<QualifiedName> = without.iter().filter(|other| *other != name).cloned().collect();
            let reason = match (&table.table.deferrable_key, of_leaves.as_slice()) {
                _ if table.table.replica_identity == ReplicaIdentity::Nothing => "It is NOTHING.".to_owned(),
                (Some(_), _) => "Its primary key is deferrable.".to_owned(),
                (None, []) if table.table.has_primary_key => "The index that it names is gone.".to_owned(),
                (None, []) => "It has no primary key.".to_owned(),
                (None, leaves) => format!(
                    "Partitions without one: {}. REPLICA IDENTITY of a partitioned table does not reach them.",
                    named(leaves)
                ),
            };
            let words = "it does not have a replica identity and publishes updates";
            ErrorReport::new(format!("table {name} has no replica identity at the source"))
                .detail(format!("{reason} {}", refused(words)))
                .hint(ways(table, publishing))
        }
        Harm::RootWithoutIdentity => {
            ErrorReport::new(format!("table {name} has no replica identity at the source, and its partitions have one"))
                .detail("Their updates and deletes come, and do not say which row they mean.")
                .hint(ways(table, publishing))
        }
        Harm::OtherIdentity(leaves) => {
            ErrorReport::new(format!("partitions of table {name} identify their rows otherwise than the table at the source"))
                .detail(format!(
                    "Their updates and deletes name rows by columns that the stream does not describe: {}.",
                    named(leaves)
                ))
                .hint(format!("Run at the source:\n{}", table.whole_rows_of(leaves).join("\n")))
        }
        Harm::StoredNotSent(members) => ErrorReport::new(format!(
            "the replica identity of table {name} has generated columns that publication {publication} does not send"
        ))
        .detail(format!("{} Concerned: {}.", refused(GENERATED_WORDS), named(members)))
        .hint(format!(
            "Run at the source as the owner of the publication:\nALTER PUBLICATION {publication} SET (publish_generated_columns = stored);"
        )),
        Harm::KeyNotSent(members) => ErrorReport::new(format!(
            "rows of table {name} are identified by generated columns that the source does not send"
        ))
        .detail(format!(
            "Before 18 no generated column is sent, so an update or delete would name several rows at once. Concerned: {}.",
            named(members)
        ))
        .hint(format!("Run at the source:\n{}", table.whole_rows_of(members).join("\n"))),
        Harm::Virtual(members) => {
            ErrorReport::new(format!("the replica identity of table {name} has virtual generated columns"))
                .detail(format!(
                    "No publication sends them. {} Concerned: {}.",
                    refused(GENERATED_WORDS),
                    named(members)
                ))
                .hint(ways(table, publishing))
        }
        Harm::Filter(columns) => {
            let report = ErrorReport::new(format!(
                "the row filter of table {name} in publication {publication} reads columns outside of its replica identity"
            ))
            .detail(format!(
                "{} Columns: {}.",
                refused("Column used in the publication WHERE expression is not part of the replica identity"),
                listed(columns)
            ));
            match table.table.listed {
                Some(_) => report.hint("Give the table a replica identity that has these columns, or drop the row filter."),
                None => report.hint(format!("Run at the source:\n{}", table.whole_rows().join("\n"))),
            }
        }
        Harm::List(lacking) => {
            let with = format!(
                "BEGIN;\nALTER PUBLICATION {publication} DROP TABLE {name};\nALTER PUBLICATION {publication} ADD TABLE {name}"
            );
            let columns = table.listed_with(lacking);
            let all = columns.len() == table.table.columns.len();
            // With the whole row as identity no list is allowed at all.
            let columns = if all { String::new() } else { format!(" ({})", listed(&columns)) };
            let report = ErrorReport::new(format!(
                "the column list of table {name} in publication {publication} does not cover its replica identity"
            ))
            .detail(format!(
                "{} Missing: {}.",
                refused("Column list used by the publication does not cover the replica identity"),
                if lacking.is_empty() { "no list is allowed where the whole row is the identity".to_owned() } else { listed(lacking) }
            ));
            match table.table.filtered_by.is_empty() {
                true => report.hint(format!("Run at the source as the owner of the publication:\n{with}{columns};\nCOMMIT;")),
                false => report.hint(
                    "Put the table into the publication again with its row filter, and with these columns in its column list.",
                ),
            }
        }
    }
}

const GENERATED_WORDS: &str = "Replica identity must not contain unpublished generated columns";

/// One report of several: each table's statements under a comment of its own, all of them as they run.
pub(super) fn joined(reports: Vec<ErrorReport>) -> Option<ErrorReport> {
    let mut reports = reports.into_iter();
    let first = reports.next()?;
    Some(reports.fold(first, |all, next| {
        let both = |all: Option<String>, next: Option<String>| match (all, next) {
            (Some(all), Some(next)) => Some(format!("{all}\n{next}")),
            (one, other) => one.or(other),
        };
        let statements = next.hint.map(|hint| hint.lines().skip(1).collect::<Vec<_>>().join("\n"));
        let statements = statements.filter(|text| !text.is_empty()).map(|text| format!("-- {}\n{text}", next.message));
        ErrorReport {
            message: format!("{}; {}", all.message, next.message),
            detail: both(all.detail, next.detail),
            hint: both(all.hint, statements),
        }
    }))
}

/// Every way out under a comment of its own, so that each can be run by itself.
fn ways(table: &IdentifiedTable, publishing: &PublicationTraits) -> String {
    let ways = table.ways(publishing);
    if ways.is_empty() {
        return "Give it a primary key, or a unique index over NOT NULL columns, at the source.".to_owned();
    }
    let each = ways.iter().map(|way| format!("-- {}\n{}", way.title, way.statements.join("\n")));
    format!("Run one of these at the source:\n{}", each.collect::<Vec<_>>().join("\n"))
}
