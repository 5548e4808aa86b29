//! A constraint of the destination that refuses a row is first compared with the source's: what the source no longer has, or has otherwise,
//! is dropped or replaced by what is printed, and no row is ever called to be in the way of it.

use crate::support::database::connect;
use crate::support::roles::Roles;
use crate::support::{Database, Service, Setup, destination, source};
use headwater::pg::QualifiedName;
use headwater::session::describe_tables;

const TABLES: &[&str] = &["parent", "t"];

const SCHEMA: &str = "
    CREATE DOMAIN d AS text CONSTRAINT short CHECK (length(VALUE) < 5) CONSTRAINT clean CHECK (VALUE <> 'x');
    CREATE DOMAIN filled AS int NOT NULL;
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE t (id int PRIMARY KEY, tenant int NOT NULL, u int CONSTRAINT \"U key\" UNIQUE, v d, w int, f filled DEFAULT 1,
        parent int CONSTRAINT \"To parent\" REFERENCES parent,
        CONSTRAINT \"Positive w\" CHECK (w > 0));
    CREATE UNIQUE INDEX partly ON t (w);
    INSERT INTO parent VALUES (1);
    INSERT INTO t SELECT i, i, i, 'v', i, i, 1 FROM generate_series(1, 3) i";

struct Case {
    name: &'static str,
    /// What the source is changed to, and the row that the destination then refuses.
    at_source: &'static str,
    why: &'static str,
    /// The first statement that is printed.
    first: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "unique dropped",
        at_source: "ALTER TABLE t DROP CONSTRAINT \"U key\"; INSERT INTO t VALUES (4, 4, 1, 'v', 4)",
        why: "The source does not have unique index \"U key\" over these columns.",
        first: "ALTER TABLE public.t DROP CONSTRAINT \"U key\";",
    },
    Case {
        name: "unique partial",
        at_source: "DROP INDEX partly; CREATE UNIQUE INDEX partly ON t (w) WHERE id < 3; INSERT INTO t VALUES (4, 4, 4, 'v', 3)",
        why: "The source has unique index partly otherwise.",
        first: "DROP INDEX public.partly;",
    },
    Case {
        name: "key widened",
        at_source: "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (tenant, id); INSERT INTO t VALUES (1, 2, 4, 'v', 4)",
        why: "The source has primary key t_pkey otherwise.",
        first: "ALTER TABLE public.t DROP CONSTRAINT t_pkey;",
    },
    Case {
        name: "key dropped",
        at_source: "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ALTER id DROP NOT NULL; ALTER TABLE t REPLICA IDENTITY FULL;
                    INSERT INTO t VALUES (NULL, 2, 4, 'v', 4)",
        why: "The source allows NULL in column id.",
        first: "ALTER TABLE public.t DROP CONSTRAINT t_pkey;",
    },
    Case {
        name: "check dropped",
        at_source: "ALTER TABLE t DROP CONSTRAINT \"Positive w\"; INSERT INTO t VALUES (4, 4, 4, 'v', -4)",
        why: "The source does not have check constraint \"Positive w\".",
        first: "ALTER TABLE public.t DROP CONSTRAINT \"Positive w\";",
    },
    Case {
        name: "check replaced",
        at_source: "ALTER TABLE t DROP CONSTRAINT \"Positive w\", ADD CONSTRAINT \"Positive w\" CHECK (w > -10 AND w <> 7);
                    INSERT INTO t VALUES (4, 4, 4, 'v', -4)",
        why: "The source has check constraint \"Positive w\" with another expression.",
        first: "ALTER TABLE public.t DROP CONSTRAINT \"Positive w\";",
    },
    Case {
        name: "domain check dropped",
        at_source: "ALTER DOMAIN d DROP CONSTRAINT short; INSERT INTO t VALUES (4, 4, 4, 'longer', 4)",
        why: "The source does not have check constraint short of domain public.d.",
        first: "ALTER DOMAIN public.d DROP CONSTRAINT short;",
    },
    Case {
        name: "domain check replaced",
        at_source: "ALTER DOMAIN d DROP CONSTRAINT short; ALTER DOMAIN d ADD CONSTRAINT short CHECK (length(VALUE) < 50);
                    INSERT INTO t VALUES (4, 4, 4, 'longer', 4)",
        why: "The source has check constraint short of domain public.d with another expression.",
        first: "ALTER DOMAIN public.d DROP CONSTRAINT short;",
    },
    Case {
        name: "domain null",
        at_source: "ALTER DOMAIN filled DROP NOT NULL; INSERT INTO t VALUES (4, 4, 4, 'v', 4, NULL)",
        why: "The source allows NULL in domain public.filled.",
        first: "ALTER DOMAIN public.filled DROP NOT NULL;",
    },
];

/// The SQL that was printed last with this reason.
fn printed(log: &str, why: &str) -> String {
    let (_, told) = log.rsplit_once(why).unwrap_or_else(|| panic!("{why} is not in\n{log}"));
    let (_, sql) = told.split_once("Run at the destination:\n").unwrap_or_else(|| panic!("no SQL in\n{told}"));
    let lines =
        sql.lines().take_while(|line| line.starts_with(' ') && !line.contains("headwater then continues by itself"));
    lines.map(str::trim).collect::<Vec<_>>().join("\n")
}

/// Waits for the difference, runs what is printed, and compares.
async fn is_told_and_ended(service: &Service, database: &Database, case: &Case) {
    service.says(case.why).await;
    let told = printed(&service.log(), case.why);
    println!("{}: {told}", case.name);
    assert!(told.starts_with(case.first), "{}: {told}", case.name);
    let log = service.log();
    // Whose rows are to win may be tried once before.
    let halted = log.rsplit_once("state=\"waiting\"").map_or_else(|| log.clone(), |(_, halted)| halted.to_owned());
    assert!(!halted.contains("delete it at the destination") && !halted.contains("source-wins"), "{log}");
    database.at_destination(&told).await;
    service.streams().await;
    database.assert_catches_up().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_constraint_that_differs_from_the_source_is_named_with_its_fix() {
    let cases = CASES.iter().zip(0..).map(|(case, number)| async move {
        let database = Database::of_superuser(&format!("difference{number}"), TABLES, SCHEMA).await;
        let service = Setup::of(&database).start();
        service.streams().await;
        database.at_source(case.at_source).await;
        is_told_and_ended(&service, &database, case).await;
        // The source's constraint stands where it has one.
        let constraints = "SELECT string_agg(conname || ' ' || pg_get_constraintdef(oid), E'\\n' ORDER BY conname) FROM pg_constraint
            WHERE (conrelid = 't'::regclass OR contypid <> 0) AND contype IN ('c', 'p', 'u') AND connamespace = 'public'::regnamespace";
        let indexes = "SELECT string_agg(pg_get_indexdef(indexrelid), E'\\n' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = 't'::regclass";
        for sql in [constraints, indexes] {
            let (there, here) = (database.source_value(sql).await, database.destination_value(sql).await);
            assert_eq!(there, here, "{}", case.name);
        }
        service.stop().await;
    });
    futures_util::StreamExt::collect::<()>(futures_util::StreamExt::buffer_unordered(
        futures_util::stream::iter(cases),
        3,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_that_the_source_no_longer_has_is_told_to_a_role_that_it_binds() {
    let roles = Roles::Least { replica: false };
    let database = Database::under(roles, source().await, destination().await, "differentkey", TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source("ALTER TABLE t DROP CONSTRAINT \"To parent\"; INSERT INTO t VALUES (4, 4, 4, 'v', 4, 4, 77)")
        .await;
    let case = Case {
        name: "foreign key dropped",
        at_source: "",
        why: "The source does not have foreign key \"To parent\".",
        first: "ALTER TABLE public.t DROP CONSTRAINT \"To parent\";",
    };
    is_told_and_ended(&service, &database, &case).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn source_wins_is_told_of_a_constraint_that_the_source_no_longer_has() {
    let database = Database::of_superuser("differencewins", TABLES, SCHEMA).await;
    let service = Setup::of(&database).setting("on_conflict = \"source-wins\"").start();
    service.streams().await;
    let case = &CASES[0];
    // In transactions of their own: what is known of the source is older than the second one.
    for statement in case.at_source.split("; ") {
        database.at_source(statement).await;
    }
    is_told_and_ended(&service, &database, case).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_row_that_is_in_the_way_of_the_sources_own_constraint_is_told_as_such() {
    let database = Database::of_superuser("nodifference", TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_destination("INSERT INTO t VALUES (9, 9, 4, 'v', 9)").await;
    database.at_source("INSERT INTO t VALUES (4, 4, 4, 'v', 4)").await;
    service
        .says("A row of the destination is in the way. Unless the source has that row, delete it at the destination")
        .await;
    assert!(!service.log().contains("DROP CONSTRAINT"), "{}", service.log());
    database.at_destination("DELETE FROM t WHERE id = 9").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// What the destination's table has before the first copy, and the source's has not, or not so.
const COPIES: &[Case] = &[
    Case {
        name: "NOT VALID",
        at_source: "",
        why: "The source has check constraint aged NOT VALID: older rows violate it.",
        first: "ALTER TABLE public.t DROP CONSTRAINT aged;\n-- once all rows are there: ALTER TABLE \"public\".\"t\" ADD CONSTRAINT \"aged\" CHECK",
    },
    Case {
        name: "null",
        at_source: "",
        why: "The source allows NULL in column n.",
        first: "ALTER TABLE public.t ALTER COLUMN n DROP NOT NULL;",
    },
    Case {
        name: "unique",
        at_source: "",
        why: "The source does not have unique index mine over these columns.",
        first: "ALTER TABLE public.t DROP CONSTRAINT mine;",
    },
    Case {
        name: "exclusion",
        at_source: "",
        why: "The source does not have exclusion constraint apart over these columns.",
        first: "ALTER TABLE public.t DROP CONSTRAINT apart;",
    },
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_copy_refused_by_a_destination_constraint_names_the_sources_definition() {
    let schema =
        "CREATE TABLE t (id int PRIMARY KEY, n int, w int, x int); INSERT INTO t VALUES (1, NULL, -1, 1), (2, 2, 2, 1);
                  ALTER TABLE t ADD CONSTRAINT aged CHECK (w > 0) NOT VALID";
    let here = [
        "n int, w int, x int, CONSTRAINT aged CHECK (w > 0)",
        "n int NOT NULL, w int, x int",
        "n int, w int, x int CONSTRAINT mine UNIQUE",
        "n int, w int, x int, CONSTRAINT apart EXCLUDE USING btree (x WITH =)",
    ];
    for (case, (columns, number)) in COPIES.iter().zip(here.iter().zip(0..)) {
        let database = Database::of_superuser(&format!("differentcopy{number}"), &["t"], schema).await;
        database.at_destination(&format!("CREATE TABLE t (id int PRIMARY KEY, {columns})")).await;
        let service = Setup::of(&database).start();
        is_told_and_ended(&service, &database, case).await;
        // What is printed for later can be run now.
        for line in printed(&service.log(), case.why)
            .lines()
            .filter_map(|line| line.strip_prefix("-- once all rows are there: "))
        {
            database.at_destination(line).await;
        }
        database.at_source("INSERT INTO t VALUES (3, 3, 3, 3)").await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}

/// How a table comes to be copied whose destination has a key that the source has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopyKind {
    /// The first copy, into a filled table.
    First,
    /// The source drops the key and changes the table so that it is suspended.
    Suspended,
    /// The table is configured later, and filled at the destination.
    Added,
    /// `headwater resnapshot`, after the destination has got a key.
    Resnapshot,
    /// `headwater verify --repair`, likewise.
    Repair,
}

/// A key of the destination's that the source has not.
struct OwnKey {
    /// What follows ALTER TABLE t ADD, or a whole statement.
    key: &'static str,
    /// The source's rows; the first is the one that the destination has.
    rows: &'static str,
    kinds: &'static [CopyKind],
    why: &'static str,
    first: &'static str,
}

const ID_IS_NOT_NULL: &str = "ALTER TABLE public.t DROP CONSTRAINT mine;";
const NO_PRIMARY_KEY: &str = "The source does not have primary key mine over these columns.";
const NO_UNIQUE: &str = "The source does not have unique index mine over these columns.";
const NO_EXCLUSION: &str = "The source does not have exclusion constraint mine over these columns.";

const OWN_KEYS: &[OwnKey] = &[
    OwnKey {
        key: "CONSTRAINT mine PRIMARY KEY (id)",
        rows: "(1, 1, 'a'), (1, 1, 'b'), (2, 2, 'c')",
        kinds: &[CopyKind::First, CopyKind::Suspended, CopyKind::Added, CopyKind::Resnapshot, CopyKind::Repair],
        why: NO_PRIMARY_KEY,
        first: ID_IS_NOT_NULL,
    },
    // Rows that are equal in every column are still two.
    OwnKey {
        key: "CONSTRAINT mine PRIMARY KEY (id)",
        rows: "(1, 1, 'a'), (1, 1, 'a'), (2, 2, 'c')",
        kinds: &[CopyKind::Suspended, CopyKind::Repair],
        why: NO_PRIMARY_KEY,
        first: ID_IS_NOT_NULL,
    },
    OwnKey {
        key: "CONSTRAINT mine PRIMARY KEY (id)",
        rows: "(1, 1, 'a'), (NULL, 2, 'b'), (NULL, 2, 'b')",
        kinds: &[CopyKind::First, CopyKind::Resnapshot],
        why: "The source allows NULL in column id.",
        first: ID_IS_NOT_NULL,
    },
    OwnKey {
        key: "CONSTRAINT mine UNIQUE (n)",
        rows: "(1, 1, 'a'), (2, 1, 'b')",
        kinds: &[CopyKind::Suspended],
        why: NO_UNIQUE,
        first: "ALTER TABLE public.t DROP CONSTRAINT mine;",
    },
    OwnKey {
        key: "CREATE UNIQUE INDEX mine ON t (n)",
        rows: "(1, 1, 'a'), (2, 1, 'a')",
        kinds: &[CopyKind::Added],
        why: NO_UNIQUE,
        first: "DROP INDEX public.mine;",
    },
    OwnKey {
        key: "CONSTRAINT mine UNIQUE NULLS NOT DISTINCT (v)",
        rows: "(1, 1, NULL), (2, 2, NULL)",
        kinds: &[CopyKind::First],
        why: NO_UNIQUE,
        first: "ALTER TABLE public.t DROP CONSTRAINT mine;",
    },
    OwnKey {
        key: "CREATE UNIQUE INDEX mine ON t (lower(v)) WHERE n > 0",
        rows: "(1, 1, 'a'), (2, 2, 'A')",
        kinds: &[CopyKind::First],
        why: NO_UNIQUE,
        first: "DROP INDEX public.mine;",
    },
    OwnKey {
        key: "CONSTRAINT mine EXCLUDE USING btree (n WITH =)",
        rows: "(1, 1, 'a'), (2, 1, 'b')",
        kinds: &[CopyKind::Suspended],
        why: NO_EXCLUSION,
        first: "ALTER TABLE public.t DROP CONSTRAINT mine;",
    },
];

impl OwnKey {
    fn is_made_by(&self) -> String {
        match self.key.starts_with("CREATE") {
            true => self.key.to_owned(),
            false => format!("ALTER TABLE t ADD {}", self.key),
        }
    }

    fn rows_are_inserted_by(&self) -> String {
        format!("INSERT INTO t (id, n, v) VALUES {}", self.rows)
    }

    async fn is_told_and_ended(&self, kind: CopyKind, number: usize) {
        let name = format!("ownkey{number}{kind:?}").to_lowercase();
        let id = if self.rows.contains("(NULL") { "id int" } else { "id int NOT NULL" };
        let plain = format!("CREATE TABLE t ({id}, n int, v text); ALTER TABLE t REPLICA IDENTITY FULL");
        let keyed = format!("{plain}; {}", self.is_made_by());
        let first_row = "INSERT INTO t VALUES (1, 1, 'old')";
        let other = "CREATE TABLE other (id int PRIMARY KEY)";
        let at_source = match kind {
            CopyKind::Suspended => format!("{other}; {keyed}; {first_row}"),
            CopyKind::First | CopyKind::Added | CopyKind::Resnapshot | CopyKind::Repair => {
                format!("{other}; {plain}; {}", self.rows_are_inserted_by())
            }
        };
        let mut database = Database::of_superuser(&name, &["other", "t"], &at_source).await;
        if self.key.contains("NULLS NOT DISTINCT") && database.destination_major().await < 15 {
            return;
        }
        if matches!(kind, CopyKind::First | CopyKind::Added) {
            database.at_destination(&format!("{keyed}; {first_row}")).await;
        }
        let all = database.tables.clone();
        if kind == CopyKind::Added {
            database.tables = vec!["other".to_owned()];
            let service = Setup::of(&database).start();
            service.streams().await;
            service.stop().await;
            database.tables = all;
        }
        let setup = Setup::of(&database);
        let service = match kind {
            CopyKind::First => setup.clone().argument("--resnapshot").start(),
            CopyKind::Added => setup.clone().argument("--resnapshot=public.t").start(),
            CopyKind::Suspended | CopyKind::Resnapshot | CopyKind::Repair => setup.start(),
        };
        if kind != CopyKind::First {
            service.streams().await;
        }
        // Tables that headwater creates get no exclusion constraint.
        if kind == CopyKind::Suspended && self.why == NO_EXCLUSION {
            database.at_destination(&self.is_made_by()).await;
        }
        let mut asked = None;
        match kind {
            CopyKind::First | CopyKind::Added => {}
            CopyKind::Suspended => {
                let drop = match self.key.starts_with("CREATE") {
                    true => "DROP INDEX mine; ",
                    false if id == "id int" => {
                        "ALTER TABLE t DROP CONSTRAINT mine; ALTER TABLE t ALTER id DROP NOT NULL; "
                    }
                    false => "ALTER TABLE t DROP CONSTRAINT mine; ",
                };
                let rewritten = "ALTER TABLE t ALTER n TYPE bigint USING n + 0";
                let rows = self.rows_are_inserted_by();
                database.at_source(&format!("BEGIN; {drop}{rewritten}; DELETE FROM t; {rows}; COMMIT")).await;
            }
            CopyKind::Resnapshot | CopyKind::Repair => {
                database.caught_up().await;
                let sql = format!("DELETE FROM t; INSERT INTO t VALUES (1, 1, 'old'); {}", self.is_made_by());
                database.at_destination(&sql).await;
            }
        }
        match kind {
            CopyKind::First | CopyKind::Added | CopyKind::Suspended => {}
            CopyKind::Resnapshot => {
                let setup = setup.clone();
                asked = Some(tokio::spawn(async move { setup.command(&["resnapshot", "t"]).await }));
            }
            CopyKind::Repair => {
                let repaired = setup.command(&["verify", "--repair"]).await;
                assert!(repaired.code != Some(0), "{repaired:?}");
                let told = printed(&repaired.err, self.why);
                assert!(told.starts_with(self.first), "{told}");
                database.at_destination(&told).await;
                let copied = setup.command(&["verify", "--repair"]).await;
                assert!(copied.code != Some(0) && copied.err.contains("headwater resnapshot public.t"), "{copied:?}");
                setup.command(&["resnapshot", "public.t"]).await.exits(0);
            }
        }
        if kind != CopyKind::Repair {
            service.says(self.why).await;
            let told = printed(&service.log(), self.why);
            println!("{name}: {told}");
            assert!(told.starts_with(self.first), "{name}: {told}");
            database.at_destination(&told).await;
        }
        if let Some(asked) = asked {
            asked.await.expect("resnapshot runs").exits(0);
        }
        service.streams().await;
        let live = "SELECT (count(*) = 2)::text FROM headwater.tables WHERE state = 'live'";
        crate::support::eventually("the table is copied", || async {
            (database.destination_value(live).await.as_deref() == Some("true")).then_some(())
        })
        .await;
        database.assert_catches_up().await;
        database.at_source("INSERT INTO t VALUES (7, 7, 'g'); DELETE FROM t WHERE id = 1").await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_key_that_only_the_destination_has_is_named_before_a_copy_that_it_refuses() {
    let cases = OWN_KEYS.iter().zip(0..);
    let cases = cases.flat_map(|(key, number)| key.kinds.iter().map(move |kind| key.is_told_and_ended(*kind, number)));
    let cases = futures_util::StreamExt::buffer_unordered(futures_util::stream::iter(cases), 6);
    futures_util::StreamExt::collect::<()>(cases).await;
}

const STRICTER_TABLES: &[&str] = &["t", "parts"];

const STRICTER_SCHEMA: &str = "
    CREATE TYPE pair AS (a int, b numeric);
    CREATE TABLE t (id int PRIMARY KEY, v text, c pair, r int4range);
    CREATE TABLE parts (id int, kind int, v text, n int, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES IN (1);
    CREATE TABLE parts_high PARTITION OF parts FOR VALUES IN (2);
    CREATE TABLE parts_tree PARTITION OF parts FOR VALUES IN (3) PARTITION BY LIST (kind);
    CREATE TABLE parts_leaf PARTITION OF parts_tree FOR VALUES IN (3)";

/// What the source has more, what the destination then has instead, and rows of the source that only the destination refuses.
const STRICTER: &[(&str, &str, Case)] = &[
    (
        "CREATE UNIQUE INDEX own ON t (v)",
        "CREATE UNIQUE INDEX own ON t (v bpchar_pattern_ops)",
        Case {
            name: "operator class",
            at_source: "INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'a ')",
            why: "The source has unique index own by another operator class or collation.",
            first: "DROP INDEX public.own;",
        },
    ),
    (
        "CREATE UNIQUE INDEX own ON t (v)",
        "CREATE UNIQUE INDEX other ON t (v bpchar_ops)",
        Case {
            name: "default class of another type",
            at_source: "INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'a ')",
            why: "The source has unique index own by another operator class or collation.",
            first: "DROP INDEX public.other;",
        },
    ),
    (
        "CREATE UNIQUE INDEX own ON t (c record_image_ops)",
        "CREATE UNIQUE INDEX own ON t (c)",
        Case {
            name: "images of rows",
            at_source: "INSERT INTO t (id, c) VALUES (1, (1, 1.0)), (2, (1, 1.00))",
            why: "The source has unique index own by another operator class or collation.",
            first: "DROP INDEX public.own;",
        },
    ),
    (
        "ALTER TABLE t ADD CONSTRAINT apart EXCLUDE USING gist (r WITH =)",
        "ALTER TABLE t ADD CONSTRAINT apart EXCLUDE USING gist (r WITH &&)",
        Case {
            name: "operator of an exclusion",
            at_source: "INSERT INTO t (id, r) VALUES (1, '[1,5)'), (2, '[4,8)')",
            why: "The source has exclusion constraint apart by other operators.",
            first: "ALTER TABLE public.t DROP CONSTRAINT apart;",
        },
    ),
    (
        "",
        "CREATE UNIQUE INDEX own ON parts_low (v)",
        Case {
            name: "index of a partition",
            at_source: "INSERT INTO parts VALUES (1, 1, 'a'), (2, 1, 'a')",
            why: "The source does not have unique index own over these columns.",
            first: "DROP INDEX public.own;",
        },
    ),
    (
        "CREATE UNIQUE INDEX own ON parts_high (v)",
        "ALTER TABLE parts_low ADD CONSTRAINT own UNIQUE (v)",
        Case {
            name: "constraint of another partition",
            at_source: "INSERT INTO parts VALUES (1, 1, 'a'), (2, 1, 'a')",
            why: "The source does not have unique index own over these columns.",
            first: "ALTER TABLE public.parts_low DROP CONSTRAINT own;",
        },
    ),
    (
        "CREATE UNIQUE INDEX own ON parts_low (v)",
        "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE UNIQUE INDEX own ON parts_low (v COLLATE blind)",
        Case {
            name: "collation of a partition's index",
            at_source: "INSERT INTO parts VALUES (1, 1, 'a'), (2, 1, 'A')",
            why: "The source has unique index own by another operator class or collation.",
            first: "DROP INDEX public.own;",
        },
    ),
    (
        "",
        "ALTER TABLE parts_low ADD CONSTRAINT small CHECK (n < 5)",
        Case {
            name: "check of a partition",
            at_source: "INSERT INTO parts VALUES (1, 1, 'a', 7)",
            why: "The source does not have check constraint small.",
            first: "ALTER TABLE public.parts_low DROP CONSTRAINT small;",
        },
    ),
    (
        "ALTER TABLE parts_high ALTER n SET NOT NULL",
        "ALTER TABLE parts_low ALTER n SET NOT NULL",
        Case {
            name: "NOT NULL of a partition",
            at_source: "INSERT INTO parts VALUES (1, 1, 'a', NULL)",
            why: "The source allows NULL in column n.",
            first: "ALTER TABLE public.parts_low ALTER COLUMN n DROP NOT NULL;",
        },
    ),
    (
        "",
        "CREATE UNIQUE INDEX own ON parts (v, kind)",
        Case {
            name: "index of the whole table, refused by a partition's",
            at_source: "INSERT INTO parts VALUES (1, 3, 'a'), (2, 3, 'a')",
            why: "The source does not have unique index own over these columns.",
            first: "DROP INDEX public.own;",
        },
    ),
    (
        "",
        "CREATE UNIQUE INDEX own ON parts_tree (v, kind); ALTER TABLE parts_leaf ADD CONSTRAINT far CHECK (n > -100)",
        Case {
            name: "index of a partition that is partitioned",
            at_source: "INSERT INTO parts VALUES (1, 3, 'a'), (2, 3, 'a')",
            why: "The source does not have unique index own over these columns.",
            first: "DROP INDEX public.own;",
        },
    ),
    (
        "",
        "ALTER TABLE parts ADD CONSTRAINT small CHECK (n < 5); ALTER TABLE parts_leaf ADD CONSTRAINT far CHECK (n > -100)",
        Case {
            name: "check of the whole table",
            at_source: "INSERT INTO parts VALUES (1, 3, 'a', 7)",
            why: "The source does not have check constraint small.",
            first: "ALTER TABLE public.parts DROP CONSTRAINT small;",
        },
    ),
    (
        "",
        "ALTER TABLE parts_tree ALTER n SET NOT NULL",
        Case {
            name: "NOT NULL of a partition that is partitioned",
            at_source: "INSERT INTO parts VALUES (1, 3, 'a', NULL)",
            why: "The source allows NULL in column n.",
            first: "ALTER TABLE public.parts_tree ALTER COLUMN n DROP NOT NULL;",
        },
    ),
    (
        "CREATE INDEX apart ON t USING gist (r)",
        "ALTER TABLE t ADD CONSTRAINT apart EXCLUDE USING gist (r WITH &&)",
        Case {
            name: "exclusion where the source has an ordinary index",
            at_source: "INSERT INTO t (id, r) VALUES (1, '[1,5)'), (2, '[4,8)')",
            why: "The source does not have exclusion constraint apart over these columns.",
            first: "ALTER TABLE public.t DROP CONSTRAINT apart;",
        },
    ),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_key_that_only_the_destination_has_so_is_told_by_check_and_by_the_stream() {
    let cases = STRICTER.iter().zip(0..).map(|((there, here, case), number)| async move {
        let database = Database::of_superuser(&format!("stricter{number}"), STRICTER_TABLES, STRICTER_SCHEMA).await;
        database.at_source(there).await;
        database.at_destination(STRICTER_SCHEMA).await;
        let setup = Setup::of(&database);
        setup.command(&["check"]).await.exits(0);
        database.at_destination(here).await;
        let checked = setup.command(&["check"]).await.exits(0).says(&[case.why, case.first]);
        // What stands above a partition is told once, and what is told runs.
        assert_eq!(checked.out.matches(case.first).count(), 1, "{}", checked.out);
        let own_drops = here.matches(" ADD CONSTRAINT ").count()
            + here.matches("CREATE UNIQUE").count()
            + here.matches("SET NOT NULL").count();
        assert_eq!(checked.out.matches("DROP ").count(), own_drops, "{}", checked.out);
        let service = setup.start();
        service.streams().await;
        database.at_source(case.at_source).await;
        is_told_and_ended(&service, &database, case).await;
        setup.command(&["check"]).await.exits(0).omits(&[case.why]);
        service.stop().await;
    });
    futures_util::StreamExt::collect::<()>(futures_util::StreamExt::buffer_unordered(
        futures_util::stream::iter(cases),
        3,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_row_stays_with_source_wins_where_the_destination_alone_finds_it_equal() {
    let database = Database::of_superuser("stricterwins", STRICTER_TABLES, STRICTER_SCHEMA).await;
    let (there, here, case) = &STRICTER[0];
    database.at_source(there).await;
    database.at_destination(STRICTER_SCHEMA).await;
    database.at_destination(here).await;
    let service = Setup::of(&database).setting("on_conflict = \"source-wins\"").start();
    service.streams().await;
    database.at_source(case.at_source).await;
    is_told_and_ended(&service, &database, case).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_partition_that_has_what_the_sources_has_is_not_told() {
    let database = Database::of_superuser("stricterequal", STRICTER_TABLES, STRICTER_SCHEMA).await;
    let own = "CREATE UNIQUE INDEX own ON parts_low (v); ALTER TABLE parts_low ADD CHECK (n < 5), ALTER n SET NOT NULL;
               CREATE UNIQUE INDEX as_text ON t (v text_pattern_ops)";
    database.at_source(own).await;
    database.at_destination(STRICTER_SCHEMA).await;
    database.at_destination(&own.replace("text_pattern_ops", "text_ops")).await;
    let setup = Setup::of(&database);
    setup.command(&["check"]).await.exits(0).omits(&["may refuse rows"]);
    let service = setup.start();
    service.streams().await;
    database.at_destination("INSERT INTO parts VALUES (9, 1, 'a', 1)").await;
    database.at_source("INSERT INTO parts VALUES (1, 1, 'a', 1)").await;
    service.says("Unless the source has that row, delete it at the destination").await;
    assert!(!service.log().contains("DROP"), "{}", service.log());
    setup.command(&["conflict", "show"]).await.exits(1).says(&["unique index own (v)", "id = '9'"]);
    database.at_destination("DELETE FROM parts WHERE id = 9").await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// Types, each with what a class may be chosen for: the type itself, one that it is taken for, a pseudo-type.
const INDEXED_TYPES: &[&str] = &[
    "text",
    "varchar",
    "char(3)",
    "\"char\"",
    "name",
    "citext",
    "over_varchar",
    "over_domain",
    "over_citext",
    "int2",
    "int4",
    "int8",
    "oid",
    "regclass",
    "numeric",
    "inet",
    "cidr",
    "bit(4)",
    "varbit",
    "text[]",
    "varchar[]",
    "int4range",
    "int4multirange",
    "mood",
    "pair",
    "pair[]",
    "uuid",
    "jsonb",
    "tsvector",
    "point",
    "box",
    "circle",
    "polygon",
    "timestamptz",
    "xid8",
    "bytea",
    "over_array",
    "macaddr",
    "money",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_class_is_named_where_the_server_names_it() {
    let database = Database::of_superuser("classes", &["indexed"], "").await;
    let columns = INDEXED_TYPES.iter().zip(0..).map(|(of_type, number)| format!("c{number} {of_type}"));
    let types = "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('a'); CREATE TYPE pair AS (a int, b text);
         CREATE DOMAIN over_varchar AS varchar; CREATE DOMAIN over_domain AS over_varchar; CREATE DOMAIN over_citext AS citext;
         CREATE DOMAIN over_array AS varchar[]";
    database
        .at_destination(&format!("{types}; CREATE TABLE indexed ({})", columns.collect::<Vec<_>>().join(", ")))
        .await;
    let create = "DO $do$
        DECLARE c record; o record;
        BEGIN
            FOR c IN SELECT attname FROM pg_attribute WHERE attrelid = 'indexed'::regclass AND attnum > 0 LOOP
                FOR o IN SELECT m.amname, x.opcname FROM pg_opclass x JOIN pg_am m ON m.oid = x.opcmethod WHERE m.amname <> 'gin'
                         UNION ALL SELECT m.amname, '' FROM pg_am m WHERE m.amtype = 'i' LOOP
                    BEGIN
                        EXECUTE format('CREATE INDEX ON indexed USING %I (%I %s)', o.amname, c.attname, o.opcname);
                    EXCEPTION WHEN OTHERS THEN NULL;
                    END;
                END LOOP;
            END LOOP;
        END $do$";
    database.at_destination(create).await;
    let client = connect(&database.destination_url).await.expect("a session");
    let described = describe_tables(&client, &[QualifiedName::new("public", "indexed")]).await.expect("a description");
    let (mut named, mut unnamed) = (0, 0);
    for index in &described[0].indexes {
        let definition = format!("SELECT pg_get_indexdef({})", index.id);
        let definition = database.destination_value(&definition).await.expect("a definition");
        let (_, parts) = definition.split_once(" (").expect("its columns");
        let is_named = parts.trim_end_matches(')').contains(' ');
        assert_eq!(index.parts[0].operator_class.is_some(), is_named, "{definition}: {:?}", index.parts[0]);
        match is_named {
            true => named += 1,
            false => unnamed += 1,
        }
    }
    println!("named {named}, not named {unnamed}");
    assert!(named > 100 && unnamed > 100, "named {named}, not named {unnamed}");
}
