//! Outages that let some of a server's sessions live, or none be found: said with the way out, and over by themselves.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use crate::support::database::connect;
use crate::support::{Database, Setup, destination, eventually, new_source, parent};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')";

/// The source's pg_hba.conf begins to refuse headwater's role when these sessions of it have just ended; the others live. And back again.
async fn refused(backend_type: &str, is_told: impl AsyncFn(&Database, &crate::support::Service)) {
    let source = new_source(&[]).await;
    let database = Database::on(&source, destination().await, "refused", &["t"], TABLE).await;
    let mut setup = Setup::of(&database);
    let role = format!("reader_{}", database.name);
    database.at_source(&format!("CREATE ROLE {role} LOGIN REPLICATION SUPERUSER")).await;
    setup.source_url = source.url(&database.name).replace("postgres@", &format!("{role}@"));
    let service = setup.start_streaming(&database).await;
    let file = source.dir().join("data/pg_hba.conf");
    let before = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("local all {role} reject\nhost all {role} all reject\n{before}")).unwrap();
    database.at_source("SELECT pg_reload_conf()").await;
    eventually("new sessions are refused", || async { connect(&setup.source_url).await.is_none().then_some(()) }).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename =";
    database.at_source(&format!("{end} '{role}' AND backend_type = '{backend_type}'")).await;
    is_told(&database, &service).await;
    // The stream ends once it needs what was refused.
    service.is("waiting").await;
    let (code, explained) = service.command(&["explain"]).await;
    for text in ["pg_hba.conf rejects connection", "Allow this role, database and address in pg_hba.conf at the source"]
    {
        assert!(code == Some(1) && explained.contains(text), "{explained}");
    }
    std::fs::write(&file, before).unwrap();
    database.at_source("SELECT pg_reload_conf()").await;
    database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_pg_hba_refuses_is_told_while_other_sessions_live() {
    refused("walsender", async |_, _| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn other_sessions_that_pg_hba_refuses_are_told_while_the_stream_lives() {
    refused("client backend", async |database, service| {
        let what = "headwater cannot look at the source's position, its slot and what waits there: ";
        let has_both = |text: &str| text.contains(what) && text.contains("pg_hba.conf rejects connection");
        eventually("it is told", || async {
            let status = service.status().await?;
            let is_shown = status["waits"].as_array()?.iter().any(|wait| wait.as_str().is_some_and(has_both));
            (is_shown && service.log().lines().any(has_both)).then_some(())
        })
        .await;
        assert_eq!(service.log().lines().filter(|line| line.contains(what)).count(), 1, "{}", service.log());
        assert_eq!(service.status().await.unwrap()["state"], "streaming", "{}", service.log());
        // The first row of a table asks the catalog, for which there is no session.
        database.at_source("UPDATE t SET v = 'b' WHERE id = 2").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_name_that_is_not_resolved_any_more_is_told_and_found_once_it_is() {
    // The resolver's files are headwater's own, in a mount namespace that only root may make.
    if !Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|output| output.status.success()) {
        println!("left out: only root may give a process other files of the resolver");
        return;
    }
    let source = new_source(&[]).await;
    let database = Database::on(&source, destination().await, "nameless", &["t"], TABLE).await;
    let directory = parent().join(&database.name);
    std::fs::create_dir_all(&directory).unwrap();
    let [hosts, resolver] = ["hosts", "resolv.conf"].map(|name| directory.join(name));
    // A name server that says nothing.
    let address = Ipv4Addr::new(127, 53, fastrand::u8(..), fastrand::u8(1..255));
    let silent = UdpSocket::bind((address, 53)).unwrap();
    let named = "127.0.0.1 localhost db.headwater.test\n";
    std::fs::write(&hosts, named).unwrap();
    std::fs::write(&resolver, "nameserver 127.53.0.0\noptions timeout:1 attempts:1\n").unwrap();
    let mut setup = Setup::of(&database);
    let url = source.tcp_url(&database.name).replace("127.0.0.1", "db.headwater.test");
    setup.source_url = format!("{url}{}connect_timeout=8", if url.contains('?') { '&' } else { '?' });
    let script = format!(
        "mount --bind {0}/hosts /etc/hosts && mount --bind {0}/resolv.conf /etc/resolv.conf && exec \"$@\"",
        directory.display()
    );
    setup.wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    let service = setup.start_streaming(&database).await;
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    database.at_source(end).await;
    eventually("the name is told", || async {
        let status = service.status().await?;
        let reason = status["reason"].as_str()?.to_owned();
        (status["state"] == "connecting"
            && reason.contains("cannot connect to")
            && reason.contains("db.headwater.test"))
        .then_some(())
    })
    .await;
    // The same with a name server that does not answer.
    std::fs::write(&resolver, format!("nameserver {address}\noptions timeout:30 attempts:2\n")).unwrap();
    let what = "connecting: no address for the name of db.headwater.test";
    eventually("the wait for the name is told", || async {
        let status = service.status().await?;
        let is_shown = status["waits"].as_array()?.iter().any(|wait| wait.as_str().is_some_and(|w| w.contains(what)));
        (is_shown && service.log().contains(what)).then_some(())
    })
    .await;
    std::fs::write(&hosts, named).unwrap();
    database.at_source("UPDATE t SET v = 'c' WHERE id = 1").await;
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
    drop(silent);
    std::fs::remove_dir_all(&directory).unwrap();
}
