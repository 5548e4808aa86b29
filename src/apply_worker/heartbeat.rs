//! Heartbeats: logical messages by which the stream says how long a commit takes to come through.
//!
//! The monitor writes one at the source, and the fence writes one to pass it; they come back in the stream, where the apply loop tells
//! those of this process from others. The content is the process's random number and the microseconds since it began.

use std::time::{Duration, Instant};

use crate::transaction::Heartbeat;

/// Logical messages with this prefix are our heartbeats.
pub(crate) const HEARTBEAT_PREFIX: &str = "headwater";

/// This process, as heartbeats name it: a random number, and times since it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instance {
    id: u64,
    began: Instant,
}

impl Instance {
    /// A process that begins now.
    pub(crate) fn new() -> Instance {
        Instance { id: fastrand::u64(..), began: Instant::now() }
    }

    pub(crate) fn heartbeat(&self) -> String {
        format!("{:016x} {}", self.id, self.began.elapsed().as_micros())
    }

    /// How long ago a heartbeat of this process was written.
    pub(crate) fn since(&self, heartbeat: &Heartbeat) -> Option<Duration> {
        let text = std::str::from_utf8(&heartbeat.content).ok()?;
        let (id, micros) = text.split_once(' ')?;
        let ours = u64::from_str_radix(id, 16).ok()? == self.id;
        let sent = Duration::from_micros(micros.parse().ok()?);
        ours.then(|| self.began.elapsed().saturating_sub(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_of_another_process_is_not_ours() {
        let ours = Instance { id: 7, began: Instant::now() };
        let other = Instance { id: 8, began: Instant::now() };
        let heartbeat = Heartbeat { content: ours.heartbeat().into_bytes() };
        assert!(ours.since(&heartbeat).is_some());
        assert!(other.since(&heartbeat).is_none());
        assert!(ours.since(&Heartbeat { content: b"rubbish".to_vec() }).is_none());
    }
}
