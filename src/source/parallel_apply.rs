//! The coordinator of parallel apply, shared by the tasks that it is about.
//!
//! [`Coordinator`] (pure) owns the life of the stream that is applied in parallel. The step router calls it from task 1, the second
//! session and the apply loop from `apply_worker`. Each call goes through [`SharedCoordinator::with`], which wakes the others if something
//! has changed that they may wait for, and logs what was cancelled.
//!
//! ```text
//!           appended, truncated, aborted, committed          read, send, commit, cancel
//!  router ────────────────────────────▶ SharedCoordinator ◀──────────────────────────── the second session
//!     ▲                                    ▲
//!     └── settled: applied, or read back   └── stored · turn · cancel ── apply loop
//! ```

use std::sync::Arc;

use tokio::sync::watch;

use crate::apply_core::{Coordinator, Settlement};

/// A handle; all of them mean the same coordinator.
#[derive(Clone, Debug)]
pub struct SharedCoordinator(Arc<watch::Sender<Coordinator>>);

/// Waits for what others have changed.
#[derive(Clone, Debug)]
pub struct Changes(watch::Receiver<Coordinator>);

impl SharedCoordinator {
    /// Shares a coordinator.
    pub fn new(coordinator: Coordinator) -> SharedCoordinator {
        SharedCoordinator(Arc::new(watch::Sender::new(coordinator)))
    }

    /// Something to wait on.
    pub fn watch(&self) -> Changes {
        Changes(self.0.subscribe())
    }

    /// Tells the coordinator something, or asks it.
    pub fn with<T>(&self, call: impl FnOnce(&mut Coordinator) -> T) -> T {
        let (mut result, mut cancelled) = (None, None);
        self.0.send_if_modified(|coordinator| {
            result = Some(call(coordinator));
            cancelled = coordinator.take_cancelled();
            coordinator.take_changed()
        });
        if let Some((xid, why)) = cancelled {
            tracing::debug!(xid, %why, "a stream waits for its commit");
        }
        result.expect("send_if_modified calls its closure once")
    }
}

impl Changes {
    /// Resolves after the next change that this handle has not seen. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What is there now counts as seen.
    pub fn seen(&mut self) {
        self.0.mark_unchanged();
    }

    /// What became of the stream that has committed, once the apply loop says so; it is forgotten then. `None`: nothing is applied
    /// any more. Cancel-safe.
    pub(super) async fn settled(&mut self, shared: &SharedCoordinator) -> Option<Settlement> {
        loop {
            let (is_settled, is_closed) = {
                let coordinator = self.0.borrow_and_update();
                (coordinator.settled().is_some(), coordinator.is_closed())
            };
            if is_settled {
                return shared.with(Coordinator::take_settled);
            }
            if is_closed || self.0.changed().await.is_err() {
                return None;
            }
        }
    }
}
