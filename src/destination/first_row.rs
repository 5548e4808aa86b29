//! The first row of a pipelined request's answers.

use crate::session::{PipelinedAnswer, StatementAnswer};

pub(crate) fn one_row(answer: PipelinedAnswer) -> Vec<Option<String>> {
    answer
        .answers
        .into_iter()
        .find_map(|answer| match answer {
            StatementAnswer::Row(row) => row,
            StatementAnswer::Count(_) => None,
        })
        .unwrap_or_default()
}
