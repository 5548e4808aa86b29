-- The types with the OIDs $1 and every type that they are made of, one JSON object a type.
-- Read by session::describe into catalog::schema::TypeDefinition, on both ends, PostgreSQL 14 to 18.
WITH RECURSIVE used (id) AS (
    SELECT pg_catalog.unnest($1::pg_catalog.oid[])
    UNION
    SELECT part.id
    FROM used
    JOIN pg_catalog.pg_type t ON t.oid = used.id
    CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typbasetype <> 0
        UNION ALL SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
    ) AS part (id)
)
SELECT pg_catalog.jsonb_build_object(
    'id', t.oid::pg_catalog.int8,
    'schema', n.nspname,
    'name', t.typname,
    'kind', t.typtype,
    'category', t.typcategory,
    'base', NULLIF(t.typbasetype, 0)::pg_catalog.int8,
    'base_modifier', t.typtypmod,
    -- Of a true array: int2vector and oidvector are types of their own.
    'element', CASE WHEN t.typsubscript::pg_catalog.oid = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
        AND t.oid = (SELECT e.typarray FROM pg_catalog.pg_type e WHERE e.oid = t.typelem)
        THEN t.typelem::pg_catalog.int8 END,
    'subtype', (SELECT r.rngsubtype::pg_catalog.int8 FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)),
    -- interval has infinities from 17 on, which look like finite values before.
    'binary_form', CASE WHEN t.oid = 'pg_catalog.interval'::pg_catalog.regtype
        AND pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 170000 THEN 1 ELSE 0 END,
    -- "char" escapes bytes beyond ASCII from 15 on.
    'text_form', CASE WHEN t.oid = 'pg_catalog."char"'::pg_catalog.regtype
        AND pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 150000 THEN 1 ELSE 0 END,
    'array', NULLIF(t.typarray, 0)::pg_catalog.int8,
    'delimiter', t.typdelim,
    'not_null', t.typnotnull,
    'not_null_name', (SELECT k.conname FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'n'),
    'default', CASE WHEN t.typtype = 'd' THEN pg_catalog.pg_get_expr(t.typdefaultbin, 0) END,
    -- A domain's own; none where it is its base type's.
    'collation', (SELECT pg_catalog.jsonb_build_object('schema', ln.nspname, 'name', l.collname)
        FROM pg_catalog.pg_type b, pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace
        WHERE t.typtype = 'd' AND b.oid = t.typbasetype AND l.oid = t.typcollation AND t.typcollation <> b.typcollation),
    'nondeterministic', (SELECT pg_catalog.jsonb_build_object('schema', ln.nspname, 'name', l.collname)
        FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace
        WHERE NOT l.collisdeterministic AND l.oid = COALESCE(
            (SELECT r.rngcollation FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)), t.typcollation)),
    'has_binary', t.typsend <> 0 AND t.typreceive <> 0,
    -- An enum may have no label, and a composite type no attribute.
    'labels', CASE WHEN t.typtype = 'e' THEN (
        SELECT COALESCE(pg_catalog.jsonb_agg(e.enumlabel ORDER BY e.enumsortorder), '[]')
        FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid) END,
    'attributes', CASE WHEN t.typtype = 'c' THEN (
        SELECT COALESCE(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'name', a.attname, 'type_id', a.atttypid::pg_catalog.int8, 'type_modifier', a.atttypmod,
            'collation', CASE WHEN a.attcollation <> y.typcollation AND a.attcollation <> 0 THEN
                pg_catalog.jsonb_build_object('schema', ln.nspname, 'name', l.collname) END,
            'nondeterministic', CASE WHEN NOT l.collisdeterministic THEN
                pg_catalog.jsonb_build_object('schema', ln.nspname, 'name', l.collname) END) ORDER BY a.attnum), '[]')
        FROM pg_catalog.pg_attribute a
        JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
        LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
        LEFT JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace
        WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) END,
    'checks', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'name', k.conname, 'validated', k.convalidated, 'expression', pg_catalog.pg_get_expr(k.conbin, 0)) ORDER BY k.conname)
        FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'),
    'equality', (
        SELECT pg_catalog.jsonb_build_object('schema', opn.nspname, 'name', op.oprname)
        FROM pg_catalog.pg_opclass oc
        JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopmethod = oc.opcmethod AND ao.amopstrategy = 3
            AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
        JOIN pg_catalog.pg_operator op ON op.oid = ao.amopopr
        JOIN pg_catalog.pg_namespace opn ON opn.oid = op.oprnamespace
        WHERE oc.opcintype = t.oid AND oc.opcmethod = 403 AND oc.opcdefault),
    'extension', extension.name,
    'extension_version', extension.version
)::pg_catalog.text
FROM used
JOIN pg_catalog.pg_type t ON t.oid = used.id
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN LATERAL (
    SELECT x.extname, x.extversion FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
    WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid AND d.deptype = 'e'
      AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass LIMIT 1) AS extension (name, version) ON true
