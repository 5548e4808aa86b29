//! What is done to a table at the source and is in no message of the stream: values rewritten, leaves emptied and taken away,
//! tables that were unlogged or out of the publication for a while. Nobody writes the tables afterwards.

use crate::support::database::partitioned_table;
use crate::support::findings::{failed, fix, mended};
use crate::support::suspension::all_live;
use crate::support::{Database, Setup, at_each, bin_of, destination, eventually, major, new_source_of, source};

/// Streams the tables, makes all changes, and waits until every table is equal and followed.
async fn found(name: &str, tables: &[&str], schema: &str, changes: &str) -> String {
    let database = Database::new(name, tables, schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database.at_source(changes).await;
    for table in tables {
        database.becomes_equal(table).await;
    }
    all_live(&database).await;
    database.assert_catches_up().await;
    service.streams().await;
    let log = service.log();
    service.stop().await;
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_alter_table_has_rewritten_are_copied_though_their_type_fits() {
    let log = found(
        "rewritten",
        &["price", "digits", "instants", "words", "floats", "wider", "shorter", "other"],
        "CREATE TABLE price (id int PRIMARY KEY, v int); INSERT INTO price VALUES (1, 1), (2, 2);
         CREATE TABLE digits (id int PRIMARY KEY, v numeric); INSERT INTO digits VALUES (1, 1.23456), (2, 2);
         CREATE TABLE instants (id int PRIMARY KEY, v timestamp); INSERT INTO instants VALUES (1, '2026-01-01 00:00:00.6');
         CREATE TABLE words (id int PRIMARY KEY, v text); INSERT INTO words VALUES (1, 'Word');
         CREATE TABLE floats (id int PRIMARY KEY, v float8); INSERT INTO floats VALUES (1, 1.23456789012345);
         CREATE TABLE wider (id int PRIMARY KEY, v int); INSERT INTO wider VALUES (1, 1), (2, 2);
         CREATE TABLE shorter (id int PRIMARY KEY, v varchar(20)); INSERT INTO shorter VALUES (1, 'longer than five');
         CREATE TABLE other (id int PRIMARY KEY, v int); INSERT INTO other VALUES (1, 1);",
        "ALTER TABLE price ALTER v TYPE int USING v * 100; ALTER TABLE digits ALTER v TYPE numeric(10,2);
         ALTER TABLE instants ALTER v TYPE timestamp(0); ALTER TABLE words ALTER v TYPE text USING lower(v);
         ALTER TABLE floats ALTER v TYPE float4; ALTER TABLE wider ALTER v TYPE bigint USING v * 100;
         ALTER TABLE shorter ALTER v TYPE varchar(5) USING left(v, 5);",
    )
    .await;
    assert!(log.contains("the table was rewritten, and the values of column v may be others"), "{log}");
    assert!(!log.contains("table public.other has rows and will be reconciled"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn leaves_that_are_emptied_dropped_detached_or_attached_with_rows_are_noticed() {
    let tree = |name: &str| {
        format!(
            "CREATE TABLE {name} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (10);
             CREATE TABLE {name}_2 PARTITION OF {name} FOR VALUES FROM (10) TO (20);
             INSERT INTO {name} SELECT i, 'v' FROM generate_series(1, 19) i;"
        )
    };
    let tables = ["emptied", "dropped", "detached", "attached", "awhile"];
    let schema: Vec<String> = tables.iter().map(|name| tree(name)).collect();
    let log = found(
        "leaves",
        &tables,
        &schema.join("\n"),
        "TRUNCATE emptied_1; DROP TABLE dropped_1; ALTER TABLE detached DETACH PARTITION detached_1;
         CREATE TABLE attached_3 (id int NOT NULL PRIMARY KEY, v text); INSERT INTO attached_3 VALUES (25, 'brought');
         ALTER TABLE attached ATTACH PARTITION attached_3 FOR VALUES FROM (20) TO (30);
         ALTER TABLE awhile DETACH PARTITION awhile_1; INSERT INTO awhile_1 VALUES (0, 'not sent');
         ALTER TABLE awhile ATTACH PARTITION awhile_1 FOR VALUES FROM (0) TO (10);",
    )
    .await;
    assert!(log.contains("partition public.dropped_1 was dropped or detached"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn keys_of_an_emptied_leaf_that_come_again_lead_to_a_copy_and_to_no_halt() {
    let log = found(
        "emptiedkeys",
        &["t", "other"],
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10);
         CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (10) TO (20);
         INSERT INTO t SELECT i, 'v' FROM generate_series(1, 19) i;
         CREATE TABLE other (id int PRIMARY KEY, v int); INSERT INTO other VALUES (1, 1);",
        "TRUNCATE t_1; INSERT INTO t SELECT i, 'again' FROM generate_series(3, 6) i; UPDATE other SET v = 2",
    )
    .await;
    assert!(log.contains("partition public.t_1 was emptied, rewritten or taken away"), "{log}");
    assert!(!log.contains("conflict: insert"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_written_while_a_table_was_unlogged_or_out_of_the_publication_are_found() {
    let name = "unlogged";
    let database = Database::new(
        name,
        &["trip", "left"],
        "CREATE TABLE trip (id int PRIMARY KEY, v int); INSERT INTO trip VALUES (1, 1);
         CREATE TABLE \"left\" (id int PRIMARY KEY, v int); INSERT INTO \"left\" VALUES (1, 1);",
    )
    .await;
    let setup = Setup { tables: vec!["trip".to_owned(), "\"left\"".to_owned()], ..Setup::of(&database) };
    database.at_source(&format!("CREATE PUBLICATION {0} FOR TABLE trip, \"left\"", database.name)).await;
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source(&format!(
            "ALTER PUBLICATION {0} DROP TABLE trip; ALTER TABLE trip SET UNLOGGED; INSERT INTO trip VALUES (2, 2);
             ALTER TABLE trip SET LOGGED; ALTER PUBLICATION {0} ADD TABLE trip;
             ALTER PUBLICATION {0} DROP TABLE \"left\"; INSERT INTO \"left\" VALUES (2, 2);
             ALTER PUBLICATION {0} ADD TABLE \"left\"",
            database.name
        ))
        .await;
    database.becomes_equal("trip").await;
    database.becomes_equal("\"left\"").await;
    all_live(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_were_moved_to_other_files_stay_as_they_are() {
    let database = Database::new(
        "moved",
        &["t", "plain", "third"],
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
         CREATE TABLE plain (id int PRIMARY KEY, v int); INSERT INTO plain SELECT i, i FROM generate_series(1, 100) i;
         CREATE TABLE third (id int PRIMARY KEY, v varchar(20)); INSERT INTO third SELECT i, 'v' FROM generate_series(1, 100) i;",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let statistics = "ALTER TABLE third ALTER v SET STATISTICS 7";
    for statement in ["VACUUM FULL t", "CLUSTER t USING t_pkey", "TRUNCATE plain", statistics, "VACUUM FULL t"] {
        database.at_source(statement).await;
    }
    file_is_known(&database, "t").await;
    database.assert_catches_up().await;
    service.assert_not_copied();
    service.stop().await;
}

/// Waits until the monitor has seen the file that a table has by now.
async fn file_is_known(database: &Database, table: &str) {
    let file = format!("SELECT relfilenode::text FROM pg_class WHERE oid = '{table}'::regclass");
    let now = database.source_value(&file).await.expect("a file");
    let known = format!(
        "SELECT (fingerprint::text LIKE '%, {now}, %')::text FROM headwater.shapes WHERE shape ->> 'name' LIKE '%\"{table}\"%'"
    );
    eventually("the monitor knows the new file", || async {
        (database.destination_value(&known).await.as_deref() == Some("true")).then_some(())
    })
    .await;
}

/// A column that migrations add, fill and make NOT NULL, with a look of the monitor (`|`) at each place in between.
const FILLED: &[(&str, &str)] = &[
    ("added", "ALTER TABLE added ADD f int; | UPDATE added SET f = id; ALTER TABLE added ALTER f SET NOT NULL"),
    ("filled", "ALTER TABLE filled ADD f int; UPDATE filled SET f = id; | ALTER TABLE filled ALTER f SET NOT NULL"),
    (
        "promised",
        "ALTER TABLE promised ADD f int; UPDATE promised SET f = id; ALTER TABLE promised ALTER f SET NOT NULL; |",
    ),
    ("known", "ALTER TABLE known ALTER n SET NOT NULL; |"),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_column_becomes_not_null_wherever_a_look_comes_between_its_changes() {
    let names: Vec<&str> = FILLED.iter().map(|(name, _)| *name).chain(["moved"]).collect();
    let table = |name: &&str| {
        format!("CREATE TABLE {name} (id int PRIMARY KEY, n int, v text); INSERT INTO {name} VALUES (1, 1), (2, 2);")
    };
    let database = Database::new("filled", &names, &names.iter().map(table).collect::<String>()).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    for (_, changes) in FILLED {
        for statements in changes.split_inclusive('|') {
            for statement in statements.trim_end_matches('|').split(';').filter(|text| !text.trim().is_empty()) {
                database.at_source(statement).await;
            }
            if statements.ends_with('|') {
                // The look that has seen this has seen that.
                database.at_source("VACUUM FULL moved").await;
                file_is_known(&database, "moved").await;
            }
        }
    }
    for (name, _) in FILLED {
        let columns = if *name == "known" { "(id, n)" } else { "(id, f)" };
        database.at_source(&format!("INSERT INTO {name} {columns} VALUES (3, 3)")).await;
    }
    database.assert_catches_up().await;
    for (name, _) in FILLED {
        let column = if *name == "known" { "n" } else { "f" };
        let is_not_null = format!(
            "SELECT attnotnull::text FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attname = '{column}'"
        );
        assert_eq!(
            database.destination_value(&is_not_null).await.as_deref(),
            Some("true"),
            "{name}:\n{}",
            service.log()
        );
    }
    service.assert_not_copied();
    service.stop().await;
}

const HARMLESS: &[&str] = &[
    "CREATE INDEX ON t (v)",
    "CREATE UNIQUE INDEX t_v ON t (v, id); DROP INDEX t_v",
    "ANALYZE",
    "GRANT SELECT ON t, tree TO PUBLIC",
    "COMMENT ON TABLE t IS 'a comment'; ALTER TABLE t SET (fillfactor = 70)",
    "ALTER TABLE t ADD COLUMN constant int DEFAULT 5",
    "ALTER TABLE t ADD COLUMN empty text",
    "UPDATE t SET v = v || '.' WHERE id = 1",
    "VACUUM FULL t",
    "ALTER TABLE t ALTER v TYPE varchar(50)",
    "UPDATE t SET v = v || '.' WHERE id = 2",
    "ALTER TABLE t ALTER empty SET STATISTICS 7; ALTER TABLE t ALTER constant SET DEFAULT 6",
    "ALTER TABLE t RENAME v TO w; ALTER TABLE t RENAME id TO number; ALTER TABLE t RENAME number TO id",
    "UPDATE t SET w = w || '.' WHERE id = 3",
    "ALTER TABLE t ADD CHECK (id > 0); ALTER TABLE t ALTER w SET NOT NULL; ALTER TABLE t REPLICA IDENTITY FULL",
    "ALTER TYPE mood ADD VALUE 'fine'; ALTER TYPE mood RENAME TO humour; ALTER TYPE humour RENAME TO mood",
    "ALTER TYPE pair RENAME ATTRIBUTE a TO b",
    "ALTER TABLE t REPLICA IDENTITY DEFAULT",
    "UPDATE t SET w = w || '.' WHERE id = 4",
    "CREATE TABLE tree_2 PARTITION OF tree FOR VALUES FROM (10) TO (20); INSERT INTO tree VALUES (11, 'new')",
    "ALTER TABLE tree_2 RENAME TO tree_second; ALTER TABLE tree ADD COLUMN added text; UPDATE tree SET v = 'w' WHERE id = 11",
    "VACUUM FULL t",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn changes_that_touch_no_values_lead_to_no_copy_whoever_sees_them_and_when() {
    let database = Database::new(
        "harmless",
        &["t", "tree"],
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int);
         CREATE TABLE t (id int PRIMARY KEY, v varchar(20), m mood, p pair,
             g int GENERATED ALWAYS AS (id * 2) STORED);
         INSERT INTO t (id, v, m) SELECT i, 'v', 'ok' FROM generate_series(1, 100) i;
         CREATE TABLE tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE tree_1 PARTITION OF tree FOR VALUES FROM (0) TO (10); INSERT INTO tree VALUES (1, 'v');",
    )
    .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    for statements in HARMLESS {
        for statement in statements.split("; ") {
            database.at_source(statement).await;
        }
        // The value of an added column for old rows is in the catalog until VACUUM FULL puts it into them.
        if statements.starts_with("UPDATE") {
            database.caught_up().await;
        }
    }
    file_is_known(&database, "t").await;
    database.assert_catches_up().await;
    service.assert_not_copied();
    service.stop().await;
    // And while nobody looks: what the next start finds.
    for statement in ["ALTER TABLE t ALTER constant SET STATISTICS 9", "VACUUM FULL t", "GRANT SELECT ON t TO PUBLIC"] {
        database.at_source(statement).await;
    }
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE t SET w = w || '.' WHERE id = 5").await;
    file_is_known(&database, "t").await;
    database.assert_catches_up().await;
    service.assert_not_copied();
    service.stop().await;
}

/// Attaches a table that was created on its own as a tree's second leaf, once `filled` was done to it.
fn attach(name: &str, filled: &str) -> String {
    format!(
        "CREATE TABLE {name}_2 (LIKE {name}); {filled} ALTER TABLE {name} ATTACH PARTITION {name}_2 FOR VALUES FROM (10) TO (20);"
    )
}

/// Attaches a partitioned table with a leaf.
fn attach_tree(name: &str, filled: &str) -> String {
    format!(
        "CREATE TABLE {name}_2 (LIKE {name}) PARTITION BY RANGE (id); CREATE TABLE {name}_3 PARTITION OF {name}_2 FOR VALUES FROM (10) TO (15);
         {filled} ALTER TABLE {name} ATTACH PARTITION {name}_2 FOR VALUES FROM (10) TO (20);"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn tables_that_were_attached_are_copied_though_they_are_empty_by_now() {
    let tables = ["deleted", "updated", "truncated", "again", "deep", "moved", "twice", "at_once"];
    let schema: Vec<String> = tables.iter().map(|name| partitioned_table(name)).collect();
    let database = Database::new("attachedvacated", &tables, &schema.concat()).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    let filled = |name: &str| format!("INSERT INTO {name}_2 SELECT i, 'brought' FROM generate_series(10, 14) i;");
    let brought = |name: &str| attach(name, &filled(name));
    let truncated = "INSERT INTO truncated SELECT i, 'came' FROM generate_series(15, 17) i; TRUNCATE truncated_2;";
    let changes = [
        format!("{} DELETE FROM deleted WHERE id > 9;", brought("deleted")),
        format!("{} UPDATE updated SET v = 'w'; DELETE FROM updated WHERE id > 9;", brought("updated")),
        format!("{} {truncated}", brought("truncated")),
        // Its rows are gone before it is attached, those that come after it come by the stream, and then go without a word.
        format!("{} INSERT INTO again VALUES (15, 'came'); TRUNCATE again_2;", attach("again", "")),
        format!("{} DELETE FROM deep WHERE id > 9;", attach_tree("deep", &filled("deep"))),
        format!("{} UPDATE moved SET id = id - 8 WHERE id > 9;", brought("moved")),
        // Its rows come by the stream, and go while it is no partition.
        format!(
            "{} INSERT INTO twice VALUES (12, 'came'); ALTER TABLE twice DETACH PARTITION twice_2; DELETE FROM twice_2; \
             ALTER TABLE twice ATTACH PARTITION twice_2 FOR VALUES FROM (10) TO (20);",
            attach("twice", "")
        ),
    ];
    for statement in changes.iter().flat_map(|change| change.split_inclusive(';')) {
        database.at_source(statement).await;
    }
    // In the transaction that creates it a TRUNCATE keeps the file.
    let at_once = attach("at_once", "");
    let at_once = format!("BEGIN; {at_once} INSERT INTO at_once VALUES (12, 'came'); TRUNCATE at_once_2; COMMIT;");
    database.at_source(&at_once).await;
    // So that their files have no block left.
    for leaf in ["twice_2", "deleted_2", "updated_2", "deep_3", "moved_2"] {
        database.at_source(&format!("VACUUM (TRUNCATE) {leaf}")).await;
        let size = format!("SELECT pg_relation_size('{leaf}')::text");
        assert_eq!(database.source_value(&size).await.as_deref(), Some("0"), "{leaf} has blocks");
    }
    let service = setup.start();
    for table in tables {
        database.becomes_equal(table).await;
    }
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_table_that_was_attached_holds_nothing_up() {
    let database = Database::new(
        "attachedlocked",
        &["t", "other"],
        &format!("{} CREATE TABLE other (id int PRIMARY KEY);", partitioned_table("t")),
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let holder = source().await.connect(&database.name).await.expect("a session");
    database.at_source(&attach("t", "")).await;
    holder.batch("a lock", "BEGIN; LOCK TABLE public.t_2").await.expect("a lock");
    database.at_source("UPDATE t_1 SET v = 'w'; INSERT INTO other VALUES (1)").await;
    eventually("the other table's row is here", || async {
        database.destination_value("SELECT max(id)::text FROM other").await.map(drop)
    })
    .await;
    holder.batch("unlocking", "COMMIT").await.expect("a commit");
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_an_earlier_version_remembers_leads_to_no_copy_and_is_completed() {
    let database = Database::new(
        "earlier",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int); INSERT INTO t SELECT i, 'v', i FROM generate_series(1, 100) i;",
    )
    .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    database
        .at_destination(
            "ALTER TABLE headwater.shapes DROP COLUMN fingerprint;
             UPDATE headwater.shapes SET shape = (shape::jsonb - 'files')::json",
        )
        .await;
    database.at_source("INSERT INTO t VALUES (101, 'w', 1)").await;
    database.at_source("VACUUM FULL t").await;
    let service = setup.start();
    service.streams().await;
    file_is_known(&database, "t").await;
    database.assert_catches_up().await;
    service.assert_not_copied();
    database.at_source("ALTER TABLE t ALTER n TYPE int USING n * 100").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    service.stop().await;
    // Facts of another form count as none.
    database
        .at_destination(
            "UPDATE headwater.shapes SET fingerprint = '{\"format\": 999, \"digest\": \"x\", \"facts\": 7}'",
        )
        .await;
    let service = setup.start();
    service.streams().await;
    file_is_known(&database, "t").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn values_that_are_rewritten_where_schema_changes_stop_halt_with_the_way_out() {
    let database = Database::new(
        "rewrittenstop",
        &["t", "other"],
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i;
         CREATE TABLE other (id int PRIMARY KEY);",
    )
    .await;
    let setup = Setup::of(&database).setting("schema_changes = \"stop\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_source("ALTER TABLE t ALTER n TYPE int USING n * 100").await;
    service.says("The table was rewritten, and the values of column n may be others.").await;
    service.is("waiting").await;
    setup.command(&["resnapshot", "t"]).await.exits(0);
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_label_that_is_renamed_is_renamed_here_for_every_table_that_uses_it() {
    let log = found(
        "relabelled",
        &["a", "b", "c"],
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'fine');
         CREATE TABLE a (id int PRIMARY KEY, m mood); INSERT INTO a VALUES (1, 'sad'), (2, 'ok');
         CREATE TABLE b (id int PRIMARY KEY, m mood[]); INSERT INTO b VALUES (1, '{sad,fine}');
         CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (1);",
        "INSERT INTO a VALUES (3, 'fine'); ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'ok' TO 'sad';
         ALTER TYPE mood RENAME VALUE 'x' TO 'ok'; INSERT INTO a VALUES (4, 'sad'); UPDATE b SET m = m || 'ok'::mood",
    )
    .await;
    assert!(!log.contains("table public.c has rows and will be reconciled"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_label_that_is_removed_by_replacing_its_enum_leaves_no_row_that_has_it() {
    let database = Database::new(
        "unlabelled",
        &["a", "b"],
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'fine');
         CREATE TABLE a (id int PRIMARY KEY, m mood); INSERT INTO a VALUES (1, 'sad'), (2, 'ok'), (3, 'fine');
         CREATE TABLE b (id int PRIMARY KEY);",
    )
    .await;
    let service = Setup::of(&database).start_streaming(&database).await;
    database
        .at_source(
            "BEGIN; ALTER TYPE mood RENAME TO mood_before; CREATE TYPE mood AS ENUM ('sad', 'fine');
             ALTER TABLE a ALTER m TYPE mood USING CASE m WHEN 'ok' THEN 'fine' ELSE m::text END::mood;
             DROP TYPE mood_before; COMMIT",
        )
        .await;
    database.at_source("INSERT INTO b VALUES (1)").await;
    database.becomes_equal("a").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_that_becomes_ordinary_takes_its_values_and_is_not_added() {
    let log = found(
        "expression",
        &["g"],
        "CREATE TABLE g (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED);
         INSERT INTO g (id, n) VALUES (1, 3);",
        "ALTER TABLE g ALTER COLUMN g DROP EXPRESSION; INSERT INTO g VALUES (2, 4, 777)",
    )
    .await;
    assert!(!log.contains("column g was added") && !log.contains("column g was dropped"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_generation_expression_is_followed_or_set_by_printed_statements() {
    // Who sends the values of a column that is computed here, too, has them thrown away.
    let published = match major("SOURCE") {
        ..17 => [].as_slice(),
        17 => &[""],
        18.. => &["", "WITH (publish_generated_columns = stored)"],
    };
    at_each(published, |with| async move {
        let database = Database::new(
            "setexpression",
            &["g"],
            "CREATE TABLE g (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED);
             INSERT INTO g (id, n) VALUES (1, 3);",
        )
        .await;
        database.at_source(&format!("CREATE PUBLICATION {} FOR TABLE g {with}", database.name)).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        let set = "ALTER TABLE g ALTER COLUMN g SET EXPRESSION AS (n * 10 + 1); INSERT INTO g (id, n) VALUES (2, 4)";
        database.at_source(set).await;
        if major("DESTINATION") < 17 {
            service.says("ALTER TABLE \"public\".\"g\" DROP COLUMN \"g\";").await;
            let log = service.log();
            let (_, printed) = log.rsplit_once("HINT:  Run at the destination:\n").expect("the statements");
            let statements: Vec<&str> = printed.lines().take(2).map(str::trim).collect();
            database.at_destination(&statements.join(" ")).await;
        }
        database.becomes_equal("g").await;
        all_live(&database).await;
        database.at_source("INSERT INTO g (id, n) VALUES (3, 5)").await;
        database.assert_catches_up().await;
        service.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_that_is_computed_otherwise_is_refused_with_the_statement() {
    let database = Database::new(
        "otherwise",
        &["g"],
        "CREATE TABLE g (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED, h text GENERATED ALWAYS AS (upper('n' || n)) STORED);
         INSERT INTO g (id, n) VALUES (1, 3);",
    )
    .await;
    let here = "CREATE TABLE g (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 3) STORED, h text GENERATED ALWAYS AS (upper('n' || n)) STORED)";
    database.at_destination(here).await;
    let setup = Setup::of(&database);
    let message = "generated column g of table public.g is computed otherwise at the destination";
    let finding = failed(&setup, message).await;
    assert!(finding["detail"].as_str().is_some_and(|detail| detail.contains("(n * 3) here")), "{finding}");
    assert!(setup.start().ends_with(1).await.contains(message));
    database.at_destination(&fix(&finding)).await;
    mended(&setup).await;
    let service = setup.start_streaming(&database).await;
    database.assert_equal().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_added_and_renamed_though_the_stream_lacks_them() {
    let database = Database::new(
        "generatedalone",
        &["added", "renamed"],
        "CREATE TABLE added (id int PRIMARY KEY, v int); INSERT INTO added VALUES (1, 1);
         CREATE TABLE renamed (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO renamed VALUES (1);",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source(
            "ALTER TABLE added ADD g int GENERATED ALWAYS AS (v * 2) STORED; INSERT INTO added VALUES (2, 2);
             ALTER TABLE renamed RENAME g TO h; INSERT INTO renamed VALUES (2);",
        )
        .await;
    database.becomes_equal("added").await;
    service.says("table public.renamed: generated column h was added").await;
    all_live(&database).await;
    database.at_source("INSERT INTO added VALUES (3, 3); INSERT INTO renamed VALUES (3)").await;
    database.caught_up().await;
    database.becomes_equal("added").await;
    // Under its old name it stays, as a column does that was dropped.
    let rows = "SELECT string_agg(id || ' ' || g || ' ' || h, ', ' ORDER BY id) FROM renamed";
    assert_eq!(database.destination_value(rows).await.as_deref(), Some("1 2 2, 2 4 4, 3 6 6"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_generated_columns_are_stored_at_a_destination_that_does_not_know_them() {
    let Some(bin) = bin_of(18) else { return };
    let source = new_source_of(&bin, &[]).await;
    let database = Database::on(
        &source,
        destination().await,
        "virtualstored",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v int, a int GENERATED ALWAYS AS (v * 2) VIRTUAL); INSERT INTO t VALUES (1, 1);",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source("ALTER TABLE t ADD b int GENERATED ALWAYS AS (v * 3) VIRTUAL; INSERT INTO t VALUES (2, 2)")
        .await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.at_source("UPDATE t SET v = 5 WHERE id = 1").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_of_a_composite_type_that_are_replaced_are_replaced_here() {
    found(
        "attributes",
        &["c"],
        "CREATE TYPE pair AS (a int, b text); CREATE TABLE c (id int PRIMARY KEY, p pair); INSERT INTO c VALUES (1, '(1,x)');",
        "ALTER TYPE pair DROP ATTRIBUTE b, ADD ATTRIBUTE d text",
    )
    .await;
}

/// A composite type's attributes, by their names and types.
const ATTRIBUTES: &str = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = 'pair'::regclass AND NOT attisdropped";

#[tokio::test(flavor = "multi_thread")]
async fn attributes_that_get_other_names_get_them_here_though_the_names_change_hands() {
    let database = Database::new(
        "attributenames",
        &["c", "d"],
        "CREATE TYPE pair AS (a int, b int); CREATE TYPE around AS (p pair, n int);
         CREATE TABLE c (id int PRIMARY KEY, p pair, ps pair[]); INSERT INTO c VALUES (1, '(1,2)', '{\"(3,4)\"}');
         CREATE TABLE d (id int PRIMARY KEY, p around); INSERT INTO d VALUES (1, '(\"(1,2)\",3)');",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source(
            "ALTER TYPE pair RENAME ATTRIBUTE a TO c; ALTER TYPE pair RENAME ATTRIBUTE b TO a; ALTER TYPE pair RENAME ATTRIBUTE c TO b;
             ALTER TYPE around RENAME ATTRIBUTE n TO m; ALTER TABLE c ADD COLUMN v int; ALTER TABLE d ADD COLUMN v int;
             UPDATE c SET p = ROW(5, 6); INSERT INTO d VALUES (2, '(\"(7,8)\",9)')",
        )
        .await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value("SELECT (p).b || ' ' || (ps[1]).a FROM c").await.as_deref(), Some("5 4"));
    let nested = "SELECT ((p).p).b || ' ' || (p).m FROM d WHERE id = 2";
    assert_eq!(database.destination_value(nested).await.as_deref(), Some("7 9"));
    service.assert_not_copied();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_change_before_their_last_columns_are_dropped_are_followed() {
    let database = Database::new(
        "lastcolumns",
        &["c"],
        "CREATE TYPE pair AS (a int, b text); CREATE TYPE mood AS ENUM ('sad');
         CREATE TABLE c (id int PRIMARY KEY, p pair, m mood); INSERT INTO c VALUES (1, '(1,x)', 'sad');",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    // The next start finds no column of these types in the catalog, and rows of before that have some.
    database.at_source("ALTER TYPE pair RENAME ATTRIBUTE a TO z; ALTER TYPE mood ADD VALUE 'ok'").await;
    database.at_source("INSERT INTO c VALUES (2, '(3,y)', 'ok')").await;
    database.at_source("ALTER TABLE c DROP COLUMN p, DROP COLUMN m; INSERT INTO c VALUES (3)").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let rows = "SELECT string_agg(concat_ws(' ', id, (p).z, m), ', ' ORDER BY id) FROM c";
    assert_eq!(database.destination_value(rows).await.as_deref(), Some("1 1 sad, 2 3 ok, 3"));
    service.assert_not_copied();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_takes_the_name_and_not_the_type_of_a_generated_one_before_a_copy() {
    let database = Database::new(
        "oncegenerated",
        &["c"],
        "CREATE TABLE c (id int PRIMARY KEY, v int, g int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO c VALUES (1, 4);",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source(
            "ALTER TABLE c DROP COLUMN g, ADD COLUMN g text DEFAULT 'a', ALTER COLUMN v TYPE text USING 'b'; INSERT INTO c VALUES (2, 'c', 'd')",
        )
        .await;
    database.becomes_equal("c").await;
    service.stop().await;
}

/// A change after which a copy asks for `statements` lines to be run, as printed.
async fn emptied_by_the_hint(name: &str, setup: &str, change: &str, statements: usize) {
    let database = Database::new(name, &["c"], setup).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database.at_source(change).await;
    service.says("USING NULL;").await;
    let log = service.log();
    let (_, hint) = log.rsplit_once("Run at the destination:").expect("a hint");
    let printed: Vec<&str> = hint.lines().skip(1).map(str::trim).take_while(|line| line.ends_with(';')).collect();
    assert_eq!(printed.len(), statements, "{printed:?}");
    database.at_destination(&printed.join("\n")).await;
    database.becomes_equal("c").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_under_a_generated_ones_name_is_emptied_by_the_hint_as_printed() {
    emptied_by_the_hint(
        "oncegeneratedhint",
        "CREATE TABLE c (id int PRIMARY KEY, v int, g int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO c VALUES (1, 4);",
        "ALTER TABLE c DROP COLUMN g, ADD COLUMN g date DEFAULT '2026-01-01', ALTER COLUMN v TYPE text USING 'b';
         INSERT INTO c VALUES (2, 'c', '2026-01-02')",
        4,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_column_that_gets_another_type_is_emptied_by_the_hint_as_printed() {
    emptied_by_the_hint(
        "onceidentity",
        "CREATE TABLE c (id int PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY); INSERT INTO c VALUES (1);",
        "ALTER TABLE c ALTER COLUMN n DROP IDENTITY; ALTER TABLE c ALTER COLUMN n TYPE int4range USING int4range(1, 5);
         INSERT INTO c VALUES (2, '[3,4)')",
        4,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_column_in_a_generated_ones_place_is_replaced_by_hint_and_copy() {
    let database = Database::new(
        "ordinaryhere",
        &["c"],
        "CREATE TABLE c (id int PRIMARY KEY, a int, g int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO c VALUES (1, 4);",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source(
            "BEGIN; DROP TABLE c; CREATE TABLE c (id int PRIMARY KEY, a int GENERATED ALWAYS AS (id * 3) STORED, g int);
             INSERT INTO c (id, g) VALUES (2, 5); COMMIT",
        )
        .await;
    service.says("ALTER TABLE public.c DROP COLUMN a;").await;
    database.at_destination("ALTER TABLE c ALTER COLUMN g DROP EXPRESSION; ALTER TABLE c DROP COLUMN a").await;
    // The columns have another order here, so the tables are not compared whole.
    let rows = "SELECT string_agg(concat_ws(' ', id, to_jsonb(c)->>'a', g), ', ') FROM c";
    eventually("the copy is published", || async {
        (database.destination_value(rows).await.as_deref() == Some("2 6 5")).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serial_that_becomes_text_is_copied_without_an_operator() {
    let database =
        Database::new("onceserial", &["c"], "CREATE TABLE c (id int PRIMARY KEY, n serial); INSERT INTO c VALUES (1);")
            .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source("ALTER TABLE c ALTER COLUMN n DROP DEFAULT, ALTER COLUMN n TYPE text USING 'x'; INSERT INTO c VALUES (2, 'y')")
        .await;
    database.becomes_equal("c").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_again_with_other_types_is_copied_without_an_operator() {
    let database = Database::new(
        "madeagain",
        &["c"],
        "CREATE TABLE c (id int PRIMARY KEY, v bigint, w int DEFAULT 3); INSERT INTO c (id) VALUES (1);",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source(
            "BEGIN; DROP TABLE c; CREATE TABLE c (id int PRIMARY KEY, v interval, w text DEFAULT 'x');
             INSERT INTO c VALUES (2, '1 day', 'y'); COMMIT",
        )
        .await;
    database.becomes_equal("c").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn attributes_of_other_types_halt_the_copy_until_the_printed_statement_was_run() {
    let database = Database::new(
        "attributetypes",
        &["c", "d"],
        "CREATE TYPE pair AS (a int, b text);
         CREATE TABLE c (id int PRIMARY KEY, p pair NOT NULL, q pair); INSERT INTO c VALUES (1, '(1,x)', '(2,)');
         CREATE TABLE d (id int PRIMARY KEY, p pair); INSERT INTO d VALUES (1, '(1,y)');",
    )
    .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source("ALTER TYPE pair DROP ATTRIBUTE a, ADD ATTRIBUTE c int; ALTER TYPE pair ADD ATTRIBUTE e text; UPDATE c SET p = ROW('z', 7, 'e')")
        .await;
    let statement = "ALTER TYPE public.pair DROP ATTRIBUTE a, DROP ATTRIBUTE b, ADD ATTRIBUTE b text, ADD ATTRIBUTE c int4, ADD ATTRIBUTE e text;";
    service.says(statement).await;
    let log = service.log();
    let reports = log.matches("2 tables at the destination do not fit the source event=").count();
    assert_eq!(log.matches(statement).count(), reports, "once in each report: {log}");
    database.at_destination(statement).await;
    for table in ["c", "d"] {
        database.becomes_equal(table).await;
    }
    all_live(&database).await;
    assert_eq!(database.destination_value(ATTRIBUTES).await.as_deref(), Some("b text, c integer, e text"));
    database.at_source("UPDATE d SET p = ROW('n', 1, NULL)").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_composite_type_without_attributes_gets_none_by_the_hint_as_printed() {
    let database = Database::new(
        "noattributes",
        &["c"],
        "CREATE TYPE pair AS (a int, b text); CREATE TABLE c (id int PRIMARY KEY, p pair); INSERT INTO c VALUES (1, '(1,x)'), (2, NULL);",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source("ALTER TYPE pair DROP ATTRIBUTE a, DROP ATTRIBUTE b; INSERT INTO c VALUES (3, ROW()::pair)")
        .await;
    let statement = "ALTER TYPE public.pair DROP ATTRIBUTE a, DROP ATTRIBUTE b;";
    service.says(statement).await;
    database.at_destination(statement).await;
    database.becomes_equal("c").await;
    all_live(&database).await;
    database.at_source("INSERT INTO c VALUES (4, ROW()::pair); ALTER TYPE pair ADD ATTRIBUTE d int; UPDATE c SET p = ROW(7) WHERE id = 1").await;
    service.says("ALTER TYPE public.pair ADD ATTRIBUTE d int4;").await;
    database.at_destination("ALTER TYPE public.pair ADD ATTRIBUTE d int4;").await;
    database.becomes_equal("c").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_label_of_an_enum_is_followed() {
    let schema =
        "CREATE TYPE mood AS ENUM (); CREATE TABLE c (id int PRIMARY KEY, m mood); INSERT INTO c VALUES (1, NULL);";
    let database = Database::new("firstlabel", &["c"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database.at_source("ALTER TYPE mood ADD VALUE 'sad'").await;
    database.at_source("INSERT INTO c VALUES (2, 'sad')").await;
    database.becomes_equal("c").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_leaf_that_becomes_unlogged_suspends_its_table_until_it_is_logged_again() {
    let database = Database::new(
        "unloggedleaf",
        &["t", "other"],
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10); INSERT INTO t VALUES (1, 'v');
         CREATE TABLE other (id int PRIMARY KEY);",
    )
    .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_source("ALTER TABLE t_1 SET UNLOGGED; INSERT INTO t VALUES (2, 'never sent')").await;
    let told = "partition public.t_1 of table public.t is unlogged: its rows never come";
    service.says(told).await;
    setup.command(&["check"]).await.exits(1).says(&[told, "ALTER TABLE public.t_1 SET LOGGED;"]);
    database.at_source("INSERT INTO other VALUES (1)").await;
    database.caught_up().await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM other").await.as_deref(), Some("1"));
    database.at_source("ALTER TABLE t_1 SET LOGGED").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_swapped_for_another_is_published_copied_and_followed() {
    let database = Database::new(
        "swapped",
        &["t", "other"],
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old');
         CREATE TABLE t_new (LIKE t INCLUDING ALL); INSERT INTO t_new VALUES (1, 'new');
         CREATE TABLE other (id int PRIMARY KEY);",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source("BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; COMMIT; INSERT INTO t VALUES (2, 'more')")
        .await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.at_source("INSERT INTO t VALUES (3, 'followed'); UPDATE t_old SET v = 'nobody''s'").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_table_that_nobody_writes_halts_and_its_new_name_stays_in_the_message() {
    let database = Database::new(
        "renamedidle",
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v');",
    )
    .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_source("ALTER TABLE t RENAME TO u; CREATE VIEW t AS SELECT * FROM u").await;
    let told = "table public.t is now called public.u at the source";
    service.says(told).await;
    service.is("waiting").await;
    // The attempts that follow meet it at their start.
    eventually("it has started again and again", || async {
        let restarts = service.restarts("publication").await?;
        (restarts >= 3.0).then_some(())
    })
    .await;
    assert!(service.get("/readyz").await.is_some_and(|(status, reason)| status == 503 && reason.contains(told)));
    assert!(!service.log().contains("is a view") && !service.log().contains("not found"), "{}", service.log());
    database.at_source("DROP VIEW t; ALTER TABLE u RENAME TO t; INSERT INTO t VALUES (2, 'w')").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_leaf_is_refused_and_a_later_one_suspends_its_table_until_detached() {
    // Nothing reads it, so no wrapper's code is needed.
    let foreign = "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing;
        CREATE FOREIGN TABLE t_2 PARTITION OF t FOR VALUES FROM (10) TO (20) SERVER elsewhere";
    let database = Database::of_superuser(
        "foreignleaf",
        &["t", "other"],
        "CREATE TABLE t (id int, v text) PARTITION BY RANGE (id); CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10);
         ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t_1 REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'v');
         CREATE TABLE other (id int PRIMARY KEY);",
    )
    .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_source(&format!("{foreign}; INSERT INTO t VALUES (2, 'w'); INSERT INTO other VALUES (1)")).await;
    let told = "partition public.t_2 of table public.t is a foreign table: its rows never come";
    service.says(told).await;
    // The others stream on.
    database.becomes_equal("other").await;
    setup.command(&["check"]).await.exits(1).says(&[told, "ALTER TABLE public.t DETACH PARTITION public.t_2;"]);
    database.at_source("ALTER TABLE public.t DETACH PARTITION public.t_2;").await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    service.stop().await;
}
