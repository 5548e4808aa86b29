//! Tables are copied again while they are read and the stream goes on, and nobody notices.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::database::connect;
use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, at_each, eventually, headwater};

/// `headwater resnapshot`, as an operator runs it.
async fn resnapshot(database: &Database, tables: &[&str]) -> Output {
    let mut command = Command::new(headwater());
    command
        .arg("resnapshot")
        .args(tables)
        .env("HEADWATER_SOURCE_URL", &database.source_url)
        .env("HEADWATER_SOURCE_SLOT", &database.name)
        .env("HEADWATER_SOURCE_PUBLICATION", &database.name)
        .env("HEADWATER_DESTINATION_URL", &database.destination_url)
        .env("HEADWATER_TABLES", database.tables.join(","));
    tokio::task::spawn_blocking(move || command.output().expect("headwater runs")).await.expect("its output")
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Where every row lies and who wrote it last: unchanged means that nothing was written.
async fn places(database: &Database, table: &str) -> Option<String> {
    let sql = format!("SELECT md5(string_agg(ctid::text || '/' || xmin::text, ',' ORDER BY ctid)) FROM {table}");
    database.destination_value(&sql).await
}

/// Makes the destination differ in every way.
const DRIFT: &str = "SET session_replication_role = replica;
    DELETE FROM topics WHERE id % 50 = 1; DELETE FROM messages WHERE id % 100 = 2;
    UPDATE messages SET body = 'tampered' WHERE id % 100 = 3;
    INSERT INTO messages (id, topic_id, body) VALUES (9000001, 1, 'not at the source'), (9000002, 2, 'neither');
    RESET session_replication_role;";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_running_service_makes_drifted_tables_equal_under_load_and_no_reader_waits() {
    let database = Database::new("again", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination("CREATE VIEW recent AS SELECT * FROM messages WHERE id > 10").await;
    database.at_destination("CREATE TABLE likes (message_id bigint REFERENCES messages DEFERRABLE)").await;
    database.at_destination(DRIFT).await;
    let done = AtomicBool::new(false);
    let writing = async {
        let mut number = 0;
        while !done.load(Ordering::Relaxed) {
            number += 1;
            let id = 100_000 + number;
            database
                .at_source(&format!(
                    "BEGIN; INSERT INTO messages (id, topic_id, body) VALUES ({id}, 2, 'new');
                     UPDATE messages SET body = 'changed {number}' WHERE id = {}; DELETE FROM messages WHERE id = {};
                     UPDATE messages SET id = {} WHERE id = {}; COMMIT",
                    id - 50,
                    id - 100,
                    500_000 + number,
                    number % 40 * 100 + 50
                ))
                .await;
        }
    };
    let reader = crate::support::destination().await.connect(&database.name).await.unwrap();
    let reading = async {
        let mut longest = Duration::ZERO;
        while !done.load(Ordering::Relaxed) {
            let began = Instant::now();
            let sql =
                "SELECT (SELECT count(*) FROM public.sections), (SELECT count(*) FROM public.recent WHERE id < 20)";
            let row = reader.query_one("reading", sql, &[]).await.unwrap();
            longest = longest.max(began.elapsed());
            assert!(row.get::<i64>(0).unwrap() > 0, "never empty");
        }
        longest
    };
    let asking = async {
        let output = resnapshot(&database, &[]).await;
        assert!(output.status.success(), "{}", printed(&output));
        // Once more: now there is nothing to be done.
        let output = resnapshot(&database, &["messages", "public.topics"]).await;
        assert!(output.status.success(), "{}", printed(&output));
        done.store(true, Ordering::Relaxed);
    };
    let ((), longest, ()) = tokio::join!(writing, reading, asking);
    println!("the longest read took {longest:?}");
    assert!(longest < Duration::from_secs(5), "a reader waited {longest:?}");
    database.assert_catches_up().await;
    let log = service.log();
    assert!(log.contains("table public.messages reconciled:"), "{log}");
    assert_eq!(service.restarts("source_lost").await, None);
    assert_eq!(
        database.destination_value("SELECT count(*)::text FROM recent WHERE id < 9").await.as_deref(),
        Some("0")
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn copying_equal_tables_anew_writes_no_row() {
    let tables = &["public.sections", "public.topics", "public.messages", "public.bag"];
    let schema = format!(
        "{FORUM_SCHEMA} CREATE TABLE bag (a int, b numeric, c json); ALTER TABLE bag REPLICA IDENTITY FULL;
         INSERT INTO bag SELECT i % 10, i % 3, '{{\"a\": 1}}' FROM generate_series(1, 500) AS i; INSERT INTO bag VALUES (NULL, NULL, NULL);"
    );
    let database = Database::new("equal", tables, &schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let mut before = Vec::new();
    for table in tables {
        before.push(places(&database, table).await);
    }
    let output = resnapshot(&database, &[]).await;
    assert!(output.status.success(), "{}", printed(&output));
    for (table, before) in tables.iter().zip(&before) {
        assert_eq!(places(&database, table).await, *before, "rows of {table} were written by the running service");
    }
    service.stop().await;
    let service = Setup::of(&database).argument("--resnapshot").start();
    service.streams().await;
    assert!(service.log().contains("0 rows deleted, 0 updated, 0 inserted"), "{}", service.log());
    for (table, before) in tables.iter().zip(&before) {
        assert_eq!(places(&database, table).await, *before, "rows of {table} were written at the start");
    }
    database.assert_catches_up().await;
    service.stop().await;
}

const ODD_SCHEMA: &str = "
    CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL;
    INSERT INTO bag SELECT i % 5, 'x' FROM generate_series(1, 50) AS i; INSERT INTO bag VALUES (NULL, NULL), (NULL, NULL);
    CREATE TABLE images (id int PRIMARY KEY, n numeric, f float8, j json, p point, b box);
    INSERT INTO images VALUES (1, 1.00, 0.0, '{\"a\":1}', '(1,2)', '(0,0),(2,3)'), (2, 2, '-0', NULL, NULL, NULL);
    CREATE TABLE seats (id int PRIMARY KEY, seat text UNIQUE NOT NULL, guest text);
    INSERT INTO seats VALUES (1, 'A', 'x'), (2, 'B', 'y'), (3, 'C', 'z'), (4, 'D', 'w');
    CREATE TABLE ring_a (id int PRIMARY KEY, b int); CREATE TABLE ring_b (id int PRIMARY KEY, a int REFERENCES ring_a);
    ALTER TABLE ring_a ADD FOREIGN KEY (b) REFERENCES ring_b DEFERRABLE;
    BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO ring_a VALUES (1, 1); INSERT INTO ring_b VALUES (1, 1); COMMIT;";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn multisets_images_and_unique_values_that_changed_hands_are_reconciled() {
    let tables = &["public.bag", "public.images", "public.seats", "public.ring_a", "public.ring_b"];
    let database = Database::new("odd", tables, ODD_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    for (round, at_start) in [false, true].into_iter().enumerate() {
        database
            .at_destination(
                "SET session_replication_role = replica;
                 DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = 1 LIMIT 4); INSERT INTO bag VALUES (2, 'x'), (9, 'new');
                 DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a IS NULL LIMIT 1);
                 UPDATE images SET n = 1.0, f = '-0', j = '{\"a\": 1}', b = '(0,0),(3,2)' WHERE id = 1;
                 ALTER TABLE seats ADD COLUMN IF NOT EXISTS local text; UPDATE seats SET local = 'kept ' || id;
                 UPDATE seats SET seat = 'T' WHERE id = 1; UPDATE seats SET seat = 'A' WHERE id = 2;
                 UPDATE seats SET seat = 'B' WHERE id = 3; UPDATE seats SET seat = 'C' WHERE id = 1;
                 DELETE FROM seats WHERE id = 4; INSERT INTO seats VALUES (5, 'D', 'somebody else');
                 DELETE FROM ring_a; INSERT INTO ring_b VALUES (7, 7);
                 RESET session_replication_role;",
            )
            .await;
        if at_start {
            continue;
        }
        let output = resnapshot(&database, &[]).await;
        assert!(output.status.success(), "round {round}: {}", printed(&output));
        let kept = "SELECT string_agg(id || local, ',' ORDER BY id) FROM seats WHERE local IS NOT NULL";
        assert_eq!(database.destination_value(kept).await.as_deref(), Some("1kept 1,2kept 2,3kept 3"));
        database.at_destination("ALTER TABLE seats DROP COLUMN local").await;
        database.assert_catches_up().await;
    }
    service.stop().await;
    let service = Setup::of(&database).argument("--resnapshot").start();
    service.streams().await;
    database.at_destination("ALTER TABLE seats DROP COLUMN local").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn keys_that_can_be_neither_merged_nor_hashed_are_compared_all_the_same() {
    let schema = "CREATE TABLE odd (id int PRIMARY KEY, v text);
                  INSERT INTO odd SELECT i, 'v' || i FROM generate_series(1, 100) AS i;";
    let database = Database::new("oddkey", &["public.odd"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_destination(
            "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
             CREATE OPERATOR CLASS odd_ops FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 ===, OPERATOR 4 >=,
                 OPERATOR 5 >, FUNCTION 1 btint4cmp(int, int);
             ALTER TABLE odd DROP CONSTRAINT odd_pkey; CREATE UNIQUE INDEX ON odd (id odd_ops);
             DELETE FROM odd WHERE id < 10; UPDATE odd SET v = 'drifted' WHERE id % 20 = 0; INSERT INTO odd VALUES (-1, 'extra')",
        )
        .await;
    let output = resnapshot(&database, &[]).await;
    assert!(output.status.success(), "{}", printed(&output));
    database.assert_catches_up().await;
    assert!(service.log().contains("1 row deleted, 5 updated, 9 inserted"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_change_the_stream_has_not_come_to_is_copied_once_it_has() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY);
                  INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 100) AS i;";
    let database = Database::new("notyet", &["t", "u"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination("UPDATE t SET v = 'drifted' WHERE id <= 5").await;
    let lock = connect(&database.destination_url).await.expect("a session");
    lock.batch("holding the stream up", "BEGIN; LOCK TABLE public.u IN SHARE MODE").await.unwrap();
    database.at_source("INSERT INTO u VALUES (1)").await;
    database.at_source("ALTER TABLE t ADD COLUMN extra int; UPDATE t SET extra = id WHERE id > 90").await;
    let going_on = async {
        service.says("copying ").await;
        // Long enough for whoever gives up to have done so.
        tokio::time::sleep(Duration::from_secs(1)).await;
        lock.batch("letting it go on", "COMMIT").await.unwrap();
    };
    let (output, ()) = tokio::join!(resnapshot(&database, &["t"]), going_on);
    assert!(output.status.success(), "{}", printed(&output));
    database.assert_catches_up().await;
    assert!(service.log().contains("0 rows deleted, 5 updated, 0 inserted"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn where_triggers_act_unique_values_that_changed_hands_are_told_with_the_grant() {
    let database = Database::of_superuser(
        "hands",
        &["seats"],
        "CREATE TABLE seats (id int PRIMARY KEY, seat text UNIQUE NOT NULL);
        INSERT INTO seats VALUES (1, 'A'), (2, 'B')",
    )
    .await;
    let role = format!("bound_{}", database.name);
    database
        .at_destination(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role}", database.name))
        .await;
    database.at_destination(&format!("GRANT USAGE, CREATE ON SCHEMA public TO {role}")).await;
    let mut setup = Setup::of(&database);
    setup.destination_url = setup.destination_url.replacen("postgres@", &format!("{role}@"), 1);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    database
        .at_destination(
            "UPDATE seats SET seat = 'C' WHERE id = 1; UPDATE seats SET seat = 'A' WHERE id = 2; UPDATE seats SET seat = 'B' WHERE id = 1;
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
             CREATE TRIGGER mine BEFORE DELETE ON seats FOR EACH ROW EXECUTE FUNCTION f()",
        )
        .await;
    let mut resnapshot = setup.clone().argument("--resnapshot").start();
    resnapshot.says("unique values have changed hands among rows of table public.seats").await;
    let grant = format!("GRANT SET ON PARAMETER session_replication_role TO {role};");
    resnapshot.says(&grant).await;
    assert!(resnapshot.log().contains("trigger mine would act"), "{}", resnapshot.log());
    database.at_destination("ALTER TABLE seats DISABLE TRIGGER mine").await;
    assert_eq!(resnapshot.ended().await.code(), Some(1));
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

async fn requests(database: &Database) -> String {
    let sql = "SELECT COALESCE(string_agg(state, ' ' ORDER BY id), '') FROM headwater.resnapshots";
    database.destination_value(sql).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_kill_at_any_point_of_a_hand_over_keeps_old_data_and_the_next_start_ends_it() {
    let points = [
        "snapshot.slot_created",
        "snapshot.copying:2",
        "snapshot.staged",
        "snapshot.finished",
        "handover.catching_up",
        "handover.compared",
        "handover.held",
        "publish.before_commit",
        "publish.committed",
        "snapshot.published",
    ];
    at_each(&points, |point| async move {
        let database = Database::new("diesagain", FORUM, FORUM_SCHEMA).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        service.stop().await;
        database.at_destination("UPDATE messages SET body = 'tampered' WHERE id % 100 = 3").await;
        let arguments = "--resnapshot=messages,topics";
        let mut dying = Setup::of(&database).argument(arguments).failing_at(point).start();
        let status = dying.ended().await;
        assert_eq!(status.code(), None, "{point}: it was to die by a signal");
        let rows = database.destination_value("SELECT count(*)::text FROM messages").await;
        assert_eq!(
            rows,
            database.source_value("SELECT count(*)::text FROM messages").await,
            "{point}: the old data serves"
        );
        database
            .at_source("UPDATE messages SET body = 'after the crash' WHERE id < 100; DELETE FROM messages WHERE id = 5")
            .await;
        // Without the argument: what was asked for is remembered.
        let service = Setup::of(&database).start();
        service.streams().await;
        eventually("the request is fulfilled", || async { (requests(&database).await == "done").then_some(()) }).await;
        database.assert_catches_up().await;
        let staging = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater_staging%'";
        eventually("staging is swept", || async {
            (database.destination_value(staging).await.as_deref() == Some("0")).then_some(())
        })
        .await;
        let slots = format!(
            "SELECT count(*)::text FROM pg_replication_slots WHERE temporary AND database = '{}'",
            database.name
        );
        eventually("temporary slots are gone", || async {
            (database.source_value(&slots).await.as_deref() == Some("0")).then_some(())
        })
        .await;
        service.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_command_line_is_carried_out_once_until_the_service_is_stopped_in_good_order() {
    let tampered = "SELECT count(*)::text FROM topics WHERE title = 'tampered'";
    for argument in ["--resnapshot=topics", "--resnapshot"] {
        let database = Database::new("once", FORUM, FORUM_SCHEMA).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        service.stop().await;
        let tamper = "UPDATE topics SET title = 'tampered' WHERE id = 2";
        database.at_destination(tamper).await;
        let mut service = Setup::of(&database).argument(argument).start();
        eventually("the row is mended", || async {
            (database.destination_value(tampered).await.as_deref() == Some("0")).then_some(())
        })
        .await;
        service.streams().await;
        service.kill();
        database.at_destination(tamper).await;
        let service = Setup::of(&database).argument(argument).start();
        service.says("was carried out before").await;
        service.streams().await;
        database.caught_up().await;
        assert_eq!(requests(&database).await, "done", "{argument}: not asked for again");
        assert_eq!(database.destination_value(tampered).await.as_deref(), Some("1"), "{argument}");
        service.stop().await;
        let mut service = Setup::of(&database).argument(argument).start();
        eventually("the row is mended once more", || async {
            (database.destination_value(tampered).await.as_deref() == Some("0")).then_some(())
        })
        .await;
        service.streams().await;
        // The same when the one that stops in good order has another command line than the one that was killed.
        service.kill();
        let service = Setup::of(&database).start();
        service.streams().await;
        service.stop().await;
        database.at_destination(tamper).await;
        let service = Setup::of(&database).argument(argument).start();
        eventually("the row is mended again", || async {
            (database.destination_value(tampered).await.as_deref() == Some("0")).then_some(())
        })
        .await;
        service.streams().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_added_to_the_configuration_is_copied_alone_while_others_stream() {
    let mut database = Database::new("added", &["public.sections", "public.topics"], FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    let before = places(&database, "topics").await;
    database.tables.push("public.messages".to_owned());
    database.at_source("UPDATE messages SET body = 'before it is followed' WHERE id = 7").await;
    let service = Setup::of(&database).section("[snapshot]\nmax_rate = \"600kB\"\nworkers = 1").start();
    service.streams().await;
    // The others stream meanwhile.
    database.at_source("UPDATE sections SET name = 'meanwhile' WHERE id = 1; INSERT INTO messages (id, topic_id, body) VALUES (800000, 2, 'meanwhile')").await;
    eventually("the others stream", || async {
        let sql =
            "SELECT (name = 'meanwhile' AND to_regclass('public.messages') IS NULL)::text FROM sections WHERE id = 1";
        (database.destination_value(sql).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    eventually("the added table is there", || async {
        let sql = "SELECT (to_regclass('public.messages') IS NOT NULL)::text";
        (database.destination_value(sql).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    database.at_source("INSERT INTO messages (id, topic_id, body) VALUES (800001, 2, 'afterwards'); DELETE FROM messages WHERE id = 9").await;
    database.assert_catches_up().await;
    assert_eq!(places(&database, "topics").await, before, "no other table was written");
    let keys = "SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint WHERE conrelid = 'messages'::regclass AND contype IN ('p', 'f')";
    let at_source = database.source_value(keys).await;
    assert_eq!(database.destination_value(keys).await, at_source, "its keys refer to the tables that were there");
    service.stop().await;
    // Its rows are nobody's to change by a typing error.
    database.tables.push("public.extra".to_owned());
    database.at_source("CREATE TABLE extra (id int PRIMARY KEY)").await;
    database.at_destination("CREATE TABLE extra (id int PRIMARY KEY); INSERT INTO extra VALUES (1)").await;
    let log = Setup::of(&database).start().ends_with(1).await;
    assert!(log.contains("Table public.extra has 1 row."), "{log}");
    let service = Setup::of(&database).argument("--resnapshot=extra").start();
    eventually("the added table is reconciled", || async {
        (database.destination_value("SELECT count(*)::text FROM extra").await.as_deref() == Some("0")).then_some(())
    })
    .await;
    service.streams().await;
    database.at_source("INSERT INTO extra VALUES (2)").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_that_was_dropped_and_created_anew_is_copied_when_it_is_asked_for() {
    let database = Database::new("recreated", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    database
        .at_source("CREATE TABLE fresh (LIKE messages INCLUDING ALL); INSERT INTO fresh (id, topic_id, body) VALUES (1, 2, 'fresh');
                    DROP TABLE messages; ALTER TABLE fresh RENAME TO messages;")
        .await;
    let service = Setup::of(&database).argument("--resnapshot=messages").start();
    eventually("the request is fulfilled", || async { (requests(&database).await == "done").then_some(()) }).await;
    service.streams().await;
    database.at_source("INSERT INTO messages (id, topic_id, body) VALUES (2, 2, 'streamed')").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_snapshot_that_an_operator_must_mend_is_given_up_and_the_stream_goes_on() {
    let database = Database::new("givenup", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let output = resnapshot(&database, &["nothing"]).await;
    assert_eq!(output.status.code(), Some(2), "{}", printed(&output));
    assert!(printed(&output).contains("table public.nothing is not configured"), "{}", printed(&output));
    database.at_destination("ALTER TABLE topics ALTER COLUMN title TYPE varchar(3) USING left(title, 3)").await;
    let output = resnapshot(&database, &["topics"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    assert!(printed(&output).contains("ALTER TABLE"), "the statement that mends it: {}", printed(&output));
    service.says("the old data is still there").await;
    database.at_source("UPDATE sections SET name = 'goes on' WHERE id = 1").await;
    eventually("the stream goes on", || async {
        let sql = "SELECT name FROM sections WHERE id = 1";
        (database.destination_value(sql).await.as_deref() == Some("goes on")).then_some(())
    })
    .await;
    database.at_destination("ALTER TABLE topics ALTER COLUMN title TYPE varchar(200)").await;
    let output = resnapshot(&database, &["topics"]).await;
    assert!(output.status.success(), "{}", printed(&output));
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_stream_that_lags_behind_the_snapshot_is_waited_for() {
    let database = Database::new("lags", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).section("[apply]\nbatch_rows_max = 1").start();
    service.streams().await;
    database.caught_up().await;
    // Apply waits for the first lock and then for the second, while the source and the copy go on.
    let cluster = crate::support::destination().await;
    let first = cluster.connect(&database.name).await.unwrap();
    first.batch("blocking", "BEGIN; LOCK TABLE public.sections IN SHARE MODE").await.unwrap();
    let second = cluster.connect(&database.name).await.unwrap();
    second.batch("blocking", "BEGIN; LOCK TABLE public.topics IN SHARE MODE").await.unwrap();
    database.at_source("UPDATE sections SET place = place + 1 WHERE id = 1").await;
    database.at_source("UPDATE topics SET title = 'waits' WHERE id = 1").await;
    let apply_waits_for = async |table: &str| {
        eventually("apply waits for the lock", || async {
            let sql = format!(
                "SELECT (count(*) > 0)::text FROM pg_locks WHERE NOT granted AND relation = 'public.{table}'::regclass"
            );
            (database.destination_value(&sql).await.as_deref() == Some("true")).then_some(())
        })
        .await;
    };
    apply_waits_for("sections").await;
    for id in 700_000..700_050 {
        database
            .at_source(&format!(
                "INSERT INTO messages (id, topic_id, body) VALUES ({id}, 2, 'new'); DELETE FROM messages WHERE id = {}",
                id - 699_000
            ))
            .await;
    }
    let asking = resnapshot(&database, &["messages"]);
    let releasing = async {
        service.says("table public.messages has rows and will be reconciled").await;
        eventually("the copy is finished", || async {
            (service.metric("headwater_snapshot_progress_ratio{table=\"public.messages\"}").await? == 1.0).then_some(())
        })
        .await;
        eventually("staging follows the source", || async {
            let sql = "SELECT (count(*) = 2)::text FROM pg_stat_replication WHERE state = 'streaming'
                       AND pid IN (SELECT active_pid FROM pg_replication_slots WHERE database = current_database())";
            (database.source_value(sql).await.as_deref() == Some("true")).then_some(())
        })
        .await;
        // After each of them time for a comparison and a publish that do not wait for the stream.
        let elsewhere = async || {
            for _ in 0..20 {
                database.at_source("SELECT pg_logical_emit_message(true, 'test', 'elsewhere')").await;
            }
        };
        elsewhere().await;
        first.batch("going on", "COMMIT").await.unwrap();
        apply_waits_for("topics").await;
        elsewhere().await;
        second.batch("going on", "COMMIT").await.unwrap();
    };
    let (output, ()) = tokio::join!(asking, releasing);
    assert!(output.status.success(), "{}", printed(&output));
    assert!(
        service.log().contains("table public.messages reconciled: 0 rows deleted, 0 updated, 0 inserted"),
        "{}",
        service.log()
    );
    database.assert_catches_up().await;
    assert_eq!(service.restarts("conflict").await, None);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_beside_a_live_table_is_given_up_when_a_function_of_the_destination_fails() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')";
    let database = Database::of_superuser("resnapfunction", &["t"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_destination(
            "UPDATE t SET v = 'drifted' WHERE id = 2; CREATE TABLE lookup (id int);
             CREATE FUNCTION looked_up(text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM FROM public.lookup; RETURN true; END';
             ALTER TABLE t ADD CONSTRAINT looked_up CHECK (looked_up(v)); DROP TABLE lookup",
        )
        .await;
    let failed = "function public.looked_up(text) failed: a table that it names was not found";
    setup.command(&["resnapshot", "t"]).await.exits(1).says(&[failed]);
    service.says("failed and is given up; the old data is still there").await;
    service.is("streaming").await;
    service.stop().await;
}
