//! Followed tables that leave the publication for a while: named, and copied by themselves, while the others stream on.

use crate::support::suspension::{all_live, copied_again};
use crate::support::{Database, Service, Setup, eventually};

const TABLES: &[&str] = &["t", "u", "w"];
const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 't' FROM generate_series(1, 100) i;
    CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u SELECT i, 'u' FROM generate_series(1, 100) i;
    CREATE TABLE w (id int PRIMARY KEY, v text); INSERT INTO w SELECT i, 'w' FROM generate_series(1, 100) i;";
/// What the stream does not bring of table u while it is not published, together with what it brings of the others.
const MEANWHILE: &str = "BEGIN; UPDATE t SET v = v || '.' WHERE id < 50; INSERT INTO u SELECT max(id) + 1, 'unsent' FROM u;
    DELETE FROM u WHERE id = (SELECT min(id) FROM u); UPDATE u SET v = v || '.' WHERE id % 2 = 0; UPDATE w SET v = v || '.'; COMMIT";

/// A row of t differs: that it stays so shows that t is not copied.
const DIFFERS: &str = "UPDATE t SET v = 'local' WHERE id = 100";

async fn is_not_copied(database: &Database, service: &Service) {
    let local = database.destination_value("SELECT v FROM t WHERE id = 100").await;
    assert_eq!(local.as_deref(), Some("local"), "{}", service.log());
}

/// Waits until the monitor has seen that table u is not published any more. Which of its two questions sees it first is chance.
async fn suspends_u(service: &Service) {
    service.says("it is copied again, while the others stream on").await;
    let log = service.log();
    let line = log.lines().find(|line| line.contains("it is copied again")).expect("the line");
    assert!(line.contains("public.u") && line.contains("any more"), "{log}");
}

/// Waits until both ends have the same of these tables.
async fn become_equal(database: &Database, tables: &[&str]) {
    for table in tables {
        let rows = format!(
            "SELECT count(*) || md5(string_agg(t::text, ',' ORDER BY id)) FROM {table} t WHERE id <> 100 OR '{table}' <> 't'"
        );
        eventually(&format!("table {table} is equal"), || database.answer_alike(&rows)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_leaves_the_publication_is_copied_alone_while_others_stream() {
    let database = Database::new("leaves", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination(DIFFERS).await;
    let name = &database.name;
    let said = format!("publication {name} does not hold public.u any more");
    // While streaming: headwater puts it in again.
    database.at_source(&format!("ALTER PUBLICATION {name} DROP TABLE u")).await;
    database.at_source(MEANWHILE).await;
    suspends_u(&service).await;
    database.caught_up().await;
    all_live(&database).await;
    become_equal(&database, TABLES).await;
    database.at_source(MEANWHILE).await;
    become_equal(&database, TABLES).await;
    is_not_copied(&database, &service).await;
    service.stop().await;
    // While stopped, and still: check says it, and what will become of it.
    database.at_source(&format!("ALTER PUBLICATION {name} DROP TABLE u")).await;
    database.at_source(MEANWHILE).await;
    setup.command(&["check"]).await.exits(0).says(&[&format!("{said}; what has left it is copied by itself")]);
    let service = setup.start();
    service.says(&said).await;
    database.caught_up().await;
    all_live(&database).await;
    become_equal(&database, TABLES).await;
    is_not_copied(&database, &service).await;
    service.stop().await;
    // While stopped, and put in again: nothing of what is there now shows what was not sent.
    database.at_source(&format!("ALTER PUBLICATION {name} DROP TABLE u")).await;
    database.at_source(MEANWHILE).await;
    database.at_source(&format!("ALTER PUBLICATION {name} ADD TABLE u")).await;
    let service = setup.start();
    service.says("table public.u has changed at the source").await;
    database.caught_up().await;
    all_live(&database).await;
    become_equal(&database, TABLES).await;
    is_not_copied(&database, &service).await;
    assert!(!service.log().contains("--resnapshot"), "{}", service.log());
    service.stop().await;
    // Several at once.
    database.at_source(&format!("ALTER PUBLICATION {name} DROP TABLE u, w")).await;
    database.at_source(MEANWHILE).await;
    let service = setup.start();
    service.says(&format!("publication {name} does not hold public.u, public.w any more")).await;
    database.caught_up().await;
    all_live(&database).await;
    become_equal(&database, TABLES).await;
    is_not_copied(&database, &service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_headwater_may_not_publish_again_keeps_no_other_waiting() {
    let database = Database::of_superuser("leavesowner", TABLES, SCHEMA).await;
    let (name, role) = (&database.name, format!("r_{}", database.name));
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t, u, w TO {role}; CREATE PUBLICATION {name} FOR TABLE t, u, w"
        ))
        .await;
    let mut setup = Setup::of(&database);
    setup.source_url = setup.source_url.replace("postgres@", &format!("{role}@"));
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination(DIFFERS).await;
    database.at_source(&format!("ALTER PUBLICATION {name} DROP TABLE u")).await;
    database.at_source(MEANWHILE).await;
    let statement = format!("ALTER PUBLICATION {name} ADD TABLE public.u;");
    suspends_u(&service).await;
    service.says(&statement).await;
    become_equal(&database, &["t", "w"]).await;
    service.stop().await;
    // A start in that state is no different.
    database.at_source(MEANWHILE).await;
    let service = setup.start();
    service.says(&statement).await;
    become_equal(&database, &["t", "w"]).await;
    eventually("it is not ready, for this table", || async {
        service.get("/readyz").await.filter(|(status, reason)| *status == 503 && reason.contains("public.u"))
    })
    .await;
    setup.command(&["check"]).await.exits(1).says(&[&format!("publication {name} does not hold public.u"), &statement]);
    database.at_source(&statement).await;
    database.at_source(MEANWHILE).await;
    all_live(&database).await;
    become_equal(&database, TABLES).await;
    is_not_copied(&database, &service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_leaves_the_publication_under_stop_is_copied_on_request() {
    let database = Database::new("leavesstop", TABLES, SCHEMA).await;
    let setup = Setup::of(&database).setting("schema_changes = \"stop\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination(DIFFERS).await;
    service.stop().await;
    database.at_source(&format!("ALTER PUBLICATION {} DROP TABLE u", database.name)).await;
    database.at_source(MEANWHILE).await;
    let hint = "Copy again what has left it: headwater run --resnapshot=public.u";
    setup.command(&["check"]).await.exits(1).says(&["does not hold public.u any more", hint]);
    let service = setup.start();
    service.says(hint).await;
    service.is("waiting").await;
    service.stop().await;
    let service = setup.clone().argument("--resnapshot=public.u").start();
    service.streams().await;
    database.caught_up().await;
    all_live(&database).await;
    become_equal(&database, TABLES).await;
    is_not_copied(&database, &service).await;
    service.stop().await;
    mended_after_all(&database, &setup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_which_other_rows_or_columns_are_sent_is_copied_by_itself() {
    let database = Database::new("filterchanged", TABLES, SCHEMA).await;
    let version = database.source_value("SHOW server_version_num").await.unwrap();
    if version.parse::<u32>().unwrap() < 150_000 {
        return;
    }
    let setup = Setup::of(&database);
    let mut service = setup.start();
    service.streams().await;
    database.caught_up().await;
    database.at_destination(DIFFERS).await;
    let name = &database.name;
    let sent = ["u WHERE (id > 50)", "u WHERE (id > 30)", "u (id)", "u (id, v)"];
    for (number, of_u) in sent.into_iter().enumerate() {
        let change = async || {
            database.at_source(&format!("ALTER PUBLICATION {name} SET TABLE t, {of_u}, w")).await;
            database.at_source(MEANWHILE).await;
        };
        // Every second change while headwater is down: what the next start finds.
        if number % 2 == 1 {
            service.stop().await;
            change().await;
            service = setup.start();
        } else {
            change().await;
            service.says("it is copied again, while the others stream on").await;
        }
        let (filter, columns) = match of_u.split_once(" (") {
            Some(("u WHERE", filter)) => (format!("({filter}"), "id, v".to_owned()),
            Some((_, columns)) => ("true".to_owned(), columns.trim_end_matches(')').to_owned()),
            None => unreachable!("{of_u}"),
        };
        let rows = format!("SELECT string_agg(ROW({columns})::text, ',' ORDER BY id) FROM u");
        let sent = rows.replace("FROM u", &format!("FROM u WHERE {filter}"));
        let expected = database.source_value(&sent).await;
        eventually(&format!("u is what is sent: {of_u}"), || async {
            (database.destination_value(&rows).await == expected).then_some(())
        })
        .await;
        all_live(&database).await;
        database.caught_up().await;
        become_equal(&database, &["t", "w"]).await;
        is_not_copied(&database, &service).await;
    }
    service.stop().await;
    let stopping = setup.setting("schema_changes = \"stop\"");
    let service = stopping.start();
    service.streams().await;
    database.at_source(&format!("ALTER PUBLICATION {name} SET TABLE t, u WHERE (id > 60), w")).await;
    service.says("sends other rows or columns of it than when the stream began").await;
    service.says("headwater run --resnapshot=public.u").await;
    service.is("waiting").await;
    service.stop().await;
}

/// That a copy of everything leaves nothing different.
async fn mended_after_all(database: &Database, setup: &Setup) {
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    copied_again(database).await;
    service.stop().await;
}
