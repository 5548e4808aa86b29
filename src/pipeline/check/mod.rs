//! Check: everything that `run` requires, and what an operator should know besides, without changing anything.
//!
//! Beside the ring: it needs no running service and starts none. The requirements are asked by the same functions that
//! a start uses, so the words are the same; here none of them ends the list. What would be changed by a start (a
//! publication that is created) is tried in a transaction that is rolled back.
//!
//! ```text
//! source ─▶ connection, server, role, publication and tables, transactions, slot
//! destination ─▶ connection, server, role, tables, bookkeeping
//! both ─▶ columns, types, publications at the destination, foreign keys, encodings, clocks, history
//! here ─▶ the spool's directory
//! ```
//!
//! A side that cannot be reached is one failure; what needs it is left out.

mod both;
mod connection;
mod constraints;
mod destination;
mod here;
mod publications;
mod sessions;
mod source;
mod values;

use std::sync::Arc;

use super::hosts::{Settled, settle};
use super::prepare::Addresses;
use crate::config::Config;
use crate::fault::{Fault, report};
use crate::pg::ErrorReport;
use crate::plan::not_carried::{NotCarried, summary};

/// How a requirement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// As it should be.
    Ok,
    /// It works, but an operator should know.
    Warning,
    /// `run` would refuse, or halt.
    Failed,
}

impl Standing {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Standing::Ok => "ok",
            Standing::Warning => "warning",
            Standing::Failed => "failed",
        }
    }
}

/// Which side a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
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
    pub const fn as_str(self) -> &'static str {
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
pub struct Finding {
    /// Whom it concerns.
    pub about: About,
    /// What was looked at.
    pub what: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// What was found, and what mends it.
    pub report: ErrorReport,
    /// What of the source is meant, where that is a list of things that are not carried.
    pub objects: Vec<NotCarried>,
}

/// The list, as it grows.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn push(&mut self, about: About, what: &'static str, standing: Standing, report: ErrorReport) {
        self.0.push(Finding { about, what, standing, report, objects: Vec::new() });
    }

    fn ok(&mut self, about: About, what: &'static str, text: impl Into<String>) {
        self.push(about, what, Standing::Ok, ErrorReport::new(text));
    }

    fn warn(&mut self, about: About, what: &'static str, report: ErrorReport) {
        self.push(about, what, Standing::Warning, report);
    }

    fn fail(&mut self, about: About, what: &'static str, report: ErrorReport) {
        self.push(about, what, Standing::Failed, report);
    }

    /// What is not carried: a line for each class.
    fn not_carried(&mut self, found: Vec<NotCarried>) {
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
            self.0.push(Finding { about: About::Both, what: WHAT, standing: Standing::Ok, report, objects });
        }
        self.ok(About::Both, WHAT, "headwater check --not-carried prints the SQL that makes all of it");
    }

    /// A failure of whatever kind, in the words that a start would use.
    fn fault<E>(&mut self, about: About, what: &'static str, error: E)
    where
        Fault: From<E>,
    {
        self.fail(about, what, report(&Fault::from(error)));
    }

    /// The requirement, or what is wrong with it.
    fn take<T, E>(&mut self, about: About, what: &'static str, result: Result<T, E>) -> Option<T>
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

/// Looks at both sides; changes nothing.
pub async fn run(config: &Arc<Config>) -> Vec<Finding> {
    let addresses = Addresses::new(config);
    let mut findings = Findings::default();
    let destination = destination::look(config, &addresses, &mut findings).await;
    let settled = match &destination {
        Some(destination) => {
            let settled = settle(config, &destination.bookkeeping).await;
            findings.take(About::Source, "hosts", settled)
        }
        // Without the bookkeeping nothing is known of the source's history.
        None => Some(Settled::as_configured(config)),
    };
    // Where no host will do, everything else at the source only follows from it.
    if let Some(settled) = settled {
        for text in settled.passed_over.iter().chain(&settled.out_of_reach) {
            findings.warn(About::Source, "hosts", ErrorReport::new(text));
        }
        for text in settled.unwanted {
            findings.ok(About::Source, "hosts", text);
        }
        let config = &settled.config;
        let addresses = Addresses::new(config);
        let source = source::look(config, &addresses, destination.as_ref(), &mut findings).await;
        if let (Some(source), Some(destination)) = (source, destination) {
            both::look(config, source, &destination, &mut findings).await;
        }
    }
    here::look(config, &mut findings);
    // A stable order: by side, as they were found.
    findings.0.sort_by_key(|finding| match finding.about {
        About::Source => 0,
        About::Destination => 1,
        About::Both => 2,
        About::Here => 3,
    });
    findings.0
}
