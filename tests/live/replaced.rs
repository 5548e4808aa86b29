//! What others put under the name of a table or sequence, into a type, into the bookkeeping: nothing of it is run with headwater's rights.
//!
//! headwater connects as the least-privilege role of docs/roles.md; `owners` makes the databases, and the functions that tell who ran them.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::roles::{owner, writer};
use crate::support::strangers::{as_owner, cannot_grant_parameters, new, nobody_was_pwned};
use crate::support::{Database, Script, Setup, eventually};

/// Ways to put something else under the name of table t.
const REPLACED: &[&str] = &[
    // A simple view, which is written through.
    "CREATE VIEW t AS SELECT * FROM t_old WHERE pwn('view')",
    // Its columns hide those that only tables have.
    "CREATE VIEW t AS SELECT id, v, 1 AS tableoid, 1 AS ctid, 1 AS xmin FROM t_old WHERE pwn('view')",
    // What takes its rows would take them without a trace.
    "CREATE VIEW t AS SELECT * FROM t_old;
     CREATE TRIGGER x INSTEAD OF INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION pwn_trigger()",
    // The table under the view has code that fires.
    "CREATE TRIGGER x BEFORE INSERT OR UPDATE OR DELETE ON t_old FOR EACH ROW EXECUTE FUNCTION pwn_trigger();
     ALTER TABLE t_old ENABLE ALWAYS TRIGGER x; CREATE VIEW t AS SELECT * FROM t_old",
];

const PUT: &str = "ALTER TABLE t RENAME TO t_old";
const PUT_BACK: &str = "DROP VIEW t; ALTER TABLE t_old RENAME TO t; DROP TRIGGER IF EXISTS x ON t";

/// Databases whose destination has the table already, of its owner.
async fn with_owners_table(name: &str) -> Database {
    let database = new(name, true).await;
    as_owner(&database, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    database
}

/// What the source writes: each of the ways in which it is applied.
const WRITTEN: &[&str] = &[
    "INSERT INTO t VALUES (7000, 'one')",
    "UPDATE t SET v = 'updated' WHERE id = 1",
    "DELETE FROM t WHERE id = 2",
    "INSERT INTO t SELECT i, 'set' FROM generate_series(10000, 10999) i",
    "UPDATE t SET v = v || '.' WHERE id BETWEEN 100 AND 900",
    "DELETE FROM t WHERE id BETWEEN 950 AND 1000",
    "TRUNCATE t; INSERT INTO t SELECT i, 'again' FROM generate_series(1, 1000) i",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_view_under_a_followed_tables_name_is_never_written_through() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = with_owners_table("repstream").await;
    database.at_source("INSERT INTO t SELECT i, 'v' FROM generate_series(2, 1000) i").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    for (at, replaced) in REPLACED.iter().enumerate() {
        for (number, written) in WRITTEN.iter().enumerate() {
            // Every way with one kind of view, every kind of view with one way.
            if at != 0 && number != at {
                continue;
            }
            as_owner(&database, &format!("BEGIN; {PUT}; {replaced}; COMMIT")).await;
            database.at_source(written).await;
            service.is("waiting").await;
            service.says("t is a view at the destination, not a table").await;
            as_owner(&database, &format!("BEGIN; {PUT_BACK}; COMMIT")).await;
            service.streams().await;
            database.assert_catches_up().await;
            let rows = "INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i ON CONFLICT DO NOTHING";
            database.at_source(&format!("{rows}; DELETE FROM t WHERE id > 1000")).await;
            database.assert_catches_up().await;
        }
    }
    nobody_was_pwned(&database).await;
    service.stop().await;
}

/// Puts a view under a table's name, and the table back, until told to stop; so often that a look just before is of no use.
async fn toggle(database: &Database, put: &str, put_back: &str, stop: &AtomicBool) -> u32 {
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        for sql in [put, put_back] {
            // A deadlock with headwater's own session may end either.
            let owner = owner(&database.name);
            let toggled = format!("SET ROLE {owner}; BEGIN; {sql}; COMMIT; RESET ROLE");
            while database.destination.script("toggling", &toggled).await.is_err() {
                database.destination.script("toggling", "ROLLBACK; RESET ROLE").await.expect("the session lives");
            }
        }
        times += 1;
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn commands_read_tables_and_nothing_that_stands_in_their_place() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = with_owners_table("repread").await;
    database.at_source("INSERT INTO t SELECT i, 'v' FROM generate_series(2, 3000) i").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_destination("UPDATE t SET v = 'differs' WHERE id % 100 = 0; DELETE FROM t WHERE id = 5").await;
    database.at_source("UPDATE t SET v = 'conflict' WHERE id = 5").await;
    service.is("waiting").await;
    service.stop().await;
    let view = format!("{PUT}; {}", REPLACED[0]);
    as_owner(&database, &format!("BEGIN; {view}; COMMIT")).await;
    let said = "t is a view at the destination, not a table";
    for command in [&["verify"][..], &["verify", "--no-fence"], &["verify", "--show-columns"], &["check"]] {
        setup.command(command).await.exits(1).says(&[said]);
    }
    setup.command(&["conflict", "show"]).await.exits(1).says(&[said]);
    as_owner(&database, &format!("BEGIN; {PUT_BACK}; COMMIT")).await;
    nobody_was_pwned(&database).await;
    // The same in a race, as many times as it takes the commands to look and read.
    let stop = AtomicBool::new(false);
    let commands = async {
        for round in 0..12 {
            let command: &[&str] = match round % 3 {
                0 => &["verify", "--no-fence", "--show-columns"],
                1 => &["conflict", "show"],
                _ => &["check"],
            };
            setup.command(command).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let ((), times) = tokio::join!(commands, toggle(&database, &view, PUT_BACK, &stop));
    assert!(times > 12, "only {times} rounds");
    nobody_was_pwned(&database).await;
    // Another table, whose key has a type with a cast that the operators of the old one would call.
    as_owner(
        &database,
        "CREATE TYPE e AS ENUM ('1', '5', '100', '200');
         CREATE FUNCTION to_int(e) RETURNS int LANGUAGE sql AS $$ SELECT CASE WHEN public.pwn('cast') THEN $1::text::int END $$;
         CREATE CAST (e AS int) WITH FUNCTION to_int(e) AS IMPLICIT;
         CREATE TABLE t2 (id e PRIMARY KEY, v text); INSERT INTO t2 VALUES ('1', 'x'), ('5', 'x'), ('100', 'x'), ('200', 'x')",
    )
    .await;
    let stop = AtomicBool::new(false);
    let commands = async {
        for round in 0..12 {
            let command: &[&str] =
                if round % 2 == 0 { &["verify", "--no-fence", "--show-columns"] } else { &["conflict", "show"] };
            setup.command(command).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let put = format!("{PUT}; ALTER TABLE t2 RENAME TO t");
    let put_back = "ALTER TABLE t RENAME TO t2; ALTER TABLE t_old RENAME TO t";
    let ((), times) = tokio::join!(commands, toggle(&database, &put, put_back, &stop));
    assert!(times > 12, "only {times} rounds");
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_looks_for_code_of_others_behind_the_lock_under_which_it_writes() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = with_owners_table("repreplay").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("DELETE FROM t WHERE id = 1").await;
    database.at_source("UPDATE t SET v = 'b' WHERE id = 1").await;
    let one = |sql: &'static str| async { database.destination_value(sql).await };
    let end_lsn =
        eventually("the conflict is remembered", || one("SELECT (SELECT end_lsn::text FROM headwater.open_conflict)"))
            .await;
    setup.command(&["skip", "--end-lsn", &end_lsn]).await.exits(0);
    eventually("the transaction is a dead letter", || one("SELECT (SELECT end_lsn::text FROM headwater.dead_letter)"))
        .await;
    service.stop().await;
    database.at_destination("INSERT INTO t VALUES (1, 'a')").await;
    as_owner(&database, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    let replay = ["replay", "--end-lsn", &end_lsn];
    let replayed = setup.command(&replay);
    let attaching = async {
        let waits = "SELECT count(*)::text FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
        eventually("the replay waits for the table", || async {
            (one(waits).await.as_deref() == Some("1")).then_some(())
        })
        .await;
        let trigger = "CREATE TRIGGER x BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION pwn_trigger();
                       ALTER TABLE t ENABLE ALWAYS TRIGGER x; COMMIT";
        as_owner(&database, trigger).await;
    };
    let (finished, ()) = tokio::join!(replayed, attaching);
    finished.exits(1).says(&["code of role"]);
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn nothing_is_applied_while_nobody_can_look_for_code_of_others() {
    let database = new("replook", true).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_destination("BEGIN; LOCK TABLE pg_catalog.pg_rewrite IN ACCESS EXCLUSIVE MODE").await;
    service.says("so nothing is applied").await;
    database.at_destination("COMMIT").await;
    service.streams().await;
    database.at_source("UPDATE t SET v = 'b'").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn copies_and_repairs_write_tables_and_nothing_that_stands_in_their_place() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = with_owners_table("repcopy").await;
    database.at_source("INSERT INTO t SELECT i, 'v' FROM generate_series(2, 500) i").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    let view = format!("{PUT}; {}", REPLACED[0]);
    let stop = AtomicBool::new(false);
    let commands = async {
        for round in 0..8 {
            let command: &[&str] = if round % 2 == 0 { &["resnapshot", "--no-wait"] } else { &["verify", "--repair"] };
            service.command(command).await;
            database.at_source(&format!("UPDATE t SET v = 'v{round}' WHERE id % 7 = 0")).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let ((), times) = tokio::join!(commands, toggle(&database, &view, PUT_BACK, &stop));
    assert!(times > 8, "only {times} rounds");
    service.streams().await;
    eventually("every copy that was asked for is made", || async {
        let open = "SELECT count(*)::text FROM headwater.resnapshots WHERE state = 'requested'";
        (database.destination_value(open).await.as_deref() == Some("0")).then_some(())
    })
    .await;
    database.assert_catches_up().await;
    nobody_was_pwned(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_view_under_a_sequences_name_is_not_read_when_sequences_are_moved() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = with_owners_table("repseq").await;
    let serial = "ALTER TABLE t ADD COLUMN n serial";
    database.at_source(serial).await;
    as_owner(&database, serial).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let put = "ALTER SEQUENCE t_n_seq RENAME TO old_seq;
               CREATE VIEW t_n_seq AS SELECT 1::bigint AS last_value, true AS is_called WHERE pwn('sequence')";
    let put_back = "DROP VIEW t_n_seq; ALTER SEQUENCE old_seq RENAME TO t_n_seq";
    let stop = AtomicBool::new(false);
    let writes = async {
        for round in 0..20 {
            database
                .at_source(&format!(
                    "INSERT INTO t (id, v) SELECT {round} * 100 + i, 'x' FROM generate_series(10, 20) i"
                ))
                .await;
            setup.command(&["check"]).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let ((), times) = tokio::join!(writes, toggle(&database, put, put_back, &stop));
    assert!(times > 20, "only {times} rounds");
    nobody_was_pwned(&database).await;
    service.streams().await;
    database.assert_catches_up().await;
    let stands = "SELECT last_value::text FROM t_n_seq";
    let there = database.source_value(stands).await;
    eventually("the sequence is moved once it stands under its name", || async {
        (database.destination_value(stands).await == there).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn checks_of_a_strangers_domain_are_not_run_by_comparing_and_showing_rows() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("repdomain", true).await;
    let columns = "CREATE DOMAIN small AS int; CREATE DOMAIN smaller AS small; CREATE DOMAIN word AS text;
                   CREATE TABLE d (id smaller PRIMARY KEY, w word, many small[])";
    database.at_source(&format!("{columns}; INSERT INTO d SELECT i, 'w', '{{1}}' FROM generate_series(1, 50) i")).await;
    as_owner(&database, columns).await;
    let mut database = database;
    database.tables.push("d".to_owned());
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_destination("UPDATE d SET w = 'other' WHERE id < 5; DELETE FROM d WHERE id = 7").await;
    setup.command(&["verify", "--show-columns"]).await.exits(1).says(&["(id)=(1)", "(id)=(7)"]);
    database.at_source("UPDATE d SET w = 'new' WHERE id = 7").await;
    service.is("waiting").await;
    let shown = eventually("the conflict is shown", || async {
        let (code, text) = service.command(&["conflict", "show"]).await;
        (code == Some(1)).then_some(text)
    })
    .await;
    assert!(shown.contains("w = 'new'") && shown.contains("by key (id):\n  no row"), "{shown}");
    service.stop().await;
    let check = |domain| format!("ALTER DOMAIN {domain} ADD CONSTRAINT c CHECK (pwn('{domain}')) NOT VALID");
    as_owner(&database, &[check("small"), check("smaller"), check("word")].join("; ")).await;
    let refused = "code of role";
    setup.command(&["verify", "--show-columns"]).await.exits(1).says(&[refused, "when rows are compared"]);
    setup.command(&["conflict", "show"]).await.exits(1).says(&["could not be read: ", refused]);
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_and_conflicts_of_unconfigured_tables_are_not_read_or_replayed() {
    let database = new("repletter", true).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("DELETE FROM t WHERE id = 1").await;
    database.at_source("UPDATE t SET v = 'b' WHERE id = 1").await;
    let end_lsn = eventually("the conflict is remembered", || async {
        database.destination_value("SELECT (SELECT end_lsn::text FROM headwater.open_conflict)").await
    })
    .await;
    setup.command(&["skip", "--end-lsn", &end_lsn]).await.exits(0);
    eventually("the transaction is a dead letter", || async {
        database.destination_value("SELECT (SELECT end_lsn::text FROM headwater.dead_letter)").await
    })
    .await;
    service.stop().await;
    // As somebody who may write every table: the name is one of the same length.
    let swapped = "decode(replace(encode(letter, 'hex'), encode('public', 'hex'), encode('zublic', 'hex')), 'hex')";
    database
        .at_destination(&format!(
            "CREATE SCHEMA zublic; CREATE TABLE zublic.t (id int PRIMARY KEY, v text); INSERT INTO zublic.t VALUES (1, 'a');
             UPDATE headwater.dead_letter SET letter = {swapped};
             INSERT INTO headwater.open_conflict (commit_lsn, end_lsn, kind, message, change)
             SELECT 'F/0', 'F/8', 'missing_row', 'm', letter FROM headwater.dead_letter"
        ))
        .await;
    let said = "is not configured";
    setup.command(&["replay", "--end-lsn", &end_lsn]).await.exits(1).says(&["table zublic.t of the dead letter", said]);
    setup.command(&["conflict", "show"]).await.exits(1).says(&["table zublic.t of the conflict", said]);
    assert_eq!(database.destination_value("SELECT v FROM zublic.t").await.as_deref(), Some("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_headwater_never_writes_into_its_bookkeeping_end_nothing() {
    let database = new("repvalues", true).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    eventually("the tables for fences are there", || async {
        let there = "SELECT (to_regclass('headwater.fence_keys') IS NOT NULL)::text";
        (database.destination_value(there).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    database
        .at_destination(
            "INSERT INTO headwater.resnapshots (tables, origin)
             VALUES ('{NULL}', 'command'), ('{{a},{b}}', 'command'), ('{}', 'command'), ('{\"\",\"a.b.c\"}', 'start');
             INSERT INTO headwater.fence_requests (id, kind) VALUES ('x', 'repair');
             INSERT INTO headwater.fence_keys VALUES ('x', 'public', 't', '{NULL}'), ('x', 'public', 't', '{{1},{2}}');
             INSERT INTO headwater.dead_letter (commit_lsn, end_lsn, xid, part, committed_at, changes, tables, letter)
             VALUES ('1/1', '1/2', 5, 1, 'infinity', 9223372036854775807, '{NULL}', '\\x00'), ('1/1', '1/2', 5, 2, '-infinity', 1, '{}', '')",
        )
        .await;
    for command in [
        &["dead-letter", "list"][..],
        &["dead-letter", "show", "--end-lsn", "1/2"],
        &["dead-letter", "show", "--values", "--end-lsn", "1/2"],
        &["replay", "--end-lsn", "1/2"],
        &["status"],
        &["explain"],
        &["check"],
    ] {
        let finished = setup.command(command).await;
        assert!(matches!(finished.code, Some(0 | 1)), "{command:?}: {finished:?}");
        assert!(!finished.err.contains("panicked"), "{command:?}: {finished:?}");
    }
    database.at_source("UPDATE t SET v = 'c'").await;
    database.assert_catches_up().await;
    assert!(!service.log().contains("panicked"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_the_databases_owner_chose_is_not_taken_for_headwaters_own() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("reprole", true).await;
    let (name, owner, writer) = (&database.name, owner(&database.name), writer(&database.name));
    let setup = Setup::of(&database);
    database.at_destination(&format!("ALTER DATABASE {name} SET role = {owner}")).await;
    let said = format!("database {name} at the destination has sessions act as role {owner}, and not as {writer}");
    setup.command(&["check"]).await.exits(1).says(&[&said, "RESET role"]);
    let output = setup.start().ends_with(1).await;
    assert!(output.contains(&said), "{output}");
    // What is set for the role itself was set by one that may act as it.
    database.at_destination(&format!("ALTER ROLE {writer} IN DATABASE {name} SET role = '{owner}'")).await;
    let allowed = setup.command(&["check"]).await;
    assert!(!allowed.out.contains("has sessions act as"), "{allowed:?}");
    database
        .at_destination(&format!("ALTER ROLE {writer} IN DATABASE {name} RESET role; ALTER DATABASE {name} RESET role"))
        .await;
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn teardown_drops_nothing_that_others_have_made_of_the_bookkeeping() {
    let database = new("repteardown", true).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    eventually("the functions for applications are there", || async {
        let there = "SELECT (to_regprocedure('headwater.applied_lsn()') IS NOT NULL)::text";
        (database.destination_value(there).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    service.stop().await;
    database
        .at_destination(
            "CREATE VIEW public.lag AS SELECT position FROM headwater.position;
             CREATE TABLE public.mine (id int, at pg_lsn DEFAULT headwater.applied_lsn());
             CREATE TABLE headwater.note (n int); CREATE SEQUENCE headwater.counter; CREATE TYPE headwater.mood AS ENUM ('ok');
             CREATE DOMAIN headwater.word AS text; CREATE COLLATION headwater.plain FROM \"C\";
             CREATE TEXT SEARCH CONFIGURATION headwater.search (COPY = pg_catalog.simple);
             CREATE STATISTICS headwater.counted ON id, v FROM public.t;
             CREATE STATISTICS public.outside ON schema_name, table_name FROM headwater.tables;
             CREATE FUNCTION headwater.expect(text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        )
        .await;
    database.at_destination(&format!("ALTER TABLE headwater.note OWNER TO {}", writer(&database.name))).await;
    for command in [&["teardown", "--dry-run"][..], &["teardown"]] {
        setup.command(command).await.exits(1).says(&[
            "teardown would drop objects at the destination that are not headwater's",
            "public.lag",
            "public.mine",
            "headwater.note",
            "headwater.counter",
            "headwater.mood",
            "headwater.word",
            "headwater.plain",
            "headwater.search",
            "headwater.counted",
            "statistics object public.outside",
            "headwater.expect(text)",
        ]);
    }
    let slots = format!("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    assert_eq!(database.source_value(&slots).await.as_deref(), Some("1"), "nothing was removed");
    let dropped = "DROP VIEW public.lag; DROP TABLE public.mine; DROP TABLE headwater.note; DROP SEQUENCE headwater.counter;
                   DROP TYPE headwater.mood; DROP DOMAIN headwater.word; DROP COLLATION headwater.plain;
                   DROP TEXT SEARCH CONFIGURATION headwater.search; DROP STATISTICS headwater.counted, public.outside; DROP FUNCTION headwater.expect(text)";
    database.at_destination(dropped).await;
    setup.command(&["teardown"]).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_that_wait_for_a_lock_are_not_written_to_another_schema_of_the_name() {
    // Triggers fire for this role.
    let mut database = new("repschema", false).await;
    database.tables = vec!["app.t".to_owned()];
    let owner = owner(&database.name);
    database
        .at_destination(&format!(
            "CREATE SCHEMA app AUTHORIZATION {owner}; GRANT CREATE ON DATABASE {} TO {owner}",
            database.name
        ))
        .await;
    let table = "CREATE TABLE app.t (id int PRIMARY KEY, v text)";
    database.at_source(&format!("CREATE SCHEMA app; {table}; INSERT INTO app.t VALUES (1, 'a')")).await;
    as_owner(&database, table).await;
    as_owner(
        &database,
        "CREATE SCHEMA other; CREATE TABLE other.t_old (id int PRIMARY KEY, v text); CREATE VIEW other.t AS SELECT * FROM other.t_old;
         CREATE SEQUENCE ran; GRANT ALL ON SEQUENCE ran TO PUBLIC;
         CREATE FUNCTION runs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.ran'); RETURN NEW; END $$;
         CREATE TRIGGER x INSTEAD OF INSERT ON other.t FOR EACH ROW EXECUTE FUNCTION runs()",
    )
    .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_destination(&format!(
            "GRANT USAGE ON SCHEMA app, other TO {0}; GRANT ALL ON app.t, other.t, other.t_old TO {0}",
            writer(&database.name)
        ))
        .await;
    for written in ["INSERT INTO app.t SELECT i, 'set' FROM generate_series(10, 2009) i", "TRUNCATE app.t"] {
        as_owner(&database, "BEGIN; LOCK TABLE app.t IN SHARE MODE").await;
        database.at_source(written).await;
        let waits = "SELECT count(*)::text FROM pg_locks WHERE relation = 'app.t'::regclass AND NOT granted";
        eventually("headwater waits for the table", || async {
            (database.destination_value(waits).await.as_deref() == Some("1")).then_some(())
        })
        .await;
        as_owner(&database, "ALTER SCHEMA app RENAME TO app_old; ALTER SCHEMA other RENAME TO app; COMMIT").await;
        service.says("app.t is a view at the destination, not a table").await;
        as_owner(&database, "BEGIN; ALTER SCHEMA app RENAME TO other; ALTER SCHEMA app_old RENAME TO app; COMMIT")
            .await;
        service.streams().await;
        database.assert_catches_up().await;
    }
    // What code writes goes with the transaction; a sequence stays where it was.
    assert_eq!(database.destination_value("SELECT is_called::text FROM ran").await.as_deref(), Some("false"));
    service.stop().await;
}
