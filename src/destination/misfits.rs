//! Misfits of a table in one report, with the statements that end them.
//!
//! For a relation of the stream (`apply`) and for a table that is to be copied ([`super::reshape()`]) alike.

use crate::catalog::fit;
use crate::pg::{ErrorReport, QualifiedName, printable, shown_sql};

/// All misfits of a table in one report, with the statements that fix them.
pub fn misfit_report(table: &QualifiedName, misfits: &[fit::Misfit]) -> ErrorReport {
    let problems: Vec<String> = misfits.iter().map(|misfit| printable(&misfit.problem).into_owned()).collect();
    let mut remedies: Vec<String> = Vec::new();
    // A statement is one line; one that fixes a type of several columns runs once.
    for remedy in misfits.iter().filter_map(|misfit| misfit.remedy.as_deref()) {
        let new: Vec<String> = shown_sql(remedy).lines().map(str::to_owned).collect();
        remedies.extend(new.into_iter().filter(|statement| !remedies.contains(statement)).collect::<Vec<_>>());
    }
    let report = ErrorReport::new(format!("table {table} at the destination does not fit the source"))
        .detail(format!("{}.", problems.join(";\n")));
    if remedies.is_empty() {
        return report.hint("Drop the table and let headwater create it, or change it by hand.");
    }
    report.hint(format!("Run at the destination:\n{}", remedies.join("\n")))
}
