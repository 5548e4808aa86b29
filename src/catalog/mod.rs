//! Tables and types of both servers as data, and what is decided by comparing them.
//!
//! Pure. In comes what `session` has read from a catalog; out go values that every later module takes: [`schema`] (what a server has),
//! [`shape`] and [`leaves`] (what is remembered of a source table and its partitions), [`truncation`] and [`fingerprint`] (whether its
//! rows may be others than the stream has told), [`fit`] and `value_format` (whether a destination table takes the source's values, and
//! in which format they travel), [`replica_identity`], [`determinism`] (collations that take more for equal at the destination),
//! [`features`] (constraints that an older server lacks), [`table_order`] (parents first), [`sequences`], [`lock_budget`], [`nesting`]
//! (what types are made of ends) and [`not_carried`]. Nothing here asks a server.

pub mod attribute_names;
pub mod determinism;
pub mod features;
pub mod fingerprint;
pub mod fit;
pub mod leaves;
pub mod lock_budget;
pub mod nesting;
pub mod not_carried;
pub mod replica_identity;
pub mod schema;
pub mod sequences;
pub mod sequences_sql;
pub mod shape;
pub mod table_order;
pub mod truncation;
pub(crate) mod value_format;
