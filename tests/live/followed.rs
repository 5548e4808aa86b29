//! Migrations as applications make them are followed while rows are written: what arrives, what the destination's table is then, and
//! what an operator reads where one has to act.

use crate::support::roles::Roles;
use crate::support::suspension::all_live;
use crate::support::{Database, Service, Setup, destination, eventually, source};

async fn started(name: &str, tables: &[&str], schema: &str, at_destination: &str) -> (Database, Setup, Service) {
    let database = Database::of_superuser(name, tables, schema).await;
    if !at_destination.is_empty() {
        database.at_destination(at_destination).await;
    }
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    (database, setup, service)
}

async fn settles(database: &Database) {
    database.caught_up().await;
    all_live(database).await;
    database.assert_catches_up().await;
}

const WITHOUT_RECEIVE: &str = "CREATE EXTENSION seg; CREATE EXTENSION isn; CREATE EXTENSION intarray";

#[tokio::test(flavor = "multi_thread")]
async fn nulls_of_types_without_binary_functions_arrive_however_they_are_written() {
    let schema = format!(
        "{WITHOUT_RECEIVE}; CREATE DOMAIN mark AS seg; CREATE TYPE pair AS (s seg, n int);
         CREATE TABLE marks (id int PRIMARY KEY, s seg, i isbn13, q query_int, many seg[], d mark, p pair, v text);
         CREATE TABLE whole (id int, s seg, many seg[], i isbn13); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE plain (id int PRIMARY KEY, v text);
         INSERT INTO marks (id, v) VALUES (1, 'v'), (2, NULL);
         INSERT INTO marks VALUES (3, '1.5', '978-0-393-04002-9', '1&2', '{{1.5,NULL}}', '2', ('3', 1), 'v');
         INSERT INTO whole VALUES (1, NULL, NULL, NULL), (2, '1', '{{2}}', NULL), (2, '1', '{{2}}', NULL); INSERT INTO plain VALUES (1, 'v');"
    );
    let (database, _, service) = started("nullmarks", &["marks", "whole", "plain"], &schema, WITHOUT_RECEIVE).await;
    for change in [
        "INSERT INTO marks (id, v) VALUES (10, 'i')",
        "UPDATE marks SET v = 'w' WHERE id = 1",
        "UPDATE marks SET s = NULL, i = NULL, q = NULL, many = NULL, d = NULL, p = NULL WHERE id = 3",
        "UPDATE marks SET s = '1', i = '978-0-393-04002-9', q = '1', many = '{NULL}', d = '1', p = (NULL, NULL) WHERE id = 10",
        "INSERT INTO marks (id) SELECT i FROM generate_series(100, 400) i",
        "INSERT INTO marks (id, s) SELECT i, CASE WHEN i % 2 = 0 THEN '4'::seg END FROM generate_series(500, 3000) i",
        "UPDATE marks SET many = CASE WHEN id % 2 = 0 THEN '{NULL,5}'::seg[] END WHERE id > 99",
        "UPDATE marks SET id = -id WHERE id = 2",
        "DELETE FROM marks WHERE id BETWEEN 200 AND 300",
        "INSERT INTO whole VALUES (3, NULL, NULL, NULL), (4, NULL, '{NULL}', NULL)",
        "UPDATE whole SET s = '9' WHERE id = 1",
        "UPDATE whole SET s = NULL, many = NULL WHERE ctid = (SELECT ctid FROM whole WHERE id = 2 LIMIT 1)",
        "DELETE FROM whole WHERE id = 4",
        // In one transaction with what is written in between.
        "BEGIN; INSERT INTO marks (id) VALUES (4000); UPDATE marks SET s = '1' WHERE id = 4000;
         UPDATE marks SET s = NULL WHERE id = 4000; COMMIT",
    ] {
        database.at_source(change).await;
        database.assert_catches_up().await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_column_of_a_type_without_binary_functions_may_be_added_to_a_stream_in_binary() {
    let schema = format!(
        "{WITHOUT_RECEIVE}; CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain VALUES (1, 'v');"
    );
    let (database, _, service) = started("nulladded", &["plain"], &schema, WITHOUT_RECEIVE).await;
    for change in [
        "ALTER TABLE plain ADD COLUMN s seg; INSERT INTO plain VALUES (2, NULL, NULL)",
        "INSERT INTO plain VALUES (3, NULL, '1')",
        "ALTER TABLE plain ADD COLUMN q query_int[] DEFAULT '{1&2}'; UPDATE plain SET s = NULL",
        "INSERT INTO plain (id, q) SELECT i, NULL FROM generate_series(10, 1000) i",
    ] {
        database.at_source(change).await;
        settles(&database).await;
    }
    service.stop().await;
}

/// Which columns of which tables are NOT NULL.
const NULLABLE: &str = "SELECT string_agg(attrelid::regclass || '.' || attname || ' ' || attnotnull, ', ' ORDER BY attrelid::regclass::text, attname)
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
    WHERE attnum > 0 AND NOT attisdropped AND relkind = 'r' AND relnamespace = 'public'::regnamespace";

/// Each for a table of its own, t.
const MIGRATIONS: &[&[&str]] = &[
    &["ALTER TABLE t ADD a int", "UPDATE t SET a = 1", "ALTER TABLE t ALTER a SET NOT NULL"],
    &["BEGIN; ALTER TABLE t ADD a int; UPDATE t SET a = 1; ALTER TABLE t ALTER a SET NOT NULL; COMMIT"],
    &[
        "ALTER TABLE t ADD a int; ALTER TABLE t ALTER a SET DEFAULT 1",
        "INSERT INTO t (id, n) VALUES (30, 1)",
        "UPDATE t SET a = 1",
        "ALTER TABLE t ALTER a SET NOT NULL",
    ],
    &[
        "ALTER TABLE t ALTER n DROP NOT NULL",
        "INSERT INTO t VALUES (30, NULL)",
        "UPDATE t SET n = 2 WHERE n IS NULL",
        "ALTER TABLE t ALTER n SET NOT NULL",
    ],
    &["BEGIN; ALTER TABLE t ALTER n DROP NOT NULL; INSERT INTO t VALUES (30, NULL);
       UPDATE t SET n = 2 WHERE n IS NULL; ALTER TABLE t ALTER n SET NOT NULL; COMMIT"],
    &[
        "ALTER TABLE t ALTER n DROP NOT NULL",
        "ALTER TABLE t ALTER n SET NOT NULL, ADD a text NOT NULL DEFAULT 'a'",
        "ALTER TABLE t ALTER a DROP NOT NULL",
        "INSERT INTO t VALUES (30, 1, NULL)",
    ],
    &[
        "ALTER TABLE t ALTER n DROP NOT NULL",
        "INSERT INTO t VALUES (30, NULL)",
        "ALTER TABLE t DROP COLUMN n",
        "ALTER TABLE t ADD n int NOT NULL DEFAULT 3",
    ],
    &[
        "ALTER TABLE t ADD a int",
        "INSERT INTO t VALUES (30, 1, NULL)",
        "ALTER TABLE t ADD CONSTRAINT whole CHECK (a IS NOT NULL) NOT VALID",
        "UPDATE t SET a = 5 WHERE a IS NULL",
        "ALTER TABLE t VALIDATE CONSTRAINT whole; ALTER TABLE t ALTER a SET NOT NULL; ALTER TABLE t DROP CONSTRAINT whole",
    ],
];

/// Makes all migrations while `stopped` says whether headwater is stopped.
async fn not_nulls_follow(name: &str, stopped: bool) {
    let tables: Vec<String> = (0..MIGRATIONS.len()).map(|number| format!("t{number}")).collect();
    let create = |table: &String| {
        format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, n int NOT NULL); INSERT INTO {table} SELECT i, i FROM generate_series(1, 20) i;"
        )
    };
    let schema: Vec<String> = tables.iter().map(create).collect();
    let names: Vec<&str> = tables.iter().map(String::as_str).collect();
    let (database, setup, mut service) = started(name, &names, &schema.join("\n"), "").await;
    if stopped {
        service.signal("TERM");
        service.ended().await;
    }
    for (migration, table) in MIGRATIONS.iter().zip(&tables) {
        for statement in *migration {
            database
                .at_source(
                    &statement
                        .replace("TABLE t ", &format!("TABLE {table} "))
                        .replace("INTO t ", &format!("INTO {table} "))
                        .replace("UPDATE t ", &format!("UPDATE {table} ")),
                )
                .await;
        }
    }
    if stopped {
        service = setup.start();
        service.streams().await;
    }
    settles(&database).await;
    // NOT NULL comes with the table's next row.
    for table in &tables {
        database.at_source(&format!("UPDATE {table} SET id = id")).await;
    }
    settles(&database).await;
    assert_eq!(database.destination_value(NULLABLE).await, database.source_value(NULLABLE).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn not_null_that_is_set_and_dropped_in_quick_succession_ends_as_the_source_has_it() {
    not_nulls_follow("nnquick", false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn not_null_set_and_dropped_during_a_stop_ends_as_at_the_source() {
    not_nulls_follow("nnstopped", true).await;
}

/// The statements of the last hint of a log.
fn hint(log: &str) -> Option<String> {
    let (_, hint) = log.rsplit_once("HINT:")?;
    let statements = hint.lines().skip(1).take_while(|line| line.starts_with("            "));
    let statements: Vec<&str> = statements.map(str::trim).collect();
    (!statements.is_empty()).then(|| statements.join("\n"))
}

/// Waits until `rows` reads the same at both ends, every table is followed, and runs at the destination what is printed meanwhile: each
/// hint once. Returns what was run.
async fn settles_by_hints(database: &Database, service: &Service, rows: &str) -> Vec<String> {
    let mut run: Vec<String> = Vec::new();
    let end = database.source_value("SELECT pg_current_wal_lsn()::text").await.expect("a position");
    let sql = format!(
        "SELECT (position >= '{end}' AND NOT EXISTS (SELECT FROM headwater.tables WHERE state <> 'live')
             AND NOT EXISTS (SELECT FROM headwater.resnapshots WHERE state = 'requested'))::text FROM headwater.position"
    );
    loop {
        let next = eventually("the tables are followed, or a hint says how", || async {
            database.at_source("SELECT pg_logical_emit_message(true, 'test', 'caught up?')").await;
            if database.destination_value(&sql).await.as_deref() == Some("true") {
                return Some(None);
            }
            hint(&service.log()).filter(|hint| !run.contains(hint)).map(Some)
        });
        let Some(statements) = next.await else { break };
        database.at_destination(&statements).await;
        run.push(statements);
    }
    assert_eq!(database.destination_value(rows).await, database.source_value(rows).await, "after {run:#?}");
    run
}

const WIDENED_KEY: &str = "CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items SELECT i, 'v' FROM generate_series(1, 100) i;
    CREATE TABLE parts (id int PRIMARY KEY, item int REFERENCES items); INSERT INTO parts SELECT i, i FROM generate_series(1, 50) i;";

/// Adds a wider column, fills it and makes it the key, each step followed before the next one where `paced`; `last` says what becomes of
/// the old one in the same transaction, `later` afterwards. The key of the destination is the operator's to give up.
async fn a_key_is_expanded_and_contracted(name: &str, paced: bool, last: &str, later: &str) {
    let (database, _, service) = started(name, &["items", "parts"], WIDENED_KEY, "").await;
    for statement in [
        "ALTER TABLE items ADD COLUMN id_new bigint",
        "INSERT INTO items VALUES (101, 'w', 101)",
        "UPDATE items SET id_new = id WHERE id < 50",
        "UPDATE items SET id_new = id WHERE id_new IS NULL",
        "CREATE UNIQUE INDEX CONCURRENTLY items_new ON items (id_new)",
        "UPDATE items SET v = 'x' WHERE id = 5",
        "ALTER TABLE items ADD CONSTRAINT filled CHECK (id_new IS NOT NULL) NOT VALID",
        "ALTER TABLE items VALIDATE CONSTRAINT filled",
    ] {
        database.at_source(statement).await;
        if paced {
            database.caught_up().await;
        }
    }
    let swap = format!(
        "BEGIN; ALTER TABLE parts DROP CONSTRAINT parts_item_fkey; ALTER TABLE items DROP CONSTRAINT items_pkey;
         ALTER TABLE items RENAME id TO id_old; ALTER TABLE items RENAME id_new TO id; ALTER TABLE items ALTER id SET NOT NULL;
         ALTER TABLE items ADD CONSTRAINT items_pkey PRIMARY KEY USING INDEX items_new; {last};
         ALTER TABLE parts ADD CONSTRAINT parts_item_fkey FOREIGN KEY (item) REFERENCES items;
         INSERT INTO items (id, v) VALUES (3000000000, 'big'); COMMIT"
    );
    for statement in [
        &swap,
        "UPDATE items SET v = 'y' WHERE id = 6",
        later,
        "INSERT INTO items (id, v) VALUES (3000000001, 'bigger')",
        "UPDATE items SET v = 'z' WHERE id = 7; DELETE FROM items WHERE id = 80; UPDATE items SET id = -id WHERE id = 81",
    ] {
        database.at_source(statement).await;
    }
    // The column that is gone at the source stays here.
    let rows = "SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM items";
    let run = settles_by_hints(&database, &service, rows).await;
    assert!(run.concat().contains("ALTER TABLE public.items DROP CONSTRAINT items_pkey;"), "{run:#?}");
    // Its unique index comes with the table's next row.
    database.at_source("INSERT INTO items (id, v) VALUES (3000000002, 'biggest')").await;
    let index = "SELECT string_agg(pg_get_indexdef(indexrelid), '; ') FROM pg_index WHERE indrelid = 'items'::regclass AND indisunique";
    eventually("the new key is unique here", || async {
        database.destination_value(index).await.filter(|index| index.ends_with("btree (id)"))
    })
    .await;
    database.caught_up().await;
    assert_eq!(database.destination_value(rows).await, database.source_value(rows).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_key_that_is_expanded_and_contracted_is_followed_by_what_is_printed() {
    a_key_is_expanded_and_contracted("expand", false, "ALTER TABLE items DROP COLUMN id_old", "ANALYZE items").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_key_whose_old_column_stays_for_a_while_is_followed_by_what_is_printed() {
    let (last, later) = ("ALTER TABLE items ALTER id_old DROP NOT NULL", "ALTER TABLE items DROP COLUMN id_old");
    a_key_is_expanded_and_contracted("expandkept", true, last, later).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_text_column_that_becomes_an_enum_is_copied_into_the_new_type() {
    let of = |table: &str| {
        format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, state text NOT NULL DEFAULT 'new');
             INSERT INTO {table} SELECT i, CASE WHEN i % 2 = 0 THEN 'done' ELSE 'new' END FROM generate_series(1, 100) i;"
        )
    };
    let schema = format!("{}{}", of("jobs"), of("tasks"));
    let (database, _, service) = started("toenum", &["jobs", "tasks"], &schema, "").await;
    database
        .at_source(
            "BEGIN; CREATE TYPE job_state AS ENUM ('new', 'done', 'it''s late');
             ALTER TABLE jobs ALTER state DROP DEFAULT, ALTER state TYPE job_state USING state::job_state, ALTER state SET DEFAULT 'new';
             INSERT INTO jobs VALUES (101, 'it''s late'); COMMIT; INSERT INTO jobs VALUES (102)",
        )
        .await;
    settles(&database).await;
    // Texts that are no labels are not guessed: the old values are the operator's to give up.
    database
        .at_source(
            "CREATE TYPE task_state AS ENUM ('new', 'finished'); INSERT INTO tasks VALUES (101);
             ALTER TABLE tasks ALTER state DROP DEFAULT,
                 ALTER state TYPE task_state USING CASE state WHEN 'done' THEN 'finished' ELSE state END::task_state;
             INSERT INTO tasks VALUES (102, 'finished')",
        )
        .await;
    let run =
        settles_by_hints(&database, &service, "SELECT string_agg(id || ' ' || state, ', ' ORDER BY id) FROM tasks")
            .await;
    assert_eq!(run.len(), 1, "{run:#?}");
    database.at_source("ALTER TYPE job_state ADD VALUE 'failed'").await;
    database.at_source("INSERT INTO jobs VALUES (103, 'failed')").await;
    settles(&database).await;
    let types =
        "SELECT string_agg(format_type(atttypid, atttypmod), ' ' ORDER BY attrelid::regclass::text) FROM pg_attribute
        WHERE attrelid IN ('jobs'::regclass, 'tasks'::regclass) AND attname = 'state'";
    assert_eq!(database.destination_value(types).await.as_deref(), Some("job_state task_state"));
    service.stop().await;
}

/// Type, limit and last value of the sequences that columns own.
const COUNTERS: &str = "SELECT string_agg(d.refobjid::regclass || ' ' || q.seqtypid::regtype || ' '
        || q.seqmin || ' ' || q.seqmax || ' ' || pg_sequence_last_value(q.seqrelid),
        '; ' ORDER BY d.refobjid::regclass::text)
    FROM pg_sequence q JOIN pg_depend d ON d.objid = q.seqrelid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    WHERE d.refobjid IN ('orders'::regclass, 'lines'::regclass, 'down'::regclass)";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_serial_that_becomes_a_bigint_identity_has_a_sequence_as_wide_that_follows() {
    let schema = "CREATE TABLE orders (id serial PRIMARY KEY, v text); INSERT INTO orders (v) SELECT 'v' FROM generate_series(1, 10);
        CREATE TABLE lines (id serial PRIMARY KEY, v text); INSERT INTO lines (v) SELECT 'v' FROM generate_series(1, 10);
        CREATE TABLE down (id int GENERATED ALWAYS AS IDENTITY (INCREMENT -1) PRIMARY KEY, v text); INSERT INTO down (v) VALUES ('v')";
    let (database, setup, service) = started("wideseq", &["orders", "lines", "down"], schema, "").await;
    database
        .at_source(
            "BEGIN; ALTER TABLE orders ALTER id DROP DEFAULT; DROP SEQUENCE orders_id_seq; ALTER TABLE orders ALTER id TYPE bigint;
             ALTER TABLE orders ALTER id ADD GENERATED ALWAYS AS IDENTITY (START 5000000000); INSERT INTO orders (v) VALUES ('big'); COMMIT;
             ALTER TABLE lines ALTER id TYPE bigint; ALTER SEQUENCE lines_id_seq AS bigint; SELECT setval('lines_id_seq', 6000000000);
             INSERT INTO lines (v) VALUES ('big'); INSERT INTO orders (v) VALUES ('next');
             ALTER TABLE down ALTER id TYPE bigint; ALTER TABLE down ALTER id RESTART -7000000000; INSERT INTO down (v) VALUES ('low')",
        )
        .await;
    settles(&database).await;
    setup.command(&["cutover"]).await.exits(0);
    assert_eq!(database.destination_value(COUNTERS).await, database.source_value(COUNTERS).await);
    service.says("sequence public.lines_id_seq at the destination is bigint now, as at the source").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_sequence_that_may_not_be_widened_is_told_with_a_statement_that_runs() {
    let schema = "CREATE TABLE lines (id bigserial PRIMARY KEY, v text); INSERT INTO lines (v) VALUES ('v')";
    let database = Database::of_superuser("narrowseq", &["lines"], schema).await;
    database
        .at_destination(
            "CREATE TABLE lines (id bigint PRIMARY KEY, v text); CREATE SEQUENCE mine AS integer OWNED BY lines.id",
        )
        .await;
    let setup = Setup::of(&database).setting("schema_changes = \"stop\"");
    let service = setup.start();
    service.streams().await;
    let told = setup.command(&["cutover"]).await;
    assert!(format!("{}{}", told.out, told.err).contains("ALTER SEQUENCE public.mine AS bigint;"), "{told:?}");
    database.at_source("SELECT setval('lines_id_seq', 6000000000)").await;
    let told = setup.command(&["cutover"]).await.says(&["sequence public.mine at the destination cannot follow"]);
    let told = format!("{}{}", told.out, told.err);
    let statement = told.lines().find(|line| line.trim_start().starts_with("ALTER SEQUENCE")).expect("a statement");
    database.at_destination(statement).await;
    setup.command(&["cutover"]).await.exits(0);
    assert_eq!(database.destination_value("SELECT last_value::text FROM mine").await.as_deref(), Some("6000000000"));
    service.stop().await;
}

/// Makes a table of the leaf's and attaches it, empty.
fn attach(root: &str, value: &str) -> String {
    format!(
        "CREATE TABLE {root}_{value} (LIKE {root} INCLUDING ALL); ALTER TABLE {root}_{value} ADD CHECK (name = '{value}');
         ALTER TABLE {root} ATTACH PARTITION {root}_{value} FOR VALUES IN ('{value}')"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_of_partitions_that_were_attached_empty_or_detached_are_followed() {
    let roots = ["inside", "behind", "beneath", "apart", "brought"];
    let create = |root: &&str| {
        format!(
            "CREATE TABLE {root} (id int, name text, PRIMARY KEY (id, name)) PARTITION BY LIST (name);
             CREATE TABLE {root}_a PARTITION OF {root} FOR VALUES IN ('a'); CREATE TABLE {root}_b PARTITION OF {root} FOR VALUES IN ('b');
             INSERT INTO {root} SELECT i, 'a' FROM generate_series(1, 100) i; INSERT INTO {root} VALUES (1, 'b');"
        )
    };
    let schema: Vec<String> = roots.iter().map(create).collect();
    let (database, setup, mut service) = started("attachempty", &roots, &schema.concat(), "").await;
    let changes = async |leaf: &str| {
        let at = |root: &str| attach(root, leaf);
        database.at_source(&format!("BEGIN; {}; INSERT INTO inside VALUES (1, '{leaf}'); COMMIT", at("inside"))).await;
        database.at_source(&at("behind")).await;
        database.at_source(&format!("INSERT INTO behind VALUES (1, '{leaf}'); DELETE FROM behind WHERE id = 7")).await;
        database.at_source(&at("beneath")).await;
        database.at_source(&format!("INSERT INTO beneath_{leaf} VALUES (1, '{leaf}'), (2, '{leaf}')")).await;
        let full = format!("; INSERT INTO brought_{leaf} SELECT i, '{leaf}' FROM generate_series(1, 9) i; ALTER");
        database.at_source(&at("brought").replacen("; ALTER", &full, 1)).await;
        database.at_source(&format!("UPDATE brought SET id = id + 100 WHERE name = '{leaf}' AND id < 5")).await;
    };
    changes("c").await;
    database.at_source("ALTER TABLE apart DETACH PARTITION apart_b CONCURRENTLY").await;
    database.at_source("INSERT INTO apart VALUES (200, 'a')").await;
    settles(&database).await;
    service.stop().await;
    changes("d").await;
    service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO behind VALUES (2, 'd'); UPDATE brought SET id = id + 1000").await;
    settles(&database).await;
    service.stop().await;
}

const FAMILY: &str = "CREATE TABLE parents (id int PRIMARY KEY, v text); CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents);
    INSERT INTO parents SELECT i, 'v' FROM generate_series(1, 5) i; INSERT INTO children SELECT i, i FROM generate_series(1, 5) i";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn foreign_key_conflicts_are_named_and_each_printed_way_out_works() {
    let roles = Roles::Least { replica: false };
    let database =
        Database::under(roles, source().await, destination().await, "orphan", &["parents", "children"], FAMILY).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let met = async |said: &str| {
        service.is("waiting").await;
        service.says(said).await;
        let (code, shown) = service.command(&["conflict", "show"]).await;
        assert_eq!(code, Some(1), "{shown}");
        for part in [
            "foreign_key_violation on public.children",
            "constraint or column: children_parent_fkey (parent)",
            "headwater skip --end-lsn",
        ] {
            assert!(shown.contains(part), "no {part:?} in {shown}");
        }
    };
    database
        .at_destination("BEGIN; DELETE FROM children WHERE parent = 3; DELETE FROM parents WHERE id = 3; COMMIT")
        .await;
    database.at_source("INSERT INTO children VALUES (30, 3)").await;
    met("insert or update on table \"children\" violates foreign key constraint \"children_parent_fkey\"").await;
    database.at_destination("INSERT INTO parents VALUES (3, 'v'); INSERT INTO children VALUES (3, 3)").await;
    service.streams().await;
    settles(&database).await;
    database.at_destination("INSERT INTO children VALUES (99, 4)").await;
    database.at_source("DELETE FROM children WHERE parent = 4; DELETE FROM parents WHERE id = 4").await;
    met("update or delete on table \"parents\" violates foreign key constraint \"children_parent_fkey\"").await;
    // The other way out, as it is printed.
    let log = service.log();
    let (_, skip) = log.rsplit_once("headwater skip ").expect("a way out");
    let skip: Vec<&str> =
        std::iter::once("skip").chain(skip.lines().next().unwrap_or_default().split_whitespace()).collect();
    let (code, said) = service.command(&skip).await;
    assert_eq!(code, Some(0), "{said}");
    service.streams().await;
    database.caught_up().await;
    let left = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM parents";
    assert_eq!(database.destination_value(left).await.as_deref(), Some("1 2 3 4 5"), "what was skipped stays");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_that_refuses_a_row_at_the_commit_is_named_with_its_way_out() {
    let roles = Roles::Least { replica: false };
    let family = FAMILY.replace("REFERENCES parents", "REFERENCES parents DEFERRABLE INITIALLY DEFERRED");
    let database =
        Database::under(roles, source().await, destination().await, "late", &["parents", "children"], &family).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_destination("BEGIN; DELETE FROM children WHERE parent = 3; DELETE FROM parents WHERE id = 3; COMMIT")
        .await;
    database.at_source("INSERT INTO children VALUES (30, 3)").await;
    service.is("waiting").await;
    service.says("violates foreign key constraint \"children_parent_fkey\"").await;
    let (code, shown) = service.command(&["conflict", "show"]).await;
    assert_eq!(code, Some(1), "{shown}");
    for part in [
        "foreign_key_violation on public.children",
        "constraint or column: children_parent_fkey (parent)",
        "headwater skip --end-lsn",
    ] {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    database.at_destination("INSERT INTO parents VALUES (3, 'v'); INSERT INTO children VALUES (3, 3)").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}
