//! The two lists of mutants that are kept with the sources: those that once survived, and those that no test can kill.
//!
//! A line that does not begin with a space names a mutant. In `equivalent.txt` indented lines below it give the reason. Lines that
//! begin with `#` are comments.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::mutate::Mutant;

/// Mutants that once survived: every run tries them, whatever it draws.
pub struct Survived(BTreeSet<String>);

impl Survived {
    pub fn read(path: &Path, all: &[Mutant]) -> Result<Survived, String> {
        Ok(Survived(entries(path, all)?.into_keys().collect()))
    }

    pub fn holds(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// Mutants that behave as the original does, with the reason.
pub struct Equivalent(BTreeMap<String, String>);

impl Equivalent {
    pub fn read(path: &Path, all: &[Mutant]) -> Result<Equivalent, String> {
        let reasons = entries(path, all)?;
        match reasons.iter().find(|(_, reason)| reason.is_empty()) {
            Some((name, _)) => Err(format!("{}: no reason is given below {name}", path.display())),
            None => Ok(Equivalent(reasons)),
        }
    }

    pub fn reason(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

fn entries(path: &Path, all: &[Mutant]) -> Result<BTreeMap<String, String>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let known: BTreeSet<&str> = all.iter().map(|mutant| mutant.name.as_str()).collect();
    let mut entries: BTreeMap<String, String> = BTreeMap::new();
    let (mut last, mut unknown) = (None, Vec::new());
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if !line.starts_with(' ') {
            if !known.contains(line) {
                unknown.push(line);
            }
            entries.insert(line.to_owned(), String::new());
            last = Some(line);
            continue;
        }
        let name = last.ok_or_else(|| format!("{}: a reason stands before the first name", path.display()))?;
        let reason = entries.get_mut(name).expect("it was put in");
        let space = if reason.is_empty() { "" } else { " " };
        reason.push_str(&format!("{space}{}", line.trim()));
    }
    match unknown.as_slice() {
        [] => Ok(entries),
        lines => Err(format!("{}: these name no mutant:\n{}", path.display(), lines.join("\n"))),
    }
}
