//! Foreign keys of the destination that act where the source's do not: nothing is changed or deleted here that the source keeps.

use crate::support::findings::{find, findings, fix};
use crate::support::roles::Roles;
use crate::support::{Database, Setup, destination, source};

const MESSAGE: &str = "foreign keys of the destination would change rows that the source keeps";

/// What a foreign key does, and a change of the referenced table that sets it off.
const ACTIONS: &[(&str, &str)] = &[
    ("ON DELETE CASCADE", "DELETE FROM p1 WHERE id = 90"),
    ("ON DELETE SET NULL", "DELETE FROM p2 WHERE id = 90"),
    ("ON DELETE SET DEFAULT", "DELETE FROM p3 WHERE id = 90"),
    ("ON UPDATE CASCADE", "UPDATE p4 SET id = 900 WHERE id = 90"),
    ("ON UPDATE SET NULL", "UPDATE p5 SET id = 900 WHERE id = 90"),
    ("ON UPDATE SET DEFAULT", "UPDATE p6 SET id = 900 WHERE id = 90"),
];
const TABLES: &[&str] = &["p1", "p2", "p3", "p4", "p5", "p6", "k1", "k2", "k3", "k4", "k5", "k6"];

/// A pair of tables for each action.
fn schema() -> String {
    let pair = |(i, _)| {
        format!(
            "CREATE TABLE p{i} (id int PRIMARY KEY); CREATE TABLE k{i} (id int PRIMARY KEY, p int DEFAULT 1);
             INSERT INTO p{i} SELECT generate_series(1, 100); INSERT INTO k{i} SELECT i, 90 FROM generate_series(1, 10) i;"
        )
    };
    (1..).zip(ACTIONS).map(pair).collect()
}

/// Adds a foreign key of each action.
fn keys() -> String {
    let add = |(i, (action, _)): (i32, &(&str, &str))| {
        format!("ALTER TABLE k{i} ADD CONSTRAINT \"Fk\" FOREIGN KEY (p) REFERENCES p{i} {action};")
    };
    (1..).zip(ACTIONS).map(add).collect()
}

fn changes() -> String {
    ACTIONS.iter().map(|(_, change)| format!("{change};")).collect()
}

async fn new(name: &str, replica: bool, tables: &[&str], schema: &str) -> Database {
    let roles = Roles::Least { replica };
    Database::under(roles, source().await, destination().await, name, tables, schema).await
}

/// What the rows of all referencing tables are.
async fn rows(database: &Database) -> Option<String> {
    let of = |i| format!("SELECT {i} AS t, id, p FROM k{i}");
    let all: Vec<String> = (1..=6).map(of).collect();
    let sql = format!("SELECT md5(string_agg(r::text, ',' ORDER BY t, id)) FROM ({}) r", all.join(" UNION ALL "));
    database.destination_value(&sql).await
}

/// That `check` fails, with these texts; returns the hint's statements.
async fn refused(database: &Database, says: &[&str]) -> String {
    let found = findings(&Setup::of(database)).await;
    let finding = find(&found, "failed", MESSAGE).unwrap_or_else(|| panic!("not refused: {found:#?}"));
    for text in says {
        assert!(finding.to_string().contains(text), "{text:?} is not in {finding:#}");
    }
    fix(finding)
}

async fn is_accepted(database: &Database) {
    let found = findings(&Setup::of(database)).await;
    assert!(found.iter().all(|finding| finding["standing"] != "failed"), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn foreign_keys_with_actions_at_the_destination_alone_halt_until_the_hint_is_run() {
    let database = new("cascade", false, TABLES, &schema()).await;
    let setup = Setup::of(&database).setting("on_slot_lost = \"resnapshot\"");
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_destination(&keys()).await;
    service.says(MESSAGE).await;
    service.is("waiting").await;
    let before = rows(&database).await;
    database.at_source(&changes()).await;
    let actions: Vec<&str> = ACTIONS.iter().map(|(action, _)| *action).collect();
    let hint = refused(&database, &actions).await;
    assert_eq!(hint.lines().count(), 6, "{hint}");
    assert_eq!(before, rows(&database).await, "nothing was touched");
    database.at_destination(&hint).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;

    // A copy deletes what the source lacks: the rows that point at it must stay.
    database.at_destination("UPDATE k1 SET p = 91").await;
    database.at_source("UPDATE k1 SET p = 91; DELETE FROM p1 WHERE id = 91").await;
    database
        .at_source(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
        )
        .await;
    database
        .at_destination("ALTER TABLE k1 ADD CONSTRAINT \"Fk\" FOREIGN KEY (p) REFERENCES p1 ON DELETE CASCADE")
        .await;
    let output = setup.start().ends_with(1).await;
    assert!(output.contains(MESSAGE), "{output}");
    assert_eq!(database.destination_value("SELECT count(*)::text FROM k1").await.as_deref(), Some("10"));
    database.at_destination(&refused(&database, &["ON DELETE CASCADE"]).await).await;
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn foreign_keys_that_act_alike_at_both_ends_are_no_obstacle_until_the_sources_goes() {
    let database = new("cascade_alike", false, TABLES, &(schema() + &keys())).await;
    database.at_destination(&(schema() + &keys()).replace("INSERT", "EXPLAIN INSERT")).await;
    is_accepted(&database).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_source(&changes()).await;
    database.assert_catches_up().await;
    // Another action for the same columns, and none at all.
    database
        .at_source(
            "ALTER TABLE k1 DROP CONSTRAINT \"Fk\";
             ALTER TABLE k2 DROP CONSTRAINT \"Fk\", ADD CONSTRAINT \"Fk\" FOREIGN KEY (p) REFERENCES p2 ON DELETE CASCADE",
        )
        .await;
    service.says(MESSAGE).await;
    service.is("waiting").await;
    database.at_source("DELETE FROM p1 WHERE id = 1; UPDATE k1 SET p = 7; DELETE FROM p1 WHERE id = 7").await;
    let hint = refused(&database, &["table public.k1", "table public.k2"]).await;
    assert_eq!(hint.lines().count(), 2, "{hint}");
    database.at_destination(&hint).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn foreign_keys_that_act_are_found_however_tables_are_made_and_roles_are_granted() {
    let tables = &["p", "k", "tree", "pairs", "twos"];
    let schema = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE k (id int PRIMARY KEY, p int);
        CREATE TABLE tree (id int, p int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE leaf PARTITION OF tree DEFAULT;
        CREATE TABLE pairs (a int, b int, PRIMARY KEY (a, b)); CREATE TABLE twos (id int PRIMARY KEY, a int, b int)";
    let database = new("cascade_kinds", false, tables, schema).await;
    database.at_destination(schema).await;
    is_accepted(&database).await;
    // One that is not followed is the operator's own; a key that only checks may refuse rows, and changes none.
    database
        .at_destination(
            "CREATE TABLE own (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE);
             ALTER TABLE k ADD CONSTRAINT checks FOREIGN KEY (p) REFERENCES p ON DELETE RESTRICT",
        )
        .await;
    is_accepted(&database).await;

    let mut kinds = vec![
        "ALTER TABLE tree ADD CONSTRAINT f FOREIGN KEY (p) REFERENCES p ON DELETE CASCADE",
        "ALTER TABLE leaf ADD CONSTRAINT f FOREIGN KEY (p) REFERENCES p ON DELETE CASCADE",
        "ALTER TABLE k ADD CONSTRAINT f FOREIGN KEY (p) REFERENCES tree ON DELETE CASCADE",
        "ALTER TABLE tree ADD CONSTRAINT f FOREIGN KEY (p) REFERENCES tree ON UPDATE CASCADE",
        "ALTER TABLE p ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES p ON DELETE CASCADE",
        "ALTER TABLE k ADD CONSTRAINT f FOREIGN KEY (p) REFERENCES p ON DELETE CASCADE NOT VALID",
        // Through a table that is not followed.
        "ALTER TABLE k ADD CONSTRAINT f FOREIGN KEY (p) REFERENCES own ON DELETE SET NULL",
    ];
    let is_newer = "SELECT (current_setting('server_version_num')::int >= 150000)::text";
    let newer = database.destination_value(is_newer).await.as_deref() == Some("true")
        && database.source_value(is_newer).await.as_deref() == Some("true");
    if newer {
        database.at_source("ALTER TABLE twos ADD FOREIGN KEY (a, b) REFERENCES pairs ON DELETE SET NULL (a)").await;
        kinds.push("ALTER TABLE twos ADD CONSTRAINT f FOREIGN KEY (a, b) REFERENCES pairs ON DELETE SET NULL");
        kinds.push(
            "ALTER TABLE twos ADD CONSTRAINT f FOREIGN KEY (b, a) REFERENCES pairs (a, b) ON DELETE SET NULL (a)",
        );
    }
    for kind in kinds {
        database.at_destination(kind).await;
        let hint = refused(&database, &["Foreign key f of table"]).await;
        assert_eq!(hint.lines().count(), 1, "{kind}: {hint}");
        database.at_destination(&hint).await;
        is_accepted(&database).await;
    }
    if newer {
        // Written in another order, it is the same.
        let same =
            "ALTER TABLE twos ADD CONSTRAINT f FOREIGN KEY (b, a) REFERENCES pairs (b, a) ON DELETE SET NULL (a)";
        database.at_destination(same).await;
        is_accepted(&database).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_role_replica_only_keys_whose_triggers_are_enabled_for_it_are_refused() {
    let schema = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE k (id int PRIMARY KEY, p int);
        INSERT INTO p VALUES (1); INSERT INTO k VALUES (1, 1)";
    let database = Database::of_superuser("cascade_replica", &["p", "k"], schema).await;
    database.at_destination(&schema.replace("INSERT", "EXPLAIN INSERT")).await;
    database.at_destination("ALTER TABLE k ADD CONSTRAINT f FOREIGN KEY (p) REFERENCES p ON DELETE CASCADE").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("DELETE FROM p").await;
    database.assert_catches_up().await;
    database
        .at_destination(
            "DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE p ENABLE ALWAYS TRIGGER %I', tgname) FROM pg_trigger
                WHERE tgrelid = 'p'::regclass AND tgfoid = '\"RI_FKey_cascade_del\"'::regproc); END $$",
        )
        .await;
    service.says(MESSAGE).await;
    let hint = refused(&database, &["ENABLE ALWAYS"]).await;
    database.at_destination(&hint).await;
    service.streams().await;
    service.stop().await;
}
