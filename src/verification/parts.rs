//! A table's files: the table itself or its partitions, how large they are, and whether they are still the same.
//!
//! TRUNCATE and table rewrites are not MVCC-safe: under an older snapshot the table looks empty afterwards. They give
//! the table another file, so a table whose files are the same before the fence and after the last read was read as it
//! was at the fence.

use std::collections::HashMap;

use crate::catalog::schema::{TableDefinition, TableKind};
use crate::pg::QualifiedName;
use crate::session::{Row, SessionError, SqlClient};
use crate::sql::partition_tree;

/// A table or partition that holds rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadPart {
    pub(crate) name: QualifiedName,
    /// Reads the rows of partitions too: where the partitions cannot be read one by one.
    pub(crate) whole_tree: bool,
    pub(crate) pages: u64,
    /// With TOAST.
    pub(crate) bytes: u64,
}

/// A table's parts, and what tells whether they are still the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) parts: Vec<ReadPart>,
    /// OID and file of each table and partition.
    pub(crate) files: Vec<(u32, Option<u32>)>,
}

const LOOKING: &str = "looking at tables' files";

const PARTS: &str = include_str!("../../sql/table_parts.sql");

/// Reads the parts of each table, in one question; `None` of one that does not exist any more.
pub(crate) async fn read_parts(
    client: &SqlClient,
    tables: &[&TableDefinition],
) -> Result<Vec<Option<Parts>>, SessionError> {
    let ids: Vec<u32> = tables.iter().map(|table| table.id).collect();
    let partitioned: Vec<bool> = tables.iter().map(|table| table.kind == TableKind::Partitioned).collect();
    let rows = client.query(LOOKING, PARTS, &[&ids, &partitioned]).await?;
    let mut of_roots: HashMap<u32, Vec<&Row>> = HashMap::new();
    for row in &rows {
        of_roots.entry(row.get(0)?).or_default().push(row);
    }
    tables.iter().map(|table| parts(table, of_roots.get(&table.id).map_or(&[], Vec::as_slice))).collect()
}

/// A table's parts, by what was answered of it or of its partitions.
fn parts(table: &TableDefinition, rows: &[&Row]) -> Result<Option<Parts>, SessionError> {
    let partitioned = table.kind == TableKind::Partitioned;
    if rows.is_empty() && !partitioned {
        return Ok(None);
    }
    let number = |value: i64| u64::try_from(value).map_err(|_| SessionError::answer(LOOKING, "a size below zero"));
    let files = rows
        .iter()
        .map(|row| Ok((row.get::<u32>(3)?, row.get::<Option<u32>>(4)?)))
        .collect::<Result<_, SessionError>>()?;
    let readable = rows.iter().map(|row| row.get::<bool>(7)).collect::<Result<Vec<_>, _>>()?;
    let one_by_one = readable.iter().all(|readable| *readable);
    let parts = if one_by_one {
        rows.iter()
            .map(|row| {
                Ok(ReadPart {
                    name: QualifiedName::new(row.get::<&str>(1)?, row.get::<&str>(2)?),
                    whole_tree: false,
                    pages: number(row.get(5)?)?,
                    bytes: number(row.get(6)?)?,
                })
            })
            .collect::<Result<_, SessionError>>()?
    } else {
        // Reading through the root needs its privileges only, but page numbers mean nothing there.
        let bytes = rows.iter().map(|row| number(row.get(6)?)).sum::<Result<u64, SessionError>>()?;
        vec![ReadPart { name: table.name(), whole_tree: partitioned, pages: 0, bytes }]
    };
    Ok(Some(Parts { parts, files }))
}

/// Whether a table has the files that it has in the snapshot of this session's transaction, which has read it: from then on nobody can
/// truncate or rewrite it. Otherwise rows that the snapshot has may have looked as if they were not there.
pub(crate) async fn is_as_in_snapshot(client: &SqlClient, table: &TableDefinition) -> Result<bool, SessionError> {
    // What a query reads of the catalog is the snapshot's; what a function says of a file or a tree is of now.
    let sql = concat!(
        "SELECT (SELECT pg_catalog.array_agg(ROW(c.oid, c.relfilenode)::text ORDER BY c.oid) FROM pg_catalog.pg_class c
                 WHERE c.oid = $1 AND NOT $2 OR $2 AND c.oid IN (SELECT relid FROM ",
        partition_tree!("$1"),
        " AS t WHERE isleaf))
               IS NOT DISTINCT FROM
               (SELECT pg_catalog.array_agg(ROW(t.relid, COALESCE(pg_catalog.pg_relation_filenode(t.relid), 0))::text ORDER BY t.relid)
                FROM (SELECT $1::oid WHERE NOT $2
                      UNION ALL SELECT p.relid::oid FROM pg_catalog.pg_partition_tree($1) AS p WHERE $2 AND p.isleaf) AS t (relid))"
    );
    let partitioned = table.kind == TableKind::Partitioned;
    client.query_one(LOOKING, sql, &[&table.id, &partitioned]).await?.get(0)
}
