//! Connections of the HTTP server: accepted, bounded in number and time, each with one request.
//!
//! In come a listener and the routes; out goes nothing but answers. Called by [`super::serve`]. Clients are strangers:
//! whatever they do costs replication neither descriptors nor memory, and never ends the server.
//!
//! ```text
//! accept ─▶ waiting (no whole header yet) ─▶ answering ─▶ closed
//!              │ header_timeout                 │ write_timeout: what is written is not taken
//!              │ place taken by a newer one     │
//!              └──────────────▶ closed ◀────────┘
//! ```
//!
//! Bounds: [`HttpLimits::connections_max`] connections, a quarter of the descriptors that the process may have. When all
//! are in use, the connection that has waited longest without a whole request gives way to the new one; when all have a
//! request, the new one is answered 503. So clients that send nothing cannot lock out one that does. A header has at
//! most [`BUFFER_BYTES`]; bodies are not read; what is not yet written is at most one answer and one buffer. There is no
//! keep-alive, so no connection is idle.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Sleep;

/// Largest header, and how much of an answer is encoded ahead. Browsers and Prometheus send less than 4 kB.
const BUFFER_BYTES: usize = 16 << 10;
/// What the kernel may hold of an answer that is not read: a slow reader is noticed by what it leaves.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// No more connections than this, however many descriptors there are: each takes some 50 kB.
const CONNECTIONS_MAX: usize = 256;
/// After an error that concerns no single client (no descriptors, no memory), accepting waits so long.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// At most one log line in this time about full places.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// The answer to a connection for which there is no place.
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 10\r\n\
                          content-length: 26\r\n\r\ntoo many connections open\n";

/// What strangers may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct HttpLimits {
    /// Connections at a time.
    pub(super) connections_max: usize,
    /// From the connection to the end of the request's header.
    pub(super) header_timeout: Duration,
    /// From when something is to be written until the client has taken all of it.
    pub(super) write_timeout: Duration,
}

impl HttpLimits {
    /// Those of this process: by how many descriptors it may have.
    pub(super) fn of_process() -> HttpLimits {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        HttpLimits {
            connections_max: connections_max(descriptors),
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// A quarter of the descriptors: the other three are kept for sessions and files. `None`: no limit.
fn connections_max(descriptors: Option<u64>) -> usize {
    let quarter = descriptors.map_or(CONNECTIONS_MAX, |limit| usize::try_from(limit / 4).unwrap_or(CONNECTIONS_MAX));
    // Less than four could not serve one browser and one Prometheus.
    quarter.clamp(4, CONNECTIONS_MAX)
}

/// Accepts connections until `stop` fires. Those that are open then end by themselves, or with the process.
pub(super) async fn accept(listener: TcpListener, router: Router, limits: HttpLimits, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let waiting = Arc::new(WaitingConnections::default());
    let mut full = Warned::default();
    let mut failing = Warned::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The client was gone before it was accepted.
            Err(error) if is_of_client(&error) => continue,
            Err(error) => {
                failing.warn(|| format!("http: cannot accept connections: {error}"));
                waiting.evict_oldest();
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_RETRY) => continue,
                    () = stopped(&mut stop) => return,
                }
            }
        };
        let place = match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                full.warn(|| {
                    format!(
                        "http: all {} connections are in use: the oldest without a request is closed",
                        limits.connections_max
                    )
                });
                if !waiting.evict_oldest() {
                    // It fits into the empty send buffer; a client that is gone misses nothing.
                    let _ = stream.try_write(NO_PLACE);
                    continue;
                }
                // The one that was evicted ends at once.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                place
            }
        };
        let (arrival, evicted) = WaitingConnections::enter(&waiting);
        tokio::spawn(serve_connection(stream, router.clone(), limits, arrival, evicted, place, stop.clone()));
    }
}

/// Errors of accept that are the connection's own; accept(2) passes on what happened to it in the meantime.
fn is_of_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Resolves when the process is asked to stop, or nobody is left to ask.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    while !*stop.borrow_and_update() && stop.changed().await.is_ok() {}
}

/// Reads one request and writes its answer.
async fn serve_connection(
    stream: TcpStream,
    router: Router,
    limits: HttpLimits,
    arrival: Arrival,
    evicted: oneshot::Receiver<()>,
    _place: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    bound_kernel_buffers(&stream, limits.write_timeout);
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let has_place = arrival.leave();
        let answer = has_place.then(|| routes.call(request));
        async move {
            match answer {
                Some(answer) => answer.await,
                // It was evicted in this moment; the connection is closed.
                None => std::future::pending::<Result<_, Infallible>>().await,
            }
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    builder.keep_alive(false).max_buf_size(BUFFER_BYTES);
    let io = TokioIo::new(Deadlined::new(stream, limits.write_timeout));
    let mut connection = pin!(builder.serve_connection(io, service));
    tokio::select! {
        // An error here concerns this client alone: it went, was too slow, or spoke no HTTP.
        _ = connection.as_mut() => {}
        Ok(()) = evicted => {}
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// So that what a client does not read, and one that has vanished, are bounded in the kernel, too.
fn bound_kernel_buffers(stream: &TcpStream, timeout: Duration) {
    let socket = socket2::SockRef::from(stream);
    // Without them only the bounds of the system hold, which is no reason to refuse a client.
    let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
    let _ = socket.set_tcp_user_timeout(Some(timeout));
}

/// The connections without a whole request, oldest first.
#[derive(Default)]
struct WaitingConnections(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// Numbers only grow, so the queue is sorted by them.
    last_number: u64,
    entries: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl WaitingConnections {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing in it is half done where somebody panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(waiting: &Arc<WaitingConnections>) -> (Arrival, oneshot::Receiver<()>) {
        let (evict, evicted) = oneshot::channel();
        let mut queue = waiting.queue();
        queue.last_number += 1;
        let number = queue.last_number;
        queue.entries.push_back((number, evict));
        drop(queue);
        (Arrival { waiting: Arc::clone(waiting), number, left: AtomicBool::new(false) }, evicted)
    }

    /// Closes the connection that has waited longest; whether there was one.
    fn evict_oldest(&self) -> bool {
        match self.queue().entries.pop_front() {
            Some((_, evict)) => {
                // Its task ends also where it no longer listens: then it has ended.
                let _ = evict.send(());
                true
            }
            None => false,
        }
    }
}

/// One connection among those that wait; dropped with it.
struct Arrival {
    waiting: Arc<WaitingConnections>,
    number: u64,
    left: AtomicBool,
}

impl Arrival {
    /// The request is here: the connection waits no more. `false`: it was evicted.
    fn leave(&self) -> bool {
        if self.left.swap(true, Ordering::Relaxed) {
            return true;
        }
        let mut queue = self.waiting.queue();
        let found = queue.entries.binary_search_by_key(&self.number, |(number, _)| *number);
        found.is_ok_and(|index| queue.entries.remove(index).is_some())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.leave();
    }
}

/// When something was last warned of.
#[derive(Default)]
struct Warned(Option<Instant>);

impl Warned {
    fn warn(&mut self, text: impl FnOnce() -> String) {
        if self.0.is_none_or(|at| at.elapsed() > WARN_EVERY) {
            self.0 = Some(Instant::now());
            tracing::warn!("{}", text());
        }
    }
}

/// A stream on which everything that is written is taken by the other side within a time.
///
/// The clock starts with a write and ends with the flush that hyper does once its buffer is empty, so a client that takes a
/// byte now and then gains nothing.
struct Deadlined {
    stream: TcpStream,
    timeout: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Deadlined {
    fn new(stream: TcpStream, timeout: Duration) -> Deadlined {
        Deadlined { stream, timeout, deadline: None }
    }

    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let timeout = self.timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match (written, deadline.as_mut().poll(context)) {
            (Poll::Pending, Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            (written, _) => written,
        }
    }
}

impl AsyncRead for Deadlined {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Deadlined {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.deadline = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_a_quarter_of_the_descriptors_at_most() {
        assert_eq!(connections_max(Some(256)), 64);
        assert_eq!(connections_max(Some(1024)), CONNECTIONS_MAX);
        assert_eq!(connections_max(Some(1 << 20)), CONNECTIONS_MAX);
        assert_eq!(connections_max(None), CONNECTIONS_MAX);
        assert_eq!(connections_max(Some(10)), 4);
    }
}
