//! Every key that headwater knows: its name, default and explanation, in one table.
//!
//! Stands before the parser (`file`, `values`), which looks keys up here, and docs/configuration.md, which is printed
//! from here (a test holds the page to this table), so neither can know a key that the other does not.

/// One configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// `key` or `section.key`.
    pub key: &'static str,
    /// What its values look like, for people.
    pub values: &'static str,
    /// The default in the same syntax; `None`: the operator must give one.
    pub default: Option<&'static str>,
    /// What it does, in sentences.
    pub doc: &'static str,
}

impl Setting {
    /// The environment variable that overrides the key.
    pub fn variable(&self) -> String {
        format!("HEADWATER_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }

    /// Whether a TOML integer can be meant: a count, or a size in bytes.
    pub(super) fn is_number(&self) -> bool {
        self.values.starts_with("number") || self.values.starts_with("size")
    }
}

const fn setting(key: &'static str, values: &'static str, default: Option<&'static str>, doc: &'static str) -> Setting {
    Setting { key, values, default, doc }
}

/// All keys, in the order in which they are documented.
pub const SETTINGS: &[Setting] = &[
    setting(
        "tables",
        "list of SQL identifiers",
        Some("public.sections, public.topics, public.messages"),
        "The tables to keep equal, in SQL identifier syntax: `public.messages`, `forum.\"Mixed Case\"`; without a schema, \
         `public`. The order does not matter: foreign keys decide.",
    ),
    setting(
        "on_conflict",
        "stop | source-wins",
        Some("stop"),
        "What happens when a row at the destination is not what a change expects (an insert whose key exists, an update \
         whose row is missing, a violated constraint). `stop` rolls the transaction back, names table, constraint and \
         key columns, and retries until the row is mended. `source-wins` makes the row as the source has it, and counts.",
    ),
    setting(
        "schema_changes",
        "follow | stop",
        Some("follow"),
        "What happens when a table's columns change at the source. `follow` carries out what is additive and loses \
         nothing, in the stream's order; anything else halts with the SQL to run. `stop` always halts.",
    ),
    setting(
        "truncate",
        "truncate | delete",
        Some("truncate"),
        "How a TRUNCATE is carried out. TRUNCATE is quick but makes readers wait until the commit; `delete` never does.",
    ),
    setting(
        "on_slot_lost",
        "stop | resnapshot",
        Some("stop"),
        "What happens when the replication slot is lost (dropped, invalidated, or ahead of the destination). `stop` ends with the \
         cause; `resnapshot` makes a new slot and reconciles all tables, without disturbing readers. It does so only where the \
         source is known to continue what the destination has: same system identifier, same database, the same timeline or one \
         that left it at or behind the stored position. Anything else may be an old primary that came back, an older state or a \
         wrong address, and so may a copy that lacks more than half of the rows of a table, by their keys: then nothing is changed before \
         `headwater run --resnapshot` asks for it.",
    ),
    setting(
        "origin",
        "any | none",
        Some("any"),
        "`none` leaves out transactions that were themselves replicated to the source, which cuts loops.",
    ),
    setting(
        "leader_timeout",
        "duration",
        Some("5s"),
        "A running instance that stands still as a whole for so long (frozen, cut off, its machine gone) is replaced by one that stands \
         by. One that is only busy or starved is not.",
    ),
    setting(
        "fence_timeout",
        "duration",
        Some("30s"),
        "How long the stream may be held while a fence for verify or repair is made; how long verify waits for one, or for a lock.",
    ),
    setting(
        "verify_every",
        "duration | off",
        Some("off"),
        "How often the running service verifies both sides by itself.",
    ),
    setting(
        "source.url",
        "connection string",
        None,
        "Where the source is: `postgresql://user@host:port/database?sslmode=verify-full&sslrootcert=system`, or libpq's \
         keyword/value form. libpq's habits hold: ~/.pgpass, PGPASSWORD, sslmode, sslrootcert, sslcert, sslkey, Unix \
         sockets, several hosts with target_session_attrs. What headwater does not support and would make libpq stricter \
         (sslcrl, require_auth, gssencmode=require) is refused, as a parameter and as a PG… variable. In a URI \
         write spaces and the characters `& = ; # , / : @ \" ' < > |` of names by their % escapes (`%20` for a space); in the \
         keyword/value form put such values into single quotes. The role needs REPLICATION and SELECT on the tables.",
    ),
    setting(
        "source.slot",
        "name",
        Some("headwater"),
        "The logical replication slot. It is created at the first start and belongs to one destination.",
    ),
    setting(
        "source.publication",
        "name",
        Some("headwater"),
        "The publication that holds the tables. It is created when missing and allowed; row filters and column lists of \
         an existing one are honoured.",
    ),
    setting(
        "source.timeout",
        "duration",
        Some("60s"),
        "A source that says nothing for so long is reconnected; it is asked for a sign of life every 3 seconds of silence.",
    ),
    setting(
        "source.heartbeat_every",
        "duration | off",
        Some("5s"),
        "How often a heartbeat message is written to the source's WAL (pg_logical_emit_message; no table is needed). Its \
         way to the destination's commit is the heartbeat lag.",
    ),
    setting(
        "destination.url",
        "connection string",
        None,
        "Where the destination is, in the same form as `source.url`. The role needs CREATE in the database and its schemas, or \
         ownership of the tables.",
    ),
    setting(
        "destination.synchronous_commit",
        "off | local | on | remote_write | remote_apply",
        Some("off"),
        "Whether commits wait for their WAL. With `off`, nothing is confirmed to the source before it is flushed, so that \
         nothing is lost in a crash; readers may then see the destination step back to an earlier state.",
    ),
    setting(
        "destination.lock_timeout",
        "duration",
        Some("30s"),
        "How long a statement waits for a lock that somebody else holds at the destination, before it is retried. A copy \
         waits as long for a lock at the source.",
    ),
    setting(
        "destination.timeout",
        "duration",
        Some("10m"),
        "How long an answer may take before the destination counts as unreachable. Longer than any honest batch, and never less \
         than lock_timeout and 10 s.",
    ),
    setting(
        "destination.trusted_roles",
        "list of SQL identifiers | none",
        Some("none"),
        "Roles whose code may run with headwater's rights at the destination: triggers that fire, rules, functions in checks, \
         defaults, generated columns, indexes and domains. Trusted anyway are superusers, and roles that may act as one, \
         as headwater's role or as a role of this list. Code of others is refused, since it could write the bookkeeping and \
         every other table of the set. List the tables' owner where all that it may write there may run as headwater.",
    ),
    setting(
        "destination.untrusted_owners",
        "refuse | watch",
        Some("refuse"),
        "Whether rows are written where a role that is not trusted owns the table, its schema, a type or a collation of its columns, or \
         has the TRIGGER privilege on it. Such a role can attach code to the table at a moment that it chooses, between headwater's look \
         and headwater's next statement. With `watch` rows are written, and the code is refused where it is found: that bounds \
         what such a role can do, and does not prevent it (SECURITY.md).",
    ),
    setting(
        "apply.batch_rows_max",
        "number",
        Some("20000"),
        "Most row changes of several source transactions that are committed together. Larger source transactions stay whole.",
    ),
    setting(
        "apply.batch_bytes_max",
        "size",
        Some("8MB"),
        "Most bytes, as received, of source transactions that are committed together, and of one piece of a larger one.",
    ),
    setting(
        "spool.dir",
        "directory",
        Some("/var/lib/headwater/spool"),
        "Where transactions that are still in progress at the source are kept when memory does not hold them. Made where it \
         is missing; what headwater makes in it is for its own user alone, and nothing else in it is touched.",
    ),
    setting(
        "spool.memory_bytes_max",
        "size",
        Some("64MB"),
        "How many bytes of such transactions are kept in memory. What is beyond goes to files in `spool.dir`.",
    ),
    setting(
        "spool.bytes_max",
        "size",
        Some("16GB"),
        "How many bytes `spool.dir` may take. When it is full, large transactions are left to the source until they commit.",
    ),
    setting(
        "snapshot.workers",
        "number | auto",
        Some("auto"),
        "Parallel readers of a snapshot. `auto`: as many as this machine has cores, at most 8, and as both servers have \
         sessions free. Where all tables are there and empty there is one: all rows go in by one transaction.",
    ),
    setting(
        "snapshot.max_rate",
        "size per second | off",
        Some("off"),
        "Most bytes read from the source per second: `50MB`.",
    ),
    setting(
        "snapshot.max_duration",
        "duration | off",
        Some("off"),
        "A snapshot that takes longer is reported: it holds back the source's vacuum and keeps its WAL.",
    ),
    setting(
        "http.listen",
        "address:port | off",
        Some("127.0.0.1:9477"),
        "Where /metrics, /healthz, /readyz, /rolloutz, /status and the status page are served. Nothing there changes anything.",
    ),
    setting("http.ready_lag_max", "duration", Some("60s"), "With more lag than this /readyz answers 503 and says why."),
];

/// docs/configuration.md, from the table.
pub fn reference() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Printed from src/config/settings.rs by `make docs`; a test compares. -->\n\n\
         headwater reads one TOML file: the one that `--config` or HEADWATER_CONFIG names, otherwise `./headwater.toml`, otherwise \
         `/etc/headwater/headwater.toml`, where they exist. The first must belong to this user or root, with its directory, \
         where it was not named. Every key can also be given as an environment variable, which wins over the file. Durations are \
         written `250ms`, `5s`, `10m`, `6h`; sizes `64kB`, `8MB`, `16GB` (powers of 1024) or a \
         number of bytes. A wrong file is refused (exit 2) with every problem at once.\n\n\
         | key | values | default | environment |\n|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let values = setting.values.replace('|', "\\|");
        let default = setting.default.map_or("required".to_owned(), |default| format!("`{default}`"));
        page.push_str(&format!("| `{}` | {values} | {default} | `{}` |\n", setting.key, setting.variable()));
    }
    for setting in SETTINGS {
        page.push_str(&format!("\n## {}\n\n{}\n", setting.key, setting.doc));
    }
    page
}
