//! Check names every requirement that is not met; each is provoked here, and repaired by running what it prints, verbatim.

use headwater::commands::demo::{Cluster, StopMode};
use headwater::config::{ConnectionSettings, Environment};
use headwater::session::ReplicationSession;

use crate::support::findings::{FAMILY, FAMILY_SCHEMA, find, findings, fix, granted};
use crate::support::roles::like;
use crate::support::{Database, Setup, bin, destination, eventually, new_destination, new_source, parent, source};

/// Breaks something, sees it reported, runs the printed fix on the side that it is about, and sees it gone.
async fn provoke(database: &Database, setup: &Setup, (side, sql): (&str, &str), message: &str) {
    let at = async |side: &str, sql: &str| match side {
        "source" => database.at_source(sql).await,
        _ => database.at_destination(sql).await,
    };
    at(side, sql).await;
    let found = findings(setup).await;
    let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no failure {message:?} in {found:#?}"));
    let about = if finding["about"] == "both" { "destination" } else { finding["about"].as_str().expect("a side") };
    at(about, &fix(finding)).await;
    let found = findings(setup).await;
    assert!(find(&found, "failed", message).is_none(), "{message:?} is still there after its fix: {found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_pair_passes_and_nothing_is_changed() {
    let (database, setup, _) = granted("good").await;
    let objects =
        "SELECT string_agg(relname, ',' ORDER BY relname) || (SELECT count(*) FROM pg_namespace) FROM pg_class
                   WHERE relnamespace <> 'pg_toast'::regnamespace";
    let before = (database.source_value(objects).await, database.destination_value(objects).await);
    let finished = setup.command(&["check"]).await.exits(0);
    let finished =
        finished.says(&["connection", "server", "replication", "publication", "privileges", "columns", "0 failed"]);
    assert!(finished.out.contains("session_replication_role  warning"), "{}", finished.out);
    let slots = format!("SELECT count(*)::text FROM pg_replication_slots WHERE database = '{}'", database.name);
    assert_eq!(database.source_value(&slots).await.as_deref(), Some("0"));
    assert_eq!(before, (database.source_value(objects).await, database.destination_value(objects).await));
    // What a start would do is said, and only tried.
    database.at_source(&format!("DROP PUBLICATION {}", database.name)).await;
    let superuser = Setup::of(&database);
    superuser.command(&["check"]).await.exits(0).says(&["will create publication"]);
    let publications = "SELECT count(*)::text FROM pg_publication";
    assert_eq!(database.source_value(publications).await.as_deref(), Some("0"));
    let service = superuser.start();
    service.streams().await;
    superuser.command(&["check"]).await.exits(0).says(&[
        "fed through slot",
        "the source leads on from",
        "an instance runs",
    ]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn each_failed_requirement_of_the_source_is_mended_by_what_is_printed() {
    let (database, setup, role) = granted("mends").await;
    let name = &database.name;
    let cases = [
        (format!("ALTER ROLE {role} NOREPLICATION"), "may not replicate"),
        (format!("REVOKE SELECT ON child FROM {role}"), "may not read table public.child at the source"),
        ("ALTER TABLE child ENABLE ROW LEVEL SECURITY".to_owned(), "would hide rows"),
        (format!("ALTER PUBLICATION {name} SET (publish = 'insert, update')"), "leaves out delete, truncate"),
        (format!("ALTER PUBLICATION {name} DROP TABLE child"), "does not hold public.child"),
        (format!("DROP PUBLICATION {name}"), "our role may not create it"),
        (
            format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"),
            "this destination has no record of it",
        ),
    ];
    for (sql, message) in cases {
        provoke(&database, &setup, ("source", &sql), message).await;
    }
    // These need the table out of the publication, or to be published by us.
    let superuser = Setup::of(&database);
    database.at_source(&format!("DROP PUBLICATION {name}")).await;
    provoke(&database, &superuser, ("source", "ALTER TABLE child REPLICA IDENTITY NOTHING"), "has no replica identity")
        .await;
    provoke(&database, &superuser, ("source", "ALTER TABLE child SET UNLOGGED"), "is unlogged or temporary").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn each_failed_requirement_of_the_destination_is_mended_by_what_is_printed() {
    let (database, setup, role) = granted("mendd").await;
    let name = &database.name;
    database
        .at_destination(&format!(
            "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (id int PRIMARY KEY, parent int, v varchar(20));
             GRANT ALL ON parent, child TO {role}"
        ))
        .await;
    let cases = [
        (format!("REVOKE CREATE ON DATABASE {name} FROM {role}"), "may not create schemas at the destination"),
        (format!("REVOKE UPDATE, TRUNCATE ON child FROM {role}"), "lacks UPDATE, TRUNCATE on table public.child"),
        (
            "ALTER TABLE parent ENABLE ROW LEVEL SECURITY".to_owned(),
            "row-level security of table public.parent at the destination",
        ),
        (
            "ALTER TABLE child ALTER COLUMN v TYPE varchar(10)".to_owned(),
            "table public.child at the destination does not fit",
        ),
        ("ALTER TABLE child DROP COLUMN v".to_owned(), "table public.child at the destination does not fit"),
        (
            "ALTER TABLE child ADD COLUMN mine int NOT NULL".to_owned(),
            "table public.child at the destination does not fit",
        ),
        (
            format!(
                "DROP TABLE child; REVOKE CREATE ON SCHEMA public FROM {role}; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
            ),
            "may not use schema public at the destination",
        ),
    ];
    for (sql, message) in cases {
        provoke(&database, &setup, ("destination", &sql), message).await;
    }
    let found = findings(&setup).await;
    let finding = find(&found, "warning", "origin: foreign keys and triggers act").expect("a warning about the role");
    // 14 cannot grant it.
    let version = database.destination_value("SELECT current_setting('server_version_num')").await.unwrap();
    if version.parse::<u32>().unwrap() >= 150_000 {
        database.at_destination(&fix(finding)).await;
        assert!(find(&findings(&setup).await, "ok", "replica: foreign keys").is_some());
    }
    // Rows that are there need the operator's word, and get it as the hint says.
    database.at_destination("INSERT INTO parent VALUES (7, 'here')").await;
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "destination tables already have rows").expect("a failure");
    assert!(finding["hint"].as_str().unwrap_or_default().contains("--resnapshot"), "{finding}");
    let service = setup.clone().argument("--resnapshot").start();
    service.streams().await;
    database.assert_equal().await;
    service.stop().await;
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_need_a_restart_are_mended_by_what_is_printed() {
    // Nothing on its command line: ALTER SYSTEM must be able to change what check complains about.
    let mut cluster = Cluster::start_new(&bin("SOURCE"), &parent(), "source", &[("fsync", "off")], &[]).await.unwrap();
    let mut database = Database::on(&cluster, destination().await, "restart", FAMILY, FAMILY_SCHEMA).await;
    let setup = Setup::of(&database);
    database.at_source("ALTER SYSTEM SET max_replication_slots = 0").await;
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    let found = findings(&setup).await;
    for message in ["wal_level is replica at the source", "all 0 replication slots at the source are taken"] {
        let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no {message:?} in {found:#?}"));
        database.at_source(&fix(finding)).await;
    }
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));

    database.at_source("ALTER SYSTEM SET max_wal_senders = 0").await;
    database.at_source("ALTER SYSTEM SET wal_level = replica").await;
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    let found = findings(&setup).await;
    for message in ["max_wal_senders is 0 at the source", "wal_level is replica at the source"] {
        let finding = find(&found, "failed", message).unwrap_or_else(|| panic!("no {message:?} in {found:#?}"));
        database.at_source(&fix(finding)).await;
    }
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_left_open_and_synchronous_standbys_are_found() {
    let cluster = new_source(&[("max_prepared_transactions", "5")]).await;
    let database = Database::on(&cluster, destination().await, "prepared", FAMILY, FAMILY_SCHEMA).await;
    let setup = Setup::of(&database).setting("fence_timeout = \"100ms\"");
    database.at_source("BEGIN; INSERT INTO parent VALUES (5); PREPARE TRANSACTION 'it''s open'").await;
    // A young one may be on its way; one that is older than fence_timeout keeps a start waiting.
    let left_open = eventually("the transaction is old enough", || async {
        let found = findings(&setup).await;
        let old = "prepared transaction 'it''s open' of role postgres in database";
        find(&found, "failed", old).map(fix)
    });
    database.at_source(&left_open.await).await;
    assert!(find(&findings(&setup).await, "failed", "prepared transaction").is_none());

    let long = cluster.connect(&database.name).await.unwrap();
    long.batch("a long transaction", "BEGIN; INSERT INTO public.parent VALUES (6)").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let found = findings(&setup).await;
    let finding = find(&found, "warning", "has been in a transaction for").expect("the transaction");
    database.at_source(finding["hint"].as_str().unwrap().lines().last().unwrap()).await;
    assert!(find(&findings(&setup).await, "warning", "has been in a transaction for").is_none());

    database.at_source("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    database.source_value("SELECT pg_reload_conf()::text").await;
    crate::support::eventually("the setting is in force", || async {
        find(&findings(&setup).await, "failed", "headwater would be a synchronous standby").map(|_| ())
    })
    .await;
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "headwater would be a synchronous standby").unwrap();
    for statement in fix(finding).lines() {
        // One by one: ALTER SYSTEM cannot be part of several.
        database.at_source(statement).await;
    }
    crate::support::eventually("the setting is mended", || async {
        find(&findings(&setup).await, "failed", "synchronous standby").is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_does_not_answer_is_one_failure_and_the_other_side_is_looked_at() {
    let database = Database::new("oneside", FAMILY, FAMILY_SCHEMA).await;
    let mut setup = Setup::of(&database);
    setup.source_url = format!("postgresql://postgres@127.0.0.1:1/{}", database.name);
    let found = findings(&setup).await;
    assert_eq!(found.iter().filter(|finding| finding["standing"] == "failed").count(), 1, "{found:#?}");
    assert!(found.iter().any(|finding| finding["about"] == "destination" && finding["what"] == "privileges"));
    let mut setup = Setup::of(&database);
    setup.destination_url = source().await.tcp_url(&database.name);
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "source and destination are the same database").expect("a failure");
    assert_eq!(finding["hint"], "Correct source.url or destination.url.");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_the_configuration_names_wrongly_is_mended_by_what_is_printed() {
    let (database, granted, _) = granted("names").await;
    let superuser = Setup::of(&database);
    let failed = async |setup: &Setup, message: &str| {
        let found = findings(setup).await;
        find(&found, "failed", message).unwrap_or_else(|| panic!("no failure {message:?} in {found:#?}")).clone()
    };
    let mended = async |setup: &Setup| {
        let found = findings(setup).await;
        assert!(found.iter().all(|finding| finding["standing"] != "failed"), "{found:#?}");
    };
    database.at_source("CREATE VIEW seen AS SELECT * FROM parent").await;
    let mut wrong = granted.clone();
    wrong.tables = vec!["parent".to_owned(), "nowhere".to_owned(), "seen".to_owned()];
    let finding = failed(&wrong, "table public.nowhere not found at the source").await;
    assert_eq!(finding["hint"], "Correct tables in the configuration.");
    let finding = failed(&wrong, "public.seen is a view, which cannot be replicated").await;
    assert_eq!(finding["hint"], "Name the tables that it reads from.");
    wrong.tables = vec!["parent".to_owned()];
    mended(&wrong).await;

    for (side, message) in [("source", "does not exist"), ("destination", "does not exist")] {
        let mut wrong = granted.clone();
        let url = if side == "source" { &mut wrong.source_url } else { &mut wrong.destination_url };
        *url = url.replace(&format!("/{}", database.name), "/elsewhere");
        let finding = failed(&wrong, message).await;
        assert_eq!(finding["hint"], format!("Correct the database in {side}.url."));
    }
    mended(&granted).await;
    // A slot of the name that is no logical one.
    database.at_source(&format!("SELECT pg_create_physical_replication_slot('{}')", database.name)).await;
    let finding = failed(&granted, "at the source is a physical slot").await;
    assert_eq!(finding["hint"], "Choose another name for source.slot.");
    database.at_source(&format!("SELECT pg_drop_replication_slot('{}')", database.name)).await;

    // The bookkeeping is another role's.
    database.at_destination("CREATE SCHEMA headwater").await;
    let finding = failed(&granted, "schema headwater at the destination belongs to role postgres, and role").await;
    assert!(
        finding["hint"].as_str().unwrap().ends_with("ALTER SCHEMA headwater RENAME TO not_headwater;"),
        "{finding}"
    );
    mended(&superuser).await;

    // Another slot, and another publication, than the destination is fed through.
    let service = superuser.start();
    service.streams().await;
    service.stop().await;
    for key in ["slot", "publication"] {
        let mut wrong = superuser.clone();
        let text = wrong.configuration_text();
        assert!(text.contains(&format!("\n{key} = {:?}", database.name)), "{text}");
        wrong.environment.push((format!("HEADWATER_SOURCE_{}", key.to_uppercase()), "another".to_owned()));
        let finding = failed(&wrong, &format!("this destination is fed through {key} {}", database.name)).await;
        let hint = finding["hint"].as_str().unwrap();
        assert!(hint.starts_with(&format!("Set source.{key} = \"{}\";", database.name)), "{hint}");
    }
    mended(&superuser).await;
    let mut fewer = superuser.clone();
    fewer.tables = vec!["parent".to_owned()];
    let found = findings(&fewer).await;
    let unconfigured = "table public.child at the destination is not configured any more";
    assert!(find(&found, "warning", unconfigured).is_some(), "{found:#?}");
    let service = fewer.start();
    service.streams().await;
    service.stop().await;
    mended(&fewer).await;
    // A newer headwater's bookkeeping.
    database.at_destination("UPDATE headwater.stream SET bookkeeping_version = 99").await;
    let finding = failed(&fewer, "bookkeeping").await;
    assert!(finding["hint"].is_string(), "{finding}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_relied_on_is_mended_by_what_is_printed() {
    let database = Database::new("relied", FAMILY, FAMILY_SCHEMA).await;
    let setup = Setup::of(&database);
    let name = &database.name;
    let resnapshot = async |hint: &str| {
        assert!(hint.contains("--resnapshot"), "{hint}");
        let service = setup.clone().argument("--resnapshot").start();
        service.streams().await;
        database.assert_catches_up().await;
        service.stop().await;
        assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));
    };
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    database.at_source(&format!("DROP PUBLICATION {name}")).await;
    database.at_source("INSERT INTO child VALUES (7, 1, 'unsent')").await;
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "does not exist any more").unwrap_or_else(|| panic!("{found:#?}"));
    database.at_source(&fix(finding)).await;
    resnapshot(finding["hint"].as_str().unwrap()).await;
    database.at_source("DELETE FROM child WHERE id = 7").await;
    // A gap that was met by the service is remembered, though the publication is whole again.
    database.at_destination("UPDATE headwater.stream SET gap = 'has not held all tables all the time'").await;
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "has not held all tables all the time").expect("the gap");
    resnapshot(finding["hint"].as_str().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_many_misfits_and_locks_are_mended_by_what_is_printed() {
    let schema = "CREATE TABLE parent (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE parent_1 PARTITION OF parent DEFAULT; CREATE TABLE child (id int PRIMARY KEY, v numeric(10, 2), e text);
        INSERT INTO parent VALUES (1, 'secret')";
    let database = Database::new("leaves", FAMILY, schema).await;
    let name = &database.name;
    let setup = Setup::of(&database).destination("lock_timeout = \"300ms\"");
    database.at_source(&format!("CREATE PUBLICATION {name} FOR TABLE parent, child")).await;
    let role = database.source_value("SELECT 'owner_' || current_database()").await.expect("a name");
    if database.source_value(&format!("SELECT count(*)::text FROM pg_roles WHERE rolname = '{role}'")).await.as_deref()
        == Some("1")
    {
        database.at_source(&format!("ALTER PUBLICATION {name} OWNER TO {role}")).await;
    }
    provoke(&database, &setup, ("source", "SELECT 1"), "publishes partitions, not the partitioned table public.parent")
        .await;
    assert!(
        find(&findings(&setup).await, "ok", "table public.parent is followed through its root, with 1 partition")
            .is_some()
    );

    database
        .at_destination(
            "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, v int, e text)",
        )
        .await;
    provoke(&database, &setup, ("destination", "SELECT 1"), "2 tables at the destination do not fit the source").await;

    let holder = source().await.connect(name).await.unwrap();
    holder.batch("a lock", "BEGIN; LOCK TABLE public.child IN ACCESS EXCLUSIVE MODE").await.unwrap();
    provoke(&database, &setup, ("source", "SELECT 1"), "table public.child is locked at the source").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn check_finds_a_read_only_destination_and_a_source_without_free_walsenders() {
    let mut cluster = Cluster::start_new(&bin("SOURCE"), &parent(), "source", &[("fsync", "off")], &[]).await.unwrap();
    let mut database = Database::on(&cluster, destination().await, "taken", FAMILY, FAMILY_SCHEMA).await;
    let setup = Setup::of(&database);
    database.at_source("ALTER SYSTEM SET wal_level = logical").await;
    database.at_source("ALTER SYSTEM SET max_wal_senders = 1").await;
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    let connection = ConnectionSettings::parse(&cluster.url(&database.name), &Environment::new()).unwrap();
    let second = std::time::Duration::from_secs(60);
    let taken = ReplicationSession::connect(&connection, "somebody else", second, second).await.unwrap();
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "all walsenders at the source are taken").expect("a failure");
    database.at_source(&fix(finding)).await;
    taken.close().await;
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));

    // The destination's standby, by mistake.
    let mut primary = new_destination(&[]).await;
    let here = Database::on(source().await, &primary, "standby", FAMILY, FAMILY_SCHEMA).await;
    let mut setup = Setup::of(&here);
    primary.stop(StopMode::Fast).await.unwrap();
    let mut standby =
        primary.copy(&parent(), "standby", &[("primary_conninfo", "host=127.0.0.1 port=1")], true).unwrap();
    primary.start().await.unwrap();
    standby.start().await.unwrap();
    setup.destination_url = like(&setup.destination_url, &standby.url(&here.name));
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "the destination is a standby, which cannot be written")
        .unwrap_or_else(|| panic!("{found:#?}"));
    assert_eq!(finding["hint"], "Give the primary's address in destination.url.");
    setup.destination_url.clone_from(&here.destination_url);
    assert!(findings(&setup).await.iter().all(|finding| finding["standing"] != "failed"));
}
