//! `headwater check`: checks that everything `run` requires is in place.
//!
//! Prints one requirement per line to standard output, with a remedy for those that fail. Exit code 0 when none fails, 1
//! otherwise. `--json` prints the same as an array of objects. `--quiet` omits what is met. `--not-carried` prints, instead of the
//! list, the SQL of what is not carried. This file checks whether http.listen is free, since the running service may hold it.

use std::path::PathBuf;
use std::sync::Arc;

use super::cli::CheckArguments;
use super::display::{self, Colour};
use super::lock_waits::telling;
use super::{observe, settings};
use crate::catalog::not_carried::{NotCarried, script};
use crate::commands::exit::ExitStatus;
use crate::config::Config;
use crate::maintenance::check;
use crate::maintenance::check::findings::{About, Finding, Severity};
use crate::pg::{ErrorReport, counted, printable_json};
use crate::telemetry::try_listen;

/// Looks, prints, changes nothing.
pub(super) async fn run(path: &Option<PathBuf>, arguments: &CheckArguments) -> ExitStatus {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => Arc::new(config),
        Err(exit) => return exit,
    };
    let (mut findings, waits) = telling(&config, check::run(&config)).await;
    // What ended with a wait says so and no more.
    for finding in &mut findings {
        if let Some(late) = finding.late {
            finding.report = waits.explain(late, finding.report.clone());
        }
    }
    findings.extend(http(&config).await);
    if arguments.not_carried {
        let found: Vec<NotCarried> = findings.iter().flat_map(|finding| finding.objects.iter().cloned()).collect();
        display::result(&script(&found));
    } else if arguments.json {
        display::result(&json(&findings));
    } else {
        list(&findings, arguments.quiet);
    }
    let failed = findings.iter().any(|finding| finding.standing == Severity::Failed);
    if failed { ExitStatus::OperatorMustAct } else { ExitStatus::Done }
}

fn json(findings: &[Finding]) -> String {
    let findings: Vec<serde_json::Value> = findings
        .iter()
        .map(|finding| {
            let mut shown = serde_json::json!({
                "about": finding.about.as_str(),
                "what": finding.what,
                "standing": finding.standing.as_str(),
                "message": finding.report.message,
                "detail": finding.report.detail,
                "hint": finding.report.hint,
            });
            if !finding.objects.is_empty() {
                shown["objects"] = finding.objects.iter().map(object).collect();
            }
            shown
        })
        .collect();
    printable_json(&serde_json::to_string_pretty(&findings).unwrap_or_default()).into_owned()
}

fn object(thing: &NotCarried) -> serde_json::Value {
    serde_json::json!({
        "class": thing.class.as_str(),
        "table": thing.table,
        "name": thing.name,
        "differs": thing.differs,
        "sql": thing.sql,
    })
}

/// Whether a start can listen where status, metrics and health are to be found.
async fn http(config: &Config) -> Option<Finding> {
    let address = config.http.listen?;
    let found = |standing, report| {
        Some(Finding { about: About::Here, what: "http", standing, report, late: None, objects: Vec::new() })
    };
    let Err(error) = try_listen(address).await else {
        return found(Severity::Ok, ErrorReport::new(format!("http.listen: {address} is free")));
    };
    match observe::service(config).await {
        Ok(_) => {
            found(Severity::Ok, ErrorReport::new(format!("http.listen: the running service answers at {address}")))
        }
        Err(_) => found(Severity::Failed, error.report()),
    }
}

fn list(findings: &[Finding], quiet: bool) {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let shown = |finding: &&Finding| !quiet || finding.standing != Severity::Ok;
    for finding in findings.iter().filter(shown) {
        let Finding { about, what, standing, report, late: _, objects: _ } = finding;
        let mut lines = Vec::new();
        let colour = match standing {
            Severity::Ok => Colour::Green,
            Severity::Warning => Colour::Yellow,
            Severity::Failed => Colour::Red,
        };
        let line = format!("{:11}  {what:width$}  {:7}  {}", about.as_str(), standing.as_str(), report.message);
        display::coloured(&display::fitted(&line, 13), 11 + 2 + width + 2, standing.as_str(), colour);
        for (name, text) in [("DETAIL", &report.detail), ("HINT", &report.hint)] {
            if let Some(text) = text {
                // What follows the first line is SQL, to be copied as it is.
                let (words, sql) =
                    text.split_once('\n').map_or((text.as_str(), None), |(words, sql)| (words, Some(sql)));
                lines.push(display::fitted(&format!("    {name}:  {words}"), 12));
                lines.extend(sql.map(|sql| format!("            {}", sql.replace('\n', "\n            "))));
            }
        }
        if !lines.is_empty() {
            display::result(&lines.join("\n"));
        }
    }
    let count = |standing| findings.iter().filter(|finding| finding.standing == standing).count();
    if quiet && count(Severity::Warning) + count(Severity::Failed) == 0 {
        return;
    }
    display::result(&format!(
        "{} ok, {}, {} failed",
        count(Severity::Ok),
        counted(count(Severity::Warning), "warning"),
        count(Severity::Failed)
    ));
}
