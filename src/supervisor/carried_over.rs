//! What one attempt leaves to the next.
//!
//! Held by the supervisor for as long as the process lives. Each part says what the next attempt does differently because of it;
//! everything else is read again from both servers. Nothing of it is needed for correctness: a new process begins without it. Pure.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::config::Config;
use crate::config::OnConflict;
use crate::destination::{Conflict, ConflictPolicy, DestinationError, Scope, WantedLetters};
use crate::error_policy::Fault;
use crate::pg::Lsn;
use crate::preflight::addresses::Addresses;
use crate::preflight::hosts::Settled;
use crate::supervisor::held_up::HeldUp;
use crate::supervisor::options::RunOptions;

/// What one attempt leaves to the next.
pub(super) struct CarriedOver {
    /// Sessions of attempts, and of what is done between them, lead there.
    pub(super) host: ServiceHost,
    /// What is copied first.
    pub(super) copies: CopiesWanted,
    /// What the next stream does otherwise, because of how the last one failed.
    pub(super) failed_stream: FailedStream,
    /// What is not done or said again.
    pub(super) done: Done,
}

/// The source's host that attempts lead to.
pub(super) struct ServiceHost {
    /// With the one of source.url's hosts that was chosen.
    pub(super) config: Arc<Config>,
    pub(super) addresses: Addresses,
    /// What was said last of the other hosts.
    passed_over: Vec<String>,
}

/// Copies that are asked for.
pub(super) struct CopiesWanted {
    /// What the command line wants copied, until the bookkeeping knows of it.
    pub(super) unrecorded: Option<Scope>,
    /// The bookkeeping knows of a command line that wants something copied: of this one, or of an earlier one that was not stopped
    /// in good order.
    pub(super) recorded: bool,
    /// The command line of this process wants something copied.
    pub(super) asked_by_command_line: bool,
    /// The slot was found lost: where the source continues the history still, all tables are copied with a new one.
    pub(super) slot_lost: bool,
    /// The requests for copies that were open when the last attempt began.
    pub(super) requests_known: BTreeSet<i64>,
}

/// How the last stream failed. The next one comes to the same transaction.
#[derive(Default)]
pub(super) struct FailedStream {
    conflict: Option<MetConflict>,
    /// Where attempts have failed: until that is passed, nothing is resolved.
    pub(super) held_up: HeldUp,
    /// The spool has failed: the next stream does without.
    pub(super) spool_failed: bool,
    /// The commit_lsn of the last transaction in chunks whose sets were refused.
    in_order: Option<Lsn>,
    /// The commit_lsn of the last transaction in chunks that is to be left out by its end_lsn.
    left_out: Option<Lsn>,
}

/// The last transaction that met a conflict.
#[derive(Clone, Copy)]
struct MetConflict {
    commit_lsn: Lsn,
    /// Its rows are to win now.
    will_win: bool,
}

/// What is done once in the life of the process.
pub(super) struct Done {
    pub(super) has_streamed: bool,
    /// The source may be another cluster now, until that was looked at.
    pub(super) accept_source_identity: bool,
    /// Whether the names in destination.trusted_roles were looked up: a warning of them is said once.
    pub(super) roles_looked_up: bool,
    /// The last wait of a question about a changed table: the next attempt comes to the same transaction.
    pub(super) unseen_told: Arc<Mutex<String>>,
}

/// What is new about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// Nothing that is counted.
    Nothing,
    /// Sets were refused: the batch is applied row by row.
    BatchRetried,
    /// A conflict that was not met before.
    NewConflict,
}

impl CarriedOver {
    pub(super) fn new(config: &Arc<Config>, options: RunOptions) -> CarriedOver {
        let RunOptions { resnapshot, accept_source_identity } = options;
        CarriedOver {
            host: ServiceHost {
                config: Arc::clone(config),
                addresses: Addresses::new(config),
                passed_over: Vec::new(),
            },
            copies: CopiesWanted {
                recorded: resnapshot.is_some(),
                asked_by_command_line: resnapshot.is_some(),
                unrecorded: resnapshot,
                slot_lost: false,
                requests_known: BTreeSet::new(),
            },
            failed_stream: FailedStream::default(),
            done: Done {
                has_streamed: false,
                accept_source_identity,
                roles_looked_up: false,
                unseen_told: Arc::default(),
            },
        }
    }
}

impl ServiceHost {
    /// From here on every session leads to the host that was chosen; returns what was not said before of the others.
    pub(super) fn lead_to(&mut self, settled: &Settled) -> Vec<String> {
        self.config = Arc::clone(&settled.config);
        self.addresses = Addresses::new(&self.config);
        let new = settled.passed_over.iter().filter(|text| !self.passed_over.contains(text)).cloned().collect();
        self.passed_over.clone_from(&settled.passed_over);
        new
    }
}

impl CopiesWanted {
    /// A snapshot of all tables was published.
    pub(super) fn published(&mut self) {
        self.unrecorded = None;
        self.slot_lost = false;
    }
}

impl FailedStream {
    /// Remembers what the next attempt is to do about a failure.
    pub(super) fn note(&mut self, fault: &Fault) -> Noted {
        match fault {
            Fault::Destination(DestinationError::SetsRefused { commit_lsn, .. }) => {
                self.in_order = Some(*commit_lsn);
                Noted::BatchRetried
            }
            Fault::Destination(DestinationError::WantedOut { commit_lsn, .. }) => {
                self.left_out = Some(*commit_lsn);
                Noted::Nothing
            }
            Fault::Destination(DestinationError::Conflict(conflict)) => self.note_conflict(conflict),
            Fault::Destination(_) | Fault::Source(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => {
                Noted::Nothing
            }
        }
    }

    fn note_conflict(&mut self, conflict: &Conflict) -> Noted {
        let is_known = self.halted_at() == Some(conflict.commit_lsn);
        self.conflict = Some(MetConflict { commit_lsn: conflict.commit_lsn, will_win: conflict.will_win });
        if is_known { Noted::Nothing } else { Noted::NewConflict }
    }

    /// The commit_lsn of the last transaction that met a conflict.
    pub(super) fn halted_at(&self) -> Option<Lsn> {
        self.conflict.map(|conflict| conflict.commit_lsn)
    }

    /// The commit_lsn of a transaction that is to be left out, though an operator named its end_lsn.
    pub(super) fn left_out(&self) -> Option<Lsn> {
        self.left_out
    }

    /// How the next stream takes a conflict.
    pub(super) fn policy(&self, on_conflict: OnConflict, skips: BTreeSet<WantedLetters>) -> ConflictPolicy {
        let winning = self.conflict.filter(|conflict| conflict.will_win);
        ConflictPolicy {
            on_conflict,
            skips,
            overwriting: winning.map(|conflict| conflict.commit_lsn),
            row_by_row: self.in_order,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::ConflictKind;
    use crate::session::SqlState;

    fn conflict(commit_lsn: u64, will_win: bool) -> Fault {
        Fault::Destination(DestinationError::Conflict(Box::new(Conflict {
            kind: ConflictKind::UniqueViolation,
            table: None,
            operation: None,
            key: Vec::new(),
            constraint: None,
            message: String::new(),
            code: SqlState::new(b"23505"),
            commit_lsn: Lsn::new(commit_lsn),
            end_lsn: None,
            will_win,
            on_conflict: OnConflict::SourceWins,
            violated: Default::default(),
            difference: None,
            user: None,
            change: None,
        })))
    }

    #[test]
    fn a_conflict_is_counted_once_however_often_it_is_tried_again() {
        let mut failed = FailedStream::default();
        assert_eq!(failed.note(&conflict(7, false)), Noted::NewConflict);
        assert_eq!(failed.note(&conflict(7, false)), Noted::Nothing);
        let other = Fault::Halted(crate::pg::ErrorReport::new("something in between"));
        assert_eq!(failed.note(&other), Noted::Nothing);
        assert_eq!(failed.note(&conflict(7, true)), Noted::Nothing);
        assert_eq!(failed.note(&conflict(9, false)), Noted::NewConflict);
        assert_eq!(failed.halted_at(), Some(Lsn::new(9)));
    }

    #[test]
    fn rows_win_only_in_the_transaction_whose_last_conflict_says_so() {
        let mut failed = FailedStream::default();
        let winning = |failed: &FailedStream| failed.policy(OnConflict::SourceWins, BTreeSet::new()).overwriting;
        assert_eq!(winning(&failed), None);
        failed.note(&conflict(7, true));
        assert_eq!(winning(&failed), Some(Lsn::new(7)));
        failed.note(&conflict(7, false));
        assert_eq!(winning(&failed), None, "it met another conflict, which the operator is to solve");
        failed.note(&conflict(9, true));
        assert_eq!(winning(&failed), Some(Lsn::new(9)));
    }
}
