//! Connection strings: libpq's URIs and keyword/value strings into [`ConnectionSettings`].
//!
//! Comes in as the text of `source.url` or `destination.url` with the `PG…` environment; goes to `session`, which
//! connects. One parser serves all sessions, because tokio-postgres's own knows neither verify-full nor certificates.
//! libpq's habits hold (libpq-connect, 18): parameters win over the environment, several hosts are tried in turn, a
//! host that begins with `/` is a directory of Unix sockets. Not taken over: service files, GSSAPI and Kerberos, and
//! `sslcompression`; parameters that only make sense for other clients are named as unsupported, not ignored, and so are
//! variables that would make libpq stricter (PGSSLCRL, PGREQUIREAUTH).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Environment;

/// A text that must not be shown: its `Debug` and `Display` give stars.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the authentication exchange and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp {
        /// The host, as given.
        host: String,
        /// The address to connect to, when `hostaddr` names it; `host` is then only what the certificate must say.
        address: Option<String>,
        /// The port.
        port: u16,
    },
    /// The socket `.s.PGSQL.{port}` in a directory.
    Unix {
        /// The directory.
        directory: PathBuf,
        /// The port in the socket's name.
        port: u16,
    },
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Host::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Host::Unix { directory, port } => write!(f, "{}:{port}", directory.display()),
        }
    }
}

/// How much TLS is asked for, as in libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only when the server insists.
    Allow,
    /// When the server can.
    Prefer,
    /// Always, without checking who the server is (unless a root certificate is given: then as verify-ca).
    Require,
    /// Always, with a certificate that the roots vouch for.
    VerifyCa,
    /// The same, and the certificate must name the host.
    VerifyFull,
}

/// Which certificates are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCertificates {
    /// Those in a PEM file.
    File(PathBuf),
    /// Those that the operating system trusts (`sslrootcert=system`).
    System,
}

/// How TLS begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslNegotiation {
    /// With an SSLRequest.
    Postgres,
    /// At once (servers from 17 on).
    Direct,
}

/// Whether SCRAM must be bound to the TLS channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// When both sides can.
    Prefer,
    /// Always.
    Require,
}

/// Which of several hosts will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSession {
    /// The first that answers.
    Any,
    /// One that accepts writes (`read-write`, `primary`).
    ReadWrite,
    /// One that does not (`read-only`, `standby`).
    ReadOnly,
    /// A standby where there is one, otherwise any.
    PreferStandby,
}

/// Everything that is needed to open a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// The hosts, tried in this order.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The password, when one was given. Otherwise the password file is asked.
    pub password: Option<Secret>,
    /// The password file.
    pub password_file: Option<PathBuf>,
    /// The database.
    pub database: String,
    /// The name that the sessions carry in pg_stat_activity, before our own suffix.
    pub application_name: String,
    /// Settings for the server, as in `PGOPTIONS`.
    pub options: Option<String>,
    /// How long one host may take to answer.
    pub connect_timeout: Duration,
    /// How much TLS.
    pub ssl_mode: SslMode,
    /// How TLS begins.
    pub ssl_negotiation: SslNegotiation,
    /// Whom to trust.
    pub ssl_root_certificates: Option<RootCertificates>,
    /// Our own certificate, PEM.
    pub ssl_certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub ssl_key: Option<PathBuf>,
    /// Whether SCRAM is bound to the channel.
    pub channel_binding: ChannelBinding,
    /// Which of the hosts.
    pub target_session: TargetSession,
    /// TCP keepalive: silence before the first probe.
    pub keepalives_idle: Duration,
    /// TCP keepalive: time between probes.
    pub keepalives_interval: Duration,
    /// TCP keepalive: probes before the connection counts as lost.
    pub keepalives_count: u32,
    /// TCP_USER_TIMEOUT: how long sent data may stay unacknowledged.
    pub tcp_user_timeout: Duration,
}

impl Default for ConnectionSettings {
    fn default() -> ConnectionSettings {
        ConnectionSettings {
            hosts: Vec::new(),
            user: String::new(),
            password: None,
            password_file: None,
            database: String::new(),
            application_name: "headwater".to_owned(),
            options: None,
            connect_timeout: Duration::from_secs(10),
            ssl_mode: SslMode::Prefer,
            ssl_negotiation: SslNegotiation::Postgres,
            ssl_root_certificates: None,
            ssl_certificate: None,
            ssl_key: None,
            channel_binding: ChannelBinding::Prefer,
            target_session: TargetSession::Any,
            // A dead peer is noticed within 30 s, also while nothing is being sent; the same bound for data on its way.
            keepalives_idle: Duration::from_secs(10),
            keepalives_interval: Duration::from_secs(5),
            keepalives_count: 4,
            tcp_user_timeout: Duration::from_secs(30),
        }
    }
}

/// Where sockets are by default: Debian's and Red Hat's packages agree on it.
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";
const DEFAULT_PORT: u16 = 5432;

/// A connection string's parameters before they have types; the last of a name wins, as in libpq.
#[derive(Default)]
struct Parameters(Vec<(String, String)>);

impl ConnectionSettings {
    /// Reads a connection string; what it leaves out comes from the `PG…` environment.
    ///
    /// # Errors
    /// One sentence per problem. None of them contains the password.
    pub fn parse(text: &str, environment: &Environment) -> Result<ConnectionSettings, Vec<String>> {
        let uri = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
        let parameters = match uri {
            Some(rest) => Parameters::from_uri(rest),
            None if text.contains("://") => Err("is not a postgresql:// URI".to_owned()),
            None => Parameters::from_keywords(text),
        };
        parameters.map_err(|message| vec![message])?.into_settings(environment)
    }

    /// True when both strings lead to the same database by their very text. What they really lead to is asked of the
    /// servers at start.
    pub fn names_same_database(&self, other: &ConnectionSettings) -> bool {
        self.database == other.database && self.hosts.iter().any(|host| other.hosts.contains(host))
    }

    /// The same server and role, another name in pg_stat_activity.
    pub fn with_application_suffix(&self, suffix: &str) -> ConnectionSettings {
        let application_name = format!("{} {suffix}", self.application_name);
        ConnectionSettings { application_name, ..self.clone() }
    }
}

impl fmt::Display for ConnectionSettings {
    /// `user@host:port/database`, without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "{}@{}/{}", self.user, hosts.join(","), self.database)
    }
}

impl Parameters {
    fn from_uri(rest: &str) -> Result<Parameters, String> {
        let mut parameters = Parameters::default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(login, hosts)| (Some(login), hosts));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(user, word)| (user, Some(word)));
            parameters.set("user", decode(user)?);
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
            names.push(decode(name)?);
            ports.push(port.to_owned());
        }
        if names.iter().any(|name| !name.is_empty()) {
            parameters.set("host", names.join(","));
        }
        if ports.iter().any(|port| !port.is_empty()) {
            parameters.set("port", ports.join(","));
        }
        if !database.is_empty() {
            parameters.set("dbname", decode(database)?);
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            // What stands here may be the rest of a password with an unescaped `?`, so it is not shown.
            let (name, value) = pair.split_once('=').ok_or("has a parameter without a value after the ?")?;
            parameters.set(&decode(name)?, decode(value)?);
        }
        Ok(parameters)
    }

    fn from_keywords(text: &str) -> Result<Parameters, String> {
        let mut parameters = Parameters::default();
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
                    None if quoted => return Err(format!("has an unterminated quoted value for {name}")),
                    None => break,
                }
            }
            parameters.set(&name, value);
        }
    }

    fn set(&mut self, name: &str, value: String) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value));
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        let (_, value) = self.0.swap_remove(at);
        (!value.is_empty()).then_some(value)
    }

    fn into_settings(mut self, environment: &Environment) -> Result<ConnectionSettings, Vec<String>> {
        let mut problems = Vec::new();
        let defaults = ConnectionSettings::default();
        let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
        let home = variable("HOME").map(PathBuf::from);

        let user = self.take("user").or_else(|| variable("PGUSER")).or_else(|| variable("USER"));
        let user = user.or_else(|| variable("LOGNAME")).unwrap_or_else(|| {
            problems.push("names no user".to_owned());
            String::new()
        });
        let database = self.take("dbname").or_else(|| variable("PGDATABASE")).unwrap_or_else(|| user.clone());
        let names = self.take("host").or_else(|| variable("PGHOST"));
        let addresses = self.take("hostaddr").or_else(|| variable("PGHOSTADDR"));
        let ports = self.take("port").or_else(|| variable("PGPORT")).unwrap_or_default();
        let hosts = hosts(names, addresses, &ports, &mut problems);

        let choice =
            |parameters: &mut Parameters, name: &str, from: &str| parameters.take(name).or_else(|| variable(from));
        let ssl_root_certificates = choice(&mut self, "sslrootcert", "PGSSLROOTCERT").map(|file| match file.as_str() {
            "system" => RootCertificates::System,
            _ => RootCertificates::File(PathBuf::from(file)),
        });
        let ssl_mode = match choice(&mut self, "sslmode", "PGSSLMODE").as_deref() {
            // With the system's roots anything weaker is pointless; libpq has the same default.
            None if ssl_root_certificates == Some(RootCertificates::System) => SslMode::VerifyFull,
            None | Some("prefer") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("allow") => SslMode::Allow,
            Some("require") => SslMode::Require,
            Some("verify-ca") => SslMode::VerifyCa,
            Some("verify-full") => SslMode::VerifyFull,
            Some(other) => {
                problems.push(format!(
                    "sslmode \"{other}\" is not one of disable, allow, prefer, require, verify-ca, verify-full"
                ));
                SslMode::Prefer
            }
        };
        if ssl_root_certificates == Some(RootCertificates::System) && ssl_mode != SslMode::VerifyFull {
            problems.push("sslrootcert=system needs sslmode=verify-full".to_owned());
        }
        let ssl_negotiation = match choice(&mut self, "sslnegotiation", "PGSSLNEGOTIATION").as_deref() {
            None | Some("postgres") => SslNegotiation::Postgres,
            Some("direct") => SslNegotiation::Direct,
            Some(other) => {
                problems.push(format!("sslnegotiation \"{other}\" is not one of postgres, direct"));
                SslNegotiation::Postgres
            }
        };
        if ssl_negotiation == SslNegotiation::Direct && ssl_mode < SslMode::Require {
            problems.push("sslnegotiation=direct needs sslmode=require or stronger".to_owned());
        }
        let channel_binding = match choice(&mut self, "channel_binding", "PGCHANNELBINDING").as_deref() {
            None | Some("prefer") => ChannelBinding::Prefer,
            Some("disable") => ChannelBinding::Disable,
            Some("require") => ChannelBinding::Require,
            Some(other) => {
                problems.push(format!("channel_binding \"{other}\" is not one of disable, prefer, require"));
                ChannelBinding::Prefer
            }
        };
        let target_session = match choice(&mut self, "target_session_attrs", "PGTARGETSESSIONATTRS").as_deref() {
            None | Some("any") => TargetSession::Any,
            Some("read-write" | "primary") => TargetSession::ReadWrite,
            Some("read-only" | "standby") => TargetSession::ReadOnly,
            Some("prefer-standby") => TargetSession::PreferStandby,
            Some(other) => {
                problems.push(format!(
                    "target_session_attrs \"{other}\" is not one of any, read-write, read-only, primary, standby, \
                     prefer-standby"
                ));
                TargetSession::Any
            }
        };
        let mut number = |value: Option<String>, name: &str| -> Option<u32> {
            let text = value?;
            let number = text.parse().ok();
            if number.is_none() {
                problems.push(format!("{name} \"{text}\" is not a whole number"));
            }
            // In libpq 0 stands for the default.
            number.filter(|number| *number > 0)
        };
        let seconds = |number: Option<u32>, default| number.map_or(default, |n| Duration::from_secs(n.into()));
        let connect_timeout = choice(&mut self, "connect_timeout", "PGCONNECT_TIMEOUT");
        let connect_timeout = seconds(number(connect_timeout, "connect_timeout"), defaults.connect_timeout);
        let keepalives_idle =
            seconds(number(self.take("keepalives_idle"), "keepalives_idle"), defaults.keepalives_idle);
        let keepalives_interval =
            seconds(number(self.take("keepalives_interval"), "keepalives_interval"), defaults.keepalives_interval);
        let keepalives_count = number(self.take("keepalives_count"), "keepalives_count");
        let tcp_user_timeout = number(self.take("tcp_user_timeout"), "tcp_user_timeout");

        let settings = ConnectionSettings {
            hosts,
            user,
            database,
            password: choice(&mut self, "password", "PGPASSWORD").map(Secret),
            password_file: choice(&mut self, "passfile", "PGPASSFILE")
                .map(PathBuf::from)
                .or_else(|| home.as_ref().map(|home| home.join(".pgpass"))),
            application_name: choice(&mut self, "application_name", "PGAPPNAME")
                .or_else(|| self.take("fallback_application_name"))
                .unwrap_or(defaults.application_name),
            options: choice(&mut self, "options", "PGOPTIONS"),
            connect_timeout,
            ssl_mode,
            ssl_negotiation,
            ssl_root_certificates,
            ssl_certificate: choice(&mut self, "sslcert", "PGSSLCERT").map(PathBuf::from),
            ssl_key: choice(&mut self, "sslkey", "PGSSLKEY").map(PathBuf::from),
            channel_binding,
            target_session,
            keepalives_idle,
            keepalives_interval,
            keepalives_count: keepalives_count.unwrap_or(defaults.keepalives_count),
            tcp_user_timeout: tcp_user_timeout.map_or(defaults.tcp_user_timeout, |ms| Duration::from_millis(ms.into())),
        };
        // What would make libpq stricter must not be passed over in silence.
        for (name, harmless) in STRICTER {
            if variable(name).is_some_and(|value| !harmless.contains(&value.as_str())) {
                problems.push(format!("cannot be used with {name}, which headwater does not support: unset it"));
            }
        }
        if settings.ssl_certificate.is_some() != settings.ssl_key.is_some() {
            problems.push("sslcert and sslkey need each other".to_owned());
        }
        for (name, value) in self.0 {
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
                _ if name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') => {
                    problems.push(format!("has an unsupported parameter: {name}"));
                }
                _ => problems.push("has a parameter that is not a name".to_owned()),
            }
        }
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }
}

/// Variables that bind libpq to checks which are not made here, and the values by which they ask for none that is not.
const STRICTER: [(&str, &[&str]); 9] = [
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
                problems.push(format!("port \"{text}\" is not between 1 and 65535"));
                DEFAULT_PORT
            }),
        };
        let name = if name.is_empty() { DEFAULT_SOCKET_DIRECTORY } else { name };
        hosts.push(if name.starts_with('/') {
            Host::Unix { directory: PathBuf::from(name), port }
        } else {
            let address = addresses.get(at).filter(|address| !address.is_empty()).map(|address| (*address).to_owned());
            Host::Tcp { host: name.to_owned(), address, port }
        });
    }
    hosts
}

/// Percent-decoding, as in RFC 3986; `+` is a plus.
fn decode(text: &str) -> Result<String, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_in(text: &str, environment: &[(&str, &str)]) -> Result<ConnectionSettings, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ConnectionSettings::parse(text, &environment).map_err(|problems| problems.join("; "))
    }

    fn parse(text: &str) -> Result<ConnectionSettings, String> {
        parse_in(text, &[("USER", "me")])
    }

    fn tcp(host: &str, port: u16) -> Host {
        Host::Tcp { host: host.to_owned(), address: None, port }
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        let settings = parse("postgresql://us%40er:p%3Aw@db.example.com:6000/fo%20rum?sslmode=verify-full").unwrap();
        assert_eq!(settings.user, "us@er");
        assert_eq!(settings.password.as_ref().map(Secret::reveal), Some("p:w"));
        assert_eq!(settings.hosts, [tcp("db.example.com", 6000)]);
        assert_eq!(settings.database, "fo rum");
        assert_eq!(settings.ssl_mode, SslMode::VerifyFull);
        assert_eq!(settings.to_string(), "us@er@db.example.com:6000/fo rum");
    }

    #[test]
    fn several_hosts_addresses_and_sockets() {
        let settings = parse("postgres://a:1,b,[::1]:3/x?target_session_attrs=read-write").unwrap();
        assert_eq!(settings.hosts, [tcp("a", 1), tcp("b", 5432), tcp("::1", 3)]);
        assert_eq!(settings.target_session, TargetSession::ReadWrite);
        let socket = |directory: &str, port| Host::Unix { directory: PathBuf::from(directory), port };
        assert_eq!(parse("postgresql://%2Ftmp%2Fs:77/x").unwrap().hosts, [socket("/tmp/s", 77)]);
        assert_eq!(parse("postgresql:///x?host=/tmp/s&port=5").unwrap().hosts, [socket("/tmp/s", 5)]);
        assert_eq!(parse("host='/tmp/a b' dbname=x").unwrap().hosts, [socket("/tmp/a b", 5432)]);
        assert_eq!(parse("dbname=x").unwrap().hosts, [socket(DEFAULT_SOCKET_DIRECTORY, 5432)]);
        let both = parse("host=db.example.com hostaddr=10.0.0.1 dbname=x").unwrap();
        assert_eq!(
            both.hosts,
            [Host::Tcp { host: "db.example.com".into(), address: Some("10.0.0.1".into()), port: 5432 }]
        );
    }

    #[test]
    fn keyword_strings_may_be_quoted_and_escaped() {
        let settings = parse("host = db user=u password='it\\'s = \\\\ ok' dbname= forum").unwrap();
        assert_eq!(settings.password.as_ref().map(Secret::reveal), Some("it's = \\ ok"));
        assert_eq!(settings.database, "forum");
    }

    #[test]
    fn the_environment_fills_what_the_string_leaves_out() {
        let environment = [
            ("PGHOST", "h"),
            ("PGPORT", "99"),
            ("PGUSER", "pu"),
            ("PGPASSWORD", "pw"),
            ("PGSSLMODE", "require"),
            ("HOME", "/home/me"),
        ];
        let settings = parse_in("postgresql://", &environment).unwrap();
        assert_eq!(settings.hosts, [tcp("h", 99)]);
        assert_eq!((settings.user.as_str(), settings.database.as_str()), ("pu", "pu"));
        assert_eq!(settings.password, Some(Secret::new("pw")));
        assert_eq!(settings.ssl_mode, SslMode::Require);
        assert_eq!(settings.password_file, Some(PathBuf::from("/home/me/.pgpass")));
        assert_eq!(parse_in("postgresql://x@y/z", &environment).unwrap().user, "x", "the string wins");
    }

    #[test]
    fn problems_are_told_together_and_without_the_password() {
        let problems =
            parse("postgresql://u:hunter2@h:99999/x?sslmode=on&colour=red&keepalives_idle=x&sslcert=c").unwrap_err();
        for expected in
            ["port \"99999\"", "sslmode \"on\"", "unsupported parameter: colour", "keepalives_idle \"x\"", "sslkey"]
        {
            assert!(problems.contains(expected), "no {expected:?} in {problems}");
        }
        assert!(!problems.contains("hunter2"));
        for text in ["mysql://u:hunter2@h/x", "u:hunter2@h/x", "postgresql://u:hunter2%@h/x", "password='hunter2"] {
            let problem = parse(text).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        assert!(parse("postgresql://h/x?sslrootcert=system&sslmode=require").unwrap_err().contains("verify-full"));
        for stricter in
            ["sslcrl=/r.crl", "require_auth=scram-sha-256", "requirepeer=postgres", "ssl_min_protocol_version=TLSv1.3"]
        {
            let name = stricter.split('=').next().unwrap();
            let problem = parse(&format!("postgresql://h/x?{stricter}")).unwrap_err();
            assert!(problem.contains(&format!("unsupported parameter: {name}")), "{problem}");
        }
        assert!(parse("postgresql://h/x?gssencmode=require").unwrap_err().contains("no GSSAPI"));
        assert!(parse("postgresql://h/x?gssencmode=prefer&sslsni=1").is_ok());
        assert!(parse("postgresql://h/x?sslsni=0").unwrap_err().contains("unsupported parameter: sslsni"));
        for (name, harmless) in STRICTER {
            let problem = parse_in("postgresql://me@h/x", &[(name, "hunter2")]).unwrap_err();
            assert!(problem.contains(name) && !problem.contains("hunter2"), "{problem}");
            for value in harmless {
                assert!(parse_in("postgresql://me@h/x", &[(name, value)]).is_ok(), "{name}={value}");
            }
        }
        assert!(parse("postgresql://h/x?sslnegotiation=direct").unwrap_err().contains("sslmode=require"));
    }
}
