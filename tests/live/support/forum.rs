//! The forum of three tables that many tests copy.

pub const FORUM: &[&str] = &["public.sections", "public.topics", "public.messages"];

/// A small forum: every kind of key, default and constraint that the demo has.
pub const FORUM_SCHEMA: &str = "
    CREATE TABLE sections (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, place int);
    CREATE TABLE topics (id serial PRIMARY KEY, section_id int NOT NULL REFERENCES sections ON DELETE CASCADE,
        title varchar(200) NOT NULL DEFAULT 'untitled', created_at timestamptz DEFAULT now(), CHECK (length(title) > 0));
    CREATE TABLE messages (id bigint PRIMARY KEY, topic_id int NOT NULL REFERENCES topics ON DELETE CASCADE,
        body text, score numeric(10, 2), edited boolean DEFAULT false);
    CREATE INDEX ON messages (topic_id);
    CREATE INDEX ON topics (section_id, created_at DESC);
    INSERT INTO sections (name, place) SELECT 'section ' || i, i FROM generate_series(1, 10) i;
    INSERT INTO topics (section_id, title) SELECT 1 + i % 10, 'topic ' || i FROM generate_series(1, 100) i;
    INSERT INTO messages SELECT i, 1 + i % 100, repeat(md5(i::text), 4), i * 0.5, false FROM generate_series(1, 5000) i;";
