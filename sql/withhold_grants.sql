
-- What ALTER DEFAULT PRIVILEGES of our role grants on schema headwater and on what was just made in it is taken back before it is
-- committed: nobody else may write the bookkeeping, attach a trigger to it, refer to it by a foreign key, or create a function that
-- would be found in place of ours. USAGE of the schema, SELECT, and EXECUTE of the functions, which act with the caller's rights or
-- only read, stay as they were granted. Runs in the transaction of the script before it.
DO $withhold$
DECLARE
    revoke text;
BEGIN
    FOR revoke IN
        SELECT pg_catalog.format('REVOKE %s ON %s %s FROM %s CASCADE', g.privilege, g.kind, g.name,
                                 CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(g.grantee)) END)
        FROM (
            SELECT 'SCHEMA' AS kind, 'headwater' AS name, n.nspowner AS owner, a.grantee, a.privilege_type AS privilege
            FROM pg_catalog.pg_namespace n CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) a
            WHERE n.nspname = 'headwater' AND a.privilege_type <> 'USAGE'
            UNION ALL
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, pg_catalog.format('headwater.%I', c.relname), c.relowner,
                   a.grantee, a.privilege_type
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
            WHERE n.nspname = 'headwater' AND a.privilege_type <> 'SELECT') AS g
        WHERE g.grantee <> g.owner AND pg_catalog.pg_has_role(g.owner, 'USAGE')
    LOOP
        EXECUTE revoke;
    END LOOP;
END
$withhold$;
