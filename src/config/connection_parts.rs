//! What a connection's settings are made of: hosts, secrets, and libpq's modes.
//!
//! Read by `parameters`, kept in `connection`; the words are libpq's. Plain data.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::pg::printable;

/// A text that must not be shown: its `Debug` and `Display` give stars.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub(crate) Vec<u8>);

impl Secret {
    /// Wraps a password. In a password file it may be of any bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }

    /// The text itself, for the authentication exchange and nothing else.
    pub fn reveal(&self) -> &[u8] {
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
        /// The directory; with `@` in front a name in Linux's abstract namespace.
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

impl SslMode {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
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
    /// One whose sessions may write by default.
    ReadWrite,
    /// One whose sessions may not: a standby, or `default_transaction_read_only`.
    ReadOnly,
    /// One that is not a standby.
    Primary,
    /// One that is.
    Standby,
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
    /// How long one address of a host may take to answer.
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

impl fmt::Display for ConnectionSettings {
    /// `user@host:port/database`, without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        f.write_str(&printable(&format!("{}@{}/{}", self.user, hosts.join(","), self.database)))
    }
}
