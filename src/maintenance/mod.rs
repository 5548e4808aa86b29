//! What an operator runs in addition to the service: check, verify, cut-over, teardown, a proposal for a configuration.
//!
//! I/O. Called by `commands`, which prints what comes out. None of it needs a running service; `verify` and `cutover` use the fences of
//! one where it runs.

pub(crate) mod check;
pub(crate) mod conflict_rows;
pub(crate) mod cutover;
pub(crate) mod proposal;
pub(crate) mod teardown;
pub mod verify;
