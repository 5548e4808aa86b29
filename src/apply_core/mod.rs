//! What is applied next, and what is applied in parallel: the decisions of `apply_worker`, without its tasks.
//!
//! Pure: events in, actions out, and time is an argument. `apply_worker` is the shell that carries the actions out on two writing
//! sessions; `source::parallel_apply` shares the coordinator between the tasks. `tests/simulation` puts the same two cores between a
//! fake source and a fake destination, so the simulation decides what the service decides.
//!
//! ```text
//!  events                                                          actions
//!  step, answer, time ───────────▶ apply_loop::LoopCore ─────────▶ submit, store a position, ping, pause: the leader's session
//!                                     │ poll, turn   ▲ outcome
//!                                     ▼              │
//!  appended, truncated, aborted, ▶ parallel_apply::Coordinator ──▶ read, send, commit, cancel (why): the second session
//!  committed, applied, failed         │
//!                                     ▼
//!                                  obstacle::obstacle: every reason to leave a transaction to its commit
//! ```
//!
//! One streamed transaction at a time has a life here, from its first records until its commit is answered:
//!
//! ```text
//!  Arriving ──▶ Committed ──▶ Due ──▶ Applied ──▶ Settled(Applied)     its records are dropped from the spool
//!     └─────────────┴──────────┴──▶ Cancelled ──▶ Settled(ReadBack)    they are read back, as without parallel apply
//! ```
//!
//! Invariants: records are read for the second session only once everything that the source had sent before them is stored, so what
//! they depend on is at the destination (docs/decisions/0013-ahead.md); a transaction is Due only with everything before it stored and
//! nothing under way, so its commit has its place in the order of commits (I2, I3); it is cancelled at any moment without loss, since
//! its records stay in the spool until Settled.

mod apply_loop;
mod command;
mod obstacle;
mod parallel_apply;
mod sessions;

pub use apply_loop::{LoopAction, LoopCore, LoopLimits, Moment, Ping};
pub use command::ApplyCommand;
pub use obstacle::{
    AtCommit, Knowledge, LIVE_WAITS_MAX, Observed, Obstacle, QUIET_MAX, SessionRole, TableKnowledge, TableTraits,
    obstacle,
};
pub use parallel_apply::{
    Appended, CommitBy, Coordinator, GATHER_MAX, ParallelLimits, SessionAction, Settlement, TurnOutcome,
};
pub use sessions::{LiveSession, SecondSession};
