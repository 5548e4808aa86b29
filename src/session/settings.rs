//! The server settings that every session begins with, whatever its role, its database or its server has chosen.
//!
//! Asked by `startup` (our own sessions) and `sql` (tokio-postgres); a kind of session adds what it alone needs, which wins.
//! ALTER ROLE and ALTER DATABASE may set anything: timeouts that end honest work, a transaction that may not write, text in other
//! forms, names that are always quoted. What a session sends in its start-up message outranks both, and the `options` of its
//! connection string. Only two settings come later, by [`afterwards`]: one that older servers do not know, and one that
//! target_session_attrs looks at first.
//!
//! Not pinned is what an operator may well want of these sessions: tablespaces, memory, planner settings other than `jit` and
//! `plan_cache_mode`, commit settings, and SET ROLE.

use super::error::{ServerError, SqlState};
use crate::config::{ConnectionSettings, TargetSession};

/// Names are unique; all are known to PostgreSQL 14 to 18, and any role may set them.
const EVERY: [(&str, &str); 27] = [
    // Values travel as text in one form only.
    ("array_nulls", "on"),
    ("bytea_output", "hex"),
    ("datestyle", "ISO"),
    ("extra_float_digits", "3"),
    ("intervalstyle", "postgres"),
    ("lc_monetary", "C"),
    ("timezone", "UTC"),
    ("xmlbinary", "base64"),
    ("xmloption", "content"),
    // Our own SQL, and names that the server writes, mean one thing only. Nothing is found without its schema but pg_catalog's.
    ("backslash_quote", "safe_encoding"),
    ("check_function_bodies", "on"),
    ("quote_all_identifiers", "off"),
    ("search_path", ""),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    // BEGIN begins what it says, and an error ends a statement, not the session.
    ("default_transaction_deferrable", "off"),
    ("default_transaction_isolation", "read committed"),
    ("exit_on_error", "off"),
    // Policies that would hide rows raise an error.
    ("row_security", "off"),
    // Bounds are ours. The server notices within a second when we are gone, also in the middle of a statement.
    ("client_connection_check_interval", "1000"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("lock_timeout", "0"),
    ("statement_timeout", "0"),
    // A question to the catalog takes 2 ms, and its compilation to machine code 100.
    ("jit", "off"),
    // Nobody reads what is less.
    ("client_min_messages", "warning"),
    // Messages that are compared are ASCII in any language; names and values are UTF-8.
    ("client_encoding", "UTF8"),
];

/// A session may write, whatever is the default.
const READ_WRITE: (&str, &str) = ("default_transaction_read_only", "off");

/// The settings of the start-up message: those of every session, but for what this `kind` has otherwise.
pub(super) fn at_startup<'a>(
    connection: &ConnectionSettings,
    kind: &'a [(&'a str, String)],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let read_write = (!depends_on_default(connection.target_session)).then_some(READ_WRITE);
    let every = EVERY.into_iter().chain(read_write);
    let of_kind = |name: &str| kind.iter().any(|(other, _)| name.eq_ignore_ascii_case(other));
    every.filter(move |(name, _)| !of_kind(name)).chain(kind.iter().map(|(name, value)| (*name, value.as_str())))
}

/// The same as the text of `options`, behind the connection string's own.
pub(super) fn as_options(connection: &ConnectionSettings, kind: &[(&str, String)]) -> String {
    let mut options = connection.options.clone().unwrap_or_default();
    for (name, value) in at_startup(connection, kind) {
        let value = value.replace('\\', "\\\\").replace(' ', "\\ ");
        options.push_str(&format!(" -c {name}={value}"));
    }
    options
}

/// What is set once the server has said what it is.
pub(super) fn afterwards(connection: &ConnectionSettings, server_version: Option<&str>) -> Vec<&'static str> {
    let mut statements = Vec::new();
    if major(server_version).is_some_and(|major| major >= 17) {
        statements.push("SET transaction_timeout = 0");
    }
    if depends_on_default(connection.target_session) {
        statements.push("SET default_transaction_read_only = off");
    }
    statements
}

/// Whether target_session_attrs asks what a session may do by default.
fn depends_on_default(target: TargetSession) -> bool {
    match target {
        TargetSession::ReadWrite | TargetSession::ReadOnly => true,
        TargetSession::Any | TargetSession::Primary | TargetSession::Standby | TargetSession::PreferStandby => false,
    }
}

/// Whether a server refuses a session because it is too old to know one of these settings.
pub(super) fn is_unknown(error: &ServerError) -> bool {
    error.code == SqlState::new(b"42704")
        && EVERY.iter().any(|(name, _)| error.message.contains(&format!("\"{name}\"")))
}

/// The major of a `server_version` (`13.23 (Debian 13.23-1)`, `19devel`); `None` for what is no version.
pub(super) fn major(server_version: Option<&str>) -> Option<u32> {
    server_version?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_session_has_the_last_word_and_each_name_once() {
        let connection = ConnectionSettings::default();
        let kind = [("Lock_Timeout", "5".to_owned()), ("wal_sender_timeout", "60000".to_owned())];
        let settings: Vec<_> = at_startup(&connection, &kind).collect();
        let of = |name: &str| settings.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).collect::<Vec<_>>();
        assert_eq!(of("lock_timeout"), [&("Lock_Timeout", "5")]);
        assert_eq!(of("wal_sender_timeout").len(), 1);
        assert_eq!(of("default_transaction_read_only"), [&("default_transaction_read_only", "off")]);
        for (name, _) in &settings {
            assert_eq!(of(name).len(), 1, "{name}");
        }
    }

    #[test]
    fn options_of_the_connection_string_come_first_and_values_are_escaped() {
        let connection =
            ConnectionSettings { options: Some("-c work_mem=1MB".into()), ..ConnectionSettings::default() };
        let options = as_options(&connection, &[]);
        assert!(options.starts_with("-c work_mem=1MB -c "), "{options}");
        assert!(options.contains(" -c default_transaction_isolation=read\\ committed"), "{options}");
        assert!(options.contains(" -c search_path= "), "an empty value: {options}");
    }

    #[test]
    fn what_older_servers_do_not_know_comes_afterwards() {
        let connection = ConnectionSettings::default();
        assert!(afterwards(&connection, Some("16.4 (Debian 16.4-1)")).is_empty());
        assert_eq!(afterwards(&connection, Some("17.0")), ["SET transaction_timeout = 0"]);
        assert_eq!(afterwards(&connection, Some("19devel")), ["SET transaction_timeout = 0"]);
        let asking = ConnectionSettings { target_session: TargetSession::ReadWrite, ..connection };
        assert_eq!(afterwards(&asking, Some("14.1")), ["SET default_transaction_read_only = off"]);
        assert!(at_startup(&asking, &[]).all(|(name, _)| name != "default_transaction_read_only"));
    }
}
