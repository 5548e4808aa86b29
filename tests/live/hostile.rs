//! A source that means ill: nothing of what it says runs at the destination, and nothing that it says fills the memory.

use crate::support::{Database, Setup, eventually};

/// At the destination: whoever calls `pwn` is seen. It bears the name of a function that the source's definitions call.
const TRAP: &str = "
    CREATE TABLE pwned (how text);
    CREATE FUNCTION pwn(how text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO public.pwned VALUES (how); RETURN how; END $$;
    CREATE TABLE victim (id int PRIMARY KEY); INSERT INTO victim VALUES (1);
    CREATE COLLATION \"c\"\" FROM \"\"C\"\"; SELECT pwn('collation'); --\" (provider = icu, locale = 'en');";

/// What the source's names say.
const EVIL: &str = "\"x'); DROP TABLE victim; SELECT pwn('name'); --\"";

/// Names, types, defaults, checks, collations, indexes and comments, each with SQL in it.
fn schema() -> String {
    format!(
        r#"
    CREATE FUNCTION pwn(how text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT how';
    CREATE COLLATION "c"" FROM ""C""; SELECT pwn('collation'); --" (provider = icu, locale = 'en');
    CREATE TYPE "e'; SELECT pwn('enum'); --" AS ENUM ('a''); SELECT pwn(''label''); --', '$1', '"\');
    CREATE DOMAIN "d"" ; SELECT pwn('domain'); --" AS text DEFAULT pwn('domain default') CHECK (pwn('domain check') = VALUE OR true);
    CREATE TYPE "r;--" AS ("f""; SELECT pwn('field'); --" text, "g" int);
    CREATE TABLE {EVIL} (
        id int PRIMARY KEY,
        {EVIL} text DEFAULT pwn('default') COLLATE "c"" FROM ""C""; SELECT pwn('collation'); --",
        "e" "e'; SELECT pwn('enum'); --" DEFAULT 'a''); SELECT pwn(''label''); --',
        "d" "d"" ; SELECT pwn('domain'); --",
        "r" "r;--",
        "said" text DEFAULT ''' || pwn(''quoted'') || ''',
        "when" timestamptz DEFAULT (now() + (length(pwn('nested')) || ' days')::interval),
        CONSTRAINT "k"";SELECT pwn('constraint');--" CHECK (pwn('check') IS NOT NULL),
        UNIQUE (id, {EVIL})
    );
    CREATE UNIQUE INDEX "i"";SELECT pwn('index');--" ON {EVIL} ((pwn({EVIL})), id) WHERE pwn('where') IS NOT NULL;
    COMMENT ON TABLE {EVIL} IS $$it's; SELECT pwn('comment'); --\'; SELECT pwn('comment')$$;
    COMMENT ON COLUMN {EVIL}.{EVIL} IS $$'; SELECT pwn('comment'); --$$;
    INSERT INTO {EVIL} (id, {EVIL}) SELECT i, $$'; SELECT pwn('value'); --$$ FROM generate_series(1, 50) i;"#
    )
}

async fn nothing_has_run(database: &Database) {
    let seen = "SELECT COALESCE(string_agg(DISTINCT how, ', '), 'nothing') FROM pwned";
    assert_eq!(database.destination_value(seen).await.as_deref(), Some("nothing"));
    assert_eq!(database.destination_value("SELECT count(*)::text FROM victim").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn nothing_that_the_source_says_is_run_at_the_destination() {
    let mut database = Database::of_superuser("hostile", &[], &schema()).await;
    database.tables = vec![format!("public.{EVIL}")];
    database.at_destination(TRAP).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    nothing_has_run(&database).await;
    // The same in the stream: rows, names of new columns, defaults that were evaluated there, labels, indexes, messages.
    for change in [
        format!(
            "UPDATE {EVIL} SET {EVIL} = $$'); SELECT pwn('update'); --$$ || id, said = $$\\'; DROP TABLE victim; --$$ WHERE id < 20"
        ),
        format!(
            "ALTER TABLE {EVIL} ADD COLUMN \"n\"\" int; SELECT pwn('new'); --\" text DEFAULT '''||pwn(''new default'')||'''"
        ),
        format!("ALTER TABLE {EVIL} RENAME COLUMN d TO \"d\"\"; SELECT pwn('renamed'); --\""),
        "ALTER TYPE \"e'; SELECT pwn('enum'); --\" ADD VALUE '''; SELECT pwn(''new label''); --'".to_owned(),
        format!("INSERT INTO {EVIL} (id, e) VALUES (100, '''; SELECT pwn(''new label''); --')"),
        format!("CREATE UNIQUE INDEX \"u\"\";SELECT pwn('new index');--\" ON {EVIL} (id, said, (pwn(said)))"),
        format!("DELETE FROM {EVIL} WHERE id IN (3, 4)"),
        "SELECT pg_logical_emit_message(true, 'headwater', '''; SELECT pwn(''message''); --')".to_owned(),
        format!("UPDATE {EVIL} SET id = id + 1000 WHERE id = 7"),
    ] {
        database.at_source(&change).await;
    }
    database.assert_catches_up().await;
    nothing_has_run(&database).await;
    // What headwater writes to look, to compare and to put right is SQL, too.
    let setup = Setup::of(&database);
    setup.command(&["verify"]).await.exits(0);
    database.at_destination(&format!("DELETE FROM {EVIL} WHERE id = 9")).await;
    setup.command(&["verify", "--repair"]).await.exits(0);
    setup.command(&["explain"]).await;
    service.stop().await;
    let service = Setup::of(&database).argument("--resnapshot").start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    nothing_has_run(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_names_of_absurd_length_are_bounded() {
    let name = "n".repeat(63);
    let schema = format!("CREATE TABLE {name} (id int PRIMARY KEY, {name} text); INSERT INTO {name} VALUES (1, 'x')");
    let mut database = Database::new("absurd", &[], &schema).await;
    database.tables = vec![name.clone()];
    let service = Setup::of(&database).quiet().start();
    service.streams().await;
    let before = service.resident_max_bytes();
    // 200 MB of messages, in our own words and in others', inside transactions and outside.
    for n in 0..20 {
        let prefix = ["headwater", "other"][n % 2];
        let message = format!("SELECT pg_logical_emit_message({}, '{prefix}', repeat('x', 10 << 20))", n % 4 < 2);
        database.at_source(&message).await;
    }
    let prefix = "p".repeat(1 << 20);
    database.at_source(&format!("SELECT pg_logical_emit_message(false, '{prefix}', 'x')")).await;
    database.at_source(&format!("UPDATE {name} SET {name} = 'after'")).await;
    database.assert_catches_up().await;
    eventually("it streams", || async { (service.status().await?["state"] == "streaming").then_some(()) }).await;
    let grown = service.resident_max_bytes().saturating_sub(before);
    println!("{} MB more for 200 MB of messages", grown >> 20);
    assert!(grown < 80 << 20, "{grown} bytes more for messages that nobody keeps");
    assert!(!service.log().contains("xxxxxxxx") && !service.log().contains("pppppppp"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_nowhere_to_be_seen() {
    let database = Database::of_superuser("hidden", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    // Trust asks for none; what is given is kept all the same.
    let with = |url: &str| format!("{url}{}password=sEcrEt-in-the-url", if url.contains('?') { "&" } else { "?" });
    let mut setup = Setup::of(&database);
    setup.source_url = with(&setup.source_url);
    setup.destination_url = with(&setup.destination_url);
    setup.environment.push(("HEADWATER_SOURCE_URL".to_owned(), setup.source_url.clone()));
    setup.environment.push(("PGPASSWORD".to_owned(), "sEcrEt-in-the-environment".to_owned()));
    let service = setup.start();
    service.streams().await;
    let title = std::fs::read(format!("/proc/{}/cmdline", service.process_id())).unwrap();
    let threads = std::fs::read_dir(format!("/proc/{}/task", service.process_id())).unwrap();
    let names = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap_or_default());
    let mut shown = vec![String::from_utf8_lossy(&title).into_owned(), names.collect::<Vec<_>>().join(" ")];
    for session in [&database.source, &database.destination] {
        let sql =
            "SELECT string_agg(application_name || query, ' ') FROM pg_stat_activity WHERE datname = current_database()
                   AND pid <> pg_backend_pid()";
        let row = session.query_one("looking", sql, &[]).await.unwrap();
        shown.push(row.get::<Option<String>>(0).unwrap().unwrap_or_default());
    }
    for path in ["/", "/status", "/metrics", "/readyz", "/rolloutz", "/healthz"] {
        shown.push(service.get(path).await.unwrap().1);
    }
    for command in [&["check"][..], &["status"], &["explain"], &["verify"]] {
        let finished = setup.command(command).await;
        shown.push(finished.out + &finished.err);
    }
    // Whatever headwater has written down at the destination.
    let tables =
        "SELECT string_agg(query_to_xml(format('SELECT * FROM headwater.%I', relname), true, true, '')::text, '')
                  FROM pg_class WHERE relnamespace = 'headwater'::regnamespace AND relkind = 'r'";
    shown.push(database.destination_value(tables).await.unwrap());
    shown.push(service.log());
    assert!(shown.iter().all(|text| !text.is_empty()), "{shown:?}");
    for text in &shown {
        assert!(!text.contains("sEcrEt"), "{text}");
    }
    service.stop().await;
}
