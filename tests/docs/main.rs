//! The documents tell the truth: what is printed from the code is compared with what is committed.
//!
//! Every message that an operator can read has its entry in docs/troubleshooting.md, and no entry is left of one that is gone.
//!
//! `make docs` runs these tests with HEADWATER_WRITE_DOCS=1, which writes the pages instead.

mod book;
mod reference;

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Compares a page with what the code prints, or writes it.
fn printed_from_the_code(path: &str, text: &str) {
    if std::env::var_os("HEADWATER_WRITE_DOCS").is_some() {
        fs::write(path, text).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let committed = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert!(committed == text, "{path} is not what the code prints; run `make docs`");
}

/// Every relative link of a page, with the page's own directory.
fn links(page: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in text.split("](").skip(1) {
        let Some((link, _)) = part.split_once(')') else { continue };
        let path = link.split('#').next().unwrap_or_default();
        if !path.is_empty() && !link.contains("://") {
            found.push(page.parent().unwrap_or(Path::new("")).join(path).display().to_string());
        }
    }
    found
}

/// A path without `.` and `..` in it.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            Component::Normal(_) | Component::RootDir | Component::Prefix(_) => plain.push(component),
        }
    }
    plain
}

/// The committed pages: those of the root, and all below docs/.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(".").expect("the repository") {
        let path = PathBuf::from(entry.expect("an entry").file_name());
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    let mut open = vec![PathBuf::from("docs")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("docs") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

#[test]
fn the_configuration_page_is_printed_from_the_settings() {
    printed_from_the_code("docs/configuration.md", &headwater::config::reference());
}

#[test]
fn every_link_between_the_pages_leads_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for link in links(&page, &text) {
            if !Path::new(&link).exists() {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

/// All test code, as text: the tests' own files, and the sources with their unit tests.
fn tests() -> String {
    let mut text = String::new();
    let mut open: Vec<std::path::PathBuf> = vec!["tests".into(), "src".into()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&fs::read_to_string(&path).expect("a test"));
            }
        }
    }
    text
}

/// The rows of a page's table behind a heading; the last cell of each names a test, or is empty where `exempt` says so.
fn rows_name_tests(page: &str, heading: &str, rows_min: usize, exempt: impl Fn(&str) -> bool) {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
    let (_, table) = text.split_once(heading).unwrap_or_else(|| panic!("{page} has no {heading}"));
    let tests = tests();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= rows_min, "the table of {page} has {} rows", rows.len());
    for row in rows {
        let test = row.trim_end().trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        let name = test.split('`').nth(1).unwrap_or_default().trim_end_matches('…');
        let known = exempt(row) || (!name.is_empty() && tests.contains(&format!("fn {name}")));
        assert!(known, "no test of the name {name:?} for the row: {row}");
    }
}

#[test]
fn every_test_that_the_crash_table_names_exists() {
    let is_same = |row: &str| {
        row.trim_end_matches([' ', '|']).rsplit('|').next().is_some_and(|test| test.trim().starts_with("same"))
    };
    rows_name_tests("ARCHITECTURE.md", "## Crash table", 12, is_same);
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    rows_name_tests("SECURITY.md", "## What each can do and cannot do", 20, |row| {
        row.contains("**can** send wrong rows")
    });
}

/// A source file without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

/// The string literals of a source file, as a reader sees them: joined lines, and `…` for what is put in.
fn literals(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for line in code.split_inclusive('\n').scan(0, |at, line| {
        let start = *at;
        *at += line.len();
        Some((start, line))
    }) {
        let (start, line) = line;
        if line.trim_start().starts_with("//") {
            continue;
        }
        // Literals may begin on this line and end on a later one.
        let mut at = start;
        while let Some(open) = code[at..start + line.len()].find('"').map(|found| at + found) {
            let mut end = open + 1;
            let bytes = code.as_bytes();
            while end < bytes.len() && bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            found.push((open, shown(&code[open + 1..end.min(code.len())])));
            at = end + 1;
            if at >= start + line.len() {
                break;
            }
        }
    }
    found
}

/// What a reader sees of a format string.
fn shown(literal: &str) -> String {
    let mut text = String::new();
    let mut chars = literal.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                Some('n') => text.push('\n'),
                Some(other) => text.push(other),
                None => {}
            },
            '{' if chars.peek() != Some(&'{') => {
                while chars.next().is_some_and(|c| c != '}') {}
                text.push('…');
            }
            c => text.push(c),
        }
    }
    text
}

fn sources(dir: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("src") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path.display().to_string()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Where messages are no error of the service: what is said to the one who has just typed it, or explains itself.
const SELF_EXPLAINED: &[&str] =
    &["src/commands/", "src/pg/", "src/maintenance/check/", "src/telemetry/facts", "src/config/"];

/// Broken invariants, not an operator's matter: the text asks to report them.
const NOT_AN_OPERATORS: &[&str] = &[
    "the fence was refused",
    "the dead letter's transaction was rolled back",
    "part … of the dead letter with … cannot be read: …",
    "the snapshot was published, but no position is stored",
    "a temporary slot's name is not one",
    "the servers' answers to a comparison do not fit together",
    "the stream broke off",
    "the service ended before the fence was made",
    "the request for a fence was dropped by the service",
    "another instance has gone on while rows were being repaired",
    "the spool's thread has ended",
    // Decided and carried out by headwater itself, within the second.
    "an enum has got a label at the source: it is added, and the stream started again",
    "table … has changed so that its values travel in another form: the stream is started again",
    "the transaction with commit_lsn … is applied again, change by change: …",
    // Why a stream is left to its commit, in a debug line.
    "too little of it may be applied yet",
    "a table is being changed",
    "foreign keys and triggers act",
    "triggers act on a table of it",
    "it changes rows of a table without a key",
    "it has a TRUNCATE",
    "it is to be skipped",
    "a snapshot holds a part of it",
    "a table was described twice in it, and may have changed",
    "a table is not what it was",
    "it was rolled back",
    "a part of it was rolled back",
    "the live stream may be waiting for it",
    "nothing more of it has come for a minute",
    "apply is to stand still",
    "the stream changes a table",
    "no second session can be like the leader's",
    "its session has failed",
    "the stream ends",
];

/// Whether a heading is a message, where each `…` of the heading stands for anything.
fn covers(heading: &str, message: &str) -> bool {
    let mut parts = heading.split('…');
    let Some(mut rest) = parts.next().and_then(|first| message.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

fn headings() -> Vec<String> {
    let page = fs::read_to_string("docs/troubleshooting.md").expect("docs/troubleshooting.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
    headings.map(str::to_owned).collect()
}

#[test]
fn every_message_has_its_entry_in_troubleshooting() {
    let headings = headings();
    let mut messages = 0;
    let mut missing = Vec::new();
    for path in sources("src") {
        let name = path.display().to_string();
        if SELF_EXPLAINED.iter().any(|dir| name.starts_with(dir)) {
            continue;
        }
        // Bytes that are not understood have one entry for all of them, in the page's words.
        let of_errors = !name.starts_with("src/wire/") && !name.starts_with("src/transaction/");
        let code = code(&path);
        for (at, text) in literals(&code) {
            let before = code[..at].trim_end().trim_end_matches("format!(").trim_end();
            let is_message = before.ends_with("ErrorReport::new(") || (of_errors && before.ends_with("#[error("));
            // `source: …` passes on what has an entry of its own.
            let says = text.chars().filter(char::is_ascii_alphabetic).count() > 12;
            let passes_on = ["destination: …", "schema change: …", "…: …"].contains(&text.as_str());
            if !is_message || !says || passes_on || NOT_AN_OPERATORS.contains(&text.as_str()) {
                continue;
            }
            messages += 1;
            let known =
                headings.iter().any(|heading| covers(heading, &text) || covers(&format!("{heading}: …"), &text));
            if !known {
                missing.push(format!("{name}: {text}"));
            }
        }
    }
    assert!(messages > 80, "only {messages} messages were found in the code");
    assert!(missing.is_empty(), "docs/troubleshooting.md has no entry for:\n{}", missing.join("\n"));
}

#[test]
fn every_entry_of_troubleshooting_is_a_message_of_the_code() {
    let mut texts: Vec<String> = Vec::new();
    for path in sources("src") {
        texts.extend(literals(&code(&path)).into_iter().map(|(_, text)| text));
    }
    // Put together from two: the publication and what the bookkeeping remembers; the slot, whose process may be known.
    let composed = |heading: &str| {
        let parts: Vec<&str> = heading.split('…').map(str::trim).filter(|part| part.len() > 8).collect();
        parts.iter().all(|part| texts.iter().any(|text| text.contains(part)))
    };
    let stale: Vec<String> = headings()
        .into_iter()
        .filter(|heading| !texts.contains(heading))
        .filter(|heading| {
            !(heading.starts_with("publication … has ") || heading.starts_with("conflict: ")) || !composed(heading)
        })
        .collect();
    assert!(stale.is_empty(), "no such message is in the code:\n{}", stale.join("\n"));
}

#[test]
fn every_entry_of_troubleshooting_says_what_to_do() {
    let page = fs::read_to_string("docs/troubleshooting.md").expect("docs/troubleshooting.md");
    let entries = page.split("\n### ").skip(1).filter_map(|entry| entry.split_once('\n'));
    let silent = entries.filter(|(_, text)| {
        let text = text.split("\n## ").next().unwrap_or_default();
        !text.contains("*Do*: ") || text.contains("*Do*: the same") || text.trim_start().starts_with("The same")
    });
    let silent: Vec<&str> = silent.map(|(heading, _)| heading).collect();
    assert!(
        silent.is_empty(),
        "docs/troubleshooting.md: say why, and after *Do*: what to do, in\n{}",
        silent.join("\n")
    );
}

#[test]
fn every_sentence_of_what_is_refused_has_its_entry_in_troubleshooting() {
    let page = fs::read_to_string("docs/types.md").expect("docs/types.md");
    let (_, refused) = page.split_once("## What is refused").expect("the table");
    let rows: Vec<&str> = refused.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(rows.len() >= 10, "{rows:?}");
    let headings = headings();
    for row in rows {
        let sentence = row.rsplit('`').nth(1).expect("a sentence");
        assert!(
            headings.iter().any(|heading| heading == sentence),
            "docs/troubleshooting.md has no entry {sentence:?}"
        );
    }
}

/// The statements of the block of a page that bears this mark, each on one line and without comments.
fn statements_of(page: &str, mark: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
    let (_, rest) =
        text.split_once(&format!("<!-- run: {mark} -->")).unwrap_or_else(|| panic!("{page} has no block {mark:?}"));
    let block = rest.split("```").nth(1).expect("a block");
    let (_, lines) = block.split_once('\n').expect("its language");
    let lines: Vec<&str> = lines.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let words = lines.join(" ");
    let words: Vec<&str> = words.split_whitespace().collect();
    words.join(" ").split_inclusive(';').map(|statement| statement.trim().to_owned()).collect()
}

#[test]
fn the_roles_of_the_readme_are_those_of_the_page_about_roles() {
    for end in ["source", "destination"] {
        let readme = statements_of("README.md", &format!("{end}, as in docs/roles.md"));
        assert!(readme.len() >= 3, "{readme:?}");
        assert_eq!(readme, statements_of("docs/roles.md", end), "README.md and docs/roles.md, {end}");
    }
}

#[test]
fn each_providers_page_names_what_the_hints_name_and_grants_what_the_roles_need() {
    use headwater::pg::{Ident, Provider, logical_decoding_hint};
    let role = Ident::new("headwater_reader");
    let roles = statements_of("docs/roles.md", "source");
    let (create_role, grants) = roles.split_first().expect("statements");
    for (page, provider, setting) in [
        ("rds", Some(Provider::Rds), "rds.logical_replication"),
        ("cloud-sql", Some(Provider::CloudSql), "cloudsql.logical_decoding"),
        ("cloud-sql", Some(Provider::AlloyDb), "alloydb.logical_decoding"),
        ("azure", Some(Provider::Azure), "wal_level"),
        ("supabase", Some(Provider::Supabase), "wal_level"),
        ("neon", Some(Provider::Neon), "logical replication"),
        ("crunchy", None, "wal_level"),
    ] {
        let page = format!("docs/how-to/{page}.md");
        let text = fs::read_to_string(&page).expect("a provider's page");
        assert!(logical_decoding_hint(provider).contains(setting) && text.contains(setting), "{page}: {setting}");
        assert!(text.contains("*Looked up on 20"), "{page} says when its facts were looked up");
        let statements = statements_of(&page, "at the provider");
        assert!(statements.ends_with(grants), "{page}: {statements:?} and docs/roles.md: {grants:?}");
        let own = provider.and_then(|provider| provider.replication_statement(&role));
        let before = match (provider, own) {
            (None, _) => vec![create_role.clone()],
            (Some(_), Some(own)) => vec!["CREATE ROLE headwater_reader LOGIN;".to_owned(), own],
            (Some(_), None) => Vec::new(),
        };
        assert_eq!(statements[..statements.len() - grants.len()], before[..], "{page}");
    }
}
