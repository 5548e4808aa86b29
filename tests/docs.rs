//! The documents tell the truth: what is printed from the code is compared with what is committed.
//!
//! `make docs` runs these tests with HEADWATER_WRITE_DOCS=1, which writes the pages instead.

use std::fs;
use std::path::Path;

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

/// The committed pages.
fn pages() -> Vec<std::path::PathBuf> {
    let mut pages = vec!["README.md".into(), "ARCHITECTURE.md".into(), "CHANGELOG.md".into()];
    let mut open = vec![std::path::PathBuf::from("docs")];
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

#[test]
fn every_test_that_the_crash_table_names_exists() {
    let text = fs::read_to_string("ARCHITECTURE.md").expect("ARCHITECTURE.md");
    let (_, table) = text.split_once("## Crash table").expect("the crash table");
    let mut tests = String::new();
    for dir in ["tests", "tests/live"] {
        for entry in fs::read_dir(dir).expect("tests") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                tests.push_str(&fs::read_to_string(&path).expect("a test"));
            }
        }
    }
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 12, "the crash table has {} rows", rows.len());
    for row in rows {
        let test = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        let name = test.split('`').nth(1).unwrap_or_default().trim_end_matches('…');
        let known = test.starts_with("same") || (!name.is_empty() && tests.contains(&format!("fn {name}")));
        assert!(known, "no test of the name {name:?} for the row: {row}");
    }
}
