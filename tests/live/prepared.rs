//! Prepared transactions, in whichever database of the source's cluster: a new slot waits for them, and nobody ends them by chance.

use headwater::commands::demo::Cluster;

use crate::support::roles::as_role;
use crate::support::{Database, Script, Setup, destination, eventually, new_source};

const TABLES: &[&str] = &["t"];
const SCHEMA: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'a' FROM generate_series(1, 10) i";

async fn source() -> Cluster {
    new_source(&[("max_prepared_transactions", "10")]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_prepared_transaction_of_another_database_is_named_where_a_slot_waits() {
    let source = source().await;
    let database = Database::on(&source, destination().await, "prepared", TABLES, SCHEMA).await;
    let other = source.connect("postgres").await.expect("another database of the cluster");
    let run = async |sql: &str| {
        other.script("in the other database", sql).await.unwrap_or_else(|error| panic!("{error}: {sql}"))
    };
    run("CREATE ROLE shop").await;
    run("BEGIN; SET LOCAL ROLE shop; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'it''s mine'").await;
    let named = "prepared transaction 'it''s mine' of role shop in database postgres";
    let ends = "ROLLBACK PREPARED 'it''s mine'; -- in database postgres, as shop or a superuser";
    let setup = Setup::of(&database).setting("fence_timeout = \"2s\"");

    // A young one may be on its way; an old one is not.
    eventually("check has failed because of it", || async {
        let checked = setup.command(&["check"]).await.says(&[named, ends]);
        (checked.code == Some(1)).then_some(())
    })
    .await;

    // The first copy waits, and says for what: once in the log, and for as long as it waits in the status.
    let service = setup.start();
    service.says("the copy waits for its replication slot at the source").await;
    let reason = service.status().await.expect("the status");
    let text = |key: &str| reason.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    assert!(text("detail").contains(named) && text("hint").contains(ends), "{reason}");
    let (code, said) = service.command(&["explain"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("waits for prepared transaction 'it''s mine'"), "{said}");
    let (_, said) = service.command(&["status"]).await;
    assert!(said.contains("it''s mine"), "{said}");
    run("ROLLBACK PREPARED 'it''s mine'; -- in database postgres, as shop or a superuser").await;
    service.streams().await;
    assert_eq!(service.log().matches("it''s mine").count(), 2, "said once, with its statement:\n{}", service.log());

    // So do verify and cutover.
    run("BEGIN; SET LOCAL ROLE shop; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'it''s mine'").await;
    setup.command(&["cutover"]).await.exits(1).says(&[named, ends]);
    setup.command(&["verify"]).await.exits(1).says(&["the slot was not created within 2s", named, ends]);
    run("ROLLBACK PREPARED 'it''s mine'").await;
    setup.command(&["verify"]).await.exits(0);

    // One that has written to a followed table may still be committed.
    database.at_source("BEGIN; UPDATE t SET v = 'b' WHERE id = 1; PREPARE TRANSACTION 'half'").await;
    setup.command(&["cutover"]).await.exits(1).says(&[
        "Transactions that are open write to its tables: prepared transaction 'half'",
        "ROLLBACK PREPARED 'half';",
    ]);
    database.at_source("COMMIT PREPARED 'half'").await;
    database.assert_catches_up().await;
    setup.command(&["cutover"]).await.exits(0);

    // One that has locked a table is named as the lock's holder.
    service.stop().await;
    let setup = setup.destination("lock_timeout = \"1s\"");
    let service = setup.start();
    service.streams().await;
    database.at_source("BEGIN; LOCK TABLE t; PREPARE TRANSACTION 'locked'").await;
    let said = "ACCESS EXCLUSIVE is held by prepared transaction 'locked' of role";
    setup.command(&["resnapshot"]).await.exits(1).says(&[said, "ROLLBACK PREPARED 'locked';"]);
    database.at_source("ROLLBACK PREPARED 'locked'").await;
    setup.command(&["resnapshot"]).await.exits(0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_others_are_named_where_their_age_is_not_visible() {
    let source = source().await;
    let database = Database::on(&source, destination().await, "invisible", TABLES, SCHEMA).await;
    let role = format!("reader_of_{}", database.name);
    database
        .at_source(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}; CREATE PUBLICATION {} FOR TABLE t",
            database.name
        ))
        .await;
    let mut setup = Setup::of(&database).setting("fence_timeout = \"2s\"");
    setup.source_url = as_role(&setup.source_url, &role);
    let service = setup.start();
    service.streams().await;
    let other = source.connect("postgres").await.expect("a session of another role");
    other.batch("writing", "BEGIN; SELECT pg_current_xact_id()").await.expect("an open transaction");
    let pid =
        other.query_one("asking", "SELECT pg_backend_pid()", &[]).await.expect("its process").get::<i32>(0).unwrap();
    let named = format!("process {pid} of role postgres in database postgres");
    setup.command(&["cutover"]).await.exits(1).says(&[
        &format!("{named} (since when is not visible to this role)"),
        &format!("SELECT pg_terminate_backend({pid});"),
    ]);
    let (_, said) = service.command(&["explain"]).await;
    assert!(said.contains(&named), "{said}");
    let grant = format!("GRANT pg_read_all_stats TO {role};");
    setup.command(&["check"]).await.exits(0).says(&["for how long 1 transaction", &grant]);
    // The statement as it is printed.
    database.at_source(&grant).await;
    eventually("check says for how long", || async {
        let checked = setup.command(&["check"]).await.exits(0);
        checked.out.contains(&format!("{named} has been in a transaction for")).then_some(())
    })
    .await;
    service.stop().await;
}
