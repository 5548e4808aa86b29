-- What belongs to the tables named by $1 (schemas) and $2 (names) and is not carried by replication, one JSON object a thing: what it is, its
-- name, the SQL that makes it as it is on this server, and where it can be taken away the SQL that does. $3: publications that are headwater's.
-- Asked by session::not_carried at both ends, PostgreSQL 14 to 18; the difference is what an operator reads. Nothing runs this SQL.
-- Lines that begin with --15 are for 15 and later. Set-wise: each class is one join against the tables. Names come out qualified, because sessions have an empty search_path.
WITH wanted AS (
    SELECT c.oid AS id, c.relkind AS kind, n.nspname AS schema, c.relname AS name, c.relowner AS owner, c.relacl AS acl,
        c.reloptions AS options, c.reltoastrelid AS toast, c.relreplident AS identity, c.relrowsecurity AS secured,
        c.relforcerowsecurity AS forced, c.oid::pg_catalog.regclass::pg_catalog.text AS sql
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS w (schema_name, table_name)
        ON n.nspname = w.schema_name AND c.relname = w.table_name
    WHERE c.relkind IN ('r', 'p')
),
-- Views that read them, through others as well; a rule's dependencies are those of its view.
views (id) AS (
    WITH RECURSIVE reading (id) AS (
        SELECT r.ev_class FROM wanted w
        JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = w.id
            AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
        JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.rulename = '_RETURN'
        UNION
        SELECT r.ev_class FROM reading v
        JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = v.id
            AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
        JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.rulename = '_RETURN' AND r.ev_class <> v.id
    )
    SELECT id FROM reading
),
-- Those that mark schema changes for headwater belong to the source alone.
event_triggers AS (
    SELECT e.oid AS id, e.* FROM pg_catalog.pg_event_trigger e
    JOIN pg_catalog.pg_proc f ON f.oid = e.evtfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace AND n.nspname <> 'headwater_marks'
),
parts (class, id) AS (
    SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass, g.oid FROM wanted w JOIN pg_catalog.pg_trigger g ON g.tgrelid = w.id
    UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.oid FROM wanted w JOIN pg_catalog.pg_attrdef d ON d.adrelid = w.id
    -- Partition keys; and on 14 a generated column itself depends on what its expression names (StoreAttrDefault in heap.c).
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, w.id FROM wanted w
    UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid FROM wanted w JOIN pg_catalog.pg_constraint k ON k.conrelid = w.id
    UNION ALL SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid FROM wanted w JOIN pg_catalog.pg_policy p ON p.polrelid = w.id
    UNION ALL SELECT 'pg_catalog.pg_rewrite'::pg_catalog.regclass, r.oid FROM wanted w JOIN pg_catalog.pg_rewrite r ON r.ev_class = w.id
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid FROM wanted w JOIN pg_catalog.pg_index i ON i.indrelid = w.id
    UNION ALL SELECT 'pg_catalog.pg_rewrite'::pg_catalog.regclass, r.oid FROM views v JOIN pg_catalog.pg_rewrite r ON r.ev_class = v.id
    UNION ALL SELECT 'pg_catalog.pg_event_trigger'::pg_catalog.regclass, e.id FROM event_triggers e
),
found (class, owning, name, makes, undoes) AS (
    SELECT 'function', NULL::pg_catalog.text, f.oid::pg_catalog.regprocedure::pg_catalog.text, pg_catalog.pg_get_functiondef(f.oid), NULL::pg_catalog.text
    FROM (SELECT DISTINCT d.refobjid AS id FROM parts
          JOIN pg_catalog.pg_depend d ON d.classid = parts.class AND d.objid = parts.id
              AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass) AS used
    JOIN pg_catalog.pg_proc f ON f.oid = used.id AND f.prokind IN ('f', 'w')
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend x WHERE x.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                          AND x.objid = f.oid AND x.deptype = 'e')
    UNION ALL
    SELECT 'trigger', w.sql, g.tgname, pg_catalog.pg_get_triggerdef(g.oid) || ';' || CASE g.tgenabled
            WHEN 'D' THEN pg_catalog.format(E'\nALTER TABLE %s DISABLE TRIGGER %I;', w.sql, g.tgname)
            WHEN 'R' THEN pg_catalog.format(E'\nALTER TABLE %s ENABLE REPLICA TRIGGER %I;', w.sql, g.tgname)
            WHEN 'A' THEN pg_catalog.format(E'\nALTER TABLE %s ENABLE ALWAYS TRIGGER %I;', w.sql, g.tgname) ELSE '' END,
        pg_catalog.format('DROP TRIGGER %I ON %s;', g.tgname, w.sql)
    FROM wanted w JOIN pg_catalog.pg_trigger g ON g.tgrelid = w.id AND NOT g.tgisinternal AND g.tgparentid = 0
    UNION ALL
    SELECT 'rule', w.sql, r.rulename, pg_catalog.pg_get_ruledef(r.oid) || CASE r.ev_enabled
            WHEN 'D' THEN pg_catalog.format(E'\nALTER TABLE %s DISABLE RULE %I;', w.sql, r.rulename)
            WHEN 'R' THEN pg_catalog.format(E'\nALTER TABLE %s ENABLE REPLICA RULE %I;', w.sql, r.rulename)
            WHEN 'A' THEN pg_catalog.format(E'\nALTER TABLE %s ENABLE ALWAYS RULE %I;', w.sql, r.rulename) ELSE '' END,
        pg_catalog.format('DROP RULE %I ON %s;', r.rulename, w.sql)
    FROM wanted w JOIN pg_catalog.pg_rewrite r ON r.ev_class = w.id
    UNION ALL
    SELECT 'policy', w.sql, p.polname, pg_catalog.format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', p.polname, w.sql,
            CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
            CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
            (SELECT pg_catalog.string_agg(CASE WHEN r.id = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(r.id)) END, ', '
                                          ORDER BY pg_catalog.pg_get_userbyid(r.id))
             FROM pg_catalog.unnest(p.polroles) AS r (id)))
            || COALESCE(' USING (' || pg_catalog.pg_get_expr(p.polqual, w.id) || ')', '')
            || COALESCE(' WITH CHECK (' || pg_catalog.pg_get_expr(p.polwithcheck, w.id) || ')', '') || ';',
        pg_catalog.format('DROP POLICY %I ON %s;', p.polname, w.sql)
    FROM wanted w JOIN pg_catalog.pg_policy p ON p.polrelid = w.id
    UNION ALL
    SELECT 'row security', w.sql, s.name, pg_catalog.format('ALTER TABLE %s %s;', w.sql, s.setting), NULL
    FROM wanted w CROSS JOIN LATERAL (VALUES (w.secured, 'enabled', 'ENABLE ROW LEVEL SECURITY'),
        (w.forced, 'forced', 'FORCE ROW LEVEL SECURITY')) AS s (is_set, name, setting)
    WHERE s.is_set
    UNION ALL
    SELECT 'view', NULL, v.id::pg_catalog.regclass::pg_catalog.text, pg_catalog.format(E'CREATE %s %s%s AS\n%s',
            CASE c.relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'OR REPLACE VIEW' END, v.id::pg_catalog.regclass,
            ' WITH (' || (SELECT pg_catalog.string_agg(pg_catalog.format('%I = %L', o.option_name, o.option_value), ', ' ORDER BY o.option_name)
                          FROM pg_catalog.pg_options_to_table(c.reloptions) AS o) || ')',
            pg_catalog.pg_get_viewdef(v.id)),
        pg_catalog.format('DROP %s %s;', CASE c.relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END, v.id::pg_catalog.regclass)
    FROM views v JOIN pg_catalog.pg_class c ON c.oid = v.id AND c.relkind IN ('v', 'm')
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend x WHERE x.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                          AND x.objid = v.id AND x.deptype = 'e')
    UNION ALL
    SELECT 'statistics', w.sql, pg_catalog.format('%I.%I', n.nspname, e.stxname), pg_catalog.pg_get_statisticsobjdef(e.oid) || ';'
            || COALESCE((SELECT pg_catalog.format(E'\nALTER STATISTICS %I.%I SET STATISTICS %s;', n.nspname, e.stxname, e.stxstattarget)
                         WHERE e.stxstattarget >= 0), ''),
        pg_catalog.format('DROP STATISTICS %I.%I;', n.nspname, e.stxname)
    FROM wanted w JOIN pg_catalog.pg_statistic_ext e ON e.stxrelid = w.id JOIN pg_catalog.pg_namespace n ON n.oid = e.stxnamespace
    UNION ALL
    SELECT 'storage parameter', w.sql, o.option_name, pg_catalog.format('ALTER TABLE %s SET (%I = %L);', w.sql, o.option_name, o.option_value), NULL
    FROM wanted w CROSS JOIN LATERAL pg_catalog.pg_options_to_table(w.options) AS o
    UNION ALL
    SELECT 'storage parameter', w.sql, 'toast.' || o.option_name, pg_catalog.format('ALTER TABLE %s SET (toast.%I = %L);', w.sql, o.option_name, o.option_value), NULL
    FROM wanted w JOIN pg_catalog.pg_class t ON t.oid = w.toast CROSS JOIN LATERAL pg_catalog.pg_options_to_table(t.reloptions) AS o
    UNION ALL
    SELECT 'partitioning', w.sql, NULL, pg_catalog.format('-- Only when it is created: CREATE TABLE %s (…) PARTITION BY %s;',
        w.sql, pg_catalog.pg_get_partkeydef(w.id)), NULL
    FROM wanted w WHERE w.kind = 'p'
    UNION ALL
    SELECT 'partitioning', w.sql, h.inhrelid::pg_catalog.regclass::pg_catalog.text, pg_catalog.format('CREATE TABLE %s PARTITION OF %s %s%s;',
        h.inhrelid::pg_catalog.regclass, h.inhparent::pg_catalog.regclass, pg_catalog.pg_get_expr(c.relpartbound, c.oid),
        ' PARTITION BY ' || CASE WHEN c.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END), NULL
    FROM wanted w CROSS JOIN LATERAL (
        WITH RECURSIVE tree (relid) AS (
            SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = w.id AND r.relkind = 'p'
            UNION ALL SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending)
        SELECT tree.relid, l.relkind <> 'p' AS isleaf FROM tree JOIN pg_catalog.pg_class l ON l.oid = tree.relid) AS t
    JOIN pg_catalog.pg_inherits h ON h.inhrelid = t.relid JOIN pg_catalog.pg_class c ON c.oid = h.inhrelid
    WHERE w.kind = 'p' AND t.relid <> w.id
    UNION ALL
    SELECT 'inheritance', w.sql, h.inhparent::pg_catalog.regclass::pg_catalog.text,
        pg_catalog.format('ALTER TABLE %s INHERIT %s;', w.sql, h.inhparent::pg_catalog.regclass), NULL
    FROM wanted w JOIN pg_catalog.pg_inherits h ON h.inhrelid = w.id JOIN pg_catalog.pg_class c ON c.oid = w.id AND NOT c.relispartition
    UNION ALL
    SELECT 'owner', w.sql, NULL, pg_catalog.format('ALTER TABLE %s OWNER TO %I;', w.sql, pg_catalog.pg_get_userbyid(w.owner)), NULL FROM wanted w
    UNION ALL
    SELECT 'grant', w.sql, pg_catalog.concat_ws(' ', CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(g.grantee)) END,
            pg_catalog.quote_ident(g.columns), CASE WHEN g.grantable THEN 'grantable' END), pg_catalog.format('GRANT %s ON %s TO %s%s;', g.privileges, w.sql,
            CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(g.grantee)) END,
            CASE WHEN g.grantable THEN ' WITH GRANT OPTION' ELSE '' END), NULL
    FROM wanted w
    CROSS JOIN LATERAL (
        SELECT a.grantee, NULL AS columns, a.is_grantable AS grantable, pg_catalog.string_agg(DISTINCT a.privilege_type, ', ') AS privileges
        FROM pg_catalog.aclexplode(w.acl) AS a WHERE a.grantee <> w.owner GROUP BY a.grantee, a.is_grantable
        UNION ALL
        SELECT a.grantee, c.attname::pg_catalog.text, a.is_grantable,
            pg_catalog.string_agg(DISTINCT pg_catalog.format('%s (%I)', a.privilege_type, c.attname), ', ')
        FROM pg_catalog.pg_attribute c CROSS JOIN LATERAL pg_catalog.aclexplode(c.attacl) AS a
        WHERE c.attrelid = w.id AND NOT c.attisdropped AND a.grantee <> w.owner GROUP BY a.grantee, c.attname, a.is_grantable) AS g
    UNION ALL
    SELECT 'index', w.sql, c.relname, pg_catalog.replace(pg_catalog.pg_get_indexdef(i.indexrelid), ' ON ONLY ' || w.sql || ' USING', ' ON ' || w.sql || ' USING') || ';',
        pg_catalog.format('DROP INDEX %s;', i.indexrelid::pg_catalog.regclass)
    FROM wanted w JOIN pg_catalog.pg_index i ON i.indrelid = w.id JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
    UNION ALL
    SELECT CASE k.contype WHEN 'c' THEN 'check' ELSE 'key' END, w.sql, k.conname,
        pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s;', w.sql, k.conname, pg_catalog.pg_get_constraintdef(k.oid)),
        pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I;', w.sql, k.conname)
    FROM wanted w JOIN pg_catalog.pg_constraint k ON k.conrelid = w.id AND k.contype IN ('c', 'p', 'u', 'x')
    UNION ALL
    SELECT DISTINCT 'check', t.oid::pg_catalog.regtype::pg_catalog.text, k.conname::pg_catalog.text,
        pg_catalog.format('ALTER DOMAIN %s ADD CONSTRAINT %I %s;', t.oid::pg_catalog.regtype, k.conname, pg_catalog.pg_get_constraintdef(k.oid)),
        pg_catalog.format('ALTER DOMAIN %s DROP CONSTRAINT %I;', t.oid::pg_catalog.regtype, k.conname)
    FROM wanted w JOIN pg_catalog.pg_attribute a ON a.attrelid = w.id AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid AND t.typtype = 'd'
    JOIN pg_catalog.pg_constraint k ON k.contypid = t.oid AND k.contype = 'c'
    UNION ALL
    -- The destination's have no actions before the cut-over, which prints them.
    SELECT 'foreign key', w.sql, k.conname, pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s;', w.sql, k.conname, pg_catalog.pg_get_constraintdef(k.oid)), NULL
    FROM wanted w JOIN pg_catalog.pg_constraint k ON k.conrelid = w.id AND k.contype = 'f' AND k.conparentid = 0
    UNION ALL
    -- The default collation, too: the other end may have another one.
    SELECT 'collation', w.sql, a.attname, pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I TYPE %s COLLATE %I.%I;', w.sql, a.attname,
        pg_catalog.format_type(a.atttypid, a.atttypmod), n.nspname, c.collname), NULL
    FROM wanted w JOIN pg_catalog.pg_attribute a ON a.attrelid = w.id AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
    UNION ALL
    SELECT 'default', w.sql, a.attname, pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s;', w.sql, a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid)),
        NULL
    FROM wanted w JOIN pg_catalog.pg_attrdef d ON d.adrelid = w.id
    JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum AND a.attgenerated = ''
    UNION ALL
    SELECT 'comment', w.sql, a.attname, pg_catalog.format('COMMENT ON %s IS %L;',
            CASE WHEN s.objsubid = 0 THEN 'TABLE ' || w.sql ELSE pg_catalog.format('COLUMN %s.%I', w.sql, a.attname) END, s.description), NULL
    FROM wanted w JOIN pg_catalog.pg_description s ON s.objoid = w.id AND s.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = w.id AND a.attnum = s.objsubid AND s.objsubid > 0
    UNION ALL
    SELECT 'comment of a part', w.sql, k.conname, pg_catalog.format('COMMENT ON CONSTRAINT %I ON %s IS %L;', k.conname, w.sql, s.description), NULL
    FROM wanted w JOIN pg_catalog.pg_constraint k ON k.conrelid = w.id
    JOIN pg_catalog.pg_description s ON s.objoid = k.oid AND s.classoid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
    UNION ALL
    SELECT 'comment of a part', w.sql, c.relname, pg_catalog.format('COMMENT ON INDEX %s IS %L;', i.indexrelid::pg_catalog.regclass, s.description), NULL
    FROM wanted w JOIN pg_catalog.pg_index i ON i.indrelid = w.id JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_description s ON s.objoid = c.oid AND s.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass
    UNION ALL
    SELECT 'replica identity', w.sql, NULL, pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY %s;', w.sql, CASE w.identity
            WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' WHEN 'i' THEN COALESCE('USING INDEX ' || (
                SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
                WHERE i.indrelid = w.id AND i.indisreplident), 'NOTHING') ELSE 'DEFAULT' END), NULL
    FROM wanted w
    UNION ALL
    SELECT 'column option', w.sql, pg_catalog.quote_ident(a.attname) || ' ' || s.option, pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET %s;', w.sql, a.attname, s.setting), NULL
    FROM wanted w
    JOIN pg_catalog.pg_attribute a ON a.attrelid = w.id AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    CROSS JOIN LATERAL (VALUES
        ('statistics', CASE WHEN a.attstattarget >= 0 THEN 'STATISTICS ' || a.attstattarget END),
        ('storage', CASE WHEN a.attstorage <> t.typstorage THEN 'STORAGE ' || CASE a.attstorage
            WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END END),
        ('compression', CASE a.attcompression WHEN 'p' THEN 'COMPRESSION pglz' WHEN 'l' THEN 'COMPRESSION lz4' END),
        ('options', '(' || (SELECT pg_catalog.string_agg(pg_catalog.format('%I = %L', o.option_name, o.option_value), ', ' ORDER BY o.option_name)
                            FROM pg_catalog.pg_options_to_table(a.attoptions) AS o) || ')')) AS s (option, setting)
    WHERE s.setting IS NOT NULL
    UNION ALL
    SELECT 'event trigger', NULL, e.evtname, pg_catalog.format('CREATE EVENT TRIGGER %I ON %s%s EXECUTE FUNCTION %s();', e.evtname, e.evtevent,
            ' WHEN TAG IN (' || (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(g.tag), ', ' ORDER BY g.tag) FROM pg_catalog.unnest(e.evttags) AS g (tag)) || ')',
            e.evtfoid::pg_catalog.regproc)
            || CASE e.evtenabled WHEN 'D' THEN pg_catalog.format(E'\nALTER EVENT TRIGGER %I DISABLE;', e.evtname)
                WHEN 'R' THEN pg_catalog.format(E'\nALTER EVENT TRIGGER %I ENABLE REPLICA;', e.evtname)
                WHEN 'A' THEN pg_catalog.format(E'\nALTER EVENT TRIGGER %I ENABLE ALWAYS;', e.evtname) ELSE '' END,
        pg_catalog.format('DROP EVENT TRIGGER %I;', e.evtname)
    FROM event_triggers e
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend x WHERE x.classid = 'pg_catalog.pg_event_trigger'::pg_catalog.regclass
                          AND x.objid = e.id AND x.deptype = 'e')
    UNION ALL
    SELECT 'publication', NULL, p.pubname, pg_catalog.format('CREATE PUBLICATION %I%s WITH (publish = %L, publish_via_partition_root = %s);', p.pubname,
            CASE WHEN p.puballtables THEN ' FOR ALL TABLES' ELSE COALESCE((
                SELECT ' FOR ' || pg_catalog.string_agg(m.member, ', ' ORDER BY m.member) FROM (
                    SELECT 'TABLE ' || r.prrelid::pg_catalog.regclass
                        --15 || COALESCE(' (' || (
                        --15     SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY u.place)
                        --15     FROM pg_catalog.unnest(r.prattrs::pg_catalog.int2[]) WITH ORDINALITY AS u (number, place)
                        --15     JOIN pg_catalog.pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = u.number) || ')', '')
                        --15 || COALESCE(' WHERE ' || pg_catalog.pg_get_expr(r.prqual, r.prrelid), '')
                        AS member
                    FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid
                    --15 UNION ALL SELECT 'TABLES IN SCHEMA ' || pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_publication_namespace s
                    --15 JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid WHERE s.pnpubid = p.oid
                    ) AS m), '') END,
            pg_catalog.concat_ws(', ', CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
                CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END), p.pubviaroot::pg_catalog.text),
        pg_catalog.format('DROP PUBLICATION %I;', p.pubname)
    FROM pg_catalog.pg_publication p WHERE p.pubname <> ALL ($3::pg_catalog.text[])
),
-- What stands on another of its class was made after it. By OIDs: names can be looked up only where the role may use their schemas.
places (class, name, place) AS (
    SELECT 'view', v.id::pg_catalog.regclass::pg_catalog.text, v.id FROM views v
    UNION
    SELECT 'partitioning', t.relid::pg_catalog.regclass::pg_catalog.text, t.relid
    FROM wanted w CROSS JOIN LATERAL (
        WITH RECURSIVE tree (relid) AS (
            SELECT r.oid FROM pg_catalog.pg_class r WHERE r.oid = w.id AND r.relkind = 'p'
            UNION ALL SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending)
        SELECT tree.relid, l.relkind <> 'p' AS isleaf FROM tree JOIN pg_catalog.pg_class l ON l.oid = tree.relid) AS t WHERE w.kind = 'p'
)
SELECT pg_catalog.jsonb_build_object(
    'class', f.class, 'table', f.owning, 'name', f.name, 'makes', f.makes, 'undoes', f.undoes)::pg_catalog.text
FROM found f LEFT JOIN places p ON p.class = f.class AND p.name = f.name
WHERE f.makes IS NOT NULL
ORDER BY f.class, f.owning, p.place NULLS FIRST, f.name
