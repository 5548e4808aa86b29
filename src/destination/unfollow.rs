//! Tables that are followed no longer, because the configuration names them no longer.
//!
//! Called by the leader at a start (`preflight::unconfigured`). In come the tables; out goes one transaction that removes everything the
//! bookkeeping knows of them. Their rows are not touched. A crash leaves all of it or nothing, and the next start does the rest. A dead
//! letter stays: it is a whole source transaction, and other tables may be in it.

use super::bookkeeping::Bookkeeping;
use super::error::DestinationError;
use crate::pg::{Ident, QualifiedName};

const DOING: &str = "removing tables from the bookkeeping";

/// A foreign key at the destination between a table that is followed no longer and one that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LooseForeignKey {
    /// The table that has it.
    pub table: QualifiedName,
    /// Its name.
    pub name: Ident,
    /// The table that it points at.
    pub target: QualifiedName,
}

impl Bookkeeping {
    /// Forgets tables: their rows of headwater.tables and headwater.shapes, what was asked for them in headwater.resnapshots, and the
    /// conflict that one of them has met.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn unfollow(&self, tables: &[QualifiedName]) -> Result<(), DestinationError> {
        self.client().batch(DOING, "BEGIN").await?;
        let done = self.unfollow_inside(tables).await;
        let ended = self.client().batch(DOING, if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
        done?;
        Ok(ended?)
    }

    async fn unfollow_inside(&self, tables: &[QualifiedName]) -> Result<(), DestinationError> {
        let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let quoted: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
        let sql = "DELETE FROM headwater.tables t
                   USING ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS gone (schema_name, table_name)
                   WHERE t.schema_name = gone.schema_name AND t.table_name = gone.table_name";
        self.client().execute(DOING, sql, &[&schemas, &names]).await?;
        let sql = "DELETE FROM headwater.shapes s
                   WHERE NOT EXISTS (SELECT FROM headwater.tables t WHERE t.source_id = s.source_id)";
        self.client().execute(DOING, sql, &[]).await?;
        // A request for other tables, too, stays for those.
        let sql = "UPDATE headwater.resnapshots r SET tables = left_over.tables,
                       state = CASE WHEN left_over.tables = '{}' THEN 'failed' ELSE r.state END,
                       message = CASE WHEN left_over.tables = '{}' THEN 'given up: its tables are not configured any more'
                                 ELSE r.message END,
                       finished_at = CASE WHEN left_over.tables = '{}' THEN pg_catalog.clock_timestamp() END
                   FROM headwater.resnapshots o
                   CROSS JOIN LATERAL (
                       SELECT ARRAY(SELECT t FROM pg_catalog.unnest(o.tables) AS t WHERE t <> ALL ($1::text[]))
                   ) AS left_over (tables)
                   WHERE o.id = r.id AND r.state = 'requested' AND r.tables && $1::text[]";
        self.client().execute(DOING, sql, &[&quoted]).await?;
        let sql = "DELETE FROM headwater.open_conflict c
                   USING ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS gone (schema_name, table_name)
                   WHERE c.schema_name = gone.schema_name AND c.table_name = gone.table_name";
        self.client().execute(DOING, sql, &[&schemas, &names]).await?;
        Ok(())
    }

    /// The foreign keys at the destination between `tables`, which are followed no longer, and tables that are followed.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn loose_foreign_keys(&self, tables: &[QualifiedName]) -> Result<Vec<LooseForeignKey>, DestinationError> {
        let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        // Those that partitions have inherited go with their parent's.
        let sql = "WITH gone AS (
                       SELECT c.oid FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS g (schema_name, name)
                       JOIN pg_catalog.pg_namespace n ON n.nspname = g.schema_name
                       JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = g.name
                   ), followed AS (
                       SELECT c.oid FROM headwater.tables t
                       JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema_name
                       JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name
                       WHERE c.oid NOT IN (SELECT oid FROM gone)
                   )
                   SELECT n.nspname::text, c.relname::text, k.conname::text, tn.nspname::text, t.relname::text
                   FROM pg_catalog.pg_constraint k
                   JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   JOIN pg_catalog.pg_class t ON t.oid = k.confrelid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
                   WHERE k.contype = 'f' AND k.conparentid = 0
                     AND (k.conrelid IN (SELECT oid FROM gone) AND k.confrelid IN (SELECT oid FROM followed)
                          OR k.confrelid IN (SELECT oid FROM gone) AND k.conrelid IN (SELECT oid FROM followed))
                   ORDER BY 1, 2, 3";
        let rows = self.client().query("looking at foreign keys", sql, &[&schemas, &names]).await?;
        let found = rows.iter().map(|row| {
            Ok(LooseForeignKey {
                table: QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?),
                name: Ident::new(row.get::<&str>(2)?),
                target: QualifiedName::new(row.get::<&str>(3)?, row.get::<&str>(4)?),
            })
        });
        found.collect()
    }
}
