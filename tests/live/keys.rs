//! Unique indexes, constraints and replica identities that are others for a while: what the source let through meanwhile is never called
//! a row in the way, wins over no row that the source still has, and ends equal.

use futures_util::{StreamExt, stream};
use headwater::commands::demo::Cluster;

use crate::support::suspension::all_live;
use crate::support::{Database, Service, Setup, bin_of, destination, new_source_of, source};

struct Case {
    name: &'static str,
    schema: &'static str,
    /// Each in a transaction of its own.
    changes: &'static [&'static str],
    /// Why the table is copied.
    why: &'static str,
}

const FULL: &str =
    "CREATE TABLE t (id int NOT NULL, v text); CREATE UNIQUE INDEX u ON t (id); ALTER TABLE t REPLICA IDENTITY FULL;
     INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')";
const KEYED: &str = "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL, n int UNIQUE, c int CONSTRAINT c CHECK (c > 0), r int NOT NULL DEFAULT 1);
     CREATE UNIQUE INDEX other ON t (v); INSERT INTO t VALUES (1, 'a', 1, 1), (2, 'b', 2, 2), (3, 'c', 3, 3)";
const TREE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL) PARTITION BY RANGE (id);
     CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10); CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20);
     CREATE UNIQUE INDEX other ON t1 (v); CREATE UNIQUE INDEX third ON t1 (v, id); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (12, 'c')";

const ALIKE: &str = "was dropped for a while, and rows of that time are alike in its columns";
const LEAF: &str = "partition public.t1 was altered, and may have identified its rows otherwise than the table";

const COPIED: &[Case] = &[
    Case {
        name: "uniqueagain",
        schema: KEYED,
        changes: &[
            "ALTER TABLE t DROP CONSTRAINT t_n_key; INSERT INTO t VALUES (4, 'd', 1, 4)",
            "UPDATE t SET r = 2 WHERE id = 4",
            "DELETE FROM t WHERE id = 4",
            "ALTER TABLE t ADD UNIQUE (n)",
        ],
        why: ALIKE,
    },
    Case {
        name: "fullagain",
        schema: FULL,
        changes: &[
            "DROP INDEX u; INSERT INTO t VALUES (1, 'new'); DELETE FROM t WHERE v = 'a'; CREATE UNIQUE INDEX u ON t (id)",
        ],
        why: ALIKE,
    },
    // The rows come in a transaction behind the one that describes the table.
    Case {
        name: "fullfold",
        schema: FULL,
        changes: &[
            "DROP INDEX u; UPDATE t SET v = 'bb' WHERE v = 'b'",
            "INSERT INTO t VALUES (1, 'new'); UPDATE t SET v = 'aa' WHERE v = 'a'; DELETE FROM t WHERE v = 'new'",
            "CREATE UNIQUE INDEX u ON t (id)",
        ],
        why: ALIKE,
    },
    Case {
        name: "keyfull",
        schema: KEYED,
        changes: &[
            "ALTER TABLE t DROP CONSTRAINT t_pkey, REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'new', 9, 9);
                    DELETE FROM t WHERE v = 'a'; ALTER TABLE t ADD PRIMARY KEY (id), REPLICA IDENTITY DEFAULT",
        ],
        why: ALIKE,
    },
    Case {
        name: "keyother",
        schema: KEYED,
        changes: &["ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t REPLICA IDENTITY USING INDEX other;
                    INSERT INTO t VALUES (1, 'new', 9, 9); DELETE FROM t WHERE v = 'a';
                    ALTER TABLE t ADD PRIMARY KEY (id), REPLICA IDENTITY DEFAULT"],
        why: ALIKE,
    },
    Case {
        name: "checkagain",
        schema: KEYED,
        changes: &[
            "ALTER TABLE t DROP CONSTRAINT c; INSERT INTO t VALUES (4, 'd', 4, -4)",
            "UPDATE t SET c = 4 WHERE id = 4; ALTER TABLE t ADD CONSTRAINT c CHECK (c > 0)",
        ],
        why: "constraint c was dropped for a while, and rows of that time violate it",
    },
    Case {
        name: "nullagain",
        schema: KEYED,
        changes: &[
            "ALTER TABLE t ALTER r DROP NOT NULL; INSERT INTO t VALUES (4, 'd', 4, 4, NULL)",
            "UPDATE t SET r = 4 WHERE id = 4; ALTER TABLE t ALTER r SET NOT NULL",
        ],
        why: "column r was not NOT NULL for a while, and rows of that time are NULL in it",
    },
    Case {
        name: "leafawhile",
        schema: TREE,
        changes: &[
            "ALTER TABLE t1 REPLICA IDENTITY USING INDEX other; UPDATE t SET id = 3 WHERE id = 1; ALTER TABLE t1 REPLICA IDENTITY DEFAULT",
        ],
        why: LEAF,
    },
    Case {
        name: "rootawhile",
        schema: TREE,
        changes: &[
            "ALTER TABLE t REPLICA IDENTITY NOTHING; UPDATE t SET id = 3 WHERE id = 1; DELETE FROM t WHERE id = 2; ALTER TABLE t REPLICA IDENTITY DEFAULT",
        ],
        why: "an update or delete of table public.t came without an identity of the old row",
    },
];

async fn change(database: &Database, changes: &[&str]) {
    for change in changes {
        database.at_source(&format!("BEGIN; {change}; COMMIT")).await;
    }
}

/// The table streams and is equal, whatever is written next.
async fn goes_on(database: &Database, service: &Service) {
    database.becomes_equal("t").await;
    all_live(database).await;
    service.streams().await;
    database.at_source("UPDATE t SET v = v || '!'; DELETE FROM t WHERE v = 'c!'").await;
    database.assert_catches_up().await;
}

/// `meets_it_later`: the service was stopped meanwhile.
async fn is_copied((from, to): (&Cluster, &Cluster), case: &Case, meets_it_later: bool, wins: bool) {
    let name = format!("keys{}{}", case.name, u8::from(meets_it_later));
    let database = Database::on(from, to, &name, &["t"], case.schema).await;
    let mut setup = Setup::of(&database);
    if wins {
        setup = setup.setting("on_conflict = \"source-wins\"");
    }
    let mut service = setup.start();
    service.streams().await;
    database.caught_up().await;
    if meets_it_later {
        service.stop().await;
        change(&database, case.changes).await;
        service = setup.start();
    } else {
        change(&database, case.changes).await;
    }
    service.says(case.why).await;
    service.says("it is copied again").await;
    goes_on(&database, &service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_a_rule_let_through_that_was_dropped_for_a_while_ends_equal() {
    let ends = (source().await, destination().await);
    let each = COPIED.iter().flat_map(|case| [(case, false, false), (case, true, true)]);
    let runs = stream::iter(each).map(|(case, later, wins)| is_copied(ends, case, later, wins));
    runs.buffer_unordered(4).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_a_rule_of_18_let_through_that_was_dropped_for_a_while_ends_equal() {
    let Some(bin) = bin_of(18) else { return };
    let from = new_source_of(&bin, &[]).await;
    let ends = (&from, destination().await);
    let runs = stream::iter(COPIED).map(|case| is_copied(ends, case, false, true));
    runs.buffer_unordered(4).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_constraint_dropped_for_a_while_halts_under_schema_changes_stop() {
    let case = &COPIED[0];
    let database = Database::new("keysstop", &["t"], case.schema).await;
    let setup = Setup::of(&database).setting("schema_changes = \"stop\"\non_conflict = \"source-wins\"");
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    change(&database, case.changes).await;
    service.says("Copy it again: headwater run --resnapshot=public.t").await;
    service.stop().await;
    let service = Setup { arguments: vec!["--resnapshot=public.t".to_owned()], ..setup }.start();
    service.says("it is copied again").await;
    goes_on(&database, &service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn keys_that_are_made_again_and_identities_that_stay_exact_lead_to_no_copy() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "again",
            FULL,
            &[
                "DROP INDEX u; CREATE UNIQUE INDEX u ON t (id)",
                "INSERT INTO t VALUES (4, 'd'); UPDATE t SET v = 'dd' WHERE id = 4",
                "UPDATE t SET id = id + 10 WHERE id > 1; DELETE FROM t WHERE id = 12; INSERT INTO t VALUES (2, 'again')",
            ],
        ),
        (
            "otherkey",
            KEYED,
            &[
                "ALTER TABLE t DROP CONSTRAINT t_n_key; ALTER TABLE t ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED",
                "UPDATE t SET r = 7; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, 'x', 3, 3)",
                "ALTER TABLE t REPLICA IDENTITY USING INDEX other",
                "UPDATE t SET v = v || '?', id = id + 10; DELETE FROM t WHERE id = 12",
            ],
        ),
        (
            "leaffull",
            TREE,
            &[
                "ALTER TABLE t1 REPLICA IDENTITY FULL",
                "UPDATE t SET id = 3 WHERE id = 1; UPDATE t SET id = 15 WHERE id = 3; DELETE FROM t WHERE id = 2",
            ],
        ),
        (
            "leafwider",
            TREE,
            &[
                "ALTER TABLE t1 REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (4, 'd'); UPDATE t SET v = 'z' WHERE id = 12",
                "ALTER TABLE t1 REPLICA IDENTITY DEFAULT; UPDATE t SET id = 5 WHERE id = 1",
            ],
        ),
        (
            "newkey",
            "CREATE TABLE t (id int NOT NULL, v text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'a'), (2, 'b'), (2, 'b')",
            &[
                "DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t); ALTER TABLE t ADD PRIMARY KEY (id)",
                "UPDATE t SET v = 'z' WHERE id = 2; INSERT INTO t VALUES (4, 'd')",
                "ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = 'y' WHERE id = 1; DELETE FROM t WHERE id = 4",
            ],
        ),
    ];
    let runs = stream::iter(cases).map(|(name, schema, changes)| async move {
        let database = Database::new(&format!("keep{name}"), &["t"], schema).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.caught_up().await;
        change(&database, changes).await;
        if *name == "again" {
            database.at_source("REINDEX INDEX CONCURRENTLY u").await;
            database.at_source("UPDATE t SET v = v || '?'").await;
        }
        goes_on(&database, &service).await;
        assert!(!service.log().contains("copied again"), "{name}: {}", service.log());
        service.stop().await;
    });
    runs.buffer_unordered(3).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn an_identity_that_cannot_name_rows_is_reported_until_the_printed_fix_is_run() {
    for (name, changes, says, statement) in [
        (
            "keyroot",
            "ALTER TABLE t REPLICA IDENTITY NOTHING; UPDATE t SET id = 3 WHERE id = 1; DELETE FROM t WHERE id = 2",
            "table public.t has no replica identity at the source, and its partitions have one",
            "ALTER TABLE public.t REPLICA IDENTITY DEFAULT;",
        ),
        (
            "keyrootfull",
            "ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET id = 3 WHERE id = 1; DELETE FROM t WHERE id = 2",
            "partitions of table public.t identify their rows otherwise than the table at the source",
            "ALTER TABLE public.t1 REPLICA IDENTITY FULL;\nALTER TABLE public.t2 REPLICA IDENTITY FULL;",
        ),
        (
            "keyleaf",
            "CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (30); CREATE UNIQUE INDEX fourth ON t3 (v);
             ALTER TABLE t3 REPLICA IDENTITY USING INDEX fourth; INSERT INTO t VALUES (21, 'd'), (22, 'e');
             UPDATE t SET id = 25 WHERE id = 21; DELETE FROM t WHERE id = 22",
            "partitions of table public.t identify their rows otherwise than the table at the source",
            "ALTER TABLE public.t3 REPLICA IDENTITY FULL;",
        ),
    ] {
        let database = Database::new(name, &["t"], TREE).await;
        let service = Setup::of(&database).setting("on_conflict = \"source-wins\"").start();
        service.streams().await;
        database.caught_up().await;
        change(&database, &[changes]).await;
        service.says(says).await;
        for line in statement.lines() {
            service.says(line).await;
        }
        database.at_source(statement).await;
        goes_on(&database, &service).await;
        service.stop().await;
    }
}
