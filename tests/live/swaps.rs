//! Followed tables that change names or schemas among each other at the source: whichever table bears a name is followed under it.

use crate::support::suspension::all_live;
use crate::support::{Database, Service, Setup, eventually};

const TABLES: &[&str] = &["a", "b", "c", "s.a"];

const SCHEMA: &str = "
    CREATE SCHEMA s;
    CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'a'), (2, 'a');
    CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b VALUES (1, 'b'), (3, 'b');
    CREATE TABLE c (id int PRIMARY KEY, v text, more int); INSERT INTO c VALUES (1, 'c', 1);
    CREATE TABLE s.a (id int PRIMARY KEY, v text); INSERT INTO s.a VALUES (1, 's'), (4, 's');";

/// Changes of one transaction, and those that bring back what was before.
struct Swap {
    name: &'static str,
    there: &'static str,
    back: Option<&'static str>,
}

const TWO: &str = "ALTER TABLE a RENAME TO tmp; ALTER TABLE b RENAME TO a; ALTER TABLE tmp RENAME TO b";
const SCHEMAS: &str = "CREATE SCHEMA x; ALTER TABLE a SET SCHEMA x; ALTER TABLE s.a SET SCHEMA public;
    ALTER TABLE x.a SET SCHEMA s; DROP SCHEMA x";

const SWAPS: &[Swap] = &[
    Swap { name: "two", there: TWO, back: Some(TWO) },
    Swap { name: "schemas", there: SCHEMAS, back: Some(SCHEMAS) },
    Swap {
        name: "three",
        there: "ALTER TABLE a RENAME TO tmp; ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b; ALTER TABLE tmp RENAME TO c",
        back: None,
    },
    // Each has a column that the other lacks, and a name means another column than before.
    Swap {
        name: "columns",
        there: "ALTER TABLE b RENAME v TO w; ALTER TABLE b ADD v text; ALTER TABLE b ADD y int;
                ALTER TABLE b RENAME TO tmp; ALTER TABLE c RENAME TO b; ALTER TABLE tmp RENAME TO c",
        back: None,
    },
    Swap {
        name: "schema",
        there: "ALTER SCHEMA s RENAME TO gone; CREATE SCHEMA s; CREATE TABLE s.a (LIKE gone.a INCLUDING ALL); INSERT INTO s.a VALUES (7, 'n')",
        back: None,
    },
    Swap {
        name: "out",
        there: "ALTER TABLE a RENAME TO a_old; CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (5, 'new')",
        back: Some("DROP TABLE a; ALTER TABLE a_old RENAME TO a"),
    },
];

/// When rows are written, and when headwater sees the swap.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Writes {
    Inside,
    After,
    Never,
    WhileStopped,
    BetweenThereAndBack,
}

fn rows(number: i32) -> String {
    let row = |table: &&str| {
        format!(
            "INSERT INTO {table} (id, v) VALUES ({number}, 'row {number}'); UPDATE {table} SET v = v || ' {number}' WHERE id = 1;"
        )
    };
    TABLES.iter().map(row).collect()
}

/// Waits until the columns that both have are the same; what was dropped at the source stays here.
async fn columns_become_equal(database: &Database, tables: &[&str]) {
    for table in tables {
        let rows = format!("SELECT string_agg((t.id, t.v)::text, ' ' ORDER BY t.id) FROM {table} t");
        eventually(&format!("table {table} is equal"), || database.answer_alike(&rows)).await;
    }
}

async fn started(name: &str) -> (Database, Setup, Service) {
    let database = Database::new(name, TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    (database, setup, service)
}

async fn follows(swap: &Swap, writes: Writes) {
    println!("{} {writes:?}", swap.name);
    let (database, setup, service) = started(&format!("swap{}{writes:?}", swap.name).to_lowercase()).await;
    database.at_source(&rows(100)).await;
    let running = if writes == Writes::WhileStopped {
        database.caught_up().await;
        service.stop().await;
        None
    } else {
        Some(service)
    };
    let inside = if writes == Writes::Inside { rows(101) } else { String::new() };
    let after = if writes == Writes::Never { String::new() } else { rows(102) };
    database.at_source(&format!("BEGIN; {}; {inside} COMMIT; {after}", swap.there)).await;
    if let Some(back) = swap.back.filter(|_| writes == Writes::BetweenThereAndBack) {
        database.at_source(&format!("BEGIN; {back}; COMMIT; {}", rows(103))).await;
    }
    let service = running.unwrap_or_else(|| setup.start());
    columns_become_equal(&database, TABLES).await;
    all_live(&database).await;
    database.at_source(&rows(104)).await;
    columns_become_equal(&database, TABLES).await;
    let log = service.log();
    assert!(!log.contains("is now called"), "nothing is to be done by hand: {log}");
    service.stop().await;
}

async fn all_follow(writes: Writes) {
    for swap in SWAPS.iter().filter(|swap| writes != Writes::BetweenThereAndBack || swap.back.is_some()) {
        follows(swap, writes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn tables_that_change_names_are_followed_with_rows_inside_and_behind_the_swap() {
    all_follow(Writes::Inside).await;
    all_follow(Writes::After).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_change_names_are_followed_when_nobody_writes_them() {
    all_follow(Writes::Never).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_changed_names_while_nobody_looked_are_followed() {
    all_follow(Writes::WhileStopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_change_names_and_back_are_followed() {
    all_follow(Writes::BetweenThereAndBack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_takes_the_name_of_another_halts_with_a_way_out_that_works() {
    for (name, behind) in [("swaptaken", ""), ("swaptakenrows", "INSERT INTO a (id, v) VALUES (50, 'taken')")] {
        let (mut database, _, service) = started(name).await;
        database.caught_up().await;
        database.at_source(&format!("ALTER TABLE a RENAME TO a_old; ALTER TABLE b RENAME TO a; {behind}")).await;
        service.says("table public.b is now called public.a at the source").await;
        service.says("Or take public.b out of tables and start once with --resnapshot").await;
        service.is("waiting").await;
        assert!(!service.log().contains("ALTER TABLE public.b RENAME"), "the name is taken here: {}", service.log());
        service.stop().await;
        database.tables.retain(|table| table != "b");
        let service = Setup::of(&database).argument("--resnapshot").start();
        service.streams().await;
        database.at_source("UPDATE a SET v = 'later'; UPDATE c SET v = 'later'").await;
        columns_become_equal(&database, &["a", "c", "s.a"]).await;
        service.stop().await;
    }
}
