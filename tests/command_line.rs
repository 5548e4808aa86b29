//! What the operator types, without any server: arguments, configuration files, environment, exit codes.

use std::path::PathBuf;
use std::process::{Command, Output};

fn headwater(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("HEADWATER_") || name.starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(environment.iter().copied()).output().expect("headwater runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A configuration file, removed with the value.
struct File(PathBuf);

impl File {
    fn of(text: &str) -> File {
        let path =
            std::env::temp_dir().join(format!("headwater-{}-{:016x}.toml", std::process::id(), fastrand::u64(..)));
        std::fs::write(&path, text).expect("a configuration file");
        File(path)
    }

    fn run(&self, environment: &[(&str, &str)]) -> Output {
        headwater(&["run", "--config", self.0.to_str().expect("a path")], environment)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_wrong_file_is_refused_with_every_problem_line_key_and_nearest_name() {
    let file = File::of(
        "tabels = [\"a\"]\n\
         on_conflict = \"destination-wins\"\n\
         leader_timeout = \"5 parsecs\"\n\
         [source]\n\
         url = \"postgresql://replicator:s3cret@db/forum?sslmode=verify\"\n\
         slot = \"Not A Slot\"\n\
         [snapshot]\n\
         workers = -1\n\
         [htpp]\n\
         listen = \"here\"\n",
    );
    let output = file.run(&[]);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    for words in [
        ":1: tabels: unknown key; did you mean tables?",
        ":2: on_conflict: \"destination-wins\" is not one of stop, source-wins",
        ":3: leader_timeout:",
        ":5: source.url: sslmode \"verify\"",
        ":6: source.slot:",
        ":8: snapshot.workers:",
        "did you mean http",
        "destination.url: is required",
    ] {
        assert!(printed.contains(words), "{words:?} is missing in:\n{printed}");
    }
    assert!(!printed.contains("s3cret"), "the password is in:\n{printed}");
}

#[test]
fn the_environment_wins_over_the_file_and_is_checked_the_same_way() {
    let file = File::of(
        "on_conflict = \"stop\"\n[source]\nurl = \"postgresql://a@h/d\"\n[destination]\nurl = \"postgresql://b@h/e\"\n",
    );
    let output = file.run(&[("HEADWATER_ON_CONFLICT", "sometimes"), ("HEADWATER_HTTP_LISTEN", "nowhere")]);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    for words in ["HEADWATER_ON_CONFLICT", "HEADWATER_HTTP_LISTEN", "2 problems"] {
        assert!(printed.contains(words), "{words:?} is missing in:\n{printed}");
    }
}

#[test]
fn usage_errors_and_missing_files_end_with_2() {
    for arguments in [&["run", "--bogus"][..], &["rnu"], &[], &["run", "--config", "/nowhere/headwater.toml"]] {
        let output = headwater(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    }
    let output = headwater(&["run"], &[]);
    assert_eq!(output.status.code(), Some(2), "no configuration at all: {}", text(&output));
    assert!(text(&output).contains("HEADWATER_SOURCE_URL"), "{}", text(&output));
}

#[test]
fn help_names_every_command_and_fits_a_terminal() {
    let output = headwater(&["--help"], &[]);
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(0));
    for words in ["run", "demo", "--config", "HEADWATER_CONFIG", "Keeps local PostgreSQL tables equal"] {
        assert!(printed.contains(words), "{words:?} is missing in:\n{printed}");
    }
    let widest = printed.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "{widest:?} columns");
    assert_eq!(headwater(&["--version"], &[]).status.code(), Some(0));
}
