//! What the demo prints.

use std::io::Write as _;

/// Prints a line of the demo's.
#[allow(clippy::print_stdout, reason = "the demo's output is its result")]
pub(crate) fn say(line: &str) {
    println!("{line}");
    // A pipe that nobody reads any more is nothing to stop for.
    let _ = std::io::stdout().flush();
}
