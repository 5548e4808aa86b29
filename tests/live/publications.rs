//! Other programs read the destination: a publication FOR ALL TABLES there (Debezium's default) holds headwater's own tables too.

use crate::support::{Database, Setup, eventually, new_destination, source};

/// Tables with every kind of identity that a source's can have.
const TABLES: &[&str] = &["keyed", "whole", "late", "chosen", "odd"];
const SCHEMA: &str = "
    CREATE TABLE keyed (id int PRIMARY KEY, body text);
    CREATE TABLE whole (id int, body text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE late (id int PRIMARY KEY DEFERRABLE, body text); ALTER TABLE late REPLICA IDENTITY FULL;
    CREATE TABLE chosen (id int NOT NULL, body text); CREATE UNIQUE INDEX chosen_id ON chosen (id);
    ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_id;
    CREATE TABLE odd (id int NOT NULL UNIQUE, body text); ALTER TABLE odd REPLICA IDENTITY FULL;
    INSERT INTO keyed SELECT i, 'a' FROM generate_series(1, 20) i; INSERT INTO whole SELECT * FROM keyed;
    INSERT INTO late SELECT * FROM keyed; INSERT INTO chosen SELECT * FROM keyed; INSERT INTO odd SELECT * FROM keyed;";

/// Updates and deletes of all tables, in one transaction.
fn changes(id: u32) -> String {
    let table = |name: &&str| {
        format!("UPDATE {name} SET body = body || 'b' WHERE id = {id}; DELETE FROM {name} WHERE id = {id} + 1")
    };
    format!("BEGIN; {}; COMMIT", TABLES.iter().map(table).collect::<Vec<_>>().join("; "))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_publication_for_all_tables_at_the_destination_stops_nothing() {
    let destination = new_destination(&[("wal_level", "logical")]).await;
    let mut database =
        Database::on(source().await, &destination, "published", &["whole", "late", "chosen", "odd"], SCHEMA).await;
    database.at_destination("CREATE PUBLICATION everything FOR ALL TABLES").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source(&changes(1)).await;
    database.assert_catches_up().await;
    service.stop().await;

    // A table is added, and copied beside the stream while it is written.
    database.tables = TABLES.iter().map(|table| (*table).to_owned()).collect();
    let setup = Setup::of(&database);
    let service = setup.start();
    for id in [3, 5] {
        database.at_source(&changes(id)).await;
    }
    eventually("the new table is there", || async {
        let found = database.destination_value("SELECT to_regclass('keyed')::text").await;
        found.map(drop)
    })
    .await;
    database.assert_catches_up().await;
    setup.command(&["check"]).await.exits(0).says(&["publication everything at the destination also publishes"]);

    // All are copied again while they are written, and reconciled.
    database
        .at_destination("UPDATE keyed SET body = 'drift' WHERE id > 15; DELETE FROM chosen WHERE id > 15; DELETE FROM odd WHERE id > 15")
        .await;
    let resnapshot = async { setup.command(&["resnapshot"]).await.exits(0) };
    let writes = async {
        for id in [7, 9] {
            database.at_source(&changes(id)).await;
        }
    };
    tokio::join!(resnapshot, writes);
    database.assert_catches_up().await;

    // A repair's keys are written and deleted again.
    database.at_destination("UPDATE keyed SET body = 'drift' WHERE id = 11").await;
    setup.command(&["verify", "--repair"]).await.exits(0).says(&["1 updated"]);

    // What an operator wants skipped is written, and deleted once it is done.
    database.at_destination("DELETE FROM keyed WHERE id = 13").await;
    database.at_source("UPDATE keyed SET body = 'lost' WHERE id = 13").await;
    let end_lsn = eventually("the conflict is said", || async {
        let log = service.log();
        let (_, rest) = log.rsplit_once("headwater skip --end-lsn ")?;
        Some(rest.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '/').collect::<String>())
    })
    .await;
    setup.command(&["skip", "--end-lsn", &end_lsn]).await.exits(0);
    service.streams().await;
    database.at_source("DELETE FROM keyed WHERE id = 13").await;
    database.at_source(&changes(15)).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_older_installation_gets_its_identities_at_the_next_start() {
    let database = Database::new("older", &["keyed"], SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    Setup::of(&database).command(&["verify"]).await.exits(0);
    service.stop().await;
    database
        .at_destination(
            "ALTER TABLE headwater.position REPLICA IDENTITY DEFAULT; ALTER TABLE headwater.skip REPLICA IDENTITY DEFAULT;
             ALTER TABLE headwater.fence_keys REPLICA IDENTITY DEFAULT; CREATE PUBLICATION everything FOR ALL TABLES",
        )
        .await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE keyed SET body = 'new'").await;
    database.assert_catches_up().await;
    database.at_destination("UPDATE keyed SET body = 'drift' WHERE id = 1").await;
    Setup::of(&database).command(&["verify", "--repair"]).await.exits(0).says(&["1 updated"]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_a_publication_that_refuses_changes_of_a_table() {
    let schema = "CREATE TABLE plain (id int PRIMARY KEY, body text); INSERT INTO plain VALUES (1, 'a');
                  CREATE TABLE parted (id int PRIMARY KEY, body text)";
    let database = Database::new("refusing", &["plain", "parted"], schema).await;
    // Made by hand, without keys; one of them is partitioned.
    database
        .at_destination(
            "CREATE TABLE plain (id int UNIQUE, body text);
             CREATE TABLE parted (id int, body text) PARTITION BY RANGE (id);
             CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
             CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
             ALTER TABLE parted_2 REPLICA IDENTITY FULL;
             CREATE PUBLICATION readers FOR TABLE plain, parted WITH (publish = 'insert, update')",
        )
        .await;
    let setup = Setup::of(&database);
    setup.command(&["check"]).await.exits(1).says(&[
        "publication readers at the destination holds table public.plain, which has no replica identity",
        "ALTER TABLE public.plain REPLICA IDENTITY FULL;",
        "publication readers at the destination holds table public.parted, which has no replica identity",
        "ALTER TABLE public.parted_1 REPLICA IDENTITY FULL;",
    ]);
    // The statements, as they are printed, are the way out.
    database
        .at_destination(
            "ALTER TABLE public.plain REPLICA IDENTITY FULL; ALTER TABLE public.parted_1 REPLICA IDENTITY FULL;",
        )
        .await;
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE plain SET body = 'b'").await;
    database.assert_catches_up().await;
    service.stop().await;
}
