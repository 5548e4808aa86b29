//! Batches by their net effect, on real servers: native replication beside headwater is the oracle.

use fastrand::Rng;

use crate::support::{Database, Script, Setup, compare, destination, eventually, seed, workload};

/// Batches that were done again.
const RETRIED: &str = "headwater_batch_retries_total";

/// Beside the forum's: keys of every sort, unique values that change hands, rows that refer to one another.
const MORE: &str = "
    CREATE TABLE people (id int PRIMARY KEY, boss int REFERENCES people, mail text UNIQUE, seat int UNIQUE DEFERRABLE INITIALLY DEFERRED,
        tags text[], doubled int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE prices (what numeric PRIMARY KEY, price money);
    CREATE TABLE parts (code uuid NOT NULL, at timestamptz NOT NULL, kind \"char\", body text, UNIQUE (at, code));
    CREATE UNIQUE INDEX parts_identity ON parts (code, at);
    ALTER TABLE parts REPLICA IDENTITY USING INDEX parts_identity;
    CREATE TABLE left_hand (id int PRIMARY KEY, other int);
    CREATE TABLE right_hand (id int PRIMARY KEY, other int REFERENCES left_hand DEFERRABLE INITIALLY DEFERRED);
    ALTER TABLE left_hand ADD FOREIGN KEY (other) REFERENCES right_hand DEFERRABLE INITIALLY DEFERRED;
    CREATE TABLE whole (id int PRIMARY KEY, a text, large text);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    ALTER TABLE whole ALTER large SET STORAGE EXTERNAL;";

const MORE_TABLES: &[&str] =
    &["public.people", "public.prices", "public.parts", "public.left_hand", "public.right_hand", "public.whole"];

fn statement(rng: &mut Rng) -> String {
    let (one, other) = (rng.u32(1..60), rng.u32(1..60));
    match rng.u32(..18) {
        0..3 => format!(
            "INSERT INTO people SELECT {one}, (SELECT min(id) FROM people), 'mail{one}', {one}, ARRAY['a', NULL, '{{\"q\"}}'] \
             ON CONFLICT DO NOTHING"
        ),
        3 => format!(
            "UPDATE people SET boss = {other} WHERE id = {one} AND EXISTS (SELECT FROM people WHERE id = {other})"
        ),
        4 => format!(
            "UPDATE people SET mail = NULL WHERE id = {one}; UPDATE people SET mail = 'mail{one}' WHERE id = {other} \
             AND NOT EXISTS (SELECT FROM people WHERE mail = 'mail{one}')"
        ),
        5 => format!(
            "UPDATE people SET seat = CASE seat WHEN {one} THEN {other} ELSE {one} END WHERE seat IN ({one}, {other})"
        ),
        6 => format!("UPDATE people SET boss = NULL WHERE boss = {one}; DELETE FROM people WHERE id = {one}"),
        7 => format!("INSERT INTO prices VALUES ({one}.{}0, {other}) ON CONFLICT DO NOTHING", rng.u32(..3)),
        8 => format!("UPDATE prices SET what = what + 0.00, price = price + 1::money WHERE what < {one}"),
        9 => format!("DELETE FROM prices WHERE what = {one}"),
        10..12 => format!(
            "INSERT INTO parts VALUES (md5('{one}')::uuid, timestamptz '2026-01-01' + {other} * interval '1 hour', 'k', \
             repeat('b', {one})) ON CONFLICT DO NOTHING"
        ),
        12 => format!("UPDATE parts SET at = at + interval '1 year', kind = NULL WHERE code = md5('{one}')::uuid"),
        13 => format!("DELETE FROM parts WHERE code = md5('{one}')::uuid"),
        14 => format!(
            "INSERT INTO left_hand VALUES ({one}, {one}) ON CONFLICT DO NOTHING; \
             INSERT INTO right_hand VALUES ({one}, {one}) ON CONFLICT DO NOTHING"
        ),
        15 => format!(
            "DELETE FROM left_hand WHERE id = {one}; UPDATE right_hand SET other = NULL WHERE other = {one}; \
             UPDATE left_hand SET other = NULL WHERE other = {one}; DELETE FROM right_hand WHERE id = {one}"
        ),
        16 => format!("INSERT INTO whole VALUES ({one}, 'a', repeat(md5('{one}'), 200)) ON CONFLICT DO NOTHING"),
        _ => format!(
            "UPDATE whole SET a = a || 'b', id = id + {} WHERE id = {one} AND NOT EXISTS (SELECT FROM whole WHERE id = {one} + 100)",
            rng.u32(..2) * 100
        ),
    }
}

fn transaction(rng: &mut Rng) -> String {
    if rng.u32(..3) == 0 {
        return workload::transaction(rng);
    }
    let statements: Vec<String> = (0..rng.u32(1..6)).map(|_| statement(rng)).collect();
    format!("BEGIN; SET LOCAL search_path = public; {}; COMMIT", statements.join("; "))
}

async fn write(database: &Database, rng: &mut Rng, transactions: usize) {
    for _ in 0..transactions {
        if database.source.script("a random transaction", &transaction(rng)).await.is_err() {
            let _ = database.source.batch("rolling back", "ROLLBACK").await;
        }
    }
}

/// Backlogs of random transactions, each applied in a few large batches; native replication follows beside.
#[tokio::test(flavor = "multi_thread")]
async fn batches_leave_what_native_replication_leaves() {
    let name = "oracle";
    let schema = format!("{}{MORE}", workload::SCHEMA);
    let tables: Vec<&str> = workload::TABLES.iter().chain(MORE_TABLES).copied().collect();
    let database = Database::new(name, &tables, &schema).await;
    let mut rng = Rng::with_seed(seed(name));
    let native = format!("{}_native", database.name);
    let cluster = destination().await;
    let admin = cluster.connect("postgres").await.unwrap();
    admin.script("a database", &format!("CREATE DATABASE {native}")).await.unwrap();
    let native_side = cluster.connect(&native).await.unwrap();
    native_side.script("tables", &format!("SET search_path = public; {schema}")).await.unwrap();
    native_side.script("no rows", &format!("TRUNCATE {}", tables.join(", "))).await.unwrap();
    database.at_source(&format!("CREATE PUBLICATION {} FOR TABLE {}", database.name, tables.join(", "))).await;
    database.at_source(&format!("SELECT pg_create_logical_replication_slot('{native}', 'pgoutput')")).await;
    let source_url = &database.source_url;
    let subscribe = format!(
        "CREATE SUBSCRIPTION {native} CONNECTION '{source_url}' PUBLICATION {} WITH (create_slot = false, slot_name = '{native}')",
        database.name
    );
    native_side.script("a subscription", &subscribe).await.unwrap();

    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    for _ in 0..3 {
        write(&database, &mut rng, 250).await;
        let service = setup.start();
        database.assert_catches_up().await;
        service.stop().await;
    }
    eventually("native replication has copied all tables", || async {
        let sql = "SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r'";
        native_side.query("the tables' states", sql, &[]).await.ok()?.is_empty().then_some(())
    })
    .await;
    let end = database.source_value("SELECT pg_current_wal_lsn()::text").await.unwrap();
    eventually("native replication has caught up", || async {
        let sql = format!(
            "SELECT (confirmed_flush_lsn >= '{end}')::text FROM pg_replication_slots WHERE slot_name = '{native}'"
        );
        (database.source_value(&sql).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    compare::assert_equal(&native_side, &database.destination, &database.tables).await;
    for sql in [
        format!("ALTER SUBSCRIPTION {native} DISABLE"),
        format!("ALTER SUBSCRIPTION {native} SET (slot_name = NONE)"),
        format!("DROP SUBSCRIPTION {native}"),
    ] {
        native_side.script("ending the subscription", &sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unique_values_that_change_hands_are_applied_in_their_original_order_and_counted() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, code int UNIQUE);
                  INSERT INTO t SELECT i, i FROM generate_series(1, 40) i;";
    let database = Database::new("hands", &["t"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    // Row by row each value is free when it is taken; in one statement over all rows it is not.
    for id in 1..20 {
        let other = 40 - id;
        database
            .at_source(&format!(
                "BEGIN; UPDATE t SET code = -1 WHERE id = {id}; UPDATE t SET code = {id} WHERE id = {other};
                 UPDATE t SET code = {other} WHERE id = {id}; COMMIT"
            ))
            .await;
    }
    let service = setup.start();
    database.assert_catches_up().await;
    let retried = service.metric(RETRIED).await;
    assert!(retried > Some(0.0), "{retried:?} batches were done again");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_whose_sets_are_refused_is_reapplied_in_order() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, code int UNIQUE, body text);
                  INSERT INTO t SELECT i, i, repeat('b', 200) FROM generate_series(1, 2000) i;";
    let database = Database::new("largehands", &["t"], schema).await;
    let setup = Setup::of(&database).section("[apply]\nbatch_bytes_max = \"64kB\"");
    let service = setup.start();
    service.streams().await;
    let swaps = "DO $$ BEGIN FOR i IN 1..900 LOOP
                     UPDATE t SET code = -1 WHERE id = i; UPDATE t SET code = i WHERE id = 2001 - i;
                     UPDATE t SET code = 2001 - i WHERE id = i;
                 END LOOP; END $$";
    database.at_source(&format!("SET search_path = public; {swaps}")).await;
    database.assert_catches_up().await;
    let retried = service.metric(RETRIED).await;
    assert!(retried > Some(0.0), "{retried:?} batches were done again");
    service.stop().await;
}
