//! Whose the bookkeeping is: schema `headwater` must belong to a role that could do as much as we can without it.
//!
//! Asked by `pipeline` at every start, before anything in the schema is used, and by `headwater check`. The functions and tables
//! in the schema are called and written with our rights, and the owner of a schema can replace whatever is in it. So a
//! role that has made a schema of this name in advance, or owns an object in it, could have its code run as us.

use super::error::DestinationError;
use super::foreign_code::accepting;
use crate::pg::{ErrorReport, Ident};
use crate::session::SqlClient;

const OWNER: &str = include_str!("../../sql/bookkeeping_owner.sql");

/// Refuses a schema `headwater` that belongs to a stranger, or that our role may not use.
///
/// # Errors
/// [`DestinationError::Refused`], naming the owner and the way out.
pub async fn check_bookkeeping_owner(client: &SqlClient, trusted_roles: &[Ident]) -> Result<(), DestinationError> {
    let Some(found) = Found::read(client, trusted_roles).await? else { return Ok(()) };
    let report = match &found.stranger {
        Some((object, owner)) => {
            let role = &found.role;
            let text = format!("{object} at the destination belongs to role {owner}, not to headwater's role {role}");
            let report = ErrorReport::new(text).detail("Its owner could have code run with headwater's rights.");
            report.hint(format!("{}. {}", accepting(trusted_roles, &[owner]), found.way_out()))
        }
        None if found.usable => return Ok(()),
        None => found.unusable().hint(found.way_out()),
    };
    Err(DestinationError::Refused(report))
}

/// Why our role could not make the bookkeeping what it must be; `None` where there is no schema of its name.
pub(super) async fn unusable_bookkeeping(client: &SqlClient) -> Result<Option<ErrorReport>, DestinationError> {
    let found = Found::read(client, &[]).await?;
    Ok(found.map(|found| found.unusable().hint(found.way_out())))
}

struct Found {
    owner: Ident,
    /// What belongs to a role that is not trusted, and that role.
    stranger: Option<(String, Ident)>,
    usable: bool,
    made_by_headwater: bool,
    hand_over: Option<String>,
    role: Ident,
}

impl Found {
    async fn read(client: &SqlClient, trusted_roles: &[Ident]) -> Result<Option<Found>, DestinationError> {
        let trusted: Vec<&str> = trusted_roles.iter().map(Ident::as_str).collect();
        let row = client.query_opt("asking whose schema headwater is", OWNER, &[&trusted]).await?;
        Ok(row.map(|row| {
            let (object, owner): (Option<String>, Option<&str>) = (row.get(1), row.get(2));
            Found {
                owner: Ident::new(row.get::<_, &str>(0)),
                stranger: object.zip(owner.map(Ident::new)),
                usable: row.get(3),
                made_by_headwater: row.get(4),
                hand_over: row.get(5),
                role: Ident::new(row.get::<_, &str>(6)),
            }
        }))
    }

    fn unusable(&self) -> ErrorReport {
        let Found { owner, role, .. } = self;
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
