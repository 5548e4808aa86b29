//! The tables that are compared, as both catalogs describe them, and how their rows are hashed.
//!
//! Columns are matched by name; one that only one side has is reported, not compared. Generated columns are compared, too, since their
//! expressions may differ; unless the publication leaves columns out that they may be made of. The hash is PostgreSQL's own
//! where both servers give the same for the same text, and an MD5 over UTF-8 otherwise (other encodings, another byte
//! order).

use std::collections::{BTreeMap, BTreeSet};

use super::images::{self, BothImages, ChosenImage, Images};
use super::left_out::{LeftOut, why};
use super::parts::{Parts, read_parts};
use super::workers::{Side, session};
use crate::catalog::schema::{ColumnDefinition, TableDefinition};
use crate::comparison::images::{HashFunction, HashedColumn, Hashing};
use crate::comparison::sql::ComparisonKeyPart;
use crate::comparison::{KeyColumn, comparison_key};
use crate::destination::{Catalog, refuse_other_kinds, table_records};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::preflight::whereabouts::read_catalog;
use crate::session::{Clients, Row, SessionError, SqlClient};
use crate::source::{Relied, SourceTable, ensure_publication};
use crate::sql::text_value::ValueType;
use crate::verification::fence_request::VerifyContext;

/// A table that is compared.
#[derive(Clone, Debug)]
pub(crate) struct Compared {
    pub(crate) name: QualifiedName,
    pub(crate) source: TableDefinition,
    pub(crate) destination: TableDefinition,
    pub(crate) row_filter: Option<String>,
    pub(crate) source_hashing: Hashing,
    pub(crate) destination_hashing: Hashing,
    pub(crate) key: Vec<KeyColumn>,
    pub(crate) not_compared: Vec<Ident>,
}

impl Compared {
    pub(crate) fn definition(&self, side: Side) -> &TableDefinition {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// Only the source's rows are chosen by the publication: what else the destination holds is too much.
    pub(crate) fn row_filter(&self, side: Side) -> Option<&str> {
        match side {
            Side::Source => self.row_filter.as_deref(),
            Side::Destination => None,
        }
    }

    pub(crate) fn hashing(&self, side: Side) -> &Hashing {
        match side {
            Side::Source => &self.source_hashing,
            Side::Destination => &self.destination_hashing,
        }
    }

    /// The columns with values that are not what their text says, and how many: the most of either side, as `counted` there.
    pub(crate) fn inexact<'a>(&self, counted: impl Fn(Side) -> &'a [u64]) -> Vec<(Ident, u64)> {
        let mut found: BTreeMap<Ident, u64> = BTreeMap::new();
        for side in [Side::Source, Side::Destination] {
            for (name, count) in self.hashing(side).doubtful().zip(counted(side)).filter(|(_, count)| **count > 0) {
                let most = found.entry(name.clone()).or_default();
                *most = (*most).max(*count);
            }
        }
        found.into_iter().collect()
    }

    /// The compared columns that the destination generates, which no repair can set.
    pub(crate) fn generated(&self) -> Vec<Ident> {
        let is_generated =
            |name: &&Ident| self.destination.column(name).is_some_and(|column| column.generated.is_some());
        let names = self.destination_hashing.columns.iter().map(|column| &column.name);
        names.filter(is_generated).cloned().collect()
    }

    pub(crate) fn key_names(&self) -> Vec<Ident> {
        self.key.iter().map(|column| column.name.clone()).collect()
    }
}

/// Both catalogs, read before the fence: the tables that can be compared, and those that are left out.
pub(crate) async fn read_tables(
    ends: VerifyContext<'_>,
    source: &SqlClient,
    destination: &SqlClient,
    only: Option<&[QualifiedName]>,
) -> Result<(Vec<Compared>, Vec<LeftOut>), Fault> {
    let configured = &ends.config.tables;
    let wanted = only.unwrap_or(&ends.options.tables);
    if let Some(unknown) = wanted.iter().find(|table| !configured.contains(table)) {
        return Err(Fault::Refused(
            ErrorReport::new(format!("table {unknown} is not configured"))
                .hint("Name one of the tables of the configuration."),
        ));
    }
    let names: &[QualifiedName] = if wanted.is_empty() { configured } else { wanted };
    let records = table_records(destination).await?;
    let mut left_out: Vec<LeftOut> = names.iter().filter_map(|name| why(name, None, &records)).collect();
    let is_left_out = |left_out: &[LeftOut], name: &QualifiedName| left_out.iter().any(|other| other.table == *name);
    let names: Vec<QualifiedName> = names.iter().filter(|name| !is_left_out(&left_out, name)).cloned().collect();
    if names.is_empty() {
        return Ok((Vec::new(), left_out));
    }
    let mut catalog = read_catalog(ends.config, ends.addresses, source, &names).await?;
    let ids = catalog.tables.iter().map(|table| (table.definition.name(), table.definition.relation_id()));
    left_out.extend(ids.filter_map(|(name, id)| why(&name, Some(id), &records)).collect::<Vec<_>>());
    catalog.tables.retain(|table| !is_left_out(&left_out, &table.definition.name()));
    let names: Vec<QualifiedName> = catalog.tables.iter().map(|table| table.definition.name()).collect();
    // Followed: nothing of the publication is changed, only read.
    let followed = Relied { live: names.iter().cloned().collect(), suspended: BTreeSet::new() };
    ensure_publication(source, &ends.config.source.publication, &mut catalog, &followed).await?;
    refuse_other_kinds(destination, &names).await?;
    let here = Catalog::read(destination, &names).await?;
    let images = BothImages {
        source: Images::read(source, Side::Source, &catalog.types).await?,
        destination: Images::read(destination, Side::Destination, &here.types).await?,
    };
    let function = hash_function(source, destination).await?;
    // Drawn for this run, so that no value can hold it by intent.
    let separator = format!("\u{1}{:016x}", fastrand::u64(..));
    let mut compared = Vec::new();
    for table in catalog.tables {
        let name = table.definition.name();
        let Some(target) = here.table(&name) else {
            return Err(Fault::Refused(ErrorReport::new(format!("table {name} does not exist at the destination"))));
        };
        let (columns, not_compared) = compared_columns(&table, target);
        // A NULL of the source's is no key: its text is that of an empty one.
        let in_keys = columns.iter().filter(|(there, here)| here.generated.is_none() && there.is_never_null());
        let in_keys: Vec<Ident> = in_keys.map(|(_, here)| here.name.clone()).collect();
        let key = comparison_key(target, &in_keys);
        let names = key.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
        let hashing = Hashing { columns: Vec::new(), key: names, separator: separator.clone(), function };
        let mut one = Compared {
            name,
            key,
            source_hashing: hashing.clone(),
            destination_hashing: hashing,
            not_compared,
            row_filter: table.row_filter.clone(),
            source: table.definition.clone(),
            destination: target.clone(),
        };
        hash_columns(&mut one, &columns, &images, Clients { source, destination }).await?;
        compared.push(one);
    }
    Ok((compared, left_out))
}

/// The columns that both sides have, by name, and those that only the source has.
fn compared_columns<'a>(
    table: &'a SourceTable,
    target: &'a TableDefinition,
) -> (Vec<(&'a ColumnDefinition, &'a ColumnDefinition)>, Vec<Ident>) {
    let is_published = |column: &ColumnDefinition| table.columns.contains(&column.name);
    let all_published =
        table.definition.columns.iter().all(|column| column.generated.is_some() || is_published(column));
    let mut both = Vec::new();
    let mut not_compared = Vec::new();
    for column in &table.definition.columns {
        // What is generated from a column that does not come is another value here.
        let is_compared = is_published(column) || (column.generated.is_some() && all_published);
        if !is_compared {
            continue;
        }
        match target.column(&column.name) {
            Some(here) => both.push((column, here)),
            None => not_compared.push(column.name.clone()),
        }
    }
    both.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    (both, not_compared)
}

/// How both sides hash these columns.
async fn hash_columns(
    table: &mut Compared,
    columns: &[(&ColumnDefinition, &ColumnDefinition)],
    images: &BothImages<'_>,
    Clients { source, destination }: Clients<'_>,
) -> Result<(), Fault> {
    let mut any_doubtful = false;
    for (there, here) in columns {
        let nullable = !(there.is_never_null() && here.is_never_null());
        let pair = images::pair(images.source.of(there.type_id), images.destination.of(here.type_id));
        let [there_hashed, here_hashed] = pair.map(|ChosenImage { image, is_doubtful }| {
            any_doubtful |= is_doubtful;
            // Its type is read below.
            let doubtful = is_doubtful.then(|| ValueType { sql: String::new(), built_in: false });
            HashedColumn { name: there.name.clone(), nullable, image, doubtful }
        });
        table.source_hashing.columns.push(there_hashed);
        table.destination_hashing.columns.push(here_hashed);
    }
    if !any_doubtful {
        return Ok(());
    }
    for (side, client) in [(Side::Source, source), (Side::Destination, destination)] {
        let types = column_types(client, side, table.definition(side)).await?;
        let hashing = match side {
            Side::Source => &mut table.source_hashing,
            Side::Destination => &mut table.destination_hashing,
        };
        for column in &mut hashing.columns {
            if let Some(value_type) = &mut column.doubtful {
                let found = types.get(&column.name).ok_or_else(|| column_lacks_type(side))?;
                value_type.clone_from(&found.base);
            }
        }
    }
    Ok(())
}

/// PostgreSQL's own hash, where both servers compute the same of the same characters.
async fn hash_function(source: &SqlClient, destination: &SqlClient) -> Result<HashFunction, Fault> {
    let sql = "SELECT pg_catalog.current_setting('server_encoding'),
                      pg_catalog.hashtextextended(pg_catalog.repeat('headwater', 5) COLLATE \"C\", 7)";
    let mut found = Vec::new();
    for (side, client) in [(Side::Source, source), (Side::Destination, destination)] {
        let row = client.query_one("comparing the servers' hashes", sql, &[]).await;
        let hashes = row.and_then(|row| Ok((row.get::<String>(0)?, row.get::<i64>(1)?)));
        found.push(hashes.map_err(|error| side.fault(error))?);
    }
    Ok(if found.first() == found.last() { HashFunction::Native } else { HashFunction::Md5 })
}

/// The parts of every table on one side; `None` for a table that does not exist any more.
pub(crate) async fn all_parts(
    client: &SqlClient,
    side: Side,
    tables: &[Compared],
) -> Result<Vec<Option<Parts>>, Fault> {
    let definitions: Vec<&TableDefinition> = tables.iter().map(|table| table.definition(side)).collect();
    read_parts(client, &definitions).await.map_err(|error| side.fault(error))
}

/// A key as one server's SQL finds it.
pub(crate) async fn key_parts(
    client: &SqlClient,
    side: Side,
    table: &Compared,
) -> Result<Vec<ComparisonKeyPart>, Fault> {
    let mut types = column_types(client, side, table.definition(side)).await?;
    let key = comparison_key(table.definition(side), &table.key_names());
    let part = |column: &KeyColumn| {
        let found = types.remove(&column.name).ok_or_else(|| column_lacks_type(side))?;
        // Each side's own operator, where it has an index like the other's.
        let own = key.iter().find(|own| own.name == column.name).unwrap_or(column);
        Ok(ComparisonKeyPart {
            name: column.name.clone(),
            value_type: found.base,
            declared: found.declared.sql,
            equality: own.equality.clone(),
        })
    };
    table.key.iter().map(part).collect()
}

/// A column that was there when the table was described, and not in the answer about its types.
fn column_lacks_type(side: Side) -> Fault {
    side.fault(SessionError::answer(READING_TYPES, "a column of the table is missing"))
}

/// A column's type.
pub(crate) struct ColumnType {
    /// As it was declared.
    pub(crate) declared: ValueType,
    /// Of a domain the base type, so that nothing checks the value: the checks are the domain owner's.
    pub(crate) base: ValueType,
}

const READING_TYPES: &str = "reading column types";

/// Every column's type.
pub(crate) async fn column_types(
    client: &SqlClient,
    side: Side,
    table: &TableDefinition,
) -> Result<BTreeMap<Ident, ColumnType>, Fault> {
    // Objects below 16384 came with the server (transam.h: FirstNormalObjectId). A base type below a domain has no modifier here: a
    // value that is too long is to be found nowhere, and not to be cut.
    let sql = "WITH RECURSIVE bases (attname, declared, base, id) AS (
                   SELECT attname, pg_catalog.format_type(atttypid, atttypmod), pg_catalog.format_type(atttypid, atttypmod), atttypid
                   FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
                   UNION ALL
                   SELECT b.attname, b.declared, pg_catalog.format_type(t.typbasetype, -1), t.typbasetype
                   FROM bases b JOIN pg_catalog.pg_type t ON t.oid = b.id
                   WHERE t.typtype = 'd')
               SELECT b.attname::text, b.declared, b.base, b.id < 16384
               FROM bases b JOIN pg_catalog.pg_type t ON t.oid = b.id WHERE t.typtype <> 'd'";
    let rows = client.query(READING_TYPES, sql, &[&table.id]).await.map_err(|error| side.fault(error))?;
    let column = |row: &Row| {
        let value_type = |at: usize| Ok::<_, SessionError>(ValueType { sql: row.get(at)?, built_in: row.get(3)? });
        Ok((Ident::new(row.get::<&str>(0)?), ColumnType { declared: value_type(1)?, base: value_type(2)? }))
    };
    rows.iter().map(column).collect::<Result<_, _>>().map_err(|error| side.fault(error))
}

/// Both sides' sessions for questions about catalogs.
pub(crate) async fn connect(ends: VerifyContext<'_>) -> Result<(SqlClient, SqlClient), Fault> {
    let bound = ends.config.fence_timeout;
    let source = session(&crate::verification::fence::sql_for(&ends.addresses.source, "verifying"), bound).await;
    let source = source.map_err(|error| Side::Source.fault(error))?;
    let destination =
        session(&crate::verification::fence::sql_for(&ends.addresses.destination, "verifying"), bound).await;
    Ok((source, destination.map_err(|error| Side::Destination.fault(error))?))
}
