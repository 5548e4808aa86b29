//! `verify --repair`, on the side of the command: repair what differs, compare again, until nothing is left.
//!
//! Called by `super` with what a comparison has found. The service writes the rows ([`super::repair`]), a bounded number at each
//! fence, so that the stream is never held for long; then the tables are compared at another fence. The loop ends when they are
//! equal, or for one of the reasons of [`RepairStop`].
//!
//! Bounds: `keys_at_once` keys a fence ([`crate::comparison::Bounds`]), fewer where those take longer than `fence_timeout`;
//! [`ROUNDS_MAX`] comparisons.

use super::compare::{Keys, compare};
use crate::comparison::Key;
use crate::destination::RepairOutcome;
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, QualifiedName, counted, shell_word};
use crate::session::SqlClient;
use crate::verification::fence_request::{Maker, TOO_SLOW, Tell, VerifyContext, ask_for_repair};
use crate::verification::verdict::{RepairStop, Repaired, TableVerdict, Verdict};

/// Rounds, each of which repairs the rows that are listed (200,000 of a table): with more, copying the tables is faster.
const ROUNDS_MAX: u32 = 20;

/// Rounds that begin with all differing rows listed and find others afterwards: something else writes to the destination.
const DISTURBED_ROUNDS_MAX: u32 = 3;

/// A repair of so few keys that takes longer than `fence_timeout` is given up.
const KEYS_MIN: usize = 100;

/// Repairs what `verdict` has found, until both sides are equal or nothing more can be done.
pub(crate) async fn until_equal(
    ends: VerifyContext<'_>,
    client: &SqlClient,
    verdict: &Verdict,
    tell: &mut Tell<'_>,
) -> Result<Repaired, Fault> {
    let mut left = differing(&verdict.tables);
    let mut outcome = RepairOutcome::default();
    let mut keys_at_once = ends.options.bounds.keys_at_once;
    let (mut rounds, mut disturbed) = (0, 0);
    loop {
        check_keys(&left)?;
        let rows = counted(left.iter().map(|table| table.differences.rows()).sum::<u64>(), "row");
        tell(&format!("repairing {rows}"));
        repair(ends, client, &left, &mut keys_at_once, &mut outcome, tell).await?;
        let names = left.iter().map(|table| table.table.clone()).collect();
        let (after, _) = compare(ends, Maker::Leader { client, tell }, Some(names)).await?;
        let now = differing(&after.tables);
        rounds += 1;
        disturbed += u32::from(left.iter().all(|table| !table.differences.more));
        let unchanged = keys(&now) == keys(&left);
        left = now;
        let stop = if left.is_empty() {
            None
        } else if unchanged {
            Some(RepairStop::Unchanged)
        } else if disturbed >= DISTURBED_ROUNDS_MAX {
            Some(RepairStop::Disturbed)
        } else if rounds >= ROUNDS_MAX {
            Some(RepairStop::TooMany)
        } else if after.left_out.is_empty() {
            continue;
        } else {
            None
        };
        return Ok(Repaired {
            outcome,
            left,
            stop,
            left_out: after.left_out,
            consistent_point: after.consistent_point,
        });
    }
}

fn differing(tables: &[TableVerdict]) -> Vec<TableVerdict> {
    tables.iter().filter(|table| !table.differences.is_empty()).cloned().collect()
}

fn check_keys(tables: &[TableVerdict]) -> Result<(), Fault> {
    let unkeyed: Vec<String> =
        tables.iter().filter(|table| table.key.is_empty()).map(|table| table.table.to_string()).collect();
    if unkeyed.is_empty() {
        return Ok(());
    }
    let words: Vec<String> = unkeyed.iter().map(|table| shell_word(table)).collect();
    Err(Fault::Refused(
        ErrorReport::new(format!("rows of table {} have no key by which they could be repaired", unkeyed.join(", ")))
            .detail("Nothing was repaired.")
            .hint(format!(
                "Run this while the service runs, and then the repair:\nheadwater resnapshot {}",
                words.join(" ")
            )),
    ))
}

/// The keys that differ: those that only the destination has first, children before parents; then the others, parents first.
fn keys(tables: &[TableVerdict]) -> Vec<(&QualifiedName, &Key)> {
    let extra = tables.iter().rev().flat_map(|table| table.differences.extra.iter().map(|key| (&table.table, key)));
    let others = tables.iter().flat_map(|table| {
        let found = &table.differences;
        found.differing.iter().chain(&found.missing).map(|key| (&table.table, key))
    });
    extra.chain(others).collect()
}

fn by_table(keys: &[(&QualifiedName, &Key)]) -> Keys {
    let mut tables: Keys = Vec::new();
    for (table, key) in keys {
        match tables.iter_mut().find(|(known, _)| known == *table) {
            Some((_, keys)) => keys.push((*key).clone()),
            None => tables.push(((*table).clone(), vec![(*key).clone()])),
        }
    }
    tables
}

/// Repairs the rows that these tables list, so many at a fence.
async fn repair(
    ends: VerifyContext<'_>,
    client: &SqlClient,
    tables: &[TableVerdict],
    keys_at_once: &mut usize,
    outcome: &mut RepairOutcome,
    tell: &mut Tell<'_>,
) -> Result<(), Fault> {
    let keys = keys(tables);
    let mut done = 0;
    while let Some(rest) = keys.get(done..).filter(|rest| !rest.is_empty()) {
        let part = rest.get(..*keys_at_once).unwrap_or(rest);
        match ask_for_repair(ends.config, client, &by_table(part), tell).await {
            Ok(repaired) => {
                add(outcome, repaired);
                done += part.len();
            }
            Err(Fault::Refused(report)) if report.message.starts_with(TOO_SLOW) && part.len() > KEYS_MIN => {
                *keys_at_once = part.len().div_ceil(2);
                tell(&format!("{}: repairing {keys_at_once} at a time", report.message));
            }
            // Rows may hold each other's unique values, or refer to each other: then they can only be repaired together.
            Err(Fault::Refused(report)) if part.len() < keys.len() => {
                tell(&format!(
                    "repairing all of them together, since a part cannot be repaired alone: {}",
                    report.message
                ));
                add(outcome, ask_for_repair(ends.config, client, &by_table(&keys), tell).await?);
                return Ok(());
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

fn add(outcome: &mut RepairOutcome, more: RepairOutcome) {
    outcome.deleted += more.deleted;
    outcome.updated += more.updated;
    outcome.inserted += more.inserted;
}
