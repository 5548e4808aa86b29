//! What tells that a table was altered between two looks at it.
//!
//! Read before the catalog, and again when the stream describes a table that was copied since. ALTER TABLE gives the rows of
//! pg_attribute that it touches a new xmin, also where it rewrites values under the same type; so equal marks mean equal columns
//! with the values that the stream has sent. TRUNCATE, VACUUM FULL and CLUSTER, which give a table another file and leave its
//! values alone, change no mark. (Tried on 14, 15 and 18.)

use std::collections::BTreeMap;

use super::error::SourceError;
use crate::pg::QualifiedName;
use crate::session::{SessionError, SqlClient};
use crate::sql::partition_tree;

/// The marks of some tables, with those of their partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    marks: BTreeMap<QualifiedName, String>,
}

const MARKS: &str = concat!(
    "
    WITH roots (number, id, persistence) AS (
        SELECT wanted.number, c.oid, c.relpersistence
        FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) -- its form takes no schema
            WITH ORDINALITY AS wanted (schema_name, table_name, number)
        JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
        JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name
    ), parts (number, id) AS (
        SELECT number, id FROM roots
        UNION SELECT number, t.relid FROM roots CROSS JOIN LATERAL ",
    partition_tree!("roots.id"),
    " AS t
    ), columns (number, mark) AS (
        SELECT number, pg_catalog.md5(pg_catalog.string_agg(
            a.attrelid || ' ' || a.attnum || ' ' || a.xmin::pg_catalog.text, ',' ORDER BY a.attrelid, a.attnum))
        FROM parts JOIN pg_catalog.pg_attribute a ON a.attrelid = parts.id AND a.attnum > 0 GROUP BY number
    )
    SELECT roots.number, pg_catalog.concat_ws(' ', roots.id, roots.persistence, columns.mark)
    FROM roots LEFT JOIN columns USING (number)"
);

impl Marks {
    /// Reads the marks of the tables that have these names now.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn read(client: &SqlClient, names: &[QualifiedName]) -> Result<Marks, SourceError> {
        let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
        let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
        let doing = "looking for altered tables";
        let rows = client.query(doing, MARKS, &[&schemas, &tables]).await?;
        let marks = rows.iter().map(|row| {
            let number = row.get::<i64>(0)?.checked_sub(1).and_then(|number| usize::try_from(number).ok());
            let name = number.and_then(|number| names.get(number));
            let name = name.ok_or_else(|| SessionError::answer(doing, "a table that was not asked for"))?;
            Ok((name.clone(), row.get(1)?))
        });
        Ok(Marks { marks: marks.collect::<Result<_, SessionError>>()? })
    }

    /// The first of these tables that was altered, or bears another's name, since `before` was read.
    pub fn altered<'a>(
        &self,
        before: &Marks,
        tables: impl IntoIterator<Item = &'a QualifiedName>,
    ) -> Option<&'a QualifiedName> {
        tables.into_iter().find(|table| self.marks.get(*table) != before.marks.get(*table))
    }
}
