//! The HTTP server: /metrics, /healthz, /readyz, /status.
//!
//! Stands beside the ring; reads [`Telemetry`] and changes nothing. Loopback by default. Bounds: requests have no
//! bodies that are read, answers are as large as the facts.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::facts::Telemetry;

/// The HTTP server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("http.listen: cannot listen on {address}: {error}")]
pub struct HttpError {
    /// The configured address.
    pub address: SocketAddr,
    /// The operating system's words.
    pub error: std::io::Error,
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
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .with_state(telemetry);
    tokio::spawn(async move {
        let stopped = async move { while !*stop.borrow_and_update() && stop.changed().await.is_ok() {} };
        // An error here concerns one connection; the listener goes on.
        let _ = axum::serve(listener, router).with_graceful_shutdown(stopped).await;
    });
    Ok(bound)
}

async fn metrics(Shared(telemetry): Shared<Arc<Telemetry>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry.render_metrics()).into_response()
}

async fn ready(Shared(telemetry): Shared<Arc<Telemetry>>) -> Response {
    match telemetry.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn status(Shared(telemetry): Shared<Arc<Telemetry>>) -> Response {
    match serde_json::to_string_pretty(&telemetry.status()) {
        Ok(json) => ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
