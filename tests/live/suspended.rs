//! Tables that only a copy mends: each by itself, while the others stream on.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::browser::Browser;
use crate::support::suspension::{all_live, copied_again};
use crate::support::{Database, Script, Service, Setup, at_each, eventually};

const TABLES: &[&str] = &["t", "other"];

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, a text, n int NOT NULL DEFAULT 1);
    INSERT INTO t SELECT i, 'a' || i, i FROM generate_series(1, 1000) i;
    CREATE TABLE other (id int PRIMARY KEY, v bigint NOT NULL);
    INSERT INTO other SELECT i, 0 FROM generate_series(1, 10) i;";

/// A column as both ends should have it: name, type, NOT NULL.
const COLUMNS: &str =
    "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull, ', ' ORDER BY attname)
    FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped";

async fn started(name: &str) -> (Database, Service) {
    let database = Database::new(name, TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    (database, service)
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_wait_until_the_conflict_of_another_table_is_over() {
    let (database, service) = started("asidebehind").await;
    database.at_destination("INSERT INTO other VALUES (11, 1)").await;
    database.at_source("INSERT INTO other VALUES (11, 2)").await;
    service.is("waiting").await;
    let asked = service.restarts("conflict").await.unwrap_or_default();
    Setup::of(&database).command(&["resnapshot", "--no-wait", "public.t"]).await.exits(0);
    // The stream comes to the conflict again and again: a copy that began each time would read the source in vain.
    eventually("four more attempts", || async { (service.restarts("conflict").await? >= asked + 4.0).then_some(()) })
        .await;
    assert!(!service.log().contains("copying public.t again"), "{}", service.log());
    database.at_destination("DELETE FROM other WHERE id = 11").await;
    copied_again(&database).await;
    assert!(service.log().contains("copying public.t again"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_an_operator_asks_for_ends_the_conflict_of_its_table() {
    let (database, service) = started("asideconflict").await;
    database.at_destination("INSERT INTO t VALUES (5000, 'mine', 1)").await;
    database.at_source("INSERT INTO t VALUES (5000, 'theirs', 2); UPDATE other SET v = 7").await;
    service.is("waiting").await;
    service.says("conflict: insert on table public.t").await;
    // Another table's copy is none of this one's.
    let setup = Setup::of(&database);
    setup.command(&["resnapshot", "--no-wait", "public.other"]).await.exits(0);
    service.is("waiting").await;
    setup.command(&["resnapshot", "--no-wait", "public.t"]).await.exits(0);
    copied_again(&database).await;
    service.streams().await;
    assert_eq!(database.destination_value("SELECT a FROM t WHERE id = 5000").await.as_deref(), Some("theirs"));
    database.at_source("UPDATE t SET a = 'later' WHERE id = 5000; UPDATE other SET v = 8").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_stream_does_not_tell_is_copied_and_both_ends_have_the_same_columns() {
    let (database, service) = started("asideall").await;
    let changes: &[&[&str]] = &[
        &["ALTER TABLE t ADD COLUMN r float8 NOT NULL DEFAULT random()"],
        &["ALTER TABLE t ADD COLUMN c int DEFAULT 5", "VACUUM FULL t"],
        &["ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN a text; UPDATE t SET a = 'again' WHERE id < 500"],
        &["ALTER TABLE t ADD COLUMN s int; ALTER TABLE t DROP COLUMN s; ALTER TABLE t ADD COLUMN q bigserial"],
        &["CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN feeling AS mood CHECK (VALUE <> 'sad');
           ALTER TABLE t ADD COLUMN f feeling NOT NULL DEFAULT 'ok'; ALTER TABLE t RENAME COLUMN r TO ratio"],
    ];
    for (number, change) in changes.iter().enumerate() {
        for statement in *change {
            database.at_source(statement).await;
        }
        database.at_source("UPDATE t SET n = n + 1 WHERE id % 10 = 7; UPDATE other SET v = v + 1").await;
        copied_again(&database).await;
        // What the old rows did not keep yet comes with the table's next change.
        database.at_source("UPDATE t SET n = n + 1 WHERE id = 3").await;
        database.assert_catches_up().await;
        assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await, "{change:?}");
        let copied = service.log().matches("it is copied again, while the others stream on").count();
        assert_eq!(copied, number + 1, "{change:?}: {}", service.log());
        eventually("the service is ready again", || async {
            service.get("/readyz").await.filter(|(status, _)| *status == 200)
        })
        .await;
    }
    let log = service.log();
    assert!(log.contains("copying public.t again while the stream continues"), "{log}");
    assert!(!log.contains("table public.other has rows and will be reconciled"), "no other table is copied: {log}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_stream_on_prefix_by_prefix_while_the_table_stands_still() {
    let tables = &["t", "other", "journal"];
    let schema = format!("{SCHEMA} CREATE TABLE journal (n bigint PRIMARY KEY)");
    let database = Database::new("asideload", tables, &schema).await;
    let service = Setup::of(&database).section("[snapshot]\nmax_rate = \"40kB\"\nworkers = 1").start();
    service.streams().await;
    database.at_source("INSERT INTO t SELECT i, repeat('x', 200), 1 FROM generate_series(1001, 2000) i").await;
    database.caught_up().await;
    let done = AtomicBool::new(false);
    let writer = crate::support::source().await.connect(&database.name).await.unwrap();
    let writing = async {
        let mut number = 0_i64;
        while !done.load(Ordering::Relaxed) {
            number += 1;
            let script = format!(
                "BEGIN; UPDATE public.other SET v = {number}; INSERT INTO public.t (id, a) VALUES ({}, 'new');
                 UPDATE public.t SET a = 'changed {number}', id = id + 100000 WHERE id = {};
                 DELETE FROM public.t WHERE id = {}; INSERT INTO public.journal VALUES ({number}); COMMIT",
                10_000 + number,
                number % 1000,
                9_990 + number
            );
            writer.script("writing", &script).await.unwrap();
        }
        number
    };
    let reader = crate::support::destination().await.connect(&database.name).await.unwrap();
    let changing = async {
        database
            .at_source(
                "BEGIN; UPDATE t SET a = 'before' WHERE id = 2000; ALTER TABLE t ADD COLUMN r float8 DEFAULT random();
                 UPDATE t SET a = 'after' WHERE id = 2000; COMMIT",
            )
            .await;
        service.says("table public.t has rows and will be reconciled").await;
        // Both at once, as one reader sees them: the others are whole transactions, the table is as it was before the change.
        let state = "SELECT (SELECT max(v) FROM public.other), (SELECT min(v) FROM public.other), (SELECT count(*) FROM public.journal),
                            (SELECT COALESCE(max(n), 0) FROM public.journal), (SELECT a FROM public.t WHERE id = 2000),
                            (SELECT state FROM headwater.tables WHERE table_name = 't'),
                            (SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM public.t)";
        let (mut first, mut still, mut states) = (None, None, 0);
        loop {
            let row = reader.query_one("reading a state", state, &[]).await.unwrap();
            let (max, min, count, newest): (i64, i64, i64, i64) =
                (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap(), row.get(3).unwrap());
            assert_eq!((min, count, newest), (max, max, max), "a state that the source was never in");
            if row.get::<&str>(5).unwrap() == "live" {
                break;
            }
            assert_eq!(row.get::<&str>(4).unwrap().len(), 200, "half a transaction is here");
            assert_eq!(
                &*still.get_or_insert(row.get::<String>(6).unwrap()),
                &row.get::<String>(6).unwrap(),
                "a suspended table stays as it is"
            );
            states += i64::from(first.replace(max) != Some(max));
        }
        assert!(states > 20, "the others stood still, too: {states} states were seen");
        all_live(&database).await;
        done.store(true, Ordering::Relaxed);
    };
    let (written, ()) = tokio::join!(writing, changing);
    println!("{written} transactions");
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await);
    assert_eq!(service.restarts("conflict").await, None);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_and_created_anew_is_copied_by_itself() {
    let (database, service) = started("asidedrop").await;
    // The publication loses the table: the monitor notices.
    database
        .at_source(
            "UPDATE t SET a = 'of the old one'; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, a text, n int NOT NULL DEFAULT 1);
             INSERT INTO t VALUES (1, 'fresh', 2); UPDATE other SET v = 1",
        )
        .await;
    service.says("was dropped and created again at the source").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    // Another table takes the name, and the old one is there under another.
    database
        .at_source(
            "CREATE TABLE next (LIKE t INCLUDING ALL, extra int DEFAULT 3); INSERT INTO next SELECT i, 'next', 1 FROM generate_series(1, 50) i;
             BEGIN; ALTER TABLE t RENAME TO gone; ALTER TABLE next RENAME TO t; COMMIT; UPDATE gone SET a = 'nobody''s'",
        )
        .await;
    eventually("the new one is here", || async {
        (database.destination_value("SELECT count(*)::text FROM t").await.as_deref() == Some("50")).then_some(())
    })
    .await;
    all_live(&database).await;
    database.at_source("UPDATE t SET a = 'streamed' WHERE id = 7; DELETE FROM t WHERE id = 8").await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await);
    let gap = database.destination_value("SELECT gap FROM headwater.stream").await;
    assert_eq!(gap, None, "nothing is missing");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_new_table_of_a_known_name_in_the_stream_is_no_obstacle_for_the_others() {
    let database = Database::new("asidename", TABLES, SCHEMA).await;
    database.at_source(&format!("CREATE PUBLICATION {} FOR ALL TABLES", database.name)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    // The stream brings the old one, the new one, and the one after that.
    database.at_source("UPDATE t SET a = 'old'; UPDATE other SET v = 1").await;
    for round in 0..2 {
        database
            .at_source(&format!(
                "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, a text, n int NOT NULL DEFAULT 1); INSERT INTO t VALUES ({round}, 'new', 1);
                 UPDATE other SET v = v + 1"
            ))
            .await;
    }
    let service = Setup::of(&database).start();
    service.streams().await;
    copied_again(&database).await;
    database
        .at_source("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, a text, n int NOT NULL DEFAULT 1); INSERT INTO t VALUES (9, 'newest', 1)")
        .await;
    service.says("was dropped and created again at the source").await;
    copied_again(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn dying_at_any_point_with_a_table_set_aside_loses_and_doubles_nothing() {
    let points = [
        "schema.suspended",
        "snapshot.slot_created",
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
        let database = Database::new("asidedies", TABLES, SCHEMA).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        service.stop().await;
        let mut dying = Setup::of(&database).failing_at(point).start();
        database
            .at_source("ALTER TABLE t ADD COLUMN r float8 DEFAULT random(); UPDATE t SET a = 'after' WHERE id < 20; UPDATE other SET v = 7")
            .await;
        let status = dying.ended().await;
        assert_eq!(status.code(), None, "{point}: it was to die by a signal");
        database
            .at_source("UPDATE t SET r = 0 WHERE id = 5; DELETE FROM t WHERE id = 6; INSERT INTO t (id) VALUES (-1)")
            .await;
        let service = Setup::of(&database).start();
        service.streams().await;
        copied_again(&database).await;
        assert_eq!(database.destination_value(COLUMNS).await, database.source_value(COLUMNS).await, "{point}");
        service.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_that_cannot_take_the_copy_waits_with_a_fix_while_others_stream() {
    let schema = format!("{SCHEMA} ALTER TABLE t ADD COLUMN o int REFERENCES other; UPDATE t SET o = 1 + id % 10;");
    // A foreign key between both: where it acted, the table would not be left behind.
    let database = Database::with_replica_role("asidemisfit", TABLES, &schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_source(
            "ALTER TABLE t DROP COLUMN n; ALTER TABLE t ADD COLUMN n text DEFAULT random()::text; UPDATE t SET a = 'x' WHERE id = 1",
        )
        .await;
    service.says("ALTER TABLE public.t RENAME COLUMN n TO another_name;").await;
    database.at_source("UPDATE other SET v = 5; TRUNCATE other, t; INSERT INTO other VALUES (1, 1)").await;
    database.caught_up().await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM other").await.as_deref(), Some("1"));
    assert_eq!(database.destination_value("SELECT count(*)::text FROM t").await.as_deref(), Some("1000"));
    let (status, reason) = service.get("/readyz").await.expect("an answer");
    assert_eq!((status, reason.contains("table public.t is suspended")), (503, true), "{reason}");
    let sentence = "Table public.t is suspended";
    let (code, out) = service.command(&["status"]).await;
    assert!(code == Some(1) && out.starts_with(sentence), "{out}");
    assert!(out.lines().any(|line| line.starts_with("public.t ") && line.contains("suspended")), "{out}");
    let statement = "ALTER TABLE public.t RENAME COLUMN n TO another_name;";
    let failed = "the copy of public.t has failed and is tried again";
    eventually("explain says why the copy fails", || async {
        let (code, out) = service.command(&["explain"]).await;
        (code == Some(1) && out.contains(failed) && out.contains(statement)).then_some(())
    })
    .await;
    if let Some(mut browser) = Browser::open(&service.http_url()).await {
        browser.shows("#headline", sentence).await;
        browser.shows("#tables", "is suspended until it is copied again").await;
        browser.picture("suspended-light").await;
    }
    // A restart does not forget it.
    service.stop().await;
    Setup::of(&database).command(&["status"]).await.says(&[failed, statement]);
    let service = Setup::of(&database).start();
    service.says("ALTER TABLE public.t RENAME COLUMN n TO another_name;").await;
    // It is tried again and again, and says why once.
    service.says("the snapshot of public.t failed as before").await;
    let failed = service.log().matches("the snapshot of public.t failed and is tried again").count();
    let begun = service.log().matches("INFO copying public.t again while the stream continues").count();
    assert_eq!((failed, begun), (1, 1), "{}", service.log());
    database.at_destination("ALTER TABLE public.t RENAME COLUMN n TO another_name; ALTER TABLE t ALTER COLUMN another_name DROP NOT NULL").await;
    database.at_source("INSERT INTO t (id, a) VALUES (1, 'y'), (2, NULL)").await;
    all_live(&database).await;
    database.caught_up().await;
    let rows = "SELECT string_agg(concat_ws(' ', id, a, n), ',' ORDER BY id) FROM t";
    assert_eq!(database.destination_value(rows).await, database.source_value(rows).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_foreign_keys_act_the_table_is_not_left_behind() {
    let database = Database::of_superuser(
        "asidekeys",
        &["p", "c"],
        "CREATE TABLE p (id int PRIMARY KEY, v text); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p);
         INSERT INTO p SELECT i, 'v' FROM generate_series(1, 10) i; INSERT INTO c SELECT i, i FROM generate_series(1, 10) i",
    )
    .await;
    let role = format!("bound_{:08x}", fastrand::u32(..));
    database
        .at_destination(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role}; GRANT ALL ON SCHEMA public TO {role}",
            database.name
        ))
        .await;
    let mut setup = Setup::of(&database);
    setup.destination_url = setup.destination_url.replacen("postgres@", &format!("{role}@"), 1);
    let service = setup.start();
    service.streams().await;
    database.at_source("ALTER TABLE p ADD COLUMN r float8 DEFAULT random(); INSERT INTO p (id) VALUES (11); INSERT INTO c VALUES (11, 11)").await;
    service.says("would refuse rows of the other tables meanwhile").await;
    service.says("Copy all tables again: headwater run --resnapshot").await;
    service.is("waiting").await;
    service.stop().await;
    database.at_destination("ALTER TABLE p ADD COLUMN r float8").await;
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// A copy that takes a while, of a table that is written to.
async fn slow_copy(name: &str) -> (Database, Setup, Service) {
    let database = Database::new(name, TABLES, SCHEMA).await;
    let setup =
        Setup::of(&database).setting("verify_every = \"1s\"").section("[snapshot]\nmax_rate = \"40kB\"\nworkers = 1");
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO t SELECT i, repeat('x', 200), 1 FROM generate_series(1001, 1600) i").await;
    database.caught_up().await;
    (database, setup, service)
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_never_takes_a_table_that_stands_still_for_one_that_differs() {
    let (database, setup, service) = slow_copy("asideverify").await;
    setup.command(&["verify"]).await.exits(0).says(&["table public.t: equal", "equal: both sides compared"]);
    let done = AtomicBool::new(false);
    let writer = crate::support::source().await.connect(&database.name).await.unwrap();
    let writing = async {
        let mut number = 0;
        while !done.load(Ordering::Relaxed) {
            number += 1;
            let script = format!(
                "BEGIN; UPDATE public.other SET v = {number}; UPDATE public.t SET a = 'now {number}' WHERE id = {}; COMMIT",
                number % 1000
            );
            writer.script("writing", &script).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let verifying = async {
        // Before the change, at it, during the copy and after it.
        let (mut left_out, mut compared_after) = (0, 0);
        let mut changed = false;
        while compared_after < 2 {
            let finished = setup.command(&["verify"]).await;
            assert!(!finished.out.contains("missing") && !finished.out.contains("differ"), "{}", finished.out);
            if finished.out.contains("table public.t is suspended until it is copied again: not compared") {
                left_out += 1;
                assert_eq!(finished.code, Some(1), "what was not compared is not proven: {}", finished.out);
                assert!(finished.out.contains("table public.other: equal"), "{}", finished.out);
                assert!(finished.out.contains("equal, as far as they could be compared"), "{}", finished.out);
            } else {
                assert_eq!(finished.code, Some(0), "{}{}", finished.out, finished.err);
                compared_after += i32::from(left_out > 0);
            }
            if !changed {
                changed = true;
                database
                    .at_source(
                        "ALTER TABLE t ADD COLUMN r float8 DEFAULT random(); UPDATE t SET a = 'after' WHERE id = 1600",
                    )
                    .await;
            }
        }
        done.store(true, Ordering::Relaxed);
        left_out
    };
    let ((), left_out) = tokio::join!(writing, verifying);
    assert!(left_out > 0);
    let log = service.log();
    assert!(!log.contains("the destination differs from the source"), "{log}");
    assert!(log.contains("left out: table public.t is suspended until it is copied again"), "{log}");
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_stands_still_is_neither_verified_alone_nor_cut_over_nor_repaired() {
    let (database, service) = started("asidealone").await;
    let setup = Setup::of(&database);
    database.at_destination("UPDATE other SET v = 99 WHERE id = 3").await;
    // What keeps the copy away is the operator's, so it stands still for as long as the test wants.
    database
        .at_source("ALTER TABLE t DROP COLUMN n; ALTER TABLE t ADD COLUMN n text DEFAULT random()::text; UPDATE t SET a = 'x' WHERE id = 1")
        .await;
    service.says("ALTER TABLE public.t RENAME COLUMN n TO another_name;").await;
    let alone = "nothing can be compared: table public.t is suspended until it is copied again";
    setup.command(&["verify", "--table", "t"]).await.exits(1).says(&[alone]);
    let rest = setup.command(&["verify", "--repair"]).await.exits(1);
    rest.says(&[
        "differs  (id)=(3)",
        "1 updated",
        "table public.t is suspended until it is copied again: not compared",
    ]);
    setup.command(&["verify", "--table", "other"]).await.exits(0);
    setup.command(&["cutover"]).await.exits(1).says(&["table public.t is suspended until it is copied again"]);
    service.stop().await;
    // Nobody leads: the same, as the destination stands.
    setup
        .command(&["verify"])
        .await
        .exits(1)
        .says(&["table public.t is suspended until it is copied again: not compared"]);
    // A table that is configured and not followed yet has nothing to be compared with either.
    let mut more = setup.clone();
    more.tables.push("later".to_owned());
    database.at_source("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)").await;
    more.command(&["verify"])
        .await
        .exits(1)
        .says(&["table public.later is not followed yet: it is copied first: not compared"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_created_anew_is_not_compared_before_it_is_copied() {
    let database = Database::new("asideanew", TABLES, SCHEMA).await;
    database.at_source(&format!("CREATE PUBLICATION {} FOR ALL TABLES", database.name)).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    database
        .at_source("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, a text, n int NOT NULL DEFAULT 1); INSERT INTO t VALUES (1, 'new', 1)")
        .await;
    // Nothing has told the destination yet.
    let finished = setup.command(&["verify"]).await.exits(1);
    let finished = finished
        .says(&["table public.t was dropped and created again at the source, and is copied first: not compared"]);
    assert!(finished.out.contains("table public.other: equal"), "{}", finished.out);
    setup.command(&["check"]).await.exits(0).says(&["table public.t was dropped and created again", "is copied again"]);
    let service = setup.start();
    service.streams().await;
    copied_again(&database).await;
    setup.command(&["verify"]).await.exits(0);
    service.stop().await;
}
