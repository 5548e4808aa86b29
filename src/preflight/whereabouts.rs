//! Where tables that are followed are at the source now: under another name, or nowhere.
//!
//! Asked by callers that read the catalog ([`read_catalog`]: a start, a copy, `verify`), by `--accept-source-identity`, by `check`, and
//! by the monitor when a table is not in the publication (`stream_health`). In come names and the OIDs that the bookkeeping knows; out
//! goes the report for the operator. One query for any number of tables; it needs no lock and no privilege on them.

use std::collections::BTreeSet;

use super::replication_session::connect_replication;
use crate::config::Config;
use crate::destination::{Bookkeeping, StreamState, TableRecord, renamed_report};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, QualifiedName, RelationId};
use crate::preflight::addresses::Addresses;
use crate::session::{SessionError, SqlClient};
use crate::source::{SourceCatalog, SourceError};
use crate::telemetry::failpoint;

/// A table that is followed, and what the source's catalog knows of its OID and of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    /// The name that is followed.
    pub(crate) table: QualifiedName,
    /// The OID that is followed.
    pub(crate) id: RelationId,
    /// The name of that OID now; `None` where the table was dropped.
    pub(crate) name_now: Option<QualifiedName>,
    /// The table that has the followed name now, this one or another. A view is none.
    pub(crate) bearer: Option<RelationId>,
}

/// Asks for these tables. Only the cluster that their OIDs are of knows the answer.
pub(crate) async fn whereabouts(
    source: &SqlClient,
    tables: impl Iterator<Item = (&QualifiedName, RelationId)>,
) -> Result<Vec<Whereabouts>, SessionError> {
    let tables: Vec<(&QualifiedName, RelationId)> = tables.collect();
    let ids: Vec<u32> = tables.iter().map(|(_, id)| id.0).collect();
    let schemas: Vec<&str> = tables.iter().map(|(table, _)| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|(table, _)| table.name.as_str()).collect();
    // Not to_regclass(), which needs USAGE on the schema.
    let sql = "SELECT n.nspname::text, c.relname::text, b.oid
               FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]))
                   WITH ORDINALITY AS known (id, schema_name, name, number)
               LEFT JOIN pg_catalog.pg_class c ON c.oid = known.id
               LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_catalog.pg_namespace s ON s.nspname = known.schema_name
               LEFT JOIN pg_catalog.pg_class b ON b.relnamespace = s.oid AND b.relname = known.name AND b.relkind IN ('r', 'p')
               ORDER BY known.number";
    let doing = "looking for dropped and renamed tables";
    let rows = source.query(doing, sql, &[&ids, &schemas, &names]).await?;
    if rows.len() != ids.len() {
        return Err(SessionError::answer(doing, "there is not one row for each table"));
    }
    let found = rows.iter().zip(tables).map(|(row, (table, id))| {
        let now: (Option<&str>, Option<&str>) = (row.get(0)?, row.get(1)?);
        let name_now = now.0.zip(now.1).map(|(schema, name)| QualifiedName::new(schema, name));
        Ok(Whereabouts { table: table.clone(), id, name_now, bearer: row.get::<Option<u32>>(2)?.map(RelationId) })
    });
    found.collect()
}

/// The tables of the bookkeeping that are configured and that no table at the source is, by their names or by their OIDs' names.
pub(crate) async fn lost_tables(
    source: &SqlClient,
    known: &[TableRecord],
    configured: &[QualifiedName],
) -> Result<Vec<Whereabouts>, SessionError> {
    let configured: BTreeSet<&QualifiedName> = configured.iter().collect();
    let known = known.iter().filter(|table| configured.contains(&table.name));
    let mut found = whereabouts(source, known.map(|table| (&table.name, table.source_id))).await?;
    found.retain(|table| table.bearer.is_none() && table.name_now.as_ref() != Some(&table.table));
    Ok(found)
}

/// Reads the source's catalog of these tables. Why it cannot be read: where a table that is followed was dropped, or has another name, that
/// says more than that its name is nobody's, or a view's. Other errors stay what they are, also where nobody can tell: the first one is as
/// true.
///
/// # Errors
/// [`Fault`].
pub(crate) async fn read_catalog(
    config: &Config,
    addresses: &Addresses,
    source: &SqlClient,
    names: &[QualifiedName],
) -> Result<SourceCatalog, Fault> {
    let (error, is_a_table) = match SourceCatalog::examine(source, names).await {
        Ok((catalog, problems)) => match problems.into_iter().next() {
            None => return Ok(catalog),
            Some(problem) => (SourceError::Refused(problem), true),
        },
        Err(error) => (error, false),
    };
    failpoint::pause("catalog.problem").await;
    match lost(config, addresses, source).await {
        Ok(Some(report)) => Err(Fault::Halted(report)),
        // One that was not there may have been created since.
        Ok(None) if is_a_table => Ok(SourceCatalog::read(source, names).await?),
        Ok(None) => Err(error.into()),
        Err(fault) => {
            tracing::debug!("dropped and renamed tables could not be looked for: {fault}");
            Err(error.into())
        }
    }
}

/// What to say of followed tables that were dropped or renamed; `None` where there are none, or none is followed yet.
async fn lost(config: &Config, addresses: &Addresses, source: &SqlClient) -> Result<Option<ErrorReport>, Fault> {
    let bookkeeping = Bookkeeping::connect(&addresses.destination).await?;
    // A first copy has no tables yet.
    let stream = bookkeeping.stream().await?;
    let Some(stream) = stream.filter(|stream| matches!(stream.state, StreamState::Live { .. })) else {
        return Ok(None);
    };
    let mut session = connect_replication(config, "looking").await?;
    let identification = session.identify_system().await.map_err(SourceError::Session)?;
    session.close_and_wait().await;
    // OIDs of another cluster mean nothing.
    if identification.system_identifier != stream.system_identifier {
        return Ok(None);
    }
    told(source, &bookkeeping, &config.tables).await
}

/// What to say of the tables of the bookkeeping, at a source that is known to have their OIDs.
pub(crate) async fn told(
    source: &SqlClient,
    bookkeeping: &Bookkeeping,
    configured: &[QualifiedName],
) -> Result<Option<ErrorReport>, Fault> {
    let known = bookkeeping.tables().await?;
    let lost = lost_tables(source, &known, configured).await.map_err(SourceError::Session)?;
    Ok(lost_report(&lost, configured))
}

/// What to say of tables whose names no table has any more; `None` when there are none.
pub(crate) fn lost_report(lost: &[Whereabouts], configured: &[QualifiedName]) -> Option<ErrorReport> {
    let dropped: Vec<&QualifiedName> =
        lost.iter().filter(|table| table.name_now.is_none()).map(|table| &table.table).collect();
    if !dropped.is_empty() {
        return Some(dropped_report(&dropped));
    }
    let renamed = lost.iter().find_map(|table| Some((&table.table, table.name_now.as_ref()?)));
    renamed.map(|(table, now)| renamed_report(table, now, configured.contains(now)))
}

fn dropped_report(tables: &[&QualifiedName]) -> ErrorReport {
    let names = tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = match tables {
        [_] => format!("table {names} was dropped at the source"),
        _ => format!("tables {names} were dropped at the source"),
    };
    ErrorReport::new(message)
        .detail(format!(
            "At the destination {names} still has the rows that the stream has brought. The other tables wait, because the configuration \
             still names it."
        ))
        .hint(format!(
            "Take {names} out of tables and start headwater again: the other tables stream on without a copy, and {names} stays at the \
             destination until you drop it there. Or create {names} at the source again, which is then copied by itself."
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(table: &str, now: Option<&str>) -> Whereabouts {
        let name = |name: &str| QualifiedName::new("public", name);
        Whereabouts { table: name(table), id: RelationId(1), name_now: now.map(name), bearer: None }
    }

    #[test]
    fn what_was_dropped_is_said_before_what_was_renamed() {
        let report = |lost: &[Whereabouts]| lost_report(lost, &[]).map(|report| report.message);
        assert_eq!(report(&[]), None);
        let tables = [lost("a", Some("z")), lost("b", None), lost("c", None)];
        assert_eq!(report(&tables).unwrap(), "tables public.b, public.c were dropped at the source");
        assert_eq!(report(&tables[..2]).unwrap(), "table public.b was dropped at the source");
        assert_eq!(report(&tables[..1]).unwrap(), "table public.a is now called public.z at the source");
    }
}
