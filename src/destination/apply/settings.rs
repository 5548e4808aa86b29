//! How changes are applied: what the configuration and the start have settled, the same for every task.
//!
//! Made by `supervisor` for the live stream and by `table_sync` for a staging schema. Plain data.

use std::collections::HashMap;
use std::time::Duration;

use super::followed::Followed;
use crate::catalog::fit::Transfer;
use crate::catalog::schema::Types;
use crate::config::TruncateMode;
use crate::destination::catalog::Catalog;
use crate::destination::source_tables::SourceTables;
use crate::pg::{Ident, RelationId};

/// How changes are applied.
#[derive(Clone, Debug)]
pub struct ApplierSettings {
    /// How a TRUNCATE is carried out.
    pub truncate: TruncateMode,
    /// COMMIT's answer means that it is durable.
    pub commits_are_durable: bool,
    /// The format in which values arrive.
    pub transfer: Transfer,
    /// Changes of the source's tables are followed; otherwise they stop the stream until they are made at the destination.
    pub follow_schema_changes: bool,
    /// Roles whose code may run with our rights.
    pub trusted_roles: Vec<Ident>,
    /// Roles that own types of columns which are added are in the way, whether there is code or not.
    pub names_owners: bool,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What an applier knows of both ends when it begins. Parallel apply takes over what the leader's applier knows by then.
#[derive(Clone, Debug)]
pub struct ApplyContext {
    /// How changes are applied.
    pub settings: ApplierSettings,
    /// The destination's tables and types.
    pub catalog: Catalog,
    /// The source's types.
    pub source_types: Types,
    /// The source's tables.
    pub source_tables: SourceTables,
    /// The tables that are followed.
    pub followed: HashMap<RelationId, Followed>,
}
