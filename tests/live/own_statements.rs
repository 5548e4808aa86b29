//! Code of the destination that replaces what headwater has prepared in its writing session: no row is counted that was not written.

use crate::support::{Database, Setup, eventually};

const SCHEMA: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'a' FROM generate_series(1, 10) i";

/// A trigger that puts a statement of its own under the name of the one that inserts; `{what}` is what that does.
const REPLACES: &str = "
    CREATE FUNCTION gone(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE format('DEALLOCATE %I', $1); RETURN 1; END $$;
    CREATE FUNCTION replaces() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE own text;
    BEGIN
        FOR own IN SELECT name FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql AND statement LIKE 'INSERT%' LOOP
            EXECUTE format('DEALLOCATE %I', own);
            EXECUTE format('PREPARE %I (int, text) AS SELECT {what}', own, own);
        END LOOP;
        RETURN NEW;
    END $$;
    CREATE TRIGGER replaces BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION replaces();
    ALTER TABLE t ENABLE ALWAYS TRIGGER replaces";

const WRITTEN: &str = "INSERT INTO t SELECT i, 'b' FROM generate_series(11, 13) i";

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_with_a_replaced_prepared_statement_is_rolled_back_and_reapplied() {
    let database = Database::of_superuser("ownstatements", &["t"], SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    database.at_destination(&REPLACES.replace("{what}", "1")).await;
    service.stop().await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source(WRITTEN).await;
    service.is("waiting").await;
    service.says("code of the destination prepares statements in the session that writes").await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM t").await.as_deref(), Some("10"));
    // The statement of the hint finds it.
    let status = service.status().await.expect("the status");
    let hint = status["hint"].as_str().unwrap_or_default().to_owned();
    let sql = hint.split_once('\n').map(|(_, sql)| sql.trim_end_matches(';').to_owned()).unwrap_or_default();
    let found =
        database.destination_value(&format!("SELECT string_agg(found.oid::text, ',') FROM ({sql}) AS found")).await;
    assert!(found.as_deref().is_some_and(|found| found.contains("replaces()")), "{found:?} {hint}");
    database.at_destination("DROP TRIGGER replaces ON t").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_another_verb_than_was_sent_ends_the_service_with_words() {
    let database = Database::of_superuser("ownverbs", &["t"], SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    // It takes its traces away before COMMIT.
    database.at_destination(&REPLACES.replace("{what}", "public.gone(%L)")).await;
    service.stop().await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("INSERT INTO t SELECT i, 'b' FROM generate_series(11, 12) i").await;
    let log = service.ends_with(1).await;
    assert!(
        log.contains("a prepared statement of the writing session was replaced: INSERT was answered with SELECT"),
        "{log}"
    );
    assert!(log.contains("headwater verify"), "{log}");
    let count = eventually("what was written", || database.destination_value("SELECT count(*)::text FROM t")).await;
    assert_eq!(count, "11", "the row that is missing is why it ended");
}
