//! Marks what we apply with a replication origin, where the role may.
//!
//! Called by `writer`, for the leader's session and for that of parallel apply. What a marked session
//! commits is known as replicated: a subscription or another headwater that follows this database with `origin = "none"`
//! leaves it out, which cuts loops. The position is not kept there: an origin's progress needs privileges and is not saved
//! by a transaction without an xid. `teardown` drops the origins again ([`drop_origins`]).
//!
//! An origin is active in one session at a time. The previous leader's session may take a moment to let go of it after its
//! lock is free; that is waited for, at most [`RELEASE_MAX`].

use std::time::Duration;

use super::error::DestinationError;
use crate::destination::first_row::one_row;
use crate::pg::{SlotName, quote_literal};
use crate::session::{PipelinedRequest, SessionError, SqlClient, WritingSession};

const DOING: &str = "marking what is applied with a replication origin";
const RELEASE_MAX: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Whether what is applied is marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marking {
    /// With the origin of this name.
    Origin(String),
    /// It is not, and this is why.
    None(String),
}

/// The origin of the leader's session.
pub(super) fn origin_name(slot: &SlotName) -> String {
    format!("headwater_{slot}")
}

/// The origin of the session for parallel apply. No slot's name has a dot.
pub(super) fn parallel_apply_origin_name(slot: &SlotName) -> String {
    format!("headwater_{slot}.ahead")
}

/// Marks a session with an origin, which is created where it is missing.
pub(super) async fn mark(
    session: &mut WritingSession,
    name: &str,
    timeout: Duration,
) -> Result<Marking, DestinationError> {
    let origin = quote_literal(name);
    let known = match ask(session, &format!("SELECT pg_catalog.pg_replication_origin_oid({origin})"), timeout).await {
        Ok(row) => row.first().is_some_and(Option::is_some),
        Err(error) => return unmarked(error),
    };
    if !known {
        let created = ask(session, &format!("SELECT pg_catalog.pg_replication_origin_create({origin})"), timeout).await;
        match created {
            Ok(_) => {}
            // Made by somebody else between the two questions: it is there.
            Err(error) if code(&error) == "23505" => {}
            Err(error) => return unmarked(error),
        }
    }
    let mut waited = Duration::ZERO;
    loop {
        let sql = format!("SELECT pg_catalog.pg_replication_origin_session_setup({origin})");
        match ask(session, &sql, timeout).await {
            Ok(_) => return Ok(Marking::Origin(name.to_owned())),
            Err(error) if code(&error) == "55006" && waited < RELEASE_MAX => {
                tokio::time::sleep(ASK_EVERY).await;
                waited += ASK_EVERY;
            }
            Err(error) => return unmarked(error),
        }
    }
}

/// What became of an origin that is no longer needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginEnd {
    /// There is none.
    Absent,
    /// It is gone; with a dry run, it would be.
    Dropped(String),
    /// A session uses it: origins are the cluster's, and a slot of this name feeds another of its databases, too.
    InUse(String),
    /// The server did not let us; its reason.
    Refused(String, String),
}

/// Drops the origins that were made for this slot. Nothing is lost with them: the position is not kept there.
///
/// # Errors
/// [`SessionError`] when the session is lost.
pub async fn drop_origins(client: &SqlClient, slot: &SlotName, dry_run: bool) -> Result<Vec<OriginEnd>, SessionError> {
    let mut ends = Vec::new();
    for name in [origin_name(slot), parallel_apply_origin_name(slot)] {
        ends.push(drop_origin(client, name, dry_run).await?);
    }
    Ok(ends)
}

async fn drop_origin(client: &SqlClient, name: String, dry_run: bool) -> Result<OriginEnd, SessionError> {
    const DOING: &str = "dropping the replication origin";
    let sql = "SELECT true FROM pg_catalog.pg_replication_origin WHERE roname = $1::text";
    if client.query_opt(DOING, sql, &[&name]).await?.is_none() {
        return Ok(OriginEnd::Absent);
    }
    if dry_run {
        return Ok(OriginEnd::Dropped(name));
    }
    match client.query(DOING, "SELECT pg_catalog.pg_replication_origin_drop($1::text)", &[&name]).await {
        Ok(_) => Ok(OriginEnd::Dropped(name)),
        Err(error) if code(&error) == "55006" => Ok(OriginEnd::InUse(name)),
        Err(error) => match error.server() {
            Some(server) if !server.fatal => Ok(OriginEnd::Refused(name, server.message.clone())),
            Some(_) | None => Err(error),
        },
    }
}

/// A refusal of the server's is no error: nothing is marked then. A lost session is one.
fn unmarked(error: SessionError) -> Result<Marking, DestinationError> {
    match error.server() {
        Some(server) if !server.fatal => Ok(Marking::None(server.message.clone())),
        Some(_) | None => Err(error.into()),
    }
}

fn code(error: &SessionError) -> String {
    error.code().map(|code| code.as_str().to_owned()).unwrap_or_default()
}

async fn ask(session: &mut WritingSession, sql: &str, timeout: Duration) -> Result<Vec<Option<String>>, SessionError> {
    let mut request = PipelinedRequest::new();
    request.query(sql);
    Ok(one_row(session.round_trip(DOING, request, timeout).await?))
}
