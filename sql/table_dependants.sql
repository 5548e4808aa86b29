-- What keeps PostgreSQL from changing a table's columns, as one JSON array of what takes it away, in the order in which that runs. No row:
-- nothing does.
--
-- Columns that hold its row type, however deep (find_composite_type_dependencies in tablecmds.c), and views, rules, policies, triggers and
-- functions with a body in SQL that name its columns (RememberAllDependentForRebuilding there): a role with USAGE on the schema can create
-- a view of a table without any privilege on it. And what depends on these (findDependentObjects in dependency.c), since DROP without
-- CASCADE refuses otherwise, and with it would take what nobody has read. Tables that depend as a whole, by a partition key or by OF, are
-- not named. Tried on 14, 15 and 18.
--
-- $1, $2 schema and name of the table. Asked once such a statement was refused.
WITH RECURSIVE target(id, type_id) AS (
    SELECT c.oid, c.reltype FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
),
-- Types that hold the row type: arrays, domains, ranges, and the row types of composite types, views and foreign tables.
holding(id) AS (
    SELECT type_id FROM target
    UNION
    SELECT CASE WHEN d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass THEN d.objid ELSE c.reltype END
    FROM holding h
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.refobjid = h.id
    LEFT JOIN pg_catalog.pg_class c ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass OR d.objsubid > 0 AND c.relkind IN ('c', 'v', 'f')
),
-- An object with the number of its column, or 0. A view stands for its columns, its row type and its _RETURN rule.
members(class_id, id, part) AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::oid, a.attrelid, CASE WHEN c.relkind = 'm' THEN 0 ELSE a.attnum::int END
    FROM holding h
    -- What is inherited goes with the parent's.
    JOIN pg_catalog.pg_attribute a ON a.atttypid = h.id AND NOT a.attisdropped AND a.attinhcount = 0
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'm')
    UNION
    SELECT CASE WHEN r.rulename = '_RETURN' THEN 'pg_catalog.pg_class'::pg_catalog.regclass::oid ELSE d.classid END,
           CASE WHEN r.rulename = '_RETURN' THEN r.ev_class ELSE d.objid END, 0
    FROM target t
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = t.id AND d.refobjsubid > 0
    LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid
    WHERE d.classid IN ('pg_catalog.pg_rewrite'::pg_catalog.regclass, 'pg_catalog.pg_policy'::pg_catalog.regclass,
                        'pg_catalog.pg_trigger'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass)
    UNION
    SELECT dependant.class_id, dependant.id, dependant.part
    FROM members m
    CROSS JOIN LATERAL (
        SELECT m.class_id, m.id, m.part
        UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, y.oid, 0 FROM pg_catalog.pg_type y
        WHERE m.class_id = 'pg_catalog.pg_class'::pg_catalog.regclass AND m.part = 0 AND y.typrelid = m.id
        UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, y.typarray, 0 FROM pg_catalog.pg_type y
        WHERE m.class_id = 'pg_catalog.pg_class'::pg_catalog.regclass AND m.part = 0 AND y.typrelid = m.id
           OR m.class_id = 'pg_catalog.pg_type'::pg_catalog.regclass AND y.oid = m.id
    ) AS named(class_id, id, part)
    JOIN pg_catalog.pg_depend d ON d.refclassid = named.class_id AND d.refobjid = named.id
        AND (named.part = 0 OR d.refobjsubid = named.part) AND d.deptype = 'n'
    LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid AND r.rulename = '_RETURN'
    LEFT JOIN pg_catalog.pg_class c ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.objid
    CROSS JOIN LATERAL (
        SELECT CASE WHEN r.oid IS NOT NULL THEN 'pg_catalog.pg_class'::pg_catalog.regclass::oid ELSE d.classid END AS class_id,
               CASE WHEN r.oid IS NOT NULL THEN r.ev_class ELSE d.objid END AS id,
               CASE WHEN r.oid IS NOT NULL OR c.relkind IN ('v', 'm') THEN 0 ELSE d.objsubid END AS part
    ) AS dependant
),
edges(class_id, id, part, of_class_id, of_id, of_part) AS MATERIALIZED (
    -- What a member goes before: what it needs, and what it would go with.
    SELECT m.class_id, m.id, m.part, n.class_id, n.id, n.part
    FROM members m
    CROSS JOIN LATERAL (
        SELECT m.class_id, m.id, m.part
        UNION ALL SELECT 'pg_catalog.pg_rewrite'::pg_catalog.regclass, r.oid, 0 FROM pg_catalog.pg_rewrite r
        WHERE m.class_id = 'pg_catalog.pg_class'::pg_catalog.regclass AND m.part = 0 AND r.ev_class = m.id AND r.rulename = '_RETURN'
    ) AS named(class_id, id, part)
    JOIN pg_catalog.pg_depend d ON d.classid = named.class_id AND d.objid = named.id
        AND (d.objsubid = named.part OR named.part = 0) AND d.deptype IN ('n', 'a')
    LEFT JOIN pg_catalog.pg_type y ON d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND y.oid = d.refobjid
    LEFT JOIN pg_catalog.pg_type e ON e.typarray = y.oid
    CROSS JOIN LATERAL (
        SELECT CASE WHEN COALESCE(e.typrelid, y.typrelid, 0) <> 0 THEN 'pg_catalog.pg_class'::pg_catalog.regclass::oid ELSE d.refclassid END AS class_id,
               CASE WHEN COALESCE(e.typrelid, y.typrelid, 0) <> 0 THEN COALESCE(e.typrelid, y.typrelid) ELSE COALESCE(e.oid, d.refobjid) END AS id
    ) AS needed
    JOIN members n ON n.class_id = needed.class_id AND n.id = needed.id AND n.part IN (0, d.refobjsubid)
    WHERE (n.class_id, n.id, n.part) <> (m.class_id, m.id, m.part)
),
ranked(class_id, id, part, depth) AS (
    SELECT class_id, id, part, 0 FROM members
    UNION
    SELECT e.class_id, e.id, e.part, k.depth + 1
    FROM ranked k JOIN edges e ON (e.of_class_id, e.of_id, e.of_part) = (k.class_id, k.id, k.part)
    WHERE k.depth < 100
),
found(command, schema, name, part, identity, depth) AS (
    SELECT shown.command, n.nspname, c.relname, shown.part::text, CASE WHEN c.oid IS NULL THEN o.identity END, k.depth
    FROM (SELECT class_id, id, part, pg_catalog.max(depth) AS depth FROM ranked GROUP BY class_id, id, part) k
    LEFT JOIN pg_catalog.pg_class own ON k.class_id = 'pg_catalog.pg_class'::pg_catalog.regclass AND own.oid = k.id
    LEFT JOIN pg_catalog.pg_rewrite r ON k.class_id = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = k.id
    LEFT JOIN pg_catalog.pg_policy p ON k.class_id = 'pg_catalog.pg_policy'::pg_catalog.regclass AND p.oid = k.id
    LEFT JOIN pg_catalog.pg_trigger g ON k.class_id = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND g.oid = k.id
    LEFT JOIN pg_catalog.pg_attrdef f ON k.class_id = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND f.oid = k.id
    LEFT JOIN pg_catalog.pg_constraint q ON k.class_id = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND q.oid = k.id
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = COALESCE(own.oid, f.adrelid) AND a.attnum = COALESCE(f.adnum, k.part) AND a.attnum > 0
    LEFT JOIN pg_catalog.pg_type y ON y.oid = q.contypid
    LEFT JOIN pg_catalog.pg_class c ON c.oid = COALESCE(own.oid, r.ev_class, p.polrelid, g.tgrelid, f.adrelid, NULLIF(q.conrelid, 0))
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(k.class_id, k.id, k.part) AS o
    CROSS JOIN LATERAL (
        SELECT CASE
                   WHEN k.part > 0 AND own.relkind = 'c' THEN 'DROP ATTRIBUTE'
                   WHEN k.part > 0 THEN 'DROP COLUMN'
                   WHEN own.relkind = 'v' THEN 'DROP VIEW'
                   WHEN own.relkind = 'm' THEN 'DROP MATERIALIZED VIEW'
                   WHEN own.relkind IN ('i', 'I') THEN 'DROP INDEX'
                   WHEN own.relkind = 'c' THEN 'DROP TYPE'
                   WHEN r.oid IS NOT NULL THEN 'DROP RULE'
                   WHEN p.oid IS NOT NULL THEN 'DROP POLICY'
                   WHEN g.oid IS NOT NULL AND NOT g.tgisinternal THEN 'DROP TRIGGER'
                   WHEN f.oid IS NOT NULL AND a.attgenerated <> '' THEN 'DROP EXPRESSION'
                   WHEN f.oid IS NOT NULL THEN 'DROP DEFAULT'
                   WHEN q.conrelid <> 0 THEN 'DROP CONSTRAINT'
                   WHEN q.contypid <> 0 THEN 'DROP DOMAIN CONSTRAINT'
                   WHEN k.class_id = 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass THEN 'DROP STATISTICS'
                   WHEN k.class_id IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_type'::pg_catalog.regclass,
                                       'pg_catalog.pg_operator'::pg_catalog.regclass, 'pg_catalog.pg_cast'::pg_catalog.regclass,
                                       'pg_catalog.pg_opclass'::pg_catalog.regclass, 'pg_catalog.pg_opfamily'::pg_catalog.regclass)
                   THEN 'DROP ' || pg_catalog.upper(o.type) END AS command,
               COALESCE(a.attname, r.rulename, p.polname, g.tgname, q.conname) AS part
    ) AS shown
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = COALESCE(c.relnamespace, y.typnamespace)
    WHERE shown.command IS NOT NULL
)
SELECT pg_catalog.json_agg(pg_catalog.json_build_object('command', command, 'schema', COALESCE(schema, ''), 'name', COALESCE(name, ''),
                                                        'part', part, 'identity', identity)
       ORDER BY depth DESC, command, schema, name, part, identity)::text
FROM found
HAVING pg_catalog.count(*) > 0
