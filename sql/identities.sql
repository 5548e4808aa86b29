-- How old rows are identified in the tables with the OIDs $1, and what publication $2 sends of them: one JSON object
-- for each table, followed by one for each leaf of a partitioned table. Read by session::describe into catalog::replica_identity, PostgreSQL 14
-- to 18. Columns of catalogs
-- that older majors lack are reached through to_jsonb, where they are simply absent.
WITH member (root, id) AS (
    SELECT wanted.id, wanted.id FROM unnest($1::pg_catalog.oid[]) AS wanted (id)
    UNION
    SELECT wanted.id, tree.relid FROM unnest($1::pg_catalog.oid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        WITH RECURSIVE tree (relid) AS (
            SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = wanted.id AND r.relkind = 'p'
            UNION ALL SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending)
        SELECT tree.relid, l.relkind <> 'p' AS isleaf FROM tree JOIN pg_catalog.pg_class l ON l.oid = tree.relid) AS tree
    WHERE tree.isleaf
),
-- RelationGetIndexList: what can be an identity. Looked up table by table, by pg_index's own index.
usable (id, table_id, name, primary_key, chosen, immediate, columns) AS NOT MATERIALIZED (
    SELECT i.indexrelid, i.indrelid, c.relname, i.indisprimary, i.indisreplident, i.indimmediate,
           pg_catalog.array_agg(a.attname::pg_catalog.text ORDER BY k.place)
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indisunique AND i.indisvalid AND i.indislive AND i.indpred IS NULL AND k.place <= i.indnkeyatts
    GROUP BY i.indexrelid, i.indrelid, c.relname, i.indisprimary, i.indisreplident, i.indimmediate, i.indnkeyatts
    HAVING pg_catalog.count(*) = i.indnkeyatts AND pg_catalog.bool_and(a.attnotnull)
)
SELECT pg_catalog.jsonb_build_object(
    'root', member.root::pg_catalog.int8,
    'name', pg_catalog.jsonb_build_object('schema', n.nspname, 'name', c.relname),
    'kind', c.relkind,
    'replica_identity', c.relreplident,
    'key', (SELECT u.columns FROM usable u WHERE u.table_id = c.oid AND u.immediate
        AND CASE c.relreplident WHEN 'd' THEN u.primary_key WHEN 'i' THEN u.chosen ELSE false END LIMIT 1),
    'usable', (SELECT pg_catalog.jsonb_build_object('index', u.name, 'columns', u.columns)
        FROM usable u WHERE u.table_id = c.oid AND u.immediate
        ORDER BY u.primary_key DESC, pg_catalog.cardinality(u.columns), u.name LIMIT 1),
    'deferrable_key', (SELECT u.columns FROM usable u WHERE u.table_id = c.oid AND u.primary_key AND NOT u.immediate LIMIT 1),
    'has_primary_key', EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
    'columns', attributes.names, 'stored', attributes.stored, 'computed', attributes.computed,
    -- What the publication says of the table itself.
    'listed', (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY a.attnum)
        FROM pg_catalog.regexp_matches(pg_catalog.to_jsonb(r) ->> 'prattrs', '\d+', 'g') AS listed (number)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = listed.number[1]::pg_catalog.int2),
    -- Var nodes of the filter's tree.
    'filtered_by', COALESCE((SELECT pg_catalog.jsonb_agg(DISTINCT a.attname)
        FROM pg_catalog.regexp_matches(pg_catalog.to_jsonb(r) ->> 'prqual', ':varattno (\d+)', 'g') AS listed (number)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = listed.number[1]::pg_catalog.int2), '[]')
)::pg_catalog.text
FROM member
JOIN pg_catalog.pg_class c ON c.oid = member.id
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT COALESCE(pg_catalog.array_agg(a.attname::pg_catalog.text), '{}'),
           COALESCE(pg_catalog.array_agg(a.attname::pg_catalog.text) FILTER (WHERE a.attgenerated = 's'), '{}'),
           COALESCE(pg_catalog.array_agg(a.attname::pg_catalog.text) FILTER (WHERE a.attgenerated = 'v'), '{}')
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) AS attributes (names, stored, computed)
LEFT JOIN pg_catalog.pg_publication_rel r ON r.prrelid = member.id AND member.id = member.root
    AND r.prpubid = (SELECT p.oid FROM pg_catalog.pg_publication p WHERE p.pubname = $2::pg_catalog.text)
ORDER BY member.root, member.id <> member.root, n.nspname, c.relname
