-- What the destination has of what expressions may use, as one JSON object: $1 are the names of the listed functions.
-- Read by destination::expressions into schema_change::expression::Catalog, PostgreSQL 14 to 18.
-- OIDs below 16384 (FirstNormalObjectId, access/transam.h) are given out by initdb alone: such objects came with the server.
SELECT pg_catalog.jsonb_build_object(
    'version', pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
    'functions', COALESCE((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'id', p.oid::pg_catalog.int8,
            'name', p.proname,
            'arguments', pg_catalog.oidvectortypes(p.proargtypes),
            'least', p.pronargs - p.pronargdefaults,
            'most', p.pronargs,
            'variadic', p.provariadic <> 0,
            'volatility', p.provolatile,
            'built_in', p.oid < 16384 AND p.prokind = 'f' AND NOT p.proretset AND NOT p.prosecdef AND p.proconfig IS NULL
                AND l.lanname IN ('internal', 'sql') AND l.oid < 16384))
        FROM pg_catalog.pg_proc p
        JOIN pg_catalog.pg_language l ON l.oid = p.prolang
        WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
          AND p.proname::pg_catalog.text = ANY ($1::pg_catalog.text[])), '[]'),
    'operators', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(grouped))
        FROM (
            SELECT o.oprname AS name,
                CASE WHEN o.oprleft = 0 THEN 1 ELSE 2 END AS operands,
                pg_catalog.jsonb_agg(p.oid::pg_catalog.int8) AS functions,
                pg_catalog.string_agg(DISTINCT p.provolatile::pg_catalog.text, '') AS volatility,
                pg_catalog.bool_and(o.oid < 16384 AND p.oid < 16384 AND p.prokind = 'f' AND NOT p.proretset AND NOT p.prosecdef
                    AND p.proconfig IS NULL AND l.lanname IN ('internal', 'sql') AND l.oid < 16384) AS built_in
            FROM pg_catalog.pg_operator o
            JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
            JOIN pg_catalog.pg_language l ON l.oid = p.prolang
            WHERE o.oprnamespace = 'pg_catalog'::pg_catalog.regnamespace
            GROUP BY 1, 2
        ) AS grouped),
    'types', (
        SELECT pg_catalog.jsonb_agg(t.typname) FROM pg_catalog.pg_type t
        WHERE t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace AND t.oid < 16384 AND t.typtype IN ('b', 'r', 'm')),
    'cast_functions', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(t.typname, c.castfunc::pg_catalog.int8))
        FROM pg_catalog.pg_cast c
        JOIN pg_catalog.pg_type t ON t.oid = c.casttarget AND t.oid < 16384
        WHERE c.castfunc BETWEEN 1 AND 16383),
    'foreign_casts', COALESCE((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'from', pg_catalog.jsonb_build_object('schema', fn.nspname, 'name', f.typname),
            'to', pg_catalog.jsonb_build_object('schema', tn.nspname, 'name', t.typname),
            'implicit', c.castcontext <> 'e',
            'of_extension', EXISTS (
                SELECT FROM pg_catalog.pg_depend d
                WHERE d.classid = 'pg_catalog.pg_cast'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')))
        FROM pg_catalog.pg_cast c
        -- Of an array the element counts: the one converts the other.
        JOIN pg_catalog.pg_type a ON a.oid = c.castsource
        JOIN pg_catalog.pg_type f ON f.oid = CASE WHEN a.typcategory = 'A' AND a.typelem <> 0 THEN a.typelem ELSE a.oid END
        JOIN pg_catalog.pg_namespace fn ON fn.oid = f.typnamespace
        JOIN pg_catalog.pg_type b ON b.oid = c.casttarget
        JOIN pg_catalog.pg_type t ON t.oid = CASE WHEN b.typcategory = 'A' AND b.typelem <> 0 THEN b.typelem ELSE b.oid END
        JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
        WHERE c.castfunc <> 0 AND c.oid >= 16384), '[]'),
    'configurations', COALESCE((
        SELECT pg_catalog.jsonb_agg(g.cfgname) FROM pg_catalog.pg_ts_config g
        WHERE g.cfgnamespace = 'pg_catalog'::pg_catalog.regnamespace AND g.oid < 16384), '[]'),
    'collations', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(NULLIF(n.nspname, 'pg_catalog'), o.collname))
        FROM pg_catalog.pg_collation o
        JOIN pg_catalog.pg_namespace n ON n.oid = o.collnamespace
        WHERE o.collencoding IN (-1, (
            SELECT d.encoding FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())))
)::pg_catalog.text
