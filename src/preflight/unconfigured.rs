//! Tables that a stream follows and the configuration names no longer: they are followed no longer, and the others stream on.
//!
//! Asked by `prepare` once a start has found nothing else to object to, and by `check`, which only says it. In come the tables of the
//! bookkeeping; out goes the bookkeeping without them.
//!
//! Why no row of another table is lost or doubled: the position is not moved. The stream starts there with the set of configured
//! tables, so of each transaction behind it the changes of these tables are skipped and all others are applied. Their rows stay as the
//! position has them. Taken in again, such a table is one that was never followed: it is copied alone, and with rows in it only on the
//! operator's word.
//!
//! What a crash leaves: the bookkeeping forgets them in one transaction. If headwater dies before it has taken them out of the
//! publication, they stay published, which nothing depends on.

use std::collections::BTreeSet;

use crate::destination::{Bookkeeping, DestinationError, LooseForeignKey, TableRecord};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Ident, QualifiedName, RelationId, SlotName};
use crate::session::SqlClient;
use crate::source::{Withdrawal, withdraw};
use crate::telemetry::{Telemetry, failpoint};

/// The tables of the bookkeeping: those that are configured, and those that are not.
pub(crate) fn split(known: Vec<TableRecord>, configured: &[QualifiedName]) -> (Vec<TableRecord>, Vec<TableRecord>) {
    let configured: BTreeSet<&QualifiedName> = configured.iter().collect();
    known.into_iter().partition(|table| configured.contains(&table.name))
}

/// What `check` says of them.
pub(crate) fn unconfigured_report(tables: &[TableRecord]) -> ErrorReport {
    let Words { are, them, their } = Words::of(tables);
    ErrorReport::new(format!("{} at the destination {are} not configured any more", named(tables)))
        .detail(format!(
            "The next start follows {them} no longer: {their} rows stay as they are, and the other tables stream on."
        ))
        .hint("If that is not meant, put the name back into tables before that start.")
}

/// One table, or several.
struct Words {
    are: &'static str,
    them: &'static str,
    their: &'static str,
}

impl Words {
    fn of(tables: &[TableRecord]) -> Words {
        match tables.len() {
            1 => Words { are: "is", them: "it", their: "its" },
            _ => Words { are: "are", them: "them", their: "their" },
        }
    }
}

fn named(tables: &[TableRecord]) -> String {
    let names: Vec<String> = tables.iter().map(|table| table.name.to_string()).collect();
    format!("{} {}", if names.len() == 1 { "table" } else { "tables" }, names.join(", "))
}

/// Where such tables may still be published.
pub(crate) struct Published<'a> {
    /// A session with the source; `None` where it is not the cluster that their OIDs are of.
    pub(crate) source: Option<&'a SqlClient>,
    pub(crate) publication: &'a Ident,
    pub(crate) slot: &'a SlotName,
    /// The tables that are configured. One of them may be a table that was followed under another name: that one stays.
    pub(crate) configured: &'a [RelationId],
}

/// Follows these tables no longer, and says so.
pub(crate) async fn unfollow(
    bookkeeping: &Bookkeeping,
    telemetry: &Telemetry,
    tables: &[TableRecord],
    published: Published<'_>,
) -> Result<(), Fault> {
    if tables.is_empty() {
        return Ok(());
    }
    let names: Vec<QualifiedName> = tables.iter().map(|table| table.name.clone()).collect();
    bookkeeping.unfollow(&names).await?;
    failpoint::reached("tables.unfollowed");
    let (names_shown, Words { are, their, .. }) = (named(tables), Words::of(tables));
    let text = format!(
        "{names_shown} {are} not configured any more and no longer followed: {their} rows at the destination stay as they are"
    );
    telemetry.warning("tables", text);
    if let Some(report) = loose_foreign_keys(bookkeeping, &names).await? {
        telemetry.warning("tables", report.lines());
    }
    let Some(source) = published.source else { return Ok(()) };
    let ids = tables.iter().map(|table| table.source_id);
    let ids: Vec<RelationId> = ids.filter(|id| !published.configured.contains(id)).collect();
    match withdraw(source, published.publication, published.slot, &ids).await? {
        Withdrawal::None => {}
        Withdrawal::Done(text) => telemetry.event("publication", text),
        Withdrawal::Left(report) => telemetry.warning("publication", report.lines()),
    }
    Ok(())
}

async fn loose_foreign_keys(
    bookkeeping: &Bookkeeping,
    names: &[QualifiedName],
) -> Result<Option<ErrorReport>, DestinationError> {
    let keys = bookkeeping.loose_foreign_keys(names).await?;
    if keys.is_empty() {
        return Ok(None);
    }
    let named = |LooseForeignKey { table, name, target }: &LooseForeignKey| {
        format!("{name} of table {table} points at {target}")
    };
    let drop =
        |LooseForeignKey { table, name, .. }: &LooseForeignKey| format!("ALTER TABLE {table} DROP CONSTRAINT {name};");
    let report = ErrorReport::new("foreign keys at the destination have an end that is followed no longer")
        .detail(format!(
            "{}. Where our role may set session_replication_role nothing checks them for what is applied, so they may come not to hold; \
             otherwise they can make a change fail.",
            keys.iter().map(named).collect::<Vec<_>>().join("; ")
        ))
        .hint(format!(
            "Run at the destination as the owner of the tables:\n{}",
            keys.iter().map(drop).collect::<Vec<_>>().join("\n")
        ));
    Ok(Some(report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::TableState;

    #[test]
    fn check_says_of_one_table_and_of_several_that_they_stay_as_they_are() {
        let name = |name: &str| QualifiedName::new("public", name);
        let record = |table: &str| TableRecord {
            name: name(table),
            source_id: RelationId(1),
            destination_id: 2,
            state: TableState::Staging,
        };
        let (kept, gone) = split(vec![record("a"), record("b"), record("c")], &[name("b"), name("d")]);
        assert_eq!(kept, [record("b")]);
        let several = unconfigured_report(&gone);
        assert_eq!(several.message, "tables public.a, public.c at the destination are not configured any more");
        assert!(several.detail.unwrap().contains("follows them no longer: their rows stay as they are"));
        let one = unconfigured_report(&gone[..1]);
        assert_eq!(one.message, "table public.a at the destination is not configured any more");
        assert!(one.detail.unwrap().contains("follows it no longer: its rows stay as they are"));
    }
}
