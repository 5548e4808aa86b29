//! The leader's lock: no session that may not lead keeps an instance from leading, and leftovers of a leader are found.

use headwater::session::SqlClient;

use crate::support::database::connect;
use crate::support::{Database, Script, Service, Setup, eventually, new_destination, source};

const TABLES: &[&str] = &["t"];
const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY)";

/// The key that versions without a stored one derive from the slot's name (FNV-1a of `headwater/SLOT`).
fn key_by_name(slot: &str) -> i64 {
    let bytes = format!("headwater/{slot}").into_bytes();
    let hash = bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash.cast_signed()
}

async fn stored_key(database: &Database) -> i64 {
    let key = database.destination_value("SELECT lock_key::text FROM headwater.leadership").await;
    key.and_then(|key| key.parse().ok()).expect("a stored key")
}

/// A role that may connect, and nothing else, and a session of its own.
async fn intruder(database: &Database) -> (String, SqlClient) {
    let role = format!("intruder_{}", database.name);
    database.at_destination(&format!("CREATE ROLE {role} LOGIN")).await;
    let session = connect(&url_as(database, &role)).await.expect("a session of its role");
    (role, session)
}

/// The destination's address for a role.
fn url_as(database: &Database, role: &str) -> String {
    let (_, rest) = database.destination_url.split_once('@').expect("an address with a role");
    format!("postgresql://{role}@{rest}")
}

/// Waits until a session of this role holds the advisory lock with this key.
async fn holds(database: &Database, role: &str, key: i64) {
    let sql = format!(
        "SELECT 'yes' FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted
         AND (l.classid::bigint << 32) | l.objid::bigint = {key} AND a.usename = '{role}'"
    );
    eventually(&format!("{role} holds the lock"), || async {
        database.destination.query_opt("looking", &sql, &[]).await.ok()?
    })
    .await;
}

/// How many locks of these keys are held by the session that leads.
async fn held_by_one(database: &Database, keys: [i64; 2]) -> Option<String> {
    let sql = format!(
        "SELECT count(*)::text || ' by ' || count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND (classid::bigint << 32) | objid::bigint IN ({}, {})",
        keys[0], keys[1]
    );
    database.destination_value(&sql).await
}

async fn applies(service: &Service, database: &Database, id: i32) {
    service.streams().await;
    database.at_source(&format!("INSERT INTO t VALUES ({id})")).await;
    database.assert_catches_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_connect_keeps_no_instance_from_leading() {
    let database = Database::new("squatted", TABLES, SCHEMA).await;
    let (role, session) = intruder(&database).await;
    let by_name = key_by_name(&database.name);
    // Before the first start the key is known to everybody.
    session.query("taking the lock", "SELECT pg_advisory_lock($1)", &[&by_name]).await.unwrap();
    let setup = Setup::of(&database);
    let mut leader = setup.start();
    applies(&leader, &database, 1).await;
    leader.says(&format!("(role {role}, application_name 'headwater observer")).await;
    assert!(leader.log().contains("holds headwater's advisory lock, but may not lead"), "{}", leader.log());
    let mut standby = setup.start();
    standby.is("standby").await;
    standby.says("leads").await;

    // A stored key can be read in pg_locks while it is held. An intruder that waits for it gets it before any standby.
    for round in 2..4 {
        let key = stored_key(&database).await;
        let waiting = connect(&url_as(&database, &role)).await.expect("a second session");
        let waits = tokio::spawn(async move {
            waiting.query("waiting for the lock", "SELECT pg_advisory_lock($1)", &[&key]).await.unwrap();
            waiting
        });
        let sql = format!(
            "SELECT 'yes' FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT granted AND usename = '{role}'"
        );
        eventually("the intruder waits", || async { database.destination.query_opt("", &sql, &[]).await.ok()? }).await;
        leader.kill();
        holds(&database, &role, key).await;
        let kept = waits.await.unwrap();
        applies(&standby, &database, round).await;
        assert_ne!(stored_key(&database).await, key, "the key is another one");
        standby.says("headwater leads all the same, under another key").await;
        let named = format!("role {role}, application_name 'headwater observer");
        setup.command(&["check"]).await.exits(0).says(&["warning", &named, "SELECT pg_terminate_backend("]);
        standby.command(&["explain"]).await.1.find(&named).expect("explain names it");
        leader = std::mem::replace(&mut standby, setup.start());
        standby.is("standby").await;
        drop(kept);
    }
    standby.stop().await;
    leader.stop().await;
    let status = setup.command(&["status"]).await.exits(1);
    status.says(&[
        &format!("(role {role}, application_name 'headwater observer"),
        "may not lead",
        "no instance holds the lock",
    ]);
    // All privileges of others are as they were: none.
    let sql = "SELECT count(*)::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE nspname = 'headwater' AND relkind = 'r' AND relacl IS NOT NULL";
    assert_eq!(database.destination_value(sql).await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_keeps_no_instance_from_leading() {
    let cluster = new_destination(&[("max_prepared_transactions", "5")]).await;
    let database = Database::on(source().await, &cluster, "preparedlock", TABLES, SCHEMA).await;
    let (role, session) = intruder(&database).await;
    let setup = Setup::of(&database);
    let mut leader = setup.start();
    applies(&leader, &database, 1).await;
    leader.kill();
    let key = stored_key(&database).await;
    let take = format!(
        "SELECT pg_advisory_lock({key}); SELECT pg_advisory_unlock({key}); BEGIN; SELECT pg_advisory_xact_lock({key});
         PREPARE TRANSACTION 'it''s mine'"
    );
    session.script("preparing", &take).await.unwrap();
    let leader = setup.start();
    applies(&leader, &database, 2).await;
    leader.says(&format!("a prepared transaction (role {role}, gid 'it''s mine'")).await;
    setup.command(&["check"]).await.says(&["ROLLBACK PREPARED 'it''s mine';"]);
    leader.stop().await;
    session.batch("ending", "ROLLBACK PREPARED 'it''s mine'").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_a_version_without_a_stored_key_is_waited_for_and_waits() {
    let database = Database::new("oldlock", TABLES, SCHEMA).await;
    let by_name = key_by_name(&database.name);
    let setup = Setup::of(&database);
    let leader = setup.start();
    applies(&leader, &database, 1).await;
    leader.stop().await;
    // The bookkeeping as an older version has left it, and that version's leader.
    database
        .at_destination("DROP TABLE headwater.leadership, headwater.sessions; DROP FUNCTION headwater.random_key()")
        .await;
    let older = connect(&database.destination_url).await.expect("a session of headwater's role");
    older.query("leading", "SELECT pg_advisory_lock($1)", &[&by_name]).await.unwrap();
    let newer = setup.start();
    newer.is("standby").await;
    newer.says("headwater observer").await;
    setup.command(&["teardown"]).await.exits(1).says(&["an instance runs"]);
    older.query("stopping", "SELECT pg_advisory_unlock($1)", &[&by_name]).await.unwrap();
    applies(&newer, &database, 2).await;
    // The stored key is there now, and the next leader holds both: an older version would stand by.
    stored_key(&database).await;
    newer.stop().await;
    let newer = setup.start();
    applies(&newer, &database, 3).await;
    let keys = [by_name, stored_key(&database).await];
    assert_eq!(held_by_one(&database, keys).await.as_deref(), Some("2 by 1"));
    let standby = setup.start();
    standby.is("standby").await;
    standby.stop().await;
    newer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_outlive_their_leader_are_ended_by_pid_and_no_others() {
    let database = Database::of_superuser("leftover", TABLES, SCHEMA).await;
    // Logs in as one role and acts as another, which may not see the sessions of the first.
    let (login, acting) = (format!("login_{}", database.name), format!("acting_{}", database.name));
    database
        .at_destination(&format!(
            "CREATE ROLE {acting}; CREATE ROLE {login} LOGIN NOINHERIT IN ROLE {acting}; ALTER ROLE {login} SET role = {acting};
             GRANT CREATE ON DATABASE {} TO {acting}; GRANT CREATE ON SCHEMA public TO {acting}",
            database.name
        ))
        .await;
    let mut setup = Setup::of(&database);
    // Longer than the server's 63 bytes: nothing that headwater appends is left of it.
    let name = "a-pod-with-a-name-that-takes-all-of-the-sixty-three-bytes-there-are";
    let url = url_as(&database, &login);
    setup.destination_url = format!("{url}{}application_name={name}", if url.contains('?') { '&' } else { '?' });
    let mut leader = setup.start();
    applies(&leader, &database, 1).await;
    let recorded = "SELECT count(*)::text FROM headwater.sessions";
    assert_ne!(database.destination_value(recorded).await.as_deref(), Some("0"), "the copy's sessions were recorded");
    let leftover = connect(&setup.destination_url).await.unwrap();
    let stranger = connect(&setup.destination_url).await.unwrap();
    leftover
        .batch("recording", "INSERT INTO headwater.sessions (process_id, purpose) VALUES (pg_backend_pid(), 'staging')")
        .await
        .unwrap();
    // A process of the same number that started after the record was made.
    let record = "INSERT INTO headwater.sessions VALUES (pg_backend_pid(), 'staging', now() - interval '1 day')";
    stranger.script("recording", record).await.unwrap();
    leftover.batch("working", "BEGIN; LOCK TABLE t").await.unwrap();
    leader.kill();
    let leader = setup.start();
    leader.says("ended 1 session that an earlier leader had left").await;
    applies(&leader, &database, 2).await;
    assert!(leftover.batch("working", "SELECT 1").await.is_err(), "the leftover has ended");
    stranger.batch("working", "SELECT 1").await.expect("the stranger lives");
    leader.stop().await;
}
