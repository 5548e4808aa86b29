//! What a publication sends: which tables, which of their columns, and which rows.
//!
//! Asked at every start and by the monitor on its clock. From 16 to 18 the view pg_publication_tables opens every published table, so a
//! VACUUM FULL of one would keep both waiting; there the catalogs are read, in sql/published_tables.sql. Servers before 16 open none, and
//! of servers newer than 18 it is not known whether they publish by other rules: both are asked by the view.

use std::collections::HashMap;

use crate::pg::{Ident, RelationId};
use crate::session::{SessionError, SqlClient};

const CATALOGS: &str = include_str!("../../sql/published_tables.sql");
const VIEW: &str = "SELECT c.oid,
                  ARRAY(SELECT pg_catalog.jsonb_array_elements_text(
                      COALESCE(NULLIF(pg_catalog.to_jsonb(t) -> 'attnames', 'null'), '[]'))),
                  pg_catalog.to_jsonb(t) ->> 'rowfilter', pg_catalog.to_jsonb(t) ? 'attnames',
                  EXISTS (SELECT FROM pg_catalog.pg_publication p
                          WHERE p.pubname = t.pubname AND pg_catalog.to_jsonb(p) ? 'pubgencols')
           FROM pg_catalog.pg_publication_tables t
           JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
           JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
           WHERE t.pubname = $1::text AND c.oid = ANY ($2::oid[])";
const DOING: &str = "looking at the publication";

/// What is sent of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    /// The columns by name; `None` where the server publishes whole rows only (14).
    pub columns: Option<Vec<String>>,
    /// The row filter.
    pub row_filter: Option<String>,
    /// Generated columns are among `columns` only if they are sent. Before 18 they never are, and the view lists them all the same.
    pub lists_sent: bool,
}

/// What a publication sends of these tables; those are left out whose changes it does not send, or sends as those of another table.
///
/// # Errors
/// [`SessionError`].
pub async fn published_tables(
    client: &SqlClient,
    publication: &Ident,
    tables: impl Iterator<Item = RelationId>,
) -> Result<HashMap<RelationId, PublishedTable>, SessionError> {
    let ids: Vec<u32> = tables.map(|table| table.0).collect();
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int / 10000";
    let major: i32 = client.query_one(DOING, version, &[]).await?.get(0)?;
    let sql = if (16..=18).contains(&major) { CATALOGS } else { VIEW };
    let rows = client.query(DOING, sql, &[&publication.as_str(), &ids]).await?;
    let read = rows.iter().map(|row| {
        let columns = row.get::<bool>(3)?.then(|| row.get::<Vec<String>>(1)).transpose()?;
        let found = PublishedTable { columns, row_filter: row.get(2)?, lists_sent: row.get(4)? };
        Ok((RelationId(row.get(0)?), found))
    });
    read.collect()
}
