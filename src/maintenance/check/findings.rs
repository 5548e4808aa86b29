//! What a check has found, about what, and how it stands.
//!
//! Collected by every part of the check; shown by `commands::check`. Plain data.

use crate::catalog::not_carried::{NotCarried, summary};
use crate::destination::DestinationError;
use crate::error_policy::{Fault, report};
use crate::pg::ErrorReport;
use crate::preflight::waits::LateSession;
use crate::session::SessionError;
use crate::source::SourceError;

/// How a requirement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// It works, but an operator should know.
    Warning,
    /// `run` would refuse, or halt.
    Failed,
}

impl Severity {
    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Failed => "failed",
        }
    }
}

/// Which side a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// The source.
    Source,
    /// The destination.
    Destination,
    /// Both together.
    Both,
    /// This machine.
    Here,
}

impl About {
    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            About::Source => "source",
            About::Destination => "destination",
            About::Both => "both",
            About::Here => "here",
        }
    }
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Whom it concerns.
    pub about: About,
    /// What was looked at.
    pub what: &'static str,
    /// How it stands.
    pub standing: Severity,
    /// The finding, and its remedy.
    pub report: ErrorReport,
    /// The session that has not answered in time, where that is what is wrong.
    pub late: Option<LateSession>,
    /// What of the source is meant, where that is a list of things that are not carried.
    pub objects: Vec<NotCarried>,
}

/// The list, as it grows.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn push(&mut self, about: About, what: &'static str, standing: Severity, report: ErrorReport) {
        self.0.push(Finding { about, what, standing, report, late: None, objects: Vec::new() });
    }

    pub(crate) fn ok(&mut self, about: About, what: &'static str, text: impl Into<String>) {
        self.push(about, what, Severity::Ok, ErrorReport::new(text));
    }

    pub(crate) fn warn(&mut self, about: About, what: &'static str, report: ErrorReport) {
        self.push(about, what, Severity::Warning, report);
    }

    pub(crate) fn fail(&mut self, about: About, what: &'static str, report: ErrorReport) {
        self.push(about, what, Severity::Failed, report);
    }

    /// What is not carried: a line for each class.
    pub(crate) fn not_carried(&mut self, found: Vec<NotCarried>) {
        const WHAT: &str = "not carried";
        let lines = summary(&found);
        if lines.is_empty() {
            return self.ok(
                About::Both,
                WHAT,
                "nothing: what belongs to the tables at the source is at the destination",
            );
        }
        for (class, line) in lines {
            let objects = found.iter().filter(|thing| thing.class == class).cloned().collect();
            let report = ErrorReport::new(line);
            self.0.push(Finding {
                about: About::Both,
                what: WHAT,
                standing: Severity::Ok,
                report,
                late: None,
                objects,
            });
        }
        self.ok(About::Both, WHAT, "headwater check --not-carried prints the SQL that makes all of it");
    }

    /// A failure of whatever kind, in the words that a start would use.
    pub(crate) fn fault<E>(&mut self, about: About, what: &'static str, error: E)
    where
        Fault: From<E>,
    {
        self.failed(about, what, &Fault::from(error));
    }

    /// The same. A session that has not answered once answers nothing else, which follows from the first and is not said again.
    fn failed(&mut self, about: About, what: &'static str, fault: &Fault) {
        let (late, report) = (LateSession::of(fault), report(fault));
        let is_told = |finding: &Finding| finding.late == late && finding.report.message == report.message;
        if late.is_none() || !self.0.iter().any(is_told) {
            self.0.push(Finding { about, what, standing: Severity::Failed, report, late, objects: Vec::new() });
        }
    }

    /// The requirement, or what is wrong with it; nothing where it was not answered in time. Then somebody holds a lock, and each further
    /// question of that session would wait as long.
    pub(crate) fn answered<T, E>(&mut self, about: About, what: &'static str, result: Result<T, E>) -> Option<Option<T>>
    where
        Fault: From<E>,
    {
        let fault = match result.map_err(Fault::from) {
            Ok(value) => return Some(Some(value)),
            Err(fault) => fault,
        };
        let is_late = matches!(
            fault,
            Fault::Source(SourceError::Session(SessionError::Timeout { .. }))
                | Fault::Destination(DestinationError::Session(SessionError::Timeout { .. }))
        );
        self.failed(about, what, &fault);
        (!is_late).then_some(None)
    }

    /// The requirement, or what is wrong with it.
    pub(crate) fn take<T, E>(&mut self, about: About, what: &'static str, result: Result<T, E>) -> Option<T>
    where
        Fault: From<E>,
    {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(about, what, error);
                None
            }
        }
    }
}
