//! What makes two failures the same one, however their texts differ.
//!
//! Asked by `copy_failures`, which counts how often a copy has failed in the same way. Two attempts meet the same cause with other
//! words: another process ID, LSN, line or file (`could not extend file "base/5/16384.1"`). So an error of a server is known by its
//! SQLSTATE and the objects that it names, and one of ours by its sentence without the numbers in it.

use crate::config::OnSlotLost;
use crate::destination::DestinationError;
use crate::error_policy::{Decision, Fault, Phase, decide, report};
use crate::schema_change::constraint_difference::Violated;
use crate::session::SqlState;
use crate::source::SourceError;

/// A way to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FailureKind {
    /// What follows from it, which also says at which end it was.
    decision: Decision,
    told: ToldFailure,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ToldFailure {
    /// A server's error.
    Server { code: SqlState, violated: Violated },
    /// A session that broke, in whichever way.
    Session,
    /// A sentence of ours, without its numbers.
    Sentence(String),
}

impl FailureKind {
    /// The kind of a failure.
    pub(super) fn of(fault: &Fault) -> FailureKind {
        let session = match fault {
            Fault::Source(SourceError::Session(error) | SourceError::SnapshotLost(error))
            | Fault::Destination(DestinationError::Session(error)) => Some(error),
            Fault::Source(_) | Fault::Destination(_) | Fault::Refused(_) | Fault::Halted(_) | Fault::Unwatched(_) => {
                None
            }
        };
        let told = match session.map(|error| error.server()) {
            Some(Some(server)) => ToldFailure::Server { code: server.code, violated: server.violated() },
            Some(None) => ToldFailure::Session,
            None => ToldFailure::Sentence(without_numbers(&report(fault).message)),
        };
        FailureKind { decision: decide(fault, Phase::Running, OnSlotLost::Stop), told }
    }
}

/// Puts `#` in the place of each word that begins with a digit; `t1` stays.
fn without_numbers(text: &str) -> String {
    let mut shown = String::new();
    let mut before = ' ';
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut in_number = false;
    for c in text.chars() {
        let begins = c.is_ascii_digit() && !is_word(before);
        if begins {
            shown.push('#');
        }
        in_number = begins || (in_number && is_word(c));
        if !in_number {
            shown.push(c);
        }
        before = c;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::ErrorReport;
    use crate::session::{ServerError, SessionError};

    fn server(code: &str, table: Option<&str>, message: &str) -> Fault {
        let error = ServerError {
            code: SqlState::parse(code),
            fatal: false,
            in_function: false,
            message: message.to_owned(),
            detail: None,
            hint: None,
            schema: table.map(|_| "public".to_owned()),
            table: table.map(str::to_owned),
            column: None,
            constraint: None,
            process_id: None,
        };
        let error = SessionError::Server { doing: "copying", error: Box::new(error) };
        Fault::Destination(DestinationError::Session(error))
    }

    #[test]
    fn the_same_error_with_other_files_processes_and_numbers_is_the_same_failure() {
        let file = |name: &str| FailureKind::of(&server("53100", None, &format!("could not extend file \"{name}\"")));
        assert_eq!(file("base/5/16384"), file("base/5/16390.2"));
        let own = |text: &str| FailureKind::of(&Fault::Refused(ErrorReport::new(text)));
        assert_eq!(own("process 17 waits at 0/16B3748"), own("process 4711 waits at 1/2A"));
        assert_eq!(without_numbers("process 17 waits for t1 at 1/2A"), "process # waits for t1 at #/#");
    }

    #[test]
    fn another_code_table_or_end_is_another_failure() {
        let of = |code, table| FailureKind::of(&server(code, Some(table), "m"));
        assert_ne!(of("23514", "a"), of("23514", "b"));
        assert_ne!(of("23514", "a"), of("23502", "a"));
        let lost = |end: fn(SessionError) -> Fault| {
            FailureKind::of(&end(SessionError::Timeout {
                doing: "x",
                within: std::time::Duration::from_secs(1),
                process_id: None,
            }))
        };
        let destination = lost(|error| Fault::Destination(DestinationError::Session(error)));
        assert_ne!(lost(|error| Fault::Source(SourceError::Session(error))), destination);
    }
}
