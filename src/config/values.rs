//! Each key's text into its type, every wrong one reported and none of them hiding another.
//!
//! Stands between `file`, which found the text, and [`Config`]. A value that does not parse leaves a problem and a
//! stand-in, so that the rest is still checked; the stand-in never gets out, because a configuration with problems is
//! not returned.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::file::{RawValue, RawValues};
use crate::config::connection_parts::ConnectionSettings;
use crate::config::problem::{Environment, Problem, ValueOrigin};
use crate::config::typed::{
    ApplySettings, Config, DestinationSettings, HttpSettings, OnConflict, OnSlotLost, Origin, SchemaChanges,
    SnapshotSettings, SourceSettings, SpoolSettings, SynchronousCommit, TruncateMode, UntrustedOwners,
};
use crate::pg::{Ident, IdentError, QualifiedName, SlotName, SlotNameError};

/// The whole configuration; `None` when a problem left no value to stand in.
pub(super) fn typed(values: &RawValues, environment: &Environment, problems: &mut Vec<Problem>) -> Option<Config> {
    let mut read = ValueReader { values, problems };
    let source_url = read.connection("source.url", environment);
    let destination_url = read.connection("destination.url", environment);
    let config = Config {
        tables: read.tables(),
        on_conflict: read
            .choice("on_conflict", &[("stop", OnConflict::Stop), ("source-wins", OnConflict::SourceWins)])?,
        schema_changes: read
            .choice("schema_changes", &[("follow", SchemaChanges::Follow), ("stop", SchemaChanges::Stop)])?,
        truncate: read.choice("truncate", &[("truncate", TruncateMode::Truncate), ("delete", TruncateMode::Delete)])?,
        on_slot_lost: read
            .choice("on_slot_lost", &[("stop", OnSlotLost::Stop), ("resnapshot", OnSlotLost::Resnapshot)])?,
        origin: read.choice("origin", &[("any", Origin::Any), ("none", Origin::None)])?,
        leader_timeout: read.duration("leader_timeout", Duration::from_secs(1)),
        fence_timeout: read.duration("fence_timeout", Duration::from_millis(100)),
        verify_every: read.optional_duration("verify_every", Duration::from_secs(1)),
        source: SourceSettings {
            url: source_url.clone().unwrap_or_default(),
            slot: read.slot("source.slot")?,
            publication: read.publication("source.publication"),
            timeout: read.duration("source.timeout", Duration::from_secs(1)),
            heartbeat_every: read.optional_duration("source.heartbeat_every", Duration::from_millis(100)),
        },
        destination: DestinationSettings {
            url: destination_url.clone().unwrap_or_default(),
            synchronous_commit: read.choice(
                "destination.synchronous_commit",
                &[
                    ("off", SynchronousCommit::Off),
                    ("local", SynchronousCommit::Local),
                    ("on", SynchronousCommit::On),
                    ("remote_write", SynchronousCommit::RemoteWrite),
                    ("remote_apply", SynchronousCommit::RemoteApply),
                ],
            )?,
            lock_timeout: read.duration("destination.lock_timeout", Duration::from_millis(1)),
            timeout: read.duration("destination.timeout", Duration::from_secs(1)),
            trusted_roles: read.unless("destination.trusted_roles", "none", ValueReader::idents).unwrap_or_default(),
            untrusted_owners: read.choice(
                "destination.untrusted_owners",
                &[("refuse", UntrustedOwners::Refuse), ("watch", UntrustedOwners::Watch)],
            )?,
        },
        apply: ApplySettings {
            batch_rows_max: read.count("apply.batch_rows_max", 1, 10_000_000),
            batch_bytes_max: usize::try_from(read.size("apply.batch_bytes_max", 64 << 10, 1 << 30)).ok()?,
        },
        spool: SpoolSettings {
            dir: PathBuf::from(read.text("spool.dir").unwrap_or_default()),
            memory_bytes_max: read.size("spool.memory_bytes_max", 0, u64::MAX),
            bytes_max: read.size("spool.bytes_max", 0, u64::MAX),
        },
        snapshot: SnapshotSettings {
            workers: read.unless("snapshot.workers", "auto", |read, key| read.count(key, 1, 64)),
            max_rate: read.unless("snapshot.max_rate", "off", |read, key| read.size(key, 1 << 10, u64::MAX)),
            max_duration: read.optional_duration("snapshot.max_duration", Duration::from_secs(1)),
        },
        http: HttpSettings {
            listen: read.unless("http.listen", "off", ValueReader::address).flatten(),
            ready_lag_max: read.duration("http.ready_lag_max", Duration::from_millis(1)),
        },
    };
    if let (Some(source), Some(destination)) = (&source_url, &destination_url)
        && source.names_same_database(destination)
    {
        read.problem("destination.url", "names the same database as source.url".to_owned());
    }
    (source_url.is_some() && destination_url.is_some()).then_some(config)
}

struct ValueReader<'a> {
    values: &'a RawValues,
    problems: &'a mut Vec<Problem>,
}

impl ValueReader<'_> {
    fn problem(&mut self, key: &str, message: String) {
        let place = self.values.get(key).map_or(ValueOrigin::Default, |(_, place)| place.clone());
        self.problems.push(Problem { place, key: key.to_owned(), message });
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.values.get(key) {
            Some((RawValue::Text(text), _)) => Some(text.trim().to_owned()),
            Some((RawValue::List(_), _)) => {
                self.problem(key, "expected one value, not a list".to_owned());
                None
            }
            None => None,
        }
    }

    fn slot(&mut self, key: &str) -> Option<SlotName> {
        let text = self.text(key).unwrap_or_default();
        text.parse()
            .map_err(|error: SlotNameError| self.problem(key, error.to_string()))
            .ok()
            .or("stand_in".parse().ok())
    }

    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key).unwrap_or_default();
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        if self.values.contains_key(key) {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.problem(key, format!("\"{text}\" is not one of {}", names.join(", ")));
        }
        choices.first().map(|(_, value)| *value)
    }

    fn unless<T>(&mut self, key: &str, word: &str, read: impl FnOnce(&mut Self, &str) -> T) -> Option<T> {
        if matches!(self.values.get(key), Some((RawValue::Text(text), _)) if text.trim() == word) {
            return None;
        }
        Some(read(self, key))
    }

    fn duration(&mut self, key: &str, least: Duration) -> Duration {
        let Some(text) = self.text(key) else { return least };
        match humantime::parse_duration(&text) {
            Ok(duration) if duration >= least && duration <= LONGEST => duration,
            Ok(_) => {
                let (from, to) = (humantime::format_duration(least), humantime::format_duration(LONGEST));
                self.problem(key, format!("\"{text}\" is not between {from} and {to}"));
                least
            }
            Err(_) => {
                self.problem(key, format!("\"{text}\" is not a duration (write 250ms, 5s, 10m or 6h)"));
                least
            }
        }
    }

    fn optional_duration(&mut self, key: &str, least: Duration) -> Option<Duration> {
        self.unless(key, "off", |read, key| read.duration(key, least))
    }

    fn count(&mut self, key: &str, least: usize, most: usize) -> usize {
        let Some(text) = self.text(key) else { return least };
        match text.replace('_', "").parse::<usize>() {
            Ok(count) if (least..=most).contains(&count) => count,
            Ok(_) | Err(_) => {
                self.problem(key, format!("\"{text}\" is not a number between {least} and {most}"));
                least
            }
        }
    }

    fn size(&mut self, key: &str, least: u64, most: u64) -> u64 {
        let Some(text) = self.text(key) else { return least };
        match parse_size(&text) {
            Some(size) if (least..=most).contains(&size) => size,
            Some(_) => {
                self.problem(key, format!("\"{text}\" is not at least {least} and at most {most} bytes"));
                least
            }
            None => {
                self.problem(key, format!("\"{text}\" is not a size (write 64kB, 8MB, 16GB or a number of bytes)"));
                least
            }
        }
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        let text = self.text(key)?;
        let literal = text.parse::<SocketAddr>().ok();
        // `localhost` needs nobody to be asked; other names would, and a pure module asks nobody.
        let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
        let local = local.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        if literal.or(local).is_none() {
            self.problem(
                key,
                format!("\"{text}\" is not an address and a port (write 127.0.0.1:9477, [::1]:9477 or off)"),
            );
        }
        literal.or(local)
    }

    fn publication(&mut self, key: &str) -> Ident {
        let text = self.text(key).unwrap_or_default();
        // Publications are named exactly, as slots are: `Forum` means "Forum". So the name is taken as it stands.
        if text.is_empty() || text.len() > 63 || text.contains('\0') {
            self.problem(key, format!("\"{text}\" cannot name a publication: use 1 to 63 bytes"));
        }
        Ident::new(text)
    }

    fn connection(&mut self, key: &str, environment: &Environment) -> Option<ConnectionSettings> {
        let Some(text) = self.text(key) else {
            if !self.values.contains_key(key) {
                let variable = format!("HEADWATER_{}", key.replace('.', "_").to_ascii_uppercase());
                self.problem(key, format!("is required: give it in the file or as {variable}"));
            }
            return None;
        };
        match ConnectionSettings::parse(&text, environment) {
            Ok(settings) => Some(settings),
            Err(messages) => {
                for message in messages {
                    self.problem(key, message);
                }
                None
            }
        }
    }

    fn list(&self, key: &str) -> Vec<String> {
        match self.values.get(key) {
            Some((RawValue::List(names), _)) => names.clone(),
            Some((RawValue::Text(text), _)) => split_outside_quotes(text),
            None => Vec::new(),
        }
    }

    fn idents(&mut self, key: &str) -> Vec<Ident> {
        let parsed: Vec<Result<Ident, IdentError>> = self.list(key).iter().map(|name| name.parse()).collect();
        let keep = |name: Result<Ident, IdentError>| name.map_err(|error| self.problem(key, error.to_string())).ok();
        parsed.into_iter().filter_map(keep).collect()
    }

    fn tables(&mut self) -> Vec<QualifiedName> {
        let names = self.list("tables");
        let is_empty = names.is_empty();
        let mut tables = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            match name.parse::<QualifiedName>() {
                Ok(table) if seen.insert(table.clone()) => tables.push(table),
                Ok(table) => self.problem("tables", format!("lists {table} twice")),
                Err(error @ IdentError::Pattern(_)) => {
                    self.problem(
                        "tables",
                        format!("{error}: headwater init writes a configuration with all tables of the source"),
                    );
                }
                Err(error) => self.problem("tables", error.to_string()),
            }
        }
        if is_empty {
            self.problem("tables", "is empty: name at least one table".to_owned());
        }
        tables
    }
}

/// A year: longer waits are typing errors.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Bytes from `8MB`, `64 kB`, `1GB/s` or a plain number; units are powers of 1024, as in PostgreSQL's settings.
/// A size, or bytes per second, as the configuration writes them: `50MB`.
pub fn parse_rate(text: &str) -> Option<u64> {
    parse_size(text.strip_suffix("/s").unwrap_or(text)).filter(|size| *size > 0)
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.replace('_', "").parse().ok()?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// Splits a list given as text at commas that are not inside double quotes.
fn split_outside_quotes(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        quoted ^= c == '"';
        if c == ',' && !quoted {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items.into_iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::problem::FileText;

    const URLS: &str = "[source]\nurl = \"postgresql://u@a/forum\"\n[destination]\nurl = \"postgresql://u@b/forum\"\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Some(FileText { name: "headwater.toml", text }), &Environment::new())
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn trusted_roles_are_identifiers_and_nobody_unless_they_are_listed() {
        let with = |line: &str| parse(&format!("{URLS}{line}\n")).map(|config| config.destination.trusted_roles);
        assert_eq!(with(""), Ok(Vec::new()));
        assert_eq!(with("trusted_roles = \"none\""), Ok(Vec::new()));
        let roles = [Ident::new("forum_owner"), Ident::new("Mixed Case")];
        assert_eq!(with("trusted_roles = [\"Forum_Owner\", '\"Mixed Case\"']"), Ok(roles.to_vec()));
        assert_eq!(with("trusted_roles = 'Forum_Owner, \"Mixed Case\"'"), Ok(roles.to_vec()));
        let refused = with("trusted_roles = [\"a b\", \"\"]").unwrap_err();
        assert!(refused.contains("destination.trusted_roles: \"a b\" is not an SQL identifier"), "{refused}");
        assert!(refused.contains("a name cannot be empty"), "{refused}");
    }

    #[test]
    fn two_urls_are_enough() {
        let config = parse(URLS).unwrap();
        assert_eq!(config.tables.len(), 3);
        assert_eq!(config.source.slot.as_str(), "headwater");
        assert_eq!(config.leader_timeout, Duration::from_secs(5));
        assert_eq!(config.http.listen, Some("127.0.0.1:9477".parse().unwrap()));
        assert_eq!(config.apply.batch_bytes_max, 8 << 20);
    }

    #[test]
    fn a_pattern_of_tables_is_called_one_and_nothing_follows_from_it() {
        let problems = parse(&format!("tables = [\"public.*\", \"a_*\", \"\\\"a*\\\"\"]\n{URLS}")).unwrap_err();
        let said = "is a pattern, and each name must be given by itself: headwater init writes a configuration with all tables";
        assert!(problems.contains(&format!("tables: \"public.*\" {said}")), "{problems}");
        assert!(problems.contains(&format!("tables: \"a_*\" {said}")), "{problems}");
        assert_eq!(problems.matches("tables: ").count(), 2, "a quoted asterisk is a name: {problems}");
        let problems = parse(&format!("tables = [\"public.*\"]\n{URLS}")).unwrap_err();
        assert!(!problems.contains("is empty"), "{problems}");
        let problems = parse(&format!("tables = []\n{URLS}")).unwrap_err();
        assert!(problems.contains("tables: is empty"), "{problems}");
    }

    #[test]
    fn every_problem_is_reported_at_once_with_line_key_and_nearest_name() {
        let text = "tables = [\"a b\", \"t\", \"T\"]\non_conflct = \"stop\"\nleader_timeout = \"soon\"\n\
                    [source]\nslto = \"x\"\nslot = \"Bad-Slot\"\n[http]\nlisten = 9477\n[nonsense]\nx = 1\n";
        let problems = parse(text).unwrap_err();
        for expected in [
            "headwater.toml:1: tables: \"a b\" is not an SQL identifier",
            "headwater.toml:1: tables: lists public.t twice",
            "headwater.toml:2: on_conflct: unknown key; did you mean on_conflict?",
            "headwater.toml:3: leader_timeout: \"soon\" is not a duration",
            "headwater.toml:5: source.slto: unknown key; did you mean source.slot?",
            "headwater.toml:6: source.slot: \"Bad-Slot\" cannot name a replication slot",
            "headwater.toml:8: http.listen: expected address:port | off, not an integer",
            "headwater.toml:10: nonsense.x: unknown key",
            "source.url: is required: give it in the file or as HEADWATER_SOURCE_URL",
            "destination.url: is required",
        ] {
            assert!(problems.contains(expected), "no {expected:?} in\n{problems}");
        }
        assert_eq!(problems.lines().count(), 10, "{problems}");
    }

    #[test]
    fn a_value_of_a_wrong_toml_type_is_refused_and_a_number_is_decimal() {
        for (line, said) in [
            ("[source]\nslot = 5", "source.slot: expected name, not an integer"),
            ("[source]\npublication = 5", "source.publication: expected name, not an integer"),
            ("[source]\ntimeout = 60", "source.timeout: expected duration, not an integer"),
            ("[spool]\ndir = 1.5", "spool.dir: expected directory, not a float"),
            ("[apply]\nbatch_rows_max = 0x10", "apply.batch_rows_max: write the number in decimal"),
            ("[apply]\nbatch_rows_max = true", "apply.batch_rows_max: expected number, not a boolean"),
            ("[apply]\nbatch_rows_max = [\"1\"]", "apply.batch_rows_max: expected one value, not a list"),
        ] {
            let problems = parse(&format!("{line}\n")).unwrap_err();
            assert!(problems.contains(said), "no {said:?} in\n{problems}");
        }
        let problems = parse("tables = [1, 2]\non_conflict = 5\n").unwrap_err();
        assert!(problems.contains("tables: expected a list of strings"), "{problems}");
        assert!(problems.contains("on_conflict: expected stop | source-wins, not an integer"), "{problems}");
        let problems = parse("[apply]\nbatch_rows_max = 1_000\nbatch_bytes_max = 65536\n").unwrap_err();
        assert!(!problems.contains("apply."), "{problems}");
    }

    #[test]
    fn a_file_that_is_not_toml_is_refused_with_its_line() {
        let problems = parse(&format!("{URLS}x = = 1\n")).unwrap_err();
        assert!(problems.starts_with("headwater.toml:5: "), "{problems}");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let mut environment = Environment::new();
        environment.insert("HEADWATER_ON_CONFLICT".into(), "source-wins".into());
        environment.insert("HEADWATER_TABLES".into(), "a, s.\"b,c\"".into());
        environment.insert("HEADWATER_APPLY_BATCH_ROWS_MAX".into(), "7".into());
        let file = format!("on_conflict = \"stop\"\n{URLS}");
        let config = Config::parse(Some(FileText { name: "f", text: &file }), &environment).unwrap();
        assert_eq!(config.on_conflict, OnConflict::SourceWins);
        assert_eq!(config.tables, [QualifiedName::new("public", "a"), QualifiedName::new("s", "b,c")]);
        assert_eq!(config.apply.batch_rows_max, 7);

        environment.insert("HEADWATER_ON_CONFLICT".into(), "maybe".into());
        let problems = Config::parse(Some(FileText { name: "f", text: &file }), &environment).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "HEADWATER_ON_CONFLICT: on_conflict: \"maybe\" is not one of stop, source-wins"
        );
    }

    #[test]
    fn the_same_database_on_both_ends_is_refused() {
        let text = URLS.replace("@b/", "@a/");
        assert!(parse(&text).unwrap_err().contains("names the same database as source.url"));
    }

    #[test]
    fn a_password_is_in_no_message() {
        let text = URLS.replace("u@a", "u:hunter2@a").replace("forum\"\n[dest", "forum?sslmode=maybe\"\n[dest");
        let problems = parse(&text).unwrap_err();
        assert!(problems.contains("sslmode") && !problems.contains("hunter2"), "{problems}");
        let config = parse(&URLS.replace("u@a", "u:hunter2@a")).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("8MB", Some(8 << 20)),
            ("64 kB", Some(64 << 10)),
            ("1_000", Some(1000)),
            ("5MB/s", Some(5 << 20)),
            ("x", None),
            ("-1", None),
            ("1PB", None),
            ("99999999999999999999", None),
            ("99999999TB", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn misspelt_variables_are_named_and_foreign_ones_are_not() {
        let environment: Environment = ["HEADWATER_SOURCE_URLS", "HEADWATER_SERVICE_HOST", "HEADWATER_SOURCE_URL"]
            .map(|name| (name.to_owned(), String::new()))
            .into();
        assert_eq!(
            crate::config::misspelt_variables(&environment),
            [("HEADWATER_SOURCE_URLS".to_owned(), "HEADWATER_SOURCE_URL".to_owned())]
        );
    }
}
