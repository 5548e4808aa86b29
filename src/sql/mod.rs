//! What all SQL that headwater generates shares. Fixed SQL is in sql/ and included where it is used; each module that needs other SQL
//! writes its own (`apply_plan::sql`, `schema_change::ddl`, `comparison::sql` and their like).
//!
//! Asked by `destination` and `source`; pure. Names get in through [`crate::pg::Ident::sql`] only, so that a hostile
//! name is an odd name. Every object of a catalog is named with its schema, because sessions run with an empty
//! search_path.

pub mod table_guard;
pub mod text_value;

/// A table in FROM: `relid` and `isleaf` of a partitioned table with this OID, itself and all below it; of any other relation none.
///
/// pg_partition_tree() answers the same and locks every partition until the statement ends, or its transaction (partitionfuncs.c, 14 to
/// 18): it waits for a session that alters one, and takes the room of a lock from every other session for each.
macro_rules! partition_tree {
    ($root:literal) => {
        concat!(
            "(WITH RECURSIVE tree (relid) AS (
                  SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = ",
            $root,
            " AND r.relkind = 'p'
                  UNION ALL SELECT i.inhrelid FROM tree
                  JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending)
              SELECT tree.relid, l.relkind <> 'p' AS isleaf FROM tree JOIN pg_catalog.pg_class l ON l.oid = tree.relid)"
        )
    };
}
pub(crate) use partition_tree;
