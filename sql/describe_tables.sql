-- Everything headwater needs to know of the tables named by $1 (schemas) and $2 (names), one JSON object a table.
-- Read by session::describe into catalog::schema::TableDefinition, on both ends, PostgreSQL 14 to 18. Columns of catalogs
-- that older majors lack are reached through to_jsonb, where they are simply absent. Partitions are found in pg_inherits:
-- pg_partition_tree() would lock every one of them, and all tables are asked for at once.
-- OFFSET 0 keeps what is looked up by an OID from being joined: planned for one table, a join reads a whole catalog, and it is
-- carried out for each.
SELECT pg_catalog.jsonb_build_object(
    'id', c.oid::pg_catalog.int8,
    'schema', n.nspname,
    'name', c.relname,
    'kind', c.relkind,
    'owner', pg_catalog.pg_get_userbyid(c.relowner),
    'inserters', COALESCE((
        SELECT pg_catalog.jsonb_agg(DISTINCT r.rolname)
        FROM (SELECT c.relacl AS acl
              UNION ALL SELECT a.attacl FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped) AS granted
        CROSS JOIN LATERAL pg_catalog.aclexplode(granted.acl) AS g
        LEFT JOIN pg_catalog.pg_roles r ON r.oid = g.grantee
        WHERE g.privilege_type = 'INSERT' AND g.grantee <> c.relowner AND (g.grantee = 0 OR r.oid IS NOT NULL)), '[]'),
    'persistence', c.relpersistence,
    'attributes', c.relnatts,
    -- Which files hold the rows: a rewrite gives them others.
    'storage', CASE WHEN c.relkind = 'p'
        THEN (SELECT pg_catalog.md5(pg_catalog.string_agg(l.oid::pg_catalog.text || ' ' || l.relfilenode::pg_catalog.text, ',' ORDER BY l.oid))
              FROM (
                  WITH RECURSIVE tree (relid) AS (
                      SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = c.oid AND r.relkind = 'p'
                      UNION ALL SELECT i.inhrelid FROM tree CROSS JOIN LATERAL (
                          SELECT x.inhrelid FROM pg_catalog.pg_inherits x WHERE x.inhparent = tree.relid AND NOT x.inhdetachpending OFFSET 0) AS i)
                  SELECT tree.relid, l.relkind <> 'p' AS isleaf FROM tree CROSS JOIN LATERAL (
                      SELECT x.relkind FROM pg_catalog.pg_class x WHERE x.oid = tree.relid OFFSET 0) AS l) t CROSS JOIN LATERAL (
                  SELECT x.oid, x.relfilenode FROM pg_catalog.pg_class x WHERE x.oid = t.relid OFFSET 0) AS l WHERE t.isleaf)
        ELSE c.relfilenode::pg_catalog.text END,
    'files', COALESCE((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
            l.oid::pg_catalog.int8, l.relfilenode::pg_catalog.int8, l.reltoastrelid::pg_catalog.int8) ORDER BY l.oid)
        FROM (SELECT c.oid WHERE c.relkind <> 'p'
              UNION ALL SELECT t.relid FROM (
                  WITH RECURSIVE tree (relid) AS (
                      SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = c.oid AND r.relkind = 'p'
                      UNION ALL SELECT i.inhrelid FROM tree CROSS JOIN LATERAL (
                          SELECT x.inhrelid FROM pg_catalog.pg_inherits x WHERE x.inhparent = tree.relid AND NOT x.inhdetachpending OFFSET 0) AS i)
                  SELECT tree.relid, l.relkind <> 'p' AS isleaf FROM tree CROSS JOIN LATERAL (
                      SELECT x.relkind FROM pg_catalog.pg_class x WHERE x.oid = tree.relid OFFSET 0) AS l) t WHERE c.relkind = 'p' AND t.isleaf) AS m (id)
        CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class x WHERE x.oid = m.id OFFSET 0) AS l), '[]'),
    'replica_identity', c.relreplident,
    'row_security', c.relrowsecurity,
    'is_partition', c.relispartition,
    'has_children', EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid),
    'comment', pg_catalog.obj_description(c.oid, 'pg_class'),
    'options', c.reloptions,
    -- As VACUUM and ANALYZE have last counted. The sizes of the files would be exact, and asking for them locks the table and its
    -- partitions: one VACUUM FULL would keep everybody who asks for a description waiting.
    'bytes', (
        SELECT COALESCE(pg_catalog.sum(
            (GREATEST(l.relpages, 0)::pg_catalog.int8 + GREATEST(toast.relpages, 0)) * pg_catalog.current_setting('block_size')::pg_catalog.int8), 0)::pg_catalog.int8
        FROM (SELECT c.oid
              UNION ALL SELECT t.relid FROM (
                  WITH RECURSIVE tree (relid) AS (
                      SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = c.oid AND r.relkind = 'p'
                      UNION ALL SELECT i.inhrelid FROM tree CROSS JOIN LATERAL (
                          SELECT x.inhrelid FROM pg_catalog.pg_inherits x WHERE x.inhparent = tree.relid AND NOT x.inhdetachpending OFFSET 0) AS i)
                  SELECT tree.relid FROM tree) t WHERE t.relid <> c.oid) AS m (id)
        CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class x WHERE x.oid = m.id OFFSET 0) AS l
        LEFT JOIN LATERAL (SELECT * FROM pg_catalog.pg_class x WHERE x.oid = l.reltoastrelid OFFSET 0) AS toast ON true),
    'partitions', CASE WHEN c.relkind = 'p' THEN (
        -- A partition that was created as one has brought no rows. ATTACH is another command than the one that created the
        -- table and its system columns: in another transaction, or later in the same one. It writes every column again, as
        -- it writes the entry of pg_inherits; CREATE TABLE PARTITION OF leaves one at least as it was before that entry (tried
        -- on 14 to 18 with keys, defaults and NOT NULL, from 2 commands between the table and the entry up). A row's cmin
        -- and cmax are one field, so a row that somebody has changed and rolled back (xmax) proves nothing.
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'id', h.inhrelid::pg_catalog.int8,
            'name', (SELECT pg_catalog.jsonb_build_object('schema', ln.nspname, 'name', l.relname)
                FROM pg_catalog.pg_class l JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace WHERE l.oid = h.inhrelid),
            'kind', (SELECT l.relkind FROM pg_catalog.pg_class l WHERE l.oid = h.inhrelid),
            'persistence', (SELECT l.relpersistence FROM pg_catalog.pg_class l WHERE l.oid = h.inhrelid),
            'attached', h.xmin <> s.xmin OR h.xmax <> '0'::pg_catalog.xid OR s.xmax <> '0'::pg_catalog.xid
                OR h.cmin::pg_catalog.text::pg_catalog.int8 - s.cmin::pg_catalog.text::pg_catalog.int8 > 4
                OR NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                    WHERE a.attrelid = h.inhrelid AND a.attnum > 0 AND a.xmin = s.xmin AND a.xmax = '0'::pg_catalog.xid
                      AND a.cmin::pg_catalog.text::pg_catalog.int8 < h.cmin::pg_catalog.text::pg_catalog.int8)
        ) ORDER BY h.inhrelid)
        FROM (
            WITH RECURSIVE tree (relid) AS (
                SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = c.oid AND r.relkind = 'p'
                UNION ALL SELECT i.inhrelid FROM tree CROSS JOIN LATERAL (
                    SELECT x.inhrelid FROM pg_catalog.pg_inherits x WHERE x.inhparent = tree.relid AND NOT x.inhdetachpending OFFSET 0) AS i)
            SELECT tree.relid, l.relkind <> 'p' AS isleaf FROM tree CROSS JOIN LATERAL (
                SELECT x.relkind FROM pg_catalog.pg_class x WHERE x.oid = tree.relid OFFSET 0) AS l) t
        CROSS JOIN LATERAL (SELECT x.*, x.xmin, x.xmax, x.cmin FROM pg_catalog.pg_inherits x WHERE x.inhrelid = t.relid OFFSET 0) AS h
        CROSS JOIN LATERAL (
            SELECT x.xmin, x.xmax, x.cmin FROM pg_catalog.pg_attribute x WHERE x.attrelid = t.relid AND x.attnum = -1 OFFSET 0) AS s) END,
    'columns', COALESCE((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'number', a.attnum,
            'name', a.attname,
            'type_id', a.atttypid::pg_catalog.int8,
            'type_modifier', a.atttypmod,
            'not_null', a.attnotnull,
            'not_null_constraint', (
                SELECT pg_catalog.jsonb_build_object('name', nn.conname, 'validated', nn.convalidated, 'no_inherit', nn.connoinherit)
                FROM pg_catalog.pg_constraint nn
                WHERE nn.conrelid = c.oid AND nn.contype = 'n' AND nn.conkey = ARRAY[a.attnum]),
            'identity', NULLIF(a.attidentity, ''),
            'generated', NULLIF(a.attgenerated, ''),
            'default', pg_catalog.pg_get_expr(d.adbin, d.adrelid),
            -- For a partitioned table: the partitions' value, if all of them have the same.
            'missing_value', CASE WHEN a.atthasmissing THEN a.attmissingval::pg_catalog.text
                WHEN c.relkind = 'p' THEN (
                    SELECT CASE WHEN pg_catalog.count(DISTINCT l.attmissingval::pg_catalog.text) = 1
                                 AND pg_catalog.bool_and(l.atthasmissing) THEN pg_catalog.min(l.attmissingval::pg_catalog.text) END
                    FROM (
                        WITH RECURSIVE tree (relid) AS (
                            SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = c.oid AND r.relkind = 'p'
                            UNION ALL SELECT i.inhrelid FROM tree CROSS JOIN LATERAL (
                                SELECT x.inhrelid FROM pg_catalog.pg_inherits x WHERE x.inhparent = tree.relid AND NOT x.inhdetachpending OFFSET 0) AS i)
                        SELECT tree.relid, l.relkind <> 'p' AS isleaf FROM tree CROSS JOIN LATERAL (
                            SELECT x.relkind FROM pg_catalog.pg_class x WHERE x.oid = tree.relid OFFSET 0) AS l) p
                    CROSS JOIN LATERAL (
                        SELECT * FROM pg_catalog.pg_attribute x
                        WHERE x.attrelid = p.relid AND x.attname = a.attname AND NOT x.attisdropped OFFSET 0) AS l
                    WHERE p.isleaf) END,
            'collation', CASE WHEN a.attcollation <> t.typcollation AND a.attcollation <> 0 THEN
                pg_catalog.jsonb_build_object('schema', cn.nspname, 'name', co.collname) END,
            'nondeterministic', CASE WHEN NOT co.collisdeterministic THEN
                pg_catalog.jsonb_build_object('schema', cn.nspname, 'name', co.collname) END,
            'sequence', own.name,
            'sequence_options', own.options,
            'comment', pg_catalog.col_description(c.oid, a.attnum)
        ) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
        JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
        LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
        -- Not pg_get_serial_sequence: it looks at the catalog of now, and raises an error where the column has another name by then.
        LEFT JOIN LATERAL (
            SELECT pg_catalog.quote_ident(sn.nspname) || '.' || pg_catalog.quote_ident(sc.relname) AS name,
                   pg_catalog.jsonb_build_object(
                       'type', pg_catalog.format_type(s.seqtypid, NULL),
                       'start', s.seqstart,
                       'increment', s.seqincrement,
                       'least', s.seqmin,
                       'most', s.seqmax,
                       'cache', s.seqcache,
                       'cycles', s.seqcycle) AS options
            FROM pg_catalog.pg_depend e
            JOIN pg_catalog.pg_sequence s ON s.seqrelid = e.objid
            JOIN pg_catalog.pg_class sc ON sc.oid = s.seqrelid
            JOIN pg_catalog.pg_namespace sn ON sn.oid = sc.relnamespace
            WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
              AND e.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
              AND e.refobjid = c.oid AND e.refobjsubid = a.attnum AND e.deptype IN ('a', 'i')
            -- A column may own several.
            ORDER BY e.objid LIMIT 1) AS own ON true
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
    'indexes', COALESCE((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'id', i.indexrelid::pg_catalog.int8,
            'name', ic.relname,
            'method', am.amname,
            'unique', i.indisunique,
            'primary', i.indisprimary,
            'exclusion', i.indisexclusion,
            'replica_identity', i.indisreplident,
            'immediate', i.indimmediate,
            'valid', i.indisvalid,
            'nulls_not_distinct', COALESCE((pg_catalog.to_jsonb(i) ->> 'indnullsnotdistinct')::pg_catalog.bool, false),
            'predicate', pg_catalog.pg_get_expr(i.indpred, i.indrelid),
            'options', ic.reloptions,
            'parts', (
                SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                    'column', ia.attname,
                    'expression', CASE WHEN k.attnum = 0 THEN pg_catalog.pg_get_indexdef(i.indexrelid, k.place::pg_catalog.int4, false) END,
                    'included', k.place > i.indnkeyatts,
                    'descending', COALESCE((i.indoption)[k.place - 1] & 1 = 1, false),
                    'nulls_first', COALESCE((i.indoption)[k.place - 1] & 2 = 2, false),
                    'operator_class', CASE WHEN k.place <= i.indnkeyatts AND oc.oid IS DISTINCT FROM class.id THEN
                        pg_catalog.jsonb_build_object('schema', ocn.nspname, 'name', oc.opcname) END,
                    'collation', CASE WHEN k.place <= i.indnkeyatts AND (i.indcollation)[k.place - 1] <> 0
                                       AND (i.indcollation)[k.place - 1] <> COALESCE(ia.attcollation, 0) THEN
                        pg_catalog.jsonb_build_object('schema', icon.nspname, 'name', ico.collname) END,
                    'nondeterministic', CASE WHEN k.place <= i.indnkeyatts AND NOT ico.collisdeterministic THEN
                        pg_catalog.jsonb_build_object('schema', icon.nspname, 'name', ico.collname) END,
                    'equality', CASE WHEN op.oid IS NOT NULL THEN pg_catalog.jsonb_build_object('schema', opn.nspname, 'name', op.oprname) END,
                    'compared_as', CASE WHEN oc.oid IS DISTINCT FROM class.id AND ao.amopopr IS DISTINCT FROM (
                        SELECT same.amopopr FROM pg_catalog.pg_opclass d
                        JOIN pg_catalog.pg_amop same ON same.amopfamily = d.opcfamily AND same.amopmethod = 403 AND same.amopstrategy = 3
                            AND same.amoplefttype = d.opcintype AND same.amoprighttype = d.opcintype
                        WHERE d.oid = class.id) THEN (
                        SELECT pg_catalog.jsonb_build_object('schema', yn.nspname, 'name', y.typname)
                        FROM pg_catalog.pg_type y JOIN pg_catalog.pg_namespace yn ON yn.oid = y.typnamespace
                        WHERE y.oid = oc.opcintype) END,
                    'excludes_by', CASE WHEN i.indisexclusion AND k.place <= i.indnkeyatts THEN (
                        SELECT xo.oprname FROM pg_catalog.pg_constraint x
                        JOIN pg_catalog.pg_operator xo ON xo.oid = x.conexclop[k.place]
                        WHERE x.conindid = i.indexrelid AND x.contype = 'x') END
                ) ORDER BY k.place)
                FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (attnum, place)
                LEFT JOIN pg_catalog.pg_attribute ia ON ia.attrelid = i.indrelid AND ia.attnum = k.attnum
                -- OFFSET 0: looked up by their OIDs, one at a time. Joined, each index would read all collations.
                LEFT JOIN LATERAL (
                    SELECT * FROM pg_catalog.pg_opclass x WHERE x.oid = (i.indclass)[k.place - 1] OFFSET 0) AS oc ON true
                LEFT JOIN pg_catalog.pg_namespace ocn ON ocn.oid = oc.opcnamespace
                LEFT JOIN LATERAL (
                    SELECT * FROM pg_catalog.pg_collation x WHERE x.oid = (i.indcollation)[k.place - 1] OFFSET 0) AS ico ON true
                LEFT JOIN pg_catalog.pg_namespace icon ON icon.oid = ico.collnamespace
                LEFT JOIN LATERAL (
                    SELECT x.amopopr FROM pg_catalog.pg_amop x
                    WHERE x.amopfamily = oc.opcfamily AND x.amopmethod = 403 AND x.amopstrategy = 3
                      AND x.amoplefttype = oc.opcintype AND x.amoprighttype = oc.opcintype OFFSET 0) AS ao ON true
                LEFT JOIN pg_catalog.pg_operator op ON op.oid = ao.amopopr
                LEFT JOIN pg_catalog.pg_namespace opn ON opn.oid = op.oprnamespace
                -- The class that the server takes where none is named (GetDefaultOpClass of indexcmds.c): the default one of the
                -- type, or of a type that it is taken for as it is, of a preferred one first. What an index of another method
                -- stores of an expression is not the expression's type.
                CROSS JOIN LATERAL (
                    SELECT CASE WHEN oc.opcdefault AND (oc.opcintype = ia.atttypid OR k.attnum = 0 AND am.amname <> 'btree')
                        THEN oc.oid
                        ELSE COALESCE((
                            WITH RECURSIVE base (id) AS (
                                SELECT COALESCE(ia.atttypid, (
                                    SELECT xa.atttypid FROM pg_catalog.pg_attribute xa
                                    WHERE xa.attrelid = i.indexrelid AND xa.attnum = k.place))
                                UNION ALL SELECT bt.typbasetype FROM base JOIN pg_catalog.pg_type bt ON bt.oid = base.id WHERE bt.typtype = 'd')
                            SELECT d.oid
                            FROM base
                            JOIN pg_catalog.pg_type bt ON bt.oid = base.id AND bt.typtype <> 'd'
                            JOIN pg_catalog.pg_opclass d ON d.opcmethod = ic.relam AND d.opcdefault
                            JOIN pg_catalog.pg_type dt ON dt.oid = d.opcintype
                            WHERE d.opcintype = bt.oid
                               OR dt.typnamespace = 'pg_catalog'::pg_catalog.regnamespace AND dt.typname = CASE
                                    WHEN bt.typtype = 'c' THEN 'record' WHEN bt.typtype = 'e' THEN 'anyenum' WHEN bt.typtype = 'r' THEN 'anyrange'
                                    WHEN bt.typtype = 'm' THEN 'anymultirange' WHEN bt.typcategory = 'A' THEN 'anyarray' END
                               OR EXISTS (
                                    SELECT FROM pg_catalog.pg_cast x
                                    WHERE x.castsource = bt.oid AND x.casttarget = d.opcintype AND x.castmethod = 'b' AND x.castcontext = 'i')
                            ORDER BY d.opcintype = bt.oid DESC, dt.typispreferred DESC LIMIT 1),
                            -- An index over an expression of type name stores cstring.
                            CASE WHEN oc.opcdefault AND k.attnum = 0 THEN oc.oid END) END AS id) AS class)
        ) ORDER BY i.indisprimary DESC, ic.relname)
        FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
        JOIN pg_catalog.pg_am am ON am.oid = ic.relam
        WHERE i.indrelid = c.oid AND i.indislive), '[]'),
    'constraints', COALESCE((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'name', k.conname,
            'kind', k.contype,
            'index', NULLIF(k.conindid, 0)::pg_catalog.int8,
            'deferrable', k.condeferrable,
            'deferred', k.condeferred,
            'validated', k.convalidated,
            'enforced', COALESCE((pg_catalog.to_jsonb(k) ->> 'conenforced')::pg_catalog.bool, true),
            'no_inherit', k.connoinherit,
            'period', COALESCE((pg_catalog.to_jsonb(k) ->> 'conperiod')::pg_catalog.bool, false),
            'expression', CASE WHEN k.contype = 'c' THEN pg_catalog.pg_get_expr(k.conbin, k.conrelid) END,
            'columns', (SELECT pg_catalog.jsonb_agg(ka.attname ORDER BY u.place)
                FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u (attnum, place)
                JOIN pg_catalog.pg_attribute ka ON ka.attrelid = k.conrelid AND ka.attnum = u.attnum),
            'references', CASE WHEN k.contype = 'f' THEN pg_catalog.jsonb_build_object(
                'table_id', k.confrelid::pg_catalog.int8,
                'schema', fn.nspname, 'name', fc.relname,
                'on_delete', k.confdeltype, 'on_update', k.confupdtype, 'match', k.confmatchtype,
                'columns', (SELECT pg_catalog.jsonb_agg(fa.attname ORDER BY u.place)
                    FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u (attnum, place)
                    JOIN pg_catalog.pg_attribute fa ON fa.attrelid = k.confrelid AND fa.attnum = u.attnum)) END
        ) ORDER BY k.contype, k.conname)
        FROM pg_catalog.pg_constraint k
        LEFT JOIN pg_catalog.pg_class fc ON fc.oid = k.confrelid
        LEFT JOIN pg_catalog.pg_namespace fn ON fn.oid = fc.relnamespace
        WHERE k.conrelid = c.oid AND k.contype IN ('c', 'f', 'p', 'u', 'x') AND k.conparentid = 0), '[]'),
    'referenced_by', COALESCE((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'name', k.conname, 'schema', rn.nspname, 'table', rc.relname, 'index', NULLIF(k.conindid, 0)::pg_catalog.int8,
            'on_delete', k.confdeltype, 'on_update', k.confupdtype) ORDER BY rn.nspname, rc.relname, k.conname)
        -- pg_constraint has no index by the table that is referred to; a foreign key depends on the columns that it refers to
        -- (CreateConstraintEntry of pg_constraint.c). OFFSET 0: looked up by their OIDs, one at a time.
        FROM (
            SELECT DISTINCT d.objid FROM pg_catalog.pg_depend d
            WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = c.oid
              AND d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass OFFSET 0) AS d
        CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint x WHERE x.oid = d.objid OFFSET 0) AS k
        JOIN pg_catalog.pg_class rc ON rc.oid = k.conrelid
        JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
        WHERE k.confrelid = c.oid AND k.contype = 'f' AND k.conparentid = 0), '[]'),
    'triggers', COALESCE((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('name', g.tgname, 'enabled', g.tgenabled) ORDER BY g.tgname)
        FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal), '[]')
)::pg_catalog.text
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS wanted (schema_name, table_name) -- its form takes no schema
    ON n.nspname = wanted.schema_name AND c.relname = wanted.table_name
WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')
ORDER BY n.nspname, c.relname
