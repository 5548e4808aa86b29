//! The second task of the replication loop: whole transactions in, commits at the destination out, positions back.
//!
//! I/O, around the decisions of `apply_core`. `apply_loop` takes steps from `source::stream` and has `destination::apply` carry them
//! out; `parallel_apply` applies a large transaction while it is still in progress; `pause` lets others hold the loop for a moment
//! (fences, hand-overs); `streaming` joins both tasks.

pub(crate) mod apply_loop;
pub(crate) mod counts;
pub(crate) mod heartbeat;
pub(crate) mod parallel_apply;
pub(crate) mod pause;
pub(crate) mod scheduling;
pub(crate) mod streaming;
