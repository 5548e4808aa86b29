//! What check says where a server does not let us in, is too old, or where the bookkeeping is not what headwater wrote: each
//! is provoked, and mended by doing what the hint says.

use crate::support::certificates::{Certificates, with_hba};
use crate::support::findings::{FAMILY, FAMILY_SCHEMA, failed, find, findings, fix, hint, mended};
use crate::support::pooler::{Between, Pooler};
use crate::support::{Database, Script, Setup, destination, new_source, source};

#[tokio::test(flavor = "multi_thread")]
async fn passwords_roles_and_pg_hba_are_mended_by_what_is_printed() {
    let mut server = new_source(&[]).await;
    let admin = server.connect("postgres").await.unwrap();
    let roles = "CREATE ROLE guarded SUPERUSER REPLICATION LOGIN PASSWORD 'the secret'; CREATE ROLE barred SUPERUSER REPLICATION LOGIN;
        CREATE ROLE idle SUPERUSER REPLICATION NOLOGIN";
    admin.script("roles", roles).await.unwrap();
    admin.batch("a database", "CREATE DATABASE elsewhere").await.unwrap();
    drop(admin);
    with_hba(
        &mut server,
        "host all guarded 127.0.0.1/32 scram-sha-256\nhost all barred 127.0.0.1/32 reject\nhost all idle 127.0.0.1/32 trust\n\
         host all nobody 127.0.0.1/32 trust",
    )
    .await;
    let database = Database::on(&server, destination().await, "refused", FAMILY, FAMILY_SCHEMA).await;
    let url = |login: &str, database: &str| server.tcp_url(database).replace("postgres@", &format!("{login}@"));
    for side in ["source", "destination"] {
        let with = |login: &str| {
            let mut setup = Setup::of(&database);
            match side {
                "source" => setup.source_url = url(login, &database.name),
                // Another database of the same server.
                _ => setup.destination_url = url(login, "elsewhere"),
            }
            setup
        };
        // No password, and a wrong one; the environment mends both.
        for (login, message) in [
            ("guarded", "asks for a password, and none was given"),
            ("guarded:not it", "password authentication failed"),
        ] {
            let setup = with(&login.replace(' ', "%20"));
            let finding = failed(&setup, message).await;
            assert_eq!((&finding["about"], &finding["what"]), (&side.into(), &"connection".into()), "{finding}");
            assert!(hint(&finding).contains(&format!("in ~/.pgpass, PGPASSWORD or {side}.url")), "{finding}");
            assert!(!finding.to_string().contains("not it"), "{finding}");
        }
        let mut with_password = with("guarded");
        with_password.environment.push(("PGPASSWORD".to_owned(), "the secret".to_owned()));
        mended(&with_password).await;
        for login in ["nobody", "idle"] {
            let finding = failed(&with(login), &format!("role \"{login}\"")).await;
            let says = format!("Correct the user in {side}.url, which must exist and have LOGIN");
            assert!(hint(&finding).starts_with(&says), "{finding}");
        }
        let finding = failed(&with("barred"), "pg_hba.conf").await;
        let says = format!(
            "Allow this role, database and address in pg_hba.conf at the {side}, then: SELECT pg_reload_conf();"
        );
        assert_eq!(hint(&finding), says);
    }
    let setup = Setup { source_url: url("barred", &database.name), ..Setup::of(&database) };
    let hba = server.dir().join("data/pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("host all barred 127.0.0.1/32 trust\n{lines}")).unwrap();
    database.at_source("SELECT pg_reload_conf()").await;
    crate::support::eventually("the role is let in", || async {
        let found = findings(&setup).await;
        found.iter().all(|finding| finding["standing"] != "failed").then_some(())
    })
    .await;
    database.at_source("ALTER ROLE idle LOGIN").await;
    mended(&Setup { source_url: url("idle", &database.name), ..Setup::of(&database) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_is_missing_or_not_trusted_is_mended_by_what_is_printed() {
    let certificates = Certificates::new();
    let mut server = new_source(&[]).await;
    let database = Database::on(&server, destination().await, "checktls", FAMILY, FAMILY_SCHEMA).await;
    let with = |host: &str, parameters: &str| {
        let (login, _) = database.source_url.split_once('@').expect("a role");
        let source_url = format!("{login}@{host}:{}/{}?{parameters}", server.port(), database.name);
        Setup { source_url, ..Setup::of(&database) }
    };
    let root = format!("sslrootcert={}", certificates.path("root.crt"));
    let stranger = format!("sslrootcert={}", certificates.path("stranger.crt"));

    let asks = with("localhost", &format!("sslmode=verify-full&{root}"));
    let finding = failed(&asks, "the server does not offer TLS").await;
    assert!(hint(&finding).starts_with("Set ssl = on at the source, with a certificate; or"), "{finding}");
    assert!(hint(&finding).ends_with("sslmode=prefer in source.url."), "{finding}");
    mended(&with("localhost", "sslmode=prefer")).await;
    let untrusted = with("localhost", &format!("sslmode=verify-full&{stranger}"));
    let named_otherwise = with("127.0.0.1", &format!("sslmode=verify-full&{root}"));
    let named = with("localhost", &format!("hostaddr=127.0.0.1&sslmode=verify-full&{root}"));
    let unverified = with("localhost", "sslmode=verify-full");
    let no_file = with("localhost", "sslmode=verify-full&sslrootcert=/nonexistent.crt");

    certificates.install(&server);
    for (name, value) in [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl", "on")] {
        database.at_source(&format!("ALTER SYSTEM SET {name} = '{value}'")).await;
    }
    database.at_source("SELECT pg_reload_conf()").await;
    crate::support::eventually("the server has TLS, as the hint says", || async {
        let found = findings(&asks).await;
        found.iter().all(|finding| finding["standing"] != "failed").then_some(())
    })
    .await;
    let finding = failed(&untrusted, "is not trusted").await;
    assert!(
        hint(&finding).starts_with("Set sslrootcert in source.url to the certificate of the authority"),
        "{finding}"
    );
    let finding = failed(&named_otherwise, "is for another name").await;
    assert!(hint(&finding).starts_with("Give the name in the server's certificate as host in source.url"), "{finding}");
    mended(&named).await;
    for (setup, message) in [(unverified, "name the root certificates"), (no_file, "/nonexistent.crt")] {
        let finding = failed(&setup, message).await;
        assert!(hint(&finding).starts_with("See sslrootcert, sslcert, sslkey and passfile in source.url"), "{finding}");
    }
    server.set("ssl", "off");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_older_than_14_are_refused_on_either_side() {
    let database = Database::new("older", FAMILY, FAMILY_SCHEMA).await;
    let direct = Setup::of(&database);
    for (side, server) in [("source", source().await.port()), ("destination", destination().await.port())] {
        // A server of 13 does not know settings that every session makes, so it must be known by what it says at first.
        let old = Pooler::to(server, Between::Version("13.23 (Debian 13.23-1.pgdg12+1)")).await;
        let mut setup = direct.clone();
        let url = if side == "source" { &mut setup.source_url } else { &mut setup.destination_url };
        let (login, _) = url.split_once('@').expect("a role");
        *url = format!("{login}@127.0.0.1:{}/{}", old.port, database.name);
        let message = format!("the {side} is PostgreSQL 13.23 (Debian 13.23-1.pgdg12+1), headwater needs 14 or later");
        let finding = failed(&setup, &message).await;
        assert_eq!(hint(&finding), format!("Upgrade that server, or correct {side}.url."));
        let log = setup.start().ends_with(1).await;
        assert!(log.contains(&message), "{log}");
    }
    mended(&direct).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_damaged_bookkeeping_is_mended_by_what_is_printed() {
    for (sql, message) in [
        ("UPDATE headwater.stream SET slot = 'Not a slot!'", "headwater.stream.slot at the destination holds a value"),
        ("DELETE FROM headwater.position", "headwater.position at the destination holds no position"),
        ("DROP TABLE headwater.position", "headwater.position at the destination is not as headwater made it"),
        ("DROP TABLE headwater.tables", "headwater.tables at the destination is not as headwater made it"),
        (
            "ALTER TABLE headwater.stream DROP COLUMN timeline",
            "headwater.stream at the destination is not as headwater made it",
        ),
    ] {
        let database = Database::new("damaged", FAMILY, FAMILY_SCHEMA).await;
        let setup = Setup::of(&database);
        let service = setup.start();
        service.streams().await;
        database.caught_up().await;
        service.stop().await;
        database.at_destination(sql).await;
        database.at_source("UPDATE parent SET v = 'secret, too'").await;
        let finding = failed(&setup, message).await;
        let log = setup.start().ends_with(1).await;
        assert!(log.contains(message), "no {message:?} in\n{log}");
        let hint = hint(&finding);
        assert!(hint.ends_with("or run headwater teardown and start over with --resnapshot."), "{hint}");
        let torn = setup.command(&["teardown"]).await;
        // Where the record is lost, whose slot it is nobody knows: the operator is asked to drop it.
        let said = torn.out.clone() + &torn.err;
        if let Some(drop) = said.lines().find_map(|line| line.trim().strip_prefix("SELECT pg_drop_replication_slot")) {
            assert_eq!(torn.code, Some(1), "{said}");
            database.at_source(&format!("SELECT pg_drop_replication_slot{drop}")).await;
        } else {
            assert_eq!(torn.code, Some(0), "{said}");
        }
        let service = setup.clone().argument("--resnapshot").start();
        service.streams().await;
        database.assert_catches_up().await;
        service.stop().await;
        mended(&setup).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_headwaters_bookkeeping_is_left_alone_by_every_command() {
    let database = Database::new("newer", FAMILY, FAMILY_SCHEMA).await;
    let setup = Setup::of(&database);
    let service = setup.start();
    service.streams().await;
    service.stop().await;
    database.at_destination("UPDATE headwater.stream SET bookkeeping_version = 99").await;
    let finding = failed(&setup, "the bookkeeping at the destination has version 99, this headwater knows").await;
    assert_eq!(hint(&finding), "Run the headwater that wrote it, or a newer one.");
    let log = setup.start().ends_with(1).await;
    assert!(log.contains("has version 99"), "{log}");
    setup.command(&["teardown"]).await.exits(1).says(&["has version 99", "Run the headwater that wrote it"]);
    let still = database.destination_value("SELECT bookkeeping_version::text FROM headwater.stream").await;
    assert_eq!(still.as_deref(), Some("99"));
    // The headwater that wrote it.
    database.at_destination("UPDATE headwater.stream SET bookkeeping_version = 1").await;
    mended(&setup).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn types_and_collations_that_the_destination_lacks_are_mended_by_what_is_printed() {
    let icu = "SELECT count(*)::text FROM pg_collation WHERE collprovider = 'i'";
    let schema = "CREATE SCHEMA words; CREATE COLLATION words.plain (locale = 'C');
        CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE parent (id int PRIMARY KEY, v text COLLATE words.plain);
        CREATE TABLE child (id int PRIMARY KEY, parent int, v text COLLATE loose); CREATE INDEX ON child (v COLLATE words.plain);
        INSERT INTO parent VALUES (1, 'secret'); INSERT INTO child VALUES (1, 1, 'secret')";
    let asked = Database::new("collations", &[], "SELECT 1").await;
    let schema = match (asked.source_value(icu).await, asked.destination_value(icu).await) {
        (Some(here), Some(there)) if here != "0" && there != "0" => schema.to_owned(),
        // Servers without ICU.
        _ => schema.replace("(provider = icu, locale = 'und-u-ks-level2', deterministic = false)", "(locale = 'C')"),
    };
    let database = Database::new("collates", FAMILY, &schema).await;
    let setup = Setup::of(&database);
    let log = setup.start().ends_with(1).await;
    assert!(log.contains("does not exist at the destination") && log.contains("CREATE COLLATION"), "{log}");
    for (message, used) in [
        ("collation words.plain does not exist at the destination", "It is used by public.child.v, public.parent.v."),
        ("collation public.loose does not exist at the destination", "It is used by public.child.v."),
    ] {
        let finding = failed(&setup, message).await;
        assert_eq!(finding["detail"], used);
        database.at_destination(&fix(&finding)).await;
        let found = findings(&setup).await;
        assert!(find(&found, "failed", message).is_none(), "{found:#?}");
    }
    mended(&setup).await;
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    // The same, for a column that comes later.
    database.at_source("CREATE COLLATION late (locale = 'C'); ALTER TABLE parent ADD COLUMN w text COLLATE late; UPDATE parent SET w = 'x'").await;
    service.says("headwater check prints the statement that creates the collation").await;
    let finding = failed(&setup, "collation public.late does not exist at the destination").await;
    database.at_destination(&fix(&finding)).await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    let same =
        "SELECT string_agg(attname || ' ' || attcollation::regcollation, ', ' ORDER BY attrelid::regclass::text, attname) FROM pg_attribute
        WHERE attrelid IN ('parent'::regclass, 'child'::regclass) AND attcollation <> 0";
    assert_eq!(database.destination_value(same).await, database.source_value(same).await);
    // A type of an extension, where the servers have one.
    let has = "SELECT count(*)::text FROM pg_available_extensions WHERE name = 'citext'";
    if (database.source_value(has).await, database.destination_value(has).await) != (Some("1".into()), Some("1".into()))
    {
        return;
    }
    let schema = "CREATE EXTENSION citext; CREATE TABLE parent (id int PRIMARY KEY, v citext);
        CREATE TABLE child (id int PRIMARY KEY, v citext[])";
    let database = Database::new("extends", FAMILY, schema).await;
    let setup = Setup::of(&database);
    let finding = failed(&setup, "type public.citext does not exist at the destination").await;
    database.at_destination(&fix(&finding)).await;
    mended(&setup).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn names_of_tables_that_are_to_be_created_are_found_taken_before_a_row_is_copied() {
    let database = Database::new("takennames", FAMILY, FAMILY_SCHEMA).await;
    let setup = Setup::of(&database);
    for (taken, gone, named) in [
        ("CREATE DOMAIN parent AS int", "DROP DOMAIN parent", "In schema public: parent."),
        ("CREATE TYPE _parent AS ENUM ('a')", "DROP TYPE _parent", "In schema public: _parent."),
        ("CREATE VIEW parent_pkey AS SELECT 1", "DROP VIEW parent_pkey", "In schema public: parent_pkey."),
    ] {
        database.at_destination(taken).await;
        let finding = failed(&setup, "names that table public.parent needs are taken at the destination").await;
        assert_eq!(finding["detail"].as_str(), Some(named));
        let output = setup.start().ends_with(1).await;
        assert!(output.contains(named) && !output.contains("published"), "{output}");
        database.at_destination(gone).await;
        mended(&setup).await;
    }
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_root_is_published_is_mended_by_what_is_printed() {
    let schema = "CREATE TABLE parent (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE parent_1 PARTITION OF parent DEFAULT; INSERT INTO parent VALUES (1, 'secret')";
    let database = Database::new("rooted", &["parent", "parent_1"], schema).await;
    let setup = Setup::of(&database);
    let finding = failed(&setup, "does not hold public.parent_1").await;
    assert!(hint(&finding).starts_with("Name the root in tables instead"), "{finding}");
    mended(&Setup { tables: vec!["parent".to_owned()], ..setup }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_told_with_what_to_correct() {
    let database = Database::new("nobody", FAMILY, FAMILY_SCHEMA).await;
    let wrong =
        Setup { source_url: format!("postgresql://postgres@127.0.0.1:1/{}", database.name), ..Setup::of(&database) };
    let finding = failed(&wrong, "cannot connect to").await;
    assert!(hint(&finding).starts_with("Start the server, or correct host and port in source.url"), "{finding}");
    mended(&Setup::of(&database)).await;
}

/// An extension that the source has and the destination has not, or not so; whose hint begins so.
struct Lacked {
    /// The first major of a source that has it.
    since: u32,
    at_source: &'static str,
    at_destination: &'static str,
    message: &'static str,
    hint: &'static str,
}

const LACKED: &[Lacked] = &[
    Lacked {
        since: 14,
        at_source: "CREATE SCHEMA \"Ext\"; CREATE EXTENSION citext SCHEMA \"Ext\"; CREATE TABLE parent (id int PRIMARY KEY, v \"Ext\".citext[])",
        at_destination: "SELECT 1",
        message: "type \"Ext\".citext does not exist at the destination",
        hint: "Run at the destination:\nCREATE SCHEMA \"Ext\";\nCREATE EXTENSION citext SCHEMA \"Ext\";",
    },
    Lacked {
        since: 14,
        at_source: "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE TABLE parent (id int PRIMARY KEY, v ext.citext)",
        at_destination: "CREATE EXTENSION citext",
        message: "type ext.citext does not exist at the destination",
        hint: "Run at the destination:\nCREATE SCHEMA ext;\nALTER EXTENSION citext SET SCHEMA ext;",
    },
    Lacked {
        since: 14,
        at_source: "CREATE EXTENSION earthdistance CASCADE; CREATE TABLE parent (id int PRIMARY KEY, v earth)",
        at_destination: "SELECT 1",
        message: "type public.earth does not exist at the destination",
        hint: "Run at the destination:\nCREATE EXTENSION earthdistance SCHEMA public CASCADE;",
    },
    Lacked {
        since: 15,
        at_source: "CREATE EXTENSION btree_gist; CREATE TABLE parent (id int PRIMARY KEY, v bool); CREATE INDEX ON parent USING gist (v)",
        at_destination: "CREATE EXTENSION btree_gist VERSION '1.2'",
        message: "operator classes of extension btree_gist do not exist at the destination",
        hint: "Run at the destination:\nALTER EXTENSION btree_gist UPDATE;",
    },
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn what_an_extension_lacks_at_the_destination_is_given_by_what_is_printed() {
    for (lacked, number) in LACKED.iter().zip(0..) {
        let database = Database::of_superuser(&format!("lacked{number}"), &["parent"], "SELECT 1").await;
        if database.source_major().await.min(database.destination_major().await) < lacked.since {
            continue;
        }
        database.at_source(lacked.at_source).await;
        database.at_destination(lacked.at_destination).await;
        let setup = Setup::of(&database);
        let finding = failed(&setup, lacked.message).await;
        assert_eq!(hint(&finding), lacked.hint, "{finding}");
        database.at_destination(&fix(&finding)).await;
        mended(&setup).await;
        let service = setup.start();
        service.streams().await;
        database.assert_catches_up().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_an_extensions_type_waits_for_what_is_printed() {
    let database = Database::of_superuser("lackedlater", &["parent"], "CREATE TABLE parent (id int PRIMARY KEY)").await;
    database.at_destination("CREATE EXTENSION citext").await;
    let service = Setup::of(&database).start();
    service.streams().await;
    database
        .at_source(
            "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; ALTER TABLE parent ADD v ext.citext; INSERT INTO parent VALUES (1, 'a')",
        )
        .await;
    service.says("type ext.citext does not exist at the destination").await;
    service.says("ALTER EXTENSION citext SET SCHEMA ext;").await;
    database.at_destination("CREATE SCHEMA ext; ALTER EXTENSION citext SET SCHEMA ext").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}
