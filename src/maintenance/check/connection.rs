//! How a session is encrypted, and whether it should be.
//!
//! In come a session and the settings that it was made with; out goes what is said of it, or what is wrong. Asked by both
//! halves of the list. Whether a connection leaves this machine is judged by where we connect to, never by what the
//! server says of itself: one behind a pooler or a tunnel says that it was reached by a Unix socket.

use tokio::net::lookup_host;

use crate::config::{ChannelBinding, ConnectionSettings, Host, SslMode};
use crate::pg::ErrorReport;
use crate::session::{SessionError, SqlClient, has_password};

/// What is said of a good connection, or what is wrong with it. `key` is the setting of its address.
pub(super) async fn judge(
    client: &SqlClient,
    settings: &ConnectionSettings,
    key: &str,
) -> Result<Result<String, ErrorReport>, SessionError> {
    let sql = "SELECT pg_catalog.current_setting('server_version'), session_user::text, current_user::text";
    let row = client.query_one("asking how we are connected", sql, &[]).await?;
    let (version, login, role): (&str, &str, &str) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let mut leaving = Vec::new();
    for host in &settings.hosts {
        if leaves_this_machine(host).await {
            leaving.push(host);
        }
    }
    if client.tls().is_none() && !leaving.is_empty() {
        return Ok(Err(unencrypted(key)));
    }
    if leaving.into_iter().any(|host| password_may_go_in_clear(settings, host)) {
        return Ok(Err(password_in_clear(key, settings.ssl_mode)));
    }
    let is_socket = settings.hosts.iter().all(|host| matches!(host, Host::Unix { .. }));
    let how = match (client.tls(), is_socket) {
        (Some(tls), _) => tls,
        (None, true) => "over a Unix socket",
        (None, false) => "without TLS",
    };
    let role = if login == role { role.to_owned() } else { format!("{role} (logged in as {login})") };
    Ok(Ok(format!("PostgreSQL {version}, role {role}, {how}")))
}

/// The newest major that the tests run with.
const NEWEST_TESTED: u32 = 18;

/// What to say of a server that is newer than all that the tests run with; `version` is its `server_version_num`.
pub(super) fn newer(version: u32, end: &str) -> Option<ErrorReport> {
    let major = version / 10_000;
    (major > NEWEST_TESTED).then(|| {
        ErrorReport::new(format!("PostgreSQL {major} at the {end} is newer than what headwater is tested with"))
            .detail(format!("That is 14 to {NEWEST_TESTED}. It is used all the same."))
            .hint("Look for a newer headwater, and run headwater verify after the first copy and after schema changes.")
    })
}

/// Whether what is sent there can be seen on a network. A name that does not resolve now may resolve to anything later.
async fn leaves_this_machine(host: &Host) -> bool {
    let (name, port) = match host {
        Host::Unix { .. } => return false,
        Host::Tcp { host, address, port } => (address.as_ref().unwrap_or(host), *port),
    };
    match lookup_host((name.as_str(), port)).await {
        Ok(mut addresses) => addresses.any(|address| !address.ip().to_canonical().is_loopback()),
        Err(_) => true,
    }
}

/// Whether a server that claims to have no TLS, or an impostor in its place, gets the password when it asks for it.
fn password_may_go_in_clear(settings: &ConnectionSettings, host: &Host) -> bool {
    let may_be_plain = match settings.ssl_mode {
        SslMode::Disable | SslMode::Allow | SslMode::Prefer => true,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => false,
    };
    may_be_plain && settings.channel_binding != ChannelBinding::Require && has_password(settings, host)
}

fn unencrypted(key: &str) -> ErrorReport {
    ErrorReport::new("the connection leaves this machine without TLS")
        .detail("Passwords and rows can be read on their way.")
        .hint(remedy(key))
}

fn password_in_clear(key: &str, mode: SslMode) -> ErrorReport {
    ErrorReport::new(format!("the password for {key} may be sent in clear"))
        .detail(format!(
            "sslmode is {}: a server without TLS, or a program that answers in its place, may ask for the password and gets it.",
            mode.as_str()
        ))
        .hint(remedy(key))
}

fn remedy(key: &str) -> String {
    format!("Add sslmode=verify-full and sslrootcert to {key}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_newer_than_those_of_the_tests_is_told_of_and_others_are_not() {
        assert_eq!(newer(140_000, "source"), None);
        assert_eq!(newer(180_006, "source"), None);
        assert!(
            newer(190_000, "source").expect("a report").message.starts_with("PostgreSQL 19 at the source is newer")
        );
    }
    use crate::config::Environment;

    fn settings(url: &str) -> ConnectionSettings {
        ConnectionSettings::parse(url, &Environment::new()).unwrap()
    }

    #[tokio::test]
    async fn only_sockets_and_loopback_addresses_stay_on_this_machine() {
        for (url, leaves) in [
            ("postgresql://u@/db?host=/run/postgresql", false),
            ("postgresql://u@127.0.0.1/db", false),
            ("postgresql://u@127.8.0.1/db", false),
            ("postgresql://u@[::1]/db", false),
            ("postgresql://u@localhost/db", false),
            ("postgresql://u@localhost/db?hostaddr=192.0.2.1", true),
            ("postgresql://u@db.example.com/db?hostaddr=127.0.0.1", false),
            ("postgresql://u@192.0.2.1/db", true),
            ("postgresql://u@0.0.0.0/db", true),
            ("postgresql://u@name.that.does.not.resolve.invalid/db", true),
        ] {
            let settings = settings(url);
            assert_eq!(leaves_this_machine(&settings.hosts[0]).await, leaves, "{url}");
        }
    }

    #[test]
    fn a_password_needs_tls_that_is_required() {
        for (parameters, in_clear) in [
            ("password=x", true),
            ("password=x&sslmode=prefer", true),
            ("password=x&sslmode=allow", true),
            ("password=x&sslmode=disable", true),
            ("password=x&sslmode=require", false),
            ("password=x&sslmode=verify-full&sslrootcert=system", false),
            ("password=x&channel_binding=require", false),
            ("sslmode=prefer&passfile=/nowhere", false),
        ] {
            let settings = settings(&format!("postgresql://u@192.0.2.1/db?{parameters}"));
            assert_eq!(password_may_go_in_clear(&settings, &settings.hosts[0]), in_clear, "{parameters}");
        }
    }
}
