//! Settings into a connected byte stream: hosts and their addresses in turn, sockets with their timeouts, TLS as sslmode says.
//!
//! Stands under `startup` (our own sessions) and `sql` (tokio-postgres), which both give it what to do with each
//! stream; so hosts, TLS and timeouts behave alike for all. The fallbacks are libpq's: `prefer` tries TLS and then
//! plain, `allow` the other way round; Unix sockets never use TLS. As there, connect_timeout bounds each address of a name, and a
//! host that is not what target_session_attrs wants is passed over.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::error::{MAJOR_MIN, SessionError, TlsProblem};
use super::settings;
use super::slow_connections::{ConnectStep, Trying};
use super::tls::{self, Secured, TlsClient};
use crate::config::{ConnectionSettings, Host, SslMode, SslNegotiation, TargetSession};
use crate::session::stream::BoxedStream;

/// A stream on which the server waits for the startup message.
pub(super) struct Opened {
    pub(super) stream: BoxedStream,
    pub(super) host: Host,
    /// What the server must be.
    pub(super) wanted: WantedSession,
    /// TLS that is in force: its version and cipher suite, in words.
    pub(super) tls: Option<String>,
    /// tls-server-end-point, when TLS is in force and the certificate's hash is known.
    pub(super) channel_binding: Option<Vec<u8>>,
}

/// One way to try a host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Plain,
    Offered,
    Required,
}

/// What a server must be for a session to stay there, of what target_session_attrs names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WantedSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
}

/// What a server says of itself when a session has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerKind {
    pub(super) in_recovery: bool,
    pub(super) read_only_by_default: bool,
}

impl ServerKind {
    /// What ParameterStatus reports, from 14 on.
    pub(super) fn reported<'a>(parameter: impl Fn(&str) -> Option<&'a str>) -> ServerKind {
        ServerKind {
            in_recovery: parameter("in_hot_standby") == Some("on"),
            read_only_by_default: parameter("default_transaction_read_only") == Some("on"),
        }
    }

    /// # Errors
    /// [`SessionError::Unwanted`].
    pub(super) fn check(self, wanted: WantedSession, host: &Host) -> Result<(), SessionError> {
        let read_only = self.in_recovery || self.read_only_by_default;
        let (is, wants) = match wanted {
            WantedSession::ReadWrite if read_only => ("read-only", "read-write"),
            WantedSession::ReadOnly if !read_only => ("read-write", "read-only"),
            WantedSession::Primary if self.in_recovery => ("a standby", "a primary"),
            WantedSession::Standby if !self.in_recovery => ("a primary", "a standby"),
            WantedSession::Any
            | WantedSession::ReadWrite
            | WantedSession::ReadOnly
            | WantedSession::Primary
            | WantedSession::Standby => return Ok(()),
        };
        let reasons = format!("the server is {is}, but target_session_attrs wants {wants}");
        Err(SessionError::Unwanted { target: host.to_string(), reasons })
    }
}

/// What is looked for, one after the other. A second round is for those only that have answered and were not what is wanted.
///
/// libpq refuses a primary whose sessions are read-only by default where read-write is wanted. That is what a cut-over does to
/// stop the source's applications, and headwater must still read there: it is the second choice, and its sessions set
/// default_transaction_read_only off.
fn rounds(settings: &ConnectionSettings) -> &'static [WantedSession] {
    let several = settings.hosts.len() > 1;
    match settings.target_session {
        TargetSession::Any => &[WantedSession::Any],
        TargetSession::ReadWrite if several => &[WantedSession::ReadWrite, WantedSession::Primary],
        TargetSession::ReadWrite | TargetSession::Primary => &[WantedSession::Primary],
        TargetSession::ReadOnly => &[WantedSession::ReadOnly],
        TargetSession::Standby => &[WantedSession::Standby],
        TargetSession::PreferStandby if several => &[WantedSession::Standby, WantedSession::Any],
        TargetSession::PreferStandby => &[WantedSession::Any],
    }
}

/// Tries the hosts in turn until `use_stream` accepts one.
pub(super) async fn first_host<T, F>(
    settings: &ConnectionSettings,
    use_stream: impl Fn(Opened) -> F,
) -> Result<T, SessionError>
where
    F: Future<Output = Result<T, SessionError>>,
{
    // Built once per attempt to connect, so that renewed certificates are found without a restart.
    let tls = if settings.ssl_mode == SslMode::Disable { None } else { Some(tls::client(settings)?) };
    let trying = Trying::begin(settings.connect_timeout);
    let (mut silent, mut refusal) = (Vec::new(), None);
    let mut hosts: Vec<&Host> = settings.hosts.iter().collect();
    let mut unwanted = Vec::new();
    for wanted in rounds(settings) {
        unwanted.clear();
        for host in std::mem::take(&mut hosts) {
            trying.is_at(host, &silent);
            let connecting = Connecting { settings, host, wanted: *wanted, tls: tls.as_ref(), trying: &trying };
            match connecting.first_address(&use_stream).await {
                Ok(session) => return Ok(session),
                Err(ConnectFailure::Silent(reason)) => silent.push(format!("{host}: {reason}")),
                Err(ConnectFailure::Refused(SessionError::Unwanted { reasons, .. })) => {
                    hosts.push(host);
                    unwanted.push(format!("{host}: {reasons}"));
                }
                Err(ConnectFailure::Refused(error)) => refusal = Some(error),
            }
        }
    }
    // A server that answered and refused says more than hosts that did not answer.
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let target = settings.to_string();
    if silent.is_empty() {
        return Err(SessionError::Unwanted { target, reasons: unwanted.join("; ") });
    }
    silent.append(&mut unwanted);
    Err(SessionError::Unreachable { target, reasons: silent.join("; ") })
}

/// Why a host will not do.
enum ConnectFailure {
    /// Nobody is there, or nobody answers.
    Silent(String),
    /// It answered.
    Refused(SessionError),
}

/// One place to connect to.
#[derive(Clone, Debug)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// One host, and how.
struct Connecting<'a> {
    settings: &'a ConnectionSettings,
    host: &'a Host,
    wanted: WantedSession,
    tls: Option<&'a TlsClient>,
    trying: &'a Trying,
}

impl Connecting<'_> {
    async fn first_address<T, F>(&self, use_stream: &impl Fn(Opened) -> F) -> Result<T, ConnectFailure>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        let within = self.settings.connect_timeout;
        self.trying.awaits(ConnectStep::Name);
        let found = tokio::time::timeout(within, addresses(self.host)).await;
        self.trying.awaits(ConnectStep::Server);
        let addresses = match found {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(ConnectFailure::Silent(error.to_string())),
            Err(_) => {
                let within = humantime::format_duration(within);
                return Err(ConnectFailure::Silent(format!("its name was not resolved within {within}")));
            }
        };
        self.first_of(&addresses, use_stream).await
    }

    /// Tries the addresses of a name in turn, each for as long as connect_timeout.
    async fn first_of<T, F>(
        &self,
        addresses: &[Address],
        use_stream: &impl Fn(Opened) -> F,
    ) -> Result<T, ConnectFailure>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        let mut reasons = Vec::new();
        for address in addresses {
            let reason = match self.connect(address, use_stream).await {
                Ok(session) => return Ok(session),
                Err(ConnectFailure::Refused(error)) => return Err(ConnectFailure::Refused(error)),
                Err(ConnectFailure::Silent(reason)) => reason,
            };
            match address {
                Address::Tcp(address) if addresses.len() > 1 => reasons.push(format!("{reason} ({})", address.ip())),
                Address::Tcp(_) | Address::Unix(_) => reasons.push(reason),
            }
        }
        Err(ConnectFailure::Silent(reasons.join(", ")))
    }

    async fn connect<T, F>(&self, address: &Address, use_stream: &impl Fn(Opened) -> F) -> Result<T, ConnectFailure>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        let attempts: &[Encryption] = match (self.settings.ssl_mode, address) {
            (SslMode::Disable, _) | (_, Address::Unix(_)) => &[Encryption::Plain],
            (SslMode::Allow, _) => &[Encryption::Plain, Encryption::Required],
            (SslMode::Prefer, _) => &[Encryption::Offered, Encryption::Plain],
            (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull, _) => &[Encryption::Required],
        };
        let within = self.settings.connect_timeout;
        let mut last = ConnectFailure::Silent("its name has no address".to_owned());
        for encryption in attempts {
            let connected = async { use_stream(self.open(address, *encryption).await?).await };
            let error = match tokio::time::timeout(within, connected).await {
                Ok(Ok(session)) => return Ok(session),
                Err(_) => {
                    let within = humantime::format_duration(within);
                    return Err(ConnectFailure::Silent(format!("no answer within {within}")));
                }
                Ok(Err(SessionError::Lost { error, .. })) => match tls::refused_certificate(&error) {
                    Some(reason) => {
                        SessionError::Tls { host: self.host.to_string(), problem: TlsProblem::OurCertificate, reason }
                    }
                    None => return Err(ConnectFailure::Silent(error.to_string())),
                },
                Ok(Err(error @ SessionError::Timeout { .. })) => return Err(ConnectFailure::Silent(error.to_string())),
                Ok(Err(SessionError::Server { error, .. })) if settings::is_unknown(&error) => {
                    SessionError::TooOld { version: format!("{} or older", MAJOR_MIN - 1) }
                }
                Ok(Err(error)) => error,
            };
            // The other way is tried when this one was refused, not when nobody is there.
            let refused = matches!(
                error,
                SessionError::Tls { .. } | SessionError::Server { .. } | SessionError::Authentication { .. }
            );
            last = ConnectFailure::Refused(error);
            if !refused {
                break;
            }
        }
        Err(last)
    }

    async fn open(&self, address: &Address, encryption: Encryption) -> Result<Opened, SessionError> {
        let Connecting { settings, host, wanted, tls, trying: _ } = *self;
        let lost = |error| SessionError::lost("connecting", error);
        let plain = |stream| Opened { stream, host: host.clone(), wanted, tls: None, channel_binding: None };
        let address = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(lost)?;
                return Ok(plain(Box::new(stream)));
            }
            Address::Tcp(address) => address,
        };
        let mut stream = TcpStream::connect(address).await.map_err(lost)?;
        tune(&stream, settings).map_err(lost)?;
        let tls = match (encryption, tls) {
            (Encryption::Plain, _) | (_, None) => return Ok(plain(Box::new(stream))),
            (Encryption::Offered | Encryption::Required, Some(tls)) => tls,
        };
        if settings.ssl_negotiation == SslNegotiation::Postgres {
            stream.write_all(&SSL_REQUEST).await.map_err(lost)?;
            match stream.read_u8().await.map_err(lost)? {
                b'S' => {}
                b'N' if encryption == Encryption::Offered => return Ok(plain(Box::new(stream))),
                b'N' => {
                    return Err(SessionError::Tls {
                        host: host.to_string(),
                        problem: TlsProblem::NotOffered,
                        reason: "the server does not offer TLS, but sslmode asks for it".to_owned(),
                    });
                }
                _ => return Err(SessionError::protocol("connecting", "neither S nor N to an SSLRequest")),
            }
        }
        let name = match host {
            Host::Tcp { host, .. } => host,
            Host::Unix { .. } => return Err(SessionError::protocol("connecting", "TLS on a Unix socket")),
        };
        let Secured { stream, words, channel_binding } = tls.handshake(stream, host, name).await?;
        Ok(Opened { stream, host: host.clone(), wanted, tls: Some(words), channel_binding })
    }
}

/// Where a host listens: what its name resolves to, in the resolver's order.
async fn addresses(host: &Host) -> io::Result<Vec<Address>> {
    match host {
        Host::Unix { directory, port } => Ok(vec![Address::Unix(socket_path(directory, *port))]),
        Host::Tcp { host: name, address, port } => {
            let mut found: Vec<SocketAddr> = Vec::new();
            for address in lookup_host((address.as_deref().unwrap_or(name), *port)).await? {
                if !found.contains(&address) {
                    found.push(address);
                }
            }
            Ok(found.into_iter().map(Address::Tcp).collect())
        }
    }
}

/// SSLRequest: its length and the code 80877103 (protocol-message-formats).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// `@` in front stands for the null byte with which an abstract name begins.
fn socket_path(directory: &Path, port: u16) -> PathBuf {
    let path = directory.join(format!(".s.PGSQL.{port}"));
    match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => PathBuf::from(OsString::from_vec([b"\0", name].concat())),
        None => path,
    }
}

/// Keepalives find a dead peer while nothing is sent, TCP_USER_TIMEOUT while something is.
fn tune(stream: &TcpStream, settings: &ConnectionSettings) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(settings.keepalives_idle.max(Duration::from_secs(1)))
        .with_interval(settings.keepalives_interval.max(Duration::from_secs(1)))
        .with_retries(settings.keepalives_count);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(settings.tcp_user_timeout))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn settings(hosts: usize, target_session: TargetSession) -> ConnectionSettings {
        let host = Host::Tcp { host: "db".into(), address: None, port: 5432 };
        ConnectionSettings { hosts: vec![host; hosts], target_session, ..ConnectionSettings::default() }
    }

    /// Whether each kind of server would do in the end: primary, frozen primary, standby.
    fn would_do(hosts: usize, target_session: TargetSession) -> [bool; 3] {
        let settings = settings(hosts, target_session);
        [(false, false), (false, true), (true, false)].map(|(in_recovery, read_only_by_default)| {
            let kind = ServerKind { in_recovery, read_only_by_default };
            rounds(&settings).iter().any(|wanted| kind.check(*wanted, &settings.hosts[0]).is_ok())
        })
    }

    #[test]
    fn each_target_session_attrs_takes_the_servers_that_libpq_takes() {
        for (target, expected) in [
            (TargetSession::Any, [true, true, true]),
            // A frozen primary is the second choice, where libpq would refuse it.
            (TargetSession::ReadWrite, [true, true, false]),
            (TargetSession::ReadOnly, [false, true, true]),
            (TargetSession::Primary, [true, true, false]),
            (TargetSession::Standby, [false, false, true]),
            (TargetSession::PreferStandby, [true, true, true]),
        ] {
            for hosts in [1, 2] {
                assert_eq!(would_do(hosts, target), expected, "{target:?} of {hosts}");
            }
        }
        assert_eq!(rounds(&settings(2, TargetSession::ReadWrite)).first(), Some(&WantedSession::ReadWrite));
        assert_eq!(rounds(&settings(2, TargetSession::PreferStandby)).first(), Some(&WantedSession::Standby));
    }

    #[test]
    fn a_socket_may_have_an_abstract_name() {
        assert_eq!(socket_path(Path::new("/tmp"), 7), Path::new("/tmp/.s.PGSQL.7"));
        assert_eq!(socket_path(Path::new("@pg"), 7).as_os_str().as_bytes(), b"\0pg/.s.PGSQL.7");
    }

    #[tokio::test]
    async fn an_address_that_never_answers_does_not_keep_the_next_from_being_tried() {
        let (hung, good) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let addresses = [&hung, &good].map(|listener| Address::Tcp(listener.local_addr().unwrap()));
        let settings = ConnectionSettings {
            connect_timeout: Duration::from_millis(200),
            ssl_mode: SslMode::Disable,
            ..settings(1, TargetSession::Any)
        };
        let (host, trying) = (&settings.hosts[0], Trying::begin(settings.connect_timeout));
        let connecting =
            Connecting { settings: &settings, host, wanted: WantedSession::Any, tls: None, trying: &trying };
        // A server speaks when it is spoken to; this one by itself.
        let greeting = tokio::spawn(async move { good.accept().await.unwrap().0.write_all(b"x").await.unwrap() });
        let hear = |opened: Opened| async move {
            let mut stream = opened.stream;
            stream.read_u8().await.map_err(|error| SessionError::lost("connecting", error))
        };
        assert_eq!(connecting.first_of(&addresses, &hear).await.ok(), Some(b'x'));
        greeting.await.unwrap();
        let Err(ConnectFailure::Silent(reasons)) = connecting.first_of(&addresses[..1], &hear).await else { panic!() };
        assert_eq!(reasons, "no answer within 200ms");
    }
}
