-- Requests for a fence: one state of both databases, made by the instance that leads. Every statement can be run again.

-- One row per request, for as long as its client waits: the client refreshes heartbeat_at, and the leader drops a row whose
-- heartbeat is 10 seconds old.
CREATE TABLE IF NOT EXISTS headwater.fence_requests (
    id text PRIMARY KEY,
    -- verify: hold both snapshots until they are taken over. repair: reconcile the rows of headwater.fence_keys.
    kind text NOT NULL CHECK (kind IN ('verify', 'repair')),
    -- asked: nothing yet, or an attempt failed (message says why). made: snapshots and point are valid. done: repaired.
    -- refused: it cannot be done (message says why).
    state text NOT NULL DEFAULT 'asked' CHECK (state IN ('asked', 'made', 'done', 'refused')),
    asked_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    -- What SET TRANSACTION SNAPSHOT names, at the source and here.
    source_snapshot text,
    destination_snapshot text,
    -- The fence: both snapshots show exactly the transactions with commit_lsn before it.
    consistent_point pg_lsn,
    message text,
    detail text,
    hint text,
    -- What a repair wrote.
    rows_deleted bigint,
    rows_updated bigint,
    rows_inserted bigint
);

-- The keys that a repair is to reconcile, each column's value as text.
CREATE TABLE IF NOT EXISTS headwater.fence_keys (
    request text NOT NULL REFERENCES headwater.fence_requests ON DELETE CASCADE,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    key text[] NOT NULL
);
-- Without a key of its own: see headwater.position.
ALTER TABLE headwater.fence_keys REPLICA IDENTITY FULL;
CREATE INDEX IF NOT EXISTS fence_keys_request ON headwater.fence_keys (request);
