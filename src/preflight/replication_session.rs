//! A replication session with the source, or what lets headwater have one.
//!
//! Opened for the stream, for every slot that is created or dropped, and for `check`. A refusal is reported with its remedy: the role's
//! right to replicate, which providers grant in ways of their own, a free walsender, or the server's address instead of a pooler's.

use crate::config::Config;
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Ident, Provider, replication_hint, settings_hint};
use crate::preflight::addresses::Addresses;
use crate::session::{ReplicationSession, SessionError, ask_provider};
use crate::source::SourceError;

/// Opens a replication session.
pub(crate) async fn connect_replication(config: &Config, purpose: &str) -> Result<ReplicationSession, Fault> {
    let purpose = format!("{} {purpose}", config.source.slot);
    let timeout = config.source.timeout;
    let session = ReplicationSession::connect(&config.source.url, &purpose, timeout, timeout).await;
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return Err(refused_replication(config, error).await),
    };
    if session.is_direct().await.map_err(SourceError::Session)? {
        return Ok(session);
    }
    Err(SourceError::Refused(source_pooler_report()).into())
}

/// Why the source takes no replication session of ours.
async fn refused_replication(config: &Config, error: SessionError) -> Fault {
    let role = Ident::new(config.source.url.user.as_str());
    let message = error.server().map(|server| server.message.clone()).unwrap_or_default();
    let refused = match error.code().map(|code| code.as_str().to_owned()).as_deref() {
        // The same role has an ordinary session in the same database: only the attribute can be missing. The
        // message's words differ between majors and languages.
        Some("42501") => {
            ErrorReport::new(format!("role {role} may not replicate: it lacks the REPLICATION attribute at the source"))
                .hint(replication_hint(source_provider(config).await, &role))
        }
        Some("53300") if message.contains("max_wal_senders") => {
            ErrorReport::new("all walsenders at the source are taken")
                .detail(format!("The source says: {message}."))
                .hint(more_senders(source_provider(config).await))
        }
        // PgBouncer refuses what it does not know in the start-up message, replication included.
        _ if message.contains("unsupported startup parameter") => source_pooler_report(),
        _ => return Fault::from(SourceError::Session(error)),
    };
    SourceError::Refused(refused).into()
}

/// Who runs the source. Only words depend on it, so a source that does not answer now is one of the operator's own.
async fn source_provider(config: &Config) -> Option<Provider> {
    let client = Addresses::new(config).source.connect().await.ok()?;
    ask_provider(&client).await.ok().flatten()
}

fn more_senders(provider: Option<Provider>) -> String {
    match provider {
        None => "End a replication connection that nobody needs, or run at the source as a superuser and restart it:\n\
                 ALTER SYSTEM SET max_wal_senders = 20;"
            .to_owned(),
        Some(_) => {
            let settings = [("max_wal_senders", "20".to_owned())];
            format!("End a replication connection that nobody needs. Or: {}", settings_hint(provider, &settings, true))
        }
    }
}

pub(crate) fn source_pooler_report() -> ErrorReport {
    ErrorReport::new("source.url leads through a connection pooler")
        .detail("The replication slot, exported snapshots and settings live in sessions, which headwater must have for itself.")
        .hint("Give the address of the PostgreSQL server itself as source.url.")
}
