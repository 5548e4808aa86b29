//! The architecture, read off the source: which module imports which, who may touch a clock, and how files begin.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules in their order, and whether they are pure.
const MODULES: &[(&str, bool)] = &[
    ("pg", true),
    ("sql", true),
    ("config", true),
    ("wire", true),
    ("progress", true),
    ("catalog", true),
    ("transaction", true),
    ("apply_plan", true),
    ("apply_core", true),
    ("schema_change", true),
    ("comparison", true),
    ("telemetry", false),
    ("spool", false),
    ("session", false),
    ("source", false),
    ("destination", false),
    ("error_policy", true),
    ("preflight", false),
    ("apply_worker", false),
    ("table_sync", false),
    ("verification", false),
    ("supervisor", false),
    ("maintenance", false),
    ("commands", false),
];

/// What a pure module never says outside of comments: clocks, sockets, files, logs, async.
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
    fn module(&self) -> Option<usize> {
        let module = self.path.strip_prefix("src").ok()?.components().next()?.as_os_str().to_str()?.to_owned();
        let module = module.strip_suffix(".rs").unwrap_or(&module);
        MODULES.iter().position(|(name, _)| *name == module)
    }

    /// Lines of code, without comments and string contents' worth of them.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
    }
}

fn sources(dir: &str) -> Vec<Source> {
    files(dir, &["rs"])
}

/// The files below a directory with one of these extensions.
fn files(dir: &str, extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension)) {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "no such files below {dir}");
    found
}

fn report(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn a_module_imports_only_modules_above_it() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let Some(here) = source.module() else { continue };
        for (number, line) in source.code() {
            for (there, (name, _)) in MODULES.iter().enumerate() {
                if there > here && line.contains(&format!("crate::{name}")) {
                    wrong.push(format!("{}:{number}: {line}", source.path.display()));
                }
            }
            let (source_module, destination_module) = ("source", "destination");
            let module = MODULES[here].0;
            if module == destination_module && line.contains(&format!("crate::{source_module}::")) {
                wrong.push(format!("{}:{number}: destination imports source", source.path.display()));
            }
        }
    }
    report("imports of modules below", wrong);
}

#[test]
fn the_mod_lines_stand_in_the_order_of_the_modules() {
    let text = fs::read_to_string("src/lib.rs").expect("src/lib.rs");
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let expected: Vec<&str> =
        MODULES.iter().map(|(name, _)| *name).filter(|name| Path::new("src").join(name).exists()).collect();
    assert_eq!(lines, expected);
}

#[test]
fn pure_modules_touch_no_clock_socket_file_or_log() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let Some((_, true)) = source.module().map(|module| MODULES[module]) else { continue };
        for (number, line) in source.code() {
            if IMPURE.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{}:{number}: {line}", source.path.display()));
            }
        }
    }
    report("impure lines in pure modules", wrong);
}

#[test]
fn the_protocol_crates_are_used_in_session_only() {
    let crates = ["tokio_postgres", "postgres_protocol", "rustls", "tokio_rustls", "x509_cert"];
    let mut wrong = Vec::new();
    for source in sources("src") {
        if source.module().is_some_and(|module| MODULES[module].0 == "session") {
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

/// Lines of a function that need no reason.
const FUNCTION_LINES_MAX: usize = 70;

#[test]
fn functions_are_short_or_say_why_they_are_not() {
    let mut long = Vec::new();
    for source in sources("src") {
        let lines: Vec<&str> = source.text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let words: Vec<&str> = code.split(' ').take_while(|word| *word != "fn").collect();
            let of_function = |word: &&str| word.starts_with("pub") || ["async", "const", "unsafe"].contains(word);
            if !code.contains("fn ") || code.starts_with("//") || !words.iter().all(of_function) {
                continue;
            }
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let Some(length) = lines[at..].iter().position(|line| *line == end) else { continue };
            let says_why = lines[at..at + length].iter().any(|line| line.trim_start().starts_with("// Long: "));
            if length + 1 > FUNCTION_LINES_MAX && !says_why {
                long.push(format!("{}:{}: {} lines", source.path.display(), at + 1, length + 1));
            }
        }
    }
    report("long functions without a line `// Long: …` that says why", long);
}

#[test]
fn parameters_of_functions_are_not_tuples() {
    // A tuple's members have no names where it is made: a struct has, and so have more parameters.
    let mut found = Vec::new();
    for source in sources("src") {
        let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().replace('\n', " ");
        for (at, _) in code.match_indices("fn ") {
            let Some((name, rest)) = code[at + 3..].split_once(['(', '<']) else { continue };
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let starts = code[..at].chars().next_back().is_none_or(|c| c.is_whitespace() || c == '(');
            // The parameters of a type begin with the bracket that nothing of `<…>` is before.
            let generic = code[at + 3 + name.len()..].starts_with('<');
            let rest = if generic { rest.split_once(">(").map_or("", |(_, rest)| rest) } else { rest };
            if !is_name || !starts {
                continue;
            }
            found.extend(tuples(rest).map(|tuple| format!("{}: {name}: {tuple}", source.path.display())));
        }
    }
    report("parameters that are tuples", found);
}

/// The parameters of this list, up to the bracket that closes it, whose types are tuples of two or more.
fn tuples(list: &str) -> impl Iterator<Item = String> {
    let (mut parameters, mut depth, mut parameter) = (Vec::new(), 0_i32, String::new());
    let mut before = ' ';
    for c in list.chars() {
        depth += i32::from("([{<".contains(c))
            - i32::from(")]}".contains(c) || (c == '>' && before != '-' && before != '='));
        match c {
            _ if depth < 0 => break,
            ',' if depth == 0 => parameters.push(std::mem::take(&mut parameter)),
            _ => parameter.push(c),
        }
        before = c;
    }
    parameters.push(parameter);
    let is_tuple = |parameter: &String| {
        let Some((_, of_type)) = parameter.split_once(": ") else { return false };
        let of_type = of_type.trim_start_matches("Option<").trim_start_matches('&').trim_start_matches("mut ");
        of_type.strip_prefix('(').is_some_and(|members| members.contains(','))
    };
    parameters.into_iter().filter(is_tuple)
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

#[test]
fn files_of_a_module_import_each_other_in_one_direction() {
    let all = sources("src");
    let paths: Vec<String> = all.iter().map(|source| module_path(&source.path)).collect();
    let mut imports: Vec<Vec<usize>> = all.iter().map(|_| Vec::new()).collect();
    for (at, source) in all.iter().enumerate() {
        // What unit tests import is their own affair.
        let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
        let tests = code.match_indices("#[cfg(test)]\n").find(|(at, mark)| {
            let line = code[at + mark.len()..].lines().next().unwrap_or_default();
            line.contains("mod ") && line.ends_with('{')
        });
        let code = tests.map_or(code.as_str(), |(at, _)| &code[..at]);
        if source.path.ends_with("tests.rs") || source.path.ends_with("model.rs") {
            continue;
        }
        for (start, _) in code.match_indices("use ") {
            let statement = code[start + 4..].split(';').next().unwrap_or_default();
            for path in leaves(statement) {
                let Some(absolute) = absolute(&path, &paths[at], &paths) else { continue };
                let target = paths
                    .iter()
                    .enumerate()
                    .filter(|(_, p)| !p.is_empty() && (absolute == **p || absolute.starts_with(&format!("{p}::"))));
                let Some((to, _)) = target.max_by_key(|(_, p)| p.len()) else { continue };
                let top = |path: &str| path.split("::").next().unwrap_or_default().to_owned();
                if to != at && top(&paths[to]) == top(&paths[at]) && !imports[at].contains(&to) {
                    imports[at].push(to);
                }
            }
        }
    }
    let reaches = |from: usize| {
        let (mut seen, mut open) = (vec![false; all.len()], imports[from].clone());
        while let Some(next) = open.pop() {
            if !std::mem::replace(&mut seen[next], true) {
                open.extend(&imports[next]);
            }
        }
        seen
    };
    let in_circle = (0..all.len()).filter(|at| reaches(*at)[*at]).map(|at| paths[at].clone());
    report("files of a module that import each other in a circle", in_circle.collect());
}

/// What several files need to set their tests up stands in tests/live/support.
#[test]
fn live_tests_share_set_up_through_support_alone() {
    let mut found = Vec::new();
    for file in sources("tests/live") {
        if file.path.ends_with("main.rs") {
            continue;
        }
        for (number, line) in file.code() {
            let others = line.match_indices("crate::").filter(|(at, _)| !line[at + 7..].starts_with("support"));
            found.extend(others.map(|_| format!("{}:{number}: {}", file.path.display(), line.trim())));
        }
    }
    report("imports of other test files", found);
}

/// A test's name is its promise, subject first: what needs more room is two tests, or a comment.
#[test]
fn names_of_tests_are_under_80_characters() {
    let mut found = Vec::new();
    for file in sources("src").into_iter().chain(sources("tests")) {
        for line in file.text.lines() {
            let Some((_, name)) = line.split_once("fn ") else { continue };
            let name = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
            if name.len() >= 80 {
                found.push(format!("{}: {name}", file.path.display()));
            }
        }
    }
    report("names of 80 characters or more", found);
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are `a::b`.
/// A file that was renamed would be left out without a word.
#[test]
fn the_lists_of_the_mutation_test_name_files_that_exist() {
    let strings = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(file).expect("a source file");
        text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let mutated = strings("tests/mutants/src/main.rs").into_iter().filter(|path| path.starts_with("src/"));
    let likely = fs::read_to_string("tests/mutants/src/run.rs").expect("a source file");
    let likely =
        likely.lines().filter_map(|line| line.strip_prefix("    (\"")?.split_once("\", \"")).map(|(name, _)| name);
    let lists = ["survived", "equivalent"]
        .map(|list| fs::read_to_string(format!("tests/mutants/{list}.txt")).expect("a list of mutants"));
    let listed = lists.iter().flat_map(|list| list.lines()).filter(|line| line.starts_with("src/"));
    let listed = listed.filter_map(|line| line.split_once(": ")).map(|(path, _)| path.to_owned());
    let paths = mutated.chain(likely.map(|name| format!("src/{name}"))).chain(listed);
    let missing = paths.filter(|path| !Path::new(path).exists() && !Path::new(&format!("{path}.rs")).exists());
    report("paths of tests/mutants that do not exist", missing.collect());
}

fn module_path(path: &Path) -> String {
    let path = path.strip_prefix("src").expect("a file of src").with_extension("");
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).filter(|part| *part != "mod").collect();
    match parts.as_slice() {
        ["lib" | "main"] => String::new(),
        parts => parts.join("::"),
    }
}

/// The paths of a `use` statement, without its braces.
fn leaves(statement: &str) -> Vec<String> {
    let statement: String = statement.chars().filter(|c| !c.is_whitespace()).collect();
    let Some((before, group)) = statement.split_once('{') else { return vec![statement] };
    let group = group.strip_suffix('}').unwrap_or(group);
    let (mut parts, mut depth, mut part) = (Vec::new(), 0_i32, String::new());
    for c in group.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match c {
            ',' if depth == 0 => parts.push(std::mem::take(&mut part)),
            _ => part.push(c),
        }
    }
    parts.push(part);
    parts.iter().filter(|part| !part.is_empty()).flat_map(|part| leaves(&format!("{before}{part}"))).collect()
}

/// A path from the crate's root, if it is one of this crate's.
fn absolute(path: &str, here: &str, all: &[String]) -> Option<String> {
    let mut at: Vec<&str> = here.split("::").filter(|part| !part.is_empty()).collect();
    let mut rest = path;
    if let Some(path) = path.strip_prefix("crate::") {
        return Some(path.to_owned());
    }
    let is_relative = path.starts_with("super::") || path.starts_with("self::");
    while let Some(path) = rest.strip_prefix("super::") {
        at.pop();
        rest = path;
    }
    let rest = rest.strip_prefix("self::").unwrap_or(rest);
    let child = [at.join("::"), rest.split("::").next().unwrap_or_default().to_owned()].join("::");
    let is_child = all.iter().any(|path| *path == child.trim_start_matches("::"));
    (is_relative || is_child).then(|| [at.join("::"), rest.to_owned()].join("::"))
}

/// Words that a reader stumbles over, and what to write for them.
const DIALECT: &[(&str, &str)] = &[
    ("anew", "again"),
    ("beside", "next to, concurrently with, besides"),
    ("whoever", "the role, session or caller that"),
    ("for ever", "indefinitely"),
    ("goes on", "continues"),
    ("go on", "continue"),
    ("tells of", "describes, reports"),
    ("mend", "repair, fix"),
    ("mends", "repairs, fixes"),
    ("is told", "is reported"),
    ("are told", "are reported"),
    ("to be had", "available"),
    ("as ever", "as before"),
];

/// Where operators and readers find words: code with its messages, SQL, the status page, documents, and what is deployed.
#[test]
fn words_are_plain_english() {
    let mut read = files("src", &["rs", "js", "html", "css"]);
    read.extend(files("sql", &["sql"]));
    read.extend(files("docs", &["md"]));
    read.extend(files("deploy", &["yml", "yaml", "json", "service", "toml", "md"]));
    read.extend(
        ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "UPGRADING.md", "Makefile"]
            .map(|path| Source { path: PathBuf::from(path), text: fs::read_to_string(path).expect("a document") }),
    );
    let mut found = Vec::new();
    for source in read {
        for (number, line) in (1..).zip(source.text.lines()) {
            let words: Vec<&str> =
                line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
            let spoken = format!(" {} ", words.join(" ").to_lowercase());
            let of_dialect = DIALECT.iter().filter(|(word, _)| spoken.contains(&format!(" {word} ")));
            found.extend(
                of_dialect.map(|(word, instead)| format!("{}:{number}: {word} ({instead})", source.path.display())),
            );
        }
    }
    report("words that style leaves out", found);
}
