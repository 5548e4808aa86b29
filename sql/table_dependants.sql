-- What keeps PostgreSQL from changing a table's columns, as one JSON array of what takes it away. No row: nothing does.
--
-- Columns that hold its row type, however deep (find_composite_type_dependencies in tablecmds.c), and views, rules, policies, triggers and
-- functions with a body in SQL that name its columns (RememberAllDependentForRebuilding there): whoever may use the schema creates a view of a
-- table without any privilege on it. Tried on 14, 15 and 18.
--
-- $1, $2 schema and name of the table. Asked once such a statement was refused.
WITH RECURSIVE target(id) AS (
    SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
),
-- Views over views have to go first.
views(id, depth) AS (
    SELECT r.ev_class, 1
    FROM target t
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = t.id
        AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.rulename = '_RETURN'
    WHERE d.refobjsubid > 0
    UNION
    SELECT r.ev_class, v.depth + 1
    FROM views v
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = v.id
        AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.rulename = '_RETURN' AND r.ev_class <> v.id
    WHERE v.depth < 100
),
depending(command, schema, name, part, place) AS (
    SELECT CASE c.relkind WHEN 'm' THEN 'DROP MATERIALIZED VIEW' ELSE 'DROP VIEW' END, n.nspname, c.relname, NULL::text, -pg_catalog.max(v.depth)
    FROM views v JOIN pg_catalog.pg_class c ON c.oid = v.id JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    GROUP BY c.relkind, n.nspname, c.relname
    UNION ALL
    SELECT DISTINCT found.command, n.nspname, c.relname, found.part::text, 1
    FROM target t
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = t.id AND d.refobjsubid > 0
    CROSS JOIN LATERAL (
        SELECT 'DROP RULE' AS command, r.rulename AS part, r.ev_class AS relation FROM pg_catalog.pg_rewrite r
        WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid AND r.rulename <> '_RETURN'
        UNION ALL SELECT 'DROP POLICY', p.polname, p.polrelid FROM pg_catalog.pg_policy p
        WHERE d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND p.oid = d.objid
        UNION ALL SELECT 'DROP TRIGGER', g.tgname, g.tgrelid FROM pg_catalog.pg_trigger g
        WHERE d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND g.oid = d.objid AND NOT g.tgisinternal
    ) AS found
    JOIN pg_catalog.pg_class c ON c.oid = found.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    SELECT DISTINCT 'DROP ROUTINE', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid), 2
    FROM target t
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = t.id AND d.refobjsubid > 0
        AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
    JOIN pg_catalog.pg_proc p ON p.oid = d.objid JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
),
holding(id) AS (
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
),
columns(command, schema, name, part, place) AS (
    SELECT CASE c.relkind WHEN 'm' THEN 'DROP MATERIALIZED VIEW' ELSE 'DROP COLUMN' END, n.nspname, c.relname,
           CASE WHEN c.relkind <> 'm' THEN a.attname::text END, 0
    FROM holding h
    -- What is inherited goes with the parent's.
    JOIN pg_catalog.pg_attribute a ON a.atttypid = h.id AND NOT a.attisdropped AND a.attinhcount = 0
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'm')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
)
SELECT pg_catalog.json_agg(pg_catalog.json_build_object('command', command, 'schema', schema, 'name', name, 'part', part)
       ORDER BY place, schema, name, part)::text
FROM (SELECT * FROM depending UNION SELECT * FROM columns) AS found
HAVING pg_catalog.count(*) > 0
