//! Applies a transaction that is still in progress at the source, on another session than the leader's.
//!
//! Driven by `apply_worker::parallel_apply`. It is an [`Applier`] that knows what the leader's knows ([`ApplyContext`]), but it does
//! not hold the lock and, until the commit, does not touch the position. The commit moves the position as the leader's does, on
//! condition that it is where the leader's session left it. So the commit has its place in the order of commits, and a session
//! that outlives its leader commits nothing (I2, I3).
//!
//! Sound only where the source's own locks order everything that could meet: rows found by a key, foreign keys and triggers
//! that do not act, no TRUNCATE. Anything else is [`Unfit`], and every error counts as that: the leader's session then applies the
//! transaction at its commit.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::catalog::Catalog;
use super::super::conflict::Conflicts;
use super::super::error::DestinationError;
use super::super::writer::Writer;
use super::{Applier, ApplierSettings};
use crate::apply_plan::target::TargetIdentity;
use crate::catalog::schema::{TableDefinition, Types};
use crate::config::OnConflict;
use crate::destination::apply::followed::Followed;
use crate::pg::{Lsn, Relation, RelationId};
use crate::transaction::Change;
use crate::wire::Commit;

/// What a parallel applier takes over from the leader's.
#[derive(Clone, Debug)]
pub struct ApplyContext {
    settings: ApplierSettings,
    catalog: Catalog,
    source_types: Types,
    followed: HashMap<RelationId, Followed>,
    source_tables: Vec<TableDefinition>,
}

/// Why changes cannot be applied in parallel, before they commit.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// A TRUNCATE would lock readers out until the commit.
    #[error("it has a TRUNCATE")]
    Truncate,
    /// Several rows may be equal: which of them is meant depends on the order of commits.
    #[error("it changes rows of a table without a key")]
    NoKey,
    /// They would act before their time.
    #[error("triggers act on a table of it")]
    Triggers,
    /// The relation does not fit its table.
    #[error(transparent)]
    Destination(#[from] DestinationError),
}

impl Applier {
    /// What a parallel applier takes over from this one.
    pub fn context(&self) -> ApplyContext {
        ApplyContext {
            settings: self.settings.clone(),
            catalog: self.catalog.clone(),
            source_types: self.source_types.clone(),
            followed: self.followed.clone(),
            source_tables: self.conflicts.source_tables().to_vec(),
        }
    }

    /// An applier for one transaction that has not committed at the source.
    pub fn for_parallel_apply(writer: Writer, context: ApplyContext) -> Applier {
        let ApplyContext { settings, catalog, source_types, followed, source_tables } = context;
        let conflicts = Conflicts::of_source(OnConflict::Stop, source_tables);
        let mut applier = Applier::new(writer, Lsn::INVALID, settings, catalog, source_types, followed, conflicts);
        applier.ahead = true;
        applier
    }

    /// Whether these changes may be applied in parallel, before they commit.
    ///
    /// # Errors
    /// [`Unfit`] says why not.
    pub fn fits_ahead(&mut self, changes: &[Change]) -> Result<(), Unfit> {
        let mut last: Option<(&Arc<Relation>, bool)> = None;
        for change in changes {
            let (relation, by_key) = match change {
                Change::Insert { relation, .. } => (relation, false),
                Change::Update { relation, .. } | Change::Delete { relation, .. } => (relation, true),
                Change::Truncate { .. } => return Err(Unfit::Truncate),
            };
            let has_key = match last {
                Some((known, has_key)) if Arc::ptr_eq(known, relation) => has_key,
                Some(_) | None if !self.followed.contains_key(&relation.id) => continue,
                Some(_) | None => {
                    self.bind(relation)?;
                    let Some(bound) = self.bound.get(&relation.id) else { continue };
                    if bound.target.reaction.acts_in_replica() {
                        return Err(Unfit::Triggers);
                    }
                    matches!(bound.target.identity, TargetIdentity::Key(_))
                }
            };
            if by_key && !has_key {
                return Err(Unfit::NoKey);
            }
            last = Some((relation, has_key));
        }
        Ok(())
    }

    /// It is the turn of the transaction that is applied in parallel: its commit moves the position from here.
    pub fn comes_behind(&mut self, position: Lsn) {
        self.sent = position;
        self.stored = position;
    }

    /// Whether a transaction that was applied in parallel may be committed: the operator does not want it left out, and no
    /// table's snapshot holds it already. Neither could be known before its commit.
    pub fn may_commit_directly(&self, commit: &Commit) -> bool {
        commit.commit_lsn >= self.snapshots_end && !self.conflicts.wants_out(commit.commit_lsn, Some(commit.end_lsn))
    }

    /// Continues where the parallel session has moved the position to; call it with nothing under way.
    ///
    /// # Errors
    /// [`DestinationError::PositionMoved`] when it is elsewhere; or the session is lost.
    pub async fn set_position(&mut self, position: Lsn) -> Result<(), DestinationError> {
        let found = self.read_position().await?;
        if found != position {
            return Err(DestinationError::PositionMoved { expected: position, found });
        }
        self.sent = position;
        self.stored = position;
        Ok(())
    }
}
