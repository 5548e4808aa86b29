//! Tables for transactions that the source streams while they are in progress.

pub const STREAMED_SCHEMA: &str = "
    CREATE TABLE events (id bigint PRIMARY KEY, session int NOT NULL, value text, large text);
    CREATE TABLE loose (what text, n int);
    ALTER TABLE loose REPLICA IDENTITY FULL;
    INSERT INTO events SELECT i, i % 10, md5(i::text), repeat(md5(i::text), 80) FROM generate_series(1, 1000) i;
    INSERT INTO loose SELECT 'what', i % 3 FROM generate_series(1, 30) i;";

pub const STREAMED: &[&str] = &["events", "loose"];
