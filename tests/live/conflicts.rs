//! Rows that were changed at the destination: headwater stops and says so, or the source's rows win, or a transaction is left out.

use fastrand::Rng;

use crate::support::{Database, Service, Setup, eventually, seed};

const TABLES: &[&str] = &["public.items", "public.parts"];
const SCHEMA: &str = "
    CREATE TABLE items (id int PRIMARY KEY, code text UNIQUE, body text, place int);
    CREATE TABLE parts (item int REFERENCES items, n int, note text, PRIMARY KEY (item, n));
    INSERT INTO items SELECT i, 'code' || i, 's3cret' || i, i FROM generate_series(1, 20) i;
    INSERT INTO parts SELECT i, 1, 's3cret' FROM generate_series(1, 20) i;";

/// The end_lsn that the last conflict names.
fn named_lsn(log: &str, option: &str) -> String {
    let (_, rest) = log.rsplit_once(&format!("headwater skip --{option} ")).expect("the hint names the transaction");
    rest.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '/').collect()
}

/// One conflict: what was done at the destination, what the source then does, what must be said, and what mends it.
struct Case {
    at_destination: &'static str,
    at_source: &'static str,
    says: &'static [&'static str],
    mended: &'static str,
}

async fn is_told_and_mended(service: &Service, database: &Database, case: &Case) {
    let already = service.log().len();
    database.at_destination(case.at_destination).await;
    // A transaction before and one behind: nothing overtakes the one that fails.
    database.at_source("UPDATE items SET place = place + 1 WHERE id = 20").await;
    database.at_source(case.at_source).await;
    database.at_source("UPDATE items SET place = place + 1000 WHERE id = 20").await;
    eventually(&format!("headwater waits and says {:?}", case.says), || async {
        let log = service.log();
        let status = service.status().await?;
        let told = case.says.iter().all(|text| log[already..].contains(text));
        (told && status.get("state")?.as_str()? == "waiting").then_some(())
    })
    .await;
    assert_eq!(service.get("/readyz").await.map(|(code, _)| code), Some(503), "not ready while it waits");
    let behind = "SELECT (place >= 1000)::text FROM items WHERE id = 20";
    assert_eq!(database.destination_value(behind).await.as_deref(), Some("false"), "nothing overtakes");
    database.at_destination(case.mended).await;
    service.streams().await;
    database.assert_catches_up().await;
    database.at_source("UPDATE items SET place = 20 WHERE id = 20").await;
    database.caught_up().await;
    let log = service.log();
    assert!(!log.contains("s3cret"), "no value is told:\n{log}");
    let told = log[already..].matches("ERROR").count();
    assert!(told <= 2, "the reason is told once, not {told} times, however often it is tried again:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn every_conflict_stops_is_told_without_values_and_goes_on_once_it_is_mended() {
    let database = Database::new("conflicts", TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let cases = [
        Case {
            at_destination: "INSERT INTO items VALUES (101, 'code101', 's3cret', 0)",
            at_source: "INSERT INTO items VALUES (101, 'new', 's3cret', 0)",
            says: &[
                "insert on table public.items (key id)",
                "items_pkey (id)",
                "end_lsn",
                "source-wins",
                "skip --end-lsn",
            ],
            mended: "DELETE FROM items WHERE id = 101",
        },
        Case {
            at_destination: "DELETE FROM parts WHERE item = 2; DELETE FROM items WHERE id = 2",
            at_source: "UPDATE items SET body = 's3cret!' WHERE id = 2",
            says: &["update on table public.items (key id): the row to update does not exist", "Insert it there again"],
            mended: "INSERT INTO items VALUES (2, 'code2', 'old', 2); INSERT INTO parts VALUES (2, 1, 's3cret')",
        },
        Case {
            at_destination: "UPDATE items SET code = 's3cret' WHERE id = 3",
            at_source: "INSERT INTO items VALUES (104, 's3cret', 'b', 0)",
            says: &["insert on table public.items", "items_code_key (code)"],
            mended: "UPDATE items SET code = 'code3' WHERE id = 3",
        },
        Case {
            at_destination: "ALTER TABLE items ADD CONSTRAINT short CHECK (length(body) < 20)",
            at_source: "UPDATE items SET body = 's3cret and longer than that' WHERE id = 4",
            says: &["update on table public.items", "ALTER TABLE public.items DROP CONSTRAINT short;"],
            mended: "ALTER TABLE items DROP CONSTRAINT short",
        },
        Case {
            at_destination: "ALTER TABLE items ALTER COLUMN body SET NOT NULL",
            at_source: "UPDATE items SET body = NULL WHERE id = 5",
            says: &["update on table public.items", "ALTER TABLE public.items ALTER COLUMN body DROP NOT NULL;"],
            mended: "ALTER TABLE items ALTER COLUMN body DROP NOT NULL",
        },
        Case {
            at_destination: "ALTER TABLE items ADD CONSTRAINT apart EXCLUDE USING btree (body WITH =)",
            at_source: "UPDATE items SET body = 's3cret7' WHERE id = 6",
            says: &["update on table public.items", "apart (body)"],
            mended: "ALTER TABLE items DROP CONSTRAINT apart",
        },
        Case {
            at_destination: "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE 'not %', NEW.body USING ERRCODE = '23514', CONSTRAINT = NEW.body; END $$;
                CREATE TRIGGER refuse BEFORE UPDATE ON items FOR EACH ROW WHEN (NEW.id = 7) EXECUTE FUNCTION refuse();
                ALTER TABLE items ENABLE ALWAYS TRIGGER refuse",
            at_source: "UPDATE items SET body = 's3cret7' WHERE id = 7",
            says: &["update on table public.items (key id)", "an exception was raised in a function or trigger"],
            mended: "DROP TRIGGER refuse ON items; DROP FUNCTION refuse",
        },
        Case {
            at_destination: "INSERT INTO parts VALUES (8, 9, 's3cret')",
            at_source: "UPDATE parts SET n = 9 WHERE item = 8",
            says: &["update on table public.parts (key item, n)", "parts_pkey (item, n)"],
            mended: "DELETE FROM parts WHERE item = 8 AND n = 9",
        },
    ];
    for case in &cases {
        is_told_and_mended(&service, &database, case).await;
    }
    let metric = "headwater_conflicts_total{kind=\"unique_violation\",table=\"public.items\"}";
    assert_eq!(service.metric(metric).await, Some(2.0), "each conflict counts once, however often it is tried");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn foreign_keys_policies_and_privileges_stop_a_role_that_they_bind() {
    let database = Database::of_superuser("bound", TABLES, SCHEMA).await;
    let role = format!("bound_{:08x}", fastrand::u32(..));
    database
        .at_destination(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role}; GRANT ALL ON SCHEMA public TO {role}",
            database.name
        ))
        .await;
    let mut setup = Setup::of(&database);
    setup.destination_url = setup.destination_url.replacen("postgres@", &format!("{role}@"), 1);
    assert!(setup.destination_url.contains(&role));
    let service = setup.start();
    service.streams().await;
    // What the service created is its role's; an administrator takes it over and binds the role.
    database.at_destination("ALTER TABLE items OWNER TO postgres; ALTER TABLE parts OWNER TO postgres").await;
    let grant = format!("GRANT ALL ON items, parts TO {role}");
    database.at_destination(&grant).await;
    let cases = [
        Case {
            at_destination: "DELETE FROM parts WHERE item = 1; DELETE FROM items WHERE id = 1",
            at_source: "INSERT INTO parts VALUES (1, 2, 's3cret')",
            says: &["table public.parts", "violates foreign key constraint", "parts_item_fkey (item)"],
            mended: "INSERT INTO items VALUES (1, 'code1', 's3cret1', 1); INSERT INTO parts VALUES (1, 1, 's3cret')",
        },
        Case {
            at_destination: "ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON items USING (id < 100) WITH CHECK (id < 100)",
            at_source: "INSERT INTO items VALUES (301, 'code301', 's3cret', 0)",
            says: &["on table public.items", "would be affected by row-level security policy", "BYPASSRLS"],
            mended: "ALTER TABLE items DISABLE ROW LEVEL SECURITY",
        },
    ];
    for case in &cases {
        is_told_and_mended(&service, &database, case).await;
    }
    database.at_destination(&format!("REVOKE UPDATE ON parts FROM {role}")).await;
    database.at_source("UPDATE parts SET note = 's3cret!' WHERE item = 3").await;
    service.says("permission denied for table parts").await;
    let printed = "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON public.parts";
    service.says(printed).await;
    let log = service.log();
    database.at_destination(log.lines().find(|line| line.contains(printed)).expect("the statement")).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_source_wins_whatever_was_changed_here_ends_as_the_source_has_it() {
    let seed = seed("with_source_wins");
    // Where foreign keys act they refuse what drifted, and no row of the source's can win over that: docs/conflicts.md says so.
    let database = Database::with_replica_role("wins", TABLES, SCHEMA).await;
    let service = Setup::of(&database).setting("on_conflict = \"source-wins\"").start();
    service.streams().await;
    database.at_destination("ALTER TABLE items ADD COLUMN mine text DEFAULT 'local'").await;
    let mut rng = Rng::with_seed(seed);
    for _ in 0..6 {
        let before = database.source_value("SELECT array_agg(id)::text FROM items").await.unwrap();
        // Any drift: rows that are gone, changed, or there too much, in keys and in other unique values.
        let mut drift = vec!["SET session_replication_role = replica".to_owned()];
        for _ in 0..rng.usize(1..15) {
            let (id, other) = (rng.u32(1..40), rng.u32(1..40));
            drift.push(match rng.u32(..6) {
                0 => format!("DELETE FROM items WHERE id = {id}"),
                1 => format!("UPDATE items SET body = 'drift', place = -1 WHERE id = {id}"),
                2 => format!("INSERT INTO items VALUES ({id}, 'drift{id}', 'drift', 0) ON CONFLICT DO NOTHING"),
                3 => format!(
                    "UPDATE items SET code = 'code{other}' WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE code = 'code{other}')"
                ),
                4 => format!("INSERT INTO parts VALUES ({id}, {}, 'drift') ON CONFLICT DO NOTHING", rng.u32(1..4)),
                _ => format!("DELETE FROM parts WHERE item = {id}"),
            });
        }
        drift.push("RESET session_replication_role".to_owned());
        database.at_destination(&drift.join("; ")).await;
        // The source touches every key that drifted, in transactions of its own kinds.
        let mut ids: Vec<u32> = (1..40).collect();
        rng.shuffle(&mut ids);
        for some in ids.chunks(rng.usize(1..12)) {
            let mut script = vec!["BEGIN".to_owned()];
            for id in some {
                let n = rng.u32(..1000);
                script.push(format!("DELETE FROM parts WHERE item = {id}"));
                script.push(match rng.u32(..4) {
                    0 => format!("DELETE FROM items WHERE id = {id}"),
                    1 => format!("UPDATE items SET body = 'b{n}' WHERE id = {id}"),
                    2 => format!("UPDATE items SET id = {id} + 100 WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE id = {id} + 100)"),
                    _ => format!("UPDATE items SET code = 'code{n}', place = {n} WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE code = 'code{n}')"),
                });
                script.push(format!(
                    "INSERT INTO items SELECT {id}, 'code{id}', 'new', {n} WHERE NOT EXISTS (SELECT FROM items WHERE id = {id} OR code = 'code{id}')"
                ));
                script.push(format!("UPDATE items SET place = {n} WHERE id = {id}"));
                script.push(format!(
                    "INSERT INTO parts SELECT id, i, 'p{n}' FROM items, generate_series(1, 3) i WHERE id = {id}"
                ));
            }
            script.push("COMMIT".to_owned());
            database.at_source(&script.join("; ")).await;
        }
        database.at_source("UPDATE items SET place = place + 1").await;
        database.caught_up().await;
        // Each row that the source had or has was touched; what it never had is nobody's business.
        let after = database.source_value("SELECT array_agg(id)::text FROM items").await.unwrap();
        let items = format!(
            "SELECT string_agg(i::text, E'\\n' ORDER BY id) FROM (SELECT id, code, body, place FROM items
             WHERE id = ANY ('{before}') OR id = ANY ('{after}')) i"
        );
        let parts =
            format!("SELECT string_agg(p::text, ',' ORDER BY item, n) FROM parts p WHERE item = ANY ('{after}')");
        for sql in [items, parts] {
            assert_eq!(database.source_value(&sql).await, database.destination_value(&sql).await, "{sql}");
        }
        let mine = format!("SELECT bool_and(mine = 'local')::text FROM items WHERE id = ANY ('{after}')");
        assert_eq!(database.destination_value(&mine).await.as_deref(), Some("true"), "local columns stay");
        database
            .at_destination(&format!(
                "SET session_replication_role = replica; DELETE FROM items WHERE id <> ALL ('{after}');
                 DELETE FROM parts WHERE item <> ALL ('{after}'); RESET session_replication_role"
            ))
            .await;
    }
    // Whatever chance has drawn, a row was missing once: both sides have it before it goes here, so that its update comes alone.
    database.at_source("INSERT INTO items VALUES (1, 'one') ON CONFLICT (id) DO UPDATE SET place = 1").await;
    database.caught_up().await;
    database
        .at_destination(
            "SET session_replication_role = replica; DELETE FROM items WHERE id = 1; RESET session_replication_role",
        )
        .await;
    database.at_source("UPDATE items SET place = 2 WHERE id = 1").await;
    database.caught_up().await;
    let repaired = service.metric("headwater_conflicts_total{kind=\"missing_row\",table=\"public.items\"}").await;
    assert!(repaired > Some(0.0), "{repaired:?}");
    assert_eq!(service.metric("headwater_state{state=\"waiting\"}").await, Some(0.0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn source_wins_removes_a_rival_only_where_the_source_cannot_have_it() {
    let database = Database::new("rivals", TABLES, SCHEMA).await;
    let service = Setup::of(&database).setting("on_conflict = \"source-wins\"").start();
    service.streams().await;
    // A unique key that only the destination has: both rows are the source's.
    database.at_destination("CREATE UNIQUE INDEX only_here ON items (place)").await;
    database.at_source("INSERT INTO items VALUES (500, 'code500', 'b', 7)").await;
    service.is("waiting").await;
    service.says("only_here (place)").await;
    assert_eq!(database.destination_value("SELECT count(*)::text FROM items WHERE id = 7").await.as_deref(), Some("1"));
    database.at_destination("DROP INDEX only_here").await;
    service.streams().await;
    database.assert_catches_up().await;
    // A missing row whose large value the stream does not send is not made up.
    database
        .at_source("ALTER TABLE items ALTER COLUMN body SET STORAGE EXTERNAL; UPDATE items SET body = repeat('x', 9000) WHERE id = 9")
        .await;
    database.caught_up().await;
    database
        .at_destination(
            "SET session_replication_role = replica; DELETE FROM items WHERE id = 9; RESET session_replication_role",
        )
        .await;
    database.at_source("UPDATE items SET place = 99 WHERE id = 9").await;
    service.is("waiting").await;
    service.says("the row to update does not exist").await;
    database.at_destination("INSERT INTO items VALUES (9, 'code9', repeat('x', 9000), 9)").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_skipped_transaction_is_kept_whole_shown_and_replayed() {
    let database = Database::new("skip", TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_destination("INSERT INTO items VALUES (101, 'taken', 'mine', 0)").await;
    database.at_source("UPDATE items SET place = 50 WHERE id = 5").await;
    database
        .at_source(
            "BEGIN; INSERT INTO items VALUES (100, 'code100', 's3cret', 0), (101, 'code101', 's3cret', 1);
             UPDATE items SET body = 'changed' WHERE id = 1; DELETE FROM parts WHERE item = 2; COMMIT;
             UPDATE items SET place = 60 WHERE id = 6",
        )
        .await;
    service.is("waiting").await;
    service.says("headwater skip --end-lsn").await;
    let end_lsn = named_lsn(&service.log(), "end-lsn");
    let (code, text) = service.command(&["skip", "--end-lsn", "0/1"]).await;
    assert_eq!((code, text.contains("was applied already")), (Some(1), true), "{text}");
    let (code, text) = service.command(&["skip", "--end-lsn", &end_lsn]).await;
    assert_eq!(code, Some(0), "{text}");
    service.streams().await;
    database.caught_up().await;
    service.says("was left out, as asked").await;
    // What was around it is there, nothing of it is.
    for (sql, expected) in [
        ("SELECT place::text FROM items WHERE id = 5", "50"),
        ("SELECT place::text FROM items WHERE id = 6", "60"),
        ("SELECT count(*)::text FROM items WHERE id = 100", "0"),
        ("SELECT body FROM items WHERE id = 1", "s3cret1"),
        ("SELECT count(*)::text FROM parts WHERE item = 2", "1"),
        ("SELECT count(*)::text FROM headwater.skip", "0"),
    ] {
        assert_eq!(database.destination_value(sql).await.as_deref(), Some(expected), "{sql}");
    }
    let (code, list) = service.command(&["dead-letter", "list"]).await;
    assert_eq!(code, Some(0));
    assert!(list.contains(&end_lsn) && list.contains("4 changes of public.items, public.parts"), "{list}");
    let (_, shown) = service.command(&["dead-letter", "show", "--end-lsn", &end_lsn]).await;
    assert!(
        shown.contains("insert into public.items: (id, code, body, place)") && !shown.contains("s3cret"),
        "{shown}"
    );
    let (_, shown) = service.command(&["dead-letter", "show", "--values", "--end-lsn", &end_lsn]).await;
    assert!(
        shown.contains("insert into public.items: (id = '100', code = 'code100', body = 's3cret', place = '0')"),
        "{shown}"
    );
    assert!(shown.contains("delete from public.parts: (item = '2', n = '1')"), "{shown}");

    let (code, text) = service.command(&["replay", "--end-lsn", &end_lsn]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the insert into public.items fails") && text.contains("items_pkey"), "{text}");
    assert_eq!(
        database.destination_value("SELECT count(*)::text FROM items WHERE id = 100").await.as_deref(),
        Some("0")
    );
    let (code, text) = service.command(&["replay", "--source-wins", "--end-lsn", &end_lsn]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("4 changes")
            && text.contains("public.items: 1 row with a conflict (unique_violation), now equal"),
        "{text}"
    );
    database.assert_catches_up().await;
    let (_, list) = service.command(&["dead-letter", "list"]).await;
    assert!(list.contains("no transaction was left out"), "{list}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn conflict_show_prints_the_change_and_the_rows_of_both_ends_and_nothing_else_does() {
    let schema = "CREATE TYPE mood AS ENUM ('calm', 's3cret mood'); CREATE DOMAIN small AS int CHECK (VALUE < 1000);
        CREATE TABLE items (id int PRIMARY KEY, code text UNIQUE, feels mood, size small, tags mood[], at point);
        CREATE TABLE parts (item int REFERENCES items, n int, note text, PRIMARY KEY (item, n));
        INSERT INTO items SELECT i, 'code' || i, 'calm', i FROM generate_series(1, 5) i;";
    let database = Database::with_replica_role("shown", TABLES, schema).await;
    let setup = Setup::of(&database);
    let service = setup.clone().start();
    service.streams().await;
    let (code, text) = service.command(&["conflict", "show"]).await;
    assert_eq!((code, text.contains("no conflict halts the service")), (Some(0), true), "{text}");

    // Another row holds the unique value; the key itself is free.
    database.at_destination("UPDATE items SET code = 's3cret code' WHERE id = 3").await;
    database
        .at_source("INSERT INTO items VALUES (104, 's3cret code', 's3cret mood', 7, '{calm,s3cret mood}', '(1,2)')")
        .await;
    service.is("waiting").await;
    service.says("headwater conflict show").await;
    eventually_shown(&service, "unique_violation").await;
    database.at_source("UPDATE items SET size = 8 WHERE id = 104").await;
    let (code, text) = service.command(&["conflict", "show"]).await;
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "unique_violation on public.items",
        "insert (id = '104', code = 's3cret code', feels = 's3cret mood', size = '7',",
        "at the destination now, by key (id):\n  no row",
        "at the destination now, by unique index items_code_key (code):\n  (id = '3', code = 's3cret code', feels = 'calm', size = '3', tags = NULL, at = NULL)",
        "at the source now, by key (id):\n  (id = '104', code = 's3cret code', feels = 's3cret mood', size = '8', tags = '{calm,\"s3cret mood\"}', at = '(1,2)')",
        "headwater skip --",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    let page = service.get("/status").await.unwrap().1 + &service.get("/metrics").await.unwrap().1;
    assert!(!service.log().contains("s3cret") && !page.contains("s3cret"), "values are shown by the command alone");
    database.at_destination("UPDATE items SET code = 'code3' WHERE id = 3").await;
    service.streams().await;
    database.assert_catches_up().await;
    eventually_forgotten(&database).await;

    // A missing row.
    database.at_destination("DELETE FROM items WHERE id = 4").await;
    database.at_source("UPDATE items SET code = 'new' WHERE id = 4").await;
    service.is("waiting").await;
    eventually_shown(&service, "missing_row").await;
    let (_, text) = service.command(&["conflict", "show", "--full"]).await;
    assert!(text.contains("update (id = '4', code = 'new'") && text.contains("by key (id):\n  no row"), "{text}");
    database.at_destination("INSERT INTO items VALUES (4, 'code4', 'calm', 4)").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    setup.command(&["conflict", "show"]).await.exits(0).says(&["no conflict"]);
}

/// Waits until the service has kept a conflict of this kind for the command.
async fn eventually_shown(service: &Service, kind: &str) {
    eventually(&format!("conflict show knows the conflict ({kind})"), || async {
        let (code, text) = service.command(&["conflict", "show"]).await;
        (code == Some(1) && text.contains(kind)).then_some(())
    })
    .await;
}

async fn eventually_forgotten(database: &Database) {
    eventually("the conflict's values are removed once it is passed", || async {
        let rows = database.destination_value("SELECT count(*)::text FROM headwater.open_conflict").await?;
        (rows == "0").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_wakes_a_halted_service_and_is_listed_until_it_is_done() {
    let database = Database::new("wakes", TABLES, SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_destination("INSERT INTO items VALUES (101, 'taken', 'mine', 0)").await;
    database.at_source("INSERT INTO items VALUES (101, 'code101', 's3cret', 1)").await;
    service.is("waiting").await;
    service.says("headwater skip --end-lsn").await;
    let end_lsn = named_lsn(&service.log(), "end-lsn");
    // A wish for a transaction that has not come is listed as pending.
    let (code, text) = service.command(&["skip", "--end-lsn", "FFFFFFFF/1"]).await;
    assert_eq!(code, Some(0), "{text}");
    let (_, list) = service.command(&["dead-letter", "list"]).await;
    assert!(list.contains("end_lsn FFFFFFFF/1, pending: skip requested"), "{list}");
    let (code, text) = service.command(&["skip", "--end-lsn", &end_lsn]).await;
    assert_eq!(code, Some(0), "{text}");
    service.streams().await;
    service.says("was left out, as asked").await;
    let (_, list) = service.command(&["dead-letter", "list"]).await;
    assert!(list.contains(&format!("end_lsn {end_lsn}, commit_lsn")), "{list}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_large_transactions_conflict_is_told_skipped_or_won_as_well() {
    let database = Database::new("largeconflict", TABLES, SCHEMA).await;
    let small = "[apply]\nbatch_bytes_max = \"64kB\"";
    let large = "BEGIN; INSERT INTO items SELECT i, 'code' || i, 's3cret', 1 FROM generate_series(1000, 6000) i;
         UPDATE items SET place = 2 WHERE id BETWEEN 1000 AND 6000; COMMIT; UPDATE items SET place = 77 WHERE id = 7";
    let service = Setup::of(&database).section(small).start();
    service.streams().await;
    database.at_destination("INSERT INTO items VALUES (5500, 'taken', 'mine', 0)").await;
    database.at_source(large).await;
    service.is("waiting").await;
    service.says("insert on table public.items (key id)").await;
    let commit_lsn = named_lsn(&service.log(), "commit-lsn");
    assert_ne!(commit_lsn, "0/0");
    let (code, text) = service.command(&["skip", "--commit-lsn", &commit_lsn]).await;
    assert_eq!(code, Some(0), "{text}");
    service.streams().await;
    database.caught_up().await;
    let rows = "SELECT count(*)::text FROM items WHERE id BETWEEN 1000 AND 6000";
    assert_eq!(database.destination_value(rows).await.as_deref(), Some("1"));
    assert_eq!(database.destination_value("SELECT place::text FROM items WHERE id = 7").await.as_deref(), Some("77"));
    let letter = "SELECT count(DISTINCT end_lsn)::text || ' ' || sum(changes)::text FROM headwater.dead_letter";
    assert_eq!(database.destination_value(letter).await.as_deref(), Some("1 10002"), "all parts, with one end_lsn");
    let (code, text) = service.command(&["replay", "--source-wins", "--commit-lsn", &commit_lsn]).await;
    assert_eq!(code, Some(0), "{text}");
    database.assert_catches_up().await;
    service.stop().await;

    let service = Setup::of(&database).section(small).setting("on_conflict = \"source-wins\"").start();
    service.streams().await;
    database.at_source("DELETE FROM items WHERE id >= 1000").await;
    database.caught_up().await;
    database.at_destination("INSERT INTO items VALUES (5500, 'taken', 'mine', 0)").await;
    database.at_source(large).await;
    database.assert_catches_up().await;
    let metric = "headwater_conflicts_total{kind=\"unique_violation\",table=\"public.items\"}";
    assert!(service.metric(metric).await >= Some(1.0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_composed_of_a_servers_own_types_are_shown_kept_and_replayed() {
    let schema = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, m mood);
        CREATE TABLE items (id int PRIMARY KEY, m mood[], p pair, list pair[])";
    let database = Database::with_replica_role("composedletter", &["items"], schema).await;
    // OIDs of user types differ between the servers.
    database.at_destination("CREATE TYPE spare AS ENUM ('a')").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.at_destination("INSERT INTO items VALUES (1, '{sad}', NULL, NULL)").await;
    database.at_source("INSERT INTO items VALUES (1, '{ok,NULL}', '(7,sad)', ARRAY[ROW(8, 'ok')::pair])").await;
    service.is("waiting").await;
    let row = r#"insert (id = '1', m = '{ok,NULL}', p = '(7,sad)', list = '{"(8,ok)"}')"#;
    eventually("conflict show prints the row", || async {
        let (_, text) = service.command(&["conflict", "show"]).await;
        text.contains(row).then_some(())
    })
    .await;
    let end_lsn = named_lsn(&service.log(), "end-lsn");
    let (code, text) = service.command(&["skip", "--end-lsn", &end_lsn]).await;
    assert_eq!(code, Some(0), "{text}");
    service.streams().await;
    database.caught_up().await;
    let (_, shown) = service.command(&["dead-letter", "show", "--values", "--end-lsn", &end_lsn]).await;
    assert!(shown.contains(r#"m = '{ok,NULL}', p = '(7,sad)', list = '{"(8,ok)"}'"#), "{shown}");
    let (code, text) = service.command(&["replay", "--source-wins", "--end-lsn", &end_lsn]).await;
    assert_eq!(code, Some(0), "{text}");
    database.assert_catches_up().await;
    service.stop().await;
}
