//! A short rest between two readings of a stream that is late.
//!
//! Taken by `source::stream` when the socket is empty and what came last was committed a while ago. The walsender sends
//! each message by itself; whoever waits for it is woken by each, and both sides pay. After a rest many are there at
//! once. It is a fraction of what the socket holds, so the walsender does not stand still; and what is fresh never waits.
//!
//! tokio's clock ticks in milliseconds, in which a socket between processes of one machine fills up; hence a timer of the
//! kernel's.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A socket between processes of one machine holds some 280 small messages; a walsender sends up to 320 in a
/// millisecond.
const REST: Duration = Duration::from_micros(300);
/// Younger than this at the source is not late.
const LATE: Duration = Duration::from_millis(50);

/// The timer.
pub(super) struct Respite {
    timer: Option<AsyncFd<OwnedFd>>,
    late: bool,
}

impl Respite {
    /// Without a timer of the kernel's there are no rests.
    pub(super) fn new() -> Respite {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io::Error::from);
        Respite { timer: timer.and_then(|timer| AsyncFd::with_interest(timer, Interest::READABLE)).ok(), late: false }
    }

    /// Something that was committed so long ago has come.
    pub(super) fn heard(&mut self, age: Duration) {
        self.late = age >= LATE;
    }

    /// Whether to rest before the next reading.
    pub(super) fn is_due(&self) -> bool {
        self.late && self.timer.is_some()
    }

    /// Begins a rest.
    pub(super) fn begin(&mut self) {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec { tv_sec: 0, tv_nsec: i64::from(REST.subsec_nanos()) },
        };
        let set = self.timer.as_ref().map(|timer| timerfd_settime(timer, TimerfdTimerFlags::empty(), &once));
        if !matches!(set, Some(Ok(_))) {
            self.timer = None;
        }
    }

    /// Waits for the rest's end.
    pub(super) async fn ended(&mut self) {
        let Some(timer) = &self.timer else { return };
        if let Ok(mut guard) = timer.readable().await {
            guard.clear_ready();
        }
    }
}
