-- Foreign keys that change or delete rows of followed tables when a referenced row changes or goes. One statement for either end.
--
-- $1, $2 schemas and names of the followed tables; $3 whether foreign keys act (not in the role replica); $4 only those that a change
-- of a followed table sets off, directly or through tables that are not followed.
--
-- Whether a key acts is decided by its triggers on the referenced table: a superuser can disable them, or enable them for every role,
-- and a key that is NOT ENFORCED has none. Before 15 the key of a partitioned referenced table has them on the partitions alone.
WITH RECURSIVE followed(id) AS (
    SELECT c.oid
    FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS named(schema_name, table_name)
    JOIN pg_catalog.pg_namespace n ON n.nspname = named.schema_name
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = named.table_name AND c.relkind IN ('r', 'p')
    UNION
    SELECT i.inhrelid FROM followed f JOIN pg_catalog.pg_inherits i ON i.inhparent = f.id
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
), acting AS MATERIALIZED (
    SELECT k.oid AS id, k.conrelid AS child, k.confrelid AS parent, t.cascades,
           CASE WHEN t.on_delete THEN CASE k.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' ELSE 'SET DEFAULT' END END
               AS on_delete,
           CASE WHEN t.on_update THEN CASE k.confupdtype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' ELSE 'SET DEFAULT' END END
               AS on_update
    FROM pg_catalog.pg_constraint k
    JOIN (SELECT g.tgconstraint, g.tgrelid, pg_catalog.bool_or(p.proname = 'RI_FKey_cascade_del') AS cascades,
                 pg_catalog.bool_or(p.proname IN ('RI_FKey_cascade_del', 'RI_FKey_setnull_del', 'RI_FKey_setdefault_del')) AS on_delete,
                 pg_catalog.bool_or(p.proname IN ('RI_FKey_cascade_upd', 'RI_FKey_setnull_upd', 'RI_FKey_setdefault_upd')) AS on_update
          FROM pg_catalog.pg_trigger g
          JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
          WHERE g.tgconstraint <> 0 AND g.tgenabled IN ('A', CASE WHEN $3 THEN 'O' ELSE 'R' END)
          GROUP BY 1, 2) t ON t.tgconstraint = k.oid AND t.tgrelid = k.confrelid
    WHERE k.contype = 'f' AND (t.on_delete OR t.on_update)
), deleted(id) AS (
    SELECT id FROM followed
    UNION
    SELECT a.child FROM deleted d JOIN acting a ON a.parent = d.id AND a.cascades
), climb(id, at) AS (
    SELECT id, id FROM acting
    UNION
    SELECT c.id, k.conparentid FROM climb c JOIN pg_catalog.pg_constraint k ON k.oid = c.at AND k.conparentid <> 0
)
SELECT pg_catalog.format('%I.%I', sn.nspname, sc.relname) AS child,
       pg_catalog.format('%I.%I', rn.nspname, rc.relname) AS parent,
       ARRAY(SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
             FROM (SELECT a.child UNION SELECT u.relid FROM pg_catalog.pg_partition_ancestors(a.child) u) AS l (id)
             JOIN pg_catalog.pg_class c ON c.oid = l.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) AS children,
       ARRAY(SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
             FROM (SELECT a.parent UNION SELECT u.relid FROM pg_catalog.pg_partition_ancestors(a.parent) u) AS l (id)
             JOIN pg_catalog.pg_class c ON c.oid = l.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) AS parents,
       ARRAY(SELECT pg_catalog.format('%I = %I', ka.attname, fa.attname)
             FROM ROWS FROM (pg_catalog.unnest(k.conkey), pg_catalog.unnest(k.confkey)) AS pair (ours, theirs)
             JOIN pg_catalog.pg_attribute ka ON ka.attrelid = k.conrelid AND ka.attnum = pair.ours
             JOIN pg_catalog.pg_attribute fa ON fa.attrelid = k.confrelid AND fa.attnum = pair.theirs
             ORDER BY 1) AS columns,
       a.on_delete, a.on_update,
       -- From 15 on ON DELETE SET NULL and SET DEFAULT may name some of the columns.
       CASE WHEN k.confdeltype IN ('n', 'd') THEN
           ARRAY(SELECT pg_catalog.format('%I', sa.attname)
                 FROM pg_catalog.jsonb_array_elements_text(
                     CASE pg_catalog.jsonb_typeof(pg_catalog.to_jsonb(k) -> 'confdelsetcols')
                         WHEN 'array' THEN pg_catalog.to_jsonb(k) -> 'confdelsetcols' ELSE pg_catalog.to_jsonb(k.conkey) END)
                     AS listed (number)
                 JOIN pg_catalog.pg_attribute sa ON sa.attrelid = k.conrelid AND sa.attnum = listed.number::int2
                 ORDER BY 1) END AS set_columns,
       sn.nspname::text AS schema_name, sc.relname::text AS table_name, s.conname::text AS constraint_name
FROM acting a
JOIN pg_catalog.pg_constraint k ON k.oid = a.id
-- What the operator has made, and can drop: a partition's key is its table's.
JOIN climb ON climb.id = a.id
JOIN pg_catalog.pg_constraint s ON s.oid = climb.at AND s.conparentid = 0
JOIN pg_catalog.pg_class sc ON sc.oid = s.conrelid JOIN pg_catalog.pg_namespace sn ON sn.oid = sc.relnamespace
JOIN pg_catalog.pg_class rc ON rc.oid = s.confrelid JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
WHERE a.child IN (SELECT id FROM followed)
  AND (NOT $4 OR a.parent IN (SELECT id FROM followed) OR a.on_delete IS NOT NULL AND a.parent IN (SELECT id FROM deleted))
ORDER BY 9, 10, 11, 1, 2
