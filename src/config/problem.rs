//! What a configuration is read from, as arguments, and what is wrong with it, and where.
//!
//! Collected by every part of this module, so that an operator sees everything at once; shown by `commands`. No value of a setting that
//! may hold a password is shown.

use std::fmt;

use crate::pg::printable;

/// The process's environment, as the pure modules see it.
pub type Environment = std::collections::BTreeMap<String, String>;

/// A configuration file's name and text.
#[derive(Clone, Copy, Debug)]
pub struct FileText<'a> {
    /// The name as the operator gave it.
    pub name: &'a str,
    /// What it holds.
    pub text: &'a str,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// The built-in default.
    Default,
    /// A line of the configuration file, counted from 1.
    File {
        /// The file's name as the operator gave it.
        name: String,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::Default => f.write_str("default"),
            ValueOrigin::File { name, line } => write!(f, "{name}:{line}"),
            ValueOrigin::Environment { variable } => f.write_str(variable),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: ValueOrigin,
    /// The key, as `section.key`; empty when the file itself cannot be read as TOML.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, message) = (without_login(&self.key), without_login(&self.message));
        match (&self.place, key.as_str()) {
            (ValueOrigin::Default, key) => f.write_str(&printable(&format!("{key}: {message}"))),
            (place, "") => f.write_str(&printable(&format!("{place}: {message}"))),
            (place, key) => f.write_str(&printable(&format!("{place}: {key}: {message}"))),
        }
    }
}

/// The text without user and password of a URL in it: one may have got into the place of a key, a table or another value.
pub(crate) fn without_login(text: &str) -> String {
    let login = text.split_once("://").and_then(|(before, rest)| Some((before, rest.rsplit_once('@')?.1)));
    login.map_or_else(|| text.to_owned(), |(before, after)| format!("{before}://…@{after}"))
}

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
