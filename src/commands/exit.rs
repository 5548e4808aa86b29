//! How a command ended, as the process's exit code.
//!
//! Returned by every command. Exit codes are part of the operator's surface.

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It did what it was asked.
    Done,
    /// An operator must act.
    OperatorMustAct,
    /// The arguments or the configuration are wrong.
    Usage,
}
