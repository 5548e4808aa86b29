//! Whether a test fails while a mutant is alive.
//!
//! Tests without a server come first. Each runs once with no mutant alive, alone, and leaves the list of the mutants that it
//! reaches; a mutant is then tried by the tests that reach it, the quick ones first, until one fails. A mutant that survives them
//! is tried by whole modules of the live tests: first those that [`LIKELY`] names for its file, then the others, the quick ones
//! first. What is known after each run is written down (`state.rs`).
//!
//! A live test can also fail because the machine is slow. So a test that has failed runs again alone, and kills only if it fails
//! again with the mutant, and passes without it. A run that takes too long is judged in the same way.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::known::Equivalent;
use crate::mutate::{self, Mutant};
use crate::state::State;
use crate::tree::Tree;

/// Live modules that look at other things than rows: pages, packages, words, sign-in; and those that need other servers or an hour.
const NOT_OF_THE_PATH: &str = "attacks certificates check check_refused check_tells check_warns docs every_wait failover first_hour
    golden hostile http_clients impostor init large links logs metrics page pooler printable prometheus reconnects security settings
    starved startups status support systemd takeover";

/// The live modules that are most likely to fail for a mutant, by the beginning of its file's name below src. The first entry that
/// fits counts. What is missing here costs time and nothing else.
const LIKELY: &[(&str, &str)] = &[
    ("destination/apply/parallel_apply", "ahead"),
    ("destination/apply/schema_follower", "ddl columns evolving"),
    ("destination/apply/applier", "conflicts errors"),
    ("destination/apply/failure", "conflicts errors"),
    ("destination/apply/conflict_report", "conflicts errors"),
    ("destination/apply", "shapes values truncate identities"),
    ("destination/compare", "handover resnapshot resync"),
    ("destination/fences", "verify"),
    ("destination/fingerprints", "rewrites swaps"),
    ("destination/publish", "resnapshot handover snapshot"),
    ("destination/resnapshots", "resnapshot handover"),
    ("destination/staging", "resnapshot handover snapshot"),
    ("destination", "leadership crash"),
    ("apply_core/apply_loop", "basics ahead verify"),
    ("apply_core", "ahead"),
    ("apply_worker/parallel_apply", "ahead"),
    ("apply_worker/apply_loop", "basics ahead verify"),
    ("preflight/resync_requests", "resnapshot verify"),
    ("verification/fence", "verify"),
    ("preflight/fingerprints", "rewrites swaps suspended"),
    ("preflight/enum_labels", "labels"),
    ("preflight/suspended_tables", "suspended"),
    ("table_sync", "handover resnapshot suspended snapshot"),
    ("verification", "verify verify_truth differences verify_states"),
    ("schema_change", "ddl columns evolving labels"),
    ("catalog/fingerprint", "rewrites swaps suspended tables"),
    ("catalog/fit", "types columns"),
    ("catalog/leaves", "leaves rewrites"),
    ("catalog/replica_identity", "identities"),
    ("progress", "idle crash"),
    ("session/copy", "snapshot"),
    ("source/parallel_apply", "ahead"),
    ("source/relation_tracker", "ddl evolving streams"),
    ("source/marks", "handover ddl"),
    ("source/step_router", "ahead streams"),
    ("source/schema_looks", "marks"),
    ("source/snapshot", "snapshot settle"),
    ("source/ctid_ranges", "snapshot"),
    ("source", "streams basics"),
    ("transaction", "streams ahead"),
    ("wire", "streams truncate"),
];

/// No further suite is begun for a mutant that suites have been run for this long.
const LIMIT_PER_MUTANT: Duration = Duration::from_secs(600);

/// One test, or the tests of one module of the live tests.
struct Suite {
    name: String,
    program: PathBuf,
    is_live: bool,
    tests: BTreeSet<String>,
}

/// A suite without a test that fails is given this long, until it is known how long it takes.
const LIVE_MAX: Duration = Duration::from_secs(900);

#[derive(PartialEq)]
enum Verdict {
    Passed,
    /// The first test that failed.
    Failed(String),
    TooSlow,
}

/// Tries every mutant of the tree that is neither killed nor equivalent, and prints what became of them.
pub fn all(tree: &Tree, equivalent: &Equivalent) -> Result<(), String> {
    let mut state = State::read(&tree.dir.with_file_name("state.json"))?;
    let (mut live, mut unit): (Vec<Suite>, Vec<Suite>) = suites(tree)?.into_iter().partition(|suite| suite.is_live);
    for suite in &unit {
        reach(tree, suite, &mut state)?;
    }
    let seconds =
        |state: &State, suite: &Suite| state.reach(&suite.name).map_or(suite.tests.len() as f64, |reach| reach.seconds);
    unit.retain(|suite| state.reach(&suite.name).is_some());
    unit.sort_by(|a, b| seconds(&state, a).total_cmp(&seconds(&state, b)));
    live.sort_by_key(|suite| suite.tests.len());
    for suites in [unit, live] {
        // By the hash of their names: wherever a run is stopped, what was tried until then was drawn by chance.
        let mut mutants: Vec<&Mutant> =
            tree.mutants.iter().filter(|mutant| equivalent.reason(&mutant.name).is_none()).collect();
        mutants.sort_by_key(|mutant| mutate::hash(0, &mutant.name));
        for mutant in mutants {
            try_one(tree, mutant, &suites, &mut state)?;
        }
    }
    report(tree, &state, equivalent);
    Ok(())
}

/// Tries a mutant by these suites, the likely ones first, until it is killed.
fn try_one(tree: &Tree, mutant: &Mutant, suites: &[Suite], state: &mut State) -> Result<(), String> {
    let file = mutant.file.strip_prefix("src").unwrap_or(&mutant.file).to_string_lossy();
    let likely = LIKELY.iter().find(|(files, _)| file.starts_with(files)).map_or("", |(_, modules)| modules);
    let likely: Vec<String> = likely.split_whitespace().map(|module| format!("live {module}")).collect();
    let mut suites: Vec<&Suite> = suites.iter().collect();
    suites.sort_by_key(|suite| likely.iter().position(|name| *name == suite.name).unwrap_or(likely.len()));
    let is_left = |state: &State, suite: &Suite| {
        let is_reached = state.reach(&suite.name).is_none_or(|reach| reach.mutants.contains(&mutant.name));
        is_reached && !state.has_survived(&mutant.name, &suite.name, &suite.tests)
    };
    suites.retain(|suite| is_left(state, suite));
    // Tests without a server go together, by program: they take less time than the start of a process for each.
    let (live, unit): (Vec<&Suite>, Vec<&Suite>) = suites.into_iter().partition(|suite| suite.is_live);
    let programs: BTreeSet<&PathBuf> = unit.iter().map(|suite| &suite.program).collect();
    let mut groups: Vec<Vec<&Suite>> = programs
        .iter()
        .map(|program| unit.iter().filter(|suite| suite.program == **program).copied().collect())
        .collect();
    groups.extend(live.into_iter().map(|suite| vec![suite]));
    for group in groups {
        if state.is_killed(&mutant.name) || state.seconds(&mutant.name) > LIMIT_PER_MUTANT {
            break;
        }
        let began = Instant::now();
        match killed_by(tree, &group, mutant, state) {
            Some(by) => {
                println!("killed by {by}: {} (line {})", mutant.name, mutant.line);
                state.kill(&mutant.name, by);
            }
            None => {
                for suite in &group {
                    state.survive(&mutant.name, &suite.name, &suite.tests, began.elapsed() / group.len() as u32);
                }
            }
        }
        state.write()?;
    }
    Ok(())
}

/// What kills this mutant in these suites of one program.
fn killed_by(tree: &Tree, suites: &[&Suite], mutant: &Mutant, state: &State) -> Option<String> {
    let seconds: Option<f64> = suites.iter().map(|suite| Some(state.reach(&suite.name)?.seconds)).sum();
    let bound = seconds.map_or(LIVE_MAX, |seconds| Duration::from_secs_f64(seconds) * 5 + Duration::from_secs(60));
    let suite = &Suite {
        name: suites[0].name.clone(),
        program: suites[0].program.clone(),
        is_live: suites[0].is_live,
        tests: suites.iter().flat_map(|suite| suite.tests.iter().cloned()).collect(),
    };
    let with = |test: Option<&str>| run(&tree.dir, suite, test, Some(mutant.number), None, bound);
    let passes_without = |test: Option<&str>| run(&tree.dir, suite, test, None, None, bound) == Verdict::Passed;
    match with(None) {
        Verdict::Passed => None,
        Verdict::Failed(test) if !suite.is_live => Some(test),
        Verdict::Failed(test) => {
            let fails_again = with(Some(&test)) != Verdict::Passed;
            (fails_again && passes_without(Some(&test))).then_some(test)
        }
        Verdict::TooSlow => passes_without(None).then(|| format!("{}, which takes too long", suite.name)),
    }
}

fn report(tree: &Tree, state: &State, equivalent: &Equivalent) {
    let (mut killed, mut named) = (0, 0);
    for mutant in &tree.mutants {
        if state.is_killed(&mutant.name) {
            killed += 1;
        } else if equivalent.reason(&mutant.name).is_some() {
            named += 1;
        } else {
            println!("survived {} suites: {} (line {})", state.survived_suites(&mutant.name), mutant.name, mutant.line);
        }
    }
    let counted = tree.mutants.len() - named;
    let share = if counted == 0 { 100.0 } else { f64::from(killed) * 100.0 / counted as f64 };
    println!("{} mutants, {named} of them equivalent; {killed} of {counted} killed ({share:.1} %)", tree.mutants.len());
}

/// Finds out what a suite reaches, by a run with no mutant alive, unless it is known. A suite that does not pass is not used.
fn reach(tree: &Tree, suite: &Suite, state: &mut State) -> Result<(), String> {
    let names: BTreeSet<String> = tree.mutants.iter().map(|mutant| mutant.name.clone()).collect();
    if let Some(reach) = state.reach(&suite.name)
        && reach.tests == suite.tests
        && state.looked_for(reach).is_some_and(|looked_for| names.is_subset(looked_for))
    {
        return Ok(());
    }
    let left = tree.dir.with_file_name("reached");
    for _ in 0..2 {
        if left.exists() {
            fs::remove_dir_all(&left).map_err(|error| format!("{}: {error}", left.display()))?;
        }
        fs::create_dir_all(&left).map_err(|error| format!("{}: {error}", left.display()))?;
        // Services may run as another user.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&left, everybody).map_err(|error| format!("{}: {error}", left.display()))?;
        let began = Instant::now();
        match run(&tree.dir, suite, None, None, Some(&left), Duration::from_secs(900)) {
            Verdict::Passed => {
                let files = fs::read_dir(&left).map_err(|error| format!("{}: {error}", left.display()))?;
                let numbers: BTreeSet<u32> =
                    files.filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok()).collect();
                let reached = tree.mutants.iter().filter(|mutant| numbers.contains(&mutant.number));
                let mutants = reached.map(|mutant| mutant.name.clone()).collect();
                let seconds = began.elapsed().as_secs_f64();
                state.set_reach(&suite.name, (seconds, mutants, suite.tests.clone()), names);
                state.write()?;
                return Ok(());
            }
            Verdict::Failed(test) => println!("{test} fails with no mutant alive"),
            Verdict::TooSlow => println!("{} takes too long with no mutant alive", suite.name),
        }
    }
    println!("{} is not used: it does not pass", suite.name);
    state.forget_reach(&suite.name);
    Ok(())
}

fn suites(tree: &Tree) -> Result<Vec<Suite>, String> {
    let mut suites = Vec::new();
    for (name, program) in &tree.programs {
        let listed = Command::new(program).arg("--list").current_dir(&tree.dir).output();
        let listed = listed.map_err(|error| format!("{}: {error}", program.display()))?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let tests: BTreeSet<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        let mut suite = |suite: &str, is_live: bool, tests: BTreeSet<String>| {
            suites.push(Suite { name: format!("{name} {suite}"), program: program.clone(), is_live, tests });
        };
        if name != "live" {
            tests.into_iter().map(str::to_owned).for_each(|test| suite(&test, false, [test.clone()].into()));
            continue;
        }
        let modules: BTreeSet<&str> =
            tests.iter().filter_map(|test| test.split_once("::")).map(|(module, _)| module).collect();
        for module in
            modules.into_iter().filter(|module| !NOT_OF_THE_PATH.split_whitespace().any(|other| other == *module))
        {
            let of_module = tests.iter().filter(|test| test.split_once("::").is_some_and(|(of, _)| of == module));
            suite(module, true, of_module.map(|&test| test.to_owned()).collect());
        }
    }
    Ok(suites)
}

/// Runs a suite, or one test of it, until a test fails or `bound` has passed.
fn run(
    dir: &Path,
    suite: &Suite,
    only: Option<&str>,
    mutant: Option<u32>,
    reached: Option<&Path>,
    bound: Duration,
) -> Verdict {
    let mut command = Command::new(&suite.program);
    command.args(["--test-threads", "3", "--include-ignored", "--exact"]).current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::null());
    command.env("HEADWATER_SCHEDULES", "500");
    match only {
        Some(test) => command.arg(test),
        None => command.args(&suite.tests),
    };
    if let Some(mutant) = mutant {
        command.env("HEADWATER_MUTANT", mutant.to_string());
    }
    if let Some(reached) = reached {
        command.env("HEADWATER_MUTANTS_REACHED", reached);
    }
    let Ok(mut child) = command.spawn() else { return Verdict::Failed("nothing: it did not start".to_owned()) };
    let out = child.stdout.take().expect("it is piped");
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let until = Instant::now() + bound;
    let verdict = loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(test) = line.strip_suffix(" ... FAILED") {
                    break Verdict::Failed(test.trim_start_matches("test ").to_owned());
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => break Verdict::TooSlow,
            Err(mpsc::RecvTimeoutError::Disconnected) => match child.wait() {
                Ok(status) if status.success() => break Verdict::Passed,
                _ => break Verdict::Failed(format!("{}, which ended early", suite.name)),
            },
        }
    };
    if verdict != Verdict::Passed {
        // A cluster has a keeper that removes it when the program has ended; services are ended here.
        child.kill().and_then(|()| child.wait().map(drop)).unwrap_or_default();
        if suite.is_live {
            end_services(dir);
        }
    }
    verdict
}

/// Ends the services of this tree's build that a killed test left behind.
fn end_services(dir: &Path) {
    let service = dir.with_file_name("target").join("debug/headwater");
    for entry in fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok) {
        let Some(pid) =
            entry.file_name().to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).map(str::to_owned)
        else {
            continue;
        };
        if fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == service) {
            Command::new("kill").args(["-9", &pid]).status().map(drop).unwrap_or_default();
        }
    }
}
