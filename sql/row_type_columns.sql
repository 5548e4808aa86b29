-- The columns, as one JSON array, that hold the row type of a table, however deep: PostgreSQL refuses statements that rewrite the table
-- while there are any (find_composite_type_dependencies in tablecmds.c; tried on 14, 15 and 18). No row: there are none.
--
-- $1, $2 schema and name of the table. Asked once such a statement was refused.
WITH RECURSIVE holding(id) AS (
    SELECT c.reltype FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
    UNION
    SELECT outer_type.id
    FROM holding h CROSS JOIN LATERAL (
        SELECT t.oid AS id FROM pg_catalog.pg_type t WHERE t.typelem = h.id OR t.typbasetype = h.id
        UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngsubtype = h.id
        UNION ALL SELECT r.rngmultitypid FROM pg_catalog.pg_range r WHERE r.rngtypid = h.id
        UNION ALL SELECT c.reltype FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
                  WHERE a.atttypid = h.id AND c.relkind = 'c' AND NOT a.attisdropped
    ) AS outer_type
)
SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
           'schema', n.nspname, 'table', c.relname, 'column', a.attname, 'is_view', c.relkind = 'm')
       ORDER BY n.nspname, c.relname, a.attname)::text
FROM holding h
-- What is inherited goes with the parent's.
JOIN pg_catalog.pg_attribute a ON a.atttypid = h.id AND NOT a.attisdropped AND a.attinhcount = 0
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'm')
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
HAVING pg_catalog.count(*) > 0
