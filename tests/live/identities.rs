//! The source is never harmed: nothing is published on which its own UPDATE and DELETE fail, and each way out that is printed
//! lets them through.

use futures_util::{StreamExt, stream};
use headwater::commands::demo::Cluster;
use serde_json::Value;

use crate::support::findings::findings;
use crate::support::suspension::all_live;
use crate::support::{
    Database, Setup, bin_of, destination, eventually, major, new_destination_of, new_source_of, source,
};

/// A table that must not be published as it is.
struct Case {
    schema: &'static str,
    /// What the owner publishes; `{}` is the publication. None: headwater would have to publish it.
    publication: Option<&'static str>,
    /// The failure's message.
    says: &'static str,
    /// How many ways out are printed.
    ways: usize,
    /// The application's changes.
    changes: &'static str,
}

const NO_IDENTITY: &str = "table public.t has no replica identity at the source";
const CHANGES: &str =
    "UPDATE t SET v = 'new' WHERE code = 1; DELETE FROM t WHERE code = 2; INSERT INTO t (code, v) VALUES (9, 'nine')";

/// So many of them are refused by 18, too.
const CASES_OF_18: usize = 6;

const CASES: &[Case] = &[
    Case {
        schema: "CREATE TABLE t (code int, v text)",
        publication: None,
        says: NO_IDENTITY,
        ways: 2,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (id int DEFAULT 1, code int NOT NULL UNIQUE, v text)",
        publication: Some("CREATE PUBLICATION {} FOR TABLE t"),
        says: NO_IDENTITY,
        ways: 3,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (code int PRIMARY KEY DEFERRABLE, v text)",
        publication: None,
        says: NO_IDENTITY,
        ways: 2,
        changes: CHANGES,
    },
    // As check itself once advised: the root alone.
    Case {
        schema: "CREATE TABLE t (code int, v text) PARTITION BY LIST (code); ALTER TABLE t REPLICA IDENTITY FULL;
                 CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2); CREATE TABLE \"T 2\" PARTITION OF t DEFAULT",
        publication: None,
        says: NO_IDENTITY,
        ways: 1,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (code int, v text) PARTITION BY LIST (code); ALTER TABLE t REPLICA IDENTITY FULL;
                 CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2); CREATE TABLE t2 PARTITION OF t DEFAULT;
                 ALTER TABLE t2 REPLICA IDENTITY FULL",
        publication: Some("CREATE PUBLICATION {} FOR TABLE t WITH (publish_via_partition_root = true)"),
        says: NO_IDENTITY,
        ways: 1,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (code int NOT NULL, v text, UNIQUE (code)) PARTITION BY LIST (code);
                 CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2); CREATE TABLE t2 PARTITION OF t DEFAULT",
        publication: None,
        says: NO_IDENTITY,
        ways: 3,
        changes: CHANGES,
    },
    // The server lets these through, but the stream would name rows by columns that it does not describe.
    Case {
        schema: "CREATE TABLE t (code int, v text, g int GENERATED ALWAYS AS (code * 2) STORED NOT NULL UNIQUE);
                 ALTER TABLE t REPLICA IDENTITY USING INDEX t_g_key",
        publication: None,
        says: "rows of table public.t are identified by generated columns that the source does not send",
        ways: 1,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (code int, v text, PRIMARY KEY (code)) PARTITION BY LIST (code);
                 CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2); CREATE TABLE t2 PARTITION OF t DEFAULT;
                 ALTER TABLE t1 ALTER v SET NOT NULL; CREATE UNIQUE INDEX other ON t1 (v);
                 ALTER TABLE t1 REPLICA IDENTITY USING INDEX other",
        publication: None,
        says: "partitions of table public.t identify their rows otherwise",
        ways: 1,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (code int, v text, PRIMARY KEY (code)) PARTITION BY LIST (code);
                 CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2); CREATE TABLE t2 PARTITION OF t DEFAULT;
                 ALTER TABLE t REPLICA IDENTITY FULL",
        publication: Some("CREATE PUBLICATION {} FOR TABLE t WITH (publish_via_partition_root = true)"),
        says: "partitions of table public.t identify their rows otherwise",
        ways: 1,
        changes: CHANGES,
    },
];

/// From 15 on.
const LISTS: &[Case] = &[
    Case {
        schema: "CREATE TABLE t (code int PRIMARY KEY, v text)",
        publication: Some("CREATE PUBLICATION {} FOR TABLE t WHERE (v IS NOT NULL)"),
        says: "the row filter of table public.t in publication",
        ways: 1,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (id int NOT NULL DEFAULT 0, code int, v text, more text, PRIMARY KEY (code, id))",
        publication: Some("CREATE PUBLICATION {} FOR TABLE t (code, v)"),
        says: "the column list of table public.t in publication",
        ways: 1,
        changes: "UPDATE t SET v = 'new' WHERE code = 1; DELETE FROM t WHERE code = 2; INSERT INTO t VALUES (9, 9, 'nine')",
    },
    Case {
        schema: "CREATE TABLE t (code int, v text); ALTER TABLE t REPLICA IDENTITY FULL",
        publication: Some("CREATE PUBLICATION {} FOR TABLE t (code, v)"),
        says: "the column list of table public.t in publication",
        ways: 1,
        changes: CHANGES,
    },
];

/// From 18 on.
const GENERATED: &[Case] = &[
    Case {
        schema: "CREATE TABLE t (code int, v text, g int GENERATED ALWAYS AS (code * 2) STORED); ALTER TABLE t REPLICA IDENTITY FULL",
        publication: Some("CREATE PUBLICATION {} FOR TABLE t"),
        says: "the replica identity of table public.t has generated columns that publication",
        ways: 1,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (code int, v text, g int GENERATED ALWAYS AS (code * 2) VIRTUAL); ALTER TABLE t REPLICA IDENTITY FULL",
        publication: None,
        says: "the replica identity of table public.t has virtual generated columns",
        ways: 1,
        changes: CHANGES,
    },
    Case {
        schema: "CREATE TABLE t (code int, v text, g int GENERATED ALWAYS AS (code * 2) STORED NOT NULL UNIQUE);
                 ALTER TABLE t REPLICA IDENTITY USING INDEX t_g_key",
        publication: Some("CREATE PUBLICATION {} FOR TABLE t"),
        says: "the replica identity of table public.t has generated columns that publication",
        ways: 1,
        changes: CHANGES,
    },
];

/// The ways that a hint shows: each comment begins one.
fn ways(finding: &Value) -> Vec<String> {
    let hint = finding["hint"].as_str().unwrap_or_else(|| panic!("no hint in {finding}"));
    let lines: Vec<&str> = hint.lines().skip(1).collect();
    assert!(!lines.is_empty(), "no SQL in {finding}");
    let mut ways: Vec<String> = Vec::new();
    for line in lines {
        match ways.last_mut() {
            Some(way) if !line.starts_with("-- ") => way.push_str(&format!("{line}\n")),
            _ => ways.push(format!("{line}\n")),
        }
    }
    ways
}

async fn failure(setup: &Setup, says: &str) -> Option<Value> {
    let found = findings(setup).await;
    let is_it = |finding: &&Value| {
        finding["standing"] == "failed" && finding["message"].as_str().unwrap_or_default().contains(says)
    };
    found.iter().find(is_it).cloned()
}

/// Provokes a case, asks check, runs a way out as printed, and streams the application's changes.
async fn way_leads_out((from, to): (&Cluster, &Cluster), name: &str, case: &Case, number: usize) -> usize {
    let database = Database::on(from, to, name, &["t"], case.schema).await;
    database.at_source("INSERT INTO t (code, v) VALUES (1, 'one'), (2, 'two'), (3, 'three')").await;
    if let Some(publication) = case.publication {
        database.at_source(&publication.replace("{}", &database.name)).await;
    }
    let setup = Setup::of(&database);
    let told =
        failure(&setup, case.says).await.unwrap_or_else(|| panic!("{} is not told of {}", case.says, case.schema));
    if case.publication.is_none() {
        // A start refuses, and leaves the application alone.
        setup.start().ends_with(1).await;
        database.at_source(&format!("BEGIN; {}; ROLLBACK", case.changes)).await;
    }
    let ways = ways(&told);
    let way = ways.get(number).unwrap_or_else(|| panic!("there is no way {number} in {told}"));
    database.at_source(way).await;
    assert_eq!(failure(&setup, "").await, None, "after {way}");
    let service = setup.start();
    service.streams().await;
    database.at_source(case.changes).await;
    database.caught_up().await;
    let rows = "SELECT string_agg(code || ' ' || v, ',' ORDER BY code) FROM t";
    assert_eq!(
        database.destination_value(rows).await.as_deref(),
        Some("1 new,3 three,9 nine"),
        "{}: {way}",
        case.schema
    );
    service.stop().await;
    ways.len()
}

/// All ways of all cases, a few at a time: each has a database of its own, and waits most of the time.
async fn every_way_leads_out(ends: (&Cluster, &Cluster), name: &str, cases: &[Case]) {
    let each = cases.iter().flat_map(|case| (0..case.ways).map(move |number| (case, number)));
    let led = stream::iter(each).map(|(case, number)| async move {
        let ways = way_leads_out(ends, name, case, number).await;
        assert_eq!(ways, case.ways, "{}", case.schema);
    });
    led.buffer_unordered(4).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn check_fails_on_tables_without_identity_and_each_way_out_runs() {
    // Those that follow are for sources that send no generated columns.
    let cases = if major("SOURCE") < 18 { CASES } else { &CASES[..CASES_OF_18] };
    every_way_leads_out((source().await, destination().await), "identities", cases).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn check_fails_on_filters_and_lists_that_do_not_cover_the_identity() {
    let Some(bin) = bin_of(18) else { return };
    let (of_18, to_18) = (new_source_of(&bin, &[]).await, new_destination_of(&bin, &[]).await);
    every_way_leads_out((&of_18, destination().await), "identitylists", LISTS).await;
    every_way_leads_out((&of_18, &to_18), "identitygenerated", GENERATED).await;
    // The same trees and keys, as the newest major judges them.
    every_way_leads_out((&of_18, destination().await), "identitiesof18", &CASES[..CASES_OF_18]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_publication_that_is_created_sends_generated_columns_that_identify_rows() {
    let Some(bin) = bin_of(18) else { return };
    let of_18 = new_source_of(&bin, &[]).await;
    let schema = "CREATE TABLE t (code int, v text, g int GENERATED ALWAYS AS (code * 2) STORED); ALTER TABLE t REPLICA IDENTITY FULL;
                  INSERT INTO t VALUES (1, 'one'), (2, 'two')";
    let database = Database::on(&of_18, destination().await, "identitystored", &["t"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_source("UPDATE t SET code = code + 10, v = 'new' WHERE code = 1; DELETE FROM t WHERE code = 2").await;
    database.assert_catches_up().await;
    assert_eq!(database.destination_value("SELECT g::text FROM t").await.as_deref(), Some("22"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_comes_later_without_identity_is_told_with_what_lets_updates_through() {
    let schema = "CREATE TABLE t (code int, v text) PARTITION BY LIST (code); ALTER TABLE t REPLICA IDENTITY FULL;
                  CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); ALTER TABLE t1 REPLICA IDENTITY FULL;
                  INSERT INTO t VALUES (1, 'one')";
    let database = Database::new("identitylater", &["t"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    // Two transactions: a partition without an index that is filled by the one that creates it is compared by a copy.
    database.at_source("CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2)").await;
    database.at_source("INSERT INTO t VALUES (2, 'two')").await;
    service.says("table public.t has no replica identity at the source").await;
    service.says("ALTER TABLE public.t2 REPLICA IDENTITY FULL;").await;
    assert_eq!(service.log().matches("has no replica identity").count(), 1, "it is told once");
    database
        .at_source("ALTER TABLE public.t2 REPLICA IDENTITY FULL; UPDATE t SET v = 'new'; DELETE FROM t WHERE code = 1")
        .await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_leaf_that_is_identified_otherwise_never_makes_the_copy_differ() {
    let schema = "CREATE TABLE t (code int, v text NOT NULL, PRIMARY KEY (code)) PARTITION BY LIST (code);
                  CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2, 3); CREATE TABLE t2 PARTITION OF t DEFAULT;
                  CREATE UNIQUE INDEX other ON t1 (v); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 9) i";
    for (name, change) in [
        ("identitydelete", "DELETE FROM t WHERE code = 1"),
        ("identitymany", "DELETE FROM t WHERE code < 4; INSERT INTO t VALUES (1, 'again'); UPDATE t SET v = v || '!'"),
    ] {
        let database = Database::new(name, &["t"], schema).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        database.at_source(&format!("ALTER TABLE t1 REPLICA IDENTITY USING INDEX other; {change}")).await;
        service.says("partitions of table public.t identify their rows otherwise than the table at the source").await;
        service.is("waiting").await;
        service.says("ALTER TABLE public.t1 REPLICA IDENTITY FULL;").await;
        database.at_source("ALTER TABLE public.t1 REPLICA IDENTITY FULL;").await;
        eventually("it streams again", || async { (service.status().await?["state"] == "streaming").then_some(()) })
            .await;
        all_live(&database).await;
        database.at_source("UPDATE t SET v = v || '?' WHERE code > 1").await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}
