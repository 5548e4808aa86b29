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

/// The marks of some tables, with those of their partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    marks: BTreeMap<QualifiedName, TableMarks>,
}

/// The marks of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct TableMarks {
    /// Its OID and its persistence.
    root: String,
    /// The columns of it and of each partition, by OID.
    parts: BTreeMap<u32, Option<String>>,
}

const MARKS: &str = include_str!("../../sql/table_marks.sql");

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
        let mut marks: BTreeMap<QualifiedName, TableMarks> = BTreeMap::new();
        for row in &rows {
            let number = row.get::<i64>(0)?.checked_sub(1).and_then(|number| usize::try_from(number).ok());
            let name = number.and_then(|number| names.get(number));
            let name = name.ok_or_else(|| SessionError::answer(doing, "a table that was not asked for"))?;
            let marks = marks.entry(name.clone()).or_default();
            marks.root = row.get(1)?;
            marks.parts.insert(row.get(2)?, row.get(3)?);
        }
        Ok(Marks { marks })
    }

    /// The first of these tables that was altered, or bears another's name, since `before` was read. Partitions that came or went are no
    /// reason: what becomes of their rows is `catalog::leaves`' to say.
    pub fn altered<'a>(
        &self,
        before: &Marks,
        tables: impl IntoIterator<Item = &'a QualifiedName>,
    ) -> Option<&'a QualifiedName> {
        tables.into_iter().find(|table| match (self.marks.get(*table), before.marks.get(*table)) {
            (Some(now), Some(before)) => {
                let is_altered = |(id, mark)| before.parts.get(id).is_some_and(|before| before != mark);
                now.root != before.root || now.parts.iter().any(is_altered)
            }
            (now, before) => now != before,
        })
    }
}
