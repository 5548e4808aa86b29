-- The sequences that columns of the tables named by $1 (schemas) and $2 (names) own (serial, identity, OWNED BY), one JSON
-- object a sequence. Read by session::sequences into catalog::sequences::OwnedSequence, on both ends, PostgreSQL 14 to 18.
SELECT pg_catalog.jsonb_build_object(
    'table', pg_catalog.jsonb_build_object('schema', n.nspname, 'name', c.relname),
    'column', a.attname,
    'name', pg_catalog.jsonb_build_object('schema', sn.nspname, 'name', s.relname),
    'ascending', q.seqincrement > 0,
    'data_type', pg_catalog.format_type(q.seqtypid, NULL),
    'least', q.seqmin,
    'most', q.seqmax,
    'readable', pg_catalog.has_sequence_privilege(s.oid, 'SELECT') AND pg_catalog.has_schema_privilege(sn.oid, 'USAGE'),
    'movable', pg_catalog.has_sequence_privilege(s.oid, 'UPDATE'),
    'alterable', pg_catalog.pg_has_role(s.relowner, 'USAGE'),
    'role', current_user
)::pg_catalog.text
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS wanted (schema_name, table_name)
JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
-- a: OWNED BY and serial; i: identity.
JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = c.oid
    AND d.refobjsubid = a.attnum AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i')
JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid
ORDER BY n.nspname, c.relname, a.attnum, sn.nspname, s.relname
