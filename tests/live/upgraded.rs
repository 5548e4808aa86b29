//! `run --accept-source-identity`: what pg_upgrade has made of a source is followed on, and nothing else is. The servers are of 18,
//! whose programs come without pg_upgrade: what it leaves is made by hand, another identity with a slot behind the old WAL's end.

use headwater::commands::demo::Cluster;

use crate::support::roles::like;
use crate::support::{Database, Script, Setup, bin_of, destination, new_source_of};

const TABLES: &[&str] = &["public.t", "public.u"];
const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE u (id int PRIMARY KEY, t int REFERENCES t);
    INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i; INSERT INTO u SELECT i, i FROM generate_series(1, 500) i;";
/// What is written once the upgraded server is open.
const AFTERWARDS: &str = "DELETE FROM u WHERE id < 50; DELETE FROM t WHERE id < 50; UPDATE t SET n = -n WHERE id > 900;
    INSERT INTO t SELECT i, i FROM generate_series(2001, 2100) i; INSERT INTO u VALUES (2001, 2001)";
const POSITION: &str = "SELECT position::text FROM headwater.position";

/// A database that was followed and is not any more, with the transaction ID that its source had reached.
async fn followed_with_transaction_id(name: &str, from: &Cluster) -> Database {
    let database = Database::on(from, destination().await, name, TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source("DO $$ BEGIN FOR i IN 1..300 LOOP UPDATE t SET n = n + 1 WHERE id = 1000; COMMIT; END LOOP; END $$")
        .await;
    database.assert_catches_up().await;
    database.transaction_id_is_remembered().await;
    service.stop().await;
    database
}

/// As pg_upgrade leaves it: another system identifier and timeline, and a slot behind the old WAL's end, from which nothing is missing.
async fn gets_another_identity(database: &Database) {
    let other = "UPDATE headwater.stream SET system_identifier = '7', timeline = 9, timeline_history = NULL, source_version = 170004";
    database.at_destination(other).await;
    let advance = format!(
        "SELECT pg_switch_wal(); SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())",
        database.name
    );
    database.at_source(&advance).await;
}

/// Ends with these words, and the position stays.
async fn is_not_accepted(database: &Database, says: &str) {
    let before = database.destination_value(POSITION).await;
    let output = Setup::of(database).argument("--accept-source-identity").start().ends_with(1).await;
    assert!(
        output.contains("nor what pg_upgrade makes of it") && output.contains(says),
        "{says:?} is not in:\n{output}"
    );
    assert!(output.contains("headwater run --resnapshot"), "{output}");
    assert_eq!(before, database.destination_value(POSITION).await, "nothing was touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_after_pg_upgrade_is_followed_on_the_operators_word_without_a_copy() {
    let Some(bin) = bin_of(18) else { return };
    let cluster = new_source_of(&bin, &[]).await;
    let database = followed_with_transaction_id("upgraded", &cluster).await;
    gets_another_identity(&database).await;
    database.at_destination("UPDATE t SET n = -7 WHERE id = 77").await;
    let hint = "headwater run --accept-source-identity, and headwater verify at once";
    Setup::of(&database).command(&["check"]).await.exits(1).says(&["was fed by another source", hint]);
    let output = Setup::of(&database).start().ends_with(1).await;
    assert!(output.contains("was fed by another source") && output.contains(hint), "{output}");

    let accepting = Setup::of(&database).argument("--accept-source-identity");
    let service = accepting.start();
    service.streams().await;
    service.says("accepted as what pg_upgrade has made of it").await;
    service.says("run headwater verify now").await;
    let marked = "SELECT n::text FROM t WHERE id = 77";
    assert_eq!(database.destination_value(marked).await.as_deref(), Some("-7"), "nothing was copied");
    database.at_destination("UPDATE t SET n = 77 WHERE id = 77").await;
    database.at_source(AFTERWARDS).await;
    database.assert_catches_up().await;
    service.stop().await;
    // A supervisor starts the same command line again.
    let service = accepting.start();
    service.streams().await;
    service.says("--accept-source-identity changes nothing").await;
    database.at_source("UPDATE t SET n = 8 WHERE id = 500").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_not_accepted_where_something_speaks_against_pg_upgrade() {
    let Some(bin) = bin_of(18) else { return };
    let cluster = new_source_of(&bin, &[]).await;
    let mut database = followed_with_transaction_id("notupgraded", &cluster).await;
    gets_another_identity(&database).await;
    for (column, other, says) in [
        ("source_version", "160009", "one of the two is of 16"),
        ("source_version", "190001", "never leads to a lower one"),
        ("source_database_id", "99", "and had 99: pg_upgrade keeps it"),
        ("source_xid", "1000000000000", "Its next transaction ID is"),
    ] {
        let was = format!("SELECT {column}::text FROM headwater.stream");
        let was = database.destination_value(&was).await.unwrap();
        let set = |value: &str| format!("UPDATE headwater.stream SET {column} = {value}");
        database.at_destination(&set(other)).await;
        is_not_accepted(&database, says).await;
        database.at_destination(&set(&was)).await;
    }
    let slot = |two_phase: bool| {
        format!(
            "SELECT pg_drop_replication_slot('{0}'); SELECT pg_create_logical_replication_slot('{0}', 'pgoutput', false, {two_phase})",
            database.name
        )
    };
    database.at_source(&slot(true)).await;
    is_not_accepted(&database, "(two_phase), which headwater never asks for").await;
    // What became of a table is said as elsewhere.
    database.at_source(&slot(false)).await;
    database.at_source("ALTER TABLE u RENAME TO u2").await;
    let service = Setup::of(&database).argument("--accept-source-identity").start();
    service.says("table public.u is now called public.u2 at the source").await;
    service.stop().await;
    database.at_source("ALTER TABLE u2 RENAME TO u").await;
    // What is there now was dumped and restored.
    database.at_source(&slot(false)).await;
    let restored = "BEGIN; CREATE TABLE new (LIKE t INCLUDING ALL); INSERT INTO new TABLE t; ALTER TABLE u DROP CONSTRAINT u_t_fkey;
                    DROP TABLE t; ALTER TABLE new RENAME TO t; COMMIT";
    database.at_source(restored).await;
    is_not_accepted(&database, "t has another OID there").await;
    database.at_source(&format!("SELECT pg_drop_replication_slot('{}')", database.name)).await;
    is_not_accepted(&database, "does not exist there: it was not kept").await;
    database.tables.clear();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_cluster_made_by_the_same_script_is_not_accepted_with_fewer_transactions() {
    let Some(bin) = bin_of(18) else { return };
    let cluster = new_source_of(&bin, &[]).await;
    let mut database = followed_with_transaction_id("samescript", &cluster).await;
    let other = new_source_of(&bin, &[]).await;
    let admin = other.connect("postgres").await.unwrap();
    admin.script("a database", &format!("CREATE DATABASE {}", database.name)).await.unwrap();
    let ours =
        "SELECT concat_ws(' ', (SELECT oid FROM pg_database WHERE datname = current_database()), 't'::regclass::oid)";
    let oids = database.source_value(ours).await;
    let position = database.destination_value(POSITION).await.unwrap();
    database.source_url = like(&database.source_url, &other.url(&database.name));
    database.reconnect_source(&other).await;
    database.at_source(SCHEMA).await;
    assert_eq!(oids, database.source_value(ours).await, "the same script makes the same OIDs");
    let passed = format!("SELECT (pg_current_wal_flush_lsn() > '{position}')::text");
    while database.source_value(&passed).await.as_deref() != Some("true") {
        database.at_source("SELECT pg_logical_emit_message(false, 'x', 'x'); SELECT pg_switch_wal()").await;
    }
    let slot =
        format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput', false, false, true)", database.name);
    database.at_source(&slot).await;
    is_not_accepted(&database, "Its next transaction ID is").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_17_no_slot_is_taken_for_one_that_pg_upgrade_has_kept() {
    let Some(bin) = bin_of(16) else { return };
    let cluster = new_source_of(&bin, &[]).await;
    let database = followed_with_transaction_id("upgraded16", &cluster).await;
    gets_another_identity(&database).await;
    let output = Setup::of(&database).start().ends_with(1).await;
    assert!(output.contains("was fed by another source") && !output.contains("--accept-source-identity"), "{output}");
    is_not_accepted(&database, "one of the two is of 16: what was written since").await;
}
