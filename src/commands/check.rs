//! `headwater check`: is everything as `run` needs it.
//!
//! A list on standard output, one line a requirement, with what mends those that fail; exit 0 when none does, 1
//! otherwise. `--json` gives the same as an array of objects.

use std::path::PathBuf;
use std::sync::Arc;

use super::cli::CheckArguments;
use super::{Exit, display, settings};
use crate::pg::{counted, printable_json};
use crate::pipeline::{Finding, Standing, check};

/// Looks, prints, changes nothing.
pub(super) async fn run(path: &Option<PathBuf>, arguments: &CheckArguments) -> Exit {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => Arc::new(config),
        Err(exit) => return exit,
    };
    let findings = check(&config).await;
    if arguments.json {
        display::result(&json(&findings));
    } else {
        display::result(&table(&findings));
    }
    let failed = findings.iter().any(|finding| finding.standing == Standing::Failed);
    if failed { Exit::OperatorMustAct } else { Exit::Done }
}

fn json(findings: &[Finding]) -> String {
    let findings: Vec<serde_json::Value> = findings
        .iter()
        .map(|finding| {
            serde_json::json!({
                "about": finding.about.as_str(),
                "what": finding.what,
                "standing": finding.standing.as_str(),
                "message": finding.report.message,
                "detail": finding.report.detail,
                "hint": finding.report.hint,
            })
        })
        .collect();
    printable_json(&serde_json::to_string_pretty(&findings).unwrap_or_default()).into_owned()
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for finding in findings {
        let Finding { about, what, standing, report } = finding;
        let line = format!("{:11}  {what:width$}  {:7}  {}", about.as_str(), standing.as_str(), report.message);
        lines.push(display::fitted(&line, 13));
        for (name, text) in [("DETAIL", &report.detail), ("HINT", &report.hint)] {
            if let Some(text) = text {
                // What follows the first line is SQL, to be copied as it is.
                let (words, sql) =
                    text.split_once('\n').map_or((text.as_str(), None), |(words, sql)| (words, Some(sql)));
                lines.push(display::fitted(&format!("    {name}:  {words}"), 12));
                lines.extend(sql.map(|sql| format!("            {}", sql.replace('\n', "\n            "))));
            }
        }
    }
    let count = |standing| findings.iter().filter(|finding| finding.standing == standing).count();
    lines.push(format!(
        "{} ok, {}, {} failed",
        count(Standing::Ok),
        counted(count(Standing::Warning), "warning"),
        count(Standing::Failed)
    ));
    lines.join("\n")
}
