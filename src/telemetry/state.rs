//! The state: which one of seven, its name, and the one log line that reports its change.
//!
//! `facts` sets it; the log, the metrics' label, the pages and the commands show it by this name.

use serde::{Deserialize, Serialize};

use crate::pg::ErrorReport;
use crate::telemetry::log::is_json;

/// What headwater is doing; exactly one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Reaching both servers and checking them.
    Connecting,
    /// Copying tables.
    Snapshot,
    /// Streaming, and not yet where the source was when streaming began.
    CatchingUp,
    /// Streaming.
    Streaming,
    /// Another instance leads.
    Standby,
    /// Held up by something that may need an operator; retried.
    Waiting,
    /// Ended.
    Stopped,
}

impl State {
    /// All there are.
    pub(super) const ALL: [State; 7] = [
        State::Connecting,
        State::Snapshot,
        State::CatchingUp,
        State::Streaming,
        State::Standby,
        State::Waiting,
        State::Stopped,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Connecting => "connecting",
            State::Snapshot => "snapshot",
            State::CatchingUp => "catching_up",
            State::Streaming => "streaming",
            State::Standby => "standby",
            State::Waiting => "waiting",
            State::Stopped => "stopped",
        }
    }
}

/// One log line per change of state.
pub(super) fn tell(state: State, reason: Option<&ErrorReport>) {
    let name = state.as_str();
    match reason {
        Some(reason) if is_json() => {
            let (detail, hint) = (reason.detail.as_deref(), reason.hint.as_deref());
            if state == State::Waiting {
                tracing::error!(state = name, detail, hint, "{reason}");
            } else {
                tracing::warn!(state = name, detail, hint, "{reason}");
            }
        }
        Some(reason) if state == State::Waiting => tracing::error!(state = name, "{}", reason.lines()),
        Some(reason) => tracing::warn!(state = name, "{}", reason.lines()),
        None => tracing::info!(state = name, "{}", sentence(state)),
    }
}

fn sentence(state: State) -> &'static str {
    match state {
        State::Connecting => "connecting",
        State::Snapshot => "copying the tables",
        State::CatchingUp => "catching up with the source",
        State::Streaming => "streaming",
        State::Standby => "standing by: another instance leads",
        State::Waiting => "waiting",
        State::Stopped => "stopped",
    }
}
