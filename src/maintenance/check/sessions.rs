//! Whether the role may open the sessions of a first copy.
//!
//! Called for either end, where no stream is followed yet: once one is, the sessions of the service are open already.

use crate::error_policy::Fault;
use crate::maintenance::check::findings::{About, Findings};
use crate::pg::{ErrorReport, counted};
use crate::session::{SessionError, SessionsRoom, SqlClient};

/// Sessions of a copy with one reader, at either end: tried with each limit from 1 to 12.
const NEEDED: i64 = 6;
/// Enough for a resync while the stream continues, and for the commands.
const ADVISED: i64 = 20;

/// `own`: sessions that the check itself has open there, which will be closed.
pub(super) async fn look(
    client: &SqlClient,
    own: i64,
    about: About,
    fault: fn(SessionError) -> Fault,
    findings: &mut Findings,
) {
    let Some(room) = findings.take(about, "sessions", client.sessions_room().await.map_err(fault)) else { return };
    let free = room.least() + own;
    if free >= NEEDED {
        return findings.ok(about, "sessions", format!("there is room for {}", counted(free, "session")));
    }
    findings.fail(about, "sessions", too_few(&room, free, about.as_str()));
}

fn too_few(room: &SessionsRoom, free: i64, end: &str) -> ErrorReport {
    let SessionsRoom { server, role, database, role_name, database_name } = room;
    let (what, statement) = match (role, database) {
        (Some(role), _) if role == &room.least() => (
            format!("CONNECTION LIMIT of role {role_name}"),
            format!("ALTER ROLE {role_name} CONNECTION LIMIT {ADVISED};"),
        ),
        (_, Some(database)) if database < server => (
            format!("CONNECTION LIMIT of database {database_name}"),
            format!("ALTER DATABASE {database_name} CONNECTION LIMIT {ADVISED};"),
        ),
        (_, _) => {
            ("max_connections".to_owned(), "ALTER SYSTEM SET max_connections = 200; -- then restart it".to_owned())
        }
    };
    ErrorReport::new(format!("role {role_name} may open {} at the {end}", counted(free.max(0), "session")))
        .detail(format!("A first copy needs {NEEDED}. The limit is {what}."))
        .hint(format!("Run at the {end} as a superuser:\n{statement}"))
}
