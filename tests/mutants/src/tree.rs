//! A copy of the project that holds every drawn mutant, built once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::mutate::{self, Mutant};

/// Asked at every mutated place: is this mutant alive? Leaves a file for each place that was reached, where a run asks for that.
const MUTATION: &str = r#"//! Which mutant is alive.
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
static ALIVE: OnceLock<u32> = OnceLock::new();
static REACHED: OnceLock<Option<PathBuf>> = OnceLock::new();
static SEEN: [AtomicBool; 65536] = [const { AtomicBool::new(false) }; 65536];
#[allow(missing_docs)]
pub fn is(number: u32) -> bool {
    if !SEEN[number as usize].swap(true, Ordering::Relaxed)
        && let Some(dir) = REACHED.get_or_init(|| std::env::var_os("HEADWATER_MUTANTS_REACHED").map(PathBuf::from))
    {
        let _ = std::fs::write(dir.join(number.to_string()), "");
    }
    *ALIVE.get_or_init(|| std::env::var("HEADWATER_MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(0)) == number
}
"#;

/// The built copy.
pub struct Tree {
    pub dir: PathBuf,
    pub mutants: Vec<Mutant>,
    /// The programs of the tests, by target: `lib`, `ring`, `wire`, `live`.
    pub programs: BTreeMap<String, PathBuf>,
}

impl Tree {
    /// Copies what git does not ignore of `root` to target/mutants/tree, puts the mutants in and builds the tests. Mutants that
    /// do not compile are dropped.
    pub fn build(root: &Path, mut mutants: Vec<Mutant>) -> Result<Tree, String> {
        let dir = root.join("target/mutants/tree");
        // As they are now: the project may be worked on while this builds.
        let originals = originals(root, &mutants)?;
        let library = Path::new("src/lib.rs");
        copy(root, &dir, |file| file == library || originals.contains_key(file))?;
        let text = read(&root.join(library))?;
        write(&dir.join(library), &text.replacen("pub mod pg;", "pub mod mutation;\npub mod pg;", 1))?;
        write(&dir.join("src/mutation.rs"), MUTATION)?;
        loop {
            put_in(&originals, &dir, &mutants)?;
            match compile(&dir)? {
                Compiled::Programs(programs) => {
                    let list: String =
                        mutants.iter().map(|mutant| format!("{} {}\n", mutant.number, mutant.name)).collect();
                    write(&dir.with_file_name("numbers.txt"), &list)?;
                    return Ok(Tree { dir, mutants, programs });
                }
                Compiled::Refused(refused) => {
                    println!("{} do not compile", refused.len());
                    let before = mutants.len();
                    mutants.retain(|mutant| !refused.contains(&mutant.number));
                    if mutants.len() == before {
                        return Err("the copy does not compile, and no mutant is the cause".to_owned());
                    }
                }
            }
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes a file unless it says so already, so that cargo does not build it again.
fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let parent = path.parent().expect("a file lies in a directory");
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, text))
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn copy(root: &Path, dir: &Path, is_written: impl Fn(&Path) -> bool) -> Result<(), String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|error| error.to_string())?;
    for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (root.join(name), dir.join(name));
        if from.is_dir() || !from.exists() || is_written(Path::new(name)) {
            continue;
        }
        fs::create_dir_all(to.parent().expect("a file lies in a directory")).map_err(|error| error.to_string())?;
        let is_same = fs::read(&to).is_ok_and(|before| fs::read(&from).is_ok_and(|now| now == before));
        if !is_same {
            fs::copy(&from, &to).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    // Servers of other majors that were fetched.
    let servers = root.join("tests/.servers");
    if servers.exists() && !dir.join("tests/.servers").exists() {
        std::os::unix::fs::symlink(servers, dir.join("tests/.servers")).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The text of each file that holds mutants.
fn originals(root: &Path, mutants: &[Mutant]) -> Result<BTreeMap<PathBuf, String>, String> {
    let files: BTreeSet<&PathBuf> = mutants.iter().map(|mutant| &mutant.file).collect();
    files.into_iter().map(|file| Ok((file.clone(), read(&root.join(file))?))).collect()
}

fn put_in(originals: &BTreeMap<PathBuf, String>, dir: &Path, mutants: &[Mutant]) -> Result<(), String> {
    for (file, text) in originals {
        let mutants: Vec<&Mutant> = mutants.iter().filter(|mutant| mutant.file == *file).collect();
        write(&dir.join(file), &mutate::apply(text, &mutants))?;
    }
    Ok(())
}

enum Compiled {
    Programs(BTreeMap<String, PathBuf>),
    Refused(BTreeSet<u32>),
}

fn compile(dir: &Path) -> Result<Compiled, String> {
    let output = Command::new("cargo")
        .args(["test", "--no-run", "--lib", "--test", "simulation", "--test", "wire", "--test", "live"])
        .arg("--message-format=json")
        .env("CARGO_TARGET_DIR", dir.with_file_name("target"))
        .env("RUSTFLAGS", format!("{} -Awarnings", std::env::var("RUSTFLAGS").unwrap_or_default()))
        .current_dir(dir)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let (mut programs, mut refused) = (BTreeMap::new(), BTreeSet::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let target = &message["target"];
        if let (Some(program), Some(name)) = (message["executable"].as_str(), target["name"].as_str())
            && message["profile"]["test"] == true
        {
            let is_library = target["kind"][0] == "lib";
            programs.insert(if is_library { "lib" } else { name }.to_owned(), PathBuf::from(program));
        }
        if message["message"]["level"] == "error" {
            refused.append(&mut named_by(dir, &message["message"]));
        }
    }
    match output.status.success() {
        true => Ok(Compiled::Programs(programs)),
        false => Ok(Compiled::Refused(refused)),
    }
}

/// The mutants on the lines that an error points at.
fn named_by(dir: &Path, message: &Value) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for span in message["spans"].as_array().into_iter().flatten() {
        let (Some(file), Some(first), Some(last)) =
            (span["file_name"].as_str(), span["line_start"].as_u64(), span["line_end"].as_u64())
        else {
            continue;
        };
        let Ok(text) = fs::read_to_string(dir.join(file)) else { continue };
        for (number, line) in (1..).zip(text.lines()) {
            if (first..=last).contains(&number) {
                let parts = line.split("crate::mutation::is(").skip(1);
                found.extend(parts.filter_map(|part| part.split(')').next()?.parse::<u32>().ok()));
            }
        }
    }
    found
}
