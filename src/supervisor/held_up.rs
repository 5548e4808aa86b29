//! Where the stream stands still from one attempt to the next, as a position.
//!
//! Asked by `attempt`. In comes where an attempt has failed and how far the source's history reaches; out goes the position up to which
//! nothing is resolved, so that the state and its reason stay until then, and the one that copies wait for.
//!
//! Pure. Invariant: no position that it gives is beyond the end of the source's history. A source that has failed over may have lost the
//! transaction that halted the service, and begins its own before it: waiting for the old position would show an old state.

use crate::pg::Lsn;

/// What held up the attempts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldUp {
    /// The commit_lsn of the last transaction that an attempt had handed to the destination, or was waiting for, when it failed: what
    /// halts it is at or before.
    up_to: Option<Lsn>,
    /// The commit_lsn of the last transaction that was not visible at the source in time.
    unseen_at: Option<Lsn>,
}

impl HeldUp {
    /// An attempt has failed once it had handed over everything up to here.
    pub(super) fn failed(&mut self, submitted_up_to: Lsn) {
        self.up_to = self.up_to.max(Some(submitted_up_to));
    }

    /// An attempt has waited in vain to see the transaction with this commit_lsn at the source.
    pub(super) fn unseen(&mut self, commit_lsn: Lsn) {
        self.failed(commit_lsn);
        self.unseen_at = Some(commit_lsn);
    }

    /// The source's WAL is flushed up to here.
    pub(super) fn source_ends_at(&mut self, flushed: Lsn) {
        // A transaction that is there ends at `flushed` at the latest, and its commit record begins before.
        let last = Lsn::new(flushed.as_u64().saturating_sub(1));
        for position in [&mut self.up_to, &mut self.unseen_at] {
            *position = position.map(|position| position.min(last));
        }
    }

    /// Up to here nothing is resolved.
    pub(super) fn up_to(&self) -> Lsn {
        self.up_to.unwrap_or(Lsn::INVALID)
    }

    /// What copies wait for, as they wait for a conflict: the stream that publishes them ends before it.
    pub(super) fn copies_wait_for(&self, conflict: Option<Lsn>) -> Option<Lsn> {
        self.unseen_at.max(conflict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_without_the_transaction_that_halted_ends_the_hold_up_where_it_ends() {
        let mut held_up = HeldUp::default();
        held_up.failed(Lsn::new(500));
        held_up.source_ends_at(Lsn::new(600));
        assert_eq!(held_up.up_to(), Lsn::new(500), "it has the transaction");
        held_up.source_ends_at(Lsn::new(400));
        assert!(Lsn::new(400) > held_up.up_to(), "the position is passed with the first message");
        assert!(Lsn::new(399) <= held_up.up_to(), "what comes before may halt it again");
    }

    #[test]
    fn copies_wait_for_the_last_of_a_conflict_and_an_unseen_transaction() {
        let mut held_up = HeldUp::default();
        assert_eq!(held_up.copies_wait_for(None), None);
        held_up.unseen(Lsn::new(7));
        assert_eq!(held_up.up_to(), Lsn::new(7), "its state stays as long");
        assert_eq!(held_up.copies_wait_for(None), Some(Lsn::new(7)));
        assert_eq!(held_up.copies_wait_for(Some(Lsn::new(9))), Some(Lsn::new(9)));
    }
}
