//! What was created from the source's definitions is looked through before it is used: an event trigger at the destination adds what
//! no statement of headwater's contains, and nothing of it stays.

use crate::support::{Database, Setup};

const TABLES: &[&str] = &["t"];
const SCHEMA: &str = "
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE t (id int PRIMARY KEY, v positive, w text DEFAULT 'w');
    INSERT INTO t SELECT i, i FROM generate_series(1, 10) i";

/// A command of headwater's, and what is added behind it, inside the same transaction.
struct Addition {
    name: &'static str,
    tag: &'static str,
    sql: &'static str,
    /// The object that is named, and what it would use.
    says: &'static str,
}

const ADDITIONS: &[Addition] = &[
    Addition {
        name: "domain",
        tag: "CREATE DOMAIN",
        sql: "ALTER DOMAIN public.positive ADD CONSTRAINT added CHECK (public.outside(VALUE) > 0)",
        says: "constraint added would use function public.outside(integer)",
    },
    Addition {
        name: "check",
        tag: "CREATE TABLE",
        sql: "ALTER TABLE %s ADD CONSTRAINT added CHECK (public.outside(id) > 0)",
        says: "would use function public.outside(integer)",
    },
    Addition {
        name: "default",
        tag: "CREATE TABLE",
        sql: "ALTER TABLE %s ALTER COLUMN v SET DEFAULT public.outside(1)",
        says: "default value for column v of table",
    },
    Addition {
        name: "builtin",
        tag: "CREATE TABLE",
        sql: "ALTER TABLE %s ALTER COLUMN w SET DEFAULT pg_catalog.pg_read_file('postgresql.conf')",
        says: "would use function pg_read_file(text)",
    },
    Addition {
        name: "index",
        tag: "CREATE TABLE",
        sql: "CREATE INDEX added ON %s (public.outside(id))",
        says: "would use function public.outside(integer)",
    },
    // The move to where it belongs is a part of publishing.
    Addition {
        name: "published",
        tag: "ALTER TABLE",
        sql: "ALTER TABLE %s DROP CONSTRAINT IF EXISTS added, ADD CONSTRAINT added CHECK (public.outside(id) > 0)",
        says: "constraint added on table public.t would use function public.outside(integer)",
    },
];

/// The event trigger of an addition, for tables with a column w.
fn adding(addition: &Addition) -> String {
    format!(
        "CREATE FUNCTION add() RETURNS event_trigger LANGUAGE plpgsql AS $add$
         DECLARE made record;
         BEGIN
             IF pg_catalog.current_setting('test.adding', true) = 'yes' THEN RETURN; END IF;
             FOR made IN SELECT * FROM pg_catalog.pg_event_trigger_ddl_commands() LOOP
                 IF made.object_type = 'table' AND EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = made.objid AND attname = 'w')
                    OR made.object_type = 'type' THEN
                     PERFORM pg_catalog.set_config('test.adding', 'yes', true);
                     EXECUTE pg_catalog.format($sql${}$sql$, made.object_identity);
                     PERFORM pg_catalog.set_config('test.adding', 'no', true);
                 END IF;
             END LOOP;
         END $add$;
         CREATE EVENT TRIGGER adds ON ddl_command_end WHEN TAG IN ('{}') EXECUTE FUNCTION add();
         ALTER EVENT TRIGGER adds ENABLE ALWAYS",
        addition.sql, addition.tag
    )
}

/// Neither the table, nor its type, nor staging.
const LEFT: &str = "
    SELECT pg_catalog.concat_ws(' ', pg_catalog.to_regclass('public.t'), pg_catalog.to_regtype('public.positive'),
        (SELECT pg_catalog.string_agg(nspname, ' ') FROM pg_catalog.pg_namespace WHERE nspname LIKE 'headwater\\_%'))";

async fn new(name: &str) -> Database {
    let database = Database::of_superuser(name, TABLES, SCHEMA).await;
    let outside = "CREATE FUNCTION outside(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'";
    database.at_destination(outside).await;
    database
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_was_added_to_a_created_object_is_refused_and_nothing_of_it_stays() {
    for addition in ADDITIONS {
        println!("{}", addition.name);
        let database = new(&format!("added_{}", addition.name)).await;
        database.at_destination(&adding(addition)).await;
        let setup = Setup::of(&database);
        let output = setup.start().ends_with(1).await;
        let said = output.contains("cannot take over the source's definitions: ") && output.contains(addition.says);
        assert!(said, "{output}");
        // The domain of a table that was refused was committed before, as the source has it.
        let left = database.destination_value(LEFT).await.expect("a text");
        assert!(left.is_empty() || (left == "positive" && addition.name != "domain"), "{left}");
        database.at_destination("DROP EVENT TRIGGER adds").await;
        let service = setup.start();
        service.streams().await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn additions_to_a_column_from_the_stream_are_rolled_back_with_its_transaction() {
    let database = new("added_column").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_destination(&adding(&Addition {
            name: "column",
            tag: "ALTER TABLE",
            sql: "ALTER TABLE %s ALTER COLUMN n SET DEFAULT public.outside(1)",
            says: "",
        }))
        .await;
    database.at_source("ALTER TABLE t ADD COLUMN n int DEFAULT 5; INSERT INTO t VALUES (100, 1, 'x', 7)").await;
    service.says("default value for column n of table public.t would use function public.outside(integer)").await;
    service.is("waiting").await;
    let columns = "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'n'";
    assert_eq!(database.destination_value(columns).await.as_deref(), Some("0"));
    assert_eq!(database.destination_value("SELECT count(*)::text FROM t WHERE id = 100").await.as_deref(), Some("0"));
    // Without it the service continues by itself.
    database.at_destination("DROP EVENT TRIGGER adds").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}
