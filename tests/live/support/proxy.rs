//! A TCP proxy between headwater and a server: it can cut, stall, delay and half-close, and counts round trips.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes them on.
    Open,
    /// Keeps connections open and passes nothing on, in either direction: a stalled link.
    Stalled,
    /// Passes each piece on after so many milliseconds.
    Delayed(u64),
    /// Ends the server's side of every connection and leaves the client's open: half of it goes on.
    HalfClosed,
    /// Closes every connection, and every new one.
    Cut,
}

/// A running proxy. Dropping it cuts all connections.
pub struct Proxy {
    pub port: u16,
    mode: Arc<watch::Sender<Mode>>,
    round_trips: RoundTrips,
    task: JoinHandle<()>,
}

/// How often sessions have sent something behind an answer, by their application_name. Exact over a delayed link only: what is sent
/// without waiting for answers is on its way before the first one comes.
#[derive(Clone, Debug, Default)]
struct RoundTrips(Arc<Mutex<BTreeMap<String, u64>>>);

/// One connection's.
struct Conversation {
    round_trips: RoundTrips,
    application: Mutex<Option<String>>,
    answered: std::sync::atomic::AtomicBool,
}

impl Conversation {
    fn sends(&self, bytes: &[u8]) {
        let mut application = self.application.lock().unwrap_or_else(PoisonError::into_inner);
        if application.is_none() {
            *application = application_name(bytes);
        }
        if self.answered.swap(false, std::sync::atomic::Ordering::Relaxed)
            && let Some(application) = application.as_ref()
        {
            let mut counts = self.round_trips.0.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry(application.clone()).or_default() += 1;
        }
    }

    fn is_answered(&self) {
        self.answered.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// What a startup message says.
fn application_name(bytes: &[u8]) -> Option<String> {
    let key = b"application_name\0";
    let at = bytes.windows(key.len()).position(|window| window == key)? + key.len();
    let value = bytes[at..].split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.mode.send_replace(Mode::Cut);
        self.task.abort();
    }
}

impl Proxy {
    /// Starts a proxy to a server on this machine.
    pub async fn to(server_port: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (mode, _) = watch::channel(Mode::Open);
        let mode = Arc::new(mode);
        let shared = Arc::clone(&mode);
        let round_trips = RoundTrips::default();
        let counted = round_trips.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mode = shared.subscribe();
                if *mode.borrow() == Mode::Cut {
                    continue;
                }
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port));
                if let Ok(server) = TcpStream::connect(address).await {
                    tokio::spawn(connect(client, server, mode, counted.clone()));
                }
            }
        });
        Proxy { port, mode, round_trips, task }
    }

    /// The round trips since this was asked last, by application_name.
    pub fn take_round_trips(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.round_trips.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes all connections once; new ones are passed on.
    pub fn cut_once(&self) {
        self.mode.send_replace(Mode::Cut);
        self.mode.send_replace(Mode::Open);
    }

    /// The same database as the same role as this address leads to, through the proxy.
    pub fn in_place_of(&self, url: &str) -> String {
        let (url, _) = url.split_once('?').unwrap_or((url, ""));
        let (role, place) = url.split_once('@').expect("an address with a role");
        let (_, database) = place.rsplit_once('/').expect("an address with a database");
        format!("{role}@127.0.0.1:{}/{database}", self.port)
    }
}

async fn connect(client: TcpStream, server: TcpStream, mode: watch::Receiver<Mode>, round_trips: RoundTrips) {
    let conversation =
        Conversation { round_trips, application: Mutex::default(), answered: std::sync::atomic::AtomicBool::new(true) };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::select! {
        () = pass(client_read, server_write, mode.clone(), true, &conversation) => {}
        () = pass(server_read, client_write, mode, false, &conversation) => {}
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    towards_server: bool,
    conversation: &Conversation,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Cut => return,
            Mode::HalfClosed if towards_server => {
                // The server reads the end of it and still answers; its client is not told.
                let _ = to.shutdown().await;
                return std::future::pending().await;
            }
            Mode::Stalled => {
                if mode.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Mode::Open | Mode::Delayed(_) | Mode::HalfClosed => {}
        }
        let length = tokio::select! {
            // Two changes in quick succession count as the first: a cut that was only once is still a cut.
            changed = mode.changed() => {
                if changed.is_err() || now == Mode::Open && *mode.borrow() == Mode::Open {
                    return;
                }
                continue;
            }
            length = from.read(&mut buffer) => match length {
                Ok(length) if length > 0 => length,
                Ok(_) | Err(_) => return,
            },
        };
        if towards_server {
            conversation.sends(&buffer[..length]);
        }
        if let Mode::Delayed(millis) = now {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        if !towards_server {
            conversation.is_answered();
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
