//! What the failure of a request means. Pure: the error and what is known of the task go in, what to do about it comes out.
//!
//! By then the transaction is left and the position is known to be where it was: nothing of the request is stored.
//!
//! | task | the error says | then |
//! |---|---|---|
//! | any | another table has the name (HW003), statements were replaced (HW004) | the attempt ends, with a report |
//! | batch | the position's row has moved (HW001: VACUUM FULL) | again, as it was |
//! | batch, coalesced | a row's conflict | again, row by row: sets may meet constraints that the order does not |
//! | batch of several transactions | a row's conflict | again, one transaction at a time: those before it are applied |
//! | one transaction | a conflict that the source's row may win | again, overwriting; in the next attempt if that takes a newer catalog |
//! | large transaction, coalesced | a row's conflict | the attempt ends; the next one applies it row by row |
//! | any | any other conflict | the attempt ends with the conflict |
//! | any | TRUNCATE is not possible (0A000) | the attempt ends, with a report |
//! | any | anything else | the attempt ends with the error |

use super::requests::Strategy;
use crate::destination::error::ConflictKind;
use crate::session::{ServerError, SqlState};
use crate::sql::table_guard::{OTHER_TABLE, is_refusal};

/// feature_not_supported: what TRUNCATE raises when a table that it does not name has a foreign key onto one that it does.
const FEATURE_NOT_SUPPORTED: SqlState = SqlState::new(b"0A000");
/// What headwater.statement_replaced raises.
const STATEMENT_REPLACED: SqlState = SqlState::new(b"HW004");
/// What headwater.advance raises where the position's row is not where it was.
const POSITION_MOVED: SqlState = SqlState::new(b"HW001");

/// What the source's rows may do at a conflict of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overwriting {
    /// Nothing: the conflict stands.
    No,
    /// Overwrite those that are in their way.
    Now,
    /// The same, decided by a catalog that is read after the conflict: in the next attempt.
    WithNewerCatalog,
}

/// What is known of a task that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailedTask {
    /// A batch of so many transactions.
    Batch { transactions: usize, strategy: Strategy, overwriting: Overwriting },
    /// Changes of a large transaction, or its commit.
    Large { strategy: Strategy, overwriting: Overwriting },
    /// A large transaction's begin, or a position: there are no changes in it.
    NoChanges,
    /// An empty request.
    Ping,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureResponse {
    /// Send the batch again, by this strategy.
    Resend(Strategy),
    /// Send its transactions again, one at a time and row by row.
    ResendEach,
    /// Send it again, overwriting what is in the way of its rows.
    ResendOverwriting,
    /// End the attempt: the next one applies the large transaction row by row.
    RefuseSets,
    /// End the attempt with a conflict; the next one may overwrite.
    Conflict { kind: ConflictKind, will_win: bool },
    /// End the attempt: another table has the name.
    OtherTable,
    /// End the attempt: the destination's code replaces prepared statements.
    StatementReplaced,
    /// End the attempt: if the statement was a TRUNCATE, the destination does not allow it.
    TruncateRefused,
    /// End the attempt with the error of the empty request.
    PingFailed,
    /// End the attempt with the error.
    Unexpected,
}

/// What the failure of a task means.
pub(super) fn response(task: FailedTask, error: &ServerError) -> FailureResponse {
    if error.code.as_str() == OTHER_TABLE && error.schema.is_some() && error.table.is_some() {
        return FailureResponse::OtherTable;
    }
    if error.code == STATEMENT_REPLACED {
        return FailureResponse::StatementReplaced;
    }
    let Some(kind) = ConflictKind::of(error.code) else { return without_conflict(task, error) };
    match task {
        FailedTask::Ping => FailureResponse::PingFailed,
        FailedTask::Batch { strategy: Strategy::Coalesced, .. } => FailureResponse::Resend(Strategy::RowByRow),
        FailedTask::Batch { transactions: 2.., .. } => FailureResponse::ResendEach,
        FailedTask::Batch { overwriting: Overwriting::Now, .. } => FailureResponse::ResendOverwriting,
        FailedTask::Large { strategy: Strategy::Coalesced, .. } => FailureResponse::RefuseSets,
        FailedTask::Batch { overwriting, .. } | FailedTask::Large { overwriting, .. } => {
            FailureResponse::Conflict { kind, will_win: overwriting != Overwriting::No }
        }
        FailedTask::NoChanges => FailureResponse::Conflict { kind, will_win: false },
    }
}

/// The error says nothing of a row.
fn without_conflict(task: FailedTask, error: &ServerError) -> FailureResponse {
    match task {
        FailedTask::Ping => FailureResponse::PingFailed,
        // The position is as it should be, so its row has only moved (VACUUM FULL): its new ctid was just read.
        FailedTask::Batch { strategy, .. } if error.code == POSITION_MOVED => FailureResponse::Resend(strategy),
        FailedTask::Batch { .. } | FailedTask::Large { .. } | FailedTask::NoChanges => {
            let refuses =
                error.code == FEATURE_NOT_SUPPORTED && !is_refusal(FEATURE_NOT_SUPPORTED.as_str(), &error.message);
            if refuses { FailureResponse::TruncateRefused } else { FailureResponse::Unexpected }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str) -> ServerError {
        ServerError {
            code: SqlState::parse(code),
            fatal: false,
            message: "refused".to_owned(),
            detail: None,
            hint: None,
            schema: Some("public".to_owned()),
            table: Some("t".to_owned()),
            column: None,
            constraint: None,
            in_function: false,
            process_id: None,
        }
    }

    const UNIQUE: &str = "23505";
    const SERIALIZATION: &str = "40001";

    #[test]
    fn every_task_has_an_answer_to_every_kind_of_failure() {
        let batch = |transactions, strategy, overwriting| FailedTask::Batch { transactions, strategy, overwriting };
        let large = |strategy, overwriting| FailedTask::Large { strategy, overwriting };
        let (sets, rows) = (Strategy::Coalesced, Strategy::RowByRow);
        let (no, now, newer) = (Overwriting::No, Overwriting::Now, Overwriting::WithNewerCatalog);
        let conflict = |will_win| FailureResponse::Conflict { kind: ConflictKind::UniqueViolation, will_win };
        for (task, code, expected) in [
            // A row's conflict is narrowed down: sets, row by row, one transaction, the source's rows.
            (batch(3, sets, no), UNIQUE, FailureResponse::Resend(rows)),
            (batch(1, sets, now), UNIQUE, FailureResponse::Resend(rows)),
            (batch(3, rows, now), UNIQUE, FailureResponse::ResendEach),
            (batch(1, rows, now), UNIQUE, FailureResponse::ResendOverwriting),
            (batch(1, rows, newer), UNIQUE, conflict(true)),
            (batch(1, rows, no), UNIQUE, conflict(false)),
            (large(sets, newer), UNIQUE, FailureResponse::RefuseSets),
            (large(rows, newer), UNIQUE, conflict(true)),
            (large(rows, no), UNIQUE, conflict(false)),
            (FailedTask::NoChanges, UNIQUE, conflict(false)),
            // The position's row has another ctid; only a batch can be sent again.
            (batch(3, sets, no), "HW001", FailureResponse::Resend(sets)),
            (batch(1, rows, no), "HW001", FailureResponse::Resend(rows)),
            (large(rows, no), "HW001", FailureResponse::Unexpected),
            (FailedTask::NoChanges, "HW001", FailureResponse::Unexpected),
            (batch(3, sets, no), "HW003", FailureResponse::OtherTable),
            (large(sets, no), "HW004", FailureResponse::StatementReplaced),
            (batch(1, sets, no), "0A000", FailureResponse::TruncateRefused),
            (large(sets, no), "0A000", FailureResponse::TruncateRefused),
            (batch(1, sets, no), SERIALIZATION, FailureResponse::Unexpected),
            (large(sets, no), SERIALIZATION, FailureResponse::Unexpected),
            (FailedTask::Ping, UNIQUE, FailureResponse::PingFailed),
            (FailedTask::Ping, SERIALIZATION, FailureResponse::PingFailed),
        ] {
            assert_eq!(response(task, &error(code)), expected, "{task:?} {code}");
        }
    }

    #[test]
    fn only_an_error_that_names_a_table_says_that_another_has_its_name() {
        let task = FailedTask::Large { strategy: Strategy::Coalesced, overwriting: Overwriting::No };
        let unnamed = ServerError { table: None, ..error("HW003") };
        assert_eq!(response(task, &unnamed), FailureResponse::Unexpected);
    }

    #[test]
    fn a_statement_of_our_own_that_is_refused_is_no_refused_truncate() {
        let task = FailedTask::Large { strategy: Strategy::Coalesced, overwriting: Overwriting::No };
        let message = "TABLESAMPLE clause can only be applied to tables".to_owned();
        assert_eq!(response(task, &ServerError { message, ..error("0A000") }), FailureResponse::Unexpected);
    }
}
