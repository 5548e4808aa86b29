//! Whose the bookkeeping is: schema `headwater` must belong to a role that could do as much as we can without it, and nobody
//! else may change it.
//!
//! Asked before anything in the schema is used: by [`crate::destination::bookkeeping::Bookkeeping::connect_checked`], with which every
//! start and every command
//! that touches the schema opens its session, and by the monitor of `supervisor` while a stream runs. The functions
//! and tables in the schema are called and written with our rights, and the owner of a schema can replace whatever is in it. So a
//! role that has made a schema of this name in advance, or owns an object in it, could have its code run as us. So could one that was
//! granted TRIGGER on a table of it, or CREATE on the schema; one that may write could move the position. Such grants are not
//! made with the bookkeeping (sql/withhold_grants.sql): what is found here was granted later, or by an earlier version.

use serde::Deserialize;

use super::error::DestinationError;
use super::foreign_code::{Writes, accepting, name_of};
use crate::pg::{ErrorReport, Ident, QualifiedName, shown_literal};
use crate::session::{SessionError, SqlClient};

const OWNER: &str =
    concat!(include_str!("../../sql/trusted_roles.sql"), include_str!("../../sql/bookkeeping_owner.sql"));

/// Privileges named in one detail at most; the hint takes all of them back.
const LISTED_MAX: usize = 20;

const DOING: &str = "asking whose schema headwater is";

/// The role that acts and the one that has logged in, where the first is not to be trusted with the rights of the second.
const CHOSEN_ROLE: &str = concat!(
    include_str!("../../sql/trusted_roles.sql"),
    "SELECT current_user::text, session_user::text, pg_catalog.current_database()::text
     WHERE NOT EXISTS (SELECT FROM trusted t JOIN pg_catalog.pg_roles r ON r.oid = t.oid WHERE r.rolname = current_user)"
);

/// A relation under the name of one of ours that cannot be ours. Every version had these columns.
const NOT_OURS: &str = "
    SELECT c.relname::text, ours.attribute
    FROM (VALUES ('stream', 'generation'), ('position', 'position'), ('tables', 'schema_name')) AS ours(relation, attribute)
    JOIN pg_catalog.pg_class c ON c.relname = ours.relation
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'headwater'
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attname = ours.attribute AND NOT a.attisdropped)
    ORDER BY 1 LIMIT 1";

/// Direct members of the role that may write every table, headwater's own as well. $1 names of roles that are trusted.
const WRITERS_OF_ALL: &str = "
    SELECT m.rolname::text
    FROM pg_catalog.pg_auth_members a
    JOIN pg_catalog.pg_roles g ON g.oid = a.roleid AND g.rolname = 'pg_write_all_data'
    JOIN pg_catalog.pg_roles m ON m.oid = a.member
    WHERE NOT m.rolsuper AND m.rolname NOT IN (current_user, session_user) AND m.rolname <> ALL ($1::text[])
    GROUP BY 1 ORDER BY 1";

/// Refuses a schema `headwater` that belongs to a stranger, that our role may not use, that others may change, or that holds code
/// of others.
///
/// # Errors
/// [`DestinationError::Refused`], naming the role and the way out.
pub async fn check_bookkeeping(client: &SqlClient, trusted_roles: &[Ident]) -> Result<(), DestinationError> {
    match bookkeeping_report(client, trusted_roles).await? {
        Some(report) => Err(DestinationError::Refused(report)),
        None => Ok(()),
    }
}

/// What to report of a schema `headwater` that others own or may change, that our role may not use, or that holds code of others.
///
/// # Errors
/// [`DestinationError`] when the server does not answer.
pub async fn bookkeeping_report(
    client: &SqlClient,
    trusted_roles: &[Ident],
) -> Result<Option<ErrorReport>, DestinationError> {
    match owner_report(client, trusted_roles).await? {
        Some(report) => Ok(Some(report)),
        // Whatever is enabled on headwater's own tables counts, where ordinary triggers act on what is applied and where they do not.
        None => {
            let tables = vec![of_bookkeeping(&Ident::new("stream"))];
            let trusted_roles = trusted_roles.to_vec();
            let writes = Writes { tables, trusted_roles, ..Writes::default() };
            writes.foreign_code_report(client).await
        }
    }
}

/// Refuses a schema `headwater` that belongs to a stranger, that our role may not use, or that others may change: enough for reading it,
/// where the code in it is looked at by itself.
///
/// # Errors
/// As [`check_bookkeeping`].
pub async fn check_bookkeeping_owner(client: &SqlClient, trusted_roles: &[Ident]) -> Result<(), DestinationError> {
    match owner_report(client, trusted_roles).await? {
        Some(report) => Err(DestinationError::Refused(report)),
        None => Ok(()),
    }
}

/// What to report of sessions that the database has act as another role: its owner's choice, not the operator's.
async fn chosen_role_report(
    client: &SqlClient,
    trusted_roles: &[Ident],
) -> Result<Option<ErrorReport>, DestinationError> {
    let trusted: Vec<&str> = trusted_roles.iter().map(Ident::as_str).collect();
    let rows = client.query(DOING, CHOSEN_ROLE, &[&trusted]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let ident = |at: usize| row.get::<String>(at).map(Ident::new);
    let (chosen, role, database) = (ident(0)?, ident(1)?, ident(2)?);
    Ok(Some(
        ErrorReport::new(format!("database {database} at the destination has sessions act as role {chosen}, and not as {role}"))
            .detail(format!("Its owner may set that, and code of role {chosen} could go back to the rights of role {role}."))
            .hint(format!(
                "Run at the destination: ALTER DATABASE {database} RESET role; Or, if headwater is to act as that role, as a superuser:\n\
                 ALTER ROLE {role} IN DATABASE {database} SET role = {};",
                shown_literal(chosen.as_str())
            )),
    ))
}

async fn owner_report(client: &SqlClient, trusted_roles: &[Ident]) -> Result<Option<ErrorReport>, DestinationError> {
    if let Some(report) = chosen_role_report(client, trusted_roles).await? {
        return Ok(Some(report));
    }
    let Some(found) = FoundOwner::read(client, trusted_roles).await? else { return Ok(None) };
    Ok(match &found.stranger {
        Some((object, owner)) => {
            let role = &found.role;
            let text = format!("{object} at the destination belongs to role {owner}, not to headwater's role {role}");
            let report = ErrorReport::new(text).detail("Its owner could have code run with headwater's rights.");
            let accept = accepting(trusted_roles, &[Some(owner)]).map_or(String::new(), |accept| format!("{accept}. "));
            Some(report.hint(format!("{accept}{}", found.way_out())))
        }
        None if !found.usable => Some(found.unusable().hint(found.way_out())),
        None if found.granted.is_empty() => not_ours_report(client).await?,
        None => Some(found.granted_report(trusted_roles)),
    })
}

/// What to report of roles that may write every table, so that no grant keeps them from moving the position. The server means it so,
/// and nothing of theirs runs as us: it is for the operator to know.
///
/// # Errors
/// [`DestinationError`] when the server does not answer.
pub async fn writers_of_all_report(
    client: &SqlClient,
    trusted_roles: &[Ident],
) -> Result<Option<ErrorReport>, DestinationError> {
    let trusted: Vec<&str> = trusted_roles.iter().map(Ident::as_str).collect();
    let rows = client.query("asking who may write every table", WRITERS_OF_ALL, &[&trusted]).await?;
    let roles: Vec<Ident> =
        rows.iter().map(|row| Ok(Ident::new(row.get::<String>(0)?))).collect::<Result<_, SessionError>>()?;
    if roles.is_empty() {
        return Ok(None);
    }
    let named = roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let accepted: Vec<Option<&Ident>> = roles.iter().map(Some).collect();
    let run = format!("un at the destination as a superuser:\nREVOKE pg_write_all_data FROM {named};");
    let hint = match accepting(trusted_roles, &accepted) {
        Some(accept) => format!("{accept}. Otherwise r{run}"),
        None => format!("R{run}"),
    };
    let whose = format!("{} {named}", if roles.len() == 1 { "role" } else { "roles" });
    Ok(Some(
        ErrorReport::new(format!("{whose} may write headwater's bookkeeping at the destination"))
            .detail("Members of pg_write_all_data may write every table. A position that is changed loses rows.")
            .hint(hint),
    ))
}

/// What to report of a relation that only has the name of one of ours.
async fn not_ours_report(client: &SqlClient) -> Result<Option<ErrorReport>, DestinationError> {
    let rows = client.query(DOING, NOT_OURS, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let name = of_bookkeeping(&Ident::new(row.get::<String>(0)?));
    let column = Ident::new(row.get::<String>(1)?);
    Ok(Some(
        ErrorReport::new(format!("{name} at the destination is not headwater's: it has no column {column}"))
            .detail("Something else has made a schema of the name that headwater keeps its position in.")
            .hint("Rename the schema:\nALTER SCHEMA headwater RENAME TO headwater_of_others;"),
    ))
}

/// Why our role could not make the bookkeeping what it must be; `None` where there is no schema of its name.
pub(super) async fn unusable_bookkeeping(client: &SqlClient) -> Result<Option<ErrorReport>, DestinationError> {
    let found = FoundOwner::read(client, &[]).await?;
    Ok(found.map(|found| found.unusable().hint(found.way_out())))
}

struct FoundOwner {
    owner: Ident,
    /// What belongs to a role that is not trusted, and that role.
    stranger: Option<(String, Ident)>,
    usable: bool,
    made_by_headwater: bool,
    hand_over: Option<String>,
    role: Ident,
    /// What others may do.
    granted: Vec<Granted>,
    /// Triggers of tables on which others have TRIGGER.
    triggers: Vec<AttachedTrigger>,
}

/// Privileges of one role on one object of the bookkeeping.
#[derive(Debug, Deserialize)]
struct Granted {
    kind: String,
    name: Ident,
    /// Of a grant on one column.
    column: Option<Ident>,
    privileges: Vec<String>,
    /// `None` is PUBLIC.
    grantee: Option<Ident>,
    /// Who granted it by a grant option; `None`: the owner.
    grantor: Option<Ident>,
}

/// A trigger of a table of the bookkeeping.
#[derive(Debug, Deserialize)]
struct AttachedTrigger {
    table: Ident,
    trigger: Ident,
}

impl Granted {
    fn object(&self) -> String {
        if self.kind == "SCHEMA" { self.name.to_string() } else { of_bookkeeping(&self.name).to_string() }
    }

    fn privileges(&self) -> String {
        let of_column = self.column.as_ref().map_or(String::new(), |column| format!(" ({column})"));
        let named: Vec<String> = self.privileges.iter().map(|privilege| format!("{privilege}{of_column}")).collect();
        named.join(", ")
    }

    fn sentence(&self) -> String {
        let Granted { kind, grantee, .. } = self;
        let (kind, object) = (kind.to_lowercase(), self.object());
        format!("role {} has {} on {kind} {object}", name_of(grantee.as_ref()), self.privileges())
    }

    /// Only the role that has granted a privilege can revoke it.
    fn revocation(&self) -> String {
        let Granted { kind, grantee, grantor, .. } = self;
        let (object, privileges, grantee) = (self.object(), self.privileges(), name_of(grantee.as_ref()));
        let revoke = format!("REVOKE {privileges} ON {kind} {object} FROM {grantee} CASCADE;");
        match grantor {
            Some(grantor) => format!("SET ROLE {grantor}; {revoke} RESET ROLE;"),
            None => revoke,
        }
    }
}

fn of_bookkeeping(name: &Ident) -> QualifiedName {
    QualifiedName { schema: Ident::new("headwater"), name: name.clone() }
}

/// The rows of an answer that is a JSON array, or none.
fn rows_of<T: for<'a> Deserialize<'a>>(json: Option<&str>) -> Result<Vec<T>, DestinationError> {
    let rows = json.map_or(Ok(Vec::new()), serde_json::from_str);
    rows.map_err(|error| SessionError::from_json(DOING, &error).into())
}

impl FoundOwner {
    async fn read(client: &SqlClient, trusted_roles: &[Ident]) -> Result<Option<FoundOwner>, DestinationError> {
        let trusted: Vec<&str> = trusted_roles.iter().map(Ident::as_str).collect();
        let Some(row) = client.query_opt(DOING, OWNER, &[&trusted]).await? else { return Ok(None) };
        let (object, owner): (Option<String>, Option<&str>) = (row.get(1)?, row.get(2)?);
        Ok(Some(FoundOwner {
            owner: Ident::new(row.get::<&str>(0)?),
            stranger: object.zip(owner.map(Ident::new)),
            usable: row.get(3)?,
            made_by_headwater: row.get(4)?,
            hand_over: row.get(5)?,
            role: Ident::new(row.get::<&str>(6)?),
            granted: rows_of(row.get(7)?)?,
            triggers: rows_of(row.get(8)?)?,
        }))
    }

    fn granted_report(&self, trusted_roles: &[Ident]) -> ErrorReport {
        let mut roles: Vec<Option<&Ident>> = self.granted.iter().map(|granted| granted.grantee.as_ref()).collect();
        roles.sort_unstable();
        roles.dedup();
        let named: Vec<String> = roles.iter().copied().map(name_of).collect();
        let whose = format!("{} {}", if named.len() == 1 { "role" } else { "roles" }, named.join(", "));
        let mut sentences: Vec<String> = self.granted.iter().take(LISTED_MAX).map(Granted::sentence).collect();
        if self.granted.len() > LISTED_MAX {
            sentences.push(format!("and {} more", self.granted.len() - LISTED_MAX));
        }
        let detail = format!(
            "{}. Code that is attached there runs with headwater's rights, and a position that is changed there loses rows.",
            sentences.join("; ")
        );
        let drop = |AttachedTrigger { table, trigger }: &AttachedTrigger| {
            format!("DROP TRIGGER {trigger} ON {};", of_bookkeeping(table))
        };
        // First the grants: what is dropped could be made again.
        let statements: Vec<String> =
            self.granted.iter().map(Granted::revocation).chain(self.triggers.iter().map(drop)).collect();
        let run = format!("un at the destination as a superuser:\n{}", statements.join("\n"));
        let hint = match accepting(trusted_roles, &roles) {
            Some(accept) => format!("{accept}. Otherwise r{run}"),
            None => format!("R{run}"),
        };
        ErrorReport::new(format!("{whose} may change headwater's bookkeeping at the destination"))
            .detail(detail)
            .hint(hint)
    }

    fn unusable(&self) -> ErrorReport {
        let FoundOwner { owner, role, .. } = self;
        ErrorReport::new(format!(
            "schema headwater at the destination belongs to role {owner}, and role {role} may not use it"
        ))
    }

    fn way_out(&self) -> String {
        match &self.hand_over {
            Some(statements) if self.made_by_headwater => format!(
                "If headwater ran as another role before, give that role in destination.url; or run at the destination as a \
                 superuser, to hand its bookkeeping over:\n{statements}"
            ),
            Some(_) | None => "headwater needs that name for its bookkeeping. If the schema is somebody else's, run at the destination \
                               as a superuser:\nALTER SCHEMA headwater RENAME TO not_headwater;"
                .to_owned(),
        }
    }
}
