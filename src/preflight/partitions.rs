//! What partitions of the destination have of their own that may refuse a row: indexes, constraints and NOT NULL that their table has not.
//!
//! Asked by `violated_constraints` for the one partition that has refused a row, and by `check` for all of them before one does. In come
//! tables of both ends; out go partitions of the destination, each with what the source keeps its rows by: the whole table's, and those of
//! the source's partition of the same name. Invariant: so many statements whatever the number of partitions.

use crate::catalog::schema::TableDefinition;
use crate::destination::DestinationError;
use crate::error_policy::Fault;
use crate::pg::QualifiedName;
use crate::schema_change::constraint_difference::source_of_partition;
use crate::session::{SqlClient, describe_tables};
use crate::source::SourceError;

/// A partition at both ends.
pub(crate) struct PartitionEnds {
    /// Of which table.
    pub(crate) table: QualifiedName,
    /// The destination's partition.
    pub(crate) here: TableDefinition,
    /// What the source keeps its rows by, under the same name.
    pub(crate) source: TableDefinition,
}

/// The partitions of these tables of the destination with something of their own, and the names of the tables.
///
/// # Errors
/// [`DestinationError`].
pub(crate) async fn with_own_constraints(
    here: &SqlClient,
    tables: &[u32],
) -> Result<Vec<(QualifiedName, QualifiedName)>, DestinationError> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "WITH RECURSIVE tree (root, id) AS (
                   SELECT c.oid, c.oid FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1) AND c.relkind = 'p'
                   UNION ALL
                   SELECT tree.root, i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.id AND NOT i.inhdetachpending)
               SELECT n.nspname::text, c.relname::text, rn.nspname::text, r.relname::text
               FROM tree
               JOIN pg_catalog.pg_class c ON c.oid = tree.id
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_catalog.pg_class r ON r.oid = tree.root
               JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
               WHERE tree.id <> tree.root AND (
                   EXISTS (SELECT FROM pg_catalog.pg_index x WHERE x.indrelid = tree.id AND (x.indisunique OR x.indisexclusion)
                           AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = x.indexrelid))
                   OR EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = tree.id
                              AND (k.contype = 'f' AND k.conparentid = 0 OR k.contype = 'c' AND k.coninhcount = 0))
                   OR EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = tree.id AND a.attnum > 0 AND a.attnotnull
                              AND NOT a.attisdropped AND NOT EXISTS (
                                  SELECT FROM pg_catalog.pg_attribute w
                                  WHERE w.attrelid = tree.root AND w.attname = a.attname AND w.attnotnull)))
               ORDER BY 1, 2";
    let rows = here.query("looking at constraints of partitions", sql, &[&tables]).await?;
    rows.iter()
        .map(|row| {
            let name = |at: usize| {
                Ok::<_, DestinationError>(QualifiedName::new(row.get::<&str>(at)?, row.get::<&str>(at + 1)?))
            };
            Ok((name(0)?, name(2)?))
        })
        .collect()
}

/// The table whose partition, on any level, is called so at the destination.
///
/// # Errors
/// [`DestinationError`].
pub(crate) async fn table_of_partition(
    here: &SqlClient,
    partition: &QualifiedName,
) -> Result<Option<QualifiedName>, DestinationError> {
    let sql = "WITH RECURSIVE above (id) AS (
                   SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = $1 AND c.relname = $2 AND c.relispartition
                   UNION ALL SELECT i.inhparent FROM above JOIN pg_catalog.pg_inherits i ON i.inhrelid = above.id)
               SELECT n.nspname::text, c.relname::text
               FROM above JOIN pg_catalog.pg_class c ON c.oid = above.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE NOT c.relispartition";
    let (schema, name) = (partition.schema.as_str(), partition.name.as_str());
    let rows = here.query("looking for the table of a partition", sql, &[&schema, &name]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?)))
}

/// Both ends of these partitions, each given with the name of its table; `sources` are the source's tables.
///
/// # Errors
/// [`Fault`] when a server does not answer.
pub(crate) async fn ends(
    (source, here): (&SqlClient, &SqlClient),
    partitions: &[(QualifiedName, QualifiedName)],
    sources: &[&TableDefinition],
) -> Result<Vec<PartitionEnds>, Fault> {
    let names: Vec<QualifiedName> = partitions.iter().map(|(name, _)| name.clone()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let found_here = describe_tables(here, &names).await.map_err(DestinationError::Session)?;
    let found_there = describe_tables(source, &names).await.map_err(SourceError::Session)?;
    let of = |here: TableDefinition| {
        let name = here.name();
        let (_, table) = partitions.iter().find(|(partition, _)| *partition == name)?;
        let table = sources.iter().find(|source| source.name() == *table)?;
        let is_its = table.partitions.iter().flatten().any(|partition| partition.name == name);
        let partition = found_there.iter().find(|there| is_its && there.name() == name);
        Some(PartitionEnds { table: table.name(), source: source_of_partition(table, partition, &here), here })
    };
    Ok(found_here.into_iter().filter_map(of).collect())
}
