//! `headwater demo`: two throw-away clusters, a forum, a steady writer, and headwater between them.
//!
//! What a newcomer sees first. Everything is started for it and removed after it: the clusters are [`Cluster`]s, the service
//! is the same `run` that an operator starts.

mod cluster;

pub use cluster::{Cluster, StopMode, installed_bin};
