//! Pages of the reference that are printed from the code: the command line from its own help, the metrics and /status from the
//! sources that define them, the bookkeeping from the SQL that creates it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};

use super::{literals, printed_from_the_code};

/// The commands in the order in which somebody comes to them, by what they are for.
const COMMANDS: &[(&str, &[&str])] = &[
    ("Set up", &["init", "check"]),
    ("Run", &["run"]),
    ("Look", &["status", "explain"]),
    (
        "Prove and repair",
        &["verify", "resnapshot", "conflict show", "skip", "dead-letter list", "dead-letter show", "replay"],
    ),
    ("Leave", &["cutover", "teardown"]),
    ("Besides", &["demo", "completions"]),
];

/// What a command prints about itself, at a width that does not depend on a terminal.
fn help(command: &str) -> String {
    let mut process = Command::new(env!("CARGO_BIN_EXE_headwater"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEADWATER_") || name == "COLUMNS" || name == "DEMO_SECONDS" {
            process.env_remove(name);
        }
    }
    process.args(command.split_whitespace()).arg("--help").stdin(Stdio::null());
    let output = process.output().expect("headwater runs");
    assert!(output.status.success(), "headwater {command} --help");
    String::from_utf8(output.stdout).expect("text")
}

/// A help text without the options that every command has.
fn own_options(help: &str) -> String {
    let mut kept = String::new();
    let mut is_common = false;
    for line in help.lines() {
        let option = line.trim_start();
        if option.starts_with('-') && line.len() - option.len() <= 6 {
            is_common = ["--config <FILE>", "-h, --help"].iter().any(|common| option.contains(common));
        } else if !line.is_empty() && !line.starts_with(' ') {
            is_common = false;
        }
        if !is_common {
            kept.push_str(line.trim_end());
            kept.push('\n');
        }
    }
    kept.trim_end().trim_end_matches("Options:").trim_end().to_owned()
}

#[test]
fn the_command_line_page_is_printed_from_the_help() {
    let mut page = String::from(
        "# Command line\n\n<!-- Printed from the commands' own help by `make docs`; a test compares. -->\n\n\
         Every command takes `--config FILE` (`-c`), also as `HEADWATER_CONFIG`; without it headwater reads `./headwater.toml`, otherwise\n\
         `/etc/headwater/headwater.toml`. What the file says is in [Configuration](../configuration.md). `headwater help COMMAND` prints what stands here,\n\
         and `make package` writes manual pages and completions.\n\n\
         | exit code | means |\n|---|---|\n\
         | 0 | done; of `run`: it was asked to stop; of `check`: nothing failed; of `verify`: equal; of `status`: fresh; of `explain`: nothing blocks |\n\
         | 1 | an operator must act: the output says why and what to do |\n\
         | 2 | the arguments or the configuration are wrong; every problem is named at once |\n",
    );
    for (purpose, commands) in COMMANDS {
        let _ = write!(page, "\n## {purpose}\n");
        for command in *commands {
            let _ = write!(page, "\n### headwater {command}\n\n```text\n{}\n```\n", own_options(&help(command)));
        }
    }
    printed_from_the_code("docs/reference/cli.md", &page);
}

#[test]
fn every_command_of_the_help_stands_on_the_command_line_page() {
    let listed: Vec<&str> = COMMANDS.iter().flat_map(|(_, commands)| commands.iter().copied()).collect();
    let help = help("");
    let (_, commands) = help.split_once("Commands:\n").expect("commands");
    let (commands, _) = commands.split_once("\n\n").expect("their end");
    for line in commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
        let name = line.split_whitespace().next().expect("a name");
        assert!(name == "help" || listed.iter().any(|one| one.split(' ').next() == Some(name)), "{name} is missing");
    }
}

/// What a metric is, from the constructor that stands before its name.
fn metric_kind(before: &str) -> &'static str {
    let constructors = [
        ("counter(", "counter"),
        ("counters(", "counter"),
        ("Counter::new(", "counter"),
        ("gauge(", "gauge"),
        ("at_times(", "gauge"),
        ("Opts::new(", "gauge"),
        // Ends as the one above: of several that end last, the last one counts.
        ("HistogramOpts::new(", "histogram"),
    ];
    let found = constructors.iter().filter_map(|(name, kind)| Some((before.rfind(name)? + name.len(), *kind)));
    found.max_by_key(|(end, _)| *end).expect("a constructor").1
}

fn metric_unit(name: &str) -> &'static str {
    let units = [
        ("_timestamp_seconds", "seconds since 1970"),
        ("_time_seconds", "seconds since 1970"),
        ("_seconds_total", "seconds"),
        ("_seconds_until_lost", "seconds"),
        ("_seconds", "seconds"),
        ("_bytes", "bytes"),
        ("_ratio", "0 to 1"),
        ("_position", "bytes of WAL"),
    ];
    units.iter().find(|(end, _)| name.ends_with(end)).map_or("", |(_, unit)| unit)
}

#[test]
fn the_metrics_page_is_printed_from_the_metrics() {
    let code = fs::read_to_string("src/telemetry/metrics.rs").expect("the metrics");
    let found = literals(&code);
    let mut rows = BTreeMap::new();
    for pair in found.windows(2) {
        let ((at, name), (help_at, help)) = (&pair[0], &pair[1]);
        if !name.starts_with("headwater_") && !name.starts_with("process_") {
            continue;
        }
        let kind = metric_kind(&code[at.saturating_sub(160)..*at]);
        let rest = &code[*help_at..(help_at + help.len() + 120).min(code.len())];
        let rest = rest.split(");").next().unwrap_or_default();
        let labels = rest.rsplit_once("&[").and_then(|(_, list)| list.split_once(']')).map_or("", |(list, _)| list);
        let labels = labels.replace('"', "`");
        rows.insert(name.clone(), format!("| `{name}` | {kind} | {} | {labels} | {help} |", metric_unit(name)));
    }
    assert!(rows.len() > 30, "{} metrics were found", rows.len());
    let mut page = String::from(
        "# Metrics\n\n<!-- Printed from src/telemetry/metrics.rs by `make docs`; a test compares. -->\n\n\
         `/metrics` serves these in Prometheus's text format. Names, units and labels are a contract. Counters are 0 from the start; what is not\n\
         known has no series, so an absent number is not a good one. The states are those of `state` in [/status](http.md), the phases those of\n\
         [a copy](../operations.md#how-far-a-copy-is).\n\n\
         | name | type | unit | labels | meaning |\n|---|---|---|---|---|\n",
    );
    for row in rows.values() {
        page.push_str(row);
        page.push('\n');
    }
    printed_from_the_code("docs/reference/metrics.md", &page);
}

/// A comment of SQL, as a sentence of the page.
fn sentence(comment: &[&str]) -> String {
    comment.iter().map(|line| line.trim_start().trim_start_matches("--").trim()).collect::<Vec<_>>().join(" ")
}

/// A table or function of the bookkeeping.
#[derive(Default)]
struct BookkeepingObject {
    meaning: String,
    columns: Vec<(String, String, String)>,
}

/// The columns that stand between the parentheses of a CREATE TABLE.
fn created_columns(lines: &[&str]) -> Vec<(String, String, String)> {
    let mut columns = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in lines {
        let text = line.trim();
        let first = text.split(' ').next().unwrap_or_default();
        if text.starts_with("--") {
            comment.push(line);
        } else if first.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !first.is_empty() {
            columns.push(column(text, &sentence(&comment)));
            comment.clear();
        } else {
            comment.clear();
        }
    }
    columns
}

/// Name, type and meaning of a column's definition.
fn column(definition: &str, meaning: &str) -> (String, String, String) {
    let (name, rest) = definition.split_once(' ').expect("a type");
    let kind = rest.split([' ', ',', ';']).next().unwrap_or_default();
    (name.to_owned(), kind.to_owned(), meaning.to_owned())
}

#[test]
fn the_bookkeeping_page_is_printed_from_the_sql() {
    let mut tables: Vec<(String, BookkeepingObject)> = Vec::new();
    let mut functions: Vec<(String, String)> = Vec::new();
    for file in ["sql/bookkeeping.sql", "sql/reading.sql"] {
        let text = fs::read_to_string(file).expect("the bookkeeping");
        let lines: Vec<&str> = text.lines().collect();
        let mut comment: Vec<&str> = Vec::new();
        for (number, line) in lines.iter().enumerate() {
            if let Some(name) = line.strip_prefix("CREATE TABLE IF NOT EXISTS headwater.") {
                let end = number + lines[number..].iter().position(|line| line.starts_with(')')).expect("its end");
                let name = name.trim_end_matches(" (").to_owned();
                let columns = created_columns(&lines[number + 1..end]);
                tables.push((name, BookkeepingObject { meaning: sentence(&comment), columns }));
            } else if let Some((table, definition)) = line
                .strip_prefix("ALTER TABLE headwater.")
                .and_then(|rest| rest.split_once(" ADD COLUMN IF NOT EXISTS "))
            {
                let object = tables.iter_mut().find(|(name, _)| name == table).expect("a table");
                object.1.columns.push(column(definition, &sentence(&comment)));
            } else if let Some(rest) = line.strip_prefix("CREATE OR REPLACE FUNCTION ") {
                let name = rest.split(" RETURNS").next().unwrap_or_default().replace("pg_catalog.", "");
                functions.push((name, sentence(&comment)));
            }
            if line.starts_with("--") {
                comment.push(line);
            } else {
                comment.clear();
            }
        }
    }
    assert!(tables.len() > 8 && functions.len() > 5, "{} tables, {} functions", tables.len(), functions.len());
    let mut page = String::from(
        "# Bookkeeping\n\n<!-- Printed from sql/bookkeeping.sql and sql/reading.sql by `make docs`; a test compares. -->\n\n\
         headwater keeps these in schema `headwater` of the destination, and creates them at the first start. Read them as you like, and change\n\
         nothing: the commands do. `headwater teardown` removes all of it.\n",
    );
    for (name, object) in &tables {
        let _ =
            write!(page, "\n## headwater.{name}\n\n{}\n\n| column | type | meaning |\n|---|---|---|\n", object.meaning);
        for (name, kind, meaning) in &object.columns {
            let _ = writeln!(page, "| `{name}` | `{kind}` | {meaning} |");
        }
    }
    page.push_str("\n## Functions\n\n| function | does |\n|---|---|\n");
    for (name, meaning) in &functions {
        let _ = writeln!(page, "| `{name}` | {meaning} |");
    }
    printed_from_the_code("docs/reference/bookkeeping.md", &page);
}

/// A struct or enum of the sources, with its comment and what is in it.
struct Definition {
    comment: String,
    is_enum: bool,
    /// Names, types (none of an enum's) and comments.
    members: Vec<(String, String, String)>,
}

/// The public structs and enums of a source file that travel as JSON.
fn definitions(path: &str) -> BTreeMap<String, Definition> {
    let text = fs::read_to_string(path).expect("a source file");
    let mut found = BTreeMap::new();
    let mut comment = String::new();
    let mut open: Option<(String, Definition)> = None;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(words) = trimmed.strip_prefix("///") {
            comment = format!("{comment} {}", words.trim()).trim().to_owned();
            continue;
        }
        if trimmed.starts_with("#[") {
            continue;
        }
        let name = trimmed.strip_prefix("pub struct ").or_else(|| trimmed.strip_prefix("pub enum "));
        if let Some(name) = name.and_then(|name| name.strip_suffix(" {")) {
            let is_enum = trimmed.starts_with("pub enum");
            let comment = std::mem::take(&mut comment);
            open = Some((name.to_owned(), Definition { comment, is_enum, members: Vec::new() }));
        } else if trimmed == "}" {
            found.extend(open.take());
        } else if let Some((_, definition)) = &mut open {
            let member = trimmed.trim_start_matches("pub ").trim_end_matches(',');
            let (name, kind) = member.split_once(": ").unwrap_or((member, ""));
            definition.members.push((name.to_owned(), kind.to_owned(), std::mem::take(&mut comment)));
        }
        comment.clear();
    }
    found
}

/// A name of the code as serde writes it with `rename_all = "snake_case"`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// The schema of a type of the code.
fn schema_of(kind: &str, all: &BTreeMap<String, Definition>) -> serde_json::Value {
    use serde_json::json;
    let inner = |outer: &str| kind.strip_prefix(outer).and_then(|rest| rest.strip_suffix('>'));
    if let Some(kind) = inner("Option<") {
        return json!({ "anyOf": [schema_of(kind, all), { "type": "null" }] });
    }
    if let Some(kind) = inner("Vec<") {
        return json!({ "type": "array", "items": schema_of(kind, all) });
    }
    if let Some(kind) = inner("BTreeMap<String, ") {
        return json!({ "type": "object", "additionalProperties": schema_of(kind, all) });
    }
    match kind {
        "String" => json!({ "type": "string" }),
        "bool" => json!({ "type": "boolean" }),
        "f64" => json!({ "type": "number" }),
        "u64" | "u32" => json!({ "type": "integer", "minimum": 0 }),
        "Lsn" => json!({ "type": "string", "pattern": "^[0-9A-F]+/[0-9A-F]+$" }),
        name => {
            assert!(all.contains_key(name), "a type that the schema does not know: {name}");
            json!({ "$ref": format!("#/$defs/{name}") })
        }
    }
}

/// The schema of a struct or enum.
fn schema_of_definition(definition: &Definition, all: &BTreeMap<String, Definition>) -> serde_json::Value {
    use serde_json::json;
    if definition.is_enum {
        let names: Vec<String> = definition.members.iter().map(|(name, ..)| snake_case(name)).collect();
        return json!({ "description": definition.comment, "type": "string", "enum": names });
    }
    let mut properties = serde_json::Map::new();
    for (name, kind, comment) in &definition.members {
        let mut schema = schema_of(kind, all);
        schema["description"] = json!(comment);
        properties.insert(name.clone(), schema);
    }
    let required: Vec<&String> = definition.members.iter().map(|(name, ..)| name).collect();
    json!({ "description": definition.comment, "type": "object", "properties": properties, "required": required })
}

/// How the page calls a type of the code.
fn json_type(kind: &str) -> String {
    let inner = |outer: &str| kind.strip_prefix(outer).and_then(|rest| rest.strip_suffix('>'));
    if let Some(kind) = inner("Option<") {
        return format!("{}, or null", json_type(kind));
    }
    if let Some(kind) = inner("Vec<") {
        return format!("array of {}", json_type(kind));
    }
    if let Some(kind) = inner("BTreeMap<String, ") {
        return format!("object, of {} by name", json_type(kind));
    }
    match kind {
        "String" => "string".to_owned(),
        "bool" => "boolean".to_owned(),
        "f64" => "number".to_owned(),
        "u64" | "u32" => "integer".to_owned(),
        "Lsn" => "string, a WAL location".to_owned(),
        name => format!("[{name}](#{})", name.to_lowercase()),
    }
}

#[test]
fn the_status_schema_and_its_page_are_printed_from_what_is_served() {
    let mut all = definitions("src/telemetry/view.rs");
    all.extend(definitions("src/telemetry/state.rs"));
    let status = all.get("StatusView").expect("what /status serves");
    let mut schema = schema_of_definition(status, &all);
    schema["$schema"] = serde_json::json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = serde_json::json!("/status of headwater");
    let used = all.iter().filter(|(name, _)| *name != "StatusView");
    schema["$defs"] = used.map(|(name, one)| (name.clone(), schema_of_definition(one, &all))).collect();
    let text = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
    printed_from_the_code("docs/reference/status.schema.json", &text);

    let mut page = String::from(
        "# HTTP\n\n<!-- The tables are printed from src/telemetry/view.rs by `make docs`; a test compares. -->\n\n\
         | path | answers |\n|---|---|\n\
         | `/` | the status page |\n\
         | `/status` | everything on the page as JSON, below; its schema is [status.schema.json](status.schema.json) |\n\
         | `/events` | the same as a stream of server-sent events, which the page reads |\n\
         | `/metrics` | [metrics](metrics.md) for Prometheus |\n\
         | `/readyz` | 200 while the copy is fresh, otherwise 503 with the reason in one line; of two instances only the leader answers 200 |\n\
         | `/rolloutz` | 200 while this instance copies, streams or stands by, otherwise 503 |\n\
         | `/healthz` | 200 while the process lives |\n\n\
         Nothing served changes anything, and nothing holds a row's value or a password. What is bounded, and who is answered on loopback, is under\n\
         [Looking](../operations.md#looking). `headwater status --json` prints the same object.\n",
    );
    for name in [
        "StatusView",
        "StreamRoute",
        "SlotHealth",
        "TableProgress",
        "SnapshotProgress",
        "Verified",
        "Event",
        "State",
        "SnapshotPhase",
    ] {
        let definition = all.get(name).unwrap_or_else(|| panic!("no {name}"));
        let heading = if name == "StatusView" { "/status" } else { name };
        let _ = write!(page, "\n## {heading}\n\n{}\n\n", definition.comment);
        if definition.is_enum {
            page.push_str("| value | meaning |\n|---|---|\n");
            for (name, _, comment) in &definition.members {
                let _ = writeln!(page, "| `{}` | {comment} |", snake_case(name));
            }
        } else {
            page.push_str("| field | type | meaning |\n|---|---|---|\n");
            for (name, kind, comment) in &definition.members {
                let comment = comment.replace("`None`", "null");
                let _ = writeln!(page, "| `{name}` | {} | {comment} |", json_type(kind));
            }
        }
    }
    printed_from_the_code("docs/reference/http.md", &page);
}
