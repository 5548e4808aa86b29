//! A report to an operator who must do something: message, detail, hint, in PostgreSQL's style.
//!
//! Made by preflight and by other code that finds a fault only an operator can fix; printed by `commands`, shown by
//! `telemetry`. PostgreSQL's operators know the form (ErrorData, "Error Message Style Guide"): the message is lower
//! case, without a full stop, and says what failed on which object; detail and hint are whole sentences.
//!
//! Invariant: a report is printable, whatever text of a server is in it: the message is one line, detail and hint have no
//! other control characters than the ends of their lines.

use std::fmt;

use super::printable::{printable, printable_lines};

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
        ErrorReport { message: printable(&message.into()).into_owned(), detail: None, hint: None }
    }

    /// The same with a detail.
    pub fn detail(mut self, detail: impl Into<String>) -> ErrorReport {
        self.detail = Some(printable_lines(&detail.into()).into_owned());
        self
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> ErrorReport {
        self.hint = Some(printable_lines(&hint.into()).into_owned());
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
    fn a_report_is_printable_whatever_is_in_it() {
        let hostile = "a\nb\u{1b}[2J\u{202e}\r\u{2028}";
        let lines = ErrorReport::new(hostile).detail(hostile).hint(hostile).lines();
        let expected: Vec<&str> = vec![
            r"a\nb\u{1b}[2J\u{202e}\r\u{2028}",
            "DETAIL:  a",
            r"        b\u{1b}[2J\u{202e}\r\u{2028}",
            "HINT:  a",
            r"        b\u{1b}[2J\u{202e}\r\u{2028}",
        ];
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_report_reads_as_in_psql() {
        let report = ErrorReport::new("slot is gone").detail("It was here.").hint("Run:\nSELECT 1;");
        assert_eq!(report.lines(), "slot is gone\nDETAIL:  It was here.\nHINT:  Run:\n        SELECT 1;");
    }
}
