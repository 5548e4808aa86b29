//! The publication: found as it is and honoured, or created where it is missing and we may.
//!
//! It must exist before the slot's consistent point: PostgreSQL 18 sends nothing, without an error, for one that did
//! not exist there. Row filters and column lists of an existing publication hold for snapshot, stream and verify
//! alike; a publication that leaves out updates, deletes or truncates would let the copy drift, and is refused.
//!
//! headwater publishes no table on which the source's own UPDATE and DELETE would fail then. It reports such tables that the
//! owner has published, and refuses them only where they would mislead the stream ([`super::identity`]).

use std::collections::BTreeSet;

use super::catalog::SourceCatalog;
use super::error::SourceError;
use super::identity::{Identities, Unidentified, joined};
use super::published::{PublishedTable, published_tables};
use crate::catalog::schema::{ColumnDefinition, TableDefinition};
use crate::pg::{ErrorReport, Ident, QualifiedName, RelationId, counted, printable, quote_literal};
use crate::session::{SessionError, SqlClient, SqlState};

const DOING: &str = "looking at the publication";

/// The comment on a publication that headwater created: teardown drops no other.
pub const PUBLICATION_COMMENT: &str = "Created by headwater";

/// A change of the publication, or a fact about it that is worth reporting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It was changed.
    Changed(String),
    /// It sends less than the tables hold.
    SendsLess(String),
    /// The source's own UPDATE and DELETE fail on a table that its owner has published.
    Unidentified(Unidentified),
}

impl Notice {
    /// The sentence.
    pub fn text(&self) -> String {
        match self {
            Notice::Changed(text) | Notice::SendsLess(text) => text.clone(),
            Notice::Unidentified(found) => {
                format!("{}: its updates and deletes fail there, so only inserts can come", found.report.message)
            }
        }
    }
}

/// The tables of a stream that relies on the publication.
#[derive(Clone, Debug, Default)]
pub struct Relied {
    /// Those that it applies: what is missing of them in the publication has not been sent for a while, and adding it would only hide
    /// that.
    pub live: BTreeSet<QualifiedName>,
    /// Those that wait for a copy: the copy adds them first, so that one that cannot be added keeps no other waiting.
    pub suspended: BTreeSet<QualifiedName>,
}

/// Makes sure that the publication holds every table of the set, and takes over its column lists and row filters.
///
/// Returns what was changed and what is worth reporting.
///
/// # Errors
/// [`SourceError::Refused`] with the statement for the owner to run, when something is missing that we may not create;
/// [`SourceError::Gap`] when the publication is gone on which a stream has relied, [`SourceError::Unpublished`] when it lacks tables of
/// that stream.
pub async fn ensure_publication(
    client: &SqlClient,
    publication: &Ident,
    catalog: &mut SourceCatalog,
    followed: &Relied,
) -> Result<Vec<Notice>, SourceError> {
    bring_about(ConfiguredPublication { client, name: publication }, catalog, followed, Outcome::Kept).await
}

/// The same, and takes everything back.
///
/// # Errors
/// Those of [`ensure_publication`].
pub async fn try_publication(
    client: &SqlClient,
    publication: &Ident,
    catalog: &mut SourceCatalog,
    followed: &Relied,
) -> Result<Vec<Notice>, SourceError> {
    client.batch("trying the publication", "BEGIN").await?;
    let tried =
        bring_about(ConfiguredPublication { client, name: publication }, catalog, followed, Outcome::TakenBack).await;
    client.batch("trying the publication", "ROLLBACK").await?;
    tried
}

/// The publication that the configuration names, and the session in which it is looked at and changed.
#[derive(Clone, Copy)]
struct ConfiguredPublication<'a> {
    client: &'a SqlClient,
    name: &'a Ident,
}

/// What becomes of the changes.
#[derive(Clone, Copy)]
enum Outcome {
    /// They are committed.
    Kept,
    /// They are made in a transaction that is rolled back.
    TakenBack,
}

async fn bring_about(
    configured: ConfiguredPublication<'_>,
    catalog: &mut SourceCatalog,
    followed: &Relied,
    outcome: Outcome,
) -> Result<Vec<Notice>, SourceError> {
    let ConfiguredPublication { client, name: publication } = configured;
    let ids = catalog.tables.iter().map(|table| table.definition.relation_id());
    let identities = Identities::read(client, publication, ids).await?;
    let mut told = Vec::new();
    let sql = "SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
               FROM pg_catalog.pg_publication WHERE pubname = $1::text";
    match client.query_opt(DOING, sql, &[&publication.as_str()]).await? {
        None if !followed.live.is_empty() => {
            return Err(SourceError::Gap {
                report: gap_report(publication, &Gap::Gone, catalog),
                remembered: GAP_OF_ALL.to_owned(),
            });
        }
        None => {
            let tables: Vec<&TableDefinition> = catalog.tables.iter().map(|table| &table.definition).collect();
            create(configured, &tables, identities.to_be_created(), outcome).await?;
            told.push(Notice::Changed(format!("created publication {publication}")));
        }
        Some(row) => {
            let operations = ["insert", "update", "delete", "truncate"];
            let mut left_out: Vec<&str> = Vec::new();
            for (name, at) in operations.iter().zip(1..) {
                if !row.get::<bool>(at)? {
                    left_out.push(name);
                }
            }
            if !left_out.is_empty() {
                return Err(SourceError::Refused(
                    ErrorReport::new(format!("publication {publication} leaves out {}", left_out.join(", ")))
                        .detail("The copy would drift away from the source.")
                        .hint(format!(
                            "Run at the source as its owner:\nALTER PUBLICATION {publication} \
                             SET (publish = 'insert, update, delete, truncate');"
                        )),
                ));
            }
            let via_root: bool = row.get(5)?;
            add_missing(configured, &identities, catalog, via_root, followed, &mut told).await?;
        }
    }
    take_over_lists(configured, catalog, followed, &mut told).await?;
    Ok(told)
}

/// How a publication has failed a stream that relied on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// It is gone.
    Gone,
    /// It has failed before; whatever it holds now.
    Before(String),
}

/// What is remembered of a publication that was dropped while a stream relied on it: there may be one of its name again.
pub const GAP_OF_ALL: &str = "has not held all tables all the time";

/// The same of one that did not exist where the stream is: the end of that message.
const GAP_BEHIND: &str = "did not exist when the source wrote what follows in the stream";

/// What to say when changes were not sent for a while.
pub fn gap_report(publication: &Ident, gap: &Gap, catalog: &SourceCatalog) -> ErrorReport {
    let start = "Start headwater once with --resnapshot, which finds what is missing";
    let (problem, hint) = match gap {
        Gap::Gone => {
            let names: Vec<String> = catalog.tables.iter().map(|table| table.definition.name().to_string()).collect();
            let hint = format!(
                "{start}. Before that, run at the source as the owner of the tables:\nCREATE PUBLICATION {publication} FOR TABLE {} WITH \
                 (publish_via_partition_root = true);",
                names.join(", ")
            );
            (format!("publication {publication} does not exist any more"), hint)
        }
        Gap::Before(problem) => (format!("publication {publication} {problem}"), format!("{start}.")),
    };
    ErrorReport::new(problem).detail("What was written meanwhile was not sent, so the copy has gaps.").hint(hint)
}

/// The error that has ended a stream; a gap where the source decodes what was written while the publication did not exist. It looks at
/// publications as they were then (pgoutput.c, 15 to 17; 18 passes over what was written meanwhile, and the monitor finds the gap).
pub fn absent_then(publication: &Ident, error: SourceError) -> SourceError {
    // The text may be in any language, but has the name.
    let is_absent = |error: &SessionError| {
        let server = error.server().filter(|server| server.code == SqlState::new(b"42704"));
        server.is_some_and(|server| server.message.contains(publication.as_str()))
    };
    if !matches!(&error, SourceError::Session(error) if is_absent(error)) {
        return error;
    }
    let detail = "The source goes by the publication as it was then, and sends nothing from there on. That there is one of this name now \
                  changes nothing.";
    let hint = "Stop headwater, and start it once with headwater run --resnapshot: it copies all tables and streams on behind that.";
    SourceError::Gap {
        report: ErrorReport::new(format!(
            "publication {publication} did not exist when the source wrote what follows in the stream"
        ))
        .detail(detail)
        .hint(hint),
        remembered: GAP_BEHIND.to_owned(),
    }
}

async fn create(
    configured: ConfiguredPublication<'_>,
    tables: &[&TableDefinition],
    identities: Identities,
    outcome: Outcome,
) -> Result<(), SourceError> {
    let ConfiguredPublication { client, name: publication } = configured;
    check_identities(&identities, tables)?;
    let stored = if identities.publishing.sends_stored { ", publish_generated_columns = stored" } else { "" };
    let shown = |quoted: bool| {
        let name = |name: &QualifiedName| if quoted { name.sql() } else { name.to_string() };
        let tables: Vec<String> = tables.iter().map(|table| name(&table.name())).collect();
        let publication = if quoted { publication.sql() } else { publication.to_string() };
        format!(
            "CREATE PUBLICATION {publication} FOR TABLE {} WITH (publish_via_partition_root = true{stored})",
            tables.join(", ")
        )
    };
    let comment = format!("COMMENT ON PUBLICATION {} IS {}", publication.sql(), quote_literal(PUBLICATION_COMMENT));
    match create_with_comment(client, &[shown(true), comment], outcome).await {
        Ok(()) => Ok(()),
        Err(error) if error.code() == Some(SqlState::new(b"42501")) => Err(SourceError::Refused(
            ErrorReport::new(format!(
                "publication {publication} does not exist at the source, and our role may not create it"
            ))
            .hint(format!(
                "Run at the source as the owner of the tables, with CREATE on the database:\n{};",
                shown(false)
            )),
        )),
        // A standby cannot create it, and two instances may start at the same moment.
        Err(error) if error.code() == Some(SqlState::new(b"42710")) => Ok(()),
        Err(error) if error.code() == Some(SqlState::new(b"25006")) => Err(SourceError::Refused(
            ErrorReport::new(format!("publication {publication} does not exist, and the source is a standby"))
                .hint(format!("Run at the primary:\n{};", shown(false))),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Both or nothing: a publication without the comment would not be known as ours.
async fn create_with_comment(
    client: &SqlClient,
    statements: &[String; 2],
    outcome: Outcome,
) -> Result<(), SessionError> {
    const DOING: &str = "creating the publication";
    match outcome {
        Outcome::TakenBack => client.statements(DOING, statements).await,
        Outcome::Kept => {
            client.batch(DOING, "BEGIN").await?;
            let created = client.statements(DOING, statements).await;
            let ended = client.batch(DOING, if created.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
            created.and(ended)
        }
    }
}

/// Refuses to publish what would make the source's own UPDATE and DELETE fail.
fn check_identities(identities: &Identities, tables: &[&TableDefinition]) -> Result<(), SourceError> {
    match joined(identities.problems(false, ids(tables)).map(|found| found.report).collect()) {
        Some(report) => Err(SourceError::Refused(report)),
        None => Ok(()),
    }
}

fn ids<'a>(tables: &'a [&TableDefinition]) -> impl Iterator<Item = RelationId> + 'a {
    tables.iter().map(|table| table.relation_id())
}

async fn add_missing(
    configured: ConfiguredPublication<'_>,
    identities: &Identities,
    catalog: &SourceCatalog,
    via_root: bool,
    followed: &Relied,
    told: &mut Vec<Notice>,
) -> Result<(), SourceError> {
    let ConfiguredPublication { client, name: publication } = configured;
    let tables = || catalog.tables.iter().map(|table| &table.definition);
    let held = published_tables(client, publication, tables().map(TableDefinition::relation_id)).await?;
    let (there, missing): (Vec<&TableDefinition>, Vec<&TableDefinition>) =
        tables().partition(|table| held.contains_key(&table.relation_id()));
    // The owner's publication holds them already, so the source lives with it.
    for found in identities.problems(true, ids(&there)) {
        if found.misleads_the_stream() {
            return Err(SourceError::Refused(found.report));
        }
        told.push(Notice::Unidentified(found));
    }
    let left: Vec<QualifiedName> =
        missing.iter().map(|table| table.name()).filter(|name| followed.live.contains(name)).collect();
    if !left.is_empty() {
        return Err(SourceError::Unpublished { publication: publication.clone(), tables: left });
    }
    let missing: Vec<&TableDefinition> =
        missing.into_iter().filter(|table| !followed.suspended.contains(&table.name())).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = missing.iter().map(|table| table.name().to_string()).collect();
    let partitioned = missing.iter().any(|table| table.kind == crate::catalog::schema::TableKind::Partitioned);
    if partitioned && !via_root {
        return Err(SourceError::Refused(
            ErrorReport::new(format!("publication {publication} publishes partitions, not the partitioned table {}", names.join(", ")))
                .hint(format!(
                    "Run at the source as its owner:\nALTER PUBLICATION {publication} SET (publish_via_partition_root = true);"
                )),
        ));
    }
    check_identities(identities, &missing)?;
    let quoted: Vec<String> = missing.iter().map(|table| table.name().sql()).collect();
    let statement = format!("ALTER PUBLICATION {} ADD TABLE {}", publication.sql(), quoted.join(", "));
    match client.statement("adding tables to the publication", &statement).await {
        Ok(()) => {
            told.push(Notice::Changed(format!("added {} to publication {publication}", names.join(", "))));
            Ok(())
        }
        Err(error)
            if matches!(error.code().map(|c| c.as_str().to_owned()).as_deref(), Some("42501" | "25006" | "42710")) =>
        {
            let standby = error.code() == Some(SqlState::new(b"25006"));
            let whom = if standby { "Run at the primary" } else { "Run at the source" };
            let names = names.join(", ");
            Err(SourceError::Refused(
                ErrorReport::new(format!("publication {publication} does not hold {names}"))
                    .hint(format!("{whom} as its owner:\nALTER PUBLICATION {publication} ADD TABLE {names};")),
            ))
        }
        Err(error) => Err(error.into()),
    }
}

/// Column lists and row filters (15 and later) of an existing publication.
async fn take_over_lists(
    configured: ConfiguredPublication<'_>,
    catalog: &mut SourceCatalog,
    followed: &Relied,
    told: &mut Vec<Notice>,
) -> Result<(), SourceError> {
    let ConfiguredPublication { client, name: publication } = configured;
    let ids = catalog.tables.iter().map(|table| table.definition.relation_id());
    let mut published = published_tables(client, publication, ids).await?;
    for table in &mut catalog.tables {
        let name = table.definition.name();
        let Some(PublishedTable { columns, row_filter, lists_sent }) =
            published.remove(&table.definition.relation_id())
        else {
            if followed.suspended.contains(&name) {
                continue;
            }
            return Err(SourceError::Refused(
                ErrorReport::new(format!("publication {publication} does not hold {name}"))
                    .detail(
                        "It is a partition, and the publication sends what its root has (publish_via_partition_root).",
                    )
                    .hint("Name the root in tables instead, or choose another name for source.publication."),
            ));
        };
        if let Some(columns) = columns {
            let sendable = |column: &&ColumnDefinition| lists_sent || column.generated.is_none();
            let all: Vec<&Ident> =
                table.definition.columns.iter().filter(sendable).map(|column| &column.name).collect();
            let sent: Vec<Ident> =
                all.into_iter().filter(|column| columns.iter().any(|name| name == column.as_str())).cloned().collect();
            let hidden = table.columns.iter().filter(|column| !sent.contains(column)).count();
            if hidden > 0 {
                told.push(Notice::SendsLess(format!(
                    "publication {publication} leaves out {} of table {name}",
                    counted(hidden, "column")
                )));
            }
            table.columns = sent;
        }
        if let Some(filter) = &row_filter {
            let text = format!("publication {publication} sends only rows of table {name} where {}", printable(filter));
            told.push(Notice::SendsLess(text));
        }
        table.row_filter = row_filter;
    }
    Ok(())
}
