//! Tables that are followed no longer are taken out of a publication that headwater has made.
//!
//! Called by the leader at a start, after the bookkeeping has forgotten the tables (`preflight::unconfigured`). A table that stays in a
//! publication costs the source little; but without a replica identity its own UPDATE and DELETE fail for as long as it is published.
//! A publication that somebody else has made, or that another slot of the database may use, is left as it is.
//!
//! Invariant: what keeps a table from being taken out never fails a start. It is said, with the statement.

use super::error::SourceError;
use super::publication::PUBLICATION_COMMENT;
use crate::pg::{ErrorReport, Ident, QualifiedName, RelationId, SlotName};
use crate::session::SqlClient;

/// What became of the tables that are followed no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// There was nothing to be done: it does not name them, or is somebody else's.
    None,
    /// They were taken out.
    Done(String),
    /// They are published still.
    Left(ErrorReport),
}

/// Takes tables out of the publication, if it is headwater's and nobody else can need them in it.
///
/// # Errors
/// [`SourceError`] when the session is lost.
pub async fn withdraw(
    client: &SqlClient,
    publication: &Ident,
    slot: &SlotName,
    tables: &[RelationId],
) -> Result<Withdrawal, SourceError> {
    let ids: Vec<u32> = tables.iter().map(|table| table.0).collect();
    // Every destination that is fed from this database has a slot of its own, and may have a publication in common with us.
    let sql = "SELECT n.nspname::text, c.relname::text,
                      EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
                              WHERE s.database = pg_catalog.current_database() AND s.plugin = 'pgoutput' AND NOT s.temporary
                                AND s.slot_name <> $4::text)
               FROM pg_catalog.pg_publication p
               JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = ANY ($2)
               JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE p.pubname = $1::text AND pg_catalog.obj_description(p.oid, 'pg_publication') = $3::text
               ORDER BY 1, 2";
    let (name, slot) = (publication.as_str(), slot.as_str());
    let rows = client.query("looking at the publication", sql, &[&name, &ids, &PUBLICATION_COMMENT, &slot]).await?;
    let names = rows.iter().map(|row| Ok(QualifiedName::new(row.get::<&str>(0)?, row.get::<&str>(1)?)));
    let names: Vec<QualifiedName> = names.collect::<Result<_, SourceError>>()?;
    let Some(first) = rows.first() else { return Ok(Withdrawal::None) };
    let list = |name: fn(&QualifiedName) -> String| names.iter().map(name).collect::<Vec<_>>().join(", ");
    let shown = list(ToString::to_string);
    let left = |reason: String| {
        let report = ErrorReport::new(format!("{shown} stays in publication {publication} at the source"));
        Withdrawal::Left(report.detail(reason).hint(format!(
            "If nobody needs it there, run at the source as the owner of the publication:\n\
             ALTER PUBLICATION {publication} DROP TABLE {shown};"
        )))
    };
    if first.get::<bool>(2)? {
        return Ok(left("Another replication slot of that database may use the publication.".to_owned()));
    }
    let statement = format!("ALTER PUBLICATION {} DROP TABLE {}", publication.sql(), list(QualifiedName::sql));
    match client.statement("taking tables out of the publication", &statement).await {
        Ok(()) => Ok(Withdrawal::Done(format!("took {shown} out of publication {publication}"))),
        Err(error) => match error.server() {
            Some(server) if !server.fatal => Ok(left(format!("It could not be taken out: {}.", server.message))),
            Some(_) | None => Err(error.into()),
        },
    }
}
