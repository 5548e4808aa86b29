//! Columns that somebody drops at the destination: their values come back, in the rows that were there, too.

use crate::support::{Database, Setup};

const TABLES: &[&str] = &["t", "u"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_column_dropped_at_the_destination_comes_back_with_all_values() {
    let schema =
        "CREATE TABLE t (id int PRIMARY KEY, c text); INSERT INTO t SELECT i, 'c' || i FROM generate_series(1, 100) i;
        CREATE TABLE u (id int PRIMARY KEY, c text); INSERT INTO u SELECT i, 'c' || i FROM generate_series(1, 100) i";
    let database = Database::new("lostcolumn", TABLES, schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("ALTER TABLE t DROP COLUMN c").await;
    database.at_source("INSERT INTO t VALUES (101, 'new'); UPDATE u SET c = 'new' WHERE id < 10").await;
    service
        .says("column c of table public.t is gone at the destination; it is copied again, while the others stream on")
        .await;
    crate::support::suspension::copied_again(&database).await;
    service.stop().await;
    // Together with a change of the source's, and found by a start.
    database.at_destination("ALTER TABLE u DROP COLUMN c").await;
    database.at_source("ALTER TABLE u ADD COLUMN d int; UPDATE u SET d = 1 WHERE id = 1").await;
    let service = setup.start();
    service.says("column c of table public.u is gone at the destination").await;
    crate::support::suspension::copied_again(&database).await;
    service.stop().await;
    // Where the operator makes changes himself, the copy is his to ask for.
    let setup = setup.setting("schema_changes = \"stop\"");
    let service = setup.start();
    service.streams().await;
    database.at_destination("ALTER TABLE t DROP COLUMN c").await;
    database.at_source("INSERT INTO t VALUES (102, 'new')").await;
    service.says("Copy the table, which gets the column first: headwater resnapshot public.t").await;
    service.is("waiting").await;
    setup.command(&["resnapshot", "--no-wait", "public.t"]).await.exits(0);
    service.streams().await;
    crate::support::suspension::copied_again(&database).await;
    service.stop().await;
}

/// The statement of the hint, as it is printed.
fn rename(said: &str) -> String {
    let mut lines = said.lines().map(str::trim).filter(|line| line.starts_with("ALTER TABLE "));
    lines.next_back().expect("a statement").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_column_that_was_renamed_at_the_destination_is_named_with_the_way_back() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, c varchar(9), n int); INSERT INTO t SELECT i, 'c' || i, i FROM generate_series(1, 100) i;
        CREATE TABLE u (id int PRIMARY KEY, c text NOT NULL); INSERT INTO u SELECT i, 'c' || i FROM generate_series(1, 100) i";
    let database = Database::new("renamedhere", TABLES, schema).await;
    let mut setup = Setup::of(&database).setting("schema_changes = \"stop\"");
    let service = setup.start();
    service.streams().await;
    // Another column of the source's stands for itself, and one of another type is another one.
    database.at_destination("ALTER TABLE t ADD COLUMN own varchar(8); ALTER TABLE t RENAME COLUMN c TO \"C\"").await;
    database.at_source("INSERT INTO t VALUES (101, 'new', 1); UPDATE t SET c = 'later' WHERE id < 9").await;
    service.says("column c of table public.t is gone at the destination").await;
    service.says("It may have been renamed: column \"C\" has its type, and the source has none of that name.").await;
    service.says("headwater resnapshot public.t").await;
    service.is("waiting").await;
    let statement = rename(&service.log());
    assert_eq!(statement, "ALTER TABLE public.t RENAME COLUMN \"C\" TO c;");
    database.at_destination(&statement).await;
    service.streams().await;
    database.at_destination("ALTER TABLE t DROP COLUMN own").await;
    database.assert_catches_up().await;
    // Where two may be it, none is named.
    database.at_destination("ALTER TABLE t RENAME COLUMN c TO d; ALTER TABLE t ADD COLUMN e varchar(9)").await;
    database.at_source("INSERT INTO t VALUES (102, 'new', 1)").await;
    service.is("waiting").await;
    service.says("It was dropped there, or together with its type or an extension.").await;
    database.at_destination("ALTER TABLE t DROP COLUMN e; ALTER TABLE t RENAME COLUMN d TO c").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    // Where headwater follows changes the table is copied, and the log says why.
    setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("ALTER TABLE t RENAME COLUMN c TO d").await;
    database.at_source("INSERT INTO t VALUES (103, 'new', 1)").await;
    service
        .says("it is copied again, while the others stream on; it may have been renamed to d, which the source does not have and which stays as it is")
        .await;
    crate::support::suspension::all_live(&database).await;
    database.at_destination("ALTER TABLE t DROP COLUMN d").await;
    database.assert_catches_up().await;
    database.at_destination("ALTER TABLE u RENAME COLUMN c TO d").await;
    database.at_source("INSERT INTO u VALUES (103, 'new')").await;
    service.says("column c of table public.u is gone at the destination; it is copied again").await;
    // A column that must not be NULL keeps the copy waiting.
    let statement = "ALTER TABLE public.u ALTER COLUMN d DROP NOT NULL;";
    service.says(statement).await;
    database.at_destination(statement).await;
    crate::support::suspension::all_live(&database).await;
    database.at_destination("ALTER TABLE u DROP COLUMN d").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_went_with_its_extension_comes_back_once_the_extension_is_there() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)";
    let database = Database::new("lostextension", TABLES, schema).await;
    let has = "SELECT count(*)::text FROM pg_available_extensions WHERE name = 'citext'";
    if database.source_value(has).await.as_deref() == Some("0")
        || database.destination_value(has).await.as_deref() == Some("0")
    {
        println!("left out: a server without citext");
        return;
    }
    database.at_destination("CREATE EXTENSION citext").await;
    database
        .at_source("CREATE EXTENSION citext; ALTER TABLE t ADD COLUMN c citext; INSERT INTO t VALUES (1, 'v', 'C')")
        .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_destination("DROP EXTENSION citext CASCADE").await;
    database.at_source("INSERT INTO t VALUES (2, 'v', 'D')").await;
    service.says("column c of table public.t is gone at the destination").await;
    service.says("CREATE EXTENSION citext").await;
    database.at_destination("CREATE EXTENSION citext").await;
    crate::support::suspension::copied_again(&database).await;
    service.stop().await;
}
