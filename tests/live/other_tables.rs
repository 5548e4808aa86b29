//! Tables that are put under the name of a followed one at the destination: no row of the stream goes into them, and the way out works as
//! it is printed.

use std::process::Command;

use crate::support::pause::Pause;
use crate::support::roles::Roles;
use crate::support::{Database, Script, Setup, bin, destination, eventually, source};

const TABLES: &[&str] = &["t", "u"];
const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 't' FROM generate_series(1, 2000) i;
    CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u SELECT i, 'u' FROM generate_series(1, 10) i;";

const NAMED: &str = "table public.t at the destination is not the one that headwater has filled";

/// Another table under the name, with code that fires whoever writes.
const EXCHANGE: &str = "
    BEGIN; ALTER TABLE t RENAME TO t_old; CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TRIGGER x BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION fired();
    CREATE TRIGGER y BEFORE TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION fired();
    ALTER TABLE t ENABLE ALWAYS TRIGGER x; ALTER TABLE t ENABLE ALWAYS TRIGGER y; COMMIT";

const FIRED: &str = "
    CREATE SEQUENCE times; SELECT nextval('times');
    CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('public.times'); RETURN COALESCE(NEW, OLD); END $$";

/// What the source writes: a way for each kind of statement that does it. The first of two prepares it for the table that was filled.
const WRITTEN: &[[&str; 2]] = &[
    ["INSERT INTO t VALUES (7001, 'one')", "INSERT INTO t VALUES (7000, 'one')"],
    [
        "INSERT INTO t SELECT i, 'set' FROM generate_series(20000, 20999) i",
        "INSERT INTO t SELECT i, 'set' FROM generate_series(10000, 10999) i",
    ],
    ["UPDATE t SET v = v || '.' WHERE id < 900", "UPDATE t SET v = v || '.' WHERE id BETWEEN 100 AND 900"],
    ["TRUNCATE t; INSERT INTO t VALUES (1, 'again')", "TRUNCATE t"],
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn another_table_under_a_followed_name_gets_no_row_however_early() {
    let database = Database::of_superuser("othertable", TABLES, SCHEMA).await;
    database.at_destination(FIRED).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    for (number, [before, written]) in WRITTEN.iter().enumerate() {
        database.at_source(before).await;
        database.assert_catches_up().await;
        database.at_destination(EXCHANGE).await;
        database.at_source(written).await;
        service.is("waiting").await;
        eventually("it is named with the way out", || async {
            let status = service.status().await?.to_string();
            let way_out = "headwater resnapshot public.t";
            (status.contains(NAMED) && status.contains(way_out) && status.contains("is called public.t_old now"))
                .then_some(())
        })
        .await;
        let count = database.destination_value("SELECT count(*) || ' ' || (SELECT last_value FROM times) FROM t").await;
        assert_eq!(
            count.as_deref(),
            Some("0 1"),
            "rows of the other table, and times that its triggers fired: {written}"
        );
        if number == 0 {
            setup.command(&["check"]).await.exits(1).says(&[NAMED, "headwater resnapshot public.t"]);
        }
        // As it is printed; what the operator has put there stays, out of the way.
        let statements = ["ALTER TABLE public.t RENAME TO t_not_filled;", "ALTER TABLE public.t_old RENAME TO t;"];
        assert!(statements.iter().all(|statement| service.log().contains(statement)), "{}", service.log());
        database.at_destination(&format!("{} DROP TABLE t_not_filled", statements.concat())).await;
        service.streams().await;
        database.assert_catches_up().await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_recreated_by_the_operator_is_copied_on_request_and_not_before() {
    let database = Database::new("othermade", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    // Nothing is written to it: the monitor finds it.
    database
        .at_destination("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (-1, 'mine')")
        .await;
    service.says(NAMED).await;
    service.says("That one was dropped").await;
    database.at_source("UPDATE u SET v = 'later' WHERE id = 3; UPDATE t SET v = 'later' WHERE id < 50").await;
    service.stop().await;
    // A start says the same, and changes nothing.
    let hint = "Make this one equal to the source: headwater resnapshot public.t";
    setup.command(&["run"]).await.exits(1).says(&[NAMED, hint]);
    assert_eq!(database.destination_value("SELECT string_agg(v, ',') FROM t").await.as_deref(), Some("mine"));
    setup.command(&["resnapshot", "public.t"]).await.exits(0);
    setup.command(&["check"]).await.exits(0).says(&["the source's rows are copied into it"]);
    let service = setup.start();
    service
        .says("table public.t at the destination is not the one that headwater has filled; it is copied again")
        .await;
    service.streams().await;
    crate::support::suspension::copied_again(&database).await;
    // It is the one from now on.
    database.at_source("UPDATE t SET v = 'last' WHERE id < 50").await;
    database.assert_catches_up().await;
    setup.command(&["check"]).await.exits(0);
    // The same while it streams, asked for while it is halted.
    database.at_destination("BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); COMMIT").await;
    database.at_source("UPDATE t SET v = 'more' WHERE id < 50").await;
    service.is("waiting").await;
    setup.command(&["resnapshot", "--no-wait", "public.t"]).await.exits(0);
    service.streams().await;
    crate::support::suspension::copied_again(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_table_that_is_another_one_is_overwritten_only_when_an_operator_asks() {
    let database = Database::new("otheraside", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    database
        .at_destination(
            "UPDATE headwater.tables SET state = 'staging', snapshot_position = NULL WHERE table_name = 't';
             DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (-1, 'mine')",
        )
        .await;
    setup.command(&["run"]).await.exits(1).says(&[NAMED]);
    assert_eq!(database.destination_value("SELECT string_agg(v, ',') FROM t").await.as_deref(), Some("mine"));
    setup.command(&["resnapshot", "public.t"]).await.exits(0);
    let service = setup.start();
    service.streams().await;
    crate::support::suspension::copied_again(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// The source adds a column, so a suspended table would get it before it is copied.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_suspended_table_that_is_exchanged_while_it_waits_for_its_copy_is_left_alone() {
    let database = Database::new("otherwaits", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    // Its copy cannot be published yet.
    database.at_source("CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE t ADD COLUMN m mood").await;
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination("ALTER TABLE t ADD CONSTRAINT mine CHECK (v <> 'refused')").await;
    database.at_source("ALTER TABLE t ALTER v TYPE text USING 'refused'").await;
    service.says("the snapshot of public.t failed").await;
    database
        .at_destination("BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (-1, 'mine'); COMMIT")
        .await;
    database.at_source("ALTER TABLE t ADD COLUMN later int DEFAULT 7; UPDATE u SET v = 'later' WHERE id = 3").await;
    service.says(NAMED).await;
    let here = "SELECT string_agg(to_jsonb(t)::text, ',') FROM t";
    assert_eq!(database.destination_value(here).await.as_deref(), Some(r#"{"v": "mine", "id": -1}"#));
    setup.command(&["check"]).await.exits(1).says(&[NAMED, "headwater resnapshot public.t"]);
    setup.command(&["resnapshot", "--no-wait", "public.t"]).await.exits(0);
    crate::support::suspension::copied_again(&database).await;
    service.streams().await;
    database.at_source("UPDATE t SET v = 'last' WHERE id < 50").await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// The moments of a copy at which another table may take the name: nothing of it is written, and the copy is tried again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_that_is_exchanged_while_it_is_copied_is_left_alone() {
    for (number, moment) in ["handover.comparing_held", "handover.publishing"].into_iter().enumerate() {
        let database = Database::new(&format!("otherpublish{number}"), TABLES, SCHEMA).await;
        let (setup, pause) = Pause::at(moment, Setup::of(&database));
        let service = setup.start();
        service.streams().await;
        database.caught_up().await;
        database.at_source("ALTER TABLE t ALTER v TYPE text USING 'other'").await;
        pause.reached().await;
        let exchange = "BEGIN; ALTER TABLE t RENAME TO t_old; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (-1, 'mine'); COMMIT";
        database.at_destination(exchange).await;
        pause.end();
        service.says(NAMED).await;
        assert_eq!(
            database.destination_value("SELECT string_agg(v, ',') FROM t").await.as_deref(),
            Some("mine"),
            "{moment}"
        );
        database.at_destination("ALTER TABLE t RENAME TO mine; ALTER TABLE t_old RENAME TO t").await;
        crate::support::suspension::copied_again(&database).await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_change_is_not_made_to_another_table_under_the_name() {
    let database = Database::new("otherchanged", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database
        .at_destination("BEGIN; ALTER TABLE t RENAME TO t_old; CREATE TABLE t (id int PRIMARY KEY, v text); COMMIT")
        .await;
    database.at_source("ALTER TABLE t ADD COLUMN w int; INSERT INTO t VALUES (5000, 'x', 1)").await;
    service.is("waiting").await;
    service.says(NAMED).await;
    let columns = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0";
    assert_eq!(database.destination_value(columns).await.as_deref(), Some("id v"));
    database.at_destination("DROP TABLE t; ALTER TABLE t_old RENAME TO t").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_dropped_here_is_copied_on_request_without_a_halt() {
    let database = Database::new("otherdropped", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE t SET v = 'prepared' WHERE id = 1").await;
    database.assert_catches_up().await;
    database.at_destination("DROP TABLE t").await;
    setup.command(&["resnapshot", "--no-wait", "public.t"]).await.exits(0);
    crate::support::suspension::copied_again(&database).await;
    database.at_source("UPDATE t SET v = 'later' WHERE id < 9").await;
    database.assert_catches_up().await;
    assert!(!service.log().contains(NAMED), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn commands_that_write_leave_another_table_under_a_followed_tables_name_alone() {
    let database = Database::new("othercommand", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    // A dead letter.
    database.at_destination("DELETE FROM t WHERE id = 5").await;
    database.at_source("UPDATE t SET v = 'letter' WHERE id = 5").await;
    service.is("waiting").await;
    let sql = "SELECT commit_lsn::text FROM headwater.open_conflict";
    let commit_lsn = eventually("the conflict is there", || database.destination_value(sql)).await;
    setup.command(&["skip", "--commit-lsn", &commit_lsn]).await.exits(0);
    service.streams().await;
    database.at_destination("BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (5, 'mine'); COMMIT").await;
    setup.command(&["replay", "--commit-lsn", &commit_lsn]).await.exits(1).says(&[NAMED]);
    setup.command(&["cutover"]).await.exits(1);
    setup.command(&["verify", "--repair"]).await.exits(1);
    assert_eq!(database.destination_value("SELECT string_agg(v, ',') FROM t").await.as_deref(), Some("mine"));
    service.stop().await;
}

/// What somebody has told: the statements of the hint, as they are printed.
fn renames(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| line.contains(" RENAME TO ")).collect();
    lines.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_hint_gives_followed_tables_with_swapped_names_their_own_back() {
    let database = Database::new("otherswap", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let swap = "BEGIN; ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u; COMMIT";
    let both = "tables public.t, public.u at the destination are not those that headwater has filled";
    let became = [
        "The one that was filled as public.t is called public.u now.",
        "The one that was filled as public.u is called public.t now.",
    ];
    database.at_destination(swap).await;
    database.at_source("UPDATE t SET v = 'later' WHERE id < 50; DELETE FROM u WHERE id = 2").await;
    service.says(both).await;
    service.stop().await;
    let checked = setup.command(&["check"]).await.exits(1).says(&[both, became[0], became[1]]);
    let refused = setup.command(&["run"]).await.exits(1).says(&[both, became[0], became[1]]);
    refused.says(&["Make them equal to the source: headwater resnapshot public.t public.u\n"]);
    let statements = renames(&format!("{}{}", checked.out, checked.err));
    assert_eq!(statements.matches("ALTER TABLE ").count(), 3, "{statements}");
    database.at_destination(&statements).await;
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    assert!(!service.log().contains("copied again"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanged_tables_with_a_foreign_key_that_acts_get_their_names_back_likewise() {
    let roles = Roles::Least { replica: false };
    let schema = format!("{SCHEMA} ALTER TABLE u ADD FOREIGN KEY (id) REFERENCES t");
    let database = Database::under(roles, source().await, destination().await, "otherkeys", TABLES, &schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let swap = "BEGIN; ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u; COMMIT";
    database.at_destination(swap).await;
    let both = "tables public.t, public.u at the destination are not those that headwater has filled";
    service.says(both).await;
    service.says("headwater run --resnapshot").await;
    service.is("waiting").await;
    let checked = setup.command(&["check"]).await.exits(1).says(&[both, "headwater run --resnapshot"]);
    let statements = renames(&format!("{}{}", checked.out, checked.err));
    assert!(statements.split_inclusive("; ").all(|line| service.log().contains(line.trim())), "{statements}");
    database.at_destination(&statements).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn all_tables_that_are_other_ones_are_told_at_once_and_copied_by_one_command() {
    let tables = ["t", "u", "w"];
    let schema = format!("{SCHEMA} CREATE TABLE w (id int PRIMARY KEY, v text); INSERT INTO w VALUES (1, 'w')");
    let database = Database::new("otherall", &tables, &schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    let made = |table| format!("CREATE TABLE {table} (id int PRIMARY KEY, v text);");
    let exchange = format!("DROP TABLE t, u; ALTER TABLE w RENAME TO w_old; {}", tables.map(made).concat());
    database.at_destination(&exchange).await;
    let told = [
        "tables public.t, public.u, public.w at the destination are not those that headwater has filled",
        "The one that was filled as public.t was dropped.",
        "The one that was filled as public.w is called public.w_old now.",
        "headwater resnapshot public.t public.u public.w\n",
        "and copy the rest after that (headwater resnapshot public.t public.u):\n",
        "ALTER TABLE public.w_old RENAME TO w;",
    ];
    setup.command(&["check"]).await.exits(1).says(&told);
    let refused = setup.command(&["run"]).await.exits(1).says(&told);
    // One is copied, and the others are named without it.
    setup.command(&["resnapshot", "--no-wait", "public.u"]).await.exits(0);
    let told = "tables public.t, public.w at the destination are not those that headwater has filled";
    setup.command(&["run"]).await.exits(1).says(&[
        "table public.u at the destination is not the one that headwater has filled; it is copied again",
        told,
    ]);
    setup.command(&["check"]).await.exits(1).says(&[told]);
    database.at_destination(&renames(&format!("{}{}", refused.out, refused.err))).await;
    setup.command(&["resnapshot", "--no-wait", "public.t"]).await.exits(0);
    let service = setup.start();
    service.streams().await;
    crate::support::suspension::copied_again(&database).await;
    service.stop().await;
}

/// The destination's database, restored from its dump into another one of the same cluster.
async fn restore(database: &Database) -> (String, String) {
    let restored = format!("{}_restored", database.name);
    let admin = destination().await.connect("postgres").await.expect("the destination answers");
    admin.script("creating a database", &format!("CREATE DATABASE {restored}")).await.expect("a database");
    let to = database.destination_url.replace(&database.name, &restored);
    let programs = bin("DESTINATION");
    let dumped = Command::new(programs.join("pg_dump")).arg(&database.destination_url).output().expect("pg_dump runs");
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    let (done, said) = crate::support::tools::run(
        &programs.join("psql"),
        &["-qX", "-v", "ON_ERROR_STOP=1", &to],
        &String::from_utf8_lossy(&dumped.stdout),
    );
    assert!(done, "{said}");
    (restored, to)
}

async fn drop_restored(restored: &str) {
    let admin = destination().await.connect("postgres").await.expect("the destination answers");
    let dropped = format!("DROP DATABASE {restored} WITH (FORCE)");
    admin.script("dropping a database", &dropped).await.expect("dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_was_restored_from_a_dump_streams_on_without_a_copy() {
    if !bin("DESTINATION").join("pg_dump").exists() {
        println!("the destination's server comes without pg_dump");
        return;
    }
    let database = Database::of_superuser("otherdump", TABLES, SCHEMA).await;
    let mut setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE t SET v = 'before' WHERE id < 50").await;
    database.assert_catches_up().await;
    service.stop().await;
    database.at_source("UPDATE t SET v = 'meanwhile' WHERE id < 60").await;
    let (restored, to) = restore(&database).await;
    setup.destination_url = to;
    let service = setup.start();
    service.streams().await;
    service.says("the destination was restored from a dump: 2 tables are taken for followed as they are now").await;
    let there = destination().await.connect(&restored).await.expect("the restored database");
    eventually("it follows", || async {
        let row = there.query_one("counting", "SELECT count(*) FROM public.t WHERE v = 'meanwhile'", &[]).await.ok()?;
        (row.get::<i64>(0).ok()? == 59).then_some(())
    })
    .await;
    // From now on those count.
    let exchange = "BEGIN; DROP TABLE public.t; CREATE TABLE public.t (id int PRIMARY KEY, v text); COMMIT";
    there.script("exchanging", exchange).await.expect("exchanged");
    database.at_source("UPDATE t SET v = 'x' WHERE id = 3").await;
    service.says(NAMED).await;
    service.stop().await;
    drop(there);
    drop_restored(&restored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_recognised_where_the_bookkeeping_has_the_same_oids_by_chance() {
    if !bin("DESTINATION").join("pg_dump").exists() {
        println!("the destination's server comes without pg_dump");
        return;
    }
    let database = Database::of_superuser("otherchance", TABLES, SCHEMA).await;
    let mut setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    database.at_source("UPDATE t SET v = 'meanwhile' WHERE id < 60").await;
    let (restored, to) = restore(&database).await;
    // As fresh clusters give the same OIDs to the same sequence of CREATEs.
    let by_chance = "UPDATE headwater.stream SET bookkeeping_ids =
        ARRAY['headwater.stream'::regclass::oid, 'headwater.position'::regclass::oid, 'headwater.tables'::regclass::oid]";
    let there = destination().await.connect(&restored).await.expect("the restored database");
    there.script("giving the same OIDs", by_chance).await.expect("the same OIDs");
    setup.destination_url = to;
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    service.says("the destination was restored from a dump: 2 tables are taken for followed as they are now").await;
    service.streams().await;
    service.stop().await;
    // The same where the database has the same OID, too, in another cluster.
    let elsewhere = "UPDATE headwater.stream SET destination_system_identifier = '1';
        UPDATE headwater.tables SET destination_id = 1 WHERE table_name = 't'";
    there.script("being another cluster", elsewhere).await.expect("another cluster");
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    service.says("the destination was restored from a dump: 1 table is taken for followed as they are now").await;
    service.streams().await;
    service.stop().await;
    drop(there);
    drop_restored(&restored).await;
}

const FORGET: &str =
    "ALTER TABLE headwater.stream DROP COLUMN destination_system_identifier, DROP COLUMN destination_database_id";

const REMEMBERED: &str = "SELECT concat_ws(' ', bookkeeping_ids IS NOT NULL, destination_system_identifier =
    (SELECT system_identifier::text FROM pg_control_system()), destination_database_id =
    (SELECT oid FROM pg_database WHERE datname = current_database())) FROM headwater.stream";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_upgrade_of_headwater_is_not_told_as_a_restore_of_the_destination() {
    let database = Database::new("otherupgrade", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    assert_eq!(database.destination_value(REMEMBERED).await.as_deref(), Some("t t t"));
    // A bookkeeping that has the OIDs, and not yet whose they are: they count.
    database.at_destination(FORGET).await;
    database.at_destination("ALTER TABLE t RENAME TO t_old; CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    setup.command(&["check"]).await.exits(1).says(&[NAMED]);
    setup.command(&["run"]).await.exits(1).says(&[NAMED]);
    database.at_destination("DROP TABLE t; ALTER TABLE t_old RENAME TO t").await;
    let service = setup.start();
    service.streams().await;
    assert!(!service.log().contains("taken for followed"), "{}", service.log());
    service.stop().await;
    assert_eq!(database.destination_value(REMEMBERED).await.as_deref(), Some("t t t"));
    // One of before the OIDs.
    database.at_destination(FORGET).await;
    let before = "ALTER TABLE headwater.stream DROP COLUMN bookkeeping_ids; UPDATE headwater.tables SET destination_id = 1 WHERE table_name = 't'";
    database.at_destination(before).await;
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    service.says("an earlier version has not compared the OIDs of tables at the destination: 1 table is taken").await;
    service.streams().await;
    assert!(!service.log().contains("restored"), "{}", service.log());
    service.stop().await;
    assert_eq!(database.destination_value(REMEMBERED).await.as_deref(), Some("t t t"));
}
