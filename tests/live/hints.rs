//! Every statement and command that a message can print runs as printed: the literals of src are read, their places filled with
//! names that hide, and a server parses what comes of them without running it. Whether the code fills a place with the form that
//! is shown, the tests of `printable` see.

use std::fs;
use std::path::PathBuf;

use headwater::pg::{Ident, is_printable, shown_literal};

use crate::support::{Database, Script};

const HOSTILE: &str = "a\n\u{1b}[2J\u{202e}\"'$$; DROP TABLE victim; --\\";

/// What stands in a place that is no name. A place at the end of what is listed here is filled with the text.
const PLACES: &[(&str, &str)] = &[
    ("ALTER TYPE {} {}", "ADD ATTRIBUTE a text"),
    ("DROP CAST {}", "(text AS int)"),
    ("DROP OPERATOR {}", "public.= (text, int)"),
    ("{of_type}", " AS bigint"),
    ("GENERATED {kind}", "BY DEFAULT"),
    (" AS {wanted}", "ENUM ('a')"),
    ("{kind}", "TYPE"),
    ("ALTER {statement}", "VIEW"),
    ("{off}", "DISABLE"),
    ("{using}", " USING a::text::int"),
    ("{full}", " MATCH FULL"),
    ("{full}{2}", " ON DELETE CASCADE"),
    ("{full}{2}{3}", " ON UPDATE CASCADE"),
    ("{revoke}", "REVOKE SELECT ON TABLE t FROM PUBLIC;"),
    ("{quote}", "$q$"),
    ("{body}", "BEGIN NULL; END"),
    ("{deterministic}", "true"),
    ("{rules}", ""),
    ("{process_id}", "1"),
    ("{holding}", "1"),
    ("{setting}", "1"),
    ("{ADVISED}", "1"),
    ("{step}", "1"),
    ("{start}", "1"),
    ("MINVALUE {}", "1"),
    ("MAXVALUE {}", "1"),
    ("('{name}", "slot"),
];

/// Ends of what stands before a literal.
const BEFORE_LITERALS: &[&str] = &["= ", "ROLLBACK PREPARED ", "_slot(", "origin_drop("];

const STATEMENTS: &[&str] = &[
    "ALTER ",
    "ANALYZE ",
    "BEGIN",
    "COMMENT ",
    "CREATE ",
    "DELETE ",
    "DO ",
    "DROP ",
    "GRANT ",
    "INSERT ",
    "REVOKE ",
    "ROLLBACK PREPARED ",
    "SELECT ",
    "SET ",
    "TRUNCATE ",
    "UPDATE ",
];

/// Commands with a place in them: positions in the WAL, numbers of users, and what `shell_word` has quoted.
const COMMANDS: &[&str] = &[
    "mkdir -p -m 700 {word}",
    "chown {ours} {word}",
    "chmod go-w {word}",
    "chmod u+rwx {word}",
    "mv -- {gate} {renamed}",
    "headwater run --resnapshot={}",
    "headwater skip --end-lsn {end_lsn}",
    "headwater skip --commit-lsn {}",
    "headwater skip --{option} {lsn}",
    "headwater dead-letter show --end-lsn {}",
];

/// The string literals of a source text before its unit tests, unescaped, with their lines.
fn literals(text: &str) -> Vec<(usize, String)> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['"', '\'', '/']) {
        let begun = &rest[at..];
        if begun.starts_with("//") {
            rest = begun.find('\n').map_or("", |end| &begun[end..]);
        } else if let Some(quoted) = begun.strip_prefix('"') {
            let before = rest[..at].trim_end_matches('#');
            let (literal, after) = match before.ends_with('r') {
                true => {
                    let end = format!("\"{}", &rest[before.len()..at]);
                    let (raw, after) = quoted.split_once(&end).expect("an end");
                    (raw.to_owned(), after)
                }
                false => literal(quoted),
            };
            found.push((text[..text.len() - quoted.len()].lines().count(), literal));
            rest = after;
        } else if begun.starts_with("'\\") {
            rest = begun[3..].split_once('\'').map_or("", |(_, after)| after);
        } else {
            // A character, or the mark of a lifetime.
            let mut chars = begun.char_indices().skip(2);
            let end = chars.next().filter(|(_, c)| *c == '\'' && begun.starts_with('\'')).map_or(1, |(end, _)| end + 1);
            rest = &begun[end..];
        }
    }
    found
}

/// The literal whose quote has been read, and what stands after it.
fn literal(quoted: &str) -> (String, &str) {
    let mut literal = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return (literal, chars.as_str()),
            '\\' => match chars.next() {
                Some('n') => literal.push('\n'),
                Some('\n') => chars = chars.as_str().trim_start().chars(),
                Some(c) => literal.push(c),
                None => break,
            },
            c => literal.push(c),
        }
    }
    panic!("a literal without an end: {quoted:.80}");
}

/// All literals of src, with where they stand.
fn printed() -> Vec<(String, String)> {
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::from("src")]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let of_file = literals(&text).into_iter();
                found.extend(of_file.map(|(line, literal)| (format!("{}:{line}", path.display()), literal)));
            }
        }
    }
    found
}

/// The statement in a line of a message: at its beginning or behind a colon, and with its semicolon.
fn statement(line: &str) -> Option<&str> {
    let is_statement = |text: &&str| STATEMENTS.iter().any(|word| text.starts_with(word));
    let behind = line.match_indices(": ").map(|(at, colon)| &line[at + colon.len()..]);
    let found = [line.trim_start()].into_iter().chain(behind).find(is_statement)?;
    found.rfind(';').map(|end| &found[..=end])
}

/// The template with its places filled.
fn filled(template: &str) -> String {
    let (name, literal) = (Ident::new(HOSTILE).to_string(), shown_literal(HOSTILE));
    let (mut sql, mut seen, mut rest) = (String::new(), String::new(), template);
    while let Some((before, place)) = rest.split_once('{') {
        let (place, after) = place.split_once('}').unwrap_or_else(|| panic!("a place without an end: {template}"));
        sql.push_str(before);
        seen.push_str(&format!("{before}{{{place}}}"));
        let listed = PLACES.iter().find(|(end, _)| seen.ends_with(end)).map(|(_, text)| *text);
        let is_literal = BEFORE_LITERALS.iter().any(|end| sql.ends_with(end));
        sql.push_str(listed.unwrap_or(if is_literal { &literal } else { &name }));
        rest = after;
    }
    sql + rest
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_that_a_message_prints_is_one_that_a_server_parses() {
    let database = Database::new("hints", &[], "SELECT 1").await;
    let version = "SELECT current_setting('server_version_num')";
    let version: u32 = database.source_value(version).await.expect("a version").parse().expect("a number");
    // In a failed transaction a server parses a statement and refuses to run it.
    database.source.script("a transaction", "BEGIN; SELECT 1 / 0").await.unwrap_err();
    let (mut count, mut wrong) = (0, Vec::new());
    for (place, literal) in printed() {
        for template in literal.lines().filter_map(statement) {
            // Printed for servers from 15 on.
            if version < 150_000 && template.contains(" ON PARAMETER ") {
                continue;
            }
            let sql = filled(template);
            assert!(sql.chars().all(is_printable), "{place}: {sql:?}");
            let error = database.source.script("parsing", &sql).await.expect_err("nothing runs");
            count += 1;
            if error.code().is_none_or(|code| code.as_str() != "25P02") {
                wrong.push(format!("{place}: {error}\n{sql}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 90, "only {count} statements were found");
    println!("{count} statements");
}

#[test]
fn every_command_that_a_message_prints_with_a_place_in_it_is_quoted() {
    let mut found = Vec::new();
    for (place, literal) in printed() {
        let of_shell = |line: &&str| {
            ["chmod ", "chown ", "mkdir ", "mv ", "rm "].iter().any(|word| line.starts_with(word)) && line.contains('{')
        };
        found.extend(literal.lines().filter(of_shell).map(|line| (line.to_owned(), place.clone())));
        for (at, _) in literal.match_indices("headwater ") {
            let words: Vec<&str> = literal[at..].split_whitespace().collect();
            let Some(option) = words.iter().position(|word| word.starts_with("--")).filter(|at| *at < 4) else {
                continue;
            };
            let end = if words[option].contains('=') { option + 1 } else { option + 2 };
            let command = words[..end.min(words.len())].join(" ");
            if command.contains('{') {
                found.push((command, place.clone()));
            }
        }
    }
    for command in COMMANDS {
        assert!(found.iter().any(|(found, _)| found == command), "{command} is printed no more");
    }
    let others: Vec<_> = found.iter().filter(|(command, _)| !COMMANDS.contains(&command.as_str())).collect();
    assert!(others.is_empty(), "quote what comes into these with shell_word, and list them here: {others:#?}");
}
