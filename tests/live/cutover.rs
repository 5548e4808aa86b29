//! Cut-over: equal, drained, sequences over, and the way back stays open.

use crate::support::{Database, Script, Setup, eventually};

const SCHEMA: &str = "
    CREATE TABLE parents (id serial PRIMARY KEY, v text);
    CREATE TABLE children (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE);
    INSERT INTO parents (v) SELECT 'v' FROM generate_series(1, 50);
    INSERT INTO children (parent) SELECT 1 + i % 50 FROM generate_series(1, 200) i;";

#[tokio::test(flavor = "multi_thread")]
async fn the_destination_takes_over_where_the_source_left_off_and_can_be_given_back() {
    let database = Database::new("cutover", &["parents", "children"], SCHEMA).await;
    let setup = Setup::of(&database);
    setup.command(&["cutover"]).await.exits(1).says(&["no service runs"]);
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO parents (v) SELECT 'late' FROM generate_series(1, 25)").await;

    database.at_source("BEGIN; UPDATE parents SET v = 'open' WHERE id = 1").await;
    setup
        .command(&["cutover"])
        .await
        .exits(1)
        .says(&["the source is still written to", "Transactions that are open write to its tables: process"]);
    database.at_source("COMMIT").await;
    // What is written while both sides are compared is seen, however short it was.
    let writer = crate::support::source().await.connect(&database.name).await.unwrap();
    let cutting = setup.command(&["cutover"]);
    let writing = async {
        for number in 0.. {
            if writer
                .script("writing", &format!("UPDATE public.parents SET v = '{number}' WHERE id = 2"))
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let finished = tokio::select! { finished = cutting => finished, () = writing => panic!("no more to write") };
    finished.exits(1).says(&["the source is still written to"]);
    drop(writer);

    let finished = setup.command(&["cutover"]).await.exits(0);
    let finished = finished.says(&["equal: both sides compared", "the destination may be written", "undo:"]);
    for sequence in ["parents_id_seq", "children_id_seq"] {
        let sql = format!("SELECT last_value::text FROM {sequence}");
        assert_eq!(database.source_value(&sql).await, database.destination_value(&sql).await, "{sequence}");
    }
    // Undo: nothing was written here, so the source goes on, and so does the copy.
    database.at_source("INSERT INTO children (parent) VALUES (7)").await;
    database.assert_catches_up().await;

    service.stop().await;
    // For good: what it printed gives the cascade and ALWAYS back, and new keys do not meet old ones.
    let statements: Vec<&str> = finished.out.lines().filter(|line| line.starts_with("    ALTER TABLE")).collect();
    assert_eq!(statements.len(), 2, "{}", finished.out);
    for statement in statements {
        database.at_destination(statement).await;
    }
    let kind = "SELECT attidentity::text FROM pg_attribute WHERE attrelid = 'children'::regclass AND attname = 'id'";
    assert_eq!(database.destination_value(kind).await.as_deref(), Some("a"));
    database.at_destination("INSERT INTO parents (v) VALUES ('here'); DELETE FROM parents WHERE id = 3").await;
    let orphans = "SELECT count(*)::text FROM children WHERE parent = 3";
    assert_eq!(database.destination_value(orphans).await.as_deref(), Some("0"), "the cascade acts");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_new_serial_column_keeps_its_sequence_and_a_prepared_one_needs_the_printed_fix() {
    // Where foreign keys act, such a table is not copied by itself.
    let database = Database::with_replica_role("cutadded", &["parents", "children"], SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("ALTER TABLE children ADD COLUMN place bigint").await;
    database
        .at_source(
            "ALTER TABLE parents ADD COLUMN number int GENERATED ALWAYS AS IDENTITY; ALTER TABLE children ADD COLUMN place bigserial;
             INSERT INTO parents (v) VALUES ('late'); INSERT INTO children (parent) VALUES (1)",
        )
        .await;
    database.caught_up().await;
    crate::support::suspension::all_live(&database).await;
    database.assert_catches_up().await;
    let finished = setup.command(&["cutover"]).await.exits(0);
    service.stop().await;
    let identities: Vec<&str> =
        finished.out.lines().filter(|line| line.contains(" SET NOT NULL;") || line.contains("AS IDENTITY")).collect();
    assert!(identities.iter().any(|line| line.contains("children ")), "{}", finished.out);
    assert!(!finished.out.contains("COLUMN number"), "it draws from a sequence already: {}", finished.out);
    for statement in identities {
        database.at_destination(statement).await;
    }
    database.at_destination("INSERT INTO parents (v) VALUES ('here'); INSERT INTO children (parent) VALUES (2)").await;
    let drawn = "SELECT (SELECT max(number) FROM parents) || ' ' || (SELECT max(place) FROM children)";
    assert_eq!(database.destination_value(drawn).await.as_deref(), Some("52 202"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_destination_that_differs_does_not_take_over() {
    let database = Database::new("nocutover", &["parents", "children"], SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    database.at_destination("UPDATE parents SET v = 'drift' WHERE id = 9").await;
    setup.command(&["cutover"]).await.exits(1).says(&["differs  (id)=(9)", "repair first"]);
    setup.command(&["verify", "--repair"]).await.exits(0);
    database.at_source("CREATE INDEX late ON parents (v)").await;
    let told = "indexes: 1 not carried (late of public.parents)";
    setup.command(&["cutover"]).await.exits(0).says(&[told, "headwater check --not-carried prints the SQL"]);
    let sql = "CREATE INDEX late ON public.parents USING btree (v);";
    setup.command(&["cutover", "--not-carried"]).await.exits(0).says(&[told, sql]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_frozen_for_the_cut_over_is_read_to_the_end() {
    let database = Database::of_superuser("cutfrozen", &["parents", "children"], SCHEMA).await;
    let mut setup = Setup::of(&database);
    // As where there are several hosts: of which only the primary is a source.
    let mark = if setup.source_url.contains('?') { '&' } else { '?' };
    setup.source_url.push_str(&format!("{mark}target_session_attrs=read-write"));
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO parents (v) VALUES ('last')").await;
    // As the cut-over's own hint says, headwater's sessions included.
    let freeze = format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name);
    database.at_source(&freeze).await;
    let end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
    database.at_source(end_all).await;
    eventually("the lost source is noticed", || service.restarts("source_lost")).await;
    service.streams().await;
    setup.command(&["cutover"]).await.exits(0).says(&["equal: both sides compared", "the destination may be written"]);
    database.assert_equal().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_that_writes_to_a_partition_by_its_name_is_found() {
    let schema = "CREATE TABLE visits (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE visits_old PARTITION OF visits FOR VALUES FROM (MINVALUE) TO ('2026-01-01') PARTITION BY LIST (id);
        CREATE TABLE visits_old_1 PARTITION OF visits_old FOR VALUES IN (1);
        CREATE TABLE visits_new PARTITION OF visits FOR VALUES FROM ('2026-01-01') TO (MAXVALUE)";
    let database = Database::new("cutoverleaf", &["visits"], schema).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    for leaf in ["visits_new VALUES (2, '2026-06-01')", "visits_old_1 VALUES (1, '2025-06-01')"] {
        database.at_source(&format!("BEGIN; INSERT INTO {leaf}")).await;
        setup
            .command(&["cutover"])
            .await
            .exits(1)
            .says(&["the source is still written to", "Transactions that are open write to its tables: process"]);
        database.at_source("COMMIT").await;
    }
    database.assert_catches_up().await;
    setup.command(&["cutover"]).await.exits(0);
    service.stop().await;
}
