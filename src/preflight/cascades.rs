//! Foreign keys of the destination that would change or delete rows which the source keeps: found and refused.
//!
//! Called by `prepare` before an attempt, by `stream_health` while a stream runs, by `snapshot` before a copy is published, and by `check`.
//! In come a session with either end and what is written; out goes a report, or nothing. Where foreign keys act on what is applied, a
//! parent's delete takes the rows along that ON DELETE CASCADE points at it with, without an error and without a count. Where the
//! source has the same action on the same columns, its own changes of those rows come in the same transaction, and find them done
//! (`apply_plan::side_effects`). Otherwise the source keeps rows that would be lost here.
//!
//! What headwater creates is NO ACTION, so this is about keys that others have made. A referencing table that is not followed is the
//! operator's own. Invariant: one statement at either end, whatever the number of tables.

use std::collections::BTreeSet;

use crate::destination::{DestinationError, Writes};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::session::{SessionError, SqlClient};
use crate::source::SourceError;

const ACTIONS: &str = include_str!("../../sql/foreign_key_actions.sql");
const DOING: &str = "looking at the actions of foreign keys";
/// Keys of one report at most: the list is for a terminal.
const LISTED_MAX: usize = 20;

/// A foreign key that acts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ActingKey {
    /// The referencing table as the key's, as partitions have it, and whose partition it is; in SQL.
    children: Vec<String>,
    /// The referenced one, likewise.
    parents: Vec<String>,
    /// Which columns are compared: `child = parent`, in order.
    columns: Vec<String>,
    /// `ON DELETE CASCADE`, and the like.
    actions: Vec<String>,
    table: QualifiedName,
    /// The table that the key references.
    referenced: String,
    name: Ident,
}

async fn read(client: &SqlClient, writes: &Writes, at_source: bool) -> Result<Vec<ActingKey>, SessionError> {
    let schemas: Vec<&str> = writes.tables.iter().map(|name| name.schema.as_str()).collect();
    let names: Vec<&str> = writes.tables.iter().map(|name| name.name.as_str()).collect();
    // The source's applications write in the ordinary role.
    let (act, set_off_only) = (at_source || writes.foreign_keys_act, !at_source);
    let rows = client.query(DOING, ACTIONS, &[&schemas, &names, &act, &set_off_only]).await?;
    let keys = rows.iter().map(|row| {
        let mut children: Vec<String> = row.get(2)?;
        let mut parents: Vec<String> = row.get(3)?;
        children.push(row.get(0)?);
        parents.push(row.get(1)?);
        let columns = row.get::<Option<Vec<String>>>(7)?.map(|columns| format!(" ({})", columns.join(", ")));
        let on_delete = row.get::<Option<&str>>(5)?;
        let on_delete = on_delete.map(|action| format!("ON DELETE {action}{}", columns.unwrap_or_default()));
        let on_update = row.get::<Option<&str>>(6)?.map(|action| format!("ON UPDATE {action}"));
        Ok(ActingKey {
            children,
            parents,
            columns: row.get(4)?,
            actions: on_delete.into_iter().chain(on_update).collect(),
            table: QualifiedName::new(row.get::<&str>(8)?, row.get::<&str>(9)?),
            referenced: row.get(1)?,
            name: Ident::new(row.get::<&str>(10)?),
        })
    });
    keys.collect()
}

impl ActingKey {
    /// The actions that none of the source's keys has for these columns.
    fn lacking(&self, source: &[ActingKey]) -> Vec<&str> {
        let covers = |there: &&ActingKey| {
            there.columns == self.columns
                && there.children.iter().any(|child| self.children.contains(child))
                && there.parents.iter().any(|parent| self.parents.contains(parent))
        };
        let same: Vec<&ActingKey> = source.iter().filter(covers).collect();
        let lacks = |action: &&String| !same.iter().any(|there| there.actions.contains(action));
        self.actions.iter().filter(lacks).map(String::as_str).collect()
    }
}

/// What is to be done about foreign keys that act at the destination where the source's do not; `None` where there are none.
///
/// # Errors
/// [`Fault`] when a server does not answer.
pub(crate) async fn report(
    source: &SqlClient,
    destination: &SqlClient,
    writes: &Writes,
) -> Result<Option<ErrorReport>, Fault> {
    let here = read(destination, writes, false).await.map_err(DestinationError::Session)?;
    if here.is_empty() {
        return Ok(None);
    }
    let there = read(source, writes, true).await.map_err(SourceError::Session)?;
    let mut found: Vec<(&ActingKey, Vec<&str>)> = Vec::new();
    let mut named = BTreeSet::new();
    for key in &here {
        let lacking = key.lacking(&there);
        // Partitions have the key of their table.
        if !lacking.is_empty() && named.insert((&key.table, &key.name)) {
            found.push((key, lacking));
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    let grantee = match writes.foreign_keys_act {
        true => Some(grantee(destination).await?),
        false => None,
    };
    Ok(Some(words(&found, grantee)))
}

/// Refuses what [`report`] finds.
pub(crate) async fn refuse(source: &SqlClient, destination: &SqlClient, writes: &Writes) -> Result<(), Fault> {
    match report(source, destination, writes).await? {
        Some(report) => Err(Fault::Destination(DestinationError::Refused(report))),
        None => Ok(()),
    }
}

/// Our role.
struct Grantee {
    role: Ident,
    /// It may be granted to set session_replication_role: PostgreSQL 15 and later.
    may_be_granted: bool,
}

async fn grantee(client: &SqlClient) -> Result<Grantee, Fault> {
    let sql = "SELECT current_user::text, pg_catalog.current_setting('server_version_num')::int >= 150000";
    let row = client.query_one(DOING, sql, &[]).await.map_err(DestinationError::Session)?;
    let read = || Ok(Grantee { role: Ident::new(row.get::<&str>(0)?), may_be_granted: row.get(1)? });
    Ok(read().map_err(DestinationError::Session)?)
}

fn words(found: &[(&ActingKey, Vec<&str>)], grantee: Option<Grantee>) -> ErrorReport {
    let mut lines: Vec<String> = found
        .iter()
        .take(LISTED_MAX)
        .map(|(key, lacking)| {
            format!(
                "Foreign key {} of table {} references {} {}; the source has none that does this for the same columns.",
                key.name,
                key.table,
                key.referenced,
                lacking.join(" ")
            )
        })
        .collect();
    if found.len() > LISTED_MAX {
        lines.push(format!("{} more do likewise.", found.len() - LISTED_MAX));
    }
    lines.push(
        "When a referenced row is deleted or gets another key, rows that the source keeps would be changed or deleted here."
            .to_owned(),
    );
    lines.push("After a stream with such a key headwater verify finds the rows that differ.".to_owned());
    let statements: Vec<String> =
        found.iter().map(|(key, _)| format!("ALTER TABLE {} DROP CONSTRAINT {};", key.table, key.name)).collect();
    let first = match grantee {
        Some(Grantee { role, may_be_granted: true }) => format!(
            "Let no foreign key act on what is applied: GRANT SET ON PARAMETER session_replication_role TO {role}, run by a superuser. \
             Otherwise run at the destination as the owner of the tables:"
        ),
        Some(Grantee { may_be_granted: false, .. }) => "Run at the destination as the owner of the tables:".to_owned(),
        None => {
            lines.push(
                "They act in the role replica, too: their triggers are ENABLE ALWAYS or ENABLE REPLICA.".to_owned(),
            );
            "Run at the destination as the owner of the tables:".to_owned()
        }
    };
    ErrorReport::new("foreign keys of the destination would change rows that the source keeps")
        .detail(lines.join("\n"))
        .hint(format!("{first}\n{}", statements.join("\n")))
}
