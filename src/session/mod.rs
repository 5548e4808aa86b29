//! Sessions with a server: an address, a password and TLS become a connected stream, and what runs on it.
//!
//! I/O. In come [`crate::config::ConnectionSettings`]; out go five kinds of session:
//!
//! ```text
//!                      ┌─ sql::connect ─────▶ tokio_postgres::Client   catalog, bookkeeping, snapshot control
//! connect ─ TLS ─ auth ┼─ ReplicationSession  CopyBoth with the source's walsender
//!                      ├─ WritingSession      pipelined requests to the destination, one transaction each
//!                      ├─ DedicatedSession    the leader's lock, on a thread of its own
//!                      └─ Connection          COPY out of one server and into another
//! ```
//!
//! The last four are ours, on postgres-protocol: tokio-postgres knows no CopyBoth, sends a Sync with every statement
//! (so that a cancelled BEGIN lets a batch commit row by row) and waits before COPY data. `Bytes` all the way: what is
//! received is sliced, never copied.
//!
//! Invariants: no answer is waited for without a bound; no error carries a password or a row's value; what the other
//! side claims of its lengths is bounded before memory is taken for it. tokio-postgres, postgres-protocol and rustls
//! are used in this module only.

mod bounded;
mod certificate_faults;
mod clients;
mod connect;
mod connection;
mod copy;
mod dedicated;
mod describe;
mod error;
mod fingerprints;
mod pipelined_request;
mod locks;
mod partition_rows;
mod password_file;
mod provider;
mod replication;
mod row;
mod sequences;
mod server_certificate;
mod settings;
mod signatures;
mod slow_answers;
mod slow_connections;
mod sql;
mod startup;
mod statement_cache;
pub(crate) mod stream;
mod tls;
mod writing;

pub use clients::Clients;
pub use connection::{Connection, Frame};
pub use copy::{CopyError, CopyIn, CopyOut, Transferred};
pub use dedicated::{DedicatedSession, DedicatedSettings};
pub use describe::{
    ask_table, ask_types, describe_identities, describe_named_types, describe_not_carried, describe_relation,
    describe_tables, describe_types, fill_in, read_description, read_table, read_types, refuse_endless, table_sizes,
};
pub use error::{MAJOR_MIN, ServerError, SessionError, SqlState, TlsProblem};
pub use fingerprints::{FingerprintFacts, fingerprint_digests, fingerprint_facts};
pub use locks::read_lock_table;
pub use partition_rows::{FirstPages, NamedPartition, RowsOf, first_pages, unproven, vacancy};
pub use password_file::has_password;
pub use pipelined_request::{
    CopyData, Format, LARGE_VALUE_BYTES, PipelinedAnswer, PipelinedRequest, StatementAnswer, StatementName,
    StatementParameters, Verb,
};
pub use provider::ask_provider;
pub use replication::{
    CreatedSlot, ReplicationSession, STREAMING, SlotSnapshot, StreamError, StreamOptions, StreamedMessage,
    SystemIdentification,
};
pub use row::Row;
pub use sequences::{query_sequences, read_sequences};
pub use slow_answers::{Awaiting, explain_no_answers, slow_answers};
pub use slow_connections::{SlowConnection, slow_connections};
pub use sql::{SessionsRoom, Sql, SqlClient, SqlCopyIn};
pub use writing::WritingSession;
