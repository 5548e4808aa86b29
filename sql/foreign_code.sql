-- Code that runs with our rights when we write into the tables named or run DDL, and that somebody else can change.
--
-- Continues sql/trusted_roles.sql. $2, $3 schemas and names of the tables; $4, $5, $6 schema, table and name of each column that we
-- give a value; $7 whether foreign keys and ordinary triggers act on those tables: headwater's own are also written by sessions whose
-- role is origin, whatever it may set; $8, $9 schemas and names of types that
-- tables yet to be created are made of, where they exist; $10 whether roles that could attach code are named as well; $11, $12 schemas and
-- names of collations of columns and indexes yet to be created, where they exist. Parameters may be filled in as literals, for a session that
-- takes none.
--
-- A function of a role that is not trusted is foreign wherever it is called: its body can be replaced at any time. A function of a trusted role that is called by
-- an object of one that is not is foreign unless nothing can be done by it, whatever its arguments: it is immutable, or on the list
-- below. Trigger functions of trusted roles are made to be called by others' tables. One statement, however many tables there are.
, harmless AS (
    -- Neither immutable nor able to do anything but return a value. Not here, among others: what reads or runs SQL that it is given
    -- (query_to_xml, ts_stat, ts_rewrite), what calls casts or constraints of others' types (to_json, json_populate_record,
    -- domain_in), what acts (set_config, setval, lo_*, pg_notify, pg_advisory_*, pg_terminate_backend), what shows that only we may see
    -- (current_setting: with pg_monitor also the passwords in primary_conninfo).
    SELECT p.oid FROM pg_catalog.pg_proc p
    WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.proname IN (
        'nextval', 'currval', 'lastval', 'gen_random_uuid', 'uuidv4', 'uuidv7', 'random', 'random_normal',
        'now', 'transaction_timestamp', 'statement_timestamp', 'clock_timestamp', 'timeofday',
        'age', 'date', 'date_part', 'extract', 'date_trunc', 'timezone', 'time', 'timetz', 'timestamp', 'timestamptz',
        'timestamptz_pl_interval', 'timestamptz_mi_interval', 'interval_pl_timestamptz', 'overlaps',
        'date_lt_timestamptz', 'date_le_timestamptz', 'date_eq_timestamptz', 'date_gt_timestamptz', 'date_ge_timestamptz',
        'date_ne_timestamptz', 'date_cmp_timestamptz', 'timestamptz_lt_date', 'timestamptz_le_date', 'timestamptz_eq_date',
        'timestamptz_gt_date', 'timestamptz_ge_date', 'timestamptz_ne_date', 'timestamptz_cmp_date',
        'timestamp_lt_timestamptz', 'timestamp_le_timestamptz', 'timestamp_eq_timestamptz', 'timestamp_gt_timestamptz',
        'timestamp_ge_timestamptz', 'timestamp_ne_timestamptz', 'timestamp_cmp_timestamptz', 'timestamptz_lt_timestamp',
        'timestamptz_le_timestamp', 'timestamptz_eq_timestamp', 'timestamptz_gt_timestamp', 'timestamptz_ge_timestamp',
        'timestamptz_ne_timestamp', 'timestamptz_cmp_timestamp',
        'to_char', 'to_date', 'to_timestamp', 'to_number', 'concat', 'concat_ws', 'format', 'quote_literal', 'quote_nullable',
        'textanycat', 'anytextcat', 'array_to_string', 'money', 'numeric', 'pg_typeof', 'pg_column_size',
        'to_tsvector', 'to_tsquery', 'plainto_tsquery', 'phraseto_tsquery', 'websearch_to_tsquery', 'get_current_ts_config',
        'enum_first', 'enum_last', 'enum_range', 'regclass', 'current_database', 'current_schema', 'version',
        'pg_backend_pid', 'pg_trigger_depth', 'pg_postmaster_start_time', 'inet_client_addr', 'inet_client_port', 'inet_server_addr', 'inet_server_port',
        'txid_current', 'txid_current_if_assigned', 'pg_current_xact_id', 'pg_current_xact_id_if_assigned', 'host', 'family')
    UNION
    -- The same of extensions.
    SELECT p.oid FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype = 'e'
    WHERE p.proname IN ('uuid_generate_v1', 'uuid_generate_v1mc', 'uuid_generate_v4', 'gen_random_uuid', 'gen_random_bytes', 'unaccent')
), reachable(id) AS (
    -- Roles that somebody who is not trusted can act as: not those that cannot log in and have trusted members alone.
    SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolcanlogin AND r.oid NOT IN (SELECT oid FROM trusted)
    UNION
    SELECT m.roleid FROM reachable a
    JOIN (SELECT member, roleid FROM pg_catalog.pg_auth_members
          UNION ALL SELECT datdba, 6171 FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) m ON m.member = a.id
), followed AS MATERIALIZED (
    SELECT c.oid, false AS own
    FROM ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS named(schema_name, table_name)
    JOIN pg_catalog.pg_namespace n ON n.nspname = named.schema_name
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = named.table_name AND c.relkind IN ('r', 'p')
    UNION
    -- What else headwater writes: its bookkeeping, and staging of its own.
    SELECT c.oid, true
    FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
    WHERE n.nspname = 'headwater'
       OR pg_catalog.starts_with(n.nspname, 'headwater_staging_') AND n.nspowner IN (SELECT oid FROM trusted)
), reaches(parent, child, cascades) AS MATERIALIZED (
    SELECT inhparent, inhrelid, false FROM pg_catalog.pg_inherits
    UNION ALL
    -- What a foreign key carries on is done as the referencing table's owner, and yet in our session: its code can replace our
    -- prepared statements, and the AFTER triggers of it are ours.
    SELECT confrelid, conrelid, true FROM pg_catalog.pg_constraint
    WHERE contype = 'f' AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
), written(id, cascaded, own) AS (
    SELECT oid, false, own FROM followed
    UNION
    SELECT r.child, w.cascaded OR r.cascades, w.own
    FROM written w JOIN reaches r ON r.parent = w.id AND ($7 OR w.own OR NOT r.cascades)
), touched AS MATERIALIZED (
    SELECT c.oid AS id, c.relowner AS owner, c.relkind AS kind, w.cascaded, w.own,
           -- Whose a trigger may be: nothing tells who made it, and a role with TRIGGER may. 0 is PUBLIC. Of headwater's own tables
           -- anybody may have made it: headwater has none there, and a grant may have been revoked since.
           CASE WHEN c.relowner IN (SELECT oid FROM trusted)
                THEN COALESCE((SELECT pg_catalog.min(a.grantee) FROM pg_catalog.aclexplode(c.relacl) a
                               WHERE a.privilege_type = 'TRIGGER' AND a.grantee NOT IN (SELECT oid FROM trusted)),
                              CASE WHEN w.own AND NOT w.cascaded THEN 0 ELSE c.relowner END)
                ELSE c.relowner END AS trigger_owner
    FROM (SELECT id, pg_catalog.bool_and(cascaded) AS cascaded, pg_catalog.bool_or(own) AS own FROM written GROUP BY id) w
    JOIN pg_catalog.pg_class c ON c.oid = w.id
), supplied AS MATERIALIZED (
    SELECT DISTINCT c.oid AS id, given.column_name
    FROM ROWS FROM (pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::text[]))
        AS given(schema_name, table_name, column_name)
    JOIN pg_catalog.pg_namespace n ON n.nspname = given.schema_name
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = given.table_name
), foreign_keys AS MATERIALIZED (
    -- Their checks are planned and run in our session, whichever side we write.
    SELECT c.oid, c.conrelid, c.conname, c.confrelid, c.conkey, c.confkey, c.conpfeqop, c.conppeqop, c.conffeqop,
           c.confdeltype = 'd' OR c.confupdtype = 'd' AS sets_default
    FROM touched t JOIN pg_catalog.pg_constraint c ON c.conrelid = t.id AND c.contype = 'f' WHERE $7 OR t.own
    UNION
    SELECT c.oid, c.conrelid, c.conname, c.confrelid, c.conkey, c.confkey, c.conpfeqop, c.conppeqop, c.conffeqop,
           c.confdeltype = 'd' OR c.confupdtype = 'd'
    FROM touched t JOIN pg_catalog.pg_constraint c ON c.confrelid = t.id AND c.contype = 'f' WHERE $7 OR t.own
), foreign_key_roots(id, root) AS (
    -- Of a constraint that a partition has from its parent, the one that can be dropped.
    SELECT k.oid, k.oid FROM foreign_keys k JOIN touched t ON t.id = k.confrelid
    UNION
    SELECT r.id, c.conparentid FROM foreign_key_roots r JOIN pg_catalog.pg_constraint c ON c.oid = r.root AND c.conparentid <> 0
), checked(id) AS (
    -- What the checks of these read, partitions as well.
    SELECT confrelid FROM foreign_keys
    UNION
    SELECT conrelid FROM foreign_keys
    UNION
    SELECT i.inhrelid FROM checked r JOIN pg_catalog.pg_inherits i ON i.inhparent = r.id
), planned AS MATERIALIZED (
    -- Planning a statement evaluates constants in the expressions of the tables' indexes, statistics and checks.
    SELECT id, owner FROM touched
    UNION
    SELECT c.oid, c.relowner FROM checked r JOIN pg_catalog.pg_class c ON c.oid = r.id
), ancestors(id, of_written) AS (
    -- Tables that these are a partition of: their indexes and foreign keys come to it, and its rows are looked at by their keys.
    SELECT i.inhparent, t.id IS NOT NULL
    FROM planned p JOIN pg_catalog.pg_inherits i ON i.inhrelid = p.id LEFT JOIN touched t ON t.id = p.id AND NOT t.own
    UNION
    SELECT i.inhparent, a.of_written FROM pg_catalog.pg_inherits i JOIN ancestors a ON a.id = i.inhrelid
), partitioned AS MATERIALIZED (
    SELECT p.partrelid, c.relowner, p.partexprs, p.partclass, p.partcollation
    FROM pg_catalog.pg_partitioned_table p JOIN pg_catalog.pg_class c ON c.oid = p.partrelid
    WHERE p.partrelid IN (SELECT id FROM planned) OR p.partrelid IN (SELECT id FROM ancestors)
), foreign_tables AS MATERIALIZED (
    -- Whose a server is chooses at any time where headwater's rows go and as whom it logs in there (host, user mappings for PUBLIC).
    SELECT f.ftrelid AS foreign_table, s.srvname AS server, s.srvowner, w.fdwname AS wrapper, w.fdwowner, w.fdwhandler, w.fdwvalidator
    FROM planned p JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = p.id
    JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
), firing AS MATERIALIZED (
    SELECT t.*, CASE WHEN touched.own THEN 'own trigger' ELSE 'trigger' END AS kind
    FROM pg_catalog.pg_trigger t JOIN touched ON touched.id = t.tgrelid
    WHERE t.tgenabled IN ('A', CASE WHEN $7 THEN 'O' ELSE 'R' END) OR touched.own AND t.tgenabled <> 'D'
), columns AS MATERIALIZED (
    SELECT a.attrelid, a.attnum, a.attname, a.attgenerated, a.atthasdef, a.atttypid, a.attcollation,
           d.conrelid IS NOT NULL
               OR f.oid IS NOT NULL AND a.attgenerated = '' AND a.attidentity = '' AND s.id IS NULL AS defaulted
    FROM touched JOIN pg_catalog.pg_attribute a ON a.attrelid = touched.id
    -- A foreign key that sets defaults evaluates them, whatever has been given.
    LEFT JOIN (SELECT DISTINCT k.conrelid, u.attnum FROM foreign_keys k CROSS JOIN LATERAL pg_catalog.unnest(k.conkey) AS u(attnum)
               WHERE k.sets_default) d ON d.conrelid = a.attrelid AND d.attnum = a.attnum
    LEFT JOIN followed f ON f.oid = a.attrelid
    LEFT JOIN supplied s ON s.id = a.attrelid AND s.column_name = a.attname::text
    WHERE a.attnum > 0 AND NOT a.attisdropped
), table_trees(object_id, kind, name, owner, tree) AS MATERIALIZED (
    SELECT c.conrelid, 'check', c.conname, t.owner, c.conbin::text
    FROM planned t JOIN pg_catalog.pg_constraint c ON c.conrelid = t.id AND c.contype = 'c'
    UNION ALL
    SELECT d.adrelid, CASE WHEN a.attgenerated = '' THEN 'default' ELSE 'generated' END, a.attname, t.owner, d.adbin::text
    FROM columns a JOIN touched t ON t.id = a.attrelid
    JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attgenerated <> '' OR a.defaulted
    UNION ALL
    SELECT i.indrelid, 'index', c.relname, t.owner, COALESCE(i.indexprs::text, '') || COALESCE(i.indpred::text, '')
    FROM planned t JOIN pg_catalog.pg_index i ON i.indrelid = t.id JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
    UNION ALL
    -- Planning a statement evaluates these, too (plancat.c: get_relation_statistics).
    SELECT s.stxrelid, 'statistics', s.stxname, s.stxowner, s.stxexprs::text
    FROM planned t JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = t.id WHERE s.stxexprs IS NOT NULL
    UNION ALL
    SELECT partrelid, 'partition key', '', relowner, partexprs::text FROM partitioned WHERE partexprs IS NOT NULL
    UNION ALL
    SELECT f.tgrelid, f.kind, f.tgname, t.trigger_owner, f.tgqual::text
    FROM firing f JOIN touched t ON t.id = f.tgrelid WHERE f.tgqual IS NOT NULL
), types(id) AS (
    SELECT found.id FROM (
        SELECT atttypid AS id FROM columns
        UNION
        -- Both sides of a foreign key are compared as the type of one of them.
        SELECT a.atttypid FROM foreign_keys k
        JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = ANY (k.confkey)
        UNION
        SELECT a.atttypid FROM foreign_keys k
        JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)
        UNION
        SELECT c.reltype FROM touched t JOIN pg_catalog.pg_class c ON c.oid = t.id
        UNION
        SELECT (pg_catalog.regexp_matches(tree, ':\w*typ\w* (\d+)', 'g'))[1]::oid FROM table_trees
        UNION
        SELECT t.oid FROM ROWS FROM (pg_catalog.unnest($8::text[]), pg_catalog.unnest($9::text[])) AS named(schema_name, type_name)
        JOIN pg_catalog.pg_namespace n ON n.nspname = named.schema_name
        JOIN pg_catalog.pg_type t ON t.typnamespace = n.oid AND t.typname = named.type_name) AS found
    WHERE found.id >= 16384
    UNION
    SELECT inner_type.id
    FROM types JOIN pg_catalog.pg_type t ON t.oid = types.id
    CROSS JOIN LATERAL (
        SELECT t.typelem AS id
        UNION ALL SELECT t.typbasetype
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
                  WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.typtype = 'r' AND r.rngtypid = t.oid
        UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE t.typtype = 'm' AND r.rngmultitypid = t.oid
        UNION ALL SELECT (pg_catalog.regexp_matches(c.conbin::text, ':\w*typ\w* (\d+)', 'g'))[1]::oid
                  FROM pg_catalog.pg_constraint c WHERE t.typtype = 'd' AND c.contypid = t.oid AND c.conbin IS NOT NULL
    ) AS inner_type
    -- The first object that is not the server's own.
    WHERE inner_type.id >= 16384
), trees AS MATERIALIZED (
    SELECT * FROM table_trees
    UNION ALL
    SELECT t.oid, 'domain', c.conname, t.typowner, c.conbin::text
    FROM types JOIN pg_catalog.pg_type t ON t.oid = types.id AND t.typtype = 'd'
    JOIN pg_catalog.pg_constraint c ON c.contypid = t.oid AND c.conbin IS NOT NULL
    UNION ALL
    SELECT t.oid, 'domain default', '', t.typowner, t.typdefaultbin::text
    FROM columns a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid AND t.typdefaultbin IS NOT NULL
    WHERE a.defaulted AND NOT a.atthasdef
    UNION ALL
    -- Without tables: a column of these types is about to be added, and the rows that are there get its type's default.
    SELECT t.oid, 'domain default', '', t.typowner, t.typdefaultbin::text
    FROM types JOIN pg_catalog.pg_type t ON t.oid = types.id AND t.typdefaultbin IS NOT NULL
    WHERE pg_catalog.cardinality($2::text[]) = 0
), kinds_of_parts(oid) AS MATERIALIZED (
    VALUES ('pg_catalog.pg_proc'::pg_catalog.regclass::oid), ('pg_catalog.pg_operator'::pg_catalog.regclass),
           ('pg_catalog.pg_opclass'::pg_catalog.regclass), ('pg_catalog.pg_opfamily'::pg_catalog.regclass),
           ('pg_catalog.pg_type'::pg_catalog.regclass), ('pg_catalog.pg_collation'::pg_catalog.regclass),
           ('pg_catalog.pg_ts_config'::pg_catalog.regclass), ('pg_catalog.pg_ts_dict'::pg_catalog.regclass),
           ('pg_catalog.pg_ts_parser'::pg_catalog.regclass), ('pg_catalog.pg_ts_template'::pg_catalog.regclass)
), depended(class_id, id, reached) AS MATERIALIZED (
    -- What expressions, indexes and types are made of: dropped with CASCADE, it takes columns, indexes and constraints along; and a text
    -- search configuration does what its mapping says today. Not what is pinned, which pg_depend does not record.
    SELECT d.refclassid, d.refobjid, false
    FROM (
        SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass AS class_id, c.oid AS id, 0 AS part, true AS is_evaluated
        FROM touched t JOIN pg_catalog.pg_constraint c ON c.conrelid = t.id AND c.contype = 'c'
        UNION ALL
        -- A default that is not evaluated here goes as well.
        SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.oid, 0, a.attgenerated <> '' OR a.defaulted
        FROM columns a JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        UNION ALL
        -- On 14 a generated column itself depends on what its expression names (StoreAttrDefault in heap.c).
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, a.attrelid, a.attnum, true FROM columns a WHERE a.attgenerated <> ''
        UNION ALL
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid, 0, true FROM touched t JOIN pg_catalog.pg_index i ON i.indrelid = t.id
        UNION ALL
        SELECT 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, s.oid, 0, true
        FROM touched t JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = t.id WHERE s.stxexprs IS NOT NULL
        UNION ALL
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, partrelid, 0, true FROM partitioned
        UNION ALL
        SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, id, 0, true FROM types
        UNION ALL
        SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid, 0, true FROM types JOIN pg_catalog.pg_constraint c ON c.contypid = types.id
    ) AS used
    JOIN pg_catalog.pg_depend d ON d.classid = used.class_id AND d.objid = used.id AND (used.part = 0 OR d.objsubid = used.part)
    WHERE d.deptype <> 'e' AND d.refclassid IN (SELECT oid FROM kinds_of_parts)
      AND (used.is_evaluated OR d.refclassid <> 'pg_catalog.pg_proc'::pg_catalog.regclass)
    UNION
    SELECT d.refclassid, d.refobjid, true
    FROM depended u JOIN pg_catalog.pg_depend d ON d.classid = u.class_id AND d.objid = u.id
    WHERE d.deptype <> 'e' AND d.refclassid IN (SELECT oid FROM kinds_of_parts)
), parts AS MATERIALIZED (
    SELECT used.class_id, used.id, found.owner, found.schema_id
    FROM (SELECT class_id, id, pg_catalog.bool_or(reached) AS reached FROM depended GROUP BY class_id, id) used
    CROSS JOIN LATERAL (
        -- Those of functions that are called are named as code.
        SELECT CASE WHEN used.reached THEN p.proowner END AS owner, p.pronamespace AS schema_id FROM pg_catalog.pg_proc p
        WHERE used.class_id = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid = used.id
        UNION ALL SELECT o.oprowner, o.oprnamespace FROM pg_catalog.pg_operator o
        WHERE used.class_id = 'pg_catalog.pg_operator'::pg_catalog.regclass AND o.oid = used.id
        UNION ALL SELECT o.opcowner, o.opcnamespace FROM pg_catalog.pg_opclass o
        WHERE used.class_id = 'pg_catalog.pg_opclass'::pg_catalog.regclass AND o.oid = used.id
        UNION ALL SELECT o.opfowner, o.opfnamespace FROM pg_catalog.pg_opfamily o
        WHERE used.class_id = 'pg_catalog.pg_opfamily'::pg_catalog.regclass AND o.oid = used.id
        UNION ALL SELECT c.cfgowner, c.cfgnamespace FROM pg_catalog.pg_ts_config c
        WHERE used.class_id = 'pg_catalog.pg_ts_config'::pg_catalog.regclass AND c.oid = used.id
        UNION ALL SELECT d.dictowner, d.dictnamespace FROM pg_catalog.pg_ts_dict d
        WHERE used.class_id = 'pg_catalog.pg_ts_dict'::pg_catalog.regclass AND d.oid = used.id
        -- Superusers make these two, and whose the schema is can drop them.
        UNION ALL SELECT NULL, r.prsnamespace FROM pg_catalog.pg_ts_parser r
        WHERE used.class_id = 'pg_catalog.pg_ts_parser'::pg_catalog.regclass AND r.oid = used.id
        UNION ALL SELECT NULL, m.tmplnamespace FROM pg_catalog.pg_ts_template m
        WHERE used.class_id = 'pg_catalog.pg_ts_template'::pg_catalog.regclass AND m.oid = used.id
        -- Types that columns are made of are named as such.
        UNION ALL SELECT CASE WHEN y.typelem = 0 OR y.typlen <> -1 THEN y.typowner END, y.typnamespace FROM pg_catalog.pg_type y
        WHERE used.class_id = 'pg_catalog.pg_type'::pg_catalog.regclass AND y.oid = used.id
          AND y.oid NOT IN (SELECT id FROM types) AND y.typrelid NOT IN (SELECT id FROM touched)
    ) AS found
), collations AS MATERIALIZED (
    -- They run nothing, and yet go with their columns when they are dropped, and say which values of a key are equal.
    SELECT o.oid AS id, o.collnamespace, o.collowner
    FROM (
        SELECT attcollation FROM columns
        UNION
        SELECT pg_catalog.unnest(i.indcollation::oid[]) FROM planned t JOIN pg_catalog.pg_index i ON i.indrelid = t.id
        UNION
        SELECT pg_catalog.unnest(partcollation::oid[]) FROM partitioned
        UNION
        SELECT y.typcollation FROM types JOIN pg_catalog.pg_type y ON y.oid = types.id
        UNION
        SELECT a.attcollation FROM types JOIN pg_catalog.pg_type y ON y.oid = types.id AND y.typtype = 'c'
        JOIN pg_catalog.pg_attribute a ON a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION
        SELECT r.rngcollation FROM types JOIN pg_catalog.pg_range r ON r.rngtypid = types.id
        UNION
        SELECT (pg_catalog.regexp_matches(tree, ':\w*coll\w* (\d+)', 'gi'))[1]::oid FROM trees
        UNION
        SELECT id FROM depended WHERE class_id = 'pg_catalog.pg_collation'::pg_catalog.regclass
        UNION
        SELECT l.oid FROM ROWS FROM (pg_catalog.unnest($11::text[]), pg_catalog.unnest($12::text[])) AS named(schema_name, collation_name)
        JOIN pg_catalog.pg_namespace n ON n.nspname = named.schema_name
        JOIN pg_catalog.pg_collation l ON l.collnamespace = n.oid AND l.collname = named.collation_name) AS used(id)
    JOIN pg_catalog.pg_collation o ON o.oid = used.id AND o.collnamespace <> 'pg_catalog'::pg_catalog.regnamespace
), operator_classes(object_id, kind, name, family) AS (
    SELECT i.indrelid, 'index', c.relname, o.opcfamily
    FROM planned t JOIN pg_catalog.pg_index i ON i.indrelid = t.id JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_opclass o ON o.oid = ANY (i.indclass)
    UNION
    SELECT p.partrelid, 'partition key', '', o.opcfamily
    FROM partitioned p JOIN pg_catalog.pg_opclass o ON o.oid = ANY (p.partclass)
    UNION
    SELECT o.opcintype, 'type', '', o.opcfamily
    FROM types JOIN pg_catalog.pg_opclass o ON o.opcintype = types.id AND o.opcdefault
), named_operators AS MATERIALIZED (
    -- By which rows are found. They are written as schema and name, and the server prefers one that fits the types exactly: of a domain, say.
    SELECT DISTINCT e.oprnamespace, e.oprname
    FROM operator_classes o JOIN pg_catalog.pg_amop s ON s.amopfamily = o.family JOIN pg_catalog.pg_operator e ON e.oid = s.amopopr
    WHERE e.oprnamespace <> 'pg_catalog'::pg_catalog.regnamespace
), calls(object_id, kind, name, owner, function_id, made_for_others) AS (
    SELECT object_id, kind, name, owner, (pg_catalog.regexp_matches(tree, ':\w*(?:funcid|fnoid) (\d+)', 'g'))[1]::oid, false FROM trees
    UNION
    -- SQL/JSON constructors look for a cast of their arguments to json by themselves: their trees name no function.
    SELECT c.object_id, c.kind, c.name, c.owner, j.castfunc, false
    FROM trees c JOIN pg_catalog.pg_cast j ON j.castfunc <> 0 AND j.castsource IN (SELECT id FROM types)
        AND j.casttarget IN ('pg_catalog.json'::pg_catalog.regtype, 'pg_catalog.jsonb'::pg_catalog.regtype)
    WHERE pg_catalog.strpos(c.tree, 'JSONCONSTRUCTOREXPR') > 0
    UNION
    SELECT f.tgrelid, f.kind, f.tgname, t.trigger_owner, f.tgfoid, true FROM firing f JOIN touched t ON t.id = f.tgrelid
    UNION
    SELECT t.oid, 'range', '', t.typowner, called.id, true
    FROM types JOIN pg_catalog.pg_type t ON t.oid = types.id JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid
    CROSS JOIN LATERAL (VALUES (r.rngsubdiff::oid), (r.rngcanonical::oid)) AS called(id) WHERE called.id <> 0
    UNION
    -- A cast is preferred to a type's own input and output functions, wherever values are compared or assigned. Who owns one of its
    -- types may create it.
    SELECT c.oid, 'cast', '', CASE WHEN f.typowner IN (SELECT oid FROM trusted) THEN t.typowner ELSE f.typowner END, c.castfunc, false
    FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_type f ON f.oid = c.castsource JOIN pg_catalog.pg_type t ON t.oid = c.casttarget
    CROSS JOIN LATERAL (SELECT f.oid IN (SELECT id FROM types) OR f.typelem IN (SELECT id FROM types) AS source,
                               t.oid IN (SELECT id FROM types) OR t.typelem IN (SELECT id FROM types) AS target) AS used
    WHERE c.castfunc <> 0 AND c.oid >= 16384
      -- Nothing is ever made a type that is not used and did not come with the server: anybody could make such a cast.
      AND (used.source AND (used.target OR t.oid < 16384) OR used.target AND f.oid < 16384)
    UNION
    -- Superusers choose the functions of operator classes, foreign keys and base types; the functions may be anybody's.
    SELECT called.object_id, called.kind, called.name, p.proowner, p.oid, true
    FROM (
        SELECT o.object_id, o.kind, o.name, s.amproc::oid FROM operator_classes o JOIN pg_catalog.pg_amproc s ON s.amprocfamily = o.family
        UNION
        SELECT o.object_id, o.kind, o.name, e.oprcode::oid
        FROM operator_classes o JOIN pg_catalog.pg_amop s ON s.amopfamily = o.family JOIN pg_catalog.pg_operator e ON e.oid = s.amopopr
        UNION
        SELECT k.conrelid, 'foreign key', k.conname, e.oprcode::oid
        FROM foreign_keys k JOIN pg_catalog.pg_operator e ON e.oid = ANY (k.conpfeqop || k.conppeqop || k.conffeqop)
        UNION
        SELECT f.foreign_table, 'foreign-data wrapper', f.wrapper, called.id
        FROM foreign_tables f CROSS JOIN LATERAL (VALUES (f.fdwhandler::oid), (f.fdwvalidator::oid)) AS called(id)
        UNION
        SELECT t.oid, 'type', '', f.id
        FROM types JOIN pg_catalog.pg_type t ON t.oid = types.id
        CROSS JOIN LATERAL (VALUES (t.typinput::oid), (t.typoutput::oid), (t.typreceive::oid), (t.typsend::oid), (t.typmodin::oid),
                                   (t.typmodout::oid), (t.typsubscript::oid)) AS f(id)
    ) AS called(object_id, kind, name, id)
    JOIN pg_catalog.pg_proc p ON p.oid = called.id AND p.oid >= 16384
), foreign_calls AS (
    SELECT c.object_id, c.kind, c.name,
           CASE WHEN p.proowner IN (SELECT oid FROM trusted) THEN c.owner ELSE p.proowner END AS role_id,
           pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) AS function_name,
           NULL::oid AS grantor
    FROM calls c JOIN pg_catalog.pg_proc p ON p.oid = c.function_id JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE p.proowner NOT IN (SELECT oid FROM trusted)
       OR c.owner NOT IN (SELECT oid FROM trusted)
          AND CASE WHEN c.made_for_others
                   -- Of the extensions refint and lo: they make SQL of their arguments, and delete large objects that rows name.
                   THEN p.proname IN ('check_primary_key', 'check_foreign_key', 'lo_manage')
                   ELSE p.provolatile <> 'i' AND p.oid NOT IN (SELECT oid FROM harmless) END
    UNION
    SELECT t.id, 'rule', r.rulename, t.owner, NULL, NULL
    FROM touched t JOIN pg_catalog.pg_rewrite r ON r.ev_class = t.id
    WHERE r.ev_type <> '1' AND (r.ev_enabled IN ('A', CASE WHEN $7 THEN 'O' ELSE 'R' END) OR t.own AND r.ev_enabled <> 'D')
      AND t.owner NOT IN (SELECT oid FROM trusted)
    UNION
    SELECT t.id, 'foreign table', '', t.owner, NULL, NULL
    FROM touched t WHERE t.kind = 'f' AND t.owner NOT IN (SELECT oid FROM trusted)
    UNION
    SELECT foreign_table, 'foreign server', server, srvowner, NULL, NULL
    FROM foreign_tables WHERE srvowner NOT IN (SELECT oid FROM trusted)
    UNION
    SELECT foreign_table, 'foreign-data wrapper', wrapper, fdwowner, NULL, NULL
    FROM foreign_tables WHERE fdwowner NOT IN (SELECT oid FROM trusted)
    UNION
    -- Whatever is written, headwater also creates and drops objects, in sessions of either role. Superusers make event triggers; the
    -- functions may be anybody's.
    SELECT 0, 'event trigger', e.evtname, p.proowner, pg_catalog.format('%I.%I()', n.nspname, p.proname), NULL
    FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE e.evtenabled <> 'D' AND p.proowner NOT IN (SELECT oid FROM trusted)
    UNION
    SELECT e.oid, 'operator', pg_catalog.format('%s, %s', pg_catalog.format_type(e.oprleft, NULL), pg_catalog.format_type(e.oprright, NULL)),
           CASE WHEN p.proowner IN (SELECT oid FROM trusted) THEN e.oprowner ELSE p.proowner END,
           pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)), NULL
    FROM named_operators o JOIN pg_catalog.pg_operator e ON e.oprnamespace = o.oprnamespace AND e.oprname = o.oprname
    JOIN pg_catalog.pg_proc p ON p.oid = e.oprcode JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE e.oprleft <> 0 AND (e.oprleft IN (SELECT id FROM types) OR e.oprright IN (SELECT id FROM types))
      AND (e.oprowner NOT IN (SELECT oid FROM trusted) OR p.proowner NOT IN (SELECT oid FROM trusted))
    UNION
    SELECT o.object_id, o.kind, o.name, o.role_id, NULL, o.grantor
    FROM (
        SELECT t.id, 'table owner', NULL::name, t.owner, NULL::oid FROM touched t WHERE NOT t.own AND NOT t.cascaded
        UNION
        -- Tables that do not exist yet will stand in schemas that do. Since 15 the database's owner has public.
        SELECT n.oid, 'schema owner', NULL, CASE WHEN n.nspowner = 6171 THEN d.datdba ELSE n.nspowner END, NULL
        FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
        WHERE n.nspname = ANY ($2::text[])
           OR n.oid IN (SELECT c.relnamespace FROM touched t JOIN pg_catalog.pg_class c ON c.oid = t.id WHERE NOT t.own AND NOT t.cascaded)
           OR n.oid IN (SELECT y.typnamespace FROM types JOIN pg_catalog.pg_type y ON y.oid = types.id
                        WHERE y.typrelid NOT IN (SELECT id FROM touched))
           OR n.oid IN (SELECT oprnamespace FROM named_operators)
           OR n.oid IN (SELECT collnamespace FROM collations)
           OR n.oid IN (SELECT schema_id FROM parts)
        UNION
        SELECT n.oid, 'create privilege', NULL, a.grantee, CASE WHEN a.grantor <> n.nspowner THEN a.grantor END
        FROM pg_catalog.pg_namespace n CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS a
        WHERE a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner AND n.oid IN (SELECT oprnamespace FROM named_operators)
        UNION
        -- Neither the row types of these tables nor arrays, which belong to whom their elements belong to.
        SELECT y.oid, 'type owner', NULL, y.typowner, NULL
        FROM types JOIN pg_catalog.pg_type y ON y.oid = types.id
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.typarray = y.oid)
          AND y.typrelid NOT IN (SELECT id FROM touched)
        UNION
        SELECT id, 'collation owner', NULL, collowner, NULL FROM collations
        UNION
        SELECT p.id, 'object owner', o.type || ' ' || o.identity, p.owner, NULL
        FROM parts p CROSS JOIN LATERAL pg_catalog.pg_identify_object(p.class_id, p.id, 0) AS o
        WHERE p.owner NOT IN (SELECT oid FROM trusted)
        UNION
        -- A foreign key onto what is written is checked in our session, where foreign keys act: by operators and casts of its columns' types.
        SELECT k.conrelid, 'referring owner', root.conname, c.relowner, NULL
        FROM foreign_keys k JOIN foreign_key_roots r ON r.id = k.oid
        JOIN pg_catalog.pg_constraint root ON root.oid = r.root AND root.conparentid = 0 AND root.conrelid = k.conrelid
        JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
        WHERE k.conrelid NOT IN (SELECT id FROM touched WHERE NOT cascaded)
        UNION
        -- The check of one that leads to another table is planned in our session, with constants of that table's indexes evaluated.
        SELECT p.id, 'checked owner', NULL, p.owner, NULL
        FROM planned p
        WHERE p.id NOT IN (SELECT id FROM touched WHERE NOT cascaded)
          AND p.id NOT IN (SELECT k.conrelid FROM foreign_keys k JOIN foreign_key_roots r ON r.id = k.oid AND r.root = k.oid)
        UNION
        SELECT c.oid, 'parent owner', NULL, c.relowner, NULL
        FROM ancestors n JOIN pg_catalog.pg_class c ON c.oid = n.id
        WHERE n.id NOT IN (SELECT id FROM planned)
        UNION
        SELECT c.oid, 'references privilege', a.of_column, a.grantee, CASE WHEN a.grantor <> c.relowner THEN a.grantor END
        FROM pg_catalog.pg_class c
        CROSS JOIN LATERAL (
            SELECT NULL::name AS of_column, relation.grantee, relation.grantor
            FROM pg_catalog.aclexplode(c.relacl) AS relation WHERE relation.privilege_type = 'REFERENCES'
            UNION
            SELECT b.attname, given.grantee, given.grantor
            FROM pg_catalog.pg_attribute b CROSS JOIN LATERAL pg_catalog.aclexplode(b.attacl) AS given
            WHERE b.attrelid = c.oid AND given.privilege_type = 'REFERENCES') AS a
        WHERE $7 AND a.grantee <> c.relowner
          AND (c.oid IN (SELECT id FROM touched WHERE NOT own) OR c.oid IN (SELECT id FROM ancestors WHERE of_written))
        UNION
        SELECT t.id, 'trigger privilege', NULL, a.grantee, CASE WHEN a.grantor <> t.owner THEN a.grantor END
        FROM touched t JOIN pg_catalog.pg_class c ON c.oid = t.id CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
        WHERE a.privilege_type = 'TRIGGER' AND a.grantee <> t.owner AND NOT t.own
    ) AS o (object_id, kind, name, role_id, grantor)
    WHERE $10 AND o.role_id NOT IN (SELECT oid FROM trusted)
      AND (o.role_id = 0 OR o.role_id IN (SELECT id FROM reachable)
           -- Before 16, CREATEROLE makes itself a member.
           OR pg_catalog.current_setting('server_version_num')::int < 160000
              AND EXISTS (SELECT FROM reachable a JOIN pg_catalog.pg_roles r ON r.oid = a.id WHERE r.rolcreaterole))
)
SELECT f.kind, COALESCE(table_schema.nspname, type_schema.nspname, owned_schema.nspname, '')::text AS schema_name,
       COALESCE(c.relname, t.typname, e.oprname, l.collname, '')::text AS object_name,
       COALESCE(f.name, '')::text AS part, pg_catalog.min(f.function_name),
       CASE WHEN f.role_id <> 0 THEN pg_catalog.pg_get_userbyid(f.role_id)::text END AS role,
       COALESCE(target_schema.nspname, statistics_schema.nspname)::text AS target_schema,
       COALESCE(target.typname, s.stxname)::text AS target_name,
       CASE WHEN f.grantor IS NOT NULL THEN pg_catalog.pg_get_userbyid(f.grantor)::text END AS grantor
FROM foreign_calls f
LEFT JOIN pg_catalog.pg_class c ON c.oid = f.object_id AND f.kind NOT IN ('domain', 'domain default', 'range', 'type', 'cast', 'type owner', 'schema owner',
    'create privilege', 'operator', 'collation owner', 'object owner')
LEFT JOIN pg_catalog.pg_namespace table_schema ON table_schema.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_cast k ON k.oid = f.object_id AND f.kind = 'cast'
LEFT JOIN pg_catalog.pg_type t ON t.oid = COALESCE(k.castsource, f.object_id) 
    AND f.kind IN ('domain', 'domain default', 'range', 'type', 'cast', 'type owner')
LEFT JOIN pg_catalog.pg_operator e ON e.oid = f.object_id AND f.kind = 'operator'
LEFT JOIN pg_catalog.pg_collation l ON l.oid = f.object_id AND f.kind = 'collation owner'
LEFT JOIN pg_catalog.pg_namespace owned_schema
    ON owned_schema.oid = COALESCE(e.oprnamespace, l.collnamespace, f.object_id)
    AND f.kind IN ('schema owner', 'create privilege', 'operator', 'collation owner')
LEFT JOIN pg_catalog.pg_namespace type_schema ON type_schema.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type target ON target.oid = k.casttarget
LEFT JOIN pg_catalog.pg_namespace target_schema ON target_schema.oid = target.typnamespace
LEFT JOIN pg_catalog.pg_statistic_ext s ON f.kind = 'statistics' AND s.stxrelid = f.object_id AND s.stxname = f.name
LEFT JOIN pg_catalog.pg_namespace statistics_schema ON statistics_schema.oid = s.stxnamespace
GROUP BY 1, 2, 3, 4, f.role_id, 7, 8, f.grantor
ORDER BY 2, 3, 1, 4, 7, 8, 9
