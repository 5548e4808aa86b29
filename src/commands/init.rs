//! `headwater init`: a first configuration and the privileges that it needs, after looking at both databases.
//!
//! Writes a commented file (never over an existing one) and prints the GRANTs for least-privilege roles of both sides
//! on standard output. No password gets into the file: what the URLs held of one goes to a password file or PGPASSWORD.
//! Nor need one be an argument, which other users of the machine see: the URLs may come from the environment.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::cli::InitArguments;
use super::display;
use crate::catalog::not_carried::summary;
use crate::commands::exit::ExitStatus;
use crate::config::{ConnectionSettings, Environment, SETTINGS};
use crate::error_policy::report;
use crate::maintenance::proposal::{self, Proposal};
use crate::pg::{Ident, QualifiedName, toml_string};

/// What marks schema changes in the stream. Its owner's to install: nothing of it is ever run by headwater.
const DDL_MARKS: &str = include_str!("../../sql/ddl_marks.sql");

/// Looks, writes, prints.
pub(super) async fn run(arguments: &InitArguments) -> ExitStatus {
    if arguments.ddl_marks {
        display::result(DDL_MARKS.trim_end());
        return ExitStatus::Done;
    }
    let (Some(from), Some(to)) = (&arguments.source, &arguments.destination) else {
        display::error("SOURCE_URL and DESTINATION_URL are required");
        return ExitStatus::Usage;
    };
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let parse = |name: &str, text: &str| {
        ConnectionSettings::parse(text, &environment).map_err(|problems| format!("{name}: {}", problems.join("; ")))
    };
    let parsed = parse("SOURCE_URL", from).and_then(|source| {
        let destination = parse("DESTINATION_URL", to)?;
        let tables: Result<Vec<QualifiedName>, String> = arguments
            .table
            .iter()
            .map(|name| name.parse().map_err(|error| format!("--table {name}: {error}")))
            .collect();
        Ok((source, destination, tables?))
    });
    let (source, destination, tables) = match parsed {
        Ok(parsed) => parsed,
        Err(problem) => {
            display::error(&problem);
            return ExitStatus::Usage;
        }
    };
    let proposal = match proposal::propose(&source, &destination, &tables).await {
        Ok(proposal) => proposal,
        Err(fault) => {
            display::error(&report(&fault).lines());
            return ExitStatus::OperatorMustAct;
        }
    };
    let text = configuration(from, to, &proposal);
    if let Err(error) = write(&arguments.output, &text) {
        display::error(&format!("cannot write {}: {error}", arguments.output.display()));
        return ExitStatus::OperatorMustAct;
    }
    display::line(&format!("wrote {}", arguments.output.display()));
    display::result(&grants(&proposal));
    match &proposal.not_carried {
        Ok(found) if found.is_empty() => {}
        Ok(found) => {
            summary(found).iter().for_each(|(_, line)| display::line(line));
            display::line("headwater check --not-carried prints the SQL that makes these at the destination.");
        }
        Err(report) => display::warning(&report.lines()),
    }
    display::line("Run these statements, then: headwater check, headwater run (both with --config).");
    ExitStatus::Done
}

/// Readable by its owner only, and never over a file that is there.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn configuration(source: &str, destination: &str, proposal: &Proposal) -> String {
    let mut text = String::from(
        "# headwater's configuration, as proposed by headwater init. Every key is explained in docs/configuration.md.\n\
         # Passwords do not belong here: use ~/.pgpass.\n\n# The tables to keep equal.\ntables = [\n",
    );
    for table in &proposal.tables {
        let mut note = format!("{} MB", table.bytes.div_ceil(1 << 20));
        if let Some(child) = &table.needed_by {
            note.push_str(&format!(", needed by a foreign key of {child}"));
        }
        if table.exists {
            note.push_str(", exists at the destination");
        }
        text.push_str(&format!("    {}, # {note}\n", toml_string(&table.name.to_string())));
    }
    for (name, why) in &proposal.left_out {
        text.push_str(&format!("    # {}: {why}\n", toml_string(&name.to_string())));
    }
    text.push_str("]\n\n");
    text.push_str(&defaults(""));
    let with_role = |url: &str, role: &Ident| toml_string(&without_password(url, role));
    text.push_str(&format!("\n[source]\nurl = {}\n", with_role(source, &proposal.reader)));
    text.push_str(&defaults("source"));
    text.push_str(&format!("\n[destination]\nurl = {}\n", with_role(destination, &proposal.writer)));
    if !proposal.owners.is_empty() {
        let owners: Vec<String> = proposal.owners.iter().map(|owner| toml_string(&owner.to_string())).collect();
        text.push_str(&format!(
            "# They own tables, schemas, types or collations here: what they attach to them runs with headwater's rights.\n\
             trusted_roles = [{}]\n",
            owners.join(", ")
        ));
    }
    text.push_str(&defaults("destination"));
    for section in ["apply", "spool", "snapshot", "http"] {
        text.push_str(&format!("\n[{section}]\n{}", defaults(section)));
    }
    text
}

/// The keys of a section that have defaults, as comments with their first sentence.
fn defaults(section: &str) -> String {
    let mut text = String::new();
    for setting in SETTINGS {
        let (of, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
        let Some(default) = setting.default.filter(|_| of == section && name != "tables") else { continue };
        let sentence = setting.doc.split_inclusive(". ").next().unwrap_or_default().trim();
        let number = default.parse::<u64>().is_ok();
        let value = if number { default.to_owned() } else { toml_string(default) };
        text.push_str(&format!("# {sentence}\n# {name} = {value}\n"));
    }
    text
}

/// The connection string with this role and without a password.
fn without_password(text: &str, role: &Ident) -> String {
    let encoded: String = role
        .as_str()
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    let Some((scheme, rest)) = text.split_once("://") else {
        // Keyword and value pairs.
        let kept = split_keywords(text).into_iter().filter(|(key, _)| key != "password" && key != "user");
        let mut pairs: Vec<String> = kept.map(|(key, value)| format!("{key}={value}")).collect();
        pairs.push(format!("user='{}'", role.as_str().replace('\\', "\\\\").replace('\'', "\\'")));
        return pairs.join(" ");
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let query: Vec<&str> = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("password=") && !pair.starts_with("user="))
        .collect();
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    format!("{scheme}://{encoded}@{hosts}{path}{query}")
}

/// `key=value` pairs with their values as written, quotes included.
fn split_keywords(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let mut in_quotes = false;
        let mut escaped = false;
        let end = after
            .char_indices()
            .find(|(_, c)| {
                let ends = c.is_whitespace() && !in_quotes && !escaped;
                if *c == '\'' && !escaped {
                    in_quotes = !in_quotes;
                }
                escaped = *c == '\\' && !escaped;
                ends
            })
            .map_or(after.len(), |(at, _)| at);
        let (value, tail) = after.split_at(end);
        pairs.push((key.trim().to_owned(), value.to_owned()));
        rest = tail.trim_start();
    }
    pairs
}

/// The statements that let two ordinary roles do what headwater does.
fn grants(proposal: &Proposal) -> String {
    let Proposal { tables, reader, writer, destination_database: database, .. } = proposal;
    let names = |tables: &mut dyn Iterator<Item = &QualifiedName>| {
        tables.map(QualifiedName::to_string).collect::<Vec<_>>().join(", ")
    };
    let mut schemas: Vec<&Ident> = tables.iter().map(|table| &table.name.schema).collect();
    schemas.sort();
    schemas.dedup();
    let schemas = schemas.into_iter().map(Ident::to_string).collect::<Vec<_>>().join(", ");
    let all = names(&mut tables.iter().map(|table| &table.name));
    let existing = names(&mut tables.iter().filter(|table| table.exists).map(|table| &table.name));
    let mut lines = replication_grants(proposal);
    lines.push(format!("GRANT USAGE ON SCHEMA {schemas} TO {reader};"));
    lines.push(format!("GRANT SELECT ON {all} TO {reader};"));
    lines.push(format!("GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schemas} TO {reader};"));
    lines.push(format!("CREATE PUBLICATION headwater FOR TABLE {all} WITH (publish_via_partition_root = true);"));
    lines.push(String::new());
    lines.push("-- At the destination, as the database's owner:".to_owned());
    if !proposal.writer_exists {
        lines.push(format!("CREATE ROLE {writer} LOGIN; -- and \\password {writer}"));
    }
    lines.push(format!("GRANT CREATE ON DATABASE {database} TO {writer};"));
    lines.push(format!("GRANT USAGE, CREATE ON SCHEMA {schemas} TO {writer};"));
    if !existing.is_empty() {
        lines.push(format!("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {existing} TO {writer};"));
        lines.push(format!("GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA {schemas} TO {writer};"));
    }
    if proposal.replica_grantable {
        lines.push(
            "-- As a superuser; without it foreign keys and triggers act on what is applied, and it is slower:"
                .to_owned(),
        );
        lines.push(format!("GRANT SET ON PARAMETER session_replication_role TO {writer};"));
    }
    lines.join("\n")
}

/// What makes a role that may replicate, by the means of the source's provider.
fn replication_grants(proposal: &Proposal) -> Vec<String> {
    let Proposal { reader, reader_exists, .. } = proposal;
    let Some(provider) = proposal.provider else {
        let statement = match reader_exists {
            true => format!("ALTER ROLE {reader} REPLICATION;"),
            false => format!("CREATE ROLE {reader} LOGIN REPLICATION; -- and \\password {reader}"),
        };
        return vec!["-- At the source, as a superuser:".to_owned(), statement];
    };
    let mut lines = vec![format!("-- At the source, as {} ({}):", provider.administrator(), provider.name())];
    let grant = provider.replication_statement(reader);
    match (reader_exists, &grant) {
        (false, Some(_)) => lines.push(format!("CREATE ROLE {reader} LOGIN; -- and \\password {reader}")),
        (_, None) => lines.push(format!(
            "-- {reader} comes from {}'s console, CLI or API: such roles may replicate.",
            provider.name()
        )),
        (true, Some(_)) => {}
    }
    lines.extend(grant);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_gets_into_the_file_and_the_role_is_the_proposed_one() {
        let role = Ident::new("rea der");
        for (given, written) in [
            (
                "postgresql://postgres:hunter2@h:5433/db?sslmode=require",
                "postgresql://rea%20der@h:5433/db?sslmode=require",
            ),
            ("postgresql:///db?host=/tmp&password=hunter2&user=x", "postgresql://rea%20der@/db?host=/tmp"),
            ("postgres://u@h", "postgres://rea%20der@h"),
            ("host=h password='hun ter2' user=u dbname=db", "host=h dbname=db user='rea der'"),
        ] {
            assert_eq!(without_password(given, &role), written);
        }
    }

    #[test]
    fn texts_are_quoted_as_toml_wants_them() {
        assert_eq!(toml_string("public.\"Mixed\"\n"), "\"public.\\\"Mixed\\\"\\u000A\"");
    }
}
