-- How large the tables with the OIDs $1 are, and of the partitions $3 those of the table in the same place of $2: a row for each that
-- has rows itself. Read by source::ctid_ranges, PostgreSQL 14 to 18. Each catalog is read once, or by OID.
WITH RECURSIVE wanted (id) AS MATERIALIZED (SELECT DISTINCT pg_catalog.unnest($1::pg_catalog.oid[])),
tree (root, id, has_partitions) AS (
    SELECT c.oid, c.oid, c.relkind = 'p' FROM wanted w JOIN pg_catalog.pg_class c ON c.oid = w.id
    UNION ALL
    SELECT tree.root, i.inhrelid, true FROM tree
    JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.id AND NOT i.inhdetachpending AND tree.has_partitions
),
leaves (root, id) AS MATERIALIZED (
    SELECT l.root, l.id
    FROM ROWS FROM (pg_catalog.unnest($2::pg_catalog.oid[]), pg_catalog.unnest($3::pg_catalog.oid[])) AS l (root, id)
),
read (root, id) AS (
    SELECT tree.root, tree.id FROM tree LEFT JOIN leaves l ON l.root = tree.root AND l.id = tree.id
    WHERE tree.id = tree.root OR l.id IS NOT NULL
)
SELECT read.root, n.nspname::text, c.relname::text,
       c.relkind = 'r' AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
           AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND (c.oid = read.root OR NOT c.relrowsecurity),
       pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint,
       pg_catalog.current_setting('block_size')::bigint
FROM read
-- OFFSET 0: looked up by their OIDs, one at a time, however few of them the planner expects.
CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class x WHERE x.oid = read.id OFFSET 0) AS c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE CASE WHEN read.id = read.root THEN c.relkind = 'r' ELSE c.relkind <> 'p' END
ORDER BY 2, 3
