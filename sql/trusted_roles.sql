-- The roles whose code may run with our rights, as the first part of a statement that another file continues.
--
-- $1 names of roles whose code is accepted. Roles that may act as us, and superusers, can do all that we can without our help.
WITH RECURSIVE ourselves AS (
    -- A role that the database sets for its sessions is the choice of the database's owner, and what runs as it can leave it for the role
    -- that has logged in. What is set for that role itself was set by a role that may act as it.
    SELECT r.oid, r.rolsuper FROM pg_catalog.pg_roles r
    WHERE r.rolname = session_user
       OR r.rolname = current_user AND COALESCE((
           SELECT s.setrole <> 0
           FROM pg_catalog.pg_db_role_setting s
           LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
           LEFT JOIN pg_catalog.pg_roles u ON u.oid = s.setrole
           WHERE COALESCE(d.datname, pg_catalog.current_database()) = pg_catalog.current_database()
             AND COALESCE(u.rolname, session_user) = session_user
             AND EXISTS (SELECT FROM pg_catalog.unnest(s.setconfig) AS setting WHERE setting LIKE 'role=%')
           -- As the server looks (postinit.c: process_settings).
           ORDER BY s.setrole <> 0 DESC, s.setdatabase <> 0 DESC LIMIT 1), true)
), powerful AS (
    -- A role that can act as one of these can do all that we can without our help. The last two become superusers by the files they write.
    SELECT oid FROM ourselves
    UNION
    SELECT r.oid FROM pg_catalog.pg_roles r
    WHERE r.rolsuper OR r.rolname = ANY ($1::text[]) OR r.rolname IN ('pg_execute_server_program', 'pg_write_server_files')
), acting AS (
    SELECT r.oid FROM pg_catalog.pg_roles r
    WHERE EXISTS (SELECT FROM powerful p
                  WHERE pg_catalog.pg_has_role(r.oid, p.oid,
                        CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000
                             THEN 'USAGE, SET, MEMBER WITH ADMIN OPTION' ELSE 'MEMBER' END))
       -- Before 16, CREATEROLE grants itself any role but a superuser's.
       OR r.rolcreaterole AND pg_catalog.current_setting('server_version_num')::int < 160000
          AND NOT EXISTS (SELECT FROM ourselves o WHERE o.rolsuper)
), trusted AS (
    SELECT oid FROM acting
    UNION ALL
    -- Nobody but the database's owner can act as pg_database_owner.
    SELECT 6171 FROM pg_catalog.pg_database d JOIN acting a ON a.oid = d.datdba WHERE d.datname = pg_catalog.current_database()
)
