//! Mutation testing of the exactness path: does a test fail for each line that keeps the destination equal to the source?
//!
//! ```text
//! src ──parse──▶ mutants ──draw──▶ one copy of the tree that holds them all, each behind `mutation::is(n)`
//!                                     │ built once; mutants that do not compile are dropped
//!                                     ▼
//!       which unit tests reach which mutants ◀── each once, with no mutant alive
//!                                     ▼
//!       HEADWATER_MUTANT=n ──▶ the unit tests that reach n, then live modules, until one fails: killed, or survived
//! ```
//!
//! A build takes minutes, and a build for each of 200 mutants would take a day. So there is one build, and an environment
//! variable says which mutant is alive in the tests and in the services that they start. `make mutants` calls this tool; it
//! writes only below `target/mutants`. An interrupted run continues where it was; mutants that survived are tried again, since
//! a new run means that somebody has written a test.
//!
//! - `headwater-mutants [COUNT [SEED]]` (200, 1) tries COUNT mutants, drawn by SEED, and those of `survived.txt` with them.
//! - `headwater-mutants check` says which lines of the two lists name no mutant (`make check`).
//! - `headwater-mutants list [PLACE]` prints the mutants of one file or directory.
//!
//! `target/mutants/numbers.txt` numbers the mutants of the last build, to try one by hand: run a test program of
//! `target/mutants/target/debug/deps` in `target/mutants/tree` with HEADWATER_MUTANT=n.
//!
//! Two lists stand beside this crate's sources. `survived.txt` names mutants that once survived. `equivalent.txt` names mutants
//! that no test can kill, each with the reason. Both name a mutant by file, change and text, so that they outlive edits elsewhere
//! in the file, and a name that fits no mutant is an error.

mod known;
mod mutate;
mod run;
mod state;
mod tree;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::known::{Equivalent, Survived};
use crate::mutate::Mutant;

/// What stands between the stream and the committed row, and between two tables that are made equal.
const EXACTNESS_PATH: &[&str] = &[
    "src/destination/apply",
    "src/destination/bookkeeping.rs",
    "src/destination/compare.rs",
    "src/destination/fences.rs",
    "src/destination/fingerprints.rs",
    "src/destination/publish.rs",
    "src/destination/resnapshots.rs",
    "src/destination/staging.rs",
    "src/destination/writer.rs",
    "src/pg/lsn.rs",
    "src/pg/tuple.rs",
    "src/apply_core",
    "src/apply_worker/parallel_apply.rs",
    "src/apply_worker/apply_loop.rs",
    "src/preflight/resync_requests.rs",
    "src/verification/fence.rs",
    "src/preflight/fingerprints.rs",
    "src/preflight/enum_labels.rs",
    "src/preflight/suspended_tables.rs",
    "src/table_sync",
    "src/apply_worker/streaming.rs",
    "src/verification",
    "src/apply_plan/batch.rs",
    "src/catalog/value_format.rs",
    "src/schema_change/columns.rs",
    "src/schema_change/constraint_difference.rs",
    "src/schema_change/labels.rs",
    "src/schema_change/mod.rs",
    "src/schema_change/new_sequence.rs",
    "src/schema_change/sequence.rs",
    "src/schema_change/steps.rs",
    "src/catalog/fingerprint.rs",
    "src/catalog/fit.rs",
    "src/catalog/leaves.rs",
    "src/catalog/replica_identity.rs",
    "src/apply_plan/coalesce",
    "src/apply_plan/merge.rs",
    "src/apply_plan/net_effect.rs",
    "src/apply_plan/side_effects.rs",
    "src/catalog/table_order.rs",
    "src/apply_plan/table_activity.rs",
    "src/apply_plan/sets.rs",
    "src/catalog/shape.rs",
    "src/apply_plan/row_by_row.rs",
    "src/apply_plan/target.rs",
    "src/progress",
    "src/session/copy.rs",
    "src/session/pipelined_request.rs",
    "src/source/parallel_apply.rs",
    "src/source/relation_tracker.rs",
    "src/source/marks.rs",
    "src/source/step_router.rs",
    "src/source/ctid_ranges.rs",
    "src/source/schema_looks.rs",
    "src/source/snapshot.rs",
    "src/source/step_channel.rs",
    "src/source/stream.rs",
    "src/transaction",
    "src/wire",
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["check"] => check(),
        ["list"] => list(EXACTNESS_PATH),
        ["list", place] => list(&[place]),
        [] => try_mutants("200", "1"),
        [count] => try_mutants(count, "1"),
        [count, seed] => try_mutants(count, seed),
        _ => Err("usage: headwater-mutants [COUNT [SEED]] | check | list [PLACE]".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> Result<PathBuf, String> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.join("../..").canonicalize().map_err(|error| format!("{}: {error}", crate_dir.display()))
}

fn check() -> Result<(), String> {
    let root = root()?;
    let all = mutate::collect(&root, EXACTNESS_PATH)?;
    Survived::read(&root.join("tests/mutants/survived.txt"), &all)?;
    Equivalent::read(&root.join("tests/mutants/equivalent.txt"), &all).map(drop)
}

fn list(places: &[&str]) -> Result<(), String> {
    for mutant in mutate::collect(&root()?, places)? {
        println!("{} (line {})", mutant.name, mutant.line);
    }
    Ok(())
}

fn try_mutants(count: &str, seed: &str) -> Result<(), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text}: a whole number is expected"));
    let (count, seed) = (number(count)?, number(seed)?);
    let root = root()?;
    let all = mutate::collect(&root, EXACTNESS_PATH)?;
    let survived = Survived::read(&root.join("tests/mutants/survived.txt"), &all)?;
    let equivalent = Equivalent::read(&root.join("tests/mutants/equivalent.txt"), &all)?;
    let wanted = |mutant: &Mutant| survived.holds(&mutant.name);
    let drawn = mutate::draw(&all, wanted, count as usize, seed);
    println!(
        "{} mutants in all; {} are tried: {count} drawn by seed {seed}, and those that once survived",
        all.len(),
        drawn.len()
    );
    let tree = tree::Tree::build(&root, drawn)?;
    println!("{} of them compile", tree.mutants.len());
    run::all(&tree, &equivalent)
}
