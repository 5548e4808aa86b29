//! Every reason to leave a streamed transaction to its commit: the table of docs/decisions/0013-ahead.md as code.
//!
//! Parallel apply is exact only where the source's own locks order everything that could meet, and it may cost nothing that a
//! transaction at its commit would not. [`obstacle`] lists all that is against it (PostgreSQL's sibling is `pa_can_start` in
//! applyparallelworker.c). [`super::parallel_apply`] asks it with what it knows, `destination::apply::parallel_apply` with the changes
//! that it reads, and `supervisor` before there is a second session at all. Some of it is known only after the start: then the
//! transaction is cancelled, which is safe at any moment, because the spool holds all of it.

use std::sync::Arc;
use std::time::Duration;

use super::command::ApplyCommand;
use crate::pg::Relation;
use crate::transaction::{Change, RowChange};

/// The live stream's own request may be unanswered for so long before it is taken to wait for the second session's locks.
pub const LIVE_WAITS_MAX: Duration = Duration::from_secs(2);
/// A transaction of which nothing more comes for so long is not worth what it holds back at the destination: locks, and what VACUUM may
/// remove.
pub const QUIET_MAX: Duration = Duration::from_secs(60);

/// Whether foreign keys and triggers of the destination act on what a session writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionRole {
    /// session_replication_role = replica: none but ENABLE REPLICA and ALWAYS triggers act.
    Replica,
    /// All of them act.
    Origin,
}

/// A table of the destination, as far as parallel apply depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableTraits {
    /// A trigger acts in the replica role, too.
    pub has_acting_triggers: bool,
    /// Its rows are found by a key.
    pub has_key: bool,
}

/// What is known at its commit of a transaction that was applied in parallel, and could not be known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtCommit {
    /// All of it is wanted.
    Wanted,
    /// The operator wants it skipped.
    Skipped,
    /// A table's snapshot holds its rows already.
    InSnapshot,
}

/// What was noticed of a streamed transaction, or next to it.
#[derive(Clone, Copy, Debug)]
pub enum Observed<'a> {
    /// The sessions that write have this role.
    Role(SessionRole),
    /// So many bytes of records may be applied now; below `worth` they are not worth a session.
    Size {
        /// Bytes that may be applied.
        free: u64,
        /// What makes a session worth it.
        worth: u64,
    },
    /// The tables are known as they are now, or one of them is being changed.
    Tables(TableKnowledge),
    /// Its records name this relation, behind these others.
    Described {
        /// The relation.
        relation: &'a Relation,
        /// Those that were named before it.
        before: &'a [Arc<Relation>],
        /// Whether the relation is what is remembered of its table.
        knowledge: Knowledge,
    },
    /// The source's catalog, asked after the commit, describes one of its tables otherwise than it is remembered.
    TableChanged,
    /// It makes this change, to a table like this.
    Change {
        /// The change.
        change: &'a Change,
        /// The table; `None`: it is not followed, or its rows need no table.
        table: Option<TableTraits>,
    },
    /// It was rolled back at the source.
    Aborted,
    /// Of its records only the first `kept` bytes are left, and the first `read` were given to the second session.
    RolledBack {
        /// Bytes that were read.
        read: u64,
        /// Bytes that are left.
        kept: u64,
    },
    /// Apply has this command.
    Command(ApplyCommand),
    /// The stream brings a schema change.
    SchemaChange,
    /// While the second session holds locks, the live stream's oldest request is unanswered for so long.
    LiveRequest(Duration),
    /// Nothing more of it has come for so long.
    Quiet(Duration),
    /// It is its turn to commit.
    Turn(AtCommit),
    /// The server of the destination gives no second session that is like the leader's.
    NoSession,
    /// The second session has failed.
    SessionFailed,
    /// The stream from the source ends.
    StreamEnds,
}

/// Whether a relation is what is remembered of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// It is.
    Known,
    /// The table is new, or was described otherwise.
    News,
}

/// What the second session would start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKnowledge {
    /// The tables as they are now.
    Current,
    /// One is being changed, or nothing was said of them yet.
    Changing,
}

/// Why a streamed transaction is not applied in parallel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Obstacle {
    /// See [`Observed::Size`]. It may pass.
    #[error("too little of it may be applied yet")]
    TooSmall,
    /// See [`Observed::Tables`]. It may pass.
    #[error("a table is being changed")]
    TableChanging,
    /// See [`Observed::Role`].
    #[error("foreign keys and triggers act")]
    SideEffects,
    /// See [`Observed::Change`].
    #[error("triggers act on a table of it")]
    Triggers,
    /// See [`Observed::Change`].
    #[error("it changes rows of a table without a key")]
    NoKey,
    /// See [`Observed::Change`].
    #[error("it has a TRUNCATE")]
    Truncate,
    /// See [`Observed::Turn`].
    #[error("it is to be skipped")]
    Skipped,
    /// See [`Observed::Turn`].
    #[error("a snapshot holds a part of it")]
    InSnapshot,
    /// See [`Observed::Described`].
    #[error("a table was described twice in it, and may have changed")]
    DescribedTwice,
    /// See [`Observed::Described`] and [`Observed::TableChanged`].
    #[error("a table is not what it was")]
    TableChanged,
    /// See [`Observed::Aborted`].
    #[error("it was rolled back")]
    Aborted,
    /// See [`Observed::RolledBack`].
    #[error("a part of it was rolled back")]
    RolledBack,
    /// See [`Observed::LiveRequest`].
    #[error("the live stream may be waiting for it")]
    LiveStreamWaits,
    /// See [`Observed::Quiet`].
    #[error("nothing more of it has come for a minute")]
    Quiet,
    /// See [`Observed::Command`].
    #[error("apply is to stand still")]
    Pause,
    /// See [`Observed::SchemaChange`].
    #[error("the stream changes a table")]
    SchemaChange,
    /// See [`Observed::NoSession`].
    #[error("no second session can be like the leader's")]
    NoSession,
    /// See [`Observed::SessionFailed`].
    #[error("its session has failed")]
    SessionFailed,
    /// See [`Observed::StreamEnds`].
    #[error("the stream ends")]
    StreamEnds,
}

/// What stands against parallel apply in an observation: every reason there is, each with its why.
pub fn obstacle(observed: &Observed<'_>) -> Option<Obstacle> {
    let (stands, obstacle) = match *observed {
        // Constraints and triggers would act before their time, on rows that nobody may see yet.
        Observed::Role(role) => (role == SessionRole::Origin, Obstacle::SideEffects),
        // A small transaction is applied at its commit sooner than a session is opened.
        Observed::Size { free, worth } => (free < worth.max(1), Obstacle::TooSmall),
        // The session would prepare its statements for a table that is another a moment later.
        Observed::Tables(tables) => (tables == TableKnowledge::Changing, Obstacle::TableChanging),
        // It is asked about at the commit, when the source's catalog shows the transaction.
        Observed::Described { knowledge: Knowledge::News, .. } => (true, Obstacle::TableChanged),
        // A second description in one transaction comes after whatever made the source forget the first. The table may have changed in
        // it, and that is followed in the stream's order.
        Observed::Described { relation, before, knowledge: Knowledge::Known } => {
            (before.iter().any(|known| known.id == relation.id), Obstacle::DescribedTwice)
        }
        Observed::TableChanged => (true, Obstacle::TableChanged),
        Observed::Change { change, table } => return obstacle_in(change, table),
        // Nothing of it is left to apply, in parallel or at a commit.
        Observed::Aborted => (true, Obstacle::Aborted),
        // The source has let go of its locks: others may have changed the same rows since.
        Observed::RolledBack { read, kept } => (kept < read, Obstacle::RolledBack),
        // A snapshot or verify needs apply to stand still, and would wait for the transaction.
        Observed::Command(command) => (command != ApplyCommand::Run, Obstacle::Pause),
        // The change would wait for its locks.
        Observed::SchemaChange => (true, Obstacle::SchemaChange),
        // A constraint that only the destination has may be what it waits for.
        Observed::LiveRequest(waits_for) => (waits_for > LIVE_WAITS_MAX, Obstacle::LiveStreamWaits),
        // It would hold locks at the destination, and keep VACUUM from removing rows, for as long as somebody forgets it at the source.
        Observed::Quiet(quiet_for) => (quiet_for > QUIET_MAX, Obstacle::Quiet),
        // The operator names a transaction by its commit, and a snapshot holds what had committed when it was taken.
        Observed::Turn(AtCommit::Wanted) => return None,
        Observed::Turn(AtCommit::Skipped) => (true, Obstacle::Skipped),
        Observed::Turn(AtCommit::InSnapshot) => (true, Obstacle::InSnapshot),
        // Its rows would be marked, or written with other rights, than the leader's.
        Observed::NoSession => (true, Obstacle::NoSession),
        // The leader's session applies all of it again, and that says what is wrong.
        Observed::SessionFailed => (true, Obstacle::SessionFailed),
        // The source sends again what has not committed.
        Observed::StreamEnds => (true, Obstacle::StreamEnds),
    };
    stands.then_some(obstacle)
}

fn obstacle_in(change: &Change, table: Option<TableTraits>) -> Option<Obstacle> {
    let row = match change {
        Change::Row(row) => row,
        // Its lock would keep readers out until the commit.
        Change::Truncate { .. } => return Some(Obstacle::Truncate),
    };
    let table = table?;
    // They would act before their time.
    if table.has_acting_triggers {
        return Some(Obstacle::Triggers);
    }
    let finds_a_row = match row {
        RowChange::Insert { .. } => false,
        RowChange::Update { .. } | RowChange::Delete { .. } => true,
    };
    // Which of two equal rows is meant depends on the order of commits.
    (finds_a_row && !table.has_key).then_some(Obstacle::NoKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Lsn, QualifiedName, RelationId, ReplicaIdentity, Tuple};
    use crate::wire::OldTuple;

    fn relation(id: u32) -> Arc<Relation> {
        Arc::new(Relation {
            leaves: Default::default(),
            id: RelationId(id),
            name: QualifiedName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
        })
    }

    fn of_change(change: &Change, table: Option<TableTraits>) -> Option<Obstacle> {
        obstacle(&Observed::Change { change, table })
    }

    #[test]
    fn each_kind_of_change_is_judged_by_its_table() {
        let tuple = || Tuple::new(0, bytes::Bytes::new()).unwrap();
        let insert = Change::Row(RowChange::Insert { relation: relation(1), new: tuple() });
        let update = Change::Row(RowChange::Update { relation: relation(1), old: None, new: tuple() });
        let delete = Change::Row(RowChange::Delete { relation: relation(1), old: OldTuple::Key(tuple()) });
        let truncate = Change::Truncate { relations: vec![relation(1)], restart_identity: false };
        let table = |has_acting_triggers, has_key| Some(TableTraits { has_acting_triggers, has_key });
        for change in [&insert, &update, &delete] {
            assert_eq!(of_change(change, table(false, true)), None);
            assert_eq!(of_change(change, None), None, "the table is not followed");
            assert_eq!(of_change(change, table(true, true)), Some(Obstacle::Triggers));
            assert_eq!(of_change(&truncate, None), Some(Obstacle::Truncate));
        }
        assert_eq!(of_change(&insert, table(false, false)), None, "it finds no row");
        assert_eq!(of_change(&update, table(false, false)), Some(Obstacle::NoKey));
        assert_eq!(of_change(&delete, table(false, false)), Some(Obstacle::NoKey));
    }

    #[test]
    fn what_stands_against_a_transaction_is_listed_with_its_bounds() {
        let (first, again, other) = (relation(1), relation(1), relation(2));
        let before = [Arc::clone(&first)];
        let described = |relation, before, knowledge| Observed::Described { relation, before, knowledge };
        let after = |time: Duration| time + Duration::from_millis(1);
        let cases = [
            (Observed::Role(SessionRole::Replica), None),
            (Observed::Role(SessionRole::Origin), Some(Obstacle::SideEffects)),
            (Observed::Size { free: 0, worth: 0 }, Some(Obstacle::TooSmall)),
            (Observed::Size { free: 9, worth: 10 }, Some(Obstacle::TooSmall)),
            (Observed::Size { free: 10, worth: 10 }, None),
            (Observed::Tables(TableKnowledge::Current), None),
            (Observed::Tables(TableKnowledge::Changing), Some(Obstacle::TableChanging)),
            (described(&first, &[], Knowledge::Known), None),
            (described(&first, &[], Knowledge::News), Some(Obstacle::TableChanged)),
            (described(&again, &before, Knowledge::Known), Some(Obstacle::DescribedTwice)),
            (described(&again, &before, Knowledge::News), Some(Obstacle::TableChanged)),
            (described(&other, &before, Knowledge::Known), None),
            (Observed::TableChanged, Some(Obstacle::TableChanged)),
            (Observed::Aborted, Some(Obstacle::Aborted)),
            (Observed::RolledBack { read: 100, kept: 100 }, None),
            (Observed::RolledBack { read: 100, kept: 99 }, Some(Obstacle::RolledBack)),
            (Observed::Command(ApplyCommand::Run), None),
            (Observed::Command(ApplyCommand::Hold { turn: 1 }), Some(Obstacle::Pause)),
            (Observed::Command(ApplyCommand::RunTo { turn: 1, point: Lsn::new(1) }), Some(Obstacle::Pause)),
            (Observed::SchemaChange, Some(Obstacle::SchemaChange)),
            (Observed::LiveRequest(LIVE_WAITS_MAX), None),
            (Observed::LiveRequest(after(LIVE_WAITS_MAX)), Some(Obstacle::LiveStreamWaits)),
            (Observed::Quiet(QUIET_MAX), None),
            (Observed::Quiet(after(QUIET_MAX)), Some(Obstacle::Quiet)),
            (Observed::Turn(AtCommit::Wanted), None),
            (Observed::Turn(AtCommit::Skipped), Some(Obstacle::Skipped)),
            (Observed::Turn(AtCommit::InSnapshot), Some(Obstacle::InSnapshot)),
            (Observed::NoSession, Some(Obstacle::NoSession)),
            (Observed::SessionFailed, Some(Obstacle::SessionFailed)),
            (Observed::StreamEnds, Some(Obstacle::StreamEnds)),
        ];
        for (observed, expected) in cases {
            assert_eq!(obstacle(&observed), expected, "{observed:?}");
        }
    }
}
