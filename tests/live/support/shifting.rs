//! A table whose shape changes while it is written: random schema changes that headwater follows, made by the source itself.
//!
//! Two functions at the source look at the table as it is and draw what to do from a number, so that sessions side by side
//! need not know what became of it. `shift` makes one schema change; `touch` writes rows and one column.

use super::Database;

pub const TABLE: &str = "public.shifting";

pub const SCHEMA: &str = r"
    CREATE TYPE mood AS ENUM ('m0');
    CREATE TABLE shifting (id int PRIMARY KEY, m mood, x0 varchar(5), x1 int NOT NULL DEFAULT 1);
    INSERT INTO shifting SELECT i, 'm0', 'x' FROM generate_series(1, 200) i;
    CREATE FUNCTION a_column(chance int, OUT name name, OUT type text, OUT not_null bool, OUT of bigint) LANGUAGE sql AS $$
        SELECT attname, format_type(atttypid, atttypmod), attnotnull, count(*) OVER () FROM pg_attribute
        WHERE attrelid = 'shifting'::regclass AND attnum > 0 AND NOT attisdropped AND attname LIKE 'x%'
        ORDER BY md5(attname || chance) LIMIT 1 $$;
    CREATE FUNCTION shift(chance int) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        c record;
        kinds text[] := ARRAY['int NOT NULL DEFAULT 7', 'varchar(5) DEFAULT ''d''', 'text', 'mood DEFAULT ''m0'''];
    BEGIN
        PERFORM set_config('lock_timeout', '2s', true);
        c := a_column(chance);
        CASE chance % 8
            WHEN 0, 1, 2 THEN
                IF c.of < 12 THEN
                    EXECUTE format('ALTER TABLE shifting ADD COLUMN %I %s', 'x' || chance, kinds[1 + chance / 8 % 4]);
                END IF;
            WHEN 3 THEN
                IF c.of > 2 THEN
                    EXECUTE format('ALTER TABLE shifting DROP COLUMN %I', c.name);
                END IF;
            WHEN 4 THEN EXECUTE format('ALTER TABLE shifting RENAME COLUMN %I TO %I', c.name, 'x' || chance);
            WHEN 5 THEN
                IF c.type = 'integer' THEN
                    EXECUTE format('ALTER TABLE shifting ALTER COLUMN %I TYPE bigint', c.name);
                ELSIF c.type LIKE 'character varying(%' THEN
                    EXECUTE format('ALTER TABLE shifting ALTER COLUMN %I TYPE varchar(%s)', c.name,
                        substring(c.type FROM '\d+')::int + 5);
                END IF;
            WHEN 6 THEN
                IF (SELECT count(*) FROM pg_index WHERE indrelid = 'shifting'::regclass) < 6 THEN
                    EXECUTE format('CREATE UNIQUE INDEX ON shifting (id, %I)', c.name);
                END IF;
            ELSE
                IF (SELECT count(*) FROM pg_enum WHERE enumtypid = 'mood'::regtype) < 40 THEN
                    EXECUTE format('ALTER TYPE mood ADD VALUE %L', 'm' || chance);
                END IF;
        END CASE;
    END $$;
    CREATE FUNCTION touch(chance int) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        c record;
        labels mood[] := enum_range(NULL::mood);
        label mood := labels[1 + chance % cardinality(labels)];
    BEGIN
        c := a_column(chance);
        INSERT INTO shifting (id, m) VALUES (chance % 300, label) ON CONFLICT (id) DO UPDATE SET m = EXCLUDED.m;
        DELETE FROM shifting WHERE id = chance / 7 % 300;
        EXECUTE format('UPDATE shifting SET %I = %L WHERE id %% 9 = %s', c.name,
            CASE WHEN chance % 5 = 0 AND NOT c.not_null THEN NULL
                 WHEN c.type = 'mood' THEN label::text
                 WHEN c.type LIKE 'character varying(%' THEN left(md5(chance::text), substring(c.type FROM '\d+')::int)
                 ELSE (chance % 1000)::text END,
            chance % 9);
    END $$;";

/// Columns and their types, by name.
const COLUMNS: &str = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attname)
    FROM pg_attribute WHERE attrelid = 'shifting'::regclass AND attnum > 0 AND NOT attisdropped";

/// The table described once more, as its last change asks for.
pub async fn describe(database: &Database) {
    database.at_source("INSERT INTO shifting (id) VALUES (-1); DELETE FROM shifting WHERE id = -1").await;
}

/// Drops what the source has dropped, as an operator may under the running service; the columns are then the source's.
pub async fn tidy(database: &Database) {
    let known = "SELECT COALESCE(string_agg(quote_literal(attname), ', '), '') FROM pg_attribute
                 WHERE attrelid = 'shifting'::regclass AND attnum > 0 AND NOT attisdropped";
    let known = database.source_value(known).await.unwrap_or_default();
    let drops = format!(
        "SELECT COALESCE(string_agg(format('ALTER TABLE shifting DROP COLUMN %I', attname), '; '), '') FROM pg_attribute
         WHERE attrelid = 'shifting'::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT IN ({known})"
    );
    let drops = database.destination_value(&drops).await.unwrap_or_default();
    database.at_destination(&drops).await;
    assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await);
}
