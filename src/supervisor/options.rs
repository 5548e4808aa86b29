//! What the operator asked for at start.
//!
//! Made by `commands`, taken by [`super::run`]. Plain data.

use crate::destination::Scope;

/// What the operator asked for at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Copy tables again, and reconcile what differs.
    pub resnapshot: Option<Scope>,
    /// The source may be another cluster, which pg_upgrade has made of the one that is known.
    pub accept_source_identity: bool,
}
