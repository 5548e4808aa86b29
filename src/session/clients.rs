//! Ordinary sessions with both servers, for what is asked of the two together.
//!
//! Made where both ends are compared (`preflight`, `table_sync`, `verification`, `maintenance`) and borrowed by each step of it: by name,
//! so that neither server can be taken for the other. Plain data.

use crate::session::sql::SqlClient;

/// A session with either server.
#[derive(Clone, Copy)]
pub struct Clients<'a> {
    /// With the source.
    pub source: &'a SqlClient,
    /// With the destination.
    pub destination: &'a SqlClient,
}
