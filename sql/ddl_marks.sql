-- Marks schema changes in the stream that headwater reads: run this at the source as a superuser, in the database that is replicated.
-- headwater then compares a table with the catalog at the very transaction that has changed it, before a row of that transaction, or of a
-- later one, is applied. Without marks it does so at the next row of the table, and every 10 s. Nothing depends on them.
--
-- Each CREATE, ALTER and DROP writes one small message to the WAL, with the OIDs concerned. The function runs with the rights of the
-- role that changes the schema, and none of its errors reaches that role.
--
-- This takes it all away again:
-- DROP EVENT TRIGGER IF EXISTS headwater_ddl_command;
-- DROP EVENT TRIGGER IF EXISTS headwater_ddl_drop;
-- DROP EVENT TRIGGER IF EXISTS headwater_ddl_rewrite;
-- DROP SCHEMA IF EXISTS headwater_marks CASCADE;
BEGIN;
CREATE SCHEMA headwater_marks;
CREATE FUNCTION headwater_marks.mark() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $mark$
DECLARE
    concerned text;
    many bool;
BEGIN
    IF TG_EVENT = 'table_rewrite' THEN
        concerned := pg_event_trigger_table_rewrite_oid();
    ELSIF TG_EVENT = 'sql_drop' THEN
        SELECT string_agg(DISTINCT objid::text, ' '), count(DISTINCT objid) > 1000 INTO concerned, many
        FROM pg_event_trigger_dropped_objects()
        WHERE classid IN ('pg_class'::regclass, 'pg_type'::regclass) AND NOT is_temporary;
    ELSE
        SELECT string_agg(DISTINCT id::text, ' '), count(DISTINCT id) > 1000 INTO concerned, many
        FROM pg_event_trigger_ddl_commands() AS command
        CROSS JOIN LATERAL (VALUES (objid),
            (CASE WHEN classid = 'pg_class'::regclass THEN pg_partition_root(objid::regclass)::oid END),
            ((SELECT reltype FROM pg_class WHERE oid = objid AND relkind = 'c'))) AS object (id)
        WHERE classid IN ('pg_class'::regclass, 'pg_type'::regclass) AND schema_name IS DISTINCT FROM 'pg_temp';
    END IF;
    IF concerned IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'headwater.ddl', CASE WHEN many THEN '*' ELSE concerned END);
    END IF;
EXCEPTION WHEN OTHERS THEN
    NULL;
END $mark$;
CREATE EVENT TRIGGER headwater_ddl_command ON ddl_command_end EXECUTE FUNCTION headwater_marks.mark();
CREATE EVENT TRIGGER headwater_ddl_drop ON sql_drop EXECUTE FUNCTION headwater_marks.mark();
CREATE EVENT TRIGGER headwater_ddl_rewrite ON table_rewrite EXECUTE FUNCTION headwater_marks.mark();
COMMIT;
