-- The files of the tables with the OIDs $1, or of their partitions where $2 says that they are partitioned: a row for each.
-- Read by verification::parts, PostgreSQL 14 to 18. Each catalog is read once, or by OID.
WITH RECURSIVE wanted (id, partitioned) AS MATERIALIZED (
    SELECT w.id, w.partitioned
    FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.bool[])) AS w (id, partitioned)
),
tree (root, id, partitioned) AS (
    SELECT w.id, w.id, w.partitioned FROM wanted w
    UNION ALL
    SELECT tree.root, i.inhrelid, true FROM tree
    JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.id AND NOT i.inhdetachpending AND tree.partitioned
)
SELECT tree.root, n.nspname::text, c.relname::text, c.oid, pg_catalog.pg_relation_filenode(c.oid),
       COALESCE(pg_catalog.pg_relation_size(c.oid), 0) / pg_catalog.current_setting('block_size')::bigint,
       COALESCE(pg_catalog.pg_table_size(c.oid), 0),
       -- NULL of a table that was dropped since this statement began.
       COALESCE(pg_catalog.has_table_privilege(c.oid, 'SELECT')
           AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), false)
FROM tree
-- OFFSET 0: looked up by their OIDs, one at a time, however few of them the planner expects.
CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class x WHERE x.oid = tree.id OFFSET 0) AS c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE CASE WHEN tree.id = tree.root THEN NOT tree.partitioned ELSE c.relkind <> 'p' END
ORDER BY c.oid
