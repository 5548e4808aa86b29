//! Who runs a server: asked where a hint would name a superuser, whom managed servers do not lend.
//!
//! Asked by both ends' checks and by the replication session's set-up after a refusal; the answer is `pg::Provider`'s table.

use super::error::SessionError;
use super::sql::SqlClient;
use crate::pg::Provider;

/// The provider of a server, by a role that exists there only; none where our role is a superuser, who can do all there.
///
/// # Errors
/// [`SessionError`] when the server does not answer.
pub async fn ask_provider(client: &SqlClient) -> Result<Option<Provider>, SessionError> {
    let sql = "SELECT r.rolname::text FROM pg_catalog.pg_roles r
               WHERE r.rolname = ANY($1::text[])
                   AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles u WHERE u.rolname = current_user AND u.rolsuper)";
    let names = Provider::ROLES.map(|(role, _)| role).to_vec();
    let rows = client.query("looking for the roles of a provider", sql, &[&names]).await?;
    let roles: Vec<String> = rows.iter().map(|row| row.get(0)).collect::<Result<_, SessionError>>()?;
    Ok(Provider::of_roles(&roles))
}
