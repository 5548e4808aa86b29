-- What publication $1 sends of the tables with the OIDs $2: one row for each table whose changes come under its own name, with the
-- names of its columns, the row filter, whether columns are listed, and whether generated columns can be among them.
-- Read by source::published, PostgreSQL 16 to 18. The view pg_publication_tables says the same, and opens every published table there, so
-- that it waits for the session that has locked one. Here only a row filter does, from 17 on, where printing an expression takes a lock.
WITH RECURSIVE publication AS MATERIALIZED (
    SELECT p.oid, p.puballtables, p.pubviaroot, pg_catalog.to_jsonb(p) AS facts
    FROM pg_catalog.pg_publication p WHERE p.pubname = $1::pg_catalog.text
),
-- A table, and all above it where it is a partition, up to one that is about to be detached.
line (id, member) AS (
    SELECT w.id, w.id FROM pg_catalog.unnest($2::pg_catalog.oid[]) AS w (id)
    UNION
    SELECT line.id, i.inhparent FROM line
    JOIN pg_catalog.pg_class c ON c.oid = line.member AND c.relispartition
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = line.member AND NOT i.inhdetachpending
),
-- Which of them the publication holds: each by itself, with its schema, or with all tables.
held (id, member) AS MATERIALIZED (
    SELECT line.id, line.member FROM line
    JOIN pg_catalog.pg_class c ON c.oid = line.member
    CROSS JOIN publication p
    WHERE EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prrelid = line.member AND r.prpubid = p.oid)
       OR (c.relpersistence = 'p' AND c.relkind IN ('r', 'p') AND c.oid::pg_catalog.int8 >= 16384
           AND (p.puballtables OR EXISTS (
               SELECT FROM pg_catalog.pg_publication_namespace s WHERE s.pnnspid = c.relnamespace AND s.pnpubid = p.oid)))
)
SELECT c.oid,
       ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
               AND CASE WHEN o.prattrs IS NOT NULL THEN a.attnum = ANY (o.prattrs)
                        ELSE a.attgenerated = '' OR (a.attgenerated = 's' AND p.facts ->> 'pubgencols' = 's') END
             ORDER BY a.attnum),
       CASE WHEN o.prqual IS NOT NULL THEN pg_catalog.pg_get_expr(o.prqual, c.oid) END,
       true,
       p.facts ? 'pubgencols'
FROM pg_catalog.pg_class c
CROSS JOIN publication p
-- Column list and filter are those of the table's own entry, and none where its schema or all tables are published.
LEFT JOIN pg_catalog.pg_publication_rel o ON o.prrelid = c.oid AND o.prpubid = p.oid AND NOT p.puballtables
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s WHERE s.pnnspid = c.relnamespace AND s.pnpubid = p.oid)
WHERE c.oid = ANY ($2::pg_catalog.oid[])
  -- Changes of a partition come under the name of the topmost table that is held, or under its own. Where all tables are published that is
  -- the topmost one, whatever that is.
  AND CASE WHEN p.pubviaroot AND p.puballtables THEN NOT c.relispartition
               AND EXISTS (SELECT FROM held h WHERE h.id = c.oid AND h.member = c.oid)
           WHEN p.pubviaroot THEN EXISTS (SELECT FROM held h WHERE h.id = c.oid AND h.member = c.oid)
               AND NOT EXISTS (SELECT FROM held h WHERE h.id = c.oid AND h.member <> c.oid)
           ELSE c.relkind = 'r' AND EXISTS (SELECT FROM held h WHERE h.id = c.oid) END
