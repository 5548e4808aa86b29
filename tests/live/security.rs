//! Who we are and whom we trust: password methods, TLS strengths, password files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use headwater::commands::demo::Cluster;

use crate::support::certificates::{Certificates, with_hba};
use crate::support::{Database, Script, Setup, bin_of, destination, new_source, parent};

const ONE: &[&str] = &["t"];
const ONE_SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x');";

/// Runs until it streams, then stops.
async fn works(setup: &Setup, what: &str) {
    let service = setup.start();
    service.streams().await;
    assert!(!service.log().contains("hunter2"), "{what}: the password is in the log");
    service.stop().await;
}

/// Runs and ends with exit 1 and these words.
async fn fails(setup: &Setup, words: &[&str]) {
    let output = setup.start().ends_with(1).await;
    for word in words {
        assert!(output.contains(word), "no {word:?} in\n{output}");
    }
    assert!(!output.contains("hunter2") && !output.contains("wrong-one"), "a password is in\n{output}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn trust_password_md5_and_scram_are_spoken() {
    let mut source = new_source(&[]).await;
    let mut lines = Vec::new();
    let admin = source.connect("postgres").await.unwrap();
    for (role, method, encryption) in [
        ("by_scram", "scram-sha-256", "scram-sha-256"),
        ("by_md5", "md5", "md5"),
        ("by_password", "password", "scram-sha-256"),
    ] {
        lines.push(format!("host all {role} 127.0.0.1/32 {method}"));
        let sql = format!(
            "SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN REPLICATION SUPERUSER PASSWORD 'hunter2'"
        );
        admin.script("a role", &sql).await.unwrap();
    }
    drop(admin);
    with_hba(&mut source, &lines.join("\n")).await;
    for role in ["by_scram", "by_md5", "by_password"] {
        let database = Database::on(&source, destination().await, role, ONE, ONE_SCHEMA).await;
        let mut setup = Setup::of(&database);
        let url = |login: &str| source.tcp_url(&database.name).replace("postgres@", &format!("{login}@"));
        setup.source_url = url(&format!("{role}:wrong-one"));
        fails(&setup, &["password authentication failed", "HINT:", "source.url"]).await;
        setup.source_url = url(role);
        fails(&setup, &["asks for a password", "PGPASSWORD"]).await;
        setup.source_url = url(&format!("{role}:hunter2"));
        works(&setup, role).await;
        // The same password from the environment, and from a password file.
        setup.source_url = url(role);
        let mut by_environment = setup.clone();
        by_environment.environment.push(("PGPASSWORD".to_owned(), "hunter2".to_owned()));
        works(&by_environment, role).await;
        let file = parent().join(format!("pgpass-{}", database.name));
        std::fs::write(&file, format!("# comment\n127.0.0.1:{}:*:{role}:hunter2\n", source.port())).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut by_file = setup.clone();
        by_file.environment.push(("PGPASSFILE".to_owned(), file.display().to_string()));
        fails(&by_file, &["others can read this password file"]).await;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        works(&by_file, role).await;
        std::fs::remove_file(file).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn every_sslmode_means_what_it_means_in_libpq() {
    let certificates = Certificates::new();
    let mut source = new_source(&[]).await;
    certificates.install(&source);
    for (name, value) in
        [("ssl", "on"), ("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "root.crt")]
    {
        source.set(name, value);
    }
    let admin = source.connect("postgres").await.unwrap();
    let roles = "CREATE ROLE replicator LOGIN REPLICATION SUPERUSER PASSWORD 'hunter2'; CREATE ROLE plain LOGIN SUPERUSER REPLICATION";
    admin.script("roles", roles).await.unwrap();
    drop(admin);
    with_hba(
        &mut source,
        "hostssl all replicator 127.0.0.1/32 scram-sha-256 clientcert=verify-full\nhostnossl all plain 127.0.0.1/32 reject\n\
         hostssl all plain 127.0.0.1/32 trust",
    )
    .await;
    let database = Database::on(&source, destination().await, "tls", ONE, ONE_SCHEMA).await;
    let url = |host: &str, login: &str, parameters: &str| {
        format!("postgresql://{login}@{host}:{}/{}?{parameters}", source.port(), database.name)
    };
    let root = format!("sslrootcert={}", certificates.path("root.crt"));
    let stranger = format!("sslrootcert={}", certificates.path("stranger.crt"));
    let with = |url: String| Setup { source_url: url, ..Setup::of(&database) };

    for parameters in ["sslmode=prefer", "sslmode=require", "sslmode=allow", ""] {
        works(&with(url("127.0.0.1", "plain", parameters)), parameters).await;
    }
    fails(&with(url("127.0.0.1", "plain", "sslmode=disable")), &["pg_hba.conf"]).await;
    works(&with(url("127.0.0.1", "plain", &format!("sslmode=verify-ca&{root}"))), "verify-ca").await;
    works(&with(url("localhost", "plain", &format!("sslmode=verify-full&{root}"))), "verify-full").await;
    // The certificate is for localhost, not for the address.
    fails(&with(url("127.0.0.1", "plain", &format!("sslmode=verify-full&{root}"))), &["TLS with", "for another name"])
        .await;
    for mode in ["require", "verify-ca", "verify-full"] {
        // A root makes even `require` verify.
        let setup = with(url("localhost", "plain", &format!("sslmode={mode}&{stranger}")));
        fails(&setup, &["TLS with", "not trusted", "sslrootcert"]).await;
    }
    fails(&with(url("localhost", "plain", "sslmode=verify-full")), &["sslrootcert", "verification"]).await;
    fails(&with(url("localhost", "plain", "sslmode=verify-full&sslrootcert=/nonexistent")), &["/nonexistent"]).await;

    // A client certificate, and SCRAM bound to the channel.
    let client = format!("sslcert={}&sslkey={}", certificates.path("client.crt"), certificates.path("client.key"));
    let login = "replicator:hunter2";
    works(&with(url("localhost", login, &format!("sslmode=verify-full&{root}&{client}"))), "client certificate").await;
    let bound = format!("sslmode=verify-full&{root}&{client}&channel_binding=require");
    works(&with(url("localhost", login, &bound)), "channel binding").await;
    fails(&with(url("localhost", login, &format!("sslmode=verify-full&{root}"))), &["client certificate"]).await;
    fails(&with(url("localhost", "plain", "sslmode=require&channel_binding=require")), &["channel_binding=require"])
        .await;

    // A server without TLS.
    let mut setup = Setup::of(&database);
    let without = Database::new("notls", ONE, ONE_SCHEMA).await;
    setup.source_url = format!("{}?sslmode=require", crate::support::source().await.tcp_url(&without.name));
    fails(&setup, &["the server does not offer TLS"]).await;
}

/// A source that speaks TLS with these certificates; `ordinary` is its role.
async fn tls_source(bin: &Path, certificates: &Certificates) -> Cluster {
    let mut settings = crate::support::SOURCE.to_vec();
    settings.extend([("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "root.crt")]);
    let mut source = Cluster::start_new(bin, &parent(), "source", &settings, &[]).await.unwrap();
    certificates.install(&source);
    source.set("ssl", "on");
    let admin = source.connect("postgres").await.unwrap();
    let role = "CREATE ROLE ordinary LOGIN SUPERUSER REPLICATION PASSWORD 'hunter2'";
    admin.script("a role", role).await.unwrap();
    drop(admin);
    with_hba(
        &mut source,
        "hostssl all ordinary 127.0.0.1/32 scram-sha-256\nhostnossl all ordinary 127.0.0.1/32 reject",
    )
    .await;
    source
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_systems_roots_are_trusted_when_they_are_asked_for_and_only_then() {
    let certificates = Certificates::new();
    let source = tls_source(&crate::support::bin("SOURCE"), &certificates).await;
    let database = Database::on(&source, destination().await, "system", ONE, ONE_SCHEMA).await;
    let url = |host: &str, parameters: &str| {
        format!("postgresql://ordinary:hunter2@{host}:{}/{}?{parameters}", source.port(), database.name)
    };
    // Where the system's roots are, SSL_CERT_FILE says, for every program of this machine.
    let with = |url: String, roots: &str| {
        let mut setup = Setup { source_url: url, ..Setup::of(&database) };
        setup.environment.push(("SSL_CERT_FILE".to_owned(), certificates.path(roots)));
        setup
    };
    works(&with(url("localhost", "sslrootcert=system"), "root.crt"), "system").await;
    works(&with(url("localhost", "sslmode=verify-full&sslrootcert=system"), "root.crt"), "system").await;
    fails(&with(url("localhost", "sslrootcert=system"), "stranger.crt"), &["TLS with", "not trusted"]).await;
    fails(&with(url("127.0.0.1", "sslrootcert=system"), "root.crt"), &["TLS with", "for another name"]).await;
    // A check says the same, and how the connection is encrypted.
    let good = with(url("localhost", "sslrootcert=system&channel_binding=require"), "root.crt");
    good.command(&["check"]).await.exits(0).says(&["TLSv1.3 with"]);
    let bad = with(url("localhost", "sslrootcert=system"), "stranger.crt");
    bad.command(&["check"]).await.exits(1).says(&["source       connection", "failed", "not trusted"]);
    // Weaker modes would not look at the name: refused as libpq does, before anything is connected.
    with(url("localhost", "sslmode=require&sslrootcert=system"), "root.crt").start().ends_with(2).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn tls_is_begun_at_once_where_the_server_knows_how() {
    let Some(bin) = bin_of(17) else { return };
    let certificates = Certificates::new();
    let source = tls_source(&bin, &certificates).await;
    let database = Database::on(&source, destination().await, "direct", ONE, ONE_SCHEMA).await;
    let root = certificates.path("root.crt");
    let url = |parameters: &str| {
        format!(
            "postgresql://ordinary:hunter2@localhost:{}/{}?sslrootcert={root}&{parameters}",
            source.port(),
            database.name
        )
    };
    let with = |url: String| Setup { source_url: url, ..Setup::of(&database) };
    works(&with(url("sslmode=verify-full&sslnegotiation=direct")), "direct").await;
    works(&with(url("sslmode=verify-full&sslnegotiation=direct&channel_binding=require")), "direct, bound").await;
    works(&with(url("sslmode=verify-full")), "negotiated").await;
    with(url("sslmode=prefer&sslnegotiation=direct")).start().ends_with(2).await;
    // A server of before 17 takes it for rubbish.
    let older = tls_source(&crate::support::bin("SOURCE"), &certificates).await;
    let version = older.connect("postgres").await.unwrap();
    let row = version.query_one("its version", "SELECT current_setting('server_version_num')::int", &[]).await.unwrap();
    if row.get::<i32>(0).unwrap() < 170_000 {
        let old = Database::on(&older, destination().await, "olddirect", ONE, ONE_SCHEMA).await;
        let url = format!(
            "postgresql://ordinary:hunter2@localhost:{}/{}?sslrootcert={root}&sslmode=verify-full&sslnegotiation=direct",
            older.port(),
            old.name
        );
        let setup = Setup { source_url: url, ..Setup::of(&old) };
        let says = [
            "source       connection",
            "failed",
            "closed the connection when TLS was begun at once",
            "Take sslnegotiation=direct out of source.url",
        ];
        setup.command(&["check"]).await.exits(1).says(&says);
    }
}

#[test]
fn a_configuration_in_which_others_can_read_a_password_or_write_is_told() {
    let directory = parent().join(format!("readable-{:08x}", fastrand::u32(..)));
    std::fs::create_dir(&directory).unwrap();
    let place = directory.join("headwater.toml");
    let warnings = |password: &str, mode: u32| {
        let (user, rest) = password.split_once(' ').unwrap_or((password, ""));
        let url = |name: &str| format!("url = \"postgresql://somebody{user}@127.0.0.1:1/{name}{rest}\"");
        let text = format!("tables = [\"t\"]\n[source]\n{}\n[destination]\n{}\n", url("a"), url("b"));
        std::fs::write(&place, text).unwrap();
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(mode)).unwrap();
        let output = std::process::Command::new(crate::support::headwater())
            .args(["check", "--config"])
            .arg(&place)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!err.contains("hunter2"), "{err}");
        assert!(!err.contains("others may replace"), "{err}");
        (err.contains("others can read the password"), err.contains("others may write"))
    };
    for (password, mode, told) in [
        (":hunter2", 0o600, (false, false)),
        (":hunter2", 0o644, (true, false)),
        ("", 0o644, (false, false)),
        (":hunter2", 0o666, (true, true)),
        ("", 0o620, (false, true)),
        // A key's, and of a configuration that has mistakes.
        (" ?sslpassword=hunter2", 0o644, (true, false)),
        (":hunter2 ?nonsense=1", 0o666, (true, true)),
    ] {
        assert_eq!(warnings(password, mode), told, "{password} {mode:o}");
    }
    // Who may write the directory puts another file there; in a sticky one only the file's owner may.
    for (mode, told) in [(0o777, true), (0o1777, false)] {
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut command = std::process::Command::new(crate::support::headwater());
        let output = command.args(["check", "--config"]).arg(&place).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(err.contains("others may replace the configuration file"), told, "{mode:o}: {err}");
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn an_unnamed_configuration_is_taken_from_the_user_or_root_alone_without_waiting() {
    let directory = parent().join(format!("found-{:08x}", fastrand::u32(..)));
    let elsewhere = parent().join(format!("linked-{:08x}", fastrand::u32(..)));
    for made in [&directory, &elsewhere] {
        std::fs::create_dir(made).unwrap();
        std::fs::set_permissions(made, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let place = directory.join("headwater.toml");
    let linked = elsewhere.join("other.toml");
    let text = "tables = [\"t\"]\nnonsense = 1\n";
    let check = |arguments: &[&str]| {
        let mut command = std::process::Command::new("timeout");
        command.arg("20").arg(crate::support::headwater()).arg("check").args(arguments).current_dir(&directory);
        let output = command.env_remove("HEADWATER_CONFIG").env_remove("SUDO_UID").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let check_as = |user: &str| {
        let mut command = std::process::Command::new(crate::support::headwater());
        command.arg("check").current_dir(&directory).env("SUDO_UID", user).env_remove("HEADWATER_CONFIG");
        String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned()
    };
    let is_taken = |said: &str| said.contains("nonsense");

    std::fs::write(&place, text).unwrap();
    assert!(is_taken(&check(&[])), "one's own is taken");
    std::fs::remove_file(&place).unwrap();
    std::fs::write(&linked, text).unwrap();
    std::os::unix::fs::symlink(&linked, &place).unwrap();
    assert!(is_taken(&check(&[])), "a link of one's own to a file of one's own is taken");

    for (open, mode, closed) in [(&linked, 0o666, 0o644), (&directory, 0o777, 0o755), (&elsewhere, 0o777, 0o755)] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(mode)).unwrap();
        let said = check(&[]);
        assert!(said.contains("everybody may write") && !is_taken(&said), "{mode:o}: {said}");
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(closed)).unwrap();
    }

    // Only root can give a file to somebody else.
    if rustix::process::geteuid().is_root() {
        let other = Some(65534);
        for (what, given) in
            [("the directory", &directory), ("the file", &linked), ("the file's directory", &elsewhere)]
        {
            std::os::unix::fs::chown(given, other, None).unwrap();
            let said = check(&[]);
            assert!(said.contains("belongs to user 65534") && said.contains("--config"), "{what}: {said}");
            assert!(said.contains(given.to_str().unwrap()) || what == "the file", "{what}: {said}");
            assert!(!is_taken(&said), "{what}: {said}");
            assert!(is_taken(&check(&["--config", "./headwater.toml"])), "{what}: the operator has named it");
            assert!(is_taken(&check_as("65534")), "{what}: sudo has made him root");
            assert!(!is_taken(&check_as("65533")), "{what}: sudo has made another one root");
            std::os::unix::fs::chown(given, Some(0), None).unwrap();
        }
        std::os::unix::fs::lchown(&place, other, None).unwrap();
        let said = check(&[]);
        assert!(said.contains("belongs to user 65534") && !is_taken(&said), "the link: {said}");
    }

    // Nobody writes into this pipe.
    std::fs::remove_file(&place).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&place).status().unwrap();
    assert!(made.success());
    let said = check(&[]);
    assert!(said.contains("is no regular file"), "{said}");
    std::fs::remove_dir_all(directory).unwrap();
    std::fs::remove_dir_all(elsewhere).unwrap();
}
