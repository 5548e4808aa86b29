//! How far a copy is: by phases, each with its own progress, and of the tables that were asked for alone.

use serde_json::Value;

use crate::support::service::Service;
use crate::support::{Database, Setup, eventually, parent};

/// An index over an expression that takes milliseconds a row: seconds to build. Few rows stand on a page.
const SLOW_INDEX: &str = "
    CREATE TABLE views (id int PRIMARY KEY, body text) WITH (fillfactor = 10);
    INSERT INTO views SELECT i, md5(i::text) FROM generate_series(1, 1000) AS i;
    CREATE INDEX slow ON views (md5(repeat(body, 60000)));
    CREATE TABLE topics (id int PRIMARY KEY, body text);
    INSERT INTO topics SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 20000) AS i;";

async fn snapshot(service: &Service) -> Option<Value> {
    service.status().await.map(|status| status["snapshot"].clone()).filter(Value::is_object)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn indexes_are_a_phase_of_their_own_in_which_nothing_is_said_to_be_done() {
    let database = Database::new("phases", &["public.views", "public.topics"], SLOW_INDEX).await;
    let service = Setup::of(&database).section("[snapshot]\nworkers = 2").start();
    let built = eventually("one index is half built, as the server tells", || async {
        let snapshot = snapshot(&service).await?;
        let ratio = snapshot["ratio"].as_f64()?;
        let expected = snapshot["phase"] == "indexing" && snapshot["done"] == 2 && (0.3..0.99).contains(&ratio);
        expected.then_some(snapshot)
    })
    .await;
    assert_eq!(built["total"], 3, "{built}");
    assert!(built["text"].as_str().unwrap().starts_with("building indexes "), "{built}");
    assert!(built["seconds_left"].as_f64().is_some_and(|left| left > 0.0), "{built}");
    let (_, output) = service.command(&["status"]).await;
    for text in [
        "Copying the tables: building indexes.",
        "snapshot      building indexes ",
        " (2 of 3 done)",
        "building indexes left",
    ] {
        assert!(output.contains(text), "no {text:?} in\n{output}");
    }
    assert!(!output.contains("100 %"), "{output}");
    assert_eq!(service.metric("headwater_snapshot_phase{phase=\"indexing\"}").await, Some(1.0));
    service.streams().await;
    assert!(service.log().contains("building indexes "), "{}", service.log());
    assert_eq!(service.metric("headwater_snapshot_phase{phase=\"indexing\"}").await, Some(0.0));
    assert!(snapshot(&service).await.is_none());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_copied_again_is_the_only_one_whose_copy_is_told() {
    let schema = "CREATE TABLE views (id int PRIMARY KEY, body text);
                  INSERT INTO views SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 20000) AS i;
                  CREATE TABLE topics (id int PRIMARY KEY, body text); INSERT INTO topics VALUES (1, 'one')";
    let database = Database::new("askedfor", &["public.views", "public.topics"], schema).await;
    let first = Setup::of(&database).start();
    first.streams().await;
    first.stop().await;
    let file = parent().join(format!("pause-{:08x}", fastrand::u32(..)));
    let mut setup = Setup::of(&database).section("[snapshot]\nmax_rate = \"2MB\"");
    setup.environment.push(("HEADWATER_PAUSE".to_owned(), format!("handover.comparing={}", file.display())));
    let service = setup.start();
    service.streams().await;
    let (asked, ()) = tokio::join!(service.command(&["resnapshot", "public.views"]), async {
        let told = eventually("the table is half copied", || async {
            let snapshot = snapshot(&service).await?;
            (snapshot["phase"] == "copying" && snapshot["ratio"].as_f64()? > 0.2).then_some(snapshot)
        })
        .await;
        assert_eq!((&told["tables"], &told["total"]), (&serde_json::json!(["public.views"]), &Value::from(1)));
        let text = told["text"].as_str().unwrap();
        assert!(text.starts_with("copying public.views ") && text.ends_with(" % (1 of 1)"), "{text}");
        let (_, output) = service.command(&["status"]).await;
        let row = |name: &str| output.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        assert!(row("public.views").contains(" %)"), "{output}");
        assert!(row("public.topics").contains("earlier"), "{output}");
        eventually("both are compared", || async { file.exists().then_some(()) }).await;
        let compared = snapshot(&service).await.unwrap();
        assert_ne!(compared["phase"], "copying", "{compared}");
        std::fs::remove_file(&file).expect("the file that keeps the service waiting");
    });
    assert_eq!(asked.0, Some(0), "{}", asked.1);
    assert!(asked.1.contains("copying public.views ") && asked.1.contains(" (1 of 1), "), "{}", asked.1);
    service.stop().await;
}
