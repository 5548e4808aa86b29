//! Both ends, checked and compared before rows move.
//!
//! I/O. In come the settings, the bookkeeping and sessions with both servers; out goes a `prepare::Prepared`, or a report that an
//! operator can act on. Every attempt of `supervisor` begins here; `maintenance::check` asks the same functions, so that both say the
//! same. Nothing is changed at the source but a publication that is missing, and nothing at the destination but labels, attributes and
//! sequences that follow the source's.

pub(crate) mod addresses;
pub(crate) mod attribute_names;
pub(crate) mod cascades;
pub(crate) mod collations;
pub(crate) mod enum_labels;
pub(crate) mod fingerprints;
pub(crate) mod generated_columns;
pub(crate) mod history;
pub(crate) mod hosts;
pub(crate) mod leadership;
pub(crate) mod missing_objects;
pub(crate) mod not_carried;
pub(crate) mod partitions;
pub(crate) mod prepare;
pub(crate) mod replication_session;
pub(crate) mod resync_requests;
pub mod sequences;
pub(crate) mod source_identity;
pub(crate) mod suspended_tables;
pub(crate) mod unconfigured;
pub(crate) mod violated_constraints;
pub(crate) mod waits;
pub(crate) mod watch_failures;
pub(crate) mod whereabouts;
