//! Constraints of created tables are the source's: what holds for new rows only, or not at all, holds no further at the destination.

use headwater::commands::demo::Cluster;

use crate::support::findings::{find, findings, fix};
use crate::support::{Database, Setup, bin_of, destination, major, new_destination_of, new_source_of};

/// Constraints but foreign keys, and columns with what they get by themselves.
const CONSTRAINTS: &str = "
    SELECT string_agg(told, E'\\n' ORDER BY told) FROM (
        SELECT conrelid::regclass || ': ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid) || ' ' || convalidated
               || ' ' || condeferred AS told
        FROM pg_constraint WHERE conrelid IN ('t'::regclass, 'parent'::regclass) AND contype <> 'f'
        UNION ALL
        SELECT attname || ' ' || attnotnull || ' ' || COALESCE(pg_get_expr(adbin, adrelid), '')
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = 't'::regclass AND attnum > 0
        UNION ALL
        SELECT typname || ' ' || COALESCE(pg_get_expr(typdefaultbin, 0), '') || ' ' || typnotnull FROM pg_type WHERE typtype = 'd'
            AND typnamespace = 'public'::regnamespace
        UNION ALL
        SELECT quote_ident(conname) || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE contypid <> 0 AND convalidated
            AND connamespace = 'public'::regnamespace
    ) AS all_told";

/// Foreign keys: headwater's have no actions before the cut-over, and are deferrable.
const FOREIGN_KEYS: &str = "
    SELECT string_agg(quote_ident(conname) || ' ' || convalidated || ' ' || condeferred, E'\\n' ORDER BY conname) FROM pg_constraint
    WHERE conrelid = 't'::regclass AND contype = 'f'";

const TABLES: &[&str] = &["parent", "t"];

const SCHEMA: &str = r#"
    CREATE DOMAIN "Weird d" AS int DEFAULT 5 CONSTRAINT "Not null" NOT NULL CONSTRAINT few CHECK (VALUE < 100);
    CREATE DOMAIN grown AS text DEFAULT 'it''s \ new';
    CREATE TABLE parent (id int PRIMARY KEY);
    INSERT INTO parent SELECT generate_series(1, 5);
    CREATE TABLE t (
        id int PRIMARY KEY, n int, b bytea DEFAULT '\x'::bytea, b2 bytea DEFAULT '\xdeadbeef', d "Weird d", g grown, u int, later int,
        parent int CONSTRAINT "Fk later" REFERENCES parent ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
        orphan int CONSTRAINT orphan REFERENCES parent,
        fresh int,
        CONSTRAINT deferred UNIQUE (later) DEFERRABLE INITIALLY DEFERRED,
        CONSTRAINT deferring UNIQUE (id, later) DEFERRABLE,
        CONSTRAINT including UNIQUE (id, u) INCLUDE (n, later),
        CONSTRAINT no_heirs CHECK (n > -100) NO INHERIT);
    SET session_replication_role = replica;
    INSERT INTO t VALUES (1, -1, DEFAULT, DEFAULT, DEFAULT, DEFAULT, 1, 1, 1, 77, 77), (2, 2, DEFAULT, DEFAULT, 6, 'x', 2, 2, 2, NULL, NULL);
    RESET session_replication_role;
    ALTER TABLE t ADD CONSTRAINT "Posi""tive" CHECK (n > 0) NOT VALID;
    ALTER TABLE t ADD CONSTRAINT "no heirs, no age" CHECK (n > 0) NO INHERIT NOT VALID;
    ALTER TABLE t ADD CONSTRAINT fresh FOREIGN KEY (fresh) REFERENCES parent NOT VALID;
    ALTER DOMAIN grown ADD CONSTRAINT longer CHECK (length(VALUE) > 3) NOT VALID"#;

/// From 15 on.
const NULLS: &str = "ALTER TABLE t ADD CONSTRAINT nulls UNIQUE NULLS NOT DISTINCT (u)";

/// From 18 on.
const NEWEST: &str = r#"
    CREATE EXTENSION btree_gist;
    ALTER TABLE parent ADD room int DEFAULT 1, ADD code int UNIQUE, ADD during daterange;
    UPDATE parent SET during = daterange(current_date, current_date + id);
    ALTER TABLE parent DROP CONSTRAINT parent_pkey CASCADE, ADD PRIMARY KEY (id, during WITHOUT OVERLAPS);
    ALTER TABLE t ADD during daterange DEFAULT daterange(current_date, current_date + 1), ADD nothing int, ADD heirless int;
    ALTER TABLE t ADD CONSTRAINT "Period" FOREIGN KEY (parent, PERIOD during) REFERENCES parent (id, PERIOD during),
        ADD CONSTRAINT apart UNIQUE (id, during WITHOUT OVERLAPS),
        ADD CONSTRAINT "no force" CHECK (n > 50) NOT ENFORCED, ADD CONSTRAINT no_force_no_heirs CHECK (n > 50) NO INHERIT NOT ENFORCED,
        ADD CONSTRAINT no_force_fk FOREIGN KEY (orphan) REFERENCES parent (code) NOT ENFORCED,
        ADD CONSTRAINT "old NULLs" NOT NULL nothing NOT VALID, ADD CONSTRAINT heirless NOT NULL heirless NO INHERIT NOT VALID,
        ADD CONSTRAINT "really named" NOT NULL u"#;

/// Changes of rows that every constraint of the source allows.
const CHANGES: &str =
    "INSERT INTO t (id, n, d, g, u, later) VALUES (3, 3, 7, 'four', 3, 3); UPDATE t SET n = 9 WHERE id = 2;
    DELETE FROM t WHERE id = 1";

async fn same(database: &Database, sql: &str) {
    let (mut there, mut here) = (database.source_value(sql).await, database.destination_value(sql).await);
    // From 18 on NOT NULL is a constraint with a name.
    if database.source_major().await < 18 || database.destination_major().await < 18 {
        let older = |lines: String| {
            let is_older = |line: &&str| !line.contains("NOT NULL");
            lines.lines().filter(is_older).collect::<Vec<_>>().join("\n")
        };
        (there, here) = (there.map(older), here.map(older));
    }
    assert_eq!(there, here, "the source's stand on the left");
}

async fn new(ends: Option<(&Cluster, &Cluster)>, name: &str, more: &str) -> Database {
    let database = match ends {
        Some((from, to)) => Database::on(from, to, name, TABLES, SCHEMA).await,
        None => Database::new(name, TABLES, SCHEMA).await,
    };
    let more = match database.source_major().await {
        14 => &more.replace("NULLS NOT DISTINCT ", ""),
        _ => more,
    };
    database.at_source(more).await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn constraints_of_created_tables_are_those_of_the_source() {
    // What 14 makes of it has a test of its own.
    let nulls = if major("DESTINATION") == 14 { "" } else { NULLS };
    let database = new(None, "constraints", nulls).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    same(&database, CONSTRAINTS).await;
    // Orphans that were written where foreign keys do not act keep the copy from nothing.
    let here = database.destination_value(FOREIGN_KEYS).await;
    assert_eq!(here.as_deref(), Some("\"Fk later\" true true\nfresh false false\norphan false false"));
    service
        .says("table public.t: foreign key orphan is NOT VALID at the destination: the source has rows that violate it")
        .await;
    service.says("domain public.grown: check constraint longer (it is NOT VALID").await;
    // A domain's older value comes again with every change of its row.
    database.at_source("UPDATE t SET later = 22 WHERE id = 2").await;
    database.at_source(CHANGES).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filled_parent_keeps_no_orphan_from_being_copied() {
    let database = new(None, "orphans", NULLS).await;
    database.at_destination("CREATE TABLE parent (id int PRIMARY KEY)").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let here = database.destination_value(FOREIGN_KEYS).await;
    assert_eq!(here.as_deref(), Some("\"Fk later\" true true\nfresh false false\norphan false false"));
    service.says("table public.t: foreign key orphan is NOT VALID at the destination").await;
    database.at_source(CHANGES).await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn constraints_of_18_are_kept_by_a_destination_of_18() {
    let Some(bin) = bin_of(18) else { return };
    let (from, to) = (new_source_of(&bin, &[]).await, new_destination_of(&bin, &[]).await);
    let database = new(Some((&from, &to)), "constraints18", &format!("{NULLS}; {NEWEST}")).await;
    let setup = Setup::of(&database);
    // Said before a row moves, and by a start, too.
    let found = findings(&setup).await;
    let finding = find(&found, "failed", "operator classes of extension btree_gist do not exist at the destination");
    let finding = finding.unwrap_or_else(|| panic!("{found:?}"));
    assert!(
        finding["detail"].as_str().is_some_and(|detail| detail.contains("index apart of table public.t")),
        "{finding}"
    );
    let refused = setup.start().ends_with(1).await;
    assert!(refused.contains("operator classes of extension btree_gist"), "{refused}");
    database.at_destination(&fix(finding)).await;
    let service = setup.start();
    service.streams().await;
    same(&database, CONSTRAINTS).await;
    let here = database.destination_value(FOREIGN_KEYS).await;
    assert_eq!(here.as_deref(), Some("\"Period\" true false\nno_force_fk false false"));
    database
        .at_source("INSERT INTO parent (id, during) VALUES (1, daterange(current_date + 10, current_date + 20))")
        .await;
    database.at_source("UPDATE parent SET during = daterange(current_date + 10, current_date + 30) WHERE id = 1 AND NOT during @> current_date").await;
    database.at_source("UPDATE t SET nothing = 1, heirless = 1, n = 7; INSERT INTO t SELECT 3, 3, b, b2, d, g, 9, 9, parent, orphan, fresh, during, 1, 1
        FROM t WHERE id = 2; DELETE FROM t WHERE id = 1").await;
    database.assert_catches_up().await;
    // A constraint that is validated at the source follows.
    database.at_source("ALTER TABLE t VALIDATE CONSTRAINT \"old NULLs\"; UPDATE t SET n = 8").await;
    service.says("column nothing is now NOT NULL").await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_each_constraint_that_an_older_destination_cannot_have() {
    let Some(bin) = bin_of(18) else { return };
    let from = new_source_of(&bin, &[]).await;
    let database = new(Some((&from, destination().await)), "constraints1815", &format!("{NULLS}; {NEWEST}")).await;
    let version = database.destination_value("SELECT current_setting('server_version_num')").await.expect("a version");
    if version.starts_with("18") {
        return;
    }
    let setup = Setup::of(&database);
    let found = findings(&setup).await;
    for (constraint, feature, instead) in [
        ("foreign key \"Period\"", "PERIOD", "the destination gets no such constraint"),
        ("unique constraint apart", "WITHOUT OVERLAPS", "a key over the same columns is made"),
        ("check constraint \"no force\"", "NOT ENFORCED", "the destination gets no such constraint"),
        ("check constraint no_force_no_heirs", "NOT ENFORCED", "the destination gets no such constraint"),
        ("foreign key no_force_fk", "NOT ENFORCED", "the destination gets no such constraint"),
        ("not-null constraint \"old NULLs\"", "NOT VALID", "the column takes NULL at the destination"),
        ("not-null constraint heirless", "NOT VALID", "the column takes NULL at the destination"),
    ] {
        let says =
            format!("{constraint} of table public.t is {feature} at the source, which the destination (PostgreSQL ");
        let finding = find(&found, "warning", &says).unwrap_or_else(|| panic!("{says} is not in {found:?}"));
        let detail = finding["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("came with PostgreSQL 18") && detail.contains(instead), "{finding}");
    }
    let service = setup.start();
    service.streams().await;
    let keys = "SELECT string_agg(pg_get_constraintdef(oid), ' ' ORDER BY conname) FROM pg_constraint WHERE conname IN ('apart', 'parent_pkey')";
    let here = database.destination_value(keys).await;
    assert_eq!(here.as_deref(), Some("UNIQUE (id, during) PRIMARY KEY (id, during)"));
    let here = database.destination_value(FOREIGN_KEYS).await;
    assert_eq!(here, None, "foreign keys that it does not know are left out");
    // Rows that the source does not look at are taken.
    database
        .at_source(
            "UPDATE parent SET room = 2; UPDATE t SET nothing = 1, heirless = 1, n = 7; DELETE FROM t WHERE id = 1",
        )
        .await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_constraint_with_nulls_is_told_to_a_destination_of_14() {
    let Some(bin) = bin_of(14) else { return };
    let to = new_destination_of(&bin, &[]).await;
    let database = new(Some((crate::support::source().await, &to)), "constraints14", NULLS).await;
    if database.source_major().await == 14 {
        return;
    }
    let setup = Setup::of(&database);
    let says = "unique constraint nulls of table public.t is NULLS NOT DISTINCT at the source, which the destination (PostgreSQL 14)";
    let found = findings(&setup).await;
    assert!(find(&found, "warning", says).is_some(), "{found:?}");
    let service = setup.start();
    service.streams().await;
    let key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'nulls'";
    assert_eq!(database.destination_value(key).await.as_deref(), Some("UNIQUE (u)"));
    database.at_source(CHANGES).await;
    database.assert_catches_up().await;
    service.stop().await;
}
