-- What ALTER TABLE changes of the tables named by $1 (schemas) and $2 (names), and of each of their partitions.
-- Read by source::marks, PostgreSQL 14 to 18. Each catalog is read once, or by OID.
WITH RECURSIVE roots (number, id, persistence, kind) AS (
    SELECT wanted.number, c.oid, c.relpersistence, c.relkind
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) -- its form takes no schema
        WITH ORDINALITY AS wanted (schema_name, table_name, number)
    JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name
), parts (number, id, has_partitions) AS (
    SELECT roots.number, roots.id, roots.kind = 'p' FROM roots
    UNION ALL
    SELECT parts.number, i.inhrelid, true FROM parts
    JOIN pg_catalog.pg_inherits i ON i.inhparent = parts.id AND NOT i.inhdetachpending AND parts.has_partitions
), columns (id, mark) AS (
    SELECT a.attrelid, pg_catalog.md5(pg_catalog.string_agg(
        a.attnum || ' ' || a.xmin::pg_catalog.text, ',' ORDER BY a.attnum))
    FROM pg_catalog.pg_attribute a WHERE a.attrelid IN (SELECT id FROM parts) AND a.attnum > 0 GROUP BY a.attrelid
)
SELECT roots.number, pg_catalog.concat_ws(' ', roots.id, roots.persistence), parts.id::pg_catalog.oid, columns.mark
FROM roots JOIN parts USING (number) LEFT JOIN columns ON columns.id = parts.id
