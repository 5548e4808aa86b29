-- Reading one's own writes: for applications that write at the source and read here. Every statement can be run again.
-- An application's role needs USAGE on schema headwater, and nothing else.
--
-- They run with the rights of headwater's role in sessions of others. pg_temp stands last in search_path: where it is not named it comes
-- first, and a domain of the caller's in it would be taken for the type of that name, with code in its check. Functions and
-- operators are never looked for in pg_temp.

-- The stored position: every source transaction whose commit ends at or before it is visible here.
CREATE OR REPLACE FUNCTION headwater.applied_lsn() RETURNS pg_catalog.pg_lsn
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'SELECT position FROM headwater.position';

-- Waits until everything up to lsn is visible to the next statement; false when timeout has passed before.
-- lsn: pg_current_wal_insert_lsn() at the source, asked after the commit.
CREATE OR REPLACE FUNCTION headwater.wait_for(lsn pg_catalog.pg_lsn, timeout pg_catalog.interval DEFAULT '10 seconds')
RETURNS pg_catalog.bool
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    until pg_catalog.timestamptz := pg_catalog.clock_timestamp() + timeout;
    pause pg_catalog.float8 := 0.002;
BEGIN
    IF pg_catalog.current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'headwater.wait_for needs READ COMMITTED',
            HINT = 'A snapshot that was taken before the wait does not show what is waited for.';
    END IF;
    LOOP
        IF EXISTS (SELECT FROM headwater.position WHERE position >= lsn) THEN
            RETURN true;
        END IF;
        IF pg_catalog.clock_timestamp() >= until THEN
            RETURN false;
        END IF;
        PERFORM pg_catalog.pg_sleep(least(pause, greatest(extract(epoch FROM until - pg_catalog.clock_timestamp())::pg_catalog.float8, 0)));
        pause := least(pause * 1.5, 0.05);
    END LOOP;
END
$$;
