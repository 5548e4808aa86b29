//! Tables that are taken out of `tables`: they are followed no longer, and the others lose and double nothing.

use crate::support::{Database, Setup, eventually};

const TABLES: &[&str] = &["t", "u", "w"];
const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 't' FROM generate_series(1, 100) i;
    CREATE TABLE u (id int PRIMARY KEY, t int REFERENCES t, v text); INSERT INTO u SELECT i, i, 'u' FROM generate_series(1, 100) i;
    CREATE TABLE w (id int PRIMARY KEY, v text); INSERT INTO w SELECT i, 'w' FROM generate_series(1, 100) i;";
/// What becomes of table u when it is taken out.
const SAID: &str = "is not configured any more and no longer followed";

async fn followed(name: &str) -> Database {
    let database = Database::new(name, TABLES, SCHEMA).await;
    database.follows_then_stops("UPDATE u SET v = 'followed' WHERE id < 10").await;
    database
}

/// The configuration with these tables only; comparisons mean them from then on.
fn with(database: &mut Database, tables: &[&str]) -> Setup {
    database.tables = tables.iter().map(|table| (*table).to_owned()).collect();
    Setup::of(database)
}

async fn rows_of_u(database: &Database) -> Option<String> {
    database.destination_value("SELECT count(*) || md5(string_agg(u::text, ',' ORDER BY id)) FROM u").await
}

/// Whether the publication holds table u.
async fn publishes_u(database: &Database) -> bool {
    let sql = format!(
        "SELECT count(*)::text FROM pg_publication_tables WHERE pubname = '{}' AND tablename = 'u'",
        database.name
    );
    database.source_value(&sql).await.as_deref() == Some("1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_taken_out_of_tables_is_skipped_from_the_position_on_and_nothing_else_is() {
    let mut database = followed("takenout").await;
    // In one transaction with the others, by itself, as a truncation, and last in one that ends with it.
    database
        .at_source(
            "BEGIN; UPDATE t SET v = 'a' WHERE id < 50; UPDATE u SET v = 'a'; UPDATE w SET v = 'a' WHERE id < 50; DELETE FROM u WHERE id = 1;
             INSERT INTO t VALUES (1000, 'new'); INSERT INTO u VALUES (1000, 1000, 'new'); COMMIT",
        )
        .await;
    database.at_source("DELETE FROM u WHERE id = 2").await;
    database
        .at_source(
            "BEGIN; TRUNCATE u, w; INSERT INTO w VALUES (7, 'after'); INSERT INTO u VALUES (7, 7, 'after'); COMMIT",
        )
        .await;
    let before = rows_of_u(&database).await;
    let setup = with(&mut database, &["t", "w"]);
    let checked = setup.command(&["check"]).await.exits(0);
    checked.says(&["table public.u at the destination is not configured any more", "its rows stay as they are"]);
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_source("BEGIN; INSERT INTO u VALUES (8, 8, 'later'); INSERT INTO w VALUES (8, 'later'); COMMIT").await;
    database.assert_catches_up().await;
    assert_eq!(rows_of_u(&database).await, before, "its rows stay");
    let log = service.log();
    assert_eq!(log.matches(SAID).count(), 1, "{log}");
    assert!(log.contains("ALTER TABLE public.u DROP CONSTRAINT u_t_fkey;"), "{log}");
    for copied in ["reconciled", "copying", "published"] {
        assert!(!log.contains(copied), "{copied}: {log}");
    }
    assert!(log.contains(&format!("took public.u out of publication {}", database.name)), "{log}");
    assert!(!publishes_u(&database).await);
    let known = "SELECT (SELECT string_agg(table_name, ' ' ORDER BY table_name) FROM headwater.tables)
                 || ' ' || (SELECT count(*) FROM headwater.shapes)";
    assert_eq!(database.destination_value(known).await.as_deref(), Some("t w 2"));
    service.stop().await;
    let service = setup.start();
    service.streams().await;
    assert!(!service.log().contains(SAID), "it is said once: {}", service.log());
    service.stop().await;
    let checked = setup.command(&["check"]).await.exits(0);
    assert!(!checked.out.contains("not configured any more"), "{checked:?}");

    // Taken in again it is one that was never followed: its rows may be somebody's by now.
    database.at_destination("UPDATE t SET v = 'local' WHERE id = 90").await;
    let setup = with(&mut database, TABLES);
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("Table public.u has 100 rows."), "{output}");
    assert!(output.contains("start once with --resnapshot=public.u:"), "{output}");
    setup.command(&["check"]).await.exits(1).says(&["start once with --resnapshot=public.u:"]);
    let service = setup.clone().argument("--resnapshot=public.u").start();
    service.streams().await;
    database.caught_up().await;
    crate::support::suspension::all_live(&database).await;
    let local = "SELECT v FROM t WHERE id = 90";
    assert_eq!(database.destination_value(local).await.as_deref(), Some("local"), "the others are not copied");
    database.at_source("BEGIN; UPDATE t SET v = 'b'; UPDATE u SET v = 'b'; UPDATE w SET v = 'b'; COMMIT").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_a_table_and_its_conflict_go_when_it_is_taken_out() {
    let mut database = followed("takenoutopen").await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("DELETE FROM u WHERE id = 5").await;
    database
        .at_source("BEGIN; UPDATE t SET v = 'a'; UPDATE u SET v = 'secret' WHERE id = 5; UPDATE w SET v = 'a'; COMMIT")
        .await;
    eventually("the conflict is remembered", || async {
        database.destination_value("SELECT (SELECT table_name FROM headwater.open_conflict)").await
    })
    .await;
    service.stop().await;
    // Suspended, with a request of its own, another for two tables, and one for all.
    database
        .at_destination(
            r#"UPDATE headwater.tables SET state = 'staging', snapshot_position = NULL WHERE table_name = 'u';
               INSERT INTO headwater.resnapshots (tables, origin)
               VALUES (ARRAY['"public"."u"'], 'changed'), (ARRAY['"public"."t"', '"public"."u"'], 'command')"#,
        )
        .await;
    let service = with(&mut database, &["t", "w"]).start();
    service.streams().await;
    database.caught_up().await;
    crate::support::suspension::all_live(&database).await;
    database.assert_catches_up().await;
    let requests =
        "SELECT string_agg(state || ' ' || array_to_string(tables, ','), '; ' ORDER BY id) FROM headwater.resnapshots";
    assert_eq!(database.destination_value(requests).await.as_deref(), Some("failed ; done \"public\".\"t\""));
    let open = "SELECT count(*)::text FROM headwater.open_conflict";
    assert_eq!(database.destination_value(open).await.as_deref(), Some("0"), "a value would stay there");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_while_a_table_is_taken_out_leaves_nothing_to_be_done() {
    let mut database = followed("takenoutdies").await;
    database.at_source("BEGIN; UPDATE t SET v = 'a'; UPDATE u SET v = 'a'; COMMIT").await;
    let setup = with(&mut database, &["t", "w"]);
    let mut dying = setup.clone().failing_at("tables.unfollowed").start();
    assert_eq!(dying.ended().await.code(), None, "it was to die by a signal");
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    assert!(publishes_u(&database).await, "nothing depends on it");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_others_may_need_keeps_a_table_that_is_taken_out() {
    // The owner's.
    let mut database = Database::of_superuser("takenoutowner", TABLES, SCHEMA).await;
    database.at_source(&format!("CREATE PUBLICATION {} FOR TABLE t, u, w", database.name)).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    service.stop().await;
    let service = with(&mut database, &["t", "w"]).start();
    service.says(SAID).await;
    service.streams().await;
    database.at_source("BEGIN; UPDATE t SET v = 'a'; UPDATE u SET v = 'a'; COMMIT").await;
    database.assert_catches_up().await;
    assert!(publishes_u(&database).await);
    assert!(!service.log().contains("stays in publication"), "{}", service.log());
    service.stop().await;
    // headwater's, and another destination is fed from the same database.
    let name = database.name.clone();
    database.at_source(&format!("COMMENT ON PUBLICATION {name} IS 'Created by headwater'")).await;
    database.at_source(&format!("SELECT pg_create_logical_replication_slot('{name}_b', 'pgoutput')")).await;
    let service = with(&mut database, &["t", "w", "u"]).argument("--resnapshot=public.u").start();
    service.streams().await;
    crate::support::suspension::all_live(&database).await;
    service.stop().await;
    let service = with(&mut database, &["t", "w"]).start();
    service.says(&format!("public.u stays in publication {name} at the source")).await;
    service.says(&format!("ALTER PUBLICATION {name} DROP TABLE public.u;")).await;
    service.streams().await;
    assert!(publishes_u(&database).await);
    service.stop().await;
    database.at_source(&format!("SELECT pg_drop_replication_slot('{name}_b')")).await;
    // headwater's once, and now a role's that does not own it: the start does not fail for it.
    let role = format!("r_{name}");
    database.at_source(&format!("CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t, u, w TO {role}")).await;
    let service = with(&mut database, &["t", "w", "u"]).argument("--resnapshot=public.u").start();
    service.streams().await;
    crate::support::suspension::all_live(&database).await;
    service.stop().await;
    let mut setup = with(&mut database, &["t"]);
    setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
    let service = setup.start();
    service.says(&format!("It could not be taken out: must be owner of publication {name}.")).await;
    service.streams().await;
    database.at_source("BEGIN; UPDATE t SET v = 'c'; UPDATE u SET v = 'c'; COMMIT").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_instances_with_different_tables_the_leaders_count() {
    let mut database = followed("takenouttwo").await;
    let all = Setup::of(&database);
    let mut leader = all.start();
    leader.streams().await;
    let fewer = with(&mut database, &["t", "w"]);
    let standby = fewer.start();
    standby.is("standby").await;
    database.at_source("BEGIN; UPDATE t SET v = 'a'; UPDATE u SET v = 'a'; COMMIT").await;
    database.assert_catches_up().await;
    assert_eq!(
        rows_of_u(&database).await,
        database.source_value("SELECT count(*) || md5(string_agg(u::text, ',' ORDER BY id)) FROM u").await
    );
    assert!(!standby.log().contains(SAID), "{}", standby.log());
    leader.kill();
    standby.streams().await;
    database.at_source("BEGIN; UPDATE t SET v = 'b'; UPDATE u SET v = 'b'; COMMIT").await;
    database.assert_catches_up().await;
    assert!(standby.log().contains(SAID), "{}", standby.log());
    assert_eq!(database.destination_value("SELECT max(v) FROM u WHERE id > 10").await.as_deref(), Some("a"));
    standby.stop().await;
    // The other's tables count when it leads: it follows the table again on the operator's word only.
    let output = all.start().ends_with(1).await;
    assert!(output.contains("start once with --resnapshot=public.u:"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_configured_under_its_new_name_stays_published_and_is_copied_alone() {
    let mut database = followed("takenoutnamed").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("ALTER TABLE u RENAME TO u2; UPDATE u2 SET v = 'renamed' WHERE id = 3").await;
    service.says("table public.u is now called public.u2 at the source").await;
    service.stop().await;
    database.at_destination("ALTER TABLE u RENAME TO u2; UPDATE t SET v = 'local' WHERE id = 90").await;
    let service = with(&mut database, &["t", "u2", "w"]).argument("--resnapshot=public.u2").start();
    service.streams().await;
    database.caught_up().await;
    crate::support::suspension::all_live(&database).await;
    database.at_source("UPDATE u2 SET v = 'later' WHERE id = 4").await;
    database.caught_up().await;
    let rows = "SELECT (SELECT count(*) || md5(string_agg(u2::text, ',' ORDER BY id)) FROM u2)";
    assert_eq!(database.destination_value(rows).await, database.source_value(rows).await);
    let local = "SELECT v FROM t WHERE id = 90";
    assert_eq!(database.destination_value(local).await.as_deref(), Some("local"), "the others are not copied");
    let log = service.log();
    assert!(log.contains("table public.u is not configured any more"), "{log}");
    assert!(!log.contains("out of publication") && !log.contains("has left publication"), "{log}");
    service.stop().await;
}
