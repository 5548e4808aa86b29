//! The startup message and authentication of our own sessions: trust, password, md5, SCRAM-SHA-256 with channel
//! binding.
//!
//! Stands between `connect`, which opens a stream, and `replication`, `writing` and `copy`, which run on the
//! [`Connection`] that comes out. The exchanges themselves are postgres-protocol's. Format: protocol-flow, "Start-up".

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::frontend;

use super::connect::{self, Opened, ServerKind};
use super::connection::Connection;
use super::error::SessionError;
use super::{password_file, settings};
use crate::config::{ChannelBinding, ConnectionSettings, Secret};

const DOING: &str = "connecting";

/// The server let us in without proving that nobody stands in between.
pub(super) const UNBOUND: &str = "channel_binding=require, but the server did not ask for it";

/// The server wants to know something that we do not.
pub(super) const PASSWORD_MISSING: &str = "the server asks for a password, and none was given";

/// Settings that a session starts with, in addition to those of the connection string.
pub(super) struct Startup<'a> {
    /// Speak the replication protocol (`replication=database`).
    pub(super) replication: bool,
    /// What the session is for, behind application_name.
    pub(super) purpose: &'a str,
    /// Server settings.
    pub(super) settings: &'a [(&'a str, String)],
}

/// Opens and authenticates a connection with the first host that will do.
pub(super) async fn open(settings: &ConnectionSettings, startup: &Startup<'_>) -> Result<Connection, SessionError> {
    connect::first_host(settings, |opened| start(settings, startup, opened)).await
}

impl Connection {
    /// Opens and authenticates a connection for COPY, with `settings` of the server's.
    ///
    /// # Errors
    /// [`SessionError`] says why no host would do.
    pub async fn open(
        connection: &ConnectionSettings,
        purpose: &str,
        settings: &[(&str, String)],
    ) -> Result<Connection, SessionError> {
        open(connection, &Startup { replication: false, purpose, settings }).await
    }
}

async fn start(
    connect_to: &ConnectionSettings,
    startup: &Startup<'_>,
    opened: Opened,
) -> Result<Connection, SessionError> {
    let password = password_file::password_for(connect_to, &opened.host)?;
    let Opened { stream, host, wanted, tls, channel_binding } = opened;
    let mut connection = Connection::new(stream, host);
    let application_name = format!("{} {}", connect_to.application_name, startup.purpose);
    let mut parameters = vec![
        ("user", connect_to.user.as_str()),
        ("database", connect_to.database.as_str()),
        ("application_name", application_name.as_str()),
    ];
    if startup.replication {
        parameters.push(("replication", "database"));
    }
    if let Some(options) = &connect_to.options {
        parameters.push(("options", options));
    }
    parameters.extend(settings::at_startup(connect_to, startup.settings));
    frontend::startup_message(parameters, connection.outgoing()).map_err(|error| SessionError::lost(DOING, error))?;

    let refused = |error: SessionError| error.without_password(password.as_ref());
    let tls = tls.map(|_| channel_binding);
    authenticate(&mut connection, connect_to, password.as_ref(), tls).await.map_err(refused)?;
    loop {
        let frame = connection.next_answer(DOING).await.map_err(refused)?;
        match frame.tag {
            b'K' => {
                let process_id = frame.body.first_chunk::<4>().map_or(0, |id| u32::from_be_bytes(*id));
                connection.set_process_id(process_id);
            }
            b'Z' => break,
            // NegotiateProtocolVersion: we ask for 3.0 and no protocol options, so nothing can be missing.
            b'v' => {}
            tag => return Err(SessionError::protocol(DOING, format!("message {}", tag.escape_ascii()))),
        }
    }
    ServerKind::reported(|name| connection.parameter(name)).check(wanted, connection.host())?;
    for sql in settings::afterwards(connect_to, connection.parameter("server_version")) {
        // The connection's own bound is `first_host`'s.
        connection.simple_query(sql, "setting up a session", connect_to.connect_timeout).await?;
    }
    Ok(connection)
}

/// `tls`: with TLS, the channel's binding data if there is any; `None` without.
async fn authenticate(
    connection: &mut Connection,
    settings: &ConnectionSettings,
    password: Option<&Secret>,
    tls: Option<Option<Vec<u8>>>,
) -> Result<(), SessionError> {
    let host = connection.host().to_string();
    let failed = |reason: &str| SessionError::Authentication { host: host.clone(), reason: reason.to_owned() };
    let needed = || password.ok_or_else(|| failed(PASSWORD_MISSING));
    let require_binding = settings.channel_binding == ChannelBinding::Require;
    let mut bound = false;
    loop {
        let frame = connection.next_answer(DOING).await?;
        if frame.tag != b'R' {
            return Err(SessionError::protocol(DOING, format!("message {}", frame.tag.escape_ascii())));
        }
        let (method, body) = frame
            .body
            .split_first_chunk::<4>()
            .ok_or_else(|| SessionError::protocol(DOING, "malformed authentication request"))?;
        match u32::from_be_bytes(*method) {
            0 if require_binding && !bound => {
                return Err(failed(UNBOUND));
            }
            0 => {
                connection.authenticated();
                return Ok(());
            }
            3 if !require_binding => send_password(connection, needed()?.reveal())?,
            5 if !require_binding => {
                let salt = body.first_chunk::<4>();
                let salt = *salt.ok_or_else(|| SessionError::protocol(DOING, "malformed md5 request"))?;
                let hash = md5_hash(settings.user.as_bytes(), needed()?.reveal(), salt);
                send_password(connection, hash.as_bytes())?;
            }
            10 => {
                let offers = |mechanism: &str| body.split(|b| *b == 0).any(|name| name == mechanism.as_bytes());
                let (binding, mechanism) = choose_scram(settings.channel_binding, &tls, offers).map_err(&failed)?;
                bound = mechanism == sasl::SCRAM_SHA_256_PLUS;
                scram(connection, needed()?, binding, mechanism).await?;
            }
            3 | 5 => return Err(failed("channel_binding=require needs SCRAM, but the server asks for another method")),
            method => {
                return Err(failed(&format!(
                    "the server asks for method {method}, which is not supported (use scram-sha-256, md5, password, cert or \
                     trust in pg_hba.conf)"
                )));
            }
        }
    }
}

/// The strongest mechanism that both sides have, as RFC 5802 and libpq choose it.
fn choose_scram(
    wish: ChannelBinding,
    tls: &Option<Option<Vec<u8>>>,
    offers: impl Fn(&str) -> bool,
) -> Result<(sasl::ChannelBinding, &'static str), &'static str> {
    let plus = offers(sasl::SCRAM_SHA_256_PLUS);
    match (tls, wish) {
        (Some(Some(binding)), ChannelBinding::Prefer | ChannelBinding::Require) if plus => {
            Ok((sasl::ChannelBinding::tls_server_end_point(binding.clone()), sasl::SCRAM_SHA_256_PLUS))
        }
        (_, ChannelBinding::Require) => Err("channel_binding=require, but this connection cannot be bound"),
        _ if !offers(sasl::SCRAM_SHA_256) => Err("the server offers no SASL mechanism that is supported"),
        // "y" tells the server that we could have bound, so that a stripped offer is noticed.
        (Some(Some(_)), ChannelBinding::Prefer) => Ok((sasl::ChannelBinding::unrequested(), sasl::SCRAM_SHA_256)),
        (_, ChannelBinding::Prefer | ChannelBinding::Disable) => {
            Ok((sasl::ChannelBinding::unsupported(), sasl::SCRAM_SHA_256))
        }
    }
}

async fn scram(
    connection: &mut Connection,
    password: &Secret,
    binding: sasl::ChannelBinding,
    mechanism: &str,
) -> Result<(), SessionError> {
    let lost = |error| SessionError::lost(DOING, error);
    let host = connection.host().to_string();
    let mut exchange = ScramSha256::new(password.reveal(), binding);
    frontend::sasl_initial_response(mechanism, exchange.message(), connection.outgoing()).map_err(lost)?;
    let refused =
        |error: std::io::Error| SessionError::Authentication { host: host.clone(), reason: error.to_string() };

    let challenge = sasl_body(connection, 11).await?;
    exchange.update(&challenge).map_err(&refused)?;
    frontend::sasl_response(exchange.message(), connection.outgoing()).map_err(lost)?;
    let proof = sasl_body(connection, 12).await?;
    exchange.finish(&proof).map_err(refused)
}

async fn sasl_body(connection: &mut Connection, expected: u32) -> Result<Vec<u8>, SessionError> {
    let frame = connection.next_answer(DOING).await?;
    match frame.body.split_first_chunk::<4>() {
        Some((method, body)) if frame.tag == b'R' && u32::from_be_bytes(*method) == expected => Ok(body.to_vec()),
        _ => Err(SessionError::protocol(DOING, "an answer out of turn in the SASL exchange")),
    }
}

fn send_password(connection: &mut Connection, password: &[u8]) -> Result<(), SessionError> {
    let mut message = BytesMut::new();
    frontend::password_message(password, &mut message).map_err(|error| SessionError::lost(DOING, error))?;
    connection.send(&message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_common_mechanism_is_chosen() {
        let both = |name: &str| name == sasl::SCRAM_SHA_256 || name == sasl::SCRAM_SHA_256_PLUS;
        let plain = |name: &str| name == sasl::SCRAM_SHA_256;
        let bindable = Some(Some(vec![1]));
        let chosen = |wish, tls: &Option<Option<Vec<u8>>>, offers: &dyn Fn(&str) -> bool| {
            choose_scram(wish, tls, offers).map(|(_, mechanism)| mechanism)
        };
        assert_eq!(chosen(ChannelBinding::Prefer, &bindable, &both), Ok(sasl::SCRAM_SHA_256_PLUS));
        assert_eq!(chosen(ChannelBinding::Prefer, &bindable, &plain), Ok(sasl::SCRAM_SHA_256));
        assert_eq!(chosen(ChannelBinding::Prefer, &None, &plain), Ok(sasl::SCRAM_SHA_256));
        assert_eq!(chosen(ChannelBinding::Disable, &bindable, &both), Ok(sasl::SCRAM_SHA_256));
        assert!(chosen(ChannelBinding::Require, &None, &both).is_err());
        assert!(chosen(ChannelBinding::Require, &bindable, &plain).is_err());
        assert!(chosen(ChannelBinding::Prefer, &None, &|_| false).is_err());
    }
}
