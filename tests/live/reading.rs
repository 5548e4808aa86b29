//! Reading one's own writes at the destination.

use crate::support::{Database, Script, Setup, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_application_reads_its_own_writes_after_waiting_for_their_position() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let database = Database::new("reading", &["t"], schema).await;
    let role = format!("app_{}", database.name);
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let there = "SELECT (to_regprocedure('headwater.wait_for(pg_lsn, interval)') IS NOT NULL)::text";
    eventually("the functions are there", || async {
        (database.destination_value(there).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    // An application's role that may read the table and use the schema, and nothing else of it.
    database
        .at_destination(&format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA headwater TO {role}; GRANT SELECT ON t TO {role}; SET ROLE {role}"
        ))
        .await;
    for id in 0..20 {
        database.at_source(&format!("INSERT INTO t VALUES ({id}, 'mine')")).await;
        let written = database.source_value("SELECT pg_current_wal_insert_lsn()::text").await.unwrap();
        let waited = database.destination_value(&format!("SELECT headwater.wait_for('{written}', '60 s')::text")).await;
        assert_eq!(waited.as_deref(), Some("true"));
        let row = database.destination_value(&format!("SELECT v FROM t WHERE id = {id}")).await;
        assert_eq!(row.as_deref(), Some("mine"), "row {id} after waiting for {written}");
        let applied =
            database.destination_value(&format!("SELECT (headwater.applied_lsn() >= '{written}')::text")).await;
        assert_eq!(applied.as_deref(), Some("true"));
    }
    let never = "SELECT headwater.wait_for('FFFF/0', '200 ms')::text";
    assert_eq!(database.destination_value(never).await.as_deref(), Some("false"));
    let old = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT headwater.wait_for('0/1')";
    let refused = database.destination.script("an old snapshot", old).await.expect_err("refused");
    assert!(refused.to_string().contains("SQLSTATE 55000"), "{refused}");
    database.at_destination("ROLLBACK").await;
    let hidden = database.destination.batch("the bookkeeping itself", "SELECT * FROM headwater.stream").await;
    assert!(hidden.is_err(), "an application's role sees nothing else");
    service.stop().await;
}
