//! What an operator is told when something must be done: message, detail, hint, in PostgreSQL's style.
//!
//! Made by preflight and by whoever finds a thing that only an operator can mend; printed by `commands`, shown by
//! `telemetry`. PostgreSQL's operators know the form (ErrorData, "Error Message Style Guide"): the message is lower
//! case, without a full stop, and says what failed on which object; detail and hint are whole sentences.

use std::fmt;

/// An error that an operator can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReport {
    /// What failed, on which object.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do; SQL to run stands on lines of its own.
    pub hint: Option<String>,
}

impl ErrorReport {
    /// A report with only a message.
    pub fn new(message: impl Into<String>) -> ErrorReport {
        ErrorReport { message: message.into(), detail: None, hint: None }
    }

    /// The same with a detail.
    pub fn detail(mut self, detail: impl Into<String>) -> ErrorReport {
        self.detail = Some(detail.into());
        self
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> ErrorReport {
        self.hint = Some(hint.into());
        self
    }

    /// Message, detail and hint on lines of their own, as psql shows them.
    pub fn lines(&self) -> String {
        let mut lines = self.message.clone();
        for (name, text) in [("DETAIL", &self.detail), ("HINT", &self.hint)] {
            if let Some(text) = text {
                lines.push_str(&format!("\n{name}:  {}", text.replace('\n', "\n        ")));
            }
        }
        lines
    }
}

/// `1 row`, `2 rows`: a number of things whose plural ends in s.
pub fn counted<N: fmt::Display + PartialEq + From<u8>>(number: N, thing: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

impl fmt::Display for ErrorReport {
    /// The message alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ErrorReport {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_in_psql() {
        let report = ErrorReport::new("slot is gone").detail("It was here.").hint("Run:\nSELECT 1;");
        assert_eq!(report.lines(), "slot is gone\nDETAIL:  It was here.\nHINT:  Run:\n        SELECT 1;");
    }
}
