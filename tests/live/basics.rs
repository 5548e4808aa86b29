//! A copy is taken, followed, and equal.

use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn missing_tables_are_created_filled_and_followed() {
    let database = Database::new("created", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_equal().await;
    for table in FORUM {
        // Keys, checks, defaults, identity, indexes and foreign keys came along.
        for sql in [
            "SELECT string_agg(conname || contype::text, ',' ORDER BY conname) FROM pg_constraint
             WHERE conrelid = '{t}'::regclass AND contype IN ('p', 'u', 'f', 'c')",
            "SELECT string_agg(indexdef, ',' ORDER BY indexname) FROM pg_indexes WHERE schemaname || '.' || tablename = '{t}'",
            "SELECT string_agg(attname || attnotnull || format_type(atttypid, atttypmod), ',' ORDER BY attname)
             FROM pg_attribute WHERE attrelid = '{t}'::regclass AND attnum > 0",
        ] {
            let sql = sql.replace("{t}", table);
            assert_eq!(database.source_value(&sql).await, database.destination_value(&sql).await, "{table}: {sql}");
        }
    }
    database
        .at_source(
            "UPDATE messages SET body = 'edited', edited = true WHERE id = 7;
             DELETE FROM messages WHERE id = 8;
             INSERT INTO messages VALUES (300001, 5, 'new', 1.5, true);
             UPDATE messages SET id = -9 WHERE id = 9;
             BEGIN; INSERT INTO sections (name, place) VALUES ('late', 1); DELETE FROM sections WHERE name = 'section 3'; COMMIT;
             BEGIN; INSERT INTO sections (name, place) VALUES ('never', 1); ROLLBACK;",
        )
        .await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_goes_on_where_the_first_ended() {
    let database = Database::new("second", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    let confirmed =
        format!("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'", database.name);
    assert_eq!(
        database.source_value(&confirmed).await,
        database.destination_value("SELECT position::text FROM headwater.position").await,
        "after a stop in good order everything that is stored is confirmed"
    );
    database.at_source("DELETE FROM messages WHERE id % 3 = 0; UPDATE topics SET title = title || '!'").await;
    let service = Setup::of(&database).start();
    database.assert_catches_up().await;
    assert_eq!(
        service.metric("headwater_snapshot_rows_total{table=\"public.messages\"}").await,
        Some(0.0),
        "no second copy"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind_after_a_stop() {
    let database = Database::new("leftovers", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    let sessions = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE datname = '{}' AND application_name LIKE 'headwater {}%'",
        database.name, database.name
    );
    for client in [&database.source, &database.destination] {
        eventually("no session of headwater's is left", || async {
            let row = client.query_one("counting sessions", &sessions, &[]).await.unwrap();
            (row.get::<&str>(0).unwrap() == "0").then_some(())
        })
        .await;
    }
    let slots = format!("SELECT count(*)::text FROM pg_replication_slots WHERE database = '{}'", database.name);
    assert_eq!(database.source_value(&slots).await.as_deref(), Some("1"), "only the permanent slot");
    let staging = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater_staging%'";
    assert_eq!(database.destination_value(staging).await.as_deref(), Some("0"));
}
