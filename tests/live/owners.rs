//! Code of others at the destination: found before it is run with headwater's rights, refused, named, accepted where asked.
//!
//! headwater connects as the least-privilege role of docs/roles.md, which is a member of the role that owns the tables.

use crate::support::roles::{owner, writer};
use crate::support::strangers::{as_owner, cannot_grant_parameters, new, new_at, nobody_was_pwned};
use crate::support::{Database, Script, Setup, bin_of, eventually, new_destination_of, parent};

const TABLES: &[&str] = &["t"];
const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')";

/// The SQL of a hint: what comes after its first line.
fn statements(hint: &str) -> String {
    hint.split_once('\n').map(|(_, sql)| sql.to_owned()).unwrap_or_default()
}

/// The statements that hand the bookkeeping over, of what a start has printed.
fn handing_over(output: &str) -> String {
    let (_, sql) = output.split_once("to hand its bookkeeping over:\n").expect("statements");
    sql.lines().map(str::trim).take_while(|line| line.starts_with("ALTER ")).collect::<Vec<_>>().join("\n")
}

/// What `check` says of foreign code: its message, detail and hint.
async fn finding(setup: &Setup) -> Option<[String; 3]> {
    let finished = setup.command(&["check", "--json"]).await;
    let findings: serde_json::Value = serde_json::from_str(&finished.out).expect("a list");
    let found = findings.as_array()?.iter().find(|finding| finding["what"] == "code")?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (found["standing"] == "failed").then(|| [text("message"), text("detail"), text("hint")])
}

/// A way to attach code, and what is said of it.
struct Way {
    name: &'static str,
    replica: bool,
    sql: &'static str,
    says: &'static str,
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

const WAYS: &[Way] = &[
    Way {
        name: "always",
        replica: true,
        sql: "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pwn_trigger(); ALTER TABLE t ENABLE ALWAYS TRIGGER x",
        says: "trigger x of table public.t calls public.pwn_trigger()",
    },
    Way {
        name: "ordinary",
        replica: false,
        sql: "CREATE TRIGGER x AFTER DELETE ON t FOR EACH STATEMENT EXECUTE FUNCTION pwn_trigger()",
        says: "Ordinary triggers fire because headwater's role may not set session_replication_role",
    },
    Way {
        name: "when",
        replica: true,
        sql: "CREATE TRIGGER x BEFORE UPDATE ON t FOR EACH ROW WHEN (pwn(NEW.v)) EXECUTE FUNCTION suppress_redundant_updates_trigger();
              ALTER TABLE t ENABLE REPLICA TRIGGER x",
        says: "trigger x of table public.t calls public.pwn(how text)",
    },
    Way {
        name: "rule",
        replica: true,
        sql: "CREATE RULE x AS ON INSERT TO t DO ALSO SELECT pwn('rule'); ALTER TABLE t ENABLE ALWAYS RULE x",
        says: "rule x of table public.t (role",
    },
    Way { name: "check", replica: true, sql: "ALTER TABLE t ADD CONSTRAINT x CHECK (pwn('check'))", says: "check x of table public.t" },
    Way {
        name: "builtin",
        replica: true,
        sql: "ALTER TABLE t ADD CONSTRAINT x CHECK (query_to_xml('SELECT public.pwn(''xml'')', true, true, '') IS NOT NULL)",
        says: "check x of table public.t calls pg_catalog.query_to_xml",
    },
    Way { name: "default", replica: true, sql: "ALTER TABLE t ADD COLUMN x text DEFAULT pwn('default')::text", says: "the default of column x of table public.t" },
    Way {
        name: "generated",
        replica: true,
        sql: "ALTER TABLE t ADD COLUMN x text GENERATED ALWAYS AS (pwn(v)::text) STORED",
        says: "generated column x of table public.t",
    },
    Way { name: "index", replica: true, sql: "CREATE INDEX x ON t ((v || 'x')) WHERE pwn(v)", says: "index x of table public.t" },
    Way {
        name: "domain",
        replica: true,
        sql: "CREATE DOMAIN d AS text; CREATE TYPE c AS (a int, b d[]); ALTER TABLE t ADD COLUMN x c;
              ALTER DOMAIN d ADD CONSTRAINT x CHECK (pwn('domain')) NOT VALID",
        says: "check x of domain public.d",
    },
    Way {
        name: "heir",
        replica: true,
        sql: "CREATE TABLE heir () INHERITS (t); CREATE TRIGGER x BEFORE UPDATE ON heir FOR EACH ROW EXECUTE FUNCTION pwn_trigger();
              ALTER TABLE heir ENABLE ALWAYS TRIGGER x",
        says: "trigger x of table public.heir",
    },
    Way {
        name: "cascade",
        replica: false,
        sql: "CREATE TABLE other (t int REFERENCES t ON DELETE CASCADE);
              CREATE TRIGGER x AFTER DELETE ON other FOR EACH ROW EXECUTE FUNCTION pwn_trigger()",
        says: "trigger x of table public.other",
    },
    Way {
        name: "cast",
        replica: true,
        sql: "CREATE TYPE mood AS ENUM ('a'); ALTER TABLE t ADD COLUMN x mood;
              CREATE FUNCTION pwn_mood(text) RETURNS mood LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('cast'); RETURN 'a'; END $$;
              CREATE CAST (text AS mood) WITH FUNCTION pwn_mood(text)",
        says: "cast (pg_catalog.text AS public.mood) calls public.pwn_mood(text)",
    },
    Way {
        name: "cast_array",
        replica: true,
        sql: "CREATE TYPE mood AS (a int); ALTER TABLE t ADD COLUMN x mood;
              CREATE FUNCTION pwn_moods(mood[]) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('cast'); RETURN '1'; END $$;
              CREATE CAST (mood[] AS json) WITH FUNCTION pwn_moods(mood[])",
        says: "cast (public._mood AS pg_catalog.\"json\") calls public.pwn_moods(public.mood[])",
    },
    Way {
        name: "cast_row",
        replica: true,
        sql: "CREATE FUNCTION pwn_row(t) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('row'); RETURN '1'; END $$;
              CREATE CAST (t AS json) WITH FUNCTION pwn_row(t)",
        says: "cast (public.t AS pg_catalog.\"json\") calls public.pwn_row(public.t)",
    },
    Way {
        name: "cast_of_key",
        replica: false,
        sql: "CREATE TYPE mood AS ENUM ('a'); CREATE TABLE numbers (id int PRIMARY KEY);
              CREATE FUNCTION pwn_number(mood) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('cast'); RETURN 1; END $$;
              CREATE CAST (mood AS int) WITH FUNCTION pwn_number(mood) AS IMPLICIT;
              ALTER TABLE t ADD COLUMN x mood REFERENCES numbers",
        says: "cast (public.mood AS pg_catalog.int4) calls public.pwn_number(public.mood)",
    },
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn code_of_a_tables_owner_is_refused_however_it_is_attached() {
    if cannot_grant_parameters().await {
        return;
    }
    for way in WAYS {
        println!("{}", way.name);
        let database = new(&format!("own_{}", way.name), way.replica).await;
        as_owner(&database, &format!("{TABLE}; {}", way.sql)).await;
        let setup = Setup::of(&database);
        let [message, detail, hint] = finding(&setup).await.unwrap_or_else(|| panic!("{} is not found", way.name));
        let owner = owner(&database.name);
        assert_eq!(message, format!("code of role {owner} would run with headwater's rights at the destination"));
        assert!(detail.contains(way.says), "{detail}");
        assert!(hint.contains(&format!("trusted_roles = [\"{owner}\"]")), "{hint}");
        let output = setup.start().ends_with(1).await;
        // Rules are refused whoever has made them, before that is asked.
        let is_said = output.contains(&message) && output.contains(way.says);
        let rule = output.contains("rules of table public.t at the destination would change what is written to it: x");
        assert!(is_said || way.name == "rule" && rule, "{output}");
        nobody_was_pwned(&database).await;
        // The hint's statements take the code away.
        as_owner(&database, &statements(&hint)).await;
        let service = setup.start();
        service.streams().await;
        for change in
            ["INSERT INTO t VALUES (2, 'b')", "UPDATE t SET v = 'c' WHERE id = 1", "DELETE FROM t WHERE id = 1"]
        {
            database.at_source(change).await;
        }
        database.caught_up().await;
        let rows = "SELECT string_agg(id || v, ',') FROM ONLY t";
        assert_eq!(database.destination_value(rows).await.as_deref(), Some("2b"));
        service.stop().await;
        nobody_was_pwned(&database).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_attach_that_can_do_nothing_is_no_obstacle() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_harmless", true).await;
    // A default of a column that is given a value is not evaluated; a trigger that does not fire calls nothing.
    as_owner(
        &database,
        "CREATE TABLE t (id int PRIMARY KEY, v text DEFAULT pwn('default')::text CHECK (v <> '' AND length(v) < 100),
                         serial_number bigserial, made timestamptz DEFAULT now(), day date DEFAULT current_date,
                         token uuid DEFAULT gen_random_uuid(), who text DEFAULT current_user, word tsvector DEFAULT to_tsvector('x'),
                         upper_v text GENERATED ALWAYS AS (upper(v)) STORED, year int DEFAULT date_part('year', now()));
         CREATE INDEX ON t (lower(v)) WHERE v IS NOT NULL;
         CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pwn_trigger()",
    )
    .await;
    let setup = Setup::of(&database);
    assert_eq!(finding(&setup).await, None);
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO t VALUES (2, 'b')").await;
    database.caught_up().await;
    assert_eq!(
        database
            .destination_value("SELECT count(*)::text FROM t WHERE upper_v = 'B' AND made IS NOT NULL")
            .await
            .as_deref(),
        Some("1")
    );
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn code_of_roles_that_could_do_as_much_anyway_is_no_obstacle() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_powerful", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let (admin, deployer) = (format!("admin_of_{}", database.name), format!("deployer_of_{}", database.name));
    database.at_destination(&format!("CREATE ROLE {admin} SUPERUSER; CREATE ROLE {deployer}")).await;
    as_owner(&database, TABLE).await;
    database
        .at_destination(&format!(
            "CREATE FUNCTION deployed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
             ALTER FUNCTION deployed() OWNER TO {deployer}; ALTER TABLE t OWNER TO {deployer};
             CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION deployed(); ALTER TABLE t ENABLE ALWAYS TRIGGER x"
        ))
        .await;
    let setup = Setup::of(&database);
    let trusting = setup.clone().destination(&format!("trusted_roles = [\"{owner}\"]"));
    assert!(finding(&setup).await.is_some() && finding(&trusting).await.is_some());
    database.at_destination(&format!("GRANT {owner} TO {deployer}")).await;
    assert_eq!(finding(&trusting).await, None, "a member of a role that is trusted");
    assert!(finding(&setup).await.is_some());
    let version = database.destination_value("SELECT current_setting('server_version_num')").await.expect("a version");
    let before_16 = version.parse::<u32>().expect("a number") < 160_000;
    let ways = [
        (true, format!("GRANT {writer} TO {deployer}"), format!("REVOKE {writer} FROM {deployer}")),
        (true, format!("GRANT {admin} TO {deployer}"), format!("REVOKE {admin} FROM {deployer}")),
        (
            true,
            format!("GRANT pg_execute_server_program TO {deployer}"),
            format!("REVOKE pg_execute_server_program FROM {deployer}"),
        ),
        (before_16, format!("ALTER ROLE {deployer} CREATEROLE"), format!("ALTER ROLE {deployer} NOCREATEROLE")),
    ];
    for (trusted, given, taken) in ways {
        database.at_destination(&given).await;
        assert_eq!(finding(&setup).await.is_none(), trusted, "{given}");
        database.at_destination(&taken).await;
        assert!(finding(&setup).await.is_some(), "{taken}");
    }
    // The tables of a superuser, with triggers of his.
    database
        .at_destination(&format!("ALTER FUNCTION deployed() OWNER TO {admin}; ALTER TABLE t OWNER TO {admin}"))
        .await;
    assert_eq!(finding(&setup).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_domain_is_found_before_a_table_is_created_of_it() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_domain", true).await;
    let column = "CREATE DOMAIN d AS text; ALTER TABLE t ADD COLUMN x d; UPDATE t SET x = 'x'";
    database.at_source(column).await;
    as_owner(&database, "CREATE DOMAIN d AS text CONSTRAINT x CHECK (pwn('domain'))").await;
    let setup = Setup::of(&database);
    let [_, detail, hint] = finding(&setup).await.expect("the domain is found");
    assert!(detail.contains("check x of domain public.d calls public.pwn(how text)"), "{detail}");
    setup.start().ends_with(1).await;
    nobody_was_pwned(&database).await;
    as_owner(&database, &statements(&hint)).await;
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_type_is_found_before_a_column_of_it_is_added_in_the_stream() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_evolved", true).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    // It waits under the name of a type that the source will have one day; its owner owns no table.
    as_owner(&database, "CREATE DOMAIN later AS text DEFAULT pwn('default')::text CONSTRAINT x CHECK (pwn('domain'))")
        .await;
    let column = "CREATE DOMAIN later AS text; ALTER TABLE t ADD COLUMN x later; INSERT INTO t VALUES (2, 'b', 'x')";
    database.at_source(column).await;
    service.is("waiting").await;
    service.says("check x of domain public.later calls public.pwn(how text)").await;
    service.says("the default of domain public.later calls public.pwn(how text)").await;
    nobody_was_pwned(&database).await;
    let status = service.status().await.expect("a status");
    as_owner(&database, &statements(status["hint"].as_str().expect("a hint"))).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cast_that_a_json_constructor_finds_by_itself_is_found() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_json", true).await;
    let version = database.destination_value("SELECT current_setting('server_version_num')").await.expect("a version");
    if version.parse::<u32>().expect("a number") < 160_000 {
        println!("not run: SQL/JSON constructors came with 16");
        return;
    }
    as_owner(
        &database,
        "CREATE TYPE mood AS ENUM ('a');
         CREATE FUNCTION to_pwned(mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('json'); RETURN '1'; END $$;
         CREATE CAST (mood AS json) WITH FUNCTION to_pwned(mood);
         CREATE TABLE t (id int PRIMARY KEY, v text, x mood DEFAULT 'a', y int CONSTRAINT y CHECK (JSON_OBJECT('a': 'a'::mood) IS NOT NULL))",
    )
    .await;
    let setup = Setup::of(&database);
    let [_, detail, _] = finding(&setup).await.expect("the cast is found");
    assert!(detail.contains("check y of table public.t calls public.to_pwned(public.mood)"), "{detail}");
    setup.start().ends_with(1).await;
    nobody_was_pwned(&database).await;
}

/// A type of the owner's with casts from and to text that he has made, and what is made of it.
const MOODS: &str = "
    CREATE TYPE mood AS ENUM ('a', 'b'); CREATE DOMAIN calm AS mood; CREATE TYPE pair AS (m mood, n int);";
const MOODY: &str = "ALTER TABLE t ADD COLUMN x mood NOT NULL DEFAULT 'a', ADD COLUMN y mood[], ADD COLUMN z calm, ADD COLUMN w pair,
                     ADD COLUMN short char(3), ADD COLUMN j json, DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, x);
    INSERT INTO t VALUES (2, 'b', 'b', '{a,b}', 'a', '(a,1)', 'x', '{\"a\": \"b\"}'), (3, 'c', 'a', NULL, NULL, '(,)', NULL, '\"s\"'),
                         (4, 'd', 'b', '{NULL}', 'b', NULL, '', 'null')";
const CASTS: &str = "
    CREATE FUNCTION mood_of(text) RETURNS mood LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('from text'); RETURN 'a'; END $$;
    CREATE FUNCTION text_of(mood) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('to text'); RETURN 'a'; END $$;
    CREATE FUNCTION moods_of(text) RETURNS mood[] LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('array'); RETURN '{}'; END $$;
    CREATE FUNCTION pair_of(text) RETURNS pair LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('pair'); RETURN NULL; END $$;
    CREATE CAST (text AS mood) WITH FUNCTION mood_of(text) AS ASSIGNMENT; CREATE CAST (mood AS text) WITH FUNCTION text_of(mood) AS ASSIGNMENT;
    CREATE CAST (text AS mood[]) WITH FUNCTION moods_of(text); CREATE CAST (text AS pair) WITH FUNCTION pair_of(text);";

#[tokio::test(flavor = "multi_thread")]
async fn values_are_read_by_input_functions_though_their_types_have_casts() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_casts", true).await;
    database.at_source(MOODS).await;
    database.at_source(MOODY).await;
    as_owner(&database, MOODS).await;
    as_owner(&database, CASTS).await;
    let owner = owner(&database.name);
    let setup = Setup::of(&database);
    let [_, detail, hint] = finding(&setup).await.expect("the casts are found");
    assert_eq!(detail.matches("cast (").count(), 4, "{detail}");
    assert_eq!(statements(&hint).matches("DROP CAST (").count(), 4, "{hint}");
    let trusting = setup.clone().destination(&format!("trusted_roles = [\"{owner}\"]"));
    let service = trusting.start();
    service.streams().await;
    database
        .at_source(
            "UPDATE t SET y = '{b}' WHERE id = 1; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (5, 'e', 'b')",
        )
        .await;
    database.assert_catches_up().await;
    // A row that differs in every column, one that is missing, and one too many.
    database
        .at_destination(
            "UPDATE t SET v = 'z', y = '{}', z = 'b', w = '(b,2)', short = 'zzz', j = '1' WHERE id = 2; DELETE FROM t WHERE id = 4;
             INSERT INTO t (id, v, x) VALUES (9, 'z', 'b')",
        )
        .await;
    let refused = setup.command(&["verify"]).await.exits(1);
    refused.says(&["would run with headwater's rights", "when rows are compared: cast (", "trusted_roles"]);
    nobody_was_pwned(&database).await;
    trusting.command(&["verify", "--show-columns"]).await.exits(1).says(&["differs  (id, x)=(2, b)"]);
    trusting.command(&["verify", "--repair"]).await.exits(0).says(&["1 row deleted, 1 updated, 1 inserted"]);
    trusting.command(&["verify"]).await.exits(0);
    database.assert_catches_up().await;
    nobody_was_pwned(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_shown_without_the_casts_of_its_types() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_shown", true).await;
    database.at_source(MOODS).await;
    database.at_source(MOODY).await;
    as_owner(&database, MOODS).await;
    as_owner(&database, CASTS).await;
    let trusting = Setup::of(&database).destination(&format!("trusted_roles = [\"{}\"]", owner(&database.name)));
    let service = trusting.start();
    service.streams().await;
    database.at_destination("INSERT INTO t (id, v, x, short) VALUES (7, 'here', 'b', 'x')").await;
    database.at_source("INSERT INTO t (id, v, x) VALUES (7, 'there', 'b')").await;
    let shown = eventually("the conflict is shown", || async {
        let (code, text) = service.command(&["conflict", "show"]).await;
        (code == Some(1)).then_some(text)
    })
    .await;
    assert!(shown.contains("v = 'here', x = 'b'") && shown.contains("v = 'there', x = 'b'"), "{shown}");
    nobody_was_pwned(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_that_a_cast_would_convert_is_left_out_with_the_reason() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_assigned", true).await;
    database.at_source(MOODS).await;
    database
        .at_source(
            "CREATE CAST (text AS mood) WITH INOUT AS ASSIGNMENT;
             ALTER TABLE t ADD COLUMN x mood DEFAULT lower('A'), ADD COLUMN y mood DEFAULT 'a'",
        )
        .await;
    as_owner(&database, MOODS).await;
    as_owner(&database, CASTS).await;
    let setup = Setup::of(&database).destination(&format!("trusted_roles = [\"{}\"]", owner(&database.name)));
    let service = setup.start();
    service
        .says("the default of column x (a function of the destination would convert a value of type public.mood)")
        .await;
    service.streams().await;
    let defaults = "SELECT string_agg(a.attname, ',') FROM pg_attrdef d
                    JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE d.adrelid = 't'::regclass";
    assert_eq!(database.destination_value(defaults).await.as_deref(), Some("y"));
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_placed_by_grant_on_headwaters_own_table_is_refused() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_granted", true).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    // GRANT ALL ON TABLE includes TRIGGER. Only the table's owner may make it fire for what is replicated.
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database.at_destination(&format!("SET ROLE {writer}; GRANT ALL ON t TO {owner}; RESET ROLE")).await;
    as_owner(&database, "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pwn_trigger()").await;
    assert_eq!(finding(&setup).await, None);
    database.at_destination("ALTER TABLE t ENABLE ALWAYS TRIGGER x").await;
    let [_, detail, hint] = finding(&setup).await.expect("the trigger is found");
    assert!(detail.contains("trigger x of table public.t calls public.pwn_trigger()"), "{detail}");
    assert_eq!(statements(&hint), "ALTER TABLE public.t ENABLE TRIGGER x;");
}

#[tokio::test(flavor = "multi_thread")]
async fn code_of_trusted_roles_runs() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_trusted", true).await;
    as_owner(&database, &format!("{TABLE}; {}", WAYS[0].sql)).await;
    let owner = owner(&database.name);
    let setup = Setup::of(&database).destination(&format!("trusted_roles = [\"nobody_else\", \"{owner}\"]"));
    assert_eq!(finding(&setup).await, None);
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    assert_eq!(
        database.destination_value("SELECT string_agg(DISTINCT how, ',') FROM only_writer.pwned").await.as_deref(),
        Some("x")
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_is_attached_while_headwater_streams_halts_it_until_it_is_gone() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_later", true).await;
    as_owner(&database, TABLE).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database.assert_catches_up().await;
    as_owner(&database, WAYS[0].sql).await;
    service.is("waiting").await;
    service.says("would run with headwater's rights at the destination").await;
    database.at_source("INSERT INTO t VALUES (2, 'b')").await;
    nobody_was_pwned(&database).await;
    as_owner(&database, "DROP TRIGGER x ON t").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_attached_during_a_copy_prevents_its_publish() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_copying", true).await;
    as_owner(&database, TABLE).await;
    let setup = Setup::of(&database);
    let mut paused = setup.clone();
    let file = parent().join(format!("{}-paused", database.name));
    paused.environment.push(("HEADWATER_PAUSE".to_owned(), format!("handover.comparing={}", file.display())));
    let service = paused.start();
    service.streams().await;
    let asked = service.command(&["resnapshot", "--no-wait"]).await;
    assert_eq!(asked.0, Some(0), "{}", asked.1);
    eventually("the copy is compared", || async { file.exists().then_some(()) }).await;
    as_owner(&database, WAYS[0].sql).await;
    std::fs::remove_file(&file).unwrap();
    service.says("code of role").await;
    nobody_was_pwned(&database).await;
    as_owner(&database, "DROP TRIGGER x ON t").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn set_role_to_the_owner_does_not_contain_the_owners_code() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_setrole", true).await;
    as_owner(&database, &format!("{TABLE}; {}", WAYS[0].sql)).await;
    let client = crate::support::database::connect(&database.destination_url).await.expect("a session of the writer");
    let owner = owner(&database.name);
    client
        .script("writing", &format!("BEGIN; SET LOCAL ROLE {owner}; INSERT INTO t VALUES (5, 'x'); COMMIT"))
        .await
        .unwrap();
    // Why headwater does not apply as the owner: the code has gone back to the session's role.
    assert_eq!(database.destination_value("SELECT how FROM only_writer.pwned").await.as_deref(), Some("x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_headwater_of_somebody_else_is_refused_with_its_owner_and_the_way_out() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_schema", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let setup = Setup::of(&database);
    // A trap: everything as headwater makes it, except for what it does.
    let bookkeeping = std::fs::read_to_string("sql/bookkeeping.sql").expect("the bookkeeping's SQL");
    database.at_destination(&format!("GRANT CREATE ON DATABASE {} TO {owner}", database.name)).await;
    as_owner(
        &database,
        &format!(
            "{bookkeeping}; GRANT ALL ON SCHEMA headwater TO {writer}; GRANT ALL ON ALL TABLES IN SCHEMA headwater TO {writer};
             CREATE OR REPLACE FUNCTION headwater.advance(previous pg_lsn, next pg_lsn) RETURNS void LANGUAGE plpgsql AS $$
             BEGIN PERFORM public.pwn('advance'); END $$"
        ),
    )
    .await;
    let message =
        format!("schema headwater at the destination belongs to role {owner}, not to headwater's role {writer}");
    let accepted = format!("trusted_roles = [\"{owner}\"]");
    setup.command(&["check"]).await.exits(1).says(&[
        &message,
        "could have code run with headwater's rights",
        &accepted,
    ]);
    let output = setup.start().ends_with(1).await;
    assert!(output.contains(&message), "{output}");
    setup.command(&["teardown"]).await.exits(1).says(&[&message]);
    nobody_was_pwned(&database).await;
    // One object of a stranger's in a schema of ours is enough.
    let sql = handing_over(&output);
    let (first, rest) = sql.split_once('\n').expect("several statements");
    assert_eq!(first, format!("ALTER SCHEMA headwater OWNER TO {writer};"));
    database.at_destination(first).await;
    setup
        .command(&["check"])
        .await
        .exits(1)
        .says(&[r#"table headwater."position" at the destination belongs to role"#]);
    database.at_destination(rest).await;
    database.at_destination("DROP SCHEMA headwater CASCADE; CREATE SCHEMA headwater").await;
    // A superuser's, which our role may not use.
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("schema headwater at the destination belongs to role postgres, and role"), "{output}");
    assert!(output.contains("ALTER SCHEMA headwater RENAME TO not_headwater;"), "{output}");
    database.at_destination("ALTER SCHEMA headwater RENAME TO not_headwater").await;
    let service = setup.start();
    service.streams().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bookkeeping_that_another_role_of_headwaters_made_is_handed_over_by_the_hint() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_handed", true).await;
    database.at_destination("DROP EVENT TRIGGER hand_over").await;
    let as_superuser = Database::existing(&database.name).await;
    let mut first = Setup::of(&as_superuser);
    first.tables = database.tables.clone();
    let service = first.start();
    service.streams().await;
    service.stop().await;
    // Now with the least privileges: its tables, and the bookkeeping, are the superuser's.
    let setup = Setup::of(&database);
    let output = setup.start().ends_with(1).await;
    assert!(output.contains("give that role in destination.url"), "{output}");
    let sql = handing_over(&output);
    database.at_destination(&sql).await;
    database.at_destination(&format!("GRANT ALL ON t TO {}", writer(&database.name))).await;
    let service = setup.start();
    eventually("it streams", || async { (service.status().await?["state"] == "streaming").then_some(()) }).await;
    database.at_source("INSERT INTO t VALUES (9, 'z')").await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// Everything that default privileges can give, to a role and to everybody.
fn default_privileges(writer: &str, to: &str) -> String {
    ["TABLES", "SEQUENCES", "FUNCTIONS", "SCHEMAS"]
        .map(|kind| format!("ALTER DEFAULT PRIVILEGES FOR ROLE {writer} GRANT ALL ON {kind} TO {to};"))
        .join("\n")
}

/// What others than headwater's role may do with what it made for itself.
const GRANTED: &str = "
    SELECT string_agg(DISTINCT what, ', ') FROM (
        SELECT nspname || ' ' || a.privilege_type AS what FROM pg_namespace n, aclexplode(n.nspacl) a
        WHERE (nspname = 'headwater' AND a.privilege_type <> 'USAGE' OR nspname LIKE 'headwater_staging%') AND a.grantee <> n.nspowner
        UNION ALL
        SELECT c.oid::regclass || ' ' || a.privilege_type FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = 'headwater'::regnamespace AND a.privilege_type <> 'SELECT' AND a.grantee <> c.relowner
        UNION ALL
        SELECT c.oid::regclass || ' ' || a.privilege_type
        FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid, aclexplode(c.relacl) a
        WHERE nspname LIKE 'headwater_staging%' AND a.grantee <> c.relowner
        UNION ALL
        SELECT p.oid::regprocedure || ' ' || a.privilege_type
        FROM pg_namespace n JOIN pg_proc p ON p.pronamespace = n.oid, aclexplode(COALESCE(p.proacl, acldefault('f', p.proowner))) a
        WHERE nspname LIKE 'headwater_staging%' AND a.grantee <> p.proowner) AS granted";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn default_privileges_reach_neither_the_bookkeeping_nor_staging() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_defaults", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let granting = [default_privileges(&writer, &owner), default_privileges(&writer, "PUBLIC")].join("\n");
    database.at_destination(&granting).await;
    let mut setup = Setup::of(&database);
    let file = parent().join(format!("{}-paused", database.name));
    setup.environment.push(("HEADWATER_PAUSE".to_owned(), format!("handover.comparing={}", file.display())));
    let service = setup.start();
    service.streams().await;
    assert_eq!(database.destination_value(GRANTED).await, None);
    let trigger = "CREATE TRIGGER x BEFORE UPDATE ON headwater.position FOR EACH ROW EXECUTE FUNCTION pwn_trigger()";
    let instead =
        "CREATE FUNCTION headwater.expect(bigint, int) RETURNS boolean LANGUAGE sql AS 'SELECT public.pwn(''expect'')'";
    for denied in [trigger, instead, "UPDATE headwater.position SET position = '0/1'"] {
        let sql = format!("SET ROLE {owner}; {denied}");
        let error = database.destination.script("attaching", &sql).await.expect_err("it is denied");
        assert!(error.to_string().contains("SQLSTATE 42501"), "{denied}: {error}");
        database.at_destination("RESET ROLE").await;
    }
    // Of the tables that headwater creates for others, where triggers act: reading and writing as it was granted, and no code.
    for denied in [
        "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pwn_trigger()",
        "CREATE TABLE other (t int REFERENCES t ON DELETE CASCADE)",
    ] {
        let error = database
            .destination
            .script("attaching", &format!("SET ROLE {owner}; {denied}"))
            .await
            .expect_err("it is denied");
        assert!(error.to_string().contains("SQLSTATE 42501"), "{denied}: {error}");
        database.at_destination("RESET ROLE").await;
    }
    as_owner(&database, "SELECT * FROM t FOR UPDATE").await;
    for grantee in [owner.as_str(), "PUBLIC"] {
        service
            .says(&format!("table public.t: REFERENCES, TRIGGER not granted to role {grantee}, whose triggers would run with headwater's rights"))
            .await;
    }
    // Reading stays as it was granted.
    as_owner(&database, "SELECT * FROM headwater.position").await;
    service.command(&["verify"]).await;
    let asked = service.command(&["resnapshot", "--no-wait"]).await;
    assert_eq!(asked.0, Some(0), "{}", asked.1);
    eventually("the copy is compared", || async { file.exists().then_some(()) }).await;
    let staging = "SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'headwater_staging%'";
    assert_ne!(database.destination_value(staging).await.as_deref(), Some("0"));
    assert_eq!(database.destination_value(GRANTED).await, None);
    std::fs::remove_file(&file).unwrap();
    service.stop().await;
    assert_eq!(finding(&setup).await, None);
    nobody_was_pwned(&database).await;
}

/// What the owner would have run in staging, each statement by itself: triggers on all of its tables, and its functions as triggers.
const ATTACHING: &str = "
    SELECT string_agg(statement, ';') FROM (
        SELECT format('CREATE TRIGGER x BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION pwn_trigger()', c.oid::regclass) AS statement
        FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid WHERE nspname LIKE 'headwater_staging%' AND relkind IN ('r', 'p')
        UNION ALL
        SELECT format('CREATE TRIGGER x AFTER INSERT ON mine FOR EACH STATEMENT EXECUTE FUNCTION %s', p.oid::regprocedure)
        FROM pg_namespace n JOIN pg_proc p ON p.pronamespace = n.oid
        WHERE nspname LIKE 'headwater_staging%' AND prorettype = 'trigger'::regtype) AS statements";

/// Has the owner try to attach code in staging; returns how often it was denied.
async fn attaching_is_denied(database: &Database) -> usize {
    assert_eq!(database.destination_value(GRANTED).await, None);
    let statements = database.destination_value(ATTACHING).await.expect("there is staging");
    for denied in statements.split(';') {
        let sql = format!("SET ROLE {}; {denied}", owner(&database.name));
        let error = database.destination.script("attaching", &sql).await.expect_err(denied);
        assert!(error.to_string().contains("SQLSTATE 42501"), "{denied}: {error}");
        database.at_destination("RESET ROLE").await;
    }
    statements.split(';').count()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn default_privileges_let_no_reader_attach_code_to_staging() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_staged", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database.at_source("ALTER TABLE t ADD COLUMN n serial").await;
    // In the schema besides: what both grant is granted once.
    database
        .at_destination(&format!(
            "{}; ALTER DEFAULT PRIVILEGES FOR ROLE {writer} IN SCHEMA public GRANT SELECT, INSERT ON TABLES TO {owner} WITH GRANT OPTION;
             ALTER DEFAULT PRIVILEGES FOR ROLE {writer} GRANT SELECT ON TABLES TO PUBLIC; GRANT pg_read_all_data TO {owner}",
            default_privileges(&writer, &owner)
        ))
        .await;
    as_owner(&database, "CREATE TABLE mine (id int)").await;
    let setup = Setup::of(&database);
    setup.clone().failing_at("snapshot.copying").start().ended().await;
    // The mark of life, and the table that will be moved.
    assert_eq!(attaching_is_denied(&database).await, 2);
    let mut setup = setup;
    let file = parent().join(format!("{}-paused", database.name));
    setup.environment.push(("HEADWATER_PAUSE".to_owned(), format!("handover.comparing={}", file.display())));
    let service = setup.start();
    service.streams().await;
    let kept = format!(
        "SELECT has_table_privilege('{owner}', 't', 'INSERT WITH GRANT OPTION') AND has_table_privilege('{owner}', 't', 'TRIGGER')
                AND has_sequence_privilege('{owner}', 't_n_seq', 'UPDATE')
                AND (SELECT array_agg(privilege_type) = '{{SELECT}}' FROM pg_class, aclexplode(relacl) WHERE oid = 't'::regclass AND grantee = 0)"
    );
    assert_eq!(database.destination_value(&format!("SELECT ({kept})::text")).await.as_deref(), Some("true"));
    let asked = service.command(&["resnapshot", "--no-wait"]).await;
    assert_eq!(asked.0, Some(0), "{}", asked.1);
    eventually("the copy is compared", || async { file.exists().then_some(()) }).await;
    // The mark of life, the copy, its position, its list, and the function that keeps the list.
    assert_eq!(attaching_is_denied(&database).await, 5);
    std::fs::remove_file(&file).unwrap();
    service.streams().await;
    assert_eq!(database.destination_value(&format!("SELECT ({kept})::text")).await.as_deref(), Some("true"));
    service.stop().await;
    nobody_was_pwned(&database).await;
}

/// What `check` says of the bookkeeping where that is no obstacle but a refusal.
async fn bookkeeping_finding(setup: &Setup) -> Option<[String; 3]> {
    let finished = setup.command(&["check", "--json"]).await;
    let findings: serde_json::Value = serde_json::from_str(&finished.out).expect("a list");
    let wrong = |finding: &&serde_json::Value| finding["what"] == "bookkeeping" && finding["standing"] == "failed";
    let found = findings.as_array()?.iter().find(wrong)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some([text("message"), text("detail"), text("hint")])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn grants_that_let_others_change_the_bookkeeping_are_refused_until_the_hint_is_run() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_grants", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    let granted = |on: &str, to: &str| format!("GRANT {on} TO {to};");
    let ways = [
        (granted("TRIGGER ON headwater.leadership", &owner), "has TRIGGER on table headwater.leadership"),
        (granted("ALL ON headwater.position", "PUBLIC"), "role PUBLIC has DELETE, INSERT, "),
        (granted("UPDATE (replaced_key) ON headwater.leadership", &owner), "has UPDATE (replaced_key) on table headwater.leadership"),
        (granted("CREATE ON SCHEMA headwater", &owner), "has CREATE on schema headwater"),
        (granted("ALL ON SEQUENCE headwater.resnapshots_id_seq", &owner), "has UPDATE, USAGE on sequence headwater.resnapshots_id_seq"),
        (granted("REFERENCES ON headwater.skip", &owner), "has REFERENCES on table headwater.skip"),
        (
            format!(
                "GRANT USAGE ON SCHEMA headwater TO {owner};
                 GRANT INSERT ON headwater.skip TO {owner} WITH GRANT OPTION; SET ROLE {owner}; GRANT INSERT ON headwater.skip TO PUBLIC; RESET ROLE;"
            ),
            "has INSERT on table headwater.skip",
        ),
        (
            format!(
                "CREATE ROLE middle_{owner}; GRANT {writer} TO middle_{owner}; GRANT USAGE ON SCHEMA headwater TO middle_{owner};
                 GRANT INSERT ON headwater.skip TO middle_{owner} WITH GRANT OPTION;
                 SET ROLE middle_{owner}; GRANT INSERT ON headwater.skip TO {owner}; RESET ROLE;"
            ),
            "has INSERT on table headwater.skip",
        ),
    ];
    for (sql, says) in ways {
        database.at_destination(&sql).await;
        let [message, detail, hint] = bookkeeping_finding(&setup).await.unwrap_or_else(|| panic!("{sql} is found"));
        assert!(message.contains("may change headwater's bookkeeping at the destination"), "{message}");
        assert!(detail.contains(says), "{detail}");
        let to_everybody = detail.contains("role PUBLIC");
        assert_eq!(hint.contains(&format!("trusted_roles = [\"{owner}\"]")), !to_everybody, "{hint}");
        let output = setup.start().ends_with(1).await;
        assert!(output.contains(&message), "{output}");
        if !to_everybody {
            let trusting = setup.clone().destination(&format!("trusted_roles = [\"{owner}\"]"));
            assert_eq!(bookkeeping_finding(&trusting).await, None);
        }
        database.at_destination(&statements(&hint)).await;
        assert_eq!(bookkeeping_finding(&setup).await, None, "{hint}");
    }
    // Of a trigger that a role with the privilege has made, nothing tells that: it goes with the grant.
    database.at_destination(&granted("USAGE ON SCHEMA headwater", &owner)).await;
    database.at_destination(&granted("SELECT ON ALL TABLES IN SCHEMA headwater", "PUBLIC")).await;
    database.at_destination(&granted("TRIGGER ON headwater.position", &owner)).await;
    as_owner(
        &database,
        "CREATE TRIGGER x BEFORE UPDATE ON headwater.position FOR EACH ROW
         WHEN (query_to_xml('SELECT public.pwn(''when'')', true, true, '') IS NOT NULL) EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    )
    .await;
    let [_, _, hint] = bookkeeping_finding(&setup).await.expect("the grant is found");
    assert!(hint.ends_with("DROP TRIGGER x ON headwater.\"position\";"), "{hint}");
    setup.start().ends_with(1).await;
    database.at_destination(&statements(&hint)).await;
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO t VALUES (3, 'c')").await;
    database.assert_catches_up().await;
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn code_and_grants_on_the_bookkeeping_halt_headwater_while_it_streams() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_watched", false).await;
    let owner = owner(&database.name);
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let ways = [
        (
            "CREATE TRIGGER x BEFORE INSERT ON headwater.dead_letter FOR EACH ROW EXECUTE FUNCTION pwn_trigger()"
                .to_owned(),
            format!("code of role {owner} would run with headwater's rights"),
            "DROP TRIGGER x ON headwater.dead_letter;".to_owned(),
        ),
        (
            format!("GRANT TRIGGER ON headwater.dead_letter TO {owner}"),
            format!("role {owner} may change headwater's bookkeeping"),
            format!("REVOKE TRIGGER ON TABLE headwater.dead_letter FROM {owner} CASCADE;"),
        ),
    ];
    for (sql, says, undo) in ways {
        database.at_destination(&sql).await;
        service.is("waiting").await;
        service.says(&says).await;
        service.says(&undo).await;
        database.at_destination(&undo).await;
        service.streams().await;
    }
    database.at_source("INSERT INTO t VALUES (2, 'b')").await;
    database.assert_catches_up().await;
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn code_on_the_bookkeeping_is_refused_even_where_replicated_tables_have_none() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_bookkeeping", true).await;
    let owner = owner(&database.name);
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    database.at_destination(&format!("GRANT USAGE ON SCHEMA headwater TO {owner}")).await;
    let replica =
        "CREATE TRIGGER x BEFORE INSERT ON headwater.sessions FOR EACH STATEMENT EXECUTE FUNCTION pwn_trigger()";
    let ways = [
        ("TRIGGER ON headwater.sessions", replica, owner.as_str(), "DROP TRIGGER x ON headwater.sessions;"),
        (
            "TRIGGER ON headwater.leadership",
            "CREATE TRIGGER x BEFORE UPDATE ON headwater.leadership FOR EACH ROW
             WHEN (query_to_xml('SELECT public.pwn(''when'')', true, true, '') IS NOT NULL)
             EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "PUBLIC",
            "DROP TRIGGER x ON headwater.leadership;",
        ),
        (
            "REFERENCES ON headwater.tables",
            "CREATE TABLE other (s text, n text, FOREIGN KEY (s, n) REFERENCES headwater.tables ON UPDATE CASCADE ON DELETE CASCADE);
             INSERT INTO other VALUES ('public', 't');
             CREATE TRIGGER x AFTER UPDATE OR DELETE ON other FOR EACH ROW EXECUTE FUNCTION pwn_trigger()",
            owner.as_str(),
            "ALTER TABLE public.other DISABLE TRIGGER x;",
        ),
    ];
    for (privilege, sql, whose, undo) in ways {
        database.at_destination(&format!("GRANT {privilege} TO {owner}")).await;
        as_owner(&database, sql).await;
        database.at_destination(&format!("REVOKE {privilege} FROM {owner}")).await;
        let [message, _, hint] = finding(&setup).await.unwrap_or_else(|| panic!("not found: {sql}"));
        assert_eq!(message, format!("code of role {whose} would run with headwater's rights at the destination"));
        assert_eq!(statements(&hint), undo);
        let output = setup.start().ends_with(1).await;
        assert!(output.contains(&message), "{output}");
        database.at_destination(undo).await;
        assert_eq!(finding(&setup).await, None, "{undo}");
    }
    let service = setup.start();
    service.streams().await;
    database.at_destination(&format!("GRANT TRIGGER ON headwater.sessions TO {owner}")).await;
    as_owner(&database, replica).await;
    database.at_destination(&format!("REVOKE TRIGGER ON headwater.sessions FROM {owner}")).await;
    service.is("waiting").await;
    database.at_destination("DROP TRIGGER x ON headwater.sessions").await;
    service.streams().await;
    database.at_source("INSERT INTO t VALUES (2, 'b')").await;
    database.assert_catches_up().await;
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn event_triggers_of_untrusted_owners_are_refused_before_anything_is_created() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_event", true).await;
    let owner = owner(&database.name);
    as_owner(
        &database,
        "CREATE FUNCTION pwn_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn(TG_EVENT); END $$",
    )
    .await;
    let setup = Setup::of(&database);
    let message = format!("code of role {owner} would run with headwater's rights at the destination");
    for (event, how) in [
        ("ddl_command_start", "ENABLE"),
        ("ddl_command_end", "ENABLE REPLICA"),
        ("sql_drop", "ENABLE ALWAYS"),
        ("table_rewrite", "ENABLE"),
    ] {
        let create =
            format!("CREATE EVENT TRIGGER x ON {event} EXECUTE FUNCTION pwn_event(); ALTER EVENT TRIGGER x {how}");
        database.at_destination(&create).await;
        let [found, detail, hint] = finding(&setup).await.unwrap_or_else(|| panic!("{create}"));
        assert_eq!(found, message);
        assert!(detail.contains("event trigger x calls public.pwn_event()"), "{detail}");
        assert!(hint.contains("un at the destination as a superuser:"), "{hint}");
        assert_eq!(statements(&hint), "ALTER EVENT TRIGGER x DISABLE;");
        // The first start would create the bookkeeping.
        let output = setup.start().ends_with(1).await;
        assert!(output.contains(&message), "{output}");
        assert_eq!(database.destination_value("SELECT to_regnamespace('headwater')::text").await, None);
        let trusting = setup.clone().destination(&format!("trusted_roles = [\"{owner}\"]"));
        assert_eq!(finding(&trusting).await, None);
        database.at_destination(&statements(&hint)).await;
        assert_eq!(finding(&setup).await, None);
        database.at_destination("DROP EVENT TRIGGER x").await;
    }
    let service = setup.start();
    service.streams().await;
    // The last that a first start creates.
    eventually("the functions for readers are there", || async {
        let there = "SELECT (to_regprocedure('headwater.wait_for(pg_lsn, interval)') IS NOT NULL)::text";
        (database.destination_value(there).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    database.at_destination("CREATE EVENT TRIGGER x ON ddl_command_end EXECUTE FUNCTION pwn_event()").await;
    service.is("waiting").await;
    service.says("event trigger x calls public.pwn_event()").await;
    nobody_was_pwned(&database).await;
    // A superuser's own is a warning, whatever role it fires for, and may run.
    database.at_destination("ALTER FUNCTION pwn_event() OWNER TO CURRENT_USER").await;
    service.streams().await;
    setup.command(&["check"]).await.says(&["event triggers fire for what headwater creates: ", "x"]);
    service.stop().await;
    database.at_destination("DELETE FROM only_writer.pwned").await;
    database.at_destination(&format!("ALTER FUNCTION pwn_event() OWNER TO {owner}")).await;
    setup.command(&["teardown"]).await.exits(1).says(&[&message]);
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_a_grantee_may_have_made_counts_as_his() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_grantee", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    // The table is headwater's, and everything that the trigger calls is the server's own.
    database.at_destination(&format!("SET ROLE {writer}; GRANT TRIGGER ON t TO {owner}; RESET ROLE")).await;
    as_owner(
        &database,
        "CREATE TRIGGER y BEFORE UPDATE ON t FOR EACH ROW WHEN (pg_trigger_depth() = 0 AND NEW.id > 0)
         EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    )
    .await;
    assert_eq!(finding(&setup).await, None, "it can do nothing");
    as_owner(
        &database,
        "CREATE TRIGGER x BEFORE UPDATE ON t FOR EACH ROW
         WHEN (query_to_xml('SELECT public.pwn(''when'')', true, true, '') IS NOT NULL) EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    )
    .await;
    let [message, detail, hint] = finding(&setup).await.expect("the trigger is found");
    assert_eq!(message, format!("code of role {owner} would run with headwater's rights at the destination"));
    assert!(detail.contains("trigger x of table public.t calls pg_catalog.query_to_xml("), "{detail}");
    database.at_destination(&format!("GRANT TRIGGER ON t TO PUBLIC; REVOKE TRIGGER ON t FROM {owner}")).await;
    let [message, _, everybodys] = finding(&setup).await.expect("the trigger is found");
    assert_eq!(message, "code of role PUBLIC would run with headwater's rights at the destination");
    assert!(everybodys.starts_with("Run at the destination as the owner:\n"), "{everybodys}");
    assert_eq!(statements(&everybodys), statements(&hint));
    setup.start().ends_with(1).await;
    database.at_destination(&statements(&hint)).await;
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE t SET v = 'b'").await;
    database.assert_catches_up().await;
    service.stop().await;
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relation_with_a_bookkeeping_name_is_refused_before_anything_is_copied() {
    let database = Database::new("own_namesake", TABLES, SCHEMA).await;
    let setup = Setup::of(&database);
    for relation in
        ["TABLE headwater.position (x int)", "VIEW headwater.stream AS SELECT 1 AS x", "TABLE headwater.tables ()"]
    {
        database.at_destination(&format!("CREATE SCHEMA headwater; CREATE {relation}")).await;
        let said = "at the destination is not headwater's: it has no column";
        setup.command(&["check"]).await.exits(1).says(&[said]);
        let output = setup.start().ends_with(1).await;
        assert!(output.contains(said), "{output}");
        database
            .at_destination(
                "ALTER SCHEMA headwater RENAME TO headwater_of_others; DROP SCHEMA headwater_of_others CASCADE",
            )
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_under_a_name_that_staging_could_have_stops_no_copy() {
    let database = new("own_squatted", true).await;
    let owner = owner(&database.name);
    database.at_destination(&format!("GRANT CREATE ON DATABASE {} TO {owner}", database.name)).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let generation = database.destination_value("SELECT generation FROM headwater.stream").await.expect("a generation");
    for name in ["", "_again", "_0", "_again_0"] {
        as_owner(&database, &format!("CREATE SCHEMA \"headwater_staging_{generation}{name}\"")).await;
    }
    setup.command(&["resnapshot"]).await.exits(0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_drops_only_what_headwater_marked_and_says_it() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_swept", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database.at_destination(&format!("GRANT CREATE ON DATABASE {} TO {owner}", database.name)).await;
    let mark = "Staging of the headwater replicator: dropped with everything in it when the copy has ended";
    as_owner(
        &database,
        &format!(
            "CREATE SCHEMA headwater_staging_mine; CREATE TABLE headwater_staging_mine.t (id int);
             CREATE SCHEMA headwater_staging_1_0; CREATE SCHEMA \"headwater_staging_\u{202e}x\";
             CREATE SCHEMA headwater_staging_a; COMMENT ON SCHEMA headwater_staging_a IS '{mark}';
             CREATE TABLE headwater_staging_a.t (id int)"
        ),
    )
    .await;
    // As an earlier version marked it.
    database
        .at_destination(&format!(
            "SET ROLE {writer}; CREATE SCHEMA headwater_staging_b; CREATE UNLOGGED TABLE headwater_staging_b.\"headwater alive\" AS SELECT true;
             CREATE SCHEMA headwater_staging_b_again_0; CREATE SCHEMA headwater_staging_b_0; RESET ROLE"
        ))
        .await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    let left = "SELECT string_agg(nspname, ' ' ORDER BY nspname COLLATE \"C\") FROM pg_namespace WHERE nspname LIKE 'headwater\\_staging%'";
    let stays = "headwater_staging_1_0 headwater_staging_b_again_0 headwater_staging_mine headwater_staging_\u{202e}x";
    assert_eq!(database.destination_value(left).await.as_deref(), Some(stays));
    let log = service.log();
    for (name, role) in [("a", &owner), ("b", &writer), ("b_0", &writer)] {
        let line =
            format!("dropped schema headwater_staging_{name} (role {role}): staging of an attempt that has ended");
        assert_eq!(log.matches(&line).count(), 1, "{name}: {log}");
    }
    assert!(log.contains(&format!("schema headwater_staging_mine (role {owner}) is named as staging is")), "{log}");
    assert!(log.contains(r#"schema U&"headwater_staging_\202ex" (role"#), "{log}");
    assert_eq!(log.matches("it stays").count(), 4, "{log}");
    assert_eq!(log.matches("dropped schema").count(), 3, "{log}");
    service.stop().await;
}

/// Every command that reads or writes schema headwater.
const COMMANDS: &[&[&str]] = &[
    &["skip", "--end-lsn", "0/1"],
    &["conflict", "show"],
    &["dead-letter", "list"],
    &["dead-letter", "show", "--end-lsn", "0/1"],
    &["replay", "--end-lsn", "0/1"],
    &["resnapshot", "--no-wait"],
    &["verify"],
    &["verify", "--repair"],
    &["verify", "--no-fence"],
    &["verify", "--catch-up"],
    &["cutover"],
    &["status"],
    &["explain"],
    &["check"],
    &["teardown", "--dry-run"],
    &["teardown"],
];

async fn every_command_refuses(setup: &Setup, database: &Database, message: &str) {
    for command in COMMANDS {
        let finished = setup.command(command).await;
        assert_ne!(finished.code, Some(0), "{command:?}: {finished:?}");
        // Two of them fit their lines to the terminal.
        let words: Vec<&str> = finished.out.split_whitespace().chain(finished.err.split_whitespace()).collect();
        assert!(words.join(" ").contains(message), "{command:?} does not say {message:?}: {finished:?}");
        nobody_was_pwned(database).await;
    }
    let output = setup.start().ends_with(1).await;
    assert!(output.contains(message), "{output}");
    nobody_was_pwned(database).await;
}

/// The code is there, and works: it runs when headwater's role does what the commands would have done.
async fn the_trap_works(database: &Database, sql: &str) {
    let client = crate::support::database::connect(&database.destination_url).await.expect("a session of the writer");
    client.script("stepping into the trap", sql).await.expect("the trap is not seen");
    let pwned = "SELECT (count(*) > 0)::text FROM only_writer.pwned";
    assert_eq!(database.destination_value(pwned).await.as_deref(), Some("true"), "{sql}");
    database.at_destination("TRUNCATE only_writer.pwned").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_runs_what_a_strangers_schema_headwater_holds() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_trap", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let setup = Setup::of(&database);
    let bookkeeping = std::fs::read_to_string("sql/bookkeeping.sql").expect("the bookkeeping's SQL");
    database.at_destination(&format!("GRANT CREATE ON DATABASE {} TO {owner}", database.name)).await;
    // Every table has become a view that calls what it likes, and every function does something else.
    as_owner(
        &database,
        &format!(
            "{bookkeeping};
             DO $do$ DECLARE o record; BEGIN
                 FOR o IN SELECT relname FROM pg_class WHERE relnamespace = 'headwater'::regnamespace AND relkind = 'r' LOOP
                     EXECUTE format('ALTER TABLE headwater.%I RENAME TO %I', o.relname, 'real_' || o.relname);
                     EXECUTE format('CREATE VIEW headwater.%I AS SELECT * FROM headwater.%I WHERE public.pwn(%L)',
                                    o.relname, 'real_' || o.relname, o.relname);
                     EXECUTE format('CREATE TRIGGER x INSTEAD OF INSERT OR UPDATE OR DELETE ON headwater.%I
                                     FOR EACH ROW EXECUTE FUNCTION public.pwn_trigger()', o.relname);
                 END LOOP;
             END $do$;
             CREATE OR REPLACE FUNCTION headwater.random_key() RETURNS bigint LANGUAGE sql AS
                 $$ SELECT 1::bigint FROM public.pwn('random_key') $$;
             GRANT ALL ON SCHEMA headwater TO {writer}; GRANT ALL ON ALL TABLES IN SCHEMA headwater TO {writer}"
        ),
    )
    .await;
    let message =
        format!("schema headwater at the destination belongs to role {owner}, not to headwater's role {writer}");
    every_command_refuses(&setup, &database, &message).await;
    the_trap_works(&database, "SELECT * FROM headwater.stream").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn no_command_fires_triggers_that_others_have_left_on_the_bookkeeping() {
    if cannot_grant_parameters().await {
        return;
    }
    // Where ordinary triggers do not act on what is applied, either: they do on what commands write.
    let database = new("own_left", true).await;
    let owner = owner(&database.name);
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    // The privilege is gone again; what was made with it has stayed.
    database
        .at_destination(&format!(
            "GRANT USAGE ON SCHEMA headwater TO {owner};
             DO $do$ DECLARE o regclass; BEGIN
                 FOR o IN SELECT oid FROM pg_class WHERE relnamespace = 'headwater'::regnamespace AND relkind = 'r' LOOP
                     EXECUTE format('GRANT TRIGGER ON %s TO {owner}', o);
                     SET LOCAL ROLE {owner};
                     EXECUTE format('CREATE TRIGGER x BEFORE INSERT OR UPDATE OR DELETE ON %s EXECUTE FUNCTION public.pwn_trigger()', o);
                     RESET ROLE;
                     EXECUTE format('REVOKE TRIGGER ON %s FROM {owner}', o);
                 END LOOP;
             END $do$"
        ))
        .await;
    let message = format!("code of role {owner} would run with headwater's rights at the destination");
    every_command_refuses(&setup, &database, &message).await;
    the_trap_works(&database, "INSERT INTO headwater.skip (end_lsn) VALUES ('0/1')").await;
    database.at_destination("DELETE FROM headwater.skip; TRUNCATE only_writer.pwned").await;
    let [found, detail, hint] = finding(&setup).await.expect("the triggers are found");
    assert_eq!(found, message);
    assert!(!detail.contains("session_replication_role"), "{detail}");
    database.at_destination(&statements(&hint)).await;
    let service = setup.start();
    service.streams().await;
    database.at_source("INSERT INTO t VALUES (7, 'x')").await;
    database.assert_catches_up().await;
    service.stop().await;
    setup.command(&["dead-letter", "list"]).await.exits(0);
    nobody_was_pwned(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn tables_of_an_untrusted_owner_are_written_only_on_the_operators_word() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_refused", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    as_owner(&database, TABLE).await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    let message = format!("role {owner} could have code run with headwater's rights at the destination");
    let [said, detail, hint] = finding(&setup).await.expect("the owner is named");
    assert_eq!(said, message);
    assert!(detail.contains(&format!("{owner}: table public.t belongs to it.")), "{detail}");
    assert!(hint.contains(&format!("trusted_roles = [\"{owner}\"]")) && hint.contains("\"watch\""), "{hint}");
    let output = setup.start().ends_with(1).await;
    assert!(output.contains(&message), "{output}");
    // By default.
    let by_default = Setup::of(&database).destination("# untrusted_owners");
    assert_eq!(finding(&by_default).await.expect("the owner is named")[0], message);
    // Each way of having a hand in it, with the table in headwater's own.
    database.at_destination(&format!("ALTER TABLE t OWNER TO {writer}")).await;
    assert_eq!(finding(&setup).await, None);
    let ways = [
        (
            format!("ALTER SCHEMA public OWNER TO {owner}"),
            "ALTER SCHEMA public OWNER TO pg_database_owner".to_owned(),
            "schema public belongs to it",
        ),
        (
            format!("ALTER DATABASE {} OWNER TO {owner}", database.name),
            format!("ALTER DATABASE {} OWNER TO postgres", database.name),
            "schema public belongs to it",
        ),
        (
            format!("GRANT TRIGGER ON t TO {owner}"),
            format!("REVOKE TRIGGER ON t FROM {owner}"),
            "it has TRIGGER on table public.t",
        ),
        ("GRANT TRIGGER ON t TO PUBLIC".to_owned(), "REVOKE TRIGGER ON t FROM PUBLIC".to_owned(), "PUBLIC: it has TRIGGER"),
        (
            format!("CREATE TYPE odd AS ENUM ('a'); ALTER TYPE odd OWNER TO {owner}; ALTER TABLE t ADD COLUMN o odd[]"),
            "ALTER TABLE t DROP COLUMN o; DROP TYPE odd".to_owned(),
            "type public.odd belongs to it",
        ),
        (
            format!(
                "CREATE TABLE child (); ALTER TABLE child OWNER TO {owner}; ALTER TABLE child ADD COLUMN id int NOT NULL, ADD COLUMN v text;
                 ALTER TABLE child INHERIT t"
            ),
            "DROP TABLE child".to_owned(),
            "table public.child belongs to it",
        ),
    ];
    for (given, taken, says) in &ways {
        database.at_destination(given).await;
        let [_, detail, _] = finding(&setup).await.unwrap_or_else(|| panic!("{given} is seen"));
        assert!(detail.contains(says) && detail.matches("belongs").count() < 2, "{detail}");
        database.at_destination(taken).await;
        assert_eq!(finding(&setup).await, None, "{taken}");
    }
    // While it streams the monitor sees it; what the hint prints takes a privilege away.
    let service = setup.start();
    service.streams().await;
    database.at_destination(&format!("GRANT TRIGGER ON t TO {owner}")).await;
    service.is("waiting").await;
    service.says(&message).await;
    let [_, _, hint] = finding(&setup).await.expect("the privilege is named");
    database.at_destination(&statements(&hint)).await;
    service.streams().await;
    database.at_destination(&format!("ALTER TABLE t OWNER TO {owner}")).await;
    service.is("waiting").await;
    service.stop().await;
    // Indexes and foreign keys of a partitioned table come to its partitions.
    let parted = "CREATE TABLE parted (id int NOT NULL, v text) PARTITION BY RANGE (id)";
    let attach = "ALTER TABLE parted ATTACH PARTITION t FOR VALUES FROM (0) TO (1000000)";
    database
        .at_destination(&format!(
            "{parted}; {attach}; ALTER TABLE parted OWNER TO {owner}; ALTER TABLE t OWNER TO {writer}"
        ))
        .await;
    let [_, detail, _] = finding(&setup).await.expect("the owner of the partitioned table is named");
    assert!(
        detail.contains("table public.parted belongs to it, and one that is written is a partition of it"),
        "{detail}"
    );
    database.at_destination("ALTER TABLE parted DETACH PARTITION t; DROP TABLE parted").await;
    // The owner of a row type is one of the type's.
    let row_type = "CREATE TABLE other (n int); ALTER TABLE t ADD COLUMN o other";
    let owners = format!("ALTER TABLE other OWNER TO {owner}; ALTER TABLE t OWNER TO {writer}");
    database.at_destination(&format!("{row_type}; {owners}")).await;
    let [_, detail, _] = finding(&setup).await.expect("the owner of the row type is named");
    assert!(detail.contains("type public.other belongs to it"), "{detail}");
    database.at_destination(&format!("ALTER TABLE t DROP COLUMN o; ALTER TABLE t OWNER TO {owner}")).await;
    // A name that nobody has is warned of.
    let odd = Setup::of(&database).destination(&format!("trusted_roles = [\"{owner}\", \"nobody_has_it\"]"));
    odd.command(&["check"]).await.exits(0).says(&["names roles that do not exist: nobody_has_it"]);
    for accepted in
        [format!("trusted_roles = [\"{owner}\", \"nobody_has_it\"]"), "untrusted_owners = \"watch\"".to_owned()]
    {
        let service = Setup::of(&database).destination(&accepted).start();
        service.streams().await;
        let said = service.log().matches("names roles that do not exist: nobody_has_it").count();
        assert_eq!(said, usize::from(accepted.contains("nobody_has_it")));
        database.at_source("INSERT INTO t SELECT max(id) + 1 FROM t").await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn untrusted_operators_that_could_find_rows_are_refused_and_so_are_their_makers() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_operator", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let types = "CREATE EXTENSION citext; CREATE DOMAIN email AS citext";
    let key = "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD COLUMN e email PRIMARY KEY DEFAULT 'a'";
    database.at_source(&format!("{types}; {key}")).await;
    let table = "CREATE TABLE t (id int, v text, e email PRIMARY KEY)";
    let own = format!("ALTER TABLE t OWNER TO {writer}; ALTER DOMAIN email OWNER TO {writer}");
    database.at_destination(&format!("{types}; {table}; {own}")).await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    let [_, detail, hint] = finding(&setup).await.expect("who may create operators is named");
    assert!(detail.contains(&format!("{owner}: it may create operators in schema public.")), "{detail}");
    assert!(
        detail.contains("An operator under the name of one by which rows are found is preferred to it"),
        "{detail}"
    );
    assert!(!detail.contains("trigger"), "{detail}");
    assert_eq!(statements(&hint), format!("REVOKE CREATE ON SCHEMA public FROM {owner} CASCADE;"));
    database.at_destination(&statements(&hint)).await;
    assert_eq!(finding(&setup).await, None);
    let service = setup.start();
    service.streams().await;
    database.at_source("UPDATE t SET v = 'b'").await;
    database.assert_catches_up().await;
    // It fits the domain exactly, so the server takes it for the one of citext.
    database
        .at_destination(&format!(
            "CREATE FUNCTION pwn_equal(email, email) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN public.pwn('operator'); END $$;
             ALTER FUNCTION pwn_equal OWNER TO {owner};
             CREATE OPERATOR public.= (LEFTARG = email, RIGHTARG = email, FUNCTION = pwn_equal);
             ALTER OPERATOR public.= (email, email) OWNER TO {owner}"
        ))
        .await;
    service.is("waiting").await;
    database.at_source("UPDATE t SET v = 'c'").await;
    let says = "operator public.= (public.email, public.email) calls public.pwn_equal(public.email, public.email)";
    let watching = Setup::of(&database).destination("untrusted_owners = \"watch\"");
    for setup in [&setup, &watching] {
        let [_, detail, hint] = finding(setup).await.expect("the operator is found");
        assert!(detail.contains(says), "{detail}");
        assert_eq!(statements(&hint), "DROP OPERATOR public.= (public.email, public.email);");
    }
    let [_, _, hint] = finding(&setup).await.expect("the operator is found");
    database.at_destination(&statements(&hint)).await;
    service.streams().await;
    database.assert_catches_up().await;
    nobody_was_pwned(&database).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_of_an_untrusted_owner_is_refused_before_the_stream_adds_its_column() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_typed", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database.at_destination(&format!("{TABLE}; ALTER TABLE t OWNER TO {writer}")).await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    let service = setup.start();
    service.streams().await;
    as_owner(&database, "CREATE DOMAIN later AS int").await;
    let add =
        |column: &str, of: &str| format!("ALTER TABLE t ADD COLUMN {column} {of} DEFAULT 7; UPDATE t SET v = 'b'");
    database.at_source(&format!("CREATE DOMAIN later AS int; {}", add("c", "later"))).await;
    service.is("waiting").await;
    service.says("type public.later belongs to it").await;
    let columns = "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attname IN ('c', 'd')";
    assert_eq!(database.destination_value(columns).await.as_deref(), Some("0"));
    database.at_destination(&format!("ALTER DOMAIN later OWNER TO {writer}")).await;
    service.streams().await;
    database.assert_catches_up().await;
    // The type is headwater's own, its schema is not.
    database
        .at_destination(&format!(
            "CREATE SCHEMA types; CREATE DOMAIN types.d AS int; ALTER DOMAIN types.d OWNER TO {writer};
             GRANT USAGE ON SCHEMA types TO {writer}; ALTER SCHEMA types OWNER TO {owner}"
        ))
        .await;
    database.at_source(&format!("CREATE SCHEMA types; CREATE DOMAIN types.d AS int; {}", add("d", "types.d"))).await;
    service.is("waiting").await;
    service.says("schema types belongs to it").await;
    assert_eq!(database.destination_value(columns).await.as_deref(), Some("1"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_collation_is_refused_before_a_first_copy_or_new_column_uses_it() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_collated", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let collation = |name: &str| format!("CREATE COLLATION {name} (locale = 'C')");
    database
        .at_source(&format!(
            "{}; CREATE TABLE u (id text COLLATE german PRIMARY KEY); INSERT INTO u VALUES ('a'), ('A')",
            collation("german")
        ))
        .await;
    as_owner(&database, &collation("german")).await;
    let mut setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    setup.tables = vec!["t".to_owned(), "u".to_owned()];
    let message = format!("role {owner} could drop or exchange collations of what is written at the destination");
    let [said, detail, hint] = finding(&setup).await.expect("the collation's owner is named");
    assert_eq!(said, message);
    assert!(detail.starts_with(&format!("{owner}: collation public.german belongs to it. ")), "{detail}");
    assert!(hint.contains(&format!("trusted_roles = [\"{owner}\"]")), "{hint}");
    assert_eq!(statements(&hint), "ALTER COLLATION public.german OWNER TO CURRENT_USER;");
    let output = setup.start().ends_with(1).await;
    assert!(output.contains(&message) && !output.contains("published"), "{output}");
    assert_eq!(database.destination_value("SELECT to_regclass('u')::text").await, None);
    database.at_destination(&statements(&hint)).await;
    assert_eq!(finding(&setup).await, None);
    let service = setup.start();
    service.streams().await;
    // In the stream: of a column, then of its schema.
    as_owner(&database, &collation("later")).await;
    database
        .at_source(&format!(
            "{}; ALTER TABLE u ADD COLUMN v text COLLATE later; INSERT INTO u VALUES ('b')",
            collation("later")
        ))
        .await;
    service.is("waiting").await;
    service.says("collation public.later belongs to it").await;
    let columns = "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 'u'::regclass AND attname IN ('v', 'w')";
    assert_eq!(database.destination_value(columns).await.as_deref(), Some("0"));
    database.at_destination(&format!("ALTER COLLATION later OWNER TO {writer}")).await;
    service.streams().await;
    database.caught_up().await;
    database
        .at_destination(&format!(
            "CREATE SCHEMA theirs; {}; ALTER COLLATION theirs.c OWNER TO {writer};
             GRANT USAGE ON SCHEMA theirs TO {writer}; ALTER SCHEMA theirs OWNER TO {owner}",
            collation("theirs.c")
        ))
        .await;
    database
        .at_source(&format!(
            "CREATE SCHEMA theirs; {}; ALTER TABLE u ADD COLUMN w text COLLATE theirs.c; INSERT INTO u VALUES ('c')",
            collation("theirs.c")
        ))
        .await;
    service.is("waiting").await;
    service.says("schema theirs belongs to it").await;
    assert_eq!(database.destination_value(columns).await.as_deref(), Some("1"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_and_collations_of_others_under_a_name_that_nothing_takes_are_no_obstacle() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_unused", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database
        .at_source(
            "CREATE COLLATION de (locale = 'C'); CREATE TYPE mood AS ENUM ('a'); CREATE TYPE pair AS (a mood, b text COLLATE de);
             CREATE TABLE u (id int PRIMARY KEY, body text COLLATE de); CREATE INDEX ON u (body)",
        )
        .await;
    // The destination's own table has a plain column.
    database
        .at_destination(&format!(
            "CREATE TABLE u (id int PRIMARY KEY, body text); ALTER TABLE u OWNER TO {writer}; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        ))
        .await;
    let mut setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    setup.tables = vec!["t".to_owned(), "u".to_owned()];
    let service = setup.start();
    service.streams().await;
    as_owner(
        &database,
        "CREATE COLLATION de FROM \"C\"; CREATE TYPE mood AS ENUM ('a'); CREATE TYPE pair AS (a mood, b text COLLATE de)",
    )
    .await;
    assert_eq!(finding(&setup).await, None);
    database.at_source("ALTER TABLE u ADD COLUMN n int; INSERT INTO u VALUES (1, 'a', 1)").await;
    database.caught_up().await;
    assert_eq!(database.destination_value("SELECT body || n FROM u").await.as_deref(), Some("a1"));
    service.stop().await;
    let service = setup.start();
    service.streams().await;
    // One that a column takes is one.
    database.at_source("ALTER TABLE u ADD COLUMN q pair; INSERT INTO u (id) VALUES (2)").await;
    service.is("waiting").await;
    for kind in ["type", "collation"] {
        let name = if kind == "type" { "pair" } else { "de" };
        service.says(&format!("{kind} public.{name} belongs to it")).await;
    }
    let [message, ..] = finding(&setup).await.expect("the type's owner is named");
    assert_eq!(message, format!("role {owner} could have code run with headwater's rights at the destination"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn owners_of_collations_of_columns_indexes_domains_and_expressions_are_named() {
    let database = new("own_collations", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    as_owner(&database, "CREATE COLLATION c (locale = 'C')").await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    let ways = [
        "ALTER TABLE t ADD COLUMN x text COLLATE c",
        "CREATE INDEX ON t (v COLLATE c)",
        "CREATE INDEX ON t (upper(v COLLATE c))",
        "ALTER TABLE t ADD CHECK (v < 'b' COLLATE c)",
        "CREATE DOMAIN d AS text COLLATE c; ALTER TABLE t ADD COLUMN x d[]",
        "CREATE TYPE r AS (a text COLLATE c); ALTER TABLE t ADD COLUMN x r",
        "CREATE TYPE r AS RANGE (subtype = text, collation = c); ALTER TABLE t ADD COLUMN x r",
        "CREATE TABLE parted (id int NOT NULL, v text) PARTITION BY RANGE (v COLLATE c); ALTER TABLE parted ATTACH PARTITION t DEFAULT",
    ];
    for way in ways {
        database.at_destination(&format!("{TABLE}; ALTER TABLE t OWNER TO {writer}")).await;
        assert_eq!(finding(&setup).await, None);
        database.at_destination(way).await;
        let [message, detail, _] = finding(&setup).await.unwrap_or_else(|| panic!("not found: {way}"));
        assert!(message.starts_with(&format!("role {owner} could ")), "{message}");
        assert!(detail.contains("collation public.c belongs to it"), "{way}: {detail}");
        database.at_destination("DROP TABLE t CASCADE; DROP TABLE IF EXISTS parted; DROP DOMAIN IF EXISTS d; DROP TYPE IF EXISTS r CASCADE").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn foreign_servers_and_wrappers_of_others_under_what_is_written_are_refused() {
    let database = new("own_servers", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    as_owner(
        &database,
        "CREATE FUNCTION valid(text[], oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.pwn('wrapper'); RETURN true; END $$",
    )
    .await;
    let wrapper = "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w";
    let ways = [
        (format!("ALTER SERVER s OWNER TO {owner}"), "server s of foreign table public.leaf (role "),
        (
            format!(
                "ALTER ROLE {owner} SUPERUSER; ALTER FOREIGN DATA WRAPPER w OWNER TO {owner}; ALTER ROLE {owner} NOSUPERUSER"
            ),
            "foreign-data wrapper w of foreign table public.leaf (role ",
        ),
        (
            "ALTER FOREIGN DATA WRAPPER w VALIDATOR valid".to_owned(),
            "foreign-data wrapper w of foreign table public.leaf calls public.valid(text[], oid) (role ",
        ),
    ];
    let shapes = [
        format!("{TABLE}; CREATE FOREIGN TABLE leaf () INHERITS (t) SERVER s"),
        "CREATE TABLE t (id int, v text) PARTITION BY RANGE (id); CREATE FOREIGN TABLE leaf PARTITION OF t DEFAULT SERVER s".to_owned(),
    ];
    let watching = Setup::of(&database);
    let refusing = watching.clone().destination("untrusted_owners = \"refuse\"");
    for shape in shapes {
        for (way, says) in &ways {
            database
                .at_destination(&format!(
                    "{wrapper}; {shape}; ALTER TABLE t OWNER TO {writer}; ALTER FOREIGN TABLE leaf OWNER TO {writer}"
                ))
                .await;
            assert_eq!(finding(&refusing).await, None, "a superuser's server is no obstacle");
            // GRANT … OWNER needs USAGE on the wrapper.
            database.at_destination(&format!("GRANT USAGE ON FOREIGN DATA WRAPPER w TO {owner}; {way}")).await;
            for setup in [&watching, &refusing] {
                let [message, detail, hint] = finding(setup).await.unwrap_or_else(|| panic!("not found: {way}"));
                assert_eq!(
                    message,
                    format!("code of role {owner} would run with headwater's rights at the destination")
                );
                assert!(detail.contains(says), "{detail}");
                assert!(hint.contains(&format!("trusted_roles = [\"{owner}\"]")), "{hint}");
            }
            database.at_destination("DROP TABLE t CASCADE; DROP FOREIGN DATA WRAPPER w CASCADE").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn owners_of_operators_and_text_search_objects_of_expressions_are_named() {
    let database = new("own_objects", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    as_owner(
        &database,
        "CREATE TEXT SEARCH DICTIONARY dict (TEMPLATE = simple); CREATE TEXT SEARCH CONFIGURATION conf (COPY = simple);
         CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, PROCEDURE = texteq)",
    )
    .await;
    database
        .at_destination(&format!(
            "CREATE TEXT SEARCH CONFIGURATION ours (COPY = simple); ALTER TEXT SEARCH CONFIGURATION ours OWNER TO {writer};
             ALTER TEXT SEARCH CONFIGURATION ours ALTER MAPPING FOR asciiword WITH dict;
             CREATE SCHEMA theirs; GRANT USAGE ON SCHEMA theirs TO {writer};
             CREATE FUNCTION theirs.same(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1'; ALTER FUNCTION theirs.same OWNER TO {writer};
             CREATE TEXT SEARCH CONFIGURATION theirs.conf (COPY = simple); ALTER TEXT SEARCH CONFIGURATION theirs.conf OWNER TO {writer};
             ALTER SCHEMA theirs OWNER TO {owner}"
        ))
        .await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    let (conf, dict) = ("text search configuration public.conf", "text search dictionary public.dict");
    let operator = "operator public.===(pg_catalog.text,pg_catalog.text)";
    let ways = [
        ("ALTER TABLE t ADD COLUMN x tsvector GENERATED ALWAYS AS (to_tsvector('conf', v)) STORED", conf),
        ("CREATE INDEX ON t USING gin (to_tsvector('conf', v))", conf),
        ("ALTER TABLE t ADD CHECK (to_tsvector('conf', v) IS NOT NULL)", conf),
        ("ALTER TABLE t ADD CHECK (ts_lexize('dict', v) IS NOT NULL)", dict),
        ("CREATE INDEX ON t USING gin (to_tsvector('ours', v))", dict),
        ("ALTER TABLE t ADD COLUMN x boolean GENERATED ALWAYS AS (v OPERATOR(public.===) 'a') STORED", operator),
        ("ALTER TABLE t ADD COLUMN x boolean DEFAULT 'a' OPERATOR(public.===) 'b'", operator),
        ("ALTER TABLE t ADD CHECK (v OPERATOR(public.===) v)", operator),
        ("CREATE INDEX ON t ((v OPERATOR(public.===) 'a'))", operator),
        ("CREATE INDEX ON t (id) WHERE v OPERATOR(public.===) 'a'", operator),
        ("CREATE DOMAIN d AS text CHECK (VALUE OPERATOR(public.===) VALUE); ALTER TABLE t ADD COLUMN x d[]", operator),
        ("ALTER TABLE t ADD CHECK (theirs.same(v) <> '')", "schema theirs"),
        ("CREATE INDEX ON t USING gin (to_tsvector('theirs.conf', v))", "schema theirs"),
    ];
    for (way, object) in ways {
        database.at_destination(&format!("{TABLE}; ALTER TABLE t OWNER TO {writer}")).await;
        assert_eq!(finding(&setup).await, None, "what nothing depends on is no obstacle");
        database.at_destination(way).await;
        let [message, detail, hint] = finding(&setup).await.unwrap_or_else(|| panic!("not found: {way}"));
        assert!(detail.contains(&format!("{object} belongs to it")), "{way}: {detail}");
        if object.starts_with("schema") {
            assert_eq!(message, format!("role {owner} could have code run with headwater's rights at the destination"));
        } else {
            assert_eq!(
                message,
                format!("role {owner} could drop or change objects that tables at the destination depend on")
            );
            database.at_destination(&statements(&hint)).await;
            assert_eq!(finding(&setup).await, None, "{hint}");
            let kind = object.split(" public").next().unwrap_or_default();
            database.at_destination(&format!("ALTER {kind} {} OWNER TO {owner}", &object[kind.len()..])).await;
        }
        database.at_destination("DROP TABLE t CASCADE; DROP DOMAIN IF EXISTS d").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_generated_columns_of_a_destination_of_14_are_made_of_is_found() {
    let Some(bin) = bin_of(14) else { return };
    let to = new_destination_of(&bin, &[]).await;
    let database = new_at(&to, "own_generated", false).await;
    as_owner(&database, "CREATE TEXT SEARCH CONFIGURATION conf (COPY = simple)").await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    database.at_destination(&format!("{TABLE}; ALTER TABLE t OWNER TO {}", writer(&database.name))).await;
    assert_eq!(finding(&setup).await, None, "what nothing depends on is no obstacle");
    let add = "ALTER TABLE t ADD COLUMN x tsvector GENERATED ALWAYS AS (to_tsvector('conf', v)) STORED";
    database.at_destination(add).await;
    let [_, detail, _] = finding(&setup).await.expect("a finding");
    assert!(detail.contains("text search configuration public.conf belongs to it"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_over_untrusted_expressions_are_named_with_their_drop() {
    let database = new("own_statistics", true).await;
    as_owner(&database, &format!("{TABLE}; CREATE STATISTICS x ON (v || pwn('statistics')::text), (v || 'x') FROM t"))
        .await;
    let setup = Setup::of(&database);
    let [_, detail, hint] = finding(&setup).await.expect("the statistics are named");
    assert!(detail.contains("statistics x of table public.t calls public.pwn(how text)"), "{detail}");
    assert_eq!(statements(&hint), "DROP STATISTICS public.x;");
    as_owner(&database, &statements(&hint)).await;
    assert_eq!(finding(&setup).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_foreign_keys_act_who_may_make_one_onto_a_table_is_named() {
    let database = new("own_references", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database.at_destination(&format!("{TABLE}; ALTER TABLE t OWNER TO {writer}")).await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    assert_eq!(finding(&setup).await, None);
    database.at_destination(&format!("GRANT REFERENCES ON t TO {owner}")).await;
    as_owner(&database, "CREATE TABLE theirs (id int REFERENCES t)").await;
    let [_, detail, hint] = finding(&setup).await.expect("the privilege and the table are named");
    assert!(detail.contains("it has REFERENCES on table public.t"), "{detail}");
    let foreign_key = "table public.theirs belongs to it, and its foreign key theirs_id_fkey leads to what is written";
    assert!(detail.contains(foreign_key), "{detail}");
    assert!(detail.contains("The check of a foreign key calls operators and casts"), "{detail}");
    assert!(!detail.contains("attach triggers"), "{detail}");
    let drop = "ALTER TABLE public.theirs DROP CONSTRAINT theirs_id_fkey;";
    assert_eq!(statements(&hint), format!("REVOKE REFERENCES ON public.t FROM {owner} CASCADE;\n{drop}"));
    database.at_destination(&format!("REVOKE REFERENCES ON t FROM {owner}")).await;
    let [_, detail, hint] = finding(&setup).await.expect("a foreign key stays without the privilege");
    assert!(!detail.contains("REFERENCES") && detail.contains(foreign_key), "{detail}");
    assert_eq!(statements(&hint), drop);
    database.at_destination(&statements(&hint)).await;
    assert_eq!(finding(&setup).await, None);
    // One that its partitions have from their parent, and one that cascades.
    database.at_destination(&format!("GRANT REFERENCES ON t TO {owner}")).await;
    as_owner(
        &database,
        "DROP TABLE theirs;
         CREATE TABLE theirs (id int REFERENCES t) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF theirs DEFAULT;
         CREATE TABLE follows (id int CONSTRAINT c REFERENCES t ON DELETE CASCADE)",
    )
    .await;
    database.at_destination(&format!("REVOKE REFERENCES ON t FROM {owner}")).await;
    let [_, _, hint] = finding(&setup).await.expect("the foreign keys are named");
    assert_eq!(statements(&hint), format!("ALTER TABLE public.follows DROP CONSTRAINT c;\n{drop}"));
    database.at_destination(&statements(&hint)).await;
    assert_eq!(finding(&setup).await, None);
    as_owner(&database, "DROP TABLE theirs, follows").await;
    // Of a column alone; the statement takes it away, too.
    database.at_destination(&format!("GRANT REFERENCES (id) ON t TO {owner}")).await;
    let [_, _, hint] = finding(&setup).await.expect("the privilege is named");
    database.at_destination(&statements(&hint)).await;
    assert_eq!(finding(&setup).await, None);
    // The other way round: a table that is not followed, which ours refers to.
    as_owner(&database, "CREATE TABLE theirs (id int PRIMARY KEY)").await;
    database.at_destination("ALTER TABLE t ADD CONSTRAINT up FOREIGN KEY (id) REFERENCES theirs").await;
    let [_, detail, _] = finding(&setup).await.expect("the owner of the table that is referred to is named");
    assert!(detail.contains("table public.theirs belongs to it, and the check of a foreign key reads it"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_uses_no_untrusted_type_and_grants_no_trigger_by_default() {
    if cannot_grant_parameters().await {
        return;
    }
    let database = new("own_copy", true).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database.at_source("CREATE DOMAIN d AS int; ALTER TABLE t ADD COLUMN d d DEFAULT 1").await;
    // The copy waits for this lock once the start has looked: there is no such type then.
    database.at_source("CREATE TABLE u (id int PRIMARY KEY)").await;
    database.at_destination(&format!("CREATE TABLE u (id int PRIMARY KEY); ALTER TABLE u OWNER TO {writer}")).await;
    database
        .at_destination(&format!("ALTER DEFAULT PRIVILEGES FOR ROLE {writer} GRANT ALL ON TABLES TO {owner}"))
        .await;
    let mut setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    setup.tables = vec!["t".to_owned(), "u".to_owned()];
    database.at_destination("BEGIN; LOCK TABLE u IN ACCESS EXCLUSIVE MODE").await;
    let service = setup.start();
    let waits = "SELECT (count(*) > 0)::text FROM pg_locks WHERE relation = 'u'::regclass AND NOT granted";
    eventually("the start waits for the table", || async {
        (database.destination_value(waits).await.as_deref() == Some("true")).then_some(())
    })
    .await;
    as_owner(&database, "CREATE DOMAIN d AS int; COMMIT").await;
    let output = service.ends_with(1).await;
    assert!(output.contains("type public.d belongs to it"), "{output}");
    assert!(!output.contains("published"), "{output}");
    database.at_destination("DROP DOMAIN d").await;
    let service = setup.start();
    service.streams().await;
    service.says(&format!("table public.t: TRIGGER not granted to role {owner}")).await;
    database.at_source("UPDATE t SET d = 2").await;
    database.assert_catches_up().await;
    service.stop().await;
}

/// Where a function is called that no table which is written names, and what is said of it. The tables belong to roles that are trusted.
const CALLED: &[(&str, &str)] = &[
    (
        "CREATE TABLE parted (id int NOT NULL, v text) PARTITION BY RANGE (pwn_number(id));
         ALTER TABLE parted ATTACH PARTITION t FOR VALUES FROM (0) TO (1000)",
        "the partition key of table public.parted calls public.pwn_number(integer)",
    ),
    (
        "CREATE TABLE root (id int NOT NULL, v text) PARTITION BY RANGE (pwn_number(id));
         CREATE TABLE parted PARTITION OF root FOR VALUES FROM (0) TO (1000) PARTITION BY RANGE (id);
         ALTER TABLE parted ATTACH PARTITION t FOR VALUES FROM (0) TO (1000)",
        "the partition key of table public.root calls public.pwn_number(integer)",
    ),
    (
        "CREATE OPERATOR CLASS pwn_ops FOR TYPE int USING hash AS OPERATOR 1 pg_catalog.=, FUNCTION 2 pwn_hash(int, bigint);
         CREATE TABLE parted (id int NOT NULL, v text) PARTITION BY HASH (id pwn_ops);
         ALTER TABLE parted ATTACH PARTITION t FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "the partition key of table public.parted calls public.pwn_hash(integer, bigint)",
    ),
    (
        "CREATE TABLE up (id int PRIMARY KEY); CREATE INDEX x ON up (id) WHERE pwn_number(1) = 1;
         ALTER TABLE t ADD CONSTRAINT up FOREIGN KEY (id) REFERENCES up",
        "index x of table public.up calls public.pwn_number(integer)",
    ),
    (
        "CREATE TABLE up (id int PRIMARY KEY, v text); CREATE STATISTICS x ON (v || pwn_number(1)), (v || 'x') FROM up;
         ALTER TABLE t ADD CONSTRAINT up FOREIGN KEY (id) REFERENCES up",
        "statistics x of table public.up calls public.pwn_number(integer)",
    ),
    (
        "CREATE TABLE up (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE up_1 PARTITION OF up DEFAULT;
         ALTER TABLE up_1 ADD CONSTRAINT x CHECK (pwn_number(1) = 1);
         ALTER TABLE t ADD CONSTRAINT up FOREIGN KEY (id) REFERENCES up",
        "check x of table public.up_1 calls public.pwn_number(integer)",
    ),
    (
        "CREATE TABLE down (id int REFERENCES t); CREATE INDEX x ON down (id) WHERE pwn_number(1) = 1",
        "index x of table public.down calls public.pwn_number(integer)",
    ),
    (
        "CREATE TABLE down (id int REFERENCES t ON DELETE CASCADE);
         CREATE TRIGGER x BEFORE DELETE ON down FOR EACH ROW EXECUTE FUNCTION pwn_trigger()",
        "trigger x of table public.down calls public.pwn_trigger()",
    ),
    (
        "CREATE TABLE down (id int DEFAULT pwn_number(1) REFERENCES t ON DELETE SET DEFAULT)",
        "the default of column id of table public.down calls public.pwn_number(integer)",
    ),
    (
        "CREATE CAST (mood AS int) WITH FUNCTION pwn_mood(mood) AS IMPLICIT; CREATE TABLE down (id mood REFERENCES t)",
        "cast (public.mood AS pg_catalog.int4) calls public.pwn_mood(public.mood)",
    ),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn functions_of_partitioned_parents_and_of_what_foreign_keys_check_are_found() {
    let database = new("own_called", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    as_owner(
        &database,
        "CREATE TYPE mood AS ENUM ('a');
         CREATE FUNCTION pwn_number(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
         CREATE FUNCTION pwn_hash(int, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT $1::bigint';
         CREATE FUNCTION pwn_mood(mood) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'",
    )
    .await;
    let setup = Setup::of(&database);
    for (sql, says) in CALLED {
        database
            .at_destination(&format!(
                "{TABLE}; {sql};
                 DO $$ DECLARE made regclass; BEGIN
                     FOR made IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') LOOP
                         EXECUTE format('ALTER TABLE %s OWNER TO %I', made, CASE made::text WHEN 't' THEN '{writer}' ELSE 'postgres' END);
                     END LOOP;
                 END $$"
            ))
            .await;
        let [message, detail, hint] = finding(&setup).await.unwrap_or_else(|| panic!("not found: {sql}"));
        assert_eq!(message, format!("code of role {owner} would run with headwater's rights at the destination"));
        assert!(detail.contains(says) && detail.matches(" calls ").count() == 1, "{detail}");
        if !says.contains("partition key") {
            database.at_destination(&statements(&hint)).await;
        }
        let clean = "DROP TABLE t CASCADE; DROP TABLE IF EXISTS up, down, root, parted CASCADE;
                     DROP CAST IF EXISTS (mood AS int); DROP OPERATOR FAMILY IF EXISTS pwn_ops USING hash CASCADE";
        database.at_destination(clean).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn casts_between_a_type_in_use_and_one_that_nothing_uses_are_no_obstacle() {
    let database = new("own_cast_unused", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database
        .at_destination(&format!(
            "CREATE TYPE calm AS ENUM ('a'); CREATE TABLE t (id int PRIMARY KEY, v text, c calm);
             ALTER TABLE t OWNER TO {writer}; ALTER TYPE calm OWNER TO {writer}; CREATE SCHEMA theirs AUTHORIZATION {owner}"
        ))
        .await;
    as_owner(
        &database,
        "CREATE TYPE theirs.x AS (a int);
         CREATE FUNCTION theirs.row(t) RETURNS theirs.x LANGUAGE sql AS 'SELECT ROW(1)::theirs.x';
         CREATE FUNCTION theirs.calm(theirs.x) RETURNS calm LANGUAGE sql AS 'SELECT ''a''::public.calm';
         CREATE CAST (t AS theirs.x) WITH FUNCTION theirs.row(t); CREATE CAST (theirs.x AS calm) WITH FUNCTION theirs.calm(theirs.x)",
    )
    .await;
    let refusing = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    let watching = Setup::of(&database);
    for setup in [&refusing, &watching] {
        assert_eq!(finding(setup).await, None);
    }
    // Once both are in use there is something to call it. Its statement names types of two owners.
    database.at_destination("ALTER TABLE t ADD COLUMN x theirs.x").await;
    let [_, detail, hint] = finding(&watching).await.expect("the casts are found");
    assert_eq!(detail.matches("cast (").count(), 2, "{detail}");
    assert!(hint.contains("un at the destination as a superuser:\n"), "{hint}");
    database.at_destination(&statements(&hint)).await;
    assert_eq!(finding(&watching).await, None);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn privileges_that_were_granted_on_are_taken_away_by_the_hint() {
    let database = new("own_granted_on", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let (second, deputy) = (format!("second_{owner}"), format!("deputy_{writer}"));
    database
        .at_destination(&format!(
            "CREATE ROLE {second} LOGIN; CREATE ROLE {deputy}; GRANT {writer} TO {deputy}; CREATE EXTENSION citext;
             REVOKE CREATE ON SCHEMA public FROM {owner}, PUBLIC; GRANT USAGE ON SCHEMA public TO {second}, {deputy};
             CREATE TABLE t (id int PRIMARY KEY, v text, c citext); CREATE INDEX ON t (c); ALTER TABLE t OWNER TO {writer}"
        ))
        .await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    assert_eq!(finding(&setup).await, None);
    let ways = [
        ("CREATE ON SCHEMA public", &owner, 1),
        ("TRIGGER ON t", &owner, 1),
        ("REFERENCES ON t", &owner, 1),
        ("REFERENCES (id, v) ON t", &owner, 1),
        // A role that is trusted keeps what it has.
        ("CREATE ON SCHEMA public", &deputy, 1),
        ("TRIGGER ON t", &deputy, 1),
        ("REFERENCES (id) ON t", &deputy, 1),
    ];
    for (privilege, first, lines) in ways {
        database
            .at_destination(&format!(
                "GRANT {privilege} TO {first} WITH GRANT OPTION; SET ROLE {first}; GRANT {privilege} TO {second}; RESET ROLE"
            ))
            .await;
        let [message, _, hint] = finding(&setup).await.unwrap_or_else(|| panic!("{privilege} is found"));
        assert!(message.contains(&second) && message.contains(first.as_str()) == (*first == owner), "{message}");
        assert_eq!(statements(&hint).lines().count(), lines, "{hint}");
        database.at_destination(&statements(&hint)).await;
        assert_eq!(finding(&setup).await, None, "{hint}");
        database.at_destination(&format!("REVOKE {privilege} FROM {deputy} CASCADE")).await;
    }
    // Of the table to one, of a column by that one: neither goes with the other.
    database
        .at_destination(&format!(
            "GRANT REFERENCES ON t TO {owner} WITH GRANT OPTION; SET ROLE {owner}; GRANT REFERENCES (id) ON t TO {second}; RESET ROLE"
        ))
        .await;
    let [_, _, hint] = finding(&setup).await.expect("both are found");
    assert_eq!(
        statements(&hint),
        format!(
            "SET ROLE {owner}; REVOKE REFERENCES ON public.t FROM {second} CASCADE; RESET ROLE;\n\
             REVOKE REFERENCES ON public.t FROM {owner} CASCADE;"
        )
    );
    database.at_destination(&statements(&hint)).await;
    assert_eq!(finding(&setup).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_roles_that_only_trusted_ones_can_act_as_is_no_obstacle() {
    let database = new("own_groups", false).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    let group = format!("group_{owner}");
    database
        .at_destination(&format!(
            "ALTER DATABASE {} OWNER TO {writer}; REVOKE CREATE ON SCHEMA public FROM {owner}, PUBLIC;
             CREATE ROLE {group}; CREATE ROLE inner_{group} IN ROLE {group}; GRANT inner_{group} TO {writer};
             CREATE EXTENSION citext; CREATE TABLE t (id int PRIMARY KEY, v text, c citext); CREATE INDEX ON t (c); ALTER TABLE t OWNER TO {writer}",
            database.name
        ))
        .await;
    let setup = Setup::of(&database).destination("untrusted_owners = \"refuse\"");
    assert_eq!(finding(&setup).await, None);
    for role in ["pg_database_owner", &group] {
        database
            .at_destination(&format!(
                "GRANT TRIGGER, REFERENCES ON t TO {role}; GRANT CREATE ON SCHEMA public TO {role}; ALTER TABLE t OWNER TO {role}"
            ))
            .await;
        assert_eq!(finding(&setup).await, None, "{role}");
    }
    // Once a role that is not trusted can act as it, by another one.
    let ways = [
        (format!("GRANT inner_{group} TO {owner}"), format!("REVOKE inner_{group} FROM {owner}")),
        (format!("ALTER ROLE {group} LOGIN"), format!("ALTER ROLE {group} NOLOGIN")),
    ];
    for (given, taken) in ways {
        database.at_destination(&given).await;
        let [message, detail, _] = finding(&setup).await.unwrap_or_else(|| panic!("{given}"));
        assert_eq!(message, format!("role {group} could have code run with headwater's rights at the destination"));
        assert!(detail.contains("table public.t belongs to it"), "{detail}");
        database.at_destination(&taken).await;
        assert_eq!(finding(&setup).await, None, "{taken}");
    }
    // The database's owner is another one.
    database
        .at_destination(&format!(
            "ALTER TABLE t OWNER TO {writer}; GRANT TRIGGER ON t TO pg_database_owner; ALTER DATABASE {} OWNER TO {owner}",
            database.name
        ))
        .await;
    let [message, detail, hint] = finding(&setup).await.expect("the database's owner is found");
    assert!(message.contains("pg_database_owner"), "{message}");
    assert!(detail.contains("it has TRIGGER on table public.t"), "{detail}");
    assert!(hint.contains("REVOKE TRIGGER ON public.t FROM pg_database_owner CASCADE;"), "{hint}");
}
