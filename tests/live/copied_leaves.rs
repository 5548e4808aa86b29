//! Partitions that are attached behind a copy's snapshot: whatever the copy reads of them were no rows of the table then.
//!
//! A TRUNCATE of such a partition comes through no stream, and no look sees a partition that was detached again. So rows of it that the
//! copy has read would stay.

use crate::support::database::partitioned_table;
use crate::support::pause::Pause;
use crate::support::suspension::all_live;
use crate::support::{Database, Setup, bin_of, destination, eventually, new_source_of};

/// A tree, and a table with rows that becomes its second leaf.
fn with_other(name: &str) -> String {
    format!(
        "{} CREATE TABLE {name}_2 (LIKE {name} INCLUDING ALL); INSERT INTO {name}_2 VALUES (11, 'old'), (12, 'old');",
        partitioned_table(name)
    )
}

/// The same without keys.
fn without_key(name: &str) -> String {
    let identity = |name: &str| format!("ALTER TABLE {name} REPLICA IDENTITY FULL;");
    let tables = ["", "_1", "_2"].map(|leaf| identity(&format!("{name}{leaf}")));
    format!("{} {}", with_other(name).replace(" PRIMARY KEY", ""), tables.concat())
}

fn attach(name: &str) -> String {
    format!("ALTER TABLE {name} ATTACH PARTITION {name}_2 FOR VALUES FROM (10) TO (20)")
}

/// Empties a table's second leaf without a word once a copy has read the table, which is locked until then.
async fn truncates_once_read(database: &Database, table: &str) {
    database.at_source(&format!("BEGIN; LOCK TABLE {table}; TRUNCATE {table}_2; COMMIT")).await;
}

/// Asks for a copy of these tables, as `headwater resnapshot` does.
async fn asks_for_copy(database: &Database, tables: &[&str]) {
    let tables: Vec<String> = tables.iter().map(|table| format!(r#"'"public"."{table}"'"#)).collect();
    let sql =
        format!("INSERT INTO headwater.resnapshots (tables, origin) VALUES (ARRAY[{}], 'command')", tables.join(", "));
    database.at_destination(&sql).await;
}

/// The usual setup, as a role that may read a table but not its partitions.
async fn as_reader_of_root(database: &Database) -> Setup {
    let role = format!("{}_reader", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT ON t TO {role};
             CREATE PUBLICATION {} FOR TABLE t WITH (publish_via_partition_root = true)",
            database.name
        ))
        .await;
    let mut setup = Setup::of(database);
    setup.source_url = setup
        .source_url
        .replace("user=postgres", &format!("user={role}"))
        .replace("//postgres@", &format!("//{role}@"));
    assert!(setup.source_url.contains(&role), "{}", setup.source_url);
    setup
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_attached_behind_the_snapshot_of_a_copy_are_not_read() {
    let schema = format!("{} {}", with_other("t"), without_key("u"));
    let database = Database::new("leafbehind", &["t", "u"], &schema).await;
    Setup::of(&database).start_streaming(&database).await.stop().await;
    let (setup, pause) = Pause::at("snapshot.slot_created", Setup::of(&database));
    let service = setup.start();
    service.streams().await;
    asks_for_copy(&database, &["t", "u"]).await;
    pause.reached().await;
    database.at_source(&attach("t")).await;
    database.at_source(&attach("u")).await;
    pause.end();
    truncates_once_read(&database, "t").await;
    // Its rows come again in another partition.
    database.at_source("ALTER TABLE u DETACH PARTITION u_2").await;
    database.at_source("CREATE TABLE u_3 PARTITION OF u FOR VALUES FROM (10) TO (20)").await;
    database.at_source("ALTER TABLE u_3 REPLICA IDENTITY FULL").await;
    database.at_source("INSERT INTO u SELECT * FROM u_2").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    assert!(!service.log().contains("is tried again"), "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_that_reads_through_the_root_is_made_again_behind_an_attached_partition() {
    let database = Database::of_superuser("leafroot", &["t"], &with_other("t")).await;
    let reader = as_reader_of_root(&database).await;
    reader.start_streaming(&database).await.stop().await;
    let (setup, pause) = Pause::at("snapshot.slot_created", reader);
    let service = setup.start();
    service.streams().await;
    asks_for_copy(&database, &["t"]).await;
    pause.reached().await;
    database.at_source(&attach("t")).await;
    pause.end();
    truncates_once_read(&database, "t").await;
    eventually("the copy is published", || async {
        let asked = "SELECT count(*)::text FROM headwater.resnapshots WHERE origin = 'command' AND state = 'requested'";
        (database.destination_value(asked).await.as_deref() == Some("0")).then_some(())
    })
    .await;
    database.becomes_equal("t").await;
    all_live(&database).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_attached_behind_the_snapshot_of_a_first_copy_are_not_read() {
    let database = Database::new("leaffirst", &["t", "u"], &format!("{} {}", with_other("t"), without_key("u"))).await;
    // Into tables that are there: they are filled in the publishing transaction.
    database.at_destination("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int, v text)").await;
    let (setup, pause) = Pause::at("snapshot.slot_created", Setup::of(&database));
    let service = setup.start();
    pause.reached().await;
    for table in ["t", "u"] {
        database.at_source(&attach(table)).await;
    }
    pause.end();
    for table in ["t", "u"] {
        truncates_once_read(&database, table).await;
    }
    service.streams().await;
    database.assert_catches_up().await;
    all_live(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_through_the_root_begins_again_where_a_partition_was_attached() {
    let database = Database::of_superuser("leaffirstroot", &["t"], &with_other("t")).await;
    database.at_destination("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let (setup, pause) = Pause::at("snapshot.slot_created", as_reader_of_root(&database).await);
    let service = setup.start();
    pause.reached().await;
    database.at_source(&attach("t")).await;
    pause.end();
    truncates_once_read(&database, "t").await;
    service.says("a partition was attached to table public.t while it was read through its root").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// A session of 14 that has met a table does not send its rows once it is a partition: so a copy that has such a partition makes the
/// stream begin again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_of_a_partition_that_the_stream_has_met_as_a_table_come_on_14() {
    let Some(bin) = bin_of(14) else { return };
    let cluster = new_source_of(&bin, &[]).await;
    let schema = with_other("t");
    let database = Database::on(&cluster, destination().await, "leafmet", &["t"], &schema).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    database.at_source("INSERT INTO t_2 VALUES (13, 'old')").await;
    database.caught_up().await;
    // A look is just over, and the next one is ten seconds away.
    database.at_source("CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (20) TO (30)").await;
    let id = database.source_value("SELECT 't_3'::regclass::oid::text").await.expect("an OID");
    let seen = format!("SELECT bool_or(shape::jsonb -> 'empty_partitions' ? '{id}')::text FROM headwater.shapes");
    eventually("t_3 is seen", || async {
        (database.destination_value(&seen).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    database.at_source(&attach("t")).await;
    asks_for_copy(&database, &["t"]).await;
    all_live(&database).await;
    database.at_source("INSERT INTO t VALUES (14, 'new')").await;
    database.assert_catches_up().await;
    service.stop().await;
}
