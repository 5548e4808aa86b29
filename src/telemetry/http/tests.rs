//! Clients that do as they please, against limits that are small enough to be met in a test.

use std::collections::BTreeSet;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;
use crate::pg::QualifiedName;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(3600);

/// A server; it ends when this is dropped.
struct Server {
    address: SocketAddr,
    _stop: watch::Sender<bool>,
}

async fn server(connections_max: usize, header_timeout: Duration, write_timeout: Duration, tables: u32) -> Server {
    let telemetry = Arc::new(Telemetry::new(Duration::from_secs(60)));
    let names: BTreeSet<QualifiedName> =
        (0..tables).map(|i| format!("public.a_table_with_a_name_of_some_length_{i}").parse().unwrap()).collect();
    telemetry.stream_begins("0/1000".parse().unwrap(), names);
    let (stop, stopping) = watch::channel(false);
    let limits = HttpLimits { connections_max, header_timeout, write_timeout };
    let address = serve_within(limits, ([127, 0, 0, 1], 0).into(), telemetry, stopping).await.unwrap();
    Server { address, _stop: stop }
}

async fn open(server: &Server, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// What comes until the server closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is closed with something of ours unread is reset: closed, too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(server: &Server, path: &str) -> String {
    rest(open(server, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await).await
}

#[tokio::test]
async fn an_unfinished_header_is_closed_and_byte_by_byte_gains_no_time() {
    let server = server(8, Duration::from_millis(300), NEVER, 0).await;
    for text in ["", "GET /metrics HT", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: y"] {
        assert_eq!(rest(open(&server, text).await).await, "");
    }
    let mut trickling = open(&server, "GET /metrics HTTP/1.1\r\n").await;
    let closed = tokio::time::timeout(PATIENCE, async {
        while trickling.write_all(b"X: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    closed.await.expect("it is closed though it sends");
}

#[tokio::test]
async fn the_connection_that_waits_longest_gives_way_to_a_new_one() {
    let server = server(4, NEVER, NEVER, 0).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(open(&server, "GET /").await);
    }
    for _ in 0..3 {
        assert!(get(&server, "/healthz").await.ends_with("ok\n"));
    }
    // All but those for which there was a place are closed; nobody needed the header's timeout.
    for stream in waiting.drain(..16) {
        assert_eq!(rest(stream).await, "");
    }
}

#[tokio::test]
async fn pages_leave_half_of_the_connections_to_others() {
    let server = server(4, NEVER, NEVER, 0).await;
    let mut pages = Vec::new();
    for _ in 0..2 {
        let mut page = open(&server, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut first = [0; 12];
        page.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        pages.push(page);
    }
    assert!(get(&server, "/events").await.starts_with("HTTP/1.1 503"));
    assert!(get(&server, "/metrics").await.contains("headwater_state"));
}

#[tokio::test]
async fn a_page_that_is_not_read_is_dropped_and_its_place_given_back() {
    let server = server(4, NEVER, Duration::from_millis(300), 2000).await;
    let mut pages = Vec::new();
    for _ in 0..2 {
        // With a small receive buffer, and never read: the kernel holds little of it.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut page = socket.connect(server.address).await.unwrap();
        page.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        pages.push(page);
    }
    let given_back = tokio::time::timeout(PATIENCE, async {
        loop {
            let mut page = open(&server, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            let mut first = [0; 12];
            page.read_exact(&mut first).await.unwrap();
            if &first == b"HTTP/1.1 200" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    given_back.await.expect("a place for a page that reads");
}

#[tokio::test]
async fn a_page_that_is_read_more_slowly_than_it_is_written_is_dropped() {
    let server = server(4, NEVER, Duration::from_millis(300), 2000).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut page = socket.connect(server.address).await.unwrap();
    page.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut some = [0; 1000];
    let dropped = tokio::time::timeout(PATIENCE, async {
        while page.read(&mut some).await.is_ok_and(|length| length > 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    dropped.await.expect("it is dropped though it reads");
}

#[tokio::test]
async fn an_answer_of_any_size_reaches_a_client_that_reads() {
    let server = server(4, NEVER, PATIENCE, 2000).await;
    let (head, body) =
        get(&server, "/status").await.split_once("\r\n\r\n").map(|(h, b)| (h.to_owned(), b.to_owned())).unwrap();
    assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
    assert!(body.len() > 10 * (16 << 10), "{} bytes", body.len());
    serde_json::from_str::<crate::telemetry::view::StatusView>(&body).unwrap();
}

#[tokio::test]
async fn a_large_header_and_garbage_are_refused_and_a_body_is_not_read() {
    let server = server(8, NEVER, PATIENCE, 0).await;
    let large = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "y".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(200));
    for text in [large.as_str(), many.as_str()] {
        let answer = rest(open(&server, text).await).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    for garbage in ["\u{16}\u{3}\u{1}\0\u{5}hello\r\n\r\n", "GET\r\n\r\n", "\0\0\0\u{8}\u{4}\u{d2}\u{16}\u{2f}\r\n\r\n"]
    {
        let answer = rest(open(&server, garbage).await).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    // It is announced and never comes; the answer does not wait for it.
    let body = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n";
    assert!(rest(open(&server, body).await).await.ends_with("ok\n"));
    let body = "POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(rest(open(&server, body).await).await.starts_with("HTTP/1.1 405"));
    assert!(get(&server, "/healthz").await.ends_with("ok\n"));
}

#[tokio::test]
async fn a_loopback_server_answers_to_loopback_hosts_only() {
    let server = server(8, NEVER, PATIENCE, 0).await;
    for path in ["/", "/events", "/metrics", "/healthz", "/readyz", "/rolloutz", "/status", "/nothing"] {
        let asked = format!("GET {path} HTTP/1.1\r\nHost: rebound.example:9477\r\n\r\n");
        let answer = rest(open(&server, &asked).await).await;
        assert!(answer.starts_with("HTTP/1.1 421"), "{path}: {answer}");
        assert!(answer.contains("loopback") && !answer.contains("rebound"), "{answer}");
    }
    assert!(get(&server, "/healthz").await.ends_with("ok\n"));
}

#[tokio::test]
async fn a_server_on_other_addresses_answers_to_any_host() {
    let telemetry = Arc::new(Telemetry::new(Duration::from_secs(60)));
    let (_stop, stopping) = watch::channel(false);
    let bound = serve(([0, 0, 0, 0], 0).into(), telemetry, stopping).await.unwrap();
    let server = Server { address: ([127, 0, 0, 1], bound.port()).into(), _stop };
    let answer = rest(open(&server, "GET /healthz HTTP/1.1\r\nHost: headwater.internal\r\n\r\n").await).await;
    assert!(answer.ends_with("ok\n"), "{answer}");
}
