//! Where the stream stands still from one attempt to the next, as a position.
//!
//! Asked by `opened_stream`. In comes where a stream has failed and how far the source's history reaches; out goes the position up to
//! which nothing is resolved: the state and its reason stay until then, and copies wait. A stream that comes to the same failure again
//! and again publishes none, so that each of them would lock and read the source's tables in vain.
//!
//! Pure. Invariant: no position that it gives is beyond the end of the source's history. A source that has failed over may have lost the
//! transaction that halted the service, and begins its own before it: waiting for the old position would show an old state.

use crate::pg::Lsn;
use crate::source::SourceError;

/// What held up the attempts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldUp {
    /// The commit_lsn of the last transaction that an attempt had handed to the destination, or was waiting for, when it failed: what
    /// halts it is at or before. Where the source could not send on, the last position that it had reached: what halts it is behind.
    up_to: Option<Lsn>,
}

impl HeldUp {
    /// An attempt has failed once it had handed over everything up to here.
    pub(super) fn failed(&mut self, submitted_up_to: Lsn) {
        self.up_to = self.up_to.max(Some(submitted_up_to));
    }

    /// The source's WAL is flushed up to here.
    pub(super) fn source_ends_at(&mut self, flushed: Lsn) {
        // A transaction that is there ends at `flushed` at the latest, and its commit record begins before.
        let last = Lsn::new(flushed.as_u64().saturating_sub(1));
        self.up_to = self.up_to.map(|position| position.min(last));
    }

    /// Up to here nothing is resolved.
    pub(super) fn up_to(&self) -> Lsn {
        self.up_to.unwrap_or(Lsn::INVALID)
    }

    /// What copies wait for: the stream that publishes them ends before it. A conflict may be of another process's stream.
    pub(super) fn copies_wait_for(&self, conflict: Option<Lsn>) -> Option<Lsn> {
        self.up_to.max(conflict)
    }
}

/// Whether the next stream comes to this failure of reading again, as far as anybody knows: the source cannot send or tell what follows.
/// A link that is lost and a server that shuts down are no matter of where the stream is.
pub(super) fn comes_again(error: &SourceError) -> bool {
    match error {
        SourceError::Session(error) => {
            error.server().is_some_and(|server| !matches!(server.code.class(), "08" | "57") || !server.fatal)
        }
        SourceError::Refused(_)
        | SourceError::Unseen { .. }
        | SourceError::NotLooked { .. }
        | SourceError::OutcomeUnknown { .. }
        | SourceError::Wire(_)
        | SourceError::Transaction(_) => true,
        // The next stream does without the spool.
        SourceError::Spool(_) => false,
        // They are not about a transaction that the stream has come to.
        SourceError::LostHistory(_)
        | SourceError::Gap { .. }
        | SourceError::Unpublished { .. }
        | SourceError::SlotInUse { .. }
        | SourceError::Behind { .. }
        | SourceError::Silent(_)
        | SourceError::Ended
        | SourceError::InTheWay { .. }
        | SourceError::Changed(_)
        | SourceError::SnapshotLost(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{ServerError, SessionError, SqlState};

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
    fn copies_wait_for_the_last_of_a_conflict_and_a_failure() {
        let mut held_up = HeldUp::default();
        assert_eq!(held_up.copies_wait_for(None), None);
        held_up.failed(Lsn::new(7));
        assert_eq!(held_up.up_to(), Lsn::new(7), "its state stays as long");
        assert_eq!(held_up.copies_wait_for(None), Some(Lsn::new(7)));
        assert_eq!(held_up.copies_wait_for(Some(Lsn::new(9))), Some(Lsn::new(9)));
    }

    #[test]
    fn an_error_of_the_server_comes_again_unless_it_is_shut_down() {
        let again = |code: &str, fatal: bool| {
            let error = ServerError {
                code: SqlState::parse(code),
                fatal,
                in_function: false,
                message: "m".to_owned(),
                detail: None,
                hint: None,
                schema: None,
                table: None,
                column: None,
                constraint: None,
                process_id: None,
            };
            comes_again(&SourceError::Session(SessionError::Server { doing: "x", error: Box::new(error) }))
        };
        assert!(["42704", "22012", "XX000", "55006", "57014", "53200"].into_iter().all(|code| again(code, false)));
        assert!(again("58P01", true) && !again("57P01", true) && !again("57P02", true) && !again("08006", true));
        assert!(
            !comes_again(&SourceError::Ended)
                && comes_again(&SourceError::Unseen { transaction: 7, within: std::time::Duration::from_secs(1) })
        );
    }
}
