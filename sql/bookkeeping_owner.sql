-- The owners of schema headwater and of what is in it, and who else may change it. No row: there is no such schema.
--
-- Continues sql/trusted_roles.sql. The schema's owner can replace what is in it, and so have code run with our rights. So can
-- a role with TRIGGER on one of its tables, with CREATE on the schema, or with REFERENCES where triggers follow a foreign
-- key's actions. A role that may write one of its tables can falsify the position.
, bookkeeping AS (
    SELECT oid, nspowner, nspacl FROM pg_catalog.pg_namespace WHERE nspname = 'headwater'
), objects(rank, owner, kind, name) AS (
    SELECT 1, nspowner, 'SCHEMA', 'headwater' FROM bookkeeping
    UNION ALL
    SELECT 2, c.relowner,
           CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                          WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END,
           pg_catalog.format('headwater.%I', c.relname)
    FROM pg_catalog.pg_class c JOIN bookkeeping b ON b.oid = c.relnamespace
    -- A sequence of a column goes with its table.
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
       OR c.relkind = 'S' AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                                          WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                                            AND d.deptype IN ('a', 'i'))
    UNION ALL
    SELECT 3, p.proowner, 'ROUTINE',
           pg_catalog.format('headwater.%I(%s)', p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid))
    FROM pg_catalog.pg_proc p JOIN bookkeeping b ON b.oid = p.pronamespace
), acls(rank, kind, name, part, owner, acl, kept) AS (
    -- What an application needs to wait for a position, and a monitor to read, is kept.
    SELECT 1, 'SCHEMA', 'headwater', NULL, nspowner, nspacl, 'USAGE' FROM bookkeeping
    UNION ALL
    SELECT 2, CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.relname, NULL, c.relowner, c.relacl, 'SELECT'
    FROM pg_catalog.pg_class c JOIN bookkeeping b ON b.oid = c.relnamespace
    UNION ALL
    SELECT 3, 'TABLE', c.relname, a.attname, c.relowner, a.attacl, 'SELECT'
    FROM pg_catalog.pg_class c JOIN bookkeeping b ON b.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped AND a.attacl IS NOT NULL
), granted AS (
    SELECT o.rank, o.kind, o.name, o.part, a.grantee, a.grantor, o.owner,
           pg_catalog.array_agg(a.privilege_type ORDER BY a.privilege_type) AS privileges
    FROM acls o CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a
    WHERE a.privilege_type <> o.kept AND a.grantee <> o.owner AND a.grantee NOT IN (SELECT oid FROM trusted)
    GROUP BY 1, 2, 3, 4, 5, 6, 7
), triggers AS (
    -- headwater has none there; of those that a role with TRIGGER may have made, nothing tells who made them.
    SELECT c.relname, t.tgname
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN bookkeeping b ON b.oid = c.relnamespace
    WHERE NOT t.tgisinternal
      AND EXISTS (SELECT FROM granted g WHERE g.kind = 'TABLE' AND g.name = c.relname AND 'TRIGGER' = ANY (g.privileges))
)
SELECT pg_catalog.pg_get_userbyid(b.nspowner)::text,
       -- Those whose owner is not trusted: the first of them, in words, and whose it is.
       (SELECT pg_catalog.lower(o.kind) || ' ' || o.name FROM objects o
        WHERE o.owner NOT IN (SELECT oid FROM trusted) ORDER BY o.rank, o.name LIMIT 1),
       (SELECT pg_catalog.pg_get_userbyid(o.owner)::text FROM objects o
        WHERE o.owner NOT IN (SELECT oid FROM trusted) ORDER BY o.rank, o.name LIMIT 1),
       -- Where there is no bookkeeping in it yet, only the owner can make it.
       pg_catalog.has_schema_privilege(b.oid, 'USAGE')
           AND COALESCE((SELECT pg_catalog.bool_and(pg_catalog.has_table_privilege(c.oid, 'SELECT'))
                         FROM pg_catalog.pg_class c WHERE c.relnamespace = b.oid AND c.relname IN ('stream', 'position', 'tables')),
                        pg_catalog.pg_has_role(b.nspowner, 'USAGE')),
       (SELECT pg_catalog.count(*) = 2 FROM pg_catalog.pg_class c
        WHERE c.relnamespace = b.oid AND c.relname IN ('stream', 'position')),
       (SELECT pg_catalog.string_agg(pg_catalog.format('ALTER %s %s OWNER TO %I;', o.kind, o.name, current_user), E'\n' ORDER BY o.rank, o.name)
        FROM objects o WHERE o.owner <> (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)),
       current_user::text,
       (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                   'kind', g.kind, 'name', g.name, 'column', g.part, 'privileges', g.privileges,
                   'grantee', CASE WHEN g.grantee <> 0 THEN pg_catalog.pg_get_userbyid(g.grantee) END,
                   'grantor', CASE WHEN g.grantor <> g.owner THEN pg_catalog.pg_get_userbyid(g.grantor) END)
               ORDER BY g.rank, g.name, g.part, g.grantee, g.grantor)::text FROM granted g),
       (SELECT pg_catalog.json_agg(pg_catalog.json_build_object('table', t.relname, 'trigger', t.tgname)
                                   ORDER BY t.relname, t.tgname)::text FROM triggers t)
FROM bookkeeping b
