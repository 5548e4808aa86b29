//! The rules of the house, read off the source: who may import whom, who may touch a clock, and how files begin.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in their order, and whether they are pure.
const ROOMS: &[(&str, bool)] = &[
    ("pg", true),
    ("config", true),
    ("wire", true),
    ("transaction", true),
    ("plan", true),
    ("progress", true),
    ("telemetry", false),
    ("spool", false),
    ("session", false),
    ("source", false),
    ("destination", false),
    ("fault", true),
    ("pipeline", false),
    ("commands", false),
];

/// What a pure room never says outside of comments: clocks, sockets, files, logs, async.
const IMPURE: &[&str] = &[
    "tokio",
    "tracing",
    "std::fs",
    "std::env",
    "TcpStream",
    "UnixStream",
    "Instant",
    "SystemTime",
    "async fn",
    ".await",
];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn room(&self) -> Option<usize> {
        let room = self.path.strip_prefix("src").ok()?.components().next()?.as_os_str().to_str()?.to_owned();
        let room = room.strip_suffix(".rs").unwrap_or(&room);
        ROOMS.iter().position(|(name, _)| *name == room)
    }

    /// Lines of code, without comments and string contents' worth of them.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
    }
}

fn sources(dir: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {dir}");
    found
}

fn report(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn a_room_imports_only_rooms_above_it() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let Some(here) = source.room() else { continue };
        for (number, line) in source.code() {
            for (there, (name, _)) in ROOMS.iter().enumerate() {
                if there > here && line.contains(&format!("crate::{name}")) {
                    wrong.push(format!("{}:{number}: {line}", source.path.display()));
                }
            }
            let (source_room, destination_room) = ("source", "destination");
            let room = ROOMS[here].0;
            if room == destination_room && line.contains(&format!("crate::{source_room}::")) {
                wrong.push(format!("{}:{number}: destination imports source", source.path.display()));
            }
        }
    }
    report("imports of rooms below", wrong);
}

#[test]
fn the_mod_lines_stand_in_the_order_of_the_rooms() {
    let text = fs::read_to_string("src/lib.rs").expect("src/lib.rs");
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let expected: Vec<&str> =
        ROOMS.iter().map(|(name, _)| *name).filter(|name| Path::new("src").join(name).exists()).collect();
    assert_eq!(lines, expected);
}

#[test]
fn pure_rooms_touch_no_clock_socket_file_or_log() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let Some((_, true)) = source.room().map(|room| ROOMS[room]) else { continue };
        for (number, line) in source.code() {
            if IMPURE.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{}:{number}: {line}", source.path.display()));
            }
        }
    }
    report("impure lines in pure rooms", wrong);
}

#[test]
fn the_protocol_crates_are_used_in_session_only() {
    let crates = ["tokio_postgres", "postgres_protocol", "rustls", "tokio_rustls", "x509_cert"];
    let mut wrong = Vec::new();
    for source in sources("src") {
        if source.room().is_some_and(|room| ROOMS[room].0 == "session") {
            continue;
        }
        for (number, line) in source.code() {
            if crates.iter().any(|name| line.contains(&format!("{name}::"))) {
                wrong.push(format!("{}:{number}: {line}", source.path.display()));
            }
        }
    }
    report("protocol crates outside session", wrong);
}

#[test]
fn every_file_opens_with_a_header() {
    let all = sources("src").into_iter().chain(sources("tests"));
    let headless = all.filter(|source| !source.text.starts_with("//!")).map(|source| source.path.display().to_string());
    report("files without a header", headless.collect());
}

#[test]
fn lines_are_of_a_width_that_can_be_read() {
    // rustfmt breaks code at 120; strings and tables may run a little further.
    let mut wide = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        // Tests hold whole SQL scripts as strings.
        let most = if source.path.starts_with("tests") { 165 } else { 140 };
        for (number, line) in source.text.lines().enumerate() {
            if line.chars().count() > most {
                wide.push(format!("{}:{}: {} characters", source.path.display(), number + 1, line.chars().count()));
            }
        }
    }
    report("lines that are too long", wide);
}

#[test]
fn text_made_at_run_time_does_not_become_constant() {
    // Sessions run several statements of one text only where it is `&'static str`: no other way may lead there.
    let mut wrong = Vec::new();
    for source in sources("src") {
        for (number, line) in source.code() {
            if line.contains("leak(") {
                wrong.push(format!("{}:{number}: {line}", source.path.display()));
            }
        }
    }
    report("leaked text", wrong);
}

#[test]
fn sql_that_is_shown_is_written_printably() {
    // In a hint, names go through Display and generated statements through shown_sql; `.sql()` and quote_literal are for servers.
    let mut wrong = Vec::new();
    for source in sources("src") {
        let mut in_hint = 0_u32;
        for (number, line) in source.code() {
            if [".hint(", ".detail(", ".todo(", "ErrorReport::new("].iter().any(|call| line.contains(call)) {
                in_hint = 6;
            }
            let raw = line.contains(".sql()") || line.contains("quote_literal(");
            if in_hint > 0 && raw && !line.contains("shown_sql(") && !line.contains("client.") {
                wrong.push(format!("{}:{number}: {}", source.path.display(), line.trim()));
            }
            in_hint = if line.trim_end().ends_with(';') { 0 } else { in_hint.saturating_sub(1) };
        }
    }
    report("SQL for servers in what is shown", wrong);
}

#[test]
fn every_function_that_is_made_in_a_database_looks_into_pg_temp_last() {
    // A search_path without pg_temp is searched from pg_temp on, which belongs to whoever calls.
    let mut texts: Vec<(PathBuf, String)> =
        sources("src").into_iter().map(|source| (source.path, source.text)).collect();
    for entry in fs::read_dir("sql").expect("sql") {
        let path = entry.expect("a directory entry").path();
        let text = fs::read_to_string(&path).expect("an SQL file");
        texts.push((path, text));
    }
    let (mut wrong, mut found) = (Vec::new(), 0);
    for (path, text) in &texts {
        for create in
            ["CREATE FUNCTION ", "CREATE OR REPLACE FUNCTION ", "CREATE PROCEDURE ", "CREATE OR REPLACE PROCEDURE "]
        {
            for (at, _) in text.match_indices(create) {
                // What stands before the body; statements that tests and searches mention have no LANGUAGE.
                let head = text[at..].split("AS $").next().unwrap_or_default().split("AS '").next().unwrap_or_default();
                if head.len() < 400 && head.contains("LANGUAGE") {
                    found += 1;
                    if !head.contains("SET search_path = pg_catalog, pg_temp") {
                        wrong.push(format!("{}: {}", path.display(), head.lines().next().unwrap_or_default()));
                    }
                }
            }
        }
    }
    assert!(found >= 7, "only {found} functions were found");
    report("functions that do not set search_path = pg_catalog, pg_temp", wrong);
}
