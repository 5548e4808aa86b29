-- Reading one's own writes: for applications that write at the source and read here. Every statement can be run again.
-- An application's role needs USAGE on schema headwater, and nothing else.

-- The stored position: every source transaction whose commit ends at or before it is visible here.
CREATE OR REPLACE FUNCTION headwater.applied_lsn() RETURNS pg_lsn
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog
AS 'SELECT position FROM headwater.position';

-- Waits until everything up to lsn is visible to the next statement; false when timeout has passed before.
-- lsn: pg_current_wal_insert_lsn() at the source, asked after the commit.
CREATE OR REPLACE FUNCTION headwater.wait_for(lsn pg_lsn, timeout interval DEFAULT '10 seconds') RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog
AS $$
DECLARE
    until timestamptz := clock_timestamp() + timeout;
    pause float8 := 0.002;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'headwater.wait_for needs READ COMMITTED',
            HINT = 'A snapshot that was taken before the wait does not show what is waited for.';
    END IF;
    LOOP
        IF EXISTS (SELECT FROM headwater.position WHERE position >= lsn) THEN
            RETURN true;
        END IF;
        IF clock_timestamp() >= until THEN
            RETURN false;
        END IF;
        PERFORM pg_sleep(least(pause, greatest(extract(epoch FROM until - clock_timestamp())::float8, 0)));
        pause := least(pause * 1.5, 0.05);
    END LOOP;
END
$$;
