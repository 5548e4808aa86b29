//! Slow, many, huge and broken HTTP clients beside a running stream.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Database, PATIENCE, Service, Setup, eventually};

const DESCRIPTORS: u32 = 256;

/// What a client sends.
#[derive(Clone, Copy)]
enum Client {
    /// A header that never ends.
    SlowHeader,
    /// A page that is not read.
    SlowPage,
    /// A header without bounds.
    HugeHeader,
    /// A body without bounds.
    HugeBody,
    /// Bytes of another protocol.
    Garbage,
    /// A request, and no more to be sent.
    HalfClosed,
    /// Nothing at all.
    Silent,
}

/// Connects, does as it does, and keeps the connection where the server does not end it.
async fn connect(port: u16, client: Client) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let connected = tokio::time::timeout(PATIENCE, socket.connect(([127, 0, 0, 1], port).into())).await;
    let mut stream = connected.expect("a connection, or a refusal").ok()?;
    let head = "GET /events HTTP/1.1\r\nHost: localhost\r\n";
    // It is closed at any moment, which these clients are used to.
    let sent = match client {
        Client::SlowHeader => stream.write_all(head.as_bytes()).await,
        Client::SlowPage => stream.write_all(format!("{head}\r\n").as_bytes()).await,
        Client::HugeHeader => {
            let _ = stream.write_all(format!("{head}X: ").as_bytes()).await;
            endless(&mut stream).await
        }
        Client::HugeBody => {
            let _ = stream.write_all(format!("{head}Content-Length: 1000000000000\r\n\r\n").as_bytes()).await;
            endless(&mut stream).await
        }
        Client::Garbage => stream.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f\r\n\r\n\xff\xff").await,
        Client::HalfClosed => {
            let _ = stream.write_all(format!("{head}\r\n").as_bytes()).await;
            stream.shutdown().await
        }
        Client::Silent => Ok(()),
    };
    sent.is_ok().then_some(stream)
}

/// Sends until the server has had enough, or 8 MB.
async fn endless(stream: &mut TcpStream) -> std::io::Result<()> {
    let bytes = vec![b'y'; 64 << 10];
    for _ in 0..128 {
        match tokio::time::timeout(Duration::from_millis(500), stream.write_all(&bytes)).await {
            Ok(sent) => sent?,
            // It reads no further, and keeps what it has not read out of its memory.
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

fn descriptors(service: &Service) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", service.process_id())).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn http_clients_of_any_kind_cost_the_stream_nothing() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (0, 'x')";
    let database = Database::of_superuser("httpclients", &["t"], schema).await;
    let service = Setup::of(&database).descriptors(DESCRIPTORS).start();
    service.streams().await;
    database.assert_catches_up().await;
    let (memory, at_rest) = (service.resident_bytes(), descriptors(&service));
    let port: u16 = service.http_url().rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();

    let mut open = Vec::new();
    let kinds = [
        (Client::SlowHeader, 1000),
        (Client::Silent, 500),
        (Client::SlowPage, 200),
        (Client::HugeHeader, 20),
        (Client::HugeBody, 20),
        (Client::Garbage, 300),
        (Client::HalfClosed, 300),
        (Client::SlowHeader, 1000),
    ];
    for (row, (client, count)) in (1..).zip(kinds) {
        for _ in 0..count {
            open.extend(connect(port, client).await);
        }
        database.at_source(&format!("INSERT INTO t VALUES ({row}, 'x')")).await;
        // New sessions, and so new descriptors, while all of them hold on to theirs.
        let ended =
            "SELECT pg_terminate_backend(active_pid)::text FROM pg_replication_slots WHERE active AND slot_name = ";
        database.at_source(&format!("{ended} '{}'", database.name)).await;
        database.assert_catches_up().await;
        let held = descriptors(&service);
        // A quarter of them, and one that is being accepted.
        assert!(held <= at_rest + DESCRIPTORS as usize / 4 + 8, "{held} descriptors, {at_rest} at rest");
    }
    assert!(open.len() > 2500, "{} connections", open.len());
    eventually("a client that asks is answered while the others hold on", || async {
        (service.get("/metrics").await?.0 == 200).then_some(())
    })
    .await;
    service.streams().await;
    let grown = service.resident_max_bytes().saturating_sub(memory);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert!(!service.log().contains("Too many open files"), "a descriptor was lacking");

    drop(open);
    eventually("all of it is given back", || async { (descriptors(&service) <= at_rest + 4).then_some(()) }).await;
    // One that reads, at its own pace, gets all of its answer.
    let mut page = connect(port, Client::SlowPage).await.unwrap();
    let mut head = [0; 12];
    page.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_loopback_hosts_are_answered_on_loopback() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY)";
    let database = Database::of_superuser("httphost", &["t"], schema).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let address = service.http_url().replace("http://", "").replace('/', "");
    for (host, code) in [("evil.example", "421"), (address.as_str(), "200"), ("localhost:1", "200"), ("[::1]", "200")] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let request = format!("GET /status HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{host}: {answer}");
        assert_eq!(answer.contains(&database.name), code == "200", "{answer}");
    }
    let (code, said) = service.command(&["status"]).await;
    assert_eq!(code, Some(0), "{said}");
    service.stop().await;
}
