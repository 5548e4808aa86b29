//! What the source's catalog cannot tell for certain, while tables, publications and partitions go on changing.

use std::time::{Duration, Instant};

use crate::support::pause::Pause;
use crate::support::suspension::all_live;
use crate::support::{Database, Service, Setup, eventually, source};

/// How long a table may go on changing in these tests.
const CHANGES_MAX: Duration = Duration::from_secs(240);

/// The table's rows, in one text.
fn rows(table: &str) -> String {
    format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM {table} t")
}

async fn is_equal(database: &Database, table: &str) -> bool {
    database.destination_value(&rows(table)).await == database.source_value(&rows(table)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_partition_emptied_while_others_keep_coming_is_compared_meanwhile() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);
                  CREATE TABLE t_0 PARTITION OF t FOR VALUES FROM (0) TO (10); INSERT INTO t VALUES (1), (2);";
    let database = Database::new("dbtchurn", &["t"], schema).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    database.at_source("TRUNCATE t_0").await;
    // Each look sees another catalog than the one before.
    let began = Instant::now();
    let mut next = 1;
    while !is_equal(&database, "t").await {
        assert!(began.elapsed() < CHANGES_MAX, "the rows are still here:\n{}", service.log());
        let (from, to) = (next * 10, next * 10 + 10);
        database.at_source(&format!("CREATE TABLE t_{next} PARTITION OF t FOR VALUES FROM ({from}) TO ({to})")).await;
        next += 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_attached_table_come_though_a_later_change_was_rolled_back() {
    let tree = |name: &str, key: &str| {
        format!(
            "CREATE TABLE {name} (id int {key}, n int) PARTITION BY RANGE (id);
             ALTER TABLE {name} REPLICA IDENTITY FULL;
             CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (10);
             ALTER TABLE {name}_1 REPLICA IDENTITY FULL; INSERT INTO {name} VALUES (1, 1);"
        )
    };
    let trees = [("plain", ""), ("keyed", "PRIMARY KEY")];
    let schema: String = trees.iter().map(|(name, key)| tree(name, key)).collect();
    let database = Database::new("dbtrolled", &["plain", "keyed"], &schema).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    for (name, key) in trees {
        database
            .at_source(&format!(
                "BEGIN; CREATE TABLE {name}_2 (id int {key}, n int); ALTER TABLE {name}_2 REPLICA IDENTITY FULL;
                 INSERT INTO {name}_2 VALUES (11, 1);
                 ALTER TABLE {name} ATTACH PARTITION {name}_2 FOR VALUES FROM (10) TO (20); COMMIT"
            ))
            .await;
        // A rolled back DELETE or UPDATE of a row of the catalog leaves its command there, in the place of the row's own.
        for change in ["ALTER n SET STATISTICS 10", "ALTER id SET STATISTICS 10"] {
            database.at_source(&format!("BEGIN; ALTER TABLE {name}_2 {change}; ROLLBACK")).await;
        }
        let detach = format!("ALTER TABLE {name} DETACH PARTITION {name}_2");
        database.at_source(&format!("BEGIN; SELECT 1; SELECT 2; {detach}; ROLLBACK")).await;
    }
    for (name, _) in trees {
        let what = format!("table {name} is equal");
        eventually(&what, || async { is_equal(&database, name).await.then_some(()) }).await;
    }
    all_live(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_publication_has_not_sent_for_a_moment_is_copied() {
    let database =
        Database::new("dbtmoment", &["t"], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);").await;
    let service = Setup::of(&database).start_streaming(&database).await;
    let publication = database.source_value("SELECT quote_ident(pubname) FROM pg_publication").await.unwrap();
    let set = |publish: &str| format!("ALTER PUBLICATION {publication} SET (publish = '{publish}')");
    database.at_source(&set("insert")).await;
    database.at_source("DELETE FROM t").await;
    database.at_source(&set("insert, update, delete, truncate")).await;
    eventually("table t is equal", || async { is_equal(&database, "t").await.then_some(()) }).await;
    all_live(&database).await;
    // The log tells of a copy behind its commit.
    service.says("published all tables").await;
    // Its owner says nothing about what it sends.
    let copied = service.log().matches("published").count();
    database.at_source(&format!("ALTER PUBLICATION {publication} OWNER TO CURRENT_USER")).await;
    database.at_source("INSERT INTO t VALUES (2)").await;
    database.assert_catches_up().await;
    assert_eq!(service.log().matches("published").count(), copied, "{}", service.log());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_partition_without_an_index_that_is_emptied_twice_leaves_no_rows() {
    let schema = "CREATE TABLE t (id int, v text) PARTITION BY RANGE (id); ALTER TABLE t REPLICA IDENTITY FULL;
                  CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (100); ALTER TABLE t_1 REPLICA IDENTITY FULL;
                  INSERT INTO t VALUES (1, 'v');";
    let database = Database::new("dbttwice", &["t"], schema).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    database
        .at_source(
            "BEGIN; TRUNCATE t_1; INSERT INTO t VALUES (10, 'A'); TRUNCATE t; INSERT INTO t VALUES (20, 'B'); TRUNCATE t_1; COMMIT",
        )
        .await;
    eventually("table t is equal", || async { is_equal(&database, "t").await.then_some(()) }).await;
    all_live(&database).await;
    service.stop().await;
}

/// Everything that reports says that table t is in doubt.
async fn says_doubt(service: &Service) {
    let (status, reason) = service.get("/readyz").await.expect("an answer");
    let said = "table public.t is in doubt until it is compared with the source";
    assert_eq!((status, reason.contains(said)), (503, true), "{reason}");
    assert!(is_in_doubt(service).await, "{:?}", service.status().await);
    let (code, out) = service.command(&["status"]).await;
    assert!(code == Some(1) && out.contains("In doubt until compared with the source"), "{out}");
    let (code, out) = service.command(&["explain"]).await;
    assert!(code == Some(1) && out.contains("In doubt until compared with the source"), "{out}");
}

async fn is_in_doubt(service: &Service) -> bool {
    service.status().await.is_some_and(|status| status["in_doubt"] == serde_json::json!(["public.t"]))
}

async fn is_ready(service: &Service) {
    eventually("it is ready", || async { (service.get("/readyz").await?.0 == 200).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_in_doubt_is_not_reported_as_fresh_until_it_is_compared() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE other (id int PRIMARY KEY);
                  CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10); INSERT INTO t VALUES (1), (2);";
    let database = Database::new("dbtfresh", &["t", "other"], schema).await;
    let mut service = Setup::of(&database).start_streaming(&database).await;
    assert_eq!(service.get("/readyz").await.expect("an answer").0, 200);
    let copied = r#"INSERT INTO headwater.resnapshots (tables, origin, state, finished_at)
                    SELECT ARRAY['"public"."t"'], 'changed', 'done', clock_timestamp() FROM generate_series(1, 12)"#;
    database.at_destination(copied).await;
    database.at_source("TRUNCATE t_1").await;
    service.says("public.t was copied 12 times within an hour").await;
    for is_started_again in [false, true] {
        if is_started_again {
            service.stop().await;
            service = Setup::of(&database).start_streaming(&database).await;
        }
        says_doubt(&service).await;
    }
    // It is followed.
    database.at_source("INSERT INTO t VALUES (3)").await;
    database.caught_up().await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM t").await.as_deref(), Some("3"));
    database.at_destination("DELETE FROM headwater.resnapshots WHERE state = 'done'").await;
    eventually("table t is equal", || async { is_equal(&database, "t").await.then_some(()) }).await;
    is_ready(&service).await;
    service.stop().await;
}

/// A tree with rows in its leaf, and another table.
const TREE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE other (id int PRIMARY KEY);
                    CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10); INSERT INTO t VALUES (1), (2);";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_whose_locked_partition_would_tell_is_reported_as_in_doubt() {
    let database = Database::new("dbtlocked", &["t", "other"], TREE).await;
    let service = Setup::of(&database).start_streaming(&database).await;
    let holder = source().await.connect(&database.name).await.expect("a session");
    let load = "BEGIN; TRUNCATE public.t; INSERT INTO public.t VALUES (1), (3); COMMIT; BEGIN; LOCK TABLE public.t_1";
    loop {
        holder.batch("a load, and a lock", load).await.expect("a lock");
        let file = "SELECT relfilenode::text FROM pg_class WHERE oid = 't_1'::regclass";
        let file = database.source_value(file).await.expect("a file");
        let known = format!("SELECT bool_or(fingerprint::text LIKE '%, {file}, %')::text FROM headwater.shapes");
        let is_found = eventually("a look has found the load", || async {
            let is_settled = database.destination_value(&known).await.as_deref() == Some("true");
            (is_settled || is_in_doubt(&service).await).then_some(!is_settled)
        });
        if is_found.await {
            break;
        }
        // It came before the lock.
        holder.batch("unlocking", "COMMIT").await.expect("a commit");
    }
    says_doubt(&service).await;
    holder.batch("unlocking", "COMMIT").await.expect("a commit");
    is_ready(&service).await;
    assert!(is_equal(&database, "t").await);
    service.assert_not_copied();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_table_in_doubt_whose_copy_an_operator_has_asked_for_is_reported_as_such() {
    let database = Database::new("dbtcovered", &["t", "other"], TREE).await;
    let (setup, pause) = Pause::at("handover.comparing", Setup::of(&database));
    let service = setup.start_streaming(&database).await;
    let asked = r#"INSERT INTO headwater.resnapshots (tables, origin) VALUES (ARRAY['"public"."t"'], 'command')"#;
    database.at_destination(asked).await;
    pause.reached().await;
    assert_eq!(service.get("/readyz").await.expect("an answer").0, 200);
    // The copy has read them.
    database.at_source("TRUNCATE t_1").await;
    eventually("t is in doubt", || async { is_in_doubt(&service).await.then_some(()) }).await;
    says_doubt(&service).await;
    pause.end();
    eventually("table t is equal", || async { is_equal(&database, "t").await.then_some(()) }).await;
    all_live(&database).await;
    is_ready(&service).await;
    service.stop().await;
}
