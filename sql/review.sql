-- What was created from the source's definitions and depends on something that it may not depend on: one row a finding.
-- Asked by destination::review before what was created is used or committed, PostgreSQL 14 to 18.
--
-- $1: the objects, as JSON: tables [{schema, name, columns, indexes}], where null for columns and indexes is all of them,
-- and types [{schema, name}]. $2: the functions of pg_catalog that expressions may call.
--
-- Objects that came with the server are pinned and leave no trace in pg_depend, so functions are also read off the stored
-- expressions themselves (":funcid 870"; ":opfuncid" is the function behind an operator).
WITH RECURSIVE
wanted_tables (id, namespace, columns, indexes) AS (
    SELECT c.oid, c.relnamespace, w.columns, w.indexes
    FROM pg_catalog.jsonb_to_recordset($1::pg_catalog.text::pg_catalog.jsonb -> 'tables')
        AS w (schema pg_catalog.text, name pg_catalog.text, columns pg_catalog.jsonb, indexes pg_catalog.jsonb)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
),
wanted_types (id) AS (
    SELECT t.oid
    FROM pg_catalog.jsonb_to_recordset($1::pg_catalog.text::pg_catalog.jsonb -> 'types')
        AS w (schema pg_catalog.text, name pg_catalog.text)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
    JOIN pg_catalog.pg_type t ON t.typnamespace = n.oid AND t.typname = w.name
),
-- The types that columns and types are made of: each was resolved by its name before anything was created.
known_types (id) AS (
    SELECT a.atttypid FROM wanted_tables w JOIN pg_catalog.pg_attribute a ON a.attrelid = w.id AND a.attnum > 0
    UNION
    SELECT w.id FROM wanted_types w
    UNION
    SELECT part.id
    FROM known_types k
    JOIN pg_catalog.pg_type t ON t.oid = k.id
    CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typbasetype <> 0
        UNION ALL SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL SELECT t.typarray WHERE t.typarray <> 0
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
    ) AS part (id)
),
defaults (id, expression, draws) AS (
    SELECT d.oid, d.adbin::pg_catalog.text, a.attgenerated = ''
    FROM wanted_tables w
    JOIN pg_catalog.pg_attrdef d ON d.adrelid = w.id
    JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE w.columns IS NULL OR w.columns OPERATOR(pg_catalog.?) a.attname::pg_catalog.text
),
indexes (id, expression) AS (
    SELECT i.indexrelid, pg_catalog.concat_ws(' ', i.indexprs::pg_catalog.text, i.indpred::pg_catalog.text)
    FROM wanted_tables w
    JOIN pg_catalog.pg_index i ON i.indrelid = w.id
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE w.indexes IS NULL OR w.indexes OPERATOR(pg_catalog.?) c.relname::pg_catalog.text
),
constraints (id, kind, expression) AS (
    SELECT k.oid, k.contype, k.conbin::pg_catalog.text
    FROM wanted_tables w
    JOIN pg_catalog.pg_constraint k ON k.conrelid = w.id
    WHERE w.columns IS NULL
    UNION ALL
    SELECT k.oid, k.contype, k.conbin::pg_catalog.text
    FROM wanted_types w
    JOIN pg_catalog.pg_constraint k ON k.contypid = w.id
),
-- Everything that was created; of a column its number, otherwise 0.
created (class, id, part) AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, w.id, 0 FROM wanted_tables w WHERE w.columns IS NULL
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.id, 0 FROM indexes i
    UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.id, 0 FROM defaults d
    -- On 14 a generated column itself depends on what its expression names (StoreAttrDefault in heap.c).
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, a.attrelid, a.attnum
    FROM wanted_tables w
    JOIN pg_catalog.pg_attribute a ON a.attrelid = w.id AND a.attgenerated <> '' AND w.columns OPERATOR(pg_catalog.?) a.attname::pg_catalog.text
    UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.id, 0 FROM constraints k
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, w.id, 0 FROM wanted_types w
),
-- What else they may depend on: sequences of their own.
owned (id) AS (
    SELECT c.oid
    FROM wanted_tables w
    JOIN pg_catalog.pg_depend e ON e.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND e.refobjid = w.id
        AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND e.deptype IN ('a', 'i')
    JOIN pg_catalog.pg_class c ON c.oid = e.objid AND c.relkind = 'S'
)
SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) AS object,
    pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) AS uses
FROM created
JOIN pg_catalog.pg_depend d ON d.classid = created.class AND d.objid = created.id AND (created.part = 0 OR d.objsubid = created.part)
WHERE NOT EXISTS (SELECT FROM created c WHERE c.class = d.refclassid AND c.id = d.refobjid)
  AND CASE d.refclassid::pg_catalog.regclass
      -- Where an object stands, how it is sorted and stored: these hold no code of the source's choice. Operator classes and
      -- access methods are a superuser's, and an index names them or takes its type's default.
      WHEN 'pg_catalog.pg_namespace'::pg_catalog.regclass THEN false
      WHEN 'pg_catalog.pg_collation'::pg_catalog.regclass THEN false
      WHEN 'pg_catalog.pg_am'::pg_catalog.regclass THEN false
      WHEN 'pg_catalog.pg_opclass'::pg_catalog.regclass THEN false
      WHEN 'pg_catalog.pg_opfamily'::pg_catalog.regclass THEN false
      WHEN 'pg_catalog.pg_type'::pg_catalog.regclass THEN d.refobjid NOT IN (SELECT k.id FROM known_types k)
      WHEN 'pg_catalog.pg_ts_config'::pg_catalog.regclass THEN d.refobjid >= 16384
      -- A table that is there already and is only added to, its sequences; of a foreign key the other table and its index.
      WHEN 'pg_catalog.pg_class'::pg_catalog.regclass THEN
          d.refobjid NOT IN (SELECT w.id FROM wanted_tables w)
          AND d.refobjid NOT IN (SELECT o.id FROM owned o)
          AND NOT EXISTS (
              SELECT FROM constraints k JOIN pg_catalog.pg_constraint f ON f.oid = k.id
              WHERE d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.id = d.objid AND f.contype = 'f'
                AND d.refobjid IN (f.confrelid, f.conindid))
          -- The class of a composite type is its type's.
          AND NOT EXISTS (
              SELECT FROM wanted_types w JOIN pg_catalog.pg_type t ON t.oid = w.id
              WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND w.id = d.objid AND d.refobjid = t.typrelid)
      -- By which a foreign key finds its other table's rows: its index's.
      WHEN 'pg_catalog.pg_operator'::pg_catalog.regclass THEN
          d.classid <> 'pg_catalog.pg_constraint'::pg_catalog.regclass
          OR NOT EXISTS (SELECT FROM constraints k WHERE k.id = d.objid AND k.kind = 'f')
      -- A domain prints, sends and analyzes its values as its base type does (typecmds.c: DefineDomain), which an extension may bring.
      WHEN 'pg_catalog.pg_proc'::pg_catalog.regclass THEN NOT EXISTS (
          SELECT FROM wanted_types w
          JOIN pg_catalog.pg_type t ON t.oid = w.id AND t.typtype = 'd'
          JOIN pg_catalog.pg_type base ON base.oid = t.typbasetype
          WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND w.id = d.objid
            AND d.refobjid IN (base.typoutput, base.typsend, base.typanalyze))
      -- The constraint that an index was made for, where only the index is looked at.
      WHEN 'pg_catalog.pg_constraint'::pg_catalog.regclass THEN d.classid <> 'pg_catalog.pg_class'::pg_catalog.regclass
      ELSE true END
UNION
SELECT pg_catalog.pg_describe_object(e.class, e.id, 0), pg_catalog.pg_describe_object('pg_catalog.pg_proc'::pg_catalog.regclass, called.id, 0)
FROM (
    SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass::pg_catalog.oid, d.id, d.expression, d.draws FROM defaults d
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.id, i.expression, false FROM indexes i
    UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.id, k.expression, false FROM constraints k
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, w.id, t.typdefaultbin::pg_catalog.text, false
        FROM wanted_types w JOIN pg_catalog.pg_type t ON t.oid = w.id AND t.typdefaultbin IS NOT NULL
) AS e (class, id, expression, draws)
CROSS JOIN LATERAL pg_catalog.regexp_matches(e.expression, ':(?:op)?funcid ([0-9]+)', 'g') AS found (oids)
CROSS JOIN LATERAL (SELECT found.oids[1]::pg_catalog.oid) AS called (id)
WHERE called.id <> ALL ($2::pg_catalog.oid[])
  -- A default draws from a sequence of the table's own: any other would be a finding above.
  AND NOT (e.draws AND called.id = 'pg_catalog.nextval(pg_catalog.regclass)'::pg_catalog.regprocedure)
ORDER BY 1, 2
