//! A pooler in front of either server is refused, by `check` and by `run`, with the way out: to the server itself.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{Database, Setup, destination, source};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// What stands between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// As PgBouncer is: it answers the start-up with a cancel key of its own, since any client may be given any of its server
    /// sessions.
    Pooler,
    /// The same, and it refuses start-up parameters that it does not know.
    StrictPooler,
    /// Nobody but the years: the server says that it is of this version.
    Version(&'static str),
}

/// A server's other address.
pub struct Pooler {
    pub port: u16,
    task: JoinHandle<()>,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pooler {
    pub async fn to(server_port: u16, between: Between) -> Pooler {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pool(client, SocketAddr::from((Ipv4Addr::LOCALHOST, server_port)), between));
            }
        });
        Pooler { port, task }
    }
}

/// One client; ends with either side.
async fn pool(mut client: TcpStream, server: SocketAddr, between: Between) -> Option<()> {
    let mut startup = loop {
        let bytes = client.read_u32().await.ok()?;
        let mut rest = vec![0; usize::try_from(bytes).ok()?.checked_sub(4)?];
        client.read_exact(&mut rest).await.ok()?;
        // A request for TLS, or for GSSAPI, is declined.
        if rest.len() == 4 {
            client.write_all(b"N").await.ok()?;
            continue;
        }
        break [&bytes.to_be_bytes()[..], &rest].concat();
    };
    if between == Between::StrictPooler && startup.windows(9).any(|window| window == b"\0options\0") {
        let fields = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
        let mut refusal = vec![b'E'];
        refusal.extend(u32::try_from(fields.len() + 4).ok()?.to_be_bytes());
        refusal.extend_from_slice(fields);
        return client.write_all(&refusal).await.ok();
    }
    let mut server = TcpStream::connect(server).await.ok()?;
    server.write_all(&startup).await.ok()?;
    startup.clear();
    // The server's answer to the start-up, message by message (trust: nothing is asked), until it is ready.
    loop {
        let kind = server.read_u8().await.ok()?;
        let bytes = server.read_u32().await.ok()?;
        let mut body = vec![0; usize::try_from(bytes).ok()?.checked_sub(4)?];
        server.read_exact(&mut body).await.ok()?;
        match between {
            Between::Pooler | Between::StrictPooler if kind == b'K' => {
                body.iter_mut().take(4).for_each(|byte| *byte = 0x11);
            }
            Between::Version(version) if kind == b'S' && body.starts_with(b"server_version\0") => {
                body = format!("server_version\0{version}\0").into_bytes();
            }
            _ => {}
        }
        client.write_u8(kind).await.ok()?;
        client.write_u32(u32::try_from(body.len() + 4).ok()?).await.ok()?;
        client.write_all(&body).await.ok()?;
        if kind == b'Z' {
            break;
        }
    }
    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()?;
    Some(())
}

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
