//! A connection string's text into parameters, and these with the `PG…` environment into [`ConnectionSettings`].
//!
//! Called by [`ConnectionSettings::parse`], which says which of libpq's habits it takes over and which not. Every problem of
//! a string is reported, none with its password.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::connection_parts::{
    ChannelBinding, ConnectionSettings, Host, RootCertificates, Secret, SslMode, SslNegotiation, TargetSession,
};
use crate::config::problem::Environment;

/// Where sockets are by default: Debian's and Red Hat's packages agree on it.
pub(super) const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";
const DEFAULT_PORT: u16 = 5432;

/// A connection string's parameters before they have types; the last of a name wins, as in libpq.
#[derive(Default)]
pub(super) struct ConnectionParameters {
    values: Vec<(String, String)>,
    /// A password stands among them, and where it was not quoted or escaped, what follows may be the rest of it.
    has_password_parameter: bool,
}

impl ConnectionParameters {
    pub(super) fn from_uri(rest: &str) -> Result<ConnectionParameters, String> {
        let mut parameters = ConnectionParameters::default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(login, hosts)| (Some(login), hosts));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(user, word)| (user, Some(word)));
            parameters.set("user", decode(understood(user, &JUNK_IN_NAMES)?)?);
            if let Some(password) = password {
                parameters.set("password", decode(password)?);
            }
        }
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[') {
                Some(literal) => {
                    let (address, port) =
                        literal.split_once(']').ok_or("has an IPv6 address without a closing bracket")?;
                    (address, port.strip_prefix(':').unwrap_or_default())
                }
                None => host.rsplit_once(':').unwrap_or((host, "")),
            };
            names.push(decode(understood(name, &JUNK_IN_NAMES)?)?);
            if !port.bytes().all(|digit| digit.is_ascii_digit()) {
                return Err("has a port that is not a number".to_owned());
            }
            ports.push(port.to_owned());
        }
        if names.iter().any(|name| !name.is_empty()) {
            parameters.set("host", names.join(","));
        }
        if ports.iter().any(|port| !port.is_empty()) {
            parameters.set("port", ports.join(","));
        }
        if !database.is_empty() {
            parameters.set("dbname", decode(understood(understood(database, &JUNK_IN_NAMES)?, &[':', '@'])?)?);
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            // What stands here may be the rest of a password with an unescaped `?`, so it is not shown.
            let (name, value) = pair.split_once('=').ok_or("has a parameter without a value after the ?")?;
            let name = decode(name)?;
            let value = if FREE_TEXTS.contains(&name.as_str()) { value } else { understood(value, &JUNK)? };
            parameters.has_password_parameter |= name == "password";
            parameters.set(&name, decode(value)?);
        }
        Ok(parameters)
    }

    pub(super) fn from_keywords(text: &str) -> Result<ConnectionParameters, String> {
        let mut parameters = ConnectionParameters::default();
        let mut chars = text.chars().peekable();
        loop {
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            if chars.peek().is_none() {
                return Ok(parameters);
            }
            let mut name = String::new();
            while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
                name.push(c);
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            if chars.next() != Some('=') {
                // The word may be a piece of a password that was left unquoted, so it is not shown.
                return Err("is neither a postgresql:// URI nor a list of keyword=value".to_owned());
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            let quoted = chars.next_if_eq(&'\'').is_some();
            let mut value = String::new();
            loop {
                match chars.next() {
                    Some('\'') if quoted => break,
                    Some('\\') => value.extend(chars.next()),
                    Some(c) if !quoted && c.is_whitespace() => break,
                    Some(c) => value.push(c),
                    None if quoted => {
                        let name = if KNOWN.contains(&name.as_str()) { name } else { "a parameter".to_owned() };
                        return Err(format!("has an unterminated quoted value for {name}"));
                    }
                    None => break,
                }
            }
            if !quoted && !FREE_TEXTS.contains(&name.as_str()) {
                let junk = JUNK.iter().chain(if matches!(name.as_str(), "user" | "dbname") { &[':'][..] } else { &[] });
                let junk: Vec<char> = junk.copied().collect();
                understood(&value, &junk).map_err(|_| JUNK_IN_KEYWORDS.to_owned())?;
            }
            parameters.has_password_parameter |= name == "password";
            parameters.set(&name, value);
        }
    }

    fn set(&mut self, name: &str, value: String) {
        self.values.retain(|(known, _)| known != name);
        self.values.push((name.to_owned(), value));
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.values.iter().position(|(known, _)| known == name)?;
        let (_, value) = self.values.swap_remove(at);
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn into_settings(mut self, environment: &Environment) -> Result<ConnectionSettings, Vec<String>> {
        let mut problems = Vec::new();
        let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        // Names may be pieces of a password then.
        let hides_names = self.has_password_parameter || !self.values.iter().all(|(name, _)| is_name(name));
        let settings = ParameterReader { parameters: &mut self, environment, problems: &mut problems }.settings();
        // What would make libpq stricter must not be passed over in silence.
        for (name, harmless) in STRICTER {
            if variable(environment, name).is_some_and(|value| !harmless.contains(&value.as_str())) {
                problems.push(format!("cannot be used with {name}, which headwater does not support: unset it"));
            }
        }
        if settings.ssl_certificate.is_some() != settings.ssl_key.is_some() {
            problems.push("sslcert and sslkey need each other".to_owned());
        }
        for (name, value) in self.values {
            match name.as_str() {
                // True of every connection of ours, or without meaning for it.
                "keepalives" | "load_balance_hosts" => {}
                "gssencmode" if matches!(value.as_str(), "" | "disable" | "prefer") => {}
                "gssencmode" => problems.push("gssencmode: headwater speaks no GSSAPI, use TLS (sslmode)".to_owned()),
                "sslsni" if matches!(value.as_str(), "" | "1") => {}
                "client_encoding" => problems.push("client_encoding cannot be chosen: headwater sets it".to_owned()),
                "replication" => {
                    problems.push("replication cannot be chosen: headwater sets it where needed".to_owned())
                }
                _ if value.is_empty() => {}
                _ if KNOWN.contains(&name.as_str()) || !hides_names && is_name(&name) => {
                    problems.push(format!("has an unsupported parameter: {name}"));
                }
                _ => problems.push("has a parameter that is not a name".to_owned()),
            }
        }
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }
}

fn variable<'a>(environment: &'a Environment, name: &str) -> Option<&'a String> {
    environment.get(name).filter(|value| !value.is_empty())
}

/// Reads settings out of parameters and variables; each parameter that it reads is taken out of them.
struct ParameterReader<'a> {
    parameters: &'a mut ConnectionParameters,
    environment: &'a Environment,
    problems: &'a mut Vec<String>,
}

impl ParameterReader<'_> {
    fn take(&mut self, name: &str) -> Option<String> {
        self.parameters.take(name)
    }

    fn variable(&self, name: &str) -> Option<String> {
        variable(self.environment, name).cloned()
    }

    /// A parameter, or the variable that stands for it.
    fn choice(&mut self, name: &str, from: &str) -> Option<String> {
        self.take(name).or_else(|| self.variable(from))
    }

    /// A parameter that takes one of a few values; `default` where it is not given, or is none of them.
    fn one_of<T: Copy>(&mut self, name: &str, from: &str, values: &[(&str, T)], default: T) -> T {
        let Some(text) = self.choice(name, from) else { return default };
        if let Some((_, value)) = values.iter().find(|(known, _)| *known == text) {
            return *value;
        }
        let known: Vec<&str> = values.iter().map(|(known, _)| *known).collect();
        self.problems.push(format!("{name}{} is not one of {}", shown(&text), known.join(", ")));
        default
    }

    /// A whole number greater than 0. 0 and less are no bound in libpq, or the system's; here nothing waits without one: it is our
    /// default.
    fn number(&mut self, value: Option<String>, name: &str) -> Option<u32> {
        let text = value?;
        // As strtol reads it, with what is blank in C.
        let number = text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']).parse::<i32>().ok();
        if number.is_none() {
            self.problems.push(format!("{name}{} is not a whole number", shown(&text)));
        }
        number.and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0)
    }

    fn seconds(&mut self, value: Option<String>, name: &str, default: Duration) -> Duration {
        self.number(value, name).map_or(default, |seconds| Duration::from_secs(seconds.into()))
    }

    fn settings(mut self) -> ConnectionSettings {
        let defaults = ConnectionSettings::default();
        let home = self.variable("HOME").map(PathBuf::from);
        let user = self.take("user").or_else(|| self.variable("PGUSER")).or_else(|| self.variable("USER"));
        let user = user.or_else(|| self.variable("LOGNAME")).unwrap_or_else(|| {
            self.problems.push("names no user".to_owned());
            String::new()
        });
        let database = self.choice("dbname", "PGDATABASE").unwrap_or_else(|| user.clone());
        let names = self.choice("host", "PGHOST");
        let addresses = self.choice("hostaddr", "PGHOSTADDR");
        let ports = self.choice("port", "PGPORT").unwrap_or_default();
        let hosts = hosts(names, addresses, &ports, self.problems);
        if user.contains("://") || database.contains("://") {
            self.problems.push("has a URI in the place of a user or database".to_owned());
        }
        let tls = self.tls();
        let target_session = self.target_session();
        let connect_timeout = self.choice("connect_timeout", "PGCONNECT_TIMEOUT");
        let connect_timeout = self.seconds(connect_timeout, "connect_timeout", defaults.connect_timeout);
        let [idle, interval, count, user_timeout] =
            ["keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"]
                .map(|name| (self.take(name), name));
        let keepalives_idle = self.seconds(idle.0, idle.1, defaults.keepalives_idle);
        let keepalives_interval = self.seconds(interval.0, interval.1, defaults.keepalives_interval);
        let keepalives_count = self.number(count.0, count.1);
        let tcp_user_timeout = self.number(user_timeout.0, user_timeout.1);
        let password_file = self.choice("passfile", "PGPASSFILE").map(PathBuf::from);
        let application_name = self.choice("application_name", "PGAPPNAME");
        ConnectionSettings {
            hosts,
            user,
            database,
            password: self.choice("password", "PGPASSWORD").map(Secret::new),
            password_file: password_file.or_else(|| home.as_ref().map(|home| home.join(".pgpass"))),
            application_name: application_name
                .or_else(|| self.take("fallback_application_name"))
                .unwrap_or(defaults.application_name),
            options: self.choice("options", "PGOPTIONS"),
            connect_timeout,
            ssl_mode: tls.mode,
            ssl_negotiation: tls.negotiation,
            ssl_root_certificates: tls.root_certificates,
            ssl_certificate: self.choice("sslcert", "PGSSLCERT").map(PathBuf::from),
            ssl_key: self.choice("sslkey", "PGSSLKEY").map(PathBuf::from),
            channel_binding: tls.channel_binding,
            target_session,
            keepalives_idle,
            keepalives_interval,
            keepalives_count: keepalives_count.unwrap_or(defaults.keepalives_count),
            tcp_user_timeout: tcp_user_timeout.map_or(defaults.tcp_user_timeout, |ms| Duration::from_millis(ms.into())),
        }
    }

    fn tls(&mut self) -> Tls {
        let root_certificates = self.choice("sslrootcert", "PGSSLROOTCERT").map(|file| match file.as_str() {
            "system" => RootCertificates::System,
            _ => RootCertificates::File(PathBuf::from(file)),
        });
        let is_of_the_system = root_certificates == Some(RootCertificates::System);
        let modes = [
            ("disable", SslMode::Disable),
            ("allow", SslMode::Allow),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ];
        // With the system's roots anything weaker is pointless; libpq has the same default.
        let default = if is_of_the_system { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = self.one_of("sslmode", "PGSSLMODE", &modes, default);
        if is_of_the_system && mode != SslMode::VerifyFull {
            self.problems.push("sslrootcert=system needs sslmode=verify-full".to_owned());
        }
        let negotiations = [("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)];
        let negotiation = self.one_of("sslnegotiation", "PGSSLNEGOTIATION", &negotiations, SslNegotiation::Postgres);
        if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
            self.problems.push("sslnegotiation=direct needs sslmode=require or stronger".to_owned());
        }
        let bindings = [
            ("disable", ChannelBinding::Disable),
            ("prefer", ChannelBinding::Prefer),
            ("require", ChannelBinding::Require),
        ];
        let channel_binding = self.one_of("channel_binding", "PGCHANNELBINDING", &bindings, ChannelBinding::Prefer);
        Tls { mode, negotiation, root_certificates, channel_binding }
    }

    fn target_session(&mut self) -> TargetSession {
        let sessions = [
            ("any", TargetSession::Any),
            ("read-write", TargetSession::ReadWrite),
            ("read-only", TargetSession::ReadOnly),
            ("primary", TargetSession::Primary),
            ("standby", TargetSession::Standby),
            ("prefer-standby", TargetSession::PreferStandby),
        ];
        self.one_of("target_session_attrs", "PGTARGETSESSIONATTRS", &sessions, TargetSession::Any)
    }
}

/// How a connection is secured.
struct Tls {
    mode: SslMode,
    negotiation: SslNegotiation,
    root_certificates: Option<RootCertificates>,
    channel_binding: ChannelBinding,
}

/// Variables that bind libpq to checks which are not made here, and the values by which they ask for none that is not.
pub(super) const STRICTER: [(&str, &[&str]); 9] = [
    ("PGGSSENCMODE", &["disable", "prefer"]),
    ("PGREQUIREAUTH", &[]),
    ("PGREQUIREPEER", &[]),
    ("PGREQUIRESSL", &["0"]),
    ("PGSERVICE", &[]),
    ("PGSSLCERTMODE", &["allow"]),
    ("PGSSLCRL", &[]),
    ("PGSSLCRLDIR", &[]),
    // TLS 1.2 is the least that is spoken.
    ("PGSSLMINPROTOCOLVERSION", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
];

/// Pairs host names, addresses and ports, which are lists of one length, or one port for all.
fn hosts(names: Option<String>, addresses: Option<String>, ports: &str, problems: &mut Vec<String>) -> Vec<Host> {
    let names = names.or_else(|| addresses.clone()).unwrap_or_else(|| DEFAULT_SOCKET_DIRECTORY.to_owned());
    let names: Vec<&str> = names.split(',').collect();
    let addresses: Vec<&str> = addresses.as_deref().map(|list| list.split(',').collect()).unwrap_or_default();
    let ports: Vec<&str> = ports.split(',').collect();
    if ports.len() != 1 && ports.len() != names.len() {
        problems.push(format!("has {} hosts but {} ports", names.len(), ports.len()));
    }
    if !addresses.is_empty() && addresses.len() != names.len() {
        problems.push(format!("has {} hosts but {} addresses", names.len(), addresses.len()));
    }
    let mut hosts = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let port = match ports.get(at).or(ports.first()).copied().unwrap_or_default() {
            "" => DEFAULT_PORT,
            text => text.parse().unwrap_or_else(|_| {
                let is_number = text.len() <= PORT_DIGITS && text.bytes().all(|digit| digit.is_ascii_digit());
                problems.push(format!(
                    "port{} is not between 1 and 65535",
                    if is_number { shown(text) } else { String::new() }
                ));
                DEFAULT_PORT
            }),
        };
        let name = if name.is_empty() { DEFAULT_SOCKET_DIRECTORY } else { name };
        // A whole login may stand in its place, so it is not shown.
        let is_name = !name.contains([':', '@', '/']) && !name.contains(char::is_whitespace);
        if !is_name && !is_address(name) && !name.starts_with(['/', '@']) {
            problems.push("has a host that is neither a name nor an address".to_owned());
        }
        if addresses.get(at).is_some_and(|address| !address.is_empty() && !is_address(address)) {
            problems.push("has a hostaddr that is not an address".to_owned());
        }
        hosts.push(if name.starts_with(['/', '@']) {
            Host::Unix { directory: PathBuf::from(name), port }
        } else {
            let address = addresses.get(at).filter(|address| !address.is_empty()).map(|address| (*address).to_owned());
            Host::Tcp { host: name.to_owned(), address, port }
        });
    }
    hosts
}

/// Whether a text looks like an IPv4 or IPv6 address, with or without a zone.
fn is_address(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    !address.is_empty()
        && address.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b'.' | b':'))
        && zone.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Digits of the largest port: what has more may be a password that stands in its place.
const PORT_DIGITS: usize = 5;

/// Values in which every character has its meaning: they are sent as they are, and never shown.
const FREE_TEXTS: [&str; 2] = ["password", "options"];

/// What parameters, paths and names hardly ever hold: where it stands unescaped or unquoted, one separator was written for another,
/// and what follows may be anything, a password too.
const JUNK: [char; 9] = ['&', '=', ';', '#', '"', '\'', '<', '>', '|'];
/// The same of users, hosts and databases in a URI.
const JUNK_IN_NAMES: [char; 11] = ['&', '=', ';', '#', '"', '\'', '<', '>', '|', ',', '/'];

const JUNK_IN_KEYWORDS: &str =
    "has a value with one of & = ; # \" ' < > | in it, or a user or database with a colon: put it into single quotes";

/// A part of a URI that holds nothing that only escapes may bring; without a word of it where it does.
fn understood<'a>(text: &'a str, junk: &[char]) -> Result<&'a str, String> {
    match text.contains(junk) {
        true => Err("has one of & = ; # , / : @ \" ' < > | where it has no meaning: write it as %26 %3D %3B %23 %2C %2F %3A %40 \
                          %22 %27 %3C %3E %7C"            .to_owned()),
        false => Ok(text),
    }
}

/// A value as it is shown behind its parameter's name: only where it is one word.
fn shown(value: &str) -> String {
    let is_word =
        value.len() <= 32 && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if is_word { format!(" \"{value}\"") } else { String::new() }
}

/// What libpq knows and headwater does not: such a name is no piece of a password.
const KNOWN: [&str; 33] = [
    "channel_binding",
    "connect_timeout",
    "dbname",
    "gssdelegation",
    "gsslib",
    "host",
    "hostaddr",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_issuer",
    "oauth_scope",
    "options",
    "passfile",
    "password",
    "port",
    "require_auth",
    "requirepeer",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
    "sslsni",
    "user",
];

/// Percent-decoding, as in RFC 3986; `+` is a plus. No blank may stand in a part (libpq, 18).
fn decode(text: &str) -> Result<String, String> {
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("has a space or control character in it: write a space as %20".to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.split_at_checked(2).and_then(|(digits, after)| {
            rest = after;
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        });
        match digits {
            Some(byte) if byte != 0 => bytes.push(byte),
            // The text may be a password: it is not shown.
            Some(_) | None => {
                return Err("has a % that is not followed by two hexadecimal digits (write %25)".to_owned());
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| "is not valid UTF-8 once its % escapes are resolved".to_owned())
}
