//! A pooler in front of either server is refused, by `check` and by `run`, with the way out: to the server itself.

use crate::support::pooler::{Between, Pooler};
use crate::support::{Database, Setup, destination, source};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_before_the_destination_is_refused_and_the_server_itself_is_not() {
    let database = Database::new("pooler", &["t"], SCHEMA).await;
    let server = destination().await.port();
    for between in [Between::Pooler, Between::StrictPooler] {
        let pooler = Pooler::to(server, between).await;
        let direct = Setup::of(&database);
        let (login, _) = direct.destination_url.split_once('@').expect("a role");
        let through = |port: u16| format!("{login}@127.0.0.1:{port}/{}", database.name);
        let pooled = Setup { destination_url: through(pooler.port), ..direct.clone() };
        let said =
            &["destination.url leads through a connection pooler", "the PostgreSQL server itself as destination.url"];
        pooled.command(&["check"]).await.exits(1).says(said);
        let log = pooled.start().ends_with(1).await;
        assert!(log.contains(said[0]), "{log}");
        // The printed way out.
        let mended = Setup { destination_url: through(server), ..direct };
        mended.command(&["check"]).await.exits(0).says(&["no pooler stands in between"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_before_the_source_is_refused_and_the_server_itself_is_not() {
    let database = Database::new("sourcepool", &["t"], SCHEMA).await;
    let server = source().await.port();
    for between in [Between::Pooler, Between::StrictPooler] {
        let pooler = Pooler::to(server, between).await;
        let direct = Setup::of(&database);
        let (login, _) = direct.source_url.split_once('@').expect("a role");
        let through = |port: u16| format!("{login}@127.0.0.1:{port}/{}", database.name);
        let pooled = Setup { source_url: through(pooler.port), ..direct.clone() };
        let said = &["source.url leads through a connection pooler", "the PostgreSQL server itself as source.url"];
        pooled.command(&["check"]).await.exits(1).says(said);
        let log = pooled.start().ends_with(1).await;
        assert!(log.contains(said[0]), "{log}");
        // The printed way out.
        let mended = Setup { source_url: through(server), ..direct };
        mended.command(&["check"]).await.exits(0).says(&["the role may replicate, directly"]);
    }
}
