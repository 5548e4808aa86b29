//! What replication does not carry is listed, and what is printed makes the same at the destination.

use std::collections::BTreeSet;

use headwater::commands::demo::Cluster;
use headwater::pg::{Ident, QualifiedName, is_printable};
use serde_json::Value;

use crate::support::findings::findings;
use crate::support::roles::Roles;
use crate::support::{Database, Setup, bin_of, destination, new_destination_of, new_source_of, source};

const TABLES: &[&str] = &["t", "\"We\"\"ird T\"", "parted"];

/// One of each class, with names that need quotes, an escape character and a line break.
const SCHEMA: &str = r#"
    CREATE TABLE t (id int PRIMARY KEY, v text, w int CHECK (w > 0), big text, sorted text);
    CREATE TABLE "We""ird T" (id int PRIMARY KEY, "o'c" int, "b\s" text);
    CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE "p 1" PARTITION OF parted FOR VALUES FROM (0) TO (100);
    CREATE TABLE outside (id int PRIMARY KEY); INSERT INTO outside VALUES (1);
    CREATE FUNCTION "sta""mp"() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
	NEW.v := COALESCE(NEW.v, 'it''s; -- "new"
        line \ of tabs'); RETURN NEW; END $f$;
    CREATE FUNCTION watched() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RETURN; END';
    CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
    INSERT INTO t VALUES (1, 'one', 1, 'b'); INSERT INTO "We""ird T" VALUES (1, 1, 'b'); INSERT INTO parted VALUES (1, 'p')"#;

/// Run once the stream is up: what was changed since the tables were created.
const CHANGES: &str = r#"
    CREATE TRIGGER "tri""gger; --" BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION "sta""mp"();
    CREATE TRIGGER off AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION "sta""mp"(); ALTER TABLE t DISABLE TRIGGER off;
    CREATE RULE quiet AS ON DELETE TO "We""ird T" WHERE OLD.id = 77 DO ALSO DELETE FROM outside WHERE outside.id = OLD.id;
    CREATE POLICY "some rows" ON t AS RESTRICTIVE FOR UPDATE TO PUBLIC USING (id > 0) WITH CHECK (v <> 'it''s');
    ALTER TABLE "We""ird T" ENABLE ROW LEVEL SECURITY; ALTER TABLE "We""ird T" FORCE ROW LEVEL SECURITY;
    CREATE VIEW "v iew" WITH (security_barrier = true) AS SELECT id, "o'c" AS "c'o" FROM "We""ird T" WHERE "b\s" <> E'\\';
    CREATE VIEW above AS SELECT * FROM "v iew"; CREATE MATERIALIZED VIEW kept AS SELECT count(*) AS n FROM t;
    CREATE STATISTICS "st at" (dependencies, ndistinct) ON v, w FROM t; ALTER STATISTICS "st at" SET STATISTICS 77;
    ALTER TABLE t SET (fillfactor = 71, toast.autovacuum_enabled = false);
    ALTER TABLE t ALTER sorted TYPE text COLLATE "C";
    ALTER TABLE t ALTER v SET STATISTICS 66, ALTER v SET (n_distinct = -0.5), ALTER big SET STORAGE EXTERNAL;
    GRANT SELECT, UPDATE ON t TO PUBLIC; GRANT INSERT ("o'c") ON "We""ird T" TO PUBLIC;
    CREATE INDEX "plain idx" ON t (lower(v) DESC, twice(w)) WHERE v <> E'a\nb'; CREATE INDEX ON parted (v);
    ALTER TABLE t ADD CONSTRAINT "new check" CHECK (twice(w) > 1) NOT VALID, ALTER v SET DEFAULT E'it''s \\ new\n', ALTER w SET DEFAULT twice(4);
    ALTER TABLE t ADD CONSTRAINT apart EXCLUDE USING btree (big WITH =);
    ALTER TABLE t ADD CONSTRAINT elsewhere FOREIGN KEY (w) REFERENCES outside;
    COMMENT ON TABLE t IS E'it''s a\n"comment"'; COMMENT ON COLUMN "We""ird T"."o'c" IS E'\x1b[31mred';
    COMMENT ON CONSTRAINT t_pkey ON t IS 'key'; COMMENT ON INDEX "plain idx" IS 'index';
    ALTER TABLE "We""ird T" REPLICA IDENTITY FULL;
    CREATE EVENT TRIGGER "ev ent" ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE') EXECUTE FUNCTION watched();
    ALTER EVENT TRIGGER "ev ent" DISABLE;
    CREATE PUBLICATION "pub lic" FOR TABLE t, "We""ird T" WITH (publish = 'insert, update')"#;

/// Filters and lists of publications, from 15 on.
const NEWER: &str = "CREATE PUBLICATION part FOR TABLE t (id, v) WHERE (id > 5); CREATE PUBLICATION schemas FOR TABLES IN SCHEMA public_too";

const CLASSES: &[&str] = &[
    "checks",
    "collations",
    "column options",
    "comments",
    "comments of indexes and constraints",
    "defaults",
    "event triggers",
    "foreign keys",
    "functions",
    "grants",
    "indexes",
    "keys",
    "partitioning",
    "policies",
    "publications",
    "replica identity",
    "row-level security",
    "rules",
    "statistics objects",
    "storage parameters",
    "triggers",
    "views",
];

fn objects(found: &[Value]) -> Vec<Value> {
    found.iter().filter_map(|finding| finding["objects"].as_array()).flatten().cloned().collect()
}

/// Ends a name with what is not seen, steers a terminal, reads backwards, or ends a quote.
const HIDDEN: &str = "\n\u{1b}[31m\u{202e}\u{e0001}$$\\";

/// The SQL with `end` at the end of each name in it that needs quotes.
fn with_ends(sql: &str, end: &str) -> String {
    let names = [
        "We\"\"ird T",
        "p 1",
        "sta\"\"mp",
        "o'c",
        "b\\s",
        "tri\"\"gger; --",
        "some rows",
        "v iew",
        "c'o",
        "st at",
        "plain idx",
        "new check",
        "ev ent",
        "pub lic",
    ];
    names.iter().fold(sql.to_owned(), |sql, name| {
        ["\"", "'"].iter().fold(sql, |sql, quote| {
            sql.replace(&format!("{quote}{name}{quote}"), &format!("{quote}{name}{end}{quote}"))
        })
    })
}

/// Lists, runs what is printed by hand, and lists again. Names that need quotes end with `end`.
async fn listed_and_made((from, to): (&Cluster, &Cluster), name: &str, end: &str) {
    let with_end = |sql: &str| with_ends(sql, end);
    let tables: Vec<String> =
        TABLES.iter().map(|table| with_end(table).parse::<QualifiedName>().expect("a table").to_string()).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let database = Database::under(Roles::Superuser, from, to, name, &tables, &with_end(SCHEMA)).await;
    if database.source_major().await == 14 {
        println!("what 14 has is listed by a test of its own");
        return;
    }
    if database.destination_major().await == 14 {
        println!("left out: what is printed is the source's, and 14 has no publications of some columns or rows");
        return;
    }
    database.at_destination("CREATE TABLE outside (id int PRIMARY KEY); INSERT INTO outside VALUES (1)").await;
    database.at_source("CREATE SCHEMA public_too").await;
    database.at_destination("CREATE SCHEMA public_too").await;
    let setup = Setup::of(&database);
    // Before the tables are there, what a copy brings is not listed; what it does not bring is.
    let early: BTreeSet<String> = objects(&findings(&setup).await).iter().map(|o| o["class"].to_string()).collect();
    assert!(
        early.contains("\"partitioning\"") && !early.contains("\"keys\"") && !early.contains("\"checks\""),
        "{early:?}"
    );
    let service = setup.start();
    service.streams().await;
    database.at_source(&with_end(CHANGES)).await;
    database.at_source(NEWER).await;
    let found = findings(&setup).await;
    let listed = objects(&found);
    let classes: BTreeSet<&str> = listed.iter().filter_map(|object| object["class"].as_str()).collect();
    let missing: Vec<&&str> = CLASSES.iter().filter(|class| !classes.contains(**class)).collect();
    assert!(missing.is_empty(), "{missing:?} are not in {classes:?}");
    let summary = |text: &str| {
        found.iter().any(|f| f["what"] == "not carried" && f["message"].as_str().unwrap_or_default().contains(text))
    };
    let trigger = match end {
        "" => "tri\"gger; --".to_owned(),
        end => Ident::new(format!("tri\"gger; --{end}")).to_string(),
    };
    assert!(summary(&format!("triggers: 2 not carried (off of public.t, {trigger} of public.t)")), "{found:?}");
    service.stop().await;

    let printed = setup.command(&["check", "--not-carried"]).await.exits(0).out;
    assert!(printed.chars().all(|c| is_printable(c) || c == '\n'), "{printed:?}");
    assert!(
        printed.starts_with(
            "-- What the source has and the destination has not, as text of the source's catalog. Read each"
        ),
        "{printed}"
    );
    println!("{printed}");
    // The roots stand as plain tables here: their partitions cannot be made.
    let by_hand: Vec<&str> = printed.split("\n\n").filter(|block| !block.starts_with("-- partitioning: ")).collect();
    database.at_destination(&by_hand.join("\n")).await;
    let left = objects(&findings(&setup).await);
    let left: Vec<&Value> = left.iter().filter(|object| object["class"] != "partitioning").collect();
    assert!(left.is_empty(), "made by what was printed, and still listed: {left:#?}");
    // As the servers see it, not as the list does.
    for sql in [
        "SELECT string_agg(pg_get_triggerdef(oid) || tgenabled::text, E'\\n' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = 't'::regclass AND NOT tgisinternal",
        "SELECT string_agg(pg_get_viewdef(oid) || reloptions::text, E'\\n' ORDER BY relname)
            FROM pg_class WHERE relkind IN ('v', 'm') AND relnamespace = 'public'::regnamespace",
        "SELECT string_agg(pg_get_functiondef(oid), E'\\n' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        "SELECT string_agg(description, E'\\n' ORDER BY description) FROM pg_description WHERE objoid IN ('t'::regclass, '\"We\"\"ird T\"'::regclass)",
        "SELECT string_agg(polname || pg_get_expr(polqual, polrelid) || pg_get_expr(polwithcheck, polrelid) || polcmd::text ||
            polpermissive::text, '') FROM pg_policy",
        "SELECT string_agg(pg_get_statisticsobjdef(oid), '') FROM pg_statistic_ext",
        "SELECT string_agg(pg_get_indexdef(indexrelid), E'\\n' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = 't'::regclass",
        "SELECT string_agg(conname || pg_get_constraintdef(oid), E'\\n' ORDER BY conname) FROM pg_constraint WHERE conrelid = 't'::regclass AND contype <> 'n'",
        "SELECT string_agg(pubname || tablename || COALESCE(rowfilter, ''), E'\\n' ORDER BY pubname, tablename)
            FROM pg_publication_tables WHERE pubname IN ('pub lic', 'part')",
        "SELECT relacl::text || reloptions::text FROM pg_class WHERE oid = 't'::regclass",
    ] {
        let sql = &with_end(sql);
        let (there, here) = (database.source_value(sql).await, database.destination_value(sql).await);
        assert!(there.is_some(), "{sql}");
        assert_eq!(there, here, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_carried_is_listed_with_the_sql_that_makes_it() {
    listed_and_made((source().await, destination().await), "notcarried", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_carried_is_printed_as_sql_that_runs_where_names_hide() {
    listed_and_made((source().await, destination().await), "notcarriedhidden", HIDDEN).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_is_not_carried_from_18_is_listed_with_the_sql_that_makes_it() {
    let Some(bin) = bin_of(18) else { return };
    let (from, to) = (new_source_of(&bin, &[]).await, new_destination_of(&bin, &[]).await);
    listed_and_made((&from, &to), "notcarried18", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_carried_from_14_is_listed() {
    let Some(bin) = bin_of(14) else { return };
    let from = new_source_of(&bin, &[]).await;
    let schema = format!(
        "{SCHEMA}; CREATE PUBLICATION one FOR TABLE t; CREATE FUNCTION made(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
         ALTER TABLE t ADD generated int GENERATED ALWAYS AS (made(1)) STORED"
    );
    let database = Database::under(Roles::Superuser, &from, destination().await, "notcarried14", TABLES, &schema).await;
    let found = findings(&Setup::of(&database)).await;
    for (class, name) in [("publications", "one"), ("functions", "public.made(integer)")] {
        assert!(
            objects(&found).iter().any(|object| object["class"] == class && object["name"] == name),
            "{class} {name}: {found:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_carried_is_listed_to_a_role_that_may_not_look_into_its_schema() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA hidden; CREATE VIEW hidden.b AS SELECT id FROM t;
        CREATE VIEW hidden.a AS SELECT id FROM hidden.b; CREATE FUNCTION hidden.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION hidden.f()";
    let roles = Roles::Least { replica: true };
    let database = Database::under(roles, source().await, destination().await, "notcarriedleast", &["t"], schema).await;
    let found = findings(&Setup::of(&database)).await;
    let listed = objects(&found);
    let names: Vec<&str> = listed.iter().filter(|o| o["class"] == "views").filter_map(|o| o["name"].as_str()).collect();
    assert_eq!(names, ["hidden.b", "hidden.a"], "one that reads another comes after it: {found:?}");
    assert!(listed.iter().any(|object| object["name"] == "hidden.f()"), "{found:?}");
}
