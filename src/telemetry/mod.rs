//! Facts into what people and machines see: metrics, health, status, logs.
//!
//! I/O. In come facts from every I/O module (a commit was received, a batch was stored, the state is now …);
//! out go /metrics, /healthz, /readyz, /rolloutz, /status and the status page over HTTP, and log lines. Nothing here decides
//! anything, and nothing served over HTTP changes anything.
//!
//! Invariants: no row value and no password in any output (I9); label sets are bounded by the table set and by our
//! own enums; each query computes the lag, so it keeps rising while everything else stands still.

mod facts;
pub mod failpoint;
mod history;
mod http;
mod log;
mod metrics;
mod page;
mod process;
mod state;
mod systemd;
mod view;

pub use crate::telemetry::state::State;
pub use facts::Telemetry;
pub use http::{HttpError, serve, try_listen};
pub use log::{LogFormat, start_logging};
pub use metrics::{Operation, RowCount};
pub use systemd::notify_service_manager;
pub use view::{Event, SlotHealth, SnapshotPhase, SnapshotProgress, StatusView, StreamRoute, TableProgress, Verified};
