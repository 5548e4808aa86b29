-- What tells whether a table of the source is still what it was: one row for each of the tables with the OIDs $1, its OID, the
-- digest of its facts and, with $3, the facts as one JSON object. $2 is the publication.
-- Read by session::fingerprints into catalog::fingerprint::Fingerprint, PostgreSQL 14 to 18.
--
-- Servers in FIPS mode can compute the digest, too. Its parsed form identifies an expression, since renaming a column does not
-- change that; printing it would take a lock on the table on 17 and later.
-- One pass over each catalog, joined by hash or by index, however many tables there are: no subquery runs once per table. The
-- query takes no lock on a table, so it can run at any time. Arrays instead of objects keep the answer small: their places are
-- the fields of the structs in catalog::fingerprint.
WITH RECURSIVE wanted (id) AS MATERIALIZED (
    SELECT DISTINCT pg_catalog.unnest($1::pg_catalog.oid[])
),
-- A partitioned table's rows are in the leaves of its tree.
member (root, id, attached, attached_by) AS (
    SELECT w.id, w.id, false, 0::pg_catalog.int8 FROM wanted w
    UNION ALL
    -- A table that was created as a partition has brought no rows: see describe_tables.sql.
    SELECT m.root, h.inhrelid, h.xmin <> s.xmin OR h.xmax <> '0'::pg_catalog.xid OR s.xmax <> '0'::pg_catalog.xid
        OR h.cmin::pg_catalog.text::pg_catalog.int8 - s.cmin::pg_catalog.text::pg_catalog.int8 > 4
        OR NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = h.inhrelid AND a.attnum > 0 AND a.xmin = s.xmin AND a.xmax = '0'::pg_catalog.xid
              AND a.cmin::pg_catalog.text::pg_catalog.int8 < h.cmin::pg_catalog.text::pg_catalog.int8),
        h.xmin::pg_catalog.text::pg_catalog.int8
    FROM member m
    JOIN pg_catalog.pg_class c ON c.oid = m.id AND c.relkind = 'p'
    JOIN pg_catalog.pg_inherits h ON h.inhparent = m.id
    JOIN pg_catalog.pg_attribute s ON s.attrelid = h.inhrelid AND s.attnum = -1
),
members (root, facts) AS (
    SELECT m.root, pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
        c.oid::pg_catalog.int8, n.nspname, c.relname, c.relkind, c.relpersistence, c.relfilenode::pg_catalog.int8,
        c.reltoastrelid::pg_catalog.int8, c.xmin::pg_catalog.text::pg_catalog.int8, c.relreplident, m.attached, m.attached_by) ORDER BY c.oid)
    FROM member m
    JOIN pg_catalog.pg_class c ON c.oid = m.id
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    GROUP BY m.root
),
columns (root, facts) AS (
    SELECT a.attrelid, pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
        a.attnum, a.attname, a.atttypid::pg_catalog.int8, a.atttypmod, a.attcollation::pg_catalog.int8, a.attnotnull,
        a.attidentity, a.attgenerated, pg_catalog.hashtextextended(d.adbin::pg_catalog.text COLLATE "C", 0),
        a.atthasmissing, a.xmin::pg_catalog.text::pg_catalog.int8) ORDER BY a.attnum)
    FROM wanted w
    JOIN pg_catalog.pg_attribute a ON a.attrelid = w.id AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated <> ''
    GROUP BY a.attrelid
),
-- The keys of the leaves, too: they identify the rows in the stream.
keys (root, facts) AS (
    SELECT m.root, pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
        i.indexrelid::pg_catalog.int8, i.indrelid::pg_catalog.int8, c.relname, i.indkey::pg_catalog.text, i.indisprimary,
        i.indisreplident, i.indimmediate, i.xmin::pg_catalog.text::pg_catalog.int8) ORDER BY i.indexrelid)
    FROM member m
    JOIN pg_catalog.pg_index i ON i.indrelid = m.id AND i.indisunique AND i.indisvalid AND i.indislive
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    GROUP BY m.root
),
-- Those that are indexes stand there, and NOT NULL stands with its column.
constraints (root, facts) AS (
    SELECT k.conrelid, pg_catalog.jsonb_agg(
        pg_catalog.jsonb_build_array(k.oid::pg_catalog.int8, k.conname) ORDER BY k.oid)
    FROM wanted w
    JOIN pg_catalog.pg_constraint k ON k.conrelid = w.id AND k.contype IN ('c', 'f', 'x')
    GROUP BY k.conrelid
),
-- What else describe_tables.sql says of columns: sequences that they own, and NOT NULL that is not valid yet, from 18 on. It concerns
-- no row, so it is in the digest alone.
owned (root, facts) AS (
    SELECT d.refobjid, pg_catalog.jsonb_agg(
        pg_catalog.jsonb_build_array(d.refobjsubid, d.objid::pg_catalog.int8) ORDER BY d.refobjsubid, d.objid)
    FROM wanted w
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = w.id
        AND d.refobjsubid > 0 AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i')
    JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'
    GROUP BY d.refobjid
),
not_valid (root, facts) AS (
    SELECT k.conrelid, pg_catalog.jsonb_agg(k.oid::pg_catalog.int8 ORDER BY k.oid)
    FROM wanted w
    JOIN pg_catalog.pg_constraint k ON k.conrelid = w.id AND k.contype = 'n' AND NOT k.convalidated
    GROUP BY k.conrelid
),
-- Types that are not built in, and those that they are made of.
used (root, id) AS (
    SELECT DISTINCT w.id, a.atttypid
    FROM wanted w
    JOIN pg_catalog.pg_attribute a ON a.attrelid = w.id AND a.attnum > 0 AND NOT a.attisdropped
    WHERE a.atttypid::pg_catalog.int8 >= 16384
    UNION
    SELECT u.root, part.id
    FROM used u
    JOIN pg_catalog.pg_type t ON t.oid = u.id
    CROSS JOIN LATERAL (
        SELECT t.typbasetype
        UNION ALL SELECT t.typelem
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.typtype IN ('r', 'm') AND t.oid IN (r.rngtypid, r.rngmultitypid)
    ) AS part (id)
    WHERE part.id::pg_catalog.int8 >= 16384
),
used_once (id) AS MATERIALIZED (SELECT DISTINCT u.id FROM used u),
labels (type_id, facts) AS (
    SELECT e.enumtypid, pg_catalog.jsonb_agg(
        pg_catalog.jsonb_build_array(e.oid::pg_catalog.int8, e.enumlabel) ORDER BY e.enumsortorder)
    FROM used_once u JOIN pg_catalog.pg_enum e ON e.enumtypid = u.id
    GROUP BY e.enumtypid
),
attributes (type_id, facts) AS (
    SELECT t.oid, pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
        a.attnum, a.attname, a.atttypid::pg_catalog.int8, a.atttypmod) ORDER BY a.attnum)
    FROM used_once u
    JOIN pg_catalog.pg_type t ON t.oid = u.id AND t.typtype = 'c'
    JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY t.oid
),
types (root, facts) AS (
    SELECT u.root, pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
        t.oid::pg_catalog.int8, n.nspname, t.typname, t.typtype, t.typbasetype::pg_catalog.int8, t.typtypmod,
        COALESCE(l.facts, '[]'), COALESCE(a.facts, '[]')) ORDER BY t.oid)
    FROM used u
    JOIN pg_catalog.pg_type t ON t.oid = u.id
    JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    LEFT JOIN labels l ON l.type_id = t.oid
    LEFT JOIN attributes a ON a.type_id = t.oid
    GROUP BY u.root
),
control (system_identifier, catalog_version_no) AS MATERIALIZED (
    SELECT s.system_identifier, s.catalog_version_no FROM pg_catalog.pg_control_system() s
),
facts (id, text, more) AS MATERIALIZED (
    SELECT w.id, pg_catalog.jsonb_build_object(
        -- A restore or an upgrade rewrites the catalogs, and their xmin then says nothing about the time before.
        'server', (SELECT pg_catalog.jsonb_build_array(k.system_identifier::pg_catalog.text, k.catalog_version_no) FROM control k),
        'members', m.facts,
        'columns', COALESCE(c.facts, '[]'),
        'keys', COALESCE(k.facts, '[]'),
        'constraints', COALESCE(o.facts, '[]'),
        'types', COALESCE(t.facts, '[]'),
        -- Another one once the table has left the publication and come back; none where that names no tables.
        'published', (p.oid)::pg_catalog.int8,
        -- Another one once what the publication sends was altered, and perhaps altered back.
        'publication', (SELECT pg_catalog.jsonb_build_array(
            b.xmin::pg_catalog.text::pg_catalog.int8, b.oid::pg_catalog.int8, b.pubowner::pg_catalog.int8)
            FROM pg_catalog.pg_publication b WHERE b.pubname = $2::pg_catalog.text)
    )::pg_catalog.text,
        COALESCE(s.facts::pg_catalog.text, '') || COALESCE(v.facts::pg_catalog.text, '')
    FROM wanted w
    JOIN members m ON m.root = w.id
    LEFT JOIN columns c ON c.root = w.id
    LEFT JOIN keys k ON k.root = w.id
    LEFT JOIN constraints o ON o.root = w.id
    LEFT JOIN types t ON t.root = w.id
    LEFT JOIN owned s ON s.root = w.id
    LEFT JOIN not_valid v ON v.root = w.id
    LEFT JOIN (
        SELECT r.oid, r.prrelid FROM pg_catalog.pg_publication_rel r
        JOIN pg_catalog.pg_publication named ON named.oid = r.prpubid AND named.pubname = $2::pg_catalog.text
    ) AS p ON p.prrelid = w.id
)
SELECT f.id, pg_catalog.encode(pg_catalog.sha256(pg_catalog.textsend(f.text || f.more)), 'hex'), CASE WHEN $3::pg_catalog.bool THEN f.text END FROM facts f
