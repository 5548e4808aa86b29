//! Settings into a connected byte stream: hosts in turn, sockets with their timeouts, TLS as sslmode says.
//!
//! Stands under `startup` (our own sessions) and `sql` (tokio-postgres), which both give it what to do with each
//! stream; so hosts, TLS and timeouts behave alike for all. The fallbacks are libpq's: `prefer` tries TLS and then
//! plain, `allow` the other way round; Unix sockets never use TLS.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::connection::BoxedStream;
use super::error::{MAJOR_MIN, SessionError, TlsProblem};
use super::settings;
use super::tls::{self, Secured, TlsClient};
use crate::config::{ConnectionSettings, Host, SslMode, SslNegotiation};

/// A stream on which the server waits for the startup message.
pub(super) struct Opened {
    pub(super) stream: BoxedStream,
    pub(super) host: Host,
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
    let mut reasons = Vec::new();
    let mut refusal = None;
    for host in &settings.hosts {
        let attempts: &[Encryption] = match (settings.ssl_mode, host) {
            (SslMode::Disable, _) | (_, Host::Unix { .. }) => &[Encryption::Plain],
            (SslMode::Allow, _) => &[Encryption::Plain, Encryption::Required],
            (SslMode::Prefer, _) => &[Encryption::Offered, Encryption::Plain],
            (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull, _) => &[Encryption::Required],
        };
        for (attempt, encryption) in attempts.iter().enumerate() {
            let connected = async { use_stream(open(settings, host, *encryption, tls.as_ref()).await?).await };
            let within = settings.connect_timeout;
            let error = match tokio::time::timeout(within, connected).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(SessionError::Lost { error, doing })) => match tls::refused_certificate(&error) {
                    Some(reason) => {
                        SessionError::Tls { host: host.to_string(), problem: TlsProblem::OurCertificate, reason }
                    }
                    None => SessionError::Lost { error, doing },
                },
                Ok(Err(SessionError::Server { error, .. })) if settings::is_unknown(&error) => {
                    SessionError::TooOld { version: format!("{} or older", MAJOR_MIN - 1) }
                }
                Ok(Err(error)) => error,
                Err(_) => SessionError::Timeout { doing: "connecting", within },
            };
            // The other way is tried when this one was refused, not when nobody is there.
            let last = attempt + 1 == attempts.len();
            let refused = matches!(
                error,
                SessionError::Tls { .. } | SessionError::Server { .. } | SessionError::Authentication { .. }
            );
            if last || !refused {
                let reason = match &error {
                    SessionError::Lost { error, .. } => error.to_string(),
                    SessionError::Timeout { .. } => {
                        format!("no answer within {}", humantime::format_duration(within))
                    }
                    SessionError::Unreachable { .. }
                    | SessionError::Tls { .. }
                    | SessionError::Authentication { .. }
                    | SessionError::TooOld { .. }
                    | SessionError::File { .. }
                    | SessionError::Server { .. }
                    | SessionError::Protocol { .. } => error.to_string(),
                };
                reasons.push(format!("{host}: {reason}"));
                if !matches!(error, SessionError::Lost { .. } | SessionError::Timeout { .. }) {
                    refusal = Some(error);
                }
                break;
            }
        }
    }
    // A server that answered and refused says more than hosts that did not answer.
    Err(refusal
        .unwrap_or_else(|| SessionError::Unreachable { target: settings.to_string(), reasons: reasons.join("; ") }))
}

async fn open(
    settings: &ConnectionSettings,
    host: &Host,
    encryption: Encryption,
    tls: Option<&TlsClient>,
) -> Result<Opened, SessionError> {
    let lost = |error| SessionError::lost("connecting", error);
    let plain = |stream| Opened { stream, host: host.clone(), tls: None, channel_binding: None };
    match host {
        Host::Unix { directory, port } => {
            let stream = UnixStream::connect(socket_path(directory, *port)).await.map_err(lost)?;
            Ok(plain(Box::new(stream)))
        }
        Host::Tcp { host: name, address, port } => {
            let mut stream = TcpStream::connect((address.as_deref().unwrap_or(name), *port)).await.map_err(lost)?;
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
            let Secured { stream, words, channel_binding } = tls.handshake(stream, host, name).await?;
            Ok(Opened { stream, host: host.clone(), tls: Some(words), channel_binding })
        }
    }
}

/// SSLRequest: its length and the code 80877103 (protocol-message-formats).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

fn socket_path(directory: &Path, port: u16) -> std::path::PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
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
