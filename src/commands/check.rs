//! `headwater check`: is everything as `run` needs it.
//!
//! A list on standard output, one line a requirement, with what mends those that fail; exit 0 when none does, 1
//! otherwise. `--json` gives the same as an array of objects; `--not-carried` prints, instead of the list, the SQL of what is not carried.

use std::path::PathBuf;
use std::sync::Arc;

use super::cli::CheckArguments;
use super::{Exit, display, settings};
use crate::pg::{counted, printable_json};
use crate::pipeline::{Finding, NotCarried, Standing, check, script};

/// Looks, prints, changes nothing.
pub(super) async fn run(path: &Option<PathBuf>, arguments: &CheckArguments) -> Exit {
    let config = match settings::load(path.as_deref()) {
        Ok(config) => Arc::new(config),
        Err(exit) => return exit,
    };
    let findings = check(&config).await;
    if arguments.not_carried {
        let found: Vec<NotCarried> = findings.iter().flat_map(|finding| finding.objects.iter().cloned()).collect();
        display::result(&script(&found));
    } else if arguments.json {
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

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for finding in findings {
        let Finding { about, what, standing, report, objects: _ } = finding;
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
