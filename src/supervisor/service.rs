//! What all attempts of one process share.
//!
//! Made by `supervisor::run`, lent to each attempt and to what is done between two.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use super::monitor::Monitor;
use crate::config::Config;
use crate::destination::Lead;
use crate::error_policy::Fault;
use crate::telemetry::Telemetry;

/// How an attempt ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// The process is to stop.
    Stopped,
    /// Other tables are followed from now on.
    Restart,
}

/// What all attempts of one process share.
pub(super) struct Service {
    /// As it was configured, with all of source.url's hosts.
    pub(super) configured: Arc<Config>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) monitor: Monitor,
    stop: watch::Receiver<bool>,
}

impl Service {
    pub(super) fn new(config: Arc<Config>, telemetry: Arc<Telemetry>, stop: watch::Receiver<bool>) -> Service {
        let monitor = Monitor::start(Arc::clone(&config), Arc::clone(&telemetry));
        Service { configured: config, telemetry, monitor, stop }
    }

    /// Starts the monitor again where it has ended.
    pub(super) fn keep_monitor(&mut self) {
        if self.monitor.has_ended() {
            self.monitor = Monitor::start(Arc::clone(&self.configured), Arc::clone(&self.telemetry));
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Resolves once the process is asked to stop.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + use<> {
        let mut stop = self.stop.clone();
        async move { while !*stop.borrow_and_update() && stop.changed().await.is_ok() {} }
    }
}

/// Does `work` for as long as this instance leads.
pub(super) async fn while_leading<T, E>(lead: &mut Lead, work: impl Future<Output = Result<T, E>>) -> Result<T, Fault>
where
    Fault: From<E>,
{
    tokio::select! {
        done = work => Ok(done?),
        lost = lead.lost() => Err(lost.into()),
    }
}
