//! Tables that have the name of a followed one and are not the one that headwater has filled.
//!
//! Asked by every start and by the monitor, and by the commands that write rows. In come the OIDs that the bookkeeping remembers; out
//! go the tables that have others now, and what became of those that were filled. What is applied meanwhile is refused by the
//! statements themselves (`sql::table_guard`).
//!
//! Why: a dropped or renamed table leaves its name free. A table that takes the name lacks rows that the stream never brings again, or
//! holds somebody else's; and every role that may create tables in the schema can create it.
//!
//! A restore of the whole database from a dump gives every table another OID, those of the bookkeeping too. Then the remembered ones
//! mean nothing, and [`Bookkeeping::bind_tables`] remembers those that the tables have now: rows and position are of one dump. In a fresh
//! cluster the bookkeeping's OIDs may be the same by chance, so it also remembers the cluster and the database. After pg_upgrade the
//! cluster is another one and the OIDs are the same: to remember them again changes nothing.

use super::bookkeeping::{Bookkeeping, incomplete};
use super::error::DestinationError;
use super::resnapshots::Scope;
use crate::destination::other_table::{Filled, OtherTable, OtherTables};
use crate::pg::{ErrorReport, QualifiedName, shell_word};
use crate::session::SqlClient;

/// The OIDs that headwater.stream.bookkeeping_ids remembers.
pub(super) const BOOKKEEPING_IDS: &str = "ARRAY['headwater.stream'::pg_catalog.regclass::oid, \
     'headwater.position'::pg_catalog.regclass::oid, 'headwater.tables'::pg_catalog.regclass::oid]";

/// The cluster that they are of. Every role may ask for it.
pub(super) const SYSTEM_IDENTIFIER: &str = "(SELECT system_identifier::text FROM pg_catalog.pg_control_system())";

/// The OID of the database that they are of.
pub(super) const DATABASE_ID: &str =
    "(SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())";

const DOING: &str = "comparing the tables with headwater.tables";

/// What was found, and whether it is in the way.
struct FoundTable {
    other: OtherTable,
    is_live: bool,
    /// An operator has asked for a copy into it.
    is_asked: bool,
}

/// Tables that have another OID than the one that was remembered, and are taken for followed as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundAnew {
    /// How many.
    pub tables: u64,
    /// The database was restored from a dump; otherwise an earlier version has not said which OIDs are to be relied on.
    pub is_restored: bool,
}

impl Bookkeeping {
    /// Remembers the OIDs of the tables as they are, where those that are remembered were another database's. Returns what differed.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn bind_tables(&self) -> Result<Option<BoundAnew>, DestinationError> {
        let sql = format!(
            "WITH stale AS (
                 SELECT bookkeeping_ids IS NOT NULL AS is_restored FROM headwater.stream
                 WHERE state = 'live' AND (bookkeeping_ids IS DISTINCT FROM {BOOKKEEPING_IDS}
                       OR destination_system_identifier <> {SYSTEM_IDENTIFIER} OR destination_database_id <> {DATABASE_ID})),
             remembered AS (
                 UPDATE headwater.stream SET bookkeeping_ids = {BOOKKEEPING_IDS}, destination_system_identifier = {SYSTEM_IDENTIFIER},
                        destination_database_id = {DATABASE_ID}
                 WHERE EXISTS (SELECT FROM stale)),
             bound AS (
                 UPDATE headwater.tables t SET destination_id = c.oid
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = t.schema_name AND c.relname = t.table_name AND c.relkind IN ('r', 'p') AND c.oid <> t.destination_id
                   AND EXISTS (SELECT FROM stale)
                 RETURNING 1)
             SELECT (SELECT pg_catalog.count(*) FROM bound), is_restored FROM stale"
        );
        if let Some(row) = self.client().query_opt(DOING, &sql, &[]).await? {
            let tables = u64::try_from(row.get::<i64>(0)?).unwrap_or_default();
            return Ok((tables > 0).then_some(BoundAnew { tables, is_restored: row.get(1)? }));
        }
        // An earlier version has not remembered whose OIDs they are.
        let sql = format!(
            "UPDATE headwater.stream
             SET destination_system_identifier = COALESCE(destination_system_identifier, {SYSTEM_IDENTIFIER}),
                 destination_database_id = COALESCE(destination_database_id, {DATABASE_ID})
             WHERE state = 'live' AND (destination_system_identifier IS NULL OR destination_database_id IS NULL)"
        );
        self.client().execute(DOING, &sql, &[]).await?;
        Ok(None)
    }
}

/// Refuses all tables that must not be written. With `all_are_copied` what is followed now does not count, only whether an operator has
/// asked for the copy that replaces its rows.
///
/// # Errors
/// [`DestinationError::OtherTables`].
pub async fn refuse_other_tables(client: &SqlClient, all_are_copied: bool) -> Result<(), DestinationError> {
    let found = found(client).await?.into_iter();
    let in_the_way = found.filter(|found| !(found.is_asked && (all_are_copied || !found.is_live)));
    let others: Vec<OtherTable> = in_the_way.map(|found| found.other).collect();
    if others.is_empty() { Ok(()) } else { Err(DestinationError::OtherTables(OtherTables(others))) }
}

/// The tables of a copy that are others, and that no operator has asked to copy into.
///
/// # Errors
/// [`DestinationError::OtherTables`].
pub async fn refuse_unasked(client: &SqlClient, copied: &Scope) -> Result<(), DestinationError> {
    let found = found(client).await?.into_iter();
    let in_the_way = found.filter(|found| copied.contains(&found.other.table) && !found.is_asked);
    let others: Vec<OtherTable> = in_the_way.map(|found| found.other).collect();
    if others.is_empty() { Ok(()) } else { Err(DestinationError::OtherTables(OtherTables(others))) }
}

/// The tables that must not be written, for a caller that only reads.
///
/// # Errors
/// [`DestinationError`].
pub async fn other_tables(client: &SqlClient) -> Result<Vec<OtherTable>, DestinationError> {
    let found = found(client).await?.into_iter();
    Ok(found.filter(|found| found.is_live || !found.is_asked).map(|found| found.other).collect())
}

async fn found(client: &SqlClient) -> Result<Vec<FoundTable>, DestinationError> {
    // What is no table at all is refused in other words. A bookkeeping of before these OIDs has none to compare with.
    let sql = format!(
        "SELECT t.schema_name, t.table_name, m.nspname::text, o.relname::text, t.state = 'live',
                EXISTS (SELECT FROM headwater.resnapshots r
                        WHERE r.state = 'requested' AND r.origin IN ('start', 'command')
                          AND (r.tables IS NULL OR pg_catalog.format('\"%s\".\"%s\"',
                               pg_catalog.replace(t.schema_name, '\"', '\"\"'), pg_catalog.replace(t.table_name, '\"', '\"\"'))
                               = ANY (r.tables)))
         FROM headwater.tables t
         JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name AND c.relkind IN ('r', 'p')
         LEFT JOIN pg_catalog.pg_class o ON o.oid = t.destination_id AND o.relkind IN ('r', 'p')
         LEFT JOIN pg_catalog.pg_namespace m ON m.oid = o.relnamespace
         WHERE c.oid <> t.destination_id
           AND (SELECT pg_catalog.to_jsonb(s) -> 'bookkeeping_ids' = pg_catalog.to_jsonb({BOOKKEEPING_IDS})
                       AND COALESCE(pg_catalog.to_jsonb(s) ->> 'destination_system_identifier' = {SYSTEM_IDENTIFIER}, true)
                       AND COALESCE((pg_catalog.to_jsonb(s) ->> 'destination_database_id')::oid = {DATABASE_ID}, true)
                FROM headwater.stream s)
         ORDER BY 1, 2"
    );
    let asked = client.query(DOING, &sql, &[]).await;
    let rows = asked.map_err(|error| incomplete("headwater.tables", error))?;
    let found = rows.iter().map(|row| {
        let (schema, name): (Option<&str>, Option<&str>) = (row.get(2)?, row.get(3)?);
        let filled =
            schema.zip(name).map_or(Filled::Dropped, |(schema, name)| Filled::Called(QualifiedName::new(schema, name)));
        let table = QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?);
        Ok(FoundTable { other: OtherTable { table, filled }, is_live: row.get(4)?, is_asked: row.get(5)? })
    });
    found.collect()
}

/// The report on these tables.
pub fn other_tables_report(others: &OtherTables) -> ErrorReport {
    let report = ErrorReport::new(others.to_string()).detail(detail(others));
    let all = resnapshot(others.names());
    let (these, their_names) = match others.0.as_slice() {
        [_] => ("this one", "the other one its name"),
        _ => ("them", "those that are called otherwise their names"),
    };
    if others.0.iter().any(|other| other.filled == Filled::Unknown) {
        return report.hint(format!(
            "See what became of the other one: headwater check\nOr make {these} equal to the source: {all}"
        ));
    }
    let copy = format!("Make {these} equal to the source: {all}");
    let renames = others.renames();
    if renames.is_empty() {
        return report.hint(copy);
    }
    let mut dropped =
        others.0.iter().filter(|other| other.filled == Filled::Dropped).map(|other| &other.table).peekable();
    let rest = match dropped.peek() {
        None => String::new(),
        Some(_) => format!(", and copy the rest after that ({})", resnapshot(dropped)),
    };
    report.hint(format!("{copy}\nOr give {their_names} back, at the destination{rest}:\n{}", renames.join("\n")))
}

fn detail(others: &OtherTables) -> String {
    let lacks = "may lack rows that the stream does not bring again, and hold others, so nothing is written to";
    let [OtherTable { filled, .. }] = others.0.as_slice() else {
        let became = others.0.iter().filter_map(|OtherTable { table, filled }| match filled {
            Filled::Unknown => None,
            Filled::Dropped => Some(format!("The one that was filled as {table} was dropped.\n")),
            Filled::Called(now) => Some(format!("The one that was filled as {table} is called {now} now.\n")),
        });
        return format!("{}They {lacks} them.", became.collect::<String>());
    };
    match filled {
        Filled::Unknown => format!("It {lacks} it."),
        Filled::Dropped => {
            format!("That one was dropped, and another one was created under its name. It {lacks} it.")
        }
        Filled::Called(now) => format!("That one is called {now} now, and another one has its name. It {lacks} it."),
    }
}

/// The command that copies tables.
fn resnapshot<'a>(tables: impl Iterator<Item = &'a QualifiedName>) -> String {
    let words: Vec<String> = tables.map(|table| shell_word(&table.to_string())).collect();
    format!("headwater resnapshot {}", words.join(" "))
}
