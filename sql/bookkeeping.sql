-- headwater's bookkeeping at the destination. Created at the first start; every statement can be run again.

CREATE SCHEMA IF NOT EXISTS headwater;
COMMENT ON SCHEMA headwater IS 'Bookkeeping of the headwater replicator: do not change by hand';

-- Cold facts: what this destination is fed from. One row, from before the slot exists until teardown.
CREATE TABLE IF NOT EXISTS headwater.stream (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- creating: the slot is being made and filled; whatever bears its name is ours. live: position is valid.
    state text NOT NULL CHECK (state IN ('creating', 'live')),
    -- A new random value for every slot; names its staging schema.
    generation text NOT NULL,
    slot text NOT NULL,
    publication text NOT NULL,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    source_database text NOT NULL,
    -- The slot's consistent point, once it is live.
    consistent_point pg_lsn,
    -- Why the copy may have gaps, until a resnapshot of all tables has closed them.
    gap text,
    bookkeeping_version integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CHECK (state = 'creating' OR consistent_point IS NOT NULL)
);
-- Rows that tables hold may be changed by the copy being made: an earlier stream brought them, or the operator has agreed.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS agreed boolean NOT NULL DEFAULT true;
-- Where each timeline before this one was left (1@0/3000000,2@0/5000000); two servers that were both promoted have one number.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS timeline_history text;
-- The OID of source_database, which stays when that is renamed.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS source_database_id oid;
-- Where the source's WAL ended when the copy was begun: a copy is not finished by a server that lacks it.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS source_lsn pg_lsn;
-- The copy that was made by itself was not published, because it lacked most rows of a table: which, and how many.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS refused text;
-- The source's server_version_num when it was last connected.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS source_version integer;
-- All transactions of the source before this 64-bit transaction ID had ended before the position; of the stream of that generation.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS source_xid bigint;
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS source_xid_generation text;

-- OIDs of the tables stream, position and tables in this schema when the OIDs in tables.destination_id were written. A restore of the
-- whole database from a dump gives others to all of them, so that those OIDs mean nothing until the next start has written them again.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS bookkeeping_ids oid[];
-- The cluster and the database that those OIDs are of: in a fresh cluster, the same CREATEs lead to the same ones.
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS destination_system_identifier text;
ALTER TABLE headwater.stream ADD COLUMN IF NOT EXISTS destination_database_id oid;

-- The hot fact: everything of the live tables with end_lsn <= position is here. One row, without an index: it is found by
-- its ctid, so that an old snapshot elsewhere (pg_dump, a report) does not make each update search dead versions.
CREATE TABLE IF NOT EXISTS headwater.position (
    position pg_lsn NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0);
-- Tables without a key have REPLICA IDENTITY FULL: a publication FOR ALL TABLES at the destination holds them too, and
-- refuses their updates and deletes otherwise.
ALTER TABLE headwater.position REPLICA IDENTITY FULL;

-- The tables that are kept equal.
CREATE TABLE IF NOT EXISTS headwater.tables (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    -- The table's OID at the source, and here.
    source_id oid NOT NULL,
    destination_id oid NOT NULL,
    -- live: followed from snapshot_position on. staging: not followed until a copy is published; the old rows serve.
    state text NOT NULL CHECK (state IN ('staging', 'live')),
    snapshot_position pg_lsn,
    PRIMARY KEY (schema_name, table_name),
    CHECK (state = 'staging' OR snapshot_position IS NOT NULL)
);

-- What each of the source's tables looked like at the position: columns by their numbers, so that a change is recognised
-- whenever it is noticed.
CREATE TABLE IF NOT EXISTS headwater.shapes (
    source_id oid PRIMARY KEY,
    shape json NOT NULL
);
-- What the source's catalog said of the table when its rows were last known to be those that the stream has described.
ALTER TABLE headwater.shapes ADD COLUMN IF NOT EXISTS fingerprint json;

-- Moves the position from previous to next, first in each transaction that applies changes. Raises when it is not
-- previous: then another instance has written, or a transaction before this one has failed.
CREATE OR REPLACE FUNCTION headwater.advance(previous pg_catalog.pg_lsn, next pg_catalog.pg_lsn) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moved pg_catalog.tid;
BEGIN
    UPDATE headwater.position AS p SET position = next
    WHERE p.ctid = pg_catalog.current_setting('headwater.position_ctid')::pg_catalog.tid AND p.position = previous
    RETURNING p.ctid INTO moved;
    IF moved IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'HW001',
            MESSAGE = pg_catalog.format('stored position is not %s', previous);
    END IF;
    PERFORM pg_catalog.set_config('headwater.position_ctid', moved::pg_catalog.text, false);
END
$$;

-- Raises; called when a statement touched another number of rows than the changes that it carries out.
CREATE OR REPLACE FUNCTION headwater.expect(found bigint, expected bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'HW002',
        MESSAGE = pg_catalog.format('%s rows found where %s were expected', found, expected);
END
$$;

-- Raises; called when a statement names a table that has the name of a followed one and is another. IMMUTABLE, so that it raises while
-- the statement is planned, and the planner drops the call where the table is the right one.
CREATE OR REPLACE FUNCTION headwater.other_table(schema_name text, table_name text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'HW003', SCHEMA = schema_name, TABLE = table_name,
        MESSAGE = pg_catalog.format('table %I.%I is another one than the one that is followed', schema_name, table_name);
END
$$;

-- Raises; called before COMMIT when the writing session has a statement that SQL has prepared.
CREATE OR REPLACE FUNCTION headwater.statement_replaced() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'HW004', MESSAGE = 'the session has statements that headwater has not prepared';
END
$$;

-- Source transactions that an operator wants left out, each by one of its two names: what it is to be done with is done
-- when it comes.
CREATE TABLE IF NOT EXISTS headwater.skip (
    commit_lsn pg_lsn UNIQUE,
    end_lsn pg_lsn UNIQUE,
    requested_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    requested_by text NOT NULL DEFAULT current_user,
    CHECK ((commit_lsn IS NULL) <> (end_lsn IS NULL))
);
ALTER TABLE headwater.skip REPLICA IDENTITY FULL;

-- Source transactions that were left out, whole, in the order of their parts: large ones have several.
CREATE TABLE IF NOT EXISTS headwater.dead_letter (
    commit_lsn pg_lsn NOT NULL,
    part integer NOT NULL,
    -- Known once the whole transaction is here.
    end_lsn pg_lsn,
    committed_at timestamptz NOT NULL,
    xid bigint NOT NULL,
    changes bigint NOT NULL,
    tables text[] NOT NULL,
    -- MessagePack; read it with headwater dead-letter show.
    letter bytea NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (commit_lsn, part)
);

-- The change that halts the service, for headwater conflict show; removed once the position has passed it.
CREATE TABLE IF NOT EXISTS headwater.open_conflict (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    commit_lsn pg_lsn NOT NULL,
    end_lsn pg_lsn,
    kind text NOT NULL,
    constraint_name text,
    schema_name text,
    table_name text,
    message text NOT NULL,
    -- MessagePack, as in headwater.dead_letter; NULL where the failing change is not known.
    change bytea,
    noted_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- Snapshots that were asked for. A request is written before anything is done about it, and settled in the transaction
-- that publishes it.
CREATE TABLE IF NOT EXISTS headwater.resnapshots (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL: all tables.
    tables text[],
    origin text NOT NULL CONSTRAINT resnapshots_asked_by CHECK (origin IN ('start', 'command', 'added', 'changed')),
    state text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'done', 'failed')),
    -- Why it failed, or what keeps it up.
    message text,
    -- The command line that asked, until the service is stopped in good order: what it asked for is done once.
    invocation text,
    requested_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz
);
-- The source that the operator's word was used for (system identifier/timeline): it holds for no other.
ALTER TABLE headwater.resnapshots ADD COLUMN IF NOT EXISTS for_source text;
-- An earlier version knew fewer of them.
ALTER TABLE headwater.resnapshots DROP CONSTRAINT IF EXISTS resnapshots_origin_check;

-- A number that nobody else can work out: gen_random_uuid() draws from the system's random source, and 60 of these bits.
CREATE OR REPLACE FUNCTION headwater.random_key() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ('x' || pg_catalog.left(pg_catalog.replace(pg_catalog.gen_random_uuid()::pg_catalog.text, '-', ''), 16))::bit(64)::bigint
$$;

-- The key of the advisory lock that the leader holds. Every role may take every advisory lock, so the key must be one that
-- others cannot know; once it is held, pg_locks shows it. It is replaced when a session holds it that may not lead.
CREATE TABLE IF NOT EXISTS headwater.leadership (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    lock_key bigint NOT NULL,
    replaced_key bigint
);
INSERT INTO headwater.leadership (lock_key) VALUES (headwater.random_key()) ON CONFLICT DO NOTHING;

-- Sessions that the leader has opened to write, so that the next leader finds those that outlived theirs. A server process
-- that started later than its row says is another one.
CREATE TABLE IF NOT EXISTS headwater.sessions (
    process_id integer PRIMARY KEY,
    purpose text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
