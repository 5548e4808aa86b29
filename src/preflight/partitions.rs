//! What partitions of the destination have of their own that may refuse a row: indexes, constraints and NOT NULL that their table has not.
//!
//! Asked by `violated_constraints` for the one partition that has refused a row, and by `check` for all of them before one does. In come
//! tables of both ends; out go partitions of the destination, each with what the source keeps its rows by: the whole table's, and those of
//! the source's partition of the same name. Invariant: so many statements whatever the number of partitions.

use crate::catalog::schema::{ConstraintKind, TableDefinition};
use crate::destination::DestinationError;
use crate::error_policy::Fault;
use crate::pg::{Ident, QualifiedName};
use crate::schema_change::constraint_difference::{Violated, source_of_partition};
use crate::session::{Clients, SqlClient, describe_tables};
use crate::source::SourceError;

/// What a partition of the destination has that none of the tables above it has.
pub(crate) struct OwnConstraints {
    /// The partition.
    pub(crate) partition: QualifiedName,
    /// The table that it is a partition of, on whichever level.
    pub(crate) table: QualifiedName,
    /// Unique indexes, and those of exclusion constraints.
    indexes: Vec<Ident>,
    /// CHECKs and foreign keys.
    constraints: Vec<Ident>,
    /// Columns that are NOT NULL.
    not_null: Vec<Ident>,
}

/// A partition at both ends.
pub(crate) struct PartitionEnds {
    /// Of which table.
    pub(crate) table: QualifiedName,
    /// The destination's partition, with nothing but what it has of its own to refuse rows by.
    pub(crate) here: TableDefinition,
    /// What the source keeps its rows by, under the same name.
    pub(crate) source: TableDefinition,
}

/// The partitions of these tables of the destination that have something of their own.
///
/// # Errors
/// [`DestinationError`].
pub(crate) async fn with_own_constraints(
    here: &SqlClient,
    tables: &[u32],
) -> Result<Vec<OwnConstraints>, DestinationError> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "WITH RECURSIVE tree (root, parent, id) AS (
                   SELECT c.oid, NULL::oid, c.oid FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1) AND c.relkind = 'p'
                   UNION ALL
                   SELECT tree.root, tree.id, i.inhrelid FROM tree
                   JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.id AND NOT i.inhdetachpending)
               SELECT n.nspname::text, c.relname::text, rn.nspname::text, r.relname::text, own.indexes, own.constraints, own.columns
               FROM tree
               JOIN pg_catalog.pg_class c ON c.oid = tree.id
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_catalog.pg_class r ON r.oid = tree.root
               JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
               CROSS JOIN LATERAL (SELECT
                   ARRAY(SELECT ic.relname::text FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class ic ON ic.oid = x.indexrelid
                         WHERE x.indrelid = tree.id AND (x.indisunique OR x.indisexclusion)
                           AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = x.indexrelid)) AS indexes,
                   ARRAY(SELECT k.conname::text FROM pg_catalog.pg_constraint k WHERE k.conrelid = tree.id
                         AND (k.contype = 'f' AND k.conparentid = 0 OR k.contype = 'c' AND k.coninhcount = 0)) AS constraints,
                   ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                         WHERE a.attrelid = tree.id AND a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped
                           AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute w
                                           WHERE w.attrelid = tree.parent AND w.attname = a.attname AND w.attnotnull)) AS columns) AS own
               WHERE tree.id <> tree.root
                 AND pg_catalog.cardinality(own.indexes) + pg_catalog.cardinality(own.constraints) + pg_catalog.cardinality(own.columns) > 0
               ORDER BY 1, 2";
    let rows = here.query("looking at constraints of partitions", sql, &[&tables]).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let names = |at: usize| -> Result<Vec<Ident>, DestinationError> {
            Ok(row.get::<Vec<String>>(at)?.into_iter().map(Ident::new).collect())
        };
        found.push(OwnConstraints {
            partition: QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?),
            table: QualifiedName::new(row.get::<&str>(2)?, row.get::<&str>(3)?),
            indexes: names(4)?,
            constraints: names(5)?,
            not_null: names(6)?,
        });
    }
    Ok(found)
}

impl OwnConstraints {
    /// Takes what the partition has from the tables above it out of its description: it is theirs to drop.
    fn retain(&self, mut partition: TableDefinition) -> TableDefinition {
        partition.indexes.retain(|index| self.indexes.contains(&index.name));
        partition.constraints.retain(|constraint| match constraint.kind {
            ConstraintKind::Check | ConstraintKind::ForeignKey => self.constraints.contains(&constraint.name),
            ConstraintKind::PrimaryKey | ConstraintKind::Unique | ConstraintKind::Exclusion => true,
        });
        for column in &mut partition.columns {
            column.not_null &= self.not_null.contains(&column.name);
        }
        partition
    }
}

/// Where a constraint that a partition has refused a row by was made: the topmost table that has it, and its name there. `None` where
/// the table is no partition, or has no such constraint.
///
/// # Errors
/// [`DestinationError`].
pub(crate) async fn made_at(here: &SqlClient, violated: &Violated) -> Result<Option<Violated>, DestinationError> {
    let Some(table) = &violated.table else { return Ok(None) };
    let sql = "WITH RECURSIVE above (id, level) AS (
                   SELECT c.oid, 0 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = $1 AND c.relname = $2 AND c.relispartition
                   UNION ALL SELECT i.inhparent, above.level + 1 FROM above JOIN pg_catalog.pg_inherits i ON i.inhrelid = above.id),
               index_above (id, level) AS (
                   SELECT x.indexrelid, 0 FROM above JOIN pg_catalog.pg_index x ON x.indrelid = above.id
                   JOIN pg_catalog.pg_class ic ON ic.oid = x.indexrelid
                   WHERE above.level = 0 AND ic.relname = $3
                   UNION ALL
                   SELECT i.inhparent, index_above.level + 1 FROM index_above JOIN pg_catalog.pg_inherits i ON i.inhrelid = index_above.id),
               found (id, name, level) AS (
                   SELECT x.indrelid, ic.relname::text, index_above.level FROM index_above
                   JOIN pg_catalog.pg_index x ON x.indexrelid = index_above.id
                   JOIN pg_catalog.pg_class ic ON ic.oid = x.indexrelid
                   UNION ALL
                   SELECT above.id, k.conname::text, above.level FROM above
                   JOIN pg_catalog.pg_constraint k ON k.conrelid = above.id AND k.conname = $3 AND k.contype IN ('c', 'f')
                   UNION ALL
                   SELECT above.id, NULL, above.level FROM above
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = above.id AND a.attname = $4 AND a.attnotnull)
               SELECT n.nspname::text, c.relname::text, found.name FROM found
               JOIN pg_catalog.pg_class c ON c.oid = found.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               ORDER BY found.level DESC LIMIT 1";
    let (schema, name) = (table.schema.as_str(), table.name.as_str());
    let constraint = violated.constraint.as_ref().map(Ident::as_str);
    // The column of a NULL; a constraint is not named then.
    let column = violated.column.as_ref().filter(|_| constraint.is_none()).map(Ident::as_str);
    let rows = here.query("looking for a constraint's table", sql, &[&schema, &name, &constraint, &column]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Violated {
        table: Some(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?)),
        constraint: row.get::<Option<String>>(2)?.map(Ident::new),
        column: violated.column.clone(),
    }))
}

/// Both ends of these partitions; `sources` are the source's tables.
///
/// # Errors
/// [`Fault`] when a server does not answer.
pub(crate) async fn ends(
    Clients { source, destination }: Clients<'_>,
    partitions: &[OwnConstraints],
    sources: &[&TableDefinition],
) -> Result<Vec<PartitionEnds>, Fault> {
    let names: Vec<QualifiedName> = partitions.iter().map(|own| own.partition.clone()).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let found_here = describe_tables(destination, &names).await.map_err(DestinationError::Session)?;
    let found_there = describe_tables(source, &names).await.map_err(SourceError::Session)?;
    let of = |here: TableDefinition| {
        let name = here.name();
        let own = partitions.iter().find(|own| own.partition == name)?;
        let table = sources.iter().find(|source| source.name() == own.table)?;
        let is_its = table.partitions.iter().flatten().any(|partition| partition.name == name);
        let partition = found_there.iter().find(|there| is_its && there.name() == name);
        let source = source_of_partition(table, partition, &here);
        Some(PartitionEnds { table: table.name(), source, here: own.retain(here) })
    };
    Ok(found_here.into_iter().filter_map(of).collect())
}
