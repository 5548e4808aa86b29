//! Programs of the distribution that tests run beside the servers: Prometheus, a browser, a faked clock.
//!
//! `make test` installs them. Where there is no package for them a test says that it was left out, and why.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program of a name, or `None` after saying that the test is left out.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([unpacked().join("usr/bin")]);
    let found = dirs.map(|dir| dir.join(name)).find(|file| file.exists());
    if found.is_none() {
        println!("left out: {name} is not installed (make setup-tools gets it where there is a package)");
    }
    found
}

/// Where deploy/setup-tools unpacks.
fn unpacked() -> PathBuf {
    std::path::absolute("target/tools").unwrap_or_default()
}

/// The library that fakes clocks, or `None` after saying that the test is left out.
pub fn faketime() -> Option<PathBuf> {
    let machine = std::env::consts::ARCH;
    let library = format!("usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1");
    let found = [Path::new("/").join(&library), unpacked().join(&library)].into_iter().find(|file| file.exists());
    if found.is_none() {
        println!("left out: libfaketime is not installed (make setup-tools gets it where there is a package)");
    }
    found
}

/// Runs a program with this input; whether it succeeded, and all that it printed.
pub fn run(program: &Path, arguments: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("its input");
    let input = input.to_owned();
    let writing = std::thread::spawn(move || {
        let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    });
    let output = child.wait_with_output().expect("its end");
    writing.join().expect("its input is written");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}
