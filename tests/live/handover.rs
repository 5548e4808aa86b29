//! Rows that change while their table is compared with its copy: between D1, where the two are compared, and D, where the copy
//! is published. A pause stops the comparison in the middle, so that each test writes exactly then.

use std::sync::atomic::{AtomicBool, Ordering};

use headwater::pg::QualifiedName;
use headwater::source::Marks;

use crate::support::pause::Pause;
use crate::support::suspension::all_live;
use crate::support::{Database, Setup, at_each, eventually};

const SCHEMA: &str = "
    CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO a SELECT i, 0 FROM generate_series(1, 20) i;
    CREATE TABLE b (id int PRIMARY KEY, n int, v text);
    INSERT INTO b SELECT i, i, 'v' || i FROM generate_series(1, 1000) i;";

/// Changes that leave every key alone.
const SAME_KEYS: &str = "
    INSERT INTO b (id, n, v) SELECT i, i, 'inserted' FROM generate_series(2001, 2010) i;
    UPDATE b SET v = 'updated' WHERE id BETWEEN 11 AND 20; DELETE FROM b WHERE id BETWEEN 21 AND 30;
    INSERT INTO b (id, n, v) VALUES (21, 21, 'again')";

/// Keys that change, and keys that change hands.
const OTHER_KEYS: &str = "
    UPDATE b SET id = id + 5000 WHERE id BETWEEN 31 AND 40;
    UPDATE b SET id = -1 WHERE id = 41; UPDATE b SET id = 41 WHERE id = 42; UPDATE b SET id = 42 WHERE id = -1";

const COMPARING: &str = "handover.comparing";
const PUBLISHING: &str = "handover.publishing";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_is_written_while_a_suspended_table_is_compared_is_not_lost() {
    at_each(&[SAME_KEYS, OTHER_KEYS, "TRUNCATE b", "TRUNCATE b; INSERT INTO b (id, v) VALUES (1, 'alone'), (7000, 'too')"], |changes| async move {
        let database = Database::new("hosuspended", &["a", "b"], SCHEMA).await;
        let (setup, pause) = Pause::at(COMPARING, Setup::of(&database));
        let service = setup.start();
        service.streams().await;
        database.caught_up().await;
        let changed = "ALTER TABLE b DROP COLUMN n; ALTER TABLE b ADD COLUMN n int DEFAULT 7; UPDATE b SET v = 'w' WHERE id = 1";
        database.at_source(changed).await;
        pause.reached().await;
        database.at_source(changes).await;
        database.caught_up().await;
        pause.end();
        all_live(&database).await;
        database.assert_catches_up().await;
        assert!(!service.log().contains("failed and is tried again"), "{}", service.log());
        service.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_that_come_to_share_a_key_during_a_comparison_are_not_merged() {
    let schema = "CREATE TABLE b (id int NOT NULL, n int, v text); ALTER TABLE b REPLICA IDENTITY FULL;
                  INSERT INTO b VALUES (1, 1, 'v'), (2, 2, 'w')";
    let database = Database::new("hoshared", &["b"], schema).await;
    let (setup, pause) = Pause::at(COMPARING, Setup::of(&database));
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination("ALTER TABLE b ADD CONSTRAINT own_key PRIMARY KEY (id)").await;
    let changed =
        "ALTER TABLE b DROP COLUMN n; ALTER TABLE b ADD COLUMN n int DEFAULT 7; UPDATE b SET v = 'w' WHERE id = 1";
    database.at_source(changed).await;
    pause.reached().await;
    // As wide as all others, so that nothing but their number differs.
    database.at_source("INSERT INTO b SELECT * FROM b WHERE id = 2").await;
    database.caught_up().await;
    pause.end();
    service.says("unique index own_key of table public.b does not take rows of the source that are equal in id").await;
    service.says("ALTER TABLE public.b DROP CONSTRAINT own_key;").await;
    database.at_destination("ALTER TABLE b DROP CONSTRAINT own_key").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_is_written_while_an_added_table_is_compared_is_not_lost() {
    at_each(&[SAME_KEYS, OTHER_KEYS, "TRUNCATE b"], |changes| async move {
        let mut database = Database::new("hoadded", &["a"], SCHEMA).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        service.stop().await;
        database
            .at_destination(
                "CREATE TABLE b (id int PRIMARY KEY, n int, v text);
                 INSERT INTO b SELECT i, i, 'v' || i FROM generate_series(1, 900) i",
            )
            .await;
        database.tables.push("b".to_owned());
        let (setup, pause) = Pause::at(COMPARING, Setup::of(&database));
        let service = setup.argument("--resnapshot=public.b").start();
        pause.reached().await;
        database.at_source(changes).await;
        database.caught_up().await;
        pause.end();
        all_live(&database).await;
        database.assert_catches_up().await;
        assert!(!service.log().contains("failed and is tried again"), "{}", service.log());
        service.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_waits_for_the_comparison_that_reads_the_table_and_for_nothing_else() {
    let mut database = Database::new("hotruncate", &["a"], SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    // Not followed yet: the live table has no stream that could wait for the comparison as well.
    let filled = "CREATE TABLE b (id int PRIMARY KEY, n int, v text); INSERT INTO b VALUES (1, 1, 'v'), (2, 3, 'w')";
    database.at_destination(filled).await;
    database.tables.push("b".to_owned());
    let (setup, pause) = Pause::at("comparison.read", Setup::of(&database));
    let service = setup.argument("--resnapshot=public.b").start();
    pause.reached().await;
    database.at_source("TRUNCATE b; INSERT INTO b (id, v) VALUES (1, 'alone')").await;
    let waits = "SELECT count(*)::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                 JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE NOT l.granted AND l.mode = 'AccessExclusiveLock' AND starts_with(n.nspname, 'headwater_staging_')";
    eventually("the truncate waits for the comparison", || async {
        (database.destination_value(waits).await.as_deref() == Some("1")).then_some(())
    })
    .await;
    pause.end();
    service.says("published public.b").await;
    database.assert_catches_up().await;
    assert!(!service.log().contains("failed and is tried again"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_is_written_while_a_followed_table_is_compared_is_not_lost() {
    at_each(&[SAME_KEYS, OTHER_KEYS, "TRUNCATE b; INSERT INTO b (id, v) VALUES (1, 'alone')"], |changes| async move {
        let database = Database::new("hofollowed", &["a", "b"], SCHEMA).await;
        let (setup, pause) = Pause::at(COMPARING, Setup::of(&database));
        let service = setup.start();
        service.streams().await;
        database.caught_up().await;
        database
            .at_destination(
                "UPDATE b SET n = -n WHERE id < 60; DELETE FROM b WHERE id = 500; INSERT INTO b VALUES (9000, 1, 'local')",
            )
            .await;
        let writing = async {
            pause.reached().await;
            database.at_source(changes).await;
            database.caught_up().await;
            pause.end();
        };
        let setup = Setup::of(&database);
        let (finished, ()) = tokio::join!(setup.command(&["resnapshot", "b"]), writing);
        finished.exits(0);
        database.assert_catches_up().await;
        assert!(!service.log().contains("failed and is tried again"), "{}", service.log());
        service.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_the_stream_is_held_is_applied_once() {
    let database = Database::new("hoheld", &["a", "b"], SCHEMA).await;
    let (setup, pause) = Pause::at(PUBLISHING, Setup::of(&database));
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    let done = AtomicBool::new(false);
    let insert = |id: u32| format!("INSERT INTO b (id, n, v) VALUES ({id}, {id}, 'written')");
    let writing = async {
        for id in 10_000.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            database.at_source(&insert(id)).await;
        }
    };
    let holding = async {
        pause.reached().await;
        // Behind where the live tables are held; staging must not come so far.
        for id in 5_000..5_050 {
            database.at_source(&insert(id)).await;
        }
        done.store(true, Ordering::Relaxed);
        pause.end();
    };
    let setup = Setup::of(&database);
    let (finished, (), ()) = tokio::join!(setup.command(&["resnapshot", "b"]), writing, holding);
    finished.exits(0);
    database.assert_catches_up().await;
    assert!(!service.log().contains("failed and is tried again"), "{}", service.log());
    assert_eq!(service.restarts("conflict").await, None);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_an_enum_is_copied_while_its_rows_are_written() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE DOMAIN feeling AS mood;
                  CREATE TABLE b (id int PRIMARY KEY, m mood NOT NULL, f feeling[], v text);
                  INSERT INTO b SELECT i, 'ok', '{sad,ok}', 'v' FROM generate_series(1, 500) i";
    let database = Database::new("hoenum", &["b"], schema).await;
    let (setup, pause) = Pause::at(COMPARING, Setup::of(&database));
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination("UPDATE b SET m = 'sad' WHERE id < 20").await;
    let writing = async {
        pause.reached().await;
        database
            .at_source(
                "UPDATE b SET m = 'happy' WHERE id % 50 = 1; INSERT INTO b VALUES (600, 'sad', NULL, 'new'); DELETE FROM b WHERE id = 7",
            )
            .await;
        database.caught_up().await;
        pause.end();
    };
    let setup = Setup::of(&database);
    let (finished, ()) = tokio::join!(setup.command(&["resnapshot", "b"]), writing);
    finished.exits(0);
    assert!(!service.log().contains("failed and is tried again"), "{}", service.log());
    // What the publish remembers of the table is what the stream describes next: no change.
    database.at_source("UPDATE b SET v = 'streamed' WHERE id = 3").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_suspended_table_that_waits_for_an_operator_keeps_no_other_waiting() {
    let schema = format!("{SCHEMA} CREATE TABLE c (id int PRIMARY KEY, n int, v text); INSERT INTO c SELECT * FROM b;");
    let database = Database::new("hotwo", &["a", "b", "c"], &schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    let live = "SELECT string_agg(table_name, ' ' ORDER BY table_name) FROM headwater.tables WHERE state = 'live'";
    // Another type under the same name: only the operator may lose the old values.
    database
        .at_source("ALTER TABLE b DROP COLUMN n; ALTER TABLE b ADD COLUMN n text DEFAULT random()::text; UPDATE b SET v = 'w' WHERE id = 1")
        .await;
    service.says("ALTER TABLE public.b RENAME COLUMN n TO another_name;").await;
    database.at_source("ALTER TABLE c ADD COLUMN r float8 DEFAULT random(); UPDATE c SET v = 'w' WHERE id = 1").await;
    eventually("the other one is copied", || async {
        (database.destination_value(live).await.as_deref() == Some("a c")).then_some(())
    })
    .await;
    // The same after a restart, which asks for both at once, and for a table that an operator wants copied.
    service.stop().await;
    database.at_source("ALTER TABLE c ADD COLUMN s float8 DEFAULT random(); UPDATE c SET v = 'x' WHERE id = 2").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    setup.command(&["resnapshot", "a"]).await.exits(0);
    eventually("the other one is copied again", || async {
        let copied = "SELECT (count(to_jsonb(c) ->> 's') = count(*))::text FROM c";
        (database.destination_value(copied).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    service.says("ALTER TABLE public.b RENAME COLUMN n TO another_name;").await;
    database.at_destination("ALTER TABLE b RENAME COLUMN n TO another_name").await;
    all_live(&database).await;
    database.at_destination("ALTER TABLE b DROP COLUMN another_name").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_no_update_can_set_are_refused_and_then_made_equal_and_counted_once() {
    let schema = "CREATE TABLE b (id int PRIMARY KEY, n int, v text); INSERT INTO b SELECT i, i, 'v' FROM generate_series(1, 100) i";
    let database = Database::new("hofixed", &["b"], schema).await;
    let setup = Setup::of(&database);
    database
        .at_destination(
            "CREATE TABLE b (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text, local text DEFAULT 'kept');
             INSERT INTO b OVERRIDING SYSTEM VALUE SELECT i, -i, 'v' FROM generate_series(1, 10) i;
             INSERT INTO b OVERRIDING SYSTEM VALUE SELECT i, i, 'w' FROM generate_series(11, 20) i;
             UPDATE b SET local = 'mine'",
        )
        .await;
    let hint = "ALTER TABLE public.b ALTER COLUMN n SET GENERATED BY DEFAULT;";
    let log = setup.clone().argument("--resnapshot").start().ends_with(1).await;
    assert!(log.contains(hint), "{log}");
    database.at_destination(hint).await;
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    assert!(service.log().contains("0 rows deleted, 20 updated, 80 inserted"), "{}", service.log());
    let kept = "SELECT count(*)::text FROM b WHERE local = 'mine'";
    assert_eq!(database.destination_value(kept).await.as_deref(), Some("20"), "what is local stays");
    database.at_destination("ALTER TABLE b DROP COLUMN local").await;
    database.assert_catches_up().await;
    setup.command(&["resnapshot"]).await.exits(0);
    service.says("table public.b reconciled: 0 rows deleted, 0 updated, 0 inserted").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_that_triggers_of_the_destination_change_are_told() {
    let database = Database::of_superuser("hotrigger", &["b"], SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_destination(
            "CREATE FUNCTION upper_case() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v = upper(NEW.v); RETURN NEW; END';
             UPDATE b SET v = 'drifted' WHERE id <= 3; DELETE FROM b WHERE id = 9;
             CREATE TRIGGER shouts BEFORE INSERT OR UPDATE ON b FOR EACH ROW EXECUTE FUNCTION upper_case();
             ALTER TABLE b ENABLE ALWAYS TRIGGER shouts",
        )
        .await;
    setup.command(&["resnapshot"]).await.exits(0);
    service
        .says("4 rows of table public.b differ from the source after they were written: triggers of the destination act on them (shouts)")
        .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_that_is_altered_while_it_is_compared_is_copied_again() {
    let database = Database::new("hoaltered", &["a", "b"], SCHEMA).await;
    let (setup, pause) = Pause::at(COMPARING, Setup::of(&database));
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_source("ALTER TABLE b ADD COLUMN r float8 DEFAULT random(); UPDATE b SET v = 'w' WHERE id = 1").await;
    pause.reached().await;
    // Other values under the same type: no row of them comes by the stream.
    database.at_source("ALTER TABLE b ALTER COLUMN n TYPE int USING n * 100; UPDATE b SET v = 'x' WHERE id = 5").await;
    database.caught_up().await;
    pause.end();
    service.says("staging was lost: table public.b was changed at the source meanwhile").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_tell_an_altered_table_from_one_that_got_another_file() {
    let schema = "CREATE TABLE b (id int PRIMARY KEY, n int, v varchar(20)); INSERT INTO b VALUES (1, 1, 'x');
                  CREATE TABLE p (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
                  CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 1);
                  CREATE TABLE none ();";
    let database = Database::of_superuser("homarks", &["b"], schema).await;
    let names = ["b", "p", "none"].map(|name| QualifiedName::new("public", name));
    for (sql, altered) in [
        ("TRUNCATE b, p", None),
        ("VACUUM FULL b", None),
        ("CLUSTER b USING b_pkey", None),
        ("ANALYZE; VACUUM FREEZE pg_attribute", None),
        ("CREATE INDEX ON b (n)", None),
        ("UPDATE b SET n = 5", None),
        ("ALTER TABLE b ALTER n TYPE int USING n * 10", Some("b")),
        ("ALTER TABLE b ALTER v TYPE text", Some("b")),
        ("ALTER TABLE b ADD c int DEFAULT 5", Some("b")),
        ("ALTER TABLE b DROP c; ALTER TABLE b ADD c int", Some("b")),
        ("ALTER TABLE b RENAME c TO d", Some("b")),
        ("ALTER TABLE b ALTER n SET NOT NULL", Some("b")),
        ("ALTER TABLE none ADD x int", Some("none")),
        // What becomes of their rows is for `catalog::leaves` to say.
        ("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)", None),
        ("ALTER TABLE p DETACH PARTITION p2", None),
        ("ALTER TABLE p1 ALTER n SET STATISTICS 7", Some("p")),
        ("ALTER TABLE p ALTER n TYPE int USING n * 10", Some("p")),
        ("ALTER TABLE b RENAME TO old; CREATE TABLE b (LIKE old)", Some("b")),
        ("DROP TABLE b", Some("b")),
    ] {
        let before = Marks::read(&database.source, &names).await.expect("marks");
        for statement in sql.split(';') {
            database.at_source(statement).await;
        }
        let now = Marks::read(&database.source, &names).await.expect("marks");
        let found = now.altered(&before, &names).map(|table| table.name.as_str().to_owned());
        assert_eq!(found.as_deref(), altered, "{sql}");
    }
}
