//! The first row of a pipelined request's answers.

use crate::session::{FlightAnswer, StatementAnswer};

pub(crate) fn one_row(answer: FlightAnswer) -> Vec<Option<String>> {
    answer
        .answers
        .into_iter()
        .find_map(|answer| match answer {
            StatementAnswer::Row(row) => row,
            StatementAnswer::Count(_) => None,
        })
        .unwrap_or_default()
}
