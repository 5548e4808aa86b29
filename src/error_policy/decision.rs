//! What follows from a fault.
//!
//! Made by [`super::decide`] and `sqlstate`; carried out by `supervisor`. Plain data.

/// What to do about a fault. The reason is the `reason` label of `headwater_restarts_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Set everything up anew.
    Retry(&'static str),
    /// The same, but say that it may need an operator.
    Halt(&'static str),
    /// Make a new slot and reconcile all tables.
    Resnapshot,
    /// Give up: exit 1.
    End,
}
