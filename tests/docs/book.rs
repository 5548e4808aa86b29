//! The documents as a book: the table of contents, the links and their anchors, and the HTML that `make docs-site` builds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{pages, plain};

/// What a link is made of: the file that it leads to, and the heading in it.
struct Link {
    target: PathBuf,
    anchor: Option<String>,
}

/// The relative links of a page, as paths from the repository's root.
fn relative_links(page: &Path, text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for part in text.split("](").skip(1) {
        let Some((link, _)) = part.split_once(')') else { continue };
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (path, anchor) =
            link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor.to_owned())));
        let target =
            if path.is_empty() { page.to_owned() } else { plain(&page.parent().unwrap_or(Path::new("")).join(path)) };
        found.push(Link { target, anchor });
    }
    found
}

/// The anchors of a page's headings, as mdBook and the usual forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let mut found = BTreeSet::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        let Some(heading) = line.strip_prefix('#').filter(|_| !in_code) else { continue };
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let id: String = heading
            .chars()
            .filter_map(|c| match c {
                _ if c.is_alphanumeric() || c == '_' || c == '-' => Some(c),
                ' ' => Some('-'),
                _ => None,
            })
            .collect();
        let times = seen.entry(id.clone()).or_default();
        found.insert(if *times == 0 { id } else { format!("{id}-{times}") });
        *times += 1;
    }
    found
}

#[test]
fn every_anchor_in_a_link_is_a_heading_of_the_page_that_it_leads_to() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for Link { target, anchor } in relative_links(&page, &text) {
            let (Some(anchor), true) = (anchor, target.extension().is_some_and(|extension| extension == "md")) else {
                continue;
            };
            let there = fs::read_to_string(&target).unwrap_or_default();
            if !anchors(&there).contains(&anchor) {
                broken.push(format!("{}: {}#{anchor}", page.display(), target.display()));
            }
        }
    }
    assert!(broken.is_empty(), "anchors that no heading has:\n{}", broken.join("\n"));
}

#[test]
fn every_page_stands_once_in_the_table_of_contents() {
    let summary = Path::new("docs/SUMMARY.md");
    let text = fs::read_to_string(summary).expect("docs/SUMMARY.md");
    let mut listed: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for Link { target, .. } in relative_links(summary, &text) {
        *listed.entry(target).or_default() += 1;
    }
    let mut wrong: Vec<String> = listed
        .iter()
        .filter(|(page, times)| **times != 1 || !page.exists())
        .map(|(page, times)| format!("{} is listed {times} times, and must exist", page.display()))
        .collect();
    let missing = pages().into_iter().filter(|page| page != summary && !listed.contains_key(page));
    wrong.extend(missing.map(|page| format!("{} is missing", page.display())));
    assert!(wrong.is_empty(), "docs/SUMMARY.md:\n{}", wrong.join("\n"));
}

/// The values of an attribute in HTML.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    html.split(start.as_str()).skip(1).filter_map(|part| part.split('"').next()).collect()
}

#[test]
#[ignore = "needs the built book: make docs-site"]
fn every_link_of_the_built_book_leads_somewhere() {
    let book = Path::new("target/docs-site/book");
    let mut html: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut open = vec![book.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("the built book") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "html") {
                html.insert(path.clone(), fs::read_to_string(&path).expect("a page"));
            }
        }
    }
    let mut broken = Vec::new();
    let mut links = 0;
    for (page, text) in &html {
        // The page for what is not found has a base of its own; the one for print, and the contents, repeat what others have.
        if ["404.html", "print.html", "toc.html"].iter().any(|name| page.ends_with(name)) {
            continue;
        }
        for link in attributes(text, "href").into_iter().chain(attributes(text, "src")) {
            if link.contains("://") || link.starts_with("data:") || link.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = path.split('?').next().unwrap_or_default();
            let target =
                if path.is_empty() { page.clone() } else { plain(&page.parent().expect("a directory").join(path)) };
            let there = html.get(&target);
            let has_anchor = anchor.is_empty()
                || there.is_some_and(|text| attributes(text, "id").iter().any(|id| percent_decoded(anchor) == **id));
            if !target.exists() || !has_anchor {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(links > 1_000, "only {links} links were found");
    broken.sort();
    broken.dedup();
    assert!(broken.is_empty(), "links of the book that lead nowhere:\n{}", broken.join("\n"));
}

/// A link's text without its % escapes.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::new();
    let mut index = 0;
    while index < bytes.len() {
        let escape = text.get(index + 1..index + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escape.filter(|_| bytes[index] == b'%') {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
