//! What can be seen of a service from outside: its own /status, and what both servers hold of it.
//!
//! Used by `status` and `explain`, which print it. Nothing here changes anything. Bounds: the service is given
//! [`SERVICE_MAX`] and [`ANSWER_BYTES_MAX`]; each server its connect_timeout, at most [`CONNECT_MAX`], and
//! [`QUERY_MAX`] a question, of which a lock may cost [`LOCK_MAX`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{Config, ConnectionSettings};
use crate::destination::{Bookkeeping, Holder, LockHolders, Pace, Request, StreamState, TableState};
use crate::pg::{Lsn, printable, printable_lines};
use crate::session::{Sql, SqlClient};
use crate::source::{choose_host, find_slot};
use crate::telemetry::StatusView;

const SERVICE_MAX: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 64 << 20;
const CONNECT_MAX: Duration = Duration::from_secs(5);
const QUERY_MAX: Duration = Duration::from_secs(10);
/// Long enough for `explain` to see who holds it.
const LOCK_MAX: &str = "SET lock_timeout = '4s'";

/// The status that the running service tells; otherwise why there is none.
pub(super) async fn service(config: &Config) -> Result<StatusView, String> {
    let Some(listen) = config.http.listen else {
        return Err("http.listen is off: the service cannot be asked".to_owned());
    };
    let asked = tokio::time::timeout(SERVICE_MAX, get(reachable(listen), "/status")).await;
    let body = match asked {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return Err(format!("nothing answers at {listen} (http.listen): {error}")),
        Err(_) => return Err(format!("{listen} (http.listen) does not answer within {SERVICE_MAX:?}")),
    };
    let stranger = |_| format!("what answers at {listen} (http.listen) is not this headwater");
    // Another program on that port may have answered.
    let shown = shown(serde_json::from_str(&body).map_err(stranger)?);
    let status: StatusView = serde_json::from_value(shown).map_err(stranger)?;
    let ours = (config.source.slot.as_str(), config.destination.url.to_string());
    if (status.route.slot.as_str(), status.route.destination.clone()) != ours {
        return Err(format!(
            "at {listen} (http.listen) answers another headwater: slot {}, destination {}",
            status.route.slot, status.route.destination
        ));
    }
    Ok(status)
}

/// JSON with all its texts printable.
fn shown(value: Value) -> Value {
    let text = |text: String| printable_lines(&text).into_owned();
    match value {
        Value::String(string) => Value::String(text(string)),
        Value::Array(values) => values.into_iter().map(shown).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (text(name), shown(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// An address that is listened on, as one that can be connected to.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, listen.port())
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => Err(std::io::Error::other("not an HTTP answer")),
    }
}

/// What the destination holds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AtDestination {
    /// A snapshot was begun and not published, or the position is valid; `None`: nothing was ever fed here.
    pub(super) state: Option<&'static str>,
    /// The position.
    pub(super) position: Option<Lsn>,
    /// Why the copy may have gaps.
    pub(super) gap: Option<String>,
    /// The tables that are followed.
    pub(super) tables: Vec<String>,
    /// Copies that have failed and are tried again.
    pub(super) failed_copies: Vec<ReportedCopyFailure>,
    /// Copies that wait, since their tables were copied again and again.
    pub(super) paced_copies: Vec<PacedCopy>,
    /// The server process of the instance that leads.
    pub(super) leader_process: Option<i32>,
    /// Where it is connected from.
    pub(super) leader_from: Option<String>,
    /// Sessions that hold the leader's lock and may not lead.
    pub(super) foreign_lock_holders: Vec<String>,
    /// The same, for reports.
    #[serde(skip)]
    pub(super) foreign: Vec<Holder>,
    /// Who leads, for reports.
    #[serde(skip)]
    pub(super) leader: Option<Holder>,
}

/// A copy that has failed and is tried again.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ReportedCopyFailure {
    /// Of which tables.
    pub(super) of: String,
    /// Why, with what to do.
    pub(super) reason: String,
}

/// A copy that waits, since its table was copied again and again.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PacedCopy {
    /// Of which tables.
    pub(super) of: String,
    /// How many copies were published within the last hour.
    pub(super) copies: u32,
    /// How many were given up.
    pub(super) given_up: u32,
    /// How much longer it waits.
    pub(super) seconds: u64,
}

/// What the source holds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AtSource {
    /// How far its WAL is.
    pub(super) flush_lsn: Option<Lsn>,
    /// The slot, if there is one.
    pub(super) slot: Option<SlotSeen>,
}

/// The slot.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SlotSeen {
    /// `wal_status`
    pub(super) wal_status: String,
    /// What was confirmed.
    pub(super) confirmed_flush_lsn: Option<Lsn>,
    /// WAL kept for it.
    pub(super) retained_wal_bytes: u64,
    /// WAL until it is in danger.
    pub(super) safe_wal_bytes: Option<u64>,
    /// The walsender that uses it.
    pub(super) active_process: Option<i32>,
    /// Why it was invalidated.
    pub(super) invalidation_reason: Option<String>,
}

/// A session for looking, on either side.
pub(super) async fn connect(url: &ConnectionSettings) -> Result<SqlClient, String> {
    let mut connection = url.clone();
    connection.connect_timeout = connection.connect_timeout.min(CONNECT_MAX);
    let sql = Sql { connection, purpose: "status", timeout: QUERY_MAX };
    let client = sql.connect().await.map_err(|error| error.to_string())?;
    client.batch("setting up a session", LOCK_MAX).await.map_err(|error| error.to_string())?;
    Ok(client)
}

/// A session for looking at the source: with the one of several hosts that has the highest timeline.
pub(super) async fn connect_source(config: &Config) -> Result<SqlClient, String> {
    let mut url = config.source.url.clone();
    url.connect_timeout = url.connect_timeout.min(CONNECT_MAX);
    let chosen = choose_host(&url, None, "status", QUERY_MAX).await.map_err(|error| error.to_string())?;
    connect(&chosen.connection).await
}

/// Looks at the destination.
pub(super) async fn destination(config: &Config) -> Result<AtDestination, String> {
    let mut connection = config.destination.url.clone();
    connection.connect_timeout = connection.connect_timeout.min(CONNECT_MAX);
    let sql = Sql { connection, purpose: "status", timeout: QUERY_MAX };
    let bookkeeping = Bookkeeping::connect_checked(&sql, &config.destination.trusted_roles).await;
    let bookkeeping = bookkeeping.map_err(|error| error.to_string())?;
    bookkeeping.client().batch("setting up a session", LOCK_MAX).await.map_err(|error| error.to_string())?;
    look_at_destination(config, &bookkeeping).await.map_err(|error| error.to_string())
}

async fn look_at_destination(
    config: &Config,
    bookkeeping: &Bookkeeping,
) -> Result<AtDestination, crate::destination::DestinationError> {
    let LockHolders { leader, foreign } = LockHolders::look(bookkeeping.client(), &config.source.slot).await?;
    let mut seen = AtDestination {
        state: None,
        position: None,
        gap: None,
        tables: Vec::new(),
        failed_copies: Vec::new(),
        paced_copies: Vec::new(),
        leader_process: leader.as_ref().and_then(|leader| leader.process_id),
        leader_from: leader
            .as_ref()
            .and_then(|leader| leader.address.as_deref())
            .map(|from| printable(from).into_owned()),
        foreign_lock_holders: foreign.iter().map(ToString::to_string).collect(),
        foreign,
        leader,
    };
    let Some(stream) = bookkeeping.stream().await? else { return Ok(seen) };
    seen.gap = stream.gap.map(|gap| printable(&gap).into_owned());
    seen.state = Some(match stream.state {
        StreamState::Creating => "creating",
        StreamState::Live { .. } => "live",
    });
    seen.position = bookkeeping.position().await?;
    let live = bookkeeping.tables().await?.into_iter().filter(|table| matches!(table.state, TableState::Live { .. }));
    seen.tables = live.map(|table| table.name.to_string()).collect();
    if bookkeeping.takes_requests().await? {
        let failed = |request: Request| {
            let reason = printable_lines(&request.failure?).into_owned();
            Some(ReportedCopyFailure { of: printable(&request.scope.to_string()).into_owned(), reason })
        };
        let requests = bookkeeping.requests().await?;
        let copies = bookkeeping.automatic_copies().await?;
        let paced = |request: &Request| {
            let Pace { copies, given_up, wait } = Pace::of(request, &copies)?;
            let of = printable(&request.scope.to_string()).into_owned();
            Some(PacedCopy { of, copies, given_up, seconds: wait.as_secs() + 1 })
        };
        seen.paced_copies = requests.iter().filter_map(paced).collect();
        seen.failed_copies = requests.into_iter().filter_map(failed).collect();
    }
    Ok(seen)
}

/// Looks at the source.
pub(super) async fn source(config: &Config) -> Result<AtSource, String> {
    let client = connect_source(config).await?;
    let sql = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                       ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text";
    let row = client.query_one("asking how far the source is", sql, &[]).await.map_err(|error| error.to_string())?;
    let flush_lsn = row.parse_nullable(0).map_err(|error| error.to_string())?;
    let slot = find_slot(&client, &config.source.slot).await.map_err(|error| error.to_string())?;
    Ok(AtSource {
        flush_lsn,
        slot: slot.map(|slot| SlotSeen {
            wal_status: printable(&slot.wal_status).into_owned(),
            confirmed_flush_lsn: slot.confirmed_flush_lsn,
            retained_wal_bytes: slot.retained_wal_bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
            safe_wal_bytes: slot.safe_wal_size.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            active_process: slot.active_pid,
            invalidation_reason: slot.invalidation_reason.map(|reason| printable(&reason).into_owned()),
        }),
    })
}
