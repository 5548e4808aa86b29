//! What earlier runs have found, in `target/mutants/state.json`: the reach of each suite, and what became of each mutant.
//!
//! Mutants are kept by name and suites with their tests' names, so a new test makes its suite run again for the mutants that are
//! alive, and nothing else. A test or a function that changed under its name is not noticed: remove the file for a full run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// One run of a suite with no mutant alive.
pub struct Reach {
    pub seconds: f64,
    pub tests: BTreeSet<String>,
    /// The mutants that it reached.
    pub mutants: BTreeSet<String>,
    /// Which of the state's trees it was run in.
    tree: usize,
}

pub struct State {
    path: PathBuf,
    reaches: BTreeMap<String, Reach>,
    /// The mutants that each tree held.
    trees: Vec<BTreeSet<String>>,
    /// By which test each mutant was killed.
    killed: BTreeMap<String, String>,
    survived: BTreeMap<String, Survived>,
}

#[derive(Default)]
struct Survived {
    seconds: f64,
    /// Suites that passed while the mutant was alive, and their tests.
    suites: BTreeMap<String, BTreeSet<String>>,
}

impl State {
    pub fn read(path: &Path) -> Result<State, String> {
        let (reaches, trees, killed, survived) = Default::default();
        let mut state = State { path: path.to_owned(), reaches, trees, killed, survived };
        if !path.exists() {
            return Ok(state);
        }
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        for (suite, reach) in members(&value["reaches"]) {
            let seconds = reach["seconds"].as_f64().unwrap_or(60.0);
            let tree = reach["tree"].as_u64().and_then(|tree| usize::try_from(tree).ok()).unwrap_or(usize::MAX);
            let (tests, mutants) = (texts(&reach["tests"]), texts(&reach["mutants"]));
            state.reaches.insert(suite.clone(), Reach { seconds, tests, mutants, tree });
        }
        state.trees = value["trees"].as_array().into_iter().flatten().map(texts).collect();
        for (mutant, test) in members(&value["killed"]) {
            state.killed.insert(mutant.clone(), test.as_str().unwrap_or_default().to_owned());
        }
        for (mutant, survived) in members(&value["survived"]) {
            let suites = members(&survived["suites"]).map(|(suite, tests)| (suite.clone(), texts(tests))).collect();
            let seconds = survived["seconds"].as_f64().unwrap_or(0.0);
            state.survived.insert(mutant.clone(), Survived { seconds, suites });
        }
        Ok(state)
    }

    pub fn write(&self) -> Result<(), String> {
        let reaches: BTreeMap<&String, Value> = self
            .reaches
            .iter()
            .map(|(suite, reach)| {
                let Reach { seconds, tests, mutants, tree } = reach;
                (suite, json!({ "seconds": seconds, "tests": tests, "mutants": mutants, "tree": tree }))
            })
            .collect();
        let survived: BTreeMap<&String, Value> = self
            .survived
            .iter()
            .map(|(mutant, survived)| (mutant, json!({ "seconds": survived.seconds, "suites": survived.suites })))
            .collect();
        let text =
            json!({ "reaches": reaches, "trees": self.trees, "killed": self.killed, "survived": survived }).to_string();
        // Whole or not at all: a run can be interrupted.
        let new = self.path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|error| format!("{}: {error}", self.path.display()))
    }

    pub fn reach(&self, suite: &str) -> Option<&Reach> {
        self.reaches.get(suite)
    }

    /// The mutants that were looked for when a suite was run.
    pub fn looked_for(&self, reach: &Reach) -> Option<&BTreeSet<String>> {
        self.trees.get(reach.tree)
    }

    pub fn set_reach(
        &mut self,
        suite: &str,
        (seconds, mutants, tests): (f64, BTreeSet<String>, BTreeSet<String>),
        looked_for: BTreeSet<String>,
    ) {
        let tree = self.trees.iter().position(|tree| *tree == looked_for).unwrap_or_else(|| {
            self.trees.push(looked_for);
            self.trees.len() - 1
        });
        let reach = Reach { seconds, tests, mutants, tree };
        self.reaches.insert(suite.to_owned(), reach);
    }

    pub fn forget_reach(&mut self, suite: &str) {
        self.reaches.remove(suite);
    }

    pub fn is_killed(&self, mutant: &str) -> bool {
        self.killed.contains_key(mutant)
    }

    pub fn kill(&mut self, mutant: &str, by: String) {
        self.survived.remove(mutant);
        self.killed.insert(mutant.to_owned(), by);
    }

    pub fn survive(&mut self, mutant: &str, suite: &str, tests: &BTreeSet<String>, elapsed: Duration) {
        let survived = self.survived.entry(mutant.to_owned()).or_default();
        survived.seconds += elapsed.as_secs_f64();
        survived.suites.insert(suite.to_owned(), tests.clone());
    }

    pub fn has_survived(&self, mutant: &str, suite: &str, tests: &BTreeSet<String>) -> bool {
        self.survived.get(mutant).is_some_and(|survived| survived.suites.get(suite) == Some(tests))
    }

    pub fn survived_suites(&self, mutant: &str) -> usize {
        self.survived.get(mutant).map_or(0, |survived| survived.suites.len())
    }

    /// How long suites have run for a mutant that is alive.
    pub fn seconds(&self, mutant: &str) -> Duration {
        self.survived.get(mutant).map_or(Duration::ZERO, |survived| Duration::from_secs_f64(survived.seconds))
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn texts(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}
