//! The operator classes that indexes of the source take from extensions, which a destination must have to build the same.
//!
//! In come the indexes that will be made at the destination; out go the classes with their extensions. Asked by
//! `preflight::missing_objects` before a row moves: a class that is missing would be found after the copy. Also what an index takes as its
//! type's default may be an extension's (btree_gist for a key WITHOUT OVERLAPS).

use super::error::SourceError;
use crate::pg::{Ident, QualifiedName};
use crate::session::SqlClient;

/// An operator class of an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorClass {
    /// Its name; the schema is the extension's, which may be another at the destination.
    pub name: Ident,
    /// The access method.
    pub method: Ident,
    /// The extension.
    pub extension: Ident,
    /// The schema of the extension.
    pub schema: Ident,
    /// The indexes that use it, each with its table.
    pub users: Vec<(Ident, QualifiedName)>,
}

/// The operator classes of extensions that these indexes use.
///
/// # Errors
/// [`SourceError`] when the source does not answer.
pub async fn operator_classes(client: &SqlClient, indexes: &[u32]) -> Result<Vec<OperatorClass>, SourceError> {
    let sql = "SELECT DISTINCT oc.opcname::text, am.amname::text, x.extname::text, xn.nspname::text,
                      ic.relname::text, tn.nspname::text, tc.relname::text
               FROM pg_catalog.pg_index i
               CROSS JOIN LATERAL pg_catalog.unnest(i.indclass::pg_catalog.oid[]) AS used (class)
               JOIN pg_catalog.pg_opclass oc ON oc.oid = used.class
               JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod
               JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_opclass'::pg_catalog.regclass AND d.objid = oc.oid
                   AND d.deptype = 'e'
               JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
               JOIN pg_catalog.pg_namespace xn ON xn.oid = x.extnamespace
               JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
               JOIN pg_catalog.pg_class tc ON tc.oid = i.indrelid
               JOIN pg_catalog.pg_namespace tn ON tn.oid = tc.relnamespace
               WHERE i.indexrelid = ANY ($1::pg_catalog.oid[])
               ORDER BY 1, 2, 3, 4, 5, 6, 7";
    let mut classes: Vec<OperatorClass> = Vec::new();
    for row in client.query("looking at operator classes", sql, &[&indexes]).await? {
        let ident = |at: usize| row.get::<&str>(at).map(Ident::new);
        let user = (ident(4)?, QualifiedName { schema: ident(5)?, name: ident(6)? });
        let class = OperatorClass {
            name: ident(0)?,
            method: ident(1)?,
            extension: ident(2)?,
            schema: ident(3)?,
            users: vec![user.clone()],
        };
        match classes.last_mut() {
            Some(last) if (&last.name, &last.method) == (&class.name, &class.method) => last.users.push(user),
            Some(_) | None => classes.push(class),
        }
    }
    Ok(classes)
}
