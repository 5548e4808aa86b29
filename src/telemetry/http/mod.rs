//! The HTTP server: /, /events, /metrics, /healthz, /readyz, /rolloutz, /status.
//!
//! Runs next to the replication loop; reads [`Telemetry`] and changes nothing. Loopback by default, and then only requests for a
//! loopback host are answered ([`host`]). Bounds: connections as [`server`] says; requests have no bodies that are read,
//! answers are as large as the facts, at most [`STREAMS_MAX`] pages, and half of the connections, are kept up to date at once.

mod host;
mod server;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream::unfold;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::facts::Telemetry;
use super::page::Page;
use crate::pg::{ErrorReport, printable_json};
use server::HttpLimits;

/// The HTTP server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("http.listen: cannot listen on {address}: {error}")]
pub struct HttpError {
    /// The configured address.
    pub address: SocketAddr,
    /// The operating system's words.
    pub error: std::io::Error,
}

impl HttpError {
    /// What to say of it.
    pub fn report(&self) -> ErrorReport {
        ErrorReport::new(self.to_string())
            .hint("Set http.listen to an address that is free on this machine, or to \"off\"; or end the program that listens there.")
    }
}

/// Whether the address can be listened on.
///
/// # Errors
/// [`HttpError`] when it cannot.
pub async fn try_listen(address: SocketAddr) -> Result<(), HttpError> {
    TcpListener::bind(address).await.map(drop).map_err(|error| HttpError { address, error })
}

/// Pages that are kept up to date at once, at most; one more is asked to come again later.
const STREAMS_MAX: usize = 32;
/// How often the chart gets a point, and a page is brought up to date.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// What the routes share.
struct Served {
    telemetry: Arc<Telemetry>,
    page: Page,
    streams: AtomicUsize,
    streams_max: usize,
    stop: watch::Receiver<bool>,
}

/// Listens on `address` and serves until `stop` fires. Returns the address that was bound.
///
/// # Errors
/// [`HttpError`] when the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    telemetry: Arc<Telemetry>,
    stop: watch::Receiver<bool>,
) -> Result<SocketAddr, HttpError> {
    serve_within(HttpLimits::of_process(), address, telemetry, stop).await
}

async fn serve_within(
    limits: HttpLimits,
    address: SocketAddr,
    telemetry: Arc<Telemetry>,
    stop: watch::Receiver<bool>,
) -> Result<SocketAddr, HttpError> {
    let listener = TcpListener::bind(address).await.map_err(|error| HttpError { address, error })?;
    let bound = listener.local_addr().map_err(|error| HttpError { address, error })?;
    let served = Served {
        telemetry: Arc::clone(&telemetry),
        page: Page::new(),
        streams: AtomicUsize::new(0),
        streams_max: STREAMS_MAX.min(limits.connections_max / 2),
        stop: stop.clone(),
    };
    let mut router = Router::new()
        .route("/", get(page))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/rolloutz", get(in_service))
        .route("/status", get(status))
        .with_state(Arc::new(served));
    if bound.ip().to_canonical().is_loopback() {
        router = router.layer(from_fn(only_loopback_hosts));
    }
    tokio::spawn(sample(telemetry, stop.clone()));
    tokio::spawn(server::accept(listener, router, limits, stop));
    Ok(bound)
}

/// Refuses requests that ask a loopback server for another host.
async fn only_loopback_hosts(request: Request, next: Next) -> Response {
    match host::is_loopback(&request) {
        true => next.run(request).await,
        false => (StatusCode::MISDIRECTED_REQUEST, format!("{}\n", host::REFUSAL)).into_response(),
    }
}

/// Fills the chart for as long as the process serves.
async fn sample(telemetry: Arc<Telemetry>, mut stop: watch::Receiver<bool>) {
    let mut every = tokio::time::interval(SAMPLE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => telemetry.sample(),
            changed = stop.changed() => if changed.is_err() || *stop.borrow() { return },
        }
    }
}

type ServedState = Shared<Arc<Served>>;

async fn page(Shared(served): ServedState) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, served.page.policy.clone()),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, served.page.html.clone()).into_response()
}

async fn metrics(Shared(served): ServedState) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], served.telemetry.render_metrics()).into_response()
}

/// For load balancers, which lead readers to the copy.
async fn ready(Shared(served): ServedState) -> Response {
    probed(served.telemetry.ready(), "ready\n")
}

/// For orchestrators, which replace one instance after another.
async fn in_service(Shared(served): ServedState) -> Response {
    probed(served.telemetry.in_service(), "in service\n")
}

fn probed(answer: Result<(), String>, good: &'static str) -> Response {
    match answer {
        Ok(()) => (StatusCode::OK, good).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn status(Shared(served): ServedState) -> Response {
    match serde_json::to_string_pretty(&served.telemetry.status()) {
        Ok(json) => {
            let json = printable_json(&json).into_owned();
            ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], json).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// One page's place among those that are kept up to date; given back when the page goes.
struct PagePermit(Arc<Served>);

impl PagePermit {
    fn take(served: &Arc<Served>) -> Option<PagePermit> {
        let taken = served.streams.fetch_add(1, Ordering::Relaxed);
        // Given back at once where it is one too many.
        let place = PagePermit(Arc::clone(served));
        (taken < served.streams_max).then_some(place)
    }
}

impl Drop for PagePermit {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where one page's stream of events is.
enum NextEvent {
    History,
    Status,
    End,
}

/// First the chart's history, then the status, again every second, until the process stops.
async fn events(Shared(served): ServedState) -> Response {
    let Some(place) = PagePermit::take(&served) else {
        let headers = [(RETRY_AFTER, "10")];
        return (StatusCode::SERVICE_UNAVAILABLE, headers, "too many pages are open\n").into_response();
    };
    let mut every = tokio::time::interval(SAMPLE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stop = served.stop.clone();
    let stream = unfold((NextEvent::History, place, every, stop), async |(next, place, mut every, mut stop)| {
        let telemetry = &place.0.telemetry;
        match next {
            NextEvent::History => {
                let event = event("history", &telemetry.history());
                Some((event, (NextEvent::Status, place, every, stop)))
            }
            NextEvent::Status => {
                let stopping = *stop.borrow();
                if !stopping {
                    tokio::select! {
                        _ = every.tick() => {}
                        _ = stop.changed() => {}
                    }
                }
                let next = if *stop.borrow() { NextEvent::End } else { NextEvent::Status };
                let telemetry = &place.0.telemetry;
                let event = event("status", &(telemetry.status(), telemetry.last_sample()));
                Some((event, (next, place, every, stop)))
            }
            NextEvent::End => None,
        }
    });
    let headers = [(CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
    (headers, Sse::new(stream)).into_response()
}

fn event(name: &'static str, data: &impl serde::Serialize) -> Result<Event, Infallible> {
    // JSON has no line breaks, and our own types always serialize; a comment keeps the stream alive where not.
    Ok(match serde_json::to_string(data) {
        Ok(json) => Event::default().event(name).data(printable_json(&json)),
        Err(_) => Event::default().comment("not shown"),
    })
}

#[cfg(test)]
mod tests;
