//! The HTTP server: /, /events, /metrics, /healthz, /readyz, /status.
//!
//! Stands beside the ring; reads [`Telemetry`] and changes nothing. Loopback by default. Bounds: requests have no
//! bodies that are read, answers are as large as the facts, at most [`STREAMS_MAX`] pages are kept up to date at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream::unfold;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::facts::Telemetry;
use super::page::Page;

/// The HTTP server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("http.listen: cannot listen on {address}: {error}")]
pub struct HttpError {
    /// The configured address.
    pub address: SocketAddr,
    /// The operating system's words.
    pub error: std::io::Error,
}

/// Pages that are kept up to date at once; one more is asked to come again later.
const STREAMS_MAX: usize = 32;
/// How often the chart gets a point, and a page is brought up to date.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// What the routes share.
struct Served {
    telemetry: Arc<Telemetry>,
    page: Page,
    streams: AtomicUsize,
    stop: watch::Receiver<bool>,
}

/// Listens on `address` and serves until `stop` fires. Returns the address that was bound.
///
/// # Errors
/// [`HttpError`] when the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    telemetry: Arc<Telemetry>,
    mut stop: watch::Receiver<bool>,
) -> Result<SocketAddr, HttpError> {
    let listener = TcpListener::bind(address).await.map_err(|error| HttpError { address, error })?;
    let bound = listener.local_addr().unwrap_or(address);
    let served = Served {
        telemetry: Arc::clone(&telemetry),
        page: Page::new(),
        streams: AtomicUsize::new(0),
        stop: stop.clone(),
    };
    let router = Router::new()
        .route("/", get(page))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .with_state(Arc::new(served));
    tokio::spawn(sample(telemetry, stop.clone()));
    tokio::spawn(async move {
        let stopped = async move { while !*stop.borrow_and_update() && stop.changed().await.is_ok() {} };
        // An error here concerns one connection; the listener goes on.
        let _ = axum::serve(listener, router).with_graceful_shutdown(stopped).await;
    });
    Ok(bound)
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

type Answered = Shared<Arc<Served>>;

async fn page(Shared(served): Answered) -> Response {
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

async fn metrics(Shared(served): Answered) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], served.telemetry.render_metrics()).into_response()
}

async fn ready(Shared(served): Answered) -> Response {
    match served.telemetry.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn status(Shared(served): Answered) -> Response {
    match serde_json::to_string_pretty(&served.telemetry.status()) {
        Ok(json) => ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// One page's place among [`STREAMS_MAX`]; given back when the page goes.
struct Place(Arc<Served>);

impl Place {
    fn take(served: &Arc<Served>) -> Option<Place> {
        let taken = served.streams.fetch_add(1, Ordering::Relaxed);
        // Given back at once where it is one too many.
        let place = Place(Arc::clone(served));
        (taken < STREAMS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where one page's stream of events is.
enum Next {
    History,
    Status,
    End,
}

/// First the chart's history, then the status, again every second, until the process stops.
async fn events(Shared(served): Answered) -> Response {
    let Some(place) = Place::take(&served) else {
        let headers = [(RETRY_AFTER, "10")];
        return (StatusCode::SERVICE_UNAVAILABLE, headers, "too many pages are open\n").into_response();
    };
    let mut every = tokio::time::interval(SAMPLE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stop = served.stop.clone();
    let stream = unfold((Next::History, place, every, stop), async |(next, place, mut every, mut stop)| {
        let telemetry = &place.0.telemetry;
        match next {
            Next::History => {
                let event = event("history", &telemetry.history());
                Some((event, (Next::Status, place, every, stop)))
            }
            Next::Status => {
                let stopping = *stop.borrow();
                if !stopping {
                    tokio::select! {
                        _ = every.tick() => {}
                        _ = stop.changed() => {}
                    }
                }
                let next = if *stop.borrow() { Next::End } else { Next::Status };
                let telemetry = &place.0.telemetry;
                let event = event("status", &(telemetry.status(), telemetry.last_sample()));
                Some((event, (next, place, every, stop)))
            }
            Next::End => None,
        }
    });
    let headers = [(CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
    (headers, Sse::new(stream)).into_response()
}

fn event(name: &'static str, data: &impl serde::Serialize) -> Result<Event, Infallible> {
    // JSON has no line breaks, and our own types always serialize; a comment keeps the stream alive where not.
    Ok(match serde_json::to_string(data) {
        Ok(json) => Event::default().event(name).data(json),
        Err(_) => Event::default().comment("not shown"),
    })
}
