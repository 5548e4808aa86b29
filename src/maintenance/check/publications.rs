//! Publications at the destination: other programs may read there what headwater writes.
//!
//! Called by `both` with both catalogs. PostgreSQL refuses an UPDATE or DELETE, by any role, of a table that a publication holds and that
//! has no replica identity. A publication FOR ALL TABLES also holds headwater's own tables, which have one.

use std::collections::BTreeMap;

use crate::catalog::schema::Identity;
use crate::destination::{Catalog, DestinationError};
use crate::maintenance::check::findings::{About, Findings};
use crate::pg::{ErrorReport, Ident, QualifiedName};
use crate::session::{SessionError, SqlClient};
use crate::source::SourceCatalog;
use crate::sql::partition_tree;

const DESTINATION: About = About::Destination;
const DOING: &str = "looking at publications";

pub(super) async fn look(
    destination: &SqlClient,
    catalog: &SourceCatalog,
    existing: &Catalog,
    findings: &mut Findings,
) -> Result<(), DestinationError> {
    for name in publications_of_bookkeeping(destination).await? {
        let text =
            format!("publication {name} at the destination also publishes headwater's own tables (schema headwater)");
        findings.ok(DESTINATION, "publications", text);
    }
    let changes = |name: &QualifiedName| {
        let table = catalog.table(name).map(|table| table.definition.identity_columns());
        table.is_some_and(|identity| identity != Identity::None)
    };
    for (root, leaves) in published_without_identity(destination, existing).await? {
        let publications: Vec<String> =
            leaves.iter().flat_map(|leaf| &leaf.publications).map(Ident::to_string).collect();
        let statements: Vec<String> =
            leaves.iter().map(|leaf| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", leaf.name)).collect();
        let publication = publications.first().cloned().unwrap_or_default();
        let text =
            format!("publication {publication} at the destination holds table {root}, which has no replica identity");
        let report = ErrorReport::new(text)
            .detail("The destination refuses updates and deletes of it, those of headwater included.")
            .hint(format!("Give it a primary key; or run at the destination as its owner:\n{}", statements.join("\n")));
        // The source itself refuses updates and deletes of a table without identity that it publishes.
        if changes(&root) {
            findings.fail(DESTINATION, "publications", report);
        } else {
            findings.warn(DESTINATION, "publications", report);
        }
    }
    Ok(())
}

/// The publications that hold all tables of the database, or those of the schema headwater.
async fn publications_of_bookkeeping(client: &SqlClient) -> Result<Vec<Ident>, SessionError> {
    let sql = "SELECT p.pubname::text FROM pg_catalog.pg_publication p
               WHERE p.puballtables OR EXISTS (SELECT FROM pg_catalog.pg_publication_tables t
                                               WHERE t.pubname = p.pubname AND t.schemaname = 'headwater')
               ORDER BY 1";
    let rows = client.query(DOING, sql, &[]).await?;
    rows.iter().map(|row| Ok(Ident::new(row.get::<&str>(0)?))).collect()
}

/// A table with rows of its own.
struct Leaf {
    name: QualifiedName,
    publications: Vec<Ident>,
}

/// The tables of the set, or partitions of theirs, whose updates or deletes are published and that have no replica identity.
async fn published_without_identity(
    client: &SqlClient,
    existing: &Catalog,
) -> Result<BTreeMap<QualifiedName, Vec<Leaf>>, SessionError> {
    let roots: BTreeMap<u32, &QualifiedName> =
        existing.tables.iter().map(|(name, table)| (table.definition.id, name)).collect();
    // An index serves only if it is enforced at once (RelationGetReplicaIndex); publications are inherited from all ancestors.
    let sql = concat!(
        "WITH published AS (
                   SELECT c.oid, p.pubname FROM pg_catalog.pg_publication p
                   JOIN pg_catalog.pg_publication_tables t ON t.pubname = p.pubname
                   JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
                   JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
                   WHERE p.pubupdate OR p.pubdelete
               ), leaves AS (
                   SELECT root, root AS leaf FROM pg_catalog.unnest($1::oid[]) AS root
                   UNION
                   SELECT root, t.relid::oid FROM pg_catalog.unnest($1::oid[]) AS root
                   CROSS JOIN LATERAL ",
        partition_tree!("root"),
        " AS t
               )
               SELECT l.root, n.nspname::text, c.relname::text, pg_catalog.array_agg(DISTINCT p.pubname::text)
               FROM leaves l JOIN pg_catalog.pg_class c ON c.oid = l.leaf AND c.relkind = 'r'
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               CROSS JOIN LATERAL (SELECT c.oid AS oid UNION SELECT relid::oid FROM pg_catalog.pg_partition_ancestors(c.oid)) AS a
               JOIN published p ON p.oid = a.oid
               WHERE c.relreplident <> 'f' AND NOT EXISTS (
                   SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                   AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident))
               GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    );
    let ids: Vec<u32> = roots.keys().copied().collect();
    let mut found: BTreeMap<QualifiedName, Vec<Leaf>> = BTreeMap::new();
    for row in client.query(DOING, sql, &[&ids]).await? {
        let Some(root) = roots.get(&row.get::<u32>(0)?) else { continue };
        let name = QualifiedName::new(row.get::<&str>(1)?, row.get::<&str>(2)?);
        let publications = row.get::<Vec<String>>(3)?.into_iter().map(Ident::new).collect();
        found.entry((*root).clone()).or_default().push(Leaf { name, publications });
    }
    Ok(found)
}
