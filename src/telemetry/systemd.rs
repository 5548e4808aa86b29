//! What the service manager receives: ready, alive, the state in words, stopping (sd_notify(3)).
//!
//! Runs next to the replication loop and reads [`Telemetry`]. Without NOTIFY_SOCKET, which `Type=notify` sets, it does nothing.
//! It sends *ready* once both servers were reached and checked, or while it waits for one of them. So a start that an operator
//! must fix fails visibly, and a server that is down does not hold up the boot. The thread that does all the work sends *alive*:
//! when it hangs, it is silent. Bound: a datagram that the manager does not take is dropped.

use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::facts::Telemetry;
use super::view::StatusView;
use crate::pg::printable;
use crate::telemetry::state::State;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Lag in the status line changes all the time; the manager need not hear of each change.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Tells the service manager until `stop` fires.
pub fn notify_service_manager(telemetry: Arc<Telemetry>, stop: watch::Receiver<bool>) {
    let Some(manager) = Manager::find() else { return };
    tokio::spawn(tell(manager, telemetry, stop));
}

async fn tell(manager: Manager, telemetry: Arc<Telemetry>, mut stop: watch::Receiver<bool>) {
    let every = manager.watchdog.map_or(LOOK_EVERY, |limit| LOOK_EVERY.min(limit / 3));
    let mut ready = false;
    let mut told: Option<(State, Option<String>, Instant)> = None;
    loop {
        let status = telemetry.status();
        if !ready && (status.state != State::Connecting || status.reason.is_some()) {
            ready = true;
            manager.send("READY=1");
        }
        manager.send("WATCHDOG=1");
        let same = told.as_ref().is_some_and(|(state, reason, at)| {
            *state == status.state && *reason == status.reason && at.elapsed() < STATUS_EVERY
        });
        if !same {
            manager.send(&format!("STATUS={}", line(&status)));
            told = Some((status.state, status.reason, Instant::now()));
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            changed = stop.changed() => {
                if changed.is_err() || *stop.borrow() {
                    manager.send("STOPPING=1\nSTATUS=stopping");
                    return;
                }
            }
        }
    }
}

/// The state on one line, for `systemctl status`.
fn line(status: &StatusView) -> String {
    let state = status.state.as_str();
    let text = match (&status.reason, status.lag_seconds, status.lag_bytes) {
        (Some(reason), _, _) => format!("{state}: {reason}"),
        (None, Some(seconds), Some(bytes)) if matches!(status.state, State::Streaming | State::CatchingUp) => {
            format!("{state}, {seconds:.1} s and {bytes} bytes behind")
        }
        (None, _, _) => state.to_owned(),
    };
    printable(&text.replace('\n', " ")).into_owned()
}

struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// It takes a longer silence for a hang.
    watchdog: Option<Duration>,
}

impl Manager {
    fn find() -> Option<Manager> {
        let path = std::env::var("NOTIFY_SOCKET").ok()?;
        let address = address(&path)?;
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        let ours = std::env::var("WATCHDOG_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        let anybodys = std::env::var_os("WATCHDOG_PID").is_none();
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|micros| micros.parse().ok());
        let watchdog = micros.filter(|_| ours || anybodys).map(Duration::from_micros);
        Some(Manager { socket, address, watchdog })
    }

    fn send(&self, text: &str) {
        // A manager that does not listen is its own affair.
        let _ = self.socket.send_to_addr(text.as_bytes(), &self.address);
    }
}

/// A path, or a name in the abstract namespace, which begins with an @.
fn address(path: &str) -> Option<SocketAddr> {
    match path.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name).ok()
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => None,
        None => SocketAddr::from_pathname(path).ok(),
    }
}
