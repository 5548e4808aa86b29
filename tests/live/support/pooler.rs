//! A pooler, or a server of another version, as a client sees them: a proxy that changes the start-up.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

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
